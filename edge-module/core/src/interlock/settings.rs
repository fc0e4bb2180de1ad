//! What protects one machine, and what is wrong with such settings.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared_proto::model::SensorId;

use crate::condition::{ConditionFault, ConditionSettings};

/// Most windows that a vote looks back on.
pub const VOTE_WINDOWS_MAX: u32 = 64;
/// Longest time that can be waited for silence, a confirmation or the end of a shelving: a week.
pub const WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest time that rules may be suppressed after a start.
pub const STARTUP_MAX: Duration = Duration::from_secs(600);
/// Longest on-delay and off-delay.
pub const DELAY_MAX: Duration = Duration::from_secs(3600);
/// Name of the model's vote where rules are named.
pub const SCORE_RULE: &str = "score";
/// Name of the policy for silent sensors.
pub const SILENCE_RULE: &str = "silence";
/// Name of the policy for sensor faults.
pub const SENSOR_FAULT_RULE: &str = "sensor-fault";

/// What a violated rule does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// Stops the machine and latches.
    #[default]
    Trip,
    /// Tells people, and tells them again when it is over.
    Alarm,
}

/// What a rule does while the machine starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DuringStartup {
    /// Judges as always.
    #[default]
    Enforce,
    /// Reports what it would do, and does it at the end of the start-up if it still must.
    Suppress,
}

/// Which number of a sensor a limit looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// The value of a scalar reading.
    Value,
    /// A feature of a vibration window, by name.
    Feature(String),
}

/// A fixed limit: violated when the quantity is above `above` or below `below`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LimitRule {
    /// Name, unique within the machine.
    pub name: String,
    /// The sensor it watches.
    pub sensor: SensorId,
    /// Which of the sensor's numbers.
    pub quantity: Quantity,
    /// Upper limit in the quantity's unit; at the limit it is not violated.
    pub above: Option<f64>,
    /// Lower limit in the quantity's unit; at the limit it is not violated.
    pub below: Option<f64>,
    /// Once violated it stays so until the quantity is back by this much, in the quantity's unit.
    pub hysteresis: f64,
    /// The quantity must be past the limit for so long without a break. The last value stands until the next.
    pub on_delay: Duration,
    /// The quantity must be back for so long without a break.
    pub off_delay: Duration,
    /// What a violation does.
    pub action: RuleAction,
    /// Whether it holds while the machine starts.
    pub during_startup: DuringStartup,
}

impl LimitRule {
    /// The limit that a finite value has passed.
    pub(super) fn passed(&self, value: f64) -> Option<f64> {
        let above = self.above.filter(|limit| value > *limit);
        above.or_else(|| self.below.filter(|limit| value < *limit))
    }

    /// Whether a finite value is within both limits by the hysteresis.
    pub(super) fn is_back(&self, value: f64) -> bool {
        self.above.is_none_or(|limit| value <= limit - self.hysteresis)
            && self.below.is_none_or(|limit| value >= limit + self.hysteresis)
    }
}

/// The model's vote: violated by so many of a sensor's last windows at or above the threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoreVote {
    /// Sensors whose windows are scored; each is counted for itself.
    pub sensors: Vec<SensorId>,
    /// Instead of the threshold that comes with each score: a window at or above it is a vote, 0 to 1.
    pub threshold: Option<f64>,
    /// Votes that are enough, 1 to `of`.
    pub votes: u32,
    /// Windows looked back on, at most [`VOTE_WINDOWS_MAX`].
    pub of: u32,
    /// What enough votes do.
    pub action: RuleAction,
    /// Whether it holds while the machine starts.
    pub during_startup: DuringStartup,
}

/// What silence of a sensor means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Silence {
    /// Sensors that must be heard.
    pub sensors: Vec<SensorId>,
    /// Longest time without a usable number, above 0.
    pub after: Duration,
    /// Whether silence trips; otherwise it is a reported fault. Silence of a sensor whose faults trip does so in any case.
    pub trips: bool,
}

/// How one sensor is watched, and what its faults do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SensorRule {
    /// The sensor.
    pub sensor: SensorId,
    /// What is a fault.
    pub condition: ConditionSettings,
    /// `Alarm`: the fault is reported, as each is. `Trip`: it stops the machine, too.
    pub on_fault: RuleAction,
}

/// How a stop is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConfirmationSettings {
    /// Time for the machine side to report standstill after each command, above 0.
    pub deadline: Duration,
    /// Commands sent at most for one trip, at least 1.
    pub attempts_max: u32,
}

/// Everything that protects one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InterlockSettings {
    /// Fixed limits.
    pub limits: Vec<LimitRule>,
    /// The model's vote; absent without a model.
    pub score_vote: Option<ScoreVote>,
    /// The policy for silent sensors; absent: silence is not watched.
    pub silence: Option<Silence>,
    /// Conditions of sensors; a sensor that is not here is watched for NaN and bad quality.
    pub sensors: Vec<SensorRule>,
    /// What faults of sensors do that are not in `sensors`.
    pub on_fault: RuleAction,
    /// How long rules that say so are suppressed after a start; 0: never. At most [`STARTUP_MAX`].
    pub startup_suppression: Duration,
    /// Longest time that a person may shelve a rule; 0: not at all.
    pub shelving_max: Duration,
    /// Judges and reports, and stops nothing: for commissioning.
    pub dry_run: bool,
    /// Confirmation of a stop.
    pub confirmation: ConfirmationSettings,
    /// Which version of all this it is, for events; not part of what it names.
    #[serde(skip)]
    pub rule_version: String,
}

/// One fault in an interlock's settings.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SettingsFault {
    /// A limit without a limit.
    #[error("limit {rule} has neither above nor below; give it at least one")]
    LimitWithoutBound {
        /// Name of the rule.
        rule: String,
    },
    /// A limit that no value can be compared with.
    #[error("limit {rule} has the bound {bound}, which is not finite")]
    BoundNotFinite {
        /// Name of the rule.
        rule: String,
        /// The bound found.
        bound: f64,
    },
    /// Every value would trip.
    #[error("limit {rule}: below {below} is higher than above {above}, every value would trip")]
    BoundsCrossed {
        /// Name of the rule.
        rule: String,
        /// Lower limit.
        below: f64,
        /// Upper limit.
        above: f64,
    },
    /// Two rules that reports could not tell apart.
    #[error("limit name {rule:?} is empty, used twice, or one of score, silence, sensor-fault")]
    LimitName {
        /// Name of the rule.
        rule: String,
    },
    /// A violation that could never end, or that ends before it begins.
    #[error(
        "limit {rule}: hysteresis {hysteresis} must be a finite number from 0 that leaves room between below and above"
    )]
    Hysteresis {
        /// Name of the rule.
        rule: String,
        /// The hysteresis found.
        hysteresis: f64,
    },
    /// A sensor whose condition is set twice.
    #[error("sensor {sensor} is there twice")]
    SensorTwice {
        /// The sensor.
        sensor: SensorId,
    },
    /// A condition that cannot be judged.
    #[error("sensor {sensor}: {fault}")]
    Condition {
        /// The sensor.
        sensor: SensorId,
        /// What is wrong.
        fault: ConditionFault,
    },
    /// A threshold that no score can be compared with.
    #[error("score threshold {threshold} is not within 0 to 1")]
    Threshold {
        /// The threshold found.
        threshold: f64,
    },
    /// A vote that can never, or always, succeed.
    #[error("votes {votes} of {of}: votes must be 1 to of, of at most {VOTE_WINDOWS_MAX}")]
    Votes {
        /// Votes asked for.
        votes: u32,
        /// Windows looked back on.
        of: u32,
    },
    /// A silence limit of nothing.
    #[error("silence limit is 0; give the longest time a sensor may be silent")]
    SilenceZero,
    /// A confirmation deadline of nothing.
    #[error("confirmation deadline is 0; give the machine time to stand still")]
    DeadlineZero,
    /// A wait that protects nobody.
    #[error("{what} is {wait:?}, at most {max:?} are allowed")]
    WaitTooLong {
        /// Which wait.
        what: &'static str,
        /// The wait found.
        wait: Duration,
        /// The most allowed.
        max: Duration,
    },
    /// A stop that is never ordered.
    #[error("stop attempts are 0; at least 1 is needed")]
    AttemptsZero,
}

impl InterlockSettings {
    /// Checks all settings.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<(), Vec<SettingsFault>> {
        let mut faults = Vec::new();
        for (index, rule) in self.limits.iter().enumerate() {
            validate_limit(rule, &self.limits[..index], &mut faults);
        }
        if let Some(vote) = &self.score_vote {
            if let Some(threshold) = vote.threshold.filter(|it| !(0.0..=1.0).contains(it)) {
                faults.push(SettingsFault::Threshold { threshold });
            }
            if vote.votes == 0 || vote.votes > vote.of || vote.of > VOTE_WINDOWS_MAX {
                faults.push(SettingsFault::Votes { votes: vote.votes, of: vote.of });
            }
        }
        if self.silence.as_ref().is_some_and(|silence| silence.after.is_zero()) {
            faults.push(SettingsFault::SilenceZero);
        }
        if self.confirmation.deadline.is_zero() {
            faults.push(SettingsFault::DeadlineZero);
        }
        let silence_after = self.silence.as_ref().map(|silence| silence.after);
        let waits = [
            ("silence limit", silence_after.unwrap_or_default(), WAIT_MAX),
            ("confirmation deadline", self.confirmation.deadline, WAIT_MAX),
            ("startup suppression", self.startup_suppression, STARTUP_MAX),
            ("longest shelving", self.shelving_max, WAIT_MAX),
        ];
        for (what, wait, max) in waits {
            if wait > max {
                faults.push(SettingsFault::WaitTooLong { what, wait, max });
            }
        }
        self.validate_sensors(&mut faults);
        if self.confirmation.attempts_max == 0 {
            faults.push(SettingsFault::AttemptsZero);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn validate_sensors(&self, faults: &mut Vec<SettingsFault>) {
        for (index, rule) in self.sensors.iter().enumerate() {
            let sensor = &rule.sensor;
            if self.sensors[..index].iter().any(|other| other.sensor == *sensor) {
                faults.push(SettingsFault::SensorTwice { sensor: sensor.clone() });
            }
            let mut found = Vec::new();
            rule.condition.validate(&mut found);
            faults.extend(
                found
                    .into_iter()
                    .map(|fault| SettingsFault::Condition { sensor: sensor.clone(), fault }),
            );
        }
    }
}

/// Whether a name, without what stands after the colon, is one of a policy's.
fn is_reserved(name: &str) -> bool {
    let stem = name.split_once(':').map_or(name, |(stem, _)| stem);
    [SCORE_RULE, SILENCE_RULE, SENSOR_FAULT_RULE].contains(&stem)
}

fn validate_limit(rule: &LimitRule, before: &[LimitRule], faults: &mut Vec<SettingsFault>) {
    let name = || rule.name.clone();
    let is_used = before.iter().any(|other| other.name == rule.name);
    if rule.name.trim().is_empty() || is_used || is_reserved(&rule.name) {
        faults.push(SettingsFault::LimitName { rule: name() });
    }
    if rule.above.is_none() && rule.below.is_none() {
        faults.push(SettingsFault::LimitWithoutBound { rule: name() });
    }
    for bound in [rule.above, rule.below].into_iter().flatten() {
        if !bound.is_finite() {
            faults.push(SettingsFault::BoundNotFinite { rule: name(), bound });
        }
    }
    if let (Some(above), Some(below)) = (rule.above, rule.below)
        && below > above
    {
        faults.push(SettingsFault::BoundsCrossed { rule: name(), below, above });
    }
    let room = match (rule.above, rule.below) {
        (Some(above), Some(below)) => above - below,
        (_, _) => f64::MAX,
    };
    if !(0.0..=f64::MAX).contains(&rule.hysteresis) || rule.hysteresis * 2.0 > room.max(0.0) {
        faults.push(SettingsFault::Hysteresis { rule: name(), hysteresis: rule.hysteresis });
    }
    for (what, wait) in [("on-delay", rule.on_delay), ("off-delay", rule.off_delay)] {
        if wait > DELAY_MAX {
            faults.push(SettingsFault::WaitTooLong { what, wait, max: DELAY_MAX });
        }
    }
}
