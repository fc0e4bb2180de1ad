//! What the aggregator knows of one Kafka partition between two records.
//!
//! Sensors must not be spread over partitions of one topic (the key of a reading is its `sensor_id`): each partition
//! counts alone. Rules that count by machine count what of a machine stands in the partition. How the state is saved: [`saved`].

use std::collections::BTreeMap;

use foldhash::HashMap;
use shared_proto::model::{EventTime, Identity, MachineId, MetricType, Reading, SensorId};

use crate::accounting::{Accounting, Disposition, reason};
use crate::dedup::{HighWaterMarks, Lanes};
use crate::rule::{GroupBy, OutputMode, Rule};
use crate::settings::Settings;
use crate::time::ProcessingTime;
use crate::watermark::{GroupIndex, SilenceQueue, Watermark};
pub use crate::window::Outputs;
use crate::window::{AnomalyRow, Context, Group, Match, RuleIndex, Windows};

pub mod adopting;
mod limits;
mod matching;
pub mod saved;

use limits::{refuse_timestamp, refuse_windows};
use matching::{Found, MatchingRules};
pub use saved::{RestoreError, StateChanges};

/// State of one Kafka partition of a reading topic, or (high-water marks only) of another topic.
#[derive(Clone, Debug)]
pub struct PartitionState {
    /// The rules in force: windows refer to them by position.
    rules: Vec<Rule>,
    /// By rule: only windows that begin later are judged, because readings before were not held against the rule.
    since: Vec<EventTime>,
    /// By rule: windows that end later were judged by the threshold in force, others perhaps by one before.
    judged_after: Vec<EventTime>,
    /// Metric types seen, with the rules that look at them.
    metrics: BTreeMap<MetricType, MatchingRules>,
    sensors: Vec<Sensor>,
    machines: Vec<Machine>,
    marks: HighWaterMarks,
    /// Where the partition holds several lanes, as a hub's does: their marks.
    lanes: Lanes,
    accounting: Accounting,
    unmatched: Unmatched,
    sensor_positions: HashMap<SensorId, GroupIndex>,
    machine_positions: HashMap<MachineId, GroupIndex>,
    silent_sensors: SilenceQueue,
    silent_machines: SilenceQueue,
    windows_held: usize,
    /// Windows whose row is due at the next trigger.
    due: Vec<Due>,
    unsaved: Unsaved,
    /// Scratch: what the reading in hand matches.
    found: Found,
}

/// What is not saved yet as it is.
#[derive(Clone, Debug, Default)]
struct Unsaved {
    sensors: Vec<GroupIndex>,
    machines: Vec<GroupIndex>,
    metrics: Vec<MetricType>,
    /// Rules have changed, or nothing is saved yet: changes alone do not tell.
    is_whole: bool,
}

/// What is counted together.
#[derive(Clone, Debug, PartialEq)]
struct Track {
    watermark: Watermark,
    heard: ProcessingTime,
    windows: Windows,
    /// Its entry in the silence queue.
    queued: Option<ProcessingTime>,
    /// Stands in the list of what is not saved yet as it is.
    is_changed: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Sensor {
    sensor_id: SensorId,
    machine_id: Option<MachineId>,
    track: Track,
}

#[derive(Clone, Debug, PartialEq)]
struct Machine {
    machine_id: MachineId,
    track: Track,
}

/// The groups of one reading.
#[derive(Clone, Copy)]
struct Groups {
    sensor: GroupIndex,
    machine: Option<GroupIndex>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    by: GroupBy,
    index: GroupIndex,
    start: EventTime,
    rule: RuleIndex,
}

/// When something happens, and under which settings.
#[derive(Clone, Copy)]
struct Moment<'a> {
    now: ProcessingTime,
    settings: &'a Settings,
    rules: &'a [Rule],
}

impl<'a> Moment<'a> {
    fn context(self, group: Group<'a>) -> Context<'a> {
        let history = self.settings.historical_after.get();
        let historical_before = self.now.as_event_time().saturating_sub_micros(history);
        Context { rules: self.rules, group, now: self.now, historical_before }
    }
}

/// What counting changes beside the windows.
struct Effects<'a> {
    windows_held: &'a mut usize,
    due: &'a mut Vec<Due>,
    out: &'a mut Outputs,
}

/// Matches of rules by machine that are in no window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unmatched {
    /// The reading names no machine.
    pub without_machine: u64,
    /// The machine's window is forgotten: another of its sensors is further ahead than the retention of closed windows.
    pub behind_machine: u64,
}

/// Sizes for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Sensors known.
    pub sensors: usize,
    /// Machines known to rules that count by machine.
    pub machines: usize,
    /// Metric types seen.
    pub metric_types: usize,
    /// Windows held, open or kept for correction.
    pub windows: usize,
    /// Devices whose high-water marks are held.
    pub devices: usize,
    /// Devices and generations forgotten at a limit so far.
    pub marks_evicted: u64,
    /// Matches of rules by machine that are in no window, so far.
    pub unmatched: Unmatched,
}

impl Figures {
    /// Figures of several partitions together; a metric type, device or machine of two is there twice.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            sensors: self.sensors + other.sensors,
            machines: self.machines + other.machines,
            metric_types: self.metric_types + other.metric_types,
            windows: self.windows + other.windows,
            devices: self.devices + other.devices,
            marks_evicted: self.marks_evicted + other.marks_evicted,
            unmatched: Unmatched {
                without_machine: self.unmatched.without_machine + other.unmatched.without_machine,
                behind_machine: self.unmatched.behind_machine + other.unmatched.behind_machine,
            },
        }
    }
}

/// What a change of the rules did to the windows held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Windows of rules that are gone or count other readings now: forgotten.
    pub windows_forgotten: usize,
}

impl PartitionState {
    /// Nothing known yet.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            rules: settings.rules.clone(),
            since: vec![EventTime::from_micros(i64::MIN); settings.rules.len()],
            judged_after: vec![EventTime::from_micros(i64::MIN); settings.rules.len()],
            metrics: BTreeMap::new(),
            sensors: Vec::new(),
            machines: Vec::new(),
            marks: HighWaterMarks::default(),
            lanes: Lanes::default(),
            accounting: Accounting::default(),
            unmatched: Unmatched::default(),
            sensor_positions: HashMap::default(),
            machine_positions: HashMap::default(),
            silent_sensors: SilenceQueue::default(),
            silent_machines: SilenceQueue::default(),
            windows_held: 0,
            due: Vec::new(),
            unsaved: Unsaved { is_whole: true, ..Unsaved::default() },
            found: Found::default(),
        }
    }

    /// Takes a saved state into service: the rules of `settings` come into force, and the silence of each sensor
    /// counts from `now`, because nobody listened in between. Until this is called, the rules of the saved state stay in force.
    pub fn resume(&mut self, settings: &Settings, now: ProcessingTime) -> Resumed {
        let machines = self.machines.iter_mut().map(|machine| &mut machine.track);
        for track in self.sensors.iter_mut().map(|sensor| &mut sensor.track).chain(machines) {
            track.heard = now;
        }
        self.change_rules(&settings.rules)
    }

    /// Brings other rules into force.
    ///
    /// A window stays if its rule has the same name, filter, length, slide and grouping as before; what it holds is
    /// then held against the new threshold: windows that are closed get another row at the next trigger if the answer is
    /// another one, and no finding. Others are forgotten. A rule that is new, or counts other readings now, judges the windows
    /// that begin after the newest event time seen: those before would be counted in part.
    pub fn change_rules(&mut self, rules: &[Rule]) -> Resumed {
        let newest = self.sensors.iter().map(|sensor| sensor.track.watermark.newest()).max();
        let newest = newest.unwrap_or(EventTime::from_micros(i64::MIN));
        let new_positions = matching::new_positions(&self.rules, rules);
        let forgotten = self.tracks().map(|track| track.watermark.late_before()).max();
        let forgotten = forgotten.unwrap_or(EventTime::from_micros(i64::MIN));
        let mut since = vec![newest; rules.len()];
        let mut judged_after = vec![EventTime::from_micros(i64::MIN); rules.len()];
        let mut is_judged_anew = vec![false; rules.len()];
        for (old, new) in new_positions.iter().enumerate() {
            let Some(new) = new.map(usize::from) else { continue };
            since[new] = self.since[old];
            judged_after[new] = self.judged_after[old];
            if !self.rules[old].judges_like(&rules[new]) {
                judged_after[new] = judged_after[new].max(forgotten);
                is_judged_anew[new] = true;
            }
        }
        self.since = since;
        self.judged_after = judged_after;
        self.rules = rules.to_vec();
        for (metric_type, matching) in &mut self.metrics {
            *matching = MatchingRules::of(metric_type, &self.rules);
        }
        let machines = self.machines.iter_mut().map(|machine| &mut machine.track);
        let mut windows_forgotten = 0;
        for track in self.sensors.iter_mut().map(|sensor| &mut sensor.track).chain(machines) {
            windows_forgotten += track.windows.renumber(&new_positions);
            track.windows.judge_anew(&self.rules, &is_judged_anew);
        }
        self.windows_held -= windows_forgotten;
        self.due = saved::due(&self.sensors, &self.machines);
        self.unsaved.is_whole = true;
        self.watch_silence();
        Resumed { windows_forgotten }
    }

    /// Takes one reading and says what becomes of it. Rows and findings that it caused are appended to `out`.
    pub fn handle_reading(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
        out: &mut Outputs,
    ) -> Disposition {
        self.handle_reading_of(None, reading, now, settings, out)
    }

    /// The same for a reading of one of several lanes: within each a device sends in order.
    pub fn handle_reading_of(
        &mut self,
        lane: Option<&str>,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
        out: &mut Outputs,
    ) -> Disposition {
        let disposition = match &reading.identity {
            Some(identity) if !self.admit(lane, identity, settings) => Disposition::Duplicate,
            Some(_) | None => self.judge(reading, now, settings, out),
        };
        self.accounting.record(&disposition);
        disposition
    }

    fn admit(&mut self, lane: Option<&str>, identity: &Identity, settings: &Settings) -> bool {
        match lane {
            None => self.marks.admit(identity, settings),
            Some(lane) => self.lanes.admit(lane, identity, settings),
        }
    }

    /// Takes a reading that was seen before and is wanted all the same: it was refused then. See [`Self::handle_reading`].
    pub fn handle_replay(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
        out: &mut Outputs,
    ) -> Disposition {
        let disposition = self.judge(reading, now, settings, out);
        self.accounting.record(&disposition);
        disposition
    }

    /// Takes a record of a topic that is not counted in windows (machine events, dead letters): new or seen before.
    pub fn handle_identity(
        &mut self,
        identity: Option<&Identity>,
        settings: &Settings,
    ) -> Disposition {
        self.handle_identity_of(None, identity, settings)
    }

    /// The same for a record of one of several lanes.
    pub fn handle_identity_of(
        &mut self,
        lane: Option<&str>,
        identity: Option<&Identity>,
        settings: &Settings,
    ) -> Disposition {
        let disposition = match identity {
            Some(identity) if !self.admit(lane, identity, settings) => Disposition::Duplicate,
            Some(_) | None => Disposition::Counted,
        };
        self.accounting.record(&disposition);
        disposition
    }

    /// Counts a record that the decoder refused; the caller writes the dead letter.
    pub fn handle_undecodable(&mut self) {
        self.accounting.record_undecodable();
    }

    /// Closes the windows of sensors and machines that have been silent for the idle timeout.
    ///
    /// Call it when the time of [`Self::poll_timeout`] has come and the partition has been read to its end: while
    /// records wait in Kafka, nobody is known to be silent. Called early or late it does no harm: a window closed too
    /// soon is corrected by the readings that follow.
    /// A clock set back delays the close of who has fallen silent before by as much.
    pub fn handle_timeout(&mut self, now: ProcessingTime, settings: &Settings, out: &mut Outputs) {
        let moment = Moment { now, settings, rules: &self.rules };
        for index in take_silent(&mut self.sensors, &mut self.silent_sensors, moment) {
            let Sensor { sensor_id, machine_id, track } = &mut self.sensors[index as usize];
            let group = Group::Sensor(sensor_id, machine_id.as_ref());
            track.windows.close_idle(&moment.context(group), out);
            track.mark_changed(index, &mut self.unsaved.sensors);
        }
        for index in take_silent(&mut self.machines, &mut self.silent_machines, moment) {
            let Machine { machine_id, track } = &mut self.machines[index as usize];
            track.windows.close_idle(&moment.context(Group::Machine(machine_id)), out);
            track.mark_changed(index, &mut self.unsaved.machines);
        }
    }

    /// When to call [`Self::handle_timeout`]; `None` while no window is open.
    #[must_use]
    pub fn poll_timeout(&self, settings: &Settings) -> Option<ProcessingTime> {
        let queues = [&self.silent_sensors, &self.silent_machines];
        queues.into_iter().filter_map(|queue| queue.next_timeout(settings.idle_timeout)).min()
    }

    /// Writes the rows that are due at a trigger: of windows that have changed (output mode `update`) or were corrected.
    pub fn handle_trigger(&mut self, now: ProcessingTime, settings: &Settings, out: &mut Outputs) {
        let moment = Moment { now, settings, rules: &self.rules };
        let mut all = std::mem::take(&mut self.due);
        all.sort_unstable();
        for due in all {
            let (group, windows) = match due.by {
                GroupBy::Sensor => {
                    let Sensor { sensor_id, machine_id, track } =
                        &mut self.sensors[due.index as usize];
                    track.mark_changed(due.index, &mut self.unsaved.sensors);
                    (Group::Sensor(sensor_id, machine_id.as_ref()), &mut track.windows)
                }
                GroupBy::Machine => {
                    let Machine { machine_id, track } = &mut self.machines[due.index as usize];
                    track.mark_changed(due.index, &mut self.unsaved.machines);
                    (Group::Machine(machine_id), &mut track.windows)
                }
            };
            windows.row_at_trigger(due.start, due.rule, &moment.context(group), out);
        }
    }

    /// All windows held of rules in output mode `complete`. Looks at every window if there is such a rule.
    #[must_use]
    pub fn current_rows(&self, now: ProcessingTime, settings: &Settings) -> Vec<AnomalyRow> {
        let mut rows = Vec::new();
        if self.rules.iter().all(|rule| rule.output_mode != OutputMode::Complete) {
            return rows;
        }
        let moment = Moment { now, settings, rules: &self.rules };
        for Sensor { sensor_id, machine_id, track } in &self.sensors {
            let group = Group::Sensor(sensor_id, machine_id.as_ref());
            track.windows.current_rows(&moment.context(group), &mut rows);
        }
        for Machine { machine_id, track } in &self.machines {
            track.windows.current_rows(&moment.context(Group::Machine(machine_id)), &mut rows);
        }
        rows
    }

    /// Counts since the partition was first read, over all restarts.
    #[must_use]
    pub fn accounting(&self) -> Accounting {
        self.accounting
    }

    /// Sizes for metrics; cheap.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            sensors: self.sensors.len(),
            machines: self.machines.len(),
            metric_types: self.metrics.len(),
            windows: self.windows_held,
            devices: self.marks.devices() + self.lanes.devices(),
            marks_evicted: self.marks.evicted() + self.lanes.evicted(),
            unmatched: self.unmatched,
        }
    }

    /// Rules in force, each with the event time after which its windows begin.
    pub fn rules(&self) -> impl Iterator<Item = (&Rule, EventTime)> {
        self.rules.iter().zip(self.since.iter().copied())
    }

    /// By rule in force: windows that end later were judged by its threshold as it is, others perhaps by one before.
    pub fn judged_after(&self) -> impl Iterator<Item = EventTime> {
        self.judged_after.iter().copied()
    }

    fn tracks(&self) -> impl Iterator<Item = &Track> {
        let machines = self.machines.iter().map(|machine| &machine.track);
        self.sensors.iter().map(|sensor| &sensor.track).chain(machines)
    }

    /// Sensors with the event time up to which their windows are closed by the watermark.
    pub fn sensor_watermarks(
        &self,
        settings: &Settings,
    ) -> impl Iterator<Item = (&SensorId, EventTime)> {
        let lateness = settings.allowed_lateness;
        self.sensors.iter().map(move |sensor| {
            (
                &sensor.sensor_id,
                sensor.track.watermark.newest().saturating_sub_micros(lateness.get()),
            )
        })
    }

    /// Machines with the event time up to which their windows are closed by the watermark.
    pub fn machine_watermarks(
        &self,
        settings: &Settings,
    ) -> impl Iterator<Item = (&MachineId, EventTime)> {
        let lateness = settings.allowed_lateness;
        self.machines.iter().map(move |machine| {
            let newest = machine.track.watermark.newest();
            (&machine.machine_id, newest.saturating_sub_micros(lateness.get()))
        })
    }

    /// Windows not closed yet. Looks at every window.
    #[must_use]
    pub fn open_windows(&self) -> usize {
        self.tracks().map(|track| track.windows.open_count()).sum()
    }

    /// Watermark of a sensor: windows that end here or before are closed.
    #[must_use]
    pub fn watermark(&self, sensor_id: &str, settings: &Settings) -> Option<EventTime> {
        let index = *self.sensor_positions.get(sensor_id)?;
        Some(self.sensors[index as usize].track.watermark.time(settings))
    }

    fn judge(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
        out: &mut Outputs,
    ) -> Disposition {
        if let Some(refusal) = refuse_timestamp(reading.timestamp, now, settings) {
            return refusal;
        }
        let groups = match self.groups(reading, now, settings) {
            Ok(groups) => groups,
            Err(refusal) => return refusal,
        };
        let sensor = &mut self.sensors[groups.sensor as usize];
        sensor.track.heard = now;
        let disposition = if sensor.track.watermark.is_late(reading.timestamp) {
            Disposition::Late
        } else {
            self.count(groups, reading, now, settings, out)
        };
        let sensor = &mut self.sensors[groups.sensor as usize].track;
        sensor.watch(groups.sensor, &mut self.silent_sensors);
        sensor.mark_changed(groups.sensor, &mut self.unsaved.sensors);
        if let Some(index) = groups.machine {
            let machine = &mut self.machines[index as usize].track;
            machine.watch(index, &mut self.silent_machines);
            machine.mark_changed(index, &mut self.unsaved.machines);
        }
        disposition
    }

    /// Finds sensor, metric type and machine, or makes room for them.
    fn groups(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
    ) -> Result<Groups, Disposition> {
        let known_sensor = self.sensor_positions.get(reading.sensor_id.as_str()).copied();
        let sensors_max = settings.sensors_max.min(GroupIndex::MAX as usize);
        if known_sensor.is_none() && self.sensors.len() >= sensors_max {
            return Err(Disposition::DeadLetter {
                reason: reason::SENSORS_LIMIT,
                detail: format!("{sensors_max} sensors are known: raise counting.sensors-max"),
            });
        }
        if !self.metrics.contains_key(reading.metric_type.as_str()) {
            let metric_types_max = settings.metric_types_max;
            if self.metrics.len() >= metric_types_max {
                return Err(Disposition::DeadLetter {
                    reason: reason::METRIC_TYPES_LIMIT,
                    detail: format!(
                        "{metric_types_max} metric types are known: raise counting.metric-types-max"
                    ),
                });
            }
            let matching = MatchingRules::of(&reading.metric_type, &self.rules);
            self.unsaved.metrics.push(reading.metric_type.clone());
            self.metrics.insert(reading.metric_type.clone(), matching);
        }
        let machine = self.machine_index(reading, now, settings)?;
        let sensor = match known_sensor {
            Some(index) => index,
            None => self.add_sensor(reading, now, settings),
        };
        Ok(Groups { sensor, machine })
    }

    /// The machine, where a rule counts by machine what such readings are.
    fn machine_index(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
    ) -> Result<Option<GroupIndex>, Disposition> {
        let Some(machine_id) = &reading.machine_id else { return Ok(None) };
        let matching = self.metrics.get(reading.metric_type.as_str());
        if !matching.is_some_and(MatchingRules::is_any_by_machine) {
            return Ok(None);
        }
        if let Some(index) = self.machine_positions.get(machine_id.as_str()) {
            return Ok(Some(*index));
        }
        let machines_max = settings.sensors_max;
        let room = GroupIndex::try_from(self.machines.len());
        let Some(index) = room.ok().filter(|_| self.machines.len() < machines_max) else {
            return Err(Disposition::DeadLetter {
                reason: reason::MACHINES_LIMIT,
                detail: format!("{machines_max} machines are known: raise counting.sensors-max"),
            });
        };
        self.machine_positions.insert(machine_id.clone(), index);
        let track = Track::new(reading.timestamp, now, settings);
        self.machines.push(Machine { machine_id: machine_id.clone(), track });
        Ok(Some(index))
    }

    fn add_sensor(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
    ) -> GroupIndex {
        let index = GroupIndex::try_from(self.sensors.len())
            .expect("the limit of sensors is at most the largest index");
        self.sensor_positions.insert(reading.sensor_id.clone(), index);
        self.sensors.push(Sensor {
            sensor_id: reading.sensor_id.clone(),
            machine_id: None,
            track: Track::new(reading.timestamp, now, settings),
        });
        index
    }

    /// Moves the watermarks, then counts what matches. A match without room for its window moves the watermarks too:
    /// else a full sensor would stay full for ever.
    fn count(
        &mut self,
        groups: Groups,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
        out: &mut Outputs,
    ) -> Disposition {
        let moment = Moment { now, settings, rules: &self.rules };
        let Sensor { sensor_id, machine_id, track } = &mut self.sensors[groups.sensor as usize];
        let context = moment.context(Group::Sensor(sensor_id, machine_id.as_ref()));
        self.windows_held -= track.advance(reading.timestamp, settings, &context, out);
        let mut machine = groups.machine.map(|index| &mut self.machines[index as usize]);
        if let Some(Machine { machine_id, track }) = &mut machine {
            track.heard = now;
            let context = moment.context(Group::Machine(machine_id));
            self.windows_held -= track.advance(reading.timestamp, settings, &context, out);
        }
        let Some(matching) = self.metrics.get(reading.metric_type.as_str()) else {
            return Disposition::Counted;
        };
        let machine_horizon = machine.as_ref().map(|machine| machine.track.watermark.late_before());
        let unmatched = &mut self.unmatched;
        matching.find(
            reading,
            &self.rules,
            &self.since,
            machine_horizon,
            &mut self.found,
            unmatched,
        );
        if self.found.is_empty() {
            return Disposition::Counted;
        }
        let tracks = (&*track, machine.as_ref().map(|machine| &machine.track));
        if let Some(refusal) = refuse_windows(tracks, &self.found, self.windows_held, settings) {
            return refusal;
        }
        if let Some(told) = &reading.machine_id
            && machine_id.as_ref() != Some(told)
        {
            *machine_id = Some(told.clone());
        }
        let mut effects = Effects { windows_held: &mut self.windows_held, due: &mut self.due, out };
        let context = moment.context(Group::Sensor(sensor_id, machine_id.as_ref()));
        let of_sensor = (GroupBy::Sensor, groups.sensor);
        track.count(&self.found.by_sensor, of_sensor, &context, settings, &mut effects);
        if let (Some(Machine { machine_id, track }), Some(index)) = (machine, groups.machine) {
            let context = moment.context(Group::Machine(machine_id));
            let of_machine = (GroupBy::Machine, index);
            track.count(&self.found.by_machine, of_machine, &context, settings, &mut effects);
        }
        Disposition::Counted
    }

    fn watch_silence(&mut self) {
        self.silent_sensors = SilenceQueue::default();
        for (index, sensor) in (0..).zip(&mut self.sensors) {
            sensor.track.queued = None;
            sensor.track.watch(index, &mut self.silent_sensors);
        }
        self.silent_machines = SilenceQueue::default();
        for (index, machine) in (0..).zip(&mut self.machines) {
            machine.track.queued = None;
            machine.track.watch(index, &mut self.silent_machines);
        }
    }
}

impl Track {
    fn new(timestamp: EventTime, now: ProcessingTime, settings: &Settings) -> Self {
        Self {
            watermark: Watermark::first(timestamp, settings),
            heard: now,
            windows: Windows::default(),
            queued: None,
            is_changed: false,
        }
    }

    fn mark_changed(&mut self, index: GroupIndex, unsaved: &mut Vec<GroupIndex>) {
        if !std::mem::replace(&mut self.is_changed, true) {
            unsaved.push(index);
        }
    }

    /// Moves the watermark; gives how many windows were forgotten.
    fn advance(
        &mut self,
        timestamp: EventTime,
        settings: &Settings,
        context: &Context<'_>,
        out: &mut Outputs,
    ) -> usize {
        self.watermark.advance(timestamp, settings);
        let (closed_up_to, late_before) =
            (self.watermark.time(settings), self.watermark.late_before());
        self.windows.advance(closed_up_to, late_before, context, out)
    }

    fn count(
        &mut self,
        matches: &[Match],
        (by, index): (GroupBy, GroupIndex),
        context: &Context<'_>,
        settings: &Settings,
        effects: &mut Effects<'_>,
    ) {
        let closed_up_to = self.watermark.time(settings);
        for found in matches {
            let added = self.windows.add(*found, closed_up_to, context, effects.out);
            *effects.windows_held += usize::from(added.is_new);
            if added.is_due_now {
                effects.due.push(Due { by, index, start: found.start, rule: found.rule });
            }
        }
    }

    /// Sees to it that a group with open windows stands in the silence queue, not later than it was heard.
    fn watch(&mut self, index: GroupIndex, queue: &mut SilenceQueue) {
        match self.queued {
            Some(queued) if queued <= self.heard => return,
            Some(queued) => queue.remove(queued, index),
            None if !self.windows.is_any_open() => return,
            None => {}
        }
        self.queued = Some(self.heard);
        queue.insert(self.heard, index);
    }
}

trait Tracked {
    fn track(&mut self) -> &mut Track;
}

impl Tracked for Sensor {
    fn track(&mut self) -> &mut Track {
        &mut self.track
    }
}

impl Tracked for Machine {
    fn track(&mut self) -> &mut Track {
        &mut self.track
    }
}

/// Groups with open windows that have been silent for the idle timeout, in order; who was heard since is watched again.
fn take_silent<T: Tracked>(
    groups: &mut [T],
    queue: &mut SilenceQueue,
    Moment { now, settings, .. }: Moment<'_>,
) -> Vec<GroupIndex> {
    let mut silent = Vec::new();
    let mut heard_since = Vec::new();
    while let Some(index) = queue.pop_due(now, settings.idle_timeout) {
        let track = groups[index as usize].track();
        track.queued = None;
        if !track.windows.is_any_open() {
            continue;
        }
        if track.heard.saturating_add(settings.idle_timeout) <= now {
            silent.push(index);
        } else {
            heard_since.push(index);
        }
    }
    for index in heard_since {
        groups[index as usize].track().watch(index, queue);
    }
    silent.sort_unstable();
    silent
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// Equal when the same records would have the same effect.
impl PartialEq for PartitionState {
    fn eq(&self, other: &Self) -> bool {
        fn unqueued<T: Tracked + Clone>(groups: &[T]) -> impl Iterator<Item = T> {
            groups.iter().cloned().map(|mut group| {
                group.track().queued = None;
                group.track().is_changed = false;
                group
            })
        }
        self.accounting == other.accounting
            && (&self.rules, &self.since) == (&other.rules, &other.since)
            && self.metrics == other.metrics
            && (&self.marks, &self.lanes) == (&other.marks, &other.lanes)
            && self.unmatched == other.unmatched
            && unqueued(&self.sensors).eq(unqueued(&other.sensors))
            && unqueued(&self.machines).eq(unqueued(&other.machines))
    }
}
