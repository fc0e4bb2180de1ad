//! A journal is damaged in one place, at random, in each way a disk or a hand can do it. What then has to hold:
//!
//! 1. it opens, reads to its end, and goes on;
//! 2. nothing comes back that was not written, nothing twice, nothing out of order;
//! 3. what does not come back is inside the ranges reported as lost, and what comes back is not;
//! 4. no sequence is given again.
//!
//! `CORRUPTION_CASES` sets how many, `CORRUPTION_SEED` from which seed; a failure prints its seed.

use std::fs;
use std::path::{Path, PathBuf};

use shared_proto::model::EventTime;

use super::tests::{SETTINGS, read_with_losses};
use super::*;

const CASES: u64 = 60;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn settings() -> JournalSettings {
    JournalSettings { segment_bytes: 192 << 10, ..SETTINGS }
}

fn open(folder: &Path) -> SegmentedJournal {
    SegmentedJournal::open(folder, settings(), EventTime::from_micros(1_800_000_000_000_000))
        .expect("a damaged journal opens")
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

fn below(random: &mut Random, limit: usize) -> usize {
    usize::try_from(random.next() % limit.max(1) as u64).expect("small")
}

/// A journal with several segments in two lanes, some of it delivered; gives what waits in each lane.
fn build(folder: &Path, random: &mut Random) -> PerLane<Vec<Stored>> {
    let mut journal = open(folder);
    let mut waiting: PerLane<Vec<Stored>> = PerLane::default();
    for _ in 0..14 {
        let mut group: Vec<Entry> = Vec::new();
        for _ in 0..40 + below(random, 80) {
            let lane =
                [Lane::Readings, Lane::Readings, Lane::Readings, Lane::Events][below(random, 4)];
            let mut payload = vec![0; 8 + below(random, 900)];
            random.fill(&mut payload);
            group.push((lane, payload));
        }
        let mut sequence = journal.next_sequence();
        for lane in Lane::ALL {
            for (_, payload) in group.iter().filter(|(of_lane, _)| *of_lane == lane) {
                waiting.get_mut(lane).push(Stored { sequence, payload: payload.clone() });
                sequence = sequence.next();
            }
        }
        journal.append(&group).expect("appended");
    }
    for lane in [Lane::Readings, Lane::Events] {
        let records = waiting.get_mut(lane);
        let delivered = below(random, records.len() / 2);
        let through = records[delivered].sequence;
        records.drain(..=delivered);
        journal.trim(lane, through).expect("trimmed");
    }
    journal.save().expect("saved");
    waiting
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("listed").map(|entry| entry.expect("listed").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Does one damage and says which.
fn damage(journal: &Path, random: &mut Random) -> String {
    let mut files = Vec::new();
    files_below(journal, &mut files);
    let path = files[below(random, files.len())].clone();
    let folder = path.parent().expect("below the journal").to_owned();
    let bytes = fs::read(&path).expect("read");
    let at = below(random, bytes.len());
    let mut changed = bytes.clone();
    let what = match below(random, 9) {
        0 | 1 => {
            changed[at] ^= 1 << below(random, 8);
            format!("bit flipped at {at}")
        }
        2 => {
            changed.truncate(at);
            format!("cut to {at}")
        }
        3 => {
            changed.clear();
            "emptied".to_owned()
        }
        4 => {
            let end = (at + 1 + below(random, 4096)).min(changed.len());
            random.fill(&mut changed[at..end]);
            format!("noise in {at}..{end}")
        }
        5 => {
            let end = (at + 1 + below(random, 65_536)).min(changed.len());
            changed[at..end].fill(0);
            format!("zeros in {at}..{end}")
        }
        6 => {
            fs::remove_file(&path).expect("removed");
            return format!("{} removed", path.display());
        }
        7 if folder.join("db").is_file() => {
            fs::remove_dir_all(&folder).expect("removed");
            return format!("{} removed", folder.display());
        }
        7 | 8 => {
            random.fill(&mut changed);
            "replaced by noise".to_owned()
        }
        _ => unreachable!("nine kinds"),
    };
    fs::write(&path, changed).expect("written");
    format!("{} {what}", path.display())
}

fn check(seed: u64) {
    let mut random = Random(seed);
    let folder = tempfile::tempdir().expect("folder");
    let waiting = build(folder.path(), &mut random);
    let highest = Lane::ALL
        .iter()
        .filter_map(|lane| waiting.get(*lane).last())
        .map(|record| record.sequence)
        .max()
        .expect("records");
    let what = damage(&folder.path().join("journal"), &mut random);
    let context = format!("seed {seed}: {what}");

    let mut journal = open(folder.path());
    assert!(journal.next_sequence() > highest, "{context}: a sequence would be given again");
    for lane in [Lane::Events, Lane::Readings] {
        let waiting = waiting.get(lane);
        let first = waiting.first().expect("some wait").sequence;
        let (found, mut losses) = read_with_losses(&journal, lane, journal.acknowledged(lane));
        losses.extend(journal.losses().into_iter().filter(|loss| loss.lane == lane));
        let is_lost = |sequence: Sequence| {
            losses.iter().any(|loss| (loss.first..=loss.last).contains(&sequence))
        };
        assert!(
            found.windows(2).all(|pair| pair[0].sequence < pair[1].sequence),
            "{context}: {lane:?} out of order"
        );
        for record in &found {
            assert!(!is_lost(record.sequence), "{context}: {lane:?} {record:?} is called lost");
            let written = waiting.iter().find(|known| known.sequence == record.sequence);
            match written {
                Some(written) => assert_eq!(written, record, "{context}: {lane:?}"),
                // Without its head the journal does not know what was delivered.
                None => assert!(record.sequence < first, "{context}: {lane:?} {record:?} invented"),
            }
        }
        for record in waiting {
            let is_found =
                found.binary_search_by_key(&record.sequence, |found| found.sequence).is_ok();
            assert!(
                is_found || is_lost(record.sequence),
                "{context}: {lane:?} {:?} is gone without a word; losses {losses:?}",
                record.sequence
            );
        }
    }
    let next = journal.next_sequence();
    journal.append(&[(Lane::Readings, b"goes on".to_vec())]).expect("goes on");
    let tail = journal.reader().tail(Lane::Readings, 1);
    assert_eq!(tail, [Stored { sequence: next, payload: b"goes on".to_vec() }], "{context}");
}

#[test]
fn a_damaged_journal_opens_and_tells_exactly_what_is_lost() {
    let first = number("CORRUPTION_SEED", 0);
    for seed in first..first + number("CORRUPTION_CASES", CASES) {
        check(seed);
    }
}
