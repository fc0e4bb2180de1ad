//! Documents of a twin: how a patch changes one, which patch leads from one to another, and how they are read from the wire.

use serde_json::{Map, Value};

/// Larger bodies are not looked at. A hub holds 32 KiB of desired and as much of reported properties, counted without its own
/// metadata, which an answer may carry besides.
pub const BODY_BYTES_MAX: usize = 300 * 1024;
/// Of a reason that a hub gives, in characters.
const REASON_CHARS_MAX: usize = 200;

/// What a GET brings; neither document holds nulls or members of the hub's own.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) desired: Desired,
    pub(super) reported: Map<String, Value>,
}

/// The desired properties and their version.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    pub(super) properties: Map<String, Value>,
    pub(super) version: u64,
}

/// Applies a patch (RFC 7386): null removes a member, objects are merged, all else is replaced whole.
pub fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        let Value::Object(inner) = value else {
            if value.is_null() {
                target.remove(name);
            } else {
                target.insert(name.clone(), value.clone());
            }
            continue;
        };
        let member = target.entry(name.clone()).or_insert(Value::Null);
        if let Value::Object(member) = member {
            merge(member, inner);
        } else {
            *member = Value::Object(without_nulls(inner));
        }
    }
}

/// The smallest patch that leads from one document to another by [`merge`]; empty if they are the same. Neither may hold
/// nulls, which no patch could bring about.
#[must_use]
pub fn difference(from: &Map<String, Value>, to: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, wanted) in to {
        let there = from.get(name);
        if there == Some(wanted) {
            continue;
        }
        let change = if let (Some(Value::Object(there)), Value::Object(wanted)) = (there, wanted) {
            Value::Object(difference(there, wanted))
        } else {
            wanted.clone()
        };
        patch.insert(name.clone(), change);
    }
    patch
}

/// The document without members that are null, as a hub would hold it.
pub(super) fn without_nulls(document: &Map<String, Value>) -> Map<String, Value> {
    let mut clean = Map::new();
    merge(&mut clean, document);
    clean
}

/// A part of a patch whose text is at most `bytes_max` bytes, or a single member; what removes comes first, so that the hub
/// has room for what is new.
pub(super) fn part_of(patch: &Map<String, Value>, bytes_max: usize) -> Map<String, Value> {
    if text_of(patch).len() <= bytes_max {
        return patch.clone();
    }
    let (removed, set): (Vec<_>, Vec<_>) = patch.iter().partition(|(_, value)| value.is_null());
    let mut part = Map::new();
    let mut bytes = 2;
    for (name, value) in removed.into_iter().chain(set) {
        let member = Map::from_iter([(name.clone(), value.clone())]);
        // A comma in place of the braces.
        bytes += text_of(&member).len() - 1;
        if !part.is_empty() && bytes > bytes_max {
            break;
        }
        part.extend(member);
    }
    part
}

/// The document as it goes over the wire.
pub(super) fn text_of(document: &Map<String, Value>) -> String {
    serde_json::to_string(document).expect("names are text and numbers finite")
}

/// Reads the body of an answer to a GET.
pub(super) fn parse_answer(body: &[u8]) -> Result<Answer, String> {
    let mut twin = parse_object(body, "twin")?;
    let Some(Value::Object(desired)) = twin.remove("desired") else {
        return Err("twin has no desired properties".to_owned());
    };
    let Some(version) = desired.get("$version").and_then(Value::as_u64) else {
        return Err("desired properties of the twin have no $version".to_owned());
    };
    let reported = match twin.remove("reported") {
        Some(Value::Object(reported)) => reported,
        None => Map::new(),
        Some(_) => return Err("reported properties of the twin are no object".to_owned()),
    };
    let desired = Desired { properties: without_nulls(&without_own(desired)), version };
    Ok(Answer { desired, reported: without_nulls(&without_own(reported)) })
}

/// Reads the body of a change of the desired properties.
pub(super) fn parse_patch(body: &[u8]) -> Result<Map<String, Value>, String> {
    parse_object(body, "desired patch").map(without_own)
}

fn parse_object(body: &[u8], what: &str) -> Result<Map<String, Value>, String> {
    if body.len() > BODY_BYTES_MAX {
        return Err(format!("{what} of {} bytes: at most {BODY_BYTES_MAX} are read", body.len()));
    }
    serde_json::from_slice(body).map_err(|error| format!("{what} is no JSON object: {error}"))
}

/// Takes out what the hub adds of its own: `$version`, `$metadata`.
fn without_own(mut document: Map<String, Value>) -> Map<String, Value> {
    document.retain(|name, _| !name.starts_with('$'));
    document
}

/// Why a hub refused, in its own words: the message of a JSON body, else its text.
pub(super) fn reason_of(body: &[u8]) -> String {
    let start = &body[..body.len().min(BODY_BYTES_MAX)];
    let fields: Option<Map<String, Value>> = serde_json::from_slice(start).ok();
    let message = fields.as_ref().and_then(|fields| {
        let named = ["message", "Message"].into_iter().find_map(|name| fields.get(name));
        named.and_then(Value::as_str)
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(start), Into::into);
    let printable = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(REASON_CHARS_MAX).collect()
}
