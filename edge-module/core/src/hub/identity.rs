//! Who connects, what its connection says about it, and what it signs.
//!
//! Azure names a device and, under IoT Edge, a module of it. The same parts make the MQTT client id, the user name, the base of all
//! topics and the resource of the shared access signature that is the password. Keys are not held here but in a
//! [`ConnectionString`], which never shows its key.

use std::fmt;

use super::properties::encode;

#[cfg(test)]
mod tests;

/// Version of the service's interface that a connection asks for.
pub const API_VERSION: &str = "2021-04-12";
/// Longest device id or module id, in bytes (Azure's own limit).
pub const ID_BYTES_MAX: usize = 128;
/// Longest name of a host, in bytes (RFC 1035).
pub const HOST_BYTES_MAX: usize = 253;
/// Longest connection string, in bytes: its names at their limits, a key, and as much again.
pub const CONNECTION_STRING_BYTES_MAX: usize = 4096;
/// What an id may hold besides letters and digits. Azure allows `#` too, which no MQTT topic may hold.
const ID_SPECIALS: &str = "-.%_*?!(),:=@$'";

/// A device, or a module of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubIdentity {
    /// Host name of the IoT hub; under IoT Edge not the host that is dialled.
    pub hub_host: String,
    /// The device.
    pub device_id: String,
    /// The module, under IoT Edge.
    pub module_id: Option<String>,
}

/// A name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HubIdentityError {
    /// Nothing there.
    #[error("{what} of the hub link is empty: give the one that the IoT hub shows")]
    Empty {
        /// Which part.
        what: &'static str,
    },
    /// Too long.
    #[error("{what} of the hub link has {bytes} bytes: at most {bytes_max} are allowed")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
        /// How many it may have.
        bytes_max: usize,
    },
    /// A character that Azure does not allow.
    #[error(
        "{what} of the hub link holds {found:?}: letters, digits and {allowed} are allowed, copy it from the IoT hub"
    )]
    Character {
        /// Which part.
        what: &'static str,
        /// The first such character.
        found: char,
        /// What is allowed besides letters and digits.
        allowed: &'static str,
    },
    /// A character that Azure allows but MQTT does not carry.
    #[error(
        "{what} of the hub link holds '#', which no MQTT topic can carry: register it under a name without"
    )]
    Wildcard {
        /// Which part.
        what: &'static str,
    },
}

impl HubIdentity {
    /// Takes the names of a device, or of a module of it.
    ///
    /// # Errors
    ///
    /// A name is empty, too long, or holds a character that it may not.
    pub fn new(
        hub_host: impl Into<String>,
        device_id: impl Into<String>,
        module_id: Option<String>,
    ) -> Result<Self, HubIdentityError> {
        let (hub_host, device_id) = (hub_host.into(), device_id.into());
        check_name("host name", &hub_host, HOST_BYTES_MAX, "-.")?;
        check_name("device id", &device_id, ID_BYTES_MAX, ID_SPECIALS)?;
        if let Some(module_id) = &module_id {
            check_name("module id", module_id, ID_BYTES_MAX, ID_SPECIALS)?;
        }
        Ok(Self { hub_host, device_id, module_id })
    }

    /// The MQTT client id. A hub compares it byte for byte.
    #[must_use]
    pub fn client_id(&self) -> String {
        self.joined("", "/")
    }

    /// The MQTT user name. `product` is the client's own name and version, as the hub's logs show it.
    #[must_use]
    pub fn user_name(&self, product: &str) -> String {
        let (host, client_id, product) = (&self.hub_host, self.client_id(), encode(product));
        format!("{host}/{client_id}/?api-version={API_VERSION}&DeviceClientType={product}")
    }

    /// What a signature is for, percent-encoded as one text: it is signed and sent in this form.
    #[must_use]
    pub fn resource(&self) -> String {
        encode(&format!("{}/{}", self.hub_host, self.topic_base()))
    }

    /// What topics of this identity begin with. Ids are not encoded in them.
    #[must_use]
    pub fn topic_base(&self) -> String {
        self.joined("devices/", "/modules/")
    }

    fn joined(&self, before: &str, between: &str) -> String {
        let device = &self.device_id;
        match &self.module_id {
            Some(module) => format!("{before}{device}{between}{module}"),
            None => format!("{before}{device}"),
        }
    }
}

pub(super) fn check_name(
    what: &'static str,
    name: &str,
    bytes_max: usize,
    allowed: &'static str,
) -> Result<(), HubIdentityError> {
    if name.is_empty() {
        return Err(HubIdentityError::Empty { what });
    }
    if name.len() > bytes_max {
        return Err(HubIdentityError::TooLong { what, bytes: name.len(), bytes_max });
    }
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || allowed.contains(*c);
    match name.chars().find(|c| !is_allowed(c)) {
        None => Ok(()),
        Some('#') => Err(HubIdentityError::Wildcard { what }),
        Some(found) => Err(HubIdentityError::Character { what, found, allowed }),
    }
}

/// What to sign with HMAC-SHA256 for a signature that holds until `expires_unix`, in seconds. `resource` is encoded already.
#[must_use]
pub fn string_to_sign(resource: &str, expires_unix: u64) -> String {
    format!("{resource}\n{expires_unix}")
}

/// The password. `signature_base64` is the signature of [`string_to_sign`] with the same arguments.
#[must_use]
pub fn shared_access_signature(
    resource: &str,
    signature_base64: &str,
    expires_unix: u64,
) -> String {
    let signature = encode(signature_base64);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires_unix}")
}

/// What the IoT hub gives a person to paste: `HostName=…;DeviceId=…;SharedAccessKey=…`.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionString {
    /// Host name of the IoT hub.
    pub host_name: String,
    /// Host to dial instead: an IoT Edge gateway.
    pub gateway_host_name: Option<String>,
    /// The device.
    pub device_id: String,
    /// The module, if it is one of a module.
    pub module_id: Option<String>,
    /// The key in base64; absent where a certificate stands in for it.
    pub shared_access_key: Option<String>,
    /// Whether a certificate proves who connects.
    pub is_x509: bool,
}

/// A connection string that is none. No text of the string is shown: it may be the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// Too long.
    #[error(
        "connection string has {0} bytes: at most {CONNECTION_STRING_BYTES_MAX} are allowed, copy it from the IoT hub"
    )]
    TooLong(usize),
    /// A part that is no pair; its number, from 1.
    #[error("part {0} of the connection string has no '=': parts are name=value, separated by ';'")]
    NoPair(usize),
    /// A part that is not there, or empty.
    #[error(
        "connection string has no {0}: copy the one of the device or module, not that of the hub"
    )]
    Missing(&'static str),
    /// A part that is there more than once.
    #[error("connection string has {0} more than once: leave one")]
    Twice(&'static str),
    /// Neither true nor false.
    #[error("x509 of the connection string is neither true nor false")]
    X509,
    /// Two ways to prove who connects.
    #[error("connection string has SharedAccessKey and x509=true: leave one")]
    KeyAndX509,
}

impl ConnectionString {
    /// Reads a connection string. Names of parts are read without regard to case, unknown ones are passed over.
    ///
    /// # Errors
    ///
    /// A part is no pair, is missing or there twice, or the string is too long.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        let text = text.trim();
        if text.len() > CONNECTION_STRING_BYTES_MAX {
            return Err(ConnectionStringError::TooLong(text.len()));
        }
        let mut pairs = Vec::new();
        for (number, part) in text.split(';').enumerate() {
            if !part.trim().is_empty() {
                let pair = part.split_once('=');
                pairs.push(pair.ok_or(ConnectionStringError::NoPair(number + 1))?);
            }
        }
        let required = |name| take(&pairs, name)?.ok_or(ConnectionStringError::Missing(name));
        let shared_access_key = take(&pairs, "SharedAccessKey")?;
        let is_x509 = match take(&pairs, "x509")? {
            None => false,
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if value.eq_ignore_ascii_case("false") => false,
            Some(_) => return Err(ConnectionStringError::X509),
        };
        match (&shared_access_key, is_x509) {
            (Some(_), true) => return Err(ConnectionStringError::KeyAndX509),
            (None, false) => return Err(ConnectionStringError::Missing("SharedAccessKey")),
            (Some(_), false) | (None, true) => {}
        }
        Ok(Self {
            host_name: required("HostName")?,
            gateway_host_name: take(&pairs, "GatewayHostName")?,
            device_id: required("DeviceId")?,
            module_id: take(&pairs, "ModuleId")?,
            shared_access_key,
            is_x509,
        })
    }

    /// Who connects.
    ///
    /// # Errors
    ///
    /// A name cannot be one.
    pub fn identity(&self) -> Result<HubIdentity, HubIdentityError> {
        HubIdentity::new(self.host_name.clone(), self.device_id.clone(), self.module_id.clone())
    }
}

/// The value of a part, unless it is missing or empty.
fn take(
    pairs: &[(&str, &str)],
    name: &'static str,
) -> Result<Option<String>, ConnectionStringError> {
    let mut found = pairs.iter().filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
    let value = found.next().map(|(_, value)| value.trim());
    if found.next().is_some() {
        return Err(ConnectionStringError::Twice(name));
    }
    Ok(value.filter(|value| !value.is_empty()).map(str::to_owned))
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("host_name", &self.host_name)
            .field("gateway_host_name", &self.gateway_host_name)
            .field("device_id", &self.device_id)
            .field("module_id", &self.module_id)
            .field("shared_access_key", &self.shared_access_key.as_ref().map(|_| "***"))
            .field("is_x509", &self.is_x509)
            .finish()
    }
}
