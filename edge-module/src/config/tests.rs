use std::io::Write as _;

use super::*;

fn written(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn with(file: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let path = written(file);
    let variables =
        variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Settings::from_layers(Some(path.path()), Some(variables))
}

fn complaint(file: &str, variables: &[(&str, &str)]) -> String {
    match with(file, variables) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn defaults_are_valid() {
    let settings = with("", &[]).expect("valid defaults");
    assert_eq!(settings.device.id.as_str(), "edge-1");
    assert_eq!(settings.client_id("recording"), "edge-1-recording");
    assert!(settings.machines.is_empty());
}

#[test]
fn variables_win_over_the_file_and_the_file_over_the_defaults() {
    let settings = with(
        "[kafka]\nbrokers = \"file:1\"\nencoding = \"protobuf\"\n",
        &[("EDGE__KAFKA__BROKERS", "variable:2"), ("EDGE__MQTT__KEEP_ALIVE", "7s")],
    )
    .expect("valid");
    assert_eq!(settings.kafka.brokers, "variable:2");
    assert_eq!(settings.kafka.encoding, Encoding::Protobuf);
    assert_eq!(settings.mqtt.keep_alive, Duration::from_secs(7));
}

#[test]
fn a_machine_with_limits_becomes_an_interlock() {
    let file = r#"
[[machines]]
id = "press-1"
trip-on-silence = "5s"
[[machines.limits]]
name = "zone-d"
sensor = "press-1/bearing"
quantity = "rms"
above = 0.96
"#;
    let settings = with(file, &[]).expect("valid");
    let interlock = settings.interlock(&settings.machines[0], 0.5);
    assert_eq!(interlock.limits[0].above, Some(0.96));
    assert_eq!(interlock.score_vote, None);
    assert!(interlock.silence.expect("watched").trips);
}

#[test]
fn unknown_keys_are_named_with_path_and_source() {
    let text = complaint("[kafka]\nbroker = \"a\"\n[[machines]]\nid = \"x\"\nlimit = 3\n", &[]);
    assert!(text.contains("kafka.broker: unknown key in "), "{text}");
    assert!(text.contains("machines[0].limit: unknown key in "), "{text}");
    let text = complaint("", &[("EDGE__KAFKA__BROKER", "a")]);
    assert!(text.contains("kafka.broker: unknown key in the environment"), "{text}");
}

#[test]
fn all_faults_are_reported_at_once() {
    let file = r#"
[kafka]
brokers = ""
properties = { "acks" = "1" }
[mqtt]
reading-topics = ["plant/#/x"]
password-file = "/nonexistent/secret"
[protection]
command-topic = "plant/stop"
[[machines]]
id = "press-1"
scored-sensors = ["press-1/bearing"]
votes = 6
[[machines.limits]]
name = "a"
sensor = "press-1/bearing"
quantity = "loudness"
"#;
    let text = complaint(file, &[]);
    for part in [
        "kafka.brokers: is empty",
        "kafka.properties.acks: ",
        "mqtt.reading-topics: ",
        "mqtt.password-file: ",
        "protection.command-topic: ",
        "machines[0]: limit a has neither",
        "machines[0]: votes 6 of 5",
        "machines[0].limits.quantity: \"loudness\"",
        "machines[0].scored-sensors: needs a model",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

#[test]
fn a_sensor_belongs_to_one_machine() {
    let machine = |id: &str| {
        format!(
            "[[machines]]\nid = \"{id}\"\nlimits = [{{ name = \"hot\", sensor = \"t\", quantity = \"value\", above = 1.0 }}]\n"
        )
    };
    let text = complaint(&format!("{}{}", machine("a"), machine("b")), &[]);
    assert!(text.contains("machines[1]: sensor t already protects a"), "{text}");
    assert_eq!(complaint(&machine("a"), &[]), "accepted");
}

#[test]
fn a_machine_may_have_several_paths() {
    let file = r#"
[[machines]]
id = "press-1"
[[machines.actuators]]
kind = "modbus-tcp"
host = "10.0.0.8"
stop-coil = 3
standstill-input = 4
poll-interval = "20ms"
[[machines.actuators]]
kind = "mqtt"
port = 1884
"#;
    let settings = with(file, &[]).expect("valid");
    let [Actuator::ModbusTcp(modbus), Actuator::Mqtt { host: None, port: Some(1884) }] =
        settings.machines[0].actuators.as_slice()
    else {
        panic!("{:?}", settings.machines[0].actuators);
    };
    assert_eq!((modbus.port, modbus.unit, modbus.stop_value), (502, 1, false));
    assert_eq!((modbus.standstill_input, modbus.standstill_value), (Some(4), true));
    assert_eq!(modbus.poll_interval, Duration::from_millis(20));
    assert_eq!(modbus.heartbeat_register, None);
}

#[test]
fn faults_of_paths_are_named() {
    let path = |lines: &str| {
        let kind = "[[machines.actuators]]\nkind = \"modbus-tcp\"\n";
        complaint(&format!("[[machines]]\nid = \"press-1\"\n{kind}{lines}"), &[])
    };
    let whole = "host = \"a\"\nstop-coil = 3\n";
    for (lines, expected) in [
        ("stop-coil = 3\nstandstill-coil = 4\n".to_owned(), "host"),
        (whole.to_owned(), "machines[0].actuators[0]: needs one of standstill-coil"),
        (format!("{whole}standstill-coil = 3\n"), "actuators[0].standstill-coil: is the stop coil"),
        (format!("{whole}standstill-coil = 4\npoll-interval = \"1ms\"\n"), "poll-interval: 1ms is"),
        (format!("{whole}standstill-coil = 4\ncoil = 4\n"), "actuators[0].coil: unknown key"),
        (format!("{whole}standstill-coil = 4\nport = 0\n"), "actuators[0].port: 0 is out of range"),
    ] {
        let text = path(&lines);
        assert!(text.contains(expected), "{lines}: {text}");
    }
    let twice =
        "[[machines]]\nid = \"a\"\nactuators = [{ kind = \"mqtt\" }, { kind = \"mqtt\" }]\n";
    assert!(complaint(twice, &[]).contains("actuators[1]: is there twice"));
    let limits = "[protection]\nsensor-queue-length = 0\npath-queue-length = 1\nslice-bytes = 1\n";
    let text = complaint(limits, &[]);
    for key in ["sensor-queue-length", "path-queue-length", "slice-bytes"] {
        assert!(text.contains(&format!("protection.{key}: ")), "{text}");
    }
}

#[test]
fn secrets_do_not_show() {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(b"hunter2\n").expect("written");
    let secret = read_secret(file.path()).expect("readable");
    assert_eq!(secret.expose(), "hunter2");
    assert_eq!(format!("{secret:?}"), "***");
}
