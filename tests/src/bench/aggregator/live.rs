//! How late things are while records come at a steady rate: rows in the raw table, alerts on their topic.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use rdkafka::message::Message as _;
use shared_proto::model::EventTime;

use super::World;
use super::input::{METRICS, reading};
use super::table::{Row, Table};
use crate::bench::figures::Quantiles;
use crate::bench::usage::{cpu_seconds, memory_of};
use crate::cloud_aggregator::CloudAggregator;
use crate::eventually::eventually;
use crate::kafka::{Kafka, Loader, Tail};
use crate::lake::LakeReader;
use crate::random::Random;

const SENSORS: u64 = 300;
const PATIENCE: Duration = Duration::from_secs(60);
/// Left out at the start of each feed.
const WARM_UP: Duration = Duration::from_secs(5);
/// Windows of the rule whose alerts are timed: at 5,000 readings a second a third of them, all hot, are 5 a second of each sensor.
const WINDOW_MICROS: i64 = 4_000_000;
const ALERTS_AT: u64 = 6;
const TICK: Duration = Duration::from_micros(500);

/// `commit`: event time (the time of sending) to the commit of the row, with a trigger of one second.
pub(super) fn measure_commits(world: &World, table: &mut Table) -> anyhow::Result<()> {
    let mut run = Live::start(
        world,
        "commit",
        &[("AGGREGATOR__TRIGGER__PROCESSING_TIME", "1s")],
        String::new(),
    )?;
    let sent = run.feed.send(world, |_, _, _| {})?;
    let aggregator = &run.aggregator;
    eventually("all rows are committed", PATIENCE, || {
        let metrics = aggregator.metrics()?;
        let counted = crate::http::metric(&metrics, "aggregator_records_total", "counted");
        ensure!(counted == Some(sent as f64), "{counted:?} of {sent}");
        Ok(())
    })?;
    let lake = LakeReader::new(&run.lake);
    let skip = WARM_UP.as_secs();
    let [p50, p99, max] =
        lake.commit_latency("telemetry", skip)?.map(|seconds| format!("{seconds:.2}"));
    let reached = p99.parse::<f64>()? <= 1.5;
    let commits = lake.protocols()?.get("telemetry").context("no telemetry")?.version;
    let cpu = run.cpu_percent();
    let peak = run.peak();
    table.add(Row {
        what: format!(
            "raw table at {}/s and a trigger of 1 s, sent → committed",
            world.options.rate
        ),
        measured: format!(
            "p50 {p50} p99 {p99} max {max} s; {commits} commits, {cpu:.0} % of a core"
        ),
        goal: Some(("p99 ≤ 1.5 s".to_owned(), reached)),
        peak: Some(peak),
    });
    Ok(())
}

/// `alert`: the sixth anomaly of a window handed to the client → the alert read from its topic.
pub(super) fn measure_alerts(world: &World, table: &mut Table) -> anyhow::Result<()> {
    let cases = [
        ("micro", "PROCESSING_TIME", "a trigger of 1 s", None),
        ("continuous", "CONTINUOUS", "continuous, 1 s", Some((3.0, 20.0))),
    ];
    for (name, trigger, what, goal) in cases {
        let topic = format!("{name}-alerts");
        world.kafka.create_topics(&[&topic], 3)?;
        let trigger = format!("AGGREGATOR__TRIGGER__{trigger}");
        let environment = [(trigger.as_str(), "1s"), ("AGGREGATOR__ALERTS__TOPIC", &topic)];
        let rule = format!(
            "[[rules]]\nname = \"hot\"\nfilter = \"metric_type = temperature and value > 100\"\nwindow = \"{0}s\"\n\
             slide = \"{0}s\"\nby = \"sensor\"\nthreshold = \"count > {1}\"\noutput-mode = \"append\"\nseverity = 2\n",
            WINDOW_MICROS / 1_000_000,
            ALERTS_AT - 1
        );
        let mut run = Live::start(world, name, &environment, rule)?;
        let measured = Measured::new(time_alerts(world, &mut run.feed, &topic)?)?;
        let cpu = run.cpu_percent();
        let peak = run.peak();
        table.add(Row {
            what: format!("sixth anomaly sent → alert read, {}/s, {what}", world.options.rate),
            measured: format!("{measured}, {cpu:.0} % of a core"),
            goal: goal.map(|(low, high)| {
                let is_reached = measured.p50 <= low && measured.p99 <= high;
                (format!("p50 ≤ {low}, p99 ≤ {high} ms"), is_reached)
            }),
            peak: Some(peak),
        });
    }
    measure_echo(world, table)
}

/// What Kafka and the measurement themselves take: as [`measure_alerts`], with a loop of consumer and producer and nothing else in place
/// of the aggregator.
fn measure_echo(world: &World, table: &mut Table) -> anyhow::Result<()> {
    let topic = "echo-alerts";
    world.kafka.create_topics(&[topic], 3)?;
    let mut feed = Feed::new(world, "echo")?;
    let topics = feed.topics.clone();
    let input = world.kafka.tail_all(&topics.each_ref().map(String::as_str))?;
    let is_over = AtomicBool::new(false);
    let measured = std::thread::scope(|scope| {
        let echo = scope.spawn(|| echo(world, &input, topic, &is_over));
        let latencies = time_alerts(world, &mut feed, topic);
        is_over.store(true, Ordering::Release);
        echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
        Measured::new(latencies?)
    })?;
    table.add(Row {
        what: format!("the same at {}/s through a bare consumer and producer", world.options.rate),
        measured: measured.to_string(),
        goal: None,
        peak: None,
    });
    Ok(())
}

/// Sends what [`read_alerts`] looks for at each sixth anomaly of a window.
fn echo(world: &World, input: &Tail, topic: &str, is_over: &AtomicBool) -> anyhow::Result<()> {
    let output = feeder(&world.kafka)?;
    let mut counts: BTreeMap<(String, i64), u64> = BTreeMap::new();
    while !is_over.load(Ordering::Acquire) {
        let Some(message) = input.next(Duration::from_millis(100))? else { continue };
        let reading: serde_json::Value =
            serde_json::from_slice(message.payload().unwrap_or_default())?;
        if reading["metric_type"] != METRICS[0] {
            continue;
        }
        let sensor = reading["sensor_id"].as_str().context("no sensor_id")?;
        let time = reading["timestamp"].as_str().and_then(EventTime::parse);
        let start = window_of(time.context("no timestamp")?);
        let count = counts.entry((sensor.to_owned(), start)).or_default();
        *count += 1;
        if *count == ALERTS_AT {
            let start = EventTime::from_micros(start).to_string();
            let context = serde_json::json!({ "sensorId": sensor, "windowStart": start });
            let alert = serde_json::json!({ "data": { "data": { "alertContext": context } } });
            output.send(topic, sensor, alert.to_string().as_bytes())?;
        }
    }
    output.finish()
}

fn window_of(time: EventTime) -> i64 {
    time.micros().div_euclid(WINDOW_MICROS) * WINDOW_MICROS
}

/// Times from the sixth anomaly to its alert, in milliseconds.
struct Measured {
    p50: f64,
    p99: f64,
    max: f64,
    count: usize,
}

impl Measured {
    fn new(latencies: Vec<Duration>) -> anyhow::Result<Self> {
        let quantiles = Quantiles::new(latencies);
        let count = quantiles.count();
        ensure!(count > 100, "{count} alerts: too few");
        let at = |per_mille| quantiles.at(per_mille).map_or(f64::NAN, |at| at.as_secs_f64() * 1e3);
        Ok(Self { p50: at(500), p99: at(990), max: at(1000), count })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, max, count } = self;
        write!(formatter, "p50 {p50:.1} p99 {p99:.1} max {max:.1} ms, {count} alerts")
    }
}

/// Feeds, and reads the alerts beside it.
fn time_alerts(world: &World, feed: &mut Feed, topic: &str) -> anyhow::Result<Vec<Duration>> {
    let tail = world.kafka.tail(topic)?;
    let is_over = AtomicBool::new(false);
    let mut counts: BTreeMap<(String, i64), (u64, Instant)> = BTreeMap::new();
    let arrivals = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_alerts(&tail, &is_over));
        let fed = feed.send(world, |sensor, time, sent_at| {
            let window = window_of(time);
            let entry = counts.entry((sensor.to_owned(), window)).or_insert((0, sent_at));
            entry.0 += 1;
            if entry.0 == ALERTS_AT {
                entry.1 = sent_at;
            }
        });
        let due = counts.values().filter(|(count, _)| *count >= ALERTS_AT).count();
        // The reader ends when all that are due have come, or nothing has come for long.
        is_over.store(true, Ordering::Release);
        let arrivals = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        fed?;
        let arrivals = arrivals?;
        ensure!(arrivals.len() == due, "{} alerts of {due}", arrivals.len());
        anyhow::Ok(arrivals)
    })?;
    let start = counts.values().map(|(_, at)| *at).min().context("nothing was sent")?;
    arrivals
        .into_iter()
        .map(|(window, read_at)| {
            let (_, sent_at) = counts.get(&window).with_context(|| format!("{window:?}"))?;
            Ok((*sent_at, read_at))
        })
        .filter(|pair| pair.as_ref().map_or(true, |(sent_at, _)| *sent_at >= start + WARM_UP))
        .map(|pair| pair.map(|(sent_at, read_at)| read_at.saturating_duration_since(sent_at)))
        .collect()
}

/// When the first alert of each sensor and window was read, until none comes any more after the feed's end.
fn read_alerts(
    tail: &Tail,
    is_over: &AtomicBool,
) -> anyhow::Result<BTreeMap<(String, i64), Instant>> {
    const QUIET_FOR: Duration = Duration::from_secs(4);
    let mut arrivals = BTreeMap::new();
    let mut last = Instant::now();
    while !is_over.load(Ordering::Acquire) || last.elapsed() < QUIET_FOR {
        let Some(message) = tail.next(Duration::from_millis(100))? else { continue };
        let read_at = Instant::now();
        last = read_at;
        let alert: serde_json::Value =
            serde_json::from_slice(message.payload().unwrap_or_default())?;
        let context = &alert["data"]["data"]["alertContext"];
        let sensor = context["sensorId"].as_str().context("no sensorId")?.to_owned();
        let window = context["windowStart"].as_str().and_then(EventTime::parse);
        let window = window.context("no windowStart")?.micros();
        arrivals.entry((sensor, window)).or_insert(read_at);
    }
    Ok(arrivals)
}

/// An aggregator that waits at the end of empty topics.
struct Live {
    aggregator: CloudAggregator,
    lake: std::path::PathBuf,
    feed: Feed,
}

impl Live {
    fn start(
        world: &World,
        name: &str,
        environment: &[(&str, &str)],
        rules: String,
    ) -> anyhow::Result<Self> {
        let prefix = format!("{name}-");
        let feed = Feed::new(world, name)?;
        let dir = world.folder(name);
        let mut settings = world.settings(&dir, &prefix, environment);
        settings.more = rules;
        let mut aggregator = CloudAggregator::start(&dir, &settings)?;
        aggregator.wait_ready()?;
        wait_for_partitions(&aggregator, 6.0)?;
        Ok(Self { aggregator, lake: settings.lake, feed })
    }

    fn cpu_percent(&mut self) -> f64 {
        cpu_seconds(self.aggregator.process().id()) / self.feed.seconds * 100.0
    }

    fn peak(&mut self) -> u64 {
        memory_of(self.aggregator.process().id()).highest
    }
}

/// Readings at a steady rate into three topics of their own.
struct Feed {
    loader: Loader,
    topics: [String; 3],
    seconds: f64,
}

impl Feed {
    /// Makes the topics `<name>-temperature` and so on.
    fn new(world: &World, name: &str) -> anyhow::Result<Self> {
        let topics = METRICS.map(|metric| format!("{name}-{metric}"));
        world.kafka.create_topics(&topics.each_ref().map(String::as_str), 2)?;
        Ok(Self { loader: feeder(&world.kafka)?, topics, seconds: 0.0 })
    }

    /// Sends at the options' rate for as long as they say; `on_hot` learns of each anomaly when it is handed to the client.
    fn send(
        &mut self,
        world: &World,
        mut on_hot: impl FnMut(&str, EventTime, Instant),
    ) -> anyhow::Result<u64> {
        let options = &world.options;
        let mut random = Random::new(2);
        let (began, length) = (Instant::now(), Duration::from_secs(options.seconds));
        let mut sent = 0;
        loop {
            let elapsed = began.elapsed();
            if elapsed >= length {
                break;
            }
            let due = (elapsed.as_secs_f64() * options.rate as f64) as u64;
            while sent < due {
                let metric = usize::try_from(sent % 3)?;
                let sensor = format!("sensor-{:03}", random.below(SENSORS));
                let (now, at) = (now()?, Instant::now());
                let value = if metric == 0 { 100.5 } else { 50.0 } + 40.0 * random.fraction();
                let payload = reading(&sensor, now, METRICS[metric], value);
                self.loader.send(&self.topics[metric], &sensor, payload.as_bytes())?;
                if metric == 0 {
                    on_hot(&sensor, now, at);
                }
                sent += 1;
            }
            // The pace of the feed.
            std::thread::sleep(TICK);
        }
        self.seconds = began.elapsed().as_secs_f64();
        Ok(sent)
    }
}

/// Until an instance has so many partitions.
pub(super) fn wait_for_partitions(
    aggregator: &CloudAggregator,
    expected: f64,
) -> anyhow::Result<()> {
    eventually("the partitions are given", PATIENCE, || {
        let given = crate::http::metric(&aggregator.metrics()?, "aggregator_partitions", "");
        ensure!(given == Some(expected), "{given:?} of {expected}");
        Ok(())
    })
}

/// Sends at once what it is given.
fn feeder(kafka: &Kafka) -> anyhow::Result<Loader> {
    kafka.loader_with(&[("linger.ms", "0")])
}

fn now() -> anyhow::Result<EventTime> {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    Ok(EventTime::from_micros(i64::try_from(micros)?))
}
