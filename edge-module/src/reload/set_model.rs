//! Models that somebody sets by the method `setModel`, as a layer of the settings of their own.
//!
//! They are kept in `<data-dir>/set-models.json`, as `{"shaken":{"url":"…","sha256":"…"}}`, and hold until the same method sets another.
//! The desired properties go before them: a model that those name is set there, and nowhere else. What is set is checked whole and
//! comes into force like any change of the settings, or is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::{ANSWER_TIMEOUT, ReloadError, Reloader};
use crate::config::{DEFAULT_MODEL, Desired, Settings};
use crate::durable;

/// A bundle on a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetBundle {
    /// Of the archive.
    pub url: String,
    /// Of the archive, hexadecimal.
    pub sha256: String,
}

/// Somebody wants another model.
#[derive(Debug)]
pub struct ModelWish {
    /// Name of the settings.
    pub name: String,
    /// Where it is.
    pub bundle: SetBundle,
    /// Whether it is among the settings in force, and why it will not be after a restart, if that is so; or why it is refused.
    pub answer: oneshot::Sender<Result<Option<String>, String>>,
}

/// Models that were set, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SetModels(BTreeMap<String, SetBundle>);

impl SetModels {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("set-models.json")
    }

    /// What was set before the module ended last.
    ///
    /// # Errors
    /// The disk refuses, or the file is not of this form.
    pub(super) fn read(data_dir: &Path) -> io::Result<Self> {
        match std::fs::read(Self::path(data_dir)) {
            Ok(content) => Ok(serde_json::from_slice(&content)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn write(&self, data_dir: &Path) -> io::Result<()> {
        // A URL may have a secret in it.
        durable::replace_private(&Self::path(data_dir), &serde_json::to_vec(self)?)
    }

    /// The desired properties with the models that they do not name.
    #[must_use]
    pub(super) fn over(&self, desired: Option<&Desired>) -> Option<Desired> {
        let added = self.0.iter().filter(|(name, _)| !names_model(desired, name));
        let added: Vec<_> = added.collect();
        if added.is_empty() {
            return desired.cloned();
        }
        let none = || Desired { version: 0, properties: Map::new() };
        let mut merged = desired.cloned().unwrap_or_else(none);
        for (name, bundle) in added {
            let Some(model) = table(&mut merged.properties, "model") else { continue };
            if name == DEFAULT_MODEL {
                // The folder of the file would be a second bundle of that name.
                model.insert("bundle-dir".to_owned(), json!(""));
            }
            if let Some(bundles) = table(model, "bundles") {
                let bundle = json!({ "url": bundle.url, "sha256": bundle.sha256 });
                bundles.insert(name.clone(), bundle);
            }
        }
        Some(merged)
    }
}

/// A table of a table; nothing if it is of another type, for which the settings are refused.
fn table<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    parent.entry(key).or_insert_with(|| json!({})).as_object_mut()
}

/// Whether the desired properties say which bundle a model is.
fn names_model(desired: Option<&Desired>, name: &str) -> bool {
    let model = desired.and_then(|desired| desired.properties.get("model"));
    let Some(model) = model else { return false };
    let is_named = model.get("bundles").is_some_and(|bundles| bundles.get(name).is_some());
    is_named || (name == DEFAULT_MODEL && model.get("bundle-dir").is_some())
}

/// What is wrong with a name that no model of the settings has: nobody would be judged by its bundle, and it could not be taken out.
fn unknown(settings: &Settings, name: &str) -> Option<String> {
    let known = settings.model.sources();
    if name == DEFAULT_MODEL || known.contains_key(name) {
        return None;
    }
    let known: BTreeSet<&str> = known.keys().map(String::as_str).chain([DEFAULT_MODEL]).collect();
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    Some(format!("no model is named {name:.64}; known are {known}: name it in model.bundles first"))
}

impl Reloader {
    /// Puts a model among the settings, and answers.
    pub(super) async fn set_model(&mut self, wish: ModelWish) {
        let ModelWish { name, bundle, answer } = wish;
        let result = self.try_model(&name, bundle).await;
        if let Err(refusal) = &result {
            self.tell_refusal(refusal);
        }
        if answer.send(result.map_err(|refusal| refusal.to_string())).is_err() {
            debug!(model = name, "nobody waits for the answer any more");
        }
    }

    async fn try_model(
        &mut self,
        name: &str,
        bundle: SetBundle,
    ) -> Result<Option<String>, ReloadError> {
        if names_model(self.by_hub.desired.as_ref(), name) {
            let text = format!("the desired properties name model {name}: change it there");
            return Err(ReloadError::Invalid(text));
        }
        if let Some(text) = unknown(&self.settings, name) {
            return Err(ReloadError::Invalid(text));
        }
        let mut set = self.by_hub.set.clone();
        set.0.insert(name.to_owned(), bundle);
        self.put_in_force(set.over(self.by_hub.desired.as_ref()), true).await?;
        self.by_hub.set = set.clone();
        let data_dir = self.settings.device.data_dir.clone();
        let writing = tokio::task::spawn_blocking(move || set.write(&data_dir));
        let not_kept = match tokio::time::timeout(ANSWER_TIMEOUT, writing).await {
            Ok(Ok(Ok(()))) => return Ok(None),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(panic)) => panic.to_string(),
            Err(_) => "the disk of device.data-dir does not answer".to_owned(),
        };
        error!(
            model = name,
            reason = not_kept,
            "the model is set, and not kept for the next start"
        );
        Ok(Some(not_kept))
    }
}

/// What was set before, or nothing if that cannot be read.
pub(super) fn read_set_models(data_dir: &Path) -> SetModels {
    let folder = data_dir.to_owned();
    match crate::data_dir::read_patiently("set models", move || SetModels::read(&folder)) {
        Some(Ok(set)) => set,
        Some(Err(error)) => {
            warn!(%error, "set-models.json cannot be read: models are those of the other settings");
            SetModels::default()
        }
        None => {
            warn!("the disk of device.data-dir does not answer: set-models.json is not read");
            SetModels::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> SetModels {
        let url = "https://models.example/a.tar".to_owned();
        let bundle = SetBundle { url, sha256: "0".repeat(64) };
        SetModels([(name.to_owned(), bundle)].into())
    }

    fn desired(properties: Value) -> Desired {
        let Value::Object(properties) = properties else { panic!("an object") };
        Desired { version: 7, properties }
    }

    #[test]
    fn what_is_set_is_added_to_what_is_desired() {
        let before =
            desired(json!({ "model": { "shadow-time": "1s" }, "deadband": { "percent": 3 } }));
        let merged = set("shaken").over(Some(&before)).expect("something");
        assert_eq!(merged.version, 7);
        let (settings, _) = Settings::load_desired(None, Some(&merged)).expect("valid");
        assert!(settings.model.sources().contains_key("shaken"));
        assert_eq!(settings.deadband.percent, 3.0);
        let merged = set(DEFAULT_MODEL).over(None).expect("something");
        let (settings, _) = Settings::load_desired(None, Some(&merged)).expect("valid");
        assert!(settings.model.sources().contains_key(DEFAULT_MODEL));
    }

    #[test]
    fn what_is_desired_goes_before_what_is_set() {
        for (name, model) in [
            ("shaken", json!({ "bundles": { "shaken": { "dir": "/b" } } })),
            (DEFAULT_MODEL, json!({ "bundle-dir": "/b" })),
        ] {
            let before = desired(json!({ "model": model }));
            assert_eq!(set(name).over(Some(&before)), Some(before), "{name}");
        }
        assert_eq!(SetModels::default().over(None), None);
    }

    #[test]
    fn a_name_that_no_model_has_is_unknown() {
        let settings = Settings::load(None).expect("defaults");
        assert_eq!(unknown(&settings, DEFAULT_MODEL), None);
        let text = unknown(&settings, "shakn").expect("nobody's");
        assert!(text.contains("no model is named shakn; known are default"), "{text}");
        let merged = set("shaken").over(None).expect("something");
        let (settings, _) = Settings::load_desired(None, Some(&merged)).expect("valid");
        assert_eq!(unknown(&settings, "shaken"), None);
    }

    #[test]
    fn what_was_set_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(SetModels::read(folder.path()).expect("none yet"), SetModels::default());
        set("shaken").write(folder.path()).expect("written");
        assert_eq!(SetModels::read(folder.path()).expect("readable"), set("shaken"));
        std::fs::write(SetModels::path(folder.path()), "{").expect("written");
        assert!(SetModels::read(folder.path()).is_err());
    }
}
