//! The marks of journalled messages on disk.
//!
//! ```text
//! <generation>/inputs-0, inputs-1   blocks, each as one write
//! block: magic u32 | marks u32 | number of its first mark u64 | CRC-32C of all else u32 | marks
//! mark:  hash of the topic u64 | hash of the message u64
//! ```
//!
//! Little endian. Blocks are appended to one file until it holds [`RECENT_MESSAGES_MAX`] marks; then the other one is
//! emptied and goes on, beginning with the last message of each topic. So both together always hold as many. A block is
//! written after its records are durable, never before: a mark without its record would lose it. A kill does not undo a
//! block, a power cut may undo those since the last sync, about a second. Nothing depends on this file but that repeats are
//! known again: what of it cannot be read is forgotten. The magic number depends on the hash function.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{InputMark, RECENT_MESSAGES_MAX, Topics};

const FILES: [&str; 2] = ["inputs-0", "inputs-1"];
const HEADER_BYTES: usize = 20;
const MARK_BYTES: usize = 16;
/// Marks that could not be written are kept for the next attempt, the newest.
const UNWRITTEN_MAX: usize = RECENT_MESSAGES_MAX;

/// The files, open for writing.
#[derive(Debug)]
pub struct InputLog {
    pub(super) files: [File; 2],
    /// The file that is written, how long it is, and how many marks it has.
    current: usize,
    length: u64,
    marks: usize,
    /// Of the next mark.
    number: u64,
    topics: Topics,
    unwritten: Vec<InputMark>,
    is_synced: bool,
}

/// A file's content up to the first block that is not whole.
#[derive(Default)]
struct Found {
    blocks: Vec<(u64, Vec<InputMark>)>,
    length: u64,
}

impl InputLog {
    /// Opens or makes the files in a folder. Gives the marks in them, the oldest first.
    ///
    /// # Errors
    /// A file cannot be opened or read.
    pub fn open(folder: &Path) -> io::Result<(Self, Vec<InputMark>)> {
        let open = |name| {
            let path = folder.join(name);
            File::options().read(true).write(true).create(true).truncate(false).open(path)
        };
        let files = [open(FILES[0])?, open(FILES[1])?];
        let found = [find(&files[0])?, find(&files[1])?];
        let newest = |found: &Found| found.blocks.last().map(|(number, _)| *number);
        let current = usize::from(newest(&found[1]) > newest(&found[0]));
        let length = found[current].length;
        let count = |(_, marks): &(u64, Vec<InputMark>)| marks.len();
        let marks = found[current].blocks.iter().map(count).sum();
        let mut blocks: Vec<_> = found.into_iter().flat_map(|found| found.blocks).collect();
        blocks.sort_by_key(|(number, _)| *number);
        let number = blocks.last().map_or(0, |(number, marks)| number + marks.len() as u64);
        let all: Vec<InputMark> = blocks.into_iter().flat_map(|(_, marks)| marks).collect();
        let mut topics = Topics::default();
        all.iter().for_each(|mark| topics.note(*mark));
        let (unwritten, is_synced) = (Vec::new(), true);
        let this = Self { files, current, length, marks, number, topics, unwritten, is_synced };
        Ok((this, all))
    }

    /// Writes marks down whose records are durable.
    ///
    /// # Errors
    /// The disk refuses. They are kept, and written with the next.
    pub fn add(&mut self, marks: &[InputMark]) -> io::Result<()> {
        marks.iter().for_each(|mark| self.topics.note(*mark));
        self.unwritten.extend_from_slice(marks);
        let surplus = self.unwritten.len().saturating_sub(UNWRITTEN_MAX);
        self.unwritten.drain(..surplus);
        if self.unwritten.is_empty() {
            return Ok(());
        }
        if self.marks >= RECENT_MESSAGES_MAX {
            self.change_files()?;
        }
        self.write(&self.unwritten.clone())?;
        self.unwritten.clear();
        Ok(())
    }

    /// Makes durable what was added.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&mut self) -> io::Result<()> {
        if !self.is_synced {
            self.files[self.current].sync_data()?;
            self.is_synced = true;
        }
        Ok(())
    }

    fn change_files(&mut self) -> io::Result<()> {
        self.sync()?;
        let other = 1 - self.current;
        self.files[other].set_len(0)?;
        (self.current, self.length, self.marks) = (other, 0, 0);
        self.write(&self.topics.marks())?;
        // They are beside those that are kept anyway.
        self.marks = 0;
        Ok(())
    }

    fn write(&mut self, marks: &[InputMark]) -> io::Result<()> {
        let block = encode(self.number, marks);
        self.is_synced = false;
        self.files[self.current].write_all_at(&block, self.length)?;
        self.length += block.len() as u64;
        self.marks += marks.len();
        self.number += marks.len() as u64;
        Ok(())
    }
}

fn magic() -> u32 {
    let mut hasher = DefaultHasher::new();
    "marks of journalled messages, version 1".hash(&mut hasher);
    (hasher.finish() >> 32) as u32
}

fn encode(number: u64, marks: &[InputMark]) -> Vec<u8> {
    let mut block = Vec::with_capacity(HEADER_BYTES + marks.len() * MARK_BYTES);
    let count = u32::try_from(marks.len()).unwrap_or(u32::MAX);
    block.extend_from_slice(&magic().to_le_bytes());
    block.extend_from_slice(&count.to_le_bytes());
    block.extend_from_slice(&number.to_le_bytes());
    block.extend_from_slice(&[0; 4]);
    for mark in marks {
        block.extend_from_slice(&mark.topic.to_le_bytes());
        block.extend_from_slice(&mark.message.to_le_bytes());
    }
    let checksum = checksum(&block);
    block[16..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    block
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..16]), &block[HEADER_BYTES..])
}

fn find(file: &File) -> io::Result<Found> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0)?;
    let mut found = Found::default();
    let mut rest = &bytes[..];
    while let Some((number, marks, after)) = split_block(rest) {
        found.blocks.push((number, marks));
        rest = after;
    }
    found.length = (bytes.len() - rest.len()) as u64;
    Ok(found)
}

fn split_block(bytes: &[u8]) -> Option<(u64, Vec<InputMark>, &[u8])> {
    let header = bytes.get(..HEADER_BYTES)?;
    let u32_at = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
    if u32_at(0)? != magic() {
        return None;
    }
    let length = usize::try_from(u32_at(4)?).ok()?.checked_mul(MARK_BYTES)?;
    let block = bytes.get(..HEADER_BYTES.checked_add(length)?)?;
    if u32_at(16)? != checksum(block) {
        return None;
    }
    let number = u64::from_le_bytes(header[8..16].try_into().ok()?);
    let marks = block[HEADER_BYTES..].chunks_exact(MARK_BYTES).filter_map(|mark| {
        let (topic, message) = mark.split_at(8);
        let (topic, message) = (topic.try_into().ok()?, message.try_into().ok()?);
        Some(InputMark { topic: u64::from_le_bytes(topic), message: u64::from_le_bytes(message) })
    });
    Some((number, marks.collect(), &bytes[block.len()..]))
}
