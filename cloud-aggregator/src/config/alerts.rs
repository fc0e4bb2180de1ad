//! `[alerts]`: where alerts go, and who wants which.
//!
//! The keys `webhook-…` make one target called "webhook" that gets everything; `[[alerts.targets]]` are further ones.
//! The URL of a Logic App holds a signature: it is read from a file, and neither it nor any URL is ever printed, but for its host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aggregator_core::{AlertEvent, AlertState};
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::event_hubs::EventHubs;
use super::validate::{DAY, Faults, SECOND};
use super::{Secret, read_secret};
use crate::sink::alert::WEBHOOK;

/// Most targets, the one of the keys `webhook-…` among them.
pub const TARGETS_MAX: usize = 16;
/// Longest name of a target, in bytes: it is a label of metrics.
const NAME_BYTES_MAX: usize = 64;
/// Names that metrics have for others.
const NAMES_RESERVED: [&str; 2] = ["all", "topic"];
/// Most names of rules of one target.
const TARGET_RULES_MAX: usize = 1000;
const SEVERITY_MAX: u8 = 4;
/// Headers that the delivery itself decides.
const OWN_HEADERS: [&str; 5] =
    ["connection", "content-length", "host", "idempotency-key", "transfer-encoding"];

/// `[alerts]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Alerts {
    /// Kafka topic; empty is off.
    pub topic: String,
    /// Where the topic is, if it is an Event Hub of its own.
    pub event_hubs: EventHubs,
    /// People and machines that are told by HTTP.
    pub targets: Vec<TargetKeys>,
    /// Webhook; empty is off.
    pub webhook_url: Secret,
    /// Hosts for which plain http is allowed.
    pub webhook_plain_hosts: Vec<String>,
    /// Hosts that the webhook may name; empty is any.
    pub webhook_allowed_hosts: Vec<String>,
    /// Headers.
    pub webhook_headers: BTreeMap<String, String>,
    /// Headers whose values are in files.
    pub webhook_header_files: BTreeMap<String, PathBuf>,
    /// Wait for one answer.
    #[serde(with = "humantime_serde")]
    pub webhook_timeout: Duration,
    /// First wait between attempts.
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// Longest wait between attempts.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// Longest Retry-After that is respected.
    #[serde(with = "humantime_serde")]
    pub retry_after_max: Duration,
    /// Attempts before an alert becomes a dead letter.
    pub webhook_attempts_max: u32,
    /// Failures in a row after which a target is only probed.
    pub circuit_failures: u32,
    /// Wait between two probes.
    #[serde(with = "humantime_serde")]
    pub circuit_wait: Duration,
    /// Age at which an alert that a target has not taken becomes a dead letter.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Alerts that may wait for one channel.
    pub queue_length: usize,
    /// Alerts owed in all.
    pub pending_max: usize,
    /// `source` of the CloudEvents.
    pub source: String,
}

/// What sort of target it is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// HTTP POST of a CloudEvent.
    Webhook,
}

impl TargetKind {
    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
        }
    }
}

/// One of `[[alerts.targets]]` as it is written. Keys that are left out and stand in `[alerts]` are taken from there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TargetKeys {
    /// Unique.
    pub name: String,
    /// What sort of target it is.
    pub kind: TargetKind,
    /// Where it is; or `url-file`.
    pub url: Option<Secret>,
    /// File with its URL.
    pub url_file: Option<PathBuf>,
    /// Hosts for which plain http is allowed.
    #[serde(default)]
    pub plain_hosts: Vec<String>,
    /// Hosts that the URL may name; empty: the one that it names.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Headers whose values are in files.
    #[serde(default)]
    pub header_files: BTreeMap<String, PathBuf>,
    /// Wait for one answer.
    #[serde(default, with = "humantime_serde")]
    pub timeout: Option<Duration>,
    /// Attempts before an alert becomes a dead letter.
    pub attempts_max: Option<u32>,
    /// First wait between attempts.
    #[serde(default, with = "humantime_serde")]
    pub retry_min: Option<Duration>,
    /// Longest wait between attempts.
    #[serde(default, with = "humantime_serde")]
    pub retry_max: Option<Duration>,
    /// Longest Retry-After that is respected.
    #[serde(default, with = "humantime_serde")]
    pub retry_after_max: Option<Duration>,
    /// Age at which an alert becomes a dead letter.
    #[serde(default, with = "humantime_serde")]
    pub deadline: Option<Duration>,
    /// Failures in a row after which it is only probed.
    pub circuit_failures: Option<u32>,
    /// Wait between two probes.
    #[serde(default, with = "humantime_serde")]
    pub circuit_wait: Option<Duration>,
    /// Only alerts that are at least this severe: 0 (critical) to 4 (all).
    #[serde(default = "all_severities")]
    pub severity_max: u8,
    /// Only alerts of these rules; empty: of all.
    #[serde(default)]
    pub rules: BTreeSet<String>,
    /// Also alerts that are told late, for the record.
    #[serde(default)]
    pub historical: bool,
    /// Also that an alert is over.
    #[serde(default = "yes")]
    pub resolved: bool,
    /// More events than this in `rate-window` become one digest; 0: never.
    #[serde(default)]
    pub rate_max: u32,
    /// Over which time events are counted.
    #[serde(default = "rate_window", with = "humantime_serde")]
    pub rate_window: Duration,
}

const fn all_severities() -> u8 {
    SEVERITY_MAX
}

const fn yes() -> bool {
    true
}

const fn rate_window() -> Duration {
    Duration::from_secs(300)
}

/// Which events a channel wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// Least severity, as a number: 0 is the most severe.
    pub severity_max: u8,
    /// Rules; empty: all.
    pub rules: BTreeSet<String>,
    /// Also what is told late.
    pub historical: bool,
    /// Also that an alert is over.
    pub resolved: bool,
}

impl Audience {
    /// Wants every event.
    #[must_use]
    pub fn everything() -> Self {
        let rules = BTreeSet::new();
        Self { severity_max: SEVERITY_MAX, rules, historical: true, resolved: true }
    }

    /// Whether an event is for this channel. All events of an alert have its severity and rule: who hears of its begin hears of its end.
    #[must_use]
    pub fn wants(&self, event: &AlertEvent) -> bool {
        let is_wanted = match event.state {
            AlertState::Fired => true,
            AlertState::Resolved => self.resolved,
        };
        is_wanted
            && (event.severity <= self.severity_max || self.severity_max >= SEVERITY_MAX)
            && (self.rules.is_empty() || self.rules.contains(&event.rule))
            && (self.historical || !event.historical)
    }
}

/// More events than this in a time become one digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Events that are told one by one.
    pub max: u32,
    /// In this time.
    pub window: Duration,
}

/// Where a URL stands.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// In the settings.
    Url(Secret),
    /// In a file.
    File(PathBuf),
}

/// A target with all that it needs.
#[derive(Clone, Debug)]
pub struct Target {
    /// Unique.
    pub name: String,
    /// What sort of target it is.
    pub kind: TargetKind,
    /// What stands before its keys in the settings.
    pub(crate) prefix: &'static str,
    pub(crate) address: Address,
    pub(crate) plain_hosts: Vec<String>,
    pub(crate) allowed_hosts: Vec<String>,
    /// Headers.
    pub headers: BTreeMap<String, String>,
    /// Headers whose values are in files.
    pub header_files: BTreeMap<String, PathBuf>,
    /// Wait for one answer.
    pub timeout: Duration,
    /// Attempts before an alert becomes a dead letter.
    pub attempts_max: u32,
    /// First wait between attempts.
    pub retry_min: Duration,
    /// Longest wait between attempts.
    pub retry_max: Duration,
    /// Longest Retry-After that is respected.
    pub retry_after_max: Duration,
    /// Age at which an alert becomes a dead letter.
    pub deadline: Duration,
    /// Failures in a row after which it is only probed.
    pub circuit_failures: u32,
    /// Wait between two probes.
    pub circuit_wait: Duration,
    /// Which events it wants.
    pub audience: Audience,
    /// When events become a digest; `None`: never.
    pub rate: Option<Rate>,
    /// `source` of the CloudEvents.
    pub source: String,
}

impl Alerts {
    /// All targets: that of the keys `webhook-…` first. A target of which it is not said where it is, which the check of the settings
    /// reports, is left out.
    #[must_use]
    pub fn all_targets(&self) -> Vec<Target> {
        let webhook = (!self.webhook_url.expose().is_empty()).then(|| self.webhook());
        webhook
            .into_iter()
            .chain(self.targets.iter().filter_map(|keys| self.target(keys)))
            .collect()
    }

    fn webhook(&self) -> Target {
        Target {
            name: WEBHOOK.to_owned(),
            kind: TargetKind::Webhook,
            prefix: "alerts.webhook-",
            address: Address::Url(self.webhook_url.clone()),
            plain_hosts: self.webhook_plain_hosts.clone(),
            allowed_hosts: self.webhook_allowed_hosts.clone(),
            headers: self.webhook_headers.clone(),
            header_files: self.webhook_header_files.clone(),
            timeout: self.webhook_timeout,
            attempts_max: self.webhook_attempts_max,
            retry_min: self.retry_min,
            retry_max: self.retry_max,
            retry_after_max: self.retry_after_max,
            deadline: self.deadline,
            circuit_failures: self.circuit_failures,
            circuit_wait: self.circuit_wait,
            audience: Audience::everything(),
            rate: None,
            source: self.source.clone(),
        }
    }

    fn target(&self, keys: &TargetKeys) -> Option<Target> {
        let retry_min = keys.retry_min.unwrap_or(self.retry_min);
        Some(Target {
            name: keys.name.clone(),
            kind: keys.kind,
            prefix: "",
            address: keys.address().ok()?,
            plain_hosts: keys.plain_hosts.clone(),
            allowed_hosts: keys.allowed_hosts.clone(),
            headers: keys.headers.clone(),
            header_files: keys.header_files.clone(),
            timeout: keys.timeout.unwrap_or(self.webhook_timeout),
            attempts_max: keys.attempts_max.unwrap_or(self.webhook_attempts_max),
            retry_min,
            retry_max: keys.retry_max.unwrap_or(self.retry_max.max(retry_min)),
            retry_after_max: keys.retry_after_max.unwrap_or(self.retry_after_max),
            deadline: keys.deadline.unwrap_or(self.deadline),
            circuit_failures: keys.circuit_failures.unwrap_or(self.circuit_failures),
            circuit_wait: keys.circuit_wait.unwrap_or(self.circuit_wait),
            audience: Audience {
                severity_max: keys.severity_max,
                rules: keys.rules.clone(),
                historical: keys.historical,
                resolved: keys.resolved,
            },
            rate: (keys.rate_max > 0)
                .then_some(Rate { max: keys.rate_max, window: keys.rate_window }),
            source: self.source.clone(),
        })
    }

    /// Every fault of `[alerts]`, but whether the topic is one that is also read from.
    pub(super) fn check(&self, faults: &mut Faults) {
        faults.not_empty("alerts.source", &self.source);
        faults.files("alerts.webhook-header-files", &self.webhook_header_files);
        faults.duration("alerts.webhook-timeout", self.webhook_timeout, SECOND / 1000, DAY);
        faults.duration("alerts.retry-min", self.retry_min, SECOND / 1000, DAY);
        faults.duration("alerts.retry-max", self.retry_max, self.retry_min, DAY);
        faults.duration("alerts.retry-after-max", self.retry_after_max, Duration::ZERO, DAY);
        faults.range("alerts.webhook-attempts-max", self.webhook_attempts_max, 1, 1_000_000);
        faults.range("alerts.circuit-failures", self.circuit_failures, 1, 1_000_000);
        faults.duration("alerts.circuit-wait", self.circuit_wait, SECOND / 1000, DAY);
        faults.duration("alerts.deadline", self.deadline, SECOND, 3_650 * DAY);
        faults.range("alerts.queue-length", self.queue_length, 1, 1_000_000);
        faults.range("alerts.pending-max", self.pending_max, 1, 1_000_000);
        check_headers(faults, "alerts.webhook-headers", &self.webhook_headers);
        check_header_names(faults, "alerts.webhook-header-files", self.webhook_header_files.keys());
        if !self.webhook_url.expose().is_empty()
            && let Err(text) = self.webhook().url()
        {
            faults.add("alerts.webhook-url", text);
        }
        self.check_targets(faults);
        self.event_hubs.check(faults, &self.topic);
    }

    fn check_targets(&self, faults: &mut Faults) {
        let has_webhook = !self.webhook_url.expose().is_empty();
        let count = self.targets.len() + usize::from(has_webhook);
        if count > TARGETS_MAX {
            faults.add("alerts.targets", format!("{count} targets, {TARGETS_MAX} are allowed"));
        }
        let mut names = BTreeSet::new();
        if has_webhook {
            names.insert(WEBHOOK);
        }
        for (index, keys) in self.targets.iter().enumerate() {
            let path = format!("alerts.targets[{index}]");
            if !names.insert(&keys.name) {
                let text = format!("{:?} is the name of another target", keys.name);
                faults.add(format!("{path}.name"), text);
            }
            self.check_target(faults, &path, keys);
        }
    }

    fn check_target(&self, faults: &mut Faults, path: &str, keys: &TargetKeys) {
        let at = |key: &str| format!("{path}.{key}");
        faults.text(at("name"), check_name(&keys.name));
        faults.files(&at("header-files"), &keys.header_files);
        check_headers(faults, &at("headers"), &keys.headers);
        check_header_names(faults, &at("header-files"), keys.header_files.keys());
        faults.range(&at("severity-max"), keys.severity_max, 0, SEVERITY_MAX);
        if keys.rules.len() > TARGET_RULES_MAX {
            faults.add(at("rules"), format!("{} rules of {TARGET_RULES_MAX}", keys.rules.len()));
        }
        faults.duration(&at("rate-window"), keys.rate_window, SECOND / 1000, DAY);
        if let Err(text) = keys.address() {
            faults.add(at("url"), text);
            return;
        }
        let Some(target) = self.target(keys) else { return };
        faults.duration(&at("timeout"), target.timeout, SECOND / 1000, DAY);
        faults.range(&at("attempts-max"), target.attempts_max, 1, 1_000_000);
        faults.duration(&at("retry-min"), target.retry_min, SECOND / 1000, DAY);
        faults.duration(&at("retry-max"), target.retry_max, target.retry_min, DAY);
        faults.duration(&at("retry-after-max"), target.retry_after_max, Duration::ZERO, DAY);
        faults.range(&at("circuit-failures"), target.circuit_failures, 1, 1_000_000);
        faults.duration(&at("circuit-wait"), target.circuit_wait, SECOND / 1000, DAY);
        faults.duration(&at("deadline"), target.deadline, SECOND, 3_650 * DAY);
        if let Err(text) = target.url() {
            faults.add(at(if keys.url.is_some() { "url" } else { "url-file" }), text);
        }
    }
}

impl TargetKeys {
    fn address(&self) -> Result<Address, String> {
        match (&self.url, &self.url_file) {
            (Some(url), None) => Ok(Address::Url(url.clone())),
            (None, Some(file)) => Ok(Address::File(file.clone())),
            (Some(_), Some(_)) => Err("is set and url-file, too: keep one of them".to_owned()),
            (None, None) => {
                Err("is missing: set url, or url-file for one that is secret".to_owned())
            }
        }
    }
}

impl Target {
    /// Reads and checks where it is. The URL may be secret: no text of an error holds more of it than its host.
    ///
    /// # Errors
    /// A file that cannot be read, no URL, or one that is not allowed.
    pub fn url(&self) -> Result<Url, String> {
        let text = match &self.address {
            Address::Url(url) => url.clone(),
            Address::File(file) => read_url(file)?,
        };
        let url = Url::parse(text.expose()).map_err(|error| format!("is not a URL: {error}"))?;
        let host = url.host_str().ok_or("names no host")?.to_owned();
        let key = |key: &str| format!("{}{key}", self.prefix);
        match url.scheme() {
            "https" => {}
            "http" if self.plain_hosts.contains(&host) => {}
            "http" => {
                let key = key("plain-hosts");
                return Err(format!("plain http to {host}: use https, or name the host in {key}"));
            }
            // The scheme of what is no URL may be a part of a secret.
            _ => return Err("has a scheme that is neither https nor http".to_owned()),
        }
        if !self.allowed_hosts.is_empty() && !self.allowed_hosts.contains(&host) {
            return Err(format!("host {host} is not among {}", key("allowed-hosts")));
        }
        Ok(url)
    }
}

fn read_url(file: &Path) -> Result<Secret, String> {
    let text = read_secret(file)?;
    match text.expose().lines().count() {
        1 => Ok(text),
        lines => Err(format!("{} has {lines} lines: write the URL alone", file.display())),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_legal) {
        return Err(format!(
            "{name:?} is no name: write 1 to {NAME_BYTES_MAX} of a to z, 0 to 9 and \"-\""
        ));
    }
    if NAMES_RESERVED.contains(&name) {
        return Err(format!("{name:?} is a name that metrics have for others"));
    }
    Ok(())
}

fn check_headers(faults: &mut Faults, path: &str, headers: &BTreeMap<String, String>) {
    check_header_names(faults, path, headers.keys());
    for (name, value) in headers {
        if HeaderValue::from_str(value).is_err() {
            faults.add(format!("{path}.{name}"), "holds bytes that no header can");
        }
    }
}

fn check_header_names<'a>(
    faults: &mut Faults,
    path: &str,
    names: impl Iterator<Item = &'a String>,
) {
    for name in names {
        match HeaderName::from_bytes(name.as_bytes()) {
            Err(_) => faults.add(format!("{path}.{name}"), "is not a header name"),
            Ok(header) if OWN_HEADERS.contains(&header.as_str()) => {
                faults.add(format!("{path}.{name}"), "is set by this program itself");
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
