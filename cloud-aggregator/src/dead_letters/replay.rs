//! Sends dead letters back to Kafka as they came.
//!
//! What was sent is written down in `_replays/` beside the tables, one file for each run: before anything is sent with the
//! state `sending`, after the last acknowledgement with `sent`. A letter of either is not sent again unless that is asked for: of
//! a run that was cut off nobody knows which of its letters left. A run that finds that another has begun to send one of its letters
//! takes its file back and sends nothing.
//!
//! A letter goes to the partition that it came from, with the header `replay-of`: the aggregator counts it although its
//! device's sequence has passed it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::{Deserialize, Serialize};
use shared_proto::codec::{Encoding, decode_reading};
use shared_proto::wire::{CONTENT_TYPE_HEADER, REPLAY_HEADER};

use super::{Key, Letter, LettersError, Selection, read_letters};
use crate::config::Settings;
use crate::sink::delta::{LakeError, Location};
use crate::source::kafka::client_config;

const FOLDER: &str = "_replays";
/// Most letters of one run: their bytes are held in memory.
const LETTERS_MAX: usize = 10_000;
/// Refusals that are named one by one.
const REFUSALS_SHOWN_MAX: usize = 20;

/// Why letters are not sent again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// They cannot be read.
    #[error(transparent)]
    Letters(#[from] LettersError),
    /// What was sent cannot be read or written down, or another run sends the same.
    #[error("{name}: {text}")]
    Book {
        /// The file.
        name: String,
        /// What is wrong with it.
        text: String,
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
    /// The client cannot be made.
    #[error("kafka settings")]
    Settings(#[source] anyhow::Error),
    /// Kafka did not take them all.
    #[error(
        "kafka took {sent} of {count} letters; run {run} stays open: see which arrived, then use --again for the others"
    )]
    Send {
        /// Acknowledged.
        sent: usize,
        /// Of so many.
        count: usize,
        /// Name of the run.
        run: String,
        /// The first refusal.
        #[source]
        source: KafkaError,
    },
}

impl From<std::io::Error> for ReplayError {
    fn from(error: std::io::Error) -> Self {
        Self::Letters(error.into())
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Sent, or with a dry run to be sent.
    pub sent: usize,
    /// Sent by an earlier run.
    pub before: usize,
    /// Letters that cannot be sent again.
    pub refused: usize,
}

/// How to go about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Topic instead of the one that they came from.
    pub topic: Option<String>,
    /// Also what was sent before.
    pub again: bool,
    /// Confirmed.
    pub yes: bool,
    /// Say what would be sent.
    pub dry_run: bool,
    /// Most letters, oldest first.
    pub limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Sending,
    Sent,
}

/// The file of a run.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    state: State,
    letters: Vec<String>,
}

/// Where runs are written down.
struct Book {
    store: Arc<dyn ObjectStore>,
}

impl Book {
    fn open(settings: &Settings) -> Result<Self, LakeError> {
        // A lake that is not there is not made.
        Location::existing(&settings.lake)?;
        let store = Location::open(&settings.lake)?.store(FOLDER)?.object_store();
        Ok(Self { store })
    }

    /// Runs by their files, except those of `passed_over`.
    async fn read(
        &self,
        passed_over: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, Run>, ReplayError> {
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|error| book_error("", &error))?;
        let mut runs = BTreeMap::new();
        for object in listed.objects {
            let name = object.location.filename().unwrap_or_default().to_owned();
            if passed_over(&name) {
                continue;
            }
            let bytes = match self.store.get(&object.location).await {
                Ok(got) => got.bytes().await.map_err(|error| book_error(&name, &error))?,
                // Its run has taken it back.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(book_error(&name, &error)),
            };
            let run = serde_json::from_slice(&bytes).map_err(|error| book_error(&name, &error))?;
            runs.insert(name, run);
        }
        Ok(runs)
    }

    async fn write(&self, name: &str, run: &Run) -> Result<(), ReplayError> {
        let bytes = serde_json::to_vec(run).map_err(|error| book_error(name, &error))?;
        let written = self.store.put(&Path::from(name), bytes.into()).await;
        written.map(drop).map_err(|error| book_error(name, &error))
    }

    /// Writes down what a run is about to send. If another run that is not among `known` has one of the letters, nothing is to be
    /// sent: of two that begin at once at least one sees the other.
    async fn begin(
        &self,
        name: &str,
        run: &Run,
        known: &BTreeMap<String, Run>,
    ) -> Result<(), ReplayError> {
        self.write(name, run).await?;
        let others = self.read(|other| other == name || known.contains_key(other)).await;
        let problem = match others {
            Ok(others) => match shared_letters(run, &others) {
                Some(problem) => problem,
                None => return Ok(()),
            },
            Err(error) => error,
        };
        let withdrawn = self.store.delete(&Path::from(name)).await;
        withdrawn.map_err(|error| book_error(name, &error))?;
        Err(problem)
    }
}

fn book_error(name: &str, error: &dyn std::fmt::Display) -> ReplayError {
    ReplayError::Book {
        name: format!("{FOLDER}/{name}"),
        text: format!("{error}; without it nobody knows what was sent before"),
    }
}

fn shared_letters(run: &Run, others: &BTreeMap<String, Run>) -> Option<ReplayError> {
    let ours: BTreeSet<&String> = run.letters.iter().collect();
    others.iter().find_map(|(other, run)| {
        let count = run.letters.iter().filter(|letter| ours.contains(letter)).count();
        (count > 0).then(|| ReplayError::Book {
            name: format!("{FOLDER}/{other}"),
            text: format!(
                "this run has begun to send {count} of the letters at the same time: nothing was sent here; \
                 see what it has sent, then start again"
            ),
        })
    })
}

/// A letter may share its place with an alert that was given up, or with one of a topic that was there before under the same name.
fn name_of(letter: &Letter) -> String {
    format!("{} {}", name_without_time(letter), letter.timestamp)
}

/// As versions named it that did not think of topics that are made anew.
fn name_without_time(letter: &Letter) -> String {
    format!("{} {}", letter.key, letter.reason)
}

/// What was sent before.
struct Sent<'a>(BTreeSet<&'a str>);

impl<'a> Sent<'a> {
    fn of(runs: &'a BTreeMap<String, Run>) -> Self {
        Self(runs.values().flat_map(|run| &run.letters).map(String::as_str).collect())
    }

    fn has(&self, letter: &Letter) -> bool {
        self.0.contains(name_of(letter).as_str())
            || self.0.contains(name_without_time(letter).as_str())
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

/// Sends the selected letters to Kafka and says on `out` what it does.
///
/// # Errors
/// Letters or runs cannot be read, nobody has confirmed, or Kafka does not take all.
pub async fn replay(
    settings: &Settings,
    selection: &Selection,
    options: &Options,
    out: &mut impl Write,
) -> Result<Replayed, ReplayError> {
    let book = Book::open(settings).map_err(LettersError::from)?;
    let known = book.read(|_| false).await?;
    let sent = Sent::of(&known);
    let (mut letters, mut replayed, mut refusals) = (Vec::new(), Replayed::default(), Vec::new());
    let limit = options.limit.unwrap_or(LETTERS_MAX + 1).min(LETTERS_MAX + 1);
    read_letters(&settings.lake, selection, |letter| {
        if !options.again && sent.has(&letter) {
            replayed.before += 1;
        } else if let Err(why) = destination(&letter, options) {
            replayed.refused += 1;
            if refusals.len() < REFUSALS_SHOWN_MAX {
                refusals.push((letter.key, why));
            }
        } else if letters.len() < limit {
            letters.push(letter);
        }
    })
    .await?;
    report(&replayed, &refusals, &known, out)?;
    replayed.sent = letters.len();
    if options.dry_run {
        for letter in &letters {
            let (topic, _) = destination(letter, options).map_err(std::io::Error::other)?;
            writeln!(out, "would send {} ({}) to {topic}", letter.key, letter.reason)?;
        }
        return Ok(replayed);
    }
    if letters.len() > LETTERS_MAX {
        return Err(ReplayError::TooMany);
    }
    if !options.yes && !letters.is_empty() {
        return Err(ReplayError::NotConfirmed { count: letters.len() });
    }
    if !letters.is_empty() {
        send_all(settings, (&book, &known), &letters, options).await?;
    }
    Ok(replayed)
}

fn report(
    replayed: &Replayed,
    refusals: &[(Key, String)],
    known: &BTreeMap<String, Run>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    for (key, why) in refusals {
        writeln!(out, "{key} cannot be sent again: {why}")?;
    }
    if replayed.refused > refusals.len() {
        writeln!(out, "and {} others", replayed.refused - refusals.len())?;
    }
    let open = known.iter().filter(|(_, run)| run.state == State::Sending);
    for (name, _) in open {
        writeln!(
            out,
            "run {name} was cut off, or is not done yet: some of its letters may not have been sent; --again sends them once more"
        )?;
    }
    Ok(())
}

async fn send_all(
    settings: &Settings,
    (book, known): (&Book, &BTreeMap<String, Run>),
    letters: &[Letter],
    options: &Options,
) -> Result<(), ReplayError> {
    let timeout = settings.kafka.request_timeout.max(Duration::from_secs(1)) * 3;
    let producer = producer(settings, timeout).map_err(ReplayError::Settings)?;
    let name = format!("{}.json", uuid::Uuid::new_v4().simple());
    let mut run = Run { state: State::Sending, letters: letters.iter().map(name_of).collect() };
    book.begin(&name, &run, known).await?;
    let (mut waiting, mut failure) = (Vec::with_capacity(letters.len()), None);
    for letter in letters {
        match enqueue(&producer, letter, options) {
            Ok(delivery) => waiting.push(delivery),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let mut sent = 0;
    for delivery in waiting {
        match delivery.await {
            Ok(Ok(_)) => sent += 1,
            Ok(Err((error, _))) => failure = failure.or(Some(error)),
            Err(_) => failure = failure.or(Some(KafkaError::Canceled)),
        }
    }
    if let Some(source) = failure {
        return Err(ReplayError::Send { sent, count: letters.len(), run: name, source });
    }
    run.state = State::Sent;
    book.write(&name, &run).await
}

fn producer(settings: &Settings, timeout: Duration) -> anyhow::Result<FutureProducer> {
    let mut config: ClientConfig = client_config(&settings.kafka)?;
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.messages", (LETTERS_MAX * 2).to_string())
        .set("message.timeout.ms", timeout.as_millis().to_string())
        .set("client.id", "cloud-aggregator-replay");
    Ok(config.create()?)
}

fn enqueue(
    producer: &FutureProducer,
    letter: &Letter,
    options: &Options,
) -> Result<rdkafka::producer::DeliveryFuture, KafkaError> {
    let Ok((topic, partition)) = destination(letter, options) else {
        return Err(KafkaError::Canceled);
    };
    let name = letter.key.to_string();
    let content_type = letter.content_type.as_deref();
    let header = content_type.map(|value| Header { key: CONTENT_TYPE_HEADER, value: Some(value) });
    let headers = OwnedHeaders::new().insert(Header { key: REPLAY_HEADER, value: Some(&name) });
    let headers = match header {
        Some(header) => headers.insert(header),
        None => headers,
    };
    let key = partition.is_none().then(|| sensor_of(letter)).flatten();
    let mut record: FutureRecord<'_, String, [u8]> =
        FutureRecord::to(&topic).payload(letter.raw.as_slice()).headers(headers);
    if let Some(partition) = partition {
        record = record.partition(partition);
    }
    if let Some(key) = &key {
        record = record.key(key);
    }
    producer.send_result(record).map_err(|(error, _)| error)
}

/// On another topic a reading must stand with the others of its sensor.
fn sensor_of(letter: &Letter) -> Option<String> {
    let content_type = letter.content_type.as_deref().map(str::as_bytes);
    let encoding = Encoding::from_content_type(content_type).ok()?;
    let decoded = decode_reading(&letter.raw, encoding).ok()?;
    Some(decoded.reading.sensor_id.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use deltalake::logstore::object_store::memory::InMemory;
    use shared_proto::model::EventTime;

    use super::*;

    fn letter(offset: i64, second: i64) -> Letter {
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

    fn run(offsets: std::ops::Range<i64>) -> Run {
        let letters = offsets.map(|offset| name_of(&letter(offset, 7))).collect();
        Run { state: State::Sending, letters }
    }

    #[tokio::test]
    async fn of_two_runs_that_begin_at_once_with_the_same_letter_one_sends_nothing() {
        let book = Book { store: Arc::new(InMemory::new()) };
        let known = book.read(|_| false).await.expect("readable");
        book.begin("first", &run(0..3), &known).await.expect("nobody else has them");
        let error = book.begin("second", &run(2..5), &known).await.expect_err("2 is taken");
        let text = error.to_string();
        assert!(text.starts_with("_replays/first: ") && text.contains("send 1 of"), "{text}");
        book.begin("third", &run(3..5), &known).await.expect("the second has given them back");
        let known = book.read(|_| false).await.expect("readable");
        assert_eq!(known.keys().collect::<Vec<_>>(), ["first", "third"]);
        // Who knows of them and sends them all the same wants that.
        book.begin("again", &run(0..5), &known).await.expect("asked for");
    }

    #[tokio::test]
    async fn a_run_that_cannot_see_the_others_takes_its_file_back() {
        let book = Book { store: Arc::new(InMemory::new()) };
        book.store.put(&Path::from("odd"), b"{".to_vec().into()).await.expect("written");
        let error = book.begin("ours", &run(0..3), &BTreeMap::new()).await.expect_err("odd");
        assert!(error.to_string().contains("nobody knows what was sent"), "{error}");
        let files = book.store.list_with_delimiter(None).await.expect("listed").objects;
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn letters_of_a_topic_that_was_made_anew_were_not_sent_before() {
        let runs = BTreeMap::from([("one".to_owned(), run(0..3))]);
        let sent = Sent::of(&runs);
        assert!(sent.has(&letter(2, 7)));
        assert!(!sent.has(&letter(3, 7)), "another offset");
        assert!(!sent.has(&letter(2, 8)), "refused at another time");
        // What an older version wrote down has no time.
        let old = Run { state: State::Sent, letters: vec!["temperature/0/2 json".to_owned()] };
        let runs = BTreeMap::from([("old".to_owned(), old)]);
        assert!(Sent::of(&runs).has(&letter(2, 8)));
    }
}
