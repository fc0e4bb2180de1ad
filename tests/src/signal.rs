//! A motor that shakes as a physical one does: the signals of the demo and of the scenarios that have no recording.
//!
//! [`MotorSignal`] adds up what an accelerometer on a bearing housing sees:
//! - the shaft: harmonics 1x to 4x of the speed, each with a phase of its own,
//! - flow, friction and the housing's resonances: noise with the third-octave levels of [`MotorProfile::noise`],
//! - a defect in the bearing's outer race: each ball that passes hits it, and each hit rings the housing's
//!   resonances, which die away within a millisecond,
//! - the sensor's own noise, which stays at standstill.
//!
//! [`SlowSignal`] is a temperature or a pressure: it drifts around a level and follows a changed level with a
//! time constant. Both are functions of their seed and of the calls made, so a run can be repeated.

use std::f64::consts::TAU;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner};
use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock};

/// Samples per second of the simulated accelerometer.
pub const SAMPLE_RATE_HZ: f64 = 20_000.0;

/// Lowest edge of the first third octave of [`MotorProfile::noise`], in Hz.
const NOISE_LOWEST_HZ: f64 = 10.0;
/// Third octaves from 10 Hz to 10 kHz: ten per decade (IEC 61260-1, base ten).
const NOISE_BANDS: usize = 30;
/// Samples of one frame of noise; successive frames overlap by half.
const FRAME_SAMPLES: usize = 8_192;
/// How vibration grows with speed. Measured on the rig of [`MotorProfile::healthy_1800_rpm`]: 2.9, 8.3 and 20.4 mV
/// at 600, 1800 and 3000 rpm.
const SPEED_EXPONENT: f64 = 1.2;

/// Random numbers from a seed (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct SeededRandom {
    state: u64,
}

impl SeededRandom {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        const TWO_TO_53: f64 = 9_007_199_254_740_992.0;
        (self.next_u64() >> 11) as f64 / TWO_TO_53
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }
}

/// Geometry of a ball bearing.
#[derive(Clone, Copy, Debug)]
pub struct BearingGeometry {
    /// Number of balls.
    pub balls: f64,
    /// Diameter of a ball over the diameter of the circle of their centres.
    pub ball_to_pitch: f64,
    /// Contact angle in radians.
    pub contact_angle: f64,
}

impl BearingGeometry {
    /// Balls that pass one point of the outer race per turn of the shaft (BPFO over shaft speed): with a standing
    /// outer race, `n/2 (1 - d/D cos a)`.
    #[must_use]
    pub fn outer_race_passes_per_turn(self) -> f64 {
        self.balls / 2.0 * (1.0 - self.ball_to_pitch * self.contact_angle.cos())
    }
}

/// One resonance of the housing, as a hit on the bearing excites it.
#[derive(Clone, Copy, Debug)]
pub struct Resonance {
    /// Its frequency in Hz.
    pub frequency_hz: f64,
    /// Its damping ratio.
    pub damping: f64,
    /// Peak of its answer to one hit of a fully grown defect, in the sensor's unit.
    pub peak: f64,
}

/// What kind of motor and how it shakes at its nominal speed.
#[derive(Clone, Debug)]
pub struct MotorProfile {
    /// Nominal speed in turns per second.
    pub shaft_hz: f64,
    /// Amplitudes of the harmonics 1x to 4x at nominal speed.
    pub harmonics: [f64; 4],
    /// RMS of the noise in each third octave from 10 Hz to 10 kHz at nominal speed.
    pub noise: [f64; NOISE_BANDS],
    /// RMS of the sensor's own noise, white.
    pub sensor_noise: f64,
    /// The bearing under the sensor.
    pub bearing: BearingGeometry,
    /// What its hits excite.
    pub resonances: [Resonance; 3],
    /// Unit of all levels.
    pub unit: &'static str,
}

impl MotorProfile {
    /// A healthy motor on a test rig at 1800 rpm, in volts of an analogue accelerometer: levels measured on axis Z
    /// of the two healthy recordings at that speed (Analog Devices, Sample Motor Data Limerick, `adi_motor` rows 16
    /// and 17). The resonances stand where the same rig's recordings with a heavily damaged bearing (rows 22 and 23)
    /// ring, and as loud.
    #[must_use]
    pub fn healthy_1800_rpm() -> Self {
        const MICROVOLTS: [f64; NOISE_BANDS] = [
            40.0, 26.0, 39.0, 88.0, 64.0, 74.0, 59.0, 213.0, 81.0, 2272.0, // 10 Hz to 100 Hz
            1982.0, 2471.0, 2996.0, 4261.0, 1464.0, 1029.0, 1113.0, 869.0, 586.0,
            603.0, // to 1 kHz
            747.0, 774.0, 1204.0, 816.0, 677.0, 2011.0, 1488.0, 1549.0, 532.0, 704.0,
        ];
        Self {
            shaft_hz: 30.0,
            harmonics: [0.5e-3, 1.9e-3, 0.6e-3, 2.2e-3],
            noise: MICROVOLTS.map(|microvolts| microvolts * 1e-6),
            sensor_noise: 0.2e-3,
            bearing: BearingGeometry { balls: 8.0, ball_to_pitch: 0.2371, contact_angle: 0.0 },
            resonances: [
                Resonance { frequency_hz: 480.0, damping: 0.05, peak: 0.095 },
                Resonance { frequency_hz: 2_930.0, damping: 0.03, peak: 0.056 },
                Resonance { frequency_hz: 5_500.0, damping: 0.02, peak: 0.082 },
            ],
            unit: "V",
        }
    }
}

/// The vibration of one motor, sample by sample.
pub struct MotorSignal {
    profile: MotorProfile,
    random: SeededRandom,
    noise: ShapedNoise,
    phases: [f64; 4],
    rings: [Ring; 3],
    /// Way to the next hit, in ball passes.
    passes_left: f64,
    severity: f64,
    speed: f64,
}

impl MotorSignal {
    /// A running, healthy motor.
    #[must_use]
    pub fn new(profile: MotorProfile, seed: u64) -> Self {
        let mut random = SeededRandom::new(seed);
        let noise = ShapedNoise::new(&profile.noise, SeededRandom::new(random.next_u64()));
        let phases = std::array::from_fn(|_| TAU * random.uniform());
        let rings = profile.resonances.map(Ring::new);
        Self { profile, random, noise, phases, rings, passes_left: 1.0, severity: 0.0, speed: 1.0 }
    }

    /// Sets how far the defect has grown: 0 is a healthy bearing, 1 a ruined one. Values outside are cut.
    pub fn set_severity(&mut self, severity: f64) {
        self.severity = severity.clamp(0.0, 1.0);
    }

    /// Sets the speed as a fraction of the nominal one; 0 is standstill. Values outside 0 to 1 are cut.
    pub fn set_speed(&mut self, fraction: f64) {
        self.speed = fraction.clamp(0.0, 1.0);
    }

    /// The next `count` samples in the profile's unit, 50 microseconds apart.
    pub fn next_samples(&mut self, count: usize) -> Vec<f32> {
        let level = self.speed.powf(SPEED_EXPONENT);
        let turn = self.profile.shaft_hz * self.speed / SAMPLE_RATE_HZ;
        let passes = turn * self.profile.bearing.outer_race_passes_per_turn();
        (0..count)
            .map(|_| {
                let shaft = self.next_shaft(turn);
                let defect = self.next_defect(passes);
                let noise = self.noise.next_sample();
                let sensor = self.profile.sensor_noise * self.random.normal();
                (level * (shaft + noise + defect) + sensor) as f32
            })
            .collect()
    }

    /// The next `count` samples as a block of `sensor` on `machine`, the first taken at `first_sample`.
    pub fn next_block(
        &mut self,
        machine: &MachineId,
        sensor: &SensorId,
        first_sample: EventTime,
        count: usize,
    ) -> WaveformBlock {
        WaveformBlock {
            machine_id: machine.clone(),
            sensor_id: sensor.clone(),
            first_sample,
            sample_rate_hz: SAMPLE_RATE_HZ,
            unit: Some(Arc::from(self.profile.unit)),
            samples: self.next_samples(count),
        }
    }

    fn next_shaft(&mut self, turn: f64) -> f64 {
        let mut sum = 0.0;
        for (order, (phase, amplitude)) in
            self.phases.iter_mut().zip(self.profile.harmonics).enumerate()
        {
            *phase = (*phase + TAU * turn * (order + 1) as f64) % TAU;
            sum += amplitude * phase.sin();
        }
        sum
    }

    /// The hits come with the passing balls, give or take one percent of slip, and are not equally hard.
    fn next_defect(&mut self, passes: f64) -> f64 {
        self.passes_left -= passes;
        let mut hit = 0.0;
        if self.passes_left <= 0.0 {
            self.passes_left += 1.0 + 0.01 * self.random.normal();
            hit = self.severity.powi(2) * (1.0 + 0.15 * self.random.normal());
        }
        self.rings.iter_mut().map(|ring| ring.next_sample(hit)).sum()
    }
}

/// A damped resonance as a recursive filter of second order.
struct Ring {
    feedback: [f64; 2],
    gain: f64,
    past: [f64; 2],
}

impl Ring {
    fn new(resonance: Resonance) -> Self {
        let angle = TAU * resonance.frequency_hz / SAMPLE_RATE_HZ;
        let radius = (-resonance.damping * angle).exp();
        Self {
            feedback: [2.0 * radius * angle.cos(), -radius * radius],
            gain: resonance.peak * angle.sin(),
            past: [0.0; 2],
        }
    }

    fn next_sample(&mut self, hit: f64) -> f64 {
        let now =
            self.feedback[0] * self.past[0] + self.feedback[1] * self.past[1] + self.gain * hit;
        self.past = [now, self.past[0]];
        now
    }
}

/// Noise with a given RMS per third octave: frames of random spectra, laid over each other by half under a sine
/// window, whose squares add up to one.
struct ShapedNoise {
    random: SeededRandom,
    inverse: Arc<dyn ComplexToReal<f64>>,
    /// Standard deviation of each bin's real and imaginary part.
    bin_deviations: Vec<f64>,
    window: Vec<f64>,
    overlap: Vec<f64>,
    ready: Vec<f64>,
    position: usize,
}

impl ShapedNoise {
    fn new(levels: &[f64; NOISE_BANDS], random: SeededRandom) -> Self {
        let window = (0..FRAME_SAMPLES)
            .map(|index| (TAU / 2.0 * (index as f64 + 0.5) / FRAME_SAMPLES as f64).sin())
            .collect();
        let mut noise = Self {
            random,
            inverse: RealFftPlanner::new().plan_fft_inverse(FRAME_SAMPLES),
            bin_deviations: bin_deviations(levels),
            window,
            overlap: vec![0.0; FRAME_SAMPLES / 2],
            ready: Vec::new(),
            position: 0,
        };
        // The first half frame has nothing to overlap with: it is made and not used.
        noise.make_half_frame();
        noise.make_half_frame();
        noise
    }

    fn next_sample(&mut self) -> f64 {
        if self.position == self.ready.len() {
            self.make_half_frame();
        }
        self.position += 1;
        self.ready[self.position - 1]
    }

    fn make_half_frame(&mut self) {
        let mut spectrum = vec![Complex::default(); FRAME_SAMPLES / 2 + 1];
        for (bin, deviation) in spectrum.iter_mut().zip(&self.bin_deviations) {
            *bin = Complex::new(deviation * self.random.normal(), deviation * self.random.normal());
        }
        let mut frame = vec![0.0; FRAME_SAMPLES];
        self.inverse
            .process(&mut spectrum, &mut frame)
            .expect("lengths match the plan, and the first and last bin are zero");
        for (sample, window) in frame.iter_mut().zip(&self.window) {
            *sample *= window;
        }
        let (rising, falling) = frame.split_at(FRAME_SAMPLES / 2);
        self.ready = rising.iter().zip(&self.overlap).map(|(new, old)| new + old).collect();
        self.overlap = falling.to_vec();
        self.position = 0;
    }
}

/// Spreads the power of each third octave over its bins. A bin of real and imaginary deviation `s` gives, by the
/// inverse transform without scaling, a cosine of mean power `4 s^2`.
fn bin_deviations(levels: &[f64; NOISE_BANDS]) -> Vec<f64> {
    let bin_hz = SAMPLE_RATE_HZ / FRAME_SAMPLES as f64;
    let band_of = |bin: usize| -> Option<usize> {
        let octave = ((bin as f64 * bin_hz / NOISE_LOWEST_HZ).log10() * 10.0).floor();
        (octave >= 0.0 && (octave as usize) < NOISE_BANDS).then_some(octave as usize)
    };
    let inner_bins = 1..FRAME_SAMPLES / 2;
    let mut bins_in_band = [0_u32; NOISE_BANDS];
    for band in inner_bins.clone().filter_map(band_of) {
        bins_in_band[band] += 1;
    }
    let mut deviations = vec![0.0; FRAME_SAMPLES / 2 + 1];
    for bin in inner_bins {
        if let Some(band) = band_of(bin) {
            deviations[bin] = levels[band] / (4.0 * f64::from(bins_in_band[band])).sqrt();
        }
    }
    deviations
}

/// A temperature or a pressure: drifts around a level, follows a changed level with a time constant.
#[derive(Clone, Debug)]
pub struct SlowSignal {
    random: SeededRandom,
    level: f64,
    followed: f64,
    time_constant_seconds: f64,
    drift: f64,
    drift_deviation: f64,
    noise_deviation: f64,
}

/// Over how many seconds the drift of a [`SlowSignal`] forgets where it was.
const DRIFT_SECONDS: f64 = 30.0;

impl SlowSignal {
    /// Starts at `level`; `drift_deviation` is how far it wanders, `noise_deviation` what the sensor adds.
    #[must_use]
    pub const fn new(
        level: f64,
        time_constant_seconds: f64,
        drift_deviation: f64,
        noise_deviation: f64,
        seed: u64,
    ) -> Self {
        Self {
            random: SeededRandom::new(seed),
            level,
            followed: level,
            time_constant_seconds,
            drift: 0.0,
            drift_deviation,
            noise_deviation,
        }
    }

    /// The level to move to.
    pub const fn set_level(&mut self, level: f64) {
        self.level = level;
    }

    /// The value after another `seconds`.
    pub fn next_value(&mut self, seconds: f64) -> f64 {
        let follow = 1.0 - (-seconds / self.time_constant_seconds).exp();
        self.followed += follow * (self.level - self.followed);
        let kept = (-seconds / DRIFT_SECONDS).exp();
        let fresh = (1.0 - kept * kept).sqrt();
        self.drift = kept * self.drift + fresh * self.drift_deviation * self.random.normal();
        self.followed + self.drift + self.noise_deviation * self.random.normal()
    }
}

#[cfg(test)]
mod tests;
