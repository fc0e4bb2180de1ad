//! One segment: a small sled database in a folder of its own.
//!
//! ```text
//! key 8 zero bytes: "PMSEGMT1" | generation u64 | floor u64 | previous u64 | lane's chunk mark as in `chunk`, without entries
//! key first sequence of a chunk, big endian: the chunk
//! file `closed`, once the segment is full: "<previous> <last sequence> <records> <CRC-32C of them, hexadecimal>"
//! ```
//!
//! The header is synced before the segment counts, with every file of the engine and all names: a database without it was
//! emptied, or is not ours. `previous` is the last record of the lane before the segment. A segment is deleted by a rename
//! to `<floor>.deleted` first: a kill in between leaves nothing that looks like a segment.
//!
//! The engine puts a page over a quarter of its own segment size into a file beside the database, which it does not sync: a
//! power cut would lose the whole page. A page holds at most 17 chunks, so with [`ENGINE_SEGMENT_BYTES`] that cannot happen.
//!
//! The engine's snapshots (`snap.*`) only shorten its start. It trips over one that was being written when it was killed:
//! those are removed before it opens, and all of them when it does not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shared_proto::model::{Generation, Sequence};
use tracing::warn;

use super::chunk::{self, Chunk, Salvaged};
use super::{JournalError, Lane, RECORD_BYTES_MAX, Stored};

const HEADER_KEY: [u8; 8] = [0; 8];
const HEADER_MAGIC: &[u8; 8] = b"PMSEGMT1";
const DATABASE_FILE: &str = "db";
const CLOSED_FILE: &str = "closed";
/// How long a segment is waited for that is still locked, and how often it is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_STEP: Duration = Duration::from_millis(2);
const SNAPSHOT_PREFIX: &str = "snap.";
/// Marks a folder whose deletion has begun.
pub(super) const DELETED_EXTENSION: &str = "deleted";
/// A segment whose header was synced takes more than this on disk.
const BEGUN_BYTES: u64 = 64 << 10;
/// sled's own segments; 17 records of the largest size stay below a quarter of it.
const ENGINE_SEGMENT_BYTES: usize = 8 << 20;
const _: () = assert!(18 * (RECORD_BYTES_MAX + 1024) < ENGINE_SEGMENT_BYTES / 4);
/// Background flush of sled. It also collects free space; acknowledgement does not depend on it.
const FLUSH_EVERY_MS: u64 = 500;
/// Bytes of a damaged file looked at in one go, and how far two looks overlap: more than any chunk.
const SALVAGE_BYTES: usize = 8 << 20;
const SALVAGE_OVERLAP: usize = 256 << 10;

/// Which segment of which journal.
#[derive(Clone, Debug)]
pub(super) struct SegmentName {
    pub(super) path: PathBuf,
    pub(super) generation: Generation,
    pub(super) lane: Lane,
    pub(super) floor: u64,
}

/// What is known of a full segment without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) previous: Sequence,
    pub(super) last: Sequence,
    pub(super) records: u64,
}

/// A segment, open or not.
#[derive(Debug)]
pub(super) struct Segment {
    name: SegmentName,
    cache_bytes: u64,
    database: Option<sled::Db>,
    previous: Option<Sequence>,
    closed: Option<Closed>,
    /// What could be salvaged has been: what is missing is lost.
    pub(super) is_salvaged: bool,
    pub(super) is_deleted: bool,
}

/// The chain of a lane while it is read: what came last, and what is missing.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) cursor: Sequence,
    pub(super) through: Sequence,
    pub(super) records: Vec<Stored>,
    pub(super) holes: Vec<(Sequence, Sequence)>,
    /// Something was there and damaged.
    pub(super) has_damage: bool,
}

impl Chain {
    pub(super) const fn new(after: Sequence, through: Sequence) -> Self {
        Self { cursor: after, through, records: Vec::new(), holes: Vec::new(), has_damage: false }
    }

    /// The lane had a record `last`: what lies between the cursor and it should have been seen.
    pub(super) fn expect(&mut self, last: Sequence) {
        let last = last.min(self.through);
        if last > self.cursor {
            self.holes.push((self.cursor.next(), last));
            self.cursor = last;
        }
    }

    fn take(&mut self, value: &[u8], generation: Generation, lane: Lane) {
        let decoded = chunk::decode(value, generation, lane);
        self.has_damage |= !decoded.is_whole;
        if let Some(previous) = decoded.previous {
            self.expect(previous);
        }
        for (sequence, payload) in decoded.entries {
            if sequence > self.cursor && sequence <= self.through {
                self.records.push(Stored { sequence, payload: payload.to_vec() });
                self.cursor = sequence;
            }
        }
    }
}

impl Segment {
    pub(super) fn new(name: SegmentName, cache_bytes: u64) -> Self {
        let closed = read_closed(&name.path.join(CLOSED_FILE));
        Self {
            name,
            cache_bytes,
            database: None,
            previous: None,
            closed,
            is_salvaged: false,
            is_deleted: false,
        }
    }

    /// Makes an empty segment, open and durable. What is in its place, left by an attempt that failed, is removed.
    pub(super) fn create(
        name: SegmentName,
        cache_bytes: u64,
        previous: Sequence,
    ) -> Result<Self, JournalError> {
        remove_if_there(&name.path)?;
        let mut this = Self::new(name, cache_bytes);
        let database = this.open_database()?;
        // From here on the segment closes it, also after an error.
        this.database = Some(database.clone());
        let header = this.name.header(previous);
        database.insert(HEADER_KEY, header).map_err(JournalError::engine(&this.name.path))?;
        sync_database(&database, &this.name.path)?;
        this.sync_files()?;
        sync_folder(&this.name.path)?;
        this.previous = Some(previous);
        Ok(this)
    }

    pub(super) const fn name(&self) -> &SegmentName {
        &self.name
    }

    pub(super) const fn closed(&self) -> Option<Closed> {
        self.closed
    }

    /// Opens the database and checks that it is ours.
    pub(super) fn open(&mut self) -> Result<&sled::Db, JournalError> {
        if self.database.is_none() {
            if !self.name.path.join(DATABASE_FILE).is_file() {
                return Err(self.foreign("its database file is missing"));
            }
            self.database = Some(self.open_database()?);
            match self.read_header() {
                Ok(previous) => self.previous = Some(previous),
                Err(error) => {
                    self.close();
                    return Err(error);
                }
            }
        }
        Ok(self.database.as_ref().expect("opened above"))
    }

    fn read_header(&self) -> Result<Sequence, JournalError> {
        let Some(database) = &self.database else { return Err(self.foreign("it is closed")) };
        let header = guard(&self.name.path, || {
            database.get(HEADER_KEY).map_err(JournalError::engine(&self.name.path))
        })?;
        let Some(header) = header else { return Err(self.foreign("it has no header")) };
        self.name
            .check_header(&header)
            .ok_or_else(|| self.foreign("its header is that of another segment"))
    }

    /// Whether it was being made when the process ended: nothing can have been acknowledged in it.
    pub(super) fn was_never_begun(&self) -> bool {
        bytes_on_disk(&self.name.path) < BEGUN_BYTES
    }

    fn open_database(&self) -> Result<sled::Db, JournalError> {
        self.remove_snapshots(|name| name.ends_with(".generating"));
        match self.try_open_database() {
            Err(error) if error.is_damage() && self.remove_snapshots(|_| true) > 0 => {
                self.try_open_database()
            }
            other => other,
        }
    }

    fn try_open_database(&self) -> Result<sled::Db, JournalError> {
        let config = sled::Config::new()
            .path(&self.name.path)
            .cache_capacity(self.cache_bytes)
            .segment_size(ENGINE_SEGMENT_BYTES)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let opened = guard(&self.name.path, || {
                config.open().map_err(JournalError::engine(&self.name.path))
            });
            match opened {
                // The engine's own threads give the file back a moment after it was closed.
                Err(error) if is_locked(&error) && Instant::now() < deadline => {
                    std::thread::sleep(LOCK_STEP);
                }
                other => return other,
            }
        }
    }

    /// Removes snapshots of the engine and says how many. One that stays is the engine's to complain about.
    fn remove_snapshots(&self, is_unwanted: impl Fn(&str) -> bool) -> usize {
        let Ok(entries) = fs::read_dir(&self.name.path) else { return 0 };
        let is_removed = |entry: fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(SNAPSHOT_PREFIX)
                && is_unwanted(&name)
                && fs::remove_file(entry.path()).is_ok()
        };
        entries.flatten().filter_map(|entry| is_removed(entry).then_some(())).count()
    }

    /// Syncs every file in the folder: the engine does not sync its configuration.
    fn sync_files(&self) -> Result<(), JournalError> {
        let folder = &self.name.path;
        for entry in fs::read_dir(folder).map_err(JournalError::io("list", folder))? {
            let path = entry.map_err(JournalError::io("list", folder))?.path();
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(JournalError::io("sync", &path))?;
        }
        Ok(())
    }

    fn foreign(&self, what: &'static str) -> JournalError {
        JournalError::Foreign { path: self.name.path.clone(), what }
    }

    pub(super) fn close(&mut self) {
        if let Some(database) = self.database.take() {
            // The engine flushes when the last handle goes, and may panic on a broken file.
            if std::panic::catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
                warn!(path = %self.name.path.display(), "the engine panicked when the segment was closed");
            }
        }
    }

    /// Record of the lane before this segment, if the segment has been opened.
    pub(super) const fn previous(&self) -> Option<Sequence> {
        self.previous
    }

    /// Reads on from the chain's cursor until it has `records_max` records. Says whether the end was reached.
    pub(super) fn read(
        &mut self,
        chain: &mut Chain,
        records_max: usize,
    ) -> Result<bool, JournalError> {
        let (path, generation, lane) =
            (self.name.path.clone(), self.name.generation, self.name.lane);
        let database = self.open()?.clone();
        if let Some(previous) = self.previous {
            chain.expect(previous);
        }
        guard(&path, || {
            let next = chain.cursor.next().0.to_be_bytes();
            // The chunk that the next record is in may begin before it.
            let start = database
                .range(..=next)
                .next_back()
                .transpose()
                .map_err(JournalError::engine(&path))?
                .map_or(next, |(key, _)| key.as_ref().try_into().unwrap_or(next));
            for item in database.range(start..) {
                if chain.records.len() >= records_max || chain.cursor >= chain.through {
                    return Ok(false);
                }
                let (key, value) = item.map_err(JournalError::engine(&path))?;
                if key.as_ref() != HEADER_KEY {
                    chain.take(&value, generation, lane);
                }
            }
            Ok(true)
        })
    }

    /// The last records, oldest first, at most `records_max`.
    pub(super) fn tail(&mut self, records_max: usize) -> Result<Vec<Stored>, JournalError> {
        let (path, generation, lane) =
            (self.name.path.clone(), self.name.generation, self.name.lane);
        let database = self.open()?.clone();
        guard(&path, || {
            let mut records = Vec::new();
            for item in database.iter().rev() {
                let (key, value) = item.map_err(JournalError::engine(&path))?;
                if key.as_ref() == HEADER_KEY || records.len() >= records_max {
                    break;
                }
                let decoded = chunk::decode(&value, generation, lane);
                records.extend(decoded.entries.iter().rev().map(|(sequence, payload)| Stored {
                    sequence: *sequence,
                    payload: payload.to_vec(),
                }));
            }
            records.truncate(records_max);
            records.reverse();
            Ok(records)
        })
    }

    /// Last record in the segment, or the one of the lane before it.
    pub(super) fn last(&mut self) -> Result<Sequence, JournalError> {
        let last = self.tail(1)?.pop().map(|record| record.sequence);
        Ok(last.or(self.previous).unwrap_or_default())
    }

    /// Records after a sequence that can be read.
    pub(super) fn count_after(&mut self, after: Sequence) -> Result<u64, JournalError> {
        let mut chain = Chain::new(after, Sequence(u64::MAX - 1));
        let mut records = 0;
        while !self.read(&mut chain, 4_096)? {
            records += std::mem::take(&mut chain.records).len() as u64;
        }
        Ok(records + chain.records.len() as u64)
    }

    /// Writes down that nothing more comes into this segment.
    pub(super) fn mark_closed(&mut self, closed: Closed) -> Result<(), JournalError> {
        let text = format!("{} {} {}", closed.previous.0, closed.last.0, closed.records);
        let text = format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()));
        let path = self.name.path.join(CLOSED_FILE);
        write_synced(&path, text.as_bytes()).map_err(JournalError::io("write", &path))?;
        sync_folder(&self.name.path)?;
        self.closed = Some(closed);
        Ok(())
    }

    pub(super) fn delete(&mut self) -> Result<(), JournalError> {
        self.close();
        self.is_deleted = true;
        let path = &self.name.path;
        let doomed = path.with_extension(DELETED_EXTENSION);
        remove_if_there(&doomed)?;
        match fs::rename(path, &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(JournalError::io("rename", path))?,
        }
        sync_folder(path.parent().unwrap_or(path))?;
        remove_if_there(&doomed)
    }

    /// Builds the segment anew from every chunk that is whole enough, up to `limit`, and moves the damaged one aside.
    /// Without any chunk there is an empty segment after it.
    ///
    /// # Errors
    /// The disk refuses; the damaged segment is where it was.
    pub(super) fn salvage(
        &mut self,
        quarantine: &Path,
        limit: Sequence,
    ) -> Result<(), JournalError> {
        let previous = self.previous;
        let found = self.find_chunks(limit)?;
        self.close();
        let first_previous = found.first().and_then(|chunk| chunk.previous);
        let previous = previous.or(first_previous).unwrap_or_default();
        let name = SegmentName { path: salvage_path(&self.name.path), ..self.name.clone() };
        let mut new = Self::create(name, self.cache_bytes, previous)?;
        let mut records = 0;
        let new_path = new.name.path.clone();
        let database = new.open()?;
        for salvaged in &found {
            let chunk = salvaged.to_chunk(self.name.generation, self.name.lane);
            records += chunk.records;
            write_chunk(database, &new_path, chunk)?;
        }
        sync_database(database, &new_path)?;
        new.close();
        if let Some(closed) = self.closed {
            new.mark_closed(closed)?;
        }
        move_aside(&self.name.path, quarantine, self.name.lane.as_str())?;
        fs::rename(&new.name.path, &self.name.path)
            .map_err(JournalError::io("rename", &new.name.path))?;
        sync_folder(self.name.path.parent().unwrap_or(&self.name.path))?;
        warn!(path = %self.name.path.display(), records, "damaged segment moved to the quarantine, what could be read was salvaged");
        self.previous = None;
        self.is_salvaged = true;
        Ok(())
    }

    /// Chunks that the engine still gives, and those that can be found in its file without it.
    fn find_chunks(&mut self, limit: Sequence) -> Result<Vec<Salvaged>, JournalError> {
        let (generation, lane) = (self.name.generation, self.name.lane);
        let mut found = std::collections::BTreeMap::new();
        let mut keep = |chunk: Salvaged| {
            let Some(first) = chunk.records.first().map(|record| record.sequence) else { return };
            // Of two that begin alike the one with more left, and of those one with a whole header.
            let is_better = found.get(&first).is_none_or(|known: &Salvaged| {
                (chunk.records.len(), chunk.previous.is_some())
                    > (known.records.len(), known.previous.is_some())
            });
            if is_better {
                found.insert(first, chunk);
            }
        };
        let database = self.open().cloned();
        if let Ok(database) = database {
            let by_engine = guard(&self.name.path, || {
                for item in database.iter() {
                    let (_, value) = item.map_err(JournalError::engine(&self.name.path))?;
                    keep(Salvaged::of(&chunk::decode(&value, generation, lane)));
                }
                Ok(())
            });
            if let Err(error) = by_engine {
                warn!(path = %self.name.path.display(), %error, "the engine reads the segment in part");
            }
        }
        self.close();
        let path = self.name.path.join(DATABASE_FILE);
        if path.is_file() {
            scan(&path, |bytes| {
                chunk::salvage(bytes, generation, lane).into_iter().for_each(&mut keep);
            })
            .map_err(JournalError::io("read", &path))?;
        }
        let range = Sequence(self.name.floor)..=limit;
        let mut chunks: Vec<Salvaged> = found.into_values().collect();
        for chunk in &mut chunks {
            // What a failed append left behind the limit was written again elsewhere.
            chunk.records.retain(|record| range.contains(&record.sequence));
        }
        chunks.retain(|chunk| !chunk.records.is_empty());
        Ok(chunks)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.close();
    }
}

impl SegmentName {
    fn header(&self, previous: Sequence) -> Vec<u8> {
        let mut bytes = HEADER_MAGIC.to_vec();
        for number in [self.generation.0, self.floor, previous.0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        // Carries the lane, under a checksum.
        bytes.extend_from_slice(&Chunk::new(self.generation, self.lane, previous).bytes);
        bytes
    }

    fn check_header(&self, bytes: &[u8]) -> Option<Sequence> {
        let previous = Sequence(u64::from_le_bytes(bytes.get(24..32)?.try_into().ok()?));
        (bytes == self.header(previous)).then_some(previous)
    }
}

/// Writes a chunk; durable after [`sync_database`].
pub(super) fn write_chunk(
    database: &sled::Db,
    path: &Path,
    chunk: Chunk,
) -> Result<(), JournalError> {
    let key = chunk.first.0.to_be_bytes();
    database.insert(key, chunk.bytes).map_err(JournalError::engine(path))?;
    Ok(())
}

/// Makes everything written so far survive a power cut.
pub(super) fn sync_database(database: &sled::Db, path: &Path) -> Result<(), JournalError> {
    database.flush().map_err(JournalError::engine(path))?;
    let file = path.join(DATABASE_FILE);
    File::options()
        .read(true)
        .write(true)
        .open(&file)
        .and_then(|handle| handle.sync_data())
        .map_err(JournalError::io("sync", &file))
}

/// Where a salvaged segment is built before it takes the damaged one's place.
pub(super) fn salvage_path(path: &Path) -> PathBuf {
    path.with_extension("salvage")
}

/// Moves a file or folder into the quarantine, under a name that tells where it was.
pub(super) fn move_aside(path: &Path, quarantine: &Path, what: &str) -> Result<(), JournalError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut target = quarantine.join(format!("{what}-{name}"));
    let mut copy = 1;
    while target.exists() {
        copy += 1;
        target = quarantine.join(format!("{what}-{name}-{copy}"));
    }
    fs::rename(path, &target).map_err(JournalError::io("move aside", path))?;
    sync_folder(quarantine)
}

/// Bytes that a segment takes on disk.
pub(super) fn bytes_on_disk(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    // What is allocated: the engine's files have holes.
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.blocks() * 512)
        .sum()
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(JournalError::io("sync", folder))
}

/// Some damage makes the engine panic instead of saying so; nothing of it is used after that.
fn guard<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, JournalError>,
) -> Result<T, JournalError> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| JournalError::Panicked { path: path.to_owned() })?
}

fn is_locked(error: &JournalError) -> bool {
    match error {
        JournalError::Engine { source: sled::Error::Io(source), .. } => {
            source.to_string().contains("could not acquire lock")
        }
        JournalError::Engine { .. }
        | JournalError::Io { .. }
        | JournalError::Panicked { .. }
        | JournalError::Foreign { .. }
        | JournalError::NoRoom { .. }
        | JournalError::NoSegment { .. }
        | JournalError::RecordTooLarge { .. } => false,
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    File::open(path)?.sync_all()
}

fn read_closed(path: &Path) -> Option<Closed> {
    let text = fs::read_to_string(path).ok()?;
    let (numbers, checksum) = text.trim_end().rsplit_once(' ')?;
    if u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(numbers.as_bytes()) {
        return None;
    }
    let mut numbers = numbers.split(' ').map_while(|number| number.parse().ok());
    let (previous, last) = (Sequence(numbers.next()?), Sequence(numbers.next()?));
    Some(Closed { previous, last, records: numbers.next()? })
}

fn remove_if_there(path: &Path) -> Result<(), JournalError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(JournalError::io("delete", path)),
    }
}

/// Hands a file over piece by piece; pieces overlap.
fn scan(path: &Path, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut piece = vec![0; SALVAGE_BYTES];
    let mut at = 0_u64;
    while at < length {
        let count = usize::try_from((length - at).min(SALVAGE_BYTES as u64)).unwrap_or(0);
        file.read_exact_at(&mut piece[..count], at)?;
        take(&piece[..count]);
        at += (SALVAGE_BYTES - SALVAGE_OVERLAP) as u64;
    }
    Ok(())
}
