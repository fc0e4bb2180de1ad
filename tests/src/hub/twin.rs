//! The two halves of a twin with their versions.

use serde_json::{Map, Value, json};

/// Of each half.
const BYTES_MAX: usize = 32 * 1024;
/// Of objects within objects.
const DEPTH_MAX: usize = 10;
const KEY_BYTES_MAX: usize = 1024;
const TEXT_BYTES_MAX: usize = 4096;
const INTEGER_MIN: i64 = -4_503_599_627_370_496;
const INTEGER_MAX: i64 = 4_503_599_627_370_495;

/// Why a report is refused: the status, and the reason for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) reason: String,
}

#[derive(Clone, Debug)]
pub(super) struct Twin {
    desired: Map<String, Value>,
    desired_version: u64,
    reported: Map<String, Value>,
    reported_version: u64,
}

impl Twin {
    pub(super) fn new() -> Self {
        Self { desired: Map::new(), desired_version: 1, reported: Map::new(), reported_version: 1 }
    }

    /// Without `$version`, and the version.
    pub(super) fn desired(&self) -> (Value, u64) {
        (Value::Object(self.desired.clone()), self.desired_version)
    }

    /// Without `$version`.
    pub(super) fn reported(&self) -> Value {
        Value::Object(self.reported.clone())
    }

    /// What answers a GET.
    pub(super) fn document(&self) -> Value {
        json!({
            "desired": versioned(&self.desired, self.desired_version),
            "reported": versioned(&self.reported, self.reported_version),
        })
    }

    /// Merges and gives what subscribers get: the patch and the new version.
    pub(super) fn patch_desired(&mut self, patch: &Map<String, Value>) -> (Value, u64) {
        merge(&mut self.desired, patch);
        self.desired_version += 1;
        (versioned(patch, self.desired_version), self.desired_version)
    }

    /// Merges a reported patch and gives the new version.
    pub(super) fn report(&mut self, body: &[u8]) -> Result<u64, Refused> {
        let refused = |status, reason: String| Refused { status, reason };
        let patch: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| refused(400, format!("a report that is no JSON object: {error}")))?;
        check_members(&patch, 1).map_err(|reason| refused(400, reason))?;
        let mut merged = self.reported.clone();
        merge(&mut merged, &patch);
        let bytes = Value::Object(merged.clone()).to_string().len();
        if bytes > BYTES_MAX {
            return Err(refused(
                413,
                format!("{bytes} bytes are reported, {BYTES_MAX} are allowed"),
            ));
        }
        self.reported = merged;
        self.reported_version += 1;
        Ok(self.reported_version)
    }
}

fn versioned(members: &Map<String, Value>, version: u64) -> Value {
    let mut members = members.clone();
    members.insert("$version".to_owned(), version.into());
    Value::Object(members)
}

/// RFC 7386: `null` removes, objects merge, the rest is replaced.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
            continue;
        }
        let Value::Object(patch) = value else {
            target.insert(key.clone(), value.clone());
            continue;
        };
        let entry = target.entry(key.clone()).or_insert(Value::Null);
        if !entry.is_object() {
            *entry = Value::Object(Map::new());
        }
        if let Value::Object(target) = entry {
            merge(target, patch);
        }
    }
}

/// What IoT Hub takes ("Understand and use device twins", section "Tags and properties format").
fn check_members(members: &Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("objects within each other deeper than {DEPTH_MAX}"));
    }
    for (key, value) in members {
        let is_forbidden = |c: char| c.is_control() || matches!(c, '.' | '$' | ' ');
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(is_forbidden) {
            return Err(format!("the member name \"{key}\""));
        }
        check_value(value, depth).map_err(|reason| format!("{key}: {reason}"))?;
    }
    Ok(())
}

fn check_value(value: &Value, depth: usize) -> Result<(), String> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Number(number) => match number.as_i64() {
            Some(number) if (INTEGER_MIN..=INTEGER_MAX).contains(&number) => Ok(()),
            None if number.is_f64() => Ok(()),
            Some(_) | None => Err(format!("the integer {number}")),
        },
        Value::String(text) if text.len() > TEXT_BYTES_MAX => {
            Err(format!("a text of {} bytes", text.len()))
        }
        Value::String(_) => Ok(()),
        Value::Array(values) => values.iter().try_for_each(|value| check_value(value, depth)),
        Value::Object(members) => check_members(members, depth + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else { panic!("{value} is no object") };
        object
    }

    fn report(twin: &mut Twin, value: &Value) -> Result<u64, u16> {
        twin.report(value.to_string().as_bytes()).map_err(|refused| refused.status)
    }

    #[test]
    fn a_patch_merges_and_null_removes_at_any_depth() {
        let mut twin = Twin::new();
        twin.patch_desired(&object(json!({"a": {"b": 1, "c": 2}, "d": [1], "e": null})));
        let patch = object(json!({"a": {"b": null, "x": {"y": null, "z": 3}}, "d": [null]}));
        let (sent, version) = twin.patch_desired(&patch);
        assert_eq!(version, 3);
        assert_eq!(sent["$version"], 3);
        assert_eq!(sent["a"]["b"], Value::Null, "the patch goes out as it came in");
        let expected = json!({"a": {"c": 2, "x": {"z": 3}}, "d": [null]});
        assert_eq!(twin.desired(), (expected, 3));
    }

    #[test]
    fn both_halves_count_their_versions_alone() {
        let mut twin = Twin::new();
        twin.patch_desired(&object(json!({"limit": 4.5})));
        assert_eq!(report(&mut twin, &json!({"state": "armed"})), Ok(2));
        assert_eq!(report(&mut twin, &json!({"state": null})), Ok(3));
        let expected = json!({
            "desired": {"limit": 4.5, "$version": 2}, "reported": {"$version": 3}
        });
        assert_eq!(twin.document(), expected);
        assert_eq!(twin.reported(), json!({}));
    }

    #[test]
    fn a_report_that_the_hub_would_refuse_changes_nothing() {
        let mut deep = json!(1);
        for _ in 0..11 {
            deep = json!({ "a": deep });
        }
        let refused = [
            json!([1]),
            json!({"a.b": 1}),
            json!({"$a": 1}),
            json!({"a": {"b c": 1}}),
            json!({"a": "x".repeat(4097)}),
            json!({"a": [{"b": INTEGER_MAX + 1}]}),
            deep,
        ];
        let mut twin = Twin::new();
        for value in refused {
            assert_eq!(report(&mut twin, &value), Err(400), "{value}");
        }
        assert_eq!(twin.report(b"{").map_err(|refused| refused.status), Err(400));
        assert_eq!(twin.document()["reported"], json!({"$version": 1}));
    }

    #[test]
    fn reported_properties_end_at_32_kib() {
        let part = "x".repeat(4000);
        let mut twin = Twin::new();
        for number in 0..8 {
            let value = json!({ format!("part{number}"): part });
            assert!(report(&mut twin, &value).is_ok(), "{number}");
        }
        assert_eq!(report(&mut twin, &json!({"part8": part})), Err(413));
        assert_eq!(report(&mut twin, &json!({"part0": null, "part8": part})), Ok(10));
    }
}
