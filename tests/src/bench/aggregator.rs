//! The benchmark of the aggregator with a real Apache Kafka: records that lie in the topics are counted and stored, as fast as
//! it goes, in a process of its own that is measured from outside and whose tables are compared with a count of our own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use shared_proto::model::EventTime;

use super::figures::{megabytes, say, verdict};
use super::usage::{cpu_seconds, describe_machine, load_average, memory_of};
use super::variable;
use crate::cloud_aggregator::{CloudAggregator, CloudAggregatorSettings, program};
use crate::kafka::Kafka;
use crate::lake::{LakeReader, WindowCount};
use crate::random::Random;

const METRICS: [&str; 3] = ["temperature", "pressure", "vibration"];
const SENSORS: u64 = 300;
/// Of each topic; the three reading topics together have six.
const PARTITIONS: i32 = 2;
const SPAN: Duration = Duration::from_secs(20 * 60);
const WINDOW_MICROS: i64 = 60_000_000;
const LIMIT: f64 = 100.0;
const COUNT_MORE_THAN: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What to measure and how much of it, from the environment.
#[derive(Clone, Debug)]
pub struct Options {
    /// `BENCH_RECORDS`: readings in the topics.
    pub records: u64,
    /// `BENCH_RUNS`: of each kind; medians are quoted.
    pub runs: usize,
    /// `BENCH_PROFILE`: as the program was built, for the report.
    pub profile: String,
}

impl Options {
    /// Reads the environment.
    ///
    /// # Errors
    /// A variable is not what it should be.
    pub fn from_environment() -> anyhow::Result<Self> {
        Ok(Self {
            records: variable("BENCH_RECORDS", 5_000_000)?,
            runs: variable("BENCH_RUNS", 3)?,
            profile: variable("BENCH_PROFILE", "not told".to_owned())?,
        })
    }
}

/// What is asked of the program.
#[derive(Clone, Copy, Debug)]
enum Work {
    Windows,
    WindowsAndReadings,
}

impl Work {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Windows => "windows only",
            Self::WindowsAndReadings => "windows and raw table",
        }
    }

    /// CPU-seconds a million records, and records a second.
    const fn goals(self) -> (f64, f64) {
        match self {
            Self::Windows => (1.3, 900_000.0),
            Self::WindowsAndReadings => (1.8, 600_000.0),
        }
    }
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// From the start of the process to its end.
    process: Duration,
    /// From the first record to the last commit.
    reading: Duration,
    cpu: f64,
    peak: u64,
}

/// Measures and prints.
///
/// # Errors
/// Kafka or the program does not start, or its tables are not what they should be.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.runs > 0, "BENCH_RUNS is 0: at least 1");
    say(&format!("machine: {}", describe_machine()));
    say(&format!("program: {}, profile {}", program().display(), options.profile));
    let target = crate::workspace_root().join("target");
    let dir = tempfile::Builder::new().prefix("bench-aggregator-").tempdir_in(target)?;
    let kafka = Kafka::start(&dir.path().join("kafka"))?;
    let began = Instant::now();
    let expected = preload(&kafka, options.records)?;
    say(&format!(
        "input: {} JSON readings of {SENSORS} sensors x {} metrics, {} partitions, snappy; made in {:.0} s; {} windows over the limit",
        options.records,
        METRICS.len(),
        PARTITIONS * 3,
        began.elapsed().as_secs_f64(),
        expected.len(),
    ));
    for work in [Work::Windows, Work::WindowsAndReadings] {
        let mut runs = Vec::with_capacity(options.runs);
        for number in 0..options.runs {
            let name =
                format!("{}-{number}", if matches!(work, Work::Windows) { "w" } else { "r" });
            let run = measure(&kafka, &dir.path().join(name), work, options.records, &expected)?;
            runs.push(run);
        }
        report(work, options.records, &runs);
    }
    say(&format!("load average at the end: {}", load_average()));
    Ok(())
}

fn report(work: Work, records: u64, runs: &[Run]) {
    let million = records as f64 / 1e6;
    let (cpu_goal, rate_goal) = work.goals();
    let cpu = median(runs.iter().map(|run| run.cpu / million));
    let rate = median(runs.iter().map(|run| records as f64 / run.reading.as_secs_f64()));
    let process = median(runs.iter().map(|run| run.process.as_secs_f64()));
    let peak = runs.iter().map(|run| run.peak).max().unwrap_or(0);
    say(&format!(
        "{}: {cpu:.2} CPU-s a million (goal {cpu_goal}, {}), {rate:.0} records/s (goal {rate_goal}, {}), process {process:.1} s, VmHWM {} (goal 320 MB, {})",
        work.as_str(),
        verdict(cpu <= cpu_goal),
        verdict(rate >= rate_goal),
        megabytes(peak),
        verdict(peak <= 320_000_000),
    ));
    for run in runs {
        say(&format!(
            "    process {:.2} s, reading {:.2} s, {:.2} CPU-s, VmHWM {}",
            run.process.as_secs_f64(),
            run.reading.as_secs_f64(),
            run.cpu,
            megabytes(run.peak)
        ));
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs the program until it has read what is there, and looks at what it wrote.
fn measure(
    kafka: &Kafka,
    dir: &Path,
    work: Work,
    records: u64,
    expected: &[WindowCount],
) -> anyhow::Result<Run> {
    let lake: PathBuf = dir.join("lake");
    let keeps_readings = matches!(work, Work::WindowsAndReadings);
    let environment = [
        ("AGGREGATOR__TRIGGER__AVAILABLE_NOW", "true"),
        ("AGGREGATOR__TRIGGER__PROCESSING_TIME", "5s"),
        ("AGGREGATOR__LAKE__KEEPS_READINGS", if keeps_readings { "true" } else { "false" }),
        ("AGGREGATOR__ALERTS__TOPIC", ""),
        ("AGGREGATOR__KAFKA__TOPICS__MACHINE_EVENTS", ""),
        ("AGGREGATOR__KAFKA__TOPICS__DEAD_LETTERS", ""),
    ];
    let settings = CloudAggregatorSettings {
        kafka_bootstrap: kafka.bootstrap(),
        group: format!("bench-{}", dir.file_name().unwrap_or_default().to_string_lossy()),
        topic_prefix: String::new(),
        lake: lake.clone(),
        webhook_url: String::new(),
        environment: environment.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        more: String::new(),
    };
    let began = Instant::now();
    let mut aggregator = CloudAggregator::start(dir, &settings)?;
    let pid = aggregator.process().id();
    let (mut cpu, mut peak) = (0.0_f64, 0);
    while aggregator.process().is_running()? {
        ensure!(began.elapsed() < PATIENCE, "it does not end:\n{}", aggregator.process().tail());
        cpu = cpu.max(cpu_seconds(pid));
        peak = peak.max(memory_of(pid).highest);
        std::thread::sleep(LOOK_INTERVAL);
    }
    let process = began.elapsed();
    let status = aggregator.process().wait(PATIENCE)?;
    let log = aggregator.process().stdout() + &aggregator.process().stderr();
    ensure!(status.success(), "{status}:\n{}", aggregator.process().tail());
    let started = time_of(&log, "reading begins").context("it does not say when it begins")?;
    let ended =
        time_of(&log, "all is read that was there").context("it does not say when it ends")?;
    check(&LakeReader::new(&lake), keeps_readings, records, expected)?;
    std::fs::remove_dir_all(&lake)?;
    let reading = Duration::from_micros(u64::try_from(ended.micros_since(started))?);
    Ok(Run { process, reading, cpu, peak })
}

/// When a line was logged that holds these words: the last one.
fn time_of(log: &str, words: &str) -> Option<EventTime> {
    let line = log.lines().rev().find(|line| line.contains(words))?;
    EventTime::parse(line.split_whitespace().next()?)
}

fn check(
    lake: &LakeReader,
    keeps_readings: bool,
    records: u64,
    expected: &[WindowCount],
) -> anyhow::Result<()> {
    if keeps_readings {
        let rows = lake.count("SELECT count(*) FROM telemetry")?;
        ensure!(rows == records, "{rows} rows of {records}");
        let batch = lake.batch_windows("temperature", LIMIT, COUNT_MORE_THAN)?;
        ensure!(batch == expected, "a batch over the raw table finds other windows than were made");
    }
    // The last window of each sensor is still open.
    let found = lake.windows(
        "SELECT sensor_id, epoch_us(window_start) AS window_start, \"count\" AS matches FROM anomalies \
         QUALIFY row_number() OVER (PARTITION BY rule, sensor_id, window_start ORDER BY revision DESC) = 1 \
         ORDER BY ALL",
    )?;
    let wrong: Vec<_> = found.iter().filter(|window| !expected.contains(window)).collect();
    ensure!(wrong.is_empty(), "windows that were never made: {wrong:?}");
    let missing = expected.len() - found.len();
    ensure!(
        missing <= usize::try_from(SENSORS)?,
        "{missing} of {} windows missing",
        expected.len()
    );
    Ok(())
}

/// Fills the topics; gives the windows with more matches than the rule allows, ordered.
///
/// Event time goes evenly through 20 minutes; 3 % are up to 30 s out of order. Every tenth sensor is hot in every fourth
/// minute (5 % of its temperatures above the limit), another tenth always a little (2 %), the rest hardly ever.
fn preload(kafka: &Kafka, records: u64) -> anyhow::Result<Vec<WindowCount>> {
    kafka.create_topics(&METRICS, PARTITIONS)?;
    let loader = kafka.loader()?;
    let mut random = Random::new(1);
    let start = start_of_input()?;
    let mut matches: BTreeMap<(String, i64), u64> = BTreeMap::new();
    let span = i64::try_from(SPAN.as_micros())?;
    for number in 0..records {
        let metric = usize::try_from(number % 3)?;
        let sensor = random.below(SENSORS);
        let even = start + i64::try_from(u128::from(number) * span as u128 / u128::from(records))?;
        let is_astray = random.below(100) < 3;
        let micros = even - if is_astray { i64::try_from(random.below(30_000_000))? } else { 0 };
        let key = format!("sensor-{sensor:03}");
        let value = match metric {
            0 => temperature(&mut random, sensor, even),
            1 => 900.0 + 300.0 * random.fraction(),
            _ => 12.0 * random.fraction(),
        };
        let timestamp = EventTime::from_micros(micros / 1000 * 1000);
        let payload = format!(
            "{{\"sensor_id\":\"{key}\",\"timestamp\":\"{timestamp}\",\"metric_type\":\"{}\",\"value\":{value:.3}}}",
            METRICS[metric]
        );
        if metric == 0 && value > LIMIT {
            let window = timestamp.micros().div_euclid(WINDOW_MICROS) * WINDOW_MICROS;
            *matches.entry((key.clone(), window)).or_default() += 1;
        }
        loader.send(METRICS[metric], &key, payload.as_bytes())?;
    }
    loader.finish()?;
    let windows = matches.into_iter().filter(|(_, count)| *count > COUNT_MORE_THAN);
    Ok(windows.map(|((sensor, window), count)| (sensor, window, count)).collect())
}

/// Above the limit by at least a half: three digits after the point keep it there.
fn temperature(random: &mut Random, sensor: u64, micros: i64) -> f64 {
    let minute = micros.div_euclid(WINDOW_MICROS).cast_unsigned();
    let share = match sensor % 10 {
        0 if (minute + sensor / 10).is_multiple_of(4) => 0.05,
        5 => 0.02,
        _ => 0.000_25,
    };
    if random.fraction() < share {
        100.5 + 60.0 * random.fraction()
    } else {
        60.0 + 39.0 * random.fraction()
    }
}

/// On a full minute, so long ago that nothing of it is in the future.
fn start_of_input() -> anyhow::Result<i64> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    let minutes = i64::try_from(SPAN.as_secs() / 60)? + 10;
    Ok(now.div_euclid(WINDOW_MICROS) * WINDOW_MICROS - minutes * WINDOW_MICROS)
}
