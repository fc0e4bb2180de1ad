//! Records to be read, and what a count of them by hand gives.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shared_proto::model::EventTime;

use crate::kafka::Kafka;
use crate::lake::WindowCount;
use crate::random::Random;

pub(super) const METRICS: [&str; 3] = ["temperature", "pressure", "vibration"];
const SPAN: Duration = Duration::from_secs(20 * 60);
pub(super) const WINDOW_MICROS: i64 = 60_000_000;
pub(super) const LIMIT: f64 = 100.0;
pub(super) const COUNT_MORE_THAN: u64 = 5;
/// Records that are astray are behind by up to this.
const ASTRAY_MICROS: u64 = 30_000_000;

/// How much of what is in the topics.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// Put before the names of the topics.
    pub(super) prefix: String,
    pub(super) records: u64,
    pub(super) sensors: u64,
    /// Of each topic.
    pub(super) partitions: i32,
    /// A new window begins so often.
    pub(super) slide_micros: i64,
    /// Every temperature is above the limit.
    pub(super) is_hot: bool,
}

/// What was put into the topics.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) workload: Workload,
    /// Windows with more matches than the rule allows, ordered.
    pub(super) windows: Vec<WindowCount>,
    /// Event time of the newest record, in microseconds since 1970.
    pub(super) end_micros: i64,
}

/// Makes the topics and fills them.
pub(super) fn preload(kafka: &Kafka, workload: Workload) -> anyhow::Result<Input> {
    let topics = METRICS.map(|metric| format!("{}{metric}", workload.prefix));
    kafka.create_topics(&topics.each_ref().map(String::as_str), workload.partitions)?;
    fill(kafka, workload)
}

/// Fills the topics.
///
/// Event time goes evenly through 20 minutes; 3 % are up to 30 s out of order. Every tenth sensor is hot in every fourth
/// minute (5 % of its temperatures above the limit), another tenth always a little (2 %), the rest hardly ever.
pub(super) fn fill(kafka: &Kafka, workload: Workload) -> anyhow::Result<Input> {
    let topics = METRICS.map(|metric| format!("{}{metric}", workload.prefix));
    let loader = kafka.loader()?;
    let mut random = Random::new(1);
    let start = start_of_input()?;
    let mut matches: BTreeMap<(String, i64), u64> = BTreeMap::new();
    let span = i64::try_from(SPAN.as_micros())?;
    for number in 0..workload.records {
        let metric = usize::try_from(number % 3)?;
        let sensor = random.below(workload.sensors);
        let passed = u128::from(number) * span as u128 / u128::from(workload.records);
        let even = start + i64::try_from(passed)?;
        let is_astray = random.below(100) < 3;
        let behind = if is_astray { i64::try_from(random.below(ASTRAY_MICROS))? } else { 0 };
        let key = format!("sensor-{sensor:03}");
        let value = match metric {
            0 => temperature(&mut random, &workload, sensor, even),
            1 => 900.0 + 300.0 * random.fraction(),
            _ => 12.0 * random.fraction(),
        };
        let timestamp = EventTime::from_micros((even - behind) / 1000 * 1000);
        if metric == 0 && value > LIMIT {
            note(&mut matches, &key, timestamp.micros(), workload.slide_micros);
        }
        loader.send(
            &topics[metric],
            &key,
            reading(&key, timestamp, METRICS[metric], value).as_bytes(),
        )?;
    }
    loader.finish()?;
    let windows = matches.into_iter().filter(|(_, count)| *count > COUNT_MORE_THAN);
    let windows = windows.map(|((sensor, window), count)| (sensor, window, count)).collect();
    Ok(Input { workload, windows, end_micros: start + span })
}

/// A reading of four fields, as JSON.
pub(super) fn reading(sensor: &str, timestamp: EventTime, metric: &str, value: f64) -> String {
    format!(
        "{{\"sensor_id\":\"{sensor}\",\"timestamp\":\"{timestamp}\",\"metric_type\":\"{metric}\",\"value\":{value:.3}}}"
    )
}

/// Counts a match in each window that it falls into.
fn note(matches: &mut BTreeMap<(String, i64), u64>, sensor: &str, micros: i64, slide: i64) {
    let newest = micros.div_euclid(slide) * slide;
    let mut start = newest;
    while start + WINDOW_MICROS > micros {
        *matches.entry((sensor.to_owned(), start)).or_default() += 1;
        start -= slide;
    }
}

/// Above the limit by at least a half: three digits after the point keep it there.
fn temperature(random: &mut Random, workload: &Workload, sensor: u64, micros: i64) -> f64 {
    let minute = micros.div_euclid(WINDOW_MICROS).cast_unsigned();
    let share = match sensor % 10 {
        _ if workload.is_hot => 1.0,
        0 if (minute + sensor / 10).is_multiple_of(4) => 0.05,
        5 => 0.02,
        _ => 0.000_25,
    };
    if random.fraction() < share {
        100.5 + 60.0 * random.fraction()
    } else {
        60.0 + 39.0 * random.fraction()
    }
}

/// On a full minute, so long ago that nothing of it is in the future.
fn start_of_input() -> anyhow::Result<i64> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    let minutes = i64::try_from(SPAN.as_secs() / 60)? + 10;
    Ok(now.div_euclid(WINDOW_MICROS) * WINDOW_MICROS - minutes * WINDOW_MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_match_counts_in_each_window_that_holds_it() {
        let check = |micros: i64, slide: i64, expected: &[i64]| {
            let mut matches = BTreeMap::new();
            note(&mut matches, "s", micros, slide);
            let starts: Vec<i64> = matches.into_keys().map(|(_, start)| start).collect();
            assert_eq!(starts, expected, "{micros} by {slide}");
        };
        check(0, WINDOW_MICROS, &[0]);
        check(WINDOW_MICROS - 1, WINDOW_MICROS, &[0]);
        check(65_000_000, 20_000_000, &[20_000_000, 40_000_000, 60_000_000]);
    }
}
