//! Somebody else writes to the raw table, with a library that is not ours: appends, compaction, other table properties, log
//! checkpoints. Every record of ours is there once, and so is every row of theirs.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e_tests::{setup_dir, workspace_root};
use serde_json::Value;

use crate::exactly_once;
use crate::feeder::Feeder;

const LOAD: Duration = Duration::from_secs(15);
const PER_STEP_MIN: u64 = 3;

#[test]
fn each_row_is_there_once_beside_appends_compaction_and_properties_of_others() -> anyhow::Result<()>
{
    let mut plant = exactly_once::plant("foreign-writer")?;
    let environment = &mut plant.aggregator_settings.environment;
    environment.push(("AGGREGATOR__TRIGGER__PROCESSING_TIME".to_owned(), "100ms".to_owned()));
    // Files are merged by one or the other, see the known limits.
    environment.push(("AGGREGATOR__MAINTENANCE__ENABLED".to_owned(), "false".to_owned()));
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let aggregator = plant.start_aggregator()?;
    feeder.check(&plant)?;
    let mut writer = Command::new(setup_dir().join("writer-venv/bin/python"))
        .arg(workspace_root().join("tests/src/delta_writer.py"))
        .arg(&plant.aggregator_settings.lake)
        .arg("telemetry")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("the writer cannot be started: deployment-manifests/local/setup test")?;
    let began = Instant::now();
    while began.elapsed() < LOAD {
        feeder.feed()?;
    }
    writer.stdin.take().context("its input is open")?.flush()?;
    let output = writer.wait_with_output()?;
    ensure!(output.status.success(), "the writer: {}", output.status);
    let counts: Value = serde_json::from_slice(&output.stdout)?;
    for step in ["appends", "compactions", "z_orders", "properties", "checkpoints"] {
        ensure!(counts[step].as_u64() >= Some(PER_STEP_MIN), "{step}: {counts}");
    }
    feeder.check_beside(&plant, &[("telemetry", "source_topic <> 'foreign'")])?;
    for number in ["count(*)", "count(DISTINCT source_offset)"] {
        let sql = format!("SELECT {number} FROM telemetry WHERE source_topic = 'foreign'");
        let theirs = plant.lake().count(&sql)?;
        ensure!(Some(theirs) == counts["appends"].as_u64(), "{number} = {theirs}: {counts}");
    }
    for (table, protocol) in plant.lake().protocols()? {
        ensure!((protocol.reader, protocol.writer) == (1, 2), "{table}: {protocol:?}");
    }
    let failures = aggregator.metric("aggregator_lake_failures_total")?;
    eprintln!("{counts} beside {} minutes of records, {failures} epochs failed", feeder.minutes);
    Ok(())
}
