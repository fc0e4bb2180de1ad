//! Streaming equals batch: whatever arrives in whatever order, the latest revisions are what sorting and counting
//! everything that was counted gives.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shared_proto::model::{DeviceId, Generation, Quality, Sequence};

use super::adopting::AdoptedRow;
use super::*;
use crate::rule::{Aggregate, Threshold};
use crate::time::Micros;
use crate::window::ClosedBy;

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
    Trigger,
    SaveAndRestore,
    /// The changes since the last save, put on what was saved before.
    SaveChanges,
}

/// A rule of each kind.
fn rules(count_more_than: u32) -> Vec<Rule> {
    let seconds = Micros::from_seconds;
    let rule = |name: &str, filter: &str, threshold: &str, window: i64, slide: i64| Rule {
        name: name.to_owned(),
        filter: filter.parse().expect("a valid filter"),
        threshold: threshold.parse().expect("a valid threshold"),
        window: seconds(window),
        slide: seconds(slide),
        ..Rule::seed()
    };
    let (update, complete) = (OutputMode::Update, OutputMode::Complete);
    vec![
        Rule { threshold: Threshold::count_more_than(count_more_than), ..Rule::seed() },
        rule("long", "metric_type = temperature and value >= 90", "count > 2", 150, 50),
        Rule {
            output_mode: update,
            ..rule("low", "metric_type = pressure and value < 95", "count > 0", 7, 7)
        },
        rule("mean", "metric_type = temperature", "mean >= 95", 30, 10),
        Rule { by: GroupBy::Machine, ..rule("machine", "value > 85", "count > 3", 60, 60) },
        Rule {
            output_mode: update,
            ..rule("change", "metric_type = temperature", "rate-of-change > 1", 20, 20)
        },
        Rule {
            output_mode: complete,
            ..rule("high", "value > 85 or value < 81", "max > 100", 60, 60)
        },
    ]
}

fn settings_strategy() -> impl Strategy<Value = Settings> {
    (0..30_i64, 0..200_i64, 1..100_i64, 0..4_u32).prop_map(
        |(lateness, retention, idle, count_more_than)| Settings {
            rules: rules(count_more_than),
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
        2 => Just(Step::Trigger),
        1 => Just(Step::SaveAndRestore),
        2 => Just(Step::SaveChanges),
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
    sent: Vec<Reading>,
    counted: Vec<Reading>,
    dispositions: Vec<Disposition>,
    out: Outputs,
    state: PartitionState,
    now: ProcessingTime,
}

fn run(steps: &[Step], settings: &Settings, is_restoring: bool) -> Run {
    let mut run = Run {
        sent: Vec::new(),
        counted: Vec::new(),
        dispositions: Vec::new(),
        out: Outputs::default(),
        state: PartitionState::new(settings),
        now: ProcessingTime::from_micros(START + 3600 * SECOND),
    };
    let mut saved: Option<PartitionState> = None;
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
                let machine_id = (*sensor < 2).then(|| MachineId::new("m").expect("a valid name"));
                sent.push(Reading {
                    identity: Some(identity),
                    quality: *quality,
                    machine_id,
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
            Step::Trigger => run.state.handle_trigger(run.now, settings, &mut run.out),
            Step::SaveAndRestore if is_restoring => {
                let saved = serde_json::to_string(&run.state).expect("serialisable");
                let restored = serde_json::from_str(&saved).expect("restorable");
                assert_eq!(run.state, restored);
                run.state = restored;
                run.state.unsaved.is_whole = true;
            }
            Step::SaveAndRestore => {}
            Step::SaveChanges => save_changes(&mut run.state, &mut saved),
        }
    }
    run.sent = sent;
    run
}

/// Saves as epochs do, whole first, and checks that the saved changes give the same state.
fn save_changes(state: &mut PartitionState, saved: &mut Option<PartitionState>) {
    let through_text = |state: &PartitionState| -> PartitionState {
        let text = serde_json::to_string(state).expect("serialisable");
        serde_json::from_str(&text).expect("restorable")
    };
    match saved {
        Some(saved) if !state.is_whole_due() => {
            let text = serde_json::to_string(&state.take_changes()).expect("serialisable");
            let mut restored = through_text(saved);
            restored.apply(serde_json::from_str(&text).expect("restorable")).expect("they fit");
            assert_eq!(restored, *state);
            assert_eq!(restored.figures(), state.figures());
            *saved = restored;
        }
        Some(_) | None => {
            state.mark_saved();
            *saved = Some(through_text(state));
        }
    }
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
        self.state.handle_trigger(end, settings, &mut self.out);
    }
}

/// (rule, sensor or machine, window start)
type Key = (String, String, i64);

/// A number that depends on the order of a sum in its last digits.
#[derive(Clone, Copy, Debug)]
struct Near(f64);

impl PartialEq for Near {
    fn eq(&self, other: &Self) -> bool {
        (self.0 - other.0).abs() <= 1e-9 * self.0.abs().max(1.0)
    }
}

/// Numbers of a window.
#[derive(Clone, Debug, PartialEq)]
struct Batch {
    end: i64,
    count: u64,
    max_value: f64,
    min_value: f64,
    mean_value: Near,
    rate_of_change: Option<Near>,
    first_match: i64,
    last_match: i64,
}

/// The slow, obvious count: every rule over every reading, grouped by window; anomalies only.
fn batch(readings: &[Reading], rules: &[Rule]) -> BTreeMap<Key, Batch> {
    let mut anomalies = BTreeMap::new();
    for rule in rules {
        let (length, slide) = (rule.window.get(), rule.slide.get());
        let mut windows: BTreeMap<Key, Vec<(i64, f64)>> = BTreeMap::new();
        for reading in readings {
            let machine = reading.machine_id.as_ref().map(ToString::to_string);
            let group = match rule.by {
                GroupBy::Sensor => Some(reading.sensor_id.to_string()),
                GroupBy::Machine => machine,
            };
            let Some(group) = group else { continue };
            if reading.quality == Some(Quality::Bad) || !rule.filter.matches(reading) {
                continue;
            }
            let micros = reading.timestamp.micros();
            let first = (micros - length).div_euclid(slide) * slide;
            for start in (first..=micros).step_by(usize::try_from(slide).expect("small")) {
                if start <= micros && micros < start + length {
                    let key = (rule.name.clone(), group.clone(), start);
                    windows.entry(key).or_default().push((micros, reading.value));
                }
            }
        }
        for (key, matches) in windows {
            if let Some(row) = judge(rule, key.2 + length, matches) {
                anomalies.insert(key, row);
            }
        }
    }
    anomalies
}

/// The numbers of a window, if it is an anomaly.
fn judge(rule: &Rule, end: i64, mut matches: Vec<(i64, f64)>) -> Option<Batch> {
    matches.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    let values = || matches.iter().map(|(_, value)| *value);
    let (first, last) = (matches[0], matches[matches.len() - 1]);
    let seconds = (last.0 - first.0) as f64 / 1e6;
    let mean = values().sum::<f64>() / matches.len() as f64;
    let change = (seconds > 0.0).then(|| (last.1 - first.1) / seconds);
    let (max_value, min_value) =
        (values().fold(f64::MIN, f64::max), values().fold(f64::MAX, f64::min));
    let found = match rule.threshold.aggregate {
        Aggregate::Count => Some(matches.len() as f64),
        Aggregate::Rate => Some(matches.len() as f64 / (rule.window.get() as f64 / 1e6)),
        Aggregate::Mean => Some(mean),
        Aggregate::Max => Some(max_value),
        Aggregate::Min => Some(min_value),
        Aggregate::RateOfChange => change,
    };
    found.is_some_and(|found| rule.threshold.comparison.holds(found, rule.threshold.value)).then(
        || Batch {
            end,
            count: matches.len() as u64,
            max_value,
            min_value,
            mean_value: Near(mean),
            rate_of_change: change.map(Near),
            first_match: first.0,
            last_match: last.0,
        },
    )
}

/// The rows with the highest revision, as far as they are anomalies; revisions must come in order without holes.
fn latest(rows: &[AnomalyRow], rules: &[Rule]) -> BTreeMap<Key, Batch> {
    let mut revisions: BTreeMap<Key, (u32, bool)> = BTreeMap::new();
    let mut latest = BTreeMap::new();
    for row in rows {
        let key = (row.rule.clone(), row.group().to_owned(), row.window_start.micros());
        let (revision, was_anomaly) = revisions.entry(key.clone()).or_default();
        *revision += 1;
        assert_eq!(row.revision, *revision, "{row:?}");
        assert!(row.is_anomaly || *was_anomaly, "{row:?} takes back what nobody has said");
        *was_anomaly = row.is_anomaly;
        let rule = rules.iter().find(|rule| rule.name == row.rule).expect("its rule");
        if rule.output_mode == OutputMode::Append {
            assert!(row.revision == 1 || row.closed_by == ClosedBy::Correction, "{row:?}");
        }
        latest.insert(key, batch_of(row));
    }
    latest.retain(|key, _| revisions[key].1);
    latest
}

fn batch_of(row: &AnomalyRow) -> Batch {
    Batch {
        end: row.window_end.micros(),
        count: row.count,
        max_value: row.max_value,
        min_value: row.min_value,
        mean_value: Near(row.mean_value),
        rate_of_change: row.rate_of_change.map(Near),
        first_match: row.first_match.micros(),
        last_match: row.last_match.micros(),
    }
}

/// Newest event time of each sensor and machine.
fn newest(readings: &[Reading]) -> BTreeMap<String, i64> {
    let mut newest = BTreeMap::new();
    for reading in readings {
        let machine = reading.machine_id.as_ref().map(ToString::to_string);
        for group in [Some(reading.sensor_id.to_string()), machine].into_iter().flatten() {
            let entry = newest.entry(group).or_insert(i64::MIN);
            *entry = (*entry).max(reading.timestamp.micros());
        }
    }
    newest
}

fn check_streaming_equals_batch(steps: &[Step], settings: &Settings) {
    let mut run = run(steps, settings, true);
    let mut expected = batch(&run.counted, &settings.rules);
    let is_complete = |key: &Key| key.0 == "high";
    // A sensor that is further behind another of its machine than windows are kept.
    let is_behind = run.state.figures().unmatched.behind_machine > 0;
    let is_known = |key: &Key| !(is_behind && key.0 == "machine");
    expected.retain(|key, _| is_known(key));

    run.state.handle_trigger(run.now, settings, &mut run.out);
    let mut found = latest(&run.out.anomalies, &settings.rules);
    found.retain(|key, _| is_known(key));
    for (key, row) in &found {
        assert_eq!(expected.get(key), Some(row), "{key:?} is what the batch counts");
        assert!(!is_complete(key));
    }
    let newest = newest(&run.counted);
    for (key, row) in expected.iter().filter(|(key, _)| !is_complete(key)) {
        let watermark = newest[&key.1] - settings.allowed_lateness.get();
        if row.end <= watermark {
            assert_eq!(found.get(key), Some(row), "{key:?} is closed");
        }
    }
    for row in run.state.current_rows(run.now, settings) {
        let key = (row.rule.clone(), row.group().to_owned(), row.window_start.micros());
        assert_eq!(expected.contains_key(&key), row.is_anomaly, "{key:?}");
        assert!(expected.get(&key).is_none_or(|expected| *expected == batch_of(&row)), "{key:?}");
    }

    run.finish(settings);
    let mut found = latest(&run.out.anomalies, &settings.rules);
    found.retain(|key, _| is_known(key));
    let mut closed = expected.clone();
    closed.retain(|key, _| !is_complete(key));
    assert_eq!(found, closed, "all are closed");
    assert_eq!(run.state.open_windows(), 0);
    check_findings(&run.out, &expected, settings, is_known);

    let accounting = run.state.accounting();
    assert!(accounting.is_balanced());
    assert_eq!(accounting.records_in, run.dispositions.len() as u64);
    assert_eq!(accounting.counted, run.counted.len() as u64);
}

/// One finding for each window that is an anomaly; where corrections can take it back, for each that was one at its close.
fn check_findings(
    out: &Outputs,
    expected: &BTreeMap<Key, Batch>,
    settings: &Settings,
    is_known: impl Fn(&Key) -> bool,
) {
    let ids: BTreeSet<&str> = out.findings.iter().map(|finding| finding.id.as_str()).collect();
    assert_eq!(ids.len(), out.findings.len(), "one id a window");
    for rule in &settings.rules {
        let of_rule = out.findings.iter().filter(|finding| finding.rule == rule.name);
        let mut findings: BTreeSet<Key> = of_rule
            .map(|finding| {
                (finding.rule.clone(), finding.group().to_owned(), finding.window_start.micros())
            })
            .collect();
        findings.retain(&is_known);
        let of_rule = expected.keys().filter(|key| key.0 == rule.name);
        let expected: BTreeSet<Key> = of_rule.cloned().collect();
        if rule.threshold.is_early() {
            assert_eq!(findings, expected);
        } else {
            assert!(findings.is_superset(&expected), "{findings:?} {expected:?}");
        }
    }
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
            Step::Repeat { .. }
            | Step::Pass { .. }
            | Step::Timeout
            | Step::Trigger
            | Step::SaveAndRestore
            | Step::SaveChanges => {}
        }
    }
    dispositions
}

/// A sensor's rows and findings without the aggregator's clock.
fn timeless(out: &Outputs, sensor: &str) -> (Vec<AnomalyRow>, Vec<String>) {
    let rows = out.anomalies.iter().filter(|row| row.group() == sensor);
    let rows =
        rows.map(|row| AnomalyRow { emitted_at: ProcessingTime::from_micros(0), ..row.clone() });
    let findings = out.findings.iter().filter(|finding| finding.group() == sensor);
    (rows.collect(), findings.map(|finding| finding.id.clone()).collect())
}

/// What another program has read and written between two places, taken over from its rows in another order.
fn adopt(state: &mut PartitionState, read: &Run, from: (usize, usize), settings: &Settings) {
    let (first_counted, first_seen) = from;
    let counted = &read.counted[first_counted..];
    for reading in counted.iter().rev() {
        state.adopt_time(reading, read.now, settings).expect("below the limits");
    }
    let horizon = state.adoption_horizon().unwrap_or(EventTime::from_micros(i64::MIN));
    for reading in counted.iter().rev().filter(|reading| reading.timestamp >= horizon) {
        state.adopt_reading(reading);
    }
    let mut newest = BTreeMap::new();
    for row in &read.out.anomalies {
        newest.insert((&row.rule, row.group(), row.window_start), row);
    }
    for row in newest.values() {
        state.adopt_row(&AdoptedRow {
            rule: &row.rule,
            by: if row.sensor_id.is_some() { GroupBy::Sensor } else { GroupBy::Machine },
            group: row.group(),
            window_start: row.window_start,
            is_anomaly: row.is_anomaly,
            count: row.count,
            revision: row.revision,
            is_open: row.closed_by == ClosedBy::Open,
        });
    }
    let mut counts = Accounting::default();
    for disposition in &read.dispositions[first_seen..] {
        counts.record(disposition);
    }
    for reading in counted {
        state.adopt_identity(reading.identity.as_ref().expect("numbered"), settings);
    }
    state.end_adoption(counts);
}

/// One goes on from place to place; the other one knows the first part, takes over the second, and reads the third.
fn check_adoption(parts: [&[Step]; 3], settings: &Settings) {
    let all: Vec<Step> = parts.concat();
    let sends: Vec<Step> =
        all.iter().filter(|step| matches!(step, Step::Send { .. })).cloned().collect();
    let [first, second] = [parts[0], parts[1]]
        .map(|part| part.iter().filter(|step| matches!(step, Step::Send { .. })).count());
    let mut own = run(&sends[..first], settings, false);
    own.state.handle_trigger(own.now, settings, &mut own.out);
    let until = [&sends[..first], &[Step::Trigger], &sends[first..first + second]].concat();
    let mut meanwhile = run(&until, settings, false);
    meanwhile.state.handle_trigger(meanwhile.now, settings, &mut meanwhile.out);
    let from = (own.counted.len(), own.dispositions.len());
    adopt(&mut own.state, &meanwhile, from, settings);
    assert_eq!(own.state.accounting(), meanwhile.state.accounting());

    let through = run(&sends, settings, false);
    let mut counted = meanwhile.counted.clone();
    let mut rest = Run { out: Outputs::default(), counted: Vec::new(), ..own };
    rest.dispositions.clear();
    for reading in through.sent.iter().skip(first + second) {
        rest.send(reading, settings);
    }
    assert_eq!(rest.dispositions, through.dispositions[first + second..]);
    rest.finish(settings);
    counted.append(&mut rest.counted);
    assert_eq!(counted, through.counted);

    let is_behind = through.state.figures().unmatched.behind_machine > 0;
    let is_known = |key: &Key| key.0 != "high" && !(is_behind && key.0 == "machine");
    let mut expected = batch(&counted, &settings.rules);
    let rows = [meanwhile.out.anomalies, rest.out.anomalies].concat();
    let mut found = latest(&rows, &settings.rules);
    expected.retain(|key, _| is_known(key));
    found.retain(|key, _| is_known(key));
    assert_eq!(found, expected);
    // Who is told of a window twice knows it by its id.
    let told: BTreeSet<String> =
        [meanwhile.out.findings, rest.out.findings].concat().into_iter().map(|f| f.id).collect();
    let expected: BTreeSet<String> = through.out.findings.into_iter().map(|f| f.id).collect();
    assert!(told.is_superset(&expected), "{told:?} {expected:?}");
}

proptest! {
    #[test]
    fn who_takes_over_goes_on_as_if_it_had_read_everything(
        settings in settings_strategy(),
        steps in prop_oneof![steps_strategy(15_000), steps_strategy(300_000)],
        (first, second) in (0..200_usize, 0..200_usize),
    ) {
        let (first, second) = (first.min(steps.len()), second.min(steps.len()));
        let (first, second) = (first.min(second), first.max(second));
        check_adoption([&steps[..first], &steps[first..second], &steps[second..]], &settings);
    }

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
