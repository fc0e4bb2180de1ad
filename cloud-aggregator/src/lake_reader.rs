//! Reads tables without writing anything, while others write them.
//!
//! Only the columns asked for are fetched, a row group at a time. A column that a file does not have (an older version wrote
//! it) is absent from its batches; partition columns stand in [`DataFile::partition`] and in no file.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltalake::arrow::array::{
    Array, ArrayRef, AsArray as _, BinaryArray, BooleanArray, Float64Array, Int32Array, Int64Array,
    StringArray,
};
use deltalake::arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use deltalake::arrow::record_batch::RecordBatch;
use deltalake::kernel::Action;
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::{LogStoreRef, get_actions, object_store::ObjectStore};
use deltalake::parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use deltalake::parquet::arrow::{ProjectionMask, async_reader};
use deltalake::parquet::errors::ParquetError;
use deltalake::{DeltaTable, DeltaTableError};
use serde::de::IgnoredAny;
use tracing::info;

use crate::sink::delta::{LakeError, Location};

/// Folder of a table's commits and log checkpoints.
const LOG: &str = "_delta_log";
/// Commits that are read to find a damaged one, the newest first.
const COMMITS_CHECKED_MAX: usize = 1_000;

/// A Parquet file of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is, below the table.
    pub path: Path,
    /// Its size.
    pub bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub modified_ms: i64,
    /// Values of the partition columns.
    pub partition: BTreeMap<String, Option<String>>,
}

impl DataFile {
    /// Value of the partition column `date`, as `2026-03-01`; empty if there is none.
    #[must_use]
    pub fn date(&self) -> &str {
        self.partition.get("date").and_then(Option::as_deref).unwrap_or("")
    }
}

/// A table to be read.
#[derive(Debug)]
pub struct TableReader {
    name: String,
    table: DeltaTable,
    log_store: LogStoreRef,
    store: Arc<dyn ObjectStore>,
}

impl TableReader {
    /// Finds a table; `None` if it is not there (yet).
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn find(location: &Location, name: &str) -> Result<Option<Self>, LakeError> {
        if location.local(name).is_some_and(|folder| !folder.join("_delta_log").is_dir()) {
            return Ok(None);
        }
        let table = location.store(name)?;
        let is_there = table.verify_deltatable_existence().await;
        if !is_there.map_err(|source| table_error(name, source))? {
            return Ok(None);
        }
        let log_store = table.log_store();
        let store = log_store.object_store(None);
        Ok(Some(Self { name: name.to_owned(), table, log_store, store }))
    }

    /// Name of the table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the newest version. Gives its number.
    ///
    /// # Errors
    /// The storage refuses, or the log is damaged.
    pub async fn load(&mut self) -> Result<u64, LakeError> {
        if let Err(error) = self.table.load().await {
            // The commits that follow the version loaded before may be deleted; a checkpoint has what was in them.
            info!(
                table = self.name.as_str(),
                error = crate::causes::describe(&error),
                "reading the table anew"
            );
            let mut table = DeltaTable::new(self.log_store.clone());
            table.load().await.map_err(|source| table_error(&self.name, source))?;
            self.table = table;
        }
        Ok(self.table.version().unwrap_or(0))
    }

    /// The version that was loaded.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.table.version()
    }

    /// Reads the commit of the version that was loaded once more: an empty one is loaded as if nothing were in it.
    ///
    /// # Errors
    /// A commit is damaged, or the storage refuses.
    pub async fn check_newest_commit(&self) -> Result<(), LakeError> {
        let Some(version) = self.table.version() else { return Ok(()) };
        if self.damage(version).await?.is_none() {
            return Ok(());
        }
        // A log checkpoint may have what was in it.
        self.check_commits().await
    }

    /// Reads the commits behind the last log checkpoint once more. Names the newest that is damaged.
    ///
    /// # Errors
    /// One is, or the storage refuses.
    pub async fn check_commits(&self) -> Result<(), LakeError> {
        let listed = self.store.list_with_delimiter(Some(&Path::from(LOG))).await;
        let listed = listed
            .map_err(|source| table_error(&self.name, DeltaTableError::ObjectStore { source }))?;
        let names = listed.objects.iter().filter_map(|object| object.location.filename());
        for version in commits_behind_checkpoint(names) {
            if let Some(damage) = self.damage(version).await? {
                let text = format!(
                    "commit {LOG}/{version:020}.json {damage}: restore it from a backup of the lake"
                );
                return Err(LakeError::Rows { table: self.name.clone(), text });
            }
        }
        Ok(())
    }

    async fn damage(&self, version: u64) -> Result<Option<String>, LakeError> {
        let entry = self.log_store.read_commit_entry(version).await;
        let entry = entry.map_err(|source| table_error(&self.name, source))?;
        Ok(entry.as_deref().and_then(damage_of))
    }

    /// Files of the version that was loaded.
    ///
    /// # Errors
    /// Nothing was loaded.
    pub fn files(&self) -> Result<Vec<DataFile>, LakeError> {
        let state = self.table.snapshot().map_err(|source| table_error(&self.name, source))?;
        let files = state.log_data();
        let files = files.iter().map(|file| DataFile {
            path: file.object_store_path(),
            bytes: u64::try_from(file.size()).unwrap_or(0),
            modified_ms: file.modification_time(),
            partition: file.partition_values_map().into_iter().collect(),
        });
        Ok(files.collect())
    }

    /// Version of the last `txn` under an application id, as of the version that was loaded.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn transaction(&self, app_id: &str) -> Result<Option<i64>, LakeError> {
        let failed = |source| table_error(&self.name, source);
        let state = self.table.snapshot().map_err(failed)?;
        state.transaction_version(self.log_store.as_ref(), app_id).await.map_err(failed)
    }

    /// Number of the newest version, if `version` is the newest that is known; `None` if its entry is not in the log any more.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn newest_version(&self, version: u64) -> Result<Option<u64>, LakeError> {
        match self.log_store.get_latest_version(version).await {
            Ok(newest) => Ok(Some(newest)),
            Err(DeltaTableError::InvalidVersion(_)) => Ok(None),
            Err(source) => Err(table_error(&self.name, source)),
        }
    }

    /// Files with new rows that one commit added; `None` if its entry is not in the log any more.
    ///
    /// # Errors
    /// The storage refuses, or the entry is damaged.
    pub async fn added_by(&self, version: u64) -> Result<Option<Vec<DataFile>>, LakeError> {
        let failed = |source| table_error(&self.name, source);
        let entry = self.log_store.read_commit_entry(version).await.map_err(failed)?;
        let Some(entry) = entry else { return Ok(None) };
        let mut files = Vec::new();
        for action in get_actions(version, &entry).map_err(failed)? {
            // Compaction adds files without new rows.
            if let Action::Add(add) = action
                && add.data_change
            {
                files.push(DataFile {
                    path: Path::parse(&add.path).unwrap_or_else(|_| Path::from(add.path.as_str())),
                    bytes: u64::try_from(add.size).unwrap_or(0),
                    modified_ms: add.modification_time,
                    partition: add.partition_values.into_iter().collect(),
                });
            }
        }
        Ok(Some(files))
    }

    /// Gives the rows of a file to `each`, in batches of some thousands.
    ///
    /// # Errors
    /// The storage refuses, the file is damaged or was vacuumed meanwhile, or `each` fails.
    pub async fn read(
        &self,
        file: &DataFile,
        columns: &[&str],
        mut each: impl FnMut(&RecordBatch) -> Result<(), LakeError>,
    ) -> Result<(), LakeError> {
        let failed = |source| self.file_error(file, source);
        #[expect(
            deprecated,
            reason = "its successor is a reader of one's own, which would do the same"
        )]
        let reader = async_reader::ParquetObjectReader::new(self.store.clone(), file.path.clone())
            .with_file_size(file.bytes);
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(failed)?;
        let names = builder.schema().fields().iter().map(|field| field.name().as_str());
        let wanted: Vec<usize> = names
            .enumerate()
            .filter(|(_, name)| columns.contains(name))
            .map(|(place, _)| place)
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let mut stream = builder.with_projection(mask).build().map_err(failed)?;
        while let Some(group) = stream.next_row_group().await.map_err(failed)? {
            for batch in group {
                let batch =
                    batch.map_err(|source| failed(ParquetError::External(Box::new(source))))?;
                each(&batch)?;
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn file_error(&self, file: &DataFile, source: ParquetError) -> LakeError {
        let table = format!("{}, file {}", self.name, file.path);
        LakeError::Table { table, source: Box::new(DeltaTableError::Parquet { source }) }
    }
}

fn table_error(table: &str, source: DeltaTableError) -> LakeError {
    LakeError::Table { table: table.to_owned(), source: Box::new(source) }
}

/// Versions of the commits that the last log checkpoint does not have, the newest first, by the names of the log's files.
fn commits_behind_checkpoint<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u64> {
    let mut commits = Vec::new();
    let mut checkpoint = None;
    for name in names {
        let Some((number, kind)) = name.split_once('.') else { continue };
        let Some(version) = number.parse::<u64>().ok().filter(|_| number.len() == 20) else {
            continue;
        };
        if kind == "json" {
            commits.push(version);
        } else if kind.starts_with("checkpoint") {
            checkpoint = checkpoint.max(Some(version));
        }
    }
    commits.retain(|version| Some(*version) > checkpoint);
    commits.sort_unstable_by_key(|version| std::cmp::Reverse(*version));
    commits.truncate(COMMITS_CHECKED_MAX);
    commits
}

/// What is wrong with the bytes of a commit: it is a JSON object for each action, and there is at least one.
fn damage_of(entry: &[u8]) -> Option<String> {
    let actions = serde_json::Deserializer::from_slice(entry);
    let mut actions = actions.into_iter::<BTreeMap<String, IgnoredAny>>().peekable();
    if actions.peek().is_none() {
        return Some("is empty".to_owned());
    }
    let error = actions.find_map(Result::err)?;
    Some(format!("cannot be read: {error}"))
}

/// Columns of a batch by name and type; a column that is not there, or has another type, has no values.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a>(pub &'a RecordBatch);

impl<'a> Row<'a> {
    fn column(self, name: &str) -> Option<&'a ArrayRef> {
        self.0.column_by_name(name)
    }

    /// A column of texts.
    #[must_use]
    pub fn texts(self, name: &str) -> Option<&'a StringArray> {
        self.column(name)?.as_string_opt::<i32>()
    }

    /// A column of whole numbers.
    #[must_use]
    pub fn longs(self, name: &str) -> Option<&'a Int64Array> {
        self.column(name)?.as_primitive_opt::<Int64Type>()
    }

    /// A column of small whole numbers.
    #[must_use]
    pub fn integers(self, name: &str) -> Option<&'a Int32Array> {
        self.column(name)?.as_primitive_opt::<Int32Type>()
    }

    /// A column of numbers.
    #[must_use]
    pub fn doubles(self, name: &str) -> Option<&'a Float64Array> {
        self.column(name)?.as_primitive_opt::<Float64Type>()
    }

    /// A column of bytes.
    #[must_use]
    pub fn bytes(self, name: &str) -> Option<&'a BinaryArray> {
        self.column(name)?.as_binary_opt::<i32>()
    }

    /// A column of answers to yes or no.
    #[must_use]
    pub fn flags(self, name: &str) -> Option<&'a BooleanArray> {
        self.column(name)?.as_boolean_opt()
    }

    /// A column of moments, in microseconds since 1970.
    #[must_use]
    pub fn times(
        self,
        name: &str,
    ) -> Option<&'a deltalake::arrow::array::TimestampMicrosecondArray> {
        self.column(name)?.as_primitive_opt::<TimestampMicrosecondType>()
    }
}

/// The text in a row, if there is one.
#[must_use]
pub fn text_at(column: Option<&StringArray>, row: usize) -> Option<&str> {
    column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

/// The whole number in a row, if there is one.
#[must_use]
pub fn long_at(column: Option<&Int64Array>, row: usize) -> Option<i64> {
    column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_that_are_empty_cut_off_or_garbage_are_damaged() {
        let check = |entry: &str, expected: Option<&str>| {
            let found = damage_of(entry.as_bytes());
            let is_expected = match (&found, expected) {
                (Some(found), Some(expected)) => found.contains(expected),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(is_expected, "{entry:?}: {found:?}, not {expected:?}");
        };
        let whole = "{\"commitInfo\":{\"a\":[1]}}\n{\"add\":{\"path\":\"b\"}}";
        check(whole, None);
        check(&format!("{whole}\n"), None);
        check("", Some("is empty"));
        check(" \n\n", Some("is empty"));
        check(&whole[..whole.len() - 4], Some("line 2"));
        check(&format!("{whole}\nnone"), Some("line 3"));
        check("\0\0\0\0", Some("cannot be read"));
        check("7\n", Some("cannot be read"));
    }

    #[test]
    fn commits_that_a_checkpoint_has_are_not_read_any_more() {
        let name = |version: u64, kind: &str| format!("{version:020}.{kind}");
        let names = [
            "_last_checkpoint".to_owned(),
            name(3, "json"),
            name(4, "json"),
            name(4, "checkpoint.parquet"),
            name(5, "json"),
            name(6, "json"),
            "tmp.json".to_owned(),
        ];
        let behind = |names: &[String]| commits_behind_checkpoint(names.iter().map(String::as_str));
        assert_eq!(behind(&names), [6, 5]);
        assert_eq!(behind(&names[..3]), [4, 3]);
        let many: Vec<String> = (0..2_000).map(|version| name(version, "json")).collect();
        assert_eq!((behind(&many).len(), behind(&many)[0]), (COMMITS_CHECKED_MAX, 1_999));
    }
}
