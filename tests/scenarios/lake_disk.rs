//! A lake in a folder whose disk is full, read only, or fails in the middle of an epoch: the aggregator says so and waits, and
//! every record is there once when the disk works again.

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;

use crate::disk::{FaultyDisk, Word};
use crate::exactly_once;
use crate::feeder::{Feeder, number};
use crate::plant::{DEADLINE, Plant};

/// So many of the first calls of an epoch fail, each once; `DISK_ROUNDS` sets another number.
const CALLS_OF_EPOCH: u64 = 10;

struct FaultyLake {
    plant: Plant,
    feeder: Feeder,
    disk: FaultyDisk,
    aggregator: CloudAggregator,
}

impl FaultyLake {
    fn start(name: &str) -> anyhow::Result<Self> {
        let mut plant = exactly_once::plant(name)?;
        std::fs::create_dir_all(&plant.aggregator_settings.lake)?;
        let lake = plant.aggregator_settings.lake.canonicalize()?;
        let disk = FaultyDisk::new(&plant.dir, &lake, None)?;
        plant.aggregator_settings.lake = lake;
        let environment = &mut plant.aggregator_settings.environment;
        environment.extend_from_slice(disk.environment());
        for (variable, value) in [
            ("AGGREGATOR__TRIGGER__PROCESSING_TIME", "100ms"),
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
    let mut lake = FaultyLake::start("lake-disk")?;
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

#[test]
fn a_call_that_fails_at_any_place_of_an_epoch_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let mut lake = FaultyLake::start("lake-disk-calls")?;
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
