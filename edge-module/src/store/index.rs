//! Where the chunks lie in a segment's database file, found without its engine.
//!
//! The engine writes the file from front to back and never changes what is written (see `room`), so each chunk lies in it
//! as it was given, one to several times. Reading it that way writes nothing, needs no room, and finds after a power cut
//! all that was synced, whatever became of the rest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use shared_proto::model::{Generation, Sequence};

use super::Lane;
use super::chunk::{self, Located};

/// Bytes of the file looked at in one go.
const PIECE_BYTES: usize = 2 << 20;
/// More than any chunk.
const CHUNK_BYTES_LIMIT: usize = 256 << 10;

/// Chunks of a segment by first record, the best copy of each.
#[derive(Debug)]
pub(super) struct Index {
    file: File,
    chunks: BTreeMap<u64, Located>,
    /// Begins with the magic bytes looked for.
    header: Option<Vec<u8>>,
}

impl Index {
    /// Looks through the file for chunks of a lane, and for a header of a known length that begins with `magic`.
    pub(super) fn load(
        path: &Path,
        generation: Generation,
        lane: Lane,
        magic: &[u8; 8],
        is_header: impl Fn(&[u8]) -> Option<usize>,
    ) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut this = Self { file, chunks: BTreeMap::new(), header: None };
        let mut piece = vec![0; PIECE_BYTES + CHUNK_BYTES_LIMIT];
        let mut at = 0_u64;
        while at < length {
            let count =
                usize::try_from(length - at).map_or(piece.len(), |left| left.min(piece.len()));
            let bytes = &mut piece[..count];
            this.file.read_exact_at(bytes, at)?;
            let is_last = at + count as u64 == length;
            let end = if is_last { count } else { PIECE_BYTES };
            if this.header.is_none() {
                this.find_header(bytes, magic, &is_header);
            }
            let next = chunk::locate(bytes, end, generation, lane, |mut located| {
                located.offset += at;
                this.keep(located);
            });
            at += next as u64;
        }
        Ok(this)
    }

    fn find_header(
        &mut self,
        bytes: &[u8],
        magic: &[u8; 8],
        is_header: &impl Fn(&[u8]) -> Option<usize>,
    ) {
        let mut at = 0;
        while let Some(distance) = chunk::find(&bytes[at..], magic) {
            at += distance;
            if let Some(length) = is_header(&bytes[at..]) {
                self.header = Some(bytes[at..at + length].to_vec());
                return;
            }
            at += magic.len();
        }
    }

    fn keep(&mut self, located: Located) {
        // Of two that begin alike the whole one, then the one with more left.
        let is_better = self.chunks.get(&located.first.0).is_none_or(|known| {
            (located.is_whole, located.records) > (known.is_whole, known.records)
        });
        if is_better {
            self.chunks.insert(located.first.0, located);
        }
    }

    pub(super) fn header(&self) -> Option<&[u8]> {
        self.header.as_deref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Chunks that may hold records after a sequence, in order.
    pub(super) fn after(&self, after: Sequence) -> impl Iterator<Item = &Located> {
        // The chunk that the next record is in may begin before it.
        let next = after.0.saturating_add(1);
        let start = self.chunks.range(..=next).next_back().map_or(next, |(first, _)| *first);
        self.chunks.range(start..).map(|(_, located)| located)
    }

    /// Chunks up to a sequence, last first.
    pub(super) fn backwards(&self, through: Sequence) -> impl Iterator<Item = &Located> {
        self.chunks.range(..=through.0).rev().map(|(_, located)| located)
    }

    /// The bytes of a chunk.
    pub(super) fn read(&self, located: &Located) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; located.length];
        self.file.read_exact_at(&mut bytes, located.offset)?;
        Ok(bytes)
    }

    /// How far the chain of records reaches from `previous`: what a power cut tore off is behind a break in it. A break at
    /// or before `known`, which was acknowledged, is damage, and what is behind it counts. Says also whether more is there.
    pub(super) fn reach(&self, previous: Sequence, known: Sequence) -> (Sequence, bool) {
        let mut last = previous;
        for located in self.chunks.values() {
            let is_next = located.is_whole && located.previous.is_some_and(|before| before <= last);
            if last >= known && !is_next {
                return (last, true);
            }
            last = last.max(located.last);
        }
        (last, false)
    }

    /// Records up to a sequence.
    pub(super) fn count(&self, through: Sequence) -> u64 {
        self.chunks.range(..=through.0).map(|(_, located)| located.records).sum()
    }
}
