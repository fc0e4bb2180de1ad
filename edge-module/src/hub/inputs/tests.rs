//! What is judged, recorded and acknowledged, and when.

use std::time::Duration;

use edge_core::opc::OpcError;
use rumqttc::{EventLoop, MqttOptions};
use serde_json::{Value, json};

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);
/// Places for requests of the client.
const REQUESTS: usize = 16;
/// More than what is asserted not to happen would take.
const TURNS: usize = 100;

struct Bench {
    queue: InputQueue,
    client: AsyncClient,
    /// Never polled: what is asked of the client stays with it.
    event_loop: EventLoop,
    judged: mpsc::Receiver<Pieces>,
    recorded: mpsc::Receiver<OpcInput>,
    last_packet_id: u16,
}

impl Bench {
    /// With room for so many messages to be recorded; `x`, and `many-0` to `many-999`, are nodes of sensors of the same name.
    fn start(room: usize) -> Self {
        let names = (0..1_000).map(|number| format!("many-{number}"));
        let nodes = names.chain(["x".to_owned()]).map(|name| {
            let table = "[[opc-publisher.nodes]]\nmetric-type = \"temperature\"\n";
            format!("{table}field = \"{name}\"\nsensor = \"{name}\"\n")
        });
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("edge.toml");
        std::fs::write(&file, nodes.collect::<String>()).expect("writing");
        let settings = Settings::load(Some(&file)).expect("valid settings");
        let (protection, judged) = mpsc::channel(INPUT_QUEUE_LENGTH);
        let (recording, recorded) = mpsc::channel(room);
        let (queue, inputs) = Inputs::new(&settings, InputLines { protection, recording });
        tokio::spawn(inputs.run());
        let options = MqttOptions::new("test", "127.0.0.1", 1);
        let (client, event_loop) = AsyncClient::new(options, REQUESTS);
        Self { queue, client, event_loop, judged, recorded, last_packet_id: 0 }
    }

    fn offer(&mut self, body: &Value) -> bool {
        let payload = body.to_string();
        let mut publish = Publish::new("some/topic", QoS::AtLeastOnce, payload);
        self.last_packet_id += 1;
        publish.pkid = self.last_packet_id;
        let (input, client) = ("opc".to_owned(), self.client.clone());
        self.queue.offer(Delivery { input, publish, received: Instant::now(), client })
    }

    /// How many were acknowledged since the last look: so many places for requests are taken.
    fn acknowledged(&mut self) -> usize {
        let probe = || self.client.try_subscribe("probe", QoS::AtLeastOnce).is_ok();
        let free = std::iter::repeat_with(probe).take_while(|is_free| *is_free).count();
        self.event_loop.clean();
        self.event_loop.pending.clear();
        REQUESTS - free
    }

    async fn wait_acknowledged(&mut self, count: usize) {
        let until = async {
            let mut found = 0;
            while found < count {
                tokio::task::yield_now().await;
                found += self.acknowledged();
            }
            found
        };
        let found = tokio::time::timeout(DEADLINE, until).await.expect("acknowledged");
        assert_eq!(found, count);
    }

    /// Whether nothing is acknowledged although the task had its turns.
    async fn is_silent(&mut self) -> bool {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        self.acknowledged() == 0
    }

    async fn recorded(&mut self) -> OpcInput {
        let next = tokio::time::timeout(DEADLINE, self.recorded.recv()).await;
        next.expect("in time").expect("recorded")
    }

    async fn judged(&mut self) -> Pieces {
        let next = tokio::time::timeout(DEADLINE, self.judged.recv()).await;
        next.expect("in time").expect("judged")
    }
}

fn data_set(payload: &Value) -> Value {
    let time = now().to_string();
    json!({ "MessageType": "ua-data", "Messages": [{ "Timestamp": time, "Payload": payload }] })
}

fn words(pieces: &Pieces) -> Vec<String> {
    let word = |piece: &Piece| match piece {
        Piece::Reading(reading) => format!("{}={}", reading.sensor_id, reading.value),
        Piece::Block(block, _) => format!("block of {}", block.sensor_id),
        Piece::Unusable(sensor) => format!("{sensor} unusable"),
    };
    pieces.pieces.iter().map(word).collect()
}

#[tokio::test]
async fn a_message_is_judged_at_once_and_acknowledged_when_it_is_durable() {
    let mut bench = Bench::start(INPUT_QUEUE_LENGTH);
    assert!(bench.queue.reads("opc") && !bench.queue.reads("other"));
    assert!(bench.offer(&data_set(&json!({ "x": 1 }))));
    assert!(bench.offer(&data_set(&json!({ "x": 2 }))));
    assert_eq!(words(&bench.judged().await), ["x=1"]);
    assert_eq!(words(&bench.judged().await), ["x=2"]);
    let first = bench.recorded().await;
    let second = bench.recorded().await;
    assert_eq!(first.publish.topic, "inputs/opc", "the same for each repeat");
    assert!(first.publish.dup, "it may be one");
    assert!(bench.is_silent().await);
    // What comes later is not acknowledged before what came earlier.
    second.durable.send(()).expect("awaited");
    assert!(bench.is_silent().await);
    first.durable.send(()).expect("awaited");
    bench.wait_acknowledged(2).await;
}

#[tokio::test]
async fn what_never_becomes_durable_is_never_acknowledged() {
    let mut bench = Bench::start(INPUT_QUEUE_LENGTH);
    assert!(bench.offer(&data_set(&json!({ "x": 1 }))));
    drop(bench.recorded().await);
    assert!(bench.offer(&data_set(&json!({ "x": 2 }))));
    let second = bench.recorded().await;
    assert!(bench.is_silent().await);
    second.durable.send(()).expect("awaited, the first is given up");
    bench.wait_acknowledged(1).await;
    assert!(bench.is_silent().await, "one of the two");
}

#[tokio::test]
async fn a_message_without_values_for_us_is_acknowledged_at_once() {
    let mut bench = Bench::start(INPUT_QUEUE_LENGTH);
    for body in [json!({ "MessageType": "ua-metadata" }), data_set(&json!({ "unknown": 1 }))] {
        assert!(bench.offer(&body));
        bench.wait_acknowledged(1).await;
    }
    assert!(bench.recorded.try_recv().is_err() && bench.judged.try_recv().is_err());
}

#[tokio::test]
async fn what_is_refused_is_recorded_as_such_and_a_bad_sensor_is_told_to_the_stop_path() {
    let mut bench = Bench::start(INPUT_QUEUE_LENGTH);
    let bad = json!({ "StatusCode": 0x8031_0000_u32, "SourceTimestamp": now().to_string() });
    assert!(bench.offer(&data_set(&json!({ "x": bad }))));
    assert_eq!(words(&bench.judged().await), ["x unusable"]);
    let [Item::Refused(refused)] = &bench.recorded().await.message.items[..] else {
        panic!("one item");
    };
    assert!(matches!(refused.error, OpcError::BadStatus { .. }), "{}", refused.error);
    // From long ago: says nothing of the sensor now.
    let old = json!({ "NodeId": "?", "DisplayName": "x",
        "Value": { "StatusCode": 0x8031_0000_u32, "SourceTimestamp": "2026-01-01T00:00:00Z" } });
    assert!(bench.offer(&old));
    bench.recorded().await;
    assert!(bench.offer(&json!("no message")));
    bench.recorded().await;
    assert!(bench.judged.try_recv().is_err());
}

#[tokio::test]
async fn many_values_are_judged_in_slices() {
    let mut bench = Bench::start(INPUT_QUEUE_LENGTH);
    let fields: Vec<(String, Value)> =
        (0..600).map(|number| (format!("many-{number}"), json!(1))).collect();
    let fields: serde_json::Map<String, Value> = fields.into_iter().collect();
    assert!(bench.offer(&data_set(&Value::Object(fields))));
    for (length, is_last) in [(SLICE_VALUES, false), (SLICE_VALUES, false), (88, true)] {
        let pieces = bench.judged().await;
        assert_eq!((pieces.pieces.len(), pieces.is_last), (length, is_last));
    }
}

#[tokio::test]
async fn while_nothing_is_recorded_the_machine_is_protected_and_nothing_acknowledged() {
    let mut bench = Bench::start(1);
    for value in 1..=3 {
        assert!(bench.offer(&data_set(&json!({ "x": value }))));
        assert_eq!(words(&bench.judged().await), [format!("x={value}")]);
    }
    assert!(bench.is_silent().await);
    let first = bench.recorded().await;
    first.durable.send(()).expect("awaited");
    bench.wait_acknowledged(1).await;
    assert!(bench.is_silent().await, "the others come again");
    assert!(bench.recorded.try_recv().is_err(), "there was room for one");
}
