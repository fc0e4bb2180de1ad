//! Messages of OPC Publisher to readings: Samples and PubSub in JSON, alone or batched.
//!
//! ```text
//! message   one of these, or an array of them
//! sample    {"NodeId", "EndpointUrl"?, "ApplicationUri"?, "DisplayName"?, "Timestamp"?, "Value": field}
//! network   {"MessageType": "ua-data", "PublisherId"?, "Messages": one data set or an array of them}; "ua-metadata" is skipped
//! data set  {"DataSetWriterId"?, "DataSetWriterName"?, "MessageType"?, "Timestamp"?, "Payload": {"<name>": field, …}}
//! field     {"Value"?, "SourceTimestamp"?, "ServerTimestamp"?, "StatusCode"?}, or the value alone
//! value     a number, true or false, a number as text; reversible: {"Type", "Body": one of these}
//! ```
//!
//! Sources: OPC 10000-14, 7.2.5 (messages), OPC 10000-6, 5.4.2 (values, status codes, times), OPC Publisher 2.9, message formats.
//!
//! Each value has its own fate: a bad one is refused with a reason and its bytes, its neighbours are not. Nodes that the mapping
//! does not name are counted. Limits: bytes and values of a message by [`OpcLimits`], depth by [`DEPTH_MAX`]; a message over
//! one of them is refused whole. The event time is the source's, else the server's, else the message's. What is older than
//! [`OpcLimits::judged_within_micros`] by all of its times comes from somebody's memory and is marked historical. The newest of
//! them counts, because a value that has not changed is sent again under its old source time.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use shared_proto::model::{DEAD_LETTER_RAW_BYTES_MAX, EventTime, Reading, SensorId};

mod mapping;
mod value;

pub use mapping::{Mapping, MappingFault, NodeMapping, NodeName};

use mapping::Source;
use value::{Field, Times};

#[cfg(test)]
mod tests;

/// Arrays and objects in each other; a reversible message has nine.
pub const DEPTH_MAX: usize = 32;
/// Names of nodes that one message's result holds of those that the mapping does not name.
pub const UNMAPPED_NAMES_MAX: usize = 64;
/// Of a name in a result, in characters.
const SHOWN_CHARS_MAX: usize = 200;
/// First bytes of gzip (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What a message may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpcLimits {
    /// Bytes of a message.
    pub payload_bytes_max: usize,
    /// Values of a message.
    pub values_max: usize,
    /// Older values are marked historical, in microseconds.
    pub judged_within_micros: i64,
}

/// Why a message, or one of its values, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpcError {
    /// No bytes.
    #[error("the message is empty")]
    Empty,
    /// Compressed by OPC Publisher.
    #[error("the message is compressed with gzip: set --me=Json at OPC Publisher")]
    Compressed,
    /// Bytes over the limit.
    #[error("message of {bytes} bytes, at most {limit} are allowed")]
    TooLarge {
        /// As many are there.
        bytes: usize,
        /// As many are allowed.
        limit: usize,
    },
    /// Depth over the limit.
    #[error("more than {DEPTH_MAX} arrays and objects in each other")]
    TooDeep,
    /// Values over the limit.
    #[error("message of {values} values, at most {limit} are allowed")]
    TooMany {
        /// As many are there.
        values: usize,
        /// As many are allowed.
        limit: usize,
    },
    /// Not JSON, or a member of another type.
    #[error("not a message of OPC Publisher in JSON: {0}")]
    Json(String),
    /// Neither sample nor network message nor data set.
    #[error("an object with neither NodeId nor Messages nor Payload")]
    Form,
    /// No time in the value and none in the message.
    #[error("{node} has neither SourceTimestamp nor ServerTimestamp, and its message no Timestamp")]
    NoTime {
        /// Which node.
        node: String,
    },
    /// A time that is none.
    #[error("{node} has the time {text:?}, which is not RFC 3339")]
    Time {
        /// Which node.
        node: String,
        /// The time.
        text: String,
    },
    /// No value, or `null`, although its status is not bad.
    #[error("{node} has no value")]
    NoValue {
        /// Which node.
        node: String,
    },
    /// No value, because the server has none.
    #[error("{node} has no value, its status is {status}")]
    BadStatus {
        /// Which node.
        node: String,
        /// The status.
        status: String,
    },
    /// A status that is none.
    #[error("{node} has the status {status}, which is no status code")]
    Status {
        /// Which node.
        node: String,
        /// The status.
        status: String,
    },
    /// NaN, infinite, or beyond what a double can hold.
    #[error("{node} is {text}, which is not a finite number")]
    NotFinite {
        /// Which node.
        node: String,
        /// The value.
        text: String,
    },
    /// Many values at once.
    #[error("{node} is an array: waveforms come by mqtt.waveform-topics")]
    Array {
        /// Which node.
        node: String,
    },
    /// Neither number nor truth value.
    #[error("{node} is {what}, not a number")]
    ValueType {
        /// Which node.
        node: String,
        /// What it is.
        what: &'static str,
    },
}

impl OpcError {
    /// A short word for counters and dead letters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Compressed => "compressed",
            Self::TooLarge { .. } => "too-large",
            Self::TooDeep => "too-deep",
            Self::TooMany { .. } => "too-many",
            Self::Json(_) => "json",
            Self::Form => "opc-form",
            Self::NoTime { .. } | Self::Time { .. } => "timestamp",
            Self::NoValue { .. } => "missing-field",
            Self::BadStatus { .. } => "bad-status",
            Self::Status { .. } => "opc-status",
            Self::NotFinite { .. } => "not-finite",
            Self::Array { .. } => "opc-array",
            Self::ValueType { .. } => "opc-type",
        }
    }

    /// Whether the sensor said that it has no number: a fault of the sensor, not of the message.
    #[must_use]
    pub const fn is_sensor_fault(&self) -> bool {
        match self {
            Self::NoValue { .. } | Self::BadStatus { .. } | Self::NotFinite { .. } => true,
            Self::Empty
            | Self::Compressed
            | Self::TooLarge { .. }
            | Self::TooDeep
            | Self::TooMany { .. }
            | Self::Json(_)
            | Self::Form
            | Self::NoTime { .. }
            | Self::Time { .. }
            | Self::Status { .. }
            | Self::Array { .. }
            | Self::ValueType { .. } => false,
        }
    }
}

/// Something that is refused, with its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Whose value it would have been; `None` where that cannot be told.
    pub sensor: Option<SensorId>,
    /// Why.
    pub error: OpcError,
    /// At most the first [`DEAD_LETTER_RAW_BYTES_MAX`] bytes.
    pub raw: Vec<u8>,
    /// Its times say that it comes from somebody's memory.
    pub historical: bool,
}

/// What became of a part of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A value of a node that the mapping names.
    Reading(Reading),
    /// To be counted, and kept as a dead letter.
    Refused(Refused),
}

/// A part of a message that has no values for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skipped {
    /// Describes data sets.
    Metadata,
    /// Says that a writer is there.
    KeepAlive,
    /// An event or a condition.
    Event,
    /// Of a kind that is not known here.
    Other,
}

impl Skipped {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Metadata, Self::KeepAlive, Self::Event, Self::Other];

    /// The word for counters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::KeepAlive => "keep-alive",
            Self::Event => "event",
            Self::Other => "other",
        }
    }
}

/// What is in a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpcMessage {
    /// Values in the order of the message; those of a data set by name.
    pub items: Vec<Item>,
    /// Values of nodes that the mapping does not name.
    pub unmapped: u64,
    /// Their names, the first [`UNMAPPED_NAMES_MAX`].
    pub unmapped_names: Vec<String>,
    /// Parts that have no values, by kind.
    pub skipped: BTreeMap<Skipped, u64>,
}

/// Reads a message that came at `now`. Never fails: what cannot be read is among the items, as refused.
#[must_use]
pub fn decode(payload: &[u8], mapping: &Mapping, limits: &OpcLimits, now: EventTime) -> OpcMessage {
    let mut reader = Reader { mapping, limits, now, message: OpcMessage::default(), values: 0 };
    let read = check_whole(payload, limits).and_then(|text| reader.read_parts(text, None));
    match read {
        Ok(()) => reader.message,
        Err(error) => OpcMessage { items: vec![whole(error, payload)], ..OpcMessage::default() },
    }
}

fn whole(error: OpcError, payload: &[u8]) -> Item {
    Item::Refused(Refused { sensor: None, error, raw: kept(payload), historical: false })
}

fn check_whole<'a>(payload: &'a [u8], limits: &OpcLimits) -> Result<&'a str, OpcError> {
    if payload.len() > limits.payload_bytes_max {
        return Err(OpcError::TooLarge { bytes: payload.len(), limit: limits.payload_bytes_max });
    }
    if payload.starts_with(&GZIP) {
        return Err(OpcError::Compressed);
    }
    let text = std::str::from_utf8(payload).map_err(|error| OpcError::Json(error.to_string()))?;
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Err(OpcError::Empty);
    }
    if is_too_deep(text) { Err(OpcError::TooDeep) } else { Ok(text) }
}

/// Counts brackets outside of strings; whether they are in place the parser says.
fn is_too_deep(text: &str) -> bool {
    let (mut depth, mut is_string, mut is_escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        if is_string {
            is_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => is_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}

/// Members that any of the forms may have. What is not needed here is not read.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(rename = "MessageType", default)]
    message_type: Option<String>,
    #[serde(rename = "Messages", borrow, default)]
    messages: Option<&'a RawValue>,
    #[serde(rename = "Payload", borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(rename = "PublisherId", borrow, default)]
    publisher_id: Option<&'a RawValue>,
    #[serde(rename = "DataSetWriterId", borrow, default)]
    writer_id: Option<&'a RawValue>,
    #[serde(rename = "DataSetWriterName", borrow, default)]
    writer_name: Option<&'a RawValue>,
    #[serde(rename = "Timestamp", borrow, default)]
    timestamp: Option<&'a RawValue>,
    #[serde(rename = "Status", borrow, default)]
    status: Option<&'a RawValue>,
    #[serde(rename = "NodeId", default)]
    node_id: Option<String>,
    #[serde(rename = "DisplayName", borrow, default)]
    display_name: Option<&'a RawValue>,
    #[serde(rename = "EndpointUrl", borrow, default)]
    endpoint_url: Option<&'a RawValue>,
    #[serde(rename = "ApplicationUri", borrow, default)]
    application_uri: Option<&'a RawValue>,
    #[serde(rename = "Value", borrow, default)]
    value: Option<&'a RawValue>,
}

struct Reader<'m> {
    mapping: &'m Mapping,
    limits: &'m OpcLimits,
    now: EventTime,
    message: OpcMessage,
    /// Values read so far, mapped or not.
    values: usize,
}

impl Reader<'_> {
    /// `publisher`: of the network message that data sets are in. The error is that of the whole; of a batch each part has its own.
    fn read_parts(&mut self, text: &str, publisher: Option<&str>) -> Result<(), OpcError> {
        for part in parts(text)? {
            match self.read_message(part, publisher) {
                Ok(()) => {}
                Err(error) if matches!(error, OpcError::TooMany { .. }) => return Err(error),
                Err(error) => self.message.items.push(whole(error, part.as_bytes())),
            }
        }
        Ok(())
    }

    fn read_message(&mut self, text: &str, publisher: Option<&str>) -> Result<(), OpcError> {
        let message: Message<'_> = serde_json::from_str(text).map_err(|error| json(&error))?;
        let kind = message.message_type.as_deref();
        if message.node_id.is_some() {
            return self.read_sample(&message);
        }
        match kind {
            Some("ua-metadata") => self.skip(Skipped::Metadata),
            Some("ua-keepalive") => self.skip(Skipped::KeepAlive),
            Some("ua-event" | "ua-condition") => self.skip(Skipped::Event),
            Some("ua-data" | "ua-keyframe" | "ua-deltaframe") | None => {
                if let Some(messages) = message.messages.filter(|_| publisher.is_none()) {
                    let publisher = message.publisher_id.and_then(as_text).unwrap_or_default();
                    return self.read_parts(messages.get(), Some(&publisher));
                }
                let payload = message.payload.ok_or(OpcError::Form)?;
                self.read_data_set(&message, payload, publisher)?;
            }
            Some(_) => self.skip(Skipped::Other),
        }
        Ok(())
    }

    fn read_sample(&mut self, message: &Message<'_>) -> Result<(), OpcError> {
        let text = |raw: Option<&RawValue>| raw.and_then(as_text);
        let endpoint = text(message.endpoint_url);
        let application = text(message.application_uri);
        let display_name = text(message.display_name);
        let source = Source {
            node: message.node_id.as_deref(),
            field: display_name.as_deref(),
            writers: [None, None],
            servers: [endpoint.as_deref(), application.as_deref()],
        };
        let value = message.value.map_or("null", RawValue::get);
        self.read_value(&source, value, message)
    }

    fn read_data_set(
        &mut self,
        message: &Message<'_>,
        payload: &RawValue,
        publisher: Option<&str>,
    ) -> Result<(), OpcError> {
        let fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(payload.get()).map_err(|error| json(&error))?;
        let own_publisher = message.publisher_id.and_then(as_text);
        let (id, name) = (message.writer_id, message.writer_name);
        let (id, name) = (id.and_then(as_text), name.and_then(as_text));
        for (field, value) in &fields {
            let source = Source {
                node: Some(field),
                field: Some(field),
                writers: [id.as_deref(), name.as_deref()],
                servers: [publisher.or(own_publisher.as_deref()), None],
            };
            self.read_value(&source, value.get(), message)?;
        }
        Ok(())
    }

    fn read_value(
        &mut self,
        source: &Source<'_>,
        text: &str,
        message: &Message<'_>,
    ) -> Result<(), OpcError> {
        self.values += 1;
        if self.values > self.limits.values_max {
            let (values, limit) = (self.values, self.limits.values_max);
            return Err(OpcError::TooMany { values, limit });
        }
        let Some(target) = self.mapping.find(source) else {
            self.message.unmapped += 1;
            if self.message.unmapped_names.len() < UNMAPPED_NAMES_MAX {
                self.message.unmapped_names.push(shown(source.name()));
            }
            return Ok(());
        };
        let field = Field::read(text);
        let name = shown(source.name());
        let times = Times::read(&name, &field, message.timestamp.map(RawValue::get));
        let historical = times
            .as_ref()
            .is_ok_and(|times| times.age_micros(self.now) > self.limits.judged_within_micros);
        let status = field.status.or(message.status.map(RawValue::get));
        let read = times.and_then(|times| {
            let (value, quality) = value::read(&name, &field, status)?;
            let mut reading = target.reading(times.event_time, value);
            reading.quality = Some(quality);
            reading.historical = historical;
            Ok(reading)
        });
        self.message.items.push(match read {
            Ok(reading) => Item::Reading(reading),
            Err(error) => {
                let (sensor, raw) = (Some(target.sensor.clone()), kept(text.as_bytes()));
                Item::Refused(Refused { sensor, error, raw, historical })
            }
        });
        Ok(())
    }

    fn skip(&mut self, what: Skipped) {
        *self.message.skipped.entry(what).or_default() += 1;
    }
}

/// The elements of an array, or what is there alone.
fn parts(text: &str) -> Result<Vec<&str>, OpcError> {
    if !text.trim_start().starts_with('[') {
        return Ok(vec![text.trim()]);
    }
    let parts: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| json(&error))?;
    Ok(parts.into_iter().map(RawValue::get).collect())
}

/// A name or number as text; ids are one or the other, by mode.
fn as_text(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    if text.starts_with('"') {
        return serde_json::from_str(text).ok();
    }
    text.starts_with(|first: char| first.is_ascii_digit() || first == '-').then(|| text.to_owned())
}

fn json(error: &serde_json::Error) -> OpcError {
    OpcError::Json(error.to_string())
}

fn kept(raw: &[u8]) -> Vec<u8> {
    raw[..raw.len().min(DEAD_LETTER_RAW_BYTES_MAX)].to_vec()
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}
