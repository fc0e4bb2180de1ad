//! The stand-in against a client that does what no SDK would.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use bytes::BytesMut;
use rumqttc::{
    Connect, ConnectReturnCode, Error, Login, Packet, PubAck, Publish, QoS, Subscribe,
    SubscribeReasonCode,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::state::unix_seconds;
use super::token::sign;
use super::*;
use crate::eventually::eventually_true;

mod devices;

/// What comes, comes much sooner.
const DEADLINE: Duration = Duration::from_secs(20);
/// What does not come within this does not come.
const PAUSE: Duration = Duration::from_millis(200);
const EVENTS: &str = "devices/gateway-1/modules/vibration/messages/events/";
const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
const METHODS: &str = "$iothub/methods/POST/#";
const INPUTS: &str = "devices/gateway-1/modules/vibration/inputs/#";

fn start() -> HubStandIn {
    HubStandIn::start(HubSettings::default()).unwrap()
}

/// The password of a module.
fn token(hub: &HubStandIn, expires: i64) -> String {
    let resource = encode("hub.example/devices/gateway-1/modules/vibration");
    let [key, _] = hub.shared.keys_of(Peer::Module);
    let signature = STANDARD.encode(sign(key, format!("{resource}\n{expires}").as_bytes()));
    format!("SharedAccessSignature sr={resource}&sig={}&se={expires}", encode(&signature))
}

fn connect_packet(hub: &HubStandIn) -> Connect {
    let mut connect = Connect::new("gateway-1/vibration");
    connect.clean_session = false;
    connect.keep_alive = 60;
    connect.login = Some(Login {
        username: "hub.example/gateway-1/vibration/?api-version=2021-04-12".to_owned(),
        password: token(hub, unix_seconds() + 3_600),
    });
    connect
}

struct Client {
    stream: TlsStream<TcpStream>,
    received: BytesMut,
}

impl Client {
    /// Up to the end of TLS.
    async fn dial(hub: &HubStandIn) -> anyhow::Result<Self> {
        Self::dial_with(hub, None).await
    }

    /// The client shows this certificate.
    async fn dial_with(
        hub: &HubStandIn,
        certificate: Option<&DeviceCertificate>,
    ) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(hub.ca_file())? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match certificate {
            None => config.with_no_client_auth(),
            Some(shown) => {
                let chain = CertificateDer::pem_slice_iter(shown.chain_pem.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes())?;
                config.with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?
            }
        };
        let stream = TcpStream::connect(("127.0.0.1", hub.port())).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
        Ok(Self { stream, received: BytesMut::new() })
    }

    /// Up to the CONNACK.
    async fn login(hub: &HubStandIn, connect: Connect) -> anyhow::Result<(Self, Packet)> {
        Self::login_with(hub, None, connect).await
    }

    async fn login_with(
        hub: &HubStandIn,
        certificate: Option<&DeviceCertificate>,
        connect: Connect,
    ) -> anyhow::Result<(Self, Packet)> {
        let mut client = Self::dial_with(hub, certificate).await?;
        client.send(Packet::Connect(connect)).await?;
        let answer = client.next().await.context("closed without an answer")?;
        Ok((client, answer))
    }

    async fn module(hub: &HubStandIn) -> Self {
        let (client, answer) = Self::login(hub, connect_packet(hub)).await.unwrap();
        assert_eq!(code(&answer), ConnectReturnCode::Success);
        client
    }

    async fn send(&mut self, packet: Packet) -> anyhow::Result<()> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX)?;
        self.stream.write_all(&bytes).await?;
        Ok(self.stream.flush().await?)
    }

    async fn publish(&mut self, topic: &str, packet_id: u16, body: &str) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, body);
        publish.pkid = packet_id;
        self.send(Packet::Publish(publish)).await.unwrap();
    }

    async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 9_000;
        self.send(Packet::Subscribe(subscribe)).await.unwrap();
        match self.next().await {
            Some(Packet::SubAck(ack)) => ack.return_codes[0],
            other => panic!("{other:?} instead of SUBACK"),
        }
    }

    /// `None`: the connection has ended.
    async fn next(&mut self) -> Option<Packet> {
        tokio::time::timeout(DEADLINE, self.read()).await.expect("a packet or the end")
    }

    async fn read(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.received, usize::MAX) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if !matches!(self.stream.read_buf(&mut self.received).await, Ok(1..)) {
                return None;
            }
        }
    }

    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(PAUSE, self.read()).await.is_err()
    }

    async fn published(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("{other:?} instead of PUBLISH"),
        }
    }

    async fn acknowledged(&mut self) -> u16 {
        match self.next().await {
            Some(Packet::PubAck(ack)) => ack.pkid,
            other => panic!("{other:?} instead of PUBACK"),
        }
    }
}

fn code(answer: &Packet) -> ConnectReturnCode {
    let Packet::ConnAck(ack) = answer else { panic!("{answer:?} instead of CONNACK") };
    ack.code
}

fn bodies(hub: &HubStandIn) -> Vec<String> {
    let text = |message: HubMessage| String::from_utf8_lossy(&message.body).into_owned();
    hub.messages().into_iter().map(text).collect()
}

fn refused(hub: &HubStandIn, reason: &str) {
    let has = || hub.refusals().iter().any(|refusal| refusal.reason.contains(reason));
    let waited = eventually_true(reason, DEADLINE, has);
    assert!(waited.is_ok(), "{:?}", hub.refusals());
}

#[tokio::test]
async fn whoever_does_not_show_who_it_is_gets_5_and_the_door() {
    let hub = start();
    let good = connect_packet(&hub);
    let login = good.login.clone().unwrap();
    let with = |username: &str, password: &str| Connect {
        login: Some(Login::new(username, password)),
        ..good.clone()
    };
    let cases = [
        (Connect { login: None, ..good.clone() }, "no user name"),
        (Connect { client_id: "gateway-1/Vibration".to_owned(), ..good.clone() }, "the client id"),
        (with("hub.example/gateway-1/?api-version=1", &login.password), "the client id"),
        (with("hub.example/gateway-1/other/?api-version=1", &login.password), "the identity"),
        (with("other/gateway-1/vibration/?api-version=1", &login.password), "the hub other"),
        (with("hub.example/gateway-1/vibration/?model-id=1", &login.password), "no api-version"),
        (with(&login.username, "SharedAccessSignature x"), "a part of the token without ="),
        (with(&login.username, &token(&hub, unix_seconds() - 310)), "a token that ended"),
    ];
    for (connect, reason) in cases {
        let (mut client, answer) = Client::login(&hub, connect).await.unwrap();
        assert_eq!(code(&answer), ConnectReturnCode::NotAuthorized, "{reason}");
        assert_eq!(client.next().await, None, "{reason}");
        refused(&hub, reason);
    }
    assert_eq!(hub.connections(), 0);
    let (_client, answer) = Client::login(&hub, good).await.unwrap();
    assert_eq!(code(&answer), ConnectReturnCode::Success);
    assert_eq!(hub.connections(), 1);
}

#[tokio::test]
async fn a_second_connection_of_an_identity_ends_the_first() {
    let hub = start();
    let mut first = Client::module(&hub).await;
    let mut second = Client::module(&hub).await;
    assert_eq!(first.next().await, None);
    assert!(hub.is_connected());
    second.publish(EVENTS, 1, "second").await;
    assert_eq!(second.acknowledged().await, 1);
    assert_eq!(bodies(&hub), ["second"]);
}

#[tokio::test]
async fn what_a_hub_does_not_stand_ends_the_connection() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    let mut twice = Publish::new(EVENTS, QoS::ExactlyOnce, "twice");
    twice.pkid = 1;
    client.send(Packet::Publish(twice)).await.unwrap();
    assert_eq!(client.next().await, None);
    refused(&hub, "a publish of QoS 2");

    // The topic, its length, the packet id, and five bytes in front.
    let room = 262_144 - EVENTS.len() - 9;
    let mut client = Client::module(&hub).await;
    client.publish(EVENTS, 1, &"x".repeat(room + 1)).await;
    assert_eq!(client.acknowledged().await, 1, "one length byte is saved");
    // Answers may be lost with the bytes that were not read.
    let mut publish = Publish::new(EVENTS, QoS::AtLeastOnce, "x".repeat(room + 2));
    publish.pkid = 2;
    client.send(Packet::Publish(publish)).await.ok();
    assert_eq!(client.next().await, None);
    refused(&hub, "262145");

    let mut client = Client::module(&hub).await;
    client.send(Packet::PubAck(PubAck::new(7))).await.unwrap();
    assert_eq!(client.next().await, None);
    refused(&hub, "an acknowledgement of 7");
}

#[tokio::test]
async fn silence_beyond_one_and_a_half_keep_alives_ends_the_connection() {
    let hub = start();
    let connect = Connect { keep_alive: 1, ..connect_packet(&hub) };
    let (mut client, _) = Client::login(&hub, connect).await.unwrap();
    let started = Instant::now();
    client.send(Packet::PingReq).await.unwrap();
    assert_eq!(client.next().await, Some(Packet::PingResp));
    assert_eq!(client.next().await, None);
    assert!(started.elapsed() >= Duration::from_millis(1_400), "{:?}", started.elapsed());
    refused(&hub, "nothing was heard for 1.5s");
}

#[tokio::test]
async fn nothing_comes_that_was_not_subscribed_to() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    client.publish("$iothub/twin/GET/?$rid=1", 1, "").await;
    assert_eq!(client.acknowledged().await, 1);
    hub.set_desired(json!({"limit": 4.5}));
    hub.send_input("opc", &[], b"waits");
    assert!(hub.call("reset", Value::Null, DEADLINE).await.is_err());
    assert!(client.is_silent().await);

    assert_eq!(client.subscribe("$iothub/#").await, SubscribeReasonCode::Failure);
    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
    assert_eq!(client.subscribe(INPUTS).await, granted);
    let publish = client.published().await;
    let topic = "devices/gateway-1/modules/vibration/inputs/opc/%24.cdid=gateway-1&%24.cmid=sender";
    assert_eq!((publish.topic.as_str(), &publish.payload[..]), (topic, b"waits".as_slice()));
    assert_eq!(client.subscribe(TWIN_ANSWERS).await, granted);
    client.publish("$iothub/twin/GET/?$rid=2", 2, "").await;
    // A hub may answer before it acknowledges; this one does.
    let publish = client.published().await;
    assert_eq!(client.acknowledged().await, 2);
    assert_eq!(publish.topic, "$iothub/twin/res/200/?$rid=2");
    let twin: Value = serde_json::from_slice(&publish.payload).unwrap();
    let desired = json!({"limit": 4.5, "$version": 2});
    assert_eq!(twin, json!({"desired": desired, "reported": {"$version": 1}}));
}

#[tokio::test]
async fn a_session_comes_back_and_inputs_wait_until_acknowledged() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    client.subscribe(INPUTS).await;
    hub.send_input("opc", &[], b"1");
    client.published().await;
    drop(client);
    eventually_true("gone", DEADLINE, || !hub.is_connected()).unwrap();
    hub.send_input("opc", &[], b"2");

    let (mut client, answer) = Client::login(&hub, connect_packet(&hub)).await.unwrap();
    assert!(matches!(answer, Packet::ConnAck(ack) if ack.session_present));
    for body in [b"1", b"2"] {
        let publish = client.published().await;
        assert_eq!(publish.payload[..], body[..]);
        client.send(Packet::PubAck(PubAck::new(publish.pkid))).await.unwrap();
    }
    eventually_true("acknowledged", DEADLINE, || hub.waiting_inputs() == 0).unwrap();

    hub.restart(true).await;
    assert_eq!(client.next().await, None);
    let (_client, answer) = Client::login(&hub, connect_packet(&hub)).await.unwrap();
    assert!(matches!(answer, Packet::ConnAck(ack) if !ack.session_present));
    assert!(hub.subscriptions().is_empty());
}

#[tokio::test]
async fn a_clean_session_leaves_nothing_behind() {
    let hub = start();
    Client::module(&hub).await.subscribe(METHODS).await;
    let clean = Connect { clean_session: true, ..connect_packet(&hub) };
    for connect in [clean, connect_packet(&hub)] {
        eventually_true("gone", DEADLINE, || !hub.is_connected()).unwrap();
        let (mut client, answer) = Client::login(&hub, connect).await.unwrap();
        assert!(matches!(answer, Packet::ConnAck(ack) if !ack.session_present));
        assert!(hub.subscriptions().is_empty());
        client.subscribe(METHODS).await;
        assert_eq!(hub.subscriptions(), [METHODS]);
    }
}

#[tokio::test]
async fn no_more_than_16_are_in_flight_to_a_client() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    client.subscribe(INPUTS).await;
    for number in 0..20 {
        hub.send_input("opc", &[], format!("{number}").as_bytes());
    }
    let mut first = 0;
    for _ in 0..16 {
        first = client.published().await.pkid;
    }
    assert!(client.is_silent().await);
    client.send(Packet::PubAck(PubAck::new(first))).await.unwrap();
    assert_eq!(client.published().await.payload[..], b"16"[..]);
    assert!(client.is_silent().await);
}

#[tokio::test]
async fn without_acknowledgements_16_are_taken_and_the_rest_waits() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    hub.fault(Fault::NoPuback);
    for number in 1..=20 {
        client.publish(EVENTS, number, &number.to_string()).await;
    }
    client.send(Packet::PingReq).await.unwrap();
    assert!(client.is_silent().await);
    assert_eq!(bodies(&hub).len(), 16);
    hub.heal();
    for number in 1..=20 {
        assert_eq!(client.acknowledged().await, number);
    }
    assert_eq!(client.next().await, Some(Packet::PingResp));
    assert_eq!(bodies(&hub).len(), 20);
}

#[tokio::test]
async fn a_client_that_was_not_listened_to_is_not_silent() {
    let hub = start();
    let connect = Connect { keep_alive: 1, ..connect_packet(&hub) };
    let (mut client, _) = Client::login(&hub, connect).await.unwrap();
    for fault in [Fault::NoPuback, Fault::Frozen] {
        hub.fault(fault);
        for number in 1..=17 {
            client.publish(EVENTS, number, "x").await;
        }
        // Longer than one and a half keep-alives.
        for _ in 0..9 {
            assert!(client.is_silent().await);
        }
        hub.heal();
        for number in 1..=17 {
            assert_eq!(client.acknowledged().await, number);
        }
    }
    assert_eq!(hub.message_count(), 34);
}

#[tokio::test]
async fn a_twin_made_anew_begins_again() {
    let hub = start();
    hub.set_desired(json!({"a": 1}));
    hub.recreate_twin();
    assert_eq!(hub.desired(), (json!({}), 1));
    assert_eq!(hub.set_desired(json!({"a": 2})), 2);
}

#[tokio::test]
async fn each_fault_of_acknowledgements_does_what_it_says() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    hub.fault(Fault::PubackThenDrop);
    client.publish(EVENTS, 1, "acknowledged").await;
    assert_eq!(client.acknowledged().await, 1);
    assert_eq!(client.next().await, None);
    hub.heal();

    let mut client = Client::module(&hub).await;
    hub.fault(Fault::KeepThenDrop);
    client.publish(EVENTS, 1, "kept").await;
    assert_eq!(client.next().await, None);
    hub.heal();

    let mut client = Client::module(&hub).await;
    hub.fault(Fault::PubackAndLose);
    client.publish(EVENTS, 1, "lost").await;
    assert_eq!(client.acknowledged().await, 1);
    hub.heal();
    // As is what edgeHub cannot read.
    client.publish(&format!("{EVENTS}a=b=c"), 2, "unreadable").await;
    assert_eq!(client.acknowledged().await, 2);
    refused(&hub, "a=b=c");

    hub.fault(Fault::SlowPubacks(PAUSE));
    let started = Instant::now();
    for number in 3..=5 {
        client.publish(EVENTS, number, "slow").await;
    }
    for number in 3..=5 {
        assert_eq!(client.acknowledged().await, number);
    }
    assert!(started.elapsed() >= PAUSE * 3, "{:?}", started.elapsed());
    assert_eq!(bodies(&hub), ["acknowledged", "kept", "slow", "slow", "slow"]);
}

#[tokio::test]
async fn each_fault_of_connections_does_what_it_says() {
    let hub = start();
    hub.fault(Fault::NoConnack);
    let mut client = Client::dial(&hub).await.unwrap();
    client.send(Packet::Connect(connect_packet(&hub))).await.unwrap();
    assert!(client.is_silent().await);
    hub.heal();

    for (fault, expected) in [
        (Fault::RefuseCredentials, ConnectReturnCode::NotAuthorized),
        (Fault::Unavailable, ConnectReturnCode::ServiceUnavailable),
    ] {
        hub.fault(fault);
        let (_, answer) = Client::login(&hub, connect_packet(&hub)).await.unwrap();
        assert_eq!(code(&answer), expected);
        hub.heal();
    }
    hub.fault(Fault::CloseAtOnce);
    assert!(Client::dial(&hub).await.is_err());
    hub.heal();

    let mut client = Client::module(&hub).await;
    hub.fault(Fault::Frozen);
    client.publish(EVENTS, 1, "frozen").await;
    assert!(client.is_silent().await);
    assert!(tokio::time::timeout(PAUSE, Client::dial(&hub)).await.is_err());
    assert!(hub.is_connected() && hub.messages().is_empty());
    hub.heal();
    assert_eq!(client.acknowledged().await, 1);

    hub.drop_connections();
    assert_eq!(client.next().await, None);
    hub.stop().await;
    assert!(TcpStream::connect(("127.0.0.1", hub.port())).await.is_err());
    hub.resume(false);
    Client::module(&hub).await;
}

#[tokio::test]
async fn each_fault_of_the_twin_does_what_it_says() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    client.subscribe(TWIN_ANSWERS).await;
    client.subscribe("$iothub/twin/PATCH/properties/desired/#").await;
    hub.fault(Fault::TwinStatus(429, 2));
    let report = "$iothub/twin/PATCH/properties/reported/?$rid=";
    let topics = [
        ("$iothub/twin/GET/?$rid=1".to_owned(), "$iothub/twin/res/429/?$rid=1"),
        (format!("{report}2"), "$iothub/twin/res/429/?$rid=2"),
        // edgeHub does not tell the version.
        (format!("{report}3"), "$iothub/twin/res/204/?$rid=3"),
    ];
    for (number, (topic, answer)) in (1..).zip(topics) {
        client.publish(&topic, number, r#"{"state":"armed"}"#).await;
        // In either order.
        let packets = [client.next().await.unwrap(), client.next().await.unwrap()];
        let is_answer = |packet: &Packet| matches!(packet, Packet::Publish(p) if p.topic == answer);
        assert!(packets.iter().any(is_answer), "{packets:?}");
    }
    assert_eq!(hub.reported(), json!({"state": "armed"}));

    hub.fault(Fault::DropPatch);
    assert_eq!(hub.set_desired(json!({"a": 1})), 2);
    hub.heal();
    assert_eq!(hub.set_desired(json!({"a": null, "b": 2})), 3);
    let patch = client.published().await;
    assert_eq!(patch.topic, "$iothub/twin/PATCH/properties/desired/?$version=3");
    let body: Value = serde_json::from_slice(&patch.payload).unwrap();
    assert_eq!(body, json!({"a": null, "b": 2, "$version": 3}));

    hub.fault(Fault::NoTwinAnswer);
    client.publish(&format!("{report}4"), 4, r#"{"state":null}"#).await;
    assert_eq!(client.acknowledged().await, 4);
    assert!(client.is_silent().await);
    assert_eq!(hub.reported(), json!({}));
    let waited = hub.wait_reported(|reported| reported["state"] == "armed", PAUSE).await;
    assert!(waited.is_err());
}

#[tokio::test]
async fn a_call_takes_the_first_answer_and_fails_without_one() {
    let hub = start();
    let mut client = Client::module(&hub).await;
    client.subscribe(METHODS).await;
    let answering = async {
        let publish = client.published().await;
        let rid = publish.topic.split_once("?$rid=").unwrap().1.to_owned();
        client.publish(&format!("$iothub/methods/res/409/?$rid={rid}"), 1, "").await;
        client.publish(&format!("$iothub/methods/res/200/?$rid={rid}"), 2, "{}").await;
        publish
    };
    let (answer, publish) = tokio::join!(hub.call("stop", json!([1]), DEADLINE), answering);
    assert_eq!(answer.unwrap(), (409, Value::Null));
    assert!(publish.topic.starts_with("$iothub/methods/POST/stop/?$rid="), "{}", publish.topic);
    assert_eq!((publish.qos, &publish.payload[..]), (QoS::AtLeastOnce, b"[1]".as_slice()));
    refused(&hub, "which nobody waits for");
    assert!(hub.call("stop", Value::Null, PAUSE).await.is_err(), "no answer came");
}

#[tokio::test]
async fn a_token_that_ends_takes_its_connection_along() {
    let settings =
        HubSettings { token_check_interval: Duration::from_millis(50), ..HubSettings::default() };
    let hub = HubStandIn::start(settings).unwrap();
    let mut client = Client::module(&hub).await;
    assert!(client.is_silent().await);
    hub.set_clock_offset(3_600 + 301);
    assert_eq!(client.next().await, None);
    refused(&hub, "the token of the connection ended");
    // A certificate of a future time is none either.
    assert!(Client::dial(&hub).await.is_err());
    hub.set_clock_offset(-600);
    Client::module(&hub).await;
}

#[tokio::test]
async fn certificates_change_for_new_connections_only() {
    let hub = start();
    let mut old = Client::module(&hub).await;
    let before = std::fs::read_to_string(hub.ca_file()).unwrap();
    hub.renew_server_certificate();
    drop(Client::dial(&hub).await.unwrap());
    hub.expire_server_certificate();
    assert!(Client::dial(&hub).await.is_err());
    hub.new_authority();
    drop(Client::dial(&hub).await.unwrap());
    let after = std::fs::read_to_string(hub.ca_file()).unwrap();
    assert!(after.starts_with(&before) && after.matches("BEGIN CERTIFICATE").count() == 2);
    std::fs::write(hub.ca_file(), before).unwrap();
    assert!(Client::dial(&hub).await.is_err(), "the authority of before did not sign it");
    old.publish(EVENTS, 1, "still there").await;
    assert_eq!(old.acknowledged().await, 1);
}

/// One request on a connection of its own; status and JSON.
fn ask(hub: &HubStandIn, head: &str, body: &str) -> anyhow::Result<(u16, Value)> {
    let uri = hub.workload_uri();
    let mut stream = UnixStream::connect(uri.strip_prefix("unix://").context("no unix://")?)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: any\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, serde_json::from_str(body)?))
}

#[test]
fn the_workload_api_signs_with_the_modules_key_and_refuses_as_the_daemon_does() {
    let hub = start();
    let sign_path = "POST /modules/vibration/genid/1/sign?api-version=2022-08-03";
    let data = r#"{"keyId":"primary","algo":"HMACSHA256","data":"dGV4dA=="}"#;
    let (status, answer) = ask(&hub, sign_path, data).unwrap();
    let [key, _] = hub.shared.keys_of(Peer::Module);
    assert_eq!((status, &answer["digest"]), (200, &json!(STANDARD.encode(sign(key, b"text")))));

    let sign_at = |module: &str, version: &str| {
        format!("POST /modules/{module}/genid/1/sign?api-version={version}")
    };
    let text = format!("{sign_path}\nContent-Type: text/plain\r\n");
    let json_type = format!("{sign_path}\nContent-Type: application/json; charset=utf-8\r\n");
    let cases = [
        (sign_at("other", "2022-08-03"), data, 403),
        (sign_at("vibration", ""), data, 400),
        (sign_at("vibration", "2017-01-01"), data, 400),
        (sign_at("vibration", "2018-06-28"), data, 200),
        (sign_path.to_owned(), r#"{"data":"!"}"#, 400),
        (sign_path.to_owned(), "{", 400),
        (sign_path.to_owned(), r#"{"algo":"HMACSHA256"}"#, 422),
        (text, data, 400),
        (json_type, data, 200),
        ("GET /trust-bundle".to_owned(), "", 400),
        ("POST /trust-bundle?api-version=2022-08-03".to_owned(), "", 400),
        ("GET /other?api-version=2022-08-03".to_owned(), "", 404),
    ];
    for (head, body, expected) in cases {
        let (status, answer) = ask(&hub, &head, body).unwrap();
        assert_eq!(status, expected, "{head} {body} {answer}");
    }
    assert_eq!(hub.workload_requests().len(), 13);
}

#[test]
fn the_workload_api_hands_out_certificates() {
    let hub = start();
    hub.new_authority();
    let (_, bundle) = ask(&hub, "GET /trust-bundle?api-version=2022-08-03", "").unwrap();
    let expected = std::fs::read_to_string(hub.ca_file()).unwrap();
    assert_eq!(bundle["certificate"], expected);
    let path = "POST /modules/vibration/genid/1/certificate/server?api-version=2022-08-03";
    let body = r#"{"commonName":"gw.plant.local","expiration":"2030-01-01T00:00:00Z"}"#;
    let (status, answer) = ask(&hub, path, body).unwrap();
    assert_eq!(status, 201);
    let chain = answer["certificate"].as_str().unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(answer["privateKey"]["bytes"].as_str().unwrap().contains("BEGIN PRIVATE KEY"));
    let expiration = answer["expiration"].as_str().unwrap();
    assert!(expiration.len() == 20 && expiration.ends_with('Z'), "{expiration}");
}

#[test]
fn the_eleventh_connection_to_the_workload_api_is_closed_without_an_answer() {
    let hub = start();
    let path = hub.workload_uri().strip_prefix("unix://").unwrap().to_owned();
    let waiting: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let request = "GET /trust-bundle?api-version=2022-08-03";
    // Those before are taken one after the other.
    assert!(ask(&hub, request, "").is_err());
    drop(waiting);
    let is_served = || ask(&hub, request, "").is_ok();
    eventually_true("served again", DEADLINE, is_served).unwrap();
}

#[test]
fn each_fault_of_the_workload_api_does_what_it_says() {
    let hub = start();
    let request = "GET /trust-bundle?api-version=2022-08-03";
    hub.workload_fault(WorkloadFault::Down);
    let path = hub.workload_uri().strip_prefix("unix://").unwrap().to_owned();
    assert!(!std::path::Path::new(&path).exists());
    hub.workload_fault(WorkloadFault::Status(500));
    assert_eq!(ask(&hub, request, "").unwrap().0, 500);
    hub.workload_fault(WorkloadFault::CloseAtOnce);
    assert!(ask(&hub, request, "").is_err());
    hub.heal();
    assert_eq!(ask(&hub, request, "").unwrap().0, 200);
}
