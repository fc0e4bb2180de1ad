//! Property bags of topics: `key=value&key=value`, both percent-encoded.
//!
//! A hub decodes no `+` as a space, ends a bag at `/` and refuses a bare `=` in a value, and MQTT allows neither `+` nor `#` in a
//! topic. So everything but the unreserved characters of RFC 3986 is encoded, and a space is `%20`.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Percent-encodes all but the unreserved characters of RFC 3986, section 2.3.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes everything");
        }
    }
    encoded
}

/// Undoes [`encode`]; a `+` stays one. `None` where an escape is not one, or where the result is not UTF-8.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (hex_digit(bytes.next()?)?, hex_digit(bytes.next()?)?);
            decoded.push(high << 4 | low);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

/// Writes a bag in the order given.
#[must_use]
pub fn write_bag(properties: &[(&str, &str)]) -> String {
    let pairs = properties.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// Reads a bag, with or without a `?` before and a `/` after it. A key alone, which is how a hub writes a property without a
/// value, has an empty one. `None` where an escape or a pair is malformed, or a key is there twice.
#[must_use]
pub fn parse_bag(bag: &str) -> Option<BTreeMap<String, String>> {
    let bag = bag.strip_prefix('?').unwrap_or(bag);
    let bag = bag.strip_suffix('/').unwrap_or(bag);
    let mut properties = BTreeMap::new();
    if bag.is_empty() {
        return Some(properties);
    }
    for pair in bag.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() || value.contains('=') {
            return None;
        }
        if properties.insert(decode(key)?, decode(value)?).is_some() {
            return None;
        }
    }
    Some(properties)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_but_unreserved_characters_is_encoded() {
        let check = |text: &str, expected: &str| {
            assert_eq!(encode(text), expected);
            assert_eq!(decode(expected).as_deref(), Some(text));
        };
        check("", "");
        check("AZaz09-._~", "AZaz09-._~");
        check("press 1/+#", "press%201%2F%2B%23");
        check("$.ct=application/json", "%24.ct%3Dapplication%2Fjson");
        check("50 µm", "50%20%C2%B5m");
    }

    #[test]
    fn malformed_escapes_are_no_text() {
        for text in ["%", "%2", "%2G", "%G2", "%+2", "a%", "%FF", "%C2", "%é"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode("a+b%2f").as_deref(), Some("a+b/"));
    }

    #[test]
    fn bags_are_read_as_hubs_write_them() {
        let check = |bag: &str, expected: Option<&[(&str, &str)]>| {
            let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
            };
            assert_eq!(parse_bag(bag), expected.map(pairs), "{bag}");
        };
        check("", Some(&[]));
        check("?", Some(&[]));
        check("/", Some(&[]));
        check("a=1&b=2", Some(&[("a", "1"), ("b", "2")]));
        check("?%24.cdid=gw-07&%24.cmid=opc/", Some(&[("$.cdid", "gw-07"), ("$.cmid", "opc")]));
        check("a=&b", Some(&[("a", ""), ("b", "")]));
        check("a=x+y%20z", Some(&[("a", "x+y z")]));
        for bag in ["a=1=2", "=1", "a=1&", "&a=1", "a=%2", "%=1", "a=1&a=2", "a=1&%61=2"] {
            check(bag, None);
        }
    }

    proptest! {
        #[test]
        fn text_survives_its_encoding(text in any::<String>()) {
            let encoded = encode(&text);
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!encoded.contains(['/', '+', '#', '=', '&', '?', '$', ' ']));
            prop_assert_eq!(decode(&encoded), Some(text));
        }

        #[test]
        fn bag_survives_its_writing(
            properties in prop::collection::btree_map(".{1,12}", ".{0,12}", 0..6),
        ) {
            let pairs: Vec<(&str, &str)> =
                properties.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            prop_assert_eq!(parse_bag(&write_bag(&pairs)), Some(properties));
        }

        #[test]
        fn no_text_makes_the_reader_fail(text in any::<String>()) {
            prop_assert!(parse_bag(&text).is_none_or(|bag| bag.len() <= text.len()));
            prop_assert!(decode(&text).is_none_or(|decoded| decoded.len() <= text.len()));
        }
    }
}
