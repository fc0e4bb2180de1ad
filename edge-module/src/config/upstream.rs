//! `[upstream]`: which ways records leave.

use std::time::Duration;

use edge_core::upstream::{UpstreamSettings, Ways};
use serde::Deserialize;

use super::validate::Faults;
use super::{HubMode, IotHub};

/// A hub reads no further past 16 publications without its acknowledgement; four are left for methods and the twin.
const MESSAGES_IN_FLIGHT_MAX: usize = 12;
/// Longest body: a hub takes 256 KiB with all properties.
pub const MESSAGE_BYTES_MAX: usize = 240 << 10;
/// Most records in one message.
const MESSAGE_RECORDS_MAX: usize = 2_000;
/// Longest name of an output, in bytes.
const OUTPUT_BYTES_MAX: usize = 64;

/// `[upstream]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Upstreams {
    /// The ways, the first is preferred.
    pub order: Vec<UpstreamName>,
    /// So long Kafka delivers nothing of what is owed: records go to the hub.
    #[serde(with = "humantime_serde")]
    pub hub_after: Duration,
    /// Whether records go to Kafka again as soon as it answers.
    pub back_to_kafka: bool,
    /// How often Kafka is asked meanwhile.
    #[serde(with = "humantime_serde")]
    pub kafka_ask_interval: Duration,
    /// Output of the module, by which routes find the messages.
    pub output: String,
    /// Messages without the hub's acknowledgement.
    pub messages_in_flight_max: usize,
    /// Bytes of a message at which no further record is added.
    pub message_bytes_max: usize,
    /// Records of one message.
    pub message_records_max: usize,
    /// Wait for a fuller message; machine events never wait.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
}

/// One way.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamName {
    /// Kafka.
    Kafka,
    /// IoT Edge or IoT Hub.
    Hub,
}

impl Upstreams {
    /// Which ways there are; nothing for an order that is none.
    fn known_ways(&self) -> Option<Ways> {
        match self.order.as_slice() {
            [UpstreamName::Kafka] => Some(Ways::Kafka),
            [UpstreamName::Hub] => Some(Ways::Hub),
            [UpstreamName::Kafka, UpstreamName::Hub] => Some(Ways::KafkaThenHub),
            _ => None,
        }
    }

    /// Which ways there are.
    #[must_use]
    pub fn ways(&self) -> Ways {
        // Validation refuses every other order.
        self.known_ways().unwrap_or(Ways::Kafka)
    }

    /// Whether records may leave by the hub.
    #[must_use]
    pub fn uses_hub(&self) -> bool {
        match self.ways() {
            Ways::Kafka => false,
            Ways::Hub | Ways::KafkaThenHub => true,
        }
    }

    /// When one way is left for the other.
    #[must_use]
    pub fn switching(&self) -> UpstreamSettings {
        UpstreamSettings {
            ways: self.ways(),
            hub_after: self.hub_after,
            ask_interval: self.back_to_kafka.then_some(self.kafka_ask_interval),
        }
    }

    pub(super) fn check(&self, iot_hub: &IotHub, faults: &mut Faults) {
        if self.known_ways().is_none() {
            let text = "is to be [\"kafka\"], [\"kafka\", \"hub\"] or [\"hub\"]";
            faults.add("upstream.order", text);
        }
        if self.uses_hub() && iot_hub.identity == HubMode::Off {
            faults.add("upstream.order", "names the hub although iot-hub.identity is \"off\"");
        }
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        faults.duration("upstream.hub-after", self.hub_after, second, day);
        let interval = self.kafka_ask_interval;
        faults.duration("upstream.kafka-ask-interval", interval, second, day);
        faults.duration("upstream.linger", self.linger, Duration::ZERO, second * 60);
        let in_flight = self.messages_in_flight_max;
        let key = "upstream.messages-in-flight-max";
        faults.range(key, in_flight, 1, MESSAGES_IN_FLIGHT_MAX);
        let bytes = self.message_bytes_max;
        faults.range("upstream.message-bytes-max", bytes, 1_024, MESSAGE_BYTES_MAX);
        let records = self.message_records_max;
        faults.range("upstream.message-records-max", records, 1, MESSAGE_RECORDS_MAX);
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if self.output.is_empty()
            || self.output.len() > OUTPUT_BYTES_MAX
            || !self.output.bytes().all(is_word)
        {
            let text = format!("has 1 to {OUTPUT_BYTES_MAX} letters, digits and . - _");
            faults.add("upstream.output", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load;

    #[test]
    fn there_are_three_orders() {
        let check = |order: &str, expected: Ways| {
            let settings = load(&format!("[upstream]\norder = {order}\n")).expect(order);
            assert_eq!(settings.upstream.ways(), expected, "{order}");
        };
        check("[\"kafka\"]", Ways::Kafka);
        check("[\"hub\"]", Ways::Hub);
        check("[\"kafka\", \"hub\"]", Ways::KafkaThenHub);
        assert_eq!(load("").expect("defaults").upstream.ways(), Ways::Kafka);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        let check = |text: &str, key: &str| {
            let faults = load(&format!("[upstream]\n{text}\n")).expect_err(text);
            assert!(faults.contains(key), "{faults}");
        };
        check("order = []", "upstream.order");
        check("order = [\"hub\", \"kafka\"]", "upstream.order");
        check("order = [\"hub\", \"hub\"]", "upstream.order");
        check("order = [\"carrier-pigeon\"]", "upstream.order");
        check("order = [\"hub\"]\n[iot-hub]\nidentity = \"off\"", "iot-hub.identity");
        check("hub-after = \"10ms\"", "upstream.hub-after");
        check("messages-in-flight-max = 13", "upstream.messages-in-flight-max");
        check("message-bytes-max = 245761", "upstream.message-bytes-max");
        check("message-records-max = 0", "upstream.message-records-max");
        check("output = \"a/b\"", "upstream.output");
        check("linger = \"2m\"", "upstream.linger");
    }
}
