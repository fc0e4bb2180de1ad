use shared_proto::model::{EventTime, MachineId, SensorId};

use super::*;

/// An alert that has fired, for the tests of whoever sends one.
pub(crate) fn event(alert_id: &str) -> AlertEvent {
    AlertEvent {
        alert_id: alert_id.to_owned(),
        revision: 1,
        state: AlertState::Fired,
        rule: "temperature-above-100".to_owned(),
        severity: 2,
        machine_id: Some(MachineId::new("press-1").expect("a name")),
        sensor_id: Some(SensorId::new("press-1/oil").expect("a name")),
        window_start: EventTime::parse("2026-03-01T08:14:00Z").expect("a time"),
        window_end: EventTime::parse("2026-03-01T08:15:00Z").expect("a time"),
        findings: 1,
        count: 6,
        threshold: "count > 5".to_owned(),
        observed: 6.0,
        detail: String::new(),
        trip_id: None,
        fired_at: at("2026-03-01T08:15:30Z"),
        changed_at: at("2026-03-01T08:15:30Z"),
        resolved_at: None,
        historical: false,
        suppressed_by: None,
    }
}

/// The end of an alert.
pub(crate) fn resolved(alert_id: &str) -> AlertEvent {
    AlertEvent {
        revision: 2,
        state: AlertState::Resolved,
        findings: 3,
        window_end: EventTime::parse("2026-03-01T08:17:00Z").expect("a time"),
        changed_at: at("2026-03-01T08:25:00Z"),
        resolved_at: Some(at("2026-03-01T08:25:00Z")),
        ..event(alert_id)
    }
}

fn trip() -> AlertEvent {
    AlertEvent {
        rule: "trip".to_owned(),
        severity: 0,
        sensor_id: None,
        count: 1,
        threshold: String::new(),
        observed: 0.0,
        detail: "stopped by vibration-model: score 0.97 (trip t-1)".to_owned(),
        trip_id: Some("t-1".to_owned()),
        ..event("b0")
    }
}

pub(crate) fn at(text: &str) -> ProcessingTime {
    ProcessingTime::from_micros(EventTime::parse(text).expect("a time").micros())
}

fn body(delivery: &Delivery) -> Value {
    serde_json::from_str(&delivery.body).expect("JSON")
}

#[test]
fn an_alert_that_fired_is_the_event_of_the_contract() {
    let made = delivery(&event("a1"), "/cloud-aggregator");
    assert_eq!((&*made.id, &*made.key), ("a1-1", "press-1"));
    let expected = json!({
        "specversion": "1.0", "id": "a1-1", "source": "/cloud-aggregator",
        "type": "predictive-maintenance.alert.fired.v1", "subject": "press-1",
        "time": "2026-03-01T08:15:30.000000Z", "datacontenttype": "application/json",
        "data": { "schemaId": "azureMonitorCommonAlertSchema", "data": {
            "essentials": {
                "alertId": "a1", "alertRule": "temperature-above-100", "severity": "Sev2",
                "signalType": "Metric", "monitorCondition": "Fired",
                "monitoringService": "cloud-aggregator", "alertTargetIDs": ["press-1"],
                "configurationItems": ["press-1"], "originAlertId": "a1",
                "firedDateTime": "2026-03-01T08:15:30.000000Z",
                "description": "temperature-above-100 fired on press-1 (sensor press-1/oil): count > 5 (it is 6), 6 readings \
                    between 2026-03-01T08:14:00.000000Z and 2026-03-01T08:15:00.000000Z",
                "essentialsVersion": "1.0", "alertContextVersion": "1.0",
            },
            "alertContext": {
                "rule": "temperature-above-100", "revision": 1, "machineId": "press-1",
                "sensorId": "press-1/oil", "windowStart": "2026-03-01T08:14:00.000000Z",
                "windowEnd": "2026-03-01T08:15:00.000000Z", "findings": 1, "count": 6,
                "threshold": "count > 5", "observed": 6.0, "historical": false, "tripId": null,
                "detail": "",
            },
        } },
    });
    assert_eq!(body(&made), expected);
    assert!(made.body.starts_with(r#"{"specversion":"1.0","id":"a1-1","source":"#));
    assert_eq!(made.body, delivery(&event("a1"), "/cloud-aggregator").body, "the same bytes");
}

#[test]
fn an_end_says_when_and_a_machine_event_says_why() {
    let end = body(&delivery(&resolved("a1"), "s"));
    assert_eq!(end["id"], "a1-2");
    assert_eq!(end["type"], "predictive-maintenance.alert.resolved.v1");
    assert_eq!(end["time"], "2026-03-01T08:25:00.000000Z");
    let essentials = &end["data"]["data"]["essentials"];
    assert_eq!(essentials["monitorCondition"], "Resolved");
    assert_eq!(essentials["resolvedDateTime"], "2026-03-01T08:25:00.000000Z");
    let text = essentials["description"].as_str().expect("a text");
    assert!(text.contains("is over on press-1") && text.contains("3 windows"), "{text}");
    let trip = body(&delivery(&trip(), "s"));
    let text = trip["data"]["data"]["essentials"]["description"].as_str().expect("a text");
    let expected = "trip fired on press-1: stopped by vibration-model: score 0.97 (trip t-1), at ";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(trip["data"]["data"]["alertContext"]["tripId"], "t-1");
}

#[test]
fn without_a_machine_the_sensor_is_the_subject_and_no_number_is_null() {
    let event = AlertEvent { machine_id: None, observed: f64::NAN, severity: 9, ..event("a1") };
    let made = delivery(&event, "s");
    assert_eq!(&*made.key, "press-1/oil");
    let body = body(&made);
    assert_eq!(body["data"]["data"]["essentials"]["alertTargetIDs"], json!(["press-1/oil"]));
    assert_eq!(body["data"]["data"]["essentials"]["severity"], "Sev4");
    assert_eq!(body["data"]["data"]["alertContext"]["observed"], Value::Null);
    let text = body["data"]["data"]["essentials"]["description"].as_str().expect("a text");
    assert!(!text.contains("(sensor"), "{text}");
}

#[test]
fn a_text_without_end_is_cut_between_two_characters() {
    let event = AlertEvent { detail: format!("x{}", "ä".repeat(1_000_000)), ..trip() };
    let made = delivery(&event, "s");
    let detail = body(&made)["data"]["data"]["alertContext"]["detail"].as_str().map(str::len);
    assert_eq!(detail, Some(DETAIL_BYTES_MAX - 1));
    let held: Vec<Delivery> = (0..1000).map(|_| made.clone()).collect();
    let digest = digest("x", (at("2026-03-01T08:00:00Z"), event.changed_at), &held, "s");
    assert!(digest.body.len() < 500_000, "{}", digest.body.len());
}

#[test]
fn a_digest_lists_the_most_severe_first_and_counts_the_others() {
    let mut held: Vec<Delivery> =
        (0..60).map(|index| delivery(&event(&format!("a{index}")), "s")).collect();
    held.push(delivery(&trip(), "s"));
    held.push(delivery(&resolved("c0"), "s"));
    let (from, to) = (at("2026-03-01T08:15:00Z"), at("2026-03-01T08:20:00Z"));
    let made = digest("mail", (from, to), &held, "/here");
    assert_eq!(*made.id, format!("digest-mail-{}", from.micros()));
    assert_eq!((&*made.key, made.changed_at), ("digest", at("2026-03-01T08:15:30Z")));
    let event: DigestCloudEvent = serde_json::from_str(&made.body).expect("a digest");
    assert_eq!(event.subject, "digest");
    assert_eq!(event.data.more, 12);
    let ids: Vec<&str> =
        event.data.alerts.iter().map(|told| told.essentials.alert_id.as_str()).collect();
    assert_eq!(ids.len(), DIGEST_ALERTS_MAX);
    assert_eq!(ids[..3], ["b0", "a0", "a1"]);
    assert_eq!(body(&made)["type"], "predictive-maintenance.alert.digest.v1");
    assert_eq!(body(&made)["data"]["from"], "2026-03-01T08:15:00.000000Z");
}

#[test]
fn what_was_made_is_read_back_and_another_type_is_refused() {
    let made = delivery(&resolved("a1"), "s");
    let event: AlertCloudEvent = serde_json::from_str(&made.body).expect("an event");
    assert_eq!(serde_json::to_string(&event).expect("JSON"), *made.body);
    let other = made.body.replacen("\"subject\"", "\"subjects\"", 1);
    assert!(serde_json::from_str::<AlertCloudEvent>(&other).is_err());
    let other = made.body.replacen("alert.resolved.v1", "alert.other.v1", 1);
    assert!(serde_json::from_str::<AlertCloudEvent>(&other).is_err());
}

/// Every key of a value stands in the schema, every key that the schema requires in the value, and words are among those allowed.
fn check(schema: &Value, value: &Value, path: &str) {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        assert!(words.contains(value), "{path}: {value} of {words:?}");
    }
    if let Some(word) = schema.get("const") {
        assert_eq!(word, value, "{path}");
    }
    if let Value::Object(fields) = value {
        for required in schema["required"].as_array().into_iter().flatten() {
            let name = required.as_str().expect("a name");
            assert!(fields.contains_key(name), "{path}.{name} is missing");
        }
        for (name, value) in fields {
            let of_field = schema["properties"].get(name);
            check(of_field.expect("a known field"), value, &format!("{path}.{name}"));
        }
    }
    for element in value.as_array().into_iter().flatten() {
        check(&schema["items"], element, &format!("{path}[]"));
    }
}

#[test]
fn schemas_fit_what_is_sent_and_tell_the_kinds_apart() {
    let (fired, end) = (delivery(&trip(), "s"), delivery(&resolved("a1"), "s"));
    let (from, to) = (at("2026-03-01T08:15:00Z"), at("2026-03-01T08:20:00Z"));
    let both = digest("mail", (from, to), &[fired.clone(), end.clone()], "s");
    for (kind, delivery) in EventKind::ALL.into_iter().zip([&fired, &end, &both]) {
        let schema = schema(kind);
        check(&schema, &body(delivery), kind.as_str());
        let text = schema.to_string();
        assert!(!text.contains("$ref"), "{text}");
        assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
        assert!(!text.contains("additionalProperties"), "one more field would break triggers");
    }
    let essentials = "/properties/data/properties/data/properties/essentials";
    let of = |kind, pointer: &str| schema(kind).pointer(pointer).cloned();
    let kind = of(EventKind::Resolved, "/properties/type/enum");
    assert_eq!(kind, Some(json!(["predictive-maintenance.alert.resolved.v1"])));
    let condition = of(EventKind::Fired, &format!("{essentials}/properties/monitorCondition/enum"));
    assert_eq!(condition, Some(json!(["Fired"])));
    let moment = format!("{essentials}/properties/resolvedDateTime");
    assert_eq!(of(EventKind::Fired, &moment), None);
    assert_eq!(of(EventKind::Resolved, &format!("{moment}/type")), Some(json!("string")));
    let required = of(EventKind::Resolved, &format!("{essentials}/required"));
    assert!(required.is_some_and(|names| names.to_string().contains("resolvedDateTime")));
}
