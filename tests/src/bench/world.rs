//! Servers, folders and the module under measurement.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use shared_proto::model::EventTime;
use tempfile::TempDir;

use crate::edge_module::{EdgeModule, EdgeModuleSettings};
use crate::eventually::eventually;
use crate::http::metric;
use crate::kafka::Kafka;
use crate::mosquitto::{Mosquitto, Persistence};
use crate::proxy::TcpProxy;

/// For what may have to work off minutes of messages.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// Without messages for this long there are no more.
const QUIET_FOR: Duration = Duration::from_secs(1);
const PARTITIONS: i32 = 3;
const TOPICS: [&str; 6] =
    ["temperature", "pressure", "vibration", "machine-events", "waveforms", "dead-letters"];

/// What all measurements share.
pub struct World {
    dir: TempDir,
    kafka: Kafka,
}

impl World {
    /// Starts Kafka in a folder below `target`, on the disk that the journal will be on.
    ///
    /// # Errors
    /// Kafka does not start.
    pub fn start() -> anyhow::Result<Self> {
        let target = crate::workspace_root().join("target");
        let dir = tempfile::Builder::new().prefix("bench-edge-").tempdir_in(target)?;
        let kafka = Kafka::start(&dir.path().join("kafka"))?;
        Ok(Self { dir, kafka })
    }
}

/// One module with a broker of its own and a line to Kafka that can be cut.
pub struct Gateway<'a> {
    world: &'a World,
    name: String,
    dir: PathBuf,
    edge: EdgeModule,
    pid: u32,
    /// The line to Kafka.
    pub link: TcpProxy,
    mosquitto: Mosquitto,
}

impl<'a> Gateway<'a> {
    /// Starts a module on `data_dir` (or a folder of its own) that protects `machines` (TOML).
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(
        world: &'a World,
        name: &str,
        machines: String,
        data_dir: Option<&Path>,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let dir = world.dir.path().join(name);
        let topics: Vec<String> = TOPICS.iter().map(|topic| format!("{name}-{topic}")).collect();
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        world.kafka.create_topics(&names, PARTITIONS)?;
        let link = world.kafka.take_link()?;
        let mosquitto = Mosquitto::start(&dir.join("mosquitto"), Persistence::Off)?;
        let settings = EdgeModuleSettings {
            device_id: format!("gw-{name}"),
            data_dir: data_dir.map_or_else(|| dir.join("journal"), Path::to_owned),
            mqtt_port: mosquitto.port(),
            kafka_bootstrap: format!("127.0.0.1:{}", link.port()),
            topic_prefix: format!("{name}-"),
            bundle_dir: None,
            machines,
            environment: environment
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let mut edge = EdgeModule::start(&dir, &settings)?;
        edge.wait_ready()?;
        let pid = edge.process().id();
        Ok(Self { world, name: name.to_owned(), dir, edge, pid, link, mosquitto })
    }

    /// A folder for a data folder that is mounted by the caller.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn folder(world: &World, name: &str) -> anyhow::Result<PathBuf> {
        let folder = world.dir.path().join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Ends the module in an orderly way and starts it again; gives the time from the start until it is ready.
    ///
    /// # Errors
    /// It does not end or does not become ready.
    pub fn restart(&mut self) -> anyhow::Result<Duration> {
        self.edge.process().terminate()?;
        self.edge.process().wait(PATIENCE)?;
        let began = Instant::now();
        self.edge.restart()?;
        self.edge.wait_ready()?;
        self.pid = self.edge.process().id();
        Ok(began.elapsed())
    }

    /// The module's process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// The local broker.
    #[must_use]
    pub fn mqtt_port(&self) -> u16 {
        self.mosquitto.port()
    }

    /// Where the journal is, if it is in a folder of its own.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Some of the module's counters and gauges, each summed over its labels.
    ///
    /// # Errors
    /// The module does not answer.
    pub fn counters(&self) -> anyhow::Result<Counters> {
        let text = self.edge.metrics()?;
        let of = |name: &str, label: &str| metric(&text, name, label).unwrap_or_default();
        Ok(Counters {
            protection_messages: of("mqtt_messages_total", "protection"),
            recording_messages: of("mqtt_messages_total", "recording"),
            readings: of("readings_total", ""),
            windows: of("protection_windows_total", ""),
            journalled: of("journal_records_total", ""),
            journal_bytes: of("journal_disk_bytes", ""),
            append_failures: of("journal_append_failures_total", ""),
            delivered: of("kafka_delivered_records_total", ""),
            owed_readings: of("outbox_records", "readings"),
            owed: of("outbox_records", ""),
            events_dropped: of("machine_events_dropped_total", ""),
            disconnects: of("mqtt_disconnects_total", ""),
            redelivered: of("input_redelivered_total", ""),
        })
    }

    /// Waits until the module has taken all messages: until no more have come for a second.
    ///
    /// # Errors
    /// They do not end within ten minutes.
    pub fn wait_quiet(&self) -> anyhow::Result<Counters> {
        let mut last: Option<(Counters, Instant)> = None;
        eventually("the module has taken all messages", PATIENCE, || {
            let now = self.counters()?;
            match last {
                Some((before, since)) if before.messages() == now.messages() => {
                    ensure!(since.elapsed() >= QUIET_FOR, "quiet for {:?}", since.elapsed());
                }
                _ => {
                    last = Some((now, Instant::now()));
                    bail!("messages are coming in");
                }
            }
            Ok(now)
        })
    }

    /// Waits until the module has taken all messages and owes Kafka nothing.
    ///
    /// # Errors
    /// It does so not within ten minutes.
    pub fn wait_drained(&self) -> anyhow::Result<Counters> {
        self.wait_quiet()?;
        eventually("everything is on Kafka", PATIENCE, || {
            let counters = self.counters()?;
            ensure!(counters.owed == 0.0, "{} records are owed", counters.owed);
            Ok(counters)
        })
    }

    /// The module's own measure of each trip by its name; nothing where the trip's event has none.
    ///
    /// # Errors
    /// Kafka cannot be read.
    pub fn trip_latencies(&self) -> anyhow::Result<BTreeMap<String, Option<Duration>>> {
        let topic = format!("{}-machine-events", self.name);
        let events = self.world.kafka.read_json(&topic)?;
        let trips = events.iter().filter(|event| event["event_type"] == "trip");
        trips
            .map(|event| {
                let trip_id = event["trip_id"].as_str().context("a trip without a name")?;
                let micros = event["command_latency_micros"].as_u64();
                Ok((trip_id.to_owned(), micros.map(Duration::from_micros)))
            })
            .collect()
    }
}

/// What `/metrics` says.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    /// Messages that the stop path has taken.
    pub protection_messages: f64,
    /// Messages that the way to the journal has taken.
    pub recording_messages: f64,
    /// Readings and windows taken in by the way to the journal.
    pub readings: f64,
    /// Windows judged by the stop path.
    pub windows: f64,
    /// Records durable.
    pub journalled: f64,
    /// The journal's size, as the module sees it.
    pub journal_bytes: f64,
    /// Groups that the disk refused.
    pub append_failures: f64,
    /// Records that Kafka has acknowledged.
    pub delivered: f64,
    /// Readings that wait for Kafka.
    pub owed_readings: f64,
    /// Records of all lanes that wait for Kafka; sequences are shared, so this is an upper bound.
    pub owed: f64,
    /// Machine events that were dropped.
    pub events_dropped: f64,
    /// Sessions lost to the local broker.
    pub disconnects: f64,
    /// Readings that came again and were recognised.
    pub redelivered: f64,
}

impl Counters {
    fn zip(&self, other: &Self, with: fn(f64, f64) -> f64) -> Self {
        Self {
            protection_messages: with(self.protection_messages, other.protection_messages),
            recording_messages: with(self.recording_messages, other.recording_messages),
            readings: with(self.readings, other.readings),
            windows: with(self.windows, other.windows),
            journalled: with(self.journalled, other.journalled),
            journal_bytes: with(self.journal_bytes, other.journal_bytes),
            append_failures: with(self.append_failures, other.append_failures),
            delivered: with(self.delivered, other.delivered),
            owed_readings: with(self.owed_readings, other.owed_readings),
            owed: with(self.owed, other.owed),
            events_dropped: with(self.events_dropped, other.events_dropped),
            disconnects: with(self.disconnects, other.disconnects),
            redelivered: with(self.redelivered, other.redelivered),
        }
    }

    /// The sum of each.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, |left, right| left + right)
    }

    /// The difference of each.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.zip(other, |left, right| left - right)
    }

    /// Messages that either session has taken, as whole numbers.
    const fn messages(&self) -> (u64, u64) {
        (self.protection_messages as u64, self.recording_messages as u64)
    }

    /// What was lost or doubled on the way from the broker, if anything, after so many readings were published.
    #[must_use]
    pub fn delivery(&self, published: u64) -> String {
        format!(
            "{published} readings published, {:.0} journalled; {:.0} broker connections lost, {:.0} repeats recognised",
            self.readings, self.disconnects, self.redelivered
        )
    }
}

/// A file system in memory; only root may mount one.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts it; none if that is not allowed.
    ///
    /// # Errors
    /// `mount` is missing.
    pub fn mount(folder: &Path, megabytes: u32) -> anyhow::Result<Option<Self>> {
        let is_mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(folder)
            .status()?
            .success();
        Ok(is_mounted.then(|| Self { folder: folder.to_owned() }))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the module may still hold it. What stays is gone with the machine's next start.
        Command::new("umount").arg("-l").arg(&self.folder).status().ok();
    }
}

/// Now, as sensors stamp it.
#[must_use]
pub fn now() -> EventTime {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
}
