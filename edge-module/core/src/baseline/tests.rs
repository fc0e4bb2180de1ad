//! One machine, `press-1`, with the sensors `shape` (relative model) and `level` (absolute model), one window of each a second.

mod form;
mod moments;
mod runs;
mod waiting;

use std::time::{Duration, Instant};

use super::*;
use crate::features::Features;
use crate::interlock::Moment;
use crate::operation::Holding;

const BEGUN_MICROS: i64 = 1_772_353_800_000_000;
const THRESHOLD: f64 = 2.0;
const MARGIN: f64 = 2.2;
const SHA256: &str = "ab5df625bc76dbd4e163bed2dd888df828f90159bb93556525c31821b6541d46";
const OTHER_SHA256: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn begun() -> Moment {
    Moment { instant: Instant::now(), time: EventTime::from_micros(BEGUN_MICROS) }
}

fn sensor(name: &str) -> SensorId {
    SensorId::new(name).expect(name)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A window at so many decibels.
fn features(decibels: f64) -> Features {
    let power_ln = decibels / 10.0 * std::f64::consts::LN_10;
    Features {
        mean: 0.0,
        rms: (power_ln / 2.0).exp(),
        peak: 3.0,
        crest_factor: 3.0,
        kurtosis: 3.0,
        rms_steady: (power_ln / 2.0).exp(),
        line_ln: Some(power_ln - 3.0),
        band_energies_ln: vec![power_ln - 1.0, power_ln - 2.0],
    }
}

fn model(is_absolute: bool) -> ModelOfSensor {
    ModelOfSensor {
        identity: "motor-shape 2".to_owned(),
        sha256: SHA256.to_owned(),
        threshold_logit: THRESHOLD,
        is_absolute,
    }
}

fn settings() -> LearnSettings {
    LearnSettings {
        duration: seconds(100),
        deadline: seconds(1000),
        gap_max: seconds(2),
        settle: seconds(3),
        windows_min: 20,
        margin_logit: BTreeMap::from([(sensor("level"), MARGIN), (sensor("shape"), MARGIN)]),
        models: BTreeMap::from([(sensor("level"), model(true)), (sensor("shape"), model(false))]),
    }
}

/// Settings of a machine with one sensor alone.
fn settings_of(name: &str) -> LearnSettings {
    let mut settings = settings();
    settings.models.retain(|sensor, _| sensor.as_str() == name);
    settings
}

fn request(conditions: &[&str]) -> LearnRequest {
    LearnRequest {
        machine_id: MachineId::new("press-1").expect("a name"),
        operator: "anna".to_owned(),
        conditions: conditions.iter().map(|name| (*name).to_owned()).collect(),
        is_replacing: false,
    }
}

/// A run, and the time in it.
struct Run {
    learner: Learner,
    begun: Moment,
    passed: Duration,
    sensors: Vec<SensorId>,
    /// The condition that was told last, and since when.
    condition: (String, Instant),
}

impl Run {
    fn new(settings: LearnSettings, conditions: &[&str], previous: Option<Baseline>) -> Self {
        Self::of(request(conditions), settings, previous)
    }

    fn of(request: LearnRequest, settings: LearnSettings, previous: Option<Baseline>) -> Self {
        let (begun, sensors) = (begun(), settings.models.keys().cloned().collect());
        let learner = Learner::new(request, settings, previous, begun).expect("valid settings");
        let condition = (String::new(), begun.instant);
        Self { learner, begun, passed: Duration::ZERO, sensors, condition }
    }

    fn now(&self) -> Instant {
        self.begun.instant + self.passed
    }

    /// A second passes, each sensor has a window, and a reading confirms the condition; the answer of the last that gave one.
    fn second(&mut self, condition: &str, decibels: f64, logit: f64) -> Option<LearnOutcome> {
        let over = self.windows(condition, decibels, logit);
        over.or_else(|| self.confirm(condition))
    }

    /// A second passes, then each sensor has a window.
    fn windows(&mut self, condition: &str, decibels: f64, logit: f64) -> Option<LearnOutcome> {
        self.passed += seconds(1);
        let now = self.now();
        self.tell(condition);
        let learner = &mut self.learner;
        let windows = self.sensors.iter().filter_map(|sensor| {
            learner.handle_window(sensor, condition, &features(decibels), logit, now)
        });
        windows.last()
    }

    /// A reading comes right after the windows.
    fn confirm(&mut self, condition: &str) -> Option<LearnOutcome> {
        let now = self.now();
        self.tell(condition);
        let heard = now + Duration::from_nanos(1);
        let holding = Holding { name: condition, since: self.condition.1, heard };
        self.learner.handle_condition(Some(holding), now)
    }

    /// The first condition has held since before the run.
    fn tell(&mut self, condition: &str) {
        if self.condition.0 != condition {
            let is_first = self.condition.0.is_empty();
            let since = if is_first { self.begun.instant } else { self.now() };
            self.condition = (condition.to_owned(), since);
        }
    }

    /// So many seconds of `condition`, with the logit that `logit_of` gives of the second.
    fn run(
        &mut self,
        condition: &str,
        count: u32,
        logit_of: impl Fn(u32) -> f64,
    ) -> Option<LearnOutcome> {
        (0..count).find_map(|index| self.second(condition, 0.0, logit_of(index)))
    }

    /// Time passes until the deadline.
    fn wait(&mut self) -> LearnOutcome {
        let deadline = self.learner.poll_timeout().expect("not over");
        assert_eq!(self.learner.handle_timeout(deadline - Duration::from_nanos(1)), None);
        let outcome = self.learner.handle_timeout(deadline).expect("the deadline");
        assert_eq!(self.learner.poll_timeout(), None);
        assert_eq!(self.learner.handle_timeout(deadline), None);
        outcome
    }
}

/// -1.0, -0.5, 0.0, 0.5, 1.0, over and over.
fn usual(index: u32) -> f64 {
    f64::from(index % 5) / 2.0 - 1.0
}

fn learnt(outcome: LearnOutcome) -> Baseline {
    match outcome {
        LearnOutcome::Learnt(baseline) => baseline,
        LearnOutcome::Refused(refused) => panic!("refused: {refused}"),
    }
}

fn refused(outcome: LearnOutcome) -> LearnRefused {
    match outcome {
        LearnOutcome::Learnt(baseline) => panic!("learnt: {baseline:?}"),
        LearnOutcome::Refused(refused) => refused,
    }
}

/// What 101 seconds of a usual machine teach.
fn baseline(conditions: &[&str]) -> Baseline {
    let mut run = Run::new(settings(), conditions, None);
    let last = conditions.iter().find_map(|condition| run.run(condition, 104, usual));
    learnt(last.expect("done"))
}
