//! Who a stand-in plays, and for whom.

use std::time::Duration;

/// Who a connection speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    Module,
    Device,
    Registration,
}

/// Whose twin, methods and messages the functions of a stand-in are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The module, under edgeHub.
    Module,
    /// The device, under IoT Hub.
    Device,
}

/// How the device shows who it is, to the hub and to the provisioning service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceProof {
    /// By signatures with its symmetric key.
    Key,
    /// By a certificate whose thumbprint is registered.
    Thumbprint,
    /// By a certificate of an authority that is registered, with the device's id as its common name.
    Authority,
}

/// Names, secrets and limits of a stand-in.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// The hub's name in user names and tokens; nobody dials it.
    pub hub_host: String,
    /// Of the edge device, and of the device alone.
    pub device_id: String,
    /// Of the module.
    pub module_id: String,
    /// Of the module's identity.
    pub generation_id: String,
    /// Told to the module.
    pub api_version: String,
    /// Of the provisioning service.
    pub scope_id: String,
    /// What becomes of it is the device.
    pub registration_id: String,
    /// How the device shows who it is. A module signs always.
    pub device_proof: DeviceProof,
    /// Told to a client that registers.
    pub provisioning_retry_after: Duration,
    /// A registration is decided when it is asked after for this time.
    pub provisioning_polls: u32,
    /// How often connections are looked through for tokens that have ended.
    pub token_check_interval: Duration,
    /// How long after its end a token is still taken.
    pub token_grace: Duration,
    /// Where the keys come from.
    pub seed: u64,
    /// Whose twin the functions are about at first.
    pub subject: Subject,
    /// Also listen on port 8883 of an address of its own, for clients that know no other port.
    pub listens_on_standard_port: bool,
}

impl Default for HubSettings {
    fn default() -> Self {
        Self {
            hub_host: "hub.example".to_owned(),
            device_id: "gateway-1".to_owned(),
            module_id: "vibration".to_owned(),
            generation_id: "637834777068992167".to_owned(),
            api_version: "2022-08-03".to_owned(),
            scope_id: "0ne00000001".to_owned(),
            registration_id: "gateway-1".to_owned(),
            device_proof: DeviceProof::Key,
            provisioning_retry_after: Duration::from_secs(3),
            provisioning_polls: 1,
            token_check_interval: Duration::from_secs(300),
            token_grace: Duration::from_secs(300),
            seed: 1,
            subject: Subject::Module,
            listens_on_standard_port: false,
        }
    }
}

/// What a device tells the provisioning service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisioning {
    /// Which service.
    pub scope_id: String,
    /// Which device.
    pub registration_id: String,
    /// Base64.
    pub symmetric_key: String,
    /// Base64; the one before is derived from it and the registration.
    pub group_key: String,
}
