//! One moment of the lake: the last epoch of each partition, its state, and tables that are not behind it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use aggregator_core::checkpoint::{
    EpochId, FoundFile, FoundTransactions, PartitionEpoch, PendingRows, Recovery, SideTable,
    TopicPartition, resolve, restore_state,
};
use aggregator_core::rows::MachineEventRow;
use aggregator_core::{Accounting, AnomalyRow, ClosedBy, GroupBy, Rule};
use deltalake::arrow::array::Array as _;
use deltalake::arrow::record_batch::RecordBatch;
use shared_proto::model::MachineEventType;

use super::windows::{FoundRow, WindowKey};
use super::{AuditError, RECORD_TABLES, day_of};
use crate::config::Settings;
use crate::lake_reader::{DataFile, Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};
use crate::sink::rows::TELEMETRY;
use crate::sink::state_file::{FoundStateFile, StateFiles};
use crate::source::GapCause;

/// Side tables that are ahead of `telemetry` were read later: so often all are read again.
const ATTEMPTS_MAX: u32 = 20;
/// State files that are looked through for partitions, besides those that are kept for long.
const NEWEST_FILES: usize = 16;

/// A partition at that moment.
pub(super) struct PartitionMoment {
    pub(super) next_offset: i64,
    pub(super) accounting: Accounting,
    /// Rules with the event time after which their windows begin.
    pub(super) rules: Vec<(Rule, i64)>,
    /// By rule: windows that end there or before were perhaps judged by a threshold that is not in force any more.
    judged_after: BTreeMap<String, i64>,
    pub(super) has_readings_behind: bool,
    sensors: BTreeMap<String, i64>,
    machines: BTreeMap<String, i64>,
    /// Rows that side tables still owe.
    pending: PendingRows,
}

impl PartitionMoment {
    /// Newest event time of a sensor or machine.
    pub(super) fn newest(&self, by: GroupBy, group: &str) -> Option<i64> {
        match by {
            GroupBy::Sensor => self.sensors.get(group).copied(),
            GroupBy::Machine => self.machines.get(group).copied(),
        }
    }

    /// Offsets of Kafka records among the rows that a table still owes.
    pub(super) fn pending_offsets(&self, table: &str) -> Vec<i64> {
        let rows = &self.pending;
        if table == SideTable::LateReadings.as_str() {
            return rows.late_readings.iter().map(|row| row.offset.0).collect();
        }
        if table == SideTable::MachineEvents.as_str() {
            let events = rows.machine_events.iter().filter(|row| !is_own(row));
            return events.map(|row| row.offset.0).collect();
        }
        let letters = rows.dead_letters.iter();
        letters.filter(|row| row.source != "alerts").map(|row| row.offset.0).collect()
    }

    /// Records that Kafka lost, by rows that `machine_events` still owes.
    pub(super) fn pending_gaps(&self) -> u64 {
        let own = self.pending.machine_events.iter().filter(|row| is_own(row));
        let of_kafka = own.filter(|row| {
            row.details.cause.as_deref().is_some_and(|cause| cause.starts_with("kafka-"))
        });
        of_kafka.filter_map(|row| row.details.record_count).sum()
    }

    /// Whether a row that `machine_events` still owes tells that the topic was made anew or cut short.
    pub(super) fn is_renewal_pending(&self) -> bool {
        let own = self.pending.machine_events.iter().filter(|row| is_own(row));
        own.filter_map(|row| row.details.cause.as_deref()).any(tells_renewal)
    }
}

/// Whether a gap with this cause is followed by offsets that were there before.
pub(super) fn tells_renewal(cause: &str) -> bool {
    cause == GapCause::Truncated.as_str() || cause == GapCause::Recreated.as_str()
}

fn is_own(row: &MachineEventRow) -> bool {
    let is_gap = matches!(row.event_type, MachineEventType::Gap | MachineEventType::GapClosed);
    is_gap && row.identity.is_none()
}

/// Newest rows of windows.
pub(super) struct Anomalies {
    pub(super) newest: BTreeMap<WindowKey, FoundRow>,
    pub(super) read: u64,
}

/// The lake at that moment.
pub(super) struct Moment {
    pub(super) tables: BTreeMap<String, TableReader>,
    pub(super) partitions: BTreeMap<TopicPartition, PartitionMoment>,
    /// Partitions whose tables and state files do not belong together.
    pub(super) broken: Vec<(TopicPartition, String)>,
    /// Files of `anomalies` by the first microsecond of their date.
    pub(super) anomaly_dates: BTreeMap<i64, Vec<DataFile>>,
}

impl Moment {
    /// Opens the tables and reads the states.
    pub(super) async fn take(
        settings: &Settings,
        partitions: &BTreeSet<TopicPartition>,
    ) -> Result<Self, AuditError> {
        let location = Location::existing(&settings.lake)?;
        for attempt in 1..=ATTEMPTS_MAX {
            let tables = open_tables(&location).await?;
            if !tables.contains_key(TELEMETRY) {
                return Err(AuditError::NoTable { location: settings.lake.location.clone() });
            }
            let is_last = attempt == ATTEMPTS_MAX;
            if let Some(moment) = Self::of(&location, tables, settings, partitions, is_last).await?
            {
                return Ok(moment);
            }
        }
        let location = settings.lake.location.clone();
        Err(AuditError::Restless { location, attempts: ATTEMPTS_MAX })
    }

    /// `None`: a side table is ahead; or, unless this `is_last` attempt, a partition has gone on and its state file is gone.
    pub(super) async fn of(
        location: &Location,
        tables: BTreeMap<String, TableReader>,
        settings: &Settings,
        partitions: &BTreeSet<TopicPartition>,
        is_last: bool,
    ) -> Result<Option<Self>, AuditError> {
        let states = StateFiles::open(location)?;
        let mut moment = Self {
            partitions: BTreeMap::new(),
            broken: Vec::new(),
            anomaly_dates: BTreeMap::new(),
            tables,
        };
        let mut files: BTreeMap<EpochId, FoundStateFile> = BTreeMap::new();
        let mut partitions = partitions.clone();
        partitions.extend(find_partitions(&states, settings).await?);
        for partition in partitions {
            let found = moment.transactions(&partition).await?;
            let Some(epoch) = found.telemetry else { continue };
            if found.side_tables.values().any(|side| *side > epoch) {
                return Ok(None);
            }
            if let Err(why) =
                moment.add(&partition, &found, epoch, (&states, &mut files), settings).await?
            {
                if !is_last && has_gone_on(location, &partition, epoch).await? {
                    return Ok(None);
                }
                moment.broken.push((partition, why));
            }
        }
        if let Some(anomalies) = moment.tables.get(SideTable::Anomalies.as_str()) {
            for file in anomalies.files()? {
                moment.anomaly_dates.entry(day_of(file.date())).or_default().push(file);
            }
        }
        Ok(Some(moment))
    }

    async fn transactions(
        &self,
        partition: &TopicPartition,
    ) -> Result<FoundTransactions, AuditError> {
        let mut found = FoundTransactions::default();
        for (name, table) in &self.tables {
            let Some(version) = table.transaction(&partition.app_id()).await? else { continue };
            let epoch = EpochId::try_from(version)
                .map_err(|source| LakeError::Epoch { table: name.clone(), source })?;
            match SideTable::ALL.into_iter().find(|side| side.as_str() == name) {
                Some(side) => {
                    found.side_tables.insert(side, epoch);
                }
                None => found.telemetry = Some(epoch),
            }
        }
        Ok(found)
    }

    /// The inner error is what does not belong together.
    async fn add(
        &mut self,
        partition: &TopicPartition,
        found: &FoundTransactions,
        epoch: EpochId,
        (states, files): (&StateFiles, &mut BTreeMap<EpochId, FoundStateFile>),
        settings: &Settings,
    ) -> Result<Result<(), String>, AuditError> {
        let file = match read_file(states, files, epoch).await? {
            FoundStateFile::Absent => FoundFile::Absent,
            FoundStateFile::Unreadable(detail) => FoundFile::Unreadable(detail),
            FoundStateFile::OtherFormat(found) => FoundFile::OtherFormat(*found),
            FoundStateFile::Present(file) => FoundFile::Present(file),
        };
        let owed = match resolve(partition, found, file) {
            Recovery::Fresh => return Ok(Ok(())),
            Recovery::Corrupt(why) => return Ok(Err(why.to_string())),
            Recovery::Resume { roll_forward, .. } => roll_forward,
        };
        let Some(last) = entry_of(files, epoch, partition) else { return Ok(Ok(())) };
        let last = last.clone();
        let mut before = Vec::new();
        for epoch in last.state.files() {
            read_file(states, files, *epoch).await?;
            match entry_of(files, *epoch, partition) {
                Some(entry) => before.push((*epoch, entry.state.clone())),
                None => return Ok(Err(format!("state file {} is missing", epoch.file_name()))),
            }
        }
        let PartitionEpoch { next_offset, state, rows: mut pending, .. } = last;
        let state = match restore_state(epoch, state, before) {
            Ok(state) => state,
            Err(why) => return Ok(Err(why.to_string())),
        };
        for side in SideTable::ALL.into_iter().filter(|side| !owed.contains(side)) {
            match side {
                SideTable::Anomalies => pending.anomalies.clear(),
                SideTable::LateReadings => pending.late_readings.clear(),
                SideTable::MachineEvents => pending.machine_events.clear(),
                SideTable::DeadLetters => pending.dead_letters.clear(),
            }
        }
        let core = settings.core();
        let lateness = core.allowed_lateness.get();
        let sensors = state.sensor_watermarks(&core);
        let machines = state.machine_watermarks(&core);
        let entry = PartitionMoment {
            next_offset: next_offset.0,
            accounting: state.accounting(),
            rules: state.rules().map(|(rule, since)| (rule.clone(), since.micros())).collect(),
            judged_after: state
                .rules()
                .zip(state.judged_after())
                .map(|((rule, _), after)| (rule.name.clone(), after.micros()))
                .collect(),
            has_readings_behind: state.figures().unmatched.behind_machine > 0,
            sensors: sensors
                .map(|(id, time)| (id.as_str().to_owned(), time.micros().saturating_add(lateness)))
                .collect(),
            machines: machines
                .map(|(id, time)| (id.as_str().to_owned(), time.micros().saturating_add(lateness)))
                .collect(),
            pending,
        };
        self.partitions.insert(partition.clone(), entry);
        Ok(Ok(()))
    }

    pub(super) fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.partitions.values().flat_map(|one| one.rules.iter().map(|(rule, _)| rule))
    }

    /// Whether a window began before every partition counted it.
    pub(super) fn is_before_rules(&self, name: &str, start: i64) -> bool {
        let since = self.partitions.values().flat_map(|one| one.rules.iter());
        since.filter(|(rule, _)| rule.name == name).all(|(_, since)| start <= *since)
    }

    /// Whether a window was perhaps judged by a threshold that is not in force any more.
    pub(super) fn is_judged_by_another(&self, name: &str, end: i64) -> bool {
        self.partitions.values().any(|one| {
            one.judged_after.get(name).is_some_and(|after| *after > i64::MIN && end <= *after)
        })
    }

    /// Newest rows of the windows that begin from `from` to before `through`.
    pub(super) async fn anomalies(&self, from: i64, through: i64) -> Result<Anomalies, AuditError> {
        let mut found = Anomalies { newest: BTreeMap::new(), read: 0 };
        let is_wanted = |start: i64| start >= from && start < through;
        if let Some(table) = self.tables.get(SideTable::Anomalies.as_str()) {
            let before = through.saturating_sub(1);
            let dates =
                self.anomaly_dates.range(from.saturating_sub(super::MICROS_PER_DAY)..=before);
            for file in dates.flat_map(|(_, files)| files) {
                table
                    .read(file, &ANOMALY_COLUMNS, |batch| {
                        found.take(batch, is_wanted);
                        Ok(())
                    })
                    .await?;
            }
        }
        for row in self.partitions.values().flat_map(|one| &one.pending.anomalies) {
            if is_wanted(row.window_start.micros()) {
                found.read += 1;
                found.add(key_of(row), found_row(row));
            }
        }
        Ok(found)
    }
}

const ANOMALY_COLUMNS: [&str; 10] = [
    "rule",
    "sensor_id",
    "machine_id",
    "window_start",
    "is_anomaly",
    "count",
    "revision",
    "closed_by",
    "min_value",
    "max_value",
];

impl Anomalies {
    fn take(&mut self, batch: &RecordBatch, is_wanted: impl Fn(i64) -> bool) {
        let row = Row(batch);
        for at in 0..batch.num_rows() {
            let text = |name| text_at(row.texts(name), at);
            let Some(start) = row.times("window_start").map(|column| column.value(at)) else {
                continue;
            };
            if !is_wanted(start) {
                continue;
            }
            self.read += 1;
            let group = text("sensor_id").or(text("machine_id")).unwrap_or_default();
            let number = |name| row.doubles(name).map_or(f64::NAN, |column| column.value(at));
            // Tables of an older version have no such column: there every row is an anomaly by its rule.
            let flags = row.flags("is_anomaly").filter(|column| column.is_valid(at));
            let found = FoundRow {
                revision: row.integers("revision").map_or(0, |column| column.value(at)),
                is_anomaly: flags.is_none_or(|column| column.value(at)),
                is_open: text("closed_by") == Some(ClosedBy::Open.as_str()),
                count: long_at(row.longs("count"), at).map_or(0, i64::cast_unsigned),
                min: number("min_value"),
                max: number("max_value"),
            };
            let rule = text("rule").unwrap_or_default().to_owned();
            self.add((rule, group.to_owned(), start), found);
        }
    }

    fn add(&mut self, key: WindowKey, row: FoundRow) {
        match self.newest.get_mut(&key) {
            Some(held) if held.revision >= row.revision => {}
            Some(held) => *held = row,
            None => {
                self.newest.insert(key, row);
            }
        }
    }
}

fn key_of(row: &AnomalyRow) -> WindowKey {
    (row.rule.clone(), row.group().to_owned(), row.window_start.micros())
}

fn found_row(row: &AnomalyRow) -> FoundRow {
    FoundRow {
        revision: row.revision.cast_signed(),
        is_anomaly: row.is_anomaly,
        is_open: row.closed_by == ClosedBy::Open,
        count: row.count,
        min: row.min_value,
        max: row.max_value,
    }
}

async fn read_file<'a>(
    states: &StateFiles,
    files: &'a mut BTreeMap<EpochId, FoundStateFile>,
    epoch: EpochId,
) -> Result<&'a FoundStateFile, AuditError> {
    if let Entry::Vacant(entry) = files.entry(epoch) {
        entry.insert(states.read(epoch).await?);
    }
    Ok(&files[&epoch])
}

fn entry_of<'a>(
    files: &'a BTreeMap<EpochId, FoundStateFile>,
    epoch: EpochId,
    partition: &TopicPartition,
) -> Option<&'a PartitionEpoch> {
    match files.get(&epoch)? {
        FoundStateFile::Present(file) => file.partitions.get(partition),
        FoundStateFile::Absent | FoundStateFile::Unreadable(_) | FoundStateFile::OtherFormat(_) => {
            None
        }
    }
}

/// Partitions of the newest state files, and of those that are there only because a `txn` names them.
async fn find_partitions(
    states: &StateFiles,
    settings: &Settings,
) -> Result<BTreeSet<TopicPartition>, AuditError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    let mut epochs = states.list().await?;
    epochs.sort_unstable_by_key(|(epoch, _)| std::cmp::Reverse(*epoch));
    let grace = i64::try_from(settings.lake.state_grace.as_micros()).unwrap_or(i64::MAX);
    let mut partitions = BTreeSet::new();
    for (place, (epoch, written_at)) in epochs.into_iter().enumerate() {
        if (place < NEWEST_FILES || now.saturating_sub(written_at) > grace)
            && let FoundStateFile::Present(file) = states.read(epoch).await?
        {
            partitions.extend(file.partitions.into_keys());
        }
    }
    Ok(partitions)
}

/// Whether a partition stands at another epoch meanwhile: then the files of this one may be deleted.
async fn has_gone_on(
    location: &Location,
    partition: &TopicPartition,
    epoch: EpochId,
) -> Result<bool, AuditError> {
    let Some(mut telemetry) = TableReader::find(location, TELEMETRY).await? else {
        return Ok(false);
    };
    telemetry.load().await?;
    let newest = telemetry.transaction(&partition.app_id()).await?;
    Ok(newest != Some(epoch.version()))
}

pub(super) async fn open_tables(
    location: &Location,
) -> Result<BTreeMap<String, TableReader>, AuditError> {
    let mut tables = BTreeMap::new();
    for name in RECORD_TABLES.into_iter().chain([SideTable::Anomalies.as_str()]) {
        if let Some(mut table) = TableReader::find(location, name).await? {
            table.load().await?;
            tables.insert(name.to_owned(), table);
        }
    }
    Ok(tables)
}
