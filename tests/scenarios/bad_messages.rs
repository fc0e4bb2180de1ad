//! Bad input as a matter of course, on the topics that the aggregator reads: every reading counts, everything else is accounted for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::bench::usage::memory_of;
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::kafka::Loader;
use prost::Message as _;
use shared_proto::model::EventTime;
use shared_proto::wire::{CONTENT_TYPE_JSON, CONTENT_TYPE_PROTOBUF, v1};

use crate::plant::{DEADLINE, Plant, kafka, now};

const MESSAGES: u64 = 60_000;
const SENSORS: u64 = 300;
const DISTINCT_SENSORS: u64 = 1_000_000;
/// For what takes half a minute on an idle machine, with programs that are not optimised.
const LONG_DEADLINE: Duration = Duration::from_secs(300);
const DAY_MICROS: i64 = 86_400_000_000;

/// A message that is no reading to be counted.
struct Bad {
    /// Reason of its dead letter; nothing for what is late.
    reason: Option<&'static str>,
    payload: Option<Vec<u8>>,
    content_type: Option<&'static str>,
}

fn json(sensor: &str, time: &str, value: &str) -> String {
    format!(
        r#"{{"sensor_id":"{sensor}","timestamp":"{time}","metric_type":"temperature","value":{value}}}"#
    )
}

/// Every way in which a message can be broken, once. `sensor` has sent something of today before.
fn bad_messages(sensor: &str) -> Vec<Bad> {
    let time = now().to_string();
    let good = json(sensor, &time, "20");
    let with = |from: &str, to: &str| good.replacen(from, to, 1);
    let text = |reason, payload: String| Bad {
        reason: Some(reason),
        payload: Some(payload.into_bytes()),
        content_type: None,
    };
    let bytes = |reason, payload: &[u8]| Bad {
        reason: Some(reason),
        payload: Some(payload.to_vec()),
        content_type: None,
    };
    let mut all = vec![
        text("name", with(sensor, &"s".repeat(10_000))),
        text("name", with(sensor, " ")),
        text("name", with(sensor, "a\\u0000b")),
        text("json", with(":20", ":NaN")),
        text("json", with(":20", ":Infinity")),
        text("json", with(":20", ":-Infinity")),
        text("json", with(":20", ":1e400")),
        text("json", with(":20", ":\"20\"")),
        text("json", with(":20", ":null")),
        text("json", with(":20", ":20,\"value\":21")),
        text("json", good[..good.len() - 9].to_owned()),
        text("json", format!("[{good}]")),
        text("json", format!("{good}{good}")),
        text("json", "hello".to_owned()),
        text("missing-field", with(",\"value\":20", "")),
        text("timestamp", with(&time, &time[..time.len() - 1])),
        text("timestamp", with(&time, "yesterday")),
        text("timestamp-too-old", with(&time, "0001-01-01T00:00:00Z")),
        text("timestamp-in-future", with(&time, "9999-12-31T23:59:59Z")),
        text("timestamp", with(&time, "9999-12-31T23:59:59-01:00")),
        text("identity", with("}", ",\"device_id\":\"gw\",\"sequence\":1}")),
        text("too-many", with("}", &format!(",\"unit\":\"{}\"}}", "u".repeat(33)))),
        bytes("json", &good.as_bytes().iter().map(|byte| byte | 0x80).collect::<Vec<_>>()),
        bytes("json", &[0xff; 100]),
        bytes("json", &[0; 100]),
        bytes("empty", b""),
        Bad { reason: Some("empty"), payload: None, content_type: None },
        Bad { reason: Some("empty"), payload: None, content_type: Some(CONTENT_TYPE_PROTOBUF) },
        // Two days behind what the sensor has sent already.
        Bad {
            reason: None,
            payload: Some(
                json(sensor, &now().saturating_sub_micros(2 * DAY_MICROS).to_string(), "150")
                    .into(),
            ),
            content_type: Some(CONTENT_TYPE_JSON),
        },
    ];
    for content_type in ["text/csv", "", "application/json5", "application/json; charset=latin1"] {
        let payload = Some(good.clone().into_bytes());
        all.push(Bad { reason: Some("content-type"), payload, content_type: Some(content_type) });
    }
    all.extend(bad_protobuf(sensor, &good));
    all
}

fn bad_protobuf(sensor: &str, good_json: &str) -> Vec<Bad> {
    let good = v1::Reading {
        sensor_id: sensor.to_owned(),
        timestamp_micros: Some(now().micros()),
        metric_type: "temperature".to_owned(),
        value: Some(20.0),
        ..v1::Reading::default()
    };
    let value = |value| v1::Reading { value: Some(value), ..good.clone() }.encode_to_vec();
    let time =
        |micros| v1::Reading { timestamp_micros: Some(micros), ..good.clone() }.encode_to_vec();
    let whole = good.encode_to_vec();
    let bad = |reason, payload: Vec<u8>| Bad {
        reason: Some(reason),
        payload: Some(payload),
        content_type: Some(CONTENT_TYPE_PROTOBUF),
    };
    vec![
        bad("not-finite", value(f64::NAN)),
        bad("not-finite", value(f64::INFINITY)),
        bad("not-finite", value(f64::NEG_INFINITY)),
        bad("timestamp", time(i64::MAX)),
        bad("timestamp-too-old", time(0)),
        bad("protobuf", whole[..whole.len() - 3].to_vec()),
        bad("protobuf", good_json.as_bytes().to_vec()),
        bad("missing-field", v1::Reading { value: None, ..good.clone() }.encode_to_vec()),
        bad("unknown-value", v1::Reading { quality: 9, ..good.clone() }.encode_to_vec()),
        // What says that it is JSON, or nothing, is read as JSON.
        Bad { reason: Some("json"), payload: Some(whole), content_type: None },
    ]
}

/// Sends 99 good messages, then a bad one, and so on; gives how many of which reason, and how many late.
fn send_mixed(loader: &Loader, topic: &str) -> anyhow::Result<(BTreeMap<String, u64>, u64, u64)> {
    let (mut reasons, mut late, mut good) = (BTreeMap::<String, u64>::new(), 0, 0);
    let mut bad = Vec::new();
    for number in 0..MESSAGES {
        let sensor = format!("sensor-{:03}", number % SENSORS);
        if number % 100 != 99 {
            let reading = json(&sensor, &now().to_string(), &format!("20.{number:06}"));
            loader.send(topic, &sensor, reading.as_bytes())?;
            good += 1;
            continue;
        }
        if bad.is_empty() {
            // All bad ones of this round have this sensor's key, so that they follow its good ones.
            bad = bad_messages("sensor-000");
        }
        let message = bad.pop().context("one is left")?;
        loader.send_as_is(topic, "sensor-000", message.payload.as_deref(), message.content_type)?;
        match message.reason {
            Some(reason) => *reasons.entry(reason.to_owned()).or_default() += 1,
            None => late += 1,
        }
    }
    Ok((reasons, late, good))
}

#[test]
fn one_message_in_a_hundred_is_broken_in_every_way_and_no_other_is_lost() -> anyhow::Result<()> {
    let plant = Plant::new("mixed")?;
    let mut aggregator = plant.start_aggregator()?;
    let loader = kafka()?.loader()?;
    let topic = plant.topic("temperature");
    let (mut reasons, late, good) = send_mixed(&loader, &topic)?;
    for _ in 0..3 {
        let large = json("sensor-000", &now().to_string(), "20") + &" ".repeat(2_000_000);
        loader.send(&topic, "sensor-000", large.as_bytes())?;
        *reasons.entry("too-large".to_owned()).or_default() += 1;
    }
    loader.finish()?;
    let refused: u64 = reasons.values().sum();
    ensure!(late > 5 && refused > 500, "{late} late, {refused} refused: too few of each kind");
    wait_for_records(&aggregator, good + late + refused, DEADLINE)?;

    let lake = plant.lake();
    assert_eq!(lake.count("SELECT count(*) FROM telemetry")?, good);
    assert_eq!(lake.count("SELECT count(DISTINCT value) FROM telemetry")?, good);
    assert_eq!(lake.count("SELECT count(*) FROM late_readings")?, late);
    let mut found = BTreeMap::new();
    for row in lake.query("SELECT reason, count(*) AS number FROM dead_letters GROUP BY reason")? {
        let reason = row["reason"].as_str().context("a reason")?.to_owned();
        found.insert(reason, row["number"].as_u64().context("a number")?);
    }
    assert_eq!(found, reasons);
    let metrics = aggregator.metrics()?;
    for (reason, count) in &reasons {
        let label = format!("reason=\"{reason}\"");
        let counted = metric(&metrics, "aggregator_dead_letters_total", &label);
        assert_eq!(counted, Some(*count as f64), "{reason}");
    }
    check_alive(&mut aggregator)
}

/// Until as many are committed, each with its fate.
fn wait_for_records(
    aggregator: &CloudAggregator,
    expected: u64,
    deadline: Duration,
) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    eventually("all records are accounted for", deadline, || {
        let metrics = aggregator.metrics()?;
        let fates = ["counted", "late", "duplicate", "dead-letter"];
        let fates: BTreeMap<&str, f64> = fates
            .into_iter()
            .map(|fate| (fate, metric(&metrics, "aggregator_records_total", fate).unwrap_or(0.0)))
            .collect();
        let sum: f64 = fates.values().sum();
        ensure!(sum >= expected as f64, "{sum} of {expected}: {fates:?}");
        ensure!(sum == expected as f64, "{sum} of {expected}, too many: {fates:?}");
        anyhow::Ok(fates)
    })
}

fn check_alive(aggregator: &mut CloudAggregator) -> anyhow::Result<()> {
    ensure!(aggregator.process().is_running()?, "it ended:\n{}", aggregator.process().tail());
    for path in ["/healthz", "/readyz"] {
        let (status, body) = aggregator.get(path)?;
        ensure!(status == 200, "{path} says {status}: {body}\n{}", aggregator.process().tail());
    }
    Ok(())
}

/// Somebody makes up names: they fill the limit and no more, and who was known before is counted on.
#[test]
fn a_million_sensors_that_nobody_has_fill_their_limit_and_no_more() -> anyhow::Result<()> {
    const KNOWN_MAX: u64 = 20_000;
    let mut plant = Plant::new("made-up")?;
    let limit = ("AGGREGATOR__COUNTING__SENSORS_MAX".to_owned(), KNOWN_MAX.to_string());
    plant.aggregator_settings.environment.push(limit);
    let mut aggregator = plant.start_aggregator()?;
    let topic = plant.topic("temperature");
    let loader = kafka()?.loader()?;
    let time = EventTime::from_micros(now().micros()).to_string();
    loader.send(&topic, "press-1", json("press-1", &time, "20").as_bytes())?;
    for number in 0..DISTINCT_SENSORS {
        let sensor = format!("made-up-{number}");
        loader.send(&topic, &sensor, json(&sensor, &time, "150").as_bytes())?;
    }
    loader.send(&topic, "press-1", json("press-1", &time, "21").as_bytes())?;
    loader.finish()?;
    let fates = wait_for_records(&aggregator, DISTINCT_SENSORS + 2, LONG_DEADLINE)?;
    // Each partition has its limit, and is full.
    assert_eq!(fates["counted"] as u64 % KNOWN_MAX, 1, "the second of press-1: {fates:?}");
    let metrics = aggregator.metrics()?;
    let refused = metric(&metrics, "aggregator_dead_letters_total", "sensors-limit");
    assert_eq!(refused, Some(fates["dead-letter"]));
    let lake = plant.lake();
    assert_eq!(lake.count("SELECT count(*) FROM telemetry WHERE sensor_id = 'press-1'")?, 2);
    let letters = "SELECT count(*) FROM dead_letters WHERE reason = 'sensors-limit'";
    assert_eq!(lake.count(letters)? as f64, fates["dead-letter"]);
    let memory = memory_of(aggregator.process().id());
    eprintln!("{fates:?}: {memory}");
    ensure!(memory.highest < 1_000_000_000, "{memory}");
    check_alive(&mut aggregator)
}
