//! What waits on the stop path between the socket and the judge.
//!
//! A message is looked at as soon as it is read, so far as it costs nothing:
//!
//! - Input of sensors that no rule names is dropped here; only the sensor's name is read.
//! - Small messages with readings are judged at once, since comparing costs less than keeping.
//! - Large JSON arrays wait, by topic, and are judged element by element in slices of `slice-bytes`. Where too many of one topic
//!   wait, its oldest is judged at once by the first, lowest, highest and last value of each sensor: they came in one moment, and
//!   whatever limit one of them passes, one of these passes. An array that breaks off is judged up to the break.
//! - Waveform blocks wait, by sensor, for their windows, spectra and scores. Where too many of one sensor wait, its oldest is
//!   judged by its limits alone, at once and in order: levels cost little. Spectrum (unless a limit names a band) and score are
//!   what is shed.
//!
//! A reading or block whose number is none (NaN, infinite, `null`) is a piece too: its sensor is at fault, also where the
//! parser refuses the text, as it does bare `NaN`.
//!
//! Who waits is served in turn ([`FairQueue`]), one block or one slice at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use edge_core::fair::{FairLimits, FairQueue};
use rumqttc::Publish;
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::{Reading, SensorId, WaveformBlock};
use tracing::debug;

use crate::analysis::Depth;
use crate::config::Settings;
use crate::intake::{InputKind, InputTopics, encoding_of};
use crate::telemetry;
use glance::{Glance, next_element};
use unusable::sensors_of_readings;

mod glance;
mod unusable;

/// Sensors and topics that may wait at the same time: one block each of all the sensors of a large plant.
const KEYS_MAX: usize = 65_536;

/// Something to be judged now.
#[derive(Debug)]
pub enum Piece {
    /// A scalar reading of a sensor that a rule names.
    Reading(Reading),
    /// A block of a sensor that a rule names, and how far it is to be judged.
    Block(WaveformBlock, Depth),
    /// A sensor that a rule names gave a number that is none.
    Unusable(SensorId),
}

/// Pieces of one message.
#[derive(Debug)]
pub struct Pieces {
    /// When the message was read from the socket.
    pub received: Instant,
    /// Oldest first.
    pub pieces: Vec<Piece>,
    /// The message is judged to its end with these.
    pub is_last: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Sensor(SensorId),
    Topic(String),
}

struct Message {
    publish: Publish,
    received: Instant,
    /// Where an array goes on.
    offset: usize,
}

/// What waits; see the module's description.
pub struct Backlog {
    topics: InputTopics,
    watched: BTreeSet<SensorId>,
    queue: FairQueue<Key, Message>,
    slice_bytes: usize,
    payload_bytes_max: usize,
}

impl Backlog {
    /// An empty backlog for the sensors that rules name.
    #[must_use]
    pub fn new(settings: &Settings, watched: BTreeSet<SensorId>) -> Self {
        let protection = &settings.protection;
        let limits = FairLimits {
            items_max: protection.sensor_queue_length,
            weight_max: protection.sensor_queue_bytes,
            keys_max: KEYS_MAX,
        };
        Self {
            topics: InputTopics::new(&settings.mqtt),
            watched,
            queue: FairQueue::new(limits),
            slice_bytes: protection.slice_bytes,
            payload_bytes_max: settings.mqtt.payload_bytes_max,
        }
    }

    /// Changes the sensors that rules name. What waits of others is judged by nobody.
    pub fn set_watched(&mut self, watched: BTreeSet<SensorId>) {
        self.watched = watched;
    }

    /// Takes a message and gives back what is to be judged at once. Input that is refused is counted and kept by the recording
    /// session; here it is passed over.
    #[must_use]
    pub fn add(&mut self, publish: Publish, received: Instant) -> Vec<Pieces> {
        if publish.payload.len() > self.payload_bytes_max {
            return Vec::new();
        }
        let encoding = encoding_of(&publish.payload);
        match self.topics.kind(&publish.topic) {
            None => Vec::new(),
            Some(InputKind::Waveform) => {
                let Some(sensor) = self.watched_sensor(&publish.payload, encoding) else {
                    return Vec::new();
                };
                self.wait(Key::Sensor(sensor), publish, received)
            }
            Some(InputKind::Readings) => match encoding {
                Encoding::Json if publish.payload.len() > self.slice_bytes => {
                    self.wait(Key::Topic(publish.topic.clone()), publish, received)
                }
                Encoding::Json => {
                    let mut message = Message { publish, received, offset: 0 };
                    vec![self.slice(&mut message, usize::MAX)]
                }
                Encoding::Protobuf => {
                    let pieces = self.protobuf_reading(&publish.payload).into_iter().collect();
                    vec![Pieces { received, pieces, is_last: true }]
                }
            },
        }
    }

    /// Of pieces that were read elsewhere, those of sensors that rules name.
    #[must_use]
    pub fn watched_of(&self, mut pieces: Pieces) -> Pieces {
        pieces.pieces.retain(|piece| {
            let sensor = match piece {
                Piece::Reading(reading) => &reading.sensor_id,
                Piece::Block(block, _) => &block.sensor_id,
                Piece::Unusable(sensor) => sensor,
            };
            self.watched.contains(sensor)
        });
        pieces
    }

    /// Whether something waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Messages that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// The next unit of work: a block, or a slice of an array.
    pub fn take_next(&mut self) -> Option<Pieces> {
        let (key, mut message) = self.queue.pop()?;
        match key {
            Key::Sensor(sensor) => Some(block(sensor, &message, Depth::Full)),
            Key::Topic(_) => {
                let pieces = self.slice(&mut message, self.slice_bytes);
                if !pieces.is_last {
                    let weight = message.publish.payload.len();
                    self.queue.put_back(key, weight, message);
                }
                Some(pieces)
            }
        }
    }

    fn wait(&mut self, key: Key, publish: Publish, received: Instant) -> Vec<Pieces> {
        let weight = publish.payload.len();
        let message = Message { publish, received, offset: 0 };
        let excess = self.queue.push(key.clone(), weight, message);
        let judged = excess.into_iter().map(|mut message| match &key {
            Key::Sensor(sensor) => {
                metrics::counter!(telemetry::PROTECTION_SHED, "kind" => "block").increment(1);
                block(sensor.clone(), &message, Depth::Limits)
            }
            Key::Topic(_) => {
                metrics::counter!(telemetry::PROTECTION_SHED, "kind" => "array").increment(1);
                let pieces = self.extremes(&message);
                pieces.unwrap_or_else(|| self.slice(&mut message, usize::MAX))
            }
        });
        judged.collect()
    }

    fn protobuf_reading(&self, payload: &[u8]) -> Option<Piece> {
        let sensor = <ReadingName as prost::Message>::decode(payload).ok()?.sensor_id;
        if !self.watched.contains(sensor.as_str()) {
            return None;
        }
        match codec::decode_reading(payload, Encoding::Protobuf) {
            Ok(decoded) => Some(Piece::Reading(decoded.reading)),
            Err(_) => self.unusable(payload).pop(),
        }
    }

    /// Sensors of a refused reading whose number is none.
    fn unusable(&self, element: &[u8]) -> Vec<Piece> {
        let sensors = sensors_of_readings(element).into_iter();
        sensors.filter(|sensor| self.watched.contains(sensor)).map(Piece::Unusable).collect()
    }

    fn watched_sensor(&self, payload: &[u8], encoding: Encoding) -> Option<SensorId> {
        match encoding {
            Encoding::Json => {
                let glance = next_element(payload, 0)?;
                if glance.is_odd {
                    // An escape in the name, as in "press-1\/bearing": only decoding tells whose block it is.
                    let block = codec::decode_waveform_block(payload, encoding).ok()?;
                    return self.watched.get(&block.sensor_id).cloned();
                }
                self.watched.get(glance.sensor()?).cloned()
            }
            Encoding::Protobuf => {
                let name = <BlockName as prost::Message>::decode(payload).ok()?.sensor_id;
                self.watched.get(name.as_str()).cloned()
            }
        }
    }

    /// The elements of an array, or the one reading that the message is, from where it was left, until `bytes` are read.
    fn slice(&self, message: &mut Message, bytes: usize) -> Pieces {
        let payload = &message.publish.payload;
        let mut pieces = Vec::new();
        let end = message.offset.saturating_add(bytes);
        let mut is_last = false;
        while !is_last && message.offset < end {
            let Some(glance) = next_element(payload, message.offset) else {
                is_last = true;
                continue;
            };
            message.offset = glance.end;
            if self.is_of_interest(&glance) {
                pieces.extend(self.element(&glance));
            }
        }
        Pieces { received: message.received, pieces, is_last }
    }

    /// Whether an element may be of a sensor that a rule names.
    fn is_of_interest(&self, glance: &Glance<'_>) -> bool {
        glance.is_odd || glance.sensor().is_some_and(|sensor| self.watched.contains(sensor))
    }

    /// What an element is to the judge: a reading, sensors whose number is none, or nothing.
    fn element(&self, glance: &Glance<'_>) -> Vec<Piece> {
        match codec::decode_reading(glance.element, Encoding::Json) {
            Ok(decoded) if self.watched.contains(&decoded.reading.sensor_id) => {
                vec![Piece::Reading(decoded.reading)]
            }
            Ok(_) => Vec::new(),
            Err(_) => self.unusable(glance.element),
        }
    }

    fn reading(&self, glance: &Glance<'_>) -> Option<Piece> {
        let decoded = codec::decode_reading(glance.element, Encoding::Json).ok()?;
        let is_watched = self.watched.contains(&decoded.reading.sensor_id);
        is_watched.then_some(Piece::Reading(decoded.reading))
    }

    /// First, lowest, highest and last of what is left of an array, for each sensor, in their order. `None` if one of them
    /// cannot be read: then only reading all of them tells.
    fn extremes(&self, message: &Message) -> Option<Pieces> {
        let payload = &message.publish.payload;
        let mut extremes: BTreeMap<&str, [(f64, Glance<'_>); 4]> = BTreeMap::new();
        let mut offset = message.offset;
        while let Some(glance) = next_element(payload, offset) {
            offset = glance.end;
            if !self.is_of_interest(&glance) {
                continue;
            }
            let (sensor, value) =
                (glance.sensor()?, glance.value().filter(|value| value.is_finite())?);
            let [_, lowest, highest, last] =
                extremes.entry(sensor).or_insert_with(|| [(value, glance); 4]);
            if value < lowest.0 {
                *lowest = (value, glance);
            }
            if value > highest.0 {
                *highest = (value, glance);
            }
            *last = (value, glance);
        }
        let chosen: BTreeMap<usize, Glance<'_>> =
            extremes.into_values().flatten().map(|(_, glance)| (glance.end, glance)).collect();
        let pieces =
            chosen.values().map(|glance| self.reading(glance)).collect::<Option<Vec<_>>>()?;
        Some(Pieces { received: message.received, pieces, is_last: true })
    }
}

fn block(sensor: SensorId, message: &Message, depth: Depth) -> Pieces {
    let payload = &message.publish.payload;
    let pieces = match codec::decode_waveform_block(payload, encoding_of(payload)) {
        Ok(block) => vec![Piece::Block(block, depth)],
        Err(error) => {
            debug!(topic = message.publish.topic, error = %error.detail(), "not judged");
            let is_none = error.reason() == "not-finite";
            is_none.then_some(Piece::Unusable(sensor)).into_iter().collect()
        }
    };
    Pieces { received: message.received, pieces, is_last: true }
}

/// The sensor's name alone of a protobuf block.
#[derive(Clone, PartialEq, prost::Message)]
struct BlockName {
    #[prost(string, tag = "2")]
    sensor_id: String,
}

/// The sensor's name alone of a protobuf reading.
#[derive(Clone, PartialEq, prost::Message)]
struct ReadingName {
    #[prost(string, tag = "1")]
    sensor_id: String,
}

#[cfg(test)]
mod tests;
