//! What an audit has found, and how it is printed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use aggregator_core::checkpoint::SideTable;
use serde_json::json;

use super::SEVERAL_PARTITIONS;
use crate::cli::Format;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Kafka partitions.
    pub partitions: usize,
    /// Of these, partitions whose state cannot be read: their records and windows are not compared.
    pub partitions_unread: usize,
    /// Rows by table; of tables that hold Kafka records, those that are one.
    pub rows: BTreeMap<String, u64>,
    /// Rows that the aggregator has written of its own in tables that hold Kafka records: gaps, and alerts that were given up.
    pub own_rows: BTreeMap<String, u64>,
    /// Records that the states count as taken from Kafka.
    pub records_in: u64,
    /// Of these, seen before.
    pub duplicates: u64,
    /// Offsets that Kafka did not have any more, as told by gap rows.
    pub told_gaps: u64,
    /// Records that stand in a hub's topic and in another: a device was told of neither that it was taken, and each topic counts its own.
    pub records_by_two_ways: u64,
    /// Windows compared.
    pub windows_judged: u64,
    /// Of these, anomalies by `telemetry`.
    pub anomalies: u64,
    /// Windows that are still open.
    pub windows_open: u64,
    /// Windows of which the batch cannot know what counts: by why.
    pub windows_left_out: BTreeMap<Cow<'static, str>, u64>,
    /// Records and partitions that are not compared, or not in full: by what they are and why.
    pub left_out: BTreeMap<&'static str, u64>,
    /// Everything that is wrong.
    pub differences: u64,
    /// The first of it.
    pub shown: Vec<String>,
    /// Rows read, in seconds.
    pub seconds: f64,
    pub(super) shown_max: usize,
}

impl Report {
    pub(super) fn differs(&mut self, text: String) {
        self.differences += 1;
        if self.shown.len() < self.shown_max {
            self.shown.push(text);
        }
    }

    pub(super) fn leave_out(&mut self, why: &'static str, count: u64) {
        if count > 0 {
            *self.left_out.entry(why).or_default() += count;
        }
    }

    pub(super) fn leave_out_window(&mut self, why: impl Into<Cow<'static, str>>) {
        *self.windows_left_out.entry(why.into()).or_default() += 1;
    }

    /// Windows left out because their readings stand in several partitions. Each partition counts its part, so that alerts may
    /// be missing: this is to be mended in the rule or by the producers, and must not pass for "equal".
    #[must_use]
    pub fn windows_in_several_partitions(&self) -> u64 {
        self.windows_left_out.get(SEVERAL_PARTITIONS).copied().unwrap_or(0)
    }

    /// Rows of all tables.
    #[must_use]
    pub fn rows_read(&self) -> u64 {
        self.rows.values().chain(self.own_rows.values()).sum()
    }
}

/// Prints what was found.
///
/// # Errors
/// Nobody takes the output.
pub fn print(report: &Report, format: Format, out: &mut impl Write) -> io::Result<()> {
    let rate = report.rows_read() as f64 / report.seconds.max(1e-6);
    match format {
        Format::Json => writeln!(
            out,
            "{}",
            json!({
                "equal": report.differences == 0,
                "differences": report.differences,
                "shown": report.shown,
                "partitions": report.partitions,
                "partitions_unread": report.partitions_unread,
                "rows": report.rows,
                "own_rows": report.own_rows,
                "records_in": report.records_in,
                "duplicates": report.duplicates,
                "told_gaps": report.told_gaps,
                "records_by_two_ways": report.records_by_two_ways,
                "windows_judged": report.windows_judged,
                "anomalies": report.anomalies,
                "windows_open": report.windows_open,
                "windows_left_out": report.windows_left_out,
                "windows_in_several_partitions": report.windows_in_several_partitions(),
                "left_out": report.left_out,
                "seconds": report.seconds,
                "rows_per_second": rate.round(),
            })
        ),
        Format::Text => print_text(report, rate, out),
    }
}

fn print_text(report: &Report, rate: f64, out: &mut impl Write) -> io::Result<()> {
    for difference in &report.shown {
        writeln!(out, "{difference}")?;
    }
    if report.differences > report.shown.len() as u64 {
        writeln!(
            out,
            "and {} others; --limit shows more",
            report.differences - report.shown.len() as u64
        )?;
    }
    if report.differences > 0 {
        writeln!(out)?;
    }
    print_records(report, out)?;
    for (what, count) in &report.left_out {
        writeln!(out, "  {count:>12}  {what}")?;
    }
    writeln!(
        out,
        "{} closed windows compared, {} of them anomalies; {} still open",
        report.windows_judged, report.anomalies, report.windows_open
    )?;
    for (why, count) in &report.windows_left_out {
        writeln!(out, "  {count:>12}  left out: {why}")?;
    }
    writeln!(out, "{:.1} s, {:.0} rows a second", report.seconds, rate)?;
    match (report.differences, report.windows_in_several_partitions()) {
        (0, 0) => writeln!(out, "equal"),
        (0, windows) => writeln!(
            out,
            "equal as far as it can be compared: {windows} windows stand in several partitions"
        ),
        (count, _) => writeln!(out, "{count} differences"),
    }
}

fn print_records(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { partitions, partitions_unread, records_in, .. } = report;
    match partitions_unread {
        0 => writeln!(out, "{partitions} partitions, {records_in} records taken from kafka")?,
        unread => writeln!(
            out,
            "{partitions} partitions, the state of {unread} cannot be read; {records_in} records taken from kafka by the others"
        )?,
    }
    for (table, rows) in &report.rows {
        match report.own_rows.get(table) {
            None => writeln!(out, "  {rows:>12}  rows of {table}")?,
            Some(own) => {
                let kind = if table == SideTable::MachineEvents.as_str() {
                    "gap rows"
                } else {
                    "of alerts"
                };
                writeln!(out, "  {rows:>12}  rows of {table} from kafka, {own} {kind}")?;
            }
        }
    }
    writeln!(out, "  {:>12}  seen before, no row", report.duplicates)?;
    if report.told_gaps > 0 {
        writeln!(out, "  {:>12}  gone from kafka before they were read", report.told_gaps)?;
    }
    if report.records_by_two_ways > 0 {
        let count = report.records_by_two_ways;
        writeln!(
            out,
            "  {count:>12}  came by the hub and by kafka, a row each: their devices knew of neither"
        )?;
    }
    Ok(())
}
