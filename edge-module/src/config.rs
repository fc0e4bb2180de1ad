//! Settings: `config/default.toml` compiled in, then a file, then `EDGE__…` variables, then what the hub desires; later wins.
//!
//! A key that nobody knows, a value of another type and a value out of its range are errors that name the key's
//! full path and where it was set. Secrets come from files and print as `***`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Case, Config, ConfigError, Environment, File, FileFormat, Value, ValueKind};
use edge_core::interlock::{DuringStartup, RuleAction};
use serde::Deserialize;
use shared_proto::Encoding;
use shared_proto::model::{DeviceId, MetricType, SensorId};

mod actuator;
mod bearing;
mod desired;
mod filters;
mod inputs;
mod iot_hub;
mod keys;
mod learning;
mod machine;
mod model;
mod plausible;
mod types;
mod upstream;
mod validate;

pub use actuator::{Actuator, ModbusTcp};
pub use bearing::Bearing;
pub use desired::{Desired, DesiredFile};
pub use inputs::{OpcNode, OpcPublisher};
use iot_hub::device_of_runtime;
pub use iot_hub::{HubMode, IotHub};
pub use keys::Keys;
use keys::MACHINE_KEYS;
pub use learning::{Condition, ConditionRange, Learning};
pub use machine::{Machine, Sensor};
pub use model::{DEFAULT_MODEL, Model, ScoredBy, ScoredSensor};
pub use upstream::{MESSAGE_BYTES_MAX, UpstreamName, Upstreams};

const DEFAULTS: &str = include_str!("../config/default.toml");
/// Tables whose keys are free, such as librdkafka's properties.
const FREE_TABLES: [&str; 4] =
    ["kafka.properties", "kafka.property-files", "deadband.always-above", "model.bundles"];

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file that cannot be read or is no TOML, or a value of another type.
    #[error("{0}")]
    Read(String),
    /// One line for each fault: the key's path, what is wrong, what would be right.
    #[error("{}", .0.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
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
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
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

/// Reads a secret; white space at the end is not part of it.
///
/// # Errors
/// The file cannot be read or is empty.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    match std::fs::read_to_string(path) {
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
        Ok(text) if text.trim_end().is_empty() => Err(format!("{} is empty", path.display())),
        Ok(text) => Ok(Secret(text.trim_end().to_owned())),
    }
}

/// Everything that can be set. Meanings, units and limits: `config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// `[device]`.
    pub device: Device,
    /// `[mqtt]`.
    pub mqtt: Mqtt,
    /// `[protection]`.
    pub protection: Protection,
    /// `[vibration]`.
    pub vibration: Vibration,
    /// `[model]`.
    pub model: Model,
    /// `[learning]`.
    pub learning: Learning,
    /// `[[machines]]`.
    pub machines: Vec<Machine>,
    /// `[deadband]`.
    pub deadband: Deadband,
    /// `[[aggregation]]`.
    pub aggregation: Vec<Aggregation>,
    /// `[waveforms]`.
    pub waveforms: Waveforms,
    /// `[journal]`.
    pub journal: Journal,
    /// `[kafka]`.
    pub kafka: Kafka,
    /// `[upstream]`.
    pub upstream: Upstreams,
    /// `[iot-hub]`.
    pub iot_hub: IotHub,
    /// `[opc-publisher]`.
    pub opc_publisher: OpcPublisher,
    /// `[admin]`.
    pub admin: Admin,
    /// `[telemetry]`.
    pub telemetry: Telemetry,
    /// `[shutdown]`.
    pub shutdown: Shutdown,
}

/// `[device]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Device {
    /// Name of this gateway.
    pub id: DeviceId,
    /// Journal and latches.
    pub data_dir: PathBuf,
}

/// `[mqtt]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mqtt {
    /// Broker's host.
    pub host: String,
    /// Broker's port.
    pub port: u16,
    /// Beginning of the sessions' client ids; empty: the device's id.
    pub client_id: String,
    /// Empty: no user.
    pub username: String,
    /// File with the password; empty: none.
    pub password_file: PathBuf,
    /// Longest silence of ours.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// First wait before connecting again.
    #[serde(with = "humantime_serde")]
    pub reconnect_min: Duration,
    /// Longest wait before connecting again.
    #[serde(with = "humantime_serde")]
    pub reconnect_max: Duration,
    /// Payloads above this are refused.
    pub payload_bytes_max: usize,
    /// Packets above this end the connection.
    pub packet_bytes_max: usize,
    /// Topic filters of readings.
    pub reading_topics: Vec<String>,
    /// Topic filters of waveform blocks.
    pub waveform_topics: Vec<String>,
}

/// `[protection]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Protection {
    /// Stop out.
    pub command_topic: String,
    /// Read-back.
    pub state_topic: String,
    /// A person's reset.
    pub reset_topic: String,
    /// A person's shelving.
    pub shelve_topic: String,
    /// Where a person lets a machine be learnt.
    pub learn_topic: String,
    /// Longest shelving; 0: none.
    #[serde(with = "humantime_serde")]
    pub shelving_max: Duration,
    /// The interlock's own state, retained.
    pub interlock_topic: String,
    /// Sign of life.
    pub heartbeat_topic: String,
    /// Distance of signs of life.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// Time to standstill.
    #[serde(with = "humantime_serde")]
    pub confirmation_deadline: Duration,
    /// Orders before it only reports.
    pub stop_attempts_max: u32,
    /// After a latch file that cannot be read.
    pub unknown_latch: UnknownLatch,
    /// After each start.
    pub after_restart: AfterRestart,
    /// MQTT sessions that bring sensors to the stop path.
    pub sessions_max: usize,
    /// Nice value of the stop path's thread.
    pub nice: i8,
    /// How much the other threads yield to the stop path.
    pub background_nice: u8,
    /// Machine events that may wait for the journal.
    pub event_queue_length: usize,
    /// Orders and reports that may wait on one path to the machine side.
    pub path_queue_length: usize,
    /// Blocks of one sensor that may wait to be judged.
    pub sensor_queue_length: usize,
    /// Their bytes.
    pub sensor_queue_bytes: usize,
    /// Bytes of JSON readings that are judged in one go.
    pub slice_bytes: usize,
}

/// What to do when the latch of the previous run is not known.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownLatch {
    /// Stop the machine and wait for a person.
    Tripped,
    /// Watch as if nothing had been.
    Armed,
}

/// In which state a machine's interlock starts.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum AfterRestart {
    /// As it was left: tripped if a trip was latched, armed otherwise.
    Latched,
    /// Tripped, until a person resets it.
    Tripped,
}

/// `[vibration]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vibration {
    /// Samples of a window.
    pub window_samples: usize,
    /// Samples between the starts of two windows.
    pub hop_samples: usize,
    /// Sample periods that a block may be off.
    pub gap_tolerance_samples: f64,
    /// Highest rate, in Hz.
    pub sample_rate_max: f64,
    /// Sensors windowed at the same time.
    pub sensors_max: usize,
}

/// One entry of `[[machines.limits]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limit {
    /// Its name.
    pub name: String,
    /// The sensor it watches.
    pub sensor: SensorId,
    /// `value` or a feature.
    pub quantity: String,
    /// Violated above.
    #[serde(default)]
    pub above: Option<f64>,
    /// Violated below.
    #[serde(default)]
    pub below: Option<f64>,
    /// How far the value must come back.
    #[serde(default)]
    pub hysteresis: f64,
    /// How long it must be past the limit.
    #[serde(default, with = "humantime_serde")]
    pub on_delay: Duration,
    /// How long it must be back.
    #[serde(default, with = "humantime_serde")]
    pub off_delay: Duration,
    /// What a violation does.
    #[serde(default)]
    pub action: RuleAction,
    /// Whether it acts while the machine starts.
    #[serde(default)]
    pub during_startup: DuringStartup,
}

/// `[deadband]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Deadband {
    /// In the reading's unit.
    pub absolute: f64,
    /// Of the last value sent.
    pub percent: f64,
    /// Of the model's answer, 0 to 1.
    pub score: f64,
    /// Send at least this often.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Always sent above, by metric type.
    pub always_above: BTreeMap<MetricType, f64>,
    /// Sensors remembered.
    pub sensors_max: usize,
    /// Other widths for some sensors or metrics.
    pub rules: Vec<DeadbandRule>,
}

/// One entry of `[[deadband.rules]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeadbandRule {
    /// Beginning of the sensor's name; empty: every sensor.
    #[serde(default)]
    pub sensor_prefix: String,
    /// Absent: every metric.
    #[serde(default)]
    pub metric_type: Option<MetricType>,
    /// In the reading's unit.
    #[serde(default)]
    pub absolute: f64,
    /// Of the last value sent.
    #[serde(default)]
    pub percent: f64,
    /// Of the model's answer, 0 to 1. Absent: as in `[deadband]`.
    #[serde(default)]
    pub score: Option<f64>,
    /// Absent: as in `[deadband]`.
    #[serde(default, with = "humantime_serde")]
    pub heartbeat: Option<Duration>,
}

/// One entry of `[[aggregation]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Aggregation {
    /// Beginning of the sensor's name; empty: every sensor.
    #[serde(default)]
    pub sensor_prefix: String,
    /// Absent: every metric.
    #[serde(default)]
    pub metric_type: Option<MetricType>,
    /// Event time that becomes one reading.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// What becomes the value.
    pub value: Statistic,
    /// What becomes features.
    #[serde(default)]
    pub statistics: Vec<Statistic>,
}

/// A number that stands for many.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Statistic {
    /// The lowest.
    Min,
    /// The highest.
    Max,
    /// The arithmetic mean.
    Mean,
    /// The root mean square.
    Rms,
}

/// `[waveforms]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Waveforms {
    /// Whether trips have snapshots.
    pub enabled: bool,
    /// Whether alarms have them, too.
    pub on_alarm: bool,
    /// Event time before a trip.
    #[serde(with = "humantime_serde")]
    pub before: Duration,
    /// Event time after a trip.
    #[serde(with = "humantime_serde")]
    pub after: Duration,
    /// Longest time after the first trip.
    #[serde(with = "humantime_serde")]
    pub length_max: Duration,
    /// Memory of one sensor.
    pub sensor_bytes_max: usize,
    /// Memory of all sensors.
    pub bytes_max: usize,
    /// Samples of one snapshot.
    pub snapshot_bytes_max: usize,
    /// Trips that may wait.
    pub queue_length: usize,
}

/// `[journal]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Journal {
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Hard cap.
    pub bytes_max: u64,
    /// Bytes of the disk that are left to others.
    pub free_bytes_min: u64,
    /// Inputs that may wait.
    pub queue_length: usize,
    /// Payload bytes that may wait.
    pub queue_bytes: usize,
    /// Records of one fsync.
    pub group_records_max: usize,
    /// sled's cache.
    pub cache_bytes: u64,
    /// How often a ledger tells what was journalled and delivered.
    #[serde(with = "humantime_serde")]
    pub ledger_interval: Duration,
}

/// `[kafka]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kafka {
    /// librdkafka's `bootstrap.servers`.
    pub brokers: String,
    /// Form of the records.
    pub encoding: Encoding,
    /// Compression of the batches.
    pub compression: Compression,
    /// Wait for a fuller batch.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// Records handed over and not yet reported.
    pub in_flight_max: usize,
    /// Age from which a record is historical.
    #[serde(with = "humantime_serde")]
    pub historical_after: Duration,
    /// librdkafka properties.
    pub properties: BTreeMap<String, String>,
    /// librdkafka properties whose values are in files.
    pub property_files: BTreeMap<String, PathBuf>,
    /// Topic names.
    pub topics: Topics,
}

/// Compression of Kafka batches.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As it is.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// librdkafka's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// `[kafka.topics]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Topics {
    /// Readings of metric type temperature.
    pub temperature: String,
    /// Readings of metric type pressure.
    pub pressure: String,
    /// Readings of metric type vibration.
    pub vibration: String,
    /// Readings of any other metric type.
    pub other: String,
    /// Machine events.
    pub machine_events: String,
    /// Refused input.
    pub dead_letters: String,
    /// Raw samples around trips.
    pub waveforms: String,
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
    /// Time to write the journal and to send what is in flight.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Settings {
    /// Reads all layers and checks every value.
    ///
    /// # Errors
    /// All faults at once, each with the path of its key and where it was set.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        Ok(Self::load_with_keys(file)?.0)
    }

    /// As [`Settings::load`], with every key that is set, in one list.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_with_keys(file: Option<&Path>) -> Result<(Self, Keys), SettingsError> {
        Self::load_desired(file, None)
    }

    /// As [`Settings::load_with_keys`], with what the hub desires above all.
    ///
    /// # Errors
    /// As [`Settings::load`], and desired properties that may not be set.
    pub fn load_desired(
        file: Option<&Path>,
        desired: Option<&Desired>,
    ) -> Result<(Self, Keys), SettingsError> {
        Self::layers_with_keys(file, None, desired)
    }

    #[cfg(test)]
    fn from_layers(
        file: Option<&Path>,
        variables: Option<config::Map<String, String>>,
    ) -> Result<Self, SettingsError> {
        Ok(Self::layers_with_keys(file, variables, None)?.0)
    }

    fn layers_with_keys(
        file: Option<&Path>,
        variables: Option<config::Map<String, String>>,
        desired: Option<&Desired>,
    ) -> Result<(Self, Keys), SettingsError> {
        let mut builder = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(name) = device_of_runtime(variables.as_ref()) {
            builder = builder.add_source(File::from_str(&name, FileFormat::Toml));
        }
        if let Some(path) = file {
            builder = builder.add_source(File::from(path).format(FileFormat::Toml).required(true));
        }
        let environment = Environment::with_prefix("EDGE")
            .prefix_separator("__")
            .separator("__")
            .convert_case(Case::Kebab)
            .source(variables);
        builder = builder.add_source(environment);
        if let Some(desired) = desired {
            builder = builder.add_source(desired.source()?);
        }
        let config = builder.build().map_err(|error| read_error(&error))?;
        let KeyFaults { unknown, taken } = key_faults(&config.cache)?;
        if !unknown.is_empty() {
            return Err(SettingsError::Faults(unknown));
        }
        let keys = Keys::new(&config.cache);
        let found = config.cache.clone();
        let settings: Self =
            config.try_deserialize().map_err(|error| types::type_faults(&found, &error))?;
        let mut faults = settings.faults();
        // What the reader has refused it has told.
        faults.extend(taken);
        if let Some(desired) = desired {
            faults.extend(desired.faults(&settings.iot_hub));
        }
        if faults.is_empty() { Ok((settings, keys)) } else { Err(SettingsError::Faults(faults)) }
    }

    /// Client id of one of the MQTT sessions.
    #[must_use]
    pub fn client_id(&self, session: &str) -> String {
        let stem = match self.mqtt.client_id.as_str() {
            "" => self.device.id.as_str(),
            stem => stem,
        };
        format!("{stem}-{session}")
    }
}

fn read_error(error: &ConfigError) -> SettingsError {
    let text = error.to_string();
    // The parser shows the line, in which a token may stand.
    let is_of_file = |line: &&str| {
        let line = line.trim_start_matches(|first: char| first.is_ascii_digit() || first == ' ');
        line.starts_with('|')
    };
    let said = text.lines().filter(|line| !is_of_file(line)).collect::<Vec<_>>();
    SettingsError::Read(said.join("; "))
}

/// What is wrong with keys of the merged layers.
#[derive(Default)]
struct KeyFaults {
    /// They are in no default.
    unknown: Vec<Fault>,
    /// Their values are of another type, which the reader may take all the same.
    taken: Vec<Fault>,
}

fn key_faults(found: &Value) -> Result<KeyFaults, SettingsError> {
    let known = Config::builder()
        .add_source(File::from_str(DEFAULTS, FileFormat::Toml))
        .add_source(File::from_str(MACHINE_KEYS, FileFormat::Toml))
        .build()
        .map_err(|error| read_error(&error))?;
    let mut faults = KeyFaults::default();
    compare_keys("", found, &known.cache, &mut faults);
    faults.unknown.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(faults)
}

fn compare_keys(path: &str, found: &Value, known: &Value, faults: &mut KeyFaults) {
    if FREE_TABLES.contains(&path) {
        return;
    }
    match (&found.kind, &known.kind) {
        (ValueKind::Table(found), ValueKind::Table(known)) => {
            for (key, value) in found {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(known) => compare_keys(&path, value, known, faults),
                    None => faults.unknown.push(unknown_key(path, value, known)),
                }
            }
        }
        (ValueKind::Array(found), ValueKind::Array(known)) => {
            for (index, value) in found.iter().enumerate() {
                if let Some(known) = known.first() {
                    compare_keys(&format!("{path}[{index}]"), value, known, faults);
                }
            }
        }
        (_, _) => faults.taken.extend(types::taken_for_another(path, found, known)),
    }
}

fn unknown_key(path: String, value: &Value, known: &config::Map<String, Value>) -> Fault {
    let origin = deepest_origin(value).unwrap_or("the settings").to_owned();
    let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
    names.sort_unstable();
    Fault { path, text: format!("unknown key in {origin}; known here: {}", names.join(", ")) }
}

fn deepest_origin(value: &Value) -> Option<&str> {
    let inner: Vec<&Value> = if let ValueKind::Table(table) = &value.kind {
        table.values().collect()
    } else if let ValueKind::Array(array) = &value.kind {
        array.iter().collect()
    } else {
        Vec::new()
    };
    value.origin().or_else(|| inner.into_iter().find_map(deepest_origin))
}

#[cfg(test)]
mod tests;
