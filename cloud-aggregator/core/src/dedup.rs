//! Has this record been seen before? High-water marks by device and generation.
//!
//! Within a lane a device sends in order, and one Kafka partition of one topic is one lane, so a repeat is a record
//! whose sequence is not above the highest seen of its (device, generation). A device that sends out of order all the same loses
//! nothing as long as it is by less than [`SEQUENCES_REMEMBERED`]: of so many sequences below the highest it is known which have come
//! (the sliding window of RFC 4303, section 3.4.3). Bounded: at `devices_max` the device not
//! heard from longest is forgotten, at `generations_per_device_max` the generation; both are counted, because a repeat
//! of what was forgotten would pass as new.

use std::collections::BTreeMap;

use foldhash::HashMap;
use serde::{Deserialize, Serialize};
use shared_proto::model::{DeviceId, Generation, Identity, Sequence};

use crate::settings::Settings;

/// Sequences below the highest of which it is known whether they have come.
pub const SEQUENCES_REMEMBERED: u64 = 64;

/// High-water marks of several lanes in one partition, by the lanes' names: in each a device sends in order, and one overtakes another.
/// The caller sees to it that names are few.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lanes(BTreeMap<String, HighWaterMarks>);

impl Lanes {
    /// Whether the record is new in its lane; from here on it is none.
    pub fn admit(&mut self, lane: &str, identity: &Identity, settings: &Settings) -> bool {
        if let Some(marks) = self.0.get_mut(lane) {
            return marks.admit(identity, settings);
        }
        self.0.entry(lane.to_owned()).or_default().admit(identity, settings)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Devices whose marks are held; one of two lanes is there twice.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.0.values().map(HighWaterMarks::devices).sum()
    }

    /// Devices and generations forgotten at a limit so far.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.0.values().map(HighWaterMarks::evicted).sum()
    }
}

/// High-water marks of one lane.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Saved")]
pub struct HighWaterMarks {
    devices: Vec<Device>,
    /// Identities looked at: the clock of "not heard from longest".
    heard: u64,
    evicted: u64,
    #[serde(skip)]
    positions: HashMap<DeviceId, usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Device {
    device_id: DeviceId,
    generations: Vec<Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Mark {
    generation: Generation,
    /// The highest.
    sequence: Sequence,
    heard: u64,
    /// Bit n: the sequence n + 1 below the highest has come. State files of before do not know: all count as come.
    #[serde(default = "all_come", skip_serializing_if = "have_all_come")]
    come: u64,
}

const fn all_come() -> u64 {
    u64::MAX
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn have_all_come(come: &u64) -> bool {
    *come == u64::MAX
}

impl Mark {
    /// Whether the sequence is new; it is none from here on.
    fn admit(&mut self, sequence: Sequence) -> bool {
        if let Some(above) = sequence.0.checked_sub(self.sequence.0).filter(|above| *above > 0) {
            let moved = u32::try_from(above).ok().and_then(|above| self.come.checked_shl(above));
            let highest_before =
                u32::try_from(above - 1).ok().and_then(|bit| 1_u64.checked_shl(bit));
            self.come = moved.unwrap_or(0) | highest_before.unwrap_or(0);
            self.sequence = sequence;
            return true;
        }
        let below = self.sequence.0 - sequence.0;
        if below == 0 || below > SEQUENCES_REMEMBERED {
            return false;
        }
        let bit = 1 << (below - 1);
        let is_new = self.come & bit == 0;
        self.come |= bit;
        is_new
    }
}

#[derive(Deserialize)]
struct Saved {
    devices: Vec<Device>,
    heard: u64,
    evicted: u64,
}

impl From<Saved> for HighWaterMarks {
    fn from(saved: Saved) -> Self {
        let positions = saved
            .devices
            .iter()
            .enumerate()
            .map(|(position, device)| (device.device_id.clone(), position))
            .collect();
        Self { devices: saved.devices, heard: saved.heard, evicted: saved.evicted, positions }
    }
}

/// Equal when the same records would pass.
impl PartialEq for HighWaterMarks {
    fn eq(&self, other: &Self) -> bool {
        (&self.devices, self.heard, self.evicted) == (&other.devices, other.heard, other.evicted)
    }
}

impl HighWaterMarks {
    /// Whether the record is new; from here on it is none.
    pub fn admit(&mut self, identity: &Identity, settings: &Settings) -> bool {
        self.heard += 1;
        let mark = Mark {
            generation: identity.generation,
            sequence: identity.sequence,
            heard: self.heard,
            come: 0,
        };
        match self.positions.get(identity.device_id.as_str()) {
            Some(&position) => {
                let evicted = &mut self.evicted;
                self.devices[position].admit(mark, settings.generations_per_device_max, evicted)
            }
            None => {
                self.insert(identity.device_id.clone(), mark, settings.devices_max);
                true
            }
        }
    }

    /// Devices whose marks are held.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Devices and generations forgotten at a limit so far.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn insert(&mut self, device_id: DeviceId, mark: Mark, devices_max: usize) {
        while self.devices.len() >= devices_max.max(1) {
            self.evict_device();
        }
        self.positions.insert(device_id.clone(), self.devices.len());
        self.devices.push(Device { device_id, generations: vec![mark] });
    }

    fn evict_device(&mut self) {
        let longest_silent = self
            .devices
            .iter()
            .enumerate()
            .min_by_key(|(_, device)| device.last_heard())
            .map(|(position, _)| position);
        let Some(position) = longest_silent else { return };
        let forgotten = self.devices.swap_remove(position);
        self.positions.remove(&forgotten.device_id);
        if let Some(moved) = self.devices.get(position) {
            self.positions.insert(moved.device_id.clone(), position);
        }
        self.evicted += 1;
    }
}

impl Device {
    fn last_heard(&self) -> u64 {
        self.generations.iter().map(|mark| mark.heard).max().unwrap_or(0)
    }

    fn admit(&mut self, mark: Mark, generations_max: usize, evicted: &mut u64) -> bool {
        let held = self.generations.iter_mut().find(|held| held.generation == mark.generation);
        if let Some(held) = held {
            held.heard = mark.heard;
            return held.admit(mark.sequence);
        }
        while self.generations.len() >= generations_max.max(1) {
            let longest_silent = self
                .generations
                .iter()
                .enumerate()
                .min_by_key(|(_, held)| held.heard)
                .map(|(position, _)| position);
            let Some(position) = longest_silent else { break };
            self.generations.remove(position);
            *evicted += 1;
        }
        self.generations.push(mark);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(device: &str, generation: u64, sequence: u64) -> Identity {
        Identity {
            device_id: DeviceId::new(device).expect("a valid name"),
            generation: Generation(generation),
            sequence: Sequence(sequence),
        }
    }

    fn settings(devices_max: usize, generations_per_device_max: usize) -> Settings {
        Settings { devices_max, generations_per_device_max, ..Settings::default() }
    }

    #[test]
    fn record_is_new_above_the_mark_of_its_device_and_generation() {
        let settings = settings(10, 2);
        let mut marks = HighWaterMarks::default();
        let mut check = |device: &str, generation: u64, sequence: u64, expected: bool| {
            let identity = identity(device, generation, sequence);
            assert_eq!(marks.admit(&identity, &settings), expected, "{identity:?}");
        };
        check("a", 1, 5, true);
        check("a", 1, 5, false);
        check("a", 1, 9, true);
        check("a", 2, 1, true);
        check("a", 1, 9, false);
        check("a", 1, 5, false);
        check("b", 1, 1, true);
        check("b", 1, 1, false);
    }

    #[test]
    fn out_of_order_is_no_repeat_within_what_is_remembered() {
        let settings = settings(10, 2);
        let mut marks = HighWaterMarks::default();
        let mut check = |sequence: u64, expected: bool| {
            let identity = identity("a", 1, sequence);
            assert_eq!(marks.admit(&identity, &settings), expected, "{sequence}");
        };
        for sequence in [1, 2, 4, 3, 6, 5, 8, 7, 10, 9] {
            check(sequence, true);
        }
        (1..=10).for_each(|sequence| check(sequence, false));
        // The lowest and the highest that is remembered, and one below.
        check(100, true);
        check(36, true);
        check(35, false);
        check(99, true);
        check(99, false);
        check(36, false);
        // Further than is remembered, and as far as it goes.
        check(100 + SEQUENCES_REMEMBERED, true);
        check(100, false);
        check(101, true);
        check(u64::MAX, true);
        check(164, false);
        check(u64::MAX - 64, true);
        check(u64::MAX - 65, false);
    }

    #[test]
    fn marks_of_before_take_everything_below_as_a_repeat() {
        let settings = settings(10, 2);
        let saved = r#"{"devices":[{"device_id":"a","generations":[{"generation":1,"sequence":9,"heard":1}]}],"heard":1,"evicted":0}"#;
        let mut marks: HighWaterMarks = serde_json::from_str(saved).expect("restorable");
        assert_eq!(serde_json::to_string(&marks).expect("serialisable"), saved);
        assert!(!marks.admit(&identity("a", 1, 8), &settings));
        assert!(marks.admit(&identity("a", 1, 11), &settings));
        assert!(marks.admit(&identity("a", 1, 10), &settings));
        assert!(!marks.admit(&identity("a", 1, 9), &settings));
    }

    #[test]
    fn one_device_too_many_evicts_the_one_not_heard_from_longest() {
        let settings = settings(3, 2);
        let mut marks = HighWaterMarks::default();
        for device in ["a", "b", "c"] {
            assert!(marks.admit(&identity(device, 1, 5), &settings));
        }
        assert!(!marks.admit(&identity("a", 1, 5), &settings), "a repeat is a sign of life too");
        assert_eq!((marks.devices(), marks.evicted()), (3, 0));
        assert!(marks.admit(&identity("d", 1, 5), &settings));
        assert_eq!((marks.devices(), marks.evicted()), (3, 1));
        for device in ["a", "c", "d"] {
            assert!(!marks.admit(&identity(device, 1, 5), &settings), "{device} is held");
        }
        assert!(marks.admit(&identity("b", 1, 5), &settings), "b was forgotten");
    }

    #[test]
    fn one_generation_too_many_evicts_within_its_device_alone() {
        let settings = settings(2, 2);
        let mut marks = HighWaterMarks::default();
        assert!(marks.admit(&identity("other", 1, 1), &settings));
        for generation in 1..=3 {
            assert!(marks.admit(&identity("a", generation, 1), &settings));
        }
        assert_eq!((marks.devices(), marks.evicted()), (2, 1));
        assert!(!marks.admit(&identity("a", 2, 1), &settings));
        assert!(!marks.admit(&identity("a", 3, 1), &settings));
        assert!(!marks.admit(&identity("other", 1, 1), &settings));
        assert!(marks.admit(&identity("a", 1, 1), &settings), "generation 1 was forgotten");
    }

    #[test]
    fn each_lane_has_marks_of_its_own() {
        let settings = settings(1, 1);
        let mut lanes = Lanes::default();
        let mut check = |lane: &str, device: &str, sequence: u64, expected: bool| {
            let identity = identity(device, 1, sequence);
            assert_eq!(lanes.admit(lane, &identity, &settings), expected, "{lane} {identity:?}");
        };
        check("events", "a", 9_000, true);
        check("readings", "a", 1, true);
        check("readings", "a", 2, true);
        check("readings", "a", 1, false);
        check("events", "a", 9_000, false);
        check("events", "a", 1, false);
        check("events", "b", 1, true);
        assert_eq!((lanes.devices(), lanes.evicted(), lanes.is_empty()), (2, 1, false));
        let saved = serde_json::to_string(&lanes).expect("serialisable");
        assert_eq!(serde_json::from_str::<Lanes>(&saved).expect("restorable"), lanes);
    }

    #[test]
    fn restored_marks_refuse_what_was_seen() {
        let settings = settings(3, 2);
        let mut marks = HighWaterMarks::default();
        for device in ["a", "b", "c", "d", "e"] {
            marks.admit(&identity(device, 1, 5), &settings);
        }
        let saved = serde_json::to_string(&marks).expect("serialisable");
        let mut restored: HighWaterMarks = serde_json::from_str(&saved).expect("restorable");
        assert_eq!(restored, marks);
        for device in ["c", "d", "e"] {
            assert!(!restored.admit(&identity(device, 1, 5), &settings));
        }
        assert_eq!(restored.evicted(), 2);
    }
}
