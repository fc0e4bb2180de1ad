//! What became of each record, so that nothing disappears unseen.

use serde::{Deserialize, Serialize};

/// What becomes of one record. The caller writes exactly one row for it, or none for a duplicate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// New: a row of the table of its kind (`telemetry`, `machine_events`, `dead_letters`).
    Counted,
    /// A reading behind the retention of closed windows: a row of `late_readings`, not of `telemetry`.
    Late,
    /// Seen before: no row.
    Duplicate,
    /// Can never be counted: a row of `dead_letters`.
    DeadLetter {
        /// A short word, for counting; one of [`reason`].
        reason: &'static str,
        /// A sentence for people that names the limit.
        detail: String,
    },
}

/// The reasons of dead letters that the core gives.
pub mod reason {
    /// Further ahead of the aggregator's clock than `future_limit`.
    pub const TIMESTAMP_IN_FUTURE: &str = "timestamp-in-future";
    /// Before `oldest_event_time`.
    pub const TIMESTAMP_TOO_OLD: &str = "timestamp-too-old";
    /// One metric type more than `metric_types_max`.
    pub const METRIC_TYPES_LIMIT: &str = "metric-types-limit";
    /// One sensor more than `sensors_max`.
    pub const SENSORS_LIMIT: &str = "sensors-limit";
    /// One machine more than `sensors_max`.
    pub const MACHINES_LIMIT: &str = "machines-limit";
    /// One window more than `windows_per_sensor_max` or `windows_max`.
    pub const WINDOWS_LIMIT: &str = "windows-limit";
}

/// Counts of dispositions since the partition was first read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounting {
    /// Records taken from Kafka.
    pub records_in: u64,
    /// Of these, counted.
    pub counted: u64,
    /// Of these, late.
    pub late: u64,
    /// Of these, seen before.
    pub duplicates: u64,
    /// Of these, dead letters.
    pub dead_letters: u64,
}

impl Accounting {
    /// Counts one record.
    pub fn record(&mut self, disposition: &Disposition) {
        self.records_in += 1;
        match disposition {
            Disposition::Counted => self.counted += 1,
            Disposition::Late => self.late += 1,
            Disposition::Duplicate => self.duplicates += 1,
            Disposition::DeadLetter { .. } => self.dead_letters += 1,
        }
    }

    /// Counts a record that the decoder refused: in, and a dead letter.
    pub fn record_undecodable(&mut self) {
        self.records_in += 1;
        self.dead_letters += 1;
    }

    /// Whether records in = counted + late + duplicates + dead letters.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.records_in == self.counted + self.late + self.duplicates + self.dead_letters
    }

    /// Records in less those of which it is known what became: 0 if none disappeared or was counted twice.
    #[must_use]
    pub fn imbalance(&self) -> i128 {
        let known = [self.counted, self.late, self.duplicates, self.dead_letters];
        i128::from(self.records_in) - known.into_iter().map(i128::from).sum::<i128>()
    }

    /// Counts of several partitions together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            records_in: self.records_in + other.records_in,
            counted: self.counted + other.counted,
            late: self.late + other.late,
            duplicates: self.duplicates + other.duplicates,
            dead_letters: self.dead_letters + other.dead_letters,
        }
    }
}
