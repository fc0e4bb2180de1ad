//! A disk that is full, fails, is read-only, and a clock that jumps: the journal waits, forgets nothing, goes on.

use std::path::Path;

use edge_module::store::{Journal as _, SegmentedJournal};
use shared_proto::model::EventTime;

use crate::books::Books;
use crate::disk::{FaultyDisk, Word};
use crate::random::{Random, rounds, seed};
use crate::scratch;
use crate::writer::{SMALL_SEGMENT_BYTES, Task, Told, Writer, either_segment_bytes, settings};

const USUAL_CYCLES: u64 = 6;
const NOW: EventTime = EventTime::from_micros(1_700_000_000_000_000);
const DAY_MICROS: i64 = 86_400_000_000;
/// Groups that a writer must get through after an obstacle.
const GROUPS_AFTER: u32 = 5;

struct Trial {
    folder: tempfile::TempDir,
    disk: FaultyDisk,
    books: Books,
    random: Random,
}

impl Trial {
    fn new(name: &str) -> Self {
        let folder = scratch::folder(name);
        let root = folder.path().join("disk");
        std::fs::create_dir(&root).expect("made");
        let disk = FaultyDisk::new(folder.path(), &root, None).expect("a disk");
        let random = Random::new(seed());
        Self { folder, disk, books: Books::default(), random }
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("disk")
    }

    fn start_writer(&mut self) -> Writer {
        let first_number = self.books.next_number();
        let task = Task {
            first_number,
            seed: self.random.number(),
            steps: 0,
            now: NOW,
            segment_bytes: either_segment_bytes(&mut self.random),
        };
        Writer::start(&self.root(), task, self.disk.environment())
    }

    /// Listens until the writer has told what is waited for.
    fn hear_until(&mut self, writer: &mut Writer, what: &str, is_it: impl Fn(Told) -> bool) {
        loop {
            let told = writer.next().unwrap_or_else(|| panic!("writer ended before it {what}"));
            self.books.hear(told);
            if is_it(told) {
                return;
            }
        }
    }

    fn hear_groups(&mut self, writer: &mut Writer, count: u32) {
        for _ in 0..count {
            self.hear_until(writer, "got through", |told| {
                matches!(told, Told::Acknowledged { .. })
            });
        }
    }

    fn kill_and_check(&mut self, writer: Writer, when: &str) {
        for told in writer.kill() {
            self.books.hear(told);
        }
        let root = self.root();
        if let Err(fault) = self.books.check(&root, NOW) {
            let kept = scratch::keep(&root, "obstacle");
            panic!("JOURNAL_SEED={}, {when}: {fault}; kept in {}", seed(), kept.display());
        }
    }
}

/// Puts an obstacle in the way again and again: while the writer works, while it is killed, before it starts.
fn ride_out(name: &str, put: impl Fn(&FaultyDisk, &Path, &mut Random), lift: impl Fn(&FaultyDisk)) {
    let mut trial = Trial::new(name);
    for cycle in 0..rounds(USUAL_CYCLES) {
        let is_refused = |told| told == Told::Refused;
        let is_killed_while_refused = cycle % 3 == 1;
        let is_there_before = cycle % 3 == 2;
        let root = trial.root();
        if is_there_before {
            put(&trial.disk, &root, &mut trial.random);
        }
        let mut writer = trial.start_writer();
        if !is_there_before {
            trial.hear_groups(&mut writer, 1);
            put(&trial.disk, &root, &mut trial.random);
        }
        trial.hear_until(&mut writer, "was refused", is_refused);
        if is_killed_while_refused {
            for told in writer.kill() {
                trial.books.hear(told);
            }
            lift(&trial.disk);
            writer = trial.start_writer();
        }
        lift(&trial.disk);
        trial.hear_groups(&mut writer, GROUPS_AFTER);
        trial.kill_and_check(writer, &format!("{name}, cycle {cycle}"));
    }
    eprintln!("{name}: {} records acknowledged", trial.books.acknowledged());
}

#[test]
fn a_full_disk_costs_no_acknowledged_record() {
    let put = |disk: &FaultyDisk, root: &Path, random: &mut Random| {
        // Little room, or less than none, so that what is trimmed meanwhile does not make it last.
        let quota = bytes_below(root) * random.of(1..5) / 4 + random.of(1..100_000);
        disk.set(Word::QuotaBytes, quota).expect("control file");
    };
    ride_out("full-disk", put, |disk| disk.set(Word::QuotaBytes, 0).expect("control file"));
}

#[test]
fn a_disk_that_cannot_sync_costs_no_acknowledged_record() {
    let put = |disk: &FaultyDisk, _: &Path, random: &mut Random| {
        disk.set(Word::FailsAfter, random.of(0..12)).expect("control file");
        disk.set(Word::SyncFails, 1).expect("control file");
    };
    ride_out("sync-fails", put, |disk| disk.set(Word::SyncFails, 0).expect("control file"));
}

#[test]
fn a_disk_that_cannot_write_costs_no_acknowledged_record() {
    let put = |disk: &FaultyDisk, _: &Path, random: &mut Random| {
        disk.set(Word::FailsAfter, random.of(0..12)).expect("control file");
        disk.set(Word::WriteFails, 1).expect("control file");
    };
    ride_out("write-fails", put, |disk| disk.set(Word::WriteFails, 0).expect("control file"));
}

#[test]
fn a_read_only_disk_costs_no_acknowledged_record() {
    let put = |disk: &FaultyDisk, _: &Path, _: &mut Random| {
        disk.set(Word::ReadOnly, 1).expect("control file");
    };
    ride_out("read-only", put, |disk| disk.set(Word::ReadOnly, 0).expect("control file"));
}

#[test]
fn a_clock_that_jumps_by_a_day_changes_neither_generation_nor_sequence() {
    let seed = seed();
    let mut random = Random::new(seed);
    let folder = scratch::folder("clock");
    let mut books = Books::default();
    for round in 0..rounds(USUAL_CYCLES) {
        let mut jump = || NOW.saturating_add_micros((random.of(0..3) as i64 - 1) * DAY_MICROS);
        let (at_writing, at_reading) = (jump(), jump());
        let task = Task {
            first_number: books.next_number(),
            seed: seed ^ round,
            steps: 0,
            now: at_writing,
            segment_bytes: SMALL_SEGMENT_BYTES,
        };
        let mut writer = Writer::start(folder.path(), task, &[]);
        let mut groups = 0;
        while groups < GROUPS_AFTER {
            let told = writer.next().expect("the writer goes on");
            groups += u32::from(matches!(told, Told::Acknowledged { .. }));
            books.hear(told);
        }
        for told in writer.kill() {
            books.hear(told);
        }
        if let Err(fault) = books.check(folder.path(), at_reading) {
            panic!("JOURNAL_SEED={seed}, round {round}: {fault}");
        }
    }
}

#[test]
fn a_lost_disk_begins_another_generation_also_when_the_clock_was_set_back() {
    let generation_at = |now: EventTime| {
        let folder = scratch::folder("lost");
        let journal = SegmentedJournal::open(folder.path(), settings(SMALL_SEGMENT_BYTES), now)
            .expect("opens");
        assert_eq!(journal.losses(), []);
        journal.generation()
    };
    let before = generation_at(NOW);
    assert_ne!(generation_at(NOW.saturating_sub_micros(DAY_MICROS)), before);
    assert_ne!(generation_at(NOW.saturating_add_micros(DAY_MICROS)), before);
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => 4_096 + bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
