//! JSON as it is on the wire, borrowed from the input where it can be. Not validated yet: see [`crate::codec`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{
    DeadLetter, FEATURES_MAX, Identity, MachineEvent, MachineEventDetails, MachineEventType,
    Outcome, OutcomeVerdict, Quality, Reading,
};

/// A text that borrows from the input unless it holds an escape sequence.
#[derive(Debug)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// One word of an enum. A name alone: the derived reader would take `{"good":null}` for `"good"` too.
struct Word<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        T::deserialize(text.0.into_deserializer()).map(Self)
    }
}

fn word<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Word::deserialize(deserializer).map(|word: Word<T>| word.0)
}

/// Numbers by name. No name comes twice; with more than [`FEATURES_MAX`] they are only counted.
#[derive(Debug, Default)]
pub(crate) struct RawFeatures {
    pub(crate) values: BTreeMap<String, f64>,
    pub(crate) count: usize,
}

impl<'de> Deserialize<'de> for RawFeatures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FeaturesVisitor;

        impl<'de> Visitor<'de> for FeaturesVisitor {
            type Value = RawFeatures;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map of names to numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawFeatures, A::Error> {
                let mut features = RawFeatures::default();
                while let Some((name, value)) = map.next_entry::<Text<'de>, f64>()? {
                    features.count += 1;
                    if features.count > FEATURES_MAX {
                        continue;
                    }
                    if features.values.insert(name.0.as_ref().to_owned(), value).is_some() {
                        let again = format_args!("duplicate feature `{}`", name.0);
                        return Err(de::Error::custom(again));
                    }
                }
                Ok(features)
            }
        }

        deserializer.deserialize_map(FeaturesVisitor)
    }
}

/// A reading as it came, before any check.
#[derive(Debug, Default)]
pub(crate) struct RawReading<'a> {
    pub(crate) sensor_id: Option<Text<'a>>,
    pub(crate) timestamp: Option<Text<'a>>,
    pub(crate) metric_type: Option<Text<'a>>,
    pub(crate) value: Option<f64>,
    pub(crate) machine_id: Option<Text<'a>>,
    pub(crate) unit: Option<Text<'a>>,
    pub(crate) quality: Option<Quality>,
    pub(crate) device_id: Option<Text<'a>>,
    pub(crate) generation: Option<u64>,
    pub(crate) sequence: Option<u64>,
    pub(crate) historical: bool,
    pub(crate) features: RawFeatures,
    pub(crate) unknown_fields: u32,
}

impl<'a> RawReading<'a> {
    /// Reads one into an empty one: it is too large to be handed from call to call.
    pub(crate) fn read<D: Deserializer<'a>>(&mut self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(ReadingVisitor(self))
    }
}

struct ReadingVisitor<'r, 'a>(&'r mut RawReading<'a>);

/// Reads the value of `field` and puts the field's name before any error.
fn field<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    name: &'static str,
    slot_is_taken: bool,
) -> Result<T, A::Error> {
    if slot_is_taken {
        return Err(de::Error::duplicate_field(name));
    }
    map.next_value().map_err(|source| de::Error::custom(format_args!("field `{name}`: {source}")))
}

impl<'de> Visitor<'de> for ReadingVisitor<'_, 'de> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a reading as a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let raw = self.0;
        let mut features = None::<RawFeatures>;
        let mut historical = None::<bool>;
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match key.0.as_ref() {
                "sensor_id" => {
                    raw.sensor_id = Some(field(&mut map, "sensor_id", raw.sensor_id.is_some())?);
                }
                "timestamp" => {
                    raw.timestamp = Some(field(&mut map, "timestamp", raw.timestamp.is_some())?);
                }
                "metric_type" => {
                    raw.metric_type =
                        Some(field(&mut map, "metric_type", raw.metric_type.is_some())?);
                }
                "value" => raw.value = Some(field(&mut map, "value", raw.value.is_some())?),
                "machine_id" => {
                    raw.machine_id = field(&mut map, "machine_id", raw.machine_id.is_some())?;
                }
                "unit" => raw.unit = field(&mut map, "unit", raw.unit.is_some())?,
                "quality" => {
                    let word: Option<Word<Quality>> =
                        field(&mut map, "quality", raw.quality.is_some())?;
                    raw.quality = word.map(|word| word.0);
                }
                "device_id" => {
                    raw.device_id = field(&mut map, "device_id", raw.device_id.is_some())?;
                }
                "generation" => {
                    raw.generation = field(&mut map, "generation", raw.generation.is_some())?;
                }
                "sequence" => raw.sequence = field(&mut map, "sequence", raw.sequence.is_some())?,
                "historical" => {
                    historical = field(&mut map, "historical", historical.is_some())?;
                }
                "features" => features = field(&mut map, "features", features.is_some())?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    raw.unknown_fields += 1;
                }
            }
        }
        raw.features = features.unwrap_or_default();
        raw.historical = historical.unwrap_or_default();
        Ok(())
    }
}

/// A machine event as it came, before any check, without its details: [`MachineEventDetails`] is read from the same text. (Flattened
/// into one struct, every field that nobody knows would be kept in memory first.)
#[derive(Debug, Deserialize)]
pub(crate) struct RawMachineEvent {
    #[serde(deserialize_with = "word")]
    pub(crate) event_type: MachineEventType,
    pub(crate) machine_id: String,
    pub(crate) timestamp: String,
    #[serde(default)]
    pub(crate) device_id: Option<String>,
    #[serde(default)]
    pub(crate) generation: Option<u64>,
    #[serde(default)]
    pub(crate) sequence: Option<u64>,
    #[serde(default)]
    pub(crate) historical: bool,
}

/// A dead letter as it came, before any check.
#[derive(Debug, Deserialize)]
pub(crate) struct RawDeadLetter {
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) source: String,
    pub(crate) timestamp: String,
    #[serde(default)]
    pub(crate) device_id: Option<String>,
    #[serde(default)]
    pub(crate) generation: Option<u64>,
    #[serde(default)]
    pub(crate) sequence: Option<u64>,
    pub(crate) raw_base64: String,
    pub(crate) raw_length: u64,
}

/// Fields of an outcome.
const OUTCOME_FIELDS: &[&str] = &[
    "outcome_id",
    "verdict",
    "machine_id",
    "timestamp",
    "alert_id",
    "trip_id",
    "sensor_id",
    "ticket_id",
    "part",
    "note",
    "reported_by",
];

/// An outcome as it came, before any check.
#[derive(Debug, Deserialize)]
pub(crate) struct RawOutcome {
    /// A request may name it elsewhere.
    #[serde(default)]
    pub(crate) outcome_id: Option<String>,
    #[serde(deserialize_with = "word")]
    pub(crate) verdict: OutcomeVerdict,
    pub(crate) machine_id: String,
    pub(crate) timestamp: String,
    #[serde(default)]
    pub(crate) alert_id: Option<String>,
    #[serde(default)]
    pub(crate) trip_id: Option<String>,
    #[serde(default)]
    pub(crate) sensor_id: Option<String>,
    #[serde(default)]
    pub(crate) ticket_id: Option<String>,
    #[serde(default)]
    pub(crate) part: Option<String>,
    #[serde(default)]
    pub(crate) note: Option<String>,
    #[serde(default)]
    pub(crate) reported_by: Option<String>,
}

/// An object that has only fields of an outcome, whatever their values.
#[derive(Debug)]
pub(crate) struct OutcomeFieldsOnly;

impl<'de> Deserialize<'de> for OutcomeFieldsOnly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = OutcomeFieldsOnly;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an outcome as a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    if !OUTCOME_FIELDS.contains(&name.0.as_ref()) {
                        return Err(de::Error::unknown_field(&name.0, OUTCOME_FIELDS));
                    }
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(OutcomeFieldsOnly)
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// A waveform block as it came, before any check: arrays are for small rates.
#[derive(Debug, Deserialize)]
pub(crate) struct RawWaveformBlock {
    pub(crate) machine_id: String,
    pub(crate) sensor_id: String,
    pub(crate) first_sample: String,
    pub(crate) sample_rate_hz: f64,
    #[serde(default)]
    pub(crate) scale: Option<f64>,
    #[serde(default)]
    pub(crate) unit: Option<String>,
    pub(crate) samples: Vec<f32>,
}

fn serialize_identity<M: SerializeMap>(
    map: &mut M,
    identity: Option<&Identity>,
) -> Result<(), M::Error> {
    let Some(identity) = identity else { return Ok(()) };
    map.serialize_entry("device_id", identity.device_id.as_str())?;
    map.serialize_entry("generation", &identity.generation.0)?;
    map.serialize_entry("sequence", &identity.sequence.0)
}

impl Serialize for Reading {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("sensor_id", self.sensor_id.as_str())?;
        map.serialize_entry("timestamp", &format_args!("{}", self.timestamp))?;
        map.serialize_entry("metric_type", self.metric_type.as_str())?;
        map.serialize_entry("value", &self.value)?;
        if let Some(machine_id) = &self.machine_id {
            map.serialize_entry("machine_id", machine_id.as_str())?;
        }
        if let Some(unit) = &self.unit {
            map.serialize_entry("unit", unit.as_ref())?;
        }
        if let Some(quality) = self.quality {
            map.serialize_entry("quality", quality.as_str())?;
        }
        serialize_identity(&mut map, self.identity.as_ref())?;
        if self.historical {
            map.serialize_entry("historical", &true)?;
        }
        if !self.features.is_empty() {
            map.serialize_entry("features", &self.features)?;
        }
        map.end()
    }
}

impl Serialize for MachineEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Out<'a> {
            event_type: &'a str,
            machine_id: &'a str,
            timestamp: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            device_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            generation: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            sequence: Option<u64>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            historical: bool,
            #[serde(flatten)]
            details: &'a MachineEventDetails,
        }
        let identity = self.identity.as_ref();
        Out {
            event_type: self.event_type.as_str(),
            machine_id: self.machine_id.as_str(),
            timestamp: self.timestamp.to_string(),
            device_id: identity.map(|identity| identity.device_id.as_str()),
            generation: identity.map(|identity| identity.generation.0),
            sequence: identity.map(|identity| identity.sequence.0),
            historical: self.historical,
            details: &self.details,
        }
        .serialize(serializer)
    }
}

impl Serialize for DeadLetter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;

        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("reason", &self.reason)?;
        map.serialize_entry("detail", &self.detail)?;
        map.serialize_entry("source", &self.source)?;
        map.serialize_entry("timestamp", &format_args!("{}", self.timestamp))?;
        serialize_identity(&mut map, self.identity.as_ref())?;
        let raw = base64::engine::general_purpose::STANDARD.encode(&self.raw);
        map.serialize_entry("raw_base64", &raw)?;
        map.serialize_entry("raw_length", &self.raw_length)?;
        map.end()
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("outcome_id", self.outcome_id.as_str())?;
        map.serialize_entry("verdict", self.verdict.as_str())?;
        map.serialize_entry("machine_id", self.machine_id.as_str())?;
        map.serialize_entry("timestamp", &format_args!("{}", self.timestamp))?;
        let mut text = |name: &str, text: Option<&str>| match text {
            Some(text) => map.serialize_entry(name, text),
            None => Ok(()),
        };
        text("alert_id", self.alert_id.as_ref().map(AsRef::as_ref))?;
        text("trip_id", self.trip_id.as_ref().map(AsRef::as_ref))?;
        text("sensor_id", self.sensor_id.as_ref().map(AsRef::as_ref))?;
        text("ticket_id", self.ticket_id.as_ref().map(AsRef::as_ref))?;
        text("part", self.part.as_ref().map(AsRef::as_ref))?;
        text("note", self.note.as_ref().map(AsRef::as_ref))?;
        text("reported_by", self.reported_by.as_ref().map(AsRef::as_ref))?;
        map.end()
    }
}
