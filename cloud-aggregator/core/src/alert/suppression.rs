//! When alerts are kept from people: maintenance that is planned, and what a person has shelved.

use serde::{Deserialize, Serialize};
use shared_proto::model::MachineId;

use crate::time::{Micros, ProcessingTime};

/// Longest time that somebody may shelve something. After that it is either repaired, or no longer an exception but a rule to change.
pub const SHELVED_MAX: Micros = Micros::from_seconds(30 * 24 * 3600);
/// Most rules, and most machines, that one suppression names.
pub const SUPPRESSION_NAMES_MAX: usize = 1_024;
/// Minutes of a day.
pub(super) const DAY_MINUTES: u16 = 24 * 60;

const MINUTE_MICROS: i64 = 60_000_000;

/// A reason not to tell people of some alerts for a time. Their rows are written all the same, and what still lasts at its end is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Suppression {
    /// Unique.
    pub name: String,
    /// Why.
    pub kind: SuppressionKind,
    /// Rules by their exact names, or the words of machine events such as `trip`; empty: all.
    pub rules: Vec<String>,
    /// Machines; empty: all, and what has none.
    pub machines: Vec<MachineId>,
    /// When it is in force, by the aggregator's clock.
    pub when: SuppressionTime,
}

/// Why people are not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuppressionKind {
    /// Work on the machines is planned.
    Maintenance,
    /// A person does not want to be told for a time.
    Shelved {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

/// When a suppression is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuppressionTime {
    /// Once.
    At {
        /// First moment.
        from: ProcessingTime,
        /// First moment after it.
        until: ProcessingTime,
    },
    /// Every week on these days.
    Weekly {
        /// Days on which it begins.
        days: Vec<Weekday>,
        /// First minute of the day, 0 to 1439.
        from_minute: u16,
        /// First minute after it, 1 to 1440; at or before `from_minute` it is one of the next day.
        to_minute: u16,
        /// Minutes by which the zone's clock is ahead of UTC.
        offset_minutes: i16,
    },
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weekday {
    /// Monday.
    Monday,
    /// Tuesday.
    Tuesday,
    /// Wednesday.
    Wednesday,
    /// Thursday.
    Thursday,
    /// Friday.
    Friday,
    /// Saturday.
    Saturday,
    /// Sunday.
    Sunday,
}

impl Weekday {
    /// All of them, from the day of 1970-01-01 on.
    const SINCE_1970: [Self; 7] = [
        Self::Thursday,
        Self::Friday,
        Self::Saturday,
        Self::Sunday,
        Self::Monday,
        Self::Tuesday,
        Self::Wednesday,
    ];

    /// The day of the week so many days after 1970-01-01.
    fn of_day(day: i64) -> Self {
        let place = usize::try_from(day.rem_euclid(7)).unwrap_or(0);
        Self::SINCE_1970[place]
    }
}

impl Suppression {
    /// What an alert says that it keeps from people: `maintenance:<name>` or `shelved:<who>`.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.kind {
            SuppressionKind::Maintenance => format!("maintenance:{}", self.name),
            SuppressionKind::Shelved { by, .. } => format!("shelved:{by}"),
        }
    }

    /// Whether it is for alerts of this rule and machine.
    #[must_use]
    pub fn covers(&self, rule: &str, machine: Option<&MachineId>) -> bool {
        let is_rule = self.rules.is_empty() || self.rules.iter().any(|name| name == rule);
        let is_machine = self.machines.is_empty()
            || machine.is_some_and(|machine| self.machines.contains(machine));
        is_rule && is_machine
    }
}

impl SuppressionTime {
    /// The first moment after `now` at which it is not in force, if it is in force now.
    #[must_use]
    pub fn in_force_until(&self, now: ProcessingTime) -> Option<ProcessingTime> {
        match self {
            Self::At { from, until } => (*from <= now && now < *until).then_some(*until),
            Self::Weekly { days, from_minute, to_minute, offset_minutes } => {
                let offset = i64::from(*offset_minutes) * MINUTE_MICROS;
                let local = now.micros().saturating_add(offset);
                let (from, to) = (i64::from(*from_minute), i64::from(*to_minute));
                let length = if to > from { to - from } else { to + i64::from(DAY_MINUTES) - from };
                let day_micros = i64::from(DAY_MINUTES) * MINUTE_MICROS;
                let today = local.div_euclid(day_micros);
                // Yesterday's may reach into today.
                let ends = [today - 1, today].into_iter().filter_map(|day| {
                    let start = day.saturating_mul(day_micros).saturating_add(from * MINUTE_MICROS);
                    let end = start.saturating_add(length * MINUTE_MICROS);
                    let is_now = start <= local && local < end;
                    (is_now && days.contains(&Weekday::of_day(day))).then_some(end)
                });
                let end = ends.max()?;
                Some(ProcessingTime::from_micros(end.saturating_sub(offset)))
            }
        }
    }
}
