//! How much of its file the engine has written, and whether another chunk is sure to fit.
//!
//! sled's file consists of segments of its own. As long as there is one, it is a log: written from front to back, nothing
//! moved, emptied or used again. With a second one the engine moves pages and uses space again, in an order that a power
//! cut does not respect. So each database ends before its first segment does.
//!
//! An insertion writes the chunk; each tenth into a leaf writes the leaf anew, and a leaf of more than 16 entries is split,
//! which writes both halves (sled 0.34.7, `PAGE_CONSOLIDATION_THRESHOLD`, `should_split`). Where the log ends is seen after
//! each flush, from the length of the file; in between the worst is assumed.

use super::RECORD_BYTES_MAX;

/// sled's own segment size, the largest that it takes.
pub(super) const ENGINE_SEGMENT_BYTES: usize = 16 << 20;
/// Entries of a leaf when it is written, at most.
const LEAF_ENTRIES: u64 = 18;
/// What surrounds an entry in the file, at most.
const ENTRY_OVERHEAD_BYTES: u64 = 128;
/// Index pages, counters, and what the engine keeps free at the end.
const RESERVE_BYTES: u64 = 128 << 10;
// A page over a quarter of the engine's segment goes into a file of its own, which the engine does not sync.
const _: () = assert!(LEAF_ENTRIES as usize * (RECORD_BYTES_MAX + 1024) < ENGINE_SEGMENT_BYTES / 4);

/// How full a database is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Length of the file after the last flush.
    end: u64,
    /// Since the last flush: chunks and their bytes.
    chunks: u64,
    bytes: u64,
    /// Largest chunk so far.
    largest: u64,
}

impl Room {
    /// The file has been flushed and is so long.
    pub(super) const fn flushed(&mut self, length: u64) {
        self.end = length;
        self.chunks = 0;
        self.bytes = 0;
    }

    /// Whether a chunk is sure to fit.
    pub(super) fn fits(&self, length: usize) -> bool {
        let mut after = *self;
        after.add(length);
        after.end_at_worst() <= ENGINE_SEGMENT_BYTES as u64 - RESERVE_BYTES
    }

    /// A chunk was inserted.
    pub(super) fn add(&mut self, length: usize) {
        self.chunks += 1;
        self.bytes += length as u64 + ENTRY_OVERHEAD_BYTES;
        self.largest = self.largest.max(length as u64 + ENTRY_OVERHEAD_BYTES);
    }

    fn end_at_worst(&self) -> u64 {
        let written_anew = self.chunks / 9 + 1 + self.chunks / 8 + 1;
        self.end + self.bytes + written_anew * LEAF_ENTRIES * self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine itself, with chunks of one size and of mixed sizes: the worst that is assumed is never exceeded.
    #[test]
    fn the_engine_never_writes_more_than_is_assumed() {
        for sizes in [&[200_usize][..], &[64 << 10], &[98_400], &[98_400, 100, 5_000, 100]] {
            let folder = tempfile::tempdir().expect("folder");
            let config = sled::Config::new()
                .path(folder.path())
                .segment_size(ENGINE_SEGMENT_BYTES)
                .flush_every_ms(None);
            let database = config.open().expect("opens");
            let length = || folder.path().join("db").metadata().expect("there").len();
            database.flush().expect("flushed");
            let mut room = Room::default();
            room.flushed(length());
            let mut payload = 0_usize;
            for number in 1_u64..30_000 {
                let size = sizes[number as usize % sizes.len()];
                if !room.fits(size) {
                    break;
                }
                database.insert(number.to_be_bytes(), vec![7; size]).expect("inserted");
                room.add(size);
                payload += size;
                if number % 7 == 0 {
                    database.flush().expect("flushed");
                    assert!(length() <= room.end_at_worst(), "{sizes:?} {number} {room:?}");
                    room.flushed(length());
                }
            }
            database.flush().expect("flushed");
            let share = length() as f64 / payload as f64;
            assert!(length() <= ENGINE_SEGMENT_BYTES as u64, "{sizes:?}");
            assert!((1.0..6.0).contains(&share), "{sizes:?}: {share:.2} bytes written for each");
            let blobs = std::fs::read_dir(folder.path().join("blobs")).expect("listed");
            assert_eq!(blobs.count(), 0);
        }
    }
}
