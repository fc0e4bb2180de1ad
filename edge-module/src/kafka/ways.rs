//! The other way: messages to the hub, and the change from one way to the other.
//!
//! A message holds records of one Kafka topic, which its property `topic` names, in the order of their sequence: the JSON of each as on
//! Kafka, in an array; with `upstream.message-records-max = 1` the record alone, with the property `key`. The property `content-type` is
//! the header of Kafka, since what reads the hub's built-in endpoint by the Kafka protocol finds message properties as headers. Pieces of
//! waveforms are protobuf, each a message of its own. Together, because a hub counts and throttles messages in pieces of 4 KiB: a
//! reading of 300 bytes alone costs as much as thirteen.
//!
//! Kafka is left by ending the producer, which tells of each record whether it arrived; one that is undecided leaves by the hub too, with
//! the same identity. The hub is left when each message is reported.

use std::collections::BTreeMap;
use std::time::Instant;

use edge_core::outbox::Disposition;
use edge_core::upstream::{Step, Upstream};
use shared_proto::Encoding;
use shared_proto::model::Sequence;
use shared_proto::wire;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::lanes::encoding_of;
use super::producer::answers;
use super::{Forwarder, LANES};
use crate::admin::Part;
use crate::config::{MESSAGE_BYTES_MAX, Upstreams};
use crate::hub::telemetry::{Fate, HubMessage, HubReport, LineNews, Uplink};
use crate::mqtt::source::random_fraction;
use crate::store::{Lane, Stored};
use crate::telemetry;

/// A hub counts in pieces of so many bytes.
const PIECE_BYTES: usize = 4 << 10;

/// The way by the hub.
pub(super) struct HubWay {
    uplink: Uplink,
    settings: Upstreams,
    shipments: BTreeMap<u64, Shipment>,
    next_number: u64,
    /// Since when records of a lane wait for a fuller message.
    lingering: [Option<Instant>; LANES],
}

/// A message on its way.
struct Shipment {
    /// Of the lane.
    index: usize,
    sequences: Vec<Sequence>,
}

/// A message that is being filled.
struct Draft {
    topic: String,
    key: String,
    encoding: Encoding,
    body: Vec<u8>,
    sequences: Vec<Sequence>,
    /// No further record is added.
    is_closed: bool,
}

impl HubWay {
    pub(super) const fn new(uplink: Uplink, settings: Upstreams) -> Self {
        let lingering = [None; LANES];
        Self { uplink, settings, shipments: BTreeMap::new(), next_number: 0, lingering }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.uplink.connection().is_some()
    }

    /// When to look again although nothing happens.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let since = self.lingering.iter().flatten().min();
        since.map(|since| *since + self.settings.linger)
    }

    /// Messages on their way.
    pub(super) fn in_flight(&self) -> usize {
        self.shipments.len()
    }

    fn room(&self) -> usize {
        self.uplink.room().saturating_sub(self.shipments.len())
    }

    /// Whether records of a lane have to wait for more of them.
    fn lingers(&mut self, index: usize, waiting: u64, now: Instant) -> bool {
        let is_full = waiting >= self.settings.message_records_max as u64;
        if is_full || Lane::ALL[index] == Lane::Events {
            self.lingering[index] = None;
            return false;
        }
        let since = *self.lingering[index].get_or_insert(now);
        let lingers = now.saturating_duration_since(since) < self.settings.linger;
        if !lingers {
            self.lingering[index] = None;
        }
        lingers
    }

    /// Puts a record into a message of its topic; nothing if there is no room for another message.
    fn place(
        &self,
        drafts: &mut Vec<Draft>,
        sequence: Sequence,
        (topic, key, encoding): (&str, &str, Encoding),
        payload: Vec<u8>,
    ) -> Option<()> {
        let Upstreams { message_bytes_max, message_records_max, .. } = self.settings;
        let is_array = encoding == Encoding::Json && message_records_max > 1;
        let open = drafts.iter_mut().find(|draft| draft.topic == topic && !draft.is_closed);
        if let Some(draft) = open {
            let bytes = draft.body.len() + payload.len() + 2;
            if bytes <= message_bytes_max && draft.sequences.len() < message_records_max {
                draft.body.push(b',');
                draft.body.extend_from_slice(&payload);
                draft.sequences.push(sequence);
                return Some(());
            }
            draft.is_closed = true;
        }
        if drafts.len() >= self.room() {
            return None;
        }
        let body = if is_array { [b"[", payload.as_slice()].concat() } else { payload };
        let (topic, key) = (topic.to_owned(), key.to_owned());
        let sequences = vec![sequence];
        drafts.push(Draft { topic, key, encoding, body, sequences, is_closed: !is_array });
        Some(())
    }

    /// Hands a message over; gives back the records of one that was not taken.
    fn ship(&mut self, index: usize, connection: u64, draft: Draft) -> Result<(), Vec<Sequence>> {
        let Draft { topic, key, encoding, mut body, sequences, .. } = draft;
        let is_array = encoding == Encoding::Json && self.settings.message_records_max > 1;
        let mut properties =
            vec![("topic", topic), (wire::CONTENT_TYPE_HEADER, encoding.content_type().to_owned())];
        // A property of an IoT Hub is ASCII; who needs the key of another finds it in the record.
        if sequences.len() == 1 && key.is_ascii() {
            properties.push(("key", key));
        }
        match encoding {
            Encoding::Json => {}
            Encoding::Protobuf => {
                properties.push(("$.ct", encoding.content_type().to_owned()));
                properties.push(("$.ce", "identity".to_owned()));
            }
        }
        if is_array {
            body.push(b']');
        }
        let number = self.next_number;
        self.next_number += 1;
        metrics::counter!(telemetry::HUB_MESSAGES).increment(1);
        metrics::counter!(telemetry::HUB_PIECES).increment(body.len().div_ceil(PIECE_BYTES) as u64);
        if !self.uplink.send(HubMessage { number, connection, properties, payload: body }) {
            return Err(sequences);
        }
        self.shipments.insert(number, Shipment { index, sequences });
        Ok(())
    }
}

/// What came while the forwarder waited.
pub(super) enum News {
    /// Of a message; nothing: the link has ended.
    Report(Option<HubReport>),
    /// There is another connection, or none any more.
    Connection,
    /// Whether Kafka answers.
    Answer(bool),
}

/// Waits for whatever the line to the hub or the question to Kafka brings.
pub(super) async fn news(
    hub: &mut Option<HubWay>,
    asking: &mut Option<oneshot::Receiver<bool>>,
) -> News {
    let of_hub = async {
        match hub {
            Some(hub) => match hub.uplink.news().await {
                LineNews::Report(report) => News::Report(report),
                LineNews::Connection => News::Connection,
            },
            None => std::future::pending().await,
        }
    };
    let answer = async {
        match asking {
            // The thread that asks has panicked: no answer.
            Some(answer) => News::Answer(answer.await.unwrap_or(false)),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        news = of_hub => news,
        news = answer => news,
    }
}

/// Counts records that have arrived.
pub(super) fn count_delivered(upstream: Upstream, lane: &'static str, count: u64) {
    let labels = [("upstream", upstream.as_str()), ("lane", lane)];
    metrics::counter!(telemetry::UPSTREAM_DELIVERED, &labels).increment(count);
}

impl Forwarder {
    pub(super) fn handle_news(&mut self, news: News) {
        match news {
            News::Report(Some(report)) => {
                self.handle_hub_report(report);
                self.handle_hub_reports();
            }
            News::Report(None) => {
                self.lose_shipments();
                self.hub = None;
                let text = "there is no link to a hub; records wait in the journal";
                warn!("{text}");
                self.board.set(Part::Hub, Err(text.to_owned()));
            }
            News::Connection => {}
            News::Answer(answers) => {
                self.asking = None;
                self.switch.handle_kafka(answers, Instant::now());
            }
        }
    }

    /// Takes what is reported of messages.
    pub(super) fn handle_hub_reports(&mut self) {
        while let Some(report) = self.hub.as_mut().and_then(|hub| hub.uplink.try_report()) {
            self.handle_hub_report(report);
        }
    }

    fn handle_hub_report(&mut self, report: HubReport) {
        let hub = self.hub.as_mut();
        // One of the run before a panic is known no more: its records are sent again.
        let Some(shipment) = hub.and_then(|hub| hub.shipments.remove(&report.number)) else {
            return;
        };
        match report.fate {
            Fate::Taken => self.handle_taken(&shipment),
            Fate::Lost => self.handle_lost(shipment.index, &shipment.sequences),
        }
    }

    fn handle_taken(&mut self, shipment: &Shipment) {
        let now = Instant::now();
        let (lane, outbox) = &mut self.outboxes[shipment.index];
        for sequence in &shipment.sequences {
            outbox.handle_acknowledged(*sequence);
        }
        count_delivered(Upstream::Hub, lane.as_str(), shipment.sequences.len() as u64);
        self.last_delivery[shipment.index] = now;
        self.last_report = now;
        self.has_delivered = true;
    }

    fn handle_lost(&mut self, index: usize, sequences: &[Sequence]) {
        metrics::counter!(telemetry::HUB_MESSAGES_LOST).increment(1);
        for sequence in sequences {
            let retry = Disposition::Retry;
            self.outboxes[index].1.handle_failed(
                *sequence,
                retry,
                Instant::now(),
                random_fraction(),
            );
        }
        "the hub's connection has ended".clone_into(&mut self.last_failure);
    }

    /// All messages on their way count as lost.
    fn lose_shipments(&mut self) {
        let Some(hub) = &mut self.hub else { return };
        for shipment in std::mem::take(&mut hub.shipments).into_values() {
            self.handle_lost(shipment.index, &shipment.sequences);
        }
    }

    /// After a panic: what is reported of them later is of no use.
    pub(super) fn forget_shipments(&mut self) {
        if let Some(hub) = &mut self.hub {
            hub.shipments.clear();
            hub.lingering = [None; LANES];
        }
    }

    /// Decides which way records leave, and changes it.
    pub(super) fn switch_ways(&mut self) {
        let now = Instant::now();
        self.switch.handle_owed(self.owes_something(), now);
        self.switch.handle_hub(self.hub.as_ref().is_some_and(HubWay::is_connected));
        while let Some(step) = self.switch.poll(now) {
            match step {
                Step::Ask => self.ask_kafka(),
                Step::Leave(Upstream::Kafka) if self.letters.is_empty() => self.leave_kafka(),
                // A record whose dead letter is being written is neither here nor there.
                Step::Leave(Upstream::Kafka) => return,
                Step::Leave(Upstream::Hub) => {
                    let is_settled = self.hub.as_ref().is_none_or(|hub| hub.shipments.is_empty());
                    if !is_settled {
                        return;
                    }
                    self.switch.handle_settled();
                }
                Step::Use(upstream) => self.begin_way(upstream),
            }
        }
    }

    /// Asks on a thread of its own: the client library blocks.
    fn ask_kafka(&mut self) {
        if self.producer.is_none() {
            self.renew_producer();
        }
        let (sender, answer) = oneshot::channel();
        self.asking = Some(answer);
        // Without a producer nobody answers.
        let Some(producer) = self.producer.clone() else { return };
        let topic = self.settings.topics.machine_events.clone();
        tokio::task::spawn_blocking(move || {
            if sender.send(answers(&producer, &topic)).is_err() {
                debug!("kafka was asked by a forwarder that has ended");
            }
        });
    }

    /// Ends the producer. What it reports at its end tells which records have arrived; all others leave by the hub.
    fn leave_kafka(&mut self) {
        self.producer = None;
        while let Ok(report) = self.reports.try_recv() {
            if report.failure.is_none() {
                let (lane, outbox) = &mut self.outboxes[report.lane.index()];
                outbox.handle_acknowledged(report.sequence);
                metrics::counter!(telemetry::KAFKA_DELIVERED, "lane" => lane.as_str()).increment(1);
                count_delivered(Upstream::Kafka, lane.as_str(), 1);
            }
        }
        let in_flight: usize = self.outboxes.iter().map(|(_, outbox)| outbox.in_flight()).sum();
        warn!(undecided_max = in_flight, "kafka is away: records go to the hub");
        for (_, outbox) in &mut self.outboxes {
            outbox.handle_recalled();
        }
        self.alone = [None; LANES];
        self.switch.handle_settled();
    }

    fn begin_way(&mut self, upstream: Upstream) {
        metrics::counter!(telemetry::UPSTREAM_SWITCHES, "to" => upstream.as_str()).increment(1);
        self.last_delivery = [Instant::now(); LANES];
        match upstream {
            Upstream::Hub => {
                self.forget_shipments();
                let text = "away; records go to the hub, and back when it answers";
                self.board.set(Part::Kafka, Err(text.to_owned()));
            }
            Upstream::Kafka => {
                info!("kafka answers: records go there again");
                for (_, outbox) in &mut self.outboxes {
                    // The hub's failures are none of Kafka's.
                    if outbox.in_flight() == 0 {
                        outbox.handle_recalled();
                    }
                }
                if self.producer.is_none() {
                    self.renew_producer();
                }
            }
        }
    }

    /// Fills messages from the first lane that has something. Says whether there may be more at once.
    pub(super) fn send_to_hub(&mut self, is_end: bool) -> bool {
        // In this order, so that what a connection has lost is known before anything is sent on the next: see `hub::telemetry`.
        let connection = self.hub.as_ref().and_then(|hub| hub.uplink.connection());
        self.handle_hub_reports();
        let Some(connection) = connection else { return false };
        let durable = *self.durable.borrow_and_update();
        for index in 0..self.outboxes.len() {
            let Some(hub) = self.hub.as_mut().filter(|hub| hub.room() > 0) else { return false };
            let (lane, outbox) = &mut self.outboxes[index];
            let (through, now) = (*durable.get(*lane), Instant::now());
            let Some(after) = outbox.next_to_send(now) else { continue };
            if after >= through {
                hub.lingering[index] = None;
                continue;
            }
            if !is_end && hub.lingers(index, through.0 - after.0, now) {
                continue;
            }
            let records_max = hub.settings.message_records_max * hub.room();
            let batch = self.read(index, after, through, records_max.min(super::READ_RECORDS_MAX));
            if batch.records.is_empty() && batch.obstacle.is_some() {
                continue;
            }
            if batch.records.is_empty() {
                self.outboxes[index].1.handle_scanned(through);
                continue;
            }
            self.fill_messages(index, connection, &batch.records);
            return true;
        }
        false
    }

    fn fill_messages(&mut self, index: usize, connection: u64, records: &[Stored]) {
        let moment = self.moment();
        let lane = self.outboxes[index].0;
        let mut drafts = Vec::new();
        for record in records {
            let outbox = &mut self.outboxes[index].1;
            if outbox.next_to_send(moment.now).is_none() {
                break;
            }
            if outbox.pass_over(record.sequence) {
                continue;
            }
            let encoding = encoding_of(lane, Encoding::Json);
            let outgoing = self.outgoing(lane, record, moment.oldest_live, encoding);
            let (topic, key, payload) = match outgoing {
                Ok(outgoing) => (outgoing.topic.to_owned(), outgoing.key, outgoing.payload),
                Err(error) => {
                    self.give_up_undecodable(index, record, &error);
                    continue;
                }
            };
            if payload.len() + 2 > MESSAGE_BYTES_MAX {
                let detail = format!("{} bytes, a hub takes {MESSAGE_BYTES_MAX}", payload.len());
                self.outboxes[index].1.handle_sent(record.sequence);
                self.give_up(index, record, "hub-too-large", &detail);
                continue;
            }
            let Some(hub) = &self.hub else { break };
            let placed = hub.place(&mut drafts, record.sequence, (&topic, &key, encoding), payload);
            if placed.is_none() {
                break;
            }
            self.outboxes[index].1.handle_sent(record.sequence);
        }
        for draft in drafts {
            let Some(hub) = &mut self.hub else { return };
            if let Err(sequences) = hub.ship(index, connection, draft) {
                self.handle_lost(index, &sequences);
            }
        }
    }
}

#[cfg(test)]
mod tests;
