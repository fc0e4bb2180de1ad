//! What the module reports of itself: reported properties, a summary of `/status`.
//!
//! Names of machines and models are values and never keys: a twin takes no `.`, `$` or space in a key. Lists are bounded and
//! texts cut, so that the whole stays below the 32 KiB of a hub.

use serde_json::{Map, Value, json};

use super::sparing::cut;
use crate::admin::{Board, Status};
use crate::reload::DesiredState;

/// Machines, models and parts that are named; fewer if the whole is too long. The rest is counted.
const NAMED_MAX: usize = 64;
/// A hub takes 32 KiB.
const BYTES_MAX: usize = 30 << 10;
/// Longest text, in characters; a hub takes 4 KiB.
const TEXT_CHARACTERS_MAX: usize = 256;

/// The whole that a hub ought to show.
pub(super) fn reported(
    board: &Board,
    desired: Option<&DesiredState>,
    unreadable: Option<&str>,
) -> Map<String, Value> {
    let status = board.status();
    let mut named_max = NAMED_MAX;
    loop {
        let mut whole = summary(&status, (desired, unreadable), named_max);
        without_nulls(&mut whole);
        if named_max == 0 || whole.to_string().len() <= BYTES_MAX {
            return whole.as_object_mut().map(std::mem::take).unwrap_or_default();
        }
        named_max /= 2;
    }
}

fn summary(
    status: &Status,
    (desired, unreadable): (Option<&DesiredState>, Option<&str>),
    named_max: usize,
) -> Value {
    let mut settings =
        json!({ "version": status.settings.version, "since": status.settings.since });
    if let (Some(members), Some(desired)) = (settings.as_object_mut(), desired) {
        members.insert("desired".to_owned(), desired_state(desired));
    }
    if let (Some(members), Some(reason)) = (settings.as_object_mut(), unreadable) {
        // What is newer than the version above and cannot be read.
        members.insert("unreadable".to_owned(), long_text(reason).into());
    }
    let models = list(status.models.iter(), named_max, |(name, model)| {
        json!({
            "name": text(name),
            "inForce": model.in_force.as_deref().map(text),
            "state": model.state,
            "candidate": model.candidate.as_deref().map(text),
            "refusal": model.refusal.as_deref().map(text),
            "report": model.report.as_deref().map(text),
        })
    });
    let parts = list(
        status.parts.iter(),
        named_max,
        |(name, state)| json!({ "name": name, "state": text(state) }),
    );
    json!({
        "software": { "name": "edge-module", "version": env!("CARGO_PKG_VERSION") },
        "settings": settings,
        "models": models,
        "machines": machines(status, named_max),
        "parts": parts,
    })
}

fn desired_state(desired: &DesiredState) -> Value {
    match &desired.result {
        Ok(()) => json!({
            "version": desired.version,
            "state": "in-force",
            "notKept": desired.not_kept.as_deref().map(text),
        }),
        Err(reason) => {
            json!({ "version": desired.version, "state": "refused", "reason": long_text(reason) })
        }
    }
}

fn machines(status: &Status, named_max: usize) -> Value {
    list(status.machines.iter(), named_max, |machine| {
        json!({
            "name": text(machine.latch.machine_id.as_str()),
            "state": machine.state,
            "tripId": machine.latch.trip.as_ref().map(|trip| text(&trip.trip_id)),
        })
    })
}

fn list<T>(
    all: impl ExactSizeIterator<Item = T>,
    named_max: usize,
    show: impl Fn(T) -> Value,
) -> Value {
    let count = all.len();
    let named: Vec<Value> = all.take(named_max).map(show).collect();
    json!({ "count": count, "named": named })
}

/// A null in a report deletes a member: in a twin there are none.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn text(text: &str) -> String {
    cut(text, TEXT_CHARACTERS_MAX)
}

/// For the one text that a person needs whole.
fn long_text(text: &str) -> String {
    cut(text, TEXT_CHARACTERS_MAX * 4)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::models::ShownModel;

    #[test]
    fn a_report_holds_no_null_and_no_name_as_key() {
        let board = Board::default();
        board.show_model("presse nr. 1", ShownModel { state: "in force", ..Default::default() });
        let result = Err("x".repeat(5_000));
        let state = DesiredState { version: 3, result, not_kept: None };
        let report = Value::Object(reported(&board, Some(&state), Some("no twin")));
        let text = report.to_string();
        assert!(!text.contains("null"), "{text}");
        assert_eq!(report["models"]["named"][0]["name"], "presse nr. 1");
        assert_eq!(report["settings"]["desired"]["version"], 3);
        let reason = report["settings"]["desired"]["reason"].as_str().unwrap_or_default();
        assert_eq!(reason.chars().count(), TEXT_CHARACTERS_MAX * 4 + 1);
        let mut keys = BTreeSet::new();
        keys_of(&report, &mut keys);
        assert!(
            keys.iter().all(|key| key.bytes().all(|byte| byte.is_ascii_alphanumeric())),
            "{keys:?}"
        );
    }

    fn keys_of(value: &Value, keys: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    keys.insert(key.clone());
                    keys_of(value, keys);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| keys_of(item, keys)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn a_report_stays_below_the_limit_of_a_hub() {
        let board = Board::default();
        for index in 0..1_000 {
            let long = Some("m".repeat(1_000));
            let model = ShownModel {
                in_force: long.clone(),
                state: "in force",
                candidate: long.clone(),
                refusal: long.clone(),
                report: long,
            };
            board.show_model(&format!("model-{index}"), model);
        }
        let report = reported(&board, None, None);
        assert_eq!(report["models"]["count"], 1_000);
        let bytes = Value::Object(report).to_string().len();
        assert!(bytes < 32 << 10, "{bytes}");
    }
}
