//! The models that a start begins with.

use std::collections::BTreeMap;
use std::path::Path;

use tracing::warn;

use super::KeptModels;
use crate::config::Settings;
use crate::data_dir::read_patiently;
use crate::scoring::{Models, load_models};

/// Models at the start, and what is still to be done for them.
pub struct Initial {
    /// To be put in force at once.
    pub models: Models,
    /// Names whose bundle of the settings is not the one in force: it comes as a candidate.
    pub candidates: Vec<String>,
    /// Bundles of the settings that did not pass.
    pub refused: BTreeMap<String, String>,
}

impl Initial {
    /// Loads what was in force when the module ended, or else what the settings name. Waits for the data folder, but not for ever.
    #[must_use]
    pub fn load(settings: &Settings) -> Self {
        let of_thread = settings.clone();
        // Also the folder of a bundle may be on a disk that does not answer.
        let loaded = read_patiently("bundles", move || load_models(&of_thread));
        let (mut models, refused) = loaded.unwrap_or_default();
        let names: Vec<String> = settings.model.sources().into_keys().collect();
        let mut candidates = Vec::new();
        for (name, kept) in read_kept(&settings.device.data_dir, names.clone()) {
            if models.get(&name).is_some_and(|bundle| bundle.is_same(&kept)) {
                continue;
            }
            if models.contains_key(&name) {
                candidates.push(name.clone());
            }
            models.insert(name, kept);
        }
        let missing = names.into_iter().filter(|name| !models.contains_key(name));
        candidates.extend(missing.filter(|name| !refused.contains_key(name)));
        Self { models, candidates, refused }
    }
}

fn read_kept(data_dir: &Path, names: Vec<String>) -> Models {
    let kept = KeptModels::at(data_dir);
    let read_all = move || {
        let read = names.into_iter().filter_map(|name| match kept.read(&name) {
            Ok(bundle) => Some((name, bundle?)),
            Err(error) => {
                warn!(model = name, %error, "the model that was in force is damaged on this disk");
                None
            }
        });
        read.collect::<Models>()
    };
    read_patiently("models", read_all).unwrap_or_default()
}
