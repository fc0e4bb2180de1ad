//! The network away, a program killed: nothing is lost and nothing doubled.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::proxy::TcpProxy;
use e2e_tests::publisher::{Publisher, reading_json};
use shared_proto::model::EventTime;

use crate::plant::{DEADLINE, Plant, kafka, now};

const MINUTE_MICROS: i64 = 60_000_000;

/// Publishes `count` readings of `sensor`, `first` to `first + count`, a second of event time apart; every fifth is hot.
pub(crate) fn publish_readings(
    publisher: &mut Publisher,
    sensor: &str,
    start: EventTime,
    numbers: std::ops::Range<i64>,
) -> anyhow::Result<()> {
    for number in numbers {
        let timestamp = start.saturating_add_micros(number * 1_000_000);
        let value = if number % 5 == 0 { 105.0 } else { 70.0 } + number as f64 / 1e6;
        let reading = reading_json("press-1", sensor, "temperature", timestamp, value);
        publisher.publish("plant/press-1/readings", reading)?;
    }
    Ok(())
}

/// So many minutes ago, on a full minute.
pub(crate) fn minutes_ago(minutes: i64) -> EventTime {
    let minute = now().micros().div_euclid(MINUTE_MICROS);
    EventTime::from_micros((minute - minutes) * MINUTE_MICROS)
}

/// Rows, sequences and windows: what must hold after any outage.
pub(crate) fn check_books(plant: &Plant, sensor: &str, readings: u64) -> anyhow::Result<()> {
    plant.check_each_reading_once(sensor, readings)?;
    plant.check_sequences()?;
    let batch = plant.lake().batch_windows("temperature", 100.0, 5)?;
    assert!(!batch.is_empty());
    eventually("the windows equal the batch count", DEADLINE, || {
        let streamed = plant.streamed_windows()?;
        anyhow::ensure!(streamed == batch, "{streamed:?} instead of {batch:?}");
        Ok(())
    })
}

#[test]
fn a_cut_network_delays_the_backlog_and_loses_nothing() -> anyhow::Result<()> {
    let mut plant = Plant::new("cut")?;
    let link = kafka()?.take_link()?;
    plant.edge_settings.kafka_bootstrap = format!("127.0.0.1:{}", link.port());
    let edge = plant.start_edge_module()?;
    let _aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let start = minutes_ago(60);

    publish_readings(&mut publisher, "press-1/oil", start, 0..300)?;
    publisher.wait_acknowledged(DEADLINE)?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 100)?;
    link.cut();
    publish_readings(&mut publisher, "press-1/oil", start, 300..2000)?;
    publisher.wait_acknowledged(DEADLINE)?;
    eventually("the journal holds the backlog", DEADLINE, || {
        let waiting = metric(&edge.metrics()?, "outbox_records", "").unwrap_or_default();
        anyhow::ensure!(waiting >= 1700.0, "{waiting} records wait");
        Ok(())
    })?;
    let before = plant.lake().count("SELECT count(*) FROM telemetry")?;
    assert!(before <= 300, "{before} rows during the cut");
    link.mend();
    check_books(&plant, "press-1/oil", 2000)
}

#[test]
fn a_killed_edge_module_loses_nothing_that_it_acknowledged() -> anyhow::Result<()> {
    let plant = Plant::new("edge-killed")?;
    let mut edge = plant.start_edge_module()?;
    let _aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let start = minutes_ago(60);
    for round in 0..4 {
        let numbers = round * 500..(round + 1) * 500;
        publish_readings(&mut publisher, "press-1/oil", start, numbers)?;
        // In the middle of the work: some is journalled, some on its way, some still with the broker.
        let sql = "SELECT count(*) FROM telemetry";
        plant.wait_for_count(sql, round as u64 * 500 + 1)?;
        edge.process().kill()?;
        edge.restart()?;
    }
    publisher.wait_acknowledged(DEADLINE)?;
    edge.wait_ready()?;
    check_books(&plant, "press-1/oil", 2000)
}

/// It left before its last acknowledgements did: the broker delivered those messages again, and they were recorded twice.
#[test]
fn an_edge_module_that_is_stopped_under_load_doubles_nothing() -> anyhow::Result<()> {
    const ROUNDS: i64 = 6;
    const READINGS_OF_ROUND: i64 = 5_000;
    let plant = Plant::new("edge-stopped")?;
    let mut edge = plant.start_edge_module()?;
    let _aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let start = minutes_ago(12 * 60);
    for round in 0..ROUNDS {
        let numbers = round * READINGS_OF_ROUND..(round + 1) * READINGS_OF_ROUND;
        publish_readings(&mut publisher, "press-1/oil", start, numbers)?;
        let again = eventually("some of them are journalled", DEADLINE, || {
            let metrics = edge.metrics()?;
            let found = metric(&metrics, "journal_records_total", "readings").unwrap_or_default();
            anyhow::ensure!(found > 0.0, "none");
            Ok(metric(&metrics, "input_redelivered_total", "").unwrap_or_default())
        })?;
        assert_eq!(again, 0.0, "what was journalled is not delivered again");
        edge.process().terminate()?;
        edge.process().wait(DEADLINE)?;
        edge.restart()?;
    }
    publisher.wait_acknowledged(DEADLINE)?;
    edge.wait_ready()?;
    check_books(&plant, "press-1/oil", (ROUNDS * READINGS_OF_ROUND) as u64)
}

/// What was drained was deleted, and with it the only knowledge of what the broker, which had not read the
/// acknowledgements, would deliver again.
#[test]
fn a_kill_while_the_broker_reads_no_acknowledgements_doubles_nothing() -> anyhow::Result<()> {
    const READINGS: i64 = 4_000;
    let mut plant = Plant::new("acks-held")?;
    let line = TcpProxy::start(plant.mosquitto.port())?;
    plant.edge_settings.mqtt_port = line.port();
    let small = ("EDGE__JOURNAL__SEGMENT_BYTES".to_owned(), "1048576".to_owned());
    plant.edge_settings.environment.push(small);
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let start = minutes_ago(120);
    let retained = reading_json("press-2", "press-2/oil", "temperature", start, 20.0);
    publisher.publish_retained("plant/press-2/readings", retained)?;
    let mut edge = plant.start_edge_module()?;
    line.hold();
    publish_readings(&mut publisher, "press-1/oil", start, 0..READINGS)?;
    publisher.publish("plant/press-1/readings", "no reading".to_owned())?;
    publisher.wait_acknowledged(DEADLINE)?;
    let is_drained = |edge: &EdgeModule, counts: [f64; 2]| {
        eventually("all is delivered and deleted", DEADLINE, || {
            let metrics = edge.metrics()?;
            let value = |name: &str, label: &str| metric(&metrics, name, label).unwrap_or_default();
            let found = ["readings", "dead-letters"]
                .map(|lane| value("kafka_delivered_records_total", lane));
            ensure!(found == counts, "{found:?} of {counts:?} are delivered");
            Ok(())
        })
    };
    is_drained(&edge, [READINGS as f64 + 1.0, 1.0])?;
    eventually("drained segments are deleted", DEADLINE, || {
        let floor = lowest_floor(&plant.edge_settings.data_dir, "readings")?;
        ensure!(floor > READINGS as u64 / 4, "the lowest begins with {floor}");
        Ok(())
    })?;
    edge.process().kill()?;
    line.cut();
    line.release();
    line.mend();
    edge.restart()?;
    edge.wait_ready()?;
    let again = READINGS as f64 + 2.0;
    eventually("what comes again is known", DEADLINE, || {
        let metrics = edge.metrics()?;
        let known = metric(&metrics, "input_redelivered_total", "").unwrap_or_default();
        ensure!(known >= again, "{known} of {again}");
        Ok(())
    })?;
    let metrics = edge.metrics()?;
    for lane in ["readings", "dead-letters"] {
        let recorded = metric(&metrics, "journal_records_total", lane).unwrap_or_default();
        assert_eq!(recorded, 0.0, "{lane} are not recorded again");
    }
    Ok(())
}

/// Where the lowest segment of a lane begins.
fn lowest_floor(data_dir: &Path, lane: &str) -> anyhow::Result<u64> {
    let generation = std::fs::read_dir(data_dir.join("journal"))?.next();
    let folder = generation.context("no generation")??.path().join(lane);
    let names = std::fs::read_dir(folder)?.flatten().map(|entry| entry.file_name());
    let floors = names.filter_map(|name| name.to_string_lossy().parse().ok());
    floors.min().context("no segment")
}

#[test]
fn a_killed_aggregator_writes_each_row_once() -> anyhow::Result<()> {
    let plant = Plant::new("aggregator-killed")?;
    let _edge = plant.start_edge_module()?;
    let mut aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let start = minutes_ago(60);
    for round in 0..4 {
        let numbers = round * 500..(round + 1) * 500;
        publish_readings(&mut publisher, "press-1/oil", start, numbers)?;
        publisher.wait_acknowledged(DEADLINE)?;
        plant.wait_for_count("SELECT count(*) FROM telemetry", round as u64 * 500 + 1)?;
        aggregator.process().kill()?;
        aggregator.restart()?;
    }
    aggregator.wait_ready()?;
    check_books(&plant, "press-1/oil", 2000)
}

#[test]
fn a_killed_kafka_delays_and_loses_nothing() -> anyhow::Result<()> {
    let name = "kafka-killed";
    let mut plant = Plant::new(name)?;
    // A broker of its own: the others go on.
    let own = e2e_tests::kafka::Kafka::start(&plant.dir.join("kafka"))?;
    let topics = e2e_tests::kafka::TOPICS.map(|topic| plant.topic(topic));
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    own.create_topics(&names, 2)?;
    plant.edge_settings.kafka_bootstrap = own.bootstrap();
    plant.aggregator_settings.kafka_bootstrap = own.bootstrap();
    let _edge = plant.start_edge_module()?;
    let _aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    let start = minutes_ago(60);
    publish_readings(&mut publisher, "press-1/oil", start, 0..500)?;
    publisher.wait_acknowledged(DEADLINE)?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 1)?;
    own.kill()?;
    publish_readings(&mut publisher, "press-1/oil", start, 500..1000)?;
    publisher.wait_acknowledged(Duration::from_secs(30))?;
    own.restart()?;
    check_books(&plant, "press-1/oil", 1000)
}

/// Sequences of the device that no table holds, and what the gap records say of them.
struct Missing {
    sequences: u64,
    outside_gaps: u64,
    told: u64,
}

fn missing(plant: &Plant) -> anyhow::Result<Missing> {
    let rows = plant.lake().query(
        "WITH held AS (SELECT sequence FROM telemetry UNION ALL SELECT sequence FROM machine_events), \
         gaps AS (SELECT first_sequence, last_sequence, record_count FROM machine_events \
                  WHERE event_type = 'gap' AND cause = 'evicted-cap'), \
         missing AS (SELECT range AS sequence FROM range(1, (SELECT max(sequence) + 1 FROM held)) \
                     ANTI JOIN held ON held.sequence = range) \
         SELECT (SELECT count(*) FROM missing) AS sequences, \
                (SELECT count(*) FROM missing ANTI JOIN gaps \
                 ON missing.sequence BETWEEN first_sequence AND last_sequence) AS outside_gaps, \
                (SELECT coalesce(sum(record_count), 0)::BIGINT FROM gaps) AS told",
    )?;
    let row = rows.first().context("no row")?;
    let number = |name: &str| row[name].as_u64().with_context(|| format!("no {name}: {row}"));
    Ok(Missing {
        sequences: number("sequences")?,
        outside_gaps: number("outside_gaps")?,
        told: number("told")?,
    })
}

#[test]
fn what_a_full_journal_evicts_is_known_to_the_cloud_by_its_sequences() -> anyhow::Result<()> {
    const ARRAYS: i64 = 300;
    const READINGS_OF_ARRAY: i64 = 500;
    let mut plant = Plant::new("evicted")?;
    let link = kafka()?.take_link()?;
    plant.edge_settings.kafka_bootstrap = format!("127.0.0.1:{}", link.port());
    plant.edge_settings.machines =
        "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"hot\"\n\
        sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n"
            .to_owned();
    for (name, value) in
        [("EDGE__JOURNAL__SEGMENT_BYTES", "1048576"), ("EDGE__JOURNAL__BYTES_MAX", "16777216")]
    {
        plant.edge_settings.environment.push((name.to_owned(), value.to_owned()));
    }
    let edge = plant.start_edge_module()?;
    let _aggregator = plant.start_aggregator()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "sensors");
    link.cut();
    // First a trip, the oldest of all: machine events are the last to go.
    let hot = reading_json("press-1", "press-1/oil", "temperature", now(), 130.0);
    publisher.publish("plant/press-1/readings", hot)?;
    let start = minutes_ago(60);
    for array in 0..ARRAYS {
        let readings: Vec<String> = (0..READINGS_OF_ARRAY)
            .map(|number| {
                let micros = (array * READINGS_OF_ARRAY + number) * 10_000;
                let at = start.saturating_add_micros(micros);
                reading_json("press-1", "press-1/aux", "temperature", at, micros as f64 / 1e9)
            })
            .collect();
        publisher.publish("plant/press-1/readings", format!("[{}]", readings.join(",")))?;
        publisher.wait_acknowledged(DEADLINE)?;
    }
    let read = (ARRAYS * READINGS_OF_ARRAY) as f64;
    let lost = eventually("all is journalled, and too much of it", DEADLINE, || {
        let metrics = edge.metrics()?;
        let journalled = metric(&metrics, "journal_records_total", "readings").unwrap_or_default();
        let lost =
            metric(&metrics, "journal_lost_records_total", "evicted-cap").unwrap_or_default();
        anyhow::ensure!(journalled > read && lost > read / 4.0, "{journalled}, {lost} evicted");
        Ok(lost)
    })?;
    link.mend();
    eventually("the rest is delivered", DEADLINE, || {
        let owed = metric(&edge.metrics()?, "outbox_records", "").unwrap_or_default();
        anyhow::ensure!(owed == 0.0, "{owed} records wait");
        Ok(())
    })?;
    let found = eventually("the cloud knows what is missing", DEADLINE, || {
        let found = missing(&plant)?;
        anyhow::ensure!(
            found.sequences == found.told && found.told > 0,
            "{} sequences missing, {} told",
            found.sequences,
            found.told
        );
        Ok(found)
    })?;
    println!("{lost} evicted offline, {} in the end, all told by gap records", found.told);
    assert_eq!(found.outside_gaps, 0, "each missing sequence lies in a gap that was told");
    let trips = plant.machine_events("trip")?;
    assert_eq!(trips.len(), 1, "the oldest record is a machine event, and there");
    Ok(())
}

/// Acknowledgements that are lost stay with the broker for ever: it searches them for each later one, at the
/// cost of everybody's latency, and delivers them all again to the next session.
#[test]
fn under_load_each_message_is_acknowledged_to_the_broker() -> anyhow::Result<()> {
    const SMALL: i64 = 50_000;
    const ARRAYS: i64 = 500;
    const READINGS_OF_ARRAY: i64 = 500;
    let plant = Plant::new("acknowledged")?;
    let mut edge = plant.start_edge_module()?;
    let port = plant.mosquitto.port();
    let start = minutes_ago(60);
    let mut publisher = Publisher::connect(port, "small");
    std::thread::scope(|scope| {
        // Arrays keep the module busy, so that small messages are always there to be read.
        let arrays = scope.spawn(|| {
            let mut publisher = Publisher::connect(port, "arrays");
            for array in 0..ARRAYS {
                let at = start.saturating_add_micros(array);
                let readings: Vec<String> = (0..READINGS_OF_ARRAY)
                    .map(|place| {
                        reading_json("press-1", "press-1/aux", "pressure", at, place as f64)
                    })
                    .collect();
                publisher.publish("plant/press-1/readings", format!("[{}]", readings.join(",")))?;
            }
            publisher.wait_acknowledged(DEADLINE)
        });
        publish_readings(&mut publisher, "press-1/oil", start, 0..SMALL)?;
        publisher.wait_acknowledged(DEADLINE)?;
        arrays.join().map_err(|_| anyhow::anyhow!("the arrays' thread panicked"))?
    })?;
    let readings = SMALL + ARRAYS * READINGS_OF_ARRAY;
    let journalled = |edge: &e2e_tests::edge_module::EdgeModule, count: i64| {
        eventually("the journal has them", DEADLINE, || {
            let metrics = edge.metrics()?;
            let found = metric(&metrics, "journal_records_total", "readings").unwrap_or_default();
            anyhow::ensure!(found >= count as f64, "{found} of {count}");
            Ok(metric(&metrics, "input_redelivered_total", "").unwrap_or_default())
        })
    };
    assert_eq!(journalled(&edge, readings)?, 0.0, "the connection was kept");
    edge.process().terminate()?;
    edge.process().wait(DEADLINE)?;
    edge.restart()?;
    edge.wait_ready()?;
    // What the broker owes comes before it.
    publish_readings(&mut publisher, "press-1/oil", start, SMALL..SMALL + 1)?;
    assert_eq!(journalled(&edge, 1)?, 0.0, "messages delivered again");
    Ok(())
}
