//! One moment of the lake: the last epoch of each partition, its state, and tables that are not behind it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aggregator_core::checkpoint::{
    EpochId, FoundFile, FoundTransactions, PartitionEpoch, PendingRows, Recovery, SideTable,
    TopicPartition, resolve, restore_state,
};
use aggregator_core::hub::position;
use aggregator_core::rows::MachineEventRow;
use aggregator_core::{
    Accounting, AnomalyRow, ClosedBy, GroupBy, OutputMode, PartitionState, Rule,
};
use deltalake::arrow::array::Array as _;
use deltalake::arrow::record_batch::RecordBatch;
use shared_proto::model::{EventTime, MachineEventType};

use super::origins::Origins;
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

/// Why windows are left out.
pub(super) const NOT_IN_FORCE: &str = "the rule is not in force any more";
const COMPLETE: &str = "the rule writes no rows of anomalies (output mode complete)";
const BEFORE_RULE: &str = "the window began before the rule, or before its last change";
const FORGOTTEN: &str = "the window was forgotten before the rule's threshold changed";

/// An attempt to read tables that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Tables that do not may have changed while they were opened.
    Early,
    /// No table has changed since the attempt before: tables that do not never will.
    Still,
    /// There is no other.
    Last,
}

/// A partition at that moment.
pub(super) struct PartitionMoment {
    /// As rows have it: of a hub's partition the position of the record to be read next.
    pub(super) next_offset: i64,
    pub(super) is_hub: bool,
    pub(super) accounting: Accounting,
    /// Rules with the event time after which their windows begin.
    pub(super) rules: Vec<(Rule, i64)>,
    /// By rule: windows that end there or before were perhaps judged by a threshold that is not in force any more.
    judged_after: BTreeMap<String, i64>,
    pub(super) has_readings_behind: bool,
    /// Whether it ever had a reading.
    has_sensors: bool,
    /// Rows that side tables still owe.
    pending: PendingRows,
}

impl PartitionMoment {
    /// The rule of that name.
    pub(super) fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().map(|(rule, _)| rule).find(|rule| rule.name == name)
    }

    /// Why a row that this partition may have written for a window says nothing of the readings that count by the rule in force.
    pub(super) fn excuse(&self, name: &str, start: i64) -> Option<&'static str> {
        let Some((rule, since)) = self.rules.iter().find(|(rule, _)| rule.name == name) else {
            return Some(NOT_IN_FORCE);
        };
        if rule.output_mode == OutputMode::Complete {
            return Some(COMPLETE);
        }
        if start <= *since {
            return Some(BEFORE_RULE);
        }
        let after = self.judged_after.get(name).copied().unwrap_or(i64::MIN);
        let end = start.saturating_add(rule.window.get());
        (after > i64::MIN && end <= after).then_some(FORGOTTEN)
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
        if table == SideTable::Outcomes.as_str() {
            return rows.outcomes.iter().map(|row| row.offset.0).collect();
        }
        if table == SideTable::Waveforms.as_str() {
            return rows.waveforms.iter().map(|row| row.offset.0).collect();
        }
        let letters = rows.dead_letters.iter();
        letters.filter(|row| row.source != "alerts").map(|row| row.offset.0).collect()
    }

    /// Rows that a table still owes and that are no Kafka records.
    pub(super) fn pending_own(&self, table: &str) -> u64 {
        let rows = &self.pending;
        let count = if table == SideTable::MachineEvents.as_str() {
            rows.machine_events.iter().filter(|row| is_own(row)).count()
        } else if table == SideTable::DeadLetters.as_str() {
            rows.dead_letters.iter().filter(|row| row.source == "alerts").count()
        } else {
            0
        };
        count as u64
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
#[derive(Default)]
pub(crate) struct Anomalies {
    pub(crate) newest: BTreeMap<WindowKey, FoundRow>,
    pub(super) read: u64,
}

/// The lake at that moment.
pub(super) struct Moment {
    pub(super) tables: BTreeMap<String, TableReader>,
    pub(super) partitions: BTreeMap<TopicPartition, PartitionMoment>,
    /// Partitions whose tables and state files do not belong together.
    pub(super) broken: Vec<(TopicPartition, String)>,
    /// Which partitions hold a sensor or machine.
    pub(super) origins: Origins,
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
        let mut before = None;
        for number in 1..=ATTEMPTS_MAX {
            let tables = open_tables(&location).await?;
            if !tables.contains_key(TELEMETRY) {
                return Err(AuditError::NoTable { location: settings.lake.location.clone() });
            }
            let versions: BTreeMap<String, Option<u64>> =
                tables.iter().map(|(name, table)| (name.clone(), table.version())).collect();
            let attempt = if before.as_ref() == Some(&versions) {
                // Then something in them is wrong.
                for table in tables.values() {
                    table.check_commits().await?;
                }
                Attempt::Still
            } else if number == ATTEMPTS_MAX {
                Attempt::Last
            } else {
                Attempt::Early
            };
            before = Some(versions);
            if let Some(moment) = Self::of(&location, tables, settings, partitions, attempt).await?
            {
                return Ok(moment);
            }
        }
        let location = settings.lake.location.clone();
        Err(AuditError::Restless { location, attempts: ATTEMPTS_MAX })
    }

    /// `None`: a side table is ahead while the tables move; or, unless this is the last attempt, a partition has gone on and its
    /// state file is gone.
    pub(super) async fn of(
        location: &Location,
        tables: BTreeMap<String, TableReader>,
        settings: &Settings,
        partitions: &BTreeSet<TopicPartition>,
        attempt: Attempt,
    ) -> Result<Option<Self>, AuditError> {
        let states = StateFiles::open(location)?;
        let mut moment = Self {
            partitions: BTreeMap::new(),
            broken: Vec::new(),
            origins: Origins::default(),
            anomaly_dates: BTreeMap::new(),
            tables,
        };
        let mut files: BTreeMap<EpochId, FoundStateFile> = BTreeMap::new();
        let mut partitions = partitions.clone();
        partitions.extend(find_partitions(&states, settings).await?);
        for partition in partitions {
            let found = moment.transactions(&partition).await?;
            let Some(epoch) = found.telemetry else { continue };
            let is_ahead = found.side_tables.values().any(|side| *side > epoch);
            if is_ahead && attempt != Attempt::Still {
                return Ok(None);
            }
            if let Err(why) =
                moment.add(&partition, &found, epoch, (&states, &mut files), settings).await?
            {
                if attempt != Attempt::Last && has_gone_on(location, &partition, epoch).await? {
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
        let PartitionEpoch { next_offset, state, rows: mut pending, is_hub, .. } = last;
        let next_offset = if is_hub { position(next_offset.0, 0) } else { next_offset.0 };
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
                SideTable::Alerts => pending.alerts.clear(),
                SideTable::Outcomes => pending.outcomes.clear(),
                SideTable::Waveforms => pending.waveforms.clear(),
            }
        }
        self.put(partition, (next_offset, is_hub), &state, pending, settings);
        Ok(Ok(()))
    }

    fn put(
        &mut self,
        partition: &TopicPartition,
        (next_offset, is_hub): (i64, bool),
        state: &PartitionState,
        pending: PendingRows,
        settings: &Settings,
    ) {
        let core = settings.core();
        let newest = |time: EventTime| time.micros().saturating_add(core.allowed_lateness.get());
        let holder = Arc::new(partition.clone());
        let mut has_sensors = false;
        for (sensor, time) in state.sensor_watermarks(&core) {
            has_sensors = true;
            let holder = (Arc::clone(&holder), newest(time));
            self.origins.add(GroupBy::Sensor, sensor.as_str(), holder);
        }
        for (machine, time) in state.machine_watermarks(&core) {
            let holder = (Arc::clone(&holder), newest(time));
            self.origins.add(GroupBy::Machine, machine.as_str(), holder);
        }
        let entry = PartitionMoment {
            next_offset,
            is_hub,
            accounting: state.accounting(),
            rules: state.rules().map(|(rule, since)| (rule.clone(), since.micros())).collect(),
            judged_after: state
                .rules()
                .zip(state.judged_after())
                .map(|((rule, _), after)| (rule.name.clone(), after.micros()))
                .collect(),
            has_readings_behind: state.figures().unmatched.behind_machine > 0,
            has_sensors,
            pending,
        };
        self.partitions.insert(partition.clone(), entry);
    }

    pub(super) fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.partitions.values().flat_map(|one| one.rules.iter().map(|(rule, _)| rule))
    }

    /// Where a partition stands among those that are broken.
    pub(super) fn place_of_broken(&self, partition: &TopicPartition) -> Option<usize> {
        self.broken.iter().position(|(broken, _)| broken == partition)
    }

    /// Why windows of a broken partition are left out. `place`: where it stands, if that is known.
    pub(super) fn tell_broken(&self, place: Option<usize>) -> String {
        let place = place.or((self.broken.len() == 1).then_some(0));
        match place.and_then(|place| self.broken.get(place)) {
            Some((partition, why)) => {
                format!("the state of its partition cannot be read ({partition}: {why})")
            }
            None => format!(
                "the state of its partition cannot be read (one of {} such partitions)",
                self.broken.len()
            ),
        }
    }

    /// Why the row of a window says nothing of the readings that count by the rules in force: a partition that has heard its sensor or
    /// machine in the window or later may have written it by another rule. Nothing is asked of `own`, which counts the window.
    pub(super) fn excuse(
        &self,
        (name, group, start): &WindowKey,
        by: GroupBy,
        own: Option<&TopicPartition>,
    ) -> Option<&'static str> {
        let holders = self.origins.of(by, group);
        if holders.is_empty() && own.is_none() {
            return self.excuse_unheard(name, *start);
        }
        let others =
            holders.iter().filter(|(holder, newest)| Some(&**holder) != own && start <= newest);
        let mut states = others.filter_map(|(holder, _)| self.partitions.get(&**holder));
        states.find_map(|state| state.excuse(name, *start))
    }

    /// The same where no partition has ever heard it: there is a reason if all that had readings have one.
    fn excuse_unheard(&self, name: &str, start: i64) -> Option<&'static str> {
        if !self.all_rules().any(|rule| rule.name == name) {
            return Some(NOT_IN_FORCE);
        }
        let mut first = None;
        for state in self.partitions.values().filter(|state| state.has_sensors) {
            let excuse = state.excuse(name, start)?;
            first = first.or(Some(excuse));
        }
        first
    }

    /// Newest rows of the windows that begin from `from` to before `through`.
    pub(super) async fn anomalies(&self, from: i64, through: i64) -> Result<Anomalies, AuditError> {
        let mut found = Anomalies::default();
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

pub(crate) const ANOMALY_COLUMNS: [&str; 10] = [
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
    /// Takes rows whose windows begin at a time that is wanted.
    pub(crate) fn take(&mut self, batch: &RecordBatch, is_wanted: impl Fn(i64) -> bool) {
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
            let sensor = text("sensor_id");
            let group = sensor.or(text("machine_id")).unwrap_or_default();
            let number = |name| row.doubles(name).map_or(f64::NAN, |column| column.value(at));
            // Tables of an older version have no such column: there every row is an anomaly by its rule.
            let flags = row.flags("is_anomaly").filter(|column| column.is_valid(at));
            let found = FoundRow {
                by: if sensor.is_some() { GroupBy::Sensor } else { GroupBy::Machine },
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
        by: if row.sensor_id.is_some() { GroupBy::Sensor } else { GroupBy::Machine },
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
            if let Err(error) = table.load().await {
                // If it is a commit, the error does not say which.
                table.check_commits().await?;
                return Err(error.into());
            }
            table.check_newest_commit().await?;
            tables.insert(name.to_owned(), table);
        }
    }
    Ok(tables)
}
