//! What the windows make of awkward lines, beside what Spark's `from_json` makes of them (`tests/spark/from_json.jsonl`: its answers,
//! fetched by the workspace's `tests/spark/awkward_lines.py`). Where they differ, `cloud-aggregator/INPUT.md` says so.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use shared_proto::Encoding;
use shared_proto::codec::decode_reading;

fn payload(case: &Value) -> Vec<u8> {
    match case["hex"].as_str() {
        Some(hex) => (0..hex.len() / 2)
            .map(|byte| u8::from_str_radix(&hex[2 * byte..2 * byte + 2], 16).expect("hexadecimal"))
            .collect(),
        None => case["line"].as_str().unwrap_or_default().as_bytes().to_vec(),
    }
}

/// What would be counted: sensor, microseconds since 1970 and value, or nothing.
fn counted_here(case: &Value) -> Option<(String, i64, f32)> {
    let reading = decode_reading(&payload(case), Encoding::Json).ok()?.reading;
    (reading.metric_type.as_str() == "temperature" && reading.value > 100.0).then(|| {
        let sensor_id = reading.sensor_id.as_str().to_owned();
        // Spark's job keeps a value in 32 bits.
        (sensor_id, reading.timestamp.micros(), reading.value as f32)
    })
}

fn counted_by_spark(case: &Value) -> Option<(String, i64, f32)> {
    let answer = &case["spark"];
    if answer["counted"] == Value::Bool(false) {
        return None;
    }
    let sensor_id = answer["sensor_id"].as_str().unwrap_or_default().to_owned();
    Some((sensor_id, answer["timestamp"].as_i64()?, answer["value"].as_str()?.parse().ok()?))
}

#[test]
fn awkward_lines_are_counted_as_spark_counts_them_except_where_documented() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = package.join("tests/spark/from_json.jsonl");
    let text = std::fs::read_to_string(&file).expect("the answers are there");
    let document = package.join("../cloud-aggregator/INPUT.md");
    let document = std::fs::read_to_string(&document).expect("the document is there");
    let mut kinds = BTreeSet::new();
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).expect("a case a line");
        assert!(case["spark"]["counted"].is_boolean(), "{}: no answer of Spark's", case["case"]);
        let (ours, theirs) = (counted_here(&case), counted_by_spark(&case));
        let difference = case["difference"].as_str();
        assert_eq!(
            ours != theirs,
            difference.is_some(),
            "{}: ours {ours:?}, Spark's {theirs:?}, difference {difference:?}",
            case["case"]
        );
        kinds.extend(difference.map(str::to_owned));
    }
    for kind in &kinds {
        let row = format!("| {kind} |");
        assert!(document.contains(&row), "INPUT.md has no row {row:?}");
    }
}
