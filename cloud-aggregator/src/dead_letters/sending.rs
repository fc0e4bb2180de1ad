//! The way of letters to Kafka: what is asked before, and what each answer says of the letter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use shared_proto::codec::{Encoding, decode_reading};
use shared_proto::wire::{CONTENT_TYPE_HEADER, REPLAY_HEADER};

use super::Letter;
use super::replay::{LETTERS_MAX, ReplayError};
use super::runs::name_of;
use crate::config;
use crate::source::kafka::{QuietContext, client_config};

/// Shortest time in which a broker is to answer.
const ANSWER_MIN: Duration = Duration::from_secs(1);

/// A letter and where it goes.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    /// The letter.
    pub(super) letter: Letter,
    /// The topic.
    pub(super) topic: String,
    /// Its partition; chosen by the sensor if there is none.
    pub(super) partition: Option<i32>,
}

/// What Kafka has said of the letters of a run.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// How many it has taken.
    pub(super) sent: usize,
    /// These by name, with the places where they stand.
    pub(super) taken: BTreeMap<String, Option<String>>,
    /// Names of those that it may have taken.
    pub(super) unknown: Vec<String>,
    /// The first refusal.
    pub(super) failure: Option<KafkaError>,
}

/// A client that knows which topics there are.
pub(super) struct Sender {
    producer: FutureProducer<QuietContext>,
    partitions: BTreeMap<String, BTreeSet<i32>>,
    answer: Duration,
}

impl Sender {
    /// Asks the cluster for its topics.
    ///
    /// # Errors
    /// The settings are wrong, or no broker answers.
    pub(super) fn connect(settings: &config::Kafka) -> Result<Self, ReplayError> {
        let answer = settings.request_timeout.max(ANSWER_MIN);
        let producer = producer(settings, answer * 3).map_err(ReplayError::Settings)?;
        // Asked for by its name, a topic might be made.
        let metadata = producer.client().fetch_metadata(None, answer);
        let metadata = metadata.map_err(|source| {
            let what = format!("for its topics ({})", settings.brokers);
            ReplayError::Unreachable { what, source }
        })?;
        let topics = metadata.topics().iter().filter(|topic| topic.error().is_none());
        let partitions = topics.map(|topic| {
            let numbers = topic.partitions().iter().map(|partition| partition.id()).collect();
            (topic.name().to_owned(), numbers)
        });
        let partitions = partitions.collect();
        Ok(Self { producer, partitions, answer })
    }

    /// Why Kafka cannot have a letter there, if it cannot.
    pub(super) fn why_not(&self, topic: &str, partition: Option<i32>) -> Option<String> {
        why_not(&self.partitions, topic, partition)
    }

    /// Asks the leader of each partition that a letter may go to: what fails afterwards may have arrived, what fails here was never
    /// sent.
    ///
    /// # Errors
    /// One does not answer.
    pub(super) fn reach(&self, letters: &[Outgoing]) -> Result<(), ReplayError> {
        let mut places = BTreeSet::new();
        for Outgoing { topic, partition, .. } in letters {
            match partition {
                Some(partition) => {
                    places.insert((topic, *partition));
                }
                None => {
                    let all = self.partitions.get(topic).into_iter().flatten();
                    places.extend(all.map(|partition| (topic, *partition)));
                }
            }
        }
        for (topic, partition) in places {
            let asked = self.producer.client().fetch_watermarks(topic, partition, self.answer);
            asked.map_err(|source| {
                let what = format!("for partition {partition} of topic {topic}");
                ReplayError::Unreachable { what, source }
            })?;
        }
        Ok(())
    }

    /// Sends letters and waits for all answers. After one that the client does not take none is tried.
    pub(super) async fn send(&self, letters: &[Outgoing]) -> Answers {
        let mut answers = Answers::default();
        let mut waiting = Vec::with_capacity(letters.len());
        for outgoing in letters {
            match enqueue(&self.producer, outgoing) {
                Ok(delivery) => waiting.push((outgoing, delivery)),
                Err(error) => {
                    answers.failure = Some(error);
                    break;
                }
            }
        }
        for (outgoing, delivery) in waiting {
            let answer = match delivery.await {
                Ok(Ok(delivery)) => Ok(delivery),
                Ok(Err((error, _))) => Err(error),
                Err(_) => Err(KafkaError::Canceled),
            };
            answers.add(outgoing, answer);
        }
        answers
    }
}

impl Answers {
    fn add(&mut self, outgoing: &Outgoing, answer: Result<Delivery, KafkaError>) {
        let name = name_of(&outgoing.letter);
        match answer {
            Ok(Delivery { partition, offset, .. }) => {
                self.sent += 1;
                // Of one that it had already from a first attempt Kafka may not tell the offset.
                let place =
                    (offset >= 0).then(|| format!("{}/{partition}/{offset}", outgoing.topic));
                self.taken.insert(name, place);
            }
            Err(error) => {
                if !is_not_stored(&error) {
                    self.unknown.push(name);
                }
                self.failure.get_or_insert(error);
            }
        }
    }
}

fn why_not(
    partitions: &BTreeMap<String, BTreeSet<i32>>,
    topic: &str,
    partition: Option<i32>,
) -> Option<String> {
    let Some(partitions) = partitions.get(topic).filter(|partitions| !partitions.is_empty()) else {
        return Some(format!("kafka has no topic {topic}, or does not let us see it"));
    };
    let missing = partition.filter(|partition| !partitions.contains(partition));
    missing.map(|partition| format!("topic {topic} has no partition {partition}"))
}

/// Whether an answer proves that the record is not in the topic. Kafka checks before it stores, and the client counts a topic as
/// gone only when the cluster says so; whoever has heard nothing knows nothing.
fn is_not_stored(error: &KafkaError) -> bool {
    let KafkaError::MessageProduction(code) = error else { return false };
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidMessage
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidDifferentRecord
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::UnsupportedForMessageFormat
            | RDKafkaErrorCode::UnsupportedCompressionType
            | RDKafkaErrorCode::PolicyViolation
    )
}

fn producer(
    settings: &config::Kafka,
    timeout: Duration,
) -> anyhow::Result<FutureProducer<QuietContext>> {
    let mut config: ClientConfig = client_config(settings)?;
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("allow.auto.create.topics", "false")
        .set("queue.buffering.max.messages", (LETTERS_MAX * 2).to_string())
        .set("message.timeout.ms", timeout.as_millis().to_string())
        .set("client.id", "cloud-aggregator-replay");
    Ok(config.create_with_context(QuietContext::new("replay"))?)
}

fn enqueue(
    producer: &FutureProducer<QuietContext>,
    outgoing: &Outgoing,
) -> Result<DeliveryFuture, KafkaError> {
    let Outgoing { letter, topic, partition } = outgoing;
    let name = letter.key.to_string();
    let content_type = letter.content_type.as_deref();
    let header = content_type.map(|value| Header { key: CONTENT_TYPE_HEADER, value: Some(value) });
    let headers = OwnedHeaders::new().insert(Header { key: REPLAY_HEADER, value: Some(&name) });
    let headers = match header {
        Some(header) => headers.insert(header),
        None => headers,
    };
    let key = partition.is_none().then(|| sensor_of(letter)).flatten();
    let mut record: FutureRecord<'_, String, [u8]> =
        FutureRecord::to(topic).payload(letter.raw.as_slice()).headers(headers);
    if let Some(partition) = partition {
        record = record.partition(*partition);
    }
    if let Some(key) = &key {
        record = record.key(key);
    }
    producer.send_result(record).map_err(|(error, _)| error)
}

/// On another topic a reading must stand with the others of its sensor.
fn sensor_of(letter: &Letter) -> Option<String> {
    let content_type = letter.content_type.as_deref().map(str::as_bytes);
    let encoding = Encoding::from_content_type(content_type).ok()?;
    let decoded = decode_reading(&letter.raw, encoding).ok()?;
    Some(decoded.reading.sensor_id.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;

    use super::super::tests::letter;
    use super::*;

    fn outgoing(offset: i64) -> Outgoing {
        Outgoing { letter: letter(offset, 7), topic: "pressure".to_owned(), partition: None }
    }

    fn delivery(offset: i64) -> Delivery {
        Delivery { partition: 2, offset, timestamp: Timestamp::NotAvailable }
    }

    #[test]
    fn an_answer_says_that_a_letter_is_taken_or_not_stored_or_in_doubt() {
        let mut answers = Answers::default();
        answers.add(&outgoing(0), Ok(delivery(57)));
        answers.add(&outgoing(1), Ok(delivery(-1001)));
        for (offset, code) in [
            (2, RDKafkaErrorCode::MessageSizeTooLarge),
            (3, RDKafkaErrorCode::UnknownTopic),
            (4, RDKafkaErrorCode::MessageTimedOut),
            (5, RDKafkaErrorCode::OutOfOrderSequenceNumber),
        ] {
            answers.add(&outgoing(offset), Err(KafkaError::MessageProduction(code)));
        }
        answers.add(&outgoing(6), Err(KafkaError::Canceled));
        let name = |offset| name_of(&letter(offset, 7));
        let taken = BTreeMap::from([(name(0), Some("pressure/2/57".to_owned())), (name(1), None)]);
        assert_eq!((answers.sent, answers.taken), (2, taken));
        assert_eq!(answers.unknown, [name(4), name(5), name(6)]);
        let first = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        assert_eq!(answers.failure, Some(first));
    }

    #[test]
    fn a_topic_or_partition_that_is_not_there_is_named() {
        let there = BTreeMap::from([
            ("temperature".to_owned(), BTreeSet::from([0, 1])),
            ("odd".to_owned(), BTreeSet::new()),
        ]);
        let check = |topic, partition, expected: Option<&str>| {
            let text = why_not(&there, topic, partition);
            assert_eq!(text.as_deref(), expected, "{topic}");
        };
        check("temperature", None, None);
        check("temperature", Some(1), None);
        check("temperature", Some(2), Some("topic temperature has no partition 2"));
        let unknown = "kafka has no topic odd, or does not let us see it";
        check("odd", None, Some(unknown));
        check("odd", Some(0), Some(unknown));
    }
}
