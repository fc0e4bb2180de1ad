//! Latches on disk: `<data-dir>/latches/<machine, hexadecimal>.json`, one [`LatchSnapshot`] each.
//!
//! Written beside the stop, never before it: new file, synced, renamed, folder synced. A file that is there and cannot be
//! read is an unknown latch, which the configured fail-safe rule decides. No file means that there never was a trip.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use edge_core::interlock::LatchSnapshot;
use shared_proto::model::MachineId;
use tokio::sync::mpsc;
use tracing::error;

/// What a latch file says.
#[derive(Debug)]
pub enum RestoredLatch {
    /// The last state written.
    Known(LatchSnapshot),
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
        let folder = data_dir.join("latches");
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// The latch of a machine; nothing if it has no file.
    #[must_use]
    pub fn read(&self, machine_id: &MachineId) -> Option<RestoredLatch> {
        let path = self.path(machine_id);
        let unknown = |reason: String| {
            error!(%machine_id, path = %path.display(), reason, "latch of the previous run cannot be read");
            Some(RestoredLatch::Unknown(machine_id.clone()))
        };
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => unknown(error.to_string()),
            Ok(bytes) => match serde_json::from_slice::<LatchSnapshot>(&bytes) {
                Ok(snapshot) if snapshot.machine_id == *machine_id => {
                    Some(RestoredLatch::Known(snapshot))
                }
                Ok(snapshot) => unknown(format!("it is the latch of {}", snapshot.machine_id)),
                Err(error) => unknown(error.to_string()),
            },
        }
    }

    /// Makes a latch durable.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, latch: &LatchSnapshot) -> io::Result<()> {
        let path = self.path(&latch.machine_id);
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(latch)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.0)?.sync_all()
    }

    fn path(&self, machine_id: &MachineId) -> PathBuf {
        let name: String = machine_id.as_str().bytes().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(format!("{name}.json"))
    }
}

/// Writes latches as they come, on a thread of its own, until the sender is gone.
pub fn write_all(folder: &LatchFolder, mut latches: mpsc::Receiver<LatchSnapshot>) {
    while let Some(latch) = latches.blocking_recv() {
        if let Err(error) = folder.write(&latch) {
            error!(machine_id = %latch.machine_id, %error, "latch not durable: after a restart the machine may not be known as tripped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latch(machine: &str) -> LatchSnapshot {
        let machine_id = MachineId::new(machine).expect("valid");
        LatchSnapshot { machine_id, trip_count: 3, trip: None, machine_state: None }
    }

    #[test]
    fn a_latch_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("folder");
        let latches = LatchFolder::open(folder.path()).expect("opened");
        let latch = latch("press 1/ü");
        assert!(latches.read(&latch.machine_id).is_none());
        latches.write(&latch).expect("written");
        match latches.read(&latch.machine_id) {
            Some(RestoredLatch::Known(read)) => assert_eq!(read, latch),
            other => panic!("{other:?}"),
        }
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
