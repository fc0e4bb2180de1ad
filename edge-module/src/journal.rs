//! The task that owns the journal: groups what waits, makes it durable with one fsync, then acknowledges.
//!
//! A group is at most `journal.group-records-max` records; machine events go before readings. When the disk refuses, the
//! group is kept and tried again with the segments opened anew; meanwhile nothing is acknowledged, so the broker keeps
//! what comes after. The stop path does not notice.

use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Publish};
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::{
    DeadLetter, MachineEvent, MachineEventDetails, MachineEventType, MachineId, Sequence,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::admin::{Board, Part};
use crate::kafka::now;
use crate::store::{Journal, JournalError, Lane, Loss, PerLane};
use crate::telemetry;

/// Last durable sequence of each lane.
pub type Durable = PerLane<Sequence>;
/// Last sequence of each lane up to which everything was delivered.
pub type Delivered = PerLane<Sequence>;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
const LEDGER_INTERVAL: Duration = Duration::from_secs(60);

/// A record on its way into the journal.
pub type Entry = (Lane, Vec<u8>);

/// Records of one MQTT message, with what is owed for them.
pub struct Intake {
    /// Encoded records, in order.
    pub records: Vec<Entry>,
    /// To be acknowledged to the broker when the records are durable.
    pub publish: Option<Publish>,
    /// Room in the queue, given back with the value.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// What the journal's task is asked to do.
pub enum JournalCommand {
    /// Make records durable.
    Append(Intake),
    /// Sequences turned out to be unreadable.
    ReportLoss(Loss),
    /// A record that Kafka will never take; answered when the letter is durable.
    DeadLetter(DeadLetter, oneshot::Sender<()>),
    /// Answer when everything before is durable.
    Flush(oneshot::Sender<()>),
}

/// Owner of the journal.
pub struct Recorder {
    journal: Journal,
    machine_id: MachineId,
    group_records_max: usize,
    events: mpsc::Receiver<MachineEvent>,
    commands: mpsc::Receiver<JournalCommand>,
    durable: watch::Sender<Durable>,
    delivered: watch::Receiver<Delivered>,
    broker: AsyncClient,
    board: Board,
    ledger_records: u64,
}

#[derive(Default)]
struct Group {
    records: Vec<Entry>,
    owed: Vec<Publish>,
    permits: Vec<OwnedSemaphorePermit>,
    flushes: Vec<oneshot::Sender<()>>,
}

/// What a recorder works with.
pub struct Connections {
    /// Machine events of the stop path.
    pub events: mpsc::Receiver<MachineEvent>,
    /// Everything else.
    pub commands: mpsc::Receiver<JournalCommand>,
    /// Tells the forwarder what it may send.
    pub durable: watch::Sender<Durable>,
    /// Tells how far delivery has come.
    pub delivered: watch::Receiver<Delivered>,
    /// For acknowledging.
    pub broker: AsyncClient,
    /// Tells operators.
    pub board: Board,
}

/// Everything journalled so far, which the journal found durable when it was opened.
#[must_use]
pub fn durable_at_start(journal: &Journal) -> Durable {
    let mut durable = Durable::default();
    for lane in Lane::ALL {
        *durable.get_mut(lane) = Sequence(journal.next_sequence().0 - 1);
    }
    durable
}

impl Recorder {
    /// Takes the journal over. `machine_id` is the device's own name, for events about itself.
    #[must_use]
    pub fn new(
        journal: Journal,
        machine_id: MachineId,
        group_records_max: usize,
        connections: Connections,
    ) -> Self {
        let Connections { events, commands, durable, delivered, broker, board } = connections;
        Self {
            journal,
            machine_id,
            group_records_max,
            events,
            commands,
            durable,
            delivered,
            broker,
            board,
            ledger_records: 0,
        }
    }

    /// Runs until `stop`, then writes what waits.
    pub async fn run(mut self, losses: Vec<Loss>, mut stop: watch::Receiver<bool>) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        let mut ledger = tokio::time::interval_at(
            tokio::time::Instant::now() + LEDGER_INTERVAL,
            LEDGER_INTERVAL,
        );
        self.board.set(Part::Journal, Ok(()));
        let mut group = Group::default();
        for loss in losses {
            self.add_loss(&loss, &mut group);
        }
        self.commit(group, &stop).await;
        loop {
            let mut group = Group::default();
            let mut is_stopping = *stop.borrow();
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => add_event(&event, &mut group),
                Some(command) = self.commands.recv() => self.handle_command(command, &mut group),
                _ = housekeeping.tick() => self.keep_house(&mut group),
                _ = ledger.tick() => self.add_ledger(&mut group),
                result = stop.changed() => is_stopping |= result.is_err() || *stop.borrow(),
            }
            let is_empty = self.fill(&mut group);
            self.commit(group, &stop).await;
            if is_stopping && is_empty {
                break;
            }
        }
        self.trim();
        self.save_acknowledged();
        info!(next_sequence = self.journal.next_sequence().0, "journal closed");
    }

    /// Takes what waits, up to one group. Says whether nothing is left waiting.
    fn fill(&mut self, group: &mut Group) -> bool {
        while group.records.len() < self.group_records_max {
            if let Ok(event) = self.events.try_recv() {
                add_event(&event, group);
            } else if let Ok(command) = self.commands.try_recv() {
                self.handle_command(command, group);
            } else {
                return true;
            }
        }
        false
    }

    fn handle_command(&mut self, command: JournalCommand, group: &mut Group) {
        match command {
            JournalCommand::Append(intake) => {
                group.records.extend(intake.records);
                group.owed.extend(intake.publish);
                group.permits.extend(intake.permit);
            }
            JournalCommand::Flush(flushed) => group.flushes.push(flushed),
            JournalCommand::ReportLoss(loss) => self.add_loss(&loss, group),
            JournalCommand::DeadLetter(letter, done) => {
                group.flushes.push(done);
                let bytes = codec::encode_dead_letter(&letter, Encoding::Protobuf);
                group.records.push((Lane::DeadLetters, bytes));
            }
        }
    }

    /// Makes a group durable, however often it takes, and acknowledges it.
    async fn commit(&mut self, mut group: Group, stop: &watch::Receiver<bool>) {
        let started = Instant::now();
        if !group.records.is_empty() && !self.append(&group.records, stop).await {
            // Not durable and not acknowledged: the broker delivers it again after the next start.
            return;
        }
        for publish in &group.owed {
            if let Err(error) = self.broker.try_ack(publish) {
                debug!(%error, "acknowledgement not queued: the broker will deliver again");
            }
        }
        if !group.records.is_empty() {
            self.tell(&group.records);
            metrics::histogram!(telemetry::JOURNAL_APPEND_LATENCY).record(started.elapsed());
        }
        for flushed in group.flushes.drain(..) {
            if flushed.send(()).is_err() {
                debug!("nobody waits for the flush any more");
            }
        }
    }

    /// Lets the forwarder go on, and counts.
    fn tell(&mut self, records: &[Entry]) {
        let last = Sequence(self.journal.next_sequence().0 - 1);
        self.durable.send_modify(|durable| {
            for (lane, _) in records {
                *durable.get_mut(*lane) = last;
            }
        });
        for lane in Lane::ALL {
            let count = records.iter().filter(|(of_lane, _)| *of_lane == lane).count();
            if count > 0 {
                metrics::counter!(telemetry::JOURNAL_RECORDS, "lane" => lane.as_str())
                    .increment(count as u64);
            }
        }
        self.ledger_records += records.len() as u64;
    }

    /// Says whether the records are durable; only a stop makes it give up.
    async fn append(&mut self, records: &[Entry], stop: &watch::Receiver<bool>) -> bool {
        let mut wait = RETRY_MIN;
        loop {
            let error = match self.journal.append(records) {
                Ok(_) => {
                    if wait > RETRY_MIN {
                        info!("journal takes records again");
                        self.board.set(Part::Journal, Ok(()));
                    }
                    return true;
                }
                Err(error) => error,
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
            if let Err(error) = self.journal.reopen() {
                error!(error = %chain(&error), "journal cannot be opened again");
            }
        }
    }

    /// Deletes what was delivered.
    fn trim(&mut self) {
        let delivered = *self.delivered.borrow();
        for lane in Lane::ALL {
            if let Err(error) = self.journal.trim(lane, *delivered.get(lane)) {
                warn!(error = %chain(&error), lane = lane.as_str(), "drained segment stays on disk");
            }
        }
    }

    fn keep_house(&mut self, group: &mut Group) {
        self.trim();
        self.save_acknowledged();
        match self.journal.evict() {
            Ok(losses) => {
                for loss in losses {
                    self.add_loss(&loss, group);
                }
            }
            Err(error) => error!(error = %chain(&error), "journal over its cap and cannot evict"),
        }
        metrics::gauge!(telemetry::JOURNAL_BYTES).set(self.journal.bytes() as f64);
    }

    fn save_acknowledged(&mut self) {
        if let Err(error) = self.journal.save_acknowledged() {
            warn!(error = %chain(&error), "delivery progress not saved; more is sent again after a restart");
        }
    }

    fn add_ledger(&mut self, group: &mut Group) {
        let details = MachineEventDetails {
            last_sequence: Some(self.journal.next_sequence().0 - 1),
            record_count: Some(std::mem::take(&mut self.ledger_records)),
            ..MachineEventDetails::default()
        };
        add_event(&self.event(MachineEventType::Ledger, details), group);
    }

    fn add_loss(&self, loss: &Loss, group: &mut Group) {
        log_loss(loss);
        let details = MachineEventDetails {
            cause: Some(loss.cause.as_str().to_owned()),
            first_sequence: Some(loss.first.0),
            last_sequence: Some(loss.last.0),
            record_count: loss.records,
            detail: Some(format!("lane {}", loss.lane.as_str())),
            ..MachineEventDetails::default()
        };
        add_event(&self.event(MachineEventType::Gap, details), group);
    }

    fn event(&self, event_type: MachineEventType, details: MachineEventDetails) -> MachineEvent {
        MachineEvent {
            event_type,
            machine_id: self.machine_id.clone(),
            timestamp: now(),
            identity: None,
            historical: false,
            details,
        }
    }
}

fn log_loss(loss: &Loss) {
    let (lane, cause) = (loss.lane.as_str(), loss.cause.as_str());
    error!(lane, cause, first = loss.first.0, last = loss.last.0, records = ?loss.records, "journal lost records");
    metrics::counter!(telemetry::JOURNAL_LOST, "lane" => lane, "cause" => cause)
        .increment(loss.records.unwrap_or(1));
}

fn add_event(event: &MachineEvent, group: &mut Group) {
    group.records.push((Lane::Events, codec::encode_machine_event(event, Encoding::Protobuf)));
}

/// An error with its sources in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
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
