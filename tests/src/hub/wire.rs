//! MQTT packets over TLS, each of them recorded.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::{Error, Packet, PacketType, check};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::Direction;
use super::dates::http_date;
use super::state::Shared;

/// Of a whole packet that comes in.
const PACKET_BYTES_MAX: usize = 262_144;
/// How long a client that was refused may take to hear it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// The client left, or the line broke.
    Gone,
    /// The client did what a hub does not stand.
    Refused(String),
}

impl From<std::io::Error> for Ending {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

pub(super) struct Wire {
    shared: Arc<Shared>,
    stream: TlsStream<TcpStream>,
    connection: u64,
    received: BytesMut,
}

impl Wire {
    pub(super) fn new(shared: Arc<Shared>, stream: TlsStream<TcpStream>, connection: u64) -> Self {
        Self { shared, stream, connection, received: BytesMut::new() }
    }

    /// What the client has shown in the handshake, its own first.
    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        self.stream.get_ref().1.peer_certificates().unwrap_or_default()
    }

    /// Whether the client speaks HTTP: a CONNECT begins with no letter.
    pub(super) async fn is_http(&mut self) -> Result<bool, Ending> {
        self.shared.thawed().await;
        while self.received.is_empty() {
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Ok(false);
            }
        }
        Ok(self.received.first().is_some_and(u8::is_ascii_uppercase))
    }

    /// Refuses what was asked for, with the time, as every HTTP server does.
    pub(super) async fn tell_date(&mut self) -> Result<(), Ending> {
        let date = http_date(self.shared.now());
        let answer = format!(
            "HTTP/1.1 401 Unauthorized\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        self.stream.write_all(answer.as_bytes()).await?;
        self.stream.flush().await?;
        self.close().await;
        Ok(())
    }

    /// The next packet; `None` at the end of the connection. Nothing is lost when it is not waited for to its end.
    pub(super) async fn read(&mut self) -> Result<Option<Packet>, Ending> {
        loop {
            self.shared.thawed().await;
            if let Some(packet) = self.next_received()? {
                return Ok(Some(packet));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn next_received(&mut self) -> Result<Option<Packet>, Ending> {
        let length = match check(self.received.iter(), PACKET_BYTES_MAX) {
            Ok(header) => header.frame_length(),
            Err(Error::InsufficientBytes(_)) => return Ok(None),
            Err(error) => return Err(Ending::Refused(format!("broken MQTT: {error}"))),
        };
        if length > PACKET_BYTES_MAX {
            return Err(Ending::Refused(format!("a packet of {length} bytes")));
        }
        let mut frame = self.received.split_to(length);
        let bytes = frame.to_vec();
        let packet = Packet::read(&mut frame, PACKET_BYTES_MAX)
            .map_err(|error| Ending::Refused(format!("broken MQTT: {error}")))?;
        self.record(Direction::FromClient, &packet, bytes);
        Ok(Some(packet))
    }

    pub(super) async fn send(&mut self, packet: Packet) -> Result<(), Ending> {
        self.shared.thawed().await;
        let mut bytes = BytesMut::new();
        packet
            .write(&mut bytes, usize::MAX)
            .map_err(|error| Ending::Refused(format!("cannot write {packet:?}: {error}")))?;
        self.record(Direction::ToClient, &packet, bytes.to_vec());
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Reads and answers nothing until the client goes.
    pub(super) async fn swallow(&mut self) {
        loop {
            self.received.clear();
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Says that nothing more comes, and lets the client read what was said: a connection that is closed with bytes unread is
    /// reset, and takes with it what the client has not read either.
    pub(super) async fn close(&mut self) {
        if self.stream.shutdown().await.is_ok() {
            timeout(CLOSE_DEADLINE, self.swallow()).await.ok();
        }
    }

    fn record(&self, direction: Direction, packet: &Packet, bytes: Vec<u8>) {
        let (kind, topic) = describe(packet);
        self.shared.record(self.connection, direction, kind, topic, bytes);
    }
}

fn describe(packet: &Packet) -> (PacketType, Option<String>) {
    match packet {
        Packet::Connect(_) => (PacketType::Connect, None),
        Packet::ConnAck(_) => (PacketType::ConnAck, None),
        Packet::Publish(publish) => (PacketType::Publish, Some(publish.topic.clone())),
        Packet::PubAck(_) => (PacketType::PubAck, None),
        Packet::PubRec(_) => (PacketType::PubRec, None),
        Packet::PubRel(_) => (PacketType::PubRel, None),
        Packet::PubComp(_) => (PacketType::PubComp, None),
        Packet::Subscribe(subscribe) => {
            let filters: Vec<&str> =
                subscribe.filters.iter().map(|filter| filter.path.as_str()).collect();
            (PacketType::Subscribe, Some(filters.join(" ")))
        }
        Packet::SubAck(_) => (PacketType::SubAck, None),
        Packet::Unsubscribe(unsubscribe) => {
            (PacketType::Unsubscribe, Some(unsubscribe.topics.join(" ")))
        }
        Packet::UnsubAck(_) => (PacketType::UnsubAck, None),
        Packet::PingReq => (PacketType::PingReq, None),
        Packet::PingResp => (PacketType::PingResp, None),
        Packet::Disconnect => (PacketType::Disconnect, None),
    }
}
