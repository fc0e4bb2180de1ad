//! What the book of alerts is told, validated as a whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shared_proto::model::MachineId;

use super::machine::AlertingEvent;
use super::suppression::{
    DAY_MINUTES, SHELVED_MAX, SUPPRESSION_NAMES_MAX, Suppression, SuppressionKind, SuppressionTime,
};
use crate::settings::{SEVERITY_MAX, SPAN_MAX};
use crate::time::{Micros, ProcessingTime};

/// Highest `alerting.open-max`: the open alerts stand in each state file.
pub const OPEN_LIMIT: usize = 10_000;
/// Most suppressions at once.
pub const SUPPRESSIONS_MAX: usize = 256;
/// Longest name of a suppression, of who has shelved, and of a rule that it names, in bytes; a reason has four times as much.
pub const SUPPRESSION_TEXT_BYTES_MAX: usize = 64;

const REASON_BYTES_MAX: usize = 4 * SUPPRESSION_TEXT_BYTES_MAX;
/// Farthest that the clock of a zone is from UTC.
const OFFSET_MINUTES_MAX: u16 = 14 * 60;

/// Whose findings become one alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertGroup {
    /// Those of one machine, or of one sensor where no machine is known, as far as they stand in one Kafka partition: the producers
    /// must use the machine as key, else each partition has an alert of its own.
    #[default]
    Machine,
    /// Those of one sensor, or of one machine where the rule counts by machine.
    Sensor,
}

/// Everything that the book of alerts is told. Keys are named as they are written in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertSettings {
    /// Whose findings become one alert.
    pub by: AlertGroup,
    /// An alert is over when so much, and the length of a window, has passed without another finding.
    pub resolve_after: Micros,
    /// Most alerts open at once in one Kafka partition, at least 1: one more resolves the oldest.
    pub open_max: usize,
    /// What keeps alerts from people; of several in force the first counts.
    pub suppressions: Vec<Suppression>,
    /// Machine events that fire alerts, and how severe they are.
    pub event_severities: BTreeMap<AlertingEvent, u8>,
}

impl Default for AlertSettings {
    fn default() -> Self {
        Self {
            by: AlertGroup::Machine,
            resolve_after: Micros::from_seconds(300),
            open_max: 1_000,
            suppressions: Vec::new(),
            event_severities: BTreeMap::from([
                (AlertingEvent::Trip, 1),
                (AlertingEvent::StopNotConfirmed, 0),
            ]),
        }
    }
}

/// One thing wrong with the settings of the alerts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlertSettingsFault {
    /// Negative, or above [`SPAN_MAX`].
    #[error("alerting.resolve-after is {span}, 0s to {SPAN_MAX} are allowed: change it")]
    ResolveAfter {
        /// Found.
        span: Micros,
    },
    /// 0, or above [`OPEN_LIMIT`].
    #[error("alerting.open-max is {found}, 1 to {OPEN_LIMIT} are allowed: change it")]
    OpenMax {
        /// Found.
        found: usize,
    },
    /// Above [`SEVERITY_MAX`].
    #[error(
        "alerting.machine-events.{} is {severity}, 0 (critical) to {SEVERITY_MAX} are allowed: change it",
        event.as_str()
    )]
    Severity {
        /// The event.
        event: AlertingEvent,
        /// Found.
        severity: u8,
    },
    /// More than [`SUPPRESSIONS_MAX`].
    #[error(
        "{count} suppressions, at most {SUPPRESSIONS_MAX} are allowed: remove those that are over"
    )]
    TooManySuppressions {
        /// Found.
        count: usize,
    },
    /// Two suppressions of one name could not be told apart in the rows.
    #[error("suppression name {name:?} is used twice: rename one")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// A text that is empty or too long.
    #[error(
        "{what} of suppression {name:?} has {length} bytes, 1 to {limit} are allowed: change it"
    )]
    Text {
        /// Which text.
        what: &'static str,
        /// The suppression.
        name: String,
        /// Bytes found.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More than [`SUPPRESSION_NAMES_MAX`].
    #[error(
        "suppression {name:?} names {count} {what}, at most {SUPPRESSION_NAMES_MAX} are allowed: leave the list \
         empty for all, or split the suppression"
    )]
    TooManyNames {
        /// The suppression.
        name: String,
        /// "rules" or "machines".
        what: &'static str,
        /// Found.
        count: usize,
    },
    /// It would never be in force.
    #[error("suppression {name:?} ends at {until}, not after its begin at {from}: set a later end")]
    EndsBeforeBegin {
        /// The suppression.
        name: String,
        /// Its begin.
        from: String,
        /// Its end.
        until: String,
    },
    /// Longer than [`SHELVED_MAX`].
    #[error(
        "suppression {name:?} shelves for {length}, at most {SHELVED_MAX} (30 days) are allowed: set an earlier end, or change the rule"
    )]
    ShelvedTooLong {
        /// The suppression.
        name: String,
        /// Found.
        length: Micros,
    },
    /// Shelving without an end.
    #[error(
        "suppression {name:?} shelves every week: give it a begin and an end, or make it a maintenance"
    )]
    ShelvedWeekly {
        /// The suppression.
        name: String,
    },
    /// It would never be in force.
    #[error("suppression {name:?} has no days: name at least one, such as \"saturday\"")]
    NoDays {
        /// The suppression.
        name: String,
    },
    /// Not minutes of a day.
    #[error(
        "suppression {name:?} is from minute {from} to minute {to}: the first is 0 to 1439, the second 1 to 1440 and another one"
    )]
    Minutes {
        /// The suppression.
        name: String,
        /// First minute.
        from: u16,
        /// First minute after it.
        to: u16,
    },
    /// No zone has such a clock.
    #[error(
        "zone of suppression {name:?} is {offset} minutes from UTC, at most {OFFSET_MINUTES_MAX} either way are allowed: change it"
    )]
    Offset {
        /// The suppression.
        name: String,
        /// Found.
        offset: i16,
    },
}

impl AlertSettings {
    /// Looks at everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<(), Vec<AlertSettingsFault>> {
        let mut faults = Vec::new();
        let span = self.resolve_after;
        if span < Micros::new(0) || span > SPAN_MAX {
            faults.push(AlertSettingsFault::ResolveAfter { span });
        }
        if self.open_max == 0 || self.open_max > OPEN_LIMIT {
            faults.push(AlertSettingsFault::OpenMax { found: self.open_max });
        }
        for (&event, &severity) in &self.event_severities {
            if severity > SEVERITY_MAX {
                faults.push(AlertSettingsFault::Severity { event, severity });
            }
        }
        let count = self.suppressions.len();
        if count > SUPPRESSIONS_MAX {
            faults.push(AlertSettingsFault::TooManySuppressions { count });
        }
        let mut names = BTreeSet::new();
        for suppression in &self.suppressions {
            if !names.insert(&suppression.name) {
                faults.push(AlertSettingsFault::NameTwice { name: suppression.name.clone() });
            }
            check_texts(suppression, &mut faults);
            check_time(suppression, &mut faults);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// What keeps alerts of this rule and machine from people now, and when that ends.
    pub(super) fn suppression(
        &self,
        rule: &str,
        machine: Option<&MachineId>,
        now: ProcessingTime,
    ) -> Option<(&Suppression, ProcessingTime)> {
        let mut covering = self.suppressions.iter().filter(|one| one.covers(rule, machine));
        covering.find_map(|one| Some((one, one.when.in_force_until(now)?)))
    }
}

fn check_texts(suppression: &Suppression, faults: &mut Vec<AlertSettingsFault>) {
    let name = &suppression.name;
    let mut texts = vec![("name", name, SUPPRESSION_TEXT_BYTES_MAX)];
    texts.extend(suppression.rules.iter().map(|rule| ("rule", rule, SUPPRESSION_TEXT_BYTES_MAX)));
    if let SuppressionKind::Shelved { by, reason } = &suppression.kind {
        texts.push(("by", by, SUPPRESSION_TEXT_BYTES_MAX));
        texts.push(("reason", reason, REASON_BYTES_MAX));
    }
    for (what, text, limit) in texts {
        let length = text.len();
        if text.trim().is_empty() || length > limit {
            faults.push(AlertSettingsFault::Text { what, name: name.clone(), length, limit });
        }
    }
    let counts = [("rules", suppression.rules.len()), ("machines", suppression.machines.len())];
    for (what, count) in counts {
        if count > SUPPRESSION_NAMES_MAX {
            faults.push(AlertSettingsFault::TooManyNames { name: name.clone(), what, count });
        }
    }
}

fn check_time(suppression: &Suppression, faults: &mut Vec<AlertSettingsFault>) {
    let name = suppression.name.clone();
    let is_shelved = match suppression.kind {
        SuppressionKind::Maintenance => false,
        SuppressionKind::Shelved { .. } => true,
    };
    match &suppression.when {
        SuppressionTime::At { from, until } => {
            let length = Micros::new(until.micros().saturating_sub(from.micros()));
            if length <= Micros::new(0) {
                let text = |time: &ProcessingTime| time.as_event_time().to_string();
                let (from, until) = (text(from), text(until));
                faults.push(AlertSettingsFault::EndsBeforeBegin { name, from, until });
            } else if is_shelved && length > SHELVED_MAX {
                faults.push(AlertSettingsFault::ShelvedTooLong { name, length });
            }
        }
        SuppressionTime::Weekly { days, from_minute, to_minute, offset_minutes } => {
            if is_shelved {
                faults.push(AlertSettingsFault::ShelvedWeekly { name: name.clone() });
            }
            if days.is_empty() {
                faults.push(AlertSettingsFault::NoDays { name: name.clone() });
            }
            let (from, to, offset) = (*from_minute, *to_minute, *offset_minutes);
            if from >= DAY_MINUTES || to == 0 || to > DAY_MINUTES || from == to {
                faults.push(AlertSettingsFault::Minutes { name: name.clone(), from, to });
            }
            if offset.unsigned_abs() > OFFSET_MINUTES_MAX {
                faults.push(AlertSettingsFault::Offset { name, offset });
            }
        }
    }
}
