//! The bounded channels between the paths and whoever changes them while they run: settings, models, what was learnt.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edge_core::baseline::Baseline;
use shared_proto::model::MachineEvent;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::{Sources, own_name};
use crate::admin::{Board, Part};
use crate::calibration::{BaselineFolder, KeptBaseline};
use crate::config::{Desired, Settings};
use crate::data_dir::read_patiently;
use crate::hub;
use crate::hub::access::{Access, AccessError};
use crate::hub::preflight::{Preflight, open_secrets};
use crate::hub::telemetry::{Downlink, Uplink, line};
use crate::hub::{INPUT_QUEUE_LENGTH, InputLines, Inputs};
use crate::latch::LatchFolder;
use crate::models::{self, Trouble};
use crate::protection::{self, NotKept, RemoteOrder};
use crate::recording;
use crate::reload::{DesiredLine, DesiredState, ModelWish, Reached, Reloader};

/// Orders and reports about models and baselines that may wait.
const MODEL_QUEUE_LENGTH: usize = 8;
/// Requests of people in the cloud that may wait for the stop path.
const ORDER_QUEUE_LENGTH: usize = 16;

/// Ends of the channels of whoever keeps what was learnt.
pub(super) struct BaselineLines {
    learnt: mpsc::Receiver<KeptBaseline>,
    protection: mpsc::Sender<Result<Arc<KeptBaseline>, NotKept>>,
    recording: mpsc::Sender<Arc<KeptBaseline>>,
}

/// Ends of the channels of whoever manages the models.
pub(super) struct ModelLines {
    pub(super) reached: models::Reached,
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) troubles: mpsc::Receiver<Trouble>,
}

/// Ends of the channels by which other settings reach the paths, and trips the samples around them.
pub(super) struct Lines {
    pub(super) historical_after: watch::Receiver<Duration>,
    pub(super) protection: protection::Links,
    pub(super) recording: recording::Links,
    pub(super) models: ModelLines,
    pub(super) baselines: BaselineLines,
    pub(super) hub: HubLines,
}

/// Ends of the channels of the link to a hub.
pub(super) struct HubLines {
    desired: watch::Sender<Option<Desired>>,
    outcome: watch::Receiver<Option<DesiredState>>,
    orders: mpsc::Sender<RemoteOrder>,
    models: mpsc::Sender<ModelWish>,
    inputs: InputLines,
}

/// Settings have one place in each channel: who sends the next waits for the answer to the one before.
pub(super) fn connect_settings(
    settings: &Settings,
    sources: Sources,
    latches: &LatchFolder,
    events: &mpsc::Sender<MachineEvent>,
    board: &Board,
) -> (Reloader, Lines) {
    let (machines, new_machines) = mpsc::channel(1);
    let (filters, new_filters) = mpsc::channel(1);
    let (new_models, in_new_models) = mpsc::channel(1);
    let (orders, in_orders) = mpsc::channel(MODEL_QUEUE_LENGTH);
    let (troubles, in_troubles) = mpsc::channel(MODEL_QUEUE_LENGTH);
    let (baselines, learnt) = mpsc::channel(MODEL_QUEUE_LENGTH);
    let (kept, in_kept) = mpsc::channel(MODEL_QUEUE_LENGTH);
    let (kept_too, in_kept_too) = mpsc::channel(MODEL_QUEUE_LENGTH);
    let (newest, in_newest) = watch::channel(settings.clone());
    let (requests, snapshots) = mpsc::channel(settings.waveforms.queue_length);
    let (age, historical_after) = watch::channel(settings.kafka.historical_after);
    let reached = Reached {
        protection: machines,
        recording: filters,
        models: newest,
        historical_after: age,
        log_filter: sources.log_filter,
        events: events.clone(),
        board: board.clone(),
    };
    let (desired, in_desired) = watch::channel(None);
    let (out_outcome, outcome) = watch::channel(None);
    let (models, in_models) = mpsc::channel(MODEL_QUEUE_LENGTH);
    let line = DesiredLine { desired: in_desired, outcome: out_outcome, models: in_models };
    let (wishes, in_wishes) = mpsc::channel(ORDER_QUEUE_LENGTH);
    let (judged, in_judged) = mpsc::channel(INPUT_QUEUE_LENGTH);
    let (recorded, in_recorded) = mpsc::channel(INPUT_QUEUE_LENGTH);
    let inputs = InputLines { protection: judged, recording: recorded };
    let (name, latches) = (own_name(settings), latches.clone());
    let Sources { loaded, file, .. } = sources;
    let reloader = Reloader::new(file, loaded, line, latches, name, reached);
    let lines = Lines {
        historical_after,
        protection: protection::Links {
            snapshots: requests,
            settings: new_machines,
            models: in_new_models,
            troubles,
            baselines,
            kept: in_kept,
            orders: in_wishes,
            inputs: in_judged,
        },
        recording: recording::Links {
            snapshots,
            settings: new_filters,
            models: in_orders,
            baselines: in_kept_too,
            inputs: Some(in_recorded),
        },
        baselines: BaselineLines { learnt, protection: kept, recording: kept_too },
        models: ModelLines {
            reached: models::Reached {
                protection: new_models,
                recording: orders,
                events: events.clone(),
                board: board.clone(),
            },
            settings: in_newest,
            troubles: in_troubles,
        },
        hub: HubLines { desired, outcome, orders: wishes, models, inputs },
    };
    (reloader, lines)
}

/// How to reach the hub of the settings; nothing if there shall be no link.
pub(super) fn access(settings: &Settings) -> Result<Option<Access>, AccessError> {
    let access = Access::new(&settings.iot_hub, |name| std::env::var(name).ok())?;
    Ok(access.map(|access| access.kept_in(&settings.device.data_dir)))
}

/// Both ends of the line by which records leave by the hub; the link has one, the forwarder too if that way is used.
pub(super) fn telemetry_line(settings: &Settings) -> (Option<Uplink>, Downlink) {
    let (uplink, downlink) = line(settings.upstream.messages_in_flight_max);
    (settings.upstream.uses_hub().then_some(uplink), downlink)
}

/// A link that cannot be set up is no reason to leave the machines without protection.
pub(super) fn start_link(
    settings: &Settings,
    (lines, downlink): (HubLines, Downlink),
    board: &Board,
    stop: &watch::Sender<bool>,
) -> Option<JoinHandle<()>> {
    let access = access(settings);
    tell_preflight(settings, &access);
    match access {
        Ok(None) => None,
        Ok(Some(access)) => {
            board.set(Part::Hub, Err("connecting".to_owned()));
            let HubLines { desired, outcome, orders, models, inputs } = lines;
            let (inputs, reader) = Inputs::new(settings, inputs);
            tokio::spawn(reader.run());
            let telemetry = (downlink, settings.upstream.output.clone());
            let board = board.clone();
            let links = hub::Links { desired, outcome, orders, models, inputs, telemetry, board };
            let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_nanos());
            let seed = (seed as u64) ^ u64::from(std::process::id());
            let link = hub::Link::new(settings.iot_hub.clone(), access, links, seed);
            Some(tokio::spawn(link.run(stop.subscribe())))
        }
        Err(error) => {
            error!(%error, "no link to a hub; everything else goes on");
            board.set(Part::Hub, Err(error.to_string()));
            None
        }
    }
}

/// Says in the log what `check-config` would say. What a connection finds itself is told again with it.
fn tell_preflight(settings: &Settings, access: &Result<Option<Access>, AccessError>) {
    let Preflight { faults, notes, .. } = Preflight::without_files(settings, access);
    for fault in faults {
        error!("{fault}");
    }
    let (keys, settings) = ("modes of the hub's keys", settings.iot_hub.clone());
    let open = read_patiently(keys, move || open_secrets(&settings)).unwrap_or_default();
    for note in notes.into_iter().chain(open) {
        warn!("{note}");
    }
}

/// Brings what was learnt to the disk, and only then into force.
pub(super) async fn keep_baselines(folder: BaselineFolder, mut lines: BaselineLines) {
    while let Some(kept) = lines.learnt.recv().await {
        let kept = Arc::new(kept);
        let (folder, of_thread) = (folder.clone(), Arc::clone(&kept));
        let written = tokio::task::spawn_blocking(move || folder.write(&of_thread)).await;
        let reason = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("cannot be kept: {error}")),
            Err(panic) => Some(panic.to_string()),
        };
        let told = match reason {
            None => Ok(Arc::clone(&kept)),
            Some(reason) => {
                let Baseline { machine_id, operator, .. } = &kept.baseline;
                let (machine_id, operator) = (machine_id.clone(), operator.clone());
                Err(NotKept { machine_id, operator, reason })
            }
        };
        let is_kept = told.is_ok();
        if lines.protection.send(told).await.is_err() {
            return;
        }
        if is_kept && lines.recording.send(kept).await.is_err() {
            return;
        }
    }
}
