//! How many letters there are, and the newest of them.

use std::collections::BTreeMap;
use std::io::{self, Write};

use shared_proto::model::EventTime;

use super::runs::{self, Fate, History};
use super::{Letter, LettersError, Selection, as_json, print_table, read_letters};
use crate::cli::Format;
use crate::config;

/// Groups that are counted one by one.
const GROUPS_MAX: usize = 1_000;
/// Bytes of a letter that a list shows.
const PREVIEW_BYTES: usize = 60;
/// Characters of a detail that a list shows.
const DETAIL_CHARACTERS: usize = 80;

#[derive(Clone, Copy)]
struct Group {
    count: u64,
    first: EventTime,
    last: EventTime,
}

/// What is told of a selection.
struct Overview {
    groups: BTreeMap<(String, String), Group>,
    newest: Vec<Letter>,
    /// How many of the newest are told.
    limit: usize,
    total: u64,
    sent_again: u64,
    unfinished: u64,
}

impl Overview {
    fn new(limit: usize) -> Self {
        let (groups, newest) = (BTreeMap::new(), Vec::new());
        Self { groups, newest, limit, total: 0, sent_again: 0, unfinished: 0 }
    }

    fn add(&mut self, mut letter: Letter, history: &History<'_>) {
        self.total += 1;
        match history.fate(&letter) {
            Fate::NotSent => {}
            Fate::Sent => self.sent_again += 1,
            Fate::Unfinished(_) => self.unfinished += 1,
        }
        let mut key = (letter.reason.clone(), letter.source.clone());
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&key) {
            key = ("(other)".to_owned(), "(other)".to_owned());
        }
        let time = letter.timestamp;
        let group = self.groups.entry(key).or_insert(Group { count: 0, first: time, last: time });
        group.count += 1;
        group.first = group.first.min(time);
        group.last = group.last.max(time);
        letter.raw.truncate(PREVIEW_BYTES * 4);
        self.newest.push(letter);
        if self.newest.len() >= self.limit.saturating_mul(2).max(64) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.newest.sort_by_key(|letter| std::cmp::Reverse(letter.timestamp));
        self.newest.truncate(self.limit);
    }
}

/// Prints how many letters there are by reason and source, and the newest `limit` of them with what is known of their replays.
///
/// # Errors
/// As [`read_letters`], what was sent again cannot be read, or nobody takes the output.
pub async fn list(
    settings: &config::Lake,
    selection: &Selection,
    (format, limit): (Format, usize),
    out: &mut impl Write,
) -> Result<(), LettersError> {
    let runs = runs::read(settings).await?;
    let history = History::of(&runs);
    let mut overview = Overview::new(limit);
    read_letters(settings, selection, |letter| overview.add(letter, &history)).await?;
    overview.cut();
    match format {
        Format::Text => print(&overview, &history, out)?,
        Format::Json => {
            for letter in &overview.newest {
                writeln!(out, "{}", as_json(letter, &history, false))?;
            }
        }
    }
    Ok(())
}

fn print(overview: &Overview, history: &History<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut rows = vec![["count", "reason", "source", "first", "last"].map(str::to_owned).to_vec()];
    for ((reason, source), group) in &overview.groups {
        let Group { count, first, last } = group;
        let times = [short(*first), short(*last)];
        let [first, last] = times;
        rows.push(vec![count.to_string(), reason.clone(), source.clone(), first, last]);
    }
    print_table(&rows, out)?;
    let Overview { newest, total, sent_again, unfinished, .. } = overview;
    write!(out, "{total} dead letters")?;
    if *sent_again > 0 {
        write!(out, ", {sent_again} of them sent again")?;
    }
    if *unfinished > 0 {
        write!(out, ", {unfinished} perhaps (by a run that did not end)")?;
    }
    writeln!(out)?;
    if newest.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let headings = ["refused", "letter", "reason", "replay", "bytes", "detail", "begins with"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(newest.iter().map(|letter| {
        vec![
            short(letter.timestamp),
            letter.key.to_string(),
            letter.reason.clone(),
            replay_of(letter, history),
            letter.raw_length.to_string(),
            cut(&letter.detail, DETAIL_CHARACTERS),
            cut(&String::from_utf8_lossy(&letter.raw), PREVIEW_BYTES),
        ]
    }));
    print_table(&rows, out)?;
    if (newest.len() as u64) < *total {
        writeln!(out, "the newest {} of {total}; --limit shows more", newest.len())?;
    }
    Ok(())
}

/// Whether a letter was sent again, and of which letter it is a copy.
fn replay_of(letter: &Letter, history: &History<'_>) -> String {
    let sent = match history.fate(letter) {
        Fate::NotSent => None,
        Fate::Sent => Some("sent".to_owned()),
        Fate::Unfinished(_) => Some("unfinished".to_owned()),
    };
    let origin = history.origin(letter).map(|origin| format!("of {}", origin.key));
    sent.into_iter().chain(origin).collect::<Vec<_>>().join(", ")
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
