//! Where records enter: Kafka.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

pub mod kafka;

pub use aggregator_core::checkpoint::RecordMark as Mark;
use aggregator_core::checkpoint::TopicPartition;
use aggregator_core::hub::position;
use shared_proto::codec::{DecodeError, Encoding};

use crate::config;

/// What the records of a topic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicKind {
    /// Readings of sensors.
    Readings,
    /// Machine events.
    MachineEvents,
    /// What edge modules refused.
    DeadLetters,
    /// What people found.
    Outcomes,
    /// Raw samples around trips.
    Waveforms,
    /// Messages of a hub: each says what its records are.
    Hub,
}

impl TopicKind {
    /// What the records of the topics are that the settings name.
    #[must_use]
    pub fn by_topic(kafka: &config::Kafka) -> BTreeMap<String, Self> {
        let topics = &kafka.topics;
        [
            (&topics.temperature, Self::Readings),
            (&topics.pressure, Self::Readings),
            (&topics.vibration, Self::Readings),
            (&topics.machine_events, Self::MachineEvents),
            (&topics.dead_letters, Self::DeadLetters),
            (&topics.outcomes, Self::Outcomes),
            (&topics.waveforms, Self::Waveforms),
            (&kafka.hub.topic, Self::Hub),
        ]
        .into_iter()
        .filter(|(topic, _)| !topic.is_empty())
        .map(|(topic, kind)| (topic.clone(), kind))
        .collect()
    }
}

/// What a message of a hub says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubMessage {
    /// Property `topic`.
    pub topic: Option<String>,
    /// What its records are, by that property.
    pub kind: Option<TopicKind>,
    /// The device that has sent it, as the hub knows it.
    pub device: Option<String>,
    /// What has made it: telemetry of a device, or the hub itself.
    pub origin: Option<String>,
}

/// Number of an assignment in the life of this process; batches of an older one are void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AssignmentId(pub u64);

/// Number of a rebalance in the life of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round(pub u64);

/// One record as Kafka gave it.
#[derive(Debug)]
pub struct RawRecord {
    /// Index into the partitions of the assignment.
    pub slot: usize,
    /// Position in its partition.
    pub offset: i64,
    /// Milliseconds since 1970 as the broker or the producer stamped it.
    pub stamped_ms: Option<i64>,
    /// From the content-type header.
    pub encoding: Result<Encoding, DecodeError>,
    /// A dead letter that was sent again on purpose: it counts although it was seen before.
    pub is_replay: bool,
    /// Of a hub's topic.
    pub message: Option<Arc<HubMessage>>,
    /// Length of the payload in bytes, before the cut.
    pub length: usize,
    start: usize,
    end: usize,
}

impl RawRecord {
    /// The record at a place in a message of a hub, of so many bytes.
    #[must_use]
    pub fn part(&self, place: usize, length: usize) -> Self {
        let encoding = match &self.encoding {
            Ok(encoding) => Ok(*encoding),
            Err(DecodeError::ContentType(other)) => Err(DecodeError::ContentType(other.clone())),
            Err(other) => Err(DecodeError::ContentType(other.to_string())),
        };
        let offset = position(self.offset, place);
        let message = self.message.clone();
        Self { offset, encoding, message, length, ..*self }
    }

    /// Within a partition of a hub: what sends in order.
    #[must_use]
    pub fn lane(&self) -> Option<&str> {
        self.message.as_ref()?.topic.as_deref()
    }

    /// Where it came from: the topic, or the device that has sent it to the hub. Nobody else can send to a hub's topic, so that it is none
    /// that a dead letter could go back to.
    #[must_use]
    pub fn source<'a>(&self, topic: &'a str) -> Cow<'a, str> {
        match &self.message {
            None => Cow::Borrowed(topic),
            Some(message) => {
                Cow::Owned(format!("iot-hub/{}", message.device.as_deref().unwrap_or("?")))
            }
        }
    }
}

/// Records in the order of their partitions.
#[derive(Debug)]
pub struct Batch {
    /// Assignment that they belong to.
    pub assignment: AssignmentId,
    /// The records.
    pub records: Vec<RawRecord>,
    bytes: Vec<u8>,
}

impl Batch {
    fn new(assignment: AssignmentId) -> Self {
        Self { assignment, records: Vec::new(), bytes: Vec::new() }
    }

    /// Messages of a hub as the consumer hands them over, from offset 0 on.
    #[cfg(test)]
    pub(crate) fn of_hub(messages: &[(HubMessage, Result<Encoding, DecodeError>, &[u8])]) -> Self {
        let mut batch = Self::new(AssignmentId::default());
        for (offset, (message, encoding, payload)) in (0..).zip(messages) {
            let start = batch.bytes.len();
            batch.bytes.extend_from_slice(payload);
            let whole = RawRecord {
                slot: 0,
                offset,
                stamped_ms: Some(offset),
                encoding: Ok(Encoding::Json),
                is_replay: false,
                message: Some(Arc::new(message.clone())),
                length: payload.len(),
                start,
                end: batch.bytes.len(),
            };
            let encoding = match encoding {
                Ok(encoding) => Ok(*encoding),
                Err(error) => Err(DecodeError::ContentType(error.to_string())),
            };
            batch.records.push(RawRecord { encoding, ..whole });
        }
        batch
    }

    /// Payload of a record: as it came, or its beginning if it is longer than the limit.
    #[must_use]
    pub fn payload(&self, record: &RawRecord) -> &[u8] {
        &self.bytes[record.start..record.end]
    }
}

/// A partition that is to be read, and from where.
#[derive(Clone, Debug)]
pub struct Place {
    /// Which partition.
    pub partition: TopicPartition,
    /// First offset to be read.
    pub next: Next,
    /// The record before it, as it was when it was read.
    pub last: Option<Mark>,
}

/// Where a partition is to be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At this offset.
    At(i64),
    /// Where the settings say: the lake begins.
    AsConfigured,
    /// At the oldest record that Kafka still has.
    Oldest,
}

/// Where reading of a partition begins.
#[derive(Clone, Debug)]
pub struct Position {
    /// Which partition.
    pub partition: TopicPartition,
    /// Slot of its records.
    pub slot: usize,
    /// First offset that will be read.
    pub offset: i64,
    /// Oldest offset that Kafka has.
    pub low: i64,
    /// Offset of the record that the next producer will write.
    pub high: i64,
    /// Records that were expected and are not there any more.
    pub gap: Option<Gap>,
}

/// Records that Kafka does not have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Offset that was to be read next.
    pub expected: i64,
    /// Offset at which reading goes on.
    pub resumed: i64,
    /// Why.
    pub cause: GapCause,
}

/// Why records are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapCause {
    /// Deleted by the topic's retention before they were read.
    Retention,
    /// The topic has fewer records than were read from it: it was made anew, or truncated.
    Truncated,
    /// The record that was read last is another one now: the topic was made anew and has grown past it.
    Recreated,
}

impl GapCause {
    /// The word used in `machine_events.cause` and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "kafka-retention",
            Self::Truncated => "kafka-truncated",
            Self::Recreated => "kafka-recreated",
        }
    }
}

/// What the source tells.
#[derive(Debug)]
pub enum SourceEvent {
    /// The group gave these partitions; nothing is read before [`Command::Assign`].
    Assigned {
        /// Rebalance that gave them.
        round: Round,
        /// All partitions of this member.
        partitions: Vec<TopicPartition>,
    },
    /// All partitions are gone; batches still on the way are void.
    Revoked,
    /// The group gave these partitions besides those that this member has (cooperative protocol).
    Added {
        /// Rebalance that gave them.
        round: Round,
        /// Those that are new; may be none.
        partitions: Vec<TopicPartition>,
    },
    /// The group wants these partitions back (cooperative protocol): no more of their records come. Commit what they have,
    /// then [`Command::Release`].
    Removing {
        /// Rebalance that wants them.
        round: Round,
        /// Those that go.
        partitions: Vec<TopicPartition>,
    },
    /// Reading begins.
    Started {
        /// Assignment that begins, or that these partitions come to.
        assignment: AssignmentId,
        /// In the order of the plan.
        positions: Vec<Position>,
    },
    /// Records.
    Batch(Batch),
    /// A partition's next record vanished while reading; reading goes on behind the gap.
    Gap {
        /// Assignment it happened in.
        assignment: AssignmentId,
        /// Slot of the partition.
        slot: usize,
        /// What is missing.
        gap: Gap,
    },
    /// Answer to [`Command::LookUpEnds`]: slots with the offset of the record that the next producer will write.
    Ends {
        /// Assignment asked for.
        assignment: AssignmentId,
        /// Slots and ends.
        ends: Vec<(usize, i64)>,
    },
    /// The client cannot go on.
    Failed(String),
}

/// What the source is told.
#[derive(Debug)]
pub enum Command {
    /// Begin reading.
    Assign {
        /// Rebalance that this answers; void when another has come since.
        round: Round,
        /// Name of the assignment.
        assignment: AssignmentId,
        /// What is to be read.
        plan: Vec<Place>,
        /// Besides what is read already, instead of in its place.
        is_extension: bool,
    },
    /// The partitions of a [`SourceEvent::Removing`] may go.
    Release(Round),
    /// Stop reading, stay in the group.
    Halt,
    /// Ask where the partitions of these slots end now.
    LookUpEnds(Vec<usize>),
    /// Tell Kafka how far the lake is, for monitoring only.
    Commit(Vec<(TopicPartition, i64)>),
    /// Leave the group.
    Stop,
}
