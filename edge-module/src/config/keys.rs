//! All settings in one list: what differs between two versions, and a short name for each version.

use std::collections::BTreeMap;
use std::time::Duration;

use config::{Config, File, FileFormat, Value, ValueKind};
use sha2::{Digest as _, Sha256};

use super::DEFAULTS;

/// Hexadecimal digits of a version.
const VERSION_DIGITS: usize = 12;

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
