//! `lake forget`: takes one sensor's rows, or one person's name, out of every table.
//!
//! Files that hold such rows are written again without them, one commit each, while aggregators append and maintenance merges. The
//! old files are deleted by the next vacuum after `maintenance.vacuum-retention`, or at once with `--now`. What is still to come
//! is not stopped: windows and alerts of the sensor that are open now are written when they end, and Kafka keeps its records as long as it
//! keeps them. A state file keeps an epoch's rows for as long as one of its partitions stands at that
//! epoch, so until each of them has had a record since, and `lake.state-grace` longer.
//!
//! What was deleted is written down without the name (`book`), so that an audit knows it from a loss.

pub mod book;
pub mod edit;

use std::io::{self, Write};

use humantime_serde::re::humantime::format_duration;

use crate::config;
use crate::sink::delta::LakeError;
use crate::sink::maintenance::{Clock, Forgetting, Forgot, table_names};
use edit::{Edit, Whom};

/// Longest name that is taken, in bytes: that of a sensor.
pub const NAME_BYTES_MAX: usize = 256;

/// Why nothing, or not everything, was forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The storage refuses.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// There is no table.
    #[error("{location} has no table: check lake.location")]
    NoTable {
        /// Where it was looked for.
        location: String,
    },
    /// An empty or endless name would touch everything or nothing.
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes and is not blank")]
    Name,
    /// Nobody has said yes.
    #[error(
        "rows would be taken out of the tables for good: give --yes, or --dry-run to see how many"
    )]
    NotConfirmed,
    /// Nobody takes the output.
    #[error("the report cannot be written")]
    Output(#[from] io::Error),
}

/// How it is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Do it.
    pub yes: bool,
    /// Count only.
    pub dry_run: bool,
    /// Delete old files and commits at once.
    pub now: bool,
}

/// Forgets, or counts what would be forgotten. One line for each table that held something.
///
/// # Errors
/// See [`ForgetError`]. What was committed before stays; another run goes on.
pub async fn forget(
    lake: &config::Lake,
    settings: &config::Maintenance,
    whom: &Whom,
    options: Options,
    clock: &Clock,
    out: &mut impl Write,
) -> Result<(), ForgetError> {
    let (Whom::Sensor(name) | Whom::Person(name)) = whom;
    if name.trim().is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(ForgetError::Name);
    }
    if !options.yes && !options.dry_run {
        return Err(ForgetError::NotConfirmed);
    }
    let forgetting = Forgetting::open(lake, settings, options.dry_run).await?;
    let mut tables = 0;
    let mut found = 0;
    for table in table_names() {
        let edit = Edit::new(whom, table);
        if !edit.is_possible() {
            continue;
        }
        let forgot = match options.dry_run {
            true => forgetting.count(table, &edit).await?,
            false => forgetting.run(clock, table, &edit).await?,
        };
        let Some(mut forgot) = forgot else { continue };
        tables += 1;
        if options.now && !options.dry_run {
            forgetting.purge(clock, table, &mut forgot).await?;
        }
        found += forgot.touched.deleted + forgot.touched.changed;
        if forgot != Forgot::default() {
            writeln!(out, "{}", line(table, &forgot, options))?;
        }
    }
    if tables == 0 {
        return Err(ForgetError::NoTable { location: lake.location.clone() });
    }
    writeln!(out, "{}", summary(found, settings, options))?;
    Ok(())
}

fn line(table: &str, forgot: &Forgot, options: Options) -> String {
    let Forgot { touched, files, purged_files, log_files } = forgot;
    let would = if options.dry_run { "would be " } else { "" };
    let mut text = format!(
        "{table}: {} rows {would}deleted, {} rows {would}changed, of {files} files",
        touched.deleted, touched.changed
    );
    if options.now && !options.dry_run {
        text += &format!("; {purged_files} old files and {log_files} files of the log deleted");
    }
    text
}

fn summary(found: u64, settings: &config::Maintenance, options: Options) -> String {
    match (options.dry_run, options.now) {
        (true, _) => format!("{found} rows would be touched, none was"),
        (false, true) => format!(
            "{found} rows touched; older versions of the tables are gone. Files that a run which was cut off has left go with the vacuum, within \
             {}; state files keep an epoch's rows until its partitions have had records since",
            format_duration(settings.vacuum_retention)
        ),
        (false, false) => format!(
            "{found} rows touched; older versions of the tables hold them until the vacuum, for {} (--now deletes them at once)",
            format_duration(settings.vacuum_retention)
        ),
    }
}
