//! `trigger.available-now` over all that Kafka keeps, into an empty lake and under another group, gives the lake that an aggregator has
//! written while records flowed, it was killed, and it read them again.
//!
//! What is compared leaves out what tells when something was seen and not what: `received_at` and `emitted_at`; of a dead letter that
//! has no event time of its own, `timestamp`; of windows the revisions on the way and what closed them, since a sensor that is silent
//! for a while closes a window that in a backfill only the next reading closes; of alerts the values at the moment when they were fired,
//! which depends on where an epoch ended, and what is later decided by the clock.

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, CloudAggregatorSettings, run_command};
use e2e_tests::eventually::eventually;
use e2e_tests::kafka::produce;
use e2e_tests::lake::LakeReader;
use e2e_tests::publisher::reading_json;

use crate::exactly_once;
use crate::feeder::Feeder;
use crate::plant::{DEADLINE, Plant, now};

const ROUNDS: u64 = 8;
/// Readings of a device that numbers them, in each round; some of them come twice.
const NUMBERED: u64 = 12;
const REPEATED: usize = 4;
const MINUTE_MICROS: i64 = 60_000_000;
/// Ends the process after the commit on `telemetry`, before those of the other tables.
const FAULT: (&str, &str) = ("AGGREGATOR_FAULT", "telemetry-committed:1");
const BY_OFFSET: &str = "ORDER BY source_topic, source_partition, source_offset";

/// What must be the same in both lakes, as queries.
fn queries() -> Vec<(&'static str, String)> {
    let rows = |columns: &str, table: &str| format!("SELECT {columns} FROM {table} {BY_OFFSET}");
    let seen = "* EXCLUDE (received_at)";
    vec![
        ("readings", rows("*", "telemetry")),
        ("late readings", rows(seen, "late_readings")),
        ("machine events", rows(seen, "machine_events")),
        ("outcomes", rows(seen, "outcomes")),
        ("dead letters", rows("* EXCLUDE (received_at, timestamp, date)", "dead_letters")),
        (
            "windows",
            "SELECT rule, sensor_id, machine_id, window_start, window_end, is_anomaly, count, max_value, min_value, \
             round(mean_value, 9) AS mean, first_match, last_match FROM anomalies \
             QUALIFY row_number() OVER (PARTITION BY rule, sensor_id, window_start ORDER BY revision DESC) = 1 \
             ORDER BY rule, sensor_id, window_start"
                .to_owned(),
        ),
        (
            "alerts",
            "SELECT DISTINCT alert_id, rule, severity, machine_id, sensor_id, window_start, window_end, threshold \
             FROM alerts WHERE state = 'fired' ORDER BY ALL"
                .to_owned(),
        ),
    ]
}

/// Records besides those of the feeder, and how many of them become rows.
struct Others<'a> {
    plant: &'a Plant,
    sequence: u64,
    repeats: usize,
    outcomes: u64,
}

impl Others<'_> {
    /// Numbered readings, of which the first few come again; what people found, once as it should be and once not.
    fn feed(&mut self) -> anyhow::Result<()> {
        let plant = self.plant;
        let bootstrap = &plant.aggregator_settings.kafka_bootstrap;
        let mut readings = Vec::new();
        for _ in 0..NUMBERED {
            self.sequence += 1;
            let text = reading_json("press-1", "gauge", "temperature", now(), 20.0);
            let identity =
                format!(",\"device_id\":\"gw\",\"generation\":1,\"sequence\":{}}}", self.sequence);
            let text = text.trim_end_matches('}').to_owned() + &identity;
            readings.push(("gauge".to_owned(), text.into_bytes()));
        }
        let again: Vec<_> = readings.iter().take(REPEATED).cloned().collect();
        self.repeats += again.len();
        produce(bootstrap, &plant.topic("temperature"), &[readings, again].concat())?;
        self.outcomes += 1;
        let outcome = format!(
            "{{\"outcome_id\":\"ticket-{}\",\"verdict\":\"confirmed\",\"machine_id\":\"press-1\",\"timestamp\":\"{}\"}}",
            self.outcomes,
            now()
        );
        let records = [outcome.into_bytes(), b"{\"outcome_id\":\"none\"}".to_vec()];
        let records = records.map(|bytes| ("press-1".to_owned(), bytes));
        produce(bootstrap, &plant.topic("outcomes"), &records)
    }
}

/// One reading of each sensor of the feeder that is later than all of its windows: they close in both lakes.
fn close_windows(plant: &Plant) -> anyhow::Result<u64> {
    let lake = plant.lake();
    let sql = "SELECT sensor_id, epoch_us(max(timestamp)) AS newest FROM telemetry WHERE sensor_id LIKE 'press-%' GROUP BY ALL";
    let mut closers = Vec::new();
    for row in lake.query(sql)? {
        let sensor = row["sensor_id"].as_str().context("a sensor")?.to_owned();
        let newest = row["newest"].as_i64().context("a time")?;
        let at = shared_proto::model::EventTime::from_micros(newest + 2 * MINUTE_MICROS);
        let text = reading_json("press-1", &sensor, "temperature", at, 20.0);
        closers.push((sensor, text.into_bytes()));
    }
    let bootstrap = &plant.aggregator_settings.kafka_bootstrap;
    produce(bootstrap, &plant.topic("temperature"), &closers)?;
    Ok(closers.len() as u64)
}

/// A lake that is written by an aggregator that is killed again and again.
fn write_the_lake(plant: &Plant) -> anyhow::Result<()> {
    let mut feeder = Feeder::new(plant);
    let mut others = Others { plant, sequence: 0, repeats: 0, outcomes: 0 };
    feeder.feed()?;
    let mut aggregator = plant.start_aggregator()?;
    for round in 0..ROUNDS {
        feeder.feed()?;
        others.feed()?;
        if round % 2 == 1 {
            aggregator.wait_ready()?;
            aggregator.process().kill()?;
            aggregator.restart()?;
        }
    }
    aggregator.wait_ready()?;
    let ours = [
        ("telemetry", "sensor_id LIKE 'press-%'"),
        ("dead_letters", "source_topic LIKE '%temperature'"),
    ];
    feeder.check_beside(plant, &ours)?;
    let closers = close_windows(plant)?;
    plant.wait_for_count(
        "SELECT count(*) FROM telemetry",
        feeder.readings + others.sequence + closers,
    )?;
    plant.wait_for_count("SELECT count(*) FROM outcomes", others.outcomes)?;
    let letters = "SELECT count(*) FROM dead_letters WHERE source_topic LIKE '%outcomes'";
    plant.wait_for_count(letters, others.outcomes)?;
    ensure!(others.repeats > 0, "nothing came twice");
    aggregator.process().terminate()?;
    let ended = aggregator.process().wait(DEADLINE)?;
    ensure!(ended.success(), "it ended with {ended}");
    Ok(())
}

fn same_in_both(one: &LakeReader, other: &LakeReader) -> anyhow::Result<()> {
    for (what, sql) in queries() {
        let (left, right) = (one.query(&sql)?, other.query(&sql)?);
        ensure!(!left.is_empty(), "no {what}: nothing is compared");
        if left != right {
            let differs = left.iter().zip(&right).find(|(left, right)| left != right);
            anyhow::bail!("{what}: {} and {}; first: {differs:?}", left.len(), right.len());
        }
    }
    Ok(())
}

#[test]
fn a_backfill_of_all_that_kafka_keeps_equals_the_lake_that_was_written_while_it_came()
-> anyhow::Result<()> {
    let plant = exactly_once::plant("backfill")?;
    write_the_lake(&plant)?;
    let running = plant.lake();

    let again = plant.dir.join("lake-again");
    let mut settings = CloudAggregatorSettings {
        group: format!("{}-backfill", plant.aggregator_settings.group),
        lake: again.clone(),
        // Who was told once is not to be told again.
        webhook_url: String::new(),
        ..plant.aggregator_settings.clone()
    };
    let drains = ("AGGREGATOR__TRIGGER__AVAILABLE_NOW".to_owned(), "true".to_owned());
    settings.environment.push(drains);
    let environment = settings.environment.clone();
    settings.environment.push((FAULT.0.to_owned(), FAULT.1.to_owned()));
    let dir = plant.dir.join("backfill");
    let mut backfill = CloudAggregator::start(&dir, &settings)?;
    let ended = backfill.process().wait(2 * DEADLINE)?;
    ensure!(!ended.success(), "the fault has not come");
    settings.environment = environment;
    for _ in 0..2 {
        // The second one finds nothing to do.
        let mut backfill = CloudAggregator::start(&dir, &settings)?;
        let ended = backfill.process().wait(2 * DEADLINE)?;
        ensure!(ended.success(), "it ended with {ended}: {}", backfill.process().tail());
        eventually("both lakes are the same", DEADLINE, || {
            same_in_both(&running, &LakeReader::new(&again))
        })?;
    }
    for dir in [plant.dir.join("cloud-aggregator"), dir] {
        let audit = run_command(&dir, &["audit"])?;
        ensure!(audit.code == Some(0), "{}: {audit:?}", dir.display());
        ensure!(audit.output.ends_with("equal\n"), "{}: {audit:?}", dir.display());
    }
    Ok(())
}
