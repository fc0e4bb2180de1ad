//! Messages that a hub's routes bring from OPC Publisher to inputs of the module.
//!
//! ```text
//! link -> queue -> inputs -- what rules name, in pieces of 256 --> stop path
//!                         -- everything ------------------------> recording -> journal -- durable --> acknowledgement
//! ```
//!
//! A message is acknowledged when all that became of it is durable, never before; one that nobody reads, at once. The hub has few
//! messages in flight, so while the journal takes nothing it sends nothing more: then sensors behind it fall silent, which their
//! machines' rules notice; sensors for which that is not enough come by MQTT. A hub repeats what was not acknowledged for some
//! time, and does not say so: repeats are known again by what they say ([`crate::recognition`]), so each message counts as one
//! that may be a repeat.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use edge_core::opc::{self, Item, Mapping, OpcLimits, OpcMessage, Skipped};
use rumqttc::{AsyncClient, Publish, QoS};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::sparing::{Sparing, cut};
use crate::backlog::{Piece, Pieces};
use crate::config::Settings;
use crate::kafka::now;
use crate::recording::OpcInput;
use crate::telemetry;

/// Messages that wait to be read, and that wait to be recorded. A hub has fewer in flight.
pub const INPUT_QUEUE_LENGTH: usize = 64;
/// Values that the stop path judges in one go.
const SLICE_VALUES: usize = 256;
/// Nodes without a mapping that are told; more are counted.
const UNMAPPED_TOLD_MAX: usize = 256;
/// Beginning of the name under which messages are known again and kept as dead letters.
const TOPIC: &str = "inputs";
/// Longest name in a line of the log, in characters.
const NAME_CHARACTERS_MAX: usize = 200;

/// Whom the values concern.
pub struct InputLines {
    /// The stop path.
    pub protection: mpsc::Sender<Pieces>,
    /// The journal's path.
    pub recording: mpsc::Sender<OpcInput>,
}

/// A message to an input.
pub(super) struct Delivery {
    pub(super) input: String,
    pub(super) publish: Publish,
    /// When it was read from the socket.
    pub(super) received: Instant,
    /// The connection that brought it.
    pub(super) client: AsyncClient,
}

/// What is owed to a hub for a message.
struct Owed {
    client: AsyncClient,
    /// The message without what is in it.
    publish: Publish,
}

impl Owed {
    fn of(delivery: &Delivery) -> Self {
        let mut publish = Publish::new("", delivery.publish.qos, Vec::new());
        publish.pkid = delivery.publish.pkid;
        Self { client: delivery.client.clone(), publish }
    }

    /// Waits for room among the requests of its connection, if that is still there.
    async fn acknowledge(self) {
        if self.client.ack(&self.publish).await.is_err() {
            debug!("the connection of a message to an input is gone; the hub sends it again");
        }
    }
}

/// Where the link leaves messages to inputs.
pub struct InputQueue {
    names: Vec<String>,
    deliveries: mpsc::Sender<Delivery>,
}

impl InputQueue {
    /// Whether somebody reads this input.
    pub(super) fn reads(&self, input: &str) -> bool {
        self.names.iter().any(|name| name == input)
    }

    /// Leaves a message there. One that finds no room is not acknowledged: the hub sends it again.
    pub(super) fn offer(&self, delivery: Delivery) -> bool {
        self.deliveries.try_send(delivery).is_ok()
    }
}

/// Reads what comes to the inputs.
pub struct Inputs {
    mapping: Mapping,
    limits: OpcLimits,
    lines: InputLines,
    deliveries: mpsc::Receiver<Delivery>,
    /// In the order in which they were handed to the journal's path.
    owed: VecDeque<(Owed, oneshot::Receiver<()>)>,
    told: BTreeSet<String>,
    log: Sparing,
}

impl Inputs {
    /// Makes both ends; nothing runs yet.
    #[must_use]
    pub fn new(settings: &Settings, lines: InputLines) -> (InputQueue, Self) {
        let (sender, deliveries) = mpsc::channel(INPUT_QUEUE_LENGTH);
        let opc = &settings.opc_publisher;
        let queue = InputQueue { names: opc.inputs.clone(), deliveries: sender };
        let inputs = Self {
            mapping: opc.mapping().expect("validated settings have no faults"),
            limits: opc.limits(settings.mqtt.payload_bytes_max),
            lines,
            deliveries,
            owed: VecDeque::new(),
            told: BTreeSet::new(),
            log: Sparing::default(),
        };
        (queue, inputs)
    }

    /// Runs until the link has ended.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                Some(owed) = next_settled(&mut self.owed) => {
                    if let Some(owed) = owed {
                        owed.acknowledge().await;
                    }
                }
                delivery = self.deliveries.recv() => match delivery {
                    None => return,
                    Some(delivery) => self.handle(delivery).await,
                },
            }
        }
    }

    async fn handle(&mut self, delivery: Delivery) {
        metrics::counter!(telemetry::MQTT_MESSAGES, "session" => "hub").increment(1);
        self.log.look();
        let owed = Owed::of(&delivery);
        let message = opc::decode(&delivery.publish.payload, &self.mapping, &self.limits, now());
        self.count(&message, &delivery.input);
        self.protect(&message, delivery.received).await;
        if message.items.is_empty() {
            return owed.acknowledge().await;
        }
        let topic = format!("{TOPIC}/{}", delivery.input);
        let payload = delivery.publish.payload;
        let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, payload);
        publish.dup = true;
        let (durable, is_durable) = oneshot::channel();
        // Never waited for: the next message may be one to stop a machine by.
        match self.lines.recording.try_send(OpcInput { publish, message, durable }) {
            Ok(()) => self.owed.push_back((owed, is_durable)),
            Err(error) => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "input-queue").increment(1);
                if self.log.may() {
                    warn!(input = delivery.input, %error, "judged, not recorded, not acknowledged: the hub has to send it again");
                }
            }
        }
    }

    /// Only room on the stop path is waited for, which empties its queue between two inputs.
    async fn protect(&self, message: &OpcMessage, received: Instant) {
        let pieces: Vec<Piece> = message.items.iter().filter_map(piece).collect();
        let count = pieces.len().div_ceil(SLICE_VALUES);
        let mut pieces = pieces.into_iter();
        for number in 1..=count {
            let pieces = pieces.by_ref().take(SLICE_VALUES).collect();
            let slice = Pieces { received, pieces, is_last: number == count };
            if self.lines.protection.send(slice).await.is_err() {
                debug!("the stop path has ended");
            }
        }
    }

    fn count(&mut self, message: &OpcMessage, input: &str) {
        metrics::counter!(telemetry::OPC_UNMAPPED).increment(message.unmapped);
        for what in Skipped::ALL {
            let count = message.skipped.get(&what).copied().unwrap_or_default();
            metrics::counter!(telemetry::OPC_SKIPPED, "kind" => what.as_str()).increment(count);
        }
        for node in &message.unmapped_names {
            if self.told.len() >= UNMAPPED_TOLD_MAX {
                return;
            }
            if self.told.insert(node.clone()) && self.log.may() {
                let node = cut(node, NAME_CHARACTERS_MAX);
                info!(input, node, "not recorded: opc-publisher.nodes does not name it");
            }
        }
    }
}

/// What the stop path is told of an item.
fn piece(item: &Item) -> Option<Piece> {
    match item {
        Item::Reading(reading) => Some(Piece::Reading(reading.clone())),
        Item::Refused(refused) => {
            let is_fault = refused.error.is_sensor_fault() && !refused.historical;
            refused.sensor.clone().filter(|_| is_fault).map(Piece::Unusable)
        }
    }
}

/// The next message that is settled, if one is owed: durable, or lost on the way and nothing to be acknowledged. Can be
/// cancelled without losing one.
async fn next_settled(owed: &mut VecDeque<(Owed, oneshot::Receiver<()>)>) -> Option<Option<Owed>> {
    let (_, is_durable) = owed.front_mut()?;
    let is_durable = is_durable.await.is_ok();
    let (owed, _) = owed.pop_front()?;
    Some(is_durable.then_some(owed))
}

#[cfg(test)]
mod tests;
