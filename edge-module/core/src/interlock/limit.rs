//! One fixed limit: clear, then past the limit and waiting for its on-delay, then violated until the value has
//! been back by the hysteresis for the off-delay.
//!
//! The value between two samples is the last one: a delay runs out at its time, whether a sample comes or not. A
//! value within the limit, if only by a hair, is a break of the on-delay; a value that is not back by the
//! hysteresis is a break of the off-delay.

use std::time::Instant;

use super::action::{ResetRefused, TripCause};
use super::response::Response;
use super::settings::LimitRule;

/// A limit and what it has come to.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) rule: LimitRule,
    pub(super) response: Response,
    latest: Option<f64>,
    /// The last value that was past the limit, and the limit it was past.
    past: Option<(f64, f64)>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Clear,
    Past { since: Instant },
    Violated { back_since: Option<Instant> },
}

impl Limit {
    pub(super) const fn new(rule: LimitRule) -> Self {
        Self { rule, response: Response::None, latest: None, past: None, state: State::Clear }
    }

    /// The latest usable value.
    pub(super) const fn latest(&self) -> Option<f64> {
        self.latest
    }

    /// Takes a usable value as the latest. Delays that ran out before must have been noticed before.
    pub(super) fn handle_value(&mut self, value: f64, now: Instant) {
        self.latest = Some(value);
        let passed = self.rule.passed(value);
        if let Some(limit) = passed {
            self.past = Some((value, limit));
        }
        self.state = match self.state {
            State::Clear if passed.is_some() => State::Past { since: now },
            State::Past { since } if passed.is_some() => State::Past { since },
            State::Clear | State::Past { .. } => State::Clear,
            State::Violated { .. } if !self.rule.is_back(value) => {
                State::Violated { back_since: None }
            }
            State::Violated { back_since } => {
                State::Violated { back_since: Some(back_since.unwrap_or(now)) }
            }
        };
        self.pass_time(now);
    }

    /// Notices delays that have run out.
    pub(super) fn pass_time(&mut self, now: Instant) {
        if self.next_timeout().is_some_and(|at| at <= now) {
            self.state = match self.state {
                State::Past { .. } => State::Violated { back_since: None },
                State::Violated { .. } | State::Clear => State::Clear,
            };
        }
    }

    /// When a delay runs out, if no other value comes.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Past { since } => Some(since + self.rule.on_delay),
            State::Violated { back_since } => back_since.map(|since| since + self.rule.off_delay),
            State::Clear => None,
        }
    }

    pub(super) const fn is_violated(&self) -> bool {
        match self.state {
            State::Violated { .. } => true,
            State::Clear | State::Past { .. } => false,
        }
    }

    /// Whether the value is past the limit, also while its delay still runs.
    pub(super) const fn is_past(&self) -> bool {
        match self.state {
            State::Violated { .. } | State::Past { .. } => true,
            State::Clear => false,
        }
    }

    /// What a violation is reported as: the last value that was past the limit.
    pub(super) fn cause(&self) -> TripCause {
        let (value, limit) = self.past.unwrap_or_default();
        let (rule, sensor) = (self.rule.name.clone(), self.rule.sensor.clone());
        TripCause::Limit { rule, sensor, value, limit }
    }

    /// Why a reset must wait: the value is past the limit, if only since a moment, or not yet back.
    pub(super) fn refusal(&self, now: Instant) -> Option<ResetRefused> {
        let is_over = match self.state {
            State::Clear => true,
            State::Past { .. } => false,
            State::Violated { .. } => self.next_timeout().is_some_and(|at| at <= now),
        };
        let (value, (_, limit)) = (self.latest?, self.past?);
        (!is_over).then(|| ResetRefused::LimitPresent {
            rule: self.rule.name.clone(),
            sensor: self.rule.sensor.clone(),
            value,
            limit,
            hysteresis: self.rule.hysteresis,
        })
    }
}
