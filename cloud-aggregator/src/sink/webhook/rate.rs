//! How many events a target gets one by one; the others become one digest.
//!
//! The first event begins a window of time. As many as are allowed go through, the others are held until its end. What is held is
//! still owed: an end of the process before that sends it again.

use std::time::Instant;

use aggregator_core::ProcessingTime;

use crate::config::Rate;
use crate::sink::alert::Delivery;

/// A window ends early at this many events, so that memory has an end.
const HELD_MAX: usize = 10_000;

/// Holds what is too much.
#[derive(Debug)]
pub(super) struct RateLimit {
    rate: Option<Rate>,
    window: Option<Window>,
}

#[derive(Debug)]
struct Window {
    from: ProcessingTime,
    ends: Instant,
    passed: u32,
    held: Vec<Delivery>,
}

/// What is told at once, since `from`.
#[derive(Debug)]
pub(super) struct Held {
    /// When the window began.
    pub(super) from: ProcessingTime,
    /// In the order in which they came; at least one.
    pub(super) deliveries: Vec<Delivery>,
}

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// For waits.
    pub(super) instant: Instant,
    /// For people.
    pub(super) time: ProcessingTime,
}

impl RateLimit {
    pub(super) const fn new(rate: Option<Rate>) -> Self {
        Self { rate, window: None }
    }

    /// Gives the event back if it may go now.
    pub(super) fn handle(&mut self, delivery: Delivery, now: Moment) -> Option<Delivery> {
        let Some(rate) = self.rate else { return Some(delivery) };
        let is_over = |window: &Window| window.ends <= now.instant && window.held.is_empty();
        if self.window.as_ref().is_some_and(is_over) {
            self.window = None;
        }
        let window = self.window.get_or_insert_with(|| Window {
            from: now.time,
            ends: now.instant + rate.window,
            passed: 0,
            held: Vec::new(),
        });
        if window.passed < rate.max {
            window.passed += 1;
            return Some(delivery);
        }
        window.held.push(delivery);
        None
    }

    /// When [`Self::poll`] is to be called; nothing is held if there is no such moment.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let window = self.window.as_ref().filter(|window| !window.held.is_empty())?;
        Some(window.ends)
    }

    /// What is to be told now in one event.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Held> {
        let is_due = |window: &mut Window| {
            !window.held.is_empty() && (window.ends <= now || window.held.len() >= HELD_MAX)
        };
        let window = self.window.take_if(is_due)?;
        Some(Held { from: window.from, deliveries: window.held })
    }

    /// How many events are held.
    pub(super) fn held(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.held.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn delivery(id: &str) -> Delivery {
        let changed_at = ProcessingTime::from_micros(0);
        Delivery { id: id.into(), key: "k".into(), body: "{}".into(), changed_at, told: None }
    }

    fn at(began: Instant, seconds: u64) -> Moment {
        let time = ProcessingTime::from_micros(seconds as i64 * 1_000_000);
        Moment { instant: began + Duration::from_secs(seconds), time }
    }

    fn ids(held: Option<Held>) -> Vec<String> {
        let deliveries = held.map_or_else(Vec::new, |held| held.deliveries);
        deliveries.into_iter().map(|delivery| delivery.id.to_string()).collect()
    }

    #[test]
    fn what_is_above_the_rate_is_held_until_the_window_ends() {
        let began = Instant::now();
        let mut limit = RateLimit::new(Some(Rate { max: 2, window: WINDOW }));
        let passes = |limit: &mut RateLimit, id: &str, seconds| {
            limit.handle(delivery(id), at(began, seconds)).is_some()
        };
        assert!(passes(&mut limit, "a", 0) && passes(&mut limit, "b", 10));
        assert_eq!(limit.poll_timeout(), None, "nothing is held");
        assert!(!passes(&mut limit, "c", 20) && !passes(&mut limit, "d", 59));
        assert_eq!(limit.held(), 2);
        assert_eq!(limit.poll_timeout(), Some(began + WINDOW));
        assert!(limit.poll(at(began, 59).instant).is_none());
        // Late, and one more has come before anybody asked.
        assert!(!passes(&mut limit, "e", 61));
        let held = limit.poll(at(began, 61).instant);
        assert_eq!(held.as_ref().map(|held| held.from.micros()), Some(0));
        assert_eq!(ids(held), ["c", "d", "e"]);
        assert_eq!((limit.held(), limit.poll_timeout()), (0, None));
        assert!(passes(&mut limit, "f", 62), "another window");
    }

    #[test]
    fn a_window_in_which_nothing_was_held_ends_in_silence() {
        let began = Instant::now();
        let mut limit = RateLimit::new(Some(Rate { max: 1, window: WINDOW }));
        assert!(limit.handle(delivery("a"), at(began, 0)).is_some());
        assert!(limit.handle(delivery("b"), at(began, 60)).is_some());
        assert!(limit.handle(delivery("c"), at(began, 61)).is_none());
        assert_eq!(limit.poll_timeout(), Some(at(began, 120).instant));
    }

    #[test]
    fn what_is_held_has_an_end_and_without_a_rate_nothing_is() {
        let now = at(Instant::now(), 0);
        let mut limit = RateLimit::new(Some(Rate { max: 1, window: WINDOW }));
        for index in 0..=HELD_MAX {
            assert!(limit.poll(now.instant).is_none(), "{index}");
            assert_eq!(limit.handle(delivery("x"), now).is_some(), index == 0);
        }
        assert_eq!(ids(limit.poll(now.instant)).len(), HELD_MAX);
        let mut none = RateLimit::new(None);
        assert!((0..100).all(|_| none.handle(delivery("x"), now).is_some()));
        assert!(none.poll(now.instant).is_none());
    }
}
