//! Instances that join and leave under load, an instance that wakes after its partitions were given to another, a foreign
//! writer: every record is in the lake once, and the windows are those that a batch counts.
//!
//! `REBALANCE_ROUNDS` sets how many instances come or go, `REBALANCE_SEED` from which seed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, CloudAggregatorSettings};
use e2e_tests::eventually::eventually;
use e2e_tests::process::ChildProcess;
use e2e_tests::random::Random;

use crate::feeder::{Feeder, number};
use crate::plant::{DEADLINE, Plant, now};

const INSTANCES: usize = 3;
const ROUNDS: u64 = 10;
/// Partitions of the five topics that an aggregator reads.
const PARTITIONS: f64 = 21.0;

/// How the group works.
#[derive(Clone, Copy)]
struct Group {
    assignment: &'static str,
    has_static_members: bool,
}

const COOPERATIVE: Group = Group { assignment: "cooperative-sticky", has_static_members: false };

fn plant(name: &str) -> anyhow::Result<Plant> {
    let mut plant = Plant::new(name)?;
    let lateness = ("AGGREGATOR__COUNTING__ALLOWED_LATENESS".to_owned(), "0s".to_owned());
    plant.aggregator_settings.environment.push(lateness);
    Ok(plant)
}

/// Settings of one of several instances.
fn settings(plant: &Plant, group: Group, number: usize) -> CloudAggregatorSettings {
    let mut settings = plant.aggregator_settings.clone();
    let assignment = ("AGGREGATOR__KAFKA__ASSIGNMENT".to_owned(), group.assignment.to_owned());
    settings.environment.push(assignment);
    if group.has_static_members {
        settings.more = format!("[kafka.properties]\n\"group.instance.id\" = \"{number}\"\n");
    }
    settings
}

fn start(plant: &Plant, group: Group, number: usize) -> anyhow::Result<CloudAggregator> {
    let dir = plant.dir.join(format!("cloud-aggregator-{number}"));
    CloudAggregator::start(&dir, &settings(plant, group, number))
}

fn wait_for_partitions(
    what: &str,
    aggregator: &CloudAggregator,
    is_enough: impl Fn(f64) -> bool,
) -> anyhow::Result<()> {
    eventually(what, DEADLINE, || {
        let held = aggregator.metric("aggregator_partitions")?;
        ensure!(is_enough(held), "{held} partitions");
        Ok(())
    })
}

fn check_churn(name: &str, group: Group) -> anyhow::Result<()> {
    let rounds = number("REBALANCE_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("REBALANCE_SEED").unwrap_or_else(|| now().micros().cast_unsigned());
    eprintln!("{name}: REBALANCE_SEED={seed} REBALANCE_ROUNDS={rounds}");
    let plant = plant(name)?;
    let mut feeder = Feeder::new(&plant);
    let mut random = Random::new(seed);
    feeder.feed()?;
    let mut instances: Vec<Option<CloudAggregator>> = Vec::new();
    for number in 0..INSTANCES {
        instances.push(Some(start(&plant, group, number)?));
    }
    for _ in 0..rounds {
        feeder.feed()?;
        // The moment is what is tested.
        std::thread::sleep(Duration::from_millis(200 + random.below(2_500)));
        let chosen = random.below(INSTANCES as u64) as usize;
        match instances[chosen].take() {
            None => instances[chosen] = Some(start(&plant, group, chosen)?),
            Some(mut leaving) if random.below(2) == 0 => leaving.process().kill()?,
            Some(mut leaving) => {
                leaving.process().terminate()?;
                let status = leaving.process().wait(DEADLINE)?;
                ensure!(status.success(), "{status}:\n{}", leaving.process().tail());
            }
        }
    }
    for (number, instance) in instances.iter_mut().enumerate() {
        if instance.is_none() {
            *instance = Some(start(&plant, group, number)?);
        }
    }
    feeder.feed()?;
    feeder.check(&plant)?;
    for instance in instances.iter_mut().flatten() {
        ensure!(instance.process().is_running()?, "it ended:\n{}", instance.process().tail());
    }
    Ok(())
}

#[test]
fn instances_that_join_and_leave_write_each_row_once() -> anyhow::Result<()> {
    check_churn("churn-range", Group { assignment: "range", has_static_members: false })
}

#[test]
fn static_members_that_join_and_leave_write_each_row_once() -> anyhow::Result<()> {
    check_churn("churn-static", Group { assignment: "range", has_static_members: true })
}

#[test]
fn cooperative_members_that_join_and_leave_write_each_row_once() -> anyhow::Result<()> {
    check_churn("churn-coop", COOPERATIVE)
}

#[test]
fn static_cooperative_members_that_join_and_leave_write_each_row_once() -> anyhow::Result<()> {
    check_churn("churn-both", Group { has_static_members: true, ..COOPERATIVE })
}

/// A rebalance dropped the work of every member and had all of them start anew.
#[test]
fn partitions_that_stay_are_read_on_while_others_move() -> anyhow::Result<()> {
    let plant = plant("coop-stays")?;
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let first = start(&plant, COOPERATIVE, 0)?;
    wait_for_partitions("the first has all", &first, |held| held == PARTITIONS)?;
    feeder.feed()?;
    let before = first.metric("aggregator_assignments_total")?;
    let mut second = start(&plant, COOPERATIVE, 1)?;
    wait_for_partitions("the second has its share", &second, |held| held >= 10.0)?;
    wait_for_partitions("the first has kept its share", &first, |held| {
        (10.0..12.0).contains(&held)
    })?;
    feeder.feed()?;
    let joined = second.metric("aggregator_partitions")?;
    assert_eq!(first.metric("aggregator_assignments_total")?, before, "it did not start anew");
    second.process().terminate()?;
    second.process().wait(DEADLINE)?;
    wait_for_partitions("the first has all again", &first, |held| held == PARTITIONS)?;
    let after = first.metric("aggregator_assignments_total")?;
    assert_eq!(after, before + 1.0, "{joined} partitions came to those that it had");
    feeder.feed()?;
    feeder.check(&plant)?;
    for name in ["aggregator_lake_failures_total", "aggregator_lost_races_total"] {
        assert_eq!(first.metric(name)?, 0.0, "{name}: no commit was refused");
    }
    Ok(())
}

/// With nothing to write, it called the lake unwell until its next commit: it was not ready for as long.
/// It stands still in the middle of a commit, loses its partitions, and goes on with the commit when they are another's.
fn check_zombie(name: &str, group: Group, step: &str) -> anyhow::Result<()> {
    let plant = plant(name)?;
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let mut settings = settings(&plant, group, 0);
    settings.environment.push(("AGGREGATOR_FAULT".to_owned(), format!("{step}:2:stop")));
    let mut zombie = CloudAggregator::start(&plant.dir.join("zombie"), &settings)?;
    eventually("it stands still", DEADLINE, || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", zombie.process().id()))?;
        if status.lines().any(|line| line.starts_with("State:\tT")) {
            return Ok(());
        }
        feeder.feed()?;
        anyhow::bail!("{step} has not come a second time")
    })?;
    let heir = start(&plant, group, 1)?;
    wait_for_partitions("another has its partitions", &heir, |held| held == PARTITIONS)?;
    feeder.feed()?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
    zombie.process().signal("CONT")?;
    eventually("its commit is refused", DEADLINE, || {
        let refused = zombie.metric("aggregator_lost_races_total")?;
        ensure!(refused >= 1.0, "{refused} refused");
        Ok(())
    })?;
    zombie.wait_ready().context("it does not recover")?;
    wait_for_partitions("it has a share again", &zombie, |held| held > 0.0)?;
    feeder.feed()?;
    feeder.check(&plant)
}

#[test]
fn an_instance_that_wakes_before_its_commit_is_refused_and_recovers() -> anyhow::Result<()> {
    let eager = Group { assignment: "range", has_static_members: false };
    check_zombie("zombie-range", eager, "telemetry-written")
}

#[test]
fn a_cooperative_instance_that_wakes_before_its_commit_is_refused_and_recovers()
-> anyhow::Result<()> {
    check_zombie("zombie-coop", COOPERATIVE, "telemetry-written")
}

#[test]
fn an_instance_that_wakes_between_the_commits_of_an_epoch_is_refused_and_recovers()
-> anyhow::Result<()> {
    let eager = Group { assignment: "range", has_static_members: false };
    check_zombie("zombie-side", eager, "telemetry-committed")
}

/// A writer that is none of ours appends to our tables as fast as it can.
#[test]
fn a_second_writer_on_the_tables_costs_neither_rows_nor_commits() -> anyhow::Result<()> {
    const APPENDS: u64 = 100;
    let plant = plant("second-writer")?;
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let aggregator = plant.start_aggregator()?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
    let python = e2e_tests::setup_dir().join("venv/bin/python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lake_writer.py");
    let lake = plant.aggregator_settings.lake.display().to_string();
    let appends = APPENDS.to_string();
    let arguments = [&*script.display().to_string(), &lake, "telemetry", &appends];
    let mut writer = ChildProcess::start("lake-writer", &plant.dir, &python, &arguments, &[])?;
    while writer.is_running()? {
        feeder.feed()?;
    }
    ensure!(writer.wait(DEADLINE)?.success(), "{}", writer.tail());
    let foreign = "SELECT count(*) FROM telemetry WHERE source_topic = 'foreign'";
    assert_eq!(plant.lake().count(foreign)?, APPENDS);
    feeder.feed()?;
    feeder.check_beside(&plant, &[("telemetry", "source_topic <> 'foreign'")])?;
    for name in ["aggregator_lake_failures_total", "aggregator_lost_races_total"] {
        assert_eq!(aggregator.metric(name)?, 0.0, "{name}: appends of others are no conflicts");
    }
    let commits = plant.lake().protocols()?["telemetry"].version;
    eprintln!("{commits} commits, {APPENDS} of them foreign");
    Ok(())
}
