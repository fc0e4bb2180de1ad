//! What a hub desires: the desired properties of a twin, as the last layer of the settings.
//!
//! They have the form of the configuration file, as JSON: tables are merged with those of the layers before, lists are
//! replaced. What is in force lies in `<data-dir>/desired-properties.json`, as `{"version":7,"properties":{…}}`, written whole when
//! it has come into force, for its owner's eyes alone (a URL may have a secret in it): a module that starts without a network has
//! the settings that it ended with.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use config::{ConfigError, Map, Source, Value, ValueKind};
use serde::{Deserialize, Serialize};

use super::{Fault, IotHub, SettingsError};
use crate::durable;

/// Longest file; a hub holds 32 KiB of desired properties.
const FILE_BYTES_MAX: u64 = 1 << 20;
const ORIGIN: &str = "the desired properties";

/// The desired properties of one version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// As the hub counts them.
    pub version: u64,
    /// In the form of the configuration file.
    pub properties: serde_json::Map<String, serde_json::Value>,
}

impl Desired {
    /// As a layer.
    ///
    /// # Errors
    /// A key that is none.
    pub(super) fn source(&self) -> Result<Layer, SettingsError> {
        match self.properties.keys().find(|key| !is_key(key)) {
            Some(key) => Err(SettingsError::Faults(vec![Fault {
                path: key.clone(),
                text: format!("is no key of the settings, in {ORIGIN}"),
            }])),
            None => Ok(Layer(table(&self.properties))),
        }
    }

    /// Keys that a hub may not set here.
    pub(super) fn faults(&self, iot_hub: &IotHub) -> Vec<Fault> {
        let mut leaves = Vec::new();
        for (key, value) in &self.properties {
            flatten(key.clone(), value, &mut leaves);
        }
        let refused = leaves.into_iter().filter(|path| !iot_hub.may_be_desired(path));
        let text = format!(
            "may not be set by the hub: iot-hub.desired-keys has {}",
            iot_hub.desired_keys.join(", ")
        );
        refused.map(|path| Fault { path, text: text.clone() }).collect()
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn flatten(path: String, value: &serde_json::Value, leaves: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                flatten(format!("{path}.{key}"), value, leaves);
            }
        }
        serde_json::Value::Object(_)
        | serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_)
        | serde_json::Value::Array(_) => leaves.push(path),
    }
}

/// Desired properties as the library for settings takes them.
#[derive(Clone, Debug)]
pub(super) struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn table(members: &serde_json::Map<String, serde_json::Value>) -> Map<String, Value> {
    members.iter().map(|(key, value)| (key.clone(), convert(value))).collect()
}

fn convert(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => ValueKind::Nil,
        serde_json::Value::Bool(flag) => ValueKind::Boolean(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => ValueKind::I64(number),
            (None, Some(number)) => ValueKind::U64(number),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => ValueKind::String(text.clone()),
        serde_json::Value::Array(items) => ValueKind::Array(items.iter().map(convert).collect()),
        serde_json::Value::Object(members) => ValueKind::Table(table(members)),
    };
    Value::new(Some(&ORIGIN.to_owned()), kind)
}

/// Where the desired properties in force are kept.
#[derive(Clone, Debug)]
pub struct DesiredFile(PathBuf);

impl DesiredFile {
    /// In a data folder.
    #[must_use]
    pub fn at(data_dir: &Path) -> Self {
        Self(data_dir.join("desired-properties.json"))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What was in force last; nothing if there never was anything.
    ///
    /// # Errors
    /// The disk refuses, or the file is not of this form.
    pub fn read(&self) -> io::Result<Option<Desired>> {
        let file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut content)?;
        Ok(Some(serde_json::from_slice(&content)?))
    }

    /// Keeps them, on the disk when it returns.
    ///
    /// # Errors
    /// The disk refuses; what was kept before is still there, or the new ones already.
    pub fn write(&self, desired: &Desired) -> io::Result<()> {
        durable::replace_private(&self.0, &serde_json::to_vec(desired)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Settings;

    fn desired(properties: serde_json::Value) -> Desired {
        let serde_json::Value::Object(properties) = properties else {
            panic!("an object");
        };
        Desired { version: 1, properties }
    }

    fn faults(properties: serde_json::Value) -> String {
        Settings::load_desired(None, Some(&desired(properties))).err().expect("refused").to_string()
    }

    #[test]
    fn desired_properties_are_the_last_layer() {
        let properties = json!({
            "telemetry": { "filter": "debug" },
            "deadband": { "percent": 7, "always-above": { "temperature": 90.5 } },
            "machines": [{ "id": "press-1", "votes": 3, "of": 5 }],
        });
        let (settings, _) =
            Settings::load_desired(None, Some(&desired(properties))).expect("valid");
        assert_eq!(settings.telemetry.filter, "debug");
        assert_eq!(settings.deadband.percent, 7.0);
        assert_eq!(settings.machines.len(), 1);
        assert_eq!(settings.machines[0].id.as_str(), "press-1");
        assert_eq!(settings.kafka.brokers, "127.0.0.1:9092", "others are as they were");
    }

    #[test]
    fn a_hub_sets_only_what_it_may() {
        let text = faults(json!({ "kafka": { "brokers": "elsewhere:9092" } }));
        assert!(text.starts_with("kafka.brokers: may not be set by the hub"), "{text}");
        let text = faults(json!({ "iot-hub": { "desired-keys": ["kafka"] } }));
        assert!(text.contains("iot-hub.desired-keys: may not be set by the hub"), "{text}");
        let text = faults(json!({ "telemetry": { "format": "json" } }));
        assert!(text.starts_with("telemetry.format: may not be set by the hub"), "{text}");
    }

    #[test]
    fn wrong_values_are_named_with_where_they_come_from() {
        let text = faults(json!({ "modle": {} }));
        assert!(text.contains("modle: unknown key in the"), "{text}");
        let text = faults(json!({ "telemetry": { "filter": ["info"] } }));
        assert!(text.contains("telemetry.filter") && text.contains(ORIGIN), "{text}");
        let text = faults(json!({ "deadband": { "percent": true } }));
        assert!(text.contains("deadband.percent: true is not a number"), "{text}");
        let limit = json!({ "name": "hot", "sensor": "s", "quantity": "value", "above": true });
        let text = faults(json!({ "machines": [{ "id": "m", "limits": [limit] }] }));
        assert!(text.contains("machines[0].limits[0].above: true is not a number"), "{text}");
        let text = faults(json!({ "machines": [{ "id": "m", "votes": 2.5 }] }));
        assert!(text.contains("machines[0].votes: 2.5 is not a whole number"), "{text}");
        let text = faults(json!({ "deadband": { "percent": -1.0 } }));
        assert!(text.starts_with("deadband: ") && text.contains("percent is -1"), "{text}");
        let text = faults(json!({ "a.b": 1 }));
        assert!(text.contains("a.b: is no key"), "{text}");
    }

    #[test]
    fn what_was_in_force_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = DesiredFile::at(folder.path());
        assert_eq!(file.read().expect("none yet"), None);
        let kept = desired(json!({ "telemetry": { "filter": "debug" } }));
        file.write(&kept).expect("written");
        assert_eq!(file.read().expect("readable"), Some(kept));
        std::fs::write(file.path(), "{").expect("written");
        assert_eq!(file.read().expect_err("damaged").kind(), ErrorKind::UnexpectedEof);
    }
}
