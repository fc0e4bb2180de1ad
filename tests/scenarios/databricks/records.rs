//! Records of all kinds, good and bad, for two readers that must make the same of them.

use anyhow::{Context as _, ensure};
use e2e_tests::kafka::Loader;
use e2e_tests::workspace_root;
use prost::Message as _;
use serde_json::{Value, json};
use shared_proto::model::EventTime;
use shared_proto::wire::{CONTENT_TYPE_PROTOBUF, v1};

use crate::plant::{Plant, kafka, now};

pub(super) const RULES: &str = r#"
[gaps]
check-interval = "0s"
[[rules]]
name = "hot"
filter = "metric_type = temperature and value > 100"
window = "1m"
threshold = "count > 5"
severity = 2
[[rules]]
name = "it's warm"
filter = "metric_type = temperature and sensor_id != 'press-9/oil'"
window = "2m"
slide = "30s"
threshold = "mean >= 85.5"
severity = 3
[[rules]]
name = "rises"
filter = "(metric_type = pressure or metric_type = nothing) and (value >= 4 or quality = good)"
window = "1m"
threshold = "rate-of-change > 0.02"
severity = 3
[[rules]]
name = "shakes"
filter = "metric_type = vibration and (value > 2.5 or features.crest_factor > 4)"
window = "1m"
by = "machine"
threshold = "rate > 0.1"
severity = 1
"#;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const DAY: i64 = 24 * 60 * MINUTE;
const SENSORS: i64 = 4;
const READINGS: i64 = 60;
/// All of one sensor and partition.
const AWKWARD: &str = "awkward";

/// What is sent to the topics of a plant.
pub(super) struct Records<'a> {
    plant: &'a Plant,
    start: EventTime,
}

impl<'a> Records<'a> {
    pub(super) fn new(plant: &'a Plant) -> Self {
        let minute = now().micros().div_euclid(MINUTE) * MINUTE;
        Self { plant, start: EventTime::from_micros(minute - DAY) }
    }

    pub(super) fn send(&self) -> anyhow::Result<()> {
        let loader = kafka()?.loader()?;
        self.send_temperatures(&loader)?;
        self.send_pressures(&loader)?;
        self.send_vibrations(&loader)?;
        self.send_awkward_lines(&loader)?;
        self.send_encodings(&loader)?;
        self.send_events(&loader)?;
        self.send_others(&loader)?;
        self.send_waveforms(&loader)?;
        loader.finish()
    }

    fn at(&self, micros: i64) -> String {
        self.start.saturating_add_micros(micros).to_string()
    }

    fn json(&self, loader: &Loader, topic: &str, key: &str, record: &Value) -> anyhow::Result<()> {
        loader.send(&self.plant.topic(topic), key, record.to_string().as_bytes())
    }

    /// Hot and cold, out of order within a minute; some days late, some from the future, some of bad quality.
    fn send_temperatures(&self, loader: &Loader) -> anyhow::Result<()> {
        for number in 0..SENSORS {
            let sensor = format!("press-{number}/oil");
            for index in 0..READINGS {
                let time = (index ^ 3) * 3 * SECOND + number;
                let value =
                    if (index + number) % 3 == 0 { 71.0 } else { 101.5 } + index as f64 / 7.0;
                let mut reading = json!({
                    "sensor_id": sensor, "machine_id": format!("press-{}", number / 2), "timestamp": self.at(time),
                    "metric_type": "temperature", "value": value, "unit": "°C", "unknown": [1, {"a": null}],
                });
                match index % 10 {
                    8 => reading["quality"] = json!("bad"),
                    9 => reading["quality"] = json!("good"),
                    _ => {}
                }
                self.json(loader, "temperature", &sensor, &reading)?;
                if index == READINGS - 10 {
                    for (name, time) in [("late", -5 * DAY), ("ahead", 3 * DAY)] {
                        reading["timestamp"] = json!(self.at(time));
                        reading["unit"] = json!(name);
                        self.json(loader, "temperature", &sensor, &reading)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Numbered by a device, with repeats at once and after others.
    fn send_pressures(&self, loader: &Loader) -> anyhow::Result<()> {
        for round in 0..2 {
            for index in 0..READINGS {
                let sequence = if round == 1 { index + 30 } else { index + 1 };
                let reading = json!({
                    "sensor_id": "press-0/line", "timestamp": self.at(sequence * 2 * SECOND), "metric_type": "pressure",
                    "value": 3.5 + sequence as f64 / 20.0, "device_id": "gw-1", "generation": u64::MAX - 1,
                    "sequence": sequence, "historical": round == 1,
                });
                self.json(loader, "pressure", "press-0/line", &reading)?;
                if index % 7 == 0 {
                    self.json(loader, "pressure", "press-0/line", &reading)?;
                }
            }
        }
        Ok(())
    }

    /// Counted by machine, with features.
    fn send_vibrations(&self, loader: &Loader) -> anyhow::Result<()> {
        for index in 0..READINGS * 2 {
            let machine = format!("press-{}", index % 2);
            let reading = json!({
                "sensor_id": format!("{machine}/bearing-{}", index % 3), "machine_id": machine,
                "timestamp": self.at(index * SECOND), "metric_type": "vibration", "value": 2.0 + (index % 5) as f64 / 5.0,
                "features": {"crest_factor": 3.0 + (index % 4) as f64 / 2.0, "kurtosis": 2.9e-7},
            });
            self.json(loader, "vibration", &machine, &reading)?;
        }
        Ok(())
    }

    /// The lines on which Spark's own reader and ours differ, and some more.
    fn send_awkward_lines(&self, loader: &Loader) -> anyhow::Result<()> {
        let topic = self.plant.topic("temperature");
        let file = workspace_root().join("shared-proto/tests/spark/from_json.jsonl");
        for line in std::fs::read_to_string(&file)?.lines() {
            let case: Value = serde_json::from_str(line)?;
            let payload = match (case["hex"].as_str(), case["line"].as_str()) {
                (Some(hex), _) => Some(bytes_of(hex)?),
                (None, Some(line)) => Some(line.as_bytes().to_vec()),
                (None, None) => None,
            };
            loader.send_as_is(&topic, AWKWARD, payload.as_deref(), None)?;
        }
        let time = self.at(0);
        let good = json!({"sensor_id": "s-9", "timestamp": time, "metric_type": "temperature", "value": 20.5});
        for (field, value) in [
            ("value", json!(null)),
            ("value", json!("7")),
            ("value", json!(true)),
            ("machine_id", json!(null)),
            ("machine_id", json!("")),
            ("machine_id", json!(7)),
            ("unit", json!("x".repeat(33))),
            ("unit", json!("")),
            ("quality", json!("fine")),
            ("quality", json!(null)),
            ("historical", json!(null)),
            ("historical", json!("true")),
            ("device_id", json!("gw")),
            ("generation", json!(1.0)),
            ("sequence", json!(-1)),
            ("features", json!({"a": null})),
            ("features", json!([1])),
            ("features", json!({})),
            ("features", json!({"f".repeat(65): 1})),
            ("sensor_id", json!("\u{2003} ")),
            ("sensor_id", json!("a\u{85}b")),
            ("sensor_id", json!("é".repeat(128))),
            ("sensor_id", json!("é".repeat(129))),
            ("metric_type", json!("m".repeat(65))),
            ("timestamp", json!(1)),
            ("timestamp", json!("2026-02-29T00:00:00Z")),
            ("timestamp", json!("2026-02-28T23:59:60+23:59")),
            ("timestamp", json!("2026-02-28 10:00:00.1234567890-00:30")),
            ("timestamp", json!("1999-12-31T23:59:59Z")),
        ] {
            let mut record = good.clone();
            record[field] = value;
            loader.send(&topic, AWKWARD, record.to_string().as_bytes())?;
        }
        for text in
            [r#"{"a":1}] {}"#, r#"{"sensor_id":"\ud800"}"#, "[]", "null", "7", " { } ", "{}}"]
        {
            loader.send(&topic, AWKWARD, text.as_bytes())?;
        }
        Ok(())
    }

    fn send_encodings(&self, loader: &Loader) -> anyhow::Result<()> {
        let topic = self.plant.topic("temperature");
        let reading = v1::Reading {
            sensor_id: "s-10".to_owned(),
            timestamp_micros: Some(self.start.micros() + 7),
            metric_type: "temperature".to_owned(),
            value: Some(0.1 + 0.2),
            unit: "K".to_owned(),
            quality: v1::Quality::Uncertain.into(),
            device_id: "gw-2".to_owned(),
            generation: Some(u64::MAX),
            sequence: Some(3),
            features: [("kurtosis".to_owned(), 1e-300)].into(),
            ..v1::Reading::default()
        };
        let good = reading.encode_to_vec();
        let changed = |change: fn(&mut v1::Reading)| {
            let mut other = v1::Reading { sequence: Some(4), ..reading.clone() };
            change(&mut other);
            other.encode_to_vec()
        };
        let bad = [
            changed(|reading| reading.value = Some(f64::NAN)),
            changed(|reading| reading.value = None),
            changed(|reading| reading.timestamp_micros = None),
            changed(|reading| reading.timestamp_micros = Some(i64::MAX)),
            changed(|reading| reading.quality = 9),
            changed(|reading| reading.sensor_id.clear()),
            changed(|reading| reading.sequence = None),
            good[..good.len() - 1].to_vec(),
            Vec::new(),
        ];
        for payload in std::iter::once(&good).chain([&good]).chain(&bad) {
            loader.send_as_is(&topic, AWKWARD, Some(payload), Some(CONTENT_TYPE_PROTOBUF))?;
        }
        let line = json!({"sensor_id": "s-11", "timestamp": self.at(9), "metric_type": "temperature", "value": 1});
        for content_type in [
            "application/json; charset=utf-8",
            "Application/JSON;a=\"x;charset=latin-1\"",
            "application/json; charset=latin-1",
            "text/plain",
            "",
            "application/x-protobuf; a=b",
        ] {
            loader.send_as_is(
                &topic,
                AWKWARD,
                Some(line.to_string().as_bytes()),
                Some(content_type),
            )?;
        }
        Ok(())
    }

    fn send_events(&self, loader: &Loader) -> anyhow::Result<()> {
        let event = |word: &str, sequence: u64| {
            json!({
                "event_type": word, "machine_id": "press-1", "timestamp": self.at(MINUTE), "trip_id": "gw-1/7/99", "value": 121.5,
                "limit": 120, "cause": "", "command_latency_micros": 1700, "device_id": "gw-1", "generation": 7, "sequence": sequence,
                "detail": "läuft \"nicht\"",
            })
        };
        let mut wrong_count = event("reset", 4);
        wrong_count["record_count"] = json!(1.5);
        let mut unnamed = event("reset", 5);
        unnamed["sensor_id"] = json!("");
        for event in [
            event("trip", 1),
            event("trip", 1),
            event("stop-confirmed", 2),
            event("dances", 3),
            wrong_count,
            unnamed,
            json!({"event_type": "reset", "machine_id": "press-1"}),
        ] {
            self.json(loader, "machine-events", "press-1", &event)?;
        }
        let event = v1::MachineEvent {
            event_type: v1::MachineEventType::Reset.into(),
            machine_id: "press-1".to_owned(),
            timestamp_micros: Some(self.start.micros()),
            operator: "Ümit".to_owned(),
            score: Some(0.5),
            ..v1::MachineEvent::default()
        };
        let none = v1::MachineEvent { event_type: 0, ..event.clone() };
        for event in [event, none] {
            let topic = self.plant.topic("machine-events");
            loader.send_as_is(
                &topic,
                "press-1",
                Some(&event.encode_to_vec()),
                Some(CONTENT_TYPE_PROTOBUF),
            )?;
        }
        Ok(())
    }

    /// What people found, and dead letters of edge modules.
    fn send_others(&self, loader: &Loader) -> anyhow::Result<()> {
        let outcome = json!({
            "outcome_id": "ticket-1", "verdict": "confirmed", "machine_id": "press-1", "timestamp": self.at(MINUTE),
            "alert_id": "AB".repeat(32), "note": "läuft\nwieder", "part": "", "reported_by": "Ümit",
        });
        let changed = |field: &str, value: Value| {
            let mut other = outcome.clone();
            other[field] = value;
            other
        };
        for outcome in [
            changed("verdict", json!("false-alarm")),
            changed("verdict", json!("perhaps")),
            changed("alert_id", json!("ab")),
            changed("timestamp", json!(self.at(3 * DAY))),
            changed("note", json!("a\u{7}b")),
            changed("outcome_id", json!(null)),
            outcome.clone(),
        ] {
            self.json(loader, "outcomes", "press-1", &outcome)?;
        }
        let letter = json!({
            "reason": "json", "detail": "what it is", "source": "plant/oil", "timestamp": self.at(0), "raw_base64": "AAEC/w==",
            "raw_length": 70_000, "device_id": "gw-1", "generation": 7, "sequence": 9,
        });
        let mut broken = letter.clone();
        broken["raw_base64"] = json!("?");
        for letter in [&letter, &letter, &broken] {
            self.json(loader, "dead-letters", "gw-1", letter)?;
        }
        Ok(())
    }

    fn send_waveforms(&self, loader: &Loader) -> anyhow::Result<()> {
        let block = v1::WaveformBlock {
            machine_id: "press-1".to_owned(),
            sensor_id: "press-1/bearing".to_owned(),
            first_sample_micros: Some(self.start.micros()),
            sample_rate_hz: 12_800.0,
            scale: Some(0.001),
            unit: "g".to_owned(),
            trip_id: "gw-1/7/99".to_owned(),
            piece: Some(1),
            samples: Some(v1::waveform_block::Samples::SamplesI16(vec![1, 0, 255, 255, 0, 128])),
            ..v1::WaveformBlock::default()
        };
        let values = vec![0.1, -1e-30, 3.4e38];
        let floats = v1::waveform_block::Samples::SamplesF32(v1::FloatSamples { values });
        let others = [
            v1::WaveformBlock {
                samples: Some(floats),
                scale: None,
                piece: Some(2),
                ..block.clone()
            },
            v1::WaveformBlock { samples: None, ..block.clone() },
            v1::WaveformBlock { piece: None, ..block.clone() },
            v1::WaveformBlock { sample_rate_hz: 0.0, ..block.clone() },
        ];
        for block in std::iter::once(&block).chain(&others) {
            let topic = self.plant.topic("waveforms");
            let payload = block.encode_to_vec();
            loader.send_as_is(&topic, "press-1", Some(&payload), Some(CONTENT_TYPE_PROTOBUF))?;
        }
        Ok(())
    }

    /// One reading of each sensor that is later than all of its windows, by what the aggregator's lake has.
    pub(super) fn close_windows(&self) -> anyhow::Result<()> {
        let sql = "SELECT sensor_id, machine_id, metric_type, source_topic, epoch_us(max(timestamp)) AS newest FROM telemetry GROUP BY ALL";
        let sensors = self.plant.lake().query(sql)?;
        ensure!(!sensors.is_empty(), "nothing was read");
        let loader = kafka()?.loader()?;
        for row in sensors {
            let newest = row["newest"].as_i64().context("a time")?;
            let topic = row["source_topic"].as_str().context("a topic")?;
            let sensor = row["sensor_id"].as_str().context("a sensor")?;
            let machine = row["machine_id"].as_str();
            let key = match (topic.ends_with("vibration"), sensor.starts_with("press-")) {
                (true, _) => machine.unwrap_or(sensor),
                (false, true) => sensor,
                (false, false) => AWKWARD,
            };
            let at = EventTime::from_micros(newest + 10 * MINUTE).to_string();
            let closer = json!({
                "sensor_id": sensor, "machine_id": machine, "metric_type": row["metric_type"], "timestamp": at, "value": 0.5,
            });
            loader.send(topic, key, closer.to_string().as_bytes())?;
        }
        loader.finish()
    }
}

fn bytes_of(hex: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<u8> = hex.bytes().collect();
    let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.chunks(2).map(byte).collect()
}
