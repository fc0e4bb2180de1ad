//! Hysteresis, delays, alarms, sensor faults, start-up, shelving and dry run, by example.

use super::*;
use crate::condition::{ConditionSettings, FrozenRule, MeasuringRange};

const SECOND: Duration = Duration::from_secs(1);

/// One limit on t1 above 100, as `change` makes it, and nothing else.
fn one_limit(change: impl FnOnce(&mut InterlockSettings)) -> Bench {
    let mut settings = settings(None);
    settings.limits = vec![limit("hot", "t1", None, [None, Some(100.0)])];
    settings.score_vote = None;
    change(&mut settings);
    Bench::with(settings)
}

fn words(actions: &[Action]) -> String {
    let word = |action: &Action| match action {
        Action::SendStop { .. } => "send",
        Action::Trip { .. } => "trip",
        Action::StopConfirmed { .. } => "confirmed",
        Action::StopNotConfirmed { .. } => "not-confirmed",
        Action::MovedWhileTripped { .. } => "moved",
        Action::SensorFault { .. } => "fault",
        Action::SensorRecovered { .. } => "recovered",
        Action::Alarm { .. } => "alarm",
        Action::AlarmCleared { .. } => "cleared",
        Action::TripSuppressed { by, .. } => by.as_str(),
        Action::Shelved { .. } => "shelved",
        Action::Unshelved { by, .. } => by.as_str(),
    };
    actions.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn shelve(bench: &mut Bench, rule: &str, duration: Duration) -> String {
    let request = ShelveRequest {
        operator: "Kim".to_owned(),
        rule: rule.to_owned(),
        duration,
        reason: "probe is being replaced".to_owned(),
    };
    let mut actions = Vec::new();
    match bench.interlock.shelve(&request, bench.now, &mut actions) {
        Ok(()) => words(&actions),
        Err(refusal) => refusal.as_str().to_owned(),
    }
}

#[test]
fn reset_waits_until_the_value_is_back_by_the_hysteresis() {
    let mut bench = one_limit(|settings| settings.limits[0].hysteresis = 5.0);
    assert_eq!(words(&bench.reading("t1", 101.0)), "send trip");
    let _confirmed = bench.state(MachineState::Stopped);
    for value in [100.0, 96.0, 95.1] {
        assert_eq!(words(&bench.reading("t1", value)), "");
        let refusal = bench.reset().expect_err("not back").to_string();
        assert!(refusal.contains("not back from 100 by its hysteresis of 5"), "{refusal}");
    }
    let _back = bench.reading("t1", 95.0);
    assert!(bench.reset().is_ok());
}

#[test]
fn on_delay_trips_at_its_time_also_when_no_sample_comes() {
    let delayed = |settings: &mut InterlockSettings| settings.limits[0].on_delay = SECOND * 3;
    let mut bench = one_limit(delayed);
    assert_eq!(words(&bench.reading("t1", 101.0)), "");
    assert_eq!(words(&bench.advance(SECOND * 3 - Duration::from_nanos(1))), "");
    assert_eq!(words(&bench.advance(Duration::from_nanos(1))), "send trip");

    let mut bench = one_limit(delayed);
    for _ in 0..10 {
        assert_eq!(words(&bench.reading("t1", 130.0)), "");
        assert_eq!(words(&bench.advance(SECOND * 2)), "");
        assert_eq!(words(&bench.reading("t1", 100.0)), "", "a break: it is at the limit");
    }
    assert_eq!(words(&bench.advance(SECOND * 60)), "");
    // A sample that comes when the time is up finds it up, whatever it says.
    let _past = bench.reading("t1", 130.0);
    bench.step(SECOND * 3);
    assert_eq!(words(&bench.reading("t1", 20.0)), "send trip");
}

#[test]
fn off_delay_keeps_an_alarm_until_the_value_stayed_back() {
    let mut bench = one_limit(|settings| {
        let limit = &mut settings.limits[0];
        (limit.action, limit.off_delay, limit.hysteresis) = (RuleAction::Alarm, SECOND * 2, 5.0);
    });
    assert_eq!(words(&bench.reading("t1", 101.0)), "alarm");
    assert_eq!(words(&bench.reading("t1", 140.0)), "", "once");
    assert!(!bench.interlock.is_tripped());
    assert_eq!(bench.interlock.snapshot().alarms.len(), 1);
    assert_eq!(words(&bench.reading("t1", 95.0)), "");
    assert_eq!(words(&bench.advance(SECOND)), "");
    assert_eq!(words(&bench.reading("t1", 96.0)), "", "a break");
    assert_eq!(words(&bench.reading("t1", 95.0)), "");
    assert_eq!(words(&bench.advance(SECOND * 2)), "cleared");
    assert_eq!(bench.interlock.snapshot().alarms, vec![]);
}

#[test]
fn votes_that_only_alarm_stop_nothing_and_keep_no_reset() {
    let mut settings = settings(None);
    settings.score_vote.as_mut().expect("a vote").action = RuleAction::Alarm;
    let mut bench = Bench::with(settings);
    let mut seen = String::new();
    for score in [0.9, 0.9, 0.9, 0.9] {
        seen.push_str(&words(&bench.score("v1", score)));
    }
    assert_eq!(seen, "alarm");
    let _trip = bench.reading("t1", 101.0);
    let _confirmed = (bench.state(MachineState::Stopped), bench.reading("t1", 20.0));
    assert!(bench.reset().is_ok());
    for _ in 0..3 {
        seen.push_str(&words(&bench.score("v1", 0.0)));
    }
    assert_eq!(seen, "alarmcleared");
}

fn with_thermometer(on_fault: RuleAction) -> Bench {
    one_limit(|settings| {
        let condition = ConditionSettings {
            range: Some(MeasuringRange { min: -50.0, max: 300.0 }),
            frozen: Some(FrozenRule { after: SECOND * 60, tolerance: 0.0 }),
            recovers_after: SECOND,
            ..ConditionSettings::default()
        };
        settings.sensors = vec![SensorRule { sensor: sensor("t1"), condition, on_fault }];
        settings.shelving_max = SECOND * 7200;
    })
}

#[test]
fn open_thermometer_is_a_fault_and_not_a_hot_machine() {
    let mut bench = with_thermometer(RuleAction::Alarm);
    let _good = bench.reading("t1", 72.0);
    let fault = Action::SensorFault { sensor: sensor("t1"), kind: SensorFaultKind::OutOfRange };
    assert_eq!(bench.reading("t1", 1254.0), vec![fault]);
    assert_eq!(words(&bench.reading("t1", 1254.0)), "");
    assert_eq!(words(&bench.reading("t1", 130.0)), "", "it is still at fault");
    let _step = bench.advance(SECOND);
    assert_eq!(words(&bench.reading("t1", 130.0)), "send recovered trip");
}

#[test]
fn fault_trips_by_policy_and_holds_the_reset_until_repaired_or_shelved() {
    let mut bench = with_thermometer(RuleAction::Trip);
    let actions = bench.reading("t1", 1254.0);
    assert_eq!(words(&actions), "send fault trip");
    let expected =
        TripCause::SensorFault { sensor: sensor("t1"), fault: SensorFaultKind::OutOfRange };
    assert!(matches!(&actions[2], Action::Trip { cause, .. } if *cause == expected));
    let _confirmed = bench.state(MachineState::Stopped);
    assert_eq!(bench.reset().map_err(|refusal| refusal.as_str()), Err("sensor-fault"));
    assert_eq!(shelve(&mut bench, "hot", SECOND), "tripped", "no way round a refused reset");
    assert_eq!(shelve(&mut bench, "sensor-fault:t1", SECOND * 60), "shelved");
    assert!(bench.reset().is_ok());
    assert_eq!(words(&bench.reading("t1", 1254.0)), "", "known");
    assert_eq!(words(&bench.advance(SECOND * 60)), "send expiry trip", "still broken");
}

#[test]
fn fault_during_an_on_delay_leaves_the_last_value_in_force() {
    let mut bench = with_thermometer(RuleAction::Alarm);
    bench = {
        let mut settings = bench.interlock.settings.clone();
        settings.limits[0].on_delay = SECOND * 3;
        Bench::with(settings)
    };
    let _past = bench.reading("t1", 130.0);
    let _step = bench.advance(SECOND);
    assert_eq!(words(&bench.reading("t1", 1254.0)), "fault", "it may have burnt");
    assert_eq!(words(&bench.advance(SECOND * 2)), "send trip");
}

fn with_startup() -> Bench {
    one_limit(|settings| {
        settings.startup_suppression = SECOND * 10;
        settings.limits[0].during_startup = DuringStartup::Suppress;
        settings.limits.push(limit("hotter", "t1", None, [None, Some(150.0)]));
    })
}

#[test]
fn marked_rule_waits_for_the_start_and_then_acts() {
    let mut bench = with_startup();
    let _stood = (bench.state(MachineState::Stopped), bench.state(MachineState::Running));
    assert_eq!(words(&bench.reading("t1", 120.0)), "startup");
    assert_eq!(words(&bench.reading("t1", 125.0)), "", "once");
    assert_eq!(words(&bench.advance(SECOND * 10 - Duration::from_nanos(1))), "");
    assert_eq!(words(&bench.advance(Duration::from_nanos(1))), "send trip");

    let mut bench = with_startup();
    let _stood = (bench.state(MachineState::Stopped), bench.state(MachineState::Running));
    let _peak = (bench.reading("t1", 120.0), bench.reading("t1", 90.0));
    assert_eq!(words(&bench.advance(SECOND * 20)), "", "the peak was over in time");
    let _stood = (bench.state(MachineState::Stopped), bench.state(MachineState::Running));
    assert_eq!(words(&bench.reading("t1", 151.0)), "send startup trip", "enforced at once");
}

#[test]
fn start_that_was_no_start_suppresses_nothing() {
    let mut bench = with_startup();
    let _first = bench.state(MachineState::Running);
    assert_eq!(words(&bench.reading("t1", 120.0)), "send trip", "it may have run for long");
}

#[test]
fn reports_that_repeat_cannot_suppress_for_ever() {
    let mut bench = with_startup();
    let mut suppressed = 0;
    for _ in 0..600 {
        let _stood = (bench.state(MachineState::Stopped), bench.state(MachineState::Running));
        suppressed += u32::from(bench.interlock.startup.is_active(bench.now.instant));
        let _step = bench.advance(SECOND / 2);
    }
    assert!((200..=310).contains(&suppressed), "{suppressed} of 600 half seconds");
    let mut bench = with_startup();
    let mut seen = String::new();
    for _ in 0..25 {
        let _stood = (bench.state(MachineState::Stopped), bench.state(MachineState::Running));
        seen.push_str(&words(&bench.reading("t1", 120.0)));
        seen.push_str(&words(&bench.advance(SECOND / 2)));
    }
    assert!(seen.starts_with("startupsend trip"), "{seen}");
}

#[test]
fn shelved_rule_is_reported_once_and_acts_when_its_time_is_up() {
    let mut bench = one_limit(|settings| settings.shelving_max = SECOND * 60);
    assert_eq!(shelve(&mut bench, "hot", SECOND * 61), "too-long");
    assert_eq!(shelve(&mut bench, "cold", SECOND), "unknown-rule");
    assert_eq!(shelve(&mut bench, "score", SECOND), "unknown-rule", "nothing is scored");
    assert_eq!(shelve(&mut bench, "hot", Duration::ZERO), "not-shelved");
    assert_eq!(shelve(&mut bench, "hot", SECOND * 60), "shelved");
    assert_eq!(words(&bench.reading("t1", 101.0)), "shelved");
    assert_eq!(words(&bench.reading("t1", 102.0)), "");
    assert_eq!(words(&bench.advance(SECOND * 60 - Duration::from_nanos(1))), "");
    assert_eq!(words(&bench.advance(Duration::from_nanos(1))), "send expiry trip");
    let mut bench = one_limit(|_| {});
    assert_eq!(shelve(&mut bench, "hot", SECOND), "not-allowed");
}

#[test]
fn person_who_unshelves_a_violated_rule_stops_the_machine() {
    let mut bench = one_limit(|settings| settings.shelving_max = SECOND * 60);
    let _shelved = (shelve(&mut bench, "hot", SECOND), bench.reading("t1", 101.0));
    assert_eq!(shelve(&mut bench, "hot", Duration::ZERO), "send operator trip");
}

#[test]
fn shelving_survives_a_restart_with_what_is_left_of_it() {
    let shelving = |settings: &mut InterlockSettings| settings.shelving_max = SECOND * 3600;
    let mut bench = one_limit(shelving);
    let _shelved = shelve(&mut bench, "hot", SECOND * 3600);
    let snapshot = bench.interlock.snapshot();
    let text = serde_json::to_string(&snapshot).expect("finite numbers");
    let check = |calendar_seconds: i64, max: Duration, expected: Option<Duration>| {
        let read: LatchSnapshot = serde_json::from_str(&text).expect("what was written");
        let mut bench = one_limit(|settings| settings.shelving_max = max);
        bench.now.time = bench.now.time.saturating_add_micros(calendar_seconds * 1_000_000);
        let actions = bench.interlock.restore(read, bench.now);
        let left = bench.interlock.poll_timeout().map(|at| at - bench.now.instant);
        assert_eq!(left, expected, "{calendar_seconds} s later");
        assert_eq!(words(&actions), if expected.is_some() { "" } else { "restart" });
    };
    let hour = SECOND * 3600;
    check(0, hour, Some(hour));
    check(600, hour, Some(SECOND * 3000));
    check(3599, hour, Some(SECOND));
    check(3600, hour, None);
    check(86_400, hour, None);
    // A clock that went back before the act gives nothing more.
    check(-1, hour, None);
    check(-86_400, hour, None);
    // The limit in force now counts.
    check(600, SECOND * 900, Some(SECOND * 300));
    check(600, SECOND * 600, None);
    check(0, Duration::ZERO, None);
}

#[test]
fn dry_run_reports_and_stops_nothing() {
    let mut bench = one_limit(|settings| settings.dry_run = true);
    assert_eq!(words(&bench.reading("t1", 101.0)), "dry-run");
    assert_eq!(words(&bench.reading("t1", 102.0)), "");
    assert_eq!(words(&bench.reading("t1", 20.0)), "");
    assert_eq!(words(&bench.reading("t1", 101.0)), "dry-run", "each violation");
    assert_eq!(words(&bench.interlock.handle_unknown_latch(bench.now)), "dry-run");
    assert_eq!(words(&bench.interlock.handle_restart(bench.now)), "dry-run");
    assert_eq!(bench.interlock.snapshot().as_str(), "dry-run");
    assert!(matches!(bench.reset(), Err(ResetRefused::NotTripped { .. })));
}

#[test]
fn latch_of_a_real_trip_is_in_force_in_dry_run() {
    let mut bench = one_limit(|_| {});
    let _trip = bench.reading("t1", 101.0);
    let snapshot = bench.interlock.snapshot();
    assert_eq!(snapshot.trip.as_ref().expect("latched").rule_version, "0123456789ab");
    let mut bench = one_limit(|settings| settings.dry_run = true);
    assert_eq!(words(&bench.interlock.restore(snapshot, bench.now)), "send");
    assert_eq!(bench.interlock.snapshot().as_str(), "tripped");
}

#[test]
fn machine_that_a_person_must_release_starts_tripped() {
    let mut bench = one_limit(|_| {});
    let actions = bench.interlock.handle_restart(bench.now);
    assert_eq!(words(&actions), "send trip");
    assert_eq!(words(&bench.interlock.handle_restart(bench.now)), "", "it is already");
    let _confirmed = bench.state(MachineState::Stopped);
    assert_eq!(bench.reset().expect("no cause").cause, TripCause::Restart);
}

#[test]
fn a_stop_that_a_person_orders_is_carried_out_also_in_dry_run_and_once() {
    for dry_run in [false, true] {
        let mut bench = one_limit(|settings| settings.dry_run = dry_run);
        let order = |bench: &mut Bench| {
            let (operator, reason) = ("Kim".to_owned(), "it smokes".to_owned());
            bench.interlock.handle_order(operator, reason, bench.now)
        };
        let actions = order(&mut bench);
        assert_eq!(words(&actions), "send trip");
        assert_eq!(words(&order(&mut bench)), "", "it is already");
        let _confirmed = bench.state(MachineState::Stopped);
        let cause = bench.reset().expect("no cause").cause;
        assert_eq!(cause.to_string(), "Kim ordered it: it smokes");
    }
}

#[test]
fn standstill_that_comes_with_an_overdue_trip_confirms_nothing() {
    let mut bench = one_limit(|settings| settings.limits[0].on_delay = SECOND);
    let _past = bench.reading("t1", 101.0);
    bench.step(SECOND * 2);
    assert_eq!(words(&bench.state(MachineState::Stopped)), "send trip");
    assert_eq!(bench.interlock.snapshot().as_str(), "tripped");
}

#[test]
fn settings_of_rules_are_checked() {
    let check = |expected: &str, change: &dyn Fn(&mut InterlockSettings)| {
        let mut settings = settings(None);
        change(&mut settings);
        let faults = settings.validate().err().unwrap_or_default();
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let found = texts.join("; ");
        assert!(found.contains(expected) && texts.len() == 1, "{expected}: {found}");
    };
    check("hysteresis -1", &|settings| settings.limits[0].hysteresis = -1.0);
    check("hysteresis NaN", &|settings| settings.limits[1].hysteresis = f64::NAN);
    check("hysteresis 76", &|settings| settings.limits[0].hysteresis = 76.0);
    check("on-delay is", &|settings| settings.limits[0].on_delay = DELAY_MAX * 2);
    check("off-delay is", &|settings| settings.limits[0].off_delay = DELAY_MAX * 2);
    check("startup suppression is", &|settings| settings.startup_suppression = STARTUP_MAX * 2);
    check("longest shelving is", &|settings| settings.shelving_max = WAIT_MAX * 2);
    check("one of score", &|settings| settings.limits[0].name = "silence:t1".to_owned());
    check("range 1 to 0 is empty", &|settings| {
        let range = Some(MeasuringRange { min: 1.0, max: 0.0 });
        let condition = ConditionSettings { range, ..ConditionSettings::default() };
        let on_fault = RuleAction::Trip;
        settings.sensors = vec![SensorRule { sensor: sensor("t1"), condition, on_fault }];
    });
}
