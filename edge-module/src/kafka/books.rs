//! How far delivery has come, for the journal and for people.

use std::time::{Duration, Instant};

use edge_core::upstream::Upstream;
use shared_proto::Encoding;
use shared_proto::codec;
use tracing::{info, warn};

use super::{Forwarder, REPORT_INTERVAL, STALL_AFTER, now};
use crate::admin::Part;
use crate::journal::Durable;
use crate::limits::show_use;
use crate::store::Lane;
use crate::telemetry;

impl Forwarder {
    /// Tells the journal and the operators how far delivery has come.
    pub(super) fn show(&mut self) {
        let durable = *self.durable.borrow();
        let mut in_flight = 0;
        let (mut delivered, mut backlog) = (Vec::new(), Vec::new());
        let mut stalled_for = Duration::ZERO;
        for ((lane, outbox), last_delivery) in self.outboxes.iter().zip(&mut self.last_delivery) {
            let acknowledged = outbox.acknowledged();
            in_flight += outbox.in_flight();
            if outbox.in_flight() == 0 {
                *last_delivery = Instant::now();
            }
            stalled_for = stalled_for.max(last_delivery.elapsed());
            let owed = durable.get(*lane).0.saturating_sub(acknowledged.0);
            metrics::gauge!(telemetry::OUTBOX_RECORDS, "lane" => lane.as_str()).set(owed as f64);
            delivered.push((*lane, acknowledged));
            backlog.push((*lane, owed));
        }
        self.delivered.send_modify(|all| {
            for (lane, acknowledged) in delivered {
                *all.get_mut(lane) = acknowledged;
            }
        });
        let age = self.show_age(durable);
        self.board.show_backlog(self.switch.shown(), &backlog, age);
        metrics::gauge!(telemetry::IN_USE, "name" => "kafka.in-flight-max").set(in_flight as f64);
        if let Some(hub) = &self.hub {
            show_use("upstream.messages-in-flight-max", hub.in_flight());
        }
        let is_stalled = stalled_for > STALL_AFTER;
        if is_stalled && !self.is_stalled {
            let upstream = self.switch.shown().as_str();
            warn!(in_flight, upstream, "does not acknowledge; records wait in the journal");
        }
        // Records also cease to be in flight when they fail, and at the end.
        if self.is_stalled && !is_stalled && self.last_report.elapsed() < REPORT_INTERVAL * 2 {
            info!(upstream = self.switch.shown().as_str(), "acknowledges again");
        }
        self.is_stalled = is_stalled;
        let is_failing = self.outboxes.iter().any(|(_, outbox)| outbox.failures_in_a_row() > 0);
        if self.switch.shown() == Upstream::Kafka {
            self.show_kafka(is_failing, stalled_for);
        }
        for upstream in Upstream::ALL {
            let is_active = if self.switch.shown() == upstream { 1.0 } else { 0.0 };
            let label = upstream.as_str();
            metrics::gauge!(telemetry::UPSTREAM_ACTIVE, "upstream" => label).set(is_active);
        }
        let obstacle = self.obstacles.iter().flatten().next();
        let obstacle = obstacle.map(|why| format!("journal cannot be read: {why}"));
        self.board.set(Part::Forwarder, obstacle.map_or(Ok(()), Err));
    }

    fn show_kafka(&self, is_failing: bool, stalled_for: Duration) {
        let state = if is_failing {
            Err(format!("{}; records wait in the journal", self.last_failure))
        } else if self.is_stalled {
            Err(format!("no delivery for {} s", stalled_for.as_secs()))
        } else if !self.has_delivered {
            Err("nothing delivered since the start".to_owned())
        } else {
            Ok(())
        };
        self.board.set(Part::Kafka, state);
    }

    fn show_age(&self, durable: Durable) -> f64 {
        let (_, outbox) = &self.outboxes[Lane::Readings.index()];
        let through = *durable.get(Lane::Readings);
        let oldest = (outbox.acknowledged() < through)
            .then(|| self.journal.peek(Lane::Readings, outbox.acknowledged(), through))
            .flatten()
            .and_then(|record| codec::decode_reading(&record.payload, Encoding::Protobuf).ok());
        let age = oldest
            .map_or(0.0, |decoded| now().micros_since(decoded.reading.timestamp) as f64 / 1e6);
        metrics::gauge!(telemetry::OUTBOX_OLDEST_AGE).set(age);
        age
    }
}
