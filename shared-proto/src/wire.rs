//! Names and types as they are on the wire.

/// Generated from `proto/predictive_maintenance/v1`.
pub mod v1 {
    #![allow(clippy::all, missing_docs, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/predictive_maintenance.v1.rs"));
}

/// Kafka header that names the encoding of a record. Absent means JSON.
pub const CONTENT_TYPE_HEADER: &str = "content-type";
/// Value of [`CONTENT_TYPE_HEADER`] for JSON.
pub const CONTENT_TYPE_JSON: &str = "application/json";
/// Value of [`CONTENT_TYPE_HEADER`] for protobuf.
pub const CONTENT_TYPE_PROTOBUF: &str = "application/x-protobuf";

/// Kafka header of a dead letter that was sent again: `<topic>/<partition>/<offset>` of the record that was refused. Such a
/// record counts although its device's sequence has passed it.
pub const REPLAY_HEADER: &str = "replay-of";

/// Default Kafka topic names. Each is a setting in both programs.
pub mod topic {
    /// Readings of metric type `temperature`, keyed by sensor.
    pub const TEMPERATURE: &str = "temperature";
    /// Readings of metric type `pressure`, keyed by sensor.
    pub const PRESSURE: &str = "pressure";
    /// Readings of metric type `vibration` and of every other type, keyed by sensor.
    pub const VIBRATION: &str = "vibration";
    /// Machine events, keyed by machine.
    pub const MACHINE_EVENTS: &str = "machine-events";
    /// Raw samples around trips, keyed by machine, always protobuf.
    pub const WAVEFORMS: &str = "waveforms";
    /// Input that an edge module refused, keyed by device.
    pub const DEAD_LETTERS: &str = "dead-letters";
    /// Alerts of the aggregator, keyed by sensor.
    pub const ALERTS: &str = "alerts";
    /// What people found, keyed by machine.
    pub const OUTCOMES: &str = "outcomes";
}
