//! What all connections share: twins, sessions, what was received, and what is to go wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rumqttc::{PacketType, QoS};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::certificates::{Authority, Registered};
use super::faults::Faults;
use super::topics::Channel;
use super::twin::Twin;
use super::{Direction, Fault, HubMessage, HubSettings, Peer, Recorded, Refusal};

/// Packets kept; the oldest go first.
const PACKETS_MAX: usize = 200_000;
const MESSAGES_MAX: usize = 1_000_000;
const REFUSALS_MAX: usize = 10_000;
/// Messages to a client that wait for it.
const INBOX_MAX: usize = 1_000;
const OPERATIONS_MAX: usize = 1_000;
/// Publishes on their way to a connection: a full inbox, and as much again.
const COMMANDS_MAX: usize = 2 * INBOX_MAX;

/// A publish for a client.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) channel: Channel,
    pub(super) topic: String,
    pub(super) body: Vec<u8>,
    /// The message in the inbox that an acknowledgement removes.
    pub(super) inbox_number: Option<u64>,
}

/// The connection of a client that holds now.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) connection: u64,
    commands: mpsc::Sender<Outgoing>,
}

/// One identity.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) twin: Twin,
    pub(super) subscriptions: BTreeMap<Channel, QoS>,
    /// Whether a session waits for its client.
    pub(super) has_session: bool,
    pub(super) live: Option<Live>,
    /// Kept until acknowledged.
    pub(super) inbox: VecDeque<Outgoing>,
}

impl Endpoint {
    fn new() -> Self {
        Self {
            twin: Twin::new(),
            subscriptions: BTreeMap::new(),
            has_session: false,
            live: None,
            inbox: VecDeque::new(),
        }
    }

    /// Hands a publish to the connection, if there is one that has subscribed to such.
    pub(super) fn send(&self, outgoing: Outgoing) -> bool {
        let Some(live) = &self.live else { return false };
        self.subscriptions.contains_key(&outgoing.channel)
            && live.commands.try_send(outgoing).is_ok()
    }

    /// Hands everything in the inbox to the connection.
    pub(super) fn send_inbox(&self) {
        for outgoing in &self.inbox {
            self.send(outgoing.clone());
        }
    }
}

/// The answer to a method call.
pub(super) type MethodAnswer = Result<(i32, Value), String>;

pub(super) struct State {
    pub(super) endpoints: BTreeMap<Peer, Endpoint>,
    pub(super) messages: Vec<HubMessage>,
    pub(super) packets: VecDeque<Recorded>,
    pub(super) refusals: Vec<Refusal>,
    /// CONNECTs that were accepted.
    pub(super) accepted: u64,
    /// Open connections, whether they have said who they are or not.
    pub(super) open: BTreeMap<u64, AbortHandle>,
    pub(super) calls: BTreeMap<String, mpsc::Sender<MethodAnswer>>,
    /// Counts connections, calls, messages to clients and operations.
    numbers: u64,
    pub(super) clock_offset_seconds: i64,
    pub(super) authorities: Vec<Authority>,
    pub(super) server_config: Arc<ServerConfig>,
    pub(super) workload_requests: Vec<String>,
    /// Vouches for certificates of devices.
    pub(super) device_authority: Authority,
    /// What a device may show; the newest last.
    pub(super) device_certificates: Vec<Registered>,
    /// Another hub than this one.
    pub(super) assigned_hub: Option<String>,
    /// How often was asked after a registration, by its operation.
    pub(super) operations: BTreeMap<String, u32>,
    /// Registrations asked for.
    pub(super) registrations: u64,
}

impl State {
    pub(super) fn new(
        authority: Authority,
        device_authority: Authority,
        server_config: Arc<ServerConfig>,
    ) -> Self {
        let peers = [Peer::Module, Peer::Device, Peer::Registration];
        Self {
            endpoints: peers.into_iter().map(|peer| (peer, Endpoint::new())).collect(),
            messages: Vec::new(),
            packets: VecDeque::new(),
            refusals: Vec::new(),
            accepted: 0,
            open: BTreeMap::new(),
            calls: BTreeMap::new(),
            numbers: 0,
            clock_offset_seconds: 0,
            authorities: vec![authority],
            server_config,
            workload_requests: Vec::new(),
            device_authority,
            device_certificates: Vec::new(),
            assigned_hub: None,
            operations: BTreeMap::new(),
            registrations: 0,
        }
    }

    pub(super) fn endpoint(&mut self, peer: Peer) -> &mut Endpoint {
        self.endpoints.entry(peer).or_insert_with(Endpoint::new)
    }

    /// A number that was not given before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Opens an operation; the oldest is forgotten.
    pub(super) fn begin_operation(&mut self) -> String {
        let operation = format!("5.{:016x}", self.next_number());
        self.registrations += 1;
        self.operations.insert(operation.clone(), 0);
        if self.operations.len() > OPERATIONS_MAX {
            self.operations.pop_first();
        }
        operation
    }

    pub(super) fn keep_message(&mut self, message: HubMessage) {
        if self.messages.len() < MESSAGES_MAX {
            self.messages.push(message);
        }
    }

    /// Puts a message into a client's inbox and on its way. `false`: the inbox is full.
    pub(super) fn keep_for(&mut self, peer: Peer, mut outgoing: Outgoing) -> bool {
        outgoing.inbox_number = Some(self.next_number());
        let endpoint = self.endpoint(peer);
        if endpoint.inbox.len() >= INBOX_MAX {
            return false;
        }
        endpoint.send(outgoing.clone());
        endpoint.inbox.push_back(outgoing);
        true
    }

    /// All certificates that clients are to trust.
    pub(super) fn trust_bundle(&self) -> String {
        self.authorities.iter().map(Authority::pem).collect()
    }
}

/// Everything but the listeners.
pub(super) struct Shared {
    pub(super) settings: HubSettings,
    pub(super) keys: Keys,
    /// What a client may call this server; the hub's name is the first.
    pub(super) host_names: Vec<String>,
    /// What a registration is told to connect to.
    pub(super) assigned_hub: String,
    state: Mutex<State>,
    pub(super) faults: watch::Sender<Faults>,
    /// Counts what was reported, so that waiting needs no clock.
    pub(super) reported: watch::Sender<u64>,
}

/// The secrets of both identities: primary, secondary.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) module: [Vec<u8>; 2],
    pub(super) device: [Vec<u8>; 2],
    /// Of a group of enrolments; the device's are derived from them.
    pub(super) group: [Vec<u8>; 2],
}

impl Shared {
    pub(super) fn new(
        settings: HubSettings,
        keys: Keys,
        host_names: Vec<String>,
        assigned_hub: String,
        state: State,
    ) -> Self {
        let (faults, reported) = (watch::Sender::default(), watch::Sender::default());
        let state = Mutex::new(state);
        Self { settings, keys, host_names, assigned_hub, state, faults, reported }
    }

    /// Primary and secondary. A registration has the key of the device that comes of it.
    pub(super) fn keys_of(&self, peer: Peer) -> &[Vec<u8>; 2] {
        match peer {
            Peer::Module => &self.keys.module,
            Peer::Device | Peer::Registration => &self.keys.device,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_fault(&self, fault: &Fault) -> bool {
        self.faults.borrow().has(fault)
    }

    /// Unix seconds as this server sees them.
    pub(super) fn now(&self) -> i64 {
        unix_seconds() + self.lock().clock_offset_seconds
    }

    /// Comes back when nothing is frozen.
    pub(super) async fn thawed(&self) {
        let mut faults = self.faults.subscribe();
        // Fails only when the sender is gone, and this holds it.
        faults.wait_for(|faults| !faults.has(&Fault::Frozen)).await.map(drop).ok();
    }

    pub(super) fn refuse(&self, connection: u64, reason: impl Into<String>) {
        let mut state = self.lock();
        if state.refusals.len() < REFUSALS_MAX {
            state.refusals.push(Refusal { connection, reason: reason.into() });
        }
    }

    pub(super) fn record(
        &self,
        connection: u64,
        direction: Direction,
        kind: PacketType,
        topic: Option<String>,
        bytes: Vec<u8>,
    ) {
        let mut state = self.lock();
        if state.packets.len() >= PACKETS_MAX {
            state.packets.pop_front();
        }
        let at = Instant::now();
        state.packets.push_back(Recorded { at, connection, direction, kind, topic, bytes });
    }

    /// Makes this connection its client's only one. The one before ends.
    pub(super) fn begin_session(
        &self,
        peer: Peer,
        connection: u64,
        clean: bool,
    ) -> (bool, mpsc::Receiver<Outgoing>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let mut state = self.lock();
        state.accepted += 1;
        let before = state.endpoint(peer).live.replace(Live { connection, commands });
        if let Some(before) = before.and_then(|live| state.open.get(&live.connection).cloned()) {
            before.abort();
        }
        let endpoint = state.endpoint(peer);
        if clean {
            endpoint.subscriptions.clear();
            endpoint.has_session = false;
        }
        let was_present = std::mem::replace(&mut endpoint.has_session, !clean);
        // What a session restores does not wait for a subscription.
        endpoint.send_inbox();
        (was_present, receiver)
    }

    /// Takes a connection off the books.
    pub(super) fn end(&self, connection: u64) {
        let mut state = self.lock();
        state.open.remove(&connection);
        for endpoint in state.endpoints.values_mut() {
            if endpoint.live.as_ref().is_some_and(|live| live.connection == connection) {
                endpoint.live = None;
                if !endpoint.has_session {
                    endpoint.subscriptions.clear();
                }
            }
        }
    }
}

/// The machine's own clock.
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
