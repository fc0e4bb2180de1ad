//! A gateway that was offline for a day: its backlog, replayed while 300 other sensors are live, gives the windows that it
//! would have given if it had never been offline.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, ensure};
use e2e_tests::eventually::eventually;
use e2e_tests::kafka::produce;
use e2e_tests::publisher::{Publisher, reading_json};
use serde_json::Value;
use shared_proto::model::EventTime;

use crate::outages::minutes_ago;
use crate::plant::{DEADLINE, Plant, kafka, now};

const LIVE_SENSORS: i64 = 300;
const DAY_MINUTES: i64 = 24 * 60;
const SECOND_MICROS: i64 = 1_000_000;
/// Each sensor of the gateway measures every 15 s.
const READINGS_OF_MINUTE: i64 = 8;
const OFFLINE: [&str; 2] = ["press-9/oil", "press-9/gearbox"];
/// What `counting.historical-after` is by default.
const HISTORICAL_MICROS: i64 = 3_600 * SECOND_MICROS;

/// All readings by event time, as if nobody had ever been offline.
type Ordered = BTreeMap<(i64, String), String>;

fn reading(sensor: &str, at: EventTime, number: i64) -> String {
    // In two minutes of three there are six or more, in the third none.
    let is_hot = at.micros().div_euclid(60 * SECOND_MICROS) % 3 < 2;
    let value = if is_hot { 101.0 } else { 70.0 } + (number % 1_000) as f64 / 1e4;
    let machine = sensor.split('/').next().unwrap_or_default();
    reading_json(machine, sensor, "temperature", at, value)
}

/// A day of the gateway's readings, published to its local broker while its network is away.
fn record_a_day(publisher: &mut Publisher, all: &mut Ordered) -> anyhow::Result<u64> {
    let start = minutes_ago(DAY_MINUTES - 5);
    let mut published = 0;
    for number in 0..(DAY_MINUTES - 6) * READINGS_OF_MINUTE {
        let at = start.saturating_add_micros(number * 60 * SECOND_MICROS / READINGS_OF_MINUTE);
        for sensor in OFFLINE {
            let json = reading(sensor, at, number);
            publisher.publish("plant/press-9/readings", json.clone())?;
            all.insert((at.micros(), sensor.to_owned()), json);
            published += 1;
        }
    }
    publisher.wait_acknowledged(2 * DEADLINE)?;
    Ok(published)
}

/// A few seconds of what is live: one reading of each of 300 sensors for each of eight instants of this minute.
fn live(plant: &Plant, round: i64, all: &mut Ordered) -> anyhow::Result<u64> {
    let minute = minutes_ago(LIVE_MINUTES_AGO - round);
    let mut records = Vec::new();
    for step in 0..READINGS_OF_MINUTE {
        for number in 0..LIVE_SENSORS {
            let sensor = format!("line-{}/sensor-{number}", number % 10);
            let at = minute.saturating_add_micros(step * 7 * SECOND_MICROS + number);
            let json = reading(&sensor, at, step);
            all.insert((at.micros(), sensor.clone()), json.clone());
            records.push((sensor, json.into_bytes()));
        }
    }
    let count = records.len() as u64;
    produce(&kafka()?.bootstrap(), &plant.topic("temperature"), &records)?;
    Ok(count)
}

const LIVE_MINUTES_AGO: i64 = 12;

#[test]
fn a_days_backlog_beside_live_sensors_gives_the_windows_of_a_day_online() -> anyhow::Result<()> {
    let mut plant = Plant::new("offline-day")?;
    let mut all = Ordered::new();
    let link = kafka()?.take_link()?;
    plant.edge_settings.kafka_bootstrap = format!("127.0.0.1:{}", link.port());
    let edge = plant.start_edge_module()?;
    let mut aggregator = plant.start_aggregator()?;
    link.cut();
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let mut written = record_a_day(&mut publisher, &mut all)?;
    // Live before, while and after the backlog comes.
    written += live(&plant, 0, &mut all)?;
    let mended = Instant::now();
    link.mend();
    let mut round = 1;
    eventually("the backlog is in the lake", 2 * DEADLINE, || {
        if round < LIVE_MINUTES_AGO - 2 {
            written += live(&plant, round, &mut all)?;
            round += 1;
        }
        let rows = plant.lake().count("SELECT count(*) FROM telemetry")?;
        ensure!(rows >= written, "{rows} rows of {written}");
        Ok(())
    })
    .with_context(|| edge.describe())?;
    let took = mended.elapsed();
    eprintln!(
        "{written} readings, {round} rounds of live ones, in the lake {took:?} after mending"
    );
    let rows = plant.lake().count("SELECT count(*) FROM telemetry")?;
    let late = plant.lake().count("SELECT count(*) FROM late_readings")?;
    assert_eq!((rows, late), (written, 0), "rows, and late readings");
    plant.check_sequences()?;

    let online = online(&all)?;
    let batch = plant.lake().batch_windows("temperature", 100.0, 5)?;
    let of_offline = batch.iter().filter(|(sensor, ..)| OFFLINE.contains(&sensor.as_str())).count();
    assert!(of_offline > 1_800, "{of_offline} windows of the gateway");
    eventually("its windows are those of a day online", 2 * DEADLINE, || {
        let streamed = plant.streamed_windows()?;
        ensure!(streamed == batch, "{} windows, {} by batch", streamed.len(), batch.len());
        let expected = online.streamed_windows()?;
        ensure!(streamed == expected, "{} windows, {} online", streamed.len(), expected.len());
        Ok(())
    })?;
    check_alerts(&plant)?;
    aggregator.process().terminate()?;
    Ok(())
}

/// A second lake that gets the same readings in the order of their times.
fn online(all: &Ordered) -> anyhow::Result<Plant> {
    let plant = Plant::new("online-day")?;
    let records: Vec<(String, Vec<u8>)> =
        all.iter().map(|((_, sensor), json)| (sensor.clone(), json.clone().into_bytes())).collect();
    produce(&kafka()?.bootstrap(), &plant.topic("temperature"), &records)?;
    let mut drain = plant.aggregator_settings.clone();
    drain.webhook_url = String::new();
    let dir = plant.dir.join("cloud-aggregator");
    let mut aggregator = e2e_tests::cloud_aggregator::CloudAggregator::start(&dir, &drain)?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", records.len() as u64)?;
    eventually("its windows equal the batch count", DEADLINE, || {
        let batch = plant.lake().batch_windows("temperature", 100.0, 5)?;
        let streamed = plant.streamed_windows()?;
        ensure!(streamed == batch, "{} windows, {} by batch", streamed.len(), batch.len());
        Ok(())
    })?;
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    Ok(plant)
}

/// One alert for each window; those of windows that were over for an hour are for the record.
fn check_alerts(plant: &Plant) -> anyhow::Result<()> {
    let windows = plant.streamed_windows()?.len();
    let alerts = eventually("all alerts are posted", 2 * DEADLINE, || {
        let mut alerts = BTreeMap::new();
        for body in plant.webhook.bodies() {
            let alert: Value = serde_json::from_str(&body)?;
            let id = alert["id"].as_str().context("no id")?.to_owned();
            alerts.insert(id, alert["data"]["data"]["alertContext"].clone());
        }
        ensure!(alerts.len() >= windows, "{} alerts of {windows}", alerts.len());
        Ok::<_, anyhow::Error>(alerts)
    })?;
    assert_eq!(alerts.len(), windows, "one for each window");
    let mut historical = 0;
    for alert in alerts.values() {
        let end = alert["windowEnd"].as_str().and_then(EventTime::parse).context("no end")?;
        let age = now().micros() - end.micros();
        let is_marked = alert["historical"].as_bool().context("no mark")?;
        // What is near the limit may have passed it since.
        if age > HISTORICAL_MICROS + 600 * SECOND_MICROS {
            assert!(is_marked, "{alert}");
        } else if age < HISTORICAL_MICROS {
            assert!(!is_marked, "{alert}");
        }
        historical += u64::from(is_marked);
    }
    eprintln!("{} alerts, {historical} of them historical", alerts.len());
    assert!(historical > 1_000, "{historical} historical alerts");
    Ok(())
}
