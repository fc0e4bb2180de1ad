//! Each rule by example, then random runs against a slow, obvious model.

mod properties;
mod rules;

use proptest::prelude::*;

use super::*;

const DEADLINE: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(10);
const ATTEMPTS_MAX: u32 = 3;
const THRESHOLD: f64 = 0.5;

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn sensor(name: &str) -> SensorId {
    SensorId::new(name).expect(name)
}

fn limit(name: &str, on: &str, feature: Option<&str>, bounds: [Option<f64>; 2]) -> LimitRule {
    let quantity = feature.map_or(Quantity::Value, |name| Quantity::Feature(name.to_owned()));
    let [below, above] = bounds;
    LimitRule {
        name: name.to_owned(),
        sensor: sensor(on),
        quantity,
        above,
        below,
        hysteresis: 0.0,
        on_delay: Duration::ZERO,
        off_delay: Duration::ZERO,
        action: RuleAction::Trip,
        during_startup: DuringStartup::Enforce,
    }
}

/// A temperature between -50 and 100, an rms up to 1, 3 of 5 votes of v1 and v2.
fn settings(trips_on_silence: Option<bool>) -> InterlockSettings {
    InterlockSettings {
        limits: vec![
            limit("hot-or-cold", "t1", None, [Some(-50.0), Some(100.0)]),
            limit("hotter", "t1", None, [None, Some(150.0)]),
            limit("zone-d", "v1", Some("rms"), [None, Some(1.0)]),
        ],
        score_vote: Some(ScoreVote {
            sensors: vec![sensor("v1"), sensor("v2")],
            threshold: None,
            votes: 3,
            of: 5,
            action: RuleAction::Trip,
            during_startup: DuringStartup::Enforce,
        }),
        silence: trips_on_silence.map(|trips| Silence {
            sensors: vec![sensor("t1"), sensor("v1")],
            after: SILENCE,
            trips,
        }),
        sensors: vec![],
        on_fault: RuleAction::Alarm,
        startup_suppression: Duration::ZERO,
        shelving_max: Duration::ZERO,
        dry_run: false,
        confirmation: ConfirmationSettings { deadline: DEADLINE, attempts_max: ATTEMPTS_MAX },
        rule_version: "0123456789ab".to_owned(),
    }
}

fn vote_of(votes: u32, of: u32, threshold: f64) -> Option<ScoreVote> {
    let (action, during_startup) = (RuleAction::Trip, DuringStartup::Enforce);
    let threshold = Some(threshold);
    Some(ScoreVote { sensors: vec![], threshold, votes, of, action, during_startup })
}

struct Bench {
    interlock: Interlock,
    now: Moment,
}

impl Bench {
    fn new(trips_on_silence: Option<bool>) -> Self {
        Self::with(settings(trips_on_silence))
    }

    fn with(settings: InterlockSettings) -> Self {
        let now = Moment { instant: start(), time: EventTime::from_micros(1_000_000) };
        let machine = MachineId::new("press-1").expect("a name");
        let interlock = Interlock::new(machine, settings, now.instant).expect("valid settings");
        Self { interlock, now }
    }

    fn reading(&mut self, on: &str, value: f64) -> Vec<Action> {
        self.interlock.handle_reading(&sensor(on), value, self.now)
    }

    fn rms(&mut self, on: &str, rms: Option<f64>) -> Vec<Action> {
        self.interlock.handle_features(&sensor(on), |_| rms, self.now)
    }

    fn score(&mut self, on: &str, score: f64) -> Vec<Action> {
        let window = WindowScore { logit: 0.0, score, threshold: THRESHOLD };
        self.interlock.handle_score(&sensor(on), window, self.now)
    }

    fn state(&mut self, state: MachineState) -> Vec<Action> {
        self.interlock.handle_machine_state(state, self.now)
    }

    fn step(&mut self, by: Duration) {
        self.now.instant += by;
        let micros = i64::try_from(by.as_micros()).expect("a short step");
        self.now.time = self.now.time.saturating_add_micros(micros);
    }

    /// Lets time pass as the rim does: each timeout is handled when it is due.
    fn advance(&mut self, by: Duration) -> Vec<Action> {
        let end = self.now.instant + by;
        let mut actions = Vec::new();
        while let Some(at) = self.interlock.poll_timeout().filter(|at| *at <= end) {
            self.step(at.saturating_duration_since(self.now.instant));
            actions.extend(self.interlock.handle_timeout(self.now));
            assert!(self.interlock.poll_timeout().is_none_or(|next| next > at), "a loop in time");
        }
        self.step(end - self.now.instant);
        actions
    }

    fn reset(&mut self) -> Result<ResetDone, ResetRefused> {
        self.interlock.reset(self.now)
    }
}

fn is_send(action: &Action) -> bool {
    matches!(action, Action::SendStop { .. })
}

fn is_trip(action: &Action) -> bool {
    matches!(action, Action::Trip { .. })
}

#[test]
fn limit_trips_past_it_and_not_at_it() {
    let check = |value: f64, expected: Option<f64>| {
        let actions = Bench::new(None).reading("t1", value);
        let limit = actions.iter().find_map(|action| {
            let Action::Trip { cause: TripCause::Limit { limit, .. }, .. } = action else {
                return None;
            };
            Some(*limit)
        });
        assert_eq!(limit, expected, "{value}");
    };
    check(100.0, None);
    check(100.000_001, Some(100.0));
    check(-50.0, None);
    check(-50.000_001, Some(-50.0));
    check(f64::MAX, Some(100.0));
    check(f64::INFINITY, None);
    check(f64::NAN, None);
}

#[test]
fn trip_sends_the_stop_before_it_reports() {
    let mut bench = Bench::new(None);
    let trip_id = "press-1-1000000-1".to_owned();
    let cause = TripCause::Limit {
        rule: "hot-or-cold".to_owned(),
        sensor: sensor("t1"),
        value: 101.0,
        limit: 100.0,
    };
    let expected = vec![
        Action::SendStop { trip_id: trip_id.clone(), attempt: 1, reach: StopReach::First },
        Action::Trip { trip_id, cause },
    ];
    assert_eq!(bench.reading("t1", 101.0), expected);
}

#[test]
fn second_cause_is_recorded_and_sends_nothing() {
    let mut bench = Bench::new(None);
    assert!(bench.reading("t1", 160.0).iter().any(is_trip));
    assert_eq!(bench.rms("v1", Some(2.0)), vec![]);
    assert_eq!(bench.rms("v1", Some(3.0)), vec![]);
    let trip = bench.interlock.snapshot().trip.expect("tripped");
    let rules: Vec<_> = trip.later_causes.iter().map(TripCause::as_str).collect();
    assert_eq!(rules, ["limit", "limit"], "hotter and zone-d, once each");
}

#[test]
fn what_is_violated_is_told_also_where_nothing_acts() {
    let mut settings = settings(None);
    settings.dry_run = true;
    let mut bench = Bench::with(settings);
    assert_eq!(bench.interlock.violations(), vec![]);
    for _ in 0..3 {
        let _suppressed = bench.score("v1", 0.9);
    }
    let rules: Vec<_> =
        bench.interlock.violations().iter().map(|cause| cause.rule().to_owned()).collect();
    assert_eq!(rules, ["score"]);
    let _over = bench.interlock.restart_votes(bench.now);
    assert_eq!(bench.interlock.violations(), vec![], "votes are counted anew");
    let _vote = bench.score("v1", 0.9);
    assert_eq!(bench.interlock.violations(), vec![]);
}

#[test]
fn trip_stays_latched_after_score_falls() {
    let mut bench = Bench::new(None);
    for _ in 0..3 {
        let _actions = bench.score("v1", 0.9);
    }
    assert!(bench.interlock.is_tripped());
    for _ in 0..10 {
        let _actions = bench.score("v1", 0.0);
    }
    assert!(bench.interlock.is_tripped());
}

#[test]
fn votes_of_two_sensors_are_not_added() {
    let mut bench = Bench::new(None);
    for on in ["v1", "v2", "v1", "v2"] {
        assert_eq!(bench.score(on, 1.0), vec![]);
    }
    assert!(bench.score("v2", THRESHOLD).iter().any(is_trip), "at the threshold counts");
}

#[test]
fn unconfirmed_stop_is_repeated_then_escalated_and_still_heard() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.reading("t1", 200.0).iter().filter(|action| is_send(action)).count(), 1);
    let id = "press-1-1000000-1".to_owned();
    let send = |attempt| {
        let (trip_id, reach) = (id.clone(), StopReach::All);
        Action::SendStop { trip_id, attempt, reach }
    };
    let not_confirmed = |attempts, is_escalated| Action::StopNotConfirmed {
        trip_id: id.clone(),
        attempts,
        is_escalated,
        after: DEADLINE * attempts,
    };
    assert_eq!(bench.advance(DEADLINE - Duration::from_nanos(1)), vec![]);
    assert_eq!(bench.advance(Duration::from_nanos(1)), vec![send(2), not_confirmed(1, false)]);
    assert_eq!(bench.advance(DEADLINE), vec![send(3)]);
    assert_eq!(bench.advance(DEADLINE), vec![not_confirmed(3, true)]);
    assert_eq!(bench.advance(DEADLINE * 10), vec![]);
    assert_eq!(bench.interlock.snapshot().as_str(), "stop-not-confirmed");
    assert_eq!(bench.state(MachineState::Stopping), vec![]);
    let confirmed = Action::StopConfirmed { trip_id: id, attempts: 3, after: DEADLINE * 13 };
    assert_eq!(bench.state(MachineState::Stopped), vec![confirmed]);
    assert_eq!(bench.interlock.snapshot().as_str(), "stopped");
}

#[test]
fn machine_that_moves_without_a_reset_is_stopped_again() {
    let mut bench = Bench::new(None);
    let _trip = bench.reading("t1", 200.0);
    let _confirmed = bench.state(MachineState::Stopped);
    let actions = bench.state(MachineState::Running);
    let trip_id = "press-1-1000000-1".to_owned();
    let again = Action::SendStop { trip_id, attempt: 1, reach: StopReach::All };
    assert_eq!(actions[0], again, "by all ways");
    assert!(matches!(actions[1], Action::MovedWhileTripped { .. }), "{actions:?}");
    assert_eq!(bench.state(MachineState::Running), vec![], "the new stop is on its way");
    assert!(is_send(&bench.advance(DEADLINE)[0]), "and repeated");
}

#[test]
fn standstill_reported_before_the_trip_confirms_nothing() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.state(MachineState::Stopped), vec![]);
    assert!(is_send(&bench.reading("t1", 200.0)[0]));
    let _below = bench.reading("t1", 20.0);
    assert!(matches!(bench.reset(), Err(ResetRefused::StopNotConfirmed { .. })));
}

#[test]
fn reset_says_what_is_still_present() {
    let mut bench = Bench::new(Some(true));
    let refused = |bench: &mut Bench| bench.reset().map_err(|refusal| refusal.as_str());
    assert_eq!(refused(&mut bench), Err("not-tripped"));
    let _trip = bench.reading("t1", 101.0);
    assert_eq!(refused(&mut bench), Err("stop-not-confirmed"));
    let _confirmed = bench.state(MachineState::Stopped);
    assert_eq!(refused(&mut bench), Err("limit"));
    let _fault = bench.reading("t1", f64::NAN);
    assert_eq!(refused(&mut bench), Err("limit"), "NaN must not hide the latest value");
    let _below = bench.reading("t1", 99.0);
    for _ in 0..3 {
        let _vote = bench.score("v2", 0.7);
    }
    assert_eq!(refused(&mut bench), Err("score"));
    for _ in 0..3 {
        let _vote = bench.score("v2", 0.1);
    }
    let _silent = bench.advance(SILENCE);
    assert_eq!(refused(&mut bench), Err("silence"));
    let _heard = (bench.reading("t1", 99.0), bench.rms("v1", Some(0.5)));
    let done = bench.reset().expect("no cause is present");
    assert_eq!(done.trip_id, "press-1-1000000-1");
    assert!(!bench.interlock.is_tripped());
    assert!(is_send(&bench.reading("t1", 101.0)[0]), "armed again");
}

#[test]
fn silence_is_a_fault_and_trips_only_by_policy() {
    for trips in [false, true] {
        let mut bench = Bench::new(Some(trips));
        let _features = bench.rms("v1", Some(0.1));
        let actions = bench.advance(SILENCE);
        let silent = |name: &str| Action::SensorFault {
            sensor: sensor(name),
            kind: SensorFaultKind::Silent,
        };
        assert!(actions.contains(&silent("t1")) && actions.contains(&silent("v1")));
        assert_eq!(bench.interlock.is_tripped(), trips);
        assert_eq!(is_send(&actions[0]), trips, "{actions:?}");
        let recovered =
            Action::SensorRecovered { sensor: sensor("t1"), kind: SensorFaultKind::Silent };
        assert_eq!(bench.reading("t1", 20.0), vec![recovered]);
        assert!(bench.advance(SILENCE).contains(&silent("t1")), "watched again");
    }
}

#[test]
fn sensor_that_sends_only_nan_is_silent() {
    let mut bench = Bench::new(Some(true));
    let fault = Action::SensorFault { sensor: sensor("t1"), kind: SensorFaultKind::ValueNotFinite };
    assert_eq!(bench.reading("t1", f64::NAN), vec![fault]);
    for _ in 0..9 {
        assert_eq!(bench.advance(Duration::from_secs(1)), vec![]);
        assert_eq!(bench.reading("t1", f64::NEG_INFINITY), vec![], "reported once");
        assert_eq!(bench.rms("v1", Some(0.1)), vec![]);
    }
    assert!(is_send(&bench.advance(Duration::from_secs(1))[0]));
}

#[test]
fn missing_feature_is_a_fault_and_no_sign_of_life() {
    let mut bench = Bench::new(Some(true));
    let kind = SensorFaultKind::FeatureNotUsable;
    let fault = Action::SensorFault { sensor: sensor("v1"), kind };
    assert_eq!(bench.rms("v1", None), vec![fault]);
    assert_eq!(bench.rms("v1", Some(f64::NAN)), vec![]);
    let recovered = Action::SensorRecovered { sensor: sensor("v1"), kind };
    assert_eq!(bench.rms("v1", Some(0.2)), vec![recovered]);
}

#[test]
fn latch_survives_a_restart_and_orders_the_stop_again() {
    let mut bench = Bench::new(None);
    let _trip = bench.reading("t1", 200.0);
    let _confirmed = bench.state(MachineState::Stopped);
    let snapshot = bench.interlock.snapshot();
    let text = serde_json::to_string(&snapshot).expect("finite numbers");
    let read: LatchSnapshot = serde_json::from_str(&text).expect("what was written");
    assert_eq!(read, snapshot);

    let mut bench = Bench::new(None);
    let trip_id = "press-1-1000000-1".to_owned();
    let actions = bench.interlock.restore(read, bench.now);
    assert_eq!(actions, vec![Action::SendStop { trip_id, attempt: 1, reach: StopReach::First }]);
    assert!(matches!(bench.reset(), Err(ResetRefused::StopNotConfirmed { .. })));
    let _confirmed = bench.state(MachineState::Stopped);
    assert!(bench.reset().is_ok());
    let again = bench.reading("t1", 200.0);
    let trip_id = "press-1-1000000-2".to_owned();
    let expected = Action::SendStop { trip_id, attempt: 1, reach: StopReach::First };
    assert_eq!(again[0], expected, "a name is never used twice");
}

#[test]
fn armed_latch_restores_to_armed_and_an_unknown_one_trips() {
    let snapshot = Bench::new(None).interlock.snapshot();
    let mut bench = Bench::new(None);
    assert_eq!(bench.interlock.restore(snapshot, bench.now), vec![]);
    assert!(!bench.interlock.is_tripped());
    let actions = bench.interlock.handle_unknown_latch(bench.now);
    assert!(is_send(&actions[0]) && is_trip(&actions[1]), "{actions:?}");
}

#[test]
fn unknown_sensors_are_ignored() {
    let mut bench = Bench::new(Some(true));
    assert_eq!(bench.reading("t9", 1e9), vec![]);
    assert_eq!(bench.score("t1", 1.0), vec![], "not among the scored");
    assert!(!bench.interlock.watches(&sensor("t9")));
}

#[test]
fn settings_report_all_faults_at_once() {
    let mut bad = settings(Some(true));
    bad.limits[0].above = Some(f64::NAN);
    bad.limits[1].above = None;
    bad.limits[2].name = "hotter".to_owned();
    bad.limits.push(limit("crossed", "t1", None, [Some(2.0), Some(1.0)]));
    bad.score_vote = vote_of(6, 5, 1.1);
    bad.silence = Some(Silence { sensors: vec![], after: Duration::ZERO, trips: true });
    bad.confirmation = ConfirmationSettings { deadline: WAIT_MAX * 2, attempts_max: 0 };
    let faults = bad.validate().expect_err("everything is wrong");
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(faults.len(), 9, "{texts:#?}");
    let check = |votes, of, expected: bool| {
        let mut settings = settings(None);
        settings.score_vote = vote_of(votes, of, 1.0);
        assert_eq!(settings.validate().is_ok(), expected, "{votes} of {of}");
    };
    check(1, 1, true);
    check(64, 64, true);
    check(0, 5, false);
    check(64, 65, false);
}

/// One input of a random run.
#[derive(Clone, Debug)]
enum Input {
    Reading(&'static str, f64),
    Rms(&'static str, Option<f64>),
    Score(&'static str, f64),
    State(MachineState),
    Advance(Duration),
    Reset,
}

const SENSORS: [&str; 4] = ["t1", "v1", "v2", "x9"];

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => -10.0..90.0,
        2 => 100.0..300.0,
        1 => -200.0..-50.0,
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
    ]
}

fn any_input() -> impl Strategy<Value = Input> {
    let sensor = || prop::sample::select(SENSORS.to_vec());
    let rms = prop_oneof![
        6 => (0.0..0.9).prop_map(Some),
        1 => (1.0..3.0).prop_map(Some),
        1 => Just(None),
        1 => Just(Some(f64::NAN)),
    ];
    let score = prop_oneof![6 => 0.0..=1.0, 1 => Just(f64::NAN), 1 => Just(THRESHOLD)];
    let states = vec![MachineState::Running, MachineState::Stopping, MachineState::Stopped];
    prop_oneof![
        4 => (sensor(), any_number()).prop_map(|(on, value)| Input::Reading(on, value)),
        3 => (sensor(), rms).prop_map(|(on, rms)| Input::Rms(on, rms)),
        4 => (sensor(), score).prop_map(|(on, score)| Input::Score(on, score)),
        3 => prop::sample::select(states).prop_map(Input::State),
        3 => (0_u64..6_000).prop_map(|ms| Input::Advance(Duration::from_millis(ms))),
        3 => Just(Input::Reset),
    ]
}

/// Keeps the whole history and looks through all of it for each answer.
struct Model {
    trips_on_silence: bool,
    values: Vec<(&'static str, f64)>,
    rms: Vec<(&'static str, Option<f64>)>,
    /// Those of windows whose sensor was not at fault.
    judged_rms: Vec<(&'static str, Option<f64>)>,
    scores: Vec<(&'static str, f64)>,
    /// When a watched sensor delivered while nothing of it was unusable.
    heard: Vec<(&'static str, Instant)>,
    is_tripped: bool,
    is_confirmed: bool,
    /// When the first command of this round of stop commands was sent.
    ordered: Option<Instant>,
}

impl Model {
    fn is_usable(&self, on: &str) -> bool {
        let value = self.values.iter().rev().find(|(name, _)| *name == on);
        let rms = self.rms.iter().rev().find(|(name, _)| *name == on);
        let is_rms_bad = on == "v1" && rms.is_some_and(|(_, rms)| !is_finite(*rms));
        value.is_none_or(|(_, value)| value.is_finite()) && !is_rms_bad
    }

    /// Whether the sensor's last value is a number: one that is none voids what else it sends.
    fn is_value_usable(&self, on: &str) -> bool {
        let value = self.values.iter().rev().find(|(name, _)| *name == on);
        value.is_none_or(|(_, value)| value.is_finite())
    }

    fn is_limit_passed(&self) -> bool {
        let mut values = self.values.iter().rev();
        let mut rms = self.judged_rms.iter().rev();
        let value = values.find(|(on, value)| *on == "t1" && value.is_finite());
        let rms = rms.find(|(on, rms)| *on == "v1" && is_finite(*rms));
        value.is_some_and(|(_, value)| is_temperature_limit_passed(*value))
            || rms.is_some_and(|(_, rms)| *rms > Some(1.0))
    }

    fn has_votes(&self, on: &str) -> bool {
        let finite = self.scores.iter().filter(|(name, score)| *name == on && score.is_finite());
        let last: Vec<f64> = finite.rev().take(5).map(|(_, score)| *score).collect();
        on.starts_with('v') && last.iter().filter(|score| **score >= THRESHOLD).count() >= 3
    }

    fn is_silent(&self, on: &str, now: Instant) -> bool {
        let last = self.heard.iter().rev().find(|(name, _)| *name == on).expect("heard at start");
        now - last.1 >= SILENCE
    }

    fn is_cause_present(&self, now: Instant) -> bool {
        let silent = self.is_silent("t1", now) || self.is_silent("v1", now);
        self.is_limit_passed()
            || self.has_votes("v1")
            || self.has_votes("v2")
            || (self.trips_on_silence && silent)
    }

    /// Whether the input itself is a reason to stop.
    fn take(&mut self, input: &Input, now: Instant) -> bool {
        match *input {
            Input::Reading(on, value) => {
                self.values.push((on, value));
                self.hear(on, now);
                on == "t1" && value.is_finite() && is_temperature_limit_passed(value)
            }
            Input::Rms(on, rms) => {
                self.rms.push((on, rms));
                self.hear(on, now);
                let is_usable = self.is_value_usable(on);
                if is_usable {
                    self.judged_rms.push((on, rms));
                }
                on == "v1" && is_usable && is_finite(rms) && rms > Some(1.0)
            }
            Input::Score(on, score) => {
                if self.is_value_usable(on) {
                    self.scores.push((on, score));
                }
                self.has_votes(on)
            }
            Input::Advance(_) => {
                let silent = self.is_silent("t1", now) || self.is_silent("v1", now);
                self.trips_on_silence && silent
            }
            Input::State(_) | Input::Reset => false,
        }
    }

    fn hear(&mut self, on: &'static str, now: Instant) {
        if self.is_usable(on) {
            self.heard.push((on, now));
        }
    }
}

fn is_temperature_limit_passed(value: f64) -> bool {
    !(-50.0..=100.0).contains(&value)
}

fn is_finite(number: Option<f64>) -> bool {
    number.is_some_and(f64::is_finite)
}

fn run(inputs: &[Input], trips_on_silence: bool) {
    let mut bench = Bench::new(Some(trips_on_silence));
    let start = bench.now.instant;
    let mut model = Model {
        trips_on_silence,
        values: vec![],
        rms: vec![],
        judged_rms: vec![],
        scores: vec![],
        heard: vec![("t1", start), ("v1", start)],
        is_tripped: false,
        is_confirmed: false,
        ordered: None,
    };
    let mut sent_in_round = 0;
    for input in inputs {
        let actions = match *input {
            Input::Reading(on, value) => bench.reading(on, value),
            Input::Rms(on, rms) => bench.rms(on, rms),
            Input::Score(on, score) => bench.score(on, score),
            Input::State(state) => bench.state(state),
            Input::Advance(by) => bench.advance(by),
            Input::Reset => {
                check_reset(&mut bench, &mut model);
                Vec::new()
            }
        };
        let now = bench.now.instant;
        let must_stop = model.take(input, now);
        let trips = actions.iter().filter(|action| is_trip(action)).count();
        assert_eq!(trips, usize::from(must_stop && !model.is_tripped), "{input:?} {actions:?}");
        let sends = u32::try_from(actions.iter().filter(|a| is_send(a)).count()).expect("few");
        sent_in_round += sends;
        let moves = matches!(input, Input::State(MachineState::Running | MachineState::Stopping));
        if trips == 1 || (model.is_tripped && model.is_confirmed && moves) {
            let is_timed = matches!(input, Input::Advance(_));
            assert!(is_timed || is_send(&actions[0]), "{input:?} {actions:?}");
            model.is_confirmed = false;
            sent_in_round = sends;
            // Inside a step the round began when the sensor fell silent.
            model.ordered = if is_timed { None } else { Some(now) };
        } else if model.is_tripped && matches!(input, Input::State(MachineState::Stopped)) {
            model.is_confirmed = true;
        }
        model.is_tripped |= must_stop;
        check_rounds(&model, sent_in_round, now);
        assert_eq!(bench.interlock.is_tripped(), model.is_tripped, "{input:?}");
        let breached = model.is_limit_passed();
        assert!(!breached || model.is_tripped, "past a limit and armed: {input:?}");
    }
}

/// So many deadlines passed, so many commands were sent.
fn check_rounds(model: &Model, sent: u32, now: Instant) {
    if let Some(ordered) = model.ordered.filter(|_| model.is_tripped && !model.is_confirmed) {
        let passed = (now - ordered).as_micros() / DEADLINE.as_micros();
        let expected = u128::from(ATTEMPTS_MAX).min(1 + passed);
        assert_eq!(u128::from(sent), expected, "commands after {:?}", now - ordered);
    }
}

fn check_reset(bench: &mut Bench, model: &mut Model) {
    let now = bench.now.instant;
    let may = model.is_tripped && model.is_confirmed && !model.is_cause_present(now);
    let answer = bench.reset();
    assert_eq!(answer.is_ok(), may, "{answer:?}");
    if may {
        model.is_tripped = false;
        model.is_confirmed = false;
        model.ordered = None;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn interlock_equals_a_model_that_remembers_everything(
        inputs in prop::collection::vec(any_input(), 1..120),
        trips_on_silence in any::<bool>(),
    ) {
        run(&inputs, trips_on_silence);
    }

    #[test]
    fn limit_trips_whatever_the_scores_are(
        scores in prop::collection::vec(prop_oneof![Just(0.0), Just(f64::NAN), 0.0..=1.0], 0..40),
        value in 100.1_f64..1e300,
    ) {
        let mut bench = Bench::new(None);
        for score in scores {
            let _actions = bench.score("v1", score);
        }
        let was_tripped = bench.interlock.is_tripped();
        let actions = bench.reading("t1", value);
        prop_assert!(was_tripped || is_send(&actions[0]));
        prop_assert!(bench.interlock.is_tripped());
    }

    #[test]
    fn votes_equal_counting_the_last_windows(
        scores in prop::collection::vec(0.0..=1.0, 1..200),
        of in 1_u32..=64,
    ) {
        let mut votes = Votes::default();
        let mut seen = Vec::new();
        for score in scores {
            votes.push(score, THRESHOLD);
            seen.push(score);
            let last = seen.iter().rev().take(of as usize);
            let expected = last.filter(|score| **score >= THRESHOLD).count();
            prop_assert_eq!(votes.count(of) as usize, expected);
        }
    }
}
