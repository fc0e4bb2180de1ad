//! Who we are for a hub, and how we prove it: once for each connection, with a fresh token and fresh authorities.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use azure_iot_sdk::{DeviceKeyTokenSource, TokenSource as _};
use edge_core::hub::identity::{
    ConnectionString, ConnectionStringError, HubIdentity, HubIdentityError,
    shared_access_signature, string_to_sign,
};
use edge_core::hub::properties::encode;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::workload::{Workload, WorkloadError};
use crate::config::{HubMode, IotHub, Secret, read_secret};
use crate::data_dir::read_patiently;

/// Why there is no access.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Variables that IoT Edge sets are not there.
    #[error(
        "iot-hub.identity: {} not set: IoT Edge sets them for a module that it starts; set identity = \"off\" or \"device\" elsewhere",
        .0.join(", ")
    )]
    NoModule(Vec<&'static str>),
    /// A kind of authentication that does not exist.
    #[error("IOTEDGE_AUTHSCHEME is {0:?}; only sasToken is known")]
    Scheme(String),
    /// A name that no hub takes.
    #[error("iot-hub: {0}")]
    Identity(#[from] HubIdentityError),
    /// The file cannot be read.
    #[error("iot-hub.{key}: {reason}")]
    File {
        /// The setting.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The connection string is none.
    #[error("iot-hub.connection-string-file: {0}")]
    ConnectionString(#[from] ConnectionStringError),
    /// A key that is none.
    #[error("iot-hub.connection-string-file: SharedAccessKey is not base64")]
    Key,
    /// The connection string and the certificate do not fit.
    #[error(
        "iot-hub.certificate-file: a device with x509=true needs it, one with a SharedAccessKey does not"
    )]
    Certificate,
    /// IoT Edge does not help.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// Nobody is trusted.
    #[error("{0} has no certificate: nobody would be trusted")]
    NoAuthority(String),
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The disk with a file does not answer.
    #[error("the files of [iot-hub] cannot be read within {} s: their disk does not answer", READ_TIMEOUT.as_secs())]
    Disk,
    /// A host that nobody can dial.
    #[error("IOTEDGE_GATEWAYHOSTNAME or GatewayHostName {0:?} is no host name")]
    Host(String),
    /// The clock is before 1970.
    #[error("the clock of this machine is before 1970: set it")]
    Clock,
}

/// Who we are, and what proves it.
#[derive(Debug)]
pub struct Access {
    identity: HubIdentity,
    /// Whom to dial; the name in its certificate.
    host: String,
    proof: Proof,
    ca_file: Option<PathBuf>,
}

#[derive(Debug)]
enum Proof {
    /// IoT Edge signs.
    Workload(Workload),
    /// We sign, with the key of the device.
    Key(KeyOfDevice),
    /// A certificate, in the handshake.
    Certificate { chain: PathBuf, key: PathBuf },
}

/// Never shown.
struct KeyOfDevice(DeviceKeyTokenSource);

impl std::fmt::Debug for KeyOfDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("***")
    }
}

/// Everything that one connection needs.
pub(super) struct Ticket {
    pub(super) host: String,
    /// None with a certificate.
    pub(super) password: Option<Secret>,
    pub(super) tls: Arc<ClientConfig>,
}

/// Longest time for reading certificates and keys.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Variables of section "environment of a module": all are there, or it is none.
const MODULE_VARIABLES: [&str; 7] = [
    "IOTEDGE_WORKLOADURI",
    "IOTEDGE_MODULEID",
    "IOTEDGE_MODULEGENERATIONID",
    "IOTEDGE_DEVICEID",
    "IOTEDGE_IOTHUBHOSTNAME",
    "IOTEDGE_GATEWAYHOSTNAME",
    "IOTEDGE_APIVERSION",
];

impl Access {
    /// By the settings and the variables of this process; nothing if there shall be no link.
    ///
    /// # Errors
    /// What is there does not suffice.
    pub fn new(
        settings: &IotHub,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, AccessError> {
        let ca_file = Some(settings.ca_file.clone()).filter(|path| !path.as_os_str().is_empty());
        let is_in_iot_edge = MODULE_VARIABLES.iter().any(|name| variable(name).is_some());
        match settings.identity {
            HubMode::Off => Ok(None),
            HubMode::Auto if !is_in_iot_edge => Ok(None),
            HubMode::Auto | HubMode::Module => Self::of_module(variable, ca_file)?.checked(),
            HubMode::Device => Self::of_device(settings, ca_file)?.checked(),
        }
    }

    fn checked(self) -> Result<Option<Self>, AccessError> {
        let is_host = !self.host.is_empty()
            && self
                .host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
        if is_host { Ok(Some(self)) } else { Err(AccessError::Host(self.host)) }
    }

    fn of_module(
        variable: impl Fn(&str) -> Option<String>,
        ca_file: Option<PathBuf>,
    ) -> Result<Self, AccessError> {
        let missing = MODULE_VARIABLES.into_iter().filter(|name| variable(name).is_none());
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            return Err(AccessError::NoModule(missing));
        }
        let scheme = variable("IOTEDGE_AUTHSCHEME");
        if let Some(scheme) = scheme.filter(|scheme| !scheme.eq_ignore_ascii_case("sasToken")) {
            return Err(AccessError::Scheme(scheme));
        }
        let value = |name| variable(name).unwrap_or_default();
        let module = value("IOTEDGE_MODULEID");
        let workload = Workload::new(
            &value("IOTEDGE_WORKLOADURI"),
            (&module, &value("IOTEDGE_MODULEGENERATIONID")),
            &value("IOTEDGE_APIVERSION"),
        )?;
        let (hub, device) = (value("IOTEDGE_IOTHUBHOSTNAME"), value("IOTEDGE_DEVICEID"));
        Ok(Self {
            identity: HubIdentity::new(hub, device, Some(module))?,
            host: value("IOTEDGE_GATEWAYHOSTNAME"),
            proof: Proof::Workload(workload),
            ca_file,
        })
    }

    fn of_device(settings: &IotHub, ca_file: Option<PathBuf>) -> Result<Self, AccessError> {
        let path = settings.connection_string_file.clone();
        let text = read_patiently("connection string", move || read_secret(&path))
            .ok_or(AccessError::Disk)?
            .map_err(|reason| AccessError::File { key: "connection-string-file", reason })?;
        let parsed = ConnectionString::parse(text.expose())?;
        let has_certificate = !settings.certificate_file.as_os_str().is_empty();
        let proof = match (&parsed.shared_access_key, has_certificate) {
            (Some(key), false) => Proof::Key(key_of(&parsed, key)?),
            (None, true) => Proof::Certificate {
                chain: settings.certificate_file.clone(),
                key: settings.private_key_file.clone(),
            },
            (Some(_), true) | (None, false) => return Err(AccessError::Certificate),
        };
        let host = parsed.gateway_host_name.unwrap_or_else(|| parsed.host_name.clone());
        let identity = HubIdentity::new(parsed.host_name, parsed.device_id, parsed.module_id)?;
        Ok(Self { identity, host, proof, ca_file })
    }

    /// Who we are.
    #[must_use]
    pub const fn identity(&self) -> &HubIdentity {
        &self.identity
    }

    /// Whom we dial.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the proof ends, so that the connection must be made anew before.
    pub(super) const fn expires(&self) -> bool {
        match self.proof {
            Proof::Workload(_) | Proof::Key(_) => true,
            Proof::Certificate { .. } => false,
        }
    }

    /// Gets what the next connection needs.
    pub(super) async fn ticket(&self, life: Duration) -> Result<Ticket, AccessError> {
        let password = self.password(life).await?;
        let bundle = self.bundle().await?;
        let (of_files, ca_file) = (self.proof.files(), self.ca_file.clone());
        // A share that hangs must hold up nobody.
        let tls = tokio::task::spawn_blocking(move || tls(of_files, ca_file, bundle));
        let tls = tokio::time::timeout(READ_TIMEOUT, tls).await;
        let tls = tls.map_err(|_| AccessError::Disk)?.map_err(|_| AccessError::Disk)??;
        Ok(Ticket { host: self.host.clone(), password, tls })
    }

    /// What IoT Edge says whom to trust, if that counts.
    async fn bundle(&self) -> Result<Option<String>, AccessError> {
        match (&self.ca_file, &self.proof) {
            (None, Proof::Workload(workload)) => Ok(Some(workload.trust_bundle().await?)),
            (Some(_), _) | (None, Proof::Key(_) | Proof::Certificate { .. }) => Ok(None),
        }
    }

    /// A token of its own for each connection: one that was refused is never used again.
    async fn password(&self, life: Duration) -> Result<Option<Secret>, AccessError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| AccessError::Clock)?;
        let expires = now + life;
        let token = match &self.proof {
            Proof::Certificate { .. } => return Ok(None),
            Proof::Workload(workload) => {
                let (resource, expires) = (self.identity.resource(), expires.as_secs());
                let signature = workload.sign(&string_to_sign(&resource, expires)).await?;
                shared_access_signature(&resource, &signature, expires)
            }
            Proof::Key(KeyOfDevice(source)) => {
                let seconds = i64::try_from(expires.as_secs()).map_err(|_| AccessError::Clock)?;
                let expiry = chrono::DateTime::from_timestamp(seconds, 0);
                source.get(&expiry.ok_or(AccessError::Clock)?)
            }
        };
        Ok(Some(Secret::new(token)))
    }
}

impl Proof {
    /// Certificate chain and key, if that is the proof.
    fn files(&self) -> Option<(PathBuf, PathBuf)> {
        match self {
            Self::Workload(_) | Self::Key(_) => None,
            Self::Certificate { chain, key } => Some((chain.clone(), key.clone())),
        }
    }
}

fn tls(
    of_files: Option<(PathBuf, PathBuf)>,
    ca_file: Option<PathBuf>,
    bundle: Option<String>,
) -> Result<Arc<ClientConfig>, AccessError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities(ca_file, bundle)?);
    let Some((chain, key)) = of_files else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let chain = certificates("certificate-file", &read("certificate-file", &chain)?)?;
    let key = read("private-key-file", &key)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| AccessError::File {
        key: "private-key-file",
        reason: error.to_string(),
    })?;
    Ok(Arc::new(builder.with_client_auth_cert(chain, key)?))
}

/// Whom we trust: never more than is needed.
fn authorities(
    ca_file: Option<PathBuf>,
    bundle: Option<String>,
) -> Result<RootCertStore, AccessError> {
    let (found, name) = match (ca_file, bundle) {
        (Some(file), _) => {
            (certificates("ca-file", &read("ca-file", &file)?)?, file.display().to_string())
        }
        (None, Some(bundle)) => {
            // Of several that IoT Edge gives, those that are none are left out: the others count.
            let found = CertificateDer::pem_slice_iter(bundle.as_bytes());
            (found.filter_map(Result::ok).collect(), "the trust bundle of IoT Edge".to_owned())
        }
        (None, None) => {
            // Those that cannot be read are left out: one broken file among hundreds is no reason to trust nobody.
            let found = rustls_native_certs::load_native_certs().certs;
            (found, "the system's folder of authorities".to_owned())
        }
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found);
    if added == 0 { Err(AccessError::NoAuthority(name)) } else { Ok(roots) }
}

/// The token source of the SDK puts names into the token as they are: it gets them encoded.
fn key_of(parsed: &ConnectionString, key: &str) -> Result<KeyOfDevice, AccessError> {
    let device = encode(&parsed.device_id);
    let name = match &parsed.module_id {
        Some(module) => format!("{device}%2Fmodules%2F{}", encode(module)),
        None => device,
    };
    let source = DeviceKeyTokenSource::new(&encode(&parsed.host_name), &name, key);
    source.map(KeyOfDevice).map_err(|_| AccessError::Key)
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|error| AccessError::File {
        key,
        reason: format!("{} cannot be read: {error}", path.display()),
    })
}

fn certificates(
    key: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| AccessError::File { key, reason: error.to_string() })
}
