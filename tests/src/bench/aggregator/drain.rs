//! What lies in the topics is read, counted and stored as fast as it goes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use shared_proto::model::EventTime;

use super::input::{COUNT_MORE_THAN, Input, LIMIT, WINDOW_MICROS, Workload};
use super::table::{Row, Table};
use super::{World, median, spark};
use crate::bench::figures::{megabytes, say};
use crate::bench::usage::{cpu_seconds, memory_of, thread_seconds};
use crate::cloud_aggregator::{CloudAggregator, CloudAggregatorSettings, run_command};
use crate::lake::LakeReader;

const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
const MEMORY_GOAL: u64 = 320_000_000;
const STATE_GOAL: u64 = 512_000_000;
const SENSORS: u64 = 300;
/// How far from the end of the input windows may still be open: window, lateness, and what is astray or rare.
const OPEN_MICROS: i64 = 4 * WINDOW_MICROS;

/// What is asked of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
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
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// From the first record to the last commit.
    reading: Duration,
    /// From the start of the process, and from the group's assignment, to the first commit with records.
    first_commit: (Duration, Duration),
    pub(super) cpu: f64,
    pub(super) peak: u64,
    /// Of the raw table, by `cloud-aggregator audit`.
    audit: Option<Duration>,
}

/// The medians of several runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// CPU-seconds a million records.
    pub(super) cpu: f64,
    /// Records a second.
    pub(super) rate: f64,
    pub(super) peak: u64,
    /// From the start of the process to its first commit, in seconds.
    pub(super) first_commit: f64,
}

/// The rows of `windows`, `raw`, `spark` and `growth`.
pub(super) fn measure(world: &World, table: &mut Table) -> anyhow::Result<()> {
    let options = &world.options;
    let base = Workload {
        prefix: String::new(),
        records: options.records,
        sensors: SENSORS,
        partitions: 2,
        slide_micros: WINDOW_MICROS,
        is_hot: false,
    };
    let parts = ["windows", "raw", "growth", "spark"];
    if !parts.iter().any(|part| options.includes(part)) {
        return Ok(());
    }
    let input = world.preload(base.clone())?;
    let works = [("windows", Work::Windows), ("raw", Work::WindowsAndReadings)];
    let mut figures = Vec::new();
    for (part, work) in works {
        let is_compared = options.includes("spark");
        let is_base = options.includes("growth") && work == Work::Windows;
        if options.includes(part) || is_compared || is_base {
            let ours = rows_of(world, table, &input, work)?;
            if is_compared {
                spark::measure(world, table, &input, work, &ours)?;
            }
            figures.push(ours);
        }
    }
    if options.includes("growth") {
        let base_figures = *figures.first().context("the base was measured")?;
        grow(world, table, &base, &base_figures)?;
    }
    Ok(())
}

fn rows_of(world: &World, table: &mut Table, input: &Input, work: Work) -> anyhow::Result<Figures> {
    let mut runs = Vec::with_capacity(world.options.runs);
    for number in 0..world.options.runs {
        let run =
            drain(world, &format!("{}-{number}", work.as_str().replace(' ', "-")), work, input)?;
        runs.push(run);
    }
    let figures = figures_of(&runs, input.workload.records);
    let (cpu_goal, rate_goal) = work.goals();
    let what = work.as_str();
    table.add(Row {
        what: format!("{what}, CPU-seconds a million records"),
        measured: format!("{:.2}", figures.cpu),
        goal: Some((format!("≤ {cpu_goal}"), figures.cpu <= cpu_goal)),
        peak: Some(figures.peak),
    });
    table.add(Row {
        what: format!("{what}, records a second"),
        measured: format!("{:.0}", figures.rate),
        goal: Some((format!("≥ {rate_goal}"), figures.rate >= rate_goal)),
        peak: None,
    });
    table.add(Row {
        what: format!("{what}, peak memory"),
        measured: megabytes(figures.peak),
        goal: Some(("≤ 320 MB".to_owned(), figures.peak <= MEMORY_GOAL)),
        peak: Some(figures.peak),
    });
    let joined = median(runs.iter().map(|run| run.first_commit.1.as_secs_f64()));
    table.add(Row {
        what: format!("{what}, partitions given → first commit"),
        measured: format!(
            "{joined:.2} s ({:.2} s from the start of the process)",
            figures.first_commit
        ),
        goal: Some(("≤ 1 s".to_owned(), joined <= 1.0)),
        peak: None,
    });
    let audits: Vec<f64> =
        runs.iter().filter_map(|run| run.audit).map(|audit| audit.as_secs_f64()).collect();
    if !audits.is_empty() {
        let seconds = median(audits.into_iter());
        let rate = world.options.records as f64 / seconds;
        table.add(Row {
            what: "audit of the raw table, rows a second".to_owned(),
            measured: format!("{rate:.0} ({seconds:.1} s)"),
            goal: None,
            peak: None,
        });
    }
    Ok(figures)
}

fn figures_of(runs: &[Run], records: u64) -> Figures {
    let records = records as f64;
    Figures {
        cpu: median(runs.iter().map(|run| run.cpu * 1e6 / records)),
        rate: median(runs.iter().map(|run| records / run.reading.as_secs_f64())),
        peak: runs.iter().map(|run| run.peak).max().unwrap_or(0),
        first_commit: median(runs.iter().map(|run| run.first_commit.0.as_secs_f64())),
    }
}

/// Ten times as many sensors, windows and partitions; a million windows.
fn grow(world: &World, table: &mut Table, base: &Workload, before: &Figures) -> anyhow::Result<()> {
    let named = |prefix: &str| Workload { prefix: prefix.to_owned(), ..base.clone() };
    let cases = [
        ("10 x sensors (3,000)", Workload { sensors: 10 * SENSORS, ..named("sensors-") }),
        ("10 x partitions (60)", Workload { partitions: 20, ..named("partitions-") }),
        (
            "10 x open windows (a window of 1 min each 6 s)",
            Workload { slide_micros: 6_000_000, ..named("windows-") },
        ),
    ];
    for (what, workload) in cases {
        let name = workload.prefix.clone();
        let input = world.preload(workload)?;
        let run = drain(world, &name, Work::Windows, &input)?;
        let figures = figures_of(&[run], input.workload.records);
        table.add(Row {
            what: format!("windows only, {what}"),
            measured: format!(
                "{:.2} CPU-s a million ({:.2} x), {:.0} records/s ({:.2} x), memory {:.2} x",
                figures.cpu,
                figures.cpu / before.cpu,
                figures.rate,
                figures.rate / before.rate,
                figures.peak as f64 / before.peak as f64
            ),
            goal: None,
            peak: Some(figures.peak),
        });
    }
    let million = Workload {
        records: 300_000,
        sensors: 100_000,
        slide_micros: 6_000_000,
        is_hot: true,
        ..named("million-")
    };
    let input = world.preload(million)?;
    let dir = world.folder("million");
    let settings = settings_of(world, &dir, Work::Windows, &input);
    let run = run("million", &dir, &settings)?;
    let state = folder_bytes(&settings.lake.join("_state"))?;
    table.add(Row {
        what: "a million windows (100,000 sensors), then their commit".to_owned(),
        measured: format!(
            "{:.1} s, {:.1} CPU-s, state files {}",
            run.reading.as_secs_f64(),
            run.cpu,
            megabytes(state)
        ),
        goal: Some(("≤ 512 MB".to_owned(), run.peak <= STATE_GOAL)),
        peak: Some(run.peak),
    });
    let again = observe(&dir, &settings)?;
    let resumption = again.resumption()?.as_secs_f64();
    table.add(Row {
        what: "a restart with them, partitions given → reading".to_owned(),
        measured: format!(
            "{resumption:.2} s ({:.2} s from the start of the process), {:.1} CPU-s",
            duration(again.started_at, again.time("reading begins")?)?.as_secs_f64(),
            again.cpu
        ),
        goal: Some(("≤ 5 s".to_owned(), resumption <= 5.0)),
        peak: Some(again.peak),
    });
    check(&LakeReader::new(&settings.lake), false, &input)?;
    std::fs::remove_dir_all(&settings.lake)?;
    Ok(())
}

fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// Settings of a run in `dir`.
fn settings_of(world: &World, dir: &Path, work: Work, input: &Input) -> CloudAggregatorSettings {
    let keeps_readings = work == Work::WindowsAndReadings;
    let environment = [
        ("AGGREGATOR__TRIGGER__AVAILABLE_NOW", "true"),
        ("AGGREGATOR__TRIGGER__PROCESSING_TIME", "5s"),
        ("AGGREGATOR__LAKE__KEEPS_READINGS", if keeps_readings { "true" } else { "false" }),
    ];
    let mut settings = world.settings(dir, &input.workload.prefix, &environment);
    settings.more = format!(
        "[[rules]]\nname = \"temperature-above-100\"\nfilter = \"metric_type = temperature and value > {LIMIT}\"\n\
         window = \"1m\"\nslide = \"{}s\"\nby = \"sensor\"\nthreshold = \"count > {COUNT_MORE_THAN}\"\n\
         output-mode = \"append\"\nseverity = 2\n",
        input.workload.slide_micros / 1_000_000
    );
    settings
}

/// What is seen of a process from outside until it has ended.
struct Observed {
    started_at: EventTime,
    process: Duration,
    cpu: f64,
    peak: u64,
    /// CPU-seconds by thread, the busiest first.
    threads: String,
    log: String,
}

impl Observed {
    /// When a line was logged that holds these words: the last one.
    fn time(&self, words: &str) -> anyhow::Result<EventTime> {
        let line = self.log.lines().rev().find(|line| line.contains(words));
        let time = line.and_then(|line| EventTime::parse(line.split_whitespace().next()?));
        time.with_context(|| format!("no line {words:?}"))
    }

    /// From the group's assignment until records begin to flow: the state is read.
    fn resumption(&self) -> anyhow::Result<Duration> {
        duration(self.time("the group gave partitions")?, self.time("reading begins")?)
    }
}

/// Runs the program until it has read what is there.
fn observe(dir: &Path, settings: &CloudAggregatorSettings) -> anyhow::Result<Observed> {
    let began = Instant::now();
    let mut aggregator = CloudAggregator::start(dir, settings)?;
    let started_at = EventTime::from_micros(micros_of(std::time::SystemTime::now())?);
    let pid = aggregator.process().id();
    let (mut cpu, mut peak, mut threads) = (0.0_f64, 0, std::collections::BTreeMap::new());
    while aggregator.process().is_running()? {
        ensure!(began.elapsed() < PATIENCE, "it does not end:\n{}", aggregator.process().tail());
        let now = thread_seconds(pid);
        if !now.is_empty() && cpu_seconds(pid) > 0.0 {
            threads = now;
        }
        cpu = cpu.max(cpu_seconds(pid));
        peak = peak.max(memory_of(pid).highest);
        std::thread::sleep(LOOK_INTERVAL);
    }
    let process = began.elapsed();
    let status = aggregator.process().wait(PATIENCE)?;
    let log = aggregator.process().stdout() + &aggregator.process().stderr();
    ensure!(status.success(), "{status}:\n{}", aggregator.process().tail());
    let mut busiest: Vec<_> = threads.into_iter().collect();
    busiest.sort_by(|left, right| right.1.total_cmp(&left.1));
    let busiest = busiest.iter().take(6).map(|(name, seconds)| format!("{name} {seconds:.2}"));
    let threads = busiest.collect::<Vec<_>>().join(", ");
    Ok(Observed { started_at, process, cpu, peak, threads, log })
}

/// Runs the program until it has read what is there, and looks at what it wrote.
fn drain(world: &World, name: &str, work: Work, input: &Input) -> anyhow::Result<Run> {
    let dir = world.folder(name);
    let settings = settings_of(world, &dir, work, input);
    let mut run = run(name, &dir, &settings)?;
    let keeps_readings = work == Work::WindowsAndReadings;
    check(&LakeReader::new(&settings.lake), keeps_readings, input)?;
    if keeps_readings {
        let began = Instant::now();
        let audit = run_command(&dir, &["audit"])?;
        ensure!(audit.code == Some(0), "audit: {}{}", audit.output, audit.errors);
        run.audit = Some(began.elapsed());
    }
    std::fs::remove_dir_all(&settings.lake)?;
    Ok(run)
}

fn run(name: &str, dir: &Path, settings: &CloudAggregatorSettings) -> anyhow::Result<Run> {
    let seen = observe(dir, settings)?;
    let (given, begins) = (seen.time("the group gave partitions")?, seen.time("reading begins")?);
    let reading = duration(begins, seen.time("all is read that was there")?)?;
    let first = first_commit(&settings.lake)?;
    let first_commit = (duration(seen.started_at, first)?, duration(given, first)?);
    say(&format!(
        "    {name}: process {:.2} s, reading {:.2} s, {:.2} CPU-s, VmHWM {}; CPU-s by thread: {}",
        seen.process.as_secs_f64(),
        reading.as_secs_f64(),
        seen.cpu,
        megabytes(seen.peak),
        seen.threads
    ));
    Ok(Run { reading, first_commit, cpu: seen.cpu, peak: seen.peak, audit: None })
}

/// When the first commit with records was written to the log of `telemetry`.
fn first_commit(lake: &Path) -> anyhow::Result<EventTime> {
    let log = lake.join("telemetry/_delta_log");
    let mut first = None::<i64>;
    for entry in std::fs::read_dir(&log).with_context(|| log.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && std::fs::read_to_string(&path)?.contains("\"txn\"")
        {
            let micros = micros_of(std::fs::metadata(&path)?.modified()?)?;
            first = Some(first.map_or(micros, |first| first.min(micros)));
        }
    }
    Ok(EventTime::from_micros(first.with_context(|| format!("{}: no commit", log.display()))?))
}

fn micros_of(time: std::time::SystemTime) -> anyhow::Result<i64> {
    Ok(i64::try_from(time.duration_since(std::time::UNIX_EPOCH)?.as_micros())?)
}

fn duration(from: EventTime, to: EventTime) -> anyhow::Result<Duration> {
    Ok(Duration::from_micros(u64::try_from(to.micros_since(from))?))
}

fn check(lake: &LakeReader, keeps_readings: bool, input: &Input) -> anyhow::Result<()> {
    if keeps_readings {
        let (rows, records) =
            (lake.count("SELECT count(*) FROM telemetry")?, input.workload.records);
        ensure!(rows == records, "{rows} rows of {records}");
        let batch = lake.batch_windows("temperature", LIMIT, COUNT_MORE_THAN)?;
        ensure!(batch == input.windows, "a batch over the raw table finds other windows");
    }
    check_windows(
        lake,
        input,
        "SELECT sensor_id, epoch_us(window_start) AS window_start, \"count\" AS matches FROM anomalies \
         QUALIFY row_number() OVER (PARTITION BY rule, sensor_id, window_start ORDER BY revision DESC) = 1 \
         ORDER BY ALL",
    )
}

/// The windows that a query finds are those of the input; the last ones of each sensor may still be open.
pub(super) fn check_windows(lake: &LakeReader, input: &Input, sql: &str) -> anyhow::Result<()> {
    let found: std::collections::BTreeSet<_> = lake.windows(sql)?.into_iter().collect();
    let expected: std::collections::BTreeSet<_> = input.windows.iter().cloned().collect();
    let wrong: Vec<_> = found.difference(&expected).take(5).collect();
    ensure!(wrong.is_empty(), "windows that were never made: {wrong:?}");
    let missing = expected.difference(&found);
    let missing: Vec<_> =
        missing.filter(|(_, start, _)| start + OPEN_MICROS < input.end_micros).take(5).collect();
    ensure!(missing.is_empty(), "windows that are missing: {missing:?}");
    Ok(())
}
