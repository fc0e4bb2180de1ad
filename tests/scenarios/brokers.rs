//! Three brokers, replication 3, two in-sync replicas asked for: one that dies changes nothing but latency.

use std::time::Instant;

use e2e_tests::kafka::{KafkaCluster, TOPICS};
use e2e_tests::publisher::Publisher;

use crate::outages::{check_books, minutes_ago, publish_readings};
use crate::plant::{DEADLINE, Plant};

const READINGS_OF_PHASE: i64 = 1_000;

#[test]
fn a_broker_that_dies_in_the_middle_of_a_run_changes_nothing_but_latency() -> anyhow::Result<()> {
    let mut plant = Plant::new("three-brokers")?;
    let mut cluster = KafkaCluster::start(&plant.dir.join("kafka"))?;
    let topics: Vec<String> = TOPICS.iter().map(|topic| plant.topic(topic)).collect();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    cluster.create_topics(&names, 3)?;
    plant.edge_settings.kafka_bootstrap = cluster.bootstrap();
    plant.aggregator_settings.kafka_bootstrap = cluster.bootstrap();
    let _edge = plant.start_edge_module()?;
    let _aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let start = minutes_ago(120);
    let mut published = 0;
    for broker in 0..3 {
        let numbers = published..published + READINGS_OF_PHASE;
        publish_readings(&mut publisher, "press-1/oil", start, numbers.clone())?;
        // In the middle of the phase: something is on its way in every part.
        plant.wait_for_count("SELECT count(*) FROM telemetry", published as u64 + 1)?;
        let killed = Instant::now();
        cluster.kill(broker)?;
        let more = numbers.end..numbers.end + READINGS_OF_PHASE;
        publish_readings(&mut publisher, "press-1/oil", start, more.clone())?;
        published = more.end;
        publisher.wait_acknowledged(DEADLINE)?;
        plant.wait_for_count("SELECT count(*) FROM telemetry", published as u64)?;
        eprintln!("broker {broker} killed: all rows are in the lake {:?} later", killed.elapsed());
        cluster.restart(broker)?;
    }
    check_books(&plant, "press-1/oil", published as u64)
}
