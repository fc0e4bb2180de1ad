//! Reads what the report needs from the lake, while others write it.

use std::path::PathBuf;

use deltalake::arrow::array::Array as _;
use deltalake::arrow::record_batch::RecordBatch;
use shared_proto::model::{EventTime, MachineEventType, OutcomeVerdict};

use super::precision::{AlertRow, OutcomeRow, TripRow};
use crate::config;
use crate::lake_reader::{Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};

/// Names of the tables.
const ALERTS: &str = "alerts";
const OUTCOMES: &str = "outcomes";
const MACHINE_EVENTS: &str = "machine_events";
/// The cause of a trip by a model.
const SCORE: &str = "score";
/// Most rows of one table that are held in memory.
const ROWS_MAX: usize = 2_000_000;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// What the report is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Events of alerts.
    pub alerts: Vec<AlertRow>,
    /// What people found.
    pub outcomes: Vec<OutcomeRow>,
    /// Trips by a score.
    pub trips: Vec<TripRow>,
    /// Tables that are not there (yet).
    pub missing: Vec<&'static str>,
}

/// The lake of the settings, or the one that the command line names.
#[must_use]
pub fn lake_at(settings: &config::Lake, location: Option<&PathBuf>) -> config::Lake {
    let mut lake = settings.clone();
    if let Some(location) = location {
        lake.location = location.to_string_lossy().into_owned();
    }
    lake
}

/// Reads alerts and trips since a moment and all that was found since the day before.
///
/// # Errors
/// The storage refuses, a file is damaged, or there are more rows than fit into memory.
pub async fn read(settings: &config::Lake, since: Option<EventTime>) -> Result<Rows, LakeError> {
    let location = Location::existing(settings)?;
    let mut rows = Rows::default();
    let is_there = read_table(&location, (ALERTS, &ALERT_COLUMNS), since, |batch, at| {
        let found = alert_at(batch, at).filter(|row| since.is_none_or(|from| row.fired_at >= from));
        rows.alerts.extend(found);
        rows.alerts.len()
    });
    if !is_there.await? {
        rows.missing.push(ALERTS);
    }
    // Clocks of people and machines differ.
    let day_before = since.map(|since| since.saturating_sub_micros(MICROS_PER_DAY));
    let is_there = read_table(&location, (OUTCOMES, &OUTCOME_COLUMNS), day_before, |batch, at| {
        rows.outcomes.extend(outcome_at(batch, at));
        rows.outcomes.len()
    });
    if !is_there.await? {
        rows.missing.push(OUTCOMES);
    }
    let is_there = read_table(&location, (MACHINE_EVENTS, &TRIP_COLUMNS), since, |batch, at| {
        let found = trip_at(batch, at).filter(|row| since.is_none_or(|from| row.timestamp >= from));
        rows.trips.extend(found);
        rows.trips.len()
    });
    if !is_there.await? {
        rows.missing.push(MACHINE_EVENTS);
    }
    Ok(rows)
}

/// Gives each row of the files since a date to `take`, which says how many are held. Says whether the table is there.
async fn read_table(
    location: &Location,
    (name, columns): (&'static str, &[&str]),
    since: Option<EventTime>,
    mut take: impl FnMut(&RecordBatch, usize) -> usize,
) -> Result<bool, LakeError> {
    let Some(mut table) = TableReader::find(location, name).await? else { return Ok(false) };
    table.load().await?;
    let first = since.and_then(date_of);
    let mut files = table.files()?;
    files.retain(|file| first.as_deref().is_none_or(|first| file.date() >= first));
    for file in &files {
        let read = table.read(file, columns, |batch| {
            for at in 0..batch.num_rows() {
                if take(batch, at) > ROWS_MAX {
                    let text = format!("has more than {ROWS_MAX} rows to look at: give --since");
                    return Err(LakeError::Rows { table: name.to_owned(), text });
                }
            }
            Ok(())
        });
        read.await?;
    }
    Ok(true)
}

/// As the partitions are named; nothing for a year that they cannot name.
fn date_of(time: EventTime) -> Option<String> {
    time.is_in_rfc_3339().then(|| time.to_string()[..10].to_owned())
}

const ALERT_COLUMNS: [&str; 7] =
    ["alert_id", "rule", "machine_id", "sensor_id", "trip_id", "fired_at", "suppressed_by"];

fn alert_at(batch: &RecordBatch, at: usize) -> Option<AlertRow> {
    let row = Row(batch);
    let text = |name| text_at(row.texts(name), at).map(str::to_owned);
    Some(AlertRow {
        alert_id: text("alert_id")?,
        rule: text("rule").unwrap_or_default(),
        is_of_machine: text("machine_id").is_some(),
        machine: text("machine_id").or_else(|| text("sensor_id")).unwrap_or_default(),
        trip_id: text("trip_id"),
        fired_at: time_at(row, "fired_at", at)?,
        is_suppressed: text("suppressed_by").is_some(),
    })
}

const OUTCOME_COLUMNS: [&str; 8] = [
    "outcome_id",
    "verdict",
    "machine_id",
    "alert_id",
    "trip_id",
    "timestamp",
    "source_partition",
    "source_offset",
];

/// Nothing for a verdict that this version does not know.
fn outcome_at(batch: &RecordBatch, at: usize) -> Option<OutcomeRow> {
    let row = Row(batch);
    let text = |name| text_at(row.texts(name), at).map(str::to_owned);
    let partition = row.integers("source_partition").filter(|column| column.is_valid(at));
    Some(OutcomeRow {
        outcome_id: text("outcome_id")?,
        verdict: OutcomeVerdict::from_word(text_at(row.texts("verdict"), at)?)?,
        machine: text("machine_id").unwrap_or_default(),
        alert_id: text("alert_id"),
        trip_id: text("trip_id"),
        timestamp: time_at(row, "timestamp", at)?,
        place: (
            long_at(row.longs("source_offset"), at).unwrap_or_default(),
            partition.map_or(0, |column| column.value(at)),
        ),
    })
}

const TRIP_COLUMNS: [&str; 6] =
    ["event_type", "machine_id", "timestamp", "cause", "model", "trip_id"];

fn trip_at(batch: &RecordBatch, at: usize) -> Option<TripRow> {
    let row = Row(batch);
    let text = |name| text_at(row.texts(name), at);
    if text("event_type")? != MachineEventType::Trip.as_str() || text("cause")? != SCORE {
        return None;
    }
    Some(TripRow {
        trip_id: text("trip_id")?.to_owned(),
        machine: text("machine_id").unwrap_or_default().to_owned(),
        model: text("model").map(str::to_owned),
        timestamp: time_at(row, "timestamp", at)?,
    })
}

fn time_at(row: Row<'_>, name: &str, at: usize) -> Option<EventTime> {
    let column = row.times(name).filter(|column| column.is_valid(at))?;
    Some(EventTime::from_micros(column.value(at)))
}
