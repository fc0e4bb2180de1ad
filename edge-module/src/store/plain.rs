//! A second, plain engine: append-only files. Tests hold the engine in service against it, the benchmark measures it beside.
//!
//! ```text
//! <data-dir>/plain/state                       generation and, for each lane, delivered through; text
//! <data-dir>/plain/<lane>-<floor>.log          entries: length u32 | CRC-32C of sequence and payload u32 | sequence u64 | payload
//! ```
//!
//! An append is one write and one `sync_data` for each lane concerned. At a start the newest file of each lane is read to
//! its first entry that is not whole and cut there. Damage in older files ends their reading there and is a loss up to the
//! next file. It does what [`Journal`] asks for and no more: no salvage, no quarantine, no books that survive a power cut.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use shared_proto::model::{EventTime, Generation, Sequence};

use super::chunk::{push_entry, split_entry};
use super::segment::sync_folder;
use super::segmented::lock;
use super::{
    Batch, Entry, Journal, JournalError, JournalReader, JournalSettings, Lane, Loss, LossCause,
    PerLane, RECORD_BYTES_MAX, Stored,
};

#[derive(Clone, Debug)]
struct Part {
    path: PathBuf,
    length: u64,
    last: Sequence,
    records: u64,
}

#[derive(Debug, Default)]
struct Shared {
    lanes: PerLane<Mutex<BTreeMap<u64, Part>>>,
    /// Where the last look ended: sequence, floor of the file, offset.
    cursors: PerLane<Mutex<Option<(Sequence, u64, u64)>>>,
}

/// The plain journal.
#[derive(Debug)]
pub struct PlainJournal {
    settings: JournalSettings,
    folder: PathBuf,
    generation: Generation,
    next: Sequence,
    acknowledged: PerLane<Sequence>,
    files: PerLane<Option<File>>,
    shared: Arc<Shared>,
    losses: Vec<Loss>,
}

impl PlainJournal {
    /// Opens the journal below `data_dir`, or starts one.
    ///
    /// # Errors
    /// The folder or a file cannot be read or written.
    pub fn open(
        data_dir: &Path,
        settings: JournalSettings,
        now: EventTime,
    ) -> Result<Self, JournalError> {
        let folder = data_dir.join("plain");
        fs::create_dir_all(&folder).map_err(JournalError::io("create", &folder))?;
        let mut this = Self {
            settings,
            generation: Generation(u64::try_from(now.micros()).unwrap_or_default().max(1)),
            next: Sequence(1),
            acknowledged: PerLane::default(),
            files: PerLane::default(),
            shared: Arc::default(),
            losses: Vec::new(),
            folder,
        };
        this.read_state();
        for lane in Lane::ALL {
            this.read_parts(lane)?;
        }
        this.save()?;
        Ok(this)
    }

    fn read_state(&mut self) {
        let Ok(text) = fs::read_to_string(self.folder.join("state")) else { return };
        let mut numbers = text.split_whitespace().map_while(|number| number.parse().ok());
        if let Some(generation) = numbers.next() {
            self.generation = Generation(generation);
        }
        for (lane, number) in Lane::ALL.into_iter().zip(numbers) {
            *self.acknowledged.get_mut(lane) = Sequence(number);
            self.next = self.next.max(Sequence(number).next());
        }
    }

    fn read_parts(&mut self, lane: Lane) -> Result<(), JournalError> {
        let prefix = format!("{}-", lane.as_str());
        let entries = fs::read_dir(&self.folder).map_err(JournalError::io("list", &self.folder))?;
        let mut parts = BTreeMap::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let floor = name
                .strip_prefix(&prefix)
                .and_then(|rest| rest.strip_suffix(".log"))
                .and_then(|floor| floor.parse::<u64>().ok());
            if let Some(floor) = floor {
                let path = entry.path();
                let bytes = fs::read(&path).map_err(JournalError::io("read", &path))?;
                let (length, last, records) = measure(&bytes);
                parts.insert(floor, Part { path, length, last, records });
            }
        }
        if let Some(mut newest) = parts.last_entry() {
            let part = newest.get_mut();
            let file = File::options()
                .read(true)
                .write(true)
                .open(&part.path)
                .map_err(JournalError::io("open", &part.path))?;
            file.set_len(part.length).map_err(JournalError::io("cut", &part.path))?;
            *self.files.get_mut(lane) = Some(file);
        }
        for (floor, part) in &parts {
            self.next = self.next.max(Sequence(*floor)).max(part.last.next());
        }
        *lock(self.shared.lanes.get(lane)) = parts;
        Ok(())
    }

    fn write(&mut self, lane: Lane, bytes: &[u8]) -> Result<(), JournalError> {
        let mut parts = lock(self.shared.lanes.get(lane));
        let is_full = parts
            .last_key_value()
            .is_none_or(|(_, part)| part.length >= self.settings.segment_bytes);
        if is_full || self.files.get(lane).is_none() {
            let path = self.folder.join(format!("{}-{:020}.log", lane.as_str(), self.next.0));
            let file = File::create(&path).map_err(JournalError::io("create", &path))?;
            sync_folder(&self.folder)?;
            *self.files.get_mut(lane) = Some(file);
            parts.insert(self.next.0, Part { path, length: 0, last: Sequence(0), records: 0 });
        }
        let (Some(file), Some(mut newest)) = (self.files.get(lane), parts.last_entry()) else {
            return Err(JournalError::NoSegment { lane: lane.as_str() });
        };
        let part = newest.get_mut();
        file.write_all_at(bytes, part.length)
            .and_then(|()| file.sync_data())
            .map_err(JournalError::io("append", &part.path))?;
        let (length, last, records) = measure(bytes);
        part.length += length;
        part.last = last;
        part.records += records;
        Ok(())
    }

    fn delete(&self, lane: Lane, floor: u64) -> Result<(), JournalError> {
        let Some(part) = lock(self.shared.lanes.get(lane)).remove(&floor) else { return Ok(()) };
        fs::remove_file(&part.path).map_err(JournalError::io("delete", &part.path))
    }

    fn oldest_closed(&self, lane: Lane) -> Option<(u64, Part)> {
        let parts = lock(self.shared.lanes.get(lane));
        if parts.len() < 2 {
            return None;
        }
        parts.first_key_value().map(|(floor, part)| (*floor, part.clone()))
    }
}

/// Length of what is whole, its last sequence, its records.
fn measure(bytes: &[u8]) -> (u64, Sequence, u64) {
    let (mut rest, mut last, mut records) = (bytes, Sequence(0), 0);
    while let Some((sequence, _, after)) = split_entry(rest) {
        (rest, last, records) = (after, sequence, records + 1);
    }
    ((bytes.len() - rest.len()) as u64, last, records)
}

impl Journal for PlainJournal {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn next_sequence(&self) -> Sequence {
        self.next
    }

    fn last(&self, lane: Lane) -> Sequence {
        let parts = lock(self.shared.lanes.get(lane));
        let last = parts.last_key_value().map_or(Sequence(0), |(_, part)| part.last);
        last.max(*self.acknowledged.get(lane))
    }

    fn acknowledged(&self, lane: Lane) -> Sequence {
        *self.acknowledged.get(lane)
    }

    fn reader(&self) -> Arc<dyn JournalReader> {
        Arc::clone(&self.shared) as Arc<dyn JournalReader>
    }

    fn append(&mut self, records: &[Entry]) -> Result<Sequence, JournalError> {
        let mut next = self.next;
        for lane in Lane::ALL {
            let mut bytes = Vec::new();
            for (_, payload) in records.iter().filter(|(of_lane, _)| *of_lane == lane) {
                if payload.len() > RECORD_BYTES_MAX {
                    return Err(JournalError::RecordTooLarge { length: payload.len() });
                }
                push_entry(&mut bytes, next, payload);
                next = next.next();
            }
            if !bytes.is_empty() {
                self.write(lane, &bytes)?;
                self.next = next;
            }
        }
        Ok(self.next)
    }

    fn trim(&mut self, lane: Lane, through: Sequence) -> Result<(), JournalError> {
        let acknowledged = self.acknowledged.get_mut(lane);
        *acknowledged = through.max(*acknowledged);
        let acknowledged = *acknowledged;
        while let Some((floor, part)) = self.oldest_closed(lane) {
            if part.last > acknowledged {
                break;
            }
            self.save()?;
            self.delete(lane, floor)?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), JournalError> {
        let numbers = Lane::ALL.map(|lane| self.acknowledged.get(lane).0.to_string());
        let path = self.folder.join("state");
        let new = self.folder.join("state.new");
        fs::write(&new, format!("{} {}\n", self.generation.0, numbers.join(" ")))
            .and_then(|()| File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .map_err(JournalError::io("write", &path))
    }

    fn bytes(&self) -> u64 {
        let of_lane =
            |lane| lock(self.shared.lanes.get(lane)).values().map(|part| part.length).sum::<u64>();
        Lane::ALL.into_iter().map(of_lane).sum()
    }

    fn segments(&self) -> usize {
        Lane::ALL.into_iter().map(|lane| lock(self.shared.lanes.get(lane)).len()).sum()
    }

    fn evict(&mut self) -> Result<(), JournalError> {
        for lane in Lane::EVICTION {
            while self.bytes() > self.settings.bytes_max {
                let Some((floor, part)) = self.oldest_closed(lane) else { break };
                let first = Sequence(floor).max(self.acknowledged(lane).next());
                let records = (self.acknowledged(lane).0 < floor).then_some(part.records);
                let (cause, last) = (LossCause::EvictedCap, part.last);
                self.losses.push(Loss { lane, cause, first, last, records });
                self.delete(lane, floor)?;
            }
        }
        Ok(())
    }

    fn add_loss(&mut self, loss: &Loss) -> bool {
        let is_new = !self.losses.contains(loss);
        if is_new {
            self.losses.push(loss.clone());
        }
        is_new
    }

    fn losses(&self) -> Vec<Loss> {
        self.losses.clone()
    }

    fn confirm_losses(&mut self, losses: &[Loss]) {
        self.losses.retain(|loss| !losses.contains(loss));
    }

    fn reopen(&mut self) -> Result<(), JournalError> {
        // The next write begins where the last whole one ended.
        Ok(())
    }
}

impl JournalReader for Shared {
    fn read(&self, lane: Lane, after: Sequence, through: Sequence, records_max: usize) -> Batch {
        let mut batch = Batch::default();
        let parts: Vec<(u64, Part)> =
            lock(self.lanes.get(lane)).iter().map(|(floor, part)| (*floor, part.clone())).collect();
        let mut cursor = lock(self.cursors.get(lane));
        for (floor, part) in parts {
            if part.last <= after || floor > through.0 || batch.records.len() >= records_max {
                continue;
            }
            let start = cursor.filter(|(last, of, _)| *last == after && *of == floor);
            let mut offset = start.map_or(0, |(_, _, offset)| offset);
            match read_part(&part, offset) {
                Err(error) => batch.obstacle = Some(error),
                Ok(bytes) => {
                    let mut rest = &bytes[..];
                    while let Some((sequence, payload, next)) = split_entry(rest) {
                        if sequence > through || batch.records.len() >= records_max {
                            break;
                        }
                        offset += (rest.len() - next.len()) as u64;
                        rest = next;
                        if sequence > after {
                            batch.records.push(Stored { sequence, payload: payload.to_vec() });
                            *cursor = Some((sequence, floor, offset));
                        }
                    }
                }
            }
        }
        batch
    }

    fn peek(&self, lane: Lane, after: Sequence, through: Sequence) -> Option<Stored> {
        self.read(lane, after, through, 1).records.into_iter().next()
    }

    fn tail(&self, lane: Lane, records_max: usize) -> Vec<Stored> {
        let mut records = self.read(lane, Sequence(0), Sequence(u64::MAX), usize::MAX).records;
        records.split_off(records.len().saturating_sub(records_max))
    }
}

fn read_part(part: &Part, offset: u64) -> Result<Vec<u8>, JournalError> {
    const READ_BYTES: u64 = 4 << 20;
    let count = part.length.saturating_sub(offset).min(READ_BYTES);
    let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
    let mut read = || {
        let mut file = File::open(&part.path)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))?;
        file.read_exact(&mut bytes)
    };
    read().map_err(JournalError::io("read", &part.path))?;
    Ok(bytes)
}
