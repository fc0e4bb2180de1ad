//! Headers of the messages of an IoT Hub as its built-in endpoint, or an Event Hub behind a route, gives them to a Kafka client.
//!
//! Properties of a message become headers. What came by AMQP, as all of an IoT Hub does, has its values as AMQP encodes them (OASIS AMQP
//! 1.0, part 1, sections 1.6.20 and 1.6.21): a byte that says what follows, the length in one byte or four, the text. These first bytes
//! begin no text in UTF-8, so that a plain text, as a Kafka client writes it, is told apart for sure.

use rdkafka::message::Headers;
use shared_proto::Encoding;
use shared_proto::codec::DecodeError;
use shared_proto::wire::CONTENT_TYPE_HEADER;

use crate::config::Hub;
use crate::source::HubMessage;

/// Message property that names the Kafka topic which a record would stand in.
const TOPIC: &str = "topic";
/// The device, as the hub has authenticated it.
const DEVICE: &str = "iothub-connection-device-id";
/// `Telemetry`, or what the hub itself tells: changes of twins, connections.
const ORIGIN: &str = "iothub-message-source";
/// Longest value that is looked at: a topic of Kafka has 249, a device of an IoT Hub 128.
const TEXT_BYTES_MAX: usize = 256;

const STR8: u8 = 0xa1;
const STR32: u8 = 0xb1;
const SYM8: u8 = 0xa3;
const SYM32: u8 = 0xb3;

/// What a message says of itself.
pub(super) fn describe<H: Headers>(headers: Option<&H>, hub: &Hub) -> HubMessage {
    let text = |name| {
        let text = value(headers, name).and_then(text_of)?;
        let is_clean = text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
        is_clean.then(|| text.to_owned())
    };
    let topic = text(TOPIC);
    let kind = topic.as_deref().and_then(|topic| hub.kind_of(topic));
    HubMessage { topic, kind, device: text(DEVICE), origin: text(ORIGIN) }
}

/// The encoding of its records.
pub(super) fn encoding<H: Headers>(headers: Option<&H>) -> Result<Encoding, DecodeError> {
    let found = value(headers, CONTENT_TYPE_HEADER);
    // One that is no text is no content type that anybody knows.
    Encoding::from_content_type(found.map(|raw| text_of(raw).map_or(raw, str::as_bytes)))
}

fn value<'a, H: Headers>(headers: Option<&'a H>, name: &str) -> Option<&'a [u8]> {
    let headers = headers?;
    let mut all = (0..headers.count()).map(|index| headers.get(index));
    all.find(|header| header.key == name)?.value
}

/// The text that a header holds, whichever way it is encoded.
fn text_of(value: &[u8]) -> Option<&str> {
    let text = match value {
        [STR8 | SYM8, length, text @ ..] => (text.len() == usize::from(*length)).then_some(text)?,
        [STR32 | SYM32, a, b, c, d, text @ ..] => {
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            (u32::try_from(text.len()) == Ok(length)).then_some(text)?
        }
        plain => plain,
    };
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;
    use crate::config::Settings;
    use crate::source::TopicKind;

    fn headers(all: &[(&str, &[u8])]) -> OwnedHeaders {
        all.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        })
    }

    #[test]
    fn a_header_is_text_as_it_is_or_as_amqp_has_it() {
        let check = |value: &[u8], expected: Option<&str>| {
            assert_eq!(text_of(value), expected, "{value:x?}");
        };
        check(b"temperature", Some("temperature"));
        check(b"\xa1\x0btemperature", Some("temperature"));
        check(b"\xb1\0\0\0\x0btemperature", Some("temperature"));
        check(b"\xa3\x01t", Some("t"));
        check(b"\xb3\0\0\0\x01t", Some("t"));
        check(b"\xa1\0", Some(""));
        check(b"", Some(""));
        check("\u{fc}ber".as_bytes(), Some("\u{fc}ber"));
        // Cut, longer than told, another type (a ulong, a timestamp), no UTF-8.
        check(b"\xa1\x0ctemperature", None);
        check(b"\xa1\x0atemperature", None);
        check(b"\xa1", None);
        check(b"\xb1\0\0\0", None);
        check(b"\xb1\xff\xff\xff\xfftemperature", None);
        check(b"\x80\0\0\0\0\0\0\0\xff", None);
        check(b"\xa1\x01\xff", None);
    }

    #[test]
    fn a_message_says_what_it_holds_and_who_has_sent_it() {
        let hub = Settings::load(None).expect("valid defaults").kafka.hub;
        let all = headers(&[
            ("iothub-enqueuedtime", b"\x83\0\0\x01\x95\0\0\0\0"),
            ("iothub-connection-device-id", b"\xa1\x05gw-07"),
            ("iothub-message-source", b"\xa1\x09Telemetry"),
            ("topic", b"\xa1\x08pressure"),
            ("content-type", b"\xa1\x16application/x-protobuf"),
            ("topic", b"second"),
        ]);
        let text = |text: &str| Some(text.to_owned());
        let expected = HubMessage {
            topic: text("pressure"),
            kind: Some(TopicKind::Readings),
            device: text("gw-07"),
            origin: text("Telemetry"),
        };
        assert_eq!(describe(Some(&all), &hub), expected);
        assert!(matches!(encoding(Some(&all)), Ok(Encoding::Protobuf)));
        assert_eq!(describe::<OwnedHeaders>(None, &hub), HubMessage::default());
        assert!(matches!(encoding::<OwnedHeaders>(None), Ok(Encoding::Json)));
        let plain = headers(&[("topic", b"pressure"), ("content-type", b"application/json")]);
        assert_eq!(describe(Some(&plain), &hub).topic, text("pressure"));
        assert!(matches!(encoding(Some(&plain)), Ok(Encoding::Json)));
        let odd = headers(&[
            ("topic", b"a\nb"),
            ("iothub-connection-device-id", &[b'd'; 257]),
            ("content-type", b"\x56\x01"),
        ]);
        assert_eq!(describe(Some(&odd), &hub), HubMessage::default());
        assert!(matches!(encoding(Some(&odd)), Err(DecodeError::ContentType(_))));
    }
}
