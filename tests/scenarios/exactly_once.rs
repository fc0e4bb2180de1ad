//! The aggregator killed at each step of an epoch, and again and again at random: every record is in the lake once, and the
//! windows are those that a batch counts.
//!
//! `KILL_ROUNDS` sets how many random kills, `KILL_SEED` from which seed.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use anyhow::bail;
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::random::Random;

use crate::feeder::{Feeder, number};
use crate::plant::{DEADLINE, Plant, now};

/// Where `AGGREGATOR_FAULT` can end the process, in the order of an epoch.
const STEPS: [&str; 7] = [
    "state-written",
    "telemetry-written",
    "telemetry-committed",
    "anomalies",
    "late_readings",
    "machine_events",
    "dead_letters",
];
const SIGABRT: i32 = 6;
const ROUNDS: u64 = 100;

/// A plant whose aggregator is let into its group at once when it comes back, and whose windows close without delay.
pub(crate) fn plant(name: &str) -> anyhow::Result<Plant> {
    let mut plant = Plant::new(name)?;
    let settings = &mut plant.aggregator_settings;
    settings.more = "[kafka.properties]\n\"group.instance.id\" = \"one\"\n".to_owned();
    let lateness = ("AGGREGATOR__COUNTING__ALLOWED_LATENESS".to_owned(), "0s".to_owned());
    settings.environment.push(lateness);
    Ok(plant)
}

#[test]
fn an_aggregator_that_dies_at_any_step_of_an_epoch_writes_each_row_once() -> anyhow::Result<()> {
    let mut plant = plant("fault-steps")?;
    let environment = plant.aggregator_settings.environment.clone();
    let mut feeder = Feeder::new(&plant);
    for step in STEPS {
        for passage in 1..=2 {
            let fault = ("AGGREGATOR_FAULT".to_owned(), format!("{step}:{passage}"));
            plant.aggregator_settings.environment = [environment.clone(), vec![fault]].concat();
            let dir = plant.dir.join("cloud-aggregator");
            let mut aggregator = CloudAggregator::start(&dir, &plant.aggregator_settings)?;
            eventually("it dies of its fault", DEADLINE, || {
                if !aggregator.process().is_running()? {
                    return Ok(());
                }
                feeder.feed()?;
                bail!("{step}:{passage} has not come")
            })?;
            let status = aggregator.process().wait(DEADLINE)?;
            assert_eq!(status.signal(), Some(SIGABRT), "{step}:{passage} ends with {status}");
        }
    }
    plant.aggregator_settings.environment = environment;
    let _aggregator = plant.start_aggregator()?;
    feeder.check(&plant)
}

/// Kills it again and again while records come, of each other round somewhere in the start.
pub(crate) fn kill_at_random(
    aggregator: &mut CloudAggregator,
    feeder: &mut Feeder,
    random: &mut Random,
    rounds: u64,
) -> anyhow::Result<()> {
    for round in 0..rounds {
        feeder.feed()?;
        // The moment is what is tested: of each other round somewhere in the start, else while records flow, however slow the machine is.
        if round % 2 == 0 {
            aggregator.wait_ready()?;
        }
        std::thread::sleep(Duration::from_millis(random.below(900)));
        aggregator.process().kill()?;
        aggregator.restart()?;
    }
    Ok(())
}

#[test]
fn an_aggregator_killed_at_random_moments_writes_each_row_once() -> anyhow::Result<()> {
    let rounds = number("KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("KILL_SEED").unwrap_or_else(|| now().micros().cast_unsigned());
    eprintln!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let plant = plant("killed-at-random")?;
    let mut feeder = Feeder::new(&plant);
    let mut random = Random::new(seed);
    feeder.feed()?;
    let mut aggregator = plant.start_aggregator()?;
    kill_at_random(&mut aggregator, &mut feeder, &mut random, rounds)?;
    aggregator.wait_ready()?;
    let commits = plant.lake().protocols()?["telemetry"].version;
    assert!(commits >= rounds / 10, "{commits} commits in {rounds} rounds: it hardly worked");
    feeder.check(&plant)
}
