use std::sync::Arc;
use std::time::Duration;

use aggregator_core::checkpoint::{
    EpochFile, EpochId, Nonce, PartitionEpoch, PendingRows, SavedState,
};
use aggregator_core::rows::{MachineEventRow, Offset};
use aggregator_core::{Disposition, Outputs, PartitionState, ProcessingTime};
use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType};

use super::moment::open_tables;
use super::records::{EXPIRED, RENEWED};
use super::*;
use crate::sink::commit::{EpochCommit, Lake};
use crate::sink::delta::Location;
use crate::sink::maintenance::Maintenance;
use crate::sink::rows::ReadingColumns;
use crate::source::GapCause;

/// 2026-03-01T08:15:30Z.
const NOW: i64 = 1_772_352_930_000_000;
const TODAY: i64 = NOW - NOW % MICROS_PER_DAY;
const HOUR: i64 = 3_600_000_000;

fn clock() -> Clock {
    Arc::new(|| ProcessingTime::from_micros(NOW))
}

/// A lake that is written as the aggregator does it, from one partition of readings.
struct World {
    folder: tempfile::TempDir,
    settings: Settings,
    lake: Lake,
    state: PartitionState,
    rows: PendingRows,
    readings: Vec<(Reading, i64)>,
    next_offset: i64,
    epoch: Option<EpochId>,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = Settings::load(None).expect("valid defaults");
        settings.lake.location = folder.path().to_str().expect("UTF-8").to_owned();
        settings.lake.is_maintained = true;
        Self {
            lake: Lake::open(&settings.lake).await.expect("opened"),
            state: PartitionState::new(&settings.core()),
            folder,
            settings,
            rows: PendingRows::default(),
            readings: Vec::new(),
            next_offset: 0,
            epoch: None,
        }
    }

    fn partition(&self) -> TopicPartition {
        TopicPartition { topic: self.settings.kafka.topics.temperature.clone(), partition: 0 }
    }

    /// Eight hot readings within a minute, and a cold one an hour later, which closes their window.
    fn measure(&mut self, at: i64) {
        for second in 0..8 {
            self.take(at + second * 1_000_000, 101.0 + second as f64);
        }
        self.take(at + HOUR, 20.0);
    }

    fn take(&mut self, at: i64, value: f64) {
        let sensor = SensorId::new("press-1/oil").expect("a name");
        let metric = MetricType::new("temperature").expect("a name");
        let reading = Reading::new(sensor, EventTime::from_micros(at), metric, value);
        let (now, core) = (ProcessingTime::from_micros(at), self.settings.core());
        let mut out = Outputs::default();
        let disposition = self.state.handle_reading(&reading, now, &core, &mut out);
        assert_eq!(disposition, Disposition::Counted);
        self.rows.anomalies.append(&mut out.anomalies);
        self.readings.push((reading, self.next_offset));
        self.next_offset += 1;
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
        self.rows.machine_events.push(MachineEventRow::new(Offset(offset), now, event));
        self.next_offset = offset;
    }

    /// Commits an epoch. If `is_pending`, the side tables still owe their rows.
    async fn commit(&mut self, is_pending: bool) {
        let partition = self.partition();
        let mut columns = ReadingColumns::new(self.lake.telemetry_schema());
        for (reading, offset) in self.readings.drain(..) {
            columns.push(&reading, &partition, offset).expect("fits");
        }
        if !columns.is_empty() {
            self.lake.write(columns.finish().expect("fits")).await.expect("written");
        }
        let epoch = EpochId::after(self.epoch, Nonce(1)).expect("room");
        let rows = std::mem::take(&mut self.rows);
        let last = PartitionEpoch {
            next_offset: Offset(self.next_offset),
            last_record: None,
            state: SavedState::Whole(Box::new(self.state.clone())),
            rows: rows.clone(),
            alerts: Vec::new(),
            watch: None,
        };
        let file = EpochFile::new(epoch, BTreeMap::from([(partition.clone(), last)]));
        let rows = if is_pending { PendingRows::default() } else { rows };
        let commit = EpochCommit {
            readings: None,
            epoch,
            file: serde_json::to_vec(&file).expect("serialisable"),
            files: BTreeMap::from([(partition.clone(), Vec::new())]),
            rows: BTreeMap::from([(partition, rows)]),
            current: Vec::new(),
        };
        self.lake.begin_commit(commit).await.expect("begun");
        self.lake.committed().await.1.expect("committed");
        self.epoch = Some(epoch);
    }

    fn delete_state_file(&self, epoch: EpochId) {
        let file = self.folder.path().join("_state").join(epoch.file_name());
        std::fs::remove_file(file).expect("it is there");
    }

    async fn audit(&self) -> Report {
        audit_by(&clock(), &self.settings, 100).await.expect("readable")
    }
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
    assert_eq!(shortened.windows_left_out.values().sum::<u64>(), 2, "{shortened:?}");
    let mut text = Vec::new();
    print(&shortened, Format::Text, &mut text).expect("written");
    let text = String::from_utf8(text).expect("UTF-8");
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
        world.next_offset = 2_003;
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
        world.state.handle_undecodable();
        world.next_offset += 1;
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

    let partitions = BTreeSet::from([world.partition()]);
    let settings = &world.settings;
    let moment = Moment::of(&location, before, settings, &partitions, false).await;
    assert!(moment.expect("readable").is_none(), "it is tried again");
    let moment = Moment::of(&location, last_try, settings, &partitions, true).await;
    let moment = moment.expect("readable").expect("the last attempt tells what it finds");
    assert!(moment.broken[0].1.contains("is missing"), "{:?}", moment.broken);
    let tables = open_tables(&location).await.expect("readable");
    let moment = Moment::of(&location, tables, settings, &partitions, false).await;
    assert!(moment.expect("readable").expect("a moment").broken.is_empty());
    world.delete_state_file(world.epoch.expect("an epoch"));
    let tables = open_tables(&location).await.expect("readable");
    let moment = Moment::of(&location, tables, settings, &partitions, false).await;
    assert_eq!(moment.expect("readable").expect("a moment").broken.len(), 1);
}
