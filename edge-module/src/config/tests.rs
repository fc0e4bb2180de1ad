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
fn filters_by_sensor_and_metric_reach_the_core() {
    let file = r#"
[deadband]
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
fn secrets_do_not_show() {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(b"hunter2\n").expect("written");
    let secret = read_secret(file.path()).expect("readable");
    assert_eq!(secret.expose(), "hunter2");
    assert_eq!(format!("{secret:?}"), "***");
}
