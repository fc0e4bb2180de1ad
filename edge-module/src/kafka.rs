//! The forwarder: from the journal to Kafka, machine events first, trimmed by delivery reports; or to the hub, see `ways`.
//!
//! Idempotent producer, acks=all, no message timeout: the client library keeps a record and its order until the broker
//! answers, however long the network is away. What is in flight is limited by [`Outbox`]; what is not in flight stays in
//! the journal. Topics that do not exist yet are waited for. A failure rewinds its lane to the lowest record not
//! acknowledged. A broker refuses a batch whole for one record in it (too large, say): then the lane goes on one record at
//! a time, and the one that is refused alone goes to the dead letters. The Kafka timestamp is the time of sending: brokers
//! refuse or expire records by it, and a backlog is neither wrong nor old.

mod books;
mod lanes;
mod outgoing;
mod producer;
mod ways;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edge_core::outbox::{Disposition, Outbox};
use edge_core::upstream::{Switch, Upstream, Ways};
use lanes::{disposition, encoding_of, in_flight_max_of, outbox_settings};
use producer::{Report, Reports, connect};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use shared_proto::codec::DecodeError;
use shared_proto::model::{DeadLetter, DeviceId, EventTime, Generation, Sequence};
use shared_proto::wire;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};
use ways::HubWay;

use crate::admin::{Board, Part};
use crate::config::{Kafka, Upstreams};
use crate::hub::telemetry::Uplink;
use crate::journal::{Delivered, Durable, JournalCommand, chain};
use crate::mqtt::source::random_fraction;
use crate::store::{Batch, JournalReader, Lane, Stored};
use crate::telemetry;

pub use producer::ForwardError;

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

const LANES: usize = Lane::ALL.len();

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
    /// Which way records leave.
    switch: Switch,
    /// The way by the hub, if there is one.
    hub: Option<HubWay>,
    /// Whether Kafka answers, while that is asked.
    asking: Option<oneshot::Receiver<bool>>,
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
    /// Which ways records may leave.
    pub upstream: Upstreams,
    /// The line to the hub; none: there is no link.
    pub hub: Option<Uplink>,
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
        let switching = start.upstream.switching();
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
            switch: Switch::new(switching),
            hub: start.hub.map(|uplink| HubWay::new(uplink, start.upstream)),
            asking: None,
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
        match switching.ways {
            Ways::Kafka | Ways::KafkaThenHub => this.producer = Some(this.connect()?),
            Ways::Hub => {}
        }
        Ok(this)
    }

    /// Follows a setting that may change while the module runs.
    #[must_use]
    pub fn following(mut self, historical_after: watch::Receiver<Duration>) -> Self {
        self.historical_after = Some(historical_after);
        self
    }

    fn connect(&self) -> Result<ThreadedProducer<Reports>, ForwardError> {
        connect(&self.settings, &self.device_id, self.reports_sender.clone())
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
        info!(
            brokers = self.settings.brokers,
            upstream = self.switch.shown().as_str(),
            "forwarding"
        );
        while !*stop.borrow() {
            self.renew_producer_after_fatal();
            self.handle_letters();
            self.switch_ways();
            let is_busy = self.send_some(false);
            let timeout = self.next_timeout();
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                report = self.reports.recv() => self.handle_reports(report),
                news = ways::news(&mut self.hub, &mut self.asking) => self.handle_news(news),
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
        self.forget_shipments();
        for (lane, outbox) in &mut self.outboxes {
            *outbox = Outbox::new(outbox.acknowledged(), outbox_settings(*lane, &self.settings));
        }
        if self.producer.is_some() {
            self.renew_producer();
        }
    }

    fn renew_producer(&mut self) {
        // First the old one has to end: it reports to the same queue.
        self.producer = None;
        match self.connect() {
            Ok(producer) => self.producer = Some(producer),
            Err(error) => error!(%error, "no new kafka producer"),
        }
    }

    /// Sends what is durable and waits for its reports, as long as the other side answers.
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
            self.send_some(true);
            self.handle_hub_reports();
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
        let of_outboxes = self.outboxes.iter().filter_map(|(_, outbox)| outbox.poll_timeout());
        let of_hub = self.hub.as_ref().and_then(HubWay::poll_timeout);
        of_outboxes.chain(self.switch.poll_timeout()).chain(of_hub).min()
    }

    /// Sends some of the first lane that has something. Says whether there may be more at once. At the end nothing waits for more.
    fn send_some(&mut self, is_end: bool) -> bool {
        match self.switch.active() {
            Some(Upstream::Kafka) => self.send_to_kafka(),
            Some(Upstream::Hub) => self.send_to_hub(is_end),
            None => false,
        }
    }

    fn send_to_kafka(&mut self) -> bool {
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
            let batch = self.read(index, after, through, records_max);
            self.alone[index] =
                batch.records.first().filter(|_| is_alone).map(|record| record.sequence);
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

    /// Reads records of a lane, and tells of those that cannot be read.
    fn read(&mut self, index: usize, after: Sequence, through: Sequence, max: usize) -> Batch {
        let lane = self.outboxes[index].0;
        let mut batch = self.journal.read(lane, after, through, max);
        // The journal reads whole chunks.
        batch.records.truncate(max);
        for loss in std::mem::take(&mut batch.losses) {
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
        batch
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
        let outbox = &mut self.outboxes[index].1;
        if outbox.next_to_send(moment.now).is_none() {
            return false;
        }
        if outbox.pass_over(record.sequence) {
            return true;
        }
        let encoding = self.settings.encoding;
        let outgoing = match self.outgoing(lane, record, moment.oldest_live, encoding) {
            Ok(outgoing) => outgoing,
            Err(error) => {
                self.give_up_undecodable(index, record, &error);
                return true;
            }
        };
        let encoding = encoding_of(lane, encoding);
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
            ways::count_delivered(Upstream::Kafka, lane, count);
            self.switch.handle_delivered(now);
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

    fn give_up_undecodable(&mut self, index: usize, record: &Stored, error: &DecodeError) {
        let lane = self.outboxes[index].0.as_str();
        error!(sequence = record.sequence.0, lane, %error, "journalled record cannot be decoded");
        self.outboxes[index].1.handle_sent(record.sequence);
        self.give_up(index, record, "journal-decode", &error.detail());
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
        self.renew_producer();
    }
}

/// When a batch is handed to the producer.
#[derive(Clone, Copy)]
struct Moment {
    now: Instant,
    /// What was measured before this is historical.
    oldest_live: EventTime,
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
