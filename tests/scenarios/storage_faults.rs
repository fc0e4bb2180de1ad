//! A storage that loses requests and answers, refuses and stalls in the middle of a commit: every record is in the lake
//! once. The storage is Azurite behind a proxy that fails chosen requests.

use std::time::Duration;

use anyhow::ensure;
use e2e_tests::azurite::Azurite;
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::http_proxy::{FaultRule, HttpFault, HttpProxy};

use crate::feeder::Feeder;
use crate::plant::{DEADLINE, Plant};

/// Above `lake.operation-timeout` of the scenario.
const STALL: Duration = Duration::from_secs(8);
/// More than the client library tries again within that time.
const OUTAGE: u32 = 12;

/// The writes of an epoch, in their order.
pub(crate) const WRITES: [&str; 4] =
    ["/_state/", "/telemetry/date=", "/telemetry/_delta_log/", "/anomalies/_delta_log/"];

/// An aggregator whose lake is a container of Azurite.
struct Storage {
    plant: Plant,
    feeder: Feeder,
    proxy: HttpProxy,
    aggregator: CloudAggregator,
    _azurite: Azurite,
}

impl Storage {
    fn start(name: &str) -> anyhow::Result<Self> {
        let mut plant = Plant::new(name)?;
        let azurite = Azurite::start(&plant.dir.join("azurite"))?;
        let proxy = HttpProxy::start(azurite.port())?;
        plant.lake_url = Some(format!("{}/lake/plant", azurite.url()));
        plant.lake().create_container()?;
        let settings = &mut plant.aggregator_settings;
        settings.lake = "az://lake/plant".into();
        settings.more = "[lake.storage-options]\nazure_storage_use_emulator = \"true\"\n\
                         azure_storage_account_name = \"devstoreaccount1\"\n\
                         [kafka.properties]\n\"group.instance.id\" = \"one\"\n"
            .to_owned();
        let storage = format!("http://127.0.0.1:{}", proxy.port());
        for (variable, value) in [
            ("AZURITE_BLOB_STORAGE_URL", storage.as_str()),
            ("AGGREGATOR__COUNTING__ALLOWED_LATENESS", "0s"),
            ("AGGREGATOR__LAKE__OPERATION_TIMEOUT", "6s"),
            ("AGGREGATOR__LAKE__RETRY_MAX", "1s"),
        ] {
            settings.environment.push((variable.to_owned(), value.to_owned()));
        }
        let feeder = Feeder::new(&plant);
        let aggregator = plant.start_aggregator()?;
        Ok(Self { plant, feeder, proxy, aggregator, _azurite: azurite })
    }

    /// Lets writes fail under load until they have.
    fn fail(&mut self, path: &str, fault: HttpFault, failing: u32) -> anyhow::Result<()> {
        let before = self.proxy.failed().len();
        let path = path.to_owned();
        self.proxy.fail(FaultRule {
            method: "PUT",
            path: path.clone(),
            passing: 0,
            failing,
            fault,
        });
        eventually("the writes have failed", DEADLINE, || {
            self.feeder.feed()?;
            let failed = self.proxy.failed().len() - before;
            // The client library gives up before the end of an outage, and begins it anew.
            ensure!(failed >= failing as usize, "{failed} of {failing} at {path}: {fault:?}");
            Ok(())
        })
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.feeder.feed()?;
        self.feeder.check(&self.plant)?;
        self.aggregator.wait_ready()?;
        let count = |name: &str| self.aggregator.metric(name);
        let failures = count("aggregator_lake_failures_total")?;
        let races = count("aggregator_lost_races_total")?;
        let commits = self.plant.lake().protocols()?["telemetry"].version;
        eprintln!(
            "{} faults, {failures} epochs failed, {races} were void, {commits} commits",
            self.proxy.failed().len()
        );
        Ok(())
    }
}

#[test]
fn a_lost_answer_after_a_write_that_was_carried_out_doubles_nothing() -> anyhow::Result<()> {
    let mut storage = Storage::start("answer-lost")?;
    for path in WRITES {
        for failing in [1, 2] {
            storage.fail(path, HttpFault::AnswerLost, failing)?;
        }
    }
    storage.check()
}

#[test]
fn a_storage_that_stalls_in_the_middle_of_a_commit_loses_and_doubles_nothing() -> anyhow::Result<()>
{
    let mut storage = Storage::start("storage-stalls")?;
    for path in WRITES {
        storage.fail(path, HttpFault::Slow(STALL), 1)?;
        // With it what the client library tries again.
        storage.fail(path, HttpFault::Late(STALL), OUTAGE / 2)?;
    }
    storage.check()
}

#[test]
fn a_storage_that_refuses_or_loses_writes_for_a_while_loses_and_doubles_nothing()
-> anyhow::Result<()> {
    let mut storage = Storage::start("storage-refuses")?;
    for path in WRITES {
        storage.fail(path, HttpFault::Status(503), OUTAGE)?;
        storage.fail(path, HttpFault::Lost, 3)?;
        storage.fail(path, HttpFault::Status(403), 1)?;
    }
    storage.check()
}
