//! Both cores in one process, with a simulated clock, network, disk and Kafka, all from one seed.
//!
//! ```text
//! sensors -> deadband -> journal -> outbox x3 -> network -> Kafka partitions -> aggregator core x2 -> lake
//!              crash: what was not synced is gone   cuts, lost           crash after any step of an epoch,
//!              disk lost: a new generation          acknowledgements     rebalance, an owner that does not know
//! ```
//!
//! At the end all trouble ends, everything arrives, and the oracle sorts everything and counts.
//! `SIMULATION_ROUNDS` runs so many seeds, `SIMULATION_SEED` starts with another than 0 (and runs that one
//! alone unless told otherwise). A failure names its seed; the same seed is the same run.
//!
//! Not simulated: a crash between the fsync of the journal and the acknowledgement to the local broker, which
//! makes one measurement two records.

mod broker;
mod cloud;
mod edge;
mod oracle;
mod random;
mod world;

use std::time::Instant;

use oracle::Seen;
use world::World;

const ROUNDS: u64 = 240;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Says which seed it was if the run panics.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation failed: run it again with SIMULATION_SEED={}", self.0);
        }
    }
}

fn run(seed: u64, start: Instant) -> Seen {
    let _named = SeedOnPanic(seed);
    oracle::check(&World::run(seed, start))
}

#[test]
fn every_record_is_counted_once_whatever_breaks() {
    let start = Instant::now();
    let first = number_from("SIMULATION_SEED");
    let rounds =
        number_from("SIMULATION_ROUNDS").unwrap_or(if first.is_some() { 1 } else { ROUNDS });
    let first = first.unwrap_or(0);
    let mut seen = Seen::new();
    for round in 0..rounds {
        for (what, count) in run(first.wrapping_add(round), start) {
            *seen.entry(what).or_default() += count;
        }
    }
    eprintln!("seeds {first} and on, {rounds} rounds in {:?}: {seen:#?}", start.elapsed());
    let never: Vec<_> = seen.iter().filter(|(_, count)| **count == 0).collect();
    assert!(rounds < ROUNDS || never.is_empty(), "never happened: {never:?}");
}

#[test]
fn same_seed_is_the_same_run() {
    let start = Instant::now();
    let picture = |world: &World| format!("{:?} {:?}", world.lake, world.broker);
    for seed in [1, 2] {
        let (first, second) = (World::run(seed, start), World::run(seed, start));
        assert!(picture(&first) == picture(&second), "seed {seed} gave two different runs");
    }
}
