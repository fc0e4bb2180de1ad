//! Why a storage or a table did not do what was asked.

use std::path::PathBuf;

use aggregator_core::checkpoint::{EpochError, OwnershipLost};
use deltalake::DeltaTableError;
use deltalake::arrow::error::ArrowError;

use super::refusal;
use crate::sink::maintenance::MergeError;

/// Why the lake did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// A folder that cannot be made or written.
    #[error("lake folder {} cannot be written", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A folder that is not there or cannot be read.
    #[error("lake folder {} cannot be read", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A secret's file cannot be read.
    #[error("lake.storage-option-files.{option}: {text}")]
    OptionFile {
        /// Storage option.
        option: String,
        /// What is wrong with its file.
        text: String,
    },
    /// A table cannot be read or written.
    #[error("table {table}{}", refusal::remedy(source))]
    Table {
        /// Name of the table.
        table: String,
        /// What the library says.
        #[source]
        source: Box<DeltaTableError>,
    },
    /// Rows do not fit the table: somebody has changed a column of ours.
    #[error("rows do not fit the columns of table {table}")]
    Columns {
        /// Name of the table.
        table: String,
        /// What the library says.
        #[source]
        source: ArrowError,
    },
    /// A `txn` action under our application id that is none of ours.
    #[error("table {table}")]
    Epoch {
        /// Name of the table.
        table: String,
        /// What is wrong with it.
        #[source]
        source: EpochError,
    },
    /// The tables went with a commit that did not come back.
    #[error("the tables are with a commit that has not ended")]
    CommitGone,
    /// Somebody else has committed for a partition that this instance holds.
    #[error(transparent)]
    Ownership(#[from] OwnershipLost),
    /// The same, found by the commit itself. Also what comes of a commit that was carried out and whose answer was lost.
    #[error(
        "table {table}: a partition of this epoch has a newer one, the assignment is taken anew"
    )]
    Overtaken {
        /// Name of the table.
        table: String,
    },
    /// A state file cannot be read or written.
    #[error("state file {name}{}: {text}", refusal::remedy_of(text))]
    State {
        /// Name of the file.
        name: String,
        /// What is wrong.
        text: String,
    },
    /// A table asks for more than every reader can do.
    #[error(
        "table {table} asks for reader version {reader} and writer version {writer}, maintenance knows 1 and 2: \
         something else has changed it; take that back, or switch maintenance off"
    )]
    Protocol {
        /// Name of the table.
        table: String,
        /// Lowest reader version.
        reader: i32,
        /// Lowest writer version.
        writer: i32,
    },
    /// Files of a table cannot become one.
    #[error("table {table}")]
    Merge {
        /// Name of the table.
        table: String,
        /// Why.
        #[source]
        source: Box<MergeError>,
    },
    /// Rows would be lost or doubled.
    #[error("table {table}: {text}")]
    Rows {
        /// Name of the table.
        table: String,
        /// What does not fit.
        text: String,
    },
    /// A lease cannot be read or written.
    #[error("maintenance lease {name}{}: {text}", refusal::remedy_of(text))]
    Lease {
        /// Name of the file.
        name: String,
        /// What is wrong.
        text: String,
    },
    /// Whoever writes here writes to the wrong place.
    #[error(
        "the lake was moved to {to}: set lake.location to it; `lake copy --reopen` takes the move back"
    )]
    Moved {
        /// The new place.
        to: String,
    },
    /// Another program writes here.
    #[error(
        "the lake was handed over to {to:?}: `lake take-over` takes it back from where that has come to"
    )]
    HandedOver {
        /// Which.
        to: String,
    },
    /// It is nobody's turn.
    #[error("a take-over of the lake has begun and not ended: run `lake take-over` to its end")]
    TakeOverBegun,
    /// Not all of the lake is here yet.
    #[error(
        "this is a copy of {from} that is not finished: `lake copy --final` with that lake's settings ends it"
    )]
    UnfinishedCopy {
        /// What is copied.
        from: String,
    },
    /// The storage did not answer in time.
    #[error("the storage did not answer within {seconds} s (lake.operation-timeout)")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
}

impl LakeError {
    /// Whether the storage works, and the epoch is void because a partition has moved.
    #[must_use]
    pub fn is_lost_race(&self) -> bool {
        match self {
            Self::Ownership(_) | Self::Overtaken { .. } => true,
            Self::Folder { .. }
            | Self::Unreadable { .. }
            | Self::OptionFile { .. }
            | Self::Table { .. }
            | Self::Columns { .. }
            | Self::Epoch { .. }
            | Self::State { .. }
            | Self::CommitGone
            | Self::Protocol { .. }
            | Self::Merge { .. }
            | Self::Rows { .. }
            | Self::Lease { .. }
            | Self::Moved { .. }
            | Self::HandedOver { .. }
            | Self::TakeOverBegun
            | Self::UnfinishedCopy { .. }
            | Self::Timeout { .. } => false,
        }
    }

    /// Whether the settings name a place that is not, or not yet, to be written: trying again is no use.
    #[must_use]
    pub fn is_wrong_place(&self) -> bool {
        matches!(self, Self::Moved { .. } | Self::HandedOver { .. } | Self::UnfinishedCopy { .. })
    }
}
