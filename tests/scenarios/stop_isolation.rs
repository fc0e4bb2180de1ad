//! The stop path shares nothing with disk and network: with the disk stalled, the disk full or Kafka cut, each stop arrives
//! as it does on a calm day. And nothing of what was journalled or waited meanwhile is lost.
//!
//! The edge module runs on the disk of `faulty_disk.c`, which lets calls wait or fail at and below its data folder. A stop
//! that waited for one of them would not arrive before the phase is over, which it is not before the stop has arrived.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::publisher::{Publisher, reading_json};

use crate::disk::{FaultyDisk, Word};
use crate::plant::{DEADLINE, Plant, kafka, now};

const STOPS_PER_PHASE: usize = 20;
/// From publishing to receiving, through the broker and this busy test: a few milliseconds when the computer has time.
const LATENCY_MAX: Duration = Duration::from_secs(1);
/// Of the module's own measure: a limit of its buckets.
const OWN_LATENCY_MAX_SECONDS: f64 = 0.5;
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two of the readings that keep journal and Kafka busy.
const BACKGROUND_INTERVAL: Duration = Duration::from_millis(2);
const FAILURES: &str = "journal_append_failures_total";
pub(crate) const MACHINES: &str = "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"oil-hot\"\n\
     sensor = \"press-1/oil\"\nquantity = \"value\"\nabove = 120.0\n";

/// A press with its sensors, and what it was told.
pub(crate) struct Press {
    machine: FakeMachine,
    sensors: Publisher,
    stops: usize,
}

impl Press {
    pub(crate) fn start(port: u16) -> anyhow::Result<Self> {
        let machine = FakeMachine::start(port, "press-1", Obedience::SpinsDown(Duration::ZERO))?;
        Ok(Self { machine, sensors: Publisher::connect(port, "oil"), stops: 0 })
    }

    fn report_oil(&mut self, value: f64) -> anyhow::Result<()> {
        let reading = reading_json("press-1", "press-1/oil", "temperature", now(), value);
        self.sensors.publish("plant/press-1/readings", reading)
    }

    /// A hot reading, the stop, standstill, a cool reading, the reset, the next start. Gives the time from publishing the
    /// hot reading to receiving the command: twice through the broker, and the edge module in between.
    pub(crate) fn stop_once(&mut self) -> anyhow::Result<Duration> {
        let before = self.machine.commands().len();
        let published = Instant::now();
        self.report_oil(121.0)?;
        let command = eventually("the stop arrives", STOP_DEADLINE, || {
            self.machine.commands().get(before).cloned().ok_or("no command")
        })?;
        ensure!(command.payload["command"] == "stop", "{}", command.payload);
        self.stops += 1;
        eventually("standstill", STOP_DEADLINE, || {
            if self.machine.is_running() { Err("it runs") } else { Ok(()) }
        })?;
        self.machine.wait_for_interlock("stopped", STOP_DEADLINE)?;
        self.report_oil(20.0)?;
        // Reading and reset take different ways: the reset may come first, and is refused then.
        eventually("the reset is taken", DEADLINE, || {
            self.machine.ask_for_reset("operator")?;
            self.machine.wait_for_interlock("armed", Duration::from_millis(200))
        })?;
        self.machine.switch_on()?;
        Ok(command.at.saturating_duration_since(published))
    }
}

/// What happened in one phase.
pub(crate) struct Phase {
    name: &'static str,
    latencies: Vec<Duration>,
    /// Upper bounds of the buckets that p50, p99 and the highest of the module's own figures are in, in seconds.
    own: [f64; 3],
}

impl Phase {
    pub(crate) fn run(
        name: &'static str,
        stops: usize,
        press: &mut Press,
        edge: &EdgeModule,
    ) -> anyhow::Result<Self> {
        let before = command_latencies(&edge.metrics()?);
        let mut latencies = Vec::new();
        for number in 0..stops {
            let latency = press.stop_once().with_context(|| format!("{name}, stop {number}"))?;
            latencies.push(latency);
        }
        latencies.sort_unstable();
        let own = eventually("the module has measured each stop", DEADLINE, || {
            let mut after = command_latencies(&edge.metrics()?);
            for (bound, count) in &mut after {
                *count -= before.get(bound).copied().unwrap_or(0);
            }
            let count = after.values().max().copied().unwrap_or(0);
            ensure!(count >= stops as u64, "{count} of {stops}");
            Ok([50, 99, 100].map(|percent| bucket_of(&after, percent)))
        })?;
        Ok(Self { name, latencies, own })
    }

    pub(crate) fn print(&self) {
        let at = |percent: usize| {
            let index = (self.latencies.len() * percent).div_ceil(100) - 1;
            self.latencies[index].as_secs_f64() * 1e3
        };
        eprintln!(
            "{:<14} {} stops: p50 {:6.2} ms, p99 {:6.2} ms, max {:6.2} ms; \
             the module's own: p50 <= {:.2} ms, p99 <= {:.2} ms, max <= {:.2} ms",
            self.name,
            self.latencies.len(),
            at(50),
            at(99),
            at(100),
            self.own[0] * 1e3,
            self.own[1] * 1e3,
            self.own[2] * 1e3,
        );
    }

    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let max = self.latencies.last().copied().unwrap_or(Duration::MAX);
        ensure!(max <= LATENCY_MAX, "{}: a stop took {max:?}", self.name);
        let own = self.own[2];
        ensure!(own <= OWN_LATENCY_MAX_SECONDS, "{}: the module says {own} s", self.name);
        Ok(())
    }
}

/// The cumulative counts of `stop_command_latency_seconds` by bound in nanoseconds.
fn command_latencies(metrics: &str) -> BTreeMap<u64, u64> {
    let bucket = |line: &str| -> Option<(u64, u64)> {
        let rest = line.strip_prefix("stop_command_latency_seconds_bucket{")?;
        let (labels, count) = rest.split_once("} ")?;
        let bound = labels.split_once("le=\"")?.1.split_once('"')?.0;
        let seconds: f64 = bound.parse().ok()?;
        let nanoseconds =
            if seconds.is_finite() { (seconds * 1e9).round() as u64 } else { u64::MAX };
        Some((nanoseconds, count.parse().ok()?))
    };
    metrics.lines().filter_map(bucket).collect()
}

/// Upper bound in seconds of the bucket that so many percent are in.
fn bucket_of(cumulative: &BTreeMap<u64, u64>, percent: u64) -> f64 {
    let total = cumulative.values().max().copied().unwrap_or(0);
    let wanted = (total * percent).div_ceil(100);
    let bound = cumulative.iter().find(|(_, count)| **count >= wanted).map(|(bound, _)| *bound);
    bound.filter(|bound| *bound < u64::MAX).map_or(f64::INFINITY, |bound| bound as f64 / 1e9)
}

/// Readings of another sensor at a steady pace, until it is told to stop.
struct Background {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<u64>>,
}

impl Background {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut publisher = Publisher::connect(port, "room");
            let mut number = 0_u64;
            while !stopped.load(Ordering::SeqCst) {
                publish_number(&mut publisher, number)?;
                number += 1;
                // The pace of the sensor.
                std::thread::sleep(BACKGROUND_INTERVAL);
            }
            publisher.wait_acknowledged(DEADLINE)?;
            Ok(number)
        });
        Self { stop, thread }
    }

    /// Gives how many readings there were.
    fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("the publishing thread panicked"))?
    }
}

/// A reading that is told from all others by its value.
fn publish_number(publisher: &mut Publisher, number: u64) -> anyhow::Result<()> {
    let value = number as f64 / 1e6;
    let reading = reading_json("press-1", "press-1/room", "temperature", now(), value);
    publisher.publish("plant/press-1/readings", reading)
}

/// Each reading of the room is on Kafka under one identity, and so is each trip.
fn check_nothing_lost(plant: &Plant, readings: u64, trips: usize) -> anyhow::Result<()> {
    eventually("everything is on Kafka", DEADLINE, || {
        let records = kafka()?.read_json(&plant.topic("temperature"))?;
        let room = records.iter().filter(|record| record["sensor_id"] == "press-1/room");
        let mut sequences: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        for record in room {
            let identity = format!("{} {}", record["generation"], record["sequence"]);
            sequences.entry(record["value"].to_string()).or_default().insert(identity);
        }
        ensure!(sequences.len() as u64 == readings, "{} of {readings}", sequences.len());
        let twice = sequences.iter().find(|(_, identities)| identities.len() > 1);
        ensure!(twice.is_none(), "one reading under two identities: {twice:?}");
        let events = kafka()?.read_json(&plant.topic("machine-events"))?;
        let of_type = |wanted: &str| {
            let found = events.iter().filter(|event| event["event_type"] == wanted);
            found.map(|event| event["sequence"].to_string()).collect::<HashSet<_>>().len()
        };
        ensure!(of_type("trip") == trips, "{} of {trips} trips", of_type("trip"));
        ensure!(of_type("gap") == 0, "{} gaps", of_type("gap"));
        Ok(())
    })
}

fn failures(edge: &EdgeModule) -> anyhow::Result<f64> {
    Ok(metric(&edge.metrics()?, FAILURES, "").unwrap_or_default())
}

#[test]
fn neither_a_stalled_nor_a_full_disk_nor_a_cut_network_delays_a_stop() -> anyhow::Result<()> {
    let mut plant = Plant::new("isolation")?;
    let link = kafka()?.take_link()?;
    let data_dir = plant.edge_settings.data_dir.clone();
    std::fs::create_dir_all(&data_dir)?;
    let disk = FaultyDisk::new(&plant.dir, &data_dir, None)?;
    plant.edge_settings.kafka_bootstrap = format!("127.0.0.1:{}", link.port());
    plant.edge_settings.machines = MACHINES.to_owned();
    plant.edge_settings.environment.extend_from_slice(disk.environment());
    let mut press = Press::start(plant.mosquitto.port())?;
    let edge = plant.start_edge_module()?;
    let background = Background::start(plant.mosquitto.port());
    let mut phases = Vec::new();

    // The first stop after the start pays for what is done once.
    press.stop_once()?;
    phases.push(Phase::run("calm", STOPS_PER_PHASE, &mut press, &edge)?);

    disk.set(Word::Stall, 1)?;
    eventually("the module waits for its disk", DEADLINE, || {
        let waiting = disk.get(Word::StalledCalls)?;
        if waiting > 0 { anyhow::Ok(()) } else { anyhow::bail!("it does not") }
    })?;
    phases.push(Phase::run("disk stalled", STOPS_PER_PHASE, &mut press, &edge)?);
    ensure!(disk.get(Word::StalledCalls)? > 0, "the disk did not stall until the end of its phase");
    disk.set(Word::Stall, 0)?;

    disk.set(Word::QuotaBytes, bytes_below(&data_dir)?)?;
    eventually("the journal finds the disk full", DEADLINE, || {
        let failures = failures(&edge)?;
        ensure!(failures > 0.0, "no append has failed");
        Ok(())
    })?;
    phases.push(Phase::run("disk full", STOPS_PER_PHASE, &mut press, &edge)?);
    ensure!(edge.get("/readyz")?.0 != 200, "ready with a full disk");
    disk.set(Word::QuotaBytes, 0)?;

    link.cut();
    phases.push(Phase::run("Kafka cut", STOPS_PER_PHASE, &mut press, &edge)?);
    link.mend();

    let readings = background.end()?;
    for phase in &phases {
        phase.print();
    }
    for phase in &phases {
        phase.check()?;
    }
    check_nothing_lost(&plant, readings, press.stops)
}

fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 4_096;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path())?,
            Ok(metadata) => metadata.len(),
            // Gone meanwhile.
            Err(_) => 0,
        };
    }
    Ok(bytes)
}

/// A file system in memory, as small as wanted; only root may mount one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(folder: &'a Path, megabytes: u32) -> anyhow::Result<Option<Self>> {
        let is_mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(folder)
            .status()?
            .success();
        Ok(is_mounted.then_some(Self(folder)))
    }

    fn resize(&self, megabytes: u32) -> anyhow::Result<()> {
        let options = format!("remount,size={megabytes}m");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0).status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(())
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: the module may still hold it. What stays is gone with the machine's next start.
        Command::new("umount").arg("-l").arg(self.0).status().ok();
    }
}

#[test]
fn a_module_whose_disk_fills_up_waits_for_room_and_loses_nothing() -> anyhow::Result<()> {
    const SMALL_MEGABYTES: u32 = 4;
    const BURST: u64 = 2_000;
    let mut plant = Plant::new("disk-full")?;
    let data_dir = plant.edge_settings.data_dir.clone();
    std::fs::create_dir_all(&data_dir)?;
    // The whole disk is smaller than what is left to others by default.
    let no_reserve = ("EDGE__JOURNAL__FREE_BYTES_MIN".to_owned(), "0".to_owned());
    plant.edge_settings.environment.push(no_reserve);
    let disk = FaultyDisk::new(&plant.dir, &data_dir, None)?;
    let small = SmallDisk::mount(&data_dir, SMALL_MEGABYTES)?;
    if small.is_none() {
        eprintln!("mount refused: the quota of faulty_disk.c makes the disk small");
        disk.set(Word::QuotaBytes, u64::from(SMALL_MEGABYTES) << 20)?;
        plant.edge_settings.environment.extend_from_slice(disk.environment());
    }
    plant.edge_settings.machines = MACHINES.to_owned();
    let mut press = Press::start(plant.mosquitto.port())?;
    let edge = plant.start_edge_module()?;
    let mut publisher = Publisher::connect(plant.mosquitto.port(), "room");
    let mut readings = 0;
    while failures(&edge)? == 0.0 {
        ensure!(readings < 100 * BURST, "{readings} readings do not fill {SMALL_MEGABYTES} MB");
        for _ in 0..BURST {
            publish_number(&mut publisher, readings)?;
            readings += 1;
        }
        publisher.wait_acknowledged(DEADLINE)?;
    }
    for _ in 0..3 {
        press.stop_once()?;
    }
    ensure!(edge.get("/readyz")?.0 != 200, "ready with a full disk");
    match &small {
        Some(small) => small.resize(64)?,
        None => disk.set(Word::QuotaBytes, 0)?,
    }
    eventually("the module is ready again", DEADLINE, || {
        let (status, body) = edge.get("/readyz")?;
        ensure!(status == 200, "{status}: {body}");
        Ok(())
    })?;
    check_nothing_lost(&plant, readings, press.stops)
}

/// The module waited for its disk before anything else: until it answered no machine was protected.
#[test]
fn a_start_on_a_disk_that_does_not_answer_protects_and_takes_the_worst_of_the_latches()
-> anyhow::Result<()> {
    let mut plant = Plant::new("silent-disk")?;
    let data_dir = plant.edge_settings.data_dir.clone();
    std::fs::create_dir_all(&data_dir)?;
    let disk = FaultyDisk::new(&plant.dir, &data_dir, None)?;
    plant.edge_settings.machines = MACHINES.to_owned();
    plant.edge_settings.environment.extend_from_slice(disk.environment());
    let mut press = Press::start(plant.mosquitto.port())?;
    disk.set(Word::Stall, 1)?;
    let mut edge = EdgeModule::start(&plant.dir.join("edge-module"), &plant.edge_settings)?;
    press.machine.wait_for_interlock("stopped", DEADLINE)?;
    let states = press.machine.interlock_states();
    let cause = states.last().map(|state| state["trip"]["cause"]["kind"].clone());
    assert_eq!(cause, Some("unknown-latch".into()), "nobody knows what was before");
    let (status, page) = edge.get("/readyz")?;
    assert!(status == 503 && page.contains("disk of device.data-dir does not answer"), "{page}");
    press.machine.ask_for_reset("Kim")?;
    press.machine.wait_for_interlock("armed", DEADLINE)?;
    press.machine.switch_on()?;
    press.stop_once()?;
    assert!(disk.get(Word::StalledCalls)? > 0, "the disk has not answered until here");
    disk.set(Word::Stall, 0)?;
    edge.wait_ready()?;
    eventually("both trips are on Kafka", DEADLINE, || {
        let events = kafka()?.read_json(&plant.topic("machine-events"))?;
        let trips = events.iter().filter(|event| event["event_type"] == "trip").count();
        ensure!(trips == 2, "{trips}");
        Ok(())
    })
}
