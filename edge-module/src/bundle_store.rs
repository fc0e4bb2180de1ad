//! Bundles that come as one file, from a disk or a server: `<data-dir>/models/<sha256 of the archive>/`, a folder as
//! `scoring::Bundle::load` takes it.
//!
//! ```text
//! models/<sha256>/        bundle.json, model.tflite: always whole, written beside, synced, renamed
//! models/<sha256>.part    the beginning of a download, to go on from; removed after a day
//! models/<sha256>.new     being unpacked or removed; a leftover of a crash, removed at the next start
//! ```
//!
//! An archive has at most 4 MiB and is a tar of exactly two plain files ([`archive`]). Its hash comes with the settings and is checked
//! before anything is unpacked, so a server is trusted with nothing but to answer; https keeps others from reading along.
//! What a bundle says is not looked at here: whoever loads it tests it.
//!
//! Waits for disk and network: nothing of the stop path calls this.

pub mod archive;
mod download;
mod error;
mod shelf;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tracing::{info, warn};

pub use download::{ARCHIVE_BYTES_MAX, DownloadLimits, REDIRECTS_MAX};
pub use error::{Disposition, StoreError};
pub use shelf::{KEPT_MAX, PART_KEPT_FOR};
pub use source::{ArchiveHash, BundleSettings, BundleSource, BundleUrl, URL_BYTES_MAX, UrlRefused};

use crate::mqtt::source::random_fraction;
use download::{Download, Part, blocking};
use shelf::Shelf;

/// In the data folder.
const FOLDER: &str = "models";
/// Times that a download may have the wrong hash: the first may come from a damaged beginning, or from a proxy's cache.
const WRONG_HASHES_MAX: u32 = 2;

/// The bundles that were unpacked on this device.
#[derive(Debug)]
pub struct BundleStore {
    shelf: Shelf,
    limits: DownloadLimits,
    /// Two downloads of the same archive would write the same file.
    turns: std::sync::Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl BundleStore {
    /// Opens `models` in the data folder, and removes what a crash left there. Blocks.
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn open(data_dir: &Path, limits: DownloadLimits) -> Result<Self, StoreError> {
        let shelf = Shelf::open(data_dir.join(FOLDER), SystemTime::now())?;
        Ok(Self { shelf, limits, turns: std::sync::Mutex::default() })
    }

    /// Where a store of this data folder has the bundle of an archive, once it is unpacked. For whoever only reads.
    #[must_use]
    pub fn folder_in(data_dir: &Path, sha256: &ArchiveHash) -> PathBuf {
        data_dir.join(FOLDER).join(sha256.as_str())
    }

    /// The folder of a bundle, as far as no network is needed for it; nothing if it must be downloaded first. Blocks.
    ///
    /// # Errors
    /// An archive cannot be read, is none, or has another hash; the disk refuses.
    pub fn at_hand(&self, source: &BundleSource) -> Result<Option<PathBuf>, StoreError> {
        match source {
            BundleSource::Folder(folder) => Ok(Some(folder.clone())),
            BundleSource::Archive { file, sha256 } => {
                let limit = self.limits.archive_bytes_max;
                self.shelf.unpack_file(file, sha256.as_ref(), limit).map(Some)
            }
            BundleSource::Download { sha256, .. } => Ok(self.shelf.find(sha256)),
        }
    }

    /// The folder of a bundle, downloaded if need be.
    ///
    /// # Errors
    /// As [`Self::at_hand`] and [`Self::fetch`].
    pub async fn folder(&self, source: &BundleSource) -> Result<PathBuf, StoreError> {
        match source {
            BundleSource::Folder(folder) => Ok(folder.clone()),
            BundleSource::Archive { file, sha256 } => {
                let (shelf, limit) = (self.shelf.clone(), self.limits.archive_bytes_max);
                let (file, sha256) = (file.clone(), sha256.clone());
                blocking(move || shelf.unpack_file(&file, sha256.as_ref(), limit)).await
            }
            BundleSource::Download { url, sha256 } => self.fetch(url, sha256).await,
        }
    }

    /// Downloads an archive, unless its bundle is there, and returns the folder. Goes on where an earlier call stopped. Waits for
    /// as many attempts as the limits allow, and may be dropped at any time.
    ///
    /// # Errors
    /// The last attempt's; [`StoreError::disposition`] says whether another call makes sense.
    pub async fn fetch(
        &self,
        url: &BundleUrl,
        sha256: &ArchiveHash,
    ) -> Result<PathBuf, StoreError> {
        let turn = self.turn_of(sha256);
        let _turn = turn.lock().await;
        let (shelf, hash) = (self.shelf.clone(), sha256.clone());
        if let Some(folder) = blocking(move || Ok(shelf.find(&hash))).await? {
            return Ok(folder);
        }
        let limit = self.limits.archive_bytes_max;
        let mut part = Part::read(self.shelf.part(sha256), limit).await?;
        // A crash after the last byte leaves all of it.
        if ArchiveHash::of(part.content()) != *sha256 {
            self.download(url, sha256, &mut part).await?;
        }
        let (shelf, hash) = (self.shelf.clone(), sha256.clone());
        let (content, what) = (part.take_content(), url.to_string());
        let unpacked = blocking(move || shelf.unpack(&content, &hash, &what)).await;
        let is_done = unpacked.as_ref().err().is_none_or(|error| !error.is_transient());
        if is_done && let Err(error) = part.clear().await {
            warn!(%error, "leftover of a download cannot be removed");
        }
        let folder = unpacked?;
        info!(%url, %sha256, "bundle downloaded");
        Ok(folder)
    }

    fn turn_of(&self, sha256: &ArchiveHash) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has or waits for.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(sha256.as_str().to_owned()).or_default())
    }

    /// Which archive a folder of this store came from; nothing for a folder elsewhere. For [`Self::prune`].
    #[must_use]
    pub fn hash_of(&self, folder: &Path) -> Option<ArchiveHash> {
        self.shelf.hash_of(folder)
    }

    /// Removes bundles that are not among `keep`, but the newest [`KEPT_MAX`] of them, and returns what was removed. `keep`
    /// must name all that are in use or being loaded. Blocks.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn prune(&self, keep: &[ArchiveHash]) -> Result<Vec<ArchiveHash>, StoreError> {
        self.shelf.prune(keep)
    }

    /// Removes one bundle, so that it is fetched anew: for one whose files do not load. Blocks.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn discard(&self, sha256: &ArchiveHash) -> Result<(), StoreError> {
        self.shelf.discard(sha256)
    }

    /// Attempts until `part` has the hash, or there is no hope, or there were too many.
    async fn download(
        &self,
        url: &BundleUrl,
        sha256: &ArchiveHash,
        part: &mut Part,
    ) -> Result<(), StoreError> {
        let download = Download::new(url, &self.limits).await?;
        let (mut attempt, mut wrong_hashes, mut backoff) = (1, 0, self.limits.backoff_min);
        loop {
            let received = download.attempt(part).await;
            let Err(failed) = received.and_then(|()| verify(part, url, sha256)) else {
                return Ok(());
            };
            let is_wrong_hash = matches!(failed, StoreError::Hash { .. });
            wrong_hashes += u32::from(is_wrong_hash);
            if !failed.is_transient() {
                part.clear().await?;
            }
            let is_hopeless = match failed.disposition() {
                Disposition::Retry => false,
                Disposition::Later => true,
                Disposition::Refuse => !is_wrong_hash || wrong_hashes >= WRONG_HASHES_MAX,
            };
            let asked = failed.retry_after().unwrap_or_default();
            if is_hopeless || attempt >= self.limits.attempts_max || asked > self.limits.backoff_max
            {
                return Err(failed);
            }
            let wait = jittered(backoff).max(asked);
            warn!(error = %failed, attempt, ?wait, "bundle not downloaded, trying again");
            tokio::time::sleep(wait).await;
            backoff = (2 * backoff).min(self.limits.backoff_max);
            attempt += 1;
        }
    }
}

fn verify(part: &Part, url: &BundleUrl, expected: &ArchiveHash) -> Result<(), StoreError> {
    let found = ArchiveHash::of(part.content());
    if found == *expected {
        return Ok(());
    }
    Err(StoreError::Hash { what: url.to_string(), found, expected: expected.clone() })
}

/// Half to the whole of `wait`: devices that were sent the same URL do not ask in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + 0.5 * random_fraction())
}

#[cfg(test)]
mod tests;
