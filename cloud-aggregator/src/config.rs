//! Settings: `config/default.toml` compiled in, then a file, then `AGGREGATOR__…` variables; later wins.
//!
//! A key that the default file does not have, a value of another type and a value out of its range are errors that
//! name the key's full path and where it was set, all at once. Secrets come from files and print as `***`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aggregator_core::{GroupBy, OutputMode};
use config::{Case, Config, Environment, File, FileFormat};
use serde::Deserialize;

use crate::outcomes::ApiSettings;

mod addresses;
mod alerting;
mod alerts;
mod event_hubs;
mod hub;
mod keys;
pub(crate) mod lake;
mod maintenance;
mod read;
mod spread;
mod validate;

pub use alerting::Alerting;
pub use alerts::{Alerts, Audience, Rate, TARGETS_MAX, Target, TargetKeys, TargetKind};
pub use event_hubs::{Authentication, Connection, ConnectionString, EventHubs};
pub use hub::Hub;
pub use keys::Keys;
pub use maintenance::{Maintenance, Retention, table_properties, vacuum_retention};
pub use spread::SpreadRule;

const DEFAULTS: &str = include_str!("../config/default.toml");
/// Tables whose keys are free, such as librdkafka's properties.
const FREE_TABLES: [&str; 7] = [
    "kafka.properties",
    "kafka.property-files",
    "lake.storage-options",
    "lake.storage-option-files",
    "alerts.webhook-headers",
    "alerts.webhook-header-files",
    "alerting.machine-events",
];

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file that cannot be read or is no TOML.
    #[error("{0}")]
    Read(String),
    /// Each fault: the key's path, what is wrong, what would be right.
    #[error("{}", listed(.0))]
    Faults(Vec<Fault>),
}

/// One fault as it is; several in a line each, below their number.
fn listed(faults: &[Fault]) -> String {
    if let [fault] = faults {
        return fault.to_string();
    }
    let lines = faults.iter().map(|fault| format!("\n  {fault}"));
    format!("{} faults{}", faults.len(), lines.collect::<String>())
}

/// One wrong setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Full path of the key, for example `kafka.brokers`.
    pub path: String,
    /// What is wrong, and the remedy.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.text)
    }
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Longest file of a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Reads a secret; white space at the end is not part of it.
///
/// # Errors
/// The file cannot be read, is empty, has more than 64 KiB, or is a pipe or device, which might never answer.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    if let Ok(found) = std::fs::metadata(path)
        && (!found.is_file() || found.len() > SECRET_BYTES_MAX)
    {
        let limit = SECRET_BYTES_MAX;
        return Err(format!("{} is no file of at most {limit} bytes", path.display()));
    }
    match std::fs::read_to_string(path) {
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
        Ok(text) if text.trim_end().is_empty() => Err(format!("{} is empty", path.display())),
        Ok(text) => Ok(Secret(text.trim_end().to_owned())),
    }
}

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Where records come from.
    pub kafka: Kafka,
    /// Where rows go.
    pub lake: Lake,
    /// How the tables are kept small.
    pub maintenance: Maintenance,
    /// When an epoch ends.
    pub trigger: Trigger,
    /// When an epoch ends early.
    pub epoch: Epoch,
    /// What counts as an anomaly.
    pub rules: Vec<Rule>,
    /// When windows close and records are late.
    pub counting: Counting,
    /// How missing records of devices are found.
    pub gaps: Gaps,
    /// When people are told.
    pub alerting: Alerting,
    /// Where alerts go.
    pub alerts: Alerts,
    /// Where people tell what they found.
    pub api: ApiSettings,
    /// Health, metrics, status.
    pub admin: Admin,
    /// Logging.
    pub telemetry: Telemetry,
    /// How to stop.
    pub shutdown: Shutdown,
}

/// `[kafka]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kafka {
    /// librdkafka's `bootstrap.servers`.
    pub brokers: String,
    /// Consumer group.
    pub group: String,
    /// Where to begin in a partition that the lake knows nothing of.
    pub start: Start,
    /// How the group shares partitions out.
    pub assignment: Assignment,
    /// How often new topics and partitions are looked for.
    #[serde(with = "humantime_serde")]
    pub metadata_refresh: Duration,
    /// Silence after which a member loses its partitions.
    #[serde(with = "humantime_serde")]
    pub session_timeout: Duration,
    /// Wait for one answer outside of the record stream.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Bytes fetched ahead inside the client library.
    pub prefetch_bytes: u64,
    /// Most records of one batch.
    pub batch_records_max: usize,
    /// A batch ends at this many bytes.
    pub batch_bytes_max: usize,
    /// Batches that may wait.
    pub batch_queue_length: usize,
    /// Records above this become dead letters.
    pub record_bytes_max: usize,
    /// librdkafka properties.
    pub properties: BTreeMap<String, String>,
    /// librdkafka properties whose values are in files.
    pub property_files: BTreeMap<String, PathBuf>,
    /// Topic names.
    pub topics: Topics,
    /// Messages of an IoT Hub.
    pub hub: Hub,
}

/// Where to begin in a partition that the lake knows nothing of.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At the oldest record that Kafka still has.
    Earliest,
    /// After the newest record.
    Latest,
}

/// How the group shares partitions out.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Assignment {
    /// Eager: at each rebalance every member starts anew from the lake.
    Range,
    /// Only partitions that move are touched.
    CooperativeSticky,
}

impl Assignment {
    /// librdkafka's `partition.assignment.strategy`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::CooperativeSticky => "cooperative-sticky",
        }
    }
}

/// `[kafka.topics]`; an empty name switches a topic off.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Topics {
    /// Readings.
    pub temperature: String,
    /// Readings.
    pub pressure: String,
    /// Readings.
    pub vibration: String,
    /// Machine events.
    pub machine_events: String,
    /// What edge modules refused.
    pub dead_letters: String,
    /// What people found.
    pub outcomes: String,
    /// Raw samples around trips.
    pub waveforms: String,
}

/// `[lake]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lake {
    /// Folder or URL.
    pub location: String,
    /// Every reading becomes a row of `telemetry`.
    pub keeps_readings: bool,
    /// Options of the storage.
    pub storage_options: BTreeMap<String, String>,
    /// Options of the storage whose values are in files.
    pub storage_option_files: BTreeMap<String, PathBuf>,
    /// Wait for one operation.
    #[serde(with = "humantime_serde")]
    pub operation_timeout: Duration,
    /// First wait after a failure.
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// Longest wait after a failure.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// Parquet files are closed at this size.
    pub file_bytes_max: u64,
    /// Rows collected before they are encoded.
    pub row_group_rows: usize,
    /// Age at which state files without reference are deleted.
    #[serde(with = "humantime_serde")]
    pub state_grace: Duration,
    /// Set: a start writes a log checkpoint when so many commits have come since the last one, and all else about the log is left to
    /// maintenance, since it takes time that grows with the table. Not set: commits look after the log. Not in the file.
    #[serde(skip)]
    pub checkpoint_commits: Option<u64>,
}

/// `[trigger]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Trigger {
    /// Length of an epoch.
    #[serde(with = "humantime_serde")]
    pub processing_time: Duration,
    /// Alerts record by record, and the length of an epoch then; zero is off.
    #[serde(with = "humantime_serde")]
    pub continuous: Duration,
    /// Drain and exit.
    pub available_now: bool,
    /// Longest wait for something to drain.
    #[serde(with = "humantime_serde")]
    pub available_now_patience: Duration,
}

/// `[epoch]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Epoch {
    /// Most records.
    pub records_max: u64,
    /// Most bytes of records.
    pub bytes_max: u64,
    /// Most late readings and dead letters.
    pub refused_max: u64,
}

/// One of `[[rules]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// Name, unique.
    pub name: String,
    /// Which readings it looks at: see [`aggregator_core::filter`].
    pub filter: String,
    /// Length of a window.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// Between the starts of two windows; `None`: the window's length.
    #[serde(default, with = "humantime_serde")]
    pub slide: Option<Duration>,
    /// `sensor` or `machine`.
    #[serde(default = "by_sensor")]
    pub by: String,
    /// What makes a window an anomaly: see [`aggregator_core::Threshold`].
    pub threshold: String,
    /// `append`, `update` or `complete`.
    #[serde(default = "append")]
    pub output_mode: String,
    /// 0 (critical) to 4 (verbose).
    pub severity: u8,
}

fn by_sensor() -> String {
    GroupBy::Sensor.as_str().to_owned()
}

fn append() -> String {
    OutputMode::Append.as_str().to_owned()
}

impl Trigger {
    /// How long an epoch lasts.
    #[must_use]
    pub fn epoch_length(&self) -> Duration {
        if self.is_continuous() { self.continuous } else { self.processing_time }
    }

    /// Whether alerts leave before their epoch is committed.
    #[must_use]
    pub fn is_continuous(&self) -> bool {
        !self.continuous.is_zero()
    }
}

/// `[counting]`. Limits are for one Kafka partition.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Counting {
    /// Between a sensor's newest event time and its watermark.
    #[serde(with = "humantime_serde")]
    pub allowed_lateness: Duration,
    /// Silence (processing time) after which a sensor's windows close.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long closed windows can be corrected (event time).
    #[serde(with = "humantime_serde")]
    pub closed_window_retention: Duration,
    /// How far ahead of this clock a reading may be.
    #[serde(with = "humantime_serde")]
    pub future_limit: Duration,
    /// Oldest timestamp accepted, RFC 3339.
    pub oldest_event_time: String,
    /// Age of a window's end after which its alert is historical.
    #[serde(with = "humantime_serde")]
    pub historical_after: Duration,
    /// Most metric types.
    pub metric_types_max: usize,
    /// Most sensors.
    pub sensors_max: usize,
    /// Most windows of one sensor.
    pub windows_per_sensor_max: usize,
    /// Most windows altogether.
    pub windows_max: usize,
    /// Most devices remembered.
    pub devices_max: usize,
    /// Most generations of one device remembered.
    pub generations_per_device_max: usize,
}

/// `[gaps]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Gaps {
    /// How often the tables are looked at; zero is off.
    #[serde(with = "humantime_serde")]
    pub check_interval: Duration,
    /// How long a record may be missing before that is a gap.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// How long the records of a gap are waited for.
    #[serde(with = "humantime_serde")]
    pub given_up_after: Duration,
    /// Age of the oldest files that a watch reads when it begins.
    #[serde(with = "humantime_serde")]
    pub look_back: Duration,
    /// Most ranges of sequences held for one generation of a device.
    pub ranges_max: usize,
    /// Most open gaps of one generation of a device.
    pub gaps_per_device_max: usize,
}

/// `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Admin {
    /// Address of the HTTP server.
    pub listen: SocketAddr,
}

/// `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Telemetry {
    /// tracing filter.
    pub filter: String,
    /// Form of the log lines.
    pub format: LogFormat,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `[shutdown]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Shutdown {
    /// Time to finish the epoch.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Settings {
    /// Reads all layers and checks every value.
    ///
    /// # Errors
    /// All faults at once, each with the path of its key and where it was set.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        Self::load_with_keys(file).map(|(settings, _)| settings)
    }

    /// As [`Self::load`], with every key and value to compare them with another version.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_keys(file: Option<&Path>) -> Result<(Self, Keys), SettingsError> {
        Self::from_layers(file, None)
    }

    fn from_layers(
        file: Option<&Path>,
        variables: Option<config::Map<String, String>>,
    ) -> Result<(Self, Keys), SettingsError> {
        let mut builder = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(path) = file {
            builder = builder.add_source(File::from(path).format(FileFormat::Toml).required(true));
        }
        let environment = Environment::with_prefix("AGGREGATOR")
            .prefix_separator("__")
            .separator("__")
            .convert_case(Case::Kebab)
            .source(variables);
        let config = builder.add_source(environment).build();
        let config = config.map_err(|error| SettingsError::Read(error.to_string()))?;
        let (settings, mut faults) = read::read(&config.cache)?;
        let unread: BTreeSet<String> = faults.iter().map(|fault| fault.path.clone()).collect();
        // What gave way to a default was told before.
        let is_new = |fault: &Fault| !unread.contains(&fault.path);
        faults.extend(settings.faults().into_iter().filter(is_new));
        if faults.is_empty() {
            Ok((settings, Keys::new(&config.cache)))
        } else {
            Err(SettingsError::Faults(faults))
        }
    }
}

#[cfg(test)]
mod tests;
