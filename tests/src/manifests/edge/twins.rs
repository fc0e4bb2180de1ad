//! What IoT Hub takes as desired properties.

use serde_json::{Map, Value};

/// Of one identity, as JSON.
const TWIN_BYTES_MAX: usize = 32 * 1024;
const DEPTH_MAX: usize = 10;
const KEY_BYTES_MAX: usize = 1_024;
const TEXT_BYTES_MAX: usize = 4_096;
/// Whole numbers are kept exactly up to this, either way.
const INTEGER_MAX: i64 = 4_503_599_627_370_495;

/// What stands in texts and must not: variables that nobody filled in, and what looks like a key.
const SUSPICIOUS: [&str; 6] =
    ["${", "SharedAccessKey=", "AccountKey=", "SharedAccessSignature", "PRIVATE KEY", "Password="];

/// Faults of the desired properties of one identity.
pub(super) fn faults(name: &str, desired: &Map<String, Value>) -> Vec<String> {
    let mut faults = Vec::new();
    let bytes = Value::Object(desired.clone()).to_string().len();
    if bytes > TWIN_BYTES_MAX {
        faults.push(format!("{name}: {bytes} bytes, a twin has {TWIN_BYTES_MAX}"));
    }
    for (key, value) in desired {
        check(&format!("{name}/{key}"), key, value, 1, &mut faults);
    }
    faults
}

fn check(place: &str, key: &str, value: &Value, depth: usize, faults: &mut Vec<String>) {
    let is_refused = |found: char| found.is_control() || ".$ ".contains(found);
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(is_refused) {
        faults.push(format!("{place}: a key without control characters, '.', '$' and spaces"));
    }
    if depth > DEPTH_MAX {
        faults.push(format!("{place}: deeper than {DEPTH_MAX}"));
        return;
    }
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                check(&format!("{place}/{key}"), key, value, depth + 1, faults);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check(&format!("{place}/{index}"), "item", item, depth + 1, faults);
            }
        }
        Value::String(text) if text.len() > TEXT_BYTES_MAX => {
            faults.push(format!("{place}: {} bytes, at most {TEXT_BYTES_MAX}", text.len()));
        }
        Value::Number(number) => {
            let is_exact = |number: i64| number.unsigned_abs() <= INTEGER_MAX.unsigned_abs();
            if !number.is_f64() && !number.as_i64().is_some_and(is_exact) {
                faults.push(format!("{place}: {number} is not kept exactly"));
            }
        }
        Value::Null => faults.push(format!("{place}: null deletes it")),
        Value::String(_) | Value::Bool(_) => {}
    }
}

/// Faults of every text of a manifest, wherever it stands.
pub(super) fn text_faults(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => SUSPICIOUS
            .iter()
            .filter(|word| text.contains(**word))
            .map(|word| format!("a text has {word:?} in it"))
            .collect(),
        Value::Array(items) => items.iter().flat_map(text_faults).collect(),
        Value::Object(members) => members.values().flat_map(text_faults).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}
