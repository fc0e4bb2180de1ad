use edge_core::baseline::Spread;
use edge_core::operation::OperatingRange;
use shared_proto::model::EventTime;

use super::*;

fn id<T, E: std::fmt::Debug>(made: Result<T, E>) -> T {
    made.expect("a valid name")
}

fn machine() -> MachineId {
    id(MachineId::new("press-1"))
}

fn sensor(name: &str) -> SensorId {
    id(SensorId::new(name))
}

fn slow_and_fast(split: f64) -> MachineConditions {
    let range = |min, max| OperatingRange { sensor: sensor("press-1/speed"), min, max };
    let condition =
        |name: &str, range| OperatingCondition { name: name.to_owned(), ranges: vec![range] };
    MachineConditions {
        conditions: vec![
            condition("slow", range(0.0, split)),
            condition("fast", range(split, 9_000.0)),
        ],
        stale_after: Duration::from_secs(60),
        scored: vec![(sensor("press-1/x"), "default".to_owned())],
    }
}

fn kept(conditions: &MachineConditions, thresholds: &[(&str, f64)]) -> Arc<KeptBaseline> {
    let spread = Spread { mean: -3.0, deviation: 0.5, min: -4.0, max: -2.0 };
    let of = |threshold_logit| SensorBaseline {
        model: "motor@1".to_owned(),
        model_sha256: "0".repeat(64),
        windows: 100,
        running_seconds: 60.0,
        features: BTreeMap::from([("rms".to_owned(), spread)]),
        logit: spread,
        logit_deciles: [-3.0; 9],
        threshold_logit,
    };
    let learnt = thresholds.iter().map(|(name, threshold)| {
        ((*name).to_owned(), BTreeMap::from([(sensor("press-1/x"), of(*threshold))]))
    });
    let baseline = Baseline {
        format: edge_core::baseline::BASELINE_FORMAT,
        machine_id: machine(),
        learnt_at: id(EventTime::parse("2026-03-01T08:15:30Z").ok_or("time")),
        operator: "J. Doe".to_owned(),
        conditions: learnt.collect(),
        not_learnt: BTreeMap::new(),
    };
    Arc::new(KeptBaseline { conditions: conditions.version(), baseline })
}

/// Metadata of a committed bundle, as of the model that was learnt.
fn metadata(name: &str) -> BundleMetadata {
    let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles");
    let text = fs::read(bundles.join(name).join("bundle.json")).expect("committed");
    let mut metadata = BundleMetadata::parse(&text).expect("valid");
    metadata.model_sha256 = "0".repeat(64);
    metadata
}

fn threshold_of(name: &str, calibration: &Calibration, now: Instant) -> Option<f64> {
    let learnt = calibration.learnt(&machine(), &sensor("press-1/x"), &metadata(name), now);
    learnt.map(|learnt| learnt.threshold_logit)
}

fn threshold(calibration: &Calibration, now: Instant) -> Option<f64> {
    threshold_of("motor-shape-v2", calibration, now)
}

#[test]
fn the_threshold_is_that_of_the_condition_the_machine_runs_in() {
    let conditions = slow_and_fast(1_000.0);
    let mut calibration = Calibration::default();
    let changed = calibration.replace([(machine(), conditions.clone())].into());
    assert_eq!(changed, [machine()]);
    calibration.set_baseline(kept(&conditions, &[("slow", 1.0), ("fast", 2.0)]));
    let start = Instant::now();
    assert_eq!(threshold(&calibration, start), None, "the speed is not known yet");
    let speed = sensor("press-1/speed");
    calibration.handle_reading(&speed, 600.0, start);
    assert_eq!(threshold(&calibration, start), Some(1.0));
    calibration.handle_reading(&speed, 1_000.0, start);
    assert_eq!(threshold(&calibration, start), Some(2.0));
    assert_eq!(threshold(&calibration, start + Duration::from_secs(61)), None, "too old");
    let shape = metadata("motor-shape-v2");
    let other = calibration.learnt(&machine(), &sensor("press-1/z"), &shape, start);
    assert_eq!(other, None, "nothing was learnt of that sensor");
    let another = BundleMetadata { model_sha256: "1".repeat(64), ..shape };
    let other = calibration.learnt(&machine(), &sensor("press-1/x"), &another, start);
    assert_eq!(other, None, "nothing was learnt with that model");
}

#[test]
fn a_machine_that_is_followed_tells_since_when_its_condition_holds() {
    let conditions = slow_and_fast(1_000.0);
    let mut calibration = Calibration::default();
    calibration.replace([(machine(), conditions.clone())].into());
    let (speed, start) = (sensor("press-1/speed"), Instant::now());
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    calibration.handle_reading(&speed, 600.0, at(0));
    assert_eq!(calibration.holding(&machine(), at(0)), None, "nobody follows");
    calibration.follow(&machine(), at(1));
    calibration.handle_reading(&speed, 1_200.0, at(2));
    calibration.handle_reading(&speed, 1_300.0, at(3));
    let expected = Some(Holding { name: "fast", since: at(2), heard: at(3) });
    assert_eq!(calibration.holding(&machine(), at(3)), expected);
    calibration.replace([(machine(), conditions)].into());
    assert_eq!(calibration.holding(&machine(), at(3)), expected, "the same settings");
    calibration.unfollow(&machine());
    assert_eq!(calibration.holding(&machine(), at(3)), None);
}

#[test]
fn in_an_unknown_condition_a_model_of_a_level_keeps_to_the_machines_own_scale() {
    let conditions = slow_and_fast(1_000.0);
    let mut calibration = Calibration::default();
    calibration.replace([(machine(), conditions.clone())].into());
    let now = Instant::now();
    assert_eq!(threshold_of("motor-line-v1", &calibration, now), None, "nothing was learnt");
    calibration.set_baseline(kept(&conditions, &[("slow", 1.0), ("fast", 2.0)]));
    assert_eq!(threshold_of("motor-line-v1", &calibration, now), Some(2.0));
    assert_eq!(threshold_of("motor-shape-v2", &calibration, now), None);
    calibration.handle_reading(&sensor("press-1/speed"), 600.0, now);
    assert_eq!(threshold_of("motor-line-v1", &calibration, now), Some(1.0));
    calibration.set_baseline(kept(&conditions, &[("slow", 1.0)]));
    calibration.handle_reading(&sensor("press-1/speed"), 1_200.0, now);
    assert_eq!(threshold_of("motor-line-v1", &calibration, now), Some(1.0), "not learnt so fast");
    assert_eq!(threshold_of("motor-shape-v2", &calibration, now), None);
}

#[test]
fn what_was_learnt_in_other_ranges_is_not_used_until_they_are_back() {
    let (conditions, other) = (slow_and_fast(1_000.0), slow_and_fast(1_500.0));
    let mut calibration = Calibration::default();
    calibration.replace([(machine(), conditions.clone())].into());
    calibration.set_baseline(kept(&conditions, &[("slow", 1.0)]));
    let now = Instant::now();
    let read = |calibration: &mut Calibration| {
        calibration.handle_reading(&sensor("press-1/speed"), 600.0, now);
        threshold(calibration, now)
    };
    assert_eq!(read(&mut calibration), Some(1.0));
    assert_eq!(calibration.replace([(machine(), conditions.clone())].into()), []);
    assert_eq!(threshold(&calibration, now), Some(1.0), "the same settings change nothing");
    assert_eq!(calibration.replace([(machine(), other)].into()), [machine()]);
    assert_eq!(read(&mut calibration), None);
    assert!(calibration.baseline(&machine()).is_none());
    calibration.replace([(machine(), conditions)].into());
    assert_eq!(read(&mut calibration), Some(1.0));
    assert_eq!(calibration.replace(BTreeMap::new()), [machine()], "it is gone");
}

#[test]
fn a_baseline_is_read_as_it_was_written_and_a_damaged_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let baselines = BaselineFolder::at(folder.path());
    assert_eq!(baselines.read(&machine()), Ok(None));
    let kept = kept(&slow_and_fast(1_000.0), &[("slow", 1.0)]);
    baselines.write(&kept).expect("written");
    assert_eq!(baselines.read(&machine()), Ok(Some((*kept).clone())));
    assert_eq!(baselines.read_all(&[machine()]).len(), 1);
    let check = |change: (&str, &str), expected: &str| {
        let text = serde_json::to_string(&*kept).expect("serialises");
        assert!(text.contains(change.0), "{text}");
        fs::write(baselines.path(&machine()), text.replace(change.0, change.1)).expect("written");
        let fault = baselines.read(&machine()).expect_err(expected);
        assert!(fault.contains(expected), "{fault}");
        assert!(baselines.read_all(&[machine()]).is_empty());
    };
    check(("\"threshold-logit\":1.0", "\"threshold-logit\":-9.0"), "above the highest logit");
    check(("\"threshold-logit\":1.0", "\"threshold-logit\":1e300"), "at most 50 above");
    check(("press-1\",\"learnt-at", "press-2\",\"learnt-at"), "is of machine press-2");
    check(("\"format\":1", "\"format\":9"), "format is 9");
    check(("{\"conditions\"", "{\"x\":1,\"conditions\""), "unknown field");
    check(("\"operator\":\"J. Doe\"", "\"operator\":"), "expected value");
}
