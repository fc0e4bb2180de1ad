//! A Kafka with the endpoint of an Event Hubs namespace: SASL PLAIN or OAUTHBEARER within TLS, on port 9093, and no record above a
//! small size.
//!
//! Clients of an Event Hub dial that port of the host that their connection string names, and no other. The endpoint has an
//! address of 127.0.0.0/8 of its own therefore, so that many of them run beside each other. Its certificate is of an authority of
//! its own; a client trusts it by `SSL_CERT_FILE`, the variable of OpenSSL.
//!
//! Tokens are checked by the validator that comes with Kafka: the signature against a key set, issuer, audience and times without
//! any tolerance. A connection lasts as long as the token that opened it, unless its client shows another.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::{Kafka, LOGGING, format_storage, java, path_text};
use crate::ports::free_port;

/// Port of the Kafka endpoint of a namespace.
const ENDPOINT_PORT: u16 = 9093;
/// User that says that the password is a connection string.
const USER: &str = "$ConnectionString";
/// Addresses that are tried: another process may have taken one.
const ATTEMPTS_MAX: usize = 100;
/// Longer than any token of a test: what ends a connection is its token.
const CONNECTION_MS_MAX: u64 = 3_600_000;
/// Prefix of the properties of the endpoint's listener.
const LISTENER: &str = "listener.name.sasl_ssl";
/// Kafka's classes for tokens.
const BEARER: &str = "org.apache.kafka.common.security.oauthbearer";

/// What brokers of a namespace have, for one broker.
#[derive(Debug)]
pub struct SecuredKafka {
    kafka: Kafka,
    endpoint: Endpoint,
    authority: PathBuf,
}

/// What stays when keys change.
#[derive(Clone, Copy, Debug)]
struct Endpoint {
    address: Ipv4Addr,
    port: u16,
    controller: u16,
    batch_bytes_max: usize,
}

impl SecuredKafka {
    /// Formats a storage folder in `dir`, starts the broker and waits until it takes requests. It takes the connection string with
    /// `key`; a batch of more than `batch_bytes_max` bytes it refuses.
    ///
    /// # Errors
    /// The jars or Java are missing, or it is not up within 90 s.
    pub fn start(dir: &Path, key: &str, batch_bytes_max: usize) -> anyhow::Result<Self> {
        let endpoint = Endpoint::free(batch_bytes_max)?;
        Self::start_with(dir, endpoint, &endpoint.login_by_key(key), &[])
    }

    /// As [`Self::start`], for whoever shows a token of `issuer` for [`Self::audience`], signed with a key of the JSON Web Key Set
    /// `key_set`. Such a broker is not made to be started again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_tokens(
        dir: &Path,
        issuer: &str,
        key_set: &str,
        batch_bytes_max: usize,
    ) -> anyhow::Result<Self> {
        let endpoint = Endpoint::free(batch_bytes_max)?;
        std::fs::create_dir_all(dir)?;
        let file = dir.join("keys.json");
        std::fs::write(&file, key_set)?;
        let keys = format!("file:{}", path_text(&file.canonicalize()?)?);
        // Kafka reads no URL that the command line does not name.
        let allowed = format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys}");
        Self::start_with(dir, endpoint, &endpoint.login_by_token(issuer, &keys), &[&allowed])
    }

    fn start_with(
        dir: &Path,
        endpoint: Endpoint,
        login: &str,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("log4j2.xml"), LOGGING)?;
        let authority = write_certificates(dir, endpoint.address)?;
        endpoint.write_config(dir, login)?;
        let config = path_text(&dir.join("server.properties"))?;
        format_storage(dir, &config)?;
        let arguments = [options, &["kafka.Kafka", &config]].concat();
        let process = Mutex::new(java("kafka", dir, &arguments)?);
        let links = Mutex::default();
        let kafka = Kafka { dir: dir.to_owned(), port: endpoint.port, process, links };
        kafka.wait_until_it_answers()?;
        Ok(Self { kafka, endpoint, authority })
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

    /// Host of the namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        self.endpoint.address.to_string()
    }

    /// What tokens for the endpoint are for.
    #[must_use]
    pub fn audience(&self) -> String {
        self.endpoint.audience()
    }

    /// What the broker has written to its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.kafka.process.lock().unwrap_or_else(PoisonError::into_inner).stdout()
    }

    /// The connection string with this key. The endpoint takes the one with its own.
    #[must_use]
    pub fn connection_string(&self, key: &str) -> String {
        self.endpoint.connection_string(key)
    }

    /// Ends the broker as a power cut would and starts it again: it takes the connection string with `key` alone from now on.
    ///
    /// # Errors
    /// It is not up within 90 s.
    pub fn restart_with_key(&self, key: &str) -> anyhow::Result<()> {
        let Self { kafka, endpoint, .. } = self;
        kafka.process.lock().unwrap_or_else(PoisonError::into_inner).kill()?;
        endpoint.write_config(&kafka.dir, &endpoint.login_by_key(key))?;
        kafka.restart()
    }
}

impl Endpoint {
    fn free(batch_bytes_max: usize) -> anyhow::Result<Self> {
        let address = free_address()?;
        Ok(Self { address, port: free_port()?, controller: free_port()?, batch_bytes_max })
    }

    fn connection_string(self, key: &str) -> String {
        let address = self.address;
        format!("Endpoint=sb://{address}/;SharedAccessKeyName=send;SharedAccessKey={key}")
    }

    fn audience(self) -> String {
        format!("https://{}", self.address)
    }

    /// Properties of the listener.
    fn login_by_key(self, key: &str) -> String {
        let password = self.connection_string(key);
        format!(
            "{LISTENER}.sasl.enabled.mechanisms=PLAIN\n\
             {LISTENER}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
             required user_{USER}=\"{password}\";\n"
        )
    }

    /// Properties of the listener; `keys` is the URL of the key set.
    fn login_by_token(self, issuer: &str, keys: &str) -> String {
        let audience = self.audience();
        let bearer = format!("{LISTENER}.oauthbearer");
        format!(
            "{LISTENER}.sasl.enabled.mechanisms=OAUTHBEARER\n\
             {bearer}.sasl.jaas.config={BEARER}.OAuthBearerLoginModule required;\n\
             {bearer}.sasl.server.callback.handler.class={BEARER}.OAuthBearerValidatorCallbackHandler\n\
             {bearer}.sasl.oauthbearer.jwks.endpoint.url={keys}\n\
             {bearer}.sasl.oauthbearer.expected.audience={audience}\n\
             {bearer}.sasl.oauthbearer.expected.issuer={issuer}\n\
             {bearer}.sasl.oauthbearer.clock.skew.seconds=0\n\
             {bearer}.connections.max.reauth.ms={CONNECTION_MS_MAX}\n"
        )
    }

    fn write_config(self, dir: &Path, login: &str) -> anyhow::Result<()> {
        let Self { address, port, controller, batch_bytes_max } = self;
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://{address}:{ENDPOINT_PORT},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://{address}:{ENDPOINT_PORT}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT\n\
             {LISTENER}.ssl.keystore.type=PEM\n{LISTENER}.ssl.keystore.location={}\n{login}\
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
