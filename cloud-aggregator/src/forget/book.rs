//! What was deleted on request, so that an audit can tell it from a loss: files of `_forgotten`.
//!
//! A file is written before the commit that deletes, with how many records of which Kafka partition lose their row in which
//! table, and no name. The commit carries a `txn` under the file's name: a file whose commit was never made counts for nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use aggregator_core::checkpoint::TopicPartition;
use deltalake::logstore::object_store::ObjectStoreExt as _;
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{Error as StoreError, ObjectStore, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use super::edit::Touched;
use crate::causes::describe;
use crate::sink::delta::{LakeError, Location, sync_files};

const FOLDER: &str = "_forgotten";
const SUFFIX: &str = ".json";

/// One commit that deleted rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Table that it deleted rows of.
    pub table: String,
    /// How many, by the Kafka partition of their records.
    pub records: BTreeMap<TopicPartition, u64>,
}

/// The folder.
#[derive(Debug)]
pub struct Book {
    store: Arc<dyn ObjectStore>,
    folder: Option<PathBuf>,
}

/// Application id of the commit's `txn`.
#[must_use]
pub fn app_id(name: &str) -> String {
    format!("forget-{name}")
}

impl Book {
    /// Opens the folder; a local one is made if the lake is opened to be written.
    ///
    /// # Errors
    /// It cannot be made, or the storage's options are wrong.
    pub fn open(location: &Location) -> Result<Self, LakeError> {
        let store = location.store(FOLDER)?.object_store();
        Ok(Self { store, folder: location.local(FOLDER) })
    }

    /// Writes an entry and syncs it. Gives its name.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn write(&self, table: &'static str, touched: &Touched) -> Result<String, LakeError> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let entry = Entry { table: table.to_owned(), records: touched.records.clone() };
        let file = format!("{name}{SUFFIX}");
        let bytes = serde_json::to_vec(&entry).map_err(|error| fault(&file, &error))?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = Path::from(file.as_str());
        let put = self.store.put_opts(&path, bytes.into(), options).await;
        put.map_err(|error| fault(&file, &error))?;
        if let Some(folder) = &self.folder {
            sync_files(folder.clone(), vec![file]).await?;
        }
        Ok(name)
    }

    /// Takes an entry back whose commit was not made.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn take_back(&self, name: &str) -> Result<(), LakeError> {
        let file = format!("{name}{SUFFIX}");
        let deleted = self.store.delete(&Path::from(file.as_str())).await;
        deleted.map_err(|error| fault(&file, &error))
    }

    /// Every entry with its name.
    ///
    /// # Errors
    /// The storage refuses, or an entry is damaged.
    pub async fn entries(&self) -> Result<Vec<(String, Entry)>, LakeError> {
        if self.folder.as_ref().is_some_and(|folder| !folder.is_dir()) {
            return Ok(Vec::new());
        }
        let listed = match self.store.list_with_delimiter(None).await {
            Err(StoreError::NotFound { .. }) => return Ok(Vec::new()),
            listed => listed.map_err(|error| fault(FOLDER, &error))?,
        };
        let mut entries = Vec::new();
        for object in listed.objects {
            let Some(file) = object.location.filename() else { continue };
            let Some(name) = file.strip_suffix(SUFFIX) else { continue };
            let failed = |error: StoreError| fault(file, &error);
            let bytes = self.store.get(&object.location).await.map_err(failed)?;
            let bytes = bytes.bytes().await.map_err(failed)?;
            let entry = serde_json::from_slice(&bytes).map_err(|error| fault(file, &error))?;
            entries.push((name.to_owned(), entry));
        }
        Ok(entries)
    }
}

fn fault(name: &str, error: &dyn std::error::Error) -> LakeError {
    LakeError::State { name: format!("{FOLDER}/{name}"), text: describe(error) }
}
