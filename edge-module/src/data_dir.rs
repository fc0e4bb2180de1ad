//! The data folder: who has it, and what it says of the machines at the start.
//!
//! A disk that does not answer must not keep the machines without protection: the folder is taken on a thread of its own, and after
//! [`PATIENCE`] the stop path starts without it. Then nobody knows the latches of the last run, and the rule for unknown ones
//! holds. The journal waits until the folder is taken.

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use edge_core::interlock::LatchSnapshot;
use tracing::{error, info};

use crate::config::{Settings, UnknownLatch};
use crate::latch::{LatchFolder, RestoredLatch};

/// How long the folder is waited for before the stop path starts without it.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How often is looked whether it was taken.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Reads something on a thread of its own and waits for it for [`PATIENCE`] at most: a disk that does not answer must not keep the
/// machines without protection. `None`: it was not read in time.
pub fn read_patiently<T: Send + 'static>(
    what: &'static str,
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, done) = sync_channel(1);
    // Without anybody who waits it is too late.
    let read = move || drop(sender.send(read()));
    if let Err(error) = std::thread::Builder::new().name(what.to_owned()).spawn(read) {
        error!(%error, what, "not read");
        return None;
    }
    let result = done.recv_timeout(PATIENCE);
    if let Err(error) = &result {
        error!(%error, what, "not read: the disk of device.data-dir does not answer");
    }
    result.ok()
}

/// What is known of the machines at the start.
pub struct Latches {
    /// Where they are kept.
    pub folder: LatchFolder,
    /// Of the machines of the settings.
    pub restored: Vec<RestoredLatch>,
    /// Latched trips of machines that the settings do not name.
    pub orphans: Vec<LatchSnapshot>,
}

/// The folder, taken by this process or being taken.
pub struct DataDir {
    lock: Option<File>,
    coming: Option<Receiver<anyhow::Result<(File, Latches)>>>,
}

impl DataDir {
    /// Takes the folder and reads the latches, and waits for that, but not for ever.
    ///
    /// # Errors
    /// It cannot be created or written, or another process has it.
    pub fn take(settings: &Settings) -> anyhow::Result<(Self, Latches)> {
        let (sender, coming) = sync_channel(1);
        let of_thread = settings.clone();
        let take = move || {
            let taken = open(&of_thread.device.data_dir)
                .and_then(|lock| Ok((lock, read_latches(&of_thread)?)));
            // Without anybody who waits the lock goes with the value.
            drop(sender.send(taken));
        };
        std::thread::Builder::new().name("data-dir".to_owned()).spawn(take)?;
        match coming.recv_timeout(PATIENCE) {
            Ok(taken) => {
                let (lock, latches) = taken?;
                Ok((Self { lock: Some(lock), coming: None }, latches))
            }
            Err(RecvTimeoutError::Timeout) => {
                error!(
                    folder = %settings.device.data_dir.display(),
                    "the disk of device.data-dir does not answer: machines are protected, their latches of the last run are unknown, nothing is recorded"
                );
                Ok((Self { lock: None, coming: Some(coming) }, unknown_latches(settings)))
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that takes it has panicked"),
        }
    }

    /// Whether the disk has not answered yet.
    #[must_use]
    pub const fn is_awaited(&self) -> bool {
        self.coming.is_some()
    }

    /// Waits until the folder is taken.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub async fn wait(&mut self) -> anyhow::Result<()> {
        let Some(coming) = &self.coming else { return Ok(()) };
        let taken = loop {
            match coming.try_recv() {
                Ok(taken) => break taken,
                Err(TryRecvError::Empty) => tokio::time::sleep(LOOK_INTERVAL).await,
                Err(TryRecvError::Disconnected) => {
                    bail!("the thread that takes device.data-dir has panicked")
                }
            }
        };
        let (lock, _) = taken.context("device.data-dir cannot be used")?;
        info!("the disk of device.data-dir answers");
        self.lock = Some(lock);
        self.coming = None;
        Ok(())
    }
}

fn read_latches(settings: &Settings) -> anyhow::Result<Latches> {
    let folder = LatchFolder::open(&settings.device.data_dir)?;
    let machines = settings.machines.iter().map(|machine| &machine.id).collect();
    let orphans = folder.orphans(&machines);
    let read = settings.machines.iter().filter_map(|machine| folder.read(&machine.id));
    let restored = in_force(settings, read);
    Ok(Latches { folder, restored, orphans })
}

fn unknown_latches(settings: &Settings) -> Latches {
    let machines = settings.machines.iter();
    let unknown = machines.map(|machine| RestoredLatch::Unknown(machine.id.clone()));
    Latches {
        folder: LatchFolder::at(&settings.device.data_dir),
        restored: in_force(settings, unknown),
        orphans: Vec::new(),
    }
}

/// An unknown one is what the fail-safe rule says.
fn in_force(
    settings: &Settings,
    latches: impl Iterator<Item = RestoredLatch>,
) -> Vec<RestoredLatch> {
    let is_tripped = match settings.protection.unknown_latch {
        UnknownLatch::Tripped => true,
        UnknownLatch::Armed => false,
    };
    latches.filter(|latch| is_tripped || matches!(latch, RestoredLatch::Known(_))).collect()
}

/// Takes the folder for this process alone and makes sure that it can be written.
///
/// # Errors
/// It cannot be created or written, or another process has it.
pub fn open(folder: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(folder).context("it cannot be created; create it or choose another")?;
    let path = folder.join("lock");
    let lock =
        File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    if lock.try_lock().is_err() {
        bail!("another edge module runs on it; stop that one or choose another folder");
    }
    Ok(lock)
}

/// Keeps the folder from being taken while it is only read. One that was never taken has no lock, and a copy on a disk that
/// cannot be written needs none.
///
/// # Errors
/// A process has taken it, or its lock cannot be opened.
pub fn share(folder: &Path) -> anyhow::Result<Option<File>> {
    let path = folder.join("lock");
    let lock = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("{} cannot be opened", path.display()))?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(Some(lock)),
        Err(_) => Err(anyhow!(
            "an edge module runs on it, or is still ending; stop it first, or copy the folder"
        )),
    }
}
