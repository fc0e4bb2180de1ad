//! One connection to a hub, from the handshake to its end; the next one is another.
//!
//! The event loop of the client library runs in a task of its own and is never cancelled half-way. QoS 1 everywhere, no clean
//! session. The library's own limits of 10 KiB for a packet are below what a twin may have.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_core::hub::identity::HubIdentity;
use edge_core::hub::provisioning::{self, Registration};
use edge_core::hub::topics;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions,
    Outgoing, Packet, Publish, QoS, SubscribeFilter, SubscribeReasonCode, TlsConfiguration,
    Transport,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::access::Ticket;
use super::clock::remedy_of_certificate;
use crate::config::IotHub;
use crate::journal::chain;

/// What a hub is told of the client in the user name.
const PRODUCT: &str = concat!("edge-module/", env!("CARGO_PKG_VERSION"));
/// Above the 256 KiB of a message with its properties.
const PACKET_BYTES_MAX: usize = 300 << 10;
/// A hub reads no further past so many publications that it has not acknowledged.
const INFLIGHT_MAX: u16 = 16;
/// Requests that may wait inside the client library.
const REQUESTS_MAX: usize = 128;
const EVENTS_MAX: usize = 128;
/// Acknowledgements that a hub may let wait while it sends on: many times what it has in flight, and little memory.
const OWED_MAX: usize = 1_024;
/// For the last packets, when the connection is given up.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum HubEvent {
    /// Accepted.
    Connected,
    /// All subscriptions are granted.
    Subscribed,
    /// The hub has acknowledged a publication that was handed over with this number.
    Taken(u64),
    /// Something came, and when it was read from the socket.
    Publish(Publish, Instant),
    /// It is over.
    Closed(Closed),
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) reason: String,
    /// Who we are was not believed.
    pub(super) is_refused: bool,
}

/// A connection that is being made, or is there.
pub(super) struct Connection {
    client: AsyncClient,
    pub(super) events: mpsc::Receiver<HubEvent>,
    task: JoinHandle<()>,
    unacknowledged: Unacknowledged,
    /// Acknowledgements of ours that found no room among the requests; as many as the hub has in flight, which are sixteen of
    /// those that keep their own rules.
    owed: Mutex<VecDeque<Publish>>,
}

/// Publications that the hub has not acknowledged.
type Unacknowledged = Arc<Mutex<Books>>;

#[derive(Debug, Default)]
struct Books {
    /// Numbers of those that wait for the socket, in their order, in which the client library gives packet identifiers.
    waiting: VecDeque<Option<u64>>,
    /// On the socket, since when, by packet identifier.
    on_socket: BTreeMap<u16, (Instant, Option<u64>)>,
    /// When the hub has acknowledged one last: slow is not silent.
    answered: Option<Instant>,
}

/// The connection's requests are full, or it is over.
#[derive(Debug, thiserror::Error)]
#[error("the connection takes nothing more")]
pub(super) struct NotTaken;

/// As whom a connection is made, and what it is for.
struct Session {
    client_id: String,
    user_name: String,
    port: u16,
    /// Whether the other side forgets what was subscribed to.
    is_clean: bool,
    subscriptions: Vec<String>,
}

impl Connection {
    /// Begins to connect.
    pub(super) fn open(ticket: Ticket, identity: &HubIdentity, settings: &IotHub) -> Self {
        let session = Session {
            client_id: identity.client_id(),
            user_name: identity.user_name(PRODUCT),
            port: settings.port,
            is_clean: false,
            subscriptions: topics::subscriptions(identity),
        };
        Self::begin(ticket, session, settings)
    }

    /// Begins to connect to the provisioning service.
    pub(super) fn open_registration(
        ticket: Ticket,
        registration: &Registration,
        settings: &IotHub,
    ) -> Self {
        let session = Session {
            client_id: registration.client_id(),
            user_name: registration.user_name(PRODUCT),
            port: settings.provisioning.port,
            is_clean: true,
            subscriptions: vec![provisioning::SUBSCRIPTION.to_owned()],
        };
        Self::begin(ticket, session, settings)
    }

    fn begin(ticket: Ticket, session: Session, settings: &IotHub) -> Self {
        let mut options = MqttOptions::new(session.client_id, ticket.host, session.port);
        let password = ticket.password.as_ref().map_or("", |password| password.expose());
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(ticket.tls)))
            .set_credentials(session.user_name, password)
            .set_clean_session(session.is_clean)
            // What a hub keeps for us is acknowledged by whoever takes it.
            .set_manual_acks(!session.is_clean)
            .set_keep_alive(settings.keep_alive)
            .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX)
            .set_inflight(INFLIGHT_MAX)
            .set_pending_throttle(Duration::ZERO);
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS_MAX);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(settings.connect_timeout.as_secs().max(1));
        event_loop.set_network_options(network);
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let unacknowledged = Unacknowledged::default();
        let books = Arc::clone(&unacknowledged);
        let task =
            tokio::spawn(run(event_loop, client.clone(), session.subscriptions, events, books));
        Self { client, events: receiver, task, unacknowledged, owed: Mutex::default() }
    }

    /// How long the hub has owed an acknowledgement, if it does.
    pub(super) fn longest_wait(&self) -> Option<Duration> {
        let waiting = self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = waiting.on_socket.values().map(|(since, _)| *since).min()?;
        Some(waiting.answered.map_or(oldest, |answered| answered.max(oldest)).elapsed())
    }

    /// For what is acknowledged later.
    pub(super) fn client(&self) -> AsyncClient {
        self.client.clone()
    }

    /// Acknowledges what came, after what is owed already. What finds no room is tried again with the next, and by
    /// [`Self::acknowledge_rest`].
    pub(super) fn acknowledge(&self, publish: &Publish) {
        let mut stub = Publish::new("", publish.qos, Vec::new());
        stub.pkid = publish.pkid;
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).push_back(stub);
        self.acknowledge_rest();
    }

    /// Whether the hub sends on and on, and takes nothing.
    pub(super) fn is_overrun(&self) -> bool {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).len() > OWED_MAX
    }

    /// Acknowledges what found no room before.
    pub(super) fn acknowledge_rest(&self) {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(publish) = owed.front()
            && self.client.try_ack(publish).is_ok()
        {
            owed.pop_front();
        }
    }

    /// Hands a publication over.
    pub(super) fn publish(&self, topic: String, payload: Vec<u8>) -> Result<(), NotTaken> {
        self.hand_over(topic, payload, None)
    }

    /// Hands a publication over whose acknowledgement is told as [`HubEvent::Taken`].
    pub(super) fn publish_numbered(
        &self,
        topic: String,
        payload: Vec<u8>,
        number: u64,
    ) -> Result<(), NotTaken> {
        self.hand_over(topic, payload, Some(number))
    }

    fn hand_over(
        &self,
        topic: String,
        payload: Vec<u8>,
        number: Option<u64>,
    ) -> Result<(), NotTaken> {
        // Held until it is on the books: the task that empties them may run on another thread.
        let mut books = self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.client.try_publish(topic, QoS::AtLeastOnce, false, payload);
        taken.map_err(|_| NotTaken)?;
        books.waiting.push_back(number);
        Ok(())
    }

    /// Leaves, after what was handed over is written. Gives the numbers of what was acknowledged until then.
    pub(super) async fn close(mut self) -> Vec<u64> {
        let mut taken = Vec::new();
        let leave = async {
            if self.client.try_disconnect().is_ok() {
                while let Some(event) = self.events.recv().await {
                    if let HubEvent::Taken(number) = event {
                        taken.push(number);
                    }
                }
            }
        };
        drop(tokio::time::timeout(LEAVE_TIMEOUT, leave).await);
        self.task.abort();
        taken
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut event_loop: EventLoop,
    client: AsyncClient,
    subscriptions: Vec<String>,
    events: mpsc::Sender<HubEvent>,
    unacknowledged: Unacknowledged,
) {
    let books = || unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let event = match event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                let filters = subscriptions
                    .iter()
                    .map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
                if client.try_subscribe_many(filters).is_err() {
                    let reason = "the client library does not subscribe".to_owned();
                    HubEvent::Closed(Closed { reason, is_refused: false })
                } else {
                    HubEvent::Connected
                }
            }
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                let is_refused =
                    |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Failure);
                if answer.return_codes.iter().any(is_refused) {
                    let reason = format!("a subscription of {subscriptions:?} was refused");
                    HubEvent::Closed(Closed { reason, is_refused: false })
                } else {
                    HubEvent::Subscribed
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                HubEvent::Publish(publish, Instant::now())
            }
            Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                let mut books = books();
                let number = books.waiting.pop_front().flatten();
                books.on_socket.insert(id, (Instant::now(), number));
                continue;
            }
            Ok(Event::Incoming(Packet::PubAck(acknowledgement))) => {
                let mut books = books();
                books.answered = Some(Instant::now());
                match books.on_socket.remove(&acknowledgement.pkid) {
                    Some((_, Some(number))) => HubEvent::Taken(number),
                    Some((_, None)) | None => continue,
                }
            }
            Ok(Event::Incoming(_) | Event::Outgoing(_)) => continue,
            Err(error) => HubEvent::Closed(closed(&error)),
        };
        let is_over = matches!(event, HubEvent::Closed(_));
        if events.send(event).await.is_err() || is_over {
            return;
        }
    }
}

fn closed(error: &ConnectionError) -> Closed {
    let is_refused = matches!(
        error,
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword
        )
    );
    let remedy = remedy_of_certificate(error).unwrap_or_default();
    Closed { reason: format!("{}{remedy}", chain(error)), is_refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hub_that_sends_on_and_takes_no_acknowledgement_is_noticed_before_memory_is() {
        // Nobody drives the event loop, as when the socket takes nothing.
        let options = MqttOptions::new("gw-7", "hub.example", 8883);
        let (client, _event_loop) = AsyncClient::new(options, REQUESTS_MAX);
        let (_sender, events) = mpsc::channel(1);
        let task = tokio::spawn(std::future::pending());
        let (unacknowledged, owed) = (Unacknowledged::default(), Mutex::default());
        let connection = Connection { client, events, task, unacknowledged, owed };
        let mut publish = Publish::new("topic", QoS::AtLeastOnce, vec![0; 1_000]);
        for id in 1..=REQUESTS_MAX + OWED_MAX {
            publish.pkid = u16::try_from(id).expect("a few");
            connection.acknowledge(&publish);
        }
        assert!(!connection.is_overrun());
        publish.pkid += 1;
        connection.acknowledge(&publish);
        assert!(connection.is_overrun());
    }
}
