//! Why the pipeline ends.

use std::time::Duration;

use aggregator_core::checkpoint::EpochError;

use crate::counting::Imbalance;

/// Why the pipeline cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A record would be lost or doubled.
    #[error(transparent)]
    Imbalance(#[from] Imbalance),
    /// No epoch is left.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// The state cannot be written.
    #[error("the state cannot be written as JSON")]
    State(#[from] serde_json::Error),
    /// The consumer has ended.
    #[error("kafka consumer: {0}")]
    Source(String),
    /// There is nothing to drain.
    #[error(
        "no partition was given within {} s (trigger.available-now-patience): no broker answers, no topic is there, or other \
         members of the group have them all",
        patience.as_secs()
    )]
    NothingToRead {
        /// The limit.
        patience: Duration,
    },
    /// Stopped before all was read that was there at the start.
    #[error(
        "stopped before all was read that was there at the start; {records} records are committed, the next start goes on"
    )]
    Unfinished {
        /// Committed by this process.
        records: u64,
    },
}
