//! Rules that a person took out of force for a time.
//!
//! A rule is named as in reports: a limit's name, or `score`, `silence`, `sensor-fault` for all sensors of the
//! machine, or one of these with a sensor: `sensor-fault:press-1/oil`.
//!
//! A shelving ends by processing time. Over a restart it is kept with its calendar times: what is left of it is
//! taken up, never more than was given and never more than the limit in force now. A calendar that stands
//! before the act is not to be trusted, and the rule is in force again: a clock that was lost lengthens nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, SensorId};

use super::Moment;
use super::settings::{SCORE_RULE, SENSOR_FAULT_RULE, SILENCE_RULE};

/// Most characters of a reason that are kept.
pub const REASON_CHARACTERS_MAX: usize = 256;

/// A person's wish to take a rule out of force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelveRequest {
    /// Who asks.
    pub operator: String,
    /// Which rule.
    pub rule: String,
    /// For how long; 0 puts it in force again.
    pub duration: Duration,
    /// Why.
    pub reason: String,
}

/// A rule that is out of force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShelvedRule {
    /// Which rule.
    pub rule: String,
    /// Who took it out of force.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: EventTime,
    /// When it is in force again.
    pub until: EventTime,
}

/// Why a rule is in force again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnshelvedBy {
    /// A person said so.
    Operator,
    /// Its time was up.
    Expiry,
    /// It did not outlive a restart: the rule is gone, shelving is not allowed any more, or the clock was lost.
    Restart,
}

impl UnshelvedBy {
    /// The word used in machine events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Expiry => "expiry",
            Self::Restart => "restart",
        }
    }
}

/// Why a rule stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShelveRefused {
    /// The settings allow none.
    #[error("shelving is not allowed: protection.shelving-max is 0")]
    NotAllowed,
    /// For longer than allowed.
    #[error("rule {rule} for {asked:?}: protection.shelving-max is {max:?}")]
    TooLong {
        /// Which rule.
        rule: String,
        /// The time asked for.
        asked: Duration,
        /// The most allowed.
        max: Duration,
    },
    /// No rule of this machine.
    #[error("no rule {rule:?} here; there are: {known}")]
    UnknownRule {
        /// The name given.
        rule: String,
        /// The names there are.
        known: String,
    },
    /// Shelving is no way round a reset that is refused.
    #[error(
        "rule {rule} cannot be shelved while a trip is latched: remove the cause and reset first"
    )]
    Tripped {
        /// Which rule.
        rule: String,
    },
    /// There is nothing to put in force.
    #[error("rule {rule} is not shelved")]
    NotShelved {
        /// Which rule.
        rule: String,
    },
}

impl ShelveRefused {
    /// A short word for counting and for machine events.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotAllowed => "not-allowed",
            Self::TooLong { .. } => "too-long",
            Self::UnknownRule { .. } => "unknown-rule",
            Self::Tripped { .. } => "tripped",
            Self::NotShelved { .. } => "not-shelved",
        }
    }
}

/// A rule in the eyes of the shelf.
#[derive(Clone, Copy, Debug)]
pub(super) enum RuleName<'a> {
    Limit(&'a str),
    Score(&'a SensorId),
    Silence(&'a SensorId),
    SensorFault(&'a SensorId),
}

impl RuleName<'_> {
    /// Whether `name` stands for it, alone or among others.
    fn is_named(self, name: &str) -> bool {
        let (stem, of) = match self {
            Self::Limit(rule) => return rule == name,
            Self::Score(sensor) => (SCORE_RULE, sensor),
            Self::Silence(sensor) => (SILENCE_RULE, sensor),
            Self::SensorFault(sensor) => (SENSOR_FAULT_RULE, sensor),
        };
        match name.split_once(':') {
            None => name == stem,
            Some((before, sensor)) => before == stem && sensor == of.as_str(),
        }
    }
}

/// The rules of one machine that are out of force.
#[derive(Debug, Default)]
pub(super) struct Shelf(BTreeMap<String, (ShelvedRule, Instant)>);

impl Shelf {
    pub(super) fn is_shelved(&self, rule: RuleName<'_>, now: Instant) -> bool {
        self.0.iter().any(|(name, (_, until))| *until > now && rule.is_named(name))
    }

    pub(super) fn shelve(&mut self, request: &ShelveRequest, now: Moment) -> ShelvedRule {
        let micros = i64::try_from(request.duration.as_micros()).unwrap_or(i64::MAX);
        let shelved = ShelvedRule {
            rule: request.rule.clone(),
            operator: request.operator.clone(),
            reason: request.reason.chars().take(REASON_CHARACTERS_MAX).collect(),
            since: now.time,
            until: now.time.saturating_add_micros(micros),
        };
        let until = now.instant + request.duration;
        self.0.insert(shelved.rule.clone(), (shelved.clone(), until));
        shelved
    }

    pub(super) fn unshelve(&mut self, rule: &str) -> Option<ShelvedRule> {
        self.0.remove(rule).map(|(shelved, _)| shelved)
    }

    /// Takes up what is left of a shelving of the previous run; gives it back if nothing is.
    pub(super) fn restore(
        &mut self,
        shelved: ShelvedRule,
        max: Duration,
        now: Moment,
    ) -> Result<(), ShelvedRule> {
        let given = shelved.until.micros_since(shelved.since);
        let passed = now.time.micros_since(shelved.since);
        let left = given.min(i64::try_from(max.as_micros()).unwrap_or(i64::MAX)) - passed;
        if passed < 0 || left <= 0 {
            return Err(shelved);
        }
        let until = now.instant + Duration::from_micros(left.unsigned_abs());
        self.0.insert(shelved.rule.clone(), (shelved, until));
        Ok(())
    }

    /// Takes out what has run out.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<ShelvedRule> {
        let over = self.0.iter().filter(|(_, (_, until))| *until <= now);
        let names: Vec<String> = over.map(|(name, _)| name.clone()).collect();
        names.iter().filter_map(|name| self.unshelve(name)).collect()
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.0.values().map(|(_, until)| *until).min()
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = &ShelvedRule> {
        self.0.values().map(|(shelved, _)| shelved)
    }
}
