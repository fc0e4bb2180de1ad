//! One machine: how it turns, shakes, warms and obeys.

use std::time::Duration;

use edge_core::interlock::MachineState;
use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock};

use crate::signal::{MotorProfile, MotorSignal, SAMPLE_RATE_HZ, SlowSignal};

/// Name of a machine, also its `machine_id`.
pub type MachineName = &'static str;

/// Where the samples come from.
pub enum Vibration {
    /// The signal model.
    Simulated(Box<MotorSignal>),
    /// Recordings, each played in a loop: one of the healthy machine and one with the fault.
    Recorded(Recorded),
}

/// Two recordings in one unit and rate, and where they are.
pub struct Recorded {
    /// The machine as it should be.
    pub healthy: Vec<f32>,
    /// The machine with the fault.
    pub faulty: Vec<f32>,
    /// Samples per second.
    pub sample_rate_hz: f64,
    /// Unit of the samples.
    pub unit: &'static str,
    /// The next sample.
    pub position: usize,
}

impl Recorded {
    fn next_samples(&mut self, count: usize, severity: f64, speed: f64) -> Vec<f32> {
        let source = if severity > 0.5 { &self.faulty } else { &self.healthy };
        let start = self.position;
        self.position = self.position.wrapping_add(count);
        (start..start + count).map(|index| source[index % source.len()] * speed as f32).collect()
    }
}

/// A machine, its controls and its three sensors.
pub struct Machine {
    name: MachineName,
    vibration: Vibration,
    temperature: SlowSignal,
    pressure: SlowSignal,
    state: MachineState,
    /// Fraction of the nominal speed.
    speed: f64,
    spin_time: Duration,
    severity: f64,
    /// Change of the severity per second.
    growth: f64,
    interlock: String,
    rms: f64,
    last: (f64, f64),
    unit: &'static str,
}

impl Machine {
    /// A running, healthy machine that needs `spin_time` to come to rest; `temperature` in degrees Celsius.
    #[must_use]
    pub fn new(
        name: MachineName,
        vibration: Vibration,
        spin_time: Duration,
        temperature: f64,
        seed: u64,
    ) -> Self {
        let unit = match &vibration {
            Vibration::Simulated(_) => MotorProfile::healthy_1800_rpm().unit,
            Vibration::Recorded(recorded) => recorded.unit,
        };
        Self {
            name,
            vibration,
            temperature: SlowSignal::new(temperature, 0.4, 0.4, 0.08, seed ^ 0x7E),
            pressure: SlowSignal::new(6.0, 0.4, 0.03, 0.01, seed ^ 0xBA),
            state: MachineState::Running,
            speed: 1.0,
            spin_time,
            severity: 0.0,
            growth: 0.0,
            interlock: String::new(),
            rms: 0.0,
            last: (temperature, 6.0),
            unit,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> MachineName {
        self.name
    }

    /// What it says about itself.
    #[must_use]
    pub const fn state(&self) -> MachineState {
        self.state
    }

    /// What the edge module says about it: `armed`, `tripped` ...; empty before it has said anything.
    #[must_use]
    pub fn interlock(&self) -> &str {
        &self.interlock
    }

    /// RMS of the last block, in [`Self::unit`].
    #[must_use]
    pub const fn rms(&self) -> f64 {
        self.rms
    }

    /// Unit of the vibration.
    #[must_use]
    pub const fn unit(&self) -> &'static str {
        self.unit
    }

    /// Last temperature and pressure.
    #[must_use]
    pub const fn last_readings(&self) -> (f64, f64) {
        self.last
    }

    /// Samples per second of its vibration sensor.
    #[must_use]
    pub const fn sample_rate_hz(&self) -> f64 {
        match &self.vibration {
            Vibration::Simulated(_) => SAMPLE_RATE_HZ,
            Vibration::Recorded(recorded) => recorded.sample_rate_hz,
        }
    }

    /// Lets the fault of its bearing grow from nothing to ruin within so many seconds.
    pub const fn grow_fault(&mut self, seconds: f64) {
        self.growth = 1.0 / seconds;
    }

    /// Puts a new bearing in.
    pub const fn repair(&mut self) {
        self.growth = 0.0;
        self.severity = 0.0;
    }

    /// Moves its temperature to a level.
    pub const fn heat_to(&mut self, level: f64) {
        self.temperature.set_level(level);
    }

    /// Takes the stop command; a machine at rest stays there.
    pub fn stop(&mut self) {
        match self.state {
            MachineState::Running => self.state = MachineState::Stopping,
            MachineState::Stopping | MachineState::Stopped => {}
        }
    }

    /// A person starts it: it speeds up from where it is.
    pub const fn start(&mut self) {
        self.state = MachineState::Running;
    }

    /// Whether it turns at its nominal speed.
    #[must_use]
    pub const fn is_at_speed(&self) -> bool {
        self.speed >= 1.0
    }

    /// Takes note of what the edge module says.
    pub fn note_interlock(&mut self, state: &str) {
        state.clone_into(&mut self.interlock);
    }

    /// Moves on; gives its state when it has to be reported.
    pub fn advance(&mut self, time: Duration) -> Option<MachineState> {
        let seconds = time.as_secs_f64();
        let step = seconds / self.spin_time.as_secs_f64();
        match self.state {
            MachineState::Running => {
                self.severity = (self.severity + self.growth * seconds).min(1.0);
                let at_speed = self.speed >= 1.0;
                self.speed = (self.speed + step).min(1.0);
                (!at_speed && self.speed >= 1.0).then_some(self.state)
            }
            MachineState::Stopping => {
                self.speed = (self.speed - step).max(0.0);
                if self.speed > 0.0 {
                    return None;
                }
                self.state = MachineState::Stopped;
                Some(self.state)
            }
            MachineState::Stopped => None,
        }
    }

    /// The next samples of its vibration sensor.
    ///
    /// # Errors
    /// Its name is not one that a record may carry.
    pub fn next_block(
        &mut self,
        first_sample: EventTime,
        count: usize,
    ) -> anyhow::Result<WaveformBlock> {
        let machine_id = MachineId::new(self.name)?;
        let sensor_id = SensorId::new(&format!("{}/bearing", self.name))?;
        let block = match &mut self.vibration {
            Vibration::Simulated(signal) => {
                signal.set_severity(self.severity);
                signal.set_speed(self.speed);
                signal.next_block(&machine_id, &sensor_id, first_sample, count)
            }
            Vibration::Recorded(recorded) => WaveformBlock {
                machine_id,
                sensor_id,
                first_sample,
                sample_rate_hz: recorded.sample_rate_hz,
                unit: Some(recorded.unit.into()),
                samples: recorded.next_samples(count, self.severity, self.speed),
            },
        };
        let power: f64 = block.samples.iter().map(|&sample| f64::from(sample).powi(2)).sum();
        self.rms = (power / count as f64).sqrt();
        Ok(block)
    }

    /// Temperature and pressure after another `seconds`, to two and three decimals as its sensors give them.
    pub fn next_readings(&mut self, seconds: f64) -> (f64, f64) {
        let temperature = (self.temperature.next_value(seconds) * 100.0).round() / 100.0;
        let pressure = (self.pressure.next_value(seconds) * 1_000.0).round() / 1_000.0;
        self.last = (temperature, pressure);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let recorded = Recorded {
            healthy: vec![1.0, 2.0],
            faulty: vec![9.0],
            sample_rate_hz: 100.0,
            unit: "V",
            position: 0,
        };
        let spin_time = Duration::from_secs(1);
        Machine::new("press-1", Vibration::Recorded(recorded), spin_time, 60.0, 1)
    }

    #[test]
    fn machine_spins_down_and_reports_standstill_once() {
        let mut machine = machine();
        machine.stop();
        assert_eq!(machine.state(), MachineState::Stopping);
        let reports: Vec<_> =
            (0..20).filter_map(|_| machine.advance(Duration::from_millis(125))).collect();
        assert_eq!(reports, [MachineState::Stopped]);
        machine.stop();
        assert_eq!(machine.state(), MachineState::Stopped);
    }

    #[test]
    fn recordings_are_played_in_a_loop_and_change_with_the_fault() {
        let mut machine = machine();
        let time = EventTime::from_micros(0);
        assert_eq!(machine.next_block(time, 3).unwrap().samples, [1.0, 2.0, 1.0]);
        assert_eq!(machine.next_block(time, 2).unwrap().samples, [2.0, 1.0]);
        machine.grow_fault(1.0);
        machine.advance(Duration::from_millis(600));
        assert_eq!(machine.next_block(time, 1).unwrap().samples, [9.0]);
        machine.repair();
        assert_eq!(machine.next_block(time, 1).unwrap().samples, [1.0]);
    }
}
