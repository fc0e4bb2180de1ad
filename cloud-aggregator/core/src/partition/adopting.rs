//! A state is brought to where the tables stand, when another program has read the partition meanwhile: a Spark job on the same topics.
//!
//! Whatever became of a record was decided by that program and stands in the tables, so nothing is judged here and nothing comes out. The order
//! of rows plays no part: every counted reading first moves the watermarks ([`PartitionState::adopt_time`]), then goes into the
//! windows that are still held then ([`PartitionState::adopt_reading`]); the newest row of each window tells what has been said of it
//! ([`PartitionState::adopt_row`]). A window whose end has been passed and of which nothing was said stays open: the next reading of its
//! sensor closes it, with row and finding, or the sensor's silence does.

use shared_proto::model::{EventTime, Identity, MachineId, Reading, SensorId};

use super::{Accounting, Groups, PartitionState, Track, Unmatched, saved};
use crate::accounting::Disposition;
use crate::rule::GroupBy;
use crate::settings::Settings;
use crate::time::ProcessingTime;
use crate::window::{Match, Told};

/// The newest row of `anomalies` for one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedRow<'a> {
    /// Name of the rule.
    pub rule: &'a str,
    /// What was counted together.
    pub by: GroupBy,
    /// The sensor, or the machine.
    pub group: &'a str,
    /// First microsecond of the window.
    pub window_start: EventTime,
    /// Whether it is an anomaly.
    pub is_anomaly: bool,
    /// Matches in it.
    pub count: u64,
    /// Its number.
    pub revision: u32,
    /// The window was not closed yet.
    pub is_open: bool,
}

/// A limit of the settings is too low for what the tables hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct AdoptionLimit {
    /// Which, and what to do.
    pub detail: String,
}

impl PartitionState {
    /// Lets a reading of `telemetry` move the watermarks. All readings come by here before the first goes into windows.
    ///
    /// # Errors
    /// One sensor, machine or metric type more than the settings allow.
    pub fn adopt_time(
        &mut self,
        reading: &Reading,
        now: ProcessingTime,
        settings: &Settings,
    ) -> Result<(), AdoptionLimit> {
        let groups = match self.groups(reading, now, settings) {
            Ok(groups) => groups,
            Err(Disposition::DeadLetter { detail, .. }) => return Err(AdoptionLimit { detail }),
            Err(Disposition::Counted | Disposition::Late | Disposition::Duplicate) => return Ok(()),
        };
        let sensor = &mut self.sensors[groups.sensor as usize].track;
        sensor.watermark.advance(reading.timestamp, settings);
        if let Some(machine) = groups.machine {
            self.machines[machine as usize].track.watermark.advance(reading.timestamp, settings);
        }
        Ok(())
    }

    /// The earliest event time of a reading that [`Self::adopt_reading`] can have use for.
    #[must_use]
    pub fn adoption_horizon(&self) -> Option<EventTime> {
        let longest = self.rules.iter().map(|rule| rule.window.get()).max().unwrap_or(0);
        let retained = self.tracks().map(|track| track.watermark.late_before()).min();
        retained.map(|retained| retained.saturating_sub_micros(longest))
    }

    /// Puts a reading of `telemetry` into its windows.
    pub fn adopt_reading(&mut self, reading: &Reading) {
        let Some(groups) = self.known_groups(reading) else { return };
        let Some(matching) = self.metrics.get(reading.metric_type.as_str()) else { return };
        let machine_horizon =
            groups.machine.map(|index| self.machines[index as usize].track.watermark.late_before());
        // What of them was in no window is known to nobody.
        let mut unmatched = Unmatched::default();
        let (rules, since) = (&self.rules, &self.since);
        matching.find(reading, rules, since, machine_horizon, &mut self.found, &mut unmatched);
        if self.found.is_empty() {
            return;
        }
        let sensor = &mut self.sensors[groups.sensor as usize];
        if let Some(told) = &reading.machine_id {
            sensor.machine_id = Some(told.clone());
        }
        sensor.track.adopt(&self.found.by_sensor, rules);
        if let Some(index) = groups.machine {
            self.machines[index as usize].track.adopt(&self.found.by_machine, rules);
        }
    }

    /// Takes what was said of a window. A row of a window that is not held says nothing any more.
    pub fn adopt_row(&mut self, row: &AdoptedRow<'_>) {
        let found = (0..).zip(&self.rules).find(|(_, rule)| rule.name == row.rule);
        let Some((place, rule)) = found else { return };
        if rule.by != row.by {
            return;
        }
        let track = match rule.by {
            GroupBy::Sensor => {
                let index = self.sensor_positions.get(row.group);
                index.map(|index| &mut self.sensors[*index as usize].track)
            }
            GroupBy::Machine => {
                let index = self.machine_positions.get(row.group);
                index.map(|index| &mut self.machines[*index as usize].track)
            }
        };
        let Some(track) = track else { return };
        let told = Told {
            is_anomaly: row.is_anomaly,
            count: row.count,
            revision: row.revision,
            is_open: row.is_open,
        };
        track.windows.adopt_row(row.window_start, place, rule, told);
    }

    /// Notes that a record was seen: a later repeat of it is none.
    pub fn adopt_identity(&mut self, identity: &Identity, settings: &Settings) {
        self.marks.admit(identity, settings);
    }

    /// Ends the adoption of what these counts name. [`Self::resume`] follows when the state is taken into service.
    pub fn end_adoption(&mut self, counts: Accounting) {
        self.accounting = self.accounting.plus(counts);
        let machines = self.machines.iter_mut().map(|machine| &mut machine.track);
        for track in self.sensors.iter_mut().map(|sensor| &mut sensor.track).chain(machines) {
            track.windows.end_adoption(&self.rules, track.watermark.late_before());
        }
        self.windows_held = self.tracks().map(|track| track.windows.len()).sum();
        self.due = saved::due(&self.sensors, &self.machines);
        self.unsaved.is_whole = true;
        self.watch_silence();
    }

    fn known_groups(&self, reading: &Reading) -> Option<Groups> {
        let by_sensor: &SensorId = &reading.sensor_id;
        let sensor = *self.sensor_positions.get(by_sensor.as_str())?;
        let matching = self.metrics.get(reading.metric_type.as_str())?;
        let position = |id: &MachineId| self.machine_positions.get(id.as_str()).copied();
        let machine = reading.machine_id.as_ref().filter(|_| matching.is_any_by_machine());
        Some(Groups { sensor, machine: machine.and_then(position) })
    }
}

impl Track {
    fn adopt(&mut self, matches: &[Match], rules: &[crate::rule::Rule]) {
        let late_before = self.watermark.late_before();
        for found in matches {
            self.windows.adopt(*found, &rules[usize::from(found.rule)], late_before);
        }
    }
}
