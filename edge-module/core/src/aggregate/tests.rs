use proptest::prelude::*;

use shared_proto::model::EventTime;

use super::*;
use crate::deadband::{Deadband, DeadbandSettings, Verdict};

const THRESHOLD: f64 = 100.0;
const SECOND: i64 = 1_000_000;
const ALL: [Statistic; 4] = [Statistic::Min, Statistic::Max, Statistic::Mean, Statistic::Rms];

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn metric(name: &str) -> MetricType {
    MetricType::new(name).expect(name)
}

fn rule(prefix: &str, seconds: u64, value: Statistic) -> AggregationRule {
    AggregationRule {
        sensor_prefix: prefix.to_owned(),
        metric_type: Some(metric("temperature")),
        interval: Duration::from_secs(seconds),
        value,
        statistics: ALL.to_vec(),
    }
}

fn aggregator(rules: Vec<AggregationRule>) -> Aggregator {
    let always_above = BTreeMap::from([(metric("temperature"), THRESHOLD)]);
    let settings = AggregationSettings { rules, always_above, sensors_max: 8 };
    Aggregator::new(settings).expect("valid settings")
}

fn reading(on: &str, at_micros: i64, value: f64) -> Reading {
    let sensor = SensorId::new(on).expect(on);
    Reading::new(sensor, EventTime::from_micros(at_micros), metric("temperature"), value)
}

/// Everything that is to be sent for these readings, in order.
fn sent(aggregator: &mut Aggregator, readings: &[Reading]) -> Vec<Reading> {
    let now = start();
    let mut sent = Vec::new();
    for reading in readings {
        let outcome = aggregator.handle_reading(reading, 10, now);
        sent.extend(outcome.closed.map(|closed| closed.reading));
        sent.extend(outcome.is_passed.then(|| reading.clone()));
    }
    sent.extend(aggregator.close_all().into_iter().map(|closed| closed.reading));
    sent
}

#[test]
fn an_interval_becomes_one_reading_with_its_statistics() {
    let mut aggregator = aggregator(vec![rule("press", 10, Statistic::Mean)]);
    let readings: Vec<Reading> = [(0, 3.0), (4, -4.0), (9, 4.0), (10, 7.0)]
        .map(|(second, value)| reading("press-1", second * SECOND, value))
        .to_vec();
    let sent = sent(&mut aggregator, &readings);
    assert_eq!(sent.len(), 2);
    assert_eq!((sent[0].timestamp.micros(), sent[1].timestamp.micros()), (9 * SECOND, 10 * SECOND));
    assert!((sent[0].value - 1.0).abs() < 1e-12);
    let feature = |name: &str| sent[0].features[name];
    assert_eq!((feature("min"), feature("max"), feature("count")), (-4.0, 4.0, 3.0));
    assert!((feature("rms") - (41.0_f64 / 3.0).sqrt()).abs() < 1e-12);
    assert_eq!(sent[1].value, 7.0);
}

#[test]
fn the_first_rule_that_matches_holds_and_others_pass() {
    let rules = vec![rule("press-1/", 10, Statistic::Max), rule("press", 20, Statistic::Min)];
    let mut aggregator = aggregator(rules);
    let now = start();
    let mut is_passed = |reading: &Reading| aggregator.handle_reading(reading, 1, now).is_passed;
    assert!(!is_passed(&reading("press-1/oil", 0, 1.0)));
    assert!(!is_passed(&reading("press-2/oil", 0, 1.0)));
    assert!(is_passed(&reading("lathe", 0, 1.0)));
    let mut pressure = reading("press-1/oil", 0, 1.0);
    pressure.metric_type = metric("pressure");
    assert!(is_passed(&pressure));
    let closed = aggregator.close_all();
    assert_eq!(closed.len(), 2);
}

#[test]
fn values_above_the_threshold_pass_as_they_are_and_so_does_the_first_after() {
    let mut aggregator = aggregator(vec![rule("", 10, Statistic::Max)]);
    let readings: Vec<Reading> = [50.0, 60.0, 100.5, 101.0, 70.0, 80.0, 100.0]
        .iter()
        .zip(0..)
        .map(|(value, second)| reading("s", second * SECOND, *value))
        .collect();
    let values: Vec<f64> =
        sent(&mut aggregator, &readings).iter().map(|reading| reading.value).collect();
    assert_eq!(values, [60.0, 100.5, 101.0, 70.0, 100.0]);
}

#[test]
fn an_aggregate_is_never_above_the_threshold() {
    let mut aggregator = aggregator(vec![rule("", 10, Statistic::Rms)]);
    let readings = [reading("s", 0, -300.0), reading("s", SECOND, 20.0)];
    let sent = sent(&mut aggregator, &readings);
    assert_eq!(sent[0].value, 20.0, "the maximum in place of a root mean square of 212");
    assert!(sent[0].features["rms"] > 212.0);
}

#[test]
fn readings_of_doubtful_quality_pass() {
    let mut aggregator = aggregator(vec![rule("", 10, Statistic::Mean)]);
    let mut bad = reading("s", 0, 5.0);
    bad.quality = Some(Quality::Uncertain);
    assert!(aggregator.handle_reading(&bad, 1, start()).is_passed);
    bad.quality = Some(Quality::Good);
    assert!(!aggregator.handle_reading(&bad, 1, start()).is_passed);
}

#[test]
fn a_sensor_that_falls_silent_is_closed_in_time() {
    let mut aggregator = aggregator(vec![rule("", 10, Statistic::Mean)]);
    let now = start();
    let later = now + Duration::from_secs(4);
    assert!(!aggregator.handle_reading(&reading("a", 0, 1.0), 7, now).is_passed);
    assert!(!aggregator.handle_reading(&reading("a", SECOND, 2.0), 8, later).is_passed);
    assert!(!aggregator.handle_reading(&reading("b", 0, 3.0), 9, later).is_passed);
    let due = now + Duration::from_secs(10);
    assert_eq!(aggregator.poll_timeout(), Some(due));
    assert!(aggregator.handle_timeout(due - Duration::from_nanos(1)).is_empty());
    let closed = aggregator.handle_timeout(due);
    assert_eq!(closed.len(), 1);
    assert_eq!((closed[0].readings, closed[0].bytes, closed[0].reading.value), (2, 15, 1.5));
    assert_eq!(aggregator.poll_timeout(), Some(later + Duration::from_secs(10)));
}

#[test]
fn sensors_beyond_the_limit_pass() {
    let mut aggregator = aggregator(vec![rule("", 10, Statistic::Mean)]);
    let passed = (0..10)
        .filter(|index| {
            let reading = reading(&format!("s{index}"), 0, 1.0);
            aggregator.handle_reading(&reading, 1, start()).is_passed
        })
        .count();
    assert_eq!((passed, aggregator.sensors()), (2, 8));
}

#[test]
fn intervals_of_nothing_or_for_ever_are_refused() {
    let mut long = rule("", 10, Statistic::Mean);
    long.interval = Duration::from_secs(25 * 3600);
    let rules = vec![rule("", 0, Statistic::Mean), long];
    let settings = AggregationSettings { rules, ..AggregationSettings::default() };
    assert_eq!(settings.validate().expect_err("two faults").len(), 2);
}

/// Sorts readings of one sensor into runs that are neither interrupted by a passed reading nor by another interval.
fn naive(readings: &[Reading], interval: i64) -> Vec<Vec<Reading>> {
    let mut groups: Vec<Vec<Reading>> = Vec::new();
    let mut is_open = false;
    let mut was_above = false;
    for reading in readings {
        let is_above = reading.value > THRESHOLD;
        if is_above || was_above {
            groups.push(vec![reading.clone()]);
            is_open = false;
        } else {
            let of = |reading: &Reading| reading.timestamp.micros().div_euclid(interval);
            match groups.last_mut().filter(|_| is_open) {
                Some(group) if of(&group[0]) == of(reading) => group.push(reading.clone()),
                Some(_) | None => groups.push(vec![reading.clone()]),
            }
            is_open = true;
        }
        was_above = is_above;
    }
    groups
}

proptest! {
    #[test]
    fn aggregates_equal_the_plain_statistics_of_their_groups(
        steps in prop::collection::vec((-3_i64..9, prop_oneof![4 => -120.0..100.0, 1 => 90.0..110.0]), 1..200),
        statistic in prop::sample::select(ALL.to_vec()),
    ) {
        let mut aggregator = aggregator(vec![rule("", 10, statistic)]);
        let mut at = 0;
        let readings: Vec<Reading> = steps
            .into_iter()
            .map(|(step, value)| {
                at += step * SECOND;
                reading("s", at, value)
            })
            .collect();
        let sent = sent(&mut aggregator, &readings);
        let groups = naive(&readings, 10 * SECOND);
        prop_assert_eq!(sent.len(), groups.len());
        for (sent, group) in sent.iter().zip(groups) {
            let values: Vec<f64> = group.iter().map(|reading| reading.value).collect();
            let count = values.len() as f64;
            let max = values.iter().copied().fold(f64::MIN, f64::max);
            let expected = match statistic {
                Statistic::Min => values.iter().copied().fold(f64::MAX, f64::min),
                Statistic::Max => max,
                Statistic::Mean => values.iter().sum::<f64>() / count,
                Statistic::Rms => (values.iter().map(|value| value * value).sum::<f64>() / count).sqrt(),
            };
            if sent.features.is_empty() {
                prop_assert_eq!(sent, &group[0], "passed as it is");
                continue;
            }
            let expected = if expected > THRESHOLD { max } else { expected };
            prop_assert!((sent.value - expected).abs() < 1e-9, "{} for {expected}", sent.value);
            prop_assert_eq!(sent.features["count"], count);
            prop_assert_eq!(sent.timestamp, group.iter().map(|reading| reading.timestamp).max().expect("some"));
        }
    }

    /// The promise to the cloud, for aggregation and the dead band behind it.
    #[test]
    fn filtering_never_changes_the_count_above_the_threshold(
        steps in prop::collection::vec(
            (0_usize..4, -5_i64..40, prop_oneof![90.0..110.0, Just(THRESHOLD), -1e3..1e3, Just(-1e300)]),
            1..300,
        ),
        statistic in prop::sample::select(ALL.to_vec()),
        seconds in 1_u64..120,
        absolute in prop_oneof![Just(0.0), 0.0..30.0],
    ) {
        let mut aggregator = aggregator(vec![rule("s", seconds, statistic)]);
        let mut deadband = Deadband::new(DeadbandSettings {
            absolute,
            percent: 0.0,
            score: 0.05,
            heartbeat: Duration::from_secs(60),
            always_above: BTreeMap::from([(metric("temperature"), THRESHOLD)]),
            sensors_max: 4,
            rules: Vec::new(),
        })
        .expect("valid settings");
        let mut at = 0;
        let readings: Vec<Reading> = steps
            .into_iter()
            .map(|(on, step, value)| {
                at += step * SECOND;
                reading(&format!("s{on}"), at, value)
            })
            .collect();
        let sent: Vec<Reading> = sent(&mut aggregator, &readings)
            .into_iter()
            .filter(|reading| matches!(deadband.handle(reading), Verdict::Send(_)))
            .collect();
        let above = |readings: &[Reading]| -> Vec<Reading> {
            readings.iter().filter(|reading| reading.value > THRESHOLD).cloned().collect()
        };
        prop_assert_eq!(above(&sent), above(&readings));
        prop_assert!(sent.iter().all(|reading| reading.value.is_finite()));
        prop_assert!(sent.iter().flat_map(|reading| reading.features.values()).all(|value| value.is_finite()));
    }
}
