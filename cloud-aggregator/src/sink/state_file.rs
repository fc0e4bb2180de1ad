//! State files of epochs: `_state/<epoch>-<nonce>.json` beside the tables.
//!
//! A file is written once, under a name that no other owner uses, and synced before the commit that names it. It is
//! deleted when each of its partitions has gone on without it and that was found the grace time ago.

use std::path::PathBuf;
use std::sync::Arc;

use aggregator_core::checkpoint::{EpochFile, EpochId, FILE_FORMAT};
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
};

use serde::Deserialize;

use super::delta::{LakeError, Location, sync_files};

const FOLDER: &str = "_state";

/// What was found under the name of an epoch.
#[derive(Debug)]
pub enum FoundStateFile {
    /// Nothing.
    Absent,
    /// Something that is no state file, and why.
    Unreadable(String),
    /// The state file of another version.
    OtherFormat(u32),
    /// The file.
    Present(Box<EpochFile>),
}

/// The folder of state files.
#[derive(Debug)]
pub struct StateFiles {
    store: Arc<dyn ObjectStore>,
    folder: Option<PathBuf>,
}

impl StateFiles {
    /// Opens the folder; a local one is made.
    ///
    /// # Errors
    /// It cannot be made, or the storage's options are wrong.
    pub fn open(location: &Location) -> Result<Self, LakeError> {
        let store = location.store(FOLDER)?.object_store();
        Ok(Self { store, folder: location.local(FOLDER) })
    }

    /// Writes the file of an epoch and syncs it.
    ///
    /// # Errors
    /// The storage refuses, or a file of this name is there.
    pub async fn write(&self, epoch: EpochId, bytes: Vec<u8>) -> Result<(), LakeError> {
        let name = epoch.file_name();
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store
            .put_opts(&Path::from(name.as_str()), bytes.into(), options)
            .await
            .map_err(|error| state_error(&name, &error))?;
        match &self.folder {
            Some(folder) => sync_files(folder.clone(), vec![name]).await,
            None => Ok(()),
        }
    }

    /// Reads the file of an epoch.
    ///
    /// # Errors
    /// The storage does not answer; a missing or damaged file is no error here.
    pub async fn read(&self, epoch: EpochId) -> Result<FoundStateFile, LakeError> {
        let name = epoch.file_name();
        let got = match self.store.get(&Path::from(name.as_str())).await {
            Err(StoreError::NotFound { .. }) => return Ok(FoundStateFile::Absent),
            Err(error) => return Err(state_error(&name, &error)),
            Ok(got) => got,
        };
        let bytes = got.bytes().await.map_err(|error| state_error(&name, &error))?;
        Ok(parse(&bytes))
    }

    /// Epochs that have a file, and when it was written, in microseconds since 1970 by the storage's clock.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn list(&self) -> Result<Vec<(EpochId, i64)>, LakeError> {
        let listed = self
            .store
            .list_with_delimiter(None)
            .await
            .map_err(|error| state_error(FOLDER, &error))?;
        Ok(listed
            .objects
            .iter()
            .filter_map(|object| {
                let epoch = EpochId::from_file_name(object.location.filename()?)?;
                Some((epoch, object.last_modified.timestamp_micros()))
            })
            .collect())
    }

    /// Deletes the file of an epoch.
    ///
    /// # Errors
    /// The storage refuses; a file that is gone already is no error.
    pub async fn delete(&self, epoch: EpochId) -> Result<(), LakeError> {
        let name = epoch.file_name();
        match self.store.delete(&Path::from(name.as_str())).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(state_error(&name, &error)),
        }
    }
}

/// Looks at the number of the form first: the rest of another version's file has another form.
fn parse(bytes: &[u8]) -> FoundStateFile {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    match serde_json::from_slice::<Head>(bytes) {
        Ok(Head { format }) if format != FILE_FORMAT => FoundStateFile::OtherFormat(format),
        Ok(_) => match serde_json::from_slice(bytes) {
            Ok(file) => FoundStateFile::Present(Box::new(file)),
            Err(error) => FoundStateFile::Unreadable(error.to_string()),
        },
        Err(error) => FoundStateFile::Unreadable(error.to_string()),
    }
}

fn state_error(name: &str, error: &StoreError) -> LakeError {
    LakeError::State { name: name.to_owned(), text: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_an_older_and_a_newer_version_are_told_from_damaged_ones() {
        for (text, expected) in [
            (
                r#"{"format":1,"epoch":1073741825,"partitions":{"t/0":{"state":{"format":1}}}}"#,
                Some(1),
            ),
            (r#"{"format":9,"partitions":[]}"#, Some(9)),
            (r#"{"format":2,"partitions":[]}"#, None),
            ("{", None),
        ] {
            let found = match parse(text.as_bytes()) {
                FoundStateFile::OtherFormat(found) => Some(found),
                FoundStateFile::Unreadable(_) => None,
                FoundStateFile::Absent | FoundStateFile::Present(_) => panic!("{text}"),
            };
            assert_eq!(found, expected, "{text}");
        }
    }
}
