//! A real Apache Kafka of one node (KRaft, broker and controller in one process) from the jars of the set-up step.
//!
//! Besides its plain listener it has [`LINKS`] more, each advertised through a proxy of its own: a client of a link sees
//! nothing of the broker when the link is cut, while everybody else goes on. [`KafkaCluster`] is one of several brokers,
//! [`SecuredKafka`] one that clients reach as an Event Hub.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use shared_proto::wire::CONTENT_TYPE_HEADER;

use crate::eventually::eventually;
use crate::ports::free_port;
use crate::process::ChildProcess;
use crate::proxy::TcpProxy;

mod admin;
mod cluster;
mod hub;
mod secured;

pub use cluster::KafkaCluster;
pub use hub::HubRecord;
pub use secured::SecuredKafka;

/// Listeners that can be cut, each to be taken once.
pub const LINKS: usize = 8;

/// The topics of a plant.
pub const TOPICS: [&str; 8] = [
    "temperature",
    "pressure",
    "vibration",
    "machine-events",
    "waveforms",
    "dead-letters",
    "alerts",
    "outcomes",
];

const FORMAT_DEADLINE: Duration = Duration::from_secs(60);
const START_DEADLINE: Duration = Duration::from_secs(90);
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// How long a loader lets the client work when its queue is full.
const LOADER_PAUSE: Duration = Duration::from_millis(10);
const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";
const LOGGING: &str = r#"<Configuration status="WARN"><Appenders><Console name="console"><PatternLayout
pattern="%d{ISO8601} %p %c{1}: %m%n"/></Console></Appenders><Loggers><Root level="INFO"><AppenderRef
ref="console"/></Root></Loggers></Configuration>
"#;

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    dir: PathBuf,
    port: u16,
    process: Mutex<ChildProcess>,
    links: Mutex<Vec<TcpProxy>>,
}

impl Kafka {
    /// Formats a storage folder in `dir`, starts the broker and waits until it takes requests.
    ///
    /// # Errors
    /// The jars or Java are missing, or it is not up within 90 s.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        let links = write_config(dir, port)?;
        let config = path_text(&dir.join("server.properties"))?;
        format_storage(dir, &config)?;
        let process = Mutex::new(launch(dir)?);
        let kafka = Self { dir: dir.to_owned(), port, process, links: Mutex::new(links) };
        kafka.wait_until_it_answers()?;
        Ok(kafka)
    }

    /// `bootstrap.servers` of the plain listener.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A line to the broker that can be cut; its port is the only one that a client of it learns of.
    ///
    /// # Errors
    /// All [`LINKS`] are taken.
    pub fn take_link(&self) -> anyhow::Result<TcpProxy> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.pop().with_context(|| format!("all {LINKS} links are taken"))
    }

    /// Ends the broker as a power cut would.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).kill()
    }

    /// Starts the broker again on the same ports and storage, after [`Self::kill`].
    ///
    /// # Errors
    /// It is not up within 90 s.
    pub fn restart(&self) -> anyhow::Result<()> {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = launch(&self.dir)?;
        self.wait_until_it_answers()
    }

    /// Creates topics with so many partitions each.
    ///
    /// # Errors
    /// The broker refuses, for example because one is there already.
    pub fn create_topics(&self, names: &[&str], partitions: i32) -> anyhow::Result<()> {
        admin::create_topics(&self.bootstrap(), names, partitions, 1)
    }

    /// Sends `(key, value)` pairs to a topic in order and waits until all are acknowledged.
    ///
    /// # Errors
    /// One is refused or not acknowledged within 30 s.
    pub fn produce(&self, topic: &str, records: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
        produce(&self.bootstrap(), topic, records)
    }

    /// Sends many records to any topics, compressed as edge modules do.
    ///
    /// # Errors
    /// The client refuses its properties.
    pub fn loader(&self) -> anyhow::Result<Loader> {
        self.loader_with(&[])
    }

    /// As [`Self::loader`], with other properties of the client.
    ///
    /// # Errors
    /// The client refuses its properties.
    pub fn loader_with(&self, properties: &[(&str, &str)]) -> anyhow::Result<Loader> {
        Loader::new(&self.bootstrap(), properties)
    }

    /// Follows a topic from its end, as fast as records come.
    ///
    /// # Errors
    /// The topic is not there.
    pub fn tail(&self, topic: &str) -> anyhow::Result<Tail> {
        self.tail_all(&[topic])
    }

    /// Follows several topics from their ends, as fast as records come.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn tail_all(&self, topics: &[&str]) -> anyhow::Result<Tail> {
        let consumer: BaseConsumer = client_config(&self.bootstrap())
            .set("group.id", "reader-without-commits")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "50")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), REQUEST_DEADLINE)?;
            for partition in metadata.topics().first().context("no such topic")?.partitions() {
                let id = partition.id();
                let (_, high) = consumer.fetch_watermarks(topic, id, REQUEST_DEADLINE)?;
                assignment.add_partition_offset(topic, id, Offset::Offset(high))?;
            }
        }
        consumer.assign(&assignment)?;
        Ok(Tail { consumer })
    }

    /// Everything that a topic holds now, partition by partition.
    ///
    /// # Errors
    /// The topic is not there, or it cannot be read within 30 s.
    pub fn read_all(&self, topic: &str) -> anyhow::Result<Vec<OwnedMessage>> {
        let consumer: BaseConsumer = self
            .client_config()
            .set("group.id", "reader-without-commits")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "false")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), REQUEST_DEADLINE)?;
        let partitions = metadata.topics().first().context("no such topic")?.partitions();
        let mut assignment = TopicPartitionList::new();
        let mut expected = 0;
        for partition in partitions {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), REQUEST_DEADLINE)?;
            assignment.add_partition_offset(topic, partition.id(), Offset::Offset(low))?;
            expected += usize::try_from(high - low)?;
        }
        consumer.assign(&assignment)?;
        let mut messages = Vec::with_capacity(expected);
        while messages.len() < expected {
            match consumer.poll(REQUEST_DEADLINE) {
                Some(message) => messages.push(message?.detach()),
                None => bail!("{topic}: {} of {expected} records within 30 s", messages.len()),
            }
        }
        Ok(messages)
    }

    /// Like [`Self::read_all`], the values as JSON.
    ///
    /// # Errors
    /// As [`Self::read_all`], or a value is not JSON.
    pub fn read_json(&self, topic: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let messages = self.read_all(topic)?;
        messages
            .iter()
            .map(|message| Ok(serde_json::from_slice(message.payload().unwrap_or_default())?))
            .collect()
    }

    fn client_config(&self) -> ClientConfig {
        client_config(&self.bootstrap())
    }

    fn wait_until_it_answers(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        wait_until_it_answers(&self.bootstrap(), &mut process, 1)
    }
}

/// Waits until so many brokers are known at `bootstrap`, as long as `process` lives.
fn wait_until_it_answers(
    bootstrap: &str,
    process: &mut ChildProcess,
    brokers: usize,
) -> anyhow::Result<()> {
    let consumer: BaseConsumer = client_config(bootstrap).create()?;
    eventually("Kafka answers", START_DEADLINE, || {
        if !process.is_running()? {
            return Ok(Err(anyhow::anyhow!("Kafka ended:\n{}", process.tail())));
        }
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(2))?;
        let known = metadata.brokers().len();
        anyhow::ensure!(known >= brokers, "{known} of {brokers} brokers");
        anyhow::Ok(Ok(()))
    })?
}

fn client_config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// Sends `(key, value)` pairs to a topic in order and waits until all in-sync replicas have them.
///
/// # Errors
/// One is refused or not acknowledged within 30 s.
pub fn produce(bootstrap: &str, topic: &str, records: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    let producer: ThreadedProducer<DefaultProducerContext> = client_config(bootstrap)
        .set("enable.idempotence", "true")
        .set("queue.buffering.max.messages", "2000000")
        .set("message.max.bytes", "20000000")
        .create()?;
    for (key, value) in records {
        producer
            .send(BaseRecord::to(topic).key(key).payload(value))
            .map_err(|(error, _)| error)
            .with_context(|| format!("sending to {topic}"))?;
    }
    producer.flush(REQUEST_DEADLINE).context("waiting for acknowledgements")
}

/// Sends records in one transaction, so that the last offset of each partition is its mark and no record.
///
/// # Errors
/// As [`produce`], or the brokers do not commit within 30 s.
pub fn produce_transaction(
    bootstrap: &str,
    topic: &str,
    records: &[(String, Vec<u8>)],
) -> anyhow::Result<()> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        client_config(bootstrap).set("transactional.id", format!("writer of {topic}")).create()?;
    producer.init_transactions(REQUEST_DEADLINE)?;
    producer.begin_transaction()?;
    for (key, value) in records {
        producer
            .send(BaseRecord::to(topic).key(key).payload(value))
            .map_err(|(error, _)| error)
            .with_context(|| format!("sending to {topic}"))?;
    }
    producer.commit_transaction(REQUEST_DEADLINE).context("committing the transaction")
}

/// See [`Kafka::loader`].
pub struct Loader {
    producer: ThreadedProducer<DefaultProducerContext>,
}

impl Loader {
    fn new(bootstrap: &str, properties: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut config = client_config(bootstrap);
        config
            .set("enable.idempotence", "true")
            .set("compression.codec", "snappy")
            .set("linger.ms", "50")
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.messages", "200000")
            .set("message.max.bytes", "20000000");
        for (property, value) in properties {
            config.set(*property, *value);
        }
        Ok(Self { producer: config.create()? })
    }

    /// Hands one record over; waits while too many are on their way.
    ///
    /// # Errors
    /// The client refuses it.
    pub fn send(&self, topic: &str, key: &str, payload: &[u8]) -> anyhow::Result<()> {
        loop {
            match self.producer.send(BaseRecord::to(topic).key(key).payload(payload)) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.poll(LOADER_PAUSE);
                }
                Err((error, _)) => {
                    return Err(error).with_context(|| format!("sending to {topic}"));
                }
            }
        }
    }

    /// Hands over a record as it is: perhaps without payload, with any content type or none. Waits as [`Self::send`] does.
    ///
    /// # Errors
    /// The client refuses it.
    pub fn send_as_is(
        &self,
        topic: &str,
        key: &str,
        payload: Option<&[u8]>,
        content_type: Option<&str>,
    ) -> anyhow::Result<()> {
        loop {
            let mut record = BaseRecord::<str, [u8]>::to(topic).key(key);
            if let Some(payload) = payload {
                record = record.payload(payload);
            }
            if let Some(value) = content_type {
                let header = Header { key: CONTENT_TYPE_HEADER, value: Some(value) };
                record = record.headers(OwnedHeaders::new().insert(header));
            }
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.poll(LOADER_PAUSE);
                }
                Err((error, _)) => {
                    return Err(error).with_context(|| format!("sending to {topic}"));
                }
            }
        }
    }

    /// Waits until all are acknowledged.
    ///
    /// # Errors
    /// They are not within 30 s.
    pub fn finish(self) -> anyhow::Result<()> {
        self.producer.flush(REQUEST_DEADLINE).context("waiting for acknowledgements")
    }
}

/// See [`Kafka::tail`].
pub struct Tail {
    consumer: BaseConsumer,
}

impl Tail {
    /// The next record, if one comes in time.
    ///
    /// # Errors
    /// The broker does not give it.
    pub fn next(&self, wait: Duration) -> anyhow::Result<Option<OwnedMessage>> {
        Ok(self.consumer.poll(wait).transpose()?.map(|message| message.detach()))
    }
}

fn write_config(dir: &Path, port: u16) -> anyhow::Result<Vec<TcpProxy>> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("log4j2.xml"), LOGGING)?;
    let controller = free_port()?;
    let mut listeners = format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
    let mut advertised = format!("PLAINTEXT://127.0.0.1:{port}");
    let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
    let mut links = Vec::with_capacity(LINKS);
    for number in 1..=LINKS {
        let behind = free_port()?;
        let proxy = TcpProxy::start(behind)?;
        listeners += &format!(",LINK{number}://127.0.0.1:{behind}");
        advertised += &format!(",LINK{number}://127.0.0.1:{}", proxy.port());
        protocols += &format!(",LINK{number}:PLAINTEXT");
        links.push(proxy);
    }
    let data = dir.join("data");
    let properties = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\nlisteners={listeners}\nadvertised.listeners={advertised}\n\
         inter.broker.listener.name=PLAINTEXT\nlistener.security.protocol.map={protocols}\n\
         log.dirs={}\nnum.partitions=3\ndefault.replication.factor=1\nmin.insync.replicas=1\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=3\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         share.coordinator.state.topic.replication.factor=1\ngroup.initial.rebalance.delay.ms=0\n\
         auto.create.topics.enable=false\nmessage.max.bytes=20000000\n",
        data.display()
    );
    std::fs::write(dir.join("server.properties"), properties)?;
    Ok(links)
}

fn format_storage(dir: &Path, config: &str) -> anyhow::Result<()> {
    let arguments = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", config];
    let mut format = java("kafka-format", dir, &arguments)?;
    if !format.wait(FORMAT_DEADLINE)?.success() {
        bail!("formatting Kafka's storage failed:\n{}", format.tail());
    }
    Ok(())
}

fn launch(dir: &Path) -> anyhow::Result<ChildProcess> {
    let config = path_text(&dir.join("server.properties"))?;
    java("kafka", dir, &["kafka.Kafka", &config])
}

fn java(name: &str, dir: &Path, arguments: &[&str]) -> anyhow::Result<ChildProcess> {
    let jars = crate::setup_dir().join("kafka/lib");
    if !jars.exists() {
        bail!("{} is missing: run deployment-manifests/local/setup test", jars.display());
    }
    let logging = format!("-Dlog4j2.configurationFile={}", dir.join("log4j2.xml").display());
    let class_path = format!("{}/*", jars.display());
    // Small heap and the first compiler only: tests start it often and ask little of it.
    let mut all = vec![
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        &logging,
        "-cp",
        &class_path,
    ];
    all.extend(arguments);
    ChildProcess::start(name, dir, &find_java()?, &all, &[])
}

fn find_java() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("java"))
        .find(|program| program.exists())
        .context("java is missing: run deployment-manifests/local/setup test")
}

fn path_text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("the folder's path is not UTF-8")?.to_owned())
}
