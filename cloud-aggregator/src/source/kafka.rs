//! The consumer thread: records, rebalances and gaps as events.
//!
//! Offsets come from the lake. An assignment of the group is only reported; reading begins when the plan with explicit
//! offsets arrives. A revocation drops everything on the way. When nobody takes batches, the thread waits, then pauses
//! its partitions and keeps polling, so that a long outage of the storage does not cost the membership.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aggregator_core::checkpoint::TopicPartition;
use metrics::{counter, gauge};
use rdkafka::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use shared_proto::Encoding;
use shared_proto::wire::CONTENT_TYPE_HEADER;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::{AssignmentId, Batch, Command, Gap, GapCause, Position, RawRecord, Round, SourceEvent};
use crate::config::{self, Start, read_secret};
use crate::telemetry::names;

/// How long a poll waits for the first record.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// How long a full queue is waited for before the partitions are paused.
const PAUSE_AFTER: Duration = Duration::from_secs(5);
/// How often brokers that are down are asked whether they are back, and for how long.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Commands that may wait for the thread.
const COMMANDS_MAX: usize = 64;
/// A complaint of the client is repeated in the log at most this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A property file cannot be read.
    #[error("kafka.property-files.{property}: {text}")]
    PropertyFile {
        /// librdkafka property.
        property: String,
        /// What is wrong with its file.
        text: String,
    },
    /// librdkafka refuses the properties.
    #[error("kafka client refuses its properties")]
    Client(#[source] KafkaError),
    /// The thread cannot be started.
    #[error("consumer thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// Handle of the consumer thread.
#[derive(Debug)]
pub struct Source {
    commands: SyncSender<Command>,
    /// No broker answers at the moment.
    pub brokers_down: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Source {
    /// Hands a command to the thread; a thread that has ended takes none.
    pub fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            debug!("consumer thread has ended");
        }
    }

    /// Leaves the group and waits for the thread's end.
    pub fn stop(mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("consumer thread panicked");
        }
    }
}

/// Properties that brokers need for any client of ours: address and what the settings pass through.
///
/// # Errors
/// A property file cannot be read.
pub fn client_config(settings: &config::Kafka) -> Result<ClientConfig, SourceError> {
    let mut client = ClientConfig::new();
    for (property, value) in &settings.properties {
        client.set(property, value);
    }
    for (property, file) in &settings.property_files {
        let secret = read_secret(file)
            .map_err(|text| SourceError::PropertyFile { property: property.clone(), text })?;
        client.set(property, secret.expose());
    }
    client.set("bootstrap.servers", &settings.brokers);
    client.set_log_level(RDKafkaLogLevel::Warning);
    Ok(client)
}

/// Starts the consumer thread.
///
/// # Errors
/// librdkafka refuses its properties; brokers that do not answer are no error.
pub fn start(
    settings: &config::Kafka,
    events: mpsc::Sender<SourceEvent>,
    runtime: Handle,
) -> Result<Source, SourceError> {
    let brokers_down = Arc::new(AtomicBool::new(false));
    let context = Context::new(settings.brokers.clone(), Arc::clone(&brokers_down));
    let mut client = client_config(settings)?;
    let defaults = [
        ("partition.assignment.strategy", "range"),
        ("topic.metadata.refresh.interval.ms", &millis(settings.metadata_refresh)),
        ("session.timeout.ms", &millis(settings.session_timeout)),
        ("queued.max.messages.kbytes", &(settings.prefetch_bytes / 1024).to_string()),
        ("queued.min.messages", "100000"),
        // The client's own second of waiting, each time its queue was full, would be most of a backlog's time.
        ("fetch.queue.backoff.ms", "10"),
        ("statistics.interval.ms", "5000"),
        ("fetch.message.max.bytes", &settings.record_bytes_max.to_string()),
        ("client.id", &settings.group),
        ("socket.keepalive.enable", "true"),
    ];
    for (property, value) in defaults {
        if client.get(property).is_none() {
            client.set(property, value);
        }
    }
    client
        .set("group.id", &settings.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false");
    let consumer: BaseConsumer<Context> =
        client.create_with_context(context).map_err(SourceError::Client)?;
    let names = topic_names(settings);
    consumer.subscribe(&names).map_err(SourceError::Client)?;
    let (commands, receiver) = sync_channel(COMMANDS_MAX);
    let reader = Reader::new(consumer, settings.clone(), events, receiver, runtime);
    let thread = std::thread::Builder::new()
        .name("kafka-consumer".to_owned())
        .spawn(move || reader.run())
        .map_err(SourceError::Thread)?;
    Ok(Source { commands, brokers_down, thread: Some(thread) })
}

/// Topics that the settings name.
fn topic_names(settings: &config::Kafka) -> Vec<&str> {
    let topics = &settings.topics;
    [
        &topics.temperature,
        &topics.pressure,
        &topics.vibration,
        &topics.machine_events,
        &topics.dead_letters,
    ]
    .into_iter()
    .map(String::as_str)
    .filter(|name| !name.is_empty())
    .collect()
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

enum Rebalance {
    Assigned(Vec<TopicPartition>),
    Revoked,
}

struct Context {
    /// `kafka.brokers`, to be named.
    brokers: String,
    rebalances: Mutex<VecDeque<Rebalance>>,
    brokers_down: Arc<AtomicBool>,
}

impl Context {
    fn new(brokers: String, brokers_down: Arc<AtomicBool>) -> Self {
        Self { brokers, rebalances: Mutex::new(VecDeque::new()), brokers_down }
    }

    fn push(&self, rebalance: Rebalance) {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push_back(rebalance);
    }

    fn take(&self) -> Option<Rebalance> {
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
        if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let partitions = list
                .elements()
                .iter()
                .map(|element| TopicPartition {
                    topic: element.topic().to_owned(),
                    partition: element.partition(),
                })
                .collect();
            self.push(Rebalance::Assigned(partitions));
        } else {
            if let Err(error) = consumer.unassign() {
                error!(%error, "partitions cannot be given back");
            }
            self.push(Rebalance::Revoked);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            debug!(%error, "kafka does not take the offsets that are for monitoring");
        }
    }
}

struct Plan {
    assignment: AssignmentId,
    partitions: Vec<(TopicPartition, Option<i64>)>,
}

struct Reader {
    consumer: BaseConsumer<Context>,
    settings: config::Kafka,
    events: mpsc::Sender<SourceEvent>,
    commands: Receiver<Command>,
    runtime: Handle,
    round: Round,
    /// Assignment to begin as soon as the brokers tell their offsets.
    plan: Option<Plan>,
    assignment: AssignmentId,
    partitions: Vec<TopicPartition>,
    /// Next offset of each partition, as far as handed over.
    next: Vec<i64>,
    batch: Batch,
    last_slot: usize,
    last_complaint: Option<(String, Instant)>,
    probed_at: Instant,
    is_stopping: bool,
}

impl Reader {
    fn new(
        consumer: BaseConsumer<Context>,
        settings: config::Kafka,
        events: mpsc::Sender<SourceEvent>,
        commands: Receiver<Command>,
        runtime: Handle,
    ) -> Self {
        Self {
            consumer,
            settings,
            events,
            commands,
            runtime,
            round: Round::default(),
            plan: None,
            assignment: AssignmentId::default(),
            partitions: Vec::new(),
            next: Vec::new(),
            batch: Batch::new(AssignmentId::default()),
            last_slot: 0,
            last_complaint: None,
            probed_at: Instant::now(),
            is_stopping: false,
        }
    }

    fn run(mut self) {
        while !self.is_stopping && !self.events.is_closed() {
            self.take_commands();
            self.begin_plan();
            self.probe_brokers();
            self.fill();
            self.report_rebalances();
            self.hand_over();
        }
        self.consumer.unsubscribe();
        info!("left the consumer group");
    }

    fn take_commands(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Assign { round, assignment, plan }) => {
                    if round == self.round {
                        self.plan = Some(Plan { assignment, partitions: plan });
                    }
                }
                Ok(Command::Halt) => self.halt(),
                Ok(Command::LookUpEnds(slots)) => self.look_up_ends(&slots),
                Ok(Command::Commit(offsets)) => self.commit(&offsets),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.is_stopping = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    fn look_up_ends(&mut self, slots: &[usize]) {
        self.hand_over();
        let mut ends = Vec::with_capacity(slots.len());
        for &slot in slots {
            let Some(partition) = self.partitions.get(slot) else { continue };
            match self.consumer.fetch_watermarks(
                &partition.topic,
                partition.partition,
                self.settings.request_timeout,
            ) {
                Ok((_, high)) => ends.push((slot, high)),
                Err(error) => {
                    let text = format!("{partition}: {error}");
                    self.complain("offsets", &text);
                    break;
                }
            }
        }
        self.send(SourceEvent::Ends { assignment: self.assignment, ends });
    }

    fn halt(&mut self) {
        self.plan = None;
        self.partitions.clear();
        self.next.clear();
        self.batch = Batch::new(AssignmentId::default());
        if let Err(error) = self.consumer.unassign() {
            error!(%error, "reading cannot be stopped");
        }
    }

    fn commit(&mut self, offsets: &[(TopicPartition, i64)]) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            if list
                .add_partition_offset(
                    &partition.topic,
                    partition.partition,
                    Offset::Offset(*offset),
                )
                .is_err()
            {
                return;
            }
        }
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            debug!(%error, "kafka does not take the offsets that are for monitoring");
        }
    }

    /// Begins the planned assignment if the brokers tell where its partitions begin and end.
    fn begin_plan(&mut self) {
        let Some(plan) = self.plan.take() else { return };
        let mut positions = Vec::with_capacity(plan.partitions.len());
        for (partition, next) in &plan.partitions {
            match self.position(partition, *next) {
                Ok(position) => positions.push(position),
                Err(error) => {
                    self.complain("offsets", &format!("{partition}: {error}"));
                    self.plan = Some(plan);
                    return;
                }
            }
        }
        self.consumer.context().brokers_down.store(false, Ordering::Relaxed);
        self.assignment = plan.assignment;
        self.partitions = plan.partitions.into_iter().map(|(partition, _)| partition).collect();
        self.next = positions.iter().map(|position| position.offset).collect();
        self.batch = Batch::new(self.assignment);
        self.last_slot = 0;
        self.send(SourceEvent::Started { assignment: self.assignment, positions });
        self.assign();
    }

    /// While no broker answers and no record comes: finds out when one answers again.
    fn probe_brokers(&mut self) {
        let brokers_down = Arc::clone(&self.consumer.context().brokers_down);
        if !brokers_down.load(Ordering::Relaxed) || self.probed_at.elapsed() < PROBE_INTERVAL {
            return;
        }
        self.probed_at = Instant::now();
        if self.consumer.client().fetch_metadata(None, PROBE_TIMEOUT).is_ok() {
            info!("a broker answers again");
            brokers_down.store(false, Ordering::Relaxed);
        }
    }

    fn position(&self, partition: &TopicPartition, next: Option<i64>) -> KafkaResult<Position> {
        let (low, high) = self.consumer.fetch_watermarks(
            &partition.topic,
            partition.partition,
            self.settings.request_timeout,
        )?;
        let (offset, gap) = match next {
            None => match self.settings.start {
                Start::Earliest => (low, None),
                Start::Latest => (high, None),
            },
            Some(expected) => checked_position(expected, low, high),
        };
        Ok(Position { partition: partition.clone(), offset, high, gap })
    }

    fn assign(&mut self) {
        let mut list = TopicPartitionList::new();
        let mut result = Ok(());
        for (partition, offset) in self.partitions.iter().zip(&self.next) {
            result = result.and_then(|()| {
                list.add_partition_offset(
                    &partition.topic,
                    partition.partition,
                    Offset::Offset(*offset),
                )
            });
        }
        if let Err(error) = result.and_then(|()| self.consumer.assign(&list)) {
            self.send(SourceEvent::Failed(format!("partitions cannot be assigned: {error}")));
        }
    }

    /// Polls until the batch is full or nothing is there at the moment.
    fn fill(&mut self) {
        let mut wait = POLL_WAIT;
        while self.batch.records.len() < self.settings.batch_records_max
            && self.batch.bytes.len() < self.settings.batch_bytes_max
        {
            let Some(polled) = self.consumer.poll(wait) else { return };
            wait = Duration::ZERO;
            match polled {
                Ok(message) => take_message(
                    &message,
                    &self.partitions,
                    &mut self.next,
                    &mut self.last_slot,
                    &mut self.batch,
                    self.settings.record_bytes_max,
                ),
                Err(error) => {
                    self.handle_error(&error);
                    return;
                }
            }
        }
    }

    fn handle_error(&mut self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.skip_gaps();
            }
            Some(RDKafkaErrorCode::Fatal) => {
                self.send(SourceEvent::Failed(error.to_string()));
                self.is_stopping = true;
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.complain_of_missing_topics();
            }
            Some(_) | None => {
                counter!(names::KAFKA_ERRORS_TOTAL).increment(1);
                self.complain("consumer", &error.to_string());
            }
        }
    }

    /// The client does not say which topic is missing: the brokers know.
    fn complain_of_missing_topics(&mut self) {
        let text = match self.consumer.client().fetch_metadata(None, PROBE_TIMEOUT) {
            Ok(metadata) => {
                let there: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).collect();
                let mut missing = topic_names(&self.settings);
                missing.retain(|name| !there.contains(name));
                format!("of kafka.topics do not exist (yet): {}", missing.join(", "))
            }
            Err(error) => format!("a topic of kafka.topics does not exist (yet); which: {error}"),
        };
        self.complain("topics", &text);
    }

    /// A partition's next record is gone: finds out which, reports it and reads on behind the gap.
    fn skip_gaps(&mut self) {
        self.hand_over();
        for slot in 0..self.partitions.len() {
            let partition = self.partitions[slot].clone();
            match self.position(&partition, Some(self.next[slot])) {
                Ok(Position { offset, gap: Some(gap), .. }) => {
                    self.next[slot] = offset;
                    let assignment = self.assignment;
                    self.send(SourceEvent::Gap { assignment, slot, gap });
                }
                Ok(Position { gap: None, .. }) => {}
                Err(error) => self.complain("offsets", &format!("{partition}: {error}")),
            }
        }
        self.assign();
    }

    fn report_rebalances(&mut self) {
        while let Some(rebalance) = self.consumer.context().take() {
            self.plan = None;
            self.partitions.clear();
            self.next.clear();
            self.batch = Batch::new(AssignmentId::default());
            match rebalance {
                Rebalance::Assigned(partitions) => {
                    self.round = Round(self.round.0 + 1);
                    self.send(SourceEvent::Assigned { round: self.round, partitions });
                }
                Rebalance::Revoked => {
                    self.round = Round(self.round.0 + 1);
                    self.send(SourceEvent::Revoked);
                }
            }
        }
    }

    fn hand_over(&mut self) {
        if self.batch.records.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut self.batch, Batch::new(self.assignment));
        self.consumer.context().brokers_down.store(false, Ordering::Relaxed);
        self.send(SourceEvent::Batch(batch));
    }

    /// Waits for a place in the queue; after a while the partitions are paused and the client is polled all the same.
    fn send(&mut self, event: SourceEvent) {
        let since = Instant::now();
        let mut is_paused = false;
        let events = self.events.clone();
        loop {
            let waiting = async { tokio::time::timeout(POLL_WAIT * 2, events.reserve()).await };
            let reserved = self.runtime.block_on(waiting);
            match reserved {
                Ok(Ok(permit)) => {
                    permit.send(event);
                    break;
                }
                Ok(Err(_)) => {
                    self.is_stopping = true;
                    break;
                }
                Err(_) => {}
            }
            if since.elapsed() < PAUSE_AFTER {
                continue;
            }
            is_paused = is_paused || self.set_paused(true);
            if let Some(Ok(message)) = self.consumer.poll(Duration::ZERO) {
                take_message(
                    &message,
                    &self.partitions,
                    &mut self.next,
                    &mut self.last_slot,
                    &mut self.batch,
                    self.settings.record_bytes_max,
                );
            }
        }
        if is_paused {
            self.set_paused(false);
        }
    }

    fn set_paused(&self, is_paused: bool) -> bool {
        let result = self.consumer.assignment().and_then(|list| {
            if is_paused { self.consumer.pause(&list) } else { self.consumer.resume(&list) }
        });
        match result {
            Ok(()) => info!(is_paused, "reading paused or resumed, the pipeline is busy"),
            Err(error) => error!(%error, is_paused, "reading cannot be paused or resumed"),
        }
        true
    }

    fn complain(&mut self, about: &str, text: &str) {
        let is_known = self
            .last_complaint
            .as_ref()
            .is_some_and(|(last, when)| last == text && when.elapsed() < COMPLAINT_INTERVAL);
        if !is_known {
            warn!(about, text, "kafka client reports a problem, trying again");
            self.last_complaint = Some((text.to_owned(), Instant::now()));
        }
    }
}

/// Where to go on when `expected` is next and Kafka has `low..high`.
fn checked_position(expected: i64, low: i64, high: i64) -> (i64, Option<Gap>) {
    let cause = if expected < low {
        GapCause::Retention
    } else if expected > high {
        GapCause::Truncated
    } else {
        return (expected, None);
    };
    (low, Some(Gap { expected, resumed: low, cause }))
}

fn take_message(
    message: &BorrowedMessage<'_>,
    partitions: &[TopicPartition],
    next: &mut [i64],
    last_slot: &mut usize,
    batch: &mut Batch,
    record_bytes_max: usize,
) {
    let matches = |partition: &TopicPartition| {
        partition.partition == message.partition() && partition.topic == message.topic()
    };
    let slot = match partitions.get(*last_slot) {
        Some(partition) if matches(partition) => *last_slot,
        // A record of a partition that was just given back belongs to nobody here.
        Some(_) | None => match partitions.iter().position(matches) {
            Some(slot) => slot,
            None => return,
        },
    };
    *last_slot = slot;
    if message.offset() < next[slot] {
        return;
    }
    next[slot] = message.offset() + 1;
    let payload = message.payload().unwrap_or_default();
    let start = batch.bytes.len();
    let kept = payload.len().min(record_bytes_max);
    batch.bytes.extend_from_slice(&payload[..kept]);
    batch.records.push(RawRecord {
        slot,
        offset: message.offset(),
        stamped_ms: message.timestamp().to_millis(),
        encoding: Encoding::from_content_type(content_type(message)),
        length: payload.len(),
        start,
        end: start + kept,
    });
}

fn content_type<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a [u8]> {
    let headers = message.headers()?;
    (0..headers.count())
        .map(|index| headers.get(index))
        .find(|header| header.key == CONTENT_TYPE_HEADER)
        .and_then(|header| header.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_out_of_range_is_a_gap_at_below_and_above() {
        let check = |expected, result| assert_eq!(checked_position(expected, 10, 20), result);
        check(10, (10, None));
        check(15, (15, None));
        check(20, (20, None));
        let gap = |expected, cause| Some(Gap { expected, resumed: 10, cause });
        check(9, (10, gap(9, GapCause::Retention)));
        check(21, (10, gap(21, GapCause::Truncated)));
    }
}
