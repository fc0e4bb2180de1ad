//! Rows of the side tables in the form in which a state file keeps them until they are committed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared_proto::model::{
    DeadLetter, DeviceId, EventTime, Generation, Identity, MachineEvent, MachineEventDetails,
    MachineEventType, MachineId, MetricType, Quality, Reading, SensorId, Sequence,
    WaveformSnapshot,
};

use crate::exact;
use crate::time::ProcessingTime;

/// Position of a record in its Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

/// [`Identity`] as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRow {
    /// The device whose journal numbered the record.
    pub device_id: DeviceId,
    /// The life of that journal.
    pub generation: Generation,
    /// The number within that life.
    pub sequence: Sequence,
}

impl From<&Identity> for IdentityRow {
    fn from(identity: &Identity) -> Self {
        Self {
            device_id: identity.device_id.clone(),
            generation: identity.generation,
            sequence: identity.sequence,
        }
    }
}

/// A row of `late_readings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LateReadingRow {
    /// Where it stood in its Kafka partition.
    pub offset: Offset,
    /// When it was found late.
    pub received_at: ProcessingTime,
    /// Who measured.
    pub sensor_id: SensorId,
    /// When.
    pub timestamp: EventTime,
    /// What.
    pub metric_type: MetricType,
    /// How much, in `unit`.
    #[serde(with = "exact::number")]
    pub value: f64,
    /// Which machine the sensor sits on.
    pub machine_id: Option<MachineId>,
    /// Unit of `value`.
    pub unit: Option<String>,
    /// What the producer thinks of it.
    pub quality: Option<Quality>,
    /// Which record of which device.
    pub identity: Option<IdentityRow>,
    /// Sent after its time.
    pub historical: bool,
    /// Derived numbers by name.
    #[serde(with = "exact::number_map")]
    pub features: BTreeMap<String, f64>,
}

impl LateReadingRow {
    /// The row of a reading that was late.
    #[must_use]
    pub fn new(offset: Offset, received_at: ProcessingTime, reading: Reading) -> Self {
        Self {
            offset,
            received_at,
            identity: reading.identity.as_ref().map(IdentityRow::from),
            sensor_id: reading.sensor_id,
            timestamp: reading.timestamp,
            metric_type: reading.metric_type,
            value: reading.value,
            machine_id: reading.machine_id,
            unit: reading.unit.map(|unit| unit.as_ref().to_owned()),
            quality: reading.quality,
            historical: reading.historical,
            features: reading.features,
        }
    }
}

/// A row of `machine_events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineEventRow {
    /// Where it stood in its Kafka partition.
    pub offset: Offset,
    /// When the aggregator took it.
    pub received_at: ProcessingTime,
    /// What happened.
    pub event_type: MachineEventType,
    /// To which machine.
    pub machine_id: MachineId,
    /// When.
    pub timestamp: EventTime,
    /// Which record of which device.
    pub identity: Option<IdentityRow>,
    /// Sent after its time.
    pub historical: bool,
    /// What else is known.
    pub details: MachineEventDetails,
}

impl MachineEventRow {
    /// The row of a machine event.
    #[must_use]
    pub fn new(offset: Offset, received_at: ProcessingTime, event: MachineEvent) -> Self {
        Self {
            offset,
            received_at,
            event_type: event.event_type,
            machine_id: event.machine_id,
            timestamp: event.timestamp,
            identity: event.identity.as_ref().map(IdentityRow::from),
            historical: event.historical,
            details: event.details,
        }
    }
}

/// A row of `dead_letters`: refused by the edge, by the decoder or by the core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterRow {
    /// Where it stood in its Kafka partition.
    pub offset: Offset,
    /// When the aggregator took it.
    pub received_at: ProcessingTime,
    /// A short word, for counting.
    pub reason: String,
    /// A sentence for people.
    pub detail: String,
    /// Where it came from: an MQTT or Kafka topic, or a device of a hub.
    pub source: String,
    /// When it was refused.
    pub timestamp: EventTime,
    /// Which record of which device.
    pub identity: Option<IdentityRow>,
    /// The first bytes.
    #[serde(with = "exact::hex")]
    pub raw: Vec<u8>,
    /// Length before the cut.
    pub raw_length: u64,
    /// What the bytes are, if they came from Kafka.
    #[serde(default)]
    pub content_type: Option<String>,
}

impl DeadLetterRow {
    /// The row of a dead letter.
    #[must_use]
    pub fn new(offset: Offset, received_at: ProcessingTime, letter: DeadLetter) -> Self {
        Self {
            offset,
            received_at,
            reason: letter.reason,
            detail: letter.detail,
            source: letter.source,
            timestamp: letter.timestamp,
            identity: letter.identity.as_ref().map(IdentityRow::from),
            raw: letter.raw,
            raw_length: letter.raw_length,
            content_type: None,
        }
    }
}

/// A row of `outcomes`: what people found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeRow {
    /// Where it stood in its Kafka partition.
    pub offset: Offset,
    /// When the aggregator took it.
    pub received_at: ProcessingTime,
    /// Name given by who told; of several rows of one name that with the latest timestamp, and then offset, counts.
    pub outcome_id: String,
    /// `confirmed`, `false-alarm`, `part-replaced` or `note`.
    pub verdict: String,
    /// Of which machine.
    pub machine_id: String,
    /// When it was found.
    pub timestamp: EventTime,
    /// Of which sensor.
    pub sensor_id: Option<String>,
    /// Of which alert.
    pub alert_id: Option<String>,
    /// Of which trip.
    pub trip_id: Option<String>,
    /// In which ticket.
    pub ticket_id: Option<String>,
    /// What was found or replaced.
    pub part: Option<String>,
    /// What else there is to say.
    pub note: Option<String>,
    /// Who told.
    pub reported_by: Option<String>,
}

/// A row of `waveforms`: consecutive samples of one sensor around a trip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaveformRow {
    /// Where it stood in its Kafka partition.
    pub offset: Offset,
    /// When the aggregator took it.
    pub received_at: ProcessingTime,
    /// Which machine the sensor sits on.
    pub machine_id: MachineId,
    /// Who measured.
    pub sensor_id: SensorId,
    /// Name of the trip, or of the alarm, that the samples were taken around.
    pub trip_id: String,
    /// Number among the pieces of this trip and sensor, from 1, oldest samples first.
    pub piece: u32,
    /// When the first sample was taken.
    pub first_sample: EventTime,
    /// Samples per second.
    #[serde(with = "exact::number")]
    pub sample_rate_hz: f64,
    /// Unit of the samples.
    pub unit: Option<String>,
    /// The samples in that unit: 32-bit floats, little-endian.
    #[serde(with = "exact::hex")]
    pub samples: Vec<u8>,
    /// Which record of which device.
    pub identity: Option<IdentityRow>,
}

impl WaveformRow {
    /// The row of a piece of samples.
    #[must_use]
    pub fn new(offset: Offset, received_at: ProcessingTime, snapshot: WaveformSnapshot) -> Self {
        let block = snapshot.block;
        Self {
            offset,
            received_at,
            machine_id: block.machine_id,
            sensor_id: block.sensor_id,
            trip_id: snapshot.trip_id,
            piece: snapshot.piece,
            first_sample: block.first_sample,
            sample_rate_hz: block.sample_rate_hz,
            unit: block.unit.map(|unit| unit.as_ref().to_owned()),
            samples: block.samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
            identity: snapshot.identity.as_ref().map(IdentityRow::from),
        }
    }

    /// How many samples there are.
    #[must_use]
    pub fn sample_count(&self) -> usize {
        self.samples.len() / size_of::<f32>()
    }
}
