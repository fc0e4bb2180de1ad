//! The journal in service: lanes of sled segments and the books.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared_proto::model::{EventTime, Generation, Sequence};
use tracing::{info, warn};

use super::chunk::Chunk;
use super::head::{Books, Gap, HeadFile, unknown_parts};
use super::room::Room;
use super::segment::{
    Chain, Closed, Segment, SegmentName, bytes_on_disk, flush, sync_database, sync_folder,
    write_chunk,
};
use super::{
    Batch, Entry, Journal, JournalError, JournalReader, JournalSettings, Lane, Loss, LossCause,
    PerLane, RECORD_BYTES_MAX, Stored, recovery,
};

/// Room that must be there before a segment is called damaged.
const PROBE_BYTES: usize = 1 << 20;
/// A drained lane's newest segment over this share of the segment size is given back to the disk.
const SHRINK_SHARE: u64 = 8;

/// A segment as reader and writer share it. Nobody waits for a segment's lock while holding that of the map.
pub(super) type SharedSegment = Arc<Mutex<Segment>>;

/// What reader and writer share.
pub(super) struct Shared {
    root: PathBuf,
    quarantine: PathBuf,
    /// Segments of each lane by floor.
    lanes: PerLane<Mutex<BTreeMap<u64, SharedSegment>>>,
    /// Last durable record of each lane.
    last: PerLane<AtomicU64>,
    /// Highest record of each lane that a reader was given: it may be in flight.
    handed_out: PerLane<AtomicU64>,
    /// Everything of each lane up to here was delivered: what is gone of it is no loss.
    acknowledged: PerLane<AtomicU64>,
    /// A reader found damage in the segment that is written: the writer is to leave it, so that it can be salvaged.
    is_suspect: PerLane<AtomicBool>,
    gaps: Mutex<Vec<Gap>>,
}

// A panic while holding one of these locks leaves a list that is still a list: each change is one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(root: PathBuf, quarantine: PathBuf) -> Self {
        Self {
            root,
            quarantine,
            lanes: PerLane::default(),
            last: PerLane::default(),
            handed_out: PerLane::default(),
            acknowledged: PerLane::default(),
            is_suspect: PerLane::default(),
            gaps: Mutex::default(),
        }
    }

    pub(super) fn insert(&self, lane: Lane, floor: u64, segment: Segment) -> SharedSegment {
        let segment = Arc::new(Mutex::new(segment));
        lock(self.lanes.get(lane)).insert(floor, Arc::clone(&segment));
        segment
    }

    fn segments_from(&self, lane: Lane, after: Sequence) -> Vec<(u64, SharedSegment)> {
        let segments = lock(self.lanes.get(lane));
        let next = after.0.saturating_add(1);
        let start = segments.range(..=next).next_back().map_or(0, |(floor, _)| *floor);
        segments.range(start..).map(|(floor, segment)| (*floor, Arc::clone(segment))).collect()
    }

    fn last(&self, lane: Lane) -> Sequence {
        Sequence(self.last.get(lane).load(Ordering::Acquire))
    }
}

/// Where a lane's next chunk goes.
struct Active {
    floor: u64,
    path: PathBuf,
    segment: SharedSegment,
    database: sled::Db,
    room: Room,
    bytes_written: u64,
    records: u64,
}

/// The journal in service.
pub struct SegmentedJournal {
    settings: JournalSettings,
    generation: Generation,
    books: Books,
    head: HeadFile,
    active: PerLane<Option<Active>>,
    shared: Arc<Shared>,
    /// Lanes in whose newest segment a failed append may have left something.
    touched: PerLane<bool>,
    is_failed: bool,
    /// Segments were begun since the journal last looked at its size.
    is_eviction_due: bool,
}

impl std::fmt::Debug for SegmentedJournal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SegmentedJournal")
            .field("generation", &self.generation)
            .field("books", &self.books)
            .finish_non_exhaustive()
    }
}

impl SegmentedJournal {
    /// Opens the journal below `data_dir`, or starts a new generation. What is damaged is moved aside after salvage; what
    /// is lost is in [`Journal::losses`].
    ///
    /// # Errors
    /// The folder cannot be created, listed or written, or the disk has no room to tell damage from want of room. Nothing
    /// has been changed then that another attempt would miss.
    pub fn open(
        data_dir: &Path,
        settings: JournalSettings,
        now: EventTime,
    ) -> Result<Self, JournalError> {
        let found = recovery::recover(data_dir, &settings, now)?;
        let mut this = Self {
            settings,
            generation: found.generation,
            books: found.books,
            head: found.head,
            active: PerLane::default(),
            shared: Arc::new(found.shared),
            touched: PerLane::default(),
            is_failed: false,
            is_eviction_due: true,
        };
        this.publish();
        for lane in Lane::ALL {
            let acknowledged = this.books.acknowledged.get(lane).0;
            this.shared.handed_out.get(lane).store(acknowledged, Ordering::Release);
        }
        Ok(this)
    }

    /// Tells readers what is durable and what is lost.
    fn publish(&mut self) {
        for lane in Lane::ALL {
            self.shared.last.get(lane).store(self.books.last.get(lane).0, Ordering::Release);
            let acknowledged = self.books.acknowledged.get(lane).0;
            self.shared.acknowledged.get(lane).store(acknowledged, Ordering::Release);
        }
        self.publish_gaps();
    }

    fn publish_gaps(&self) {
        lock(&self.shared.gaps).clone_from(&self.books.gaps);
    }

    fn write_head(&mut self) -> Result<(), JournalError> {
        self.head.write(&self.books).map_err(JournalError::io("write", &self.shared.root))
    }

    fn sync_head(&mut self) -> Result<(), JournalError> {
        self.write_head()?;
        self.head.sync().map_err(JournalError::io("sync", &self.shared.root))
    }

    fn append_lane(
        &mut self,
        lane: Lane,
        first: Sequence,
        records: &[Entry],
    ) -> Result<Sequence, JournalError> {
        *self.touched.get_mut(lane) = true;
        let generation = self.generation;
        let mut chunk = Chunk::new(generation, lane, *self.books.last.get(lane));
        let mut sequence = first;
        for (_, payload) in records.iter().filter(|(of_lane, _)| *of_lane == lane) {
            if chunk.is_full_for(payload) {
                let next = Chunk::new(generation, lane, chunk.last);
                self.write_chunk(lane, std::mem::replace(&mut chunk, next))?;
            }
            chunk.push(sequence, payload);
            sequence = sequence.next();
        }
        self.write_chunk(lane, chunk)?;
        if let Some(active) = self.active.get_mut(lane) {
            active.sync()?;
        }
        Ok(sequence)
    }

    /// Writes a chunk to the lane's segment, or, when that is full, to a new one.
    fn write_chunk(&mut self, lane: Lane, chunk: Chunk) -> Result<(), JournalError> {
        let previous = chunk.previous;
        let is_full = match self.active.get_mut(lane) {
            Some(active) => !active.takes(&chunk, self.settings.segment_bytes)?,
            None => false,
        };
        if is_full {
            self.roll(lane, chunk.first, previous)?;
        } else if self.active.get(lane).is_none() {
            let active = self.begin_segment(lane, chunk.first, previous)?;
            *self.active.get_mut(lane) = Some(active);
        }
        match self.active.get_mut(lane) {
            Some(active) => active.write(chunk),
            None => Err(JournalError::NoSegment { lane: lane.as_str() }),
        }
    }

    fn begin_segment(
        &mut self,
        lane: Lane,
        floor: Sequence,
        previous: Sequence,
    ) -> Result<Active, JournalError> {
        let folder = self.shared.root.join(lane.as_str());
        if !folder.is_dir() {
            fs::create_dir_all(&folder).map_err(JournalError::io("create", &folder))?;
            sync_folder(&self.shared.root)?;
        }
        let floor = floor.0;
        let path = folder.join(recovery::digits(floor));
        let name = SegmentName { path: path.clone(), generation: self.generation, lane, floor };
        let (segment, database) = Segment::create(name, self.settings.cache_bytes, previous)?;
        let segment = self.shared.insert(lane, floor, segment);
        self.is_eviction_due = true;
        let room = Room::default();
        Ok(Active { floor, path, segment, database, room, bytes_written: 0, records: 0 })
    }

    /// Begins a new segment from `floor`; the one before is synced and gets its mark.
    fn roll(&mut self, lane: Lane, floor: Sequence, last: Sequence) -> Result<(), JournalError> {
        if let Some(old) = self.active.get_mut(lane).as_mut() {
            if old.floor >= floor.0 {
                return Ok(());
            }
            old.sync()?;
        }
        let new = self.begin_segment(lane, floor, last)?;
        if let Some(old) = self.active.get_mut(lane).replace(new) {
            drop(old.database);
            let mut segment = lock(&old.segment);
            let previous = segment.previous().unwrap_or_default();
            segment.close();
            segment.mark_closed(Closed { previous, last, records: old.records }, false)?;
        }
        Ok(())
    }

    /// Begins another segment where a reader found damage in the one that is written.
    fn leave_suspect(&mut self, lane: Lane) -> Result<(), JournalError> {
        let is_suspect = self.shared.is_suspect.get(lane);
        if is_suspect.load(Ordering::Acquire) {
            is_suspect.store(false, Ordering::Release);
            self.roll(lane, self.books.next, *self.books.last.get(lane))?;
        }
        Ok(())
    }

    /// Gives a large segment back whose records were all delivered.
    fn shrink(&mut self, lane: Lane) -> Result<(), JournalError> {
        let is_drained = self.books.acknowledged.get(lane) >= self.books.last.get(lane);
        let limit = self.settings.segment_bytes / SHRINK_SHARE;
        let is_large =
            self.active.get(lane).as_ref().is_some_and(|active| active.bytes_written > limit);
        if is_drained && is_large {
            self.roll(lane, self.books.next, *self.books.last.get(lane))?;
            self.delete_drained(lane)?;
        }
        Ok(())
    }

    fn delete_drained(&mut self, lane: Lane) -> Result<(), JournalError> {
        let acknowledged = *self.books.acknowledged.get(lane);
        let mut is_saved = false;
        while let Some((floor, next_floor, segment)) = self.oldest_closed(lane, |_| true) {
            let last =
                lock(&segment).closed().map_or(Sequence(next_floor - 1), |closed| closed.last);
            if last > acknowledged {
                break;
            }
            if !std::mem::replace(&mut is_saved, true) {
                // What is deleted must be known as delivered after any crash.
                self.sync_head()?;
            }
            // Oldest first, whatever fails: a later one must not go before it.
            lock(&segment).delete()?;
            lock(self.shared.lanes.get(lane)).remove(&floor);
        }
        Ok(())
    }

    /// The oldest segment that is not the newest and that `is_wanted`: its floor, the next one's, itself.
    fn oldest_closed(
        &self,
        lane: Lane,
        is_wanted: impl Fn(u64) -> bool,
    ) -> Option<(u64, u64, SharedSegment)> {
        let segments = lock(self.shared.lanes.get(lane));
        let mut floors = segments.iter().zip(segments.keys().skip(1));
        let ((floor, segment), next) = floors.find(|((floor, _), _)| is_wanted(**floor))?;
        Some((*floor, *next, Arc::clone(segment)))
    }

    fn evict_one(&mut self, cause: LossCause) -> Result<bool, JournalError> {
        for lane in Lane::EVICTION {
            // Records in flight may still arrive: their segments are spared.
            let handed_out = self.shared.handed_out.get(lane).load(Ordering::Acquire);
            let acknowledged = *self.books.acknowledged.get(lane);
            let is_idle = handed_out <= acknowledged.0;
            let found = self.oldest_closed(lane, |floor| is_idle || floor > handed_out);
            let Some((floor, next_floor, segment)) = found else { continue };
            let mut segment = lock(&segment);
            // A reader may have come first.
            let handed_out = self.shared.handed_out.get(lane).load(Ordering::Acquire);
            if handed_out >= floor && handed_out > acknowledged.0 {
                return Ok(true);
            }
            let closed = segment.closed();
            if closed.is_none() && segment.open().is_err() {
                warn!(path = %segment.name().path.display(), "segment to be evicted cannot be read");
            }
            let previous = closed.map(|closed| closed.previous).or(segment.previous());
            let after = previous.unwrap_or(Sequence(floor.saturating_sub(1))).max(acknowledged);
            let last = closed.map_or(Sequence(next_floor - 1), |closed| closed.last);
            // It may be on the books from an attempt that failed.
            if last > after && !self.books.unknown(lane, after.next(), last).is_empty() {
                let records = match closed {
                    Some(closed) if acknowledged <= closed.previous => Some(closed.records),
                    Some(_) | None => segment.count_after(after).ok(),
                };
                self.books.add(Loss { lane, cause, first: after.next(), last, records });
            }
            self.publish_gaps();
            if let Err(error) = self.sync_head() {
                // The room is needed all the same; a reader would find the hole after a crash.
                warn!(error = %error, "eviction not on the books yet");
            }
            // What is called lost must not be read any more.
            segment.is_deleted = true;
            segment.delete()?;
            drop(segment);
            lock(self.shared.lanes.get(lane)).remove(&floor);
            return Ok(true);
        }
        Ok(false)
    }

    /// Removes segments that hold nothing acknowledged and closes the newest that does.
    fn cut_off(&self, lane: Lane) -> Result<(), JournalError> {
        let folder = self.shared.root.join(lane.as_str());
        if !folder.is_dir() {
            return Ok(());
        }
        // Also those that were not made completely.
        for (floor, path) in recovery::numbered(&folder)? {
            if floor >= self.books.next.0 {
                let known = lock(self.shared.lanes.get(lane)).remove(&floor);
                if let Some(segment) = known {
                    lock(&segment).delete()?;
                } else {
                    let name = SegmentName { path, generation: self.generation, lane, floor };
                    Segment::new(name, self.settings.cache_bytes).delete()?;
                }
            }
        }
        let newest = lock(self.shared.lanes.get(lane)).values().next_back().cloned();
        let Some(newest) = newest else { return Ok(()) };
        let mut segment = lock(&newest);
        segment.close();
        match segment.close_after(*self.books.last.get(lane), true) {
            // Readers will deal with it.
            Err(error) if error.is_damage() => {
                warn!(%error, "segment of the failed append cannot be read");
                Ok(())
            }
            other => other,
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.shared.root).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn check_room(&self, records: &[Entry]) -> Result<(), JournalError> {
        let free_bytes_min = self.settings.free_bytes_min;
        let is_for_events = records.iter().all(|(lane, _)| *lane == Lane::Events);
        match self.free_bytes() {
            // Machine events may use the reserve.
            Some(free_bytes) if free_bytes < free_bytes_min && !is_for_events => {
                let path = self.shared.root.clone();
                Err(JournalError::NoRoom { path, free_bytes, free_bytes_min })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn write_group(&mut self, records: &[Entry]) -> Result<Books, JournalError> {
        let mut books = self.books.clone();
        for lane in Lane::ALL {
            if records.iter().any(|(of_lane, _)| *of_lane == lane) {
                books.next = self.append_lane(lane, books.next, records)?;
                *books.last.get_mut(lane) = Sequence(books.next.0 - 1);
            }
        }
        Ok(books)
    }
}

impl Active {
    /// Whether a chunk is sure to fit. The first always does.
    fn takes(&mut self, chunk: &Chunk, segment_bytes: u64) -> Result<bool, JournalError> {
        if self.bytes_written == 0 {
            return Ok(true);
        }
        if self.bytes_written >= segment_bytes {
            return Ok(false);
        }
        if !self.room.fits(chunk.bytes.len()) {
            // It was estimated: now it is measured.
            self.room.flushed(flush(&self.database, &self.path)?);
        }
        Ok(self.room.fits(chunk.bytes.len()))
    }

    fn write(&mut self, chunk: Chunk) -> Result<(), JournalError> {
        self.bytes_written += chunk.bytes.len() as u64;
        self.records += chunk.records;
        self.room.add(chunk.bytes.len());
        write_chunk(&self.database, &self.path, chunk)
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        self.room.flushed(sync_database(&self.database, &self.path)?);
        Ok(())
    }
}

impl Journal for SegmentedJournal {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn next_sequence(&self) -> Sequence {
        self.books.next
    }

    fn last(&self, lane: Lane) -> Sequence {
        *self.books.last.get(lane)
    }

    fn acknowledged(&self, lane: Lane) -> Sequence {
        *self.books.acknowledged.get(lane)
    }

    fn reader(&self) -> Arc<dyn JournalReader> {
        Arc::clone(&self.shared) as Arc<dyn JournalReader>
    }

    fn append(&mut self, records: &[Entry]) -> Result<Sequence, JournalError> {
        if let Some((_, payload)) =
            records.iter().find(|(_, payload)| payload.len() > RECORD_BYTES_MAX)
        {
            return Err(JournalError::RecordTooLarge { length: payload.len() });
        }
        if self.is_failed {
            self.reopen()?;
        }
        if self.is_eviction_due {
            self.evict()?;
            self.is_eviction_due = false;
        }
        self.check_room(records)?;
        self.touched = PerLane::default();
        // Until the end is reached: a panic on the way is a failure too.
        self.is_failed = true;
        let written = self.write_group(records)?;
        let before = std::mem::replace(&mut self.books, written);
        if let Err(error) = self.write_head() {
            self.books = before;
            return Err(error);
        }
        self.is_failed = false;
        self.publish();
        Ok(self.books.next)
    }

    fn trim(&mut self, lane: Lane, through: Sequence) -> Result<(), JournalError> {
        let acknowledged = self.books.acknowledged.get_mut(lane);
        if through <= *acknowledged {
            return Ok(());
        }
        *acknowledged = through;
        self.shared.acknowledged.get(lane).store(through.0, Ordering::Release);
        let before = self.books.gaps.len();
        self.books.forget_delivered();
        if self.books.gaps.len() != before {
            self.publish_gaps();
        }
        self.delete_drained(lane)
    }

    fn save(&mut self) -> Result<(), JournalError> {
        if self.is_failed {
            return Ok(());
        }
        for lane in Lane::ALL {
            self.leave_suspect(lane)?;
            self.shrink(lane)?;
        }
        self.sync_head()
    }

    fn bytes(&self) -> u64 {
        let of_lane = |lane: Lane| -> u64 {
            let segments = lock(self.shared.lanes.get(lane));
            let folder = self.shared.root.join(lane.as_str());
            let of_segment = |(floor, segment): (&u64, &SharedSegment)| match segment.try_lock() {
                Ok(mut segment) => segment.bytes(),
                // A reader is at work in it: nobody waits for that.
                Err(_) => bytes_on_disk(&folder.join(recovery::digits(*floor))),
            };
            segments.iter().map(of_segment).sum()
        };
        Lane::ALL.into_iter().map(of_lane).sum()
    }

    fn segments(&self) -> usize {
        Lane::ALL.into_iter().map(|lane| lock(self.shared.lanes.get(lane)).len()).sum()
    }

    fn evict(&mut self) -> Result<(), JournalError> {
        while self.bytes() > self.settings.bytes_max && self.evict_one(LossCause::EvictedCap)? {}
        while self.free_bytes().is_some_and(|free| free < self.settings.free_bytes_min)
            && self.evict_one(LossCause::EvictedDisk)?
        {}
        Ok(())
    }

    fn add_loss(&mut self, loss: &Loss) -> bool {
        let parts = self.books.unknown(loss.lane, loss.first, loss.last);
        let is_new = !parts.is_empty();
        if parts.len() == 1 {
            self.books.add(loss.clone());
        } else {
            parts.into_iter().for_each(|part| self.books.add(part));
        }
        self.publish_gaps();
        is_new
    }

    fn losses(&self) -> Vec<Loss> {
        let unreported = self.books.gaps.iter().filter(|gap| !gap.is_reported);
        unreported.map(|gap| gap.loss.clone()).collect()
    }

    fn confirm_losses(&mut self, losses: &[Loss]) {
        for gap in &mut self.books.gaps {
            gap.is_reported |= losses.contains(&gap.loss);
        }
        self.books.forget_delivered();
        self.publish_gaps();
    }

    /// What a failed append may have left is cut off: by a durable mark behind the last record before it.
    fn reopen(&mut self) -> Result<(), JournalError> {
        if !self.is_failed {
            return Ok(());
        }
        for lane in Lane::ALL {
            if !*self.touched.get(lane) {
                continue;
            }
            if let Some(active) = self.active.get_mut(lane).take() {
                drop(active.database);
            }
            self.cut_off(lane)?;
            *self.touched.get_mut(lane) = false;
            info!(lane = lane.as_str(), "segment of the failed append left, a new one will follow");
        }
        self.is_failed = false;
        Ok(())
    }
}

impl JournalReader for Shared {
    fn read(&self, lane: Lane, after: Sequence, through: Sequence, records_max: usize) -> Batch {
        self.look(lane, after, through, records_max, true)
    }

    fn peek(&self, lane: Lane, after: Sequence, through: Sequence) -> Option<Stored> {
        self.look(lane, after, through, 1, false).records.into_iter().next()
    }

    fn tail(&self, lane: Lane, records_max: usize) -> Vec<Stored> {
        let mut parts = Vec::new();
        let mut count = 0;
        let segments = self.segments_from(lane, Sequence(0));
        for (_, segment) in segments.iter().rev() {
            if count >= records_max {
                break;
            }
            let mut segment = lock(segment);
            let Ok(records) = segment.tail(self.last(lane), records_max - count) else { break };
            if !parts.is_empty() {
                segment.close();
            }
            count += records.len();
            parts.push(records);
        }
        parts.into_iter().rev().flatten().collect()
    }
}

impl Shared {
    fn look(
        &self,
        lane: Lane,
        after: Sequence,
        through: Sequence,
        records_max: usize,
        is_handed_out: bool,
    ) -> Batch {
        let through = through.min(self.last(lane));
        let mut batch = Batch::default();
        if after >= through {
            return batch;
        }
        let mut chain = Chain::new(after, through);
        let segments = self.segments_from(lane, after);
        for (index, (floor, segment)) in segments.iter().enumerate() {
            if *floor > through.0 || chain.records.len() >= records_max {
                break;
            }
            let next_floor = segments.get(index + 1).map(|(floor, _)| *floor);
            let read = self.read_segment(lane, segment, next_floor, &mut chain, records_max);
            // Under the segment's lock still: eviction looks at it under the same.
            match read.map(|(is_end, guard)| {
                if let Some(record) = chain.records.last().filter(|_| is_handed_out) {
                    self.handed_out.get(lane).fetch_max(record.sequence.0, Ordering::AcqRel);
                }
                drop(guard);
                is_end
            }) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    batch.obstacle = Some(error);
                    break;
                }
            }
        }
        if batch.obstacle.is_none() && chain.records.len() < records_max {
            chain.through = through;
            if self.last(lane) <= through {
                chain.expect(through);
            }
        }
        for (first, last) in chain.holes {
            batch.losses.extend(self.unknown(lane, first, last));
        }
        batch.records = chain.records;
        batch
    }

    /// Reads on in one segment. Says whether its end was reached.
    fn read_segment<'a>(
        &self,
        lane: Lane,
        segment: &'a SharedSegment,
        next_floor: Option<u64>,
        chain: &mut Chain,
        records_max: usize,
    ) -> Result<(bool, MutexGuard<'a, Segment>), JournalError> {
        let mut segment = lock(segment);
        if segment.is_deleted {
            return Ok((true, segment));
        }
        let through = chain.through;
        let last = match (next_floor, segment.closed()) {
            (Some(next), closed) => closed.map_or(Sequence(next - 1), |closed| closed.last),
            (None, _) => self.last(lane),
        };
        let is_written = segment.is_written();
        // Of a lane that has gone on, `through` need not be a record: nothing is missing before it for that reason.
        let is_last_known = (next_floor.is_none() && (!is_written || last <= through))
            || segment.closed().is_some();
        loop {
            // What is missing before the segment is not to be found in it.
            let opened = segment.open();
            if let Some(previous) = segment.previous() {
                chain.expect(previous);
            }
            let mut attempt = Chain::new(chain.cursor, through.min(last));
            let wanted = records_max.saturating_sub(chain.records.len());
            let result = opened.and_then(|()| segment.read(&mut attempt, wanted));
            let is_end = match result {
                Ok(is_end) => is_end,
                Err(error) if !error.is_damage() || !has_room(&self.root) => return Err(error),
                Err(error) if segment.is_salvaged => return Err(error),
                Err(error) if is_written => {
                    warn!(error = %error, "segment that is written cannot be read");
                    self.is_suspect.get(lane).store(true, Ordering::Release);
                    return Err(segment.damaged_while_written());
                }
                Err(error) => {
                    warn!(error = %error, "segment cannot be read, salvaging what is whole");
                    segment.salvage(&self.quarantine, last)?;
                    continue;
                }
            };
            let is_end = is_end || attempt.cursor >= last;
            if is_end && is_last_known {
                attempt.expect(last);
            }
            let is_suspect = attempt.has_damage || self.has_new_hole(lane, &attempt);
            if is_suspect && is_written {
                self.is_suspect.get(lane).store(true, Ordering::Release);
                return Err(segment.damaged_while_written());
            }
            if is_suspect && !segment.is_salvaged {
                if !has_room(&self.root) {
                    return Err(JournalError::io("examine", &self.root)(
                        std::io::ErrorKind::StorageFull.into(),
                    ));
                }
                segment.salvage(&self.quarantine, last)?;
                continue;
            }
            chain.cursor = attempt.cursor;
            chain.holes.append(&mut attempt.holes);
            chain.records.append(&mut attempt.records);
            // Only the newest and the one being read are open.
            if is_end && next_floor.is_some() {
                segment.close();
            }
            return Ok((is_end, segment));
        }
    }

    /// Parts of a hole that were neither delivered nor are on the books.
    fn unknown(&self, lane: Lane, first: Sequence, last: Sequence) -> Vec<Loss> {
        let acknowledged = Sequence(self.acknowledged.get(lane).load(Ordering::Acquire));
        unknown_parts(&lock(&self.gaps), lane, first.max(acknowledged.next()), last)
    }

    fn has_new_hole(&self, lane: Lane, chain: &Chain) -> bool {
        chain.holes.iter().any(|(first, last)| !self.unknown(lane, *first, *last).is_empty())
    }
}

/// Whether the disk takes as much as the engine may need to open a segment. If not, nothing is called damaged.
pub(super) fn has_room(folder: &Path) -> bool {
    let path = folder.join("probe");
    let is_written = File::create(&path)
        .and_then(|mut file| {
            file.write_all(&vec![0; PROBE_BYTES])?;
            file.sync_all()
        })
        .is_ok();
    fs::remove_file(&path).is_ok() && is_written
}
