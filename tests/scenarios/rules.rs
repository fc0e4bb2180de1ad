//! Sensor faults and shelving as an operator meets them: over MQTT, on the interlock's topic, as machine events.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
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

/// What a producer sends from its memory stopped the machine, or cleared the cause that was present; a limit on a feature that the
/// sensor does not send was judged by nobody, in silence; a change to dry run was shown with the next event.
#[test]
fn what_is_not_judged_is_counted_and_what_is_in_force_is_shown_at_once() -> anyhow::Result<()> {
    let mut plant = Plant::new("not-judged")?;
    let limit = |name: &str, sensor: &str, quantity: &str| {
        format!(
            "[[machines.limits]]\nname = \"{name}\"\nsensor = \"press-1/{sensor}\"\nquantity = \"{quantity}\"\nabove = 90.0\n"
        )
    };
    let limits = limit("hot", "oil", "value") + &limit("shakes", "frame", "rms");
    plant.edge_settings.machines =
        format!("[[machines]]\nid = \"press-1\"\ndry-run = false\n{limits}");
    let port = plant.mosquitto.port();
    let fake = FakeMachine::start(port, "press-1", Obedience::SpinsDown(Duration::ZERO))?;
    let edge = plant.start_edge_module()?;
    let mut publisher = Publisher::connect(port, "sensors");
    let count = |reason: &str| -> anyhow::Result<f64> {
        Ok(metric(&edge.metrics()?, "input_not_judged_total", reason).unwrap_or_default())
    };
    let old = |value: f64| {
        let reading = reading_json("press-1", "press-1/oil", "temperature", now(), value);
        reading.replacen('{', "{\"historical\":true,", 1)
    };
    let mut send = |payload: String| publisher.publish("plant/press-1/readings", payload);
    send(old(95.0))?;
    send(reading_json("press-1", "press-1/frame", "vibration", now(), 95.0))?;
    eventually("both are counted", DEADLINE, || {
        let counts = (count("historical")?, count("quantity")?);
        ensure!(counts == (1.0, 1.0), "{counts:?}");
        Ok(())
    })?;
    assert!(fake.is_running() && fake.commands().is_empty());

    send(reading_json("press-1", "press-1/oil", "temperature", now(), 95.0))?;
    fake.wait_for_interlock("stopped", DEADLINE)?;
    send(old(20.0))?;
    eventually("it is counted", DEADLINE, || {
        ensure!(count("historical")? == 2.0, "not yet");
        Ok(())
    })?;
    let wait_for = |what: &str, is_there: &dyn Fn(&Value) -> bool| {
        eventually(what, DEADLINE, || {
            let states = fake.interlock_states();
            ensure!(states.last().is_some_and(is_there), "{:?}", states.last());
            Ok(())
        })
    };
    fake.ask_for_reset(" ")?;
    wait_for("what was asked wrongly is told", &|state| {
        state["refused"]["reason"].as_str().is_some_and(|reason| reason.contains("operator"))
    })?;
    let reset = |what: &str, is_there: &dyn Fn(&Value) -> bool| {
        eventually(what, DEADLINE, || {
            fake.ask_for_reset("Kim")?;
            let states = fake.interlock_states();
            ensure!(states.last().is_some_and(is_there), "{:?}", states.last());
            Ok(())
        })
    };
    reset("an old value does not clear the cause", &|state| {
        let reason = state["refused"]["reason"].as_str().unwrap_or_default();
        state["state"] == "stopped" && reason.contains("latest value 95")
    })?;
    send(reading_json("press-1", "press-1/oil", "temperature", now(), 20.0))?;
    reset("reset", &|state| state["state"] == "armed" && state["refused"].is_null())?;

    let version = fake.interlock_states().last().map(|state| state["rule_version"].clone());
    let file = plant.dir.join("edge-module/edge-module.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("dry-run = false", "dry-run = true"))?;
    wait_for("the dry run is shown", &|state| {
        state["state"] == "dry-run" && Some(&state["rule_version"]) != version.as_ref()
    })
}
