//! All settings in one list: what differs between two versions, and a short name for each version.

use std::collections::BTreeMap;
use std::time::Duration;

use config::{Config, File, FileFormat, Value, ValueKind};
use sha2::{Digest as _, Sha256};

use super::DEFAULTS;

/// Hexadecimal digits of a version.
const VERSION_DIGITS: usize = 12;

/// Every key that an entry of a list of tables may have: the default file has none.
pub(super) const MACHINE_KEYS: &str = r#"
[[machines]]
id = ""
scored-sensors = []
votes = 1
of = 1
score-threshold = 1.0
score-action = "trip"
score-during-startup = "enforce"
trip-on-silence = "1s"
on-fault = "alarm"
startup-suppression = "0s"
dry-run = false
conditions-stale-after = "1m"
shaft-speed-sensor = ""
shaft-rpm = 1.0
[[machines.bearings]]
name = ""
rolling-elements = 2
element-diameter = 1.0
pitch-diameter = 2.0
contact-angle-deg = 0.0
[[machines.conditions]]
name = ""
ranges = [{ sensor = "", min = 0.0, max = 1.0 }]
[[machines.limits]]
name = ""
sensor = ""
quantity = ""
above = 1.0
below = 0.0
hysteresis = 0.0
on-delay = "0s"
off-delay = "0s"
action = "trip"
during-startup = "enforce"
[[machines.sensors]]
id = ""
range = { min = 0.0, max = 1.0 }
frozen-after = "1s"
frozen-tolerance = 0.0
saturation = 1.0
full-scale = 1.0
sample-rate = 1.0
sample-rate-tolerance = 0.0
missing-samples-max = 0.5
clock-drift-max = "1s"
recovers-after = "1s"
on-fault = "alarm"
[[machines.actuators]]
kind = "mqtt"
host = ""
port = 1
unit = 1
stop-coil = 0
stop-value = false
standstill-coil = 0
standstill-input = 0
standstill-value = true
heartbeat-register = 0
poll-interval = "1s"
response-timeout = "1s"
[[deadband.rules]]
sensor-prefix = ""
metric-type = ""
absolute = 0.0
percent = 0.0
score = 0.0
heartbeat = "1s"
[[aggregation]]
sensor-prefix = ""
metric-type = ""
interval = "1s"
value = "mean"
statistics = []
[opc-publisher]
[[opc-publisher.nodes]]
node = ""
field = ""
writer = ""
server = ""
sensor = ""
machine = ""
metric-type = ""
unit = ""
"#;

/// Every key that is set, with its value as text. The values may be secret: only the keys are shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(BTreeMap<String, String>);

impl Keys {
    pub(super) fn new(merged: &Value) -> Self {
        let mut keys = BTreeMap::new();
        flatten(String::new(), merged, &mut keys);
        Self(keys)
    }

    /// Name of exactly these settings: the first twelve hexadecimal digits of the SHA-256 of all keys and values.
    #[must_use]
    pub fn version(&self) -> String {
        let mut hash = Sha256::new();
        for text in self.0.iter().flat_map(|(key, value)| [key, value]) {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        let mut version: String =
            hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        version.truncate(VERSION_DIGITS);
        version
    }

    /// Keys whose values differ, and keys that only one of both has.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let mut changed: Vec<String> = self
            .0
            .iter()
            .filter(|(key, value)| other.0.get(*key) != Some(*value))
            .chain(other.0.iter().filter(|(key, _)| !self.0.contains_key(*key)))
            .map(|(key, _)| key.clone())
            .collect();
        changed.sort_unstable();
        changed
    }

    /// Numbers, and durations in seconds, of every key whose default is one of both.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, f64)> {
        let defaults = Self::defaults();
        self.0.iter().filter_map(move |(key, value)| {
            number(defaults.0.get(key)?)?;
            Some((key.as_str(), number(value)?))
        })
    }

    fn defaults() -> Self {
        let defaults = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        // The defaults are compiled in; a test reads them.
        defaults.build().map_or_else(|_| Self(BTreeMap::new()), |config| Self::new(&config.cache))
    }
}

fn number(text: &str) -> Option<f64> {
    if !text.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
        return None;
    }
    let number = text.parse::<f64>().ok();
    number.or_else(|| parse_duration(text).map(|duration| duration.as_secs_f64()))
}

fn parse_duration(text: &str) -> Option<Duration> {
    use serde::de::IntoDeserializer as _;

    let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        text.into_deserializer();
    humantime_serde::deserialize(text).ok()
}

fn flatten(path: String, value: &Value, keys: &mut BTreeMap<String, String>) {
    if let ValueKind::Table(table) = &value.kind {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            flatten(path, value, keys);
        }
    } else if let ValueKind::Array(array) = &value.kind {
        // So that a list that has become empty is a change.
        keys.insert(path.clone(), format!("{} entries", array.len()));
        for (index, value) in array.iter().enumerate() {
            flatten(format!("{path}[{index}]"), value, keys);
        }
    } else {
        keys.insert(path, value.to_string());
    }
}
