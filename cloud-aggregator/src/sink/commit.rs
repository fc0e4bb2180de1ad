//! The epoch protocol over the tables: state file, `telemetry`, side tables; and its roll-forward after a crash.
//!
//! The commit on `telemetry` decides. An error anywhere leaves the lake in a state that [`Lake::recover`] understands,
//! so callers drop what they hold and recover; they never retry a step.
//!
//! A commit runs in a task of its own while rows of the next epoch are encoded; one at a time, because step 2 of an epoch must wait for
//! step 3 of the one before.

mod side;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aggregator_core::checkpoint::{
    Corruption, EpochFile, EpochId, FoundFile, FoundTransactions, OwedTo, PartitionEpoch,
    PendingRows, RecordMark, Recovery, SideTable, TopicPartition, is_obsolete, resolve,
    restore_state,
};
use aggregator_core::gaps::SavedWatch;
use aggregator_core::rows::Offset;
use aggregator_core::{AlertBook, AlertEvent, AnomalyRow, Micros, PartitionState, ProcessingTime};
use deltalake::arrow::array::RecordBatch;
use deltalake::writer::{DeltaWriter as _, RecordBatchWriter};
use futures_util::future::join_all;
use metrics::counter;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, info, warn};

use super::delta::{LakeError, Location, Table};
use super::rows;
use super::state_file::{FoundStateFile, StateFiles};
use crate::causes::describe;
use crate::config;
use crate::telemetry::names;

/// Questions to the tables that run at the same time.
const QUESTIONS_MAX: usize = 16;

/// So long instances begin a lake together.
const BEGINNING: Duration = Duration::from_secs(600);

/// Rows of side tables by partition.
type PartitionRows<'a> = Vec<(&'a TopicPartition, &'a PendingRows)>;

/// What one epoch commits beside the encoded rows of `telemetry`.
#[derive(Debug)]
pub struct EpochCommit {
    /// Its name.
    pub epoch: EpochId,
    /// Rows of `telemetry` that are not encoded yet.
    pub readings: Option<RecordBatch>,
    /// The bytes of its state file.
    pub file: Vec<u8>,
    /// By partition: the files that hold the rest of its state.
    pub files: BTreeMap<TopicPartition, Vec<EpochId>>,
    /// Rows of the side tables; every partition of the epoch has an entry.
    pub rows: BTreeMap<TopicPartition, PendingRows>,
    /// Windows of rules in output mode `complete`: what `current_windows` is to hold of these partitions.
    pub current: Vec<(TopicPartition, AnomalyRow)>,
}

/// How a partition goes on.
#[derive(Debug)]
pub enum Recovered {
    /// Never seen.
    Fresh,
    /// With this, after all rows of its last epoch are in their tables.
    Resumed(Box<Resumption>),
    /// Not at all, until a person has acted.
    Corrupt(Corruption),
}

/// What the last epoch of a partition left.
#[derive(Debug)]
pub struct Resumption {
    /// That epoch.
    pub epoch: EpochId,
    /// Where to read on.
    pub next_offset: Offset,
    /// The record before it, if one was read.
    pub last_record: Option<RecordMark>,
    /// The state behind that offset.
    pub state: PartitionState,
    /// Changes of alerts that were not delivered.
    pub alerts: Vec<AlertEvent>,
    /// To whom they are owed.
    pub owed_to: OwedTo,
    /// The alerts that are open.
    pub book: AlertBook,
    /// The watch over the devices' records, if it went with the partition.
    pub watch: Option<Box<SavedWatch>>,
    /// Whether its messages hold several records.
    pub is_hub: bool,
}

/// Tables that are opened at a start, and the state files.
const TABLES_OPENED: u32 = SideTable::ALL.len() as u32 + 2;

/// The tables and the state files, and the rows on their way there.
#[derive(Debug)]
pub struct Lake {
    keeper: Keeper,
    /// For new writers, whoever has the tables.
    telemetry: Table,
    writer: RecordBatchWriter,
    /// Rows encoded and not committed.
    rows_written: u64,
    file_bytes_max: u64,
    operation_timeout: Duration,
}

/// What came of a commit.
pub type Committed = (EpochId, Result<(), LakeError>);

/// Who has the tables.
#[derive(Debug)]
enum Keeper {
    /// Nobody else.
    Here(Box<Tables>),
    /// A commit that runs.
    Commit(JoinHandle<(Box<Tables>, Committed)>),
    /// A commit that has panicked.
    Gone,
}

/// All tables and the state files.
#[derive(Debug)]
struct Tables {
    telemetry: Table,
    side_tables: BTreeMap<SideTable, Table>,
    /// `current_windows`, if it is there or a rule needs it.
    current: Option<Table>,
    location: Location,
    state_files: StateFiles,
    /// Of the state files that this process wrote or read: their partitions, with the files that hold the rest of their states.
    known_files: BTreeMap<EpochId, BTreeMap<TopicPartition, Vec<EpochId>>>,
    /// State files that nothing refers to, and since when that is known.
    obsolete_since: BTreeMap<EpochId, Instant>,
    file_bytes_max: u64,
    operation_timeout: Duration,
    state_grace: Duration,
}

impl Lake {
    /// Opens or creates everything.
    ///
    /// # Errors
    /// The storage refuses or does not answer in time.
    pub async fn open(settings: &config::Lake) -> Result<Self, LakeError> {
        Self::open_at(settings, Location::open(settings)?).await
    }

    /// The same, also if it was handed over to another program.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_to_take_over(settings: &config::Lake) -> Result<Self, LakeError> {
        Self::open_at(settings, Location::open(settings)?.taking_over()).await
    }

    async fn open_at(settings: &config::Lake, location: Location) -> Result<Self, LakeError> {
        // One table after the other, each as long as an operation may take.
        let limit = settings.operation_timeout * TABLES_OPENED;
        let tables = within(limit, Tables::open(settings, location)).await?;
        if let Some(commits) = settings.checkpoint_commits {
            tables.sum_logs_up(commits).await;
        }
        let telemetry = tables.telemetry.clone();
        Ok(Self {
            writer: telemetry.writer(settings.file_bytes_max)?,
            telemetry,
            keeper: Keeper::Here(Box::new(tables)),
            rows_written: 0,
            file_bytes_max: settings.file_bytes_max,
            operation_timeout: settings.operation_timeout,
        })
    }

    /// Columns of `telemetry`.
    #[must_use]
    pub fn telemetry_schema(&self) -> deltalake::arrow::datatypes::SchemaRef {
        self.telemetry.schema().clone()
    }

    /// Drops rows that were written and whose commit has not begun.
    ///
    /// # Errors
    /// The table uses features that the writer does not know.
    pub fn discard(&mut self) -> Result<(), LakeError> {
        self.writer.reset();
        self.rows_written = 0;
        self.writer = self.telemetry.writer(self.file_bytes_max)?;
        Ok(())
    }

    /// Encodes rows of `telemetry`; they become visible with the epoch's commit.
    ///
    /// # Errors
    /// The storage refuses; everything since the last commit is dropped.
    pub async fn write(&mut self, batch: RecordBatch) -> Result<(), LakeError> {
        let limit = self.operation_timeout;
        self.rows_written += batch.num_rows() as u64;
        within(limit, async {
            self.writer.write(batch).await.map_err(|source| LakeError::Table {
                table: rows::TELEMETRY.to_owned(),
                source: Box::new(source),
            })
        })
        .await
    }

    /// Begins to commit an epoch with the rows written so far: all of it, or nothing that a recovery would not put right.
    /// A commit that still runs is awaited first, see [`Self::is_committing`].
    ///
    /// # Errors
    /// The table uses features that the writer does not know, or a commit before has failed.
    pub async fn begin_commit(&mut self, commit: EpochCommit) -> Result<(), LakeError> {
        if let Some((_, result)) = self.settle().await {
            result?;
        }
        let next = self.telemetry.writer(self.file_bytes_max)?;
        let Keeper::Here(mut tables) = std::mem::replace(&mut self.keeper, Keeper::Gone) else {
            return Err(LakeError::CommitGone);
        };
        let writer = std::mem::replace(&mut self.writer, next);
        let telemetry_rows = std::mem::take(&mut self.rows_written);
        self.keeper = Keeper::Commit(tokio::spawn(async move {
            let epoch = commit.epoch;
            let result = tables.commit(writer, telemetry_rows, commit).await;
            (tables, (epoch, result))
        }));
        Ok(())
    }

    /// Whether a commit runs.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        matches!(self.keeper, Keeper::Commit(_))
    }

    /// Waits for the commit that runs; for ever if none does. After an error: recover before anything else. Cancelling loses
    /// nothing.
    pub async fn committed(&mut self) -> Committed {
        match self.settle().await {
            Some(committed) => committed,
            None => std::future::pending().await,
        }
    }

    /// Waits for the commit that runs, if one does.
    pub async fn settle(&mut self) -> Option<Committed> {
        let Keeper::Commit(running) = &mut self.keeper else { return None };
        match running.await {
            Ok((tables, committed)) => {
                self.keeper = Keeper::Here(tables);
                Some(committed)
            }
            Err(error) => {
                self.keeper = Keeper::Gone;
                match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is ending.
                    Err(_) => None,
                }
            }
        }
    }

    fn tables(&mut self) -> Result<&mut Tables, LakeError> {
        match &mut self.keeper {
            Keeper::Here(tables) => Ok(tables),
            Keeper::Commit(_) | Keeper::Gone => Err(LakeError::CommitGone),
        }
    }

    /// Reads what others have committed, before partitions are recovered. No commit may run.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn refresh(&mut self) -> Result<(), LakeError> {
        self.tables()?.refresh().await
    }

    /// Whether partitions in service still stand at the epochs that this instance knows. To be asked after each
    /// [`Self::refresh`] in the middle of the work: a commit is refused only for what has moved since. No commit may run.
    ///
    /// # Errors
    /// One has moved, or the storage refuses.
    pub async fn check_ownership(
        &mut self,
        known: impl Iterator<Item = (&TopicPartition, Option<EpochId>)>,
    ) -> Result<(), LakeError> {
        let limit = self.operation_timeout;
        let telemetry = &self.tables()?.telemetry;
        for (partition, epoch) in known {
            within(limit, telemetry.check_ownership(partition, epoch)).await?;
        }
        Ok(())
    }

    /// Finds out how partitions go on, and puts the rows of half-finished epochs into their tables. No commit may run.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn recover(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Recovered>, LakeError> {
        self.tables()?.recover(partitions).await
    }

    /// Whether epochs were committed here before the instances that start now: a partition without any was added since. Instances that
    /// begin a lake together must not take one another's first commits for a past. No commit may run.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn is_begun(&mut self, now: ProcessingTime) -> Result<bool, LakeError> {
        let limit = self.operation_timeout;
        let tables = self.tables()?;
        let created_at = tables.telemetry.created_at()?;
        if now < created_at.saturating_add(Micros::from(BEGINNING)) {
            return Ok(false);
        }
        Ok(!within(limit, tables.state_files.list()).await?.is_empty())
    }

    /// Deletes state files that no partition refers to any more and that were found so for the grace time. No commit may run.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn clean_state_files(&mut self, now: Instant) -> Result<usize, LakeError> {
        self.tables()?.clean_state_files(now).await
    }
}

impl Tables {
    async fn open(settings: &config::Lake, location: Location) -> Result<Self, LakeError> {
        let columns = rows::telemetry_columns();
        let partitions = rows::reading_partitions();
        let telemetry = Table::open(&location, rows::TELEMETRY, columns, partitions).await?;
        let mut side_tables = BTreeMap::new();
        for side in SideTable::ALL {
            let (columns, partitions) = rows::side_columns(side);
            let table = Table::open(&location, side.as_str(), columns, partitions).await?;
            side_tables.insert(side, table);
        }
        let current = if location.has_table(rows::CURRENT_WINDOWS).await? {
            Some(open_current(&location).await?)
        } else {
            None
        };
        Ok(Self {
            telemetry,
            side_tables,
            current,
            state_files: StateFiles::open(&location)?,
            location,
            known_files: BTreeMap::new(),
            obsolete_since: BTreeMap::new(),
            file_bytes_max: settings.file_bytes_max,
            operation_timeout: settings.operation_timeout,
            state_grace: settings.state_grace,
        })
    }

    /// A process that keeps ending before maintenance is due must not read a longer log at each start: every partition's questions
    /// to every table read it back to the last checkpoint. All tables at once: it is a start that waits.
    async fn sum_logs_up(&self, commits: u64) {
        let all = self.side_tables.values().chain(&self.current).chain([&self.telemetry]);
        join_all(all.map(|table| async {
            match within(self.operation_timeout, table.sum_up(commits)).await {
                Ok(true) => info!(table = table.name(), "summed the log up"),
                Ok(false) => {}
                // The commits are there; it only takes longer to read them.
                Err(error) => warn!(error = describe(&error), "the log is not summed up"),
            }
        }))
        .await;
    }

    async fn commit(
        &mut self,
        mut writer: RecordBatchWriter,
        telemetry_rows: u64,
        commit: EpochCommit,
    ) -> Result<(), LakeError> {
        let EpochCommit { epoch, readings, file, files, rows, current } = commit;
        let limit = self.operation_timeout;
        within(limit, self.state_files.write(epoch, file)).await?;
        fault_point("state-written");
        let partitions: Vec<TopicPartition> = rows.keys().cloned().collect();
        self.known_files.insert(epoch, files);
        let telemetry_rows =
            telemetry_rows + readings.as_ref().map_or(0, |batch| batch.num_rows() as u64);
        within(limit, async {
            let failed = |source| LakeError::Table {
                table: rows::TELEMETRY.to_owned(),
                source: Box::new(source),
            };
            if let Some(batch) = readings {
                writer.write(batch).await.map_err(failed)?;
            }
            let adds = writer.flush().await.map_err(failed)?;
            fault_point("telemetry-written");
            self.telemetry.append(adds, &partitions, epoch).await
        })
        .await?;
        counter!(names::ROWS_TOTAL, "table" => rows::TELEMETRY).increment(telemetry_rows);
        fault_point("telemetry-committed");
        for side in SideTable::ALL {
            let with_rows: PartitionRows<'_> =
                rows.iter().filter(|(_, rows)| rows.count(side) > 0).collect();
            if !with_rows.is_empty() {
                within(limit, self.commit_side(side, &with_rows, epoch)).await?;
                fault_point(side.as_str());
            }
        }
        within(limit, self.replace_current(&current, &partitions, epoch)).await
    }

    /// Puts the windows of rules in output mode `complete` in place of those that the epoch before has left there.
    async fn replace_current(
        &mut self,
        windows: &[(TopicPartition, AnomalyRow)],
        partitions: &[TopicPartition],
        epoch: EpochId,
    ) -> Result<(), LakeError> {
        if self.current.is_none() && windows.is_empty() {
            return Ok(());
        }
        let table = match &mut self.current {
            Some(table) => table,
            None => self.current.insert(open_current(&self.location).await?),
        };
        table.refresh().await?;
        // Of a partition that another instance has meanwhile, the windows are its.
        let mut ours = Vec::with_capacity(partitions.len());
        for partition in partitions {
            if table.epoch_of(partition).await?.is_none_or(|newest| newest <= epoch) {
                ours.push(partition.clone());
            }
        }
        let failed = |source| LakeError::Table {
            table: rows::CURRENT_WINDOWS.to_owned(),
            source: Box::new(source),
        };
        let with_owners: Vec<_> = windows
            .iter()
            .filter(|(owner, _)| ours.contains(owner))
            .map(|(owner, row)| (owner, row))
            .collect();
        let batch = rows::current_batch(table.schema(), &with_owners).map_err(|source| {
            LakeError::Columns { table: rows::CURRENT_WINDOWS.to_owned(), source }
        })?;
        let mut writer = table.writer(self.file_bytes_max)?;
        if batch.num_rows() > 0 {
            writer.write(batch).await.map_err(failed)?;
        }
        let adds = writer.flush().await.map_err(failed)?;
        table.replace(adds, rows::OWNER, &ours, epoch).await
    }

    async fn refresh(&mut self) -> Result<(), LakeError> {
        let limit = self.operation_timeout;
        // `telemetry` last, as each epoch commits it first: read the other way round, an epoch that another instance commits
        // meanwhile would look like rows of a side table without their `telemetry`.
        within(limit, async {
            for table in self.side_tables.values_mut() {
                table.refresh().await?;
            }
            self.telemetry.refresh().await
        })
        .await
    }

    async fn recover(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Recovered>, LakeError> {
        let mut files: BTreeMap<EpochId, FoundStateFile> = BTreeMap::new();
        let mut recovered = Vec::with_capacity(partitions.len());
        let transactions = self.transactions(partitions).await?;
        for (partition, transactions) in partitions.iter().zip(&transactions) {
            let found = self.recover_one(partition, transactions, &mut files).await?;
            if let Recovered::Corrupt(Corruption::FileMissing { .. }) = &found {
                self.check_whether_moved(partition).await?;
            }
            recovered.push(found);
        }
        Ok(recovered)
    }

    /// A state file may be gone because another instance has gone on and cleaned up since the last refresh.
    async fn check_whether_moved(&self, partition: &TopicPartition) -> Result<(), LakeError> {
        let limit = self.operation_timeout;
        let known = within(limit, self.telemetry.epoch_of(partition)).await?;
        // A table of its own: what the others' commits run into must not move.
        let mut newest = self.telemetry.clone();
        within(limit, newest.refresh()).await?;
        within(limit, newest.check_ownership(partition, known)).await
    }

    /// Reads a state file if it is not among `files` yet.
    async fn read_file<'a>(
        &mut self,
        epoch: EpochId,
        files: &'a mut BTreeMap<EpochId, FoundStateFile>,
    ) -> Result<&'a mut FoundStateFile, LakeError> {
        match files.entry(epoch) {
            Entry::Occupied(read) => Ok(read.into_mut()),
            Entry::Vacant(place) => {
                let found = within(self.operation_timeout, self.state_files.read(epoch)).await?;
                if let FoundStateFile::Present(file) = &found {
                    self.known_files.insert(epoch, files_by_partition(file));
                }
                Ok(place.insert(found))
            }
        }
    }

    /// What the tables' `txn` actions say of each partition. Each answer is a read of the log, so many are asked at once.
    async fn transactions(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<FoundTransactions>, LakeError> {
        let limit = self.operation_timeout;
        let mut all: Vec<FoundTransactions> = Vec::new();
        all.resize_with(partitions.len(), || FoundTransactions {
            telemetry: None,
            side_tables: BTreeMap::new(),
        });
        let tables = self.side_tables.iter().map(|(side, table)| (Some(*side), table));
        let tables: Vec<_> = tables.chain([(None, &self.telemetry)]).collect();
        let mut questions = partitions.iter().enumerate().flat_map(|(place, partition)| {
            tables.iter().map(move |(side, table)| (place, *side, *table, partition))
        });
        let mut running = JoinSet::new();
        loop {
            while running.len() < QUESTIONS_MAX {
                let Some((place, side, table, partition)) = questions.next() else { break };
                let (table, partition) = (table.clone(), partition.clone());
                running.spawn(async move {
                    (place, side, within(limit, table.epoch_of(&partition)).await)
                });
            }
            let Some(answer) = running.join_next().await else { return Ok(all) };
            let (place, side, epoch) = match answer {
                Ok((place, side, epoch)) => (place, side, epoch?),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is ending.
                    Err(_) => return Err(LakeError::CommitGone),
                },
            };
            match (side, epoch) {
                (None, epoch) => all[place].telemetry = epoch,
                (Some(side), Some(epoch)) => drop(all[place].side_tables.insert(side, epoch)),
                (Some(_), None) => {}
            }
        }
    }

    async fn recover_one(
        &mut self,
        partition: &TopicPartition,
        transactions: &FoundTransactions,
        files: &mut BTreeMap<EpochId, FoundStateFile>,
    ) -> Result<Recovered, LakeError> {
        let limit = self.operation_timeout;
        let found_file = match transactions.telemetry {
            Some(epoch) => self.read_file(epoch, files).await?,
            None => &mut FoundStateFile::Absent,
        };
        let file = match found_file {
            FoundStateFile::Absent => FoundFile::Absent,
            FoundStateFile::Unreadable(detail) => FoundFile::Unreadable(detail),
            FoundStateFile::OtherFormat(found) => FoundFile::OtherFormat(*found),
            FoundStateFile::Present(file) => FoundFile::Present(file),
        };
        match resolve(partition, transactions, file) {
            Recovery::Fresh => Ok(Recovered::Fresh),
            Recovery::Corrupt(corruption) => Ok(Recovered::Corrupt(corruption)),
            Recovery::Resume { epoch, roll_forward, .. } => {
                // Each partition stands in the file once, and is taken out of it once.
                let FoundStateFile::Present(file) = found_file else {
                    return Ok(Recovered::Corrupt(Corruption::FileMissing { epoch }));
                };
                let Some(last) = file.partitions.remove(partition) else {
                    let partition = partition.clone();
                    return Ok(Recovered::Corrupt(Corruption::PartitionMissing {
                        epoch,
                        partition,
                    }));
                };
                for side in roll_forward {
                    info!(%partition, %epoch, table = side.as_str(), "rolling an epoch forward");
                    within(limit, self.commit_side(side, &[(partition, &last.rows)], epoch))
                        .await?;
                }
                self.resume(partition, epoch, last, files).await
            }
        }
    }

    /// Puts the state together from the files that hold it.
    async fn resume(
        &mut self,
        partition: &TopicPartition,
        epoch: EpochId,
        last: PartitionEpoch,
        files: &mut BTreeMap<EpochId, FoundStateFile>,
    ) -> Result<Recovered, LakeError> {
        let mut before = Vec::with_capacity(last.state.files().len());
        for epoch in last.state.files().to_vec() {
            let partition = partition.clone();
            let corruption = match self.read_file(epoch, files).await? {
                FoundStateFile::Present(file) => match file.partitions.remove(&partition) {
                    Some(found) => {
                        before.push((epoch, found.state));
                        continue;
                    }
                    None => Corruption::PartitionMissing { epoch, partition },
                },
                FoundStateFile::Absent => Corruption::FileMissing { epoch },
                FoundStateFile::Unreadable(detail) => {
                    Corruption::FileUnreadable { epoch, detail: detail.clone() }
                }
                FoundStateFile::OtherFormat(found) => {
                    Corruption::FileFormat { epoch, found: *found }
                }
            };
            return Ok(Recovered::Corrupt(corruption));
        }
        Ok(match restore_state(epoch, last.state, before) {
            Ok(state) => Recovered::Resumed(Box::new(Resumption {
                epoch,
                next_offset: last.next_offset,
                last_record: last.last_record,
                state,
                alerts: last.alerts,
                owed_to: last.owed_to,
                book: last.book,
                watch: last.watch,
                is_hub: last.is_hub,
            })),
            Err(corruption) => Recovered::Corrupt(corruption),
        })
    }

    async fn commit_side(
        &mut self,
        side: SideTable,
        with_rows: &[(&TopicPartition, &PendingRows)],
        epoch: EpochId,
    ) -> Result<(), LakeError> {
        let table = self.side_tables.get_mut(&side).expect("every side table is opened");
        let batch = side::side_batch(side, table, with_rows)?;
        counter!(names::ROWS_TOTAL, "table" => side.as_str()).increment(batch.num_rows() as u64);
        let failed =
            |source| LakeError::Table { table: side.as_str().to_owned(), source: Box::new(source) };
        let mut writer = table.writer(self.file_bytes_max)?;
        writer.write(batch).await.map_err(failed)?;
        let adds = writer.flush().await.map_err(failed)?;
        let partitions: Vec<TopicPartition> =
            with_rows.iter().map(|(partition, _)| (*partition).clone()).collect();
        table.append(adds, &partitions, epoch).await
    }

    async fn clean_state_files(&mut self, now: Instant) -> Result<usize, LakeError> {
        let limit = self.operation_timeout;
        // First: what is written from here on is not looked at.
        let listed = within(limit, self.state_files.list()).await?;
        let listed: BTreeSet<EpochId> = listed.into_iter().map(|(epoch, _)| epoch).collect();
        self.known_files.retain(|epoch, _| listed.contains(epoch));
        self.obsolete_since.retain(|epoch, _| listed.contains(epoch));
        // Of others' commits, too. The table of the commits is left as it is: it must run into them.
        let mut telemetry = self.telemetry.clone();
        within(limit, telemetry.refresh()).await?;
        let mut files = BTreeMap::new();
        let mut deleted = 0;
        for epoch in listed {
            let Some(partitions) = self.partitions_of(epoch).await? else { continue };
            for partition in partitions.keys() {
                if !files.contains_key(partition) {
                    let of_partition = self.files_of(partition, &telemetry).await?;
                    files.insert(partition.clone(), of_partition);
                }
            }
            if !is_obsolete(epoch, partitions.keys(), &files) {
                continue;
            }
            let since = *self.obsolete_since.entry(epoch).or_insert(now);
            if now.saturating_duration_since(since) >= self.state_grace {
                within(limit, self.state_files.delete(epoch)).await?;
                self.known_files.remove(&epoch);
                self.obsolete_since.remove(&epoch);
                deleted += 1;
            }
        }
        debug!(deleted, "state files cleaned");
        Ok(deleted)
    }

    /// The files that hold a partition's state; none if that is unknown.
    async fn files_of(
        &mut self,
        partition: &TopicPartition,
        telemetry: &Table,
    ) -> Result<BTreeSet<EpochId>, LakeError> {
        let current = within(self.operation_timeout, telemetry.epoch_of(partition)).await?;
        let Some(epoch) = current else { return Ok(BTreeSet::new()) };
        let known = self.partitions_of(epoch).await?.and_then(|mut known| known.remove(partition));
        Ok(known.map_or_else(BTreeSet::new, |before| before.into_iter().chain([epoch]).collect()))
    }

    async fn partitions_of(
        &mut self,
        epoch: EpochId,
    ) -> Result<Option<BTreeMap<TopicPartition, Vec<EpochId>>>, LakeError> {
        if let Some(partitions) = self.known_files.get(&epoch) {
            return Ok(Some(partitions.clone()));
        }
        match within(self.operation_timeout, self.state_files.read(epoch)).await? {
            FoundStateFile::Present(file) => {
                let partitions = files_by_partition(&file);
                self.known_files.insert(epoch, partitions.clone());
                Ok(Some(partitions))
            }
            FoundStateFile::Absent => Ok(None),
            FoundStateFile::Unreadable(text) => {
                warn!(%epoch, text, "state file cannot be read and is kept");
                Ok(None)
            }
            FoundStateFile::OtherFormat(format) => {
                warn!(%epoch, format, "state file of another version is kept");
                Ok(None)
            }
        }
    }
}

fn files_by_partition(file: &EpochFile) -> BTreeMap<TopicPartition, Vec<EpochId>> {
    let files = |(partition, epoch): (&TopicPartition, &PartitionEpoch)| {
        (partition.clone(), epoch.state.files().to_vec())
    };
    file.partitions.iter().map(files).collect()
}

async fn open_current(location: &Location) -> Result<Table, LakeError> {
    let partitions = vec![rows::OWNER.to_owned()];
    Table::open(location, rows::CURRENT_WINDOWS, rows::current_columns(), partitions).await
}

pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, LakeError>>,
) -> Result<T, LakeError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(LakeError::Timeout { seconds: limit.as_secs() }),
    }
}

/// Ends the process at the n-th passage of a step, when `AGGREGATOR_FAULT=<step>:<n>` says so; with `:stop` behind it the process
/// stands still there until it gets SIGCONT. For tests: not there in releases.
#[cfg(debug_assertions)]
pub(super) fn fault_point(step: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("AGGREGATOR_FAULT") else { return };
    let mut parts = wanted.split(':');
    if parts.next() != Some(step) {
        return;
    }
    let count = parts.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    if PASSED.fetch_add(1, Ordering::Relaxed) + 1 != count {
        return;
    }
    let own = std::process::id().to_string();
    match parts.next() {
        Some("stop") => drop(std::process::Command::new("kill").args(["-STOP", &own]).status()),
        Some(_) | None => std::process::abort(),
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn fault_point(_step: &str) {}

#[cfg(test)]
mod tests;
