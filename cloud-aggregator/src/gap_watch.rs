//! Sees which records of which devices have become rows: reads the numbers of all tables, for [`aggregator_core::gaps`].
//!
//! The instance that owns partition 0 of the machine events' topic watches for all of them; what the watch knows goes with
//! that partition's state, so that a gap is reported once whoever owns it. The tables are read along their logs, each commit
//! once, in a task of its own; only the columns of the numbers are fetched. A watch that begins reads the files of the last
//! `gaps.look-back` first, and so does one that was away for longer than the log goes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aggregator_core::checkpoint::SideTable;
use aggregator_core::gaps::{GapChange, GapLimits, LedgerPage, SavedWatch, ToldLoss};
use aggregator_core::ranges::Ranges;
use aggregator_core::{Micros, ProcessingTime};
use deltalake::arrow::record_batch::RecordBatch;
use metrics::{counter, gauge};
use shared_proto::model::{
    DeviceId, Generation, MachineEvent, MachineEventDetails, MachineEventType, MachineId,
};
use shared_proto::sequences;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::config::{self, Settings};
use crate::counting::Counting;
use crate::health::Health;
use crate::lake_reader::{DataFile, Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};
use crate::sink::rows;
use crate::source::AssignmentId;
use crate::telemetry::names;

/// Cause of the rows that the watch makes.
pub const CAUSE_MISSING: &str = "missing";
/// Commits of one table that are read in one go.
const COMMITS_MAX: u64 = 512;
/// Columns that identify a record, and what machine events say of others.
const COLUMNS: [&str; 10] = [
    "device_id",
    "generation",
    "sequence",
    "event_type",
    "cause",
    "first_sequence",
    "last_sequence",
    "record_count",
    "delivered_sequence",
    "waveform_sequences",
];

/// Asks for what is new since these versions.
#[derive(Debug)]
pub struct ScanRequest {
    /// Assignment that asks.
    pub assignment: AssignmentId,
    /// Last versions seen.
    pub versions: BTreeMap<String, u64>,
    /// The aggregator's clock.
    pub now: ProcessingTime,
}

/// The answer.
#[derive(Debug)]
pub struct ScanAnswer {
    /// Assignment that asked.
    pub assignment: AssignmentId,
    /// What was found.
    pub result: Result<Scanned, LakeError>,
}

/// What new rows say.
#[derive(Debug, Default)]
pub struct Scanned {
    versions: BTreeMap<String, u64>,
    seen: BTreeMap<(DeviceId, Generation), Ranges>,
    told: Vec<(DeviceId, Generation, Told)>,
    /// Rows read.
    pub rows: u64,
    /// Ledgers that were ignored, because they speak of numbers that their device had not given yet.
    pub implausible: u64,
    /// Commits were left for the next time.
    pub is_partial: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Page(LedgerPage),
    Loss(ToldLoss, String),
}

/// Gaps named on the status page.
const SHOWN_MAX: usize = 20;
/// Causes that edge modules give; others share a label.
const CAUSES: [&str; 4] = ["evicted-cap", "evicted-disk", "damaged", "dead-letter"];

/// Asks the scanner when it is time, and tells what comes of it.
#[derive(Debug)]
pub struct GapDesk {
    requests: mpsc::Sender<ScanRequest>,
    answers: mpsc::Receiver<ScanAnswer>,
    interval: Duration,
    limits: GapLimits,
    next_at: Instant,
    is_asked: bool,
}

impl GapDesk {
    /// A desk, and what its scanner is to be run with; nothing if the watch is off.
    #[must_use]
    pub fn new(
        settings: &Settings,
    ) -> Option<(Self, mpsc::Receiver<ScanRequest>, mpsc::Sender<ScanAnswer>)> {
        let interval = settings.gaps.check_interval;
        if interval.is_zero() {
            return None;
        }
        if !settings.lake.keeps_readings {
            warn!(
                "lake.keeps-readings is off: nobody can tell which records of devices are missing"
            );
            return None;
        }
        let (requests, to_scanner) = mpsc::channel(1);
        let (from_scanner, answers) = mpsc::channel(1);
        let limits = limits(settings);
        let next_at = Instant::now() + interval;
        let desk = Self { requests, answers, interval, limits, next_at, is_asked: false };
        Some((desk, to_scanner, from_scanner))
    }

    /// Waits for what the scanner found.
    pub async fn answer(&mut self) -> ScanAnswer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // The scanner ends with the process.
            None => std::future::pending().await,
        }
    }

    /// Asks the scanner if it is time and the watch is here.
    pub fn ask(&mut self, counting: &Counting, assignment: AssignmentId, now: ProcessingTime) {
        if self.is_asked || self.next_at > Instant::now() {
            return;
        }
        let watch = counting.watch_slot().and_then(|slot| counting.partitions[slot].watch.as_ref());
        let Some(watch) = watch else { return };
        let request = ScanRequest { assignment, versions: watch.versions.clone(), now };
        self.is_asked = self.requests.try_send(request).is_ok();
    }

    /// Takes what the scanner found; `counting` is there if it is still the one that asked.
    pub fn handle(
        &mut self,
        result: Result<Scanned, LakeError>,
        counting: Option<&mut Counting>,
        group: &MachineId,
        health: &Health,
        now: ProcessingTime,
    ) {
        self.is_asked = false;
        self.next_at = Instant::now() + self.interval;
        let scanned = match result {
            Ok(scanned) => scanned,
            Err(error) => {
                let error = crate::causes::describe(&error);
                warn!(error, "tables cannot be looked at for missing records, trying again");
                return;
            }
        };
        let Some(counting) = counting else { return };
        let Some(slot) = counting.watch_slot() else { return };
        if scanned.is_partial {
            self.next_at = Instant::now();
        }
        let (changes, lost) = counting.handle_scan(slot, &scanned, group, now, &self.limits);
        for change in &changes {
            let device = change.device_id.as_str();
            let text = describe(change);
            match change.closed {
                None => error!(device, text, "records are missing"),
                Some(_) => info!(device, text, "gap closed"),
            }
        }
        for (cause, records) in lost {
            let cause = CAUSES.into_iter().find(|known| *known == cause).unwrap_or("other");
            counter!(names::DEVICE_LOST_RECORDS_TOTAL, "cause" => cause).increment(records);
        }
        if let Some(saved) = &counting.partitions[slot].watch {
            show(saved, health);
        }
    }
}

fn show(saved: &SavedWatch, health: &Health) {
    let figures = saved.watch.figures();
    gauge!(names::DEVICE_GAPS_OPEN).set(figures.open as f64);
    gauge!(names::DEVICE_GAP_RECORDS).set(figures.missing as f64);
    gauge!(names::DEVICE_OWED_RECORDS).set(figures.owed as f64);
    gauge!(names::DEVICE_UNJUDGED_RECORDS).set(figures.unjudged as f64);
    let gaps = saved.watch.open(SHOWN_MAX).into_iter().map(|(device, generation, missing)| {
        let (first, last) = (missing.first().unwrap_or(0), missing.last().unwrap_or(0));
        format!(
            "{device}, generation {}: {} records missing between {first} and {last}",
            generation.0,
            missing.count()
        )
    });
    let gaps = gaps.collect();
    health.update(|status| status.device_gaps = gaps);
}

/// Limits of the watch.
#[must_use]
pub fn limits(settings: &Settings) -> GapLimits {
    let gaps = &settings.gaps;
    GapLimits {
        patience: Micros::from(gaps.patience),
        given_up_after: Micros::from(gaps.given_up_after),
        devices_max: settings.counting.devices_max,
        generations_per_device_max: settings.counting.generations_per_device_max,
        ranges_max: gaps.ranges_max,
        gaps_per_generation_max: gaps.gaps_per_device_max,
    }
}

/// Reads the tables when asked.
#[derive(Debug)]
pub struct Scanner {
    settings: config::Lake,
    look_back: Duration,
    tables: BTreeMap<&'static str, TableReader>,
}

impl Scanner {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(settings: config::Lake, look_back: Duration) -> Self {
        Self { settings, look_back, tables: BTreeMap::new() }
    }

    /// Answers requests until nobody asks any more.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<ScanRequest>,
        answers: mpsc::Sender<ScanAnswer>,
    ) {
        while let Some(request) = requests.recv().await {
            let result = self.scan(&request).await;
            let answer = ScanAnswer { assignment: request.assignment, result };
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    }

    async fn scan(&mut self, request: &ScanRequest) -> Result<Scanned, LakeError> {
        let mut scanned = Scanned { versions: request.versions.clone(), ..Scanned::default() };
        // Ledgers first: what they say is delivered may be in the other tables by the time that those are read.
        let names = [
            SideTable::MachineEvents.as_str(),
            rows::TELEMETRY,
            SideTable::LateReadings.as_str(),
            SideTable::DeadLetters.as_str(),
        ];
        for name in names {
            if !self.tables.contains_key(name) {
                let location = Location::existing(&self.settings)?;
                let Some(table) = TableReader::find(&location, name).await? else { continue };
                self.tables.insert(name, table);
            }
            let Some(table) = self.tables.get_mut(name) else { continue };
            let oldest_ms = request.now.micros() / 1000
                - i64::try_from(self.look_back.as_millis()).unwrap_or(i64::MAX);
            scanned.scan_table(table, oldest_ms).await?;
        }
        Ok(scanned)
    }
}

impl Scanned {
    async fn scan_table(
        &mut self,
        table: &mut TableReader,
        oldest_ms: i64,
    ) -> Result<(), LakeError> {
        let Some(known) = self.versions.get(table.name()).copied() else {
            return self.scan_recent(table, oldest_ms).await;
        };
        let Some(newest) = table.newest_version(known).await? else {
            return self.scan_shortened(table, known, oldest_ms).await;
        };
        let through = newest.min(known.saturating_add(COMMITS_MAX));
        self.is_partial |= through < newest;
        for version in known + 1..=through {
            let Some(files) = table.added_by(version).await? else {
                return self.scan_shortened(table, known, oldest_ms).await;
            };
            for file in &files {
                self.read(table, file).await?;
            }
            self.versions.insert(table.name().to_owned(), version);
        }
        Ok(())
    }

    /// The log was shortened to beyond what was seen of it.
    async fn scan_shortened(
        &mut self,
        table: &mut TableReader,
        known: u64,
        oldest_ms: i64,
    ) -> Result<(), LakeError> {
        warn!(
            table = table.name(),
            known,
            "the log does not go back to the last version seen: the files of gaps.look-back are read, records in older ones \
             may be taken for missing"
        );
        self.scan_recent(table, oldest_ms).await
    }

    async fn scan_recent(
        &mut self,
        table: &mut TableReader,
        oldest_ms: i64,
    ) -> Result<(), LakeError> {
        let version = table.load().await?;
        let mut files = table.files()?;
        files.retain(|file| file.modified_ms >= oldest_ms);
        // Pages of a ledger are wanted in the order in which they came.
        files.sort_by_key(|file| file.modified_ms);
        for file in &files {
            self.read(table, file).await?;
        }
        self.versions.insert(table.name().to_owned(), version);
        Ok(())
    }

    async fn read(&mut self, table: &TableReader, file: &DataFile) -> Result<(), LakeError> {
        let mut numbers = Numbers::default();
        let mut told = Vec::new();
        let (mut count, mut implausible) = (0, 0);
        table
            .read(file, &COLUMNS, |batch| {
                count += batch.num_rows() as u64;
                numbers.take(batch);
                implausible += take_told(batch, &mut told);
                Ok(())
            })
            .await?;
        self.rows += count;
        if implausible > 0 {
            warn!(
                table = table.name(),
                file = %file.path,
                ledgers = implausible,
                "ledgers that speak of sequences above their own are ignored: look for who else writes under the device's name"
            );
            self.implausible += implausible;
        }
        // In the order of journalling, whatever the order of the rows.
        told.sort_by_key(|(sequence, _)| *sequence);
        self.told.extend(told.into_iter().map(|(_, told)| told));
        for ((device, generation), numbers) in numbers.0 {
            let Ok(device_id) = DeviceId::new(&device) else { continue };
            let ranges = Ranges::from_numbers(numbers);
            self.seen.entry((device_id, Generation(generation))).or_default().add(&ranges);
        }
        Ok(())
    }

    /// Tells the watch, which judges nothing before all is read. Gives what devices told as lost: cause and records.
    pub fn tell(
        &self,
        saved: &mut SavedWatch,
        now: ProcessingTime,
        limits: &GapLimits,
    ) -> Vec<(String, u64)> {
        let mut lost = Vec::new();
        saved.watch.set_behind(self.is_partial);
        for ((device_id, generation), numbers) in &self.seen {
            saved.watch.handle_seen(device_id, *generation, numbers, now, limits);
        }
        for (device_id, generation, told) in &self.told {
            match told {
                Told::Page(page) => {
                    saved.watch.handle_page(device_id, *generation, page, now, limits);
                }
                Told::Loss(loss, cause) => {
                    lost.push((cause.clone(), loss.records.unwrap_or(1)));
                    saved.watch.handle_loss(device_id, *generation, loss.clone(), now, limits);
                }
            }
        }
        saved.versions.clone_from(&self.versions);
        lost
    }
}

/// Numbers by device and generation.
#[derive(Default)]
struct Numbers(BTreeMap<(String, u64), Vec<u64>>);

impl Numbers {
    fn take(&mut self, batch: &RecordBatch) {
        let row = Row(batch);
        let (devices, generations) = (row.texts("device_id"), row.longs("generation"));
        let sequences = row.longs("sequence");
        let (Some(devices), Some(generations), Some(sequences)) = (devices, generations, sequences)
        else {
            return;
        };
        let mut at = 0;
        while at < batch.num_rows() {
            let Some(device) = text_at(Some(devices), at) else {
                at += 1;
                continue;
            };
            let generation = generations.value(at);
            let key = (device.to_owned(), generation.cast_unsigned());
            let numbers = self.0.entry(key).or_default();
            // Neighbours are mostly of one device.
            while at < batch.num_rows()
                && text_at(Some(devices), at) == Some(device)
                && generations.value(at) == generation
            {
                numbers.push(sequences.value(at).cast_unsigned());
                at += 1;
            }
        }
    }
}

/// Takes ledgers and told losses. A device numbers its records in order, so each speaks of numbers below its own: a loss is cut to
/// them, a ledger that names others is ignored. Gives how many those were.
fn take_told(batch: &RecordBatch, told: &mut Vec<(u64, (DeviceId, Generation, Told))>) -> u64 {
    let row = Row(batch);
    let mut implausible = 0;
    let Some(types) = row.texts("event_type") else { return implausible };
    for at in 0..batch.num_rows() {
        let event_type = types.value(at);
        let is_page = event_type == MachineEventType::Ledger.as_str();
        if !is_page && event_type != MachineEventType::Gap.as_str() {
            continue;
        }
        let number = |name| long_at(row.longs(name), at).map(i64::cast_unsigned);
        let device = text_at(row.texts("device_id"), at).and_then(|text| DeviceId::new(text).ok());
        let (Some(device), Some(generation)) = (device, number("generation")) else { continue };
        let (Some(first), Some(last)) = (number("first_sequence"), number("last_sequence")) else {
            continue;
        };
        let sequence = number("sequence").unwrap_or(0);
        let what = if is_page {
            if last >= sequence {
                implausible += 1;
                continue;
            }
            let text = text_at(row.texts("waveform_sequences"), at).unwrap_or_default();
            // A ledger of an older edge module does not say how far delivery has come.
            let Some(delivered) = number("delivered_sequence") else { continue };
            let Some(elsewhere) = sequences::from_text(text) else { continue };
            let elsewhere = elsewhere.into_iter().collect();
            Told::Page(LedgerPage { first, last, delivered, elsewhere })
        } else {
            let cause = text_at(row.texts("cause"), at).unwrap_or_default();
            let last = last.min(sequence.saturating_sub(1));
            let Some(more) = last.checked_sub(first) else { continue };
            let records = number("record_count").map(|count| count.min(more.saturating_add(1)));
            Told::Loss(ToldLoss { first, last, records }, cause.to_owned())
        };
        told.push((sequence, (device, Generation(generation), what)));
    }
    implausible
}

/// The machine event of a gap that opened or closed.
#[must_use]
pub fn event_of(change: &GapChange, group: &MachineId, now: ProcessingTime) -> MachineEvent {
    let device = MachineId::new(change.device_id.as_str()).unwrap_or_else(|_| group.clone());
    let (event_type, cause) = match change.closed {
        None => (MachineEventType::Gap, CAUSE_MISSING),
        Some(closed) => (MachineEventType::GapClosed, closed.as_str()),
    };
    let details = MachineEventDetails {
        cause: Some(cause.to_owned()),
        first_sequence: Some(change.first),
        last_sequence: Some(change.last),
        record_count: Some(change.records),
        detail: Some(describe(change)),
        ..MachineEventDetails::default()
    };
    MachineEvent {
        event_type,
        machine_id: device,
        timestamp: now.as_event_time(),
        identity: None,
        historical: false,
        details,
    }
}

/// A sentence for operators.
#[must_use]
pub fn describe(change: &GapChange) -> String {
    let GapChange { device_id, generation, first, last, records, .. } = change;
    let what = format!(
        "{records} records of device {device_id} (generation {}) between sequences {first} and {last}",
        generation.0
    );
    match change.closed.map(aggregator_core::gaps::GapClosed::as_str) {
        None => format!(
            "{what} were delivered to kafka and are in no table: look for kafka-retention and kafka-truncated gaps, for topics \
             that are not read, and for partitions that lag"
        ),
        Some(why) => format!("{what} are no longer missing: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use deltalake::DeltaTable;
    use deltalake::arrow::array::{ArrayRef, Int64Array, StringArray};
    use deltalake::checkpoints::create_checkpoint;
    use deltalake::kernel::{DataType, StructField};
    use deltalake::operations::create::CreateBuilder;
    use deltalake::writer::{DeltaWriter as _, RecordBatchWriter};

    use super::*;

    fn defaults() -> Settings {
        Settings::load(None).expect("valid defaults")
    }

    fn device() -> DeviceId {
        DeviceId::new("gw-07").expect("a name")
    }

    /// `telemetry` without the columns that the watch does not read.
    async fn telemetry(settings: &config::Lake) -> DeltaTable {
        let location = Location::open(settings).expect("writable");
        let store = location.store(rows::TELEMETRY).expect("made");
        let columns = vec![
            StructField::nullable("device_id", DataType::STRING),
            StructField::nullable("generation", DataType::LONG),
            StructField::nullable("sequence", DataType::LONG),
        ];
        let table = CreateBuilder::new().with_log_store(store.log_store()).with_columns(columns);
        table.await.expect("created")
    }

    async fn append(table: &mut DeltaTable, sequence: i64) {
        let mut writer = RecordBatchWriter::for_table(table).expect("a table as ours");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["gw-07"])),
            Arc::new(Int64Array::from(vec![1_i64])),
            Arc::new(Int64Array::from(vec![sequence])),
        ];
        let batch = RecordBatch::try_new(writer.arrow_schema(), columns).expect("fits");
        writer.write(batch).await.expect("written");
        writer.flush_and_commit(table).await.expect("committed");
    }

    /// Scans from where the answer before ended.
    async fn scan(scanner: &mut Scanner, before: &Scanned) -> Scanned {
        let (assignment, now) = (AssignmentId(1), ProcessingTime::from_micros(0));
        let request = ScanRequest { assignment, versions: before.versions.clone(), now };
        scanner.scan(&request).await.expect("readable")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn watch_that_was_away_for_longer_than_the_log_goes_back_reads_the_files_of_late() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = defaults().lake;
        settings.location = folder.path().to_str().expect("UTF-8").to_owned();
        let mut table = telemetry(&settings).await;
        append(&mut table, 1).await;
        append(&mut table, 2).await;
        let mut scanner = Scanner::new(settings, Duration::from_secs(86_400));
        let began = scan(&mut scanner, &Scanned::default()).await;
        assert_eq!((began.rows, began.versions[rows::TELEMETRY]), (2, 2));
        append(&mut table, 3).await;
        let went_on = scan(&mut scanner, &began).await;
        assert_eq!((went_on.rows, went_on.versions[rows::TELEMETRY]), (1, 3));
        for sequence in 4..=6 {
            append(&mut table, sequence).await;
        }
        table.load().await.expect("readable");
        create_checkpoint(&table, None).await.expect("written");
        let log = folder.path().join(rows::TELEMETRY).join("_delta_log");
        for version in 0..=4 {
            std::fs::remove_file(log.join(format!("{version:020}.json"))).expect("was there");
        }
        let fell_back = scan(&mut scanner, &went_on).await;
        assert_eq!((fell_back.rows, fell_back.versions[rows::TELEMETRY]), (6, 6));
        let all = Ranges::from_iter([(1, 6)]);
        assert_eq!(fell_back.seen, BTreeMap::from([((device(), Generation(1)), all)]));
        assert!(!fell_back.is_partial);
        // Its writer, too, has to read the table anew.
        let mut table = DeltaTable::new(table.log_store());
        table.load().await.expect("readable");
        append(&mut table, 7).await;
        let went_on = scan(&mut scanner, &fell_back).await;
        assert_eq!((went_on.rows, went_on.versions[rows::TELEMETRY]), (1, 7));
    }

    #[test]
    fn records_are_not_missing_while_commits_are_left_to_be_read() {
        let limits = limits(&defaults());
        let page = LedgerPage { first: 1, last: 10, delivered: 10, elsewhere: Ranges::default() };
        let ledger = |is_partial| Scanned {
            told: vec![(device(), Generation(1), Told::Page(page.clone()))],
            is_partial,
            ..Scanned::default()
        };
        let nothing = |is_partial| Scanned { is_partial, ..Scanned::default() };
        let records = Scanned {
            seen: BTreeMap::from([((device(), Generation(1)), Ranges::from_iter([(1, 10)]))]),
            ..Scanned::default()
        };
        // An hour between two looks.
        let changes = |scans: &[&Scanned]| {
            let mut saved = SavedWatch::default();
            let mut changes = Vec::new();
            for (hour, scanned) in (0..).zip(scans) {
                let now = ProcessingTime::from_micros(hour * 3_600_000_000);
                scanned.tell(&mut saved, now, &limits);
                changes.extend(saved.watch.poll(now, &limits));
            }
            changes.iter().map(|change| (change.first, change.last)).collect::<Vec<_>>()
        };
        let (behind, done) = (nothing(true), nothing(false));
        assert_eq!(changes(&[&ledger(true), &behind, &behind, &records, &done]), []);
        assert_eq!(changes(&[&ledger(true), &behind, &done, &done]), [(1, 10)]);
        assert_eq!(changes(&[&ledger(false), &done]), [(1, 10)]);
    }

    /// Rows of `machine_events`: type, own sequence, first and last sequence that it speaks of, and how many.
    fn events(rows: &[(MachineEventType, u64, u64, u64, Option<u64>)]) -> RecordBatch {
        let texts = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        let longs = |values: Vec<Option<u64>>| {
            let signed = values.into_iter().map(|value| value.map(u64::cast_signed));
            Arc::new(Int64Array::from(signed.collect::<Vec<_>>())) as ArrayRef
        };
        let columns = [
            ("event_type", texts(rows.iter().map(|row| row.0.as_str()).collect())),
            ("device_id", texts(rows.iter().map(|_| "gw-07").collect())),
            ("generation", longs(rows.iter().map(|_| Some(1)).collect())),
            ("sequence", longs(rows.iter().map(|row| Some(row.1)).collect())),
            ("first_sequence", longs(rows.iter().map(|row| Some(row.2)).collect())),
            ("last_sequence", longs(rows.iter().map(|row| Some(row.3)).collect())),
            ("delivered_sequence", longs(rows.iter().map(|row| Some(row.3)).collect())),
            ("record_count", longs(rows.iter().map(|row| row.4).collect())),
        ];
        RecordBatch::try_from_iter(columns).expect("columns of one length")
    }

    #[test]
    fn ledgers_and_losses_speak_of_sequences_below_their_own_alone() {
        let (ledger, gap) = (MachineEventType::Ledger, MachineEventType::Gap);
        let batch = events(&[
            (ledger, 101, 1, 100, None),
            (ledger, 101, 1, 101, None),
            (ledger, 101, 1, u64::MAX, None),
            (ledger, u64::MAX, 1, u64::MAX, None),
            (gap, 101, 7, 9, None),
            (gap, 101, 7, 9, Some(2)),
            (gap, 101, 50, u64::MAX, Some(u64::MAX)),
            (gap, 40, 50, 60, Some(11)),
        ]);
        let mut told = Vec::new();
        assert_eq!(take_told(&batch, &mut told), 3);
        let told: Vec<_> = told.into_iter().map(|(_, (_, _, what))| what).collect();
        let (delivered, elsewhere) = (100, Ranges::default());
        let loss =
            |first, last, records| Told::Loss(ToldLoss { first, last, records }, String::new());
        let expected = [
            Told::Page(LedgerPage { first: 1, last: 100, delivered, elsewhere }),
            loss(7, 9, None),
            loss(7, 9, Some(2)),
            loss(50, 100, Some(51)),
        ];
        assert_eq!(told, expected);
    }
}
