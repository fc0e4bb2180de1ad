//! A lake in a folder whose disk is full, read only, or fails in the middle of an epoch: the aggregator says so and waits, and
//! every record is there once when the disk works again.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;

use crate::disk::{FaultyDisk, Word};
use crate::exactly_once;
use crate::feeder::{Feeder, number};
use crate::plant::{DEADLINE, Plant};

/// So many of the first calls of an epoch fail, each once; `DISK_ROUNDS` sets another number.
const CALLS_OF_EPOCH: u64 = 10;
const MICRO_BATCH: &str = "AGGREGATOR__TRIGGER__PROCESSING_TIME";
const CONTINUOUS: &str = "AGGREGATOR__TRIGGER__CONTINUOUS";
/// Windows over the limit in each minute of the feeder: of every third of twelve sensors.
const ALERTS_OF_MINUTE: i64 = 4;
const LETTERS_OF_MINUTE: i64 = 12;

struct FaultyLake {
    plant: Plant,
    feeder: Feeder,
    disk: FaultyDisk,
    aggregator: CloudAggregator,
}

impl FaultyLake {
    fn start(name: &str, trigger: &str) -> anyhow::Result<Self> {
        let mut plant = exactly_once::plant(name)?;
        std::fs::create_dir_all(&plant.aggregator_settings.lake)?;
        let lake = plant.aggregator_settings.lake.canonicalize()?;
        let disk = FaultyDisk::new(&plant.dir, &lake, None)?;
        plant.aggregator_settings.lake = lake;
        let environment = &mut plant.aggregator_settings.environment;
        environment.extend_from_slice(disk.environment());
        for (variable, value) in [
            (trigger, "100ms"),
            ("AGGREGATOR__LAKE__RETRY_MIN", "50ms"),
            ("AGGREGATOR__LAKE__RETRY_MAX", "500ms"),
        ] {
            environment.push((variable.to_owned(), value.to_owned()));
        }
        let mut feeder = Feeder::new(&plant);
        feeder.feed()?;
        let aggregator = plant.start_aggregator()?;
        feeder.check(&plant)?;
        Ok(Self { plant, feeder, disk, aggregator })
    }

    /// Feeds until the disk has failed a call since it had failed `before`.
    fn wait_for_failure(&mut self, before: u64) -> anyhow::Result<()> {
        eventually("a call fails", DEADLINE, || {
            self.feeder.feed()?;
            let failed = self.disk.get(Word::FailedCalls)?;
            ensure!(failed > before, "{failed} calls have failed");
            Ok(())
        })
    }

    fn wait_until_ready(&self) -> anyhow::Result<()> {
        eventually("it is ready again", DEADLINE, || {
            let (status, page) = self.aggregator.get("/readyz")?;
            ensure!(status == 200, "{status}: {page}");
            Ok(())
        })
    }
}

#[test]
fn rows_wait_while_the_disk_is_full_or_read_only_and_come_once() -> anyhow::Result<()> {
    let mut lake = FaultyLake::start("lake-disk", MICRO_BATCH)?;
    for (word, words) in
        [(Word::QuotaBytes, "No space left on device"), (Word::ReadOnly, "Read-only file system")]
    {
        let failed = lake.disk.get(Word::FailedCalls)?;
        lake.disk.set(word, 1)?;
        lake.wait_for_failure(failed)?;
        let page = eventually("it says what is wrong", DEADLINE, || {
            let (status, page) = lake.aggregator.get("/readyz")?;
            ensure!(status == 503 && page.contains(words), "{status}: {page}");
            Ok(page)
        })?;
        let folder = lake.plant.aggregator_settings.lake.to_str().context("the path is UTF-8")?;
        ensure!(page.contains(folder), "which folder: {page}");
        lake.disk.set(word, 0)?;
        lake.wait_until_ready()?;
        lake.feeder.check(&lake.plant)?;
    }
    Ok(())
}

/// How often the webhook got each alert.
fn posts(plant: &Plant) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut posts = BTreeMap::new();
    for body in plant.webhook.bodies() {
        let body: serde_json::Value = serde_json::from_str(&body)?;
        let id = body["id"].as_str().context("an alert without id")?;
        *posts.entry(id.to_owned()).or_default() += 1;
    }
    Ok(posts)
}

#[test]
fn alerts_leave_at_once_and_only_once_while_the_lake_takes_no_rows() -> anyhow::Result<()> {
    let mut lake = FaultyLake::start("lake-disk-alerts", CONTINUOUS)?;
    let failed = lake.disk.get(Word::FailedCalls)?;
    lake.disk.set(Word::QuotaBytes, 1)?;
    lake.wait_for_failure(failed)?;
    eventually("all alerts have left, and the epoch was tried again and again", DEADLINE, || {
        let attempts = lake.aggregator.metric("aggregator_lake_failures_total")?;
        let alerts = i64::try_from(posts(&lake.plant)?.len())?;
        let due = lake.feeder.minutes * ALERTS_OF_MINUTE;
        ensure!(attempts >= 6.0 && alerts == due, "{attempts} attempts, {alerts} of {due} alerts");
        Ok(())
    })?;
    lake.disk.set(Word::QuotaBytes, 0)?;
    lake.wait_until_ready()?;
    lake.feeder.feed()?;
    lake.feeder.check(&lake.plant)?;
    let minutes = lake.feeder.minutes;
    eventually("all is delivered and counted", DEADLINE, || {
        let metrics = lake.aggregator.metrics()?;
        let pending = metric(&metrics, "aggregator_alerts_pending", "");
        let alerts = metric(&metrics, "aggregator_alerts_total", "");
        let letters = metric(&metrics, "aggregator_dead_letters_total", "json");
        let due = (minutes * ALERTS_OF_MINUTE) as f64;
        ensure!(pending == Some(0.0) && alerts == Some(due), "{pending:?} {alerts:?} of {due}");
        let due = (minutes * LETTERS_OF_MINUTE) as f64;
        ensure!(letters == Some(due), "{letters:?} of {due} dead letters");
        Ok(())
    })?;
    let posts = posts(&lake.plant)?;
    assert_eq!(i64::try_from(posts.len())?, minutes * ALERTS_OF_MINUTE);
    let repeated: Vec<_> = posts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(repeated.is_empty(), "sent more than once: {repeated:?}");
    Ok(())
}

#[test]
fn a_call_that_fails_at_any_place_of_an_epoch_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let mut lake = FaultyLake::start("lake-disk-calls", MICRO_BATCH)?;
    for word in [Word::WriteFails, Word::SyncFails] {
        for after in 0..number("DISK_ROUNDS").unwrap_or(CALLS_OF_EPOCH) {
            let failed = lake.disk.get(Word::FailedCalls)?;
            lake.disk.set(Word::FailsAfter, after)?;
            lake.disk.set(word, 1)?;
            lake.wait_for_failure(failed)?;
            lake.disk.set(word, 0)?;
        }
    }
    lake.wait_until_ready()?;
    lake.feeder.check(&lake.plant)?;
    let failures = lake.aggregator.metric("aggregator_lake_failures_total")?;
    eprintln!("{} calls have failed, {failures} epochs", lake.disk.get(Word::FailedCalls)?);
    ensure!(failures >= 1.0, "no epoch has failed");
    Ok(())
}
