//! What protects one machine, and what is wrong with such settings.

use std::time::Duration;

use shared_proto::model::SensorId;

/// Most windows that a vote looks back on.
pub const VOTE_WINDOWS_MAX: u32 = 64;
/// Longest time that can be waited for silence or a confirmation: a week.
pub const WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which number of a sensor a limit looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// The value of a scalar reading.
    Value,
    /// A feature of a vibration window, by name.
    Feature(String),
}

/// A fixed limit: trips when the quantity is above `above` or below `below`.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitRule {
    /// Name, unique within the machine.
    pub name: String,
    /// The sensor it watches.
    pub sensor: SensorId,
    /// Which of the sensor's numbers.
    pub quantity: Quantity,
    /// Upper limit in the quantity's unit; at the limit it does not trip.
    pub above: Option<f64>,
    /// Lower limit in the quantity's unit; at the limit it does not trip.
    pub below: Option<f64>,
}

impl LimitRule {
    /// The limit that a finite value has passed.
    pub(super) fn passed(&self, value: f64) -> Option<f64> {
        let above = self.above.filter(|limit| value > *limit);
        above.or_else(|| self.below.filter(|limit| value < *limit))
    }
}

/// The model's vote: so many of a sensor's last windows at or above the threshold trip.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreVote {
    /// Sensors whose windows are scored; each is counted for itself.
    pub sensors: Vec<SensorId>,
    /// A window at or above it is a vote, 0 to 1.
    pub threshold: f64,
    /// Votes that trip, 1 to `of`.
    pub votes: u32,
    /// Windows looked back on, at most [`VOTE_WINDOWS_MAX`].
    pub of: u32,
}

/// What silence of a sensor means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Sensors that must be heard.
    pub sensors: Vec<SensorId>,
    /// Longest time without a usable number, above 0.
    pub after: Duration,
    /// Whether silence trips; otherwise it is a reported fault.
    pub trips: bool,
}

/// How a stop is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfirmationSettings {
    /// Time for the machine side to report standstill after each command, above 0.
    pub deadline: Duration,
    /// Commands sent at most for one trip, at least 1.
    pub attempts_max: u32,
}

/// Everything that protects one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct InterlockSettings {
    /// Fixed limits.
    pub limits: Vec<LimitRule>,
    /// The model's vote; absent without a model.
    pub score_vote: Option<ScoreVote>,
    /// The policy for silent sensors; absent: silence is not watched.
    pub silence: Option<Silence>,
    /// Confirmation of a stop.
    pub confirmation: ConfirmationSettings,
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
    /// Two limits that reports could not tell apart.
    #[error("limit name {rule:?} is empty or used twice")]
    LimitName {
        /// Name of the rule.
        rule: String,
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
    #[error("{what} is {wait:?}, at most {WAIT_MAX:?} are allowed")]
    WaitTooLong {
        /// Which wait.
        what: &'static str,
        /// The wait found.
        wait: Duration,
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
            if !(0.0..=1.0).contains(&vote.threshold) {
                faults.push(SettingsFault::Threshold { threshold: vote.threshold });
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
            ("silence limit", silence_after),
            ("confirmation deadline", Some(self.confirmation.deadline)),
        ];
        for (what, wait) in waits {
            if let Some(wait) = wait.filter(|wait| *wait > WAIT_MAX) {
                faults.push(SettingsFault::WaitTooLong { what, wait });
            }
        }
        if self.confirmation.attempts_max == 0 {
            faults.push(SettingsFault::AttemptsZero);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

fn validate_limit(rule: &LimitRule, before: &[LimitRule], faults: &mut Vec<SettingsFault>) {
    let name = || rule.name.clone();
    if rule.name.trim().is_empty() || before.iter().any(|other| other.name == rule.name) {
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
}
