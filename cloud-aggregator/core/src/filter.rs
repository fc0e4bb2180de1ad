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
//! false, also with `!=`. Limits: [`TEXT_BYTES_MAX`], [`TERMS_MAX`], [`DEPTH_MAX`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shared_proto::model::{MetricType, Quality, Reading};

use crate::settings::Comparison;

mod parse;

pub use parse::FilterError;

/// Longest text of a filter, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most comparisons in a filter.
pub const TERMS_MAX: usize = 256;
/// Most parentheses inside one another.
pub const DEPTH_MAX: usize = 32;

/// A condition over one reading. Written and saved as its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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
}

impl Residual {
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
                write!(formatter, "{field} {comparison} {number}")
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

/// The text that [`Filter::from_str`] reads back.
impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(formatter)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse::parse(text).map(|root| Self { root })
    }
}

impl TryFrom<String> for Filter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        text.parse()
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> String {
        filter.to_string()
    }
}

#[cfg(test)]
mod tests;
