//! Suppression while a machine starts.
//!
//! It begins when a machine that stood still reports that it runs, lasts for its length whatever is reported
//! meanwhile, and begins again only after all rules have been in force for at least as long: reports that
//! repeat cannot keep rules out of force for more than half of the time, and never for longer than one length.

use std::time::{Duration, Instant};

use super::action::MachineState;

/// Whether a machine is starting.
#[derive(Debug)]
pub(super) struct Startup {
    length: Duration,
    has_stood: bool,
    ends: Option<Instant>,
}

impl Startup {
    pub(super) const fn new(length: Duration) -> Self {
        Self { length, has_stood: false, ends: None }
    }

    /// Takes a report; answers when the start-up that it began will end.
    pub(super) fn handle_state(
        &mut self,
        state: MachineState,
        is_armed: bool,
        now: Instant,
    ) -> Option<Instant> {
        match state {
            MachineState::Stopped => self.has_stood = true,
            MachineState::Stopping => {}
            MachineState::Running => {
                let begins = std::mem::take(&mut self.has_stood) && is_armed;
                let is_allowed = self.ends.is_none_or(|ends| ends + self.length <= now);
                if begins && is_allowed && !self.length.is_zero() {
                    self.ends = Some(now + self.length);
                    return self.ends;
                }
            }
        }
        None
    }

    /// A start-up that has begun lasts as long as it was to last.
    pub(super) const fn take_over(&mut self, previous: Self) {
        self.has_stood = previous.has_stood;
        self.ends = previous.ends;
    }

    pub(super) fn is_active(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| now < ends)
    }

    pub(super) const fn ends(&self) -> Option<Instant> {
        self.ends
    }
}
