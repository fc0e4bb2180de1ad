use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aggregator_core::checkpoint::{
    EpochFile, EpochId, Nonce, PartitionEpoch, PendingRows, SavedState,
};
use aggregator_core::rows::{MachineEventRow, Offset};
use aggregator_core::{
    AlertBook, AnomalyRow, Disposition, Outputs, PartitionState, ProcessingTime, Threshold,
};
use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType};

use super::moment::{Attempt, open_tables};
use super::records::{EXPIRED, RENEWED};
use super::*;
use crate::cli::Format;
use crate::sink::commit::{EpochCommit, Lake};
use crate::sink::delta::Location;
use crate::sink::maintenance::Maintenance;
use crate::sink::rows::ReadingColumns;
use crate::source::GapCause;

/// 2026-03-01T08:15:30Z.
const NOW: i64 = 1_772_352_930_000_000;
const TODAY: i64 = NOW - NOW % MICROS_PER_DAY;
const HOUR: i64 = 3_600_000_000;
const MINUTE: i64 = 60_000_000;
const OIL: &str = "press-1/oil";

fn clock() -> Clock {
    Arc::new(|| ProcessingTime::from_micros(NOW))
}

/// A partition of readings as its owner holds it.
struct Part {
    partition: TopicPartition,
    state: PartitionState,
    rows: PendingRows,
    readings: Vec<(Reading, i64)>,
    next_offset: i64,
}

/// A lake that is written as the aggregator does it.
struct World {
    folder: tempfile::TempDir,
    settings: Settings,
    lake: Lake,
    parts: Vec<Part>,
    epoch: Option<EpochId>,
}

impl World {
    async fn new() -> Self {
        Self::of_partitions(1).await
    }

    async fn of_partitions(count: i32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = Settings::load(None).expect("valid defaults");
        settings.lake.location = folder.path().to_str().expect("UTF-8").to_owned();
        settings.lake.checkpoint_commits = Some(100);
        let topic = &settings.kafka.topics.temperature;
        let part = |partition| Part {
            partition: TopicPartition { topic: topic.clone(), partition },
            state: PartitionState::new(&settings.core()),
            rows: PendingRows::default(),
            readings: Vec::new(),
            next_offset: 0,
        };
        Self {
            lake: Lake::open(&settings.lake).await.expect("opened"),
            parts: (0..count).map(part).collect(),
            folder,
            settings,
            epoch: None,
        }
    }

    /// Eight hot readings within a minute, and a cold one an hour later, which closes their window.
    fn measure(&mut self, at: i64) {
        self.measure_in(0, OIL, at);
    }

    fn measure_in(&mut self, part: usize, sensor: &str, at: i64) {
        self.heat(part, sensor, at, 8);
        self.take(part, sensor, at + HOUR, 20.0);
    }

    fn heat(&mut self, part: usize, sensor: &str, at: i64, readings: i64) {
        for second in 0..readings {
            self.take(part, sensor, at + second * 1_000_000, 101.0 + second as f64);
        }
    }

    fn take(&mut self, part: usize, sensor: &str, at: i64, value: f64) {
        let machine = sensor.split('/').next().expect("a machine");
        let sensor = SensorId::new(sensor).expect("a name");
        let metric = MetricType::new("temperature").expect("a name");
        let mut reading = Reading::new(sensor, EventTime::from_micros(at), metric, value);
        reading.machine_id = Some(MachineId::new(machine).expect("a name"));
        let (now, core) = (ProcessingTime::from_micros(at), self.settings.core());
        let part = &mut self.parts[part];
        let mut out = Outputs::default();
        let disposition = part.state.handle_reading(&reading, now, &core, &mut out);
        assert_eq!(disposition, Disposition::Counted);
        part.rows.anomalies.append(&mut out.anomalies);
        part.readings.push((reading, part.next_offset));
        part.next_offset += 1;
    }

    /// Changes the rules of one partition, as the instance does that has it.
    fn change_rules(&mut self, part: usize, change: impl Fn(&mut Rule)) {
        let state = &mut self.parts[part].state;
        let mut rules: Vec<Rule> = state.rules().map(|(rule, _)| rule.clone()).collect();
        rules.iter_mut().for_each(change);
        state.change_rules(&rules);
    }

    /// The topic is another one from here on, whose oldest record is at `offset`.
    fn renew(&mut self, offset: i64) {
        let now = ProcessingTime::from_micros(NOW);
        let event = MachineEvent {
            event_type: MachineEventType::Gap,
            machine_id: MachineId::new("group").expect("a name"),
            timestamp: now.as_event_time(),
            identity: None,
            historical: false,
            details: MachineEventDetails {
                cause: Some(GapCause::Recreated.as_str().to_owned()),
                ..MachineEventDetails::default()
            },
        };
        let part = &mut self.parts[0];
        part.rows.machine_events.push(MachineEventRow::new(Offset(offset), now, event));
        part.next_offset = offset;
    }

    /// Commits an epoch of all partitions. If `is_pending`, the side tables still owe their rows.
    async fn commit(&mut self, is_pending: bool) {
        let mut columns = ReadingColumns::new(self.lake.telemetry_schema());
        let mut last = BTreeMap::new();
        let (mut files, mut rows) = (BTreeMap::new(), BTreeMap::new());
        for part in &mut self.parts {
            for (reading, offset) in part.readings.drain(..) {
                columns.push(&reading, &part.partition, offset).expect("fits");
            }
            let owed = std::mem::take(&mut part.rows);
            let epoch = PartitionEpoch {
                next_offset: Offset(part.next_offset),
                last_record: None,
                state: SavedState::Whole(Box::new(part.state.clone())),
                rows: owed.clone(),
                alerts: Vec::new(),
                owed_to: BTreeMap::new(),
                book: AlertBook::default(),
                watch: None,
                is_hub: false,
            };
            last.insert(part.partition.clone(), epoch);
            files.insert(part.partition.clone(), Vec::new());
            let owed = if is_pending { PendingRows::default() } else { owed };
            rows.insert(part.partition.clone(), owed);
        }
        if !columns.is_empty() {
            self.lake.write(columns.finish().expect("fits")).await.expect("written");
        }
        let epoch = EpochId::after(self.epoch, Nonce(1)).expect("room");
        let file = serde_json::to_vec(&EpochFile::new(epoch, last)).expect("serialisable");
        let commit = EpochCommit { readings: None, epoch, file, files, rows, current: Vec::new() };
        self.lake.begin_commit(commit).await.expect("begun");
        self.lake.committed().await.1.expect("committed");
        self.epoch = Some(epoch);
    }

    fn state_file(&self, epoch: EpochId) -> PathBuf {
        self.folder.path().join("_state").join(epoch.file_name())
    }

    /// The file of a commit after which there are `later` others.
    fn commit_file(&self, table: &str, later: usize) -> PathBuf {
        let log = self.folder.path().join(table).join("_delta_log");
        let entries = std::fs::read_dir(log).expect("a log");
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
            .collect();
        files.sort();
        files[files.len() - 1 - later].clone()
    }

    fn delete_state_file(&self, epoch: EpochId) {
        std::fs::remove_file(self.state_file(epoch)).expect("it is there");
    }

    async fn audit(&self) -> Report {
        audit_by(&clock(), &self.settings, 100).await.expect("readable")
    }
}

fn printed(report: &Report) -> String {
    let mut text = Vec::new();
    print(report, Format::Text, &mut text).expect("written");
    String::from_utf8(text).expect("UTF-8")
}

fn left_out(report: &Report) -> u64 {
    report.windows_left_out.values().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_retention_has_removed_is_left_out_and_the_rest_is_compared() {
    let mut world = World::new().await;
    for days_ago in (0..5).rev() {
        world.measure(TODAY - days_ago * MICROS_PER_DAY + HOUR);
        world.commit(false).await;
    }
    let whole = world.audit().await;
    let found = (whole.differences, whole.windows_judged, whole.anomalies);
    assert_eq!(found, (0, 5, 5), "{whole:?}");
    assert!(whole.left_out.is_empty() && whole.windows_left_out.is_empty(), "{whole:?}");

    world.settings.maintenance.retention.telemetry = Duration::from_secs(2 * 86_400);
    let (lake, settings) = (&world.settings.lake, &world.settings.maintenance);
    let mut maintenance = Maintenance::open(lake, settings, clock()).expect("opened");
    maintenance.round(None).await.expect("no fault").expect("elected");
    let shortened = world.audit().await;
    assert_eq!((shortened.differences, shortened.windows_judged), (0, 3), "{shortened:?}");
    assert_eq!(shortened.left_out, BTreeMap::from([(EXPIRED, 18)]));
    assert_eq!(left_out(&shortened), 2, "{shortened:?}");
    let text = printed(&shortened);
    assert!(text.contains(&format!("18  {EXPIRED}\n")) && text.ends_with("equal\n"), "{text}");

    // Nobody said that they may go: a count, and two windows.
    world.settings.maintenance.retention.telemetry = Duration::ZERO;
    let unexplained = world.audit().await;
    assert_eq!(unexplained.differences, 3, "{unexplained:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_is_compared_over_all_its_lives() {
    for is_pending in [false, true] {
        let mut world = World::new().await;
        // Some of the first life's offsets come again, some are still to come.
        world.parts[0].next_offset = 2_003;
        world.measure(TODAY - 2 * MICROS_PER_DAY);
        world.measure(TODAY - MICROS_PER_DAY);
        world.commit(false).await;
        world.renew(2_000);
        world.measure(TODAY);
        world.commit(is_pending).await;
        let report = world.audit().await;
        let found = (report.differences, report.windows_judged, report.anomalies);
        assert_eq!(found, (0, 3, 3), "pending: {is_pending}, {report:?}");
        assert_eq!(report.left_out, BTreeMap::from([(RENEWED, 1)]));
        if is_pending {
            continue;
        }
        // A record that has no row.
        world.parts[0].state.handle_undecodable();
        world.parts[0].next_offset += 1;
        world.commit(false).await;
        let report = world.audit().await;
        assert_eq!(report.differences, 1, "{report:?}");
        assert!(report.shown[0].contains("27 records have rows, 28 by the state"), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_file_that_is_gone_is_told_unless_its_partition_has_gone_on() {
    let mut world = World::new().await;
    let location = Location::existing(&world.settings.lake).expect("it is there");
    world.measure(TODAY - MICROS_PER_DAY);
    world.commit(false).await;
    let first = world.epoch.expect("an epoch");
    let before = open_tables(&location).await.expect("readable");
    let last_try = open_tables(&location).await.expect("readable");
    world.measure(TODAY);
    world.commit(false).await;
    world.delete_state_file(first);

    let partitions = BTreeSet::from([world.parts[0].partition.clone()]);
    let settings = &world.settings;
    let moment = Moment::of(&location, before, settings, &partitions, Attempt::Early).await;
    assert!(moment.expect("readable").is_none(), "it is tried again");
    let moment = Moment::of(&location, last_try, settings, &partitions, Attempt::Last).await;
    let moment = moment.expect("readable").expect("the last attempt tells what it finds");
    assert!(moment.broken[0].1.contains("is missing"), "{:?}", moment.broken);
    let tables = open_tables(&location).await.expect("readable");
    let moment = Moment::of(&location, tables, settings, &partitions, Attempt::Early).await;
    assert!(moment.expect("readable").expect("a moment").broken.is_empty());
    world.delete_state_file(world.epoch.expect("an epoch"));
    let tables = open_tables(&location).await.expect("readable");
    let moment = Moment::of(&location, tables, settings, &partitions, Attempt::Early).await;
    assert_eq!(moment.expect("readable").expect("a moment").broken.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_changed_while_a_partition_was_empty_leaves_old_windows_out_and_no_others() {
    let mut world = World::of_partitions(2).await;
    world.measure(TODAY - MICROS_PER_DAY);
    let old = world.parts[0].rows.anomalies[0].clone();
    world.commit(false).await;
    for part in 0..2 {
        world.change_rules(part, |rule| rule.filter = "value > 90".parse().expect("a filter"));
    }
    world.measure(TODAY);
    world.commit(false).await;
    let report = world.audit().await;
    let found = (report.differences, report.windows_judged, report.anomalies);
    assert_eq!(found, (0, 1, 1), "{report:?}");
    let before = "the window began before the rule, or before its last change";
    assert_eq!(report.windows_left_out, BTreeMap::from([(Cow::Borrowed(before), 1)]));

    // Rows that nobody has counted: of a sensor, in a window since the change; and of one that nobody has heard.
    let ghost = SensorId::new("ghost").expect("a name");
    let since = EventTime::from_micros(TODAY + 10 * MINUTE);
    for sensor_id in [old.sensor_id.clone(), Some(ghost)] {
        let row = AnomalyRow { sensor_id, window_start: since, ..old.clone() };
        world.parts[0].rows.anomalies.push(row);
    }
    world.commit(false).await;
    let report = world.audit().await;
    assert_eq!((report.differences, left_out(&report)), (2, 1), "{report:?}");
    for text in &report.shown {
        assert!(text.contains("anomalies has 8 matches, telemetry has none"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_judged_by_the_rules_of_the_partition_that_holds_their_sensor() {
    let mut world = World::of_partitions(2).await;
    world.change_rules(1, |rule| {
        rule.filter = "value > 105".parse().expect("a filter");
        rule.threshold = Threshold::count_more_than(1);
    });
    for at in [TODAY - MICROS_PER_DAY, TODAY] {
        world.measure_in(0, OIL, at);
        world.measure_in(1, "press-2/oil", at);
        world.commit(false).await;
        if at < TODAY {
            world.change_rules(0, |rule| rule.filter = "value > 90".parse().expect("a filter"));
        }
    }
    let report = world.audit().await;
    let found = (report.differences, report.windows_judged, report.anomalies);
    assert_eq!((found, left_out(&report)), ((0, 3, 3), 1), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_machine_in_two_partitions_may_be_that_of_the_other_and_a_missing_row_is_told() {
    let mut world = World::of_partitions(2).await;
    for part in 0..2 {
        world.change_rules(part, |rule| rule.by = GroupBy::Machine);
    }
    let yesterday = TODAY - MICROS_PER_DAY;
    world.measure_in(0, OIL, yesterday - MICROS_PER_DAY);
    world.measure_in(1, "press-1/air", yesterday);
    world.commit(false).await;
    for part in 0..2 {
        world.change_rules(part, |rule| rule.filter = "value > 90".parse().expect("a filter"));
    }
    // Too few for an anomaly, in a window of which the other partition has written a row by the filter before.
    world.heat(0, OIL, yesterday, 4);
    world.heat(0, OIL, yesterday + 10 * MINUTE, 8);
    world.measure(yesterday + 20 * MINUTE);
    let lost = EventTime::from_micros(yesterday + 10 * MINUTE);
    let rows = &mut world.parts[0].rows.anomalies;
    rows.retain(|row| row.window_start != lost);
    assert_eq!(rows.len(), 1);
    world.commit(false).await;
    let report = world.audit().await;
    assert_eq!((report.differences, report.windows_judged), (1, 2), "{report:?}");
    assert_eq!(left_out(&report), 2, "{report:?}");
    assert!(report.shown[0].contains("8 matches by telemetry, no row in anomalies"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_stand_in_several_topics_are_told_in_the_last_line_and_are_no_difference() {
    let mut world = World::of_partitions(2).await;
    let pressure = world.settings.kafka.topics.pressure.clone();
    world.parts[1].partition = TopicPartition { topic: pressure, partition: 0 };
    for part in 0..2 {
        world.change_rules(part, |rule| rule.by = GroupBy::Machine);
    }
    world.measure_in(0, OIL, TODAY - MICROS_PER_DAY);
    let mut row = world.parts[0].rows.anomalies[0].clone();
    world.commit(false).await;
    let report = world.audit().await;
    assert_eq!((report.differences, report.windows_judged), (0, 1), "{report:?}");
    assert!(printed(&report).ends_with("\nequal\n"), "{report:?}");

    // Eight matches of one machine, of which each topic has too few for an anomaly.
    for (part, sensor) in [(0, OIL), (1, "press-1/air")] {
        world.heat(part, sensor, TODAY, 4);
        world.take(part, sensor, TODAY + HOUR, 20.0);
    }
    assert!(world.parts.iter().all(|part| part.rows.anomalies.is_empty()));
    world.commit(false).await;
    let report = world.audit().await;
    assert_eq!((report.differences, report.windows_judged), (0, 1), "{report:?}");
    assert_eq!(report.windows_in_several_partitions(), 1, "{report:?}");
    let expected = "\nequal as far as it can be compared: 1 windows stand in several partitions\n";
    let text = printed(&report);
    assert!(text.ends_with(expected), "{text}");
    let mut json = Vec::new();
    print(&report, Format::Json, &mut json).expect("written");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("one object");
    assert_eq!((&json["equal"], &json["windows_in_several_partitions"]), (&true.into(), &1.into()));

    // What differs is told as ever.
    row.window_start = EventTime::from_micros(TODAY + 10 * MINUTE);
    world.parts[0].rows.anomalies.push(row);
    world.commit(false).await;
    let report = world.audit().await;
    assert!(printed(&report).ends_with("\n1 differences\n"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_damaged_is_named() {
    let anomalies = SideTable::Anomalies.as_str();
    let cut: fn(&str) -> String = |text| text[..text.len() - 20].to_owned();
    let empty: fn(&str) -> String = |_| String::new();
    let garbage: fn(&str) -> String = |_| "none".to_owned();
    let cases = [
        (TELEMETRY, 0, empty, "is empty"),
        (anomalies, 0, empty, "is empty"),
        (TELEMETRY, 0, cut, "cannot be read: EOF"),
        (TELEMETRY, 1, cut, "cannot be read: EOF"),
        (anomalies, 1, garbage, "cannot be read: expected"),
    ];
    for (table, later, damage, expected) in cases {
        let mut world = World::new().await;
        for at in [TODAY - MICROS_PER_DAY, TODAY] {
            world.measure(at);
            world.commit(false).await;
        }
        let file = world.commit_file(table, later);
        let text = std::fs::read_to_string(&file).expect("a commit");
        std::fs::write(&file, damage(&text)).expect("written");
        let error = audit_by(&clock(), &world.settings, 100).await.expect_err("damaged");
        assert!(matches!(error, AuditError::Lake(_)), "{error:?}");
        let name = file.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let expected = format!("table {table}: commit _delta_log/{name} {expected}");
        assert!(error.to_string().starts_with(&expected), "{expected}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_stand_still_and_do_not_go_together_are_told_at_once() {
    let mut world = World::new().await;
    for at in [TODAY - MICROS_PER_DAY, TODAY] {
        world.measure(at);
        world.commit(false).await;
    }
    let file = world.commit_file(TELEMETRY, 0);
    let text = std::fs::read_to_string(&file).expect("a commit");
    let without: Vec<&str> = text.lines().filter(|line| !line.contains("\"txn\"")).collect();
    std::fs::write(&file, without.join("\n")).expect("written");
    let report = world.audit().await;
    assert_eq!((report.differences, report.partitions_unread), (1, 1), "{report:?}");
    assert!(report.shown[0].contains("telemetry does not: restore both"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_for_a_state_that_cannot_be_read_says_so() {
    let mut world = World::of_partitions(2).await;
    world.measure_in(0, OIL, TODAY);
    world.measure_in(1, "press-2/oil", TODAY);
    world.commit(false).await;
    let epoch = world.epoch.expect("an epoch");
    let (file, other) = (world.state_file(epoch), world.parts[1].partition.to_string());
    let text = std::fs::read(&file).expect("a state file");
    let mut state: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    state["partitions"].as_object_mut().and_then(|all| all.remove(&other)).expect("it is there");
    std::fs::write(&file, state.to_string()).expect("written");

    let report = world.audit().await;
    let found = (report.differences, report.windows_judged, report.anomalies);
    assert_eq!(found, (1, 1, 1), "{report:?}");
    assert_eq!(report.rows[TELEMETRY], 18);
    assert_eq!(report.left_out, BTreeMap::from([(UNREAD, 9)]));
    let text = printed(&report);
    let name = epoch.file_name();
    let records =
        "2 partitions, the state of 1 cannot be read; 9 records taken from kafka by the others\n";
    let windows = format!(
        "1  left out: the state of its partition cannot be read ({other}: state file {name} does not hold"
    );
    assert!(text.contains(records) && text.contains(&windows), "{windows}: {text}");

    world.delete_state_file(epoch);
    let report = world.audit().await;
    let found = (report.differences, report.windows_judged, left_out(&report));
    assert_eq!(found, (2, 0, 2), "{report:?}");
    assert_eq!(report.rows[TELEMETRY], 18);
    let text = printed(&report);
    for part in &world.parts {
        let expected = format!(
            "1  left out: the state of its partition cannot be read ({}: state file {name} is missing",
            part.partition
        );
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    assert!(!text.contains("not in force"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_tell_of_gaps_are_counted_beside_the_records_of_kafka() {
    for is_pending in [false, true] {
        let mut world = World::new().await;
        world.measure(TODAY);
        world.renew(9);
        world.commit(is_pending).await;
        let report = world.audit().await;
        assert_eq!(report.differences, 0, "{report:?}");
        let expected = "0  rows of machine_events from kafka, 1 gap rows\n";
        let text = printed(&report);
        assert!(text.contains(expected), "pending: {is_pending}, {text}");
    }
}
