use std::collections::BTreeMap;

use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType};

use super::*;
use crate::rule::Rule;
use crate::time::Micros;

/// 2026-03-01T08:00:00Z, a Sunday.
const START: i64 = 1_772_352_000_000_000;
const MINUTE: i64 = 60_000_000;

/// A book with a clock that stands at the minute `minute`.
struct Bench {
    book: AlertBook,
    settings: AlertSettings,
    minute: i64,
    out: Vec<AlertEvent>,
}

fn at(minute: i64) -> ProcessingTime {
    ProcessingTime::from_micros(START + minute * MINUTE)
}

fn machine(name: &str) -> MachineId {
    MachineId::new(name).expect("a valid name")
}

fn sensor(name: &str) -> SensorId {
    SensorId::new(name).expect("a valid name")
}

/// Of the one-minute window that begins at this minute.
fn finding(of: &str, minute: i64) -> Finding {
    let rule = Rule::seed();
    let start = EventTime::from_micros(START + minute * MINUTE);
    Finding {
        id: alert_id(&rule.name, of, start),
        rule: rule.name,
        severity: rule.severity,
        sensor_id: Some(sensor(of)),
        machine_id: of.split_once('/').map(|(name, _)| machine(name)),
        window_start: start,
        window_end: start.saturating_add_micros(MINUTE),
        count: 6,
        threshold: rule.threshold,
        observed: 6.0,
        fired_at: at(minute),
        historical: false,
    }
}

fn event(event_type: MachineEventType, minute: i64, trip: &str) -> MachineEvent {
    MachineEvent {
        event_type,
        machine_id: machine("press-1"),
        timestamp: at(minute).as_event_time(),
        identity: None,
        historical: false,
        details: MachineEventDetails {
            trip_id: (!trip.is_empty()).then(|| trip.to_owned()),
            ..MachineEventDetails::default()
        },
    }
}

fn maintenance(from: i64, until: i64) -> Suppression {
    Suppression {
        name: "spindle".to_owned(),
        kind: SuppressionKind::Maintenance,
        rules: Vec::new(),
        machines: Vec::new(),
        when: SuppressionTime::At { from: at(from), until: at(until) },
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut AlertSettings)) -> Self {
        let mut settings = AlertSettings::default();
        change(&mut settings);
        assert_eq!(settings.validate(), Ok(()));
        Self { book: AlertBook::default(), settings, minute: 0, out: Vec::new() }
    }

    fn find(&mut self, finding: Finding) -> String {
        self.out.clear();
        self.book.handle_finding(finding, at(self.minute), &self.settings, &mut self.out);
        self.words()
    }

    fn take(&mut self, event: &MachineEvent) -> String {
        self.out.clear();
        self.book.handle_machine_event(event, at(self.minute), &self.settings, &mut self.out);
        self.words()
    }

    fn pass(&mut self, minute: i64) -> String {
        self.minute = minute;
        self.out.clear();
        self.book.handle_time(at(minute), &self.settings, &mut self.out);
        self.words()
    }

    fn timeout(&self) -> Option<i64> {
        let timeout = self.book.poll_timeout(&self.settings);
        timeout.map(|time| (time.micros() - START) / MINUTE)
    }

    /// What was told: `fired 1`, `resolved 2 historical`, …
    fn words(&self) -> String {
        let word = |event: &AlertEvent| {
            let historical = if event.historical { " historical" } else { "" };
            let by = event.suppressed_by.as_ref().map_or(String::new(), |by| format!(" {by}"));
            format!("{} {}{historical}{by}", event.state.as_str(), event.revision)
        };
        self.out.iter().map(word).collect::<Vec<_>>().join(", ")
    }
}

#[test]
fn one_alert_lasts_over_all_findings_of_a_machine_and_rule() {
    let mut bench = Bench::new();
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1");
    let fired = bench.out[0].clone();
    assert_eq!(fired.alert_id, alert_id("temperature-above-100", "press-1", fired.window_start));
    assert_eq!(fired.event_id(), format!("{}-1", fired.alert_id));
    assert_eq!((fired.subject(), fired.threshold.as_str()), ("press-1", "count > 5"));
    let worse = Finding { count: 9, observed: -9.0, ..finding("press-1/water", 1) };
    assert_eq!(bench.find(worse), "");
    assert_eq!(bench.find(finding("press-1/oil", 2)), "");
    assert_eq!(bench.find(finding("press-2/oil", 2)), "fired 1", "another machine");
    assert_eq!(bench.timeout(), Some(3 + 5 + 1), "from the window's end, it is ahead of the clock");
    assert_eq!(bench.pass(8), "");
    assert_eq!(bench.pass(9), "resolved 2, resolved 2");
    let over = AlertEvent {
        revision: 2,
        state: AlertState::Resolved,
        window_end: EventTime::from_micros(START + 3 * MINUTE),
        findings: 3,
        count: 9,
        observed: -9.0,
        changed_at: at(9),
        resolved_at: Some(at(9)),
        ..fired
    };
    assert_eq!(bench.out[0], over);
    assert_eq!(bench.timeout(), None);
}

#[test]
fn sensors_have_alerts_of_their_own_where_the_settings_say_so_or_no_machine_is_known() {
    let mut bench = Bench::with(|settings| settings.by = AlertGroup::Sensor);
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1");
    assert_eq!(bench.out[0].alert_id, finding("press-1/oil", 0).id);
    assert_eq!(bench.find(finding("press-1/water", 0)), "fired 1");
    let by_machine = Finding { sensor_id: None, ..finding("press-1/oil", 0) };
    assert_eq!(bench.find(by_machine), "fired 1", "a rule that counts by machine");
    let mut bench = Bench::new();
    assert_eq!(bench.find(finding("s1", 0)), "fired 1");
    assert_eq!(bench.find(finding("s2", 0)), "fired 1");
    assert_eq!(bench.out[0].subject(), "s2");
}

#[test]
fn a_later_finding_resolves_first_what_was_over_in_event_time() {
    let mut bench = Bench::new();
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1");
    // The window ended at 1; five minutes and a window's length later is 7.
    assert_eq!(bench.find(finding("press-1/oil", 7)), "");
    assert_eq!(bench.find(finding("press-1/oil", 15)), "resolved 2, fired 1");
    assert_eq!(bench.out[0].resolved_at, Some(at(0)));
    assert_ne!(bench.out[0].alert_id, bench.out[1].alert_id);
}

#[test]
fn a_window_far_ahead_of_the_clock_does_not_keep_an_alert_open() {
    for (ahead, expected) in [(58, 59 + 6), (59, 6), (600, 6)] {
        let mut bench = Bench::new();
        assert_eq!(bench.find(finding("press-1/oil", ahead)), "fired 1");
        assert_eq!(bench.timeout(), Some(expected), "begins {ahead} minutes ahead");
    }
    let mut bench = Bench::new();
    bench.minute = 30;
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1");
    assert_eq!(bench.timeout(), Some(36), "behind the clock: from when it came");
}

#[test]
fn a_repeat_changes_nothing_while_the_alert_lasts_and_after() {
    let mut bench = Bench::new();
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1");
    assert_eq!(bench.find(finding("press-1/oil", 1)), "");
    let before = bench.book.clone();
    bench.minute = 3;
    assert_eq!(bench.find(finding("press-1/oil", 0)), "");
    assert_eq!(bench.find(finding("press-1/oil", 1)), "");
    assert_eq!(bench.book, before, "not even its silence");
    assert_eq!(bench.pass(20), "resolved 2");
    assert_eq!(bench.find(finding("press-1/oil", 1)), "");
    assert_eq!(bench.find(finding("press-1/oil", 0)), "");
}

#[test]
fn an_old_repeat_is_counted_again_and_tells_nobody() {
    let mut bench = Bench::new();
    let count = i64::try_from(FINDINGS_REMEMBERED_MAX).expect("small");
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1");
    for minute in 1..=count {
        assert_eq!(bench.find(finding("press-1/oil", minute)), "");
    }
    assert_eq!(bench.find(finding("press-1/oil", 1)), "", "still remembered");
    assert_eq!(bench.find(finding("press-1/oil", 0)), "", "forgotten");
    let findings = bench.book.open_alerts().next().expect("open").findings;
    assert_eq!(findings, count as u64 + 2);
}

#[test]
fn a_late_finding_of_a_resolved_group_is_history() {
    let mut bench = Bench::new();
    assert_eq!(bench.find(finding("press-1/oil", 10)), "fired 1");
    assert_eq!(bench.pass(60), "resolved 2");
    assert_eq!(bench.find(finding("press-1/oil", 4)), "fired 1 historical");
    let late = bench.out[0].alert_id.clone();
    assert_eq!(late, alert_id("temperature-above-100", "press-1", bench.out[0].window_start));
    assert_eq!(bench.find(finding("press-1/oil", 5)), "", "more of it");
    assert_eq!(bench.pass(90), "resolved 2 historical");
    assert_eq!(bench.find(finding("press-1/oil", 90)), "fired 1", "and life goes on");
    assert_eq!(bench.pass(120), "resolved 2");
    // Another sensor of that machine was found in the window that the alert began with.
    assert_eq!(bench.find(finding("press-1/water", 4)), "fired 3 historical");
    assert_eq!(bench.out[0].alert_id, late, "the same alert goes on");
}

#[test]
fn a_present_finding_makes_a_historical_alert_one_for_people() {
    let mut bench = Bench::new();
    let old = Finding { historical: true, ..finding("press-1/oil", 0) };
    assert_eq!(bench.find(old), "fired 1 historical");
    assert_eq!(bench.find(Finding { historical: true, ..finding("press-1/oil", 1) }), "");
    assert_eq!(bench.find(finding("press-1/oil", 2)), "fired 2");
    assert_eq!(bench.find(finding("press-1/oil", 3)), "");
    assert_eq!(bench.pass(30), "resolved 3");
}

#[test]
fn suppressed_alert_is_told_when_the_reason_ends_and_it_lasts() {
    let mut bench = Bench::with(|settings| settings.suppressions = vec![maintenance(0, 4)]);
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1 maintenance:spindle");
    assert_eq!(bench.timeout(), Some(4));
    assert_eq!(bench.pass(3), "");
    assert_eq!(bench.pass(4), "fired 2");
    assert_eq!(bench.out[0].fired_at, at(0));
    assert_eq!(bench.out[0].changed_at, at(4));
    assert_eq!(bench.timeout(), Some(1 + 6));
    assert_eq!(bench.pass(7), "resolved 3");
}

#[test]
fn suppressed_alert_that_was_never_told_resolves_in_silence() {
    let mut bench = Bench::with(|settings| settings.suppressions = vec![maintenance(0, 30)]);
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1 maintenance:spindle");
    assert_eq!(bench.pass(7), "resolved 2 maintenance:spindle");
    // Both are due when the aggregator looks after a pause: it is over, so nobody is told.
    assert_eq!(bench.find(finding("press-1/oil", 8)), "fired 1 maintenance:spindle");
    assert_eq!(bench.pass(100), "resolved 2 maintenance:spindle");
}

#[test]
fn alert_that_was_told_before_the_reason_began_is_resolved_aloud() {
    let mut bench = Bench::with(|settings| settings.suppressions = vec![maintenance(2, 30)]);
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1");
    bench.minute = 3;
    assert_eq!(bench.find(finding("press-1/oil", 2)), "");
    assert_eq!(bench.pass(20), "resolved 2");
}

#[test]
fn one_reason_after_another_keeps_an_alert_silent_until_the_last_ends() {
    let shelved = Suppression {
        name: "noise".to_owned(),
        kind: SuppressionKind::Shelved { by: "Kim".to_owned(), reason: "loose cable".to_owned() },
        rules: vec!["temperature-above-100".to_owned()],
        machines: vec![machine("press-1")],
        when: SuppressionTime::At { from: at(2), until: at(5) },
    };
    let suppressions = vec![maintenance(0, 3), shelved];
    let mut bench = Bench::with(|settings| settings.suppressions = suppressions);
    assert_eq!(bench.find(finding("press-1/oil", 0)), "fired 1 maintenance:spindle");
    assert_eq!(bench.pass(3), "");
    assert_eq!(bench.timeout(), Some(5));
    assert_eq!(bench.find(finding("press-2/oil", 3)), "fired 1", "another machine");
    assert_eq!(bench.pass(4), "");
    let removed = bench.settings.suppressions.pop();
    assert_eq!(bench.timeout(), Some(4), "the settings have changed");
    bench.settings.suppressions.extend(removed);
    assert_eq!(bench.pass(5), "fired 2");
}

#[test]
fn trip_lasts_until_the_reset_of_its_machine() {
    use MachineEventType::{Reset, Trip, TripSuppressed};
    let mut bench = Bench::new();
    let mut trip = event(Trip, 0, "press-1-7");
    trip.details.cause = Some("limit".to_owned());
    trip.details.rule = Some("spindle-hot".to_owned());
    trip.details.sensor_id = Some(sensor("press-1/oil"));
    trip.details.value = Some(103.5);
    trip.details.limit = Some(100.0);
    trip.details.detail = Some("ordered by mqtt".to_owned());
    assert_eq!(bench.take(&trip), "fired 1");
    let fired = &bench.out[0];
    assert_eq!(fired.alert_id, text_id(&["trip", "press-1", "press-1-7"]));
    assert_eq!((fired.rule.as_str(), fired.severity, fired.count), ("trip", 1, 1));
    assert_eq!(fired.trip_id.as_deref(), Some("press-1-7"));
    let detail = "cause limit, trip press-1-7, rule spindle-hot, sensor press-1/oil, value 103.5, limit 100; \
                  ordered by mqtt";
    assert_eq!(fired.detail, detail);
    assert_eq!(bench.take(&trip), "", "a repeat");
    assert_eq!(bench.timeout(), None);
    assert_eq!(bench.pass(100_000), "", "whatever time passes");
    let other = MachineEvent { machine_id: machine("press-2"), ..event(Reset, 5, "") };
    assert_eq!(bench.take(&other), "");
    assert_eq!(bench.take(&event(Reset, -5, "press-1-6")), "", "of the trip before");
    assert_eq!(bench.take(&event(TripSuppressed, 4, "press-1-8")), "", "nothing was stopped");
    assert_eq!(bench.take(&event(Reset, 5, "press-1-7")), "resolved 2");
    assert_eq!(bench.take(&trip), "", "a repeat of what is over");
    assert_eq!(bench.take(&event(Trip, 6, "press-1-8")), "fired 1");
    assert_eq!(bench.take(&event(Reset, 6, "")), "resolved 2");
}

#[test]
fn stop_that_is_not_confirmed_is_an_alert_until_it_is_or_the_reset() {
    use MachineEventType::{Reset, StopConfirmed, StopNotConfirmed, Trip};
    let mut bench = Bench::new();
    assert_eq!(bench.take(&event(Trip, 0, "t")), "fired 1");
    assert_eq!(bench.take(&event(StopNotConfirmed, 1, "t")), "fired 1");
    assert_eq!(bench.out[0].severity, 0);
    assert_eq!(bench.take(&event(StopNotConfirmed, 2, "t")), "", "escalated");
    assert_eq!(bench.take(&event(StopConfirmed, 3, "t")), "resolved 2");
    assert_eq!((bench.out[0].rule.as_str(), bench.out[0].findings), ("stop-not-confirmed", 2));
    assert_eq!(bench.take(&event(StopNotConfirmed, 4, "t")), "fired 3", "ordered anew");
    assert_eq!(bench.take(&event(Reset, 5, "t")), "resolved 2, resolved 4");
    bench.settings.event_severities = BTreeMap::from([(AlertingEvent::Trip, 1)]);
    assert_eq!(bench.take(&event(StopNotConfirmed, 6, "u")), "", "not asked for");
}

#[test]
fn historical_events_fire_and_resolve_as_history_also_in_the_wrong_order() {
    use MachineEventType::{Reset, Trip};
    let mut bench = Bench::new();
    let old = |event| MachineEvent { historical: true, ..event };
    assert_eq!(bench.take(&old(event(Trip, 0, "a"))), "fired 1 historical");
    assert_eq!(bench.take(&old(event(Reset, 1, "a"))), "resolved 2 historical");
    assert_eq!(bench.take(&event(Reset, 9, "b")), "");
    assert_eq!(bench.take(&event(Trip, 8, "b")), "fired 1 historical, resolved 2 historical");
    assert_eq!(bench.take(&event(Trip, 8, "b")), "");
    assert_eq!(bench.take(&event(Trip, 10, "c")), "fired 1");
}

#[test]
fn alarms_and_sensor_faults_end_with_what_they_are_about() {
    use MachineEventType::{Alarm, AlarmCleared, SensorFault, SensorRecovered};
    let severities = AlertingEvent::ALL.map(|event| (event, 3));
    let mut bench = Bench::with(|settings| settings.event_severities = severities.into());
    let about = |event_type, minute, rule: &str| {
        let mut event = event(event_type, minute, "");
        event.details.rule = Some(rule.to_owned());
        event.details.cause = Some(rule.to_owned());
        event
    };
    assert_eq!(bench.take(&about(Alarm, 0, "hot")), "fired 1");
    let first = bench.out[0].alert_id.clone();
    assert_eq!(bench.take(&about(Alarm, 0, "loud")), "fired 1");
    assert_ne!(bench.out[0].alert_id, first);
    assert_eq!(bench.take(&about(SensorFault, 0, "hot")), "fired 1");
    assert_eq!(bench.take(&about(AlarmCleared, 1, "hot")), "resolved 2");
    assert_eq!(bench.out[0].alert_id, first);
    assert_eq!(bench.take(&about(Alarm, 2, "hot")), "fired 1", "another one");
    assert_eq!(bench.take(&about(SensorRecovered, 3, "hot")), "resolved 2");
    assert_eq!(bench.book.open_count(), 2);
}

#[test]
fn one_alert_too_many_resolves_the_oldest_and_says_so() {
    let mut bench = Bench::with(|settings| settings.open_max = 2);
    assert_eq!(bench.find(finding("z/oil", 0)), "fired 1");
    assert_eq!(bench.find(finding("y/oil", 0)), "fired 1");
    assert_eq!(bench.find(finding("x/oil", 0)), "resolved 2, fired 1");
    assert_eq!(bench.out[0].subject(), "z");
    let detail = "resolved because too many alerts are open (alerting.open-max), it may last";
    assert_eq!(bench.out[0].detail, detail);
    assert_eq!(bench.book.open_count(), 2);
    assert_eq!(bench.find(finding("z/oil", 1)), "resolved 2, fired 1", "it does last");
}

#[test]
fn what_is_remembered_has_its_limits() {
    let mut bench = Bench::with(|settings| settings.open_max = 1);
    for number in 0..PAST_MAX + 2 {
        bench.find(finding(&format!("m{number}/s"), 0));
    }
    assert_eq!(bench.find(finding("m1/s", 0)), "", "still remembered");
    assert_eq!(bench.find(finding("m0/s", 0)), "resolved 2, fired 1", "forgotten");
    for number in 0..=ENDS_MAX {
        let name = machine(&format!("m{number}"));
        let reset = event(MachineEventType::Reset, 9, "");
        bench.take(&MachineEvent { machine_id: name, ..reset });
    }
    let trip =
        |name| MachineEvent { machine_id: machine(name), ..event(MachineEventType::Trip, 0, "t") };
    assert_eq!(bench.take(&trip("m0")), "resolved 2, fired 1", "its reset is forgotten");
    let words = "resolved 2, fired 1 historical, resolved 2 historical";
    assert_eq!(bench.take(&trip("m1")), words);
    let long = MachineEventDetails {
        detail: Some("ü".repeat(DETAIL_BYTES_MAX)),
        trip_id: Some("t".repeat(257)),
        ..MachineEventDetails::default()
    };
    bench.take(&MachineEvent { details: long, ..trip("m2") });
    let fired = &bench.out[0];
    assert!(fired.detail.len() <= DETAIL_BYTES_MAX && fired.trip_id.is_none(), "{fired:?}");
}

#[test]
fn book_that_names_an_entry_twice_is_refused() {
    let mut bench = Bench::new();
    assert!(bench.book.is_empty());
    bench.find(finding("press-1/oil", 0));
    assert!(!bench.book.is_empty());
    let text = serde_json::to_string(&bench.book).expect("serialisable");
    let book: AlertBook = serde_json::from_str(&text).expect("readable");
    assert_eq!(book, bench.book);
    let mut spoilt: serde_json::Value = serde_json::from_str(&text).expect("readable");
    let entries = spoilt["open"].as_array_mut().expect("a list");
    entries.push(entries[0].clone());
    let error = serde_json::from_value::<AlertBook>(spoilt).expect_err("twice");
    assert!(error.to_string().contains("entry 0 of the alerts stands twice"), "{error}");
}

#[test]
fn weekly_suppression_follows_the_clock_of_its_zone_over_midnight() {
    use Weekday::{Saturday, Sunday};
    // Sunday 2026-03-01T08:00:00Z is 09:00 in the zone.
    let weekly = |days: &[Weekday], from_minute, to_minute| SuppressionTime::Weekly {
        days: days.to_vec(),
        from_minute,
        to_minute,
        offset_minutes: 60,
    };
    let check = |time: SuppressionTime, minute, expected: Option<i64>| {
        assert_eq!(time.in_force_until(at(minute)), expected.map(at), "{time:?} at {minute}");
    };
    check(weekly(&[Sunday], 540, 600), 0, Some(60));
    check(weekly(&[Sunday], 540, 600), -1, None);
    check(weekly(&[Sunday], 540, 600), 60, None);
    check(weekly(&[Saturday], 540, 600), 0, None);
    check(weekly(&[Saturday], 1320, 541), 0, Some(1));
    check(weekly(&[Saturday], 1320, 541), 1, None);
    check(weekly(&[Sunday], 1320, 541), 0, None);
    check(weekly(&[Sunday], 1320, 541), 780, Some(781 + 660));
    check(weekly(&[Sunday, Saturday], 0, 1440), 0, Some(900));
    check(weekly(&[Sunday], 540, 600), 7 * 1440, Some(7 * 1440 + 60));
}

fn shelved(when: SuppressionTime) -> Suppression {
    Suppression {
        kind: SuppressionKind::Shelved { by: "b".repeat(64), reason: "r".repeat(256) },
        when,
        ..maintenance(0, 1)
    }
}

fn weekly(
    days: &[Weekday],
    from_minute: u16,
    to_minute: u16,
    offset_minutes: i16,
) -> SuppressionTime {
    SuppressionTime::Weekly { days: days.to_vec(), from_minute, to_minute, offset_minutes }
}

/// Thirty days and some minutes.
fn month_and(minutes: i64) -> SuppressionTime {
    SuppressionTime::At { from: at(0), until: at(30 * 1440 + minutes) }
}

fn check_settings(change: impl Fn(&mut AlertSettings), expected: &[&str]) {
    let mut settings = AlertSettings::default();
    change(&mut settings);
    let faults = settings.validate().err().unwrap_or_default();
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(texts, expected);
}

fn check_suppression(suppression: Suppression, expected: &[&str]) {
    check_settings(|settings| settings.suppressions = vec![suppression.clone()], expected);
}

#[test]
fn settings_at_every_limit_are_valid() {
    let names = vec!["r".repeat(64); SUPPRESSION_NAMES_MAX];
    let edge = weekly(&[Weekday::Sunday], 1439, 1440, -840);
    check_suppression(shelved(month_and(0)), &[]);
    check_suppression(Suppression { when: month_and(1), ..maintenance(0, 1) }, &[]);
    check_suppression(Suppression { when: edge, ..maintenance(0, 1) }, &[]);
    check_suppression(Suppression { rules: names, ..maintenance(0, 1) }, &[]);
    check_settings(|settings| settings.open_max = OPEN_LIMIT, &[]);
    check_settings(|settings| settings.resolve_after = Micros::new(0), &[]);
}

#[test]
fn each_fault_of_the_settings_is_named_with_its_limit_and_its_remedy() {
    check_settings(
        |settings| settings.resolve_after = Micros::new(-1),
        &["alerting.resolve-after is -0.000001s, 0s to 31622400s are allowed: change it"],
    );
    for (found, text) in [
        (0, "alerting.open-max is 0, 1 to 10000 are allowed: change it"),
        (10_001, "alerting.open-max is 10001, 1 to 10000 are allowed: change it"),
    ] {
        check_settings(|settings| settings.open_max = found, &[text]);
    }
    check_settings(
        |settings| settings.event_severities = [(AlertingEvent::Trip, 5)].into(),
        &["alerting.machine-events.trip is 5, 0 (critical) to 4 are allowed: change it"],
    );
    check_settings(
        |settings| settings.suppressions = vec![maintenance(0, 1); 2],
        &["suppression name \"spindle\" is used twice: rename one"],
    );
    let numbered = |number: usize| Suppression { name: number.to_string(), ..maintenance(0, 1) };
    check_settings(
        |settings| settings.suppressions = (0..257).map(numbered).collect(),
        &["257 suppressions, at most 256 are allowed: remove those that are over"],
    );
}

#[test]
fn each_fault_of_a_suppression_is_named_with_its_limit_and_its_remedy() {
    check_suppression(
        shelved(month_and(1)),
        &["suppression \"spindle\" shelves for 2592060s, at most 2592000s (30 days) are allowed: \
           set an earlier end, or change the rule"],
    );
    check_suppression(
        shelved(weekly(&[Weekday::Sunday], 0, 1440, 0)),
        &["suppression \"spindle\" shelves every week: give it a begin and an end, or make it a \
           maintenance"],
    );
    check_suppression(
        maintenance(1, 1),
        &["suppression \"spindle\" ends at 2026-03-01T08:01:00.000000Z, not after its begin at \
           2026-03-01T08:01:00.000000Z: set a later end"],
    );
    let never = Suppression { when: weekly(&[], 1440, 1440, 841), ..maintenance(0, 1) };
    check_suppression(
        never,
        &[
            "suppression \"spindle\" has no days: name at least one, such as \"saturday\"",
            "suppression \"spindle\" is from minute 1440 to minute 1440: the first is 0 to 1439, \
             the second 1 to 1440 and another one",
            "zone of suppression \"spindle\" is 841 minutes from UTC, at most 840 either way are \
             allowed: change it",
        ],
    );
    check_suppression(
        Suppression { rules: vec![String::new()], ..maintenance(0, 1) },
        &["rule of suppression \"spindle\" has 0 bytes, 1 to 64 are allowed: change it"],
    );
    check_suppression(
        Suppression { rules: vec!["r".to_owned(); 1_025], ..maintenance(0, 1) },
        &[
            "suppression \"spindle\" names 1025 rules, at most 1024 are allowed: leave the list empty \
           for all, or split the suppression",
        ],
    );
}

#[test]
fn words_of_the_configuration_are_those_of_the_machine_events() {
    for event in AlertingEvent::ALL {
        let text = format!("{:?}", event.as_str());
        assert_eq!(serde_json::to_string(&event).expect("serialisable"), text);
        assert_eq!(serde_json::from_str::<AlertingEvent>(&text).expect("readable"), event);
    }
    assert!(serde_json::from_str::<AlertingEvent>("\"trip-suppressed\"").is_err());
}
