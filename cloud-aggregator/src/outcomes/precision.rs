//! How often alerts and trips were right, by what people found.
//!
//! An alert is one alert however many rows it has; what was suppressed and never told is counted apart. Of the rows of one outcome the
//! newest counts, by timestamp and then by offset; of several outcomes about one alert the newest with a verdict, and the alert is
//! counted as disputed if they differ. An outcome whose machine is not that of the alert or trip that it names contradicts itself: one
//! of both is a mistake, so it judges nothing and is counted apart. A note is no verdict. An alert without verdict is counted as that
//! and is never taken for right or wrong: the precision is confirmed / (confirmed + false alarms).

use std::collections::BTreeMap;

use serde::Serialize;
use shared_proto::model::{EventTime, OutcomeVerdict};

/// The normal distribution's quantile of 97.5 %, for an interval of 95 %.
const Z: f64 = 1.959_963_984_540_054;
/// Name of a machine, rule or model that is not known.
const NOT_KNOWN: &str = "(not known)";

/// A row of `alerts`.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertRow {
    /// The alert.
    pub alert_id: String,
    /// Its rule.
    pub rule: String,
    /// Its machine, or sensor where no machine is known.
    pub machine: String,
    /// Whether that is a machine: of a sensor's alert nobody can say which machine is wrong.
    pub is_of_machine: bool,
    /// The trip that it tells, if it tells one.
    pub trip_id: Option<String>,
    /// When it was first fired.
    pub fired_at: EventTime,
    /// Whether this event was suppressed.
    pub is_suppressed: bool,
}

/// A row of `outcomes`.
#[derive(Clone, Debug, PartialEq)]
pub struct OutcomeRow {
    /// The outcome.
    pub outcome_id: String,
    /// What was found.
    pub verdict: OutcomeVerdict,
    /// The machine that it speaks of.
    pub machine: String,
    /// The alert that it judges.
    pub alert_id: Option<String>,
    /// The trip that it judges.
    pub trip_id: Option<String>,
    /// When it was found.
    pub timestamp: EventTime,
    /// Kafka offset and partition of the record.
    pub place: (i64, i32),
}

/// A trip by a model's score, of `machine_events`.
#[derive(Clone, Debug, PartialEq)]
pub struct TripRow {
    /// The trip.
    pub trip_id: String,
    /// Its machine; empty if it is not known.
    pub machine: String,
    /// The model in force, as `name@version`.
    pub model: Option<String>,
    /// When it tripped.
    pub timestamp: EventTime,
}

/// What is known of some alerts or trips.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// How many there were.
    pub alerts: u64,
    /// Of these, with a verdict.
    pub with_outcome: u64,
    /// Of these, without: neither right nor wrong.
    pub without_outcome: u64,
    /// Right: confirmed, or a part was replaced.
    pub confirmed: u64,
    /// Wrong.
    pub false_alarms: u64,
    /// Of those with a verdict, about which several outcomes differ: the newest counts.
    pub disputed: u64,
    /// Confirmed of those with a verdict, 0 to 1.
    pub precision: Option<f64>,
    /// Where the precision lies with 95 %: see [`wilson`].
    pub precision_low: Option<f64>,
    /// The other end.
    pub precision_high: Option<f64>,
    /// From the alert to the first verdict, the median, in seconds.
    pub median_seconds_to_outcome: Option<f64>,
}

/// One machine in one month.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The machine, or the sensor of an alert without machine.
    pub machine: String,
    /// In UTC, such as `2026-03`.
    pub month: String,
    /// What is known.
    #[serde(flatten)]
    pub figures: Figures,
}

/// One rule or model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Over all machines and months.
    #[serde(flatten)]
    pub figures: Figures,
    /// By machine, then by month.
    pub parts: Vec<Part>,
}

/// The report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Precision {
    /// Of all alerts that were told.
    pub all: Figures,
    /// Of the alerts of each rule.
    pub rules: Vec<Group>,
    /// Of the trips by a score of each model, told as alerts or not.
    pub models: Vec<Group>,
    /// Alerts that were suppressed and never told: in no other figure.
    pub suppressed_alerts: u64,
    /// Outcomes, each once.
    pub outcomes: u64,
    /// Outcomes with a verdict about an alert or a trip of another machine than theirs: in no other figure.
    pub outcomes_of_other_machines: u64,
    /// Outcomes with a verdict about alerts or trips that are not among those looked at.
    pub outcomes_of_others: u64,
    /// Outcomes that confirm a failure and name neither alert nor trip: nobody was warned.
    pub failures_without_alert: u64,
}

/// The interval in which the share of successes lies with 95 %, by so many trials (E. B. Wilson, "Probable inference, the law of
/// succession, and statistical inference", Journal of the American Statistical Association 22, 1927, pages 209 to 212). Nothing
/// without trials.
#[must_use]
pub fn wilson(successes: u64, trials: u64) -> Option<(f64, f64)> {
    if trials == 0 {
        return None;
    }
    let (trials, share) = (trials as f64, successes as f64 / trials as f64);
    let square = Z * Z / trials;
    let middle = (share + square / 2.0) / (1.0 + square);
    let spread = share * (1.0 - share) / trials + square / (4.0 * trials);
    let half = Z * spread.sqrt() / (1.0 + square);
    // Rounding must not put the share itself out of the interval.
    Some(((middle - half).clamp(0.0, share), (middle + half).clamp(share, 1.0)))
}

/// Computes the report. The order of the rows does not matter.
#[must_use]
pub fn precision(alerts: &[AlertRow], outcomes: &[OutcomeRow], trips: &[TripRow]) -> Precision {
    let (alerts, suppressed_alerts) = told(alerts);
    let trips = first_of_each(trips);
    let newest = newest_of_each(outcomes);
    let alert_of_trip: BTreeMap<&str, &str> = alerts
        .values()
        .filter_map(|alert| Some((alert.trip_id.as_deref()?, alert.alert_id.as_str())))
        .collect();
    let mut report = Precision { suppressed_alerts, ..Precision::default() };
    let mut of_alerts = BTreeMap::<&str, Judgement>::new();
    let mut of_trips = BTreeMap::<&str, Judgement>::new();
    for found in newest.values() {
        report.outcomes += 1;
        let Some(judgement) = found.judgement() else { continue };
        let (alert_id, trip_id) = (found.row.alert_id.as_deref(), found.row.trip_id.as_deref());
        let named = alert_id.and_then(|id| alerts.get(id)).map(|alert| alert.alert_id.as_str());
        let alert = named.or_else(|| alert_of_trip.get(trip_id?).copied());
        let told_trip =
            alert.and_then(|id| alerts.get(id)).and_then(|alert| alert.trip_id.as_deref());
        let trip = trip_id.filter(|id| trips.contains_key(id));
        let trip = trip.or_else(|| told_trip.filter(|id| trips.contains_key(id)));
        let judged = (alert.and_then(|id| alerts.get(id)), trip.and_then(|id| trips.get(id)));
        if is_of_other_machine(found.row, judged) {
            report.outcomes_of_other_machines += 1;
            continue;
        }
        if let Some(alert) = alert {
            Judgement::add(&mut of_alerts, alert, judgement.clone());
        }
        if let Some(trip) = trip {
            Judgement::add(&mut of_trips, trip, judgement.clone());
        }
        if alert_id.is_none() && trip_id.is_none() {
            report.failures_without_alert += u64::from(judgement.is_right);
        } else if alert.is_none() && trip.is_none() {
            report.outcomes_of_others += 1;
        }
    }
    let mut all = Tally::default();
    let mut by_rule = Tallies::default();
    for alert in alerts.values() {
        let judged = of_alerts.get(alert.alert_id.as_str());
        all.add(alert.fired_at, judged);
        by_rule.add(&alert.rule, &alert.machine, alert.fired_at, judged);
    }
    let mut by_model = Tallies::default();
    for trip in trips.values() {
        let judged = of_trips.get(trip.trip_id.as_str());
        let model = trip.model.as_deref().unwrap_or_default();
        by_model.add(model, &trip.machine, trip.timestamp, judged);
    }
    Precision { all: all.figures(), rules: by_rule.groups(), models: by_model.groups(), ..report }
}

/// Whether the machine of an outcome is not that of what it judges.
fn is_of_other_machine(
    outcome: &OutcomeRow,
    (alert, trip): (Option<&&AlertRow>, Option<&&TripRow>),
) -> bool {
    let alert = alert.filter(|alert| alert.is_of_machine).map(|alert| alert.machine.as_str());
    let trip = trip.map(|trip| trip.machine.as_str()).filter(|machine| !machine.is_empty());
    alert.into_iter().chain(trip).any(|machine| machine != outcome.machine)
}

/// A row of each alert that was told, and how many alerts were not.
fn told(rows: &[AlertRow]) -> (BTreeMap<&str, &AlertRow>, u64) {
    let mut alerts = BTreeMap::<&str, &AlertRow>::new();
    let mut suppressed = BTreeMap::<&str, bool>::new();
    for row in rows {
        let alert = alerts.entry(&row.alert_id).or_insert(row);
        if row.fired_at < alert.fired_at {
            *alert = row;
        }
        *suppressed.entry(&row.alert_id).or_insert(true) &= row.is_suppressed;
    }
    let count = suppressed.values().filter(|is_suppressed| **is_suppressed).count();
    alerts.retain(|alert_id, _| suppressed.get(alert_id) == Some(&false));
    (alerts, count as u64)
}

fn first_of_each(rows: &[TripRow]) -> BTreeMap<&str, &TripRow> {
    let mut trips = BTreeMap::<&str, &TripRow>::new();
    for row in rows {
        let trip = trips.entry(&row.trip_id).or_insert(row);
        if row.timestamp < trip.timestamp {
            *trip = row;
        }
    }
    trips
}

/// The newest row of an outcome.
struct Found<'a> {
    row: &'a OutcomeRow,
    /// When it first said whether the alert was right.
    first: Option<EventTime>,
}

type Newness<'a> = (EventTime, (i64, i32), &'a str);

impl<'a> Found<'a> {
    fn newness(row: &'a OutcomeRow) -> Newness<'a> {
        (row.timestamp, row.place, &row.outcome_id)
    }

    fn judgement(&self) -> Option<Judgement<'a>> {
        let is_right = self.row.verdict.is_right()?;
        let first = self.first.unwrap_or(self.row.timestamp);
        let newness = Self::newness(self.row);
        Some(Judgement { is_right, newness, first, is_disputed: false })
    }
}

fn newest_of_each(rows: &[OutcomeRow]) -> BTreeMap<&str, Found<'_>> {
    let mut newest = BTreeMap::<&str, Found<'_>>::new();
    for row in rows {
        let first = row.verdict.is_right().map(|_| row.timestamp);
        let found = newest.entry(&row.outcome_id).or_insert(Found { row, first });
        if Found::newness(row) > Found::newness(found.row) {
            found.row = row;
        }
        found.first = found.first.into_iter().chain(first).min();
    }
    newest
}

/// What people say of an alert or a trip.
#[derive(Clone)]
struct Judgement<'a> {
    is_right: bool,
    newness: Newness<'a>,
    first: EventTime,
    is_disputed: bool,
}

impl<'a> Judgement<'a> {
    fn add(judged: &mut BTreeMap<&'a str, Self>, of: &'a str, other: Self) {
        let known = judged.entry(of).or_insert_with(|| other.clone());
        known.is_disputed |= known.is_right != other.is_right;
        known.first = known.first.min(other.first);
        if other.newness > known.newness {
            (known.is_right, known.newness) = (other.is_right, other.newness);
        }
    }
}

#[derive(Default)]
struct Tally {
    alerts: u64,
    confirmed: u64,
    false_alarms: u64,
    disputed: u64,
    /// From the alert to the first verdict, in microseconds.
    waits: Vec<i64>,
}

impl Tally {
    fn add(&mut self, since: EventTime, judged: Option<&Judgement<'_>>) {
        self.alerts += 1;
        let Some(judged) = judged else { return };
        self.confirmed += u64::from(judged.is_right);
        self.false_alarms += u64::from(!judged.is_right);
        self.disputed += u64::from(judged.is_disputed);
        // Who finds it before the alert has not waited: clocks differ, and alerts of a backlog come late.
        self.waits.push(judged.first.micros_since(since).max(0));
    }

    fn figures(mut self) -> Figures {
        let with_outcome = self.confirmed + self.false_alarms;
        let interval = wilson(self.confirmed, with_outcome);
        Figures {
            alerts: self.alerts,
            with_outcome,
            without_outcome: self.alerts - with_outcome,
            confirmed: self.confirmed,
            false_alarms: self.false_alarms,
            disputed: self.disputed,
            precision: interval.map(|_| self.confirmed as f64 / with_outcome as f64),
            precision_low: interval.map(|(low, _)| low),
            precision_high: interval.map(|(_, high)| high),
            median_seconds_to_outcome: median(&mut self.waits).map(|micros| micros / 1e6),
        }
    }
}

fn median(values: &mut [i64]) -> Option<f64> {
    values.sort_unstable();
    let middle = values.len() / 2;
    let upper = *values.get(middle)? as f64;
    match values.len() % 2 {
        0 => Some((values[middle - 1] as f64 + upper) / 2.0),
        _ => Some(upper),
    }
}

/// By rule or model.
#[derive(Default)]
struct Tallies(BTreeMap<String, Divided>);

#[derive(Default)]
struct Divided {
    whole: Tally,
    /// By machine and month.
    parts: BTreeMap<(String, String), Tally>,
}

impl Tallies {
    fn add(&mut self, name: &str, machine: &str, since: EventTime, judged: Option<&Judgement<'_>>) {
        let known = |text: &str| if text.is_empty() { NOT_KNOWN } else { text }.to_owned();
        let month = since.to_string().get(..7).unwrap_or(NOT_KNOWN).to_owned();
        let divided = self.0.entry(known(name)).or_default();
        divided.whole.add(since, judged);
        divided.parts.entry((known(machine), month)).or_default().add(since, judged);
    }

    fn groups(self) -> Vec<Group> {
        let part = |((machine, month), tally): ((String, String), Tally)| Part {
            machine,
            month,
            figures: tally.figures(),
        };
        let group = |(name, divided): (String, Divided)| Group {
            name,
            figures: divided.whole.figures(),
            parts: divided.parts.into_iter().map(part).collect(),
        };
        self.0.into_iter().map(group).collect()
    }
}

#[cfg(test)]
mod tests;
