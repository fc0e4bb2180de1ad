//! The aggregator killed at each step of an epoch, and again and again at random: every record is in the lake once, and the
//! windows are those that a batch counts.
//!
//! `KILL_ROUNDS` sets how many random kills, `KILL_SEED` from which seed.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use anyhow::{bail, ensure};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::publisher::reading_json;
use e2e_tests::random::Random;
use shared_proto::model::EventTime;

use crate::plant::{DEADLINE, Plant, kafka, now};

/// Where `AGGREGATOR_FAULT` can end the process, in the order of an epoch.
const STEPS: [&str; 7] = [
    "state-written",
    "telemetry-written",
    "telemetry-committed",
    "anomalies",
    "late_readings",
    "machine_events",
    "dead_letters",
];
const SIGABRT: i32 = 6;
const ROUNDS: u64 = 100;
const SENSORS: u64 = 12;
const READINGS_OF_MINUTE: i64 = 20;
const MINUTE_MICROS: i64 = 60_000_000;
const DAY_MINUTES: i64 = 24 * 60;

/// Writes to Kafka, a minute of event time in each round, and counts what must come of it.
pub(crate) struct Feeder {
    readings_topic: String,
    events_topic: String,
    start: EventTime,
    minutes: i64,
    readings: u64,
    late: u64,
    others: u64,
}

impl Feeder {
    pub(crate) fn new(plant: &Plant) -> Self {
        let minute = now().micros().div_euclid(MINUTE_MICROS);
        let start = EventTime::from_micros((minute - DAY_MINUTES) * MINUTE_MICROS);
        let (readings_topic, events_topic) =
            (plant.topic("temperature"), plant.topic("machine-events"));
        Self { readings_topic, events_topic, start, minutes: 0, readings: 0, late: 0, others: 0 }
    }

    /// Readings of all sensors, every third of them hot; one of each that is days late; as many machine events and as many
    /// records that are none.
    pub(crate) fn feed(&mut self) -> anyhow::Result<()> {
        let (mut readings, mut events, mut letters) = (Vec::new(), Vec::new(), Vec::new());
        let minute = self.start.saturating_add_micros(self.minutes * MINUTE_MICROS);
        for number in 0..SENSORS {
            let sensor = format!("press-{number}/oil");
            let reading = |at: EventTime, value: f64| {
                reading_json("press-1", &sensor, "temperature", at, value).into_bytes()
            };
            for second in 0..READINGS_OF_MINUTE {
                let at = minute.saturating_add_micros(second * 3_000_000);
                let value = if number % 3 == 0 { 104.0 } else { 71.0 } + second as f64 / 100.0;
                readings.push((sensor.clone(), reading(at, value)));
                self.readings += 1;
            }
            if self.minutes > 0 {
                let long_ago = self.start.saturating_add_micros(-3 * DAY_MINUTES * MINUTE_MICROS);
                readings.push((sensor.clone(), reading(long_ago, 105.0)));
                self.late += 1;
            }
            let event = format!(
                "{{\"event_type\":\"alarm\",\"machine_id\":\"press-{number}\",\"timestamp\":\"{minute}\"}}"
            );
            events.push((format!("press-{number}"), event.into_bytes()));
            letters.push((sensor.clone(), b"no reading".to_vec()));
            self.others += 1;
        }
        readings.append(&mut letters);
        kafka()?.produce(&self.readings_topic, &readings)?;
        kafka()?.produce(&self.events_topic, &events)?;
        self.minutes += 1;
        Ok(())
    }

    /// Waits until all is in the lake and holds it against what was written.
    pub(crate) fn check(&self, plant: &Plant) -> anyhow::Result<()> {
        let lake = plant.lake();
        let expected = [
            ("telemetry", self.readings),
            ("late_readings", self.late),
            ("machine_events", self.others),
            ("dead_letters", self.others),
        ];
        eventually("everything is in the lake", 2 * DEADLINE, || {
            for (table, expected) in expected {
                let rows = lake.count(&format!("SELECT count(*) FROM {table}"))?;
                ensure!(rows >= expected, "{rows} rows in {table}, {expected} are expected");
            }
            Ok(())
        })?;
        for (table, expected) in expected {
            let rows = lake.count(&format!("SELECT count(*) FROM {table}"))?;
            let different = lake.count(&format!(
                "SELECT count(DISTINCT (source_topic, source_partition, source_offset)) FROM {table}"
            ))?;
            assert_eq!((rows, different), (expected, expected), "{table}: rows, and offsets");
        }
        let batch = lake.batch_windows("temperature", 100.0, 5)?;
        assert_eq!(batch.len() as u64, self.minutes as u64 * SENSORS.div_ceil(3));
        eventually("the windows equal the batch count", DEADLINE, || {
            let streamed = plant.streamed_windows()?;
            ensure!(streamed == batch, "{} windows instead of {}", streamed.len(), batch.len());
            Ok(())
        })
    }
}

/// A plant whose aggregator is let into its group at once when it comes back, and whose windows close without delay.
pub(crate) fn plant(name: &str) -> anyhow::Result<Plant> {
    let mut plant = Plant::new(name)?;
    let settings = &mut plant.aggregator_settings;
    settings.more = "[kafka.properties]\n\"group.instance.id\" = \"one\"\n".to_owned();
    let lateness = ("AGGREGATOR__COUNTING__ALLOWED_LATENESS".to_owned(), "0s".to_owned());
    settings.environment.push(lateness);
    Ok(plant)
}

#[test]
fn an_aggregator_that_dies_at_any_step_of_an_epoch_writes_each_row_once() -> anyhow::Result<()> {
    let mut plant = plant("fault-steps")?;
    let environment = plant.aggregator_settings.environment.clone();
    let mut feeder = Feeder::new(&plant);
    for step in STEPS {
        for passage in 1..=2 {
            let fault = ("AGGREGATOR_FAULT".to_owned(), format!("{step}:{passage}"));
            plant.aggregator_settings.environment = [environment.clone(), vec![fault]].concat();
            let dir = plant.dir.join("cloud-aggregator");
            let mut aggregator = CloudAggregator::start(&dir, &plant.aggregator_settings)?;
            eventually("it dies of its fault", DEADLINE, || {
                if !aggregator.process().is_running()? {
                    return Ok(());
                }
                feeder.feed()?;
                bail!("{step}:{passage} has not come")
            })?;
            let status = aggregator.process().wait(DEADLINE)?;
            assert_eq!(status.signal(), Some(SIGABRT), "{step}:{passage} ends with {status}");
        }
    }
    plant.aggregator_settings.environment = environment;
    let _aggregator = plant.start_aggregator()?;
    feeder.check(&plant)
}

#[test]
fn an_aggregator_killed_at_random_moments_writes_each_row_once() -> anyhow::Result<()> {
    let rounds = number("KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("KILL_SEED").unwrap_or_else(|| now().micros().cast_unsigned());
    eprintln!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let plant = plant("killed-at-random")?;
    let mut feeder = Feeder::new(&plant);
    let mut random = Random::new(seed);
    feeder.feed()?;
    let mut aggregator = plant.start_aggregator()?;
    for _ in 0..rounds {
        feeder.feed()?;
        // The moment is what is tested.
        std::thread::sleep(Duration::from_millis(200 + random.below(700)));
        aggregator.process().kill()?;
        aggregator.restart()?;
    }
    aggregator.wait_ready()?;
    let commits = plant.lake().protocols()?["telemetry"].version;
    assert!(commits >= rounds / 4, "{commits} commits in {rounds} rounds: it hardly worked");
    feeder.check(&plant)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
