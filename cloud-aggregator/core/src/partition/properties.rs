//! Streaming equals batch: whatever arrives in whatever order, the latest revisions are what sorting and counting
//! everything that was counted gives.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shared_proto::model::{DeviceId, Generation, Sequence};

use super::*;
use crate::settings::Comparison;
use crate::time::Micros;
use crate::window::{AnomalyRow, ClosedBy};

const START: i64 = 1_772_352_000_000_000;
const SECOND: i64 = 1_000_000;

#[derive(Clone, Debug)]
enum Step {
    /// A reading; the sensor's own clock and what it measured.
    Send {
        sensor: usize,
        millis: i64,
        metric: usize,
        value: f64,
        quality: Option<Quality>,
    },
    /// The reading sent so many sends ago, again.
    Repeat {
        back: usize,
    },
    /// The aggregator's clock moves, also back.
    Pass {
        millis: i64,
    },
    Timeout,
    SaveAndRestore,
}

fn settings_strategy() -> impl Strategy<Value = Settings> {
    (0..30_i64, 0..200_i64, 1..100_i64, 0..4_u64).prop_map(
        |(lateness, retention, idle, count_more_than)| Settings {
            rules: vec![
                Rule { count_more_than, ..Rule::seed() },
                Rule {
                    name: "long".to_owned(),
                    comparison: Comparison::GreaterOrEqual,
                    value: 90.0,
                    window: Micros::from_seconds(150),
                    count_more_than: 2,
                    ..Rule::seed()
                },
                Rule {
                    name: "low".to_owned(),
                    metric_type: MetricType::new("pressure").expect("a valid name"),
                    comparison: Comparison::LessThan,
                    value: 95.0,
                    window: Micros::from_seconds(7),
                    count_more_than: 0,
                    severity: 4,
                },
            ],
            allowed_lateness: Micros::from_seconds(lateness),
            idle_timeout: Micros::from_seconds(idle),
            closed_window_retention: Micros::from_seconds(retention),
            ..Settings::default()
        },
    )
}

/// Steps whose event times lie `spread` milliseconds around a clock that goes on; a large spread is any order.
fn steps_strategy(spread: i64) -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![Just(80.0), Just(90.0), Just(100.0), 80.0..120.0_f64];
    let quality = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Quality::Good)),
        1 => Just(Some(Quality::Uncertain)),
        1 => Just(Some(Quality::Bad))
    ];
    let send = (0..3_usize, -spread..=spread, 0..4_usize, value, quality).prop_map(
        |(sensor, millis, metric, value, quality)| Step::Send {
            sensor,
            millis,
            metric: usize::from(metric == 0),
            value,
            quality,
        },
    );
    let step = prop_oneof![
        20 => send,
        3 => (0..30_usize).prop_map(|back| Step::Repeat { back }),
        2 => (-5_000..60_000_i64).prop_map(|millis| Step::Pass { millis }),
        2 => Just(Step::Timeout),
        1 => Just(Step::SaveAndRestore),
    ];
    prop::collection::vec(step, 0..250).prop_map(move |mut steps| {
        for (position, step) in (0..).zip(&mut steps) {
            if let Step::Send { millis, .. } = step {
                *millis += position * 1_000;
            }
        }
        steps
    })
}

struct Run {
    counted: Vec<Reading>,
    dispositions: Vec<Disposition>,
    out: Outputs,
    state: PartitionState,
    now: ProcessingTime,
}

fn run(steps: &[Step], settings: &Settings, is_restoring: bool) -> Run {
    let mut run = Run {
        counted: Vec::new(),
        dispositions: Vec::new(),
        out: Outputs::default(),
        state: PartitionState::new(settings),
        now: ProcessingTime::from_micros(START + 3600 * SECOND),
    };
    let mut sent: Vec<Reading> = Vec::new();
    for step in steps {
        match step {
            Step::Send { sensor, millis, metric, value, quality } => {
                let identity = Identity {
                    device_id: DeviceId::new("gw").expect("a valid name"),
                    generation: Generation(0),
                    sequence: Sequence(sent.len() as u64 + 1),
                };
                let name = ["temperature", "pressure"][*metric];
                sent.push(Reading {
                    identity: Some(identity),
                    quality: *quality,
                    ..Reading::new(
                        SensorId::new(&format!("s{sensor}")).expect("a valid name"),
                        EventTime::from_micros(START + millis * 1_000),
                        MetricType::new(name).expect("a valid name"),
                        *value,
                    )
                });
                run.send(&sent[sent.len() - 1], settings);
            }
            Step::Repeat { back } => {
                if let Some(again) = sent.iter().rev().nth(*back) {
                    run.send(again, settings);
                }
            }
            Step::Pass { millis } => {
                run.now = run.now.saturating_add(Micros::new(millis * 1_000));
            }
            Step::Timeout => run.state.handle_timeout(run.now, settings, &mut run.out),
            Step::SaveAndRestore if is_restoring => {
                let saved = serde_json::to_string(&run.state).expect("serialisable");
                let restored = serde_json::from_str(&saved).expect("restorable");
                assert_eq!(run.state, restored);
                run.state = restored;
            }
            Step::SaveAndRestore => {}
        }
    }
    run
}

impl Run {
    fn send(&mut self, reading: &Reading, settings: &Settings) {
        let disposition = self.state.handle_reading(reading, self.now, settings, &mut self.out);
        if disposition == Disposition::Counted {
            self.counted.push(reading.clone());
        }
        self.dispositions.push(disposition);
    }

    /// Everybody falls silent, for longer than the clock can have been set back before.
    fn finish(&mut self, settings: &Settings) {
        let end = self.now.saturating_add(Micros::from_seconds(86_400));
        self.state.handle_timeout(end, settings, &mut self.out);
    }
}

/// (rule, sensor, window start)
type Key = (String, String, i64);

#[derive(Clone, Debug, PartialEq)]
struct Batch {
    end: i64,
    count: u64,
    max_value: f64,
    min_value: f64,
    first_match: i64,
    last_match: i64,
}

/// The slow, obvious count: every rule over every reading, grouped by window; anomalies only.
fn batch(readings: &[Reading], rules: &[Rule]) -> BTreeMap<Key, Batch> {
    let mut windows: BTreeMap<Key, Vec<(i64, f64)>> = BTreeMap::new();
    for rule in rules {
        for reading in readings {
            let is_match = match rule.comparison {
                Comparison::GreaterThan => reading.value > rule.value,
                Comparison::GreaterOrEqual => reading.value >= rule.value,
                Comparison::LessThan => reading.value < rule.value,
                Comparison::LessOrEqual => reading.value <= rule.value,
            };
            let is_bad = reading.quality == Some(Quality::Bad);
            if rule.metric_type == reading.metric_type && is_match && !is_bad {
                let micros = reading.timestamp.micros();
                let start = micros.div_euclid(rule.window.get()) * rule.window.get();
                let key = (rule.name.clone(), reading.sensor_id.to_string(), start);
                windows.entry(key).or_default().push((micros, reading.value));
            }
        }
    }
    let anomalies = windows.into_iter().filter_map(|(key, mut matches)| {
        let rule = rules.iter().find(|rule| rule.name == key.0).expect("its own rule");
        let count = matches.len() as u64;
        matches.sort_by_key(|(micros, _)| *micros);
        let values = || matches.iter().map(|(_, value)| *value);
        let row = Batch {
            end: key.2 + rule.window.get(),
            count,
            max_value: values().fold(f64::MIN, f64::max),
            min_value: values().fold(f64::MAX, f64::min),
            first_match: matches[0].0,
            last_match: matches[matches.len() - 1].0,
        };
        (count > rule.count_more_than).then_some((key, row))
    });
    anomalies.collect()
}

/// The rows with the highest revision; revisions must come in order without holes.
fn latest(rows: &[AnomalyRow]) -> BTreeMap<Key, Batch> {
    let mut revisions: BTreeMap<Key, u32> = BTreeMap::new();
    let mut latest = BTreeMap::new();
    for row in rows {
        let key = (row.rule.clone(), row.sensor_id.to_string(), row.window_start.micros());
        let revision = revisions.entry(key.clone()).or_default();
        *revision += 1;
        assert_eq!(row.revision, *revision, "{row:?}");
        assert!(row.revision == 1 || row.closed_by == ClosedBy::Correction, "{row:?}");
        let batch = Batch {
            end: row.window_end.micros(),
            count: row.count,
            max_value: row.max_value,
            min_value: row.min_value,
            first_match: row.first_match.micros(),
            last_match: row.last_match.micros(),
        };
        latest.insert(key, batch);
    }
    latest
}

/// Newest event time of each sensor.
fn newest(readings: &[Reading]) -> BTreeMap<String, i64> {
    let mut newest = BTreeMap::new();
    for reading in readings {
        let entry = newest.entry(reading.sensor_id.to_string()).or_insert(i64::MIN);
        *entry = (*entry).max(reading.timestamp.micros());
    }
    newest
}

fn check_streaming_equals_batch(steps: &[Step], settings: &Settings) {
    let mut run = run(steps, settings, true);
    let expected = batch(&run.counted, &settings.rules);

    let found = latest(&run.out.anomalies);
    for (key, row) in &found {
        assert_eq!(expected.get(key), Some(row), "{key:?} is what the batch counts");
    }
    let newest = newest(&run.counted);
    for (key, row) in &expected {
        let watermark = newest[&key.1] - settings.allowed_lateness.get();
        if row.end <= watermark {
            assert_eq!(found.get(key), Some(row), "{key:?} is closed");
        }
    }

    run.finish(settings);
    assert_eq!(latest(&run.out.anomalies), expected, "all are closed");
    assert_eq!(run.state.open_windows(), 0);

    let alerts: Vec<Key> = run
        .out
        .alerts
        .iter()
        .map(|alert| (alert.rule.clone(), alert.sensor_id.to_string(), alert.window_start.micros()))
        .collect();
    let ids: BTreeSet<&str> = run.out.alerts.iter().map(|alert| alert.id.as_str()).collect();
    assert_eq!(ids.len(), alerts.len(), "one id a window");
    assert_eq!(
        alerts.into_iter().collect::<BTreeSet<_>>(),
        expected.into_keys().collect::<BTreeSet<_>>()
    );

    let accounting = run.state.accounting();
    assert!(accounting.is_balanced());
    assert_eq!(accounting.records_in, run.dispositions.len() as u64);
    assert_eq!(accounting.counted, run.counted.len() as u64);
}

/// Says what becomes of each reading, from the definitions alone.
fn expected_dispositions(steps: &[Step], settings: &Settings) -> Vec<Disposition> {
    let mut newest: BTreeMap<usize, i64> = BTreeMap::new();
    let mut dispositions = Vec::new();
    let mut sent = 0;
    for step in steps {
        match step {
            Step::Send { sensor, millis, .. } => {
                sent += 1;
                let micros = START + millis * 1_000;
                let behind =
                    settings.allowed_lateness.get() + settings.closed_window_retention.get();
                let reached = *newest.get(sensor).unwrap_or(&micros);
                if micros < reached - behind {
                    dispositions.push(Disposition::Late);
                } else {
                    newest.insert(*sensor, reached.max(micros));
                    dispositions.push(Disposition::Counted);
                }
            }
            Step::Repeat { back } if *back < sent => dispositions.push(Disposition::Duplicate),
            Step::Repeat { .. } | Step::Pass { .. } | Step::Timeout | Step::SaveAndRestore => {}
        }
    }
    dispositions
}

/// A sensor's rows and alerts without the aggregator's clock.
fn timeless(out: &Outputs, sensor: &str) -> (Vec<AnomalyRow>, Vec<String>) {
    let rows = out.anomalies.iter().filter(|row| row.sensor_id.as_str() == sensor);
    let rows =
        rows.map(|row| AnomalyRow { emitted_at: ProcessingTime::from_micros(0), ..row.clone() });
    let alerts = out.alerts.iter().filter(|alert| alert.sensor_id.as_str() == sensor);
    (rows.collect(), alerts.map(|alert| alert.id.clone()).collect())
}

proptest! {
    #[test]
    fn streaming_equals_batch_in_nearly_ordered_input(
        settings in settings_strategy(), steps in steps_strategy(15_000),
    ) {
        check_streaming_equals_batch(&steps, &settings);
    }

    #[test]
    fn streaming_equals_batch_in_any_order(
        settings in settings_strategy(), steps in steps_strategy(400_000),
    ) {
        check_streaming_equals_batch(&steps, &settings);
    }

    #[test]
    fn every_record_becomes_what_the_definitions_say(
        settings in settings_strategy(), steps in steps_strategy(300_000),
    ) {
        let run = run(&steps, &settings, false);
        prop_assert_eq!(run.dispositions, expected_dispositions(&steps, &settings));
    }

    #[test]
    fn saving_and_restoring_changes_nothing_that_comes_out(
        settings in settings_strategy(), steps in steps_strategy(100_000),
    ) {
        let through = run(&steps, &settings, false);
        let restored = run(&steps, &settings, true);
        prop_assert_eq!(through.dispositions, restored.dispositions);
        prop_assert_eq!(through.out, restored.out);
        prop_assert_eq!(through.state, restored.state);
    }

    #[test]
    fn replay_of_an_offline_gateway_counts_as_if_it_had_been_online(
        settings in settings_strategy(), steps in steps_strategy(20_000),
    ) {
        let is_offline = |step: &Step| matches!(step, Step::Send { sensor: 0, .. });
        let sends: Vec<Step> =
            steps.iter().filter(|step| matches!(step, Step::Send { .. })).cloned().collect();
        let online = run(&sends, &settings, false);
        let mut replayed: Vec<Step> = sends.iter().filter(|step| !is_offline(step)).cloned().collect();
        replayed.push(Step::Pass { millis: 86_400_000 });
        replayed.extend(sends.iter().filter(|step| is_offline(step)).cloned());
        let offline = run(&replayed, &settings, true);
        for sensor in ["s0", "s1", "s2"] {
            prop_assert_eq!(timeless(&online.out, sensor), timeless(&offline.out, sensor));
        }
        prop_assert_eq!(online.counted.len(), offline.counted.len());
    }
}
