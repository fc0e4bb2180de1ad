//! What people found: from bytes and back.

use prost::Message as _;

use super::{
    DecodeError, Encoding, from_json, name_text, parse_timestamp, present, timestamp_from_micros,
    to_json,
};
use crate::json::{OutcomeFieldsOnly, RawOutcome};
use crate::model::{
    AlertId, MachineId, NameError, Note, Outcome, OutcomeId, OutcomeVerdict, PartName, Reporter,
    SensorId, TicketId, TripId,
};
use crate::wire::v1;

/// Reads one outcome. An empty text of an optional field says nothing, in both encodings.
///
/// # Errors
/// Anything that is not one valid outcome.
pub fn decode_outcome(bytes: &[u8], encoding: Encoding) -> Result<Outcome, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    match encoding {
        Encoding::Json => outcome_from_json(from_json(bytes)?, None),
        Encoding::Protobuf => {
            let message = v1::Outcome::decode(bytes).map_err(DecodeError::Protobuf)?;
            outcome_from_protobuf(message)
        }
    }
}

/// Reads one outcome in JSON that somebody waits to hear about: as [`decode_outcome`], but a field that nobody knows is refused,
/// since a misspelt one would be lost without a word. `outcome_id` is its name if the object has none.
///
/// # Errors
/// Anything that is not one valid outcome, and fields that nobody knows.
pub fn decode_outcome_of_request(
    bytes: &[u8],
    outcome_id: Option<&OutcomeId>,
) -> Result<Outcome, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    from_json::<OutcomeFieldsOnly>(bytes)?;
    outcome_from_json(from_json(bytes)?, outcome_id)
}

/// Writes one outcome.
#[must_use]
pub fn encode_outcome(outcome: &Outcome, encoding: Encoding) -> Vec<u8> {
    fn text(name: Option<&impl AsRef<str>>) -> String {
        name.map_or_else(String::new, name_text)
    }
    match encoding {
        Encoding::Json => to_json(outcome),
        Encoding::Protobuf => v1::Outcome {
            outcome_id: name_text(&outcome.outcome_id),
            verdict: verdict_to_protobuf(outcome.verdict).into(),
            machine_id: name_text(&outcome.machine_id),
            timestamp_micros: Some(outcome.timestamp.micros()),
            alert_id: text(outcome.alert_id.as_ref()),
            trip_id: text(outcome.trip_id.as_ref()),
            sensor_id: text(outcome.sensor_id.as_ref()),
            ticket_id: text(outcome.ticket_id.as_ref()),
            part: text(outcome.part.as_ref()),
            note: text(outcome.note.as_ref()),
            reported_by: text(outcome.reported_by.as_ref()),
        }
        .encode_to_vec(),
    }
}

fn outcome_from_json(
    raw: RawOutcome,
    named_elsewhere: Option<&OutcomeId>,
) -> Result<Outcome, DecodeError> {
    let named_here = raw.outcome_id.map(|text| OutcomeId::new(&text)).transpose()?;
    let outcome_id = named_here.or_else(|| named_elsewhere.cloned());
    Ok(Outcome {
        outcome_id: outcome_id.ok_or(DecodeError::Missing("outcome_id"))?,
        verdict: raw.verdict,
        machine_id: MachineId::new(&raw.machine_id)?,
        timestamp: parse_timestamp(&raw.timestamp)?,
        alert_id: named(raw.alert_id, AlertId::new)?,
        trip_id: named(raw.trip_id, TripId::new)?,
        sensor_id: named(raw.sensor_id, SensorId::new)?,
        ticket_id: named(raw.ticket_id, TicketId::new)?,
        part: named(raw.part, PartName::new)?,
        note: named(raw.note, Note::new)?,
        reported_by: named(raw.reported_by, Reporter::new)?,
    })
}

fn outcome_from_protobuf(message: v1::Outcome) -> Result<Outcome, DecodeError> {
    let outcome_id = present(message.outcome_id).ok_or(DecodeError::Missing("outcome_id"))?;
    Ok(Outcome {
        outcome_id: OutcomeId::new(&outcome_id)?,
        verdict: verdict_from_protobuf(message.verdict)?,
        machine_id: MachineId::new(&message.machine_id)?,
        timestamp: timestamp_from_micros(message.timestamp_micros)?,
        alert_id: named(Some(message.alert_id), AlertId::new)?,
        trip_id: named(Some(message.trip_id), TripId::new)?,
        sensor_id: named(Some(message.sensor_id), SensorId::new)?,
        ticket_id: named(Some(message.ticket_id), TicketId::new)?,
        part: named(Some(message.part), PartName::new)?,
        note: named(Some(message.note), Note::new)?,
        reported_by: named(Some(message.reported_by), Reporter::new)?,
    })
}

/// A name that may be left out. Tools that fill in forms send what was left out as an empty text.
fn named<T>(
    text: Option<String>,
    check: impl Fn(&str) -> Result<T, NameError>,
) -> Result<Option<T>, NameError> {
    text.and_then(present).map(|text| check(&text)).transpose()
}

const fn verdict_to_protobuf(verdict: OutcomeVerdict) -> v1::OutcomeVerdict {
    match verdict {
        OutcomeVerdict::Confirmed => v1::OutcomeVerdict::Confirmed,
        OutcomeVerdict::FalseAlarm => v1::OutcomeVerdict::FalseAlarm,
        OutcomeVerdict::PartReplaced => v1::OutcomeVerdict::PartReplaced,
        OutcomeVerdict::Note => v1::OutcomeVerdict::Note,
    }
}

fn verdict_from_protobuf(value: i32) -> Result<OutcomeVerdict, DecodeError> {
    match v1::OutcomeVerdict::try_from(value) {
        Err(_) | Ok(v1::OutcomeVerdict::Unspecified) => {
            Err(DecodeError::UnknownValue { field: "verdict", value })
        }
        Ok(v1::OutcomeVerdict::Confirmed) => Ok(OutcomeVerdict::Confirmed),
        Ok(v1::OutcomeVerdict::FalseAlarm) => Ok(OutcomeVerdict::FalseAlarm),
        Ok(v1::OutcomeVerdict::PartReplaced) => Ok(OutcomeVerdict::PartReplaced),
        Ok(v1::OutcomeVerdict::Note) => Ok(OutcomeVerdict::Note),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::EventTime;

    fn full() -> Value {
        json!({
            "outcome_id": "ticket-4711", "verdict": "confirmed", "machine_id": "press-1",
            "timestamp": "2026-03-02T10:00:00.000000Z", "alert_id": "a".repeat(64),
            "trip_id": "press-1-1772352930123456-1", "sensor_id": "press-1/oil",
            "ticket_id": "4711", "part": "bearing 6205 drive end", "note": "worn\nout",
            "reported_by": "Kim",
        })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut record = full();
        record[field] = value;
        record
    }

    fn decode(record: &Value) -> Result<Outcome, DecodeError> {
        decode_outcome(record.to_string().as_bytes(), Encoding::Json)
    }

    #[test]
    fn a_full_outcome_is_read_and_written_as_it_came() {
        let outcome = decode(&full()).expect("valid");
        assert_eq!(outcome.verdict, OutcomeVerdict::Confirmed);
        let written = encode_outcome(&outcome, Encoding::Json);
        assert_eq!(serde_json::from_slice::<Value>(&written).expect("JSON"), full());
        // What is written has every field that a request may have.
        let bytes = full().to_string();
        assert!(decode_outcome_of_request(bytes.as_bytes(), None).is_ok());
    }

    #[test]
    fn awkward_outcomes_have_a_named_reason() {
        let check = |record: Value, expected: &str| {
            let error = decode(&record).expect_err("refused");
            let found = format!("{}: {}", error.reason(), error.detail());
            assert!(found.starts_with(expected), "{record}\n  found {found}");
        };
        check(with("verdict", json!("splendid")), "json: not a record in JSON: unknown variant");
        check(with("verdict", json!({"confirmed": null})), "json");
        check(with("verdict", Value::Null), "json");
        check(with("outcome_id", json!("")), "name: outcome_id is empty");
        check(with("outcome_id", Value::Null), "missing-field: field `outcome_id`");
        check(with("outcome_id", json!("o".repeat(257))), "name: outcome_id has 257 bytes");
        check(with("machine_id", json!(" ")), "name: machine_id is empty");
        check(with("timestamp", json!("yesterday")), "timestamp");
        check(with("alert_id", json!("a")), "name: alert_id is not 64 hexadecimal digits");
        check(with("sensor_id", json!("a\nb")), "name: sensor_id contains");
        check(with("part", json!("p".repeat(257))), "name: part has 257 bytes");
        check(with("note", json!("n".repeat(4_097))), "name: note has 4097 bytes");
        check(with("reported_by", json!("r".repeat(129))), "name: reported_by has 129 bytes");
        check(with("ticket_id", json!(4711)), "json: not a record in JSON: invalid type");
        check(json!([full()]), "json: not a record in JSON: an array, expected an object");
        let twice = full().to_string().replacen('{', r#"{"verdict":"note","#, 1);
        let error = decode_outcome(twice.as_bytes(), Encoding::Json).expect_err("refused");
        assert!(error.detail().contains("duplicate field `verdict`"), "{}", error.detail());
        assert_eq!(decode_outcome(b"", Encoding::Json).expect_err("refused").reason(), "empty");
    }

    #[test]
    fn empty_texts_of_optional_fields_say_nothing() {
        for field in
            ["alert_id", "trip_id", "sensor_id", "ticket_id", "part", "note", "reported_by"]
        {
            let empty = decode(&with(field, json!(""))).expect("valid");
            assert_eq!(empty, decode(&with(field, Value::Null)).expect("valid"), "{field}");
            assert_ne!(empty, decode(&full()).expect("valid"), "{field}");
        }
    }

    #[test]
    fn fields_that_nobody_knows_are_passed_over_on_the_topic_and_refused_in_a_request() {
        let record = with("verdikt", json!("note"));
        assert!(decode(&record).is_ok());
        let error = decode_outcome_of_request(record.to_string().as_bytes(), None);
        let detail = error.expect_err("refused").detail();
        assert!(detail.contains("unknown field `verdikt`, expected one of"), "{detail}");
    }

    #[test]
    fn a_request_may_name_its_outcome_elsewhere() {
        let mut record = full();
        record.as_object_mut().expect("an object").remove("outcome_id");
        let bytes = record.to_string();
        let name = OutcomeId::new("key-1").expect("valid");
        let named = decode_outcome_of_request(bytes.as_bytes(), Some(&name)).expect("valid");
        assert_eq!(named.outcome_id, name);
        let error = decode_outcome_of_request(bytes.as_bytes(), None).expect_err("refused");
        assert_eq!(error.reason(), "missing-field");
        // Its own name goes before.
        let both = decode_outcome_of_request(full().to_string().as_bytes(), Some(&name));
        assert_eq!(both.expect("valid").outcome_id.as_str(), "ticket-4711");
    }

    #[test]
    fn protobuf_without_required_fields_is_refused() {
        let outcome = decode(&full()).expect("valid");
        let message = encode_outcome(&outcome, Encoding::Protobuf);
        let message = v1::Outcome::decode(message.as_slice()).expect("ours");
        let reason = |change: &dyn Fn(&mut v1::Outcome)| {
            let mut message = message.clone();
            change(&mut message);
            decode_outcome(&message.encode_to_vec(), Encoding::Protobuf)
                .map_or_else(|error| error.reason(), |_| "ok")
        };
        assert_eq!(reason(&|_| ()), "ok");
        assert_eq!(reason(&|message| message.outcome_id.clear()), "missing-field");
        assert_eq!(reason(&|message| message.machine_id.clear()), "name");
        assert_eq!(reason(&|message| message.timestamp_micros = None), "missing-field");
        assert_eq!(reason(&|message| message.timestamp_micros = Some(i64::MAX)), "timestamp");
        assert_eq!(reason(&|message| message.verdict = 0), "unknown-value");
        assert_eq!(reason(&|message| message.verdict = 5), "unknown-value");
        assert_eq!(reason(&|message| message.alert_id.push('0')), "name");
    }

    fn texts() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("[a-zA-Z0-9/_äß -]{0,39}[a-z]")
    }

    prop_compose! {
        fn outcomes()(
            (id, machine) in ("[a-z0-9-]{1,40}", "[a-z0-9-]{1,40}"),
            verdict in proptest::sample::select(OutcomeVerdict::ALL.to_vec()),
            micros in -62_167_219_200_000_000_i64..253_402_300_800_000_000,
            alert in proptest::option::of("[0-9a-f]{64}"),
            (trip, sensor, ticket, part, reporter) in
                (texts(), texts(), texts(), texts(), texts()),
            note in proptest::option::of("[a-zA-Z\n\t\"\\\\ ]{0,99}[a-z]"),
        ) -> Outcome {
            let id = OutcomeId::new(&id).expect("valid");
            let machine = MachineId::new(&machine).expect("valid");
            Outcome {
                alert_id: named(alert, AlertId::new).expect("valid"),
                trip_id: named(trip, TripId::new).expect("valid"),
                sensor_id: named(sensor, SensorId::new).expect("valid"),
                ticket_id: named(ticket, TicketId::new).expect("valid"),
                part: named(part, PartName::new).expect("valid"),
                note: named(note, Note::new).expect("valid"),
                reported_by: named(reporter, Reporter::new).expect("valid"),
                ..Outcome::new(id, verdict, machine, EventTime::from_micros(micros))
            }
        }
    }

    proptest! {
        #[test]
        fn outcomes_survive_both_encodings(outcome in outcomes()) {
            for encoding in [Encoding::Json, Encoding::Protobuf] {
                let bytes = encode_outcome(&outcome, encoding);
                let decoded = decode_outcome(&bytes, encoding).expect("what we write we read");
                prop_assert_eq!(&decoded, &outcome);
            }
            let bytes = encode_outcome(&outcome, Encoding::Json);
            let decoded = decode_outcome_of_request(&bytes, None).expect("no field is unknown");
            prop_assert_eq!(decoded, outcome);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(decode_outcome(&bytes, Encoding::Json));
            drop(decode_outcome(&bytes, Encoding::Protobuf));
            drop(decode_outcome_of_request(&bytes, None));
        }
    }
}
