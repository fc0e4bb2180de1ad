//! Latches on disk: `<data-dir>/latches/<machine, hexadecimal>.json`, one [`LatchSnapshot`] each.
//!
//! Written beside the stop, never before it: new file, synced, renamed, folder synced. A file that is there and cannot be
//! read is an unknown latch, which the configured fail-safe rule decides. No file means that there never was a trip. A new file
//! that was not renamed is a write that the end of the process cut short: of both files the one with a trip counts, and if the
//! new one cannot be read and the other has none, nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use edge_core::interlock::LatchSnapshot;
use shared_proto::model::MachineId;
use tracing::error;

use crate::admin::{Board, Part};
use crate::durable;

/// Distance of attempts while the disk refuses.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// What a latch file says.
#[derive(Debug)]
pub enum RestoredLatch {
    /// The last state written.
    Known(Box<LatchSnapshot>),
    /// There is a file, and it cannot be read.
    Unknown(MachineId),
}

/// Folder of the latches.
#[derive(Clone, Debug)]
pub struct LatchFolder(PathBuf);

impl LatchFolder {
    /// Opens the folder, creating it if need be.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let this = Self::at(data_dir);
        fs::create_dir_all(&this.0)?;
        Ok(this)
    }

    /// The folder, which somebody else creates.
    #[must_use]
    pub fn at(data_dir: &Path) -> Self {
        Self(data_dir.join("latches"))
    }

    /// The latch of a machine; nothing if it has no file.
    #[must_use]
    pub fn read(&self, machine_id: &MachineId) -> Option<RestoredLatch> {
        let path = self.path(machine_id);
        let unknown = |reason: String| {
            error!(%machine_id, path = %path.display(), reason, "latch of the previous run cannot be read");
            Some(RestoredLatch::Unknown(machine_id.clone()))
        };
        let cut_short = path.with_extension("new");
        let old = match read_file(&path, machine_id) {
            Err(reason) => return unknown(reason),
            Ok(old) if !cut_short.is_file() => return old.map(RestoredLatch::Known),
            Ok(old) => old,
        };
        let new = read_file(&cut_short, machine_id);
        let both = [new.as_ref().ok(), Some(&old)];
        let tripped = both.into_iter().flatten().flatten().find(|latch| latch.trip.is_some());
        let tripped = tripped.cloned();
        match (tripped, new) {
            (Some(tripped), _) => Some(RestoredLatch::Known(tripped)),
            (None, Ok(new)) => new.or(old).map(RestoredLatch::Known),
            (None, Err(reason)) => unknown(format!("it was being written: {reason}")),
        }
    }

    /// Trips latched on machines that are not among these: their settings are gone, or their names.
    #[must_use]
    pub fn orphans(&self, machines: &BTreeSet<&MachineId>) -> Vec<LatchSnapshot> {
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let latches = files.filter_map(|file| {
            serde_json::from_slice::<LatchSnapshot>(&fs::read(file.path()).ok()?).ok()
        });
        let is_orphan =
            |latch: &LatchSnapshot| latch.trip.is_some() && !machines.contains(&latch.machine_id);
        latches.filter(is_orphan).collect()
    }

    /// Makes a latch durable.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, latch: &LatchSnapshot) -> io::Result<()> {
        durable::replace(&self.path(&latch.machine_id), &serde_json::to_vec_pretty(latch)?)
    }

    fn path(&self, machine_id: &MachineId) -> PathBuf {
        let name: String = machine_id.as_str().bytes().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(format!("{name}.json"))
    }
}

/// The latch in a file, if there is one.
fn read_file(path: &Path, machine_id: &MachineId) -> Result<Option<Box<LatchSnapshot>>, String> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| error.to_string())?,
    };
    let latch: Box<LatchSnapshot> =
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if latch.machine_id != *machine_id {
        return Err(format!("it is the latch of {}", latch.machine_id));
    }
    Ok(Some(latch))
}

/// Writes latches as they come, on a thread of its own, until the sender is gone. Of each machine only the newest counts; one
/// that the disk refuses is tried again until it is durable.
pub fn write_all(folder: &LatchFolder, latches: &Receiver<LatchSnapshot>, board: &Board) {
    let mut waiting = BTreeMap::new();
    let mut is_open = true;
    while is_open || !waiting.is_empty() {
        let received = if waiting.is_empty() {
            latches.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            latches.recv_timeout(RETRY_INTERVAL)
        };
        match received {
            Ok(latch) => {
                waiting.insert(latch.machine_id.clone(), latch);
                waiting.extend(latches.try_iter().map(|latch| (latch.machine_id.clone(), latch)));
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The last attempt of an orderly end.
            Err(RecvTimeoutError::Disconnected) if is_open => is_open = false,
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let had_failed = waiting.len();
        board.begin(Part::Latches);
        waiting.retain(|machine_id, latch| match folder.write(latch) {
            Ok(()) => false,
            Err(error) => {
                error!(%machine_id, %error, "latch not durable, trying again: until then a restart would not know it");
                true
            }
        });
        board.end(Part::Latches);
        if had_failed > 0 {
            let state = match waiting.len() {
                0 => Ok(()),
                count => Err(format!(
                    "{count} latches are not durable: check the disk of device.data-dir"
                )),
            };
            board.set(Part::Latches, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_core::interlock::{LatchedTrip, StopProgress, TripCause};
    use shared_proto::model::EventTime;

    use super::*;

    fn latch(machine: &str) -> LatchSnapshot {
        let json = serde_json::json!({ "machine_id": machine, "trip_count": 3 });
        serde_json::from_value(json).expect("all else is optional")
    }

    fn wait_for(condition: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(std::time::Instant::now() < deadline, "not within 20 s");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_trip_of_a_machine_without_settings_is_found() {
        let folder = tempfile::tempdir().expect("folder");
        let latches = LatchFolder::open(folder.path()).expect("opened");
        let trip = LatchedTrip {
            trip_id: "gone-1".to_owned(),
            cause: TripCause::Restart,
            since: EventTime::from_micros(0),
            stop: StopProgress::Confirmed,
            later_causes: Vec::new(),
            rule_version: String::new(),
        };
        let tripped = LatchSnapshot { trip: Some(trip), ..latch("gone") };
        latches.write(&latch("armed and gone")).expect("written");
        latches.write(&tripped).expect("written");
        let orphans = |ids: &[&MachineId]| latches.orphans(&ids.iter().copied().collect());
        assert_eq!(orphans(&[]), std::slice::from_ref(&tripped));
        assert!(orphans(&[&tripped.machine_id]).is_empty());
    }

    #[test]
    fn a_latch_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("folder");
        let latches = LatchFolder::open(folder.path()).expect("opened");
        let latch = latch("press 1/ü");
        assert!(latches.read(&latch.machine_id).is_none());
        latches.write(&latch).expect("written");
        match latches.read(&latch.machine_id) {
            Some(RestoredLatch::Known(read)) => assert_eq!(*read, latch),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn latches_of_older_versions_are_in_force() {
        let old = r#"{
  "machine_id": "press-1",
  "trip_count": 7,
  "trip": {
    "trip_id": "press-1-1767225600000000-7",
    "cause": { "kind": "limit", "rule": "hot", "sensor": "press-1/oil", "value": 121.5, "limit": 120.0 },
    "since": 1767225600000000,
    "stop": "confirmed",
    "later_causes": [{ "kind": "silence", "sensor": "press-1/oil", "limit_ms": 5000 }]
  },
  "machine_state": "stopped"
}"#;
        let folder = tempfile::tempdir().expect("folder");
        let latches = LatchFolder::open(folder.path()).expect("opened");
        let machine_id = MachineId::new("press-1").expect("valid");
        fs::write(latches.path(&machine_id), old).expect("written");
        let Some(RestoredLatch::Known(read)) = latches.read(&machine_id) else {
            panic!("yesterday's latch is not read");
        };
        let trip = read.trip.expect("latched");
        assert_eq!(trip.trip_id, "press-1-1767225600000000-7");
        assert_eq!((trip.later_causes.len(), trip.rule_version.as_str()), (1, ""));
        assert!(read.shelved.is_empty() && !read.dry_run);
    }

    #[test]
    fn a_latch_that_the_disk_refused_is_written_when_there_is_room_again() {
        let folder = tempfile::tempdir().expect("folder");
        let latches = LatchFolder::open(folder.path()).expect("opened");
        let latch = latch("press-1");
        // A folder where the new file would be: the disk refuses until it is gone.
        let obstacle = latches.path(&latch.machine_id).with_extension("new");
        fs::create_dir(&obstacle).expect("made");
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let board = Board::default();
        std::thread::scope(|scope| {
            let (latches, board) = (&latches, &board);
            scope.spawn(move || write_all(latches, &receiver, board));
            sender.send(latch.clone()).expect("taken");
            wait_for(|| board.lines().iter().any(|line| line.contains("not durable")));
            fs::remove_dir(&obstacle).expect("gone");
            wait_for(|| latches.read(&latch.machine_id).is_some());
            drop(sender);
        });
        assert!(matches!(latches.read(&latch.machine_id), Some(RestoredLatch::Known(_))));
    }

    #[test]
    fn a_write_that_was_cut_short_arms_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let latches = LatchFolder::open(folder.path()).expect("opened");
        let armed = latch("press-1");
        let trip = LatchedTrip {
            trip_id: "press-1-1".to_owned(),
            cause: TripCause::Restart,
            since: EventTime::from_micros(0),
            stop: StopProgress::Confirmed,
            later_causes: Vec::new(),
            rule_version: String::new(),
        };
        let tripped = LatchSnapshot { trip: Some(trip), ..armed.clone() };
        let json = |latch: &LatchSnapshot| serde_json::to_vec(latch).expect("JSON");
        let path = latches.path(&armed.machine_id);
        let read = |old: Option<&LatchSnapshot>, new: &[u8]| {
            fs::remove_file(&path).ok();
            old.into_iter().for_each(|old| latches.write(old).expect("written"));
            fs::write(path.with_extension("new"), new).expect("written");
            match latches.read(&armed.machine_id) {
                Some(RestoredLatch::Known(latch)) if latch.trip.is_some() => "tripped",
                Some(RestoredLatch::Known(_)) => "armed",
                Some(RestoredLatch::Unknown(_)) => "unknown",
                None => "none",
            }
        };
        assert_eq!(read(Some(&armed), b""), "unknown");
        assert_eq!(read(None, b"{"), "unknown");
        assert_eq!(read(Some(&tripped), b""), "tripped");
        assert_eq!(read(Some(&armed), &json(&tripped)), "tripped");
        assert_eq!(read(Some(&tripped), &json(&armed)), "tripped", "a reset that nobody saw done");
        assert_eq!(read(Some(&armed), &json(&armed)), "armed");
        latches.write(&armed).expect("written");
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn a_latch_that_cannot_be_read_is_unknown_and_not_armed() {
        let folder = tempfile::tempdir().expect("folder");
        let latches = LatchFolder::open(folder.path()).expect("opened");
        let latch = latch("press-1");
        for damage in [&b""[..], b"{", b"{\"machine_id\":\"other\",\"trip_count\":0}"] {
            latches.write(&latch).expect("written");
            fs::write(latches.path(&latch.machine_id), damage).expect("damaged");
            assert!(
                matches!(latches.read(&latch.machine_id), Some(RestoredLatch::Unknown(_))),
                "{damage:?}"
            );
        }
    }
}
