//! Starts the Spark job on this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use e2e_tests::process::ChildProcess;
use e2e_tests::{setup_dir, workspace_root};

use super::{local_dir, text};
use crate::plant::Plant;

/// The job does not do what a person has to change first.
pub(super) const REFUSED: i32 = 78;
/// A run over a few batches, beside other scenarios.
const DRAIN_DEADLINE: Duration = Duration::from_secs(600);
/// More than one batch, so that state goes from one to the next.
const BATCH_RECORDS: &str = "400";

/// One run to its end.
#[derive(Debug, Default)]
pub(super) struct Drain<'a> {
    /// Table after whose rows it is killed.
    pub(super) fault: Option<&'a str>,
    /// Exit code that is expected, where it is not success.
    pub(super) code: Option<i32>,
}

/// The job of one lake and one checkpoint.
#[derive(Debug)]
pub(super) struct SparkJob {
    dir: PathBuf,
    local: String,
    lake: PathBuf,
    checkpoint: PathBuf,
}

impl SparkJob {
    pub(super) fn new(plant: &Plant, lake: &Path, checkpoint: &str) -> Self {
        Self {
            dir: plant.dir.clone(),
            local: local_dir(plant),
            lake: lake.to_owned(),
            checkpoint: plant.dir.join(checkpoint),
        }
    }

    pub(super) fn checkpoint(&self) -> &Path {
        &self.checkpoint
    }

    /// Reads what is there. Gives what it said.
    pub(super) fn drain(&self, how: &Drain<'_>) -> anyhow::Result<String> {
        let fault: Vec<(&str, &str)> =
            how.fault.map(|table| ("LAKE_PIPELINE_FAULT", table)).into_iter().collect();
        let before = self.said().len();
        let mut job = self.start(&["--trigger", "available-now"], &fault)?;
        let status = job.wait(DRAIN_DEADLINE)?;
        match (how.fault, how.code) {
            (Some(table), _) => {
                ensure!(
                    status.code().is_none(),
                    "not killed after {table}: {status}: {}",
                    job.tail()
                );
            }
            (None, code) => {
                let expected = code.unwrap_or(0);
                ensure!(status.code() == Some(expected), "{status}: {}", job.tail());
            }
        }
        Ok(self.said()[before..].to_owned())
    }

    /// Starts a stream at these offsets.
    pub(super) fn stream(&self, offsets: &Path) -> anyhow::Result<ChildProcess> {
        let offsets = text(offsets);
        self.start(&["--trigger", "processing-time 1s", "--starting-offsets", &offsets], &[])
    }

    /// Starts the query that gives single readings, record by record.
    pub(super) fn matches(&self, to: &str) -> anyhow::Result<ChildProcess> {
        self.launch("matches", &["--to", to, "--trigger", "real-time 5s"], &[])
    }

    fn start(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<ChildProcess> {
        self.launch("run", &[&["--batch-records", BATCH_RECORDS], arguments].concat(), environment)
    }

    fn launch(
        &self,
        command: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<ChildProcess> {
        let (lake, checkpoint) = (text(&self.lake), text(&self.checkpoint));
        let config = text(&self.dir.join("cloud-aggregator/cloud-aggregator.toml"));
        let contract = text(&workspace_root().join("cloud-aggregator/contract/lake.odcs.json"));
        let script = text(&workspace_root().join("tests/spark/lake_pipeline_job.py"));
        let jars = text(&setup_dir().join("spark-jars"));
        let given = [
            &[&*script, &*jars, &*self.local, command, "--config", &*config],
            &["--contract", &*contract, "--lake", &*lake, "--checkpoint", &*checkpoint][..],
            arguments,
        ];
        let program = setup_dir().join("spark/bin/python");
        ChildProcess::start("lake-pipeline", &self.dir, &program, &given.concat(), environment)
    }

    fn said(&self) -> String {
        let file = self.dir.join("lake-pipeline.err");
        std::fs::read(file)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}
