//! `cloud-aggregator report precision`: how often alerts were right, for people and as JSON.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use shared_proto::model::EventTime;

use super::lake::{self, Rows};
use super::precision::{Figures, Group, Precision, precision};
use crate::cli::ConfigFile;
use crate::config;
use crate::dead_letters::print_table;
use crate::sink::delta::LakeError;

/// The command line asks for something that cannot be (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// The storage cannot be read (`EX_IOERR`).
const EXIT_STORAGE: u8 = 74;
const NOTHING: &str = "-";

/// What to report.
#[derive(Debug, Subcommand)]
pub enum Report {
    /// How often alerts and trips were right, by what people found: exit code 0; 64 if --since is no date, 74 if the lake cannot be read.
    ///
    /// By rule, and of trips by model, machine and month: how many, how many of them people have judged, the precision with the interval
    /// in which it lies with 95 %, and how long the first judgement took. What nobody has judged is counted apart.
    Precision(PrecisionArguments),
}

/// `report precision`.
#[derive(Args, Debug)]
pub struct PrecisionArguments {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// This lake instead of the configuration's `lake.location`.
    #[arg(long)]
    pub lake: Option<PathBuf>,
    /// Only alerts fired, and trips, on this day (UTC) or later: 2026-03-01.
    #[arg(long)]
    pub since: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The storage refuses.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// There is neither table.
    #[error("{location} has neither a table alerts nor machine_events: check the location")]
    NoTable {
        /// Where they were looked for.
        location: String,
    },
    /// A text that is no date.
    #[error("--since {text:?} is no date: write 2026-03-01")]
    Since {
        /// The text.
        text: String,
    },
    /// Nobody takes the output.
    #[error("the report cannot be written")]
    Output(#[from] io::Error),
}

impl ReportError {
    /// What the program ends with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Lake(_) | Self::NoTable { .. } => EXIT_STORAGE,
            Self::Since { .. } => EXIT_USAGE,
            Self::Output(_) => 1,
        }
    }
}

/// Reads the lake and prints the report.
///
/// # Errors
/// What cannot be read or written, and a date that is none.
pub async fn run(
    settings: &config::Lake,
    arguments: &PrecisionArguments,
    out: &mut impl Write,
) -> Result<(), ReportError> {
    let since = arguments.since.as_deref().map(date).transpose()?;
    let settings = lake::lake_at(settings, arguments.lake.as_ref());
    let rows = lake::read(&settings, since).await?;
    if ["alerts", "machine_events"].iter().all(|table| rows.missing.contains(table)) {
        return Err(ReportError::NoTable { location: settings.location });
    }
    print(&rows, since, arguments.json, out)
}

fn date(text: &str) -> Result<EventTime, ReportError> {
    let refused = || ReportError::Since { text: text.to_owned() };
    EventTime::parse(&format!("{text}T00:00:00Z")).ok_or_else(refused)
}

/// Prints the report of some rows.
///
/// # Errors
/// Nobody takes the output.
pub fn print(
    rows: &Rows,
    since: Option<EventTime>,
    as_json: bool,
    out: &mut impl Write,
) -> Result<(), ReportError> {
    #[derive(Serialize)]
    struct Document<'a> {
        since: Option<String>,
        missing_tables: &'a [&'static str],
        #[serde(flatten)]
        report: &'a Precision,
    }
    let report = precision(&rows.alerts, &rows.outcomes, &rows.trips);
    if as_json {
        let since = since.map(|since| since.to_string());
        let document = Document { since, missing_tables: &rows.missing, report: &report };
        serde_json::to_writer(&mut *out, &document).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for table in &rows.missing {
        writeln!(out, "note: there is no table {table} yet")?;
    }
    print_groups("rule", &report.rules, out)?;
    writeln!(out)?;
    print_groups("model", &report.models, out)?;
    writeln!(out)?;
    print_rest(&report, out)?;
    Ok(())
}

fn print_groups(kind: &str, groups: &[Group], out: &mut impl Write) -> io::Result<()> {
    let what = if kind == "rule" { "alerts" } else { "trips" };
    if groups.is_empty() {
        return writeln!(out, "no {what} by {kind}");
    }
    let headings = [
        kind,
        "machine",
        "month",
        what,
        "without outcome",
        "confirmed",
        "false alarms",
        "precision",
        "95 % interval",
        "median to outcome",
    ];
    let mut table = vec![headings.map(str::to_owned).to_vec()];
    for group in groups {
        table.push(cells([&group.name, "(all)", "(all)"], &group.figures));
        for part in &group.parts {
            table.push(cells([&group.name, &part.machine, &part.month], &part.figures));
        }
    }
    print_table(&table, out)
}

fn cells(names: [&str; 3], figures: &Figures) -> Vec<String> {
    let interval = figures.precision_low.zip(figures.precision_high);
    let mut cells = names.map(str::to_owned).to_vec();
    cells.extend([
        figures.alerts.to_string(),
        figures.without_outcome.to_string(),
        figures.confirmed.to_string(),
        figures.false_alarms.to_string(),
        figures.precision.map_or_else(|| NOTHING.to_owned(), |share| format!("{share:.3}")),
        interval.map_or_else(|| NOTHING.to_owned(), |(low, high)| format!("{low:.3} to {high:.3}")),
        figures.median_seconds_to_outcome.map_or_else(|| NOTHING.to_owned(), duration),
    ]);
    cells
}

/// In the largest unit of which there is at least one.
fn duration(seconds: f64) -> String {
    match seconds {
        days if days >= 86_400.0 => format!("{:.1} d", days / 86_400.0),
        hours if hours >= 3_600.0 => format!("{:.1} h", hours / 3_600.0),
        minutes if minutes >= 60.0 => format!("{:.1} min", minutes / 60.0),
        seconds => format!("{seconds:.1} s"),
    }
}

fn print_rest(report: &Precision, out: &mut impl Write) -> io::Result<()> {
    let all = &report.all;
    writeln!(
        out,
        "{} alerts, {} of them judged ({} disputed: the newest outcome counts), {} without outcome are in no precision",
        all.alerts, all.with_outcome, all.disputed, all.without_outcome
    )?;
    writeln!(
        out,
        "{} alerts were suppressed and are not counted; {} outcomes, {} of them about others than these alerts and trips",
        report.suppressed_alerts, report.outcomes, report.outcomes_of_others
    )?;
    writeln!(
        out,
        "{} outcomes name an alert or a trip of another machine than theirs and count for neither",
        report.outcomes_of_other_machines
    )?;
    writeln!(out, "{} failures were found without any alert or trip", report.failures_without_alert)
}

#[cfg(test)]
mod tests;
