//! `[iot-hub]`: the link to Azure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_core::hub::provisioning::Registration;
use serde::Deserialize;

use super::validate::Faults;
use crate::reload::needing_restart;

/// Name of the device that the runtime of IoT Edge gives a module.
const RUNTIME_DEVICE: &str = "IOTEDGE_DEVICEID";

/// A layer of settings that names the device as the runtime of IoT Edge does; nothing outside of it.
pub(super) fn device_of_runtime(variables: Option<&config::Map<String, String>>) -> Option<String> {
    let name = match variables {
        Some(variables) => variables.get(RUNTIME_DEVICE).cloned(),
        None => std::env::var(RUNTIME_DEVICE).ok(),
    }?;
    // As a string of TOML, whatever stands in it.
    let name = serde_json::Value::from(name);
    Some(format!("[device]\nid = {name}\n"))
}

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
    /// Of a device that asks which hub it belongs to.
    pub provisioning: Provisioning,
    /// How long before a certificate's end it is told.
    #[serde(with = "humantime_serde")]
    pub certificate_warning: Duration,
    /// Authorities that are trusted, PEM.
    pub ca_file: PathBuf,
    /// MQTT over TLS.
    pub port: u16,
    /// Where the hub's clock is asked for; 0: it is not.
    pub https_port: u16,
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

/// `[iot-hub.provisioning]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Provisioning {
    /// Which instance of the service; empty: none is asked.
    pub id_scope: String,
    /// Which enrolment, or which device of a group.
    pub registration_id: String,
    /// Host of the service.
    pub endpoint: String,
    /// MQTT over TLS.
    pub port: u16,
    /// Base64, of this device's enrolment.
    pub symmetric_key_file: PathBuf,
    /// Base64, of a group of devices.
    pub group_key_file: PathBuf,
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
        let warning_max = hour * 24 * 365;
        let warning = self.certificate_warning;
        faults.duration("iot-hub.certificate-warning", warning, Duration::ZERO, warning_max);
        self.check_device(faults);
    }

    /// What says which device of which hub this is.
    fn check_device(&self, faults: &mut Faults) {
        let has_file = is_set(&self.connection_string_file);
        let is_provisioned = self.provisioning.is_used();
        match self.identity {
            HubMode::Device if !has_file && !is_provisioned => faults.add(
                "iot-hub.connection-string-file",
                "is empty although identity is \"device\", and iot-hub.provisioning is not set either",
            ),
            HubMode::Device if has_file && is_provisioned => faults.add(
                "iot-hub.provisioning",
                "is set, and iot-hub.connection-string-file is, too: leave one",
            ),
            HubMode::Auto | HubMode::Module if has_file => faults
                .add("iot-hub.connection-string-file", "is of a device: set identity = \"device\""),
            HubMode::Auto | HubMode::Module if is_provisioned => {
                faults.add("iot-hub.provisioning", "is of a device: set identity = \"device\"");
            }
            HubMode::Auto | HubMode::Off | HubMode::Module | HubMode::Device => {}
        }
        if is_set(&self.certificate_file) != is_set(&self.private_key_file) {
            let text = "certificate-file and private-key-file belong together";
            faults.add("iot-hub.certificate-file", text);
        }
        if is_provisioned {
            self.provisioning.check(is_set(&self.certificate_file), faults);
        }
    }
}

impl Provisioning {
    /// Whether a hub is asked for.
    #[must_use]
    pub const fn is_used(&self) -> bool {
        !self.id_scope.is_empty() || !self.registration_id.is_empty()
    }

    fn check(&self, has_certificate: bool, faults: &mut Faults) {
        if let Err(error) = Registration::new(self.id_scope.clone(), self.registration_id.clone()) {
            faults.add("iot-hub.provisioning", error.to_string());
        }
        faults.range("iot-hub.provisioning.port", self.port, 1, u16::MAX);
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if self.endpoint.is_empty() || !self.endpoint.bytes().all(is_host) {
            let text = format!("{:?} is no host name", self.endpoint);
            faults.add("iot-hub.provisioning.endpoint", text);
        }
        let proofs =
            [is_set(&self.symmetric_key_file), is_set(&self.group_key_file), has_certificate];
        if proofs.into_iter().filter(|is_there| *is_there).count() != 1 {
            faults.add(
                "iot-hub.provisioning",
                "exactly one proof is needed: symmetric-key-file, group-key-file, or iot-hub.certificate-file with iot-hub.private-key-file",
            );
        }
    }
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use super::super::Settings;

    /// What is wrong with these values of `[iot-hub]`.
    fn faults(values: &[(&str, &str)]) -> String {
        let variable =
            |(key, value): &(&str, &str)| (format!("EDGE__IOT_HUB__{key}"), (*value).to_owned());
        match Settings::from_layers(None, Some(values.iter().map(variable).collect())) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_device_says_in_one_way_who_it_is() {
        const DEVICE: (&str, &str) = ("IDENTITY", "device");
        const STRING: (&str, &str) = ("CONNECTION_STRING_FILE", "/c");
        const SCOPE: (&str, &str) = ("PROVISIONING__ID_SCOPE", "0ne1");
        const NAME: (&str, &str) = ("PROVISIONING__REGISTRATION_ID", "gw-7");
        const KEY: (&str, &str) = ("PROVISIONING__SYMMETRIC_KEY_FILE", "/k");
        const GROUP: (&str, &str) = ("PROVISIONING__GROUP_KEY_FILE", "/g");
        const CHAIN: (&str, &str) = ("CERTIFICATE_FILE", "/c.pem");
        const PRIVATE: (&str, &str) = ("PRIVATE_KEY_FILE", "/k.pem");
        let check = |values: &[(&str, &str)], expected: &str| {
            let found = faults(values);
            assert!(found.contains(expected), "{values:?}: {found}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{values:?}: {found}");
        };
        check(&[DEVICE, STRING], "");
        check(&[DEVICE, STRING, CHAIN, PRIVATE], "");
        check(&[DEVICE, SCOPE, NAME, KEY], "");
        check(&[DEVICE, SCOPE, NAME, GROUP], "");
        check(&[DEVICE, SCOPE, NAME, CHAIN, PRIVATE], "");
        check(&[DEVICE], "iot-hub.provisioning is not set either");
        check(&[DEVICE, STRING, SCOPE, NAME, KEY], "leave one");
        check(&[SCOPE, NAME, KEY], "set identity = \"device\"");
        check(&[DEVICE, SCOPE, KEY], "registration id of the hub link is empty");
        check(&[DEVICE, NAME, KEY], "id scope of the hub link is empty");
        check(&[DEVICE, SCOPE, NAME], "exactly one proof");
        check(&[DEVICE, SCOPE, NAME, KEY, GROUP], "exactly one proof");
        check(&[DEVICE, SCOPE, NAME, KEY, CHAIN, PRIVATE], "exactly one proof");
        check(&[DEVICE, STRING, CHAIN], "belong together");
        let endpoint = ("PROVISIONING__ENDPOINT", "https://dps");
        check(&[DEVICE, SCOPE, NAME, KEY, endpoint], "is no host name");
        let port = ("PROVISIONING__PORT", "0");
        check(&[DEVICE, SCOPE, NAME, KEY, port], "iot-hub.provisioning.port");
        check(&[("CERTIFICATE_WARNING", "2years")], "iot-hub.certificate-warning");
    }
}
