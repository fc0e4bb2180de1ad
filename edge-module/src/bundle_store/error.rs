//! What can go wrong between a source and a folder that holds the bundle.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::archive::ArchiveError;
use super::source::{ArchiveHash, BundleUrl, UrlRefused};

/// Why there is no folder with the bundle. No text holds the query of a URL.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file of an archive is missing or cannot be read.
    #[error("{path} cannot be read: {fault}; check the path", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        fault: io::Error,
    },
    /// The disk refuses.
    #[error("{path}: {text}", path = path.display(), text = disk_text(fault))]
    Disk {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        fault: io::Error,
    },
    /// More than any bundle has.
    #[error("{what} has more than {limit} bytes, which no bundle needs: check what it is")]
    TooLong {
        /// File or URL.
        what: String,
        /// Bytes allowed.
        limit: u64,
    },
    /// Another archive than named.
    #[error(
        "{what} has sha256 {found}, the settings name {expected}: it is damaged or another one; correct the settings or the file"
    )]
    Hash {
        /// File or URL.
        what: String,
        /// Of the archive.
        found: ArchiveHash,
        /// Of the settings.
        expected: ArchiveHash,
    },
    /// No bundle.
    #[error("{what} is no bundle: {fault}; make it with `python -m machine_model pack`")]
    Archive {
        /// File or URL.
        what: String,
        /// What is wrong.
        fault: ArchiveError,
    },
    /// No trust roots, for example.
    #[error("no https can be spoken: {0}; install the system's certificates")]
    Client(String),
    /// No connection, or it broke.
    #[error("{url}: {reason}")]
    Transport {
        /// Asked.
        url: BundleUrl,
        /// Why.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("{url} was silent for {seconds} s", seconds = silent_for.as_secs_f64())]
    Silent {
        /// Asked.
        url: BundleUrl,
        /// How long was waited.
        silent_for: Duration,
    },
    /// Something came, too slowly.
    #[error("{url} did not deliver within {seconds} s", seconds = limit.as_secs_f64())]
    TooSlow {
        /// Asked.
        url: BundleUrl,
        /// Time of an attempt.
        limit: Duration,
    },
    /// The server asks to come back.
    #[error("{url} answers status {status}")]
    Unavailable {
        /// Asked.
        url: BundleUrl,
        /// Its answer.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The server does not give it.
    #[error("{url} answers status {status}: check the URL, and its token if it has one")]
    Status {
        /// Asked.
        url: BundleUrl,
        /// Its answer.
        status: u16,
    },
    /// A redirect to where nothing is fetched from. The place itself is not named, it may hold a token.
    #[error("{url} redirects to a place that {refused}")]
    Redirect {
        /// Asked.
        url: BundleUrl,
        /// Why it is not followed.
        refused: UrlRefused,
    },
    /// Too many redirects.
    #[error("{url} redirects more than {limit} times: name the place where it is")]
    Redirects {
        /// Asked first.
        url: BundleUrl,
        /// Redirects followed.
        limit: u32,
    },
    /// The program is ending.
    #[error("the program is ending")]
    Ending,
}

/// What may be done about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Passes with time: back off with jitter and ask again.
    Retry,
    /// Passes once something on this device was put right, its disk for example: try again with long pauses.
    Later,
    /// This source will never give this bundle.
    Refuse,
}

impl StoreError {
    /// What may be done.
    #[must_use]
    pub const fn disposition(&self) -> Disposition {
        match self {
            Self::Transport { .. }
            | Self::Silent { .. }
            | Self::TooSlow { .. }
            | Self::Unavailable { .. } => Disposition::Retry,
            Self::Read { .. } | Self::Disk { .. } | Self::Client(_) | Self::Ending => {
                Disposition::Later
            }
            Self::TooLong { .. }
            | Self::Hash { .. }
            | Self::Archive { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Redirects { .. } => Disposition::Refuse,
        }
    }

    /// Whether the same source may give the bundle at another time.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self.disposition() {
            Disposition::Retry | Disposition::Later => true,
            Disposition::Refuse => false,
        }
    }

    /// When the server wants to be asked again, if it said so.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            Self::Read { .. }
            | Self::Disk { .. }
            | Self::TooLong { .. }
            | Self::Hash { .. }
            | Self::Archive { .. }
            | Self::Client(_)
            | Self::Transport { .. }
            | Self::Silent { .. }
            | Self::TooSlow { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Redirects { .. }
            | Self::Ending => None,
        }
    }
}

fn disk_text(fault: &io::Error) -> String {
    let kind = fault.kind();
    if kind == io::ErrorKind::StorageFull || kind == io::ErrorKind::QuotaExceeded {
        "the disk is full: free some of it, a bundle takes up to 8 MiB while it is stored"
            .to_owned()
    } else if kind == io::ErrorKind::ReadOnlyFilesystem {
        "the disk is read-only: make device.data-dir writable".to_owned()
    } else {
        format!("the store of bundles cannot be used: {fault}; check the disk of device.data-dir")
    }
}
