//! The edge module as a module of IoT Edge and as a device of an IoT Hub, against the stand-in that the official SDK passes.
//!
//! What is asserted is what the hub holds, and what the module does at its machine.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::eventually::{eventually, eventually_true};
use e2e_tests::hub::{
    Fault, HubSettings, HubStandIn, PacketType, Recorded, Subject, WorkloadFault,
};
use e2e_tests::publisher::Publisher;
use serde_json::{Value, json};

use crate::gateway::{Gateway, MOTOR, SENSOR, Shaking, copy_bundle, machine_toml, one_motor};
use crate::models::{ArchiveServer, pack};
use crate::plant::{DEADLINE, kafka, motor_bundle, now, run_dir};

const BEFORE: &str = "motor@1.0.0";
const NEXT: &str = "motor@1.0.1";
/// A link that is tried again takes up to twice its longest wait, and the time of its connection.
pub(crate) const LINK_DEADLINE: Duration = Duration::from_secs(40);

/// A gateway, and the hub that it belongs to.
pub(crate) struct Linked {
    pub(crate) hub: HubStandIn,
    pub(crate) gateway: Gateway,
}

pub(crate) fn variable(name: &str, value: impl ToString) -> (String, String) {
    (format!("EDGE__IOT_HUB__{name}"), value.to_string())
}

/// Waits and limits that suit a test.
fn quick(hub: &HubStandIn) -> Vec<(String, String)> {
    vec![
        variable("PORT", hub.port()),
        variable("RECONNECT_MIN", "50ms"),
        variable("RECONNECT_MAX", "1s"),
        variable("CONNECT_TIMEOUT", "2s"),
        variable("KEEP_ALIVE", "5s"),
        variable("REPORT_INTERVAL", "100ms"),
    ]
}

fn settings() -> HubSettings {
    HubSettings { token_check_interval: Duration::from_millis(200), ..HubSettings::default() }
}

impl Linked {
    /// As a module of IoT Edge.
    pub(crate) fn module(
        name: &str,
        machines: &str,
        more: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let hub = HubStandIn::start(settings())?;
        let environment = hub.module_environment();
        Self::start(name, machines, hub, environment, more)
    }

    /// As a device of an IoT Hub, by its connection string.
    pub(crate) fn device(
        name: &str,
        machines: &str,
        more: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let hub = HubStandIn::start(HubSettings { subject: Subject::Device, ..settings() })?;
        let folder = run_dir().join(format!("{name}-secrets"));
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("connection-string");
        std::fs::write(&file, format!("{}\n", hub.device_connection_string()))?;
        let environment = vec![
            variable("IDENTITY", "device"),
            variable("CONNECTION_STRING_FILE", file.display()),
            variable("CA_FILE", hub.ca_file().display()),
        ];
        Self::start(name, machines, hub, environment, more)
    }

    fn start(
        name: &str,
        machines: &str,
        hub: HubStandIn,
        mut environment: Vec<(String, String)>,
        more: &[(String, String)],
    ) -> anyhow::Result<Self> {
        environment.extend(quick(&hub));
        environment.extend_from_slice(more);
        let gateway = Gateway::start_with(name, machines, Some(&motor_bundle()), environment)?;
        Ok(Self { hub, gateway })
    }

    pub(crate) fn wait_reported(
        &self,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let waited = self.hub.block_on(self.hub.wait_reported(fits, LINK_DEADLINE));
        waited.with_context(|| format!("reported: {what}\n{}", self.gateway.edge.describe()))
    }

    /// Changes the desired properties and waits for what the module says of them.
    pub(crate) fn desire(&self, patch: Value, state: &str) -> anyhow::Result<Value> {
        let version = self.hub.set_desired(patch);
        self.wait_reported(&format!("version {version} is {state}"), |reported| {
            let desired = &reported["settings"]["desired"];
            desired["version"] == version && desired["state"] == state
        })
    }

    /// Name of the settings in force.
    pub(crate) fn version(&self) -> anyhow::Result<Value> {
        Ok(self.gateway.status()?["settings"]["version"].clone())
    }

    /// Whether the link works in both directions, by a change of settings that is of no consequence.
    pub(crate) fn check_link(&self, percent: f64) -> anyhow::Result<()> {
        self.desire(json!({ "deadband": { "percent": percent } }), "in-force")?;
        let call = self.hub.call("ping", json!({}), DEADLINE);
        let (status, answer) = self.hub.block_on(call)?;
        ensure!(status == 200 && answer["deviceId"].is_string(), "{status} {answer}");
        Ok(())
    }
}

fn model_of<'a>(reported: &'a Value, name: &str) -> &'a Value {
    let named = reported["models"]["named"].as_array().map_or(&[][..], Vec::as_slice);
    named.iter().find(|model| model["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn a_bundle_by_desired_property_is_fetched_tried_in_its_shadow_time_and_judges()
-> anyhow::Result<()> {
    let linked = Linked::module("hub-model", &one_motor(), &[])?;
    let gateway = &linked.gateway;
    let reported = linked.wait_reported("the model of the file", |reported| {
        model_of(reported, "default")["inForce"] == BEFORE
    })?;
    assert_eq!(reported["software"]["name"], "edge-module", "{reported}");
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    let folder = gateway.plant.dir.join("next");
    copy_bundle(&folder, "1.0.1", |_| {})?;
    let archive = gateway.plant.dir.join("next.tar");
    let sha256 = pack(&folder, &archive)?;
    let server = ArchiveServer::start(std::fs::read(&archive)?)?;
    // First beside the model that judges, then in its place.
    let bundles = json!({ "shaken": { "url": server.url(), "sha256": sha256 } });
    let model = json!({ "shadow-time": "500ms", "bundles": bundles });
    linked.desire(json!({ "model": model }), "in-force")?;
    linked.wait_reported("the bundle is there", |reported| {
        model_of(reported, "shaken")["inForce"] == NEXT
    })?;
    let scored = json!([{ "sensor": SENSOR, "model": "shaken" }]);
    let machine = json!({ "id": MOTOR, "scored-sensors": scored, "votes": 3, "of": 5 });
    linked.desire(json!({ "machines": [machine] }), "in-force")?;
    ensure!(gateway.motor.commands().is_empty(), "stopped while it was healthy");
    // What the hub desires as a whole is refused as a whole, and says why.
    let wrong = json!({ "telemetry": { "filter": "debug" }, "deadband": { "percent": -1.0 } });
    let before = linked.version()?;
    let reported = linked.desire(wrong, "refused")?;
    let reason = reported["settings"]["desired"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("percent is -1"), "{reason}");
    assert_eq!(linked.version()?, before, "nothing of it is in force");
    shaking.damage();
    let trip = gateway.wait_for_trip(&gateway.motor, MOTOR)?;
    ensure!(trip["cause"] == "score" && trip["model"] == NEXT, "{trip}");
    linked.wait_reported("the motor is tripped", |reported| {
        reported["machines"]["named"][0]["state"] != "armed"
            && reported["machines"]["named"][0]["tripId"].is_string()
    })?;
    shaking.end()?;
    server.close()
}

#[test]
fn what_the_hub_desired_holds_without_it_from_the_first_second() -> anyhow::Result<()> {
    let machines = machine_toml(MOTOR, "");
    let mut linked = Linked::module("hub-away", &machines, &[])?;
    let limit = json!({
        "name": "hot", "sensor": "motor-1/oil", "quantity": "value", "above": 80.0,
    });
    let desired = json!({ "machines": [{ "id": MOTOR, "limits": [limit] }] });
    linked.desire(desired, "in-force")?;
    let version = linked.version()?;
    let kept = linked.gateway.plant.edge_settings.data_dir.join("desired-properties.json");
    eventually("it is kept", DEADLINE, || {
        let kept = std::fs::read_to_string(&kept)?;
        ensure!(kept.contains("\"hot\""), "{kept}");
        Ok(())
    })?;
    linked.hub.fault(Fault::Frozen);
    linked.hub.workload_fault(WorkloadFault::Down);
    linked.gateway.stop()?;
    linked.gateway.restart()?;
    assert_eq!(linked.version()?, version);
    let page = linked.gateway.edge.get("/readyz")?;
    ensure!(page.0 == 200 && page.1.contains("hub: "), "{page:?}");
    let mut publisher = Publisher::connect(linked.gateway.plant.mosquitto.port(), "thermometer");
    let reading = json!({
        "sensor_id": "motor-1/oil", "timestamp": now().to_string(), "metric_type": "temperature",
        "value": 95.0,
    });
    publisher.publish("plant/motor-1/readings", reading.to_string().into_bytes())?;
    publisher.wait_acknowledged(DEADLINE)?;
    let trip = linked.gateway.wait_for_trip(&linked.gateway.motor, MOTOR)?;
    ensure!(trip["rule"] == "hot", "{trip}");
    // A file that does not go with what was desired: the file alone holds, and the hub is told.
    linked.gateway.stop()?;
    linked.hub.heal();
    std::fs::write(&kept, r#"{"version":1,"properties":{"deadband":{"percent":-3}}}"#)?;
    linked.hub.set_desired(json!({ "machines": null, "deadband": { "percent": -3 } }));
    linked.gateway.restart()?;
    linked.gateway.wait_for_event("settings-refused", &["desired-properties.json", "percent"])?;
    linked.wait_reported("refused", |reported| {
        reported["settings"]["desired"]["state"] == "refused"
    })?;
    linked.check_link(2.0)
}

#[test]
fn a_link_that_breaks_in_any_way_comes_back_by_itself() -> anyhow::Result<()> {
    let linked = Linked::module("hub-faults", &machine_toml(MOTOR, ""), &[])?;
    let hub = &linked.hub;
    linked.check_link(1.0)?;
    let mut percent = 1.0;
    let mut check = |what: &str| {
        percent += 1.0;
        linked.check_link(percent).with_context(|| what.to_owned())
    };
    hub.drop_connections();
    check("the connection is cut")?;
    for (what, fault) in [
        ("no answer to CONNECT", Fault::NoConnack),
        ("accepted and closed", Fault::CloseAtOnce),
        ("credentials refused", Fault::RefuseCredentials),
        ("not available", Fault::Unavailable),
    ] {
        hub.fault(fault);
        hub.drop_connections();
        eventually_true(&format!("{what}: not connected"), DEADLINE, || !hub.is_connected())?;
        let tries = metric_of(&linked, "hub_disconnects_total")?;
        eventually(&format!("{what}: tried again"), LINK_DEADLINE, || {
            let now = metric_of(&linked, "hub_disconnects_total")?;
            ensure!(now >= tries + 2.0, "{now} after {tries}");
            Ok(())
        })?;
        hub.heal();
        check(what)?;
    }
    hub.fault(Fault::Frozen);
    eventually("the silence is noticed by the missing answer to a ping", LINK_DEADLINE, || {
        let connected = metric_of(&linked, "hub_connected")?;
        ensure!(connected == 0.0, "{connected}");
        Ok(())
    })?;
    hub.heal();
    check("a link that is open and silent")?;
    hub.block_on(hub.restart(true));
    check("restarted, the session is lost")?;
    hub.renew_server_certificate();
    hub.block_on(hub.restart(false));
    check("another server certificate")?;
    hub.new_authority();
    hub.block_on(hub.restart(false));
    check("another authority in the bundle")?;
    hub.workload_fault(WorkloadFault::Status(500));
    hub.block_on(hub.restart(false));
    eventually_true("not signed", DEADLINE, || !hub.is_connected())?;
    hub.heal();
    check("the key service was away")
}

pub(crate) fn metric_of(linked: &Linked, name: &str) -> anyhow::Result<f64> {
    let text = linked.gateway.edge.metrics()?;
    let of_name =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let values =
        text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse().ok());
    let values: Vec<f64> = values.collect();
    ensure!(!values.is_empty(), "no {name}");
    Ok(values.iter().sum())
}

#[test]
fn a_twin_that_answers_badly_is_asked_until_both_sides_agree() -> anyhow::Result<()> {
    let linked = Linked::module("hub-twin", &machine_toml(MOTOR, ""), &[])?;
    let hub = &linked.hub;
    linked.check_link(1.0)?;
    hub.fault(Fault::TwinStatus(429, 3));
    linked.check_link(2.0).context("throttled")?;
    hub.fault(Fault::DropPatch);
    hub.set_desired(json!({ "deadband": { "percent": 3.0 } }));
    hub.heal();
    // The next one shows that one is missing.
    linked.desire(json!({ "deadband": { "absolute": 0.5 } }), "in-force")?;
    let kept = linked.gateway.plant.edge_settings.data_dir.join("desired-properties.json");
    let expected = json!({ "percent": 3.0, "absolute": 0.5 });
    eventually("it is kept", DEADLINE, || {
        let kept: Value = serde_json::from_slice(&std::fs::read(&kept)?)?;
        ensure!(kept["properties"]["deadband"] == expected, "{kept}");
        Ok(())
    })?;
    // Missed while away.
    hub.block_on(hub.stop());
    let version = hub.set_desired(json!({ "deadband": { "absolute": null } }));
    hub.resume(true);
    linked.wait_reported("what was desired meanwhile", |reported| {
        reported["settings"]["desired"]["version"] == version
    })?;
    let answers = hub.block_on(hub.call_twice("ping", json!({}), Duration::from_secs(2)))?;
    ensure!(answers.len() == 2 && answers[0] == answers[1], "{answers:?}");
    let (status, answer) = hub.block_on(hub.call("launch", json!({}), DEADLINE))?;
    ensure!(status == 404 && answer["message"].is_string(), "{status} {answer}");
    let (status, answer) = hub.block_on(hub.call("getStatus", json!({}), DEADLINE))?;
    ensure!(status == 200 && answer["machines"][0]["machine_id"] == MOTOR, "{status} {answer}");
    Ok(())
}

#[test]
fn what_a_tripped_machine_refuses_comes_into_force_after_its_reset_and_is_told_once()
-> anyhow::Result<()> {
    let allowed = [variable("REMOTE_RESET", true)];
    let linked = Linked::module("hub-put-off", &machine_toml(MOTOR, ""), &allowed)?;
    linked.check_link(1.0)?;
    let hub = &linked.hub;
    let stop = json!({ "machineId": MOTOR, "operator": "Kim", "reason": "again" });
    let (status, _) = hub.block_on(hub.call("stopMachine", stop, DEADLINE))?;
    ensure!(status == 200, "{status}");
    let refused = linked.desire(json!({ "machines": [] }), "refused")?;
    let version = &refused["settings"]["desired"]["version"];
    let reset = json!({ "machineId": MOTOR, "operator": "Kim" });
    eventually("the reset is granted", DEADLINE, || {
        let (status, answer) = hub.block_on(hub.call("resetMachine", reset.clone(), DEADLINE))?;
        ensure!(status == 200, "{status} {answer}");
        Ok(())
    })?;
    linked.wait_reported("in force by itself", |reported| {
        let desired = &reported["settings"]["desired"];
        desired["version"] == *version && desired["state"] == "in-force"
    })?;
    let gateway = &linked.gateway;
    gateway.wait_for_event("settings-changed", &["machines"])?;
    let events = kafka()?.read_json(&gateway.plant.topic("machine-events"))?;
    let told = events.iter().filter(|event| event["event_type"] == "settings-refused").count();
    ensure!(told == 1, "told {told} times");
    Ok(())
}

#[test]
fn a_machine_is_stopped_by_method_and_reset_from_afar_only_where_that_is_allowed()
-> anyhow::Result<()> {
    let allowed = [variable("REMOTE_RESET", true)];
    for (name, more, is_allowed) in
        [("hub-stop", &[][..], false), ("hub-reset", &allowed[..], true)]
    {
        let linked = Linked::module(name, &machine_toml(MOTOR, ""), more)?;
        linked.check_link(1.0)?;
        let hub = &linked.hub;
        let call = |method: &str, payload: Value| hub.block_on(hub.call(method, payload, DEADLINE));
        let stop = json!({ "machineId": MOTOR, "operator": "Kim", "reason": "it smokes" });
        let (status, first) = call("stopMachine", stop.clone())?;
        ensure!(status == 200 && first["tripId"].is_string(), "{status} {first}");
        let trip = linked.gateway.wait_for_trip(&linked.gateway.motor, MOTOR)?;
        ensure!(trip["cause"] == "ordered" && trip["operator"] == "Kim", "{trip}");
        let (_, again) = call("stopMachine", stop)?;
        assert_eq!(again, first, "it is stopped already");
        let (_, trips) = call("getTrips", Value::Null)?;
        assert_eq!(trips["trips"][0]["trip"]["trip_id"], first["tripId"], "{trips}");
        let (status, _) = call(
            "stopMachine",
            json!({ "machineId": "pump-9", "operator": "Kim", "reason": "it leaks" }),
        )?;
        assert_eq!(status, 404);
        let reset = json!({ "machineId": MOTOR, "operator": "Kim" });
        let (status, answer) = call("resetMachine", reset.clone())?;
        if !is_allowed {
            ensure!(status == 403, "{status} {answer}");
            continue;
        }
        ensure!(status == 200, "{status} {answer}");
        linked.gateway.wait_for_event("reset", &["Kim"])?;
        let (status, _) = call("resetMachine", reset)?;
        assert_eq!(status, 200, "it is reset already");
    }
    Ok(())
}

#[test]
fn a_token_is_renewed_before_it_ends_and_the_hub_never_has_to_close() -> anyhow::Result<()> {
    let life = [variable("TOKEN_LIFE", "10s")];
    let hub = HubStandIn::start(HubSettings {
        token_check_interval: Duration::from_millis(100),
        token_grace: Duration::ZERO,
        ..HubSettings::default()
    })?;
    let mut environment = hub.module_environment();
    environment.extend(quick(&hub));
    environment.extend(life);
    let machines = machine_toml(MOTOR, "");
    let gateway = Gateway::start_with("hub-token", &machines, None, environment)?;
    let linked = Linked { hub, gateway };
    linked.check_link(1.0)?;
    let first = linked.hub.connections();
    eventually_true("renewed twice", LINK_DEADLINE, || linked.hub.connections() >= first + 2)?;
    linked.check_link(2.0)?;
    let refusals = linked.hub.refusals();
    ensure!(refusals.is_empty(), "{refusals:?}");
    // A clock that is off: refused until it is right again, with a new token each time.
    linked.hub.set_clock_offset(3_600);
    eventually_true("refused", LINK_DEADLINE, || !linked.hub.refusals().is_empty())?;
    linked.hub.set_clock_offset(0);
    linked.check_link(3.0)?;
    let is_connect = |packet: &Recorded| packet.kind == PacketType::Connect;
    let packets = linked.hub.packets().into_iter().filter(is_connect);
    let connects: Vec<Vec<u8>> = packets.map(|packet| packet.bytes).collect();
    ensure!(connects.len() > 3, "{} connections", connects.len());
    Ok(())
}

#[test]
fn a_gateway_box_is_a_device_by_its_connection_string() -> anyhow::Result<()> {
    let linked = Linked::device("hub-device", &machine_toml(MOTOR, ""), &[])?;
    linked.check_link(1.0)?;
    linked.hub.drop_connections();
    linked.check_link(2.0)?;
    // Nobody but the authority of the settings is trusted.
    linked.hub.new_authority();
    linked.hub.block_on(linked.hub.restart(true));
    linked.check_link(3.0).context("the file has the new authority, too")?;
    let log = linked.gateway.edge.describe();
    let key = linked.hub.provisioning().symmetric_key;
    ensure!(!log.contains(&key) && !log.contains("SharedAccessSignature"), "a secret in the log");
    Ok(())
}
