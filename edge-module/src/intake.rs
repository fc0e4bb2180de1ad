//! MQTT messages to domain values, for both paths.

use rumqttc::matches;
use shared_proto::Encoding;
use shared_proto::codec::{self, DecodeError, Element};
use shared_proto::model::{MachineId, WaveformBlock};

use crate::config::Mqtt;

/// What a message holds.
#[derive(Debug)]
pub enum Input<'a> {
    /// Scalar readings, each with its own fate.
    Readings(Vec<Element<'a>>),
    /// Raw samples.
    Waveform(WaveformBlock),
}

/// Why a message as a whole was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A short word for counters.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Self { reason: error.reason(), detail: error.detail() }
    }
}

/// What a topic carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InputKind {
    /// Scalar readings.
    Readings,
    /// Raw samples.
    Waveform,
}

/// Stands for a machine's id, as a whole level of a topic.
pub const MACHINE_PLACEHOLDER: &str = "{machine}";

/// A topic filter of the settings.
struct TopicFilter {
    configured: String,
    /// With any machine in the placeholder's stead.
    of_all: String,
    /// Which level of the topic names the machine.
    machine_level: Option<usize>,
    kind: InputKind,
}

impl TopicFilter {
    fn new(configured: &str, kind: InputKind) -> Self {
        Self {
            configured: configured.to_owned(),
            of_all: configured.replace(MACHINE_PLACEHOLDER, "+"),
            machine_level: configured.split('/').position(|level| level == MACHINE_PLACEHOLDER),
            kind,
        }
    }
}

/// Which topic carries what.
pub struct InputTopics {
    filters: Vec<TopicFilter>,
    payload_bytes_max: usize,
}

impl InputTopics {
    /// The topic filters of the settings.
    #[must_use]
    pub fn new(mqtt: &Mqtt) -> Self {
        let of = |filters: &[String], kind| -> Vec<TopicFilter> {
            filters.iter().map(|filter| TopicFilter::new(filter, kind)).collect()
        };
        let mut filters = of(&mqtt.reading_topics, InputKind::Readings);
        filters.extend(of(&mqtt.waveform_topics, InputKind::Waveform));
        Self { filters, payload_bytes_max: mqtt.payload_bytes_max }
    }

    /// What to subscribe to for the input of all machines, known or not.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        self.filters.iter().map(|filter| filter.of_all.clone()).collect()
    }

    /// What to subscribe to for input whose topic names no machine.
    #[must_use]
    pub fn common_filters(&self) -> Vec<String> {
        let common = self.filters.iter().filter(|filter| filter.machine_level.is_none());
        common.map(|filter| filter.of_all.clone()).collect()
    }

    /// What to subscribe to for one machine's input of a kind.
    #[must_use]
    pub fn machine_filters(&self, machine_id: &MachineId, kind: InputKind) -> Vec<String> {
        let is_wanted =
            |filter: &&TopicFilter| filter.kind == kind && filter.machine_level.is_some();
        let wanted = self.filters.iter().filter(is_wanted);
        wanted
            .map(|filter| filter.configured.replace(MACHINE_PLACEHOLDER, machine_id.as_str()))
            .collect()
    }

    fn filter(&self, topic: &str) -> Option<&TopicFilter> {
        self.filters.iter().find(|filter| matches(topic, &filter.of_all))
    }

    /// What a topic carries; `None` if no filter takes it.
    #[must_use]
    pub fn kind(&self, topic: &str) -> Option<InputKind> {
        self.filter(topic).map(|filter| filter.kind)
    }

    /// The name of the machine that a topic is of, if its filter says where it stands.
    #[must_use]
    pub fn machine<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.split('/').nth(self.filter(topic)?.machine_level?)
    }

    /// Reads a message. Text that begins with `{` or `[` is JSON, anything else protobuf.
    ///
    /// # Errors
    /// The message as a whole is refused; one bad reading of an array is not.
    pub fn decode<'a>(&self, topic: &str, payload: &'a [u8]) -> Result<Input<'a>, Refusal> {
        if payload.len() > self.payload_bytes_max {
            return Err(Refusal {
                reason: "too-large",
                detail: format!(
                    "payload of {} bytes, mqtt.payload-bytes-max is {}",
                    payload.len(),
                    self.payload_bytes_max
                ),
            });
        }
        let encoding = encoding_of(payload);
        match self.kind(topic) {
            Some(InputKind::Readings) => {}
            Some(InputKind::Waveform) => {
                return Ok(Input::Waveform(codec::decode_waveform_block(payload, encoding)?));
            }
            None => {
                let lists = "neither mqtt.reading-topics nor mqtt.waveform-topics";
                let detail = format!("topic {topic} is in {lists}");
                return Err(Refusal { reason: "unknown-topic", detail });
            }
        }
        match encoding {
            Encoding::Json => Ok(Input::Readings(codec::decode_readings(payload)?)),
            Encoding::Protobuf => {
                let decoded = codec::decode_reading(payload, Encoding::Protobuf)
                    // Broken text is more often meant as JSON than as protobuf.
                    .map_err(|error| describe_unknown(error, payload))?;
                Ok(Input::Readings(vec![Element { raw: payload, result: Ok(decoded) }]))
            }
        }
    }
}

fn describe_unknown(error: DecodeError, payload: &[u8]) -> Refusal {
    match std::str::from_utf8(payload) {
        Ok(text) if !payload.is_empty() && !text.contains(char::is_control) => {
            Refusal { reason: "json", detail: "neither a JSON object nor a JSON array".to_owned() }
        }
        Ok(_) | Err(_) => error.into(),
    }
}

/// How a payload is to be read: text that begins with `{` or `[` is JSON.
pub(crate) fn encoding_of(payload: &[u8]) -> Encoding {
    match payload.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{' | b'[') => Encoding::Json,
        Some(_) | None => Encoding::Protobuf,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Settings;

    fn outcome(topic: &str, payload: &[u8]) -> String {
        let settings = Settings::load(None::<&Path>).expect("defaults are valid");
        match InputTopics::new(&settings.mqtt).decode(topic, payload) {
            Err(refusal) => format!("refused {}", refusal.reason),
            Ok(Input::Waveform(block)) => format!("waveform of {}", block.samples.len()),
            Ok(Input::Readings(readings)) => readings
                .iter()
                .map(|element| match &element.result {
                    Ok(_) => "ok ".to_owned(),
                    Err(error) => format!("{} ", error.reason()),
                })
                .collect(),
        }
    }

    #[test]
    fn a_topic_names_its_machine_where_the_filter_says_so() {
        let mut settings = Settings::load(None::<&Path>).expect("defaults are valid");
        settings.mqtt.waveform_topics = vec!["hall/+/raw/#".to_owned()];
        let topics = InputTopics::new(&settings.mqtt);
        assert_eq!(topics.filters(), ["plant/+/readings", "hall/+/raw/#"]);
        assert_eq!(topics.common_filters(), ["hall/+/raw/#"]);
        let press = MachineId::new("press-1").expect("valid");
        assert_eq!(topics.machine_filters(&press, InputKind::Readings), ["plant/press-1/readings"]);
        assert!(topics.machine_filters(&press, InputKind::Waveform).is_empty());
        assert_eq!(topics.machine("plant/press-1/readings"), Some("press-1"));
        assert_eq!(topics.machine("hall/press-1/raw/x"), None);
        assert_eq!(topics.kind("hall/press-1/raw/x"), Some(InputKind::Waveform));
        assert_eq!(topics.kind("plant/press-1/raw"), None);
    }

    #[test]
    fn each_kind_of_input_has_its_outcome() {
        let good = r#"{"sensor_id":"s","timestamp":"2026-03-01T08:15:30Z","metric_type":"temperature","value":1}"#;
        let topic = "plant/press-1/readings";
        assert_eq!(outcome(topic, good.as_bytes()), "ok ");
        assert_eq!(
            outcome(topic, format!("[{good},{{\"value\":1}},{good}]").as_bytes()),
            "ok missing-field ok "
        );
        assert_eq!(outcome(topic, &good.as_bytes()[..40]), "refused json");
        assert_eq!(outcome(topic, b"hello"), "refused json");
        assert_eq!(outcome(topic, b""), "refused empty");
        assert_eq!(outcome(topic, &[0xff, 0x00, 0x13]), "refused protobuf");
        assert_eq!(outcome(topic, &vec![b' '; 2 << 20]), "refused too-large");
        assert_eq!(outcome("plant/press-1/other", good.as_bytes()), "refused unknown-topic");
        let block = r#"{"machine_id":"m","sensor_id":"s","first_sample":"2026-03-01T08:15:30Z","sample_rate_hz":100,"samples":[1,2,3]}"#;
        assert_eq!(outcome("plant/press-1/waveform", block.as_bytes()), "waveform of 3");
        assert_eq!(outcome("plant/press-1/waveform", good.as_bytes()), "refused json");
    }
}
