//! How a bundle is fetched and tested, and how it is noticed that the files behind a source are others by now.

use std::path::PathBuf;
use std::time::SystemTime;

use tokio::task::AbortHandle;

use crate::bundle_store::{BundleSource, BundleStore, Disposition};
use crate::scoring::{Bundle, METADATA_FILE, MODEL_FILE};

/// Changes when the files behind a source do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(u64, Option<SystemTime>)>);

impl Stamp {
    /// Nothing where a file is missing, or nothing is to be looked at.
    pub(super) fn of(source: &BundleSource) -> Option<Self> {
        let files: Vec<PathBuf> = match source {
            BundleSource::Folder(folder) => {
                [METADATA_FILE, MODEL_FILE].iter().map(|name| folder.join(name)).collect()
            }
            BundleSource::Archive { file, .. } => vec![file.clone()],
            // The hash of the settings says which one it is.
            BundleSource::Download { .. } => return None,
        };
        let found = files.iter().map(|file| {
            let found = std::fs::metadata(file).ok()?;
            Some((found.len(), found.modified().ok()))
        });
        found.collect::<Option<Vec<_>>>().map(Self)
    }
}

/// A fetch that somebody waits for.
pub(super) struct Fetching {
    /// Tells it from all others, also of the same source.
    pub(super) number: u64,
    /// Ends it.
    pub(super) handle: AbortHandle,
}

/// A bundle that was fetched, or why not.
pub(super) struct Fetched {
    /// Name of the settings.
    pub(super) name: String,
    /// Of the fetch that it comes from.
    pub(super) number: u64,
    /// What came of it.
    pub(super) result: Result<Bundle, NotFetched>,
}

/// Why a bundle was not fetched.
pub(super) enum NotFetched {
    /// Perhaps later.
    Later(String),
    /// Never.
    Refused { cause: &'static str, detail: String },
}

/// Brings a bundle to this device and tests it.
pub(super) async fn fetch(
    store: Option<&BundleStore>,
    source: &BundleSource,
) -> Result<Bundle, NotFetched> {
    let folder = match (store, source) {
        (_, BundleSource::Folder(folder)) => folder.clone(),
        (Some(store), source) => store.folder(source).await.map_err(|error| {
            let detail = error.to_string();
            match error.disposition() {
                Disposition::Retry | Disposition::Later => NotFetched::Later(detail),
                Disposition::Refuse => NotFetched::Refused { cause: "fetch", detail },
            }
        })?,
        (None, _) => return Err(NotFetched::Later("there is no store of bundles".to_owned())),
    };
    let loaded = tokio::task::spawn_blocking(move || Bundle::load(&folder)).await;
    let loaded = loaded.map_err(|error| NotFetched::Later(error.to_string()))?;
    loaded.map_err(|error| NotFetched::Refused { cause: "self-test", detail: error.to_string() })
}
