//! Settings read again while the module runs: on SIGHUP, when the configuration file changes, and when the hub desires others.
//!
//! The file's size, time and inode are looked at each second; one that is still being written is left alone until two looks
//! in a row see the same. What was read is checked whole and put in force whole, or refused whole: the settings before stay
//! in force, a machine event and `/status` say why.
//!
//! Live: machines with their rules, `[model]` ([`crate::models`]), `[learning]`, `[deadband]`, `[[aggregation]]`, `[waveforms]` but its queue, `telemetry.filter`,
//! `kafka.historical-after`. Everything else needs a restart and refuses the whole change by naming its keys. Everything is
//! built here; the stop path gets it through a channel of one place and swaps it in between two inputs. It alone may still
//! refuse: a machine whose trip is latched cannot be removed, and its `actuators` cannot change. No change arms a machine.

mod desired;
mod set_model;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edge_core::interlock::Interlock;
use shared_proto::model::{
    MachineEvent, MachineEventDetails, MachineEventType, MachineId, SensorId,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::actuation::machines_max;
use crate::admin::Board;
use crate::analysis::band_limited;
use crate::calibration::{BaselineFolder, Baselines, MachineConditions};
use crate::config::{Desired, DesiredFile, Keys, Machine, Settings, SettingsError};
use crate::kafka::now;
use crate::latch::LatchFolder;
use crate::limits::{self, show_use};
use crate::protection::NewMachines;
use crate::recording::NewFilters;
use crate::telemetry::{self, LogFilter};

use desired::ByHub;
pub use desired::{DesiredLine, DesiredState, Loaded};
pub use set_model::{ModelWish, SetBundle};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the stop path to answer; it answers between two inputs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest detail of an event, in bytes.
const DETAIL_BYTES_MAX: usize = 2_048;
/// Keys, or beginnings of keys, that can change while the module runs.
const LIVE: [&str; 8] = [
    "machines",
    "model",
    "learning",
    "deadband",
    "aggregation",
    "waveforms",
    "telemetry.filter",
    "kafka.historical-after",
];
/// Exceptions from [`LIVE`].
const NOT_LIVE: [&str; 1] = ["waveforms.queue-length"];

/// Why the settings before stay in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be read, or its settings are wrong.
    #[error("{0}")]
    Invalid(String),
    /// Keys that are read at the start only.
    #[error("restart the module to change {}; nothing was changed", .0.join(", "))]
    NeedsRestart(Vec<String>),
    /// Machines that are tripped.
    #[error("{} tripped: reset before removing, or before changing actuators; nothing was changed", names(.0))]
    Tripped(Vec<MachineId>),
    /// More machines than the queues of the start have room for.
    #[error(
        "machines: {count}, protection.path-queue-length has room for {max}: raise it and restart the module; nothing was changed"
    )]
    TooManyMachines {
        /// As many are there.
        count: usize,
        /// As many may be there.
        max: usize,
    },
    /// The stop path is gone or does not answer.
    #[error("the stop path did not answer; nothing was changed")]
    NoAnswer,
}

impl ReloadError {
    /// The word used in machine events.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::NeedsRestart(_) => "needs-restart",
            Self::Tripped(_) => "machine-tripped",
            Self::TooManyMachines { .. } => "too-many-machines",
            Self::NoAnswer => "no-answer",
        }
    }
}

fn names(machines: &[MachineId]) -> String {
    machines.iter().map(MachineId::as_str).collect::<Vec<_>>().join(", ")
}

/// Keys among `changed` that are read at the start only.
#[must_use]
pub fn needing_restart(changed: &[String]) -> Vec<String> {
    let begins = |key: &str, start: &str| {
        key.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    changed
        .iter()
        .filter(|key| {
            !LIVE.iter().any(|live| begins(key, live)) || NOT_LIVE.contains(&key.as_str())
        })
        .cloned()
        .collect()
}

/// Whom other settings concern.
pub struct Reached {
    /// The stop path.
    pub protection: mpsc::Sender<NewMachines>,
    /// The journal's path.
    pub recording: mpsc::Sender<NewFilters>,
    /// Models.
    pub models: watch::Sender<Settings>,
    /// The forwarder.
    pub historical_after: watch::Sender<Duration>,
    /// The log.
    pub log_filter: LogFilter,
    /// The journal.
    pub events: mpsc::Sender<MachineEvent>,
    /// Operators.
    pub board: Board,
}

/// The settings in force, and how to change them.
pub struct Reloader {
    file: Option<PathBuf>,
    settings: Settings,
    keys: Keys,
    by_hub: ByHub,
    /// Why what the hub desired before the start is not in force; told once.
    refusal: Option<String>,
    machines_max: usize,
    latches: LatchFolder,
    machine_id: MachineId,
    reached: Reached,
    watched: WatchedFile,
}

/// A file that may be written at any time.
#[derive(Debug, Default)]
struct WatchedFile {
    /// As it was when it was last read.
    read: Option<Stamp>,
    /// As it was at the last look, if that was another one.
    changing: Option<Stamp>,
}

impl WatchedFile {
    /// Takes a look. Says whether the file is another one than when it was last read, and no longer being written. One that
    /// is not there is waited for: editors replace files.
    fn look(&mut self, found: Option<Stamp>) -> bool {
        let Some(found) = found.filter(|found| self.read != Some(*found)) else {
            self.changing = None;
            return false;
        };
        self.changing.replace(found) == Some(found)
    }
}

/// Tells one version of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    inode: u64,
    modified_seconds: i64,
    modified_nanos: i64,
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok()?;
        Some(Self {
            bytes: found.len(),
            inode: found.ino(),
            modified_seconds: found.mtime(),
            modified_nanos: found.mtime_nsec(),
        })
    }
}

impl Reloader {
    /// Knows the settings that the module was started with; `machine_id` is the device's own name.
    #[must_use]
    pub fn new(
        file: Option<PathBuf>,
        loaded: Loaded,
        line: DesiredLine,
        latches: LatchFolder,
        machine_id: MachineId,
        reached: Reached,
    ) -> Self {
        let Loaded { settings, keys, desired, refusal, set } = loaded;
        reached.board.show_settings(keys.version(), now());
        limits::show(&keys);
        Self {
            file,
            machines_max: machines_max(&settings),
            by_hub: ByHub::new(line, DesiredFile::at(&settings.device.data_dir), desired, set),
            settings,
            keys,
            refusal,
            latches,
            machine_id,
            reached,
            // Not read yet: the first look finds what was changed while the module started.
            watched: WatchedFile::default(),
        }
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// The operating system refuses to deliver SIGHUP.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> std::io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        if let Some(refusal) = self.refusal.take() {
            self.tell_refusal(&ReloadError::Invalid(refusal));
        }
        while !*stop.borrow() {
            let is_asked = tokio::select! {
                _ = stop.changed() => continue,
                Some(wish) = self.by_hub.line.models.recv() => {
                    self.set_model(wish).await;
                    continue;
                }
                _ = hangup.recv() => { info!("SIGHUP: settings are read again"); true }
                _ = look.tick() => {
                    self.show_use();
                    self.look_at_hub().await;
                    false
                }
            };
            let stamp = self.file.as_deref().and_then(Stamp::of);
            if is_asked || self.watched.look(stamp) {
                let is_first = self.watched.read.is_none();
                self.watched.read = stamp;
                self.reload(is_first && !is_asked).await;
            }
        }
        Ok(())
    }

    fn show_use(&self) {
        let events = &self.reached.events;
        show_use("protection.event-queue-length", events.max_capacity() - events.capacity());
    }

    /// Reads the settings again and puts them in force, or says why not.
    async fn reload(&mut self, is_silent_if_same: bool) {
        let desired = self.by_hub.set.over(self.by_hub.desired.as_ref());
        if let Err(refusal) = self.put_in_force(desired, is_silent_if_same).await {
            self.tell_refusal(&refusal);
        }
    }

    /// Tells of what has changed; a refusal is the caller's to tell.
    async fn put_in_force(
        &mut self,
        desired: Option<Desired>,
        is_silent_if_same: bool,
    ) -> Result<(), ReloadError> {
        let before = self.keys.version();
        match self.try_reload(desired).await? {
            changed if changed.is_empty() => {
                if !is_silent_if_same {
                    info!(version = before, "settings are as before");
                }
            }
            changed => {
                let version = self.keys.version();
                info!(version, before, ?changed, "other settings in force");
                self.reached.board.show_settings(version.clone(), now());
                limits::show(&self.keys);
                let detail = format!("settings {before} -> {version}: {}", changed.join(", "));
                let detail = Some(shortened(detail));
                let details = MachineEventDetails { detail, ..Default::default() };
                metrics::counter!(telemetry::SETTINGS_RELOADS, "result" => "changed").increment(1);
                self.tell(MachineEventType::SettingsChanged, details);
            }
        }
        Ok(())
    }

    fn tell_refusal(&self, refusal: &ReloadError) {
        let version = self.keys.version();
        // What is refused may be as long as a hub's message, and stand in the refusal.
        let text = shortened(refusal.to_string());
        error!(version, reason = refusal.as_str(), refusal = text, "other settings refused");
        self.reached.board.show_refusal(now(), text.clone());
        let details = MachineEventDetails {
            cause: Some(refusal.as_str().to_owned()),
            detail: Some(shortened(format!("settings {version} stay: {text}"))),
            ..Default::default()
        };
        metrics::counter!(telemetry::SETTINGS_RELOADS, "result" => "refused").increment(1);
        self.tell(MachineEventType::SettingsRefused, details);
    }

    /// Gives the keys that changed.
    async fn try_reload(&mut self, desired: Option<Desired>) -> Result<Vec<String>, ReloadError> {
        let file = self.file.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let (settings, keys) = Settings::load_desired(file.as_deref(), desired.as_ref())?;
            // A machine that is added may have been learnt before.
            let folder = BaselineFolder::at(&settings.device.data_dir);
            let machines: Vec<_> = settings.machines.iter().map(|it| it.id.clone()).collect();
            let baselines = folder.read_all(&machines);
            Ok::<_, SettingsError>((settings, keys, baselines))
        });
        let (settings, keys, baselines) = loaded
            .await
            .map_err(|error| ReloadError::Invalid(error.to_string()))?
            .map_err(|faults| ReloadError::Invalid(faults.to_string()))?;
        let changed = keys.changed(&self.keys);
        if changed.is_empty() {
            return Ok(changed);
        }
        let refused = needing_restart(&changed);
        if !refused.is_empty() {
            return Err(ReloadError::NeedsRestart(refused));
        }
        let invalid = |error: anyhow::Error| ReloadError::Invalid(format!("{error:#}"));
        let filters = NewFilters::new(&settings, baselines.clone()).map_err(invalid)?;
        // Room is kept for it before the stop path is asked, so that nothing is in force by half.
        let recording = self.reached.recording.clone();
        let place = recording.reserve_owned();
        let place = tokio::time::timeout(ANSWER_TIMEOUT, place).await;
        let Ok(Ok(place)) = place else {
            return Err(ReloadError::Invalid(
                "the journal's path does not answer; nothing was changed".to_owned(),
            ));
        };
        self.change_machines(&settings, baselines).await?;
        place.send(filters);
        self.reached.models.send_replace(settings.clone());
        self.reached.historical_after.send_replace(settings.kafka.historical_after);
        if let Err(error) = self.reached.log_filter.set(&settings.telemetry.filter) {
            warn!(error, "telemetry.filter stays as it was");
        }
        self.settings = settings;
        self.keys = keys;
        Ok(changed)
    }

    async fn change_machines(
        &self,
        settings: &Settings,
        baselines: Baselines,
    ) -> Result<(), ReloadError> {
        let (count, max) = (settings.machines.len(), self.machines_max);
        if count > max {
            return Err(ReloadError::TooManyMachines { count, max });
        }
        let (answer, answered) = oneshot::channel();
        let change = new_machines(&self.settings, settings, &self.latches, answer)
            .map_err(|faults| ReloadError::Invalid(faults.join("\n")))?;
        let change = NewMachines { baselines, ..change };
        if change.is_empty() {
            return Ok(());
        }
        self.reached.protection.try_send(change).map_err(|_| ReloadError::NoAnswer)?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(tripped))) => Err(ReloadError::Tripped(tripped)),
            // Without anybody to answer to, the stop path drops what it has not taken yet.
            Ok(Err(_)) | Err(_) => Err(ReloadError::NoAnswer),
        }
    }

    fn tell(&self, event_type: MachineEventType, details: MachineEventDetails) {
        let event = crate::journal::event_of_now(self.machine_id.clone(), event_type, details);
        if self.reached.events.try_send(event).is_err() {
            metrics::counter!(telemetry::EVENTS_DROPPED).increment(1);
            error!("event about the settings dropped: the queue of machine events is full");
        }
    }
}

/// What the stop path has to change to get from `old` to `new`.
///
/// # Errors
/// Rules that were validated before are refused: one line each.
pub fn new_machines(
    old: &Settings,
    new: &Settings,
    latches: &LatchFolder,
    answer: oneshot::Sender<Result<(), Vec<MachineId>>>,
) -> Result<NewMachines, Vec<String>> {
    let by_id = |settings: &Settings| -> BTreeMap<MachineId, Machine> {
        settings.machines.iter().map(|machine| (machine.id.clone(), machine.clone())).collect()
    };
    let (before, after) = (by_id(old), by_id(new));
    let (mut added, mut replaced) = (Vec::new(), Vec::new());
    let mut machine_of_sensor: BTreeMap<SensorId, MachineId> = BTreeMap::new();
    let mut faults = Vec::new();
    for (id, machine) in &after {
        let rules = new.interlock(machine);
        let watched = rules.silence.iter().flat_map(|silence| &silence.sensors);
        for sensor in watched.chain(machine.condition_sensors()) {
            machine_of_sensor.insert(sensor.clone(), id.clone());
        }
        let rules_before = before.get(id).map(|machine| old.interlock(machine));
        if rules_before.as_ref() == Some(&rules) {
            continue;
        }
        match Interlock::new(id.clone(), rules, Instant::now()) {
            Err(found) => {
                faults.extend(found.iter().map(|fault| format!("machine {id}: {fault}")));
            }
            Ok(interlock) if rules_before.is_some() => replaced.push(interlock),
            Ok(interlock) => added.push((interlock, latches.read(id))),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let removed = before.keys().filter(|id| !after.contains_key(*id)).cloned().collect();
    let is_rewired = |id: &&MachineId| {
        let paths = |machines: &BTreeMap<MachineId, Machine>| machines.get(*id).map(Machine::paths);
        before.contains_key(*id) && paths(&before) != paths(&after)
    };
    let rewired = after.keys().filter(is_rewired).cloned().collect();
    let paths = after.iter().map(|(id, machine)| (id.clone(), machine.paths())).collect();
    let scored = new.scored_sensors();
    let conditions = MachineConditions::of(new);
    let is_learnt_otherwise = scored != old.scored_sensors()
        || conditions != MachineConditions::of(old)
        || new.learning != old.learning;
    let band_limited = band_limited(&new.machines);
    Ok(NewMachines {
        added,
        replaced,
        removed,
        rewired,
        machine_of_sensor,
        scored,
        conditions,
        baselines: Baselines::new(),
        learning: new.learning.clone(),
        is_learnt_otherwise,
        band_limited,
        paths,
        answer,
    })
}

fn shortened(mut text: String) -> String {
    if text.len() > DETAIL_BYTES_MAX {
        let end = (0..=DETAIL_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
