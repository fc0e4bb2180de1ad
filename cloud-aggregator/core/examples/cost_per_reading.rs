//! Prints what one reading costs the core: a million readings of 300 sensors, one in ten above the limit.
//!
//! `cargo run -p aggregator-core --example cost_per_reading` (with `--release` for figures to quote)
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::time::Instant;

use aggregator_core::{Outputs, PartitionState, ProcessingTime, Settings};
use shared_proto::model::{
    DeviceId, EventTime, Generation, Identity, MetricType, Reading, SensorId, Sequence,
};

const SENSORS: usize = 300;
const READINGS: usize = 1_000_000;
/// 2026-03-01T08:00:00Z
const START_MICROS: i64 = 1_772_352_000_000_000;

fn main() {
    println!("{} readings of {SENSORS} sensors, one second apart, on {}", READINGS, cpu_model());
    for (name, hot_every) in
        [("no reading matches", 0), ("one in ten matches", 10), ("all match", 1)]
    {
        for is_identified in [false, true] {
            let readings = readings(hot_every, is_identified);
            let identified = if is_identified { "with identity" } else { "four fields" };
            measure(&format!("{name}, {identified}"), &readings);
        }
    }
}

fn measure(name: &str, readings: &[Reading]) {
    let settings = Settings::default();
    let mut state = PartitionState::new(&settings);
    let mut out = Outputs::default();
    let started = Instant::now();
    for reading in readings {
        let now = ProcessingTime::from_micros(reading.timestamp.micros());
        state.handle_reading(reading, now, &settings, &mut out);
    }
    let nanos = started.elapsed().as_nanos() / readings.len() as u128;
    let accounting = state.accounting();
    assert!(accounting.is_balanced() && accounting.counted == readings.len() as u64);
    let (rows, alerts, windows) = (out.anomalies.len(), out.alerts.len(), state.figures().windows);
    println!("{nanos:>5} ns per reading: {name} ({rows} rows, {alerts} alerts, {windows} windows)");
}

fn readings(hot_every: usize, is_identified: bool) -> Vec<Reading> {
    let metric_type = MetricType::new("temperature").expect("a literal name is valid");
    let device_id = DeviceId::new("gw-07").expect("a literal name is valid");
    (0..READINGS)
        .map(|number| {
            let (round, sensor) = (number / SENSORS, number % SENSORS);
            // Each reading has its own copy of the name, as it comes from the decoder.
            let sensor_id =
                SensorId::new(&format!("machine-{:02}/sensor-{sensor:03}", sensor / 10));
            let micros = START_MICROS + round as i64 * 1_000_000;
            let is_hot = hot_every > 0 && (round + sensor) % hot_every == 0;
            let mut reading = Reading::new(
                sensor_id.expect("a made name is valid"),
                EventTime::from_micros(micros),
                metric_type.clone(),
                if is_hot { 104.5 } else { 61.25 },
            );
            reading.identity = is_identified.then(|| Identity {
                device_id: device_id.clone(),
                generation: Generation(1),
                sequence: Sequence(number as u64 + 1),
            });
            reading
        })
        .collect()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("an unknown processor", |line| line.trim_start_matches([' ', '\t', ':'])).to_owned()
}
