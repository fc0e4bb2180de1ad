//! What the interlock asks for and reports: data for the rim to perform.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, MachineId, SensorId};

/// What the machine side says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// It turns.
    Running,
    /// It has taken the command and spins down.
    Stopping,
    /// It stands still.
    Stopped,
}

impl MachineState {
    /// The word used on MQTT.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// Why a machine had to stop. All numbers are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TripCause {
    /// A value passed a fixed limit.
    Limit {
        /// Name of the limit rule.
        rule: String,
        /// The sensor that measured it.
        sensor: SensorId,
        /// The value, in the sensor's unit.
        value: f64,
        /// The limit it passed, in the same unit.
        limit: f64,
    },
    /// Enough of the last windows scored at or above the threshold.
    Score {
        /// The sensor whose windows were scored.
        sensor: SensorId,
        /// Score of the window that decided, 0 to 1.
        score: f64,
        /// The threshold, 0 to 1.
        threshold: f64,
        /// How many of the last windows were at or above it.
        votes: u32,
    },
    /// A sensor delivered nothing usable for too long, and the policy says that this trips.
    Silence {
        /// The silent sensor.
        sensor: SensorId,
        /// How long it may be silent, in milliseconds.
        limit_ms: u64,
    },
    /// The latch of the previous run could not be read, and the configured fail-safe rule is to stop.
    UnknownLatch,
}

impl TripCause {
    /// The word used in machine events: `limit`, `score`, `silence` or `unknown-latch`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Limit { .. } => "limit",
            Self::Score { .. } => "score",
            Self::Silence { .. } => "silence",
            Self::UnknownLatch => "unknown-latch",
        }
    }

    /// The sensor that decided, if one did.
    #[must_use]
    pub const fn sensor(&self) -> Option<&SensorId> {
        match self {
            Self::Limit { sensor, .. }
            | Self::Score { sensor, .. }
            | Self::Silence { sensor, .. } => Some(sensor),
            Self::UnknownLatch => None,
        }
    }

    /// Whether both name the same rule and sensor, whatever the numbers.
    pub(super) fn is_same_rule(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Limit { rule, sensor, .. },
                Self::Limit { rule: other_rule, sensor: other_sensor, .. },
            ) => rule == other_rule && sensor == other_sensor,
            (Self::Score { sensor, .. }, Self::Score { sensor: other_sensor, .. })
            | (Self::Silence { sensor, .. }, Self::Silence { sensor: other_sensor, .. }) => {
                sensor == other_sensor
            }
            (Self::UnknownLatch, Self::UnknownLatch) => true,
            (
                Self::Limit { .. } | Self::Score { .. } | Self::Silence { .. } | Self::UnknownLatch,
                _,
            ) => false,
        }
    }
}

/// What is wrong with a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SensorFaultKind {
    /// Nothing usable for longer than allowed.
    Silent,
    /// A reading that is NaN or infinite.
    ValueNotFinite,
    /// A feature that a limit needs is missing, NaN or infinite.
    FeatureNotUsable,
    /// A score that is NaN or infinite.
    ScoreNotFinite,
}

impl SensorFaultKind {
    /// The word used in machine events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::ValueNotFinite => "value-not-finite",
            Self::FeatureNotUsable => "feature-not-usable",
            Self::ScoreNotFinite => "score-not-finite",
        }
    }
}

/// Which of a machine's paths a stop command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReach {
    /// The first path of the settings.
    First,
    /// All of them at once: the stop before it was not confirmed in time, or the machine moved again.
    All,
}

/// What to perform, in order: in each answer of the interlock a `SendStop` comes first.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Order the stop at once, before anything else.
    SendStop {
        /// Which trip this command belongs to.
        trip_id: String,
        /// 1 for the first command; higher when it was not confirmed in time.
        attempt: u32,
        /// How many of the machine's paths it takes.
        reach: StopReach,
    },
    /// Report the trip, after the command left, and make the latch durable.
    Trip {
        /// Name of this trip.
        trip_id: String,
        /// Why.
        cause: TripCause,
    },
    /// Report that the machine side confirmed standstill, and make the latch durable.
    StopConfirmed {
        /// Name of the trip.
        trip_id: String,
        /// Commands it took.
        attempts: u32,
        /// From the decision to the confirmation.
        after: Duration,
    },
    /// Report, with the highest severity, that no standstill was confirmed in time.
    StopNotConfirmed {
        /// Name of the trip.
        trip_id: String,
        /// Commands sent before this report.
        attempts: u32,
        /// All attempts are used up: nothing more is ordered, a person must act.
        is_escalated: bool,
        /// From the decision to the missed deadline.
        after: Duration,
    },
    /// Report that a machine moved again without a reset; it was just ordered to stop again.
    MovedWhileTripped {
        /// Name of the trip that is still latched.
        trip_id: String,
        /// What the machine side reported.
        machine_state: MachineState,
    },
    /// Report a fault of a sensor.
    SensorFault {
        /// Which sensor.
        sensor: SensorId,
        /// What is wrong.
        kind: SensorFaultKind,
    },
    /// Report that a fault of a sensor is over.
    SensorRecovered {
        /// Which sensor.
        sensor: SensorId,
        /// What was wrong.
        kind: SensorFaultKind,
    },
}

/// The latch was cleared. The machine is not started by this.
#[derive(Clone, Debug, PartialEq)]
pub struct ResetDone {
    /// Name of the trip that ended.
    pub trip_id: String,
    /// What it was for.
    pub cause: TripCause,
}

/// Why the latch stays.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ResetRefused {
    /// There is nothing to reset.
    #[error("interlock of {machine} is not tripped")]
    NotTripped {
        /// The machine.
        machine: MachineId,
    },
    /// The machine side has not reported standstill since the last stop command.
    #[error("stop of {machine} is not confirmed yet; stop it by hand and wait for its report")]
    StopNotConfirmed {
        /// The machine.
        machine: MachineId,
    },
    /// The latest value is still past its limit.
    #[error("limit {rule}: latest value {value} of {sensor} is still past {limit}")]
    LimitPresent {
        /// Name of the limit rule.
        rule: String,
        /// The sensor.
        sensor: SensorId,
        /// Its latest finite value.
        value: f64,
        /// The limit it is past.
        limit: f64,
    },
    /// Too many of the last windows are still at or above the threshold.
    #[error("{votes} of the last windows of {sensor} still vote for a stop, {needed} are enough")]
    VotesPresent {
        /// The sensor.
        sensor: SensorId,
        /// Votes among its last windows.
        votes: u32,
        /// Votes that trip.
        needed: u32,
    },
    /// A sensor whose silence trips is still silent.
    #[error("{sensor} is still silent; repair it or take it out of the policy")]
    SensorSilent {
        /// The sensor.
        sensor: SensorId,
    },
}

impl ResetRefused {
    /// A short word for counting and for machine events.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotTripped { .. } => "not-tripped",
            Self::StopNotConfirmed { .. } => "stop-not-confirmed",
            Self::LimitPresent { .. } => "limit",
            Self::VotesPresent { .. } => "score",
            Self::SensorSilent { .. } => "silence",
        }
    }
}

/// How far the stop of a tripped machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopProgress {
    /// Ordered; the machine side has time to report standstill.
    Ordered,
    /// A deadline passed; ordered again or given up, still listening.
    NotConfirmed,
    /// Standstill was reported.
    Confirmed,
}

/// A trip as it is shown and kept over a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatchedTrip {
    /// Name of the trip: machine, time and counter.
    pub trip_id: String,
    /// What tripped.
    pub cause: TripCause,
    /// When, in the time that was passed in with the input.
    pub since: EventTime,
    /// How far the stop has come.
    pub stop: StopProgress,
    /// What else would have tripped since, at most [`LATER_CAUSES_MAX`](super::LATER_CAUSES_MAX) different rules.
    pub later_causes: Vec<TripCause>,
}

/// State of an interlock for status pages and for the durable latch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatchSnapshot {
    /// The machine.
    pub machine_id: MachineId,
    /// Trips so far; the counter in the next trip's name.
    pub trip_count: u64,
    /// Absent: armed. Present: tripped and latched.
    pub trip: Option<LatchedTrip>,
    /// Latest report of the machine side, if any.
    pub machine_state: Option<MachineState>,
}

impl LatchSnapshot {
    /// The word for status pages and the interlock topic: `armed`, `tripped`, `stop-not-confirmed` or `stopped`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self.trip.as_ref().map(|trip| trip.stop) {
            None => "armed",
            Some(StopProgress::Ordered) => "tripped",
            Some(StopProgress::NotConfirmed) => "stop-not-confirmed",
            Some(StopProgress::Confirmed) => "stopped",
        }
    }
}
