//! From bytes to rows, in memory: decode, then the core, then rows for the tables of the epoch.
//!
//! Every record becomes exactly one row, or none if it was seen before; [`Counting::check_balance`] proves it against
//! the core's own counts before each commit.

mod alerting;
mod hub;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use aggregator_core::accounting::reason;
use aggregator_core::checkpoint::{
    EpochFileRef, EpochId, FILE_FORMAT, OwedTo, PartitionEpochRef, PendingRows, RecordMark,
    SavedStateRef, StateBook, TopicPartition,
};
use aggregator_core::gaps::{GapChange, GapLimits, SavedWatch};
use aggregator_core::hub::position;
use aggregator_core::partition::Figures;
use aggregator_core::rows::{DeadLetterRow, LateReadingRow, MachineEventRow, Offset, WaveformRow};
use aggregator_core::{
    Accounting, AlertBook, AlertEvent, Disposition, OutputMode, Outputs, PartitionState,
    ProcessingTime, Rule, Settings,
};
use deltalake::arrow::datatypes::SchemaRef;
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::record_batch::RecordBatch;
use metrics::counter;
use serde::ser::{Error as _, Serialize, SerializeMap as _, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use shared_proto::codec::{
    DecodeError, Decoder, decode_dead_letter, decode_machine_event, decode_outcome,
    decode_waveform_snapshot,
};
use shared_proto::model::{
    DeadLetter, Identity, MachineEvent, MachineEventDetails, MachineEventType, MachineId, Outcome,
    Reading,
};

use crate::config::Epoch;
use crate::gap_watch::{Scanned, event_of};
use crate::outcomes::counts::OutcomeCounts;
use crate::sink::commit::EpochCommit;
use crate::sink::rows::ReadingColumns;
use crate::sink::state_file::StateBytes;
use crate::source::{Batch, Gap, RawRecord, TopicKind};
use crate::telemetry::names;

pub use alerting::undelivered;

/// Reason of dead letters above `kafka.record-bytes-max`.
const REASON_TOO_LARGE: &str = "too-large";

/// One partition in service.
#[derive(Debug)]
pub struct Partition {
    /// Which.
    pub id: TopicPartition,
    /// What its records are.
    pub kind: TopicKind,
    /// Last epoch that was committed for it.
    pub known: Option<EpochId>,
    /// Offset of the first record not taken yet.
    pub next_offset: i64,
    /// The record before it, if one was read.
    pub last_record: Option<RecordMark>,
    /// The group has given it to somebody else: its slot is free.
    pub is_given_up: bool,
    /// The watch over the devices' records, where it goes with this partition.
    pub watch: Option<Box<SavedWatch>>,
    state: PartitionState,
    rows: PendingRows,
    alerts: Vec<AlertEvent>,
    /// The alerts that are open.
    open_alerts: AlertBook,
    accounting_before: Accounting,
    /// The state files that hold the state.
    book: StateBook,
}

impl Partition {
    /// Takes a partition into service.
    #[must_use]
    pub fn new(
        id: TopicPartition,
        kind: TopicKind,
        known: Option<EpochId>,
        next_offset: i64,
        state: PartitionState,
    ) -> Self {
        let accounting_before = state.accounting();
        Self {
            id,
            kind,
            known,
            next_offset,
            last_record: None,
            is_given_up: false,
            watch: None,
            state,
            rows: PendingRows::default(),
            alerts: Vec::new(),
            open_alerts: AlertBook::default(),
            accounting_before,
            book: StateBook::default(),
        }
    }

    /// The state as JSON: whole, or what has changed since the epoch before.
    fn save_state(&mut self, epoch: EpochId) -> Result<Box<RawValue>, serde_json::Error> {
        if self.book.takes_changes() && !self.state.is_whole_due() {
            let changes = self.state.take_changes();
            let files = self.book.files();
            let saved = to_raw_value(&SavedStateRef::Changes { files, changes: &changes })?;
            self.book.save_changes(epoch, &changes, saved.get().len());
            return Ok(saved);
        }
        let saved = to_raw_value(&SavedStateRef::Whole(&self.state))?;
        self.state.mark_saved();
        self.book.save_whole(epoch, saved.get().len());
        Ok(saved)
    }

    /// With the watch over the devices' records, if it goes with this partition.
    #[must_use]
    pub fn watching(mut self, watch: Option<Box<SavedWatch>>) -> Self {
        self.watch = watch;
        self
    }

    /// Keeps an alert that a channel will never take.
    pub fn keep_undelivered(&mut self, letter: DeadLetter, now: ProcessingTime) {
        self.dead_letter(self.row_offset(self.next_offset), now, letter);
    }

    /// What a row of its own says in place of a Kafka offset.
    fn row_offset(&self, offset: i64) -> i64 {
        if self.is_hub() { position(offset, 0) } else { offset }
    }

    fn is_hub(&self) -> bool {
        self.kind == TopicKind::Hub
    }

    fn dead_letter(&mut self, offset: i64, now: ProcessingTime, letter: DeadLetter) {
        self.rows.dead_letters.push(DeadLetterRow::new(Offset(offset), now, letter));
    }
}

/// What became of the records of an epoch, counted by the rows that were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Taken from Kafka.
    pub records_in: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Rows of `telemetry`, or of the table of the record's own kind.
    pub counted: u64,
    /// Rows of `late_readings`.
    pub late: u64,
    /// No row: seen before.
    pub duplicates: u64,
    /// Rows of `dead_letters` for records that were refused here.
    pub dead_letters: u64,
}

impl Tally {
    /// Whether the epoch is to end early.
    #[must_use]
    pub fn is_full(&self, limits: &Epoch) -> bool {
        self.records_in >= limits.records_max
            || self.bytes >= limits.bytes_max
            || self.late + self.dead_letters >= limits.refused_max
    }
}

/// The counts do not add up: a record would be lost or doubled. Nothing of the epoch may be committed.
#[derive(Debug, thiserror::Error)]
#[error("records do not add up: {tally:?} by rows, {core:?} by the core")]
pub struct Imbalance {
    tally: Tally,
    core: Accounting,
}

/// The partitions of a state file. Each state is made when its turn comes and is gone after it: a million windows are a hundred
/// megabytes of JSON, which must not be there twice.
struct SavedOneByOne<'a, F> {
    partitions: RefCell<&'a mut Vec<Partition>>,
    epoch: EpochId,
    owed: F,
}

impl<F: Fn(&TopicPartition) -> (Vec<AlertEvent>, OwedTo)> Serialize for SavedOneByOne<'_, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for partition in self.partitions.borrow_mut().iter_mut() {
            if partition.is_given_up {
                continue;
            }
            let state = partition.save_state(self.epoch).map_err(S::Error::custom)?;
            let (owed, owed_to) = (self.owed)(&partition.id);
            let entry = PartitionEpochRef {
                next_offset: Offset(partition.next_offset),
                last_record: partition.last_record,
                state,
                rows: &partition.rows,
                alerts: owed.iter().chain(&partition.alerts).collect(),
                owed_to: &owed_to,
                book: &partition.open_alerts,
                watch: partition.watch.as_deref(),
                is_hub: partition.is_hub(),
            };
            map.serialize_entry(&partition.id, &entry)?;
        }
        map.end()
    }
}

/// What was counted in one epoch.
#[derive(Debug)]
pub struct TakenEpoch {
    /// For the lake.
    pub commit: EpochCommit,
    /// Alerts that may leave once it is committed.
    pub alerts: Vec<(TopicPartition, AlertEvent)>,
    /// Where each partition's next epoch begins.
    pub offsets: Vec<(TopicPartition, i64)>,
    /// What became of the records.
    pub tally: Tally,
    /// Records that were refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// All partitions of an assignment and the rows since the last commit.
#[derive(Debug)]
pub struct Counting {
    settings: Arc<Settings>,
    /// In the order of the assignment's slots.
    pub partitions: Vec<Partition>,
    decoder: Decoder,
    telemetry: ReadingColumns,
    keeps_readings: bool,
    tally: Tally,
    refused: BTreeMap<&'static str, u64>,
    outputs: Outputs,
    outcome_counts: OutcomeCounts,
    is_dirty: bool,
}

impl Counting {
    /// Takes partitions into service. `schema` is that of `telemetry`, to which readings go if it `keeps_readings`.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        schema: SchemaRef,
        keeps_readings: bool,
        partitions: Vec<Partition>,
    ) -> Self {
        // What `current_windows` is to hold may not be there: a crash comes before it is written.
        let is_complete = |rule: &Rule| rule.output_mode == OutputMode::Complete;
        let is_dirty = !partitions.is_empty() && settings.rules.iter().any(is_complete);
        Self {
            settings,
            partitions,
            decoder: Decoder::default(),
            telemetry: ReadingColumns::new(schema),
            keeps_readings,
            tally: Tally::default(),
            refused: BTreeMap::new(),
            outputs: Outputs::default(),
            outcome_counts: OutcomeCounts::default(),
            is_dirty,
        }
    }

    /// Takes a partition into service beside the others, in a slot that is free or the next.
    pub fn add(&mut self, slot: usize, mut partition: Partition) {
        // They may have changed since it was recovered.
        partition.state.change_rules(&self.settings.rules);
        match self.partitions.get_mut(slot) {
            Some(free) => *free = partition,
            None => self.partitions.push(partition),
        }
    }

    /// Takes partitions out of service; what they have not committed is dropped, so commit before.
    pub fn give_up(&mut self, ids: &[TopicPartition]) {
        for partition in &mut self.partitions {
            if ids.contains(&partition.id) && !partition.is_given_up {
                let state = PartitionState::new(&self.settings);
                let id = partition.id.clone();
                *partition = Partition::new(id, partition.kind, None, 0, state);
                partition.is_given_up = true;
            }
        }
    }

    /// Partitions in service.
    pub fn in_service(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(|partition| !partition.is_given_up)
    }

    /// Takes all records of a batch.
    ///
    /// # Errors
    /// A row does not fit its columns.
    pub fn handle_batch(&mut self, batch: &Batch, now: ProcessingTime) -> Result<(), ArrowError> {
        let before = self.tally.records_in;
        for record in &batch.records {
            let payload = batch.payload(record);
            self.tally.bytes += payload.len() as u64;
            let partition = &mut self.partitions[record.slot];
            partition.next_offset = record.offset + 1;
            let mark = |stamped_ms| RecordMark { offset: record.offset, stamped_ms };
            partition.last_record = record.stamped_ms.map(mark);
            let kind = partition.kind;
            if kind == TopicKind::Hub {
                self.handle_message(record, payload, now)?;
            } else {
                self.handle_record(record, kind, payload, now)?;
            }
            self.keep_outputs(record.slot, now);
        }
        self.is_dirty |= !batch.records.is_empty();
        counter!(names::RECORDS_IN_TOTAL).increment(self.tally.records_in - before);
        Ok(())
    }

    fn handle_record(
        &mut self,
        record: &RawRecord,
        kind: TopicKind,
        payload: &[u8],
        now: ProcessingTime,
    ) -> Result<(), ArrowError> {
        self.tally.records_in += 1;
        if record.length > payload.len() {
            let detail = format!(
                "the record has {} bytes, at most {} are read: raise kafka.record-bytes-max",
                record.length,
                payload.len()
            );
            self.refuse(record, payload, now, REASON_TOO_LARGE, detail);
            return Ok(());
        }
        let encoding = match &record.encoding {
            Ok(encoding) => *encoding,
            Err(error) => {
                self.refuse_undecodable(record, payload, now, error);
                return Ok(());
            }
        };
        match kind {
            TopicKind::Readings => match self.decoder.decode_reading(payload, encoding) {
                Ok(decoded) => {
                    if decoded.unknown_fields > 0 {
                        counter!(names::UNKNOWN_FIELDS_TOTAL)
                            .increment(u64::from(decoded.unknown_fields));
                    }
                    self.handle_reading(record, payload, now, decoded.reading)?;
                }
                Err(error) => self.refuse_undecodable(record, payload, now, &error),
            },
            TopicKind::MachineEvents => match decode_machine_event(payload, encoding) {
                Ok(event) => {
                    if self.is_new(record, event.identity.as_ref()) {
                        self.judge_event(record.slot, &event, now);
                        let row = MachineEventRow::new(Offset(record.offset), now, event);
                        self.partitions[record.slot].rows.machine_events.push(row);
                    }
                }
                Err(error) => self.refuse_undecodable(record, payload, now, &error),
            },
            TopicKind::DeadLetters => match decode_dead_letter(payload, encoding) {
                Ok(letter) => {
                    if self.is_new(record, letter.identity.as_ref()) {
                        self.partitions[record.slot].dead_letter(record.offset, now, letter);
                    }
                }
                Err(error) => self.refuse_undecodable(record, payload, now, &error),
            },
            TopicKind::Outcomes => match decode_outcome(payload, encoding) {
                Ok(outcome) => self.handle_outcome(record, payload, now, outcome),
                Err(error) => self.refuse_undecodable(record, payload, now, &error),
            },
            TopicKind::Waveforms => match decode_waveform_snapshot(payload) {
                Ok(snapshot) => {
                    if self.is_new(record, snapshot.identity.as_ref()) {
                        let row = WaveformRow::new(Offset(record.offset), now, snapshot);
                        self.partitions[record.slot].rows.waveforms.push(row);
                    }
                }
                Err(error) => self.refuse_undecodable(record, payload, now, &error),
            },
            // No name of a hub's stands for a hub.
            TopicKind::Hub => {
                let detail = hub::unknown_topic(record.message.as_deref());
                self.refuse(record, payload, now, hub::REASON_TOPIC, detail);
            }
        }
        Ok(())
    }

    fn handle_reading(
        &mut self,
        record: &RawRecord,
        payload: &[u8],
        now: ProcessingTime,
        reading: Reading,
    ) -> Result<(), ArrowError> {
        let partition = &mut self.partitions[record.slot];
        let settings = &self.settings;
        let state = &mut partition.state;
        let disposition = if record.is_replay {
            state.handle_replay(&reading, now, settings, &mut self.outputs)
        } else {
            state.handle_reading_of(record.lane(), &reading, now, settings, &mut self.outputs)
        };
        match disposition {
            Disposition::Counted => {
                if self.keeps_readings {
                    self.telemetry.push(&reading, &partition.id, record.offset)?;
                }
                self.tally.counted += 1;
            }
            Disposition::Late => {
                let row = LateReadingRow::new(Offset(record.offset), now, reading);
                partition.rows.late_readings.push(row);
                self.tally.late += 1;
            }
            Disposition::Duplicate => self.tally.duplicates += 1,
            Disposition::DeadLetter { reason, detail } => {
                let mut letter = self.letter(record, payload, now, reason, detail);
                // Else the device's record would be missing.
                letter.identity = reading.identity;
                self.bury(record, now, letter);
            }
        }
        Ok(())
    }

    /// Whether a record of a topic without windows is new.
    fn is_new(&mut self, record: &RawRecord, identity: Option<&Identity>) -> bool {
        let state = &mut self.partitions[record.slot].state;
        let identity = identity.filter(|_| !record.is_replay);
        match state.handle_identity_of(record.lane(), identity, &self.settings) {
            Disposition::Duplicate => {
                self.tally.duplicates += 1;
                false
            }
            // The core gives no other answer for such topics; a row keeps the record in any case.
            Disposition::Counted | Disposition::Late | Disposition::DeadLetter { .. } => {
                self.tally.counted += 1;
                true
            }
        }
    }

    /// One of a time to come would be the newest for ever.
    fn handle_outcome(
        &mut self,
        record: &RawRecord,
        payload: &[u8],
        now: ProcessingTime,
        outcome: Outcome,
    ) {
        let latest = now.saturating_add(self.settings.future_limit).as_event_time();
        if outcome.timestamp > latest {
            let detail = format!(
                "timestamp {} is more than counting.future-limit ahead of this machine's clock",
                outcome.timestamp
            );
            self.refuse(record, payload, now, reason::TIMESTAMP_IN_FUTURE, detail);
        } else if self.is_new(record, None) {
            self.outcome_counts.count(&outcome);
            let row = alerting::outcome_row(Offset(record.offset), now, outcome);
            self.partitions[record.slot].rows.outcomes.push(row);
        }
    }

    fn refuse_undecodable(
        &mut self,
        record: &RawRecord,
        payload: &[u8],
        now: ProcessingTime,
        error: &DecodeError,
    ) {
        self.refuse(record, payload, now, error.reason(), error.detail());
    }

    fn refuse(
        &mut self,
        record: &RawRecord,
        payload: &[u8],
        now: ProcessingTime,
        reason: &'static str,
        detail: String,
    ) {
        self.partitions[record.slot].state.handle_undecodable();
        let letter = self.letter(record, payload, now, reason, detail);
        self.bury(record, now, letter);
    }

    fn letter(
        &mut self,
        record: &RawRecord,
        payload: &[u8],
        now: ProcessingTime,
        reason: &'static str,
        detail: String,
    ) -> DeadLetter {
        *self.refused.entry(reason).or_default() += 1;
        let topic = &self.partitions[record.slot].id.topic;
        let source = record.source(topic);
        let mut letter = DeadLetter::new(reason, detail, &source, now.as_event_time(), payload);
        letter.raw_length = record.length as u64;
        letter
    }

    fn bury(&mut self, record: &RawRecord, now: ProcessingTime, letter: DeadLetter) {
        self.tally.dead_letters += 1;
        let mut row = DeadLetterRow::new(Offset(record.offset), now, letter);
        row.content_type = Some(match &record.encoding {
            Ok(encoding) => encoding.content_type().to_owned(),
            Err(DecodeError::ContentType(other)) => other.clone(),
            Err(error) => error.to_string(),
        });
        self.partitions[record.slot].rows.dead_letters.push(row);
    }

    /// Notes that Kafka no longer has some records: a row of `machine_events`.
    pub fn handle_gap(&mut self, slot: usize, gap: &Gap, group: &MachineId, now: ProcessingTime) {
        let partition = &mut self.partitions[slot];
        let lost = u64::try_from(gap.resumed - gap.expected).ok();
        counter!(names::KAFKA_GAP_RECORDS_TOTAL, "cause" => gap.cause.as_str())
            .increment(lost.unwrap_or(0));
        let details = MachineEventDetails {
            cause: Some(gap.cause.as_str().to_owned()),
            first_sequence: u64::try_from(gap.expected).ok(),
            last_sequence: lost.and_then(|_| u64::try_from(gap.resumed - 1).ok()),
            record_count: lost,
            detail: Some(format!(
                "kafka has no record {} of {} any more, reading goes on at {}; sequences are offsets",
                gap.expected, partition.id, gap.resumed
            )),
            ..MachineEventDetails::default()
        };
        let event = MachineEvent {
            event_type: MachineEventType::Gap,
            machine_id: group.clone(),
            timestamp: now.as_event_time(),
            identity: None,
            historical: false,
            details,
        };
        let offset = Offset(partition.row_offset(gap.resumed));
        partition.rows.machine_events.push(MachineEventRow::new(offset, now, event));
        partition.next_offset = gap.resumed;
        partition.last_record = None;
        self.is_dirty = true;
    }

    /// Slot of the partition with which the watch over the devices' records goes.
    #[must_use]
    pub fn watch_slot(&self) -> Option<usize> {
        let is_here = |partition: &Partition| partition.watch.is_some() && !partition.is_given_up;
        self.partitions.iter().position(is_here)
    }

    /// Takes what has become rows. What has opened or closed becomes a row of `machine_events`; gives it, and what devices told as
    /// lost: cause and records.
    pub fn handle_scan(
        &mut self,
        slot: usize,
        scanned: &Scanned,
        group: &MachineId,
        now: ProcessingTime,
        limits: &GapLimits,
    ) -> (Vec<GapChange>, Vec<(String, u64)>) {
        let partition = &mut self.partitions[slot];
        let Some(saved) = &mut partition.watch else { return (Vec::new(), Vec::new()) };
        let lost = scanned.tell(saved, now, limits);
        let changes = saved.watch.poll(now, limits);
        for change in &changes {
            let event = event_of(change, group, now);
            let offset = Offset(partition.row_offset(partition.next_offset));
            let row = MachineEventRow::new(offset, now, event);
            partition.rows.machine_events.push(row);
        }
        self.is_dirty |= !changes.is_empty();
        (changes, lost)
    }

    /// Whether a partition is in service here.
    #[must_use]
    pub fn is_in_service(&self, id: &TopicPartition) -> bool {
        self.in_service().any(|partition| partition.id == *id)
    }

    /// Keeps an alert that a channel will never take, if its partition is in service here.
    pub fn keep_undelivered(
        &mut self,
        id: &TopicPartition,
        letter: DeadLetter,
        now: ProcessingTime,
    ) {
        let is_it = |partition: &&mut Partition| partition.id == *id && !partition.is_given_up;
        if let Some(partition) = self.partitions.iter_mut().find(is_it) {
            partition.keep_undelivered(letter, now);
            self.is_dirty = true;
        }
    }

    /// Slots whose silent sensors are to be looked at now.
    #[must_use]
    pub fn silent_slots(&self, now: ProcessingTime) -> Vec<usize> {
        let is_due = |partition: &Partition| {
            partition.state.poll_timeout(&self.settings).is_some_and(|due| due <= now)
        };
        (0..self.partitions.len()).filter(|slot| is_due(&self.partitions[*slot])).collect()
    }

    /// Closes the windows of silent sensors if the partition is read to its end.
    pub fn handle_end(&mut self, slot: usize, end: i64, now: ProcessingTime) {
        let Some(partition) = self.partitions.get_mut(slot) else { return };
        if partition.next_offset >= end {
            partition.state.handle_timeout(now, &self.settings, &mut self.outputs);
            self.keep_outputs(slot, now);
        }
    }

    /// Says that there is something to commit, although no record came.
    pub fn mark_dirty(&mut self) {
        self.is_dirty = true;
    }

    /// Whether something is to be committed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// What the epoch has so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Rows of `telemetry` that are not encoded yet, if there are at least `at_least`.
    ///
    /// # Errors
    /// The table has a column of ours with another type.
    pub fn take_rows(&mut self, at_least: usize) -> Result<Option<RecordBatch>, ArrowError> {
        if self.telemetry.is_empty() || self.telemetry.len() < at_least {
            return Ok(None);
        }
        self.telemetry.finish().map(Some)
    }

    /// Compares the rows made with the core's counts.
    ///
    /// # Errors
    /// They differ, or do not add up.
    pub fn check_balance(&self) -> Result<(), Imbalance> {
        let tally = self.tally;
        let sum = |each: fn(&Partition) -> Accounting| {
            self.partitions.iter().map(each).fold(Accounting::default(), Accounting::plus)
        };
        let before = sum(|partition| partition.accounting_before);
        let after = sum(|partition| partition.state.accounting());
        let core = Accounting {
            records_in: after.records_in - before.records_in,
            counted: after.counted - before.counted,
            late: after.late - before.late,
            duplicates: after.duplicates - before.duplicates,
            dead_letters: after.dead_letters - before.dead_letters,
        };
        let rows = Accounting {
            records_in: tally.records_in,
            counted: tally.counted,
            late: tally.late,
            duplicates: tally.duplicates,
            dead_letters: tally.dead_letters,
        };
        if rows == core && rows.is_balanced() { Ok(()) } else { Err(Imbalance { tally, core }) }
    }

    /// Takes what was counted since the last epoch: rows, alerts, and the states as they are now. `owed` are the alerts of a
    /// partition that are not delivered yet. Counting goes on while the epoch is committed; if that fails, this value is used up.
    ///
    /// # Errors
    /// A state cannot be written as JSON.
    pub fn take_epoch(
        &mut self,
        epoch: EpochId,
        now: ProcessingTime,
        owed: impl Fn(&TopicPartition) -> (Vec<AlertEvent>, OwedTo),
    ) -> Result<TakenEpoch, serde_json::Error> {
        for slot in 0..self.partitions.len() {
            let state = &mut self.partitions[slot].state;
            state.handle_trigger(now, &self.settings, &mut self.outputs);
            self.keep_outputs(slot, now);
        }
        let partitions =
            SavedOneByOne { partitions: RefCell::new(&mut self.partitions), epoch, owed };
        let file = EpochFileRef { format: FILE_FORMAT, epoch, partitions };
        let mut bytes = StateBytes::default();
        serde_json::to_writer(&mut bytes, &file)?;
        let file = bytes.finish().map_err(serde_json::Error::custom)?;
        let mut taken = TakenEpoch {
            commit: EpochCommit {
                epoch,
                readings: None,
                file,
                files: BTreeMap::new(),
                rows: BTreeMap::new(),
                current: Vec::new(),
            },
            alerts: Vec::new(),
            offsets: Vec::new(),
            tally: std::mem::take(&mut self.tally),
            refused: std::mem::take(&mut self.refused),
        };
        for partition in self.partitions.iter_mut().filter(|partition| !partition.is_given_up) {
            partition.accounting_before = partition.state.accounting();
            let (id, rows) = (partition.id.clone(), std::mem::take(&mut partition.rows));
            taken.offsets.push((id.clone(), partition.next_offset));
            let mut before = partition.book.files().to_vec();
            before.retain(|file| *file != epoch);
            taken.commit.files.insert(id.clone(), before);
            taken.commit.rows.insert(id.clone(), rows);
            let current = partition.state.current_rows(now, &self.settings).into_iter();
            taken.commit.current.extend(current.map(|row| (id.clone(), row)));
            let leaving = partition.alerts.drain(..);
            taken.alerts.extend(leaving.map(|alert| (id.clone(), alert)));
        }
        self.is_dirty = false;
        Ok(taken)
    }

    /// Takes note that the epoch of these partitions is committed.
    pub fn committed(&mut self, epoch: EpochId, offsets: &[(TopicPartition, i64)]) {
        for partition in self.partitions.iter_mut().filter(|partition| !partition.is_given_up) {
            if offsets.iter().any(|(id, _)| *id == partition.id) {
                partition.known = Some(epoch);
            }
        }
    }

    /// Alerts since the last epoch, or since the last call.
    pub fn take_alerts(&mut self) -> Vec<(TopicPartition, AlertEvent)> {
        let mut alerts = Vec::new();
        for partition in &mut self.partitions {
            let leaving = partition.alerts.drain(..);
            alerts.extend(leaving.map(|alert| (partition.id.clone(), alert)));
        }
        alerts
    }

    /// Brings other rules into force, for what is read from here on.
    pub fn change_rules(&mut self, settings: Arc<Settings>, now: ProcessingTime) -> usize {
        let mut windows_forgotten = 0;
        for slot in 0..self.partitions.len() {
            let state = &mut self.partitions[slot].state;
            state.handle_trigger(now, &self.settings, &mut self.outputs);
            windows_forgotten += state.change_rules(&settings.rules).windows_forgotten;
            self.keep_outputs(slot, now);
        }
        self.settings = settings;
        self.is_dirty = true;
        windows_forgotten
    }

    /// What became of all records of the partitions since they were first read, over all restarts.
    #[must_use]
    pub fn accounting(&self) -> Accounting {
        let each = self.partitions.iter().map(|partition| partition.state.accounting());
        each.fold(Accounting::default(), Accounting::plus)
    }

    /// Sizes of all partitions together.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let states = self.partitions.iter().map(|partition| partition.state.figures());
        states.fold(Figures::default(), Figures::plus)
    }

    /// Windows not closed yet. Looks at every window.
    #[must_use]
    pub fn open_windows(&self) -> usize {
        self.partitions.iter().map(|partition| partition.state.open_windows()).sum()
    }
}
