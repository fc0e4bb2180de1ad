//! Alerts to a Kafka topic, which may be an Event Hub. Tried until Kafka takes them; only what Kafka will never take is given up.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aggregator_core::ProcessingTime;
use metrics::counter;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::OwnedDeliveryResult;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use shared_proto::wire::CONTENT_TYPE_HEADER;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use self::token::{AzureTokens, Identity, TokenError, TokenProvider};
use super::alert::{CONTENT_TYPE, Channel, Delivery, Outcome};
use super::webhook::TargetHealth;
use crate::backoff::Backoff;
use crate::config::{Alerts, Connection};
use crate::source::kafka::QuietContext;
use crate::telemetry::names;

pub mod token;

/// Alerts in flight at the same time.
const IN_FLIGHT_MAX: usize = 64;
const MESSAGE_TIMEOUT_MS: &str = "30000";
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Wait for a token: the client asks again a while later.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);
/// The service takes the name from the token.
const PRINCIPAL: &str = "cloud-aggregator";

/// Why there is no producer of alerts.
#[derive(Debug, thiserror::Error)]
pub enum AlertTopicError {
    /// Settings of the Event Hub that cannot be used.
    #[error("alerts.event-hubs.{key}: {text}")]
    EventHubs {
        /// The key.
        key: &'static str,
        /// What is wrong; never a secret.
        text: String,
    },
    /// No tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// librdkafka refuses the properties.
    #[error("kafka client of alerts cannot be made")]
    Client(#[source] KafkaError),
}

/// Delivers to one topic.
pub struct AlertTopic {
    producer: FutureProducer<TopicContext>,
    topic: String,
    backoff: Backoff,
    health: TargetHealth,
}

impl std::fmt::Debug for AlertTopic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AlertTopic").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl AlertTopic {
    /// Makes the producer. `client` holds the brokers' address and what the settings pass through; an Event Hub of `alerts` has its own
    /// instead. `runtime` is where tokens are asked for.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn new(
        client: ClientConfig,
        settings: &Alerts,
        runtime: Handle,
    ) -> Result<Self, AlertTopicError> {
        let failed = |(key, text)| AlertTopicError::EventHubs { key, text };
        let event_hub = settings.event_hubs.connection().map_err(failed)?;
        let mut tokens = None;
        let mut client = match event_hub {
            None => client,
            Some(connection) => {
                if let Some(scope) = &connection.token_scope {
                    let identity = Identity::of_process(&settings.event_hubs.client_id);
                    let provider = Arc::new(AzureTokens::new(scope.clone(), identity)?);
                    tokens = Some(Tokens { provider, runtime });
                }
                client_of_event_hub(&connection)
            }
        };
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
        let context = TopicContext { quiet: QuietContext::new("alerts"), tokens };
        Ok(Self {
            producer: client.create_with_context(context).map_err(AlertTopicError::Client)?,
            topic: settings.topic.clone(),
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
            health: TargetHealth::of_topic(),
        })
    }

    /// How it stands, now and while it runs.
    #[must_use]
    pub fn health(&self) -> TargetHealth {
        self.health.clone()
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
            self.send_alone(&mut sending, &outcomes).await;
            let is_free = sending.suspects.is_empty() && !sending.is_alone;
            let has_room = is_free && sending.reports.len() + sending.failed.len() < IN_FLIGHT_MAX;
            let retry_at = sending.retry_at.filter(|_| is_free);
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
        let health = self.health.clone();
        tokio::task::spawn_blocking(move || {
            let metadata = match producer.client().fetch_metadata(Some(&name), METADATA_TIMEOUT) {
                Ok(metadata) => metadata,
                Err(error) => {
                    warn!(topic = name, %error, "whether the topic of alerts is there is not known");
                    health.is_known_to_fail(&error.to_string(), now());
                    return;
                }
            };
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            if let Some(error) = topic.and_then(|topic| topic.error()) {
                let error = RDKafkaErrorCode::from(error);
                warn!(topic = name, %error, "alerts wait: the topic (alerts.topic) is not there or not ours");
                let reason =
                    format!("the topic {name} (alerts.topic) is not there or not ours: {error}");
                health.is_known_to_fail(&reason, now());
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
        let was_alone = std::mem::take(&mut sending.is_alone);
        match result {
            Some(Ok(_)) => {
                counter!(names::ALERTS_DELIVERED_TOTAL, "channel" => "topic").increment(1);
                self.backoff.reset();
                self.health.answered();
                self.health.delivered(now());
                report_outcome(outcomes, &delivery, None).await;
            }
            Some(Err((error, _))) if !was_alone && is_too_large(&error) => {
                debug!(topic = self.topic, alert = &*delivery.id, "too large, perhaps with others");
                sending.suspects.push_back(delivery);
            }
            Some(Err((error, _))) => self.note(delivery, &error, sending, outcomes).await,
            None => self.retry(delivery, "the client has gone without an answer", sending),
        }
    }

    /// Brokers refuse a batch as a whole: which record of it is too large shows when each is sent while no other is on its way.
    async fn send_alone(&mut self, sending: &mut Sending, outcomes: &mpsc::Sender<Outcome>) {
        while sending.reports.is_empty() {
            let Some(delivery) = sending.suspects.pop_front() else { return };
            self.send(delivery, sending, outcomes).await;
            sending.is_alone = !sending.reports.is_empty();
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
        if is_too_large(error) {
            self.health.gave_up(&error.to_string(), now());
            report_outcome(outcomes, &delivery, Some(error.to_string())).await;
            return;
        }
        let alert = &*delivery.id;
        // Of those that fail together one is told.
        match sending.retry_at {
            None => warn!(topic = self.topic, %error, alert, "alert was not taken, trying again"),
            Some(_) => debug!(topic = self.topic, %error, alert, "alert was not taken, either"),
        }
        self.retry(delivery, &error.to_string(), sending);
    }

    /// All that fail while one waits are tried again together.
    fn retry(&mut self, delivery: Delivery, reason: &str, sending: &mut Sending) {
        sending.failed.push(delivery);
        let instant = Instant::now();
        let retry_at = *sending.retry_at.get_or_insert_with(|| instant + self.backoff.wait());
        self.health.failed(reason, now(), retry_at.saturating_duration_since(instant));
    }
}

/// Alerts on their way: none waits for another one's answer.
#[derive(Default)]
struct Sending {
    reports: JoinSet<(Delivery, Option<OwnedDeliveryResult>)>,
    failed: Vec<Delivery>,
    retry_at: Option<Instant>,
    /// Those of a batch that was too large.
    suspects: VecDeque<Delivery>,
    /// What is on its way is one of them, without any other.
    is_alone: bool,
}

fn is_too_large(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
}

fn now() -> ProcessingTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ProcessingTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
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

/// An Event Hub has another address and other secrets than `kafka.brokers`: nothing of these goes there.
fn client_of_event_hub(connection: &Connection) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &connection.brokers);
    for (property, value) in &connection.properties {
        client.set(*property, value);
    }
    if let Some(password) = &connection.password {
        client.set("sasl.password", password.expose());
    }
    client.set_log_level(RDKafkaLogLevel::Warning);
    client
}

/// Who gives tokens, and where the waiting for them is done: librdkafka asks on a thread of its own.
#[derive(Debug)]
struct Tokens {
    provider: Arc<dyn TokenProvider>,
    runtime: Handle,
}

impl Tokens {
    /// Blocks until there is one.
    fn ask(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let provider = Arc::clone(&self.provider);
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            if sender.send(provider.token().await).is_err() {
                debug!("a token came too late, the next time asks again");
            }
        });
        let found = answer.recv_timeout(TOKEN_TIMEOUT).map_err(|_| "no token in time")??;
        Ok(OAuthToken {
            token: found.token.expose().to_owned(),
            principal_name: PRINCIPAL.to_owned(),
            lifetime_ms: found.expires_at_ms,
        })
    }
}

/// Logs little, and gives tokens where the endpoint asks for them.
struct TopicContext {
    quiet: QuietContext,
    tokens: Option<Tokens>,
}

impl ClientContext for TopicContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.error(error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let tokens = self.tokens.as_ref().ok_or("no tokens are needed here")?;
        tokens.ask().inspect_err(|error| warn!(%error, "no token for the topic of alerts"))
    }
}

#[cfg(test)]
mod tests;
