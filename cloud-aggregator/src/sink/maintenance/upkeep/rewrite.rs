//! One file written again without some rows, and what is left of rows that are gone.

use std::time::Duration;

use aggregator_core::ProcessingTime;
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::record_batch::RecordBatch;
use deltalake::kernel::Transaction;
use deltalake::logstore::object_store::path::Path;
use deltalake::operations::vacuum::VacuumMode;
use deltalake::protocol::DeltaOperation;

use super::super::merge::{InputFile, Merge};
use super::{Exchange, Upkeep, remove};
use crate::config;
use crate::sink::commit::fault_point;
use crate::sink::delta::LakeError;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Rewritten {
    /// Another stands in its place, or none.
    Done,
    /// It is not in the table any more: others have merged or removed it.
    Gone,
}

impl Upkeep {
    /// Writes the rows that `edit` leaves of a file into another and commits the exchange, with a `txn` of that name.
    ///
    /// # Errors
    /// The storage refuses, the file does not fit into the memory for merging, or `edit` leaves another number of rows.
    pub(in super::super) async fn rewrite(
        &mut self,
        path: &Path,
        rows_less: u64,
        app_id: &str,
        settings: &config::Maintenance,
        now: ProcessingTime,
        mut edit: impl FnMut(RecordBatch) -> Result<RecordBatch, ArrowError>,
    ) -> Result<Rewritten, LakeError> {
        self.refresh().await?;
        let snapshot = self.table.snapshot().map_err(self.failed())?;
        let found = snapshot.log_data().iter().find(|file| file.object_store_path() == *path);
        let Some(file) = found else { return Ok(Rewritten::Gone) };
        let name = self.name;
        let wrong = move |text| LakeError::Rows { table: name.to_owned(), text };
        let input = InputFile { path: path.clone(), bytes: file.size().unsigned_abs() };
        let store = self.log_store.object_store(None);
        let memory = settings.memory_bytes_max;
        let opened = Merge::open(&store, self.layout.clone(), &[input], memory).await;
        let merge = opened.map_err(|source| self.merge_error(source))?;
        if merge.inputs() == 0 {
            return Err(wrong(format!(
                "{path} does not fit into maintenance.memory-bytes-max ({memory}): raise it and try again"
            )));
        }
        let edit = |batch| {
            edit(batch).map_err(|source| LakeError::Columns { table: name.to_owned(), source })
        };
        let (adds, rows) = self.write(merge, &file, settings, edit).await?;
        fault_point("rewrite-written");
        let before =
            file.num_records().ok_or_else(|| wrong(format!("{path} has no statistics")))?;
        let expected = (before as u64).checked_sub(rows_less);
        let expected = expected.ok_or_else(|| wrong(format!("{path} has {before} rows")))?;
        self.check_rows(&adds, rows, usize::try_from(expected).ok())?;
        self.sync(adds.iter().map(|add| add.path.clone()).collect()).await?;
        let exchange = Exchange {
            removes: &[remove(&file, true, now)],
            adds: &adds,
            transaction: Some(Transaction::new(app_id, 1)),
        };
        // No predicate: it would name whom it forgets.
        let operation = DeltaOperation::Delete { predicate: None };
        let is_done = self.commit(&exchange, operation).await?;
        fault_point("rewrite-committed");
        Ok(if is_done { Rewritten::Done } else { Rewritten::Gone })
    }

    /// Deletes at once every file that a commit has removed, and the commits that a log checkpoint has and that are older than
    /// `grace`: nothing of a row that is gone is left, and no older version of the table can be read any more.
    ///
    /// # Errors
    /// The storage refuses.
    pub(in super::super) async fn purge(
        &mut self,
        now: ProcessingTime,
        grace: Duration,
    ) -> Result<(u64, u64), LakeError> {
        self.checkpoint(1).await?;
        // What no commit names may be an append on its way: it is left to the vacuum.
        let files = self.delete_files(VacuumMode::Lite, now, Duration::ZERO).await?;
        let log_files = self.shorten_log(now, grace).await?;
        Ok((files, log_files))
    }
}
