//! The folders of the store on disk; `bundle_store.rs` says what there is.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::archive;
use super::error::StoreError;
use super::source::ArchiveHash;
use crate::durable;
use crate::scoring::{METADATA_FILE, MODEL_FILE};

/// Bundles kept besides those in use: the one before, to return to, and the one before that.
pub const KEPT_MAX: usize = 2;
/// How long the beginning of a download is kept.
pub const PART_KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

const PART: &str = "part";
/// Being unpacked, or being removed.
const TEMPORARY: &str = "new";

/// The store's folder. Everything here blocks.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    /// One at a time makes and removes folders.
    changing: Arc<Mutex<()>>,
}

impl Shelf {
    /// Opens the folder, and removes what a crash left.
    pub(super) fn open(dir: PathBuf, now: SystemTime) -> Result<Self, StoreError> {
        fs::create_dir_all(&dir).map_err(disk(&dir))?;
        let shelf = Self { dir, changing: Arc::default() };
        shelf.clean(now)?;
        Ok(shelf)
    }

    /// The folder of a bundle, if the whole of it is there.
    pub(super) fn find(&self, sha256: &ArchiveHash) -> Option<PathBuf> {
        let folder = self.folder(sha256);
        let is_whole = [METADATA_FILE, MODEL_FILE].iter().all(|name| folder.join(name).is_file());
        is_whole.then_some(folder)
    }

    /// The hash in the name of a folder that is one of ours.
    pub(super) fn hash_of(&self, folder: &Path) -> Option<ArchiveHash> {
        let is_ours = folder.parent() == Some(self.dir.as_path());
        let name = folder.file_name().and_then(OsStr::to_str).filter(|_| is_ours)?;
        ArchiveHash::parse(name).ok()
    }

    /// Where the beginning of a download is kept.
    pub(super) fn part(&self, sha256: &ArchiveHash) -> PathBuf {
        self.folder(sha256).with_extension(PART)
    }

    /// Puts the bundle of an archive in its place, durable and whole. `what` names the archive in errors.
    pub(super) fn unpack(
        &self,
        content: &[u8],
        sha256: &ArchiveHash,
        what: &str,
    ) -> Result<PathBuf, StoreError> {
        let files = archive::read(content)
            .map_err(|fault| StoreError::Archive { what: what.to_owned(), fault })?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = self.find(sha256) {
            return Ok(folder);
        }
        let (folder, new) = (self.folder(sha256), self.folder(sha256).with_extension(TEMPORARY));
        self.remove(&folder)?;
        remove_all(&new).map_err(disk(&new))?;
        fs::create_dir(&new).map_err(disk(&new))?;
        for (name, content) in [(METADATA_FILE, files.metadata), (MODEL_FILE, files.model)] {
            let path = new.join(name);
            durable::write(&path, content).map_err(disk(&path))?;
        }
        sync(&new)?;
        fs::rename(&new, &folder).map_err(disk(&folder))?;
        sync(&self.dir)?;
        Ok(folder)
    }

    /// As [`Self::unpack`], of a file that must have this hash if one is given. Not unpacked if it is there already.
    pub(super) fn unpack_file(
        &self,
        file: &Path,
        expected: Option<&ArchiveHash>,
        limit: u64,
    ) -> Result<PathBuf, StoreError> {
        let what = file.display().to_string();
        let content = match read_limited(file, limit) {
            Ok(Some(content)) => content,
            Ok(None) => return Err(StoreError::TooLong { what, limit }),
            Err(fault) => return Err(StoreError::Read { path: file.to_owned(), fault }),
        };
        let found = ArchiveHash::of(&content);
        match expected {
            Some(expected) if *expected != found => {
                Err(StoreError::Hash { what, found, expected: expected.clone() })
            }
            Some(_) | None => self.unpack(&content, &found, &what),
        }
    }

    /// Removes bundles that are not among `keep`, but the newest [`KEPT_MAX`] of them. Returns what was removed.
    pub(super) fn prune(&self, keep: &[ArchiveHash]) -> Result<Vec<ArchiveHash>, StoreError> {
        let mut by_age = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(disk(&self.dir))? {
            let entry = entry.map_err(disk(&self.dir))?;
            let hash = entry.file_name().to_str().and_then(|name| ArchiveHash::parse(name).ok());
            let Some(hash) = hash.filter(|hash| !keep.contains(hash)) else { continue };
            let unpacked = entry.metadata().and_then(|metadata| metadata.modified());
            let path = entry.path();
            by_age.insert((unpacked.map_err(disk(&path))?, hash.clone()), hash);
        }
        let removed = by_age.len().saturating_sub(KEPT_MAX);
        let oldest: Vec<_> = by_age.into_values().take(removed).collect();
        for hash in &oldest {
            self.discard(hash)?;
        }
        Ok(oldest)
    }

    /// Removes a bundle.
    pub(super) fn discard(&self, sha256: &ArchiveHash) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove(&self.folder(sha256))
    }

    fn folder(&self, sha256: &ArchiveHash) -> PathBuf {
        self.dir.join(sha256.as_str())
    }

    /// Under another name first, so that half of a bundle never has the name of a whole one.
    fn remove(&self, folder: &Path) -> Result<(), StoreError> {
        let gone = folder.with_extension(TEMPORARY);
        remove_all(&gone).map_err(disk(&gone))?;
        match fs::rename(folder, &gone) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(disk(folder))?,
        }
        sync(&self.dir)?;
        remove_all(&gone).map_err(disk(&gone))
    }

    /// A leftover that cannot be removed takes room, and no more than that.
    fn clean(&self, now: SystemTime) -> Result<(), StoreError> {
        for entry in fs::read_dir(&self.dir).map_err(disk(&self.dir))? {
            let path = entry.map_err(disk(&self.dir))?.path();
            let extension = path.extension().and_then(OsStr::to_str);
            let is_leftover = match extension {
                Some(TEMPORARY) => true,
                Some(PART) => is_older(&path, PART_KEPT_FOR, now),
                Some(_) | None => false,
            };
            if is_leftover && let Err(error) = remove_all(&path) {
                warn!(path = %path.display(), %error, "leftover of a download cannot be removed");
            }
        }
        Ok(())
    }
}

/// What the disk said of a path.
pub(super) fn disk(path: &Path) -> impl Fn(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |fault| StoreError::Disk { path: path.clone(), fault }
}

/// The content of a file; nothing if it is longer than that.
pub(super) fn read_limited(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= limit).then_some(content))
}

/// Removes a file or a folder, if there is one.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A time stamp of the future says nothing: such a file is kept, and removed when the clock has passed it.
fn is_older(path: &Path, age: Duration, now: SystemTime) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|found| found > age))
}

fn sync(folder: &Path) -> Result<(), StoreError> {
    durable::sync_folder(folder).map_err(disk(folder))
}
