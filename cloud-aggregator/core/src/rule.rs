//! What makes a window an anomaly.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::exact;
use crate::filter::Filter;
use crate::time::Micros;

/// How one number is held against another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparison {
    /// `>`
    GreaterThan,
    /// `>=`
    GreaterOrEqual,
    /// `<`
    LessThan,
    /// `<=`
    LessOrEqual,
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
}

impl Comparison {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::GreaterThan,
        Self::GreaterOrEqual,
        Self::LessThan,
        Self::LessOrEqual,
        Self::Equal,
        Self::NotEqual,
    ];

    /// Whether `value` stands to `limit` as the comparison says.
    #[must_use]
    pub fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Self::GreaterThan => value > limit,
            Self::GreaterOrEqual => value >= limit,
            Self::LessThan => value < limit,
            Self::LessOrEqual => value <= limit,
            Self::Equal => value == limit,
            Self::NotEqual => value != limit,
        }
    }

    /// The symbol.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GreaterThan => ">",
            Self::GreaterOrEqual => ">=",
            Self::LessThan => "<",
            Self::LessOrEqual => "<=",
            Self::Equal => "=",
            Self::NotEqual => "!=",
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Comparison {
    type Err = ();

    fn from_str(symbol: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|comparison| comparison.as_str() == symbol).ok_or(())
    }
}

/// One number made of the matching readings of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregate {
    /// How many there are.
    Count,
    /// How many there are for each second of the window's length.
    Rate,
    /// Mean of their values.
    Mean,
    /// Highest value.
    Max,
    /// Lowest value.
    Min,
    /// Change of the value from the earliest to the latest of them, for each second between the two. There is none
    /// while all have the same event time.
    RateOfChange,
}

impl Aggregate {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Count, Self::Rate, Self::Mean, Self::Max, Self::Min, Self::RateOfChange];

    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Rate => "rate",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Min => "min",
            Self::RateOfChange => "rate-of-change",
        }
    }
}

/// An aggregate and what it must not be: `count > 5`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Threshold {
    /// What is compared.
    pub aggregate: Aggregate,
    /// How.
    pub comparison: Comparison,
    /// With what, in the unit of the aggregate.
    pub value: f64,
}

/// A text that is no threshold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no threshold: write an aggregate (count, rate, mean, max, min, rate-of-change), a comparison \
     (> >= < <=) and a finite number, such as \"count > 5\""
)]
pub struct NotAThreshold {
    /// The text.
    pub text: String,
}

impl Threshold {
    /// More than so many matches.
    #[must_use]
    pub const fn count_more_than(count: u32) -> Self {
        Self {
            aggregate: Aggregate::Count,
            comparison: Comparison::GreaterThan,
            value: count as f64,
        }
    }

    /// Whether more matches can never take back what holds: then the alert need not wait for the window's end.
    #[must_use]
    pub fn is_early(self) -> bool {
        let is_above =
            matches!(self.comparison, Comparison::GreaterThan | Comparison::GreaterOrEqual);
        let is_below = matches!(self.comparison, Comparison::LessThan | Comparison::LessOrEqual);
        match self.aggregate {
            Aggregate::Count | Aggregate::Rate | Aggregate::Max => is_above,
            Aggregate::Min => is_below,
            Aggregate::Mean | Aggregate::RateOfChange => false,
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.aggregate.as_str(), self.comparison, self.value)
    }
}

impl FromStr for Threshold {
    type Err = NotAThreshold;

    fn from_str(text: &str) -> Result<Self, NotAThreshold> {
        let read = || {
            let trimmed = text.trim();
            let word = |c: char| c.is_ascii_alphabetic() || c == '-' || c == '_';
            let (name, rest) = trimmed.split_at(trimmed.find(|c| !word(c))?);
            let rest = rest.trim_start();
            let symbol = |c: char| matches!(c, '>' | '<' | '=' | '!');
            let (comparison, number) = rest.split_at(rest.find(|c| !symbol(c))?);
            let aggregate = Aggregate::ALL.into_iter().find(|one| one.as_str() == name)?;
            let comparison: Comparison = comparison.parse().ok()?;
            let is_ordered = !matches!(comparison, Comparison::Equal | Comparison::NotEqual);
            let value: f64 = number.trim_start().parse().ok()?;
            (is_ordered && value.is_finite()).then_some(Self { aggregate, comparison, value })
        };
        read().ok_or_else(|| NotAThreshold { text: text.to_owned() })
    }
}

impl TryFrom<String> for Threshold {
    type Error = NotAThreshold;

    fn try_from(text: String) -> Result<Self, NotAThreshold> {
        text.parse()
    }
}

impl From<Threshold> for String {
    fn from(threshold: Threshold) -> String {
        threshold.to_string()
    }
}

/// Whose readings are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupBy {
    /// Those of one sensor.
    #[default]
    Sensor,
    /// Those of one machine, as far as they stand in one Kafka partition: the producers must use the machine as key.
    /// Readings without a machine are counted nowhere.
    Machine,
}

impl GroupBy {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sensor, Self::Machine];

    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sensor => "sensor",
            Self::Machine => "machine",
        }
    }
}

/// Which rows of windows are written, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputMode {
    /// A row of `anomalies` when a window closes, and at each trigger after which it was corrected.
    #[default]
    Append,
    /// A row of `anomalies` at each trigger, for each window that has changed since the last.
    Update,
    /// All windows that are held, at each trigger: the table `current_windows` holds them and nothing else.
    Complete,
}

impl OutputMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Append, Self::Update, Self::Complete];

    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Update => "update",
            Self::Complete => "complete",
        }
    }
}

/// What makes a window an anomaly: an aggregate of the matching readings in it.
///
/// A reading of quality `bad` is kept in `telemetry` and moves the watermark, but matches no rule: the producer itself
/// says that the number is not a measurement (broken wire, sensor warming up), and a stop or a ticket on it would be a
/// false alarm. `uncertain` and absent quality count. Over `telemetry` a rule reads
/// `(filter) AND quality IS DISTINCT FROM 'bad'`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Unique; part of each alert's id.
    pub name: String,
    /// Which readings it looks at.
    pub filter: Filter,
    /// Length of the windows `[start, end)`.
    pub window: Micros,
    /// Between the starts of two windows, which are multiples of it since 1970-01-01T00:00:00Z. As long as the window: windows follow
    /// one another (tumbling). Shorter: they overlap (sliding), and a reading is in several.
    pub slide: Micros,
    /// Whose readings are counted together.
    pub by: GroupBy,
    /// What makes a window an anomaly.
    pub threshold: Threshold,
    /// Which rows are written.
    pub output_mode: OutputMode,
    /// 0 (critical) to 4 (verbose).
    pub severity: u8,
}

impl Rule {
    /// The rule that ships: temperature above 100, one-minute windows by sensor, more than 5 matches.
    #[must_use]
    pub fn seed() -> Self {
        Self {
            name: "temperature-above-100".to_owned(),
            filter: "metric_type = temperature and value > 100"
                .parse()
                .expect("a literal filter is valid"),
            window: Micros::from_seconds(60),
            slide: Micros::from_seconds(60),
            by: GroupBy::Sensor,
            threshold: Threshold::count_more_than(5),
            output_mode: OutputMode::Append,
            severity: 2,
        }
    }

    /// Most windows that one reading is in.
    #[must_use]
    pub fn overlap(&self) -> u64 {
        let slide = self.slide.get().max(1);
        u64::try_from(self.window.get().saturating_add(slide - 1) / slide).unwrap_or(0)
    }

    /// Whether windows counted under the other rule can go on under this one: they hold the same readings.
    #[must_use]
    pub fn counts_like(&self, other: &Self) -> bool {
        (&self.name, &self.filter, self.window, self.slide, self.by)
            == (&other.name, &other.filter, other.window, other.slide, other.by)
    }

    /// Whether the rows that the other rule has made of such windows are those of this one.
    #[must_use]
    pub fn judges_like(&self, other: &Self) -> bool {
        let is_complete = |rule: &Self| rule.output_mode == OutputMode::Complete;
        self.threshold == other.threshold && is_complete(self) == is_complete(other)
    }
}

/// A sum whose error does not grow with the number of terms (Neumaier 1974, "Rundungsfehleranalyse einiger Verfahren zur
/// Summation endlicher Summen").
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum(#[serde(with = "exact::number")] f64, #[serde(with = "exact::number")] f64);

impl Sum {
    /// Adds a finite number.
    pub fn add(&mut self, term: f64) {
        let sum = self.0 + term;
        self.1 +=
            if self.0.abs() >= term.abs() { (self.0 - sum) + term } else { (term - sum) + self.0 };
        self.0 = sum;
    }

    /// The sum.
    #[must_use]
    pub fn value(self) -> f64 {
        self.0 + self.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_written() {
        let check = |text: &str, aggregate, comparison, value| {
            let expected = Threshold { aggregate, comparison, value };
            assert_eq!(text.parse(), Ok(expected), "{text}");
            assert_eq!(expected.to_string().parse(), Ok(expected), "{text}");
        };
        check("count > 5", Aggregate::Count, Comparison::GreaterThan, 5.0);
        check(" mean>=80.5 ", Aggregate::Mean, Comparison::GreaterOrEqual, 80.5);
        check("min < -3", Aggregate::Min, Comparison::LessThan, -3.0);
        check("max <= 1e3", Aggregate::Max, Comparison::LessOrEqual, 1000.0);
        check("rate > 0.5", Aggregate::Rate, Comparison::GreaterThan, 0.5);
        check("rate-of-change > 2", Aggregate::RateOfChange, Comparison::GreaterThan, 2.0);
    }

    #[test]
    fn text_that_is_no_threshold_is_refused() {
        for text in [
            "",
            "count",
            "count >",
            "count 5",
            "sum > 5",
            "count > x",
            "count > inf",
            "count = 5",
            "> 5",
            "count >> 5",
        ] {
            let error = text.parse::<Threshold>().expect_err(text);
            assert!(error.to_string().contains("such as \"count > 5\""), "{error}");
        }
    }

    #[test]
    fn only_what_more_matches_cannot_take_back_is_early() {
        let early = |text: &str| text.parse::<Threshold>().expect(text).is_early();
        for text in ["count > 5", "count >= 5", "rate > 1", "max > 5", "min < 5", "min <= 5"] {
            assert!(early(text), "{text}");
        }
        for text in [
            "count < 5",
            "rate < 1",
            "max < 5",
            "min > 5",
            "mean > 5",
            "mean < 5",
            "rate-of-change > 1",
        ] {
            assert!(!early(text), "{text}");
        }
    }

    #[test]
    fn sum_of_many_small_and_one_large_number_keeps_the_small_ones() {
        let mut sum = Sum::default();
        for term in [1e16, 1.0, 1.0, -1e16] {
            sum.add(term);
        }
        assert_eq!(sum.value(), 2.0);
    }

    #[test]
    fn a_reading_is_in_as_many_windows_as_slides_fit() {
        let overlap = |window, slide| {
            let rule =
                Rule { window: Micros::new(window), slide: Micros::new(slide), ..Rule::seed() };
            rule.overlap()
        };
        assert_eq!(overlap(60, 60), 1);
        assert_eq!(overlap(60, 30), 2);
        assert_eq!(overlap(60, 25), 3);
        assert_eq!(overlap(60, 1), 60);
    }
}
