//! How far a run of learning is, for operators.

use std::collections::BTreeMap;

use serde::Serialize;
use shared_proto::model::SensorId;

/// Windows of a run that are not learnt, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NotLearnt {
    /// The machine stood still.
    pub standstill: u64,
    /// The machine had just begun to run, or its condition had just changed.
    pub settling: u64,
    /// In no known operating condition.
    pub unknown_condition: u64,
    /// In a condition that changed, or ended otherwise, before a later reading confirmed it.
    pub unconfirmed: u64,
    /// A logit or feature that is not finite, or other features than before.
    pub unusable: u64,
    /// Of a sensor without a model or a condition that is not to be learnt.
    pub not_asked: u64,
}

/// How far a run of learning is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LearnProgress {
    /// Whether the machine runs, as far as it was told.
    pub is_running: bool,
    /// Time since the beginning.
    pub passed_seconds: f64,
    /// Time until the deadline.
    pub remaining_seconds: f64,
    /// Fewest windows of each sensor in each condition.
    pub wanted_windows: u64,
    /// Running time wanted of each sensor in each condition.
    pub wanted_seconds: f64,
    /// By operating condition.
    pub conditions: BTreeMap<String, ConditionProgress>,
    /// Windows that are learnt when later readings confirm their condition.
    pub waiting: u64,
    /// Windows that are not learnt.
    pub not_learnt: NotLearnt,
}

/// How far an operating condition is: as far as its sensor that is least far.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConditionProgress {
    /// Windows learnt.
    pub windows: u64,
    /// Running time learnt.
    pub seconds: f64,
    /// Whether that is as much as was wanted.
    pub is_done: bool,
    /// By sensor.
    pub sensors: BTreeMap<SensorId, SensorProgress>,
}

/// How far a sensor is in a condition.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SensorProgress {
    /// Windows learnt.
    pub windows: u64,
    /// Running time learnt.
    pub seconds: f64,
    /// Whether that is as much as was wanted.
    pub is_done: bool,
    /// Windows set aside, at or above the model's own threshold.
    pub above_model: u64,
    /// Windows set aside, at or above the previous baseline's threshold.
    pub above_previous: u64,
    /// Mean of the logits learnt; `None` before the first.
    pub logit_mean: Option<f64>,
    /// Highest of the logits learnt; `None` before the first.
    pub logit_max: Option<f64>,
}
