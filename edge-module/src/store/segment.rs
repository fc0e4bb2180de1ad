//! One segment: a small sled database in a folder of its own.
//!
//! ```text
//! key 8 zero bytes: "PMSEGMT1" | generation u64 | floor u64 | previous u64 | lane's chunk mark as in `chunk`, without entries
//! key first sequence of a chunk, big endian: the chunk
//! file `closed`, once the segment is full: "<previous> <last sequence> <records> <CRC-32C of them, hexadecimal>"
//! ```
//!
//! The names are synced before the first chunk is written, the header with it: a database without one was being made, or
//! was damaged, or is not ours. `closed` saves looking into the segment, and is synced only where something lies behind the
//! last record that must not be read: what a failed append or a power cut has left. `previous` is the last record of the lane before the segment. A segment is deleted by a rename
//! to `<floor>.deleted` first: a kill in between leaves nothing that looks like a segment.
//!
//! The engine opens a database once, when it makes it. It writes it up to a bound (see `room`), and the lane goes on in
//! the next segment. After that, and after any restart, a segment is only read, and without its engine (see `index`): an
//! engine that puts a database in order writes to it, and a power cut during that has cost records that were durable. For
//! the same reason nothing of the engine but `db` has to survive: not its configuration, its snapshots, its blobs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use shared_proto::model::{Generation, Sequence};
use tracing::warn;

use super::chunk::{self, Chunk, Salvaged};
use super::index::Index;
use super::room::ENGINE_SEGMENT_BYTES;
use super::{JournalError, Lane, Stored};

const HEADER_KEY: [u8; 8] = [0; 8];
const HEADER_MAGIC: &[u8; 8] = b"PMSEGMT1";
const DATABASE_FILE: &str = "db";
const CLOSED_FILE: &str = "closed";
/// Marks a folder whose deletion has begun.
pub(super) const DELETED_EXTENSION: &str = "deleted";
/// Without a header and this short, a database was being made.
const BEGUN_BYTES: u64 = 64 << 10;
/// Records that are counted in one go.
const COUNT_RECORDS: usize = 4_096;

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
    /// Of the segment that is written.
    database: Option<sled::Db>,
    /// Of one that is read.
    index: Option<Index>,
    previous: Option<Sequence>,
    closed: Option<Closed>,
    /// Bytes on disk, of one that is not written any more.
    measured: Option<u64>,
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
            index: None,
            previous: None,
            closed,
            measured: None,
            is_salvaged: false,
            is_deleted: false,
        }
    }

    /// Makes an empty segment, open for writing. Its name is durable; its header is with the first chunk that is synced.
    /// What is in its place, left by an attempt that failed, is removed.
    pub(super) fn create(
        name: SegmentName,
        cache_bytes: u64,
        previous: Sequence,
    ) -> Result<(Self, sled::Db), JournalError> {
        remove_if_there(&name.path)?;
        let mut this = Self::new(name, cache_bytes);
        let config = sled::Config::new()
            .path(&this.name.path)
            .cache_capacity(cache_bytes)
            .segment_size(ENGINE_SEGMENT_BYTES)
            .mode(sled::Mode::HighThroughput)
            // The journal flushes; a thread that collects free space has none to collect.
            .flush_every_ms(None);
        let path = &this.name.path;
        let database =
            guard(path, || config.open().map_err(JournalError::engine(&this.name.path)))?;
        // From here on the segment closes it, also after an error.
        this.database = Some(database.clone());
        let header = this.name.header(previous);
        database.insert(HEADER_KEY, header).map_err(JournalError::engine(&this.name.path))?;
        sync_folder(&this.name.path)?;
        sync_folder(this.name.path.parent().unwrap_or(&this.name.path))?;
        this.previous = Some(previous);
        Ok((this, database))
    }

    /// Whether the writer has it open: its files must stay where they are.
    pub(super) const fn is_written(&self) -> bool {
        self.database.is_some()
    }

    pub(super) fn damaged_while_written(&self) -> JournalError {
        JournalError::DamagedWhileWritten { path: self.name.path.clone() }
    }

    pub(super) const fn name(&self) -> &SegmentName {
        &self.name
    }

    pub(super) const fn closed(&self) -> Option<Closed> {
        self.closed
    }

    /// Makes the segment readable and checks that it is ours.
    pub(super) fn open(&mut self) -> Result<(), JournalError> {
        if self.database.is_some() {
            return Ok(());
        }
        self.index()?;
        if self.previous.is_none() {
            return Err(self.foreign("it has no header of this segment"));
        }
        Ok(())
    }

    fn index(&mut self) -> Result<&Index, JournalError> {
        if self.index.is_none() {
            let path = self.name.path.join(DATABASE_FILE);
            if !path.is_file() {
                return Err(self.foreign("its database file is missing"));
            }
            let (name, is_header) = (&self.name, |bytes: &[u8]| self.name.find_header(bytes));
            let index = Index::load(&path, name.generation, name.lane, HEADER_MAGIC, is_header)
                .map_err(JournalError::io("read", &path))?;
            self.previous = index.header().and_then(|header| self.name.check_header(header));
            self.index = Some(index);
        }
        Ok(self.index.as_ref().expect("loaded above"))
    }

    /// Whether it was being made when the process ended: nothing can have been acknowledged in it.
    pub(super) fn was_never_begun(&mut self) -> bool {
        let length = fs::metadata(self.name.path.join(DATABASE_FILE)).map_or(0, |file| file.len());
        let is_empty = self.index().map_or(true, Index::is_empty);
        length < BEGUN_BYTES && is_empty && self.previous.is_none()
    }

    /// Makes what a killed process had written survive a power cut too: it may be sent from now on.
    pub(super) fn sync(&self) -> Result<(), JournalError> {
        let path = self.name.path.join(DATABASE_FILE);
        if !path.is_file() {
            return Ok(());
        }
        File::open(&path).and_then(|file| file.sync_data()).map_err(JournalError::io("sync", &path))
    }

    fn foreign(&self, what: &'static str) -> JournalError {
        JournalError::Foreign { path: self.name.path.clone(), what }
    }

    pub(super) fn close(&mut self) {
        self.index = None;
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
        self.open()?;
        let (generation, lane) = (self.name.generation, self.name.lane);
        if let Some(previous) = self.previous {
            chain.expect(previous);
        }
        let path = &self.name.path;
        let is_over =
            |chain: &Chain| chain.records.len() >= records_max || chain.cursor >= chain.through;
        let Some(database) = &self.database else {
            let Some(index) = &self.index else { return Err(self.foreign("it is closed")) };
            for located in index.after(chain.cursor) {
                if is_over(chain) {
                    return Ok(false);
                }
                let bytes = index.read(located).map_err(JournalError::io("read", path))?;
                chain.take(&bytes, generation, lane);
                chain.has_damage |= !located.is_whole;
            }
            return Ok(true);
        };
        guard(path, || {
            let next = chain.cursor.next().0.to_be_bytes();
            // The chunk that the next record is in may begin before it.
            let start = database
                .range(..=next)
                .next_back()
                .transpose()
                .map_err(JournalError::engine(path))?
                .map_or(next, |(key, _)| key.as_ref().try_into().unwrap_or(next));
            for item in database.range(start..) {
                if is_over(chain) {
                    return Ok(false);
                }
                let (key, value) = item.map_err(JournalError::engine(path))?;
                if key.as_ref() != HEADER_KEY {
                    chain.take(&value, generation, lane);
                }
            }
            Ok(true)
        })
    }

    /// The last records up to `through`, oldest first, at most `records_max`.
    pub(super) fn tail(
        &mut self,
        through: Sequence,
        records_max: usize,
    ) -> Result<Vec<Stored>, JournalError> {
        self.open()?;
        let (generation, lane) = (self.name.generation, self.name.lane);
        let path = &self.name.path;
        let through = self.closed.map_or(through, |closed| closed.last.min(through));
        let mut records: Vec<Stored> = Vec::new();
        let mut take = |bytes: &[u8]| {
            let decoded = chunk::decode(bytes, generation, lane);
            let wanted = decoded.entries.iter().rev().filter(|(sequence, _)| *sequence <= through);
            records.extend(wanted.map(|(sequence, payload)| Stored {
                sequence: *sequence,
                payload: payload.to_vec(),
            }));
            records.len() >= records_max
        };
        if let Some(index) = &self.index {
            for located in index.backwards(through) {
                if take(&index.read(located).map_err(JournalError::io("read", path))?) {
                    break;
                }
            }
        } else if let Some(database) = &self.database {
            guard(path, || {
                for item in database.iter().rev() {
                    let (key, value) = item.map_err(JournalError::engine(path))?;
                    if key.as_ref() == HEADER_KEY || take(&value) {
                        break;
                    }
                }
                Ok(())
            })?;
        }
        records.truncate(records_max);
        records.reverse();
        Ok(records)
    }

    /// Last record that can have been acknowledged, or the one of the lane before the segment; and whether there is more
    /// behind it, torn by a power cut. `known` was acknowledged.
    pub(super) fn last(&mut self, known: Sequence) -> Result<(Sequence, bool), JournalError> {
        self.open()?;
        let previous = self.previous.unwrap_or_default();
        Ok(self.index()?.reach(previous, known))
    }

    /// Last record up to `through`, or the one of the lane before the segment.
    pub(super) fn find_last(&mut self, through: Sequence) -> Result<Sequence, JournalError> {
        let last = self.tail(through, 1)?.pop().map(|record| record.sequence);
        let previous = self.previous.unwrap_or_default();
        self.close();
        Ok(last.unwrap_or(previous))
    }

    /// Records after a sequence that can be read.
    pub(super) fn count_after(&mut self, after: Sequence) -> Result<u64, JournalError> {
        let through = self.closed.map_or(Sequence(u64::MAX - 1), |closed| closed.last);
        let mut chain = Chain::new(after, through);
        let mut records = 0;
        while !self.read(&mut chain, COUNT_RECORDS)? {
            records += std::mem::take(&mut chain.records).len() as u64;
        }
        Ok(records + chain.records.len() as u64)
    }

    /// Writes down that nothing more comes into this segment. Unless something lies behind the last record, the mark
    /// only saves looking into the segment and need not be durable.
    pub(super) fn mark_closed(
        &mut self,
        closed: Closed,
        is_durable: bool,
    ) -> Result<(), JournalError> {
        let text = format!("{} {} {}", closed.previous.0, closed.last.0, closed.records);
        let text = format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()));
        let path = self.name.path.join(CLOSED_FILE);
        let written = if is_durable {
            write_synced(&path, text.as_bytes())
        } else {
            fs::write(&path, text.as_bytes())
        };
        written.map_err(JournalError::io("write", &path))?;
        if is_durable {
            sync_folder(&self.name.path)?;
        }
        self.closed = Some(closed);
        Ok(())
    }

    /// Marks the segment closed after the record `last`.
    pub(super) fn close_after(
        &mut self,
        last: Sequence,
        is_durable: bool,
    ) -> Result<(), JournalError> {
        self.open()?;
        let records = self.index()?.count(last);
        let previous = self.previous.unwrap_or_default();
        self.mark_closed(Closed { previous, last, records }, is_durable)
    }

    /// Bytes on disk.
    pub(super) fn bytes(&mut self) -> u64 {
        if self.database.is_none() {
            *self.measured.get_or_insert_with(|| bytes_on_disk(&self.name.path))
        } else {
            bytes_on_disk(&self.name.path)
        }
    }

    /// Can be tried again.
    pub(super) fn delete(&mut self) -> Result<(), JournalError> {
        self.close();
        let path = &self.name.path;
        let doomed = path.with_extension(DELETED_EXTENSION);
        remove_if_there(&doomed)?;
        match fs::rename(path, &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(JournalError::io("rename", path))?,
        }
        self.is_deleted = true;
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
        let (mut new, database) = Self::create(name, self.cache_bytes, previous)?;
        let mut records = 0;
        let new_path = new.name.path.clone();
        for salvaged in &found {
            let chunk = salvaged.to_chunk(self.name.generation, self.name.lane);
            records += chunk.records;
            write_chunk(&database, &new_path, chunk)?;
        }
        sync_database(&database, &new_path)?;
        drop(database);
        new.close();
        if let Some(closed) = self.closed {
            new.mark_closed(closed, true)?;
        }
        move_aside(&self.name.path, quarantine, self.name.lane.as_str())?;
        fs::rename(&new.name.path, &self.name.path)
            .map_err(JournalError::io("rename", &new.name.path))?;
        sync_folder(self.name.path.parent().unwrap_or(&self.name.path))?;
        warn!(path = %self.name.path.display(), records, "damaged segment moved to the quarantine, what could be read was salvaged");
        self.previous = None;
        self.measured = None;
        self.is_salvaged = true;
        Ok(())
    }

    /// Chunks up to `limit`, with what is whole of each.
    fn find_chunks(&mut self, limit: Sequence) -> Result<Vec<Salvaged>, JournalError> {
        let (generation, lane) = (self.name.generation, self.name.lane);
        let range = Sequence(self.name.floor)..=limit;
        if !self.name.path.join(DATABASE_FILE).is_file() {
            return Ok(Vec::new());
        }
        self.database = None;
        self.index()?;
        let path = &self.name.path;
        let Some(index) = &self.index else { return Ok(Vec::new()) };
        let mut chunks = Vec::new();
        for located in index.after(Sequence(0)) {
            let bytes = index.read(located).map_err(JournalError::io("read", path))?;
            let mut chunk = Salvaged::of(&chunk::decode(&bytes, generation, lane));
            // What a failed append left behind the limit was written again elsewhere.
            chunk.records.retain(|record| range.contains(&record.sequence));
            if !chunk.records.is_empty() {
                chunks.push(chunk);
            }
        }
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

    /// The length of the segment's header, if the bytes begin with it.
    fn find_header(&self, bytes: &[u8]) -> Option<usize> {
        let length = self.header(Sequence(0)).len();
        self.check_header(bytes.get(..length)?).map(|_| length)
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

/// Makes everything written so far survive a power cut. Gives the length of the file.
pub(super) fn sync_database(database: &sled::Db, path: &Path) -> Result<u64, JournalError> {
    flush(database, path)?;
    let file = path.join(DATABASE_FILE);
    let sync = |handle: File| {
        handle.sync_data()?;
        Ok(handle.metadata()?.len())
    };
    File::options()
        .read(true)
        .write(true)
        .open(&file)
        .and_then(sync)
        .map_err(JournalError::io("sync", &file))
}

/// Hands everything written so far to the system. Gives the length of the file.
pub(super) fn flush(database: &sled::Db, path: &Path) -> Result<u64, JournalError> {
    database.flush().map_err(JournalError::engine(path))?;
    let file = path.join(DATABASE_FILE);
    Ok(fs::metadata(&file).map_err(JournalError::io("examine", &file))?.len())
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
    match fs::rename(path, &target) {
        // Somebody has been faster: it is out of the way.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(JournalError::io("move aside", path))?,
    }
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
