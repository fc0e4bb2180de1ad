//! The early alert: fired by the match that makes a window an anomaly, once a window.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shared_proto::model::{EventTime, MachineId, SensorId};

use crate::exact;
use crate::time::ProcessingTime;

/// One window has more matches than its rule allows. A repeat carries the same `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// [`alert_id`] of rule, sensor and window start: the idempotency key of every action.
    pub id: String,
    /// Rule that fired.
    pub rule: String,
    /// 0 (critical) to 4 (verbose), as Azure Monitor counts.
    pub severity: u8,
    /// Sensor whose window it is.
    pub sensor_id: SensorId,
    /// Machine the sensor sits on, if a matching reading told.
    pub machine_id: Option<MachineId>,
    /// First microsecond of the window.
    pub window_start: EventTime,
    /// First microsecond after the window.
    pub window_end: EventTime,
    /// Matches in the window when it fired.
    pub count: u64,
    /// The rule's limit, in the unit of the metric.
    #[serde(with = "exact::number")]
    pub threshold: f64,
    /// When the aggregator decided.
    pub fired_at: ProcessingTime,
    /// The window was closed, or over for longer than `historical_after`: for the record, not for a call-out.
    pub historical: bool,
}

/// Hexadecimal SHA-256 of rule, sensor and window start. Each text goes in behind its length (64 bits, little-endian),
/// so that no two triples share the bytes; the start goes in as 64 bits, little-endian, of its microseconds.
#[must_use]
pub fn alert_id(rule: &str, sensor_id: &SensorId, window_start: EventTime) -> String {
    let mut hash = Sha256::new();
    for text in [rule, sensor_id.as_str()] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.update(window_start.micros().to_le_bytes());
    exact::to_hex(&hash.finalize())
}
