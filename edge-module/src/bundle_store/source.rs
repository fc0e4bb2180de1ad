//! Where a bundle comes from: what the settings say, checked.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

/// Longest URL accepted, in bytes: what common servers take in a request line.
pub const URL_BYTES_MAX: usize = 4096;
/// Digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// The SHA-256 of an archive's bytes, as 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchiveHash(String);

impl ArchiveHash {
    /// Reads 64 hexadecimal digits, upper or lower case.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_hash = text.len() == SHA256_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hash {
            return Err(format!(
                "{text:?} is no SHA-256: {SHA256_DIGITS} hexadecimal digits are needed, as `sha256sum FILE` prints them"
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// The hash of these bytes.
    #[must_use]
    pub fn of(archive: &[u8]) -> Self {
        Self(Sha256::digest(archive).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ArchiveHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why nothing is downloaded from a URL. None of these texts holds the URL's query or its password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefused {
    /// It cannot be read.
    #[error("is no URL: {0}")]
    Malformed(String),
    /// It is longer than servers take.
    #[error("is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    /// Anybody on the way could read it and put another answer in its place.
    #[error("has the scheme {0:?}: https is needed, http is taken for a loopback address alone")]
    Scheme(String),
    /// A secret in a place that programs print.
    #[error("holds a user or a password: remove them, a query with a token of its own is allowed")]
    UserInfo,
}

/// A URL that a bundle may be downloaded from: https, or http at a loopback address. Its query may be a secret, so neither
/// `Display` nor `Debug` shows more than scheme, host and path.
#[derive(Clone, PartialEq, Eq)]
pub struct BundleUrl(Url);

impl BundleUrl {
    /// Reads and checks a URL. A fragment means nothing to a server and is dropped.
    ///
    /// # Errors
    /// See [`UrlRefused`].
    pub fn parse(text: &str) -> Result<Self, UrlRefused> {
        if text.len() > URL_BYTES_MAX {
            return Err(UrlRefused::TooLong);
        }
        Url::parse(text).map_err(|error| UrlRefused::Malformed(error.to_string())).and_then(check)
    }

    /// Where a redirect from here leads; `location` may be relative.
    ///
    /// # Errors
    /// See [`UrlRefused`]; another scheme than this one's is refused, too, so that no server sends us to an address of ours.
    pub(super) fn redirected(&self, location: &str) -> Result<Self, UrlRefused> {
        if location.len() > URL_BYTES_MAX {
            return Err(UrlRefused::TooLong);
        }
        let joined =
            self.0.join(location).map_err(|error| UrlRefused::Malformed(error.to_string()));
        let next = check(joined?)?;
        if next.0.scheme() != self.0.scheme() {
            return Err(UrlRefused::Scheme(next.0.scheme().to_owned()));
        }
        Ok(next)
    }

    /// Whether it is http and so of this host.
    pub(super) fn is_local(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// With its query, for the request alone.
    pub(super) fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for BundleUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(url) = self;
        write!(formatter, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(formatter, ":{port}")?;
        }
        formatter.write_str(url.path())
    }
}

impl fmt::Debug for BundleUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

fn check(mut url: Url) -> Result<BundleUrl, UrlRefused> {
    let is_allowed = match url.scheme() {
        "https" => true,
        "http" => url.host_str().is_some_and(is_loopback),
        _ => false,
    };
    if !is_allowed {
        return Err(UrlRefused::Scheme(url.scheme().to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlRefused::UserInfo);
    }
    url.set_fragment(None);
    Ok(BundleUrl(url))
}

fn is_loopback(host: &str) -> bool {
    // An IPv6 address stands in brackets.
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Where a bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleSource {
    /// A folder with the two files, used where it is.
    Folder(PathBuf),
    /// An archive on a disk of this device.
    Archive {
        /// Where it is.
        file: PathBuf,
        /// The hash that it must have; absent: any.
        sha256: Option<ArchiveHash>,
    },
    /// An archive on a server.
    Download {
        /// Where it is.
        url: BundleUrl,
        /// The hash that it must have.
        sha256: ArchiveHash,
    },
}

impl fmt::Display for BundleSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) | Self::Archive { file: path, .. } => {
                write!(formatter, "{}", path.display())
            }
            Self::Download { url, .. } => write!(formatter, "{url}"),
        }
    }
}

/// A bundle as settings name it: plain text is a folder, a table has one of `dir`, `file`, `url`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BundleSettings {
    /// Folder with the two files; empty: no bundle.
    pub dir: Option<PathBuf>,
    /// Archive on a disk.
    pub file: Option<PathBuf>,
    /// Archive on a server.
    pub url: Option<String>,
    /// Of the archive; needed with `url`.
    pub sha256: Option<String>,
}

impl BundleSettings {
    /// Whether no bundle is wanted: nothing is named, or a folder without a name.
    #[must_use]
    pub fn is_none(&self) -> bool {
        let is_named = self.dir.as_ref().is_some_and(|dir| !dir.as_os_str().is_empty());
        !is_named && self.file.is_none() && self.url.is_none() && self.sha256.is_none()
    }

    /// Where the bundle comes from.
    ///
    /// # Errors
    /// What is wrong, as a sentence that goes on after the key; it never holds the query of the URL.
    pub fn source(&self) -> Result<BundleSource, String> {
        let sha256 = self.sha256.as_deref().map(ArchiveHash::parse).transpose();
        let sha256 = sha256.map_err(|reason| format!("sha256: {reason}"))?;
        match (&self.dir, &self.file, &self.url, sha256) {
            (Some(dir), None, None, None) => Ok(BundleSource::Folder(named("dir", dir)?)),
            (Some(_), None, None, Some(_)) => {
                Err("dir takes no sha256: that is the hash of an archive".to_owned())
            }
            (None, Some(file), None, sha256) => {
                Ok(BundleSource::Archive { file: named("file", file)?, sha256 })
            }
            (None, None, Some(url), Some(sha256)) => {
                let url = BundleUrl::parse(url).map_err(|refused| format!("url {refused}"))?;
                Ok(BundleSource::Download { url, sha256 })
            }
            (None, None, Some(_), None) => {
                Err("url needs sha256: it says which archive is meant".to_owned())
            }
            (None, None, None, _) => Err("needs one of dir, file, url".to_owned()),
            (Some(_), Some(_), _, _) | (Some(_), _, Some(_), _) | (_, Some(_), Some(_), _) => {
                Err("takes only one of dir, file, url".to_owned())
            }
        }
    }
}

fn named(key: &str, path: &Path) -> Result<PathBuf, String> {
    if path.as_os_str().is_empty() {
        return Err(format!("{key} is empty"));
    }
    if path.to_string_lossy().contains("://") {
        // Not shown: it may hold a token.
        return Err(format!("{key} is a URL: write {{ url = \"…\", sha256 = \"…\" }}"));
    }
    Ok(path.to_owned())
}

/// Without the query of the URL.
impl fmt::Debug for BundleSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.as_deref().map(BundleUrl::parse);
        formatter
            .debug_struct("BundleSettings")
            .field("dir", &self.dir)
            .field("file", &self.file)
            .field("url", &url)
            .field("sha256", &self.sha256)
            .finish()
    }
}

/// By hand, because an untagged enum says of an unknown key only that nothing matches.
impl<'de> Deserialize<'de> for BundleSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrTable)
    }
}

struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = BundleSettings;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a folder, or a table with one of dir, file, url")
    }

    fn visit_str<E>(self, text: &str) -> Result<BundleSettings, E> {
        Ok(BundleSettings { dir: Some(text.into()), ..BundleSettings::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BundleSettings, A::Error> {
        // The derived function, which the attribute `remote` makes one of the type's own.
        BundleSettings::deserialize(MapAccessDeserializer::new(map))
    }
}
