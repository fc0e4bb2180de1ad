use shared_proto::model::{
    DeadLetter, EventTime, MachineId, MetricType, Reading, SensorId, WaveformBlock,
    WaveformSnapshot,
};

use super::*;
use crate::alert::{AlertSettings, AlertState, Finding};
use crate::settings::Settings;
use crate::time::ProcessingTime;

const NOW: ProcessingTime = ProcessingTime::from_micros(1_772_352_000_000_000);

fn partition(number: i32) -> TopicPartition {
    TopicPartition { topic: "temperature".to_owned(), partition: number }
}

fn letter(offset: i64) -> DeadLetterRow {
    let time = EventTime::from_micros(0);
    let letter = DeadLetter::new("not-json", "text".to_owned(), "temperature", time, b"\x00\xff{");
    DeadLetterRow::new(Offset(offset), NOW, letter)
}

fn late(offset: i64) -> LateReadingRow {
    let sensor_id = SensorId::new("s").expect("a valid name");
    let metric_type = MetricType::new("temperature").expect("a valid name");
    let mut reading = Reading::new(sensor_id, EventTime::from_micros(0), metric_type, 0.1 + 0.2);
    reading.features.insert("rms".to_owned(), f64::MIN_POSITIVE);
    LateReadingRow::new(Offset(offset), NOW, reading)
}

/// A partition's part of an epoch that took the records `offsets`: even ones are dead letters, odd ones late.
fn part(offsets: std::ops::Range<i64>) -> PartitionEpoch {
    let rows = PendingRows {
        dead_letters: offsets.clone().filter(|offset| offset % 2 == 0).map(letter).collect(),
        late_readings: offsets.clone().filter(|offset| offset % 2 == 1).map(late).collect(),
        ..PendingRows::default()
    };
    let state = SavedState::Whole(Box::new(PartitionState::new(&Settings::default())));
    let next_offset = Offset(offsets.end);
    let (alerts, book) = (Vec::new(), AlertBook::default());
    let owed_to = OwedTo::new();
    PartitionEpoch {
        next_offset,
        last_record: None,
        state,
        rows,
        alerts,
        owed_to,
        book,
        watch: None,
        is_hub: false,
    }
}

fn file(epoch: EpochId, parts: impl IntoIterator<Item = (i32, PartitionEpoch)>) -> EpochFile {
    let parts = parts.into_iter().map(|(number, part)| (partition(number), part));
    EpochFile::new(epoch, parts.collect())
}

fn epoch(counter: u64) -> EpochId {
    EpochId::encode(counter, Nonce(7))
}

#[test]
fn epochs_are_positive_and_increase_whatever_the_nonce() {
    let high = Nonce(u64::MAX);
    let first = EpochId::first(high);
    assert_eq!((first.counter(), first.nonce()), (1, Nonce(NONCE_MASK)));
    assert!(first.version() > 0);
    let second = EpochId::after(Some(first), Nonce(0)).expect("there is a second");
    assert!(second > first && second.version() > first.version());
    assert_eq!(second.counter(), 2);
    assert_eq!(EpochId::after(None, Nonce(3)), Ok(EpochId::first(Nonce(3))));
    let last = EpochId::encode(COUNTER_MAX, high);
    assert_eq!(last.version(), i64::MAX);
    assert_eq!(EpochId::after(Some(last), high), Err(EpochError::Exhausted));
    let before_last = EpochId::encode(COUNTER_MAX - 1, high);
    assert_eq!(EpochId::after(Some(before_last), high), Ok(last));
}

#[test]
fn versions_that_no_epoch_has_are_refused() {
    for version in [i64::MIN, -1, 0, 1, (1 << NONCE_BITS) - 1] {
        assert_eq!(EpochId::try_from(version), Err(EpochError::NotAnEpoch { version }));
    }
    assert_eq!(EpochId::try_from(1 << NONCE_BITS), Ok(EpochId::first(Nonce(0))));
}

#[test]
fn file_names_lead_back_to_their_epoch_and_sort_like_it() {
    let last = EpochId::encode(COUNTER_MAX, Nonce(NONCE_MASK));
    for epoch in [EpochId::first(Nonce(0)), EpochId::first(Nonce(0xab)), last] {
        assert_eq!(EpochId::from_file_name(&epoch.file_name()), Some(epoch));
    }
    assert_eq!(epoch(12).file_name(), "0000000012-00000007.json");
    assert!(epoch(9).file_name() < epoch(10).file_name());
    assert!(epoch(9).file_name() < last.file_name());
    for name in
        ["", "x.json", "1-7.json", "0000000000-00000007.json", "0000000012-00000007.json.tmp"]
    {
        assert_eq!(EpochId::from_file_name(name), None, "{name}");
    }
}

#[test]
fn application_ids_lead_back_to_their_partition() {
    let odd = TopicPartition { topic: "a/b".to_owned(), partition: 12 };
    assert_eq!(odd.app_id(), "cloud-aggregator/a/b/12");
    assert_eq!(TopicPartition::from_app_id(&odd.app_id()), Some(odd));
    for text in [
        "spark/temperature/0",
        "cloud-aggregator/0",
        "cloud-aggregator/t/",
        "cloud-aggregator/t/-1",
        "cloud-aggregator/t/01",
    ] {
        assert_eq!(TopicPartition::from_app_id(text), None, "{text}");
    }
}

#[test]
fn state_file_comes_back_as_it_was_written() {
    let written = file(epoch(3), [(0, part(0..4)), (1, part(5..5))]);
    let read: EpochFile = serde_json::from_str(&text_of(&written)).expect("readable");
    assert_eq!(read, written);
    let row = &read.partitions[&partition(0)].rows.late_readings[0];
    assert_eq!(row.value.to_bits(), (0.1_f64 + 0.2).to_bits());
}

/// What stood in the state files of versions that owed findings.
const OWED_FINDING: &str = r#"{"id":"ab12","rule":"temperature-above-100","severity":2,"sensor_id":"press-1/oil",
    "machine_id":null,"window_start":60000000,"window_end":120000000,"count":6,"threshold":"count > 5","observed":"6",
    "fired_at":130000000,"historical":false}"#;

#[test]
fn state_file_of_a_version_that_owed_findings_owes_their_alerts() {
    let written = file(epoch(3), [(0, part(0..4))]);
    let mut value = serde_json::to_value(&written).expect("serialisable");
    let saved = &mut value["partitions"]["temperature/0"];
    assert_eq!(saved.get("book"), None, "an empty book takes no room");
    saved["alerts"] = serde_json::from_str(&format!("[{OWED_FINDING}]")).expect("readable");
    let rows = saved["rows"].as_object_mut().expect("rows");
    for table in ["alerts", "outcomes", "waveforms"] {
        assert!(rows.remove(table).is_some());
    }
    let read: EpochFile = serde_json::from_value(value).expect("readable");
    let read = &read.partitions[&partition(0)];
    let [alert] = read.alerts.as_slice() else { panic!("{:?}", read.alerts) };
    assert_eq!((alert.event_id().as_str(), alert.state), ("ab12-1", AlertState::Fired));
    assert_eq!((alert.threshold.as_str(), alert.observed, alert.findings), ("count > 5", 6.0, 1));
    assert_eq!(alert.changed_at, ProcessingTime::from_micros(130_000_000));
    assert_eq!(read.rows, written.partitions[&partition(0)].rows);

    let again = file(epoch(4), [(0, read.clone())]);
    assert_eq!(serde_json::from_str::<EpochFile>(&text_of(&again)).expect("readable"), again);
}

#[test]
fn open_alerts_and_rows_of_all_tables_come_back_as_they_were_written() {
    let owed: Finding = serde_json::from_str(OWED_FINDING).expect("readable");
    let mut part = part(0..4);
    let settings = AlertSettings::default();
    part.book.handle_finding(owed, NOW, &settings, &mut part.rows.alerts);
    part.alerts = part.rows.alerts.clone();
    part.rows.outcomes.push(OutcomeRow {
        offset: Offset(7),
        received_at: NOW,
        outcome_id: "ticket-4711".to_owned(),
        verdict: "confirmed".to_owned(),
        machine_id: "press-1".to_owned(),
        timestamp: EventTime::from_micros(1),
        sensor_id: None,
        alert_id: Some(part.alerts[0].alert_id.clone()),
        trip_id: None,
        ticket_id: Some("4711".to_owned()),
        part: Some("bearing 6205".to_owned()),
        note: None,
        reported_by: None,
    });
    let block = WaveformBlock {
        machine_id: MachineId::new("press-1").expect("a valid name"),
        sensor_id: SensorId::new("press-1/spindle").expect("a valid name"),
        first_sample: EventTime::from_micros(2),
        sample_rate_hz: 25_600.1,
        unit: Some("g".into()),
        samples: vec![1.0, -0.5],
    };
    let trip_id = "press-1-7".to_owned();
    let snapshot = WaveformSnapshot { block, scale: None, trip_id, piece: 1, identity: None };
    let row = WaveformRow::new(Offset(8), NOW, snapshot);
    assert_eq!(
        (row.sample_count(), row.samples.as_slice()),
        (2, &[0, 0, 128, 63, 0, 0, 0, 191][..])
    );
    part.rows.waveforms.push(row);
    part.is_hub = true;
    let text = serde_json::to_string(&PartitionEpochRef {
        next_offset: part.next_offset,
        last_record: part.last_record,
        state: &part.state,
        rows: &part.rows,
        alerts: part.alerts.iter().collect(),
        owed_to: &part.owed_to,
        book: &part.book,
        watch: None,
        is_hub: part.is_hub,
    })
    .expect("serialisable");
    assert_eq!(serde_json::to_string(&part).expect("serialisable"), text);
    assert_eq!(serde_json::from_str::<PartitionEpoch>(&text).expect("readable"), part);
    let names: Vec<&str> = part.rows.tables().into_iter().map(SideTable::as_str).collect();
    assert_eq!(names, ["late_readings", "dead_letters", "alerts", "outcomes", "waveforms"]);
}

#[test]
fn each_finding_leads_to_its_recovery() {
    let tables = |list: &[SideTable]| -> BTreeMap<SideTable, EpochId> {
        list.iter().map(|table| (*table, epoch(5))).collect()
    };
    let found = |telemetry: Option<u64>, side_tables| FoundTransactions {
        telemetry: telemetry.map(epoch),
        side_tables,
    };
    let check = |found: &FoundTransactions, file: FoundFile<'_>, expected: Recovery| {
        assert_eq!(resolve(&partition(0), found, file), expected, "{found:?}");
    };
    let resume = |tables: &[SideTable]| Recovery::Resume {
        epoch: epoch(5),
        next_offset: Offset(4),
        roll_forward: tables.iter().copied().collect(),
    };
    let five = file(epoch(5), [(0, part(2..4)), (1, part(0..9))]);
    let present = FoundFile::Present(&five);
    use SideTable::{Anomalies, DeadLetters, LateReadings};

    check(&found(None, tables(&[])), FoundFile::Absent, Recovery::Fresh);
    check(&found(Some(5), tables(&[])), present, resume(&[DeadLetters, LateReadings]));
    check(&found(Some(5), tables(&[DeadLetters])), present, resume(&[LateReadings]));
    check(&found(Some(5), tables(&[DeadLetters, LateReadings])), present, resume(&[]));
    let older = BTreeMap::from([(DeadLetters, epoch(4)), (Anomalies, epoch(3))]);
    check(&found(Some(5), older), present, resume(&[DeadLetters, LateReadings]));
}

#[test]
fn each_damage_is_named_and_never_resumed_from() {
    let five = file(epoch(5), [(1, part(0..1))]);
    let other = file(epoch(6), [(0, part(0..1))]);
    let mut newer = file(epoch(5), [(0, part(0..1))]);
    newer.format = FILE_FORMAT + 1;
    let check = |found: &FoundTransactions, file: FoundFile<'_>, expected: Corruption| {
        assert_eq!(resolve(&partition(0), found, file), Recovery::Corrupt(expected));
    };
    let named = FoundTransactions { telemetry: Some(epoch(5)), side_tables: BTreeMap::new() };
    let epoch5 = epoch(5);
    check(&named, FoundFile::Absent, Corruption::FileMissing { epoch: epoch5 });
    check(
        &named,
        FoundFile::Unreadable("eof"),
        Corruption::FileUnreadable { epoch: epoch5, detail: "eof".to_owned() },
    );
    check(
        &named,
        FoundFile::Present(&newer),
        Corruption::FileFormat { epoch: epoch5, found: FILE_FORMAT + 1 },
    );
    check(
        &named,
        FoundFile::Present(&other),
        Corruption::FileOfOtherEpoch { epoch: epoch5, found: epoch(6) },
    );
    check(
        &named,
        FoundFile::Present(&five),
        Corruption::PartitionMissing { epoch: epoch5, partition: partition(0) },
    );
    for telemetry in [None, Some(epoch(4))] {
        let side_tables = BTreeMap::from([(SideTable::Anomalies, epoch5)]);
        let ahead = Corruption::SideTableAhead {
            table: SideTable::Anomalies,
            found: epoch5,
            partition: partition(0),
        };
        check(&FoundTransactions { telemetry, side_tables }, FoundFile::Present(&five), ahead);
    }
}

#[test]
fn partition_that_has_moved_on_is_not_ours() {
    let known = BTreeMap::from([(partition(0), Some(epoch(2))), (partition(1), None)]);
    let found = BTreeMap::from([(partition(0), epoch(2))]);
    assert_eq!(check_ownership(&known, &found), Ok(()));
    for (number, counter) in [(0, 3), (1, 1)] {
        let mut moved = found.clone();
        moved.insert(partition(number), epoch(counter));
        let lost = OwnershipLost { partition: partition(number) };
        assert_eq!(check_ownership(&known, &moved), Err(lost));
    }
    let lost = OwnershipLost { partition: partition(0) };
    assert_eq!(check_ownership(&known, &BTreeMap::new()), Err(lost), "telemetry was set back");
}

#[test]
fn file_is_obsolete_when_each_of_its_partitions_has_gone_on_without_it() {
    let files = BTreeMap::from([
        (partition(0), BTreeSet::from([epoch(2), epoch(5)])),
        (partition(1), BTreeSet::from([epoch(9)])),
        (partition(2), BTreeSet::new()),
    ]);
    let check = |counter, partitions: &[i32], expected| {
        let partitions: Vec<_> = partitions.iter().copied().map(partition).collect();
        assert_eq!(is_obsolete(epoch(counter), &partitions, &files), expected, "{partitions:?}");
    };
    check(3, &[0, 1], true);
    check(2, &[0, 1], false);
    check(2, &[1], true);
    check(5, &[0], false);
    // A commit that may still come.
    check(6, &[0, 1], false);
    // Of these nothing is known.
    check(1, &[1, 2], false);
    check(1, &[1, 3], false);
}

/// A lake in memory: each method is one atomic write.
#[derive(Clone, Default)]
struct Lake {
    files: BTreeMap<EpochId, String>,
    telemetry: BTreeMap<TopicPartition, EpochId>,
    /// Offsets in `telemetry`: here each record leaves one row there, to see which epochs hold.
    telemetry_rows: Vec<(i32, i64)>,
    side_tables: BTreeMap<SideTable, BTreeMap<TopicPartition, EpochId>>,
    side_rows: Vec<(SideTable, i32, i64)>,
    /// Writes that still succeed before the power goes.
    writes_left: usize,
}

struct PowerCut;

impl Lake {
    fn write(&mut self) -> Result<(), PowerCut> {
        self.writes_left = self.writes_left.checked_sub(1).ok_or(PowerCut)?;
        Ok(())
    }

    fn put_file(&mut self, file: &EpochFile) -> Result<(), PowerCut> {
        self.write()?;
        self.files.insert(file.epoch, text_of(file));
        Ok(())
    }

    fn commit_telemetry(&mut self, file: &EpochFile, from: &[i64]) -> Result<(), PowerCut> {
        self.write()?;
        for ((partition, part), from) in file.partitions.iter().zip(from) {
            self.telemetry.insert(partition.clone(), file.epoch);
            let offsets = *from..part.next_offset.0;
            self.telemetry_rows.extend(offsets.map(|offset| (partition.partition, offset)));
        }
        Ok(())
    }

    fn commit_side(
        &mut self,
        table: SideTable,
        epoch: EpochId,
        parts: &[(&TopicPartition, &PartitionEpoch)],
    ) -> Result<(), PowerCut> {
        self.write()?;
        for (partition, part) in parts {
            let found = self.side_tables.entry(table).or_default().get(*partition).copied();
            assert!(owes_rows(found, epoch), "{table:?} of {partition} is committed once");
            self.side_tables.entry(table).or_default().insert((*partition).clone(), epoch);
            let late = part.rows.late_readings.iter().map(|row| row.offset.0);
            let dead = part.rows.dead_letters.iter().map(|row| row.offset.0);
            let rows: Vec<i64> = match table {
                SideTable::LateReadings => late.collect(),
                SideTable::DeadLetters => dead.collect(),
                SideTable::Anomalies
                | SideTable::MachineEvents
                | SideTable::Alerts
                | SideTable::Outcomes
                | SideTable::Waveforms => Vec::new(),
            };
            self.side_rows.extend(rows.into_iter().map(|row| (table, partition.partition, row)));
        }
        Ok(())
    }

    fn next_epoch(&self, nonce: Nonce) -> EpochId {
        let last = self.telemetry.values().max().copied();
        EpochId::after(last, nonce).expect("far from the end")
    }

    fn found(&self, partition: &TopicPartition) -> FoundTransactions {
        let side_tables = self.side_tables.iter();
        FoundTransactions {
            telemetry: self.telemetry.get(partition).copied(),
            side_tables: side_tables
                .filter_map(|(table, found)| Some((*table, *found.get(partition)?)))
                .collect(),
        }
    }
}

fn text_of(file: &EpochFile) -> String {
    serde_json::to_string(file).expect("serialisable")
}

/// An instance that owns `owned`, from start until `until` (each partition has so many records) or the power cut.
fn live(lake: &mut Lake, owned: &[i32], nonce: u64, step: i64, until: i64) -> Result<(), PowerCut> {
    let mut positions = Vec::new();
    for number in owned {
        positions.push(recover(lake, &partition(*number))?);
    }
    while positions.iter().any(|position| *position < until) {
        let epoch = lake.next_epoch(Nonce(nonce));
        let next: Vec<i64> = positions.iter().map(|from| (from + step).min(until)).collect();
        let parts = positions.iter().zip(&next).map(|(from, to)| part(*from..*to));
        let file = file(epoch, owned.iter().copied().zip(parts));
        lake.put_file(&file)?;
        lake.commit_telemetry(&file, &positions)?;
        for table in SideTable::ALL {
            let with_rows = file.partitions.iter().filter(|(_, part)| part.rows.count(table) > 0);
            let parts: Vec<_> = with_rows.collect();
            if !parts.is_empty() {
                lake.commit_side(table, epoch, &parts)?;
            }
        }
        positions = next;
    }
    Ok(())
}

fn recover(lake: &mut Lake, partition: &TopicPartition) -> Result<i64, PowerCut> {
    let found = lake.found(partition);
    let text = found.telemetry.and_then(|epoch| lake.files.get(&epoch));
    let file: Option<EpochFile> = text.map(|text| serde_json::from_str(text).expect("readable"));
    let there = file.as_ref().map_or(FoundFile::Absent, FoundFile::Present);
    match resolve(partition, &found, there) {
        Recovery::Fresh => Ok(0),
        Recovery::Resume { epoch, next_offset, roll_forward } => {
            let file = file.expect("resuming needs a file");
            for table in roll_forward {
                lake.commit_side(table, epoch, &[(partition, &file.partitions[partition])])?;
            }
            Ok(next_offset.0)
        }
        Recovery::Corrupt(why) => panic!("{why}"),
    }
}

#[test]
fn killed_at_any_write_and_again_in_the_recovery_no_row_is_missing_or_double() {
    const RECORDS: i64 = 7;
    let mut crashes = 0;
    for first in 0..30 {
        for second in 0..12 {
            let mut lake = Lake { writes_left: first, ..Lake::default() };
            crashes += usize::from(live(&mut lake, &[0, 1, 2], 1, 2, RECORDS).is_err());
            // Then two instances share the partitions, one of them dies early.
            lake.writes_left = second;
            crashes += usize::from(live(&mut lake, &[0], 2, 3, RECORDS).is_err());
            lake.writes_left = second / 2;
            crashes += usize::from(live(&mut lake, &[1, 2], 3, 1, RECORDS).is_err());
            // In the end one has all: their last epochs are in different files.
            lake.writes_left = usize::MAX;
            assert!(live(&mut lake, &[0, 1, 2], 4, 2, RECORDS).is_ok());

            lake.telemetry_rows.sort_unstable();
            let all: Vec<(i32, i64)> = (0..3)
                .flat_map(|number| (0..RECORDS).map(move |offset| (number, offset)))
                .collect();
            assert_eq!(lake.telemetry_rows, all, "cut after {first}, then after {second} writes");
            lake.side_rows.sort_unstable_by_key(|(_, number, offset)| (*number, *offset));
            let expected: Vec<_> = all
                .into_iter()
                .map(|(number, offset)| match offset % 2 {
                    0 => (SideTable::DeadLetters, number, offset),
                    _ => (SideTable::LateReadings, number, offset),
                })
                .collect();
            assert_eq!(lake.side_rows, expected, "cut after {first}, then after {second} writes");
        }
    }
    assert!(crashes > 300, "{crashes}: the cuts must fall into the run");
}
