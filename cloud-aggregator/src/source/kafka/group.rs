//! What the consumer group says, and how the client is answered under its two protocols.
//!
//! librdkafka waits for an answer to each assignment and revocation. An assignment is answered at once with nothing, so
//! that a lake that does not answer never holds up the group; the partitions themselves are assigned when their offsets
//! are known. Under the cooperative protocol a revocation is answered by whoever takes it from the queue.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aggregator_core::checkpoint::TopicPartition;
use metrics::gauge;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tracing::{debug, error, warn};

use crate::telemetry::names;

pub(super) enum Rebalance {
    /// Eager: all partitions of this member.
    Assigned(Vec<TopicPartition>),
    /// All are gone.
    Revoked,
    /// Cooperative: these came.
    Added(Vec<TopicPartition>),
    /// Cooperative: these are to go; the client waits for [`unassign`].
    Removing(Vec<TopicPartition>),
}

pub(super) struct Context {
    /// `kafka.brokers`, to be named.
    brokers: String,
    rebalances: Mutex<VecDeque<Rebalance>>,
    pub(super) brokers_down: Arc<AtomicBool>,
    pub(super) is_cooperative: bool,
    /// Nobody takes rebalances from the queue any more.
    is_closing: AtomicBool,
    fetched: Mutex<Fetched>,
}

/// How far the client has fetched, by its statistics.
#[derive(Default)]
struct Fetched {
    /// Offset to be fetched next of partitions of which nothing waits in the client.
    next_offsets: HashMap<TopicPartition, i64>,
    /// What was told before this second (since 1970) is of an assignment before.
    valid_after: i64,
}

impl Context {
    pub(super) fn new(
        brokers: String,
        brokers_down: Arc<AtomicBool>,
        is_cooperative: bool,
    ) -> Self {
        let (rebalances, is_closing) = (Mutex::new(VecDeque::new()), AtomicBool::new(false));
        let fetched = Mutex::default();
        Self { brokers, rebalances, brokers_down, is_cooperative, is_closing, fetched }
    }

    /// From here on the client gets its answers without anybody's help.
    pub(super) fn answer_at_once(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }

    /// Whether everything below `end` was taken from the client. The last records of a partition may be marks of transactions, which
    /// are never delivered.
    pub(super) fn is_taken(&self, partition: &TopicPartition, end: i64) -> bool {
        let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.next_offsets.get(partition).is_some_and(|next| *next >= end)
    }

    /// Partitions are read from other places from here on.
    pub(super) fn forget_fetched(&self) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        *fetched = Fetched {
            next_offsets: HashMap::new(),
            valid_after: chrono::Utc::now().timestamp().saturating_add(1),
        };
    }

    fn push(&self, rebalance: Rebalance) {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push_back(rebalance);
    }

    pub(super) fn take(&self) -> Option<Rebalance> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => debug!(facility, message, "kafka client warns"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                debug!(facility, message, "kafka client");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.next_offsets.clear();
        for (topic, of_topic) in &statistics.topics {
            for (number, partition) in &of_topic.partitions {
                // A high watermark below 0 is not known: never read here.
                if partition.hi_offset < 0 {
                    continue;
                }
                let known = partition.committed_offset.max(partition.lo_offset).max(0);
                // What was given to another member is its to tell.
                let lag = if partition.desired { (partition.hi_offset - known).max(0) } else { 0 };
                let labels = [("topic", topic.clone()), ("partition", number.to_string())];
                gauge!(names::LAG_RECORDS, &labels).set(lag as f64);
                if partition.desired
                    && partition.fetchq_cnt == 0
                    && statistics.time > fetched.valid_after
                {
                    let id = TopicPartition { topic: topic.clone(), partition: *number };
                    fetched.next_offsets.insert(id, partition.next_offset);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown)
            && !self.brokers_down.swap(true, Ordering::Relaxed)
        {
            warn!(brokers = self.brokers, reason, "no broker answers: check kafka.brokers");
        } else {
            debug!(%error, reason, "kafka client error");
        }
    }
}

impl ConsumerContext for Context {
    /// Takes the place of librdkafka's own handling: an assignment waits for the lake's offsets.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = partitions_of(list);
        let is_assignment = kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let must_wait = self.is_cooperative
            && !is_assignment
            && !consumer.assignment_lost()
            && !self.is_closing.load(Ordering::Relaxed);
        debug!(is_assignment, must_wait, partitions = partitions.len(), "the group rebalances");
        let answered = match (is_assignment, must_wait) {
            (true, _) => assign(consumer, &TopicPartitionList::new(), self.is_cooperative),
            (false, true) => Ok(()),
            (false, false) => unassign_all(consumer),
        };
        if let Err(error) = answered {
            error!(%error, is_assignment, "the group's wish cannot be answered");
        }
        self.push(match (is_assignment, self.is_cooperative) {
            (true, false) => Rebalance::Assigned(partitions),
            (true, true) => Rebalance::Added(partitions),
            (false, _) if must_wait => Rebalance::Removing(partitions),
            (false, _) => Rebalance::Revoked,
        });
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            debug!(%error, "kafka does not take the offsets that are for monitoring");
        }
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let partition = |topic: &str, partition| TopicPartition { topic: topic.to_owned(), partition };
    list.elements().iter().map(|one| partition(one.topic(), one.partition())).collect()
}

/// Has the client read the partitions of `list`; `is_extension`: besides what it reads already.
pub(super) fn assign(
    consumer: &BaseConsumer<Context>,
    list: &TopicPartitionList,
    is_extension: bool,
) -> KafkaResult<()> {
    if !consumer.context().is_cooperative {
        return consumer.assign(list);
    }
    if !is_extension {
        unassign_all(consumer)?;
    }
    consumer.incremental_assign(list)
}

/// Has the client read nothing more.
pub(super) fn unassign_all(consumer: &BaseConsumer<Context>) -> KafkaResult<()> {
    if consumer.context().is_cooperative {
        consumer.incremental_unassign(&consumer.assignment()?)
    } else {
        consumer.unassign()
    }
}

/// Has the client read these no more, as far as it does; the answer to a revocation under the cooperative protocol.
pub(super) fn unassign(
    consumer: &BaseConsumer<Context>,
    partitions: &[TopicPartition],
) -> KafkaResult<()> {
    let read = partitions_of(&consumer.assignment()?);
    let mut list = TopicPartitionList::new();
    for partition in partitions.iter().filter(|partition| read.contains(partition)) {
        list.add_partition_offset(&partition.topic, partition.partition, Offset::Invalid)?;
    }
    consumer.incremental_unassign(&list)
}
