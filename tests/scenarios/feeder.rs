//! Records for the aggregator alone, and what must come of them.

use anyhow::ensure;
use e2e_tests::eventually::eventually;
use e2e_tests::kafka::produce;
use e2e_tests::publisher::reading_json;
use shared_proto::model::EventTime;

use crate::plant::{DEADLINE, Plant, now};

const SENSORS: u64 = 12;
const READINGS_OF_MINUTE: i64 = 20;
const MINUTE_MICROS: i64 = 60_000_000;
const DAY_MINUTES: i64 = 24 * 60;

/// Writes to Kafka, a minute of event time in each round, and counts what must come of it.
pub(crate) struct Feeder {
    bootstrap: String,
    readings_topic: String,
    events_topic: String,
    start: EventTime,
    pub(crate) minutes: i64,
    pub(crate) readings: u64,
    late: u64,
    others: u64,
}

impl Feeder {
    pub(crate) fn new(plant: &Plant) -> Self {
        let minute = now().micros().div_euclid(MINUTE_MICROS);
        let start = EventTime::from_micros((minute - DAY_MINUTES) * MINUTE_MICROS);
        let (readings_topic, events_topic) =
            (plant.topic("temperature"), plant.topic("machine-events"));
        let bootstrap = plant.aggregator_settings.kafka_bootstrap.clone();
        Self {
            bootstrap,
            readings_topic,
            events_topic,
            start,
            minutes: 0,
            readings: 0,
            late: 0,
            others: 0,
        }
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
        produce(&self.bootstrap, &self.readings_topic, &readings)?;
        produce(&self.bootstrap, &self.events_topic, &events)?;
        self.minutes += 1;
        Ok(())
    }

    /// Records written to the topic of readings, whatever must come of them.
    pub(crate) fn of_readings_topic(&self) -> u64 {
        self.readings + self.late + self.others
    }

    /// Waits until all is in the lake and holds it against what was written.
    pub(crate) fn check(&self, plant: &Plant) -> anyhow::Result<()> {
        self.check_beside(plant, &[])
    }

    /// Like [`Self::check`], where tables hold rows besides those that meet a condition.
    pub(crate) fn check_beside(&self, plant: &Plant, ours: &[(&str, &str)]) -> anyhow::Result<()> {
        let lake = plant.lake();
        let condition = |table: &str| {
            ours.iter().find(|(name, _)| *name == table).map_or("true", |(_, condition)| condition)
        };
        let expected = [
            ("telemetry", self.readings),
            ("late_readings", self.late),
            ("machine_events", self.others),
            ("dead_letters", self.others),
        ];
        eventually("everything is in the lake", 2 * DEADLINE, || {
            for (table, expected) in expected {
                let rows = lake.count(&count_of(table, condition(table)))?;
                ensure!(rows >= expected, "{rows} rows in {table}, {expected} are expected");
            }
            Ok(())
        })?;
        for (table, expected) in expected {
            let condition = condition(table);
            let rows = lake.count(&count_of(table, condition))?;
            let different = lake.count(&format!(
                "SELECT count(DISTINCT (source_topic, source_partition, source_offset)) FROM {table} \
                 WHERE {condition}"
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

fn count_of(table: &str, condition: &str) -> String {
    format!("SELECT count(*) FROM {table} WHERE {condition}")
}

/// A number from the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
