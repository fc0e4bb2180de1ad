//! What commits together in one epoch, and what a start makes of a half-finished one.
//!
//! # Steps of an epoch
//! 1. The state file `_state/<epoch>-<nonce>.json` ([`EpochFile`]) is written and synced: for each Kafka partition of
//!    the epoch its next offset, its state, the rows of the side tables, the open alerts and the changes of alerts not delivered yet. The state is whole, or
//!    the changes since the epoch before together with the names of the files that hold the rest ([`SavedState`]).
//! 2. One commit on `telemetry` carries the rows and, for each of these partitions, a `txn` action of
//!    [`TopicPartition::app_id`] with the version [`EpochId::version`]. **This commit decides.**
//! 3. For each side table with rows one commit carries them with the `txn` of the partitions they came from.
//! 4. The alerts leave. Those not delivered yet stand in the file of the next epoch again.
//!
//! Step 2 of the next epoch must wait for step 3 of this one: else the rows of a side table have no file that names
//! them.
//!
//! # After a crash
//! [`resolve`] looks at one partition, because the partitions of an instance may have been other instances' before and
//! then have their last epochs in different files. Before step 2 the epoch never was: the `txn` still names the epoch
//! before, its file is still there. After step 2 the file tells what step 3 has left undone. Alerts of the file are
//! sent again in any case: a repeat has the same id.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::alert::{self, AlertBook, AlertEvent};
use crate::gaps::SavedWatch;
use crate::partition::{PartitionState, StateChanges};
use crate::rows::{
    DeadLetterRow, LateReadingRow, MachineEventRow, Offset, OutcomeRow, WaveformRow,
};
use crate::window::AnomalyRow;

/// Number of the form of a state file.
pub const FILE_FORMAT: u32 = 3;
/// The oldest that is still read. 2: findings instead of changes of alerts, no open alerts, four side tables.
pub const FILE_FORMAT_OLDEST: u32 = 2;

/// Whether a state file of this format can be read.
#[must_use]
pub const fn is_readable(format: u32) -> bool {
    format >= FILE_FORMAT_OLDEST && format <= FILE_FORMAT
}

/// Most files that a state is put together from, beside the one that names them.
pub const CHAIN_MAX: usize = 100;
/// Bits of an epoch's nonce; the other 33 of a positive `i64` count epochs (27 years at 10 a second).
pub const NONCE_BITS: u32 = 30;
/// Highest epoch counter.
pub const COUNTER_MAX: u64 = (1 << (63 - NONCE_BITS)) - 1;

/// Name of an epoch: a counter that increases, and a nonce that keeps two owners of one partition apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct EpochId(i64);

/// A number that chance has made, so that two owners never write the same file. Only the low [`NONCE_BITS`] bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub u64);

/// Why a number is not an epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// Not positive, or counter 0.
    #[error(
        "{version} is not the version of an epoch: the table's txn was written by something else"
    )]
    NotAnEpoch {
        /// Found.
        version: i64,
    },
    /// All counters used.
    #[error("epoch counter {COUNTER_MAX} is the last: start with a new lake folder")]
    Exhausted,
}

impl EpochId {
    /// The first epoch of a lake.
    #[must_use]
    pub fn first(nonce: Nonce) -> Self {
        Self::encode(1, nonce)
    }

    /// An epoch above `last`, the highest that any partition of this instance has seen.
    ///
    /// # Errors
    /// The counter is at its end.
    pub fn after(last: Option<Self>, nonce: Nonce) -> Result<Self, EpochError> {
        match last {
            None => Ok(Self::first(nonce)),
            Some(last) if last.counter() >= COUNTER_MAX => Err(EpochError::Exhausted),
            Some(last) => Ok(Self::encode(last.counter() + 1, nonce)),
        }
    }

    /// The version of a `txn` action.
    #[must_use]
    pub const fn version(self) -> i64 {
        self.0
    }

    /// Which epoch, from 1.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self.0.cast_unsigned() >> NONCE_BITS
    }

    /// The part that chance has made.
    #[must_use]
    pub const fn nonce(self) -> Nonce {
        Nonce(self.0.cast_unsigned() & NONCE_MASK)
    }

    /// Name of the state file, `<epoch>-<nonce>.json`, padded so that names sort like epochs.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("{:010}-{:08x}.json", self.counter(), self.nonce().0)
    }

    /// The epoch of a name that [`Self::file_name`] made.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (counter, nonce) = name.strip_suffix(".json")?.split_once('-')?;
        let counter: u64 = counter.parse().ok()?;
        let nonce = u64::from_str_radix(nonce, 16).ok()?;
        if counter == 0 || counter > COUNTER_MAX || nonce > NONCE_MASK {
            return None;
        }
        let epoch = Self::encode(counter, Nonce(nonce));
        (epoch.file_name() == name).then_some(epoch)
    }

    fn encode(counter: u64, Nonce(nonce): Nonce) -> Self {
        Self(((counter << NONCE_BITS) | (nonce & NONCE_MASK)).cast_signed())
    }
}

const NONCE_MASK: u64 = (1 << NONCE_BITS) - 1;

impl TryFrom<i64> for EpochId {
    type Error = EpochError;

    fn try_from(version: i64) -> Result<Self, EpochError> {
        if version >> NONCE_BITS < 1 {
            return Err(EpochError::NotAnEpoch { version });
        }
        Ok(Self(version))
    }
}

impl From<EpochId> for i64 {
    fn from(epoch: EpochId) -> i64 {
        epoch.0
    }
}

/// The state file's name without its suffix.
impl fmt::Display for EpochId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:010}-{:08x}", self.counter(), self.nonce().0)
    }
}

/// A partition of a Kafka topic. Written `<topic>/<partition>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicPartition {
    /// The topic.
    pub topic: String,
    /// The partition, from 0.
    pub partition: i32,
}

/// A text that is not `<topic>/<partition>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a topic and a partition, such as temperature/0")]
pub struct NotATopicPartition {
    /// The text.
    pub text: String,
}

impl TopicPartition {
    /// The application id of the partition's `txn` actions, the same in every table.
    #[must_use]
    pub fn app_id(&self) -> String {
        format!("cloud-aggregator/{self}")
    }

    /// The partition of an application id that [`Self::app_id`] made.
    #[must_use]
    pub fn from_app_id(app_id: &str) -> Option<Self> {
        Self::try_from(app_id.strip_prefix("cloud-aggregator/")?.to_owned()).ok()
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.topic, self.partition)
    }
}

impl TryFrom<String> for TopicPartition {
    type Error = NotATopicPartition;

    fn try_from(text: String) -> Result<Self, NotATopicPartition> {
        let parts = text.rsplit_once('/').and_then(|(topic, number)| {
            let partition: i32 = number.parse().ok()?;
            (!topic.is_empty() && partition >= 0 && partition.to_string() == number)
                .then(|| Self { topic: topic.to_owned(), partition })
        });
        parts.ok_or(NotATopicPartition { text })
    }
}

impl From<TopicPartition> for String {
    fn from(partition: TopicPartition) -> String {
        partition.to_string()
    }
}

/// A table that follows `telemetry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SideTable {
    /// Rows of closed windows.
    Anomalies,
    /// Readings behind the retention of closed windows.
    LateReadings,
    /// What happened to machines and devices.
    MachineEvents,
    /// What can never be processed.
    DeadLetters,
    /// Changes of alerts.
    Alerts,
    /// What people found.
    Outcomes,
    /// Raw samples around trips.
    Waveforms,
}

impl SideTable {
    /// All of them, in the order in which they are committed: what a row speaks of stands before it.
    pub const ALL: [Self; 7] = [
        Self::MachineEvents,
        Self::Waveforms,
        Self::Anomalies,
        Self::Alerts,
        Self::Outcomes,
        Self::LateReadings,
        Self::DeadLetters,
    ];

    /// Name of the table's folder.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anomalies => "anomalies",
            Self::LateReadings => "late_readings",
            Self::MachineEvents => "machine_events",
            Self::DeadLetters => "dead_letters",
            Self::Alerts => "alerts",
            Self::Outcomes => "outcomes",
            Self::Waveforms => "waveforms",
        }
    }
}

/// Rows of the side tables that one partition gave in one epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingRows {
    /// For `anomalies`.
    pub anomalies: Vec<AnomalyRow>,
    /// For `late_readings`.
    pub late_readings: Vec<LateReadingRow>,
    /// For `machine_events`.
    pub machine_events: Vec<MachineEventRow>,
    /// For `dead_letters`.
    pub dead_letters: Vec<DeadLetterRow>,
    /// For `alerts`: all changes of this epoch, whether people are told or not.
    pub alerts: Vec<AlertEvent>,
    /// For `outcomes`.
    pub outcomes: Vec<OutcomeRow>,
    /// For `waveforms`.
    pub waveforms: Vec<WaveformRow>,
}

impl PendingRows {
    /// Rows for one table.
    #[must_use]
    pub fn count(&self, table: SideTable) -> usize {
        match table {
            SideTable::Anomalies => self.anomalies.len(),
            SideTable::LateReadings => self.late_readings.len(),
            SideTable::MachineEvents => self.machine_events.len(),
            SideTable::DeadLetters => self.dead_letters.len(),
            SideTable::Alerts => self.alerts.len(),
            SideTable::Outcomes => self.outcomes.len(),
            SideTable::Waveforms => self.waveforms.len(),
        }
    }

    /// Tables that get rows: those that step 3 commits.
    #[must_use]
    pub fn tables(&self) -> BTreeSet<SideTable> {
        SideTable::ALL.into_iter().filter(|table| self.count(*table) > 0).collect()
    }
}

/// A partition's state in a state file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedState {
    /// All of it.
    Whole(Box<PartitionState>),
    /// What has changed since the epoch before.
    Changes {
        /// The epochs whose files hold the rest, in order: the first has it whole, the others have changes.
        files: Vec<EpochId>,
        /// The changes.
        changes: Box<StateChanges>,
    },
}

impl SavedState {
    /// Epochs whose files are needed beside this one.
    #[must_use]
    pub fn files(&self) -> &[EpochId] {
        match self {
            Self::Whole(_) => &[],
            Self::Changes { files, .. } => files,
        }
    }
}

/// Puts a state together from what `epoch` has of it and from what the files that it names have, in their order.
///
/// # Errors
/// A file does not have what was said of it.
pub fn restore_state(
    epoch: EpochId,
    last: SavedState,
    files: impl IntoIterator<Item = (EpochId, SavedState)>,
) -> Result<PartitionState, Corruption> {
    let mut whole: Option<PartitionState> = None;
    for (epoch, saved) in files.into_iter().chain([(epoch, last)]) {
        let damaged = |detail: String| Corruption::FileUnreadable { epoch, detail };
        match (saved, &mut whole) {
            (SavedState::Whole(state), _) => whole = Some(*state),
            (SavedState::Changes { changes, .. }, Some(state)) => {
                state.apply(*changes).map_err(|error| damaged(error.to_string()))?;
            }
            (SavedState::Changes { .. }, None) => {
                return Err(damaged("it has changes where a whole state should be".to_owned()));
            }
        }
    }
    whole.ok_or(Corruption::FileMissing { epoch })
}

/// Which files hold a partition's state, and when it is time to save it whole again.
#[derive(Clone, Debug, Default)]
pub struct StateBook {
    files: Vec<EpochId>,
    whole_bytes: usize,
    changes_bytes: usize,
}

impl StateBook {
    /// Whether the next epoch may save changes alone.
    #[must_use]
    pub fn takes_changes(&self) -> bool {
        !self.files.is_empty()
            && self.files.len() < CHAIN_MAX
            && self.changes_bytes <= self.whole_bytes
    }

    /// Epochs whose files hold the state so far.
    #[must_use]
    pub fn files(&self) -> &[EpochId] {
        &self.files
    }

    /// Notes that an epoch saves the state whole.
    pub fn save_whole(&mut self, epoch: EpochId, bytes: usize) {
        *self = Self { files: vec![epoch], whole_bytes: bytes, changes_bytes: 0 };
    }

    /// Notes that an epoch saves changes. Its file is not needed later if they are empty.
    pub fn save_changes(&mut self, epoch: EpochId, changes: &StateChanges, bytes: usize) {
        if !changes.is_empty() {
            self.files.push(epoch);
            self.changes_bytes += bytes;
        }
    }
}

/// A record as the broker showed it: a topic that is made anew has another one at the same offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordMark {
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since 1970 as the broker or the producer stamped it.
    pub stamped_ms: i64,
}

/// Which channels have not taken a change of an alert yet, by the id of the change. One that is not there is owed to all.
pub type OwedTo = BTreeMap<String, BTreeSet<String>>;

/// What one epoch knows of one partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionEpoch {
    /// First offset that is not part of the epoch.
    pub next_offset: Offset,
    /// The record before it, if one was read.
    #[serde(default)]
    pub last_record: Option<RecordMark>,
    /// Windows, watermarks, high-water marks behind that offset.
    pub state: SavedState,
    /// Rows of this epoch for the side tables.
    pub rows: PendingRows,
    /// Changes of alerts, of this epoch and of earlier ones, that were not delivered when it was written. Files of versions that
    /// knew findings alone have those.
    #[serde(deserialize_with = "alert::read_events")]
    pub alerts: Vec<AlertEvent>,
    /// To whom they are owed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub owed_to: OwedTo,
    /// The alerts that are open, and what is remembered of those that are over.
    #[serde(default, skip_serializing_if = "AlertBook::is_empty")]
    pub book: AlertBook,
    /// The watch over the devices' records, where it goes with this partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Box<SavedWatch>>,
    /// Whether its messages hold several records: then rows have positions (see [`crate::hub`]) in place of offsets.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_hub: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// A state file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochFile {
    /// [`FILE_FORMAT`].
    pub format: u32,
    /// The epoch whose file it is.
    pub epoch: EpochId,
    /// The partitions whose `txn` goes into the epoch's commit.
    pub partitions: BTreeMap<TopicPartition, PartitionEpoch>,
}

/// [`SavedState`] on its way into a file.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedStateRef<'a> {
    /// All of it.
    Whole(&'a PartitionState),
    /// What has changed since the epoch before.
    Changes {
        /// The epochs whose files hold the rest.
        files: &'a [EpochId],
        /// The changes.
        changes: &'a StateChanges,
    },
}

/// [`PartitionEpoch`] on its way into a file.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionEpochRef<'a, S> {
    /// First offset that is not part of the epoch.
    pub next_offset: Offset,
    /// The record before it, if one was read.
    pub last_record: Option<RecordMark>,
    /// The JSON of a [`SavedState`].
    pub state: S,
    /// Rows of this epoch for the side tables.
    pub rows: &'a PendingRows,
    /// Changes of alerts not delivered.
    pub alerts: Vec<&'a AlertEvent>,
    /// To whom they are owed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub owed_to: &'a OwedTo,
    /// The alerts that are open, and what is remembered of those that are over.
    #[serde(skip_serializing_if = "AlertBook::is_empty")]
    pub book: &'a AlertBook,
    /// The watch over the devices' records, where it goes with this partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<&'a SavedWatch>,
    /// Whether its messages hold several records.
    #[serde(skip_serializing_if = "is_false")]
    pub is_hub: bool,
}

/// [`EpochFile`] on its way into a file: the same bytes, without taking the states away from who counts. `P` is a map from
/// [`TopicPartition`] to [`PartitionEpochRef`], which may make each entry when it is written.
#[derive(Clone, Debug, Serialize)]
pub struct EpochFileRef<P> {
    /// [`FILE_FORMAT`].
    pub format: u32,
    /// The epoch whose file it is.
    pub epoch: EpochId,
    /// The partitions whose `txn` goes into the epoch's commit.
    pub partitions: P,
}

impl EpochFile {
    /// A file of this version.
    #[must_use]
    pub fn new(epoch: EpochId, partitions: BTreeMap<TopicPartition, PartitionEpoch>) -> Self {
        Self { format: FILE_FORMAT, epoch, partitions }
    }
}

/// What the tables say of one partition: the last `txn` version of its application id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundTransactions {
    /// In `telemetry`.
    pub telemetry: Option<EpochId>,
    /// In the side tables; a table without one is absent.
    pub side_tables: BTreeMap<SideTable, EpochId>,
}

/// What was found under the name of the file that `telemetry` names.
#[derive(Clone, Copy, Debug)]
pub enum FoundFile<'a> {
    /// Nothing, or no file is named.
    Absent,
    /// A file that cannot be read, and why.
    Unreadable(&'a str),
    /// A file of another version.
    OtherFormat(u32),
    /// The file.
    Present(&'a EpochFile),
}

/// How to go on with one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Never seen: start with an empty state at the configured first offset.
    Fresh,
    /// Commit the rows of `roll_forward` from the file, send its alerts, then take its state and read on from
    /// `next_offset`. Nothing may be committed for the partition before the rows are.
    Resume {
        /// The epoch that holds.
        epoch: EpochId,
        /// Where to read on.
        next_offset: Offset,
        /// Side tables whose rows of that epoch are missing.
        roll_forward: BTreeSet<SideTable>,
    },
    /// Nothing can be said without losing or doubling rows: a person must act, the partition stays unread.
    Corrupt(Corruption),
}

/// Why a partition cannot be resumed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// The file that `telemetry` names is gone.
    #[error("state file {} is missing: restore it from a backup of the lake", epoch.file_name())]
    FileMissing {
        /// The epoch named.
        epoch: EpochId,
    },
    /// The file cannot be read.
    #[error("state file {} cannot be read: {detail}: restore it from a backup of the lake", epoch.file_name())]
    FileUnreadable {
        /// The epoch named.
        epoch: EpochId,
        /// What the reader said.
        detail: String,
    },
    /// Written by another version.
    #[error("state file {} has format {found}, this version reads {FILE_FORMAT_OLDEST} to {FILE_FORMAT}: use the version that wrote it", epoch.file_name())]
    FileFormat {
        /// The epoch named.
        epoch: EpochId,
        /// Found.
        found: u32,
    },
    /// The content is another epoch's.
    #[error("state file {} holds epoch {found}: restore it from a backup of the lake", epoch.file_name())]
    FileOfOtherEpoch {
        /// The epoch named.
        epoch: EpochId,
        /// Found.
        found: EpochId,
    },
    /// The file does not know the partition.
    #[error("state file {} does not hold {partition}: restore it from a backup of the lake", epoch.file_name())]
    PartitionMissing {
        /// The epoch named.
        epoch: EpochId,
        /// The partition looked for.
        partition: TopicPartition,
    },
    /// A side table has an epoch that `telemetry` does not have (yet): `telemetry` was set back or replaced.
    #[error(
        "table {} has epoch {found} of {partition}, telemetry does not: restore both tables from the same moment",
        table.as_str()
    )]
    SideTableAhead {
        /// The table.
        table: SideTable,
        /// Its epoch.
        found: EpochId,
        /// The partition.
        partition: TopicPartition,
    },
}

/// Decides how to go on with `partition`, from what its tables and the file named by `telemetry` say.
#[must_use]
pub fn resolve(
    partition: &TopicPartition,
    found: &FoundTransactions,
    file: FoundFile<'_>,
) -> Recovery {
    match examine(partition, found, file) {
        Ok(recovery) => recovery,
        Err(corruption) => Recovery::Corrupt(corruption),
    }
}

fn examine(
    partition: &TopicPartition,
    found: &FoundTransactions,
    file: FoundFile<'_>,
) -> Result<Recovery, Corruption> {
    let ahead = found.side_tables.iter().find(|(_, epoch)| Some(**epoch) > found.telemetry);
    if let Some((&table, &epoch)) = ahead {
        let partition = partition.clone();
        return Err(Corruption::SideTableAhead { table, found: epoch, partition });
    }
    let Some(epoch) = found.telemetry else { return Ok(Recovery::Fresh) };
    let file = match file {
        FoundFile::Absent => return Err(Corruption::FileMissing { epoch }),
        FoundFile::Unreadable(detail) => {
            return Err(Corruption::FileUnreadable { epoch, detail: detail.to_owned() });
        }
        FoundFile::OtherFormat(found) => return Err(Corruption::FileFormat { epoch, found }),
        FoundFile::Present(file) => file,
    };
    if !is_readable(file.format) {
        return Err(Corruption::FileFormat { epoch, found: file.format });
    }
    if file.epoch != epoch {
        return Err(Corruption::FileOfOtherEpoch { epoch, found: file.epoch });
    }
    let Some(last) = file.partitions.get(partition) else {
        return Err(Corruption::PartitionMissing { epoch, partition: partition.clone() });
    };
    let mut roll_forward = last.rows.tables();
    roll_forward.retain(|table| owes_rows(found.side_tables.get(table).copied(), epoch));
    Ok(Recovery::Resume { epoch, next_offset: last.next_offset, roll_forward })
}

/// Whether a side table whose last epoch of a partition is `found` still owes the rows of `epoch`. To be asked again
/// before each attempt of a commit in step 3: another owner may have rolled the epoch forward already.
#[must_use]
pub fn owes_rows(found: Option<EpochId>, epoch: EpochId) -> bool {
    found < Some(epoch)
}

/// Another instance has committed for a partition since this one took it over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another instance has committed for {partition}: taking the assignment anew")]
pub struct OwnershipLost {
    /// The partition.
    pub partition: TopicPartition,
}

/// Whether every partition of a commit still stands at the epoch that this instance knows (`None`: no epoch yet).
/// To be asked again before each attempt of the deciding commit.
///
/// # Errors
/// The first partition that has moved.
pub fn check_ownership(
    known: &BTreeMap<TopicPartition, Option<EpochId>>,
    found: &BTreeMap<TopicPartition, EpochId>,
) -> Result<(), OwnershipLost> {
    match known.iter().find(|(partition, epoch)| found.get(*partition) != epoch.as_ref()) {
        Some((partition, _)) => Err(OwnershipLost { partition: partition.clone() }),
        None => Ok(()),
    }
}

/// Whether the state file of `epoch`, which holds `partitions`, may be deleted: each of them stands at a later epoch, whose state
/// is put together without it. `files` has for a partition the file that its `txn` in `telemetry` names and those that this one refers to
/// ([`SavedState::files`]), as they are now; of a partition without them nothing is known, and the file stays.
///
/// The file of a commit that is still to come is later than where its partitions stand, or that commit is refused.
#[must_use]
pub fn is_obsolete<'a>(
    epoch: EpochId,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    files: &BTreeMap<TopicPartition, BTreeSet<EpochId>>,
) -> bool {
    partitions.into_iter().all(|partition| {
        files.get(partition).is_some_and(|files| {
            files.last().is_some_and(|last| epoch < *last) && !files.contains(&epoch)
        })
    })
}

#[cfg(test)]
mod tests;
