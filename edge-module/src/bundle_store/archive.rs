//! A bundle as one file: an uncompressed tar of exactly `bundle.json` and `model.tflite`, in either order.
//!
//! Headers are POSIX ustar (IEEE Std 1003.1-2017, pax, "ustar Interchange Format"), 512 bytes each; those of GNU tar differ
//! in the magic number and pass. Only plain files under these two names are taken: no folder, no link, no device, no extended header,
//! no prefix. So nothing of the archive decides where something is written. Read from memory: an archive has a
//! limit well below what a device has.

use crate::scoring::{METADATA_BYTES_MAX, METADATA_FILE, MODEL_BYTES_MAX, MODEL_FILE};

const BLOCK: usize = 512;

/// Why an archive is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// No tar, a compressed one, or a damaged one.
    #[error("it is no tar, or damaged, at byte {0}: a bundle is not compressed")]
    Header(usize),
    /// It ends too early.
    #[error("it ends in the middle: {0} bytes are not all of it")]
    Truncated(usize),
    /// Something behind the end.
    #[error("it goes on behind its end, at byte {0}")]
    Trailing(usize),
    /// No plain file.
    #[error("its entry {name:?} is {kind}: a bundle holds plain files only")]
    Kind {
        /// Of the entry.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// A name that a bundle does not have.
    #[error(
        "its entry {0:?} does not belong there: a bundle holds {METADATA_FILE} and {MODEL_FILE} only"
    )]
    Unexpected(String),
    /// The same name a second time.
    #[error("its entry {0:?} is there twice")]
    Twice(&'static str),
    /// Larger than any bundle needs.
    #[error("its entry {name:?} has {bytes} bytes, allowed are {limit}")]
    TooLarge {
        /// Of the entry.
        name: &'static str,
        /// Its size.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// One of the two is not there.
    #[error("it has no entry {0:?}")]
    Missing(&'static str),
}

/// The two files of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files<'a> {
    /// Of `bundle.json`.
    pub metadata: &'a [u8],
    /// Of `model.tflite`.
    pub model: &'a [u8],
}

/// Finds the two files in an archive. What they hold is not looked at.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(archive: &[u8]) -> Result<Files<'_>, ArchiveError> {
    let (mut metadata, mut model) = (None, None);
    let mut at = 0;
    loop {
        let header = block(archive, at)?;
        if is_zero(header) {
            break;
        }
        let entry = Header::read(header).ok_or(ArchiveError::Header(at))?;
        let (file, name, limit) = match entry.plain_file_name()? {
            METADATA_FILE => (&mut metadata, METADATA_FILE, METADATA_BYTES_MAX),
            MODEL_FILE => (&mut model, MODEL_FILE, MODEL_BYTES_MAX),
            other => return Err(ArchiveError::Unexpected(other.to_owned())),
        };
        if file.is_some() {
            return Err(ArchiveError::Twice(name));
        }
        if entry.bytes > limit {
            return Err(ArchiveError::TooLarge { name, bytes: entry.bytes, limit });
        }
        let length = usize::try_from(entry.bytes).map_err(|_| ArchiveError::Header(at))?;
        let start = at + BLOCK;
        let content = archive.get(start..start + length);
        *file = Some(content.ok_or(ArchiveError::Truncated(archive.len()))?);
        at = start + length.next_multiple_of(BLOCK);
    }
    if let Some(behind) = archive.get(at..).and_then(|rest| rest.iter().position(|&b| b != 0)) {
        return Err(ArchiveError::Trailing(at + behind));
    }
    Ok(Files {
        metadata: metadata.ok_or(ArchiveError::Missing(METADATA_FILE))?,
        model: model.ok_or(ArchiveError::Missing(MODEL_FILE))?,
    })
}

struct Header {
    name: String,
    kind: u8,
    bytes: u64,
}

impl Header {
    /// Nothing if the checksum or a number is wrong.
    fn read(header: &[u8]) -> Option<Self> {
        let sum = header.iter().enumerate().map(|(at, &byte)| match at {
            // The sum is made with spaces where it will stand.
            148..156 => u64::from(b' '),
            _ => u64::from(byte),
        });
        let is_tar = header.get(257..262)? == b"ustar";
        if !is_tar || octal(header.get(148..156)?)? != sum.sum::<u64>() {
            return None;
        }
        let (name, prefix) = (text(header.get(..100)?), text(header.get(345..500)?));
        Some(Self {
            name: if prefix.is_empty() { name } else { format!("{prefix}/{name}") },
            kind: *header.get(156)?,
            bytes: octal(header.get(124..136)?)?,
        })
    }

    fn plain_file_name(&self) -> Result<&str, ArchiveError> {
        let kind = match self.kind {
            b'0' | 0 => return Ok(&self.name),
            b'1' => "a hard link",
            b'2' => "a symbolic link",
            b'3' | b'4' => "a device",
            b'5' => "a folder",
            b'6' => "a pipe",
            b'x' | b'g' | b'L' | b'K' => "an extended header",
            _ => "of an unknown kind",
        };
        Err(ArchiveError::Kind { name: self.name.clone(), kind })
    }
}

fn block(archive: &[u8], at: usize) -> Result<&[u8], ArchiveError> {
    archive.get(at..at + BLOCK).ok_or(ArchiveError::Truncated(archive.len()))
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

/// Up to the first NUL.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

/// Octal digits between spaces and NULs. Sizes from 8 GiB on are written otherwise and are no number here.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    let is_octal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_octal { u64::from_str_radix(digits, 8).ok() } else { None }
}
