//! What filtering saves on real recordings, and the error it introduces:
//! `DATA_DIR=… cargo bench -p edge-module --bench filtering`.
//!
//! `skab`: a pump's sensors each second. `femto`: bearings run to failure, temperature each minute, vibration as the RMS of a
//! window each 10 to 40 s. `adi_motor`: vibration as the RMS of consecutive windows of 2048 samples. Every reading goes
//! through the aggregation and the dead band as in the module; bytes are those of the journal's records.
//!
//! The error is the distance of a reading from what a reader of the topic holds for its time: with a dead band the last value
//! sent, with aggregation the value of its interval.
#![expect(clippy::print_stdout, reason = "a benchmark is read by a person")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use edge_core::aggregate::{AggregationRule, AggregationSettings, Aggregator, Statistic};
use edge_core::deadband::{Deadband, DeadbandRule, DeadbandSettings, Verdict};
use edge_core::features::FeatureExtractor;
use shared_proto::Encoding;
use shared_proto::codec::encode_reading;
use shared_proto::model::{EventTime, MetricType, Reading, SensorId};

const WINDOW_SAMPLES: usize = 2048;
const THRESHOLD: f64 = 100.0;
/// As by default; no recording here is scored.
const SCORE_WIDTH: f64 = 0.05;
const SECOND: i64 = 1_000_000;
/// Where recordings without a calendar begin: 2026-03-01T00:00:00Z.
const ORIGIN: i64 = 1_772_323_200 * SECOND;

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Filter {
    name: &'static str,
    deadband: DeadbandSettings,
    aggregation: AggregationSettings,
}

#[derive(Default)]
struct Figures {
    records_in: u64,
    records_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    above_in: u64,
    above_out: u64,
    largest_error: f64,
}

fn main() -> Outcome<()> {
    let dir = std::env::var_os("DATA_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
        PathBuf::from,
    );
    let mut readings = skab(&dir.join("skab"))?;
    readings.extend(femto(&dir.join("femto"))?);
    readings.extend(motor(&dir.join("adi_motor"))?);
    print_machine();
    println!("{} readings of {} sensors", readings.len(), sensors(&readings));
    println!(
        "| filter | metric | records in | out | saved | bytes in | out | saved | largest error | above {THRESHOLD} in | out |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for filter in filters()? {
        let started = Instant::now();
        let figures = run(&filter, &readings)?;
        let nanos = started.elapsed().as_nanos() / readings.len() as u128;
        for (metric, found) in figures {
            println!(
                "| {} | {metric} | {} | {} | {} | {} | {} | {} | {:.3} {} | {} | {} |",
                filter.name,
                found.records_in,
                found.records_out,
                saved(found.records_in, found.records_out),
                found.bytes_in,
                found.bytes_out,
                saved(found.bytes_in, found.bytes_out),
                found.largest_error,
                unit(&metric),
                found.above_in,
                found.above_out,
            );
        }
        println!(
            "| {} | | | | | | | | {nanos} ns a reading, encoding and this table's sums included | | |",
            filter.name
        );
    }
    Ok(())
}

fn print_machine() {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    println!(
        "processor: {} ({count} visible), profile: {}",
        model.unwrap_or("unknown").trim_start_matches([' ', '\t', ':']),
        if cfg!(debug_assertions) { "dev" } else { "release" }
    );
}

fn sensors(readings: &[Reading]) -> usize {
    let mut names: Vec<&str> = readings.iter().map(|reading| reading.sensor_id.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}

fn saved(before: u64, after: u64) -> String {
    format!("{:.1} %", 100.0 * (1.0 - after as f64 / before as f64))
}

fn unit(metric: &str) -> &'static str {
    match metric {
        "temperature" => "Cel",
        "pressure" => "bar",
        "vibration" => "g or V",
        _ => "A, V or l/min",
    }
}

fn filters() -> Outcome<Vec<Filter>> {
    let always_above = BTreeMap::from([(MetricType::new("temperature")?, THRESHOLD)]);
    let deadband = |percent, rules| DeadbandSettings {
        absolute: 0.0,
        percent,
        score: SCORE_WIDTH,
        heartbeat: Duration::from_secs(60),
        always_above: always_above.clone(),
        sensors_max: 100_000,
        rules,
    };
    let rule = |metric: &str, absolute, percent| -> Outcome<DeadbandRule> {
        Ok(DeadbandRule {
            sensor_prefix: String::new(),
            metric_type: Some(MetricType::new(metric)?),
            absolute,
            percent,
            score: SCORE_WIDTH,
            heartbeat: Duration::from_secs(600),
        })
    };
    let rules = vec![
        rule("temperature", 0.5, 0.0)?,
        rule("pressure", 0.35, 0.0)?,
        rule("vibration", 0.0, 10.0)?,
        rule("other", 0.0, 5.0)?,
    ];
    let none = || AggregationSettings {
        rules: Vec::new(),
        always_above: always_above.clone(),
        sensors_max: 100_000,
    };
    let every = |seconds, value| {
        let rule = AggregationRule {
            sensor_prefix: String::new(),
            metric_type: None,
            interval: Duration::from_secs(seconds),
            value,
            statistics: vec![Statistic::Min, Statistic::Max],
        };
        AggregationSettings { rules: vec![rule], ..none() }
    };
    let filter = |name, deadband, aggregation| Filter { name, deadband, aggregation };
    Ok(vec![
        filter("none (default)", deadband(0.0, Vec::new()), none()),
        filter("1 %, heartbeat 60 s", deadband(1.0, Vec::new()), none()),
        filter("by metric, heartbeat 600 s", deadband(0.0, rules), none()),
        filter("mean of 10 s, min, max", deadband(0.0, Vec::new()), every(10, Statistic::Mean)),
        filter("mean of 60 s, min, max", deadband(0.0, Vec::new()), every(60, Statistic::Mean)),
    ])
}

fn run(filter: &Filter, readings: &[Reading]) -> Outcome<BTreeMap<String, Figures>> {
    let mut deadband = Deadband::new(filter.deadband.clone()).map_err(|f| format!("{f:?}"))?;
    let mut aggregator =
        Aggregator::new(filter.aggregation.clone()).map_err(|f| format!("{f:?}"))?;
    let is_aggregating = !filter.aggregation.rules.is_empty();
    let mut figures: BTreeMap<String, Figures> = BTreeMap::new();
    let mut held: BTreeMap<SensorId, Held> = BTreeMap::new();
    let now = Instant::now();
    for reading in readings {
        let bytes = encode_reading(reading, Encoding::Protobuf).len() as u64;
        let found = figures.entry(reading.metric_type.to_string()).or_default();
        found.records_in += 1;
        found.bytes_in += bytes;
        found.above_in += is_above(reading);
        let outcome = aggregator.handle_reading(reading, bytes, now);
        let held = held.entry(reading.sensor_id.clone()).or_default();
        if let Some(closed) = outcome.closed {
            held.close(closed.reading.value, found);
            send(&closed.reading, found);
        }
        if !outcome.is_passed {
            held.folded.push(reading.value);
        } else if let Verdict::Send(_) = deadband.handle(reading) {
            held.last = Some(reading.value);
            send(reading, found);
        } else if let Some(last) = held.last {
            found.largest_error = found.largest_error.max((reading.value - last).abs());
        }
    }
    for closed in aggregator.close_all() {
        let found = figures.entry(closed.reading.metric_type.to_string()).or_default();
        held.entry(closed.reading.sensor_id.clone())
            .or_default()
            .close(closed.reading.value, found);
        send(&closed.reading, found);
    }
    for (metric, found) in &figures {
        if found.above_in != found.above_out {
            return Err(format!("{metric}: filtering changed what the cloud counts").into());
        }
        if !is_aggregating && found.records_out == 0 {
            return Err(format!("{metric}: nothing was sent").into());
        }
    }
    Ok(figures)
}

/// What a reader of the topic holds of one sensor.
#[derive(Default)]
struct Held {
    last: Option<f64>,
    folded: Vec<f64>,
}

impl Held {
    fn close(&mut self, value: f64, figures: &mut Figures) {
        for folded in self.folded.drain(..) {
            figures.largest_error = figures.largest_error.max((folded - value).abs());
        }
    }
}

fn is_above(reading: &Reading) -> u64 {
    u64::from(reading.metric_type.as_str() == "temperature" && reading.value > THRESHOLD)
}

fn send(reading: &Reading, figures: &mut Figures) {
    figures.records_out += 1;
    figures.bytes_out += encode_reading(reading, Encoding::Protobuf).len() as u64;
    figures.above_out += is_above(reading);
}

fn reading(sensor: &str, metric: &str, micros: i64, value: f64) -> Outcome<Reading> {
    let time = EventTime::from_micros(micros);
    Ok(Reading::new(SensorId::new(sensor)?, time, MetricType::new(metric)?, value))
}

/// Columns of the pump's files, each a sensor.
fn skab(dir: &Path) -> Outcome<Vec<Reading>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    let mut readings = Vec::new();
    for file in files {
        let unpacked = Command::new("gzip").arg("-dc").arg(&file).output()?;
        let text = String::from_utf8(unpacked.stdout)?;
        let run = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let run = run.trim_end_matches(".csv.gz");
        let mut lines = text.lines().map(|line| line.split(';').collect::<Vec<_>>());
        let header = lines.next().ok_or("no header")?;
        for line in lines {
            let time = line.first().ok_or("short line")?.replace(' ', "T") + "Z";
            let time = EventTime::parse(&time).ok_or_else(|| format!("{time} is no time"))?;
            for (column, value) in header.iter().zip(&line).skip(1) {
                let metric = match *column {
                    "Accelerometer1RMS" | "Accelerometer2RMS" => "vibration",
                    "Temperature" | "Thermocouple" => "temperature",
                    "Pressure" => "pressure",
                    "anomaly" | "changepoint" => continue,
                    _ => "other",
                };
                let sensor = format!("{run}/{column}");
                readings.push(reading(&sensor, metric, time.micros(), value.parse()?)?);
            }
        }
    }
    Ok(readings)
}

/// Temperature each minute, and the RMS of one window of each snapshot.
fn femto(dir: &Path) -> Outcome<Vec<Reading>> {
    let mut readings = Vec::new();
    let temperature = Csv::read(&dir.join("temperature.csv"))?;
    for row in &temperature.rows {
        let bearing = temperature.cell(row, "bearing")?;
        let seconds = temperature.number(row, "seconds_from_start")?;
        let time = ORIGIN + (seconds * 1e6) as i64;
        let value = temperature.number(row, "mean_c")?;
        readings.push(reading(&format!("{bearing}/ring"), "temperature", time, value)?);
    }
    let snapshots = Csv::read(&dir.join("snapshots.csv"))?;
    let mut extractor = FeatureExtractor::new(WINDOW_SAMPLES, 25_600.0, &[])?;
    let mut arrays: BTreeMap<String, Vec<i16>> = BTreeMap::new();
    for row in &snapshots.rows {
        let bearing = snapshots.cell(row, "bearing")?.to_owned();
        let array = match arrays.get(&bearing) {
            Some(array) => array,
            None => {
                let array = npy(&dir.join(format!("{bearing}.npy")))?;
                arrays.entry(bearing.clone()).or_insert(array)
            }
        };
        let index: usize = snapshots.cell(row, "row")?.parse()?;
        let seconds = snapshots.number(row, "seconds_from_start")?;
        let samples: Vec<f32> = array[index * 2560 * 2..]
            .iter()
            .step_by(2)
            .take(WINDOW_SAMPLES)
            .map(|value| f32::from(*value) * 0.0016)
            .collect();
        let rms = extractor.extract(&samples)?.rms;
        let time = ORIGIN + (seconds * 1e6) as i64;
        readings.push(reading(&format!("{bearing}/housing"), "vibration", time, rms)?);
    }
    Ok(readings)
}

/// The RMS of consecutive windows of each recording, all axes.
fn motor(dir: &Path) -> Outcome<Vec<Reading>> {
    let array = npy(&dir.join("recordings.npy"))?;
    let mut extractor = FeatureExtractor::new(WINDOW_SAMPLES, 20_000.0, &[])?;
    let mut readings = Vec::new();
    for (row, recording) in array.chunks_exact(40_000 * 3).enumerate() {
        for axis in 0..3 {
            let volts: Vec<f32> = recording
                .iter()
                .skip(axis)
                .step_by(3)
                .map(|value| f32::from(*value) * 3e-5)
                .collect();
            for (index, window) in volts.chunks_exact(WINDOW_SAMPLES).enumerate() {
                let time = ORIGIN + (index * WINDOW_SAMPLES) as i64 * 50;
                let rms = extractor.extract(window)?.rms;
                readings.push(reading(&format!("motor-{row}/{axis}"), "vibration", time, rms)?);
            }
        }
    }
    Ok(readings)
}

/// Values of a NumPy file of version 1.0 with 16-bit integers; `DATA.md` gives the shapes.
fn npy(path: &Path) -> Outcome<Vec<i16>> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if !bytes.starts_with(b"\x93NUMPY\x01\x00") || bytes.len() < 128 {
        return Err(format!("{} is no NumPy file of version 1.0", path.display()).into());
    }
    let pairs = bytes[128..].chunks_exact(2);
    Ok(pairs.map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect())
}

struct Csv {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Csv {
    fn read(path: &Path) -> Outcome<Self> {
        let text = std::fs::read_to_string(path)?;
        let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect());
        let columns = lines.next().ok_or("no header")?;
        Ok(Self { columns, rows: lines.collect() })
    }

    fn cell<'a>(&self, row: &'a [String], column: &str) -> Outcome<&'a str> {
        let index = self.columns.iter().position(|name| name == column);
        let index = index.ok_or_else(|| format!("no column {column} in {:?}", self.columns))?;
        Ok(row.get(index).ok_or("short line")?)
    }

    fn number(&self, row: &[String], column: &str) -> Outcome<f64> {
        Ok(self.cell(row, column)?.parse()?)
    }
}
