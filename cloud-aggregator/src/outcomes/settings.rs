//! `[api]`: who may report outcomes, and how much of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::tokens::Tokens;
use crate::config::Fault;

const BODY_BYTES: std::ops::RangeInclusive<usize> = 1_024..=16 * 1_024 * 1_024;
const RATE: std::ops::RangeInclusive<u32> = 1..=100_000;
const CONNECTIONS: std::ops::RangeInclusive<usize> = 1..=10_000;
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// `[api]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ApiSettings {
    /// Address of the HTTP server.
    pub listen: SocketAddr,
    /// Who may report: see [`Tokens`]. Empty is off.
    pub token_file: PathBuf,
    /// Longest body.
    pub body_bytes_max: usize,
    /// Wait for a body.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Wait for Kafka.
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
    /// Requests a second with one token, in the long run.
    pub rate_max: u32,
    /// Requests at once with one token.
    pub rate_burst: u32,
    /// Connections at once.
    pub connections_max: usize,
}

impl ApiSettings {
    /// Whether there is a port at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.token_file.as_os_str().is_empty()
    }

    /// Every fault there is.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut add = |key: &str, text: String| {
            faults.push(Fault { path: format!("api.{key}"), text });
        };
        if self.is_on()
            && let Err(error) = Tokens::read(&self.token_file)
        {
            add("token-file", error.to_string());
        }
        if !BODY_BYTES.contains(&self.body_bytes_max) {
            add("body-bytes-max", out_of_range(&self.body_bytes_max, &BODY_BYTES));
        }
        for (key, value) in [("rate-max", self.rate_max), ("rate-burst", self.rate_burst)] {
            if !RATE.contains(&value) {
                add(key, out_of_range(&value, &RATE));
            }
        }
        if !CONNECTIONS.contains(&self.connections_max) {
            add("connections-max", out_of_range(&self.connections_max, &CONNECTIONS));
        }
        let timeouts =
            [("body-timeout", self.body_timeout), ("publish-timeout", self.publish_timeout)];
        for (key, value) in timeouts {
            if value < TIMEOUT_MIN || value > TIMEOUT_MAX {
                let text = format!("{value:?} is out of range: {TIMEOUT_MIN:?} to {TIMEOUT_MAX:?}");
                add(key, text);
            }
        }
        faults
    }
}

fn out_of_range<T: std::fmt::Display>(value: &T, range: &std::ops::RangeInclusive<T>) -> String {
    format!("{value} is out of range: {} to {}", range.start(), range.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(token_file: &str) -> ApiSettings {
        ApiSettings {
            listen: ([127, 0, 0, 1], 9466).into(),
            token_file: token_file.into(),
            body_bytes_max: 262_144,
            body_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(10),
            rate_max: 100,
            rate_burst: 200,
            connections_max: 256,
        }
    }

    #[test]
    fn faults_name_their_keys_and_an_empty_file_name_is_off() {
        assert!(settings("").faults().is_empty() && !settings("").is_on());
        let wrong = ApiSettings {
            body_bytes_max: 0,
            body_timeout: Duration::ZERO,
            rate_max: 0,
            rate_burst: u32::MAX,
            connections_max: 0,
            ..settings("/nowhere/tokens")
        };
        let faults = wrong.faults();
        let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
        let expected = [
            "api.token-file",
            "api.body-bytes-max",
            "api.rate-max",
            "api.rate-burst",
            "api.connections-max",
            "api.body-timeout",
        ];
        assert_eq!(paths, expected);
    }
}
