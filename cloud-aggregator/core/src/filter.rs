//! Which readings a rule looks at: an expression over the fields of a reading.
//!
//! ```text
//! expression = conjunction { "or" conjunction }
//! conjunction = term { "and" term }
//! term = "(" expression ")" | field operator operand
//! field = metric_type | sensor_id | machine_id | unit | quality | device_id | value | features.NAME
//! operator = "=" | "!=" | ">" | ">=" | "<" | "<="          (texts know "=" and "!=" alone)
//! operand = number | word | 'text' ('' is one quote)
//! ```
//!
//! It is a condition of SQL over `telemetry`, apart from words without quotes. As there, a field that a reading does not have makes its comparison
//! false, also with `!=`. Limits of what is written: [`TEXT_BYTES_MAX`], [`TERMS_MAX`], [`DEPTH_MAX`]. A filter is saved as its text in
//! full, which may be longer and has more parentheses: whatever was accepted once is read back.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use shared_proto::model::{MetricType, Quality, Reading};

use crate::settings::Comparison;

mod parse;

use parse::Limits;

pub use parse::FilterError;

/// Longest text of a filter as it is written, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most comparisons in a filter.
pub const TERMS_MAX: usize = 256;
/// Most parentheses inside one another, as the filter is written.
pub const DEPTH_MAX: usize = 32;
/// Longest text of a finite number with an exponent, in bytes.
const NUMBER_BYTES_MAX: usize = 24;

/// A condition over one reading. Written and saved as its text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "String")]
pub struct Filter {
    root: Node,
}

/// What is left of a filter for readings of one metric type.
#[derive(Clone, Debug, PartialEq)]
pub struct Residual {
    /// `None`: every reading matches.
    root: Option<Node>,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Term(Term),
    All(Vec<Node>),
    Any(Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Term {
    Text { field: TextField, is_equal: bool, text: String },
    Number { field: NumberField, comparison: Comparison, number: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextField {
    MetricType,
    SensorId,
    MachineId,
    Unit,
    Quality,
    DeviceId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NumberField {
    Value,
    Feature(String),
}

enum Simplified {
    Always,
    Never,
    Depends(Node),
}

impl Filter {
    /// Whether the reading has what the filter asks for. The reading's quality counts only where the filter names it.
    #[must_use]
    pub fn matches(&self, reading: &Reading) -> bool {
        self.root.holds(reading)
    }

    /// What is left to ask of readings of this metric type; `None`: nothing of it can match.
    #[must_use]
    pub fn given(&self, metric_type: &MetricType) -> Option<Residual> {
        match self.root.given(metric_type) {
            Simplified::Always => Some(Residual { root: None }),
            Simplified::Never => None,
            Simplified::Depends(root) => Some(Residual { root: Some(root) }),
        }
    }

    /// Metric types that it names.
    #[must_use]
    pub fn metric_types(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        self.root.name_metric_types(&mut names);
        names
    }

    /// Metric types of which a reading can match; `None`: any, perhaps but for some that it excludes.
    #[must_use]
    pub fn matched_metric_types(&self) -> Option<BTreeSet<&str>> {
        let mut types = self.root.bound_metric_types()?;
        // The bound knows nothing of "!=". What is no name of a type is that of no reading.
        types.retain(|name| self.can_match(name));
        Some(types)
    }

    /// Whether a reading of the metric type can match.
    #[must_use]
    pub fn can_match(&self, metric_type: &str) -> bool {
        MetricType::new(metric_type).is_ok_and(|metric_type| self.given(&metric_type).is_some())
    }
}

impl Residual {
    /// Whether every reading of the metric type matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.root.is_none()
    }

    /// Whether who sends the reading decides alone: all readings of one sensor match, or none.
    #[must_use]
    pub fn is_by_sender(&self) -> bool {
        self.root.as_ref().is_none_or(|root| !root.asks_for_values())
    }

    /// Whether a reading of the metric type has what the filter asks for.
    #[must_use]
    pub fn matches(&self, reading: &Reading) -> bool {
        self.root.as_ref().is_none_or(|root| root.holds(reading))
    }
}

impl Node {
    fn holds(&self, reading: &Reading) -> bool {
        match self {
            Self::Term(term) => term.holds(reading),
            Self::All(nodes) => nodes.iter().all(|node| node.holds(reading)),
            Self::Any(nodes) => nodes.iter().any(|node| node.holds(reading)),
        }
    }

    fn asks_for_values(&self) -> bool {
        match self {
            Self::Term(Term::Text { field, .. }) => *field == TextField::Quality,
            Self::Term(Term::Number { .. }) => true,
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().any(Self::asks_for_values),
        }
    }

    fn name_metric_types<'a>(&'a self, names: &mut BTreeSet<&'a str>) {
        match self {
            Self::Term(Term::Text { field: TextField::MetricType, text, .. }) => {
                names.insert(text);
            }
            Self::Term(Term::Text { .. } | Term::Number { .. }) => {}
            Self::All(nodes) | Self::Any(nodes) => {
                nodes.iter().for_each(|node| node.name_metric_types(names));
            }
        }
    }

    /// Metric types outside of which no reading matches; `None`: there are always others.
    fn bound_metric_types(&self) -> Option<BTreeSet<&str>> {
        match self {
            Self::Term(Term::Text { field: TextField::MetricType, is_equal: true, text }) => {
                Some(BTreeSet::from([text.as_str()]))
            }
            Self::Term(Term::Text { .. } | Term::Number { .. }) => None,
            Self::All(nodes) => {
                let bounds = nodes.iter().filter_map(Self::bound_metric_types);
                bounds.reduce(|left, right| &left & &right)
            }
            Self::Any(nodes) => {
                nodes.iter().try_fold(BTreeSet::<&str>::new(), |mut types, node| {
                    types.extend(node.bound_metric_types()?);
                    Some(types)
                })
            }
        }
    }

    fn given(&self, metric_type: &MetricType) -> Simplified {
        match self {
            Self::Term(Term::Text { field: TextField::MetricType, is_equal, text }) => {
                if (metric_type.as_str() == text) == *is_equal {
                    Simplified::Always
                } else {
                    Simplified::Never
                }
            }
            Self::Term(term) => Simplified::Depends(Self::Term(term.clone())),
            Self::All(nodes) => {
                let mut left = Vec::new();
                for node in nodes {
                    match node.given(metric_type) {
                        Simplified::Always => {}
                        Simplified::Never => return Simplified::Never,
                        Simplified::Depends(node) => left.push(node),
                    }
                }
                one_or(left, Simplified::Always, Self::All)
            }
            Self::Any(nodes) => {
                let mut left = Vec::new();
                for node in nodes {
                    match node.given(metric_type) {
                        Simplified::Always => return Simplified::Always,
                        Simplified::Never => {}
                        Simplified::Depends(node) => left.push(node),
                    }
                }
                one_or(left, Simplified::Never, Self::Any)
            }
        }
    }
}

fn one_or(mut nodes: Vec<Node>, empty: Simplified, join: fn(Vec<Node>) -> Node) -> Simplified {
    match (nodes.pop(), nodes.is_empty()) {
        (None, _) => empty,
        (Some(only), true) => Simplified::Depends(only),
        (Some(last), false) => {
            nodes.push(last);
            Simplified::Depends(join(nodes))
        }
    }
}

impl Term {
    fn holds(&self, reading: &Reading) -> bool {
        match self {
            Self::Text { field, is_equal, text } => {
                field.of(reading).is_some_and(|found| (found == text) == *is_equal)
            }
            Self::Number { field: NumberField::Value, comparison, number } => {
                comparison.holds(reading.value, *number)
            }
            Self::Number { field: NumberField::Feature(name), comparison, number } => {
                reading.features.get(name).is_some_and(|found| comparison.holds(*found, *number))
            }
        }
    }
}

impl TextField {
    const ALL: [Self; 6] = [
        Self::MetricType,
        Self::SensorId,
        Self::MachineId,
        Self::Unit,
        Self::Quality,
        Self::DeviceId,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::MetricType => "metric_type",
            Self::SensorId => "sensor_id",
            Self::MachineId => "machine_id",
            Self::Unit => "unit",
            Self::Quality => "quality",
            Self::DeviceId => "device_id",
        }
    }

    fn of(self, reading: &Reading) -> Option<&str> {
        match self {
            Self::MetricType => Some(reading.metric_type.as_str()),
            Self::SensorId => Some(reading.sensor_id.as_str()),
            Self::MachineId => reading.machine_id.as_ref().map(|id| id.as_str()),
            Self::Unit => reading.unit.as_deref(),
            Self::Quality => reading.quality.map(Quality::as_str),
            Self::DeviceId => reading.identity.as_ref().map(|found| found.device_id.as_str()),
        }
    }
}

impl fmt::Display for NumberField {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value => formatter.write_str("value"),
            Self::Feature(name) => write!(formatter, "features.{name}"),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { field, is_equal, text } => {
                let operator = if *is_equal { "=" } else { "!=" };
                write!(formatter, "{} {operator} '{}'", field.as_str(), text.replace('\'', "''"))
            }
            Self::Number { field, comparison, number } => {
                let plain = number.to_string();
                if plain.len() > NUMBER_BYTES_MAX {
                    return write!(formatter, "{field} {comparison} {number:e}");
                }
                write!(formatter, "{field} {comparison} {plain}")
            }
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, word) = match self {
            Self::Term(term) => return term.fmt(formatter),
            Self::All(nodes) => (nodes, " and "),
            Self::Any(nodes) => (nodes, " or "),
        };
        for (index, node) in nodes.iter().enumerate() {
            if index > 0 {
                formatter.write_str(word)?;
            }
            match node {
                Self::Term(term) => term.fmt(formatter)?,
                Self::All(_) | Self::Any(_) => write!(formatter, "({node})")?,
            }
        }
        Ok(())
    }
}

/// The text in full, as which it is saved.
impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(formatter)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        match parse::parse(text, Limits::WRITTEN) {
            Ok(root) => Ok(Self { root }),
            Err(error) if matches!(error, FilterError::Unexpected { .. }) => {
                Err(foreign_sign(text).unwrap_or(error))
            }
            Err(error) => Err(error),
        }
    }
}

/// Signs of other languages that can stand nowhere in a filter, and what is written here.
const FOREIGN_SIGNS: [(&str, &str); 9] = [
    ("==", "="),
    ("=>", ">="),
    ("=<", "<="),
    ("<>", "!="),
    ("&&", "\"and\""),
    ("&", "\"and\""),
    ("||", "\"or\""),
    ("|", "\"or\""),
    ("\"", "a text in single quotes ('text')"),
];

/// The first of them that is not in a quoted text: what the parser stumbles over may be what follows.
fn foreign_sign(text: &str) -> Option<FilterError> {
    let mut is_quoted = false;
    for (at, character) in text.char_indices() {
        is_quoted ^= character == '\'';
        if is_quoted {
            continue;
        }
        let found = FOREIGN_SIGNS.into_iter().find(|(sign, _)| text[at..].starts_with(*sign));
        if let Some((sign, expected)) = found {
            return Some(FilterError::Unexpected { at, found: sign.to_owned(), expected });
        }
    }
    None
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let root = parse::parse(&text, Limits::SAVED).map_err(D::Error::custom)?;
        Ok(Self { root })
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> String {
        filter.to_string()
    }
}

#[cfg(test)]
mod tests;
