//! Decides when a machine must stop: armed, then tripped and latched until a person resets it.
//!
//! Inputs are readings, blocks, features, scores, reports of the machine side, words of people and the passing of
//! time; answers are [`Action`]s in the order to perform them, the stop command always first.
//!
//! - **Limits** (`limit`) have hysteresis, on-delay and off-delay; **votes** (`vote`) count the model's scores. They
//!   are judged apart from each other: a score can add a trip and never takes one away. Either trips, or only alarms.
//! - **Sensor faults** ([`crate::condition`]) are no values: what a sensor sends while a fault voids its values
//!   raises no trip and proves nothing; the last usable value stands, and so does an on-delay that it began. The
//!   policy for faults (`on_fault`) and for silence says whether they trip.
//! - **Start-up** (`startup`), **shelving** (`shelving`) and **dry run** keep a violation from acting, each
//!   reported once. When the first two end, a rule that is still violated acts at once.
//! - **Dry run** judges and reports everything and sends and latches nothing. A latch that was restored is of a
//!   real trip: it stays in force, orders its stop and waits for its reset.
//! - **Reset** is refused while a rule in force is violated, a value is past its limit or not yet back, or the
//!   stop is not confirmed. It never starts a machine. A limit or vote cannot be shelved while a trip is latched,
//!   since that would be a way round the refusal; the policies for sensors can, since a broken sensor would
//!   otherwise hold its machine until it is replaced.
//!
//! Each input first brings the state up to its moment, as if every timer had been handled when it was due. The
//! caller keeps [`LatchSnapshot`]s durable and hands the last one to [`Interlock::restore`] after a restart. The
//! path of an input that changes nothing allocates nothing.

mod action;
mod limit;
mod replace;
mod response;
mod settings;
mod shelving;
mod startup;
mod trip;
mod vote;
mod watched;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock};

pub use action::{
    Action, FaultySensor, LatchSnapshot, LatchedTrip, MachineState, ResetDone, ResetRefused,
    StopProgress, StopReach, Suppression, TripCause,
};
pub use settings::{
    ConfirmationSettings, DELAY_MAX, DuringStartup, InterlockSettings, LimitRule, Quantity,
    RuleAction, SCORE_RULE, SENSOR_FAULT_RULE, SILENCE_RULE, STARTUP_MAX, ScoreVote, SensorRule,
    SettingsFault, Silence, VOTE_WINDOWS_MAX, WAIT_MAX,
};
pub use shelving::{REASON_CHARACTERS_MAX, ShelveRefused, ShelveRequest, ShelvedRule, UnshelvedBy};
pub use vote::WindowScore;

pub use crate::condition::SensorFaultKind;
use crate::condition::{Condition, FaultChange, Measured};
use limit::Limit;
use response::Effect;
use shelving::Shelf;
use startup::Startup;
use trip::Trip;
use vote::Votes;
use watched::{Finding, Force, Watched};

/// Most causes kept beside the first while a trip is latched; further ones are not recorded.
pub const LATER_CAUSES_MAX: usize = 16;

/// When an input is handled, by both clocks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Processing time: deadlines are counted on it.
    pub instant: Instant,
    /// Calendar time, for names and reports, for the clocks of sensors, and for shelvings over a restart.
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
    shelf: Shelf,
    startup: Startup,
    /// Nothing but a stop's deadline is due before this. May be early: a sensor that is heard moves its own time only.
    wake_at: Option<Instant>,
}

#[derive(Debug)]
enum Latch {
    Armed,
    Tripped(Trip),
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
            watched.limits.push(Limit::new(rule.clone()));
        }
        for sensor in settings.score_vote.iter().flat_map(|vote| &vote.sensors) {
            sensors.entry(sensor.clone()).or_default().votes = Some(Votes::default());
        }
        for sensor in settings.silence.iter().flat_map(|silence| &silence.sensors) {
            sensors.entry(sensor.clone()).or_default().heard = Some(started);
        }
        for rule in &settings.sensors {
            sensors.entry(rule.sensor.clone()).or_default();
        }
        for (sensor, watched) in &mut sensors {
            let rule = settings.sensors.iter().find(|rule| rule.sensor == *sensor);
            watched.condition = Condition::new(rule.map(|rule| rule.condition).unwrap_or_default());
            watched.on_fault = rule.map_or(settings.on_fault, |rule| rule.on_fault);
        }
        let mut this = Self {
            machine_id,
            startup: Startup::new(settings.startup_suppression),
            settings,
            sensors,
            latch: Latch::Armed,
            trip_count: 0,
            machine_state: None,
            shelf: Shelf::default(),
            wake_at: None,
        };
        this.find_wake(started);
        Ok(this)
    }

    /// The machine it protects.
    #[must_use]
    pub const fn machine_id(&self) -> &MachineId {
        &self.machine_id
    }

    /// Version of the rules in force, as it was given.
    #[must_use]
    pub fn rule_version(&self) -> &str {
        &self.settings.rule_version
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

    /// The sensors that a rule of this machine names.
    pub fn sensors(&self) -> impl Iterator<Item = &SensorId> {
        self.sensors.keys()
    }

    /// Rules that are out of force by a person's word.
    #[must_use]
    pub fn shelved_rules(&self) -> usize {
        self.shelf.rules().count()
    }

    /// Whether a rule looks at scalar readings of this sensor, or none at anything else of it.
    #[must_use]
    pub fn judges_values(&self, sensor: &SensorId) -> bool {
        self.sensors.get(sensor).is_none_or(|watched| watched.judges_values())
    }

    /// Whether a rule looks at waveform blocks of this sensor, or none at anything else of it.
    #[must_use]
    pub fn judges_blocks(&self, sensor: &SensorId) -> bool {
        self.sensors.get(sensor).is_none_or(|watched| watched.judges_blocks())
    }

    /// Faults of sensors that are present.
    #[must_use]
    pub fn sensor_faults(&self) -> usize {
        self.sensors.values().map(|watched| watched.condition.present().count()).sum()
    }

    /// Whether it judges and reports, and stops nothing.
    #[must_use]
    pub const fn is_dry_run(&self) -> bool {
        self.settings.dry_run
    }

    /// Name of the trip that is latched.
    #[must_use]
    pub fn trip_id(&self) -> Option<&str> {
        match &self.latch {
            Latch::Armed => None,
            Latch::Tripped(trip) => Some(&trip.trip_id),
        }
    }

    /// Judges one scalar reading, in the sensor's unit.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_reading(
        &mut self,
        sensor: &SensorId,
        measured: impl Into<Measured>,
        now: Moment,
    ) -> Vec<Action> {
        let measured = measured.into();
        let mut actions = self.catch_up(now);
        let Some(watched) = self.sensors.get_mut(sensor) else { return actions };
        let mut changes = Vec::new();
        watched.condition.handle_value(measured, now, &mut changes);
        if watched.condition.is_usable() {
            for limit in &mut watched.limits {
                if limit.rule.quantity == Quantity::Value {
                    limit.handle_value(measured.value, now.instant);
                }
            }
        }
        self.hear(sensor, now.instant, &mut changes);
        self.settle(sensor, &changes, now, &mut actions);
        actions
    }

    /// Takes a block of samples before its windows are judged: it may show a fault of its sensor.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_block(&mut self, block: &WaveformBlock, now: Moment) -> Vec<Action> {
        let mut actions = self.catch_up(now);
        let sensor = &block.sensor_id;
        let Some(watched) = self.sensors.get_mut(sensor) else { return actions };
        let mut changes = Vec::new();
        watched.condition.handle_block(block, now, &mut changes);
        self.settle(sensor, &changes, now, &mut actions);
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
        let mut actions = self.catch_up(now);
        let Some(watched) = self.sensors.get_mut(sensor) else { return actions };
        let mut changes = Vec::new();
        let mut are_usable = true;
        let is_sensor_usable = watched.condition.is_usable();
        for limit in &mut watched.limits {
            let Quantity::Feature(name) = &limit.rule.quantity else { continue };
            match feature(name).filter(|value| value.is_finite()) {
                Some(value) if is_sensor_usable => limit.handle_value(value, now.instant),
                Some(_) => {}
                None => are_usable = false,
            }
        }
        watched.condition.handle_features(are_usable, now, &mut changes);
        self.hear(sensor, now.instant, &mut changes);
        self.settle(sensor, &changes, now, &mut actions);
        actions
    }

    /// Counts the model's score of one window. A score is no sign of life: it is ours.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_score(
        &mut self,
        sensor: &SensorId,
        window: WindowScore,
        now: Moment,
    ) -> Vec<Action> {
        let mut actions = self.catch_up(now);
        let Some(rule) = &self.settings.score_vote else { return actions };
        let Some(watched) = self.sensors.get_mut(sensor) else { return actions };
        let Some(votes) = &mut watched.votes else { return actions };
        let mut changes = Vec::new();
        watched.condition.handle_score(window.score.is_finite(), &mut changes);
        if window.score.is_finite() && watched.condition.is_usable() {
            votes.push(window.score, rule.threshold.unwrap_or(window.threshold));
        }
        self.settle(sensor, &changes, now, &mut actions);
        actions
    }

    /// Latest report of the machine side, if any.
    #[must_use]
    pub const fn machine_state(&self) -> Option<MachineState> {
        self.machine_state
    }

    /// What is violated now, whether it acts or not: a dry run, a start, a shelving or a delay takes nothing off this list.
    #[must_use]
    pub fn violations(&self) -> Vec<TripCause> {
        let sensors = self.sensors.iter();
        sensors.flat_map(|(sensor, watched)| watched.violations(sensor, &self.settings)).collect()
    }

    /// Counts votes anew: those before were held against another threshold.
    #[must_use = "an alarm may be over"]
    pub fn restart_votes(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = self.catch_up(now);
        for votes in self.sensors.values_mut().filter_map(|watched| watched.votes.as_mut()) {
            votes.restart();
        }
        self.settle_all(now, &mut actions);
        actions
    }

    /// Takes a report of the machine side: the read-back of a stop, a machine that moves again, or one that starts.
    /// Only a report of standstill that comes after the stop command confirms it.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_machine_state(&mut self, state: MachineState, now: Moment) -> Vec<Action> {
        let was_armed = !self.is_tripped();
        let mut actions = self.catch_up(now);
        self.machine_state = Some(state);
        let begun = self.startup.handle_state(state, !self.is_tripped(), now.instant);
        self.wake_by(begun);
        if let Latch::Tripped(trip) = &mut self.latch
            && !was_armed
        {
            trip.handle_state(state, self.settings.confirmation, now.instant, &mut actions);
        }
        actions
    }

    /// Takes a person's wish to take a rule out of force, or to put it in force again. The actions are to be
    /// performed in either case.
    ///
    /// # Errors
    /// Shelving is not allowed, not for so long, not of such a rule, or not now; or the rule is not shelved.
    pub fn shelve(
        &mut self,
        request: &ShelveRequest,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), ShelveRefused> {
        actions.append(&mut self.catch_up(now));
        let rule = request.rule.clone();
        if request.duration.is_zero() {
            let Some(shelved) = self.shelf.unshelve(&rule) else {
                return Err(ShelveRefused::NotShelved { rule });
            };
            let operator = Some(request.operator.clone());
            actions.push(Action::Unshelved { shelved, by: UnshelvedBy::Operator, operator });
            self.settle_all(now, actions);
            return Ok(());
        }
        let max = self.settings.shelving_max;
        if max.is_zero() {
            return Err(ShelveRefused::NotAllowed);
        }
        if request.duration > max {
            return Err(ShelveRefused::TooLong { rule, asked: request.duration, max });
        }
        if !self.has_rule(&rule) {
            return Err(ShelveRefused::UnknownRule { rule, known: self.rule_names() });
        }
        let is_of_sensors =
            [SILENCE_RULE, SENSOR_FAULT_RULE].contains(&rule.split(':').next().unwrap_or_default());
        if self.is_tripped() && !is_of_sensors {
            return Err(ShelveRefused::Tripped { rule });
        }
        let shelved = self.shelf.shelve(request, now);
        self.wake_by(self.shelf.next_timeout());
        actions.push(Action::Shelved { shelved });
        Ok(())
    }

    /// Acts on what is due: silent sensors, delays, the end of start-ups and shelvings, stops not confirmed.
    #[must_use = "a stop may have to be sent"]
    pub fn handle_timeout(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Latch::Tripped(trip) = &mut self.latch {
            trip.pass_time(self.settings.confirmation, now.instant, &mut actions);
        }
        let mut due = self.catch_up(now);
        if actions.is_empty() {
            due
        } else {
            actions.append(&mut due);
            actions
        }
    }

    /// When to call [`Interlock::handle_timeout`] next. May be early, is never late.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = match &self.latch {
            Latch::Tripped(trip) => trip.next_timeout(),
            Latch::Armed => None,
        };
        [deadline, self.wake_at].into_iter().flatten().min()
    }

    /// Clears the latch on a person's word. Never starts a machine.
    ///
    /// # Errors
    /// Nothing is latched, the stop is not confirmed, or a cause is present of a rule that trips and is not
    /// shelved: a limit whose value is not back, enough votes, a silent sensor, a sensor at fault.
    pub fn reset(&mut self, now: Moment) -> Result<ResetDone, ResetRefused> {
        let Latch::Tripped(trip) = &self.latch else {
            return Err(ResetRefused::NotTripped { machine: self.machine_id.clone() });
        };
        let force = self.force(now.instant);
        let mut causes =
            self.sensors.iter().filter_map(|(sensor, watched)| watched.refusal(sensor, force));
        if let Some(refusal) = trip.refusal(&self.machine_id).or_else(|| causes.next()) {
            return Err(refusal);
        }
        let done = ResetDone { trip_id: trip.trip_id.clone(), cause: trip.cause.clone() };
        self.latch = Latch::Armed;
        Ok(done)
    }

    /// Takes over the state of the previous run. A latched trip orders the stop again, under its old name,
    /// since the machine may have been moved while nobody watched. Shelvings go on with what is left of them.
    #[must_use = "a stop may have to be sent"]
    pub fn restore(&mut self, snapshot: LatchSnapshot, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        self.trip_count = self.trip_count.max(snapshot.trip_count);
        if let Some(latched) = snapshot.trip {
            let (trip, send) = Trip::restore(latched, self.settings.confirmation, now);
            self.latch = Latch::Tripped(trip);
            actions.push(send);
        }
        for shelved in snapshot.shelved {
            let is_known = self.has_rule(&shelved.rule);
            let max = if is_known { self.settings.shelving_max } else { Duration::ZERO };
            if let Err(shelved) = self.shelf.restore(shelved, max, now) {
                let by = UnshelvedBy::Restart;
                actions.push(Action::Unshelved { shelved, by, operator: None });
            }
        }
        self.wake_by(self.shelf.next_timeout());
        actions
    }

    /// Trips because the state of the previous run cannot be known (the configured fail-safe rule).
    #[must_use = "a stop must be sent"]
    pub fn handle_unknown_latch(&mut self, now: Moment) -> Vec<Action> {
        self.start_tripped(TripCause::UnknownLatch, now)
    }

    /// Trips because a person must release the machine after each restart (the configured rule). A trip that is
    /// latched already stays as it is.
    #[must_use = "a stop must be sent"]
    pub fn handle_restart(&mut self, now: Moment) -> Vec<Action> {
        if self.is_tripped() { Vec::new() } else { self.start_tripped(TripCause::Restart, now) }
    }

    /// Trips because a person orders it, also in dry run. A trip that is latched already stays as it is.
    #[must_use = "a stop must be sent"]
    pub fn handle_order(&mut self, operator: String, reason: String, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.is_tripped() {
            self.trip(TripCause::Ordered { operator, reason }, now, &mut actions);
        }
        actions
    }

    /// The state for status pages and for the durable latch.
    #[must_use]
    pub fn snapshot(&self) -> LatchSnapshot {
        let faults = |(sensor, watched): (&SensorId, &Watched)| {
            let sensor = sensor.clone();
            let of_sensor = move |fault| FaultySensor { sensor: sensor.clone(), fault };
            watched.condition.present().map(of_sensor).collect::<Vec<_>>()
        };
        let alarms = self
            .sensors
            .iter()
            .flat_map(|(sensor, watched)| watched.alarms(sensor, &self.settings));
        LatchSnapshot {
            machine_id: self.machine_id.clone(),
            trip_count: self.trip_count,
            trip: match &self.latch {
                Latch::Armed => None,
                Latch::Tripped(trip) => Some(trip.snapshot()),
            },
            machine_state: self.machine_state,
            shelved: self.shelf.rules().cloned().collect(),
            alarms: alarms.collect(),
            sensor_faults: self.sensors.iter().flat_map(faults).collect(),
            dry_run: self.settings.dry_run,
            rule_version: self.settings.rule_version.clone(),
        }
    }

    /// A sign of life, unless what the sensor sends cannot be used.
    fn hear(&mut self, sensor: &SensorId, now: Instant, changes: &mut Vec<FaultChange>) {
        let Some(silence) = &self.settings.silence else { return };
        let Some(watched) = self.sensors.get_mut(sensor) else { return };
        let is_present = |kind| watched.condition.is_present(kind);
        if is_present(SensorFaultKind::ValueNotFinite)
            || is_present(SensorFaultKind::FeatureNotUsable)
        {
            return;
        }
        let Some(heard) = &mut watched.heard else { return };
        *heard = now;
        let was_silent = watched.condition.is_present(SensorFaultKind::Silent);
        watched.condition.handle_silence(false, changes);
        if was_silent {
            let silent_at = now + silence.after;
            self.wake_by(Some(silent_at));
        }
    }

    /// Does what was due up to now. The state is then as if each timer had been handled in time.
    fn catch_up(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.wake_at.is_none_or(|at| at > now.instant) {
            return actions;
        }
        let mut changes = Vec::new();
        for (sensor, watched) in &mut self.sensors {
            if watched.pass_time(&self.settings, now.instant) {
                watched.condition.handle_silence(true, &mut changes);
                report(sensor, &changes, &mut actions);
                changes.clear();
            }
        }
        for shelved in self.shelf.expire(now.instant) {
            actions.push(Action::Unshelved { shelved, by: UnshelvedBy::Expiry, operator: None });
        }
        self.settle_all(now, &mut actions);
        self.find_wake(now.instant);
        actions
    }

    /// Acts on the rules of one sensor after an input.
    fn settle(
        &mut self,
        sensor: &SensorId,
        changes: &[FaultChange],
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        report(sensor, changes, actions);
        let mut findings = Vec::new();
        let Self { settings, sensors, latch, shelf, startup, .. } = self;
        let Some(watched) = sensors.get_mut(sensor) else { return };
        let is_armed = matches!(latch, Latch::Armed);
        let force = Force { settings, shelf, startup, is_armed, now: now.instant };
        watched.settle(sensor, force, &mut findings);
        let timeout = watched.limits.iter().filter_map(Limit::next_timeout).min();
        self.wake_by(timeout);
        self.act(findings, now, actions);
    }

    fn settle_all(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let mut findings = Vec::new();
        let Self { settings, sensors, latch, shelf, startup, .. } = self;
        let is_armed = matches!(latch, Latch::Armed);
        let force = Force { settings, shelf, startup, is_armed, now: now.instant };
        for (sensor, watched) in sensors {
            watched.settle(sensor, force, &mut findings);
        }
        self.act(findings, now, actions);
    }

    /// Trips on the first cause if armed; records the others.
    fn act(&mut self, findings: Vec<Finding>, now: Moment, actions: &mut Vec<Action>) {
        for (effect, cause) in findings {
            match effect {
                Effect::Trip => match &mut self.latch {
                    Latch::Tripped(trip) => trip.record(cause),
                    Latch::Armed => self.trip(cause, now, actions),
                },
                Effect::Suppressed(by) => actions.push(Action::TripSuppressed { cause, by }),
                Effect::Alarm => actions.push(Action::Alarm { cause }),
                Effect::AlarmCleared => actions.push(Action::AlarmCleared { cause }),
            }
        }
    }

    fn trip(&mut self, cause: TripCause, now: Moment, actions: &mut Vec<Action>) {
        self.trip_count += 1;
        let trip_id = format!("{}-{}-{}", self.machine_id, now.time.micros(), self.trip_count);
        let version = self.settings.rule_version.clone();
        let (trip, send) =
            Trip::new(trip_id.clone(), cause.clone(), version, self.settings.confirmation, now);
        actions.insert(0, send);
        actions.push(Action::Trip { trip_id, cause });
        self.latch = Latch::Tripped(trip);
    }

    fn start_tripped(&mut self, cause: TripCause, now: Moment) -> Vec<Action> {
        let by = Suppression::DryRun;
        let effect = if self.settings.dry_run { Effect::Suppressed(by) } else { Effect::Trip };
        let mut actions = Vec::new();
        self.act(vec![(effect, cause)], now, &mut actions);
        actions
    }

    const fn force(&self, now: Instant) -> Force<'_> {
        let Self { settings, shelf, startup, .. } = self;
        Force { settings, shelf, startup, is_armed: !self.is_tripped(), now }
    }

    fn wake_by(&mut self, at: Option<Instant>) {
        self.wake_at = [self.wake_at, at].into_iter().flatten().min();
    }

    /// Looks for the next time that something but a stop's deadline is due.
    fn find_wake(&mut self, now: Instant) {
        let of_sensors =
            self.sensors.values().filter_map(|watched| watched.next_timeout(&self.settings));
        let startup = self.startup.ends().filter(|ends| *ends > now);
        self.wake_at = of_sensors.chain(self.shelf.next_timeout()).chain(startup).min();
    }

    /// Whether a person may mean a rule of this machine by this name.
    fn has_rule(&self, name: &str) -> bool {
        let (stem, of) = match name.split_once(':') {
            Some((stem, of)) => (stem, Some(of)),
            None => (name, None),
        };
        let is_there = |is_of_rule: &dyn Fn(&Watched) -> bool| {
            self.sensors.iter().any(|(sensor, watched)| {
                of.is_none_or(|of| of == sensor.as_str()) && is_of_rule(watched)
            })
        };
        match stem {
            SCORE_RULE => is_there(&|watched| watched.votes.is_some()),
            SILENCE_RULE => is_there(&|watched| watched.heard.is_some()),
            SENSOR_FAULT_RULE => is_there(&|_| true),
            _ => self.settings.limits.iter().any(|rule| rule.name == name),
        }
    }

    fn rule_names(&self) -> String {
        let policies = [SCORE_RULE, SILENCE_RULE, SENSOR_FAULT_RULE].into_iter();
        let policies = policies.filter(|name| self.has_rule(name));
        let limits = self.settings.limits.iter().map(|rule| rule.name.as_str());
        limits.chain(policies).collect::<Vec<_>>().join(", ")
    }
}

fn report(sensor: &SensorId, changes: &[FaultChange], actions: &mut Vec<Action>) {
    actions.extend(changes.iter().map(|change| {
        let (sensor, kind) = (sensor.clone(), change.kind);
        if change.is_present {
            Action::SensorFault { sensor, kind }
        } else {
            Action::SensorRecovered { sensor, kind }
        }
    }));
}
