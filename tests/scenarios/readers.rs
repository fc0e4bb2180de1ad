//! Readers of the lake that share nothing with the aggregator: all say the same of every table at each stage of its life; the views of
//! Synapse, run on DuckDB, say what the tables do; the Power BI project names what the views have. Each check is held against changes
//! that must be faults.
//!
//! The checkers lie in `tests/readers`. Spark takes a minute and more: it reads as well where `READERS_SPARK` is set (`make readers`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::program;
use e2e_tests::{setup_dir, workspace_root};
use prost::Message as _;
use serde_json::{Value, json};
use shared_proto::model::EventTime;
use shared_proto::wire::{CONTENT_TYPE_PROTOBUF, v1};

use crate::plant::{DEADLINE, Plant, kafka, now};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const DAY: i64 = 24 * 60 * MINUTE;
const SENSORS: i64 = 4;
const MINUTES: i64 = 3;
/// Of each sensor and metric in a minute.
const READINGS: i64 = 20;
/// Of them, of the first two sensors.
const HOT: i64 = 8;
/// What corrects a closed window of the first sensor, and for each four of the second.
const CORRECTIONS: i64 = 20;
const TELEMETRY: u64 = (SENSORS * MINUTES * READINGS * 3 + CORRECTIONS * 5) as u64;
/// Two sensors, two rules, three windows.
const WINDOWS: u64 = 12;
/// Of rules by sensor one, of that by machine two, and the trip.
const ALERTS: u64 = 5;
const TRIP: &str = "gw-1/7/99";
const RULES: &str = r#"
[[rules]]
name = "hot"
filter = "metric_type = temperature and value > 100"
window = "1m"
threshold = "count > 5"
severity = 2
[[rules]]
name = "warm"
filter = "metric_type = temperature"
window = "1m"
threshold = "mean > 80"
severity = 3
[[rules]]
name = "kept"
filter = "metric_type = temperature"
window = "1m"
by = "machine"
threshold = "count > 1"
severity = 4
output-mode = "complete"
"#;

/// A plant whose lake has rows in every table.
struct Filler<'a> {
    plant: &'a Plant,
    start: EventTime,
}

impl Filler<'_> {
    fn at(&self, micros: i64) -> EventTime {
        self.start.saturating_add_micros(micros)
    }

    fn send(&self, topic: &str, key: &str, records: &[Value]) -> anyhow::Result<()> {
        let records: Vec<_> = records
            .iter()
            .map(|record| (key.to_owned(), record.to_string().into_bytes()))
            .collect();
        kafka()?.produce(&self.plant.topic(topic), &records)
    }

    /// Everything but outcomes: readings of two days, of good and bad quality, with features and numbered; late ones and broken ones.
    fn fill(&self) -> anyhow::Result<()> {
        for number in 0..SENSORS {
            let machine = format!("press-{}", number / 2);
            let (mut oil, mut line, mut bearing) = (Vec::new(), Vec::new(), Vec::new());
            for index in 0..MINUTES * READINGS {
                let (minute, reading) = (index / READINGS, index % READINGS);
                let time = minute * MINUTE + reading * 3 * SECOND + number;
                let is_hot = number < 2 && reading < HOT;
                let value = if is_hot { 101.5 } else { 71.0 } + reading as f64 / 7.0;
                let mut temperature = json!({
                    "sensor_id": format!("press-{number}/oil"), "machine_id": machine,
                    "timestamp": self.at(time).to_string(), "metric_type": "temperature",
                    "value": value, "unit": "°C",
                });
                // The last of each minute is bad, the one before says that it is good, the others say nothing.
                match READINGS - reading {
                    1 => temperature["quality"] = json!("bad"),
                    2 => temperature["quality"] = json!("good"),
                    _ => {}
                }
                oil.push(temperature);
                line.push(json!({
                    "sensor_id": format!("press-{number}/line"), "machine_id": machine,
                    "timestamp": self.at(time - DAY).to_string(), "metric_type": "pressure",
                    "value": 4.0 + reading as f64 / 10.0,
                }));
                bearing.push(json!({
                    "sensor_id": format!("press-{number}/bearing"), "machine_id": machine,
                    "timestamp": self.at(time).to_string(), "metric_type": "vibration",
                    "value": 0.013 + reading as f64 / 10.0,
                    "features": {"crest_factor": 3.25, "kurtosis": 2.9},
                    "device_id": "gw-1", "generation": 7,
                    "sequence": number * MINUTES * READINGS + index + 1,
                }));
            }
            let mut late = oil.first().context("there are readings")?.clone();
            late["timestamp"] = json!(self.at(-5 * DAY).to_string());
            oil.extend([late, json!("no reading")]);
            self.send("temperature", &machine, &oil)?;
            self.send("pressure", &machine, &line)?;
            self.send("vibration", &machine, &bearing)?;
        }
        self.send_trip()
    }

    /// A trip, its reset, and the samples around it.
    fn send_trip(&self) -> anyhow::Result<()> {
        let event = |word: &str, minutes: i64| {
            let time = self.at(minutes * MINUTE).to_string();
            json!({"event_type": word, "machine_id": "press-1", "timestamp": time, "trip_id": TRIP})
        };
        let mut trip = event("trip", 1);
        for (name, value) in [
            ("cause", json!("limit")),
            ("limit", json!(120.0)),
            ("value", json!(121.5)),
            ("command_latency_micros", json!(1700)),
            ("confirmation_latency_micros", json!(250_000)),
        ] {
            trip[name] = value;
        }
        self.send("machine-events", "press-1", &[event("alarm", 0), trip, event("reset", 2)])?;
        let loader = kafka()?.loader()?;
        for piece in 1..=2_u32 {
            let block = v1::WaveformBlock {
                machine_id: "press-1".to_owned(),
                sensor_id: "press-2/bearing".to_owned(),
                first_sample_micros: Some(self.at(MINUTE + i64::from(piece) * SECOND).micros()),
                sample_rate_hz: 16_384.0,
                scale: Some(0.005),
                unit: "V".to_owned(),
                samples: Some(v1::waveform_block::Samples::SamplesI16(
                    (0..500_i16).flat_map(i16::to_le_bytes).collect(),
                )),
                trip_id: TRIP.to_owned(),
                device_id: "gw-1".to_owned(),
                generation: Some(7),
                sequence: Some(9000 + u64::from(piece)),
                piece: Some(piece),
            };
            let topic = self.plant.topic("waveforms");
            let payload = block.encode_to_vec();
            loader.send_as_is(&topic, "press-1", Some(&payload), Some(CONTENT_TYPE_PROTOBUF))?;
        }
        loader.finish()
    }

    /// Readings for a window that is closed: one sensor's count goes up, the other's mean is not over the threshold any more.
    fn correct(&self) -> anyhow::Result<()> {
        let reading = |sensor: &str, micros: i64, value: f64| {
            json!({
                "sensor_id": sensor, "machine_id": "press-0", "metric_type": "temperature",
                "timestamp": self.at(micros).to_string(), "value": value,
            })
        };
        let mut readings = Vec::new();
        for index in 0..CORRECTIONS {
            let time = index * 3 * SECOND + SECOND;
            readings.push(reading("press-0/oil", time, 110.0 + index as f64));
            readings.extend((0..4).map(|more| reading("press-1/oil", time + more, 10.0)));
        }
        self.send("temperature", "press-0", &readings)
    }

    /// What people found: confirmed, corrected to a false alarm, a note, and one that speaks of another machine. Gives their number.
    fn judge(&self) -> anyhow::Result<u64> {
        let fired = "SELECT alert_id, machine_id FROM alerts WHERE state = 'fired' ORDER BY ALL";
        let alerts = self.plant.lake().query(fired)?;
        let outcome = |id: String, verdict: &str, alert: &Value, minutes: i64| {
            let time = self.at(DAY - 180 * MINUTE + minutes * MINUTE).to_string();
            json!({
                "outcome_id": id, "verdict": verdict, "machine_id": alert["machine_id"],
                "alert_id": alert["alert_id"], "timestamp": time, "reported_by": "Ümit",
                "note": "läuft",
            })
        };
        let mut outcomes = Vec::new();
        for (number, alert) in alerts.iter().enumerate() {
            outcomes.push(outcome(format!("ticket-{number}"), "confirmed", alert, 0));
            if number % 2 == 1 {
                outcomes.push(outcome(format!("ticket-{number}"), "false-alarm", alert, 60));
            }
        }
        let first = alerts.first().context("there are alerts")?;
        let mut elsewhere = outcome("ticket-elsewhere".to_owned(), "false-alarm", first, 90);
        elsewhere["machine_id"] = json!("press-9");
        outcomes.extend([elsewhere, outcome("ticket-note".to_owned(), "note", first, 90)]);
        self.send("outcomes", "press-0", &outcomes)?;
        Ok(outcomes.len() as u64)
    }
}

fn make_lake() -> anyhow::Result<PathBuf> {
    let mut plant = Plant::new("readers")?;
    let settings = &mut plant.aggregator_settings;
    settings.group_by = "machine";
    settings.more = RULES.to_owned();
    // The stages of the lake come one by one, later.
    let maintenance = ("AGGREGATOR__MAINTENANCE__ENABLED".to_owned(), "false".to_owned());
    settings.environment.push(maintenance);
    let minute = now().micros().div_euclid(MINUTE) * MINUTE;
    let filler = Filler { plant: &plant, start: EventTime::from_micros(minute - DAY) };
    filler.fill()?;
    let mut aggregator = plant.start_aggregator()?;
    plant.wait_for_count("SELECT count(*) FROM anomalies WHERE revision = 1", WINDOWS)?;
    plant.wait_for_count("SELECT count(*) FROM alerts WHERE state = 'fired'", ALERTS)?;
    filler.correct()?;
    let outcomes = filler.judge()?;
    for (table, rows) in [
        ("telemetry", TELEMETRY),
        ("anomalies WHERE revision > 1", 3),
        ("anomalies WHERE NOT is_anomaly", 1),
        ("alerts WHERE state = 'resolved'", 1),
        ("outcomes", outcomes),
        ("waveforms", 2),
        ("late_readings", SENSORS as u64),
        ("dead_letters", SENSORS as u64),
        ("machine_events", 3),
        ("current_windows", 1),
    ] {
        plant.wait_for_count(&format!("SELECT count(*) FROM {table}"), rows)?;
    }
    aggregator.process().terminate()?;
    let status = aggregator.process().wait(DEADLINE)?;
    ensure!(status.success(), "the aggregator ended with {status}");
    let telemetry = plant.lake().count("SELECT count(*) FROM telemetry")?;
    ensure!(telemetry == TELEMETRY, "{telemetry} readings of {TELEMETRY}");
    Ok(plant.aggregator_settings.lake.clone())
}

/// A lake of the real aggregator, with rows in every table and corrections of all kinds. Nobody writes to it any more.
fn lake() -> anyhow::Result<&'static Path> {
    static LAKE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = LAKE.get_or_init(|| make_lake().map_err(|error| format!("{error:#}")));
    made.as_deref().map_err(|reason| anyhow::anyhow!("making the lake: {reason}"))
}

/// Runs a script of `tests/readers` to its end and gives what it printed.
fn check(script: &str, arguments: &[&Path], more: &[&str]) -> anyhow::Result<String> {
    let python = setup_dir().join("readers-venv/bin/python");
    let output = Command::new(&python)
        .arg("-B")
        .arg(workspace_root().join("tests/readers").join(script))
        .args(arguments)
        .args(more)
        .output()
        .with_context(|| {
            format!("{}: deployment-manifests/local/setup test makes it", python.display())
        })?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {}: {said}{errors}", output.status);
    Ok(said)
}

#[test]
fn every_reader_finds_the_same_rows_after_each_stage_of_a_lake() -> anyhow::Result<()> {
    let lake = lake()?;
    let program = program().display().to_string();
    let jars = setup_dir().join("readers-jars").display().to_string();
    let spark = setup_dir().join("spark/bin/python").display().to_string();
    let spark_jars = setup_dir().join("spark-jars").display().to_string();
    let mut more = vec!["--aggregator", &program, "--jars", &jars];
    if std::env::var_os("READERS_SPARK").is_some() {
        more.extend(["--spark", &spark, &spark_jars]);
    }
    let folder = tempfile::tempdir()?;
    let said = check("matrix.py", &[lake, &folder.path().join("stages")], &more)?;
    let readers = if more.contains(&"--spark") { 5 } else { 4 };
    let agreed = format!("{readers} readers agree at 5 stages: ");
    ensure!(said.contains(&agreed), "{said}");
    ensure!(said.contains(&format!("telemetry {}", TELEMETRY + 1)), "{said}");
    eprintln!("{said}");
    Ok(())
}

#[test]
fn views_of_synapse_are_as_the_contract_has_them_and_say_what_the_tables_do() -> anyhow::Result<()>
{
    let lake = lake()?;
    let said = check("check_synapse.py", &[&workspace_root(), lake], &[])?;
    ensure!(said.contains("trends.verdict_days: "), "{said}");
    Ok(())
}

#[test]
fn power_bi_project_names_what_the_views_have() -> anyhow::Result<()> {
    let said = check("check_power_bi.py", &[&workspace_root()], &[])?;
    ensure!(said.contains("visuals name what is there"), "{said}");
    Ok(())
}

#[test]
fn checks_of_views_and_project_notice_every_change_that_breaks_them() -> anyhow::Result<()> {
    let said = check("mutations.py", &[&workspace_root(), lake()?], &[])?;
    ensure!(said.contains("changes are noticed"), "{said}");
    Ok(())
}
