//! The forwarder: from the journal to Kafka, machine events first, trimmed by delivery reports.
//!
//! Idempotent producer, acks=all, no message timeout: the client library keeps a record and its order until the broker
//! answers, however long the network is away. What is in flight is limited by [`Outbox`]; what is not in flight stays in
//! the journal. Topics that do not exist yet are waited for. A failure rewinds its lane to the lowest record not
//! acknowledged. A broker refuses a batch whole for one record in it (too large, say): then the lane goes on one record at
//! a time, and the one that is refused alone goes to the dead letters. The Kafka timestamp is the time of sending: brokers
//! refuse or expire records by it, and a backlog is neither wrong nor old.

mod lanes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edge_core::outbox::{Disposition, Outbox};
use lanes::{disposition, encoding_of, in_flight_max_of, outbox_settings, reading_topic};
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use shared_proto::codec::{self, DecodeError};
use shared_proto::model::{DeadLetter, DeviceId, EventTime, Generation, Identity, Sequence};
use shared_proto::{Encoding, wire};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::admin::{Board, Part};
use crate::config::{Kafka, read_secret};
use crate::journal::{Delivered, Durable, JournalCommand, chain};
use crate::mqtt::source::random_fraction;
use crate::store::{JournalReader, Lane, Stored};
use crate::telemetry;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Records read from the journal at once.
const READ_RECORDS_MAX: usize = 2_048;
/// How often the books are shown and the journal is told how far delivery has come.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// At the end: how long to wait for the next delivery, and for one look at the reports.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
const DRAIN_STEP: Duration = Duration::from_millis(20);
/// Without a delivery for this long nothing more is handed over: what waits in the journal is still ours to mark historical.
const HOLD_AFTER: Duration = Duration::from_secs(1);
/// Without a delivery for this long while records are in flight, Kafka counts as not reachable.
const STALL_AFTER: Duration = Duration::from_secs(10);
/// The same complaint of the client is logged no more often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(600);

const LANES: usize = Lane::ALL.len();

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

struct Report {
    lane: Lane,
    sequence: Sequence,
    /// Why it failed, and on which topic.
    failure: Option<(RDKafkaErrorCode, String)>,
}

/// Hands each delivery report to the forwarder.
struct Reports {
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

/// Forwards until told to stop.
pub struct Forwarder {
    settings: Kafka,
    device_id: DeviceId,
    generation: Generation,
    journal: Arc<dyn JournalReader>,
    commands: mpsc::Sender<JournalCommand>,
    durable: watch::Receiver<Durable>,
    delivered: watch::Sender<Delivered>,
    /// Dead letters on their way to the disk, with the records that they replace.
    letters: Vec<(usize, Sequence, oneshot::Receiver<()>)>,
    board: Board,
    producer: Option<ThreadedProducer<Reports>>,
    reports_sender: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    outboxes: [(Lane, Outbox); LANES],
    /// For each lane: one whose topic is missing does not hold the others.
    last_delivery: [Instant; LANES],
    /// Of any lane.
    last_report: Instant,
    /// Each run has at least its own start to deliver.
    has_delivered: bool,
    /// Followed while the module runs.
    historical_after: Option<watch::Receiver<Duration>>,
    is_stalled: bool,
    /// Why the last delivery failed; shown while a lane has not recovered.
    last_failure: String,
    /// Why a lane of the journal cannot be read now.
    obstacles: [Option<String>; LANES],
    /// A broker refuses batches whole: after such a refusal records up to here leave one by one, to find the culprit.
    alone_through: [Sequence; LANES],
    /// The record last sent alone.
    alone: [Option<Sequence>; LANES],
    is_running: bool,
}

/// What the forwarder starts from.
pub struct Start {
    /// What may be sent.
    pub durable: watch::Receiver<Durable>,
    /// What has been.
    pub delivered: watch::Sender<Delivered>,
    /// Who numbers the records.
    pub device_id: DeviceId,
    /// Which life of its journal.
    pub generation: Generation,
    /// How far delivery had come.
    pub acknowledged: [(Lane, Sequence); LANES],
}

impl Forwarder {
    /// A forwarder that has not connected yet.
    ///
    /// # Errors
    /// The client library refuses the settings.
    pub fn new(
        settings: Kafka,
        start: Start,
        journal: Arc<dyn JournalReader>,
        commands: mpsc::Sender<JournalCommand>,
        board: Board,
    ) -> Result<Self, ForwardError> {
        let (reports_sender, reports) = mpsc::channel(settings.in_flight_max * LANES + 1);
        let outboxes = start.acknowledged.map(|(lane, acknowledged)| {
            (lane, Outbox::new(acknowledged, outbox_settings(lane, &settings)))
        });
        let mut this = Self {
            settings,
            device_id: start.device_id,
            generation: start.generation,
            journal,
            commands,
            durable: start.durable,
            delivered: start.delivered,
            letters: Vec::new(),
            board,
            producer: None,
            reports_sender,
            reports,
            outboxes,
            last_delivery: [Instant::now(); LANES],
            last_report: Instant::now(),
            has_delivered: false,
            historical_after: None,
            is_stalled: false,
            last_failure: String::new(),
            obstacles: [const { None }; LANES],
            alone_through: [Sequence(0); LANES],
            alone: [None; LANES],
            is_running: false,
        };
        this.producer = Some(this.connect()?);
        Ok(this)
    }

    /// Follows a setting that may change while the module runs.
    #[must_use]
    pub fn following(mut self, historical_after: watch::Receiver<Duration>) -> Self {
        self.historical_after = Some(historical_after);
        self
    }

    fn connect(&self) -> Result<ThreadedProducer<Reports>, ForwardError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.settings.brokers)
            .set("client.id", self.device_id.as_str())
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // In a partition nothing is delivered after a record that failed: such a failure ends the producer instead.
            .set("enable.gapless.guarantee", "true")
            .set("compression.codec", self.settings.compression.as_str())
            .set("linger.ms", self.settings.linger.as_millis().to_string())
            .set("message.timeout.ms", "0")
            // A topic that is not there yet is waited for: an error would let later records overtake.
            .set("topic.metadata.propagation.max.ms", "3600000")
            .set(
                "queue.buffering.max.messages",
                (self.settings.in_flight_max * LANES + 1).to_string(),
            )
            // Also of the memory: more than a second of anything but raw bytes.
            .set("queue.buffering.max.kbytes", "65536")
            // A topic that is made later is found within this.
            .set("topic.metadata.refresh.interval.ms", "10000")
            .set("partitioner", "murmur2_random")
            .set("reconnect.backoff.max.ms", "2000")
            .set("socket.keepalive.enable", "true");
        for (key, value) in &self.settings.properties {
            config.set(key, value);
        }
        for (key, file) in &self.settings.property_files {
            config.set(key, read_secret(file).map_err(ForwardError::Secret)?.expose());
        }
        config
            .create_with_context(Reports::new(self.reports_sender.clone()))
            .map_err(ForwardError::Settings)
    }

    /// Runs until `stop`, then waits up to `drain_timeout` for what is in flight. Can be run again after a panic: it goes on
    /// from the lowest record not acknowledged.
    pub async fn run(&mut self, mut stop: watch::Receiver<bool>, drain_timeout: Duration) {
        if std::mem::replace(&mut self.is_running, true) {
            self.start_over();
        }
        self.board.set(Part::Forwarder, Ok(()));
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        info!(brokers = self.settings.brokers, "forwarding");
        while !*stop.borrow() {
            self.renew_producer_after_fatal();
            self.handle_letters();
            let is_busy = self.send_some();
            let timeout = self.next_timeout();
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                report = self.reports.recv() => self.handle_reports(report),
                _ = ticks.tick() => self.show(),
                result = self.durable.changed(), if !is_busy => {
                    if result.is_err() { break; }
                }
                () = std::future::ready(()), if is_busy => {}
                () = sleep_until(timeout) => {}
            }
        }
        self.drain(drain_timeout).await;
    }

    /// Forgets what was in flight when a panic ended the last run. What was delivered is sent again, and dropped downstream.
    fn start_over(&mut self) {
        let (reports_sender, reports) = mpsc::channel(self.settings.in_flight_max * LANES + 1);
        (self.reports_sender, self.reports) = (reports_sender, reports);
        self.letters.clear();
        for (lane, outbox) in &mut self.outboxes {
            *outbox = Outbox::new(outbox.acknowledged(), outbox_settings(*lane, &self.settings));
        }
        match self.connect() {
            Ok(producer) => self.producer = Some(producer),
            Err(error) => error!(%error, "no new kafka producer"),
        }
    }

    /// Sends what is durable and waits for its reports, as long as Kafka answers.
    async fn drain(&mut self, drain_timeout: Duration) {
        let deadline = Instant::now() + drain_timeout;
        self.last_delivery = [Instant::now(); LANES];
        self.last_report = Instant::now();
        while self.owes_something()
            && Instant::now() < deadline
            && self.last_report.elapsed() < DRAIN_PATIENCE
        {
            self.renew_producer_after_fatal();
            self.handle_letters();
            self.send_some();
            if let Ok(report) = tokio::time::timeout(DRAIN_STEP, self.reports.recv()).await {
                self.handle_reports(report);
            }
        }
        let left: usize = self.outboxes.iter().map(|(_, outbox)| outbox.in_flight()).sum();
        self.show();
        if let Some(producer) = self.producer.take() {
            // What is left is in the journal and leaves after the next start.
            producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        }
        info!(left_in_flight = left, "forwarder stopped");
    }

    fn owes_something(&self) -> bool {
        let durable = *self.durable.borrow();
        self.outboxes.iter().any(|(lane, outbox)| outbox.acknowledged() < *durable.get(*lane))
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.outboxes.iter().filter_map(|(_, outbox)| outbox.poll_timeout()).min()
    }

    /// Sends one batch of the first lane that has something. Says whether there may be more at once.
    fn send_some(&mut self) -> bool {
        let durable = *self.durable.borrow_and_update();
        for index in 0..self.outboxes.len() {
            let (lane, outbox) = &mut self.outboxes[index];
            let lane = *lane;
            if outbox.in_flight() == 0 {
                self.last_delivery[index] = Instant::now();
            } else if self.last_delivery[index].elapsed() > HOLD_AFTER {
                continue;
            }
            let through = *durable.get(lane);
            let Some(after) = outbox.next_to_send(Instant::now()) else { continue };
            if after >= through {
                continue;
            }
            let is_alone = after < self.alone_through[index];
            if is_alone && outbox.in_flight() > 0 {
                continue;
            }
            let in_flight_max = in_flight_max_of(lane, self.settings.in_flight_max);
            let room = in_flight_max.saturating_sub(outbox.in_flight()).max(1);
            let records_max = if is_alone { 1 } else { room.min(READ_RECORDS_MAX) };
            let mut batch = self.journal.read(lane, after, through, records_max);
            // The journal reads whole chunks.
            batch.records.truncate(records_max);
            self.alone[index] =
                batch.records.first().filter(|_| is_alone).map(|record| record.sequence);
            for loss in batch.losses {
                error!(
                    lane = lane.as_str(),
                    first = loss.first.0,
                    last = loss.last.0,
                    "journal records cannot be read"
                );
                if self.commands.try_send(JournalCommand::ReportLoss(loss)).is_err() {
                    error!("loss report not journalled: the journal's queue is full");
                }
            }
            let obstacle = batch.obstacle.as_ref().map(|obstacle| chain(obstacle));
            if let Some(error) = obstacle.as_ref().filter(|_| self.obstacles[index] != obstacle) {
                warn!(lane = lane.as_str(), error, "journal cannot be read now");
            }
            self.obstacles[index] = obstacle;
            let is_over = batch.records.is_empty() && batch.obstacle.is_none();
            if batch.records.is_empty() && batch.obstacle.is_some() {
                continue;
            }
            // Once for all of them: at a hundred thousand records a second the clocks would be a cost of their own.
            let moment = self.moment();
            for record in batch.records {
                if !self.send(index, lane, &record, moment) {
                    return false;
                }
            }
            if is_over {
                self.outboxes[index].1.handle_scanned(through);
                continue;
            }
            return true;
        }
        false
    }

    fn moment(&self) -> Moment {
        let historical_after = self
            .historical_after
            .as_ref()
            .map_or(self.settings.historical_after, |followed| *followed.borrow());
        let oldest_live = now()
            .saturating_sub_micros(i64::try_from(historical_after.as_micros()).unwrap_or(i64::MAX));
        Moment { now: Instant::now(), oldest_live }
    }

    /// Hands one record to the producer. Says whether it took it.
    fn send(&mut self, index: usize, lane: Lane, record: &Stored, moment: Moment) -> bool {
        let Some(producer) = &self.producer else { return false };
        if self.outboxes[index].1.next_to_send(moment.now).is_none() {
            return false;
        }
        let outgoing = match self.outgoing(lane, record, moment.oldest_live) {
            Ok(outgoing) => outgoing,
            Err(error) => {
                error!(sequence = record.sequence.0, lane = lane.as_str(), %error, "journalled record cannot be decoded");
                self.outboxes[index].1.handle_sent(record.sequence);
                self.give_up(index, record, "journal-decode", &error.detail());
                return true;
            }
        };
        let encoding = encoding_of(lane, self.settings.encoding);
        let content_type =
            Header { key: wire::CONTENT_TYPE_HEADER, value: Some(encoding.content_type()) };
        let message = BaseRecord::with_opaque_to(outgoing.topic, Box::new((lane, record.sequence)))
            .key(&outgoing.key)
            .payload(&outgoing.payload)
            .headers(OwnedHeaders::new().insert(content_type));
        match producer.send(message) {
            Ok(()) => {
                self.outboxes[index].1.handle_sent(record.sequence);
                true
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => false,
            Err((error, _)) => {
                let topic = outgoing.topic.to_owned();
                self.outboxes[index].1.handle_sent(record.sequence);
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                // Refused before it was in any batch: the record itself is meant.
                self.alone[index] = Some(record.sequence);
                self.handle_failure(index, record.sequence, code, &topic);
                true
            }
        }
    }

    fn outgoing(
        &self,
        lane: Lane,
        record: &Stored,
        oldest_live: EventTime,
    ) -> Result<Outgoing<'_>, DecodeError> {
        let encoding = self.settings.encoding;
        let identity = Some(Identity {
            device_id: self.device_id.clone(),
            generation: self.generation,
            sequence: record.sequence,
        });
        let topics = &self.settings.topics;
        Ok(match lane {
            Lane::Readings => {
                let mut reading =
                    codec::decode_reading(&record.payload, Encoding::Protobuf)?.reading;
                reading.identity = identity;
                reading.historical |= reading.timestamp < oldest_live;
                Outgoing {
                    topic: reading_topic(topics, &reading.metric_type),
                    key: reading.sensor_id.as_str().to_owned(),
                    payload: codec::encode_reading(&reading, encoding),
                }
            }
            Lane::Events => {
                let mut event = codec::decode_machine_event(&record.payload, Encoding::Protobuf)?;
                event.identity = identity;
                event.historical |= event.timestamp < oldest_live;
                Outgoing {
                    topic: &topics.machine_events,
                    key: event.machine_id.as_str().to_owned(),
                    payload: codec::encode_machine_event(&event, encoding),
                }
            }
            Lane::Waveforms => {
                let mut piece = codec::decode_waveform_snapshot(&record.payload)?;
                piece.identity = identity;
                Outgoing {
                    topic: &topics.waveforms,
                    key: piece.block.machine_id.as_str().to_owned(),
                    payload: codec::encode_waveform_snapshot(&piece),
                }
            }
            Lane::DeadLetters => {
                let mut letter = codec::decode_dead_letter(&record.payload, Encoding::Protobuf)?;
                letter.identity = identity;
                Outgoing {
                    topic: &topics.dead_letters,
                    key: self.device_id.as_str().to_owned(),
                    payload: codec::encode_dead_letter(&letter, encoding),
                }
            }
        })
    }

    fn handle_reports(&mut self, report: Option<Report>) {
        let mut delivered = [0_u64; LANES];
        let mut report = report;
        while let Some(found) = report {
            let index = found.lane.index();
            match found.failure {
                None => {
                    delivered[index] += 1;
                    self.outboxes[index].1.handle_acknowledged(found.sequence);
                }
                Some((code, topic)) => {
                    self.handle_failure(index, found.sequence, code, &topic);
                }
            }
            report = self.reports.try_recv().ok();
        }
        let now = Instant::now();
        for (index, count) in delivered.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let lane = self.outboxes[index].0.as_str();
            metrics::counter!(telemetry::KAFKA_DELIVERED, "lane" => lane).increment(count);
            self.last_delivery[index] = now;
            self.last_report = now;
            self.has_delivered = true;
        }
    }

    fn handle_failure(
        &mut self,
        index: usize,
        sequence: Sequence,
        code: RDKafkaErrorCode,
        topic: &str,
    ) {
        let lane = self.outboxes[index].0;
        let is_alone = self.alone[index] == Some(sequence);
        match disposition(code) {
            Disposition::DeadLetter if is_alone => {
                let batch = self.journal.read(lane, Sequence(sequence.0 - 1), sequence, 1);
                match batch.records.first() {
                    Some(record) => {
                        self.give_up(index, record, "broker-refused", &code.to_string())
                    }
                    None => {
                        self.outboxes[index].1.handle_failed(
                            sequence,
                            Disposition::DeadLetter,
                            Instant::now(),
                            0.0,
                        );
                    }
                }
            }
            found @ (Disposition::Retry | Disposition::Fatal | Disposition::DeadLetter) => {
                let retry = match found {
                    Disposition::DeadLetter => {
                        self.alone_through[index] = self.alone_through[index].max(sequence);
                        Disposition::Retry
                    }
                    Disposition::Retry | Disposition::Fatal => found,
                };
                metrics::counter!(telemetry::KAFKA_FAILURES, "disposition" => "retry").increment(1);
                if self.outboxes[index].1.failures_in_a_row() == 0 {
                    warn!(topic, lane = lane.as_str(), sequence = sequence.0, %code, "delivery failed, going back to the lowest record not acknowledged");
                }
                self.last_failure = format!("topic {topic}: {code}");
                self.outboxes[index].1.handle_failed(
                    sequence,
                    retry,
                    Instant::now(),
                    random_fraction(),
                );
            }
        }
    }

    /// Writes a record that will never pass to the dead letters; it is done.
    fn give_up(&mut self, index: usize, record: &Stored, reason: &str, detail: &str) {
        let lane = self.outboxes[index].0;
        metrics::counter!(telemetry::KAFKA_FAILURES, "disposition" => "dead-letter").increment(1);
        error!(
            lane = lane.as_str(),
            sequence = record.sequence.0,
            reason,
            detail,
            "record goes to the dead letters"
        );
        let source = format!("journal/{}", lane.as_str());
        let detail = format!("sequence {}: {detail}", record.sequence.0);
        let letter = DeadLetter::new(reason, detail, &source, now(), &record.payload);
        if lane == Lane::DeadLetters {
            // Counted and logged above: as a dead letter it would be refused again.
            return self.finish_record(index, record.sequence, Disposition::DeadLetter);
        }
        let (done, is_done) = oneshot::channel();
        match self.commands.try_send(JournalCommand::DeadLetter(letter, record.sequence, done)) {
            Ok(()) => self.letters.push((index, record.sequence, is_done)),
            Err(_) => self.finish_record(index, record.sequence, Disposition::Retry),
        }
    }

    fn finish_record(&mut self, index: usize, sequence: Sequence, disposition: Disposition) {
        let jitter = random_fraction();
        self.outboxes[index].1.handle_failed(sequence, disposition, Instant::now(), jitter);
    }

    /// A refused record is done when its dead letter is durable, not before.
    fn handle_letters(&mut self) {
        for (index, sequence, mut is_done) in std::mem::take(&mut self.letters) {
            match is_done.try_recv() {
                Ok(()) => self.finish_record(index, sequence, Disposition::DeadLetter),
                Err(oneshot::error::TryRecvError::Closed) => {
                    self.finish_record(index, sequence, Disposition::Retry);
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.letters.push((index, sequence, is_done));
                }
            }
        }
    }

    /// After a fatal error of the idempotent producer a new one takes over from the lowest record not acknowledged.
    fn renew_producer_after_fatal(&mut self) {
        let Some(producer) = &self.producer else { return };
        let Some((code, text)) = producer.client().fatal_error() else { return };
        if self.outboxes.iter().any(|(_, outbox)| outbox.in_flight() > 0) {
            return;
        }
        error!(%code, text, "kafka producer failed for good, starting another");
        match self.connect() {
            Ok(producer) => self.producer = Some(producer),
            Err(error) => error!(%error, "no new kafka producer"),
        }
    }

    /// Tells the journal and the operators how far delivery has come.
    fn show(&mut self) {
        let durable = *self.durable.borrow();
        let mut in_flight = 0;
        let mut delivered = Vec::new();
        let mut stalled_for = Duration::ZERO;
        for ((lane, outbox), last_delivery) in self.outboxes.iter().zip(&mut self.last_delivery) {
            let acknowledged = outbox.acknowledged();
            in_flight += outbox.in_flight();
            if outbox.in_flight() == 0 {
                *last_delivery = Instant::now();
            }
            stalled_for = stalled_for.max(last_delivery.elapsed());
            let owed = durable.get(*lane).0.saturating_sub(acknowledged.0);
            metrics::gauge!(telemetry::OUTBOX_RECORDS, "lane" => lane.as_str()).set(owed as f64);
            delivered.push((*lane, acknowledged));
        }
        self.delivered.send_modify(|all| {
            for (lane, acknowledged) in delivered {
                *all.get_mut(lane) = acknowledged;
            }
        });
        self.show_age(durable);
        metrics::gauge!(telemetry::IN_USE, "name" => "kafka.in-flight-max").set(in_flight as f64);
        let is_stalled = stalled_for > STALL_AFTER;
        if is_stalled && !self.is_stalled {
            warn!(in_flight, "kafka does not acknowledge; records wait in the journal");
        }
        // Records also cease to be in flight when they fail, and at the end.
        if self.is_stalled && !is_stalled && self.last_report.elapsed() < REPORT_INTERVAL * 2 {
            info!("kafka acknowledges again");
        }
        self.is_stalled = is_stalled;
        let is_failing = self.outboxes.iter().any(|(_, outbox)| outbox.failures_in_a_row() > 0);
        let state = if is_failing {
            Err(format!("{}; records wait in the journal", self.last_failure))
        } else if is_stalled {
            Err(format!("no delivery for {} s", stalled_for.as_secs()))
        } else if !self.has_delivered {
            Err("nothing delivered since the start".to_owned())
        } else {
            Ok(())
        };
        self.board.set(Part::Kafka, state);
        let obstacle = self.obstacles.iter().flatten().next();
        let obstacle = obstacle.map(|why| format!("journal cannot be read: {why}"));
        self.board.set(Part::Forwarder, obstacle.map_or(Ok(()), Err));
    }

    fn show_age(&self, durable: Durable) {
        let (_, outbox) = &self.outboxes[Lane::Readings.index()];
        let through = *durable.get(Lane::Readings);
        let oldest = (outbox.acknowledged() < through)
            .then(|| self.journal.peek(Lane::Readings, outbox.acknowledged(), through))
            .flatten()
            .and_then(|record| codec::decode_reading(&record.payload, Encoding::Protobuf).ok());
        let age = oldest
            .map_or(0.0, |decoded| now().micros_since(decoded.reading.timestamp) as f64 / 1e6);
        metrics::gauge!(telemetry::OUTBOX_OLDEST_AGE).set(age);
    }
}

/// When a batch is handed to the producer.
#[derive(Clone, Copy)]
struct Moment {
    now: Instant,
    /// What was measured before this is historical.
    oldest_live: EventTime,
}

struct Outgoing<'a> {
    topic: &'a str,
    key: String,
    payload: Vec<u8>,
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// The calendar's time.
#[must_use]
pub fn now() -> EventTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
