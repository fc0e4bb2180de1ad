use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use aggregator_core::checkpoint::{Nonce, SavedState};
use aggregator_core::rows::{
    DeadLetterRow, LateReadingRow, MachineEventRow, Offset, OutcomeRow, WaveformRow,
};
use aggregator_core::{
    AlertBook, AlertEvent, AlertState, AnomalyRow, ClosedBy, PartitionState, ProcessingTime,
};
use shared_proto::model::{
    DeadLetter, EventTime, MachineEvent, MachineEventDetails, MachineEventType, MachineId,
    MetricType, Reading, SensorId,
};

use super::*;
use crate::config::Settings;
use crate::sink::rows::ReadingColumns;

const NOW: ProcessingTime = ProcessingTime::from_micros(1_772_352_930_123_456);

fn lake_settings(folder: &Path) -> config::Lake {
    let mut settings = Settings::load(None).expect("valid defaults").lake;
    settings.location = folder.to_str().expect("UTF-8").to_owned();
    settings.state_grace = Duration::ZERO;
    settings
}

fn partition(number: i32) -> TopicPartition {
    TopicPartition { topic: "temperature".to_owned(), partition: number }
}

fn reading(metric_type: &str) -> Reading {
    let mut reading = Reading::new(
        SensorId::new("press-1/spindle").expect("a name"),
        NOW.as_event_time(),
        MetricType::new(metric_type).expect("a name"),
        101.5,
    );
    reading.features.insert("rms".to_owned(), 0.5);
    reading
}

fn telemetry_rows(lake: &Lake, readings: &[Reading], first_offset: i64) -> RecordBatch {
    let mut columns = ReadingColumns::new(lake.telemetry_schema());
    for (reading, offset) in readings.iter().zip(first_offset..) {
        columns.push(reading, &partition(0), offset).expect("fits");
    }
    columns.finish().expect("fits")
}

fn alert_event(machine_id: &MachineId) -> AlertEvent {
    AlertEvent {
        alert_id: "a1".to_owned(),
        revision: 2,
        state: AlertState::Resolved,
        rule: "temperature-above-100".to_owned(),
        severity: 2,
        machine_id: Some(machine_id.clone()),
        sensor_id: None,
        window_start: EventTime::from_micros(60_000_000),
        window_end: EventTime::from_micros(120_000_000),
        findings: 3,
        count: 6,
        threshold: "count > 5".to_owned(),
        observed: 6.0,
        detail: String::new(),
        trip_id: None,
        fired_at: NOW,
        changed_at: NOW,
        resolved_at: Some(NOW),
        historical: false,
        suppressed_by: Some("maintenance:yearly".to_owned()),
    }
}

fn outcome_row() -> OutcomeRow {
    OutcomeRow {
        offset: Offset(3),
        received_at: NOW,
        outcome_id: "ticket-4711".to_owned(),
        verdict: "confirmed".to_owned(),
        machine_id: "press-1".to_owned(),
        timestamp: NOW.as_event_time(),
        sensor_id: None,
        alert_id: Some("a1".to_owned()),
        trip_id: None,
        ticket_id: Some("4711".to_owned()),
        part: None,
        note: None,
        reported_by: Some("Kim".to_owned()),
    }
}

fn waveform_row(machine_id: &MachineId) -> WaveformRow {
    WaveformRow {
        offset: Offset(4),
        received_at: NOW,
        machine_id: machine_id.clone(),
        sensor_id: SensorId::new("press-1/spindle").expect("a name"),
        trip_id: "press-1-1".to_owned(),
        piece: 1,
        first_sample: NOW.as_event_time(),
        sample_rate_hz: 20_000.0,
        unit: Some("g".to_owned()),
        samples: [0.5_f32, -0.5].into_iter().flat_map(f32::to_le_bytes).collect(),
        identity: None,
    }
}

fn pending_rows() -> PendingRows {
    let time = NOW.as_event_time();
    let machine_id = MachineId::new("press-1").expect("a name");
    PendingRows {
        alerts: vec![alert_event(&machine_id)],
        outcomes: vec![outcome_row()],
        waveforms: vec![waveform_row(&machine_id)],
        anomalies: vec![AnomalyRow {
            rule: "temperature-above-100".to_owned(),
            sensor_id: Some(SensorId::new("press-1/spindle").expect("a name")),
            machine_id: Some(machine_id.clone()),
            window_start: EventTime::from_micros(60_000_000),
            window_end: EventTime::from_micros(120_000_000),
            is_anomaly: true,
            count: 6,
            revision: 1,
            closed_by: ClosedBy::Watermark,
            max_value: 130.0,
            min_value: 101.0,
            mean_value: 110.0,
            rate_of_change: None,
            first_match: time,
            last_match: time,
            emitted_at: NOW,
        }],
        late_readings: vec![LateReadingRow::new(Offset(5), NOW, reading("temperature"))],
        machine_events: vec![MachineEventRow::new(
            Offset(6),
            NOW,
            MachineEvent {
                event_type: MachineEventType::Trip,
                machine_id,
                timestamp: time,
                identity: None,
                historical: false,
                details: MachineEventDetails::default(),
            },
        )],
        dead_letters: vec![DeadLetterRow::new(
            Offset(7),
            NOW,
            DeadLetter::new("json", "not a record".to_owned(), "temperature", time, b"{"),
        )],
    }
}

fn file(epoch: EpochId, numbers: &[i32], next_offset: i64, rows: &PendingRows) -> EpochFile {
    let state = PartitionState::new(&aggregator_core::Settings::default());
    let partitions = numbers.iter().map(|number| {
        let epoch = PartitionEpoch {
            next_offset: Offset(next_offset),
            last_record: None,
            state: SavedState::Whole(Box::new(state.clone())),
            rows: if *number == 0 { rows.clone() } else { PendingRows::default() },
            alerts: Vec::new(),
            owed_to: BTreeMap::new(),
            book: AlertBook::default(),
            watch: None,
            is_hub: false,
        };
        (partition(*number), epoch)
    });
    EpochFile::new(epoch, partitions.collect())
}

/// The tables of a lake in which no commit runs.
fn tables(lake: &mut Lake) -> &mut Tables {
    lake.tables().expect("no commit runs")
}

async fn write_file(lake: &mut Lake, file: &EpochFile) {
    let bytes = serde_json::to_vec(file).expect("serialisable");
    tables(lake).state_files.write(file.epoch, bytes).await.expect("written");
}

async fn commit(lake: &mut Lake, file: &EpochFile) -> Result<(), LakeError> {
    let rows = file.partitions.iter().map(|(id, epoch)| (id.clone(), epoch.rows.clone()));
    let bytes = serde_json::to_vec(file).expect("serialisable");
    let rows = rows.collect();
    let commit = EpochCommit {
        readings: None,
        epoch: file.epoch,
        file: bytes,
        files: files_by_partition(file),
        rows,
        current: Vec::new(),
    };
    lake.begin_commit(commit).await.expect("begun");
    let (epoch, result) = lake.committed().await;
    assert_eq!(epoch, file.epoch);
    result
}

/// Rows of a table by its log and the numbers of rows that its files state, without our own code or the library.
fn rows_by_log(folder: &Path, table: &str) -> u64 {
    let log = folder.join(table).join("_delta_log");
    let mut rows = 0;
    for entry in std::fs::read_dir(log).expect("a log") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        for line in std::fs::read_to_string(path).expect("readable").lines() {
            let action: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(action.get("remove").is_none(), "only appends");
            if let Some(protocol) = action.get("protocol") {
                assert_eq!(
                    (&protocol["minReaderVersion"], &protocol["minWriterVersion"]),
                    (&1.into(), &2.into())
                );
            }
            if let Some(stats) = action["add"]["stats"].as_str() {
                let stats: serde_json::Value = serde_json::from_str(stats).expect("JSON");
                rows += stats["numRecords"].as_u64().expect("a number");
            }
        }
    }
    rows
}

fn all_rows(folder: &Path) -> BTreeMap<&'static str, u64> {
    let names = [rows::TELEMETRY].into_iter().chain(SideTable::ALL.map(SideTable::as_str));
    names.map(|name| (name, rows_by_log(folder, name))).collect()
}

fn expected(telemetry: u64, side: u64) -> BTreeMap<&'static str, u64> {
    let sides = SideTable::ALL.map(|table| (table.as_str(), side));
    [(rows::TELEMETRY, telemetry)].into_iter().chain(sides).collect()
}

#[tokio::test]
async fn an_epoch_is_in_all_tables_once_and_is_resumed_from_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let mut lake = Lake::open(&settings).await.expect("opened");
    assert!(matches!(lake.recover(&[partition(0)]).await.expect("answers")[0], Recovered::Fresh));

    let odd = reading("flow rate/ü%");
    let rows = telemetry_rows(&lake, &[reading("temperature"), odd], 0);
    lake.write(rows).await.expect("encoded");
    let epoch = EpochId::first(Nonce(7));
    commit(&mut lake, &file(epoch, &[0, 1], 8, &pending_rows())).await.expect("committed");
    assert_eq!(all_rows(folder.path()), expected(2, 1));

    let mut lake = Lake::open(&settings).await.expect("opened again");
    let recovered = lake.recover(&[partition(0), partition(2)]).await.expect("answers");
    let Recovered::Resumed(last) = &recovered[0] else { panic!("{recovered:?}") };
    assert_eq!((last.epoch, last.next_offset), (epoch, Offset(8)));
    assert!(matches!(recovered[1], Recovered::Fresh));
    assert_eq!(all_rows(folder.path()), expected(2, 1), "recovery repeats nothing");
}

#[tokio::test]
async fn an_epoch_that_died_after_its_deciding_commit_is_rolled_forward_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let mut lake = Lake::open(&settings).await.expect("opened");
    let rows = telemetry_rows(&lake, &[reading("temperature")], 0);
    lake.write(rows).await.expect("encoded");
    let epoch = EpochId::first(Nonce(7));
    write_file(&mut lake, &file(epoch, &[0], 8, &pending_rows())).await;
    let adds = lake.writer.flush().await.expect("flushed");
    tables(&mut lake).telemetry.append(adds, &[partition(0)], epoch).await.expect("committed");
    drop(lake);
    assert_eq!(all_rows(folder.path()), expected(1, 0));

    for _ in 0..3 {
        let mut lake = Lake::open(&settings).await.expect("opened again");
        let recovered = lake.recover(&[partition(0)]).await.expect("answers");
        assert!(matches!(recovered[0], Recovered::Resumed(_)));
        assert_eq!(all_rows(folder.path()), expected(1, 1));
    }
}

#[tokio::test]
async fn an_epoch_that_died_before_its_deciding_commit_never_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let mut lake = Lake::open(&settings).await.expect("opened");
    let rows = telemetry_rows(&lake, &[reading("temperature")], 0);
    lake.write(rows).await.expect("encoded");
    let lost = EpochId::first(Nonce(7));
    write_file(&mut lake, &file(lost, &[0], 8, &pending_rows())).await;
    drop(lake);

    let mut lake = Lake::open(&settings).await.expect("opened again");
    assert!(matches!(lake.recover(&[partition(0)]).await.expect("answers")[0], Recovered::Fresh));
    assert_eq!(all_rows(folder.path()), expected(0, 0));
    assert_eq!(lake.clean_state_files(Instant::now()).await.expect("cleaned"), 0);
    let next = EpochId::after(Some(lost), Nonce(1)).expect("room");
    commit(&mut lake, &file(next, &[0], 1, &PendingRows::default())).await.expect("committed");
    assert_eq!(lake.clean_state_files(Instant::now()).await.expect("cleaned"), 1);
}

#[tokio::test]
async fn a_second_owner_of_a_partition_cannot_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let mut first = Lake::open(&settings).await.expect("opened");
    let mut second = Lake::open(&settings).await.expect("opened");
    let none = PendingRows::default();
    for (lake, nonce) in [(&mut first, 1), (&mut second, 2)] {
        let rows = telemetry_rows(lake, &[reading("temperature")], 0);
        lake.write(rows).await.expect("encoded");
        let result = commit(lake, &file(EpochId::first(Nonce(nonce)), &[0], 1, &none)).await;
        assert_eq!(result.is_ok(), nonce == 1, "{result:?}");
    }
    assert_eq!(all_rows(folder.path()), expected(1, 0));
    // An owner of another partition is not in the way.
    let mut third = Lake::open(&settings).await.expect("opened");
    let epoch = EpochId::first(Nonce(3));
    let next = EpochId::after(Some(epoch), Nonce(4)).expect("room");
    commit(&mut first, &file(next, &[0], 2, &none)).await.expect("committed");
    commit(&mut third, &file(epoch, &[1], 1, &none)).await.expect("committed");
}

#[tokio::test]
async fn state_files_are_kept_while_a_partition_names_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let mut lake = Lake::open(&settings).await.expect("opened");
    let none = PendingRows::default();
    let mut last = None;
    for (count, numbers) in [(1, &[0, 1][..]), (2, &[0][..]), (3, &[0][..])] {
        let epoch = EpochId::after(last, Nonce(count)).expect("room");
        commit(&mut lake, &file(epoch, numbers, 1, &none)).await.expect("committed");
        last = Some(epoch);
    }
    // The first names partition 1, the third partition 0.
    assert_eq!(lake.clean_state_files(Instant::now()).await.expect("cleaned"), 1);
    let left = std::fs::read_dir(folder.path().join("_state")).expect("a folder").count();
    assert_eq!(left, 2);
}

#[tokio::test]
async fn an_instance_that_has_not_looked_for_long_deletes_nobodys_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = lake_settings(folder.path());
    let mut standby = Lake::open(&settings).await.expect("opened");
    settings.state_grace = Duration::from_secs(3600);
    let mut first = Lake::open(&settings).await.expect("opened");
    let none = PendingRows::default();
    let mut last = None;
    for count in 1..=3 {
        let epoch = EpochId::after(last, Nonce(count)).expect("room");
        commit(&mut first, &file(epoch, &[0], 1, &none)).await.expect("committed");
        last = Some(epoch);
    }
    // A file whose commit is still to come.
    let next = EpochId::after(last, Nonce(9)).expect("room");
    write_file(&mut first, &file(next, &[0], 1, &none)).await;
    let began = Instant::now();
    assert_eq!(first.clean_state_files(began).await.expect("cleaned"), 0);
    assert_eq!(standby.clean_state_files(began).await.expect("cleaned"), 2);
    let left = std::fs::read_dir(folder.path().join("_state")).expect("a folder").count();
    assert_eq!(left, 2);
    commit(&mut first, &file(EpochId::after(last, Nonce(4)).expect("room"), &[0], 1, &none))
        .await
        .expect("committed");
    assert_eq!(first.clean_state_files(began).await.expect("cleaned"), 0);
    let later = began + Duration::from_secs(3600);
    assert_eq!(first.clean_state_files(later).await.expect("cleaned"), 1);
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, b"no folder").expect("written");
    let error = Lake::open(&lake_settings(&file.join("lake"))).await.expect_err("not a folder");
    let text = error.to_string();
    assert!(text.contains("cannot be written") && text.contains("file/lake"), "{text}");
}

#[test]
fn every_batch_fits_a_schema_that_has_grown_a_column() {
    use deltalake::arrow::datatypes::{DataType, Field, Schema};
    let schema = Schema::new(vec![Field::new("added_by_hand", DataType::Int64, true)]);
    let rows = pending_rows();
    let from = partition(0);
    let batch = rows::dead_letter_batch(&Arc::new(schema), &[(&from, &rows.dead_letters[0])])
        .expect("fits");
    assert_eq!((batch.num_rows(), batch.num_columns()), (1, 1));
}

/// A lake of an older version lacked the columns that came later, and their values were dropped.
#[tokio::test]
async fn a_table_of_an_older_version_gets_the_columns_that_it_lacks_and_stays_readable_by_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let location = Location::open(&settings).expect("writable");
    let (mut columns, partitions) = rows::side_columns(SideTable::MachineEvents);
    columns.retain(|column| {
        !["rule_version", "trip_id", "operator"].contains(&column.name().as_str())
    });
    let name = SideTable::MachineEvents.as_str();
    Table::open(&location, name, columns, partitions).await.expect("created");
    for _ in 0..2 {
        let mut lake = Lake::open(&settings).await.expect("opened");
        let schema = tables(&mut lake).side_tables[&SideTable::MachineEvents].schema().clone();
        for column in ["rule_version", "trip_id", "operator"] {
            assert!(schema.field_with_name(column).is_ok(), "{column} in {schema:?}");
        }
    }
    let log = folder.path().join(name).join("_delta_log");
    let mut versions: Vec<_> = std::fs::read_dir(&log)
        .expect("listed")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    versions.sort();
    assert_eq!(versions.len(), 2, "made, and once completed");
    for version in versions {
        let text = std::fs::read_to_string(version).expect("read");
        for line in text.lines().filter(|line| line.starts_with("{\"protocol\"")) {
            assert!(
                line.contains("\"minReaderVersion\":1") && line.contains("\"minWriterVersion\":2"),
                "{line}"
            );
        }
    }
}

#[tokio::test]
async fn current_windows_hold_what_the_last_epoch_of_each_partition_left_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let mut first = Lake::open(&settings).await.expect("opened");
    let mut second = Lake::open(&settings).await.expect("opened");
    let row = pending_rows().anomalies.remove(0);
    let none = PendingRows::default();
    let mut last = None;
    // Two instances take turns, each with a partition of its own; the number of windows goes up and down.
    for (count, (number, windows)) in
        [(0, 3), (1, 2), (0, 1), (1, 0), (0, 2)].into_iter().enumerate()
    {
        let epoch = EpochId::after(last, Nonce(count as u64)).expect("room");
        last = Some(epoch);
        let file = file(epoch, &[number], 1, &none);
        let rows = [(partition(number), none.clone())].into();
        let bytes = serde_json::to_vec(&file).expect("serialisable");
        let current = vec![(partition(number), row.clone()); windows];
        let lake = if number == 0 { &mut first } else { &mut second };
        let files = files_by_partition(&file);
        let commit = EpochCommit { epoch, readings: None, file: bytes, files, rows, current };
        lake.begin_commit(commit).await.expect("begun");
        lake.committed().await.1.expect("committed");
    }
    let held = |lake: &mut Lake| {
        let table = tables(lake).current.as_ref().expect("it is there");
        table.rows_by_statistics()
    };
    assert_eq!(held(&mut first), 2);
    let mut again = Lake::open(&settings).await.expect("opened");
    assert_eq!(held(&mut again), 2, "two of partition 0, none of partition 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_looks_while_another_instance_commits_and_cleans_up_finds_nothing_corrupt() {
    const EPOCHS: u64 = 25;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_settings(folder.path());
    let mut writer = Lake::open(&settings).await.expect("opened");
    let mut reader = Lake::open(&settings).await.expect("opened");
    let writing = tokio::spawn(async move {
        let mut last = None;
        for count in 1..=EPOCHS {
            let epoch = EpochId::after(last, Nonce(count)).expect("room");
            if let Err(error) = commit(&mut writer, &file(epoch, &[0], 1, &pending_rows())).await {
                // The reader has rolled the epoch forward.
                assert!(error.is_lost_race(), "{error:?}");
                writer.refresh().await.expect("refreshed");
            }
            writer.clean_state_files(Instant::now()).await.expect("cleaned");
            last = Some(epoch);
        }
    });
    let mut looks = 0;
    while !writing.is_finished() {
        reader.refresh().await.expect("refreshed");
        match reader.recover(&[partition(0)]).await {
            Ok(recovered) => assert!(
                !matches!(recovered[0], Recovered::Corrupt(_)),
                "after {looks} looks: {recovered:?}"
            ),
            Err(error) => assert!(error.is_lost_race(), "{error:?}"),
        }
        looks += 1;
    }
    writing.await.expect("every epoch was committed");
    assert!(looks > 0);
}
