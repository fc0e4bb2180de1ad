//! `cloud-aggregator dead-letters`: what was refused, to be looked at and sent again.
//!
//! A letter's name is `<topic>/<partition>/<offset>` of the Kafka record that was refused, or that brought it from an edge
//! module. Only files of the dates asked for are read, a row group at a time.

mod list;
mod replay;
mod runs;
mod sending;
mod table;

use std::collections::BTreeSet;
use std::io::{self, Write};

use aggregator_core::accounting::reason;
use aggregator_core::checkpoint::{SideTable, TopicPartition};
use deltalake::arrow::array::Array as _;
use deltalake::arrow::record_batch::RecordBatch;
use serde_json::json;
use shared_proto::model::EventTime;

pub use list::list;
pub use replay::{Options, ReplayError, Replayed, replay};
use runs::{Fate, History};
pub use table::print_table;

use crate::cli::{Format, LetterFilter};
use crate::config;
use crate::lake_reader::{Row, TableReader, long_at, text_at};
use crate::sink::delta::{LakeError, Location};

/// Reasons that programs of this project give. Letters of other programs may have others.
const REASONS: [&str; 30] = [
    // Records that cannot be decoded.
    "base64",
    "content-type",
    "empty",
    "hub-array",
    "hub-topic",
    "identity",
    "json",
    "missing-field",
    "name",
    "not-finite",
    "protobuf",
    "timestamp",
    "too-large",
    "too-many",
    "unknown-value",
    "waveform",
    // Readings beyond a limit.
    reason::MACHINES_LIMIT,
    reason::METRIC_TYPES_LIMIT,
    reason::SENSORS_LIMIT,
    reason::TIMESTAMP_IN_FUTURE,
    reason::TIMESTAMP_TOO_OLD,
    reason::WINDOWS_LIMIT,
    // Alerts.
    "alert-overflow",
    "alert-undelivered",
    // Edge modules.
    "broker-refused",
    "journal-decode",
    "sample-rate",
    "too-many-sensors",
    "unknown-topic",
    "window-shape",
];
/// Reasons of other programs that are named where a reason is not known.
const FOREIGN_REASONS_MAX: usize = 20;
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
    /// Nothing lies between two moments.
    #[error(
        "no letter can lie between --since {since} and --until {until}: --until is to be later"
    )]
    Interval {
        /// The first.
        since: EventTime,
        /// The second.
        until: EventTime,
    },
    /// A word that is no reason.
    #[error("no dead letter has the reason {reason:?}: there are {known}")]
    Reason {
        /// The word.
        reason: String,
        /// Reasons that there are.
        known: String,
    },
    /// A text that is no name of a letter.
    #[error("{text:?} is no name of a dead letter: write <topic>/<partition>/<offset>")]
    Key {
        /// The text.
        text: String,
    },
    /// What was sent again cannot be read or written down, or another run sends the same.
    #[error("{name}: {text}")]
    Book {
        /// The file.
        name: String,
        /// What is wrong with it.
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
    /// Where it came from: an MQTT or Kafka topic, or a device of a hub.
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
    /// A moment or a name cannot be read, or no moment is asked for.
    pub fn new(
        filter: &LetterFilter,
        keys: &[String],
        now: EventTime,
    ) -> Result<Self, LettersError> {
        let when =
            |text: &Option<String>| text.as_deref().map(|text| parse_when(text, now)).transpose();
        let (since, until) = (when(&filter.since)?, when(&filter.until)?);
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(LettersError::Interval { since, until });
        }
        Ok(Self {
            reasons: filter.reason.clone(),
            source: filter.source.clone(),
            since,
            until,
            keys: keys.iter().map(|key| key.parse()).collect::<Result<_, _>>()?,
        })
    }

    /// Whether letters are selected by their names.
    fn is_named(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whether something beside names is asked for.
    fn is_narrowed(&self) -> bool {
        let Self { reasons, source, since, until, keys: _ } = self;
        !reasons.is_empty() || source.is_some() || since.is_some() || until.is_some()
    }

    /// Names that none of the letters found has.
    fn missing(&self, found: &BTreeSet<Key>) -> Vec<&Key> {
        self.keys.iter().filter(|key| !found.contains(*key)).collect()
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
    moment(text, now).ok_or_else(|| LettersError::When { text: text.to_owned() })
}

/// A moment, a day, or how long ago, as commands are given it.
pub(crate) fn moment(text: &str, now: EventTime) -> Option<EventTime> {
    let day = || EventTime::parse(&format!("{text}T00:00:00Z"));
    let ago = || {
        let ago = humantime_serde::re::humantime::parse_duration(text).ok()?;
        Some(now.saturating_sub_micros(i64::try_from(ago.as_micros()).unwrap_or(i64::MAX)))
    };
    EventTime::parse(text).or_else(day).or_else(ago)
}

/// Gives every letter of the selection to `each`, oldest date first.
///
/// # Errors
/// There is no table, the storage refuses, or a reason is asked for that neither a program of ours nor any letter has.
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
    check_reasons(&table, selection).await?;
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

/// A word of which we do not know may be another program's: only the letters tell.
async fn check_reasons(table: &TableReader, selection: &Selection) -> Result<(), LettersError> {
    let asked = selection.reasons.iter().map(String::as_str);
    let mut missing: BTreeSet<&str> = asked.filter(|word| !REASONS.contains(word)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut foreign = BTreeSet::<String>::new();
    for file in &table.files()? {
        table
            .read(file, &["reason"], |batch| {
                let reasons = Row(batch).texts("reason");
                for word in (0..batch.num_rows()).filter_map(|row| text_at(reasons, row)) {
                    missing.remove(word);
                    let is_new = !REASONS.contains(&word) && !foreign.contains(word);
                    if is_new && foreign.len() < FOREIGN_REASONS_MAX {
                        foreign.insert(word.to_owned());
                    }
                }
                Ok(())
            })
            .await?;
    }
    let Some(reason) = missing.first() else { return Ok(()) };
    let known: BTreeSet<&str> =
        REASONS.into_iter().chain(foreign.iter().map(String::as_str)).collect();
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    Err(LettersError::Reason { reason: (*reason).to_owned(), known })
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

fn as_json(letter: &Letter, history: &History<'_>, with_raw: bool) -> serde_json::Value {
    let replay = match history.fate(letter) {
        Fate::NotSent => None,
        Fate::Sent => Some("sent"),
        Fate::Unfinished(_) => Some("unfinished"),
    };
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
        "replay": replay,
        "replay_of": history.origin(letter).map(|origin| origin.key),
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
/// As [`read_letters`], there is none, what was sent again cannot be read, or nobody takes the output.
pub async fn show(
    settings: &config::Lake,
    key: &str,
    format: Format,
    out: &mut impl Write,
) -> Result<(), LettersError> {
    let selection = Selection { keys: vec![key.parse()?], ..Selection::default() };
    let runs = runs::read(settings).await?;
    let history = History::of(&runs);
    let mut letters = Vec::new();
    read_letters(settings, &selection, |letter| letters.push(letter)).await?;
    if letters.is_empty() {
        return Err(LettersError::NotFound { key: key.to_owned() });
    }
    for letter in &letters {
        match format {
            Format::Json => writeln!(out, "{}", as_json(letter, &history, true))?,
            Format::Text => print_letter(letter, &history, out)?,
        }
    }
    Ok(())
}

fn print_letter(letter: &Letter, history: &History<'_>, out: &mut impl Write) -> io::Result<()> {
    let unknown = || "(not known)".to_owned();
    let identity = letter.identity.as_ref().map(|(device, generation, sequence)| {
        format!("device {device}, generation {generation}, sequence {sequence}")
    });
    let sent_again = match history.fate(letter) {
        Fate::NotSent => "no".to_owned(),
        Fate::Sent => "yes".to_owned(),
        Fate::Unfinished(run) => format!("perhaps, the run {} did not end", runs::path_of(run)),
    };
    for (name, value) in [
        ("letter", letter.key.to_string()),
        ("refused", letter.timestamp.to_string()),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("source", letter.source.clone()),
        ("content type", letter.content_type.clone().unwrap_or_else(unknown)),
        ("identity", identity.unwrap_or_else(unknown)),
        ("length", format!("{} bytes", letter.raw_length)),
        ("sent again", sent_again),
    ] {
        writeln!(out, "{name:<13} {value}")?;
    }
    if let Some(origin) = history.origin(letter) {
        writeln!(out, "{:<13} {} ({})", "replay of", origin.key, origin.reason)?;
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
mod tests;
