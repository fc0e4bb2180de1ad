//! One sensor's rows and one person's name are taken out of the lake beside a running aggregator, and nothing of them is left in any
//! file; the rest stays as it was, and the audit knows a request from a loss.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::run_command;
use e2e_tests::eventually::eventually;
use e2e_tests::kafka::produce;

use crate::exactly_once::plant;
use crate::feeder::Feeder;
use crate::plant::{DEADLINE, Plant, now};

/// Hot once every three sensors, so it has windows, too.
const SENSOR: &str = "press-3/oil";
const PERSON: &str = "Imke Sonder";
const EXIT_USAGE: i32 = 64;
/// Every table that can hold a row of a sensor.
const TABLES: [&str; 4] = ["telemetry", "late_readings", "anomalies", "dead_letters"];

fn outcome(name: &str, reporter: &str, note: &str) -> String {
    format!(
        "{{\"outcome_id\":\"{name}\",\"verdict\":\"confirmed\",\"machine_id\":\"press-1\",\"timestamp\":\"{}\",\
         \"reported_by\":\"{reporter}\",\"note\":\"{note}\"}}",
        now()
    )
}

/// What people found at two machines, one of them by a person who wants to be forgotten.
fn report_outcomes(plant: &Plant) -> anyhow::Result<()> {
    let records = [
        outcome("ticket-1", PERSON, &format!("bearing replaced, ask {PERSON}")),
        outcome("ticket-2", "Ole", "nothing found"),
        // No outcome: its bytes are a dead letter.
        format!("{{\"outcome_id\":\"ticket-3\",\"reported_by\":\"{PERSON}\"}}"),
    ];
    send_outcomes(plant, records)
}

fn send_outcomes<const N: usize>(plant: &Plant, records: [String; N]) -> anyhow::Result<()> {
    let records = records.map(|text| ("press-1".to_owned(), text.into_bytes()));
    produce(&plant.aggregator_settings.kafka_bootstrap, &plant.topic("outcomes"), &records)
}

/// Files below a folder that hold these bytes as they are.
fn files_with(folder: &Path, text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = match std::fs::read(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn forget(dir: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let finished = run_command(dir, &[&["lake", "forget"], arguments].concat())?;
    ensure!(finished.code == Some(0), "{arguments:?}: {finished:?}");
    Ok(finished.output)
}

#[test]
fn a_sensor_and_a_person_are_forgotten_beside_a_running_aggregator() -> anyhow::Result<()> {
    let mut plant = plant("lake-forget")?;
    let grace = ("AGGREGATOR__LAKE__STATE_GRACE".to_owned(), "1s".to_owned());
    plant.aggregator_settings.environment.push(grace);
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    report_outcomes(&plant)?;
    let aggregator = plant.start_aggregator()?;
    for _ in 0..4 {
        feeder.feed()?;
    }
    let lake = plant.lake();
    let of_outcomes = ("outcomes", "SELECT count(*) FROM outcomes");
    eventually("the outcomes are in the lake", DEADLINE, || {
        ensure!(lake.count(of_outcomes.1)? == 2);
        Ok(())
    })?;
    let is_of_readings = [("dead_letters", "source_topic LIKE '%temperature%'")];
    feeder.check_beside(&plant, &is_of_readings)?;
    let dir = plant.dir.join("cloud-aggregator");
    let rows = |table: &str, condition: &str| {
        lake.count(&format!("SELECT count(*) FROM {table} WHERE {condition}"))
    };
    let of_sensor = format!("sensor_id = '{SENSOR}'");
    let before = rows("telemetry", "true")?;
    let gone = rows("telemetry", &of_sensor)?;
    ensure!(gone > 0 && rows("anomalies", &of_sensor)? > 0, "{gone} rows of the sensor");

    let refused = run_command(&dir, &["lake", "forget", "--sensor", SENSOR])?;
    ensure!(refused.code == Some(EXIT_USAGE), "{refused:?}");
    let counted = forget(&dir, &["--sensor", SENSOR, "--dry-run"])?;
    ensure!(counted.contains(&format!("telemetry: {gone} rows would be deleted")), "{counted}");
    ensure!(rows("telemetry", &of_sensor)? == gone, "counting has deleted");

    let said = forget(&dir, &["--sensor", SENSOR, "--yes"])?;
    ensure!(said.contains(&format!("telemetry: {gone} rows deleted")), "{said}");
    for table in ["telemetry", "late_readings", "anomalies"] {
        ensure!(rows(table, &of_sensor)? == 0, "{table} has rows of {SENSOR}");
    }
    ensure!(rows("telemetry", "true")? == before - gone, "other rows are missing, too");
    let said = forget(&dir, &["--person", PERSON, "--yes", "--now"])?;
    ensure!(said.contains("outcomes: 0 rows deleted, 1 rows changed"), "{said}");
    let kept = lake.query("SELECT reported_by, note, verdict FROM outcomes ORDER BY outcome_id")?;
    ensure!(kept[0]["reported_by"].is_null() && kept[0]["verdict"] == "confirmed", "{kept:?}");
    ensure!(kept[0]["note"] == "bearing replaced, ask (forgotten)", "{kept:?}");
    ensure!(kept[1]["reported_by"] == "Ole", "{kept:?}");
    ensure!(rows("dead_letters", "source_topic LIKE '%outcomes%'")? == 0, "the letter is there");

    check_that_nothing_is_left(&plant, &dir, &of_sensor)?;
    // It went on all the time, and what comes later is stored.
    let failures = aggregator.metric("aggregator_lake_failures_total")?;
    ensure!(failures == 0.0, "{failures} epochs failed");
    feeder.feed()?;
    eventually("new rows come", DEADLINE, || {
        ensure!(
            rows("telemetry", &of_sensor)?
                == gone / feeder.minutes.cast_unsigned().saturating_sub(1)
        );
        Ok(())
    })?;
    let audit = run_command(&dir, &["audit"])?;
    ensure!(audit.code == Some(0), "{audit:?}");
    ensure!(audit.output.contains("forgotten on request"), "{}", audit.output);
    Ok(())
}

/// Not in any Parquet file that exists, nor as text in a log, a state or a book.
fn check_that_nothing_is_left(plant: &Plant, dir: &Path, of_sensor: &str) -> anyhow::Result<()> {
    let lake = &plant.aggregator_settings.lake;
    // Commits that are younger than a minute stay for the aggregator to read: what has the names was written before.
    eventually("old files and commits are gone", 2 * DEADLINE, || {
        forget(dir, &["--sensor", SENSOR, "--yes", "--now"])?;
        for table in TABLES {
            let files = lake.join(table).join("**/*.parquet");
            let files = files.to_str().context("a path that is text")?;
            let (column, condition) = match table {
                "dead_letters" => ("raw", format!("contains(raw::VARCHAR, '\"{SENSOR}\"')")),
                _ => ("sensor_id", of_sensor.to_owned()),
            };
            let left = plant.lake().count(&format!(
                "SELECT count({column}) FROM read_parquet('{files}', union_by_name = true) WHERE {condition}"
            ))?;
            ensure!(left == 0, "{left} rows in files of {table}");
            let log = lake.join(table).join("_delta_log");
            let named = files_with(&log, SENSOR)?;
            ensure!(named.is_empty(), "{named:?}");
        }
        Ok(())
    })?;
    // State files are the aggregator's own: they keep an epoch's rows for as long as one of its partitions stands there.
    let tables =
        ["telemetry", "outcomes", "machine_events", "alerts", "dead_letters", "_forgotten"];
    for name in [SENSOR, PERSON] {
        let named = files_with(&lake.join("_forgotten"), name)?;
        ensure!(named.is_empty(), "{named:?}");
    }
    for table in tables {
        let named = files_with(&lake.join(table), PERSON)?;
        ensure!(named.is_empty(), "{named:?}");
    }
    Ok(())
}
