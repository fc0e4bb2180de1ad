//! Log checkpoints: what a table's commits come to, so that readers need not read them one by one.

use std::path::Path as FolderPath;

use deltalake::checkpoints::create_checkpoint;
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{Error as StoreError, ObjectStoreExt as _};
use deltalake::{DeltaTable, DeltaTableError};

use super::delta::{LakeError, sync_files, table_error};

/// Writes a checkpoint of the version that is loaded if at least `commits` have come since the last one; whether it did.
///
/// Several may do so at the same time: checkpoints of a version are alike, and the newest one is found beside an older hint.
///
/// # Errors
/// The storage refuses. The table is as good as before.
pub(super) async fn sum_up(
    name: &str,
    table: &DeltaTable,
    folder: Option<&FolderPath>,
    commits: u64,
) -> Result<bool, LakeError> {
    let failed = |source| table_error(name, source);
    let version = table.snapshot().map_err(failed)?.version();
    let last = last_checkpoint(table).await.map_err(failed)?;
    if version < last.unwrap_or(0).saturating_add(commits) {
        return Ok(false);
    }
    create_checkpoint(table, None).await.map_err(failed)?;
    if let Some(folder) = folder {
        // What the hint names must be there when the hint is.
        let checkpoint = format!("_delta_log/{version:020}.checkpoint.parquet");
        let paths = vec![checkpoint, "_delta_log/_last_checkpoint".to_owned()];
        sync_files(folder.to_owned(), paths).await?;
    }
    Ok(true)
}

/// Version that the hint names.
async fn last_checkpoint(table: &DeltaTable) -> Result<Option<u64>, DeltaTableError> {
    let path = Path::from("_delta_log/_last_checkpoint");
    let got = match table.log_store().object_store(None).get(&path).await {
        Ok(got) => got.bytes().await,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => Err(error),
    };
    let bytes = got.map_err(|source| DeltaTableError::ObjectStore { source })?;
    // One that cannot be read is none: the next is written.
    let value: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    Ok(value.and_then(|value| value["version"].as_u64()))
}
