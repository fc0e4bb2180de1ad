use std::collections::BTreeMap;
use std::path::{Path as FolderPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aggregator_core::checkpoint::{
    EpochFile, EpochId, Nonce, PartitionEpoch, PendingRows, SavedState, TopicPartition,
};
use aggregator_core::rows::{DeadLetterRow, Offset};
use aggregator_core::{AlertBook, PartitionState, ProcessingTime};
use shared_proto::model::{DeadLetter, MetricType, Reading, SensorId};

use super::table::LOG;
use super::*;
use crate::sink::commit::{EpochCommit, Lake, Recovered};
use crate::sink::maintenance::Maintenance;
use crate::sink::rows::ReadingColumns;

const DAY_MICROS: i64 = 86_400_000_000;
const NO_OPTIONS: Options = Options { is_final: false, compares_bytes: false };
const FINAL: Options = Options { is_final: true, compares_bytes: false };

/// Two folders, and who writes to the first.
struct World {
    from: config::Lake,
    to: config::Lake,
    epoch: Option<EpochId>,
    /// Each attempt has a state file of its own.
    attempts: u64,
    _folder: tempfile::TempDir,
}

fn lake_in(folder: PathBuf) -> config::Lake {
    let mut lake = Settings::load(None).expect("valid defaults").lake;
    lake.location = folder.to_str().expect("UTF-8").to_owned();
    lake.state_grace = Duration::ZERO;
    // As it is with maintenance on: commits leave the log alone.
    lake.checkpoint_commits = Some(1_000_000);
    lake
}

fn partition() -> TopicPartition {
    TopicPartition { topic: "temperature".to_owned(), partition: 0 }
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let from = lake_in(folder.path().join("old"));
        let to = lake_in(folder.path().join("new-place"));
        Self { from, to, epoch: None, attempts: 0, _folder: folder }
    }

    async fn writer(&self) -> Lake {
        Lake::open(&self.from).await.expect("opened")
    }

    /// One epoch with two readings, one of them of an awkward name, and a dead letter.
    async fn commit(&mut self, lake: &mut Lake) -> Result<(), LakeError> {
        self.attempts += 1;
        let epoch = EpochId::after(self.epoch, Nonce(self.attempts)).expect("an epoch");
        let offset = i64::try_from(epoch.counter()).expect("small") * 2;
        let now = ProcessingTime::from_micros(chrono::Utc::now().timestamp_micros());
        let mut columns = ReadingColumns::new(lake.telemetry_schema());
        for (metric_type, offset) in [("temperature", offset), ("flow rate/ü%", offset + 1)] {
            let sensor = SensorId::new("press-1/spindle").expect("a name");
            let metric_type = MetricType::new(metric_type).expect("a name");
            let reading = Reading::new(sensor, now.as_event_time(), metric_type, 101.5);
            columns.push(&reading, &partition(), offset).expect("fits");
        }
        let (time, at) = (now.as_event_time(), Offset(offset + 2));
        let letter = DeadLetter::new("json", "not a record".to_owned(), "temperature", time, b"{");
        let dead_letters = vec![DeadLetterRow::new(at, now, letter)];
        let rows = PendingRows { dead_letters, ..PendingRows::default() };
        let state = PartitionState::new(&aggregator_core::Settings::default());
        let last = PartitionEpoch {
            next_offset: Offset(offset + 3),
            last_record: None,
            state: SavedState::Whole(Box::new(state)),
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
        lake.begin_commit(commit).await.expect("begun");
        let result = lake.committed().await.1;
        if result.is_ok() {
            self.epoch = Some(epoch);
        }
        result
    }

    async fn commits(&mut self, lake: &mut Lake, count: u32) {
        for _ in 0..count {
            self.commit(lake).await.expect("committed");
        }
    }

    async fn copy(&self, options: Options) -> Result<String, CopyError> {
        let mut out = Vec::new();
        copy(&self.from, &self.to, options, &mut out).await?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    async fn reopen(&self) -> Result<(), CopyError> {
        reopen(&self.from, &self.to, &mut Vec::new()).await
    }

    /// Merges, sums up, shortens and deletes whatever can be.
    async fn maintain(&self) {
        let mut settings = Settings::load(None).expect("valid defaults").maintenance;
        settings.checkpoint_commits = 1;
        settings.log_retention = Duration::from_secs(1);
        settings.vacuum_retention = Duration::from_secs(1);
        settings.vacuum_interval = Duration::ZERO;
        settings.files_min = 2;
        settings.settle = Duration::ZERO;
        // Later than any file here was written: each is old enough.
        let now = chrono::Utc::now().timestamp_micros() + DAY_MICROS;
        let clock = Arc::new(move || ProcessingTime::from_micros(now));
        let mut maintenance = Maintenance::open(&self.from, &settings, clock).expect("opened");
        let reports = maintenance.round(None).await.expect("maintained").expect("ours");
        let problems: Vec<_> =
            reports.values().filter_map(|report| report.problem.as_ref()).collect();
        assert!(problems.is_empty(), "{problems:?}");
        maintenance.release().await.expect("released");
    }
}

/// Rows of each table that a reader finds.
async fn rows(lake: &config::Lake) -> BTreeMap<&'static str, u64> {
    let location = Location::existing(lake).expect("it is there");
    let mut rows = BTreeMap::new();
    for name in table_names() {
        let found = TableReader::find(&location, name).await.expect("answers");
        let Some(mut table) = found else { continue };
        table.load().await.expect("loaded");
        let mut count = 0;
        for file in table.files().expect("loaded") {
            let add = |batch: &deltalake::arrow::record_batch::RecordBatch| {
                count += batch.num_rows() as u64;
                Ok(())
            };
            table.read(&file, &["source_offset"], add).await.expect("read");
        }
        rows.insert(name, count);
    }
    rows
}

/// Files below a folder with their bytes.
fn files_below(folder: &FolderPath) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let below = path.strip_prefix(folder).expect("below").to_owned();
                files.insert(below, std::fs::read(&path).expect("readable"));
            }
        }
    }
    files
}

fn is_moved(result: &Result<impl std::fmt::Debug, LakeError>) -> bool {
    matches!(result, Err(LakeError::Moved { to }) if to.ends_with("new-place"))
}

#[tokio::test]
async fn a_lake_is_moved_while_it_is_written_and_goes_on_at_the_new_place() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    world.commits(&mut lake, 3).await;
    std::fs::create_dir(FolderPath::new(&world.from.location).join("_forgotten")).expect("made");
    let book = FolderPath::new(&world.from.location).join("_forgotten/one.json");
    std::fs::write(&book, "{}").expect("written");
    world.copy(NO_OPTIONS).await.expect("copied");
    assert_eq!(rows(&world.to).await, rows(&world.from).await);
    assert!(matches!(Lake::open(&world.to).await, Err(LakeError::UnfinishedCopy { .. })));

    // A later pass brings what is new, and takes back what was.
    world.commits(&mut lake, 2).await;
    std::fs::write(&book, "[]").expect("written");
    let said = world.copy(NO_OPTIONS).await.expect("copied");
    assert!(said.contains("telemetry: 4 data files"), "{said}");
    assert_eq!(rows(&world.to).await["telemetry"], 10);
    let copied = FolderPath::new(&world.to.location).join("_forgotten/one.json");
    assert_eq!(std::fs::read(&copied).expect("it is there"), b"[]");
    std::fs::remove_file(&book).expect("deleted");

    // The writer goes on until the mark and not one commit longer.
    world.commits(&mut lake, 1).await;
    let said = world.copy(FINAL).await.expect("moved");
    assert!(said.contains("was moved to"), "{said}");
    assert!(!copied.exists());
    let refused = world.commit(&mut lake).await;
    assert!(is_moved(&refused), "{refused:?}");
    assert!(is_moved(&lake.refresh().await), "it is refused again and again");
    assert!(is_moved(&world.commit(&mut lake).await));
    assert!(is_moved(&Lake::open(&world.from).await.map(drop)));
    for lake in [&world.from, &world.to] {
        let found = rows(lake).await;
        assert_eq!((found["telemetry"], found["dead_letters"]), (12, 6));
    }
    let again = world.copy(FINAL).await.expect("nothing to do");
    assert!(again.contains("was moved to"), "{again}");

    let mut moved = Lake::open(&world.to).await.expect("opened at the new place");
    let recovered = moved.recover(&[partition()]).await.expect("answers");
    let Recovered::Resumed(last) = &recovered[0] else { panic!("{recovered:?}") };
    assert_eq!((Some(last.epoch), last.next_offset), (world.epoch, Offset(15)));
    world.commit(&mut moved).await.expect("committed");
    assert_eq!(rows(&world.to).await["telemetry"], 14);
    let late = world.reopen().await;
    assert!(matches!(late, Err(CopyError::GoneOn { .. })), "{late:?}");
}

#[tokio::test]
async fn a_move_is_taken_back_while_nothing_was_written_at_the_new_place() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    world.commits(&mut lake, 2).await;
    assert!(matches!(world.reopen().await, Err(CopyError::NotMoved)));
    world.copy(FINAL).await.expect("moved");
    // One that is open there and idle.
    let mut moved = Lake::open(&world.to).await.expect("opened");
    world.reopen().await.expect("taken back");
    let epoch = world.epoch;
    assert!(matches!(world.commit(&mut moved).await, Err(LakeError::Moved { .. })));
    assert!(matches!(Lake::open(&world.to).await, Err(LakeError::Moved { .. })));
    assert_eq!(world.epoch, epoch);
    let mut lake = world.writer().await;
    world.commits(&mut lake, 1).await;
    assert_eq!(rows(&world.from).await["telemetry"], 6);
    // The old copy is no place for another one.
    assert!(matches!(world.copy(NO_OPTIONS).await, Err(CopyError::NotEmpty { .. })));
}

#[tokio::test]
async fn a_lake_that_is_maintained_between_passes_is_copied_whole() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    for round in 0..4 {
        world.commits(&mut lake, 3).await;
        if round > 0 {
            world.maintain().await;
            lake = world.writer().await;
        }
        world.commits(&mut lake, 1).await;
        world.copy(NO_OPTIONS).await.expect("copied");
        assert_eq!(rows(&world.to).await, rows(&world.from).await, "round {round}");
    }
    world.maintain().await;
    world.copy(FINAL).await.expect("moved");
    assert_eq!(rows(&world.to).await["telemetry"], 32);
    // What the source has deleted is gone here, too; what is there is the same to the byte.
    let (old, new) = (FolderPath::new(&world.from.location), FolderPath::new(&world.to.location));
    let (old, new) = (files_below(old), files_below(new));
    for (path, bytes) in &new {
        assert!(old.get(path) == Some(bytes), "{} differs", path.display());
    }
    let missing: Vec<_> = old.keys().filter(|path| !new.contains_key(*path)).collect();
    // Commits that a checkpoint has, and the one that marks the old place.
    let is_expected = |path: &&&PathBuf| {
        path.starts_with("_maintenance") || path.components().any(|part| part.as_os_str() == LOG)
    };
    let unexpected: Vec<_> = missing.iter().filter(|path| !is_expected(path)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[tokio::test]
async fn a_writer_that_never_pauses_is_stopped_by_the_mark_and_nothing_of_it_is_lost() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    world.commits(&mut lake, 1).await;
    let (from, to) = (world.from.clone(), world.to.clone());
    let mut commits = 1;
    let writing = async {
        loop {
            match world.commit(&mut lake).await {
                Ok(()) => commits += 1,
                Err(error) => return Err::<(), _>(error),
            }
        }
    };
    let mut out = Vec::new();
    let (refused, moved) = tokio::join!(writing, copy(&from, &to, FINAL, &mut out));
    moved.expect("moved");
    assert!(is_moved(&refused), "{refused:?}");
    assert!(commits > 1, "it did not write meanwhile");
    let mut moved = Lake::open(&to).await.expect("opened at the new place");
    let recovered = moved.recover(&[partition()]).await.expect("answers");
    let Recovered::Resumed(last) = &recovered[0] else { panic!("{recovered:?}") };
    assert_eq!(Some(last.epoch), world.epoch);
    // The last epoch may have reached the other tables of the old place too late: it was rolled forward.
    let found = rows(&to).await;
    assert_eq!((found["telemetry"], found["dead_letters"]), (2 * commits, commits));
}

#[tokio::test]
async fn a_copy_that_is_cut_off_anywhere_goes_on() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    world.commits(&mut lake, 4).await;
    let mut patience = Duration::from_millis(1);
    let mut cuts = 0;
    let said = loop {
        match tokio::time::timeout(patience, world.copy(FINAL)).await {
            Ok(done) => break done.expect("moved"),
            Err(_) => cuts += 1,
        }
        patience += patience / 3 + Duration::from_millis(1);
    };
    assert!(cuts > 0 && said.contains("was moved to"), "{cuts}: {said}");
    assert_eq!(rows(&world.to).await, rows(&world.from).await);
    let mut moved = Lake::open(&world.to).await.expect("opened at the new place");
    world.commits(&mut moved, 1).await;
    assert_eq!(rows(&world.to).await["telemetry"], 10);
}

#[tokio::test]
async fn a_commit_that_the_mark_overtakes_in_the_other_tables_is_rolled_forward() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    world.commits(&mut lake, 2).await;
    // As if the process had ended between `telemetry` and the dead letters.
    let log = FolderPath::new(&world.from.location).join("dead_letters/_delta_log");
    let newest = std::fs::read_dir(&log).expect("a log").map(|entry| entry.expect("one").path());
    let newest = newest.filter(|path| path.extension().is_some_and(|kind| kind == "json")).max();
    std::fs::remove_file(newest.expect("a commit")).expect("deleted");
    world.copy(FINAL).await.expect("moved");
    assert_eq!(rows(&world.to).await["dead_letters"], 1);
    let mut moved = Lake::open(&world.to).await.expect("opened at the new place");
    moved.recover(&[partition()]).await.expect("answers");
    assert_eq!(rows(&world.to).await["dead_letters"], 2);
}

#[tokio::test]
async fn what_is_no_copy_of_this_lake_is_left_alone() {
    let mut world = World::new();
    std::fs::create_dir_all(&world.from.location).expect("made");
    assert!(matches!(world.copy(NO_OPTIONS).await, Err(CopyError::NoTable)));
    let mut lake = world.writer().await;
    world.commits(&mut lake, 1).await;
    let check = async |to: &str, options: Options| {
        let to = config::Lake { location: to.to_owned(), ..world.to.clone() };
        copy(&world.from, &to, options, &mut Vec::new()).await
    };
    let own = world.from.location.clone();
    assert!(matches!(check(&own, NO_OPTIONS).await, Err(CopyError::SamePlace { .. })));
    let inside = format!("{own}/copy");
    assert!(matches!(check(&inside, FINAL).await, Err(CopyError::SamePlace { .. })));
    assert!(!FolderPath::new(&inside).exists());
    std::fs::create_dir_all(&world.to.location).expect("made");
    let other = FolderPath::new(&world.to.location).join("notes.txt");
    std::fs::write(&other, "mine").expect("written");
    assert!(matches!(world.copy(FINAL).await, Err(CopyError::NotEmpty { .. })));
    assert_eq!(std::fs::read_to_string(&other).expect("it is there"), "mine");
    std::fs::remove_file(&other).expect("deleted");

    world.copy(NO_OPTIONS).await.expect("copied");
    let mut stranger = World::new();
    let mut theirs = stranger.writer().await;
    stranger.commits(&mut theirs, 1).await;
    let into_ours = copy(&stranger.from, &world.to, FINAL, &mut Vec::new()).await;
    assert!(matches!(into_ours, Err(CopyError::OtherSource { .. })), "{into_ours:?}");
    // Somebody has written to the copy: it is not gone on with.
    let log = FolderPath::new(&world.to.location).join("telemetry/_delta_log");
    let newest = std::fs::read_dir(&log).expect("a log").map(|entry| entry.expect("one").path());
    let newest = newest.filter(|path| path.extension().is_some_and(|kind| kind == "json")).max();
    std::fs::write(newest.expect("a commit"), "{\"commitInfo\":{}}").expect("written");
    let diverged = world.copy(FINAL).await;
    assert!(matches!(diverged, Err(CopyError::Diverged { .. })), "{diverged:?}");
    assert!(Lake::open(&world.from).await.is_ok(), "the source was marked");
}

#[tokio::test]
async fn a_file_that_is_missing_at_the_source_is_named_and_nothing_is_marked() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    world.commits(&mut lake, 1).await;
    let folder = FolderPath::new(&world.from.location);
    let files = files_below(folder);
    let is_data = |path: &&PathBuf| {
        path.starts_with("telemetry") && path.extension().is_some_and(|kind| kind == "parquet")
    };
    let path = files.keys().find(is_data).expect("a data file");
    std::fs::remove_file(folder.join(path)).expect("deleted");
    let missing = world.copy(FINAL).await;
    let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
    let is_named = matches!(&missing, Err(CopyError::Missing { path }) if path.ends_with(name));
    assert!(is_named, "{missing:?}");
    world.commits(&mut lake, 1).await;
}

#[tokio::test]
async fn bytes_that_differ_in_the_copy_are_found_when_they_are_asked_for() {
    let mut world = World::new();
    let mut lake = world.writer().await;
    world.commits(&mut lake, 1).await;
    world.copy(NO_OPTIONS).await.expect("copied");
    let folder = FolderPath::new(&world.to.location);
    let files = files_below(folder);
    let (path, bytes) = files
        .iter()
        .find(|(path, _)| path.extension().is_some_and(|kind| kind == "parquet"))
        .expect("a data file");
    let mut damaged = bytes.clone();
    damaged[8] ^= 1;
    std::fs::write(folder.join(path), damaged).expect("written");
    let compared = Options { compares_bytes: true, ..NO_OPTIONS };
    world.copy(compared).await.expect("copied");
    assert_eq!(&std::fs::read(folder.join(path)).expect("readable"), bytes);
}
