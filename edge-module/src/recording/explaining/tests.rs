//! Which window a trip is explained with. Each has a level of its own, so that its spectrum tells it from all others.

use std::f32::consts::TAU;

use edge_core::features::FeatureExtractor;
use edge_core::vibration::Window;

use super::*;
use crate::calibration::Baselines;
use crate::scoring::{Bundle, Models};

const SAMPLES: u16 = 2048;
const RATE_HZ: f64 = 20_000.0;
const SENSOR: &str = "m/z";
const OTHER: &str = "m/x";
const HEALTHY: f64 = 0.1;

struct Bench {
    explaining: Explaining,
    calibration: Calibration,
    analysis: Analysis,
    extractor: FeatureExtractor,
    /// Of the next window.
    level: f32,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles/motor-v1");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("settings.toml");
        let text = format!(
            "[device]\ndata-dir = \"{}\"\n[model]\nbundle-dir = \"{}\"\n\
             [[machines]]\nid = \"m\"\nscored-sensors = [\"{SENSOR}\", \"{OTHER}\"]\n",
            folder.path().display(),
            bundle.display()
        );
        std::fs::write(&file, text).expect("written");
        let settings = Settings::load(Some(file.as_path())).expect("valid");
        let bundle = Bundle::load(&bundle).expect("a committed bundle");
        let models = Models::from([("default".to_owned(), bundle)]);
        let edges = [100.0, 1_000.0, 5_000.0];
        let extractor = FeatureExtractor::new(usize::from(SAMPLES), RATE_HZ, &edges);
        Self {
            explaining: Explaining::new(&settings),
            calibration: Calibration::new(&settings, &Baselines::new()),
            analysis: Analysis::new(&settings, &models),
            extractor: extractor.expect("bands within the rate"),
            level: 1.0,
            _folder: folder,
        }
    }

    /// A window of a sensor passes; gives its spectrum.
    fn see_of(&mut self, sensor: &str, score: f64) -> ReducedSpectrum {
        let turns = |place| 64.0 * f32::from(place) / f32::from(SAMPLES);
        let level = self.level;
        self.level *= 1.1;
        let window = Window {
            first_sample: EventTime::from_micros(0),
            sample_rate_hz: RATE_HZ,
            samples: (0..SAMPLES).map(|place| level * (TAU * turns(place)).sin()).collect(),
        };
        self.extractor.extract(&window.samples).expect("finite");
        let score = Some(WindowScore { logit: 0.0, score, threshold: 0.5 });
        let judged = Judged { window: &window, extractor: &self.extractor, score };
        let condition = self.calibration.current(&machine(), Instant::now());
        self.explaining.handle_window(&id(sensor), &judged, condition);
        let resolution_hz = RATE_HZ / f64::from(SAMPLES);
        ReducedSpectrum::of(resolution_hz, self.extractor.power_spectrum())
    }

    fn see(&mut self, score: f64) -> ReducedSpectrum {
        self.see_of(SENSOR, score)
    }

    /// The stop path tells that the window of this score has tripped the machine.
    fn trip(&mut self, score: f64) {
        let cause = TripCause::Score { sensor: id(SENSOR), score, threshold: 0.5, votes: 3 };
        let (trip_id, time) = ("t".to_owned(), EventTime::from_micros(0));
        self.explaining.handle_trip(machine(), trip_id, cause, time, &self.calibration);
    }

    fn explain(&mut self) -> Option<Explanation> {
        let trip = self.explaining.waiting.pop_front()?;
        self.explaining.explain(&trip, &mut self.analysis)
    }

    fn check_explained_with(&mut self, score: f64, spectrum: &ReducedSpectrum) {
        let explanation = self.explain().expect("its windows were seen");
        assert_eq!(explanation.score, score);
        assert!(explanation.spectrum == *spectrum, "of another window");
    }
}

fn machine() -> MachineId {
    MachineId::new("m").expect("valid")
}

fn id(sensor: &str) -> SensorId {
    SensorId::new(sensor).expect("valid")
}

/// The stop path told of the trip when this path had taken the whole block already.
#[test]
fn a_trip_is_explained_with_the_window_that_decided_though_later_ones_were_seen_before_it_was_told()
{
    let mut bench = Bench::new();
    bench.see(0.7);
    bench.see(0.8);
    let decided = bench.see(0.9);
    bench.see(0.95);
    bench.see(0.99);
    bench.trip(0.9);
    bench.see(0.98);
    bench.see(HEALTHY);
    bench.check_explained_with(0.9, &decided);
}

#[test]
fn the_window_that_decided_is_waited_for() {
    let mut bench = Bench::new();
    bench.see(0.8);
    bench.trip(0.9);
    bench.see(0.85);
    let decided = bench.see(0.9);
    bench.see(0.99);
    bench.check_explained_with(0.9, &decided);
}

#[test]
fn equal_scores_are_no_reason_to_take_a_later_window() {
    let mut bench = Bench::new();
    bench.see_of(OTHER, 1.0);
    let decided = bench.see(1.0);
    bench.trip(1.0);
    bench.see(1.0);
    bench.check_explained_with(1.0, &decided);
}

#[test]
fn the_last_abnormal_window_before_stands_for_one_that_was_not_judged_here() {
    let mut bench = Bench::new();
    bench.see(0.7);
    let last = bench.see(0.8);
    bench.see(HEALTHY);
    bench.see_of(OTHER, 0.9);
    bench.trip(0.9);
    bench.see(0.99);
    bench.check_explained_with(0.8, &last);

    let mut bench = Bench::new();
    bench.see_of(OTHER, 0.9);
    bench.trip(0.9);
    let first = bench.see(0.95);
    bench.see(0.99);
    bench.check_explained_with(0.95, &first);

    bench.explaining.known.clear();
    bench.trip(0.9);
    assert_eq!(bench.explain(), None);
}

/// A second after the trip the machine stands, and its windows are those of noise.
#[test]
fn what_was_usual_is_that_of_the_moment_of_the_trip() {
    let mut bench = Bench::new();
    let usual = bench.see(HEALTHY);
    for score in [0.7, 0.8, 0.9] {
        bench.see(score);
    }
    bench.trip(0.9);
    for _ in 0..5 {
        bench.see(0.0);
    }
    let explanation = bench.explain().expect("its windows were seen");
    let expected = UsualSpectrum { windows: 1, spectrum: usual };
    assert!(explanation.usual == Some(expected), "it has changed since");
}

#[test]
fn few_abnormal_windows_are_kept() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.see(0.6);
    }
    let last = bench.see(0.7);
    let known = &bench.explaining.known[&id(SENSOR)];
    assert_eq!(known.abnormal.len(), ABNORMAL_MAX);
    assert!(known.abnormal.back().is_some_and(|it| it.spectrum == last));
}
