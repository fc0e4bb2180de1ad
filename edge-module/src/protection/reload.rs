//! What the stop path shares with the rest beside its sinks: it tells of trips, so that the samples around them are kept,
//! and takes other settings while it runs. New interlocks are built elsewhere and come ready: putting them in force is a
//! swap between two inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::interlock::{Interlock, TripCause};
use shared_proto::model::{MachineId, SensorId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::remote::RemoteOrder;
use super::{NotKept, Protection};
use crate::actuation::TaskEnd;
use crate::admin::Part;
use crate::backlog::Pieces;
use crate::calibration::{Baselines, KeptBaseline, MachineConditions};
use crate::config::{Actuator, Learning, ScoredBy};
use crate::kafka::now;
use crate::latch::RestoredLatch;
use crate::models::{ModelOrder, NewModel, Trouble};
use crate::mqtt::sensors::SensorSessions;
use crate::recording::SnapshotRequest;
use crate::telemetry;

/// Bounded channels to and from the stop path. It never waits on them.
pub struct Links {
    /// Tells the recording path of trips.
    pub snapshots: mpsc::Sender<SnapshotRequest>,
    /// Other settings.
    pub settings: mpsc::Receiver<NewMachines>,
    /// Other models.
    pub models: mpsc::Receiver<ModelOrder>,
    /// Models that do not do.
    pub troubles: mpsc::Sender<Trouble>,
    /// What was learnt, to be kept.
    pub baselines: mpsc::Sender<KeptBaseline>,
    /// What was kept, or could not be.
    pub kept: mpsc::Receiver<Result<Arc<KeptBaseline>, NotKept>>,
    /// What people want from afar.
    pub orders: mpsc::Receiver<RemoteOrder>,
    /// Readings from inputs of a hub.
    pub inputs: mpsc::Receiver<Pieces>,
}

/// What is to be put in force.
pub(super) enum Change {
    Machines(Box<NewMachines>),
    Model(ModelOrder),
    Baseline(Result<Arc<KeptBaseline>, NotKept>),
    Order(RemoteOrder),
    Input(Pieces),
}

/// A model under watch.
pub(super) struct WatchedModel {
    pub(super) name: String,
    /// How long a window may take.
    budget: Duration,
}

/// Other machines, ready to be put in force.
pub struct NewMachines {
    /// Machines that were not protected before, with what is known of their latches.
    pub added: Vec<(Interlock, Option<RestoredLatch>)>,
    /// Machines whose rules changed.
    pub replaced: Vec<Interlock>,
    /// Machines to be protected no more.
    pub removed: Vec<MachineId>,
    /// Machines that are to be stopped over other paths.
    pub rewired: Vec<MachineId>,
    /// Sensors of all machines.
    pub machine_of_sensor: BTreeMap<SensorId, MachineId>,
    /// How sensors are scored.
    pub scored: BTreeMap<SensorId, ScoredBy>,
    /// Operating conditions of all machines.
    pub conditions: BTreeMap<MachineId, MachineConditions>,
    /// What is kept of all machines.
    pub baselines: Baselines,
    /// How machines are learnt.
    pub learning: Learning,
    /// Whether models, conditions or learning are others than before.
    pub is_learnt_otherwise: bool,
    /// Sensors with a limit on a band of their spectrum.
    pub band_limited: BTreeSet<SensorId>,
    /// Paths of all machines.
    pub paths: BTreeMap<MachineId, Vec<Actuator>>,
    /// Whether they are in force, or which machines are tripped and cannot be removed, or stopped over other paths.
    pub answer: oneshot::Sender<Result<(), Vec<MachineId>>>,
}

impl NewMachines {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let of_rules = self.added.is_empty() && self.replaced.is_empty();
        let of_machines = of_rules && self.removed.is_empty() && self.rewired.is_empty();
        of_machines && !self.is_learnt_otherwise
    }
}

/// The next settings, model or readings, if anybody may send some.
pub(super) async fn next_change(links: &mut Option<Links>) -> Option<Change> {
    let links = links.as_mut()?;
    tokio::select! {
        Some(machines) = links.settings.recv() => Some(Change::Machines(Box::new(machines))),
        Some(model) = links.models.recv() => Some(Change::Model(model)),
        Some(kept) = links.kept.recv() => Some(Change::Baseline(kept)),
        Some(order) = links.orders.recv() => Some(Change::Order(order)),
        Some(pieces) = links.inputs.recv() => Some(Change::Input(pieces)),
        else => None,
    }
}

impl Protection {
    /// A stop path that tells of trips and takes other settings.
    #[must_use]
    pub fn linked(mut self, links: Links) -> Self {
        self.links = Some(links);
        self
    }

    /// Puts other settings in force, all or none.
    pub(super) fn apply_settings(
        &mut self,
        change: NewMachines,
        sensors: &mut SensorSessions,
        tasks: &mut JoinSet<TaskEnd>,
    ) {
        let NewMachines { added, replaced, removed, rewired, answer, .. } = change;
        if answer.is_closed() {
            // Whoever asked has given up and told so.
            return;
        }
        let is_tripped =
            |id: &&MachineId| self.interlocks.get(*id).is_some_and(Interlock::is_tripped);
        let concerned = removed.iter().chain(&rewired);
        let tripped: Vec<MachineId> = concerned.filter(is_tripped).cloned().collect();
        if !tripped.is_empty() {
            drop(answer.send(Err(tripped)));
            return;
        }
        for machine_id in &removed {
            self.remove_machine(machine_id);
        }
        self.backlog.set_watched(change.machine_of_sensor.keys().cloned().collect());
        self.machine_of_sensor = change.machine_of_sensor;
        let changed = self.calibration.replace(change.conditions);
        self.stop_learning(&changed);
        for kept in change.baselines.into_values() {
            self.sinks.board.show_baseline(&kept.baseline);
            self.calibration.set_baseline(kept);
        }
        self.learning = change.learning;
        self.analysis.set_scored(change.scored);
        self.analysis.set_band_limited(change.band_limited);
        sensors.replace(change.paths.keys(), tasks);
        self.sinks.board.set(Part::Protection, sensors.health());
        self.actuation.replace(change.paths, tasks);
        for mut interlock in replaced {
            let machine_id = interlock.machine_id().clone();
            let previous = self.interlocks.remove(&machine_id);
            let actions = previous.map(|previous| interlock.take_over(previous, super::moment()));
            self.interlocks.insert(machine_id.clone(), interlock);
            self.perform(&machine_id, actions.unwrap_or_default(), Instant::now());
            // Also without an action: other rules have another version, and may be dry.
            self.publish_latch(&machine_id);
        }
        for (interlock, latch) in added {
            let machine_id = interlock.machine_id().clone();
            self.interlocks.insert(machine_id.clone(), interlock);
            // Nobody may read "armed" of a machine whose trip is still latched.
            self.restore(latch.into_iter().collect());
            self.publish_latch(&machine_id);
        }
        info!(machines = self.interlocks.len(), "other settings in force on the stop path");
        drop(answer.send(Ok(())));
    }

    /// Puts a model in force, without losing a window.
    pub(super) fn apply_model(&mut self, order: ModelOrder) {
        let NewModel { name, bundle, scorer, budget, answer } = match order {
            ModelOrder::Set(model) => model,
            ModelOrder::Remove(name) => {
                self.watched_models.retain(|watched| watched.name != name);
                return self.analysis.remove_model(&name);
            }
        };
        if answer.is_closed() {
            // Whoever asked has given up and told so.
            return;
        }
        // What is being learnt of the model before says nothing of this one.
        self.stop_learning(&self.learning());
        for (sensor, machine_id) in &self.machine_of_sensor {
            let learnt = self.calibration.baseline(machine_id).is_some_and(|baseline| {
                let sensors = baseline.conditions.values().filter_map(|it| it.get(sensor));
                sensors.into_iter().any(|it| it.model_sha256 != bundle.metadata().model_sha256)
            });
            if learnt && self.analysis.is_scored_by(sensor, &name) {
                warn!(%machine_id, %sensor, model = bundle.identity(), "what was learnt is of another model and not used: learn again");
            }
        }
        self.analysis.set_model(&name, bundle, scorer);
        self.watched_models.retain(|watched| watched.name != name);
        self.watched_models.extend(budget.map(|budget| WatchedModel { name, budget }));
        if answer.send(()).is_err() {
            warn!("a model came into force after whoever asked for it had given up");
        }
    }

    /// Tells of models under watch that are too slow here. Each is told once.
    pub(super) fn watch_models(&mut self) {
        let Some(links) = &self.links else { return };
        let analysis = &self.analysis;
        self.watched_models.retain(|WatchedModel { name, budget }| {
            let Some(latency) = analysis.latency(name).filter(|it| it.is_over(*budget)) else {
                return true;
            };
            let summary = latency.summary();
            let detail = format!(
                "of the last {} windows one half took over {} us, one in a hundred over {} us; model.latency-budget is {budget:?} for nine in ten",
                summary.windows, summary.p50_micros, summary.p99_micros
            );
            let trouble = Trouble { name: name.clone(), cause: "latency", detail };
            links.troubles.try_send(trouble).is_err()
        });
    }

    fn remove_machine(&mut self, machine_id: &MachineId) {
        self.interlocks.remove(machine_id);
        self.unsaved.remove(machine_id);
        self.refused.remove(machine_id);
        self.refused_at.remove(machine_id);
        self.learn_asked_at.remove(machine_id);
        self.waiting_events.extend(self.trips.remove(machine_id).and_then(|trip| trip.event));
        super::show_machine(machine_id, false, false);
        self.sinks.board.forget_latch(machine_id);
    }

    /// Tells the recording path, which has seen the same samples, to keep those around this moment.
    pub(super) fn ask_for_snapshot(
        &self,
        machine_id: &MachineId,
        trip_id: &str,
        cause: Option<&TripCause>,
        is_alarm: bool,
    ) {
        let Some(links) = &self.links else { return };
        let request = SnapshotRequest {
            machine_id: machine_id.clone(),
            trip_id: trip_id.to_owned(),
            is_alarm,
            cause: cause.cloned(),
            time: now(),
        };
        if links.snapshots.try_send(request).is_err() {
            metrics::counter!(telemetry::WAVEFORM_SNAPSHOTS_DROPPED, "reason" => "queue-full")
                .increment(1);
            warn!(%machine_id, trip_id, "no samples are kept around this trip: waveforms.queue-length is too short");
        }
    }
}
