//! Records of devices that are missing: found, reported once, closed when they come.

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::publisher::{Publisher, reading_json};

use crate::plant::{DEADLINE, Plant, kafka, now};

const TEMPERATURES: u64 = 20;
const PRESSURES: u64 = 30;

fn plant(name: &str) -> anyhow::Result<Plant> {
    let mut plant = Plant::new(name)?;
    let ledger = ("EDGE__JOURNAL__LEDGER_INTERVAL".to_owned(), "1s".to_owned());
    plant.edge_settings.environment.push(ledger);
    plant.aggregator_settings.more =
        "[gaps]\ncheck-interval = \"1s\"\npatience = \"3s\"\n".to_owned();
    Ok(plant)
}

fn publish(plant: &Plant) -> anyhow::Result<()> {
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    for (metric, count) in [("temperature", TEMPERATURES), ("pressure", PRESSURES)] {
        for number in 0..count {
            let sensor = format!("press-1/{metric}-{}", number % 5);
            let reading = reading_json("press-1", &sensor, metric, now(), number as f64 / 10.0);
            publisher.publish("plant/press-1/readings", reading)?;
        }
    }
    publisher.wait_acknowledged(DEADLINE)
}

fn metric(aggregator: &CloudAggregator, name: &str) -> anyhow::Result<f64> {
    let metrics = aggregator.metrics()?;
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
    let value =
        line.and_then(|line| line.split(' ').nth(1)).with_context(|| format!("no {name}"))?;
    Ok(value.parse()?)
}

/// Records of all rows of this type and cause.
fn records_of(plant: &Plant, event_type: &str, cause: &str) -> anyhow::Result<u64> {
    plant.lake().count(&format!(
        "SELECT coalesce(sum(record_count), 0)::BIGINT FROM machine_events WHERE event_type = '{event_type}' \
         AND cause = '{cause}' AND machine_id = '{}'",
        plant.edge_settings.device_id
    ))
}

#[test]
fn records_of_a_topic_that_is_not_read_are_missing_until_it_is() -> anyhow::Result<()> {
    let mut plant = plant("gap-unread")?;
    let unread = ("AGGREGATOR__KAFKA__TOPICS__PRESSURE".to_owned(), String::new());
    plant.aggregator_settings.environment.push(unread);
    let _edge = plant.start_edge_module()?;
    let mut aggregator = plant.start_aggregator()?;
    publish(&plant)?;
    eventually("the pressures are missing", DEADLINE, || {
        let missing = metric(&aggregator, "aggregator_device_gap_records")?;
        ensure!(missing == PRESSURES as f64, "{missing} records are missing");
        Ok(())
    })?;
    let (_, status) = aggregator.get("/status")?;
    ensure!(status.contains(&plant.edge_settings.device_id), "{status}");
    eventually("the gap is a row", DEADLINE, || {
        let records = records_of(&plant, "gap", "missing")?;
        ensure!(records == PRESSURES, "{records} records");
        Ok(())
    })?;

    // Killed and started again it is not reported again.
    aggregator.process().kill()?;
    aggregator.restart()?;
    aggregator.wait_ready()?;
    eventually("the gap is known", DEADLINE, || {
        ensure!(metric(&aggregator, "aggregator_device_gap_records")? == PRESSURES as f64, "no");
        Ok(())
    })?;
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    plant.aggregator_settings.environment.clear();
    let aggregator = plant.start_aggregator()?;
    eventually("the gap is closed", DEADLINE, || {
        let records = records_of(&plant, "gap-closed", "received")?;
        ensure!(records == PRESSURES, "{records} records");
        ensure!(metric(&aggregator, "aggregator_device_gaps_open")? == 0.0, "a gap is open");
        Ok(())
    })?;
    ensure!(records_of(&plant, "gap", "missing")? == PRESSURES, "reported twice");
    ensure!(metric(&aggregator, "aggregator_accounting_imbalance_records")? == 0.0, "imbalance");
    plant.check_sequences()
}

#[test]
fn records_that_kafka_lost_are_a_gap_of_their_device() -> anyhow::Result<()> {
    let plant = plant("gap-lost")?;
    let _edge = plant.start_edge_module()?;
    publish(&plant)?;
    let topic = plant.topic("temperature");
    eventually("kafka has all", DEADLINE, || {
        let (temperatures, pressures) =
            (kafka()?.read_all(&topic)?.len(), kafka()?.read_all(&plant.topic("pressure"))?.len());
        let expected = (TEMPERATURES as usize, PRESSURES as usize);
        ensure!((temperatures, pressures) == expected, "{temperatures} and {pressures}");
        Ok(())
    })?;
    for partition in 0..3 {
        kafka()?.delete_records(&topic, partition, None)?;
    }
    let aggregator = plant.start_aggregator()?;
    eventually("the temperatures are missing", DEADLINE, || {
        let missing = metric(&aggregator, "aggregator_device_gap_records")?;
        ensure!(missing == TEMPERATURES as f64, "{missing} records are missing");
        Ok(())
    })?;
    let sql = "SELECT detail FROM machine_events WHERE event_type = 'gap' AND cause = 'missing'";
    eventually("the gap is a row", DEADLINE, || {
        let rows = plant.lake().query(sql)?;
        let detail = rows.first().context("no row")?["detail"].to_string();
        ensure!(detail.contains(&plant.edge_settings.device_id), "{detail}");
        Ok(())
    })
}

/// By hand what an edge module sends: a ledger, and a gap that it tells of itself.
#[test]
fn what_a_device_tells_as_lost_is_no_gap_and_is_counted() -> anyhow::Result<()> {
    let plant = plant("gap-told")?;
    let (device, time) = (&plant.edge_settings.device_id, now());
    let event = |sequence: u64, event_type: &str, more: &str| {
        let text = format!(
            "{{\"event_type\":\"{event_type}\",\"machine_id\":\"{device}\",\"timestamp\":\"{time}\",\
             \"device_id\":\"{device}\",\"generation\":7,\"sequence\":{sequence},{more}}}"
        );
        (device.clone(), text.into_bytes())
    };
    let readings: Vec<_> = (1..=100_u64)
        .filter(|sequence| !(11..=20).contains(sequence) && *sequence != 50 && *sequence < 99)
        .map(|sequence| {
            let text = format!(
                "{{\"sensor_id\":\"s-{}\",\"timestamp\":\"{time}\",\"metric_type\":\"temperature\",\"value\":1,\
                 \"device_id\":\"{device}\",\"generation\":7,\"sequence\":{sequence}}}",
                sequence % 7
            );
            (format!("s-{}", sequence % 7), text.into_bytes())
        })
        .collect();
    let events = [
        event(
            99,
            "gap",
            "\"cause\":\"evicted-disk\",\"first_sequence\":11,\"last_sequence\":20,\"record_count\":10",
        ),
        event(
            100,
            "ledger",
            "\"first_sequence\":1,\"last_sequence\":99,\"delivered_sequence\":99,\"waveform_sequences\":\"50\"",
        ),
        event(
            102,
            "ledger",
            "\"first_sequence\":100,\"last_sequence\":101,\"delivered_sequence\":101",
        ),
    ];
    kafka()?.produce(&plant.topic("temperature"), &readings)?;
    kafka()?.produce(&plant.topic("machine-events"), &events)?;
    let aggregator = plant.start_aggregator()?;
    eventually("101 alone is missing", DEADLINE, || {
        ensure!(metric(&aggregator, "aggregator_device_gaps_open")? == 1.0, "no gap is open");
        Ok(())
    })?;
    ensure!(metric(&aggregator, "aggregator_device_gap_records")? == 1.0, "more are missing");
    let lost = "aggregator_device_lost_records_total{cause=\"evicted-disk\"}";
    ensure!(metric(&aggregator, lost)? == 10.0, "the loss is not counted");
    ensure!(records_of(&plant, "gap", "evicted-disk")? == 10, "the device's own row");
    Ok(())
}
