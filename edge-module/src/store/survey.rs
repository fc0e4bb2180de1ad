//! A look at the journal of a module that does not run: what is there, what is whole, what waits.
//!
//! Nothing is salvaged, moved, entered into the books or written at all.

use std::fs;
use std::path::{Path, PathBuf};

use shared_proto::model::{Generation, Sequence};

use super::head::{Books, HeadFile};
use super::recovery::{digits, has_content, numbered};
use super::segment::{Chain, Segment, SegmentName, bytes_on_disk};
use super::{JournalError, Lane, Loss, Stored};

/// One segment as its folder shows it.
#[derive(Clone, Debug)]
pub struct SegmentSummary {
    /// Its folder.
    pub path: PathBuf,
    /// No sequence below this is in it.
    pub floor: Sequence,
    /// Last record and number of records, of a segment that is full.
    pub closed: Option<(Sequence, u64)>,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What reading a lane to its end found.
#[derive(Debug, Default)]
pub struct LaneReport {
    /// Records after what was delivered.
    pub waiting: u64,
    /// Records delivered and still on disk.
    pub delivered: u64,
    /// Ranges that hold records no more, and are not on the books.
    pub holes: Vec<Loss>,
    /// Segments that cannot be read to their end, with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

impl LaneReport {
    /// Whether everything that should be there was read.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.holes.is_empty() && self.unreadable.is_empty()
    }
}

/// A journal that nobody writes to.
#[derive(Debug)]
pub struct Survey {
    root: PathBuf,
    generation: Generation,
    books: Option<Books>,
    cache_bytes: u64,
}

impl Survey {
    /// Generations below a data folder, oldest first.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn generations(data_dir: &Path) -> Result<Vec<Generation>, JournalError> {
        let journal = data_dir.join("journal");
        if !journal.is_dir() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (number, root) in numbered(&journal)? {
            if has_content(&root)? {
                found.push(Generation(number));
            }
        }
        Ok(found)
    }

    /// Looks at one generation. Changes nothing.
    ///
    /// # Errors
    /// Its head cannot be read for another reason than damage.
    pub fn open(
        data_dir: &Path,
        generation: Generation,
        cache_bytes: u64,
    ) -> Result<Self, JournalError> {
        let root = data_dir.join("journal").join(digits(generation.0));
        let path = root.join("head");
        let books = HeadFile::read(&path, generation).map_err(JournalError::io("read", &path))?;
        Ok(Self { root, generation, books, cache_bytes })
    }

    /// Which generation.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether the books can be read.
    #[must_use]
    pub const fn has_books(&self) -> bool {
        self.books.is_some()
    }

    /// The sequence that the next record would get, by the books.
    #[must_use]
    pub fn next_sequence(&self) -> Option<Sequence> {
        self.books.as_ref().map(|books| books.next)
    }

    /// Delivered through and last record of a lane, by the books.
    #[must_use]
    pub fn progress(&self, lane: Lane) -> (Sequence, Sequence) {
        let books = self.books.as_ref();
        books.map_or((Sequence(0), Sequence(0)), |books| {
            (*books.acknowledged.get(lane), *books.last.get(lane))
        })
    }

    /// Losses on the books, and whether their gap records are durable.
    #[must_use]
    pub fn losses(&self) -> Vec<(Loss, bool)> {
        let gaps = self.books.iter().flat_map(|books| &books.gaps);
        gaps.map(|gap| (gap.loss.clone(), gap.is_reported)).collect()
    }

    /// Segments of a lane, oldest first.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn segments(&self, lane: Lane) -> Result<Vec<SegmentSummary>, JournalError> {
        let folder = self.root.join(lane.as_str());
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let summary = |(floor, path): (u64, PathBuf)| {
            let segment = self.segment(lane, floor, path.clone());
            let closed = segment.closed().map(|closed| (closed.last, closed.records));
            SegmentSummary { bytes: bytes_on_disk(&path), path, floor: Sequence(floor), closed }
        };
        Ok(numbered(&folder)?.into_iter().map(summary).collect())
    }

    fn segment(&self, lane: Lane, floor: u64, path: PathBuf) -> Segment {
        let name = SegmentName { path, generation: self.generation, lane, floor };
        Segment::new(name, self.cache_bytes)
    }

    /// Reads a lane from its oldest segment to its end and hands each record over with whether it was delivered.
    ///
    /// # Errors
    /// The folder cannot be listed, somebody has the journal open for writing, or `take` fails.
    pub fn read<E: From<JournalError>>(
        &self,
        lane: Lane,
        mut take: impl FnMut(Stored, bool) -> Result<(), E>,
    ) -> Result<LaneReport, E> {
        let head = self.root.join("head");
        HeadFile::check_free(&head).map_err(JournalError::io("open", &head))?;
        let mut report = LaneReport::default();
        let (acknowledged, last) = self.progress(lane);
        let segments = self.segments(lane)?;
        let mut cursor: Option<Sequence> = None;
        for (index, summary) in segments.iter().enumerate() {
            let next_floor = segments.get(index + 1).map(|next| next.floor.0);
            let by_floor = next_floor.map_or(u64::MAX - 1, |floor| floor - 1);
            let limit = summary.closed.map_or(Sequence(by_floor), |(last, _)| last);
            let mut segment = self.segment(lane, summary.floor.0, summary.path.clone());
            // What is missing before the first was delivered, or is found by the books.
            let opened = segment.open();
            let start = cursor.unwrap_or(segment.previous().unwrap_or_default().max(acknowledged));
            let start =
                if cursor.is_none() { start.min(Sequence(summary.floor.0 - 1)) } else { start };
            let mut chain = Chain::new(start, limit);
            let mut result = opened;
            while result.is_ok() {
                result = match segment.read(&mut chain, 1_024) {
                    Ok(is_end) => {
                        let records = std::mem::take(&mut chain.records);
                        let is_over = is_end || records.is_empty();
                        for record in records {
                            let is_delivered = record.sequence <= acknowledged;
                            let count = if is_delivered {
                                &mut report.delivered
                            } else {
                                &mut report.waiting
                            };
                            *count += 1;
                            take(record, is_delivered)?;
                        }
                        if is_over {
                            break;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
            }
            if let Err(error) = result {
                report.unreadable.push((summary.path.clone(), crate::journal::chain(&error)));
            } else if let Some((last, _)) = summary.closed {
                chain.expect(last);
            }
            self.note_holes(lane, &mut report, &chain);
            cursor = Some(chain.cursor);
        }
        let mut end = Chain::new(cursor.unwrap_or_default().max(acknowledged), last);
        end.expect(last);
        self.note_holes(lane, &mut report, &end);
        Ok(report)
    }

    fn note_holes(&self, lane: Lane, report: &mut LaneReport, chain: &Chain) {
        let books = self.books.clone().unwrap_or_default();
        let acknowledged = *books.acknowledged.get(lane);
        for (first, last) in &chain.holes {
            if *last > acknowledged {
                report.holes.extend(books.unknown(lane, (*first).max(acknowledged.next()), *last));
            }
        }
    }

    /// What lies in the quarantine.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn quarantine(data_dir: &Path) -> Result<Vec<(PathBuf, u64)>, JournalError> {
        let folder = data_dir.join("quarantine");
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&folder).map_err(JournalError::io("list", &folder))?;
        let mut found: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .map(|path| {
                let bytes = if path.is_dir() {
                    bytes_on_disk(&path)
                } else {
                    fs::metadata(&path).map_or(0, |file| file.len())
                };
                (path, bytes)
            })
            .collect();
        found.sort();
        Ok(found)
    }
}
