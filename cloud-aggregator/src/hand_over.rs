//! `lake offsets` and `lake take-over`: a lake goes from aggregators to a Spark job on the same topics, and back.
//!
//! Both write the same tables, each row once, and each knows by its own book how far it has come: aggregators by state files that `txn` actions
//! name, a Spark job by its checkpoint. Going over means that one book ends where the other one begins. A property of `telemetry` (`mark`)
//! says whose turn it is; it is set by a commit, which whoever writes at that moment runs into.
//!
//! Away: the mark is set, what the last epoch owes to side tables is put there, and the offsets are printed. Back: the mark says that nobody
//! may write, the last batch of the job's checkpoint must have ended, every row that it has written goes into the states (`adopt`), and one commit
//! carries the `txn` of all partitions. A take-over that was cut off is begun again.

pub mod adopt;
pub mod checkpoint;
pub mod mark;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use aggregator_core::checkpoint::{
    Corruption, EpochError, EpochFile, EpochId, Nonce, PartitionEpoch, PendingRows, SavedState,
    TopicPartition,
};
use aggregator_core::partition::adopting::AdoptionLimit;
use aggregator_core::rows::Offset;
use aggregator_core::{AlertBook, PartitionState, ProcessingTime};

use crate::cli::OffsetFormat;
use crate::config::Settings;
use crate::lake_copy::mark::load_telemetry;
use crate::lake_reader::TableReader;
use crate::sink::commit::{EpochCommit, Lake, Recovered, Resumption};
use crate::sink::delta::{LakeError, Location};
use crate::sink::rows::TELEMETRY;
use crate::sink::state_file::{FoundStateFile, StateFiles};
use crate::source::TopicKind;
use adopt::{Adopted, Adoption};
use checkpoint::{CheckpointError, SparkCheckpoint};
use mark::{
    HANDED_OVER_TO, HandedOver, IN_BETWEEN, JOB_CHECKPOINT, JOB_TABLE, SPARK, handed_over, mark,
};

/// A storage cannot be read or written (`EX_IOERR`).
const EXIT_STORAGE: u8 = 74;
/// The lake or the job does not hold still (`EX_TEMPFAIL`).
const EXIT_TEMPORARY: u8 = 75;
/// It is not its turn (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// Why a lake did not go over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// A table cannot be read or marked.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The job's checkpoint says nothing.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is no lake.
    #[error("{location} has no table telemetry: check lake.location")]
    NoTable {
        /// Where it was looked for.
        location: String,
    },
    /// The lake moves on.
    #[error("the lake was committed to faster than it could be marked: try again")]
    Restless,
    /// A partition's state is damaged.
    #[error("{partition}")]
    Corrupt {
        /// Which.
        partition: TopicPartition,
        /// Why.
        #[source]
        source: Corruption,
    },
    /// Aggregators write it.
    #[error(
        "the lake was not handed over: aggregators write it, and `lake offsets --hand-over` hands it over"
    )]
    NotHandedOver,
    /// Another program has gone on.
    #[error(
        "the lake was handed over to {to:?}, which has gone on since: its own checkpoint says where; `lake take-over` takes the lake back"
    )]
    GoneOn {
        /// Which.
        to: String,
    },
    /// A take-over was cut off.
    #[error("a take-over has begun and not ended: run `lake take-over` to its end")]
    InBetween,
    /// Somebody else has it.
    #[error(
        "the lake was handed over to {to:?}, which is no Spark job of ours: who set {HANDED_OVER_TO} takes it back"
    )]
    Stranger {
        /// Who.
        to: String,
    },
    /// A hub would not be read any more.
    #[error(
        "aggregators read the topics of a hub into this lake ({topics}), which no job reads and a hub keeps for days only: give them a lake of \
         their own before this one is handed over"
    )]
    HubTopics {
        /// Which.
        topics: String,
    },
    /// The checkpoint reads what the aggregators will not.
    #[error(
        "the checkpoint has the topic {topic:?}, which is none of kafka.topics: give the configuration that the job has"
    )]
    UnreadTopic {
        /// Which.
        topic: String,
    },
    /// Another job's checkpoint.
    #[error(
        "the job that writes this lake has the checkpoint of id {expected:?}, this one has {found:?}: give that job's (the lake names it in \
         {JOB_CHECKPOINT} of {JOB_TABLE})"
    )]
    OtherCheckpoint {
        /// Id by the lake.
        expected: String,
        /// Id found.
        found: String,
    },
    /// No job has written since.
    #[error(
        "{partition}: no job has written since the lake was handed over, and this checkpoint stands at offset {found} in place of {known}"
    )]
    NothingWritten {
        /// Which.
        partition: TopicPartition,
        /// By the checkpoint.
        found: i64,
        /// By the lake.
        known: i64,
    },
    /// The checkpoint stands before the state.
    #[error(
        "{partition}: the checkpoint stands at offset {found}, the lake at {known}: it is not the checkpoint of the job that has this lake"
    )]
    Behind {
        /// Which.
        partition: TopicPartition,
        /// By the checkpoint.
        found: i64,
        /// By the lake.
        known: i64,
    },
    /// There are rows of records that the job has not read by its checkpoint.
    #[error(
        "table {table} has a row of {partition}, offset {offset}, which nobody has read before {until}: it is not the checkpoint of the job \
         that has this lake"
    )]
    Beyond {
        /// Table of the row.
        table: &'static str,
        /// Its partition.
        partition: TopicPartition,
        /// Its offset.
        offset: i64,
        /// Where the partition stands.
        until: i64,
    },
    /// More rows than records.
    #[error(
        "{partition}: {rows} rows of {offsets} offsets: something has written rows twice, look for it before aggregators go on"
    )]
    Doubled {
        /// Which.
        partition: TopicPartition,
        /// Offsets.
        offsets: u64,
        /// Rows.
        rows: u64,
    },
    /// The settings are too narrow.
    #[error(transparent)]
    Limit(#[from] AdoptionLimit),
    /// All epochs are used.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// The states cannot be written down.
    #[error("states cannot be written as JSON")]
    State(#[from] serde_json::Error),
    /// Nobody takes the output.
    #[error("the report cannot be written")]
    Output(#[from] io::Error),
}

impl HandOverError {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Lake(error) if error.is_wrong_place() => EXIT_CONFIG,
            Self::Lake(_) | Self::NoTable { .. } | Self::Corrupt { .. } | Self::Doubled { .. } => {
                EXIT_STORAGE
            }
            Self::Checkpoint(CheckpointError::Unfinished { .. }) | Self::Restless => EXIT_TEMPORARY,
            Self::Checkpoint(_) => EXIT_STORAGE,
            Self::NotHandedOver
            | Self::GoneOn { .. }
            | Self::InBetween
            | Self::Stranger { .. }
            | Self::HubTopics { .. }
            | Self::UnreadTopic { .. }
            | Self::OtherCheckpoint { .. }
            | Self::NothingWritten { .. }
            | Self::Behind { .. }
            | Self::Beyond { .. }
            | Self::Limit(_)
            | Self::Epoch(_) => EXIT_CONFIG,
            Self::State(_) | Self::Output(_) => 1,
        }
    }
}

/// The lake, and whose turn it is.
async fn look(settings: &Settings) -> Result<(Location, Option<HandedOver>), HandOverError> {
    let location = Location::existing(&settings.lake)?;
    let Some(table) = load_telemetry(&location).await? else {
        return Err(HandOverError::NoTable { location: settings.lake.location.clone() });
    };
    let before = handed_over(&table)?;
    Ok((location, before))
}

/// `lake offsets`: prints the first offset of each partition whose record has no row yet. With `is_for_good` aggregators may not
/// write from then on.
///
/// # Errors
/// See [`HandOverError`].
pub async fn offsets(
    settings: &Settings,
    is_for_good: bool,
    format: OffsetFormat,
    now: ProcessingTime,
    out: &mut impl Write,
) -> Result<(), HandOverError> {
    let (location, before) = look(settings).await?;
    match before.as_ref().map(|mark| mark.to.as_str()) {
        Some(IN_BETWEEN) => return Err(HandOverError::InBetween),
        Some(SPARK) | None => {}
        Some(to) => return Err(HandOverError::Stranger { to: to.to_owned() }),
    }
    if is_for_good {
        let (_, hubs) = read_offsets(&location).await?;
        if !hubs.is_empty() {
            let topics = hubs.into_iter().collect::<Vec<_>>().join(", ");
            return Err(HandOverError::HubTopics { topics });
        }
        if before.is_none() {
            let to = HandedOver { to: SPARK.to_owned(), at_ms: Some(now.micros() / 1000) };
            if !mark(&location, Some(&to)).await? {
                return Err(HandOverError::Restless);
            }
        }
        // After the mark: what is committed now is committed for good.
        let mut lake = Lake::open_to_take_over(&settings.lake).await?;
        recover(&mut lake, &location).await?;
    }
    let (offsets, _) = read_offsets(&location).await?;
    if let Some(HandedOver { to, at_ms }) = before {
        let looked = check_untouched(settings, &location, &offsets, at_ms).await;
        if matches!(looked, Err(HandOverError::Beyond { .. })) {
            return Err(HandOverError::GoneOn { to });
        }
        looked?;
    }
    print(&offsets, format, out)?;
    Ok(())
}

/// Fails if there are rows of records beyond the offsets.
async fn check_untouched(
    settings: &Settings,
    location: &Location,
    offsets: &BTreeMap<TopicPartition, i64>,
    since_ms: Option<i64>,
) -> Result<(), HandOverError> {
    let core = settings.core();
    let (partitions, others) = (BTreeMap::new(), offsets.clone());
    let now = ProcessingTime::from_micros(0);
    let mut look = Adoption { partitions, others, settings: &core, now, since_ms };
    look.run(location).await
}

/// Where each partition stands, by its state file, without writing anything; and the topics of hubs, which have no such offsets.
async fn read_offsets(
    location: &Location,
) -> Result<(BTreeMap<TopicPartition, i64>, BTreeSet<String>), HandOverError> {
    let states = StateFiles::open(location)?;
    let (mut offsets, mut hubs) = (BTreeMap::new(), BTreeSet::new());
    let mut known = BTreeMap::new();
    for (partition, epoch) in last_epochs(location, &states).await? {
        if let Entry::Vacant(entry) = known.entry(epoch) {
            entry.insert(states.read(epoch).await?);
        }
        let source = match &known[&epoch] {
            FoundStateFile::Present(file) => match file.partitions.get(&partition) {
                Some(last) if last.is_hub => {
                    hubs.insert(partition.topic);
                    continue;
                }
                Some(last) => {
                    offsets.insert(partition, last.next_offset.0);
                    continue;
                }
                None => Corruption::PartitionMissing { epoch, partition: partition.clone() },
            },
            FoundStateFile::Absent => Corruption::FileMissing { epoch },
            FoundStateFile::Unreadable(detail) => {
                Corruption::FileUnreadable { epoch, detail: detail.clone() }
            }
            FoundStateFile::OtherFormat(found) => Corruption::FileFormat { epoch, found: *found },
        };
        return Err(HandOverError::Corrupt { partition, source });
    }
    Ok((offsets, hubs))
}

/// The last epoch of each partition that a state file names.
async fn last_epochs(
    location: &Location,
    states: &StateFiles,
) -> Result<BTreeMap<TopicPartition, EpochId>, HandOverError> {
    let mut partitions = BTreeSet::new();
    for (epoch, _) in states.list().await? {
        if let FoundStateFile::Present(file) = states.read(epoch).await? {
            partitions.extend(file.partitions.into_keys());
        }
    }
    let Some(mut table) = TableReader::find(location, TELEMETRY).await? else {
        return Ok(BTreeMap::new());
    };
    table.load().await?;
    let mut epochs = BTreeMap::new();
    for partition in partitions {
        if let Some(version) = table.transaction(&partition.app_id()).await? {
            epochs.insert(partition, EpochId::try_from(version)?);
        }
    }
    Ok(epochs)
}

/// Puts what the last epochs owe into the side tables, and gives the states.
async fn recover(
    lake: &mut Lake,
    location: &Location,
) -> Result<BTreeMap<TopicPartition, Resumption>, HandOverError> {
    let states = StateFiles::open(location)?;
    let partitions: Vec<_> = last_epochs(location, &states).await?.into_keys().collect();
    lake.refresh().await?;
    let mut known = BTreeMap::new();
    for (partition, recovered) in partitions.iter().zip(lake.recover(&partitions).await?) {
        match recovered {
            Recovered::Fresh => {}
            Recovered::Resumed(last) => {
                known.insert(partition.clone(), *last);
            }
            Recovered::Corrupt(source) => {
                return Err(HandOverError::Corrupt { partition: partition.clone(), source });
            }
        }
    }
    Ok(known)
}

fn print(
    offsets: &BTreeMap<TopicPartition, i64>,
    format: OffsetFormat,
    out: &mut impl Write,
) -> Result<(), HandOverError> {
    match format {
        OffsetFormat::Text => {
            for (partition, offset) in offsets {
                writeln!(out, "{partition}\t{offset}")?;
            }
        }
        OffsetFormat::Spark => {
            let mut topics: BTreeMap<&str, BTreeMap<String, i64>> = BTreeMap::new();
            for (TopicPartition { topic, partition }, offset) in offsets {
                topics.entry(topic).or_default().insert(partition.to_string(), *offset);
            }
            writeln!(out, "{}", serde_json::to_string(&topics)?)?;
        }
    }
    Ok(())
}

/// `lake take-over`: aggregators go on where a Spark job has come to by its checkpoint.
///
/// # Errors
/// See [`HandOverError`]. The lake is the job's as before, unless the storage failed in between: then the same command goes on.
pub async fn take_over(
    settings: &Settings,
    checkpoint: &str,
    now: ProcessingTime,
    nonce: Nonce,
    out: &mut impl Write,
) -> Result<(), HandOverError> {
    let (location, before) = look(settings).await?;
    let Some(before) = before else { return Err(HandOverError::NotHandedOver) };
    if before.to != SPARK && before.to != IN_BETWEEN {
        return Err(HandOverError::Stranger { to: before.to });
    }
    // As it was; what a take-over has left that was cut off becomes the job's again, as it was before that one.
    let back = HandedOver { to: SPARK.to_owned(), at_ms: before.at_ms };
    // A job that is at work is told before it runs into the mark.
    if let Err(error) = SparkCheckpoint::read(&settings.lake, checkpoint).await {
        if before.to == IN_BETWEEN {
            mark(&location, Some(&back)).await?;
        }
        return Err(error.into());
    }
    let at_ms = before.at_ms;
    let between = HandedOver { to: IN_BETWEEN.to_owned(), at_ms };
    if !mark(&location, Some(&between)).await? {
        return Err(HandOverError::Restless);
    }
    let taken = take_marked(settings, &location, checkpoint, (now, nonce, at_ms)).await;
    match taken {
        Ok(taken) => {
            if !mark(&location, None).await? {
                return Err(HandOverError::Restless);
            }
            tell(&taken, out)
        }
        Err(error) => {
            if !matches!(error, HandOverError::Lake(_)) {
                mark(&location, Some(&back)).await?;
            }
            Err(error)
        }
    }
}

/// What came of a take-over.
struct Taken {
    batch: u64,
    partitions: BTreeMap<TopicPartition, Adopted>,
    others: BTreeMap<TopicPartition, i64>,
    owed: usize,
}

async fn take_marked(
    settings: &Settings,
    location: &Location,
    checkpoint: &str,
    (now, nonce, at_ms): (ProcessingTime, Nonce, Option<i64>),
) -> Result<Taken, HandOverError> {
    // After the mark: no batch can come now.
    let spark = SparkCheckpoint::read(&settings.lake, checkpoint).await?;
    let mut lake = Lake::open_to_take_over(&settings.lake).await?;
    let mut known = recover(&mut lake, location).await?;
    check_job(settings, location, &spark, at_ms, &known).await?;
    let core = settings.core();
    let last_epoch = known.values().map(|last| last.epoch).max();
    let mut partitions = BTreeMap::new();
    for (partition, until) in &spark.offsets {
        let from = known.get(partition).map(|last| last.next_offset.0);
        if let Some(from) = from.filter(|from| from > until) {
            let partition = partition.clone();
            return Err(HandOverError::Behind { partition, found: *until, known: from });
        }
        let state = match known.get_mut(partition) {
            Some(last) => {
                let mut state = std::mem::replace(&mut last.state, PartitionState::new(&core));
                state.change_rules(&core.rules);
                state
            }
            None => PartitionState::new(&core),
        };
        partitions.insert(partition.clone(), Adopted::new(from, *until, state));
    }
    // Rows of a hub's topic have positions in place of offsets.
    let others = known.iter().filter(|(_, last)| !last.is_hub);
    let others = others.filter(|(partition, _)| !partitions.contains_key(*partition));
    let others = others.map(|(partition, last)| (partition.clone(), last.next_offset.0)).collect();
    let mut adoption = Adoption { partitions, others, settings: &core, now, since_ms: at_ms };
    adoption.run(location).await?;
    let epoch = EpochId::after(last_epoch, nonce)?;
    let Adoption { partitions, others, .. } = adoption;
    let (commit, owed) = commit_of(epoch, &partitions, &mut known)?;
    lake.begin_commit(commit).await?;
    lake.committed().await.1?;
    Ok(Taken { batch: spark.batch, partitions, others, owed })
}

/// Fails if the checkpoint is not that of the job which has the lake: what another one has read would count as repeats.
async fn check_job(
    settings: &Settings,
    location: &Location,
    spark: &SparkCheckpoint,
    at_ms: Option<i64>,
    known: &BTreeMap<TopicPartition, Resumption>,
) -> Result<(), HandOverError> {
    let kinds = TopicKind::by_topic(&settings.kafka);
    let is_read = |topic: &str| kinds.get(topic).is_some_and(|kind| *kind != TopicKind::Hub);
    if let Some(unread) = spark.offsets.keys().find(|partition| !is_read(&partition.topic)) {
        return Err(HandOverError::UnreadTopic { topic: unread.topic.clone() });
    }
    // One that has written before an earlier hand-over says nothing of this one.
    let job = mark::job(location).await?.unwrap_or_default();
    let is_of_this = at_ms.is_none_or(|at| job.began == Some(at.to_string()));
    if let Some(expected) = job.checkpoint.filter(|_| is_of_this) {
        let found = spark.id.clone();
        return match expected == found {
            true => Ok(()),
            false => Err(HandOverError::OtherCheckpoint { expected, found }),
        };
    }
    for (partition, found) in &spark.offsets {
        let known = known.get(partition).map_or(0, |last| last.next_offset.0);
        if *found != known {
            let (partition, found) = (partition.clone(), *found);
            return Err(HandOverError::NothingWritten { partition, found, known });
        }
    }
    Ok(())
}

/// One epoch without rows that carries the states. Gives also how many changes of alerts nobody has got yet.
fn commit_of(
    epoch: EpochId,
    partitions: &BTreeMap<TopicPartition, Adopted>,
    known: &mut BTreeMap<TopicPartition, Resumption>,
) -> Result<(EpochCommit, usize), HandOverError> {
    let mut entries = BTreeMap::new();
    let mut owed = 0;
    for (partition, adopted) in partitions {
        let (alerts, owed_to, book, watch, is_hub) = match known.remove(partition) {
            Some(last) => (last.alerts, last.owed_to, last.book, last.watch, last.is_hub),
            None => (Vec::new(), BTreeMap::new(), AlertBook::default(), None, false),
        };
        owed += alerts.len();
        let entry = PartitionEpoch {
            next_offset: Offset(adopted.until),
            // The job keeps no marks of records: a topic that was made anew meanwhile is not noticed.
            last_record: None,
            state: SavedState::Whole(Box::new(adopted.state.clone())),
            rows: PendingRows::default(),
            alerts,
            owed_to,
            book,
            watch,
            is_hub,
        };
        entries.insert(partition.clone(), entry);
    }
    let names = || partitions.keys().cloned();
    let commit = EpochCommit {
        epoch,
        readings: None,
        file: serde_json::to_vec(&EpochFile::new(epoch, entries))?,
        files: names().map(|partition| (partition, Vec::new())).collect(),
        rows: names().map(|partition| (partition, PendingRows::default())).collect(),
        current: Vec::new(),
    };
    Ok((commit, owed))
}

fn tell(taken: &Taken, out: &mut impl Write) -> Result<(), HandOverError> {
    for (partition, adopted) in &taken.partitions {
        let counts = adopted.counts;
        writeln!(
            out,
            "{partition}: on from offset {}; the job has written {} rows, {} late readings and {} dead letters, and {} offsets have no row",
            adopted.until, counts.counted, counts.late, counts.dead_letters, counts.duplicates
        )?;
    }
    for (partition, offset) in &taken.others {
        writeln!(out, "{partition}: on from offset {offset}; the job does not read it")?;
    }
    if taken.owed > 0 {
        writeln!(
            out,
            "{} changes of alerts from before the job are owed: the aggregators send them",
            taken.owed
        )?;
    }
    writeln!(out, "taken over after batch {} of the job: start the aggregators", taken.batch)?;
    Ok(())
}

#[cfg(test)]
mod tests;
