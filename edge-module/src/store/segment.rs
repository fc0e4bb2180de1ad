//! One segment: a small sled database in a folder of its own.

use std::fs::{self, File};
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use shared_proto::model::Sequence;

use super::{JournalError, Lane, Stored};

const ENTRY_HEADER_BYTES: usize = 16;
/// Background flush of sled. It also collects free space; acknowledgement does not depend on it.
const FLUSH_EVERY_MS: u64 = 500;

/// Entries that are written as one value.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    first: Option<Sequence>,
    bytes: Vec<u8>,
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn push(&mut self, sequence: Sequence, payload: &[u8]) {
        self.first.get_or_insert(sequence);
        let length = u32::try_from(payload.len()).expect("records are limited to 120 KiB");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&checksum(sequence, payload).to_le_bytes());
        self.bytes.extend_from_slice(&sequence.0.to_le_bytes());
        self.bytes.extend_from_slice(payload);
    }
}

fn checksum(sequence: Sequence, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence.0.to_le_bytes()), payload)
}

/// Entries of a chunk; ends with an error at the first that is damaged.
fn entries(mut bytes: &[u8]) -> impl Iterator<Item = Result<(Sequence, &[u8]), io::Error>> {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over || bytes.is_empty() {
            return None;
        }
        match split_entry(bytes) {
            Some((sequence, payload, rest)) => {
                bytes = rest;
                Some(Ok((sequence, payload)))
            }
            None => {
                is_over = true;
                Some(Err(io::Error::new(io::ErrorKind::InvalidData, "entry fails its checksum")))
            }
        }
    })
}

fn split_entry(bytes: &[u8]) -> Option<(Sequence, &[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(ENTRY_HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?);
    let expected = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let sequence = Sequence(u64::from_le_bytes(header[8..].try_into().ok()?));
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    (checksum(sequence, payload) == expected).then_some((sequence, payload, rest))
}

/// A segment, open or not.
pub(super) struct Segment {
    path: PathBuf,
    database: Option<sled::Db>,
    bytes_written: u64,
}

/// What a sync needs, independent of the list of segments.
pub(super) struct SyncHandle {
    path: PathBuf,
    database: sled::Db,
}

impl SyncHandle {
    /// Makes everything written so far survive a power cut.
    pub(super) fn flush_and_sync(&self) -> Result<(), JournalError> {
        self.database.flush().map_err(JournalError::engine(&self.path))?;
        let file = self.path.join("db");
        File::options()
            .read(true)
            .write(true)
            .open(&file)
            .and_then(|handle| handle.sync_data())
            .map_err(JournalError::io("sync", &file))
    }
}

impl Segment {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, database: None, bytes_written: 0 }
    }

    pub(super) fn open(&mut self, cache_bytes: u64) -> Result<&sled::Db, JournalError> {
        if self.database.is_none() {
            let config = sled::Config::new()
                .path(&self.path)
                .cache_capacity(cache_bytes)
                .mode(sled::Mode::HighThroughput)
                .flush_every_ms(Some(FLUSH_EVERY_MS));
            // Some damage makes the engine panic instead of saying so; nothing of it is used after that.
            let database = std::panic::catch_unwind(AssertUnwindSafe(|| config.open()))
                .map_err(|_| JournalError::Panicked { path: self.path.clone() })?
                .map_err(JournalError::engine(&self.path))?;
            self.bytes_written = database.size_on_disk().unwrap_or(0);
            self.database = Some(database);
        }
        Ok(self.database.as_ref().expect("opened above"))
    }

    pub(super) fn close(&mut self) {
        self.database = None;
    }

    pub(super) fn sync_handle(&self) -> Option<SyncHandle> {
        let database = self.database.clone()?;
        Some(SyncHandle { path: self.path.clone(), database })
    }

    pub(super) const fn is_full(&self, segment_bytes: u64) -> bool {
        self.bytes_written >= segment_bytes
    }

    pub(super) fn write(&mut self, chunk: Chunk, cache_bytes: u64) -> Result<(), JournalError> {
        let Some(first) = chunk.first else { return Ok(()) };
        let length = chunk.bytes.len() as u64;
        let path = self.path.clone();
        self.open(cache_bytes)?
            .insert(first.0.to_be_bytes(), chunk.bytes)
            .map_err(JournalError::engine(&path))?;
        self.bytes_written += length;
        Ok(())
    }

    /// Appends the records after `after` and up to `through` to `records`, until there are `records_max`.
    pub(super) fn read(
        &mut self,
        after: Sequence,
        through: Sequence,
        records_max: usize,
        cache_bytes: u64,
        records: &mut Vec<Stored>,
    ) -> Result<(), JournalError> {
        let path = self.path.clone();
        let database = self.open(cache_bytes)?;
        let next = after.next().0.to_be_bytes();
        // The chunk that `after + 1` is in may begin before it.
        let start = database
            .range(..=next)
            .next_back()
            .transpose()
            .map_err(JournalError::engine(&path))?
            .map_or_else(|| next.to_vec(), |(key, _)| key.to_vec());
        for item in database.range(start..) {
            let (_, chunk) = item.map_err(JournalError::engine(&path))?;
            for entry in entries(&chunk) {
                let (sequence, payload) = entry.map_err(JournalError::io("read", &path))?;
                if sequence > through {
                    return Ok(());
                }
                if sequence > after {
                    records.push(Stored { sequence, payload: payload.to_vec() });
                }
            }
            if records.len() >= records_max {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn tail(
        &mut self,
        records_max: usize,
        cache_bytes: u64,
    ) -> Result<Vec<Stored>, JournalError> {
        let path = self.path.clone();
        let mut chunks = Vec::new();
        let mut count = 0;
        for item in self.open(cache_bytes)?.iter().rev() {
            let (_, chunk) = item.map_err(JournalError::engine(&path))?;
            count += entries(&chunk).count();
            chunks.push(chunk);
            if count >= records_max {
                break;
            }
        }
        let stored = chunks.iter().rev().flat_map(|chunk| {
            entries(chunk)
                .flatten()
                .map(|(sequence, payload)| Stored { sequence, payload: payload.to_vec() })
        });
        Ok(stored.skip(count.saturating_sub(records_max)).collect())
    }

    pub(super) fn last_sequence(
        &mut self,
        cache_bytes: u64,
    ) -> Result<Option<Sequence>, JournalError> {
        Ok(self.tail(1, cache_bytes)?.pop().map(|record| record.sequence))
    }

    pub(super) fn count_from(
        &mut self,
        first: Sequence,
        cache_bytes: u64,
    ) -> Result<u64, JournalError> {
        let path = self.path.clone();
        let mut count = 0;
        for item in self.open(cache_bytes)?.iter() {
            let (_, chunk) = item.map_err(JournalError::engine(&path))?;
            count += entries(&chunk).flatten().filter(|(sequence, _)| *sequence >= first).count();
        }
        Ok(count as u64)
    }

    pub(super) fn bytes_on_disk(&self) -> u64 {
        let database = self.path.join("db");
        fs::metadata(database).map_or(self.bytes_written, |metadata| metadata.len())
    }

    pub(super) fn delete(mut self) -> Result<(), JournalError> {
        self.close();
        fs::remove_dir_all(&self.path).map_err(JournalError::io("delete", &self.path))
    }

    /// Moves the folder aside, under a name that tells where it was.
    pub(super) fn quarantine(mut self, folder: &Path, lane: Lane) -> Result<(), JournalError> {
        self.close();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut target = folder.join(format!("{}-{name}", lane.as_str()));
        let mut copy = 1;
        while target.exists() {
            copy += 1;
            target = folder.join(format!("{}-{name}-{copy}", lane.as_str()));
        }
        fs::rename(&self.path, &target).map_err(JournalError::io("move aside", &self.path))
    }
}
