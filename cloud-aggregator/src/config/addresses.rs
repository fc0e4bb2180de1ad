//! What brokers, topics and the lake can be called.
//!
//! Kafka's client passes over the brokers that it cannot read and the storage over the options that it does not know, and tables in
//! memory are gone with the process: all of that looks like a program that works.

use std::net::Ipv6Addr;
use std::str::FromStr as _;

use deltalake::logstore::StorageConfig;
use deltalake::logstore::object_store::azure::AzureConfigKey;

/// Longest name of a topic, in bytes (`org.apache.kafka.common.internals.Topic`).
const TOPIC_BYTES_MAX: usize = 249;
/// What may stand before the `://` of a broker.
const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
/// What follows the name of a storage account (object_store 0.13, `MicrosoftAzureBuilder::parse_url`).
const ACCOUNT_HOSTS: [&str; 4] = [
    "dfs.core.windows.net",
    "blob.core.windows.net",
    "dfs.fabric.microsoft.com",
    "blob.fabric.microsoft.com",
];

/// Looks at the brokers: `[protocol://]host[:port]`, joined by commas, which blanks may follow (librdkafka,
/// `rd_kafka_brokers_add0`).
pub(super) fn check_brokers(brokers: &str) -> Result<(), String> {
    let named = brokers.split(',').map(|broker| broker.trim_start_matches(' '));
    let named: Vec<&str> = named.filter(|broker| !broker.is_empty()).collect();
    if named.is_empty() {
        return Err("is empty".to_owned());
    }
    match named.into_iter().find(|broker| !is_broker(broker)) {
        None => Ok(()),
        // A secret must not be repeated.
        Some(broker) if broker.contains("SharedAccessKey") => Err(
            "is a connection string: write the namespace as NAME.servicebus.windows.net:9093, and put the string into a file that \
             kafka.property-files.\"sasl.password\" names"
                .to_owned(),
        ),
        Some(broker) => Err(format!(
            "{broker:?} is no broker: write host:port or [IPv6]:port, several joined by commas, with ports from 1 to 65535"
        )),
    }
}

fn is_broker(text: &str) -> bool {
    let is_protocol = |word: &str| PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(word));
    let address = match text.split_once("://") {
        None => text,
        Some((protocol, address)) if is_protocol(protocol) => address,
        Some(_) => return false,
    };
    let (is_host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => {
            let without_zone = host.split_once('%').map_or(host, |(address, _)| address);
            (without_zone.parse::<Ipv6Addr>().is_ok(), port)
        }
        None => {
            let (host, port) = address.split_at(address.find(':').unwrap_or(address.len()));
            (is_host_name(host), port)
        }
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_host_name(text: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.bytes().all(is_legal)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Looks at the name of a topic.
pub(super) fn check_topic(name: &str) -> Result<(), String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_short = (1..=TOPIC_BYTES_MAX).contains(&name.len());
    if is_short && name.bytes().all(is_legal) && name != "." && name != ".." {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no name of a topic: Kafka allows 1 to {TOPIC_BYTES_MAX} letters without accents, digits, \".\", \"_\" and \"-\", \
         and neither \".\" nor \"..\""
    ))
}

/// Looks at where the lake is: a folder, or a container of Azure, which is all that this program is built to write to.
pub(super) fn check_location(location: &str) -> Result<(), String> {
    if location.trim().is_empty() {
        return Err("is empty".to_owned());
    }
    let refused = Err(format!(
        "{location:?} is nowhere that this program can write: name a folder, file:///FOLDER, \
         abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER, or az://CONTAINER/FOLDER with the account in lake.storage-options"
    ));
    let scheme = location.split_once(":/").map(|(scheme, _)| scheme);
    match scheme.filter(|scheme| !scheme.contains('/')) {
        Some("abfss" | "abfs" | "az") if is_container(location) => Ok(()),
        Some("file") => match location.strip_prefix("file://") {
            Some(folder) if folder.starts_with('/') => check_folder(folder),
            Some(_) | None => refused,
        },
        Some(_) => refused,
        // Whatever has it is taken for a URL.
        None if location.contains("://") => refused,
        None => check_folder(location),
    }
}

/// `CONTAINER@ACCOUNT.HOST` behind one of the schemes of Azure; behind `az` also the container alone, as with an emulator.
fn is_container(location: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(location) else { return false };
    let is_name = |name: &str| !name.is_empty() && !name.contains('.');
    let host = url.host_str().unwrap_or_default();
    let is_named = match host.split_once('.') {
        Some((account, host)) => {
            is_name(url.username()) && is_name(account) && ACCOUNT_HOSTS.contains(&host)
        }
        None => url.scheme() == "az" && url.username().is_empty() && is_name(host),
    };
    // The names of the tables are put behind it.
    is_named && url.query().is_none() && url.fragment().is_none()
}

fn check_folder(folder: &str) -> Result<(), String> {
    if folder == "~" || folder.starts_with("~/") {
        return Err(format!("{folder:?}: only a shell knows ~, write the folder in full"));
    }
    if std::fs::metadata(folder).is_ok_and(|found| !found.is_dir()) {
        return Err(format!("{folder:?} is a file: name a folder, it is made if it is missing"));
    }
    Ok(())
}

/// Looks at the name of an option of the storage: one of Azure, or one of the library's own.
pub(super) fn check_storage_option(name: &str) -> Result<(), String> {
    if is_storage_option(name) {
        return Ok(());
    }
    let right = name.replace('-', "_");
    if is_storage_option(&right) {
        return Err(format!("is written {right}, in the file: a variable makes - of _"));
    }
    Err("is no option of the storage: there are azure_storage_account_name, azure_storage_account_key, azure_client_id and so on \
         (the keys of object_store's AzureConfigKey), and max_retries, retry_timeout and so on"
        .to_owned())
}

fn is_storage_option(name: &str) -> bool {
    let is_own = match StorageConfig::parse_options([(name, "")]) {
        Ok(config) => config.unknown_properties.is_empty(),
        // The value is refused: the name is known.
        Err(_) => true,
    };
    is_own || AzureConfigKey::from_str(&name.to_ascii_lowercase()).is_ok()
}
