use std::collections::BTreeMap;
use std::path::Path;

use aggregator_core::checkpoint::{
    EpochFile, EpochId, Nonce, PartitionEpoch, PendingRows, SavedState, TopicPartition,
};
use aggregator_core::rows::Offset;
use aggregator_core::{AlertBook, PartitionState, ProcessingTime};
use deltalake::arrow::array::AsArray as _;
use deltalake::arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use shared_proto::model::{EventTime, MetricType, Reading, SensorId};

use super::*;
use crate::config::Settings;
use crate::sink::commit::{EpochCommit, Lake, Recovered};
use crate::sink::rows::ReadingColumns;

/// 2026-03-01T08:15:30Z.
const NOON: i64 = 1_772_352_930_000_000;
const DAY: i64 = 86_400_000_000;
const SENSORS: i64 = 7;

struct World {
    folder: tempfile::TempDir,
    settings: Settings,
    epoch: Option<EpochId>,
    next_offset: i64,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = Settings::load(None).expect("valid defaults");
        settings.lake.location = folder.path().to_str().expect("UTF-8").to_owned();
        settings.lake.checkpoint_commits = Some(100);
        Self { folder, settings, epoch: None, next_offset: 0 }
    }

    async fn lake(&self) -> Lake {
        Lake::open(&self.settings.lake).await.expect("opened")
    }

    fn maintenance(&self, now: i64) -> Maintenance {
        let clock: Clock = Arc::new(move || ProcessingTime::from_micros(now));
        Maintenance::open(&self.settings.lake, &self.settings.maintenance, clock).expect("opened")
    }

    async fn upkeep(&self) -> Upkeep {
        let location = Location::open(&self.settings.lake).expect("writable");
        let limit = self.settings.lake.operation_timeout;
        let opened = Upkeep::open(&location, rows::TELEMETRY, TABLES[0].1, limit).await;
        opened.expect("readable").expect("there")
    }

    /// An epoch of 50 readings of several sensors at `at`, unsorted.
    async fn append(&mut self, lake: &mut Lake, metric: &str, at: i64) -> Result<(), LakeError> {
        let partition = TopicPartition { topic: "temperature".to_owned(), partition: 0 };
        let mut columns = ReadingColumns::new(lake.telemetry_schema());
        for number in 0..50 {
            let reading = Reading::new(
                SensorId::new(&format!("press-{}/oil", number * 3 % SENSORS)).expect("a name"),
                EventTime::from_micros(at + (number * 17 % 50) * 1000),
                MetricType::new(metric).expect("a name"),
                70.0,
            );
            columns.push(&reading, &partition, self.next_offset).expect("fits");
            self.next_offset += 1;
        }
        lake.write(columns.finish().expect("fits")).await?;
        let epoch = EpochId::after(self.epoch, Nonce(1)).expect("room");
        let last = PartitionEpoch {
            next_offset: Offset(self.next_offset),
            last_record: None,
            state: SavedState::Whole(Box::new(PartitionState::new(
                &aggregator_core::Settings::default(),
            ))),
            rows: PendingRows::default(),
            owed_to: BTreeMap::new(),
            book: AlertBook::default(),
            watch: None,
            is_hub: false,
            alerts: Vec::new(),
        };
        let file = EpochFile::new(epoch, BTreeMap::from([(partition.clone(), last)]));
        let file = serde_json::to_vec(&file).expect("serialisable");
        let files = BTreeMap::from([(partition.clone(), Vec::new())]);
        let rows = BTreeMap::from([(partition, PendingRows::default())]);
        let commit = EpochCommit { epoch, readings: None, file, files, rows, current: Vec::new() };
        lake.begin_commit(commit).await?;
        lake.committed().await.1?;
        self.epoch = Some(epoch);
        Ok(())
    }

    /// Offsets of the rows of `telemetry`, ordered, and how many files hold them. Each file is sorted if `is_sorted`.
    async fn rows(&self, is_sorted: bool) -> (Vec<i64>, usize) {
        let upkeep = self.upkeep().await;
        let paths = upkeep.paths();
        let mut offsets = Vec::new();
        for path in &paths {
            let file = std::fs::File::open(self.folder.path().join(rows::TELEMETRY).join(path));
            let reader = ParquetRecordBatchReaderBuilder::try_new(file.expect("the file is there"))
                .and_then(ParquetRecordBatchReaderBuilder::build)
                .expect("readable");
            let mut last = None;
            for batch in reader {
                let batch = batch.expect("readable");
                let column = |name| batch.column_by_name(name).expect("a column");
                offsets.extend(column("source_offset").as_primitive::<Int64Type>().values());
                let sensors = column("sensor_id").as_string::<i32>();
                let times = column("timestamp").as_primitive::<TimestampMicrosecondType>();
                for row in 0..batch.num_rows() {
                    let key = (sensors.value(row).to_owned(), times.value(row));
                    assert!(!is_sorted || last.as_ref() <= Some(&key), "{path} is not sorted");
                    last = Some(key);
                }
            }
        }
        offsets.sort_unstable();
        (offsets, paths.len())
    }

    fn all(&self) -> Vec<i64> {
        (0..self.next_offset).collect()
    }
}

/// Files by the text of the log alone; every removal names a file that is there.
fn files_by_log(folder: &Path) -> usize {
    let log = folder.join(rows::TELEMETRY).join("_delta_log");
    let mut versions: Vec<_> = std::fs::read_dir(log)
        .expect("a log")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    versions.sort();
    let mut files = BTreeSet::new();
    for version in versions {
        for line in std::fs::read_to_string(version).expect("readable").lines() {
            let action: serde_json::Value = serde_json::from_str(line).expect("JSON");
            if let Some(protocol) = action.get("protocol") {
                let versions = (&protocol["minReaderVersion"], &protocol["minWriterVersion"]);
                assert_eq!(versions, (&1.into(), &2.into()));
            }
            if let Some(path) = action["add"]["path"].as_str() {
                assert!(files.insert(path.to_owned()), "{path} is added twice");
                let stats = action["add"]["stats"].as_str().expect("statistics");
                let stats: serde_json::Value = serde_json::from_str(stats).expect("JSON");
                let least = stats["minValues"].as_object().expect("least values");
                // Those that have a value; all of a list would be most of the log.
                let wanted = rows::statistics_columns(rows::TELEMETRY);
                for name in ["sensor_id", "timestamp", "value", "source_offset"] {
                    assert!(least.contains_key(name) && wanted.contains(&name), "{stats}");
                }
                let is_wanted = |name: &String| wanted.contains(&name.as_str());
                assert!(least.keys().all(is_wanted), "{stats}");
            }
            if let Some(path) = action["remove"]["path"].as_str() {
                assert!(files.remove(path), "{path} is removed and was not there");
            }
        }
    }
    files.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_become_one_sorted_file_of_each_partition_and_no_row_is_lost() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..world.settings.maintenance.files_min {
        for metric in ["temperature", "flow rate/ü%"] {
            world.append(&mut lake, metric, NOON).await.expect("committed");
        }
    }
    assert_eq!(world.rows(false).await.1, 16);
    let mut maintenance = world.maintenance(NOON);
    let reports = maintenance.round(None).await.expect("no fault").expect("elected");
    let report = &reports[rows::TELEMETRY];
    assert_eq!((report.merged_files, report.written_files, report.files), (16, 2, 2));
    assert_eq!((report.rows, &report.problem), (800, &None));
    assert_eq!(world.rows(true).await, (world.all(), 2));
    assert_eq!(files_by_log(world.folder.path()), 2);
    // What is sorted is merged again as a stream, with what is not.
    for _ in 0..3 {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    let reports = world.maintenance(NOON).round(None).await.expect("no fault");
    assert!(reports.is_none(), "the lease of another instance is respected");
    maintenance.release().await.expect("released");
    let reports = world.maintenance(NOON + 2 * DAY).round(None).await.expect("no fault");
    assert_eq!(reports.expect("elected")[rows::TELEMETRY].merged_files, 4);
    assert_eq!(world.rows(true).await, (world.all(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named_and_keeps_the_others_from_nothing() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..2 * world.settings.maintenance.files_min {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    let table = world.folder.path().join(rows::TELEMETRY);
    let damaged = world.upkeep().await.paths().remove(0);
    let whole = std::fs::read(table.join(&damaged)).expect("readable");
    std::fs::write(table.join(&damaged), &whole[..whole.len() / 2]).expect("writable");
    let mut maintenance = world.maintenance(NOON);
    let mut problems = Vec::new();
    for _ in 0..2 {
        let reports = maintenance.round(None).await.expect("no fault").expect("elected");
        problems.push(reports[rows::TELEMETRY].problem.clone().unwrap_or_default());
    }
    let name = damaged.rsplit('/').next().expect("a name");
    assert!(problems.iter().all(|problem| problem.contains(name)), "{problems:?}");
    // The damaged one, and what became of the others.
    assert_eq!(files_by_log(world.folder.path()), 2);
    std::fs::write(table.join(&damaged), whole).expect("writable");
    assert_eq!(world.rows(false).await, (world.all(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_merges_of_the_same_files_one_is_given_up() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..8 {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    let (mut first, mut second) = (world.upkeep().await, world.upkeep().await);
    let limits = world.maintenance(NOON).limits();
    let now = ProcessingTime::from_micros(NOON);
    let plan = |upkeep: &Upkeep| {
        let mut groups = upkeep.plan(&limits, now, Micros::new(0), &BTreeSet::new()).expect("read");
        assert_eq!(groups.len(), 1);
        groups.remove(0)
    };
    let (left, right) = (plan(&first), plan(&second));
    let settings = &world.settings.maintenance.clone();
    let done = first.merge(left, settings, now).await.expect("no fault");
    assert!(matches!(done, upkeep::Merged::Done(_)));
    world.append(&mut lake, "temperature", NOON).await.expect("committed");
    let done = second.merge(right, settings, now).await.expect("no fault");
    assert!(matches!(done, upkeep::Merged::GivenUp));
    assert_eq!(world.rows(false).await, (world.all(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_goes_through_beside_merges_retention_and_a_shortened_log() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..8 {
        world.append(&mut lake, "temperature", NOON - 3 * DAY).await.expect("committed");
    }
    for _ in 0..8 {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    world.settings.maintenance.retention.telemetry = Duration::from_secs(2 * 86_400);
    world.settings.maintenance.checkpoint_commits = 1;
    // `lake` does not know of any of this: properties, removed dates, merged files.
    let mut maintenance = world.maintenance(NOON);
    let report = maintenance.round(None).await.expect("no fault").expect("elected");
    let report = &report[rows::TELEMETRY];
    assert_eq!((report.expired_files, report.merged_files, report.files), (8, 8, 1), "{report}");
    let kept: Vec<i64> = (400..800).collect();
    assert_eq!(world.rows(true).await, (kept, 1));
    world.append(&mut lake, "temperature", NOON).await.expect("committed beside maintenance");
    assert_eq!(world.rows(false).await, ((400..850).collect(), 2));
    // One who has not looked for longer than the log goes back reads the table anew and goes on.
    let mut upkeep = world.upkeep().await;
    assert!(upkeep.checkpoint(1).await.expect("no fault"));
    let mut busy = world.lake().await;
    world.append(&mut busy, "temperature", NOON).await.expect("committed");
    assert!(upkeep.checkpoint(1).await.expect("no fault"));
    let far = ProcessingTime::from_micros(NOON + 400 * 365 * DAY);
    let deleted = upkeep.shorten_log(far, Duration::from_secs(1)).await.expect("no fault");
    assert!(deleted > 16, "{deleted} log files are gone, those of the writer's snapshot too");
    lake.refresh().await.expect("read anew");
    let partition = TopicPartition { topic: "temperature".to_owned(), partition: 0 };
    let recovered = lake.recover(&[partition]).await.expect("answers");
    assert!(matches!(&recovered[0], Recovered::Resumed(last) if Some(last.epoch) == world.epoch));
    lake.discard().expect("a writer");
    world.append(&mut lake, "temperature", NOON).await.expect("committed");
    assert_eq!(world.rows(false).await, ((400..950).collect(), 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_outlive_the_commits_that_carried_them() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..5 {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    let other = TopicPartition { topic: "temperature".to_owned(), partition: 0 };
    world.settings.maintenance.checkpoint_commits = 1;
    for century in 1..4 {
        // Each time the whole log is centuries old.
        let now = NOON + century * 100 * 365 * DAY;
        let mut maintenance = world.maintenance(now);
        let reports = maintenance.round(None).await.expect("no fault").expect("elected");
        assert!(reports[rows::TELEMETRY].checkpointed);
        assert!(reports.values().all(|report| report.problem.is_none()), "{reports:?}");
        maintenance.release().await.expect("released");
        let log = world.folder.path().join(rows::TELEMETRY).join("_delta_log");
        assert!(!log.join("00000000000000000003.json").exists());
        let mut again = world.lake().await;
        let recovered = again.recover(std::slice::from_ref(&other)).await.expect("answers");
        let Recovered::Resumed(last) = &recovered[0] else { panic!("{recovered:?}") };
        assert_eq!((Some(last.epoch), last.next_offset), (world.epoch, Offset(world.next_offset)));
        world.append(&mut again, "temperature", NOON).await.expect("committed");
    }
    // One who has not looked since cannot commit an epoch of the past.
    world.epoch = Some(EpochId::first(Nonce(1)));
    let refused = world.append(&mut lake, "temperature", NOON).await;
    assert!(refused.is_err(), "another instance has moved the partition");
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_without_maintenance_in_between_sum_the_log_up() {
    let mut world = World::new();
    world.settings.lake.checkpoint_commits = Some(4);
    let log = world.folder.path().join(rows::TELEMETRY).join("_delta_log");
    let checkpoint = |version: u64| log.join(format!("{version:020}.checkpoint.parquet"));
    let partition = TopicPartition { topic: "temperature".to_owned(), partition: 0 };
    for start in 0..7 {
        // The version that this start finds; 0 is the table's creation.
        let found = start * 3;
        let mut lake = world.lake().await;
        assert_eq!(checkpoint(found).exists(), [6, 12, 18].contains(&found), "version {found}");
        let recovered = lake.recover(std::slice::from_ref(&partition)).await.expect("answers");
        match &recovered[0] {
            Recovered::Resumed(last) => {
                let known = (Some(last.epoch), last.next_offset);
                assert_eq!(known, (world.epoch, Offset(world.next_offset)));
            }
            Recovered::Fresh => assert_eq!(start, 0),
            Recovered::Corrupt(corruption) => panic!("{corruption:?}"),
        }
        for _ in 0..3 {
            world.append(&mut lake, "temperature", NOON).await.expect("committed");
        }
    }
    assert_eq!(world.rows(false).await, (world.all(), 21));
    // One that cannot be written only takes longer the next time.
    std::fs::create_dir(checkpoint(21)).expect("made");
    world.settings.lake.checkpoint_commits = Some(3);
    let mut lake = world.lake().await;
    assert!(checkpoint(21).is_dir());
    world.append(&mut lake, "temperature", NOON).await.expect("committed");
    assert_eq!(world.rows(false).await, (world.all(), 22));
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_keeps_what_is_young_and_deletes_what_a_crash_has_left() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..8 {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    let table = world.folder.path().join(rows::TELEMETRY);
    let orphan = table.join("date=2026-03-01/metric_type=temperature/part-orphan.parquet");
    std::fs::write(&orphan, b"never committed").expect("written");
    let real_now = (system_clock())().micros();
    let files = || {
        let folder = orphan.parent().expect("a folder");
        std::fs::read_dir(folder).expect("listed").count()
    };
    let mut maintenance = world.maintenance(real_now);
    maintenance.round(None).await.expect("no fault").expect("elected");
    assert_eq!(files(), 10, "eight files, the merged one, the orphan");
    maintenance.release().await.expect("released");
    let mut maintenance = world.maintenance(real_now + 8 * DAY);
    let reports = maintenance.round(None).await.expect("no fault").expect("elected");
    assert_eq!(reports[rows::TELEMETRY].vacuumed_files, 9, "{reports:?}");
    assert_eq!(files(), 1);
    assert_eq!(world.rows(true).await, (world.all(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_by_its_age_while_the_clock_is_not_the_storages() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..world.settings.maintenance.files_min {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    world.settings.maintenance.retention.telemetry = Duration::from_secs(86_400);
    let later = NOON + 30 * DAY;
    let reports = world.maintenance(later).checking_its_clock().round(None).await;
    let reports = reports.expect("no fault").expect("elected");
    let report = &reports[rows::TELEMETRY];
    let problem = report.problem.as_deref().unwrap_or_default();
    assert!(problem.contains("clock of this machine"), "{report}");
    assert_eq!((report.expired_files, report.vacuumed_files), (0, 0));
    assert!(report.merged_files > 0, "what needs no clock is done: {report}");
    assert_eq!(world.rows(false).await.0, world.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_asks_for_more_than_every_reader_can_do_is_left_alone() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    world.append(&mut lake, "temperature", NOON).await.expect("committed");
    let log = world.folder.path().join(rows::TELEMETRY).join("_delta_log");
    let protocol = "{\"protocol\":{\"minReaderVersion\":2,\"minWriterVersion\":5}}\n";
    std::fs::write(log.join("00000000000000000002.json"), protocol).expect("written");
    let reports = world.maintenance(NOON).round(None).await.expect("no fault").expect("elected");
    let problem = reports[rows::TELEMETRY].problem.as_deref().unwrap_or_default();
    assert!(problem.contains("reader version 2 and writer version 5"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_memory_is_merged_in_steps_or_not_at_all() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    for _ in 0..8 {
        world.append(&mut lake, "temperature", NOON).await.expect("committed");
    }
    world.settings.maintenance.memory_bytes_max = 1000;
    let mut maintenance = world.maintenance(NOON);
    maintenance.round(None).await.expect("no fault").expect("elected");
    assert_eq!(maintenance.too_large.len(), 1);
    assert_eq!(world.rows(false).await, (world.all(), 8));
    maintenance.release().await.expect("released");
    world.settings.maintenance.memory_bytes_max = 40_000;
    let mut maintenance = world.maintenance(NOON);
    let reports = maintenance.round(None).await.expect("no fault").expect("elected");
    let merged = reports[rows::TELEMETRY].merged_files;
    assert!((2..8).contains(&merged), "{merged} of 8 files of about 10 kB in memory");
    assert_eq!(world.rows(false).await.0, world.all());
}

#[tokio::test]
async fn one_of_many_instances_is_elected_and_another_one_when_it_is_gone() {
    let world = World::new();
    let location = Location::open(&world.settings.lake).expect("writable");
    let term = Micros::from_seconds(60);
    let leases: Vec<_> = ["a", "b", "c"]
        .map(|owner| lease::Leases::open(&location, owner, term).expect("opened"))
        .into();
    let at = |seconds: i64| ProcessingTime::from_micros(seconds * 1_000_000);
    assert!(leases[0].take(at(0)).await.expect("answers").is_some());
    for (seconds, expected) in
        [(1, [true, false, false]), (50, [true, false, false]), (111, [true, false, false])]
    {
        for (place, expected) in expected.into_iter().enumerate() {
            let taken = leases[place].take(at(seconds)).await.expect("answers");
            assert_eq!(taken.is_some(), expected, "instance {place} after {seconds} s");
        }
    }
    assert!(leases[1].take(at(171)).await.expect("answers").is_some(), "the first is gone");
    assert!(leases[0].take(at(172)).await.expect("answers").is_none(), "and comes too late");
    let left = std::fs::read_dir(world.folder.path().join("_maintenance")).expect("listed");
    assert_eq!(left.count(), 1, "leases of the past are deleted");
}
