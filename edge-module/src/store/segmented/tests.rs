use super::*;
use crate::store::tests::{SETTINGS, read_with_losses};

/// Under the writer nothing is moved: it has to leave the segment first. What the engine does not give any more still lies in
/// its file.
#[test]
fn what_the_engine_lost_of_the_segment_that_is_written_is_salvaged_when_the_writer_has_left_it() {
    let folder = tempfile::tempdir().expect("folder");
    let started = EventTime::from_micros(1_800_000_000_000_000);
    let mut journal = SegmentedJournal::open(folder.path(), SETTINGS, started).expect("opened");
    let append = |journal: &mut SegmentedJournal| {
        let group: Vec<Entry> = (0..10).map(|_| (Lane::Readings, vec![7; 100])).collect();
        journal.append(&group).expect("appended");
    };
    (0..5).for_each(|_| append(&mut journal));
    let active = journal.active.get(Lane::Readings).as_ref().expect("a segment");
    let lost = active.database.remove(21_u64.to_be_bytes()).expect("removed");
    assert!(lost.is_some(), "the chunk of 21 to 30");
    let read = journal.reader().read(Lane::Readings, Sequence(0), Sequence(50), 100);
    let obstacle = read.obstacle.expect("it waits for the writer");
    assert!(matches!(obstacle, JournalError::DamagedWhileWritten { .. }), "{obstacle}");
    assert_eq!((read.losses, journal.losses()), (Vec::new(), Vec::new()));
    append(&mut journal);
    journal.save().expect("the writer leaves it");
    append(&mut journal);
    let (found, losses) = read_with_losses(&journal, Lane::Readings, Sequence(0));
    assert_eq!(losses, []);
    let expected: Vec<Sequence> = (1..=70).map(Sequence).collect();
    assert_eq!(found.iter().map(|record| record.sequence).collect::<Vec<_>>(), expected);
}
