//! Which model scores which window, also while one takes the place of another. The models are sums, so that expected scores are seen.

use std::io::Write as _;

use edge_core::features::Features;
use shared_proto::model::{EventTime, MachineId};

use super::*;
use crate::scoring::ScoreError;

/// Answers with a constant.
struct Constant(f64);

impl Scorer for Constant {
    fn logit(&mut self, _: &Features) -> Result<f64, ScoreError> {
        Ok(self.0)
    }
}

fn bundle(name: &str) -> Bundle {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles").join(name);
    Bundle::load(&folder).expect("a committed bundle")
}

fn settings(scored: &str) -> Settings {
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    let text = format!(
        "[model]\nbundle-dir = \"a\"\nbundles = {{ line = \"b\" }}\n[[machines]]\nid = \"m\"\nscored-sensors = {scored}\n"
    );
    file.write_all(text.as_bytes()).expect("written");
    Settings::load(Some(file.path())).expect("valid")
}

struct Bench {
    analysis: Analysis,
    samples: i64,
    /// Rest level of the sensor, in its unit.
    rest: f32,
}

impl Bench {
    fn new(scored: &str) -> Self {
        let analysis = Analysis::new(&settings(scored), &Models::new());
        Self { analysis, samples: 0, rest: 0.0 }
    }

    fn set(&mut self, name: &str, of: &str, logit: f64) {
        self.analysis.set_model(name, bundle(of), Box::new(Constant(logit)));
    }

    /// A block of 2048 samples at 20 kHz; gives each window's length and logit.
    fn block(&mut self, sensor: &str) -> Vec<(usize, Option<f64>)> {
        self.judged(sensor, None)
            .into_iter()
            .map(|(samples, score)| (samples, score.map(|score| score.logit)))
            .collect()
    }

    fn judged(
        &mut self,
        sensor: &str,
        learnt: Option<Learnt<'_>>,
    ) -> Vec<(usize, Option<WindowScore>)> {
        let block = WaveformBlock {
            machine_id: MachineId::new("m").expect("valid"),
            sensor_id: SensorId::new(sensor).expect("valid"),
            first_sample: EventTime::from_micros(self.samples * 50),
            sample_rate_hz: 20_000.0,
            unit: None,
            samples: (0..2048_u16).map(|place| f32::from(place % 2) + self.rest).collect(),
        };
        self.samples += 2048;
        let mut windows = Vec::new();
        self.analysis
            .handle_block(&block, learnt, |judged| {
                windows.push((judged.window.samples.len(), judged.score));
            })
            .expect("within the limits");
        windows
    }
}

#[test]
fn each_sensor_is_scored_by_its_own_model() {
    let mut bench = Bench::new(r#"["m/a", { sensor = "m/x", model = "line" }]"#);
    bench.set("default", "motor-v1", 1.0);
    bench.set("line", "motor-line-v1", 2.0);
    let (mut of_a, mut of_x) = (Vec::new(), Vec::new());
    for _ in 0..16 {
        of_a.extend(bench.block("m/a"));
        bench.samples -= 2048;
        of_x.extend(bench.block("m/x"));
    }
    assert_eq!(of_a.last(), Some(&(2048, Some(1.0))));
    assert_eq!(of_x, [(32_768, Some(2.0))]);
    let identity = |sensor: &str| {
        let sensor = SensorId::new(sensor).expect("valid");
        bench.analysis.bundle_of(&sensor).map(|bundle| bundle.metadata().name.clone())
    };
    assert_eq!(identity("m/a").as_deref(), Some("motor"));
    assert_eq!(identity("m/x").as_deref(), Some("motor-line"));
    assert_eq!(identity("m/other"), None);
}

#[test]
fn a_model_with_longer_windows_takes_over_when_its_first_window_is_whole() {
    let mut bench = Bench::new(r#"["m/a"]"#);
    bench.set("default", "motor-v1", 1.0);
    let before: usize = (0..4).map(|_| bench.block("m/a").len()).sum();
    bench.set("default", "motor-shape-v2", 2.0);
    let mut windows = Vec::new();
    for _ in 0..20 {
        let of_block = bench.block("m/a");
        assert!(!of_block.is_empty(), "a block without a window is a gap: {windows:?}");
        windows.extend(of_block);
    }
    assert!(before >= 4, "{before}");
    let first_new = windows.iter().position(|window| window.0 == 32_768).expect("it took over");
    assert!(windows[..first_new].iter().all(|window| *window == (2048, Some(1.0))));
    assert!(windows[first_new..].iter().all(|window| *window == (32_768, Some(2.0))));
    assert_eq!(bench.analysis.models.iter().flatten().count(), 1, "nobody needs the one before");
}

#[test]
fn a_model_with_windows_of_the_same_shape_takes_over_with_the_next_window() {
    let mut bench = Bench::new(r#"["m/a"]"#);
    bench.set("default", "motor-v1", 1.0);
    let last = bench.block("m/a").pop();
    bench.set("default", "motor-v1", 2.0);
    let next = bench.block("m/a").pop();
    assert_eq!((last, next), (Some((2048, Some(1.0))), Some((2048, Some(2.0)))));
    assert_eq!(bench.analysis.models.len(), 2);
    bench.set("default", "motor-v1", 3.0);
    assert_eq!(bench.block("m/a").pop(), Some((2048, Some(3.0))));
    assert_eq!(bench.analysis.models.len(), 2, "places are used again");
}

#[test]
fn a_machine_that_names_another_model_gets_it() {
    let mut bench = Bench::new(r#"["m/a"]"#);
    bench.set("default", "motor-v1", 1.0);
    bench.set("line", "motor-line-v1", 2.0);
    let _windows = bench.block("m/a");
    let sensor = SensorId::new("m/a").expect("valid");
    let by = ScoredBy { model: "line".to_owned(), threshold: Some(0.875) };
    bench.analysis.set_scored([(sensor, by)].into());
    let windows: Vec<_> = (0..16).flat_map(|_| bench.block("m/a")).collect();
    assert_eq!(windows, [(32_768, Some(2.0))]);
}

#[test]
fn a_window_with_a_step_of_the_rest_level_is_not_scored_by_a_model_that_looks_for_lines() {
    let mut bench = Bench::new(r#"[{ sensor = "m/x", model = "line" }]"#);
    bench.set("line", "motor-line-v1", 2.0);
    let mut scored = |rest: f32, blocks: u32| -> Vec<bool> {
        bench.rest = rest;
        let windows = (0..blocks).flat_map(|_| bench.block("m/x"));
        windows.map(|(_, logit)| logit.is_some()).collect()
    };
    assert_eq!(scored(0.0, 18), [true; 3]);
    // A block of 2,048 samples is an eighth of a half: the means differ by an eighth of the step and more.
    let stepped = scored(0.016, 15);
    assert_eq!(stepped, [false; 15], "as long as the step is in the window");
    assert_eq!(scored(0.016, 2), [true; 2], "the level rests again");
    let mut shape = Bench::new(r#"["m/z"]"#);
    shape.set("default", "motor-shape-v2", 1.0);
    for _ in 0..16 {
        shape.block("m/z");
    }
    shape.rest = 0.016;
    assert_eq!(shape.block("m/z"), [(32_768, Some(1.0))], "a model of shapes does not mind");
}

#[test]
fn what_was_learnt_moves_the_score_and_only_with_the_same_model() {
    let mut bench = Bench::new(r#"["m/a"]"#);
    bench.set("default", "motor-v1", 1.0);
    let of = bundle("motor-v1");
    let hash = of.metadata().model_sha256.clone();
    let score = |bench: &mut Bench, model_sha256: &str, threshold_logit: f64| {
        let learnt = Learnt { model_sha256, threshold_logit };
        let windows = bench.judged("m/a", Some(learnt));
        windows.last().and_then(|window| window.1).expect("scored")
    };
    let plain = bench.judged("m/a", None).pop().and_then(|window| window.1).expect("scored");
    let threshold = of.threshold().value();
    assert_eq!(plain.threshold, threshold);
    assert_eq!(plain.logit, 1.0);
    // At the learnt threshold the score is the bundle's own; whatever that is.
    let at = score(&mut bench, &hash, 1.0);
    assert!((at.score - threshold).abs() < 1e-12, "{at:?}");
    let above = score(&mut bench, &hash, 0.5);
    assert!(above.is_abnormal() && above.score > at.score, "{above:?}");
    let below = score(&mut bench, &hash, 1.5);
    assert!(!below.is_abnormal(), "{below:?}");
    assert_eq!(score(&mut bench, "another", 0.5), plain);
}
