//! One connection to a hub, from the handshake to its end; the next one is another.
//!
//! The event loop of the client library runs in a task of its own and is never cancelled half-way. QoS 1 everywhere, no clean
//! session. The library's own limits of 10 KiB for a packet are below what a twin may have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_core::hub::identity::HubIdentity;
use edge_core::hub::topics;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions,
    Outgoing, Packet, Publish, QoS, SubscribeFilter, SubscribeReasonCode, TlsConfiguration,
    Transport,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::access::Ticket;
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
/// For the last packets, when the connection is given up.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum HubEvent {
    /// Accepted.
    Connected,
    /// All subscriptions are granted.
    Subscribed,
    /// Something came.
    Publish(Publish),
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
}

/// Publications on the socket that the hub has not acknowledged, by packet identifier.
type Unacknowledged = Arc<Mutex<BTreeMap<u16, Instant>>>;

/// The connection's requests are full, or it is over.
#[derive(Debug, thiserror::Error)]
#[error("the connection takes nothing more")]
pub(super) struct NotTaken;

impl Connection {
    /// Begins to connect.
    pub(super) fn open(ticket: Ticket, identity: &HubIdentity, settings: &IotHub) -> Self {
        let client_id = identity.client_id();
        let mut options = MqttOptions::new(client_id, ticket.host, settings.port);
        let password = ticket.password.as_ref().map_or("", |password| password.expose());
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(ticket.tls)))
            .set_credentials(identity.user_name(PRODUCT), password)
            .set_clean_session(false)
            .set_keep_alive(settings.keep_alive)
            .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX)
            .set_inflight(INFLIGHT_MAX)
            .set_pending_throttle(Duration::ZERO);
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS_MAX);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(settings.connect_timeout.as_secs().max(1));
        event_loop.set_network_options(network);
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let subscriptions = topics::subscriptions(identity);
        let unacknowledged = Unacknowledged::default();
        let books = Arc::clone(&unacknowledged);
        let task = tokio::spawn(run(event_loop, client.clone(), subscriptions, events, books));
        Self { client, events: receiver, task, unacknowledged }
    }

    /// How long the hub has owed an acknowledgement, if it does.
    pub(super) fn longest_wait(&self) -> Option<Duration> {
        let waiting = self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.values().min().map(Instant::elapsed)
    }

    /// Hands a publication over.
    pub(super) fn publish(&self, topic: String, payload: Vec<u8>) -> Result<(), NotTaken> {
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).map_err(|_| NotTaken)
    }

    /// Leaves, after what was handed over is written.
    pub(super) async fn close(mut self) {
        let leave = async {
            if self.client.try_disconnect().is_ok() {
                while self.events.recv().await.is_some() {}
            }
        };
        drop(tokio::time::timeout(LEAVE_TIMEOUT, leave).await);
        self.task.abort();
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
            Ok(Event::Incoming(Packet::Publish(publish))) => HubEvent::Publish(publish),
            Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                books().insert(id, Instant::now());
                continue;
            }
            Ok(Event::Incoming(Packet::PubAck(acknowledgement))) => {
                books().remove(&acknowledgement.pkid);
                continue;
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
    Closed { reason: chain(error), is_refused }
}
