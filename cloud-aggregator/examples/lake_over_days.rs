//! What becomes of the lake over days of commits: the aggregator's own commits and maintenance with a simulated clock.
//!
//! Each simulated day is a line: commits, how long they took, files and log of `telemetry`, time to open it, memory.
//! Variables: HOURS (24; the last one ends with yesterday), COMMIT_SECONDS (5), METRICS (3, each a partition), SENSORS (30, of each metric,
//! a reading each second), FOLDER (a temporary one; made, and kept if named), ROUND_SECONDS (60, of maintenance), MAINTAINED (1; 0: the
//! log alone is looked after, by the commits). Files get the simulated time as the time of their last change, so that
//! retentions apply to them. A run that was stopped goes on where it was when it is given the same FOLDER.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aggregator_core::checkpoint::{
    EpochFile, EpochId, Nonce, PartitionEpoch, PendingRows, SavedState, TopicPartition,
};
use aggregator_core::rows::Offset;
use aggregator_core::{AlertBook, PartitionState, ProcessingTime};
use anyhow::Context as _;
use cloud_aggregator::config::Settings;
use cloud_aggregator::sink::commit::{EpochCommit, Lake, Recovered};
use cloud_aggregator::sink::delta::{Location, Table};
use cloud_aggregator::sink::maintenance::{Clock, Maintenance};
use cloud_aggregator::sink::rows::{self, ReadingColumns};
use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, MachineId, MetricType, Reading, SensorId};

const SECOND: i64 = 1_000_000;
const DAY_SECONDS: i64 = 86_400;
const METRICS: [&str; 3] = ["temperature", "pressure", "vibration"];

fn number(variable: &str, default: i64) -> i64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Where a run is, beside what the lake itself tells.
#[derive(Default, Serialize, Deserialize)]
struct Progress {
    /// Simulated seconds so far.
    seconds: i64,
    /// The last simulated moment, microseconds since 1970.
    end: i64,
    /// Versions of `telemetry` whose files have the simulated time.
    dated: u64,
    /// Bytes of the files that appends have written.
    appended_bytes: u64,
    /// Rows that maintenance has written again, and bytes.
    rewritten: (u64, u64),
}

const PROGRESS: &str = "simulation.json";

impl Progress {
    fn load(folder: &Path, all_seconds: i64) -> anyhow::Result<Self> {
        if let Ok(text) = std::fs::read(folder.join(PROGRESS)) {
            return serde_json::from_slice(&text).context(PROGRESS);
        }
        let end = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
        // Days of the calendar.
        let end = end - end % (DAY_SECONDS * SECOND);
        anyhow::ensure!(end > all_seconds * SECOND, "HOURS reaches back before 1970");
        Ok(Self { end, ..Self::default() })
    }

    fn save(&self, folder: &Path) -> anyhow::Result<()> {
        let new = folder.join(format!("{PROGRESS}.new"));
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        Ok(std::fs::rename(new, folder.join(PROGRESS))?)
    }
}

fn partition() -> TopicPartition {
    TopicPartition { topic: "temperature".to_owned(), partition: 0 }
}

struct Simulation {
    folder: PathBuf,
    settings: Settings,
    lake: Lake,
    maintenance: Maintenance,
    now: Arc<AtomicI64>,
    metrics: &'static [&'static str],
    sensors: i64,
    epoch: Option<EpochId>,
    next_offset: i64,
    progress: Progress,
}

#[derive(Default)]
struct Day {
    commits: Vec<Duration>,
    rounds: Vec<Duration>,
    merged: u64,
}

impl Simulation {
    async fn append(&mut self, seconds: i64) -> anyhow::Result<()> {
        let now = self.now.load(Ordering::Relaxed);
        let partition = partition();
        let mut columns = ReadingColumns::new(self.lake.telemetry_schema());
        for second in 0..seconds {
            for sensor in 0..self.sensors {
                for metric in self.metrics {
                    let mut reading = Reading::new(
                        SensorId::new(&format!("press-{}/{metric}-{sensor:04}", sensor / 10))?,
                        EventTime::from_micros(now + (second - seconds) * SECOND + sensor * 100),
                        MetricType::new(metric)?,
                        70.0 + ((now / SECOND + sensor) % 97) as f64 / 7.0,
                    );
                    reading.machine_id = Some(MachineId::new(&format!("press-{}", sensor / 10))?);
                    columns.push(&reading, &partition, self.next_offset)?;
                    self.next_offset += 1;
                }
            }
        }
        self.lake.write(columns.finish()?).await?;
        let epoch = EpochId::after(self.epoch, Nonce(1))?;
        let last = PartitionEpoch {
            next_offset: Offset(self.next_offset),
            last_record: None,
            state: SavedState::Whole(Box::new(PartitionState::new(
                &aggregator_core::Settings::default(),
            ))),
            rows: PendingRows::default(),
            owed_to: BTreeMap::new(),
            book: AlertBook::default(),
            watch: None,
            is_hub: false,
            alerts: Vec::new(),
        };
        let file = EpochFile::new(epoch, BTreeMap::from([(partition.clone(), last)]));
        let files = BTreeMap::from([(partition.clone(), Vec::new())]);
        let rows = BTreeMap::from([(partition, PendingRows::default())]);
        let file = serde_json::to_vec(&file)?;
        self.lake
            .begin_commit(EpochCommit {
                epoch,
                readings: None,
                file,
                files,
                rows,
                current: Vec::new(),
            })
            .await?;
        self.lake.committed().await.1?;
        self.epoch = Some(epoch);
        self.date_files()
    }

    /// Gives the files of new commits the simulated time.
    fn date_files(&mut self) -> anyhow::Result<()> {
        let now = u64::try_from(self.now.load(Ordering::Relaxed))?;
        let time = UNIX_EPOCH + Duration::from_micros(now);
        let table = self.folder.join(rows::TELEMETRY);
        loop {
            let log = table.join(format!("_delta_log/{:020}.json", self.progress.dated));
            let Ok(text) = std::fs::read_to_string(&log) else { return Ok(()) };
            File::open(&log)?.set_modified(time)?;
            for line in text.lines() {
                let action: serde_json::Value = serde_json::from_str(line)?;
                let add = &action["add"];
                if let Some(path) = add["path"].as_str() {
                    File::open(table.join(path))?.set_modified(time)?;
                }
                if add["dataChange"].as_bool() == Some(true) {
                    self.progress.appended_bytes +=
                        add["size"].as_u64().context("a file without size")?;
                }
            }
            self.progress.dated += 1;
        }
    }

    /// The same for new checkpoints: whatever is younger than the simulated time.
    fn date_checkpoints(&self, table: &str) -> anyhow::Result<()> {
        let now = u64::try_from(self.now.load(Ordering::Relaxed))?;
        let time = UNIX_EPOCH + Duration::from_micros(now);
        for entry in std::fs::read_dir(self.folder.join(table).join("_delta_log"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().contains(".checkpoint.")
                && entry.metadata()?.modified()? > time
            {
                File::open(entry.path())?.set_modified(time)?;
            }
        }
        Ok(())
    }

    async fn round(&mut self, day: &mut Day) -> anyhow::Result<()> {
        let began = Instant::now();
        // A run that was stopped has left its lease behind.
        let Some(reports) = self.maintenance.round(None).await? else { return Ok(()) };
        day.rounds.push(began.elapsed());
        for (table, report) in &reports {
            anyhow::ensure!(report.problem.is_none(), "{table}: {report}");
            day.merged += report.merged_files;
            if report.checkpointed {
                self.date_checkpoints(table)?;
            }
            self.progress.rewritten.0 += report.rows;
            self.progress.rewritten.1 += report.written_bytes;
        }
        self.date_files()
    }
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(simulate())
}

async fn simulate() -> anyhow::Result<()> {
    let temporary = std::env::temp_dir().join(format!("lake-over-days-{}", std::process::id()));
    let named = std::env::var_os("FOLDER").map(PathBuf::from);
    let folder = named.clone().unwrap_or_else(|| temporary.clone());
    let (seconds, step) = (number("HOURS", 24) * 3600, number("COMMIT_SECONDS", 5));
    let is_maintained = number("MAINTAINED", 1) != 0;
    let mut settings = Settings::load(None)?;
    settings.lake.location = folder.to_str().context("the folder is not UTF-8")?.to_owned();
    settings.lake.checkpoint_commits = is_maintained.then_some(100);
    settings.lake.state_grace = Duration::ZERO;
    let progress = Progress::load(&folder, seconds)?;
    let now = Arc::new(AtomicI64::new(progress.end - (seconds - progress.seconds) * SECOND));
    let told = Arc::clone(&now);
    let clock: Clock = Arc::new(move || ProcessingTime::from_micros(told.load(Ordering::Relaxed)));
    let mut lake = Lake::open(&settings.lake).await?;
    let (epoch, next_offset) = match lake.recover(&[partition()]).await?.pop() {
        Some(Recovered::Resumed(last)) => (Some(last.epoch), last.next_offset.0),
        Some(Recovered::Fresh) => (None, 0),
        Some(Recovered::Corrupt(corruption)) => anyhow::bail!("{corruption:?}"),
        None => anyhow::bail!("the lake does not know about the partition"),
    };
    let mut simulation = Simulation {
        lake,
        maintenance: Maintenance::open(&settings.lake, &settings.maintenance, clock)?,
        folder: folder.clone(),
        settings,
        now,
        metrics: &METRICS[..usize::try_from(number("METRICS", 3))?.clamp(1, METRICS.len())],
        sensors: number("SENSORS", 30),
        epoch,
        next_offset,
        progress,
    };
    let round_seconds = number("ROUND_SECONDS", 60);
    let mut figures = Day::default();
    for second in (simulation.progress.seconds + step..=seconds).step_by(usize::try_from(step)?) {
        simulation.now.fetch_add(step * SECOND, Ordering::Relaxed);
        let began = Instant::now();
        simulation.append(step).await?;
        figures.commits.push(began.elapsed());
        if is_maintained && second % round_seconds < step {
            simulation.round(&mut figures).await?;
        }
        if second % 3600 < step {
            simulation.lake.clean_state_files(Instant::now()).await?;
        }
        if second % DAY_SECONDS < step || second + step > seconds {
            let day = second as f64 / DAY_SECONDS as f64;
            tell(day, &std::mem::take(&mut figures), &simulation).await?;
        }
        simulation.progress.seconds = second;
        simulation.progress.save(&folder)?;
    }
    if named.is_none() {
        std::fs::remove_dir_all(temporary)?;
    }
    Ok(())
}

async fn tell(day: f64, figures: &Day, simulation: &Simulation) -> anyhow::Result<()> {
    let location = Location::open(&simulation.settings.lake)?;
    let began = Instant::now();
    let columns = rows::telemetry_columns();
    let table =
        Table::open(&location, rows::TELEMETRY, columns, rows::reading_partitions()).await?;
    let opened = began.elapsed();
    drop(table);
    let log = simulation.folder.join(rows::TELEMETRY).join("_delta_log");
    let (log_files, log_bytes, checkpoint) = log_size(&log)?;
    let mut commits = figures.commits.clone();
    commits.sort_unstable();
    let share = |share: usize| commits[(commits.len() - 1) * share / 1000].as_secs_f64() * 1e3;
    let rounds: Duration = figures.rounds.iter().sum();
    let longest = figures.rounds.iter().max().copied().unwrap_or_default();
    writeln!(
        std::io::stdout(),
        "day {day:.2}: {} commits, p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms; maintenance {:.1} s in {} rounds, longest {:.2} s, \
         {} files merged, each row written again {:.2} times so far (bytes {:.2} times); log {log_files} files, {:.1} MiB, checkpoint {:.1} MiB; opened in {:.0} ms; \
         {} rows; memory {} MiB, at most {} MiB",
        commits.len(),
        share(500),
        share(990),
        share(1000),
        rounds.as_secs_f64(),
        figures.rounds.len(),
        longest.as_secs_f64(),
        figures.merged,
        simulation.progress.rewritten.0 as f64 / simulation.next_offset as f64,
        simulation.progress.rewritten.1 as f64 / simulation.progress.appended_bytes as f64,
        log_bytes as f64 / 1_048_576.0,
        checkpoint as f64 / 1_048_576.0,
        opened.as_secs_f64() * 1e3,
        simulation.next_offset,
        memory("VmRSS:")?,
        memory("VmHWM:")?,
    )?;
    Ok(())
}

/// Files, bytes, and the bytes of the largest checkpoint.
fn log_size(log: &Path) -> anyhow::Result<(u64, u64, u64)> {
    let mut size = (0, 0, 0);
    for entry in std::fs::read_dir(log)? {
        let entry = entry?;
        let bytes = entry.metadata()?.len();
        size.0 += 1;
        size.1 += bytes;
        if entry.file_name().to_string_lossy().contains("checkpoint.parquet") {
            size.2 = size.2.max(bytes);
        }
    }
    Ok(size)
}

/// MiB of a line of `/proc/self/status`.
fn memory(line: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|text| text.strip_prefix(line));
    let kibibytes = found.and_then(|text| text.split_whitespace().next());
    Ok(kibibytes.with_context(|| format!("no {line}"))?.parse::<u64>()? / 1024)
}
