//! Waits that double, with jitter.

use std::time::Duration;

/// Waits between attempts: from `min`, doubling up to `max`, each cut by up to a half at random.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `min`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.max);
        full / 2 + full.mul_f64(random_share() / 2.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// A number that chance has made.
#[must_use]
pub fn random_number() -> u64 {
    // Version bits are set in the upper half; the lowest 62 bits of a version 4 UUID are all random.
    (uuid::Uuid::new_v4().as_u128() & u128::from(u64::MAX >> 2)) as u64
}

fn random_share() -> f64 {
    random_number() as f64 / (u64::MAX >> 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_again_after_a_success() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 3 * second);
        for full in [second, 2 * second, 3 * second, 3 * second] {
            let wait = backoff.wait();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= second);
    }
}
