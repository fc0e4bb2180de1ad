use super::*;

const SETTINGS: JournalSettings =
    JournalSettings { segment_bytes: 1 << 20, bytes_max: 1 << 30, cache_bytes: 1 << 20 };

fn open(folder: &Path) -> (Journal, Vec<Loss>) {
    Journal::open(folder, SETTINGS, EventTime::from_micros(1_000_000)).expect("journal opens")
}

fn readings(range: std::ops::Range<u64>) -> Vec<(Lane, Vec<u8>)> {
    range.map(|number| (Lane::Readings, format!("reading {number}").into_bytes())).collect()
}

fn read_all(journal: &Journal, lane: Lane, after: u64) -> Vec<(u64, String)> {
    let through = Sequence(journal.next_sequence().0 - 1);
    let mut found = Vec::new();
    let mut after = Sequence(after);
    loop {
        let batch = journal.reader().read(lane, after, through, 100);
        assert!(batch.losses.is_empty(), "{:?}", batch.losses);
        let Some(last) = batch.records.last() else { return found };
        after = last.sequence;
        for record in batch.records {
            found.push((record.sequence.0, String::from_utf8(record.payload).expect("text")));
        }
    }
}

#[test]
fn records_of_all_lanes_share_one_sequence_and_come_back_in_order() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, losses) = open(folder.path());
    assert!(losses.is_empty());
    let records = vec![
        (Lane::Readings, b"a".to_vec()),
        (Lane::Events, b"b".to_vec()),
        (Lane::Readings, b"c".to_vec()),
    ];
    assert_eq!(journal.append(&records).expect("appended"), Sequence(4));
    assert_eq!(read_all(&journal, Lane::Readings, 0), [(1, "a".to_owned()), (3, "c".to_owned())]);
    assert_eq!(read_all(&journal, Lane::Events, 0), [(2, "b".to_owned())]);
    assert_eq!(read_all(&journal, Lane::Readings, 1), [(3, "c".to_owned())]);
}

#[test]
fn a_restart_continues_generation_sequence_and_content() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, _) = open(folder.path());
    journal.append(&readings(1..501)).expect("appended");
    journal.trim(Lane::Readings, Sequence(100)).expect("trimmed");
    journal.save_acknowledged().expect("saved");
    let generation = journal.generation();
    drop(journal);

    let (mut journal, losses) = open(folder.path());
    assert!(losses.is_empty(), "{losses:?}");
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
fn drained_segments_are_deleted_and_no_sequence_is_used_twice() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, _) = open(folder.path());
    let payload = vec![7_u8; 10_000];
    for _ in 0..40 {
        let records: Vec<_> = (0..10).map(|_| (Lane::Readings, payload.clone())).collect();
        journal.append(&records).expect("appended");
    }
    let lane = folder.path().join("journal").join(digits(1_000_000)).join("readings");
    let before = numbered_folders(&lane).expect("listed");
    assert!(before.len() >= 3, "{before:?}");
    journal.trim(Lane::Readings, Sequence(400)).expect("trimmed");
    assert_eq!(numbered_folders(&lane).expect("listed").len(), 1);
    drop(journal);
    let (journal, _) = open(folder.path());
    assert_eq!(journal.next_sequence(), Sequence(401));
}

#[test]
fn a_journal_over_its_cap_evicts_the_oldest_readings_and_says_which() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = JournalSettings { bytes_max: 4 << 20, ..SETTINGS };
    let (mut journal, _) =
        Journal::open(folder.path(), settings, EventTime::from_micros(1)).expect("journal opens");
    journal.append(&[(Lane::Events, b"trip".to_vec())]).expect("appended");
    let payload = vec![7_u8; 10_000];
    let mut losses = Vec::new();
    for _ in 0..100 {
        let records: Vec<_> = (0..10).map(|_| (Lane::Readings, payload.clone())).collect();
        journal.append(&records).expect("appended");
        losses.extend(journal.evict().expect("evicted"));
    }
    assert!(!losses.is_empty());
    let lost: u64 = losses.iter().map(|loss| loss.records.expect("counted")).sum();
    let left = read_all(&journal, Lane::Readings, losses.last().expect("one").last.0);
    assert_eq!(lost + left.len() as u64, 1000, "evicted and left make everything");
    assert!(losses.iter().all(|loss| loss.lane == Lane::Readings));
    assert_eq!(read_all(&journal, Lane::Events, 0).len(), 1);
    assert!(journal.bytes() <= 5 << 20, "{}", journal.bytes());
}

#[test]
fn a_damaged_segment_is_moved_aside_and_reported() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, _) = open(folder.path());
    journal.append(&readings(1..101)).expect("appended");
    let generation = journal.generation();
    drop(journal);
    let segment =
        folder.path().join("journal").join(digits(generation.0)).join("readings").join(digits(1));
    fs::write(segment.join("conf"), b"not a configuration").expect("damaged");

    let (mut journal, losses) = open(folder.path());
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!(losses[0].cause, LossCause::Damaged);
    assert!(losses[0].first <= Sequence(1) && losses[0].last >= Sequence(100), "{losses:?}");
    assert!(journal.next_sequence() > Sequence(100), "no sequence is used twice");
    assert_eq!(fs::read_dir(folder.path().join("quarantine")).expect("listed").count(), 1);
    journal.append(&readings(1..2)).expect("goes on");
}

#[test]
fn a_flipped_byte_never_comes_back_as_a_record() {
    let mut chunk = segment::Chunk::default();
    chunk.push(Sequence(1), b"first");
    assert!(chunk.len() > 5);
    let folder = tempfile::tempdir().expect("folder");
    let mut segment = Segment::new(folder.path().join("s"));
    segment.write(chunk, 1 << 20).expect("written");
    let database = segment.open(1 << 20).expect("open").clone();
    let (key, value) = database.first().expect("read").expect("one chunk");
    let mut value = value.to_vec();
    *value.last_mut().expect("bytes") ^= 1;
    database.insert(key, value).expect("written");
    let mut records = Vec::new();
    let result = segment.read(Sequence(0), Sequence(9), 10, 1 << 20, &mut records);
    assert!(result.is_err());
    assert!(records.is_empty());
}

#[test]
fn a_record_over_the_limit_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, _) = open(folder.path());
    let records =
        vec![(Lane::Readings, b"small".to_vec()), (Lane::Readings, vec![0; RECORD_BYTES_MAX + 1])];
    let error = journal.append(&records).expect_err("refused");
    assert_eq!(error.to_string(), "record of 122881 bytes, at most 122880 can be journalled");
    assert_eq!(journal.next_sequence(), Sequence(1));
    assert!(read_all(&journal, Lane::Readings, 0).is_empty());
}

#[test]
fn a_segment_that_cannot_be_opened_now_is_an_obstacle_and_not_a_loss() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, _) = open(folder.path());
    let payload = vec![7_u8; 10_000];
    for _ in 0..20 {
        let records: Vec<_> = (0..10).map(|_| (Lane::Readings, payload.clone())).collect();
        journal.append(&records).expect("appended");
    }
    let lane = folder.path().join("journal").join(digits(1_000_000)).join("readings");
    let oldest = lane.join(digits(numbered_folders(&lane).expect("listed")[0]));
    let through = Sequence(journal.next_sequence().0 - 1);

    let other = sled::open(&oldest).expect("opened by somebody else");
    let batch = journal.reader().read(Lane::Readings, Sequence(0), through, 10);
    assert!(batch.obstacle.is_some(), "{batch:?}");
    assert!(batch.records.is_empty() && batch.losses.is_empty(), "{batch:?}");

    drop(other);
    let batch = journal.reader().read(Lane::Readings, Sequence(0), through, 10);
    assert!(batch.obstacle.is_none(), "{batch:?}");
    assert_eq!(batch.records.first().map(|record| record.sequence), Some(Sequence(1)));
}
