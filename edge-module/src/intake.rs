//! MQTT messages to domain values, for both paths.

use rumqttc::matches;
use shared_proto::Encoding;
use shared_proto::codec::{self, DecodeError, Element};
use shared_proto::model::WaveformBlock;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Scalar readings.
    Readings,
    /// Raw samples.
    Waveform,
}

/// Which topic carries what.
pub struct InputTopics {
    readings: Vec<String>,
    waveforms: Vec<String>,
    payload_bytes_max: usize,
}

impl InputTopics {
    /// The topic filters of the settings.
    #[must_use]
    pub fn new(mqtt: &Mqtt) -> Self {
        Self {
            readings: mqtt.reading_topics.clone(),
            waveforms: mqtt.waveform_topics.clone(),
            payload_bytes_max: mqtt.payload_bytes_max,
        }
    }

    /// What to subscribe to.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        self.readings.iter().chain(&self.waveforms).cloned().collect()
    }

    /// What a topic carries; `None` if it is in neither list.
    #[must_use]
    pub fn kind(&self, topic: &str) -> Option<InputKind> {
        if self.waveforms.iter().any(|filter| matches(topic, filter)) {
            return Some(InputKind::Waveform);
        }
        self.readings.iter().any(|filter| matches(topic, filter)).then_some(InputKind::Readings)
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
        if self.waveforms.iter().any(|filter| matches(topic, filter)) {
            return Ok(Input::Waveform(codec::decode_waveform_block(payload, encoding)?));
        }
        if !self.readings.iter().any(|filter| matches(topic, filter)) {
            return Err(Refusal {
                reason: "unknown-topic",
                detail: format!("topic {topic} is in neither reading-topics nor waveform-topics"),
            });
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

/// Text that begins with `{` or `[` is JSON, anything else protobuf.
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
