//! The edge module as a device that asks the provisioning service where it belongs, and as one that shows a certificate.
//!
//! Service and hubs are stand-ins on port 8883 of addresses of their own, since a hub is assigned by its host alone.

use std::cell::Cell;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::edge_module;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::hub::{
    DeviceCertificate, DeviceProof, Fault, HubSettings, HubStandIn, RegistrationFault, Subject,
};
use e2e_tests::process::ChildProcess;
use e2e_tests::publisher::Publisher;
use serde_json::{Value, json};

use crate::gateway::{Gateway, MOTOR, machine_toml};
use crate::plant::{DEADLINE, now, run_dir};

/// A link that is tried again takes up to twice its longest wait, and the time of its connection.
const LINK_DEADLINE: Duration = Duration::from_secs(40);
const DAY: Duration = Duration::from_secs(86_400);
const MQTT_PORT: u16 = 8883;

fn start_hub(device_proof: DeviceProof) -> anyhow::Result<HubStandIn> {
    HubStandIn::start(HubSettings {
        subject: Subject::Device,
        device_proof,
        listens_on_standard_port: true,
        provisioning_retry_after: Duration::from_secs(1),
        provisioning_polls: 2,
        ..HubSettings::default()
    })
}

fn address(hub: &HubStandIn) -> anyhow::Result<String> {
    hub.standard_address().context("no address with port 8883")
}

/// A folder with what a device is given, and the variables that name it.
struct Given {
    folder: PathBuf,
    variables: Vec<(String, String)>,
    asked: Cell<u32>,
}

impl Given {
    /// Trusts all of these.
    fn new(name: &str, trusted: &[&HubStandIn]) -> anyhow::Result<Self> {
        let folder = run_dir().join(format!("{name}-secrets"));
        std::fs::create_dir_all(&folder)?;
        let mut given = Self { folder, variables: Vec::new(), asked: Cell::new(0) };
        let mut authorities = String::new();
        for hub in trusted {
            authorities.push_str(&std::fs::read_to_string(hub.ca_file())?);
        }
        given.file("CA_FILE", "authorities.pem", &authorities)?;
        for (key, value) in [
            ("IDENTITY", "device"),
            ("RECONNECT_MIN", "50ms"),
            ("RECONNECT_MAX", "1s"),
            ("CONNECT_TIMEOUT", "2s"),
            ("REPORT_INTERVAL", "100ms"),
        ] {
            given.set(key, value);
        }
        given.set("HTTPS_PORT", MQTT_PORT);
        Ok(given)
    }

    fn set(&mut self, key: &str, value: impl ToString) {
        self.variables.push((format!("EDGE__IOT_HUB__{key}"), value.to_string()));
    }

    fn file(&mut self, key: &str, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)?;
        self.set(key, path.display());
        Ok(())
    }

    fn registration(&mut self, service: &HubStandIn) -> anyhow::Result<()> {
        let provisioning = service.provisioning();
        self.set("PROVISIONING__ID_SCOPE", provisioning.scope_id);
        self.set("PROVISIONING__REGISTRATION_ID", provisioning.registration_id);
        self.set("PROVISIONING__ENDPOINT", address(service)?);
        Ok(())
    }

    fn own_key(&mut self, service: &HubStandIn) -> anyhow::Result<()> {
        let key = service.provisioning().symmetric_key;
        self.file("PROVISIONING__SYMMETRIC_KEY_FILE", "key", &key)
    }

    fn certificate(&mut self, shown: &DeviceCertificate) -> anyhow::Result<()> {
        self.file("CERTIFICATE_FILE", "certificate.pem", &shown.chain_pem)?;
        self.file("PRIVATE_KEY_FILE", "key.pem", &shown.key_pem)
    }

    /// What `edge-module <command>` says of this with these lines of settings, and its exit code.
    fn ask(&self, command: &str, toml: &str) -> anyhow::Result<(i32, String)> {
        let file = self.folder.join("edge.toml");
        std::fs::write(&file, toml)?;
        let config = file.to_str().context("UTF-8")?;
        let variables: Vec<(&str, &str)> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (program, arguments) = (edge_module::program(), [command, "--config", config]);
        let folder = self.folder.join(format!("said-{}", self.asked.replace(self.asked.get() + 1)));
        let mut process = ChildProcess::start(command, &folder, &program, &arguments, &variables)?;
        let status = process.wait(DEADLINE)?;
        Ok((status.code().context("killed by a signal")?, process.tail()))
    }

    fn start(&self, name: &str) -> anyhow::Result<Gateway> {
        let machines = machine_toml(MOTOR, "");
        Gateway::start_with(name, &machines, None, self.variables.clone())
    }
}

/// Of the motor.
const OIL_LIMIT: &str = "[[machines.limits]]\nname = \"hot\"\nsensor = \"motor-1/oil\"\n\
                         quantity = \"value\"\nabove = 80.0\n";

/// Whether the link works in both directions, by a change of settings that is of no consequence.
fn check_link(hub: &HubStandIn, gateway: &Gateway, percent: f64) -> anyhow::Result<()> {
    let version = hub.set_desired(json!({ "deadband": { "percent": percent } }));
    let fits = |reported: &Value| {
        let desired = &reported["settings"]["desired"];
        desired["version"] == version && desired["state"] == "in-force"
    };
    let waited = hub.block_on(hub.wait_reported(fits, LINK_DEADLINE));
    waited.with_context(|| gateway.edge.describe())?;
    let (status, answer) = hub.block_on(hub.call("ping", json!({}), DEADLINE))?;
    ensure!(status == 200 && answer["deviceId"].is_string(), "{status} {answer}");
    Ok(())
}

/// Waits until the page of readiness says this of the hub.
fn wait_told(gateway: &Gateway, words: &[&str]) -> anyhow::Result<()> {
    eventually(&format!("told: {words:?}"), LINK_DEADLINE, || {
        let (_, page) = gateway.edge.get("/readyz")?;
        ensure!(words.iter().all(|word| page.contains(word)), "{page}");
        Ok(())
    })
}

fn value(gateway: &Gateway, name: &str) -> anyhow::Result<f64> {
    metric(&gateway.edge.metrics()?, name, "").with_context(|| format!("no {name}"))
}

#[test]
fn a_device_is_assigned_by_its_key_or_its_groups_and_keeps_its_hub() -> anyhow::Result<()> {
    for name in ["provision-own", "provision-group"] {
        let (service, hub) = (start_hub(DeviceProof::Key)?, start_hub(DeviceProof::Key)?);
        service.assign(&address(&hub)?);
        let mut given = Given::new(name, &[&service, &hub])?;
        given.registration(&service)?;
        if name == "provision-own" {
            given.own_key(&service)?;
        } else {
            let key = service.provisioning().group_key;
            given.file("PROVISIONING__GROUP_KEY_FILE", "group-key", &key)?;
        }
        let mut gateway = given.start(name)?;
        check_link(&hub, &gateway, 1.0)?;
        assert_eq!(service.registrations(), 1);
        let kept = gateway.plant.edge_settings.data_dir.join("hub-assignment.json");
        let said: Value = serde_json::from_slice(&std::fs::read(&kept)?)?;
        assert_eq!(said["assignedHub"], address(&hub)?.as_str(), "{said}");
        assert_eq!(said["deviceId"], "gateway-1", "{said}");
        assert_eq!(std::fs::metadata(&kept)?.permissions().mode() & 0o777, 0o600);
        // The service is away when the module starts again.
        gateway.stop()?;
        service.block_on(service.stop());
        gateway.restart()?;
        check_link(&hub, &gateway, 2.0)?;
        assert_eq!(service.registrations(), 1, "it was not asked");
        let log = gateway.edge.describe();
        for secret in [service.provisioning().symmetric_key, service.provisioning().group_key] {
            ensure!(!log.contains(&secret), "a secret in the log");
        }
        ensure!(!log.contains("SharedAccessSignature"), "a token in the log");
    }
    Ok(())
}

#[test]
fn a_service_that_is_away_or_refuses_at_the_first_start_is_told_and_holds_nothing_up()
-> anyhow::Result<()> {
    let service = start_hub(DeviceProof::Key)?;
    let mut given = Given::new("provision-refused", &[&service])?;
    given.registration(&service)?;
    given.own_key(&service)?;
    service.block_on(service.stop());
    let machines = format!("{}{OIL_LIMIT}", machine_toml(MOTOR, ""));
    let variables = given.variables.clone();
    let mut gateway = Gateway::start_with("provision-refused", &machines, None, variables)?;
    wait_told(&gateway, &["hub: ", "provisioning service", "check that it can be reached"])?;
    service.resume(true);
    for (fault, words) in [
        (RegistrationFault::Status(401, 1_000), ["401", "check the key"]),
        (RegistrationFault::Status(404, 1_000), ["404", "create an enrolment"]),
        (RegistrationFault::Failed, ["no hub is linked", "allocation policy"]),
        (RegistrationFault::Disabled, ["disabled", "enable it"]),
        (RegistrationFault::Unassigned, ["unassigned", "assign it"]),
        (RegistrationFault::Status(429, 1_000), ["429", "tried again"]),
        (RegistrationFault::NoAnswer, ["has not answered within 2 s", "can be reached"]),
    ] {
        service.registration_fault(fault);
        wait_told(&gateway, &words).with_context(|| format!("{fault:?}"))?;
    }
    // While nobody answers, machines are protected, and the module ends when it is told to.
    let mut publisher = Publisher::connect(gateway.plant.mosquitto.port(), "thermometer");
    let reading = json!({
        "sensor_id": "motor-1/oil", "timestamp": now().to_string(), "metric_type": "temperature",
        "value": 95.0,
    });
    publisher.publish("plant/motor-1/readings", reading.to_string().into_bytes())?;
    publisher.wait_acknowledged(DEADLINE)?;
    let trip = gateway.wait_for_trip(&gateway.motor, MOTOR)?;
    ensure!(trip["rule"] == "hot", "{trip}");
    service.heal();
    service.fault(Fault::Frozen);
    gateway.stop()?;
    gateway.restart()?;
    service.heal();
    check_link(&service, &gateway, 1.0)
}

#[test]
fn a_device_that_its_hub_refuses_asks_where_it_belongs_now() -> anyhow::Result<()> {
    let service = start_hub(DeviceProof::Key)?;
    let (first, second) = (start_hub(DeviceProof::Key)?, start_hub(DeviceProof::Key)?);
    let mut given = Given::new("provision-moved", &[&service, &first, &second])?;
    given.registration(&service)?;
    given.own_key(&service)?;
    service.assign(&address(&first)?);
    let gateway = given.start("provision-moved")?;
    check_link(&first, &gateway, 1.0)?;
    service.assign(&address(&second)?);
    first.fault(Fault::RefuseCredentials);
    first.drop_connections();
    check_link(&second, &gateway, 2.0)?;
    assert_eq!(service.registrations(), 2);
    // A hub that is gone refuses nobody; after some attempts the service is asked all the same.
    first.heal();
    service.assign(&address(&first)?);
    second.block_on(second.stop());
    check_link(&first, &gateway, 3.0)?;
    assert_eq!(service.registrations(), 3);
    // Refused where it belongs: the service is asked once, says the same, and is left alone.
    first.fault(Fault::RefuseCredentials);
    first.drop_connections();
    let refused = first.refusals().len();
    eventually("refused again and again", LINK_DEADLINE, || {
        let now = first.refusals().len();
        ensure!(now >= refused + 4, "{now} after {refused}");
        Ok(())
    })?;
    assert_eq!(service.registrations(), 4);
    first.heal();
    check_link(&first, &gateway, 4.0)
}

#[test]
fn a_device_shows_its_certificate_to_the_hub_and_takes_the_next_one_when_it_lies_there()
-> anyhow::Result<()> {
    for (name, proof) in
        [("x509-thumbprint", DeviceProof::Thumbprint), ("x509-authority", DeviceProof::Authority)]
    {
        let hub = start_hub(proof)?;
        let mut given = Given::new(name, &[&hub])?;
        given.certificate(&hub.device_certificate(DAY))?;
        let text = format!("HostName={};DeviceId=gateway-1;x509=true", address(&hub)?);
        given.file("CONNECTION_STRING_FILE", "connection-string", &text)?;
        let gateway = given.start(name)?;
        check_link(&hub, &gateway, 1.0)?;
        ensure!(hub.refusals().is_empty(), "{:?}", hub.refusals());
        let left = value(&gateway, "hub_certificate_expires_seconds")?;
        ensure!(left > 0.0 && left <= DAY.as_secs_f64(), "{left}");
        ensure!(gateway.edge.describe().contains("ends soon"), "{}", gateway.edge.describe());
        // The hub knows another one by now.
        hub.forget_certificates();
        let next = hub.device_certificate(DAY * 100);
        hub.drop_connections();
        wait_told(&gateway, &["NotAuthorized", "check the clock, the key or certificate"])?;
        given.certificate(&next)?;
        check_link(&hub, &gateway, 2.0)?;
        let left = value(&gateway, "hub_certificate_expires_seconds")?;
        ensure!(left > DAY.as_secs_f64() * 99.0, "{left}");
    }
    Ok(())
}

#[test]
fn a_device_is_assigned_by_its_certificate() -> anyhow::Result<()> {
    let (proof, name) = (DeviceProof::Thumbprint, "provision-x509");
    let (service, hub) = (start_hub(proof)?, start_hub(proof)?);
    service.assign(&address(&hub)?);
    let certificate = service.device_certificate(DAY);
    hub.register_certificate(&certificate);
    let mut given = Given::new(name, &[&service, &hub])?;
    given.registration(&service)?;
    given.certificate(&certificate)?;
    let gateway = given.start(name)?;
    check_link(&hub, &gateway, 1.0)?;
    let refusals = (service.refusals(), hub.refusals());
    ensure!(refusals.0.is_empty() && refusals.1.is_empty(), "{refusals:?}");
    Ok(())
}

#[test]
fn a_clock_that_is_off_is_measured_and_named_as_the_reason() -> anyhow::Result<()> {
    let hub = start_hub(DeviceProof::Key)?;
    let mut given = Given::new("hub-clock", &[&hub])?;
    let text = hub.device_connection_string_by(&address(&hub)?);
    given.file("CONNECTION_STRING_FILE", "connection-string", &text)?;
    let gateway = given.start("hub-clock")?;
    check_link(&hub, &gateway, 1.0)?;
    eventually("the clocks agree", DEADLINE, || {
        let skew = value(&gateway, "hub_clock_skew_seconds")?;
        ensure!(skew.abs() < 30.0, "{skew}");
        Ok(())
    })?;
    // Two hours: a token of an hour has ended before it was made.
    hub.shift_clock(7_200);
    hub.drop_connections();
    wait_told(&gateway, &["s behind the hub's: set it"])?;
    let skew = value(&gateway, "hub_clock_skew_seconds")?;
    ensure!((-7_230.0..-7_170.0).contains(&skew), "{skew}");
    hub.shift_clock(0);
    check_link(&hub, &gateway, 2.0)?;
    // A certificate that does not hold yet for us.
    hub.set_clock_offset(3_600);
    hub.drop_connections();
    wait_told(&gateway, &["not valid yet", "the clock of this machine is behind"])?;
    hub.set_clock_offset(0);
    check_link(&hub, &gateway, 3.0)
}

/// `sysexits.h`.
const EXIT_CONFIG: i32 = 78;

#[test]
fn what_does_not_belong_together_is_named_before_the_hub_refuses_it() -> anyhow::Result<()> {
    let service = start_hub(DeviceProof::Thumbprint)?;
    let mut given = Given::new("hub-check-config", &[&service])?;
    given.registration(&service)?;
    let (first, second) = (service.device_certificate(DAY), service.device_certificate(DAY));
    given.certificate(&first)?;
    let key = given.folder.join("key.pem");
    std::fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    let check = |given: &Given, code: i32, words: &[&str]| {
        let (found, said) = given.ask("check-config", "")?;
        ensure!(found == code && words.iter().all(|word| said.contains(word)), "{found}: {said}");
        ensure!(!said.contains("PRIVATE KEY"), "{said}");
        anyhow::Ok(said)
    };
    let id = service.provisioning().registration_id;
    let registered = format!("hub: as registration {id} of scope ");
    let said = check(&given, 0, &[&registered, "by its certificate, which ends at 20"])?;
    ensure!(said.contains("records: by kafka") && !said.contains("note: "), "{said}");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644))?;
    check(&given, 0, &["note: iot-hub.private-key-file", "has mode 0644"])?;

    // The key of another certificate; both are PEM and whole.
    std::fs::write(&key, &second.key_pem)?;
    check(&given, EXIT_CONFIG, &["iot-hub.certificate-file: does not go with private-key-file"])?;
    std::fs::write(&key, &first.key_pem)?;
    given.set("PROVISIONING__REGISTRATION_ID", "another");
    let names = format!("its common name is \"{id}\"");
    let words = [names.as_str(), "registration-id is \"another\"", "set that one"];
    check(&given, EXIT_CONFIG, &words)?;

    // The same where nobody has checked: it is told, and the service is not even asked.
    let gateway = given.start("hub-check-config")?;
    wait_told(&gateway, &words)?;
    ensure!(service.registrations() == 0, "{} registrations", service.registrations());
    ensure!(gateway.edge.describe().contains("has mode 0644"), "{}", gateway.edge.describe());
    given.set("PROVISIONING__REGISTRATION_ID", id.to_uppercase());
    check(&given, 0, &["certificate"])?;

    // One that has ended, as the clock of whoever made it was two hours behind.
    service.shift_clock(-7_200);
    given.certificate(&service.device_certificate(Duration::from_secs(60)))?;
    check(&given, EXIT_CONFIG, &["iot-hub.certificate-file: its certificate has ended at 20"])?;
    Ok(())
}

#[test]
fn records_that_could_leave_by_no_way_refuse_the_start() -> anyhow::Result<()> {
    let mut given = Given::new("hub-no-way", &[])?;
    given.variables.clear();
    let alone = "[upstream]\norder = [\"hub\"]\n";
    let words = ["upstream.order: names the hub", "no link", "set identity = \"device\""];
    for command in ["check-config", "run"] {
        let (code, said) = given.ask(command, alone)?;
        ensure!(code == EXIT_CONFIG, "{command}: {code} {said}");
        ensure!(words.iter().all(|word| said.contains(word)), "{command}: {said}");
    }
    // With Kafka beside it, it is a mistake that costs no record.
    let (code, said) = given.ask("check-config", "[upstream]\norder = [\"kafka\", \"hub\"]\n")?;
    ensure!(code == EXIT_CONFIG && said.contains(words[0]), "{code} {said}");
    Ok(())
}
