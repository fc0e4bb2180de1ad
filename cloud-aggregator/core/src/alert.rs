//! The alert: fired once a window, by the match that makes it an anomaly for good, or at its close where only the close can tell.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shared_proto::model::{EventTime, MachineId, SensorId};

use crate::exact;
use crate::rule::Threshold;
use crate::time::ProcessingTime;

/// One window is an anomaly. A repeat carries the same `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// [`alert_id`] of rule, sensor or machine, and window start: the idempotency key of every action.
    pub id: String,
    /// Rule that fired.
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
    /// Matches in the window when it fired.
    pub count: u64,
    /// What the window must not be.
    pub threshold: Threshold,
    /// What the threshold's aggregate was when it fired.
    #[serde(with = "exact::number")]
    pub observed: f64,
    /// When the aggregator decided.
    pub fired_at: ProcessingTime,
    /// The window was closed, or over for longer than `historical_after`: for the record, not for a call-out.
    pub historical: bool,
}

impl Alert {
    /// The sensor or machine whose window it is.
    #[must_use]
    pub fn group(&self) -> &str {
        group_name(self.sensor_id.as_ref(), self.machine_id.as_ref())
    }
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
    let mut hash = Sha256::new();
    for text in [rule, group] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.update(window_start.micros().to_le_bytes());
    exact::to_hex(&hash.finalize())
}
