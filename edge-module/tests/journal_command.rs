//! `edge-module journal inspect | verify | export | repair` as an operator types it, on a journal that is whole and on one that
//! is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use edge_module::journal::event_of_now;
use edge_module::store::{Entry, Journal as _, JournalSettings, Lane, SegmentedJournal};
use serde_json::Value;
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::{
    DeadLetter, EventTime, MachineEventDetails, MachineEventType, MachineId, MetricType, Reading,
    SensorId, Sequence,
};

const STARTED: EventTime = EventTime::from_micros(1_800_000_000_000_000);
const GENERATION: &str = "00001800000000000000";
/// Four closed segments of readings and one that is not full.
const READINGS: u64 = 5_000;
const DELIVERED_EVENTS: u64 = 1;
/// What the journal holds beside the readings.
const EVENTS: u64 = 2;
const DEAD_LETTERS: u64 = 1;

struct Gateway {
    folder: tempfile::TempDir,
}

impl Gateway {
    /// A journal with all kinds of records, as a module leaves it.
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().expect("a folder") };
        let settings = format!(
            "[device]\nid = \"gw-7\"\ndata-dir = {:?}\n",
            this.data_dir().display().to_string()
        );
        fs::write(this.folder.path().join("edge.toml"), settings).expect("written");
        let mut journal = this.open();
        journal.append(&events_and_letter()).expect("appended");
        for group in readings().chunks(100) {
            journal.append(group).expect("appended");
        }
        journal.trim(Lane::Events, Sequence(DELIVERED_EVENTS)).expect("trimmed");
        journal.save().expect("saved");
        this
    }

    fn open(&self) -> SegmentedJournal {
        let limits = JournalSettings {
            segment_bytes: 64 << 10,
            bytes_max: 1 << 30,
            free_bytes_min: 0,
            cache_bytes: 1 << 20,
        };
        SegmentedJournal::open(&self.data_dir(), limits, STARTED).expect("the journal opens")
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Runs the command; gives exit code and standard output, and prints what it said.
    fn journal(&self, arguments: &[&str]) -> (i32, String) {
        let file = self.folder.path().join("edge.toml");
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_edge-module"))
            .arg("journal")
            .args(arguments)
            .arg("--config")
            .arg(file)
            .output()
            .expect("the program starts");
        eprintln!("journal {arguments:?}: {status}\n{}", String::from_utf8_lossy(&stderr));
        let stdout = String::from_utf8(stdout).expect("text");
        (status.code().expect("no signal"), stdout)
    }

    /// Exported sequences of each lane, from the lines of a file or of the standard output.
    fn exported(lines: &str) -> BTreeMap<String, BTreeSet<u64>> {
        let mut sequences: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let lane = line["lane"].as_str().expect("a lane").to_owned();
            let sequence = line["record"]["sequence"].as_u64().expect("a sequence");
            assert!(sequences.entry(lane).or_default().insert(sequence), "{line} twice");
        }
        sequences
    }

    /// Databases of the closed segments of readings, oldest first.
    fn databases(&self) -> Vec<PathBuf> {
        let lane = self.data_dir().join("journal").join(GENERATION).join("readings");
        let mut segments: Vec<PathBuf> =
            fs::read_dir(lane).expect("listed").map(|entry| entry.expect("entry").path()).collect();
        segments.sort();
        segments.into_iter().map(|segment| segment.join("db")).filter(|db| db.exists()).collect()
    }

    /// Every file below the data folder with its bytes.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn add(folder: &Path, content: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).expect("listed") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    add(&path, content);
                } else {
                    let bytes = fs::read(&path).expect("read");
                    content.insert(path, bytes);
                }
            }
        }
        let mut content = BTreeMap::new();
        add(&self.data_dir(), &mut content);
        content
    }
}

fn events_and_letter() -> Vec<Entry> {
    let machine = MachineId::new("press-1").expect("valid");
    let event = |event_type| {
        let event = event_of_now(machine.clone(), event_type, MachineEventDetails::default());
        (Lane::Events, codec::encode_machine_event(&event, Encoding::Protobuf))
    };
    let letter = DeadLetter::new("json", "broken".to_owned(), "plant/x/readings", STARTED, b"{");
    vec![
        event(MachineEventType::Started),
        event(MachineEventType::Trip),
        (Lane::DeadLetters, codec::encode_dead_letter(&letter, Encoding::Protobuf)),
    ]
}

fn readings() -> Vec<Entry> {
    let sensor = SensorId::new("press-1/oil").expect("valid");
    let metric = MetricType::new("temperature").expect("valid");
    (0..READINGS)
        .map(|number| {
            let at = STARTED.saturating_add_micros(number as i64 * 1_000);
            let reading = Reading::new(sensor.clone(), at, metric.clone(), number as f64);
            (Lane::Readings, codec::encode_reading(&reading, Encoding::Protobuf))
        })
        .collect()
}

#[test]
fn a_whole_journal_is_shown_verified_and_exported_and_nothing_changes() {
    let gateway = Gateway::new();
    assert!(gateway.databases().len() > 3, "several segments");
    let before = gateway.content();
    let (code, shown) = gateway.journal(&["inspect"]);
    assert_eq!(code, 0, "{shown}");
    let next = EVENTS + DEAD_LETTERS + READINGS + 1;
    assert!(shown.contains(&format!("next sequence {next}")), "{shown}");
    for lane in ["events", "readings", "waveforms", "dead-letters"] {
        assert!(shown.lines().any(|line| line.starts_with(lane)), "{lane} in {shown}");
    }
    let (code, verdict) = gateway.journal(&["verify"]);
    assert_eq!(code, 0, "{verdict}");
    assert!(verdict.contains(&format!("readings: {READINGS} records wait")), "{verdict}");
    assert!(verdict.ends_with("whole\n"), "{verdict}");

    let (code, lines) = gateway.journal(&["export"]);
    assert_eq!(code, 0);
    let exported = Gateway::exported(&lines);
    assert_eq!(exported["readings"].len() as u64, READINGS);
    assert_eq!(exported["events"].len() as u64, EVENTS - DELIVERED_EVENTS, "what waits");
    assert_eq!(exported["dead-letters"].len() as u64, DEAD_LETTERS);
    let first: Value = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .find(|line| line["lane"] == "readings")
        .expect("a reading");
    assert_eq!(first["record"]["sensor_id"], "press-1/oil");
    assert_eq!(first["record"]["device_id"], "gw-7");
    assert_eq!(first["record"]["value"], 0.0);

    let file = gateway.folder.path().join("all.jsonl");
    let file = file.to_str().expect("text");
    let (code, nothing) = gateway.journal(&["export", "--all", "--output", file]);
    assert_eq!((code, nothing.as_str()), (0, ""));
    let all = Gateway::exported(&fs::read_to_string(file).expect("read"));
    assert_eq!(all["events"].len() as u64, EVENTS, "also what was delivered and is still there");
    let (code, _) = gateway.journal(&["export", "--output", file]);
    assert_eq!(code, 1, "a file that is there is not written over");
    assert!(gateway.content() == before, "looking changes nothing");
}

/// An export on a server where the disk behind standard error is full.
#[test]
fn with_nobody_to_talk_to_an_export_is_whole_all_the_same() {
    let gateway = Gateway::new();
    let full = fs::File::options().write(true).open("/dev/full").expect("there on Linux");
    let output = Command::new(env!("CARGO_BIN_EXE_edge-module"))
        .args(["journal", "export", "--config"])
        .arg(gateway.folder.path().join("edge.toml"))
        .stderr(full)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0));
    let lines = String::from_utf8(output.stdout).expect("text");
    assert_eq!(Gateway::exported(&lines)["readings"].len() as u64, READINGS);
}

#[test]
fn a_damaged_journal_is_told_from_a_whole_one_repaired_and_its_loss_reported_once() {
    let gateway = Gateway::new();
    let databases = gateway.databases();
    // The middle of one segment, and the whole of another.
    let mut bytes = fs::read(&databases[1]).expect("read");
    let (from, to) = (bytes.len() / 4, bytes.len() / 2);
    bytes[from..to].fill(0x5a);
    fs::write(&databases[1], &bytes).expect("written");
    fs::write(&databases[2], b"").expect("written");
    let damaged = gateway.content();

    let (code, verdict) = gateway.journal(&["verify"]);
    assert_eq!(code, 1, "{verdict}");
    assert!(verdict.contains("damaged: `journal repair` saves what can be read"), "{verdict}");
    let (code, lines) = gateway.journal(&["export"]);
    assert_eq!(code, 1, "something is missing");
    let readable = Gateway::exported(&lines)["readings"].clone();
    assert!(readable.len() as u64 > READINGS / 3, "{} of {READINGS}", readable.len());
    assert!(gateway.content() == damaged, "looking changes nothing");

    let (code, repaired) = gateway.journal(&["repair"]);
    assert_eq!(code, 1, "records are lost: {repaired}");
    assert!(repaired.contains("lost: lane readings"), "{repaired}");
    assert!(repaired.contains("reported by the next run"), "{repaired}");
    assert!(repaired.contains("quarantine: "), "{repaired}");
    let (code, verdict) = gateway.journal(&["verify"]);
    assert_eq!(code, 0, "what is lost is on the books, what is left is whole: {verdict}");
    assert!(verdict.contains("not reported yet"), "{verdict}");

    let (code, lines) = gateway.journal(&["export"]);
    assert_eq!(code, 0);
    let saved = Gateway::exported(&lines)["readings"].clone();
    assert!(saved.is_superset(&readable), "repair loses nothing that could be read");
    // What is on the books and what is there are everything, and have nothing in common.
    let journal = gateway.open();
    let mut all = saved.clone();
    for loss in journal.losses() {
        assert_eq!(loss.lane, Lane::Readings, "{loss:?}");
        let range = loss.first.0..=loss.last.0;
        // Of an emptied file only the range is known.
        assert!(loss.records.is_none_or(|records| records == range.clone().count() as u64));
        assert!(saved.range(range.clone()).next().is_none(), "{loss:?} is there");
        all.extend(range);
    }
    let first = EVENTS + DEAD_LETTERS + 1;
    assert_eq!(all, (first..first + READINGS).collect());
}

#[test]
fn the_commands_say_what_stands_in_their_way() {
    let gateway = Gateway::new();
    let journal = gateway.open();
    let (code, _) = gateway.journal(&["repair"]);
    assert_eq!(code, 1, "a journal that somebody writes to");
    drop(journal);
    let lock = fs::File::create(gateway.data_dir().join("lock")).expect("created");
    lock.lock().expect("free");
    let (code, _) = gateway.journal(&["inspect"]);
    assert_eq!(code, 73, "the module runs");
    drop(lock);
    fs::remove_dir_all(gateway.data_dir()).expect("removed");
    let (code, _) = gateway.journal(&["inspect"]);
    assert_eq!(code, 73, "no journal");
    assert!(!gateway.data_dir().exists(), "and none is made");
}
