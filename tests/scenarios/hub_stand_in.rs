//! The stand-in for IoT Edge and IoT Hub against a client that is not ours: the official Python SDK, unchanged
//! (`tests/hub/oracle.py`).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::eventually::eventually;
use e2e_tests::hub::{DeviceProof, HubMessage, HubSettings, HubStandIn, Subject};
use e2e_tests::process::ChildProcess;
use e2e_tests::{setup_dir, workspace_root};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);
const BODY: &str = r#"{"value": 1.5, "text": "gr\u00fcn & =/+"}"#;

/// The SDK knows port 8883 only.
fn start_hub(subject: Subject) -> anyhow::Result<HubStandIn> {
    start_hub_with(subject, DeviceProof::Key)
}

fn start_hub_with(subject: Subject, device_proof: DeviceProof) -> anyhow::Result<HubStandIn> {
    HubStandIn::start(HubSettings {
        subject,
        device_proof,
        listens_on_standard_port: true,
        provisioning_retry_after: Duration::from_secs(1),
        ..HubSettings::default()
    })
}

fn address(hub: &HubStandIn) -> anyhow::Result<String> {
    hub.standard_address().context("no address with port 8883")
}

/// What edgeAgent would set, with the address whose port is 8883.
fn environment(hub: &HubStandIn) -> anyhow::Result<Vec<(String, String)>> {
    let mut environment = hub.module_environment();
    environment.retain(|(name, _)| name != "IOTEDGE_GATEWAYHOSTNAME");
    environment.push(("IOTEDGE_GATEWAYHOSTNAME".to_owned(), address(hub)?));
    Ok(environment)
}

struct Oracle {
    process: ChildProcess,
}

impl Oracle {
    fn start(
        dir: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let python = setup_dir().join("hub-venv/bin/python");
        let script = workspace_root().join("tests/hub/oracle.py");
        let script = script.to_str().context("the checkout's path is not UTF-8")?;
        let arguments: Vec<&str> = [script].into_iter().chain(arguments.iter().copied()).collect();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let process = ChildProcess::start("oracle", dir, &python, &arguments, &environment)?;
        Ok(Self { process })
    }

    /// The first line of this word.
    fn said(&mut self, word: &str) -> anyhow::Result<Value> {
        let process = &mut self.process;
        eventually(word, DEADLINE, || {
            let output = process.stdout();
            let line = output.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
            line.with_context(|| process.tail()).and_then(|json| Ok(serde_json::from_str(json)?))
        })
    }

    fn ends(mut self) -> anyhow::Result<()> {
        let status = self.process.wait(DEADLINE)?;
        ensure!(status.success(), "{status}: {}", self.process.tail());
        Ok(())
    }
}

/// What module and device have in common.
fn serves_twin_methods_and_messages(hub: &HubStandIn, mut oracle: Oracle) -> anyhow::Result<()> {
    let twin = oracle.said("twin")?;
    ensure!(twin == json!({"desired": {"limit": 4.5, "$version": 2}, "reported": {"$version": 1}}));
    oracle.said("ready")?;
    let reported = json!({"state": "armed", "limits": {"peak": 9}});
    hub.block_on(hub.wait_reported(|now| *now == reported, DEADLINE))?;

    let version = hub.set_desired(json!({"limit": null, "mode": {"name": "learn"}}));
    let patch = json!({"limit": null, "mode": {"name": "learn"}, "$version": version});
    ensure!(oracle.said("patch")? == patch);
    ensure!(hub.desired() == (json!({"mode": {"name": "learn"}}), 3));

    hub.send_input("opc", &[("plant", "north 1/2")], b"from a route");
    let message = oracle.said("message")?;
    ensure!(message["body"] == "from a route", "{message}");
    ensure!(message["properties"]["plant"] == "north 1/2", "{message}");
    eventually("the message is acknowledged", DEADLINE, || match hub.waiting_inputs() {
        0 => Ok(()),
        waiting => Err(format!("{waiting} wait")),
    })?;

    let payload = json!({"machine": "press/1", "n": [1, null]});
    let answer = hub.block_on(hub.call("reset", payload.clone(), DEADLINE))?;
    ensure!(answer == (200, payload), "{answer:?}");
    let twice = hub.block_on(hub.call_twice("again", json!(7), DEADLINE))?;
    ensure!(twice == [(200, json!(7)), (200, json!(7))], "{twice:?}");
    hub.block_on(hub.call("end", Value::Null, DEADLINE))?;
    oracle.ends()?;
    ensure!(hub.block_on(hub.call("end", Value::Null, DEADLINE)).is_err(), "nobody is connected");
    ensure!(hub.refusals().is_empty(), "{:?}", hub.refusals());
    Ok(())
}

fn check_message(message: &HubMessage, module: Option<&str>, output: Option<&str>) {
    assert_eq!(message.device, "gateway-1");
    assert_eq!((message.module.as_deref(), message.output.as_deref()), (module, output));
    assert_eq!(message.body, BODY.as_bytes());
    assert_eq!(message.properties["machine"], "press/1 & more");
    let system = ["$.mid", "$.ct", "$.ce"].map(|name| message.system[name].as_str());
    assert_eq!(system, ["m 1", "application/json", "utf-8"]);
}

#[test]
fn the_official_sdk_takes_the_stand_in_for_edge_hub() -> anyhow::Result<()> {
    let hub = start_hub(Subject::Module)?;
    hub.set_desired(json!({"limit": 4.5}));
    let dir = tempfile::tempdir()?;
    let oracle = Oracle::start(dir.path(), &["module", "3600"], &environment(&hub)?)?;
    serves_twin_methods_and_messages(&hub, oracle)?;
    let messages = hub.messages();
    ensure!(messages.len() == 2, "{messages:?}");
    check_message(&messages[0], Some("vibration"), Some("alerts"));
    ensure!(messages[1].body == b"no output" && messages[1].output.is_none(), "{messages:?}");
    Ok(())
}

#[test]
fn the_official_sdk_renews_its_token_by_connecting_anew_and_comes_back_after_a_restart()
-> anyhow::Result<()> {
    let hub = start_hub(Subject::Module)?;
    let dir = tempfile::tempdir()?;
    // It renews two minutes before the end.
    let mut oracle = Oracle::start(dir.path(), &["module", "124"], &environment(&hub)?)?;
    oracle.said("ready")?;
    let connected = |what: &str, count: u64| {
        eventually(what, DEADLINE, || match hub.connections() {
            so_far if so_far >= count && hub.is_connected() => Ok(()),
            so_far => Err(format!("{so_far} connections")),
        })
    };
    connected("a connection with a new token", 2)?;
    // It relies on its session: with that lost, it would not subscribe again.
    let before = hub.connections();
    hub.block_on(hub.restart(false));
    connected("a connection after the restart", before + 1)?;
    hub.block_on(hub.call("end", Value::Null, DEADLINE))?;
    oracle.ends()?;
    ensure!(hub.refusals().is_empty(), "{:?}", hub.refusals());
    Ok(())
}

#[test]
fn the_official_sdk_is_refused_with_another_key() -> anyhow::Result<()> {
    let hub = start_hub(Subject::Device)?;
    let key = hub.provisioning().symmetric_key;
    let connection_string = hub.device_connection_string_by(&address(&hub)?);
    let connection_string = connection_string.replace(&key, &"A".repeat(44));
    let authority = hub.ca_file().display().to_string();
    let dir = tempfile::tempdir()?;
    let mut oracle = Oracle::start(dir.path(), &["device", &connection_string, &authority], &[])?;
    ensure!(!oracle.process.wait(DEADLINE)?.success());
    ensure!(oracle.process.stderr().contains("CredentialError"), "{}", oracle.process.tail());
    let reasons: Vec<String> = hub.refusals().into_iter().map(|refusal| refusal.reason).collect();
    ensure!(reasons == ["a signature by another key"], "{reasons:?}");
    Ok(())
}

#[test]
fn the_official_sdk_takes_the_stand_in_for_iot_hub() -> anyhow::Result<()> {
    let hub = start_hub(Subject::Device)?;
    hub.set_desired(json!({"limit": 4.5}));
    let connection_string = hub.device_connection_string_by(&address(&hub)?);
    let authority = hub.ca_file().display().to_string();
    let dir = tempfile::tempdir()?;
    let arguments = ["device", &connection_string, &authority];
    serves_twin_methods_and_messages(&hub, Oracle::start(dir.path(), &arguments, &[])?)?;
    let messages = hub.messages();
    ensure!(messages.len() == 1, "{messages:?}");
    check_message(&messages[0], None, None);
    Ok(())
}

/// What the SDK says of its registration, and what the hub holds after it.
fn registers(hub: &HubStandIn, mut oracle: Oracle) -> anyhow::Result<()> {
    let registered = oracle.said("registered")?;
    let host = address(hub)?;
    ensure!(registered == json!({"status": "assigned", "hub": host, "device": "gateway-1"}));
    oracle.ends()?;
    let messages = hub.messages();
    check_message(messages.last().context("no message")?, None, None);
    ensure!(hub.refusals().is_empty(), "{:?}", hub.refusals());
    Ok(())
}

#[test]
fn the_official_sdk_registers_and_goes_to_the_hub_that_it_was_told() -> anyhow::Result<()> {
    let hub = start_hub(Subject::Device)?;
    let (host, provisioning) = (address(&hub)?, hub.provisioning());
    let authority = hub.ca_file().display().to_string();
    let dir = tempfile::tempdir()?;
    let (scope, id) = (&provisioning.scope_id, &provisioning.registration_id);
    let own = ["provision", &host, scope, id, &provisioning.symmetric_key, &authority];
    let group = ["provision_group", &host, scope, id, &provisioning.group_key, &authority];
    for arguments in [own, group] {
        registers(&hub, Oracle::start(dir.path(), &arguments, &[])?)?;
    }
    ensure!(hub.messages().len() == 2 && hub.registrations() == 2, "{:?}", hub.messages());
    Ok(())
}

#[test]
fn the_official_sdk_shows_a_certificate_to_the_service_and_to_the_hub() -> anyhow::Result<()> {
    for proof in [DeviceProof::Thumbprint, DeviceProof::Authority] {
        let hub = start_hub_with(Subject::Device, proof)?;
        let (host, provisioning) = (address(&hub)?, hub.provisioning());
        let dir = tempfile::tempdir()?;
        let made = hub.device_certificate(Duration::from_secs(86_400));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (certificate, key) = (path("certificate.pem"), path("key.pem"));
        std::fs::write(&certificate, &made.chain_pem)?;
        std::fs::write(&key, &made.key_pem)?;
        let authority = hub.ca_file().display().to_string();
        let (scope, id) = (&provisioning.scope_id, &provisioning.registration_id);
        let arguments = ["provision_x509", &host, scope, id, &certificate, &key, &authority];
        registers(&hub, Oracle::start(dir.path(), &arguments, &[])?)?;
        hub.set_desired(json!({"limit": 4.5}));
        let arguments = ["device_x509", &host, "gateway-1", &certificate, &key, &authority];
        serves_twin_methods_and_messages(&hub, Oracle::start(dir.path(), &arguments, &[])?)?;
        ensure!(hub.messages().len() == 2, "{:?}", hub.messages());
    }
    Ok(())
}
