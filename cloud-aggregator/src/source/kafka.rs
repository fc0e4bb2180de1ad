//! The consumer thread: records, rebalances and gaps as events.
//!
//! Offsets come from the lake. An assignment of the group is only reported; reading begins when the plan with explicit
//! offsets arrives. When nobody takes batches, the thread waits, then pauses its partitions and keeps polling, so that a
//! long outage of the storage does not cost the membership.
//!
//! Under the eager protocol a revocation drops everything on the way. Under the cooperative one (`kafka.assignment`)
//! only partitions that come or go are touched: one that goes is given back when the pipeline has committed it, or after
//! `RELEASE_LIMIT`; the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use aggregator_core::checkpoint::TopicPartition;
use metrics::counter;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use self::cursor::{Cursor, take_message};
use self::group::{Context, Rebalance};
pub use self::quiet::QuietContext;
use super::{
    AssignmentId, Batch, Command, Gap, GapCause, Next, Place, Position, Round, SourceEvent,
};
use crate::config::{self, Assignment, Start, read_secret};
use crate::telemetry::names;

mod cursor;
mod group;
mod hub;
mod quiet;

/// How long a poll waits for the first record.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// How long a full queue is waited for before the partitions are paused.
const PAUSE_AFTER: Duration = Duration::from_secs(5);
/// How often brokers that are down are asked whether they are back, and for how long.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for one partition's offsets: meanwhile nothing is read.
const OFFSETS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long partitions that the group wants back are held for the pipeline to commit their share of the epoch.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
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
    let is_cooperative = settings.assignment == Assignment::CooperativeSticky;
    let context = Context::new(settings.brokers.clone(), Arc::clone(&brokers_down), is_cooperative);
    let mut client = client_config(settings)?;
    let defaults = [
        ("partition.assignment.strategy", settings.assignment.as_str()),
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
    let offsets: BaseConsumer<QuietContext> = client_config(settings)?
        .create_with_context(QuietContext::new("offsets"))
        .map_err(SourceError::Client)?;
    let reader = Reader::new(consumer, offsets, settings.clone(), events, receiver, runtime);
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
        &topics.outcomes,
        &topics.waveforms,
        &settings.hub.topic,
    ]
    .into_iter()
    .map(String::as_str)
    .filter(|name| !name.is_empty())
    .collect()
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

struct Plan {
    assignment: AssignmentId,
    partitions: Vec<Place>,
    /// Beside what is read already, instead of it.
    is_extension: bool,
}

/// Partitions that the group wants back.
struct Release {
    round: Round,
    partitions: Vec<TopicPartition>,
    since: Instant,
}

struct Reader {
    consumer: BaseConsumer<Context>,
    /// Asks for offsets on connections of its own: on those of the consumer a question waits behind a fetch that waits for
    /// records, half a second for each partition.
    offsets: BaseConsumer<QuietContext>,
    settings: config::Kafka,
    events: mpsc::Sender<SourceEvent>,
    commands: Receiver<Command>,
    runtime: Handle,
    round: Round,
    /// Assignment to begin as soon as the brokers tell their offsets.
    plan: Option<Plan>,
    release: Option<Release>,
    assignment: AssignmentId,
    /// By slot; a slot whose partition was given back is free.
    cursors: Vec<Option<Cursor>>,
    batch: Batch,
    last_slot: usize,
    last_complaint: Option<(String, Instant)>,
    /// What the client said while the pipeline took nothing.
    errors: Vec<KafkaError>,
    probed_at: Instant,
    is_stopping: bool,
}

impl Reader {
    fn new(
        consumer: BaseConsumer<Context>,
        offsets: BaseConsumer<QuietContext>,
        settings: config::Kafka,
        events: mpsc::Sender<SourceEvent>,
        commands: Receiver<Command>,
        runtime: Handle,
    ) -> Self {
        Self {
            consumer,
            offsets,
            settings,
            events,
            commands,
            runtime,
            round: Round::default(),
            plan: None,
            release: None,
            assignment: AssignmentId::default(),
            cursors: Vec::new(),
            batch: Batch::new(AssignmentId::default()),
            last_slot: 0,
            last_complaint: None,
            errors: Vec::new(),
            probed_at: Instant::now(),
            is_stopping: false,
        }
    }

    fn run(mut self) {
        while !self.is_stopping && !self.events.is_closed() {
            self.take_commands();
            self.release_in_time();
            self.begin_plan();
            self.probe_brokers();
            self.fill();
            self.report_rebalances();
            self.hand_over();
        }
        self.give_back();
        self.consumer.context().answer_at_once();
        self.consumer.unsubscribe();
        info!("left the consumer group");
    }

    fn take_commands(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Assign { round, assignment, plan, is_extension }) => {
                    if round == self.round {
                        self.plan = Some(Plan { assignment, partitions: plan, is_extension });
                    }
                }
                Ok(Command::Release(round)) => {
                    if self.release.as_ref().is_some_and(|release| release.round == round) {
                        self.give_back();
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
            let Some(Some(Cursor { partition, next, .. })) = self.cursors.get(slot) else {
                continue;
            };
            match self.watermarks(partition) {
                Ok((_, high)) => {
                    let is_taken = self.consumer.context().is_taken(partition, high);
                    ends.push((slot, if is_taken { *next } else { high }));
                }
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
        self.cursors.clear();
        self.batch = Batch::new(AssignmentId::default());
        if let Err(error) = group::unassign_all(&self.consumer) {
            error!(%error, "reading cannot be stopped");
        }
    }

    /// Gives back what the group wants, once the pipeline has let it go.
    fn give_back(&mut self) {
        let Some(release) = self.release.take() else { return };
        let held = release.since.elapsed();
        if let Err(error) = group::unassign(&self.consumer, &release.partitions) {
            self.send(SourceEvent::Failed(format!("partitions cannot be given back: {error}")));
            return;
        }
        info!(partitions = release.partitions.len(), ?held, "partitions given back");
    }

    /// A pipeline that is busy does not hold up the group: what it commits later for these partitions holds, or is refused
    /// because the next owner was faster.
    fn release_in_time(&mut self) {
        if self.release.as_ref().is_some_and(|release| release.since.elapsed() >= RELEASE_LIMIT) {
            warn!(limit = ?RELEASE_LIMIT, "the epoch is not committed yet, its partitions are given back all the same");
            self.give_back();
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
        for place in &plan.partitions {
            match self.position(&place.partition, place.next) {
                Ok(position) => positions.push(position),
                Err(error) => {
                    self.complain("offsets", &format!("{}: {error}", place.partition));
                    self.plan = Some(plan);
                    return;
                }
            }
        }
        self.consumer.context().brokers_down.store(false, Ordering::Relaxed);
        if plan.is_extension {
            self.hand_over();
        } else {
            self.assignment = plan.assignment;
            self.cursors.clear();
            self.batch = Batch::new(self.assignment);
            self.last_slot = 0;
        }
        let mut slots = Vec::with_capacity(positions.len());
        for (place, position) in plan.partitions.into_iter().zip(&mut positions) {
            let is_where_it_was = position.gap.is_none() && matches!(place.next, Next::At(_));
            let last = place.last.filter(|_| is_where_it_was);
            let is_to_verify = last.is_some() && position.offset > position.low;
            position.slot = self.occupy(Cursor {
                is_hub: self.settings.hub.is_of(&place.partition.topic),
                partition: place.partition,
                next: position.offset,
                last,
                is_to_verify,
                is_foreign: false,
            });
            slots.push(position.slot);
        }
        self.send(SourceEvent::Started { assignment: self.assignment, positions });
        self.assign(&slots, plan.is_extension);
    }

    fn occupy(&mut self, cursor: Cursor) -> usize {
        match self.cursors.iter().position(Option::is_none) {
            Some(slot) => {
                self.cursors[slot] = Some(cursor);
                slot
            }
            None => {
                self.cursors.push(Some(cursor));
                self.cursors.len() - 1
            }
        }
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

    /// Oldest offset that Kafka has, and that of the record that the next producer will write.
    fn watermarks(&self, partition: &TopicPartition) -> KafkaResult<(i64, i64)> {
        let limit = self.settings.request_timeout.min(OFFSETS_TIMEOUT);
        let (topic, number) = (&partition.topic, partition.partition);
        let found = self.offsets.fetch_watermarks(topic, number, limit);
        // The client goes on asking who led the partition when it last heard of it, also when that broker is gone.
        if found.is_err()
            && let Err(error) = self.offsets.fetch_metadata(None, limit)
        {
            debug!(%error, "brokers do not say who leads which partition");
        }
        found
    }

    fn position(&self, partition: &TopicPartition, next: Next) -> KafkaResult<Position> {
        let (low, high) = self.watermarks(partition)?;
        let (offset, gap) = match next {
            Next::Oldest => (low, None),
            Next::AsConfigured => match self.settings.start {
                Start::Earliest => (low, None),
                Start::Latest => (high, None),
            },
            Next::At(expected) => checked_position(expected, low, high),
        };
        Ok(Position { partition: partition.clone(), slot: 0, offset, low, high, gap })
    }

    /// Has the client read the partitions of these slots, beside those that it reads already or instead of them.
    fn assign(&mut self, slots: &[usize], is_extension: bool) {
        self.consumer.context().forget_fetched();
        let mut list = TopicPartitionList::new();
        let mut result = Ok(());
        let cursors = slots.iter().filter_map(|slot| self.cursors.get(*slot)?.as_ref());
        for cursor in cursors {
            let (partition, first) = (&cursor.partition, Offset::Offset(cursor.first()));
            result = result.and_then(|()| {
                list.add_partition_offset(&partition.topic, partition.partition, first)
            });
        }
        let assigned = result.and_then(|()| group::assign(&self.consumer, &list, is_extension));
        if let Err(error) = assigned {
            self.send(SourceEvent::Failed(format!("partitions cannot be assigned: {error}")));
        }
    }

    /// Polls until the batch is full or nothing is there at the moment.
    fn fill(&mut self) {
        for error in std::mem::take(&mut self.errors) {
            self.handle_error(&error);
        }
        let mut wait = POLL_WAIT;
        while self.batch.records.len() < self.settings.batch_records_max
            && self.batch.bytes.len() < self.settings.batch_bytes_max
        {
            let Some(polled) = self.consumer.poll(wait) else { return };
            wait = Duration::ZERO;
            match polled {
                Ok(message) => take_message(
                    &message,
                    &mut self.cursors,
                    &mut self.last_slot,
                    &mut self.batch,
                    &self.settings,
                ),
                Err(error) => {
                    self.handle_error(&error);
                    return;
                }
            }
        }
    }

    fn handle_error(&mut self, error: &KafkaError) {
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            // The client never reads again: for example, another member has the same group.instance.id.
            self.send(SourceEvent::Failed(error.to_string()));
            self.is_stopping = true;
            return;
        }
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
                format!("of kafka.topics and kafka.hub do not exist (yet): {}", missing.join(", "))
            }
            Err(error) => {
                format!("a topic that is to be read does not exist (yet); which: {error}")
            }
        };
        self.complain("topics", &text);
    }

    /// A partition's next record is gone: finds out which, reports it and reads on behind the gap. The client reads none of the
    /// partitions in question by itself again, so all are given to it anew: if one is still out of range, it says so again.
    fn skip_gaps(&mut self) {
        self.hand_over();
        for slot in 0..self.cursors.len() {
            let Some(Some(cursor)) = self.cursors.get(slot) else { continue };
            let (partition, next) = (cursor.partition.clone(), cursor.next);
            match self.position(&partition, Next::At(next)) {
                Ok(Position { gap: Some(gap), .. }) => self.jump(slot, gap),
                // The record before it may be what is gone.
                Ok(Position { low, gap: None, .. }) => {
                    if let Some(Some(cursor)) = self.cursors.get_mut(slot)
                        && cursor.is_to_verify
                        && cursor.first() < low
                    {
                        cursor.is_to_verify = false;
                    }
                }
                Err(error) => self.complain("offsets", &format!("{partition}: {error}")),
            }
        }
        self.begin_again();
    }

    /// Topics that were made anew and have grown past where the old ones were read to: read from their beginnings.
    fn leave_foreign(&mut self) {
        let is_foreign = |cursor: &Option<Cursor>| cursor.as_ref().is_some_and(|it| it.is_foreign);
        if !self.cursors.iter().any(is_foreign) {
            return;
        }
        self.hand_over();
        for slot in 0..self.cursors.len() {
            let Some(Some(cursor)) = self.cursors.get(slot) else { continue };
            if !cursor.is_foreign {
                continue;
            }
            let (partition, expected) = (cursor.partition.clone(), cursor.next);
            match self.position(&partition, Next::Oldest) {
                Ok(Position { low, .. }) => {
                    self.jump(slot, Gap { expected, resumed: low, cause: GapCause::Recreated });
                }
                Err(error) => self.complain("offsets", &format!("{partition}: {error}")),
            }
        }
        self.begin_again();
    }

    fn jump(&mut self, slot: usize, gap: Gap) {
        if let Some(Some(cursor)) = self.cursors.get_mut(slot) {
            cursor.next = gap.resumed;
            cursor.last = None;
            cursor.is_to_verify = false;
            cursor.is_foreign = false;
        }
        self.send(SourceEvent::Gap { assignment: self.assignment, slot, gap });
    }

    /// Has the client read all partitions from their cursors' places.
    fn begin_again(&mut self) {
        let all: Vec<usize> = (0..self.cursors.len()).collect();
        if !self.consumer.context().is_cooperative {
            self.assign(&all, false);
            return;
        }
        let cursors = self.cursors.iter().flatten();
        let partitions: Vec<_> = cursors.map(|cursor| cursor.partition.clone()).collect();
        if let Err(error) = group::unassign(&self.consumer, &partitions) {
            error!(%error, "partitions cannot be read from another place");
        }
        self.assign(&all, true);
    }

    fn report_rebalances(&mut self) {
        self.leave_foreign();
        while let Some(rebalance) = self.consumer.context().take() {
            // What was wanted back before comes first.
            self.give_back();
            self.plan = None;
            self.round = Round(self.round.0 + 1);
            let round = self.round;
            match rebalance {
                Rebalance::Assigned(partitions) => {
                    self.drop_all();
                    self.send(SourceEvent::Assigned { round, partitions });
                }
                Rebalance::Revoked => {
                    self.drop_all();
                    self.send(SourceEvent::Revoked);
                }
                Rebalance::Added(partitions) => {
                    self.send(SourceEvent::Added { round, partitions });
                }
                Rebalance::Removing(partitions) => {
                    self.hand_over();
                    for cursor in &mut self.cursors {
                        if cursor.as_ref().is_some_and(|it| partitions.contains(&it.partition)) {
                            *cursor = None;
                        }
                    }
                    let since = Instant::now();
                    self.release = Some(Release { round, partitions: partitions.clone(), since });
                    self.send(SourceEvent::Removing { round, partitions });
                }
            }
        }
    }

    fn drop_all(&mut self) {
        self.cursors.clear();
        self.batch = Batch::new(AssignmentId::default());
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
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => take_message(
                    &message,
                    &mut self.cursors,
                    &mut self.last_slot,
                    &mut self.batch,
                    &self.settings,
                ),
                Some(Err(error)) => self.errors.push(error),
                None => {}
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
