use std::path::PathBuf;

use aggregator_core::rows::LateReadingRow;
use aggregator_core::{AnomalyRow, Outputs};
use shared_proto::model::{
    DeviceId, EventTime, Generation, Identity, MetricType, Reading, SensorId, Sequence,
};

use super::*;
use crate::sink::delta::Table;
use crate::sink::rows::{self, ReadingColumns};

const MINUTE: i64 = 60_000_000;
/// 2026-03-01T08:15:00Z, the start of a window.
const START: i64 = 1_772_352_900_000_000;
const NOW: ProcessingTime = ProcessingTime::from_micros(START + 30 * MINUTE);

/// A lake, an aggregator that has counted in it, and a job.
struct World {
    settings: Settings,
    state: PartitionState,
    next_offset: i64,
    epoch: Option<EpochId>,
    folder: tempfile::TempDir,
}

fn partition() -> TopicPartition {
    TopicPartition { topic: "temperature".to_owned(), partition: 0 }
}

/// A reading above the limit of the seed rule, so long after [`START`], as the device's record of that number.
fn hot(seconds: i64, sequence: u64) -> Reading {
    let sensor = SensorId::new("press-1/oil").expect("a name");
    let metric = MetricType::new("temperature").expect("a name");
    let time = EventTime::from_micros(START + seconds * 1_000_000);
    let device_id = DeviceId::new("gateway-1").expect("a name");
    let identity = Identity { device_id, generation: Generation(1), sequence: Sequence(sequence) };
    Reading { identity: Some(identity), ..Reading::new(sensor, time, metric, 101.5) }
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = Settings::load(None).expect("valid defaults");
        settings.lake.location = folder.path().join("lake").display().to_string();
        let state = PartitionState::new(&settings.core());
        Self { settings, state, next_offset: 0, epoch: None, folder }
    }

    fn checkpoint(&self) -> String {
        self.folder.path().join("checkpoint").display().to_string()
    }

    /// One epoch of the aggregator.
    async fn count(&mut self, lake: &mut Lake, readings: &[Reading]) -> Result<Outputs, LakeError> {
        let (core, mut out) = (self.settings.core(), Outputs::default());
        let mut columns = ReadingColumns::new(lake.telemetry_schema());
        for reading in readings {
            self.state.handle_reading(reading, NOW, &core, &mut out);
            columns.push(reading, &partition(), self.next_offset).expect("fits");
            self.next_offset += 1;
        }
        self.state.handle_trigger(NOW, &core, &mut out);
        let rows = PendingRows { anomalies: out.anomalies.clone(), ..PendingRows::default() };
        let epoch = EpochId::after(self.epoch, Nonce(1)).expect("an epoch");
        let last = PartitionEpoch {
            next_offset: Offset(self.next_offset),
            last_record: None,
            state: SavedState::Whole(Box::new(self.state.clone())),
            rows: rows.clone(),
            alerts: Vec::new(),
            owed_to: BTreeMap::new(),
            book: AlertBook::default(),
            watch: None,
            is_hub: false,
        };
        let file = EpochFile::new(epoch, [(partition(), last)].into());
        let commit = EpochCommit {
            epoch,
            readings: Some(columns.finish().expect("fits")),
            file: serde_json::to_vec(&file).expect("serialisable"),
            files: [(partition(), Vec::new())].into(),
            rows: [(partition(), rows)].into(),
            current: Vec::new(),
        };
        lake.begin_commit(commit).await?;
        lake.committed().await.1?;
        self.epoch = Some(epoch);
        Ok(out)
    }

    async fn lake(&self) -> Lake {
        Lake::open(&self.settings.lake).await.expect("opened")
    }

    /// What the job writes: a row for each reading from an offset on.
    async fn write(&self, readings: &[Reading], first: i64) {
        let location = Location::existing(&self.settings.lake).expect("there").taking_over();
        let (columns, by) = (rows::telemetry_columns(), rows::reading_partitions());
        let mut table = Table::open(&location, TELEMETRY, columns, by).await.expect("opened");
        let mut columns = ReadingColumns::new(table.schema().clone());
        for (offset, reading) in (first..).zip(readings) {
            columns.push(reading, &partition(), offset).expect("fits");
        }
        let mut writer = table.writer(1 << 20).expect("a writer");
        use deltalake::writer::DeltaWriter as _;
        writer.write(columns.finish().expect("fits")).await.expect("written");
        let adds = writer.flush().await.expect("flushed");
        table.append(adds, &[], EpochId::first(Nonce(9))).await.expect("committed");
    }

    /// Rows of a side table, as the job writes them.
    async fn write_side(&self, rows: PendingRows) {
        let mut lake = Lake::open_to_take_over(&self.settings.lake).await.expect("opened");
        lake.append_side_rows(&partition(), &rows).await.expect("committed");
    }

    /// The job's checkpoint after so many batches; `ended`: of them.
    fn set_checkpoint(&self, batches: u64, ended: u64, offset: i64) {
        let root = PathBuf::from(self.checkpoint());
        for (folder, last) in [("offsets", batches), ("commits", ended)] {
            std::fs::create_dir_all(root.join(folder)).expect("made");
            let text = format!("v1\n{{}}\n{{\"temperature\":{{\"0\":{offset}}}}}\n");
            std::fs::write(root.join(folder).join(last.to_string()), text).expect("written");
        }
        std::fs::write(root.join("metadata"), r#"{"id":"job-1"}"#).expect("written");
    }

    /// The job writes down which checkpoint it has.
    async fn bind(&self, checkpoint: &str) {
        let location = Location::existing(&self.settings.lake).expect("there");
        let table = location.store(mark::JOB_TABLE).expect("a store");
        let folder = PathBuf::from(&self.settings.lake.location).join(mark::JOB_TABLE);
        std::fs::create_dir_all(&folder).expect("made");
        let telemetry = load_telemetry(&location).await.expect("answers").expect("there");
        let at = handed_over(&telemetry).expect("loaded").and_then(|mark| mark.at_ms);
        let began = at.map(|at| at.to_string()).unwrap_or_default();
        deltalake::operations::create::CreateBuilder::new()
            .with_log_store(table.log_store())
            .with_columns(rows::telemetry_columns())
            .with_configuration([
                (mark::JOB_CHECKPOINT.to_owned(), Some(checkpoint.to_owned())),
                (mark::JOB_BEGAN.to_owned(), Some(began)),
            ])
            .with_raise_if_key_not_exists(false)
            .with_save_mode(deltalake::protocol::SaveMode::Overwrite)
            .await
            .expect("made");
    }

    async fn set_mark(&self, to: &str) {
        let location = Location::existing(&self.settings.lake).expect("there");
        let to = HandedOver { to: to.to_owned(), at_ms: None };
        assert!(mark(&location, Some(&to)).await.expect("answers"));
    }

    async fn offsets(&self, is_for_good: bool) -> Result<String, HandOverError> {
        let mut out = Vec::new();
        offsets(&self.settings, is_for_good, OffsetFormat::Spark, NOW, &mut out).await?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    async fn take_over(&self) -> Result<String, HandOverError> {
        let mut out = Vec::new();
        take_over(&self.settings, &self.checkpoint(), NOW, Nonce(5), &mut out).await?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    async fn marked(&self) -> Option<String> {
        let location = Location::existing(&self.settings.lake).expect("there");
        let table = load_telemetry(&location).await.expect("answers").expect("there");
        handed_over(&table).expect("loaded").map(|mark| mark.to)
    }

    /// Goes on as an aggregator that starts.
    async fn go_on(&mut self) -> Lake {
        let mut lake = self.lake().await;
        lake.refresh().await.expect("refreshed");
        let mut recovered = lake.recover(&[partition()]).await.expect("answers");
        let Some(Recovered::Resumed(last)) = recovered.pop() else { panic!("no state") };
        self.epoch = Some(last.epoch);
        self.next_offset = last.next_offset.0;
        self.state = last.state;
        self.state.resume(&self.settings.core(), NOW);
        lake
    }
}

fn is_handed_over<T>(result: &Result<T, LakeError>) -> bool {
    matches!(result, Err(LakeError::HandedOver { to }) if to == SPARK)
}

#[tokio::test]
async fn who_writes_a_lake_that_was_handed_over_is_refused() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    world.count(&mut lake, &[hot(0, 1), hot(1, 2)]).await.expect("committed");
    assert_eq!(world.offsets(false).await.expect("read"), "{\"temperature\":{\"0\":2}}\n");
    assert_eq!(world.marked().await, None);
    for _ in 0..2 {
        assert_eq!(world.offsets(true).await.expect("read"), "{\"temperature\":{\"0\":2}}\n");
        assert_eq!(world.marked().await.as_deref(), Some(SPARK));
    }
    let refused = world.count(&mut lake, &[hot(2, 3)]).await;
    assert!(is_handed_over(&refused), "{refused:?}");
    assert!(is_handed_over(&Lake::open(&world.settings.lake).await));

    world.write(&[hot(2, 3)], 2).await;
    for is_for_good in [false, true] {
        let error = world.offsets(is_for_good).await.expect_err("it has gone on");
        assert!(matches!(error, HandOverError::GoneOn { .. }), "{error}");
        assert_eq!(error.exit_code(), EXIT_CONFIG);
    }
}

#[tokio::test]
async fn windows_that_both_have_counted_are_one() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    let readings: Vec<Reading> = (0..3).map(|n| hot(n, n.cast_unsigned() + 1)).collect();
    world.count(&mut lake, &readings).await.expect("committed");
    world.offsets(true).await.expect("handed over");

    // Four more of the same window; offset 5 is a repeat, offset 8 comes too late.
    world.write(&[hot(10, 4), hot(11, 5)], 3).await;
    world.write(&[hot(12, 6), hot(13, 7)], 6).await;
    let late = hot(-3 * 86_400, 8);
    let late_readings = vec![LateReadingRow::new(Offset(8), NOW, late)];
    world.write_side(PendingRows { late_readings, ..PendingRows::default() }).await;
    world.set_checkpoint(4, 4, 9);
    world.bind("job-1").await;
    let said = world.take_over().await.expect("taken over");
    assert!(said.contains("on from offset 9"), "{said}");
    assert!(said.contains("4 rows, 1 late readings and 0 dead letters, and 1 offsets"), "{said}");
    assert_eq!(world.marked().await, None);

    let mut lake = world.go_on().await;
    assert_eq!(world.next_offset, 9);
    let accounting = world.state.accounting();
    assert!(accounting.is_balanced(), "{accounting:?}");
    let counts = (accounting.records_in, accounting.counted, accounting.late);
    assert_eq!((counts, accounting.duplicates), ((9, 7, 1), 1));
    // A repeat of what the job has read is none, and the next window closes the one before.
    let out = world.count(&mut lake, &[hot(13, 7), hot(600, 9)]).await.expect("committed");
    assert_eq!(world.state.accounting().duplicates, 2);
    let rows: Vec<_> = out.anomalies.iter().map(|row| (row.count, row.revision)).collect();
    assert_eq!(rows, [(7, 1)]);
}

#[tokio::test]
async fn a_window_of_which_the_job_has_told_goes_on_with_the_next_revision() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    let readings: Vec<Reading> = (0..6).map(|n| hot(n, n.cast_unsigned() + 1)).collect();
    world.count(&mut lake, &readings).await.expect("committed");
    let out = world.count(&mut lake, &[hot(600, 7)]).await.expect("committed");
    assert_eq!(out.anomalies.len(), 1);
    world.offsets(true).await.expect("handed over");
    // One more for the window that is closed, and the row that says so.
    world.write(&[hot(30, 8)], 7).await;
    let anomalies = vec![AnomalyRow { count: 7, revision: 2, ..out.anomalies[0].clone() }];
    world.write_side(PendingRows { anomalies, ..PendingRows::default() }).await;
    world.set_checkpoint(0, 0, 8);
    world.bind("job-1").await;
    world.take_over().await.expect("taken over");
    let mut lake = world.go_on().await;
    let out = world.count(&mut lake, &[hot(601, 9)]).await.expect("committed");
    assert_eq!(out.anomalies, [], "nothing new is to be said of it");
    let out = world.count(&mut lake, &[hot(31, 10)]).await.expect("committed");
    let rows: Vec<_> = out.anomalies.iter().map(|row| (row.count, row.revision)).collect();
    assert_eq!(rows, [(8, 3)]);
}

#[tokio::test]
async fn what_does_not_belong_together_is_refused_and_the_job_goes_on() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    world.count(&mut lake, &[hot(0, 1), hot(1, 2)]).await.expect("committed");
    world.set_checkpoint(1, 1, 4);
    let error = world.take_over().await.expect_err("aggregators write it");
    assert!(matches!(error, HandOverError::NotHandedOver), "{error}");
    world.offsets(true).await.expect("handed over");
    world.set_checkpoint(1, 1, 3);
    let error = world.take_over().await.expect_err("no job has written");
    assert!(matches!(error, HandOverError::NothingWritten { found: 3, known: 2, .. }), "{error}");
    world.write(&[hot(2, 3), hot(3, 4)], 2).await;
    world.bind("job-2").await;
    let error = world.take_over().await.expect_err("another job's");
    assert!(matches!(error, HandOverError::OtherCheckpoint { .. }), "{error}");
    world.bind("job-1").await;

    let check = |expected: &'static str, exit_code: u8, error: HandOverError| {
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code(), exit_code, "{error}");
    };
    world.set_checkpoint(2, 1, 4);
    let error = world.take_over().await.expect_err("a batch is at work");
    check("batch 2 of the job was begun and has not ended", EXIT_TEMPORARY, error);
    world.set_checkpoint(2, 2, 1);
    let error = world.take_over().await.expect_err("older than the lake");
    check("stands at offset 1, the lake at 2", EXIT_CONFIG, error);
    world.set_checkpoint(2, 2, 3);
    let error = world.take_over().await.expect_err("older than its rows");
    check("offset 3, which nobody has read before 3", EXIT_CONFIG, error);
    world.write(&[hot(2, 3)], 2).await;
    world.set_checkpoint(2, 2, 4);
    let error = world.take_over().await.expect_err("a row stands twice");
    check("3 rows of 2 offsets", EXIT_STORAGE, error);
    assert_eq!(world.marked().await.as_deref(), Some(SPARK), "it is the job's as before");
}

#[tokio::test]
async fn a_lake_of_somebody_else_or_a_topic_that_nobody_reads_is_refused() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    world.count(&mut lake, &[hot(0, 1)]).await.expect("committed");
    world.set_checkpoint(1, 1, 1);
    world.set_mark("flink").await;
    for error in [
        world.take_over().await.expect_err("refused"),
        world.offsets(true).await.expect_err("refused"),
    ] {
        assert!(matches!(&error, HandOverError::Stranger { to } if to == "flink"), "{error}");
    }
    world.set_mark(SPARK).await;
    world.settings.kafka.topics.temperature = "other".to_owned();
    let error = world.take_over().await.expect_err("nobody reads it");
    assert!(matches!(error, HandOverError::UnreadTopic { .. }), "{error}");
}

#[tokio::test]
async fn a_take_over_that_was_cut_off_is_begun_again() {
    let mut world = World::new();
    let mut lake = world.lake().await;
    world.count(&mut lake, &[hot(0, 1), hot(1, 2)]).await.expect("committed");
    world.offsets(true).await.expect("handed over");
    world.write(&[hot(2, 3)], 2).await;
    world.bind("job-1").await;
    // The job was at work: it ends its batch first, and so it must have the lake again.
    world.set_checkpoint(1, 0, 3);
    world.set_mark(IN_BETWEEN).await;
    let error = world.take_over().await.expect_err("a batch is at work");
    assert_eq!(error.exit_code(), EXIT_TEMPORARY, "{error}");
    assert_eq!(world.marked().await.as_deref(), Some(SPARK));
    world.set_checkpoint(1, 1, 3);
    // Before its commit, and after it.
    world.set_mark(IN_BETWEEN).await;
    let error = world.offsets(true).await.expect_err("nobody's turn");
    assert!(matches!(error, HandOverError::InBetween), "{error}");
    let refused = Lake::open(&world.settings.lake).await;
    assert!(matches!(refused, Err(LakeError::TakeOverBegun)), "{refused:?}");
    world.take_over().await.expect("taken over");
    world.set_mark(IN_BETWEEN).await;
    let said = world.take_over().await.expect("taken over");
    assert!(said.contains("0 rows"), "{said}");
    world.go_on().await;
    assert_eq!((world.next_offset, world.state.accounting().records_in), (3, 3));
}

#[tokio::test]
async fn a_job_that_has_made_the_lake_hands_over_what_it_has_read() {
    let mut world = World::new();
    drop(world.lake().await);
    let readings: Vec<Reading> = (0..7).map(|n| hot(n, n.cast_unsigned() + 1)).collect();
    world.write(&readings, 40).await;
    world.set_checkpoint(7, 7, 50);
    let error = world.take_over().await.expect_err("nobody has said that it is the job's");
    assert!(matches!(error, HandOverError::NotHandedOver), "{error}");
    // As the job makes it.
    world.set_mark(SPARK).await;
    world.bind("job-1").await;
    world.take_over().await.expect("taken over");
    let mut lake = world.go_on().await;
    let accounting = world.state.accounting();
    assert_eq!((world.next_offset, accounting.counted, accounting.duplicates), (50, 7, 3));
    let out = world.count(&mut lake, &[hot(600, 9)]).await.expect("committed");
    assert_eq!(out.anomalies.iter().map(|row| row.count).collect::<Vec<_>>(), [7]);
    assert_eq!(out.findings.len(), 1, "nobody was told");
}
