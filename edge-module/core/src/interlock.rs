//! Decides when a machine must stop: armed, then tripped and latched until a person resets it.
//!
//! Inputs are readings, features, scores, reports of the machine side and the passing of time; answers are
//! [`Action`]s in the order to perform them, the stop command always first. Limits and the model's votes are
//! judged apart from each other: a score can add a trip and never takes one away. A number that is not
//! finite is a fault of its sensor, neither a trip nor a proof that all is well: it leaves the latest
//! finite number in force and does not count as a sign of life.
//!
//! The caller keeps [`LatchSnapshot`]s durable and hands the last one to [`Interlock::restore`] after a
//! restart. The path of an input that changes nothing allocates nothing.

mod action;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared_proto::model::{EventTime, MachineId, SensorId};

pub use action::{
    Action, LatchSnapshot, LatchedTrip, MachineState, ResetDone, ResetRefused, SensorFaultKind,
    StopProgress, StopReach, TripCause,
};
pub use settings::{
    ConfirmationSettings, InterlockSettings, LimitRule, Quantity, ScoreVote, SettingsFault,
    Silence, VOTE_WINDOWS_MAX, WAIT_MAX,
};

/// Most causes kept beside the first while a trip is latched; further ones are not recorded.
pub const LATER_CAUSES_MAX: usize = 16;

/// When an input is handled, by both clocks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Processing time: deadlines are counted on it.
    pub instant: Instant,
    /// Calendar time, for the names and the reports of trips only.
    pub time: EventTime,
}

/// Decides when one machine must stop. Tripped is latched: only [`Interlock::reset`] leaves it.
#[derive(Debug)]
pub struct Interlock {
    machine_id: MachineId,
    settings: InterlockSettings,
    sensors: BTreeMap<SensorId, Watched>,
    latch: Latch,
    trip_count: u64,
    machine_state: Option<MachineState>,
    /// No sensor turns silent before this: sensors heard since only move their own deadline back.
    silence_check_at: Option<Instant>,
}

#[derive(Debug)]
enum Latch {
    Armed,
    Tripped(Trip),
}

#[derive(Debug)]
struct Trip {
    trip_id: String,
    cause: TripCause,
    since: EventTime,
    decided: Instant,
    stop: Stop,
    later_causes: Vec<TripCause>,
}

#[derive(Clone, Copy, Debug)]
enum Stop {
    Ordered { attempt: u32, deadline: Instant, is_reported: bool },
    Exhausted { attempts: u32 },
    Confirmed,
}

/// What is known of one sensor that a rule names.
#[derive(Debug, Default)]
struct Watched {
    limits: Vec<WatchedLimit>,
    votes: Option<Votes>,
    /// Present if silence of this sensor is watched.
    heard: Option<Instant>,
    faults: Faults,
}

#[derive(Debug)]
struct WatchedLimit {
    rule: LimitRule,
    latest: Option<f64>,
}

/// One bit a window, the newest lowest.
#[derive(Debug, Default)]
struct Votes {
    windows: u64,
}

#[derive(Debug, Default)]
struct Faults {
    is_silent: bool,
    is_value_bad: bool,
    is_feature_bad: bool,
    is_score_bad: bool,
}

impl Interlock {
    /// An armed interlock; silence is counted from `started`.
    ///
    /// # Errors
    /// All faults of the settings.
    pub fn new(
        machine_id: MachineId,
        settings: InterlockSettings,
        started: Instant,
    ) -> Result<Self, Vec<SettingsFault>> {
        settings.validate()?;
        let mut sensors: BTreeMap<SensorId, Watched> = BTreeMap::new();
        for rule in &settings.limits {
            let watched = sensors.entry(rule.sensor.clone()).or_default();
            watched.limits.push(WatchedLimit { rule: rule.clone(), latest: None });
        }
        for sensor in settings.score_vote.iter().flat_map(|vote| &vote.sensors) {
            sensors.entry(sensor.clone()).or_default().votes = Some(Votes::default());
        }
        let mut silence_check_at = None;
        if let Some(silence) = &settings.silence {
            for sensor in &silence.sensors {
                sensors.entry(sensor.clone()).or_default().heard = Some(started);
                silence_check_at = Some(started + silence.after);
            }
        }
        Ok(Self {
            machine_id,
            settings,
            sensors,
            latch: Latch::Armed,
            trip_count: 0,
            machine_state: None,
            silence_check_at,
        })
    }

    /// The machine it protects.
    #[must_use]
    pub const fn machine_id(&self) -> &MachineId {
        &self.machine_id
    }

    /// Whether a trip is latched.
    #[must_use]
    pub const fn is_tripped(&self) -> bool {
        match self.latch {
            Latch::Armed => false,
            Latch::Tripped(_) => true,
        }
    }

    /// Whether a rule of this machine names the sensor; inputs of others are ignored.
    #[must_use]
    pub fn watches(&self, sensor: &SensorId) -> bool {
        self.sensors.contains_key(sensor)
    }

    /// Judges one scalar reading, in the sensor's unit.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_reading(&mut self, sensor: &SensorId, value: f64, now: Moment) -> Vec<Action> {
        let Some(watched) = self.sensors.get_mut(sensor) else { return Vec::new() };
        let mut actions = Vec::new();
        let is_bad = !value.is_finite();
        if set(&mut watched.faults.is_value_bad, is_bad) {
            actions.push(fault_action(sensor, SensorFaultKind::ValueNotFinite, is_bad));
        }
        let mut causes = Vec::new();
        if !is_bad {
            for limit in &mut watched.limits {
                if limit.rule.quantity == Quantity::Value {
                    causes.extend(limit.judge(value));
                }
            }
        }
        self.hear(sensor, now.instant, &mut actions);
        self.apply(causes, now, &mut actions);
        actions
    }

    /// Judges the features of one vibration window; `feature` answers a name with its number.
    /// To be called for each window, also without feature limits: it is the sensor's sign of life.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_features(
        &mut self,
        sensor: &SensorId,
        feature: impl Fn(&str) -> Option<f64>,
        now: Moment,
    ) -> Vec<Action> {
        let Some(watched) = self.sensors.get_mut(sensor) else { return Vec::new() };
        let mut actions = Vec::new();
        let mut causes = Vec::new();
        let mut is_bad = false;
        for limit in &mut watched.limits {
            let Quantity::Feature(name) = &limit.rule.quantity else { continue };
            match feature(name).filter(|value| value.is_finite()) {
                Some(value) => causes.extend(limit.judge(value)),
                None => is_bad = true,
            }
        }
        if set(&mut watched.faults.is_feature_bad, is_bad) {
            actions.push(fault_action(sensor, SensorFaultKind::FeatureNotUsable, is_bad));
        }
        self.hear(sensor, now.instant, &mut actions);
        self.apply(causes, now, &mut actions);
        actions
    }

    /// Counts the model's score of one window, 0 to 1. A score is no sign of life: it is ours.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_score(&mut self, sensor: &SensorId, score: f64, now: Moment) -> Vec<Action> {
        let Some(rule) = &self.settings.score_vote else { return Vec::new() };
        let Some(watched) = self.sensors.get_mut(sensor) else { return Vec::new() };
        let Some(votes) = &mut watched.votes else { return Vec::new() };
        let mut actions = Vec::new();
        let is_bad = !score.is_finite();
        if set(&mut watched.faults.is_score_bad, is_bad) {
            actions.push(fault_action(sensor, SensorFaultKind::ScoreNotFinite, is_bad));
        }
        if is_bad {
            return actions;
        }
        votes.push(score >= rule.threshold);
        let votes = votes.count(rule.of);
        if votes >= rule.votes {
            let threshold = rule.threshold;
            let cause = TripCause::Score { sensor: sensor.clone(), score, threshold, votes };
            self.apply(vec![cause], now, &mut actions);
        }
        actions
    }

    /// Takes a report of the machine side: the read-back of a stop, or a machine that moves again.
    /// Only a report of standstill that comes after the stop command confirms it.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_machine_state(&mut self, state: MachineState, now: Moment) -> Vec<Action> {
        self.machine_state = Some(state);
        let deadline = now.instant + self.settings.confirmation.deadline;
        let Latch::Tripped(trip) = &mut self.latch else { return Vec::new() };
        match (state, trip.stop) {
            (MachineState::Stopped, Stop::Ordered { attempt: attempts, .. })
            | (MachineState::Stopped, Stop::Exhausted { attempts }) => {
                trip.stop = Stop::Confirmed;
                let after = now.instant.saturating_duration_since(trip.decided);
                let trip_id = trip.trip_id.clone();
                vec![Action::StopConfirmed { trip_id, attempts, after }]
            }
            (MachineState::Running | MachineState::Stopping, Stop::Confirmed) => {
                let send = trip.order_stop(now.instant, deadline, StopReach::All);
                let trip_id = trip.trip_id.clone();
                vec![send, Action::MovedWhileTripped { trip_id, machine_state: state }]
            }
            (MachineState::Stopped, Stop::Confirmed)
            | (
                MachineState::Running | MachineState::Stopping,
                Stop::Ordered { .. } | Stop::Exhausted { .. },
            ) => Vec::new(),
        }
    }

    /// Acts on deadlines that have passed: silent sensors, stops not confirmed.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_timeout(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        self.repeat_stop(now.instant, &mut actions);
        let causes = self.find_silent(now.instant, &mut actions);
        self.apply(causes, now, &mut actions);
        actions
    }

    /// When to call [`Interlock::handle_timeout`] next. May be early, is never late.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = match &self.latch {
            Latch::Tripped(Trip { stop: Stop::Ordered { deadline, .. }, .. }) => Some(*deadline),
            Latch::Tripped(_) | Latch::Armed => None,
        };
        [deadline, self.silence_check_at].into_iter().flatten().min()
    }

    /// Clears the latch on a person's word. Never starts a machine.
    ///
    /// # Errors
    /// Nothing is latched, the stop is not confirmed, or a cause is present: the latest value of any limit
    /// is past it, the votes are enough, a sensor whose silence trips is silent.
    pub fn reset(&mut self, now: Moment) -> Result<ResetDone, ResetRefused> {
        let Latch::Tripped(trip) = &self.latch else {
            return Err(ResetRefused::NotTripped { machine: self.machine_id.clone() });
        };
        match trip.stop {
            Stop::Confirmed => {}
            Stop::Ordered { .. } | Stop::Exhausted { .. } => {
                return Err(ResetRefused::StopNotConfirmed { machine: self.machine_id.clone() });
            }
        }
        if let Some(refusal) = self.find_present_cause(now.instant) {
            return Err(refusal);
        }
        let done = ResetDone { trip_id: trip.trip_id.clone(), cause: trip.cause.clone() };
        self.latch = Latch::Armed;
        Ok(done)
    }

    /// Takes over the state of the previous run. A latched trip orders the stop again, under its old name,
    /// since the machine may have been moved while nobody watched.
    #[must_use = "a stop may have to be sent"]
    pub fn restore(&mut self, snapshot: LatchSnapshot, now: Moment) -> Vec<Action> {
        self.trip_count = self.trip_count.max(snapshot.trip_count);
        let Some(latched) = snapshot.trip else { return Vec::new() };
        let deadline = now.instant + self.settings.confirmation.deadline;
        let mut trip = Trip {
            trip_id: latched.trip_id,
            cause: latched.cause,
            since: latched.since,
            decided: now.instant,
            stop: Stop::Confirmed,
            later_causes: latched.later_causes,
        };
        trip.later_causes.truncate(LATER_CAUSES_MAX);
        let send = trip.order_stop(now.instant, deadline, StopReach::First);
        self.latch = Latch::Tripped(trip);
        vec![send]
    }

    /// Trips because the state of the previous run cannot be known (the configured fail-safe rule).
    #[must_use = "a stop must be sent"]
    pub fn handle_unknown_latch(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        self.apply(vec![TripCause::UnknownLatch], now, &mut actions);
        actions
    }

    /// The state for status pages and for the durable latch.
    #[must_use]
    pub fn snapshot(&self) -> LatchSnapshot {
        let trip = match &self.latch {
            Latch::Armed => None,
            Latch::Tripped(trip) => Some(trip.snapshot()),
        };
        LatchSnapshot {
            machine_id: self.machine_id.clone(),
            trip_count: self.trip_count,
            trip,
            machine_state: self.machine_state,
        }
    }

    /// A sign of life, unless what the sensor sends cannot be used.
    fn hear(&mut self, sensor: &SensorId, now: Instant, actions: &mut Vec<Action>) {
        let Some(silence) = &self.settings.silence else { return };
        let Some(watched) = self.sensors.get_mut(sensor) else { return };
        if watched.faults.is_value_bad || watched.faults.is_feature_bad {
            return;
        }
        let Some(heard) = &mut watched.heard else { return };
        *heard = now;
        if set(&mut watched.faults.is_silent, false) {
            actions.push(fault_action(sensor, SensorFaultKind::Silent, false));
            let check_at = now + silence.after;
            self.silence_check_at =
                Some(self.silence_check_at.map_or(check_at, |at| at.min(check_at)));
        }
    }

    /// Raises the fault of each sensor that has just become silent and moves the next check.
    fn find_silent(&mut self, now: Instant, actions: &mut Vec<Action>) -> Vec<TripCause> {
        let mut causes = Vec::new();
        if self.silence_check_at.is_none_or(|at| at > now) {
            return causes;
        }
        let Some(silence) = &self.settings.silence else { return causes };
        self.silence_check_at = None;
        for (sensor, watched) in &mut self.sensors {
            let Some(heard) = watched.heard.filter(|_| !watched.faults.is_silent) else { continue };
            let silent_at = heard + silence.after;
            if silent_at > now {
                let next = self.silence_check_at.map_or(silent_at, |at| at.min(silent_at));
                self.silence_check_at = Some(next);
                continue;
            }
            watched.faults.is_silent = true;
            actions.push(fault_action(sensor, SensorFaultKind::Silent, true));
            if silence.trips {
                let limit_ms = whole_millis(silence.after);
                causes.push(TripCause::Silence { sensor: sensor.clone(), limit_ms });
            }
        }
        causes
    }

    /// Orders a stop again whose deadline has passed, or gives up ordering it.
    fn repeat_stop(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Latch::Tripped(trip) = &mut self.latch else { return };
        let Stop::Ordered { attempt, deadline, is_reported } = trip.stop else { return };
        if deadline > now {
            return;
        }
        let is_escalated = attempt >= self.settings.confirmation.attempts_max;
        if is_escalated {
            trip.stop = Stop::Exhausted { attempts: attempt };
        } else {
            let attempt = attempt + 1;
            let deadline = now + self.settings.confirmation.deadline;
            trip.stop = Stop::Ordered { attempt, deadline, is_reported: true };
            let (trip_id, reach) = (trip.trip_id.clone(), StopReach::All);
            actions.push(Action::SendStop { trip_id, attempt, reach });
        }
        if is_escalated || !is_reported {
            let trip_id = trip.trip_id.clone();
            let after = now.saturating_duration_since(trip.decided);
            actions.push(Action::StopNotConfirmed {
                trip_id,
                attempts: attempt,
                is_escalated,
                after,
            });
        }
    }

    /// Trips on the first cause if armed; records the others.
    fn apply(&mut self, causes: Vec<TripCause>, now: Moment, actions: &mut Vec<Action>) {
        for cause in causes {
            match &mut self.latch {
                Latch::Tripped(trip) => trip.record(cause),
                Latch::Armed => self.trip(cause, now, actions),
            }
        }
    }

    fn trip(&mut self, cause: TripCause, now: Moment, actions: &mut Vec<Action>) {
        self.trip_count += 1;
        let trip_id = format!("{}-{}-{}", self.machine_id, now.time.micros(), self.trip_count);
        let deadline = now.instant + self.settings.confirmation.deadline;
        let mut trip = Trip {
            trip_id: trip_id.clone(),
            cause: cause.clone(),
            since: now.time,
            decided: now.instant,
            stop: Stop::Confirmed,
            later_causes: Vec::new(),
        };
        actions.insert(0, trip.order_stop(now.instant, deadline, StopReach::First));
        actions.push(Action::Trip { trip_id, cause });
        self.latch = Latch::Tripped(trip);
    }

    fn find_present_cause(&self, now: Instant) -> Option<ResetRefused> {
        let sensors = || self.sensors.iter();
        let limit = sensors().flat_map(|(_, watched)| &watched.limits).find_map(|limit| {
            let value = limit.latest?;
            let passed = limit.rule.passed(value)?;
            Some(ResetRefused::LimitPresent {
                rule: limit.rule.name.clone(),
                sensor: limit.rule.sensor.clone(),
                value,
                limit: passed,
            })
        });
        let score = self.settings.score_vote.as_ref().and_then(|rule| {
            sensors().find_map(|(sensor, watched)| {
                let votes = watched.votes.as_ref()?.count(rule.of);
                (votes >= rule.votes).then(|| ResetRefused::VotesPresent {
                    sensor: sensor.clone(),
                    votes,
                    needed: rule.votes,
                })
            })
        });
        let silence = self.settings.silence.as_ref().filter(|silence| silence.trips);
        let silent = silence.and_then(|silence| {
            sensors().find_map(|(sensor, watched)| {
                let heard = watched.heard?;
                (heard + silence.after <= now)
                    .then(|| ResetRefused::SensorSilent { sensor: sensor.clone() })
            })
        });
        limit.or(score).or(silent)
    }
}

impl Trip {
    /// Starts a round of stop commands; the deadline of the first is given.
    fn order_stop(&mut self, now: Instant, deadline: Instant, reach: StopReach) -> Action {
        self.decided = now;
        self.stop = Stop::Ordered { attempt: 1, deadline, is_reported: false };
        Action::SendStop { trip_id: self.trip_id.clone(), attempt: 1, reach }
    }

    fn record(&mut self, cause: TripCause) {
        let is_known = self.cause.is_same_rule(&cause)
            || self.later_causes.iter().any(|known| known.is_same_rule(&cause));
        if !is_known && self.later_causes.len() < LATER_CAUSES_MAX {
            self.later_causes.push(cause);
        }
    }

    fn snapshot(&self) -> LatchedTrip {
        LatchedTrip {
            trip_id: self.trip_id.clone(),
            cause: self.cause.clone(),
            since: self.since,
            stop: match self.stop {
                Stop::Ordered { is_reported: false, .. } => StopProgress::Ordered,
                Stop::Ordered { is_reported: true, .. } | Stop::Exhausted { .. } => {
                    StopProgress::NotConfirmed
                }
                Stop::Confirmed => StopProgress::Confirmed,
            },
            later_causes: self.later_causes.clone(),
        }
    }
}

impl WatchedLimit {
    /// Takes a finite value as the latest and answers with a cause if it is past the limit.
    fn judge(&mut self, value: f64) -> Option<TripCause> {
        self.latest = Some(value);
        let limit = self.rule.passed(value)?;
        let (rule, sensor) = (self.rule.name.clone(), self.rule.sensor.clone());
        Some(TripCause::Limit { rule, sensor, value, limit })
    }
}

impl Votes {
    fn push(&mut self, is_vote: bool) {
        self.windows = (self.windows << 1) | u64::from(is_vote);
    }

    /// Votes among the last `of` windows, `of` from 1 to 64.
    const fn count(&self, of: u32) -> u32 {
        (self.windows << (u64::BITS - of)).count_ones()
    }
}

/// Sets a flag and answers whether it changed.
fn set(flag: &mut bool, value: bool) -> bool {
    std::mem::replace(flag, value) != value
}

fn fault_action(sensor: &SensorId, kind: SensorFaultKind, is_fault: bool) -> Action {
    let sensor = sensor.clone();
    if is_fault {
        Action::SensorFault { sensor, kind }
    } else {
        Action::SensorRecovered { sensor, kind }
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
