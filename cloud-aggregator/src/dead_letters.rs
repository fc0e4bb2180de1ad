//! `cloud-aggregator dead-letters`: what was refused, to be looked at and sent again.
//!
//! A letter's name is `<topic>/<partition>/<offset>` of the Kafka record that was refused, or that brought it from an edge
//! module. Only files of the dates asked for are read, a row group at a time.

mod replay;
mod table;

use std::collections::BTreeMap;
use std::io::{self, Write};

use aggregator_core::checkpoint::{SideTable, TopicPartition};
use deltalake::arrow::array::Array as _;
use deltalake::arrow::record_batch::RecordBatch;
use serde_json::json;
use shared_proto::model::EventTime;

pub use replay::{Options, ReplayError, Replayed, replay};
pub use table::print_table;

use crate::cli::{Format, LetterFilter};
use crate::config;
use crate::lake_reader::{Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};

/// Groups that are counted one by one.
const GROUPS_MAX: usize = 1_000;
/// Bytes of a letter that a list shows.
const PREVIEW_BYTES: usize = 60;
/// Bytes in a line of a dump.
const DUMP_BYTES: usize = 16;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Why letters cannot be read or shown.
#[derive(Debug, thiserror::Error)]
pub enum LettersError {
    /// The storage refuses.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// There is no table.
    #[error("{location} has no table dead_letters: check lake.location")]
    NoTable {
        /// Where it was looked for.
        location: String,
    },
    /// No letter has this name.
    #[error("no dead letter {key}: `dead-letters list` names them")]
    NotFound {
        /// The name.
        key: String,
    },
    /// A text that is no moment.
    #[error(
        "{text:?} is no moment: write 2026-03-01T08:15:30Z, 2026-03-01, or how long ago, such as 2h"
    )]
    When {
        /// The text.
        text: String,
    },
    /// A text that is no name of a letter.
    #[error("{text:?} is no name of a dead letter: write <topic>/<partition>/<offset>")]
    Key {
        /// The text.
        text: String,
    },
    /// Nobody takes the output.
    #[error("the letters cannot be written")]
    Output(#[from] io::Error),
}

/// Name of a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Topic and partition of the Kafka record.
    pub from: TopicPartition,
    /// Its offset.
    pub offset: i64,
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.from, self.offset)
    }
}

impl std::str::FromStr for Key {
    type Err = LettersError;

    fn from_str(text: &str) -> Result<Self, LettersError> {
        let parts = text.rsplit_once('/').and_then(|(from, offset)| {
            let from = TopicPartition::try_from(from.to_owned()).ok()?;
            Some(Self { from, offset: offset.parse().ok().filter(|offset| *offset >= 0)? })
        });
        parts.ok_or_else(|| LettersError::Key { text: text.to_owned() })
    }
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its name.
    pub key: Key,
    /// Why it was refused, in a word.
    pub reason: String,
    /// Why, in a sentence.
    pub detail: String,
    /// Where it came from: an MQTT or Kafka topic.
    pub source: String,
    /// When it was refused.
    pub timestamp: EventTime,
    /// Device, generation and sequence, if they are known.
    pub identity: Option<(String, u64, u64)>,
    /// The first bytes.
    pub raw: Vec<u8>,
    /// Length before the cut.
    pub raw_length: u64,
    /// What the bytes are.
    pub content_type: Option<String>,
}

impl Letter {
    /// Whether some of its bytes are not kept.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.raw_length > self.raw.len() as u64
    }
}

/// Which letters.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    reasons: Vec<String>,
    source: Option<String>,
    since: Option<EventTime>,
    until: Option<EventTime>,
    keys: Vec<Key>,
}

impl Selection {
    /// What the command line asks for.
    ///
    /// # Errors
    /// A moment or a name cannot be read.
    pub fn new(
        filter: &LetterFilter,
        keys: &[String],
        now: EventTime,
    ) -> Result<Self, LettersError> {
        let when =
            |text: &Option<String>| text.as_deref().map(|text| parse_when(text, now)).transpose();
        Ok(Self {
            reasons: filter.reason.clone(),
            source: filter.source.clone(),
            since: when(&filter.since)?,
            until: when(&filter.until)?,
            keys: keys.iter().map(|key| key.parse()).collect::<Result<_, _>>()?,
        })
    }

    /// Whether a file of this date may hold one.
    fn takes_date(&self, date: &str) -> bool {
        let day = |time: EventTime| {
            let start = time.micros().div_euclid(MICROS_PER_DAY) * MICROS_PER_DAY;
            EventTime::from_micros(start).to_string()[..10].to_owned()
        };
        self.since.is_none_or(|since| date >= day(since).as_str())
            && self.until.is_none_or(|until| date <= day(until).as_str())
    }

    fn takes(&self, letter: &Letter) -> bool {
        (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
            && self.source.as_ref().is_none_or(|source| *source == letter.source)
            && self.since.is_none_or(|since| letter.timestamp >= since)
            && self.until.is_none_or(|until| letter.timestamp < until)
            && (self.keys.is_empty() || self.keys.contains(&letter.key))
    }
}

fn parse_when(text: &str, now: EventTime) -> Result<EventTime, LettersError> {
    let day = || EventTime::parse(&format!("{text}T00:00:00Z"));
    let ago = || {
        let ago = humantime_serde::re::humantime::parse_duration(text).ok()?;
        Some(now.saturating_sub_micros(i64::try_from(ago.as_micros()).unwrap_or(i64::MAX)))
    };
    EventTime::parse(text)
        .or_else(day)
        .or_else(ago)
        .ok_or_else(|| LettersError::When { text: text.to_owned() })
}

/// Gives every letter of the selection to `each`, oldest date first.
///
/// # Errors
/// There is no table, the storage refuses, or `each` fails.
pub async fn read_letters(
    settings: &config::Lake,
    selection: &Selection,
    mut each: impl FnMut(Letter),
) -> Result<(), LettersError> {
    let location = Location::existing(settings)?;
    let name = SideTable::DeadLetters.as_str();
    let table = TableReader::find(&location, name).await?;
    let no_table = || LettersError::NoTable { location: settings.location.clone() };
    let mut table = table.ok_or_else(no_table)?;
    table.load().await?;
    let mut files = table.files()?;
    files.retain(|file| selection.takes_date(file.date()));
    files.sort_by(|a, b| (a.date(), a.modified_ms).cmp(&(b.date(), b.modified_ms)));
    let columns = [
        "reason",
        "detail",
        "source",
        "timestamp",
        "device_id",
        "generation",
        "sequence",
        "raw",
        "raw_length",
        "content_type",
        "source_topic",
        "source_partition",
        "source_offset",
    ];
    for file in &files {
        table
            .read(file, &columns, |batch| {
                let letters = (0..batch.num_rows()).filter_map(|row| letter_at(batch, row));
                letters.filter(|letter| selection.takes(letter)).for_each(&mut each);
                Ok(())
            })
            .await?;
    }
    Ok(())
}

fn letter_at(batch: &RecordBatch, at: usize) -> Option<Letter> {
    let row = Row(batch);
    let text = |name| text_at(row.texts(name), at).unwrap_or_default().to_owned();
    let long = |name| long_at(row.longs(name), at);
    let device = text_at(row.texts("device_id"), at).map(str::to_owned);
    let identity = device.zip(long("generation")).zip(long("sequence"));
    Some(Letter {
        key: Key {
            from: TopicPartition {
                topic: text("source_topic"),
                partition: row.integers("source_partition")?.value(at),
            },
            offset: long("source_offset")?,
        },
        reason: text("reason"),
        detail: text("detail"),
        source: text("source"),
        timestamp: EventTime::from_micros(row.times("timestamp")?.value(at)),
        identity: identity.map(|((device, generation), sequence)| {
            (device, generation.cast_unsigned(), sequence.cast_unsigned())
        }),
        raw: row.bytes("raw").filter(|raw| raw.is_valid(at)).map(|raw| raw.value(at).to_vec())?,
        raw_length: long("raw_length")?.cast_unsigned(),
        content_type: text_at(row.texts("content_type"), at).map(str::to_owned),
    })
}

#[derive(Clone, Copy)]
struct Group {
    count: u64,
    first: EventTime,
    last: EventTime,
}

/// Prints how many letters there are by reason and source, and the newest `limit` of them.
///
/// # Errors
/// As [`read_letters`], or nobody takes the output.
pub async fn list(
    settings: &config::Lake,
    selection: &Selection,
    (format, limit): (Format, usize),
    out: &mut impl Write,
) -> Result<(), LettersError> {
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    let (mut newest, mut total) = (Vec::<Letter>::new(), 0_u64);
    let is_newer = |a: &Letter, b: &Letter| b.timestamp.cmp(&a.timestamp);
    read_letters(settings, selection, |mut letter| {
        total += 1;
        let mut key = (letter.reason.clone(), letter.source.clone());
        if groups.len() >= GROUPS_MAX && !groups.contains_key(&key) {
            key = ("(other)".to_owned(), "(other)".to_owned());
        }
        let time = letter.timestamp;
        let group = groups.entry(key).or_insert(Group { count: 0, first: time, last: time });
        group.count += 1;
        group.first = group.first.min(time);
        group.last = group.last.max(time);
        letter.raw.truncate(PREVIEW_BYTES * 4);
        newest.push(letter);
        if newest.len() >= limit.saturating_mul(2).max(64) {
            newest.sort_by(is_newer);
            newest.truncate(limit);
        }
    })
    .await?;
    newest.sort_by(is_newer);
    newest.truncate(limit);
    match format {
        Format::Text => print_list(total, &groups, &newest, out)?,
        Format::Json => {
            for letter in &newest {
                writeln!(out, "{}", as_json(letter, false))?;
            }
        }
    }
    Ok(())
}

fn print_list(
    total: u64,
    groups: &BTreeMap<(String, String), Group>,
    newest: &[Letter],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut rows = vec![["count", "reason", "source", "first", "last"].map(str::to_owned).to_vec()];
    for ((reason, source), group) in groups {
        let Group { count, first, last } = group;
        let times = [short(*first), short(*last)];
        let [first, last] = times;
        rows.push(vec![count.to_string(), reason.clone(), source.clone(), first, last]);
    }
    print_table(&rows, out)?;
    writeln!(out, "{total} dead letters")?;
    if newest.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let headings = ["refused", "letter", "reason", "bytes", "detail", "begins with"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(newest.iter().map(|letter| {
        vec![
            short(letter.timestamp),
            letter.key.to_string(),
            letter.reason.clone(),
            letter.raw_length.to_string(),
            cut(&letter.detail, 80),
            cut(&String::from_utf8_lossy(&letter.raw), PREVIEW_BYTES),
        ]
    }));
    print_table(&rows, out)?;
    if (newest.len() as u64) < total {
        writeln!(out, "the newest {} of {total}; --limit shows more", newest.len())?;
    }
    Ok(())
}

/// To the second: a list is read by people.
fn short(time: EventTime) -> String {
    let text = time.to_string();
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

fn cut(text: &str, characters: usize) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{b7}' } else { c })
        .take(characters + 1)
        .collect();
    if plain.chars().count() <= characters {
        return plain;
    }
    plain.chars().take(characters - 1).chain(['\u{2026}']).collect()
}

fn as_json(letter: &Letter, with_raw: bool) -> serde_json::Value {
    let mut object = json!({
        "letter": letter.key.to_string(),
        "reason": letter.reason,
        "detail": letter.detail,
        "source": letter.source,
        "timestamp": letter.timestamp.to_string(),
        "content_type": letter.content_type,
        "device_id": letter.identity.as_ref().map(|(device, ..)| device),
        "generation": letter.identity.as_ref().map(|(_, generation, _)| generation),
        "sequence": letter.identity.as_ref().map(|(.., sequence)| sequence),
        "raw_length": letter.raw_length,
    });
    if with_raw {
        object["is_cut"] = letter.is_cut().into();
        object["raw_text"] = std::str::from_utf8(&letter.raw).ok().into();
        let hex: String = letter.raw.iter().map(|byte| format!("{byte:02x}")).collect();
        object["raw_hex"] = hex.into();
    }
    object
}

/// Prints everything about the letters of one name: one, unless an alert that was given up shares it.
///
/// # Errors
/// As [`read_letters`], there is none, or nobody takes the output.
pub async fn show(
    settings: &config::Lake,
    key: &str,
    format: Format,
    out: &mut impl Write,
) -> Result<(), LettersError> {
    let selection = Selection { keys: vec![key.parse()?], ..Selection::default() };
    let mut letters = Vec::new();
    read_letters(settings, &selection, |letter| letters.push(letter)).await?;
    if letters.is_empty() {
        return Err(LettersError::NotFound { key: key.to_owned() });
    }
    for letter in &letters {
        match format {
            Format::Json => writeln!(out, "{}", as_json(letter, true))?,
            Format::Text => print_letter(letter, out)?,
        }
    }
    Ok(())
}

fn print_letter(letter: &Letter, out: &mut impl Write) -> io::Result<()> {
    let unknown = || "(not known)".to_owned();
    let identity = letter.identity.as_ref().map(|(device, generation, sequence)| {
        format!("device {device}, generation {generation}, sequence {sequence}")
    });
    for (name, value) in [
        ("letter", letter.key.to_string()),
        ("refused", letter.timestamp.to_string()),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("source", letter.source.clone()),
        ("content type", letter.content_type.clone().unwrap_or_else(unknown)),
        ("identity", identity.unwrap_or_else(unknown)),
        ("length", format!("{} bytes", letter.raw_length)),
    ] {
        writeln!(out, "{name:<13} {value}")?;
    }
    if letter.is_cut() {
        writeln!(out, "{:<13} the first {} bytes", "kept", letter.raw.len())?;
    }
    match std::str::from_utf8(&letter.raw) {
        Ok(text)
            if text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t' || c == '\r') =>
        {
            writeln!(out, "\n{text}\n")
        }
        Ok(_) | Err(_) => print_dump(&letter.raw, out),
    }
}

fn print_dump(raw: &[u8], out: &mut impl Write) -> io::Result<()> {
    writeln!(out)?;
    for (line, bytes) in raw.chunks(DUMP_BYTES).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = bytes
            .iter()
            .map(
                |byte| {
                    if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' }
                },
            )
            .collect();
        writeln!(out, "{:08x}  {:<47}  {text}", line * DUMP_BYTES, hex.join(" "))?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
