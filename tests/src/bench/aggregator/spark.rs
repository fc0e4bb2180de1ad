//! The same topics read by a Spark job with the same rule (`tests/spark/windows.py`), right after ours, and the ratios.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::World;
use super::drain::{Figures, Work, check_windows};
use super::input::Input;
use super::table::{Row, Table};
use crate::bench::figures::{megabytes, say};
use crate::lake::LakeReader;
use crate::process::ChildProcess;

const PATIENCE: Duration = Duration::from_secs(590);

/// What the job says of itself.
#[derive(Debug, Deserialize)]
struct Answer {
    version: String,
    rows: u64,
    /// From the start of its queries to the end of the batch with the last row.
    seconds: f64,
    /// User and system time of its JVM, and the most memory that it held.
    cpu_seconds: f64,
    peak_bytes: u64,
    /// From the start of the process to the first commit.
    first_commit_seconds: f64,
}

/// Runs the job and prints its figures and ours.
pub(super) fn measure(
    world: &World,
    table: &mut Table,
    input: &Input,
    work: Work,
    ours: &Figures,
) -> anyhow::Result<()> {
    let (name, what, queries) = match work {
        Work::Windows => ("spark-windows", "windows only", "anomaly"),
        Work::WindowsAndReadings => ("spark-raw", "windows and raw table", "anomaly,raw"),
    };
    let dir = world.folder(name);
    let lake = dir.join("lake");
    let setup = crate::setup_dir();
    let python = setup.join("spark/bin/python");
    ensure!(python.exists(), "{}: run deployment-manifests/local/setup spark", python.display());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("spark/windows.py");
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
    let records = input.workload.records.to_string();
    let (script, jars, folder) = (text(&script)?, text(&setup.join("spark-jars"))?, text(&lake)?);
    let bootstrap = world.kafka.bootstrap();
    let arguments = [
        script.as_str(),
        "--bootstrap",
        &bootstrap,
        "--jars",
        &jars,
        "--dir",
        &folder,
        "--queries",
        queries,
        "--records",
        &records,
    ];
    let mut job = ChildProcess::start(name, &dir, &python, &arguments, &[])?;
    let status = job.wait(PATIENCE)?;
    ensure!(status.success(), "{status}:\n{}", job.tail());
    let answer = job.stdout().lines().last().map(serde_json::from_str::<Answer>);
    let answer = answer.context("the job says nothing")??;
    say(&format!("    {name}: {answer:?}"));
    ensure!(answer.rows >= input.workload.records, "it read {} rows", answer.rows);
    check_windows(
        &LakeReader::new(&lake),
        input,
        "SELECT sensor_id, epoch_us(\"window\".start) AS window_start, \"count\" AS matches FROM anomaly ORDER BY ALL",
    )?;
    std::fs::remove_dir_all(&lake)?;
    let records = input.workload.records as f64;
    let (cpu, rate) = (answer.cpu_seconds * 1e6 / records, records / answer.seconds);
    table.add(Row {
        what: format!("{what}, Spark {} on the same topics", answer.version),
        measured: format!(
            "{cpu:.2} CPU-s a million (ours {:.2}: {:.1} times less), {rate:.0} records/s (ours {:.0}: {:.1} times more), \
             memory {} (ours {}), start → first commit {:.1} s (ours {:.2} s)",
            ours.cpu,
            cpu / ours.cpu,
            ours.rate,
            ours.rate / rate,
            megabytes(answer.peak_bytes),
            megabytes(ours.peak),
            answer.first_commit_seconds,
            ours.first_commit
        ),
        goal: None,
        peak: Some(answer.peak_bytes),
    });
    Ok(())
}
