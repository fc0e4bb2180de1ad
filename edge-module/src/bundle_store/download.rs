//! One archive from one server (RFC 9110: ranges in section 14, redirects in 15.4, Retry-After in 10.2.3).
//!
//! What has come is held in memory, which the limit makes small, and appended to a file beside the bundles, from which a
//! later attempt or a later process goes on. That file is not synced: whatever a power cut makes of it, the hash of the
//! whole decides, and a wrong one is fetched again from its beginning.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderName, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use tokio::time::timeout;

use super::error::StoreError;
use super::shelf::{disk, read_limited, remove_all};
use super::source::BundleUrl;
use crate::journal::chain;

/// Redirects followed.
pub const REDIRECTS_MAX: u32 = 3;
/// Longest archive: two files of 1 MiB each, their headers, and what tar programs fill up with.
pub const ARCHIVE_BYTES_MAX: u64 = 4 << 20;
/// What is lost of a download at a crash, at most.
const APPEND_BYTES: usize = 256 << 10;

/// Limits of a download.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DownloadLimits {
    /// Longest archive, in bytes.
    pub archive_bytes_max: u64,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer to begin, or to go on.
    pub silence_max: Duration,
    /// Longest time of one attempt.
    pub attempt_max: Duration,
    /// Attempts of one call.
    pub attempts_max: u32,
    /// First wait between attempts; doubles with each further one.
    pub backoff_min: Duration,
    /// Longest wait between attempts. A server that wants more time ends the call.
    pub backoff_max: Duration,
}

impl Default for DownloadLimits {
    /// For a mobile connection: 4 MiB in half an hour are 19 kbit/s.
    fn default() -> Self {
        Self {
            archive_bytes_max: ARCHIVE_BYTES_MAX,
            connect_timeout: Duration::from_secs(20),
            silence_max: Duration::from_secs(30),
            attempt_max: Duration::from_secs(30 * 60),
            attempts_max: 6,
            backoff_min: Duration::from_secs(2),
            backoff_max: Duration::from_secs(120),
        }
    }
}

/// What has come of an archive so far.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    content: Vec<u8>,
    /// Of `content`, how much the file has.
    appended: usize,
}

impl Part {
    /// What an earlier download left; nothing if it cannot be read or is too long.
    pub(super) async fn read(path: PathBuf, limit: u64) -> Result<Self, StoreError> {
        let read = move || {
            let content = read_limited(&path, limit).ok().flatten().unwrap_or_default();
            Ok(Self { path, appended: content.len(), content })
        };
        blocking(read).await
    }

    /// All of it.
    pub(super) fn content(&self) -> &[u8] {
        &self.content
    }

    /// All of it, when nothing more will come.
    pub(super) fn take_content(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.content)
    }

    fn held(&self) -> u64 {
        self.content.len() as u64
    }

    /// Forgets what has come.
    pub(super) async fn clear(&mut self) -> Result<(), StoreError> {
        self.content.clear();
        self.appended = 0;
        let path = self.path.clone();
        blocking(move || remove_all(&path).map_err(disk(&path))).await
    }

    async fn append(&mut self) -> Result<(), StoreError> {
        let tail = self.content.get(self.appended..).unwrap_or_default().to_vec();
        if tail.is_empty() {
            return Ok(());
        }
        let (path, at) = (self.path.clone(), self.appended as u64);
        blocking(move || write_at(&path, at, &tail).map_err(disk(&path))).await?;
        self.appended = self.content.len();
        Ok(())
    }
}

/// An archive on a server.
#[derive(Debug)]
pub(super) struct Download<'a> {
    client: Client,
    url: &'a BundleUrl,
    limits: &'a DownloadLimits,
}

impl<'a> Download<'a> {
    /// Reads the system's certificates.
    pub(super) async fn new(
        url: &'a BundleUrl,
        limits: &'a DownloadLimits,
    ) -> Result<Self, StoreError> {
        let builder = Client::builder()
            .connect_timeout(limits.connect_timeout)
            // Followed here: another scheme is refused, and no header tells the next server the query of this one.
            .redirect(Policy::none())
            .user_agent(concat!("edge-module/", env!("CARGO_PKG_VERSION")));
        // A proxy does not know what this host calls itself.
        let builder = if url.is_local() { builder.no_proxy() } else { builder };
        let made = blocking(move || {
            builder.build().map_err(|error| StoreError::Client(chain(&error.without_url())))
        });
        Ok(Self { client: made.await?, url, limits })
    }

    /// Fetches what is missing. What has come before an error stays in `part`.
    pub(super) async fn attempt(&self, part: &mut Part) -> Result<(), StoreError> {
        let limit = self.limits.attempt_max;
        let received = timeout(limit, self.receive(part)).await;
        let received =
            received.unwrap_or_else(|_| Err(StoreError::TooSlow { url: self.url.clone(), limit }));
        // What the disk refuses counts more than what the network does: it would refuse again.
        part.append().await?;
        received
    }

    async fn receive(&self, part: &mut Part) -> Result<(), StoreError> {
        let mut response = self.request(part.held()).await?;
        if part.held() > 0 && !continues(&response, part.held()) {
            // A whole answer is used as it is. One for another range, or none for ours, means that the file has changed.
            if is_for_another_range(response.status()) {
                part.clear().await?;
                response = self.request(0).await?;
            } else if response.status() == StatusCode::OK {
                part.clear().await?;
            }
        }
        self.check_status(&response, part.held())?;
        let limit = self.limits.archive_bytes_max;
        let too_long = || StoreError::TooLong { what: self.url.to_string(), limit };
        let announced = response.content_length().unwrap_or_default();
        if part.held().saturating_add(announced) > limit {
            return Err(too_long());
        }
        while let Some(chunk) = self.patient(response.chunk()).await? {
            if part.held() + chunk.len() as u64 > limit {
                return Err(too_long());
            }
            part.content.extend_from_slice(&chunk);
            if part.content.len() - part.appended >= APPEND_BYTES {
                part.append().await?;
            }
        }
        Ok(())
    }

    /// The answer to a request for everything from a byte on, behind all redirects.
    async fn request(&self, from: u64) -> Result<Response, StoreError> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let request = self.client.get(url.expose().clone());
            // The hash is of the file, not of what a server makes of it.
            let request = request.header(ACCEPT_ENCODING, "identity");
            let request = match from {
                0 => request,
                from => request.header(RANGE, format!("bytes={from}-")),
            };
            let response = self.patient(request.send()).await?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let location = header(response.headers(), &LOCATION).unwrap_or_default();
            url = url
                .redirected(location)
                .map_err(|refused| StoreError::Redirect { url: self.url.clone(), refused })?;
        }
        Err(StoreError::Redirects { url: self.url.clone(), limit: REDIRECTS_MAX })
    }

    /// Waits for the server, but not for ever.
    async fn patient<T>(
        &self,
        answer: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, StoreError> {
        let url = || self.url.clone();
        let silent_for = self.limits.silence_max;
        match timeout(silent_for, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                Err(StoreError::Transport { url: url(), reason: chain(&error.without_url()) })
            }
            Err(_) => Err(StoreError::Silent { url: url(), silent_for }),
        }
    }

    fn check_status(&self, response: &Response, held: u64) -> Result<(), StoreError> {
        let (status, url) = (response.status(), self.url.clone());
        let is_expected = match held {
            0 => status == StatusCode::OK,
            held => continues(response, held),
        };
        if is_expected {
            Ok(())
        } else if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
            let retry_after = retry_after(response.headers());
            Err(StoreError::Unavailable { url, status: status.as_u16(), retry_after })
        } else {
            Err(StoreError::Status { url, status: status.as_u16() })
        }
    }
}

/// Does work that waits for a disk where nothing else waits for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Ending),
        },
    }
}

/// Whether an answer goes on where we stopped.
fn continues(response: &Response, held: u64) -> bool {
    let range = header(response.headers(), &CONTENT_RANGE).and_then(|text| {
        let (first, _) = text.strip_prefix("bytes ")?.split_once('-')?;
        first.parse::<u64>().ok()
    });
    response.status() == StatusCode::PARTIAL_CONTENT && range == Some(held)
}

fn is_for_another_range(status: StatusCode) -> bool {
    matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// In seconds. As a date it would need a clock that is right, which a device without network may not have: then it is left out.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header(headers, &RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// At a place of its own, so that one that failed half-way can be done again.
fn write_at(path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}
