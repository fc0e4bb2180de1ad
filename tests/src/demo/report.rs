//! The first words and the last table.

use std::path::Path;

use anyhow::Context;

use super::configuration::{WINDOW_SAMPLES, WINDOW_SECONDS};
use super::figures::EdgeFigures;
use super::narrator::{Narrator, Tone};
use super::plant::{BLOCK_SAMPLES, Tally};
use super::script::{DRILLS, Demo, FAN, Options, PRESS, PUMP};
use super::services::Stack;
use super::verdict::{self, Check, Lake, alerted_windows, count_windows, percentile};
use crate::lake::LakeReader;

/// A bound that also holds while the same two cores compile something; the table shows what it took.
const COMMAND_MICROS_MAX: u64 = 100_000;

/// Says what will be seen.
pub(super) fn introduce(narrator: &Narrator, options: &Options, dir: &Path) {
    let services = match options.stack {
        Stack::Embedded => "an MQTT broker and a Kafka cluster inside this process",
        Stack::Real => "mosquitto and Apache Kafka",
    };
    narrator.print(Tone::Bold, "Protecting machines at the edge, counting in the cloud");
    narrator.say(&format!(
        "Three simulated machines, {services}, and the two programs as they are deployed. One bearing will fail, \
         the network will be cut, and in the end the books must balance. This takes about a minute.",
    ));
    narrator.print(Tone::Faint, &format!("   files: {}", dir.display()));
}

/// Compares the tables with what the machines made, prints the outcome; true if all is well.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn conclude(mut demo: Demo, edge: EdgeFigures, lake: &Lake) -> anyhow::Result<bool> {
    let tally = demo.plant.tally();
    let alerts = demo.figures.alerts();
    let triples = alerts
        .iter()
        .map(|alert| (alert.id.clone(), alert.sensor.clone(), alert.window_start.clone()));
    let (alerted, repeats) = alerted_windows(triples);
    let made = Made::new(&tally);
    check_protection(&mut demo.checks, lake);
    check_records(&mut demo.checks, lake, &edge, &made);
    let cut = demo.cut;
    check_counting(&mut demo.checks, lake, &tally, cut);
    let counted: Vec<_> = lake.anomalous_windows().into_keys().collect();
    demo.checks.push(Check::new(
        "one alert for each anomalous window",
        repeats == 0 && alerted.iter().eq(counted.iter()),
        format!("{} alerts, {repeats} repeats, {} windows", alerts.len(), counted.len()),
    ));
    check_with_other_reader(&mut demo, lake)?;
    let Demo { narrator, dir, checks, figures, plant, .. } = demo;
    drop(figures);
    drop(plant);
    narrator.end_figures();
    print_checks(&narrator, &checks);
    print_table(&narrator, lake, &edge, &made, &tally, alerts.len());
    print_places(&narrator, &dir);
    let failed = checks.iter().filter(|check| !check.passed).count();
    narrator.print(Tone::Plain, "");
    let seconds = narrator.elapsed().as_secs_f64();
    match failed {
        0 => narrator.print(
            Tone::Good,
            &format!("   All {} expectations met in {seconds:.0} s.", checks.len()),
        ),
        _ => narrator.print(
            Tone::Alarm,
            &format!(
                "   {failed} of {} expectations NOT met; the logs are in {}/logs",
                checks.len(),
                dir.display()
            ),
        ),
    }
    Ok(failed == 0)
}

/// How many records the machines gave cause for.
struct Made {
    scalars: u64,
    windows: u64,
}

impl Made {
    /// Scalars as the machines counted them, and the windows that their samples fill.
    fn new(tally: &Tally) -> Self {
        let windows = tally.samples.values().map(|samples| samples / WINDOW_SAMPLES).sum();
        Self { scalars: tally.readings, windows }
    }

    const fn total(&self) -> u64 {
        self.scalars + self.windows
    }
}

fn check_protection(checks: &mut Vec<Check>, lake: &Lake) {
    let trips = |machine| lake.events_of("trip", machine);
    checks.push(Check::new(
        "the model stopped press-1, before any fixed limit",
        lake.events("trip").any(|row| verdict::is_trip_by_score(row, PRESS)),
        "cause in machine_events: score".to_owned(),
    ));
    checks.push(Check::new(
        "no machine was stopped without need",
        trips(PRESS) == 1 && trips(PUMP) == 0 && trips(FAN) == u64::from(DRILLS),
        format!(
            "{PRESS} {} stop, {PUMP} {}, {FAN} {} (drills)",
            trips(PRESS),
            trips(PUMP),
            trips(FAN)
        ),
    ));
    let confirmed = lake.events("stop-confirmed").count();
    let all = lake.events("trip").count();
    checks.push(Check::new(
        "every trip and its confirmation is in the lake",
        all > 0 && all == confirmed,
        format!("{all} trips, {confirmed} confirmed"),
    ));
    let latency = percentile(&lake.latencies("trip", "command_latency_micros"), 0.99);
    checks.push(Check::new(
        "stop commands leave within 100 ms",
        latency > 0 && latency <= COMMAND_MICROS_MAX,
        format!("p99 {:.2} ms", micros_as_ms(latency)),
    ));
}

fn check_records(checks: &mut Vec<Check>, lake: &Lake, edge: &EdgeFigures, made: &Made) {
    let lost = lake.lost(edge.journalled);
    checks.push(Check::new(
        "no record is lost",
        lost == 0 && lake.record_rows() >= edge.journalled,
        format!("{lost} sequences missing of {}", lake.record_rows()),
    ));
    let duplicates = lake.duplicates();
    checks.push(Check::new(
        "no record is there twice",
        duplicates == 0,
        format!("{duplicates} duplicates in {} rows", lake.record_rows()),
    ));
    let readings = lake.telemetry.len() as u64;
    checks.push(Check::new(
        "readings made = held back + in the lake",
        made.total() == edge.filtered + readings && made.windows > 0,
        format!("{} = {} + {readings}", made.total(), edge.filtered),
    ));
    let refused = lake.dead_letters.len() + lake.late_readings.len();
    checks.push(Check::new(
        "nothing was refused or too late",
        refused == 0,
        format!("{} dead letters, {} late", lake.dead_letters.len(), lake.late_readings.len()),
    ));
}

fn check_counting(checks: &mut Vec<Check>, lake: &Lake, tally: &Tally, cut: (i64, i64)) {
    let mut measured = tally.hot.clone();
    measured.sort();
    let found = lake.hot();
    checks.push(Check::new(
        "every temperature above 100 °C is in the lake, none filtered",
        !measured.is_empty() && measured == found,
        format!("{} measured, {} found", measured.len(), found.len()),
    ));
    let (expected, counted) = (count_windows(&tally.hot), lake.anomalous_windows());
    checks.push(Check::new(
        "windows equal a batch count over the sensors' readings",
        !expected.is_empty() && expected == counted,
        format!("{} windows expected, {} counted", expected.len(), counted.len()),
    ));
    let length = i64::from(WINDOW_SECONDS) * 1_000_000;
    let offline = counted
        .iter()
        .filter(|((_, start), _)| *start >= cut.0 && start + length <= cut.1)
        .map(|(_, count)| *count)
        .max();
    checks.push(Check::new(
        "a window that lay wholly in the cut was counted, from records marked historical",
        offline.is_some() && lake.historical() > 0,
        format!(
            "{} hot readings in it; {} rows marked historical",
            offline.unwrap_or(0),
            lake.historical()
        ),
    ));
}

/// Where the set-up has installed one, asks a reader that shares no code with this program.
fn check_with_other_reader(demo: &mut Demo, lake: &Lake) -> anyhow::Result<()> {
    let python = crate::setup_dir().join("venv/bin/python");
    if !python.exists() {
        return Ok(());
    }
    let reader = LakeReader::new(&demo.dir.join("lake"));
    let mut detail = Vec::new();
    let mut agrees = true;
    for (table, rows) in lake.row_counts() {
        if demo.dir.join("lake").join(table).exists() {
            let counted = reader
                .count(&format!("SELECT count(*) FROM {table}"))
                .with_context(|| format!("counting {table} with DuckDB"))?;
            agrees &= counted == rows;
            detail.push(counted.to_string());
        }
    }
    demo.checks.push(Check::new(
        "DuckDB reads the same tables",
        agrees,
        format!("rows: {}", detail.join(", ")),
    ));
    Ok(())
}

fn print_checks(narrator: &Narrator, checks: &[Check]) {
    narrator.print(Tone::Plain, "");
    let width = checks.iter().map(|check| check.what.chars().count()).max().unwrap_or(0);
    for check in checks {
        let (tone, word) = if check.passed { (Tone::Plain, "pass") } else { (Tone::Alarm, "FAIL") };
        let padding = " ".repeat(width - check.what.chars().count());
        narrator.print(tone, &format!("   {word}  {}{padding}  {}", check.what, check.detail));
    }
}

fn print_table(
    narrator: &Narrator,
    lake: &Lake,
    edge: &EdgeFigures,
    made: &Made,
    tally: &Tally,
    alerts: usize,
) {
    let commands = lake.latencies("trip", "command_latency_micros");
    let confirmations = lake.latencies("stop-confirmed", "confirmation_latency_micros");
    let quantiles = |sorted: &[u64]| {
        let at = |fraction| micros_as_ms(percentile(sorted, fraction));
        format!("p50 {:.2} ms   p99 {:.2} ms   ({} stops)", at(0.5), at(0.99), sorted.len())
    };
    let samples: u64 = tally.samples.values().sum();
    let lake_rows: Vec<String> = lake
        .row_counts()
        .iter()
        .filter(|(_, rows)| *rows > 0)
        .map(|(table, rows)| format!("{table} {rows}"))
        .collect();
    let lines = [
        ("last sample in → stop command out", quantiles(&commands)),
        ("last sample in → standstill confirmed", quantiles(&confirmations)),
        (
            "records made",
            format!(
                "{}  ({} scalar readings; {} windows from {samples} samples in {} blocks)",
                made.total(),
                made.scalars,
                made.windows,
                samples / BLOCK_SAMPLES as u64
            ),
        ),
        ("held back by the dead band", edge.filtered.to_string()),
        ("journalled (with machine events)", edge.journalled.to_string()),
        ("delivered to Kafka", edge.delivered.to_string()),
        ("lost", lake.lost(edge.journalled).to_string()),
        ("duplicates", lake.duplicates().to_string()),
        ("anomalous windows", lake.anomalous_windows().len().to_string()),
        ("alerts received by the webhook", alerts.to_string()),
        ("rows in the Delta tables", lake_rows.join(", ")),
    ];
    narrator.print(Tone::Plain, "");
    for (what, figure) in lines {
        narrator.print(Tone::Plain, &format!("   {what:<38} {figure}"));
    }
}

fn print_places(narrator: &Narrator, dir: &Path) {
    let shown = dir.display();
    narrator.print(Tone::Plain, "");
    narrator.print(Tone::Plain, &format!("   tables          {shown}/lake"));
    narrator.print(Tone::Plain, &format!("   journal         {shown}/edge"));
    narrator.print(
        Tone::Plain,
        &format!("   configurations  {shown}/edge-module.toml, {shown}/cloud-aggregator.toml"),
    );
    let python = crate::setup_dir().join("venv/bin/python");
    let script = crate::workspace_root().join("tests/src/lake_reader.py");
    narrator.print(Tone::Plain, "   read the tables with");
    let query = "SELECT rule, sensor_id, window_start, count, revision, is_anomaly FROM anomalies";
    let command = format!("{} query {shown}/lake '{query}'", script.display());
    let line = if python.exists() {
        format!("     {} {command}", python.display())
    } else {
        let venv = format!("{shown}/venv/bin");
        format!(
            "     python3 -m venv {shown}/venv && {venv}/pip install duckdb && {venv}/python {command}"
        )
    };
    narrator.print(Tone::Faint, &line);
}

fn micros_as_ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}
