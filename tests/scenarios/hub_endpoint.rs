//! What an IoT Hub holds, read from an endpoint as the hub's built-in one is: TLS and a connection string, properties of messages as
//! headers, some as AMQP encodes them. What is asserted is what the lake holds.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, Finished, run_command};
use e2e_tests::eventually::eventually;
use e2e_tests::hub::{Fault, HubMessage, HubSettings, HubStandIn};
use e2e_tests::kafka::{HubRecord, Kafka, SecuredKafka};
use e2e_tests::publisher::{Publisher, reading_json};
use serde_json::{Value, json};

use crate::outages::{minutes_ago, publish_readings};
use crate::plant::{DEADLINE, Plant, kafka, run_dir};

const KEY: &str = "dGhlLWtleS1vZi10aGUtaHViLw+/Zx+8c0=";
/// What an Event Hub takes.
const BATCH_BYTES_MAX: usize = 1_000_000;
/// Event Hub-compatible name.
const ENDPOINT: &str = "iothub-ehub-plant";
const LONG_DEADLINE: Duration = Duration::from_secs(120);

/// Headers of a message as an IoT Hub gives them: texts in one of the encodings that a client meets.
fn headers(message: &HubMessage, number: usize) -> Vec<(String, Vec<u8>)> {
    let text = |value: &str| match number % 3 {
        0 => [b"\xa1", &[value.len() as u8][..], value.as_bytes()].concat(),
        1 => [b"\xb1", &(value.len() as u32).to_be_bytes()[..], value.as_bytes()].concat(),
        _ => value.as_bytes().to_vec(),
    };
    let of_hub = [
        ("iothub-connection-device-id", text(&message.device)),
        ("iothub-connection-auth-method", text("{\"scope\":\"device\",\"type\":\"sas\"}")),
        ("iothub-message-source", text("Telemetry")),
        // A timestamp of AMQP.
        ("iothub-enqueuedtime", [b"\x83", &1_772_352_930_000_i64.to_be_bytes()[..]].concat()),
    ];
    let own = message.properties.iter().map(|(name, value)| (name.clone(), text(value)));
    own.chain(of_hub.map(|(name, value)| (name.to_owned(), value))).collect()
}

/// Puts messages of the stand-in where its built-in endpoint would have them.
fn forward(endpoint: &Kafka, topic: &str, messages: &[HubMessage]) -> anyhow::Result<()> {
    let records = messages.iter().enumerate().map(|(number, message)| HubRecord {
        headers: headers(message, number),
        body: message.body.clone(),
    });
    // A hub keeps a device's messages in one partition.
    endpoint.produce_as_hub(topic, 1, &records.collect::<Vec<_>>())
}

/// Settings of an aggregator that reads nothing but a hub.
fn read_hub_alone(plant: &mut Plant) {
    let topics =
        ["TEMPERATURE", "PRESSURE", "VIBRATION", "MACHINE_EVENTS", "DEAD_LETTERS", "OUTCOMES"];
    let off = topics.iter().chain(&["WAVEFORMS"]);
    let off = off.map(|topic| (format!("AGGREGATOR__KAFKA__TOPICS__{topic}"), String::new()));
    plant.aggregator_settings.environment.extend(off);
    let no_alerts = ("AGGREGATOR__ALERTS__TOPIC".to_owned(), String::new());
    plant.aggregator_settings.environment.push(no_alerts);
}

fn hub_table(plant: &Plant, topic: &str) -> String {
    let name = |name| plant.topic(name);
    format!(
        "[kafka.hub]\ntopic = \"{topic}\"\nreadings = [\"{}\", \"{}\", \"{}\"]\nmachine-events = \"{}\"\ndead-letters = \"{}\"\n\
         waveforms = \"{}\"\n\n",
        name("temperature"),
        name("pressure"),
        name("vibration"),
        name("machine-events"),
        name("dead-letters"),
        name("waveforms")
    )
}

fn command(plant: &Plant, arguments: &[&str]) -> anyhow::Result<Finished> {
    let dir = plant.dir.join("cloud-aggregator");
    run_command(&dir, arguments)
}

fn audit(plant: &Plant) -> anyhow::Result<Value> {
    let finished = command(plant, &["audit", "--format", "json"])?;
    ensure!(finished.code == Some(0), "{finished:?}");
    Ok(serde_json::from_str(&finished.output)?)
}

/// A hub, its endpoint, and a gateway that has no other way.
struct World {
    plant: Plant,
    hub: HubStandIn,
    endpoint: SecuredKafka,
    forwarded: usize,
}

impl World {
    fn start(name: &str) -> anyhow::Result<Self> {
        let hub = HubStandIn::start(HubSettings::default())?;
        let mut plant = Plant::new(name)?;
        let endpoint = SecuredKafka::start(&plant.dir.join("endpoint"), KEY, BATCH_BYTES_MAX)?;
        endpoint.plain().create_topics(&[ENDPOINT], 2)?;
        plant.edge_settings.kafka_bootstrap =
            format!("127.0.0.1:{}", e2e_tests::ports::free_port()?);
        plant.edge_settings.machines =
            "[upstream]\norder = [\"hub\"]\nlinger = \"50ms\"\nmessage-records-max = 20\n"
                .to_owned();
        let mut environment = hub.module_environment();
        environment.push(("EDGE__IOT_HUB__PORT".to_owned(), hub.port().to_string()));
        environment.push(("EDGE__IOT_HUB__RECONNECT_MIN".to_owned(), "50ms".to_owned()));
        environment.push(("EDGE__IOT_HUB__RECONNECT_MAX".to_owned(), "1s".to_owned()));
        plant.edge_settings.environment = environment;
        let key_file = plant.dir.join("connection-string");
        std::fs::write(&key_file, endpoint.connection_string(KEY) + "\n")?;
        read_hub_alone(&mut plant);
        plant.aggregator_settings.kafka_bootstrap = format!("{}:9093", endpoint.namespace());
        plant.aggregator_settings.more = format!(
            "{}[kafka.properties]\n\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanisms\" = \"PLAIN\"\n\
             \"sasl.username\" = \"$ConnectionString\"\n\"ssl.ca.location\" = \"{}\"\n\n[kafka.property-files]\n\"sasl.password\" = \
             \"{}\"\n",
            hub_table(&plant, ENDPOINT),
            endpoint.authority().display(),
            key_file.display()
        );
        Ok(Self { plant, hub, endpoint, forwarded: 0 })
    }

    /// What has come to the hub since.
    fn forward(&mut self) -> anyhow::Result<()> {
        let messages = self.hub.messages();
        forward(self.endpoint.plain(), ENDPOINT, &messages[self.forwarded..])?;
        self.forwarded = messages.len();
        Ok(())
    }

    /// Until the lake has so many readings: what comes to the hub is forwarded.
    fn wait_for_readings(&mut self, expected: u64) -> anyhow::Result<()> {
        eventually(&format!("{expected} readings"), LONG_DEADLINE, || {
            self.forward()?;
            let count = self.plant.lake().count("SELECT count(*) FROM telemetry")?;
            ensure!(count >= expected, "{count}");
            anyhow::Ok(())
        })
    }

    fn check_books(&self, readings: u64) -> anyhow::Result<()> {
        self.plant.check_each_reading_once("press-1/%", readings)?;
        self.plant.check_sequences()?;
        let lake = self.plant.lake();
        let batch = lake.batch_windows("temperature", 100.0, 5)?;
        ensure!(!batch.is_empty(), "no window is hot");
        eventually("the windows equal the batch count", DEADLINE, || {
            let streamed = self.plant.streamed_windows()?;
            ensure!(streamed == batch, "{streamed:?} instead of {batch:?}");
            anyhow::Ok(())
        })?;
        let named = lake.count(
            "SELECT count(DISTINCT (source_topic, source_partition, source_offset)) FROM telemetry",
        )?;
        ensure!(named == readings, "{named} names of {readings} rows");
        // Arrays: more rows than messages.
        let messages = lake.count("SELECT count(DISTINCT source_offset // 4096) FROM telemetry")?;
        ensure!(messages < readings, "{messages} messages of {readings} readings");
        Ok(())
    }
}

/// Pressure of the same machine, whose records overtake those of the temperature on their way.
fn publish_pressure(publisher: &mut Publisher, count: i64) -> anyhow::Result<()> {
    let start = minutes_ago(120);
    for number in 0..count {
        let time = start.saturating_add_micros(number * 1_000_000);
        let reading = reading_json("press-1", "press-1/line", "pressure", time, 5.0);
        publisher.publish("plant/press-1/readings", reading)?;
    }
    Ok(())
}

#[test]
fn what_a_hub_holds_is_in_the_lake_once_and_its_windows_are_those_of_a_batch() -> anyhow::Result<()>
{
    let mut world = World::start("hub-endpoint")?;
    let mut edge = world.plant.start_edge_module()?;
    let mut aggregator = world.plant.start_aggregator()?;
    let checked = command(&world.plant, &["check-config"])?;
    ensure!(checked.code == Some(0), "{checked:?}");
    let mut publisher = Publisher::connect(world.plant.mosquitto.port(), "sensors");
    let start = minutes_ago(120);
    publish_readings(&mut publisher, "press-1/oil", start, 0..600)?;
    publish_pressure(&mut publisher, 600)?;
    publisher.publish("plant/press-1/readings", "no reading")?;
    publisher.wait_acknowledged(DEADLINE)?;
    world.wait_for_readings(1_200).with_context(|| edge.describe())?;

    // Killed while it reads, and the hub gets some messages twice.
    world.hub.fault(Fault::KeepThenDrop);
    publish_readings(&mut publisher, "press-1/oil", start, 600..1_200)?;
    publisher.wait_acknowledged(DEADLINE)?;
    let before = world.forwarded;
    eventually("messages have come to the hub", DEADLINE, || {
        let count = world.hub.message_count();
        ensure!(count > before, "{count}");
        anyhow::Ok(())
    })?;
    world.hub.heal();
    world.forward()?;
    aggregator.process().kill()?;
    world.forward()?;
    aggregator.restart()?;
    aggregator.wait_ready()?;
    world.wait_for_readings(1_800).with_context(|| edge.describe())?;
    edge.process().terminate()?;
    let status = edge.process().wait(DEADLINE)?;
    ensure!(status.success(), "{status}:\n{}", edge.process().tail());
    world.forward()?;
    world
        .plant
        .wait_for_count("SELECT count(*) FROM machine_events WHERE event_type = 'stopped'", 1)?;
    world.check_books(1_800)?;

    // All that the hub has once more: no row more.
    let taken = world.hub.messages();
    let repeats = aggregator.metric("aggregator_records_total")?;
    forward(world.endpoint.plain(), ENDPOINT, &taken)?;
    eventually("the repeats are read", DEADLINE, || {
        let read = aggregator.metric("aggregator_records_total")? - repeats;
        ensure!(read >= 1_800.0, "{read}");
        anyhow::Ok(())
    })?;
    world.check_books(1_800)?;
    check_refusals(&world, &aggregator)?;
    let report = audit(&world.plant)?;
    ensure!(report["equal"] == true && report["records_by_two_ways"] == 0, "{report}");
    ensure!(report["duplicates"].as_u64() >= Some(1_800), "{report}");
    Ok(())
}

/// Messages that are none of an edge module, and arrays with something wrong in them.
fn check_refusals(world: &World, aggregator: &CloudAggregator) -> anyhow::Result<()> {
    let time = minutes_ago(30);
    let good = reading_json("press-9", "press-9/oil", "temperature", time, 20.0);
    let named = |value: &str| {
        let name = value.len() as u8;
        vec![("topic".to_owned(), [b"\xa1", &[name][..], value.as_bytes()].concat())]
    };
    let temperature = world.plant.topic("temperature");
    let record = |headers, body: &str| HubRecord { headers, body: body.as_bytes().to_vec() };
    let records = [
        record(Vec::new(), &good),
        record(named("weather"), &good),
        record(named(&world.plant.topic("outcomes")), &good),
        record(named(&temperature), "[]"),
        record(named(&temperature), &format!("[{good},{{\"sensor_id\":\"s\"}},{good}]")),
    ];
    world.endpoint.plain().produce_as_hub(ENDPOINT, 0, &records)?;
    world
        .plant
        .wait_for_count("SELECT count(*) FROM telemetry WHERE sensor_id = 'press-9/oil'", 2)?;
    let letters = "SELECT reason, source, detail, source_offset FROM dead_letters WHERE source_partition = 0 ORDER BY source_offset";
    let letters = world.plant.lake().query(letters)?;
    let found: Vec<(&str, u64)> = letters
        .iter()
        .filter_map(|row| Some((row["reason"].as_str()?, row["source_offset"].as_u64()?)))
        .collect();
    let expected = [
        ("hub-topic", 0),
        ("hub-topic", 4_096),
        ("hub-topic", 2 * 4_096),
        ("hub-array", 3 * 4_096),
        ("missing-field", 4 * 4_096 + 1),
    ];
    ensure!(found == expected, "{letters:?}");
    ensure!(
        letters[1]["detail"].as_str().is_some_and(|it| it.contains("\"weather\"")),
        "{letters:?}"
    );
    let replay =
        command(&world.plant, &["dead-letters", "replay", "--reason", "hub-topic", "--yes"])?;
    ensure!(replay.code == Some(1), "{replay:?}");
    ensure!(replay.output.contains("name one with --topic"), "{replay:?}");
    let refused = aggregator.metric("aggregator_dead_letters_total")?;
    ensure!(refused >= 5.0, "{refused}");
    Ok(())
}

#[test]
fn a_record_that_came_by_the_hub_and_by_kafka_is_told_by_the_audit() -> anyhow::Result<()> {
    let mut plant = Plant::new("hub-and-kafka")?;
    let endpoint = plant.topic("hub");
    kafka()?.create_topics(&[&endpoint], 1)?;
    plant.aggregator_settings.more = hub_table(&plant, &endpoint);
    let aggregator = plant.start_aggregator()?;
    let checked = command(&plant, &["check-config"])?;
    ensure!(checked.code == Some(0), "{checked:?}");
    let warnings =
        ["kafka.hub.topic: kafka.topics.temperature", "can match readings of several topics"];
    for warning in warnings {
        ensure!(checked.errors.contains(warning), "{warning}: {checked:?}");
    }
    let record = |sequence: i64| {
        json!({
            "sensor_id": "press-1/oil", "machine_id": "press-1", "metric_type": "temperature",
            "timestamp": minutes_ago(60).saturating_add_micros(sequence * 1_000_000).to_string(),
            "value": 20.0, "device_id": "gw-1", "generation": 1, "sequence": sequence,
        })
        .to_string()
    };
    // 4 to 6 were undecided when Kafka was left.
    let by_kafka =
        (1..=6).map(|sequence| ("press-1/oil".to_owned(), record(sequence).into_bytes()));
    kafka()?.produce(&plant.topic("temperature"), &by_kafka.collect::<Vec<_>>())?;
    let by_hub: Vec<String> = (4..=9).map(record).collect();
    let headers = vec![("topic".to_owned(), plant.topic("temperature").into_bytes())];
    let body = format!("[{}]", by_hub.join(",")).into_bytes();
    kafka()?.produce_as_hub(&endpoint, 0, &[HubRecord { headers, body }])?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 12)?;
    let report = audit(&plant)?;
    ensure!(report["records_by_two_ways"] == 3, "{report}");
    let text = command(&plant, &["audit"])?;
    ensure!(text.output.contains("3  came by the hub and by kafka"), "{text:?}");
    check_that_a_topic_keeps_its_meaning(&mut plant, aggregator, &endpoint)
}

/// A topic that was read as a hub's is not read as one of Kafka: offsets would name other records.
fn check_that_a_topic_keeps_its_meaning(
    plant: &mut Plant,
    mut aggregator: CloudAggregator,
    endpoint: &str,
) -> anyhow::Result<()> {
    aggregator.process().terminate()?;
    aggregator.process().wait(DEADLINE)?;
    plant.aggregator_settings.more = String::new();
    let as_pressure = ("AGGREGATOR__KAFKA__TOPICS__PRESSURE".to_owned(), endpoint.to_owned());
    plant.aggregator_settings.environment.push(as_pressure);
    let record = reading_json("press-1", "press-1/line", "pressure", minutes_ago(1), 5.0);
    kafka()?.produce(endpoint, &[("press-1/line".to_owned(), record.into_bytes())])?;
    let dir = plant.dir.join("cloud-aggregator");
    let aggregator = CloudAggregator::start(&dir, &plant.aggregator_settings)?;
    let expected = format!("{endpoint}/0: it was read as of kafka.hub before");
    eventually("the partition stays unread", DEADLINE, || {
        let (code, page) = aggregator.get("/readyz")?;
        ensure!(code == 503 && page.contains(&expected), "{code} {page}");
        anyhow::Ok(())
    })?;
    let rows =
        plant.lake().count("SELECT count(*) FROM telemetry WHERE metric_type = 'pressure'")?;
    ensure!(rows == 0, "{rows} rows of a partition that is not read");
    Ok(())
}

#[test]
fn records_that_a_hub_has_lost_are_a_gap_of_their_device() -> anyhow::Result<()> {
    let mut world = World::start("hub-loss")?;
    let ledger = ("EDGE__JOURNAL__LEDGER_INTERVAL".to_owned(), "1s".to_owned());
    world.plant.edge_settings.environment.push(ledger);
    for (key, value) in [("CHECK_INTERVAL", "1s"), ("PATIENCE", "5s")] {
        let setting = (format!("AGGREGATOR__GAPS__{key}"), value.to_owned());
        world.plant.aggregator_settings.environment.push(setting);
    }
    let edge = world.plant.start_edge_module()?;
    let aggregator = world.plant.start_aggregator()?;
    let mut publisher = Publisher::connect(world.plant.mosquitto.port(), "sensors");
    publish_readings(&mut publisher, "press-1/oil", minutes_ago(120), 0..200)?;
    publisher.wait_acknowledged(DEADLINE)?;
    let topic = world.plant.topic("temperature");
    let readings = |message: &&HubMessage| message.properties.get("topic") == Some(&topic);
    let lost = eventually("the hub has readings", DEADLINE, || {
        let messages = world.hub.messages();
        messages.iter().filter(readings).nth(1).cloned().context("not yet")
    })?;
    let records: Vec<Value> = serde_json::from_slice(&lost.body)?;
    let waited = eventually("they are missing", LONG_DEADLINE, || {
        let messages = world.hub.messages();
        let new = messages[world.forwarded..].iter();
        let kept: Vec<HubMessage> = new.filter(|it| it.body != lost.body).cloned().collect();
        forward(world.endpoint.plain(), ENDPOINT, &kept)?;
        world.forwarded = messages.len();
        let missing = aggregator.metric("aggregator_device_gap_records")?;
        ensure!(missing == records.len() as f64, "{missing} of {}", records.len());
        anyhow::Ok(())
    });
    waited.with_context(|| edge.describe())?;
    // With the first partition of the hub, since no topic of machine events is read.
    let sql = format!(
        "SELECT count(*) FROM machine_events WHERE event_type = 'gap' AND cause = 'missing' AND source_topic = '{ENDPOINT}' AND \
         source_partition = 0"
    );
    world.plant.wait_for_count(&sql, 1)?;
    Ok(())
}

#[test]
fn one_lake_takes_what_two_read_from_the_hub_and_from_kafka() -> anyhow::Result<()> {
    let mut plant = Plant::new("hub-beside-kafka")?;
    let endpoint = plant.topic("hub");
    kafka()?.create_topics(&[&endpoint], 1)?;
    let mut by_kafka = plant.start_aggregator()?;
    let settings = plant.aggregator_settings.clone();
    read_hub_alone(&mut plant);
    let mut by_hub = settings.clone();
    by_hub.group = format!("{}-hub", by_hub.group);
    by_hub.environment = std::mem::take(&mut plant.aggregator_settings.environment);
    by_hub.more = hub_table(&plant, &endpoint);
    let mut by_hub = CloudAggregator::start(&plant.dir.join("cloud-aggregator-hub"), &by_hub)?;
    by_hub.wait_ready()?;
    let start = minutes_ago(60);
    let reading = |sensor: &str, number: i64| {
        let time = start.saturating_add_micros(number * 1_000_000);
        reading_json("press-1", &format!("press-1/{sensor}"), "temperature", time, 105.0)
    };
    let headers = vec![("topic".to_owned(), plant.topic("temperature").into_bytes())];
    for round in 0..10 {
        let numbers = round * 60..(round + 1) * 60;
        let plain = numbers.clone().map(|number| ("oil".to_owned(), reading("oil", number).into()));
        kafka()?.produce(&plant.topic("temperature"), &plain.collect::<Vec<_>>())?;
        let array: Vec<String> = numbers.map(|number| reading("line", number)).collect();
        let body = format!("[{}]", array.join(",")).into_bytes();
        kafka()?.produce_as_hub(&endpoint, 0, &[HubRecord { headers: headers.clone(), body }])?;
        let expected = (round as u64 + 1) * 120;
        plant.wait_for_count("SELECT count(*) FROM telemetry", expected)?;
        if round == 5 {
            by_hub.process().kill()?;
            by_hub.restart()?;
            by_kafka.process().kill()?;
            by_kafka.restart()?;
        }
    }
    plant.check_each_reading_once("press-1/%", 1_200)?;
    let batch = plant.lake().batch_windows("temperature", 100.0, 5)?;
    eventually("the windows equal the batch count", DEADLINE, || {
        let streamed = plant.streamed_windows()?;
        ensure!(streamed == batch, "{streamed:?} instead of {batch:?}");
        anyhow::Ok(())
    })?;
    let report = audit(&plant)?;
    ensure!(report["equal"] == true && report["records_by_two_ways"] == 0, "{report}");
    ensure!(report["records_in"] == 1_200, "{report}");
    Ok(())
}

#[test]
fn the_program_takes_the_configuration_for_a_hub() -> anyhow::Result<()> {
    let folder = e2e_tests::workspace_root().join("deployment-manifests/cloud/iot-hub");
    let dir = run_dir().join("hub-configuration");
    std::fs::create_dir_all(&dir)?;
    let secret = dir.join("hub-endpoint-connection");
    std::fs::write(&secret, "Endpoint=sb://ENDPOINT.servicebus.windows.net/;EntityPath=plant")?;
    let text = std::fs::read_to_string(folder.join("cloud-aggregator.toml"))?;
    let mounted = "/run/secrets/cloud-aggregator/hub-endpoint-connection";
    ensure!(text.contains(mounted), "{text}");
    let text = text.replace(mounted, &secret.display().to_string());
    std::fs::write(dir.join("cloud-aggregator.toml"), &text)?;
    let checked = run_command(&dir, &["check-config"])?;
    ensure!(checked.code == Some(0), "{checked:?}");
    ensure!(!checked.errors.contains("kafka.hub"), "{checked:?}");
    // Without its key it is told what the endpoint asks for.
    let lines = text.lines().filter(|line| !line.starts_with("\"sasl.password\""));
    let without = lines.collect::<Vec<_>>().join("\n");
    std::fs::write(dir.join("cloud-aggregator.toml"), without)?;
    let checked = run_command(&dir, &["check-config"])?;
    ensure!(checked.errors.contains("kafka.hub.topic: the endpoint refuses"), "{checked:?}");
    Ok(())
}
