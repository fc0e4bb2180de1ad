//! Rules read again while the aggregator runs: on SIGHUP, and when the configuration file changes.
//!
//! The file's size, time and inode are looked at each second; one that is still being written is left alone until two looks in a
//! row see the same. What was read is checked whole and put in force whole, or refused whole: the rules before stay in force,
//! the log and `/status` say why. Everything but `[[rules]]` and `[alerting]` needs a restart, and refuses the change by naming its keys.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use crate::config::{Keys, Settings};
use crate::health::Health;
use crate::telemetry::names;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Keys that can change while the aggregator runs begin with one of these.
const LIVE: [&str; 2] = ["rules[", "alerting."];

/// Tells one version of a file from another without reading it: bytes, inode, seconds and nanoseconds of its last change.
type Stamp = (u64, u64, i64, i64);

fn stamp(file: &Path) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some((found.len(), found.ino(), found.mtime(), found.mtime_nsec()))
}

fn is_live(key: &str) -> bool {
    LIVE.iter().any(|live| key.starts_with(live))
}

/// The settings in force, and how to change them.
pub struct Reloader {
    file: Option<PathBuf>,
    keys: Keys,
    rules: mpsc::Sender<Arc<aggregator_core::Settings>>,
    health: Arc<Health>,
    /// The file when it was last read, and at the last look if that was another one.
    read: Option<Stamp>,
    changing: Option<Stamp>,
}

impl Reloader {
    /// Knows the settings that the aggregator was started with.
    #[must_use]
    pub fn new(
        file: Option<PathBuf>,
        keys: Keys,
        rules: mpsc::Sender<Arc<aggregator_core::Settings>>,
        health: Arc<Health>,
    ) -> Self {
        // Not read yet: the first look finds what was changed while the aggregator started.
        Self { file, keys, rules, health, read: None, changing: None }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, mut hangup: Signal, mut stop: watch::Receiver<bool>) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            let is_asked = tokio::select! {
                _ = stop.changed() => continue,
                _ = hangup.recv() => { info!("SIGHUP: rules are read again"); true }
                _ = look.tick() => false,
            };
            let found = self.file.as_deref().and_then(stamp);
            if is_asked || self.is_new(found) {
                self.read = found;
                self.reload().await;
            }
        }
    }

    /// Whether the file is another one than when it was last read, and no longer being written. One that is not there is
    /// waited for: editors replace files.
    fn is_new(&mut self, found: Option<Stamp>) -> bool {
        let Some(found) = found.filter(|found| self.read != Some(*found)) else {
            self.changing = None;
            return false;
        };
        self.changing.replace(found) == Some(found)
    }

    async fn reload(&mut self) {
        let (refused, result) = match self.try_reload().await {
            Ok(changed) if changed.is_empty() => {
                if self.health.status().settings_refused.is_some() {
                    info!("the settings are again those that are in force");
                }
                (None, "same")
            }
            Ok(changed) => {
                info!(changed = changed.join(", "), "other rules were read");
                (None, "changed")
            }
            Err(text) => {
                error!(text, "other settings refused, the rules before stay in force");
                (Some(text), "refused")
            }
        };
        counter!(names::SETTINGS_RELOADS_TOTAL, "result" => result).increment(1);
        self.health.update(|status| status.settings_refused = refused);
    }

    /// Gives the keys that changed.
    async fn try_reload(&mut self) -> Result<Vec<String>, String> {
        let file = self.file.clone();
        let loading =
            tokio::task::spawn_blocking(move || Settings::load_with_keys(file.as_deref()));
        let (settings, keys) = loading
            .await
            .map_err(|error| error.to_string())?
            .map_err(|faults| faults.to_string())?;
        let changed = keys.changed(&self.keys);
        let fixed: Vec<&str> =
            changed.iter().map(String::as_str).filter(|key| !is_live(key)).collect();
        if !fixed.is_empty() {
            return Err(format!(
                "restart the aggregator to change {}; nothing was changed",
                fixed.join(", ")
            ));
        }
        if !changed.is_empty() {
            let sent = self.rules.send(Arc::new(settings.core())).await;
            sent.map_err(|_| "the pipeline has ended; nothing was changed".to_owned())?;
            settings.warn_of_spread_rules();
            self.keys = keys;
        }
        Ok(changed)
    }
}
