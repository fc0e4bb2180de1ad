use proptest::prelude::*;

use super::*;

const THRESHOLD: f64 = 100.0;
const SECOND: i64 = 1_000_000;
const SCORE_WIDTH: f64 = 0.25;

fn settings(absolute: f64, percent: f64) -> DeadbandSettings {
    DeadbandSettings {
        absolute,
        percent,
        score: SCORE_WIDTH,
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

/// A window's reading, with the model's answer if there is one.
fn window(at_seconds: i64, rms: f64, score: Option<f64>) -> Reading {
    let mut reading = reading("s", at_seconds, "vibration", rms);
    reading.features.insert("rms".to_owned(), rms);
    reading.features.extend(score.map(|score| ("score".to_owned(), score)));
    reading
}

/// Feeds windows of one sensor at the same RMS, one a second, and compares each verdict.
fn check_scores(score_width: f64, steps: &[(Option<f64>, Verdict)]) {
    let settings = DeadbandSettings { score: score_width, ..settings(0.0, 5.0) };
    let mut deadband = Deadband::new(settings).expect("valid settings");
    for (second, (score, expected)) in steps.iter().enumerate() {
        let at = i64::try_from(second).expect("few");
        let verdict = deadband.handle(&window(at, 4.0, *score));
        assert_eq!(verdict, *expected, "step {second}: {score:?}");
    }
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
fn score_that_changes_at_constant_rms_is_news() {
    let changed = Verdict::Send(Reason::ScoreChanged);
    let steps = [
        (Some(0.125), Verdict::Send(Reason::First)),
        (Some(0.375), Verdict::Filter),
        (Some(0.5), changed),
        (Some(0.25), Verdict::Filter),
        (Some(0.125), changed),
    ];
    check_scores(SCORE_WIDTH, &steps);
}

#[test]
fn score_that_comes_or_goes_is_news() {
    let came_or_went = Verdict::Send(Reason::ScoreCameOrWent);
    let steps = [
        (None, Verdict::Send(Reason::First)),
        (None, Verdict::Filter),
        (Some(0.0), came_or_went),
        (Some(0.0), Verdict::Filter),
        (None, came_or_went),
        (None, Verdict::Filter),
    ];
    check_scores(1.0, &steps);
}

#[test]
fn score_width_zero_sends_every_change_and_one_sends_none() {
    let (first, changed) = (Verdict::Send(Reason::First), Verdict::Send(Reason::ScoreChanged));
    let steps = |verdict| {
        [
            (Some(0.0), first),
            (Some(0.0), Verdict::Filter),
            (Some(1e-9), verdict),
            (Some(1.0), verdict),
        ]
    };
    check_scores(0.0, &steps(changed));
    check_scores(1.0, &steps(Verdict::Filter));
}

#[test]
fn zero_widths_of_the_value_send_everything_whatever_the_score() {
    let mut deadband = Deadband::new(settings(0.0, 0.0)).expect("valid settings");
    for second in 0..2 {
        let verdict = deadband.handle(&window(second, 4.0, Some(0.5)));
        assert_eq!(verdict, Verdict::Send(Reason::Unfiltered));
    }
}

#[test]
fn what_is_sent_for_its_value_is_what_the_next_score_is_compared_with() {
    let mut deadband = Deadband::new(settings(1.0, 0.0)).expect("valid settings");
    let mut at = |second, rms, score| deadband.handle(&window(second, rms, Some(score)));
    assert_eq!(at(0, 4.0, 0.0), Verdict::Send(Reason::First));
    assert_eq!(at(1, 6.0, 0.25), Verdict::Send(Reason::Changed));
    assert_eq!(at(2, 6.0, 0.5), Verdict::Filter);
    assert_eq!(at(3, 6.0, 0.75), Verdict::Send(Reason::ScoreChanged));
    assert_eq!(at(4, 5.0, 0.75), Verdict::Filter);
}

#[test]
fn window_that_votes_and_the_first_after_are_sent() {
    let mut deadband = Deadband::new(settings(1.0, 0.0)).expect("valid settings");
    let mut second = 0;
    let mut next = |score: f64, threshold: f64| {
        second += 1;
        let window = window(second, 4.0, Some(score));
        if score >= threshold { deadband.handle_forced(&window) } else { deadband.handle(&window) }
    };
    let forced = Verdict::Send(Reason::Forced);
    assert_eq!(next(0.75, 0.8), Verdict::Send(Reason::First));
    assert_eq!(next(0.79, 0.8), Verdict::Filter);
    assert_eq!(next(0.8, 0.8), forced);
    assert_eq!(next(0.8, 0.8), forced);
    assert_eq!(next(0.79, 0.8), Verdict::Send(Reason::NoLongerForced));
    assert_eq!(next(0.79, 0.8), Verdict::Filter);
    let expected = DeadbandCounts { sent: 4, filtered: 2, not_remembered: 0 };
    assert_eq!(deadband.counts(), expected);
}

#[test]
fn first_reading_of_a_sensor_may_be_forced() {
    let mut deadband = Deadband::new(settings(1.0, 0.0)).expect("valid settings");
    let first = deadband.handle_forced(&window(0, 4.0, Some(0.9)));
    assert_eq!(first, Verdict::Send(Reason::First));
    let second = deadband.handle(&window(1, 4.0, Some(0.9)));
    assert_eq!(second, Verdict::Send(Reason::NoLongerForced));
    assert_eq!(deadband.handle(&window(2, 4.0, Some(0.9))), Verdict::Filter);
}

#[test]
fn memory_of_a_sensor_is_a_name_and_four_words() {
    assert_eq!(size_of::<LastSent>(), size_of::<MetricType>() + 4 * size_of::<u64>());
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
        score: SCORE_WIDTH,
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
fn rule_has_a_width_of_the_score_of_its_own() {
    let mut settings = settings(1.0, 0.0);
    settings.rules = vec![DeadbandRule {
        sensor_prefix: "s".to_owned(),
        metric_type: Some(metric("vibration")),
        absolute: 1.0,
        percent: 0.0,
        score: 0.5,
        heartbeat: Duration::from_secs(10),
    }];
    let mut deadband = Deadband::new(settings).expect("valid settings");
    let mut at = |second, score| deadband.handle(&window(second, 4.0, Some(score)));
    assert_eq!(at(0, 0.0), Verdict::Send(Reason::First));
    assert_eq!(at(1, 0.5), Verdict::Filter);
    assert_eq!(at(2, 0.75), Verdict::Send(Reason::ScoreChanged));
}

#[test]
fn settings_report_all_faults_at_once() {
    let mut bad = settings(-1.0, f64::NAN);
    bad.score = 5.0;
    bad.heartbeat = Duration::ZERO;
    bad.always_above.insert(metric("pressure"), f64::INFINITY);
    bad.rules = vec![DeadbandRule {
        sensor_prefix: String::new(),
        metric_type: None,
        absolute: f64::NAN,
        percent: 0.0,
        score: f64::NAN,
        heartbeat: Duration::ZERO,
    }];
    let faults = bad.validate().expect_err("eight faults");
    assert_eq!(faults.len(), 8);
    assert_eq!(faults[2].to_string(), "dead band score is 5; it must be from 0 to 1");
}

#[test]
fn width_of_the_score_is_part_of_its_scale() {
    let check = |score, is_valid| {
        let settings = DeadbandSettings { score, ..settings(1.0, 0.0) };
        assert_eq!(settings.validate().is_ok(), is_valid, "{score}");
    };
    check(-1e-9, false);
    check(0.0, true);
    check(1.0, true);
    check(1.0 + 1e-9, false);
    check(f64::NAN, false);
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

    #[test]
    fn verdicts_are_those_of_a_model_that_keeps_everything(
        steps in prop::collection::vec(step(), 1..300),
        absolute in prop_oneof![Just(0.0), Just(2.0), 0.0..30.0],
        percent in prop_oneof![Just(0.0), 0.0..50.0],
        score in prop_oneof![Just(0.0), Just(SCORE_WIDTH), Just(1.0), 0.0..1.0],
    ) {
        let settings = DeadbandSettings { score, ..settings(absolute, percent) };
        let mut deadband = Deadband::new(settings.clone()).expect("valid settings");
        let (mut now, mut sent, mut seen) = (0, Vec::new(), Vec::new());
        for step in steps {
            now += step.seconds;
            let name = format!("s{}", step.sensor);
            let mut reading = reading(&name, now, "temperature", step.value);
            reading.quality = step.is_bad.then_some(Quality::Bad);
            reading.features.extend(step.score.map(|score| ("score".to_owned(), score)));
            if !seen.contains(&name) {
                seen.push(name.clone());
            }
            let is_remembered = seen.iter().take(settings.sensors_max).any(|it| *it == name);
            let expected = !is_remembered || is_owed(&settings, &sent, &reading, step.is_forced);
            let verdict = if step.is_forced {
                deadband.handle_forced(&reading)
            } else {
                deadband.handle(&reading)
            };
            let is_sent = matches!(verdict, Verdict::Send(_));
            prop_assert_eq!(is_sent, expected, "{:?} of {:?}", verdict, reading);
            if is_sent {
                sent.push((reading, step.is_forced));
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Step {
    sensor: usize,
    seconds: i64,
    value: f64,
    score: Option<f64>,
    is_bad: bool,
    is_forced: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![
        4 => prop::sample::select(vec![20.0, 21.0, 22.0, -20.0, THRESHOLD]),
        1 => 90.0..110.0,
    ];
    // Quarters, too: differences of exactly the width.
    let score = prop_oneof![
        3 => prop::sample::select(vec![0.0, 0.25, 0.5, 0.75, 1.0]).prop_map(Some),
        2 => (0.0..1.0).prop_map(Some),
        2 => Just(None),
    ];
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (0_usize..6, -2_i64..20, value, score, flags).prop_map(
        |(sensor, seconds, value, score, (is_bad, is_forced))| Step {
            sensor,
            seconds,
            value,
            score,
            is_bad,
            is_forced,
        },
    )
}

/// Whether a reading must be sent, from all that was sent before and whether it was forced.
fn is_owed(
    settings: &DeadbandSettings,
    sent: &[(Reading, bool)],
    reading: &Reading,
    is_forced: bool,
) -> bool {
    let of_sensor = |(it, _): &&(Reading, bool)| it.sensor_id == reading.sensor_id;
    let Some((last, was_forced)) = sent.iter().rev().find(of_sensor) else { return true };
    let is_above = |reading: &Reading| reading.value > THRESHOLD;
    let score = |reading: &Reading| reading.features.get("score").copied();
    let is_score_new = match (score(last), score(reading)) {
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
        (Some(before), Some(after)) => (after - before).abs() > settings.score,
    };
    let change = (reading.value - last.value).abs();
    let percent = settings.percent / 100.0 * last.value.abs();
    let seconds = (reading.timestamp.micros() - last.timestamp.micros()) / SECOND;
    let is_value_unfiltered = settings.absolute == 0.0 && settings.percent == 0.0;
    is_value_unfiltered
        || is_forced
        || *was_forced
        || is_above(reading)
        || is_above(last)
        || reading.quality != last.quality
        || !(0..60).contains(&seconds)
        || (change > settings.absolute && change > percent)
        || is_score_new
}
