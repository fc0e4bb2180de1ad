//! From findings to alerts: what the windows found, and what a person is told of it.
//!
//! A [`Finding`] is one window of one rule that is an anomaly. An alert is what a person is told: one for each machine (or sensor) and
//! rule while it lasts, however many windows that takes. The [`AlertBook`] keeps the alerts that are open and decides when one fires and
//! when it is over; each such change leaves as an [`AlertEvent`], to the channels and as a row of `alerts`.

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};
use shared_proto::model::{EventTime, MachineId, SensorId};

use crate::exact;
use crate::rule::Threshold;
use crate::time::ProcessingTime;

mod book;
mod machine;
mod memory;
mod settings;
mod suppression;

pub use book::{AlertBook, FINDINGS_REMEMBERED_MAX, PAST_MAX, TOLD_MAX};
pub use machine::{AlertingEvent, DETAIL_BYTES_MAX, ENDS_MAX};
pub use settings::{
    AlertGroup, AlertSettings, AlertSettingsFault, OPEN_LIMIT, SUPPRESSION_TEXT_BYTES_MAX,
    SUPPRESSIONS_MAX,
};
pub use suppression::{
    SHELVED_MAX, SUPPRESSION_NAMES_MAX, Suppression, SuppressionKind, SuppressionTime, Weekday,
};

/// One window is an anomaly: found once a window, by the match that makes it one for good, or at its close where only the close can
/// tell. A repeat carries the same `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// [`alert_id`] of rule, sensor or machine, and window start.
    pub id: String,
    /// Rule that found it.
    pub rule: String,
    /// 0 (critical) to 4 (verbose), as Azure Monitor counts.
    pub severity: u8,
    /// Sensor whose window it is; `None` where the rule counts by machine.
    pub sensor_id: Option<SensorId>,
    /// Machine whose window it is, or the machine the sensor sits on, if a matching reading told.
    pub machine_id: Option<MachineId>,
    /// First microsecond of the window.
    pub window_start: EventTime,
    /// First microsecond after the window.
    pub window_end: EventTime,
    /// Matches in the window when it was found.
    pub count: u64,
    /// What the window must not be.
    pub threshold: Threshold,
    /// What the threshold's aggregate was when it was found.
    #[serde(with = "exact::number")]
    pub observed: f64,
    /// When the aggregator decided.
    pub fired_at: ProcessingTime,
    /// The window was closed, or over for longer than `historical_after`: for the record, not for a call-out.
    pub historical: bool,
}

impl Finding {
    /// The sensor or machine whose window it is.
    #[must_use]
    pub fn group(&self) -> &str {
        group_name(self.sensor_id.as_ref(), self.machine_id.as_ref())
    }
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// It lasts.
    Fired,
    /// It is over.
    Resolved,
}

impl AlertState {
    /// The word used in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fired => "fired",
            Self::Resolved => "resolved",
        }
    }
}

/// A change of an alert that leaves: to the channels, and as a row of `alerts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertEvent {
    /// Hexadecimal SHA-256 of rule, machine or sensor, and the first window's start or the name of the trip.
    pub alert_id: String,
    /// 1 when the alert fires, then one more for each further event of it.
    pub revision: u32,
    /// What it has become.
    pub state: AlertState,
    /// Rule that found the windows; of a machine event its word, such as `trip`.
    pub rule: String,
    /// 0 (critical) to 4 (verbose), as Azure Monitor counts.
    pub severity: u8,
    /// Machine that it is about, if one is known.
    pub machine_id: Option<MachineId>,
    /// Sensor of the first finding, if it has one.
    pub sensor_id: Option<SensorId>,
    /// Start of the first finding's window, or the time of the machine event.
    pub window_start: EventTime,
    /// Latest end of a finding's window, or the time of the latest machine event.
    pub window_end: EventTime,
    /// Findings so far.
    pub findings: u64,
    /// Matches of the finding that observed most; 1 of a machine event.
    pub count: u64,
    /// Threshold of that finding; empty of a machine event.
    pub threshold: String,
    /// What that finding observed: the value farthest from zero; 0 of a machine event.
    #[serde(with = "exact::number")]
    pub observed: f64,
    /// For people: what a machine event says of its cause, and why an alert was resolved that may not be over.
    pub detail: String,
    /// Name of the trip, of a machine event that has one.
    pub trip_id: Option<String>,
    /// When the aggregator decided that it fires.
    pub fired_at: ProcessingTime,
    /// When the aggregator decided this change.
    pub changed_at: ProcessingTime,
    /// When the aggregator decided that it is over.
    pub resolved_at: Option<ProcessingTime>,
    /// All of it was over long ago: for the record, not for a call-out.
    pub historical: bool,
    /// `maintenance:<name>` or `shelved:<who>`: a row is written, nobody is told.
    pub suppressed_by: Option<String>,
}

impl AlertEvent {
    /// Idempotency key of a delivery: `<alert_id>-<revision>`.
    #[must_use]
    pub fn event_id(&self) -> String {
        format!("{}-{}", self.alert_id, self.revision)
    }

    /// The machine that it is about, or the sensor where none is known.
    #[must_use]
    pub fn subject(&self) -> &str {
        let sensor = || self.sensor_id.as_ref().map_or("", |sensor| sensor.as_str());
        self.machine_id.as_ref().map_or_else(sensor, |machine| machine.as_str())
    }
}

/// An alert of this one window that has just fired, under the finding's own id: what versions without a book of alerts owed.
impl From<Finding> for AlertEvent {
    fn from(finding: Finding) -> Self {
        Self {
            alert_id: finding.id,
            revision: 1,
            state: AlertState::Fired,
            rule: finding.rule,
            severity: finding.severity,
            machine_id: finding.machine_id,
            sensor_id: finding.sensor_id,
            window_start: finding.window_start,
            window_end: finding.window_end,
            findings: 1,
            count: finding.count,
            threshold: finding.threshold.to_string(),
            observed: finding.observed,
            detail: String::new(),
            trip_id: None,
            fired_at: finding.fired_at,
            changed_at: finding.fired_at,
            resolved_at: None,
            historical: finding.historical,
            suppressed_by: None,
        }
    }
}

/// Reads alert events; what older versions wrote in their place, findings, become the alerts that they meant.
pub(crate) fn read_events<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<AlertEvent>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Saved {
        Event(Box<AlertEvent>),
        Finding(Box<Finding>),
    }
    let saved = Vec::<Saved>::deserialize(deserializer)?;
    let events = saved.into_iter().map(|saved| match saved {
        Saved::Event(event) => *event,
        Saved::Finding(finding) => (*finding).into(),
    });
    Ok(events.collect())
}

/// The sensor, or the machine where a rule counts by machine.
pub(crate) fn group_name<'a>(
    sensor_id: Option<&'a SensorId>,
    machine_id: Option<&'a MachineId>,
) -> &'a str {
    let machine = || machine_id.map_or("", |machine| machine.as_str());
    sensor_id.map_or_else(machine, |sensor| sensor.as_str())
}

/// Hexadecimal SHA-256 of rule, sensor or machine, and window start. Each text goes in behind its length (64 bits, little-endian),
/// so that no two triples share the bytes; the start goes in as 64 bits, little-endian, of its microseconds.
#[must_use]
pub fn alert_id(rule: &str, group: &str, window_start: EventTime) -> String {
    let mut hash = hash_of(&[rule, group]);
    hash.update(window_start.micros().to_le_bytes());
    exact::to_hex(&hash.finalize())
}

/// Hexadecimal SHA-256 of texts, each behind its length (64 bits, little-endian): no two lists share the bytes, nor do three texts of
/// which the last is not empty share them with [`alert_id`].
pub(crate) fn text_id(texts: &[&str]) -> String {
    exact::to_hex(&hash_of(texts).finalize())
}

fn hash_of(texts: &[&str]) -> Sha256 {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
