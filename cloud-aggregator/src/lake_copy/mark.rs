//! What tells an aggregator that a lake is not the one to write to.
//!
//! The old place: a property of `telemetry`, set by a commit at exactly the version that was copied. Whoever has that table open runs into
//! it with the next commit, reads it and stops; whoever starts reads it first. The new place: a file, `_copy/unfinished.json`, that is
//! there before anything else is and goes when all is there.

use std::collections::HashMap;

use bytes::Bytes;
use deltalake::kernel::transaction::{CommitProperties, TransactionError};
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{Error as StoreError, ObjectStoreExt as _};
use deltalake::{DeltaTable, DeltaTableError};
use serde::{Deserialize, Serialize};

use crate::sink::delta::{LakeError, Location, sync_files};
use crate::sink::rows::TELEMETRY;

/// Property of `telemetry`: where the lake was moved to; empty: nowhere.
pub const MOVED_TO: &str = "cloud-aggregator.movedTo";
/// Property of `telemetry`: the last version that went with it.
pub const MOVED_AT: &str = "cloud-aggregator.movedAtVersion";
/// Folder of the file that says that a copy is not finished.
pub const FOLDER: &str = "_copy";
const UNFINISHED: &str = "_copy/unfinished.json";

/// The mark of the old place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The new place.
    pub to: String,
    /// Version of `telemetry` that it begins with.
    pub version: u64,
}

/// The mark of the new place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// What is copied.
    pub from: String,
}

fn failed(source: DeltaTableError) -> LakeError {
    LakeError::Table { table: TELEMETRY.to_owned(), source: Box::new(source) }
}

/// The mark of a table that is loaded.
///
/// # Errors
/// It is not, or the mark is damaged.
pub fn moved(table: &DeltaTable) -> Result<Option<Moved>, LakeError> {
    let properties = table.snapshot().map_err(failed)?.metadata().configuration();
    let Some(to) = properties.get(MOVED_TO).filter(|to| !to.is_empty()) else { return Ok(None) };
    let version = properties.get(MOVED_AT).and_then(|version| version.parse().ok());
    let version = version.ok_or_else(|| LakeError::Rows {
        table: TELEMETRY.to_owned(),
        text: format!("property {MOVED_TO} without the version in {MOVED_AT}"),
    })?;
    Ok(Some(Moved { to: to.clone(), version }))
}

/// Fails if the table's lake was moved.
///
/// # Errors
/// It was, or the table is not loaded.
pub fn check_not_moved(table: &DeltaTable) -> Result<(), LakeError> {
    match moved(table)? {
        Some(Moved { to, .. }) => Err(LakeError::Moved { to }),
        None => Ok(()),
    }
}

/// `telemetry` as it is now; `None`: there is none.
///
/// # Errors
/// The storage refuses.
pub async fn load_telemetry(location: &Location) -> Result<Option<DeltaTable>, LakeError> {
    if !location.has_table(TELEMETRY).await? {
        return Ok(None);
    }
    let mut table = location.store(TELEMETRY)?;
    table.load().await.map_err(failed)?;
    Ok(Some(table))
}

/// Marks `telemetry` as moved after `version`, or takes that back. False: it is at another version.
///
/// # Errors
/// The storage refuses.
pub async fn mark(location: &Location, version: u64, to: Option<&str>) -> Result<bool, LakeError> {
    match load_telemetry(location).await? {
        Some(table) if table.version() == Some(version) => {
            mark_loaded(location, table, version, to).await
        }
        Some(_) | None => Ok(false),
    }
}

/// The same for a table that is loaded at that version: nothing else is read before the commit.
///
/// # Errors
/// The storage refuses.
pub async fn mark_loaded(
    location: &Location,
    table: DeltaTable,
    version: u64,
    to: Option<&str>,
) -> Result<bool, LakeError> {
    let properties = HashMap::from([
        (MOVED_TO.to_owned(), to.unwrap_or_default().to_owned()),
        (MOVED_AT.to_owned(), version.to_string()),
    ]);
    set_properties(location, table, version, properties).await
}

/// Sets properties of `telemetry` in a commit at exactly the version that is loaded. False: it is at another one by now.
///
/// # Errors
/// The storage refuses.
pub async fn set_properties(
    location: &Location,
    table: DeltaTable,
    version: u64,
    properties: HashMap<String, String>,
) -> Result<bool, LakeError> {
    // No other attempt: at another version it would not be what was looked at.
    let commit = CommitProperties::default()
        .with_max_retries(0)
        .with_create_checkpoint(false)
        .with_cleanup_expired_logs(Some(false));
    let set = table
        .set_tbl_properties()
        .with_properties(properties)
        .with_raise_if_not_exists(false)
        .with_commit_properties(commit);
    match set.await {
        Ok(_) => {}
        Err(DeltaTableError::Transaction { source: TransactionError::MaxCommitAttempts(_) }) => {
            return Ok(false);
        }
        Err(error) => return Err(failed(error)),
    }
    if let Some(folder) = location.local(TELEMETRY) {
        let path = format!("_delta_log/{:020}.json", version + 1);
        sync_files(folder, vec![path]).await?;
    }
    Ok(true)
}

/// Reads what was committed since.
///
/// # Errors
/// The storage refuses.
pub async fn refresh(location: &Location, table: &mut DeltaTable) -> Result<(), LakeError> {
    if table.update_state().await.is_ok() {
        return Ok(());
    }
    // Maintenance may have deleted the commits on which it stands.
    if let Some(newer) = load_telemetry(location).await? {
        *table = newer;
    }
    Ok(())
}

fn fault(error: &dyn std::error::Error) -> LakeError {
    LakeError::State { name: UNFINISHED.to_owned(), text: error.to_string() }
}

/// What says that a lake is a copy that is not finished.
///
/// # Errors
/// The storage refuses, or the file is damaged.
pub async fn unfinished(location: &Location) -> Result<Option<Unfinished>, LakeError> {
    // Nothing is made where nothing is.
    if location.local(UNFINISHED).is_some_and(|file| !file.exists()) {
        return Ok(None);
    }
    let store = location.store("")?.object_store();
    let reading = async { store.get(&Path::from(UNFINISHED)).await?.bytes().await };
    match reading.await {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| fault(&error)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

/// Fails if a lake is a copy that is not finished.
///
/// # Errors
/// It is, or the storage refuses.
pub async fn check_finished(location: &Location) -> Result<(), LakeError> {
    match unfinished(location).await? {
        Some(Unfinished { from }) => Err(LakeError::UnfinishedCopy { from }),
        None => Ok(()),
    }
}

/// Where the file of an unfinished copy is, and what is in it.
///
/// # Errors
/// It cannot be written as JSON.
pub fn unfinished_file(from: &str) -> Result<(Path, Bytes), LakeError> {
    let text = serde_json::to_vec(&Unfinished { from: from.to_owned() });
    Ok((Path::from(UNFINISHED), text.map_err(|error| fault(&error))?.into()))
}
