//! One sensor that a rule names: its condition, its limits, its votes, and when it was heard.

use std::time::{Duration, Instant};

use shared_proto::model::SensorId;

use super::action::{ResetRefused, Suppression, TripCause};
use super::limit::Limit;
use super::response::{Effect, Response};
use super::settings::{DuringStartup, InterlockSettings, Quantity, RuleAction};
use super::shelving::{RuleName, Shelf};
use super::startup::Startup;
use super::vote::Votes;
use crate::condition::{Condition, SensorFaultKind};

/// What is known of one sensor.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) condition: Condition,
    pub(super) on_fault: RuleAction,
    pub(super) fault_response: Response,
    pub(super) limits: Vec<Limit>,
    pub(super) votes: Option<Votes>,
    /// Present if silence of this sensor is watched.
    pub(super) heard: Option<Instant>,
    pub(super) silence_response: Response,
}

/// What decides whether a violation acts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Force<'a> {
    pub(super) settings: &'a InterlockSettings,
    pub(super) shelf: &'a Shelf,
    pub(super) startup: &'a Startup,
    pub(super) is_armed: bool,
    pub(super) now: Instant,
}

impl Force<'_> {
    fn suppression(&self, rule: RuleName<'_>, startup: DuringStartup) -> Option<Suppression> {
        if self.shelf.is_shelved(rule, self.now) {
            return Some(Suppression::Shelved);
        }
        let waits = match startup {
            DuringStartup::Enforce => false,
            DuringStartup::Suppress => self.startup.is_active(self.now),
        };
        let dry_run = self.settings.dry_run.then_some(Suppression::DryRun);
        if waits { Some(Suppression::Startup) } else { dry_run }
    }
}

/// Something to do, and why.
pub(super) type Finding = (Effect, TripCause);

impl Watched {
    pub(super) fn judges_values(&self) -> bool {
        let is_of_value = |limit: &Limit| limit.rule.quantity == Quantity::Value;
        let is_alone = self.limits.is_empty() && self.votes.is_none();
        is_alone || self.limits.iter().any(is_of_value)
    }

    pub(super) fn judges_blocks(&self) -> bool {
        let is_of_feature = |limit: &Limit| limit.rule.quantity != Quantity::Value;
        self.limits.is_empty() || self.votes.is_some() || self.limits.iter().any(is_of_feature)
    }

    /// Acts on each rule of this sensor as it stands now.
    pub(super) fn settle(
        &mut self,
        sensor: &SensorId,
        force: Force<'_>,
        findings: &mut Vec<Finding>,
    ) {
        for limit in &mut self.limits {
            let is_violated = limit.is_violated();
            let (action, during) = (limit.rule.action, limit.rule.during_startup);
            let suppression = if is_violated {
                force.suppression(RuleName::Limit(&limit.rule.name), during)
            } else {
                None
            };
            let effect = limit.response.respond(is_violated, action, suppression, force.is_armed);
            findings.extend(effect.map(|effect| (effect, limit.cause())));
        }
        self.settle_votes(sensor, force, findings);
        self.settle_faults(sensor, force, findings);
        self.settle_silence(sensor, force, findings);
    }

    fn settle_votes(&mut self, sensor: &SensorId, force: Force<'_>, findings: &mut Vec<Finding>) {
        let (Some(votes), Some(rule)) = (&mut self.votes, &force.settings.score_vote) else {
            return;
        };
        let count = votes.count(rule.of);
        let suppression = force.suppression(RuleName::Score(sensor), rule.during_startup);
        let is_violated = count >= rule.votes;
        let effect = votes.response.respond(is_violated, rule.action, suppression, force.is_armed);
        findings.extend(effect.map(|effect| (effect, votes.cause(sensor, rule))));
    }

    fn settle_faults(&mut self, sensor: &SensorId, force: Force<'_>, findings: &mut Vec<Finding>) {
        // A fault that only alarms has its own report.
        let Some(fault) = self.tripping_fault() else {
            self.fault_response = Response::None;
            return;
        };
        let rule = RuleName::SensorFault(sensor);
        let suppression = force.suppression(rule, DuringStartup::Enforce);
        let response = &mut self.fault_response;
        let effect = response.respond(true, RuleAction::Trip, suppression, force.is_armed);
        let cause = || TripCause::SensorFault { sensor: sensor.clone(), fault };
        findings.extend(effect.map(|effect| (effect, cause())));
    }

    fn settle_silence(&mut self, sensor: &SensorId, force: Force<'_>, findings: &mut Vec<Finding>) {
        let is_silent = self.condition.is_present(SensorFaultKind::Silent);
        let Some(after) = self.silence_trips(force.settings).filter(|_| is_silent) else {
            self.silence_response = Response::None;
            return;
        };
        let suppression = force.suppression(RuleName::Silence(sensor), DuringStartup::Enforce);
        let response = &mut self.silence_response;
        let effect = response.respond(true, RuleAction::Trip, suppression, force.is_armed);
        let limit_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let cause = || TripCause::Silence { sensor: sensor.clone(), limit_ms };
        findings.extend(effect.map(|effect| (effect, cause())));
    }

    /// Why a reset must wait for this sensor.
    pub(super) fn refusal(&self, sensor: &SensorId, force: Force<'_>) -> Option<ResetRefused> {
        let is_in_force =
            |rule, action| action == RuleAction::Trip && !force.shelf.is_shelved(rule, force.now);
        let limit = self
            .limits
            .iter()
            .filter(|limit| is_in_force(RuleName::Limit(&limit.rule.name), limit.rule.action))
            .find_map(|limit| limit.refusal(force.now));
        let votes = || {
            let (votes, rule) = (self.votes.as_ref()?, force.settings.score_vote.as_ref()?);
            let (count, needed) = (votes.count(rule.of), rule.votes);
            let is_present = count >= needed && is_in_force(RuleName::Score(sensor), rule.action);
            let sensor = sensor.clone();
            is_present.then_some(ResetRefused::VotesPresent { sensor, votes: count, needed })
        };
        let silence = || {
            let silent_at = self.heard? + self.silence_trips(force.settings)?;
            let is_present =
                silent_at <= force.now && is_in_force(RuleName::Silence(sensor), RuleAction::Trip);
            is_present.then(|| ResetRefused::SensorSilent { sensor: sensor.clone() })
        };
        let fault = || {
            let fault = self.tripping_fault()?;
            let is_present = is_in_force(RuleName::SensorFault(sensor), RuleAction::Trip);
            is_present.then(|| ResetRefused::SensorFaulty { sensor: sensor.clone(), fault })
        };
        limit.or_else(votes).or_else(silence).or_else(fault)
    }

    /// Notices delays and silence that have run out; answers whether the sensor has just fallen silent.
    pub(super) fn pass_time(&mut self, settings: &InterlockSettings, now: Instant) -> bool {
        for limit in &mut self.limits {
            limit.pass_time(now);
        }
        self.silent_at(settings).is_some_and(|at| at <= now)
    }

    /// When a delay runs out or the sensor falls silent, if nothing comes.
    pub(super) fn next_timeout(&self, settings: &InterlockSettings) -> Option<Instant> {
        let delays = self.limits.iter().filter_map(Limit::next_timeout);
        delays.chain(self.silent_at(settings)).min()
    }

    /// Limits that are violated, or will be when their delay has run out, and votes that are enough.
    pub(super) fn violations<'a>(
        &'a self,
        sensor: &'a SensorId,
        settings: &'a InterlockSettings,
    ) -> impl Iterator<Item = TripCause> + 'a {
        let limits = self.limits.iter().filter(|limit| limit.is_past());
        let votes = self.votes.iter().zip(&settings.score_vote);
        let votes = votes.filter(|(votes, rule)| votes.count(rule.of) >= rule.votes);
        limits.map(Limit::cause).chain(votes.map(|(votes, rule)| votes.cause(sensor, rule)))
    }

    /// Alarms that stand.
    pub(super) fn alarms<'a>(
        &'a self,
        sensor: &'a SensorId,
        settings: &'a InterlockSettings,
    ) -> impl Iterator<Item = TripCause> + 'a {
        let limits = self.limits.iter().filter(|limit| limit.response == Response::Alarm);
        let votes = self.votes.iter().filter(|votes| votes.response == Response::Alarm);
        let votes = votes.zip(&settings.score_vote);
        limits.map(Limit::cause).chain(votes.map(|(votes, rule)| votes.cause(sensor, rule)))
    }

    /// A fault that trips by the policy, the first if there are several.
    fn tripping_fault(&self) -> Option<SensorFaultKind> {
        match self.on_fault {
            RuleAction::Alarm => None,
            RuleAction::Trip => self.condition.present().find(|kind| kind.is_of_policy()),
        }
    }

    /// After how long silence of this sensor trips, if it does.
    fn silence_trips(&self, settings: &InterlockSettings) -> Option<Duration> {
        let silence = settings.silence.as_ref()?;
        let trips = silence.trips || self.on_fault == RuleAction::Trip;
        (trips && self.heard.is_some()).then_some(silence.after)
    }

    fn silent_at(&self, settings: &InterlockSettings) -> Option<Instant> {
        let is_silent = self.condition.is_present(SensorFaultKind::Silent);
        let heard = self.heard.filter(|_| !is_silent)?;
        Some(heard + settings.silence.as_ref()?.after)
    }
}
