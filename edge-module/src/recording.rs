//! The journal's path: everything that the sensors say, filtered, encoded, handed to the journal.
//!
//! What the broker repeats is dropped here, so that no reading gets a second sequence; see [`crate::recognition`].
//!
//! The raw samples around trips are kept here and not on the stop path: both sessions see the same blocks, and what keeping
//! them costs (a copy of each block, and the encoding of megabytes at a trip) must not stand between a sample and a stop.
//! The stop path tells of a trip through a bounded channel without waiting; this path may hear of it some milliseconds
//! late, or seconds while a full disk holds it, which `waveforms.after` allows for. What was before the trip goes to the
//! journal at once, what comes after in pieces of a second.

mod drifts;
mod explaining;
mod inputs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::aggregate::{Aggregate, Aggregator};
use edge_core::deadband::{Deadband, Verdict};
use edge_core::features::Features;
use edge_core::interlock::{TripCause, WindowScore};
use edge_core::operation::Current;
use edge_core::snapshot::{SnapshotCounts, Snapshots};
use rumqttc::Publish;
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::{
    DeadLetter, EventTime, MachineId, MetricType, Quality, Reading, SensorId, WaveformBlock,
    WaveformSnapshot,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{error, info, warn};

use crate::admin::{Board, Part};
use crate::analysis::Analysis;
use crate::calibration::{Baselines, Calibration, KeptBaseline, MachineConditions};
use crate::config::{ScoredBy, Settings, Waveforms};
use crate::intake::{Input, InputTopics, Refusal, encoding_of};
use crate::journal::{Intake, JournalCommand, check_size};
use crate::kafka::now;
use crate::limits::show_use;
use crate::models::{Shadow, ShadowOrder};
use crate::mqtt::acknowledgements::Receipt;
use crate::mqtt::source::{SessionEvent, check_refused};
use crate::recognition::{InputMark, Recognition};
use crate::scoring::Models;
use crate::store::{Entry, Lane};
use crate::telemetry;
use drifts::Drifts;
use explaining::Explaining;
use inputs::Next;

pub use inputs::OpcInput;

/// Refused input is logged at most this often; each is counted.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Input that the stop path does not hear is logged at most this often; each is counted.
const ASTRAY_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How often the use of limits is shown.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// Asks for the samples around a moment that has just been.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotRequest {
    /// Of all waveform sensors of this machine.
    pub machine_id: MachineId,
    /// Name of the trip or alarm.
    pub trip_id: String,
    /// An alarm has a snapshot only if the settings say so.
    pub is_alarm: bool,
    /// Why a machine tripped.
    pub cause: Option<TripCause>,
    /// When.
    pub time: EventTime,
}

/// Bounded channels to this path.
pub struct Links {
    /// Trips and alarms.
    pub snapshots: mpsc::Receiver<SnapshotRequest>,
    /// Other settings.
    pub settings: mpsc::Receiver<NewFilters>,
    /// Models that score beside those in force, or take their place.
    pub models: mpsc::Receiver<ShadowOrder>,
    /// What was learnt and is kept.
    pub baselines: mpsc::Receiver<Arc<KeptBaseline>>,
    /// Messages to inputs of a hub; taken from here when they are read.
    pub inputs: Option<mpsc::Receiver<OpcInput>>,
}

/// Other settings, built and checked, ready to be put in force.
pub struct NewFilters {
    machines: Machines,
    scored: BTreeMap<SensorId, ScoredBy>,
    deadband: Deadband,
    aggregator: Aggregator,
    snapshots: Snapshots,
    settings: Settings,
    baselines: Baselines,
}

impl NewFilters {
    /// Builds everything that this path needs of the settings.
    ///
    /// # Errors
    /// Settings that were validated before are refused.
    pub fn new(settings: &Settings, baselines: Baselines) -> anyhow::Result<Self> {
        let deadband = Deadband::new(settings.deadband_settings())
            .map_err(|faults| anyhow::anyhow!("dead band: {faults:?}"))?;
        let aggregator = Aggregator::new(settings.aggregation_settings())
            .map_err(|faults| anyhow::anyhow!("aggregation: {faults:?}"))?;
        let snapshots = Snapshots::new(settings.snapshot_settings())
            .map_err(|faults| anyhow::anyhow!("waveforms: {faults:?}"))?;
        let machines = Machines::new(settings);
        let scored = settings.scored_sensors();
        let settings = settings.clone();
        Ok(Self { machines, scored, deadband, aggregator, snapshots, settings, baselines })
    }
}

/// The machines under protection, and whose sensor is whose.
struct Machines {
    ids: BTreeSet<MachineId>,
    of_sensor: BTreeMap<SensorId, MachineId>,
}

impl Machines {
    fn new(settings: &Settings) -> Self {
        let mut of_sensor = BTreeMap::new();
        for machine in &settings.machines {
            let limited = machine.limits.iter().map(|limit| &limit.sensor);
            for sensor in limited.chain(machine.scored()) {
                of_sensor.insert(sensor.clone(), machine.id.clone());
            }
        }
        Self {
            ids: settings.machines.iter().map(|machine| machine.id.clone()).collect(),
            of_sensor,
        }
    }

    /// The machine under protection that a block belongs to.
    fn of_block(&self, block: &WaveformBlock) -> Option<&MachineId> {
        self.of_sensor.get(&block.sensor_id).or_else(|| self.ids.get(&block.machine_id))
    }
}

/// Takes messages of the recording session to the journal.
pub struct Recording {
    inputs: InputTopics,
    analysis: Analysis,
    deadband: Deadband,
    aggregator: Aggregator,
    snapshots: Snapshots,
    snapshot_counts: SnapshotCounts,
    waveforms: Waveforms,
    settings: Settings,
    links: Option<Links>,
    vibration: MetricType,
    machines: Machines,
    recognition: Recognition,
    commands: mpsc::Sender<JournalCommand>,
    room: Arc<Semaphore>,
    room_bytes: usize,
    board: Board,
    refusal_logged: Option<Instant>,
    astray_logged: Option<Instant>,
    /// Models beside those in force, by name.
    shadows: BTreeMap<String, Shadow>,
    /// What was learnt of the machines.
    calibration: Calibration,
    drifts: Drifts,
    explaining: Explaining,
}

impl Recording {
    /// A path that knows again what `recognition` knows.
    ///
    /// # Errors
    /// The dead band's settings, which were validated before, are refused.
    pub fn new(
        settings: &Settings,
        (models, baselines): (&Models, &Baselines),
        recognition: Recognition,
        commands: mpsc::Sender<JournalCommand>,
        board: Board,
    ) -> anyhow::Result<Self> {
        let filters = NewFilters::new(settings, Baselines::new())?;
        Ok(Self {
            inputs: InputTopics::new(&settings.mqtt),
            analysis: Analysis::new(settings, models),
            deadband: filters.deadband,
            aggregator: filters.aggregator,
            snapshots: filters.snapshots,
            snapshot_counts: SnapshotCounts::default(),
            waveforms: settings.waveforms.clone(),
            settings: filters.settings,
            links: None,
            vibration: MetricType::new("vibration")?,
            machines: filters.machines,
            recognition,
            commands,
            room: Arc::new(Semaphore::new(settings.journal.queue_bytes)),
            room_bytes: settings.journal.queue_bytes,
            board,
            refusal_logged: None,
            astray_logged: None,
            shadows: BTreeMap::new(),
            calibration: Calibration::new(settings, baselines),
            drifts: Drifts::default(),
            explaining: Explaining::new(settings),
        })
    }

    /// A path that hears of trips and takes other settings.
    #[must_use]
    pub fn linked(mut self, links: Links) -> Self {
        self.links = Some(links);
        self
    }

    /// Runs until `stop`; what is not acknowledged by then the broker keeps. Gives the session's events back: the session has
    /// still to acknowledge what the journal makes durable.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<SessionEvent>,
        mut stop: watch::Receiver<bool>,
    ) -> mpsc::Receiver<SessionEvent> {
        let mut show = tokio::time::interval(SHOW_INTERVAL);
        show.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inputs = self.links.as_mut().and_then(|links| links.inputs.take());
        let mut is_open = true;
        while is_open && !*stop.borrow() {
            let due = [
                self.aggregator.poll_timeout(),
                self.snapshots.poll_timeout(),
                self.explaining.poll_timeout(),
            ];
            let due = due.into_iter().flatten().min();
            is_open = tokio::select! {
                biased;
                _ = stop.changed() => continue,
                Some(link) = next_of(&mut self.links) => self.handle_link(link, &mut stop).await,
                () = sleep_until(due) => self.handle_timeouts(&mut stop).await,
                _ = show.tick() => { self.show(); true }
                next = inputs::next(&mut events, &mut inputs) => match next {
                    Next::Session(None) => false,
                    Next::Session(Some(event)) => self.handle_session(event, &mut stop).await,
                    Next::Input(input) => self.handle_input(*input, &mut stop).await,
                },
            };
        }
        self.hand_over_rest();
        events
    }

    /// Says whether the journal is still there.
    async fn handle_session(
        &mut self,
        event: SessionEvent,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        match event {
            SessionEvent::Connected => self.board.set(Part::Recording, Ok(())),
            SessionEvent::Subscribed { refused } => {
                self.board.set(Part::Recording, check_refused(&refused));
            }
            SessionEvent::Disconnected => {
                self.board.set(Part::Recording, Err("broker not connected".to_owned()));
            }
            SessionEvent::Written => {}
            SessionEvent::Message { publish, receipt, .. } => {
                metrics::counter!(telemetry::MQTT_MESSAGES, "session" => "recording").increment(1);
                let mark = InputMark::of(&publish);
                let records = self.records_of(&publish, mark);
                // What became no record need not be known after a crash; what is retained comes again and again.
                let mark = Some(mark).filter(|_| !records.is_empty() || publish.retain);
                return self.hand_over_input(records, receipt, mark, stop).await;
            }
        }
        true
    }

    async fn handle_link(&mut self, link: Link, stop: &mut watch::Receiver<bool>) -> bool {
        match link {
            Link::Snapshot(request) => {
                if let Some(cause) = request.cause.clone() {
                    let (machine_id, trip_id) = (&request.machine_id, &request.trip_id);
                    let (machine_id, trip_id) = (machine_id.clone(), trip_id.clone());
                    let (time, calibration) = (request.time, &self.calibration);
                    self.explaining.handle_trip(machine_id, trip_id, cause, time, calibration);
                }
                let is_wanted =
                    self.waveforms.enabled && (!request.is_alarm || self.waveforms.on_alarm);
                if !is_wanted {
                    return true;
                }
                let (machine_id, trip_id) = (&request.machine_id, &request.trip_id);
                let pieces = self.snapshots.handle_trip(machine_id, trip_id, Instant::now());
                if !pieces.is_empty() {
                    info!(%machine_id, trip_id, pieces = pieces.len(), "samples before the trip go to the journal");
                }
                self.hand_over_pieces(pieces, stop).await
            }
            Link::Settings(filters) => self.replace_filters(*filters, stop).await,
            Link::Baseline(kept) => {
                self.drifts.forget(&kept.baseline.machine_id);
                self.calibration.set_baseline(kept);
                true
            }
            Link::Model(order) => {
                self.handle_model(*order);
                true
            }
        }
    }

    fn handle_model(&mut self, order: ShadowOrder) {
        match order {
            ShadowOrder::Begin { name, bundle } => {
                let shadow = Shadow::new(&self.settings, &name, bundle);
                self.shadows.insert(name, shadow);
            }
            ShadowOrder::Report { name, budget, answer } => {
                let report = self.shadows.get(&name).map(|shadow| shadow.report(budget));
                // Whoever asked may have given up.
                drop(answer.send(report));
            }
            ShadowOrder::End { name } => drop(self.shadows.remove(&name)),
            ShadowOrder::Remove { name } => {
                self.shadows.remove(&name);
                self.analysis.remove_model(&name);
            }
            ShadowOrder::Switch { name, bundle, scorer } => {
                self.shadows.remove(&name);
                self.analysis.set_model(&name, bundle, scorer);
            }
        }
    }

    async fn handle_timeouts(&mut self, stop: &mut watch::Receiver<bool>) -> bool {
        let now = Instant::now();
        self.explaining.handle_timeout(now, &mut self.analysis);
        let mut records = Vec::new();
        for aggregate in self.aggregator.handle_timeout(now) {
            self.record_aggregate(&aggregate, &mut records);
        }
        let pieces = self.snapshots.handle_timeout(now);
        (records.is_empty() || self.hand_over(records, stop).await)
            && self.hand_over_pieces(pieces, stop).await
    }

    /// Puts other settings in force. What has not changed keeps what it knows.
    async fn replace_filters(
        &mut self,
        filters: NewFilters,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let NewFilters { machines, scored, deadband, aggregator, snapshots, settings, baselines } =
            filters;
        let mut records = Vec::new();
        if settings.aggregation_settings() != self.settings.aggregation_settings() {
            for aggregate in self.aggregator.close_all() {
                self.record_aggregate(&aggregate, &mut records);
            }
            self.aggregator = aggregator;
        }
        if settings.deadband_settings() != self.settings.deadband_settings() {
            self.deadband = deadband;
        }
        // Whoever manages them begins them again, of the sensors and votes of now.
        self.shadows.clear();
        self.analysis.set_scored(scored);
        for machine_id in self.calibration.replace(MachineConditions::of(&settings)) {
            self.drifts.forget(&machine_id);
        }
        for kept in baselines.into_values() {
            self.calibration.set_baseline(kept);
        }
        let pieces = if settings.waveforms.enabled {
            let pieces = self.snapshots.keep_machines(&machines.ids);
            if let Err(faults) = self.snapshots.replace_settings(settings.snapshot_settings()) {
                warn!(?faults, "waveforms stay as they were");
            }
            pieces
        } else {
            let pieces = self.snapshots.close_all();
            self.snapshots = snapshots;
            self.snapshot_counts = SnapshotCounts::default();
            pieces
        };
        self.machines = machines;
        self.explaining.set_machines(&settings);
        self.waveforms = settings.waveforms.clone();
        self.settings = settings;
        (records.is_empty() || self.hand_over(records, stop).await)
            && self.hand_over_pieces(pieces, stop).await
    }

    /// One at a time, so that each finds room in the journal's queue.
    async fn hand_over_pieces(
        &mut self,
        pieces: Vec<WaveformSnapshot>,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        for piece in pieces {
            let record = encode_piece(&piece);
            if !self.hand_over(vec![record], stop).await {
                return false;
            }
        }
        true
    }

    async fn hand_over(&mut self, records: Vec<Entry>, stop: &mut watch::Receiver<bool>) -> bool {
        self.hand_over_input(records, None, None, stop).await
    }

    /// Waits for room in the journal's queue. Says whether the journal is still there.
    async fn hand_over_input(
        &mut self,
        records: Vec<Entry>,
        receipt: Option<Receipt>,
        mark: Option<InputMark>,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let bytes = records.iter().map(|(_, payload)| payload.len()).sum::<usize>();
        let bytes = u32::try_from(bytes.clamp(1, self.room_bytes)).unwrap_or(u32::MAX);
        let permit = tokio::select! {
            permit = Arc::clone(&self.room).acquire_many_owned(bytes) => permit.ok(),
            _ = stop.changed() => return false,
        };
        let intake = Intake { records, receipt, mark, permit };
        tokio::select! {
            sent = self.commands.send(JournalCommand::Append(intake)) => sent.is_ok(),
            _ = stop.changed() => false,
        }
    }

    /// At the end: what is still being folded or cut, without waiting.
    fn hand_over_rest(&mut self) {
        let mut records = Vec::new();
        for aggregate in self.aggregator.close_all() {
            self.record_aggregate(&aggregate, &mut records);
        }
        records.extend(self.snapshots.close_all().iter().map(encode_piece));
        if records.is_empty() {
            return;
        }
        let count = records.len();
        let intake = Intake { records, receipt: None, mark: None, permit: None };
        if self.commands.try_send(JournalCommand::Append(intake)).is_err() {
            warn!(records = count, "the journal does not take what was still being folded");
        }
    }

    fn show(&mut self) {
        let counts = self.snapshots.counts();
        let before = std::mem::replace(&mut self.snapshot_counts, counts);
        metrics::counter!(telemetry::WAVEFORM_BLOCKS_NOT_KEPT)
            .increment(counts.blocks_not_kept.saturating_sub(before.blocks_not_kept));
        metrics::counter!(telemetry::WAVEFORM_SAMPLES_CUT)
            .increment(counts.samples_cut.saturating_sub(before.samples_cut));
        show_use("waveforms.bytes-max", self.snapshots.bytes());
        show_use("vibration.sensors-max", self.analysis.sensors());
        show_use("deadband.sensors-max", self.deadband.sensors().max(self.aggregator.sensors()));
        let waiting = self.commands.max_capacity() - self.commands.capacity();
        show_use("journal.queue-length", waiting);
        show_use("journal.queue-bytes", self.room_bytes - self.room.available_permits());
    }

    /// Whether a message is known; from now on it is.
    fn is_repeat(&mut self, publish: &Publish, mark: InputMark) -> bool {
        let is_repeat = self.recognition.is_repeat(publish, mark);
        self.recognition.note_message(mark);
        if is_repeat {
            metrics::counter!(telemetry::INPUT_REDELIVERED).increment(1);
        }
        is_repeat
    }

    fn records_of(&mut self, publish: &Publish, mark: InputMark) -> Vec<Entry> {
        let mut records = Vec::new();
        if self.is_repeat(publish, mark) {
            return records;
        }
        let may_be_known = publish.dup || publish.retain;
        match self.inputs.decode(&publish.topic, &publish.payload) {
            Err(refusal) => self.refuse(&refusal, publish, &publish.payload, &mut records),
            Ok(Input::Readings(readings)) => {
                for element in readings {
                    match element.result {
                        Err(error) => {
                            self.refuse(&error.into(), publish, element.raw, &mut records);
                        }
                        Ok(decoded) => {
                            if decoded.unknown_fields > 0 {
                                metrics::counter!(telemetry::INPUT_UNKNOWN_FIELDS)
                                    .increment(u64::from(decoded.unknown_fields));
                            }
                            let mut reading = decoded.reading;
                            self.complete(&mut reading, &publish.topic);
                            self.record(&reading, may_be_known, false, &mut records);
                        }
                    }
                }
            }
            Ok(Input::Waveform(block)) => {
                self.notice_astray(&block.sensor_id, &publish.topic);
                self.record_windows(&block, publish, &mut records);
                self.keep_samples(&block, publish, &mut records);
            }
        }
        records
    }

    /// Adds the machine of the topic where the producer left it out.
    fn complete(&mut self, reading: &mut Reading, topic: &str) {
        // The journal numbers records anew: a foreign identity would clash with its own.
        reading.identity = None;
        self.notice_astray(&reading.sensor_id, topic);
        if reading.machine_id.is_none() {
            let machine = self.inputs.machine(topic).unwrap_or_default();
            reading.machine_id = self.machines.ids.get(machine).cloned();
        }
    }

    /// Tells of a sensor that a rule names but whose topic is of no machine under protection: the stop path does not hear it.
    fn notice_astray(&mut self, sensor: &SensorId, topic: &str) {
        let Some(machine) = self.inputs.machine(topic) else { return };
        if self.machines.ids.contains(machine) {
            return;
        }
        let Some(machine_id) = self.machines.of_sensor.get(sensor) else { return };
        metrics::counter!(telemetry::INPUT_ASTRAY).increment(1);
        if self.astray_logged.is_none_or(|logged| logged.elapsed() > ASTRAY_LOG_INTERVAL) {
            self.astray_logged = Some(Instant::now());
            error!(%sensor, topic, %machine_id, "recorded but not judged: the topic is of no machine under protection; publish on the machine's own topic, or put + for {{machine}} in mqtt.reading-topics and waveform-topics");
        }
    }

    /// `is_vote`: of a window that voted. The cloud sees each of them: neither folded nor held back.
    fn record(
        &mut self,
        reading: &Reading,
        may_be_known: bool,
        is_vote: bool,
        records: &mut Vec<Entry>,
    ) {
        if may_be_known && self.recognition.is_known(reading) {
            metrics::counter!(telemetry::INPUT_REDELIVERED).increment(1);
            return;
        }
        metrics::counter!(telemetry::READINGS).increment(1);
        if !reading.historical && reading.quality != Some(Quality::Bad) {
            self.calibration.handle_reading(&reading.sensor_id, reading.value, Instant::now());
            self.explaining.handle_reading(&reading.sensor_id, reading.value);
        }
        let payload = codec::encode_reading(reading, Encoding::Protobuf);
        if is_vote {
            return self.filter(reading, payload, true, records);
        }
        let bytes = payload.len() as u64;
        let outcome = self.aggregator.handle_reading(reading, bytes, Instant::now());
        if let Some(aggregate) = outcome.closed {
            self.record_aggregate(&aggregate, records);
        }
        if outcome.is_passed {
            self.filter(reading, payload, false, records);
        } else {
            self.recognition.note_reading(reading);
        }
    }

    fn record_aggregate(&mut self, aggregate: &Aggregate, records: &mut Vec<Entry>) {
        let payload = codec::encode_reading(&aggregate.reading, Encoding::Protobuf);
        let bytes = aggregate.bytes.saturating_sub(payload.len() as u64);
        count_saved("aggregation", aggregate.readings.saturating_sub(1), bytes);
        self.filter(&aggregate.reading, payload, false, records);
    }

    fn filter(
        &mut self,
        reading: &Reading,
        payload: Vec<u8>,
        is_vote: bool,
        records: &mut Vec<Entry>,
    ) {
        let verdict = match is_vote {
            true => self.deadband.handle_forced(reading),
            false => self.deadband.handle(reading),
        };
        match verdict {
            Verdict::Filter => {
                metrics::counter!(telemetry::READINGS_FILTERED).increment(1);
                count_saved("deadband", 1, payload.len() as u64);
            }
            Verdict::Send(_) => {
                self.recognition.note_reading(reading);
                records.push((Lane::Readings, payload));
            }
        }
    }

    /// Keeps the samples of machines under protection for the case of a trip.
    fn keep_samples(&mut self, block: &WaveformBlock, publish: &Publish, records: &mut Vec<Entry>) {
        // What the broker kept from before is not around any trip.
        if !self.waveforms.enabled || publish.retain {
            return;
        }
        let Some(machine_id) = self.machines.of_block(block) else { return };
        let encoding = encoding_of(&publish.payload);
        let scale = codec::waveform_scale(&publish.payload, encoding).unwrap_or(1.0);
        let pieces = self.snapshots.handle_block(machine_id, block, scale);
        records.extend(pieces.iter().map(encode_piece));
    }

    fn record_windows(
        &mut self,
        block: &WaveformBlock,
        publish: &Publish,
        records: &mut Vec<Entry>,
    ) {
        let mut readings = Vec::new();
        let vibration = self.vibration.clone();
        let mut shadow = self.shadows.values_mut().find(|it| it.scores(&block.sensor_id));
        let machine_id = self.machines.of_sensor.get(&block.sensor_id);
        let (calibration, now) = (&self.calibration, Instant::now());
        let bundle = self.analysis.bundle_of(&block.sensor_id);
        let learnt = machine_id.zip(bundle).and_then(|(id, bundle)| {
            calibration.learnt(id, &block.sensor_id, bundle.metadata(), now)
        });
        let is_learnt = learnt.is_some();
        let drifts = &mut self.drifts;
        let explaining = &mut self.explaining;
        let condition = machine_id.map_or(Current::Unknown, |id| calibration.current(id, now));
        let result = self.analysis.handle_block(block, learnt, |judged| {
            let (window, features, score) = (judged.window, judged.features(), judged.score);
            explaining.handle_window(&block.sensor_id, judged, condition);
            if let Some(shadow) = &mut shadow {
                shadow.note_in_force(&block.sensor_id, score);
            }
            if let (Some(id), Some(score), true) = (machine_id, score, is_learnt) {
                drifts.note(calibration, id, &block.sensor_id, score, now);
            }
            let mut reading = Reading::new(
                block.sensor_id.clone(),
                window.first_sample,
                vibration.clone(),
                features.rms,
            );
            reading.machine_id = Some(block.machine_id.clone());
            reading.unit.clone_from(&block.unit);
            reading.features = named(features, score);
            readings.push((reading, score.is_some_and(|score| score.is_abnormal())));
        });
        if let Some(shadow) = shadow {
            let bundle = shadow.bundle_of(&block.sensor_id);
            let learnt = machine_id.zip(bundle).and_then(|(id, bundle)| {
                calibration.learnt(id, &block.sensor_id, bundle.metadata(), now)
            });
            shadow.handle_block(block, learnt);
        }
        if let Err(error) = result {
            let refusal = Refusal { reason: error.reason(), detail: error.to_string() };
            self.refuse(&refusal, publish, &publish.payload, records);
        }
        for (reading, is_vote) in readings {
            self.record(&reading, publish.dup || publish.retain, is_vote, records);
        }
    }

    fn refuse(
        &mut self,
        refusal: &Refusal,
        publish: &Publish,
        raw: &[u8],
        records: &mut Vec<Entry>,
    ) {
        metrics::counter!(telemetry::INPUT_REFUSED, "reason" => refusal.reason).increment(1);
        if self.refusal_logged.is_none_or(|logged| logged.elapsed() > REFUSAL_LOG_INTERVAL) {
            self.refusal_logged = Some(Instant::now());
            warn!(
                topic = publish.topic,
                reason = refusal.reason,
                detail = refusal.detail,
                "input refused, kept as dead letter"
            );
        }
        let letter =
            DeadLetter::new(refusal.reason, refusal.detail.clone(), &publish.topic, now(), raw);
        let payload = codec::encode_dead_letter(&letter, Encoding::Protobuf);
        match check_size(&payload) {
            Ok(()) => records.push((Lane::DeadLetters, payload)),
            Err(error) => warn!(%error, "dead letter too large for the journal"),
        }
    }
}

/// What reached this path beside its session.
enum Link {
    Snapshot(SnapshotRequest),
    Settings(Box<NewFilters>),
    Model(Box<ShadowOrder>),
    Baseline(Arc<KeptBaseline>),
}

/// The next request or settings, if anybody may send some.
async fn next_of(links: &mut Option<Links>) -> Option<Link> {
    let links = links.as_mut()?;
    tokio::select! {
        Some(request) = links.snapshots.recv() => Some(Link::Snapshot(request)),
        Some(settings) = links.settings.recv() => Some(Link::Settings(Box::new(settings))),
        Some(order) = links.models.recv() => Some(Link::Model(Box::new(order))),
        Some(kept) = links.baselines.recv() => Some(Link::Baseline(kept)),
        else => None,
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

fn encode_piece(piece: &WaveformSnapshot) -> Entry {
    metrics::counter!(telemetry::WAVEFORM_PIECES).increment(1);
    (Lane::Waveforms, codec::encode_waveform_snapshot(piece))
}

fn count_saved(reason: &'static str, records: u64, bytes: u64) {
    metrics::counter!(telemetry::SAVED_RECORDS, "reason" => reason).increment(records);
    metrics::counter!(telemetry::SAVED_BYTES, "reason" => reason).increment(bytes);
}

fn named(
    features: &Features,
    score: Option<WindowScore>,
) -> std::collections::BTreeMap<String, f64> {
    let mut named: std::collections::BTreeMap<String, f64> =
        features.iter().map(|(name, value)| (name.to_string(), value)).collect();
    if let Some(score) = score {
        named.insert("score".to_owned(), score.score);
    }
    named
}
