//! What is done to one table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aggregator_core::maintenance::{
    FileInfo, MergeLimits, first_day_kept, is_expired, is_settled, plan_merges,
};
use aggregator_core::{Micros, ProcessingTime};
use deltalake::arrow::datatypes::Schema;
use deltalake::arrow::record_batch::RecordBatch;
use deltalake::checkpoints::cleanup_expired_logs_for;
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow as _;
use deltalake::kernel::transaction::{
    CommitBuilder, CommitProperties, TableReference, TransactionError,
};
use deltalake::kernel::{Action, Add, LogicalFileView, Remove, Transaction};
use deltalake::logstore::LogStoreRef;
use deltalake::operations::vacuum::{Clock as VacuumClock, VacuumMode};
use deltalake::parquet::file::metadata::KeyValue;
use deltalake::protocol::DeltaOperation;
use deltalake::writer::record_batch::RecordBatchWriter;
use deltalake::writer::{DeltaWriter as _, WriteMode};
use deltalake::{DeltaTable, DeltaTableError};
use tracing::info;

use super::merge::{InputFile, Layout, Merge, SORTED_BY};
use super::{MergeError, TableReport};
use crate::config;
use crate::lake_copy::mark::{check_finished, check_not_moved};
use crate::sink::commit::{fault_point, within};
use crate::sink::delta::{
    LakeError, Location, file_properties, statistics_property, sync_files, table_error,
};
use crate::sink::log_checkpoint::sum_up;

mod rewrite;

pub(super) use rewrite::Rewritten;

/// How often a commit is tried while others commit.
const COMMIT_ATTEMPTS_MAX: u32 = 50;
const MICROS_PER_MILLISECOND: i64 = 1000;
/// So many operation timeouts may a vacuum take.
const VACUUM_PATIENCE: u32 = 60;
/// Every Delta reader that there is can read these.
const READER_VERSION: i32 = 1;
const WRITER_VERSION: i32 = 2;

/// Files of one partition that become one.
pub(super) type Group = Vec<LogicalFileView>;

/// What became of a merge.
pub(super) enum Merged {
    /// Committed.
    Done(MergedFiles),
    /// Others have changed or removed the files; nothing was committed.
    GivenUp,
    /// This file does not fit into memory together with another one.
    TooLarge(String),
    /// This file cannot be read or is not what the table says.
    Damaged { path: String, error: LakeError },
}

/// A merge in numbers.
pub(super) struct MergedFiles {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) written_files: u64,
    pub(super) written_bytes: u64,
    pub(super) rows: u64,
}

/// Files that go, and what comes in their place.
struct Exchange<'a> {
    removes: &'a [Remove],
    adds: &'a [Add],
    transaction: Option<Transaction>,
}

/// One table while it is maintained.
pub(super) struct Upkeep {
    name: &'static str,
    table: DeltaTable,
    log_store: LogStoreRef,
    folder: Option<PathBuf>,
    layout: Layout,
    operation_timeout: Duration,
}

impl Upkeep {
    /// `None`: there is no such table yet.
    pub(super) async fn open(
        location: &Location,
        name: &'static str,
        keys: &'static [&'static str],
        operation_timeout: Duration,
    ) -> Result<Option<Self>, LakeError> {
        let failed = |source| table_error(name, source);
        // Asked first: nothing is made where no table is.
        if !within(operation_timeout, location.has_table(name)).await? {
            return Ok(None);
        }
        // A commit that is not the source's would end the copy.
        within(operation_timeout, check_finished(location)).await?;
        let mut table = location.store(name)?;
        within(operation_timeout, async { table.load().await.map_err(failed) }).await?;
        check_not_moved(&table)?;
        let layout = layout(name, &table, keys)?;
        Ok(Some(Self {
            name,
            log_store: table.log_store(),
            table,
            folder: location.local(name),
            layout,
            operation_timeout,
        }))
    }

    /// Reads what was committed since.
    pub(super) async fn refresh(&mut self) -> Result<(), LakeError> {
        let failed = self.failed();
        let update = async { self.table.update_state().await.map_err(failed) };
        within(self.operation_timeout, update).await?;
        self.layout = layout(self.name, &self.table, self.layout.keys)?;
        Ok(())
    }

    /// Whether its files may become others.
    pub(super) fn is_merged(&self) -> bool {
        !self.layout.keys.is_empty()
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    fn failed(&self) -> impl Fn(DeltaTableError) -> LakeError + use<> {
        let name = self.name;
        move |source| table_error(name, source)
    }

    pub(super) fn measure(&self, report: &mut TableReport) -> Result<(), LakeError> {
        let snapshot = self.table.snapshot().map_err(self.failed())?;
        report.version = snapshot.version();
        (report.files, report.bytes) = (0, 0);
        for file in snapshot.log_data().iter() {
            report.files += 1;
            report.bytes += file.size().unsigned_abs();
        }
        Ok(())
    }

    /// Tells others, too, how long the log and removed files are kept, and which statistics files get. Only when it changes: the commit makes others repeat
    /// what they are at.
    pub(super) async fn set_properties(
        &mut self,
        settings: &config::Maintenance,
    ) -> Result<(), LakeError> {
        let mut wanted = config::table_properties(settings, self.name);
        let snapshot = self.table.snapshot().map_err(self.failed())?;
        let present = snapshot.metadata().configuration();
        // Somebody may want others.
        if let Some((key, Some(columns))) = statistics_property(self.name)
            && !present.contains_key(&key)
        {
            wanted.insert(key, columns);
        }
        if wanted.iter().all(|(key, value)| present.get(key) == Some(value)) {
            return Ok(());
        }
        info!(table = self.name, ?wanted, "table properties are set");
        let set = self.table.clone().set_tbl_properties().with_properties(wanted);
        let failed = self.failed();
        let work = async { set.await.map_err(failed) };
        self.table = within(self.operation_timeout, work).await?;
        self.sync_newest_commit().await
    }

    /// Removes every file of dates that are older than the retention.
    pub(super) async fn expire(
        &mut self,
        now: ProcessingTime,
        retention: Duration,
    ) -> Result<u64, LakeError> {
        let Some(first_kept) = first_day_kept(now, Micros::from(retention)) else { return Ok(0) };
        let snapshot = self.table.snapshot().map_err(self.failed())?;
        let log = snapshot.log_data();
        let expired = log.iter().filter(|file| is_expired(date_of(file).as_deref(), first_kept));
        let removes: Vec<Remove> = expired.map(|file| remove(&file, true, now)).collect();
        let count = removes.len() as u64;
        if count == 0 {
            return Ok(0);
        }
        let predicate = Some(format!("date < '{first_kept}'"));
        let exchange = Exchange { removes: &removes, adds: &[], transaction: None };
        let committed = self.commit(&exchange, DeltaOperation::Delete { predicate }).await?;
        fault_point("expired");
        Ok(if committed { count } else { 0 })
    }

    pub(super) fn plan(
        &self,
        limits: &MergeLimits,
        now: ProcessingTime,
        settle: Micros,
        too_large: &BTreeSet<String>,
    ) -> Result<Vec<Group>, LakeError> {
        let snapshot = self.table.snapshot().map_err(self.failed())?;
        let mut partitions: BTreeMap<Vec<(String, Option<String>)>, Vec<LogicalFileView>> =
            BTreeMap::new();
        for file in snapshot.log_data().iter() {
            if file.deletion_vector_descriptor().is_some()
                || too_large.contains(file.path().as_ref())
            {
                continue;
            }
            let mut values: Vec<_> = file.partition_values_map().into_iter().collect();
            values.sort();
            partitions.entry(values).or_default().push(file);
        }
        let mut groups = Vec::new();
        for files in partitions.values() {
            let infos: Vec<FileInfo> = files.iter().map(file_info).collect();
            let date = files.first().and_then(date_of);
            let settled = is_settled(date.as_deref(), now, settle);
            for group in plan_merges(&infos, limits, settled) {
                groups.push(group.into_iter().map(|place| files[place].clone()).collect());
            }
        }
        Ok(groups)
    }

    /// Writes the rows of some files again, sorted, and commits the exchange.
    pub(super) async fn merge(
        &mut self,
        mut group: Group,
        settings: &config::Maintenance,
        now: ProcessingTime,
    ) -> Result<Merged, LakeError> {
        let inputs: Vec<InputFile> = group
            .iter()
            .map(|file| InputFile {
                path: file.object_store_path(),
                bytes: file.size().unsigned_abs(),
            })
            .collect();
        let store = self.log_store.object_store(None);
        let memory = settings.memory_bytes_max;
        let opened = Merge::open(&store, self.layout.clone(), &inputs, memory).await;
        let merge = match opened {
            Ok(merge) => merge,
            Err(source) => return self.damaged(source),
        };
        group.truncate(merge.inputs());
        if group.len() < 2 {
            return Ok(Merged::TooLarge(
                group.first().map_or_else(|| inputs[0].path.to_string(), |file| file.path().into()),
            ));
        }
        let (mut adds, rows) = match self.write(merge, &group[0], settings, Ok).await {
            Ok(written) => written,
            Err(LakeError::Merge { source, .. }) => return self.damaged(*source),
            Err(error) => return Err(error),
        };
        adds.iter_mut().for_each(|add| add.data_change = false);
        fault_point("merge-written");
        let expected: Option<usize> = group.iter().map(LogicalFileView::num_records).sum();
        self.check_rows(&adds, rows, expected)?;
        self.sync(adds.iter().map(|add| add.path.clone()).collect()).await?;
        let removes: Vec<Remove> = group.iter().map(|file| remove(file, false, now)).collect();
        let target_size = settings.target_file_bytes.cast_signed();
        let operation = DeltaOperation::Optimize { predicate: None, target_size };
        let exchange = Exchange { removes: &removes, adds: &adds, transaction: None };
        if !self.commit(&exchange, operation).await? {
            return Ok(Merged::GivenUp);
        }
        fault_point("merge-committed");
        Ok(Merged::Done(MergedFiles {
            files: group.len() as u64,
            bytes: group.iter().map(|file| file.size().unsigned_abs()).sum(),
            written_files: adds.len() as u64,
            written_bytes: adds.iter().map(|add| add.size.unsigned_abs()).sum(),
            rows,
        }))
    }

    /// A file that is damaged must not keep the others from being merged; a storage that does not answer is no damage.
    fn damaged(&self, source: MergeError) -> Result<Merged, LakeError> {
        let is_damage = source.is_damage();
        let path = source.path().to_owned();
        let error = LakeError::Merge { table: self.name.to_owned(), source: Box::new(source) };
        if is_damage { Ok(Merged::Damaged { path, error }) } else { Err(error) }
    }

    async fn write(
        &self,
        mut merge: Merge,
        like: &LogicalFileView,
        settings: &config::Maintenance,
        mut edit: impl FnMut(RecordBatch) -> Result<RecordBatch, LakeError>,
    ) -> Result<(Vec<Add>, u64), LakeError> {
        let failed = self.failed();
        let values = like.partition_values().ok_or_else(|| LakeError::Rows {
            table: self.name.to_owned(),
            text: format!("the partition of {} is unknown", like.path()),
        })?;
        let names = values.fields().iter().map(|field| field.name().clone());
        let values = names.zip(values.values().iter().cloned()).collect();
        let properties = file_properties()
            .set_max_row_group_row_count(Some(settings.row_group_rows))
            .set_key_value_metadata(Some(vec![KeyValue::new(
                SORTED_BY.to_owned(),
                self.layout.sorted_by(),
            )]))
            .build();
        // Twice the target: a sorted file that compresses worse than its sources must not leave a small one behind.
        let mut writer = RecordBatchWriter::for_table(&self.table)
            .map_err(&failed)?
            .with_target_file_size(settings.target_file_bytes.saturating_mul(2))
            .with_writer_properties(properties);
        let mut rows = 0;
        while let Some(batch) = merge.next().await.map_err(|source| self.merge_error(source))? {
            let batch = edit(batch)?;
            if batch.num_rows() == 0 {
                continue;
            }
            rows += batch.num_rows() as u64;
            let write = writer.write_partition(batch, &values, WriteMode::Default);
            within(self.operation_timeout, async { write.await.map_err(&failed) }).await?;
        }
        let flush = async { writer.flush().await.map_err(&failed) };
        Ok((within(self.operation_timeout, flush).await?, rows))
    }

    /// What is taken away must be what is put back.
    fn check_rows(
        &self,
        adds: &[Add],
        rows: u64,
        expected: Option<usize>,
    ) -> Result<(), LakeError> {
        let wrong = |text| LakeError::Rows { table: self.name.to_owned(), text };
        let mut written = 0;
        for add in adds {
            let stats = add.get_stats().ok().flatten();
            let stats = stats.ok_or_else(|| wrong(format!("{} has no statistics", add.path)))?;
            written += stats.num_records.unsigned_abs();
        }
        if written != rows || expected.is_some_and(|expected| expected as u64 != rows) {
            return Err(wrong(format!(
                "{rows} rows were read, {written} written, {expected:?} expected; nothing was committed"
            )));
        }
        Ok(())
    }

    /// Commits at exactly the version against which the files were checked; false: one of them is gone already.
    ///
    /// The library's own check of conflicts lets two merges of the same files pass: it looks at removals that change data only.
    async fn commit(
        &mut self,
        exchange: &Exchange<'_>,
        operation: DeltaOperation,
    ) -> Result<bool, LakeError> {
        let limit = self.operation_timeout;
        within(limit, self.commit_attempts(exchange, operation)).await
    }

    async fn commit_attempts(
        &mut self,
        exchange: &Exchange<'_>,
        operation: DeltaOperation,
    ) -> Result<bool, LakeError> {
        let Exchange { removes, adds, transaction } = exchange;
        let failed = self.failed();
        let wanted: BTreeSet<&str> = removes.iter().map(|remove| remove.path.as_str()).collect();
        let schema = self.table.snapshot().map_err(&failed)?.schema();
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            self.table.update_state().await.map_err(&failed)?;
            let snapshot = self.table.snapshot().map_err(&failed)?;
            let log = snapshot.log_data();
            let present = log.iter().filter(|file| wanted.contains(file.path().as_ref())).count();
            if present != wanted.len() || snapshot.schema() != schema {
                return Ok(false);
            }
            let actions = removes.iter().cloned().map(Action::Remove);
            let actions = actions.chain(adds.iter().cloned().map(Action::Add)).collect();
            let properties = CommitProperties::default()
                .with_application_transactions(transaction.iter().cloned().collect())
                .with_max_retries(0)
                .with_create_checkpoint(false)
                .with_cleanup_expired_logs(Some(false));
            let reference: &dyn TableReference = snapshot;
            let prepared = CommitBuilder::from(properties)
                .with_actions(actions)
                .build(Some(reference), self.log_store.clone(), operation.clone())
                .into_prepared_commit_future()
                .await
                .map_err(&failed)?;
            let committed = match prepared.await {
                Ok(committed) => committed,
                Err(DeltaTableError::Transaction {
                    source: TransactionError::MaxCommitAttempts(_),
                }) => continue,
                Err(error) => return Err(failed(error)),
            };
            let version = committed.version;
            self.sync(vec![format!("_delta_log/{version:020}.json")]).await?;
            match committed.await {
                Ok(finalized) => self.table.state = Some(finalized.snapshot()),
                Err(_) => self.table.update_state().await.map_err(&failed)?,
            }
            return Ok(true);
        }
        info!(table = self.name, "others commit too often, the next round tries again");
        Ok(false)
    }

    /// Sums the log up when so many commits have come since the last time.
    pub(super) async fn checkpoint(&mut self, commits: u64) -> Result<bool, LakeError> {
        let failed = self.failed();
        let limit = self.operation_timeout;
        within(limit, async {
            self.table.update_state().await.map_err(&failed)?;
            sum_up(self.name, &self.table, self.folder.as_deref(), commits).await
        })
        .await
    }

    /// Deletes commits and checkpoints that lie before a checkpoint and are older than the retention. `txn` actions live on in
    /// the checkpoints.
    pub(super) async fn shorten_log(
        &self,
        now: ProcessingTime,
        retention: Duration,
    ) -> Result<u64, LakeError> {
        let before = now.saturating_add(Micros::new(-Micros::from(retention).get()));
        let version = self.table.snapshot().map_err(self.failed())?.version();
        let cutoff = before.micros() / MICROS_PER_MILLISECOND;
        let work = cleanup_expired_logs_for(version, self.log_store.as_ref(), cutoff, None);
        let failed = self.failed();
        let deleted = within(self.operation_timeout, async { work.await.map_err(failed) }).await?;
        Ok(deleted as u64)
    }

    /// Deletes files that no commit in force names, and that were removed, or written and never committed, longer ago than the
    /// retention.
    pub(super) async fn vacuum(
        &mut self,
        now: ProcessingTime,
        retention: Duration,
    ) -> Result<u64, LakeError> {
        self.delete_files(VacuumMode::Full, now, retention).await
    }

    async fn delete_files(
        &mut self,
        mode: VacuumMode,
        now: ProcessingTime,
        retention: Duration,
    ) -> Result<u64, LakeError> {
        let properties = CommitProperties::default()
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false));
        let millis = Micros::from(retention).get() / MICROS_PER_MILLISECOND;
        self.refresh().await?;
        let vacuum = self
            .table
            .clone()
            .vacuum()
            .with_mode(mode)
            // The table's own shortest retention is for those who do not mean it.
            .with_enforce_retention_duration(!retention.is_zero())
            .with_retention_period(chrono::Duration::milliseconds(millis))
            .with_clock(Arc::new(FixedClock(now.micros() / MICROS_PER_MILLISECOND)))
            .with_commit_properties(properties);
        let failed = self.failed();
        let work = async { vacuum.await.map_err(failed) };
        // Each of many files is a request.
        let (table, done) = within(VACUUM_PATIENCE * self.operation_timeout, work).await?;
        self.table = table;
        self.sync_newest_commit().await?;
        Ok(done.files_deleted.len() as u64)
    }

    async fn sync_newest_commit(&self) -> Result<(), LakeError> {
        let version = self.table.snapshot().map_err(self.failed())?.version();
        self.sync(vec![format!("_delta_log/{version:020}.json")]).await
    }

    /// Where the files of the table are, below its folder.
    #[cfg(test)]
    pub(super) fn paths(&self) -> Vec<String> {
        let snapshot = self.table.snapshot().expect("it is loaded");
        snapshot.log_data().iter().map(|file| file.object_store_path().to_string()).collect()
    }

    fn merge_error(&self, source: MergeError) -> LakeError {
        LakeError::Merge { table: self.name.to_owned(), source: Box::new(source) }
    }

    async fn sync(&self, paths: Vec<String>) -> Result<(), LakeError> {
        match &self.folder {
            Some(folder) => sync_files(folder.clone(), paths).await,
            None => Ok(()),
        }
    }
}

/// The columns that files of the table hold.
fn layout(
    name: &'static str,
    table: &DeltaTable,
    keys: &'static [&'static str],
) -> Result<Layout, LakeError> {
    let failed = |source| table_error(name, source);
    let snapshot = table.snapshot().map_err(failed)?;
    let protocol = snapshot.protocol();
    let versions = (protocol.min_reader_version(), protocol.min_writer_version());
    if versions != (READER_VERSION, WRITER_VERSION) {
        return Err(LakeError::Protocol {
            table: name.to_owned(),
            reader: versions.0,
            writer: versions.1,
        });
    }
    let metadata = snapshot.metadata();
    let kernel_schema = metadata.parse_schema().map_err(|error| failed(error.into()))?;
    let schema: Schema = (&kernel_schema)
        .try_into_arrow()
        .map_err(|source| LakeError::Columns { table: name.to_owned(), source })?;
    let is_kept = |field: &&Arc<deltalake::arrow::datatypes::Field>| {
        !metadata.partition_columns().contains(field.name())
    };
    let fields: Vec<_> = schema.fields().iter().filter(is_kept).cloned().collect();
    Ok(Layout { schema: Arc::new(Schema::new(fields)), keys })
}

#[derive(Debug)]
struct FixedClock(i64);

impl VacuumClock for FixedClock {
    fn current_timestamp_millis(&self) -> i64 {
        self.0
    }
}

fn file_info(file: &LogicalFileView) -> FileInfo {
    FileInfo {
        path: file.path().into_owned(),
        bytes: file.size().unsigned_abs(),
        written_at: ProcessingTime::from_micros(
            file.modification_time().saturating_mul(MICROS_PER_MILLISECOND),
        ),
    }
}

fn date_of(file: &LogicalFileView) -> Option<String> {
    let mut values: HashMap<String, Option<String>> = file.partition_values_map();
    values.remove("date").flatten()
}

fn remove(file: &LogicalFileView, data_change: bool, now: ProcessingTime) -> Remove {
    let deletion_timestamp = Some(now.micros() / MICROS_PER_MILLISECOND);
    Remove { deletion_timestamp, ..file.remove_action(data_change) }
}
