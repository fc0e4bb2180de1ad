//! Brings the states of partitions to where another program has come to, by the rows that it has written.
//!
//! The tables are read twice: for times, counts and identities, then for the readings that are in windows which are still held. Files that
//! were last written before the lake was handed over hold nothing of it, and are not opened.

use std::collections::BTreeMap;

use aggregator_core::checkpoint::{SideTable, TopicPartition};
use aggregator_core::partition::adopting::AdoptedRow;
use aggregator_core::{Accounting, PartitionState, ProcessingTime, Settings};
use deltalake::arrow::record_batch::RecordBatch;
use shared_proto::model::{DeviceId, EventTime, Generation, Identity, MetricType, Sequence};

use super::HandOverError;
use crate::audit::{
    ANOMALY_COLUMNS, Anomalies, MICROS_PER_DAY, Names, Sources, day_of, is_own_row,
};
use crate::lake_reader::{DataFile, Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};
use crate::sink::rows::TELEMETRY;

/// Clocks of storages and of programs may differ by so much.
const CLOCKS_DIFFER_MS: i64 = 86_400_000;
const SOURCE: [&str; 3] = ["source_topic", "source_partition", "source_offset"];
const IDENTITY: [&str; 3] = ["device_id", "generation", "sequence"];
const READING: [&str; 7] =
    ["sensor_id", "timestamp", "value", "machine_id", "unit", "quality", "features"];
/// What tells rows of records from those of the aggregator's own.
const OWN: [&str; 3] = ["event_type", "reason", "source"];

/// A partition on its way from one offset to another.
#[derive(Debug)]
pub struct Adopted {
    /// The first offset whose row the state does not know; `None`: it knows none.
    pub from: Option<i64>,
    /// The first offset that is not read yet.
    pub until: i64,
    /// What it counts with.
    pub state: PartitionState,
    /// What became of the records between.
    pub counts: Accounting,
    lowest: Option<i64>,
}

impl Adopted {
    /// A partition whose state knows everything before `from`.
    #[must_use]
    pub fn new(from: Option<i64>, until: i64, state: PartitionState) -> Self {
        Self { from, until, state, counts: Accounting::default(), lowest: None }
    }

    /// Whether a row is of a record between.
    fn takes(&self, offset: i64) -> bool {
        self.from.is_none_or(|from| offset >= from) && offset < self.until
    }

    /// Takes note of a row of a record between, or of one that must not be there.
    fn note(
        &mut self,
        partition: &TopicPartition,
        table: &'static str,
        offset: i64,
    ) -> Result<(), HandOverError> {
        if offset >= self.until {
            let partition = partition.clone();
            return Err(HandOverError::Beyond { table, partition, offset, until: self.until });
        }
        self.lowest = Some(self.lowest.map_or(offset, |lowest| lowest.min(offset)));
        let counted = match table {
            _ if table == SideTable::LateReadings.as_str() => &mut self.counts.late,
            _ if table == SideTable::DeadLetters.as_str() => &mut self.counts.dead_letters,
            _ => &mut self.counts.counted,
        };
        *counted += 1;
        Ok(())
    }

    /// Records without a row are repeats of devices. (Kafka has offsets without a record, too: where a transaction ended, or a topic is
    /// compacted.)
    fn finish(&mut self, partition: &TopicPartition) -> Result<(), HandOverError> {
        let Accounting { counted, late, dead_letters, .. } = self.counts;
        let rows = counted + late + dead_letters;
        let first = self.from.or(self.lowest).unwrap_or(self.until);
        let offsets = u64::try_from(self.until - first).unwrap_or(0);
        let Some(duplicates) = offsets.checked_sub(rows) else {
            let partition = partition.clone();
            return Err(HandOverError::Doubled { partition, offsets, rows });
        };
        self.counts.duplicates = duplicates;
        self.counts.records_in = rows + duplicates;
        self.state.end_adoption(self.counts);
        Ok(())
    }
}

/// Partitions on their way.
#[derive(Debug)]
pub struct Adoption<'a> {
    /// By name.
    pub partitions: BTreeMap<TopicPartition, Adopted>,
    /// Those that stay where they are: rows beyond these offsets must not be there.
    pub others: BTreeMap<TopicPartition, i64>,
    /// Limits and times.
    pub settings: &'a Settings,
    /// The aggregator's clock.
    pub now: ProcessingTime,
    /// Files that were written before hold nothing of it.
    pub since_ms: Option<i64>,
}

impl Adoption<'_> {
    /// Reads the tables.
    ///
    /// # Errors
    /// They cannot be read, or hold rows that contradict the offsets.
    pub async fn run(&mut self, location: &Location) -> Result<(), HandOverError> {
        let mut names = Names::default();
        let telemetry = open(location, TELEMETRY).await?;
        let files = self.files(telemetry.as_ref())?;
        if let Some(table) = &telemetry {
            let columns: Vec<&str> = [&SOURCE[..], &IDENTITY, &READING[..4]].concat();
            for file in &files {
                self.read(table, file, &columns, |adoption, batch| {
                    adoption.take_times(batch, metric_of(file), &mut names)
                })
                .await?;
            }
            let columns: Vec<&str> = [&SOURCE[..], &["device_id"], &READING].concat();
            let horizon = self.horizon();
            for file in files.iter().filter(|file| day_of(file.date()) >= horizon) {
                self.read(table, file, &columns, |adoption, batch| {
                    adoption.take_readings(batch, metric_of(file), &mut names);
                    Ok(())
                })
                .await?;
            }
        }
        for side in [
            SideTable::LateReadings,
            SideTable::MachineEvents,
            SideTable::DeadLetters,
            SideTable::Outcomes,
            SideTable::Waveforms,
        ] {
            let Some(table) = open(location, side.as_str()).await? else { continue };
            let columns: Vec<&str> = [&SOURCE[..], &IDENTITY, &OWN].concat();
            for file in self.files(Some(&table))? {
                self.read(&table, &file, &columns, |adoption, batch| {
                    adoption.take_side(batch, side.as_str())
                })
                .await?;
            }
        }
        self.take_windows(location).await?;
        for (partition, adopted) in &mut self.partitions {
            adopted.finish(partition)?;
        }
        Ok(())
    }

    fn files(&self, table: Option<&TableReader>) -> Result<Vec<DataFile>, HandOverError> {
        let Some(table) = table else { return Ok(Vec::new()) };
        let mut files = table.files()?;
        if let Some(since) = self.since_ms {
            files.retain(|file| file.modified_ms >= since.saturating_sub(CLOCKS_DIFFER_MS));
        }
        Ok(files)
    }

    async fn read(
        &mut self,
        table: &TableReader,
        file: &DataFile,
        columns: &[&str],
        mut each: impl FnMut(&mut Self, &RecordBatch) -> Result<(), HandOverError>,
    ) -> Result<(), HandOverError> {
        let mut result = Ok(());
        table
            .read(file, columns, |batch| {
                if result.is_ok() {
                    result = each(self, batch);
                }
                Ok(())
            })
            .await?;
        result
    }

    /// Notes a row, if its record is between or beyond; the partition that it is of, if it is between.
    fn note(
        &mut self,
        partition: &TopicPartition,
        table: &'static str,
        offset: i64,
    ) -> Result<Option<&mut Adopted>, HandOverError> {
        if let Some(until) = self.others.get(partition).copied().filter(|until| offset >= *until) {
            let partition = partition.clone();
            return Err(HandOverError::Beyond { table, partition, offset, until });
        }
        let Some(adopted) = self.partitions.get_mut(partition) else { return Ok(None) };
        if adopted.from.is_some_and(|from| offset < from) {
            return Ok(None);
        }
        adopted.note(partition, table, offset)?;
        Ok(Some(adopted))
    }

    fn take_times(
        &mut self,
        batch: &RecordBatch,
        metric: Option<MetricType>,
        names: &mut Names,
    ) -> Result<(), HandOverError> {
        let (settings, now) = (self.settings, self.now);
        let mut sources = Sources::of(batch);
        while let Some((at, partition, offset)) = sources.next() {
            let Some(adopted) = self.note(partition, TELEMETRY, offset)? else { continue };
            if let Some(identity) = identity_of(batch, at) {
                adopted.state.adopt_identity(&identity, settings);
            }
            let Some(metric) = &metric else { continue };
            let Some(reading) = names.reading(Row(batch), at, metric) else { continue };
            adopted.state.adopt_time(&reading, now, settings)?;
        }
        Ok(())
    }

    fn take_readings(
        &mut self,
        batch: &RecordBatch,
        metric: Option<MetricType>,
        names: &mut Names,
    ) {
        let Some(metric) = metric else { return };
        let mut sources = Sources::of(batch);
        while let Some((at, partition, offset)) = sources.next() {
            let Some(adopted) = self.partitions.get_mut(partition) else { continue };
            if adopted.takes(offset)
                && let Some(reading) = names.reading(Row(batch), at, &metric)
            {
                adopted.state.adopt_reading(&reading);
            }
        }
    }

    fn take_side(&mut self, batch: &RecordBatch, table: &'static str) -> Result<(), HandOverError> {
        let settings = self.settings;
        let mut sources = Sources::of(batch);
        while let Some((at, partition, offset)) = sources.next() {
            if is_own_row(Row(batch), at) {
                continue;
            }
            let Some(adopted) = self.note(partition, table, offset)? else { continue };
            if let Some(identity) = identity_of(batch, at) {
                adopted.state.adopt_identity(&identity, settings);
            }
        }
        Ok(())
    }

    /// First microsecond of the earliest day of which readings are wanted.
    fn horizon(&self) -> i64 {
        let horizons = self.partitions.values().filter_map(|one| one.state.adoption_horizon());
        let day = |time: EventTime| time.micros().div_euclid(MICROS_PER_DAY) * MICROS_PER_DAY;
        horizons.min().map_or(i64::MAX, day)
    }

    /// Tells every state what was said of its windows: each takes those of its own sensors and machines.
    async fn take_windows(&mut self, location: &Location) -> Result<(), HandOverError> {
        let Some(table) = open(location, SideTable::Anomalies.as_str()).await? else {
            return Ok(());
        };
        let horizon = self.horizon();
        let mut found = Anomalies::default();
        for file in table.files()?.iter().filter(|file| day_of(file.date()) >= horizon) {
            table
                .read(file, &ANOMALY_COLUMNS, |batch| {
                    found.take(batch, |_| true);
                    Ok(())
                })
                .await?;
        }
        for ((rule, group, start), row) in &found.newest {
            let row = AdoptedRow {
                rule,
                by: row.by,
                group,
                window_start: EventTime::from_micros(*start),
                is_anomaly: row.is_anomaly,
                count: row.count,
                revision: u32::try_from(row.revision).unwrap_or(0),
                is_open: row.is_open,
            };
            for adopted in self.partitions.values_mut() {
                adopted.state.adopt_row(&row);
            }
        }
        Ok(())
    }
}

async fn open(location: &Location, name: &str) -> Result<Option<TableReader>, LakeError> {
    let Some(mut table) = TableReader::find(location, name).await? else { return Ok(None) };
    table.load().await?;
    Ok(Some(table))
}

fn metric_of(file: &DataFile) -> Option<MetricType> {
    let metric = file.partition.get("metric_type").and_then(Option::as_deref);
    metric.and_then(|text| MetricType::new(text).ok())
}

fn identity_of(batch: &RecordBatch, at: usize) -> Option<Identity> {
    let row = Row(batch);
    let device_id = DeviceId::new(text_at(row.texts("device_id"), at)?).ok()?;
    let generation = long_at(row.longs("generation"), at)?.cast_unsigned();
    let sequence = long_at(row.longs("sequence"), at)?.cast_unsigned();
    let (generation, sequence) = (Generation(generation), Sequence(sequence));
    Some(Identity { device_id, generation, sequence })
}
