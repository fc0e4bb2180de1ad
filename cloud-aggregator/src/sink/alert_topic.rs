//! Alerts to a Kafka topic. Tried until Kafka takes them; only what Kafka will never take is given up.

use metrics::counter;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use shared_proto::wire::CONTENT_TYPE_HEADER;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::alert::{CONTENT_TYPE, Channel, Delivery, Outcome};
use crate::backoff::Backoff;
use crate::config::Alerts;
use crate::telemetry::names;

/// Alerts in flight at the same time.
const IN_FLIGHT_MAX: usize = 64;
const MESSAGE_TIMEOUT_MS: &str = "30000";

/// Delivers to one topic.
pub struct AlertTopic {
    producer: FutureProducer,
    topic: String,
    backoff: Backoff,
}

impl std::fmt::Debug for AlertTopic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AlertTopic").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl AlertTopic {
    /// Makes the producer. `client` holds the brokers' address and what the settings pass through.
    ///
    /// # Errors
    /// librdkafka refuses the properties.
    pub fn new(mut client: ClientConfig, settings: &Alerts) -> Result<Self, KafkaError> {
        let defaults = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", "0"),
            ("message.timeout.ms", MESSAGE_TIMEOUT_MS),
            ("client.id", "cloud-aggregator-alerts"),
        ];
        for (property, value) in defaults {
            if client.get(property).is_none() {
                client.set(property, value);
            }
        }
        Ok(Self {
            producer: client.create()?,
            topic: settings.topic.clone(),
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
        })
    }

    /// Delivers until the queue is closed.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Delivery>,
        outcomes: mpsc::Sender<Outcome>,
    ) {
        let mut waiting = Vec::with_capacity(IN_FLIGHT_MAX);
        while queue.recv_many(&mut waiting, IN_FLIGHT_MAX).await > 0 {
            while !waiting.is_empty() {
                let failed = self.attempt(&mut waiting, &outcomes).await;
                waiting = failed;
                if !waiting.is_empty() {
                    tokio::time::sleep(self.backoff.wait()).await;
                }
            }
            self.backoff.reset();
        }
    }

    /// Sends all, then waits for all; returns what is to be tried again.
    async fn attempt(
        &self,
        waiting: &mut Vec<Delivery>,
        outcomes: &mpsc::Sender<Outcome>,
    ) -> Vec<Delivery> {
        let mut sent = Vec::with_capacity(waiting.len());
        let mut failed = Vec::new();
        for delivery in waiting.drain(..) {
            let content_type = Header { key: CONTENT_TYPE_HEADER, value: Some(CONTENT_TYPE) };
            let record = FutureRecord::to(&self.topic)
                .key(&*delivery.key)
                .payload(&*delivery.body)
                .headers(OwnedHeaders::new().insert(content_type));
            match self.producer.send_result(record) {
                Ok(report) => sent.push((delivery.clone(), report)),
                Err((error, _)) => self.note(delivery, &error, &mut failed, outcomes).await,
            }
        }
        for (delivery, report) in sent {
            match report.await {
                Ok(Ok(_)) => {
                    counter!(names::ALERTS_DELIVERED_TOTAL, "channel" => "topic").increment(1);
                    report_outcome(outcomes, &delivery, None).await;
                }
                Ok(Err((error, _))) => self.note(delivery, &error, &mut failed, outcomes).await,
                Err(_) => failed.push(delivery),
            }
        }
        failed
    }

    async fn note(
        &self,
        delivery: Delivery,
        error: &KafkaError,
        failed: &mut Vec<Delivery>,
        outcomes: &mpsc::Sender<Outcome>,
    ) {
        counter!(names::ALERT_FAILURES_TOTAL, "channel" => "topic").increment(1);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            report_outcome(outcomes, &delivery, Some(error.to_string())).await;
            return;
        }
        warn!(topic = self.topic, %error, alert = &*delivery.id, "alert was not taken, trying again");
        failed.push(delivery);
    }
}

async fn report_outcome(
    outcomes: &mpsc::Sender<Outcome>,
    delivery: &Delivery,
    given_up: Option<String>,
) {
    let outcome = Outcome { id: delivery.id.clone(), channel: Channel::Topic, given_up };
    if outcomes.send(outcome).await.is_err() {
        // The alert stands in the last state file and is sent again by the next start.
        debug!(alert = &*delivery.id, "pipeline has ended before an alert was delivered");
    }
}
