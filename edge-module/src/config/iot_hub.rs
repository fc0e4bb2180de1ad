//! `[iot-hub]`: the link to Azure.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::validate::Faults;
use crate::reload::needing_restart;

/// `[iot-hub]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IotHub {
    /// Whether there is a link, and as what.
    pub identity: HubMode,
    /// Of a device.
    pub connection_string_file: PathBuf,
    /// Certificate chain of a device, PEM.
    pub certificate_file: PathBuf,
    /// Its key, PEM.
    pub private_key_file: PathBuf,
    /// Authorities that are trusted, PEM.
    pub ca_file: PathBuf,
    /// MQTT over TLS.
    pub port: u16,
    /// Longest silence of ours.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// From the beginning of a connection to its acceptance.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// First wait before connecting again.
    #[serde(with = "humantime_serde")]
    pub reconnect_min: Duration,
    /// Longest wait before connecting again.
    #[serde(with = "humantime_serde")]
    pub reconnect_max: Duration,
    /// How long a token is valid.
    #[serde(with = "humantime_serde")]
    pub token_life: Duration,
    /// Shortest time between two reports of the state.
    #[serde(with = "humantime_serde")]
    pub report_interval: Duration,
    /// Whether a machine may be reset from afar.
    pub remote_reset: bool,
    /// Keys, or beginnings of keys, that desired properties may have.
    pub desired_keys: Vec<String>,
}

/// As what the module is known to a hub.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum HubMode {
    /// A module where IoT Edge started it, otherwise no link.
    Auto,
    /// No link.
    Off,
    /// A module of IoT Edge.
    Module,
    /// A device of an IoT Hub.
    Device,
}

impl IotHub {
    /// Whether a key, by its full path, may be set by the hub.
    #[must_use]
    pub fn may_be_desired(&self, path: &str) -> bool {
        self.desired_keys.iter().any(|allowed| {
            path.strip_prefix(allowed.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    pub(super) fn check(&self, faults: &mut Faults) {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        faults.range("iot-hub.port", self.port, 1, u16::MAX);
        // A hub closes at 1.5 times this and takes at most 1,177 s, IoT Edge at most 10 minutes.
        let keep_alive_max = Duration::from_secs(600);
        faults.duration("iot-hub.keep-alive", self.keep_alive, second * 5, keep_alive_max);
        faults.duration("iot-hub.connect-timeout", self.connect_timeout, second, second * 60);
        let millisecond = Duration::from_millis(1);
        faults.duration("iot-hub.reconnect-min", self.reconnect_min, millisecond, hour);
        faults.duration("iot-hub.reconnect-max", self.reconnect_max, self.reconnect_min, hour);
        // Time enough to renew it, and a day at most, since a token cannot be taken back.
        faults.duration("iot-hub.token-life", self.token_life, second * 10, hour * 24);
        faults.duration("iot-hub.report-interval", self.report_interval, millisecond, hour);
        for key in &self.desired_keys {
            if !needing_restart(std::slice::from_ref(key)).is_empty() {
                let text = format!("{key:?} cannot change while the module runs");
                faults.add("iot-hub.desired-keys", text);
            }
        }
        let has_file = !self.connection_string_file.as_os_str().is_empty();
        match self.identity {
            HubMode::Device if !has_file => faults
                .add("iot-hub.connection-string-file", "is empty although identity is \"device\""),
            HubMode::Auto | HubMode::Module if has_file => faults
                .add("iot-hub.connection-string-file", "is of a device: set identity = \"device\""),
            HubMode::Auto | HubMode::Off | HubMode::Module | HubMode::Device => {}
        }
        let is_set = |path: &PathBuf| !path.as_os_str().is_empty();
        if is_set(&self.certificate_file) != is_set(&self.private_key_file) {
            let text = "certificate-file and private-key-file belong together";
            faults.add("iot-hub.certificate-file", text);
        }
    }
}
