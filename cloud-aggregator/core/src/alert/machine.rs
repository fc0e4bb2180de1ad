//! Machine events that fire alerts, and those that end them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use shared_proto::model::{
    IDENTIFIER_BYTES_MAX, MachineEvent, MachineEventDetails, MachineEventType,
};

use super::text_id;

/// Ends remembered; one more forgets the one that is oldest by arrival. An event that comes after its end, because a device sends what
/// it kept while it was cut off, then opens an alert that lasts until the next end.
pub const ENDS_MAX: usize = 2_048;
/// Longest detail of an alert in bytes; what is longer is cut.
pub const DETAIL_BYTES_MAX: usize = 1_024;

/// A machine event that fires an alert. A trip that a dry run, a start or a shelving has suppressed stops nothing and is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertingEvent {
    /// A rule asked for a stop: until the reset.
    Trip,
    /// No standstill was reported in time: until it is, or the reset.
    StopNotConfirmed,
    /// The machine moved although its trip is latched: until standstill is reported, or the reset.
    MovedWhileTripped,
    /// A rule that only warns was violated: until it is not.
    Alarm,
    /// A sensor is silent, frozen or out of range: until it delivers again.
    SensorFault,
}

/// A machine event that ends alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ending {
    Reset,
    StopConfirmed,
    AlarmCleared,
    SensorRecovered,
}

/// What a machine event does to alerts.
pub(super) enum Role {
    Fires(AlertingEvent),
    Ends(Ending),
    Neither,
}

impl AlertingEvent {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Trip,
        Self::StopNotConfirmed,
        Self::MovedWhileTripped,
        Self::Alarm,
        Self::SensorFault,
    ];

    /// The type of the machine event.
    #[must_use]
    pub const fn event_type(self) -> MachineEventType {
        match self {
            Self::Trip => MachineEventType::Trip,
            Self::StopNotConfirmed => MachineEventType::StopNotConfirmed,
            Self::MovedWhileTripped => MachineEventType::MovedWhileTripped,
            Self::Alarm => MachineEventType::Alarm,
            Self::SensorFault => MachineEventType::SensorFault,
        }
    }

    /// The word of the machine event: the rule of its alerts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.event_type().as_str()
    }

    /// What ends its alerts.
    pub(super) const fn endings(self) -> &'static [Ending] {
        match self {
            Self::Trip => &[Ending::Reset],
            Self::StopNotConfirmed | Self::MovedWhileTripped => {
                &[Ending::StopConfirmed, Ending::Reset]
            }
            Self::Alarm => &[Ending::AlarmCleared],
            Self::SensorFault => &[Ending::SensorRecovered],
        }
    }

    /// What of its machine it is about: two of the same machine and subject are one alert while it lasts.
    pub(super) fn subject(self, details: &MachineEventDetails) -> String {
        match self {
            Self::Trip | Self::StopNotConfirmed | Self::MovedWhileTripped => {
                trip_id(details).unwrap_or_default().to_owned()
            }
            Self::Alarm => Ending::AlarmCleared.subject(details),
            Self::SensorFault => Ending::SensorRecovered.subject(details),
        }
    }
}

impl Ending {
    /// What of its machine it ends; empty: all that its kind ends.
    pub(super) fn subject(self, details: &MachineEventDetails) -> String {
        let sensor = details.sensor_id.as_ref().map_or("", |sensor| sensor.as_str());
        match self {
            Self::Reset | Self::StopConfirmed => String::new(),
            Self::AlarmCleared => text_id(&[details.rule.as_deref().unwrap_or_default(), sensor]),
            Self::SensorRecovered => {
                text_id(&[details.cause.as_deref().unwrap_or_default(), sensor])
            }
        }
    }
}

/// What an event of this type does to alerts.
pub(super) const fn role(event_type: MachineEventType) -> Role {
    match event_type {
        MachineEventType::Trip => Role::Fires(AlertingEvent::Trip),
        MachineEventType::StopNotConfirmed => Role::Fires(AlertingEvent::StopNotConfirmed),
        MachineEventType::MovedWhileTripped => Role::Fires(AlertingEvent::MovedWhileTripped),
        MachineEventType::Alarm => Role::Fires(AlertingEvent::Alarm),
        MachineEventType::SensorFault => Role::Fires(AlertingEvent::SensorFault),
        MachineEventType::Reset => Role::Ends(Ending::Reset),
        MachineEventType::StopConfirmed => Role::Ends(Ending::StopConfirmed),
        MachineEventType::AlarmCleared => Role::Ends(Ending::AlarmCleared),
        MachineEventType::SensorRecovered => Role::Ends(Ending::SensorRecovered),
        MachineEventType::ResetRefused
        | MachineEventType::ModelChanged
        | MachineEventType::ModelRefused
        | MachineEventType::Ledger
        | MachineEventType::Gap
        | MachineEventType::Started
        | MachineEventType::Stopped
        | MachineEventType::TripSuppressed
        | MachineEventType::Shelved
        | MachineEventType::Unshelved
        | MachineEventType::SettingsChanged
        | MachineEventType::SettingsRefused
        | MachineEventType::GapClosed
        | MachineEventType::LearningStarted
        | MachineEventType::BaselineLearnt
        | MachineEventType::LearningRefused => Role::Neither,
    }
}

/// Name of the trip. One longer than an identifier may be is none: the alert would carry it through every state file.
pub(super) fn trip_id(details: &MachineEventDetails) -> Option<&str> {
    details.trip_id.as_deref().filter(|id| !id.is_empty() && id.len() <= IDENTIFIER_BYTES_MAX)
}

/// Id of the alert that the event fires: of its word, its machine, and the name of its trip, or else its subject and time.
pub(super) fn event_alert_id(kind: AlertingEvent, event: &MachineEvent, subject: &str) -> String {
    let first = || format!("{subject} {}", event.timestamp.micros());
    let first = trip_id(&event.details).map_or_else(first, str::to_owned);
    text_id(&[kind.as_str(), event.machine_id.as_str(), &first])
}

/// What an event says, for people.
pub(super) fn detail(details: &MachineEventDetails) -> String {
    let mut parts = Vec::new();
    let mut tell = |what: &str, text: Option<String>| {
        parts.extend(text.map(|text| format!("{what} {text}")));
    };
    tell("cause", details.cause.clone());
    tell("trip", details.trip_id.clone());
    tell("rule", details.rule.clone());
    tell("sensor", details.sensor_id.as_ref().map(ToString::to_string));
    tell("value", details.value.map(|value| value.to_string()));
    tell("score", details.score.map(|score| score.to_string()));
    tell("limit", details.limit.map(|limit| limit.to_string()));
    tell("model", details.model.clone());
    let mut text = parts.join(", ");
    if let Some(more) = &details.detail {
        let between = if text.is_empty() { "" } else { "; " };
        write!(text, "{between}{more}").expect("writing to a String cannot fail");
    }
    text.truncate(text.floor_char_boundary(DETAIL_BYTES_MAX));
    text
}
