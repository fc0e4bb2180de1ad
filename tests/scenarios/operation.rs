//! What operators rely on: pages, metrics, an orderly end.

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::mosquitto::{Mosquitto, Persistence};
use e2e_tests::publisher::{Publisher, reading_json};

use crate::plant::{DEADLINE, Plant, now};

const EXIT_DEADLINE: Duration = Duration::from_secs(10);

/// Names that dashboards and alarms use; a renamed metric breaks them in silence.
const EDGE_METRICS: [&str; 22] = [
    "mqtt_messages_total",
    "mqtt_disconnects_total",
    "input_refused_total",
    "input_unknown_fields_total",
    "input_redelivered_total",
    "readings_total",
    "readings_filtered_total",
    "protection_windows_total",
    "vibration_samples_discarded_total",
    "score_failures_total",
    "interlock_trips_total",
    "interlock_stops_not_confirmed_total",
    "stop_command_latency_seconds",
    "stop_confirmation_latency_seconds",
    "protection_latency_seconds",
    "machine_events_dropped_total",
    "journal_records_total",
    "journal_disk_bytes",
    "journal_lost_records_total",
    "journal_append_latency_seconds",
    "kafka_delivered_records_total",
    "outbox_records",
];
const AGGREGATOR_METRICS: [&str; 10] = [
    "aggregator_lag_records",
    "aggregator_records_in_total",
    "aggregator_records_total",
    "aggregator_partitions",
    "aggregator_assignments_total",
    "aggregator_epochs_total",
    "aggregator_epoch_commit_seconds",
    "aggregator_rows_total",
    "aggregator_sensors",
    "aggregator_windows",
];

fn check_exported(metrics: &str, names: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&&str> =
        names.iter().filter(|name| !metrics.lines().any(|line| line.starts_with(**name))).collect();
    ensure!(missing.is_empty(), "missing: {missing:?}");
    Ok(())
}

#[test]
fn metrics_and_pages_say_what_happens_and_sigterm_ends_both_in_order() -> anyhow::Result<()> {
    let name = "operation";
    let mut plant = Plant::new(name)?;
    plant.edge_settings.machines =
        "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"oil-hot\"\n\
         sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n"
            .to_owned();
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, "press-1", Obedience::SpinsDown(Duration::ZERO))?;
    let mut edge = plant.start_edge_module()?;
    let mut aggregator = plant.start_aggregator()?;
    for page in ["/healthz", "/readyz", "/status"] {
        assert_eq!(edge.get(page)?.0, 200, "edge-module {page}");
        assert_eq!(aggregator.get(page)?.0, 200, "cloud-aggregator {page}");
    }
    let mut publisher = Publisher::connect(port, "sensors");
    let mut send = |sensor: &str, value: f64| {
        let reading = reading_json("press-1", sensor, "temperature", now(), value);
        publisher.publish("plant/press-1/readings", reading)
    };
    send("press-1/oil", 121.0)?;
    eventually("the machine is stopped", DEADLINE, || {
        if machine.is_running() { Err("it runs") } else { Ok(()) }
    })?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 1)?;
    eventually("all names of the edge module", DEADLINE, || {
        check_exported(&edge.metrics()?, &EDGE_METRICS)
    })?;
    eventually("all names of the aggregator", DEADLINE, || {
        check_exported(&aggregator.metrics()?, &AGGREGATOR_METRICS)
    })?;
    eventually("a sign of life", DEADLINE, || {
        ensure!(machine.heartbeats() > 0, "no heartbeat");
        Ok(())
    })?;

    // In the middle of traffic.
    for number in 0..500 {
        send("press-1/room", f64::from(number) / 10.0)?;
    }
    let started = Instant::now();
    edge.process().terminate()?;
    let status = edge.process().wait(EXIT_DEADLINE)?;
    assert!(status.success(), "edge-module: {status}:\n{}", edge.process().tail());
    aggregator.process().terminate()?;
    let status = aggregator.process().wait(EXIT_DEADLINE)?;
    assert!(status.success(), "cloud-aggregator: {status}:\n{}", aggregator.process().tail());
    assert!(started.elapsed() < EXIT_DEADLINE * 2);

    edge.restart()?;
    aggregator.restart()?;
    publisher.wait_acknowledged(DEADLINE)?;
    plant.check_each_reading_once("press-1/room", 500)?;
    plant.check_sequences()
}

#[test]
fn a_machine_that_does_not_answer_is_ordered_again_and_reported() -> anyhow::Result<()> {
    let name = "deaf";
    let mut plant = Plant::new(name)?;
    plant.edge_settings.machines =
        "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"oil-hot\"\n\
         sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n"
            .to_owned();
    let deadline = ("EDGE__PROTECTION__CONFIRMATION_DEADLINE".to_owned(), "300ms".to_owned());
    plant.edge_settings.environment.push(deadline);
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, "press-1", Obedience::Ignores)?;
    let mut edge = plant.start_edge_module()?;
    let mut publisher = Publisher::connect(port, "sensors");
    let hot = reading_json("press-1", "press-1/oil", "temperature", now(), 121.0);
    publisher.publish("plant/press-1/readings", hot)?;
    eventually("the stop is ordered again", DEADLINE, || {
        let commands = machine.commands();
        ensure!(commands.len() >= 2, "{} commands", commands.len());
        let first = &commands[0].payload["trip_id"];
        ensure!(commands.iter().all(|command| &command.payload["trip_id"] == first), "two trips");
        Ok(())
    })?;
    eventually("the failure is on Kafka", DEADLINE, || {
        let events = crate::plant::kafka()?.read_json(&plant.topic("machine-events"))?;
        let told = events.iter().any(|event| event["event_type"] == "stop-not-confirmed");
        ensure!(told, "{} other events", events.len());
        Ok(())
    })?;

    // The latch survives a power cut: the stop is ordered again by the next run.
    edge.process().kill()?;
    let before = machine.commands().len();
    edge.restart()?;
    eventually("the stop is ordered after the restart", DEADLINE, || {
        ensure!(machine.commands().len() > before, "no command");
        Ok(())
    })?;
    assert!(edge.process().is_running()?);
    Ok(())
}

#[test]
fn log_lines_that_nobody_takes_stop_neither_program_and_delay_no_stop() -> anyhow::Result<()> {
    let mut plant = Plant::new("silent")?;
    plant.edge_settings.machines =
        "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"oil-hot\"\n\
         sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n"
            .to_owned();
    // Standard error is a device that is always full.
    for name in ["edge-module", "cloud-aggregator"] {
        let folder = plant.dir.join(name);
        std::fs::create_dir_all(&folder)?;
        std::os::unix::fs::symlink("/dev/full", folder.join(format!("{name}.err")))?;
    }
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, "press-1", Obedience::SpinsDown(Duration::ZERO))?;
    let mut edge = plant.start_edge_module()?;
    let mut aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(port, "sensors");
    let hot = reading_json("press-1", "press-1/oil", "temperature", now(), 121.0);
    publisher.publish("plant/press-1/readings", hot)?;
    eventually("the machine is stopped", DEADLINE, || {
        if machine.is_running() { Err("it runs") } else { Ok(()) }
    })?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 1)?;
    for (metrics, name) in [
        (edge.metrics()?, "log_lines_lost_total"),
        (aggregator.metrics()?, "aggregator_log_lines_lost_total"),
    ] {
        let is_counted =
            metrics.lines().any(|line| line.starts_with(name) && !line.ends_with(" 0"));
        ensure!(is_counted, "{name} is not above 0");
    }
    ensure!(edge.process().is_running()? && aggregator.process().is_running()?, "one has ended");
    Ok(())
}

#[test]
fn a_journal_that_does_not_open_delays_no_stop_and_is_taken_up_later() -> anyhow::Result<()> {
    let mut plant = Plant::new("closed")?;
    plant.edge_settings.machines =
        "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"oil-hot\"\n\
         sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n"
            .to_owned();
    // A file where the journal's folder would be.
    let obstacle = plant.edge_settings.data_dir.join("journal");
    std::fs::create_dir_all(&plant.edge_settings.data_dir)?;
    std::fs::write(&obstacle, b"in the way")?;
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, "press-1", Obedience::SpinsDown(Duration::ZERO))?;
    let mut edge = EdgeModule::start(&plant.dir.join("edge-module"), &plant.edge_settings)?;
    eventually("the stop path is connected", DEADLINE, || {
        let (status, body) = edge.get("/readyz")?;
        ensure!(status == 503 && body.contains("journal: does not open"), "{status}: {body}");
        ensure!(body.contains("protection: ok") && body.contains("actuator: ok"), "{body}");
        Ok(())
    })?;
    let mut publisher = Publisher::connect(port, "sensors");
    let hot = reading_json("press-1", "press-1/oil", "temperature", now(), 121.0);
    publisher.publish("plant/press-1/readings", hot)?;
    eventually("the machine is stopped", DEADLINE, || {
        if machine.is_running() { Err("it runs") } else { Ok(()) }
    })?;
    std::fs::remove_file(&obstacle)?;
    edge.wait_ready()?;
    eventually("the trip is on Kafka", DEADLINE, || {
        let events = crate::plant::kafka()?.read_json(&plant.topic("machine-events"))?;
        let told = events.iter().any(|event| event["event_type"] == "trip");
        ensure!(told, "{} other events", events.len());
        Ok(())
    })
}

/// It was logged once and shown nowhere: a machine whose readings the broker withholds is not protected.
#[test]
fn a_broker_that_refuses_a_subscription_is_shown_with_the_topic() -> anyhow::Result<()> {
    let mut plant = Plant::new("refused-topics")?;
    let refused = [
        "plant/press-1/waveform",
        "plant/+/readings",
        "plant/press-1/state",
        "plant/press-1/reset",
    ];
    let dir = plant.dir.join("mosquitto-strict");
    let strict = Mosquitto::start_refusing(&dir, Persistence::Off, &refused)?;
    plant.edge_settings.mqtt_port = strict.port();
    plant.edge_settings.machines = "[[machines]]\nid = \"press-1\"\n\n[[machines.limits]]\n\
        name = \"oil-hot\"\nsensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n"
        .to_owned();
    let edge = EdgeModule::start(&plant.dir.join("edge-module"), &plant.edge_settings)?;
    eventually("the page names what is refused", DEADLINE, || {
        let (status, page) = edge.get("/readyz")?;
        let named = |part: &str, topic: &str| {
            let says = format!("broker refuses the subscription to {topic}: check its access list");
            page.lines().any(|line| line.starts_with(part) && line.contains(&says))
        };
        let parts = ["protection", "recording", "actuator", "actuator"];
        let missing: Vec<_> =
            parts.into_iter().zip(refused).filter(|(part, topic)| !named(part, topic)).collect();
        ensure!(status == 503 && missing.is_empty(), "{status}, without {missing:?}: {page}");
        Ok(())
    })?;
    // A stop is ordered all the same.
    let machine =
        FakeMachine::start(strict.port(), "press-1", Obedience::SpinsDown(Duration::ZERO))?;
    let mut publisher = Publisher::connect(strict.port(), "sensors");
    eventually("the machine is stopped", DEADLINE, || {
        let hot = reading_json("press-1", "press-1/oil", "temperature", now(), 130.0);
        publisher.publish("plant/press-1/readings", hot)?;
        ensure!(!machine.is_running(), "it runs");
        Ok(())
    })
}
