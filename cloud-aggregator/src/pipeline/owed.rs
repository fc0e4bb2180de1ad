//! Alerts on their way out: owed, delivered, given up.

use aggregator_core::AlertEvent;
use aggregator_core::checkpoint::TopicPartition;
use metrics::counter;
use tracing::{debug, info, warn};

use super::{Pipeline, Stage, names, now};
use crate::alerts::Undelivered;
use crate::counting::undelivered;
use crate::sink::alert::Outcome;

impl Pipeline {
    /// Gives the channels the drain timeout to take what is owed; what they do not take stays owed.
    pub(super) async fn await_deliveries(&mut self) {
        let limit = self.parts.settings.shutdown.drain_timeout;
        let deliveries = async {
            self.parts.desk.pump();
            while !self.parts.desk.is_empty() {
                let outcome = self.parts.outcomes.recv().await;
                self.handle_outcome(outcome);
                self.parts.desk.pump();
            }
        };
        if tokio::time::timeout(limit, deliveries).await.is_err() {
            warn!(
                owed = self.parts.desk.len(),
                ?limit,
                "alerts are still owed, the next start sends them"
            );
        }
    }

    /// Sends the alerts of an epoch before its commit: a crash counts again and sends them again, under the same ids.
    pub(super) fn send_alerts(&mut self) {
        let Stage::Running { counting, .. } = &mut self.stage else { return };
        let alerts = counting.take_alerts();
        if !alerts.is_empty() {
            self.owe(alerts);
            self.parts.desk.pump();
        }
    }

    pub(super) fn owe(&mut self, alerts: Vec<(TopicPartition, AlertEvent)>) {
        for (partition, alert) in alerts {
            let added = self.parts.desk.add(partition, alert.clone());
            if added.is_new {
                // An epoch that is counted again decides the same.
                counter!(names::ALERTS_TOTAL).increment(1);
                log_alert(&alert);
            }
            if let Some(overflow) = added.overflow {
                self.bury(&overflow);
            }
        }
    }

    pub(super) fn handle_outcome(&mut self, outcome: Option<Outcome>) {
        let Some(outcome) = outcome else { return };
        self.has_outcomes = true;
        if let Some(lost) = self.parts.desk.handle(outcome) {
            self.bury(&lost);
        }
    }

    /// Alerts that were given up while their partitions were recovered become dead letters.
    pub(super) fn bury_overflow(&mut self) {
        for lost in std::mem::take(&mut self.overflow) {
            self.bury(&lost);
        }
    }

    /// A dead letter in the partition that the alert came from, in service or about to be.
    fn bury(&mut self, lost: &Undelivered) {
        let letter = undelivered(lost.reason, lost.detail.clone(), &lost.alert, &lost.body);
        if let Stage::Running { counting, .. } | Stage::Starting { counting, .. } = &mut self.stage
            && counting.is_in_service(&lost.partition)
        {
            counting.keep_undelivered(&lost.partition, letter, now());
            return;
        }
        match self.joining.iter_mut().find(|partition| partition.id == lost.partition) {
            Some(partition) => partition.keep_undelivered(letter, now()),
            // Its state file owes the alert, for whoever has the partition now.
            None => debug!(partition = %lost.partition, "alert of a partition that is not here"),
        }
    }
}

fn log_alert(alert: &AlertEvent) {
    info!(
        rule = alert.rule,
        of = alert.subject(),
        state = alert.state.as_str(),
        window_start = %alert.window_start,
        findings = alert.findings,
        threshold = alert.threshold,
        observed = alert.observed,
        historical = alert.historical,
        suppressed_by = alert.suppressed_by,
        id = alert.event_id(),
        "alert"
    );
}
