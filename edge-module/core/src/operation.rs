//! Operating conditions of a machine: in which of them it runs now, by readings of speed, load or the like.
//!
//! A vibration that is usual at full load is not at idle, so a baseline ([`crate::baseline`]) is learnt and used per condition. A
//! condition holds while each of its ranges holds on a value that is not too old. Settings in which two conditions could hold
//! at once are refused: they need a sensor in common, with ranges that do not meet.
//!
//! A machine without conditions has one baseline, [`ANY_CONDITION`]. Where it has some, a value that is missing, too old, not
//! finite or in no condition's ranges gives [`Current::Unknown`], never a guess.
//!
//! A reading is of a moment, and the next one comes later: what is measured in between belongs to a condition only if the readings
//! before and after say so. [`Operation::holding`] tells from when to when that is known.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared_proto::model::SensorId;

/// Name of the one baseline of a machine without conditions.
pub const ANY_CONDITION: &str = "any";
/// Longest name of a condition, in bytes.
pub const CONDITION_NAME_BYTES_MAX: usize = 64;
/// Most conditions of one machine.
pub const CONDITIONS_MAX: usize = 32;
/// Most ranges of one condition.
pub const RANGES_MAX: usize = 8;

/// A condition in which a machine may run: all ranges hold.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatingCondition {
    /// 1 to 64 bytes of `a-z`, `0-9`, `.`, `_` and `-`, not `any`.
    pub name: String,
    /// At least one, each of another sensor.
    pub ranges: Vec<OperatingRange>,
}

/// Between which values a sensor's readings lie.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatingRange {
    /// Who measures.
    pub sensor: SensorId,
    /// Lowest value, included, in the readings' unit; may be negative infinity.
    pub min: f64,
    /// Highest value, not included, in the readings' unit; may be infinity.
    pub max: f64,
}

impl OperatingRange {
    fn contains(&self, value: f64) -> bool {
        self.min <= value && value < self.max
    }

    fn meets(&self, other: &Self) -> bool {
        self.sensor == other.sensor && self.min < other.max && other.min < self.max
    }
}

/// One fault in a machine's conditions.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OperationFault {
    /// Too many conditions.
    #[error("{0} operating conditions: at most {CONDITIONS_MAX} are allowed")]
    TooMany(usize),
    /// A name that is none.
    #[error(
        "operating condition {0:?}: a name has 1 to {CONDITION_NAME_BYTES_MAX} bytes of a-z, 0-9, '.', '_' and '-'"
    )]
    Name(String),
    /// The name of what holds without conditions.
    #[error(
        "an operating condition is named {ANY_CONDITION}: that is the baseline of a machine without conditions"
    )]
    NameReserved,
    /// Two of one name.
    #[error("operating condition {0} is there twice")]
    NameTwice(String),
    /// Nothing that could hold, or too much.
    #[error("operating condition {name} has {ranges} ranges: 1 to {RANGES_MAX} are allowed")]
    RangeCount {
        /// Which condition.
        name: String,
        /// Ranges found.
        ranges: usize,
    },
    /// A range that holds no value.
    #[error(
        "operating condition {name}: the range of {sensor} is {min} to {max}; min must be below max"
    )]
    RangeEmpty {
        /// Which condition.
        name: String,
        /// Which sensor.
        sensor: SensorId,
        /// Lowest value.
        min: f64,
        /// Highest value.
        max: f64,
    },
    /// Two ranges of one sensor.
    #[error(
        "operating condition {name} has two ranges of {sensor}: write the one in which both hold"
    )]
    SensorTwice {
        /// Which condition.
        name: String,
        /// Which sensor.
        sensor: SensorId,
    },
    /// Two conditions that are not told apart.
    #[error(
        "operating conditions {first} and {second} can hold at once: give them ranges of one sensor that do not meet"
    )]
    Overlap {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// A value that is too old as soon as it is there.
    #[error("stale-after of the operating conditions is 0: no value would ever count")]
    StaleAfterZero,
}

/// In which condition a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Current<'a> {
    /// The machine has no conditions: its one baseline, [`ANY_CONDITION`], holds.
    Only,
    /// This one: its baseline holds.
    Condition(&'a str),
    /// None that is known: no baseline holds, the model's own threshold does.
    Unknown,
}

impl<'a> Current<'a> {
    /// Name of the baseline that holds; `None` where none does.
    #[must_use]
    pub const fn name(self) -> Option<&'a str> {
        match self {
            Self::Only => Some(ANY_CONDITION),
            Self::Condition(name) => Some(name),
            Self::Unknown => None,
        }
    }
}

/// A condition that holds, and for which time its sensors vouch for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding<'a> {
    /// Its name.
    pub name: &'a str,
    /// Since then it holds without a break. What is older may be of another one, or of none.
    pub since: Instant,
    /// Each of its sensors has spoken then or later. What came before that, and after `since`, lies between readings that agree.
    pub heard: Instant,
}

/// Tells in which condition one machine runs.
#[derive(Debug)]
pub struct Operation {
    conditions: Vec<OperatingCondition>,
    stale_after: Duration,
    /// Each sensor that a range names, whether it has spoken or not.
    heard: BTreeMap<SensorId, Option<Heard>>,
    /// Since when no reading has changed the condition; `None` while nobody asks for that.
    followed: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    value: f64,
    at: Instant,
}

impl Operation {
    /// A machine that has not been heard yet. A value counts until it is older than `stale_after`.
    ///
    /// # Errors
    /// All faults at once.
    pub fn new(
        conditions: Vec<OperatingCondition>,
        stale_after: Duration,
    ) -> Result<Self, Vec<OperationFault>> {
        let faults = faults(&conditions, stale_after);
        if !faults.is_empty() {
            return Err(faults);
        }
        let ranges = conditions.iter().flat_map(|condition| &condition.ranges);
        let heard = ranges.map(|range| (range.sensor.clone(), None)).collect();
        Ok(Self { conditions, stale_after, heard, followed: None })
    }

    /// Takes a reading; those of sensors that no range names are left alone. Allocates nothing.
    pub fn handle_reading(&mut self, sensor: &SensorId, value: f64, now: Instant) {
        if !self.heard.contains_key(sensor) {
            return;
        }
        // Also a value that was too old until now is a change.
        let before = self.followed.map(|_| self.holds_now(now));
        if let Some(heard) = self.heard.get_mut(sensor) {
            *heard = Some(Heard { value, at: now });
        }
        if before.is_some_and(|before| before != self.holds_now(now)) {
            self.followed = Some(now);
        }
    }

    /// Begins to notice when the condition changes, for [`Self::holding`].
    pub const fn follow(&mut self, now: Instant) {
        self.followed = Some(now);
    }

    /// Ends what [`Self::follow`] began.
    pub const fn unfollow(&mut self) {
        self.followed = None;
    }

    /// The condition that holds now, with the time that its sensors vouch for; `None` where none is known, in a machine without
    /// conditions, and in one that is not followed.
    #[must_use]
    pub fn holding(&self, now: Instant) -> Option<Holding<'_>> {
        let (since, condition) = (self.followed?, &self.conditions[self.holds_now(now)?]);
        let heard =
            condition.ranges.iter().filter_map(|range| self.heard.get(&range.sensor)?.as_ref());
        let heard = heard.map(|heard| heard.at).min()?;
        Some(Holding { name: &condition.name, since, heard })
    }

    /// The condition that holds now.
    #[must_use]
    pub fn current(&self, now: Instant) -> Current<'_> {
        if self.conditions.is_empty() {
            return Current::Only;
        }
        let name = |index: usize| Current::Condition(&self.conditions[index].name);
        self.holds_now(now).map_or(Current::Unknown, name)
    }

    /// The sensors whose readings are needed.
    pub fn sensors(&self) -> impl Iterator<Item = &SensorId> {
        self.heard.keys()
    }

    /// The names of the baselines that the machine can have, [`ANY_CONDITION`] alone without conditions.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        if self.conditions.is_empty() {
            return vec![ANY_CONDITION.to_owned()];
        }
        self.conditions.iter().map(|condition| condition.name.clone()).collect()
    }

    /// Number of the condition that holds.
    fn holds_now(&self, now: Instant) -> Option<usize> {
        let holds = |range: &OperatingRange| {
            self.heard.get(&range.sensor).copied().flatten().is_some_and(|heard| {
                let age = now.saturating_duration_since(heard.at);
                age <= self.stale_after && range.contains(heard.value)
            })
        };
        self.conditions.iter().position(|condition| condition.ranges.iter().all(holds))
    }
}

/// Whether a text may name a condition.
#[must_use]
pub fn is_condition_name(name: &str) -> bool {
    let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9') || b"._-".contains(&byte);
    (1..=CONDITION_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

fn faults(conditions: &[OperatingCondition], stale_after: Duration) -> Vec<OperationFault> {
    if conditions.len() > CONDITIONS_MAX {
        return vec![OperationFault::TooMany(conditions.len())];
    }
    let mut faults = Vec::new();
    if stale_after.is_zero() && !conditions.is_empty() {
        faults.push(OperationFault::StaleAfterZero);
    }
    for (index, condition) in conditions.iter().enumerate() {
        condition_faults(condition, &mut faults);
        for other in &conditions[..index] {
            if other.name == condition.name {
                faults.push(OperationFault::NameTwice(condition.name.clone()));
            } else if can_hold_at_once(other, condition) {
                let (first, second) = (other.name.clone(), condition.name.clone());
                faults.push(OperationFault::Overlap { first, second });
            }
        }
    }
    faults
}

fn condition_faults(condition: &OperatingCondition, faults: &mut Vec<OperationFault>) {
    let name = &condition.name;
    if !is_condition_name(name) {
        faults.push(OperationFault::Name(name.clone()));
    } else if name == ANY_CONDITION {
        faults.push(OperationFault::NameReserved);
    }
    let ranges = &condition.ranges;
    if !(1..=RANGES_MAX).contains(&ranges.len()) {
        faults.push(OperationFault::RangeCount { name: name.clone(), ranges: ranges.len() });
    }
    for (index, OperatingRange { sensor, min, max }) in ranges.iter().enumerate() {
        // The comparison is false for a NaN, too.
        let is_range = min < max;
        if !is_range {
            let (name, sensor) = (name.clone(), sensor.clone());
            faults.push(OperationFault::RangeEmpty { name, sensor, min: *min, max: *max });
        }
        if ranges[..index].iter().any(|other| other.sensor == *sensor) {
            let (name, sensor) = (name.clone(), sensor.clone());
            faults.push(OperationFault::SensorTwice { name, sensor });
        }
    }
}

/// Faulty ranges are reported as such and keep nothing apart.
fn can_hold_at_once(one: &OperatingCondition, other: &OperatingCondition) -> bool {
    let keeps_apart = |a: &OperatingRange, b: &OperatingRange| a.sensor == b.sensor && !a.meets(b);
    !one.ranges.iter().any(|a| other.ranges.iter().any(|b| keeps_apart(a, b)))
}
