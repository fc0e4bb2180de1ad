//! What the lake holds, held against what the machines made: the expectations of the demo.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use shared_proto::model::EventTime;

use super::configuration::{COUNT_MORE_THAN, HOT_ABOVE, WINDOW_SECONDS};
use super::tables::{TableRow, read_table};

/// One expectation and whether it was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was expected.
    pub what: String,
    /// Whether it was so.
    pub passed: bool,
    /// The figures.
    pub detail: String,
}

impl Check {
    /// An expectation that holds if `passed`.
    #[must_use]
    pub fn new(what: &str, passed: bool, detail: String) -> Self {
        Self { what: what.to_owned(), passed, detail }
    }
}

/// One window of one sensor: sensor, start in microseconds.
pub type WindowKey = (String, i64);

/// The rows of all tables.
#[derive(Clone, Debug, Default)]
pub struct Lake {
    /// Readings.
    pub telemetry: Vec<TableRow>,
    /// Closed windows with too many matches.
    pub anomalies: Vec<TableRow>,
    /// Trips, stops, resets and the edge module's own life.
    pub machine_events: Vec<TableRow>,
    /// Refused input.
    pub dead_letters: Vec<TableRow>,
    /// Readings that came too late to be counted.
    pub late_readings: Vec<TableRow>,
}

impl Lake {
    /// Reads all tables.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let table = |name: &str| read_table(&folder.join(name));
        Ok(Self {
            telemetry: table("telemetry")?,
            anomalies: table("anomalies")?,
            machine_events: table("machine_events")?,
            dead_letters: table("dead_letters")?,
            late_readings: table("late_readings")?,
        })
    }

    /// Rows in all tables but `anomalies`, by table: each is a record of the edge module.
    #[must_use]
    pub fn record_rows(&self) -> u64 {
        self.tables_of_records().iter().map(|table| table.len() as u64).sum()
    }

    /// Rows of all tables by name.
    #[must_use]
    pub fn row_counts(&self) -> [(&'static str, u64); 5] {
        [
            ("telemetry", self.telemetry.len() as u64),
            ("anomalies", self.anomalies.len() as u64),
            ("machine_events", self.machine_events.len() as u64),
            ("dead_letters", self.dead_letters.len() as u64),
            ("late_readings", self.late_readings.len() as u64),
        ]
    }

    fn tables_of_records(&self) -> [&Vec<TableRow>; 4] {
        [&self.telemetry, &self.machine_events, &self.dead_letters, &self.late_readings]
    }

    /// How often each sequence is there, by device and generation.
    fn sequences(&self) -> BTreeMap<(String, i64), BTreeMap<i64, u64>> {
        let mut sequences: BTreeMap<_, BTreeMap<i64, u64>> = BTreeMap::new();
        for row in self.tables_of_records().into_iter().flatten() {
            if let Some(sequence) = integer(row, "sequence") {
                let journal = (text(row, "device_id"), integer(row, "generation").unwrap_or(-1));
                *sequences.entry(journal).or_default().entry(sequence).or_default() += 1;
            }
        }
        sequences
    }

    /// Sequences up to the highest (or `journalled`, if that is more) that are in no table.
    #[must_use]
    pub fn lost(&self, journalled: u64) -> u64 {
        let sequences = self.sequences();
        let found: u64 = sequences.values().map(|journal| journal.len() as u64).sum();
        let last = |journal: &BTreeMap<i64, u64>| journal.keys().next_back().copied().unwrap_or(0);
        let highest: u64 =
            sequences.values().map(|journal| u64::try_from(last(journal)).unwrap_or(0)).sum();
        highest.max(journalled).saturating_sub(found)
    }

    /// Rows beyond the first of each sequence.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.sequences().values().flat_map(BTreeMap::values).map(|count| count - 1).sum()
    }

    /// Machine events of a type.
    pub fn events(&self, event_type: &str) -> impl Iterator<Item = &TableRow> {
        let is_it = move |row: &&TableRow| text(row, "event_type") == event_type;
        self.machine_events.iter().filter(is_it)
    }

    /// Machine events of a type for a machine.
    #[must_use]
    pub fn events_of(&self, event_type: &str, machine: &str) -> u64 {
        self.events(event_type).filter(|row| text(row, "machine_id") == machine).count() as u64
    }

    /// A latency that events of a type carry, in microseconds, sorted.
    #[must_use]
    pub fn latencies(&self, event_type: &str, column: &str) -> Vec<u64> {
        let micros = self.events(event_type).filter_map(|row| integer(row, column));
        let mut latencies: Vec<u64> =
            micros.filter_map(|micros| u64::try_from(micros).ok()).collect();
        latencies.sort_unstable();
        latencies
    }

    /// Sensor and event time of all temperatures above the counting threshold, sorted.
    #[must_use]
    pub fn hot(&self) -> Vec<(String, i64)> {
        let is_hot = |row: &&TableRow| {
            text(row, "metric_type") == "temperature"
                && row.get("value").and_then(Value::as_f64).is_some_and(|value| value > HOT_ABOVE)
        };
        let key =
            |row: &TableRow| (text(row, "sensor_id"), integer(row, "timestamp").unwrap_or(-1));
        let mut hot: Vec<_> = self.telemetry.iter().filter(is_hot).map(key).collect();
        hot.sort();
        hot
    }

    /// The newest count of each anomalous window.
    #[must_use]
    pub fn anomalous_windows(&self) -> BTreeMap<WindowKey, u64> {
        let mut newest: BTreeMap<WindowKey, (i64, u64)> = BTreeMap::new();
        for row in &self.anomalies {
            let key = (text(row, "sensor_id"), integer(row, "window_start").unwrap_or(-1));
            let revision = integer(row, "revision").unwrap_or(-1);
            let count = integer(row, "count").and_then(|count| u64::try_from(count).ok());
            let entry = newest.entry(key).or_insert((revision, 0));
            if revision >= entry.0 {
                *entry = (revision, count.unwrap_or(0));
            }
        }
        newest.retain(|_, (_, count)| *count > COUNT_MORE_THAN);
        newest.into_iter().map(|(key, (_, count))| (key, count)).collect()
    }

    /// Readings that were sent after their time.
    #[must_use]
    pub fn historical(&self) -> u64 {
        let late = |row: &&TableRow| row.get("historical").and_then(Value::as_bool) == Some(true);
        self.telemetry.iter().filter(late).count() as u64
    }
}

/// Whether a trip of a machine was the model's.
#[must_use]
pub fn is_trip_by_score(row: &TableRow, machine: &str) -> bool {
    text(row, "machine_id") == machine && text(row, "cause") == "score"
}

fn text(row: &TableRow, column: &str) -> String {
    row.get(column).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn integer(row: &TableRow, column: &str) -> Option<i64> {
    row.get(column).and_then(Value::as_i64)
}

/// Counts what the sensors made by window: the oracle for `anomalies`.
#[must_use]
pub fn count_windows(hot: &[(String, i64)]) -> BTreeMap<WindowKey, u64> {
    let length = i64::from(WINDOW_SECONDS) * 1_000_000;
    let mut counts = BTreeMap::new();
    for (sensor, micros) in hot {
        *counts.entry((sensor.clone(), micros - micros.rem_euclid(length))).or_default() += 1;
    }
    counts.retain(|_, count| *count > COUNT_MORE_THAN);
    counts
}

/// Windows that alerts speak of; the second value is how many alerts repeat another's id.
#[must_use]
pub fn alerted_windows(
    alerts: impl Iterator<Item = (String, String, String)>,
) -> (BTreeSet<WindowKey>, u64) {
    let (mut windows, mut ids, mut repeats) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (id, sensor, window_start) in alerts {
        let start = EventTime::parse(&window_start).map_or(-1, EventTime::micros);
        windows.insert((sensor, start));
        if !ids.insert(id) {
            repeats += 1;
        }
    }
    (windows, repeats)
}

/// The value below which `fraction` of the sorted values lie (nearest rank); 0 without values.
#[must_use]
pub fn percentile(sorted: &[u64], fraction: f64) -> u64 {
    let rank = (fraction * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(sequence: i64) -> TableRow {
        TableRow::from([
            ("device_id".to_owned(), json!("d")),
            ("generation".to_owned(), json!(1)),
            ("sequence".to_owned(), json!(sequence)),
        ])
    }

    #[test]
    fn lost_and_duplicate_records_are_found_across_tables() {
        let lake = Lake {
            telemetry: vec![record(1), record(2), record(2)],
            machine_events: vec![record(5)],
            ..Lake::default()
        };
        assert_eq!((lake.lost(0), lake.lost(5), lake.lost(7)), (2, 2, 4));
        assert_eq!(lake.duplicates(), 1);
    }

    #[test]
    fn windows_are_counted_from_their_aligned_start() {
        let hot: Vec<_> =
            (0..7).map(|index| ("s".to_owned(), 9_000_000 + index * 200_000)).collect();
        // Five readings lie before 10 s and two after: neither window has more than five.
        assert!(count_windows(&hot).is_empty());
        let hot: Vec<_> = hot.into_iter().map(|(sensor, at)| (sensor, at - 4_000_000)).collect();
        assert_eq!(count_windows(&hot), BTreeMap::from([(("s".to_owned(), 5_000_000), 7)]));
    }

    #[test]
    fn newest_revision_of_a_window_counts() {
        let row = |revision: i64, count: u64| {
            TableRow::from([
                ("sensor_id".to_owned(), json!("s")),
                ("window_start".to_owned(), json!(0)),
                ("revision".to_owned(), json!(revision)),
                ("count".to_owned(), json!(count)),
            ])
        };
        let lake = Lake { anomalies: vec![row(2, 9), row(1, 7)], ..Lake::default() };
        assert_eq!(lake.anomalous_windows(), BTreeMap::from([(("s".to_owned(), 0), 9)]));
    }

    #[test]
    fn percentile_is_the_nearest_rank() {
        let check = |fraction: f64, expected: u64| {
            assert_eq!(percentile(&[1, 2, 3, 4], fraction), expected, "{fraction}");
        };
        check(0.0, 1);
        check(0.5, 2);
        check(0.51, 3);
        check(0.99, 4);
        assert_eq!(percentile(&[], 0.5), 0);
    }
}
