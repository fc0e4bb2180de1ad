//! Windows that wait until their operating condition is confirmed.
//!
//! What tells a condition is measured now and then: a drive that begins to turn faster is reported at the speed before until the next
//! reading. So a window counts when each sensor of its condition has spoken after it and nothing has spoken against it since; what
//! cannot be confirmed any more is given up.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use shared_proto::model::SensorId;

use crate::features::Features;
use crate::operation::Holding;

/// Most windows that wait, all sensors together: each has as many places as any other, at least 32 where
/// [`super::PAIRS_MAX`] is kept. A window of 107 features takes 1 kB.
pub(super) const WAITING_MAX: usize = 8192;

/// A window with the model's answer.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// When it came.
    pub(super) at: Instant,
    pub(super) features: Features,
    pub(super) logit: f64,
    /// Running time that it stands for.
    pub(super) running: Duration,
}

/// Windows of one condition, by sensor, oldest first.
#[derive(Debug)]
pub(super) struct Waiting {
    condition: String,
    windows: BTreeMap<SensorId, VecDeque<Window>>,
    of_sensor_max: usize,
}

impl Waiting {
    /// For so many sensors.
    pub(super) fn new(sensors: usize) -> Self {
        let of_sensor_max = (WAITING_MAX / sensors.max(1)).max(1);
        Self { condition: String::new(), windows: BTreeMap::new(), of_sensor_max }
    }

    pub(super) fn len(&self) -> usize {
        self.windows.values().map(VecDeque::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.windows.values().all(VecDeque::is_empty)
    }

    /// Takes the newest window of a sensor; how many are given up for it: the oldest of a full queue, all of another condition.
    pub(super) fn add(&mut self, condition: &str, sensor: &SensorId, window: Window) -> u64 {
        let mut given_up = 0;
        if self.condition != condition {
            given_up += self.clear();
            self.condition.push_str(condition);
        }
        let of_sensor = self.windows.entry(sensor.clone()).or_default();
        if of_sensor.len() >= self.of_sensor_max {
            of_sensor.pop_front();
            given_up += 1;
        }
        of_sensor.push_back(window);
        given_up
    }

    /// Gives all up; how many they were.
    pub(super) fn clear(&mut self) -> u64 {
        let given_up = self.len();
        self.windows.clear();
        self.condition.clear();
        given_up as u64
    }

    /// Gives up what cannot be confirmed any more; how many.
    pub(super) fn give_up(&mut self, holding: Option<&Holding<'_>>) -> u64 {
        let Some(holding) = holding.filter(|holding| holding.name == self.condition) else {
            return self.clear();
        };
        self.give_up_before(holding.since)
    }

    /// Gives up windows that came earlier; how many.
    pub(super) fn give_up_before(&mut self, at: Instant) -> u64 {
        let before = self.len();
        for of_sensor in self.windows.values_mut() {
            while of_sensor.pop_front_if(|window| window.at < at).is_some() {}
        }
        (before - self.len()) as u64
    }

    /// Takes out the oldest window, if it is confirmed.
    pub(super) fn take_confirmed(&mut self, holding: &Holding<'_>) -> Option<(SensorId, Window)> {
        let oldest = self
            .windows
            .iter_mut()
            .filter(|(_, of_sensor)| !of_sensor.is_empty())
            .min_by_key(|(_, of_sensor)| of_sensor.front().map(|window| window.at));
        let (sensor, of_sensor) = oldest?;
        let window = of_sensor.pop_front_if(|window| window.at < holding.heard)?;
        Some((sensor.clone(), window))
    }
}
