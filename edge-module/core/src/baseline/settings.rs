//! What a run of learning is asked for, and by what rules it is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use shared_proto::model::{MachineId, SensorId};

use super::{MODEL_BYTES_MAX, PAIRS_MAX};
use crate::operation::is_condition_name;

/// Longest running time, deadline or gap that may be asked for: thirty days.
pub const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Fewest windows that deciles can be taken from.
pub const WINDOWS_MIN_MIN: u32 = 10;
/// Smallest margin: the highest learnt window itself must not be abnormal.
pub const MARGIN_LOGIT_MIN: f64 = 0.01;
/// Longest name of an operator, in bytes.
pub const OPERATOR_BYTES_MAX: usize = 256;

/// A person's wish to learn a machine that runs healthily.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnRequest {
    /// Which machine.
    pub machine_id: MachineId,
    /// Who asks, and answers for the machine being healthy; at most [`OPERATOR_BYTES_MAX`].
    pub operator: String,
    /// The operating conditions to learn, as [`crate::operation::Operation::names`] gives them.
    pub conditions: Vec<String>,
    /// The machine is another than the one learnt before (a new bearing, a moved sensor): what was learnt before is neither held
    /// against it nor kept.
    pub is_replacing: bool,
}

/// How learning is judged.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnSettings {
    /// Healthy running time wanted of each sensor in each condition.
    pub duration: Duration,
    /// Learning ends then, with what there is; not below `duration`.
    pub deadline: Duration,
    /// Most running time that one window stands for: a longer gap in the data is no running time. 2 s for a sensor that delivers all
    /// the time, more than its interval for one that does not.
    pub gap_max: Duration,
    /// Windows so soon after the machine began to run, or after the condition changed, hold samples from before and are not learnt;
    /// at least the length of a window.
    pub settle: Duration,
    /// Fewest windows of a sensor in a condition, at least [`WINDOWS_MIN_MIN`].
    pub windows_min: u32,
    /// How far above the highest learnt logit the threshold is set, at least [`MARGIN_LOGIT_MIN`].
    pub margin_logit: BTreeMap<SensorId, f64>,
    /// The models that judge the machine's sensors.
    pub models: BTreeMap<SensorId, ModelOfSensor>,
}

/// The model that judges a sensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelOfSensor {
    /// Name and version, at most [`MODEL_BYTES_MAX`] bytes.
    pub identity: String,
    /// Hash of its file, 64 hexadecimal digits.
    pub sha256: String,
    /// From this logit on it calls a window abnormal.
    pub threshold_logit: f64,
    /// It judges a level, which differs from machine to machine: its own threshold says nothing of a new machine. Otherwise (a shape) a
    /// window at its own threshold is abnormal while learning, too.
    pub is_absolute: bool,
}

/// One fault of a request or its settings.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LearnFault {
    /// A time out of its range.
    #[error("{what} of learning is {found:?}: it must be {range}")]
    Time {
        /// Which time.
        what: &'static str,
        /// Its length.
        found: Duration,
        /// What is allowed.
        range: &'static str,
    },
    /// Too few windows for deciles.
    #[error("windows-min of learning is {0}: at least {WINDOWS_MIN_MIN} are needed")]
    WindowsMin(u32),
    /// No model to learn by.
    #[error("no sensor of the machine has a model: there is nothing to learn")]
    NoModels,
    /// A margin that is none.
    #[error(
        "margin-logit of {sensor} is {found:?}: it must be finite and at least {MARGIN_LOGIT_MIN}"
    )]
    Margin {
        /// Which sensor.
        sensor: SensorId,
        /// What was found; `None`: nothing.
        found: Option<f64>,
    },
    /// A model that is not described.
    #[error("model of {sensor}: {what}")]
    Model {
        /// Which sensor.
        sensor: SensorId,
        /// What is wrong.
        what: &'static str,
    },
    /// A condition that is none.
    #[error("{0:?} is not the name of an operating condition, or is there twice")]
    Condition(String),
    /// Nothing, or too much, to learn.
    #[error("{0} pairs of operating condition and sensor: 1 to {PAIRS_MAX} can be learnt")]
    Pairs(usize),
    /// A name too long.
    #[error("operator has {0} bytes: at most {OPERATOR_BYTES_MAX} are allowed")]
    Operator(usize),
    /// The baseline of another machine.
    #[error("the previous baseline is of machine {found}, {asked} is to be learnt")]
    OtherMachine {
        /// Whose baseline it is.
        found: MachineId,
        /// Which machine is to be learnt.
        asked: MachineId,
    },
}

impl LearnSettings {
    /// Checks all settings.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<(), Vec<LearnFault>> {
        let mut faults = Vec::new();
        let is_time = |time: Duration| !time.is_zero() && time <= DURATION_MAX;
        let up_to = "above 0 and at most 30 days";
        let is_deadline = is_time(self.deadline) && self.deadline >= self.duration;
        let checks = [
            ("duration", self.duration, is_time(self.duration), up_to),
            ("deadline", self.deadline, is_deadline, "at least duration and at most 30 days"),
            ("gap-max", self.gap_max, is_time(self.gap_max), up_to),
            ("settle", self.settle, self.settle <= DURATION_MAX, "at most 30 days"),
        ];
        for (what, found, holds, range) in checks {
            if !holds {
                faults.push(LearnFault::Time { what, found, range });
            }
        }
        if self.windows_min < WINDOWS_MIN_MIN {
            faults.push(LearnFault::WindowsMin(self.windows_min));
        }
        if self.models.is_empty() {
            faults.push(LearnFault::NoModels);
        }
        for (sensor, model) in &self.models {
            let found = self.margin_logit.get(sensor).copied();
            if !found.is_some_and(|margin| margin >= MARGIN_LOGIT_MIN && is_number(margin)) {
                faults.push(LearnFault::Margin { sensor: sensor.clone(), found });
            }
            if let Some(what) = model.fault() {
                faults.push(LearnFault::Model { sensor: sensor.clone(), what });
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    pub(super) fn margin(&self, sensor: &SensorId) -> f64 {
        *self.margin_logit.get(sensor).expect("each model's margin was checked")
    }
}

impl ModelOfSensor {
    fn fault(&self) -> Option<&'static str> {
        if !(1..=MODEL_BYTES_MAX).contains(&self.identity.len()) {
            Some("its identity must have 1 to 256 bytes")
        } else if !is_sha256(&self.sha256) {
            Some("its sha256 must be 64 hexadecimal digits")
        } else if !is_number(self.threshold_logit) {
            Some("its threshold must be above 0 and below 1, so that its logit is finite")
        } else {
            None
        }
    }
}

impl LearnRequest {
    pub(super) fn faults(&self, settings: &LearnSettings) -> Vec<LearnFault> {
        let mut faults = Vec::new();
        if self.operator.len() > OPERATOR_BYTES_MAX {
            faults.push(LearnFault::Operator(self.operator.len()));
        }
        for (index, name) in self.conditions.iter().enumerate() {
            if !is_condition_name(name) || self.conditions[..index].contains(name) {
                faults.push(LearnFault::Condition(name.clone()));
            }
        }
        let pairs = self.conditions.len().saturating_mul(settings.models.len());
        if !(1..=PAIRS_MAX).contains(&pairs) && !settings.models.is_empty() {
            faults.push(LearnFault::Pairs(pairs));
        }
        faults
    }
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Finite, and small enough that its square and sums of squares are.
pub(super) fn is_number(value: f64) -> bool {
    value.abs() <= f64::from(f32::MAX)
}
