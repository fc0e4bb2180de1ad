//! Commissioning: what is usual of one machine, learnt while a person knows that it runs healthily, and the thresholds that follow.
//!
//! A model was trained on other machines. [`Learner`] collects the windows of one run of learning, refuses what is not healthy and
//! gives a [`Baseline`]: per operating condition ([`crate::operation`]) and sensor the spread of features and logits (natural-log
//! odds of the model's score), and a threshold of that machine, the highest learnt logit and a margin that the bundle states.
//!
//! **Form.** JSON with kebab-case keys, `format` 1; an unknown key is an error. Times are RFC 3339 text. All numbers are finite.
//! Limits: [`BASELINE_BYTES_MAX`], [`PAIRS_MAX`] pairs of condition and sensor, [`FEATURES_MAX`] features of each.
//!
//! **Memory.** A pair takes at most about 120 kB while it is learnt: 64 kB of logits, 41 kB of levels over the run (107
//! features), the rest moments. All pairs together stay below 32 MB, and what waits for its condition to be confirmed below 8 MB.

mod learner;
mod progress;
mod settings;
mod track;
mod waiting;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, FEATURES_MAX, MachineId, SensorId};

pub use learner::{LearnOutcome, LearnRefused, Learner};
pub use progress::{ConditionProgress, LearnProgress, NotLearnt, SensorProgress};
pub use settings::{
    DURATION_MAX, LearnFault, LearnRequest, LearnSettings, MARGIN_LOGIT_MIN, ModelOfSensor,
    OPERATOR_BYTES_MAX, WINDOWS_MIN_MIN,
};

use crate::features::FeatureName;
use crate::operation::{Current, is_condition_name};

/// Version of the form.
pub const BASELINE_FORMAT: u32 = 1;
/// Most bytes of a baseline's text.
pub const BASELINE_BYTES_MAX: usize = 8 << 20;
/// Most pairs of operating condition and sensor of one machine.
pub const PAIRS_MAX: usize = 256;
/// Widest margin that a bundle may state, in natural logarithmic odds.
pub const MARGIN_LOGIT_MAX: f64 = 50.0;
/// Longest name of a model with its version, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;

/// What was learnt of one machine. Texts are read by [`Baseline::parse`], which alone checks what it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Baseline {
    /// [`BASELINE_FORMAT`].
    pub format: u32,
    /// Which machine.
    pub machine_id: MachineId,
    /// When learning ended.
    #[serde(with = "time_text")]
    pub learnt_at: EventTime,
    /// Who answers for the machine having been healthy.
    pub operator: String,
    /// What is usual, by operating condition and sensor.
    pub conditions: BTreeMap<String, BTreeMap<SensorId, SensorBaseline>>,
    /// Windows of the pairs of condition and sensor that had too few of them in this run. What an earlier run learnt of them is
    /// among `conditions`.
    pub not_learnt: BTreeMap<String, BTreeMap<SensorId, u64>>,
}

/// What is usual of one sensor in one operating condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SensorBaseline {
    /// Name and version of the model.
    pub model: String,
    /// Hash of the model's file, 64 hexadecimal digits: of another model all of this says nothing.
    pub model_sha256: String,
    /// Windows learnt.
    pub windows: u64,
    /// Running time that they cover, in seconds.
    pub running_seconds: f64,
    /// By the features' names, in their units.
    pub features: BTreeMap<String, Spread>,
    /// Of the model's answers.
    pub logit: Spread,
    /// Values that 10, 20, … 90 % of the logits do not exceed, lowest first (nearest rank).
    pub logit_deciles: [f64; 9],
    /// From this logit on a window is abnormal: the highest learnt one and the margin.
    pub threshold_logit: f64,
}

/// Where values lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation (of a sample, n − 1), 0 for a single value.
    pub deviation: f64,
    /// Lowest.
    pub min: f64,
    /// Highest.
    pub max: f64,
}

/// Why a text is no baseline.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BaselineError {
    /// Too long.
    #[error("a baseline of {0} bytes: at most {BASELINE_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Not of this form.
    #[error("{0}")]
    Decode(String),
    /// A later or earlier form.
    #[error("format is {0}, this program reads {BASELINE_FORMAT}: learn again")]
    Format(u32),
    /// Too many pairs.
    #[error("{0} pairs of condition and sensor: at most {PAIRS_MAX} are allowed")]
    Pairs(usize),
    /// A value out of its range.
    #[error("{key} is {found}, it must be {range}")]
    Range {
        /// Which key.
        key: String,
        /// What was found.
        found: String,
        /// What is allowed.
        range: &'static str,
    },
}

impl Baseline {
    /// Reads a baseline and checks all of it. `decode` reads the form: `serde_json::from_slice`, since a core has no parser of its
    /// own.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse<'a, E: fmt::Display>(
        text: &'a [u8],
        decode: impl FnOnce(&'a [u8]) -> Result<Self, E>,
    ) -> Result<Self, BaselineError> {
        if text.len() > BASELINE_BYTES_MAX {
            return Err(BaselineError::TooLong(text.len()));
        }
        let baseline = decode(text).map_err(|error| BaselineError::Decode(error.to_string()))?;
        baseline.validate()?;
        Ok(baseline)
    }

    /// Checks what the form alone does not: numbers that are finite and in order, names, and how many there are.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), BaselineError> {
        if self.format != BASELINE_FORMAT {
            return Err(BaselineError::Format(self.format));
        }
        let pairs: usize = self.conditions.values().map(BTreeMap::len).sum();
        let not_learnt: usize = self.not_learnt.values().map(BTreeMap::len).sum();
        if pairs > PAIRS_MAX || not_learnt > PAIRS_MAX {
            return Err(BaselineError::Pairs(pairs.max(not_learnt)));
        }
        let is_operator = self.operator.len() <= OPERATOR_BYTES_MAX;
        require(is_operator, "operator", self.operator.len(), "at most 256 bytes long")?;
        for name in self.conditions.keys().chain(self.not_learnt.keys()) {
            let range = "the name of an operating condition";
            require(is_condition_name(name), "condition", format_args!("{name:?}"), range)?;
        }
        for (condition, sensors) in &self.conditions {
            for (sensor, usual) in sensors {
                usual.validate(&format!("{sensor} in condition {condition}"))?;
            }
        }
        Ok(())
    }

    /// From which logit on a window is abnormal; `None` where nothing was learnt that holds: of another model, of another sensor, or
    /// in a condition that is not known. The model's own threshold holds then.
    #[must_use]
    pub fn threshold_logit(
        &self,
        sensor: &SensorId,
        condition: Current<'_>,
        model_sha256: &str,
    ) -> Option<f64> {
        let usual = self.sensor(sensor, condition, model_sha256)?;
        Some(usual.threshold_logit)
    }

    /// What is usual of a sensor in a condition, learnt by this model.
    #[must_use]
    pub fn sensor(
        &self,
        sensor: &SensorId,
        condition: Current<'_>,
        model_sha256: &str,
    ) -> Option<&SensorBaseline> {
        let usual = self.conditions.get(condition.name()?)?.get(sensor)?;
        usual.model_sha256.eq_ignore_ascii_case(model_sha256).then_some(usual)
    }
}

impl SensorBaseline {
    fn validate(&self, of: &str) -> Result<(), BaselineError> {
        let key = |what: &str| format!("{what} of {of}");
        let is_model = (1..=MODEL_BYTES_MAX).contains(&self.model.len());
        require(is_model, &key("model"), self.model.len(), "1 to 256 bytes long")?;
        let is_hash = settings::is_sha256(&self.model_sha256);
        require(is_hash, &key("model-sha256"), &self.model_sha256, "64 hexadecimal digits")?;
        require(self.windows > 0, &key("windows"), self.windows, "above 0")?;
        let seconds = self.running_seconds;
        let is_time = seconds.is_finite() && seconds >= 0.0;
        require(is_time, &key("running-seconds"), seconds, "finite and not negative")?;
        let count = self.features.len();
        require(count <= FEATURES_MAX, &key("features"), count, "at most 256 features")?;
        for (name, spread) in &self.features {
            let is_feature = name.parse::<FeatureName>().is_ok();
            require(is_feature, &key("features"), format_args!("{name:?}"), "names of features")?;
            spread.validate(&key(name))?;
        }
        self.logit.validate(&key("logit"))?;
        let mut before = self.logit.min;
        for decile in self.logit_deciles {
            let is_rising = before <= decile && decile <= self.logit.max;
            let range = "rising, from the lowest logit to the highest";
            require(is_rising, &key("logit-deciles"), decile, range)?;
            before = decile;
        }
        let threshold = self.threshold_logit;
        let is_above = threshold.is_finite() && threshold > self.logit.max;
        require(is_above, &key("threshold-logit"), threshold, "above the highest logit")?;
        let is_near = threshold <= self.logit.max + MARGIN_LOGIT_MAX;
        let range = "at most 50 above the highest logit, the widest margin of a bundle";
        require(is_near, &key("threshold-logit"), threshold, range)
    }
}

impl Spread {
    fn validate(&self, key: &str) -> Result<(), BaselineError> {
        let Self { mean, deviation, min, max } = *self;
        let is_finite = [mean, deviation, min, max].iter().all(|value| value.is_finite());
        let is_spread = is_finite && min <= mean && mean <= max && deviation >= 0.0;
        let range = "finite, with min <= mean <= max and no negative deviation";
        require(is_spread, key, format_args!("{self:?}"), range)
    }
}

fn require(
    holds: bool,
    key: &str,
    found: impl fmt::Display,
    range: &'static str,
) -> Result<(), BaselineError> {
    if holds {
        return Ok(());
    }
    Err(BaselineError::Range { key: key.to_owned(), found: found.to_string(), range })
}

/// Times as people read them.
mod time_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use shared_proto::model::EventTime;

    pub(super) fn serialize<S: Serializer>(
        time: &EventTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<EventTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        EventTime::parse(&text)
            .ok_or_else(|| D::Error::custom(format_args!("{text:?} is no time of RFC 3339")))
    }
}
