//! The client library: how it is set up, what it tells, and whether Kafka answers at all.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};
use shared_proto::model::{DeviceId, Sequence};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::LANES;
use crate::config::{Kafka, read_secret};
use crate::store::Lane;

/// The same complaint of the client is logged no more often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(600);
/// A broker that answers does so within this.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the forwarder cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The client library refuses the settings.
    #[error("kafka settings refused")]
    Settings(#[source] KafkaError),
    /// A secret cannot be read.
    #[error("kafka.property-files: {0}")]
    Secret(String),
}

/// What became of one record.
pub(super) struct Report {
    pub(super) lane: Lane,
    pub(super) sequence: Sequence,
    /// Why it failed, and on which topic.
    pub(super) failure: Option<(RDKafkaErrorCode, String)>,
}

/// Hands each delivery report to the forwarder.
pub(super) struct Reports {
    sender: mpsc::Sender<Report>,
    /// When the client last complained of what, and how often since that was logged.
    complaints: Mutex<BTreeMap<String, (Instant, u64)>>,
}

impl Reports {
    const fn new(sender: mpsc::Sender<Report>) -> Self {
        Self { sender, complaints: Mutex::new(BTreeMap::new()) }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        // We ask for it knowingly.
        let is_known = fac == "CONFWARN" && text.contains("enable.gapless.guarantee");
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => error!(fac, text, "kafka client"),
            RDKafkaLogLevel::Warning if !is_known => warn!(fac, text, "kafka client"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => info!(fac, text, "kafka client"),
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Debug => {
                debug!(fac, text, "kafka client");
            }
        }
    }

    /// The client repeats itself several times a second while a broker is away, for days: a complaint is logged once and
    /// then again every [`COMPLAINT_INTERVAL`].
    fn error(&self, error: KafkaError, reason: &str) {
        let what = error.to_string();
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let repeated = match complaints.get_mut(&what) {
            Some((logged, repeated)) if now.duration_since(*logged) < COMPLAINT_INTERVAL => {
                *repeated += 1;
                return;
            }
            Some((logged, repeated)) => {
                *logged = now;
                std::mem::take(repeated)
            }
            None => {
                complaints.insert(what, (now, 0));
                0
            }
        };
        warn!(%error, reason, repeated, "kafka client");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<(Lane, Sequence)>;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: Self::DeliveryOpaque) {
        let (lane, sequence) = *opaque;
        let failure = match result {
            Ok(_) => None,
            Err((error, message)) => {
                debug!(%error, topic = message.topic(), sequence = sequence.0, "delivery failed");
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                Some((code, message.topic().to_owned()))
            }
        };
        // The channel holds as many reports as records can be in flight: only a forwarder that is gone refuses.
        if self.sender.try_send(Report { lane, sequence, failure }).is_err() {
            debug!(sequence = sequence.0, "delivery report after the forwarder's end");
        }
    }
}

/// A producer whose delivery reports go to `reports`.
///
/// # Errors
/// The client library refuses the settings, or a secret cannot be read.
pub(super) fn connect(
    settings: &Kafka,
    device_id: &DeviceId,
    reports: mpsc::Sender<Report>,
) -> Result<ThreadedProducer<Reports>, ForwardError> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", device_id.as_str())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // In a partition nothing is delivered after a record that failed: such a failure ends the producer instead.
        .set("enable.gapless.guarantee", "true")
        .set("compression.codec", settings.compression.as_str())
        .set("linger.ms", settings.linger.as_millis().to_string())
        .set("message.timeout.ms", "0")
        // A topic that is not there yet is waited for: an error would let later records overtake.
        .set("topic.metadata.propagation.max.ms", "3600000")
        .set("queue.buffering.max.messages", (settings.in_flight_max * LANES + 1).to_string())
        // Also of the memory: more than a second of anything but raw bytes.
        .set("queue.buffering.max.kbytes", "65536")
        // A topic that is made later is found within this.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("partitioner", "murmur2_random")
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true");
    for (key, value) in &settings.properties {
        config.set(key, value);
    }
    for (key, file) in &settings.property_files {
        config.set(key, read_secret(file).map_err(ForwardError::Secret)?.expose());
    }
    config.create_with_context(Reports::new(reports)).map_err(ForwardError::Settings)
}

/// Whether a broker answers, and every partition of the topic has one that leads it. Blocks.
pub(super) fn answers(producer: &ThreadedProducer<Reports>, topic: &str) -> bool {
    match producer.client().fetch_metadata(Some(topic), ASK_TIMEOUT) {
        // A topic that is not there yet is waited for by the producer.
        Ok(found) => {
            let mut partitions = found.topics().iter().flat_map(|topic| topic.partitions());
            !found.brokers().is_empty() && partitions.all(|partition| partition.leader() >= 0)
        }
        Err(error) => {
            debug!(%error, "kafka does not answer");
            false
        }
    }
}
