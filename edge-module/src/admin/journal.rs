//! What is shown of the journal: what waits in it, which way it leaves, and what was lost.

use std::collections::BTreeMap;

use edge_core::upstream::Upstream;
use serde::Serialize;

use super::Board;
use crate::store::{Lane, Loss};

/// Lost ranges that are shown; those before are counted, and stand in the gap records.
const RANGES_MAX: usize = 16;

/// The journal in figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JournalStatus {
    /// Which way records leave: `kafka` or `hub`; nothing before the journal is open.
    pub upstream: Option<&'static str>,
    /// Records that are not delivered yet, by lane. Lanes share one sequence: of a lane that is behind it is an upper bound.
    pub backlog_records: BTreeMap<&'static str, u64>,
    /// Age of the oldest reading that is not delivered.
    pub oldest_age_seconds: f64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Segments on disk.
    pub segments: usize,
    /// What was evicted or damaged since the start, the newest last, at most 16.
    pub lost: Vec<LostRange>,
    /// How many ranges were lost since the start.
    pub lost_ranges: u64,
}

/// Sequences of a lane that will never arrive.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LostRange {
    /// The lane.
    pub lane: &'static str,
    /// Why: `evicted-cap`, `evicted-disk` or `damaged`.
    pub cause: &'static str,
    /// Lowest sequence concerned.
    pub first_sequence: u64,
    /// Highest sequence concerned.
    pub last_sequence: u64,
    /// Records of the lane in between, if they could be counted.
    pub records: Option<u64>,
}

impl Board {
    /// Shows what waits, and which way it leaves.
    pub fn show_backlog(&self, upstream: Upstream, owed: &[(Lane, u64)], oldest_age_seconds: f64) {
        self.with(|shown| {
            shown.journal.upstream = Some(upstream.as_str());
            shown.journal.oldest_age_seconds = oldest_age_seconds;
            shown.journal.backlog_records =
                owed.iter().map(|(lane, records)| (lane.as_str(), *records)).collect();
        });
    }

    /// Shows what the journal takes of the disk.
    pub fn show_disk(&self, bytes: u64, segments: usize) {
        self.with(|shown| {
            shown.journal.disk_bytes = bytes;
            shown.journal.segments = segments;
        });
    }

    /// Shows what was lost.
    pub fn show_loss(&self, loss: &Loss) {
        let range = LostRange {
            lane: loss.lane.as_str(),
            cause: loss.cause.as_str(),
            first_sequence: loss.first.0,
            last_sequence: loss.last.0,
            records: loss.records,
        };
        self.with(|shown| {
            shown.journal.lost_ranges += 1;
            if shown.journal.lost.len() >= RANGES_MAX {
                shown.journal.lost.remove(0);
            }
            shown.journal.lost.push(range);
        });
    }
}

#[cfg(test)]
mod tests {
    use shared_proto::model::Sequence;

    use super::*;
    use crate::store::LossCause;

    #[test]
    fn of_many_losses_the_newest_are_shown_and_all_are_counted() {
        let board = Board::default();
        for number in 0..40 {
            board.show_loss(&Loss {
                lane: Lane::Readings,
                cause: LossCause::EvictedCap,
                first: Sequence(number * 10),
                last: Sequence(number * 10 + 4),
                records: Some(5),
            });
        }
        let shown = board.status().journal;
        assert_eq!((shown.lost.len(), shown.lost_ranges), (RANGES_MAX, 40));
        assert_eq!(shown.lost.last().map(|range| range.last_sequence), Some(394));
        assert_eq!(shown.lost.first().map(|range| range.first_sequence), Some(240));
    }
}
