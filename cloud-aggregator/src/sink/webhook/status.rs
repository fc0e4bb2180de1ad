//! What `/status` and the metrics tell of a target.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aggregator_core::ProcessingTime;
use metrics::{counter, gauge};
use serde::Serialize;

use super::circuit::Position;

/// Metric names of targets, label `channel`: the target's name.
pub mod names {
    /// 0: every event is sent. 1: one probe is under way. 2: nothing is sent until the next probe.
    pub const ALERT_CIRCUIT: &str = "aggregator_alert_circuit";
    /// How often a circuit opened.
    pub const ALERT_CIRCUIT_OPENED_TOTAL: &str = "aggregator_alert_circuit_opened_total";
    /// Digests delivered.
    pub const ALERT_DIGESTS_TOTAL: &str = "aggregator_alert_digests_total";
    /// Events held for the next digest.
    pub const ALERTS_HELD: &str = "aggregator_alerts_held";
}

/// Whether a target is sent everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CircuitState {
    /// Every event is sent.
    #[default]
    Closed,
    /// One probe is under way.
    HalfOpen,
    /// Nothing is sent until the next probe.
    Open,
}

/// One target of `/status`. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// Name in the settings.
    pub name: String,
    /// Kind in the settings.
    pub kind: String,
    /// Whether it is sent everything.
    pub circuit: CircuitState,
    /// Attempts that failed since the last one that did not.
    pub failures_in_a_row: u32,
    /// What the last failure was; `None` once the target has answered.
    pub last_failure: Option<String>,
    /// When the next attempt is made, if one has failed.
    pub next_attempt_at: Option<String>,
    /// When it last took an event.
    pub last_delivered_at: Option<String>,
    /// Events held for the next digest.
    pub held: usize,
}

/// Shared between a target's task and whoever tells of it.
#[derive(Clone, Debug)]
pub struct TargetHealth(Arc<Mutex<TargetStatus>>);

impl TargetHealth {
    pub(super) fn new(name: &str, kind: &str) -> Self {
        gauge!(names::ALERT_CIRCUIT, "channel" => name.to_owned()).set(0);
        let (name, kind) = (name.to_owned(), kind.to_owned());
        Self(Arc::new(Mutex::new(TargetStatus { name, kind, ..TargetStatus::default() })))
    }

    /// A copy of the status.
    #[must_use]
    pub fn status(&self) -> TargetStatus {
        self.lock().clone()
    }

    pub(super) fn delivered(&self, at: ProcessingTime) {
        self.lock().last_delivered_at = Some(at.as_event_time().to_string());
    }

    pub(super) fn held(&self, held: usize) {
        let mut status = self.lock();
        if status.held != held {
            status.held = held;
            gauge!(names::ALERTS_HELD, "channel" => status.name.clone()).set(held as f64);
        }
    }

    /// The target has answered.
    pub(super) fn answered(&self) {
        let mut status = self.lock();
        status.failures_in_a_row = 0;
        status.last_failure = None;
        status.next_attempt_at = None;
        set_circuit(&mut status, CircuitState::Closed);
    }

    pub(super) fn failed(&self, failures: u32, reason: &str, next_attempt_at: ProcessingTime) {
        let mut status = self.lock();
        status.failures_in_a_row = failures;
        status.last_failure = Some(reason.to_owned());
        status.next_attempt_at = Some(next_attempt_at.as_event_time().to_string());
    }

    pub(super) fn moved(&self, position: Position) {
        set_circuit(
            &mut self.lock(),
            match position {
                Position::Closed => CircuitState::Closed,
                Position::HalfOpen => CircuitState::HalfOpen,
                Position::Open { .. } => CircuitState::Open,
            },
        );
    }

    fn lock(&self) -> MutexGuard<'_, TargetStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_circuit(status: &mut TargetStatus, circuit: CircuitState) {
    if status.circuit == circuit {
        return;
    }
    let name = status.name.clone();
    if (status.circuit, circuit) == (CircuitState::Closed, CircuitState::Open) {
        counter!(names::ALERT_CIRCUIT_OPENED_TOTAL, "channel" => name.clone()).increment(1);
    }
    status.circuit = circuit;
    gauge!(names::ALERT_CIRCUIT, "channel" => name).set(match circuit {
        CircuitState::Closed => 0,
        CircuitState::HalfOpen => 1,
        CircuitState::Open => 2,
    });
}
