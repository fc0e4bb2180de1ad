//! A machine is learnt: a person asks for it, the windows of the stop path are taken, and what came of it is kept before it holds.
//!
//! Learning judges nothing and delays nothing: limits and votes act meanwhile as they are set to, and whatever they find ends it. Only
//! the votes of a model of a level say nothing yet: its own threshold is that of another machine. A machine that they would stop
//! is learnt with `score-action = "alarm"`; its limits stop it still.
//!
//! Windows of a machine with operating conditions wait in the learner until later readings have confirmed their condition. It is asked
//! with each look around of the loop; while no machine is learnt, readings cost nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::baseline::{
    Baseline, LearnOutcome, LearnRefused, LearnRequest, LearnSettings, Learner, ModelOfSensor,
};
use edge_core::interlock::{Action, Interlock, MachineState, TripCause};
use shared_proto::model::{MachineEventDetails, MachineEventType, MachineId, SensorId};
use tracing::{info, warn};

use super::{Protection, moment};
use crate::actuation::messages::{LearnOrder, ShownLearning, ShownWindows};
use crate::analysis::Judged;
use crate::calibration::{Calibration, KeptBaseline};
use crate::scoring::Bundle;
use crate::telemetry;

/// Margin of a bundle that states none, in natural logarithmic odds: the odds of the highest learnt window times e².
const MARGIN_LOGIT: f64 = 2.0;
/// A machine's learning begins or ends at most so often by request: each is an event, a line and a latch to write.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// How far a run is, is published so often, beside all that is published anyway.
const SHOW_INTERVAL: Duration = Duration::from_secs(5);
/// What a person is told when nothing can be learnt.
const NO_MODEL: &str = "no sensor of this machine is scored by a model: set scored-sensors";

/// A run of learning.
pub(super) struct Run {
    learner: Learner,
    operator: String,
    /// Version of the machine's operating conditions.
    conditions: String,
    /// Sensors whose model judges a level: what its own threshold says of this machine is no finding before it is learnt.
    of_level: BTreeSet<SensorId>,
    /// When it was published last how far it is.
    shown_at: Instant,
}

impl Run {
    /// Whether a finding says that the machine is not healthy.
    fn counts(&self, cause: &TripCause) -> bool {
        !is_of_level(cause, &self.of_level)
    }

    /// Learns windows whose condition was confirmed since, and ends when its time is over.
    fn look_around(
        &mut self,
        machine_id: &MachineId,
        calibration: &Calibration,
        now: Instant,
    ) -> Option<LearnOutcome> {
        if self.learner.has_waiting() {
            self.learner.handle_condition(calibration.holding(machine_id, now), now)
        } else {
            self.learner.handle_timeout(now)
        }
    }
}

fn is_of_level(cause: &TripCause, of_level: &BTreeSet<SensorId>) -> bool {
    match cause {
        TripCause::Score { sensor, .. } => of_level.contains(sensor),
        TripCause::Limit { .. }
        | TripCause::Silence { .. }
        | TripCause::SensorFault { .. }
        | TripCause::UnknownLatch
        | TripCause::Restart
        | TripCause::Ordered { .. } => false,
    }
}

/// Runs by machine.
pub(super) type Runs = BTreeMap<MachineId, Run>;

/// Takes a window of a machine that may be learnt.
pub(super) fn take_window(
    runs: &mut Runs,
    machine_id: &MachineId,
    sensor: &SensorId,
    calibration: &Calibration,
    judged: &Judged<'_>,
) -> Option<LearnOutcome> {
    let run = runs.get_mut(machine_id)?;
    let (features, score, now) = (judged.features(), judged.score?, Instant::now());
    match calibration.current(machine_id, now).name() {
        Some(name) => run.learner.handle_window(sensor, name, features, score.logit, now),
        None => run.learner.handle_unknown_condition(sensor, now),
    }
}

impl Protection {
    /// Begins a run of learning, or ends one.
    pub(super) fn learn(&mut self, machine_id: &MachineId, order: &LearnOrder) {
        let now = Instant::now();
        let last = self.learn_asked_at.get(machine_id);
        let is_flood = last.is_some_and(|at| now.duration_since(*at) < REQUEST_INTERVAL);
        let result = if is_flood {
            Err("one request a second is taken: wait".to_owned())
        } else if order.duration.is_zero() {
            self.cancel_learning(machine_id)
        } else {
            self.begin_learning(machine_id, order)
        };
        match result {
            Ok(()) => {
                self.learn_asked_at.insert(machine_id.clone(), now);
                self.refused.remove(machine_id);
                self.publish_latch(machine_id);
            }
            Err(reason) => {
                metrics::counter!(telemetry::INPUT_REFUSED, "reason" => "learn").increment(1);
                if self.may_tell_refusal(machine_id) {
                    self.tell_not_learnt(machine_id, order.operator.clone(), "request", reason);
                }
            }
        }
    }

    fn cancel_learning(&mut self, machine_id: &MachineId) -> Result<(), String> {
        let run = self.runs.get_mut(machine_id);
        let outcome = run.and_then(|run| run.learner.cancel());
        let outcome = outcome.ok_or_else(|| "nothing is being learnt".to_owned())?;
        self.end_learning(machine_id, outcome);
        Ok(())
    }

    fn begin_learning(&mut self, machine_id: &MachineId, order: &LearnOrder) -> Result<(), String> {
        let Some(interlock) = self.interlocks.get(machine_id) else {
            return Err("this machine is not protected".to_owned());
        };
        if self.runs.contains_key(machine_id) {
            return Err("it is being learnt already: end that with \"for\":\"0s\" first".to_owned());
        }
        if interlock.is_tripped() {
            return Err(
                "the machine is tripped: reset it, and learn it when it runs healthily".to_owned()
            );
        }
        let latch = interlock.snapshot();
        if let Some(fault) = latch.sensor_faults.first() {
            return Err(format!("sensor {} is faulty: mend it first", fault.sensor));
        }
        let Some((conditions, version, scored)) = self.calibration.conditions(machine_id) else {
            return Err("its operating conditions are not known".to_owned());
        };
        let (models, margins, window) = self.models_of(&scored);
        if models.is_empty() {
            return Err(NO_MODEL.to_owned());
        }
        let of_level = models.iter().filter(|(_, model)| model.is_absolute);
        let of_level: BTreeSet<SensorId> = of_level.map(|(sensor, _)| sensor.clone()).collect();
        // Also what a dry run or a shelving keeps from acting.
        let violations = interlock.violations();
        if let Some(cause) = violations.iter().find(|cause| !is_of_level(cause, &of_level)) {
            let rule = cause.rule();
            return Err(format!("rule {rule} is violated ({cause}): remove the cause first"));
        }
        let count = models.len();
        let settings = LearnSettings {
            duration: order.duration,
            deadline: order.within.unwrap_or(self.learning.within).max(order.duration),
            gap_max: self.learning.gap_max,
            settle: self.learning.settle.max(window),
            windows_min: self.learning.windows_min,
            margin_logit: margins,
            models,
        };
        let (operator, version) = (order.operator.clone(), version.to_owned());
        let request = LearnRequest {
            machine_id: machine_id.clone(),
            operator: operator.clone(),
            conditions,
            is_replacing: order.is_replacing,
        };
        let (previous, began) = (self.calibration.baseline(machine_id).cloned(), moment());
        let mut learner = Learner::new(request, settings, previous, began).map_err(|faults| {
            faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        })?;
        // Nothing can be over so soon.
        drop(match latch.machine_state {
            Some(MachineState::Stopped | MachineState::Stopping) => {
                learner.handle_standstill(Instant::now())
            }
            Some(MachineState::Running) | None => None,
        });
        let shown_at = began.instant;
        self.calibration.follow(machine_id, shown_at);
        let run = Run { learner, operator, conditions: version, of_level, shown_at };
        self.runs.insert(machine_id.clone(), run);
        self.tell_begun(machine_id, order, count);
        Ok(())
    }

    fn tell_begun(&mut self, machine_id: &MachineId, order: &LearnOrder, sensors: usize) {
        let LearnOrder { operator, duration, is_replacing, .. } = order;
        info!(%machine_id, operator, sensors, for_s = duration.as_secs(), "learning begins: the machine must run healthily");
        let details = MachineEventDetails {
            operator: Some(operator.clone()),
            detail: Some(format!(
                "{duration:?} of running in each condition, {sensors} sensors, replace {is_replacing}"
            )),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::LearningStarted, details);
    }

    /// Models and margins of these sensors, and the longest window.
    fn models_of(
        &self,
        scored: &[SensorId],
    ) -> (BTreeMap<SensorId, ModelOfSensor>, BTreeMap<SensorId, f64>, Duration) {
        let (mut models, mut margins) = (BTreeMap::new(), BTreeMap::new());
        let mut longest = Duration::ZERO;
        for sensor in scored {
            let Some(bundle) = self.analysis.bundle_of(sensor) else { continue };
            let (model, margin) = described(bundle);
            let input = &bundle.metadata().input;
            let seconds = input.window_samples as f64 / input.sample_rate_hz;
            longest = longest.max(Duration::try_from_secs_f64(seconds).unwrap_or_default());
            models.insert(sensor.clone(), model);
            margins.insert(sensor.clone(), margin);
        }
        (models, margins, longest)
    }

    /// What of these actions says that a machine that is being learnt is not healthy.
    pub(super) fn found_by(&self, machine_id: &MachineId, actions: &[Action]) -> Option<String> {
        let run = self.runs.get(machine_id)?;
        actions.iter().find_map(|action| match action {
            // The machine stops, whatever was to be learnt of it.
            Action::Trip { cause, .. } => Some(cause.rule().to_owned()),
            Action::Alarm { cause } | Action::TripSuppressed { cause, .. } => {
                run.counts(cause).then(|| cause.rule().to_owned())
            }
            Action::SensorFault { sensor, kind } => Some(format!("{} of {sensor}", kind.as_str())),
            Action::SendStop { .. }
            | Action::StopConfirmed { .. }
            | Action::StopNotConfirmed { .. }
            | Action::MovedWhileTripped { .. }
            | Action::SensorRecovered { .. }
            | Action::AlarmCleared { .. }
            | Action::Shelved { .. }
            | Action::Unshelved { .. } => None,
        })
    }

    /// What the interlock has found ends learning, also in the window that would have completed it.
    pub(super) fn end_learning_by(
        &mut self,
        machine_id: &MachineId,
        found: Option<String>,
        over: Option<LearnOutcome>,
    ) {
        let Some(run) = self.runs.get_mut(machine_id) else { return };
        let outcome = match (found, over) {
            (None, over) => over,
            (Some(rule), None) => run.learner.handle_violation(&rule, Instant::now()),
            (Some(rule), Some(_)) => Some(LearnOutcome::Refused(LearnRefused::Violation { rule })),
        };
        self.end_if_over(machine_id, outcome);
    }

    /// The machine says what it does.
    pub(super) fn tell_learner_state(&mut self, machine_id: &MachineId, state: MachineState) {
        let Some(run) = self.runs.get_mut(machine_id) else { return };
        let now = Instant::now();
        let outcome = match state {
            MachineState::Running => run.learner.handle_running(now),
            MachineState::Stopping | MachineState::Stopped => run.learner.handle_standstill(now),
        };
        self.end_if_over(machine_id, outcome);
    }

    /// When a run ends by itself.
    pub(super) fn next_learning_timeout(&self) -> Option<Instant> {
        self.runs.values().filter_map(|run| run.learner.poll_timeout()).min()
    }

    /// With each look around, too: what has come may confirm windows that wait.
    pub(super) fn handle_learning_timeouts(&mut self, now: Instant) {
        let calibration = &self.calibration;
        let over = self.runs.iter_mut().find_map(|(machine_id, run)| {
            Some((machine_id.clone(), run.look_around(machine_id, calibration, now)?))
        });
        if let Some((machine_id, outcome)) = over {
            self.end_learning(&machine_id, outcome);
        }
    }

    /// Shows how far each run is.
    pub(super) fn show_learning(&mut self) {
        let now = Instant::now();
        let progress = self.runs.iter();
        let progress = progress.map(|(id, run)| (id.clone(), run.learner.progress(now)));
        self.sinks.board.show_learning(progress.collect());
        let mut due = Vec::new();
        for (machine_id, run) in &mut self.runs {
            if now.duration_since(run.shown_at) >= SHOW_INTERVAL {
                run.shown_at = now;
                due.push(machine_id.clone());
            }
        }
        for machine_id in due {
            self.show(&machine_id);
        }
    }

    /// Publishes what is shown of a machine. Its latch is as before, so nothing is written.
    fn show(&self, machine_id: &MachineId) {
        if let Some(interlock) = self.interlocks.get(machine_id) {
            self.show_latch(interlock.snapshot());
        }
    }

    /// How far a machine is learnt, for people.
    pub(super) fn shown_learning(&self, machine_id: &MachineId) -> Option<ShownLearning> {
        let (run, now) = (self.runs.get(machine_id)?, Instant::now());
        let progress = run.learner.progress(now);
        let (windows, seconds) = (progress.wanted_windows, progress.wanted_seconds);
        let conditions = progress.conditions.into_iter().map(|(name, found)| {
            (name, ShownWindows { windows: found.windows, seconds: found.seconds })
        });
        Some(ShownLearning {
            operator: run.operator.clone(),
            since: run.learner.since(),
            until: run.learner.until(),
            condition: self.calibration.current(machine_id, now).name().map(str::to_owned),
            wanted: ShownWindows { windows, seconds },
            conditions: conditions.collect(),
            waiting: progress.waiting,
        })
    }

    pub(super) fn end_if_over(&mut self, machine_id: &MachineId, outcome: Option<LearnOutcome>) {
        if let Some(outcome) = outcome {
            self.end_learning(machine_id, outcome);
        }
    }

    fn end_learning(&mut self, machine_id: &MachineId, outcome: LearnOutcome) {
        let Some(run) = self.runs.remove(machine_id) else { return };
        self.calibration.unfollow(machine_id);
        self.show_learning();
        match outcome {
            LearnOutcome::Refused(refusal) => {
                let cause = refusal.as_str();
                self.tell_not_learnt(machine_id, run.operator, cause, refusal.to_string());
            }
            LearnOutcome::Learnt(baseline) => {
                // What has not acted yet: a delay runs, a start, a shelving, a dry run.
                let interlock = self.interlocks.get(machine_id);
                let violations = interlock.map(Interlock::violations).unwrap_or_default();
                let cause = violations.iter().find(|cause| !is_of_level(cause, &run.of_level));
                if let Some(cause) = cause {
                    let refusal = LearnRefused::Violation { rule: cause.rule().to_owned() };
                    let (word, reason) = (refusal.as_str(), refusal.to_string());
                    return self.tell_not_learnt(machine_id, run.operator, word, reason);
                }
                self.show(machine_id);
                let kept = KeptBaseline { conditions: run.conditions, baseline };
                let links = self.links.as_ref();
                if links.is_none_or(|links| links.baselines.try_send(kept).is_err()) {
                    let reason = "other baselines wait for the disk".to_owned();
                    self.tell_not_learnt(machine_id, run.operator, "disk", reason);
                }
            }
        }
    }

    /// A baseline that was learnt is on the disk, or cannot be brought there.
    pub(super) fn handle_kept(&mut self, kept: Result<Arc<KeptBaseline>, NotKept>) {
        match kept {
            Err(NotKept { machine_id, operator, reason }) => {
                self.tell_not_learnt(&machine_id, operator, "disk", reason);
            }
            Ok(kept) => {
                let baseline = &kept.baseline;
                let machine_id = baseline.machine_id.clone();
                let summary = summary(baseline);
                info!(%machine_id, summary, "what was learnt is in force");
                let details = MachineEventDetails {
                    operator: Some(baseline.operator.clone()),
                    detail: Some(summary),
                    ..MachineEventDetails::default()
                };
                self.sinks.board.show_baseline(baseline);
                self.calibration.set_baseline(kept);
                self.report(&machine_id, MachineEventType::BaselineLearnt, details);
                self.restart_votes(&machine_id);
                self.publish_latch(&machine_id);
            }
        }
    }

    /// What was held against another threshold says nothing now.
    pub(super) fn restart_votes(&mut self, machine_id: &MachineId) {
        let Some(interlock) = self.interlocks.get_mut(machine_id) else { return };
        let actions = interlock.restart_votes(moment());
        self.perform(machine_id, actions, Instant::now());
    }

    fn tell_not_learnt(
        &mut self,
        machine_id: &MachineId,
        operator: String,
        cause: &str,
        reason: String,
    ) {
        warn!(%machine_id, cause, reason, "not learnt: what held before holds");
        let details = MachineEventDetails {
            cause: Some(cause.to_owned()),
            operator: Some(operator.clone()),
            detail: Some(reason.clone()),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::LearningRefused, details);
        self.refuse(machine_id, "learn", &operator, reason);
    }

    /// Other settings or models: what is being learnt would be of the ones before.
    pub(super) fn stop_learning(&mut self, machines: &[MachineId]) {
        for machine_id in machines {
            match self.runs.get_mut(machine_id).and_then(|run| run.learner.cancel()) {
                Some(outcome) => self.end_learning(machine_id, outcome),
                // In other conditions what was learnt is not in force, or is again.
                None => self.show(machine_id),
            }
        }
    }

    /// Machines that are being learnt.
    pub(super) fn learning(&self) -> Vec<MachineId> {
        self.runs.keys().cloned().collect()
    }
}

/// A baseline that could not be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotKept {
    /// Of which machine.
    pub machine_id: MachineId,
    /// Who asked for it.
    pub operator: String,
    /// Why.
    pub reason: String,
}

fn described(bundle: &Bundle) -> (ModelOfSensor, f64) {
    let metadata = bundle.metadata();
    let commissioning = metadata.commissioning.as_ref();
    let model = ModelOfSensor {
        identity: bundle.identity(),
        sha256: metadata.model_sha256.clone(),
        threshold_logit: bundle.threshold().logit(),
        is_absolute: commissioning.is_some_and(|it| it.judges_level),
    };
    (model, commissioning.map_or(MARGIN_LOGIT, |it| it.margin_logit))
}

/// What was learnt, in a line for people.
fn summary(baseline: &Baseline) -> String {
    let learnt = baseline.conditions.iter().flat_map(|(condition, sensors)| {
        sensors.iter().map(move |(sensor, usual)| {
            format!(
                "{condition}, {sensor}: {} windows, logit {:.2} to {:.2}, threshold {:.2}",
                usual.windows, usual.logit.min, usual.logit.max, usual.threshold_logit
            )
        })
    });
    let missing = baseline.not_learnt.iter().flat_map(|(condition, sensors)| {
        sensors.iter().map(move |(sensor, windows)| {
            format!("{condition}, {sensor}: too little, {windows} windows")
        })
    });
    learnt.chain(missing).collect::<Vec<_>>().join("; ")
}
