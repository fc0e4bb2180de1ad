//! SIGKILL at any moment under load: what was written is with the kernel, where the program stood is anywhere.

use std::time::{Duration, Instant};

use shared_proto::model::EventTime;

use crate::books::Books;
use crate::random::{Random, rounds, seed};
use crate::scratch;
use crate::writer::{Task, Told, Writer, either_segment_bytes};

const USUAL_ROUNDS: u64 = 50;
const LIFE_MICROS_MAX: u64 = 120_000;

#[test]
fn a_writer_killed_at_any_moment_has_lost_nothing_that_was_acknowledged() {
    let (rounds, seed) = (rounds(USUAL_ROUNDS), seed());
    let mut random = Random::new(seed);
    let mut books = Books::default();
    let folder = scratch::folder("kill");
    let started = Instant::now();
    let now = EventTime::from_micros(1_700_000_000_000_000);
    for round in 0..rounds {
        let task = Task {
            first_number: books.next_number(),
            seed: random.number(),
            steps: 0,
            now,
            segment_bytes: either_segment_bytes(&mut random),
        };
        let mut writer = Writer::start(folder.path(), task, &[]);
        // Some die while they open the journal, some while they work.
        if !random.is_one_in(8) {
            while let Some(told) = writer.next() {
                books.hear(told);
                if matches!(told, Told::Acknowledged { .. }) {
                    break;
                }
            }
        }
        std::thread::sleep(Duration::from_micros(random.of(0..LIFE_MICROS_MAX)));
        for told in writer.kill() {
            books.hear(told);
        }
        if let Err(fault) = books.check(folder.path(), now) {
            let kept = scratch::keep(folder.path(), "kill");
            panic!("JOURNAL_SEED={seed}, round {round}: {fault}; kept in {}", kept.display());
        }
    }
    eprintln!(
        "{rounds} kills, {} records acknowledged, {:.1} s, JOURNAL_SEED={seed}",
        books.acknowledged(),
        started.elapsed().as_secs_f64()
    );
    assert!(books.acknowledged() > rounds, "the writers hardly wrote: {}", books.acknowledged());
}
