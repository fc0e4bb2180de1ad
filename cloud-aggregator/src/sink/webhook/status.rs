//! What `/status` and the metrics tell of a target or of the topic. Reasons are cut at [`REASON_BYTES_MAX`], and neither a URL nor the
//! value of a header is in one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aggregator_core::ProcessingTime;
use metrics::{counter, gauge};
use serde::Serialize;

use super::circuit::Position;
use crate::sink::alert::Channel;

/// Longest reason that is told, in bytes: what a server or a client says can be long.
const REASON_BYTES_MAX: usize = 512;
/// What stands for `kind` of the topic, which is no target.
const TOPIC_KIND: &str = "kafka";

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

/// One target of `/status`, or the topic. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// Name in the settings; `topic` for `alerts.topic`.
    pub name: String,
    /// Kind in the settings; `kafka` for the topic.
    pub kind: String,
    /// Events owed to it.
    pub owed: usize,
    /// Whether it is sent everything. The topic has no circuit, it always is.
    pub circuit: CircuitState,
    /// Since when it has taken nothing, by its first failure since it last answered; `None` while it answers.
    pub failing_since: Option<String>,
    /// Attempts that failed since the last one that did not.
    pub failures_in_a_row: u32,
    /// What the last failure was; `None` once the target has answered.
    pub last_failure: Option<String>,
    /// When the next attempt is made, if one has failed.
    pub next_attempt_at: Option<String>,
    /// Why it was last given an event for the last time: that one has become a dead letter.
    pub last_given_up: Option<String>,
    /// When that was.
    pub last_given_up_at: Option<String>,
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
        Self::named(name, kind)
    }

    /// Of the topic.
    pub(crate) fn of_topic() -> Self {
        Self::named(Channel::Topic.as_str(), TOPIC_KIND)
    }

    fn named(name: &str, kind: &str) -> Self {
        let (name, kind) = (name.to_owned(), kind.to_owned());
        Self(Arc::new(Mutex::new(TargetStatus { name, kind, ..TargetStatus::default() })))
    }

    /// A copy of the status.
    #[must_use]
    pub fn status(&self) -> TargetStatus {
        self.lock().clone()
    }

    pub(in crate::sink) fn delivered(&self, at: ProcessingTime) {
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
    pub(in crate::sink) fn answered(&self) {
        let mut status = self.lock();
        status.failing_since = None;
        status.failures_in_a_row = 0;
        status.last_failure = None;
        status.next_attempt_at = None;
        set_circuit(&mut status, CircuitState::Closed);
    }

    /// An attempt has failed; the next one comes after `wait`.
    pub(in crate::sink) fn failed(&self, reason: &str, now: ProcessingTime, wait: Duration) {
        let text = |time: ProcessingTime| time.as_event_time().to_string();
        let mut status = self.lock();
        status.failures_in_a_row = status.failures_in_a_row.saturating_add(1);
        status.failing_since.get_or_insert_with(|| text(now));
        status.last_failure = Some(shortened(reason));
        status.next_attempt_at = Some(text(now.saturating_add(wait.into())));
    }

    /// Nothing has been taken yet, and it is known that nothing would be.
    pub(in crate::sink) fn is_known_to_fail(&self, reason: &str, now: ProcessingTime) {
        let mut status = self.lock();
        if status.last_delivered_at.is_some() {
            // What was asked has been answered by an event meanwhile.
            return;
        }
        status.failing_since.get_or_insert_with(|| now.as_event_time().to_string());
        status.last_failure.get_or_insert_with(|| shortened(reason));
    }

    /// An event will never be taken.
    pub(in crate::sink) fn gave_up(&self, reason: &str, now: ProcessingTime) {
        let mut status = self.lock();
        status.last_given_up = Some(shortened(reason));
        status.last_given_up_at = Some(now.as_event_time().to_string());
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

fn shortened(reason: &str) -> String {
    match reason.floor_char_boundary(REASON_BYTES_MAX) {
        end if end < reason.len() => format!("{}…", &reason[..end]),
        _ => reason.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> ProcessingTime {
        // 2026-03-01T08:00:00Z and so many seconds.
        ProcessingTime::from_micros(1_772_352_000_000_000 + second * 1_000_000)
    }

    #[test]
    fn it_is_told_since_when_and_why_nothing_is_taken_until_it_answers() {
        let health = TargetHealth::of_topic();
        health.is_known_to_fail("the topic is not there", at(0));
        let status = health.status();
        assert_eq!((status.name.as_str(), status.kind.as_str()), ("topic", "kafka"));
        assert_eq!(status.failing_since.as_deref(), Some("2026-03-01T08:00:00.000000Z"));
        assert_eq!(status.last_failure.as_deref(), Some("the topic is not there"));
        assert_eq!((status.failures_in_a_row, status.next_attempt_at), (0, None));
        health.failed("timed out", at(30), Duration::from_secs(5));
        health.failed("no broker", at(60), Duration::from_secs(5));
        let status = health.status();
        assert_eq!(status.failing_since.as_deref(), Some("2026-03-01T08:00:00.000000Z"));
        assert_eq!(status.last_failure.as_deref(), Some("no broker"));
        assert_eq!(status.next_attempt_at.as_deref(), Some("2026-03-01T08:01:05.000000Z"));
        assert_eq!(status.failures_in_a_row, 2);
        health.answered();
        let status = health.status();
        assert_eq!((status.failing_since, status.last_failure), (None, None));
        health.delivered(at(80));
        health.is_known_to_fail("the topic was not there at the start", at(85));
        assert_eq!(health.status().failing_since, None);
        health.failed("again", at(90), Duration::ZERO);
        let since = health.status().failing_since;
        assert_eq!(since.as_deref(), Some("2026-03-01T08:01:30.000000Z"));
    }

    #[test]
    fn what_was_given_up_stays_told_though_the_target_answers() {
        let health = TargetHealth::of_topic();
        health.gave_up("status 404 Not Found", at(1));
        health.answered();
        let status = health.status();
        assert_eq!(status.last_given_up.as_deref(), Some("status 404 Not Found"));
        assert_eq!(status.last_given_up_at.as_deref(), Some("2026-03-01T08:00:01.000000Z"));
    }

    #[test]
    fn reasons_are_cut_between_two_characters() {
        let check = |reason: &str, bytes: usize| {
            let health = TargetHealth::of_topic();
            health.failed(reason, at(0), Duration::ZERO);
            let told = health.status().last_failure.expect("a reason");
            assert_eq!(told.len(), bytes, "{reason}");
        };
        let mark = "…".len();
        check(&"a".repeat(REASON_BYTES_MAX), REASON_BYTES_MAX);
        check(&"a".repeat(REASON_BYTES_MAX + 1), REASON_BYTES_MAX + mark);
        check(&"€".repeat(REASON_BYTES_MAX), REASON_BYTES_MAX / 3 * 3 + mark);
    }
}
