//! Tables of what people are told and what they answer: `alerts`, `outcomes`, and `waveforms` to look at.

use std::sync::Arc;

use aggregator_core::AlertEvent;
use aggregator_core::checkpoint::TopicPartition;
use aggregator_core::rows::{OutcomeRow, WaveformRow};
use deltalake::arrow::array::{BinaryBuilder, TimestampMicrosecondBuilder};
use deltalake::arrow::datatypes::SchemaRef;
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::record_batch::RecordBatch;
use deltalake::kernel::{PrimitiveType, StructField};

use super::{Columns, column, source_columns};

/// Columns of `alerts`.
pub(super) fn alert_columns() -> Vec<StructField> {
    vec![
        column("date", PrimitiveType::Date),
        column("alert_id", PrimitiveType::String),
        column("revision", PrimitiveType::Integer),
        column("state", PrimitiveType::String),
        column("rule", PrimitiveType::String),
        column("severity", PrimitiveType::Integer),
        column("machine_id", PrimitiveType::String),
        column("sensor_id", PrimitiveType::String),
        column("window_start", PrimitiveType::Timestamp),
        column("window_end", PrimitiveType::Timestamp),
        column("findings", PrimitiveType::Long),
        column("count", PrimitiveType::Long),
        column("threshold", PrimitiveType::String),
        column("observed", PrimitiveType::Double),
        column("detail", PrimitiveType::String),
        column("trip_id", PrimitiveType::String),
        column("fired_at", PrimitiveType::Timestamp),
        column("changed_at", PrimitiveType::Timestamp),
        column("resolved_at", PrimitiveType::Timestamp),
        column("historical", PrimitiveType::Boolean),
        column("suppressed_by", PrimitiveType::String),
    ]
}

/// Columns of `outcomes`.
pub(super) fn outcome_columns() -> Vec<StructField> {
    let mut columns = vec![
        column("date", PrimitiveType::Date),
        column("outcome_id", PrimitiveType::String),
        column("verdict", PrimitiveType::String),
        column("machine_id", PrimitiveType::String),
        column("sensor_id", PrimitiveType::String),
        column("alert_id", PrimitiveType::String),
        column("trip_id", PrimitiveType::String),
        column("ticket_id", PrimitiveType::String),
        column("part", PrimitiveType::String),
        column("note", PrimitiveType::String),
        column("reported_by", PrimitiveType::String),
        column("timestamp", PrimitiveType::Timestamp),
        column("received_at", PrimitiveType::Timestamp),
    ];
    columns.extend(source_columns());
    columns
}

/// Columns of `waveforms`.
pub(super) fn waveform_columns() -> Vec<StructField> {
    let mut columns = vec![
        column("date", PrimitiveType::Date),
        column("machine_id", PrimitiveType::String),
        column("sensor_id", PrimitiveType::String),
        column("trip_id", PrimitiveType::String),
        column("piece", PrimitiveType::Integer),
        column("first_sample", PrimitiveType::Timestamp),
        column("sample_rate_hz", PrimitiveType::Double),
        column("unit", PrimitiveType::String),
        column("sample_count", PrimitiveType::Integer),
        column("samples", PrimitiveType::Binary),
        column("device_id", PrimitiveType::String),
        column("generation", PrimitiveType::Long),
        column("sequence", PrimitiveType::Long),
        column("received_at", PrimitiveType::Timestamp),
    ];
    columns.extend(source_columns());
    columns
}

/// Rows of `alerts`, by the day on which they fired.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn alert_batch(schema: &SchemaRef, rows: &[&AlertEvent]) -> Result<RecordBatch, ArrowError> {
    let mut columns = Columns::new();
    let all = || rows.iter();
    columns.dates(all().map(|row| row.fired_at.micros()));
    columns.texts("alert_id", all().map(|row| Some(row.alert_id.as_str())));
    columns.integers("revision", all().map(|row| row.revision.cast_signed()));
    columns.texts("state", all().map(|row| Some(row.state.as_str())));
    columns.texts("rule", all().map(|row| Some(row.rule.as_str())));
    columns.integers("severity", all().map(|row| i32::from(row.severity)));
    columns.texts("machine_id", all().map(|row| row.machine_id.as_ref().map(|id| id.as_str())));
    columns.texts("sensor_id", all().map(|row| row.sensor_id.as_ref().map(|id| id.as_str())));
    columns.times("window_start", all().map(|row| row.window_start.micros()));
    columns.times("window_end", all().map(|row| row.window_end.micros()));
    columns.longs("findings", all().map(|row| Some(row.findings.cast_signed())));
    columns.longs("count", all().map(|row| Some(row.count.cast_signed())));
    columns.texts("threshold", all().map(|row| Some(row.threshold.as_str())));
    columns.doubles("observed", all().map(|row| Some(row.observed)));
    columns.texts("detail", all().map(|row| Some(row.detail.as_str())));
    columns.texts("trip_id", all().map(|row| row.trip_id.as_deref()));
    columns.times("fired_at", all().map(|row| row.fired_at.micros()));
    columns.times("changed_at", all().map(|row| row.changed_at.micros()));
    let mut resolved = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    all().for_each(|row| resolved.append_option(row.resolved_at.map(|at| at.micros())));
    columns.add("resolved_at", Arc::new(resolved.finish()));
    columns.flags("historical", all().map(|row| row.historical));
    columns.texts("suppressed_by", all().map(|row| row.suppressed_by.as_deref()));
    columns.finish(schema)
}

/// Rows of `outcomes` with the partitions they came from.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn outcome_batch(
    schema: &SchemaRef,
    rows: &[(&TopicPartition, &OutcomeRow)],
) -> Result<RecordBatch, ArrowError> {
    let mut columns = Columns::new();
    let all = || rows.iter().map(|(_, row)| *row);
    columns.dates(all().map(|row| row.timestamp.micros()));
    columns.texts("outcome_id", all().map(|row| Some(row.outcome_id.as_str())));
    columns.texts("verdict", all().map(|row| Some(row.verdict.as_str())));
    columns.texts("machine_id", all().map(|row| Some(row.machine_id.as_str())));
    columns.texts("sensor_id", all().map(|row| row.sensor_id.as_deref()));
    columns.texts("alert_id", all().map(|row| row.alert_id.as_deref()));
    columns.texts("trip_id", all().map(|row| row.trip_id.as_deref()));
    columns.texts("ticket_id", all().map(|row| row.ticket_id.as_deref()));
    columns.texts("part", all().map(|row| row.part.as_deref()));
    columns.texts("note", all().map(|row| row.note.as_deref()));
    columns.texts("reported_by", all().map(|row| row.reported_by.as_deref()));
    columns.times("timestamp", all().map(|row| row.timestamp.micros()));
    columns.times("received_at", all().map(|row| row.received_at.micros()));
    let sources: Vec<_> = rows.iter().map(|(source, row)| (*source, row.offset.0)).collect();
    columns.sources(&sources);
    columns.finish(schema)
}

/// Rows of `waveforms` with the partitions they came from.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn waveform_batch(
    schema: &SchemaRef,
    rows: &[(&TopicPartition, &WaveformRow)],
) -> Result<RecordBatch, ArrowError> {
    let mut columns = Columns::new();
    let all = || rows.iter().map(|(_, row)| *row);
    columns.dates(all().map(|row| row.first_sample.micros()));
    columns.texts("machine_id", all().map(|row| Some(row.machine_id.as_str())));
    columns.texts("sensor_id", all().map(|row| Some(row.sensor_id.as_str())));
    columns.texts("trip_id", all().map(|row| Some(row.trip_id.as_str())));
    columns.integers("piece", all().map(|row| row.piece.cast_signed()));
    columns.times("first_sample", all().map(|row| row.first_sample.micros()));
    columns.doubles("sample_rate_hz", all().map(|row| Some(row.sample_rate_hz)));
    columns.texts("unit", all().map(|row| row.unit.as_deref()));
    let counts = all().map(|row| i32::try_from(row.sample_count()).unwrap_or(i32::MAX));
    columns.integers("sample_count", counts);
    let mut samples = BinaryBuilder::new();
    all().for_each(|row| samples.append_value(&row.samples));
    columns.add("samples", Arc::new(samples.finish()));
    columns.identities(all().map(|row| row.identity.as_ref()));
    columns.times("received_at", all().map(|row| row.received_at.micros()));
    let sources: Vec<_> = rows.iter().map(|(source, row)| (*source, row.offset.0)).collect();
    columns.sources(&sources);
    columns.finish(schema)
}
