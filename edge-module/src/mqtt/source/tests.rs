use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const CONNACK: [u8; 4] = [0x20, 2, 0, 0];
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const FAILURE: u8 = 0x80;
const UNSUBSCRIBE: u8 = 0xa2;
const PUBACK: u8 = 0x40;
const PINGREQ: u8 = 0xc0;
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker's side of a connection.
struct Broker {
    stream: TcpStream,
}

impl Broker {
    /// Takes a connection and its subscription.
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.expect("a client");
        let mut this = Self { stream };
        this.read().await;
        this.write(&CONNACK).await;
        let (_, subscription) = this.read().await;
        this.write(&[SUBACK, 3, subscription[0], subscription[1], 1]).await;
        this
    }

    /// First byte and body of the next packet; bodies of clients are short here.
    async fn read(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).await.expect("a packet");
        assert!(head[1] < 0x80, "longer than expected");
        let mut body = vec![0; usize::from(head[1])];
        self.stream.read_exact(&mut body).await.expect("its body");
        (head[0], body)
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("written");
    }
}

fn publish(packet_id: u16) -> [u8; 8] {
    let [high, low] = packet_id.to_be_bytes();
    [0x32, 6, 0, 1, b't', high, low, b'x']
}

async fn session(keep_alive: Duration) -> (Session, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut settings = Settings::load(None::<&Path>).expect("defaults are valid");
    settings.mqtt.port = listener.local_addr().expect("bound").port();
    settings.mqtt.keep_alive = keep_alive;
    let session = Session::new(&settings, SessionKind::Recording, vec!["t".to_owned()]);
    (session.expect("no password is read"), listener)
}

/// The next message's receipt.
async fn receipt(events: &mut mpsc::Receiver<SessionEvent>) -> Receipt {
    loop {
        if let SessionEvent::Message { receipt, .. } = events.recv().await.expect("the session") {
            return receipt.expect("quality of service 1");
        }
    }
}

/// The client library takes one request for each ten packets that it reads: acknowledgements given to it one by one filled its
/// queue, and what did not fit was never acknowledged.
#[tokio::test]
async fn acknowledgements_keep_up_with_a_broker_that_always_has_more() {
    const MESSAGES: u32 = 150_000;
    let (session, listener) = session(Duration::from_secs(15)).await;
    let acknowledgements = session.acknowledgements();
    let (sender, mut events) = mpsc::channel(256);
    let session = tokio::spawn(session.run(sender));
    let recording = tokio::spawn(async move {
        for _ in 0..MESSAGES {
            let receipt = receipt(&mut events).await;
            acknowledgements.give([receipt]);
        }
        events
    });
    let broker = async {
        let Broker { stream } = Broker::accept(&listener).await;
        let (read, mut write) = stream.into_split();
        let ids = || (1..=u16::MAX).cycle().take(MESSAGES as usize);
        let messages: Vec<u8> = ids().flat_map(publish).collect();
        let sending = tokio::spawn(async move {
            write.write_all(&messages).await.expect("written");
            write
        });
        let mut read = tokio::io::BufReader::new(read);
        for expected in ids() {
            let mut packet = [0; 4];
            read.read_exact(&mut packet).await.expect("an acknowledgement");
            assert_eq!(packet[..2], [PUBACK, 2]);
            assert_eq!(u16::from_be_bytes([packet[2], packet[3]]), expected, "in order");
        }
        sending.await.expect("sent")
    };
    tokio::time::timeout(PATIENCE, broker).await.expect("all are acknowledged");
    recording.await.expect("no panic");
    session.abort();
}

#[tokio::test]
async fn a_session_whose_events_nobody_takes_shows_signs_of_life() {
    let (session, listener) = session(Duration::from_secs(1)).await;
    let (sender, events) = mpsc::channel(1);
    let session = tokio::spawn(session.run(sender));
    let mut broker = Broker::accept(&listener).await;
    for packet_id in 1..=3 {
        broker.write(&publish(packet_id)).await;
    }
    let signs = async {
        for _ in 0..4 {
            assert_eq!(broker.read().await.0, PINGREQ);
        }
    };
    tokio::time::timeout(PATIENCE, signs).await.expect("signs of life");
    drop(events);
    session.await.expect("the session ends with those who listen");
}

#[tokio::test]
async fn messages_count_as_the_brokers_sign_of_life() {
    let (session, listener) = session(Duration::from_secs(1)).await;
    let (sender, mut events) = mpsc::channel(16);
    let session = tokio::spawn(session.run(sender));
    let mut broker = Broker::accept(&listener).await;
    let mut packet_id = 0;
    let mut pings = 0;
    let talk = async {
        // It never answers a ping, but sends a message after each.
        while pings < 4 {
            let (kind, _) = broker.read().await;
            assert_eq!(kind, PINGREQ);
            pings += 1;
            packet_id += 1;
            broker.write(&publish(packet_id)).await;
            receipt(&mut events).await;
        }
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("the connection is kept");
    session.abort();
}

/// A machine that is added later has a subscription of its own, which the broker may refuse.
#[tokio::test]
async fn each_answer_is_held_against_the_filters_that_it_answers() {
    let (session, listener) = session(Duration::from_secs(15)).await;
    let (client, filters) = (session.client(), session.filters());
    let (sender, mut events) = mpsc::channel(16);
    let session = tokio::spawn(session.run(sender));
    let mut broker = Broker::accept(&listener).await;
    let mut refused = async || loop {
        if let SessionEvent::Subscribed { refused } = events.recv().await.expect("the session") {
            return refused;
        }
    };
    assert!(refused().await.is_empty());
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    filters.exchange(&client, names(&["t", "u", "v"]));
    filters.exchange(&client, names(&["t", "u", "v", "w"]));
    let (kind, first) = broker.read().await;
    assert_eq!(kind, SUBSCRIBE);
    let (_, second) = broker.read().await;
    broker.write(&[SUBACK, 3, second[0], second[1], FAILURE]).await;
    assert_eq!(refused().await, ["w"]);
    broker.write(&[SUBACK, 4, first[0], first[1], 1, FAILURE]).await;
    assert_eq!(refused().await, ["v", "w"]);
    filters.exchange(&client, names(&["t", "u"]));
    for _ in 0..2 {
        assert_eq!(broker.read().await.0, UNSUBSCRIBE);
    }
    drop(broker);
    let _broker = Broker::accept(&listener).await;
    assert!(refused().await.is_empty(), "only what is wanted is asked for again");
    session.abort();
}
