//! A lake that is moved from a folder to Azure's storage and back while records flow: the copy is killed in the middle, whoever writes the
//! old place is refused, and each row is there once at the end.
//!
//! The storage is Azurite behind a proxy that keeps one answer back, so that the copy is killed while it waits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e_tests::azurite::Azurite;
use e2e_tests::cloud_aggregator::{
    CloudAggregator, CloudAggregatorSettings, Finished, program, run_command,
};
use e2e_tests::eventually::eventually;
use e2e_tests::http_proxy::{FaultRule, HttpFault, HttpProxy};
use e2e_tests::process::ChildProcess;

use crate::exactly_once;
use crate::feeder::Feeder;
use crate::plant::{DEADLINE, Plant};

const AZURE: &str = "az://lake/plant";
const EXIT_CONFIG: i32 = 78;
/// Below the time after which the client library gives a request up.
const STALL: Duration = Duration::from_secs(15);
const CONFIG: &str = "cloud-aggregator.toml";

/// A plant whose lake can be in a folder or in a container.
struct Places {
    plant: Plant,
    proxy: HttpProxy,
    azurite: Azurite,
}

impl Places {
    fn new(name: &str) -> anyhow::Result<Self> {
        let mut plant = exactly_once::plant(name)?;
        let azurite = Azurite::start(&plant.dir.join("azurite"))?;
        let proxy = HttpProxy::start(azurite.port())?;
        let storage = format!("http://127.0.0.1:{}", proxy.port());
        let variable = ("AZURITE_BLOB_STORAGE_URL".to_owned(), storage);
        plant.aggregator_settings.environment.push(variable);
        let places = Self { plant, proxy, azurite };
        places.reader_of(AZURE).create_container()?;
        Ok(places)
    }

    /// Settings for the lake at another place; the same group.
    fn settings(&self, lake: &str) -> CloudAggregatorSettings {
        let mut settings = self.plant.aggregator_settings.clone();
        settings.lake = lake.into();
        if lake == AZURE {
            settings.more += "[lake.storage-options]\nazure_storage_use_emulator = \"true\"\n\
                              azure_storage_account_name = \"devstoreaccount1\"\n";
        }
        settings
    }

    /// Writes the settings of a place. Gives the folder that they are in.
    fn write_settings(&self, name: &str, lake: &str) -> anyhow::Result<PathBuf> {
        let dir = self.plant.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(CONFIG), self.settings(lake).to_toml(1))?;
        Ok(dir)
    }

    fn reader_of(&self, lake: &str) -> e2e_tests::lake::LakeReader {
        match lake == AZURE {
            true => {
                let url = format!("{}/lake/plant", self.azurite.url());
                e2e_tests::lake::LakeReader::new(url.as_ref())
            }
            false => e2e_tests::lake::LakeReader::new(lake.as_ref()),
        }
    }

    /// Has the plant's checks read that place.
    fn read_from(&mut self, lake: &str) {
        self.plant.lake_url = (lake == AZURE).then(|| format!("{}/lake/plant", self.azurite.url()));
        self.plant.aggregator_settings.lake = lake.into();
    }

    fn start(&self, dir: &Path, lake: &str) -> anyhow::Result<CloudAggregator> {
        CloudAggregator::start(dir, &self.settings(lake))
    }

    fn arguments(from: &Path, to: &Path, more: &[&str]) -> Vec<String> {
        let (from, to) = (from.join(CONFIG), to.join(CONFIG));
        let (from, to) = (from.display().to_string(), to.display().to_string());
        let arguments = ["lake", "copy", "--config", &from, "--to-config", &to];
        arguments.iter().chain(more).map(ToString::to_string).collect()
    }

    fn copy(&self, from: &Path, to: &Path, more: &[&str]) -> anyhow::Result<Finished> {
        let output = std::process::Command::new(program())
            .args(Self::arguments(from, to, more))
            .envs(self.plant.aggregator_settings.environment.iter().cloned())
            .output()?;
        Ok(Finished {
            code: output.status.code(),
            output: String::from_utf8(output.stdout)?,
            errors: String::from_utf8(output.stderr)?,
        })
    }

    /// A copy that is killed while the storage has not answered for one data file: the log that names it cannot be there.
    fn copy_killed_in_the_middle(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        self.proxy.fail(FaultRule {
            method: "PUT",
            path: "/telemetry/date=".to_owned(),
            passing: 2,
            failing: 1,
            fault: HttpFault::Slow(STALL),
        });
        let arguments = Self::arguments(from, to, &[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let environment = &self.plant.aggregator_settings.environment;
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut copy = ChildProcess::start(
            "lake-copy",
            &self.plant.dir,
            &program(),
            &arguments,
            &environment,
        )?;
        eventually("the copy waits for the storage", DEADLINE, || {
            ensure!(!self.proxy.failed().is_empty(), "no request was kept back");
            Ok(())
        })?;
        ensure!(copy.is_running()?, "the copy has ended: {}", copy.tail());
        copy.kill()
    }
}

fn ends_with_78(aggregator: &mut CloudAggregator, text: &str) -> anyhow::Result<()> {
    let ended = aggregator.process().wait(2 * DEADLINE)?;
    let tail = aggregator.process().tail();
    ensure!(ended.code() == Some(EXIT_CONFIG), "it ended with {ended}: {tail}");
    ensure!(tail.contains(text), "nothing of {text}: {tail}");
    Ok(())
}

fn moved(finished: &Finished) -> anyhow::Result<()> {
    ensure!(finished.code == Some(0), "{finished:?}");
    ensure!(finished.output.contains("was moved to"), "{finished:?}");
    Ok(())
}

fn rows(places: &Places, lake: &str) -> anyhow::Result<u64> {
    places.reader_of(lake).count("SELECT count(*) FROM telemetry")
}

#[test]
fn a_lake_moves_to_another_storage_and_back_while_records_flow() -> anyhow::Result<()> {
    let mut places = Places::new("lake-copy")?;
    let folder = places.plant.aggregator_settings.lake.display().to_string();
    let old = places.write_settings("cloud-aggregator", &folder)?;
    let new = places.write_settings("at-azure", AZURE)?;
    let mut feeder = Feeder::new(&places.plant);
    feeder.feed()?;
    let mut aggregator = places.plant.start_aggregator()?;
    for _ in 0..3 {
        feeder.feed()?;
    }
    feeder.check(&places.plant)?;

    places.copy_killed_in_the_middle(&old, &new)?;
    let mut early = places.start(&new, AZURE)?;
    ends_with_78(&mut early, "not finished")?;
    // Passes beside the aggregator; each has only what is new to do.
    for _ in 0..2 {
        feeder.feed()?;
        let passed = places.copy(&old, &new, &[])?;
        ensure!(passed.code == Some(0), "{passed:?}");
    }
    let copied = rows(&places, AZURE)?;
    ensure!(copied > 0, "no reader finds a row in the copy");

    // The aggregator is not even stopped: the mark does that.
    feeder.feed()?;
    moved(&places.copy(&old, &new, &["--final"])?)?;
    feeder.feed()?;
    ends_with_78(&mut aggregator, AZURE)?;
    aggregator.restart()?;
    ends_with_78(&mut aggregator, AZURE)?;
    ensure!(rows(&places, &folder)? == rows(&places, AZURE)?, "one of them has more rows");

    let mut aggregator = places.start(&new, AZURE)?;
    aggregator.wait_ready()?;
    feeder.feed()?;
    places.read_from(AZURE);
    feeder.check(&places.plant)?;
    let late = places.copy(&old, &new, &["--reopen"])?;
    ensure!(late.code == Some(EXIT_CONFIG) && late.errors.contains("gone on"), "{late:?}");

    back_into_a_folder(&mut places, &mut feeder, &new, aggregator)
}

fn back_into_a_folder(
    places: &mut Places,
    feeder: &mut Feeder,
    from: &Path,
    mut aggregator: CloudAggregator,
) -> anyhow::Result<()> {
    let folder = places.plant.dir.join("lake-again").display().to_string();
    let last = places.write_settings("in-a-folder-again", &folder)?;
    feeder.feed()?;
    let passed = places.copy(from, &last, &[])?;
    ensure!(passed.code == Some(0), "{passed:?}");
    aggregator.process().terminate()?;
    let ended = aggregator.process().wait(DEADLINE)?;
    ensure!(ended.success(), "it ended with {ended}");
    moved(&places.copy(from, &last, &["--final"])?)?;
    // What nobody has written there yet can be taken back, and moved once more to an empty place.
    let reopened = places.copy(from, &last, &["--reopen"])?;
    ensure!(reopened.code == Some(0), "{reopened:?}");
    let mut refused = places.start(&last, &folder)?;
    ends_with_78(&mut refused, AZURE)?;
    std::fs::remove_dir_all(&folder)?;
    moved(&places.copy(from, &last, &["--final"])?)?;

    let mut aggregator = places.start(&last, &folder)?;
    aggregator.wait_ready()?;
    feeder.feed()?;
    places.read_from(&folder);
    feeder.check(&places.plant)?;
    let audit = run_command(&last, &["audit"])?;
    ensure!(audit.code == Some(0), "{audit:?}");
    audit.output.ends_with("equal\n").then_some(()).context(audit.output)
}
