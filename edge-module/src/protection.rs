//! The stop path: sample, window, features and score, interlock, actuator. One thread, its own runtime, its own broker
//! sessions; nothing here waits for storage or Kafka.
//!
//! What it owes to others it hands over without waiting: machine events to the journal and latches to their files go into
//! bounded queues; events that do not fit are kept here, the oldest dropped and counted past `event-queue-length`.

mod report;
mod unusable;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use edge_core::interlock::{
    Action, Interlock, LatchSnapshot, MachineState, Moment, ShelveRequest, StopProgress, StopReach,
    TripCause,
};
use rumqttc::Publish;
use shared_proto::model::{
    DeviceId, MachineEvent, MachineEventDetails, MachineEventType, MachineId, SensorId,
};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::admin::{Board, Part};
use crate::analysis::Analysis;
use crate::config::{AfterRestart, Settings};
use crate::intake::{Input, InputTopics};
use crate::kafka::now;
use crate::latch::RestoredLatch;
use crate::mqtt::actuator::{Actuator, Report, Topics};
use crate::mqtt::source::SessionEvent;
use crate::scoring::Bundle;
use crate::telemetry;
use report::cause_details;

mod reload;

pub use reload::{Links, NewMachines};

/// The longest sleep of the loop: a deadline that is missed by a bug is missed by no more than this.
const TIMEOUT_MAX: Duration = Duration::from_millis(500);

/// Everything that the stop path decides with; performs through [`Actuator`].
pub struct Protection {
    device_id: DeviceId,
    inputs: InputTopics,
    analysis: Analysis,
    model: Option<Arc<str>>,
    interlocks: BTreeMap<MachineId, Interlock>,
    machine_of_sensor: BTreeMap<SensorId, MachineId>,
    actuator: Actuator,
    sinks: Sinks,
    waiting_events: VecDeque<MachineEvent>,
    event_queue_length: usize,
    /// For each publication of ours that is not on the socket yet, what it was.
    unwritten: VecDeque<Option<UnwrittenStop>>,
    trips: BTreeMap<MachineId, OpenTrip>,
    heartbeats: u64,
    /// Machines whose latch waits for room in its queue.
    unsaved: BTreeSet<MachineId>,
    links: Option<Links>,
}

/// Where decisions are told.
pub struct Sinks {
    /// Machine events, to the journal.
    pub events: mpsc::Sender<MachineEvent>,
    /// Latches, to their files.
    pub latches: SyncSender<LatchSnapshot>,
    /// Pages for operators.
    pub board: Board,
}

struct UnwrittenStop {
    machine_id: MachineId,
    received: Instant,
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
        model: Option<&Bundle>,
        restored: Vec<RestoredLatch>,
        client: rumqttc::AsyncClient,
        sinks: Sinks,
    ) -> anyhow::Result<Self> {
        let threshold = model.map_or(1.0, |model| model.threshold().value());
        let mut interlocks = BTreeMap::new();
        let mut machine_of_sensor = BTreeMap::new();
        for machine in &settings.machines {
            let interlock_settings = settings.interlock(machine, threshold);
            let interlock = Interlock::new(machine.id.clone(), interlock_settings, Instant::now())
                .map_err(|faults| anyhow::anyhow!("machine {}: {faults:?}", machine.id))?;
            for sensor in interlock.sensors() {
                machine_of_sensor.insert(sensor.clone(), machine.id.clone());
            }
            if interlock.is_dry_run() {
                warn!(machine_id = %machine.id, "dry run: judged and reported, not stopped");
            }
            interlocks.insert(machine.id.clone(), interlock);
        }
        let topics = Topics::new(&settings.protection, interlocks.keys());
        let mut this = Self {
            device_id: settings.device.id.clone(),
            inputs: InputTopics::new(&settings.mqtt),
            analysis: Analysis::new(settings, model),
            model: model.map(|model| model.identity().into()),
            interlocks,
            machine_of_sensor,
            actuator: Actuator::new(client, topics),
            sinks,
            waiting_events: VecDeque::new(),
            event_queue_length: settings.protection.event_queue_length,
            unwritten: VecDeque::new(),
            trips: BTreeMap::new(),
            heartbeats: 0,
            unsaved: BTreeSet::new(),
            links: None,
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

    /// Runs until `stop`.
    pub async fn run(
        mut self,
        mut sensors: mpsc::Receiver<SessionEvent>,
        mut machine_side: mpsc::Receiver<SessionEvent>,
        heartbeat_interval: Duration,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut heartbeat = tokio::time::interval(heartbeat_interval);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for machine_id in self.interlocks.keys().cloned().collect::<Vec<_>>() {
            self.publish_latch(&machine_id);
        }
        while !*stop.borrow() {
            let deadline = self.next_timeout();
            tokio::select! {
                biased;
                Some(event) = machine_side.recv() => self.handle_machine_side(event),
                Some(change) = reload::next_change(&mut self.links) => self.apply_settings(change),
                Some(event) = sensors.recv() => self.handle_sensors(event),
                () = tokio::time::sleep_until(deadline.into()) => {}
                _ = heartbeat.tick() => self.send_heartbeats(),
                _ = stop.changed() => {}
            }
            self.handle_timeouts();
            self.hand_over_events();
            self.hand_over_latches();
        }
        info!("stop path ends; the machine side must take our silence as a trip");
    }

    fn next_timeout(&self) -> Instant {
        let latest = Instant::now() + TIMEOUT_MAX;
        self.interlocks
            .values()
            .filter_map(Interlock::poll_timeout)
            .min()
            .map_or(latest, |at| at.min(latest))
    }

    fn handle_timeouts(&mut self) {
        let now = Instant::now();
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

    fn handle_sensors(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Connected => self.sinks.board.set(Part::Protection, Ok(())),
            SessionEvent::Disconnected => {
                self.sinks.board.set(Part::Protection, Err("broker not connected".to_owned()));
            }
            SessionEvent::Written => {}
            SessionEvent::Message { publish, received } => {
                metrics::counter!(telemetry::MQTT_MESSAGES, "session" => "protection").increment(1);
                // What the broker kept from before is no ground to stop a machine now.
                if !publish.retain {
                    self.judge(&publish, received);
                    metrics::histogram!(telemetry::PROTECTION_LATENCY).record(received.elapsed());
                }
            }
        }
    }

    /// Refused input is counted and kept by the recording session; here it is passed over.
    fn judge(&mut self, publish: &Publish, received: Instant) {
        match self.inputs.decode(&publish.topic, &publish.payload) {
            Err(error) => {
                debug!(topic = publish.topic, error = %error.detail, "not judged");
                if self.inputs.is_waveform(&publish.topic) {
                    let is_nan = error.reason == "not-finite";
                    let sensor = unusable::sensor_of_block(&publish.payload).filter(|_| is_nan);
                    self.judge_unusable(sensor, received);
                } else {
                    self.judge_unusable(unusable::sensors_of_readings(&publish.payload), received);
                }
            }
            Ok(Input::Readings(readings)) => {
                for element in readings {
                    let Ok(decoded) = element.result else {
                        let sensors = unusable::sensors_of_readings(element.raw);
                        self.judge_unusable(sensors, received);
                        continue;
                    };
                    let reading = decoded.reading;
                    self.judge_one(&reading.sensor_id, received, |interlock, now| {
                        interlock.handle_reading(&reading.sensor_id, &reading, now)
                    });
                }
            }
            Ok(Input::Waveform(block)) => self.judge_block(&block, received),
        }
    }

    /// A number that is none is a fault of its sensor.
    fn judge_unusable(&mut self, sensors: impl IntoIterator<Item = SensorId>, received: Instant) {
        for sensor in sensors {
            self.judge_one(&sensor, received, |interlock, now| {
                interlock.handle_reading(&sensor, f64::NAN, now)
            });
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

    fn judge_block(&mut self, block: &shared_proto::model::WaveformBlock, received: Instant) {
        let Some(machine_id) = self.machine_of_sensor.get(&block.sensor_id).cloned() else {
            return;
        };
        let Some(interlock) = self.interlocks.get_mut(&machine_id) else { return };
        let sensor = &block.sensor_id;
        let mut actions = interlock.handle_block(block, moment());
        let mut windows = 0;
        let result = self.analysis.handle_block(block, |_, features, score| {
            windows += 1;
            let now = moment();
            actions.extend(interlock.handle_features(
                sensor,
                |name| features.get_by_text(name),
                now,
            ));
            if let Some(score) = score {
                actions.extend(interlock.handle_score(sensor, score.value(), now));
            }
        });
        metrics::counter!(telemetry::PROTECTION_WINDOWS).increment(windows);
        if let Err(error) = result {
            debug!(%sensor, %error, "block not judged");
        }
        if !actions.is_empty() {
            self.perform(&machine_id, actions, received);
        }
    }

    fn handle_machine_side(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Connected => {
                self.sinks.board.set(Part::Actuator, Ok(()));
                self.subscribe_added();
                self.order_again();
            }
            SessionEvent::Disconnected => {
                self.unwritten.clear();
                self.sinks.board.set(Part::Actuator, Err("broker not connected".to_owned()));
            }
            SessionEvent::Written => self.handle_written(Instant::now()),
            SessionEvent::Message { publish, received } => {
                match self.actuator.parse(&publish.topic, &publish.payload, publish.retain) {
                    // What the broker kept from before is no answer to a stop that was ordered since.
                    Ok((machine_id, Report::State(MachineState::Stopped))) if publish.retain => {
                        debug!(%machine_id, "retained report of standstill ignored");
                    }
                    Ok((machine_id, report)) => self.handle_report(&machine_id, report, received),
                    Err(error) => {
                        warn!(error = %crate::journal::chain(&error), "report of the machine side ignored");
                        metrics::counter!(telemetry::INPUT_REFUSED, "reason" => "machine-report")
                            .increment(1);
                    }
                }
            }
        }
    }

    fn handle_report(&mut self, machine_id: &MachineId, report: Report, received: Instant) {
        let Some(interlock) = self.interlocks.get_mut(machine_id) else { return };
        match report {
            Report::State(state) => {
                debug!(%machine_id, state = state.as_str(), "machine reports");
                let actions = interlock.handle_machine_state(state, moment());
                self.perform(machine_id, actions, received);
            }
            Report::Reset { operator } => self.reset(machine_id, &operator),
            Report::Shelve(request) => self.shelve(machine_id, &request, received),
        }
    }

    fn shelve(&mut self, machine_id: &MachineId, request: &ShelveRequest, received: Instant) {
        let Some(interlock) = self.interlocks.get_mut(machine_id) else { return };
        let mut actions = Vec::new();
        let result = interlock.shelve(request, moment(), &mut actions);
        self.perform(machine_id, actions, received);
        if let Err(refusal) = result {
            let ShelveRequest { operator, rule, .. } = request;
            warn!(%machine_id, operator, rule, reason = %refusal, "shelving refused");
            metrics::counter!(telemetry::INPUT_REFUSED, "reason" => "shelving").increment(1);
        }
    }

    fn reset(&mut self, machine_id: &MachineId, operator: &str) {
        let Some(interlock) = self.interlocks.get_mut(machine_id) else { return };
        match interlock.reset(moment()) {
            Ok(done) => {
                self.tell_reset(machine_id, operator, done);
                self.publish_latch(machine_id);
            }
            Err(refusal) => self.tell_reset_refused(machine_id, operator, &refusal),
        }
    }

    /// Performs what an interlock decided. The stop command is the first action and leaves first.
    fn perform(&mut self, machine_id: &MachineId, actions: Vec<Action>, received: Instant) {
        let is_latch_changed = !actions.is_empty();
        for action in actions {
            match action {
                Action::SendStop { trip_id, attempt, reach } => {
                    self.send_stop(machine_id, &trip_id, attempt, reach, received);
                }
                Action::Trip { trip_id, cause } => {
                    self.open_trip(machine_id, &trip_id, &cause, received)
                }
                Action::StopConfirmed { trip_id, attempts, .. } => {
                    self.confirm_stop(machine_id, &trip_id, attempts, received);
                }
                Action::StopNotConfirmed { trip_id, attempts, is_escalated, after } => {
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
    }

    fn send_stop(
        &mut self,
        machine_id: &MachineId,
        trip_id: &str,
        attempt: u32,
        reach: StopReach,
        received: Instant,
    ) {
        debug!(%machine_id, trip_id, attempt, reach = reach.as_str(), "stop command");
        match self.actuator.stop(machine_id, trip_id, attempt) {
            Ok(()) => {
                let stop = UnwrittenStop { machine_id: machine_id.clone(), received };
                self.unwritten.push_back(Some(stop));
            }
            // The interlock orders it again at its deadline.
            Err(error) => error!(%machine_id, trip_id, attempt, %error, "stop command not queued"),
        }
    }

    fn open_trip(
        &mut self,
        machine_id: &MachineId,
        trip_id: &str,
        cause: &TripCause,
        received: Instant,
    ) {
        error!(%machine_id, trip_id, cause = cause.as_str(), details = ?cause, "trip: stop ordered");
        metrics::counter!(telemetry::INTERLOCK_TRIPS, "cause" => cause.as_str()).increment(1);
        self.ask_for_snapshot(machine_id, trip_id, MachineEventType::Trip);
        let details = MachineEventDetails {
            model: self.model.as_deref().map(str::to_owned),
            detail: Some(format!("trip {trip_id}")),
            trip_id: Some(trip_id.to_owned()),
            ..cause_details(cause)
        };
        let event = Some(self.event(machine_id, MachineEventType::Trip, details));
        if let Some(before) = self.trips.insert(machine_id.clone(), OpenTrip { received, event }) {
            self.waiting_events.extend(before.event);
        }
    }

    /// The oldest publication not yet on the socket has got there.
    fn handle_written(&mut self, written: Instant) {
        let Some(Some(stop)) = self.unwritten.pop_front() else { return };
        let latency = written.saturating_duration_since(stop.received);
        let Some(trip) = self.trips.get_mut(&stop.machine_id) else { return };
        if let Some(mut event) = trip.event.take() {
            event.details.command_latency_micros = Some(micros(latency));
            metrics::histogram!(telemetry::STOP_COMMAND_LATENCY).record(latency);
            self.waiting_events.push_back(event);
        }
    }

    fn confirm_stop(
        &mut self,
        machine_id: &MachineId,
        trip_id: &str,
        attempts: u32,
        received: Instant,
    ) {
        let opened = self.trips.remove(machine_id);
        let latency = opened.as_ref().map(|trip| received.saturating_duration_since(trip.received));
        // The command was confirmed before its write was: the trip's event leaves without that latency.
        self.waiting_events.extend(opened.and_then(|trip| trip.event));
        if let Some(latency) = latency {
            metrics::histogram!(telemetry::STOP_CONFIRMATION_LATENCY).record(latency);
        }
        info!(%machine_id, trip_id, attempts, latency_ms = latency.map(|latency| latency.as_millis() as u64), "stop confirmed");
        let details = MachineEventDetails {
            confirmation_latency_micros: latency.map(micros),
            detail: Some(format!("trip {trip_id}, ordered {attempts} times")),
            trip_id: Some(trip_id.to_owned()),
            ..MachineEventDetails::default()
        };
        self.report(machine_id, MachineEventType::StopConfirmed, details);
    }

    /// After a reconnect the client library has forgotten what was queued: every stop not confirmed is ordered again.
    fn order_again(&mut self) {
        let open: Vec<(MachineId, String)> = self
            .interlocks
            .values()
            .filter_map(|interlock| {
                let snapshot = interlock.snapshot();
                let trip = snapshot.trip.filter(|trip| trip.stop != StopProgress::Confirmed)?;
                Some((snapshot.machine_id, trip.trip_id))
            })
            .collect();
        for (machine_id, trip_id) in open {
            let received =
                self.trips.get(&machine_id).map_or_else(Instant::now, |trip| trip.received);
            self.send_stop(&machine_id, &trip_id, 1, StopReach::First, received);
        }
        for machine_id in self.interlocks.keys().cloned().collect::<BTreeSet<_>>() {
            self.publish_latch(&machine_id);
        }
    }

    fn publish_latch(&mut self, machine_id: &MachineId) {
        let Some(interlock) = self.interlocks.get(machine_id) else { return };
        let latch = interlock.snapshot();
        match self.actuator.show(&latch) {
            Ok(()) => self.unwritten.push_back(None),
            Err(error) => warn!(%machine_id, %error, "state of the latch not published"),
        }
        if self.sinks.latches.try_send(latch.clone()).is_err() {
            // Handed over with the next look around, in its newest state.
            self.unsaved.insert(machine_id.clone());
        }
        self.sinks.board.show_latch(latch);
        self.count_states();
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
        for machine_id in self.interlocks.keys() {
            match self.actuator.heartbeat(machine_id, self.device_id.as_str(), self.heartbeats) {
                Ok(()) => self.unwritten.push_back(None),
                Err(error) => warn!(%machine_id, %error, "heartbeat not queued"),
            }
        }
        // Nothing is written while the broker is away: the books must not grow.
        let excess = self.unwritten.len().saturating_sub(self.event_queue_length.max(4096));
        self.unwritten.drain(..excess);
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

fn moment() -> Moment {
    Moment { instant: Instant::now(), time: now() }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
