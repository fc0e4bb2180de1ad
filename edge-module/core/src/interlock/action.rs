//! What the interlock asks for and reports: data for the rim to perform.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, MachineId, SensorId};

use super::settings::{SCORE_RULE, SENSOR_FAULT_RULE, SILENCE_RULE};
use super::shelving::{ShelvedRule, UnshelvedBy};
use crate::condition::SensorFaultKind;

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

/// Why a machine had to stop, or what an alarm is about. All numbers are finite.
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
    /// A sensor is at fault, and the policy says that this trips. It says nothing about the machine.
    SensorFault {
        /// The sensor at fault.
        sensor: SensorId,
        /// What is wrong with it.
        fault: SensorFaultKind,
    },
    /// The latch of the previous run could not be read, and the configured fail-safe rule is to stop.
    UnknownLatch,
    /// The configured rule is that a person releases the machine after each restart.
    Restart,
    /// A person ordered the stop from afar.
    Ordered {
        /// Who.
        operator: String,
        /// Why.
        reason: String,
    },
}

impl TripCause {
    /// The word used in machine events: `limit`, `score`, `silence`, `sensor-fault`, `unknown-latch`, `restart` or `ordered`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Limit { .. } => "limit",
            Self::Score { .. } => SCORE_RULE,
            Self::Silence { .. } => SILENCE_RULE,
            Self::SensorFault { .. } => SENSOR_FAULT_RULE,
            Self::UnknownLatch => "unknown-latch",
            Self::Restart => "restart",
            Self::Ordered { .. } => "ordered",
        }
    }

    /// Name of the rule: that of the limit, or the policy's own.
    #[must_use]
    pub fn rule(&self) -> &str {
        match self {
            Self::Limit { rule, .. } => rule,
            Self::Score { .. }
            | Self::Silence { .. }
            | Self::SensorFault { .. }
            | Self::UnknownLatch
            | Self::Restart
            | Self::Ordered { .. } => self.as_str(),
        }
    }

    /// The sensor that decided, if one did.
    #[must_use]
    pub const fn sensor(&self) -> Option<&SensorId> {
        match self {
            Self::Limit { sensor, .. }
            | Self::Score { sensor, .. }
            | Self::Silence { sensor, .. }
            | Self::SensorFault { sensor, .. } => Some(sensor),
            Self::UnknownLatch | Self::Restart | Self::Ordered { .. } => None,
        }
    }

    /// Whether both name the same rule and sensor, whatever the numbers.
    pub(super) fn is_same_rule(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
            && self.rule() == other.rule()
            && self.sensor() == other.sensor()
    }
}

impl fmt::Display for TripCause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit { rule, sensor, value, limit } => {
                write!(formatter, "{sensor} is {value}, past {limit} of limit {rule}")
            }
            Self::Score { sensor, score, threshold, votes } => {
                write!(formatter, "{sensor} scores {score}, threshold {threshold}, {votes} votes")
            }
            Self::Silence { sensor, limit_ms } => {
                write!(formatter, "{sensor} has been silent for {limit_ms} ms")
            }
            Self::SensorFault { sensor, fault } => {
                write!(formatter, "{sensor} is at fault: {}", fault.as_str())
            }
            Self::UnknownLatch => formatter.write_str("the latch before cannot be read"),
            Self::Restart => formatter.write_str("a person releases the machine after a restart"),
            Self::Ordered { operator, reason } => {
                write!(formatter, "{operator} ordered it: {reason}")
            }
        }
    }
}

/// Why a violation does not stop the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppression {
    /// The machine is starting, and the rule says that it waits for that.
    Startup,
    /// A person shelved the rule.
    Shelved,
    /// The machine is in dry run.
    DryRun,
}

impl Suppression {
    /// The word used in machine events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Shelved => "shelved",
            Self::DryRun => "dry-run",
        }
    }
}

/// How far a stop command must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReach {
    /// The first way to the machine.
    First,
    /// All ways at once: the first did not lead to standstill.
    All,
}

impl StopReach {
    /// The word used in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::All => "all",
        }
    }
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
        /// How far it must reach.
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
    /// Report that a rule which only warns is violated.
    Alarm {
        /// Which rule, and why.
        cause: TripCause,
    },
    /// Report that it is not any more.
    AlarmCleared {
        /// Which rule, and what the alarm was last about.
        cause: TripCause,
    },
    /// Report, once, a violation that does not stop the machine.
    TripSuppressed {
        /// What would have tripped.
        cause: TripCause,
        /// Why it does not.
        by: Suppression,
    },
    /// Report that a person took a rule out of force, and make that durable.
    Shelved {
        /// Which rule, who, why, and until when.
        shelved: ShelvedRule,
    },
    /// Report that a rule is in force again, and make that durable.
    Unshelved {
        /// What ended.
        shelved: ShelvedRule,
        /// Why.
        by: UnshelvedBy,
        /// Who, where a person did.
        operator: Option<String>,
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
    /// The latest value is still past its limit, or not back by the hysteresis.
    #[error(
        "limit {rule}: latest value {value} of {sensor} is not back from {limit} by its hysteresis of {hysteresis}"
    )]
    LimitPresent {
        /// Name of the limit rule.
        rule: String,
        /// The sensor.
        sensor: SensorId,
        /// Its latest finite value.
        value: f64,
        /// The limit it was past.
        limit: f64,
        /// How far it must come back.
        hysteresis: f64,
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
    #[error("{sensor} is still silent; repair it or shelve the rule silence:{sensor}")]
    SensorSilent {
        /// The sensor.
        sensor: SensorId,
    },
    /// A sensor whose faults trip is still at fault.
    #[error("{sensor} is still at fault: {}; repair it or shelve the rule sensor-fault:{sensor}", fault.as_str())]
    SensorFaulty {
        /// The sensor.
        sensor: SensorId,
        /// What is wrong with it.
        fault: SensorFaultKind,
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
            Self::VotesPresent { .. } => SCORE_RULE,
            Self::SensorSilent { .. } => SILENCE_RULE,
            Self::SensorFaulty { .. } => SENSOR_FAULT_RULE,
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
    /// Version of the machine's rules when it tripped; empty in latches of older versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule_version: String,
}

/// A sensor that is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultySensor {
    /// Which sensor.
    pub sensor: SensorId,
    /// What is wrong with it.
    pub fault: SensorFaultKind,
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
    /// Rules that are out of force; kept over a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shelved: Vec<ShelvedRule>,
    /// Alarms that stand. For display: found anew after a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<TripCause>,
    /// Sensors at fault. For display: found anew after a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sensor_faults: Vec<FaultySensor>,
    /// Judged and reported, not stopped. For display.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Version of the rules in force. For display.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule_version: String,
}

impl LatchSnapshot {
    /// The word for status pages and the interlock topic: `armed`, `dry-run`, `tripped`, `stop-not-confirmed` or `stopped`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self.trip.as_ref().map(|trip| trip.stop) {
            None if self.dry_run => "dry-run",
            None => "armed",
            Some(StopProgress::Ordered) => "tripped",
            Some(StopProgress::NotConfirmed) => "stop-not-confirmed",
            Some(StopProgress::Confirmed) => "stopped",
        }
    }
}
