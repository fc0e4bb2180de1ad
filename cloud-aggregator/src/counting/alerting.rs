//! From findings and machine events to changes of alerts, and what people found of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use aggregator_core::rows::{Offset, OutcomeRow};
use aggregator_core::{AlertBook, AlertEvent, AlertSettings, AlertState, ProcessingTime, Settings};
use shared_proto::model::{DEAD_LETTER_RAW_BYTES_MAX, DeadLetter, MachineEvent, Outcome};

use super::{Counting, Partition};
use crate::outcomes::counts::OutcomeCounts;

impl Partition {
    /// With the alerts that were open at the last epoch.
    #[must_use]
    pub fn with_alerts(mut self, open_alerts: AlertBook) -> Self {
        self.open_alerts = open_alerts;
        self
    }

    /// Each change of an alert becomes a row; people are told of those that nothing suppresses.
    fn take_alert_events(&mut self, events: Vec<AlertEvent>) {
        self.rows.alerts.extend(events.iter().cloned());
        self.alerts.extend(events);
    }
}

impl Counting {
    pub(super) fn keep_outputs(&mut self, slot: usize, now: ProcessingTime) {
        if self.outputs.anomalies.is_empty() && self.outputs.findings.is_empty() {
            return;
        }
        let partition = &mut self.partitions[slot];
        partition.rows.anomalies.append(&mut self.outputs.anomalies);
        let mut events = Vec::new();
        for finding in self.outputs.findings.drain(..) {
            match &self.settings.alerting {
                None => events.push(AlertEvent::from(finding)),
                Some(alerting) => {
                    partition.open_alerts.handle_finding(finding, now, alerting, &mut events);
                }
            }
        }
        note_alerts(&mut self.outcome_counts, &events);
        partition.take_alert_events(events);
        self.is_dirty = true;
    }

    /// A trip is an alert, and a reset ends it.
    pub(super) fn judge_event(&mut self, slot: usize, event: &MachineEvent, now: ProcessingTime) {
        let settings = Arc::clone(&self.settings);
        let alerting = alerting(&settings);
        let (partition, mut events) = (&mut self.partitions[slot], Vec::new());
        partition.open_alerts.handle_machine_event(event, now, &alerting, &mut events);
        note_alerts(&mut self.outcome_counts, &events);
        partition.take_alert_events(events);
    }

    /// Ends alerts whose time has come.
    pub fn look_at_alerts(&mut self, now: ProcessingTime) {
        let settings = Arc::clone(&self.settings);
        let alerting = alerting(&settings);
        for partition in &mut self.partitions {
            let due = partition.open_alerts.poll_timeout(&alerting);
            let is_due = due.is_some_and(|due| due <= now) || partition.open_alerts.is_ahead(now);
            if partition.is_given_up || !is_due {
                continue;
            }
            let mut events = Vec::new();
            partition.open_alerts.handle_time(now, &alerting, &mut events);
            self.is_dirty |= !events.is_empty();
            partition.take_alert_events(events);
        }
    }
}

/// What is open ends also when each finding has become an alert of its own meanwhile.
fn alerting(settings: &Settings) -> Cow<'_, AlertSettings> {
    settings.alerting.as_ref().map_or_else(
        || {
            Cow::Owned(AlertSettings {
                event_severities: BTreeMap::new(),
                ..AlertSettings::default()
            })
        },
        Cow::Borrowed,
    )
}

/// Outcomes are counted by the rules of their alerts.
fn note_alerts(counts: &mut OutcomeCounts, events: &[AlertEvent]) {
    let fired = events.iter().filter(|event| event.state == AlertState::Fired);
    for event in fired {
        counts.note_alert(&event.alert_id, event.trip_id.as_deref(), &event.rule);
    }
}

pub(super) fn outcome_row(
    offset: Offset,
    received_at: ProcessingTime,
    outcome: Outcome,
) -> OutcomeRow {
    let text = |text: Option<&str>| text.map(str::to_owned);
    OutcomeRow {
        offset,
        received_at,
        outcome_id: outcome.outcome_id.as_str().to_owned(),
        verdict: outcome.verdict.as_str().to_owned(),
        machine_id: outcome.machine_id.as_str().to_owned(),
        timestamp: outcome.timestamp,
        sensor_id: text(outcome.sensor_id.as_ref().map(|it| it.as_str())),
        alert_id: text(outcome.alert_id.as_ref().map(|it| it.as_str())),
        trip_id: text(outcome.trip_id.as_ref().map(|it| it.as_str())),
        ticket_id: text(outcome.ticket_id.as_ref().map(|it| it.as_str())),
        part: text(outcome.part.as_ref().map(|it| it.as_str())),
        note: text(outcome.note.as_ref().map(|it| it.as_str())),
        reported_by: text(outcome.reported_by.as_ref().map(|it| it.as_str())),
    }
}

/// The dead letter of an alert that was not delivered.
#[must_use]
pub fn undelivered(reason: &str, detail: String, alert: &AlertEvent, body: &str) -> DeadLetter {
    debug_assert!(body.len() <= DEAD_LETTER_RAW_BYTES_MAX, "an alert is small");
    DeadLetter::new(reason, detail, "alerts", alert.changed_at.as_event_time(), body.as_bytes())
}
