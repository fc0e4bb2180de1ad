//! Knows again what the broker repeats, so that no reading gets a second sequence.
//!
//! The broker delivers at least once. It repeats with the DUP flag what was not acknowledged, after a reconnect, a crash of
//! ours or one of its own; and it gives what it retains anew to each session that subscribes. Three memories tell what has
//! been journalled, or is on its way there:
//!
//! | memory | knows again | reaches back | survives a crash |
//! |---|---|---|---|
//! | messages, by topic and payload | DUP, retained | [`RECENT_MESSAGES_MAX`], more than MQTT has packet identifiers | in [`InputLog`], written after the records are durable |
//! | the last message of each topic, and the last that came as retained | retained | [`TOPICS_MAX`] topics | likewise |
//! | readings, by sensor, metric, time and value | DUP, retained | [`RECENT_READINGS_MAX`] | in the journal's own segments |
//!
//! What a message says decides, since a packet identifier says nothing after a reconnect: of two messages that are the same to
//! the byte, the second is lost if the broker repeats it. Readings carry their time; nothing is lost with such a pair of them.
//!
//! The third closes the moment between a durable group and its entry in the log; a group is smaller than that.

mod log;

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use rumqttc::Publish;
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::Reading;

pub use self::log::{InputLog, Noted};
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
    /// Hash of its topic; the complement of it if the message came as retained.
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
        // What came as retained stays known although the topic goes on with messages that are not.
        let topic = if publish.retain { !topic } else { topic };
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
    /// Knows the last readings of the journal, and what was `noted`, the oldest first.
    #[must_use]
    pub fn new(journal: &dyn JournalReader, noted: &[Noted]) -> Self {
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
        for noted in noted {
            match noted {
                Noted::Message(mark) => this.note_message(*mark),
                Noted::LastOfTopic(mark) => this.topics.note(*mark),
            }
        }
        this
    }

    /// Whether the broker repeats a message that is known.
    #[must_use]
    pub fn is_repeat(&self, publish: &Publish, mark: InputMark) -> bool {
        let is_known = || self.messages.contains(mark.message);
        let is_last_of = |topic: u64| self.topics.last(topic) == Some(mark.message);
        let is_last = || is_last_of(mark.topic) || is_last_of(!mark.topic);
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
    /// How often each is in the order.
    counts: HashMap<u64, u32>,
    order: VecDeque<u64>,
    max: usize,
}

impl Recent {
    fn new(max: usize) -> Self {
        Self { counts: HashMap::new(), order: VecDeque::new(), max }
    }

    fn insert(&mut self, hash: u64) {
        *self.counts.entry(hash).or_default() += 1;
        self.order.push_back(hash);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }

    fn contains(&self, hash: u64) -> bool {
        self.counts.contains_key(&hash)
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
