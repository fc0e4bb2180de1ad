//! Settings changed while the machines are watched.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::modbus_machine::{ModbusMachine, Mode};
use e2e_tests::mosquitto::{Mosquitto, Persistence};
use e2e_tests::publisher::{Publisher, reading_json};
use serde_json::Value;

use crate::plant::{DEADLINE, Plant, kafka, now};
use crate::stop_path::modbus_path;

fn machine(id: &str, above: f64) -> String {
    format!(
        "[[machines]]\nid = \"{id}\"\nlimits = [{{ name = \"hot\", sensor = \"{id}/oil\", quantity = \"value\", above = {above:?} }}]\n"
    )
}

/// The module with its file, which a person edits.
struct Watched {
    plant: Plant,
    edge: EdgeModule,
    file: PathBuf,
    text: String,
    publisher: Publisher,
}

impl Watched {
    fn start(name: &str, machines: &str) -> anyhow::Result<Self> {
        let mut plant = Plant::new(name)?;
        plant.edge_settings.machines = machines.to_owned();
        let edge = plant.start_edge_module()?;
        let file = plant.dir.join("edge-module/edge-module.toml");
        let text = std::fs::read_to_string(&file)?;
        let publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
        Ok(Self { plant, edge, file, text, publisher })
    }

    fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.edge.get("/status")?.1)?)
    }

    fn write(&mut self, from: &str, to: &str) -> anyhow::Result<()> {
        ensure!(self.text.contains(from), "{from} is not in the file");
        std::fs::write(&self.file, self.text.replace(from, to))?;
        Ok(())
    }

    /// Edits the file for good and waits until it is in force.
    fn change(&mut self, from: &str, to: &str) -> anyhow::Result<()> {
        let before = self.status()?["settings"]["version"].clone();
        self.write(from, to)?;
        self.text = self.text.replace(from, to);
        eventually("another version is in force", DEADLINE, || {
            let settings = &self.status()?["settings"];
            ensure!(settings["version"] != before, "{settings}");
            Ok(())
        })
    }

    /// Edits the file, asks for it to be read, waits for the refusal to name `reason`, and takes the edit back.
    fn refused(&mut self, from: &str, to: &str, reason: &str) -> anyhow::Result<()> {
        let before = self.status()?["settings"]["version"].clone();
        self.write(from, to)?;
        self.edge.process().signal("HUP")?;
        eventually(&format!("refused for {reason}"), DEADLINE, || {
            let settings = &self.status()?["settings"];
            let told = settings["last_refusal"]["reason"].as_str().unwrap_or_default();
            ensure!(told.contains(reason), "{settings}");
            ensure!(settings["version"] == before, "{settings}");
            Ok(())
        })?;
        std::fs::write(&self.file, &self.text)?;
        Ok(())
    }

    fn send(&mut self, machine: &str, value: f64) -> anyhow::Result<()> {
        let sensor = format!("{machine}/oil");
        let reading = reading_json(machine, &sensor, "temperature", now(), value);
        self.publisher.publish(&format!("plant/{machine}/readings"), reading)?;
        self.publisher.wait_acknowledged(DEADLINE)
    }

    fn wait_for_event(&self, event_type: &str, detail: &str) -> anyhow::Result<Value> {
        eventually(&format!("{event_type} with {detail}"), DEADLINE, || {
            let events = kafka()?.read_json(&self.plant.topic("machine-events"))?;
            let is_it = |event: &&Value| {
                event["event_type"] == event_type && event.to_string().contains(detail)
            };
            events.iter().find(is_it).cloned().context("not among the events")
        })
    }
}

#[test]
fn limits_change_live_and_a_broken_file_leaves_the_old_ones_in_force() -> anyhow::Result<()> {
    let machines = [machine("press-1", 120.0), machine("press-2", 120.0)].concat();
    let mut watched = Watched::start("live-settings", &machines)?;
    let port = watched.plant.mosquitto.port();
    let obedience = Obedience::SpinsDown(Duration::ZERO);
    let [one, two, three] =
        ["press-1", "press-2", "press-3"].map(|id| FakeMachine::start(port, id, obedience));
    let (one, two, three) = (one?, two?, three?);

    watched.send("press-1", 110.0)?;
    watched.change(&machine("press-1", 120.0), &machine("press-1", 100.0))?;
    watched.wait_for_event("settings-changed", "machines[0].limits[0].above")?;
    // The latest value, below the limit of its time, is over the new one.
    one.wait_for_interlock("stopped", DEADLINE)?;
    assert!(two.is_running());

    // Wrong, whole or in part: nothing of it holds, though the first machine's limit in it would be fine.
    let broken = format!("{}oops = \n", machine("press-2", 90.0));
    watched.refused(&machine("press-2", 120.0), &broken, "TOML")?;
    let crossed =
        machine("press-2", 90.0).replace("quantity = \"value\"", "quantity = \"loudness\"");
    watched.refused(&machine("press-2", 120.0), &crossed, "loudness")?;
    watched.refused("[kafka]\n", "[kafka]\nlinger = \"6ms\"\n", "kafka.linger")?;
    watched.refused(&machine("press-1", 100.0), "", "press-1 tripped")?;
    for cause in ["invalid", "needs-restart", "machine-tripped"] {
        let event = watched.wait_for_event("settings-refused", cause)?;
        assert_eq!(event["machine_id"], "gw-live-settings", "{event}");
    }
    watched.send("press-2", 95.0)?;
    watched.send("press-2", 121.0)?;
    two.wait_for_interlock("stopped", DEADLINE)?;
    let trip = watched.wait_for_event("trip", "press-2/oil")?;
    assert_eq!((&trip["value"], &trip["limit"]), (&121.0.into(), &120.0.into()), "{trip}");

    // A machine that is added is watched; the latches of those that stay are as they were.
    let added = [machine("press-2", 120.0), machine("press-3", 50.0)].concat();
    watched.change(&machine("press-2", 120.0), &added)?;
    for tripped in [&one, &two] {
        assert_eq!(tripped.interlock_states().last().context("none")?["state"], "stopped");
    }
    assert_eq!(watched.status()?["machines"].as_array().map(Vec::len), Some(3));
    watched.send("press-3", 51.0)?;
    three.wait_for_interlock("stopped", DEADLINE)?;
    three.ask_for_reset("Kim")?;
    watched.send("press-3", 1.0)?;
    eventually("the machine that was added is reset", DEADLINE, || {
        three.ask_for_reset("Kim")?;
        let states = three.interlock_states();
        ensure!(states.last().is_some_and(|last| last["state"] == "armed"), "{states:?}");
        Ok(())
    })?;
    watched.change(&machine("press-3", 50.0), "")?;
    assert_eq!(watched.status()?["machines"].as_array().map(Vec::len), Some(2));
    let metrics = watched.edge.metrics()?;
    assert_eq!(metric(&metrics, "settings_reloads_total", "refused"), Some(4.0));
    assert_eq!(metric(&metrics, "settings_reloads_total", "changed"), Some(3.0));
    Ok(())
}

#[test]
fn machines_are_stopped_over_the_paths_that_the_settings_name_now() -> anyhow::Result<()> {
    let mut watched = Watched::start("live-paths", &machine("press-1", 120.0))?;
    let modbus = ModbusMachine::start(&watched.plant.dir.join("modbus"), Mode::Obeys)?;
    let second = Mosquitto::start(&watched.plant.dir.join("second"), Persistence::Off)?;
    let shown = FakeMachine::start(watched.plant.mosquitto.port(), "press-2", Obedience::Ignores)?;
    let obedience = Obedience::SpinsDown(Duration::ZERO);
    let obeying = FakeMachine::start(second.port(), "press-2", obedience)?;
    let armed = |watched: &mut Watched| {
        watched.send("press-2", 1.0)?;
        eventually("the machine is reset", DEADLINE, || {
            shown.ask_for_reset("Kim")?;
            let states = shown.interlock_states();
            ensure!(states.last().is_some_and(|last| last["state"] == "armed"), "{states:?}");
            Ok(())
        })
    };

    let over_modbus = [machine("press-2", 50.0), modbus_path(modbus.port())].concat();
    let both = [machine("press-1", 120.0), over_modbus.clone()].concat();
    watched.change(&machine("press-1", 120.0), &both)?;
    eventually("the new path beats", DEADLINE, || {
        ensure!(!modbus.heartbeats().is_empty(), "no sign of life");
        Ok(())
    })?;
    watched.send("press-2", 51.0)?;
    shown.wait_for_interlock("stopped", DEADLINE)?;
    assert_eq!((modbus.stops(), shown.commands().len()), (1, 0));
    watched.wait_for_event("stop-confirmed", "confirmed by modbus-tcp")?;

    let second_broker =
        format!("[[machines.actuators]]\nkind = \"mqtt\"\nport = {}\n", second.port());
    let over_broker = [machine("press-2", 50.0), second_broker].concat();
    watched.refused(&over_modbus, &over_broker, "press-2 tripped")?;
    armed(&mut watched)?;
    watched.change(&over_modbus, &over_broker)?;
    eventually("the broker that is new beats", DEADLINE, || {
        ensure!(obeying.heartbeats() > 0, "no sign of life");
        Ok(())
    })?;
    watched.send("press-2", 51.0)?;
    shown.wait_for_interlock("stopped", DEADLINE)?;
    assert_eq!((modbus.stops(), shown.commands().len()), (1, 0), "the old path is gone");
    assert!(!obeying.is_running());
    armed(&mut watched)?;

    watched.change(&over_broker, "")?;
    eventually("the retained latch is taken back", DEADLINE, || {
        let states = shown.interlock_states();
        ensure!(states.last().is_some_and(Value::is_null), "{states:?}");
        Ok(())
    })?;
    assert_eq!(watched.edge.get("/readyz")?.0, 200);
    Ok(())
}

#[test]
fn filters_change_live_and_the_log_and_the_metrics_follow() -> anyhow::Result<()> {
    let mut watched = Watched::start("live-filters", "")?;
    watched.send("press-1", 20.0)?;
    watched.send("press-1", 20.1)?;
    let filter =
        "[deadband]\nabsolute = 1.0\n[telemetry]\nfilter = \"edge_module=debug\"\n[admin]\n";
    watched.change("[admin]\n", filter)?;
    for value in [20.0, 20.1, 20.2, 100.5, 100.6] {
        watched.send("press-1", value)?;
    }
    let temperatures = || -> anyhow::Result<Vec<f64>> {
        let readings = kafka()?.read_json(&watched.plant.topic("temperature"))?;
        Ok(readings.iter().filter_map(|reading| reading["value"].as_f64()).collect())
    };
    eventually("all that says something new", DEADLINE, || {
        let found = temperatures()?;
        ensure!(found == [20.0, 20.1, 20.0, 100.5, 100.6], "{found:?}");
        Ok(())
    })?;
    let metrics = watched.edge.metrics()?;
    assert_eq!(metric(&metrics, "readings_saved_total", "deadband"), Some(2.0));
    assert!(metric(&metrics, "readings_saved_bytes_total", "deadband") > Some(50.0));
    assert_eq!(metric(&metrics, "edge_limit", "deadband.sensors-max"), Some(100_000.0));
    let tail = watched.edge.process().stderr();
    ensure!(tail.contains("other settings in force"), "{tail}");

    let folded = "[deadband]\nabsolute = 0.0\n[[aggregation]]\nmetric-type = \"temperature\"\n\
                  interval = \"1s\"\nvalue = \"max\"\nstatistics = [\"min\"]\n";
    watched.change("[deadband]\nabsolute = 1.0\n", folded)?;
    for value in [30.0, 40.0, 35.0] {
        watched.send("press-1", value)?;
    }
    eventually("all folded readings have left", DEADLINE, || {
        let readings = kafka()?.read_json(&watched.plant.topic("temperature"))?;
        let folded: Vec<_> =
            readings.iter().filter_map(|reading| reading["features"]["count"].as_f64()).collect();
        ensure!(folded.iter().sum::<f64>() == 3.0, "{folded:?}");
        Ok(())
    })
}

/// It was shown as armed, retained, for a moment: whoever reads that may go near it.
#[test]
fn a_tripped_machine_that_comes_back_live_is_never_shown_as_armed() -> anyhow::Result<()> {
    let machines = [machine("press-1", 120.0), machine("press-2", 120.0)].concat();
    let mut watched = Watched::start("latched-back", &machines)?;
    let port = watched.plant.mosquitto.port();
    let one = FakeMachine::start(port, "press-1", Obedience::SpinsDown(Duration::ZERO))?;
    watched.send("press-1", 130.0)?;
    one.wait_for_interlock("stopped", DEADLINE)?;
    // A restart without the machine: nobody can refuse that, but it is told.
    watched.edge.process().terminate()?;
    watched.edge.process().wait(DEADLINE)?;
    let whole = watched.text.clone();
    watched.write(&machine("press-1", 120.0), "")?;
    watched.text = watched.text.replace(&machine("press-1", 120.0), "");
    let shown = one.interlock_states().len();
    watched.edge.restart()?;
    watched.edge.wait_ready()?;
    let log = watched.edge.process().stderr();
    ensure!(log.contains("latched on a machine that the settings do not name"), "{log}");
    std::fs::write(&watched.file, &whole)?;
    eventually("its latch is shown again", DEADLINE, || {
        let states = one.interlock_states();
        ensure!(states.len() > shown, "nothing new: {states:?}");
        Ok(())
    })?;
    let states = one.interlock_states();
    let is_armed = |state: &&Value| state["state"] == "armed";
    assert_eq!(states[shown..].iter().find(is_armed), None, "{states:?}");
    Ok(())
}
