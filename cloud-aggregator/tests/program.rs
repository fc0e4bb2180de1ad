//! The binary against an in-process Kafka: drained, killed, misconfigured. Tables are read by their log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use deltalake::arrow::array::AsArray as _;
use deltalake::arrow::datatypes::{Int32Type, Int64Type};
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use shared_proto::codec::encode_reading;
use shared_proto::model::{
    DeviceId, EventTime, Generation, Identity, MetricType, Reading, SensorId, Sequence,
};
use shared_proto::{Encoding, wire};

const PARTITIONS: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-03-01T08:00:00Z.
const BASE_MICROS: i64 = 1_772_352_000_000_000;

struct Plant {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
    folder: tempfile::TempDir,
}

impl Plant {
    fn new() -> Self {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        for topic in ["temperature", "pressure", "vibration"] {
            cluster.create_topic(topic, PARTITIONS, 1).expect("a topic");
        }
        let producer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .create()
            .expect("a producer");
        Self { cluster, producer, folder: tempfile::tempdir().expect("a folder") }
    }

    fn send(&self, topic: &str, key: &str, payload: &[u8], content_type: Option<&str>) {
        let mut headers = OwnedHeaders::new();
        if let Some(value) = content_type {
            headers = headers.insert(Header { key: wire::CONTENT_TYPE_HEADER, value: Some(value) });
        }
        let record = BaseRecord::to(topic).key(key).payload(payload).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    }

    fn flush(&self) {
        self.producer.flush(PATIENCE).expect("delivered");
    }

    fn lake(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    fn command(&self, verb: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-aggregator"));
        command
            .arg(verb)
            .env("AGGREGATOR__KAFKA__BROKERS", self.cluster.bootstrap_servers())
            .env("AGGREGATOR__LAKE__LOCATION", self.lake())
            .env("AGGREGATOR__ADMIN__LISTEN", "127.0.0.1:0")
            .env("AGGREGATOR__KAFKA__SESSION_TIMEOUT", "6s")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn drain(&self) -> Output {
        let drain = [("AGGREGATOR__TRIGGER__AVAILABLE_NOW", "true")];
        let output = self.command("run", &drain).output().expect("started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

fn reading(sensor: usize, second: i64, value: f64, sequence: Option<u64>) -> Reading {
    let mut reading = Reading::new(
        SensorId::new(&format!("sensor-{sensor}")).expect("a name"),
        EventTime::from_micros(BASE_MICROS + second * 1_000_000),
        MetricType::new("temperature").expect("a name"),
        value,
    );
    reading.identity = sequence.map(|sequence| Identity {
        device_id: DeviceId::new("gw-07").expect("a name"),
        generation: Generation(1),
        sequence: Sequence(sequence),
    });
    reading
}

/// Paths of the files that a table's log names.
fn files_of(lake: &Path, table: &str) -> Vec<PathBuf> {
    let mut logs: Vec<PathBuf> = match std::fs::read_dir(lake.join(table).join("_delta_log")) {
        Ok(entries) => entries.map(|entry| entry.expect("an entry").path()).collect(),
        Err(_) => return Vec::new(),
    };
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    logs.sort();
    let mut files = BTreeSet::new();
    for log in logs {
        for line in std::fs::read_to_string(log).expect("readable").lines() {
            let action: serde_json::Value = serde_json::from_str(line).expect("JSON");
            if let Some(path) = action["add"]["path"].as_str() {
                files.insert(lake.join(table).join(path));
            }
            if let Some(path) = action["remove"]["path"].as_str() {
                assert!(files.remove(&lake.join(table).join(path)), "{path} is removed twice");
            }
        }
    }
    files.into_iter().collect()
}

/// (topic, partition, offset) of each row; fails on the first that is there twice.
fn sources(lake: &Path, table: &str) -> BTreeSet<(String, i32, i64)> {
    let mut found = BTreeSet::new();
    for file in files_of(lake, table) {
        let file = std::fs::File::open(file).expect("a file that the log names");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
        for batch in reader.build().expect("Parquet") {
            let batch = batch.expect("rows");
            let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
            let topics = column("source_topic");
            let partitions = column("source_partition");
            let offsets = column("source_offset");
            for row in 0..batch.num_rows() {
                let source = (
                    topics.as_string::<i32>().value(row).to_owned(),
                    partitions.as_primitive::<Int32Type>().value(row),
                    offsets.as_primitive::<Int64Type>().value(row),
                );
                assert!(found.insert(source.clone()), "{source:?} is in {table} twice");
            }
        }
    }
    found
}

fn texts(lake: &Path, table: &str, name: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for file in files_of(lake, table) {
        let file = std::fs::File::open(file).expect("a file that the log names");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
        for batch in reader.build().expect("Parquet") {
            let batch = batch.expect("rows");
            let column = batch.column_by_name(name).expect("a column").clone();
            for text in column.as_string::<i32>().iter().flatten() {
                *counts.entry(text.to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

#[test]
fn all_that_is_there_is_drained_once_and_bad_input_becomes_dead_letters() {
    let plant = Plant::new();
    for second in 0..300 {
        let value = if second < 60 { 120.0 } else { 20.0 };
        let json = encode_reading(&reading(1, second, value, None), Encoding::Json);
        plant.send("temperature", "sensor-1", &json, None);
        let bytes = encode_reading(&reading(2, second, 20.0, None), Encoding::Protobuf);
        plant.send("pressure", "sensor-2", &bytes, Some(wire::CONTENT_TYPE_PROTOBUF));
    }
    for bad in [
        &b"not json"[..],
        b"",
        b"[1,2]",
        br#"{"sensor_id":"s","timestamp":"yesterday","metric_type":"temperature","value":1}"#,
        br#"{"sensor_id":"s","timestamp":"2026-03-01T08:00:00Z","metric_type":"temperature","value":"hot"}"#,
        br#"{"sensor_id":"s","timestamp":"1970-01-01T00:00:00Z","metric_type":"temperature","value":1}"#,
        br#"{"sensor_id":"s","timestamp":"2099-01-01T00:00:00Z","metric_type":"temperature","value":1}"#,
    ] {
        plant.send("vibration", "s", bad, None);
    }
    plant.send("vibration", "s", b"{}", Some("text/xml"));
    plant.flush();
    plant.drain();
    let lake = plant.lake();
    assert_eq!(sources(&lake, "telemetry").len(), 600);
    assert_eq!(sources(&lake, "dead_letters").len(), 8);
    let reasons = texts(&lake, "dead_letters", "reason");
    for reason in ["empty", "content-type", "timestamp", "timestamp-too-old", "timestamp-in-future"]
    {
        assert_eq!(reasons.get(reason), Some(&1), "{reason} in {reasons:?}");
    }
    assert_eq!(reasons.get("json"), Some(&3), "{reasons:?}");
    assert_eq!(texts(&lake, "anomalies", "sensor_id").get("sensor-1"), Some(&1));

    plant.drain();
    assert_eq!(sources(&lake, "telemetry").len(), 600, "a second run reads nothing again");
}

#[test]
fn repeats_of_a_device_are_dropped_also_after_a_restart() {
    let plant = Plant::new();
    let send = |sequences: std::ops::Range<u64>| {
        for sequence in sequences {
            let reading = reading(1, i64::try_from(sequence).expect("small"), 20.0, Some(sequence));
            plant.send("temperature", "sensor-1", &encode_reading(&reading, Encoding::Json), None);
        }
        plant.flush();
    };
    send(1..51);
    plant.drain();
    send(20..81);
    plant.drain();
    assert_eq!(sources(&plant.lake(), "telemetry").len(), 80);
    assert!(sources(&plant.lake(), "dead_letters").is_empty());
}

#[test]
fn killed_again_and_again_every_record_is_there_once() {
    let plant = Plant::new();
    let total = 20_000;
    for index in 0..total {
        let sensor = index % 40;
        let reading = reading(sensor, i64::try_from(index / 40).expect("small"), 20.0, None);
        let key = format!("sensor-{sensor}");
        plant.send("temperature", &key, &encode_reading(&reading, Encoding::Json), None);
    }
    plant.flush();
    let lake = plant.lake();
    let mut rows_before = 0;
    for _ in 0..3 {
        let small_epochs = [
            ("AGGREGATOR__EPOCH__RECORDS_MAX", "500"),
            ("AGGREGATOR__KAFKA__BATCH_RECORDS_MAX", "100"),
        ];
        let mut child = plant.command("run", &small_epochs).spawn().expect("started");
        rows_before = wait_for_files(&lake, rows_before, &mut child);
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
    plant.drain();
    assert_eq!(sources(&lake, "telemetry").len(), total);
}

/// Waits until the table has more files than before, or all.
fn wait_for_files(lake: &Path, before: usize, child: &mut Child) -> usize {
    let since = Instant::now();
    loop {
        let files = files_of(lake, "telemetry").len();
        if files > before + 1 {
            return files;
        }
        assert!(child.try_wait().expect("a child").is_none(), "the aggregator has ended");
        assert!(since.elapsed() < PATIENCE, "no commit within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where `AGGREGATOR_FAULT` can end maintenance, in its order.
const MAINTENANCE_STEPS: [&str; 7] = [
    "expired",
    "merge-written",
    "merge-committed",
    "checkpoint-written",
    "log-shortened",
    "vacuumed",
    "round-done",
];

#[test]
fn maintain_leaves_a_folder_that_is_no_lake_as_it_is() {
    let plant = Plant::new();
    let folder = tempfile::tempdir().expect("a folder");
    let (empty, missing) = (folder.path().join("empty"), folder.path().join("missing"));
    std::fs::create_dir(&empty).expect("made");
    for (location, words) in
        [(&empty, "there is no table telemetry in lake.location"), (&missing, "cannot be read")]
    {
        let text = location.to_str().expect("UTF-8");
        let variables = [("AGGREGATOR__LAKE__LOCATION", text)];
        let output = plant.command("maintain", &variables).output().expect("started");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(74), "{errors}");
        assert!(errors.contains(words) && errors.contains(text), "{errors}");
    }
    assert_eq!(std::fs::read_dir(&empty).expect("a folder").count(), 0);
    assert!(!missing.exists());
}

#[test]
fn maintenance_that_dies_at_any_step_loses_no_row_and_the_next_round_goes_on() {
    let plant = Plant::new();
    let lake = plant.lake();
    // What a round that dies leaves must not keep the next from working: its lease ends by itself.
    let settings = [
        ("AGGREGATOR__MAINTENANCE__FILES_MIN", "2"),
        ("AGGREGATOR__MAINTENANCE__LEASE", "1s"),
        ("AGGREGATOR__MAINTENANCE__CHECKPOINT_COMMITS", "1"),
        ("AGGREGATOR__MAINTENANCE__VACUUM_INTERVAL", "1s"),
    ];
    let maintain = |more: &[(&str, &str)]| {
        let variables = [&settings[..], more].concat();
        let since = Instant::now();
        loop {
            let output = plant.command("maintain", &variables).output().expect("started");
            if output.status.code() != Some(75) {
                return output;
            }
            assert!(since.elapsed() < PATIENCE, "the lease does not end");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let mut sent = 0;
    for (round, step) in MAINTENANCE_STEPS.into_iter().enumerate() {
        for _ in 0..2 {
            for sensor in 0..20 {
                let second = i64::try_from(sent).expect("small");
                let json = encode_reading(&reading(sensor, second, 20.0, None), Encoding::Json);
                plant.send("temperature", &format!("sensor-{sensor}"), &json, None);
                sent += 1;
            }
            plant.flush();
            plant.drain();
        }
        let before = sources(&lake, "telemetry").len();
        // 2026-03-01 is behind any retention of a day; only this step looks at it.
        let retention = ("AGGREGATOR__MAINTENANCE__RETENTION__TELEMETRY", "1d");
        let expires = if step == "expired" { vec![retention] } else { Vec::new() };
        let fault = format!("{step}:1");
        let output = maintain(&[expires, vec![("AGGREGATOR_FAULT", &fault)]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), None, "{step} has not come: {text}");
        let kept = if step == "expired" { 0 } else { before };
        assert_eq!(sources(&lake, "telemetry").len(), kept, "rows after {step}");
        let output = maintain(&[]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("telemetry: version "), "{text}");
        assert_eq!(sources(&lake, "telemetry").len(), kept, "rows in the round after {step}");
        let files = files_of(&lake, "telemetry").len();
        assert!(files <= 1, "{files} files in round {round}");
    }
    plant.drain();
    assert_eq!(sources(&lake, "telemetry").len(), sent - 40, "all but those that have expired");
}

#[test]
fn a_drain_that_finds_no_broker_ends_with_exit_code_69() {
    let plant = Plant::new();
    let variables = [
        ("AGGREGATOR__KAFKA__BROKERS", "127.0.0.1:1"),
        ("AGGREGATOR__TRIGGER__AVAILABLE_NOW", "true"),
        ("AGGREGATOR__TRIGGER__AVAILABLE_NOW_PATIENCE", "2s"),
    ];
    let output = plant.command("run", &variables).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{text}");
    assert!(text.contains("trigger.available-now-patience"), "{text}");
}

#[test]
fn an_unwritable_lake_is_a_clear_error_with_exit_code_74() {
    let plant = Plant::new();
    std::fs::write(plant.lake(), b"a file, no folder").expect("written");
    let below = plant.lake().join("tables");
    let variables = [("AGGREGATOR__LAKE__LOCATION", below.to_str().expect("UTF-8"))];
    let output = plant.command("run", &variables).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(74), "{text}");
    assert!(text.contains("lake.location") && text.contains("/lake/tables"), "{text}");
}

#[test]
fn a_lake_that_would_be_lost_is_exit_code_78_with_what_can_be_written_to() {
    let plant = Plant::new();
    for command in ["run", "check-config", "maintain"] {
        let variables = [("AGGREGATOR__LAKE__LOCATION", "memory:///x")];
        let output = plant.command(command, &variables).output().expect("started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{text}");
        for words in ["lake.location: \"memory:///x\"", "file:///FOLDER", "abfss://CONTAINER@"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    std::fs::write(plant.lake(), b"a file, no folder").expect("written");
    let output = plant.command("check-config", &[]).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("/lake\" is a file: name a folder"), "{text}");
}

#[test]
fn a_wrong_key_is_exit_code_78_with_its_path() {
    let plant = Plant::new();
    let variables = [("AGGREGATOR__KAFKA__BROKER", "x"), ("AGGREGATOR__LAKE__LOCATION", "")];
    let output = plant.command("check-config", &variables).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], "error: configuration: 2 faults");
    assert!(lines[1].starts_with("  kafka.broker: unknown key in the environment"), "{text}");
    assert_eq!(lines[2], "  lake.location: is empty");
    let output = plant.command("check-config", &variables[1..]).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert_eq!(text, "error: configuration: lake.location: is empty\n");
    assert!(plant.command("check-config", &[]).output().expect("started").status.success());
}

#[test]
fn rules_test_says_which_lines_are_left_out_and_why() {
    let plant = Plant::new();
    let input = plant.folder.path().join("readings.jsonl");
    let json = encode_reading(&reading(1, 0, 120.0, None), Encoding::Json);
    let json = String::from_utf8(json).expect("UTF-8");
    std::fs::write(&input, format!("\u{feff}{json}\nno reading\n{{}}\n")).expect("written");
    let mut command = plant.command("rules", &[]);
    command.arg("test").arg("--input").arg(&input);
    let output = command.output().expect("started");
    let (told, table) =
        (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(table.contains("1 readings, 2 other lines, 1 windows with matches"), "{table}");
    assert!(!told.contains("error:"), "{told}");
    for words in ["left out: line 2: json: ", "left out: line 3: missing-field: "] {
        assert!(told.contains(words), "{words}: {told}");
    }
}
