//! Alerts to a Kafka topic. Tried until Kafka takes them; only what Kafka will never take is given up.

use std::time::Duration;

use metrics::counter;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::OwnedDeliveryResult;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use shared_proto::wire::CONTENT_TYPE_HEADER;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::alert::{CONTENT_TYPE, Channel, Delivery, Outcome};
use crate::backoff::Backoff;
use crate::config::Alerts;
use crate::source::kafka::QuietContext;
use crate::telemetry::names;

/// Alerts in flight at the same time.
const IN_FLIGHT_MAX: usize = 64;
const MESSAGE_TIMEOUT_MS: &str = "30000";
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Delivers to one topic.
pub struct AlertTopic {
    producer: FutureProducer<QuietContext>,
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
            producer: client.create_with_context(QuietContext::new("alerts"))?,
            topic: settings.topic.clone(),
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
        })
    }

    /// Delivers until the queue is closed and all is delivered.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Delivery>,
        outcomes: mpsc::Sender<Outcome>,
    ) {
        self.look_for_topic();
        let mut sending = Sending::default();
        let mut is_open = true;
        loop {
            let has_room = sending.reports.len() + sending.failed.len() < IN_FLIGHT_MAX;
            let retry_at = sending.retry_at;
            tokio::select! {
                delivery = queue.recv(), if is_open && has_room => match delivery {
                    Some(delivery) => self.send(delivery, &mut sending, &outcomes).await,
                    None => is_open = false,
                },
                Some(report) = sending.reports.join_next() => match report {
                    Ok((delivery, result)) => {
                        self.take_report(delivery, result, &mut sending, &outcomes).await;
                    }
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The runtime is ending.
                        Err(_) => return,
                    },
                },
                () = wait_until(retry_at), if retry_at.is_some() => {
                    sending.retry_at = None;
                    for delivery in std::mem::take(&mut sending.failed) {
                        self.send(delivery, &mut sending, &outcomes).await;
                    }
                }
                else => return,
            }
        }
    }

    /// Tells early when nothing can be sent: the client itself waits long for a topic to appear.
    fn look_for_topic(&self) {
        let (producer, name) = (self.producer.clone(), self.topic.clone());
        tokio::task::spawn_blocking(move || {
            let metadata = match producer.client().fetch_metadata(Some(&name), METADATA_TIMEOUT) {
                Ok(metadata) => metadata,
                Err(error) => {
                    warn!(topic = name, %error, "whether the topic of alerts is there is not known");
                    return;
                }
            };
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            if let Some(error) = topic.and_then(|topic| topic.error()) {
                let error = RDKafkaErrorCode::from(error);
                warn!(topic = name, %error, "alerts wait: the topic (alerts.topic) is not there or not ours");
            }
        });
    }

    async fn send(
        &mut self,
        delivery: Delivery,
        sending: &mut Sending,
        outcomes: &mpsc::Sender<Outcome>,
    ) {
        let content_type = Header { key: CONTENT_TYPE_HEADER, value: Some(CONTENT_TYPE) };
        let record = FutureRecord::to(&self.topic)
            .key(&*delivery.key)
            .payload(&*delivery.body)
            .headers(OwnedHeaders::new().insert(content_type));
        match self.producer.send_result(record) {
            Ok(report) => {
                sending.reports.spawn(async move { (delivery, report.await.ok()) });
            }
            Err((error, _)) => self.note(delivery, &error, sending, outcomes).await,
        }
    }

    async fn take_report(
        &mut self,
        delivery: Delivery,
        result: Option<OwnedDeliveryResult>,
        sending: &mut Sending,
        outcomes: &mpsc::Sender<Outcome>,
    ) {
        match result {
            Some(Ok(_)) => {
                counter!(names::ALERTS_DELIVERED_TOTAL, "channel" => "topic").increment(1);
                self.backoff.reset();
                report_outcome(outcomes, &delivery, None).await;
            }
            Some(Err((error, _))) => self.note(delivery, &error, sending, outcomes).await,
            // The client has gone without an answer.
            None => self.retry(delivery, sending),
        }
    }

    async fn note(
        &mut self,
        delivery: Delivery,
        error: &KafkaError,
        sending: &mut Sending,
        outcomes: &mpsc::Sender<Outcome>,
    ) {
        counter!(names::ALERT_FAILURES_TOTAL, "channel" => "topic").increment(1);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            report_outcome(outcomes, &delivery, Some(error.to_string())).await;
            return;
        }
        let alert = &*delivery.id;
        // Of those that fail together one is told.
        match sending.retry_at {
            None => warn!(topic = self.topic, %error, alert, "alert was not taken, trying again"),
            Some(_) => debug!(topic = self.topic, %error, alert, "alert was not taken, either"),
        }
        self.retry(delivery, sending);
    }

    /// All that fail while one waits are tried again together.
    fn retry(&mut self, delivery: Delivery, sending: &mut Sending) {
        sending.failed.push(delivery);
        if sending.retry_at.is_none() {
            sending.retry_at = Some(Instant::now() + self.backoff.wait());
        }
    }
}

/// Alerts on their way: none waits for another one's answer.
#[derive(Default)]
struct Sending {
    reports: JoinSet<(Delivery, Option<OwnedDeliveryResult>)>,
    failed: Vec<Delivery>,
    retry_at: Option<Instant>,
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
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
