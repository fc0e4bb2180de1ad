//! State files of epochs: `_state/<epoch>-<nonce>.json` beside the tables.
//!
//! A file is written once, under a name that no other owner uses, and synced before the commit that names it. It is
//! deleted when each of its partitions has gone on without it and that was found the grace time ago. It is JSON; one of more than
//! [`CHUNK_BYTES`] is compressed (zstd), which its first bytes tell: a million windows are 150 MB of text.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use aggregator_core::checkpoint::{EpochFile, EpochId, is_readable};
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
};

use serde::Deserialize;
use zstd::stream::write::Encoder;

use super::delta::{LakeError, Location, sync_files};
use crate::causes::describe;

const FOLDER: &str = "_state";
/// Larger files are compressed.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The fastest: what counts is the time of an epoch.
const LEVEL: i32 = 1;
/// First bytes of a frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The bytes of a state file while they are written.
#[derive(Default)]
pub struct StateBytes {
    chunk: Vec<u8>,
    encoder: Option<Encoder<'static, Vec<u8>>>,
}

impl std::fmt::Debug for StateBytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StateBytes").finish_non_exhaustive()
    }
}

impl StateBytes {
    fn compress(&mut self) -> std::io::Result<()> {
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            None => self.encoder.insert(Encoder::new(Vec::new(), LEVEL)?),
        };
        encoder.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    /// All that was written, compressed if it is much.
    ///
    /// # Errors
    /// Compression fails.
    pub fn finish(mut self) -> std::io::Result<Vec<u8>> {
        if self.encoder.is_some() {
            self.compress()?;
        }
        match self.encoder {
            Some(encoder) => encoder.finish(),
            None => Ok(self.chunk),
        }
    }
}

impl Write for StateBytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES);
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() > CHUNK_BYTES {
            self.compress()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

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
    if !bytes.starts_with(&ZSTD_MAGIC) {
        return parse_text(bytes);
    }
    match zstd::decode_all(bytes) {
        Ok(text) => parse_text(&text),
        Err(error) => FoundStateFile::Unreadable(format!("compressed: {error}")),
    }
}

fn parse_text(bytes: &[u8]) -> FoundStateFile {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    match serde_json::from_slice::<Head>(bytes) {
        Ok(Head { format }) if !is_readable(format) => FoundStateFile::OtherFormat(format),
        Ok(_) => match serde_json::from_slice(bytes) {
            Ok(file) => FoundStateFile::Present(Box::new(file)),
            Err(error) => FoundStateFile::Unreadable(error.to_string()),
        },
        Err(error) => FoundStateFile::Unreadable(error.to_string()),
    }
}

fn state_error(name: &str, error: &StoreError) -> LakeError {
    LakeError::State { name: name.to_owned(), text: describe(error) }
}

#[cfg(test)]
mod tests {
    use aggregator_core::checkpoint::FILE_FORMAT;

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

    #[test]
    fn a_large_file_is_compressed_and_read_back_and_a_cut_one_is_unreadable() {
        let text = format!(r#"{{"format":{FILE_FORMAT},"epoch":1073741825,"partitions":{{}}}}"#);
        for (spaces, is_compressed) in [(0, false), (CHUNK_BYTES / 2, false), (5 << 20, true)] {
            let padded = text.clone() + &" ".repeat(spaces);
            let mut bytes = StateBytes::default();
            bytes.write_all(padded.as_bytes()).expect("written");
            let bytes = bytes.finish().expect("finished");
            assert_eq!(bytes.starts_with(&ZSTD_MAGIC), is_compressed);
            assert!(if is_compressed { bytes.len() < 10_000 } else { bytes == padded.as_bytes() });
            let FoundStateFile::Present(file) = parse(&bytes) else { panic!("{spaces}") };
            assert!(file.partitions.is_empty());
            let cut = parse(&bytes[..bytes.len().min(text.len()) - 3]);
            assert!(matches!(cut, FoundStateFile::Unreadable(_)), "{cut:?}");
        }
    }
}
