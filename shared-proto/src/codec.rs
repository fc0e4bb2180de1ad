//! Bytes to domain types and back. The only way in: whatever leaves here has passed every check.
//!
//! Two encodings, told apart by the header [`crate::wire::CONTENT_TYPE_HEADER`]: JSON (the default; RFC 3339
//! timestamps, unknown fields ignored and counted) and protobuf (`proto/predictive_maintenance/v1`). Both carry the
//! same record; a repeated JSON key is refused, because no two readers agree on which one counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use prost::Message as _;

use crate::json::{RawDeadLetter, RawMachineEvent, RawReading};
use crate::model::{
    DEAD_LETTER_RAW_BYTES_MAX, DeadLetter, DeviceId, EventTime, FEATURE_NAME_BYTES_MAX,
    FEATURES_MAX, Generation, Identity, MachineEvent, MachineEventDetails, MachineEventType,
    MachineId, MetricType, NameError, Quality, READINGS_PER_ARRAY_MAX, Reading, SensorId, Sequence,
    UNIT_BYTES_MAX,
};
use crate::wire::{CONTENT_TYPE_JSON, CONTENT_TYPE_PROTOBUF, v1};

mod names;
mod outcome;
mod waveform;

pub use names::Decoder;
use names::{Fresh, Names};
pub use outcome::{decode_outcome, decode_outcome_of_request, encode_outcome};
pub use waveform::{
    counts, decode_waveform_block, decode_waveform_snapshot, encode_waveform_block,
    encode_waveform_snapshot, waveform_scale,
};

/// How the bytes of a record are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// UTF-8 JSON, one object.
    Json,
    /// Protocol Buffers, one message.
    Protobuf,
}

impl Encoding {
    /// The encoding that a content-type header names (RFC 9110, section 8.3.1: in any case, perhaps with parameters);
    /// absent means JSON.
    ///
    /// # Errors
    /// A content type that is neither JSON in UTF-8 nor protobuf.
    pub fn from_content_type(value: Option<&[u8]>) -> Result<Self, DecodeError> {
        let Some(value) = value else { return Ok(Self::Json) };
        // As nearly all records have it: this is asked for each.
        if value == CONTENT_TYPE_JSON.as_bytes() {
            return Ok(Self::Json);
        }
        if value == CONTENT_TYPE_PROTOBUF.as_bytes() {
            return Ok(Self::Protobuf);
        }
        let mut parts = content_type_parts(value);
        let media_type = parts.next().unwrap_or_default().trim_ascii();
        if media_type.eq_ignore_ascii_case(CONTENT_TYPE_PROTOBUF.as_bytes()) {
            return Ok(Self::Protobuf);
        }
        let is_json = media_type.eq_ignore_ascii_case(CONTENT_TYPE_JSON.as_bytes());
        if is_json && !parts.any(is_other_charset) {
            return Ok(Self::Json);
        }
        Err(DecodeError::ContentType(String::from_utf8_lossy(value).into()))
    }

    /// Value of the content-type header.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => CONTENT_TYPE_JSON,
            Self::Protobuf => CONTENT_TYPE_PROTOBUF,
        }
    }
}

/// The media type, then its parameters. A semicolon in quotes is part of a parameter's value.
fn content_type_parts(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    value.split(move |byte| {
        let was_escaped = std::mem::replace(&mut is_escaped, is_quoted && *byte == b'\\');
        if was_escaped {
            is_escaped = false;
        } else if *byte == b'"' {
            is_quoted = !is_quoted;
        }
        *byte == b';' && !is_quoted
    })
}

/// Whether a parameter says that text is not UTF-8.
fn is_other_charset(parameter: &[u8]) -> bool {
    let mut sides = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    let is_charset = sides.next().is_some_and(|name| name.eq_ignore_ascii_case(b"charset"));
    let value = sides.next().unwrap_or_default();
    let bare = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    is_charset && !bare.eq_ignore_ascii_case(b"utf-8")
}

/// Why bytes are not a record. Never passes: repeating it changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all (a Kafka tombstone among them).
    #[error("the record is empty")]
    Empty,
    /// The header names an encoding that nobody here reads.
    #[error("content type {0:?} is neither application/json in UTF-8 nor application/x-protobuf")]
    ContentType(String),
    /// Not JSON, or JSON of another shape.
    #[error("not a record in JSON")]
    Json(#[source] serde_json::Error),
    /// Not protobuf of this message.
    #[error("not a record in protobuf")]
    Protobuf(#[source] prost::DecodeError),
    /// A required field is absent.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// An identifier breaks its limits.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not RFC 3339, or out of the calendar's range.
    #[error("timestamp {0:?} is not RFC 3339 such as 2026-03-01T08:15:30.123456Z")]
    Timestamp(String),
    /// NaN or infinite.
    #[error("field `{field}` is {value}, which is not a finite number")]
    NotFinite {
        /// Which number.
        field: String,
        /// What it was.
        value: f64,
    },
    /// Only a part of device, generation and sequence.
    #[error("device_id, generation and sequence belong together: give all three or none")]
    PartialIdentity,
    /// A size or count over its limit.
    #[error("field `{field}` has {found} entries or bytes, at most {limit} are allowed")]
    TooMany {
        /// Which field.
        field: &'static str,
        /// Size found.
        found: usize,
        /// Size allowed.
        limit: usize,
    },
    /// A number that is not one of the enum's.
    #[error("field `{field}` has the unknown value {value}")]
    UnknownValue {
        /// Which field.
        field: &'static str,
        /// The number.
        value: i32,
    },
    /// Samples that are none: an odd number of bytes, none at all, a scale or rate that is no positive number.
    #[error("waveform block: {0}")]
    Waveform(&'static str),
    /// The raw bytes of a dead letter are not base64.
    #[error("field `raw_base64` is not base64")]
    Base64(#[source] base64::DecodeError),
}

impl DecodeError {
    /// A short word for counters and for the dead letter's `reason`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::ContentType(_) => "content-type",
            Self::Json(_) => "json",
            Self::Protobuf(_) => "protobuf",
            Self::Missing(_) => "missing-field",
            Self::Name(_) => "name",
            Self::Timestamp(_) => "timestamp",
            Self::NotFinite { .. } => "not-finite",
            Self::PartialIdentity => "identity",
            Self::TooMany { .. } => "too-many",
            Self::UnknownValue { .. } => "unknown-value",
            Self::Waveform(_) => "waveform",
            Self::Base64(_) => "base64",
        }
    }

    /// The error with its sources, as one sentence for a dead letter.
    #[must_use]
    pub fn detail(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

/// A reading and what was ignored on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The reading.
    pub reading: Reading,
    /// Fields of the JSON object that this version does not know.
    pub unknown_fields: u32,
}

/// Reads one reading.
///
/// # Errors
/// Anything that is not one valid reading.
pub fn decode_reading(bytes: &[u8], encoding: Encoding) -> Result<Decoded, DecodeError> {
    decode_reading_with(bytes, encoding, &mut Fresh)
}

fn decode_reading_with(
    bytes: &[u8],
    encoding: Encoding,
    names: &mut impl Names,
) -> Result<Decoded, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    match encoding {
        Encoding::Json => {
            let mut raw = RawReading::default();
            let mut reader = serde_json::Deserializer::from_str(object_text(bytes)?);
            raw.read(&mut reader).and_then(|()| reader.end()).map_err(DecodeError::Json)?;
            reading_from_json(&mut raw, names)
        }
        Encoding::Protobuf => {
            let message = v1::Reading::decode(bytes).map_err(DecodeError::Protobuf)?;
            Ok(Decoded { reading: reading_from_protobuf(message, names)?, unknown_fields: 0 })
        }
    }
}

/// One record. It must be an object (the derived readers would take an array of its fields, too) and UTF-8 as a whole: fields that
/// nobody knows are passed over, but their bytes are not trusted either.
fn from_json<'de, T: serde::Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DecodeError> {
    serde_json::from_str(object_text(bytes)?).map_err(DecodeError::Json)
}

fn object_text(bytes: &[u8]) -> Result<&str, DecodeError> {
    let refused = |text: &str| DecodeError::Json(serde::de::Error::custom(text));
    let text = std::str::from_utf8(bytes).map_err(|error| refused(&error.to_string()))?;
    match text.bytes().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => Err(refused("an array, expected an object")),
        Some(_) | None => Ok(text),
    }
}

/// One reading of a payload, with its own bytes and its own result.
#[derive(Debug)]
pub struct Element<'a> {
    /// The bytes that it was read from.
    pub raw: &'a [u8],
    /// The reading, or why it is none.
    pub result: Result<Decoded, DecodeError>,
}

/// Reads a JSON reading or a JSON array of at most [`READINGS_PER_ARRAY_MAX`] readings, each with its own result.
///
/// # Errors
/// The payload as a whole is not JSON of that shape, or the array is too long.
pub fn decode_readings(bytes: &[u8]) -> Result<Vec<Element<'_>>, DecodeError> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'[') {
        let decoded = decode_reading(bytes, Encoding::Json)?;
        return Ok(vec![Element { raw: bytes, result: Ok(decoded) }]);
    }
    let elements: Vec<&serde_json::value::RawValue> =
        serde_json::from_slice(bytes).map_err(DecodeError::Json)?;
    if elements.len() > READINGS_PER_ARRAY_MAX {
        let (found, limit) = (elements.len(), READINGS_PER_ARRAY_MAX);
        return Err(DecodeError::TooMany { field: "array of readings", found, limit });
    }
    Ok(elements
        .into_iter()
        .map(|element| {
            let raw = element.get().as_bytes();
            Element { raw, result: decode_reading(raw, Encoding::Json) }
        })
        .collect())
}

fn reading_from_json(
    raw: &mut RawReading<'_>,
    names: &mut impl Names,
) -> Result<Decoded, DecodeError> {
    let sensor_id = raw.sensor_id.as_ref().ok_or(DecodeError::Missing("sensor_id"))?;
    let timestamp = raw.timestamp.as_ref().ok_or(DecodeError::Missing("timestamp"))?;
    let metric_type = raw.metric_type.as_ref().ok_or(DecodeError::Missing("metric_type"))?;
    let value = raw.value.ok_or(DecodeError::Missing("value"))?;
    let machine_id = raw.machine_id.as_ref().map(|text| names.machine(&text.0)).transpose()?;
    let unit = raw.unit.as_ref().filter(|text| !text.0.is_empty());
    let unit = unit.map(|text| names.unit(&text.0)).transpose()?;
    let values = std::mem::take(&mut raw.features.values);
    let features = checked_features(values, raw.features.count)?;
    let device_id = raw.device_id.as_ref().map(|text| names.device(&text.0)).transpose()?;
    let reading = Reading {
        sensor_id: names.sensor(&sensor_id.0)?,
        timestamp: parse_timestamp(&timestamp.0)?,
        metric_type: names.metric_type(&metric_type.0)?,
        value: finite("value", value)?,
        machine_id,
        unit,
        quality: raw.quality,
        identity: identity(device_id, raw.generation, raw.sequence)?,
        historical: raw.historical,
        features,
    };
    Ok(Decoded { reading, unknown_fields: raw.unknown_fields })
}

fn reading_from_protobuf(
    message: v1::Reading,
    names: &mut impl Names,
) -> Result<Reading, DecodeError> {
    let quality = match v1::Quality::try_from(message.quality) {
        Ok(v1::Quality::Unspecified) => None,
        Ok(v1::Quality::Good) => Some(Quality::Good),
        Ok(v1::Quality::Uncertain) => Some(Quality::Uncertain),
        Ok(v1::Quality::Bad) => Some(Quality::Bad),
        Err(_) => {
            return Err(DecodeError::UnknownValue { field: "quality", value: message.quality });
        }
    };
    Ok(Reading {
        sensor_id: names.sensor(&message.sensor_id)?,
        timestamp: timestamp_from_micros(message.timestamp_micros)?,
        metric_type: names.metric_type(&message.metric_type)?,
        value: finite("value", message.value.ok_or(DecodeError::Missing("value"))?)?,
        machine_id: present(message.machine_id).map(|text| names.machine(&text)).transpose()?,
        unit: present(message.unit).map(|text| names.unit(&text)).transpose()?,
        quality,
        identity: identity(
            present(message.device_id).map(|text| names.device(&text)).transpose()?,
            message.generation,
            message.sequence,
        )?,
        historical: message.historical,
        features: {
            let count = message.features.len();
            checked_features(message.features, count)?
        },
    })
}

/// Writes one reading.
#[must_use]
pub fn encode_reading(reading: &Reading, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Json => to_json(reading),
        Encoding::Protobuf => {
            let (device_id, generation, sequence) = identity_fields(reading.identity.as_ref());
            let quality = match reading.quality {
                None => v1::Quality::Unspecified,
                Some(Quality::Good) => v1::Quality::Good,
                Some(Quality::Uncertain) => v1::Quality::Uncertain,
                Some(Quality::Bad) => v1::Quality::Bad,
            };
            v1::Reading {
                sensor_id: reading.sensor_id.as_str().to_owned(),
                timestamp_micros: Some(reading.timestamp.micros()),
                metric_type: reading.metric_type.as_str().to_owned(),
                value: Some(reading.value),
                machine_id: reading.machine_id.as_ref().map_or_else(String::new, name_text),
                unit: reading.unit.as_ref().map_or_else(String::new, |unit| unit.to_string()),
                quality: quality.into(),
                device_id,
                generation,
                sequence,
                historical: reading.historical,
                features: reading.features.clone(),
            }
            .encode_to_vec()
        }
    }
}

/// Reads one machine event.
///
/// # Errors
/// Anything that is not one valid machine event.
pub fn decode_machine_event(bytes: &[u8], encoding: Encoding) -> Result<MachineEvent, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    match encoding {
        Encoding::Json => {
            let raw: RawMachineEvent = from_json(bytes)?;
            let device_id = raw.device_id.map(|text| DeviceId::new(&text)).transpose()?;
            Ok(MachineEvent {
                event_type: raw.event_type,
                machine_id: MachineId::new(&raw.machine_id)?,
                timestamp: parse_timestamp(&raw.timestamp)?,
                identity: identity(device_id, raw.generation, raw.sequence)?,
                historical: raw.historical,
                details: without_empty(from_json(bytes)?),
            })
        }
        Encoding::Protobuf => {
            let message = v1::MachineEvent::decode(bytes).map_err(DecodeError::Protobuf)?;
            machine_event_from_protobuf(message)
        }
    }
}

fn machine_event_from_protobuf(message: v1::MachineEvent) -> Result<MachineEvent, DecodeError> {
    let event_type = event_type_from_protobuf(message.event_type)?;
    let device_id = present(message.device_id).map(|text| DeviceId::new(&text)).transpose()?;
    for (field, value) in
        [("value", message.value), ("limit", message.limit), ("score", message.score)]
    {
        value.map(|value| finite(field, value)).transpose()?;
    }
    Ok(MachineEvent {
        event_type,
        machine_id: MachineId::new(&message.machine_id)?,
        timestamp: timestamp_from_micros(message.timestamp_micros)?,
        identity: identity(device_id, message.generation, message.sequence)?,
        historical: message.historical,
        details: MachineEventDetails {
            cause: present(message.cause),
            rule: present(message.rule),
            sensor_id: present(message.sensor_id).map(|text| SensorId::new(&text)).transpose()?,
            metric_type: present(message.metric_type)
                .map(|text| MetricType::new(&text))
                .transpose()?,
            value: message.value,
            limit: message.limit,
            score: message.score,
            model: present(message.model),
            command_latency_micros: message.command_latency_micros,
            confirmation_latency_micros: message.confirmation_latency_micros,
            first_sequence: message.first_sequence,
            last_sequence: message.last_sequence,
            record_count: message.record_count,
            detail: present(message.detail),
            rule_version: present(message.rule_version),
            trip_id: present(message.trip_id),
            operator: present(message.operator),
            delivered_sequence: message.delivered_sequence,
            waveform_sequences: present(message.waveform_sequences),
            contributions: present(message.contributions),
        },
    })
}

/// Writes one machine event.
#[must_use]
pub fn encode_machine_event(event: &MachineEvent, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Json => to_json(event),
        Encoding::Protobuf => {
            let (device_id, generation, sequence) = identity_fields(event.identity.as_ref());
            let details = event.details.clone();
            v1::MachineEvent {
                event_type: event_type_to_protobuf(event.event_type).into(),
                machine_id: name_text(&event.machine_id),
                timestamp_micros: Some(event.timestamp.micros()),
                device_id,
                generation,
                sequence,
                historical: event.historical,
                cause: details.cause.unwrap_or_default(),
                rule: details.rule.unwrap_or_default(),
                sensor_id: details.sensor_id.as_ref().map_or_else(String::new, name_text),
                metric_type: details.metric_type.as_ref().map_or_else(String::new, name_text),
                value: details.value,
                limit: details.limit,
                score: details.score,
                model: details.model.unwrap_or_default(),
                command_latency_micros: details.command_latency_micros,
                confirmation_latency_micros: details.confirmation_latency_micros,
                first_sequence: details.first_sequence,
                last_sequence: details.last_sequence,
                record_count: details.record_count,
                detail: details.detail.unwrap_or_default(),
                rule_version: details.rule_version.unwrap_or_default(),
                trip_id: details.trip_id.unwrap_or_default(),
                operator: details.operator.unwrap_or_default(),
                delivered_sequence: details.delivered_sequence,
                waveform_sequences: details.waveform_sequences.unwrap_or_default(),
                contributions: details.contributions.unwrap_or_default(),
            }
            .encode_to_vec()
        }
    }
}

/// Reads one dead letter of an edge module.
///
/// # Errors
/// Anything that is not one valid dead letter.
pub fn decode_dead_letter(bytes: &[u8], encoding: Encoding) -> Result<DeadLetter, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let (mut letter, device_id, generation, sequence) = match encoding {
        Encoding::Json => {
            let raw: RawDeadLetter = from_json(bytes)?;
            let letter = DeadLetter {
                reason: raw.reason,
                detail: raw.detail,
                source: raw.source,
                timestamp: parse_timestamp(&raw.timestamp)?,
                identity: None,
                raw: base64::engine::general_purpose::STANDARD
                    .decode(&raw.raw_base64)
                    .map_err(DecodeError::Base64)?,
                raw_length: raw.raw_length,
            };
            (letter, raw.device_id, raw.generation, raw.sequence)
        }
        Encoding::Protobuf => {
            let message = v1::DeadLetter::decode(bytes).map_err(DecodeError::Protobuf)?;
            let letter = DeadLetter {
                reason: message.reason,
                detail: message.detail,
                source: message.source,
                timestamp: timestamp_from_micros(message.timestamp_micros)?,
                identity: None,
                raw: message.raw,
                raw_length: message.raw_length,
            };
            (letter, present(message.device_id), message.generation, message.sequence)
        }
    };
    if letter.raw.len() > DEAD_LETTER_RAW_BYTES_MAX {
        let found = letter.raw.len();
        return Err(DecodeError::TooMany { field: "raw", found, limit: DEAD_LETTER_RAW_BYTES_MAX });
    }
    let device_id = device_id.map(|text| DeviceId::new(&text)).transpose()?;
    letter.identity = identity(device_id, generation, sequence)?;
    Ok(letter)
}

/// Writes one dead letter.
#[must_use]
pub fn encode_dead_letter(letter: &DeadLetter, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Json => to_json(letter),
        Encoding::Protobuf => {
            let (device_id, generation, sequence) = identity_fields(letter.identity.as_ref());
            v1::DeadLetter {
                reason: letter.reason.clone(),
                detail: letter.detail.clone(),
                source: letter.source.clone(),
                timestamp_micros: Some(letter.timestamp.micros()),
                device_id,
                generation,
                sequence,
                raw: letter.raw.clone(),
                raw_length: letter.raw_length,
            }
            .encode_to_vec()
        }
    }
}

fn to_json<T: serde::Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("maps with text keys and finite numbers always serialise")
}

fn name_text(name: &impl AsRef<str>) -> String {
    name.as_ref().to_owned()
}

/// An empty text says nothing, as in protobuf.
fn without_empty(details: MachineEventDetails) -> MachineEventDetails {
    let present = |text: Option<String>| text.and_then(present);
    MachineEventDetails {
        cause: present(details.cause),
        rule: present(details.rule),
        model: present(details.model),
        detail: present(details.detail),
        rule_version: present(details.rule_version),
        trip_id: present(details.trip_id),
        operator: present(details.operator),
        waveform_sequences: present(details.waveform_sequences),
        contributions: present(details.contributions),
        ..details
    }
}

fn present(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn parse_timestamp(text: &str) -> Result<EventTime, DecodeError> {
    EventTime::parse(text).ok_or_else(|| DecodeError::Timestamp(text.chars().take(64).collect()))
}

fn timestamp_from_micros(micros: Option<i64>) -> Result<EventTime, DecodeError> {
    let micros = micros.ok_or(DecodeError::Missing("timestamp_micros"))?;
    let time = EventTime::from_micros(micros);
    if time.is_in_rfc_3339() { Ok(time) } else { Err(DecodeError::Timestamp(micros.to_string())) }
}

fn finite(field: &str, value: f64) -> Result<f64, DecodeError> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(DecodeError::NotFinite { field: field.to_owned(), value })
    }
}

fn checked_unit(text: &str) -> Result<Arc<str>, DecodeError> {
    if text.len() > UNIT_BYTES_MAX {
        return Err(DecodeError::TooMany {
            field: "unit",
            found: text.len(),
            limit: UNIT_BYTES_MAX,
        });
    }
    Ok(text.into())
}

fn checked_features(
    features: BTreeMap<String, f64>,
    found: usize,
) -> Result<BTreeMap<String, f64>, DecodeError> {
    if found > FEATURES_MAX {
        return Err(DecodeError::TooMany { field: "features", found, limit: FEATURES_MAX });
    }
    for (name, value) in &features {
        if name.len() > FEATURE_NAME_BYTES_MAX {
            return Err(DecodeError::TooMany {
                field: "features",
                found: name.len(),
                limit: FEATURE_NAME_BYTES_MAX,
            });
        }
        if !value.is_finite() {
            return Err(DecodeError::NotFinite {
                field: format!("features.{name}"),
                value: *value,
            });
        }
    }
    Ok(features)
}

fn identity(
    device_id: Option<DeviceId>,
    generation: Option<u64>,
    sequence: Option<u64>,
) -> Result<Option<Identity>, DecodeError> {
    match (device_id, generation, sequence) {
        (None, None, None) => Ok(None),
        (Some(device_id), None, None) => {
            // A producer may name its device without numbering its records.
            drop(device_id);
            Ok(None)
        }
        (Some(device_id), Some(generation), Some(sequence)) => Ok(Some(Identity {
            device_id,
            generation: Generation(generation),
            sequence: Sequence(sequence),
        })),
        (None, _, _) | (Some(_), None, Some(_)) | (Some(_), Some(_), None) => {
            Err(DecodeError::PartialIdentity)
        }
    }
}

fn identity_fields(identity: Option<&Identity>) -> (String, Option<u64>, Option<u64>) {
    match identity {
        None => (String::new(), None, None),
        Some(identity) => {
            (name_text(&identity.device_id), Some(identity.generation.0), Some(identity.sequence.0))
        }
    }
}

const fn event_type_to_protobuf(event_type: MachineEventType) -> v1::MachineEventType {
    match event_type {
        MachineEventType::Trip => v1::MachineEventType::Trip,
        MachineEventType::StopConfirmed => v1::MachineEventType::StopConfirmed,
        MachineEventType::StopNotConfirmed => v1::MachineEventType::StopNotConfirmed,
        MachineEventType::Reset => v1::MachineEventType::Reset,
        MachineEventType::ResetRefused => v1::MachineEventType::ResetRefused,
        MachineEventType::SensorFault => v1::MachineEventType::SensorFault,
        MachineEventType::SensorRecovered => v1::MachineEventType::SensorRecovered,
        MachineEventType::ModelChanged => v1::MachineEventType::ModelChanged,
        MachineEventType::ModelRefused => v1::MachineEventType::ModelRefused,
        MachineEventType::Ledger => v1::MachineEventType::Ledger,
        MachineEventType::Gap => v1::MachineEventType::Gap,
        MachineEventType::Started => v1::MachineEventType::Started,
        MachineEventType::Stopped => v1::MachineEventType::Stopped,
        MachineEventType::Alarm => v1::MachineEventType::Alarm,
        MachineEventType::AlarmCleared => v1::MachineEventType::AlarmCleared,
        MachineEventType::MovedWhileTripped => v1::MachineEventType::MovedWhileTripped,
        MachineEventType::TripSuppressed => v1::MachineEventType::TripSuppressed,
        MachineEventType::Shelved => v1::MachineEventType::Shelved,
        MachineEventType::Unshelved => v1::MachineEventType::Unshelved,
        MachineEventType::SettingsChanged => v1::MachineEventType::SettingsChanged,
        MachineEventType::SettingsRefused => v1::MachineEventType::SettingsRefused,
        MachineEventType::GapClosed => v1::MachineEventType::GapClosed,
        MachineEventType::LearningStarted => v1::MachineEventType::LearningStarted,
        MachineEventType::BaselineLearnt => v1::MachineEventType::BaselineLearnt,
        MachineEventType::LearningRefused => v1::MachineEventType::LearningRefused,
    }
}

fn event_type_from_protobuf(value: i32) -> Result<MachineEventType, DecodeError> {
    let unknown = DecodeError::UnknownValue { field: "event_type", value };
    match v1::MachineEventType::try_from(value) {
        Err(_) | Ok(v1::MachineEventType::Unspecified) => Err(unknown),
        Ok(v1::MachineEventType::Trip) => Ok(MachineEventType::Trip),
        Ok(v1::MachineEventType::StopConfirmed) => Ok(MachineEventType::StopConfirmed),
        Ok(v1::MachineEventType::StopNotConfirmed) => Ok(MachineEventType::StopNotConfirmed),
        Ok(v1::MachineEventType::Reset) => Ok(MachineEventType::Reset),
        Ok(v1::MachineEventType::ResetRefused) => Ok(MachineEventType::ResetRefused),
        Ok(v1::MachineEventType::SensorFault) => Ok(MachineEventType::SensorFault),
        Ok(v1::MachineEventType::SensorRecovered) => Ok(MachineEventType::SensorRecovered),
        Ok(v1::MachineEventType::ModelChanged) => Ok(MachineEventType::ModelChanged),
        Ok(v1::MachineEventType::ModelRefused) => Ok(MachineEventType::ModelRefused),
        Ok(v1::MachineEventType::Ledger) => Ok(MachineEventType::Ledger),
        Ok(v1::MachineEventType::Gap) => Ok(MachineEventType::Gap),
        Ok(v1::MachineEventType::Started) => Ok(MachineEventType::Started),
        Ok(v1::MachineEventType::Stopped) => Ok(MachineEventType::Stopped),
        Ok(v1::MachineEventType::Alarm) => Ok(MachineEventType::Alarm),
        Ok(v1::MachineEventType::AlarmCleared) => Ok(MachineEventType::AlarmCleared),
        Ok(v1::MachineEventType::MovedWhileTripped) => Ok(MachineEventType::MovedWhileTripped),
        Ok(v1::MachineEventType::TripSuppressed) => Ok(MachineEventType::TripSuppressed),
        Ok(v1::MachineEventType::Shelved) => Ok(MachineEventType::Shelved),
        Ok(v1::MachineEventType::Unshelved) => Ok(MachineEventType::Unshelved),
        Ok(v1::MachineEventType::SettingsChanged) => Ok(MachineEventType::SettingsChanged),
        Ok(v1::MachineEventType::SettingsRefused) => Ok(MachineEventType::SettingsRefused),
        Ok(v1::MachineEventType::GapClosed) => Ok(MachineEventType::GapClosed),
        Ok(v1::MachineEventType::LearningStarted) => Ok(MachineEventType::LearningStarted),
        Ok(v1::MachineEventType::BaselineLearnt) => Ok(MachineEventType::BaselineLearnt),
        Ok(v1::MachineEventType::LearningRefused) => Ok(MachineEventType::LearningRefused),
    }
}

#[cfg(test)]
mod tests;
