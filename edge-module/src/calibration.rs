//! What was learnt of the machines, in force: which threshold holds for which sensor in the condition that its machine runs in.
//!
//! Kept in `<data-dir>/baselines/<machine, hexadecimal>.json`: `{"conditions": …, "baseline": …}`, written to a new file, synced,
//! renamed, folder synced, before it comes into force. `conditions` names the operating conditions by their meaning: when the settings
//! change a range, what was learnt in the old one is no longer used. A file that cannot be read is told and left alone; the thresholds
//! of the bundles hold then.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::baseline::{Baseline, SensorBaseline};
use edge_core::operation::{Current, Holding, OperatingCondition, Operation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shared_proto::model::{MachineId, SensorId};
use tracing::{error, warn};

use crate::analysis::Learnt;
use crate::config::Settings;
use crate::durable;
use crate::scoring::metadata::BundleMetadata;

/// Hexadecimal digits that name a machine's conditions.
const CONDITIONS_DIGITS: usize = 12;

/// How one machine is told apart in its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineConditions {
    /// Its conditions; none: it has one baseline.
    pub conditions: Vec<OperatingCondition>,
    /// How long a reading counts.
    pub stale_after: Duration,
    /// Sensors that a model scores, and its name.
    pub scored: Vec<(SensorId, String)>,
}

impl MachineConditions {
    /// Of every machine of the settings.
    #[must_use]
    pub fn of(settings: &Settings) -> BTreeMap<MachineId, Self> {
        let machines = settings.machines.iter().map(|machine| {
            let conditions = machine.conditions.iter().map(Into::into).collect();
            let stale_after = machine.conditions_stale_after;
            let scored = machine.scored_sensors.iter();
            let scored = scored.map(|by| (by.sensor.clone(), by.model.clone())).collect();
            (machine.id.clone(), Self { conditions, stale_after, scored })
        });
        machines.collect()
    }

    /// Names what the conditions mean, so that a baseline of others is noticed.
    #[must_use]
    pub fn version(&self) -> String {
        let mut hash = Sha256::new();
        for condition in &self.conditions {
            hash.update(format!("{}:", condition.name));
            for range in &condition.ranges {
                hash.update(format!("{}[{:?},{:?});", range.sensor, range.min, range.max));
            }
        }
        let mut text: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        text.truncate(CONDITIONS_DIGITS);
        text
    }
}

/// A baseline with the conditions that it was learnt in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptBaseline {
    /// [`MachineConditions::version`].
    pub conditions: String,
    /// What was learnt.
    pub baseline: Baseline,
}

/// What is kept of all machines.
pub type Baselines = BTreeMap<MachineId, Arc<KeptBaseline>>;

struct Calibrated {
    settings: MachineConditions,
    version: String,
    operation: Operation,
    kept: Option<Arc<KeptBaseline>>,
}

/// The machines' conditions and baselines. Each path has one and sees the same readings.
#[derive(Default)]
pub struct Calibration {
    machines: BTreeMap<MachineId, Calibrated>,
    /// Whose condition a sensor tells.
    of_sensor: BTreeMap<SensorId, MachineId>,
}

impl Calibration {
    /// Machines of the settings with what is known of them.
    #[must_use]
    pub fn new(settings: &Settings, kept: &Baselines) -> Self {
        let mut this = Self::default();
        this.replace(MachineConditions::of(settings));
        for kept in kept.values() {
            this.set_baseline(Arc::clone(kept));
        }
        this
    }

    /// Takes other settings. A machine whose conditions are as before keeps what it has heard; each keeps its baseline, which
    /// is used only in the conditions it was learnt in. Answers with the machines that changed.
    pub fn replace(&mut self, machines: BTreeMap<MachineId, MachineConditions>) -> Vec<MachineId> {
        let mut before = std::mem::take(&mut self.machines);
        let mut changed = Vec::new();
        for (id, settings) in machines {
            let kept = match before.remove(&id) {
                Some(known) if known.settings == settings => {
                    self.machines.insert(id, known);
                    continue;
                }
                Some(known) => known.kept,
                None => None,
            };
            changed.push(id.clone());
            match Operation::new(settings.conditions.clone(), settings.stale_after) {
                Ok(operation) => {
                    let version = settings.version();
                    self.machines.insert(id, Calibrated { settings, version, operation, kept });
                }
                // The settings were validated.
                Err(faults) => error!(machine_id = %id, ?faults, "operating conditions refused"),
            }
        }
        changed.extend(before.into_keys());
        let told = self.machines.iter().flat_map(|(id, machine)| {
            machine.operation.sensors().map(move |sensor| (sensor.clone(), id.clone()))
        });
        self.of_sensor = told.collect();
        changed
    }

    /// Puts a baseline in force.
    pub fn set_baseline(&mut self, kept: Arc<KeptBaseline>) {
        let Some(machine) = self.machines.get_mut(&kept.baseline.machine_id) else { return };
        if machine.kept.as_ref() == Some(&kept) {
            return;
        }
        if machine.version != kept.conditions {
            warn!(machine_id = %kept.baseline.machine_id, "what was learnt is of other operating conditions and not used: learn again");
        }
        machine.kept = Some(kept);
    }

    /// Whether readings of this sensor tell the condition of a machine.
    #[must_use]
    pub fn uses(&self, sensor: &SensorId) -> bool {
        self.of_sensor.contains_key(sensor)
    }

    /// Takes a reading. Allocates nothing.
    pub fn handle_reading(&mut self, sensor: &SensorId, value: f64, now: Instant) {
        let machine = self.of_sensor.get(sensor).and_then(|id| self.machines.get_mut(id));
        if let Some(machine) = machine {
            machine.operation.handle_reading(sensor, value, now);
        }
    }

    /// The condition in which a machine runs.
    #[must_use]
    pub fn current(&self, machine_id: &MachineId, now: Instant) -> Current<'_> {
        self.machines
            .get(machine_id)
            .map_or(Current::Unknown, |machine| machine.operation.current(now))
    }

    /// Begins to notice when the condition of a machine changes, for [`Self::holding`].
    pub fn follow(&mut self, machine_id: &MachineId, now: Instant) {
        if let Some(machine) = self.machines.get_mut(machine_id) {
            machine.operation.follow(now);
        }
    }

    /// Ends what [`Self::follow`] began.
    pub fn unfollow(&mut self, machine_id: &MachineId) {
        if let Some(machine) = self.machines.get_mut(machine_id) {
            machine.operation.unfollow();
        }
    }

    /// The condition in which a machine that is followed runs, and for which time its sensors vouch for it.
    #[must_use]
    pub fn holding(&self, machine_id: &MachineId, now: Instant) -> Option<Holding<'_>> {
        self.machines.get(machine_id)?.operation.holding(now)
    }

    /// What is usual of a sensor in the condition that its machine runs in.
    #[must_use]
    pub fn usual(
        &self,
        machine_id: &MachineId,
        sensor: &SensorId,
        now: Instant,
    ) -> Option<&SensorBaseline> {
        let machine = self.machines.get(machine_id)?;
        let kept = machine.kept.as_ref().filter(|kept| kept.conditions == machine.version)?;
        let condition = machine.operation.current(now).name()?;
        kept.baseline.conditions.get(condition)?.get(sensor)
    }

    /// The threshold of a sensor, scored by this model, in the condition that its machine runs in. Where nothing was learnt in that condition,
    /// or none is known, a model of a shape has its own threshold; that of a level says nothing of this machine, and the highest one
    /// learnt holds.
    #[must_use]
    pub fn learnt(
        &self,
        machine_id: &MachineId,
        sensor: &SensorId,
        metadata: &BundleMetadata,
        now: Instant,
    ) -> Option<Learnt<'_>> {
        let usual = self.usual(machine_id, sensor, now).or_else(|| {
            metadata.commissioning.filter(|it| it.judges_level)?;
            let sensors = self.baseline(machine_id)?.conditions.values();
            sensors
                .filter_map(|sensors| sensors.get(sensor))
                .max_by(|left, right| left.threshold_logit.total_cmp(&right.threshold_logit))
        })?;
        let (model_sha256, threshold_logit) = (usual.model_sha256.as_str(), usual.threshold_logit);
        let learnt = Learnt { model_sha256, threshold_logit };
        (model_sha256 == metadata.model_sha256).then_some(learnt)
    }

    /// Conditions of a machine by name, with their version, and the sensors that a model scores.
    #[must_use]
    pub fn conditions(&self, machine_id: &MachineId) -> Option<(Vec<String>, &str, Vec<SensorId>)> {
        let machine = self.machines.get(machine_id)?;
        let scored = machine.settings.scored.iter().map(|(sensor, _)| sensor.clone());
        Some((machine.operation.names(), &machine.version, scored.collect()))
    }

    /// What was learnt of a machine last, in these conditions.
    #[must_use]
    pub fn baseline(&self, machine_id: &MachineId) -> Option<&Baseline> {
        let machine = self.machines.get(machine_id)?;
        let kept = machine.kept.as_ref().filter(|kept| kept.conditions == machine.version)?;
        Some(&kept.baseline)
    }
}

/// Folder of the baselines.
#[derive(Clone, Debug)]
pub struct BaselineFolder(PathBuf);

impl BaselineFolder {
    /// The folder, which the first baseline makes.
    #[must_use]
    pub fn at(data_dir: &Path) -> Self {
        Self(data_dir.join("baselines"))
    }

    /// What is kept of these machines; what cannot be read is told. Blocks.
    #[must_use]
    pub fn read_all(&self, machines: &[MachineId]) -> Baselines {
        let read = machines.iter().filter_map(|machine_id| match self.read(machine_id) {
            Ok(kept) => Some((machine_id.clone(), Arc::new(kept?))),
            Err(reason) => {
                error!(%machine_id, reason, "what was learnt of this machine cannot be read: thresholds of the models hold; learn again");
                None
            }
        });
        read.collect()
    }

    /// What is kept of a machine. Blocks.
    ///
    /// # Errors
    /// There is a file, and it cannot be read.
    pub fn read(&self, machine_id: &MachineId) -> Result<Option<KeptBaseline>, String> {
        use edge_core::baseline::BASELINE_BYTES_MAX;

        let path = self.path(machine_id);
        let failed = |reason: String| format!("{}: {reason}", path.display());
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
            Ok(found) if found.len() > BASELINE_BYTES_MAX as u64 => {
                return Err(failed(format!("is longer than {BASELINE_BYTES_MAX} bytes")));
            }
            Ok(_) => fs::read(&path).map_err(|error| failed(error.to_string()))?,
        };
        let kept: KeptBaseline =
            serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        kept.baseline.validate().map_err(|error| failed(error.to_string()))?;
        if kept.baseline.machine_id != *machine_id {
            return Err(failed(format!("is of machine {}", kept.baseline.machine_id)));
        }
        Ok(Some(kept))
    }

    /// Keeps a baseline in place of the one before. Blocks.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, kept: &KeptBaseline) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        durable::replace(&self.path(&kept.baseline.machine_id), &serde_json::to_vec(kept)?)
    }

    fn path(&self, machine_id: &MachineId) -> PathBuf {
        let name: String = machine_id.as_str().bytes().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name).with_extension("json")
    }
}

#[cfg(test)]
mod tests;
