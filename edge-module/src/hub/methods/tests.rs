//! What callers get, and whether that is what `METHODS.md` says.

use std::collections::BTreeMap;

use edge_core::upstream::Upstream;
use shared_proto::model::Sequence;

use super::*;
use crate::store::{Lane, Loss, LossCause};

fn methods(may_reset: bool) -> (Methods, mpsc::Receiver<RemoteOrder>) {
    let (orders, receiver) = mpsc::channel(1);
    let (models, _) = mpsc::channel(1);
    (Methods::new(Board::default(), (orders, models), may_reset), receiver)
}

#[tokio::test]
async fn a_call_that_comes_twice_is_carried_out_once() {
    let (mut methods, mut orders) = methods(true);
    let payload = br#"{"machineId":"press-1","operator":"Kim","reason":"it smokes"}"#;
    for _ in 0..2 {
        assert_eq!(methods.call("stopMachine", "r1", payload), None);
    }
    let order = orders.try_recv().expect("one order");
    assert_eq!(order.wish, RemoteWish::Stop { reason: "it smokes".to_owned() });
    assert!(orders.try_recv().is_err(), "and one only");
    let trip_id = Some("press-1-1".to_owned());
    order.answer.send(RemoteAnswer::Done { trip_id }).expect("somebody waits");
    let expected = Answer::ok(json!({ "tripId": "press-1-1" }));
    assert_eq!(methods.next().await, Some(("r1".to_owned(), expected.clone())));
    assert_eq!(methods.call("stopMachine", "r1", payload), Some(expected));
    assert_eq!(methods.next().await, None);
}

#[test]
fn what_cannot_be_carried_out_is_refused_with_what_to_do() {
    let check = |name: &str, payload: &str, status: i32, words: &str| {
        let (mut methods, _orders) = methods(false);
        let answer = methods.call(name, "r", payload.as_bytes()).expect("at once");
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.body["message"].to_string().contains(words), "{answer:?}");
    };
    check("launch", "", 404, "there are getStatus");
    check("stopMachine", "", 400, "reason");
    check("stopMachine", r#"{"machineId":"m","operator":"","reason":"r"}"#, 400, "operator");
    check("stopMachine", r#"{"machineId":"m","operator":"o","reason":" "}"#, 400, "reason");
    check("stopMachine", r#"{"machineId":"","operator":"o","reason":"r"}"#, 400, "machine_id");
    let unknown = r#"{"machineId":"m","operator":"o","reason":"r","force":true}"#;
    check("stopMachine", unknown, 400, "force");
    check("resetMachine", r#"{"machineId":"m","operator":"o"}"#, 403, "remote-reset");
}

#[test]
fn a_stop_path_that_does_not_answer_fills_no_memory() {
    let (mut methods, _orders) = methods(true);
    let payload = br#"{"machineId":"press-1","operator":"Kim"}"#;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        assert_eq!(methods.call("resetMachine", "r0", payload), None);
        for index in 1..1_000 {
            let answer = methods.call("resetMachine", &format!("r{index}"), payload);
            assert_eq!(answer.map(|answer| answer.status), Some(503));
        }
    });
    assert!(methods.recent.len() <= RECENT_MAX);
}

const DOCUMENT: &str = include_str!("../../../METHODS.md");

/// Schemas of payload and answer of each method in the document.
fn schemas() -> BTreeMap<String, (Value, Value)> {
    let sections = DOCUMENT.split("\n## ").skip(1);
    let of_section = |section: &str| {
        let name = section.lines().next().expect("a heading").to_owned();
        (name, (block(section, "payload"), block(section, "answer")))
    };
    sections.map(of_section).collect()
}

fn block(text: &str, kind: &str) -> Value {
    let (_, rest) = text.split_once(&format!("```json {kind}\n")).expect(kind);
    let (block, _) = rest.split_once("```").expect("its end");
    serde_json::from_str(block).expect("JSON")
}

/// What does not fit; only the words of the document are known.
fn faults(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let known = ["type", "enum", "format", "minimum", "minLength", "maxLength", "items"];
    let of_objects = ["properties", "required", "additionalProperties"];
    let words = schema.as_object().map(|words| words.keys().collect::<Vec<_>>());
    for word in words.unwrap_or_default() {
        assert!([&known[..], &of_objects].concat().contains(&word.as_str()), "{word}");
    }
    let types = &schema["type"];
    let types = types.as_array().cloned().unwrap_or_else(|| vec![types.clone()]);
    let fits = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        other => panic!("type {other:?}"),
    };
    if !types.iter().any(fits) {
        return vec![format!("{path}: {value} is not {types:?}")];
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        faults.push(format!("{path}: {value} is no word of it"));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value.get(required.as_str().unwrap_or_default()).is_none() {
            faults.push(format!("{path}: no {required}"));
        }
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let more = &schema["additionalProperties"];
        let of_more = Some(more).filter(|more| more.is_object());
        if let Some(schema) = schema["properties"].get(name).or(of_more) {
            faults.extend(self::faults(schema, member, &path));
        } else if *more == false {
            faults.push(format!("{path}: not in the schema"));
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        faults.extend(self::faults(&schema["items"], item, &format!("{path}[{index}]")));
    }
    faults
}

fn check_answer(name: &str, answer: &Value) {
    let (_, schema) = &schemas()[name];
    assert_eq!(faults(schema, answer, name), Vec::<String>::new());
    // The other way round: the document promises nothing that never comes.
    for property in schema["properties"].as_object().expect("properties").keys() {
        assert!(answer.get(property).is_some(), "{name}: {property} does not come");
    }
}

#[test]
fn the_document_names_every_method_and_no_other() {
    let (mut methods, _orders) = methods(false);
    let answer = methods.call("launch", "r", b"").expect("at once").body;
    let text = answer["message"].as_str().expect("text").to_owned();
    let (_, named) = text.split_once("there are ").expect("a list");
    let named = named.replace(" and ", ", ");
    let named: Vec<&str> = named.split(", ").collect();
    assert_eq!(schemas().keys().map(String::as_str).collect::<Vec<_>>(), named);
    for (index, name) in named.iter().enumerate() {
        let answer = methods.call(name, &format!("n{index}"), b"x");
        assert!(answer.is_none_or(|answer| answer.status != 404), "{name}");
    }
    assert_eq!(faults(&block(DOCUMENT, "refusal"), &answer, "refusal"), Vec::<String>::new());
}

#[tokio::test]
async fn payloads_are_taken_as_the_document_says() {
    let mut number = 0;
    let mut status = |name: &str, payload: &Value| {
        number += 1;
        let (orders, _in_orders) = mpsc::channel(1);
        let (models, _in_models) = mpsc::channel(1);
        let mut methods = Methods::new(Board::default(), (orders, models), true);
        let answer = methods.call(name, &format!("r{number}"), payload.to_string().as_bytes());
        answer.map(|answer| answer.status)
    };
    for (name, (schema, _)) in schemas() {
        let Some(properties) = schema["properties"].as_object() else {
            assert_eq!(schema, true, "{name}");
            assert_eq!(status(&name, &json!("anything")), Some(200), "{name}");
            continue;
        };
        let whole: serde_json::Map<String, Value> = properties
            .iter()
            .map(|(key, schema)| {
                let length = schema["maxLength"].as_u64().unwrap_or(9) as usize;
                (key.clone(), "a".repeat(length).into())
            })
            .collect();
        let payload = Value::Object(whole.clone());
        assert_eq!(faults(&schema, &payload, &name), Vec::<String>::new());
        assert_eq!(status(&name, &payload), None, "{name}: it is being carried out");
        for key in properties.keys() {
            let mut less = whole.clone();
            less.remove(key);
            let less = Value::Object(less);
            assert_eq!(status(&name, &less), Some(400), "{name} without {key}");
            let mut other = whole.clone();
            other.insert(key.clone(), 7.into());
            let other = Value::Object(other);
            assert_eq!(status(&name, &other), Some(400), "{name}: {key} is 7");
        }
        let mut more = whole.clone();
        more.insert("force".to_owned(), true.into());
        assert_eq!(status(&name, &Value::Object(more)), Some(400), "{name} with more");
    }
}

#[test]
fn answers_are_as_the_document_says() {
    let (mut methods, _orders) = methods(true);
    methods.board.show_backlog(Upstream::Hub, &[(Lane::Readings, 7), (Lane::Events, 0)], 1.5);
    methods.board.show_disk(4_096, 3);
    for records in [Some(5), None] {
        methods.board.show_loss(&Loss {
            lane: Lane::Readings,
            cause: LossCause::EvictedCap,
            first: Sequence(10),
            last: Sequence(14),
            records,
        });
    }
    for name in ["ping", "getStatus", "getTrips", "journalStatus"] {
        let answer = methods.call(name, name, b"").expect("at once");
        assert_eq!(answer.status, 200);
        check_answer(name, &answer.body);
    }
    let stopped = answer_of(RemoteAnswer::Done { trip_id: Some("press-1-1".to_owned()) });
    check_answer("stopMachine", &stopped.body);
    let reset = answer_of(RemoteAnswer::Done { trip_id: None });
    assert_eq!(faults(&schemas()["resetMachine"].1, &reset.body, "reset"), Vec::<String>::new());
    let in_force = Some("a@1".to_owned());
    let shown = ShownModel { state: "shadow", in_force, ..Default::default() };
    check_answer("setModel", &model_answer("shaken", &shown, Some("disk full".to_owned())));
    check_answer("setModel", &model_answer("shaken", &ShownModel::default(), None));
}

#[tokio::test]
async fn a_model_is_set_and_the_answer_says_what_came_of_it() {
    let (orders, _in_orders) = mpsc::channel(1);
    let (models, mut wishes) = mpsc::channel(1);
    let board = Board::default();
    let mut methods = Methods::new(board.clone(), (orders, models), true);
    let payload = br#"{"name":"shaken","url":"https://m.example/a.tar","sha256":"00"}"#;
    assert_eq!(methods.call("setModel", "r1", payload), None);
    assert_eq!(methods.call("setModel", "r1", payload), None, "delivered twice, wished once");
    let wish = wishes.try_recv().expect("a wish");
    assert_eq!((wish.name.as_str(), wish.bundle.sha256.as_str()), ("shaken", "00"));
    assert!(wishes.try_recv().is_err());
    let in_force = Some("a@2".to_owned());
    board.show_model("shaken", ShownModel { state: "in-force", in_force, ..Default::default() });
    wish.answer.send(Ok(None)).expect("somebody waits");
    let (rid, answer) = methods.next().await.expect("an answer");
    assert_eq!((rid.as_str(), answer.status), ("r1", 200));
    let found = (&answer.body["state"], &answer.body["inForce"]);
    assert_eq!(found, (&json!("in-force"), &json!("a@2")));
    assert_eq!(methods.call("setModel", "r1", payload), Some(answer));

    assert_eq!(methods.call("setModel", "r2", payload), None);
    let wish = wishes.try_recv().expect("a wish");
    wish.answer.send(Err("sha256 is none".to_owned())).expect("somebody waits");
    let (_, answer) = methods.next().await.expect("an answer");
    assert_eq!((answer.status, &answer.body["message"]), (409, &json!("sha256 is none")));
}

#[test]
fn a_refusal_is_short_however_long_the_payload_is() {
    let (orders, _in_orders) = mpsc::channel(1);
    let (models, _wishes) = mpsc::channel(1);
    let mut methods = Methods::new(Board::default(), (orders, models), true);
    let payload = json!({ "x".repeat(200_000): 1 }).to_string();
    for (rid, name) in [("r1", "setModel"), ("r2", "stopMachine"), ("r3", "resetMachine")] {
        let answer = methods.call(name, rid, payload.as_bytes()).expect("at once");
        assert_eq!(answer.status, 400, "{name}");
        let bytes = answer.body.to_string().len();
        assert!(bytes <= MESSAGE_CHARACTERS_MAX + 100, "{name}: {bytes} bytes");
    }
}
