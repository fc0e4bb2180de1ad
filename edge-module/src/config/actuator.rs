//! `[[machines.actuators]]`: the ways to stop a machine.

use std::time::Duration;

use serde::Deserialize;

use super::Machine;

impl Machine {
    /// Its ways to be stopped, in order; where none is given the broker of `[mqtt]`.
    #[must_use]
    pub fn paths(&self) -> Vec<Actuator> {
        if self.actuators.is_empty() {
            return vec![Actuator::Mqtt { host: None, port: None }];
        }
        self.actuators.clone()
    }
}

/// One entry of `[[machines.actuators]]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(
    deny_unknown_fields,
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
pub enum Actuator {
    /// The topics of `[protection]` on a broker.
    Mqtt {
        /// Broker's host; absent: the one of `[mqtt]`.
        #[serde(default)]
        host: Option<String>,
        /// Broker's port; absent: the one of `[mqtt]`.
        #[serde(default)]
        port: Option<u16>,
    },
    /// A coil.
    ModbusTcp(ModbusTcp),
}

impl Actuator {
    /// The word for metrics and settings.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Mqtt { .. } => "mqtt",
            Self::ModbusTcp(_) => "modbus-tcp",
        }
    }
}

/// An entry of kind `modbus-tcp`. Addresses count from 0.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModbusTcp {
    /// Name or address of the device.
    pub host: String,
    /// Its port.
    #[serde(default = "default_modbus_port")]
    pub port: u16,
    /// Its unit identifier.
    #[serde(default = "default_unit")]
    pub unit: u8,
    /// The coil that stops.
    pub stop_coil: u16,
    /// The value that stops.
    #[serde(default)]
    pub stop_value: bool,
    /// Read-back: a coil …
    #[serde(default)]
    pub standstill_coil: Option<u16>,
    /// … or a discrete input.
    #[serde(default)]
    pub standstill_input: Option<u16>,
    /// The read-back's value at standstill.
    #[serde(default = "default_true")]
    pub standstill_value: bool,
    /// Holding register for the sign of life; absent: none.
    #[serde(default)]
    pub heartbeat_register: Option<u16>,
    /// Distance of reads.
    #[serde(default = "default_poll_interval", with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Longest wait for a connection or an answer.
    #[serde(default = "default_response_timeout", with = "humantime_serde")]
    pub response_timeout: Duration,
}

const fn default_modbus_port() -> u16 {
    502
}

const fn default_unit() -> u8 {
    1
}

const fn default_true() -> bool {
    true
}

const fn default_poll_interval() -> Duration {
    Duration::from_millis(100)
}

const fn default_response_timeout() -> Duration {
    Duration::from_millis(500)
}
