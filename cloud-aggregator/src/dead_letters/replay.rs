//! Sends dead letters back to Kafka as they came.
//!
//! What was sent is written down in `_replays/` beside the tables, one file for each run: before anything is sent with the
//! state `sending`, after the last acknowledgement with `sent`. A letter of either is not sent again unless that is asked for: of
//! a run that was cut off nobody knows which of its letters left.
//!
//! A letter goes to the partition that it came from, with the header `replay-of`: the aggregator counts it although its
//! device's sequence has passed it.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{ObjectStore, ObjectStoreExt as _};
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
    /// What was sent cannot be read or written down.
    #[error("{name}: {text}; without it nobody knows what was sent before")]
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

    /// Letters of all runs, as [`name_of`] names them; and the runs that were cut off.
    async fn read(&self) -> Result<(BTreeSet<String>, Vec<String>), ReplayError> {
        let failed = |name: &str, error: &dyn std::fmt::Display| ReplayError::Book {
            name: format!("{FOLDER}/{name}"),
            text: error.to_string(),
        };
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|error| failed("", &error))?;
        let (mut letters, mut open) = (BTreeSet::new(), Vec::new());
        for object in listed.objects {
            let name = object.location.filename().unwrap_or_default().to_owned();
            let got = self.store.get(&object.location).await;
            let bytes = match got {
                Ok(got) => got.bytes().await.map_err(|error| failed(&name, &error))?,
                Err(error) => return Err(failed(&name, &error)),
            };
            let run: Run = serde_json::from_slice(&bytes).map_err(|error| failed(&name, &error))?;
            if run.state == State::Sending {
                open.push(name);
            }
            letters.extend(run.letters);
        }
        Ok((letters, open))
    }

    async fn write(&self, name: &str, run: &Run) -> Result<(), ReplayError> {
        let failed = |text| ReplayError::Book { name: format!("{FOLDER}/{name}"), text };
        let bytes = serde_json::to_vec(run).map_err(|error| failed(error.to_string()))?;
        let written = self.store.put(&Path::from(name), bytes.into()).await;
        written.map(drop).map_err(|error| failed(error.to_string()))
    }
}

/// A letter may share its place with an alert that was given up.
fn name_of(letter: &Letter) -> String {
    format!("{} {}", letter.key, letter.reason)
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
    let (known, open) = book.read().await?;
    let (mut letters, mut replayed, mut refusals) = (Vec::new(), Replayed::default(), Vec::new());
    let limit = options.limit.unwrap_or(LETTERS_MAX + 1).min(LETTERS_MAX + 1);
    read_letters(&settings.lake, selection, |letter| {
        if !options.again && known.contains(&name_of(&letter)) {
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
    report(&replayed, &refusals, &open, out)?;
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
        send_all(settings, &book, &letters, options).await?;
    }
    Ok(replayed)
}

fn report(
    replayed: &Replayed,
    refusals: &[(Key, String)],
    open: &[String],
    out: &mut impl Write,
) -> std::io::Result<()> {
    for (key, why) in refusals {
        writeln!(out, "{key} cannot be sent again: {why}")?;
    }
    if replayed.refused > refusals.len() {
        writeln!(out, "and {} others", replayed.refused - refusals.len())?;
    }
    for name in open {
        writeln!(
            out,
            "run {name} was cut off: some of its letters may not have been sent; --again sends them once more"
        )?;
    }
    Ok(())
}

async fn send_all(
    settings: &Settings,
    book: &Book,
    letters: &[Letter],
    options: &Options,
) -> Result<(), ReplayError> {
    let timeout = settings.kafka.request_timeout.max(Duration::from_secs(1)) * 3;
    let producer = producer(settings, timeout).map_err(ReplayError::Settings)?;
    let name = format!("{}.json", uuid::Uuid::new_v4().simple());
    let mut run = Run { state: State::Sending, letters: letters.iter().map(name_of).collect() };
    book.write(&name, &run).await?;
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
