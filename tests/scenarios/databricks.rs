//! The Spark job of deployment-manifests/cloud/databricks beside the aggregator: the same topics give the same tables, a killed job writes
//! nothing twice, and a lake goes over to it and back. Its bundle is as Databricks takes it and names what there is.
//!
//! Spark is 500 MB and takes minutes: those that need it run where `SPARK` is set (`make spark`). The checks of the bundle always run.

mod job;
mod records;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, run_command};
use e2e_tests::eventually::eventually;
use e2e_tests::lake::LakeReader;
use e2e_tests::publisher::reading_json;
use e2e_tests::{setup_dir, workspace_root};
use rdkafka::Message as _;
use serde_json::{Value, json};

use crate::databricks::job::{Drain, REFUSED, SparkJob};
use crate::databricks::records::Records;
use crate::feeder::Feeder;
use crate::plant::{DEADLINE, Plant, kafka, now};

/// Between readings that are sent until one is noticed.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether Spark is there and wanted.
fn is_spark_wanted() -> bool {
    let is_wanted = std::env::var_os("SPARK").is_some();
    if !is_wanted {
        eprintln!("left out: `make spark` sets SPARK");
    }
    is_wanted
}

/// Runs a checker of `tests/spark` to its end and gives what it printed.
fn check(arguments: &[&str]) -> anyhow::Result<String> {
    let python = setup_dir().join("manifests-venv/bin/python");
    let output = Command::new(&python)
        .arg("-B")
        .arg(workspace_root().join("tests/spark/check_bundle.py"))
        .arg(workspace_root())
        .args(arguments)
        .output()
        .with_context(|| {
            format!("{}: deployment-manifests/local/setup test makes it", python.display())
        })?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}{errors}", output.status);
    Ok(said)
}

#[test]
fn bundle_is_as_databricks_takes_it_and_names_what_there_is() -> anyhow::Result<()> {
    let said = check(&[])?;
    ensure!(said.contains("4 jobs"), "{said}");
    Ok(())
}

#[test]
fn check_of_the_bundle_notices_every_change_that_breaks_it() -> anyhow::Result<()> {
    let said = check(&["--mutations"])?;
    ensure!(said.contains("changes are noticed"), "{said}");
    Ok(())
}

/// What must be the same in both lakes, as queries. Left out is what tells when something was seen and in which words.
fn queries() -> Vec<(&'static str, String)> {
    let rows = |columns: &str, table: &str| {
        format!(
            "SELECT {columns} FROM {table} ORDER BY source_topic, source_partition, source_offset"
        )
    };
    let seen = "* EXCLUDE (received_at)";
    let letters = "reason, source, device_id, generation, sequence, hex(raw) AS raw, raw_length, content_type, source_topic, \
                   source_partition, source_offset";
    vec![
        ("readings", rows("*", "telemetry")),
        ("late readings", rows(seen, "late_readings")),
        ("machine events", rows(seen, "machine_events")),
        ("outcomes", rows(seen, "outcomes")),
        (
            "waveforms",
            rows("* EXCLUDE (received_at, samples), hex(samples) AS samples", "waveforms"),
        ),
        ("dead letters", rows(letters, "dead_letters")),
        (
            "windows",
            "SELECT rule, sensor_id, machine_id, window_start, window_end, is_anomaly, count, max_value, min_value, \
             round(mean_value, 9) AS mean, round(rate_of_change, 9) AS rate, first_match, last_match FROM anomalies \
             QUALIFY row_number() OVER (PARTITION BY rule, sensor_id, machine_id, window_start ORDER BY revision DESC) = 1 \
             ORDER BY ALL"
                .to_owned(),
        ),
    ]
}

/// Says what the first difference is.
fn compare(ours: &LakeReader, spark: &LakeReader) -> anyhow::Result<String> {
    let mut said = Vec::new();
    for (what, sql) in queries() {
        let (expected, found) = (ours.query(&sql)?, spark.query(&sql)?);
        let differs = expected.iter().zip(&found).find(|(ours, spark)| ours != spark);
        if let Some((ours, spark)) = differs {
            anyhow::bail!("{what}: the aggregator has\n{ours}\nand Spark\n{spark}");
        }
        ensure!(
            expected.len() == found.len(),
            "{what}: {} of the aggregator, {} of Spark; the first beyond: {:?}",
            expected.len(),
            found.len(),
            expected.get(found.len()).or_else(|| found.get(expected.len()))
        );
        ensure!(!found.is_empty(), "there are no {what} to compare");
        said.push(format!("{what} {}", found.len()));
    }
    Ok(said.join(", "))
}

/// An aggregator reads what is there and ends.
fn drain(plant: &Plant) -> anyhow::Result<()> {
    let mut settings = plant.aggregator_settings.clone();
    settings.environment.push(("AGGREGATOR__TRIGGER__AVAILABLE_NOW".to_owned(), "true".to_owned()));
    let mut aggregator = CloudAggregator::start(&plant.dir.join("cloud-aggregator"), &settings)?;
    let status = aggregator.process().wait(DEADLINE)?;
    ensure!(
        status.success(),
        "the aggregator ended with {status}: {}",
        aggregator.process().tail()
    );
    Ok(())
}

#[test]
fn spark_job_that_is_killed_makes_the_lake_that_the_aggregator_makes() -> anyhow::Result<()> {
    if !is_spark_wanted() {
        return Ok(());
    }
    let mut plant = Plant::new("databricks")?;
    plant.aggregator_settings.more = records::RULES.to_owned();
    let records = Records::new(&plant);
    records.send()?;
    drain(&plant)?;
    records.close_windows()?;
    drain(&plant)?;
    let lake = plant.dir.join("lake-of-spark");
    let job = SparkJob::new(&plant, &lake, "checkpoint");
    // After each of these is written, before the next: the batch runs again and must not write it twice.
    for fault in ["telemetry", "dead_letters", "anomalies", "_spark_sensors"] {
        job.drain(&Drain { fault: Some(fault), ..Drain::default() })?;
    }
    job.drain(&Drain::default())?;
    let said = compare(&plant.lake(), &LakeReader::new(&lake))?;
    for (table, protocol) in LakeReader::new(&lake).protocols()? {
        ensure!((protocol.reader, protocol.writer) == (1, 2), "{table}: {protocol:?}");
    }
    eprintln!("both lakes have {said}");
    Ok(())
}

/// Runs a command of `lake` to its end, and gives what it printed.
fn lake_command(plant: &Plant, arguments: &[&str]) -> anyhow::Result<String> {
    let dir = plant.dir.join("cloud-aggregator");
    let finished = run_command(&dir, &[&["lake"], arguments].concat())?;
    ensure!(finished.code == Some(0), "{arguments:?}: {finished:?}");
    Ok(finished.output)
}

/// Waits until the tables hold so many readings. Spark takes its time to start.
fn readings(plant: &Plant, at_least: u64) -> anyhow::Result<()> {
    let lake = plant.lake();
    eventually("the readings are in the lake", 5 * DEADLINE, || {
        let rows = lake.count("SELECT count(*) FROM telemetry")?;
        ensure!(rows >= at_least, "{rows} of {at_least}");
        Ok(())
    })
}

#[test]
fn lake_goes_to_the_spark_job_and_back_while_records_come() -> anyhow::Result<()> {
    if !is_spark_wanted() {
        return Ok(());
    }
    let plant = Plant::new("databricks-hand-over")?;
    let lake = plant.aggregator_settings.lake.clone();
    let mut feeder = Feeder::new(&plant);
    let mut aggregator = plant.start_aggregator()?;
    feeder.feed()?;
    readings(&plant, feeder.readings)?;
    feeder.feed()?;
    let first = SparkJob::new(&plant, &lake, "checkpoint-1");
    let refused = first.drain(&Drain { code: Some(REFUSED), ..Drain::default() })?;
    ensure!(refused.contains("belongs to the cloud aggregator"), "{refused}");

    let offsets = lake_command(&plant, &["offsets", "--hand-over", "--format", "spark"])?;
    let file = plant.dir.join("offsets.json");
    std::fs::write(&file, &offsets)?;
    feeder.feed()?;
    let status = aggregator.process().wait(DEADLINE)?;
    ensure!(status.code() == Some(REFUSED), "an aggregator whose lake went away: {status}");
    let mut stream = first.stream(&file)?;
    readings(&plant, feeder.readings)?;
    feeder.feed()?;
    // In the middle of whatever it does.
    stream.kill()?;
    feeder.feed()?;
    first.drain(&Drain::default())?;
    readings(&plant, feeder.readings)?;

    feeder.feed()?;
    let checkpoint = first.checkpoint().display().to_string();
    lake_command(&plant, &["take-over", "--checkpoint", &checkpoint])?;
    let refused = first.drain(&Drain { code: Some(REFUSED), ..Drain::default() })?;
    ensure!(refused.contains("belongs to the cloud aggregator"), "{refused}");
    aggregator.restart()?;
    aggregator.wait_ready()?;
    feeder.feed()?;
    feeder.check(&plant)?;
    check_owner_of_windows(&plant)
}

#[test]
fn readings_that_match_a_rule_leave_record_by_record() -> anyhow::Result<()> {
    if !is_spark_wanted() {
        return Ok(());
    }
    let plant = Plant::new("databricks-matches")?;
    let dir = plant.dir.join("cloud-aggregator");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("cloud-aggregator.toml"), plant.aggregator_settings.to_toml(1))?;
    let to = plant.topic("matches");
    kafka()?.create_topics(&[&to], 1)?;
    let tail = kafka()?.tail(&to)?;
    let mut job = SparkJob::new(&plant, &plant.dir.join("lake"), "matches").matches(&to)?;
    let send = |value: f64| {
        let reading = reading_json("press-1", "press-1/oil", "temperature", now(), value);
        kafka()?.produce(&plant.topic("temperature"), &[("oil".to_owned(), reading.into_bytes())])
    };
    // A real-time query begins with what comes once it runs: again and again until it does.
    eventually("a first match comes", 5 * DEADLINE, || {
        send(101.5)?;
        let found = tail.next(PAUSE)?;
        found.map(drop).with_context(|| format!("no match came: {}", job.tail()))
    })?;
    for hot in [102.5, 103.5] {
        send(20.0)?;
        let sent = Instant::now();
        send(hot)?;
        let match_ = loop {
            let found = tail.next(DEADLINE)?;
            let found = found.with_context(|| format!("no match came: {}", job.tail()))?;
            let match_: Value = serde_json::from_slice(found.payload().context("a payload")?)?;
            if match_["value"] != json!(101.5) {
                break match_;
            }
        };
        ensure!(match_["value"] == json!(hot), "{match_}");
        ensure!(match_["rules"] == json!(["temperature-above-100"]), "{match_}");
        eprintln!("a match after {:?}", sent.elapsed());
    }
    job.kill()
}

/// Each revision of a window is there once, from 1, whoever has written it.
fn check_owner_of_windows(plant: &Plant) -> anyhow::Result<()> {
    let holes = "SELECT rule, sensor_id, window_start FROM anomalies GROUP BY ALL \
                 HAVING count(*) <> max(revision) OR count(DISTINCT revision) <> max(revision)";
    let holes = plant.lake().query(holes)?;
    ensure!(holes.is_empty(), "revisions are missing or doubled: {holes:?}");
    Ok(())
}

/// A folder for what Spark puts aside.
fn local_dir(plant: &Plant) -> String {
    plant.dir.join("spark").display().to_string()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
