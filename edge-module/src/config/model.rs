//! `[model]`, and which sensors of a machine a model scores.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use shared_proto::model::SensorId;

use super::{Machine, Settings};
use crate::bundle_store::{BundleSettings, BundleSource};

/// The model of scored sensors that name no other.
pub const DEFAULT_MODEL: &str = "default";
/// Bundles that are fetched, tested and kept in memory.
const BUNDLES_MAX: usize = 32;
/// Longest name of a model, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Longest time that a bundle may be kept beside the one in force.
const SHADOW_TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// `[model]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Model {
    /// Folder of the bundle called [`DEFAULT_MODEL`]; empty: none.
    pub bundle_dir: PathBuf,
    /// Further bundles by the names that `scored-sensors` call them.
    pub bundles: BTreeMap<String, BundleSettings>,
    /// How long another bundle scores beside the one in force before it takes its place.
    #[serde(with = "humantime_serde")]
    pub shadow_time: Duration,
    /// Longest time from the samples of a window to its score.
    #[serde(with = "humantime_serde")]
    pub latency_budget: Duration,
}

impl Model {
    /// Where every bundle comes from, by its name; without those that validation has refused.
    #[must_use]
    pub fn sources(&self) -> BTreeMap<String, BundleSource> {
        let named = self.bundles.iter();
        let named = named.filter_map(|(name, bundle)| Some((name.clone(), bundle.source().ok()?)));
        let default = (!self.bundle_dir.as_os_str().is_empty())
            .then(|| (DEFAULT_MODEL.to_owned(), BundleSource::Folder(self.bundle_dir.clone())));
        named.chain(default).collect()
    }

    /// The settings' key of a model.
    #[must_use]
    pub fn key(name: &str) -> String {
        match name {
            DEFAULT_MODEL => "model.bundle-dir".to_owned(),
            name => format!("model.bundles.{name}"),
        }
    }

    /// What is wrong, with its key.
    pub(super) fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        if self.shadow_time > SHADOW_TIME_MAX {
            let text = format!("{:?} is longer than {SHADOW_TIME_MAX:?}", self.shadow_time);
            faults.push(("model.shadow-time".to_owned(), text));
        }
        if self.latency_budget.is_zero() {
            let text = "is 0s: every model would be over it".to_owned();
            faults.push(("model.latency-budget".to_owned(), text));
        }
        if self.bundle_dir.to_string_lossy().contains("://") {
            let text = "is a URL: name it in model.bundles with url and sha256".to_owned();
            faults.push(("model.bundle-dir".to_owned(), text));
        }
        if self.bundles.len() > BUNDLES_MAX {
            let text =
                format!("{} are named, at most {BUNDLES_MAX} are allowed", self.bundles.len());
            faults.push(("model.bundles".to_owned(), text));
        }
        for (name, bundle) in &self.bundles {
            let key = format!("model.bundles.{name}");
            let is_word = |text: &str| {
                let of_word =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(of_word)
            };
            if !is_word(name) {
                let text = format!("a name has 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -");
                faults.push((key.clone(), text));
            }
            if let Err(fault) = bundle.source() {
                faults.push((key.clone(), fault));
            }
            if name == DEFAULT_MODEL && !self.bundle_dir.as_os_str().is_empty() {
                faults
                    .push((key, "model.bundle-dir names the same model: leave one out".to_owned()));
            }
        }
        faults
    }
}

/// One entry of `scored-sensors`: a sensor's name, or `{ sensor = "…", model = "…" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoredSensor {
    /// The sensor.
    pub sensor: SensorId,
    /// Name of its model.
    pub model: String,
}

impl<'de> Deserialize<'de> for ScoredSensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrTable)
    }
}

/// The table form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    sensor: SensorId,
    model: String,
}

struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = ScoredSensor;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sensor, or { sensor = \"…\", model = \"…\" }")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ScoredSensor, E> {
        let sensor = SensorId::new(text).map_err(E::custom)?;
        Ok(ScoredSensor { sensor, model: DEFAULT_MODEL.to_owned() })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ScoredSensor, A::Error> {
        let Table { sensor, model } = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(ScoredSensor { sensor, model })
    }
}

impl Machine {
    /// Sensors that a model scores.
    pub fn scored(&self) -> impl Iterator<Item = &SensorId> {
        self.scored_sensors.iter().map(|scored| &scored.sensor)
    }

    /// Name of the model that scores a sensor.
    #[must_use]
    pub fn model_of(&self, sensor: &SensorId) -> Option<&str> {
        let scored = self.scored_sensors.iter().find(|scored| scored.sensor == *sensor);
        scored.map(|scored| scored.model.as_str())
    }
}

impl Settings {
    /// How each sensor is scored, of all machines.
    #[must_use]
    pub fn scored_sensors(&self) -> BTreeMap<SensorId, ScoredBy> {
        let of = |machine: &Machine| {
            let threshold = machine.score_threshold;
            let scored =
                machine.scored_sensors.iter().map(move |ScoredSensor { sensor, model }| {
                    (sensor.clone(), ScoredBy { model: model.clone(), threshold })
                });
            scored.collect::<Vec<_>>()
        };
        self.machines.iter().flat_map(of).collect()
    }
}

/// How a sensor is scored.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredBy {
    /// Name of the model.
    pub model: String,
    /// Threshold of the machine, if it has one of its own.
    pub threshold: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load;

    fn machine(scored: &str, model: &str) -> Result<Settings, String> {
        load(&format!("[[machines]]\nid = \"m\"\nscored-sensors = {scored}\n[model]\n{model}\n"))
    }

    #[test]
    fn each_sensor_names_its_model_or_has_the_default() {
        let scored = r#"["m/a", { sensor = "m/x", model = "line" }]"#;
        let model = "bundle-dir = \"/one\"\nbundles = { line = \"/two\" }";
        let settings = machine(scored, model).expect("both are there");
        let scored = settings.scored_sensors();
        let of: Vec<_> = scored.values().map(|by| by.model.as_str()).collect();
        assert_eq!(of, ["default", "line"]);
        let sources = settings.model.sources();
        assert_eq!(sources["default"], BundleSource::Folder("/one".into()));
        assert_eq!(sources["line"], BundleSource::Folder("/two".into()));
    }

    #[test]
    fn a_model_that_is_not_there_is_a_fault() {
        let check = |scored: &str, model: &str, expected: &str| {
            let faults = machine(scored, model).expect_err(expected);
            assert!(faults.contains(expected), "{faults}");
        };
        check(r#"[{ sensor = "m/x", model = "line" }]"#, "bundle-dir = \"/one\"", "model \"line\"");
        check(r#"["m/x"]"#, "bundles = { line = \"/two\" }", "model \"default\"");
        check(r#"["m/x", "m/x"]"#, "bundle-dir = \"/one\"", "names m/x twice");
        check(r#"[{ sensor = "m/x" }]"#, "bundle-dir = \"/one\"", "scored-sensors[0].model");
        check(r#"[{ sensor = "m/x", modell = "a" }]"#, "bundle-dir = \"/one\"", "modell");
        check("[7]", "bundle-dir = \"/one\"", "a sensor, or { sensor");
        check("[]", "bundles = { Line = \"/two\" }", "model.bundles.Line");
        check("[]", "bundles = { line = \"\" }", "model.bundles.line: dir is empty");
        check(
            "[]",
            "bundles = { line = { url = \"http://a.example/b\", sha256 = \"00\" } }",
            "sha256",
        );
        check("[]", "bundles = { line = { dir = \"/b\", path = \"/c\" } }", "path");
        check("[]", "bundle-dir = \"/a\"\nbundles = { default = \"/b\" }", "leave one out");
    }
}
