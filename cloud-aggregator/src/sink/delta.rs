//! Delta tables: open or create, append with `txn` actions.
//!
//! Reader version 1, writer version 2. In a local folder everything that a commit names is synced before the commit,
//! and the commit itself before it counts as done: what was committed survives a power cut.

mod credentials;
mod error;
mod refusal;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aggregator_core::ProcessingTime;
use aggregator_core::checkpoint::{EpochId, OwnershipLost, TopicPartition};
use deltalake::arrow::datatypes::{Schema, SchemaRef};
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow as _;
use deltalake::kernel::transaction::{
    CommitBuilder, CommitConflictError, CommitProperties, TableReference, TransactionError,
};
use deltalake::kernel::{Action, Add, StructField, Transaction};
use deltalake::logstore::{LogStoreRef, ObjectStoreRef};
use deltalake::operations::create::CreateBuilder;
use deltalake::parquet::basic::Compression;
use deltalake::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use deltalake::parquet::schema::types::ColumnPath;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::writer::RecordBatchWriter;
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError, ensure_table_uri};
use tracing::{info, warn};

use self::credentials::{FileCredential, add_host_options, open_store};
pub use self::error::LakeError;
use super::folder_store::FolderStore;
use super::log_checkpoint::sum_up;
use super::rows;
use crate::config::{self, Secret, read_secret};
use crate::hand_over::mark::check_not_handed_over;
use crate::lake_copy::mark::{check_finished, check_not_moved};

/// How often missing columns are tried to be added.
const COLUMN_ATTEMPTS_MAX: u32 = 3;
/// How often rows are committed again after maintenance was faster.
const APPEND_ATTEMPTS_MAX: u32 = 5;

/// Where the lake is and how to get at it.
#[derive(Clone, Debug)]
pub struct Location {
    /// Folder on this machine, if it is one.
    pub folder: Option<PathBuf>,
    url: String,
    /// Storage of Azure whose secret is in a file and may be replaced.
    azure: Option<ObjectStoreRef>,
    options: BTreeMap<String, String>,
    secrets: BTreeMap<String, Secret>,
    /// Old log files, and log checkpoints but at a start, are left to maintenance.
    is_maintained: bool,
    is_read_only: bool,
    /// Also what was handed over to another program may be written.
    takes_over: bool,
}

impl Location {
    /// Makes the folder of a local lake and proves that it can be written.
    ///
    /// # Errors
    /// The folder cannot be made or written, or a secret's file cannot be read.
    pub fn open(settings: &config::Lake) -> Result<Self, LakeError> {
        Self::new(settings, false)
    }

    /// A lake that is there, to be read only: nothing is made.
    ///
    /// # Errors
    /// The folder is not there, or a secret's file cannot be read.
    pub fn existing(settings: &config::Lake) -> Result<Self, LakeError> {
        Self::new(settings, true)
    }

    fn new(settings: &config::Lake, is_read_only: bool) -> Result<Self, LakeError> {
        let mut secrets = BTreeMap::new();
        let mut replaceable = None;
        let is_replaceable = settings.location.contains("://")
            && !settings.location.starts_with("file://")
            && !credentials::is_emulator(&settings.storage_options);
        for (option, file) in &settings.storage_option_files {
            if is_replaceable && let Some(found) = FileCredential::open(option, file)? {
                replaceable = Some(found);
                continue;
            }
            let secret = read_secret(file)
                .map_err(|text| LakeError::OptionFile { option: option.clone(), text })?;
            secrets.insert(option.clone(), secret);
        }
        let plain = settings.location.strip_prefix("file://").unwrap_or(&settings.location);
        let folder = match plain {
            _ if plain.contains("://") => None,
            _ if is_read_only => Some(existing_folder(plain)?),
            _ => Some(writable_folder(plain)?),
        };
        let url = match &folder {
            Some(folder) => folder.to_string_lossy().into_owned(),
            None => settings.location.trim_end_matches('/').to_owned(),
        };
        let azure = replaceable
            .map(|credential| open_store(&url, &settings.storage_options, credential))
            .transpose()
            .map_err(|source| table_error(&url, source))?;
        Ok(Self {
            folder,
            url,
            azure,
            options: settings.storage_options.clone(),
            secrets,
            is_read_only,
            is_maintained: settings.checkpoint_commits.is_some(),
            takes_over: false,
        })
    }

    /// The same, for who hands the lake over or takes it back: the mark that refuses it to others is none.
    #[must_use]
    pub fn taking_over(self) -> Self {
        Self { takes_over: true, ..self }
    }

    /// Folder of a table or of the state files on this machine.
    #[must_use]
    pub fn local(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(name))
    }

    /// Whether a table is there.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn has_table(&self, name: &str) -> Result<bool, LakeError> {
        if self.local(name).is_some_and(|folder| !folder.exists()) {
            return Ok(false);
        }
        let table = self.store(name)?;
        table.verify_deltatable_existence().await.map_err(|source| table_error(name, source))
    }

    /// Store below the lake, made if it is a folder.
    pub(crate) fn store(&self, name: &str) -> Result<DeltaTable, LakeError> {
        if let Some(folder) = self.local(name).filter(|_| !self.is_read_only) {
            std::fs::create_dir_all(&folder)
                .map_err(|source| LakeError::Folder { path: folder, source })?;
        }
        let failed = |source| table_error(name, source);
        let url = ensure_table_uri(format!("{}/{name}", self.url)).map_err(failed)?;
        let mut options: HashMap<String, String> =
            self.options.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let secrets = self.secrets.iter();
        options.extend(secrets.map(|(key, value)| (key.clone(), value.expose().to_owned())));
        let mut builder = DeltaTableBuilder::from_url(url.clone()).map_err(failed)?;
        if self.folder.is_some() {
            builder = builder.with_storage_backend(Arc::new(FolderStore::default()), url);
        } else if let Some(azure) = &self.azure {
            builder = builder.with_storage_backend(Arc::clone(azure), url);
        } else {
            add_host_options(&mut options, |name| std::env::var(name).ok());
        }
        builder.with_storage_options(options).build().map_err(failed)
    }
}

fn writable_folder(location: &str) -> Result<PathBuf, LakeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LakeError::Folder { path, source }
    };
    let folder = std::path::absolute(location).map_err(failed(Path::new(location)))?;
    std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let probe = folder.join(format!(".writable-{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(&probe, b"probe").map_err(failed(&folder))?;
    std::fs::remove_file(&probe).map_err(failed(&folder))?;
    Ok(folder)
}

fn existing_folder(location: &str) -> Result<PathBuf, LakeError> {
    let path = Path::new(location);
    path.canonicalize().map_err(|source| LakeError::Unreadable { path: path.to_owned(), source })
}

pub(super) fn table_error(table: &str, source: DeltaTableError) -> LakeError {
    LakeError::Table { table: table.to_owned(), source: Box::new(source) }
}

fn commit_error(table: &str, source: DeltaTableError) -> LakeError {
    if let DeltaTableError::Transaction {
        source: TransactionError::CommitConflict(CommitConflictError::ConcurrentTransaction),
    } = &source
    {
        return LakeError::Overtaken { table: table.to_owned() };
    }
    table_error(table, source)
}

/// Which statistics files of a table get; nothing for one of which we do not know.
pub(super) fn statistics_property(table: &str) -> Option<(String, Option<String>)> {
    let columns = rows::statistics_columns(table);
    (!columns.is_empty()).then(|| (rows::STATISTICS_PROPERTY.to_owned(), Some(columns.join(","))))
}

/// Another instance may do the same at the same time: then the table is read again.
async fn add_missing_columns(
    mut table: DeltaTable,
    name: &'static str,
    columns: &[StructField],
) -> Result<DeltaTable, LakeError> {
    let failed = |source| table_error(name, source);
    for attempt in 1..=COLUMN_ATTEMPTS_MAX {
        let snapshot = table.snapshot().map_err(failed)?;
        let schema = snapshot.metadata().parse_schema().map_err(|error| failed(error.into()))?;
        let is_missing = |column: &&StructField| schema.field(column.name()).is_none();
        let missing: Vec<StructField> = columns.iter().filter(is_missing).cloned().collect();
        if missing.is_empty() {
            return Ok(table);
        }
        let names: Vec<&str> = missing.iter().map(|column| column.name().as_str()).collect();
        match table.clone().add_columns().with_fields(missing.clone()).await {
            Ok(_) => info!(table = name, columns = names.join(", "), "columns added"),
            Err(error) if attempt == COLUMN_ATTEMPTS_MAX => return Err(failed(error)),
            Err(error) => info!(table = name, %error, "columns were not added here"),
        }
        table.load().await.map_err(failed)?;
    }
    Ok(table)
}

/// One table.
#[derive(Clone)]
pub struct Table {
    name: &'static str,
    table: DeltaTable,
    log_store: LogStoreRef,
    schema: SchemaRef,
    partitions: Vec<String>,
    folder: Option<PathBuf>,
    /// Somebody else writes log checkpoints and shortens the log.
    is_maintained: bool,
    takes_over: bool,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Table").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Table {
    /// Opens a table, or creates it. One that an older version made gets the columns that it lacks.
    ///
    /// # Errors
    /// The storage refuses, or what is there is no Delta table.
    pub async fn open(
        location: &Location,
        name: &'static str,
        columns: Vec<StructField>,
        partitions: Vec<String>,
    ) -> Result<Self, LakeError> {
        let failed = |source| table_error(name, source);
        if name == rows::TELEMETRY {
            check_finished(location).await?;
        }
        let mut table = location.store(name)?;
        let mut not_created = None;
        if !table.verify_deltatable_existence().await.map_err(failed)? {
            let created = CreateBuilder::new()
                .with_log_store(table.log_store())
                .with_table_name(name)
                .with_columns(columns.clone())
                .with_partition_columns(partitions.clone())
                .with_configuration(statistics_property(name))
                .with_save_mode(SaveMode::Ignore)
                .await;
            match created {
                Ok(_) => {
                    sync_commit(location, name, 0).await?;
                    info!(table = name, "created a table");
                }
                // Another instance may have been faster; loading tells.
                Err(error) => {
                    info!(table = name, %error, "table was not created here");
                    not_created = Some(error);
                }
            }
        }
        // That nothing is there says less than why it was not made.
        table.load().await.map_err(|source| failed(not_created.take().unwrap_or(source)))?;
        check_ours(&table, location.takes_over)?;
        let before = table.version();
        let table = add_missing_columns(table, name, &columns).await?;
        if let Some(version) = table.version().filter(|version| Some(*version) != before) {
            sync_commit(location, name, version).await?;
        }
        let snapshot = table.snapshot().map_err(failed)?;
        let kernel_schema =
            snapshot.metadata().parse_schema().map_err(|error| failed(error.into()))?;
        let schema: Schema = (&kernel_schema)
            .try_into_arrow()
            .map_err(|source| LakeError::Columns { table: name.to_owned(), source })?;
        Ok(Self {
            name,
            log_store: table.log_store(),
            table,
            schema: Arc::new(schema),
            partitions,
            folder: location.local(name),
            is_maintained: location.is_maintained,
            takes_over: location.takes_over,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Columns as Arrow types.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// When it was made; 1970 if nobody has written that down.
    ///
    /// # Errors
    /// The table is not loaded.
    pub fn created_at(&self) -> Result<ProcessingTime, LakeError> {
        let snapshot = self.table.snapshot().map_err(|source| table_error(self.name, source))?;
        let millis = snapshot.metadata().created_time().unwrap_or(0);
        Ok(ProcessingTime::from_micros(millis.saturating_mul(1000)))
    }

    /// A writer of Parquet files of this table.
    ///
    /// # Errors
    /// The table uses features that the writer does not know.
    pub fn writer(&self, file_bytes_max: u64) -> Result<RecordBatchWriter, LakeError> {
        RecordBatchWriter::for_table(&self.table)
            .map(|writer| {
                writer
                    .with_target_file_size(file_bytes_max)
                    .with_writer_properties(file_properties().build())
            })
            .map_err(|source| table_error(self.name, source))
    }

    /// Reads what others have committed.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn refresh(&mut self) -> Result<(), LakeError> {
        let Err(error) = self.table.update_state().await else {
            return self.check_ours();
        };
        // Maintenance may have deleted the commits on which the snapshot stands; a checkpoint has what was in them.
        info!(table = self.name, error = crate::causes::describe(&error), "reading the table anew");
        let mut table = DeltaTable::new(self.log_store.clone());
        table.load().await.map_err(|source| table_error(self.name, source))?;
        self.table = table;
        self.check_ours()
    }

    fn check_ours(&self) -> Result<(), LakeError> {
        check_ours(&self.table, self.takes_over)
    }

    /// Writes a log checkpoint if at least `commits` have come since the last one; whether it did.
    ///
    /// # Errors
    /// The storage refuses. The table is as good as before.
    pub async fn sum_up(&self, commits: u64) -> Result<bool, LakeError> {
        sum_up(self.name, &self.table, self.folder.as_deref(), commits).await
    }

    /// Epoch of the last commit for a partition, as of the last refresh or commit.
    ///
    /// # Errors
    /// The storage refuses, or the `txn` is none of ours.
    pub async fn epoch_of(&self, partition: &TopicPartition) -> Result<Option<EpochId>, LakeError> {
        let failed = |source| table_error(self.name, source);
        let version = self
            .table
            .snapshot()
            .map_err(failed)?
            .transaction_version(self.log_store.as_ref(), partition.app_id())
            .await
            .map_err(failed)?;
        version
            .map(EpochId::try_from)
            .transpose()
            .map_err(|source| LakeError::Epoch { table: self.name.to_owned(), source })
    }

    /// Appends files in one commit that carries a `txn` for each partition.
    ///
    /// Refused when one of the application ids has moved since the last refresh or commit: then another instance owns
    /// the partition. After any error the commit may be there all the same; [`Self::refresh`] and [`Self::epoch_of`]
    /// tell.
    ///
    /// # Errors
    /// The storage refuses, or a partition has moved.
    pub async fn append(
        &mut self,
        adds: Vec<Add>,
        partitions: &[TopicPartition],
        epoch: EpochId,
    ) -> Result<(), LakeError> {
        self.commit(adds, Vec::new(), partitions, epoch).await
    }

    /// Puts files in place of those whose partition `column` names one of the Kafka partitions.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn replace(
        &mut self,
        adds: Vec<Add>,
        column: &str,
        partitions: &[TopicPartition],
        epoch: EpochId,
    ) -> Result<(), LakeError> {
        let owners: BTreeSet<String> = partitions.iter().map(ToString::to_string).collect();
        let snapshot = self.table.snapshot().map_err(|source| table_error(self.name, source))?;
        let log = snapshot.log_data();
        let files = log.iter().filter(|file| {
            let owner = file.partition_values_map().remove(column).flatten();
            owner.is_some_and(|owner| owners.contains(&owner))
        });
        let removes: Vec<Action> =
            files.map(|file| Action::Remove(file.remove_action(true))).collect();
        if adds.is_empty() && removes.is_empty() {
            return Ok(());
        }
        self.commit(adds, removes, partitions, epoch).await
    }

    async fn commit(
        &mut self,
        adds: Vec<Add>,
        removes: Vec<Action>,
        partitions: &[TopicPartition],
        epoch: EpochId,
    ) -> Result<(), LakeError> {
        self.sync_files(adds.iter().map(|add| add.path.clone()).collect()).await?;
        let actions: Vec<Action> = adds.into_iter().map(Action::Add).chain(removes).collect();
        let mut attempt = 1;
        loop {
            self.check_ours()?;
            match self.try_commit(&actions, partitions, epoch).await {
                Ok(false) => return Ok(()),
                Ok(true) => break,
                Err(error) if attempt < APPEND_ATTEMPTS_MAX && is_of_maintenance(&error) => {
                    if !self.still_stands(partitions).await? {
                        return Err(commit_error(self.name, error));
                    }
                    info!(table = self.name, %error, "maintenance was faster, committing again");
                    attempt += 1;
                }
                Err(error) => return Err(commit_error(self.name, error)),
            }
        }
        // The new snapshot may hold another owner's commit, which the next one of ours would no longer run into.
        for partition in partitions {
            self.check_ownership(partition, Some(epoch)).await?;
        }
        Ok(())
    }

    /// Refreshes; whether the partitions' epochs and the columns are as before.
    async fn still_stands(&mut self, partitions: &[TopicPartition]) -> Result<bool, LakeError> {
        let failed = |source| table_error(self.name, source);
        let schema = self.table.snapshot().map_err(failed)?.schema();
        let mut before = Vec::with_capacity(partitions.len());
        for partition in partitions {
            before.push(self.epoch_of(partition).await?);
        }
        self.refresh().await?;
        for (partition, before) in partitions.iter().zip(before) {
            if self.epoch_of(partition).await? != before {
                return Ok(false);
            }
        }
        let failed = |source| table_error(self.name, source);
        Ok(self.table.snapshot().map_err(failed)?.schema() == schema)
    }

    /// Whether the table had to be read again after the commit.
    async fn try_commit(
        &mut self,
        actions: &[Action],
        partitions: &[TopicPartition],
        epoch: EpochId,
    ) -> Result<bool, DeltaTableError> {
        let transactions = partitions
            .iter()
            .map(|partition| Transaction::new(partition.app_id(), epoch.version()))
            .collect();
        let is_append = actions.iter().all(|action| matches!(action, Action::Add(_)));
        let mode = if is_append { SaveMode::Append } else { SaveMode::Overwrite };
        let partition_by = Some(self.partitions.clone());
        let operation = DeltaOperation::Write { mode, partition_by, predicate: None };
        let mut properties =
            CommitProperties::default().with_application_transactions(transactions);
        if self.is_maintained {
            properties =
                properties.with_create_checkpoint(false).with_cleanup_expired_logs(Some(false));
        }
        let snapshot: &dyn TableReference = self.table.snapshot()?;
        let committed = CommitBuilder::from(properties)
            .with_actions(actions.to_vec())
            .build(Some(snapshot), self.log_store.clone(), operation)
            .into_prepared_commit_future()
            .await?
            .await?;
        let version = committed.version;
        self.sync_files(vec![format!("_delta_log/{version:020}.json")])
            .await
            .map_err(|error| DeltaTableError::GenericError { source: Box::new(error) })?;
        // From here on the rows are in the table; a log checkpoint that fails is made later.
        match committed.await {
            Ok(finalized) => self.table.state = Some(finalized.snapshot()),
            Err(error) => {
                warn!(table = self.name, %error, "log checkpoint failed, the rows are committed");
                self.table.update_state().await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Rows by the statistics of the files.
    #[cfg(test)]
    pub(super) fn rows_by_statistics(&self) -> usize {
        let snapshot = self.table.snapshot().expect("loaded");
        snapshot.log_data().iter().filter_map(|file| file.num_records()).sum()
    }

    /// Whether the last commit for a partition, as of the last refresh, is the one that this instance knows.
    ///
    /// # Errors
    /// It is another one, or the storage refuses.
    pub async fn check_ownership(
        &self,
        partition: &TopicPartition,
        known: Option<EpochId>,
    ) -> Result<(), LakeError> {
        if self.epoch_of(partition).await? == known {
            return Ok(());
        }
        Err(OwnershipLost { partition: partition.clone() }.into())
    }

    async fn sync_files(&self, paths: Vec<String>) -> Result<(), LakeError> {
        match &self.folder {
            Some(folder) => sync_files(folder.clone(), paths).await,
            None => Ok(()),
        }
    }
}

/// Whether aggregators may write the table.
fn check_ours(table: &DeltaTable, takes_over: bool) -> Result<(), LakeError> {
    check_not_moved(table)?;
    if takes_over { Ok(()) } else { check_not_handed_over(table) }
}

/// How Parquet files are written. A dictionary of numbers that hardly ever come twice costs time and saves nothing.
pub(super) fn file_properties() -> WriterPropertiesBuilder {
    const MANY_VALUES: [&str; 3] = ["timestamp", "sequence", "source_offset"];
    let builder = WriterProperties::builder().set_compression(Compression::SNAPPY);
    MANY_VALUES.into_iter().fold(builder, |builder, column| {
        builder.set_column_dictionary_enabled(ColumnPath::from(column), false)
    })
}

/// Whether nothing was committed because maintenance has removed old dates or set table properties. Merged files are no
/// conflict.
fn is_of_maintenance(error: &DeltaTableError) -> bool {
    matches!(
        error,
        DeltaTableError::Transaction {
            source: TransactionError::CommitConflict(
                CommitConflictError::ConcurrentDeleteRead | CommitConflictError::MetadataChanged
            )
        }
    )
}

/// Syncs a commit that the library has made in a local folder.
async fn sync_commit(location: &Location, name: &str, version: u64) -> Result<(), LakeError> {
    match location.local(name) {
        Some(folder) => sync_files(folder, vec![format!("_delta_log/{version:020}.json")]).await,
        None => Ok(()),
    }
}

/// Syncs files below `root` and the folders on the way to them.
pub(crate) async fn sync_files(root: PathBuf, paths: Vec<String>) -> Result<(), LakeError> {
    let sync = move || {
        let mut folders = BTreeSet::from([root.clone()]);
        for path in paths {
            let file = root.join(path);
            sync_one(&file)?;
            let parents = file.ancestors().skip(1).take_while(|parent| parent.starts_with(&root));
            folders.extend(parents.map(Path::to_owned));
        }
        folders.iter().try_for_each(|folder| sync_one(folder))
    };
    match tokio::task::spawn_blocking(sync).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn sync_one(path: &Path) -> Result<(), LakeError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| LakeError::Folder { path: path.to_owned(), source })
}
