//! What reading one record costs: `cargo bench -p shared-proto --bench decode`.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shared_proto::Encoding;
use shared_proto::codec::{Decoder, encode_reading};
use shared_proto::model::{
    DeviceId, EventTime, Generation, Identity, MachineId, MetricType, Quality, Reading, SensorId,
    Sequence,
};

/// So many records of as many sensors, in turn.
const SENSORS: u64 = 300;
/// 2026-03-01T08:00:00Z
const START_MICROS: i64 = 1_772_352_000_000_000;

fn reading(sensor: u64, is_full: bool) -> Reading {
    let mut reading = Reading::new(
        SensorId::new(&format!("sensor-{sensor:03}")).expect("a made name is valid"),
        EventTime::from_micros(START_MICROS + sensor as i64 * 1_001_000),
        MetricType::new("temperature").expect("a literal name is valid"),
        60.0 + sensor as f64 / 7.0,
    );
    if is_full {
        reading.machine_id = Some(MachineId::new("press-1").expect("a literal name is valid"));
        reading.unit = Some("Cel".into());
        reading.quality = Some(Quality::Good);
        reading.identity = Some(Identity {
            device_id: DeviceId::new("gw-07").expect("a literal name is valid"),
            generation: Generation(1_772_352_000_000_000),
            sequence: Sequence(sensor),
        });
        reading.features = BTreeMap::from([("rms".to_owned(), 3.72), ("score".to_owned(), 0.25)]);
    }
    reading
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(SENSORS));
    for (what, is_full) in [("four fields", false), ("all fields and two features", true)] {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let records: Vec<Vec<u8>> = (0..SENSORS)
                .map(|sensor| encode_reading(&reading(sensor, is_full), encoding))
                .collect();
            let mut decoder = Decoder::default();
            group.bench_function(format!("{encoding:?}, {what}"), |bencher| {
                bencher.iter(|| {
                    for record in &records {
                        drop(black_box(decoder.decode_reading(black_box(record), encoding)));
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
