//! What the aggregator knows of one Kafka partition between two records.
//!
//! The state is saved whole in each epoch's state file (see [`crate::checkpoint`]) and read back after a restart or a
//! rebalance. Its form carries [`FORMAT`]; another number, or a state that contradicts itself, is refused.
//!
//! Sensors must not be spread over partitions of one topic (the key of a reading is its `sensor_id`): each partition
//! counts alone.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, Identity, MachineId, MetricType, Quality, Reading, SensorId};

use crate::accounting::{Accounting, Disposition, reason};
use crate::dedup::HighWaterMarks;
use crate::settings::{Rule, Settings};
use crate::time::ProcessingTime;
use crate::watermark::{SensorIndex, SilenceQueue, Watermark};
pub use crate::window::Outputs;
use crate::window::{Context, Match, RuleIndex, Windows};

/// Number of the saved form.
pub const FORMAT: u32 = 1;

/// State of one Kafka partition of a reading topic, or (high-water marks only) of another topic.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Saved")]
pub struct PartitionState {
    format: u32,
    /// The rules in force: windows refer to them by position.
    rules: Vec<Rule>,
    /// Metric types seen, with the rules that look at them.
    metrics: BTreeMap<MetricType, Vec<RuleIndex>>,
    sensors: Vec<Sensor>,
    marks: HighWaterMarks,
    accounting: Accounting,
    #[serde(skip)]
    positions: HashMap<SensorId, SensorIndex>,
    #[serde(skip)]
    silence: SilenceQueue,
    #[serde(skip)]
    windows_held: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sensor {
    sensor_id: SensorId,
    machine_id: Option<MachineId>,
    watermark: Watermark,
    heard: ProcessingTime,
    windows: Windows,
    /// Its entry in the silence queue.
    #[serde(skip)]
    queued: Option<ProcessingTime>,
}

/// Sizes for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Sensors known.
    pub sensors: usize,
    /// Metric types seen.
    pub metric_types: usize,
    /// Windows held, open or kept for correction.
    pub windows: usize,
    /// Devices whose high-water marks are held.
    pub devices: usize,
    /// Devices and generations forgotten at a limit so far.
    pub marks_evicted: u64,
}

/// What a restart with other rules did to the windows held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Windows of rules that are gone or count other readings now: forgotten.
    pub windows_forgotten: usize,
}

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
    /// A sensor stands twice.
    #[error("partition state names sensor {sensor:?} twice: it is damaged")]
    SensorTwice {
        /// The sensor.
        sensor: String,
    },
    /// Windows that fit no rule or are out of order.
    #[error("windows of sensor {sensor:?} fit no rule of the partition state: it is damaged")]
    Windows {
        /// The sensor.
        sensor: String,
    },
}

impl PartitionState {
    /// Nothing known yet.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            format: FORMAT,
            rules: settings.rules.clone(),
            metrics: BTreeMap::new(),
            sensors: Vec::new(),
            marks: HighWaterMarks::default(),
            accounting: Accounting::default(),
            positions: HashMap::new(),
            silence: SilenceQueue::default(),
            windows_held: 0,
        }
    }

    /// Takes a saved state into service: the rules of `settings` come into force, and the silence of each sensor
    /// counts from `now`, because nobody listened in between.
    ///
    /// A window stays if its rule has the same name, metric type, comparison, value and length as before; its count
    /// is then held against the new `count_more_than`. Others are forgotten: a rule that counts other readings starts
    /// with what it sees from here on. Until this is called, the rules of the saved state stay in force.
    pub fn resume(&mut self, settings: &Settings, now: ProcessingTime) -> Resumed {
        let new_positions = new_positions(&self.rules, &settings.rules);
        self.rules.clone_from(&settings.rules);
        for (metric_type, indices) in &mut self.metrics {
            *indices = rules_for(metric_type, &self.rules);
        }
        let mut windows_forgotten = 0;
        for sensor in &mut self.sensors {
            windows_forgotten += sensor.windows.renumber(&new_positions);
            sensor.heard = now;
        }
        self.windows_held -= windows_forgotten;
        self.watch_silence();
        Resumed { windows_forgotten }
    }

    /// Takes one reading and says what becomes of it. Rows and alerts that it caused are appended to `out`.
    pub fn handle_reading(
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
        let disposition = match identity {
            Some(identity) if !self.marks.admit(identity, settings) => Disposition::Duplicate,
            Some(_) | None => Disposition::Counted,
        };
        self.accounting.record(&disposition);
        disposition
    }

    /// Counts a record that the decoder refused; the caller writes the dead letter.
    pub fn handle_undecodable(&mut self) {
        self.accounting.record_undecodable();
    }

    /// Closes the windows of sensors that have been silent for the idle timeout.
    ///
    /// Call it when the time of [`Self::poll_timeout`] has come and the partition has been read to its end: while
    /// records wait in Kafka, nobody is known to be silent. Called early or late it does no harm: a window closed too
    /// soon is corrected by the readings that follow.
    /// A clock set back delays the close of who has fallen silent before by as much.
    pub fn handle_timeout(&mut self, now: ProcessingTime, settings: &Settings, out: &mut Outputs) {
        let mut silent = Vec::new();
        let mut heard_since = Vec::new();
        while let Some(index) = self.silence.pop_due(now, settings.idle_timeout) {
            let sensor = &mut self.sensors[index as usize];
            sensor.queued = None;
            if !sensor.windows.is_any_open() {
                continue;
            }
            if sensor.heard.saturating_add(settings.idle_timeout) <= now {
                silent.push(index);
            } else {
                heard_since.push(index);
            }
        }
        for index in heard_since {
            self.watch(index);
        }
        silent.sort_unstable();
        let before = historical_before(now, settings);
        for index in silent {
            let sensor = &mut self.sensors[index as usize];
            let Sensor { sensor_id, machine_id, .. } = sensor;
            let context = Context::new(&self.rules, sensor_id, machine_id.as_ref(), now, before);
            sensor.windows.close_idle(&context, out);
        }
    }

    /// When to call [`Self::handle_timeout`]; `None` while no window is open.
    #[must_use]
    pub fn poll_timeout(&self, settings: &Settings) -> Option<ProcessingTime> {
        self.silence.next_timeout(settings.idle_timeout)
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
            metric_types: self.metrics.len(),
            windows: self.windows_held,
            devices: self.marks.devices(),
            marks_evicted: self.marks.evicted(),
        }
    }

    /// Windows not closed yet. Looks at every window.
    #[must_use]
    pub fn open_windows(&self) -> usize {
        self.sensors.iter().map(|sensor| sensor.windows.open_count()).sum()
    }

    /// Watermark of a sensor: windows that end here or before are closed.
    #[must_use]
    pub fn watermark(&self, sensor_id: &str, settings: &Settings) -> Option<EventTime> {
        let index = *self.positions.get(sensor_id)?;
        Some(self.sensors[index as usize].watermark.time(settings))
    }

    /// The furthest watermark among the sensors. Looks at every sensor.
    #[must_use]
    pub fn newest_watermark(&self, settings: &Settings) -> Option<EventTime> {
        self.sensors.iter().map(|sensor| sensor.watermark.time(settings)).max()
    }

    fn judge(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
        out: &mut Outputs,
    ) -> Disposition {
        if let Some(identity) = &reading.identity
            && !self.marks.admit(identity, settings)
        {
            return Disposition::Duplicate;
        }
        if let Some(refusal) = refuse_timestamp(reading.timestamp, now, settings) {
            return refusal;
        }
        let index = match self.sensor_index(reading, now, settings) {
            Ok(index) => index,
            Err(refusal) => return refusal,
        };
        let sensor = &mut self.sensors[index as usize];
        sensor.heard = now;
        let disposition = if sensor.watermark.is_late(reading.timestamp) {
            Disposition::Late
        } else {
            self.count(index, reading, now, settings, out)
        };
        self.watch(index);
        disposition
    }

    /// Finds sensor and metric type, or makes room for them.
    fn sensor_index(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
    ) -> Result<SensorIndex, Disposition> {
        let known_sensor = self.positions.get(reading.sensor_id.as_str()).copied();
        let sensors_max = settings.sensors_max.min(SensorIndex::MAX as usize);
        if known_sensor.is_none() && self.sensors.len() >= sensors_max {
            return Err(Disposition::DeadLetter {
                reason: reason::SENSORS_LIMIT,
                detail: format!("{sensors_max} sensors are known: raise sensors_max"),
            });
        }
        if !self.metrics.contains_key(reading.metric_type.as_str()) {
            let metric_types_max = settings.metric_types_max;
            if self.metrics.len() >= metric_types_max {
                return Err(Disposition::DeadLetter {
                    reason: reason::METRIC_TYPES_LIMIT,
                    detail: format!(
                        "{metric_types_max} metric types are known: raise metric_types_max"
                    ),
                });
            }
            let indices = rules_for(&reading.metric_type, &self.rules);
            self.metrics.insert(reading.metric_type.clone(), indices);
        }
        Ok(match known_sensor {
            Some(index) => index,
            None => self.add_sensor(reading, now, settings),
        })
    }

    fn add_sensor(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
    ) -> SensorIndex {
        let index = SensorIndex::try_from(self.sensors.len())
            .expect("the limit of sensors is at most the largest index");
        self.positions.insert(reading.sensor_id.clone(), index);
        self.sensors.push(Sensor {
            sensor_id: reading.sensor_id.clone(),
            machine_id: None,
            watermark: Watermark::first(reading.timestamp, settings),
            heard: now,
            windows: Windows::default(),
            queued: None,
        });
        index
    }

    /// Moves the watermark, then counts what matches. A match without room for its window moves the watermark too:
    /// else a full sensor would stay full for ever.
    fn count(
        &mut self,
        index: SensorIndex,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
        out: &mut Outputs,
    ) -> Disposition {
        let Sensor { sensor_id, machine_id, watermark, windows, .. } =
            &mut self.sensors[index as usize];
        watermark.advance(reading.timestamp, settings);
        let closed_up_to = watermark.time(settings);
        let rules = &self.rules;
        let before = historical_before(now, settings);
        let context = Context::new(rules, sensor_id, machine_id.as_ref(), now, before);
        let forgotten = windows.advance(closed_up_to, watermark.late_before(), &context, out);
        self.windows_held -= forgotten;

        let indices = self.metrics.get(reading.metric_type.as_str()).map_or(&[][..], Vec::as_slice);
        let matches = || matches_of(reading, indices, rules);
        let needed = matches().filter(|found| windows.is_new_for(*found, rules)).count();
        if needed > 0 {
            let refusal = refuse_windows(windows.len(), self.windows_held, needed, settings);
            if let Some(refusal) = refusal {
                return refusal;
            }
        }
        if let Some(told) = &reading.machine_id
            && machine_id.as_ref() != Some(told)
            && matches().next().is_some()
        {
            *machine_id = Some(told.clone());
        }
        let context = Context::new(rules, sensor_id, machine_id.as_ref(), now, before);
        for found in matches() {
            self.windows_held += windows.add(found, closed_up_to, &context, out);
        }
        Disposition::Counted
    }

    /// Sees to it that a sensor with open windows stands in the silence queue, not later than it was heard.
    fn watch(&mut self, index: SensorIndex) {
        let sensor = &mut self.sensors[index as usize];
        match sensor.queued {
            Some(queued) if queued <= sensor.heard => return,
            Some(queued) => self.silence.remove(queued, index),
            None if !sensor.windows.is_any_open() => return,
            None => {}
        }
        sensor.queued = Some(sensor.heard);
        self.silence.insert(sensor.heard, index);
    }

    fn watch_silence(&mut self) {
        self.silence = SilenceQueue::default();
        for (index, sensor) in (0..).zip(&mut self.sensors) {
            sensor.queued = sensor.windows.is_any_open().then_some(sensor.heard);
            if let Some(heard) = sensor.queued {
                self.silence.insert(heard, index);
            }
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// Equal when the same records would have the same effect.
impl PartialEq for PartitionState {
    fn eq(&self, other: &Self) -> bool {
        let saved = |state: &Self| (state.format, state.accounting);
        let unqueued = |sensor: &Sensor| Sensor { queued: None, ..sensor.clone() };
        saved(self) == saved(other)
            && self.rules == other.rules
            && self.metrics == other.metrics
            && self.marks == other.marks
            && self.sensors.iter().map(unqueued).eq(other.sensors.iter().map(unqueued))
    }
}

#[derive(Deserialize)]
struct Saved {
    format: u32,
    rules: Vec<Rule>,
    metrics: BTreeMap<MetricType, Vec<RuleIndex>>,
    sensors: Vec<Sensor>,
    marks: HighWaterMarks,
    accounting: Accounting,
}

impl TryFrom<Saved> for PartitionState {
    type Error = RestoreError;

    fn try_from(saved: Saved) -> Result<Self, RestoreError> {
        if saved.format != FORMAT {
            return Err(RestoreError::Format { found: saved.format });
        }
        let mut positions = HashMap::with_capacity(saved.sensors.len());
        for (index, sensor) in (0..).zip(&saved.sensors) {
            let name = || sensor.sensor_id.as_str().to_owned();
            if positions.insert(sensor.sensor_id.clone(), index).is_some() {
                return Err(RestoreError::SensorTwice { sensor: name() });
            }
            if !sensor.windows.is_consistent(&saved.rules) {
                return Err(RestoreError::Windows { sensor: name() });
            }
        }
        let metrics = saved
            .metrics
            .into_keys()
            .map(|metric_type| {
                let indices = rules_for(&metric_type, &saved.rules);
                (metric_type, indices)
            })
            .collect();
        let mut state = Self {
            format: FORMAT,
            metrics,
            rules: saved.rules,
            windows_held: saved.sensors.iter().map(|sensor| sensor.windows.len()).sum(),
            sensors: saved.sensors,
            marks: saved.marks,
            accounting: saved.accounting,
            positions,
            silence: SilenceQueue::default(),
        };
        state.watch_silence();
        Ok(state)
    }
}

fn refuse_timestamp(
    timestamp: EventTime,
    now: ProcessingTime,
    settings: &Settings,
) -> Option<Disposition> {
    let latest = now.as_event_time().saturating_add_micros(settings.future_limit.get());
    if timestamp > latest {
        return Some(Disposition::DeadLetter {
            reason: reason::TIMESTAMP_IN_FUTURE,
            detail: format!(
                "timestamp {timestamp} is more than {} ahead of the aggregator's clock: set the sensor's clock",
                settings.future_limit
            ),
        });
    }
    if timestamp < settings.oldest_event_time {
        return Some(Disposition::DeadLetter {
            reason: reason::TIMESTAMP_TOO_OLD,
            detail: format!(
                "timestamp {timestamp} is before {}: set the sensor's clock or oldest_event_time",
                settings.oldest_event_time
            ),
        });
    }
    None
}

fn refuse_windows(
    held_of_sensor: usize,
    held: usize,
    needed: usize,
    settings: &Settings,
) -> Option<Disposition> {
    let refusal = |detail| Disposition::DeadLetter { reason: reason::WINDOWS_LIMIT, detail };
    let Settings { windows_per_sensor_max, windows_max, .. } = settings;
    if held_of_sensor + needed > *windows_per_sensor_max {
        return Some(refusal(format!(
            "the sensor has {held_of_sensor} windows, at most {windows_per_sensor_max} are held: \
             raise windows_per_sensor_max or shorten closed_window_retention"
        )));
    }
    if held + needed > *windows_max {
        return Some(refusal(format!(
            "the partition has {held} windows, at most {windows_max} are held: \
             raise windows_max or shorten closed_window_retention"
        )));
    }
    None
}

fn matches_of<'a>(
    reading: &'a Reading,
    indices: &'a [RuleIndex],
    rules: &'a [Rule],
) -> impl Iterator<Item = Match> + 'a {
    let is_usable = reading.quality != Some(Quality::Bad);
    let usable = if is_usable { indices } else { &[] };
    usable
        .iter()
        .filter(|index| {
            let rule = &rules[usize::from(**index)];
            rule.comparison.holds(reading.value, rule.value)
        })
        .map(|index| Match { rule: *index, timestamp: reading.timestamp, value: reading.value })
}

fn rules_for(metric_type: &MetricType, rules: &[Rule]) -> Vec<RuleIndex> {
    (0..).zip(rules).filter(|(_, rule)| rule.metric_type == *metric_type).map(|(i, _)| i).collect()
}

/// Where each old rule stands among the new ones, if it still counts the same readings in the same windows.
fn new_positions(old: &[Rule], new: &[Rule]) -> Vec<Option<RuleIndex>> {
    let counts_alike = |a: &Rule, b: &Rule| {
        (&a.name, &a.metric_type, a.comparison, a.window)
            == (&b.name, &b.metric_type, b.comparison, b.window)
            && a.value.to_bits() == b.value.to_bits()
    };
    old.iter()
        .map(|rule| (0..).zip(new).find(|(_, other)| counts_alike(rule, other)).map(|(i, _)| i))
        .collect()
}

fn historical_before(now: ProcessingTime, settings: &Settings) -> EventTime {
    now.as_event_time().saturating_sub_micros(settings.historical_after.get())
}
