//! Rules, triggers and output modes of the aggregator, as people who know Spark Structured Streaming expect them, and where it differs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, program, run_command};
use e2e_tests::eventually::eventually;
use e2e_tests::process::ChildProcess;
use e2e_tests::publisher::reading_json;
use shared_proto::model::EventTime;

use crate::plant::{DEADLINE, Plant, kafka, now};

const SECOND: i64 = 1_000_000;

/// A minute that ended two minutes ago.
fn past_minute() -> EventTime {
    EventTime::from_micros((now().micros().div_euclid(60 * SECOND) - 3) * 60 * SECOND)
}

/// Temperatures of one sensor, one a second from `start` on.
fn produce(plant: &Plant, sensor: &str, start: EventTime, values: &[f64]) -> anyhow::Result<()> {
    let records: Vec<(String, Vec<u8>)> = (0..)
        .zip(values)
        .map(|(second, value)| {
            let at = start.saturating_add_micros(second * SECOND);
            let json = reading_json("press-1", sensor, "temperature", at, *value);
            (sensor.to_owned(), json.into_bytes())
        })
        .collect();
    kafka()?.produce(&plant.topic("temperature"), &records)
}

fn stop(aggregator: &mut CloudAggregator) -> anyhow::Result<()> {
    aggregator.process().terminate()?;
    let status = aggregator.process().wait(DEADLINE)?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn alert_ids(plant: &Plant) -> anyhow::Result<Vec<String>> {
    let alerts = kafka()?.read_json(&plant.topic("alerts"))?;
    alerts
        .iter()
        .map(|alert| Ok(alert["id"].as_str().context("an alert has an id")?.to_owned()))
        .collect()
}

fn rule(more: &str) -> String {
    format!("[[rules]]\nname = \"hot\"\nwindow = \"1m\"\nseverity = 2\n{more}\n")
}

#[test]
fn continuous_alerts_leave_before_their_epoch_and_a_crash_repeats_them_under_the_same_id()
-> anyhow::Result<()> {
    let mut plant = Plant::new("continuous")?;
    // Longer than the test waits for the alert: what is committed meanwhile came from the trigger.
    let length = ("AGGREGATOR__TRIGGER__CONTINUOUS".to_owned(), "20s".to_owned());
    plant.aggregator_settings.environment.push(length);
    plant.aggregator_settings.more =
        "[kafka.properties]\n\"group.instance.id\" = \"one\"\n".to_owned();
    let mut aggregator = plant.start_aggregator()?;
    // The first epoch says where the partitions begin.
    plant.wait_for_count("SELECT count(*) FROM telemetry", 0)?;
    let began = Instant::now();
    produce(&plant, "press-1/oil", past_minute(), &[101.0; 6])?;
    eventually("the alert is there", DEADLINE, || {
        ensure!(!alert_ids(&plant)?.is_empty(), "no alert yet");
        Ok(())
    })?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(15), "the alert took {took:?}, as long as an epoch");
    ensure!(
        plant.lake().count("SELECT count(*) FROM telemetry")? == 0,
        "the epoch was committed before its alert"
    );
    aggregator.process().kill()?;
    aggregator.restart()?;
    aggregator.wait_ready()?;
    eventually("the alert is sent again", DEADLINE, || {
        ensure!(alert_ids(&plant)?.len() >= 2, "once so far");
        Ok(())
    })?;
    let ids: BTreeSet<String> = alert_ids(&plant)?.into_iter().collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    stop(&mut aggregator)?;
    plant.check_each_reading_once("press-1/%", 6)
}

#[test]
fn update_mode_writes_open_windows_at_each_trigger_and_ends_as_the_batch_counts()
-> anyhow::Result<()> {
    let mut plant = Plant::new("update-mode")?;
    plant.aggregator_settings.more = rule(
        "filter = \"metric_type = temperature and value > 100\"\nthreshold = \"count > 5\"\noutput-mode = \"update\"",
    );
    let _aggregator = plant.start_aggregator()?;
    let minute = past_minute();
    produce(&plant, "press-1/oil", minute, &[101.0; 7])?;
    let open = "SELECT count(*) FROM anomalies WHERE closed_by = 'open' AND is_anomaly";
    plant.wait_for_count(open, 1)?;
    let later = minute.saturating_add_micros(20 * SECOND);
    produce(&plant, "press-1/oil", later, &[102.0; 3])?;
    // The sensor falls silent: the last row is that of the closed window.
    plant.wait_for_count("SELECT count(*) FROM anomalies WHERE closed_by = 'idle'", 1)?;
    assert_eq!(plant.streamed_windows()?, plant.lake().batch_windows("temperature", 100.0, 5)?);
    let revisions = plant.lake().query(
        "SELECT count(*) AS total, max(revision) AS highest, count(DISTINCT revision) AS different FROM anomalies",
    )?;
    let row = revisions.first().context("one row")?;
    assert_eq!((&row["total"], &row["total"]), (&row["highest"], &row["different"]), "{row}");
    Ok(())
}

#[test]
fn complete_mode_keeps_a_table_of_all_windows_and_nothing_else() -> anyhow::Result<()> {
    let mut plant = Plant::new("complete-mode")?;
    plant.aggregator_settings.more = rule(
        "filter = \"metric_type = temperature and value > 100\"\nthreshold = \"count > 5\"\noutput-mode = \"complete\"",
    );
    let mut aggregator = plant.start_aggregator()?;
    let minute = past_minute();
    produce(&plant, "press-1/oil", minute, &[101.0; 7])?;
    produce(&plant, "press-2/oil", minute, &[101.0; 2])?;
    let held = "SELECT sensor_id, count, is_anomaly FROM current_windows ORDER BY ALL";
    let wait_for = |expected: &[(&str, u64, bool)]| {
        eventually("current_windows holds both windows", DEADLINE, || {
            let rows = plant.lake().query(held)?;
            let found: Vec<_> = rows
                .iter()
                .map(|row| {
                    (row["sensor_id"].as_str(), row["count"].as_u64(), row["is_anomaly"].as_bool())
                })
                .collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|(sensor, count, is_anomaly)| (Some(*sensor), Some(*count), Some(*is_anomaly)))
                .collect();
            ensure!(found == expected, "{found:?}");
            Ok(())
        })
    };
    wait_for(&[("press-1/oil", 7, true), ("press-2/oil", 2, false)])?;
    produce(&plant, "press-2/oil", minute.saturating_add_micros(30 * SECOND), &[101.0; 4])?;
    wait_for(&[("press-1/oil", 7, true), ("press-2/oil", 6, true)])?;
    assert_eq!(plant.lake().count("SELECT count(*) FROM anomalies")?, 0);
    stop(&mut aggregator)?;
    // Other rules: nothing is left of the rule that was complete.
    plant.aggregator_settings.more = String::new();
    let _aggregator = plant.start_aggregator()?;
    produce(&plant, "press-1/oil", minute.saturating_add_micros(40 * SECOND), &[90.0])?;
    produce(&plant, "press-2/oil", minute.saturating_add_micros(40 * SECOND), &[90.0])?;
    eventually("current_windows is empty", DEADLINE, || {
        let rows = plant.lake().count("SELECT count(*) FROM current_windows")?;
        ensure!(rows == 0, "{rows} rows");
        Ok(())
    })
}

#[test]
fn sliding_windows_and_windows_by_machine_equal_a_query_over_telemetry() -> anyhow::Result<()> {
    let mut plant = Plant::new("sliding")?;
    plant.aggregator_settings.more = format!(
        "{}{}",
        rule(
            "filter = \"metric_type = temperature and (value > 100 or value < 0)\"\nslide = \"20s\"\nthreshold = \"mean > 50\""
        ),
        "[[rules]]\nname = \"machine\"\nfilter = \"metric_type = temperature and machine_id = 'press-1'\"\nwindow = \"30s\"\n\
         by = \"machine\"\nthreshold = \"rate >= 0.2\"\nseverity = 3\n",
    );
    let _aggregator = plant.start_aggregator()?;
    let minute = past_minute();
    let values: Vec<f64> = (0..90).map(|number| f64::from(number * 37 % 130) - 10.0).collect();
    produce(&plant, "press-1/oil", minute, &values)?;
    // Everything of the machine in one partition, as rules by machine ask for.
    produce(&plant, "press-1/oil", minute.saturating_add_micros(95 * SECOND), &values)?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 180)?;
    let batch = "SELECT 'hot' AS rule, epoch_us(start) AS start, count(*) AS matches, round(avg(value), 6) AS mean FROM ( \
         SELECT *, unnest(range(epoch_us(timestamp) // 20000000 - 3, epoch_us(timestamp) // 20000000 + 1)) AS slot, \
         make_timestamptz(slot * 20000000) AS start FROM telemetry WHERE value > 100 OR value < 0) \
         WHERE epoch_us(timestamp) >= slot * 20000000 AND epoch_us(timestamp) < slot * 20000000 + 60000000 \
         GROUP BY ALL HAVING avg(value) > 50 \
         UNION ALL SELECT 'machine', epoch_us(timestamp) // 30000000 * 30000000 AS start, count(*), round(avg(value), 6) \
         FROM telemetry GROUP BY ALL HAVING count(*) / 30 >= 0.2";
    let batch = format!(
        "SELECT rule, start, sum(matches)::BIGINT AS matches, any_value(mean) AS mean FROM ({batch}) GROUP BY rule, start ORDER BY ALL"
    );
    let streamed = "SELECT rule, epoch_us(window_start) AS start, count AS matches, round(mean_value, 6) AS mean FROM anomalies \
         QUALIFY row_number() OVER (PARTITION BY rule, window_start ORDER BY revision DESC) = 1 AND is_anomaly ORDER BY ALL";
    eventually("the windows equal the batch", DEADLINE, || {
        let (batch, streamed) = (plant.lake().query(&batch)?, plant.lake().query(streamed)?);
        ensure!(batch.len() > 10, "{} windows", batch.len());
        ensure!(batch == streamed, "{batch:?}\n{streamed:?}");
        Ok(())
    })
}

#[test]
fn rules_change_without_a_restart_and_other_settings_are_refused_by_name() -> anyhow::Result<()> {
    let mut plant = Plant::new("rule-reload")?;
    plant.aggregator_settings.more =
        rule("filter = \"metric_type = temperature and value > 100\"\nthreshold = \"count > 5\"");
    let mut aggregator = plant.start_aggregator()?;
    let status: serde_json::Value = serde_json::from_str(&aggregator.get("/status")?.1)?;
    ensure!(status["rules"] == serde_json::json!(["hot"]), "{status}");
    // One that comes while the process is up changes nothing.
    aggregator.process().signal("HUP")?;
    wait_for_reload(&aggregator, "same")?;
    let file = plant.dir.join("cloud-aggregator/cloud-aggregator.toml");
    let before = std::fs::read_to_string(&file)?;
    let minute = past_minute();
    produce(&plant, "press-1/oil", minute, &[101.0; 4])?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 4)?;

    // The count goes on under another threshold.
    std::fs::write(&file, before.replace("count > 5", "count > 3"))?;
    wait_for_reload(&aggregator, "changed")?;
    produce(&plant, "press-1/oil", minute.saturating_add_micros(10 * SECOND), &[101.0])?;
    eventually("the alert of the new threshold", DEADLINE, || {
        ensure!(alert_ids(&plant)?.len() == 1, "none yet");
        Ok(())
    })?;

    std::fs::write(&file, before.replace("500ms", "700ms"))?;
    wait_for_reload(&aggregator, "refused")?;
    let status = aggregator.get("/status")?.1;
    ensure!(
        status.contains(
            "restart the aggregator to change trigger.processing-time; nothing was changed"
        ),
        "{status}"
    );
    std::fs::write(&file, before.replace("count > 5", "count of 5"))?;
    eventually("the fault of the rule is shown", DEADLINE, || {
        let status = aggregator.get("/status")?.1;
        ensure!(status.contains("is no threshold"), "{status}");
        Ok(())
    })?;
    // Nothing of it is in force: another window alerts at the fourth match as before.
    produce(&plant, "press-1/oil", minute.saturating_add_micros(60 * SECOND), &[101.0; 4])?;
    eventually("the second alert", DEADLINE, || {
        ensure!(alert_ids(&plant)?.len() == 2, "not yet");
        Ok(())
    })?;
    // What was judged by the threshold before is judged anew.
    std::fs::write(&file, before.replace("count > 5", "count > 3"))?;
    eventually("an audit finds nothing", DEADLINE, || {
        let audit = run_command(&plant.dir.join("cloud-aggregator"), &["audit"])?;
        ensure!(audit.code == Some(0), "{:?}: {}{}", audit.code, audit.output, audit.errors);
        Ok(())
    })
}

#[test]
fn a_drain_tells_the_windows_that_stay_open_and_fails_where_it_cannot_read() -> anyhow::Result<()> {
    let mut plant = Plant::new("drain")?;
    let drain = ("AGGREGATOR__TRIGGER__AVAILABLE_NOW".to_owned(), "true".to_owned());
    plant.aggregator_settings.environment.push(drain);
    plant.aggregator_settings.more =
        rule("filter = \"metric_type = temperature and value > 100\"\nthreshold = \"count > 5\"");
    // An hour ago: the first window is closed by the second one, which nothing closes.
    let minute = past_minute().saturating_add_micros(-3600 * SECOND);
    produce(&plant, "press-1/oil", minute, &[101.0; 7])?;
    produce(&plant, "press-1/oil", minute.saturating_add_micros(120 * SECOND), &[101.0; 3])?;
    let dir = plant.dir.join("cloud-aggregator");
    let mut aggregator = CloudAggregator::start(&dir, &plant.aggregator_settings)?;
    let status = aggregator.process().wait(DEADLINE)?;
    let log = aggregator.process().tail();
    ensure!(status.success() && log.contains("open_windows=1"), "{status}: {log}");
    ensure!(plant.lake().count("SELECT count(*) FROM telemetry")? == 10, "not all rows");
    ensure!(plant.lake().count("SELECT count(*) FROM anomalies")? == 1, "not one window");

    let mut damaged = 0;
    for entry in std::fs::read_dir(plant.aggregator_settings.lake.join("_state"))? {
        std::fs::write(entry?.path(), "{")?;
        damaged += 1;
    }
    ensure!(damaged > 0, "no state file");
    produce(&plant, "press-1/oil", minute.saturating_add_micros(240 * SECOND), &[101.0])?;
    aggregator.restart()?;
    let status = aggregator.process().wait(DEADLINE)?;
    let log = aggregator.process().tail();
    ensure!(status.code() == Some(74), "{status}: {log}");
    // The first run's.
    ensure!(log.matches("all is read that was there").count() == 1, "{log}");
    let told = log.contains("not all was read that was there at the start: 0 records");
    ensure!(told && log.contains("cannot be read"), "{log}");
    Ok(())
}

#[test]
fn a_drain_of_topics_that_are_not_there_ends() -> anyhow::Result<()> {
    let mut plant = Plant::new("drain-nothing")?;
    plant.aggregator_settings.topic_prefix = "never-made-".to_owned();
    for (name, value) in [("", "true"), ("_PATIENCE", "2s")] {
        let variable = format!("AGGREGATOR__TRIGGER__AVAILABLE_NOW{name}");
        plant.aggregator_settings.environment.push((variable, value.to_owned()));
    }
    let dir = plant.dir.join("cloud-aggregator");
    let mut aggregator = CloudAggregator::start(&dir, &plant.aggregator_settings)?;
    let status = aggregator.process().wait(DEADLINE)?;
    let log = aggregator.process().tail();
    ensure!(status.code() == Some(69), "{status}: {log}");
    ensure!(log.contains("no partition was given within 2 s"), "{log}");
    Ok(())
}

#[test]
fn alerts_that_are_too_many_for_the_next_owner_become_dead_letters() -> anyhow::Result<()> {
    let mut plant = Plant::new("takeover")?;
    plant.aggregator_settings.more =
        rule("filter = \"metric_type = temperature and value > 100\"\nthreshold = \"count > 5\"");
    // Nobody takes them.
    plant.aggregator_settings.webhook_url =
        format!("http://127.0.0.1:{}/", e2e_tests::ports::free_port()?);
    let topic = ("AGGREGATOR__ALERTS__TOPIC".to_owned(), String::new());
    plant.aggregator_settings.environment.push(topic);
    let mut aggregator = plant.start_aggregator()?;
    for sensor in 0..3 {
        produce(&plant, &format!("press-{sensor}/oil"), past_minute(), &[101.0; 7])?;
    }
    let owed = |aggregator: &CloudAggregator, number: u64| {
        eventually("alerts are owed", DEADLINE, || {
            let status: serde_json::Value = serde_json::from_str(&aggregator.get("/status")?.1)?;
            ensure!(status["alerts_owed"] == number, "{status}");
            Ok(())
        })
    };
    owed(&aggregator, 3)?;
    // What is owed stands in the state file of the next epoch.
    let epochs = aggregator.metric("aggregator_epochs_total")?;
    produce(&plant, "press-9/oil", past_minute(), &[20.0])?;
    eventually("another epoch", DEADLINE, || {
        ensure!(aggregator.metric("aggregator_epochs_total")? > epochs, "not yet");
        Ok(())
    })?;
    aggregator.process().kill()?;
    let few = ("AGGREGATOR__ALERTS__PENDING_MAX".to_owned(), "1".to_owned());
    plant.aggregator_settings.environment.push(few);
    let aggregator = plant.start_aggregator()?;
    let letters = "SELECT count(*) FROM dead_letters WHERE reason = 'alert-overflow'";
    ensure!(plant.wait_for_count(letters, 2)? == 2, "more dead letters");
    owed(&aggregator, 1)
}

#[test]
fn signals_that_come_early_do_what_they_do_later() -> anyhow::Result<()> {
    let plant = Plant::new("early-signals")?;
    let dir = plant.dir.join("cloud-aggregator");
    let mut aggregator = CloudAggregator::start(&dir, &plant.aggregator_settings)?;
    // The first line of the log; the tables are not open yet.
    eventually("it has begun", DEADLINE, || {
        let log = aggregator.process().stderr();
        ensure!(log.contains("health, metrics and status are served"), "{log}");
        Ok(())
    })?;
    aggregator.process().signal("HUP")?;
    aggregator.process().terminate()?;
    let status = aggregator.process().wait(DEADLINE)?;
    ensure!(status.success(), "{status}: {}", aggregator.process().tail());
    Ok(())
}

fn wait_for_reload(aggregator: &CloudAggregator, result: &str) -> anyhow::Result<()> {
    let line = format!("aggregator_settings_reloads_total{{result=\"{result}\"}} 1");
    eventually(&format!("settings are {result}"), DEADLINE, || {
        let metrics = aggregator.metrics()?;
        ensure!(metrics.contains(&line), "no {line}");
        Ok(())
    })
}

#[test]
fn rules_test_shows_what_the_rules_of_a_file_make_of_readings() -> anyhow::Result<()> {
    let dir = crate::plant::run_dir().join("rules-test");
    std::fs::create_dir_all(&dir)?;
    let config = dir.join("rules.toml");
    let filter =
        "filter = \"metric_type = temperature and value > 100\"\nthreshold = \"count > 1\"";
    std::fs::write(&config, rule(filter))?;
    let input = dir.join("readings.jsonl");
    let at = |second: i64| EventTime::from_micros(1_772_352_000 * SECOND + second * SECOND);
    let lines: Vec<String> = [(0, 101.0), (1, 102.0), (2, 99.0), (60, 105.0)]
        .map(|(second, value)| {
            reading_json("press-1", "press-1/oil", "temperature", at(second), value)
        })
        .into();
    std::fs::write(&input, format!("{}\nno reading\n", lines.join("\n")))?;
    let text = |path: &std::path::Path| path.display().to_string();
    let arguments = ["rules", "test", "--config", &text(&config), "--input", &text(&input)];
    let mut trial = ChildProcess::start("rules-test", &dir, &program(), &arguments, &[])?;
    let status = trial.wait(DEADLINE)?;
    let output = trial.tail();
    ensure!(status.success(), "{status}: {output}");
    for expected in [
        "line 5: ",
        "hot   press-1/oil        2026-03-01T08:00:00Z  2026-03-01T08:01:00Z      2  101.000",
        "4 readings, 1 other lines, 2 windows with matches, 1 anomalies",
    ] {
        ensure!(output.contains(expected), "{expected:?} is missing in\n{output}");
    }
    Ok(())
}
