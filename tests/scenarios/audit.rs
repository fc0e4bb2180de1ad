//! `cloud-aggregator audit` says equal of a lake that is written by killed and restarted instances, and names what was tampered with.

use std::path::Path;

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::{Finished, program, run_command};
use e2e_tests::eventually::eventually;
use e2e_tests::publisher::reading_json;
use serde_json::Value;
use shared_proto::model::EventTime;

use crate::plant::{DEADLINE, Plant, kafka, now};

const MINUTE_MICROS: i64 = 60_000_000;
const MINUTES: i64 = 20;
const SENSORS: i64 = 9;

fn audit(plant: &Plant, more: &[&str]) -> anyhow::Result<Finished> {
    run_command(&plant.dir.join("cloud-aggregator"), &[&["audit"], more].concat())
}

/// Twenty minutes of nine sensors that cross midnight, a third of them hot; again some minutes of it that are late or repeats,
/// and some records that are none.
fn records() -> Vec<(String, Vec<u8>)> {
    let day = 24 * 60 * MINUTE_MICROS;
    let midnight = now().micros().div_euclid(day) * day;
    let start = midnight - MINUTES / 2 * MINUTE_MICROS;
    let mut records = Vec::new();
    let mut sequence = 0;
    let mut add = |sensor: i64, at: i64, value: f64, is_numbered: bool| {
        let name = format!("press-{}/oil", sensor % SENSORS);
        let machine = format!("press-{}", sensor % SENSORS);
        let text = reading_json(&machine, &name, "temperature", EventTime::from_micros(at), value);
        sequence += 1;
        let identity =
            format!(",\"device_id\":\"gw-{sensor}\",\"generation\":1,\"sequence\":{sequence}}}");
        let text =
            if is_numbered { text.trim_end_matches('}').to_owned() + &identity } else { text };
        records.push((name, text.clone().into_bytes()));
        if is_numbered && sequence % 10 == 0 {
            records.push((format!("press-{}/oil", sensor % SENSORS), text.into_bytes()));
        }
    };
    for minute in 0..MINUTES {
        for sensor in 0..SENSORS {
            for second in 0..10 {
                let at = start + minute * MINUTE_MICROS + second * 6_000_000;
                let value = if sensor % 3 == 0 { 96.0 } else { 70.0 } + second as f64;
                add(sensor, at, value, sensor % 2 == 0);
            }
            // Corrects a window that is closed; far behind, it is late.
            add(sensor, start + minute.saturating_sub(5) * MINUTE_MICROS, 130.0, false);
            if minute > 0 {
                add(sensor, start - 3 * day, 131.0, false);
            }
        }
    }
    records.push(("none".to_owned(), b"none".to_vec()));
    records
}

#[test]
fn audit_is_equal_beside_running_instances_that_were_killed_and_names_what_was_doubled()
-> anyhow::Result<()> {
    let mut plant = Plant::new("audit")?;
    plant.aggregator_settings.more = "[[rules]]\nname = \"hot\"\nfilter = \"metric_type = temperature and value > 100\"\nwindow = \"1m\"\n\
        threshold = \"count > 3\"\nseverity = 2\n\n[[rules]]\nname = \"warm\"\nfilter = \"value > 90\"\nwindow = \"5m\"\nslide = \"1m\"\n\
        threshold = \"mean > 99\"\nseverity = 2\n\n[[rules]]\nname = \"machine\"\nfilter = \"value > 100\"\nwindow = \"2m\"\nby = \"machine\"\n\
        threshold = \"max > 104\"\nseverity = 3\n"
        .to_owned();
    let mut aggregator = plant.start_aggregator()?;
    let records = records();
    let distinct: std::collections::BTreeSet<&Vec<u8>> =
        records.iter().map(|(_, text)| text).collect();
    for (round, part) in records.chunks(records.len() / 4 + 1).enumerate() {
        kafka()?.produce(&plant.topic("temperature"), part)?;
        if round % 2 == 1 {
            aggregator.process().kill()?;
            aggregator.restart()?;
        }
    }
    aggregator.wait_ready()?;
    let rows = "SELECT (SELECT count(*) FROM telemetry) + (SELECT count(*) FROM late_readings) + \
                (SELECT count(*) FROM dead_letters)";
    plant.wait_for_count(rows, u64::try_from(distinct.len())? - 100)?;
    eventually("all is read and equal", DEADLINE, || {
        let report = audit(&plant, &["--format", "json"])?;
        ensure!(report.code == Some(0), "{report:?}");
        let report: Value = serde_json::from_str(&report.output)?;
        ensure!(report["records_in"] == records.len(), "{report}");
        ensure!(report["differences"] == 0, "{report}");
        ensure!(report["anomalies"].as_u64() > Some(60), "{report}");
        ensure!(report["duplicates"].as_u64() > Some(0), "{report}");
        Ok(())
    })?;
    let text = audit(&plant, &[])?;
    ensure!(text.output.ends_with("equal\n"), "{text:?}");

    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    double_a_file(&plant.aggregator_settings.lake.join("telemetry"))?;
    let doubled = audit(&plant, &["--limit", "1000"])?;
    ensure!(doubled.code == Some(1), "{doubled:?}");
    ensure!(doubled.output.contains("have more than one row"), "{doubled:?}");
    ensure!(doubled.output.contains("matches from"), "{doubled:?}");
    Ok(())
}

/// Commits a copy of the newest data file once more.
fn double_a_file(table: &Path) -> anyhow::Result<()> {
    let log = table.join("_delta_log");
    let entries = std::fs::read_dir(&log)?.collect::<Result<Vec<_>, _>>()?;
    let mut versions: Vec<String> = entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.len() == 25 && name.ends_with(".json"))
        .collect();
    versions.sort();
    let last = versions.last().context("no commit")?;
    let number: u64 = last.trim_end_matches(".json").parse()?;
    for name in versions.iter().rev() {
        let text = std::fs::read_to_string(log.join(name))?;
        for line in text.lines() {
            let mut action: Value = serde_json::from_str(line)?;
            let Some(path) = action["add"]["path"].as_str().map(str::to_owned) else { continue };
            let is_hot = std::fs::metadata(table.join(&path))?.len() > 5_000;
            if !is_hot {
                continue;
            }
            let copy = path.replace(".parquet", "-copy.parquet");
            std::fs::copy(table.join(&path), table.join(&copy))?;
            action["add"]["path"] = copy.into();
            std::fs::write(log.join(format!("{:020}.json", number + 1)), format!("{action}\n"))?;
            return Ok(());
        }
    }
    anyhow::bail!("no data file")
}

#[test]
fn audit_is_equal_over_all_lives_of_a_topic_that_was_made_anew() -> anyhow::Result<()> {
    let mut plant = Plant::new("audit-anew")?;
    // A member that comes back gets its partitions at once.
    plant.aggregator_settings.more = "[[rules]]\nname = \"hot\"\nfilter = \"metric_type = temperature and value > 100\"\nwindow = \"1m\"\n\
        threshold = \"count > 3\"\nseverity = 2\n\n[kafka.properties]\n\"group.instance.id\" = \"one\"\n"
        .to_owned();
    let topic = plant.topic("temperature");
    let records = records();
    // Offsets of the first life end above those of the second.
    let (first, second) = records.split_at(records.len() / 3 * 2);
    kafka()?.produce(&topic, first)?;
    let mut aggregator = plant.start_aggregator()?;
    let is_equal = |read: usize| {
        eventually("all is read and equal", DEADLINE, || {
            let report = audit(&plant, &["--format", "json"])?;
            ensure!(report.code == Some(0), "{report:?}");
            let report: Value = serde_json::from_str(&report.output)?;
            ensure!(report["records_in"] == read, "{report}");
            Ok(report)
        })
    };
    let before = is_equal(first.len())?;
    ensure!(before["left_out"].as_object().is_some_and(|all| all.is_empty()), "{before}");
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    kafka()?.delete_topic(&topic)?;
    eventually("the topic is made anew", DEADLINE, || kafka()?.create_topics(&[&topic], 3))?;
    kafka()?.produce(&topic, second)?;
    aggregator.restart()?;
    aggregator.wait_ready()?;
    let report = is_equal(records.len())?;
    ensure!(report["left_out"].to_string().contains("made anew"), "{report}");
    // The windows of the first life are still compared.
    ensure!(report["windows_judged"].as_u64() > before["windows_judged"].as_u64(), "{report}");
    ensure!(report["anomalies"].as_u64() > before["anomalies"].as_u64(), "{report}");

    // What follows is not judged by its offsets, and still found.
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    double_a_file(&plant.aggregator_settings.lake.join("telemetry"))?;
    let doubled = audit(&plant, &["--limit", "1000"])?;
    ensure!(doubled.code == Some(1), "{doubled:?}");
    ensure!(doubled.output.contains("records have rows"), "{doubled:?}");
    Ok(())
}

/// A minute of temperatures of one sensor, every six seconds from `start` on, and a cold one five minutes later.
fn minute_of(start: i64, value: f64) -> Vec<(String, Vec<u8>)> {
    let record = |at: i64, value: f64| {
        let at = EventTime::from_micros(at);
        let text = reading_json("press-1", "press-1/oil", "temperature", at, value);
        ("press-1/oil".to_owned(), text.into_bytes())
    };
    let mut records: Vec<_> =
        (0..10).map(|part| record(start + part * MINUTE_MICROS / 10, value)).collect();
    records.push(record(start + 5 * MINUTE_MICROS, 20.0));
    records
}

#[test]
fn audit_is_equal_after_a_filter_has_changed_while_topics_are_quiet() -> anyhow::Result<()> {
    let mut plant = Plant::new("audit-filter")?;
    let rules = |filter: &str| {
        let by_sensor = format!(
            "[[rules]]\nname = \"hot\"\nfilter = \"{filter}\"\nwindow = \"1m\"\nthreshold = \"count > 5\"\nseverity = 2\n"
        );
        let by_machine = by_sensor.replace("\"hot\"", "\"machine\"\nby = \"machine\"");
        format!("{by_sensor}\n{by_machine}\n[kafka.properties]\n\"group.instance.id\" = \"one\"\n")
    };
    let is_equal = |plant: &Plant, read: usize, anomalies: u64| {
        eventually("all is read and equal", DEADLINE, || {
            let report = audit(plant, &["--format", "json"])?;
            ensure!(report.code == Some(0), "{report:?}");
            let report: Value = serde_json::from_str(&report.output)?;
            ensure!(report["records_in"] == read, "{report}");
            ensure!(report["anomalies"] == anomalies, "{report}");
            Ok(report)
        })
    };
    // No other topic ever has a record, and two of three partitions of this one neither.
    let topic = plant.topic("temperature");
    let start = (now().micros().div_euclid(MINUTE_MICROS) - 30) * MINUTE_MICROS;
    let (first, second) = (minute_of(start, 101.0), minute_of(start + 10 * MINUTE_MICROS, 95.0));
    plant.aggregator_settings.more = rules("value > 100");
    let mut aggregator = plant.start_aggregator()?;
    kafka()?.produce(&topic, &first)?;
    let before = is_equal(&plant, first.len(), 2)?;
    ensure!(before["windows_left_out"] == serde_json::json!({}), "{before}");
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;

    plant.aggregator_settings.more = rules("value > 90");
    let mut aggregator = plant.start_aggregator()?;
    kafka()?.produce(&topic, &second)?;
    let after = is_equal(&plant, first.len() + second.len(), 2)?;
    let left_out = serde_json::json!({
        "the window began before the rule, or before its last change": 2
    });
    ensure!(after["windows_left_out"] == left_out, "{after}");
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    a_damaged_commit_is_named(&plant)
}

fn a_damaged_commit_is_named(plant: &Plant) -> anyhow::Result<()> {
    let log = plant.aggregator_settings.lake.join("telemetry/_delta_log");
    let entries = std::fs::read_dir(&log)?.collect::<Result<Vec<_>, _>>()?;
    let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let last = names.filter(|name| name.len() == 25 && name.ends_with(".json")).max();
    let last = last.context("no commit")?;
    for damage in ["", "{\"add\":{\"path\":\"x"] {
        std::fs::write(log.join(&last), damage)?;
        let output = std::process::Command::new(program())
            .args(["audit", "--config"])
            .arg(plant.dir.join("cloud-aggregator/cloud-aggregator.toml"))
            .env("RUST_BACKTRACE", "1")
            .output()?;
        let errors = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(74), "{damage:?}: {:?} {errors}", output.status);
        ensure!(errors.contains(&last) && !errors.contains("  0: "), "{damage:?}: {errors}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_audited_says_why() -> anyhow::Result<()> {
    let mut plant = Plant::new("no-audit")?;
    let dir = plant.dir.join("cloud-aggregator");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("cloud-aggregator.toml"), plant.aggregator_settings.to_toml(1))?;
    let absent = audit(&plant, &[])?;
    ensure!(absent.code == Some(74) && absent.errors.contains("lake"), "{absent:?}");
    std::fs::create_dir_all(&plant.aggregator_settings.lake)?;
    let empty = audit(&plant, &[])?;
    ensure!(empty.code == Some(74) && empty.errors.contains("telemetry"), "{empty:?}");
    plant.aggregator_settings.lake = "/nonexistent\"\nkeeps-readings = false\nx = \"".into();
    let text = plant.aggregator_settings.to_toml(1).replace("x = \"\"", "");
    std::fs::write(dir.join("cloud-aggregator.toml"), text)?;
    let without = audit(&plant, &[])?;
    ensure!(without.code == Some(78) && without.errors.contains("keeps-readings"), "{without:?}");
    Ok(())
}
