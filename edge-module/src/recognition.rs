//! Knows again what the broker repeats, so that no reading gets a second sequence.
//!
//! The broker delivers at least once. It repeats with the DUP flag what was not acknowledged, after a reconnect, a crash of
//! ours or one of its own; and it gives what it retains anew to each session that subscribes. Three memories tell what has
//! been journalled, or is on its way there:
//!
//! | memory | knows again | reaches back | survives a crash |
//! |---|---|---|---|
//! | messages, by topic and payload | DUP, retained | [`RECENT_MESSAGES_MAX`], more than MQTT has packet identifiers | in [`InputLog`], written after the records are durable |
//! | the last message of each topic | retained | [`TOPICS_MAX`] topics | likewise |
//! | readings, by sensor, metric, time and value | DUP, retained | [`RECENT_READINGS_MAX`] | in the journal's own segments |
//!
//! The third closes the moment between a durable group and its entry in the log; a group is smaller than that.

mod log;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use rumqttc::Publish;
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::Reading;

pub use self::log::InputLog;
use crate::store::{JournalReader, Lane};

/// Readings known again.
pub const RECENT_READINGS_MAX: usize = 65_536;
/// Messages known again.
pub const RECENT_MESSAGES_MAX: usize = 65_536;
/// Topics whose last message is known again. Of more, those heard last.
pub const TOPICS_MAX: usize = 65_536;

/// A message in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputMark {
    /// Hash of its topic.
    pub topic: u64,
    /// Hash of topic and payload.
    pub message: u64,
}

impl InputMark {
    /// Of a message as it came.
    #[must_use]
    pub fn of(publish: &Publish) -> Self {
        let mut hasher = DefaultHasher::new();
        publish.topic.hash(&mut hasher);
        let topic = hasher.finish();
        publish.payload.hash(&mut hasher);
        Self { topic, message: hasher.finish() }
    }
}

/// Everything that is known again.
pub struct Recognition {
    readings: Recent,
    messages: Recent,
    topics: Topics,
}

impl Recognition {
    /// Knows the last readings of the journal, and `marks`, the oldest first.
    #[must_use]
    pub fn new(journal: &dyn JournalReader, marks: &[InputMark]) -> Self {
        let mut this = Self {
            readings: Recent::new(RECENT_READINGS_MAX),
            messages: Recent::new(RECENT_MESSAGES_MAX),
            topics: Topics::default(),
        };
        for stored in journal.tail(Lane::Readings, RECENT_READINGS_MAX) {
            if let Ok(decoded) = codec::decode_reading(&stored.payload, Encoding::Protobuf) {
                this.note_reading(&decoded.reading);
            }
        }
        for mark in marks {
            this.note_message(*mark);
        }
        this
    }

    /// Whether the broker repeats a message that is known.
    #[must_use]
    pub fn is_repeat(&self, publish: &Publish, mark: InputMark) -> bool {
        let is_known = || self.messages.contains(mark.message);
        let is_last = || self.topics.last(mark.topic) == Some(mark.message);
        (publish.dup || publish.retain) && is_known() || publish.retain && is_last()
    }

    /// From now on it is known.
    pub fn note_message(&mut self, mark: InputMark) {
        self.messages.insert(mark.message);
        self.topics.note(mark);
    }

    /// Whether a reading of a message that the broker repeats is known.
    #[must_use]
    pub fn is_known(&self, reading: &Reading) -> bool {
        self.readings.contains(hash_of_reading(reading))
    }

    /// From now on it is known.
    pub fn note_reading(&mut self, reading: &Reading) {
        self.readings.insert(hash_of_reading(reading));
    }
}

/// Hashes of what came last, the newest `max`.
struct Recent {
    set: HashSet<u64>,
    order: VecDeque<u64>,
    max: usize,
}

impl Recent {
    fn new(max: usize) -> Self {
        Self { set: HashSet::new(), order: VecDeque::new(), max }
    }

    fn insert(&mut self, hash: u64) {
        if !self.set.insert(hash) {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    fn contains(&self, hash: u64) -> bool {
        self.set.contains(&hash)
    }
}

/// The last message of each topic.
#[derive(Debug, Default)]
struct Topics {
    /// By topic: the message, and its place in the order in which they were heard.
    last: HashMap<u64, (u64, u64)>,
    heard: u64,
}

impl Topics {
    fn note(&mut self, mark: InputMark) {
        self.heard += 1;
        self.last.insert(mark.topic, (mark.message, self.heard));
        if self.last.len() > TOPICS_MAX {
            let mut places: Vec<u64> = self.last.values().map(|(_, place)| *place).collect();
            let (_, middle, _) = places.select_nth_unstable(TOPICS_MAX / 2);
            let middle = *middle;
            self.last.retain(|_, (_, place)| *place > middle);
        }
    }

    fn last(&self, topic: u64) -> Option<u64> {
        self.last.get(&topic).map(|(message, _)| *message)
    }

    /// One mark for each topic, the one heard longest ago first.
    fn marks(&self) -> Vec<InputMark> {
        let mut marks: Vec<_> = self.last.iter().collect();
        marks.sort_unstable_by_key(|(_, (_, place))| *place);
        marks
            .into_iter()
            .map(|(topic, (message, _))| InputMark { topic: *topic, message: *message })
            .collect()
    }
}

fn hash_of_reading(reading: &Reading) -> u64 {
    let mut hasher = DefaultHasher::new();
    reading.sensor_id.hash(&mut hasher);
    reading.metric_type.hash(&mut hasher);
    reading.timestamp.hash(&mut hasher);
    reading.value.to_bits().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
