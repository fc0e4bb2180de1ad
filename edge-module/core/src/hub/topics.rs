//! Topics of the hub: what is subscribed, what is published, and what an incoming one says.
//!
//! Twin and method topics are the same for everyone; messages go under the identity's own base. A request's id comes back with
//! its answer as it was sent, so ids are never decoded. Incoming topics are of the other side: each that cannot be read is an
//! error, never a panic.

use std::collections::BTreeMap;

use super::identity::HubIdentity;
use super::properties::{decode, parse_bag, write_bag};

#[cfg(test)]
mod tests;

const TWIN_ANSWERS: &str = "$iothub/twin/res/";
const DESIRED_PATCHES: &str = "$iothub/twin/PATCH/properties/desired/";
const METHODS: &str = "$iothub/methods/POST/";
const INPUTS: &str = "inputs/";
const DEVICE_BOUND: &str = "messages/devicebound/";
/// Of a topic in an error, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// What arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The answer to a GET or a report.
    TwinAnswer {
        /// As of HTTP.
        status: u16,
        /// Id of the request, as it was sent.
        rid: String,
        /// Version of the reported properties, where the hub tells it.
        version: Option<u64>,
    },
    /// A change of the desired properties; the payload is the patch.
    DesiredPatch {
        /// The version that it leads to.
        version: u64,
    },
    /// A direct method; to be answered with [`method_answer`].
    Method {
        /// Name of the method.
        name: String,
        /// Id of the call, as it came.
        rid: String,
    },
    /// A message that a route brought to an input of the module.
    Input {
        /// Name of the input.
        name: String,
        /// Properties, those of the system included.
        properties: BTreeMap<String, String>,
    },
    /// A message to the device.
    CloudToDevice {
        /// Properties, those of the system included.
        properties: BTreeMap<String, String>,
    },
}

/// A topic that says nothing to us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// None that was subscribed.
    #[error("topic {topic:?} is none of the hub's")]
    Unknown {
        /// The topic, at most its first 200 characters.
        topic: String,
    },
    /// One of the hub's, but not to be read.
    #[error("topic {topic:?} has no valid {what}")]
    Malformed {
        /// The topic, at most its first 200 characters.
        topic: String,
        /// The part that is missing or cannot be read.
        what: &'static str,
    },
}

/// What to subscribe, at QoS 1, after each connect and before the first GET.
#[must_use]
pub fn subscriptions(identity: &HubIdentity) -> Vec<String> {
    let messages = if identity.module_id.is_some() { INPUTS } else { DEVICE_BOUND };
    vec![
        format!("{TWIN_ANSWERS}#"),
        format!("{DESIRED_PATCHES}#"),
        format!("{METHODS}#"),
        format!("{}/{messages}#", identity.topic_base()),
    ]
}

/// Where a message in JSON goes. `output` is that of a module, by which routes find it; a device has none. Content type and
/// encoding are told because a hub shows and routes the body as base64 without them.
#[must_use]
pub fn events(identity: &HubIdentity, properties: &[(&str, &str)], output: Option<&str>) -> String {
    let output = output.filter(|_| identity.module_id.is_some()).map(|output| ("$.on", output));
    let form = [("$.ct", "application/json"), ("$.ce", "utf-8")];
    let mut all = properties.to_vec();
    for (key, value) in output.into_iter().chain(form) {
        if all.iter().all(|(given, _)| *given != key) {
            all.push((key, value));
        }
    }
    format!("{}/messages/events/{}", identity.topic_base(), write_bag(&all))
}

/// Where the twin is asked for, with an empty payload.
#[must_use]
pub fn get_twin(rid: u64) -> String {
    format!("$iothub/twin/GET/?$rid={rid}")
}

/// Where a patch of the reported properties goes.
#[must_use]
pub fn report(rid: u64) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}")
}

/// Where the answer to a direct method goes.
#[must_use]
pub fn method_answer(rid: &str, status: i32) -> String {
    format!("$iothub/methods/res/{status}/?$rid={rid}")
}

/// Reads the topic of an incoming message.
///
/// # Errors
///
/// The topic was not subscribed, or lacks a part.
pub fn parse(identity: &HubIdentity, topic: &str) -> Result<Incoming, TopicError> {
    let read = if let Some(rest) = topic.strip_prefix(TWIN_ANSWERS) {
        twin_answer(rest)
    } else if let Some(rest) = topic.strip_prefix(DESIRED_PATCHES) {
        number(rest, "$version").map(|version| Incoming::DesiredPatch { version })
    } else if let Some(rest) = topic.strip_prefix(METHODS) {
        method(rest)
    } else if let Some(read) = message(identity, topic) {
        read
    } else {
        return Err(TopicError::Unknown { topic: shown(topic) });
    };
    read.map_err(|what| TopicError::Malformed { topic: shown(topic), what })
}

/// What was read, or the part that could not be.
type Read<T> = Result<T, &'static str>;

/// `200/?$rid=7&$version=3`
fn twin_answer(rest: &str) -> Read<Incoming> {
    let (status, query) = rest.split_once('/').ok_or("status")?;
    let status = digits(status).ok_or("status")?;
    let rid = request_id(query)?;
    let version = match value(query, "$version") {
        Some(version) => Some(digits(version).ok_or("$version")?),
        None => None,
    };
    Ok(Incoming::TwinAnswer { status, rid, version })
}

/// `stop/?$rid=7`
fn method(rest: &str) -> Read<Incoming> {
    let (name, query) = rest.split_once('/').ok_or("name")?;
    let name = decode(name).filter(|name| !name.is_empty()).ok_or("name")?;
    Ok(Incoming::Method { name, rid: request_id(query)? })
}

/// A message under the identity's own base; `None` if it is not under it.
fn message(identity: &HubIdentity, topic: &str) -> Option<Read<Incoming>> {
    let rest = topic.strip_prefix(&identity.topic_base())?.strip_prefix('/')?;
    if identity.module_id.is_some() {
        rest.strip_prefix(INPUTS).map(input)
    } else {
        let bag = rest.strip_prefix(DEVICE_BOUND)?;
        let properties = parse_bag(bag).ok_or("properties");
        Some(properties.map(|properties| Incoming::CloudToDevice { properties }))
    }
}

/// `opc/%24.cdid=gw-07`
fn input(rest: &str) -> Read<Incoming> {
    let (name, bag) = rest.split_once('/').unwrap_or((rest, ""));
    let name = decode(name).filter(|name| !name.is_empty()).ok_or("name")?;
    let properties = parse_bag(bag).ok_or("properties")?;
    Ok(Incoming::Input { name, properties })
}

fn request_id(query: &str) -> Read<String> {
    value(query, "$rid").filter(|rid| !rid.is_empty()).map(str::to_owned).ok_or("$rid")
}

fn number(query: &str, name: &'static str) -> Read<u64> {
    value(query, name).and_then(digits).ok_or(name)
}

/// The value of a member of `?name=value&…`, as it stands.
fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.strip_prefix('?')?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| decode(key).as_deref() == Some(name)).map(|(_, value)| value)
}

/// A number in decimal digits, without the sign that the standard parser would allow.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn shown(topic: &str) -> String {
    topic.chars().take(SHOWN_CHARS_MAX).collect()
}
