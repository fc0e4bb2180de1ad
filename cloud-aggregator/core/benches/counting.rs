//! What one reading costs the core: `cargo bench -p aggregator-core --bench counting`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use aggregator_core::{Micros, Outputs, PartitionState, ProcessingTime, Settings};
use shared_proto::model::{
    DeviceId, EventTime, Generation, Identity, MetricType, Reading, SensorId, Sequence,
};

const SENSORS: usize = 300;
const READINGS: usize = 60_000;
/// 2026-03-01T08:00:00Z
const START_MICROS: i64 = 1_772_352_000_000_000;

/// One second apart for each sensor; each has its own copy of the name, as a decoder that keeps none gives it.
fn readings(metric_type: &str, hot_every: usize, is_identified: bool) -> Vec<Reading> {
    let metric_type = MetricType::new(metric_type).expect("a literal name is valid");
    let device_id = DeviceId::new("gw-07").expect("a literal name is valid");
    (0..READINGS)
        .map(|number| {
            let (round, sensor) = (number / SENSORS, number % SENSORS);
            let name = format!("machine-{:02}/sensor-{sensor:03}", sensor / 10);
            let micros = START_MICROS + round as i64 * 1_000_000;
            let is_hot = hot_every > 0 && (round + sensor) % hot_every == 0;
            let mut reading = Reading::new(
                SensorId::new(&name).expect("a made name is valid"),
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

fn sliding() -> Settings {
    let mut settings = Settings::default();
    for rule in &mut settings.rules {
        rule.slide = Micros::from_seconds(6);
    }
    settings
}

fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("counting");
    group.throughput(Throughput::Elements(READINGS as u64)).sample_size(20);
    let cases = [
        ("no rule looks at it", Settings::default(), readings("pressure", 0, false)),
        ("none matches", Settings::default(), readings("temperature", 0, false)),
        ("none matches, with identity", Settings::default(), readings("temperature", 0, true)),
        ("one in ten matches", Settings::default(), readings("temperature", 10, false)),
        ("all match", Settings::default(), readings("temperature", 1, false)),
        ("all match, ten sliding windows", sliding(), readings("temperature", 1, false)),
    ];
    for (what, settings, readings) in cases {
        group.bench_function(what, |bencher| {
            bencher.iter_batched_ref(
                || (PartitionState::new(&settings), Outputs::default()),
                |(state, out)| {
                    for reading in &readings {
                        let now = ProcessingTime::from_micros(reading.timestamp.micros());
                        state.handle_reading(reading, now, &settings, out);
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, count);
criterion_main!(benches);
