//! Sensor faults and shelving as an operator meets them: over MQTT, on the interlock's topic, as machine events.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::eventually::eventually;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::publisher::{Publisher, reading_json};

use serde_json::Value;

use crate::plant::{DEADLINE, Plant, kafka, now};

#[test]
fn a_broken_thermometer_stops_nothing_and_a_shelved_limit_stops_when_it_is_in_force_again()
-> anyhow::Result<()> {
    let mut plant = Plant::new("rules")?;
    plant.edge_settings.machines =
        "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"oil-hot\"\n\
         sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\nhysteresis = 10.0\n\
         [[machines.sensors]]\nid = \"press-1/oil\"\nrange = { min = -50.0, max = 300.0 }\n\
         recovers-after = \"0s\"\n"
            .to_owned();
    let shelving = ("EDGE__PROTECTION__SHELVING_MAX".to_owned(), "1h".to_owned());
    plant.edge_settings.environment.push(shelving);
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, "press-1", Obedience::SpinsDown(Duration::ZERO))?;
    let mut edge = plant.start_edge_module()?;
    let mut publisher = Publisher::connect(port, "sensors");
    let wait_for = |what: &str, is_there: &dyn Fn(&Value) -> bool| {
        eventually(what, DEADLINE, || {
            let states = machine.interlock_states();
            ensure!(states.last().is_some_and(is_there), "{:?}", states.last());
            Ok(())
        })
    };
    let mut send = |topic: &str, payload: String| {
        publisher.publish(&format!("plant/press-1/{topic}"), payload)
    };
    let oil = |value: f64| reading_json("press-1", "press-1/oil", "temperature", now(), value);
    send("readings", oil(1254.0))?;
    wait_for("the fault is shown", &|state| {
        state["sensor_faults"][0]["fault"] == "out-of-range" && state["state"] == "armed"
    })?;
    send("readings", oil(90.0).replace("90.0", "NaN"))?;
    wait_for("NaN is shown", &|state| state["sensor_faults"].as_array().map(Vec::len) == Some(2))?;
    let shelve = |time: &str| {
        format!(r#"{{"operator":"Kim","rule":"oil-hot","for":"{time}","reason":"oil is changed"}}"#)
    };
    send("shelve", shelve("30m"))?;
    wait_for("the shelving is shown", &|state| state["shelved"][0]["rule"] == "oil-hot")?;
    send("readings", oil(121.0))?;
    wait_for("the sensor is well again", &|state| state["sensor_faults"].is_null())?;
    assert!(machine.is_running() && machine.commands().is_empty());
    wait_for_events(&plant, &["sensor-recovered", "trip-suppressed"])?;

    // A restart keeps what is left of the shelving.
    edge.process().kill()?;
    edge.restart()?;
    wait_for("the shelving is shown again", &|state| state["shelved"][0]["operator"] == "Kim")?;
    eventually("the stop path listens and the machine is stopped", DEADLINE, || {
        send("readings", oil(121.0))?;
        send("shelve", shelve("0s"))?;
        ensure!(!machine.is_running(), "it runs");
        Ok(())
    })?;
    machine.wait_for_interlock("stopped", DEADLINE)?;
    // Readings and resets come over different sessions: which is heard first is open.
    send("readings", oil(111.0))?;
    let refused = eventually("a reset is refused for the last value", DEADLINE, || {
        machine.ask_for_reset("Kim")?;
        let events = kafka()?.read_json(&plant.topic("machine-events"))?;
        let mut refused =
            events.into_iter().filter(|event| event["event_type"] == "reset-refused").peekable();
        ensure!(refused.peek().is_some(), "no reset was refused");
        refused.find(|event| event["value"] == 111.0).context("none for it")
    })
    .with_context(|| edge.describe())?;
    assert_eq!((&refused["cause"], &refused["operator"]), (&"limit".into(), &"Kim".into()));
    wait_for("who asked is told why", &|state| {
        let told = &state["refused"];
        told["request"] == "reset"
            && told["operator"] == "Kim"
            && told["reason"].as_str().is_some_and(|reason| reason.contains("latest value 111"))
    })?;
    check_events(&plant, &refused)
}

/// Who did what and why, in the words of the machine events.
fn check_events(plant: &Plant, refused: &Value) -> anyhow::Result<()> {
    let expected = ["sensor-fault", "sensor-recovered", "shelved", "trip-suppressed", "unshelved"];
    wait_for_events(plant, &expected)?;
    let events = kafka()?.read_json(&plant.topic("machine-events"))?;
    let find = |event_type: &str| events.iter().find(|event| event["event_type"] == event_type);
    let trip = find("trip").context("no trip")?;
    let shelved = find("shelved").context("nothing shelved")?;
    assert_eq!((&shelved["operator"], &shelved["rule"]), (&"Kim".into(), &"oil-hot".into()));
    assert_eq!(trip["rule_version"].as_str().unwrap_or_default().len(), 12);
    assert_eq!(shelved["rule_version"], trip["rule_version"]);
    assert_eq!(refused["trip_id"], trip["trip_id"]);
    Ok(())
}

fn wait_for_events(plant: &Plant, expected: &[&str]) -> anyhow::Result<()> {
    eventually("the events are on Kafka", DEADLINE, || {
        let events = kafka()?.read_json(&plant.topic("machine-events"))?;
        for event_type in expected {
            let is_there = events.iter().any(|event| event["event_type"] == *event_type);
            ensure!(is_there, "no {event_type} among {}", events.len());
        }
        Ok(())
    })
}
