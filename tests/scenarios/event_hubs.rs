//! The topic of alerts as an Event Hub: TLS, SASL PLAIN with a connection string, keys that are wrong or change, a broker that goes
//! away, records that it refuses; in `oauth`, tokens of an identity instead of keys. A real Apache Kafka has the endpoint, see
//! `e2e_tests::kafka::SecuredKafka`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, run_command};
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::kafka::SecuredKafka;
use e2e_tests::publisher::reading_json;
use rdkafka::message::{Headers, Message, OwnedMessage};
use serde_json::Value;
use shared_proto::model::EventTime;

use crate::plant::{DEADLINE, Plant, kafka, now};

mod oauth;
mod token_endpoint;

const SECOND: i64 = 1_000_000;
/// With all that a key in base64 may hold.
const KEY: &str = "dGhlLWtleS1vZi10aGUtcGxhbnQ+/Zx+8c0=";
const OTHER_KEY: &str = "YW5vdGhlci1rZXktb2YtdGhlLXBsYW50+/Q=";
/// What Event Hubs takes.
const SERVICE_BATCH_BYTES: usize = 1_000_000;
/// Above an alert with short names (about 1,500 bytes with its record), below one with long names (about 3,500) and below two with
/// short ones.
const SMALL_BATCH_BYTES: usize = 2_500;
/// Bytes of a long name of a machine: that of its sensor has 4 more, and 256 are allowed.
const NAME_BYTES: usize = 252;
/// A client that cannot reach its brokers says so about each kind of error once in 30 s: at the second time it has been so long.
const COMPLAINTS: usize = 2;
/// Librdkafka's longest wait before it connects again is 10 s, and a busy machine starts Kafka in half a minute.
const LONG_DEADLINE: Duration = Duration::from_secs(120);
/// Windows of a second.
const HOT: &str = "[[rules]]\nname = \"hot\"\nfilter = \"metric_type = temperature and value > 100\"\n\
                   window = \"1s\"\nthreshold = \"count > 5\"\nseverity = 2\n";

/// A plant whose alerts go to an Event Hub.
struct EventHub {
    plant: Plant,
    kafka: SecuredKafka,
}

impl EventHub {
    /// Its endpoint takes [`KEY`]; the program gets `key` and does not trust the endpoint yet.
    fn start(name: &str, key: &str, batch_bytes_max: usize) -> anyhow::Result<Self> {
        let mut plant = Plant::new(name)?;
        let kafka = SecuredKafka::start(&plant.dir.join("event-hubs"), KEY, batch_bytes_max)?;
        kafka.plain().create_topics(&[&plant.topic("alerts")], 1)?;
        plant.aggregator_settings.more = format!(
            "{HOT}[alerts.event-hubs]\nconnection-string-file = \"{}\"\ncompression = \"gzip\"\n",
            key_file(&plant).display()
        );
        let event_hub = Self { plant, kafka };
        event_hub.give_key(key)?;
        Ok(event_hub)
    }

    fn give_key(&self, key: &str) -> anyhow::Result<()> {
        // As an editor leaves it: with an end of line.
        Ok(std::fs::write(key_file(&self.plant), self.kafka.connection_string(key) + "\n")?)
    }

    fn trust(&mut self) {
        let authority = self.kafka.authority().display().to_string();
        let environment = &mut self.plant.aggregator_settings.environment;
        environment.push(("SSL_CERT_FILE".to_owned(), authority));
    }

    /// A hot second of a machine, so many seconds ago: one alert.
    fn heat(&self, machine: &str, seconds_ago: i64) -> anyhow::Result<()> {
        let second = now().micros().div_euclid(SECOND) - seconds_ago;
        let sensor = format!("{machine}/oil");
        let records: Vec<(String, Vec<u8>)> = (0..8)
            .map(|tenth| {
                let at = EventTime::from_micros(second * SECOND + tenth * 100_000);
                let json = reading_json(machine, &sensor, "temperature", at, 120.0);
                // One partition: what is in one epoch is sent together.
                ("plant".to_owned(), json.into_bytes())
            })
            .collect();
        kafka()?.produce(&self.plant.topic("temperature"), &records)
    }

    /// What the Event Hub holds.
    fn records(&self) -> anyhow::Result<Vec<OwnedMessage>> {
        self.kafka.plain().read_all(&self.plant.topic("alerts"))
    }

    fn wait_records(&self, expected: usize) -> anyhow::Result<Vec<OwnedMessage>> {
        eventually("the alerts are in the Event Hub", LONG_DEADLINE, || {
            let records = self.records()?;
            ensure!(records.len() >= expected, "{} of {expected}", records.len());
            Ok(records)
        })
    }

    /// Each alert of these machines once, as the webhook has got it, and nothing else anywhere.
    fn check(&self, machines: &[&str]) -> anyhow::Result<()> {
        let records = self.wait_records(machines.len())?;
        let expected: BTreeSet<&str> = machines.iter().copied().collect();
        let keys: Vec<String> = records
            .iter()
            .map(|record| String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned())
            .collect();
        let distinct: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        ensure!(distinct == expected && keys.len() == machines.len(), "{keys:?}");
        let told: BTreeSet<String> = eventually("the webhook has got them, too", DEADLINE, || {
            let told: BTreeSet<String> = self.plant.webhook.bodies().into_iter().collect();
            ensure!(told.len() >= machines.len(), "{told:?}");
            Ok::<_, anyhow::Error>(told)
        })?;
        for (record, key) in records.iter().zip(&keys) {
            check_record(record, key, &told)?;
        }
        let elsewhere = kafka()?.read_all(&self.plant.topic("alerts"))?;
        ensure!(elsewhere.is_empty(), "{} alerts at kafka.brokers", elsewhere.len());
        Ok(())
    }

    /// The alerts stay owed, the program says why, and goes on with all else.
    fn wait_owed(
        &self,
        aggregator: &mut CloudAggregator,
        owed: u64,
        reason: &str,
    ) -> anyhow::Result<()> {
        eventually(&format!("it says why alerts wait: {reason}"), DEADLINE, || {
            ensure!(aggregator.process().is_running()?, "it has ended");
            let status: Value = serde_json::from_str(&aggregator.get("/status")?.1)?;
            ensure!(status["alerts_owed"] == owed, "{status}");
            let log = log_of(aggregator);
            ensure!(complaints(&log, reason) > 0, "{log}");
            Ok(())
        })?;
        let (code, body) = aggregator.get("/readyz")?;
        ensure!(code == 200, "{body}");
        self.check_no_secret(aggregator)
    }

    fn check_no_secret(&self, aggregator: &mut CloudAggregator) -> anyhow::Result<()> {
        let log = log_of(aggregator);
        let pages = aggregator.metrics()? + &aggregator.get("/status")?.1;
        for secret in [KEY, OTHER_KEY, "SharedAccessKey="] {
            ensure!(!log.contains(secret), "the log holds a part of a connection string");
            ensure!(!pages.contains(secret), "a page holds a part of a connection string");
        }
        Ok(())
    }
}

fn key_file(plant: &Plant) -> PathBuf {
    plant.dir.join("connection-string")
}

fn log_of(aggregator: &mut CloudAggregator) -> String {
    let process = aggregator.process();
    process.stdout() + &process.stderr()
}

/// How often the client of alerts has told of this kind of error.
fn complaints(log: &str, reason: &str) -> usize {
    let is_one = |line: &&str| line.contains("client=\"alerts\"") && line.contains(reason);
    log.lines().filter(is_one).count()
}

fn check_record(record: &OwnedMessage, key: &str, told: &BTreeSet<String>) -> anyhow::Result<()> {
    let body = std::str::from_utf8(record.payload().context("no body")?)?;
    ensure!(told.contains(body), "the webhook has not got this: {body}");
    let event: Value = serde_json::from_str(body)?;
    ensure!(event["subject"] == key, "{event}");
    ensure!(event["type"] == "predictive-maintenance.alert.fired.v1", "{event}");
    ensure!(event["data"]["data"]["essentials"]["alertRule"] == "hot", "{event}");
    let headers = record.headers().context("no headers")?;
    let found: Vec<(&str, Option<&[u8]>)> =
        headers.iter().map(|header| (header.key, header.value)).collect();
    let content_type: &[u8] = b"application/cloudevents+json; charset=utf-8";
    ensure!(found == [("content-type", Some(content_type))], "{found:?}");
    Ok(())
}

/// Ends it as an operator does.
fn stop(mut aggregator: CloudAggregator) -> anyhow::Result<()> {
    aggregator.process().terminate()?;
    let status = aggregator.process().wait(DEADLINE)?;
    ensure!(status.success(), "{status}:\n{}", aggregator.process().tail());
    Ok(())
}

#[test]
fn alerts_wait_for_the_right_key_and_a_trusted_certificate_and_arrive_once() -> anyhow::Result<()> {
    let mut event_hub = EventHub::start("event-hub-key", OTHER_KEY, SERVICE_BATCH_BYTES)?;
    // An endpoint that is not trusted gets no password, right or wrong.
    let mut aggregator = event_hub.plant.start_aggregator()?;
    event_hub.heat("press-1", 2)?;
    event_hub.wait_owed(&mut aggregator, 1, "SSL error")?;
    let before = complaints(&log_of(&mut aggregator), "Authentication failure");
    ensure!(before == 0, "it has given its password away");
    stop(aggregator)?;

    event_hub.trust();
    let mut aggregator = event_hub.plant.start_aggregator()?;
    event_hub.heat("press-2", 2)?;
    event_hub.wait_owed(&mut aggregator, 2, "Authentication failure")?;
    stop(aggregator)?;
    ensure!(event_hub.records()?.is_empty(), "the wrong key was taken");

    event_hub.give_key(KEY)?;
    let mut aggregator = event_hub.plant.start_aggregator()?;
    event_hub.wait_records(2)?;
    event_hub.heat("press-3", 2)?;
    event_hub.check(&["press-1", "press-2", "press-3"])?;
    event_hub.check_no_secret(&mut aggregator)?;
    event_hub.plant.wait_for_count("SELECT count(*) FROM alerts", 3)?;
    let letters = event_hub.plant.lake().count("SELECT count(*) FROM dead_letters")?;
    ensure!(letters == 0, "{letters} dead letters");
    Ok(())
}

#[test]
fn a_key_that_changes_and_a_broker_that_is_away_lose_and_repeat_no_alert() -> anyhow::Result<()> {
    let mut event_hub = EventHub::start("event-hub-away", KEY, SERVICE_BATCH_BYTES)?;
    event_hub.trust();
    let mut aggregator = event_hub.plant.start_aggregator()?;
    event_hub.heat("press-1", 2)?;
    event_hub.check(&["press-1"])?;

    // Somebody renews the key at the service and takes it back. The program is not started again.
    event_hub.kafka.restart_with_key(OTHER_KEY)?;
    event_hub.heat("press-2", 2)?;
    event_hub.wait_owed(&mut aggregator, 1, "Authentication failure")?;
    event_hub.kafka.restart_with_key(KEY)?;
    event_hub.check(&["press-1", "press-2"])?;

    let down = "AllBrokersDown";
    let before = complaints(&log_of(&mut aggregator), down);
    event_hub.kafka.plain().kill()?;
    event_hub.heat("press-3", 2)?;
    event_hub.heat("press-4", 2)?;
    eventually("the broker is away for half a minute", LONG_DEADLINE, || {
        let told = complaints(&log_of(&mut aggregator), down) - before;
        ensure!(told >= COMPLAINTS, "told {told} times");
        Ok(())
    })?;
    event_hub.wait_owed(&mut aggregator, 2, down)?;
    event_hub.kafka.plain().restart()?;
    event_hub.check(&["press-1", "press-2", "press-3", "press-4"])?;
    event_hub.heat("press-5", 2)?;
    event_hub.check(&["press-1", "press-2", "press-3", "press-4", "press-5"])?;
    eventually("nothing is owed", DEADLINE, || {
        let status: Value = serde_json::from_str(&aggregator.get("/status")?.1)?;
        ensure!(status["alerts_owed"] == 0, "{status}");
        Ok(())
    })?;
    event_hub.check_no_secret(&mut aggregator)
}

#[test]
fn an_alert_that_is_too_large_becomes_a_dead_letter_and_no_other_with_it() -> anyhow::Result<()> {
    let mut event_hub = EventHub::start("event-hub-large", KEY, SMALL_BATCH_BYTES)?;
    // Compressed, it would not be too large.
    let more = &mut event_hub.plant.aggregator_settings.more;
    *more = more.replace("\"gzip\"", "\"none\"");
    event_hub.trust();
    let aggregator = event_hub.plant.start_aggregator()?;
    let long = "x".repeat(NAME_BYTES);
    event_hub.heat(&long, 2)?;
    let letters = "SELECT count(*) FROM dead_letters WHERE reason = 'alert-undelivered'";
    event_hub.plant.wait_for_count(letters, 1)?;
    let rows = event_hub.plant.lake().query("SELECT detail, source FROM dead_letters")?;
    let detail = rows[0]["detail"].as_str().context("no detail")?;
    ensure!(detail.starts_with("topic: ") && detail.contains("too large"), "{rows:?}");

    // At once, and while the endpoint is away, so that they are one batch, which is too large though only one of them is.
    event_hub.kafka.plain().kill()?;
    let short = ["press-1", "press-2", "press-3", "press-4"];
    event_hub.heat(short[0], 2)?;
    event_hub.heat(short[1], 2)?;
    event_hub.heat(&long, 3)?;
    event_hub.heat(short[2], 2)?;
    event_hub.heat(short[3], 2)?;
    eventually("all are owed", DEADLINE, || {
        let status: Value = serde_json::from_str(&aggregator.get("/status")?.1)?;
        ensure!(status["alerts_owed"] == 5, "{status}");
        Ok(())
    })?;
    event_hub.kafka.plain().restart()?;
    event_hub.plant.wait_for_count(letters, 2)?;
    event_hub.check(&short)?;
    let given_up = metric(&aggregator.metrics()?, "aggregator_alerts_given_up_total", "topic");
    ensure!(given_up == Some(2.0), "{given_up:?}");
    let letters = event_hub.plant.lake().count("SELECT count(*) FROM dead_letters")?;
    ensure!(letters == 2, "{letters} dead letters");
    Ok(())
}

#[test]
fn what_an_event_hub_does_not_take_is_refused_before_the_start() -> anyhow::Result<()> {
    let mut plant = Plant::new("event-hub-check")?;
    let file = plant.dir.join("connection-string");
    let host = "Endpoint=sb://plant.servicebus.windows.net/;SharedAccessKeyName=send";
    std::fs::write(&file, format!("{host};SharedAccessKey={KEY}\n"))?;
    let dir = plant.dir.join("check");
    std::fs::create_dir_all(&dir)?;
    let mut check = |more: &str| {
        plant.aggregator_settings.more =
            format!("[alerts.event-hubs]\nconnection-string-file = \"{}\"\n{more}", file.display());
        let text = plant.aggregator_settings.to_toml(0);
        std::fs::write(dir.join("cloud-aggregator.toml"), text)?;
        let finished = run_command(&dir, &["check-config"])?;
        let text = finished.output + &finished.errors;
        ensure!(!text.contains(KEY), "the key is printed");
        anyhow::Ok((finished.code, text))
    };
    for codec in ["none", "gzip"] {
        let (code, text) = check(&format!("compression = \"{codec}\"\n"))?;
        ensure!(code == Some(0), "{codec}: {code:?} {text}");
    }
    for codec in ["snappy", "lz4", "zstd"] {
        let (code, text) = check(&format!("compression = \"{codec}\"\n"))?;
        ensure!(code == Some(78), "{codec}: {code:?} {text}");
        let path = "alerts.event-hubs.compression";
        ensure!(text.contains(path) && text.contains("gzip alone"), "{codec}: {text}");
    }
    std::fs::write(&file, format!("{host};SharedAccessKey={KEY};EntityPath=another\n"))?;
    let (code, text) = check("")?;
    ensure!(code == Some(78) && text.contains("is for \"another\" alone"), "{code:?} {text}");
    Ok(())
}
