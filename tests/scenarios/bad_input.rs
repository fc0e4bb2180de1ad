//! Bad input, one test for each kind: a clear error or a dead letter, the programs live, nothing else is lost.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::{self, CloudAggregator};
use e2e_tests::edge_module::{self, EdgeModule};
use e2e_tests::eventually::eventually;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::process::ChildProcess;
use e2e_tests::publisher::{Publisher, reading_json};
use prost::Message as _;
use serde_json::Value;
use shared_proto::wire::v1;

use crate::plant::{DEADLINE, Plant, kafka, motor_bundle, now, run_dir};

const TEN_MEGABYTES: usize = 10_000_000;
const EXIT_CONFIG: i32 = 78;
const EXIT_DATA_DIR: i32 = 73;

/// One plant for all kinds of bad input, so that they meet.
struct Programs {
    plant: Plant,
    edge: Mutex<EdgeModule>,
    aggregator: Mutex<CloudAggregator>,
}

fn programs() -> anyhow::Result<&'static Programs> {
    static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
    let start = || {
        let plant = Plant::new("bad-input")?;
        let edge = Mutex::new(plant.start_edge_module()?);
        let aggregator = Mutex::new(plant.start_aggregator()?);
        anyhow::Ok(Programs { plant, edge, aggregator })
    };
    PROGRAMS
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|reason| anyhow::anyhow!("the programs do not start: {reason}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Programs {
    /// Sends good, bad, good; both good ones must arrive, and both programs live.
    fn send_between_good_ones(
        &self,
        name: &str,
        topic: &str,
        payload: impl Into<Vec<u8>>,
    ) -> anyhow::Result<()> {
        let mut publisher = Publisher::connect(self.plant.mosquitto.port(), name);
        let good = || reading_json(name, &format!("{name}/good"), "temperature", now(), 20.0);
        publisher.publish(&format!("plant/{name}/readings"), good())?;
        publisher.publish(topic, payload)?;
        publisher.publish(&format!("plant/{name}/readings"), good())?;
        publisher.wait_acknowledged(DEADLINE)?;
        self.plant.check_each_reading_once(&format!("{name}/good"), 2)?;
        self.check_alive()
    }

    fn check_alive(&self) -> anyhow::Result<()> {
        let mut edge = lock(&self.edge);
        ensure!(edge.process().is_running()?, "edge-module ended:\n{}", edge.process().tail());
        ensure!(edge.get("/healthz")?.0 == 200, "edge-module is not healthy");
        let mut aggregator = lock(&self.aggregator);
        let tail = aggregator.process().tail();
        ensure!(aggregator.process().is_running()?, "cloud-aggregator ended:\n{tail}");
        ensure!(aggregator.get("/healthz")?.0 == 200, "cloud-aggregator is not healthy:\n{tail}");
        Ok(())
    }

    /// Waits for the one dead letter whose raw bytes contain `marker`.
    fn dead_letter(&self, marker: &str) -> anyhow::Result<Value> {
        let lake = self.plant.lake();
        let sql = format!(
            "SELECT reason, detail, source, raw_length, octet_length(raw) AS kept FROM dead_letters \
             WHERE contains(CAST(raw AS VARCHAR), '{marker}')"
        );
        let mut found = eventually(&format!("a dead letter with {marker}"), DEADLINE, || {
            let rows = lake.query(&sql)?;
            ensure!(!rows.is_empty(), "none yet");
            anyhow::Ok(rows)
        })?;
        ensure!(found.len() == 1, "{} dead letters: {found:?}", found.len());
        found.pop().context("one")
    }
}

#[test]
fn broken_json_becomes_a_dead_letter() -> anyhow::Result<()> {
    let programs = programs()?;
    let payload = r#"{"sensor_id":"broken-json/bad","timestamp":"2026-"#;
    programs.send_between_good_ones("broken-json", "plant/broken-json/readings", payload)?;
    let letter = programs.dead_letter("broken-json/bad")?;
    assert_eq!(letter["reason"], "json", "{letter}");
    assert_eq!(letter["source"], "plant/broken-json/readings", "{letter}");
    Ok(())
}

#[test]
fn a_value_of_the_wrong_type_becomes_a_dead_letter() -> anyhow::Result<()> {
    let programs = programs()?;
    let payload = r#"{"sensor_id":"wrong-type/bad","timestamp":"2026-03-01T08:15:30Z","metric_type":"temperature","value":"hot"}"#;
    programs.send_between_good_ones("wrong-type", "plant/wrong-type/readings", payload)?;
    let letter = programs.dead_letter("wrong-type/bad")?;
    assert_eq!(letter["reason"], "json", "{letter}");
    Ok(())
}

#[test]
fn nan_in_json_becomes_a_dead_letter() -> anyhow::Result<()> {
    let programs = programs()?;
    let payload = r#"{"sensor_id":"nan-json/bad","timestamp":"2026-03-01T08:15:30Z","metric_type":"temperature","value":NaN}"#;
    programs.send_between_good_ones("nan-json", "plant/nan-json/readings", payload)?;
    let letter = programs.dead_letter("nan-json/bad")?;
    assert_eq!(letter["reason"], "json", "{letter}");
    Ok(())
}

#[test]
fn nan_in_protobuf_becomes_a_dead_letter() -> anyhow::Result<()> {
    let programs = programs()?;
    let payload = v1::Reading {
        sensor_id: "nan-protobuf/bad".to_owned(),
        timestamp_micros: Some(now().micros()),
        metric_type: "temperature".to_owned(),
        value: Some(f64::NAN),
        ..v1::Reading::default()
    };
    let payload = payload.encode_to_vec();
    programs.send_between_good_ones("nan-protobuf", "plant/nan-protobuf/readings", payload)?;
    // The bytes of the name are text inside the protobuf.
    let letters = eventually("the dead letter", DEADLINE, || {
        let sql = "SELECT reason FROM dead_letters WHERE source = 'plant/nan-protobuf/readings'";
        let rows = programs.plant.lake().query(sql)?;
        ensure!(!rows.is_empty(), "none yet");
        anyhow::Ok(rows)
    })?;
    assert_eq!(letters, [serde_json::json!({ "reason": "not-finite" })]);
    Ok(())
}

#[test]
fn ten_megabytes_become_a_dead_letter_that_is_cut() -> anyhow::Result<()> {
    let programs = programs()?;
    let mut payload = br#"{"sensor_id":"ten-megabytes/bad","filler":""#.to_vec();
    payload.resize(TEN_MEGABYTES, b'x');
    programs.send_between_good_ones("ten-megabytes", "plant/ten-megabytes/readings", payload)?;
    let letter = programs.dead_letter("ten-megabytes/bad")?;
    assert_eq!(letter["reason"], "too-large", "{letter}");
    assert_eq!(letter["raw_length"], TEN_MEGABYTES, "{letter}");
    assert_eq!(letter["kept"], 65_536, "{letter}");
    Ok(())
}

#[test]
fn an_unknown_topic_disturbs_nobody() -> anyhow::Result<()> {
    let programs = programs()?;
    let payload = reading_json("unknown-topic", "unknown-topic/bad", "temperature", now(), 20.0);
    programs.send_between_good_ones("unknown-topic", "plant/unknown-topic/nonsense", payload)?;
    let sql = "SELECT count(*) FROM telemetry WHERE sensor_id = 'unknown-topic/bad'";
    assert_eq!(programs.plant.lake().count(sql)?, 0);
    Ok(())
}

fn check_timestamp(name: &str, timestamp: &str, reason: &str) -> anyhow::Result<()> {
    let programs = programs()?;
    let payload = format!(
        r#"{{"sensor_id":"{name}/bad","timestamp":"{timestamp}","metric_type":"temperature","value":150.0}}"#
    );
    programs.send_between_good_ones(name, &format!("plant/{name}/readings"), payload)?;
    let letter = programs.dead_letter(&format!("{name}/bad"))?;
    assert_eq!(letter["reason"], reason, "{letter}");
    Ok(())
}

#[test]
fn a_timestamp_in_1970_becomes_a_dead_letter() -> anyhow::Result<()> {
    check_timestamp("in-1970", "1970-01-01T00:00:10Z", "timestamp-too-old")
}

#[test]
fn a_timestamp_in_2099_becomes_a_dead_letter() -> anyhow::Result<()> {
    check_timestamp("in-2099", "2099-12-31T23:59:59Z", "timestamp-in-future")
}

#[test]
fn broken_records_on_kafka_become_dead_letters_between_good_ones() -> anyhow::Result<()> {
    let programs = programs()?;
    let name = "on-kafka";
    let good = |offset| {
        let time = now().saturating_sub_micros(offset);
        reading_json(name, "on-kafka/good", "temperature", time, 20.0).into_bytes()
    };
    let bad: [&[u8]; 4] = [
        br#"{"sensor_id":"on-kafka/cut","times"#,
        br#"[1,2,"on-kafka/list"]"#,
        br#"{"sensor_id":"on-kafka/null","timestamp":"2026-03-01T08:15:30Z","metric_type":"temperature","value":null}"#,
        br#"{"sensor_id":"on-kafka/day","timestamp":"2026-02-30T08:15:30Z","metric_type":"temperature","value":1}"#,
    ];
    let mut records = vec![(name.to_owned(), good(0))];
    for (number, payload) in bad.iter().enumerate() {
        records.push((name.to_owned(), payload.to_vec()));
        records.push((name.to_owned(), good(1_000 * (number as i64 + 1))));
    }
    kafka()?.produce(&programs.plant.topic("temperature"), &records)?;
    programs.plant.check_each_reading_once("on-kafka/good", 5)?;
    for marker in ["on-kafka/cut", "on-kafka/list", "on-kafka/null", "on-kafka/day"] {
        let letter = programs.dead_letter(marker)?;
        assert_eq!(letter["source"], programs.plant.topic("temperature"), "{letter}");
    }
    programs.check_alive()
}

/// Runs a program that must end by itself; gives its exit code and what it said.
fn run_to_end(name: &str, program: &Path, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
    let dir = run_dir().join(name);
    let mut process = ChildProcess::start(name, &dir, program, arguments, &[])?;
    let status = process.wait(Duration::from_secs(30))?;
    Ok((status.code().context("killed by a signal")?, process.tail()))
}

/// With a bundle that must be refused: limits protect all the same, and the refusal is told.
fn check_bad_model(name: &str, bundle: &Path) -> anyhow::Result<()> {
    let mut plant = Plant::new(name)?;
    plant.edge_settings.bundle_dir = Some(bundle.to_owned());
    plant.edge_settings.machines = format!(
        "[[machines]]\nid = \"{name}\"\nscored-sensors = [\"{name}/bearing\"]\n\
         [[machines.limits]]\nname = \"oil-hot\"\nsensor = \"{name}/oil\"\nquantity = \"value\"\nabove = 120.0\n"
    );
    let config = plant.dir.join("edge-module/edge-module.toml");
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, name, Obedience::SpinsDown(Duration::ZERO))?;
    let mut edge = plant.start_edge_module()?;
    let config = config.to_str().context("UTF-8")?.to_owned();
    let checked = run_to_end(
        &format!("{name}-check"),
        &edge_module::program(),
        &["check-config", "--config", &config],
    )?;
    assert_eq!(checked.0, EXIT_CONFIG, "{}", checked.1);
    assert!(checked.1.contains("model.bundle-dir"), "{}", checked.1);

    let mut publisher = Publisher::connect(port, "sensors");
    let topic = format!("plant/{name}/readings");
    let hot = reading_json(name, &format!("{name}/oil"), "temperature", now(), 121.0);
    publisher.publish(&topic, hot)?;
    eventually("the limit stops the machine", DEADLINE, || {
        if machine.is_running() { Err("it runs") } else { Ok(()) }
    })?;
    eventually("the refusal is on Kafka", DEADLINE, || {
        let events = kafka()?.read_json(&plant.topic("machine-events"))?;
        let refused = events.iter().any(|event| event["event_type"] == "model-refused");
        ensure!(refused, "{} other events", events.len());
        Ok(())
    })?;
    assert!(edge.process().is_running()?);
    Ok(())
}

#[test]
fn a_missing_model_is_told_and_limits_protect() -> anyhow::Result<()> {
    check_bad_model("model-missing", &run_dir().join("no-such-bundle"))
}

#[test]
fn a_damaged_model_is_told_and_limits_protect() -> anyhow::Result<()> {
    let damaged = run_dir().join("damaged-bundle");
    std::fs::create_dir_all(&damaged)?;
    let mut flipped = false;
    for entry in std::fs::read_dir(motor_bundle())? {
        let entry = entry?;
        let mut bytes = std::fs::read(entry.path())?;
        if entry.path().extension().is_some_and(|extension| extension == "tflite") {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x40;
            flipped = true;
        }
        std::fs::write(damaged.join(entry.file_name()), bytes)?;
    }
    assert!(flipped, "the bundle has no .tflite");
    check_bad_model("model-damaged", &damaged)
}

#[test]
fn an_unwritable_data_folder_is_named_by_the_edge_module() -> anyhow::Result<()> {
    let mut plant = Plant::new("unwritable-data")?;
    // Below a file no folder can be made, not even by root.
    let file = plant.dir.join("a-file");
    std::fs::write(&file, "")?;
    plant.edge_settings.data_dir = file.join("journal");
    let mut edge = EdgeModule::start(&plant.dir.join("edge-module"), &plant.edge_settings)?;
    let status = edge.process().wait(Duration::from_secs(30))?;
    let told = edge.process().tail();
    assert_eq!(status.code(), Some(EXIT_DATA_DIR), "{told}");
    assert!(told.contains("a-file/journal"), "{told}");
    Ok(())
}

#[test]
fn an_unwritable_lake_is_named_by_the_aggregator() -> anyhow::Result<()> {
    let mut plant = Plant::new("unwritable-lake")?;
    let file = plant.dir.join("a-file");
    std::fs::write(&file, "")?;
    plant.aggregator_settings.lake = file.join("lake");
    let dir = plant.dir.join("cloud-aggregator");
    let mut aggregator = CloudAggregator::start(&dir, &plant.aggregator_settings)?;
    eventually("the folder is named", DEADLINE, || {
        let told = aggregator.process().tail();
        ensure!(told.contains("a-file/lake"), "{told}");
        Ok(())
    })?;
    let ready = aggregator.get("/readyz").is_ok_and(|(status, _)| status == 200);
    assert!(!ready, "ready without a lake");
    Ok(())
}

fn check_wrong_key(name: &str, program: &Path, toml: &str, path: &str) -> anyhow::Result<()> {
    let dir = run_dir().join(name);
    std::fs::create_dir_all(&dir)?;
    let config = dir.join("wrong.toml");
    std::fs::write(&config, toml)?;
    let config = config.to_str().context("UTF-8")?;
    for command in ["run", "check-config"] {
        let (code, told) = run_to_end(name, program, &[command, "--config", config])?;
        assert_eq!(code, EXIT_CONFIG, "{command}: {told}");
        assert!(told.contains(path), "{command}: {told}");
    }
    Ok(())
}

#[test]
fn a_wrong_key_is_named_by_the_edge_module() -> anyhow::Result<()> {
    let program = edge_module::program();
    check_wrong_key("wrong-key-edge", &program, "[kafka]\nbroker = \"x:1\"\n", "broker")
}

#[test]
fn a_wrong_value_is_named_by_the_edge_module() -> anyhow::Result<()> {
    let program = edge_module::program();
    check_wrong_key("wrong-value-edge", &program, "[mqtt]\nport = \"many\"\n", "mqtt.port")
}

#[test]
fn a_wrong_key_is_named_by_the_aggregator() -> anyhow::Result<()> {
    let program = cloud_aggregator::program();
    check_wrong_key("wrong-key-cloud", &program, "[lake]\nlocatoin = \"x\"\n", "locatoin")
}
