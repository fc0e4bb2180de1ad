//! The two services of the plant and the cloud, inside this process: an MQTT broker and a Kafka cluster.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::mocking::MockCluster;
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

use crate::eventually::eventually;
use crate::ports::free_port;

/// Connections of the demo: machines, two sessions of the edge module, and some to spare.
const MQTT_CONNECTIONS_MAX: usize = 64;
/// Largest payload; a block of the demo has some 4 KiB.
const MQTT_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Log that the broker keeps for each topic filter: segments of so many bytes, and so many of them.
const MQTT_SEGMENT_BYTES: usize = 8 << 20;
const MQTT_SEGMENTS_MAX: usize = 8;
const MQTT_IN_FLIGHT_MAX: usize = 100;
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Partitions of each topic of the cluster.
const PARTITIONS: i32 = 2;

/// `rumqttd` on a free port of 127.0.0.1, for as long as the process lives.
#[derive(Debug)]
pub struct EmbeddedBroker {
    port: u16,
}

impl EmbeddedBroker {
    /// Starts the broker and waits until it accepts connections.
    ///
    /// # Errors
    /// No free port, or it does not listen in time.
    pub fn start() -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut broker = Broker::new(broker_config(port));
        let (failed, failure) = sync_channel(1);
        std::thread::Builder::new().name("mqtt-broker".to_owned()).spawn(move || {
            if let Err(error) = broker.start() {
                // Nobody listens any more when the start has been given up.
                failed.send(error.to_string()).ok();
            }
        })?;
        eventually("the MQTT broker listens", START_DEADLINE, || {
            if let Ok(error) = failure.try_recv() {
                return Err(anyhow!("the MQTT broker has ended: {error}"));
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(anyhow::Error::from)
        })?;
        Ok(Self { port })
    }

    /// Where it listens on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

fn broker_config(port: u16) -> Config {
    let server = ServerSettings {
        name: "plant".to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: 10_000,
            max_payload_size: MQTT_PAYLOAD_BYTES_MAX,
            max_inflight_count: MQTT_IN_FLIGHT_MAX,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    Config {
        id: 0,
        router: RouterConfig {
            max_connections: MQTT_CONNECTIONS_MAX,
            max_outgoing_packet_count: 200,
            max_segment_size: MQTT_SEGMENT_BYTES,
            max_segment_count: MQTT_SEGMENTS_MAX,
            ..RouterConfig::default()
        },
        v4: Some(HashMap::from([("1".to_owned(), server)])),
        v5: None,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    }
}

enum Order {
    Down(SyncSender<anyhow::Result<()>>),
    Up(SyncSender<anyhow::Result<()>>),
}

/// librdkafka's mock cluster of one broker, on a thread of its own since it may not change threads. It keeps the
/// records in memory and ends with this value.
#[derive(Debug)]
pub struct EmbeddedKafka {
    bootstrap_servers: String,
    orders: Option<SyncSender<Order>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedKafka {
    /// Starts the cluster with these topics.
    ///
    /// # Errors
    /// librdkafka refuses.
    pub fn start(topics: &[&str]) -> anyhow::Result<Self> {
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        let (ready, started) = sync_channel(1);
        let (orders, receiver) = sync_channel(1);
        let thread =
            std::thread::Builder::new().name("kafka-cluster".to_owned()).spawn(move || {
                match start_cluster(&topics) {
                    Ok(cluster) => {
                        // The one who starts waits for this.
                        ready.send(Ok(cluster.bootstrap_servers())).ok();
                        obey(&cluster, &receiver);
                    }
                    Err(error) => {
                        ready.send(Err(error)).ok();
                    }
                }
            })?;
        let bootstrap_servers =
            started.recv().context("the Kafka cluster's thread has ended")??;
        Ok(Self { bootstrap_servers, orders: Some(orders), thread: Some(thread) })
    }

    /// Where clients begin.
    #[must_use]
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Breaks all connections and refuses new ones.
    ///
    /// # Errors
    /// librdkafka refuses.
    pub fn cut(&self) -> anyhow::Result<()> {
        self.order(Order::Down)
    }

    /// Accepts connections again.
    ///
    /// # Errors
    /// librdkafka refuses.
    pub fn restore(&self) -> anyhow::Result<()> {
        self.order(Order::Up)
    }

    fn order(&self, order: fn(SyncSender<anyhow::Result<()>>) -> Order) -> anyhow::Result<()> {
        let (reply, answer) = sync_channel(1);
        let orders = self.orders.as_ref().context("the Kafka cluster has been stopped")?;
        orders.send(order(reply)).context("the Kafka cluster's thread has ended")?;
        answer.recv().context("the Kafka cluster's thread has ended")?
    }
}

impl Drop for EmbeddedKafka {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic over there has been printed by the panic hook.
            thread.join().ok();
        }
    }
}

type Cluster = MockCluster<'static, rdkafka::producer::DefaultProducerContext>;

fn start_cluster(topics: &[String]) -> anyhow::Result<Cluster> {
    let cluster = MockCluster::new(1)?;
    for topic in topics {
        cluster.create_topic(topic, PARTITIONS, 1)?;
    }
    Ok(cluster)
}

fn obey(cluster: &Cluster, orders: &Receiver<Order>) {
    const ALL_BROKERS: i32 = -1;
    for order in orders {
        let (result, reply) = match order {
            Order::Down(reply) => (cluster.broker_down(ALL_BROKERS), reply),
            Order::Up(reply) => (cluster.broker_up(ALL_BROKERS), reply),
        };
        // The one who ordered waits for this.
        reply.send(result.map_err(anyhow::Error::from)).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::Message;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use rumqttc::{Client, Event, MqttOptions, Packet, QoS};

    use super::*;

    #[test]
    fn broker_delivers_and_keeps_what_is_retained() {
        let broker = EmbeddedBroker::start().unwrap();
        let connect =
            |name: &str| Client::new(MqttOptions::new(name, "127.0.0.1", broker.port()), 10);
        let (sender, mut sending) = connect("sender");
        sender.publish("plant/a/state", QoS::AtLeastOnce, true, "running").unwrap();
        for event in sending.iter() {
            if matches!(event.unwrap(), Event::Incoming(Packet::PubAck(_))) {
                break;
            }
        }
        let (receiver, mut receiving) = connect("receiver");
        receiver.subscribe("plant/+/state", QoS::AtLeastOnce).unwrap();
        let publish = receiving.iter().find_map(|event| match event.unwrap() {
            Event::Incoming(Packet::Publish(publish)) => Some(publish),
            Event::Incoming(_) | Event::Outgoing(_) => None,
        });
        assert_eq!(&publish.unwrap().payload[..], b"running");
    }

    #[test]
    fn records_survive_a_cut_and_arrive_once() {
        let kafka = EmbeddedKafka::start(&["readings"]).unwrap();
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap_servers())
            .set("enable.idempotence", "true")
            .set("reconnect.backoff.max.ms", "200")
            .create()
            .unwrap();
        let send = |number: u32| {
            let payload = number.to_string();
            let record = BaseRecord::<str, str>::to("readings").partition(0).payload(&payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        };
        (0..10).for_each(send);
        producer.flush(Duration::from_secs(20)).unwrap();
        kafka.cut().unwrap();
        (10..20).for_each(send);
        assert!(producer.flush(Duration::from_millis(300)).is_err(), "nobody is there");
        kafka.restore().unwrap();
        producer.flush(Duration::from_secs(20)).unwrap();

        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap_servers())
            .set("group.id", "reader")
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&["readings"]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut found = Vec::new();
        while found.len() < 20 && Instant::now() < deadline {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                found.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap());
            }
        }
        let expected: Vec<String> = (0..20).map(|number: u32| number.to_string()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn consumer_goes_on_after_a_cut() {
        let kafka = EmbeddedKafka::start(&["readings"]).unwrap();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", kafka.bootstrap_servers())
            .set("reconnect.backoff.max.ms", "200");
        let producer: BaseProducer = config.create().unwrap();
        let send = |payload: &str| {
            let record = BaseRecord::<str, str>::to("readings").partition(0).payload(payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        };
        config.set("group.id", "reader").set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&["readings"]).unwrap();
        let receive = || {
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                    return Some(message.payload().unwrap().to_vec());
                }
            }
            None
        };
        send("before");
        assert_eq!(receive().as_deref(), Some(b"before".as_slice()));
        kafka.cut().unwrap();
        assert!(consumer.poll(Duration::from_secs(2)).is_none_or(|answer| answer.is_err()));
        kafka.restore().unwrap();
        send("after");
        assert_eq!(receive().as_deref(), Some(b"after".as_slice()));
    }
}
