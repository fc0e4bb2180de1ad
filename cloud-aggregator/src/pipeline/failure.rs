//! Why the pipeline ends.

use std::time::Duration;

use aggregator_core::checkpoint::EpochError;
use metrics::counter;
use tracing::{error, info, warn};

use super::{Pipeline, Stage, names};
use crate::counting::Imbalance;

/// So many epochs are void in a row for no reason of the group's only when a stranger writes the same partitions.
const LOST_RACES_PLAIN: u32 = 3;

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
    /// The lake is somewhere else.
    #[error("{0}")]
    WrongPlace(String),
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
    /// Some of what was to be drained cannot be read.
    #[error(
        "not all was read that was there at the start: {records} records are committed, and what follows stays unread until a \
         person has acted: {}",
        partitions.join("; ")
    )]
    Corrupt {
        /// Committed by this process.
        records: u64,
        /// The partitions, each with its reason.
        partitions: Vec<String>,
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

impl Pipeline {
    /// What a drain has done, and what it has not.
    pub(super) fn tell_drained(&self) -> Result<(), PipelineError> {
        let records = self.records;
        let partitions = self.parts.health.status().corrupt_partitions;
        if !partitions.is_empty() {
            return Err(PipelineError::Corrupt { records, partitions });
        }
        let open_windows = match &self.stage {
            Stage::Running { counting, .. } => counting.open_windows(),
            Stage::Idle | Stage::Recovering { .. } | Stage::Starting { .. } => 0,
        };
        info!(
            records,
            open_windows,
            "all is read that was there at the start; open windows close when later readings have come"
        );
        Ok(())
    }

    /// Trying again is no use where nothing may be written any more.
    pub(super) fn check_place(&mut self) -> Result<(), PipelineError> {
        self.wrong_place.take().map_or(Ok(()), |text| Err(PipelineError::WrongPlace(text)))
    }

    /// An epoch is void because somebody else has committed for its partitions.
    pub(super) fn note_lost_race(&mut self, text: &str, wait: Duration) {
        counter!(names::LOST_RACES_TOTAL).increment(1);
        self.lost_races += 1;
        if self.lost_races < LOST_RACES_PLAIN {
            warn!(error = text, ?wait, "an epoch is void, its partitions are taken anew");
            return;
        }
        error!(
            error = text,
            ?wait,
            group = self.parts.settings.kafka.group,
            "epochs are void again and again though the group moves nothing: does another kafka.group write into this lake? \
             A lake is for one group"
        );
    }

    /// Tells operators how many alerts are owed.
    pub(super) fn show_owed(&self) {
        let desk = &self.parts.desk;
        self.parts.health.update(|status| {
            status.alerts_owed = desk.len();
            // Asked at every turn of the loop, and nearly always the same.
            if status.alerts_owed_by_channel != *desk.owed_by_channel() {
                status.alerts_owed_by_channel.clone_from(desk.owed_by_channel());
            }
        });
    }
}
