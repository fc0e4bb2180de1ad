//! Random runs against a slow, obvious model: it keeps the whole history and recomputes each answer from the definitions.
//!
//! Time goes in ticks of half a second, and all delays are whole ticks: nothing can fall between two looks.

use super::*;
use crate::condition::{ConditionSettings, FrozenRule, MeasuringRange};

const TICK: Duration = Duration::from_millis(500);
const RECOVERY_TICKS: u64 = 2;
const FROZEN_TICKS: u64 = 8;
const SILENCE_TICKS: u64 = 20;
const STARTUP_TICKS: u64 = 6;
const SHELVING_TICKS_MAX: u64 = 10;

const RULES: [&str; 9] = [
    "hot",
    "warm",
    "hotter",
    "zone-d",
    "score",
    "silence",
    "sensor-fault",
    "silence:v1",
    "sensor-fault:t1",
];

fn ticks(count: u64) -> Duration {
    TICK * u32::try_from(count).expect("few")
}

#[derive(Clone, Copy, Debug)]
struct Policy {
    trips_on_fault: bool,
    trips_on_silence: bool,
    dry_run: bool,
}

fn all_rules(policy: Policy) -> InterlockSettings {
    let mut settings = settings(Some(policy.trips_on_silence));
    settings.limits = vec![
        LimitRule {
            hysteresis: 5.0,
            on_delay: ticks(2),
            off_delay: ticks(3),
            during_startup: DuringStartup::Suppress,
            ..limit("hot", "t1", None, [Some(-50.0), Some(100.0)])
        },
        LimitRule {
            hysteresis: 2.0,
            on_delay: ticks(1),
            action: RuleAction::Alarm,
            ..limit("warm", "t1", None, [None, Some(80.0)])
        },
        limit("hotter", "t1", None, [None, Some(150.0)]),
        LimitRule {
            hysteresis: 0.2,
            off_delay: ticks(1),
            during_startup: DuringStartup::Suppress,
            ..limit("zone-d", "v1", Some("rms"), [None, Some(1.0)])
        },
    ];
    let vote = settings.score_vote.as_mut().expect("a vote");
    (vote.sensors, vote.during_startup) = (vec![sensor("v1")], DuringStartup::Suppress);
    let on_fault = if policy.trips_on_fault { RuleAction::Trip } else { RuleAction::Alarm };
    let condition = ConditionSettings {
        range: Some(MeasuringRange { min: -200.0, max: 400.0 }),
        frozen: Some(FrozenRule { after: ticks(FROZEN_TICKS), tolerance: 0.0 }),
        recovers_after: ticks(RECOVERY_TICKS),
        ..ConditionSettings::default()
    };
    settings.sensors = vec![SensorRule { sensor: sensor("t1"), condition, on_fault }];
    settings.startup_suppression = ticks(STARTUP_TICKS);
    settings.shelving_max = ticks(SHELVING_TICKS_MAX);
    settings.dry_run = policy.dry_run;
    settings
}

#[derive(Clone, Debug)]
enum Input {
    Value { on: &'static str, value: f64, is_bad: bool },
    Rms(Option<f64>),
    Score(f64),
    State(MachineState),
    Ticks(u64),
    Shelve { rule: &'static str, ticks: u64 },
    Reset,
}

fn any_input() -> impl Strategy<Value = Input> {
    let numbers = vec![
        20.0,
        20.0,
        60.0,
        77.0,
        79.0,
        81.0,
        94.0,
        97.0,
        101.0,
        103.0,
        149.0,
        151.0,
        -51.0,
        -44.0,
        1254.0,
        f64::NAN,
    ];
    let value = (
        prop::sample::select(vec!["t1", "t1", "t1", "v1", "x9"]),
        prop::sample::select(numbers),
        prop::bool::weighted(0.05),
    );
    let rms = vec![Some(0.5), Some(0.5), Some(0.9), Some(1.1), None, Some(f64::NAN)];
    let score = vec![0.1, 0.1, THRESHOLD, 0.9, f64::NAN];
    let states = vec![MachineState::Running, MachineState::Stopping, MachineState::Stopped];
    prop_oneof![
        6 => value.prop_map(|(on, value, is_bad)| Input::Value { on, value, is_bad }),
        3 => prop::sample::select(rms).prop_map(Input::Rms),
        3 => prop::sample::select(score).prop_map(Input::Score),
        4 => prop::sample::select(states).prop_map(Input::State),
        6 => (1_u64..5).prop_map(Input::Ticks),
        2 => (prop::sample::select(RULES.to_vec()), 0..SHELVING_TICKS_MAX + 2)
            .prop_map(|(rule, ticks)| Input::Shelve { rule, ticks }),
        3 => Just(Input::Reset),
    ]
}

/// What came, in order, each with its tick.
struct Model {
    policy: Policy,
    settings: InterlockSettings,
    now: u64,
    log: Vec<(u64, Input)>,
    /// Whether the interlock was armed when the report of a state came; one for each.
    was_armed: Vec<bool>,
    is_tripped: bool,
    is_confirmed: bool,
    is_alarmed: bool,
    /// Shelvings that were allowed: rule, from, until.
    shelved: Vec<(&'static str, u64)>,
    violated_before: Vec<&'static str>,
}

/// Runs of neighbours for which something holds: index and tick of the first, tick of the next that breaks it.
fn runs(values: &[(u64, f64)], holds: impl Fn(f64) -> bool) -> Vec<(usize, u64, u64)> {
    let mut found = Vec::new();
    for (index, (at, value)) in values.iter().enumerate() {
        let is_first = index == 0 || !holds(values[index - 1].1);
        if is_first && holds(*value) {
            let end = values[index..].iter().find(|(_, value)| !holds(*value));
            found.push((index, *at, end.map_or(u64::MAX, |(at, _)| *at)));
        }
    }
    found
}

impl Model {
    /// The faults of a sensor that its values show, after the first `length` entries of the log.
    fn value_faults(&self, on: &str, length: usize) -> Vec<SensorFaultKind> {
        let samples: Vec<(u64, f64, bool)> = self.log[..length]
            .iter()
            .filter_map(|(at, input)| {
                let Input::Value { on: of, value, is_bad } = input else { return None };
                (*of == on).then_some((*at, *value, *is_bad))
            })
            .collect();
        let good: Vec<(u64, f64)> =
            samples.iter().filter(|(_, _, is_bad)| !is_bad).map(|(at, v, _)| (*at, *v)).collect();
        let finite: Vec<(u64, f64)> =
            good.iter().copied().filter(|(_, value)| value.is_finite()).collect();
        let is_watched = on == "t1";
        let is_in_range = |value: f64| !is_watched || (-200.0..=400.0).contains(&value);
        let in_range: Vec<(u64, f64)> =
            finite.iter().copied().filter(|(_, value)| is_in_range(*value)).collect();
        let is_frozen = |(index, (at, value)): (usize, &(u64, f64))| {
            let same = in_range[..=index].iter().rev().take_while(|(_, other)| other == value);
            let since = same.last().map_or(*at, |(at, _)| *at);
            (*at, is_watched && at - since >= FROZEN_TICKS)
        };
        let judged = [
            (SensorFaultKind::ValueNotFinite, flags(&good, |value| !value.is_finite())),
            (
                SensorFaultKind::BadQuality,
                samples.iter().map(|(at, _, is_bad)| (*at, *is_bad)).collect(),
            ),
            (SensorFaultKind::OutOfRange, flags(&finite, |value| !is_in_range(value))),
            (SensorFaultKind::Frozen, in_range.iter().enumerate().map(is_frozen).collect()),
        ];
        let recovery = if is_watched { RECOVERY_TICKS } else { 0 };
        judged.into_iter().filter(|(_, f)| is_present(f, recovery)).map(|(kind, _)| kind).collect()
    }

    /// The numbers that a limit or vote may look at.
    fn series(&self, of: &str) -> Vec<(u64, f64)> {
        let number = |input: &Input| match (of, input) {
            ("t1", Input::Value { on: "t1", value, .. }) => Some(("t1", *value)),
            ("rms", Input::Rms(rms)) => Some(("v1", rms.filter(|rms| rms.is_finite())?)),
            ("score", Input::Score(score)) if score.is_finite() => Some(("v1", *score)),
            _ => None,
        };
        let judged = self.log.iter().enumerate().filter_map(|(index, (at, input))| {
            let (on, value) = number(input)?;
            self.value_faults(on, index + 1).is_empty().then_some((*at, value))
        });
        judged.collect()
    }

    fn is_limit_violated(&self, rule: &LimitRule, values: &[(u64, f64)]) -> bool {
        let count = |delay: Duration| u64::try_from(delay.as_millis() / 500).expect("few");
        let (on, off) = (count(rule.on_delay), count(rule.off_delay));
        let is_past = |value: f64| {
            rule.above.is_some_and(|limit| value > limit)
                || rule.below.is_some_and(|limit| value < limit)
        };
        let is_back = |value: f64| {
            rule.above.is_none_or(|limit| value <= limit - rule.hysteresis)
                && rule.below.is_none_or(|limit| value >= limit + rule.hysteresis)
        };
        let last = |runs: Vec<(usize, u64, u64)>, delay: u64| {
            let done = |run: &&(usize, u64, u64)| run.1 + delay <= run.2.min(self.now);
            runs.iter().filter(done).map(|run| run.0).max()
        };
        last(runs(values, is_past), on) > last(runs(values, is_back), off)
    }

    fn has_votes(&self) -> bool {
        let scores = self.series("score");
        scores.iter().rev().take(5).filter(|(_, score)| *score >= THRESHOLD).count() >= 3
    }

    fn is_feature_bad(&self, length: usize) -> bool {
        let last = self.log[..length].iter().rev().find_map(|(_, input)| {
            let Input::Rms(rms) = input else { return None };
            Some(!rms.is_some_and(f64::is_finite))
        });
        last.unwrap_or(false)
    }

    fn is_silent(&self, on: &str) -> bool {
        let heard = self.log.iter().enumerate().rev().find(|(index, (_, input))| {
            let is_of = matches!(input, Input::Value { on: of, .. } if *of == on)
                || (on == "v1" && matches!(input, Input::Rms(_)));
            let is_nan =
                self.value_faults(on, index + 1).contains(&SensorFaultKind::ValueNotFinite);
            is_of && !is_nan && !(on == "v1" && self.is_feature_bad(index + 1))
        });
        self.now - heard.map_or(0, |(_, (at, _))| *at) >= SILENCE_TICKS
    }

    fn faults(&self, on: &str) -> Vec<SensorFaultKind> {
        let mut faults = self.value_faults(on, self.log.len());
        if on == "v1" && self.is_feature_bad(self.log.len()) {
            faults.push(SensorFaultKind::FeatureNotUsable);
        }
        faults
    }

    fn is_starting(&self) -> bool {
        let states = self.log.iter().filter_map(|(at, input)| {
            let Input::State(state) = input else { return None };
            Some((*at, *state))
        });
        let (mut has_stood, mut ends) = (false, None);
        for ((at, state), was_armed) in states.zip(&self.was_armed) {
            has_stood |= state == MachineState::Stopped;
            if state == MachineState::Running {
                let may = ends.is_none_or(|ends| at >= ends + STARTUP_TICKS);
                if has_stood && *was_armed && may {
                    ends = Some(at + STARTUP_TICKS);
                }
                has_stood = false;
            }
        }
        ends.is_some_and(|ends| self.now < ends)
    }

    fn is_shelved(&self, rule: &str) -> bool {
        let last = self.shelved.iter().rev().find(|(name, _)| *name == rule);
        last.is_some_and(|(_, until)| *until > self.now)
    }

    /// Rules that trip and are violated; `name` and `name:sensor` as they are shelved.
    fn violated(&self) -> Vec<&'static str> {
        let (t1, rms) = (self.series("t1"), self.series("rms"));
        let limits = &self.settings.limits;
        let policy = self.policy;
        let t1_trips = policy.trips_on_fault && !self.faults("t1").is_empty();
        let silence_trips = |on| {
            let trips = policy.trips_on_silence || (policy.trips_on_fault && on == "t1");
            trips && self.is_silent(on)
        };
        [
            ("hot", self.is_limit_violated(&limits[0], &t1)),
            ("hotter", self.is_limit_violated(&limits[2], &t1)),
            ("zone-d", self.is_limit_violated(&limits[3], &rms)),
            ("score", self.has_votes()),
            ("sensor-fault:t1", t1_trips),
            ("silence:t1", silence_trips("t1")),
            ("silence:v1", silence_trips("v1")),
        ]
        .into_iter()
        .filter_map(|(name, is_violated)| is_violated.then_some(name))
        .collect()
    }

    fn is_suppressed(&self, rule: &str) -> bool {
        let stem = rule.split(':').next().expect("a name");
        let waits = ["hot", "zone-d", "score"].contains(&rule);
        self.policy.dry_run
            || self.is_shelved(rule)
            || self.is_shelved(stem)
            || (waits && self.is_starting())
    }

    /// Whether a rule that trips keeps a reset from being done.
    fn is_reset_refused(&self) -> bool {
        let is_shelved = |rule: &str| {
            self.is_shelved(rule) || self.is_shelved(rule.split(':').next().expect("a name"))
        };
        let past = |of: &str, low: f64, high: f64| {
            self.series(of).last().is_some_and(|(_, value)| !(low..=high).contains(value))
        };
        let past = [("hot", past("t1", -50.0, 100.0)), ("zone-d", past("rms", -1.0, 1.0))];
        self.violated().into_iter().any(|rule| !is_shelved(rule))
            || past.into_iter().any(|(rule, is_past)| is_past && !is_shelved(rule))
    }

    /// Compares what the interlock did with what it had to do.
    fn check(&mut self, bench: &Bench, actions: &[Action], is_tick: bool) {
        let violated = self.violated();
        let must_stop = violated.iter().any(|rule| !self.is_suppressed(rule));
        let trips = actions.iter().filter(|action| is_trip(action)).count();
        assert_eq!(trips, usize::from(must_stop && !self.is_tripped), "{violated:?} {actions:?}");
        assert!(trips == 0 || is_tick || is_send(&actions[0]), "{actions:?}");
        if trips == 1 {
            (self.is_tripped, self.is_confirmed) = (true, false);
        }
        assert_eq!(bench.interlock.is_tripped(), self.is_tripped);
        let is_new = |rule: &&&str| !self.violated_before.contains(*rule);
        let suppressed = violated.iter().filter(is_new).filter(|rule| self.is_suppressed(rule));
        let reported =
            actions.iter().filter(|action| matches!(action, Action::TripSuppressed { .. }));
        assert_eq!(reported.count(), suppressed.count(), "{violated:?} {actions:?}");
        self.violated_before = violated;

        let is_warm = self.is_limit_violated(&self.settings.limits[1], &self.series("t1"));
        self.is_alarmed = is_warm && (self.is_alarmed || !self.is_shelved("warm"));
        let snapshot = bench.interlock.snapshot();
        assert_eq!(!snapshot.alarms.is_empty(), self.is_alarmed);
        for on in ["t1", "v1"] {
            let mut expected = self.faults(on);
            expected.extend(self.is_silent(on).then_some(SensorFaultKind::Silent));
            expected.sort_unstable();
            let is_ours = |kind: &SensorFaultKind| *kind == SensorFaultKind::ScoreNotFinite;
            let found = snapshot.sensor_faults.iter().filter(|fault| fault.sensor == sensor(on));
            let found: Vec<_> = found.map(|f| f.fault).filter(|kind| !is_ours(kind)).collect();
            assert_eq!(found, expected, "{on} at tick {}", self.now);
        }
        let shelved = RULES.iter().filter(|rule| self.is_shelved(rule)).count();
        assert_eq!(snapshot.shelved.len(), shelved);
        assert_eq!(bench.interlock.shelved_rules(), shelved);
    }

    fn reset(&mut self, bench: &mut Bench) {
        let may = self.is_tripped && self.is_confirmed && !self.is_reset_refused();
        let answer = bench.reset();
        assert_eq!(answer.is_ok(), may, "{answer:?} {:?}", self.violated());
        if may {
            (self.is_tripped, self.is_confirmed) = (false, false);
        }
    }

    fn shelve(&mut self, bench: &mut Bench, rule: &'static str, count: u64) -> Vec<Action> {
        let request = ShelveRequest {
            operator: "Kim".to_owned(),
            rule: rule.to_owned(),
            duration: ticks(count),
            reason: "a test".to_owned(),
        };
        let mut actions = Vec::new();
        let answer = bench.interlock.shelve(&request, bench.now, &mut actions);
        let is_of_sensors = rule.starts_with("sensor-fault") || rule.starts_with("silence");
        let may = match count {
            0 => self.is_shelved(rule),
            1.. => count <= SHELVING_TICKS_MAX && (is_of_sensors || !self.is_tripped),
        };
        assert_eq!(answer.is_ok(), may, "{answer:?}");
        if may {
            self.shelved.push((rule, self.now + count));
        }
        actions
    }
}

fn flags(values: &[(u64, f64)], is_bad: impl Fn(f64) -> bool) -> Vec<(u64, bool)> {
    values.iter().map(|(at, value)| (*at, is_bad(*value))).collect()
}

/// The last bad one, unless two good ones after it, the first and any, are far enough apart.
fn is_present(flags: &[(u64, bool)], recovery: u64) -> bool {
    let Some(last) = flags.iter().rposition(|(_, is_bad)| *is_bad) else { return false };
    let after = &flags[last + 1..];
    !after.iter().any(|(at, _)| at - after[0].0 >= recovery)
}

fn step(bench: &mut Bench, model: &mut Model, input: &Input) {
    let is_moving = matches!(input, Input::State(MachineState::Running | MachineState::Stopping));
    let is_stopped = matches!(input, Input::State(MachineState::Stopped));
    let actions = match *input {
        Input::Value { on, value, is_bad } => {
            let measured = Measured { is_bad, ..value.into() };
            bench.interlock.handle_reading(&sensor(on), measured, bench.now)
        }
        Input::Rms(rms) => bench.rms("v1", rms),
        Input::Score(score) => bench.score("v1", score),
        Input::State(state) => bench.state(state),
        Input::Shelve { rule, ticks } => model.shelve(bench, rule, ticks),
        Input::Reset => {
            model.reset(bench);
            Vec::new()
        }
        Input::Ticks(_) => unreachable!("taken one by one"),
    };
    model.log.push((model.now, input.clone()));
    if is_stopped || is_moving {
        model.was_armed.push(!model.is_tripped);
        let is_again = model.is_tripped && model.is_confirmed && is_moving;
        let moved = actions.iter().any(|a| matches!(a, Action::MovedWhileTripped { .. }));
        assert_eq!(moved, is_again, "{actions:?}");
        model.is_confirmed = model.is_tripped && (is_stopped || (model.is_confirmed && !is_again));
    }
    model.check(bench, &actions, false);
}

fn run(inputs: &[Input], policy: Policy) {
    let settings = all_rules(policy);
    let mut bench = Bench::with(settings.clone());
    let mut model = Model {
        policy,
        settings,
        now: 0,
        log: vec![],
        was_armed: vec![],
        is_tripped: false,
        is_confirmed: false,
        is_alarmed: false,
        shelved: vec![],
        violated_before: vec![],
    };
    for input in inputs {
        let Input::Ticks(count) = input else {
            step(&mut bench, &mut model, input);
            continue;
        };
        for _ in 0..*count {
            let actions = bench.advance(TICK);
            model.now += 1;
            model.check(&bench, &actions, true);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn all_rules_together_equal_a_model_that_recomputes_everything(
        inputs in prop::collection::vec(any_input(), 1..70),
        trips_on_fault in any::<bool>(),
        trips_on_silence in any::<bool>(),
        dry_run in prop::bool::weighted(0.2),
    ) {
        run(&inputs, Policy { trips_on_fault, trips_on_silence, dry_run });
    }
}
