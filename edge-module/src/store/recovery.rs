//! What is found on disk at a start, and what is made of it.
//!
//! Only the newest segment of each lane is looked into: a start does not depend on how much waits. Damage in older ones is
//! found when they are read. Nothing more is written into any of them: the first append begins new ones.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::{Path, PathBuf};

use shared_proto::model::{EventTime, Generation, Sequence};
use tracing::{debug, error, warn};

use super::head::{Books, HeadFile, Loaded};
use super::segment::{
    DELETED_EXTENSION, Segment, SegmentName, move_aside, salvage_path, sync_folder,
};
use super::segmented::{Shared, has_room};
use super::{JournalError, JournalSettings, Lane};

/// Floors above this are not ours: a device would have to journal a million records a second for 290,000 years.
const FLOOR_MAX: u64 = u64::MAX / 2;
/// Sequences left free where nobody can tell how many were given: more than a device journals between two syncs of `head`.
const UNKNOWN_SEQUENCES: u64 = 1 << 22;

/// 2020-01-01T00:00:00Z: an earlier time is that of a clock that was never set.
const CLOCK_IS_SET_MICROS: u64 = 1_577_836_800_000_000;

/// What a journal starts from.
pub(super) struct Recovered {
    pub(super) generation: Generation,
    pub(super) books: Books,
    pub(super) head: HeadFile,
    pub(super) shared: Shared,
}

pub(super) fn digits(number: u64) -> String {
    format!("{number:020}")
}

pub(super) fn recover(
    data_dir: &Path,
    settings: &JournalSettings,
    now: EventTime,
) -> Result<Recovered, JournalError> {
    let journal = data_dir.join("journal");
    let quarantine = data_dir.join("quarantine");
    for folder in [&journal, &quarantine] {
        fs::create_dir_all(folder).map_err(JournalError::io("create", folder))?;
    }
    let generation = find_generation(&journal, now)?;
    let root = journal.join(digits(generation.0));
    fs::create_dir_all(&root).map_err(JournalError::io("create", &root))?;
    let (head, loaded) = open_head(&root, &quarantine, generation)?;
    sync_folder(&root)?;
    sync_folder(&journal)?;
    sync_folder(data_dir)?;
    // Its own name in the folder above, where that may be opened.
    if let Some(above) = data_dir.parent() {
        drop(sync_folder(above));
    }
    let is_head_lost = loaded.is_none() && has_segments(&root)?;
    let is_exact = loaded.as_ref().is_some_and(|loaded| loaded.is_exact);
    let books = loaded.map_or_else(Books::default, |loaded| loaded.books);
    let shared = Shared::new(root.clone(), quarantine.clone());
    let mut this = Recovery {
        root,
        quarantine,
        generation,
        cache_bytes: settings.cache_bytes,
        books,
        is_head_lost,
        is_newest_damaged: false,
        shared,
    };
    for lane in Lane::ALL {
        this.recover_lane(lane)?;
    }
    this.set_next(is_exact);
    let Recovery { books, shared, .. } = this;
    Ok(Recovered { generation, books, head, shared })
}

/// The newest generation that has content; a new one if none has.
fn find_generation(journal: &Path, now: EventTime) -> Result<Generation, JournalError> {
    let mut found = Vec::new();
    for number in numbered(journal)?.into_keys() {
        let root = journal.join(digits(number));
        if has_content(&root)? {
            found.push(number);
        } else {
            warn!(path = %root.display(), "folder is no generation of the journal, left alone");
        }
    }
    let Some(newest) = found.pop() else {
        return Ok(new_generation(now));
    };
    for older in found {
        error!(
            generation = older,
            "an older generation is there too and is not sent: export it with `edge-module journal export`"
        );
    }
    Ok(Generation(newest))
}

/// The microsecond of creation. A device whose clock was never set would give each of its lives the same: then any number.
fn new_generation(now: EventTime) -> Generation {
    let micros = u64::try_from(now.micros()).unwrap_or_default();
    if micros >= CLOCK_IS_SET_MICROS {
        return Generation(micros.min(FLOOR_MAX));
    }
    let random = std::hash::RandomState::new().build_hasher().finish();
    Generation((random % CLOCK_IS_SET_MICROS).max(1))
}

/// Whether a folder is a generation: an empty one that somebody made is not.
pub(super) fn has_content(root: &Path) -> Result<bool, JournalError> {
    Ok(root.join("head").is_file() || has_segments(root)?)
}

fn has_segments(root: &Path) -> Result<bool, JournalError> {
    for lane in Lane::ALL {
        let folder = root.join(lane.as_str());
        if folder.is_dir() && !numbered(&folder)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_head(
    root: &Path,
    quarantine: &Path,
    generation: Generation,
) -> Result<(HeadFile, Option<Loaded>), JournalError> {
    let path = root.join("head");
    match HeadFile::open(&path, generation).map_err(JournalError::io("open", &path)) {
        Err(error) if error.is_damage() => {
            move_aside(&path, quarantine, "journal")?;
            HeadFile::open(&path, generation).map_err(JournalError::io("open", &path))
        }
        other => other,
    }
}

struct Recovery {
    root: PathBuf,
    quarantine: PathBuf,
    generation: Generation,
    cache_bytes: u64,
    books: Books,
    is_head_lost: bool,
    is_newest_damaged: bool,
    shared: Shared,
}

impl Recovery {
    fn recover_lane(&mut self, lane: Lane) -> Result<(), JournalError> {
        let folder = self.root.join(lane.as_str());
        if folder.exists() && !folder.is_dir() {
            move_aside(&folder, &self.quarantine, "journal")?;
        }
        let mut segments = BTreeMap::new();
        if folder.is_dir() {
            self.clean(&folder, lane)?;
            for (floor, path) in numbered(&folder)? {
                let name = SegmentName { path, generation: self.generation, lane, floor };
                segments.insert(floor, Segment::new(name, self.cache_bytes));
            }
        }
        if self.is_head_lost {
            self.guess_acknowledged(lane, &mut segments);
        }
        self.finish_evictions(lane, &mut segments)?;
        let newest = self.open_newest(lane, &mut segments)?;
        for (floor, segment) in segments {
            self.shared.insert(lane, floor, segment);
        }
        if let Some((floor, segment)) = newest {
            self.shared.insert(lane, floor, segment);
        }
        Ok(())
    }

    /// Puts a salvage that was interrupted in its place, or away, and moves what is not ours aside.
    fn clean(&self, folder: &Path, lane: Lane) -> Result<(), JournalError> {
        let entries = fs::read_dir(folder).map_err(JournalError::io("list", folder))?;
        for entry in entries {
            let entry = entry.map_err(JournalError::io("list", folder))?;
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && floor_of(&name).is_some() {
                continue;
            }
            let doomed = name.split_once('.').filter(|(_, rest)| *rest == DELETED_EXTENSION);
            if doomed.is_some_and(|(floor, _)| floor_of(floor).is_some()) {
                fs::remove_dir_all(&path).map_err(JournalError::io("delete", &path))?;
                continue;
            }
            let of_segment = name.strip_suffix(".salvage").and_then(floor_of);
            let target = of_segment.map(|floor| folder.join(digits(floor)));
            match target.filter(|target| salvage_path(target) == path) {
                // The damaged one was moved aside already: the salvage is complete.
                Some(target) if !target.exists() => {
                    fs::rename(&path, &target).map_err(JournalError::io("rename", &path))?;
                }
                Some(_) => {
                    fs::remove_dir_all(&path).map_err(JournalError::io("delete", &path))?;
                }
                None => {
                    warn!(path = %path.display(), "not part of the journal, moved to the quarantine");
                    move_aside(&path, &self.quarantine, lane.as_str())?;
                }
            }
        }
        Ok(())
    }

    /// Without a head the oldest segment tells what came before it: that was delivered.
    fn guess_acknowledged(&mut self, lane: Lane, segments: &mut BTreeMap<u64, Segment>) {
        let Some((_, oldest)) = segments.iter_mut().next() else { return };
        if oldest.open().is_ok() {
            *self.books.acknowledged.get_mut(lane) = oldest.previous().unwrap_or_default();
        }
        oldest.close();
        warn!(
            lane = lane.as_str(),
            "the journal's head is lost: what was delivered from the segments that are left is sent again"
        );
    }

    /// An eviction that was on the books when the process ended is carried out.
    fn finish_evictions(
        &self,
        lane: Lane,
        segments: &mut BTreeMap<u64, Segment>,
    ) -> Result<(), JournalError> {
        let floors: Vec<u64> = segments.keys().copied().collect();
        for pair in floors.windows(2) {
            let (floor, next_floor) = (pair[0], pair[1]);
            let Some(segment) = segments.get_mut(&floor) else { continue };
            let first = Sequence(floor.saturating_sub(1).max(self.books.acknowledged.get(lane).0));
            // The mark is not durable: after a power cut it may be missing.
            let last = match segment.closed() {
                Some(closed) => closed.last,
                None if next_floor - 1 <= first.0 => first,
                None => segment.find_last(Sequence(next_floor - 1)).unwrap_or(Sequence(FLOOR_MAX)),
            };
            let is_over = last <= first || self.books.unknown(lane, first.next(), last).is_empty();
            if is_over {
                segment.delete()?;
                segments.remove(&floor);
            }
        }
        Ok(())
    }

    /// The newest segment tells the last record of the lane; what is damaged is salvaged.
    fn open_newest(
        &mut self,
        lane: Lane,
        segments: &mut BTreeMap<u64, Segment>,
    ) -> Result<Option<(u64, Segment)>, JournalError> {
        let named = *self.books.last.get(lane);
        let mut newest = None;
        let mut found = Sequence(0);
        while let Some((floor, mut segment)) = segments.pop_last() {
            segment.sync()?;
            match segment.last(named) {
                // Closed in good order, or at the last record that was acknowledged.
                Ok((last, _)) if segment.closed().is_some() => {
                    found = segment.closed().map_or(last, |closed| closed.last.min(last));
                }
                Ok((last, is_torn)) if last >= named => {
                    found = last;
                    self.close_newest(&mut segment, last, is_torn)?;
                }
                Err(error) if !error.is_damage() => return Err(error),
                Err(_) if segment.was_never_begun() => {
                    segment.delete()?;
                    continue;
                }
                Ok(_) | Err(_) => {
                    self.examine_room()?;
                    self.is_newest_damaged = true;
                    segment.salvage(&self.quarantine, Sequence(FLOOR_MAX))?;
                    found = segment.last(named)?.0;
                    if found.0 < floor {
                        // Nothing of ours is left in it.
                        segment.delete()?;
                        continue;
                    }
                }
            }
            newest = Some((floor, segment));
            break;
        }
        let known = found.max(*self.books.acknowledged.get(lane));
        if named > known {
            self.is_newest_damaged = true;
            for loss in self.books.unknown(lane, known.next(), named) {
                self.books.add(loss);
            }
        }
        *self.books.last.get_mut(lane) = named.max(found);
        Ok(newest)
    }

    /// What was torn off behind the last record must never be read. Otherwise the mark can be done without.
    fn close_newest(
        &self,
        segment: &mut Segment,
        last: Sequence,
        is_torn: bool,
    ) -> Result<(), JournalError> {
        let path = segment.name().path.clone();
        match segment.close_after(last, is_torn) {
            Err(error) if is_torn => return Err(error),
            Err(error) => debug!(path = %path.display(), %error, "segment not marked"),
            Ok(()) => {}
        }
        segment.close();
        Ok(())
    }

    /// Without room nobody can tell damage from want of room.
    fn examine_room(&self) -> Result<(), JournalError> {
        if has_room(&self.root) {
            return Ok(());
        }
        let full = std::io::ErrorKind::StorageFull.into();
        Err(JournalError::io("examine", &self.root)(full))
    }

    fn set_next(&mut self, is_exact: bool) {
        let mut next = self.books.next;
        for lane in Lane::ALL {
            next = next.max(self.books.last.get(lane).next());
            // What the head forgot to have been delivered cannot lie behind what there is.
            let last = *self.books.last.get(lane);
            let acknowledged = self.books.acknowledged.get_mut(lane);
            *acknowledged = last.min(*acknowledged);
        }
        if self.is_newest_damaged && !is_exact {
            error!(
                from = next.0,
                count = UNKNOWN_SEQUENCES,
                "damage after a power cut: sequences left free that may have been given"
            );
            next = Sequence(next.0.saturating_add(UNKNOWN_SEQUENCES));
        }
        self.books.next = next;
    }
}

fn floor_of(name: &str) -> Option<u64> {
    let is_number = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|floor| is_number && (1..=FLOOR_MAX).contains(floor))
}

/// Folders with a number for a name, by number.
pub(super) fn numbered(folder: &Path) -> Result<BTreeMap<u64, PathBuf>, JournalError> {
    let mut found = BTreeMap::new();
    let entries = fs::read_dir(folder).map_err(JournalError::io("list", folder))?;
    for entry in entries {
        let entry = entry.map_err(JournalError::io("list", folder))?;
        let path = entry.path();
        if let Some(number) = floor_of(&entry.file_name().to_string_lossy())
            && path.is_dir()
        {
            found.insert(number, path);
        }
    }
    Ok(found)
}
