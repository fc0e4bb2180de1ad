//! A gateway whose settings a person edits while the motor that it protects turns.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::publisher::{Publisher, WaveformSource, paced};
use e2e_tests::signal::{MotorProfile, MotorSignal, SAMPLE_RATE_HZ};
use serde_json::Value;

use crate::plant::{DEADLINE, Plant, kafka, motor_bundle, now};

const METADATA: &str = "bundle.json";
pub(crate) const MODEL: &str = "model.tflite";
pub(crate) const MOTOR: &str = "motor-1";
pub(crate) const SENSOR: &str = "motor-1/bearing";
/// Of `motor-v1`.
const WINDOW_SAMPLES: usize = 2048;
pub(crate) const WINDOW_MICROS: i64 = 102_400;
pub(crate) const BLOCK_SAMPLES: usize = 500;
/// One block of 500 samples at 20 kHz.
pub(crate) const BLOCK_INTERVAL: Duration = Duration::from_millis(25);
pub(crate) const BLOCK_MICROS: i64 = 25_000;
pub(crate) const OBEYS: Obedience = Obedience::SpinsDown(Duration::ZERO);
/// The motor's accelerometer.
pub(crate) const SOURCE: WaveformSource<'static> = WaveformSource {
    machine_id: MOTOR,
    sensor_id: SENSOR,
    sample_rate_hz: SAMPLE_RATE_HZ,
    unit: "V",
};

pub(crate) fn machine_toml(id: &str, scored: &str) -> String {
    format!("[[machines]]\nid = \"{id}\"\nscored-sensors = [{scored}]\nvotes = 3\nof = 5\n")
}

/// One motor that the model of `model.bundle-dir` judges.
pub(crate) fn one_motor() -> String {
    machine_toml(MOTOR, &format!("\"{SENSOR}\""))
}

/// A gateway whose file a person edits, and a motor under its protection.
pub(crate) struct Gateway {
    pub(crate) plant: Plant,
    pub(crate) edge: EdgeModule,
    pub(crate) file: PathBuf,
    text: String,
    pub(crate) motor: FakeMachine,
}

impl Gateway {
    pub(crate) fn start(name: &str, machines: &str, bundle: Option<&Path>) -> anyhow::Result<Self> {
        Self::start_with(name, machines, bundle, Vec::new())
    }

    /// With further variables.
    pub(crate) fn start_with(
        name: &str,
        machines: &str,
        bundle: Option<&Path>,
        environment: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        let mut plant = Plant::new(name)?;
        plant.edge_settings.machines = machines.to_owned();
        plant.edge_settings.environment = environment;
        plant.edge_settings.bundle_dir = bundle.map(Path::to_owned);
        // A slow processor is no reason to refuse a model here.
        let budget = ("EDGE__MODEL__LATENCY_BUDGET".to_owned(), "5s".to_owned());
        plant.edge_settings.environment.push(budget);
        let motor = FakeMachine::start(plant.mosquitto.port(), MOTOR, OBEYS)?;
        let edge = plant.start_edge_module()?;
        let file = plant.dir.join("edge-module/edge-module.toml");
        let text = std::fs::read_to_string(&file)?;
        Ok(Self { plant, edge, file, text, motor })
    }

    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.edge.get("/status")?.1)?)
    }

    /// Edits the file, asks for it to be read, and waits until it is in force.
    pub(crate) fn change(&mut self, from: &str, to: &str) -> anyhow::Result<()> {
        ensure!(self.text.contains(from), "{from} is not in the file");
        let before = self.status()?["settings"]["version"].clone();
        self.text = self.text.replace(from, to);
        std::fs::write(&self.file, &self.text)?;
        self.edge.process().signal("HUP")?;
        eventually("another version is in force", DEADLINE, || {
            let settings = &self.status()?["settings"];
            ensure!(settings["version"] != before, "{settings}");
            Ok(())
        })
    }

    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        self.edge.process().terminate()?;
        self.edge.process().wait(DEADLINE)?;
        Ok(())
    }

    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.edge.restart()?;
        self.edge.wait_ready()
    }

    /// Waits for an event of this type that has all the words in it.
    pub(crate) fn wait_for_event(&self, event_type: &str, words: &[&str]) -> anyhow::Result<Value> {
        eventually(&format!("{event_type} with {words:?} is on Kafka"), DEADLINE, || {
            let events = kafka()?.read_json(&self.plant.topic("machine-events"))?;
            let has_all = |event: &&Value| {
                let text = event.to_string();
                event["event_type"] == event_type && words.iter().all(|word| text.contains(word))
            };
            events.iter().find(has_all).cloned().with_context(|| format!("{events:?}"))
        })
    }

    /// Waits until a machine stands still, and says what tripped it.
    pub(crate) fn wait_for_trip(&self, machine: &FakeMachine, id: &str) -> anyhow::Result<Value> {
        machine.wait_for_interlock("stopped", DEADLINE)?;
        ensure!(!machine.is_running(), "{id} runs");
        self.wait_for_event("trip", &[&format!("\"machine_id\":\"{id}\"")])
    }

    /// Windows that the stop path has judged.
    pub(crate) fn windows_judged(&self) -> anyhow::Result<u64> {
        let judged = metric(&self.edge.metrics()?, "protection_windows_total", "");
        Ok(judged.unwrap_or(0.0) as u64)
    }

    /// Waits for so many windows on the stop path and as many on Kafka, and gives those.
    pub(crate) fn wait_for_windows(&self, windows: u64) -> anyhow::Result<Vec<Value>> {
        eventually("the stop path has judged all windows", DEADLINE, || {
            let judged = self.windows_judged()?;
            ensure!(judged >= windows, "{judged} of {windows}");
            Ok(())
        })?;
        let readings = eventually("all windows are on Kafka", DEADLINE, || {
            let readings = kafka()?.read_json(&self.plant.topic("vibration"))?;
            ensure!(readings.len() as u64 >= windows, "{} of {windows}", readings.len());
            anyhow::Ok(readings)
        })?;
        let found = (self.windows_judged()?, readings.len() as u64);
        ensure!(found == (windows, windows), "{found:?} instead of {windows}");
        Ok(readings)
    }
}

/// A motor with one sensor, at its own pace. Healthy and as loud as the test bench at first.
pub(crate) struct Shaking {
    controls: Arc<Controls>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

struct Controls {
    /// An `f64`, 0 to 1.
    severity_bits: AtomicU64,
    /// An `f32`.
    gain_bits: AtomicU32,
    is_over: AtomicBool,
}

impl Shaking {
    pub(crate) fn start(port: u16) -> Self {
        let controls = Arc::new(Controls {
            severity_bits: AtomicU64::new(0.0_f64.to_bits()),
            gain_bits: AtomicU32::new(1.0_f32.to_bits()),
            is_over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&controls);
        let thread = std::thread::spawn(move || shake(port, &shared));
        Self { controls, thread }
    }

    pub(crate) fn damage(&self) {
        self.set_severity(1.0);
    }

    /// The bearing is healthy at 0 and ruined at 1.
    pub(crate) fn set_severity(&self, severity: f64) {
        self.controls.severity_bits.store(severity.to_bits(), Ordering::SeqCst);
    }

    /// From the next block on the motor shakes so many times as much as the test bench.
    pub(crate) fn set_gain(&self, gain: f32) {
        self.controls.gain_bits.store(gain.to_bits(), Ordering::SeqCst);
    }

    /// Ends the signal, and says how many whole windows of `motor-v1` it had.
    pub(crate) fn end(self) -> anyhow::Result<u64> {
        self.controls.is_over.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow!("the motor's thread has panicked"))?
    }
}

fn shake(port: u16, controls: &Controls) -> anyhow::Result<u64> {
    let mut publisher = Publisher::connect(port, "accelerometer");
    let mut signal = MotorSignal::new(MotorProfile::healthy_1800_rpm(), 1);
    let topic = format!("plant/{MOTOR}/waveform");
    let start = now();
    let numbers = (0_i64..).take_while(|_| !controls.is_over.load(Ordering::SeqCst));
    paced(numbers, BLOCK_INTERVAL, |number| {
        signal.set_severity(f64::from_bits(controls.severity_bits.load(Ordering::SeqCst)));
        let gain = f32::from_bits(controls.gain_bits.load(Ordering::SeqCst));
        let mut samples = signal.next_samples(BLOCK_SAMPLES);
        samples.iter_mut().for_each(|sample| *sample *= gain);
        let first = start.saturating_add_micros(number * BLOCK_MICROS);
        publisher.publish(&topic, SOURCE.block(first, &samples))
    })?;
    publisher.wait_acknowledged(DEADLINE)?;
    Ok(publisher.published() * BLOCK_SAMPLES as u64 / WINDOW_SAMPLES as u64)
}

/// Writes a copy of `motor-v1` of another version, with a change in its `bundle.json`.
pub(crate) fn copy_bundle(
    folder: &Path,
    version: &str,
    change: impl FnOnce(&mut Value),
) -> anyhow::Result<()> {
    let original = motor_bundle();
    let mut metadata: Value = serde_json::from_slice(&std::fs::read(original.join(METADATA))?)?;
    metadata["version"] = version.into();
    change(&mut metadata);
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(MODEL), std::fs::read(original.join(MODEL))?)?;
    std::fs::write(folder.join(METADATA), metadata.to_string())?;
    Ok(())
}
