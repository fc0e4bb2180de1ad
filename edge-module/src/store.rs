//! The journal: every record is on disk here before the first attempt to send it.
//!
//! [`Journal`] is what the program sees, [`SegmentedJournal`] (sled) the engine in service, [`PlainJournal`] a second, plain
//! engine that tests and benchmarks compare it with.
//!
//! ```text
//! <data-dir>/journal/<generation>/head              what was given, delivered and lost; see `head`
//! <data-dir>/journal/<generation>/inputs-0, -1      marks of journalled messages, to know repeats again; see `recognition`
//! <data-dir>/journal/<generation>/<lane>/<floor>/   one segment: a small sled database; see `segment`
//! <data-dir>/quarantine/…                           what was damaged, whole, after the salvage of what could be read
//! ```
//!
//! `generation` and `floor` are 20 decimal digits. A generation is the microsecond of its creation; `floor` is a sequence
//! below which nothing is in the segment. Lanes share one sequence. A group is written lane after lane, each synced before
//! the next begins, and takes its numbers in that order: whatever a crash cuts off is at the end, so there are no holes.
//!
//! Limits: a record has at most [`RECORD_BYTES_MAX`] bytes; the journal keeps below `bytes_max` and leaves `free_bytes_min`
//! of the disk to others, by evicting whole segments, oldest first: readings, waveforms, dead letters, machine events
//! last. A segment with records in flight is spared, so that nothing is called lost that still arrives. Each eviction is
//! counted, kept in `head` until its gap record is durable, and reported with its exact range.
//!
//! | what happens | what survives |
//! |---|---|
//! | kill -9 | every append that returned; others may be there or not, without holes |
//! | power cut | the same: `flush` (which does not reach the platter on Linux) is followed by `sync_data` on the database file |
//! | a full or silent disk | everything; an append waits, nothing is moved, deleted or called damaged |
//! | damaged, cut, emptied, missing or foreign files | all records whose own bytes are whole; the others are reported as exact ranges. Damage under the writer makes it begin another segment first |
//! | the head file alone | everything; delivered records may leave again, which deduplication makes harmless |
//!
//! How a loss is noticed: each chunk names the record of its lane before it, each segment too, and `head` the last record
//! of each lane. What is named and not there is lost; what was evicted or trimmed is on the books.

mod chunk;
#[cfg(test)]
mod corruption;
mod head;
mod index;
mod plain;
mod recovery;
mod room;
mod segment;
mod segmented;
mod survey;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shared_proto::model::{Generation, Sequence};

pub use plain::PlainJournal;
pub use segmented::SegmentedJournal;
pub use survey::{LaneReport, SegmentSummary, Survey};

/// Largest record: a dead letter with all its raw bytes fits.
pub const RECORD_BYTES_MAX: usize = 96 * 1024;

/// Where a generation is.
#[must_use]
pub fn generation_folder(data_dir: &Path, generation: Generation) -> PathBuf {
    data_dir.join("journal").join(recovery::digits(generation.0))
}

/// Which queue a record stands in. Each has its own segments and its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Machine events: small, first to leave, last to be evicted.
    Events,
    /// Readings.
    Readings,
    /// Raw samples around a trip.
    Waveforms,
    /// Refused input.
    DeadLetters,
}

impl Lane {
    /// All lanes, first to leave first.
    pub const ALL: [Self; 4] = [Self::Events, Self::Readings, Self::Waveforms, Self::DeadLetters];
    /// All lanes, first to be evicted first.
    pub const EVICTION: [Self; 4] =
        [Self::Readings, Self::Waveforms, Self::DeadLetters, Self::Events];

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

    /// Its place in [`Lane::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Events => 0,
            Self::Readings => 1,
            Self::Waveforms => 2,
            Self::DeadLetters => 3,
        }
    }
}

/// A value for each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerLane<T>([T; 4]);

impl<T> PerLane<T> {
    /// The value of one lane.
    pub const fn get(&self, lane: Lane) -> &T {
        &self.0[lane.index()]
    }

    /// The value of one lane, to change it.
    pub const fn get_mut(&mut self, lane: Lane) -> &mut T {
        &mut self.0[lane.index()]
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
    /// A segment without its header, or with that of another.
    #[error("segment {path}: {what}")]
    Foreign {
        /// Which segment.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Less free space than the journal has to leave to others, and nothing left to evict.
    #[error(
        "disk of {path} has {free_bytes} bytes free, journal.free-bytes-min is {free_bytes_min} and nothing is left to evict"
    )]
    NoRoom {
        /// The journal's folder.
        path: PathBuf,
        /// What the disk has.
        free_bytes: u64,
        /// What it must keep.
        free_bytes_min: u64,
    },
    /// Damage in a segment that is still written. The writer begins another with its next look around; then it is salvaged.
    #[error("segment {path} is damaged and still written: it is salvaged when the next is begun")]
    DamagedWhileWritten {
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
            matches!(
                error.kind(),
                io::ErrorKind::InvalidData
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidInput
            )
        };
        match self {
            Self::Io { source, .. } => is_damage(source),
            Self::Engine { source: sled::Error::Io(error), .. } => is_damage(error),
            Self::Engine { .. } | Self::Panicked { .. } | Self::Foreign { .. } => true,
            Self::RecordTooLarge { .. }
            | Self::NoSegment { .. }
            | Self::NoRoom { .. }
            | Self::DamagedWhileWritten { .. } => false,
        }
    }

    pub(crate) fn engine(path: &Path) -> impl FnOnce(sled::Error) -> Self {
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
    EvictedCap,
    /// The disk had less free space than it must keep.
    EvictedDisk,
    /// They could not be read, or were not there.
    Damaged,
}

impl LossCause {
    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EvictedCap => "evicted-cap",
            Self::EvictedDisk => "evicted-disk",
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

/// A record on its way into the journal.
pub type Entry = (Lane, Vec<u8>);

/// Limits of the journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalSettings {
    /// Payload bytes at which a segment is closed.
    pub segment_bytes: u64,
    /// Cap of all segments on disk, in bytes.
    pub bytes_max: u64,
    /// Bytes of the disk that are left to others.
    pub free_bytes_min: u64,
    /// sled's cache for each open segment, in bytes.
    pub cache_bytes: u64,
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

/// The writing side. One thread owns it.
pub trait Journal: Send {
    /// Which life of the journal this is.
    fn generation(&self) -> Generation;

    /// The sequence that the next record gets.
    fn next_sequence(&self) -> Sequence;

    /// The last durable record of the lane, delivered or not.
    fn last(&self, lane: Lane) -> Sequence;

    /// Everything of the lane up to here has been delivered.
    fn acknowledged(&self, lane: Lane) -> Sequence;

    /// A reading side for other threads.
    fn reader(&self) -> Arc<dyn JournalReader>;

    /// Writes records and returns when they are durable. Gives the sequence after the last one. Lanes take their numbers
    /// in the order of [`Lane::ALL`], records of a lane in the order given.
    ///
    /// # Errors
    /// Nothing counts as written; call [`Journal::reopen`] before appending again.
    fn append(&mut self, records: &[Entry]) -> Result<Sequence, JournalError>;

    /// Takes note that everything of the lane up to `through` was delivered and deletes drained segments.
    ///
    /// # Errors
    /// A drained segment cannot be deleted.
    fn trim(&mut self, lane: Lane, through: Sequence) -> Result<(), JournalError>;

    /// Writes down how far delivery has come, and makes the books durable.
    ///
    /// # Errors
    /// The disk refuses.
    fn save(&mut self) -> Result<(), JournalError>;

    /// Bytes on disk, all lanes.
    fn bytes(&self) -> u64;

    /// Segments on disk, all lanes.
    fn segments(&self) -> usize;

    /// Deletes the oldest segments while the journal is over its cap or the disk has too little room.
    ///
    /// # Errors
    /// A segment cannot be deleted, or nothing is left to evict.
    fn evict(&mut self) -> Result<(), JournalError>;

    /// Enters a loss that a reader found into the books; says whether it was new.
    fn add_loss(&mut self, loss: &Loss) -> bool;

    /// Losses whose gap records are not known to be durable. They stay until confirmed.
    fn losses(&self) -> Vec<Loss>;

    /// Takes note that the gap records of these losses are durable.
    fn confirm_losses(&mut self, losses: &[Loss]);

    /// Gets ready to append again after a failed append.
    ///
    /// # Errors
    /// The storage still refuses.
    fn reopen(&mut self) -> Result<(), JournalError>;
}

/// The reading side: shared by threads, never in the way of the writing side.
pub trait JournalReader: Send + Sync {
    /// Records of the lane after `after` and up to `through`, at most about `records_max`. What is lost is reported and
    /// passed over; a disk that refuses is an obstacle.
    fn read(&self, lane: Lane, after: Sequence, through: Sequence, records_max: usize) -> Batch;

    /// The first record of the lane after `after` and up to `through`, only to look at: it does not count as in flight.
    fn peek(&self, lane: Lane, after: Sequence, through: Sequence) -> Option<Stored>;

    /// The last records of the lane, oldest first, at most `records_max`; fewer where they cannot be read.
    fn tail(&self, lane: Lane, records_max: usize) -> Vec<Stored>;
}
