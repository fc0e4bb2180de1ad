//! What the recording path works with, as the core wants it: dead band, aggregation, snapshots.

use std::time::Duration;

use edge_core::aggregate::{self, AggregationRule, AggregationSettings};
use edge_core::deadband::{self, DeadbandSettings};
use edge_core::snapshot::SnapshotSettings;

use super::validate::Faults;
use super::{Settings, Statistic};
use crate::store::RECORD_BYTES_MAX;

/// What a piece of a snapshot needs beside its samples: names of at most 256 bytes each, times, numbers.
const PIECE_HEAD_BYTES: usize = 4 * 1024;
/// How long a snapshot waits for sensors that have fallen silent.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(5);
/// Rules of the dead band, and of aggregation: each reading is compared with all of them.
const RULES_MAX: usize = 1_000;

impl Settings {
    pub(super) fn check_filters(&self, faults: &mut Faults) {
        for fault in self.deadband_settings().validate().err().into_iter().flatten() {
            faults.add("deadband", fault.to_string());
        }
        for fault in self.aggregation_settings().validate().err().into_iter().flatten() {
            faults.add("aggregation", fault.to_string());
        }
        faults.range("deadband.rules", self.deadband.rules.len(), 0, RULES_MAX);
        faults.range("aggregation", self.aggregation.len(), 0, RULES_MAX);
        for fault in self.snapshot_settings().validate().err().into_iter().flatten() {
            faults.add("waveforms", fault.to_string());
        }
        let waveforms = &self.waveforms;
        let minutes = Duration::from_secs(600);
        faults.duration("waveforms.before", waveforms.before, Duration::from_millis(1), minutes);
        faults.duration("waveforms.after", waveforms.after, Duration::ZERO, minutes);
        faults.duration("waveforms.length-max", waveforms.length_max, waveforms.after, minutes * 6);
        let sizes = [
            ("waveforms.sensor-bytes-max", waveforms.sensor_bytes_max),
            ("waveforms.bytes-max", waveforms.bytes_max),
            ("waveforms.snapshot-bytes-max", waveforms.snapshot_bytes_max),
        ];
        for (path, size) in sizes {
            faults.range(path, size, 1 << 10, 1 << 32);
        }
        faults.range("waveforms.queue-length", waveforms.queue_length, 1, 100_000);
    }

    /// The dead band as the core wants it.
    #[must_use]
    pub fn deadband_settings(&self) -> DeadbandSettings {
        let rules = self.deadband.rules.iter().map(|rule| deadband::DeadbandRule {
            sensor_prefix: rule.sensor_prefix.clone(),
            metric_type: rule.metric_type.clone(),
            absolute: rule.absolute,
            percent: rule.percent,
            score: rule.score.unwrap_or(self.deadband.score),
            heartbeat: rule.heartbeat.unwrap_or(self.deadband.heartbeat),
        });
        DeadbandSettings {
            absolute: self.deadband.absolute,
            percent: self.deadband.percent,
            score: self.deadband.score,
            heartbeat: self.deadband.heartbeat,
            always_above: self.deadband.always_above.clone(),
            sensors_max: self.deadband.sensors_max,
            rules: rules.collect(),
        }
    }

    /// Aggregation as the core wants it.
    #[must_use]
    pub fn aggregation_settings(&self) -> AggregationSettings {
        let rules = self.aggregation.iter().map(|rule| AggregationRule {
            sensor_prefix: rule.sensor_prefix.clone(),
            metric_type: rule.metric_type.clone(),
            interval: rule.interval,
            value: rule.value.into(),
            statistics: rule.statistics.iter().copied().map(Into::into).collect(),
        });
        AggregationSettings {
            rules: rules.collect(),
            always_above: self.deadband.always_above.clone(),
            sensors_max: self.deadband.sensors_max,
        }
    }

    /// Snapshots as the core wants them.
    #[must_use]
    pub fn snapshot_settings(&self) -> SnapshotSettings {
        let waveforms = &self.waveforms;
        SnapshotSettings {
            before: waveforms.before,
            after: waveforms.after,
            length_max: waveforms.length_max,
            patience: SNAPSHOT_PATIENCE,
            sensor_bytes_max: waveforms.sensor_bytes_max,
            bytes_max: waveforms.bytes_max,
            snapshot_bytes_max: waveforms.snapshot_bytes_max,
            piece_bytes_max: RECORD_BYTES_MAX - PIECE_HEAD_BYTES,
            sensors_max: self.vibration.sensors_max,
        }
    }
}

impl From<Statistic> for aggregate::Statistic {
    fn from(statistic: Statistic) -> Self {
        match statistic {
            Statistic::Min => Self::Min,
            Statistic::Max => Self::Max,
            Statistic::Mean => Self::Mean,
            Statistic::Rms => Self::Rms,
        }
    }
}
