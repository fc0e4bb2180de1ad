//! The marks of journalled messages on disk.
//!
//! ```text
//! <generation>/inputs-0, inputs-1   blocks, each as one write
//! block: magic u32 | marks u32 | number of its first mark u64 | CRC-32C of all else u32 | marks; another magic number for
//!        the block of last messages of topics
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
/// A file is not longer: marks of both kinds, and headers, with room to spare. What is behind this is not ours.
const FILE_BYTES_MAX: usize = 16 << 20;
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
    blocks: Vec<Block>,
    length: u64,
}

struct Block {
    kind: Kind,
    /// Of its first mark.
    number: u64,
    marks: Vec<InputMark>,
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Messages as they came.
    Messages,
    /// The last message of each topic.
    Topics,
}

/// What a log holds when it is opened, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noted {
    /// A message.
    Message(InputMark),
    /// The last message of a topic; it may be long ago.
    LastOfTopic(InputMark),
}

impl InputLog {
    /// Opens or makes the files in a folder. Gives what is in them, the oldest first.
    ///
    /// # Errors
    /// A file cannot be opened, read, or cut where it is damaged.
    pub fn open(folder: &Path) -> io::Result<(Self, Vec<Noted>)> {
        let open = |name| {
            let path = folder.join(name);
            File::options().read(true).write(true).create(true).truncate(false).open(path)
        };
        let files = [open(FILES[0])?, open(FILES[1])?];
        let found = [find(&files[0])?, find(&files[1])?];
        let newest = |found: &Found| found.blocks.last().map(|block| block.number);
        let current = usize::from(newest(&found[1]) > newest(&found[0]));
        let length = found[current].length;
        let messages = found[current].blocks.iter().filter(|block| block.kind == Kind::Messages);
        let marks = messages.map(|block| block.marks.len()).sum();
        let mut blocks: Vec<_> = found.into_iter().flat_map(|found| found.blocks).collect();
        blocks.sort_by_key(|block| block.number);
        let number = blocks.last().map_or(0, |block| block.number + block.marks.len() as u64);
        let mut topics = Topics::default();
        blocks.iter().flat_map(|block| &block.marks).for_each(|mark| topics.note(*mark));
        let noted = |block: Block| {
            let noted = match block.kind {
                Kind::Messages => Noted::Message,
                Kind::Topics => Noted::LastOfTopic,
            };
            block.marks.into_iter().map(noted)
        };
        let all: Vec<Noted> = blocks.into_iter().flat_map(noted).collect();
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
        self.write(Kind::Messages, &self.unwritten.clone())?;
        self.marks += self.unwritten.len();
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
        self.write(Kind::Topics, &self.topics.marks())
    }

    fn write(&mut self, kind: Kind, marks: &[InputMark]) -> io::Result<()> {
        let block = encode(kind, self.number, marks);
        self.is_synced = false;
        self.files[self.current].write_all_at(&block, self.length)?;
        self.length += block.len() as u64;
        self.number += marks.len() as u64;
        Ok(())
    }
}

fn magic(kind: Kind) -> u32 {
    let mut hasher = DefaultHasher::new();
    let text = match kind {
        Kind::Messages => "marks of journalled messages, version 1",
        Kind::Topics => "marks of last messages of topics, version 1",
    };
    text.hash(&mut hasher);
    (hasher.finish() >> 32) as u32
}

fn encode(kind: Kind, number: u64, marks: &[InputMark]) -> Vec<u8> {
    let mut block = Vec::with_capacity(HEADER_BYTES + marks.len() * MARK_BYTES);
    let count = u32::try_from(marks.len()).unwrap_or(u32::MAX);
    block.extend_from_slice(&magic(kind).to_le_bytes());
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
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(FILE_BYTES_MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    let mut found = Found::default();
    let mut rest = &bytes[..];
    while let Some((block, after)) = split_block(rest) {
        found.blocks.push(block);
        rest = after;
    }
    found.length = (bytes.len() - rest.len()) as u64;
    if found.length < length as u64 {
        // Nothing behind what is written next must look as if it came after it.
        file.set_len(found.length)?;
    }
    Ok(found)
}

fn split_block(bytes: &[u8]) -> Option<(Block, &[u8])> {
    let header = bytes.get(..HEADER_BYTES)?;
    let u32_at = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
    let found = u32_at(0)?;
    let kind = [Kind::Messages, Kind::Topics].into_iter().find(|kind| magic(*kind) == found)?;
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
    Some((Block { kind, number, marks: marks.collect() }, &bytes[block.len()..]))
}
