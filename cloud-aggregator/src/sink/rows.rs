//! Schemas of the tables, and their rows as Arrow batches.
//!
//! Every timestamp is in microseconds with the zone UTC: without a zone the table would need reader version 3, which
//! some readers refuse. Unsigned 64-bit numbers (generation, sequence) are stored by their bits in a signed column.

mod people;

use std::collections::BTreeMap;
use std::sync::Arc;

use aggregator_core::AnomalyRow;
use aggregator_core::checkpoint::{SideTable, TopicPartition};
use aggregator_core::rows::{DeadLetterRow, IdentityRow, LateReadingRow, MachineEventRow};
use deltalake::arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Float64Builder, Int32Builder,
    Int64Builder, MapBuilder, MapFieldNames, StringBuilder, StructArray, TimestampMicrosecondArray,
    TimestampMicrosecondBuilder,
};
use deltalake::arrow::datatypes::{DataType as ArrowType, Field, SchemaRef};
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::record_batch::RecordBatch;
use deltalake::kernel::{DataType, MapType, PrimitiveType, StructField, StructType};
use shared_proto::model::{Identity, Reading};

pub use people::{alert_batch, outcome_batch, waveform_batch};

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Name of the table that every reading goes to.
pub const TELEMETRY: &str = "telemetry";

fn column(name: &str, kind: PrimitiveType) -> StructField {
    StructField::nullable(name, DataType::Primitive(kind))
}

fn reading_columns() -> Vec<StructField> {
    let features = MapType::new(DataType::STRING, DataType::DOUBLE, true);
    let mut columns = vec![
        column("date", PrimitiveType::Date),
        column("metric_type", PrimitiveType::String),
        column("sensor_id", PrimitiveType::String),
        column("timestamp", PrimitiveType::Timestamp),
        column("value", PrimitiveType::Double),
        column("machine_id", PrimitiveType::String),
        column("unit", PrimitiveType::String),
        column("quality", PrimitiveType::String),
        column("device_id", PrimitiveType::String),
        column("generation", PrimitiveType::Long),
        column("sequence", PrimitiveType::Long),
        column("historical", PrimitiveType::Boolean),
        StructField::nullable("features", DataType::Map(Box::new(features))),
    ];
    columns.extend(source_columns());
    columns
}

fn source_columns() -> [StructField; 3] {
    [
        column("source_topic", PrimitiveType::String),
        column("source_partition", PrimitiveType::Integer),
        column("source_offset", PrimitiveType::Long),
    ]
}

/// Columns of `telemetry`, partitioned by [`reading_partitions`].
#[must_use]
pub fn telemetry_columns() -> Vec<StructField> {
    reading_columns()
}

/// Partition columns of `telemetry` and `late_readings`.
#[must_use]
pub fn reading_partitions() -> Vec<String> {
    vec!["date".to_owned(), "metric_type".to_owned()]
}

/// Columns and partition columns of a side table.
#[must_use]
pub fn side_columns(table: SideTable) -> (Vec<StructField>, Vec<String>) {
    let by_date = vec!["date".to_owned()];
    match table {
        SideTable::Anomalies => (anomaly_columns(), by_date),
        SideTable::LateReadings => {
            let mut columns = reading_columns();
            columns.push(column("received_at", PrimitiveType::Timestamp));
            (columns, reading_partitions())
        }
        SideTable::MachineEvents => (machine_event_columns(), by_date),
        SideTable::DeadLetters => (dead_letter_columns(), by_date),
        SideTable::Alerts => (people::alert_columns(), by_date),
        SideTable::Outcomes => (people::outcome_columns(), by_date),
        SideTable::Waveforms => (people::waveform_columns(), by_date),
    }
}

fn anomaly_columns() -> Vec<StructField> {
    let window = StructType::try_new([
        column("start", PrimitiveType::Timestamp),
        column("end", PrimitiveType::Timestamp),
    ])
    .expect("two fields of different names");
    vec![
        column("date", PrimitiveType::Date),
        column("rule", PrimitiveType::String),
        column("sensor_id", PrimitiveType::String),
        column("machine_id", PrimitiveType::String),
        StructField::nullable("window", DataType::from(window)),
        column("window_start", PrimitiveType::Timestamp),
        column("window_end", PrimitiveType::Timestamp),
        column("is_anomaly", PrimitiveType::Boolean),
        column("count", PrimitiveType::Long),
        column("revision", PrimitiveType::Integer),
        column("closed_by", PrimitiveType::String),
        column("max_value", PrimitiveType::Double),
        column("min_value", PrimitiveType::Double),
        column("mean_value", PrimitiveType::Double),
        column("rate_of_change", PrimitiveType::Double),
        column("first_match", PrimitiveType::Timestamp),
        column("last_match", PrimitiveType::Timestamp),
        column("emitted_at", PrimitiveType::Timestamp),
    ]
}

/// Columns of a table of which each file's least and greatest value are in the log, so that readers leave files out. Those
/// of all columns would be most of the log.
#[must_use]
pub fn statistics_columns(table: &str) -> &'static [&'static str] {
    const READINGS: &[&str] = &["sensor_id", "timestamp", "value", "machine_id", "source_offset"];
    const WINDOWS: &[&str] = &["rule", "sensor_id", "machine_id", "window_start", "emitted_at"];
    const EVENTS: &[&str] = &["event_type", "machine_id", "timestamp", "received_at"];
    const ALERTS: &[&str] = &["alert_id", "rule", "machine_id", "fired_at", "window_start"];
    const OUTCOMES: &[&str] = &["machine_id", "timestamp", "received_at"];
    const WAVEFORMS: &[&str] = &["machine_id", "sensor_id", "trip_id", "first_sample"];
    const LETTERS: &[&str] = &["reason", "timestamp", "source_offset", "received_at"];
    match table {
        TELEMETRY => READINGS,
        CURRENT_WINDOWS => WINDOWS,
        _ if table == SideTable::LateReadings.as_str() => READINGS,
        _ if table == SideTable::Anomalies.as_str() => WINDOWS,
        _ if table == SideTable::MachineEvents.as_str() => EVENTS,
        _ if table == SideTable::DeadLetters.as_str() => LETTERS,
        _ if table == SideTable::Alerts.as_str() => ALERTS,
        _ if table == SideTable::Outcomes.as_str() => OUTCOMES,
        _ if table == SideTable::Waveforms.as_str() => WAVEFORMS,
        _ => &[],
    }
}

/// The table property that tells writers so.
pub const STATISTICS_PROPERTY: &str = "delta.dataSkippingStatsColumns";

/// Name of the table of rules in output mode `complete`.
pub const CURRENT_WINDOWS: &str = "current_windows";
/// Its partition column: the Kafka partition that a row came from, as `<topic>/<partition>`.
pub const OWNER: &str = "owner";

/// Columns of `current_windows`, partitioned by [`OWNER`].
#[must_use]
pub fn current_columns() -> Vec<StructField> {
    let mut columns = anomaly_columns();
    columns.push(column(OWNER, PrimitiveType::String));
    columns
}

/// Rows of `current_windows` with the Kafka partitions they came from.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn current_batch(
    schema: &SchemaRef,
    rows: &[(&TopicPartition, &AnomalyRow)],
) -> Result<RecordBatch, ArrowError> {
    let windows: Vec<&AnomalyRow> = rows.iter().map(|(_, row)| *row).collect();
    let mut columns = window_columns(schema, &windows)?;
    let owners: Vec<String> = rows.iter().map(|(owner, _)| owner.to_string()).collect();
    columns.texts(OWNER, owners.iter().map(|owner| Some(owner.as_str())));
    columns.finish(schema)
}

fn machine_event_columns() -> Vec<StructField> {
    let mut columns = vec![
        column("date", PrimitiveType::Date),
        column("event_type", PrimitiveType::String),
        column("machine_id", PrimitiveType::String),
        column("timestamp", PrimitiveType::Timestamp),
        column("device_id", PrimitiveType::String),
        column("generation", PrimitiveType::Long),
        column("sequence", PrimitiveType::Long),
        column("historical", PrimitiveType::Boolean),
        column("cause", PrimitiveType::String),
        column("rule", PrimitiveType::String),
        column("sensor_id", PrimitiveType::String),
        column("metric_type", PrimitiveType::String),
        column("value", PrimitiveType::Double),
        column("limit", PrimitiveType::Double),
        column("score", PrimitiveType::Double),
        column("model", PrimitiveType::String),
        column("command_latency_micros", PrimitiveType::Long),
        column("confirmation_latency_micros", PrimitiveType::Long),
        column("first_sequence", PrimitiveType::Long),
        column("last_sequence", PrimitiveType::Long),
        column("record_count", PrimitiveType::Long),
        column("detail", PrimitiveType::String),
        column("rule_version", PrimitiveType::String),
        column("trip_id", PrimitiveType::String),
        column("operator", PrimitiveType::String),
        column("delivered_sequence", PrimitiveType::Long),
        column("waveform_sequences", PrimitiveType::String),
        column("contributions", PrimitiveType::String),
    ];
    columns.extend(source_columns());
    columns.push(column("received_at", PrimitiveType::Timestamp));
    columns
}

fn dead_letter_columns() -> Vec<StructField> {
    let mut columns = vec![
        column("date", PrimitiveType::Date),
        column("reason", PrimitiveType::String),
        column("detail", PrimitiveType::String),
        column("source", PrimitiveType::String),
        column("timestamp", PrimitiveType::Timestamp),
        column("device_id", PrimitiveType::String),
        column("generation", PrimitiveType::Long),
        column("sequence", PrimitiveType::Long),
        column("raw", PrimitiveType::Binary),
        column("raw_length", PrimitiveType::Long),
        column("content_type", PrimitiveType::String),
    ];
    columns.extend(source_columns());
    columns.push(column("received_at", PrimitiveType::Timestamp));
    columns
}

/// Columns by name, put into the order of a table.
struct Columns(BTreeMap<&'static str, ArrayRef>);

impl Columns {
    fn new() -> Self {
        Self(BTreeMap::new())
    }

    fn add(&mut self, name: &'static str, array: ArrayRef) {
        self.0.insert(name, array);
    }

    fn texts<'a>(&mut self, name: &'static str, values: impl Iterator<Item = Option<&'a str>>) {
        let mut builder = StringBuilder::new();
        values.for_each(|value| builder.append_option(value));
        self.add(name, Arc::new(builder.finish()));
    }

    fn times(&mut self, name: &'static str, micros: impl Iterator<Item = i64>) {
        let array = TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC");
        self.add(name, Arc::new(array));
    }

    fn dates(&mut self, micros: impl Iterator<Item = i64>) {
        let mut builder = Date32Builder::new();
        micros.for_each(|micros| builder.append_value(day(micros)));
        self.add("date", Arc::new(builder.finish()));
    }

    fn longs(&mut self, name: &'static str, values: impl Iterator<Item = Option<i64>>) {
        let mut builder = Int64Builder::new();
        values.for_each(|value| builder.append_option(value));
        self.add(name, Arc::new(builder.finish()));
    }

    fn integers(&mut self, name: &'static str, values: impl Iterator<Item = i32>) {
        let mut builder = Int32Builder::new();
        values.for_each(|value| builder.append_value(value));
        self.add(name, Arc::new(builder.finish()));
    }

    fn doubles(&mut self, name: &'static str, values: impl Iterator<Item = Option<f64>>) {
        let mut builder = Float64Builder::new();
        values.for_each(|value| builder.append_option(value));
        self.add(name, Arc::new(builder.finish()));
    }

    fn flags(&mut self, name: &'static str, values: impl Iterator<Item = bool>) {
        let mut builder = BooleanBuilder::new();
        values.for_each(|value| builder.append_value(value));
        self.add(name, Arc::new(builder.finish()));
    }

    fn sources(&mut self, rows: &[(&TopicPartition, i64)]) {
        self.texts("source_topic", rows.iter().map(|(from, _)| Some(from.topic.as_str())));
        self.integers("source_partition", rows.iter().map(|(from, _)| from.partition));
        self.longs("source_offset", rows.iter().map(|(_, offset)| Some(*offset)));
    }

    fn identities<'a>(&mut self, rows: impl Iterator<Item = Option<&'a IdentityRow>> + Clone) {
        let device = |row: Option<&'a IdentityRow>| row.map(|row| row.device_id.as_str());
        self.texts("device_id", rows.clone().map(device));
        let generation = |row: &IdentityRow| row.generation.0.cast_signed();
        self.longs("generation", rows.clone().map(|row| row.map(generation)));
        let sequence = |row: &IdentityRow| row.sequence.0.cast_signed();
        self.longs("sequence", rows.map(|row| row.map(sequence)));
    }

    fn finish(mut self, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
        let rows = self.0.values().next().map_or(0, |array| array.len());
        let arrays = schema
            .fields()
            .iter()
            .map(|field| {
                // A column that somebody has added to the table stays empty.
                self.0.remove(field.name().as_str()).unwrap_or_else(|| {
                    deltalake::arrow::array::new_null_array(field.data_type(), rows)
                })
            })
            .collect();
        RecordBatch::try_new(Arc::clone(schema), arrays)
    }
}

fn day(micros: i64) -> i32 {
    i32::try_from(micros.div_euclid(MICROS_PER_DAY)).unwrap_or(i32::MAX)
}

/// Collects readings as columns.
pub struct ReadingColumns {
    schema: SchemaRef,
    rows: usize,
    dates: Date32Builder,
    metric_types: StringBuilder,
    sensor_ids: StringBuilder,
    timestamps: TimestampMicrosecondBuilder,
    values: Float64Builder,
    machine_ids: StringBuilder,
    units: StringBuilder,
    qualities: StringBuilder,
    device_ids: StringBuilder,
    generations: Int64Builder,
    sequences: Int64Builder,
    historical: BooleanBuilder,
    features: MapBuilder<StringBuilder, Float64Builder>,
    topics: StringBuilder,
    partitions: Int32Builder,
    offsets: Int64Builder,
}

impl ReadingColumns {
    /// No rows yet. `schema` is the table's.
    #[must_use]
    pub fn new(schema: SchemaRef) -> Self {
        let features =
            MapBuilder::new(map_field_names(&schema), StringBuilder::new(), Float64Builder::new());
        Self {
            schema,
            rows: 0,
            dates: Date32Builder::new(),
            metric_types: StringBuilder::new(),
            sensor_ids: StringBuilder::new(),
            timestamps: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            values: Float64Builder::new(),
            machine_ids: StringBuilder::new(),
            units: StringBuilder::new(),
            qualities: StringBuilder::new(),
            device_ids: StringBuilder::new(),
            generations: Int64Builder::new(),
            sequences: Int64Builder::new(),
            historical: BooleanBuilder::new(),
            features,
            topics: StringBuilder::new(),
            partitions: Int32Builder::new(),
            offsets: Int64Builder::new(),
        }
    }

    /// Rows collected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether no row is collected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds one reading.
    ///
    /// # Errors
    /// The features do not fit a map; the builder is then unusable.
    pub fn push(
        &mut self,
        reading: &Reading,
        source: &TopicPartition,
        offset: i64,
    ) -> Result<(), ArrowError> {
        let micros = reading.timestamp.micros();
        self.dates.append_value(day(micros));
        self.metric_types.append_value(reading.metric_type.as_str());
        self.sensor_ids.append_value(reading.sensor_id.as_str());
        self.timestamps.append_value(micros);
        self.values.append_value(reading.value);
        self.machine_ids.append_option(reading.machine_id.as_ref().map(AsRef::<str>::as_ref));
        self.units.append_option(reading.unit.as_deref());
        self.qualities.append_option(reading.quality.map(|quality| quality.as_str()));
        self.push_identity(reading.identity.as_ref());
        self.historical.append_value(reading.historical);
        for (name, value) in &reading.features {
            self.features.keys().append_value(name);
            self.features.values().append_value(*value);
        }
        self.features.append(!reading.features.is_empty())?;
        self.topics.append_value(&source.topic);
        self.partitions.append_value(source.partition);
        self.offsets.append_value(offset);
        self.rows += 1;
        Ok(())
    }

    fn push_identity(&mut self, identity: Option<&Identity>) {
        self.device_ids.append_option(identity.map(|identity| identity.device_id.as_str()));
        self.generations
            .append_option(identity.map(|identity| identity.generation.0.cast_signed()));
        self.sequences.append_option(identity.map(|identity| identity.sequence.0.cast_signed()));
    }

    /// The rows so far as one batch; the collection is empty afterwards.
    ///
    /// # Errors
    /// The table has a column of ours with another type.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.columns().finish(&self.schema)
    }

    fn columns(&mut self) -> Columns {
        self.rows = 0;
        let mut columns = Columns::new();
        columns.add("date", Arc::new(self.dates.finish()));
        columns.add("metric_type", Arc::new(self.metric_types.finish()));
        columns.add("sensor_id", Arc::new(self.sensor_ids.finish()));
        columns.add("timestamp", Arc::new(self.timestamps.finish()));
        columns.add("value", Arc::new(self.values.finish()));
        columns.add("machine_id", Arc::new(self.machine_ids.finish()));
        columns.add("unit", Arc::new(self.units.finish()));
        columns.add("quality", Arc::new(self.qualities.finish()));
        columns.add("device_id", Arc::new(self.device_ids.finish()));
        columns.add("generation", Arc::new(self.generations.finish()));
        columns.add("sequence", Arc::new(self.sequences.finish()));
        columns.add("historical", Arc::new(self.historical.finish()));
        columns.add("features", Arc::new(self.features.finish()));
        columns.add("source_topic", Arc::new(self.topics.finish()));
        columns.add("source_partition", Arc::new(self.partitions.finish()));
        columns.add("source_offset", Arc::new(self.offsets.finish()));
        columns
    }
}

impl std::fmt::Debug for ReadingColumns {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ReadingColumns").field("rows", &self.rows).finish_non_exhaustive()
    }
}

fn map_field_names(schema: &SchemaRef) -> Option<MapFieldNames> {
    let field = schema.field_with_name("features").ok()?;
    let ArrowType::Map(entry, _) = field.data_type() else { return None };
    let ArrowType::Struct(fields) = entry.data_type() else { return None };
    Some(MapFieldNames {
        entry: entry.name().clone(),
        key: fields.first()?.name().clone(),
        value: fields.get(1)?.name().clone(),
    })
}

/// Rows of `anomalies`.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn anomaly_batch(schema: &SchemaRef, rows: &[&AnomalyRow]) -> Result<RecordBatch, ArrowError> {
    window_columns(schema, rows)?.finish(schema)
}

fn window_columns(schema: &SchemaRef, rows: &[&AnomalyRow]) -> Result<Columns, ArrowError> {
    let mut columns = Columns::new();
    let starts = || rows.iter().map(|row| row.window_start.micros());
    let ends = || rows.iter().map(|row| row.window_end.micros());
    columns.dates(starts());
    columns.texts("rule", rows.iter().map(|row| Some(row.rule.as_str())));
    let sensors = rows.iter().map(|row| row.sensor_id.as_ref().map(|id| id.as_str()));
    columns.texts("sensor_id", sensors);
    let machines = rows.iter().map(|row| row.machine_id.as_ref().map(|id| id.as_str()));
    columns.texts("machine_id", machines);
    columns.flags("is_anomaly", rows.iter().map(|row| row.is_anomaly));
    columns.times("window_start", starts());
    columns.times("window_end", ends());
    columns.add("window", window_column(schema, starts(), ends())?);
    columns.longs("count", rows.iter().map(|row| Some(row.count.cast_signed())));
    columns.integers("revision", rows.iter().map(|row| row.revision.cast_signed()));
    columns.texts("closed_by", rows.iter().map(|row| Some(row.closed_by.as_str())));
    columns.doubles("max_value", rows.iter().map(|row| Some(row.max_value)));
    columns.doubles("min_value", rows.iter().map(|row| Some(row.min_value)));
    columns.doubles("mean_value", rows.iter().map(|row| Some(row.mean_value)));
    columns.doubles("rate_of_change", rows.iter().map(|row| row.rate_of_change));
    columns.times("first_match", rows.iter().map(|row| row.first_match.micros()));
    columns.times("last_match", rows.iter().map(|row| row.last_match.micros()));
    columns.times("emitted_at", rows.iter().map(|row| row.emitted_at.micros()));
    Ok(columns)
}

fn window_column(
    schema: &SchemaRef,
    starts: impl Iterator<Item = i64>,
    ends: impl Iterator<Item = i64>,
) -> Result<ArrayRef, ArrowError> {
    let ArrowType::Struct(fields) = schema.field_with_name("window")?.data_type() else {
        return Err(ArrowError::SchemaError("column window is no struct".to_owned()));
    };
    let times = |micros: Vec<i64>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"))
    };
    let arrays = vec![times(starts.collect()), times(ends.collect())];
    Ok(Arc::new(StructArray::try_new(fields.clone(), arrays, None)?))
}

/// Rows of `late_readings` with the partitions they came from.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn late_batch(
    schema: &SchemaRef,
    rows: &[(&TopicPartition, &LateReadingRow)],
) -> Result<RecordBatch, ArrowError> {
    let mut builder = ReadingColumns::new(Arc::clone(schema));
    for (source, row) in rows {
        let reading = Reading {
            sensor_id: row.sensor_id.clone(),
            timestamp: row.timestamp,
            metric_type: row.metric_type.clone(),
            value: row.value,
            machine_id: row.machine_id.clone(),
            unit: row.unit.as_deref().map(Into::into),
            quality: row.quality,
            identity: row.identity.as_ref().map(|identity| Identity {
                device_id: identity.device_id.clone(),
                generation: identity.generation,
                sequence: identity.sequence,
            }),
            historical: row.historical,
            features: row.features.clone(),
        };
        builder.push(&reading, source, row.offset.0)?;
    }
    let mut columns = builder.columns();
    columns.times("received_at", rows.iter().map(|(_, row)| row.received_at.micros()));
    columns.finish(schema)
}

/// Rows of `machine_events` with the partitions they came from.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn machine_event_batch(
    schema: &SchemaRef,
    rows: &[(&TopicPartition, &MachineEventRow)],
) -> Result<RecordBatch, ArrowError> {
    let mut columns = Columns::new();
    let events = || rows.iter().map(|(_, row)| *row);
    let long = |value: Option<u64>| value.map(u64::cast_signed);
    columns.dates(events().map(|row| row.timestamp.micros()));
    columns.texts("event_type", events().map(|row| Some(row.event_type.as_str())));
    columns.texts("machine_id", events().map(|row| Some(row.machine_id.as_str())));
    columns.times("timestamp", events().map(|row| row.timestamp.micros()));
    columns.identities(events().map(|row| row.identity.as_ref()));
    columns.flags("historical", events().map(|row| row.historical));
    columns.texts("cause", events().map(|row| row.details.cause.as_deref()));
    columns.texts("rule", events().map(|row| row.details.rule.as_deref()));
    columns.texts(
        "sensor_id",
        events().map(|row| row.details.sensor_id.as_ref().map(|id| id.as_str())),
    );
    columns.texts(
        "metric_type",
        events().map(|row| row.details.metric_type.as_ref().map(|name| name.as_str())),
    );
    columns.doubles("value", events().map(|row| row.details.value));
    columns.doubles("limit", events().map(|row| row.details.limit));
    columns.doubles("score", events().map(|row| row.details.score));
    columns.texts("model", events().map(|row| row.details.model.as_deref()));
    columns.longs(
        "command_latency_micros",
        events().map(|row| long(row.details.command_latency_micros)),
    );
    columns.longs(
        "confirmation_latency_micros",
        events().map(|row| long(row.details.confirmation_latency_micros)),
    );
    columns.longs("first_sequence", events().map(|row| long(row.details.first_sequence)));
    columns.longs("last_sequence", events().map(|row| long(row.details.last_sequence)));
    columns.longs("record_count", events().map(|row| long(row.details.record_count)));
    columns.texts("detail", events().map(|row| row.details.detail.as_deref()));
    columns.texts("rule_version", events().map(|row| row.details.rule_version.as_deref()));
    columns.texts("trip_id", events().map(|row| row.details.trip_id.as_deref()));
    columns.texts("operator", events().map(|row| row.details.operator.as_deref()));
    columns.longs("delivered_sequence", events().map(|row| long(row.details.delivered_sequence)));
    let waveforms = events().map(|row| row.details.waveform_sequences.as_deref());
    columns.texts("waveform_sequences", waveforms);
    columns.texts("contributions", events().map(|row| row.details.contributions.as_deref()));
    let sources: Vec<_> = rows.iter().map(|(source, row)| (*source, row.offset.0)).collect();
    columns.sources(&sources);
    columns.times("received_at", events().map(|row| row.received_at.micros()));
    columns.finish(schema)
}

/// Rows of `dead_letters` with the partitions they came from.
///
/// # Errors
/// The table has a column of ours with another type.
pub fn dead_letter_batch(
    schema: &SchemaRef,
    rows: &[(&TopicPartition, &DeadLetterRow)],
) -> Result<RecordBatch, ArrowError> {
    let mut columns = Columns::new();
    let letters = || rows.iter().map(|(_, row)| *row);
    columns.dates(letters().map(|row| row.timestamp.micros()));
    columns.texts("reason", letters().map(|row| Some(row.reason.as_str())));
    columns.texts("detail", letters().map(|row| Some(row.detail.as_str())));
    columns.texts("source", letters().map(|row| Some(row.source.as_str())));
    columns.times("timestamp", letters().map(|row| row.timestamp.micros()));
    columns.identities(letters().map(|row| row.identity.as_ref()));
    let mut raw = BinaryBuilder::new();
    letters().for_each(|row| raw.append_value(&row.raw));
    columns.add("raw", Arc::new(raw.finish()));
    columns.longs("raw_length", letters().map(|row| Some(row.raw_length.cast_signed())));
    columns.texts("content_type", letters().map(|row| row.content_type.as_deref()));
    let sources: Vec<_> = rows.iter().map(|(source, row)| (*source, row.offset.0)).collect();
    columns.sources(&sources);
    columns.times("received_at", letters().map(|row| row.received_at.micros()));
    columns.finish(schema)
}

/// Fields of a schema by name, for tests and messages.
#[must_use]
pub fn field_names(schema: &SchemaRef) -> Vec<String> {
    schema.fields().iter().map(|field: &Arc<Field>| field.name().clone()).collect()
}
