//! Outcomes to a Kafka topic: JSON, keyed by machine, acknowledged by all replicas.

use std::time::Duration;

use async_trait::async_trait;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use shared_proto::Encoding;
use shared_proto::codec::encode_outcome;
use shared_proto::model::Outcome;
use shared_proto::wire::CONTENT_TYPE_HEADER;

use super::{OutcomeSink, PublishError};
use crate::source::kafka::QuietContext;

/// Outcomes that may wait in the client; with more, requests are refused.
const QUEUE_LENGTH: &str = "10000";

/// Publishes to one topic.
pub struct OutcomeTopic {
    producer: FutureProducer<QuietContext>,
    topic: String,
}

impl std::fmt::Debug for OutcomeTopic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OutcomeTopic").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl OutcomeTopic {
    /// Makes the producer. `client` holds the brokers' address and what the settings pass through; `patience` is how long somebody waits
    /// for an answer: what was not sent by then is not sent later.
    ///
    /// # Errors
    /// librdkafka refuses the properties.
    pub fn new(
        mut client: ClientConfig,
        topic: &str,
        patience: Duration,
    ) -> Result<Self, KafkaError> {
        let patience_ms = patience.as_millis().to_string();
        // What somebody waits for is durable, whatever the settings pass through.
        client.set("enable.idempotence", "true").set("acks", "all");
        let defaults = [
            ("linger.ms", "0"),
            ("message.timeout.ms", patience_ms.as_str()),
            ("queue.buffering.max.messages", QUEUE_LENGTH),
            // As the edge modules and Kafka's own clients: records of one machine share a partition's number across topics.
            ("partitioner", "murmur2_random"),
            ("client.id", "cloud-aggregator-outcomes"),
        ];
        for (property, value) in defaults {
            if client.get(property).is_none() {
                client.set(property, value);
            }
        }
        let producer = client.create_with_context(QuietContext::new("outcomes"))?;
        Ok(Self { producer, topic: topic.to_owned() })
    }
}

#[async_trait]
impl OutcomeSink for OutcomeTopic {
    async fn publish(&self, outcome: &Outcome) -> Result<(), PublishError> {
        let failed = |text: String| PublishError { text };
        let encoding = Encoding::Json;
        let payload = encode_outcome(outcome, encoding);
        let content_type =
            Header { key: CONTENT_TYPE_HEADER, value: Some(encoding.content_type()) };
        let record = FutureRecord::to(&self.topic)
            .key(outcome.machine_id.as_str())
            .payload(&payload)
            .headers(OwnedHeaders::new().insert(content_type));
        let report = self.producer.send_result(record);
        let report = report.map_err(|(error, _)| failed(error.to_string()))?;
        match report.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(failed(error.to_string())),
            Err(_) => Err(failed("the client has gone without an answer".to_owned())),
        }
    }
}
