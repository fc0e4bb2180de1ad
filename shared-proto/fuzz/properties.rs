//! What must hold of the decoders for any bytes: none panics or allocates out of proportion, what is accepted is written and
//! read back the same in both encodings, and the JSON decoder, which borrows, agrees with a slow one that goes through
//! [`serde_json::Value`].
//!
//! The fuzz targets and `tests/corpus.rs` share this file.

use std::collections::BTreeMap;
use std::fmt::Debug;

use base64::Engine as _;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use shared_proto::Encoding;
use shared_proto::codec::{
    DecodeError, Decoder, decode_dead_letter, decode_machine_event, decode_outcome,
    decode_outcome_of_request, decode_reading, decode_readings, decode_waveform_block,
    decode_waveform_snapshot, encode_dead_letter, encode_machine_event, encode_outcome,
    encode_reading, waveform_scale,
};
use shared_proto::model::{
    AlertId, DEAD_LETTER_RAW_BYTES_MAX, DeadLetter, DeviceId, EventTime, FEATURE_NAME_BYTES_MAX,
    FEATURES_MAX, Generation, Identity, MachineEvent, MachineEventDetails, MachineEventType,
    MachineId, MetricType, Note, Outcome, OutcomeId, OutcomeVerdict, PartName, Quality,
    READINGS_PER_ARRAY_MAX, Reading, Reporter, SensorId, Sequence, TicketId, TripId,
    UNIT_BYTES_MAX,
};

/// Most bytes that decoding may hold at once: so many, and so many for each byte of the input.
const HELD_BYTES: u64 = 16_384;
const HELD_BYTES_PER_BYTE: u64 = 32;
/// An array of readings holds a result for each element, up to the limit of elements.
const HELD_BYTES_PER_ELEMENT: u64 = 1_024;

/// Does the work and says how many bytes it held at once at most, as far as somebody counts.
pub(crate) type Measure = dyn Fn(&mut dyn FnMut()) -> u64;

/// Checks everything for one input.
pub(crate) fn check(bytes: &[u8], encoding: Encoding, measure: &Measure) {
    let reading = bounded(bytes, measure, || decode_reading(bytes, encoding));
    let mut decoder = Decoder::default();
    for _ in 0..2 {
        let kept = decoder.decode_reading(bytes, encoding);
        assert_eq!(outcome(&kept), outcome(&reading), "a decoder that keeps names differs");
    }
    let reading = reading.ok().map(|decoded| decoded.reading);
    let event = bounded(bytes, measure, || decode_machine_event(bytes, encoding)).ok();
    let letter = bounded(bytes, measure, || decode_dead_letter(bytes, encoding)).ok();
    let found = bounded(bytes, measure, || decode_outcome(bytes, encoding)).ok();
    drop(bounded(bytes, measure, || decode_waveform_block(bytes, encoding)));
    drop(bounded(bytes, measure, || waveform_scale(bytes, encoding)));
    match encoding {
        Encoding::Json => {
            assert_eq!(reading, slow_reading(bytes), "the slow decoder reads another reading");
            assert_eq!(event, slow_event(bytes), "the slow decoder reads another machine event");
            assert_eq!(letter, slow_letter(bytes), "the slow decoder reads another dead letter");
            assert_eq!(found, slow_outcome(bytes), "the slow decoder reads another outcome");
            let asked = bounded(bytes, measure, || decode_outcome_of_request(bytes, None)).ok();
            let known = found.clone().filter(|_| has_only_fields_of_outcomes(bytes));
            assert_eq!(asked, known, "a request differs in more than the fields nobody knows");
            check_array(bytes, measure);
        }
        Encoding::Protobuf => drop(bounded(bytes, measure, || decode_waveform_snapshot(bytes))),
    }
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        if let Some(reading) = &reading {
            let again = decode_reading(&encode_reading(reading, encoding), encoding);
            let again = again.expect("what we write we read").reading;
            assert_eq!((&again, again.value.to_bits()), (reading, reading.value.to_bits()));
        }
        if let Some(event) = &event {
            let again = decode_machine_event(&encode_machine_event(event, encoding), encoding);
            assert_eq!(&again.expect("what we write we read"), event);
        }
        if let Some(letter) = &letter {
            let again = decode_dead_letter(&encode_dead_letter(letter, encoding), encoding);
            assert_eq!(&again.expect("what we write we read"), letter);
        }
        if let Some(found) = &found {
            let again = decode_outcome(&encode_outcome(found, encoding), encoding);
            assert_eq!(&again.expect("what we write we read"), found);
        }
    }
}

fn bounded<T>(bytes: &[u8], measure: &Measure, decode: impl Fn() -> T) -> T {
    let mut result = None;
    let held = measure(&mut || result = Some(decode()));
    let limit = HELD_BYTES + HELD_BYTES_PER_BYTE * bytes.len() as u64;
    assert!(held <= limit, "{held} bytes held for an input of {}, at most {limit}", bytes.len());
    result.expect("the work was done")
}

fn outcome<T: Debug>(result: &Result<T, DecodeError>) -> String {
    match result {
        Ok(record) => format!("{record:?}"),
        Err(error) => error.detail(),
    }
}

fn check_array(bytes: &[u8], measure: &Measure) {
    let mut elements = 0;
    let held = measure(&mut || {
        if let Ok(array) = decode_readings(bytes) {
            elements = array.len() as u64;
            assert!(array.len() <= READINGS_PER_ARRAY_MAX);
        }
    });
    let limit = HELD_BYTES + HELD_BYTES_PER_BYTE * bytes.len() as u64;
    let limit = limit + HELD_BYTES_PER_ELEMENT * elements;
    assert!(held <= limit, "{held} bytes held for {elements} elements, at most {limit}");
}

/// The fields of an object in their order, nothing left out.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

impl Fields<'_> {
    /// The value of a field that may stand once; null is absent. `None`: the record is refused.
    fn get(&self, name: &str) -> Option<Value> {
        let mut found = self.0.iter().filter(|(key, _)| key == name);
        let Some((_, raw)) = found.next() else { return Some(Value::Null) };
        match found.next() {
            Some(_) => None,
            None => serde_json::from_str(raw.get()).ok(),
        }
    }

    fn text(&self, name: &str) -> Option<Option<String>> {
        match self.get(name)? {
            Value::Null => Some(None),
            Value::String(text) => Some(Some(text)),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// As [`Self::text`], and an empty text says nothing.
    fn word(&self, name: &str) -> Option<Option<String>> {
        Some(self.text(name)?.filter(|text| !text.is_empty()))
    }

    fn number(&self, name: &str) -> Option<Option<f64>> {
        match self.get(name)? {
            Value::Null => Some(None),
            Value::Number(number) => Some(Some(number.as_f64()?)),
            Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn count(&self, name: &str) -> Option<Option<u64>> {
        match self.get(name)? {
            Value::Null => Some(None),
            Value::Number(number) => Some(Some(number.as_u64()?)),
            Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// A flag; null is false only where `or_null`.
    fn flag(&self, name: &str, or_null: bool) -> Option<bool> {
        let is_there = self.0.iter().any(|(key, _)| key == name);
        match self.get(name)? {
            Value::Null if or_null || !is_there => Some(false),
            Value::Bool(flag) => Some(flag),
            Value::Null
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => None,
        }
    }

    fn time(&self) -> Option<EventTime> {
        let parsed = chrono::DateTime::parse_from_rfc3339(&self.text("timestamp")??).ok()?;
        // The year of the microsecond, not of the text: a leap second at the end of the year 9999 lies in the year 10000.
        let time = chrono::DateTime::from_timestamp_micros(parsed.timestamp_micros())?;
        let year = chrono::Datelike::year(&time);
        (0..=9999).contains(&year).then(|| EventTime::from_micros(time.timestamp_micros()))
    }

    fn identity(&self) -> Option<Option<Identity>> {
        let device = self.text("device_id")?.map(|text| DeviceId::new(&text));
        let device_id = device.transpose().ok()?;
        match (device_id, self.count("generation")?, self.count("sequence")?) {
            (_, None, None) => Some(None),
            (Some(device_id), Some(generation), Some(sequence)) => Some(Some(Identity {
                device_id,
                generation: Generation(generation),
                sequence: Sequence(sequence),
            })),
            _ => None,
        }
    }

    fn features(&self) -> Option<BTreeMap<String, f64>> {
        let Value::Object(_) = self.get("features")? else {
            return matches!(self.get("features")?, Value::Null).then(BTreeMap::new);
        };
        let raw = self.0.iter().find(|(key, _)| key == "features")?.1;
        let fields: Fields = serde_json::from_str(raw.get()).ok()?;
        let mut features = BTreeMap::new();
        for (name, _) in &fields.0 {
            features.insert(name.clone(), fields.number(name)??);
        }
        let are_short = features.keys().all(|name| name.len() <= FEATURE_NAME_BYTES_MAX);
        (are_short && features.len() <= FEATURES_MAX).then_some(features)
    }
}

fn fields(bytes: &[u8]) -> Option<Fields<'_>> {
    serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
}

fn slow_reading(bytes: &[u8]) -> Option<Reading> {
    let fields = fields(bytes)?;
    let quality = match fields.text("quality")?.as_deref() {
        None => None,
        Some("good") => Some(Quality::Good),
        Some("uncertain") => Some(Quality::Uncertain),
        Some("bad") => Some(Quality::Bad),
        Some(_) => return None,
    };
    let machine_id = fields.text("machine_id")?.map(|text| MachineId::new(&text));
    let unit = fields.word("unit")?;
    if unit.as_ref().is_some_and(|unit| unit.len() > UNIT_BYTES_MAX) {
        return None;
    }
    Some(Reading {
        sensor_id: SensorId::new(&fields.text("sensor_id")??).ok()?,
        timestamp: fields.time()?,
        metric_type: MetricType::new(&fields.text("metric_type")??).ok()?,
        value: fields.number("value")??,
        machine_id: machine_id.transpose().ok()?,
        unit: unit.map(Into::into),
        quality,
        identity: fields.identity()?,
        historical: fields.flag("historical", true)?,
        features: fields.features()?,
    })
}

fn slow_event(bytes: &[u8]) -> Option<MachineEvent> {
    let fields = fields(bytes)?;
    let event_type: MachineEventType =
        serde_json::from_value(Value::String(fields.text("event_type")??)).ok()?;
    let sensor_id = fields.text("sensor_id")?.map(|text| SensorId::new(&text));
    let metric_type = fields.text("metric_type")?.map(|text| MetricType::new(&text));
    Some(MachineEvent {
        event_type,
        machine_id: MachineId::new(&fields.text("machine_id")??).ok()?,
        timestamp: fields.time()?,
        identity: fields.identity()?,
        historical: fields.flag("historical", false)?,
        details: MachineEventDetails {
            cause: fields.word("cause")?,
            rule: fields.word("rule")?,
            sensor_id: sensor_id.transpose().ok()?,
            metric_type: metric_type.transpose().ok()?,
            value: fields.number("value")?,
            limit: fields.number("limit")?,
            score: fields.number("score")?,
            model: fields.word("model")?,
            command_latency_micros: fields.count("command_latency_micros")?,
            confirmation_latency_micros: fields.count("confirmation_latency_micros")?,
            first_sequence: fields.count("first_sequence")?,
            last_sequence: fields.count("last_sequence")?,
            record_count: fields.count("record_count")?,
            detail: fields.word("detail")?,
            rule_version: fields.word("rule_version")?,
            trip_id: fields.word("trip_id")?,
            operator: fields.word("operator")?,
            delivered_sequence: fields.count("delivered_sequence")?,
            waveform_sequences: fields.word("waveform_sequences")?,
            contributions: fields.word("contributions")?,
        },
    })
}

fn slow_letter(bytes: &[u8]) -> Option<DeadLetter> {
    let fields = fields(bytes)?;
    let base64 = fields.text("raw_base64")??;
    let raw = base64::engine::general_purpose::STANDARD.decode(base64).ok()?;
    Some(DeadLetter {
        reason: fields.text("reason")??,
        detail: fields.text("detail")??,
        source: fields.text("source")??,
        timestamp: fields.time()?,
        identity: fields.identity()?,
        raw_length: fields.count("raw_length")??,
        raw: (raw.len() <= DEAD_LETTER_RAW_BYTES_MAX).then_some(raw)?,
    })
}

fn slow_outcome(bytes: &[u8]) -> Option<Outcome> {
    let fields = fields(bytes)?;
    let verdict = match fields.text("verdict")??.as_str() {
        "confirmed" => OutcomeVerdict::Confirmed,
        "false-alarm" => OutcomeVerdict::FalseAlarm,
        "part-replaced" => OutcomeVerdict::PartReplaced,
        "note" => OutcomeVerdict::Note,
        _ => return None,
    };
    let alert_id = fields.word("alert_id")?.map(|text| AlertId::new(&text));
    let trip_id = fields.word("trip_id")?.map(|text| TripId::new(&text));
    let sensor_id = fields.word("sensor_id")?.map(|text| SensorId::new(&text));
    let ticket_id = fields.word("ticket_id")?.map(|text| TicketId::new(&text));
    let part = fields.word("part")?.map(|text| PartName::new(&text));
    let note = fields.word("note")?.map(|text| Note::new(&text));
    let reported_by = fields.word("reported_by")?.map(|text| Reporter::new(&text));
    Some(Outcome {
        outcome_id: OutcomeId::new(&fields.text("outcome_id")??).ok()?,
        verdict,
        machine_id: MachineId::new(&fields.text("machine_id")??).ok()?,
        timestamp: fields.time()?,
        alert_id: alert_id.transpose().ok()?,
        trip_id: trip_id.transpose().ok()?,
        sensor_id: sensor_id.transpose().ok()?,
        ticket_id: ticket_id.transpose().ok()?,
        part: part.transpose().ok()?,
        note: note.transpose().ok()?,
        reported_by: reported_by.transpose().ok()?,
    })
}

fn has_only_fields_of_outcomes(bytes: &[u8]) -> bool {
    let known = "outcome_id verdict machine_id timestamp alert_id trip_id sensor_id ticket_id part note reported_by";
    let is_known = |name: &String| known.split(' ').any(|known| known == name);
    fields(bytes).is_some_and(|fields| fields.0.iter().all(|(name, _)| is_known(name)))
}
