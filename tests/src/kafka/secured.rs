//! A Kafka with the endpoint of an Event Hubs namespace: SASL PLAIN within TLS, on port 9093, and no record above a small size.
//!
//! Clients of an Event Hub dial that port of the host that their connection string names, and no other. The endpoint has an
//! address of 127.0.0.0/8 of its own therefore, so that many of them run beside each other. Its certificate is of an authority of
//! its own; a client trusts it by `SSL_CERT_FILE`, the variable of OpenSSL.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::{Kafka, LOGGING, format_storage, launch, path_text};
use crate::ports::free_port;

/// Port of the Kafka endpoint of a namespace.
const ENDPOINT_PORT: u16 = 9093;
/// User that says that the password is a connection string.
const USER: &str = "$ConnectionString";
/// Addresses that are tried: another process may have taken one.
const ATTEMPTS_MAX: usize = 100;

/// What brokers of a namespace have, for one broker.
#[derive(Debug)]
pub struct SecuredKafka {
    kafka: Kafka,
    address: Ipv4Addr,
    controller: u16,
    authority: PathBuf,
    batch_bytes_max: usize,
}

impl SecuredKafka {
    /// Formats a storage folder in `dir`, starts the broker and waits until it takes requests. It takes the connection string with
    /// `key`; a batch of more than `batch_bytes_max` bytes it refuses.
    ///
    /// # Errors
    /// The jars or Java are missing, or it is not up within 90 s.
    pub fn start(dir: &Path, key: &str, batch_bytes_max: usize) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("log4j2.xml"), LOGGING)?;
        let address = free_address()?;
        let (port, controller) = (free_port()?, free_port()?);
        let authority = write_certificates(dir, address)?;
        write_config(dir, address, port, controller, key, batch_bytes_max)?;
        format_storage(dir, &path_text(&dir.join("server.properties"))?)?;
        let process = Mutex::new(launch(dir)?);
        let kafka = Kafka { dir: dir.to_owned(), port, process, links: Mutex::default() };
        kafka.wait_until_it_answers()?;
        Ok(Self { kafka, address, controller, authority, batch_bytes_max })
    }

    /// The same broker by its plain listener.
    #[must_use]
    pub fn plain(&self) -> &Kafka {
        &self.kafka
    }

    /// Certificate of the authority, PEM: value of `SSL_CERT_FILE`.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// The connection string with this key. The endpoint takes the one with its own.
    #[must_use]
    pub fn connection_string(&self, key: &str) -> String {
        connection_string(self.address, key)
    }

    /// Ends the broker as a power cut would and starts it again: it takes the connection string with `key` alone from now on.
    ///
    /// # Errors
    /// It is not up within 90 s.
    pub fn restart_with_key(&self, key: &str) -> anyhow::Result<()> {
        let Self { kafka, address, controller, batch_bytes_max, .. } = self;
        kafka.process.lock().unwrap_or_else(PoisonError::into_inner).kill()?;
        write_config(&kafka.dir, *address, kafka.port, *controller, key, *batch_bytes_max)?;
        kafka.restart()
    }
}

fn connection_string(address: Ipv4Addr, key: &str) -> String {
    format!("Endpoint=sb://{address}/;SharedAccessKeyName=send;SharedAccessKey={key}")
}

/// An address on which nobody listens at the port of the endpoint. No port is handed out twice: its number makes the address.
fn free_address() -> anyhow::Result<Ipv4Addr> {
    for _ in 0..ATTEMPTS_MAX {
        let [high, low] = free_port()?.to_be_bytes();
        let address = Ipv4Addr::new(127, 93, high, low);
        if TcpListener::bind((address, ENDPOINT_PORT)).is_ok() {
            return Ok(address);
        }
    }
    anyhow::bail!("port {ENDPOINT_PORT} is taken on {ATTEMPTS_MAX} addresses of 127.93.0.0/16")
}

/// Writes `endpoint.pem` (key and certificate) and `authority.pem`, and says where the latter is.
fn write_certificates(dir: &Path, address: Ipv4Addr) -> anyhow::Result<PathBuf> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, "authority of one test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);

    let mut params = CertificateParams::new([address.to_string()])?;
    params.distinguished_name.push(DnType::CommonName, "endpoint");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let endpoint = params.signed_by(&key, &issuer)?;

    let path = dir.join("authority.pem");
    std::fs::write(&path, authority.pem())?;
    std::fs::write(dir.join("endpoint.pem"), key.serialize_pem() + &endpoint.pem())?;
    path.canonicalize().context("the authority's certificate")
}

fn write_config(
    dir: &Path,
    address: Ipv4Addr,
    port: u16,
    controller: u16,
    key: &str,
    batch_bytes_max: usize,
) -> anyhow::Result<()> {
    let password = connection_string(address, key);
    let endpoint = "listener.name.sasl_ssl";
    let properties = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://{address}:{ENDPOINT_PORT},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://{address}:{ENDPOINT_PORT}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT\n\
         {endpoint}.ssl.keystore.type=PEM\n{endpoint}.ssl.keystore.location={}\n\
         {endpoint}.sasl.enabled.mechanisms=PLAIN\n\
         {endpoint}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
         required user_{USER}=\"{password}\";\n\
         log.dirs={}\nnum.partitions=1\ndefault.replication.factor=1\nmin.insync.replicas=1\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         share.coordinator.state.topic.replication.factor=1\ngroup.initial.rebalance.delay.ms=0\n\
         auto.create.topics.enable=false\nmessage.max.bytes={batch_bytes_max}\n",
        dir.join("endpoint.pem").display(),
        dir.join("data").display()
    );
    std::fs::write(dir.join("server.properties"), properties)?;
    Ok(())
}
