//! Windows by their definition: for every matching reading every window that holds it. Nothing of the streaming core but
//! filters and names of rules.

use std::collections::BTreeMap;

use aggregator_core::{Aggregate, GroupBy, OutputMode, Rule};
use shared_proto::model::Reading;

/// Two sums of the same numbers in another order differ by less, for each unit of their size.
const ROUNDING: f64 = 1e-9;

/// Rule, sensor or machine, start.
pub(crate) type WindowKey = (String, String, i64);

/// What a batch finds in one window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Counted {
    pub(super) end: i64,
    pub(super) count: u64,
    pub(super) min: f64,
    pub(super) max: f64,
    sum: f64,
    /// The part that the sum has lost to rounding (Kahan).
    lost: f64,
    first: (i64, f64),
    last: (i64, f64),
}

impl Counted {
    fn new(end: i64, time: i64, value: f64) -> Self {
        let point = (time, value);
        Self {
            end,
            count: 0,
            min: value,
            max: value,
            sum: 0.0,
            lost: 0.0,
            first: point,
            last: point,
        }
    }

    fn add(&mut self, time: i64, value: f64) {
        self.count += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let term = value - self.lost;
        let sum = self.sum + term;
        self.lost = (sum - self.sum) - term;
        self.sum = sum;
        let point = (time, value);
        if point < self.first {
            self.first = point;
        }
        if point > self.last {
            self.last = point;
        }
    }

    fn aggregate(&self, rule: &Rule) -> Option<f64> {
        let seconds = |micros: i64| micros as f64 / 1e6;
        Some(match rule.threshold.aggregate {
            Aggregate::Count => self.count as f64,
            Aggregate::Rate => self.count as f64 / seconds(rule.window.get()),
            Aggregate::Mean => self.sum / self.count as f64,
            Aggregate::Max => self.max,
            Aggregate::Min => self.min,
            Aggregate::RateOfChange => {
                let span = self.last.0 - self.first.0;
                if span == 0 {
                    return None;
                }
                (self.last.1 - self.first.1) / seconds(span)
            }
        })
    }

    /// Whether it is an anomaly; `None` where rounding decides.
    pub(super) fn is_anomaly(&self, rule: &Rule) -> Option<bool> {
        let Some(found) = self.aggregate(rule) else { return Some(false) };
        let limit = rule.threshold.value;
        let is_rounded =
            matches!(rule.threshold.aggregate, Aggregate::Mean | Aggregate::RateOfChange);
        if is_rounded && (found - limit).abs() <= ROUNDING * limit.abs().max(found.abs()) {
            return None;
        }
        Some(rule.threshold.comparison.holds(found, limit))
    }
}

/// Starts of the windows that hold a moment: multiples of the slide.
pub(super) fn starts_of(time: i64, rule: &Rule) -> impl Iterator<Item = i64> {
    let (slide, length) = (rule.slide.get().max(1), rule.window.get());
    let latest = time - time.rem_euclid(slide);
    (0..).map(move |back| latest - back * slide).take_while(move |start| start + length > time)
}

/// Adds a reading to all windows of a rule that hold it. `since`: windows that begin there or before are not counted.
pub(super) fn count_reading(
    reading: &Reading,
    rule: &Rule,
    since: i64,
    windows: &mut BTreeMap<WindowKey, Counted>,
) {
    let group = match rule.by {
        GroupBy::Sensor => reading.sensor_id.as_str(),
        GroupBy::Machine => match &reading.machine_id {
            Some(machine) => machine.as_str(),
            None => return,
        },
    };
    let time = reading.timestamp.micros();
    for start in starts_of(time, rule).filter(|start| *start > since) {
        let key = (rule.name.clone(), group.to_owned(), start);
        let new = || Counted::new(start + rule.window.get(), time, reading.value);
        windows.entry(key).or_insert_with(new).add(time, reading.value);
    }
}

/// The newest row of a window in `anomalies`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FoundRow {
    pub(crate) by: GroupBy,
    pub(crate) revision: i32,
    pub(crate) is_anomaly: bool,
    pub(crate) is_open: bool,
    pub(crate) count: u64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// What comparing gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same, or nothing to compare.
    Equal,
    /// Not, and how.
    Different(String),
}

/// Holds a window that is closed against its newest row.
pub(super) fn compare(counted: Option<&Counted>, row: Option<&FoundRow>, rule: &Rule) -> Verdict {
    if rule.output_mode == OutputMode::Complete {
        return Verdict::Equal;
    }
    let is_anomaly = match counted {
        None => Some(false),
        Some(counted) => counted.is_anomaly(rule),
    };
    let (Some(is_anomaly), is_row) = (is_anomaly, row.is_some_and(|row| row.is_anomaly)) else {
        return Verdict::Equal;
    };
    match (is_anomaly, is_row, counted, row) {
        (false, false, ..) => Verdict::Equal,
        (false, true, None, Some(row)) => {
            Verdict::Different(format!("anomalies has {} matches, telemetry has none", row.count))
        }
        (false, true, Some(counted), Some(row)) => Verdict::Different(format!(
            "an anomaly of {} matches in anomalies, none by the {} readings of telemetry",
            row.count, counted.count
        )),
        (true, _, Some(counted), None) => Verdict::Different(format!(
            "an anomaly of {} matches by telemetry, no row in anomalies",
            counted.count
        )),
        (true, false, Some(counted), Some(row)) => Verdict::Different(format!(
            "an anomaly of {} matches by telemetry, revision {} in anomalies says that it is none",
            counted.count, row.revision
        )),
        (true, true, Some(counted), Some(row)) => {
            let is_equal = counted.count == row.count
                && counted.min.total_cmp(&row.min).is_eq()
                && counted.max.total_cmp(&row.max).is_eq();
            if is_equal {
                return Verdict::Equal;
            }
            Verdict::Different(format!(
                "{} matches from {} to {} by telemetry, {} from {} to {} in anomalies (revision {})",
                counted.count, counted.min, counted.max, row.count, row.min, row.max, row.revision
            ))
        }
        (_, true, _, None) | (true, _, None, _) => Verdict::Equal,
    }
}

#[cfg(test)]
mod tests {
    use aggregator_core::{Micros, Threshold};
    use shared_proto::model::{EventTime, MetricType, SensorId};

    use super::*;

    fn rule(window: i64, slide: i64, threshold: &str) -> Rule {
        Rule {
            window: Micros::new(window),
            slide: Micros::new(slide),
            threshold: threshold.parse::<Threshold>().expect("a threshold"),
            ..Rule::seed()
        }
    }

    fn reading(time: i64, value: f64) -> Reading {
        let sensor = SensorId::new("s").expect("a name");
        let metric = MetricType::new("temperature").expect("a name");
        Reading::new(sensor, EventTime::from_micros(time), metric, value)
    }

    #[test]
    fn windows_that_hold_a_moment_are_those_of_the_definition() {
        for (window, slide) in [(10, 10), (10, 4), (10, 3), (7, 1)] {
            let rule = rule(window, slide, "count > 1");
            for time in -30_i64..30 {
                let mut found: Vec<i64> = starts_of(time, &rule).collect();
                found.sort_unstable();
                let by_definition: Vec<i64> = (-60..60)
                    .filter(|start| start % slide == 0 && *start <= time && time < start + window)
                    .collect();
                assert_eq!(found, by_definition, "{window} {slide} {time}");
            }
        }
    }

    #[test]
    fn window_is_compared_with_its_newest_row() {
        let rule = rule(10, 10, "count > 1");
        let mut windows = BTreeMap::new();
        for (time, value) in [(11, 5.0), (19, 7.0), (20, 1.0)] {
            count_reading(&reading(time, value), &rule, i64::MIN, &mut windows);
        }
        assert_eq!(windows.len(), 2);
        let key = |start| (rule.name.clone(), "s".to_owned(), start);
        let two = windows[&key(10)];
        let row = |count, is_anomaly| FoundRow {
            by: GroupBy::Sensor,
            revision: 3,
            is_anomaly,
            is_open: false,
            count,
            min: 5.0,
            max: 7.0,
        };
        assert_eq!(compare(Some(&two), Some(&row(2, true)), &rule), Verdict::Equal);
        assert_eq!(compare(Some(&windows[&key(20)]), None, &rule), Verdict::Equal);
        for (counted, row) in [
            (Some(&two), Some(row(3, true))),
            (Some(&two), Some(row(2, false))),
            (Some(&two), None),
            (Some(&windows[&key(20)]), Some(row(2, true))),
            (None, Some(row(2, true))),
        ] {
            let verdict = compare(counted, row.as_ref(), &rule);
            assert!(matches!(verdict, Verdict::Different(_)), "{counted:?} {row:?}");
        }
    }

    #[test]
    fn rounding_decides_nothing() {
        let rule = rule(10, 10, "mean > 0.2");
        let mut windows = BTreeMap::new();
        for value in [0.1, 0.2, 0.3] {
            count_reading(&reading(1, value), &rule, i64::MIN, &mut windows);
        }
        assert_eq!(windows.into_values().next().and_then(|found| found.is_anomaly(&rule)), None);
    }

    #[test]
    fn windows_from_before_a_rule_are_not_counted() {
        let rule = rule(10, 5, "count > 1");
        let mut windows = BTreeMap::new();
        count_reading(&reading(11, 1.0), &rule, 5, &mut windows);
        assert_eq!(windows.keys().map(|key| key.2).collect::<Vec<_>>(), [10]);
    }
}
