//! The harness itself, against the real servers: what the other scenarios rely on.

use std::time::Duration;

use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::mosquitto::{Mosquitto, Persistence};
use e2e_tests::publisher::Publisher;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;

use crate::plant::{DEADLINE, kafka, run_dir};

#[test]
fn a_machine_takes_a_stop_command_and_reports_standstill() -> anyhow::Result<()> {
    let broker = Mosquitto::start(&run_dir().join("servers-machine"), Persistence::Off)?;
    let spin_down = Obedience::SpinsDown(Duration::from_millis(50));
    let machine = FakeMachine::start(broker.port(), "press-1", spin_down)?;
    assert!(machine.is_running());
    let mut publisher = Publisher::connect(broker.port(), "protection");
    publisher
        .publish("plant/press-1/command", r#"{"command":"stop","trip_id":"t","attempt":1}"#)?;
    publisher.wait_acknowledged(DEADLINE)?;
    e2e_tests::eventually::eventually_true("standstill", DEADLINE, || !machine.is_running())?;
    assert_eq!(machine.commands()[0].payload["trip_id"], "t");
    Ok(())
}

#[test]
fn a_message_waits_in_the_broker_over_its_own_restart() -> anyhow::Result<()> {
    let mut broker = Mosquitto::start(&run_dir().join("servers-restart"), Persistence::On)?;
    let mut publisher = Publisher::connect(broker.port(), "sensors");
    publisher.publish("plant/a/readings", "1")?;
    publisher.wait_acknowledged(DEADLINE)?;
    broker.stop()?;
    publisher.publish("plant/a/readings", "2")?;
    assert!(publisher.wait_acknowledged(Duration::from_millis(200)).is_err());
    broker.restart()?;
    publisher.wait_acknowledged(DEADLINE)
}

#[test]
fn a_cut_link_hides_kafka_from_its_clients_alone() -> anyhow::Result<()> {
    let kafka = kafka()?;
    kafka.create_topics(&["servers-link"], 1)?;
    kafka.produce("servers-link", &[("k".to_owned(), b"v".to_vec())])?;
    let link = kafka.take_link()?;
    let behind_link: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", format!("127.0.0.1:{}", link.port()))
        .create()?;
    let ask = |wait| behind_link.fetch_watermarks("servers-link", 0, wait);
    assert_eq!(ask(DEADLINE)?, (0, 1));
    link.cut();
    assert!(ask(Duration::from_millis(500)).is_err());
    kafka.produce("servers-link", &[("k".to_owned(), b"w".to_vec())])?;
    link.mend();
    assert_eq!(ask(DEADLINE)?, (0, 2));
    let values: Vec<_> = kafka.read_all("servers-link")?;
    assert_eq!(
        values.iter().map(|message| message.payload()).collect::<Vec<_>>(),
        [Some(b"v".as_slice()), Some(b"w".as_slice())]
    );
    Ok(())
}
