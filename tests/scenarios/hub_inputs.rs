//! Messages of OPC Publisher that a route of IoT Edge brings to the edge module: they protect the machine, are recorded once, and are
//! acknowledged when they are.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use e2e_tests::eventually::{eventually, eventually_true};
use e2e_tests::http::metric;
use e2e_tests::hub::{HubSettings, HubStandIn};
use serde_json::{Value, json};
use shared_proto::model::EventTime;

use crate::gateway::{Gateway, MOTOR, machine_toml};
use crate::plant::{DEADLINE, kafka, now};

const OIL_NODE: &str = "nsu=http://example.org/press/;s=Oil.Temperature";
const PLC: &str = "opc.tcp://plc-1:4840/";
/// A link that is tried again takes up to twice its longest wait, and the time of its connection.
const LINK_DEADLINE: Duration = Duration::from_secs(40);

/// A motor with a limit on its oil, and two OPC nodes.
fn machines() -> String {
    let limit = "[[machines.limits]]\nname = \"hot\"\nsensor = \"motor-1/oil\"\n\
                 quantity = \"value\"\nabove = 80.0\n";
    let node = |name: &str, sensor: &str, metric: &str| {
        format!(
            "[[opc-publisher.nodes]]\n{name}\nsensor = \"{MOTOR}/{sensor}\"\n\
             machine = \"{MOTOR}\"\nmetric-type = \"{metric}\"\nunit = \"u\"\n"
        )
    };
    let oil = node(&format!("node = \"{OIL_NODE}\""), "oil", "temperature");
    let line = node("field = \"Line.Pressure\"\nwriter = \"Press1\"", "line", "pressure");
    format!("{}{limit}{oil}{line}", machine_toml(MOTOR, ""))
}

struct Linked {
    hub: HubStandIn,
    gateway: Gateway,
}

impl Linked {
    fn start(name: &str) -> anyhow::Result<Self> {
        let hub = HubStandIn::start(HubSettings::default())?;
        let mut environment = hub.module_environment();
        for (key, value) in [
            ("PORT", hub.port().to_string()),
            ("RECONNECT_MIN", "50ms".to_owned()),
            ("RECONNECT_MAX", "1s".to_owned()),
            ("CONNECT_TIMEOUT", "2s".to_owned()),
        ] {
            environment.push((format!("EDGE__IOT_HUB__{key}"), value));
        }
        let gateway = Gateway::start_with(name, &machines(), None, environment)?;
        let linked = Self { hub, gateway };
        eventually_true("inputs are subscribed to", LINK_DEADLINE, || {
            linked.hub.subscriptions().iter().any(|filter| filter.ends_with("inputs/#"))
        })?;
        Ok(linked)
    }

    fn send(&self, form: &str, body: &Value) {
        let properties = [("$$ContentType", form), ("$$ContentEncoding", "utf-8")];
        self.hub.send_input("opc", &properties, body.to_string().as_bytes());
    }

    fn wait_acknowledged(&self, what: &str) -> anyhow::Result<()> {
        eventually(&format!("{what}: acknowledged"), LINK_DEADLINE, || {
            let waiting = self.hub.waiting_inputs();
            ensure!(waiting == 0, "{waiting} wait\n{}", self.gateway.edge.describe());
            Ok(())
        })
    }

    /// Records of a topic, when there are as many different ones.
    fn wait_values(&self, topic: &str, count: usize) -> anyhow::Result<Vec<Value>> {
        eventually(&format!("{count} readings in {topic}"), DEADLINE, || {
            let found = kafka()?.read_json(&self.gateway.plant.topic(topic))?;
            let different = different(&found).len();
            ensure!(different >= count, "{different} are there");
            anyhow::Ok(found)
        })
    }

    fn metric(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        Ok(metric(&self.gateway.edge.metrics()?, name, label).unwrap_or_default())
    }
}

const SAMPLES: &str = "application/x-monitored-item-json-v1";
const PUB_SUB: &str = "application/x-network-message-json-v1";

fn sample(value: f64, time: EventTime) -> Value {
    json!({
        "NodeId": OIL_NODE, "EndpointUrl": PLC, "DisplayName": "Oil",
        "Timestamp": now().to_string(),
        "Value": { "Value": value, "SourceTimestamp": time.to_string() },
    })
}

fn network(fields: &Value) -> Value {
    json!({
        "MessageId": "1", "MessageType": "ua-data", "PublisherId": "plc-1",
        "Messages": [{
            "DataSetWriterId": 7, "DataSetWriterName": "Press1", "MessageType": "ua-deltaframe",
            "Timestamp": now().to_string(), "Payload": fields,
        }],
    })
}

/// Each record once: after a kill the journal sends again what it had not noted as delivered, under the same sequences.
fn different(records: &[Value]) -> Vec<&Value> {
    let mut sequences = BTreeSet::new();
    let is_new = |record: &&Value| sequences.insert(record["sequence"].as_u64());
    records.iter().filter(is_new).collect()
}

fn sorted(readings: &[Value]) -> Vec<f64> {
    let readings = different(readings).into_iter();
    let mut values: Vec<f64> = readings.filter_map(|reading| reading["value"].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values
}

#[test]
fn both_forms_arrive_once_through_lost_connections_and_a_kill() -> anyhow::Result<()> {
    let mut linked = Linked::start("opc-forms")?;
    let start = now();
    let at = |step: i64| start.saturating_add_micros(step);
    linked.send(SAMPLES, &sample(20.0, at(0)));
    linked.send(SAMPLES, &json!([sample(21.0, at(1)), sample(22.0, at(2))]));
    let stamp = at(3).to_string();
    let good = json!({ "Value": 4.5, "SourceTimestamp": stamp });
    let uncertain = json!({ "Value": { "Type": 11, "Body": 23.0 }, "SourceTimestamp": stamp,
        "StatusCode": { "Code": 0x4090_0000_u32, "Symbol": "UncertainLastUsableValue" } });
    let nobodys = json!({ "Value": 1, "SourceTimestamp": stamp });
    let fields = json!({ "Line.Pressure": good, OIL_NODE: uncertain, "Nobody": nobodys });
    linked.send(PUB_SUB, &network(&fields));
    linked.wait_acknowledged("both forms")?;
    let oil = linked.wait_values("temperature", 4)?;
    ensure!(sorted(&oil) == [20.0, 21.0, 22.0, 23.0], "{oil:?}");
    let first = oil.iter().find(|reading| reading["value"] == 20.0).unwrap_or(&Value::Null);
    ensure!(
        first["sensor_id"] == "motor-1/oil"
            && first["machine_id"] == MOTOR
            && first["timestamp"] == at(0).to_string()
            && first["quality"] == "good",
        "{first}"
    );
    ensure!(oil.iter().any(|it| it["value"] == 23.0 && it["quality"] == "uncertain"), "{oil:?}");
    let line = linked.wait_values("pressure", 1)?;
    ensure!(sorted(&line) == [4.5], "{line:?}");
    ensure!(linked.metric("opc_values_unmapped_total", "")? == 1.0, "one node is nobody's");
    // The hub sends again without saying so, over new connections and to a module that was killed.
    for round in 0..3 {
        linked
            .send(SAMPLES, &json!([sample(21.0, at(1)), sample(30.0 + f64::from(round), at(10))]));
        linked.hub.drop_connections();
        linked.wait_acknowledged("sent again")?;
    }
    linked.send(SAMPLES, &sample(40.0, at(20)));
    linked.wait_values("temperature", 8)?;
    linked.gateway.edge.process().kill()?;
    linked.send(SAMPLES, &json!([sample(40.0, at(20)), sample(41.0, at(21))]));
    linked.gateway.restart()?;
    linked.wait_acknowledged("after a kill")?;
    let oil = linked.wait_values("temperature", 9)?;
    let expected = [20.0, 21.0, 22.0, 23.0, 30.0, 31.0, 32.0, 40.0, 41.0];
    ensure!(sorted(&oil) == expected, "{:?}", sorted(&oil));
    Ok(())
}

#[test]
fn what_is_wrong_is_a_dead_letter_and_stops_nothing() -> anyhow::Result<()> {
    let linked = Linked::start("opc-wrong")?;
    let stamp = now().to_string();
    let of = |value: Value| json!({ "NodeId": OIL_NODE, "Value": value });
    let value = |value: Value| of(json!({ "Value": value, "SourceTimestamp": stamp }));
    let bad = json!({ "StatusCode": 0x8031_0000_u32, "SourceTimestamp": stamp });
    let wrong = [
        ("opc-array", value(json!([1.0, 2.0]))),
        ("opc-type", value(json!("warm"))),
        ("not-finite", value(json!("NaN"))),
        ("timestamp", of(json!({ "Value": 1.0 }))),
        ("bad-status", of(bad)),
        ("opc-form", json!({ "hello": "world" })),
    ];
    let all: Vec<&Value> = wrong.iter().map(|(_, message)| message).collect();
    linked.send(SAMPLES, &json!(all));
    linked.hub.send_input("opc", &[], b"\x1f\x8b\x08\x00 compressed");
    linked.hub.send_input("opc", &[], b"no JSON");
    linked.hub.send_input("other", &[], b"an input that nobody reads");
    linked.send(PUB_SUB, &json!({ "MessageType": "ua-metadata", "MetaData": {} }));
    linked.send(SAMPLES, &sample(20.0, now()));
    linked.wait_acknowledged("what is wrong")?;
    linked.wait_values("temperature", 1)?;
    let letters = linked.wait_values("dead-letters", wrong.len() + 2)?;
    let mut reasons: Vec<&str> =
        letters.iter().filter_map(|letter| letter["reason"].as_str()).collect();
    reasons.sort_unstable();
    let mut expected: Vec<&str> = wrong.iter().map(|(reason, _)| *reason).collect();
    expected.extend(["compressed", "json"]);
    expected.sort_unstable();
    ensure!(reasons == expected, "{reasons:?}");
    ensure!(letters.iter().all(|letter| letter["source"] == "inputs/opc"), "{letters:?}");
    ensure!(linked.metric("opc_parts_skipped_total", "metadata")? == 1.0, "metadata");
    ensure!(linked.metric("hub_refused_total", "reason=\"input\"")? == 1.0, "nobody reads it");
    ensure!(linked.gateway.motor.commands().is_empty(), "nothing is stopped by that");
    Ok(())
}

#[test]
fn a_limit_stops_the_machine_by_a_value_of_now_and_not_by_one_of_before() -> anyhow::Result<()> {
    let linked = Linked::start("opc-limit")?;
    let old = json!({ "NodeId": OIL_NODE, "Value": {
        "Value": 95.0, "SourceTimestamp": now().saturating_sub_micros(120_000_000).to_string(),
    }});
    linked.send(SAMPLES, &old);
    linked.send(SAMPLES, &sample(79.9, now()));
    linked.wait_values("temperature", 2)?;
    eventually("both are judged or passed over", DEADLINE, || {
        let passed = linked.metric("input_not_judged_total", "historical")?;
        let judged = linked.metric("mqtt_messages_total", "session=\"protection\"")?;
        ensure!(passed == 1.0 && judged == 2.0, "{passed} {judged}");
        Ok(())
    })?;
    ensure!(linked.gateway.motor.commands().is_empty(), "stopped by what was long ago");
    let hot = json!({ "Value": 80.1, "SourceTimestamp": now().to_string() });
    linked.send(PUB_SUB, &network(&json!({ OIL_NODE: hot })));
    let trip = linked.gateway.wait_for_trip(&linked.gateway.motor, MOTOR)?;
    ensure!(trip["rule"] == "hot", "{trip}");
    linked.wait_acknowledged("the value that stopped it")
}
