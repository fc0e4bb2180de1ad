//! `[alerts.event-hubs]`: the topic of alerts as an Event Hub, by its Kafka endpoint, without a librdkafka property in the settings.
//!
//! What the service does not take is refused before the start, since it answers with timeouts: codecs other than gzip, records of
//! 1,000,000 bytes and more, connections that are silent for longer than its load balancer keeps them (four minutes).
//!
//! Sources: "Azure Event Hubs for Apache Kafka" and "Recommended configurations for Apache Kafka clients" of the Azure documentation;
//! librdkafka's CONFIGURATION.md for the names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::addresses::check_topic;
use super::validate::Faults;
use super::{Secret, read_secret};

/// Port of the Kafka endpoint.
const KAFKA_PORT: u16 = 9093;
/// User that says that the password is a connection string.
const CONNECTION_STRING_USER: &str = "$ConnectionString";
/// What the service's hosts end with in the public cloud and the sovereign ones.
const SERVICE_HOSTS: [&str; 4] = [
    ".servicebus.windows.net",
    ".servicebus.usgovcloudapi.net",
    ".servicebus.chinacloudapi.cn",
    ".servicebus.cloudapi.de",
];
/// Largest request of a record: the service refuses 1,000,000 bytes and more.
const MESSAGE_BYTES_MAX: u64 = 999_999;
const REQUEST_TIMEOUT_MS: u64 = 60_000;
/// Longer than a request: librdkafka gives up a record before its request otherwise.
const MESSAGE_TIMEOUT_MS: u64 = 120_000;
/// Idle connections are closed by the service's load balancer after 240 s.
const METADATA_AGE_MS: u64 = 180_000;
const METADATA_AGE_MS_MAX: u64 = 240_000;

/// `[alerts.event-hubs]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EventHubs {
    /// How the service knows us.
    pub authentication: Authentication,
    /// File with the connection string; empty is off.
    pub connection_string_file: PathBuf,
    /// Host of the namespace, for `oauthbearer`; with a connection string it stands in there.
    pub namespace: String,
    /// Client id of a user-assigned identity; empty: the one that the machine has.
    pub client_id: String,
    /// `none` or `gzip`.
    pub compression: String,
    /// librdkafka's `enable.idempotence`.
    pub idempotence: bool,
}

/// How the service knows us.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// A key, by SASL PLAIN.
    ConnectionString,
    /// A token of Microsoft Entra ID, by SASL OAUTHBEARER.
    Oauthbearer,
}

/// What a client needs.
#[derive(Clone, Debug)]
pub struct Connection {
    /// librdkafka's `bootstrap.servers`.
    pub brokers: String,
    /// librdkafka's properties that are no secret.
    pub properties: BTreeMap<&'static str, String>,
    /// librdkafka's `sasl.password`.
    pub password: Option<Secret>,
    /// Event Hub that the connection string names.
    pub entity: Option<String>,
    /// Scope of the tokens, for `oauthbearer`.
    pub token_scope: Option<String>,
}

/// The parts of a connection string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// Host of the namespace.
    pub host: String,
    /// Name of the key.
    pub key_name: String,
    /// The Event Hub, if the key is for one alone.
    pub entity: Option<String>,
    /// All of it: the password.
    pub whole: Secret,
}

impl EventHubs {
    /// Whether the topic of alerts is an Event Hub by these settings; otherwise it is a topic of `kafka.brokers`.
    #[must_use]
    pub fn is_on(&self) -> bool {
        match self.authentication {
            Authentication::ConnectionString => !self.connection_string_file.as_os_str().is_empty(),
            Authentication::Oauthbearer => true,
        }
    }

    /// What a client needs; `None` if this is off.
    ///
    /// # Errors
    /// What is wrong, behind the key below `alerts.event-hubs`. No text holds a key or a part of one.
    pub fn connection(&self) -> Result<Option<Connection>, (&'static str, String)> {
        if !self.is_on() {
            return Ok(None);
        }
        check_compression(&self.compression).map_err(|text| ("compression", text))?;
        let connection = match self.authentication {
            Authentication::ConnectionString => {
                let file = "connection-string-file";
                let text =
                    read_secret(&self.connection_string_file).map_err(|text| (file, text))?;
                by_key(ConnectionString::parse(&text).map_err(|text| (file, text))?)
            }
            Authentication::Oauthbearer => {
                check_namespace(&self.namespace).map_err(|text| ("namespace", text))?;
                by_token(&self.namespace)
            }
        };
        let mut connection = connection;
        connection.properties.extend(limits(&self.compression, self.idempotence));
        Ok(Some(connection))
    }

    /// Every fault of these settings together with `alerts.topic`.
    pub(super) fn check(&self, faults: &mut Faults, topic: &str) {
        let at = |key: &str| format!("alerts.event-hubs.{key}");
        let connection = match self.connection() {
            Ok(Some(connection)) => connection,
            Ok(None) => {
                if !self.namespace.is_empty() {
                    let text =
                        "needs authentication = \"oauthbearer\": a connection string names its own";
                    faults.add(at("namespace"), text);
                }
                return;
            }
            Err((key, text)) => return faults.add(at(key), text),
        };
        match (&connection.entity, topic) {
            (None, "") => faults.add("alerts.topic", "is empty: name the Event Hub of alerts"),
            (Some(entity), topic) if topic != entity => {
                let text = format!("is {topic:?}, the connection string is for {entity:?} alone");
                faults.add("alerts.topic", text);
            }
            (None | Some(_), _) => {}
        }
    }
}

impl ConnectionString {
    /// Reads `Endpoint=sb://HOST/;SharedAccessKeyName=NAME;SharedAccessKey=KEY;EntityPath=HUB`, in any order; the last is optional.
    ///
    /// # Errors
    /// What is wrong; never a part of the text, since it may be the key in a wrong place.
    pub fn parse(secret: &Secret) -> Result<Self, String> {
        let text = secret.expose();
        if text.lines().count() > 1 {
            return Err("has several lines: write the connection string alone".to_owned());
        }
        let parts = parts(text)?;
        let part = |name: &str| {
            let value = parts.get(name.to_ascii_lowercase().as_str()).copied();
            value.filter(|value| !value.is_empty())
        };
        let needed = |name: &str| part(name).ok_or(format!("has no {name}: copy it whole"));
        let endpoint = needed("Endpoint")?;
        let host = endpoint.strip_prefix("sb://").map(|rest| rest.trim_end_matches('/'));
        let host = host.ok_or("has an Endpoint that does not begin with sb://")?;
        check_namespace(host).map_err(|_| "has an Endpoint that is not sb://HOST/")?;
        let key_name = needed("SharedAccessKeyName")?.to_owned();
        needed("SharedAccessKey")?;
        let entity = part("EntityPath").map(str::to_owned);
        if entity.as_deref().is_some_and(|entity| check_topic(entity).is_err()) {
            return Err("has an EntityPath that is no name of an Event Hub".to_owned());
        }
        Ok(Self { host: host.to_owned(), key_name, entity, whole: secret.clone() })
    }
}

/// By their names in lower case.
fn parts(text: &str) -> Result<BTreeMap<&'static str, &str>, String> {
    const NAMES: [&str; 4] = ["endpoint", "sharedaccesskeyname", "sharedaccesskey", "entitypath"];
    let mut parts = BTreeMap::new();
    let pieces = text.split(';').map(str::trim).filter(|piece| !piece.is_empty());
    for (index, piece) in pieces.enumerate() {
        let number = index + 1;
        let (name, value) = piece
            .split_once('=')
            .ok_or(format!("is no connection string: part {number} is not NAME=VALUE"))?;
        let name = name.trim();
        if name.eq_ignore_ascii_case("SharedAccessSignature") {
            return Err("holds a SharedAccessSignature: the Kafka endpoint needs a key \
                        (SharedAccessKeyName and SharedAccessKey)"
                .to_owned());
        }
        let known = NAMES.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        let known = known.ok_or(format!(
            "has a part {number} that is not known; there are Endpoint, SharedAccessKeyName, SharedAccessKey and EntityPath"
        ))?;
        if parts.insert(known, value.trim()).is_some() {
            return Err(format!("has two parts {known}"));
        }
    }
    Ok(parts)
}

fn by_key(found: ConnectionString) -> Connection {
    let properties = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanisms", "PLAIN"),
        ("sasl.username", CONNECTION_STRING_USER),
    ];
    Connection {
        brokers: format!("{}:{KAFKA_PORT}", found.host),
        properties: properties.map(|(name, value)| (name, value.to_owned())).into(),
        password: Some(found.whole),
        entity: found.entity,
        token_scope: None,
    }
}

fn by_token(namespace: &str) -> Connection {
    let properties = [("security.protocol", "SASL_SSL"), ("sasl.mechanisms", "OAUTHBEARER")];
    Connection {
        brokers: format!("{namespace}:{KAFKA_PORT}"),
        properties: properties.map(|(name, value)| (name, value.to_owned())).into(),
        password: None,
        entity: None,
        token_scope: Some(format!("https://{namespace}/.default")),
    }
}

fn limits(compression: &str, idempotence: bool) -> [(&'static str, String); 7] {
    [
        ("request.timeout.ms", REQUEST_TIMEOUT_MS.to_string()),
        ("message.timeout.ms", MESSAGE_TIMEOUT_MS.to_string()),
        ("metadata.max.age.ms", METADATA_AGE_MS.to_string()),
        ("socket.keepalive.enable", true.to_string()),
        ("compression.codec", compression.to_owned()),
        ("message.max.bytes", MESSAGE_BYTES_MAX.to_string()),
        ("enable.idempotence", idempotence.to_string()),
    ]
}

fn check_compression(codec: &str) -> Result<(), String> {
    match codec {
        "none" | "gzip" => Ok(()),
        other => Err(format!(
            "{other:?} is a codec that Event Hubs does not take: its Kafka endpoint knows gzip alone; write \"none\" or \"gzip\""
        )),
    }
}

fn check_namespace(host: &str) -> Result<(), String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if host.contains('.') && host.bytes().all(is_legal) {
        return Ok(());
    }
    Err(format!("{host:?} is no host of a namespace: write NAME.servicebus.windows.net"))
}

/// What Event Hubs would not take of librdkafka's properties, if one of the brokers is its endpoint: property and text.
#[must_use]
pub(super) fn property_faults(
    brokers: &str,
    properties: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    if !is_event_hubs(brokers) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for (property, value) in properties {
        let checked = check_property(property, value);
        faults.extend(checked.err().map(|text| (property.clone(), text)));
    }
    faults
}

/// Whether one of the brokers is an endpoint of Event Hubs; that of an IoT Hub is one.
pub(super) fn is_event_hubs(brokers: &str) -> bool {
    brokers.split(',').any(|broker| {
        let host = broker.trim().rsplit("://").next().unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
        SERVICE_HOSTS.iter().any(|known| host.ends_with(known))
    })
}

fn check_property(property: &str, value: &str) -> Result<(), String> {
    let at_most = |limit: u64, why: &str| match value.parse::<u64>() {
        Ok(number) if number > limit => Err(format!("is {number}: {why}, at most {limit}")),
        // librdkafka says what is no number.
        Ok(_) | Err(_) => Ok(()),
    };
    match property {
        "compression.codec" | "compression.type" => check_compression(value),
        "message.max.bytes" => {
            at_most(MESSAGE_BYTES_MAX, "Event Hubs refuses requests of 1,000,000 bytes and more")
        }
        "metadata.max.age.ms" => at_most(
            METADATA_AGE_MS_MAX,
            "Event Hubs closes connections that are silent for four minutes",
        ),
        "socket.keepalive.enable" if value.eq_ignore_ascii_case("false") => {
            Err("is off: Event Hubs closes connections that are silent for four minutes".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
