//! A plant of one gateway for one scenario.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use e2e_tests::cloud_aggregator::{CloudAggregator, CloudAggregatorSettings};
use e2e_tests::edge_module::{EdgeModule, EdgeModuleSettings};
use e2e_tests::eventually::eventually;
use e2e_tests::http::Webhook;
use e2e_tests::kafka::{Kafka, TOPICS};
use e2e_tests::lake::{LakeReader, WindowCount};
use e2e_tests::mosquitto::{Mosquitto, Persistence};
use shared_proto::model::EventTime;

/// For what takes a few seconds on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

const PARTITIONS: i32 = 3;

/// Folder of this run; those of earlier runs that have ended are deleted.
pub(crate) fn run_dir() -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let parent = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix("scenarios-") else { continue };
            if !PathBuf::from(format!("/proc/{pid}")).exists() {
                // A folder that stays costs space, nothing else.
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
        parent.join(format!("scenarios-{}", std::process::id()))
    })
    .clone()
}

/// The broker that all scenarios of this run share.
pub(crate) fn kafka() -> anyhow::Result<&'static Kafka> {
    static KAFKA: OnceLock<Result<Kafka, String>> = OnceLock::new();
    KAFKA
        .get_or_init(|| {
            Kafka::start(&run_dir().join("kafka")).map_err(|error| format!("{error:#}"))
        })
        .as_ref()
        .map_err(|reason| anyhow::anyhow!("Apache Kafka: {reason}"))
}

/// Now, as sensors stamp it.
pub(crate) fn now() -> EventTime {
    let elapsed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    EventTime::from_micros(i64::try_from(elapsed.as_micros()).expect("before the year 294247"))
}

/// The bundle that comes with the edge module.
pub(crate) fn motor_bundle() -> PathBuf {
    e2e_tests::workspace_root().join("edge-module/model/bundles/motor-v1")
}

/// Broker, topics, folders and settings of one scenario; the programs are started by the scenario.
pub(crate) struct Plant {
    pub(crate) dir: PathBuf,
    pub(crate) mosquitto: Mosquitto,
    pub(crate) webhook: Webhook,
    pub(crate) edge_settings: EdgeModuleSettings,
    pub(crate) aggregator_settings: CloudAggregatorSettings,
    /// Where the reader finds the lake, if that is no folder.
    pub(crate) lake_url: Option<String>,
    prefix: String,
}

impl Plant {
    /// Starts the broker and creates the topics `<name>-temperature` and so on.
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let dir = run_dir().join(name);
        let kafka = kafka()?;
        let prefix = format!("{name}-");
        let topics: Vec<String> = TOPICS.iter().map(|topic| format!("{prefix}{topic}")).collect();
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        kafka.create_topics(&names, PARTITIONS)?;
        let mosquitto = Mosquitto::start(&dir.join("mosquitto"), Persistence::On)?;
        let webhook = Webhook::start()?;
        let edge_settings = EdgeModuleSettings {
            device_id: format!("gw-{name}"),
            data_dir: dir.join("journal"),
            mqtt_port: mosquitto.port(),
            kafka_bootstrap: kafka.bootstrap(),
            topic_prefix: prefix.clone(),
            bundle_dir: None,
            machines: String::new(),
            environment: Vec::new(),
        };
        let aggregator_settings = CloudAggregatorSettings {
            kafka_bootstrap: kafka.bootstrap(),
            group: format!("group-{name}"),
            topic_prefix: prefix.clone(),
            lake: dir.join("lake"),
            webhook_url: webhook.url(),
            group_by: "window",
            environment: Vec::new(),
            more: String::new(),
        };
        Ok(Self {
            dir,
            mosquitto,
            webhook,
            edge_settings,
            aggregator_settings,
            lake_url: None,
            prefix,
        })
    }

    pub(crate) fn start_edge_module(&self) -> anyhow::Result<EdgeModule> {
        let mut edge = EdgeModule::start(&self.dir.join("edge-module"), &self.edge_settings)?;
        edge.wait_ready()?;
        Ok(edge)
    }

    pub(crate) fn start_aggregator(&self) -> anyhow::Result<CloudAggregator> {
        let dir = self.dir.join("cloud-aggregator");
        let mut aggregator = CloudAggregator::start(&dir, &self.aggregator_settings)?;
        aggregator.wait_ready()?;
        Ok(aggregator)
    }

    /// This scenario's name of a topic.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn lake(&self) -> LakeReader {
        match &self.lake_url {
            Some(url) => LakeReader::new(url.as_ref()),
            None => LakeReader::new(&self.aggregator_settings.lake),
        }
    }

    /// Waits until a query that counts answers at least `expected`, and says what it answered.
    pub(crate) fn wait_for_count(&self, sql: &str, expected: u64) -> anyhow::Result<u64> {
        let lake = self.lake();
        eventually(&format!("{sql} gives {expected}"), DEADLINE, || {
            let count = lake.count(sql)?;
            anyhow::ensure!(count >= expected, "it gives {count}");
            Ok::<u64, anyhow::Error>(count)
        })
    }

    /// Waits until `telemetry` holds `expected` rows and checks that each of `sequences` is there once: no row lost, none
    /// twice, no sequence of the device missing between its first and last over all tables that keep its records.
    pub(crate) fn check_each_reading_once(
        &self,
        sensors: &str,
        expected: u64,
    ) -> anyhow::Result<()> {
        let rows = format!("SELECT count(*) FROM telemetry WHERE sensor_id LIKE '{sensors}'");
        let count = self.wait_for_count(&rows, expected)?;
        anyhow::ensure!(count == expected, "{count} rows for {expected} readings");
        let distinct = self.lake().count(&format!(
            "SELECT count(*) FROM (SELECT DISTINCT sensor_id, timestamp, metric_type, value FROM telemetry \
             WHERE sensor_id LIKE '{sensors}')"
        ))?;
        anyhow::ensure!(distinct == expected, "{distinct} different readings of {expected}");
        Ok(())
    }

    /// Machine events of a kind that have reached the lake.
    pub(crate) fn machine_events(
        &self,
        event_type: &str,
    ) -> anyhow::Result<Vec<serde_json::Value>> {
        self.lake()
            .query(&format!(
                "SELECT * FROM machine_events WHERE event_type = '{event_type}' ORDER BY timestamp"
            ))
            .context("reading machine_events")
    }

    /// The newest revision of each window with more than 5 matches, ordered.
    pub(crate) fn streamed_windows(&self) -> anyhow::Result<Vec<WindowCount>> {
        self.lake().windows(
            "SELECT sensor_id, epoch_us(window_start) AS window_start, count AS matches FROM anomalies \
             QUALIFY row_number() OVER (PARTITION BY rule, sensor_id, window_start ORDER BY revision DESC) = 1 \
             AND count > 5 ORDER BY ALL",
        )
    }

    /// No sequence of the device occurs twice in the lake, and none is missing up to the highest: readings, machine
    /// events and dead letters share one count.
    pub(crate) fn check_sequences(&self) -> anyhow::Result<()> {
        let all = "SELECT device_id, generation, sequence FROM telemetry UNION ALL BY NAME \
                   SELECT device_id, generation, sequence FROM machine_events UNION ALL BY NAME \
                   SELECT device_id, generation, sequence FROM dead_letters";
        let sql = format!(
            "SELECT count(*) AS total, count(DISTINCT (generation, sequence)) AS different, \
             max(sequence) AS highest FROM ({all}) WHERE device_id = '{}'",
            self.edge_settings.device_id
        );
        let lake = self.lake();
        eventually("all sequences are in the lake, each once", DEADLINE, || {
            let rows = lake.query(&sql)?;
            let row = rows.first().context("no row")?;
            let number =
                |name: &str| row[name].as_u64().with_context(|| format!("no {name}: {row}"));
            let total = number("total")?;
            anyhow::ensure!(total == number("different")? && total == number("highest")?, "{row}");
            Ok(())
        })
    }
}
