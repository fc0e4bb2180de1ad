//! Settings with what the hub desires: at the start from the disk, and while the module runs.

use std::path::Path;

use tokio::sync::oneshot;
use tracing::error;

use crate::config::{Desired, DesiredFile, HubMode, Keys, Settings, SettingsError};
use crate::data_dir::read_patiently;

/// Other desired properties, and who waits for what becomes of them.
pub struct DesiredChange {
    /// All of them.
    pub desired: Desired,
    /// In force, or why not: then those before are.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// The settings of a start.
pub struct Loaded {
    /// All of them.
    pub settings: Settings,
    /// As a list.
    pub keys: Keys,
    /// What of them the hub desired, before the module ended last.
    pub desired: Option<Desired>,
    /// Why what the hub desired is not in force, if that is so.
    pub refusal: Option<String>,
}

impl Loaded {
    /// Reads file and variables, and what the hub desired. Without a link to a hub that does not count.
    ///
    /// # Errors
    /// File or variables are wrong. What the hub desired is left out if it is.
    pub fn read(file: Option<&Path>) -> Result<Self, SettingsError> {
        let (settings, keys) = Settings::load_with_keys(file)?;
        let own = Self { settings, keys, desired: None, refusal: None };
        let is_linked = match own.settings.iot_hub.identity {
            HubMode::Off => false,
            HubMode::Auto => std::env::var_os("IOTEDGE_WORKLOADURI").is_some(),
            HubMode::Module | HubMode::Device => true,
        };
        Ok(if is_linked { own.with_kept(file) } else { own })
    }

    fn with_kept(self, file: Option<&Path>) -> Self {
        let kept = DesiredFile::at(&self.settings.device.data_dir);
        let path = kept.path().display().to_string();
        let refusal = match read_patiently("desired properties", move || kept.read()) {
            None => "the disk of device.data-dir does not answer".to_owned(),
            Some(Ok(None)) => return self,
            Some(Err(error)) => format!("cannot be read: {error}"),
            Some(Ok(Some(desired))) => match Settings::load_desired(file, Some(&desired)) {
                Ok((settings, keys)) => {
                    return Self { settings, keys, desired: Some(desired), refusal: None };
                }
                Err(faults) => faults.to_string(),
            },
        };
        Self { refusal: Some(format!("{path}: {refusal}")), ..self }
    }
}

/// Keeps what is in force now; without, the next start has the ones before until the hub is there.
pub(super) async fn keep(file: &DesiredFile, desired: &Desired) {
    let (of_thread, desired) = (file.clone(), desired.clone());
    let written = tokio::task::spawn_blocking(move || of_thread.write(&desired)).await;
    let reason = match written {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    error!(path = %file.path().display(), reason, "desired properties are in force, and not kept for the next start");
}
