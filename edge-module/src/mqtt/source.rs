//! One MQTT session: connect, subscribe, hand on what comes, connect again.
//!
//! QoS 1 everywhere. The event loop runs in a task of its own and is never cancelled half-way: the client library may have
//! taken a packet into its books that is not yet on the socket. After each CONNACK all filters are subscribed again,
//! whether the broker kept the session or not. A session whose events nobody takes for a while stays connected. The wait between attempts doubles from `reconnect-min` to `reconnect-max`,
//! with jitter, and starts over when the broker accepts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Outgoing,
    Packet, PubAck, Publish, QoS, SubscribeFilter,
};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::acknowledgements::{Acknowledgements, Receipt};
use crate::config::{Mqtt, Secret, Settings, read_secret};
use crate::telemetry;

/// A connection that lasted less long than this, so often in a row, was taken over by somebody with our name.
const SHORT_LIFE: Duration = Duration::from_secs(5);
const SHORT_LIVES_MAX: u32 = 3;
/// Requests that may wait inside the client library.
const REQUESTS_MAX: usize = 65_536;
/// Refused topics that the page names; the rest is counted.
const REFUSED_NAMED_MAX: usize = 16;
/// For writing what the client library does not write by itself.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Unacknowledged publications of ours to machines. The client library takes its packet identifiers from as many.
const INFLIGHT_MAX: u16 = 1_000;
/// The other sessions publish nothing: identifiers for subscriptions that are not answered yet.
const INFLIGHT_MAX_OF_READERS: u16 = 64;

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// Sensors to the stop path: starts clean, acknowledges at once, since old data is no ground to stop a machine.
    Protection,
    /// Commands out, reports in.
    Actuator,
    /// Sensors to the journal: the broker keeps it while we are away, acknowledged by hand when durable.
    Recording,
}

impl SessionKind {
    const fn inflight_max(self) -> u16 {
        match self {
            Self::Protection | Self::Recording => INFLIGHT_MAX_OF_READERS,
            Self::Actuator => INFLIGHT_MAX,
        }
    }

    /// End of the client id, and the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protection => "protection",
            Self::Actuator => "actuator",
            Self::Recording => "recording",
        }
    }

    const fn is_persistent(self) -> bool {
        match self {
            Self::Recording => true,
            Self::Protection | Self::Actuator => false,
        }
    }
}

/// What happened on a session.
#[derive(Debug)]
pub enum SessionEvent {
    /// The broker accepted; the filters are being subscribed.
    Connected,
    /// The broker has answered a subscription: it brings all filters but these.
    Subscribed {
        /// Filters that the broker refused, of all.
        refused: Vec<String>,
    },
    /// The connection is gone; it is tried again.
    Disconnected,
    /// A message for us.
    Message {
        /// The message.
        publish: Publish,
        /// When it was read from the socket.
        received: Instant,
        /// What is owed for it, where acknowledgements are given by hand.
        receipt: Option<Receipt>,
    },
    /// The oldest publication of ours that was not yet reported is on the socket.
    Written,
}

/// Why a session cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The password cannot be read.
    #[error("mqtt.password-file: {0}")]
    Password(String),
}

/// Who we are for the brokers.
#[derive(Clone, Debug)]
pub struct Credentials(Option<(String, Secret)>);

impl Credentials {
    /// Reads the password, if there is a user.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(mqtt: &Mqtt) -> Result<Self, SessionError> {
        if mqtt.username.is_empty() {
            return Ok(Self(None));
        }
        let password = if mqtt.password_file.as_os_str().is_empty() {
            Secret::default()
        } else {
            read_secret(&mqtt.password_file).map_err(SessionError::Password)?
        };
        Ok(Self(Some((mqtt.username.clone(), password))))
    }
}

/// What a session subscribes to with each connection.
#[derive(Clone, Debug)]
pub struct Filters(Arc<Mutex<Wanted>>);

#[derive(Debug)]
struct Wanted {
    filters: Vec<String>,
    /// Subscriptions on their way to the socket, the oldest first.
    requested: VecDeque<Vec<String>>,
}

impl Wanted {
    /// Gives the client library a subscription.
    fn subscribe(
        &mut self,
        client: &AsyncClient,
        filters: Vec<String>,
    ) -> Result<(), rumqttc::ClientError> {
        let requests =
            filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
        client.try_subscribe_many(requests)?;
        self.requested.push_back(filters);
        Ok(())
    }
}

impl Filters {
    /// Subscribes to these with the next connection, and over `client`, the session's own, to what is new at once; what is gone
    /// no more. Also without a connection: it may be there before we have heard of it. Requests of a broken one are dropped.
    pub fn exchange(&self, client: &AsyncClient, filters: Vec<String>) {
        let before: BTreeSet<String> = self.replace(filters.clone()).into_iter().collect();
        let now: BTreeSet<String> = filters.into_iter().collect();
        let added: Vec<String> = now.difference(&before).cloned().collect();
        if !added.is_empty()
            && let Err(error) = self.lock().subscribe(client, added)
        {
            error!(%error, "topics of new machines not subscribed; the next connection does it");
        }
        for gone in before.difference(&now) {
            if let Err(error) = client.try_unsubscribe(gone) {
                warn!(%error, topic = gone, "still subscribed until the next connection");
            }
        }
    }

    /// Subscribes to these with the next connection. Gives back what they were before.
    pub fn replace(&self, filters: Vec<String>) -> Vec<String> {
        std::mem::replace(&mut self.lock().filters, filters)
    }

    /// What they are.
    #[must_use]
    pub fn get(&self) -> Vec<String> {
        self.lock().filters.clone()
    }

    // A panic while holding the lock leaves lists that are still lists.
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that is not running yet.
pub struct Session {
    kind: SessionKind,
    client: AsyncClient,
    acknowledgements: Acknowledgements,
    /// Number of the connection.
    connection: u64,
    event_loop: EventLoop,
    filters: Filters,
    reconnect_min: Duration,
    reconnect_max: Duration,
    connected: Option<Instant>,
    short_lives: u32,
    /// Subscriptions on the socket that are not answered yet, by packet identifier.
    asked: BTreeMap<u16, Vec<String>>,
    refused: BTreeSet<String>,
}

impl Session {
    /// Prepares a session that will subscribe to `filters`.
    ///
    /// # Errors
    /// The password cannot be read.
    pub fn new(
        settings: &Settings,
        kind: SessionKind,
        filters: Vec<String>,
    ) -> Result<Self, SessionError> {
        let address = (settings.mqtt.host.as_str(), settings.mqtt.port);
        let credentials = Credentials::read(&settings.mqtt)?;
        let client_id = settings.client_id(kind.as_str());
        Ok(Self::with_broker(settings, kind, client_id, address, &credentials, filters))
    }

    /// Prepares a session with any broker. Reads nothing and waits for nothing.
    #[must_use]
    pub fn with_broker(
        settings: &Settings,
        kind: SessionKind,
        client_id: String,
        (host, port): (&str, u16),
        credentials: &Credentials,
        filters: Vec<String>,
    ) -> Self {
        let mqtt = &settings.mqtt;
        let mut options = MqttOptions::new(client_id, host, port);
        options
            .set_keep_alive(mqtt.keep_alive)
            .set_clean_session(!kind.is_persistent())
            .set_manual_acks(kind.is_persistent())
            .set_max_packet_size(mqtt.packet_bytes_max, mqtt.packet_bytes_max)
            .set_inflight(kind.inflight_max());
        if let Some((user, password)) = &credentials.0 {
            options.set_credentials(user, password.expose());
        }
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS_MAX);
        event_loop.network_options.set_tcp_nodelay(true);
        Self {
            kind,
            acknowledgements: Acknowledgements::new(client.clone()),
            client,
            connection: 0,
            event_loop,
            filters: Filters(Arc::new(Mutex::new(Wanted { filters, requested: VecDeque::new() }))),
            reconnect_min: mqtt.reconnect_min,
            reconnect_max: mqtt.reconnect_max,
            connected: None,
            short_lives: 0,
            asked: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// To change what is subscribed to with each connection.
    #[must_use]
    pub fn filters(&self) -> Filters {
        self.filters.clone()
    }

    /// For publishing.
    #[must_use]
    pub fn client(&self) -> AsyncClient {
        self.client.clone()
    }

    /// For acknowledging by hand.
    #[must_use]
    pub fn acknowledgements(&self) -> Acknowledgements {
        self.acknowledgements.clone()
    }

    /// Runs until the receiver is dropped, or until the broker has closed the connection after a disconnect of ours.
    pub async fn run(mut self, events: mpsc::Sender<SessionEvent>) {
        let mut wait = self.reconnect_min;
        let session = self.kind.as_str();
        let mut is_leaving = false;
        loop {
            let event = match self.next_event().await {
                Ok(event) => event,
                // Not before: what the broker has not read yet would be lost with the connection.
                Err(_) if is_leaving => return,
                Err(error) => {
                    let (host, port) = self.event_loop.mqtt_options.broker_address();
                    let what = if self.connected.is_some() {
                        "broker connection lost"
                    } else {
                        "no broker connection"
                    };
                    warn!(session, broker = format!("{host}:{port}"), error = %describe(&error), wait_ms = wait.as_millis() as u64, "{what}");
                    metrics::counter!(telemetry::MQTT_DISCONNECTS, "session" => session)
                        .increment(1);
                    self.connection = self.acknowledgements.forget(|| self.event_loop.clean());
                    self.notice_rival();
                    self.discard_oversized_backlog(&error);
                    if events.send(SessionEvent::Disconnected).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(jittered(wait)).await;
                    wait = (wait * 2).min(self.reconnect_max);
                    if !self.kind.is_persistent() {
                        // What was to be sent before the connection broke is old: whoever wants it asks again.
                        let mut wanted = self.filters.lock();
                        self.event_loop.clean();
                        self.event_loop.pending.clear();
                        wanted.requested.clear();
                    }
                    continue;
                }
            };
            is_leaving |= matches!(event, Event::Outgoing(Outgoing::Disconnect));
            let Some(event) = self.translate(event) else { continue };
            if matches!(event, SessionEvent::Connected) {
                // After short lives it grows: two clients with one name must not chase each other without pause.
                if self.short_lives < SHORT_LIVES_MAX {
                    wait = self.reconnect_min;
                }
                self.connected = Some(Instant::now());
            }
            if !self.hand_on(event, &events).await {
                return;
            }
        }
    }

    async fn next_event(&mut self) -> Result<Event, ConnectionError> {
        let event = self.event_loop.poll().await?;
        match &event {
            // A sign of life as good as the answer to a ping, which may stand behind many megabytes.
            Event::Incoming(_) => self.event_loop.state.await_pingresp = false,
            Event::Outgoing(Outgoing::PubAck(_)) if self.kind.is_persistent() => {
                let waiting = self.acknowledgements.take();
                let packets = waiting.into_iter().map(|id| Packet::PubAck(PubAck::new(id)));
                self.write(packets).await?;
            }
            Event::Outgoing(_) => {}
        }
        Ok(event)
    }

    async fn write(
        &mut self,
        packets: impl Iterator<Item = Packet>,
    ) -> Result<(), ConnectionError> {
        let Some(network) = &mut self.event_loop.network else { return Ok(()) };
        let write = async {
            for packet in packets {
                network.write(packet).await?;
            }
            network.flush().await
        };
        let written = tokio::time::timeout(WRITE_TIMEOUT, write).await;
        Ok(written.map_err(|_| ConnectionError::FlushTimeout)??)
    }

    /// Waits until the event is taken, and keeps the connection meanwhile. Says whether anybody takes events still.
    async fn hand_on(&mut self, event: SessionEvent, events: &mpsc::Sender<SessionEvent>) -> bool {
        let interval = self.event_loop.mqtt_options.keep_alive() / 2;
        loop {
            tokio::select! {
                biased;
                permit = events.reserve() => {
                    let Ok(permit) = permit else { return false };
                    permit.send(event);
                    return true;
                }
                () = tokio::time::sleep(interval) => {
                    if let Err(error) = self.write([Packet::PingReq].into_iter()).await {
                        debug!(session = self.kind.as_str(), %error, "no sign of life written");
                    }
                }
            }
        }
    }

    /// A broker ends the older of two connections with one client id: then both come back for ever, in turn.
    fn notice_rival(&mut self) {
        let Some(connected) = self.connected.take() else { return };
        self.short_lives =
            if connected.elapsed() < SHORT_LIFE { self.short_lives.saturating_add(1) } else { 0 };
        if self.short_lives == SHORT_LIVES_MAX {
            error!(
                session = self.kind.as_str(),
                client_id = self.event_loop.mqtt_options.client_id(),
                "the broker ends each connection soon after it accepted it: another client may use this client id; \
                 give each module a device.id or mqtt.client-id of its own"
            );
        }
    }

    fn translate(&mut self, event: Event) -> Option<SessionEvent> {
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let receipt = Receipt::new(&publish, self.connection);
                Some(SessionEvent::Message { publish, received: Instant::now(), receipt })
            }
            Event::Incoming(Packet::ConnAck(acknowledgement)) => {
                if acknowledgement.code != ConnectReturnCode::Success {
                    return None;
                }
                info!(
                    session = self.kind.as_str(),
                    is_session_kept = acknowledgement.session_present,
                    "broker connected"
                );
                if self.kind.is_persistent() {
                    self.event_loop.mqtt_options.set_clean_session(false);
                }
                self.subscribe();
                Some(SessionEvent::Connected)
            }
            Event::Outgoing(Outgoing::Subscribe(packet_id)) => {
                let requested = self.filters.lock().requested.pop_front();
                self.asked.insert(packet_id, requested.unwrap_or_default());
                None
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                let asked = self.asked.remove(&answer.pkid).unwrap_or_default();
                Some(self.handle_answer(&asked, &answer.return_codes))
            }
            Event::Incoming(Packet::UnsubAck(_)) => Some(self.tell_refused()),
            Event::Outgoing(Outgoing::Publish(_)) => Some(SessionEvent::Written),
            Event::Incoming(_) | Event::Outgoing(_) => None,
        }
    }

    fn subscribe(&mut self) {
        self.asked.clear();
        self.refused.clear();
        let mut wanted = self.filters.lock();
        let filters = wanted.filters.clone();
        if filters.is_empty() {
            return;
        }
        let (session, count) = (self.kind.as_str(), filters.len());
        match wanted.subscribe(&self.client, filters) {
            Ok(()) => debug!(session, filters = count, "subscribing"),
            Err(error) => error!(session, %error, "cannot subscribe"),
        }
    }

    fn handle_answer(
        &mut self,
        asked: &[String],
        codes: &[rumqttc::SubscribeReasonCode],
    ) -> SessionEvent {
        let session = self.kind.as_str();
        for (filter, code) in asked.iter().zip(codes) {
            if *code == rumqttc::SubscribeReasonCode::Failure {
                error!(session, filter, "broker refused the subscription: check its access list");
                self.refused.insert(filter.clone());
            } else {
                self.refused.remove(filter);
            }
        }
        self.tell_refused()
    }

    /// What the broker withholds of what is wanted now.
    fn tell_refused(&mut self) -> SessionEvent {
        let wanted = self.filters.get();
        self.refused.retain(|filter| wanted.contains(filter));
        SessionEvent::Subscribed { refused: self.refused.iter().cloned().collect() }
    }

    /// A message over the packet limit in a kept session would come back for ever: the session is begun anew, once.
    fn discard_oversized_backlog(&mut self, error: &ConnectionError) {
        let is_oversized = describe(error).contains("ayload size limit");
        if is_oversized && self.kind.is_persistent() {
            error!(
                session = self.kind.as_str(),
                "a message is over mqtt.packet-bytes-max: the broker's backlog is discarded; lower the broker's own limit"
            );
            metrics::counter!(telemetry::MQTT_SESSIONS_DISCARDED).increment(1);
            self.event_loop.mqtt_options.set_clean_session(true);
        }
    }
}

/// What to show of a session that hears nothing of these filters.
///
/// # Errors
/// There are some.
pub fn check_refused(refused: &[String]) -> Result<(), String> {
    if refused.is_empty() {
        return Ok(());
    }
    let named = refused.iter().take(REFUSED_NAMED_MAX).map(String::as_str).collect::<Vec<_>>();
    let more = match refused.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = named.join(", ");
    Err(format!("broker refuses the subscription to {named}{more}: check its access list"))
}

fn describe(error: &ConnectionError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// Half to the whole of `wait`: devices that lost the same broker do not come back in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + 0.5 * random_fraction())
}

/// A fraction from 0 to 1, good enough to spread retries.
#[must_use]
pub fn random_fraction() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};

    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
