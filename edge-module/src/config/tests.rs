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

/// The settings of a file with this text, or its faults.
pub(super) fn load(text: &str) -> Result<Settings, String> {
    with(text, &[]).map_err(|faults| faults.to_string())
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
    let interlock = settings.interlock(&settings.machines[0]);
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
fn all_values_of_a_wrong_type_are_reported_at_once() {
    let file = "[mqtt]\nport = \"x\"\nkeep-alive = 5\n[journal]\nqueue-length = \"long\"\n\
                [[machines]]\nvotes = 1\n[[machines]]\nid = \"b\"\nvotes = \"many\"\n";
    let text = complaint(file, &[]);
    for part in [
        "mqtt.port",
        "mqtt.keep-alive",
        "journal.queue-length",
        "machines[0].id",
        "machines[1].votes",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert_eq!(text.lines().count(), 5, "{text}");
}

#[test]
fn all_faults_are_reported_at_once() {
    let file = r#"
[kafka]
brokers = ""
properties = { "acks" = "1", "socket.keepalive" = "true", "message.max.bytes" = "many" }
[mqtt]
reading-topics = ["plant/#/x", "hall/+/x", "hall/{machine}/#", "{machine}/{machine}", "plant/{press}"]
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
        "kafka.properties.socket.keepalive: No such configuration property",
        "kafka.properties.message.max.bytes: ",
        "mqtt.reading-topics: \"plant/#/x\" is no MQTT topic filter",
        "mqtt.reading-topics: \"hall/{machine}/#\" overlaps \"hall/+/x\"",
        "mqtt.reading-topics: \"{machine}/{machine}\" has {machine} more than once",
        "mqtt.reading-topics: \"plant/{press}\" is no MQTT topic filter",
        "mqtt.password-file: ",
        "protection.command-topic: ",
        "machines[0]: limit a has neither",
        "machines[0]: votes 6 of 5",
        "machines[0].limits.quantity: \"loudness\"",
        "machines[0].scored-sensors: press-1/bearing needs the model \"default\": set model.bundle-dir",
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
fn filters_by_sensor_and_metric_reach_the_core() {
    let file = r#"
[deadband]
score = 0.1
heartbeat = "30s"
[[deadband.rules]]
sensor-prefix = "press-1/"
metric-type = "pressure"
absolute = 0.5
[[aggregation]]
metric-type = "temperature"
interval = "10s"
value = "mean"
statistics = ["min", "max"]
[waveforms]
before = "9s"
"#;
    let settings = with(file, &[("EDGE__WAVEFORMS__AFTER", "3s")]).expect("valid");
    let deadband = settings.deadband_settings();
    assert_eq!(deadband.rules.len(), 1);
    assert_eq!(deadband.rules[0].absolute, 0.5);
    assert_eq!(deadband.rules[0].heartbeat, Duration::from_secs(30), "as in [deadband]");
    assert_eq!((deadband.score, deadband.rules[0].score), (0.1, 0.1), "as in [deadband]");
    let aggregation = settings.aggregation_settings();
    assert_eq!(aggregation.rules[0].interval, Duration::from_secs(10));
    assert_eq!(aggregation.rules[0].statistics.len(), 2);
    assert_eq!(aggregation.always_above, deadband.always_above);
    let snapshots = settings.snapshot_settings();
    assert_eq!((snapshots.before.as_secs(), snapshots.after.as_secs()), (9, 3));
    assert!(snapshots.piece_bytes_max < crate::store::RECORD_BYTES_MAX);
}

#[test]
fn wrong_filters_are_named() {
    let file = r#"
aggregation = [{ interval = "0s", value = "max" }]
[deadband]
rules = [{ absolute = -1.0 }]
[waveforms]
before = "0s"
bytes-max = 1
after = "2m"
queue-length = 0
[kafka.topics]
waveforms = ""
"#;
    let text = complaint(file, &[]);
    for part in [
        "aggregation: aggregation rule 0: interval 0ns",
        "deadband: dead band absolute is -1",
        "waveforms: before is 0",
        "waveforms.bytes-max: 1 is out of range",
        "waveforms.length-max: 60s is out of range: 120s",
        "waveforms.queue-length: 0 is out of range",
        "kafka.topics.waveforms: is empty",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let text = complaint("[[aggregation]]\ninterval = \"1s\"\nvalue = \"median\"\n", &[]);
    assert!(text.contains("median"), "{text}");
    let text = complaint("[[deadband.rules]]\nabsolut = 1.0\n", &[]);
    assert!(text.contains("deadband.rules[0].absolut: unknown key"), "{text}");
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

const FULL_MACHINE: &str = r#"
[protection]
shelving-max = "8h"
after-restart = "tripped"
[[machines]]
id = "press-1"
on-fault = "trip"
startup-suppression = "10s"
dry-run = true
[[machines.limits]]
name = "hot"
sensor = "press-1/oil"
quantity = "value"
above = 120.0
hysteresis = 5.0
on-delay = "3s"
off-delay = "1s"
action = "alarm"
during-startup = "suppress"
[[machines.limits]]
name = "cold"
sensor = "press-1/oil"
quantity = "value"
below = 1.0
[[machines.sensors]]
id = "press-1/oil"
range = { min = -50, max = 300.0 }
frozen-after = "5m"
frozen-tolerance = 0.05
sample-rate = 1.0
missing-samples-max = 0.2
clock-drift-max = "30s"
[[machines.sensors]]
id = "press-1/bearing"
saturation = 0.01
full-scale = 48.0
recovers-after = "0s"
on-fault = "alarm"
"#;

#[test]
fn rules_and_conditions_of_a_machine_become_an_interlock() {
    use edge_core::interlock::{DuringStartup, RuleAction};

    let settings = with(FULL_MACHINE, &[]).expect("valid");
    assert_eq!(settings.protection.after_restart, AfterRestart::Tripped);
    let interlock = settings.interlock(&settings.machines[0]);
    let hot = &interlock.limits[0];
    assert_eq!((hot.hysteresis, hot.on_delay), (5.0, Duration::from_secs(3)));
    assert_eq!((hot.action, hot.during_startup), (RuleAction::Alarm, DuringStartup::Suppress));
    let cold = &interlock.limits[1];
    assert_eq!((cold.hysteresis, cold.on_delay), (0.0, Duration::ZERO));
    assert_eq!((cold.action, cold.during_startup), (RuleAction::Trip, DuringStartup::Enforce));
    let [oil, bearing] = &interlock.sensors[..] else { panic!("two sensors") };
    assert_eq!((oil.on_fault, bearing.on_fault), (RuleAction::Trip, RuleAction::Alarm));
    assert_eq!(oil.condition.range.expect("a range").max, 300.0);
    assert_eq!(oil.condition.rate.expect("a rate").tolerance, 0.05);
    assert_eq!(oil.condition.recovers_after, Duration::from_secs(1));
    assert_eq!(bearing.condition.saturation.expect("a rule").full_scale, Some(48.0));
    let silence = interlock.silence.expect("watched");
    assert_eq!((silence.sensors.len(), silence.trips), (2, false));
    assert_eq!(interlock.shelving_max, Duration::from_secs(8 * 3600));
    assert!(interlock.dry_run);
}

#[test]
fn a_rule_version_names_what_the_rules_mean() {
    let version = |text: &str| {
        let settings = with(text, &[]).expect("valid");
        settings.interlock(&settings.machines[0]).rule_version
    };
    let full = version(FULL_MACHINE);
    assert_eq!(full.len(), 12);
    assert!(full.bytes().all(|byte| byte.is_ascii_hexdigit()), "{full}");
    assert_eq!(version(&FULL_MACHINE.replace("120.0", "120")), full, "the same number");
    assert_eq!(version(&FULL_MACHINE.replace("\"10s\"", "\"10000ms\"")), full, "the same time");
    let start = FULL_MACHINE.find("[[machines.limits]]").expect("limits");
    let second = FULL_MACHINE.rfind("[[machines.limits]]").expect("limits");
    let end = FULL_MACHINE.find("[[machines.sensors]]").expect("sensors");
    let swapped = [
        &FULL_MACHINE[..start],
        &FULL_MACHINE[second..end],
        &FULL_MACHINE[start..second],
        &FULL_MACHINE[end..],
    ];
    assert_eq!(version(&swapped.concat()), full, "in another order");
    for (from, to) in [
        ("120.0", "120.5"),
        ("hysteresis = 5.0", "hysteresis = 4.0"),
        ("dry-run = true", "dry-run = false"),
        ("\"8h\"", "\"7h\""),
        ("0.2", "0.3"),
    ] {
        assert_ne!(version(&FULL_MACHINE.replace(from, to)), full, "{from} to {to}");
    }
}

#[test]
fn rules_and_conditions_that_cannot_work_are_named() {
    let check = |from: &str, to: &str, expected: &str| {
        let text = complaint(&FULL_MACHINE.replacen(from, to, 1), &[]);
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    };
    check("\"10s\"", "\"0s\"", "machines[0].startup-suppression: is 0 although");
    check("\"10s\"", "\"11m\"", "startup suppression is 660s, at most 600s");
    check("saturation = 0.01", "", "machines[0].sensors.full-scale: press-1/bearing: needs");
    check("sample-rate = 1.0", "", "machines[0].sensors.missing-samples-max: press-1/oil");
    check("max = 300.0", "max = -60", "sensor press-1/oil: range -50 to -60 is empty");
    check("\"press-1/bearing\"", "\"press-1/oil\"", "sensor press-1/oil is there twice");
    check("\"hot\"", "\"score\"", "limit name \"score\"");
    check("hysteresis = 5.0", "hysteresis = -5.0", "limit hot: hysteresis -5");
    check("\"8h\"", "\"8d\"", "longest shelving is 691200s, at most 604800s");
    check("\"tripped\"", "\"armed\"", "after-restart");
    check("max = 300.0", "maximum = 300.0", "machines[0].sensors[0].range.maximum: unknown key");
    check(
        "[protection]",
        "[protection]\nshelve-topic = \"plant/shelve\"",
        "protection.shelve-topic: ",
    );
}

#[test]
fn machine_ids_that_brokers_or_file_names_refuse_are_refused() {
    let id = |id: &str| complaint(&format!("[[machines]]\nid = \"{id}\"\n"), &[]);
    for refused in ["new\u{fffe}", "\u{fdd0}", "x\u{1ffff}"] {
        assert!(id(refused).contains("machines[0].id: "), "{refused:?}: {}", id(refused));
    }
    assert!(id(&"x".repeat(121)).contains("has 121 bytes, at most 120"));
    assert_eq!(id(&"x".repeat(120)), "accepted");
    assert_eq!(id("Presse-ü 1"), "accepted");
}

#[test]
fn a_module_of_iot_edge_has_the_name_of_its_device_unless_something_else_is_said() {
    let of = |variables: &[(&str, &str)]| {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let variables = variables.iter().map(owned).collect();
        Settings::from_layers(None, Some(variables)).map(|it| it.device.id.as_str().to_owned())
    };
    assert_eq!(of(&[]).expect("valid"), "edge-1");
    assert_eq!(of(&[("IOTEDGE_DEVICEID", "gw-07")]).expect("valid"), "gw-07");
    let both = [("IOTEDGE_DEVICEID", "gw-07"), ("EDGE__DEVICE__ID", "press-hall")];
    assert_eq!(of(&both).expect("valid"), "press-hall");
    let odd = of(&[("IOTEDGE_DEVICEID", "a\"\nid = \"b")]).expect_err("no name").to_string();
    assert!(odd.contains("device.id") || odd.contains("device"), "{odd}");
}
