//! The task that owns the journal: groups what waits, makes it durable with one fsync, then acknowledges.
//!
//! A group is at most `journal.group-records-max` records; machine events go before readings. When the disk refuses, the
//! group is kept and tried again, its machine events first and alone; meanwhile nothing is acknowledged, so the broker
//! keeps what comes after. A panic is caught at the thread's edge; the group survives it. The stop path does not notice.

use std::time::{Duration, Instant};

use edge_core::ledger::{Ledger, delivered_through};
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::{
    DeadLetter, MachineEvent, MachineEventDetails, MachineEventType, MachineId, Sequence,
};
use shared_proto::sequences;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::admin::{Board, Part};
use crate::kafka::now;
use crate::mqtt::acknowledgements::{Acknowledgements, Receipt};
use crate::recognition::{InputLog, InputMark};
use crate::store::{Entry, Journal, JournalError, Lane, Loss, PerLane};
use crate::telemetry;

/// Last durable sequence of each lane.
pub type Durable = PerLane<Sequence>;
/// Last sequence of each lane up to which everything was delivered.
pub type Delivered = PerLane<Sequence>;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// Machine events among which the last ledger is looked for at the start.
const LEDGER_SEARCH_MAX: usize = 2_048;
/// Cause of the gap record of a record that Kafka will never take: its dead letter has a number of its own.
const CAUSE_DEAD_LETTER: &str = "dead-letter";

/// Records of one MQTT message, with what is owed for them.
pub struct Intake {
    /// Encoded records, in order.
    pub records: Vec<Entry>,
    /// To be acknowledged to the broker when the records are durable.
    pub receipt: Option<Receipt>,
    /// To be known again once the records are durable.
    pub mark: Option<InputMark>,
    /// Room in the queue, given back with the value.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// What the journal's task is asked to do.
pub enum JournalCommand {
    /// Make records durable.
    Append(Intake),
    /// Sequences turned out to be unreadable.
    ReportLoss(Loss),
    /// A record that Kafka will never take, its number, and its letter; answered when the letter is durable.
    DeadLetter(DeadLetter, Sequence, oneshot::Sender<()>),
    /// Answer when everything before is durable.
    Flush(oneshot::Sender<()>),
}

/// Owner of the journal.
pub struct Recorder {
    journal: Box<dyn Journal>,
    inputs: Inputs,
    machine_id: MachineId,
    group_records_max: usize,
    ledger_interval: Duration,
    /// Machine events that a group takes while the disk refuses; the others wait in their queue.
    events_max: usize,
    events: mpsc::Receiver<MachineEvent>,
    commands: mpsc::Receiver<JournalCommand>,
    durable: watch::Sender<Durable>,
    delivered: watch::Receiver<Delivered>,
    acknowledgements: Acknowledgements,
    board: Board,
    ledger: Ledger,
    /// What is being made durable.
    group: Group,
}

#[derive(Default)]
struct Group {
    records: Vec<Entry>,
    /// Losses whose gap records are among the records.
    losses: Vec<Loss>,
    owed: Vec<Receipt>,
    marks: Vec<InputMark>,
    permits: Vec<OwnedSemaphorePermit>,
    flushes: Vec<oneshot::Sender<()>>,
}

/// The log of inputs, which must not be in the way of the journal.
struct Inputs {
    log: Option<InputLog>,
    is_failing: bool,
}

impl Inputs {
    fn add(&mut self, marks: &[InputMark]) {
        let result = self.log.as_mut().map_or(Ok(()), |log| log.add(marks));
        self.tell(result);
    }

    fn sync(&mut self) {
        let result = self.log.as_mut().map_or(Ok(()), InputLog::sync);
        self.tell(result);
    }

    fn tell(&mut self, result: std::io::Result<()>) {
        let is_failing = result.is_err();
        if let Err(error) = result
            && !self.is_failing
        {
            warn!(%error, "what is journalled now may not be known again after a crash");
        }
        self.is_failing = is_failing;
    }
}

/// What a recorder works with.
pub struct Connections {
    /// What was journalled, to be known again; none: it cannot be opened.
    pub inputs: Option<InputLog>,
    /// Machine events of the stop path.
    pub events: mpsc::Receiver<MachineEvent>,
    /// Everything else.
    pub commands: mpsc::Receiver<JournalCommand>,
    /// Tells the forwarder what it may send.
    pub durable: watch::Sender<Durable>,
    /// Tells how far delivery has come.
    pub delivered: watch::Receiver<Delivered>,
    /// For acknowledging.
    pub acknowledgements: Acknowledgements,
    /// Tells operators.
    pub board: Board,
}

/// Everything journalled so far, which the journal found durable when it was opened.
#[must_use]
pub fn durable_at_start(journal: &dyn Journal) -> Durable {
    let mut durable = Durable::default();
    for lane in Lane::ALL {
        *durable.get_mut(lane) = journal.last(lane);
    }
    durable
}

impl Recorder {
    /// Takes the journal over. `machine_id` is the device's own name, for events about itself.
    #[must_use]
    pub fn new(
        journal: Box<dyn Journal>,
        machine_id: MachineId,
        (group_records_max, ledger_interval): (usize, Duration),
        connections: Connections,
    ) -> Self {
        let Connections { inputs, events, commands, durable, delivered, acknowledgements, board } =
            connections;
        let ledger = resumed_ledger(&*journal);
        Self {
            journal,
            inputs: Inputs { log: inputs, is_failing: false },
            machine_id,
            group_records_max,
            ledger_interval,
            events_max: events.max_capacity(),
            events,
            commands,
            durable,
            delivered,
            acknowledgements,
            board,
            ledger,
            group: Group::default(),
        }
    }

    /// Runs until `stop`, then writes what waits. Can be run again after a panic.
    pub async fn run(&mut self, mut stop: watch::Receiver<bool>) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        let mut ledger = tokio::time::interval_at(
            tokio::time::Instant::now() + self.ledger_interval,
            self.ledger_interval,
        );
        self.board.set(Part::Journal, Ok(()));
        loop {
            self.board.begin(Part::Journal);
            self.add_losses();
            let is_empty = self.fill();
            self.commit(&stop).await;
            if self.ledger.is_full() {
                self.add_ledger();
            }
            let is_stopping = *stop.borrow();
            if is_stopping && is_empty {
                break;
            }
            self.board.end(Part::Journal);
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => self.add_event(&event),
                Some(command) = self.commands.recv() => self.handle_command(command),
                _ = housekeeping.tick() => {
                    self.board.begin(Part::Journal);
                    self.keep_house();
                }
                _ = ledger.tick() => self.add_ledger(),
                _ = stop.changed(), if !is_stopping => {}
                () = std::future::ready(()), if is_stopping => {}
            }
        }
        self.trim();
        self.save();
        info!(next_sequence = self.journal.next_sequence().0, "journal closed");
    }

    /// Takes what waits, up to one group. Says whether nothing is left waiting.
    fn fill(&mut self) -> bool {
        while self.group.records.len() < self.group_records_max {
            if let Ok(event) = self.events.try_recv() {
                self.add_event(&event);
            } else if let Ok(command) = self.commands.try_recv() {
                self.handle_command(command);
            } else {
                return true;
            }
        }
        false
    }

    fn handle_command(&mut self, command: JournalCommand) {
        let group = &mut self.group;
        match command {
            JournalCommand::Append(intake) => {
                group.records.extend(intake.records);
                group.owed.extend(intake.receipt);
                group.marks.extend(intake.mark);
                group.permits.extend(intake.permit);
            }
            JournalCommand::Flush(flushed) => group.flushes.push(flushed),
            JournalCommand::ReportLoss(loss) => {
                // It becomes a gap record with the next look at the books.
                self.journal.add_loss(&loss);
            }
            JournalCommand::DeadLetter(letter, replaced, done) => {
                group.flushes.push(done);
                let bytes = codec::encode_dead_letter(&letter, Encoding::Protobuf);
                group.records.push((Lane::DeadLetters, bytes));
                let details = MachineEventDetails {
                    cause: Some(CAUSE_DEAD_LETTER.to_owned()),
                    first_sequence: Some(replaced.0),
                    last_sequence: Some(replaced.0),
                    record_count: Some(1),
                    detail: Some(letter.detail),
                    ..MachineEventDetails::default()
                };
                self.add_event(&self.event(MachineEventType::Gap, details));
            }
        }
    }

    /// Makes the group durable, however often it takes, and acknowledges it.
    async fn commit(&mut self, stop: &watch::Receiver<bool>) {
        let started = Instant::now();
        let has_records = !self.group.records.is_empty();
        if has_records && !self.append(stop).await {
            // Not durable and not acknowledged: the broker delivers it again after the next start.
            self.group = Group::default();
            return;
        }
        let group = std::mem::take(&mut self.group);
        self.inputs.add(&group.marks);
        self.acknowledgements.give(group.owed);
        if has_records {
            metrics::histogram!(telemetry::JOURNAL_APPEND_LATENCY).record(started.elapsed());
        }
        for flushed in group.flushes {
            if flushed.send(()).is_err() {
                debug!("nobody waits for the flush any more");
            }
        }
    }

    /// Lets the forwarder go on, and counts.
    fn tell(&mut self, counts: PerLane<u64>) {
        // Each lane's own last record: a number of another lane in its stead would look like a record that is missing.
        let journal = &self.journal;
        self.durable.send_modify(|durable| {
            for lane in Lane::ALL.into_iter().filter(|lane| *counts.get(*lane) > 0) {
                *durable.get_mut(lane) = journal.last(lane);
            }
        });
        for lane in Lane::ALL {
            let count = *counts.get(lane);
            if count > 0 {
                metrics::counter!(telemetry::JOURNAL_RECORDS, "lane" => lane.as_str())
                    .increment(count);
            }
        }
    }

    /// Says whether the group's records are durable; only a stop makes it give up.
    async fn append(&mut self, stop: &watch::Receiver<bool>) -> bool {
        let mut wait = RETRY_MIN;
        loop {
            let Err(error) = self.append_once() else {
                if wait > RETRY_MIN {
                    info!("journal takes records again");
                    self.board.set(Part::Journal, Ok(()));
                }
                return true;
            };
            metrics::counter!(telemetry::JOURNAL_FAILURES).increment(1);
            error!(error = %chain(&error), wait_ms = wait.as_millis() as u64, "journal cannot write; check the disk of device.data-dir");
            self.board.set(Part::Journal, Err(chain(&error)));
            if *stop.borrow() {
                return false;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
            // Kafka may still be draining what is there: that is how a full disk gets room again.
            self.trim();
            self.evict();
            // Machine events are few and may use what is left of the disk; new ones must not wait behind readings.
            let is_event = |(lane, _): &&Entry| *lane == Lane::Events;
            let mut room =
                self.events_max.saturating_sub(self.group.records.iter().filter(is_event).count());
            while room > 0
                && let Ok(event) = self.events.try_recv()
            {
                self.add_event(&event);
                room -= 1;
            }
            self.append_events();
        }
    }

    /// Writes the whole group.
    fn append_once(&mut self) -> Result<(), JournalError> {
        if self.group.records.is_empty() {
            return Ok(());
        }
        let first = self.journal.next_sequence();
        self.journal.append(&self.group.records)?;
        let counts = counts(&self.group.records);
        self.note_waveforms(first, &counts);
        self.group.records.clear();
        self.journal.confirm_losses(&std::mem::take(&mut self.group.losses));
        self.tell(counts);
        Ok(())
    }

    /// Lanes took their numbers from `first` in the order of [`Lane::ALL`].
    fn note_waveforms(&mut self, first: Sequence, counts: &PerLane<u64>) {
        let before: u64 =
            Lane::ALL[..Lane::Waveforms.index()].iter().map(|lane| counts.get(*lane)).sum();
        self.ledger.handle_waveforms(Sequence(first.0 + before), *counts.get(Lane::Waveforms));
    }

    /// Writes the machine events of a group that could not be written whole.
    fn append_events(&mut self) {
        let records = std::mem::take(&mut self.group.records);
        let (events, others): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|(lane, _)| *lane == Lane::Events);
        if events.is_empty() || others.is_empty() {
            self.group.records = events;
            self.group.records.extend(others);
            return;
        }
        match self.journal.append(&events) {
            Ok(_) => {
                self.group.records = others;
                self.journal.confirm_losses(&std::mem::take(&mut self.group.losses));
                self.tell(counts(&events));
            }
            Err(error) => {
                debug!(error = %chain(&error), "machine events wait too");
                self.group.records = events;
                self.group.records.extend(others);
            }
        }
    }

    /// Deletes what was delivered. What is deleted must be known again all the same.
    fn trim(&mut self) {
        self.inputs.sync();
        let delivered = *self.delivered.borrow();
        for lane in Lane::ALL {
            if let Err(error) = self.journal.trim(lane, *delivered.get(lane)) {
                warn!(error = %chain(&error), lane = lane.as_str(), "drained segment stays on disk");
            }
        }
    }

    fn keep_house(&mut self) {
        self.trim();
        self.evict();
        self.save();
        let (bytes, segments) = (self.journal.bytes(), self.journal.segments());
        metrics::gauge!(telemetry::JOURNAL_BYTES).set(bytes as f64);
        self.board.show_disk(bytes, segments);
    }

    fn evict(&mut self) {
        if let Err(error) = self.journal.evict() {
            error!(error = %chain(&error), "journal over its limits and cannot evict");
        }
    }

    fn save(&mut self) {
        if let Err(error) = self.journal.save() {
            warn!(error = %chain(&error), "delivery progress not saved; more is sent again after a restart");
        }
    }

    fn add_ledger(&mut self) {
        let page = self.ledger.end_page(self.journal.next_sequence());
        let delivered = *self.delivered.borrow();
        let lane = |lane| (self.journal.last(lane), *delivered.get(lane));
        let delivered = delivered_through(page.last, Lane::ALL.map(lane));
        let waveforms = sequences::to_text(&page.waveforms);
        let details = MachineEventDetails {
            first_sequence: Some(page.first.0),
            last_sequence: Some(page.last.0),
            record_count: Some((page.last.0 + 1).saturating_sub(page.first.0)),
            delivered_sequence: Some(delivered.0),
            waveform_sequences: Some(waveforms).filter(|text| !text.is_empty()),
            ..MachineEventDetails::default()
        };
        self.add_event(&self.event(MachineEventType::Ledger, details));
    }

    /// Turns losses on the books into gap records, and says so.
    fn add_losses(&mut self) {
        let losses = self.journal.losses();
        let has_losses = !losses.is_empty();
        for loss in losses {
            log_loss(&loss);
            self.board.show_loss(&loss);
            let details = MachineEventDetails {
                cause: Some(loss.cause.as_str().to_owned()),
                first_sequence: Some(loss.first.0),
                last_sequence: Some(loss.last.0),
                record_count: loss.records,
                detail: Some(format!("lane {}", loss.lane.as_str())),
                ..MachineEventDetails::default()
            };
            self.add_event(&self.event(MachineEventType::Gap, details));
            self.group.losses.push(loss);
        }
        if has_losses {
            self.add_ledger();
        }
    }

    fn add_event(&mut self, event: &MachineEvent) {
        let bytes = codec::encode_machine_event(event, Encoding::Protobuf);
        self.group.records.push((Lane::Events, bytes));
    }

    fn event(&self, event_type: MachineEventType, details: MachineEventDetails) -> MachineEvent {
        event_of_now(self.machine_id.clone(), event_type, details)
    }
}

/// An event that happens now and is not journalled yet.
#[must_use]
pub fn event_of_now(
    machine_id: MachineId,
    event_type: MachineEventType,
    details: MachineEventDetails,
) -> MachineEvent {
    let timestamp = now();
    MachineEvent { event_type, machine_id, timestamp, identity: None, historical: false, details }
}

/// The books go on where the last ledger of the journal ended.
fn resumed_ledger(journal: &dyn Journal) -> Ledger {
    let last_page =
        journal.reader().tail(Lane::Events, LEDGER_SEARCH_MAX).iter().rev().find_map(|record| {
            let event = codec::decode_machine_event(&record.payload, Encoding::Protobuf).ok()?;
            let is_ledger = event.event_type == MachineEventType::Ledger;
            event.details.last_sequence.filter(|_| is_ledger).map(Sequence)
        });
    Ledger::resumed(last_page, journal.next_sequence(), journal.last(Lane::Waveforms))
}

fn log_loss(loss: &Loss) {
    let (lane, cause) = (loss.lane.as_str(), loss.cause.as_str());
    error!(
        lane,
        cause,
        first = loss.first.0,
        last = loss.last.0,
        records = loss.records,
        "journal lost records"
    );
    metrics::counter!(telemetry::JOURNAL_LOST, "lane" => lane, "cause" => cause)
        .increment(loss.records.unwrap_or(1));
}

fn counts(records: &[Entry]) -> PerLane<u64> {
    let mut counts = PerLane::default();
    for (lane, _) in records {
        *counts.get_mut(*lane) += 1;
    }
    counts
}

/// An error with its sources in one line; what a source repeats of the one before is left out.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// Refuses a record that the journal could never take, before it is queued.
///
/// # Errors
/// The record is over the limit.
pub fn check_size(payload: &[u8]) -> Result<(), JournalError> {
    if payload.len() > crate::store::RECORD_BYTES_MAX {
        return Err(JournalError::RecordTooLarge { length: payload.len() });
    }
    Ok(())
}
