//! Settings with what the hub desires: at the start from the disk, and while the module runs.
//!
//! One version a second at most is put in force, and of several the newest alone. One that only has to wait (a machine is
//! tripped, the stop path does not answer) is tried again. What is in force is then written to the disk by a thread of its own,
//! which may hang without holding up anybody, and again until it is there; the hub is told of both.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use super::set_model::{ModelWish, SetModels, read_set_models};
use super::{ReloadError, Reloader};
use crate::config::{Desired, DesiredFile, HubMode, Keys, Settings, SettingsError};
use crate::data_dir::read_patiently;

/// Between two attempts to put in force what has to wait, or to write what could not be written.
const AGAIN_INTERVAL: Duration = Duration::from_secs(5);

/// What became of the newest desired properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredState {
    /// As the hub counts them.
    pub version: u64,
    /// In force, or why not: then those before are.
    pub result: Result<(), String>,
    /// Why those in force will not be there after a restart without a network, if that is so.
    pub not_kept: Option<String>,
}

/// Ends of the line to a hub.
pub struct DesiredLine {
    /// What it desires; the newest alone.
    pub desired: watch::Receiver<Option<Desired>>,
    /// What became of that.
    pub outcome: watch::Sender<Option<DesiredState>>,
    /// Models that somebody sets by a method.
    pub models: mpsc::Receiver<ModelWish>,
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
    /// What of them was set by a method, before the module ended last.
    pub(super) set: SetModels,
}

impl Loaded {
    /// Reads file and variables, and what the hub desired. Without a link to a hub that does not count.
    ///
    /// # Errors
    /// File or variables are wrong. What the hub desired is left out if it is.
    pub fn read(file: Option<&Path>) -> Result<Self, SettingsError> {
        let (settings, keys) = Settings::load_with_keys(file)?;
        let set = SetModels::default();
        let own = Self { settings, keys, desired: None, refusal: None, set };
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
        let set = read_set_models(&self.settings.device.data_dir);
        let refusal = match read_patiently("desired properties", move || kept.read()) {
            None => "the disk of device.data-dir does not answer".to_owned(),
            Some(Ok(None)) => return self.with_set(file, None, set),
            Some(Err(error)) => format!("cannot be read: {error}"),
            Some(Ok(Some(desired))) => match Settings::load_desired(file, Some(&desired)) {
                Ok((settings, keys)) => {
                    let own = Self { settings, keys, desired: None, refusal: None, ..self };
                    return own.with_set(file, Some(desired), set);
                }
                Err(faults) => faults.to_string(),
            },
        };
        let own = self.with_set(file, None, set);
        Self { refusal: Some(format!("{path}: {refusal}")), ..own }
    }

    /// With the models that were set, unless the settings are wrong with them.
    fn with_set(self, file: Option<&Path>, desired: Option<Desired>, set: SetModels) -> Self {
        let whole = set.over(desired.as_ref());
        if whole == desired {
            return Self { desired, set, ..self };
        }
        match Settings::load_desired(file, whole.as_ref()) {
            Ok((settings, keys)) => Self { settings, keys, desired, set, ..self },
            Err(faults) => {
                let refusal = Some(format!("set-models.json: {faults}"));
                Self { desired, refusal, ..self }
            }
        }
    }
}

/// What the hub desires of the settings.
pub(super) struct ByHub {
    pub(super) line: DesiredLine,
    file: DesiredFile,
    /// In force.
    pub(super) desired: Option<Desired>,
    /// Not yet in force: to be tried, perhaps again.
    next: Option<Desired>,
    /// Version on the disk.
    kept: Option<Desired>,
    /// Models that were set by a method, in force.
    pub(super) set: SetModels,
    writing: Option<(Desired, oneshot::Receiver<io::Result<()>>)>,
    not_kept: Option<String>,
    /// When `next` is tried again, if it has to wait.
    try_at: Option<Instant>,
    /// When the disk is tried again, if it was.
    write_at: Option<Instant>,
}

impl ByHub {
    pub(super) fn new(
        line: DesiredLine,
        file: DesiredFile,
        desired: Option<Desired>,
        set: SetModels,
    ) -> Self {
        Self {
            line,
            file,
            kept: desired.clone(),
            set,
            desired,
            next: None,
            writing: None,
            not_kept: None,
            try_at: None,
            write_at: None,
        }
    }

    /// Brings what is in force to the disk, without waiting for it.
    fn keep(&mut self, now: Instant) {
        if let Some((desired, mut written)) = self.writing.take() {
            match written.try_recv() {
                Ok(Ok(())) => {
                    self.kept = Some(desired);
                    self.not_kept = None;
                }
                Ok(Err(error)) => self.told_not_kept(error.to_string()),
                Err(TryRecvError::Closed) => {
                    self.told_not_kept("the thread that writes it panicked".to_owned());
                }
                Err(TryRecvError::Empty) => self.writing = Some((desired, written)),
            }
        }
        let is_due = self.write_at.is_none_or(|at| at <= now);
        if self.desired == self.kept || !is_due {
            return;
        }
        self.write_at = Some(now + AGAIN_INTERVAL);
        if self.writing.is_some() {
            return self.told_not_kept("the disk of device.data-dir does not answer".to_owned());
        }
        if let Some(desired) = self.desired.clone() {
            let (file, of_thread) = (self.file.clone(), desired.clone());
            let (done, written) = oneshot::channel();
            // At the end of the module nobody asks any more.
            tokio::task::spawn_blocking(move || drop(done.send(file.write(&of_thread))));
            self.writing = Some((desired, written));
        }
    }

    fn told_not_kept(&mut self, reason: String) {
        if self.not_kept.as_ref() != Some(&reason) {
            let path = self.file.path().display();
            error!(%path, reason, "desired properties are in force, and not kept for the next start; tried again");
            self.not_kept = Some(reason);
        }
    }

    /// Gives whether that is news.
    fn tell(&self, version: u64, result: Result<(), String>) -> bool {
        let state = Some(DesiredState { version, result, not_kept: self.not_kept.clone() });
        self.line.outcome.send_if_modified(|shown| {
            let is_news = *shown != state;
            *shown = state;
            is_news
        })
    }

    /// The file may have come late, or hold another reason now.
    fn tell_kept(&self) {
        self.line.outcome.send_if_modified(|shown| match shown {
            Some(state) if state.not_kept != self.not_kept => {
                state.not_kept.clone_from(&self.not_kept);
                true
            }
            Some(_) | None => false,
        });
    }
}

impl Reloader {
    /// Puts what the hub desires in force as a whole, or leaves what it desired before.
    pub(super) async fn look_at_hub(&mut self) {
        let now = Instant::now();
        if self.by_hub.line.desired.has_changed().unwrap_or(false) {
            self.by_hub.next.clone_from(&self.by_hub.line.desired.borrow_and_update());
            self.by_hub.try_at = None;
            self.by_hub.write_at = None;
        }
        let is_due = self.by_hub.try_at.is_none_or(|at| at <= now);
        if let Some(desired) = self.by_hub.next.take_if(|_| is_due) {
            self.try_desired(desired, now).await;
        }
        self.by_hub.keep(now);
        self.by_hub.tell_kept();
    }

    async fn try_desired(&mut self, desired: Desired, now: Instant) {
        let version = desired.version;
        let is_same = |before: &Desired| before.properties == desired.properties;
        let result = if self.by_hub.desired.as_ref().is_some_and(is_same) {
            Ok(())
        } else {
            self.put_in_force(self.by_hub.set.over(Some(&desired)), true).await
        };
        match result {
            Ok(()) => {
                self.by_hub.desired = Some(desired);
                self.by_hub.tell(version, Ok(()));
            }
            Err(refusal) => {
                let is_passing = match &refusal {
                    ReloadError::Tripped(_) | ReloadError::NoAnswer => true,
                    ReloadError::Invalid(_)
                    | ReloadError::NeedsRestart(_)
                    | ReloadError::TooManyMachines { .. } => false,
                };
                if is_passing {
                    self.by_hub.next = Some(desired);
                    self.by_hub.try_at = Some(now + AGAIN_INTERVAL);
                }
                // Tried again in vain it says nothing new.
                if self.by_hub.tell(version, Err(refusal.to_string())) {
                    self.tell_refusal(&refusal);
                }
            }
        }
    }
}
