use std::fs;
use std::path::Path;

use proptest::prelude::*;
use shared_proto::model::EventTime;

use super::recovery::{digits, numbered};
use super::*;

pub(super) const SETTINGS: JournalSettings = JournalSettings {
    segment_bytes: 1 << 20,
    bytes_max: 1 << 30,
    free_bytes_min: 0,
    cache_bytes: 1 << 20,
};
const STARTED: EventTime = EventTime::from_micros(1_800_000_000_000_000);

fn open_with(folder: &Path, settings: JournalSettings) -> SegmentedJournal {
    SegmentedJournal::open(folder, settings, STARTED).expect("journal opens")
}

fn open(folder: &Path) -> SegmentedJournal {
    open_with(folder, SETTINGS)
}

fn readings(range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|number| (Lane::Readings, format!("reading {number}").into_bytes())).collect()
}

fn large(count: usize) -> Vec<Entry> {
    (0..count).map(|_| (Lane::Readings, vec![7_u8; 10_000])).collect()
}

pub(super) fn lane_folder(folder: &Path, lane: Lane) -> PathBuf {
    folder.join("journal").join(digits(1_800_000_000_000_000)).join(lane.as_str())
}

fn floors(folder: &Path) -> Vec<u64> {
    numbered(&lane_folder(folder, Lane::Readings)).expect("listed").into_keys().collect()
}

/// Everything of a lane after a sequence, and what the reader calls lost.
pub(super) fn read_with_losses(
    journal: &dyn Journal,
    lane: Lane,
    after: Sequence,
) -> (Vec<Stored>, Vec<Loss>) {
    let through = Sequence(journal.next_sequence().0 - 1);
    let reader = journal.reader();
    let (mut found, mut losses, mut after) = (Vec::new(), Vec::new(), after);
    loop {
        let batch = reader.read(lane, after, through, 100);
        assert!(batch.obstacle.is_none(), "{batch:?}");
        let last_lost = batch.losses.last().map_or(Sequence(0), |loss| loss.last);
        losses.extend(batch.losses);
        let Some(last) = batch.records.last() else {
            if last_lost > after {
                after = last_lost;
                continue;
            }
            return (found, losses);
        };
        after = last.sequence;
        found.extend(batch.records);
    }
}

fn read_all(journal: &dyn Journal, lane: Lane, after: u64) -> Vec<(u64, String)> {
    let (found, losses) = read_with_losses(journal, lane, Sequence(after));
    assert!(losses.is_empty(), "{losses:?}");
    found
        .into_iter()
        .map(|record| (record.sequence.0, String::from_utf8(record.payload).expect("text")))
        .collect()
}

#[test]
fn lanes_share_one_sequence_and_take_it_one_after_the_other() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    let records = vec![
        (Lane::Readings, b"a".to_vec()),
        (Lane::Events, b"b".to_vec()),
        (Lane::Readings, b"c".to_vec()),
    ];
    assert_eq!(journal.append(&records).expect("appended"), Sequence(4));
    assert_eq!(read_all(&journal, Lane::Events, 0), [(1, "b".to_owned())]);
    assert_eq!(read_all(&journal, Lane::Readings, 0), [(2, "a".to_owned()), (3, "c".to_owned())]);
    assert_eq!(read_all(&journal, Lane::Readings, 2), [(3, "c".to_owned())]);
}

#[test]
fn a_restart_continues_generation_sequence_and_content() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    journal.append(&readings(1..501)).expect("appended");
    journal.trim(Lane::Readings, Sequence(100)).expect("trimmed");
    journal.save().expect("saved");
    let generation = journal.generation();
    drop(journal);

    let mut journal = open(folder.path());
    assert_eq!(journal.losses(), []);
    assert_eq!(journal.generation(), generation);
    assert_eq!(journal.acknowledged(Lane::Readings), Sequence(100));
    assert_eq!(journal.next_sequence(), Sequence(501));
    journal.append(&readings(501..502)).expect("appended");
    let found = read_all(&journal, Lane::Readings, 100);
    assert_eq!(found.len(), 401);
    assert_eq!(found.first(), Some(&(101, "reading 101".to_owned())));
    assert_eq!(found.last(), Some(&(501, "reading 501".to_owned())));
}

#[test]
fn the_tail_reaches_back_over_segments() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    for _ in 0..25 {
        journal.append(&large(10)).expect("appended");
    }
    assert!(floors(folder.path()).len() >= 3);
    let numbers = |count| -> Vec<u64> {
        journal
            .reader()
            .tail(Lane::Readings, count)
            .iter()
            .map(|stored| stored.sequence.0)
            .collect()
    };
    assert_eq!(numbers(3), [248, 249, 250]);
    assert_eq!(numbers(240), (11..=250).collect::<Vec<_>>());
    assert_eq!(numbers(1_000).len(), 250);
}

#[test]
fn drained_segments_are_deleted_and_no_sequence_is_used_twice() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    for _ in 0..40 {
        journal.append(&large(10)).expect("appended");
    }
    assert!(floors(folder.path()).len() >= 3);
    journal.trim(Lane::Readings, Sequence(400)).expect("trimmed");
    assert_eq!(floors(folder.path()).len(), 1);
    // The newest goes too, once it is drained and large.
    journal.save().expect("saved");
    assert_eq!(floors(folder.path()), [401]);
    drop(journal);
    let journal = open(folder.path());
    assert_eq!(journal.next_sequence(), Sequence(401));
    assert_eq!(journal.losses(), []);
}

#[test]
fn a_journal_over_its_cap_evicts_the_oldest_readings_and_says_which() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = JournalSettings { bytes_max: 6 << 20, ..SETTINGS };
    let mut journal = open_with(folder.path(), settings);
    journal.append(&[(Lane::Events, b"trip".to_vec())]).expect("appended");
    for _ in 0..100 {
        journal.append(&large(10)).expect("appended");
        journal.evict().expect("evicted");
        assert!(journal.bytes() <= 8 << 20, "{}", journal.bytes());
    }
    let losses = journal.losses();
    assert_eq!(losses.len(), 1, "neighbours are one loss: {losses:?}");
    assert_eq!((losses[0].lane, losses[0].cause), (Lane::Readings, LossCause::EvictedCap));
    let left = read_all(&journal, Lane::Readings, losses[0].last.0);
    let lost = losses[0].records.expect("counted");
    assert_eq!(lost + left.len() as u64, 1000, "evicted and left make everything");
    assert_eq!(left[0].0, losses[0].last.0 + 1);
    assert_eq!(read_all(&journal, Lane::Events, 0).len(), 1);
    // Until their gap record is durable they are told again, also after a restart.
    drop(journal);
    let mut journal = open_with(folder.path(), settings);
    assert_eq!(journal.losses(), losses);
    journal.confirm_losses(&losses);
    assert_eq!(journal.losses(), []);
    journal.save().expect("saved");
    drop(journal);
    let journal = open_with(folder.path(), settings);
    assert_eq!(journal.losses(), []);
    assert_eq!(read_all(&journal, Lane::Readings, 0).len() as u64, 1000 - lost);
}

#[test]
fn records_in_flight_are_not_evicted() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = JournalSettings { bytes_max: 6 << 20, ..SETTINGS };
    let mut journal = open_with(folder.path(), settings);
    for _ in 0..30 {
        journal.append(&large(10)).expect("appended");
    }
    let batch = journal.reader().read(Lane::Readings, Sequence(0), Sequence(300), 50);
    let in_flight = batch.records.last().expect("records").sequence;
    for _ in 0..70 {
        journal.append(&large(10)).expect("appended");
    }
    let losses = journal.losses();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert!(losses[0].first > in_flight, "{losses:?} with {in_flight:?} in flight");
    let left = read_all(&journal, Lane::Readings, 0);
    assert_eq!(left.len() as u64 + losses[0].records.expect("counted"), 1000);
    assert_eq!(left[0].0, 1);
}

#[test]
fn a_disk_below_its_reserve_evicts_and_takes_machine_events_only() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    for _ in 0..40 {
        journal.append(&large(10)).expect("appended");
    }
    drop(journal);
    // No disk has that much.
    let settings = JournalSettings { free_bytes_min: u64::MAX, ..SETTINGS };
    let mut journal = open_with(folder.path(), settings);
    journal.evict().expect("evicted");
    let losses = journal.losses();
    assert_eq!(losses[0].cause, LossCause::EvictedDisk);
    let error = journal.append(&readings(0..1)).expect_err("refused");
    assert!(error.to_string().contains("journal.free-bytes-min"), "{error}");
    journal.append(&[(Lane::Events, b"trip".to_vec())]).expect("machine events are taken");
    assert_eq!(read_all(&journal, Lane::Events, 0).len(), 1);
}

#[test]
fn a_record_over_the_limit_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    let records =
        vec![(Lane::Readings, b"small".to_vec()), (Lane::Readings, vec![0; RECORD_BYTES_MAX + 1])];
    let error = journal.append(&records).expect_err("refused");
    assert_eq!(error.to_string(), "record of 98305 bytes, at most 98304 can be journalled");
    assert_eq!(journal.next_sequence(), Sequence(1));
    assert!(read_all(&journal, Lane::Readings, 0).is_empty());
    journal.append(&[(Lane::Readings, vec![5; RECORD_BYTES_MAX])]).expect("at the limit");
    assert_eq!(journal.reader().tail(Lane::Readings, 1)[0].payload.len(), RECORD_BYTES_MAX);
}

#[test]
fn the_engine_puts_nothing_into_files_that_it_does_not_sync() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal =
        open_with(folder.path(), JournalSettings { segment_bytes: 1 << 30, ..SETTINGS });
    for _ in 0..120 {
        journal.append(&[(Lane::Waveforms, vec![5; RECORD_BYTES_MAX])]).expect("appended");
        journal.append(&large(20)).expect("appended");
    }
    for lane in [Lane::Waveforms, Lane::Readings] {
        let lane = lane_folder(folder.path(), lane);
        for path in numbered(&lane).expect("listed").into_values() {
            let blobs = fs::read_dir(path.join("blobs")).expect("the engine's folder");
            assert_eq!(blobs.count(), 0, "{}", path.display());
        }
    }
}

#[test]
fn after_a_restart_segments_are_read_without_their_engine_and_not_written() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    for _ in 0..25 {
        journal.append(&large(10)).expect("appended");
    }
    drop(journal);
    let look = || -> Vec<(PathBuf, Vec<u8>)> {
        let lane = lane_folder(folder.path(), Lane::Readings);
        let folders = numbered(&lane).expect("listed").into_values();
        let files = folders.flat_map(|folder| fs::read_dir(folder).expect("listed"));
        let mut files: Vec<_> = files
            .map(|entry| entry.expect("listed").path())
            .filter(|path| path.is_file() && !path.ends_with("closed"))
            .map(|path| (path.clone(), fs::read(path).expect("read")))
            .collect();
        files.sort();
        files
    };
    let before = look();
    let journal = open(folder.path());
    // The engine would be refused: somebody else has it open.
    let newest = before.last().expect("segments").0.parent().expect("in a segment").to_owned();
    let lock = fs::File::open(newest.join("db")).expect("there");
    lock.lock().expect("locked");
    let (found, losses) = read_with_losses(&journal, Lane::Readings, Sequence(0));
    assert_eq!((found.len(), losses), (250, Vec::new()));
    assert!(look() == before, "a file of the engine has changed");
}

#[test]
fn a_group_larger_than_a_segment_goes_on_in_the_next() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = JournalSettings { segment_bytes: 1 << 30, ..SETTINGS };
    let mut journal = open_with(folder.path(), settings);
    journal.append(&readings(1..11)).expect("appended");
    let group: Vec<Entry> =
        (0..400).map(|_| (Lane::Readings, vec![7_u8; RECORD_BYTES_MAX])).collect();
    journal.append(&group).expect("appended");
    let lane = lane_folder(folder.path(), Lane::Readings);
    let segments = numbered(&lane).expect("listed");
    assert!(segments.len() >= 4, "{segments:?}");
    for path in segments.values() {
        let length = fs::metadata(path.join("db")).expect("there").len();
        assert!(length <= 16 << 20, "the engine has begun a segment of its own: {length}");
    }
    let check = |journal: &SegmentedJournal| {
        let (found, losses) = read_with_losses(journal, Lane::Readings, Sequence(0));
        let numbers: Vec<u64> = found.iter().map(|record| record.sequence.0).collect();
        assert_eq!(numbers, (1..=410).collect::<Vec<_>>());
        assert_eq!(losses, []);
    };
    check(&journal);
    drop(journal);
    check(&open_with(folder.path(), settings));
}

#[test]
fn a_failed_append_leaves_nothing_and_the_same_records_can_be_appended_again() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    journal.append(&readings(1..11)).expect("appended");
    // A file where the folder of another lane would be: the group fails after its first lane was written.
    let obstacle = lane_folder(folder.path(), Lane::DeadLetters);
    fs::write(&obstacle, b"in the way").expect("made");
    let mut group = readings(11..21);
    group.push((Lane::DeadLetters, b"letter".to_vec()));
    for _ in 0..3 {
        journal.append(&group).expect_err("refused");
        assert_eq!(journal.next_sequence(), Sequence(11));
        assert_eq!(read_all(&journal, Lane::Readings, 0).len(), 10, "not durable, not shown");
    }
    // Another group takes the same numbers.
    let other: Vec<Entry> =
        (0..5).map(|number| (Lane::Readings, format!("other {number}").into_bytes())).collect();
    journal.append(&other).expect("appended");
    fs::remove_file(&obstacle).expect("gone");
    journal.append(&group).expect("appended");
    let found = read_all(&journal, Lane::Readings, 10);
    assert_eq!(found.len(), 15);
    assert_eq!(found[0], (11, "other 0".to_owned()));
    assert_eq!(found[5], (16, "reading 11".to_owned()));
    drop(journal);
    let journal = open(folder.path());
    assert_eq!(read_all(&journal, Lane::Readings, 10), found);
    assert_eq!(read_all(&journal, Lane::DeadLetters, 0), [(26, "letter".to_owned())]);
    assert_eq!(journal.losses(), []);
}

#[test]
fn folders_and_files_that_are_not_ours_are_left_alone_or_moved_aside() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    journal.append(&readings(1..11)).expect("appended");
    drop(journal);
    let generations = folder.path().join("journal");
    fs::create_dir(generations.join("99999999999999999999")).expect("made");
    fs::create_dir(generations.join(digits(1_900_000_000_000_000))).expect("made");
    let lane = lane_folder(folder.path(), Lane::Readings);
    fs::create_dir(lane.join("18446744073709551615")).expect("made");
    fs::create_dir(lane.join(digits(5_000))).expect("an empty segment folder");
    fs::write(lane.join("notes.txt"), b"by hand").expect("made");
    let mut journal = open(folder.path());
    assert_eq!(journal.generation(), Generation(1_800_000_000_000_000));
    assert_eq!(read_all(&journal, Lane::Readings, 0).len(), 10);
    assert_eq!(journal.next_sequence(), Sequence(11));
    journal.append(&readings(11..12)).expect("goes on");
    assert_eq!(read_all(&journal, Lane::Readings, 0).len(), 11);
}

/// What is done to both engines.
#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(usize, u16)>),
    Read { lane: usize, count: usize },
    Trim { lane: usize, share: u8 },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append =
        proptest::collection::vec((0..4_usize, 0..3_000_u16), 1..60).prop_map(Step::Append);
    let read = (0..4_usize, 1..300_usize).prop_map(|(lane, count)| Step::Read { lane, count });
    let trim = (0..4_usize, any::<u8>()).prop_map(|(lane, share)| Step::Trim { lane, share });
    let step = prop_oneof![6 => append, 3 => read, 2 => trim, 1 => Just(Step::Restart)];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is done, both engines give the same numbers, records and books.
    #[test]
    fn both_engines_agree(steps in steps()) {
        let folder = tempfile::tempdir().expect("folder");
        let settings = JournalSettings { segment_bytes: 64 << 10, ..SETTINGS };
        let reopen = || -> (Box<dyn Journal>, Box<dyn Journal>) {
            let plain = PlainJournal::open(folder.path(), settings, STARTED).expect("opens");
            (Box::new(open_with(folder.path(), settings)), Box::new(plain))
        };
        let (mut journal, mut plain) = reopen();
        let mut number = 0_u32;
        for step in steps {
            match step {
                Step::Append(records) => {
                    let records: Vec<Entry> = records.iter().map(|(lane, length)| {
                        number += 1;
                        let mut payload = number.to_le_bytes().to_vec();
                        payload.resize(4 + usize::from(*length), 7);
                        (Lane::ALL[*lane], payload)
                    }).collect();
                    let next = journal.append(&records).expect("appended");
                    prop_assert_eq!(next, plain.append(&records).expect("appended"));
                }
                Step::Read { lane, count } => {
                    let lane = Lane::ALL[lane];
                    let after = journal.acknowledged(lane);
                    let through = Sequence(journal.next_sequence().0 - 1);
                    let mut ours = journal.reader().read(lane, after, through, count).records;
                    ours.truncate(count);
                    let theirs = plain.reader().read(lane, after, through, count).records;
                    prop_assert_eq!(ours, theirs);
                }
                Step::Trim { lane, share } => {
                    let lane = Lane::ALL[lane];
                    let (records, losses) =
                        read_with_losses(&*journal, lane, journal.acknowledged(lane));
                    prop_assert_eq!(losses, []);
                    let index = records.len() * usize::from(share) / 256;
                    if let Some(record) = records.get(index) {
                        journal.trim(lane, record.sequence).expect("trimmed");
                        plain.trim(lane, record.sequence).expect("trimmed");
                    }
                }
                Step::Restart => {
                    journal.save().expect("saved");
                    plain.save().expect("saved");
                    drop(journal);
                    (journal, plain) = reopen();
                }
            }
            prop_assert_eq!(journal.next_sequence(), plain.next_sequence());
            for lane in Lane::ALL {
                prop_assert_eq!(journal.acknowledged(lane), plain.acknowledged(lane));
            }
        }
        for lane in Lane::ALL {
            let after = journal.acknowledged(lane);
            prop_assert_eq!(
                read_with_losses(&*journal, lane, after),
                read_with_losses(&*plain, lane, after)
            );
        }
    }
}

/// A reader that was told of a dead letter's number, and came when the lane had gone on, took the number for a record that is
/// missing, and moved the segment away under the writer.
#[test]
fn a_segment_that_is_written_stays_whatever_a_reader_expects() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    let mut group = readings(0..3);
    group.push((Lane::DeadLetters, b"letter".to_vec()));
    journal.append(&group).expect("appended");
    let told = Sequence(journal.next_sequence().0 - 1);
    assert_eq!(
        (journal.last(Lane::Readings), journal.last(Lane::DeadLetters)),
        (Sequence(3), told)
    );
    journal.append(&readings(3..5)).expect("appended");
    let batch = journal.reader().read(Lane::Readings, Sequence(0), told, 100);
    assert!(batch.losses.is_empty() && batch.obstacle.is_none(), "{batch:?}");
    assert_eq!(batch.records.len(), 3);
    let batch = journal.reader().read(Lane::Readings, Sequence(3), told, 100);
    assert!(batch.losses.is_empty() && batch.obstacle.is_none(), "{batch:?}");
    let moved = fs::read_dir(folder.path().join("quarantine")).expect("listed").count();
    assert_eq!(moved, 0);
    journal.append(&readings(5..7)).expect("appended");
    assert_eq!(read_all(&journal, Lane::Readings, 0).len(), 7);
    drop(journal);
    assert_eq!(read_all(&open(folder.path()), Lane::Readings, 0).len(), 7);
}

/// What a check of the file system, or a hand, takes away in service: the rest must go on.
#[test]
fn a_segment_whose_folder_vanishes_is_a_loss_and_no_obstacle() {
    let folder = tempfile::tempdir().expect("folder");
    let mut journal = open(folder.path());
    for _ in 0..30 {
        journal.append(&large(10)).expect("appended");
    }
    let floors = floors(folder.path());
    assert!(floors.len() >= 3, "{floors:?}");
    let lane = lane_folder(folder.path(), Lane::Readings);
    let newest = *floors.last().expect("some");
    for floor in [floors[1], newest] {
        fs::remove_dir_all(lane.join(digits(floor))).expect("taken away");
    }
    // The writer finds out and begins another.
    let error = journal.append(&large(1)).expect_err("its file is gone");
    assert!(!error.is_damage(), "{error}");
    journal.reopen().expect("goes on");
    journal.append(&large(1)).expect("in a new segment");
    let (found, losses) = read_with_losses(&journal, Lane::Readings, Sequence(0));
    let lost: Vec<_> = losses.iter().map(|loss| (loss.first.0, loss.last.0)).collect();
    assert_eq!(lost, [(floors[1], floors[2] - 1), (newest, 300)]);
    let expected: Vec<u64> = (1..floors[1]).chain(floors[2]..newest).chain([301]).collect();
    assert_eq!(found.iter().map(|record| record.sequence.0).collect::<Vec<_>>(), expected);
}
