//! Messages as the built-in endpoint of an IoT Hub has them: no key, headers of any bytes, a partition that the hub chooses.

use anyhow::Context;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use super::{Kafka, REQUEST_DEADLINE, client_config};

/// A message.
#[derive(Clone, Debug)]
pub struct HubRecord {
    /// Names and values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Kafka {
    /// Sends messages to one partition, in order, and waits until all are acknowledged.
    ///
    /// # Errors
    /// One is refused or not acknowledged within 30 s.
    pub fn produce_as_hub(
        &self,
        topic: &str,
        partition: i32,
        records: &[HubRecord],
    ) -> anyhow::Result<()> {
        let producer: ThreadedProducer<DefaultProducerContext> =
            client_config(&self.bootstrap()).set("enable.idempotence", "true").create()?;
        for HubRecord { headers, body } in records {
            let headers = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header { key, value: Some(value) })
            });
            let record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition);
            producer
                .send(record.payload(body).headers(headers))
                .map_err(|(error, _)| error)
                .with_context(|| format!("sending to {topic}"))?;
        }
        producer.flush(REQUEST_DEADLINE).context("waiting for acknowledgements")
    }
}
