//! One connection of a client, from TLS to its end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck, Unsubscribe,
};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::faults::Faults;
use super::login::{Login, authenticate};
use super::requests::take;
use super::state::{Outgoing, Shared};
use super::token::is_expired;
use super::topics::Channel;
use super::wire::{Ending, Wire};
use super::{Fault, Peer};

/// From the connection of TCP to the CONNECT.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
/// Publishes without an acknowledgement, in either direction.
const IN_FLIGHT_MAX: usize = 16;
/// edgeHub's `ConnectionIdleTimeout` and IoT Hub's 1177 s.
const MODULE_KEEP_ALIVE_MAX: Duration = Duration::from_secs(600);
const DEVICE_KEEP_ALIVE_MAX: Duration = Duration::from_secs(1_177);

/// A connection that is on the books for as long as this lives, however its task ends.
struct OnTheBooks {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for OnTheBooks {
    fn drop(&mut self) {
        self.shared.end(self.number);
    }
}

/// Serves a connection until it ends, and says why if it was this side that ended it.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, number: u64) {
    let books = OnTheBooks { shared, number };
    let shared = &books.shared;
    match Connection::open(shared, stream, number).await {
        Ok(mut connection) => {
            let ending = connection.run().await;
            if let Err(Ending::Refused(reason)) = ending {
                shared.refuse(number, reason);
            }
        }
        Err(Ending::Refused(reason)) => shared.refuse(number, reason),
        Err(Ending::Gone) => {}
    }
}

/// An acknowledgement that is owed.
struct Owed {
    packet_id: u16,
    /// `None`: withheld for as long as a fault says so.
    due: Option<Instant>,
}

struct Connection {
    shared: Arc<Shared>,
    wire: Wire,
    number: u64,
    login: Login,
    commands: mpsc::Receiver<Outgoing>,
    /// Waits for its turn to be in flight.
    pending: VecDeque<Outgoing>,
    /// Publishes to the client without its acknowledgement, by packet id: their numbers in the inbox.
    in_flight: BTreeMap<u16, Option<u64>>,
    last_packet_id: u16,
    owed: VecDeque<Owed>,
    faults: watch::Receiver<Faults>,
    silence_max: Duration,
    last_heard: Instant,
    /// Too much was owed to read on.
    was_paused: bool,
    token_check: Interval,
}

impl Connection {
    /// TLS, CONNECT, CONNACK.
    async fn open(shared: &Arc<Shared>, stream: TcpStream, number: u64) -> Result<Self, Ending> {
        let opening = async {
            shared.thawed().await;
            if shared.has_fault(&Fault::CloseAtOnce) {
                return Err(Ending::Gone);
            }
            stream.set_nodelay(true)?;
            let acceptor = TlsAcceptor::from(Arc::clone(&shared.lock().server_config));
            let stream = acceptor.accept(stream).await?;
            let mut wire = Wire::new(Arc::clone(shared), stream, number);
            if wire.is_http().await? {
                wire.tell_date().await?;
                return Err(Ending::Gone);
            }
            match wire.read().await? {
                Some(Packet::Connect(connect)) => Ok((wire, connect)),
                Some(other) => Err(Ending::Refused(format!("{other:?} instead of CONNECT"))),
                None => Err(Ending::Gone),
            }
        };
        let (mut wire, connect) = timeout(CONNECT_DEADLINE, opening)
            .await
            .map_err(|_| Ending::Refused("no CONNECT within 60 s".to_owned()))??;
        if shared.has_fault(&Fault::NoConnack) {
            wire.swallow().await;
            return Err(Ending::Gone);
        }
        let login = match judge(shared, &connect, wire.certificates()) {
            Ok(login) => login,
            Err((code, reason)) => {
                shared.refuse(number, reason);
                wire.send(Packet::ConnAck(ConnAck::new(code, false))).await?;
                wire.close().await;
                return Err(Ending::Gone);
            }
        };
        Self::begin(shared, wire, number, login, &connect).await
    }

    async fn begin(
        shared: &Arc<Shared>,
        mut wire: Wire,
        number: u64,
        login: Login,
        connect: &Connect,
    ) -> Result<Self, Ending> {
        let (was_present, commands) =
            shared.begin_session(login.peer, number, connect.clean_session);
        wire.send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, was_present))).await?;
        let check = shared.settings.token_check_interval;
        let mut token_check = interval_at(Instant::now() + check, check);
        token_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            shared: Arc::clone(shared),
            wire,
            number,
            login,
            commands,
            pending: VecDeque::new(),
            in_flight: BTreeMap::new(),
            last_packet_id: 0,
            owed: VecDeque::new(),
            faults: shared.faults.subscribe(),
            silence_max: keep_alive(login.peer, connect.keep_alive).mul_f64(1.5),
            last_heard: Instant::now(),
            was_paused: false,
            token_check,
        })
    }

    async fn run(&mut self) -> Result<(), Ending> {
        loop {
            if self.shared.has_fault(&Fault::Frozen) {
                self.shared.thawed().await;
                self.last_heard = Instant::now();
            }
            self.send_pending().await?;
            self.acknowledge().await?;
            let is_reading = self.owed.len() < IN_FLIGHT_MAX;
            // A client is not silent that was not listened to.
            if !is_reading || self.was_paused {
                self.last_heard = Instant::now();
            }
            self.was_paused = !is_reading;
            let is_taking = self.pending.is_empty() && self.in_flight.len() < IN_FLIGHT_MAX;
            let due = self.owed.front().and_then(|owed| owed.due);
            let silent_at = self.last_heard + self.silence_max;
            tokio::select! {
                packet = self.wire.read(), if is_reading => match packet? {
                    Some(packet) => self.handle(packet).await?,
                    None => return Ok(()),
                },
                Some(outgoing) = self.commands.recv(), if is_taking => {
                    self.pending.push_back(outgoing);
                }
                () = sleep_until(due.unwrap_or(silent_at)), if due.is_some() => {}
                () = sleep_until(silent_at), if is_reading => self.handle_silence()?,
                _ = self.token_check.tick() => self.check_token()?,
                Ok(()) = self.faults.changed() => self.handle_faults(),
            }
        }
    }

    async fn handle(&mut self, packet: Packet) -> Result<(), Ending> {
        self.last_heard = Instant::now();
        match packet {
            Packet::Publish(publish) => self.handle_publish(&publish),
            Packet::PubAck(ack) => self.handle_acknowledgement(ack.pkid),
            Packet::Subscribe(subscribe) => self.handle_subscribe(&subscribe).await,
            Packet::Unsubscribe(unsubscribe) => self.handle_unsubscribe(&unsubscribe).await,
            Packet::PingReq => self.wire.send(Packet::PingResp).await,
            Packet::Disconnect => Err(Ending::Gone),
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::PubRec(_)
            | Packet::PubRel(_)
            | Packet::PubComp(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => Err(Ending::Refused(format!("{packet:?} from a client"))),
        }
    }

    fn handle_publish(&mut self, publish: &Publish) -> Result<(), Ending> {
        match publish.qos {
            QoS::ExactlyOnce => return Err(Ending::Refused("a publish of QoS 2".to_owned())),
            QoS::AtLeastOnce | QoS::AtMostOnce => {}
        }
        let taken = take(&self.shared, self.login.peer, self.number, publish);
        if let Some(reason) = taken.closes {
            return Err(Ending::Refused(reason));
        }
        if self.shared.has_fault(&Fault::KeepThenDrop) {
            return Err(Ending::Gone);
        }
        if publish.qos == QoS::AtLeastOnce {
            let due = self.due_after(self.owed.back().and_then(|owed| owed.due));
            self.owed.push_back(Owed { packet_id: publish.pkid, due });
        }
        self.pending.extend(taken.answer);
        Ok(())
    }

    /// When the acknowledgement after one of `before` goes out.
    fn due_after(&self, before: Option<Instant>) -> Option<Instant> {
        let faults = self.shared.faults.borrow();
        if faults.has(&Fault::NoPuback) {
            return None;
        }
        let now = Instant::now();
        Some(
            faults.slow_pubacks().map_or(now, |pause| before.map_or(now, |at| at.max(now)) + pause),
        )
    }

    /// Sends the acknowledgements that are due.
    async fn acknowledge(&mut self) -> Result<(), Ending> {
        while let Some(owed) = self.owed.front() {
            if owed.due.is_none_or(|due| due > Instant::now()) {
                break;
            }
            let packet_id = owed.packet_id;
            self.owed.pop_front();
            self.wire.send(Packet::PubAck(PubAck::new(packet_id))).await?;
            if self.shared.has_fault(&Fault::PubackThenDrop) {
                return Err(Ending::Gone);
            }
        }
        Ok(())
    }

    /// What a fault withheld goes out when the fault is over.
    fn handle_faults(&mut self) {
        let mut before = None;
        for index in 0..self.owed.len() {
            let due = self.due_after(before);
            self.owed[index].due = due;
            before = due;
        }
    }

    fn handle_acknowledgement(&mut self, packet_id: u16) -> Result<(), Ending> {
        let Some(inbox_number) = self.in_flight.remove(&packet_id) else {
            let reason = format!("an acknowledgement of {packet_id}, which was not sent");
            return Err(Ending::Refused(reason));
        };
        self.remove_from_inbox(inbox_number);
        Ok(())
    }

    fn remove_from_inbox(&self, number: Option<u64>) {
        if number.is_some() {
            let mut state = self.shared.lock();
            let inbox = &mut state.endpoint(self.login.peer).inbox;
            inbox.retain(|message| message.inbox_number != number);
        }
    }

    async fn handle_subscribe(&mut self, subscribe: &Subscribe) -> Result<(), Ending> {
        let mut codes = Vec::new();
        for filter in &subscribe.filters {
            let channel = Channel::of_filter(self.login.peer, &self.shared.settings, &filter.path);
            let Some(channel) = channel else {
                self.shared.refuse(self.number, format!("the filter {}", filter.path));
                codes.push(SubscribeReasonCode::Failure);
                continue;
            };
            let granted = match filter.qos {
                QoS::AtMostOnce => QoS::AtMostOnce,
                QoS::AtLeastOnce | QoS::ExactlyOnce => QoS::AtLeastOnce,
            };
            let mut state = self.shared.lock();
            let endpoint = state.endpoint(self.login.peer);
            let is_new = endpoint.subscriptions.insert(channel, granted).is_none();
            // A session that had subscribed before got its messages without asking. They follow the SUBACK, which this task sends.
            if is_new && channel == Channel::Inbox {
                endpoint.send_inbox();
            }
            codes.push(SubscribeReasonCode::Success(granted));
        }
        self.wire.send(Packet::SubAck(SubAck::new(subscribe.pkid, codes))).await
    }

    async fn handle_unsubscribe(&mut self, unsubscribe: &Unsubscribe) -> Result<(), Ending> {
        for filter in &unsubscribe.topics {
            let channel = Channel::of_filter(self.login.peer, &self.shared.settings, filter);
            if let Some(channel) = channel {
                let mut state = self.shared.lock();
                state.endpoint(self.login.peer).subscriptions.remove(&channel);
            }
        }
        self.wire.send(Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))).await
    }

    /// Sends what waits, as far as it was subscribed to and fits in flight.
    async fn send_pending(&mut self) -> Result<(), Ending> {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let Some(outgoing) = self.pending.pop_front() else { break };
            let peer = self.login.peer;
            let subscribed =
                self.shared.lock().endpoint(peer).subscriptions.get(&outgoing.channel).copied();
            let Some(qos) = subscribed else { continue };
            let mut publish = Publish::new(outgoing.topic, qos, outgoing.body);
            if qos == QoS::AtLeastOnce {
                publish.pkid = self.next_packet_id();
                self.in_flight.insert(publish.pkid, outgoing.inbox_number);
            } else {
                self.remove_from_inbox(outgoing.inbox_number);
            }
            self.wire.send(Packet::Publish(publish)).await?;
        }
        Ok(())
    }

    fn next_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains_key(&self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    fn handle_silence(&self) -> Result<(), Ending> {
        if self.shared.has_fault(&Fault::Frozen) {
            return Ok(());
        }
        Err(Ending::Refused(format!("nothing was heard for {:?}", self.silence_max)))
    }

    fn check_token(&self) -> Result<(), Ending> {
        let grace = self.shared.settings.token_grace;
        if is_expired(self.login.expires, self.shared.now(), grace) {
            let reason = format!("the token of the connection ended at {}", self.login.expires);
            return Err(Ending::Refused(reason));
        }
        Ok(())
    }
}

/// The code to refuse with, and why.
fn judge(
    shared: &Shared,
    connect: &Connect,
    certificates: &[CertificateDer<'_>],
) -> Result<Login, (ConnectReturnCode, String)> {
    if shared.has_fault(&Fault::Unavailable) {
        return Err((ConnectReturnCode::ServiceUnavailable, "told to be unavailable".to_owned()));
    }
    if shared.has_fault(&Fault::RefuseCredentials) {
        return Err((ConnectReturnCode::NotAuthorized, "told to refuse".to_owned()));
    }
    authenticate(shared, connect, certificates)
        .map_err(|error| (ConnectReturnCode::NotAuthorized, format!("{error:#}")))
}

/// What is in force of what a client asks for; 0 asks for none.
fn keep_alive(peer: Peer, seconds: u16) -> Duration {
    let longest = match peer {
        Peer::Module => MODULE_KEEP_ALIVE_MAX,
        Peer::Device | Peer::Registration => DEVICE_KEEP_ALIVE_MAX,
    };
    match seconds {
        0 => longest,
        seconds => Duration::from_secs(seconds.into()).min(longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_has_a_limit_that_differs_between_edge_hub_and_iot_hub() {
        let check = |peer, asked, seconds| {
            assert_eq!(keep_alive(peer, asked), Duration::from_secs(seconds), "{peer:?} {asked}");
        };
        check(Peer::Module, 60, 60);
        check(Peer::Module, 0, 600);
        check(Peer::Module, 601, 600);
        check(Peer::Device, 601, 601);
        check(Peer::Device, 1_740, 1_177);
    }
}
