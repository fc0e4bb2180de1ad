//! How far each sensor has come in event time, and who has fallen silent in processing time.
//!
//! The watermark is per sensor: a gateway that replays a day of its journal is not late because others are live.
//! Every counted reading of the sensor moves it, whatever its metric type or quality.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shared_proto::model::EventTime;

use crate::settings::Settings;
use crate::time::{Micros, ProcessingTime};

/// Progress of one sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// Newest event time counted.
    newest: EventTime,
    /// Readings before this are late. Never moves back, also when the settings grow, because the windows before it
    /// are forgotten.
    late_before: EventTime,
}

impl Watermark {
    /// Progress after the first reading.
    #[must_use]
    pub fn first(timestamp: EventTime, settings: &Settings) -> Self {
        let mut watermark =
            Self { newest: timestamp, late_before: EventTime::from_micros(i64::MIN) };
        watermark.advance(timestamp, settings);
        watermark
    }

    /// Takes a reading that is not late into account.
    pub fn advance(&mut self, timestamp: EventTime, settings: &Settings) {
        self.newest = self.newest.max(timestamp);
        let retained =
            self.time(settings).saturating_sub_micros(settings.closed_window_retention.get());
        self.late_before = self.late_before.max(retained);
    }

    /// No reading before this is expected: windows that end here or before are closed.
    #[must_use]
    pub fn time(&self, settings: &Settings) -> EventTime {
        self.newest.saturating_sub_micros(settings.allowed_lateness.get())
    }

    /// Whether a reading comes too late to be counted.
    #[must_use]
    pub fn is_late(&self, timestamp: EventTime) -> bool {
        timestamp < self.late_before
    }

    /// Windows that end here or before are forgotten.
    #[must_use]
    pub fn late_before(&self) -> EventTime {
        self.late_before
    }

    /// Newest event time counted.
    #[must_use]
    pub fn newest(&self) -> EventTime {
        self.newest
    }
}

/// Index of a sensor or machine in its partition.
pub type GroupIndex = u32;

/// Sensors (or machines) with open windows by when they were last heard, not touched at each reading: an entry may be earlier than
/// the truth, never later, and is put right when it comes up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SilenceQueue {
    entries: BTreeSet<(ProcessingTime, GroupIndex)>,
}

impl SilenceQueue {
    /// Watches a sensor last heard at `heard`.
    pub fn insert(&mut self, heard: ProcessingTime, group: GroupIndex) {
        self.entries.insert((heard, group));
    }

    /// Forgets an entry.
    pub fn remove(&mut self, heard: ProcessingTime, group: GroupIndex) {
        self.entries.remove(&(heard, group));
    }

    /// When somebody may have been silent for `idle_timeout`.
    #[must_use]
    pub fn next_timeout(&self, idle_timeout: Micros) -> Option<ProcessingTime> {
        self.entries.first().map(|(heard, _)| heard.saturating_add(idle_timeout))
    }

    /// Takes out an entry whose time has come.
    pub fn pop_due(&mut self, now: ProcessingTime, idle_timeout: Micros) -> Option<GroupIndex> {
        if self.next_timeout(idle_timeout)? > now {
            return None;
        }
        self.entries.pop_first().map(|(_, group)| group)
    }
}
