//! Records by the hub where Kafka is away, or not there at all: what is asserted is what Kafka and the hub hold together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::hub::{Fault, HubSettings, HubStandIn};
use e2e_tests::publisher::Publisher;
use serde_json::{Value, json};

use crate::outages::{minutes_ago, publish_readings};
use crate::plant::{DEADLINE, Plant, kafka};

const SENSOR: &str = "press-1/oil";
/// Of those that the scenario reads; all lanes but waveforms.
const TOPICS: [&str; 3] = ["temperature", "machine-events", "dead-letters"];
/// A link that breaks is tried again within its longest wait, and what was on it is sent again after a wait of its own.
const LINK_DEADLINE: Duration = Duration::from_secs(120);

/// A gateway with a hub.
struct Gateway {
    hub: HubStandIn,
    plant: Plant,
    edge: EdgeModule,
    publisher: Publisher,
    published: i64,
    start: shared_proto::model::EventTime,
}

/// What arrived on one way, by topic, in the order of arrival.
type Arrived = BTreeMap<String, Vec<Value>>;

impl Gateway {
    /// `upstream` is the table of the settings; `bootstrap` another address of Kafka.
    fn start(name: &str, upstream: &str, bootstrap: String) -> anyhow::Result<Self> {
        let hub = HubStandIn::start(HubSettings::default())?;
        let mut plant = Plant::new(name)?;
        plant.edge_settings.kafka_bootstrap = bootstrap;
        plant.edge_settings.machines = format!("[upstream]\n{upstream}\n");
        let mut environment = hub.module_environment();
        let quick = [
            ("PORT", hub.port().to_string()),
            ("RECONNECT_MIN", "50ms".to_owned()),
            ("RECONNECT_MAX", "1s".to_owned()),
            ("CONNECT_TIMEOUT", "2s".to_owned()),
            ("KEEP_ALIVE", "5s".to_owned()),
        ];
        let quick = quick.map(|(name, value)| (format!("EDGE__IOT_HUB__{name}"), value));
        environment.extend(quick);
        plant.edge_settings.environment = environment;
        let edge = plant.start_edge_module()?;
        let publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
        Ok(Self { hub, plant, edge, publisher, published: 0, start: minutes_ago(120) })
    }

    /// Further readings, and one message that is none and so a dead letter.
    fn publish(&mut self, count: i64) -> anyhow::Result<()> {
        let numbers = self.published..self.published + count;
        publish_readings(&mut self.publisher, SENSOR, self.start, numbers)?;
        self.published += count;
        self.publisher.publish("plant/press-1/readings", "no reading")?;
        self.publisher.wait_acknowledged(DEADLINE)
    }

    fn by_kafka(&self) -> anyhow::Result<Arrived> {
        let mut arrived = Arrived::new();
        for name in TOPICS {
            let topic = self.plant.topic(name);
            arrived.insert(topic.clone(), kafka()?.read_json(&topic)?);
        }
        Ok(arrived)
    }

    fn by_hub(&self) -> anyhow::Result<Arrived> {
        let mut arrived = Arrived::new();
        for message in self.hub.messages() {
            let topic = message.properties.get("topic").context("no topic")?.clone();
            ensure!(message.output.as_deref() == Some("telemetry"), "{message:?}");
            ensure!(message.system["$.ct"] == "application/json", "{message:?}");
            ensure!(message.system["$.ce"] == "utf-8", "{message:?}");
            ensure!(message.properties["content-type"] == "application/json", "{message:?}");
            ensure!(message.body.len() <= 240 << 10, "{} bytes", message.body.len());
            let records: Vec<Value> = serde_json::from_slice(&message.body)?;
            ensure!(message.properties.contains_key("key") == (records.len() == 1), "{message:?}");
            arrived.entry(topic).or_default().extend(records);
        }
        Ok(arrived)
    }

    /// Waits until one of both has all readings that were published.
    fn wait_for_readings(&self) -> anyhow::Result<()> {
        let expected = self.published as usize;
        let waited = eventually("all readings have arrived", LINK_DEADLINE, || {
            let topic = self.plant.topic("temperature");
            let mut numbers = BTreeSet::new();
            for arrived in [self.by_kafka()?, self.by_hub()?] {
                numbers.extend(arrived.get(&topic).into_iter().flatten().filter_map(sequence_of));
            }
            ensure!(numbers.len() >= expected, "{} of {expected}", numbers.len());
            anyhow::Ok(())
        });
        waited.with_context(|| self.edge.describe())
    }

    fn wait_for_way(&self, name: &str) -> anyhow::Result<()> {
        let waited = eventually(&format!("records go to {name}"), LINK_DEADLINE, || {
            let active = metric(&self.edge.metrics()?, "upstream_active", name);
            ensure!(active == Some(1.0), "{active:?}");
            let status: Value = serde_json::from_str(&self.edge.get("/status")?.1)?;
            ensure!(status["journal"]["upstream"] == name, "{status}");
            anyhow::Ok(())
        });
        waited.with_context(|| self.edge.describe())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.edge.process().terminate()?;
        let status = self.edge.process().wait(DEADLINE)?;
        ensure!(status.success(), "{status}:\n{}", self.edge.process().tail());
        Ok(())
    }

    /// Each sequence up to the highest has arrived, the readings are those that were published, a record that came both ways is one
    /// and the same, and each way brought each topic in order, repeats aside. Gives how many came both ways.
    fn check(&self) -> anyhow::Result<usize> {
        let ways = [("kafka", self.by_kafka()?), ("hub", self.by_hub()?)];
        let mut all: BTreeMap<u64, Value> = BTreeMap::new();
        let mut twice = BTreeSet::new();
        for (way, arrived) in &ways {
            let mut of_way = BTreeSet::new();
            for (topic, records) in arrived {
                // Kafka keeps the order of a partition alone: of one sensor and of one machine.
                let mut highest = BTreeMap::new();
                for record in records {
                    let sequence = sequence_of(record).with_context(|| format!("{record}"))?;
                    let keys = ["sensor_id", "machine_id", "device_id"];
                    let key = keys.iter().find_map(|key| record[*key].as_str());
                    let is_new = of_way.insert(sequence);
                    let before = highest.entry(key).or_insert(0);
                    ensure!(!is_new || sequence > *before, "{way} {topic}: {sequence} is late");
                    *before = sequence.max(*before);
                    if let Some(other) = all.insert(sequence, without_mark(record)) {
                        ensure!(other == without_mark(record), "{other} and {record}");
                    }
                }
            }
            if *way == "hub" {
                let of_kafka = ways[0].1.values().flatten().filter_map(sequence_of);
                twice.extend(of_kafka.filter(|sequence| of_way.contains(sequence)));
            }
        }
        let highest = all.keys().next_back().copied().unwrap_or_default();
        let missing: Vec<u64> = (1..=highest).filter(|it| !all.contains_key(it)).collect();
        ensure!(missing.is_empty(), "missing of {highest}: {missing:?}");
        let values: BTreeSet<String> = all
            .values()
            .filter(|record| record["sensor_id"] == SENSOR)
            .map(|record| record["value"].to_string())
            .collect();
        ensure!(values.len() as i64 == self.published, "{} of {}", values.len(), self.published);
        let is_old =
            |record: &&Value| record["sensor_id"] == SENSOR && record["historical"] != true;
        let unmarked = ways.iter().flat_map(|(_, way)| way.values().flatten()).find(is_old);
        ensure!(unmarked.is_none(), "two hours old and not historical: {unmarked:?}");
        Ok(twice.len())
    }

    fn events(&self, arrived: &Arrived, event_type: &str) -> usize {
        let events = arrived.get(&self.plant.topic("machine-events")).into_iter().flatten();
        events.filter(|event| event["event_type"] == event_type).count()
    }
}

fn sequence_of(record: &Value) -> Option<u64> {
    record["sequence"].as_u64()
}

/// When a record left says whether it is historical.
fn without_mark(record: &Value) -> Value {
    let mut record = record.clone();
    if let Some(members) = record.as_object_mut() {
        members.remove("historical");
    }
    record
}

#[test]
fn records_leave_by_the_hub_while_kafka_is_away_and_none_is_missing() -> anyhow::Result<()> {
    let link = kafka()?.take_link()?;
    let upstream = "order = [\"kafka\", \"hub\"]\nhub-after = \"10s\"\nkafka-ask-interval = \"1s\"\nlinger = \"100ms\"";
    let bootstrap = format!("127.0.0.1:{}", link.port());
    let mut gateway = Gateway::start("hub-upstream", upstream, bootstrap)?;
    gateway.publish(500)?;
    gateway.wait_for_way("kafka")?;
    gateway.wait_for_readings()?;
    ensure!(gateway.by_hub()?.is_empty(), "kafka is there");

    link.cut();
    gateway.publish(2_000)?;
    gateway.wait_for_way("hub")?;
    gateway.wait_for_readings()?;
    let (code, page) = gateway.edge.get("/readyz")?;
    ensure!(code == 200 && page.contains("records go to the hub"), "{code} {page}");
    // Killed while it is at it: some messages are on their way, some are acknowledged.
    gateway.hub.fault(Fault::SlowPubacks(Duration::from_millis(50)));
    gateway.publish(2_000)?;
    gateway.edge.process().kill()?;
    gateway.hub.heal();
    gateway.edge.restart()?;
    gateway.edge.wait_ready()?;
    gateway.wait_for_way("hub")?;
    gateway.wait_for_readings()?;
    let topic = gateway.plant.topic("dead-letters");
    eventually("machine events and dead letters leave by the hub, too", LINK_DEADLINE, || {
        let by_hub = gateway.by_hub()?;
        ensure!(gateway.events(&by_hub, "started") > 0 && by_hub.contains_key(&topic), "not yet");
        Ok(())
    })?;

    link.mend();
    gateway.wait_for_way("kafka")?;
    let before = gateway.hub.message_count();
    gateway.publish(1_000)?;
    gateway.wait_for_readings()?;
    gateway.stop()?;
    ensure!(gateway.hub.message_count() == before, "kafka is there again");
    let by_kafka = gateway.by_kafka()?;
    ensure!(gateway.events(&by_kafka, "stopped") == 1, "the end is told by kafka");
    let twice = gateway.check()?;
    // Those that Kafka had and not acknowledged when the line was cut.
    ensure!(twice < 600, "{twice} records came both ways");
    Ok(())
}

#[test]
fn without_any_kafka_the_hub_gets_every_record_whatever_goes_wrong_with_it() -> anyhow::Result<()> {
    // Nobody listens there, and nobody is asked.
    let nowhere = format!("127.0.0.1:{}", e2e_tests::ports::free_port()?);
    let upstream = "order = [\"hub\"]\nlinger = \"50ms\"\nmessage-records-max = 20";
    let mut gateway = Gateway::start("hub-alone", upstream, nowhere)?;
    gateway.publish(200)?;
    gateway.wait_for_readings()?;
    let (code, page) = gateway.edge.get("/readyz")?;
    ensure!(code == 200 && page.contains("hub: ok") && !page.contains("kafka"), "{code} {page}");
    for (what, fault) in [
        ("kept, and the connection breaks", Fault::KeepThenDrop),
        ("acknowledged, and the connection breaks", Fault::PubackThenDrop),
        ("kept, and not acknowledged", Fault::NoPuback),
        ("acknowledged slowly", Fault::SlowPubacks(Duration::from_millis(100))),
    ] {
        let before = gateway.hub.message_count();
        gateway.hub.fault(fault.clone());
        gateway.publish(400)?;
        eventually(&format!("{what}: some messages are there"), LINK_DEADLINE, || {
            let count = gateway.hub.message_count();
            ensure!(count > before, "{count}");
            Ok(())
        })?;
        if fault == Fault::NoPuback {
            // What was kept comes again on the next connection.
            gateway.hub.drop_connections();
        }
        gateway.hub.heal();
        gateway.wait_for_readings().context(what)?;
    }
    gateway.hub.block_on(gateway.hub.stop());
    gateway.publish(400)?;
    eventually("they wait in the journal", DEADLINE, || {
        let status: Value = serde_json::from_str(&gateway.edge.get("/status")?.1)?;
        let waiting = status["journal"]["backlog_records"]["readings"].as_u64();
        ensure!(waiting >= Some(400), "{status}");
        Ok(())
    })?;
    gateway.edge.process().kill()?;
    gateway.hub.resume(true);
    gateway.edge.restart()?;
    gateway.edge.wait_ready()?;
    gateway.wait_for_readings()?;
    gateway.stop()?;
    let by_hub = gateway.by_hub()?;
    ensure!(gateway.events(&by_hub, "stopped") == 1, "what is told at the end leaves, too");
    let twice = gateway.check()?;
    ensure!(twice == 0, "{twice} on kafka");
    Ok(())
}

#[test]
fn a_module_that_is_killed_again_and_again_with_a_backlog_brings_the_hub_every_record()
-> anyhow::Result<()> {
    const KILLS: usize = 6;
    const RECORDS: usize = 20;
    const IN_FLIGHT: usize = 12;
    const SLOW: Duration = Duration::from_millis(40);
    let nowhere = format!("127.0.0.1:{}", e2e_tests::ports::free_port()?);
    let upstream = format!("order = [\"hub\"]\nlinger = \"50ms\"\nmessage-records-max = {RECORDS}");
    let mut gateway = Gateway::start("hub-killed", &upstream, nowhere)?;
    gateway.hub.block_on(gateway.hub.stop());
    gateway.publish(3_000)?;
    gateway.hub.fault(Fault::SlowPubacks(SLOW));
    gateway.hub.resume(true);
    for kill in 0..KILLS {
        let before = gateway.hub.message_count();
        eventually(&format!("kill {kill}: some are on their way"), LINK_DEADLINE, || {
            let count = gateway.hub.message_count();
            ensure!(count > before + 3, "{count} after {before}");
            Ok(())
        })?;
        // A hub that hangs has some of them in its sockets, and takes them when it goes on.
        let hangs = kill % 2 == 1;
        if hangs {
            gateway.hub.fault(Fault::Frozen);
            let lost = || metric(&gateway.edge.metrics().ok()?, "hub_disconnects_total", "lost");
            let disconnects = lost().unwrap_or_default();
            eventually("the module gives it up", LINK_DEADLINE, || {
                let now = lost().unwrap_or_default();
                ensure!(now > disconnects, "{now} after {disconnects}");
                Ok(())
            })?;
        }
        gateway.edge.process().kill()?;
        gateway.hub.heal();
        gateway.hub.fault(Fault::SlowPubacks(SLOW));
        gateway.edge.restart()?;
        gateway.edge.wait_ready()?;
    }
    gateway.hub.heal();
    gateway.wait_for_readings()?;
    gateway.stop()?;
    ensure!(gateway.check()? == 0, "on kafka, which is not there");
    let by_hub = gateway.by_hub()?;
    let all: Vec<u64> = by_hub.values().flatten().filter_map(sequence_of).collect();
    let repeats = all.len() - all.iter().collect::<BTreeSet<_>>().len();
    println!("{} records at the hub, {repeats} of them once more", all.len());
    // At each end of a connection as many as were on their way: those of kills, and those of a hub that hung.
    let ends = KILLS + KILLS.div_ceil(2) + 1;
    ensure!(repeats <= ends * IN_FLIGHT * RECORDS, "{repeats} of {}", all.len());
    Ok(())
}

#[test]
fn the_state_of_the_journal_is_told_by_a_method() -> anyhow::Result<()> {
    let upstream = "order = [\"hub\"]\nlinger = \"50ms\"";
    let nowhere = format!("127.0.0.1:{}", e2e_tests::ports::free_port()?);
    let mut gateway = Gateway::start("hub-journal-status", upstream, nowhere)?;
    gateway.publish(100)?;
    gateway.wait_for_readings()?;
    eventually("nothing waits", DEADLINE, || {
        let call = gateway.hub.call("journalStatus", json!({}), DEADLINE);
        let (status, answer) = gateway.hub.block_on(call)?;
        ensure!(status == 200 && answer["upstream"] == "hub", "{status} {answer}");
        ensure!(answer["backlogRecords"]["readings"] == 0, "{answer}");
        ensure!(answer["oldestAgeSeconds"] == 0.0, "{answer}");
        ensure!(answer["diskBytes"].as_u64() > Some(0), "{answer}");
        ensure!(answer["segments"].as_u64() > Some(0), "{answer}");
        ensure!(answer["lost"] == json!([]) && answer["lostRanges"] == 0, "{answer}");
        Ok(())
    })
}
