//! How a partition's state is saved in an epoch's state file (see [`crate::checkpoint`]): whole, or as the changes since the epoch
//! before, because a million windows need not be written again for the few that have changed.
//!
//! Its form carries [`FORMAT`]; another number, or a state that contradicts itself, is refused.

use std::fmt;

use foldhash::HashMap;
use foldhash::fast::RandomState;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shared_proto::model::{EventTime, MachineId, MetricType, SensorId};

use super::matching::MatchingRules;
use super::{
    Accounting, Due, Found, Machine, PartitionState, Sensor, Track, Tracked, Unmatched, Unsaved,
};
use crate::dedup::{HighWaterMarks, Lanes};
use crate::rule::{GroupBy, Rule};
use crate::time::ProcessingTime;
use crate::watermark::{GroupIndex, SilenceQueue, Watermark};
use crate::window::Windows;

/// Number of the saved form.
pub const FORMAT: u32 = 2;

/// Why a saved state is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version.
    #[error(
        "partition state has format {found}, this version reads {FORMAT}: use the version that wrote it"
    )]
    Format {
        /// Found.
        found: u32,
    },
    /// A sensor or machine stands twice.
    #[error("partition state names {group:?} twice: it is damaged")]
    GroupTwice {
        /// The sensor or machine.
        group: String,
    },
    /// Windows that fit no rule or are out of order.
    #[error("windows of {group:?} fit no rule of the partition state: it is damaged")]
    Windows {
        /// The sensor or machine.
        group: String,
    },
    /// Changes of another state than the one they are put on.
    #[error("changes of {group:?} do not fit the state that they were made of: it is damaged")]
    Changes {
        /// The sensor or machine.
        group: String,
    },
    /// Not one time for each rule.
    #[error("partition state has {rules} rules and {since} times of theirs: it is damaged")]
    Since {
        /// Rules.
        rules: usize,
        /// Times.
        since: usize,
    },
}

#[derive(Serialize)]
struct SavedRef<'a> {
    rules: &'a [Rule],
    since: &'a [EventTime],
    judged_after: &'a [EventTime],
    metrics: Vec<&'a MetricType>,
    sensors: Sequence<'a, Sensor>,
    machines: Sequence<'a, Machine>,
    marks: &'a HighWaterMarks,
    #[serde(skip_serializing_if = "Lanes::is_empty")]
    lanes: &'a Lanes,
    accounting: Accounting,
    unmatched: Unmatched,
}

struct Sequence<'a, T>(&'a [T]);

impl<'a> Serialize for Sequence<'a, Sensor> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let saved = |sensor: &'a Sensor| {
            let Sensor { sensor_id, machine_id, track } = sensor;
            (sensor_id, machine_id, track.watermark, track.heard, &track.windows)
        };
        serializer.collect_seq(self.0.iter().map(saved))
    }
}

impl<'a> Serialize for Sequence<'a, Machine> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let saved = |machine: &'a Machine| {
            let Machine { machine_id, track } = machine;
            (machine_id, track.watermark, track.heard, &track.windows)
        };
        serializer.collect_seq(self.0.iter().map(saved))
    }
}

#[derive(Deserialize)]
struct Saved {
    rules: Vec<Rule>,
    since: Vec<EventTime>,
    /// Files of versions before it was known lack it.
    #[serde(default)]
    judged_after: Vec<EventTime>,
    metrics: Vec<MetricType>,
    sensors: Vec<(SensorId, Option<MachineId>, Watermark, ProcessingTime, Windows)>,
    machines: Vec<(MachineId, Watermark, ProcessingTime, Windows)>,
    marks: HighWaterMarks,
    #[serde(default)]
    lanes: Lanes,
    accounting: Accounting,
    unmatched: Unmatched,
}

/// Of one sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SensorChange(GroupIndex, SensorId, Option<MachineId>, Watermark, ProcessingTime, Windows);

/// Of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct MachineChange(GroupIndex, MachineId, Watermark, ProcessingTime, Windows);

/// What has changed in a partition's state since the epoch before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateChanges {
    format: u32,
    metrics: Vec<MetricType>,
    sensors: Vec<SensorChange>,
    machines: Vec<MachineChange>,
    marks: HighWaterMarks,
    #[serde(default, skip_serializing_if = "Lanes::is_empty")]
    lanes: Lanes,
    accounting: Accounting,
    unmatched: Unmatched,
}

impl StateChanges {
    /// Whether nothing has changed but what each later epoch saves anyway (high-water marks and counts).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metrics.is_empty() && self.sensors.is_empty() && self.machines.is_empty()
    }
}

impl PartitionState {
    /// Whether changes since the last epoch cannot be told apart: the state is to be saved whole.
    #[must_use]
    pub fn is_whole_due(&self) -> bool {
        self.unsaved.is_whole
    }

    /// What is not saved yet; from here on it counts as saved.
    pub fn take_changes(&mut self) -> StateChanges {
        let Unsaved { mut sensors, mut machines, metrics, .. } = std::mem::take(&mut self.unsaved);
        // New ones come in the order in which they stand.
        sensors.sort_unstable();
        machines.sort_unstable();
        StateChanges {
            format: FORMAT,
            metrics,
            sensors: sensors.into_iter().map(|index| self.sensor_change(index)).collect(),
            machines: machines.into_iter().map(|index| self.machine_change(index)).collect(),
            marks: self.marks.clone(),
            lanes: self.lanes.clone(),
            accounting: self.accounting,
            unmatched: self.unmatched,
        }
    }

    /// Says that the state was saved whole.
    pub fn mark_saved(&mut self) {
        self.unsaved = Unsaved::default();
        let machines = self.machines.iter_mut().map(|machine| &mut machine.track);
        for track in self.sensors.iter_mut().map(|sensor| &mut sensor.track).chain(machines) {
            track.is_changed = false;
            track.windows.mark_saved();
        }
    }

    fn sensor_change(&mut self, index: GroupIndex) -> SensorChange {
        let Sensor { sensor_id, machine_id, track } = &mut self.sensors[index as usize];
        track.is_changed = false;
        let (watermark, heard) = (track.watermark, track.heard);
        let windows = track.windows.take_changed();
        SensorChange(index, sensor_id.clone(), machine_id.clone(), watermark, heard, windows)
    }

    fn machine_change(&mut self, index: GroupIndex) -> MachineChange {
        let Machine { machine_id, track } = &mut self.machines[index as usize];
        track.is_changed = false;
        let (watermark, heard) = (track.watermark, track.heard);
        MachineChange(index, machine_id.clone(), watermark, heard, track.windows.take_changed())
    }

    /// Puts the changes of the next epoch on a state that was restored and not used since. [`Self::resume`] follows.
    ///
    /// # Errors
    /// They are another version's, or no changes of this state.
    pub fn apply(&mut self, changes: StateChanges) -> Result<(), RestoreError> {
        if changes.format != FORMAT {
            return Err(RestoreError::Format { found: changes.format });
        }
        for metric_type in changes.metrics {
            let matching = MatchingRules::of(&metric_type, &self.rules);
            self.metrics.insert(metric_type, matching);
        }
        for SensorChange(index, sensor_id, machine_id, watermark, heard, windows) in changes.sensors
        {
            let name = sensor_id.as_str().to_owned();
            let is_known = place(&mut self.sensor_positions, &sensor_id, index, self.sensors.len());
            if !is_known.ok_or_else(|| RestoreError::Changes { group: name.clone() })? {
                let track = Track::saved(watermark, heard);
                self.sensors.push(Sensor { sensor_id, machine_id: None, track });
            }
            let sensor = &mut self.sensors[index as usize];
            sensor.machine_id = machine_id;
            sensor.track.merge(watermark, heard, windows, &self.rules, &name)?;
        }
        for MachineChange(index, machine_id, watermark, heard, windows) in changes.machines {
            let name = machine_id.as_str().to_owned();
            let is_known =
                place(&mut self.machine_positions, &machine_id, index, self.machines.len());
            if !is_known.ok_or_else(|| RestoreError::Changes { group: name.clone() })? {
                self.machines.push(Machine { machine_id, track: Track::saved(watermark, heard) });
            }
            let track = self.machines[index as usize].track();
            track.merge(watermark, heard, windows, &self.rules, &name)?;
        }
        self.windows_held = windows_held(&self.sensors, &self.machines);
        self.marks = changes.marks;
        self.lanes = changes.lanes;
        self.accounting = changes.accounting;
        self.unmatched = changes.unmatched;
        self.due = due(&self.sensors, &self.machines);
        self.watch_silence();
        Ok(())
    }
}

/// Whether a group is known at its place; `None`: it is not, and does not come next either.
fn place<K: Clone + Eq + std::hash::Hash>(
    positions: &mut HashMap<K, GroupIndex>,
    name: &K,
    index: GroupIndex,
    length: usize,
) -> Option<bool> {
    match positions.get(name) {
        Some(known) => (*known == index).then_some(true),
        None if index as usize == length => {
            positions.insert(name.clone(), index);
            Some(false)
        }
        None => None,
    }
}

impl Track {
    fn saved(watermark: Watermark, heard: ProcessingTime) -> Self {
        Self { watermark, heard, windows: Windows::default(), queued: None, is_changed: false }
    }

    fn merge(
        &mut self,
        watermark: Watermark,
        heard: ProcessingTime,
        windows: Windows,
        rules: &[Rule],
        name: &str,
    ) -> Result<(), RestoreError> {
        (self.watermark, self.heard) = (watermark, heard);
        self.windows.merge(windows, watermark.late_before());
        if !self.windows.is_consistent(rules) {
            return Err(RestoreError::Windows { group: name.to_owned() });
        }
        Ok(())
    }
}

impl Serialize for PartitionState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let saved = SavedRef {
            rules: &self.rules,
            since: &self.since,
            judged_after: &self.judged_after,
            metrics: self.metrics.keys().collect(),
            sensors: Sequence(&self.sensors),
            machines: Sequence(&self.machines),
            marks: &self.marks,
            lanes: &self.lanes,
            accounting: self.accounting,
            unmatched: self.unmatched,
        };
        (FORMAT, saved).serialize(serializer)
    }
}

impl TryFrom<Saved> for PartitionState {
    type Error = RestoreError;

    fn try_from(saved: Saved) -> Result<Self, RestoreError> {
        let Saved {
            since,
            mut judged_after,
            rules,
            metrics,
            sensors,
            machines,
            marks,
            lanes,
            accounting,
            unmatched,
        } = saved;
        if judged_after.is_empty() {
            judged_after = vec![EventTime::from_micros(i64::MIN); rules.len()];
        }
        for times in [&since, &judged_after] {
            if times.len() != rules.len() {
                return Err(RestoreError::Since { rules: rules.len(), since: times.len() });
            }
        }
        let track = |name: &str, watermark, heard, windows: Windows| {
            if !windows.is_consistent(&rules) {
                return Err(RestoreError::Windows { group: name.to_owned() });
            }
            Ok(Track { watermark, heard, windows, queued: None, is_changed: false })
        };
        let sensors = sensors
            .into_iter()
            .map(|(sensor_id, machine_id, watermark, heard, windows)| {
                let track = track(sensor_id.as_str(), watermark, heard, windows)?;
                Ok(Sensor { sensor_id, machine_id, track })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let machines = machines
            .into_iter()
            .map(|(machine_id, watermark, heard, windows)| {
                let track = track(machine_id.as_str(), watermark, heard, windows)?;
                Ok(Machine { machine_id, track })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let matching = |metric_type: MetricType| {
            let rules = MatchingRules::of(&metric_type, &rules);
            (metric_type, rules)
        };
        let mut state = Self {
            metrics: metrics.into_iter().map(matching).collect(),
            since,
            judged_after,
            sensor_positions: positions(sensors.iter().map(|sensor| &sensor.sensor_id))?,
            machine_positions: positions(machines.iter().map(|machine| &machine.machine_id))?,
            windows_held: windows_held(&sensors, &machines),
            due: due(&sensors, &machines),
            rules,
            sensors,
            machines,
            marks,
            lanes,
            accounting,
            unmatched,
            silent_sensors: SilenceQueue::default(),
            silent_machines: SilenceQueue::default(),
            unsaved: Unsaved::default(),
            found: Found::default(),
        };
        state.watch_silence();
        Ok(state)
    }
}

fn positions<'a, K: Clone + Eq + std::hash::Hash + AsRef<str> + 'a>(
    names: impl ExactSizeIterator<Item = &'a K>,
) -> Result<HashMap<K, GroupIndex>, RestoreError> {
    let mut positions = HashMap::with_capacity_and_hasher(names.len(), RandomState::default());
    for (index, name) in (0..).zip(names) {
        if positions.insert(name.clone(), index).is_some() {
            return Err(RestoreError::GroupTwice { group: name.as_ref().to_owned() });
        }
    }
    Ok(positions)
}

fn windows_held(sensors: &[Sensor], machines: &[Machine]) -> usize {
    let sensors = sensors.iter().map(|sensor| &sensor.track);
    let machines = machines.iter().map(|machine| &machine.track);
    sensors.chain(machines).map(|track| track.windows.len()).sum()
}

/// Rows that are due at the next trigger.
pub(super) fn due(sensors: &[Sensor], machines: &[Machine]) -> Vec<Due> {
    fn of<'a>(by: GroupBy, tracks: impl Iterator<Item = &'a Track>) -> impl Iterator<Item = Due> {
        (0..).zip(tracks).flat_map(move |(index, track)| {
            let due = track.windows.due();
            due.map(move |(start, rule)| Due { by, index, start, rule })
        })
    }
    let sensors = of(GroupBy::Sensor, sensors.iter().map(|sensor| &sensor.track));
    sensors.chain(of(GroupBy::Machine, machines.iter().map(|machine| &machine.track))).collect()
}

/// The number of the form comes before the rest, so that another version's state is called so and not damaged.
impl<'de> Deserialize<'de> for PartitionState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StateVisitor)
    }
}

struct StateVisitor;

impl<'de> Visitor<'de> for StateVisitor {
    type Value = PartitionState;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the number of a format and a partition state")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<PartitionState, A::Error> {
        let found = parts.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        if found != FORMAT {
            return Err(A::Error::custom(RestoreError::Format { found }));
        }
        let saved: Saved =
            parts.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
        PartitionState::try_from(saved).map_err(A::Error::custom)
    }

    /// Format 1 was no sequence.
    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<PartitionState, A::Error> {
        Err(A::Error::custom(RestoreError::Format { found: 1 }))
    }
}
