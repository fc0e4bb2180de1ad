//! Sends dead letters back to Kafka as they came.
//!
//! What was sent is written down (`runs` says how): before anything is sent, and again when all is answered. What Kafka has is not
//! sent again unless that is asked for; of what it may have, because a run did not end, it is told. Before a run is
//! written down Kafka is asked for its topics and for the partitions in question, so that a wrong topic or a broker that is down
//! leaves nothing.
//!
//! A letter goes to the partition that it came from, with the header `replay-of`: the aggregator counts it although its
//! device's sequence has passed it. If its cause still stands it is refused again and becomes a new letter, at the place that
//! the run has written down: such a copy is not sent by a selection without `--again`, else a cause that stays would make letters for
//! ever. Both are one record, so `--again` sends only the copy if both are selected. A copy with another reason has come
//! further and is sent as any letter.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Write};

use rdkafka::error::KafkaError;

use super::runs::{self, Book, Fate, History, Run, Runs, name_of};
use super::sending::{Outgoing, Sender};
use super::{Key, Letter, LettersError, Selection, read_letters};
use crate::config::{self, Settings};

/// Most letters of one run: their bytes are held in memory.
pub(super) const LETTERS_MAX: usize = 10_000;
/// Letters of one kind that are named one by one.
const NAMED_MAX: usize = 20;

/// Why letters are not sent again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// They cannot be read, or what was sent cannot be read or written down, or another run sends the same.
    #[error(transparent)]
    Letters(#[from] LettersError),
    /// Names that no letter has.
    #[error("no dead letter {keys}{among}: nothing was sent; `dead-letters list` names them")]
    NotFound {
        /// The names.
        keys: String,
        /// Among which.
        among: &'static str,
    },
    /// More than one run takes.
    #[error("more than {LETTERS_MAX} letters are selected: narrow the selection, or set --limit")]
    TooMany,
    /// Neither `--yes` nor `--dry-run`.
    #[error(
        "{count} letters would be sent: --yes sends them, --dry-run names each of them and sends none"
    )]
    NotConfirmed {
        /// How many.
        count: usize,
    },
    /// A text that is no name of a topic.
    #[error(
        "--topic {topic:?} is no name of a topic: it has letters, digits, dots, hyphens and underscores"
    )]
    TopicName {
        /// The text.
        topic: String,
    },
    /// The client cannot be made.
    #[error("kafka settings")]
    Settings(#[source] anyhow::Error),
    /// The topic that was asked for is not there.
    #[error("{text}: nothing was sent")]
    NoTopic {
        /// Which.
        text: String,
    },
    /// A broker does not answer what is asked before anything is sent.
    #[error("kafka does not answer when asked {what}: nothing was sent")]
    Unreachable {
        /// For what.
        what: String,
        /// What the client says.
        #[source]
        source: KafkaError,
    },
    /// Kafka did not take them all.
    #[error("kafka took {sent} of {count} letters; {rest}")]
    Send {
        /// Acknowledged.
        sent: usize,
        /// Of so many.
        count: usize,
        /// What is known of the others.
        rest: String,
        /// The first refusal.
        #[source]
        source: KafkaError,
    },
}

impl From<io::Error> for ReplayError {
    fn from(error: io::Error) -> Self {
        Self::Letters(error.into())
    }
}

/// What came of a run: numbers of letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Sent, or with a dry run to be sent.
    pub sent: usize,
    /// Sent by an earlier run.
    pub before: usize,
    /// That cannot be sent again.
    pub refused: usize,
    /// That a run which did not end may have sent; they were left alone.
    pub unfinished: usize,
    /// That are copies of letters sent before, refused for the same reason; they were left alone.
    pub returned: usize,
}

impl Replayed {
    /// Whether letters were left alone of which Kafka may have none.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.refused > 0 || self.unfinished > 0 || self.returned > 0
    }
}

/// How to go about it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Topic instead of the one that they came from.
    pub topic: Option<String>,
    /// Also what was sent before, or may have been, or came back.
    pub again: bool,
    /// Only what may have been sent by a run that did not end.
    pub unfinished: bool,
    /// Confirmed.
    pub yes: bool,
    /// Say what would be sent.
    pub dry_run: bool,
    /// Most letters, oldest first.
    pub limit: Option<usize>,
}

/// Sends the selected letters to Kafka and says on `out` what it does.
///
/// # Errors
/// Letters or runs cannot be read, a letter that is named is not there, nobody has confirmed, or Kafka does not take all.
pub async fn replay(
    settings: &Settings,
    selection: &Selection,
    options: &Options,
    out: &mut impl Write,
) -> Result<Replayed, ReplayError> {
    if let Some(topic) = options.topic.as_deref().filter(|topic| !is_topic_name(topic)) {
        return Err(ReplayError::TopicName { topic: topic.to_owned() });
    }
    let runs = runs::read(&settings.lake).await?;
    let history = History::of(&runs);
    let choice = choose(&settings.lake, selection, options, &history).await?;
    choice.report(out)?;
    let mut replayed = choice.replayed();
    let outgoing = choice.outgoing;
    if options.dry_run {
        for Outgoing { letter, topic, .. } in &outgoing {
            writeln!(out, "would send {} ({}) to {topic}", letter.key, letter.reason)?;
        }
        return Ok(replayed);
    }
    if outgoing.len() > LETTERS_MAX {
        return Err(ReplayError::TooMany);
    }
    if !options.yes && !outgoing.is_empty() {
        return Err(ReplayError::NotConfirmed { count: outgoing.len() });
    }
    if !outgoing.is_empty() {
        let sender = Sender::connect(&settings.kafka)?;
        let outgoing = deliverable(&sender, outgoing, options, out)?;
        replayed.refused += replayed.sent - outgoing.len();
        replayed.sent = outgoing.len();
        send(settings, &runs, &sender, &outgoing, out).await?;
    }
    Ok(replayed)
}

/// As Kafka and Azure Event Hubs have them; whether the length is right the cluster knows.
fn is_topic_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !["", ".", ".."].contains(&text) && text.chars().all(is_allowed)
}

/// Letters of one kind: how many, and what is to be said of the first.
#[derive(Debug, Default)]
struct Named {
    count: usize,
    lines: Vec<String>,
}

impl Named {
    fn add(&mut self, line: impl FnOnce() -> String) {
        self.count += 1;
        if self.lines.len() < NAMED_MAX {
            self.lines.push(line());
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for line in &self.lines {
            writeln!(out, "{line}")?;
        }
        if self.count > self.lines.len() {
            writeln!(out, "and {} others", self.count - self.lines.len())?;
        }
        Ok(())
    }
}

fn print_unfinished(run: &str, letters: &Named, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{} may have been sent by the run {} that did not end, or is not done yet; when none is at work, --unfinished sends once more:",
        letters.count,
        runs::path_of(run)
    )?;
    letters.print(out)
}

/// What becomes of the selected letters.
#[derive(Default)]
struct Choice<'a> {
    outgoing: Vec<Outgoing>,
    before: usize,
    refused: Named,
    /// By run.
    unfinished: BTreeMap<&'a str, Named>,
    returned: Named,
}

impl Choice<'_> {
    fn report(&self, out: &mut impl Write) -> io::Result<()> {
        self.refused.print(out)?;
        for (run, letters) in &self.unfinished {
            print_unfinished(run, letters, out)?;
        }
        if self.returned.count > 0 {
            let count = self.returned.count;
            writeln!(
                out,
                "{count} came back: they were sent again and refused for the same reason; if that is mended, --again or their names send them:"
            )?;
        }
        self.returned.print(out)
    }

    fn replayed(&self) -> Replayed {
        Replayed {
            sent: self.outgoing.len(),
            before: self.before,
            refused: self.refused.count,
            unfinished: self.unfinished.values().map(|letters| letters.count).sum(),
            returned: self.returned.count,
        }
    }
}

async fn choose<'a>(
    lake: &config::Lake,
    selection: &Selection,
    options: &Options,
    history: &History<'a>,
) -> Result<Choice<'a>, ReplayError> {
    let copied =
        if options.again { copied(lake, selection, history).await? } else { Copied::new() };
    let is_named = selection.is_named();
    let judge = Judge { options, history, copied, is_named };
    let limit = options.limit.unwrap_or(LETTERS_MAX + 1).min(LETTERS_MAX + 1);
    let (mut choice, mut found) = (Choice::default(), BTreeSet::new());
    read_letters(lake, selection, |letter| {
        if is_named {
            found.insert(letter.key.clone());
        }
        let key = &letter.key;
        match judge.verdict(&letter) {
            Verdict::NotAsked => {}
            Verdict::SentBefore => choice.before += 1,
            Verdict::Unfinished(run) => {
                choice.unfinished.entry(run).or_default().add(|| format!("  {key}"));
            }
            Verdict::CameBack(origin) => {
                choice.returned.add(|| format!("  {key}, sent as {origin} ({})", letter.reason));
            }
            Verdict::Refused(why) => {
                choice.refused.add(|| format!("{key} cannot be sent again: {why}"));
            }
            Verdict::Send { topic, partition } => {
                if choice.outgoing.len() < limit {
                    choice.outgoing.push(Outgoing { letter, topic, partition });
                }
            }
        }
    })
    .await?;
    match not_found(selection, &found) {
        Some(error) => Err(error),
        None => Ok(choice),
    }
}

fn not_found(selection: &Selection, found: &BTreeSet<Key>) -> Option<ReplayError> {
    let missing = selection.missing(found);
    let keys = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let among = if selection.is_narrowed() {
        " among those that --reason, --source, --since and --until take"
    } else {
        ""
    };
    (!missing.is_empty()).then_some(ReplayError::NotFound { keys, among })
}

/// Letters that have a copy in the selection: names and fingerprints.
type Copied = BTreeSet<(String, u64)>;

async fn copied(
    lake: &config::Lake,
    selection: &Selection,
    history: &History<'_>,
) -> Result<Copied, ReplayError> {
    let mut copied = Copied::new();
    read_letters(lake, selection, |letter| {
        if let Some(origin) = history.origin(&letter) {
            copied.insert((origin.name.to_owned(), fingerprint(&letter.raw)));
        }
    })
    .await?;
    Ok(copied)
}

fn fingerprint(raw: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(raw);
    hasher.finish()
}

/// What becomes of a letter.
#[derive(Debug, PartialEq, Eq)]
enum Verdict<'a> {
    /// Only others were asked for.
    NotAsked,
    /// Kafka has it, or gets its copy.
    SentBefore,
    /// Kafka may have it, from this run.
    Unfinished(&'a str),
    /// It is what came of the replay of another.
    CameBack(&'a str),
    /// It cannot be sent.
    Refused(String),
    /// It is sent.
    Send {
        /// Where.
        topic: String,
        /// In which partition.
        partition: Option<i32>,
    },
}

struct Judge<'h, 'a> {
    options: &'h Options,
    history: &'h History<'a>,
    copied: Copied,
    /// Letters are selected one by one.
    is_named: bool,
}

impl<'a> Judge<'_, 'a> {
    fn verdict(&self, letter: &Letter) -> Verdict<'a> {
        let fate = self.history.fate(letter);
        if self.options.unfinished {
            match fate {
                Fate::Unfinished(_) => {}
                Fate::NotSent | Fate::Sent => return Verdict::NotAsked,
            }
        } else if self.options.again {
            if self.copied.contains(&(name_of(letter), fingerprint(&letter.raw))) {
                return Verdict::SentBefore;
            }
        } else {
            match fate {
                Fate::Sent => return Verdict::SentBefore,
                Fate::Unfinished(run) => return Verdict::Unfinished(run),
                Fate::NotSent => {}
            }
            let origin = self.history.origin(letter).filter(|_| !self.is_named);
            if let Some(origin) = origin.filter(|origin| origin.reason == letter.reason) {
                return Verdict::CameBack(origin.key);
            }
        }
        match destination(letter, self.options) {
            Ok((topic, partition)) => Verdict::Send { topic, partition },
            Err(why) => Verdict::Refused(why),
        }
    }
}

/// Where a letter goes, or why it does not.
fn destination(letter: &Letter, options: &Options) -> Result<(String, Option<i32>), String> {
    if letter.is_cut() {
        return Err(format!(
            "only {} of its {} bytes are kept: the producer has to send it again",
            letter.raw.len(),
            letter.raw_length
        ));
    }
    if let Some(topic) = &options.topic {
        return Ok((topic.clone(), None));
    }
    if letter.source == letter.key.from.topic {
        return Ok((letter.source.clone(), Some(letter.key.from.partition)));
    }
    Err(format!(
        "it came from {:?}, which is no topic that the aggregator reads: name one with --topic",
        letter.source
    ))
}

/// Those that Kafka has a place for; the others are named.
fn deliverable(
    sender: &Sender,
    outgoing: Vec<Outgoing>,
    options: &Options,
    out: &mut impl Write,
) -> Result<Vec<Outgoing>, ReplayError> {
    let (mut homeless, mut deliverable) = (Named::default(), Vec::with_capacity(outgoing.len()));
    for next in outgoing {
        match sender.why_not(&next.topic, next.partition) {
            None => deliverable.push(next),
            Some(text) if options.topic.is_some() => return Err(ReplayError::NoTopic { text }),
            Some(text) => {
                homeless.add(|| format!("{} cannot be sent again: {text}", next.letter.key));
            }
        }
    }
    homeless.print(out)?;
    sender.reach(&deliverable)?;
    Ok(deliverable)
}

async fn send(
    settings: &Settings,
    runs: &Runs,
    sender: &Sender,
    outgoing: &[Outgoing],
    out: &mut impl Write,
) -> Result<(), ReplayError> {
    if outgoing.is_empty() {
        return Ok(());
    }
    let book = Book::open(&settings.lake).map_err(LettersError::from)?;
    let file = format!("{}.json", uuid::Uuid::new_v4().simple());
    let names = outgoing.iter().map(|outgoing| name_of(&outgoing.letter)).collect();
    book.begin(&file, &Run::begun(names), runs).await?;
    let answers = sender.send(outgoing).await;
    let ended = Run::ended(answers.taken, &answers.unknown);
    book.end(&file, ended.as_ref()).await?;
    let Some(source) = answers.failure else { return Ok(()) };
    let mut unknown = Named::default();
    answers.unknown.iter().for_each(|name| unknown.add(|| format!("  {name}")));
    if unknown.count > 0 {
        print_unfinished(&file, &unknown, out)?;
    }
    let rest = rest(&file, unknown.count);
    Err(ReplayError::Send { sent: answers.sent, count: outgoing.len(), rest, source })
}

fn rest(file: &str, unknown: usize) -> String {
    match unknown {
        0 => "the others were not sent".to_owned(),
        _ => format!(
            "{unknown} more may have been sent, which is written down in {}; --unfinished sends them once more",
            runs::path_of(file)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::letter;
    use super::*;

    const AGAIN: Options = Options {
        topic: None,
        again: true,
        unfinished: false,
        yes: false,
        dry_run: false,
        limit: None,
    };

    /// Letter 2 was sent and stands at 57; whether 3 was sent is not known.
    fn runs() -> Runs {
        let place = Some("temperature/0/57".to_owned());
        let taken = BTreeMap::from([(name_of(&letter(2, 7)), place)]);
        let run = Run::ended(taken, &[name_of(&letter(3, 7))]);
        Runs::from([("run".to_owned(), run.expect("not empty"))])
    }

    fn check(letter: &Letter, options: &Options, is_named: bool, expected: &Verdict<'_>) {
        let runs = runs();
        let history = History::of(&runs);
        let judge = Judge { options, history: &history, copied: Copied::new(), is_named };
        assert_eq!(&judge.verdict(letter), expected, "{letter:?} {options:?}");
    }

    fn sent() -> Verdict<'static> {
        Verdict::Send { topic: "temperature".to_owned(), partition: Some(0) }
    }

    #[test]
    fn what_was_sent_and_what_may_have_been_is_not_sent_by_itself() {
        let plain = Options::default();
        for is_named in [false, true] {
            check(&letter(1, 7), &plain, is_named, &sent());
            check(&letter(2, 7), &plain, is_named, &Verdict::SentBefore);
            check(&letter(3, 7), &plain, is_named, &Verdict::Unfinished("run"));
        }
        check(&letter(2, 7), &AGAIN, false, &sent());
        check(&letter(3, 7), &AGAIN, false, &sent());
        let unfinished = Options { unfinished: true, ..Options::default() };
        check(&letter(1, 7), &unfinished, false, &Verdict::NotAsked);
        check(&letter(2, 7), &unfinished, false, &Verdict::NotAsked);
        check(&letter(3, 7), &unfinished, false, &sent());
    }

    /// Replaying all again and again made letters for ever.
    #[test]
    fn what_came_back_for_the_same_reason_is_not_sent_again_by_itself() {
        let back = letter(57, 9);
        let came_back = Verdict::CameBack("temperature/0/2");
        check(&back, &Options::default(), false, &came_back);
        check(&back, &Options::default(), true, &sent());
        check(&back, &AGAIN, false, &sent());
        let further = Letter { reason: "sensors-limit".to_owned(), ..back };
        check(&further, &Options::default(), false, &sent());
    }

    #[test]
    fn of_a_letter_and_its_copy_only_the_copy_is_sent() {
        let (first, runs) = (letter(2, 7), runs());
        let history = History::of(&runs);
        let copied = Copied::from([(name_of(&first), fingerprint(&first.raw))]);
        let judge = Judge { options: &AGAIN, history: &history, copied, is_named: false };
        assert_eq!(judge.verdict(&first), Verdict::SentBefore);
        assert_eq!(judge.verdict(&letter(57, 9)), sent());
        let other = Letter { raw: b"[".to_vec(), ..first };
        assert_eq!(judge.verdict(&other), sent(), "of a topic that was made anew");
    }

    #[test]
    fn what_is_cut_or_came_from_elsewhere_has_no_place() {
        let cut = Letter { raw_length: 2, ..letter(1, 7) };
        let error = destination(&cut, &Options::default()).expect_err("cut");
        assert!(error.starts_with("only 1 of its 2 bytes"), "{error}");
        let elsewhere = Letter { source: "plant/1".to_owned(), ..letter(1, 7) };
        let error = destination(&elsewhere, &Options::default()).expect_err("no topic");
        assert!(error.contains("--topic"), "{error}");
        let other = Options { topic: Some("pressure".to_owned()), ..Options::default() };
        assert_eq!(destination(&elsewhere, &other), Ok(("pressure".to_owned(), None)));
    }

    #[test]
    fn names_of_topics_are_what_kafka_takes() {
        for name in ["temperature", "plant-7.temperature_2", "..."] {
            assert!(is_topic_name(name), "{name}");
        }
        for name in ["", ".", "..", "plant/7", "two words", "w\u{e4}rme", "a\0"] {
            assert!(!is_topic_name(name), "{name}");
        }
    }

    #[test]
    fn letters_beyond_the_first_are_counted() {
        let mut named = Named::default();
        (0..NAMED_MAX + 2).for_each(|number| named.add(|| number.to_string()));
        let mut out = Vec::new();
        named.print(&mut out).expect("written");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text.lines().count(), NAMED_MAX + 1);
        assert!(text.ends_with("\n19\nand 2 others\n"), "{text}");
    }
}
