//! `cloud-aggregator audit`: recomputes from `telemetry` what the other tables and the states say.
//!
//! - Every Kafka record has one row, or is told as seen before: offsets occur once, and what is missing between the first and
//!   the next one to be read are the repeats that the state counted, or gaps that were told.
//! - The state's own counts are those of the rows. They go on when a topic is made anew, so they hold for all its lives together,
//!   while its offsets then name more than one record and are not looked at any more.
//! - Every closed window has the newest row in `anomalies` that a batch over `telemetry` gives (`windows`).
//! - Each table's `txn` and the state files belong together.
//!
//! What the retention has removed is left out, and counted.
//!
//! A window is judged by the rule of the partition that counts it. A row that nobody counts any more, or that differs, is left out if
//! a partition that holds its sensor or machine may have written it by a rule that is not in force any more (`origins`).
//!
//! Where a hub is read, records that came by it and by Kafka are counted (`ways`).
//!
//! It reads one moment of the lake, also while it is written: no table is ahead of `telemetry`, and rows of an epoch that
//! is half committed come from its state file. Dates are read one after another, and windows are compared when the readings
//! of all their dates are read: memory grows with the windows of a date (and of the longest rule), and a bit for each record.

mod kept;
mod moment;
mod offsets;
mod origins;
mod records;
mod report;
#[cfg(test)]
mod tests;
mod ways;
mod windows;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::time::Instant;

use aggregator_core::checkpoint::{SideTable, TopicPartition};
use aggregator_core::{GroupBy, Rule};
use deltalake::arrow::array::{Array as _, AsArray as _};
use deltalake::arrow::datatypes::Float64Type;
use deltalake::arrow::record_batch::RecordBatch;
use shared_proto::model::{
    DeviceId, EventTime, Generation, Identity, MachineId, MetricType, Quality, Reading, SensorId,
    Sequence,
};

use crate::config::Settings;
use crate::forget::book::{Book, app_id};
use crate::hand_over::mark::check_not_handed_over;
use crate::lake_copy::mark::load_telemetry;
use crate::lake_reader::{DataFile, Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};
use crate::sink::maintenance::{Clock, system_clock};
use crate::sink::rows::TELEMETRY;
use kept::Kept;
pub(crate) use moment::{ANOMALY_COLUMNS, Anomalies};
use moment::{Moment, NOT_IN_FORCE, PartitionMoment, tells_renewal};
use records::Seen;
pub use report::{Report, print};
use ways::Ways;
use windows::{Counted, FoundRow, Verdict, WindowKey, compare, count_reading};

pub(crate) const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Tables that hold Kafka records, each record in one of them.
const RECORD_TABLES: [&str; 6] = [
    TELEMETRY,
    SideTable::LateReadings.as_str(),
    SideTable::MachineEvents.as_str(),
    SideTable::DeadLetters.as_str(),
    SideTable::Outcomes.as_str(),
    SideTable::Waveforms.as_str(),
];
const SOURCE_COLUMNS: [&str; 3] = ["source_topic", "source_partition", "source_offset"];
/// Why windows are left out.
const WINDOWS_EXPIRED: &str = "the window began before the dates that the retention keeps";
/// Why windows are left out.
const SEVERAL_PARTITIONS: &str = "readings of one window stand in several partitions";
/// Why windows are left out.
const FORGOTTEN: &str = "readings of its partition were forgotten on request";
/// Why rows are left out.
const UNREAD: &str = "rows of partitions whose state cannot be read: not compared";

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The storage refuses.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// There is nothing to audit.
    #[error("{location} has no table telemetry: check lake.location")]
    NoTable {
        /// Where it was looked for.
        location: String,
    },
    /// Readings are not kept.
    #[error("lake.keeps-readings is off: without readings nothing can be counted anew")]
    WithoutReadings,
    /// The tables moved on faster than they could be read.
    #[error("the tables of {location} changed {attempts} times while they were opened: try again")]
    Restless {
        /// The lake.
        location: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// Nobody takes the output.
    #[error("the report cannot be written")]
    Output(#[from] io::Error),
}

/// Recomputes everything. At most `shown_max` differences are named.
///
/// # Errors
/// The lake cannot be read.
pub async fn audit(settings: &Settings, shown_max: usize) -> Result<Report, AuditError> {
    audit_by(&system_clock(), settings, shown_max).await
}

async fn audit_by(
    clock: &Clock,
    settings: &Settings,
    shown_max: usize,
) -> Result<Report, AuditError> {
    if !settings.lake.keeps_readings {
        return Err(AuditError::WithoutReadings);
    }
    let mut partitions = BTreeSet::new();
    loop {
        let (report, unknown) = audit_moment(clock, settings, shown_max, &partitions).await?;
        let before = partitions.len();
        // State files in plenty are not all looked through: what rows name is looked for.
        partitions.extend(unknown);
        if partitions.len() == before {
            return Ok(report);
        }
    }
}

/// Gives also the partitions that have rows and no known state.
async fn audit_moment(
    clock: &Clock,
    settings: &Settings,
    shown_max: usize,
    partitions: &BTreeSet<TopicPartition>,
) -> Result<(Report, BTreeSet<TopicPartition>), AuditError> {
    let began = Instant::now();
    let mut report = Report { shown_max, ..Report::default() };
    let moment = Moment::take(settings, partitions).await?;
    // States say nothing of rows that another program has written.
    if let Some(table) = load_telemetry(&Location::existing(&settings.lake)?).await? {
        check_not_handed_over(&table)?;
    }
    for (partition, why) in &moment.broken {
        report.differs(format!("{partition}: {why}"));
    }
    // After the tables were opened: what is removed later is still in them.
    let kept = Kept::new(settings, clock());
    let mut audit = Audit::new(&moment, settings, kept);
    audit.read_book(settings, &moment).await?;
    // First: they tell which topics were made anew.
    audit.read_side(&moment, SideTable::MachineEvents.as_str(), &mut report).await?;
    audit.read_telemetry(&moment, &mut report).await?;
    let others = [
        SideTable::LateReadings,
        SideTable::DeadLetters,
        SideTable::Outcomes,
        SideTable::Waveforms,
    ];
    for table in others {
        audit.read_side(&moment, table.as_str(), &mut report).await?;
    }
    audit.judge_records(&moment, &mut report);
    report.records_by_two_ways = audit.ways.as_ref().map_or(0, Ways::count);
    report.leave_out(UNREAD, audit.rows_unread);
    report.partitions = moment.partitions.len() + moment.broken.len();
    report.partitions_unread = moment.broken.len();
    report.seconds = began.elapsed().as_secs_f64();
    let unknown = audit.unknown;
    for partition in unknown.intersection(partitions) {
        if !moment.broken.iter().any(|(broken, _)| broken == partition) {
            report.differs(format!("{partition}: there are rows, and no epoch in telemetry"));
        }
    }
    Ok((report, unknown))
}

struct Audit {
    /// Partitions of rows whose state is not known.
    unknown: BTreeSet<TopicPartition>,
    /// Their rows.
    rows_unread: u64,
    /// Sensors and machines of the readings of broken partitions, with the place among those.
    groups_unread: HashMap<String, usize>,
    seen: BTreeMap<TopicPartition, Seen>,
    /// Where a hub is read: records that came by it and by Kafka.
    ways: Option<Ways>,
    windows: BTreeMap<TopicPartition, BTreeMap<WindowKey, Counted>>,
    longest: i64,
    needs_features: bool,
    names: Names,
    lateness: i64,
    kept: Kept,
    /// Windows that begin earlier are not compared: their rows may be removed.
    windows_since: i64,
}

impl Audit {
    fn new(moment: &Moment, settings: &Settings, kept: Kept) -> Self {
        let rules = || moment.partitions.values().flat_map(|one| one.rules.iter());
        let hubs = || moment.partitions.iter().filter(|(_, one)| one.is_hub).map(|(id, _)| id);
        Self {
            unknown: BTreeSet::new(),
            rows_unread: 0,
            groups_unread: HashMap::new(),
            seen: hubs().map(|partition| (partition.clone(), Seen::of_hub())).collect(),
            ways: hubs().next().map(|_| Ways::default()),
            windows: BTreeMap::new(),
            longest: rules().map(|(rule, _)| rule.window.get()).max().unwrap_or(0),
            needs_features: rules().any(|(rule, _)| rule.filter.to_string().contains("features")),
            names: Names::default(),
            lateness: settings.core().allowed_lateness.get(),
            windows_since: kept.windows_since(None),
            kept,
        }
    }

    /// What was deleted on request by commits that the tables of this moment have.
    async fn read_book(&mut self, settings: &Settings, moment: &Moment) -> Result<(), AuditError> {
        let book = Book::open(&Location::existing(&settings.lake)?)?;
        for (name, entry) in book.entries().await? {
            let Some(table) = moment.tables.get(entry.table.as_str()) else { continue };
            if table.transaction(&app_id(&name)).await?.is_none() {
                continue;
            }
            for (partition, records) in &entry.records {
                self.seen_of(partition).note_forgotten(&entry.table, *records);
            }
        }
        Ok(())
    }

    async fn read_telemetry(
        &mut self,
        moment: &Moment,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let table = &moment.tables[TELEMETRY];
        let mut files = table.files()?;
        files.sort_by(|a, b| a.date().cmp(b.date()));
        let first = files.first().map(|file| day_of(file.date()));
        self.windows_since = self.kept.windows_since(first);
        let mut dates: BTreeSet<i64> = files.iter().map(|file| day_of(file.date())).collect();
        dates.extend(moment.anomaly_dates.keys().copied());
        let mut files = files.into_iter().peekable();
        let mut compared_through = i64::MIN;
        for date in dates {
            // Windows that ended before this date have all their readings.
            let through = date - self.longest;
            self.compare_before(through, &mut compared_through, moment, report).await?;
            while let Some(file) = files.next_if(|file| day_of(file.date()) == date) {
                self.read_readings(table, &file, moment, report).await?;
            }
        }
        self.compare_before(i64::MAX, &mut compared_through, moment, report).await
    }

    async fn read_readings(
        &mut self,
        table: &TableReader,
        file: &DataFile,
        moment: &Moment,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let metric = file.partition.get("metric_type").and_then(Option::as_deref);
        let metric = metric.and_then(|text| MetricType::new(text).ok());
        let looks =
            |rule: &Rule| metric.as_ref().is_some_and(|metric| rule.filter.given(metric).is_some());
        let is_looked_at = moment.all_rules().any(looks);
        let mut columns = SOURCE_COLUMNS.to_vec();
        if is_looked_at || self.ways.is_some() {
            columns.push("device_id");
        }
        if self.ways.is_some() {
            columns.extend(["generation", "sequence"]);
        }
        if is_looked_at {
            columns.extend(["sensor_id", "timestamp", "value", "machine_id", "unit", "quality"]);
            if self.needs_features {
                columns.push("features");
            }
        } else if !moment.broken.is_empty() {
            columns.extend(["sensor_id", "machine_id"]);
        }
        let mut rows = 0;
        table
            .read(file, &columns, |batch| {
                rows += self.take_readings(batch, metric.as_ref().filter(|_| is_looked_at), moment);
                Ok(())
            })
            .await?;
        *report.rows.entry(table.name().to_owned()).or_default() += rows;
        Ok(())
    }

    fn take_readings(
        &mut self,
        batch: &RecordBatch,
        metric: Option<&MetricType>,
        moment: &Moment,
    ) -> u64 {
        let mut rows = 0;
        let mut sources = Sources::of(batch);
        while let Some((at, partition, offset)) = sources.next() {
            rows += 1;
            let Some(state) = moment.partitions.get(partition) else {
                self.note_unknown(partition);
                self.note_groups(Row(batch), at, moment.place_of_broken(partition));
                continue;
            };
            self.seen_of(partition).note(TELEMETRY, offset, state.next_offset);
            if let Some(ways) = &mut self.ways {
                ways.note(Row(batch), at, state.is_hub);
            }
            if offset >= state.next_offset && !self.is_renewed(partition, state) {
                continue;
            }
            let Some(metric) = metric else { continue };
            let Some(reading) = self.names.reading(Row(batch), at, metric) else { continue };
            if reading.quality == Some(Quality::Bad) {
                continue;
            }
            for (rule, since) in &state.rules {
                if rule.filter.matches(&reading) {
                    let windows = self.windows.entry(partition.clone()).or_default();
                    count_reading(&reading, rule, *since, windows);
                }
            }
        }
        rows
    }

    /// Takes a row whose partition has no state that is known.
    fn note_unknown(&mut self, partition: &TopicPartition) {
        self.rows_unread += 1;
        if !self.unknown.contains(partition) {
            self.unknown.insert(partition.clone());
        }
    }

    fn note_groups(&mut self, row: Row<'_>, at: usize, broken: Option<usize>) {
        let Some(place) = broken else { return };
        for column in ["sensor_id", "machine_id"] {
            if let Some(group) = text_at(row.texts(column), at)
                && !self.groups_unread.contains_key(group)
            {
                self.groups_unread.insert(group.to_owned(), place);
            }
        }
    }

    fn seen_of(&mut self, partition: &TopicPartition) -> &mut Seen {
        // A clone for each row would cost more than a second look.
        if !self.seen.contains_key(partition) {
            self.seen.insert(partition.clone(), Seen::default());
        }
        self.seen.get_mut(partition).expect("it is there")
    }

    fn is_renewed(&self, partition: &TopicPartition, state: &PartitionMoment) -> bool {
        let seen = self.seen.get(partition);
        seen.is_some_and(|seen| seen.is_renewed(state.next_offset, &state.accounting))
    }

    /// Compares the windows that begin before `through`, all of whose readings are read.
    async fn compare_before(
        &mut self,
        through: i64,
        compared_through: &mut i64,
        moment: &Moment,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let mut counted: BTreeMap<WindowKey, Vec<(TopicPartition, Counted)>> = BTreeMap::new();
        for (partition, windows) in &mut self.windows {
            windows.retain(|key, window| {
                let is_ready = key.2 < through;
                if is_ready {
                    counted.entry(key.clone()).or_default().push((partition.clone(), *window));
                }
                !is_ready
            });
        }
        let rows = moment.anomalies(*compared_through, through).await?;
        *report.rows.entry("anomalies".to_owned()).or_default() += rows.read;
        *compared_through = through;
        let keys: BTreeSet<&WindowKey> = counted.keys().chain(rows.newest.keys()).collect();
        for key in keys {
            let found = counted.get(key).map_or(&[][..], Vec::as_slice);
            self.judge_window(key, found, rows.newest.get(key), moment, report);
        }
        Ok(())
    }

    fn judge_window(
        &self,
        key: &WindowKey,
        counted: &[(TopicPartition, Counted)],
        row: Option<&FoundRow>,
        moment: &Moment,
        report: &mut Report,
    ) {
        let (name, group, start) = key;
        if *start < self.windows_since {
            return report.leave_out_window(WINDOWS_EXPIRED);
        }
        if counted.len() > 1 {
            return report.leave_out_window(SEVERAL_PARTITIONS);
        }
        let own = counted.first().map(|(partition, _)| partition);
        let state = own.and_then(|partition| moment.partitions.get(partition));
        let excuse = match state {
            Some(state) => state.excuse(name, *start).map(Cow::Borrowed),
            None => self.excuse_row(key, row, None, moment),
        };
        if let Some(why) = excuse {
            return report.leave_out_window(why);
        }
        // Instances may have other rules of that name: a window is judged by the one that counted it.
        let rule = match state {
            Some(state) => state.rule(name),
            None => moment.all_rules().find(|rule| rule.name == *name),
        };
        let Some(rule) = rule else { return report.leave_out_window(NOT_IN_FORCE) };
        if rule.by == GroupBy::Machine && state.is_some_and(|state| state.has_readings_behind) {
            return report.leave_out_window("readings came behind what is kept of their machine");
        }
        let newest = own.and_then(|partition| moment.origins.newest(rule.by, group, partition));
        let end = start + rule.window.get();
        let is_over = newest.is_some_and(|newest| end <= newest.saturating_sub(self.lateness));
        if !is_over && row.is_none_or(|row| row.is_open) {
            report.windows_open += 1;
            return;
        }
        let counted = counted.first().map(|(_, counted)| counted);
        if let Verdict::Different(how) = compare(counted, row, rule) {
            // The newest row may be another partition's.
            if let Some(why) = self.excuse_row(key, row, own, moment) {
                return report.leave_out_window(why);
            }
            if self.may_be_forgotten(key, counted, row, own, moment) {
                return report.leave_out_window(FORGOTTEN);
            }
            let start = EventTime::from_micros(*start);
            report.differs(format!("window of {name} for {group} from {start}: {how}"));
        }
        report.windows_judged += 1;
        report.anomalies +=
            u64::from(counted.is_some_and(|counted| counted.is_anomaly(rule) == Some(true)));
    }

    /// Why the row of a window says nothing of the readings counted, if a partition other than `own` may have written it.
    fn excuse_row(
        &self,
        key: &WindowKey,
        row: Option<&FoundRow>,
        own: Option<&TopicPartition>,
        moment: &Moment,
    ) -> Option<Cow<'static, str>> {
        let (row, group) = (row?, &key.1);
        let place = self.groups_unread.get(group).copied();
        let is_unheard = own.is_none() && moment.origins.of(row.by, group).is_empty();
        if place.is_some() || (is_unheard && !moment.broken.is_empty()) {
            return Some(Cow::Owned(moment.tell_broken(place)));
        }
        moment.excuse(key, row.by, own).map(Cow::Borrowed)
    }

    /// Whether a row tells of readings that were deleted on request: there are fewer than it counts, in a partition that lost some.
    fn may_be_forgotten(
        &self,
        key: &WindowKey,
        counted: Option<&Counted>,
        row: Option<&FoundRow>,
        own: Option<&TopicPartition>,
        moment: &Moment,
    ) -> bool {
        let Some(row) = row else { return false };
        let has_forgotten =
            |partition: &TopicPartition| self.seen.get(partition).is_some_and(Seen::has_forgotten);
        let is_of_such = match own {
            Some(own) => has_forgotten(own),
            None => moment.origins.of(row.by, &key.1).iter().any(|it| has_forgotten(&it.0)),
        };
        is_of_such && counted.is_none_or(|counted| counted.count < row.count)
    }

    async fn read_side(
        &mut self,
        moment: &Moment,
        name: &'static str,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let mut columns = SOURCE_COLUMNS.to_vec();
        columns.extend(["event_type", "cause", "device_id", "reason", "source"]);
        columns.extend(["record_count", "generation", "sequence"]);
        let mut rows = SideRows::default();
        if let Some(table) = moment.tables.get(name) {
            for file in table.files()? {
                table
                    .read(&file, &columns, |batch| {
                        self.take_side(batch, name, moment, &mut rows);
                        Ok(())
                    })
                    .await?;
            }
        }
        for (partition, state) in &moment.partitions {
            let seen = self.seen.entry(partition.clone()).or_default();
            rows.own += state.pending_own(name);
            for offset in state.pending_offsets(name) {
                rows.of_kafka += 1;
                seen.note(name, offset, state.next_offset);
            }
            if name == SideTable::MachineEvents.as_str() {
                seen.note_gap(state.pending_gaps());
                if state.is_renewal_pending() {
                    seen.note_renewal();
                }
            }
        }
        *report.rows.entry(name.to_owned()).or_default() += rows.of_kafka;
        if rows.own > 0 {
            *report.own_rows.entry(name.to_owned()).or_default() += rows.own;
        }
        Ok(())
    }

    fn take_side(
        &mut self,
        batch: &RecordBatch,
        name: &'static str,
        moment: &Moment,
        rows: &mut SideRows,
    ) {
        let row = Row(batch);
        let mut sources = Sources::of(batch);
        while let Some((at, partition, offset)) = sources.next() {
            let text = |column| text_at(row.texts(column), at).unwrap_or_default();
            let is_own = is_own_row(row, at);
            let is_own_event = is_own && !text("event_type").is_empty();
            *(if is_own { &mut rows.own } else { &mut rows.of_kafka }) += 1;
            let Some(state) = moment.partitions.get(partition) else {
                self.note_unknown(partition);
                continue;
            };
            if is_own_event && tells_renewal(text("cause")) {
                self.seen_of(partition).note_renewal();
            }
            if is_own_event && text("cause").starts_with("kafka-") && offset <= state.next_offset {
                let lost = long_at(row.longs("record_count"), at).map(i64::cast_unsigned);
                self.seen_of(partition).note_gap(lost.unwrap_or(0));
            }
            if !is_own {
                self.seen_of(partition).note(name, offset, state.next_offset);
                if let Some(ways) = &mut self.ways {
                    ways.note(row, at, state.is_hub);
                }
            }
        }
    }

    fn judge_records(&self, moment: &Moment, report: &mut Report) {
        let none = Seen::default();
        for (partition, state) in &moment.partitions {
            let seen = self.seen.get(partition).unwrap_or(&none);
            seen.judge(partition, state.next_offset, &state.accounting, &self.kept, report);
        }
    }
}

/// Whether the aggregator has written a row of a side table by itself: it is of no Kafka record.
pub(crate) fn is_own_row(row: Row<'_>, at: usize) -> bool {
    let text = |column| text_at(row.texts(column), at).unwrap_or_default();
    let is_own_letter = text("reason").starts_with("alert-") && text("source") == "alerts";
    is_own_letter || (text("event_type").starts_with("gap") && text("device_id").is_empty())
}

/// Rows of a table that holds Kafka records.
#[derive(Debug, Default)]
struct SideRows {
    of_kafka: u64,
    /// Those that the aggregator has written of its own.
    own: u64,
}

/// Where the rows of a batch came from. The partition is looked up once for neighbours.
pub(crate) struct Sources<'a> {
    batch: &'a RecordBatch,
    at: usize,
    current: Option<(&'a str, i32, TopicPartition)>,
}

impl<'a> Sources<'a> {
    pub(crate) fn of(batch: &'a RecordBatch) -> Self {
        Self { batch, at: 0, current: None }
    }

    pub(crate) fn next(&mut self) -> Option<(usize, &TopicPartition, i64)> {
        let row = Row(self.batch);
        while self.at < self.batch.num_rows() {
            let at = self.at;
            self.at += 1;
            let Some(topic) = text_at(row.texts("source_topic"), at) else { continue };
            let Some(number) = row.integers("source_partition").map(|column| column.value(at))
            else {
                continue;
            };
            let Some(offset) = long_at(row.longs("source_offset"), at) else { continue };
            let is_same = self
                .current
                .as_ref()
                .is_some_and(|(known, partition, _)| *known == topic && *partition == number);
            if !is_same {
                let from = TopicPartition { topic: topic.to_owned(), partition: number };
                self.current = Some((topic, number, from));
            }
            return self.current.as_ref().map(|(_, _, from)| (at, from, offset));
        }
        None
    }
}

/// Names that many rows share.
#[derive(Debug, Default)]
pub(crate) struct Names {
    sensors: HashMap<String, SensorId>,
    machines: HashMap<String, MachineId>,
    devices: HashMap<String, DeviceId>,
}

impl Names {
    /// The reading of a row of `telemetry`.
    pub(crate) fn reading(
        &mut self,
        row: Row<'_>,
        at: usize,
        metric: &MetricType,
    ) -> Option<Reading> {
        let sensor = text_at(row.texts("sensor_id"), at)?;
        let sensor = known(&mut self.sensors, sensor, |text| SensorId::new(text).ok())?;
        let time = EventTime::from_micros(row.times("timestamp")?.value(at));
        let value = row.doubles("value")?.value(at);
        let mut reading = Reading::new(sensor, time, metric.clone(), value);
        if let Some(machine) = text_at(row.texts("machine_id"), at) {
            let new = |text: &str| MachineId::new(text).ok();
            reading.machine_id = known(&mut self.machines, machine, new);
        }
        reading.unit = text_at(row.texts("unit"), at).map(Into::into);
        reading.quality = match text_at(row.texts("quality"), at) {
            Some("bad") => Some(Quality::Bad),
            Some("uncertain") => Some(Quality::Uncertain),
            Some(_) => Some(Quality::Good),
            None => None,
        };
        if let Some(device) = text_at(row.texts("device_id"), at) {
            let device_id = known(&mut self.devices, device, |text| DeviceId::new(text).ok())?;
            // Filters look at the device alone.
            let (generation, sequence) = (Generation(0), Sequence(0));
            reading.identity = Some(Identity { device_id, generation, sequence });
        }
        let features = row.0.column_by_name("features").and_then(|column| column.as_map_opt());
        if let Some(features) = features.filter(|features| features.is_valid(at)) {
            let entry = features.value(at);
            let (keys, values) = (entry.column(0).as_string_opt::<i32>()?, entry.column(1));
            let values = values.as_primitive_opt::<Float64Type>()?;
            reading.features =
                (0..entry.len()).map(|i| (keys.value(i).to_owned(), values.value(i))).collect();
        }
        Some(reading)
    }
}

fn known<T: Clone>(
    names: &mut HashMap<String, T>,
    text: &str,
    new: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    if let Some(name) = names.get(text) {
        return Some(name.clone());
    }
    let name = new(text)?;
    names.insert(text.to_owned(), name.clone());
    Some(name)
}

/// First microsecond of a date such as `2026-03-01`.
pub(crate) fn day_of(date: &str) -> i64 {
    EventTime::parse(&format!("{date}T00:00:00Z")).map_or(i64::MIN / 2, EventTime::micros)
}
