//! The books of a generation, in one small file that is written in place.
//!
//! ```text
//! head: two slots of 4096 bytes. A slot: magic "PMHEAD01" | counter u64 | generation u64 | start of the system u64 |
//!       next sequence u64 | last sequence of each lane 4 x u64 | delivered through, of each lane 4 x u64 |
//!       number of gaps u32 | gaps | CRC-32C of all before u32
//! gap:  lane u8 | cause u8 | is reported u8 | are records known u8 | first u64 | last u64 | records u64
//! ```
//!
//! Little endian. It is written after each append, not synced: after a kill it is exact, after a power cut it is as old as
//! the last sync, at most about a second, and never ahead of what is durable. It is synced before anything is deleted. The
//! slot of the last sync is not touched until the next, so one of them is whole. It is allocated when it is made: writing
//! it needs no room. Whoever has the journal open for writing holds a lock on it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use shared_proto::model::{Generation, Sequence};

use super::{Lane, Loss, LossCause, PerLane};

const MAGIC: &[u8; 8] = b"PMHEAD01";
const SLOT_BYTES: usize = 4096;
/// How long a lock is waited for, and how often it is tried.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_STEP: Duration = Duration::from_millis(2);
const FIXED_BYTES: usize = 8 + 4 * 8 + 8 * 8 + 4;
const GAP_BYTES: usize = 28;
/// Gaps that fit a slot. More are kept in memory; those that are known longest stay in the file.
const GAPS_MAX: usize = (SLOT_BYTES - FIXED_BYTES - 4) / GAP_BYTES;

/// A loss on the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) loss: Loss,
    /// Its gap record is durable.
    pub(super) is_reported: bool,
}

/// What was given, delivered and lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) next: Sequence,
    pub(super) last: PerLane<Sequence>,
    pub(super) acknowledged: PerLane<Sequence>,
    pub(super) gaps: Vec<Gap>,
}

impl Default for Books {
    fn default() -> Self {
        Self {
            next: Sequence(1),
            last: PerLane::default(),
            acknowledged: PerLane::default(),
            gaps: Vec::new(),
        }
    }
}

impl Books {
    /// Parts of a range of a lane that are on no books.
    pub(super) fn unknown(&self, lane: Lane, first: Sequence, last: Sequence) -> Vec<Loss> {
        unknown_parts(&self.gaps, lane, first, last)
    }

    /// Enters a loss. A neighbour of the same lane and cause that is in the same state grows instead.
    pub(super) fn add(&mut self, loss: Loss) {
        let joined = self.gaps.iter_mut().find(|gap| {
            !gap.is_reported
                && gap.loss.lane == loss.lane
                && gap.loss.cause == loss.cause
                && gap.loss.last.0.checked_add(1) == Some(loss.first.0)
        });
        match joined {
            Some(gap) => {
                gap.loss.last = loss.last;
                gap.loss.records = gap.loss.records.zip(loss.records).map(|(a, b)| a + b);
            }
            None => self.gaps.push(Gap { loss, is_reported: false }),
        }
    }

    /// Forgets what is reported and behind what was delivered.
    pub(super) fn forget_delivered(&mut self) {
        let acknowledged = self.acknowledged;
        self.gaps
            .retain(|gap| !gap.is_reported || gap.loss.last > *acknowledged.get(gap.loss.lane));
    }
}

/// Parts of a range of a lane that none of the gaps covers.
pub(super) fn unknown_parts(
    gaps: &[Gap],
    lane: Lane,
    first: Sequence,
    last: Sequence,
) -> Vec<Loss> {
    let mut known: Vec<_> = gaps
        .iter()
        .filter(|gap| gap.loss.lane == lane)
        .map(|gap| (gap.loss.first.0, gap.loss.last.0))
        .collect();
    known.sort_unstable();
    let mut parts = Vec::new();
    let mut at = first.0;
    let mut push = |first: u64, last: u64| {
        if first <= last {
            parts.push(Loss {
                lane,
                cause: LossCause::Damaged,
                first: Sequence(first),
                last: Sequence(last),
                records: None,
            });
        }
    };
    for (gap_first, gap_last) in known {
        if gap_last < at || gap_first > last.0 {
            continue;
        }
        push(at, gap_first.saturating_sub(1));
        at = at.max(gap_last.saturating_add(1));
    }
    push(at, last.0);
    parts
}

/// The file.
#[derive(Debug)]
pub(super) struct HeadFile {
    file: File,
    generation: Generation,
    system_start: u64,
    counter: u64,
    /// The slot that may be written: the other one is that of the last sync.
    slot: u64,
}

/// What a head file said.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) books: Books,
    /// It was written since the system started: nothing it should say can be missing.
    pub(super) is_exact: bool,
}

impl HeadFile {
    /// Opens or makes the file of a generation. Nothing is loaded where there was none, or none that could be read.
    pub(super) fn open(path: &Path, generation: Generation) -> io::Result<(Self, Option<Loaded>)> {
        if path.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "a folder is in its place"));
        }
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        or_busy(|| file.try_lock())?;
        let length = fs::metadata(path)?.len();
        let total = 2 * SLOT_BYTES as u64;
        let mut bytes = vec![0; 2 * SLOT_BYTES];
        if length < total {
            let mut found = vec![0; usize::try_from(length).unwrap_or_default()];
            file.read_exact_at(&mut found, 0)?;
            bytes[..found.len()].copy_from_slice(&found);
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
        } else {
            file.read_exact_at(&mut bytes, 0)?;
        }
        let system_start = system_start();
        let mut this = Self { file, generation, system_start, counter: 0, slot: 0 };
        let mut loaded = None;
        for slot in 0..2 {
            let at = slot * SLOT_BYTES;
            let slot_bytes = &bytes[at..at + SLOT_BYTES];
            let Some((counter, found)) = decode(slot_bytes, generation, system_start) else {
                continue;
            };
            if counter > this.counter {
                this.counter = counter;
                this.slot = 1 - slot as u64;
                loaded = Some(found);
            }
        }
        Ok((this, loaded))
    }

    /// Refused while somebody has the journal open for writing.
    pub(super) fn check_free(path: &Path) -> io::Result<()> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => {
                let file = other?;
                or_busy(|| file.try_lock_shared())
            }
        }
    }

    /// Reads the books without opening them for writing.
    pub(super) fn read(path: &Path, generation: Generation) -> io::Result<Option<Books>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let found = bytes.chunks(SLOT_BYTES).take(2).filter_map(|slot| decode(slot, generation, 0));
        let newest = found.max_by_key(|(counter, _)| *counter);
        Ok(newest.map(|(_, loaded)| loaded.books))
    }

    /// Writes the books; a kill does not undo it, a power cut may.
    pub(super) fn write(&mut self, books: &Books) -> io::Result<()> {
        let bytes = self.encode(books);
        self.file.write_all_at(&bytes, self.slot * SLOT_BYTES as u64)
    }

    /// Makes the last write durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.slot = 1 - self.slot;
        Ok(())
    }

    fn encode(&mut self, books: &Books) -> Vec<u8> {
        self.counter += 1;
        let mut bytes = Vec::with_capacity(FIXED_BYTES + 4 + books.gaps.len() * GAP_BYTES);
        bytes.extend_from_slice(MAGIC);
        for number in [self.counter, self.generation.0, self.system_start, books.next.0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for numbers in [&books.last, &books.acknowledged] {
            for lane in Lane::ALL {
                bytes.extend_from_slice(&numbers.get(lane).0.to_le_bytes());
            }
        }
        let count = books.gaps.len().min(GAPS_MAX);
        bytes.extend_from_slice(&u32::try_from(count).unwrap_or_default().to_le_bytes());
        for gap in &books.gaps[..count] {
            let Loss { lane, cause, first, last, records } = &gap.loss;
            let lane = u8::try_from(lane.index()).unwrap_or_default();
            let flags = [u8::from(gap.is_reported), u8::from(records.is_some())];
            bytes.extend_from_slice(&[lane, cause_code(*cause), flags[0], flags[1]]);
            for number in [first.0, last.0, records.unwrap_or_default()] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }
}

/// Waits a moment for a lock: a process that is just starting another holds what it has open until that one runs.
fn or_busy(try_lock: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_STEP);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another process has the journal open: stop the module first",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn decode(slot: &[u8], of_generation: Generation, since: u64) -> Option<(u64, Loaded)> {
    let mut fields = Fields(slot);
    if fields.take(8)? != MAGIC {
        return None;
    }
    let (counter, generation) = (fields.u64()?, fields.u64()?);
    let (system_start, next) = (fields.u64()?, fields.u64()?);
    let mut books = Books { next: Sequence(next), ..Books::default() };
    for lane in Lane::ALL {
        *books.last.get_mut(lane) = Sequence(fields.u64()?);
    }
    for lane in Lane::ALL {
        *books.acknowledged.get_mut(lane) = Sequence(fields.u64()?);
    }
    let count = u32::from_le_bytes(fields.take(4)?.try_into().ok()?) as usize;
    if count > GAPS_MAX {
        return None;
    }
    for _ in 0..count {
        books.gaps.push(fields.gap()?);
    }
    let length = slot.len() - fields.0.len();
    let expected = u32::from_le_bytes(fields.take(4)?.try_into().ok()?);
    let is_ours = generation == of_generation.0;
    let is_whole = crc32c::crc32c(&slot[..length]) == expected;
    let is_exact = system_start == since && system_start != 0;
    (is_whole && is_ours).then_some((counter, Loaded { books, is_exact }))
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn gap(&mut self) -> Option<Gap> {
        let codes = self.take(4)?;
        let lane = *Lane::ALL.get(usize::from(codes[0]))?;
        let cause = [LossCause::EvictedCap, LossCause::EvictedDisk, LossCause::Damaged]
            .into_iter()
            .find(|cause| cause_code(*cause) == codes[1])?;
        let (first, last, records) = (self.u64()?, self.u64()?, self.u64()?);
        let records = (codes[3] == 1).then_some(records);
        let loss = Loss { lane, cause, first: Sequence(first), last: Sequence(last), records };
        Some(Gap { loss, is_reported: codes[2] == 1 })
    }
}

const fn cause_code(cause: LossCause) -> u8 {
    match cause {
        LossCause::EvictedCap => 1,
        LossCause::EvictedDisk => 2,
        LossCause::Damaged => 3,
    }
}

/// A number that differs for each start of the system; 0 if the system does not tell.
fn system_start() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(first: u64, last: u64) -> Loss {
        Loss {
            lane: Lane::Readings,
            cause: LossCause::EvictedCap,
            first: Sequence(first),
            last: Sequence(last),
            records: Some(last - first + 1),
        }
    }

    fn books() -> Books {
        let mut books = Books { next: Sequence(500), ..Books::default() };
        *books.last.get_mut(Lane::Waveforms) = Sequence(499);
        *books.acknowledged.get_mut(Lane::Readings) = Sequence(77);
        books.add(loss(100, 199));
        books
    }

    #[test]
    fn books_come_back_and_the_newest_count() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("head");
        let (mut head, loaded) = HeadFile::open(&path, Generation(9)).expect("made");
        assert!(loaded.is_none());
        let mut books = books();
        head.write(&books).expect("written");
        head.sync().expect("synced");
        for next in 501..510 {
            books.next = Sequence(next);
            head.write(&books).expect("written");
        }
        let error = HeadFile::open(&path, Generation(9)).expect_err("open elsewhere");
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        HeadFile::check_free(&path).expect_err("open elsewhere");
        drop(head);
        HeadFile::check_free(&path).expect("free");
        let (again, loaded) = HeadFile::open(&path, Generation(9)).expect("opened");
        let loaded = loaded.expect("there");
        assert_eq!(loaded.books, books);
        assert!(loaded.is_exact);
        drop(again);
        assert!(HeadFile::open(&path, Generation(10)).expect("opened").1.is_none());
    }

    #[test]
    fn whatever_is_damaged_of_the_newest_slot_the_last_sync_is_there() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("head");
        let (mut head, _) = HeadFile::open(&path, Generation(9)).expect("made");
        let mut books = books();
        head.write(&books).expect("written");
        head.sync().expect("synced");
        let synced = books.clone();
        books.next = Sequence(900);
        head.write(&books).expect("written");
        let whole = fs::read(&path).expect("read");
        let length = FIXED_BYTES + GAP_BYTES + 4;
        drop(head);
        for at in SLOT_BYTES..SLOT_BYTES + length {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, damaged).expect("damaged");
            let (_, loaded) = HeadFile::open(&path, Generation(9)).expect("opened");
            assert_eq!(loaded.expect("there").books, synced, "byte {at}");
        }
    }

    #[test]
    fn gaps_are_joined_and_cover_what_they_name() {
        let mut books = books();
        books.add(loss(200, 299));
        assert_eq!(books.gaps.len(), 1);
        assert_eq!(books.gaps[0].loss.records, Some(200));
        let parts = |first, last| -> Vec<(u64, u64)> {
            let parts = books.unknown(Lane::Readings, Sequence(first), Sequence(last));
            parts.iter().map(|part| (part.first.0, part.last.0)).collect()
        };
        assert_eq!(parts(100, 299), []);
        assert_eq!(parts(50, 99), [(50, 99)]);
        assert_eq!(parts(50, 120), [(50, 99)]);
        assert_eq!(parts(50, 400), [(50, 99), (300, 400)]);
        assert_eq!(parts(299, 300), [(300, 300)]);
        assert_eq!(books.unknown(Lane::Events, Sequence(100), Sequence(299)).len(), 1);
    }
}
