//! Sensors whose numbers are none. The decoders refuse such readings, and the recording session writes them to the dead
//! letters; the stop path has to know that the sensor is at fault.

use prost::Message as _;
use serde::Deserialize;
use shared_proto::model::SensorId;
use shared_proto::wire::v1;

/// Longer payloads are not looked into: a flood of them must not take the time of a stop.
const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// The sensors of a refused message of readings whose value is NaN, infinite or `null`. Bare `NaN` and `Infinity` are
/// what many JSON writers make of such numbers.
pub(super) fn sensors_of_readings(payload: &[u8]) -> Vec<SensorId> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Vec::new();
    }
    let is_json = matches!(payload.trim_ascii_start().first(), Some(b'{' | b'['));
    if !is_json {
        let reading = v1::Reading::decode(payload).ok();
        let is_bad = |reading: &v1::Reading| reading.value.is_some_and(|value| !value.is_finite());
        let bad = reading.filter(is_bad).and_then(|reading| SensorId::new(&reading.sensor_id).ok());
        return bad.into_iter().collect();
    }
    let Ok(text) = std::str::from_utf8(payload) else { return Vec::new() };
    let text = without_bare_words(text);
    let elements = match serde_json::from_str::<OneOrMany>(&text) {
        Ok(OneOrMany::One(one)) => vec![one],
        Ok(OneOrMany::Many(many)) => many,
        Err(_) => Vec::new(),
    };
    elements
        .into_iter()
        .filter(|element| element.value.is_null())
        .filter_map(|element| SensorId::new(&element.sensor_id).ok())
        .collect()
}

/// Where the object that begins at `start` ends, by its braces: also one that the parser refuses. `None` where it does not
/// end, or not soon.
pub(super) fn end_of_object(payload: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut is_in_string, mut is_escaped) = (0_usize, false, false);
    for (index, byte) in payload.get(start..)?.iter().take(PAYLOAD_BYTES_MAX).enumerate() {
        if is_in_string {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => is_in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => is_in_string = true,
            b'{' => depth += 1,
            b'}' if depth <= 1 => return Some(start + index + 1),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(Element),
    Many(Vec<Element>),
}

#[derive(Deserialize)]
struct Element {
    sensor_id: String,
    value: serde_json::Value,
}

/// Writes `null` for `NaN`, `Infinity` and `-Infinity` outside of strings.
fn without_bare_words(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_in_string = false;
    while let Some(character) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].iter().find(|word| rest.starts_with(**word));
        if let Some(word) = word.filter(|_| !is_in_string) {
            written.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        // A quotation mark after a backslash ends nothing.
        let length = if is_in_string && character == '\\' {
            character.len_utf8() + rest[1..].chars().next().map_or(0, char::len_utf8)
        } else {
            is_in_string ^= character == '"';
            character.len_utf8()
        };
        written.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(payload: &[u8]) -> String {
        let sensors = sensors_of_readings(payload);
        sensors.iter().map(SensorId::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_value_that_is_no_number_names_its_sensor() {
        let check = |payload: &str, expected: &str| {
            assert_eq!(names(payload.as_bytes()), expected, "{payload}");
        };
        check(r#"{"sensor_id":"t1","value":NaN}"#, "t1");
        check(r#" {"value": -Infinity, "sensor_id":"t1"}"#, "t1");
        check(r#"{"sensor_id":"t1","value":null}"#, "t1");
        check(r#"[{"sensor_id":"t1","value":NaN},{"sensor_id":"t2","value":1}]"#, "t1");
        check(r#"{"sensor_id":"a \"NaN\" b","value":Infinity}"#, r#"a "NaN" b"#);
        check(r#"{"sensor_id":"t1","value":1.5}"#, "");
        check(r#"{"sensor_id":"t1"}"#, "");
        check("{", "");
        check("NaN", "");
        assert_eq!(names(&vec![b'['; PAYLOAD_BYTES_MAX + 1]), "");
    }

    #[test]
    fn an_object_ends_at_its_own_brace() {
        let check = |payload: &str, expected: Option<usize>| {
            assert_eq!(end_of_object(payload.as_bytes(), 0), expected, "{payload}");
        };
        check(r#"{"value":NaN},{}"#, Some(13));
        check(r#"{"a":{"b":1},"c":2}}"#, Some(19));
        check(r#"{"a":"}\\\"}","c":2} "#, Some(20));
        check(r#"{"a":"}"#, None);
        check("", None);
    }

    #[test]
    fn a_number_of_protobuf_that_is_none_names_its_sensor() {
        for (value, expected) in [(f64::NAN, "t1"), (f64::INFINITY, "t1"), (1.0, "")] {
            let reading = v1::Reading {
                sensor_id: "t1".to_owned(),
                value: Some(value),
                ..v1::Reading::default()
            };
            assert_eq!(names(&reading.encode_to_vec()), expected, "{value}");
        }
    }
}
