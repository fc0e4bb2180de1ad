//! What one row of `telemetry` costs before it is encoded: `cargo bench -p cloud-aggregator --bench columns`.

use std::sync::Arc;

use aggregator_core::checkpoint::TopicPartition;
use cloud_aggregator::sink::rows::{ReadingColumns, telemetry_columns};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use deltalake::arrow::datatypes::Schema;
use deltalake::kernel::StructType;
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow as _;
use shared_proto::model::{EventTime, MetricType, Reading, SensorId};

/// As `lake.row-group-rows`.
const ROWS: usize = 16_384;
/// 2026-03-01T08:00:00Z
const START_MICROS: i64 = 1_772_352_000_000_000;

fn build(criterion: &mut Criterion) {
    let columns =
        StructType::try_new(telemetry_columns()).expect("the columns have different names");
    let schema: Schema = (&columns).try_into_arrow().expect("the columns have arrow types");
    let mut builder = ReadingColumns::new(Arc::new(schema));
    let source = TopicPartition { topic: "temperature".to_owned(), partition: 1 };
    let readings: Vec<Reading> = (0..ROWS)
        .map(|number| {
            Reading::new(
                SensorId::new(&format!("sensor-{:03}", number % 300))
                    .expect("a made name is valid"),
                EventTime::from_micros(START_MICROS + number as i64 * 1_000),
                MetricType::new("temperature").expect("a literal name is valid"),
                60.0 + number as f64 / 1_000.0,
            )
        })
        .collect();
    let mut group = criterion.benchmark_group("columns");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("four fields", |bencher| {
        bencher.iter(|| {
            for (offset, reading) in (0..).zip(&readings) {
                builder.push(reading, &source, offset).expect("no features");
            }
            builder.finish().expect("columns of one length")
        });
    });
    group.finish();
}

criterion_group!(benches, build);
criterion_main!(benches);
