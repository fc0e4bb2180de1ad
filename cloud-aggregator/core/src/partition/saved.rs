//! How a partition's state is saved: whole, in an epoch's state file (see [`crate::checkpoint`]).
//!
//! Its form carries [`FORMAT`]; another number, or a state that contradicts itself, is refused.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shared_proto::model::{EventTime, MachineId, MetricType, SensorId};

use super::matching::MatchingRules;
use super::{Accounting, Due, Found, Machine, PartitionState, Sensor, Track, Unmatched};
use crate::dedup::HighWaterMarks;
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
    metrics: Vec<&'a MetricType>,
    sensors: Sequence<'a, Sensor>,
    machines: Sequence<'a, Machine>,
    marks: &'a HighWaterMarks,
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
    metrics: Vec<MetricType>,
    sensors: Vec<(SensorId, Option<MachineId>, Watermark, ProcessingTime, Windows)>,
    machines: Vec<(MachineId, Watermark, ProcessingTime, Windows)>,
    marks: HighWaterMarks,
    accounting: Accounting,
    unmatched: Unmatched,
}

impl Serialize for PartitionState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let saved = SavedRef {
            rules: &self.rules,
            since: &self.since,
            metrics: self.metrics.keys().collect(),
            sensors: Sequence(&self.sensors),
            machines: Sequence(&self.machines),
            marks: &self.marks,
            accounting: self.accounting,
            unmatched: self.unmatched,
        };
        (FORMAT, saved).serialize(serializer)
    }
}

impl TryFrom<Saved> for PartitionState {
    type Error = RestoreError;

    fn try_from(saved: Saved) -> Result<Self, RestoreError> {
        let Saved { since, rules, metrics, sensors, machines, marks, accounting, unmatched } =
            saved;
        if since.len() != rules.len() {
            return Err(RestoreError::Since { rules: rules.len(), since: since.len() });
        }
        let track = |name: &str, watermark, heard, windows: Windows| {
            if !windows.is_consistent(&rules) {
                return Err(RestoreError::Windows { group: name.to_owned() });
            }
            Ok(Track { watermark, heard, windows, queued: None })
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
            sensor_positions: positions(sensors.iter().map(|sensor| &sensor.sensor_id))?,
            machine_positions: positions(machines.iter().map(|machine| &machine.machine_id))?,
            windows_held: sensors.iter().map(|sensor| sensor.track.windows.len()).sum::<usize>()
                + machines.iter().map(|machine| machine.track.windows.len()).sum::<usize>(),
            due: due(&sensors, &machines),
            rules,
            sensors,
            machines,
            marks,
            accounting,
            unmatched,
            silent_sensors: SilenceQueue::default(),
            silent_machines: SilenceQueue::default(),
            found: Found::default(),
        };
        state.watch_silence();
        Ok(state)
    }
}

fn positions<'a, K: Clone + Eq + std::hash::Hash + AsRef<str> + 'a>(
    names: impl ExactSizeIterator<Item = &'a K>,
) -> Result<HashMap<K, GroupIndex>, RestoreError> {
    let mut positions = HashMap::with_capacity(names.len());
    for (index, name) in (0..).zip(names) {
        if positions.insert(name.clone(), index).is_some() {
            return Err(RestoreError::GroupTwice { group: name.as_ref().to_owned() });
        }
    }
    Ok(positions)
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
