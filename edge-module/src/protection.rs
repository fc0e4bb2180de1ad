//! The stop path: sample, window, features and score, interlock, actuator. One thread, its own runtime, its own broker
//! sessions; nothing here waits for storage or Kafka.
//!
//! What it owes to others it hands over without waiting: machine events to the journal and latches to their files go into
//! bounded queues; events that do not fit are kept here, the oldest dropped and counted past `event-queue-length`.

mod commissioning;
mod inputs;
mod reload;
mod remote;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use edge_core::features::Features;
use edge_core::interlock::{
    Action, Interlock, LatchSnapshot, Moment, ResetRefused, ShelveRequest, StopProgress, TripCause,
};
use shared_proto::model::{
    MachineEvent, MachineEventDetails, MachineEventType, MachineId, Quality, SensorId,
    WaveformBlock,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::actuation::messages::{RefusedRequest, ShownLatch};
use crate::actuation::{Actuation, PathReport, TaskEnd, Told};
use crate::admin::{Part, QuietBoard};
use crate::analysis::{Analysis, Depth, Judged, judge_block};
use crate::backlog::{Backlog, Piece, Pieces};
use crate::calibration::{Baselines, Calibration};
use crate::config::{AfterRestart, Learning, Settings};
use crate::kafka::now;
use crate::latch::RestoredLatch;
use crate::mqtt::sensors::{SensorEvent, SensorSessions};
use crate::scoring::{Bundle, Models};
use crate::telemetry;
use commissioning::Runs;
use reload::{Change, WatchedModel};
use report::cause_details;

pub use commissioning::NotKept;
pub use reload::{Links, NewMachines};
pub use remote::{RemoteAnswer, RemoteOrder, RemoteWish};

/// The longest sleep of the loop: a deadline that is missed by a bug is missed by no more than this.
const TIMEOUT_MAX: Duration = Duration::from_millis(500);
/// Refused requests of a machine's operators are told at most this often; each is counted.
const REFUSAL_INTERVAL: Duration = Duration::from_millis(500);
/// What a sensor sends in vain is logged at most this often; each is counted.
const MISMATCH_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Features told with a trip that a score brought about.
const CONTRIBUTIONS_MAX: usize = 8;
/// The longest time for which messages are taken in before one unit of what waits is done.
const TAKE_IN_MAX: Duration = Duration::from_millis(1);

/// Everything that the stop path decides with; performs through [`Actuation`].
pub struct Protection {
    backlog: Backlog,
    analysis: Analysis,
    interlocks: BTreeMap<MachineId, Interlock>,
    machine_of_sensor: BTreeMap<SensorId, MachineId>,
    actuation: Actuation,
    sinks: Sinks,
    waiting_events: VecDeque<MachineEvent>,
    event_queue_length: usize,
    trips: BTreeMap<MachineId, OpenTrip>,
    heartbeats: u64,
    /// A stop waits for the tasks that write it.
    is_stop_queued: bool,
    /// Name of the path whose report is being handled.
    confirming_path: String,
    /// Machines whose latch waits for room in its queue.
    unsaved: BTreeSet<MachineId>,
    /// The last request of a person that was refused, if none was granted since.
    refused: BTreeMap<MachineId, RefusedRequest>,
    /// When a refusal of each machine was told last.
    refused_at: BTreeMap<MachineId, Instant>,
    mismatch_logged: Option<Instant>,
    links: Option<Links>,
    /// Models that came into force a short time ago.
    watched_models: Vec<WatchedModel>,
    /// What was learnt of the machines.
    calibration: Calibration,
    /// Machines that are being learnt.
    runs: Runs,
    learning: Learning,
    /// When learning of a machine was begun or ended last by request.
    learn_asked_at: BTreeMap<MachineId, Instant>,
    /// Features of the last window of each sensor that voted.
    abnormal: BTreeMap<SensorId, Features>,
}

/// Where decisions are told.
pub struct Sinks {
    /// Machine events, to the journal.
    pub events: mpsc::Sender<MachineEvent>,
    /// Latches, to their files.
    pub latches: SyncSender<LatchSnapshot>,
    /// Pages for operators.
    pub board: QuietBoard,
}

/// A trip whose latency is being taken; its event leaves when the command is on the socket.
struct OpenTrip {
    received: Instant,
    event: Option<MachineEvent>,
}

impl Protection {
    /// Arms the interlocks, or restores their latches.
    ///
    /// # Errors
    /// An interlock's settings, which were validated before, are refused.
    pub fn new(
        settings: &Settings,
        (models, baselines): (&Models, &Baselines),
        restored: Vec<RestoredLatch>,
        actuation: Actuation,
        sinks: Sinks,
    ) -> anyhow::Result<Self> {
        let mut interlocks = BTreeMap::new();
        let mut machine_of_sensor = BTreeMap::new();
        for machine in &settings.machines {
            let interlock_settings = settings.interlock(machine);
            let interlock = Interlock::new(machine.id.clone(), interlock_settings, Instant::now())
                .map_err(|faults| anyhow::anyhow!("machine {}: {faults:?}", machine.id))?;
            for sensor in interlock.sensors().chain(machine.condition_sensors()) {
                machine_of_sensor.insert(sensor.clone(), machine.id.clone());
            }
            if interlock.is_dry_run() {
                warn!(machine_id = %machine.id, "dry run: judged and reported, not stopped");
            }
            interlocks.insert(machine.id.clone(), interlock);
        }
        let watched = machine_of_sensor.keys().cloned().collect();
        let mut this = Self {
            backlog: Backlog::new(settings, watched),
            analysis: Analysis::new(settings, models),
            interlocks,
            machine_of_sensor,
            actuation,
            sinks,
            waiting_events: VecDeque::new(),
            event_queue_length: settings.protection.event_queue_length,
            trips: BTreeMap::new(),
            heartbeats: 0,
            is_stop_queued: false,
            confirming_path: String::new(),
            unsaved: BTreeSet::new(),
            refused: BTreeMap::new(),
            refused_at: BTreeMap::new(),
            mismatch_logged: None,
            links: None,
            watched_models: Vec::new(),
            calibration: Calibration::new(settings, baselines),
            runs: Runs::new(),
            learning: settings.learning.clone(),
            learn_asked_at: BTreeMap::new(),
            abnormal: BTreeMap::new(),
        };
        this.restore(restored);
        match settings.protection.after_restart {
            AfterRestart::Latched => {}
            AfterRestart::Tripped => this.start_tripped(),
        }
        Ok(this)
    }

    /// A person must release each machine after a restart.
    fn start_tripped(&mut self) {
        let received = Instant::now();
        for machine_id in self.interlocks.keys().cloned().collect::<Vec<_>>() {
            let Some(interlock) = self.interlocks.get_mut(&machine_id) else { continue };
            let actions = interlock.handle_restart(moment());
            self.perform(&machine_id, actions, received);
        }
    }

    fn restore(&mut self, restored: Vec<RestoredLatch>) {
        let received = Instant::now();
        for latch in restored {
            let (machine_id, actions) = match latch {
                RestoredLatch::Known(snapshot) => {
                    let machine_id = snapshot.machine_id.clone();
                    let Some(interlock) = self.interlocks.get_mut(&machine_id) else { continue };
                    (machine_id, interlock.restore(*snapshot, moment()))
                }
                RestoredLatch::Unknown(machine_id) => {
                    let Some(interlock) = self.interlocks.get_mut(&machine_id) else { continue };
                    (machine_id, interlock.handle_unknown_latch(moment()))
                }
            };
            if !actions.is_empty() {
                warn!(%machine_id, "latch of the previous run is in force");
            }
            self.perform(&machine_id, actions, received);
        }
    }

    /// Runs until `stop`, or until one of the `tasks` ends that was not dismissed, which none does by itself.
    pub async fn run(
        mut self,
        mut sensors: SensorSessions,
        mut machine_side: mpsc::Receiver<PathReport>,
        mut tasks: JoinSet<TaskEnd>,
        heartbeat_interval: Duration,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut heartbeat = tokio::time::interval(heartbeat_interval);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for machine_id in self.interlocks.keys().cloned().collect::<Vec<_>>() {
            self.publish_latch(&machine_id);
        }
        self.sinks.board.set(Part::Protection, sensors.health());
        while !*stop.borrow() {
            let deadline = self.next_timeout();
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                Some(ended) = tasks.join_next() => match ended {
                    Ok(TaskEnd::Dismissed) => {}
                    Ok(TaskEnd::Unexpected) | Err(_) => {
                        error!("a session of the stop path has ended");
                        return;
                    }
                },
                _ = heartbeat.tick() => {
                    self.send_heartbeats();
                    self.watch_models();
                    if !self.runs.is_empty() {
                        self.show_learning();
                    }
                }
                Some(change) = reload::next_change(&mut self.links) => match change {
                    Change::Machines(change) => {
                        self.apply_settings(*change, &mut sensors, &mut tasks);
                    }
                    Change::Model(model) => self.apply_model(model),
                    Change::Baseline(kept) => self.handle_kept(kept),
                    Change::Order(order) => self.handle_order(order),
                    Change::Input(pieces) => self.handle_input(pieces),
                },
                Some(report) = machine_side.recv() => self.handle_path(report),
                event = sensors.recv() => self.handle_sensors(event),
                () = std::future::ready(()), if !self.backlog.is_empty() => {}
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
            self.take_in(&mut sensors, &mut machine_side);
            self.handle_timeouts();
            self.hand_over_events();
            self.hand_over_latches();
            self.sinks.board.hand_over();
            self.actuation.show_health();
            if std::mem::take(&mut self.is_stop_queued) || !self.backlog.is_empty() {
                // The sessions write what was ordered and read what has come.
                tokio::task::yield_now().await;
            }
        }
        info!("stop path ends; the machine side must take our silence as a trip");
    }

    /// Takes what is there already, for a bounded time, then does one unit of what waits.
    fn take_in(
        &mut self,
        sensors: &mut SensorSessions,
        machine_side: &mut mpsc::Receiver<PathReport>,
    ) {
        let until = Instant::now() + TAKE_IN_MAX;
        while !self.is_stop_queued && Instant::now() < until {
            let (report, event) = (machine_side.try_recv(), sensors.try_recv());
            if report.is_err() && event.is_none() {
                break;
            }
            if let Ok(report) = report {
                self.handle_path(report);
            }
            if let Some(event) = event {
                self.handle_sensors(event);
            }
        }
        if !self.is_stop_queued
            && let Some(pieces) = self.backlog.take_next()
        {
            self.judge(pieces);
        }
        metrics::gauge!(telemetry::PROTECTION_BACKLOG).set(self.backlog.len() as f64);
    }

    fn next_timeout(&self) -> Instant {
        let latest = Instant::now() + TIMEOUT_MAX;
        self.interlocks
            .values()
            .filter_map(Interlock::poll_timeout)
            .chain(self.next_learning_timeout())
            .min()
            .map_or(latest, |at| at.min(latest))
    }

    fn handle_timeouts(&mut self) {
        let now = Instant::now();
        self.handle_learning_timeouts(now);
        let due: Vec<MachineId> = self
            .interlocks
            .iter()
            .filter(|(_, interlock)| interlock.poll_timeout().is_some_and(|at| at <= now))
            .map(|(machine_id, _)| machine_id.clone())
            .collect();
        for machine_id in due {
            let Some(interlock) = self.interlocks.get_mut(&machine_id) else { continue };
            let actions = interlock.handle_timeout(moment());
            self.perform(&machine_id, actions, now);
        }
    }

    fn handle_sensors(&mut self, event: SensorEvent) {
        match event {
            SensorEvent::Health(health) => self.sinks.board.set(Part::Protection, health),
            SensorEvent::Message { publish, received } => {
                metrics::counter!(telemetry::MQTT_MESSAGES, "session" => "protection").increment(1);
                // What the broker kept from before is no ground to stop a machine now.
                if !publish.retain {
                    for pieces in self.backlog.add(publish, received) {
                        self.judge(pieces);
                    }
                }
            }
        }
    }

    fn judge(&mut self, pieces: Pieces) {
        let received = pieces.received;
        for piece in pieces.pieces {
            match piece {
                // What a producer sends from its memory says nothing of the machine now: it neither stops nor clears.
                Piece::Reading(reading) if reading.historical => {
                    metrics::counter!(telemetry::INPUT_NOT_JUDGED, "reason" => "historical")
                        .increment(1);
                }
                Piece::Reading(reading) => {
                    if reading.quality != Some(Quality::Bad) {
                        let (sensor, value) = (&reading.sensor_id, reading.value);
                        self.calibration.handle_reading(sensor, value, received);
                    }
                    self.judge_one(&reading.sensor_id, received, |interlock, now| {
                        interlock.handle_reading(&reading.sensor_id, &reading, now)
                    });
                    self.notice_mismatch(&reading.sensor_id, true);
                }
                Piece::Block(block, depth) => {
                    self.judge_block(&block, depth, received);
                    self.notice_mismatch(&block.sensor_id, false);
                }
                // A number that is none is a fault of its sensor.
                Piece::Unusable(sensor) => self.judge_one(&sensor, received, |interlock, now| {
                    interlock.handle_reading(&sensor, f64::NAN, now)
                }),
            }
        }
        if pieces.is_last {
            metrics::histogram!(telemetry::PROTECTION_LATENCY).record(received.elapsed());
        }
    }

    /// Tells of a sensor whose rules look at something else than it sends: it would be watched by nobody, and silent to nobody.
    fn notice_mismatch(&mut self, sensor: &SensorId, is_reading: bool) {
        let machine_id = self.machine_of_sensor.get(sensor);
        if is_reading && self.calibration.uses(sensor) {
            return;
        }
        let Some(interlock) = machine_id.and_then(|id| self.interlocks.get(id)) else { return };
        let is_judged = match is_reading {
            true => interlock.judges_values(sensor),
            false => interlock.judges_blocks(sensor),
        };
        if is_judged {
            return;
        }
        metrics::counter!(telemetry::INPUT_NOT_JUDGED, "reason" => "quantity").increment(1);
        if self.mismatch_logged.is_none_or(|logged| logged.elapsed() > MISMATCH_LOG_INTERVAL) {
            self.mismatch_logged = Some(Instant::now());
            let (sends, remedy) = match is_reading {
                true => ("scalar readings", "quantity = \"value\""),
                false => ("waveform blocks", "a feature as quantity, for example \"rms\""),
            };
            error!(%sensor, machine_id = machine_id.map(MachineId::as_str), sends, remedy, "no rule judges what this sensor sends");
        }
    }

    fn judge_one(
        &mut self,
        sensor: &SensorId,
        received: Instant,
        judge: impl FnOnce(&mut Interlock, Moment) -> Vec<Action>,
    ) {
        let Some(machine_id) = self.machine_of_sensor.get(sensor) else { return };
        let Some(interlock) = self.interlocks.get_mut(machine_id) else { return };
        let actions = judge(interlock, moment());
        if !actions.is_empty() {
            let machine_id = machine_id.clone();
            self.perform(&machine_id, actions, received);
        }
    }

    fn judge_block(&mut self, block: &WaveformBlock, depth: Depth, received: Instant) {
        let Some(machine_id) = self.machine_of_sensor.get(&block.sensor_id).cloned() else {
            return;
        };
        let Some(interlock) = self.interlocks.get_mut(&machine_id) else { return };
        let sensor = &block.sensor_id;
        let (mut windows, mut outcome) = (0, None);
        let (calibration, now) = (&self.calibration, Instant::now());
        let runs = &mut self.runs;
        let abnormal = &mut self.abnormal;
        let seen = |judged: &Judged<'_>| {
            windows += 1;
            if judged.score.is_some_and(|score| score.is_abnormal()) {
                abnormal.insert(sensor.clone(), judged.features().clone());
            }
            let over = commissioning::take_window(runs, &machine_id, sensor, calibration, judged);
            outcome = outcome.take().or(over);
        };
        let analysis = &mut self.analysis;
        let learnt = analysis
            .bundle_of(sensor)
            .and_then(|bundle| calibration.learnt(&machine_id, sensor, bundle.metadata(), now));
        let how = (depth, learnt);
        let (actions, result) = judge_block(analysis, interlock, block, how, moment, seen);
        metrics::counter!(telemetry::PROTECTION_WINDOWS).increment(windows);
        if let Err(error) = result {
            debug!(%sensor, %error, "block not judged");
        }
        if outcome.is_some() {
            let found = self.found_by(&machine_id, &actions);
            self.end_learning_by(&machine_id, found, outcome);
        }
        if !actions.is_empty() {
            self.perform(&machine_id, actions, received);
        }
    }

    fn handle_path(&mut self, report: PathReport) {
        match self.actuation.handle(report) {
            None => {}
            Some(Told::Written { machine_id, at, path }) => {
                self.handle_written(&machine_id, at, &path);
            }
            Some(Told::State { machine_id, state, received, path }) => {
                let Some(interlock) = self.interlocks.get_mut(&machine_id) else { return };
                debug!(%machine_id, state = state.as_str(), path, "machine reports");
                let is_news = interlock.machine_state() != Some(state);
                let actions = interlock.handle_machine_state(state, moment());
                let is_shown = !actions.is_empty();
                self.confirming_path = path;
                self.perform(&machine_id, actions, received);
                if is_news && !is_shown {
                    self.publish_latch(&machine_id);
                }
                self.tell_learner_state(&machine_id, state);
            }
            Some(Told::Reset { machine_id, operator }) => {
                // A refusal was told on the topic that shows the latch.
                drop(self.reset(&machine_id, &operator));
            }
            Some(Told::Shelve { machine_id, request, received }) => {
                self.shelve(&machine_id, &request, received);
            }
            Some(Told::Learn { machine_id, order }) => self.learn(&machine_id, &order),
            Some(Told::Unclear { machine_id, request, reason }) => {
                self.refuse_unclear(&machine_id, request, reason);
            }
            Some(Told::ShowLatches) => {
                for machine_id in self.interlocks.keys().cloned().collect::<Vec<_>>() {
                    self.publish_latch(&machine_id);
                }
            }
        }
    }

    fn shelve(&mut self, machine_id: &MachineId, request: &ShelveRequest, received: Instant) {
        let Some(interlock) = self.interlocks.get_mut(machine_id) else { return };
        let mut actions = Vec::new();
        let result = interlock.shelve(request, moment(), &mut actions);
        if result.is_ok() {
            self.refused.remove(machine_id);
        }
        self.perform(machine_id, actions, received);
        if let Err(refusal) = result {
            let ShelveRequest { operator, rule, .. } = request;
            metrics::counter!(telemetry::INPUT_REFUSED, "reason" => "shelving").increment(1);
            if !self.may_tell_refusal(machine_id) {
                return;
            }
            warn!(%machine_id, operator, rule, reason = %refusal, "shelving refused");
            self.refuse(machine_id, "shelve", operator, refusal.to_string());
        }
    }

    fn reset(&mut self, machine_id: &MachineId, operator: &str) -> Result<(), ResetRefused> {
        let Some(interlock) = self.interlocks.get_mut(machine_id) else {
            return Err(ResetRefused::NotTripped { machine: machine_id.clone() });
        };
        match interlock.reset(moment()) {
            Ok(done) => {
                self.actuation.released(machine_id);
                self.refused.remove(machine_id);
                self.tell_reset(machine_id, operator, done);
                self.publish_latch(machine_id);
                Ok(())
            }
            Err(refusal) => {
                metrics::counter!(telemetry::INPUT_REFUSED, "reason" => "reset").increment(1);
                if self.may_tell_refusal(machine_id) {
                    self.tell_reset_refused(machine_id, operator, &refusal);
                    self.refuse(machine_id, "reset", operator, refusal.to_string());
                }
                Err(refusal)
            }
        }
    }

    /// Performs what an interlock decided. The stop command is the first action and leaves first.
    fn perform(&mut self, machine_id: &MachineId, actions: Vec<Action>, received: Instant) {
        let is_latch_changed = !actions.is_empty();
        let found = self.found_by(machine_id, &actions);
        for action in actions {
            match action {
                Action::SendStop { trip_id, attempt, reach } => {
                    debug!(%machine_id, trip_id, attempt, reach = reach.as_str(), "stop command");
                    self.actuation.stop(machine_id, &trip_id, attempt, reach);
                    self.is_stop_queued = true;
                }
                Action::Trip { trip_id, cause } => {
                    self.open_trip(machine_id, &trip_id, &cause, received)
                }
                Action::StopConfirmed { trip_id, attempts, .. } => {
                    self.confirm_stop(machine_id, &trip_id, attempts, received);
                }
                Action::StopNotConfirmed { trip_id, attempts, is_escalated, after } => {
                    // No path has written the command so far: the trip is reported without that latency.
                    let trip = self.trips.get_mut(machine_id).and_then(|trip| trip.event.take());
                    self.waiting_events.extend(trip);
                    self.tell_not_confirmed(machine_id, trip_id, attempts, is_escalated, after);
                }
                Action::MovedWhileTripped { trip_id, machine_state } => {
                    self.tell_moved(machine_id, trip_id, machine_state);
                }
                Action::SensorFault { sensor, kind } => {
                    self.tell_sensor(machine_id, sensor, kind, true);
                }
                Action::SensorRecovered { sensor, kind } => {
                    self.tell_sensor(machine_id, sensor, kind, false);
                }
                Action::Alarm { cause } => self.tell_alarm(machine_id, &cause, true),
                Action::AlarmCleared { cause } => self.tell_alarm(machine_id, &cause, false),
                Action::TripSuppressed { cause, by } => {
                    self.tell_suppressed(machine_id, &cause, by);
                }
                Action::Shelved { shelved } => self.tell_shelved(machine_id, shelved),
                Action::Unshelved { shelved, by, operator } => {
                    self.tell_unshelved(machine_id, shelved, by, operator);
                }
            }
        }
        if is_latch_changed {
            self.publish_latch(machine_id);
        }
        self.end_learning_by(machine_id, found, None);
    }

    fn open_trip(
        &mut self,
        machine_id: &MachineId,
        trip_id: &str,
        cause: &TripCause,
        received: Instant,
    ) {
        error!(%machine_id, trip_id, cause = cause.as_str(), details = %cause, "trip: stop ordered");
        metrics::counter!(telemetry::INTERLOCK_TRIPS, "cause" => cause.as_str()).increment(1);
        self.ask_for_snapshot(machine_id, trip_id, Some(cause), false);
        let model = cause.sensor().and_then(|sensor| self.analysis.bundle_of(sensor));
        let details = MachineEventDetails {
            model: model.map(Bundle::identity),
            detail: Some(format!("trip {trip_id}")),
            trip_id: Some(trip_id.to_owned()),
            ..cause_details(cause)
        };
        let event = Some(self.event(machine_id, MachineEventType::Trip, details));
        if let Some(before) = self.trips.insert(machine_id.clone(), OpenTrip { received, event }) {
            self.waiting_events.extend(before.event);
        }
    }

    /// A stop is on the socket of a path: the first of a trip completes its event.
    fn handle_written(&mut self, machine_id: &MachineId, written: Instant, path: &str) {
        let Some(trip) = self.trips.get_mut(machine_id) else { return };
        let latency = written.saturating_duration_since(trip.received);
        if let Some(mut event) = trip.event.take() {
            event.details.command_latency_micros = Some(micros(latency));
            event.details.contributions = self.drivers(machine_id, &event);
            let detail = event.details.detail.get_or_insert_default();
            detail.push_str(&format!(", ordered by {path}"));
            metrics::histogram!(telemetry::STOP_COMMAND_LATENCY).record(latency);
            self.waiting_events.push_back(event);
        }
    }

    /// What drove the score that stopped a machine, when the stop is on its way.
    fn drivers(&mut self, machine_id: &MachineId, event: &MachineEvent) -> Option<String> {
        event.details.score?;
        let sensor = event.details.sensor_id.as_ref()?;
        let features = self.abnormal.get(sensor)?;
        let usual = self.calibration.usual(machine_id, sensor, Instant::now());
        let contributions = self.analysis.contributions(sensor, features, usual);
        let largest = contributions.iter().take(CONTRIBUTIONS_MAX);
        let texts = largest.map(|it| format!("{}={:.2}", it.feature, it.logit));
        let text = texts.collect::<Vec<_>>().join(",");
        (!text.is_empty()).then_some(text)
    }

    fn confirm_stop(
        &mut self,
        machine_id: &MachineId,
        trip_id: &str,
        attempts: u32,
        received: Instant,
    ) {
        self.actuation.confirmed(machine_id);
        let path = std::mem::take(&mut self.confirming_path);
        let opened = self.trips.remove(machine_id);
        let latency = opened.as_ref().map(|trip| received.saturating_duration_since(trip.received));
        // The command was confirmed before its write was: the trip's event leaves without that latency.
        self.waiting_events.extend(opened.and_then(|trip| trip.event));
        if let Some(latency) = latency {
            metrics::histogram!(telemetry::STOP_CONFIRMATION_LATENCY).record(latency);
        }
        info!(%machine_id, trip_id, attempts, path, latency_ms = latency.map(|latency| latency.as_millis() as u64), "stop confirmed");
        let details = MachineEventDetails {
            confirmation_latency_micros: latency.map(micros),
            detail: Some(format!("trip {trip_id}, ordered {attempts} times, confirmed by {path}")),
            trip_id: Some(trip_id.to_owned()),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::StopConfirmed, details);
    }

    fn publish_latch(&mut self, machine_id: &MachineId) {
        let Some(interlock) = self.interlocks.get(machine_id) else { return };
        let latch = interlock.snapshot();
        self.show_latch(latch.clone());
        if self.sinks.latches.try_send(latch.clone()).is_err() {
            // Handed over with the next look around, in its newest state.
            self.unsaved.insert(machine_id.clone());
        }
        let not_confirmed =
            latch.trip.as_ref().is_some_and(|trip| trip.stop == StopProgress::NotConfirmed);
        show_machine(machine_id, latch.trip.is_some(), not_confirmed);
        self.sinks.board.show_latch(latch);
        self.count_states();
    }

    fn show_latch(&self, latch: LatchSnapshot) {
        let machine_id = latch.machine_id.clone();
        let refused = self.refused.get(&machine_id).cloned();
        let learning = self.shown_learning(&machine_id);
        let learnt_at = self.calibration.baseline(&machine_id).map(|it| it.learnt_at.to_string());
        let shown = ShownLatch { latch, refused, learning, learnt_at };
        if let Err(error) = self.actuation.show(shown) {
            warn!(%machine_id, %error, "state of the latch not published");
        }
    }

    fn refuse_unclear(&mut self, machine_id: &MachineId, request: &'static str, reason: String) {
        if self.interlocks.contains_key(machine_id) && self.may_tell_refusal(machine_id) {
            warn!(%machine_id, request, reason, "request not understood");
            self.refuse(machine_id, request, "", reason);
        }
    }

    /// A flood of requests must fill neither log nor broker, nor push machine events out: each is counted.
    fn may_tell_refusal(&mut self, machine_id: &MachineId) -> bool {
        let now = Instant::now();
        let told = self.refused_at.get(machine_id);
        let may = told.is_none_or(|told| now.duration_since(*told) >= REFUSAL_INTERVAL);
        if may {
            self.refused_at.insert(machine_id.clone(), now);
        }
        may
    }

    /// Tells whoever asked, on the topic that shows the latch.
    fn refuse(
        &mut self,
        machine_id: &MachineId,
        request: &'static str,
        operator: &str,
        reason: String,
    ) {
        let (operator, at) = (operator.to_owned(), now().to_string());
        let refused = RefusedRequest { request, operator, reason, at };
        self.refused.insert(machine_id.clone(), refused);
        if let Some(interlock) = self.interlocks.get(machine_id) {
            self.show_latch(interlock.snapshot());
        }
    }

    fn count_states(&self) {
        let count = |of: fn(&Interlock) -> usize| self.interlocks.values().map(of).sum::<usize>();
        let tripped = count(|interlock| usize::from(interlock.is_tripped()));
        metrics::gauge!(telemetry::INTERLOCK_TRIPPED).set(tripped as f64);
        let dry_run = count(|interlock| usize::from(interlock.is_dry_run()));
        metrics::gauge!(telemetry::INTERLOCK_DRY_RUN).set(dry_run as f64);
        metrics::gauge!(telemetry::INTERLOCK_SHELVED).set(count(Interlock::shelved_rules) as f64);
        let faults = count(Interlock::sensor_faults);
        metrics::gauge!(telemetry::SENSOR_FAULTS_PRESENT).set(faults as f64);
    }

    fn send_heartbeats(&mut self) {
        self.heartbeats += 1;
        self.actuation.heartbeat(self.heartbeats);
    }

    /// Hands latches that found their queue full to their files, in their newest state.
    fn hand_over_latches(&mut self) {
        for machine_id in std::mem::take(&mut self.unsaved) {
            let Some(interlock) = self.interlocks.get(&machine_id) else { continue };
            if self.sinks.latches.try_send(interlock.snapshot()).is_err() {
                self.unsaved.insert(machine_id);
            }
        }
    }

    /// Hands events to the journal without waiting for it.
    fn hand_over_events(&mut self) {
        while let Some(event) = self.waiting_events.pop_front() {
            match self.sinks.events.try_send(event) {
                Ok(()) => {}
                Err(
                    mpsc::error::TrySendError::Full(event)
                    | mpsc::error::TrySendError::Closed(event),
                ) => {
                    self.waiting_events.push_front(event);
                    break;
                }
            }
        }
        while self.waiting_events.len() > self.event_queue_length {
            if let Some(event) = self.waiting_events.pop_front() {
                metrics::counter!(telemetry::EVENTS_DROPPED).increment(1);
                error!(machine_id = %event.machine_id, event_type = event.event_type.as_str(), "machine event dropped: the journal takes nothing");
            }
        }
    }
}

/// One series for each machine and state.
fn show_machine(machine_id: &MachineId, is_tripped: bool, is_not_confirmed: bool) {
    let states = [
        (telemetry::MACHINE_TRIPPED, is_tripped),
        (telemetry::MACHINE_NOT_CONFIRMED, is_not_confirmed),
    ];
    for (name, is_set) in states {
        metrics::gauge!(name, "machine_id" => machine_id.to_string())
            .set(f64::from(u8::from(is_set)));
    }
}

fn moment() -> Moment {
    Moment { instant: Instant::now(), time: now() }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
