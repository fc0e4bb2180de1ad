//! Processing time and spans. Event time lives in `shared_proto::model`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared_proto::model::EventTime;

/// When the aggregator looks: microseconds of its clock since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessingTime(i64);

impl ProcessingTime {
    /// Processing time of so many microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Later by `span`; stops at the end of the range.
    #[must_use]
    pub const fn saturating_add(self, span: Micros) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The event time that a sensor with the aggregator's clock would give now. The only way from one time to the
    /// other: for limits against the clock, never for counting.
    #[must_use]
    pub const fn as_event_time(self) -> EventTime {
        EventTime::from_micros(self.0)
    }
}

/// A span in microseconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Micros(i64);

impl Micros {
    /// A span of so many microseconds.
    #[must_use]
    pub const fn new(micros: i64) -> Self {
        Self(micros)
    }

    /// A span of so many seconds; stops at the end of the range.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// Cuts below a microsecond; stops at the end of the range.
impl From<Duration> for Micros {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
    }
}

/// Seconds, for people: `60s`, `0.25s`.
impl fmt::Display for Micros {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}s", self.0 as f64 / 1e6)
    }
}
