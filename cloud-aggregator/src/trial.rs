//! Rules over a file of readings: what windows they make, for people who write rules.
//!
//! Every window is judged as if all its readings had come in time: nothing is late, nothing is forgotten, in whatever order the
//! lines are. A record that is in the file twice counts once, as in the tables. Nothing says in which topic a reading would stand:
//! windows are counted over all of them, and rules for which a run may count otherwise are told.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use aggregator_core::{
    AnomalyRow, Disposition, Micros, OutputMode, Outputs, PartitionState, ProcessingTime, Settings,
};
use serde_json::json;
use shared_proto::codec::{Decoder, Encoding};
use shared_proto::model::{DeviceId, EventTime, Reading, Sequence};

use crate::cli::Format;
use crate::config::SpreadRule;

/// Lines that are no readings are told one by one up to this many.
const COMPLAINTS_MAX: u64 = 20;
/// What some programs write before the first line of a file in UTF-8. Records on Kafka have none.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Why there is no trial.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No line is a reading.
    #[error(
        "none of {lines} lines is a reading: give one JSON object a line, as on the Kafka topics"
    )]
    NoReading {
        /// Lines read.
        lines: u64,
    },
    /// Nobody takes the output.
    #[error("the windows cannot be written")]
    Output(#[from] io::Error),
}

/// What came of a trial.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trial {
    /// Every window with a match, by rule, sensor or machine, and start.
    pub windows: Vec<AnomalyRow>,
    /// Readings, without the repeats.
    pub readings: u64,
    /// Records of devices that were in the file before.
    pub repeats: u64,
    /// Lines that are no readings.
    pub refused: u64,
    /// Readings of rules by machine that name no machine.
    pub without_machine: u64,
    /// Rules whose windows are counted in several topics when they run. [`run`] does not know them: topics are not its concern.
    pub spread: Vec<SpreadRule>,
}

impl Trial {
    /// Where a run may count otherwise: a line for each rule.
    pub fn spread_notes(&self) -> impl Iterator<Item = String> {
        self.spread.iter().map(|SpreadRule { name, by, topics, .. }| {
            format!(
                "rule {name:?}: in a run the windows of a {} are counted by topic ({}), here over all topics together",
                by.as_str(),
                topics.join(", ")
            )
        })
    }
}

/// Runs the rules of `settings` over the lines of a file (`-`: standard input). Lines that are no readings are told to `tell` with
/// the reason that their dead letters would have.
///
/// # Errors
/// The file cannot be read, or holds no reading.
pub fn run(
    settings: &Settings,
    path: &Path,
    tell: &mut impl FnMut(&str),
) -> Result<Trial, TrialError> {
    let failed = |source| TrialError::Input { path: path.to_owned(), source };
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).map_err(failed)?))
    };
    let settings = unlimited(settings);
    // Nobody is ahead of this clock.
    let now = ProcessingTime::from_micros(i64::MAX);
    let (mut decoder, mut out) = (Decoder::default(), Outputs::default());
    let mut state = PartitionState::new(&settings);
    let (mut trial, mut lines, mut seen) = (Trial::default(), 0, Seen::default());
    for line in input.split(b'\n') {
        let line = line.map_err(failed)?;
        let is_first = lines == 0;
        lines += 1;
        let record = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| is_first).unwrap_or(&line);
        if record.trim_ascii().is_empty() {
            continue;
        }
        let refusal = match decoder.decode_reading(record, Encoding::Json) {
            Ok(decoded) => {
                let mut reading = decoded.reading;
                if seen.is_repeat(&mut reading, lines) {
                    trial.repeats += 1;
                    continue;
                }
                match state.handle_reading(&reading, now, &settings, &mut out) {
                    Disposition::Counted => None,
                    // Without limits there are none; what is not counted must not pass for a reading.
                    Disposition::Late => Some(("late", "it is late".to_owned())),
                    Disposition::Duplicate => Some(("duplicate", "it is a repeat".to_owned())),
                    Disposition::DeadLetter { reason, detail } => Some((reason, detail)),
                }
            }
            Err(error) => Some((error.reason(), error.detail())),
        };
        // Alerts are of no interest here.
        out.findings.clear();
        match refusal {
            None => trial.readings += 1,
            Some((reason, detail)) => {
                trial.refused += 1;
                if trial.refused <= COMPLAINTS_MAX {
                    tell(&format!("left out: line {lines}: {reason}: {detail}"));
                }
            }
        }
    }
    if trial.readings == 0 {
        return Err(TrialError::NoReading { lines });
    }
    trial.without_machine = state.figures().unmatched.without_machine;
    trial.windows = state.current_rows(now, &settings);
    let key = |row: &AnomalyRow| (row.rule.clone(), row.group().to_owned(), row.window_start);
    trial.windows.sort_by_cached_key(key);
    Ok(trial)
}

/// Which records the file has had: the core knows repeats by a device's numbers, which ascend in Kafka, but not in a file that is
/// sorted by sensor.
#[derive(Default)]
struct Seen {
    /// By device and generation.
    numbers: HashMap<(DeviceId, u64), HashSet<u64>>,
}

impl Seen {
    /// Whether the record was there before. It gets the number of its line, so that numbers ascend.
    fn is_repeat(&mut self, reading: &mut Reading, line: u64) -> bool {
        let Some(identity) = &mut reading.identity else { return false };
        let of_device = (identity.device_id.clone(), identity.generation.0);
        let is_new = self.numbers.entry(of_device).or_default().insert(identity.sequence.0);
        identity.sequence = Sequence(line);
        !is_new
    }
}

/// The rules with room for every window of a file. No window closes, so that none is looked at again and again for being forgotten.
fn unlimited(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    for rule in &mut settings.rules {
        rule.output_mode = OutputMode::Complete;
    }
    settings.allowed_lateness = Micros::new(i64::MAX);
    settings.closed_window_retention = Micros::new(i64::MAX);
    settings.sensors_max = usize::MAX;
    settings.metric_types_max = usize::MAX;
    settings.windows_max = usize::MAX;
    settings.windows_per_sensor_max = usize::MAX;
    settings.devices_max = usize::MAX;
    settings.generations_per_device_max = usize::MAX;
    settings
}

/// Prints windows, and for people a summary.
///
/// # Errors
/// Nobody takes the output.
pub fn print(
    trial: &Trial,
    (format, only_anomalies): (Format, bool),
    out: &mut impl Write,
) -> Result<(), TrialError> {
    let shown = trial.windows.iter().filter(|row| row.is_anomaly || !only_anomalies);
    match format {
        Format::Json => {
            for row in shown {
                writeln!(out, "{}", as_json(row))?;
            }
        }
        Format::Text => {
            let rows: Vec<[String; 10]> =
                std::iter::once(HEADINGS.map(str::to_owned)).chain(shown.map(as_cells)).collect();
            print_table(&rows, out)?;
            let anomalies = trial.windows.iter().filter(|row| row.is_anomaly).count();
            writeln!(
                out,
                "{} readings, {} other lines, {} windows with matches, {anomalies} anomalies",
                trial.readings,
                trial.refused,
                trial.windows.len(),
            )?;
            if trial.repeats > 0 {
                let count = trial.repeats;
                writeln!(
                    out,
                    "{count} repeats of records that are in the file before: not counted"
                )?;
            }
            if trial.without_machine > 0 {
                let count = trial.without_machine;
                writeln!(
                    out,
                    "{count} matches of rules by machine name no machine_id: not counted"
                )?;
            }
            for note in trial.spread_notes() {
                writeln!(out, "{note}")?;
            }
        }
    }
    Ok(())
}

const HEADINGS: [&str; 10] = [
    "rule",
    "sensor or machine",
    "window start",
    "window end",
    "count",
    "min",
    "mean",
    "max",
    "rate of change",
    "anomaly",
];

fn as_cells(row: &AnomalyRow) -> [String; 10] {
    [
        row.rule.clone(),
        row.group().to_owned(),
        short(row.window_start),
        short(row.window_end),
        row.count.to_string(),
        number(row.min_value),
        number(row.mean_value),
        number(row.max_value),
        row.rate_of_change.map_or_else(|| "-".to_owned(), number),
        if row.is_anomaly { "yes" } else { "no" }.to_owned(),
    ]
}

/// Very large ones must not take the table apart.
fn number(value: f64) -> String {
    if value.abs() < 1e12 { format!("{value:.3}") } else { format!("{value:.3e}") }
}

/// Windows seldom begin between two seconds.
fn short(time: EventTime) -> String {
    time.to_string().replace(".000000Z", "Z")
}

fn print_table(rows: &[[String; 10]], out: &mut impl Write) -> io::Result<()> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADINGS.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            // Numbers stand to the right.
            if (4..9).contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn as_json(row: &AnomalyRow) -> serde_json::Value {
    json!({
        "rule": row.rule,
        "sensor_id": row.sensor_id.as_ref().map(|id| id.as_str()),
        "machine_id": row.machine_id.as_ref().map(|id| id.as_str()),
        "window_start": row.window_start.to_string(),
        "window_end": row.window_end.to_string(),
        "is_anomaly": row.is_anomaly,
        "count": row.count,
        "min_value": row.min_value,
        "mean_value": row.mean_value,
        "max_value": row.max_value,
        "rate_of_change": row.rate_of_change,
        "first_match": row.first_match.to_string(),
        "last_match": row.last_match.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn windows_of_a_file_are_printed_with_what_is_wrong_in_it() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for second in 0..6 {
            writeln!(
                file,
                r#"{{"sensor_id":"s","timestamp":"2026-03-01T08:00:0{second}Z","metric_type":"temperature","value":{}}}"#,
                101 + second
            )
            .expect("written");
        }
        writeln!(file, r#"{{"sensor_id":"t","timestamp":"2026-03-01T08:01:00Z","metric_type":"temperature","value":101}}"#)
            .expect("written");
        writeln!(file, "\n{{}}").expect("written");
        let (trial, told) = run_file(file.path());
        assert_eq!(told, ["left out: line 9: missing-field: field `sensor_id` is missing"]);
        let mut text = Vec::new();
        print(&trial, (Format::Text, false), &mut text).expect("written");
        let text = String::from_utf8(text).expect("UTF-8");
        let expected = "\
rule                   sensor or machine  window start          window end            count      min     mean      max  rate of change  anomaly
temperature-above-100  s                  2026-03-01T08:00:00Z  2026-03-01T08:01:00Z      6  101.000  103.500  106.000           1.000  yes
temperature-above-100  t                  2026-03-01T08:01:00Z  2026-03-01T08:02:00Z      1  101.000  101.000  101.000               -  no
7 readings, 1 other lines, 2 windows with matches, 1 anomalies
";
        assert_eq!(text, expected);
        let mut json = Vec::new();
        print(&trial, (Format::Json, true), &mut json).expect("written");
        let row: serde_json::Value = serde_json::from_slice(&json).expect("one object");
        assert_eq!((&row["sensor_id"], &row["count"]), (&"s".into(), &6.into()));
    }

    fn run_file(path: &Path) -> (Trial, Vec<String>) {
        let mut told = Vec::new();
        let trial = run(&Settings::default(), path, &mut |text| told.push(text.to_owned()));
        (trial.expect("readings"), told)
    }

    fn run_lines(lines: &[String]) -> (Trial, Vec<String>) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(lines.join("\n").as_bytes()).expect("written");
        run_file(file.path())
    }

    /// Of lines that are all readings.
    fn run_readings(lines: &[String]) -> Trial {
        let (trial, told) = run_lines(lines);
        assert_eq!(told, [""; 0]);
        trial
    }

    fn line(timestamp: &str, identity: &str) -> String {
        format!(
            r#"{{"sensor_id":"s","timestamp":"{timestamp}","metric_type":"temperature","value":101{identity}}}"#
        )
    }

    #[test]
    fn readings_of_all_times_count_in_whatever_order_they_are() {
        let times = [
            "9999-12-31T23:59:59Z",
            "2026-03-01T08:00:00Z",
            "2000-01-01T00:00:00Z",
            "2024-02-29T12:00:00Z",
            "2026-03-01T08:00:01Z",
        ];
        let trial = run_readings(&times.map(|time| line(time, "")));
        assert_eq!((trial.readings, trial.refused), (5, 0));
        let windows = trial.windows.iter().map(|row| (short(row.window_start), row.count));
        let expected = [
            ("2000-01-01T00:00:00Z", 1_u64),
            ("2024-02-29T12:00:00Z", 1),
            ("2026-03-01T08:00:00Z", 2),
            ("9999-12-31T23:59:00Z", 1),
        ];
        let expected = expected.map(|(start, count)| (start.to_owned(), count));
        assert_eq!(windows.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn repeats_are_told_and_records_in_another_order_are_none() {
        let mut lines = Vec::new();
        // More generations than the limit keeps, and numbers that descend.
        for generation in 1..=9 {
            for sequence in (1..=3).rev() {
                let device = r#""device_id":"gw""#;
                let identity =
                    format!(r#",{device},"generation":{generation},"sequence":{sequence}"#);
                lines.push(line("2026-03-01T08:00:00Z", &identity));
            }
        }
        let again = [lines[0].clone(), lines[26].clone()];
        lines.extend(again);
        let trial = run_readings(&lines);
        assert_eq!((trial.readings, trial.repeats, trial.refused), (27, 2, 0));
        assert_eq!(trial.windows.len(), 1);
        assert_eq!(trial.windows[0].count, 27);
        let mut text = Vec::new();
        print(&trial, (Format::Text, false), &mut text).expect("written");
        let text = String::from_utf8(text).expect("UTF-8");
        let told = "27 readings, 0 other lines, 1 windows with matches, 1 anomalies\n\
                    2 repeats of records that are in the file before: not counted\n";
        assert!(text.ends_with(told), "{text}");
    }

    #[test]
    fn rules_whose_windows_are_counted_by_topic_in_a_run_are_told_below_the_windows() {
        let mut settings = crate::config::Settings::load(None).expect("valid defaults");
        let name = "hot".to_owned();
        let filter = "value > 100".to_owned();
        let by = "machine".to_owned();
        settings.rules.push(crate::config::Rule { name, filter, by, ..settings.rules[0].clone() });
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for (second, metric) in ["temperature", "pressure"].repeat(4).into_iter().enumerate() {
            writeln!(
                file,
                r#"{{"sensor_id":"{metric}","machine_id":"m","timestamp":"2026-03-01T08:00:0{second}Z","metric_type":"{metric}","value":101}}"#
            )
            .expect("written");
        }
        let trial = run(&settings.core(), file.path(), &mut |_| {}).expect("readings");
        let trial = Trial { spread: settings.spread_rules(), ..trial };
        let mut text = Vec::new();
        print(&trial, (Format::Text, false), &mut text).expect("written");
        let text = String::from_utf8(text).expect("UTF-8");
        let told = "8 readings, 0 other lines, 2 windows with matches, 1 anomalies\n\
            rule \"hot\": in a run the windows of a machine are counted by topic (pressure, temperature, vibration), \
            here over all topics together\n";
        assert!(text.ends_with(told), "{text}");
        let mut json = Vec::new();
        print(&trial, (Format::Json, false), &mut json).expect("written");
        let json = String::from_utf8(json).expect("UTF-8");
        assert_eq!(json.lines().count(), 2, "windows alone: {json}");
    }

    #[test]
    fn lines_that_are_left_out_are_told_with_the_reason_of_their_dead_letters() {
        let lines = [
            line("2026-03-01T08:00:00Z", ""),
            "no reading".to_owned(),
            line("yesterday", ""),
            line("1970-01-01T00:00:00Z", ""),
            line("2026-03-01T08:00:00Z", "").replace(r#""s""#, r#""""#),
        ];
        let (trial, told) = run_lines(&lines);
        assert_eq!((trial.readings, trial.refused), (1, 4));
        let reasons = ["2: json: ", "3: timestamp: ", "4: timestamp-too-old: ", "5: name: "];
        assert_eq!(told.len(), reasons.len(), "{told:?}");
        for (text, reason) in told.iter().zip(reasons) {
            assert!(text.starts_with(&format!("left out: line {reason}")), "{reason}: {told:?}");
        }
    }

    #[test]
    fn byte_order_mark_before_the_first_line_is_no_part_of_it() {
        let readings = [line("2026-03-01T08:00:00Z", ""), line("2026-03-01T08:00:01Z", "")];
        let marked = readings.map(|line| format!("\u{feff}{line}"));
        let (trial, told) = run_lines(&marked);
        assert_eq!((trial.readings, trial.refused), (1, 1), "one belongs to the whole file");
        assert!(told[0].starts_with("left out: line 2: json: "), "{told:?}");
    }

    #[test]
    fn a_file_without_readings_and_one_that_is_not_there_are_errors() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = run(&Settings::default(), file.path(), &mut |_| {}).expect_err("no reading");
        assert!(error.to_string().starts_with("none of 0 lines"), "{error}");
        let error = run(&Settings::default(), Path::new("/nonexistent"), &mut |_| {});
        assert!(matches!(error, Err(TrialError::Input { .. })));
    }
}
