//! Partitions that come and go while others are read on (`kafka.assignment = "cooperative-sticky"`).
//!
//! What goes is committed before it is given back, so that the next owner begins where this one ended. If the commit
//! fails or comes late, the next owner begins at the epoch before, and one of the two commits is refused. What comes is
//! recovered from the lake while the epoch of the others is running. Whatever does not fit this scheme (a second change
//! before the first is through, a failure of the storage) takes the path of a restart.

use std::time::Instant;

use aggregator_core::checkpoint::TopicPartition;
use metrics::{counter, gauge};
use shared_proto::model::MachineId;
use tracing::{error, info};

use super::{Command, HealthStage, Pipeline, PipelineError, Position, Round, Stage, names, now};
use crate::counting::Counting;
use crate::sink::commit::Recovered;
use crate::sink::delta::LakeError;

impl Pipeline {
    /// The group gave partitions besides those that are here.
    pub(super) async fn add(&mut self, round: Round, partitions: Vec<TopicPartition>) {
        info!(partitions = partitions.len(), "the group gave partitions");
        self.lost_races = 0;
        let is_running = matches!(self.stage, Stage::Running { .. }) && self.joining.is_empty();
        self.assigned.extend(partitions.iter().cloned());
        if let Stage::Running { round: current, .. } = &mut self.stage {
            *current = round;
        }
        if is_running && partitions.is_empty() {
            return;
        }
        let is_drain = self.parts.settings.trigger.available_now;
        self.is_drained = self.assigned.is_empty() && is_drain;
        // A drain has one list of goals, for all that it was given.
        if !is_running || is_drain {
            self.begin_anew(round);
            return;
        }
        // The tables are with the commit that runs; if it fails, all are taken anew.
        self.settle().await;
        if !matches!(self.stage, Stage::Running { .. }) {
            return;
        }
        match self.recover_besides(&partitions).await {
            Ok(recovered) => {
                let (in_service, plan) = self.take_into_service(partitions, recovered);
                self.joining = in_service;
                self.bury_overflow();
                let Stage::Running { assignment, .. } = self.stage else { return };
                let is_extension = true;
                self.parts.source.send(Command::Assign { round, assignment, plan, is_extension });
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Reads what others have committed without losing sight of what is in service here.
    async fn recover_besides(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Recovered>, LakeError> {
        self.parts.lake.refresh().await?;
        if let Stage::Running { counting, .. } = &self.stage {
            let known = counting.in_service();
            let known = known.map(|partition| (&partition.id, partition.known));
            self.parts.lake.check_ownership(known).await?;
        }
        self.recover_partitions(partitions).await
    }

    /// Tells operators what is in service.
    pub(super) fn show_partitions(&self) {
        let Stage::Running { counting, .. } = &self.stage else { return };
        let partitions: Vec<String> =
            counting.in_service().map(|partition| partition.id.to_string()).collect();
        gauge!(names::PARTITIONS).set(partitions.len() as f64);
        self.parts.health.update(|status| {
            status.stage = HealthStage::Running;
            status.partitions = partitions;
        });
    }

    /// Partitions that were recovered are read from here on.
    pub(super) fn join(&mut self, positions: &[Position]) {
        let joining = std::mem::take(&mut self.joining);
        let Stage::Running { counting, .. } = &mut self.stage else { return };
        for (partition, position) in joining.into_iter().zip(positions) {
            counting.add(position.slot, partition);
            begin_at(counting, position, &self.group);
        }
        // They may have dead letters already.
        counting.mark_dirty();
        counter!(names::ASSIGNMENTS_TOTAL).increment(1);
        info!(partitions = positions.len(), "reading of more partitions begins");
        self.show_partitions();
    }

    /// The group wants partitions back.
    pub(super) async fn remove(
        &mut self,
        round: Round,
        partitions: &[TopicPartition],
    ) -> Result<(), PipelineError> {
        info!(partitions = partitions.len(), "the group wants partitions back");
        self.lost_races = 0;
        self.commit_to_the_end().await?;
        self.assigned.retain(|partition| !partitions.contains(partition));
        let is_plain = matches!(self.stage, Stage::Running { .. })
            && self.joining.is_empty()
            && !self.assigned.is_empty();
        if is_plain && let Stage::Running { round: current, counting, .. } = &mut self.stage {
            *current = round;
            counting.give_up(partitions);
            self.parts.desk.forget(partitions);
            self.forget_corrupt(partitions);
            self.show_partitions();
        } else {
            self.begin_anew(round);
        }
        self.parts.source.send(Command::Release(round));
        Ok(())
    }

    fn forget_corrupt(&self, partitions: &[TopicPartition]) {
        self.parts.health.update(|status| {
            status.corrupt_partitions.retain(|text| {
                !partitions.iter().any(|partition| text.starts_with(&format!("{partition}: ")))
            });
        });
    }

    /// The path of a restart, for all partitions that are here now.
    fn begin_anew(&mut self, round: Round) {
        self.parts.source.send(Command::Halt);
        self.drop_work();
        if self.assigned.is_empty() && !matches!(self.stage, Stage::Idle) {
            self.idle_since = Instant::now();
        }
        self.stage = Stage::Recovering { round, retry_at: Instant::now() };
        self.parts.health.update(|status| status.stage = HealthStage::Recovering);
    }
}

/// A partition is read from here on.
pub(super) fn begin_at(counting: &mut Counting, position: &Position, group: &MachineId) {
    let partition = &mut counting.partitions[position.slot];
    let is_fresh = partition.known.is_none();
    partition.next_offset = position.offset;
    if is_fresh {
        // From here on the lake knows where this partition began.
        counting.mark_dirty();
    }
    if let Some(gap) = &position.gap {
        error!(partition = %position.partition, ?gap, "records are missing in kafka");
        counting.handle_gap(position.slot, gap, group, now());
    }
}
