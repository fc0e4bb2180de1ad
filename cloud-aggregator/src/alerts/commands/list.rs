//! The alerts of the table `alerts`, one line each.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use aggregator_core::AlertState;
use deltalake::arrow::array::Array as _;
use deltalake::arrow::record_batch::RecordBatch;
use serde_json::json;
use shared_proto::model::EventTime;

use super::AlertsError;
use crate::cli::{AlertsList, Format};
use crate::config;
use crate::dead_letters::moment;
use crate::dead_letters::print_table;
use crate::lake_reader::{Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};

/// The table.
const ALERTS: &str = "alerts";
/// Most alerts that are held in memory.
const ALERTS_MAX: usize = 1_000_000;
/// Digits of an alert's id that a list for people shows.
const ID_DIGITS: usize = 12;
const MICROS_PER_SECOND: i64 = 1_000_000;

/// An alert as its newest row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) alert_id: String,
    pub(super) revision: i32,
    pub(super) state: AlertState,
    pub(super) rule: String,
    pub(super) severity: i32,
    pub(super) machine_id: Option<String>,
    pub(super) sensor_id: Option<String>,
    pub(super) fired_at: EventTime,
    pub(super) changed_at: Option<EventTime>,
    pub(super) resolved_at: Option<EventTime>,
    pub(super) findings: i64,
    pub(super) suppressed_by: Option<String>,
}

impl Listed {
    fn is_open(&self) -> bool {
        match self.state {
            AlertState::Fired => true,
            AlertState::Resolved => false,
        }
    }

    /// Until it was resolved, or until now. Clocks of two aggregators differ: nothing lasts less than no time.
    pub(super) fn lasted(&self, now: EventTime) -> Duration {
        let end = match self.state {
            AlertState::Fired => now,
            AlertState::Resolved => self.resolved_at.or(self.changed_at).unwrap_or(self.fired_at),
        };
        let micros = end.micros_since(self.fired_at).max(0);
        Duration::from_secs((micros / MICROS_PER_SECOND).unsigned_abs())
    }

    /// Machine and sensor, as far as they are known.
    fn place(&self) -> String {
        let parts = [self.machine_id.as_deref(), self.sensor_id.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// Which alerts are listed.
pub(super) struct Wanted<'a> {
    pub(super) arguments: &'a AlertsList,
    pub(super) since: Option<EventTime>,
}

impl Wanted<'_> {
    /// Asked of every row: these are the same in all rows of an alert.
    pub(super) fn takes(&self, row: &Listed) -> bool {
        let AlertsList { machine, rule, .. } = self.arguments;
        let is_name = |name: &String| {
            [&row.machine_id, &row.sensor_id].into_iter().any(|id| id.as_ref() == Some(name))
        };
        self.since.is_none_or(|since| row.fired_at >= since)
            && machine.as_ref().is_none_or(is_name)
            && rule.as_ref().is_none_or(|rule| *rule == row.rule)
    }

    /// Asked of the newest row alone: only it knows whether the alert is over.
    pub(super) fn takes_newest(&self, row: &Listed) -> bool {
        !self.arguments.open || row.is_open()
    }
}

/// Prints the newest row of each alert, those that last first, of these the newest first.
///
/// # Errors
/// There is no table, the storage refuses, `--since` is no moment, or nobody takes the output.
pub async fn list(
    lake: &config::Lake,
    arguments: &AlertsList,
    now: EventTime,
    out: &mut impl Write,
) -> Result<(), AlertsError> {
    let since = arguments.since.as_deref().map(|text| parse_when(text, now)).transpose()?;
    let wanted = Wanted { arguments, since };
    let mut alerts = read_alerts(lake, &wanted).await?;
    alerts.retain(|alert| wanted.takes_newest(alert));
    alerts.sort_by(|a, b| {
        let order = |alert: &Listed| (alert.is_open(), alert.fired_at);
        order(b).cmp(&order(a)).then_with(|| a.alert_id.cmp(&b.alert_id))
    });
    let open = alerts.iter().filter(|alert| alert.is_open()).count();
    let total = alerts.len();
    alerts.truncate(arguments.limit);
    match arguments.format {
        Format::Text => print_alerts(&alerts, (total, open), now, out)?,
        Format::Json => {
            for alert in &alerts {
                writeln!(out, "{}", as_json(alert, now))?;
            }
        }
    }
    Ok(())
}

/// As the other commands read it: a moment, a day, or how long ago.
pub(super) fn parse_when(text: &str, now: EventTime) -> Result<EventTime, AlertsError> {
    moment(text, now).ok_or_else(|| AlertsError::When { text: text.to_owned() })
}

async fn read_alerts(lake: &config::Lake, wanted: &Wanted<'_>) -> Result<Vec<Listed>, AlertsError> {
    let location = Location::existing(lake)?;
    let table = TableReader::find(&location, ALERTS).await?;
    let no_table = || AlertsError::NoTable { location: lake.location.clone() };
    let mut table = table.ok_or_else(no_table)?;
    table.load().await?;
    // All rows of an alert are in the partition of the day on which it fired.
    let first = wanted.since.filter(|since| since.is_in_rfc_3339());
    let first = first.map(|since| since.to_string()[..10].to_owned());
    let mut files = table.files()?;
    files.retain(|file| first.as_deref().is_none_or(|first| file.date() >= first));
    let mut newest = BTreeMap::<String, Listed>::new();
    for file in &files {
        let read = table.read(file, &COLUMNS, |batch| {
            let rows = (0..batch.num_rows()).filter_map(|at| alert_at(batch, at));
            rows.filter(|row| wanted.takes(row)).for_each(|row| keep_newest(&mut newest, row));
            if newest.len() > ALERTS_MAX {
                let text = format!("has more than {ALERTS_MAX} alerts to look at: give --since");
                return Err(LakeError::Rows { table: ALERTS.to_owned(), text });
            }
            Ok(())
        });
        read.await?;
    }
    Ok(newest.into_values().collect())
}

pub(super) fn keep_newest(newest: &mut BTreeMap<String, Listed>, row: Listed) {
    let known = newest.get(&row.alert_id);
    if known.is_none_or(|known| known.revision < row.revision) {
        newest.insert(row.alert_id.clone(), row);
    }
}

const COLUMNS: [&str; 12] = [
    "alert_id",
    "revision",
    "state",
    "rule",
    "severity",
    "machine_id",
    "sensor_id",
    "fired_at",
    "changed_at",
    "resolved_at",
    "findings",
    "suppressed_by",
];

/// Nothing for a state that this version does not know.
pub(super) fn alert_at(batch: &RecordBatch, at: usize) -> Option<Listed> {
    let row = Row(batch);
    let text = |name| text_at(row.texts(name), at).map(str::to_owned);
    let integer = |name| {
        let column = row.integers(name).filter(|column| column.is_valid(at))?;
        Some(column.value(at))
    };
    let time = |name| {
        let column = row.times(name).filter(|column| column.is_valid(at))?;
        Some(EventTime::from_micros(column.value(at)))
    };
    let states = [AlertState::Fired, AlertState::Resolved];
    let word = text("state")?;
    Some(Listed {
        alert_id: text("alert_id")?,
        revision: integer("revision")?,
        state: states.into_iter().find(|state| state.as_str() == word)?,
        rule: text("rule").unwrap_or_default(),
        severity: integer("severity").unwrap_or_default(),
        machine_id: text("machine_id"),
        sensor_id: text("sensor_id"),
        fired_at: time("fired_at")?,
        changed_at: time("changed_at"),
        resolved_at: time("resolved_at"),
        findings: long_at(row.longs("findings"), at).unwrap_or_default(),
        suppressed_by: text("suppressed_by"),
    })
}

pub(super) fn as_json(alert: &Listed, now: EventTime) -> serde_json::Value {
    json!({
        "alert_id": alert.alert_id,
        "revision": alert.revision,
        "state": alert.state.as_str(),
        "severity": alert.severity,
        "rule": alert.rule,
        "machine_id": alert.machine_id,
        "sensor_id": alert.sensor_id,
        "fired_at": alert.fired_at.to_string(),
        "changed_at": alert.changed_at.map(|time| time.to_string()),
        "resolved_at": alert.resolved_at.map(|time| time.to_string()),
        "lasted_s": alert.lasted(now).as_secs(),
        "findings": alert.findings,
        "suppressed_by": alert.suppressed_by,
    })
}

pub(super) fn print_alerts(
    alerts: &[Listed],
    (total, open): (usize, usize),
    now: EventTime,
    out: &mut impl Write,
) -> io::Result<()> {
    let headings = [
        "state",
        "severity",
        "rule",
        "machine, sensor",
        "fired at",
        "lasts, lasted",
        "findings",
        "suppressed by",
        "alert",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(alerts.iter().map(|alert| {
        vec![
            alert.state.as_str().to_owned(),
            alert.severity.to_string(),
            alert.rule.clone(),
            alert.place(),
            to_the_second(alert.fired_at),
            for_people(alert.lasted(now)),
            alert.findings.to_string(),
            alert.suppressed_by.clone().unwrap_or_default(),
            alert.alert_id.chars().take(ID_DIGITS).collect(),
        ]
    }));
    if !alerts.is_empty() {
        print_table(&rows, out)?;
    }
    writeln!(out, "{total} alerts, {open} of them open")?;
    if alerts.len() < total {
        writeln!(out, "the first {} of {total}; --limit shows more", alerts.len())?;
    }
    Ok(())
}

fn to_the_second(time: EventTime) -> String {
    let text = time.to_string();
    text.split_once('.').map_or_else(|| text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

/// Of what lasts for hours nobody reads the seconds.
pub(super) fn for_people(lasted: Duration) -> String {
    let seconds = lasted.as_secs();
    let shown = if seconds < 3_600 { seconds } else { seconds - seconds % 60 };
    humantime_serde::re::humantime::format_duration(Duration::from_secs(shown)).to_string()
}
