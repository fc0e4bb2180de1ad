//! How many requests one token may make.

use std::time::{Duration, Instant};

/// A bucket that holds `burst` requests and is filled with `rate` a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    held: f64,
    filled_at: Instant,
    rate: f64,
    burst: f64,
}

impl Bucket {
    /// A full one. Both are at least 1.
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let (rate, burst) = (f64::from(rate.max(1)), f64::from(burst.max(1)));
        Self { held: burst, filled_at: now, rate, burst }
    }

    /// Takes one request out, or says after which time there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.held = (self.held + passed * self.rate).min(self.burst);
        self.filled_at = self.filled_at.max(now);
        if self.held >= 1.0 {
            self.held -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.held) / self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_what_comes_in_with_time() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(10, 3, begin);
        let taken = (0..5).filter(|_| bucket.take(begin).is_ok()).count();
        assert_eq!(taken, 3);
        let wait = bucket.take(begin).expect_err("empty");
        assert!(wait > Duration::from_millis(90) && wait <= Duration::from_millis(100), "{wait:?}");
        let later = begin + Duration::from_millis(101);
        assert!(bucket.take(later).is_ok());
        assert!(bucket.take(later).is_err());
        // A clock that stands, or looks back, fills nothing.
        assert!(bucket.take(begin).is_err());
        let much_later = begin + Duration::from_secs(3_600);
        let taken = (0..9).filter(|_| bucket.take(much_later).is_ok()).count();
        assert_eq!(taken, 3, "it holds no more than a burst");
    }
}
