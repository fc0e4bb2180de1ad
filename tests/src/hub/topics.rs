//! Topics and property bags, read as edgeHub and IoT Hub read them.

use std::collections::BTreeMap;

use super::{HubSettings, Peer};

/// Keys and values of a property bag or of what follows `?` in a topic, decoded.
pub(super) type Bag = BTreeMap<String, String>;

/// What a client can subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Channel {
    TwinAnswers,
    DesiredPatches,
    Methods,
    /// Inputs of a module, messages to a device.
    Inbox,
    Registrations,
}

impl Channel {
    /// `None`: nothing of this name exists for this peer.
    pub(super) fn of_filter(peer: Peer, settings: &HubSettings, filter: &str) -> Option<Self> {
        let all = [
            Self::TwinAnswers,
            Self::DesiredPatches,
            Self::Methods,
            Self::Inbox,
            Self::Registrations,
        ];
        all.into_iter().find(|channel| channel.filter(peer, settings).as_deref() == Some(filter))
    }

    /// The filter to subscribe to.
    pub(super) fn filter(self, peer: Peer, settings: &HubSettings) -> Option<String> {
        let filter = match (self, peer) {
            (Self::Registrations, Peer::Registration) => "$dps/registrations/res/#".to_owned(),
            (Self::Registrations, Peer::Module | Peer::Device) | (_, Peer::Registration) => {
                return None;
            }
            (Self::TwinAnswers, Peer::Module | Peer::Device) => "$iothub/twin/res/#".to_owned(),
            (Self::DesiredPatches, Peer::Module | Peer::Device) => {
                "$iothub/twin/PATCH/properties/desired/#".to_owned()
            }
            (Self::Methods, Peer::Module | Peer::Device) => "$iothub/methods/POST/#".to_owned(),
            (Self::Inbox, Peer::Module) => format!("{}/inputs/#", base(peer, settings)),
            (Self::Inbox, Peer::Device) => {
                format!("{}/messages/devicebound/#", base(peer, settings))
            }
        };
        Some(filter)
    }
}

/// What a publish of a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Event(Bag),
    GetTwin { rid: String },
    Report { rid: String },
    MethodAnswer { status: i32, rid: String },
    Register { rid: String },
    RegistrationStatus { rid: String, operation: String },
}

/// `None`: no such topic, or not this client's.
pub(super) fn parse(peer: Peer, settings: &HubSettings, topic: &str) -> Option<Request> {
    if peer == Peer::Registration {
        return parse_registration(topic);
    }
    let events = format!("{}/messages/events", base(peer, settings));
    if let Some(rest) = topic.strip_prefix(&events) {
        return match rest.strip_prefix('/') {
            Some(bag) => parse_bag(bag).map(Request::Event),
            None => rest.is_empty().then(|| Request::Event(Bag::new())),
        };
    }
    if let Some(query) = topic.strip_prefix("$iothub/twin/GET/") {
        return Some(Request::GetTwin { rid: rid(query)? });
    }
    if let Some(query) = topic.strip_prefix("$iothub/twin/PATCH/properties/reported/") {
        return Some(Request::Report { rid: rid(query)? });
    }
    let (status, query) = topic.strip_prefix("$iothub/methods/res/")?.split_once('/')?;
    Some(Request::MethodAnswer { status: status.parse().ok()?, rid: rid(query)? })
}

fn parse_registration(topic: &str) -> Option<Request> {
    if let Some(query) = topic.strip_prefix("$dps/registrations/PUT/iotdps-register/") {
        return Some(Request::Register { rid: rid(query)? });
    }
    let query = topic.strip_prefix("$dps/registrations/GET/iotdps-get-operationstatus/")?;
    let operation = parse_bag(query)?.remove("operationId")?;
    Some(Request::RegistrationStatus { rid: rid(query)?, operation })
}

/// What topics of a client begin with.
pub(super) fn base(peer: Peer, settings: &HubSettings) -> String {
    let HubSettings { device_id, module_id, .. } = settings;
    match peer {
        Peer::Module => format!("devices/{device_id}/modules/{module_id}"),
        Peer::Device | Peer::Registration => format!("devices/{device_id}"),
    }
}

fn rid(query: &str) -> Option<String> {
    parse_bag(query)?.remove("$rid").filter(|rid| !rid.is_empty())
}

/// Reads `k=v&k=v`, after a `?` or not and before a `/` or not. A `+` is a plus; a second `=` in a part is a fault.
pub(super) fn parse_bag(text: &str) -> Option<Bag> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let text = text.strip_prefix('?').unwrap_or(text);
    if text.contains('/') {
        return None;
    }
    let mut bag = Bag::new();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if value.contains('=') {
            return None;
        }
        bag.insert(decode(key)?, decode(value)?);
    }
    Some(bag)
}

/// Writes a bag with all but unreserved characters encoded.
pub(super) fn write_bag<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let parts: Vec<String> = pairs
        .into_iter()
        .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
        .collect();
    parts.join("&")
}

/// Percent-encodes all but the unreserved characters of RFC 3986, section 2.3.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// `None`: a `%` without two hexadecimal digits, or no UTF-8.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(peer: Peer, topic: &str) -> Option<Request> {
        let settings = HubSettings {
            device_id: "gw".to_owned(),
            module_id: "vib".to_owned(),
            ..HubSettings::default()
        };
        parse(peer, &settings, topic)
    }

    fn bag(pairs: &[(&str, &str)]) -> Bag {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn events_carry_their_bag() {
        let topic = "devices/gw/modules/vib/messages/events/%24.on=a%2Fb&x%20y=1%2B1/";
        let expected = Request::Event(bag(&[("$.on", "a/b"), ("x y", "1+1")]));
        assert_eq!(parsed(Peer::Module, topic), Some(expected));
        for bare in ["devices/gw/messages/events", "devices/gw/messages/events/"] {
            assert_eq!(parsed(Peer::Device, bare), Some(Request::Event(Bag::new())));
        }
    }

    #[test]
    fn what_a_client_may_not_publish_is_unknown() {
        let foreign = [
            "devices/gw/modules/other/messages/events/",
            "devices/gw/messages/events/",
            "devices/gw/modules/vib/messages/events/a=b=c",
            "devices/gw/modules/vib/messages/events/a=%zz",
            "devices/gw/modules/vib/messages/eventsx",
            "$iothub/twin/GET/",
            "$iothub/twin/GET/?$rid=",
            "$iothub/methods/res/ok/?$rid=1",
            "$dps/registrations/PUT/iotdps-register/?$rid=1",
            "sensors/a",
        ];
        for topic in foreign {
            assert_eq!(parsed(Peer::Module, topic), None, "{topic}");
        }
    }

    #[test]
    fn requests_are_told_from_each_other() {
        let rid = || "r-1".to_owned();
        let check = |topic, expected| assert_eq!(parsed(Peer::Module, topic), Some(expected));
        check("$iothub/twin/GET/?$rid=r-1", Request::GetTwin { rid: rid() });
        check("$iothub/twin/PATCH/properties/reported/?$rid=r-1", Request::Report { rid: rid() });
        check("$iothub/methods/res/-7/?$rid=r-1", Request::MethodAnswer { status: -7, rid: rid() });
        let status = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=r-1&operationId=o.1";
        let expected = Request::RegistrationStatus { rid: rid(), operation: "o.1".to_owned() };
        assert_eq!(parsed(Peer::Registration, status), Some(expected));
    }

    #[test]
    fn only_filters_that_exist_for_a_client_are_known() {
        let settings = HubSettings::default();
        let known = |peer, filter: &str| Channel::of_filter(peer, &settings, filter);
        let inputs = format!("{}/inputs/#", base(Peer::Module, &settings));
        assert_eq!(known(Peer::Module, &inputs), Some(Channel::Inbox));
        assert_eq!(known(Peer::Device, &inputs), None);
        assert_eq!(known(Peer::Module, "$iothub/twin/res/#"), Some(Channel::TwinAnswers));
        assert_eq!(known(Peer::Module, "$iothub/#"), None);
        assert_eq!(known(Peer::Module, "$dps/registrations/res/#"), None);
    }

    #[test]
    fn a_bag_comes_back_from_what_was_written() {
        let pairs = [("a b", "ü=&/+?"), ("$.ct", "application/json")];
        let text = write_bag(pairs);
        assert!(!text.contains([' ', '+', '/', '?', '#']), "{text}");
        assert_eq!(parse_bag(&text), Some(bag(&pairs)));
    }
}
