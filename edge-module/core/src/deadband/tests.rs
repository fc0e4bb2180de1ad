use proptest::prelude::*;

use super::*;

const THRESHOLD: f64 = 100.0;
const SECOND: i64 = 1_000_000;

fn settings(absolute: f64, percent: f64) -> DeadbandSettings {
    DeadbandSettings {
        absolute,
        percent,
        heartbeat: Duration::from_secs(60),
        always_above: BTreeMap::from([(metric("temperature"), THRESHOLD)]),
        sensors_max: 4,
        rules: Vec::new(),
    }
}

fn metric(name: &str) -> MetricType {
    MetricType::new(name).expect(name)
}

fn reading(on: &str, at_seconds: i64, metric_type: &str, value: f64) -> Reading {
    let sensor = SensorId::new(on).expect(on);
    Reading::new(sensor, EventTime::from_micros(at_seconds * SECOND), metric(metric_type), value)
}

/// Feeds temperatures of one sensor, one a second, and compares each verdict.
fn check(absolute: f64, percent: f64, steps: &[(f64, Verdict)]) {
    let mut deadband = Deadband::new(settings(absolute, percent)).expect("valid settings");
    for (second, (value, expected)) in steps.iter().enumerate() {
        let at = i64::try_from(second).expect("few");
        let verdict = deadband.handle(&reading("s", at, "temperature", *value));
        assert_eq!(verdict, *expected, "step {second}: {value}");
    }
}

#[test]
fn change_is_measured_from_the_last_value_sent() {
    let (first, changed) = (Verdict::Send(Reason::First), Verdict::Send(Reason::Changed));
    let absolute = [
        (20.0, first),
        (20.5, Verdict::Filter),
        (21.0, Verdict::Filter),
        (21.25, changed),
        (20.25, Verdict::Filter),
        (20.0, changed),
    ];
    check(1.0, 0.0, &absolute);
    check(0.0, 5.0, &absolute);
    check(0.5, 5.0, &absolute);
}

#[test]
fn zero_widths_send_everything() {
    let sent = Verdict::Send(Reason::Unfiltered);
    check(0.0, 0.0, &[(20.0, sent), (20.0, sent)]);
}

#[test]
fn values_above_the_threshold_and_the_first_after_are_sent() {
    let above = Verdict::Send(Reason::AboveThreshold);
    let back = Verdict::Send(Reason::BackBelowThreshold);
    let steps = [
        (99.5, Verdict::Send(Reason::First)),
        (100.0, Verdict::Filter),
        (100.1, above),
        (100.1, above),
        (100.0, back),
        (100.0, Verdict::Filter),
        (f64::MAX, above),
        (99.9, back),
    ];
    check(50.0, 0.0, &steps);
}

#[test]
fn something_is_sent_at_each_heartbeat_of_event_time() {
    let mut deadband = Deadband::new(settings(1.0, 0.0)).expect("valid settings");
    let mut at = |second| deadband.handle(&reading("s", second, "pressure", 5.0));
    assert_eq!(at(0), Verdict::Send(Reason::First));
    assert_eq!(at(59), Verdict::Filter);
    assert_eq!(at(60), Verdict::Send(Reason::Heartbeat));
    assert_eq!(at(61), Verdict::Filter);
    assert_eq!(at(-3600), Verdict::Send(Reason::TimeWentBack));
    assert_eq!(at(-3599), Verdict::Filter, "the heartbeat follows a clock that was set back");
}

#[test]
fn quality_that_changes_is_news() {
    let mut deadband = Deadband::new(settings(1.0, 0.0)).expect("valid settings");
    let mut bad = reading("s", 1, "pressure", 5.0);
    bad.quality = Some(Quality::Bad);
    assert_eq!(deadband.handle(&reading("s", 0, "pressure", 5.0)), Verdict::Send(Reason::First));
    assert_eq!(deadband.handle(&bad), Verdict::Send(Reason::QualityChanged));
    bad.timestamp = EventTime::from_micros(2 * SECOND);
    assert_eq!(deadband.handle(&bad), Verdict::Filter);
}

#[test]
fn sensors_beyond_the_limit_pass_and_are_counted() {
    let mut deadband = Deadband::new(settings(1.0, 0.0)).expect("valid settings");
    let mut verdicts = Vec::new();
    for second in 0..2 {
        for on in ["a", "b"] {
            for metric in ["temperature", "pressure"] {
                verdicts.push(deadband.handle(&reading(on, second, metric, 5.0)));
            }
        }
        verdicts.push(deadband.handle(&reading("c", second, "pressure", 5.0)));
    }
    assert_eq!(verdicts[4], Verdict::Send(Reason::NotRemembered));
    assert_eq!(verdicts[5..9], [Verdict::Filter; 4]);
    assert_eq!(verdicts[9], Verdict::Send(Reason::NotRemembered));
    let expected = DeadbandCounts { sent: 6, filtered: 4, not_remembered: 2 };
    assert_eq!(deadband.counts(), expected);
}

#[test]
fn the_first_rule_that_matches_a_sensor_or_metric_holds() {
    let rule = |prefix: &str, metric_type: Option<&str>, absolute| DeadbandRule {
        sensor_prefix: prefix.to_owned(),
        metric_type: metric_type.map(metric),
        absolute,
        percent: 0.0,
        heartbeat: Duration::from_secs(10),
    };
    let mut settings = settings(1.0, 0.0);
    settings.rules = vec![
        rule("press-1/", Some("pressure"), 5.0),
        rule("press-1/", None, 0.0),
        rule("", Some("pressure"), 3.0),
    ];
    let mut deadband = Deadband::new(settings).expect("valid settings");
    let mut second = |on: &str, metric: &str, change: f64| {
        let first = deadband.handle(&reading(on, 0, metric, 0.0));
        (first, deadband.handle(&reading(on, 1, metric, change)))
    };
    let first = Verdict::Send(Reason::First);
    let changed = Verdict::Send(Reason::Changed);
    let unfiltered = Verdict::Send(Reason::Unfiltered);
    assert_eq!(second("press-1/line", "pressure", 5.0), (first, Verdict::Filter));
    assert_eq!(second("press-1/oil", "temperature", 0.0), (unfiltered, unfiltered));
    assert_eq!(second("press-2/line", "pressure", 3.5), (first, changed));
    assert_eq!(second("press-2/oil", "temperature", 1.0), (first, Verdict::Filter));
    let after_ten = deadband.handle(&reading("press-1/line", 10, "pressure", 0.0));
    assert_eq!(after_ten, Verdict::Send(Reason::Heartbeat), "the rule's own heartbeat");
}

#[test]
fn settings_report_all_faults_at_once() {
    let mut bad = settings(-1.0, f64::NAN);
    bad.heartbeat = Duration::ZERO;
    bad.always_above.insert(metric("pressure"), f64::INFINITY);
    bad.rules = vec![DeadbandRule {
        sensor_prefix: String::new(),
        metric_type: None,
        absolute: f64::NAN,
        percent: 0.0,
        heartbeat: Duration::ZERO,
    }];
    assert_eq!(bad.validate().expect_err("six faults").len(), 6);
}

proptest! {
    #[test]
    fn filtering_never_changes_the_count_above_the_threshold(
        steps in prop::collection::vec(
            (0_usize..6, -5_i64..90, prop_oneof![90.0..110.0, Just(THRESHOLD), -1e3..1e3]),
            1..300,
        ),
        absolute in prop_oneof![Just(0.0), 0.0..30.0],
        percent in prop_oneof![Just(0.0), 0.0..50.0],
    ) {
        let mut deadband = Deadband::new(settings(absolute, percent)).expect("valid settings");
        let mut now = 0;
        let (mut all, mut sent) = (Vec::new(), Vec::new());
        for (on, step, value) in steps {
            now += step;
            let reading = reading(&format!("s{on}"), now, "temperature", value);
            if let Verdict::Send(_) = deadband.handle(&reading) {
                sent.push(reading.clone());
            }
            all.push(reading);
        }
        let above = |readings: &[Reading]| -> Vec<Reading> {
            readings.iter().filter(|reading| reading.value > THRESHOLD).cloned().collect()
        };
        prop_assert_eq!(above(&all), above(&sent));
        let counts = deadband.counts();
        prop_assert_eq!(counts.sent + counts.filtered, all.len() as u64);
        prop_assert_eq!(counts.sent, sent.len() as u64);
        // What was held back is within the dead band of what was last sent of its sensor.
        for sensor in 0..4 {
            let name = format!("s{sensor}");
            let of = |readings: &[Reading]| {
                readings.iter().filter(|r| r.sensor_id.as_str() == name).cloned().collect::<Vec<_>>()
            };
            if let (Some(last), Some(last_sent)) = (of(&all).last(), of(&sent).last()) {
                let width = absolute.max(percent / 100.0 * last_sent.value.abs());
                prop_assert!((last.value - last_sent.value).abs() <= width);
            }
        }
    }
}
