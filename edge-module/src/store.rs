//! The journal: every record is on disk here before the first attempt to send it.
//!
//! ```text
//! <data-dir>/journal/<generation>/<lane>/<floor>/   one segment: a small sled database
//! <data-dir>/journal/<generation>/<lane>/acknowledged   last sequence delivered, as text; may be behind
//! <data-dir>/quarantine/…                          segments that would not open, whole
//! ```
//!
//! `generation` and `floor` are 20 decimal digits. A generation is the microsecond of its creation; `floor` is the lowest
//! sequence that can be in the segment. Key: first sequence of a chunk, 8 bytes, big endian. Value: a chunk of at most
//! `CHUNK_BYTES_MAX` bytes, one entry after the other:
//!
//! ```text
//! length u32 | CRC-32C of sequence and payload u32 | sequence u64 | payload     (little endian)
//! ```
//!
//! What survives what: an append that returned survives a power cut, because sled's `flush` (which does not reach the
//! platter on Linux) is followed by `sync_data` on the database file. One that did not return may be there or not; its
//! sequences are given again only if it is not. `acknowledged` is not synced: what it forgot is sent again, which
//! deduplication makes harmless. The newest segment of a lane is never deleted, so the next sequence is always known.
//! A segment that does not open at the start, on a disk that has room, is moved aside and reported with the sequences that it may have held.

mod segment;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared_proto::model::{EventTime, Generation, Sequence};

use segment::Segment;

/// Largest chunk; sled keeps larger values in files of their own.
const CHUNK_BYTES_MAX: usize = 96 * 1024;
/// Room that must be there before a segment is called damaged.
const PROBE_BYTES: usize = 1 << 20;
/// Largest record: a dead letter with all its raw bytes fits.
pub const RECORD_BYTES_MAX: usize = 120 * 1024;

/// Which queue a record stands in. Each has its own segments and its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Machine events: small, first to leave, last to be evicted.
    Events,
    /// Readings.
    Readings,
    /// Raw samples around trips.
    Waveforms,
    /// Refused input.
    DeadLetters,
}

impl Lane {
    /// All lanes, first to leave first.
    pub const ALL: [Self; 4] = [Self::Events, Self::Readings, Self::Waveforms, Self::DeadLetters];

    /// The folder's name, and the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Readings => "readings",
            Self::Waveforms => "waveforms",
            Self::DeadLetters => "dead-letters",
        }
    }
}

/// A value for each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerLane<T> {
    events: T,
    readings: T,
    waveforms: T,
    dead_letters: T,
}

impl<T> PerLane<T> {
    /// The value of one lane.
    pub const fn get(&self, lane: Lane) -> &T {
        match lane {
            Lane::Events => &self.events,
            Lane::Readings => &self.readings,
            Lane::Waveforms => &self.waveforms,
            Lane::DeadLetters => &self.dead_letters,
        }
    }

    /// The value of one lane, to change it.
    pub const fn get_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Events => &mut self.events,
            Lane::Readings => &mut self.readings,
            Lane::Waveforms => &mut self.waveforms,
            Lane::DeadLetters => &mut self.dead_letters,
        }
    }
}

/// Why the journal cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The storage engine refused.
    #[error("segment {path}")]
    Engine {
        /// Which segment.
        path: PathBuf,
        /// Why not.
        source: sled::Error,
    },
    /// The storage engine panicked on what it found.
    #[error("segment {path}: the engine panicked")]
    Panicked {
        /// Which segment.
        path: PathBuf,
    },
    /// A lane has no segment to write to.
    #[error("lane {lane} has no open segment")]
    NoSegment {
        /// Which lane.
        lane: &'static str,
    },
    /// A record over the limit.
    #[error("record of {length} bytes, at most {RECORD_BYTES_MAX} can be journalled")]
    RecordTooLarge {
        /// Its length.
        length: usize,
    },
}

impl JournalError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the bytes on disk are at fault. A disk that is full or does not answer is not: what is on it comes back.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let is_damage = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        };
        match self {
            Self::Io { source, .. } => is_damage(source),
            Self::Engine { source: sled::Error::Io(error), .. } => is_damage(error),
            Self::Engine { .. } | Self::Panicked { .. } => true,
            Self::RecordTooLarge { .. } | Self::NoSegment { .. } => false,
        }
    }

    fn engine(path: &Path) -> impl FnOnce(sled::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Engine { path, source }
    }
}

/// Sequences of a lane that will never be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The lane.
    pub lane: Lane,
    /// Why.
    pub cause: LossCause,
    /// Lowest sequence concerned.
    pub first: Sequence,
    /// Highest sequence concerned.
    pub last: Sequence,
    /// Records of the lane in between, if they could be counted.
    pub records: Option<u64>,
}

/// Why records are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// The journal was at its cap.
    Evicted,
    /// A segment could not be read.
    Damaged,
}

impl LossCause {
    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Damaged => "damaged",
        }
    }
}

/// A record as it was journalled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub sequence: Sequence,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Limits of the journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalSettings {
    /// Payload at which a segment is closed.
    pub segment_bytes: u64,
    /// Cap of all segments on disk.
    pub bytes_max: u64,
    /// sled's cache for each open segment.
    pub cache_bytes: u64,
}

/// The writing side. One thread owns it.
pub struct Journal {
    settings: JournalSettings,
    root: PathBuf,
    quarantine: PathBuf,
    generation: Generation,
    next_sequence: Sequence,
    acknowledged: PerLane<Sequence>,
    acknowledged_written: PerLane<Sequence>,
    shared: Arc<Shared>,
}

/// What reader and writer share: the segments of each lane by floor.
struct Shared {
    lanes: PerLane<Mutex<BTreeMap<u64, Segment>>>,
}

impl Shared {
    fn lane(&self, lane: Lane) -> MutexGuard<'_, BTreeMap<u64, Segment>> {
        // A panic while holding the lock leaves a map that is still a list of folders.
        self.lanes.get(lane).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    /// Opens the journal below `data_dir`, or starts a new generation. What cannot be read is moved aside and reported.
    ///
    /// # Errors
    /// The folder cannot be created, listed or written.
    pub fn open(
        data_dir: &Path,
        settings: JournalSettings,
        now: EventTime,
    ) -> Result<(Self, Vec<Loss>), JournalError> {
        let journal = data_dir.join("journal");
        let quarantine = data_dir.join("quarantine");
        for folder in [&journal, &quarantine] {
            fs::create_dir_all(folder).map_err(JournalError::io("create", folder))?;
        }
        let generation = match numbered_folders(&journal)?.pop() {
            Some(generation) => Generation(generation),
            None => Generation(u64::try_from(now.micros()).unwrap_or_default().max(1)),
        };
        let root = journal.join(digits(generation.0));
        let shared = Arc::new(Shared { lanes: PerLane::default() });
        let mut this = Self {
            settings,
            root,
            quarantine,
            generation,
            next_sequence: Sequence(1),
            acknowledged: PerLane::default(),
            acknowledged_written: PerLane::default(),
            shared,
        };
        let mut losses = Vec::new();
        for lane in Lane::ALL {
            losses.extend(this.open_lane(lane)?);
        }
        for lane in Lane::ALL {
            this.ensure_segment(lane)?;
        }
        sync_folder(&journal)?;
        Ok((this, losses))
    }

    /// Which life of the journal this is.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// The sequence that the next record gets.
    #[must_use]
    pub const fn next_sequence(&self) -> Sequence {
        self.next_sequence
    }

    /// Everything of the lane up to here has been delivered.
    #[must_use]
    pub const fn acknowledged(&self, lane: Lane) -> Sequence {
        *self.acknowledged.get(lane)
    }

    /// A reading side for another thread.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader {
            shared: Arc::clone(&self.shared),
            root: self.root.clone(),
            cache_bytes: self.settings.cache_bytes,
        }
    }

    /// Writes records in order and returns when they are durable. Gives the sequence after the last one.
    ///
    /// # Errors
    /// Nothing counts as written; the same records may be appended again and get the same sequences.
    pub fn append(&mut self, records: &[(Lane, Vec<u8>)]) -> Result<Sequence, JournalError> {
        if let Some((_, payload)) =
            records.iter().find(|(_, payload)| payload.len() > RECORD_BYTES_MAX)
        {
            return Err(JournalError::RecordTooLarge { length: payload.len() });
        }
        for lane in Lane::ALL {
            if records.iter().any(|(of_lane, _)| *of_lane == lane) {
                self.roll_if_full(lane)?;
                self.ensure_segment(lane)?;
            }
        }
        let first = self.next_sequence;
        let mut end = first;
        for lane in Lane::ALL {
            let mut sequence = first;
            let mut chunk = segment::Chunk::default();
            let mut is_touched = false;
            for (of_lane, payload) in records {
                if *of_lane == lane {
                    is_touched = true;
                    if chunk.len() + payload.len() > CHUNK_BYTES_MAX {
                        self.write_chunk(lane, std::mem::take(&mut chunk))?;
                    }
                    chunk.push(sequence, payload);
                }
                sequence = sequence.next();
            }
            end = sequence;
            if is_touched {
                self.write_chunk(lane, chunk)?;
                self.sync_newest(lane)?;
            }
        }
        // Durable. A full segment is rolled by the next append, whose failure repeats nothing.
        self.next_sequence = end;
        Ok(end)
    }

    /// Takes note that everything of the lane up to `through` was delivered and deletes drained segments.
    ///
    /// # Errors
    /// A drained segment cannot be deleted.
    pub fn trim(&mut self, lane: Lane, through: Sequence) -> Result<(), JournalError> {
        let acknowledged = self.acknowledged.get_mut(lane);
        *acknowledged = through.max(*acknowledged);
        let through = *acknowledged;
        let mut segments = self.shared.lane(lane);
        while let Some((floor, next_floor)) = oldest_closed(&segments) {
            if next_floor > through.0 + 1 {
                break;
            }
            if let Some(segment) = segments.remove(&floor) {
                segment.delete()?;
            }
        }
        Ok(())
    }

    /// Writes down how far delivery has come, if that has changed. Not synced: being behind is harmless.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_acknowledged(&mut self) -> Result<(), JournalError> {
        for lane in Lane::ALL {
            let acknowledged = *self.acknowledged.get(lane);
            if *self.acknowledged_written.get(lane) != acknowledged {
                let path = self.lane_folder(lane).join("acknowledged");
                let new = path.with_extension("new");
                fs::write(&new, format!("{}\n", acknowledged.0))
                    .and_then(|()| fs::rename(&new, &path))
                    .map_err(JournalError::io("write", &path))?;
                *self.acknowledged_written.get_mut(lane) = acknowledged;
            }
        }
        Ok(())
    }

    /// Bytes on disk, all lanes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        Lane::ALL.iter().map(|lane| self.lane_bytes(*lane)).sum()
    }

    fn lane_bytes(&self, lane: Lane) -> u64 {
        self.shared.lane(lane).values().map(Segment::bytes_on_disk).sum()
    }

    /// Deletes the oldest closed segments while the journal is over its cap: readings first, machine events last.
    ///
    /// # Errors
    /// A segment cannot be deleted.
    pub fn evict(&mut self) -> Result<Vec<Loss>, JournalError> {
        let mut losses = Vec::new();
        for lane in [Lane::Readings, Lane::Waveforms, Lane::DeadLetters, Lane::Events] {
            while self.bytes() > self.settings.bytes_max {
                let Some(loss) = self.evict_oldest(lane)? else { break };
                losses.push(loss);
            }
        }
        Ok(losses)
    }

    fn evict_oldest(&mut self, lane: Lane) -> Result<Option<Loss>, JournalError> {
        let acknowledged = *self.acknowledged.get(lane);
        let mut segments = self.shared.lane(lane);
        let Some((floor, next_floor)) = oldest_closed(&segments) else { return Ok(None) };
        let Some(mut segment) = segments.remove(&floor) else { return Ok(None) };
        let first = Sequence(floor.max(acknowledged.0 + 1));
        let last = Sequence(next_floor - 1);
        let records = segment.count_from(first, self.settings.cache_bytes).ok();
        segment.delete()?;
        Ok(Some(Loss { lane, cause: LossCause::Evicted, first, last, records }))
    }

    /// Closes the newest segments after a failed append and opens them again. One that does not open stays where it is,
    /// for the reader to judge when the disk has room, and a new one is begun after it. Nothing is moved or deleted here:
    /// on a full disk the engine cannot tell damage from want of room.
    ///
    /// # Errors
    /// The storage still refuses.
    pub fn reopen(&mut self) -> Result<(), JournalError> {
        for lane in Lane::ALL {
            let mut segments = self.shared.lane(lane);
            let Some(mut newest) = segments.last_entry() else { continue };
            let floor = *newest.key();
            newest.get_mut().close();
            if let Err(error) = newest.get_mut().open(self.settings.cache_bytes) {
                // With nothing durable in it a segment of the same floor would be the same folder.
                if floor >= self.next_sequence.0 {
                    return Err(error);
                }
                self.begin_segment(lane, &mut segments)?;
            }
        }
        Ok(())
    }

    fn lane_folder(&self, lane: Lane) -> PathBuf {
        self.root.join(lane.as_str())
    }

    fn open_lane(&mut self, lane: Lane) -> Result<Vec<Loss>, JournalError> {
        let folder = self.lane_folder(lane);
        fs::create_dir_all(&folder).map_err(JournalError::io("create", &folder))?;
        let acknowledged = read_acknowledged(&folder.join("acknowledged"));
        let mut losses = Vec::new();
        let mut segments = BTreeMap::new();
        for floor in numbered_folders(&folder)? {
            segments.insert(floor, Segment::new(folder.join(digits(floor))));
        }
        // The newest that opens tells the last sequence; what is newer and does not open is lost.
        let mut highest = 0;
        while let Some((floor, mut segment)) = segments.pop_last() {
            highest = highest.max(floor.saturating_sub(1));
            match segment.last_sequence(self.settings.cache_bytes) {
                Ok(last) => {
                    highest = highest.max(last.map_or(0, |last| last.0));
                    segments.insert(floor, segment);
                    break;
                }
                Err(error) if !error.is_damage() || !has_room(&self.root) => return Err(error),
                Err(_) => {
                    segment.quarantine(&self.quarantine, lane)?;
                    losses.push(damaged(lane, floor, Sequence(floor)));
                }
            }
        }
        *self.shared.lane(lane) = segments;
        *self.acknowledged.get_mut(lane) = Sequence(acknowledged.min(highest));
        *self.acknowledged_written.get_mut(lane) = Sequence(acknowledged);
        // A damaged newest segment may have held sequences that nobody can name any more: leave room for them.
        let room = if losses.is_empty() { 1 } else { 1 + self.settings.segment_bytes / 16 };
        self.next_sequence = self.next_sequence.max(Sequence(highest + room));
        for loss in &mut losses {
            loss.last = Sequence(highest + room - 1);
        }
        Ok(losses)
    }

    fn ensure_segment(&self, lane: Lane) -> Result<(), JournalError> {
        let mut segments = self.shared.lane(lane);
        if segments.is_empty() {
            self.begin_segment(lane, &mut segments)?;
        }
        Ok(())
    }

    fn begin_segment(
        &self,
        lane: Lane,
        segments: &mut BTreeMap<u64, Segment>,
    ) -> Result<(), JournalError> {
        let folder = self.lane_folder(lane);
        let floor = self.next_sequence.0;
        let mut segment = Segment::new(folder.join(digits(floor)));
        segment.open(self.settings.cache_bytes)?;
        sync_folder(&folder)?;
        segments.insert(floor, segment);
        Ok(())
    }

    fn write_chunk(&self, lane: Lane, chunk: segment::Chunk) -> Result<(), JournalError> {
        let mut segments = self.shared.lane(lane);
        let Some(mut newest) = segments.last_entry() else {
            return Err(JournalError::NoSegment { lane: lane.as_str() });
        };
        newest.get_mut().write(chunk, self.settings.cache_bytes)
    }

    fn sync_newest(&self, lane: Lane) -> Result<(), JournalError> {
        // Out of the lock: the reader goes on while the disk works.
        let sync = {
            let segments = self.shared.lane(lane);
            segments.last_key_value().and_then(|(_, segment)| segment.sync_handle())
        };
        sync.ok_or(JournalError::NoSegment { lane: lane.as_str() })?.flush_and_sync()
    }

    fn roll_if_full(&self, lane: Lane) -> Result<(), JournalError> {
        let mut segments = self.shared.lane(lane);
        let is_full = segments
            .last_key_value()
            .is_some_and(|(_, segment)| segment.is_full(self.settings.segment_bytes));
        if is_full {
            if let Some(mut newest) = segments.last_entry() {
                newest.get_mut().close();
            }
            self.begin_segment(lane, &mut segments)?;
        }
        Ok(())
    }
}

/// The reading side.
#[derive(Clone)]
pub struct JournalReader {
    shared: Arc<Shared>,
    root: PathBuf,
    cache_bytes: u64,
}

/// What one look into the journal found.
#[derive(Debug, Default)]
pub struct Batch {
    /// Records in order.
    pub records: Vec<Stored>,
    /// Sequences that can never be read.
    pub losses: Vec<Loss>,
    /// Why reading stopped early; to be tried again.
    pub obstacle: Option<JournalError>,
}

impl JournalReader {
    /// Records of the lane after `after` and up to `through`, at most about `records_max`. A segment that is damaged is
    /// reported as lost and passed over; a disk that refuses is an obstacle.
    #[must_use]
    pub fn read(
        &self,
        lane: Lane,
        after: Sequence,
        through: Sequence,
        records_max: usize,
    ) -> Batch {
        let mut batch = Batch::default();
        let mut segments = self.shared.lane(lane);
        let newest = segments.last_key_value().map_or(0, |(floor, _)| *floor);
        let start = segments.range(..=after.0 + 1).next_back().map_or(0, |(floor, _)| *floor);
        let floors: Vec<u64> = segments.range(start..).map(|(floor, _)| *floor).collect();
        for (index, floor) in floors.iter().enumerate() {
            if *floor > through.0 || batch.records.len() >= records_max {
                break;
            }
            let Some(segment) = segments.get_mut(floor) else { continue };
            let next_floor = floors.get(index + 1).map_or(through.0 + 1, |next| *next);
            let is_read =
                segment.read(after, through, records_max, self.cache_bytes, &mut batch.records);
            match is_read {
                Err(error) if !error.is_damage() || !has_room(&self.root) => {
                    batch.obstacle = Some(error);
                    break;
                }
                Err(_) if next_floor > after.0 + 1 => {
                    let last = Sequence(next_floor - 1);
                    batch.losses.push(damaged(lane, (*floor).max(after.0 + 1), last));
                }
                Err(_) | Ok(()) => {}
            }
            // Closed again when read to its end: only the newest and the one being read are open.
            if *floor != newest
                && batch.records.last().is_none_or(|record| record.sequence.0 + 1 >= next_floor)
            {
                segment.close();
            }
        }
        batch
    }

    /// The last records of the lane, oldest first, at most `records_max`: from the newest segments.
    #[must_use]
    pub fn tail(&self, lane: Lane, records_max: usize) -> Vec<Stored> {
        let mut segments = self.shared.lane(lane);
        let Some((_, newest)) = segments.iter_mut().next_back() else { return Vec::new() };
        newest.tail(records_max, self.cache_bytes).unwrap_or_default()
    }
}

/// Whether the disk takes as much as the engine may need to open a segment. If not, nothing is called damaged.
fn has_room(folder: &Path) -> bool {
    let path = folder.join("probe");
    let is_written = File::create(&path)
        .and_then(|mut file| {
            file.write_all(&vec![0; PROBE_BYTES])?;
            file.sync_all()
        })
        .is_ok();
    fs::remove_file(&path).is_ok() && is_written
}

fn damaged(lane: Lane, first: u64, last: Sequence) -> Loss {
    Loss { lane, cause: LossCause::Damaged, first: Sequence(first), last, records: None }
}

/// Floors of the oldest segment and of its successor; nothing if only the newest is left.
fn oldest_closed(segments: &BTreeMap<u64, Segment>) -> Option<(u64, u64)> {
    let mut floors = segments.keys();
    Some((*floors.next()?, *floors.next()?))
}

fn digits(number: u64) -> String {
    format!("{number:020}")
}

fn numbered_folders(folder: &Path) -> Result<Vec<u64>, JournalError> {
    let mut numbers = Vec::new();
    let entries = fs::read_dir(folder).map_err(JournalError::io("list", folder))?;
    for entry in entries {
        let entry = entry.map_err(JournalError::io("list", folder))?;
        let name = entry.file_name();
        if let Some(number) =
            name.to_str().filter(|name| name.len() == 20).and_then(|name| name.parse().ok())
            && entry.path().is_dir()
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What cannot be read counts as nothing delivered: it is sent again.
fn read_acknowledged(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(JournalError::io("sync", folder))
}
