//! When a target is tried: always, or only by one probe at a time.
//!
//! After a number of failures in a row the circuit opens. Then nothing is sent until a wait is over, which a Retry-After makes longer;
//! one event is the probe. An answer closes the circuit, a failure begins another wait. What the target refuses for
//! good (a status such as 400) is an answer: it is there.

use std::time::{Duration, Instant};

/// Counts failures in a row.
#[derive(Debug)]
pub(super) struct Circuit {
    failures_max: u32,
    failures: u32,
    /// Set while it is open: when the next probe may go.
    until: Option<Instant>,
    is_probing: bool,
}

/// Where a circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// Everything is sent.
    Closed,
    /// Nothing is sent before this moment; then [`Circuit::begin_probe`].
    Open { until: Instant },
    /// One probe is under way.
    HalfOpen,
}

impl Circuit {
    /// Closed. Opens at so many failures in a row.
    pub(super) const fn new(failures_max: u32) -> Self {
        Self { failures_max, failures: 0, until: None, is_probing: false }
    }

    pub(super) const fn position(&self) -> Position {
        match self.until {
            None => Position::Closed,
            Some(_) if self.is_probing => Position::HalfOpen,
            Some(until) => Position::Open { until },
        }
    }

    /// Failures in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// The wait is over: one event may go.
    pub(super) fn begin_probe(&mut self) {
        self.is_probing = self.until.is_some();
    }

    /// The target has answered.
    pub(super) fn handle_answer(&mut self) {
        *self = Self::new(self.failures_max);
    }

    /// The target has failed. If that opens the circuit, or was a probe, the next one goes after `wait`.
    pub(super) fn handle_failure(&mut self, now: Instant, wait: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.is_probing = false;
        if self.failures >= self.failures_max {
            self.until = Some(now + wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(30);

    #[test]
    fn it_opens_at_the_last_failure_in_a_row_and_an_answer_closes_it() {
        let now = Instant::now();
        let mut circuit = Circuit::new(3);
        for _ in 0..2 {
            circuit.handle_failure(now, WAIT);
            assert_eq!(circuit.position(), Position::Closed);
        }
        circuit.handle_answer();
        for failures in 1..=3 {
            assert_eq!(circuit.position(), Position::Closed);
            circuit.handle_failure(now, WAIT);
            assert_eq!(circuit.failures(), failures);
        }
        assert_eq!(circuit.position(), Position::Open { until: now + WAIT });
        circuit.handle_answer();
        assert_eq!(circuit.position(), Position::Closed);
        assert_eq!(circuit.failures(), 0);
    }

    #[test]
    fn a_probe_that_fails_begins_another_wait() {
        let now = Instant::now();
        let mut circuit = Circuit::new(1);
        circuit.begin_probe();
        assert_eq!(circuit.position(), Position::Closed, "nothing to probe");
        circuit.handle_failure(now, WAIT);
        let later = now + WAIT;
        circuit.begin_probe();
        assert_eq!(circuit.position(), Position::HalfOpen);
        circuit.handle_failure(later, 2 * WAIT);
        assert_eq!(circuit.position(), Position::Open { until: later + 2 * WAIT });
        circuit.begin_probe();
        circuit.handle_answer();
        assert_eq!(circuit.position(), Position::Closed);
    }
}
