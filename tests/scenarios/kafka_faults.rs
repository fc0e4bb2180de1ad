//! Kafka away, topics that grow, lose records or are made anew: what is missing is a reported gap, everything else is in
//! the lake once.

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::kafka::produce_transaction;
use e2e_tests::publisher::reading_json;
use shared_proto::model::EventTime;

use crate::feeder::Feeder;
use crate::plant::{DEADLINE, Plant, kafka, now};

fn plant(name: &str) -> anyhow::Result<Plant> {
    let mut plant = Plant::new(name)?;
    // A member that comes back gets its partitions at once.
    plant.aggregator_settings.more =
        "[kafka.properties]\n\"group.instance.id\" = \"one\"\n".to_owned();
    let lateness = ("AGGREGATOR__COUNTING__ALLOWED_LATENESS".to_owned(), "0s".to_owned());
    plant.aggregator_settings.environment.push(lateness);
    Ok(plant)
}

#[test]
fn brokers_that_are_away_for_a_while_cost_no_record() -> anyhow::Result<()> {
    let mut plant = plant("brokers-away")?;
    // A static member whose answer to a join is cut off may find itself fenced, and ends.
    plant.aggregator_settings.more.clear();
    let mut feeder = Feeder::new(&plant);
    let link = kafka()?.take_link()?;
    plant.aggregator_settings.kafka_bootstrap = format!("127.0.0.1:{}", link.port());
    let mut aggregator = plant.start_aggregator()?;
    for _ in 0..3 {
        feeder.feed()?;
        plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
        // In the middle of the next minute.
        feeder.feed()?;
        link.cut();
        feeder.feed()?;
        eventually("it says so", DEADLINE, || {
            let (status, body) = aggregator.get("/readyz")?;
            ensure!(status == 503 && body.contains("kafka"), "{status}: {body}");
            Ok(())
        })?;
        link.mend();
        aggregator.wait_ready()?;
    }
    feeder.check(&plant)
}

#[test]
fn partitions_that_are_added_while_it_runs_are_read_from_their_beginning() -> anyhow::Result<()> {
    for (name, assignment, start) in [
        ("grow-range", "range", "earliest"),
        ("grow-coop", "cooperative-sticky", "earliest"),
        // Of what is there at the first start alone the end is where reading begins.
        ("grow-latest", "range", "latest"),
    ] {
        let mut plant = plant(name)?;
        for (variable, value) in [("ASSIGNMENT", assignment), ("START", start)] {
            let variable = format!("AGGREGATOR__KAFKA__{variable}");
            plant.aggregator_settings.environment.push((variable, value.to_owned()));
        }
        let mut feeder = Feeder::new(&plant);
        let aggregator = plant.start_aggregator()?;
        eventually("the first partitions are read", DEADLINE, || {
            let held = aggregator.metric("aggregator_partitions")?;
            ensure!(held == 21.0, "{held} partitions");
            Ok(())
        })?;
        feeder.feed()?;
        plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
        kafka()?.add_partitions(&plant.topic("temperature"), 6)?;
        // Some before they are known here, some after.
        feeder.feed()?;
        eventually("the new partitions are read", DEADLINE, || {
            let held = aggregator.metric("aggregator_partitions")?;
            ensure!(held == 24.0, "{held} partitions");
            Ok(())
        })?;
        feeder.feed()?;
        feeder.check(&plant)?;
        let sql = "SELECT count(DISTINCT source_partition) FROM telemetry";
        assert!(plant.lake().count(sql)? > 3, "{name}: some came from new partitions");
    }
    Ok(())
}

/// Causes and records missing of the gaps in the lake.
fn gaps(plant: &Plant) -> anyhow::Result<Vec<(String, Option<u64>)>> {
    let gap = |event: &serde_json::Value| {
        (event["cause"].as_str().unwrap_or_default().to_owned(), event["record_count"].as_u64())
    };
    Ok(plant.machine_events("gap")?.iter().map(gap).collect())
}

fn count_rows(plant: &Plant) -> anyhow::Result<u64> {
    plant.lake().count(
        "SELECT (SELECT count(*) FROM telemetry) + (SELECT count(*) FROM late_readings) \
         + (SELECT count(*) FROM dead_letters)",
    )
}

/// Every reading, late reading and broken record that the feeder wrote and Kafka still had is there once.
fn check_rows_and_gaps(plant: &Plant, written: u64) -> anyhow::Result<u64> {
    eventually("rows and missing records are all that was written", DEADLINE, || {
        let rows = count_rows(plant)?;
        let missing: u64 = gaps(plant)?.iter().filter_map(|(_, missing)| *missing).sum();
        ensure!(rows + missing == written, "{rows} rows, {missing} missing, {written} written");
        Ok(missing)
    })
}

#[test]
fn records_that_retention_has_deleted_are_a_reported_gap() -> anyhow::Result<()> {
    const DELETED: i64 = 7;
    let plant = plant("retention")?;
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let mut aggregator = plant.start_aggregator()?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
    check_rows_and_gaps(&plant, feeder.of_readings_topic())?;
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    let row = plant.lake().query(
        "SELECT source_partition AS partition, max(source_offset) AS last FROM \
         (SELECT source_partition, source_offset FROM telemetry UNION ALL \
          SELECT source_partition, source_offset FROM dead_letters) GROUP BY ALL LIMIT 1",
    )?;
    let row = row.first().context("no row")?;
    let partition = i32::try_from(row["partition"].as_i64().context("no partition")?)?;
    let next = row["last"].as_i64().context("no offset")? + 1;
    feeder.feed()?;
    kafka()?.delete_records(&plant.topic("temperature"), partition, Some(next + DELETED))?;
    aggregator.restart()?;
    aggregator.wait_ready()?;
    let missing = check_rows_and_gaps(&plant, feeder.of_readings_topic())?;
    assert_eq!(missing, DELETED as u64);
    assert_eq!(gaps(&plant)?, [("kafka-retention".to_owned(), Some(missing))]);
    let counted = aggregator.metric("aggregator_kafka_gap_records_total")?;
    assert_eq!(counted, DELETED as f64, "the metric");
    // While it runs: everything in the log is deleted under a reader that stands still.
    aggregator.process().signal("STOP")?;
    feeder.feed()?;
    for partition in 0..3 {
        kafka()?.delete_records(&plant.topic("temperature"), partition, None)?;
    }
    aggregator.process().signal("CONT")?;
    feeder.feed()?;
    let missing = check_rows_and_gaps(&plant, feeder.of_readings_topic())?;
    eprintln!("{missing} records deleted: {:?}", gaps(&plant)?);
    Ok(())
}

fn make_anew(plant: &Plant) -> anyhow::Result<()> {
    let topic = plant.topic("temperature");
    kafka()?.delete_topic(&topic)?;
    eventually("the topic is made anew", DEADLINE, || kafka()?.create_topics(&[&topic], 3))
}

/// Readings are told apart by sensor and time: offsets count anew.
fn check_both_lives(plant: &Plant, feeder: &Feeder, causes: &[&str]) -> anyhow::Result<()> {
    plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
    let rows = plant.lake().count("SELECT count(*) FROM telemetry")?;
    let different = plant
        .lake()
        .count("SELECT count(*) FROM (SELECT DISTINCT sensor_id, timestamp FROM telemetry)")?;
    assert_eq!((rows, different), (feeder.readings, feeder.readings), "rows, readings");
    let found = gaps(plant)?;
    assert!(!found.is_empty(), "a reported gap");
    for (cause, _) in &found {
        assert!(causes.contains(&cause.as_str()), "{found:?}");
    }
    Ok(())
}

#[test]
fn a_topic_that_was_made_anew_while_nobody_read_is_a_reported_gap() -> anyhow::Result<()> {
    let plant = plant("anew-away")?;
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let mut aggregator = plant.start_aggregator()?;
    for (minutes, cause) in [(1, "kafka-recreated"), (3, "kafka-recreated")] {
        plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
        aggregator.process().terminate()?;
        aggregator.process().wait(DEADLINE)?;
        make_anew(&plant)?;
        for _ in 0..=minutes {
            feeder.feed()?;
        }
        restart(&mut aggregator)?;
        check_both_lives(&plant, &feeder, &[cause, "kafka-truncated"])?;
    }
    let found = gaps(&plant)?;
    assert!(found.iter().any(|(cause, _)| cause == "kafka-recreated"), "{found:?}");
    Ok(())
}

fn restart(aggregator: &mut CloudAggregator) -> anyhow::Result<()> {
    aggregator.restart()?;
    aggregator.wait_ready()
}

#[test]
fn a_topic_that_is_made_anew_while_it_is_read_is_a_reported_gap() -> anyhow::Result<()> {
    for (name, assignment) in [("anew-range", "range"), ("anew-coop", "cooperative-sticky")] {
        let mut plant = plant(name)?;
        let variable = "AGGREGATOR__KAFKA__ASSIGNMENT".to_owned();
        plant.aggregator_settings.environment.push((variable, assignment.to_owned()));
        let mut feeder = Feeder::new(&plant);
        for _ in 0..3 {
            feeder.feed()?;
        }
        let aggregator = plant.start_aggregator()?;
        plant.wait_for_count("SELECT count(*) FROM telemetry", feeder.readings)?;
        make_anew(&plant)?;
        // Fewer than were read, then more.
        feeder.feed()?;
        let causes = ["kafka-truncated", "kafka-recreated"];
        check_both_lives(&plant, &feeder, &causes)?;
        for _ in 0..5 {
            feeder.feed()?;
        }
        check_both_lives(&plant, &feeder, &causes)?;
        make_anew(&plant)?;
        for _ in 0..9 {
            feeder.feed()?;
        }
        check_both_lives(&plant, &feeder, &causes)
            .with_context(|| aggregator.metrics().unwrap_or_default())?;
        eprintln!("{name}: {:?}", gaps(&plant)?);
    }
    Ok(())
}

/// The last offset of each partition is the mark of a transaction, which no client is ever given.
#[test]
fn partitions_that_end_with_the_mark_of_a_transaction_are_read_to_their_end() -> anyhow::Result<()>
{
    const SENSORS: u64 = 5;
    const READINGS: u64 = 8;
    let mut plant = plant("transactions")?;
    let minute = now().micros().div_euclid(60_000_000) * 60_000_000 - 600_000_000;
    let mut records = Vec::new();
    for sensor in 0..SENSORS {
        for number in 0..READINGS {
            let at = EventTime::from_micros(minute + i64::try_from(number)? * 1_000_000);
            let name = format!("press-{sensor}/oil");
            let text = reading_json("press-1", &name, "temperature", at, 120.0);
            records.push((name, text.into_bytes()));
        }
    }
    let bootstrap = plant.aggregator_settings.kafka_bootstrap.clone();
    produce_transaction(&bootstrap, &plant.topic("temperature"), &records)?;
    let environment = plant.aggregator_settings.environment.clone();
    // Nobody else speaks: the windows close because the sensors are silent and the partitions are at their ends.
    let idle = ("AGGREGATOR__COUNTING__IDLE_TIMEOUT".to_owned(), "1s".to_owned());
    plant.aggregator_settings.environment.push(idle);
    let mut aggregator = plant.start_aggregator()?;
    let windows = "SELECT count(*) FROM anomalies WHERE closed_by = 'idle'";
    ensure!(plant.wait_for_count(windows, SENSORS)? == SENSORS, "more windows");
    aggregator.process().kill()?;
    // A drain ends although the last offsets are never read.
    plant.aggregator_settings.environment = environment;
    let drain = ("AGGREGATOR__TRIGGER__AVAILABLE_NOW".to_owned(), "true".to_owned());
    plant.aggregator_settings.environment.push(drain);
    plant.aggregator_settings.group += "-drain";
    plant.aggregator_settings.lake = plant.dir.join("drained");
    let mut drain = CloudAggregator::start(&plant.dir.join("drain"), &plant.aggregator_settings)?;
    let status = drain.process().wait(DEADLINE)?;
    ensure!(status.success(), "{status}: {}", drain.process().tail());
    let rows = plant.lake().count("SELECT count(*) FROM telemetry")?;
    ensure!(rows == SENSORS * READINGS, "{rows} rows");
    Ok(())
}
