//! How long a stop takes while the module is busy: calm, offline, draining, disk full.
//!
//! Two figures for each stop. Ours: from handing the reading to our MQTT client to our client's having read the command;
//! that is three times through the broker's one thread (the reading in and out, the command), and through our clients.
//! The module's own: from having read the message to having written the command, as it says in the trip's event, which is
//! read from Kafka after everything has drained and assigned by the trip's name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Options;
use super::figures::{Quantiles, say, verdict};
use super::load::{Background, Kind, publish_backlog};
use super::park::{Park, Stop, settings};
use super::usage::{Stretch, load_average};
use super::world::{Counters, Gateway, PATIENCE, SmallDisk, World};
use crate::eventually::eventually;

/// Time for caches, topics and connections before anything is measured.
const WARM_UP_STOPS: usize = 40;
const SMALL_DISK_MEGABYTES: u32 = 64;
/// With fewer records than this left to drain no stop begins in the state draining.
const DRAINING_MIN: f64 = 50_000.0;
/// How often the module is asked whether it still drains.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How often freed room on the full disk is taken again.
const FILL_INTERVAL: Duration = Duration::from_millis(50);
const GOAL_P99: Duration = Duration::from_millis(1);
const GOAL_P999: Duration = Duration::from_millis(5);
/// Machine events that may wait while the disk is full: those of all trips of a state.
const EVENT_QUEUE: (&str, &str) = ("EDGE__PROTECTION__EVENT_QUEUE_LENGTH", "100000");

struct Phase {
    name: &'static str,
    stops: Vec<Stop>,
    /// Wall and CPU time of the module, in seconds.
    seconds: f64,
    cpu_seconds: f64,
    threads: String,
    published: f64,
    before: Counters,
    after: Counters,
    load_average: String,
}

struct Series<'a> {
    gateway: &'a Gateway<'a>,
    background: &'a Background,
    park: Park,
    phases: Vec<Phase>,
    /// Readings published beside the background.
    backlog: u64,
}

impl Series<'_> {
    fn phase(
        &mut self,
        name: &'static str,
        run: impl FnOnce(&mut Park) -> anyhow::Result<Vec<Stop>>,
    ) -> anyhow::Result<()> {
        let before = self.gateway.counters()?;
        let published = self.background.published();
        let stretch = Stretch::begin(self.gateway.pid());
        let stops = run(&mut self.park)?;
        let phase = Phase {
            name,
            stops,
            seconds: stretch.seconds(),
            cpu_seconds: stretch.cpu_seconds(),
            threads: stretch.busiest(6),
            published: (self.background.published() - published) as f64,
            before,
            after: self.gateway.counters()?,
            load_average: load_average(),
        };
        self.phases.push(phase);
        Ok(())
    }
}

impl Phase {
    fn print(&self, kind: Kind, own: &BTreeMap<String, Option<Duration>>) {
        let latencies = self.stops.iter().map(|stop| stop.latency).collect();
        let found: Vec<_> = self.stops.iter().map(|stop| own.get(&stop.trip_id)).collect();
        let missing = found.iter().filter(|latency| latency.is_none()).count();
        let without = found.iter().filter(|latency| matches!(latency, Some(None))).count();
        let own = Quantiles::new(found.into_iter().flatten().flatten().copied().collect());
        let rate = |count: f64| count / self.seconds;
        let delta = |of: fn(&Counters) -> f64| rate(of(&self.after) - of(&self.before));
        say(&format!(
            "{} / {}: {:.0} s, load average {}; {:.0} {}/s published, messages/s: stop path {:.0}, journal's path {:.0}; \
             windows judged/s {:.0}; durable records/s {:.0}, delivered/s {:.0}, refused groups {:.0}",
            kind.as_str(),
            self.name,
            self.seconds,
            self.load_average,
            rate(self.published),
            kind.as_str(),
            delta(|counters| counters.protection_messages),
            delta(|counters| counters.recording_messages),
            delta(|counters| counters.windows),
            delta(|counters| counters.journalled),
            delta(|counters| counters.delivered),
            self.after.append_failures - self.before.append_failures,
        ));
        say(&format!(
            "    module's CPU {:.0} % of a core: {}",
            self.cpu_seconds / self.seconds * 100.0,
            self.threads
        ));
        say(&format!("    through broker and clients: {}", Quantiles::new(latencies).line()));
        say(&format!("    module's own:               {}", own.line()));
        let is_reached = |per_mille, goal| own.at(per_mille).is_some_and(|at| at <= goal);
        say(&format!(
            "    goal p99 <= 1 ms {}, p99.9 <= 5 ms {}; trips without a latency {without}, not on Kafka {missing}",
            verdict(is_reached(990, GOAL_P99)),
            verdict(is_reached(999, GOAL_P999)),
        ));
    }
}

/// Measures all four states.
///
/// # Errors
/// A server does not start, or a stop does not arrive.
pub fn measure(world: &World, options: &Options, kind: Kind) -> anyhow::Result<()> {
    say(&format!(
        "\nstops beside {} {}/s over 20 machines of 15 sensors each, {} stops in each state at {} stops/s{}",
        options.rate,
        kind.as_str(),
        options.trips,
        options.trips_per_second,
        match kind {
            Kind::Readings => format!("; {} readings in a message", options.message_readings),
            Kind::Blocks => format!(
                "; blocks of {} samples, windows of 2048: {:.0} windows/s",
                options.block_samples,
                options.rate * options.block_samples as f64 / 2048.0
            ),
        }
    ));
    on_a_roomy_disk(world, options, kind)?;
    on_a_full_disk(world, options, kind)
}

fn on_a_roomy_disk(world: &World, options: &Options, kind: Kind) -> anyhow::Result<()> {
    let name = format!("{}-roomy", kind.as_str());
    let gateway = Gateway::start(world, &name, settings(kind), None, &[EVENT_QUEUE])?;
    let port = gateway.mqtt_port();
    let background = Background::start(port, options, kind);
    let mut park = Park::start(port, kind, options.trips_per_second)?;
    park.run(WARM_UP_STOPS, || Ok(true))?;
    let mut series =
        Series { gateway: &gateway, background: &background, park, phases: vec![], backlog: 0 };
    series.phase("calm", |park| park.run(options.trips, || Ok(true)))?;
    gateway.link.cut();
    series.phase("offline", |park| park.run(options.trips, || Ok(true)))?;
    let mut stops = Vec::new();
    while stops.len() < options.trips {
        gateway.link.cut();
        series.backlog += make_backlog(&gateway, options.draining_records)?;
        let delivered = gateway.counters()?.delivered;
        gateway.link.mend();
        eventually("the backlog begins to drain", PATIENCE, || {
            let now = gateway.counters()?.delivered;
            ensure!(now > delivered, "nothing delivered");
            Ok(())
        })?;
        let before = stops.len();
        let wanted = options.trips - before;
        series.phase("draining", |park| park.run(wanted, while_draining(&gateway)))?;
        if let Some(phase) = series.phases.last() {
            stops.extend(phase.stops.iter().cloned());
        }
        ensure!(
            stops.len() > before,
            "the backlog drains before a stop begins: set BENCH_DRAINING_RECORDS higher"
        );
    }
    let Series { park, phases, backlog, .. } = series;
    let published = background.end()? + park.measured() + backlog;
    finish(&gateway, kind, merge(phases), published)
}

/// One backlog after the other is one state.
fn merge(phases: Vec<Phase>) -> Vec<Phase> {
    let mut merged: Vec<Phase> = Vec::new();
    for phase in phases {
        match merged.last_mut() {
            Some(last) if last.name == phase.name => {
                last.stops.extend(phase.stops);
                last.seconds += phase.seconds;
                last.cpu_seconds += phase.cpu_seconds;
                last.published += phase.published;
                last.after = last.after.plus(&phase.after.minus(&phase.before));
                last.threads = phase.threads;
                last.load_average = phase.load_average;
            }
            _ => merged.push(phase),
        }
    }
    merged
}

/// Publishes what is missing to a backlog, and waits until the journal has it and the stop path is through with it.
fn make_backlog(gateway: &Gateway<'_>, records: u64) -> anyhow::Result<u64> {
    let owed = gateway.counters()?.owed_readings as u64;
    let published = publish_backlog(gateway.mqtt_port(), records.saturating_sub(owed))?;
    let wanted = (owed + published) as f64;
    eventually("the backlog is in the journal", PATIENCE, || {
        let owed = gateway.counters()?.owed_readings;
        ensure!(owed >= wanted, "{owed} of {wanted} records");
        Ok(published)
    })
}

/// Says whether there is still a backlog; asks the module no more often than [`LOOK_INTERVAL`].
fn while_draining<'a>(gateway: &'a Gateway<'a>) -> impl FnMut() -> anyhow::Result<bool> + 'a {
    let mut looked: Option<Instant> = None;
    move || {
        if looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) {
            return Ok(true);
        }
        looked = Some(Instant::now());
        Ok(gateway.counters()?.owed_readings >= DRAINING_MIN)
    }
}

fn on_a_full_disk(world: &World, options: &Options, kind: Kind) -> anyhow::Result<()> {
    let name = format!("{}-full", kind.as_str());
    let folder = Gateway::folder(world, &format!("{name}-disk"))?;
    let Some(_disk) = SmallDisk::mount(&folder, SMALL_DISK_MEGABYTES)? else {
        say(&format!("{} / disk full: skipped, mounting a tmpfs was refused", kind.as_str()));
        return Ok(());
    };
    let environment = [EVENT_QUEUE, ("EDGE__JOURNAL__FREE_BYTES_MIN", "0")];
    let gateway = Gateway::start(world, &name, settings(kind), Some(&folder), &environment)?;
    let port = gateway.mqtt_port();
    let background = Background::start(port, options, kind);
    let mut park = Park::start(port, kind, options.trips_per_second)?;
    park.run(WARM_UP_STOPS, || Ok(true))?;
    let filler = Filler::start(&folder)?;
    eventually("the journal finds the disk full", PATIENCE, || {
        let failures = gateway.counters()?.append_failures;
        ensure!(failures > 0.0, "no group was refused");
        Ok(())
    })?;
    let mut series =
        Series { gateway: &gateway, background: &background, park, phases: vec![], backlog: 0 };
    series.phase("disk full", |park| park.run(options.trips, || Ok(true)))?;
    let Series { park, phases, .. } = series;
    filler.end()?;
    let refused = gateway.counters()?.journalled;
    eventually("the journal takes records again", PATIENCE, || {
        let journalled = gateway.counters()?.journalled;
        ensure!(journalled > refused, "{journalled} journalled");
        Ok(())
    })?;
    let published = background.end()? + park.measured();
    finish(&gateway, kind, phases, published)
}

fn finish(
    gateway: &Gateway<'_>,
    kind: Kind,
    phases: Vec<Phase>,
    published: u64,
) -> anyhow::Result<()> {
    let counters = gateway.wait_drained()?;
    let own = gateway.trip_latencies()?;
    for phase in &phases {
        phase.print(kind, &own);
    }
    if kind == Kind::Readings {
        say(&format!("    {}", counters.delivery(published)));
    }
    let dropped = counters.events_dropped;
    ensure!(dropped == 0.0, "{dropped} machine events dropped");
    Ok(())
}

/// Takes all room of a disk, also what becomes free, until it is ended.
struct Filler {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
    path: std::path::PathBuf,
}

impl Filler {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("filler");
        let mut file = File::create(&path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                // Until the disk is full: that is the purpose.
                while file.write_all(&[0; 4096]).is_ok() {}
                std::thread::sleep(FILL_INTERVAL);
            }
        });
        Ok(Self { stop, thread, path })
    }

    fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("the filling thread panicked"))?;
        Ok(std::fs::remove_file(self.path)?)
    }
}
