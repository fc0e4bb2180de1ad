use std::path::Path;
use std::time::Duration;

use aggregator_core::ProcessingTime;
use aggregator_core::checkpoint::{EpochId, Nonce};
use aggregator_core::rows::{DeadLetterRow, Offset};
use deltalake::writer::DeltaWriter as _;
use shared_proto::model::DeadLetter;

use super::*;
use crate::config::Settings;
use crate::sink::delta::Table;
use crate::sink::rows;

/// One of `temperature/0` that can be sent again, refused so many seconds after 1970.
pub(super) fn letter(offset: i64, second: i64) -> Letter {
    Letter {
        key: format!("temperature/0/{offset}").parse().expect("a name"),
        reason: "json".to_owned(),
        detail: String::new(),
        source: "temperature".to_owned(),
        timestamp: EventTime::from_micros(second * 1_000_000),
        identity: None,
        raw: vec![b'{'],
        raw_length: 1,
        content_type: None,
    }
}

fn settings(folder: &Path) -> Settings {
    let mut settings = Settings::load(None).expect("valid defaults");
    settings.lake.location = folder.to_str().expect("UTF-8").to_owned();
    // Nobody listens there.
    settings.kafka.brokers = "127.0.0.1:1".to_owned();
    settings.kafka.request_timeout = Duration::from_secs(1);
    settings
}

/// A lake in `folder` that holds these letters of `temperature/0`.
async fn lake_of(folder: &Path, letters: &[Letter]) -> Settings {
    let settings = settings(folder);
    let location = Location::open(&settings.lake).expect("writable");
    let (columns, partitions) = rows::side_columns(SideTable::DeadLetters);
    let name = SideTable::DeadLetters.as_str();
    let mut table = Table::open(&location, name, columns, partitions).await.expect("created");
    let from = TopicPartition { topic: "temperature".to_owned(), partition: 0 };
    let of_table: Vec<DeadLetterRow> = letters.iter().map(row_of).collect();
    let of_table: Vec<(&TopicPartition, &DeadLetterRow)> =
        of_table.iter().map(|row| (&from, row)).collect();
    let batch = rows::dead_letter_batch(table.schema(), &of_table).expect("fits");
    let mut writer = table.writer(1 << 20).expect("a writer");
    writer.write(batch).await.expect("encoded");
    let adds = writer.flush().await.expect("written");
    let partitions = [from.clone()];
    table.append(adds, &partitions, EpochId::first(Nonce(1))).await.expect("committed");
    settings
}

fn row_of(letter: &Letter) -> DeadLetterRow {
    let Letter { key, reason, detail, source, timestamp, raw, .. } = letter;
    let row = DeadLetter::new(reason, detail.clone(), source, *timestamp, raw);
    DeadLetterRow::new(Offset(key.offset), ProcessingTime::from_micros(timestamp.micros()), row)
}

/// Letters 1, 2 and 3, and 57. Letter 2 was sent again and stands at 57, 3 may have been sent.
async fn lake_with_a_run_that_did_not_end(folder: &Path) -> Settings {
    let letters = [letter(1, 7), letter(2, 7), letter(3, 7), letter(57, 9)];
    let settings = lake_of(folder, &letters).await;
    let [two, three] = [&letters[1], &letters[2]].map(runs::name_of);
    let run = json!({
        "state": "sending",
        "letters": [two, three],
        "taken": { (two.as_str()): "temperature/0/57" },
    });
    std::fs::create_dir(folder.join("_replays")).expect("made");
    std::fs::write(folder.join("_replays/run.json"), run.to_string()).expect("written");
    settings
}

fn named(keys: &[&str]) -> Selection {
    let keys = keys.iter().map(|key| key.parse().expect("a name")).collect();
    Selection { keys, ..Selection::default() }
}

/// Letters with this reason.
async fn count_of(settings: &Settings, reason: &str) -> Result<usize, LettersError> {
    let selection = Selection { reasons: vec![reason.to_owned()], ..Selection::default() };
    let mut letters = Vec::new();
    read_letters(&settings.lake, &selection, |letter| letters.push(letter)).await?;
    Ok(letters.len())
}

fn text(out: Vec<u8>) -> String {
    String::from_utf8(out).expect("UTF-8")
}

fn at(text: &str) -> EventTime {
    EventTime::parse(text).expect(text)
}

#[test]
fn moments_are_read_as_people_write_them() {
    let now = at("2026-03-02T10:00:00Z");
    let check = |text: &str, expected: &str| {
        assert_eq!(parse_when(text, now).expect(text), at(expected), "{text}");
    };
    check("2026-03-01T08:15:30Z", "2026-03-01T08:15:30Z");
    check("2026-03-01", "2026-03-01T00:00:00Z");
    check("2h", "2026-03-02T08:00:00Z");
    check("1day 2h", "2026-03-01T08:00:00Z");
    let error = parse_when("yesterday", now).expect_err("no moment");
    assert!(error.to_string().contains("such as 2h"), "{error}");
}

#[test]
fn names_of_letters_are_read_as_they_are_printed() {
    let key: Key = "plant/7/temperature/0/12".parse().expect("a name");
    assert_eq!((key.from.topic.as_str(), key.offset), ("plant/7/temperature", 12));
    assert_eq!(key.to_string(), "plant/7/temperature/0/12");
    for text in ["", "temperature", "temperature/0", "temperature/x/1", "temperature/0/-1"] {
        assert!(text.parse::<Key>().is_err(), "{text}");
    }
}

#[test]
fn only_files_of_the_dates_asked_for_are_read() {
    let selection = Selection {
        since: Some(at("2026-03-01T23:00:00Z")),
        until: Some(at("2026-03-03T01:00:00Z")),
        ..Selection::default()
    };
    let taken = ["2026-02-28", "2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"]
        .map(|date| selection.takes_date(date));
    assert_eq!(taken, [false, true, true, true, false]);
    assert!(Selection::default().takes_date(""));
}

#[test]
fn bytes_that_are_no_text_are_dumped() {
    let mut out = Vec::new();
    print_dump(&[0, 65, 255, 32, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 66], &mut out)
        .expect("written");
    let text = String::from_utf8(out).expect("UTF-8");
    let expected = "\n00000000  00 41 ff 20 0a 01 02 03 04 05 06 07 08 09 0a 0b  .A. ............\n\
                    00000010  42                                               B\n\n";
    assert_eq!(text, expected);
}

#[test]
fn moments_between_which_no_letter_can_lie_are_refused() {
    let now = at("2026-03-02T10:00:00Z");
    let check = |since: &str, until: &str, is_refused: bool| {
        let filter = LetterFilter {
            since: Some(since.to_owned()),
            until: Some(until.to_owned()),
            ..LetterFilter::default()
        };
        let result = Selection::new(&filter, &[], now);
        let found = matches!(result, Err(LettersError::Interval { .. }));
        assert_eq!(found, is_refused, "{since} {until}");
    };
    check("2026-03-01", "2026-03-02", false);
    check("2026-03-01", "2026-03-01", true);
    check("2026-03-02", "2026-03-01", true);
    check("1h", "2h", true);
    check("2h", "1h", false);
}

#[tokio::test]
async fn a_list_says_which_letters_were_sent_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_with_a_run_that_did_not_end(folder.path()).await;
    let (all, mut out) = (Selection::default(), Vec::new());
    list(&settings.lake, &all, (Format::Json, 20), &mut out).await.expect("listed");
    let mut found = BTreeSet::new();
    for line in text(out).lines() {
        let letter: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let words = ["letter", "replay", "replay_of"];
        found.insert(words.map(|word| letter[word].as_str().unwrap_or("-").to_owned()));
    }
    let expected = [
        ["temperature/0/1", "-", "-"],
        ["temperature/0/2", "sent", "-"],
        ["temperature/0/3", "unfinished", "-"],
        ["temperature/0/57", "-", "temperature/0/2"],
    ];
    assert_eq!(found, BTreeSet::from(expected.map(|words| words.map(str::to_owned))));

    let mut out = Vec::new();
    list(&settings.lake, &all, (Format::Text, 20), &mut out).await.expect("listed");
    let text = text(out);
    let total = "4 dead letters, 1 of them sent again, 1 perhaps (by a run that did not end)\n";
    for expected in [total, "json    unfinished", "json    of temperature/0/2", "json    sent"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test]
async fn a_letter_that_is_shown_says_whether_it_was_sent_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_with_a_run_that_did_not_end(folder.path()).await;
    for (key, expected) in [
        ("temperature/0/1", "sent again    no\n"),
        ("temperature/0/2", "sent again    yes\n"),
        ("temperature/0/3", "sent again    perhaps, the run _replays/run.json did not end\n"),
        ("temperature/0/57", "replay of     temperature/0/2 (json)\n"),
    ] {
        let mut out = Vec::new();
        show(&settings.lake, key, Format::Text, &mut out).await.expect("shown");
        let text = text(out);
        assert!(text.contains(expected), "{key}: {text}");
    }
}

#[tokio::test]
async fn a_word_that_is_no_reason_is_refused_and_the_reasons_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let foreign = Letter { reason: "made elsewhere".to_owned(), ..letter(2, 7) };
    let settings = lake_of(folder.path(), &[letter(1, 7), foreign]).await;
    assert_eq!(count_of(&settings, "json").await.expect("a reason"), 1);
    assert_eq!(count_of(&settings, "made elsewhere").await.expect("of a letter"), 1);
    assert_eq!(count_of(&settings, "sensors-limit").await.expect("of ours"), 0);
    let error = count_of(&settings, "sensor-limit").await.expect_err("no reason").to_string();
    assert!(error.contains("\"sensor-limit\""), "{error}");
    assert!(error.contains("json, ") && error.contains("made elsewhere"), "{error}");
}

#[tokio::test]
async fn what_becomes_of_each_letter_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_with_a_run_that_did_not_end(folder.path()).await;
    let all = Selection::default();
    let dry = Options { dry_run: true, ..Options::default() };
    let mut out = Vec::new();
    let replayed = replay(&settings, &all, &dry, &mut out).await.expect("told");
    let expected = Replayed { sent: 1, before: 1, refused: 0, unfinished: 1, returned: 1 };
    assert_eq!(replayed, expected);
    assert!(replayed.is_incomplete());
    let told = text(out);
    for expected in [
        "would send temperature/0/1 (json)",
        "1 may have been sent by the run _replays/run.json that did not end",
        "\n  temperature/0/3\n",
        "\n  temperature/0/57, sent as temperature/0/2 (json)\n",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }

    let (mut out, again) = (Vec::new(), Options { again: true, ..dry.clone() });
    let replayed = replay(&settings, &all, &again, &mut out).await.expect("told");
    // Of the letter and its copy only the copy.
    let expected = Replayed { sent: 3, before: 1, ..Replayed::default() };
    assert_eq!(replayed, expected, "{}", text(out));

    let (mut out, unfinished) = (Vec::new(), Options { unfinished: true, ..dry });
    let replayed = replay(&settings, &all, &unfinished, &mut out).await.expect("told");
    assert_eq!(replayed, Replayed { sent: 1, ..Replayed::default() });
    assert!(text(out).starts_with("would send temperature/0/3 "), "only that");
}

/// Names that were not there were passed over in silence.
#[tokio::test]
async fn if_one_of_the_names_is_not_there_nothing_is_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_of(folder.path(), &[letter(1, 7)]).await;
    let options = Options { yes: true, ..Options::default() };
    let selection = named(&["temperature/0/8", "temperature/0/1", "temperature/0/9"]);
    let error = replay(&settings, &selection, &options, &mut io::sink()).await.expect_err("two");
    let error = error.to_string();
    let expected = "no dead letter temperature/0/8, temperature/0/9: nothing was sent";
    assert!(error.starts_with(expected), "{error}");
    let selection = Selection { reasons: vec!["name".to_owned()], ..named(&["temperature/0/1"]) };
    let error = replay(&settings, &selection, &options, &mut io::sink()).await.expect_err("json");
    assert!(error.to_string().contains("temperature/0/1 among those that --reason"), "{error}");
}

#[tokio::test]
async fn a_folder_that_is_no_lake_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = settings(folder.path());
    let options = Options { yes: true, ..Options::default() };
    let all = Selection::default();
    let error = replay(&settings, &all, &options, &mut io::sink()).await.expect_err("no lake");
    assert!(matches!(error, ReplayError::Letters(LettersError::NoTable { .. })), "{error}");
    let entries = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(entries, 0);
}

/// Letters that Kafka had not taken were taken for sent.
#[tokio::test]
async fn a_broker_that_is_down_or_a_wrong_topic_leaves_no_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = lake_of(folder.path(), &[letter(1, 7)]).await;
    let all = Selection::default();
    let options = Options { yes: true, ..Options::default() };
    let error = replay(&settings, &all, &options, &mut io::sink()).await.expect_err("nobody");
    assert!(matches!(error, ReplayError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("nothing was sent"), "{error}");
    let options = Options { topic: Some(String::new()), ..options };
    let error = replay(&settings, &all, &options, &mut io::sink()).await.expect_err("no name");
    assert!(matches!(error, ReplayError::TopicName { .. }), "{error}");
    assert!(!folder.path().join("_replays").exists());
}
