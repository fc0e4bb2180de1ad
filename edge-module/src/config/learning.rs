//! `[learning]`, and the operating conditions of a machine.

use std::time::Duration;

use edge_core::operation::{OperatingCondition, OperatingRange, Operation};
use serde::Deserialize;
use shared_proto::model::SensorId;

use super::Machine;

/// `[learning]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Learning {
    /// A run of learning ends at the latest after this time, unless it is asked for otherwise.
    #[serde(with = "humantime_serde")]
    pub within: Duration,
    /// Fewest windows of a sensor in a condition.
    pub windows_min: u32,
    /// Windows so soon after a start or a change of condition are not learnt.
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    /// Most running time that one window stands for.
    #[serde(with = "humantime_serde")]
    pub gap_max: Duration,
}

/// One entry of `[[machines.conditions]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// Ranges that must all hold.
    pub ranges: Vec<ConditionRange>,
}

/// Between which values a sensor's readings lie.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConditionRange {
    /// Who measures.
    pub sensor: SensorId,
    /// Lowest value, included; absent: none.
    #[serde(default)]
    pub min: Option<f64>,
    /// Highest value, not included; absent: none.
    #[serde(default)]
    pub max: Option<f64>,
}

impl From<&Condition> for OperatingCondition {
    fn from(condition: &Condition) -> Self {
        let ranges = condition.ranges.iter().map(|range| OperatingRange {
            sensor: range.sensor.clone(),
            min: range.min.unwrap_or(f64::NEG_INFINITY),
            max: range.max.unwrap_or(f64::INFINITY),
        });
        Self { name: condition.name.clone(), ranges: ranges.collect() }
    }
}

impl Machine {
    /// What is wrong with its conditions.
    pub(super) fn condition_faults(&self) -> Vec<String> {
        let conditions = self.conditions.iter().map(Into::into).collect();
        let faults = Operation::new(conditions, self.conditions_stale_after).err();
        faults.unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// Sensors whose readings tell its condition.
    pub fn condition_sensors(&self) -> impl Iterator<Item = &SensorId> {
        self.conditions.iter().flat_map(|condition| &condition.ranges).map(|range| &range.sensor)
    }
}

impl Learning {
    /// What is wrong, with its key.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        use edge_core::baseline::{DURATION_MAX, WINDOWS_MIN_MIN};

        let mut faults = Vec::new();
        if self.windows_min < WINDOWS_MIN_MIN {
            let text = format!("{}: at least {WINDOWS_MIN_MIN} are needed", self.windows_min);
            faults.push(("learning.windows-min", text));
        }
        let times = [
            ("learning.within", self.within, Duration::from_secs(1)),
            ("learning.settle", self.settle, Duration::ZERO),
            ("learning.gap-max", self.gap_max, Duration::from_millis(1)),
        ];
        for (key, time, min) in times {
            if !(min..=DURATION_MAX).contains(&time) {
                faults.push((key, format!("{time:?} is not within {min:?} and {DURATION_MAX:?}")));
            }
        }
        faults
    }
}
