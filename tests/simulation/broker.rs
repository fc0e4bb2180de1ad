//! Simulated Kafka: logs that only grow, and a producer that keeps the order within a partition.

use std::collections::{BTreeMap, VecDeque};

use aggregator_core::checkpoint::TopicPartition;
use edge_core::outbox::Disposition;
use shared_proto::model::{DeadLetter, Identity, MachineEvent, Reading, Sequence};

use crate::random::Random;

/// What a record holds.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    Reading(Reading),
    Event(Box<MachineEvent>),
    Letter(DeadLetter),
    /// Bytes that no decoder takes.
    Garbage,
}

impl Payload {
    pub(crate) fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Reading(reading) => reading.identity.as_ref(),
            Self::Event(event) => event.identity.as_ref(),
            Self::Letter(letter) => letter.identity.as_ref(),
            Self::Garbage => None,
        }
    }
}

/// Temperature has two partitions, so that one lane of a device feeds several.
pub(crate) const PARTITIONS: [(&str, i32); 5] = [
    ("temperature", 0),
    ("temperature", 1),
    ("pressure", 0),
    ("machine-events", 0),
    ("dead-letters", 0),
];

/// All logs.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) logs: BTreeMap<TopicPartition, Vec<Payload>>,
}

impl Broker {
    pub(crate) fn new() -> Self {
        let empty = |(topic, partition): (&str, i32)| {
            (TopicPartition { topic: topic.to_owned(), partition }, Vec::new())
        };
        Self { logs: PARTITIONS.into_iter().map(empty).collect() }
    }

    pub(crate) fn append(&mut self, partition: &TopicPartition, payload: Payload) {
        self.logs.get_mut(partition).expect("a partition of ours").push(payload);
    }
}

/// Where a payload belongs: its topic, and the partition of its key.
pub(crate) fn partition_of(payload: &Payload) -> TopicPartition {
    let (topic, partition) = match payload {
        Payload::Reading(reading) => {
            let name = reading.sensor_id.as_str();
            match reading.metric_type.as_str() {
                "temperature" => ("temperature", i32::from(name.as_bytes()[name.len() - 1] % 2)),
                _ => ("pressure", 0),
            }
        }
        Payload::Event(_) => ("machine-events", 0),
        Payload::Letter(_) => ("dead-letters", 0),
        Payload::Garbage => ("temperature", 0),
    };
    TopicPartition { topic: topic.to_owned(), partition }
}

/// Lanes of a device, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    Events,
    Readings,
    DeadLetters,
}

pub(crate) const LANES: [Lane; 3] = [Lane::Events, Lane::Readings, Lane::DeadLetters];

/// What became of one record sent.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) lane: Lane,
    pub(crate) sequence: Sequence,
    /// Absent: acknowledged.
    pub(crate) failure: Option<Disposition>,
}

#[derive(Debug)]
struct Sent {
    lane: Lane,
    sequence: Sequence,
    payload: Payload,
    is_too_large: bool,
}

/// An idempotent producer: of what is in flight to a partition the broker takes a prefix. At its first error
/// it takes nothing more until all reports are out, as librdkafka does with a guarantee against gaps.
#[derive(Debug, Default)]
pub(crate) struct Producer {
    in_flight: BTreeMap<TopicPartition, VecDeque<Sent>>,
    reports: Vec<Report>,
    is_broken: bool,
}

impl Producer {
    pub(crate) fn is_open(&self) -> bool {
        !self.is_broken
    }

    pub(crate) fn send(
        &mut self,
        lane: Lane,
        sequence: Sequence,
        payload: Payload,
        is_too_large: bool,
    ) {
        let sent = Sent { lane, sequence, payload, is_too_large };
        self.in_flight.entry(partition_of(&sent.payload)).or_default().push_back(sent);
    }

    /// One exchange with the broker. `break_per_mille`: how often it ends with an error.
    pub(crate) fn exchange(
        &mut self,
        broker: &mut Broker,
        is_network_up: bool,
        break_per_mille: usize,
        random: &mut Random,
    ) {
        let is_any = self.in_flight.values().any(|queue| !queue.is_empty());
        let breaks = if is_network_up { break_per_mille } else { 400 };
        if is_any && random.chance(breaks) {
            let deliver = is_network_up || random.chance(200);
            self.give_up(broker, deliver, random);
            self.is_broken = true;
        } else if is_network_up {
            for (partition, queue) in &mut self.in_flight {
                for sent in queue.drain(..random.below(queue.len() + 1)) {
                    let Sent { lane, sequence, payload, is_too_large } = sent;
                    let failure = is_too_large.then_some(Disposition::DeadLetter);
                    if !is_too_large {
                        broker.append(partition, payload);
                    }
                    self.reports.push(Report { lane, sequence, failure });
                }
            }
        }
    }

    /// Fails everything in flight, of which the broker may have taken the beginning.
    pub(crate) fn give_up(&mut self, broker: &mut Broker, deliver: bool, random: &mut Random) {
        for (partition, queue) in &mut self.in_flight {
            let mut taken = if deliver { random.below(queue.len() + 1) } else { 0 };
            for sent in queue.drain(..) {
                let Sent { lane, sequence, payload, is_too_large } = sent;
                if taken > 0 && !is_too_large {
                    taken -= 1;
                    broker.append(partition, payload);
                }
                self.reports.push(Report { lane, sequence, failure: Some(Disposition::Retry) });
            }
        }
    }

    /// Some of the reports, in any order; after the last one a broken producer starts anew.
    pub(crate) fn take_reports(&mut self, random: &mut Random) -> Vec<Report> {
        let mut taken = Vec::new();
        for _ in 0..random.below(self.reports.len() + 2).min(self.reports.len()) {
            let position = random.below(self.reports.len());
            taken.push(self.reports.swap_remove(position));
        }
        if self.reports.is_empty() {
            self.is_broken = false;
        }
        taken
    }
}
