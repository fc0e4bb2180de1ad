//! A real mosquitto with the settings and the access list that are deployed, certificates of a plant's authority, and the real edge
//! module with the environment and the desired properties of the manifest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use e2e_tests::demo::plant::now;
use e2e_tests::eventually::eventually;
use e2e_tests::manifests::edge::{TEST_SECRET, environment, render};
use e2e_tests::ports::free_port;
use e2e_tests::process::ChildProcess;
use e2e_tests::{edge_module, http, workspace_root};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rumqttc::{Client, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;

use super::BASE;

const DEADLINE: Duration = Duration::from_secs(30);
const QUEUE_LENGTH: usize = 64;
/// Where the files of the container lie.
const CONFIG: &str = "/mosquitto/config";
const DATA: &str = "/mosquitto/data";
/// The other user of the access list, which has a certificate and no password.
const OUR_USER: &str = "edge-module";

/// A plant's certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "plant");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    fn issue(&self, name: &str) -> anyhow::Result<Issued> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate, key })
    }
}

/// The broker of a gateway, with other ports and folders than in its container.
struct Broker {
    plain: u16,
    tls: u16,
    authority: Authority,
    process: ChildProcess,
}

impl Broker {
    fn start(root: &Path) -> anyhow::Result<Self> {
        let (config, data) = (root.join("srv/mosquitto/config"), root.join("srv/mosquitto/data"));
        std::fs::create_dir_all(config.join("tls"))?;
        std::fs::create_dir_all(&data)?;
        let source = workspace_root().join("deployment-manifests/edge/mosquitto");
        std::fs::copy(source.join("access"), config.join("access"))?;
        let authority = Authority::new()?;
        let server = authority.issue("mosquitto")?;
        for (name, text) in [
            ("plant-ca.pem", authority.certificate.pem()),
            ("server.pem", server.certificate.pem()),
            ("server.key", server.key.serialize_pem()),
        ] {
            std::fs::write(config.join("tls").join(name), text)?;
        }
        write_passwords(&config.join("passwords"))?;
        let (plain, tls) = (free_port()?, free_port()?);
        let deployed = std::fs::read_to_string(source.join("mosquitto.conf"))?;
        let settings = deployed
            .replace("listener 1883\n", &format!("listener {plain} 127.0.0.1\n"))
            .replace("listener 8883\n", &format!("listener {tls} 127.0.0.1\n"))
            .replace(CONFIG, &config.display().to_string())
            .replace(DATA, &data.display().to_string());
        ensure!(settings.matches("127.0.0.1").count() == 2, "{settings}");
        // As root it would else take another user, who may not read the folder of a test.
        std::fs::write(config.join("mosquitto.conf"), settings + "user root\n")?;
        let path = config.join("mosquitto.conf").display().to_string();
        let program = find_mosquitto()?;
        let process = ChildProcess::start("mosquitto", root, &program, &["-c", &path], &[])?;
        let broker = Self { plain, tls, authority, process };
        eventually("mosquitto listens", DEADLINE, || {
            std::net::TcpStream::connect(("127.0.0.1", tls)).map(drop)
        })
        .with_context(|| broker.process.tail())?;
        Ok(broker)
    }

    /// By the Docker network, with a password.
    fn connect_by_password(&self, user: &str, password: &str) -> anyhow::Result<Connected> {
        let mut options = MqttOptions::new(format!("test-{user}"), "127.0.0.1", self.plain);
        options.set_credentials(user, password);
        Connected::new(options)
    }

    /// By TLS, with a certificate of the plant or somebody else's.
    fn connect_by_certificate(&self, of: &Authority, name: &str) -> anyhow::Result<Connected> {
        let issued = of.issue(name)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key.serialize_der()));
        let chain = vec![issued.certificate.der().clone()];
        Connected::new(self.tls_options(name, Some((chain, key)))?)
    }

    fn tls_options(
        &self,
        name: &str,
        identity: Option<(Vec<rustls::pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> anyhow::Result<MqttOptions> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        let mut options = MqttOptions::new(format!("test-{name}"), "127.0.0.1", self.tls);
        let tls = TlsConfiguration::Rustls(Arc::new(config));
        options.set_transport(Transport::tls_with_config(tls));
        Ok(options)
    }
}

fn write_passwords(path: &Path) -> anyhow::Result<()> {
    let done = Command::new("mosquitto_passwd")
        .args(["-b", "-c"])
        .arg(path)
        .args([OUR_USER, TEST_SECRET])
        .output()
        .context("mosquitto_passwd, which comes with mosquitto")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn find_mosquitto() -> anyhow::Result<PathBuf> {
    ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("mosquitto is missing: run `make setup`")
}

/// A client whose packets come in one queue, until the connection ends.
struct Connected {
    client: Client,
    packets: Receiver<Result<Packet, String>>,
}

impl Connected {
    /// Waits for the broker's acceptance.
    fn new(options: MqttOptions) -> anyhow::Result<Self> {
        let (client, mut connection) = Client::new(options, QUEUE_LENGTH);
        let (sender, packets) = sync_channel(QUEUE_LENGTH);
        std::thread::spawn(move || {
            for event in connection.iter() {
                let told = match event {
                    Ok(Event::Incoming(packet)) => sender.send(Ok(packet)),
                    Ok(Event::Outgoing(_)) => Ok(()),
                    Err(error) => {
                        // Nobody may be waiting for it any more.
                        sender.send(Err(error.to_string())).ok();
                        return;
                    }
                };
                if told.is_err() {
                    return;
                }
            }
        });
        let connected = Self { client, packets };
        connected.wait("an acceptance", |packet| matches!(packet, Packet::ConnAck(_)))?;
        Ok(connected)
    }

    fn subscribe(&self, topics: &[&str]) -> anyhow::Result<()> {
        for topic in topics {
            self.client.subscribe(*topic, QoS::AtLeastOnce)?;
            self.wait("a subscription", |packet| matches!(packet, Packet::SubAck(_)))?;
        }
        Ok(())
    }

    /// Until the broker has taken it, which it says of what it throws away, too.
    fn publish(&self, topic: &str, payload: &str) -> anyhow::Result<()> {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload)?;
        self.wait("an acknowledgement", |packet| matches!(packet, Packet::PubAck(_)))?;
        Ok(())
    }

    /// The next message: its topic and text.
    fn message(&self) -> anyhow::Result<(String, String)> {
        let packet = self.wait("a message", |packet| matches!(packet, Packet::Publish(_)))?;
        let Packet::Publish(publish) = packet else { bail!("{packet:?}") };
        Ok((publish.topic, String::from_utf8_lossy(&publish.payload).into_owned()))
    }

    fn wait(&self, what: &str, is_it: impl Fn(&Packet) -> bool) -> anyhow::Result<Packet> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let packet = self.packets.recv_timeout(left).with_context(|| format!("not {what}"))?;
            let packet = packet.map_err(anyhow::Error::msg)?;
            if is_it(&packet) {
                return Ok(packet);
            }
        }
    }
}

#[test]
fn only_who_is_known_comes_in() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let broker = Broker::start(root.path())?;
    broker.connect_by_password(OUR_USER, TEST_SECRET)?;
    broker.connect_by_certificate(&broker.authority, "press-1")?;
    let refused = [
        ("a wrong password", broker.connect_by_password(OUR_USER, "wrong").err()),
        ("a name without a password", broker.connect_by_password("press-1", "").err()),
        (
            "nobody",
            Connected::new(MqttOptions::new("test-nobody", "127.0.0.1", broker.plain)).err(),
        ),
        ("no certificate", Connected::new(broker.tls_options("nobody", None)?).err()),
        (
            "a certificate of somebody else",
            broker.connect_by_certificate(&Authority::new()?, "press-1").err(),
        ),
    ];
    for (who, refusal) in refused {
        let refusal = refusal.with_context(|| format!("{who} came in"))?;
        // A refusal, not the end of the wait for one.
        ensure!(!format!("{refusal:#}").contains("not an acceptance"), "{who}: {refusal:#}");
    }
    Ok(())
}

#[test]
fn everybody_is_held_to_their_own_topics() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let broker = Broker::start(root.path())?;
    let ours = broker.connect_by_password(OUR_USER, TEST_SECRET)?;
    ours.subscribe(&["plant/+/readings", "plant/+/reset"])?;
    let press = broker.connect_by_certificate(&broker.authority, "press-2")?;
    press.subscribe(&["plant/+/command", "plant/+/readings"])?;
    // What is not delivered shows in what comes next.
    press.publish("plant/press-1/readings", "forged")?;
    press.publish("plant/press-2/reset", "by the machine itself")?;
    press.publish("plant/press-2/readings", "own")?;
    let own = ("plant/press-2/readings".to_owned(), "own".to_owned());
    ensure!(ours.message()? == own, "a machine spoke for another, or reset itself");
    ours.publish("plant/press-1/command", "for another")?;
    ours.publish("plant/press-2/command", "for this one")?;
    let command = ("plant/press-2/command".to_owned(), "for this one".to_owned());
    ensure!(press.message()? == command, "a machine heard another's");
    let panel = broker.connect_by_certificate(&broker.authority, "operator-panel")?;
    panel.publish("plant/press-1/readings", "forged")?;
    panel.publish("plant/press-1/reset", "asked for")?;
    let reset = ("plant/press-1/reset".to_owned(), "asked for".to_owned());
    ensure!(ours.message()? == reset, "the panel measured something, or cannot reset");
    Ok(())
}

/// The machine of the manifest's desired properties is stopped, by what the manifest deploys, with neither hub nor Kafka.
#[test]
fn what_is_deployed_stops_a_machine() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let broker = Broker::start(root.path())?;
    let mut gateway = environment(&render(BASE)?, root.path())?;
    let admin = free_port()?;
    gateway.set("EDGE__MQTT__HOST", "127.0.0.1");
    gateway.set("EDGE__MQTT__PORT", &broker.plain.to_string());
    gateway.set("EDGE__ADMIN__LISTEN", &format!("127.0.0.1:{admin}"));
    gateway.set("EDGE__KAFKA__BROKERS", &format!("127.0.0.1:{}", free_port()?));
    let config = gateway.path("/etc/edge-module/edge-module.toml")?.display().to_string();
    let arguments = ["run", "--config", &config];
    let program = edge_module::program();
    let module = ChildProcess::start(
        "edge-module",
        root.path(),
        &program,
        &arguments,
        &gateway.variables(),
    )?;
    eventually("the edge module is ready", DEADLINE, || match http::get(admin, "/readyz")? {
        (200, _) => Ok(()),
        (status, body) => bail!("{status}: {body}"),
    })
    .with_context(|| module.tail())?;
    let press = broker.connect_by_certificate(&broker.authority, "press-1")?;
    press.subscribe(&["plant/press-1/command"])?;
    press.publish("plant/press-1/state", &json!({"state": "running"}).to_string())?;
    let reading = json!({
        "sensor_id": "press-1/oil",
        "machine_id": "press-1",
        "timestamp": now().to_string(),
        "metric_type": "temperature",
        "value": 120.0,
    });
    press.publish("plant/press-1/readings", &reading.to_string())?;
    let (_, command) = press.message().with_context(|| module.tail())?;
    ensure!(command.contains("\"stop\""), "{command}");
    Ok(())
}
