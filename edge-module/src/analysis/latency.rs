//! How long windows take from samples to score.

use std::time::Duration;

/// Windows looked back on.
const WINDOWS: usize = 256;
/// Fewer say nothing yet.
const WINDOWS_MIN: u32 = 30;
/// One in so many windows may take longer than the budget: others use the processor, too.
const SLOW_SHARE: u32 = 10;

/// The last windows' times. Allocates once.
#[derive(Clone, Debug)]
pub struct Latency {
    micros: Box<[u32; WINDOWS]>,
    next: usize,
    count: u32,
}

/// What the last windows took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LatencySummary {
    /// As many windows, at most 256.
    pub windows: u32,
    /// Half of them took at most this, in microseconds.
    pub p50_micros: u32,
    /// Ninety-nine in a hundred took at most this, in microseconds.
    pub p99_micros: u32,
}

impl Default for Latency {
    fn default() -> Self {
        Self { micros: Box::new([0; WINDOWS]), next: 0, count: 0 }
    }
}

impl Latency {
    /// Takes the time of a window.
    pub fn push(&mut self, took: Duration) {
        self.micros[self.next] = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.next = (self.next + 1) % WINDOWS;
        self.count = (self.count + 1).min(WINDOWS as u32);
    }

    /// Whether more than one in ten of the last windows, at least 30 of them, took longer than `budget`.
    #[must_use]
    pub fn is_over(&self, budget: Duration) -> bool {
        let budget = u32::try_from(budget.as_micros()).unwrap_or(u32::MAX);
        let slow = self.taken().filter(|micros| *micros > budget).count() as u32;
        self.count >= WINDOWS_MIN && slow * SLOW_SHARE > self.count
    }

    /// The last windows in figures.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        let mut sorted: Vec<u32> = self.taken().collect();
        sorted.sort_unstable();
        let at = |share: usize| {
            let place = (sorted.len() * share).div_ceil(100).saturating_sub(1);
            sorted.get(place).copied().unwrap_or(0)
        };
        LatencySummary { windows: self.count, p50_micros: at(50), p99_micros: at(99) }
    }

    fn taken(&self) -> impl Iterator<Item = u32> + '_ {
        self.micros.iter().take(self.count as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(times: impl IntoIterator<Item = u64>) -> Latency {
        let mut latency = Latency::default();
        times.into_iter().for_each(|micros| latency.push(Duration::from_micros(micros)));
        latency
    }

    #[test]
    fn one_slow_window_in_ten_is_no_slow_model() {
        let budget = Duration::from_micros(100);
        let check = |slow: usize, windows: usize, expected: bool| {
            let times = (0..windows).map(|place| if place < slow { 101 } else { 100 });
            assert_eq!(pushed(times).is_over(budget), expected, "{slow} of {windows}");
        };
        check(29, 29, false);
        check(30, 30, true);
        check(6, 64, false);
        check(7, 64, true);
        check(25, 256, false);
        check(26, 256, true);
        // Slow ones that 256 windows lie between are forgotten.
        check(300, 600, false);
    }

    #[test]
    fn figures_are_of_the_last_windows() {
        assert_eq!(Latency::default().summary(), LatencySummary::default());
        let summary = pushed(1..=1000).summary();
        let expected = LatencySummary { windows: 256, p50_micros: 872, p99_micros: 998 };
        assert_eq!(summary, expected);
        assert_eq!(pushed([7]).summary().p99_micros, 7);
    }
}
