use shared_proto::model::{DeviceId, Generation, Quality, Sequence};

use super::*;
use crate::rule::Threshold;
use crate::time::Micros;
use crate::window::ClosedBy;

mod limits;

/// 2026-03-01T08:00:00Z, the start of a minute.
const START: i64 = 1_772_352_000_000_000;
const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;

/// A partition with its settings and everything that came out of it.
struct Bench {
    settings: Settings,
    state: PartitionState,
    out: Outputs,
    now: ProcessingTime,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        assert_eq!(settings.validate(), Ok(()));
        let state = PartitionState::new(&settings);
        let now = ProcessingTime::from_micros(START + 10 * MINUTE);
        Self { settings, state, out: Outputs::default(), now }
    }

    fn send(&mut self, reading: &Reading) -> Disposition {
        self.state.handle_reading(reading, self.now, &self.settings, &mut self.out)
    }

    fn hot(&mut self, micros: i64) -> Disposition {
        self.send(&reading("s", micros, 101.0))
    }

    fn cold(&mut self, micros: i64) -> Disposition {
        self.send(&reading("s", micros, 20.0))
    }

    fn idle(&mut self) {
        self.state.handle_timeout(self.now, &self.settings, &mut self.out);
    }

    fn trigger(&mut self) {
        self.state.handle_trigger(self.now, &self.settings, &mut self.out);
    }

    /// (count, revision, closed by) of each row.
    fn rows(&self) -> Vec<(u64, u32, ClosedBy)> {
        let short = |row: &AnomalyRow| (row.count, row.revision, row.closed_by);
        self.out.anomalies.iter().map(short).collect()
    }
}

fn settings() -> Settings {
    Settings {
        allowed_lateness: Micros::from_seconds(10),
        closed_window_retention: Micros::from_seconds(300),
        ..Settings::default()
    }
}

/// A temperature so many microseconds after [`START`].
fn reading(sensor: &str, micros: i64, value: f64) -> Reading {
    Reading::new(
        SensorId::new(sensor).expect("a valid name"),
        EventTime::from_micros(START + micros),
        MetricType::new("temperature").expect("a valid name"),
        value,
    )
}

fn identified(sequence: u64, micros: i64) -> Reading {
    let identity = Identity {
        device_id: DeviceId::new("gw-1").expect("a valid name"),
        generation: Generation(1),
        sequence: Sequence(sequence),
    };
    Reading { identity: Some(identity), ..reading("s", micros, 101.0) }
}

fn reason_of(disposition: Disposition) -> Option<&'static str> {
    match disposition {
        Disposition::DeadLetter { reason, .. } => Some(reason),
        Disposition::Counted | Disposition::Late | Disposition::Duplicate => None,
    }
}

#[test]
fn five_matches_are_no_anomaly_and_six_are() {
    let check = |matches: i64, expected: &[(u64, u32, ClosedBy)], findings: usize| {
        let mut bench = Bench::new(settings());
        for second in 0..matches {
            bench.hot(second * SECOND);
        }
        assert_eq!(bench.out.findings.len(), findings, "{matches}: finding before the close");
        bench.cold(2 * MINUTE);
        assert_eq!(bench.rows(), expected, "{matches}");
        assert_eq!(bench.out.findings.len(), findings, "{matches}");
    };
    check(5, &[], 0);
    check(6, &[(6, 1, ClosedBy::Watermark)], 1);
    check(9, &[(9, 1, ClosedBy::Watermark)], 1);
}

#[test]
fn value_at_the_limit_does_not_match_greater_than() {
    let mut bench = Bench::new(settings());
    for (second, value) in (0..).zip([100.0; 20]) {
        bench.send(&reading("s", second * SECOND, value));
    }
    for (second, value) in (20..).zip([100.000_000_1; 6]) {
        bench.send(&reading("s", second * SECOND, value));
    }
    bench.cold(2 * MINUTE);
    assert_eq!(bench.rows(), [(6, 1, ClosedBy::Watermark)]);
}

#[test]
fn each_comparison_at_below_and_above_its_limit() {
    use crate::rule::Comparison::{GreaterOrEqual, GreaterThan, LessOrEqual, LessThan};
    let check = |comparison: crate::rule::Comparison, expected: [bool; 3]| {
        assert_eq!([9.0, 10.0, 11.0].map(|value| comparison.holds(value, 10.0)), expected);
    };
    check(GreaterThan, [false, false, true]);
    check(GreaterOrEqual, [false, true, true]);
    check(LessThan, [true, false, false]);
    check(LessOrEqual, [true, true, false]);
}

#[test]
fn row_tells_window_machine_extremes_and_first_and_last_match() {
    let mut bench = Bench::new(settings());
    let machine_id = Some(MachineId::new("press-1").expect("a valid name"));
    for (second, value) in
        [(30, 104.0), (5, 110.0), (20, 101.0), (59, 102.0), (6, 103.0), (7, 105.0)]
    {
        let machine_id = machine_id.clone();
        bench.send(&Reading { machine_id, ..reading("s", second * SECOND, value) });
    }
    bench.send(&reading("s", 2 * MINUTE, 101.0));
    let at = |seconds: i64| EventTime::from_micros(START + seconds * SECOND);
    assert_eq!(
        bench.out.anomalies,
        [AnomalyRow {
            rule: "temperature-above-100".to_owned(),
            sensor_id: Some(SensorId::new("s").expect("a valid name")),
            machine_id,
            window_start: at(0),
            window_end: at(60),
            is_anomaly: true,
            count: 6,
            revision: 1,
            closed_by: ClosedBy::Watermark,
            max_value: 110.0,
            min_value: 101.0,
            mean_value: 625.0 / 6.0,
            rate_of_change: Some((102.0 - 110.0) / 54.0),
            first_match: at(5),
            last_match: at(59),
            emitted_at: bench.now,
        }]
    );
}

#[test]
fn window_closes_when_the_watermark_reaches_its_end_not_before() {
    let mut bench = Bench::new(settings());
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    bench.cold(70 * SECOND - 1);
    assert_eq!(bench.rows(), []);
    assert_eq!(bench.state.open_windows(), 1);
    bench.cold(70 * SECOND);
    assert_eq!(bench.rows(), [(6, 1, ClosedBy::Watermark)]);
    assert_eq!(bench.state.open_windows(), 0);
}

#[test]
fn last_microsecond_belongs_to_the_window_and_its_end_to_the_next() {
    let mut bench = Bench::new(Settings {
        rules: vec![Rule { threshold: Threshold::count_more_than(0), ..Rule::seed() }],
        ..settings()
    });
    bench.hot(MINUTE - 1);
    bench.hot(MINUTE);
    bench.cold(5 * MINUTE);
    let starts: Vec<i64> =
        bench.out.anomalies.iter().map(|row| row.window_start.micros() - START).collect();
    assert_eq!(starts, [0, MINUTE]);
}

#[test]
fn windows_before_1970_are_aligned_like_those_after() {
    let start = |micros: i64| {
        let since = EventTime::from_micros(i64::MIN);
        let mut starts =
            crate::window::window_starts(EventTime::from_micros(micros), &Rule::seed(), since);
        let start = starts.next().expect("a window").micros();
        assert_eq!(starts.next(), None, "tumbling windows do not overlap");
        start
    };
    assert_eq!(start(-1), -MINUTE);
    assert_eq!(start(-MINUTE), -MINUTE);
    assert_eq!(start(0), 0);
    assert_eq!(start(MINUTE - 1), 0);
}

#[test]
fn a_reading_is_in_every_sliding_window_that_holds_it() {
    let check = |seconds: i64, expected: &[i64]| {
        let rule = Rule { slide: Micros::from_seconds(25), ..Rule::seed() };
        let since = EventTime::from_micros(i64::MIN);
        let time = EventTime::from_micros(seconds * SECOND);
        let starts: Vec<i64> = crate::window::window_starts(time, &rule, since)
            .map(|start| start.micros() / SECOND)
            .collect();
        assert_eq!(starts, expected, "{seconds}");
    };
    check(0, &[0, -25, -50]);
    check(9, &[0, -25, -50]);
    check(10, &[0, -25]);
    check(24, &[0, -25]);
    check(25, &[25, 0, -25]);
}

#[test]
fn sliding_windows_find_what_falls_between_two_tumbling_ones() {
    let slide = Micros::from_seconds(30);
    let sliding = Rule { name: "sliding".to_owned(), slide, ..Rule::seed() };
    let mut bench = Bench::new(Settings { rules: vec![Rule::seed(), sliding], ..settings() });
    for second in [45, 50, 55, 60, 65, 70] {
        bench.hot(second * SECOND);
    }
    bench.cold(5 * MINUTE);
    let rows: Vec<_> = bench
        .out
        .anomalies
        .iter()
        .map(|row| (row.rule.as_str(), row.window_start.micros() - START, row.count))
        .collect();
    assert_eq!(rows, [("sliding", 30 * SECOND, 6)]);
}

fn with_rule(rule: Rule) -> Bench {
    Bench::new(Settings { rules: vec![rule], ..settings() })
}

fn threshold(text: &str) -> Threshold {
    text.parse().expect("a valid threshold")
}

#[test]
fn mean_is_judged_at_the_close_and_taken_back_by_a_correction() {
    let filter = "metric_type = temperature".parse().expect("a valid filter");
    let mut bench = with_rule(Rule { filter, threshold: threshold("mean > 90"), ..Rule::seed() });
    bench.send(&reading("s", 0, 120.0));
    assert_eq!(bench.out.findings, [], "more readings may lower the mean");
    bench.send(&reading("s", SECOND, 80.0));
    bench.cold(2 * MINUTE);
    assert_eq!(bench.rows(), [(2, 1, ClosedBy::Watermark)]);
    assert_eq!((bench.out.anomalies[0].mean_value, bench.out.findings[0].observed), (100.0, 100.0));
    assert!(!bench.out.findings[0].historical);
    bench.send(&reading("s", 2 * SECOND, 10.0));
    bench.trigger();
    bench.send(&reading("s", 3 * SECOND, 10.0));
    bench.trigger();
    let anomalies = |bench: &Bench| -> Vec<(u64, u32, bool)> {
        let rows = bench.out.anomalies.iter();
        rows.map(|row| (row.count, row.revision, row.is_anomaly)).collect()
    };
    assert_eq!(anomalies(&bench), [(2, 1, true), (3, 2, false)], "nothing is left to take back");
    bench.send(&reading("s", 4 * SECOND, 400.0));
    bench.trigger();
    assert_eq!(anomalies(&bench)[2..], [(5, 3, true)]);
    assert_eq!(bench.out.findings.len(), 1);
}

#[test]
fn maximum_is_found_at_once_and_rate_of_change_at_the_close() {
    let mut bench = with_rule(Rule { threshold: threshold("max > 150"), ..Rule::seed() });
    bench.hot(0);
    assert_eq!(bench.out.findings, []);
    bench.send(&reading("s", SECOND, 151.0));
    assert_eq!(bench.out.findings[0].observed, 151.0);

    let mut bench = with_rule(Rule { threshold: threshold("rate-of-change > 2"), ..Rule::seed() });
    bench.send(&reading("s", 10 * SECOND, 131.0));
    bench.send(&reading("s", 0, 101.0));
    assert_eq!(bench.out.findings, []);
    bench.cold(2 * MINUTE);
    assert_eq!(bench.out.findings[0].observed, 3.0);
    assert_eq!(bench.out.anomalies[0].rate_of_change, Some(3.0));
}

#[test]
fn rate_of_change_of_one_moment_is_none() {
    let mut bench = with_rule(Rule { threshold: threshold("rate-of-change >= 0"), ..Rule::seed() });
    bench.hot(0);
    bench.hot(0);
    bench.cold(2 * MINUTE);
    assert_eq!(bench.rows(), []);
}

fn of_machine(sensor: &str, machine: &str, micros: i64) -> Reading {
    let machine_id = Some(MachineId::new(machine).expect("a valid name"));
    Reading { machine_id, ..reading(sensor, micros, 101.0) }
}

#[test]
fn readings_of_all_sensors_of_a_machine_are_counted_together() {
    let mut bench = with_rule(Rule { by: GroupBy::Machine, ..Rule::seed() });
    for second in 0..3 {
        bench.send(&of_machine("a", "m", second * SECOND));
        bench.send(&of_machine("b", "m", second * SECOND));
        bench.send(&of_machine("c", "n", second * SECOND));
        bench.hot(second * SECOND);
    }
    let finding = &bench.out.findings[0];
    assert_eq!((finding.group(), finding.sensor_id.as_ref(), finding.count), ("m", None, 6));
    assert_eq!(bench.out.findings.len(), 1);
    assert_eq!(bench.state.figures().unmatched.without_machine, 3);
    assert_eq!(bench.state.figures().machines, 2);
    bench.send(&of_machine("a", "m", 2 * MINUTE));
    let row = &bench.out.anomalies[0];
    assert_eq!((row.group(), row.sensor_id.as_ref(), row.count), ("m", None, 6));
}

#[test]
fn silent_machine_closes_its_windows_and_one_sensor_far_behind_is_counted_as_such() {
    let mut bench = with_rule(Rule { by: GroupBy::Machine, ..Rule::seed() });
    for second in 0..6 {
        bench.send(&of_machine("a", "m", second * SECOND));
    }
    bench.now = bench.now.saturating_add(bench.settings.idle_timeout);
    bench.idle();
    assert_eq!(bench.rows(), [(6, 1, ClosedBy::Idle)]);
    bench.send(&of_machine("a", "m", 12 * MINUTE));
    assert_eq!(bench.send(&of_machine("b", "m", 6 * SECOND)), Disposition::Counted);
    assert_eq!(bench.state.figures().unmatched.behind_machine, 1);
    assert_eq!(bench.rows().len(), 1);
}

#[test]
fn update_mode_writes_a_row_at_each_trigger_that_follows_a_change() {
    let update = OutputMode::Update;
    let mut bench = with_rule(Rule { output_mode: update, ..Rule::seed() });
    for second in 0..5 {
        bench.hot(second * SECOND);
    }
    bench.trigger();
    assert_eq!(bench.rows(), [], "it is no anomaly yet");
    bench.hot(5 * SECOND);
    bench.hot(6 * SECOND);
    bench.trigger();
    bench.trigger();
    assert_eq!(bench.rows(), [(7, 1, ClosedBy::Open)]);
    bench.hot(7 * SECOND);
    bench.cold(2 * MINUTE);
    bench.trigger();
    assert_eq!(bench.rows()[1..], [(8, 2, ClosedBy::Watermark)]);
    bench.hot(8 * SECOND);
    bench.hot(9 * SECOND);
    bench.trigger();
    assert_eq!(bench.rows()[2..], [(10, 3, ClosedBy::Correction)]);
}

#[test]
fn complete_mode_gives_all_windows_held_and_no_row_of_anomalies() {
    let mut bench = with_rule(Rule { output_mode: OutputMode::Complete, ..Rule::seed() });
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    bench.hot(2 * MINUTE);
    assert_eq!(bench.rows(), []);
    assert_eq!(bench.out.findings.len(), 1);
    let current: Vec<_> = bench
        .state
        .current_rows(bench.now, &bench.settings)
        .iter()
        .map(|row| (row.count, row.is_anomaly, row.closed_by))
        .collect();
    assert_eq!(current, [(6, true, ClosedBy::Watermark), (1, false, ClosedBy::Open)]);
}

#[test]
fn one_sensor_far_ahead_moves_its_own_watermark_alone() {
    let mut bench = Bench::new(settings());
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    // As far ahead of this clock as is allowed, and a microsecond further.
    let limit = 10 * MINUTE + bench.settings.future_limit.get();
    assert_eq!(bench.send(&reading("ahead", limit, 101.0)), Disposition::Counted);
    let refused = bench.send(&reading("ahead", limit + 1, 101.0));
    assert_eq!(reason_of(refused), Some("timestamp-in-future"));
    assert_eq!(bench.rows(), [], "the window of the other sensor stays open");
    bench.hot(30 * SECOND);
    bench.cold(2 * MINUTE);
    assert_eq!(bench.rows(), [(7, 1, ClosedBy::Watermark)]);
}

#[test]
fn match_for_a_closed_window_writes_the_next_revision() {
    let mut bench = Bench::new(settings());
    for second in 0..5 {
        bench.hot(second * SECOND);
    }
    bench.cold(2 * MINUTE);
    assert_eq!(bench.rows(), []);
    assert_eq!(bench.hot(30 * SECOND), Disposition::Counted);
    bench.trigger();
    assert_eq!(bench.rows(), [(6, 1, ClosedBy::Correction)]);
    // Many corrections between two triggers are one row.
    for second in 31..40 {
        bench.hot(second * SECOND);
    }
    bench.trigger();
    bench.trigger();
    assert_eq!(bench.rows()[1..], [(15, 2, ClosedBy::Correction)]);
    assert_eq!(bench.out.findings.len(), 1, "one finding a window");
    assert!(bench.out.findings[0].historical, "the window was closed");
}

#[test]
fn cold_reading_for_a_closed_window_corrects_nothing() {
    let mut bench = Bench::new(settings());
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    bench.cold(2 * MINUTE);
    assert_eq!(bench.cold(30 * SECOND), Disposition::Counted);
    assert_eq!(bench.rows().len(), 1);
}

#[test]
fn reading_is_late_only_beyond_lateness_and_retention_whatever_it_matches() {
    let newest = 3600 * SECOND;
    let oldest_counted = newest - (10 + 300) * SECOND;
    for value in [20.0, 101.0] {
        let mut bench = Bench::new(settings());
        bench.now = ProcessingTime::from_micros(START + newest);
        bench.cold(newest);
        let at = |bench: &mut Bench, micros| bench.send(&reading("s", micros, value));
        assert_eq!(at(&mut bench, oldest_counted), Disposition::Counted);
        assert_eq!(at(&mut bench, oldest_counted - 1), Disposition::Late);
        assert_eq!(bench.send(&reading("other", oldest_counted - 1, value)), Disposition::Counted);
    }
}

#[test]
fn closed_window_is_forgotten_when_nothing_can_correct_it_any_more() {
    let mut bench = Bench::new(settings());
    bench.hot(0);
    bench.cold((60 + 310) * SECOND - 1);
    assert_eq!(bench.state.figures().windows, 1);
    bench.cold((60 + 310) * SECOND);
    assert_eq!(bench.state.figures().windows, 0);
}

#[test]
fn longer_retention_after_a_restart_does_not_reopen_what_was_forgotten() {
    let mut bench = Bench::new(settings());
    for second in 0..8 {
        bench.hot(second * SECOND);
    }
    bench.cold(8 * MINUTE);
    assert_eq!(bench.state.figures().windows, 0);
    bench.settings.closed_window_retention = Micros::from_seconds(3600);
    bench.state.resume(&bench.settings, bench.now);
    assert_eq!(bench.cold(8 * MINUTE), Disposition::Counted);
    assert_eq!(bench.hot(9 * SECOND), Disposition::Late);
}

#[test]
fn silent_sensors_window_closes_at_the_idle_timeout_and_is_corrected_after() {
    let mut bench = Bench::new(settings());
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    let due = bench.now.saturating_add(bench.settings.idle_timeout);
    assert_eq!(bench.state.poll_timeout(&bench.settings), Some(due));
    bench.now = ProcessingTime::from_micros(due.micros() - 1);
    bench.idle();
    assert_eq!(bench.rows(), []);
    bench.now = due;
    bench.idle();
    assert_eq!(bench.rows(), [(6, 1, ClosedBy::Idle)]);
    assert_eq!(bench.state.poll_timeout(&bench.settings), None);
    bench.hot(7 * SECOND);
    bench.trigger();
    assert_eq!(bench.rows()[1..], [(7, 2, ClosedBy::Correction)]);
    bench.cold(3 * MINUTE);
    assert_eq!(bench.rows().len(), 2, "the watermark does not close it a second time");
}

#[test]
fn sensor_heard_meanwhile_is_not_silent() {
    let mut bench = Bench::new(settings());
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    let first_due = bench.now.saturating_add(bench.settings.idle_timeout);
    bench.now = ProcessingTime::from_micros(first_due.micros() - 1);
    bench.cold(8 * SECOND);
    let second_due = bench.now.saturating_add(bench.settings.idle_timeout);
    bench.now = first_due;
    bench.idle();
    assert_eq!(bench.rows(), []);
    assert_eq!(bench.state.poll_timeout(&bench.settings), Some(second_due));
    bench.now = second_due;
    bench.idle();
    assert_eq!(bench.rows(), [(6, 1, ClosedBy::Idle)]);
}

#[test]
fn clock_set_back_does_not_keep_a_silent_sensor_waiting() {
    let mut bench = Bench::new(settings());
    bench.hot(0);
    bench.now = ProcessingTime::from_micros(bench.now.micros() - 5 * MINUTE);
    bench.hot(1);
    let due = bench.now.saturating_add(bench.settings.idle_timeout);
    assert_eq!(bench.state.poll_timeout(&bench.settings), Some(due));
}

#[test]
fn time_down_is_not_counted_as_silence() {
    let mut bench = Bench::new(settings());
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    bench.now = ProcessingTime::from_micros(bench.now.micros() + 3600 * SECOND);
    bench.state.resume(&bench.settings, bench.now);
    bench.idle();
    assert_eq!(bench.rows(), []);
}

#[test]
fn timestamps_beyond_the_limits_are_dead_letters_and_move_nothing() {
    let settings = settings();
    let latest = |bench: &Bench| bench.now.micros() + settings.future_limit.get() - START;
    let oldest = settings.oldest_event_time.micros() - START;
    let check = |micros_of: &dyn Fn(&Bench) -> i64, expected: Option<&'static str>| {
        let mut bench = Bench::new(settings.clone());
        bench.cold(0);
        let micros = micros_of(&bench);
        let sensor = if expected.is_some() { "s" } else { "other" };
        assert_eq!(reason_of(bench.send(&reading(sensor, micros, 1.0))), expected, "{micros}");
        let watermark = EventTime::from_micros(START - 10 * SECOND);
        assert_eq!(bench.state.watermark("s", &bench.settings), Some(watermark));
        assert!(bench.state.accounting().is_balanced());
    };
    check(&|bench| latest(bench), None);
    check(&|bench| latest(bench) + 1, Some("timestamp-in-future"));
    check(&|_| i64::MAX - START, Some("timestamp-in-future"));
    check(&|_| oldest, None);
    check(&|_| oldest - 1, Some("timestamp-too-old"));
    check(&|_| i64::MIN + SECOND, Some("timestamp-too-old"));
}

#[test]
fn repeat_of_a_sequence_is_a_duplicate_and_counts_nothing() {
    let mut bench = Bench::new(settings());
    for sequence in 1..=5 {
        bench.send(&identified(sequence, 0));
    }
    for sequence in 1..=5 {
        assert_eq!(bench.send(&identified(sequence, 0)), Disposition::Duplicate);
    }
    assert_eq!(bench.out.findings.len(), 0);
    assert_eq!(bench.send(&identified(6, 0)), Disposition::Counted);
    assert_eq!(bench.out.findings.len(), 1);
    let accounting = bench.state.accounting();
    assert_eq!((accounting.records_in, accounting.counted, accounting.duplicates), (11, 6, 5));
}

#[test]
fn reading_that_is_sent_again_by_a_person_counts_as_the_first_time() {
    let filter = "metric_type = temperature and device_id = gw-1".parse().expect("valid");
    let mut bench = with_rule(Rule { filter, ..Rule::seed() });
    for sequence in 1..=5 {
        bench.send(&identified(sequence, 0));
    }
    let again = identified(5, SECOND);
    let Bench { settings, state, out, now } = &mut bench;
    assert_eq!(state.handle_replay(&again, *now, settings, out), Disposition::Counted);
    assert_eq!(bench.out.findings.len(), 1, "the rule sees whose it is");
}

#[test]
fn another_threshold_judges_closed_windows_anew_without_a_finding() {
    let mut bench = Bench::new(settings());
    for (minute, matches) in (0..).zip([4, 6, 8]) {
        for second in 0..matches {
            bench.hot(minute * MINUTE + second * SECOND);
        }
    }
    bench.cold(4 * MINUTE);
    assert_eq!(bench.rows(), [(6, 1, ClosedBy::Watermark), (8, 1, ClosedBy::Watermark)]);
    let findings = bench.out.findings.len();
    let mut change = |threshold: Threshold| {
        bench.settings.rules[0].threshold = threshold;
        bench.state.change_rules(&bench.settings.rules);
        bench.trigger();
        let rows = bench.out.anomalies.drain(..);
        rows.map(|row| (row.count, row.revision, row.is_anomaly)).collect::<Vec<_>>()
    };
    change(Threshold::count_more_than(5));
    assert_eq!(change(Threshold::count_more_than(3)), [(4, 1, true)]);
    assert_eq!(change(Threshold::count_more_than(7)), [(4, 2, false), (6, 2, false)]);
    assert_eq!(change(Threshold::count_more_than(7)), []);
    assert_eq!(bench.out.findings.len(), findings);
    let judged_after: Vec<_> = bench.state.judged_after().collect();
    // Lateness and retention behind the newest reading.
    assert_eq!(judged_after, [EventTime::from_micros(START + (240 - 10 - 300) * SECOND)]);
}

#[test]
fn bad_quality_is_kept_and_moves_the_watermark_but_matches_no_rule() {
    let check = |quality: Option<Quality>, expected: usize| {
        let mut bench = Bench::new(settings());
        for second in 0..6 {
            let hot = Reading { quality, ..reading("s", second * SECOND, 101.0) };
            assert_eq!(bench.send(&hot), Disposition::Counted);
        }
        bench.send(&Reading { quality: Some(Quality::Bad), ..reading("s", 2 * MINUTE, 1.0) });
        assert_eq!(bench.rows().len(), expected, "{quality:?}");
    };
    check(None, 1);
    check(Some(Quality::Good), 1);
    check(Some(Quality::Uncertain), 1);
    check(Some(Quality::Bad), 0);
}

#[test]
fn rules_count_side_by_side_in_windows_of_their_own_length() {
    let long = Rule {
        name: "warm".to_owned(),
        filter: "metric_type = temperature and value > 50".parse().expect("a valid filter"),
        window: Micros::from_seconds(300),
        slide: Micros::from_seconds(300),
        threshold: Threshold::count_more_than(1),
        ..Rule::seed()
    };
    let filter = "metric_type = pressure and value > 100".parse().expect("a valid filter");
    let other = Rule { name: "pressure".to_owned(), filter, ..Rule::seed() };
    let rules = vec![Rule::seed(), long, other];
    let mut bench = Bench::new(Settings { rules, ..settings() });
    for second in 0..6 {
        bench.hot(second * SECOND);
    }
    bench.send(&reading("s", 4 * MINUTE, 60.0));
    bench.cold(6 * MINUTE);
    let rows: Vec<_> =
        bench.out.anomalies.iter().map(|row| (row.rule.as_str(), row.count)).collect();
    assert_eq!(rows, [("temperature-above-100", 6), ("warm", 7)]);
}

#[test]
fn finding_is_historical_for_a_window_that_ended_too_long_ago() {
    let check = |age: i64, expected: bool| {
        let mut bench = Bench::new(settings());
        bench.now = ProcessingTime::from_micros(START + MINUTE + age);
        for second in 0..6 {
            bench.hot(second * SECOND);
        }
        assert_eq!(bench.out.findings[0].historical, expected, "{age}");
    };
    check(3600 * SECOND, false);
    check(3600 * SECOND + 1, true);
}

#[test]
fn alert_id_depends_on_rule_sensor_and_window_alone() {
    let id = |rule: &str, sensor: &str, start: i64| {
        crate::alert::alert_id(rule, sensor, EventTime::from_micros(start))
    };
    // From Python's hashlib over struct.pack("<Q", 1) + b"r" + struct.pack("<Q", 1) + b"s" + struct.pack("<q", 0).
    let expected = "53929eb20cf58b402457d0caa0d294c04d9c326dac6d97c2494c6f12a51f98ad";
    assert_eq!(id("r", "s", 0), expected);
    for other in [id("q", "s", 0), id("r", "t", 0), id("r", "s", 1), id("rs", "s", 0)] {
        assert_ne!(other, id("r", "s", 0));
    }
    assert_ne!(id("ab", "c", 0), id("a", "bc", 0));
}

#[test]
fn changed_rule_starts_anew_and_an_unchanged_one_keeps_its_count() {
    let above = |limit: u32| {
        format!("metric_type = temperature and value > {limit}").parse().expect("a valid filter")
    };
    let second = Rule { name: "second".to_owned(), filter: above(90), ..Rule::seed() };
    let mut bench =
        Bench::new(Settings { rules: vec![second.clone(), Rule::seed()], ..settings() });
    for second in 0..4 {
        bench.hot(second * SECOND);
    }
    let kept = Rule { threshold: Threshold::count_more_than(3), severity: 0, ..Rule::seed() };
    bench.settings.rules = vec![kept, Rule { filter: above(95), ..second }];
    let resumed = bench.state.resume(&bench.settings, bench.now);
    assert_eq!(resumed, Resumed { windows_forgotten: 1 });
    assert_eq!(bench.state.figures().windows, 1);
    bench.hot(5 * SECOND);
    let findings: Vec<_> =
        bench.out.findings.iter().map(|finding| (finding.rule.as_str(), finding.count)).collect();
    assert_eq!(findings, [("temperature-above-100", 5)]);
    assert_eq!(bench.state.figures().windows, 1, "a window seen in part is not judged");
    bench.hot(MINUTE);
    assert_eq!(bench.state.figures().windows, 3);
}

#[test]
fn identity_of_other_topics_is_new_once() {
    let settings = settings();
    let mut state = PartitionState::new(&settings);
    let identity = identified(1, 0).identity;
    assert_eq!(state.handle_identity(identity.as_ref(), &settings), Disposition::Counted);
    assert_eq!(state.handle_identity(identity.as_ref(), &settings), Disposition::Duplicate);
    assert_eq!(state.handle_identity(None, &settings), Disposition::Counted);
    assert_eq!(state.handle_identity(None, &settings), Disposition::Counted);
    state.handle_undecodable();
    let accounting = state.accounting();
    assert_eq!((accounting.counted, accounting.duplicates, accounting.dead_letters), (3, 1, 1));
    assert!(accounting.is_balanced());
}

#[test]
fn saved_state_that_contradicts_itself_is_refused() {
    let mut bench = Bench::new(settings());
    bench.hot(0);
    let saved = serde_json::to_string(&bench.state).expect("serialisable");
    let check = |from: &str, to: &str, expected: &str| {
        assert!(saved.contains(from), "{saved}");
        let error = serde_json::from_str::<PartitionState>(&saved.replacen(from, to, 1))
            .expect_err("refused")
            .to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("[2,{", "[3,{", "has format 3, this version reads 2");
    check(&saved, r#"{"format":1,"rules":[]}"#, "has format 1, this version reads 2");
    check("1772352060000000,0,", "1772352060000001,0,", "fit no rule");
    check(r#""since":["#, r#""since":[0,"#, "1 rules and 2 times");
    let sensor =
        saved.split_once(r#""sensors":["#).and_then(|(_, rest)| rest.split_once(r#"],"machines"#));
    let (sensor, _) = sensor.expect("the sensors");
    check(sensor, &format!("{sensor},{sensor}"), "twice");
}
