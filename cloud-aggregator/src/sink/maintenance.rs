//! Upkeep of the tables: small files become large sorted ones, old dates go, the log is kept short, files that nothing names
//! are deleted. One instance at a time, in rounds, see `lease`.
//!
//! What it writes: commits that remove files and add the same rows again (`dataChange` is false), commits that remove whole
//! dates, log checkpoints, and leases. What it promises: a commit is made at exactly the version whose files it was
//! checked against, so two instances, or maintenance and anything else, never remove a file twice; appends go through
//! beside it. A crash leaves files that no commit names; they are deleted when they are older than `vacuum-retention`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aggregator_core::checkpoint::SideTable;
use aggregator_core::maintenance::{Lease, MergeLimits};
use aggregator_core::{Micros, ProcessingTime};
use metrics::{counter, gauge, histogram};
use tracing::{info, warn};

use super::commit::fault_point;
use super::delta::{LakeError, Location};
use super::rows;
use crate::causes::describe;
use crate::config;
use crate::telemetry::names;
use upkeep::Upkeep;

mod forgetting;
mod lease;
mod merge;
mod rounds;
mod upkeep;

pub use forgetting::{Forgetting, Forgot};
pub use merge::MergeError;
pub use rounds::run;

/// Every table with the columns by which its rows are sorted. Without any its files are not merged: each epoch replaces them.
const TABLES: [(&str, &[&str]); 9] = [
    (rows::TELEMETRY, &["sensor_id", "timestamp"]),
    (SideTable::Anomalies.as_str(), &["sensor_id", "window_start"]),
    (SideTable::LateReadings.as_str(), &["sensor_id", "timestamp"]),
    (SideTable::MachineEvents.as_str(), &["machine_id", "timestamp"]),
    (SideTable::Alerts.as_str(), &["machine_id", "fired_at"]),
    (SideTable::Outcomes.as_str(), &["machine_id", "timestamp"]),
    (SideTable::Waveforms.as_str(), &["machine_id", "first_sample"]),
    (SideTable::DeadLetters.as_str(), &["timestamp"]),
    (rows::CURRENT_WINDOWS, &[]),
];
const CLOCK_SKEW_MAX: Micros = Micros::new(300_000_000);
/// Most files of one merge: each costs an open file and a batch of rows.
const FILES_MAX: usize = 256;

/// Names of the tables that can be maintained.
#[must_use]
pub fn table_names() -> [&'static str; 9] {
    TABLES.map(|(name, _)| name)
}

/// What was done to one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableReport {
    /// Files and bytes of the table afterwards.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Newest version afterwards.
    pub version: u64,
    /// Files that became others, and how many these are.
    pub merged_files: u64,
    /// Files that were written for them.
    pub written_files: u64,
    /// Bytes read.
    pub merged_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Rows written again.
    pub rows: u64,
    /// Merges given up because others had changed the files.
    pub given_up: u64,
    /// Files of dates behind the retention.
    pub expired_files: u64,
    /// Whether the log was summed up.
    pub checkpointed: bool,
    /// Files deleted from the log.
    pub log_files_deleted: u64,
    /// Files deleted that no commit in force names.
    pub vacuumed_files: u64,
    /// Why it is not all that is due.
    pub problem: Option<String>,
}

/// For people, on one line.
impl fmt::Display for TableReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEBIBYTE: f64 = 1_048_576.0;
        write!(
            formatter,
            "version {}, {} files, {:.1} MiB; merged {} files ({:.1} MiB) into {} ({:.1} MiB, {} rows), expired {}, \
             vacuumed {}, log files deleted {}{}{}",
            self.version,
            self.files,
            self.bytes as f64 / MEBIBYTE,
            self.merged_files,
            self.merged_bytes as f64 / MEBIBYTE,
            self.written_files,
            self.written_bytes as f64 / MEBIBYTE,
            self.rows,
            self.expired_files,
            self.vacuumed_files,
            self.log_files_deleted,
            if self.checkpointed { ", checkpoint written" } else { "" },
            match self.given_up {
                0 => String::new(),
                count => format!(", {count} merges given up: others changed the files"),
            },
        )?;
        match &self.problem {
            Some(problem) => write!(formatter, "; FAILED: {problem}"),
            None => Ok(()),
        }
    }
}

/// By table.
pub type Reports = BTreeMap<&'static str, TableReport>;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> ProcessingTime + Send + Sync>;

/// The clock of this machine.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| ProcessingTime::from_micros(chrono::Utc::now().timestamp_micros()))
}

/// The upkeep of one lake.
pub struct Maintenance {
    location: Location,
    leases: lease::Leases,
    settings: config::Maintenance,
    operation_timeout: Duration,
    clock: Clock,
    /// Files that do not fit into memory; they are left alone until the next start.
    too_large: BTreeSet<String>,
    /// Files that cannot be read, by table and path, and why.
    damaged: BTreeMap<(&'static str, String), String>,
    /// How far `clock` may be from the storage's before files are no longer judged by their age.
    clock_skew_max: Option<Micros>,
    /// Tables of the round before: only what was committed since has to be read.
    open: BTreeMap<&'static str, Upkeep>,
}

impl fmt::Debug for Maintenance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Maintenance").field("location", &self.location).finish()
    }
}

impl Maintenance {
    /// Opens the lake; nothing is read yet.
    ///
    /// # Errors
    /// The folder cannot be written, or the storage's options are wrong.
    pub fn open(
        lake: &config::Lake,
        settings: &config::Maintenance,
        clock: Clock,
    ) -> Result<Self, LakeError> {
        let location = Location::open(lake)?;
        let owner = uuid::Uuid::new_v4().simple().to_string();
        let leases = lease::Leases::open(&location, &owner, Micros::from(settings.lease))?;
        Ok(Self {
            location,
            leases,
            settings: settings.clone(),
            operation_timeout: lake.operation_timeout,
            clock,
            too_large: BTreeSet::new(),
            damaged: BTreeMap::new(),
            clock_skew_max: None,
            open: BTreeMap::new(),
        })
    }

    /// Retention and vacuum judge files by their age: they wait while the clock differs by more than some minutes from that of the
    /// storage, which dates the files.
    #[must_use]
    pub fn checking_its_clock(mut self) -> Self {
        self.clock_skew_max = Some(CLOCK_SKEW_MAX);
        self
    }

    /// What is wrong with the clock, if it is held against the storage's.
    fn clock_problem(&self, held: &lease::Held) -> Option<String> {
        let ahead = (self.clock)().micros().saturating_sub(held.written_at.micros());
        let limit = self.clock_skew_max?.get();
        (ahead.abs() > limit).then(|| {
            format!(
                "the clock of this machine is {} s ahead of the storage's (limit {} s): nothing is deleted by its age until it is set",
                ahead / 1_000_000,
                limit / 1_000_000
            )
        })
    }

    /// Does what is due, for one table or all. `None`: another instance does.
    ///
    /// # Errors
    /// The lease cannot be read or written. What fails in a table is in its report, and the others are maintained.
    pub async fn round(&mut self, only: Option<&str>) -> Result<Option<Reports>, LakeError> {
        let Some(held) = self.leases.take((self.clock)()).await? else { return Ok(None) };
        let clock_problem = self.clock_problem(&held);
        let mut lease = held.lease;
        let is_vacuum_due = self.is_vacuum_due(&lease) && clock_problem.is_none();
        let mut reports = BTreeMap::new();
        for (name, keys) in TABLES {
            if only.is_some_and(|only| only != name) {
                continue;
            }
            let began = Instant::now();
            let mut report = TableReport::default();
            let due = Due { vacuum: is_vacuum_due, deletion: clock_problem.is_none() };
            match self.maintain(name, keys, due, &mut report).await {
                Ok(true) => report.problem = report.problem.or_else(|| clock_problem.clone()),
                Ok(false) => {}
                Err(error) => report.problem = Some(describe(&error)),
            }
            if report == TableReport::default() {
                // Not there, or nothing was ever written to it.
                continue;
            }
            tell(name, &report, began.elapsed());
            reports.insert(name, report);
            if self.leases.take((self.clock)()).await?.is_none() {
                return Ok(Some(reports));
            }
        }
        // A table that cannot be maintained must not make it due for all others in each round.
        if is_vacuum_due && only.is_none() {
            lease.vacuumed_at = Some((self.clock)());
            lease.until = (self.clock)().saturating_add(Micros::from(self.settings.lease));
            self.leases.update(&lease).await?;
        }
        fault_point("round-done");
        Ok(Some(reports))
    }

    /// Lets another instance go on at once.
    ///
    /// # Errors
    /// The lease cannot be written; it then ends by itself.
    pub async fn release(&self) -> Result<(), LakeError> {
        if let Some(lease::Held { mut lease, .. }) = self.leases.take((self.clock)()).await? {
            lease.until = (self.clock)();
            self.leases.update(&lease).await?;
        }
        Ok(())
    }

    fn is_vacuum_due(&self, lease: &Lease) -> bool {
        let interval = Micros::from(self.settings.vacuum_interval);
        lease.vacuumed_at.is_none_or(|last| last.saturating_add(interval) <= (self.clock)())
    }

    fn limits(&self) -> MergeLimits {
        MergeLimits {
            target_bytes: self.settings.target_file_bytes,
            files_min: self.settings.files_min,
            files_max: FILES_MAX,
        }
    }

    /// False: there is no such table.
    async fn maintain(
        &mut self,
        name: &'static str,
        keys: &'static [&'static str],
        due: Due,
        report: &mut TableReport,
    ) -> Result<bool, LakeError> {
        let Some(mut upkeep) = self.table(name, keys).await? else { return Ok(false) };
        self.maintain_table(&mut upkeep, due, report).await?;
        // After an error it is opened anew.
        self.open.insert(name, upkeep);
        Ok(true)
    }

    async fn table(
        &mut self,
        name: &'static str,
        keys: &'static [&'static str],
    ) -> Result<Option<Upkeep>, LakeError> {
        if let Some(mut upkeep) = self.open.remove(name) {
            match upkeep.refresh().await {
                Ok(()) => return Ok(Some(upkeep)),
                // Another instance may have deleted the commits that follow: a checkpoint has what was in them.
                Err(error) => info!(table = name, %error, "opening the table anew"),
            }
        }
        Upkeep::open(&self.location, name, keys, self.operation_timeout).await
    }

    async fn maintain_table(
        &mut self,
        upkeep: &mut Upkeep,
        due: Due,
        report: &mut TableReport,
    ) -> Result<(), LakeError> {
        upkeep.measure(report)?;
        upkeep.set_properties(&self.settings).await?;
        // First: whatever is wrong with the rest, the log must stay short enough to be opened.
        report.checkpointed = upkeep.checkpoint(self.settings.checkpoint_commits).await?;
        if report.checkpointed {
            fault_point("checkpoint-written");
            if due.deletion {
                let log_retention = self.settings.log_retention;
                report.log_files_deleted =
                    upkeep.shorten_log((self.clock)(), log_retention).await?;
            }
            fault_point("log-shortened");
        }
        let now = (self.clock)();
        if due.deletion {
            let retention = self.settings.retention.of(upkeep.name());
            report.expired_files = upkeep.expire(now, retention).await?;
        }
        self.merge(upkeep, now, report).await?;
        if due.vacuum {
            let retention = config::vacuum_retention(&self.settings, upkeep.name());
            report.vacuumed_files = upkeep.vacuum((self.clock)(), retention).await?;
            fault_point("vacuumed");
        }
        upkeep.measure(report)
    }

    async fn merge(
        &mut self,
        upkeep: &mut Upkeep,
        now: ProcessingTime,
        report: &mut TableReport,
    ) -> Result<(), LakeError> {
        if !upkeep.is_merged() {
            return Ok(());
        }
        let name = upkeep.name();
        let settle = Micros::from(self.settings.settle);
        let mut left_alone = self.too_large.clone();
        let damaged = self.damaged.keys().filter(|(table, _)| *table == name);
        left_alone.extend(damaged.map(|(_, path)| path.clone()));
        for group in upkeep.plan(&self.limits(), now, settle, &left_alone)? {
            // Long rounds keep the lease; one that was lost ends the round.
            if self.leases.take((self.clock)()).await?.is_none() {
                info!(table = name, "another instance has taken maintenance over");
                return Ok(());
            }
            match upkeep.merge(group, &self.settings, (self.clock)()).await? {
                upkeep::Merged::Done(merged) => {
                    report.merged_files += merged.files;
                    report.merged_bytes += merged.bytes;
                    report.written_files += merged.written_files;
                    report.written_bytes += merged.written_bytes;
                    report.rows += merged.rows;
                }
                upkeep::Merged::GivenUp => report.given_up += 1,
                upkeep::Merged::TooLarge(path) => {
                    info!(table = name, path, "too large to sort, left alone");
                    self.too_large.insert(path);
                }
                upkeep::Merged::Damaged { path, error } => {
                    self.damaged.insert((name, path), describe(&error));
                }
            }
        }
        let of_table = self.damaged.iter().filter(|((table, _), _)| *table == name);
        let texts: Vec<&str> = of_table.map(|(_, text)| text.as_str()).collect();
        if !texts.is_empty() {
            report.problem = Some(format!("left alone until the next start: {}", texts.join("; ")));
        }
        Ok(())
    }
}

/// What may be done in a round.
#[derive(Clone, Copy)]
struct Due {
    vacuum: bool,
    /// Of what is too old.
    deletion: bool,
}

fn tell(name: &'static str, report: &TableReport, took: Duration) {
    gauge!(names::TABLE_FILES, "table" => name).set(report.files as f64);
    gauge!(names::TABLE_BYTES, "table" => name).set(report.bytes as f64);
    counter!(names::MAINTENANCE_MERGED_FILES_TOTAL, "table" => name).increment(report.merged_files);
    counter!(names::MAINTENANCE_READ_BYTES_TOTAL, "table" => name).increment(report.merged_bytes);
    counter!(names::MAINTENANCE_WRITTEN_BYTES_TOTAL, "table" => name)
        .increment(report.written_bytes);
    counter!(names::MAINTENANCE_EXPIRED_FILES_TOTAL, "table" => name)
        .increment(report.expired_files);
    counter!(names::MAINTENANCE_VACUUMED_FILES_TOTAL, "table" => name)
        .increment(report.vacuumed_files);
    counter!(names::MAINTENANCE_LOG_FILES_TOTAL, "table" => name)
        .increment(report.log_files_deleted);
    histogram!(names::MAINTENANCE_SECONDS, "table" => name).record(took.as_secs_f64());
    if let Some(problem) = &report.problem {
        counter!(names::MAINTENANCE_FAILURES_TOTAL, "table" => name).increment(1);
        warn!(table = name, error = problem, "maintenance of a table failed and is tried again");
    } else if report.merged_files + report.expired_files + report.vacuumed_files > 0 {
        info!(table = name, ?took, %report, "maintained");
    }
}

#[cfg(test)]
mod tests;
