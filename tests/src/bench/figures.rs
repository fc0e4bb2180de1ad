//! Quantiles, and lines on standard output.

use std::io::Write as _;
use std::time::Duration;

/// Prints a line.
pub fn say(line: &str) {
    // A reader that has gone away misses it.
    writeln!(std::io::stdout(), "{line}").ok();
}

/// A sorted series of durations.
pub struct Quantiles(Vec<Duration>);

impl Quantiles {
    /// Sorts.
    #[must_use]
    pub fn new(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that so many per mille of all are at or below; none of none.
    #[must_use]
    pub fn at(&self, per_mille: usize) -> Option<Duration> {
        let rank = (self.0.len() * per_mille).div_ceil(1000).max(1);
        self.0.get(rank - 1).copied()
    }

    /// p50, p99, p99.9, the highest and the count.
    #[must_use]
    pub fn line(&self) -> String {
        let milliseconds = |per_mille: usize| {
            self.at(per_mille)
                .map_or_else(|| "-".to_owned(), |at| format!("{:.3}", at.as_secs_f64() * 1e3))
        };
        format!(
            "p50 {} p99 {} p99.9 {} max {} ms, {} stops",
            milliseconds(500),
            milliseconds(990),
            milliseconds(999),
            milliseconds(1000),
            self.count()
        )
    }
}

/// `reached` or `not reached`.
#[must_use]
pub const fn verdict(is_reached: bool) -> &'static str {
    if is_reached { "reached" } else { "not reached" }
}

/// Bytes in millions.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_series() {
        let check = |count: u64, expected: [u64; 4]| {
            let quantiles = Quantiles::new((1..=count).rev().map(Duration::from_millis).collect());
            let found =
                [500, 990, 999, 1000].map(|at| quantiles.at(at).unwrap().as_millis() as u64);
            assert_eq!(found, expected, "of {count}");
        };
        check(1, [1, 1, 1, 1]);
        check(1000, [500, 990, 999, 1000]);
        check(2000, [1000, 1980, 1998, 2000]);
        assert_eq!(Quantiles::new(Vec::new()).at(500), None);
    }
}
