//! The power fails at any moment: `disk_model` says what the disk may hold then, and the journal must make do with it.

use std::path::Path;
use std::time::Instant;

use edge_module::store::{Journal as _, SegmentedJournal};
use shared_proto::model::EventTime;

use crate::books::Books;
use crate::disk::{FaultyDisk, Word};
use crate::disk_model::{Disk, Fate, Record, is_ext4};
use crate::random::{Random, rounds, seed};
use crate::scratch;
use crate::writer::{Task, Told, Writer, either_segment_bytes, lane_of, payload_of};

const USUAL_CUTS: u64 = 150;
const CUTS_PER_RECORD: u64 = 25;
/// Lives of the writer in one record: each ends by SIGKILL and leaves what it had not synced to the next.
const LIVES: u64 = 3;
const STEPS_PER_LIFE: u64 = 60;
const NOW: EventTime = EventTime::from_micros(1_700_000_000_000_000);

/// What the record of one disk is made of.
struct Recording {
    record: Record,
    /// The disk before the first change.
    before: Disk,
}

/// Lets writers work in `root` and records what they change.
fn record_writers(
    folder: &Path,
    root: &Path,
    first_number: u64,
    forgotten: Option<Word>,
    random: &mut Random,
) -> Recording {
    let log = folder.join("changes");
    std::fs::remove_file(&log).ok();
    let before = Disk::holding(root).expect("a readable folder");
    let disk = FaultyDisk::new(folder, root, Some(&log)).expect("a recording disk");
    if let Some(word) = forgotten {
        disk.set(word, 1).expect("control file");
    }
    let mut first_number = first_number;
    let segment_bytes = either_segment_bytes(random);
    for _ in 0..LIVES {
        let steps = random.of(STEPS_PER_LIFE / 2..STEPS_PER_LIFE * 2);
        let task = Task { first_number, seed: random.number(), steps, now: NOW, segment_bytes };
        let writer = Writer::start(root, task, disk.environment());
        for told in writer.wait_killed() {
            if let Told::Offered { end, .. } = told {
                first_number = end;
            }
        }
    }
    Recording { record: Record::read(&log, root).expect("a whole record"), before }
}

/// Where to cut, in order; half of them where names or durability change.
fn moments(record: &Record, count: u64, random: &mut Random) -> Vec<usize> {
    let all = record.len() as u64;
    let delicate: Vec<usize> =
        (0..record.len()).filter(|index| record.is_delicate(*index)).collect();
    let mut moments: Vec<usize> = (0..count)
        .map(|_| match random.is_one_in(2) {
            true => random.of(0..all + 1) as usize,
            false => {
                delicate[random.of(0..delicate.len() as u64) as usize] + random.of(0..2) as usize
            }
        })
        .collect();
    moments.sort_unstable();
    moments
}

/// Cuts a record in `count` places. Gives the faults found and, of a cut without one, the folder and its books.
fn cut_in_many_places(
    recording: &Recording,
    books: &Books,
    count: u64,
    folder: &Path,
    random: &mut Random,
) -> (Vec<String>, Option<Books>) {
    let mut disk = recording.before.clone();
    let mut books = books.clone();
    let mut done = 0;
    let mut faults = Vec::new();
    let mut last = None;
    for moment in moments(&recording.record, count, random) {
        for index in done..moment {
            disk.apply(&recording.record, index);
            if let Some(told) = recording.record.mark(index).and_then(Told::parse) {
                books.hear(told);
            }
        }
        done = done.max(moment);
        let fate = Fate::random(random);
        let target = folder.join("after-the-cut");
        std::fs::remove_dir_all(&target).ok();
        disk.cut(&recording.record, fate, random, &target).expect("rebuilt");
        let mut books = books.clone();
        match check(&target, &mut books) {
            Ok(()) => last = Some(books),
            Err(fault) => {
                if faults.is_empty() {
                    scratch::keep(folder, "power-cut");
                }
                faults.push(format!("cut before change {moment}, {fate:?}: {fault}"));
                last = None;
            }
        }
    }
    (faults, last)
}

/// Looks, goes on, closes, and looks again.
fn check(folder: &Path, books: &mut Books) -> Result<(), String> {
    let journal = books.check(folder, NOW)?;
    go_on(journal, books)?;
    drop(books.check(folder, NOW)?);
    Ok(())
}

fn go_on(mut journal: SegmentedJournal, books: &mut Books) -> Result<(), String> {
    let first = books.next_number();
    let end = first + 20;
    books.hear(Told::Offered { first, end });
    let records: Vec<_> =
        (first..end).map(|number| (lane_of(number), payload_of(number))).collect();
    let next = journal.append(&records).map_err(|error| format!("does not go on: {error}"))?;
    books.hear(Told::Acknowledged { first, end, next_sequence: next.0 });
    Ok(())
}

#[test]
fn a_power_cut_at_any_moment_has_lost_nothing_that_was_acknowledged() {
    let (cuts, seed) = (rounds(USUAL_CUTS), seed());
    let mut random = Random::new(seed);
    let started = Instant::now();
    let mut done = 0;
    let mut acknowledged = 0;
    let mut faults = Vec::new();
    while done < cuts {
        let folder = scratch::folder("power-cut");
        let root = folder.path().join("disk");
        std::fs::create_dir(&root).expect("made");
        let mut books = Books::default();
        // The second record begins on the disk that the last cut of the first has left.
        for _ in 0..2 {
            let number = books.next_number();
            let recording = record_writers(folder.path(), &root, number, None, &mut random);
            let count = CUTS_PER_RECORD.min(cuts - done);
            let (found, last) =
                cut_in_many_places(&recording, &books, count, folder.path(), &mut random);
            done += count;
            faults.extend(found);
            let Some(after) = last else { break };
            acknowledged += after.acknowledged();
            books = after;
            std::fs::remove_dir_all(&root).expect("removed");
            std::fs::rename(folder.path().join("after-the-cut"), &root).expect("moved");
        }
    }
    eprintln!(
        "{done} cuts, {} faults, {acknowledged} records acknowledged, {:.1} s, JOURNAL_SEED={seed}",
        faults.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(faults.is_empty(), "JOURNAL_SEED={seed}:\n{}", faults.join("\n"));
    assert!(acknowledged > cuts, "the writers hardly wrote: {acknowledged}");
}

/// The same with a program that forgets something: if this finds nothing, the test above proves nothing.
fn faults_when_forgetting(word: Word) -> Vec<String> {
    let mut random = Random::new(seed());
    let folder = scratch::folder("forgetful");
    let root = folder.path().join("disk");
    std::fs::create_dir(&root).expect("made");
    let recording = record_writers(folder.path(), &root, 0, Some(word), &mut random);
    cut_in_many_places(&recording, &Books::default(), CUTS_PER_RECORD, folder.path(), &mut random).0
}

#[test]
fn a_journal_that_forgets_to_sync_its_files_is_found_out() {
    let faults = faults_when_forgetting(Word::ForgetFiles);
    assert!(!faults.is_empty());
}

#[test]
fn a_journal_that_forgets_to_sync_its_folders_is_found_out() {
    let faults = faults_when_forgetting(Word::ForgetFolders);
    // A disk that commits all names with each sync forgives that.
    assert!(!faults.is_empty() || is_ext4());
}
