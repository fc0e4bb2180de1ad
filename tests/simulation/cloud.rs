//! Simulated aggregators and their lake: epochs in steps that may stop after any of them.

use std::collections::{BTreeMap, BTreeSet};

use aggregator_core::checkpoint::{
    EpochFile, EpochId, FoundFile, FoundTransactions, Nonce, PartitionEpoch, PendingRows, Recovery,
    SavedState, SideTable, StateBook, TopicPartition, check_ownership, is_obsolete, owes_rows,
    resolve, restore_state,
};
use aggregator_core::rows::{DeadLetterRow, LateReadingRow, MachineEventRow, Offset};
use aggregator_core::{
    AlertBook, AlertEvent, AnomalyRow, Disposition, Micros, Outputs, PartitionState,
    ProcessingTime, Settings,
};
use shared_proto::model::{DeadLetter, Reading};

use crate::broker::{Broker, Payload};
use crate::random::Random;
use crate::world::{Clock, Faults, SECOND, Totals};

pub(crate) fn settings() -> Settings {
    Settings {
        allowed_lateness: Micros::from_seconds(5),
        idle_timeout: Micros::from_seconds(30),
        closed_window_retention: Micros::from_seconds(180),
        ..Settings::default()
    }
}

/// Tables, their transactions and the state files. Each commit is whole.
#[derive(Debug, Default)]
pub(crate) struct Lake {
    pub(crate) telemetry: Vec<Reading>,
    pub(crate) anomalies: Vec<AnomalyRow>,
    pub(crate) late_readings: Vec<LateReadingRow>,
    pub(crate) machine_events: Vec<MachineEventRow>,
    pub(crate) dead_letters: Vec<DeadLetterRow>,
    /// As they left, repeats and all.
    pub(crate) alerts: Vec<AlertEvent>,
    decided: BTreeMap<TopicPartition, EpochId>,
    followed: BTreeMap<SideTable, BTreeMap<TopicPartition, EpochId>>,
    /// State files by epoch, as text.
    files: BTreeMap<EpochId, String>,
}

impl Lake {
    /// What a state file has of a partition's state.
    fn state(&self, epoch: EpochId, partition: &TopicPartition) -> SavedState {
        let text = self.files.get(&epoch).expect("a file that is named is there");
        let mut file: EpochFile = serde_json::from_str(text).expect("a state file reads back");
        file.partitions.remove(partition).expect("its partition").state
    }

    /// Deletes state files as the program does.
    fn clean(&mut self) {
        let files = |(partition, epoch): (&TopicPartition, &EpochId)| {
            let before = self.state(*epoch, partition).files().to_vec();
            (partition.clone(), before.into_iter().chain([*epoch]).collect())
        };
        let named: BTreeMap<TopicPartition, BTreeSet<EpochId>> =
            self.decided.iter().map(files).collect();
        self.files.retain(|epoch, text| {
            let file: EpochFile = serde_json::from_str(text).expect("it was written here");
            !is_obsolete(*epoch, file.partitions.keys(), &named)
        });
    }

    /// Step 3 for one table and partition; nothing if another owner was here before.
    fn follow(
        &mut self,
        table: SideTable,
        partition: &TopicPartition,
        epoch: EpochId,
        rows: &PendingRows,
    ) -> bool {
        let transactions = self.followed.entry(table).or_default();
        if !owes_rows(transactions.get(partition).copied(), epoch) {
            return false;
        }
        transactions.insert(partition.clone(), epoch);
        match table {
            SideTable::Anomalies => self.anomalies.extend(rows.anomalies.iter().cloned()),
            SideTable::LateReadings => {
                self.late_readings.extend(rows.late_readings.iter().cloned());
            }
            SideTable::MachineEvents => {
                self.machine_events.extend(rows.machine_events.iter().cloned());
            }
            SideTable::DeadLetters => self.dead_letters.extend(rows.dead_letters.iter().cloned()),
            // Nothing here gives rows for them.
            SideTable::Alerts | SideTable::Outcomes | SideTable::Waveforms => {}
        }
        true
    }

    fn found(&self, partition: &TopicPartition) -> FoundTransactions {
        let of = |(table, epochs): (&SideTable, &BTreeMap<TopicPartition, EpochId>)| {
            epochs.get(partition).map(|epoch| (*table, *epoch))
        };
        FoundTransactions {
            telemetry: self.decided.get(partition).copied(),
            side_tables: self.followed.iter().filter_map(of).collect(),
        }
    }
}

/// A partition in the memory of its owner.
#[derive(Debug)]
struct Owned {
    state: PartitionState,
    next_offset: usize,
    known: Option<EpochId>,
    telemetry: Vec<Reading>,
    rows: PendingRows,
    alerts: Vec<AlertEvent>,
    has_news: bool,
    book: StateBook,
}

#[derive(Debug)]
struct Commit {
    file: EpochFile,
    telemetry: Vec<Reading>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Decide,
    Follow(usize),
    Alert,
}

/// One process of the consumer group.
#[derive(Debug, Default)]
pub(crate) struct Instance {
    owned: BTreeMap<TopicPartition, Owned>,
    commit: Option<Commit>,
    last_epoch: Option<EpochId>,
    down_until: i64,
}

impl Instance {
    pub(crate) fn step(
        &mut self,
        clock: Clock,
        faults: &Faults,
        broker: &Broker,
        lake: &mut Lake,
        totals: &mut Totals,
        random: &mut Random,
    ) {
        if clock.micros < self.down_until {
            return;
        }
        if self.commit.is_none() {
            self.consume(clock, broker, random);
            if random.chance(300) {
                self.begin(ProcessingTime::from_micros(clock.micros), random);
            }
        }
        for _ in 0..=random.below(8) {
            if !self.advance_commit(lake, totals) {
                let lost: BTreeSet<TopicPartition> = self.owned.keys().cloned().collect();
                self.assign(&lost, clock, lake, totals);
            }
        }
        if random.chance(faults.crash_per_mille) {
            totals.cloud_crashes += 1;
            self.commit = None;
            let mine: BTreeSet<TopicPartition> = self.owned.keys().cloned().collect();
            self.assign(&mine, clock, lake, totals);
            self.down_until = clock.micros + random.between(0, 20 * SECOND);
        }
    }

    /// A restart or a rebalance: forgets everything and takes these partitions as the lake has them.
    pub(crate) fn assign(
        &mut self,
        partitions: &BTreeSet<TopicPartition>,
        clock: Clock,
        lake: &mut Lake,
        totals: &mut Totals,
    ) {
        self.commit = None;
        self.owned.clear();
        for partition in partitions {
            let owned = self.recover(partition, clock, lake, totals);
            self.last_epoch = self.last_epoch.max(owned.known);
            self.owned.insert(partition.clone(), owned);
        }
    }

    pub(crate) fn partitions(&self) -> BTreeSet<TopicPartition> {
        self.owned.keys().cloned().collect()
    }

    pub(crate) fn is_drained(&self, broker: &Broker) -> bool {
        self.commit.is_none()
            && self.owned.iter().all(|(partition, owned)| {
                owned.next_offset == broker.logs[partition].len()
                    && !owned.has_news
                    && owned.state.poll_timeout(&settings()).is_none()
            })
    }

    pub(crate) fn heal(&mut self) {
        self.down_until = 0;
    }

    pub(crate) fn states(&self) -> impl Iterator<Item = (&TopicPartition, &PartitionState)> {
        self.owned.iter().map(|(partition, owned)| (partition, &owned.state))
    }

    fn recover(
        &mut self,
        partition: &TopicPartition,
        clock: Clock,
        lake: &mut Lake,
        totals: &mut Totals,
    ) -> Owned {
        let found = lake.found(partition);
        let text = found.telemetry.and_then(|epoch| lake.files.get(&epoch));
        let file: Option<EpochFile> =
            text.map(|text| serde_json::from_str(text).expect("a state file reads back"));
        let on_disk = file.as_ref().map_or(FoundFile::Absent, FoundFile::Present);
        let mut owned = Owned {
            state: PartitionState::new(&settings()),
            next_offset: 0,
            known: found.telemetry,
            telemetry: Vec::new(),
            rows: PendingRows::default(),
            alerts: Vec::new(),
            has_news: false,
            book: StateBook::default(),
        };
        match resolve(partition, &found, on_disk) {
            Recovery::Fresh => {}
            Recovery::Resume { epoch, next_offset, roll_forward } => {
                let file = file.expect("resumed from it");
                let last = &file.partitions[partition];
                for table in roll_forward {
                    let is_first = lake.follow(table, partition, epoch, &last.rows);
                    totals.rolled_forward += usize::from(is_first);
                }
                lake.alerts.extend(last.alerts.iter().cloned());
                let read = |epoch: &EpochId| (*epoch, lake.state(*epoch, partition));
                let before: Vec<_> = last.state.files().iter().map(read).collect();
                owned.state = restore_state(epoch, last.state.clone(), before).expect("it fits");
                let now = ProcessingTime::from_micros(clock.micros);
                owned.state.resume(&settings(), now);
                owned.next_offset = usize::try_from(next_offset.0).expect("not negative");
            }
            Recovery::Corrupt(corruption) => panic!("{partition}: {corruption}"),
        }
        owned
    }

    fn consume(&mut self, clock: Clock, broker: &Broker, random: &mut Random) {
        let now = ProcessingTime::from_micros(clock.micros);
        let settings = settings();
        for (partition, owned) in &mut self.owned {
            let log = &broker.logs[partition];
            let end = log.len().min(owned.next_offset + random.below(40));
            for payload in &log[owned.next_offset..end] {
                owned.take(payload, now, &settings);
            }
            let is_due = owned.state.poll_timeout(&settings).is_some_and(|at| at <= now);
            if is_due && owned.next_offset == log.len() {
                let mut out = Outputs::default();
                owned.state.handle_timeout(now, &settings, &mut out);
                owned.keep(out);
            }
        }
    }

    /// Freezes what was taken since the last epoch.
    fn begin(&mut self, now: ProcessingTime, random: &mut Random) {
        let settings = settings();
        let nonce = Nonce(random.next());
        let epoch = EpochId::after(self.last_epoch, nonce).expect("few epochs");
        let mut telemetry = Vec::new();
        let mut partitions = BTreeMap::new();
        for (partition, owned) in &mut self.owned {
            if !std::mem::take(&mut owned.has_news) {
                continue;
            }
            let mut out = Outputs::default();
            owned.state.handle_trigger(now, &settings, &mut out);
            owned.rows.anomalies.append(&mut out.anomalies);
            telemetry.append(&mut owned.telemetry);
            let state = if owned.book.takes_changes() && !owned.state.is_whole_due() {
                let files = owned.book.files().to_vec();
                let changes = Box::new(owned.state.take_changes());
                owned.book.save_changes(epoch, &changes, 1);
                SavedState::Changes { files, changes }
            } else {
                owned.book.save_whole(epoch, 4);
                owned.state.mark_saved();
                SavedState::Whole(Box::new(owned.state.clone()))
            };
            let entry = PartitionEpoch {
                next_offset: Offset(i64::try_from(owned.next_offset).expect("few records")),
                last_record: None,
                state,
                rows: std::mem::take(&mut owned.rows),
                alerts: std::mem::take(&mut owned.alerts),
                owed_to: BTreeMap::new(),
                book: AlertBook::default(),
                watch: None,
                is_hub: false,
            };
            partitions.insert(partition.clone(), entry);
        }
        if partitions.is_empty() {
            return;
        }
        self.last_epoch = Some(epoch);
        let file = EpochFile::new(epoch, partitions);
        self.commit = Some(Commit { file, telemetry, step: Step::Write });
    }

    /// Performs one step of the commit. False: another instance owns one of its partitions.
    fn advance_commit(&mut self, lake: &mut Lake, totals: &mut Totals) -> bool {
        let Some(mut commit) = self.commit.take() else { return true };
        let epoch = commit.file.epoch;
        commit.step = match commit.step {
            Step::Write => {
                let text = serde_json::to_string(&commit.file).expect("finite numbers");
                lake.files.insert(epoch, text);
                Step::Decide
            }
            Step::Decide => {
                let known = |partition: &TopicPartition| self.owned[partition].known;
                let expected =
                    commit.file.partitions.keys().map(|p| (p.clone(), known(p))).collect();
                if check_ownership(&expected, &lake.decided).is_err() {
                    totals.ownership_lost += 1;
                    return false;
                }
                lake.telemetry.append(&mut commit.telemetry);
                for partition in commit.file.partitions.keys() {
                    lake.decided.insert(partition.clone(), epoch);
                    self.owned.get_mut(partition).expect("frozen above").known = Some(epoch);
                }
                totals.epochs += 1;
                Step::Follow(0)
            }
            Step::Follow(index) => match SideTable::ALL.get(index) {
                Some(table) => {
                    for (partition, last) in &commit.file.partitions {
                        if last.rows.count(*table) > 0 {
                            lake.follow(*table, partition, epoch, &last.rows);
                        }
                    }
                    Step::Follow(index + 1)
                }
                None => Step::Alert,
            },
            Step::Alert => {
                for last in commit.file.partitions.values() {
                    lake.alerts.extend(last.alerts.iter().cloned());
                }
                lake.clean();
                return true;
            }
        };
        self.commit = Some(commit);
        true
    }
}

impl Owned {
    fn take(&mut self, payload: &Payload, now: ProcessingTime, settings: &Settings) {
        let offset = Offset(i64::try_from(self.next_offset).expect("few records"));
        self.next_offset += 1;
        self.has_news = true;
        match payload {
            Payload::Reading(reading) => {
                let mut out = Outputs::default();
                let disposition = self.state.handle_reading(reading, now, settings, &mut out);
                self.keep(out);
                self.keep_reading(reading, offset, now, disposition);
            }
            Payload::Event(event) => {
                if self.is_new(payload, settings) {
                    let row = MachineEventRow::new(offset, now, (**event).clone());
                    self.rows.machine_events.push(row);
                }
            }
            Payload::Letter(letter) => {
                if self.is_new(payload, settings) {
                    self.rows.dead_letters.push(DeadLetterRow::new(offset, now, letter.clone()));
                }
            }
            Payload::Garbage => {
                self.state.handle_undecodable();
                let at = now.as_event_time();
                let letter = DeadLetter::new("not-json", String::new(), "temperature", at, b"{");
                self.rows.dead_letters.push(DeadLetterRow::new(offset, now, letter));
            }
        }
    }

    fn is_new(&mut self, payload: &Payload, settings: &Settings) -> bool {
        self.state.handle_identity(payload.identity(), settings) == Disposition::Counted
    }

    fn keep_reading(
        &mut self,
        reading: &Reading,
        offset: Offset,
        now: ProcessingTime,
        disposition: Disposition,
    ) {
        match disposition {
            Disposition::Counted => self.telemetry.push(reading.clone()),
            Disposition::Late => {
                self.rows.late_readings.push(LateReadingRow::new(offset, now, reading.clone()));
            }
            Disposition::Duplicate => {}
            Disposition::DeadLetter { reason, detail } => {
                let at = now.as_event_time();
                let mut letter = DeadLetter::new(reason, detail, "temperature", at, b"{}");
                letter.identity.clone_from(&reading.identity);
                self.rows.dead_letters.push(DeadLetterRow::new(offset, now, letter));
            }
        }
    }

    fn keep(&mut self, out: Outputs) {
        self.has_news = true;
        self.rows.anomalies.extend(out.anomalies);
        // Each finding is an alert of its own here; how they are put together is tested in the core.
        self.alerts.extend(out.findings.into_iter().map(AlertEvent::from));
    }
}
