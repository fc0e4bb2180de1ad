//! A latched trip: how its stop was ordered, how often, and whether it was confirmed.

use std::time::Instant;

use shared_proto::model::EventTime;

use super::action::{
    Action, LatchedTrip, MachineState, ResetRefused, StopProgress, StopReach, TripCause,
};
use super::settings::ConfirmationSettings;
use super::{LATER_CAUSES_MAX, MachineId, Moment};

#[derive(Debug)]
pub(super) struct Trip {
    pub(super) trip_id: String,
    pub(super) cause: TripCause,
    since: EventTime,
    decided: Instant,
    stop: Stop,
    later_causes: Vec<TripCause>,
    rule_version: String,
}

#[derive(Clone, Copy, Debug)]
enum Stop {
    Ordered { attempt: u32, deadline: Instant, is_reported: bool },
    Exhausted { attempts: u32 },
    Confirmed,
}

impl Trip {
    /// Latches, and orders the first stop.
    pub(super) fn new(
        trip_id: String,
        cause: TripCause,
        rule_version: String,
        confirmation: ConfirmationSettings,
        now: Moment,
    ) -> (Self, Action) {
        let latched = LatchedTrip {
            trip_id,
            cause,
            since: now.time,
            stop: StopProgress::Ordered,
            later_causes: Vec::new(),
            rule_version,
        };
        Self::restore(latched, confirmation, now)
    }

    /// Takes over a trip of the previous run, and orders its stop again.
    pub(super) fn restore(
        latched: LatchedTrip,
        confirmation: ConfirmationSettings,
        now: Moment,
    ) -> (Self, Action) {
        let mut trip = Self {
            trip_id: latched.trip_id,
            cause: latched.cause,
            since: latched.since,
            decided: now.instant,
            stop: Stop::Confirmed,
            later_causes: latched.later_causes,
            rule_version: latched.rule_version,
        };
        trip.later_causes.truncate(LATER_CAUSES_MAX);
        let send = trip.order_stop(StopReach::First, confirmation, now.instant);
        (trip, send)
    }

    /// Takes a report of the machine side.
    pub(super) fn handle_state(
        &mut self,
        state: MachineState,
        confirmation: ConfirmationSettings,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match (state, self.stop) {
            (MachineState::Stopped, Stop::Ordered { attempt: attempts, .. })
            | (MachineState::Stopped, Stop::Exhausted { attempts }) => {
                self.stop = Stop::Confirmed;
                let after = now.saturating_duration_since(self.decided);
                let trip_id = self.trip_id.clone();
                actions.push(Action::StopConfirmed { trip_id, attempts, after });
            }
            (MachineState::Running | MachineState::Stopping, Stop::Confirmed) => {
                actions.insert(0, self.order_stop(StopReach::All, confirmation, now));
                let trip_id = self.trip_id.clone();
                actions.push(Action::MovedWhileTripped { trip_id, machine_state: state });
            }
            (MachineState::Stopped, Stop::Confirmed)
            | (
                MachineState::Running | MachineState::Stopping,
                Stop::Ordered { .. } | Stop::Exhausted { .. },
            ) => {}
        }
    }

    /// Orders the stop again if its deadline has passed, or gives up ordering it.
    pub(super) fn pass_time(
        &mut self,
        confirmation: ConfirmationSettings,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Stop::Ordered { attempt, deadline, is_reported } = self.stop else { return };
        if deadline > now {
            return;
        }
        let is_escalated = attempt >= confirmation.attempts_max;
        if is_escalated {
            self.stop = Stop::Exhausted { attempts: attempt };
        } else {
            let attempt = attempt + 1;
            let deadline = now + confirmation.deadline;
            self.stop = Stop::Ordered { attempt, deadline, is_reported: true };
            let (trip_id, reach) = (self.trip_id.clone(), StopReach::All);
            actions.push(Action::SendStop { trip_id, attempt, reach });
        }
        if is_escalated || !is_reported {
            actions.push(Action::StopNotConfirmed {
                trip_id: self.trip_id.clone(),
                attempts: attempt,
                is_escalated,
                after: now.saturating_duration_since(self.decided),
            });
        }
    }

    /// When the stop must be confirmed.
    pub(super) const fn next_timeout(&self) -> Option<Instant> {
        match self.stop {
            Stop::Ordered { deadline, .. } => Some(deadline),
            Stop::Exhausted { .. } | Stop::Confirmed => None,
        }
    }

    /// Why a reset must wait for the machine.
    pub(super) fn refusal(&self, machine: &MachineId) -> Option<ResetRefused> {
        match self.stop {
            Stop::Confirmed => None,
            Stop::Ordered { .. } | Stop::Exhausted { .. } => {
                Some(ResetRefused::StopNotConfirmed { machine: machine.clone() })
            }
        }
    }

    /// Remembers what else would have tripped.
    pub(super) fn record(&mut self, cause: TripCause) {
        let is_known = self.cause.is_same_rule(&cause)
            || self.later_causes.iter().any(|known| known.is_same_rule(&cause));
        if !is_known && self.later_causes.len() < LATER_CAUSES_MAX {
            self.later_causes.push(cause);
        }
    }

    pub(super) fn snapshot(&self) -> LatchedTrip {
        LatchedTrip {
            trip_id: self.trip_id.clone(),
            cause: self.cause.clone(),
            since: self.since,
            stop: match self.stop {
                Stop::Ordered { is_reported: false, .. } => StopProgress::Ordered,
                Stop::Ordered { is_reported: true, .. } | Stop::Exhausted { .. } => {
                    StopProgress::NotConfirmed
                }
                Stop::Confirmed => StopProgress::Confirmed,
            },
            later_causes: self.later_causes.clone(),
            rule_version: self.rule_version.clone(),
        }
    }

    /// Starts a round of stop commands.
    fn order_stop(
        &mut self,
        reach: StopReach,
        confirmation: ConfirmationSettings,
        now: Instant,
    ) -> Action {
        self.decided = now;
        let deadline = now + confirmation.deadline;
        self.stop = Stop::Ordered { attempt: 1, deadline, is_reported: false };
        Action::SendStop { trip_id: self.trip_id.clone(), attempt: 1, reach }
    }
}
