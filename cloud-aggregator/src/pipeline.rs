//! One loop over everything that happens: records, rebalances, time, outcomes of deliveries, the wish to stop.
//!
//! A failure of the storage, an eager rebalance and a crash take the same path: drop what is not committed, read offsets
//! and state from the lake, go on from there. A cooperative rebalance moves single partitions (`pipeline::cooperative`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aggregator_core::checkpoint::{EpochId, Nonce, TopicPartition};
use aggregator_core::gaps::SavedWatch;
use aggregator_core::{AlertEvent, PartitionState, ProcessingTime};
use metrics::{counter, gauge, histogram};
use shared_proto::model::MachineId;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::alerts::{AlertDesk, Undelivered};
use crate::backoff::{Backoff, random_number};
use crate::causes::describe;
use crate::config::Settings;
use crate::counting::{Counting, Partition, TakenEpoch, Tally};
use crate::gap_watch::{GapDesk, ScanAnswer};
use crate::health::{Health, Stage as HealthStage};
use crate::sink::alert::Outcome;
use crate::sink::commit::{Lake, Recovered, Resumption};
use crate::sink::delta::LakeError;
use crate::source::kafka::Source;
use crate::source::{AssignmentId, Command, Next, Place, Position, Round, SourceEvent, TopicKind};
use crate::telemetry::names;

mod cooperative;
mod failure;
mod owed;

use cooperative::begin_at;
pub use failure::PipelineError;

/// Longest time without a look around.
const TICK_MAX: Duration = Duration::from_secs(1);
/// How often state files are looked through.
const CLEAN_INTERVAL: Duration = Duration::from_secs(600);

enum Stage {
    Idle,
    Recovering { round: Round, retry_at: Instant },
    Starting { round: Round, assignment: AssignmentId, counting: Box<Counting> },
    Running { round: Round, assignment: AssignmentId, counting: Box<Counting> },
}

/// What is left to do when a commit has come back.
struct Committing {
    assignment: AssignmentId,
    alerts: Vec<(TopicPartition, AlertEvent)>,
    offsets: Vec<(TopicPartition, i64)>,
    tally: Tally,
    refused: BTreeMap<&'static str, u64>,
    began: Instant,
}

/// What the pipeline is made of.
pub struct Parts {
    /// The settings.
    pub settings: Arc<Settings>,
    /// The consumer.
    pub source: Arc<Source>,
    /// What it tells.
    pub events: mpsc::Receiver<SourceEvent>,
    /// The tables.
    pub lake: Lake,
    /// Alerts owed.
    pub desk: AlertDesk,
    /// What became of deliveries.
    pub outcomes: mpsc::Receiver<Outcome>,
    /// For operators.
    pub health: Arc<Health>,
    /// Other rules, when the settings have changed.
    pub rules: mpsc::Receiver<Arc<aggregator_core::Settings>>,
    /// Looks for records of devices that are missing, if the settings say so.
    pub gaps: Option<GapDesk>,
    /// Turns true when the process is to stop.
    pub stop: watch::Receiver<bool>,
}

/// The loop and what it knows.
pub struct Pipeline {
    parts: Parts,
    core: Arc<aggregator_core::Settings>,
    kinds: BTreeMap<String, TopicKind>,
    group: MachineId,
    stage: Stage,
    /// What the group gave, also what cannot be resumed.
    assigned: Vec<TopicPartition>,
    /// Recovered and not read yet, besides those in service.
    joining: Vec<Partition>,
    /// Alerts that were given up when more were owed than are kept; the partitions they came from are not in service yet.
    overflow: Vec<Undelivered>,
    backoff: Backoff,
    last_assignment: AssignmentId,
    last_epoch: Option<EpochId>,
    /// Committed by this process.
    records: u64,
    /// The epoch whose commit runs.
    committing: Option<Committing>,
    epoch_since: Option<Instant>,
    ends_asked_at: Option<Instant>,
    /// When alerts that are over were looked for last.
    alerts_looked_at: Instant,
    /// When the last records came.
    batch_at: Instant,
    /// The consumer has not answered yet.
    is_waiting_for_ends: bool,
    /// Ends of the partitions at the start, while only those are to be read.
    goals: Option<Vec<i64>>,
    cleaned_at: Instant,
    /// The start, or when records were last read.
    idle_since: Instant,
    is_drained: bool,
    /// Something was delivered or given up since the last epoch.
    has_outcomes: bool,
    /// The last write failed: that reading works is no sign of health.
    is_write_refused: bool,
    /// Epochs that were void since the group last moved partitions.
    lost_races: u32,
    /// Partitions were read into this lake before.
    is_lake_begun: bool,
    /// Why nothing is to be written here any more.
    wrong_place: Option<String>,
}

impl Pipeline {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let settings = &parts.settings;
        let group = MachineId::new(&settings.kafka.group).unwrap_or_else(|_| {
            MachineId::new("cloud-aggregator").expect("a literal name is valid")
        });
        let core = Arc::new(settings.core());
        show_rules(&parts.health, &core);
        Self {
            core,
            kinds: TopicKind::by_topic(&settings.kafka),
            group,
            stage: Stage::Idle,
            assigned: Vec::new(),
            joining: Vec::new(),
            overflow: Vec::new(),
            backoff: Backoff::new(settings.lake.retry_min, settings.lake.retry_max),
            last_assignment: AssignmentId::default(),
            last_epoch: None,
            records: 0,
            committing: None,
            epoch_since: None,
            ends_asked_at: None,
            alerts_looked_at: Instant::now(),
            batch_at: Instant::now(),
            is_waiting_for_ends: false,
            goals: None,
            cleaned_at: Instant::now(),
            idle_since: Instant::now(),
            is_drained: false,
            has_outcomes: false,
            is_write_refused: false,
            lost_races: 0,
            is_lake_begun: false,
            wrong_place: None,
            parts,
        }
    }

    /// Runs until the process is to stop, or all is read that was there at the start.
    ///
    /// # Errors
    /// Going on would lose or double records, or the consumer has ended.
    pub async fn run(mut self) -> Result<(), PipelineError> {
        while !self.is_finished() {
            let (wait, has_room) = (self.wait(), self.has_room() && !self.is_drained);
            tokio::select! {
                biased;
                () = wait_for_stop(&mut self.parts.stop) => break,
                outcome = self.parts.outcomes.recv() => self.handle_outcome(outcome),
                (epoch, result) = self.parts.lake.committed() => self.handle_committed(epoch, result),
                answer = next_answer(&mut self.parts.gaps) => self.handle_scanned(answer),
                Some(rules) = self.parts.rules.recv() => self.change_rules(rules),
                event = self.parts.events.recv(), if has_room => match event {
                    Some(event) => self.handle_event(event).await?,
                    None => return Err(PipelineError::Source("its thread has ended".to_owned())),
                },
                () = tokio::time::sleep(wait) => {}
            }
            self.poll().await?;
            self.check_place()?;
            self.check_patience()?;
        }
        self.parts.health.update(|status| status.stage = HealthStage::Stopping);
        self.commit_to_the_end().await?;
        if self.is_drained {
            self.tell_drained()?;
            self.await_deliveries().await;
        }
        if self.has_outcomes
            && let Stage::Running { counting, .. } = &mut self.stage
        {
            // The last state file still owes what has been delivered since: the next start would send it again.
            counting.mark_dirty();
        }
        self.commit_to_the_end().await?;
        self.check_place()?;
        if self.parts.settings.trigger.available_now && !self.is_drained {
            return Err(PipelineError::Unfinished { records: self.records });
        }
        Ok(())
    }

    /// Whether all is committed that was there at the start.
    fn is_finished(&self) -> bool {
        let is_dirty =
            matches!(&self.stage, Stage::Running { counting, .. } if counting.is_dirty());
        self.is_drained && !is_dirty && !self.parts.lake.is_committing()
    }

    /// Commits what there is, after the commit that runs.
    async fn commit_to_the_end(&mut self) -> Result<(), PipelineError> {
        self.settle().await;
        self.commit_if(true).await?;
        self.settle().await;
        Ok(())
    }

    /// Waits for the commit that runs, if one does.
    async fn settle(&mut self) {
        if let Some((epoch, result)) = self.parts.lake.settle().await {
            self.handle_committed(epoch, result);
        }
    }

    /// Whether more may be counted while a commit runs.
    fn has_room(&self) -> bool {
        let Stage::Running { counting, .. } = &self.stage else { return true };
        !self.parts.lake.is_committing() || !counting.tally().is_full(&self.parts.settings.epoch)
    }

    fn change_rules(&mut self, settings: Arc<aggregator_core::Settings>) {
        show_rules(&self.parts.health, &settings);
        self.core = Arc::clone(&settings);
        let (Stage::Running { counting, .. } | Stage::Starting { counting, .. }) = &mut self.stage
        else {
            return;
        };
        let windows_forgotten = counting.change_rules(settings, now());
        info!(windows_forgotten, "other rules in force");
    }

    /// Whoever waits for a drain to end must not wait for ever for it to begin.
    fn check_patience(&mut self) -> Result<(), PipelineError> {
        if matches!(self.stage, Stage::Running { .. }) {
            self.idle_since = Instant::now();
        }
        let trigger = &self.parts.settings.trigger;
        let patience = trigger.available_now_patience;
        let has_begun = matches!(self.stage, Stage::Running { .. }) || self.is_drained;
        if trigger.available_now && !has_begun && self.idle_since.elapsed() > patience {
            return Err(PipelineError::NothingToRead { patience });
        }
        Ok(())
    }

    async fn handle_event(&mut self, event: SourceEvent) -> Result<(), PipelineError> {
        match event {
            SourceEvent::Assigned { round, partitions } => {
                info!(partitions = partitions.len(), "the group gave partitions");
                self.lost_races = 0;
                self.drop_work();
                self.is_drained =
                    partitions.is_empty() && self.parts.settings.trigger.available_now;
                self.assigned = partitions;
                self.stage = Stage::Recovering { round, retry_at: Instant::now() };
            }
            SourceEvent::Revoked => {
                info!("the group took all partitions");
                self.drop_work();
                self.assigned.clear();
                self.idle_since = Instant::now();
                self.stage = Stage::Idle;
            }
            SourceEvent::Added { round, partitions } => self.add(round, partitions).await,
            SourceEvent::Removing { round, partitions } => {
                self.remove(round, &partitions).await?;
            }
            SourceEvent::Started { assignment, positions } => {
                if matches!(&self.stage, Stage::Running { assignment: current, .. } if *current == assignment)
                {
                    self.join(&positions);
                } else {
                    self.start(assignment, &positions);
                }
            }
            SourceEvent::Batch(batch) => {
                if let Stage::Running { assignment, counting, .. } = &mut self.stage
                    && *assignment == batch.assignment
                {
                    self.epoch_since.get_or_insert_with(Instant::now);
                    self.batch_at = Instant::now();
                    let result = counting.handle_batch(&batch, now());
                    if self.parts.settings.trigger.is_continuous() {
                        self.send_alerts();
                    }
                    self.write_rows(result).await;
                }
            }
            SourceEvent::Gap { assignment, slot, gap } => {
                if let Stage::Running { assignment: current, counting, .. } = &mut self.stage
                    && *current == assignment
                {
                    error!(partition = %counting.partitions[slot].id, ?gap, "records are missing in kafka");
                    counting.handle_gap(slot, &gap, &self.group, now());
                }
            }
            SourceEvent::Ends { assignment, ends } => {
                self.is_waiting_for_ends = false;
                if let Stage::Running { assignment: current, counting, .. } = &mut self.stage
                    && *current == assignment
                {
                    for (slot, end) in ends {
                        counting.handle_end(slot, end, now());
                        if let Some(goal) = self.goals.as_mut().and_then(|all| all.get_mut(slot)) {
                            // What comes last may be no record: the mark of a transaction.
                            *goal = (*goal).min(end);
                        }
                    }
                }
            }
            SourceEvent::Failed(text) => return Err(PipelineError::Source(text)),
        }
        Ok(())
    }

    /// Records begin to flow from these positions.
    fn start(&mut self, started: AssignmentId, positions: &[Position]) {
        let is_it =
            matches!(&self.stage, Stage::Starting { assignment, .. } if *assignment == started);
        if !is_it {
            return;
        }
        let Stage::Starting { round, assignment, mut counting } =
            std::mem::replace(&mut self.stage, Stage::Idle)
        else {
            return;
        };
        for position in positions {
            begin_at(&mut counting, position, &self.group);
        }
        if self.parts.settings.trigger.available_now {
            self.goals = Some(positions.iter().map(|position| position.high).collect());
        }
        counter!(names::ASSIGNMENTS_TOTAL).increment(1);
        info!(partitions = positions.len(), "reading begins");
        self.stage = Stage::Running { round, assignment, counting };
        self.show_partitions();
    }

    fn drop_work(&mut self) {
        self.parts.desk.clear();
        self.joining.clear();
        self.overflow.clear();
        self.epoch_since = None;
        self.ends_asked_at = None;
        self.goals = None;
        if let Err(error) = self.parts.lake.discard() {
            warn!(%error, "rows that are not committed cannot be dropped yet");
        }
        gauge!(names::PARTITIONS).set(0.0);
        self.parts.health.update(|status| {
            status.stage = HealthStage::WaitingForPartitions;
            status.partitions.clear();
            status.device_gaps.clear();
            status.corrupt_partitions.clear();
        });
    }

    /// Everything that is due, whatever woke the loop.
    async fn poll(&mut self) -> Result<(), PipelineError> {
        if matches!(&self.stage, Stage::Recovering { retry_at, .. } if *retry_at <= Instant::now())
        {
            self.recover().await;
        }
        let is_due = self.is_epoch_due();
        self.commit_if(is_due).await?;
        self.ask_for_ends();
        if let (Some(gaps), Stage::Running { counting, assignment, .. }) =
            (&mut self.parts.gaps, &self.stage)
        {
            gaps.ask(counting, *assignment, now());
        }
        self.parts.desk.pump();
        self.show_owed();
        if self.cleaned_at.elapsed() >= CLEAN_INTERVAL && !self.parts.lake.is_committing() {
            self.cleaned_at = Instant::now();
            if let Err(error) = self.parts.lake.clean_state_files(Instant::now()).await {
                warn!(error = describe(&error), "state files cannot be cleaned");
            }
        }
        Ok(())
    }

    fn wait(&self) -> Duration {
        let until = |instant: Instant| instant.saturating_duration_since(Instant::now());
        let wait = match &self.stage {
            Stage::Recovering { retry_at, .. } => until(*retry_at),
            // The commit wakes the loop.
            Stage::Running { .. } if self.parts.lake.is_committing() => TICK_MAX,
            Stage::Running { .. } => match self.epoch_since {
                Some(since) => until(since + self.parts.settings.trigger.epoch_length()),
                None => TICK_MAX,
            },
            Stage::Idle | Stage::Starting { .. } => TICK_MAX,
        };
        wait.min(TICK_MAX)
    }

    /// Reads offsets and state from the lake and begins reading from Kafka.
    async fn recover(&mut self) {
        self.parts.health.update(|status| status.stage = HealthStage::Recovering);
        self.settle().await;
        let Stage::Recovering { round, retry_at } = self.stage else { return };
        if retry_at > Instant::now() {
            return;
        }
        let assigned = self.assigned.clone();
        let recovered = match self.parts.lake.refresh().await {
            Ok(()) => self.recover_partitions(&assigned).await,
            Err(error) => Err(error),
        };
        match recovered.and_then(|recovered| self.parts.lake.discard().map(|()| recovered)) {
            Ok(recovered) => {
                if !self.is_write_refused {
                    self.backoff.reset();
                    self.parts.health.update(|status| status.lake_problem = None);
                }
                self.begin(round, recovered);
            }
            Err(error) => self.fail(&error),
        }
    }

    async fn recover_partitions(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Recovered>, LakeError> {
        let recovered = self.parts.lake.recover(partitions).await?;
        let is_resumed = |recovered: &Recovered| matches!(recovered, Recovered::Resumed(_));
        self.is_lake_begun |= self.last_epoch.is_some() || recovered.iter().any(is_resumed);
        let is_fresh = |recovered: &Recovered| matches!(recovered, Recovered::Fresh);
        if !self.is_lake_begun && recovered.iter().any(is_fresh) {
            self.is_lake_begun = self.parts.lake.is_begun(now()).await?;
        }
        Ok(recovered)
    }

    fn begin(&mut self, round: Round, recovered: Vec<Recovered>) {
        let assigned = self.assigned.clone();
        let (in_service, plan) = self.take_into_service(assigned, recovered);
        let schema = self.parts.lake.telemetry_schema();
        let keeps_readings = self.parts.settings.lake.keeps_readings;
        let core = Arc::clone(&self.core);
        let counting = Box::new(Counting::new(core, schema, keeps_readings, in_service));
        self.last_assignment = AssignmentId(self.last_assignment.0 + 1);
        let assignment = self.last_assignment;
        self.parts.source.send(Command::Assign { round, assignment, plan, is_extension: false });
        self.stage = Stage::Starting { round, assignment, counting };
        self.bury_overflow();
    }

    /// What recovered partitions count with, and where they are to be read from.
    fn take_into_service(
        &mut self,
        assigned: Vec<TopicPartition>,
        recovered: Vec<Recovered>,
    ) -> (Vec<Partition>, Vec<Place>) {
        let mut in_service = Vec::with_capacity(recovered.len());
        let mut plan = Vec::with_capacity(recovered.len());
        for (id, recovered) in assigned.into_iter().zip(recovered) {
            let Some(kind) = self.kinds.get(&id.topic).copied() else { continue };
            if let Recovered::Resumed(last) = &recovered
                && last.is_hub != (kind == TopicKind::Hub)
            {
                let was = if last.is_hub { "kafka.hub" } else { "kafka.topics" };
                let why = format!(
                    "it was read as of {was} before: give it back to that, or take another lake"
                );
                self.leave_unread(&id, &why);
                continue;
            }
            match recovered {
                Recovered::Fresh => {
                    let state = PartitionState::new(&self.core);
                    // "latest" is for what there is when the lake begins: what is added later is read whole.
                    let next = if self.is_lake_begun { Next::Oldest } else { Next::AsConfigured };
                    info!(partition = %id, ?next, "the lake does not know this partition");
                    plan.push(Place { partition: id.clone(), next, last: None });
                    let watch = self.watch_of(&id, None);
                    in_service.push(Partition::new(id, kind, None, 0, state).watching(watch));
                }
                Recovered::Resumed(last) => {
                    let Resumption {
                        epoch,
                        next_offset,
                        last_record,
                        mut state,
                        alerts,
                        owed_to,
                        book,
                        watch,
                        is_hub: _,
                    } = *last;
                    let resumed = state.resume(&self.core, now());
                    if resumed.windows_forgotten > 0 {
                        warn!(partition = %id, windows = resumed.windows_forgotten, "rules have changed, windows are forgotten");
                    }
                    self.last_epoch = self.last_epoch.max(Some(epoch));
                    for alert in alerts {
                        let to = owed_to.get(&alert.event_id());
                        let added = self.parts.desk.add_to(id.clone(), alert, to);
                        // Nothing is owed any more: the next state file is to say so.
                        self.has_outcomes |= added.is_settled;
                        self.overflow.extend(added.overflow);
                    }
                    let (next, last) = (next_offset.0, last_record);
                    plan.push(Place { partition: id.clone(), next: Next::At(next), last });
                    let watch = self.watch_of(&id, watch);
                    let partition = Partition::new(id, kind, Some(epoch), next, state);
                    let mut partition = partition.watching(watch).with_alerts(book);
                    partition.last_record = last;
                    in_service.push(partition);
                }
                Recovered::Corrupt(corruption) => self.leave_unread(&id, &corruption.to_string()),
            }
        }
        (in_service, plan)
    }

    fn leave_unread(&self, id: &TopicPartition, why: &str) {
        error!(partition = %id, why, "partition cannot be resumed and stays unread");
        let text = format!("{id}: {why}");
        self.parts.health.update(|status| status.corrupt_partitions.push(text));
    }

    /// The watch over the devices' records goes with the first partition of the machine events, or of the hub that brings them.
    fn watch_of(
        &self,
        id: &TopicPartition,
        saved: Option<Box<SavedWatch>>,
    ) -> Option<Box<SavedWatch>> {
        let kafka = &self.parts.settings.kafka;
        let events = &kafka.topics.machine_events;
        let home = if events.is_empty() { &kafka.hub.topic } else { events };
        let is_here = id.topic == *home && id.partition == 0;
        (is_here && self.parts.gaps.is_some()).then(|| saved.unwrap_or_default())
    }

    fn handle_scanned(&mut self, answer: ScanAnswer) {
        let Some(gaps) = &mut self.parts.gaps else { return };
        let counting = match &mut self.stage {
            Stage::Running { assignment, counting, .. } if *assignment == answer.assignment => {
                Some(&mut **counting)
            }
            Stage::Idle
            | Stage::Recovering { .. }
            | Stage::Starting { .. }
            | Stage::Running { .. } => None,
        };
        gaps.handle(answer.result, counting, &self.group, &self.parts.health, now());
    }

    /// The storage refuses: drop the work since the last epoch and read it again after a while.
    fn fail(&mut self, failure: &LakeError) {
        let wait = self.backoff.wait();
        self.is_drained = false;
        let text = describe(failure);
        if failure.is_wrong_place() {
            self.wrong_place = Some(text.clone());
        } else if failure.is_lost_race() {
            self.note_lost_race(&text, wait);
        } else {
            error!(error = text, ?wait, "the lake does not take rows, consumption pauses");
            counter!(names::LAKE_FAILURES_TOTAL).increment(1);
        }
        self.parts.source.send(Command::Halt);
        let round = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => return,
            Stage::Recovering { round, .. }
            | Stage::Starting { round, .. }
            | Stage::Running { round, .. } => round,
        };
        self.drop_work();
        self.parts.health.update(|status| {
            status.lake_problem = Some(text);
            status.stage = HealthStage::Recovering;
        });
        self.stage = Stage::Recovering { round, retry_at: Instant::now() + wait };
    }

    /// Hands collected rows to the encoder.
    async fn write_rows(&mut self, counted: Result<(), deltalake::arrow::error::ArrowError>) {
        let Stage::Running { counting, .. } = &mut self.stage else { return };
        let at_least = self.parts.settings.lake.row_group_rows;
        let rows = counted.and_then(|()| counting.take_rows(at_least));
        let result = match rows {
            Ok(None) => return,
            Ok(Some(batch)) => self.parts.lake.write(batch).await,
            Err(source) => Err(columns_error(source)),
        };
        if let Err(error) = result {
            self.is_write_refused |= !error.is_lost_race();
            self.fail(&error);
        }
    }

    fn is_epoch_due(&mut self) -> bool {
        let Stage::Running { counting, .. } = &self.stage else { return false };
        if let Some(goals) = &self.goals {
            let mut ends = counting.partitions.iter().zip(goals);
            self.is_drained = ends.all(|(partition, end)| partition.next_offset >= *end);
        }
        if !counting.is_dirty() {
            return false;
        }
        let since = *self.epoch_since.get_or_insert_with(Instant::now);
        let is_full = counting.tally().is_full(&self.parts.settings.epoch);
        gauge!(names::OLDEST_UNCOMMITTED_AGE_SECONDS).set(since.elapsed().as_secs_f64());
        self.is_drained || since.elapsed() >= self.parts.settings.trigger.epoch_length() || is_full
    }

    /// Begins to commit the epoch if it is due, there is something to commit, and no other commit runs.
    async fn commit_if(&mut self, is_due: bool) -> Result<(), PipelineError> {
        let Stage::Running { counting, assignment, .. } = &mut self.stage else { return Ok(()) };
        if !is_due || !counting.is_dirty() || self.parts.lake.is_committing() {
            return Ok(());
        }
        counting.check_balance()?;
        let began = Instant::now();
        let readings = match counting.take_rows(1) {
            Ok(readings) => readings,
            Err(source) => {
                self.is_write_refused = true;
                self.fail(&columns_error(source));
                return Ok(());
            }
        };
        let epoch = EpochId::after(self.last_epoch, Nonce(random_number()))?;
        let desk = &self.parts.desk;
        let taken = counting.take_epoch(epoch, now(), |partition| desk.owed_of(partition))?;
        let TakenEpoch { mut commit, alerts, offsets, tally, refused } = taken;
        // Encoded by the commit: meanwhile alerts go on.
        commit.readings = readings;
        self.committing =
            Some(Committing { assignment: *assignment, alerts, offsets, tally, refused, began });
        self.epoch_since = None;
        self.has_outcomes = false;
        // An epoch that is not committed is never referred to: the next one may leave a number out.
        self.last_epoch = Some(epoch);
        if let Err(error) = self.parts.lake.begin_commit(commit).await {
            self.is_write_refused |= !error.is_lost_race();
            self.fail(&error);
        }
        Ok(())
    }

    /// A commit has come back.
    fn handle_committed(&mut self, epoch: EpochId, result: Result<(), LakeError>) {
        let Some(committing) = self.committing.take() else { return };
        if let Err(error) = result {
            self.is_write_refused |= !error.is_lost_race();
            self.fail(&error);
            return;
        }
        if std::mem::take(&mut self.is_write_refused) {
            self.backoff.reset();
            self.parts.health.update(|status| status.lake_problem = None);
        }
        let Committing { assignment, alerts, offsets, tally, refused, began } = committing;
        for (reason, count) in refused {
            counter!(names::DEAD_LETTERS_TOTAL, "reason" => reason).increment(count);
        }
        self.records += tally.records_in;
        self.report(epoch, tally, began.elapsed());
        if let Stage::Running { assignment: current, counting, .. } = &mut self.stage
            && *current == assignment
        {
            counting.committed(epoch, &offsets);
            // Else they are in the state file, for whoever has the partitions now.
            self.owe(alerts);
            self.parts.source.send(Command::Commit(offsets));
        }
    }

    fn report(&self, epoch: EpochId, tally: Tally, took: Duration) {
        debug!(%epoch, records = tally.records_in, ?took, "epoch committed");
        counter!(names::EPOCHS_TOTAL).increment(1);
        histogram!(names::EPOCH_COMMIT_SECONDS).record(took.as_secs_f64());
        gauge!(names::OLDEST_UNCOMMITTED_AGE_SECONDS).set(0.0);
        for (disposition, count) in [
            ("counted", tally.counted),
            ("late", tally.late),
            ("duplicate", tally.duplicates),
            ("dead-letter", tally.dead_letters),
        ] {
            counter!(names::RECORDS_TOTAL, "disposition" => disposition).increment(count);
        }
        if let Stage::Running { counting, .. } = &self.stage {
            let figures = counting.figures();
            gauge!(names::SENSORS).set(figures.sensors as f64);
            let accounting = counting.accounting();
            gauge!(names::ACCOUNTING_IMBALANCE_RECORDS).set(accounting.imbalance() as f64);
            self.parts.health.update(|status| status.accounting = accounting);
            gauge!(names::MACHINES).set(figures.machines as f64);
            gauge!(names::WINDOWS).set(figures.windows as f64);
            gauge!(names::MARKS_EVICTED).set(figures.marks_evicted as f64);
            let unmatched = figures.unmatched;
            gauge!(names::UNMATCHED_READINGS, "reason" => "without-machine")
                .set(unmatched.without_machine as f64);
            gauge!(names::UNMATCHED_READINGS, "reason" => "behind-machine")
                .set(unmatched.behind_machine as f64);
        }
        self.parts.health.update(|status| {
            status.last_epoch = Some(epoch.to_string());
            status.last_epoch_at = Some(now().as_event_time().to_string());
            status.epochs += 1;
            status.records += tally.records_in;
        });
    }

    /// Asks where partitions with silent sensors end: while records wait there, nobody is known to be silent.
    fn ask_for_ends(&mut self) {
        let Stage::Running { counting, .. } = &mut self.stage else { return };
        if self.alerts_looked_at.elapsed() >= TICK_MAX {
            self.alerts_looked_at = Instant::now();
            counting.look_at_alerts(now());
        }
        let interval = self.parts.settings.trigger.epoch_length().max(TICK_MAX);
        let is_soon = self.ends_asked_at.is_some_and(|asked| asked.elapsed() < interval);
        if self.is_waiting_for_ends || is_soon {
            return;
        }
        let mut slots = counting.silent_slots(now());
        if let Some(goals) = &self.goals
            && self.batch_at.elapsed() >= TICK_MAX
        {
            let parts = counting.partitions.iter().zip(goals).enumerate();
            let unmet = parts.filter(|(_, (partition, goal))| partition.next_offset < **goal);
            slots.extend(unmet.map(|(slot, _)| slot));
            slots.sort_unstable();
            slots.dedup();
        }
        if slots.is_empty() {
            return;
        }
        self.ends_asked_at = Some(Instant::now());
        self.is_waiting_for_ends = true;
        self.parts.source.send(Command::LookUpEnds(slots));
    }
}

async fn next_answer(gaps: &mut Option<GapDesk>) -> ScanAnswer {
    match gaps {
        Some(gaps) => gaps.answer().await,
        None => std::future::pending().await,
    }
}

async fn wait_for_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to say stop, which is a stop too.
    drop(stop.wait_for(|is_stopped| *is_stopped).await);
}

fn show_rules(health: &Health, settings: &aggregator_core::Settings) {
    let rules = settings.rules.iter().map(|rule| rule.name.clone()).collect();
    health.update(|status| status.rules = rules);
}

fn columns_error(source: deltalake::arrow::error::ArrowError) -> LakeError {
    LakeError::Columns { table: crate::sink::rows::TELEMETRY.to_owned(), source }
}

fn now() -> ProcessingTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ProcessingTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
