//! Who we are for a hub, and how we prove it: once for each connection, with a fresh token, fresh authorities, and the certificate
//! that lies there now.
//!
//! A device that is provisioned learns who it is from the provisioning service: until then it has the name of its registration.
//! The service is asked again when the hub refuses the device, or could not be reached `DOUBTS_MAX` times in a row, since it
//! may belong elsewhere by now; while the service has no answer, the hub that was known is tried in between.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use azure_iot_sdk::{DeviceKeyTokenSource, TokenSource as _};
use edge_core::hub::identity::{
    ConnectionString, ConnectionStringError, HubIdentity, HubIdentityError,
    shared_access_signature, string_to_sign,
};
use edge_core::hub::properties::encode;
use edge_core::hub::provisioning::{Assignment, Registration, registration_signature};
use rustls::ClientConfig;
use tracing::{error, info, warn};

use super::clock::Clock;
use super::hmac;
use super::measures::Expiry;
use super::provisioning::{DeviceProof, Provisioning, ProvisioningError};
use super::tls::{TlsFiles, tls};
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
    #[error("iot-hub.{0} is not base64")]
    Key(&'static str),
    /// No hub is assigned.
    #[error(transparent)]
    Provisioning(#[from] ProvisioningError),
    /// The connection string and the certificate do not fit.
    #[error(
        "iot-hub.certificate-file: a device with x509=true needs it, one with a SharedAccessKey does not"
    )]
    Certificate,
    /// IoT Edge does not help.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The provisioning service would not take the certificate.
    #[error(
        "iot-hub.certificate-file: {}, and iot-hub.provisioning.registration-id is {registration_id:?}: the provisioning service, by an enrolment of one device or of a group, takes only the certificate whose common name is the registration id; set that one, or have the certificate issued anew",
        told(.names)
    )]
    Name {
        /// Of the settings.
        registration_id: String,
        /// Common names of the certificate.
        names: Vec<String>,
    },
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

fn told(names: &[String]) -> String {
    match names {
        [] => "it has no common name".to_owned(),
        names => format!("its common name is {:?}", names.join(", ")),
    }
}

/// Who we are, and what proves it.
#[derive(Debug)]
pub struct Access {
    identity: HubIdentity,
    /// Whom to dial; the name in its certificate.
    host: String,
    proof: Proof,
    ca_file: Option<PathBuf>,
    /// Who says who we are, if somebody does.
    provisioning: Option<Arc<Provisioning>>,
    /// Whether that was said.
    is_assigned: bool,
    /// Reasons to ask again.
    doubts: AtomicU32,
    /// Whether the last connection was refused.
    is_refused: AtomicBool,
    watched: Arc<Watched>,
}

/// What outlives an assignment.
#[derive(Debug, Default)]
struct Watched {
    expiry: Expiry,
    clock: Clock,
}

#[derive(Debug)]
enum Proof {
    /// IoT Edge signs.
    Workload(Workload),
    /// We sign, with the key of the device.
    Key(KeyOfDevice),
    /// We sign, with the same key, before we know the device.
    Registration(Secret),
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

/// Connections in a row that did not come about, after which the provisioning service is asked again.
const DOUBTS_MAX: u32 = 5;
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

/// Whether the settings and the variables of this process say that there shall be a link.
#[must_use]
pub fn is_wanted(settings: &IotHub, variable: impl Fn(&str) -> Option<String>) -> bool {
    match settings.identity {
        HubMode::Off => false,
        HubMode::Auto => MODULE_VARIABLES.iter().any(|name| variable(name).is_some()),
        HubMode::Module | HubMode::Device => true,
    }
}

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
        if !is_wanted(settings, &variable) {
            return Ok(None);
        }
        match settings.identity {
            HubMode::Off => Ok(None),
            HubMode::Auto | HubMode::Module => Self::of_module(variable, ca_file)?.checked(),
            HubMode::Device if settings.provisioning.is_used() => {
                Self::of_registration(settings, ca_file)?.checked()
            }
            HubMode::Device => Self::of_device(settings, ca_file)?.checked(),
        }
    }

    /// Keeps what the provisioning service says in this folder.
    #[must_use]
    pub fn kept_in(mut self, folder: &Path) -> Self {
        let provisioning = self.provisioning.as_mut().and_then(Arc::get_mut);
        if let Some(provisioning) = provisioning {
            provisioning.folder = Some(folder.to_owned());
        }
        self
    }

    fn with(identity: HubIdentity, host: String, proof: Proof, ca_file: Option<PathBuf>) -> Self {
        Self {
            identity,
            host,
            proof,
            ca_file,
            provisioning: None,
            is_assigned: true,
            doubts: AtomicU32::new(0),
            is_refused: AtomicBool::new(false),
            watched: Arc::default(),
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
        let identity = HubIdentity::new(hub, device, Some(module))?;
        let host = value("IOTEDGE_GATEWAYHOSTNAME");
        Ok(Self::with(identity, host, Proof::Workload(workload), ca_file))
    }

    fn of_device(settings: &IotHub, ca_file: Option<PathBuf>) -> Result<Self, AccessError> {
        let text = secret("connection-string-file", &settings.connection_string_file)?;
        let parsed = ConnectionString::parse(text.expose())?;
        let has_certificate = !settings.certificate_file.as_os_str().is_empty();
        let proof = match (&parsed.shared_access_key, has_certificate) {
            (Some(key), false) => {
                let identity = parsed.identity()?;
                let key = key_of(&identity, key)
                    .map_err(|_| AccessError::Key("connection-string-file: its SharedAccessKey"))?;
                Proof::Key(key)
            }
            (None, true) => Proof::Certificate {
                chain: settings.certificate_file.clone(),
                key: settings.private_key_file.clone(),
            },
            (Some(_), true) | (None, false) => return Err(AccessError::Certificate),
        };
        let host = parsed.gateway_host_name.unwrap_or_else(|| parsed.host_name.clone());
        let identity = HubIdentity::new(parsed.host_name, parsed.device_id, parsed.module_id)?;
        Ok(Self::with(identity, host, proof, ca_file))
    }

    /// Not assigned yet: the registration stands for the device, the service for the hub.
    fn of_registration(settings: &IotHub, ca_file: Option<PathBuf>) -> Result<Self, AccessError> {
        let of_service = &settings.provisioning;
        let (scope, id) = (of_service.id_scope.clone(), of_service.registration_id.clone());
        let registration = Registration::new(scope, id)?;
        let (own, group) = (&of_service.symmetric_key_file, &of_service.group_key_file);
        let proof = if !own.as_os_str().is_empty() {
            let name = "provisioning.symmetric-key-file";
            let key = secret(name, own)?;
            hmac::sign(&key, "").map_err(|_| AccessError::Key(name))?;
            DeviceProof::Key(key)
        } else if !group.as_os_str().is_empty() {
            let name = "provisioning.group-key-file";
            let of_device = hmac::sign(&secret(name, group)?, &registration.registration_id);
            DeviceProof::Key(Secret::new(of_device.map_err(|_| AccessError::Key(name))?))
        } else {
            DeviceProof::Certificate {
                chain: settings.certificate_file.clone(),
                key: settings.private_key_file.clone(),
            }
        };
        let host = of_service.endpoint.clone();
        let identity = HubIdentity::new(host.clone(), registration.registration_id.clone(), None)?;
        let provisioning = Provisioning::new(registration, host.clone(), proof);
        let of_service = match &provisioning.proof {
            DeviceProof::Key(key) => Proof::Registration(key.clone()),
            DeviceProof::Certificate { chain, key } => {
                Proof::Certificate { chain: chain.clone(), key: key.clone() }
            }
        };
        let provisioning = Some(Arc::new(provisioning));
        let not_assigned = Self::with(identity, host, of_service, ca_file);
        Ok(Self { provisioning, is_assigned: false, ..not_assigned })
    }

    /// As the device that we are by now.
    fn assigned(
        &self,
        provisioning: &Arc<Provisioning>,
        assignment: Assignment,
    ) -> Result<Self, AccessError> {
        let Assignment { hub_host, device_id } = assignment;
        let identity = HubIdentity::new(hub_host.clone(), device_id, None)?;
        let proof = match &provisioning.proof {
            DeviceProof::Key(key) => {
                let key = key_of(&identity, key.expose());
                Proof::Key(key.map_err(|_| AccessError::Key("provisioning"))?)
            }
            DeviceProof::Certificate { chain, key } => {
                Proof::Certificate { chain: chain.clone(), key: key.clone() }
            }
        };
        Ok(Self {
            provisioning: Some(Arc::clone(provisioning)),
            watched: Arc::clone(&self.watched),
            ..Self::with(identity, hub_host, proof, self.ca_file.clone())
        })
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

    /// How we prove who we are, for people.
    pub(super) const fn proof_name(&self) -> &'static str {
        match &self.proof {
            Proof::Workload(_) => "tokens that IoT Edge signs",
            Proof::Key(_) | Proof::Registration(_) => "tokens by its key",
            Proof::Certificate { .. } => "its certificate",
        }
    }

    /// The service that says where we belong, if there is one, and as whom it knows us.
    pub(super) fn registration(&self) -> Option<(&str, &Registration)> {
        let provisioning = self.provisioning.as_ref()?;
        Some((&provisioning.endpoint, &provisioning.registration))
    }

    /// Reads the files that each connection reads anew. Gives when the certificate ends, in Unix seconds, if there is one.
    ///
    /// # Errors
    /// As of a connection.
    pub(super) fn read_files(&self) -> Result<Option<i64>, AccessError> {
        match (&self.proof, &self.ca_file) {
            // Whom to trust is asked of IoT Edge.
            (Proof::Workload(_), None) => Ok(None),
            (Proof::Workload(_), Some(_))
            | (Proof::Key(_) | Proof::Registration(_) | Proof::Certificate { .. }, _) => {
                let registration = self.registration().map(|(_, registration)| registration);
                Ok(tls(self.tls_files(registration), None)?.certificate_ends)
            }
        }
    }

    /// Whether the proof ends, so that the connection must be made anew before.
    pub(super) const fn expires(&self) -> bool {
        match self.proof {
            Proof::Workload(_) | Proof::Key(_) | Proof::Registration(_) => true,
            Proof::Certificate { .. } => false,
        }
    }

    /// The hub has accepted us.
    pub(super) fn note_connected(&self) {
        self.doubts.store(0, Ordering::Relaxed);
    }

    /// A connection to the hub has ended, or did not come about.
    pub(super) fn note_closed(&self, is_refused: bool) {
        self.is_refused.store(is_refused, Ordering::Relaxed);
        let more = if is_refused { DOUBTS_MAX } else { 1 };
        self.doubts.fetch_add(more, Ordering::Relaxed);
    }

    /// What a person is to do when we are refused.
    pub(super) fn remedy(&self) -> String {
        self.watched.clock.remedy().unwrap_or_else(|| {
            "check the clock, the key or certificate, and that the device or module exists and is enabled"
                .to_owned()
        })
    }

    /// Measures how long the certificate holds, and tells when it ends soon.
    pub(super) fn watch_certificate(&self, warning: Duration) {
        self.watched.expiry.tell(warning);
    }

    /// Gets what the next connection needs, and who makes it.
    pub(super) async fn ready(
        self: &Arc<Self>,
        settings: &IotHub,
    ) -> Result<(Arc<Self>, Ticket), AccessError> {
        let access = match &self.provisioning {
            Some(provisioning) => self.provisioned(provisioning, settings).await?,
            None => Arc::clone(self),
        };
        let ticket = access.ticket(settings.token_life).await?;
        let (is_asked, port) = (self.is_refused.load(Ordering::Relaxed), settings.https_port);
        if is_asked && port != 0 {
            let clock = &access.watched.clock;
            clock.ask(&ticket.host, port, &ticket.tls).await;
            if let Some(remedy) = clock.remedy() {
                error!("{remedy}; until then the hub may believe nothing that is signed here");
            }
        }
        Ok((access, ticket))
    }

    /// Measures the clock beside a connection that is there.
    pub(super) fn watch_clock(self: &Arc<Self>, port: u16) {
        if port == 0 {
            return;
        }
        let access = Arc::clone(self);
        tokio::spawn(async move {
            let bundle = access.bundle().await;
            let tls = match bundle {
                Ok(bundle) => access.tls(access.tls_files(None), bundle).await,
                Err(error) => Err(error),
            };
            match tls {
                Ok(tls) => access.watched.clock.ask(&access.host, port, &tls).await,
                Err(error) => warn!(%error, "the hub is not asked for its time"),
            }
        });
    }

    /// Ourselves as we are known to be: by what was said before, or by asking.
    async fn provisioned(
        self: &Arc<Self>,
        provisioning: &Arc<Provisioning>,
        settings: &IotHub,
    ) -> Result<Arc<Self>, AccessError> {
        if self.is_assigned {
            let is_doubted = self.doubts.load(Ordering::Relaxed) >= DOUBTS_MAX;
            if !is_doubted || !provisioning.may_ask() {
                return Ok(Arc::clone(self));
            }
        } else if let Some(kept) = read_kept(provisioning).await {
            info!(hub = kept.hub_host, device = kept.device_id, "assigned before");
            return self.assigned(provisioning, kept).map(Arc::new);
        } else {
            provisioning.wait().await;
        }
        // The hub that was known is tried before the service is asked once more.
        self.doubts.store(0, Ordering::Relaxed);
        let before = self.is_assigned.then(|| Assignment {
            hub_host: self.identity.hub_host.clone(),
            device_id: self.identity.device_id.clone(),
        });
        let ticket = self.registration_ticket(provisioning, settings.token_life).await?;
        let clock = &self.watched.clock;
        let assignment = provisioning.ask(ticket, settings, clock, before.as_ref()).await?;
        info!(hub = assignment.hub_host, device = assignment.device_id, "assigned");
        if before.as_ref() != Some(&assignment) {
            provisioning.keep(&assignment).await;
        }
        self.assigned(provisioning, assignment).map(Arc::new)
    }

    async fn registration_ticket(
        &self,
        provisioning: &Provisioning,
        life: Duration,
    ) -> Result<Ticket, AccessError> {
        let password = match &provisioning.proof {
            DeviceProof::Certificate { .. } => None,
            DeviceProof::Key(key) => {
                Some(registration_token(&provisioning.registration, key, life)?)
            }
        };
        let host = provisioning.endpoint.clone();
        let tls = self.tls(self.tls_files(Some(&provisioning.registration)), None).await?;
        Ok(Ticket { host, password, tls })
    }

    /// Gets what the next connection needs.
    pub(super) async fn ticket(&self, life: Duration) -> Result<Ticket, AccessError> {
        let password = self.password(life).await?;
        let bundle = self.bundle().await?;
        let tls = self.tls(self.tls_files(None), bundle).await?;
        Ok(Ticket { host: self.host.clone(), password, tls })
    }

    async fn tls(
        &self,
        files: TlsFiles,
        bundle: Option<String>,
    ) -> Result<Arc<ClientConfig>, AccessError> {
        // A share that hangs must hold up nobody.
        let made = tokio::task::spawn_blocking(move || tls(files, bundle));
        let made = tokio::time::timeout(READ_TIMEOUT, made).await;
        let made = made.map_err(|_| AccessError::Disk)?.map_err(|_| AccessError::Disk)??;
        if let Some(ends) = made.certificate_ends {
            self.watched.expiry.set(ends);
        }
        Ok(made.config)
    }

    /// For a connection to the hub, or to the service where the device registers.
    fn tls_files(&self, registration: Option<&Registration>) -> TlsFiles {
        TlsFiles {
            of_device: self.proof.files(),
            authorities: self.ca_file.clone(),
            registration_id: registration.map(|it| it.registration_id.clone()),
        }
    }

    /// What IoT Edge says whom to trust, if that counts.
    async fn bundle(&self) -> Result<Option<String>, AccessError> {
        match (&self.ca_file, &self.proof) {
            (None, Proof::Workload(workload)) => Ok(Some(workload.trust_bundle().await?)),
            (Some(_), _)
            | (None, Proof::Key(_) | Proof::Registration(_) | Proof::Certificate { .. }) => {
                Ok(None)
            }
        }
    }

    /// A token of its own for each connection: one that was refused is never used again.
    async fn password(&self, life: Duration) -> Result<Option<Secret>, AccessError> {
        let expires = expires(life)?;
        let token = match &self.proof {
            Proof::Certificate { .. } => return Ok(None),
            Proof::Registration(key) => {
                let Some(provisioning) = &self.provisioning else { return Ok(None) };
                return registration_token(&provisioning.registration, key, life).map(Some);
            }
            Proof::Workload(workload) => {
                let resource = self.identity.resource();
                let signature = workload.sign(&string_to_sign(&resource, expires)).await?;
                shared_access_signature(&resource, &signature, expires)
            }
            Proof::Key(KeyOfDevice(source)) => {
                let seconds = i64::try_from(expires).map_err(|_| AccessError::Clock)?;
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
            Self::Workload(_) | Self::Key(_) | Self::Registration(_) => None,
            Self::Certificate { chain, key } => Some((chain.clone(), key.clone())),
        }
    }
}

/// When a token ends that is made now, in Unix seconds.
fn expires(life: Duration) -> Result<u64, AccessError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| AccessError::Clock)?;
    Ok((now + life).as_secs())
}

fn registration_token(
    registration: &Registration,
    key: &Secret,
    life: Duration,
) -> Result<Secret, AccessError> {
    let (resource, expires) = (registration.resource(), expires(life)?);
    let signature = hmac::sign(key, &string_to_sign(&resource, expires));
    let signature = signature.map_err(|_| AccessError::Key("provisioning"))?;
    Ok(Secret::new(registration_signature(&resource, &signature, expires)))
}

/// A disk that does not answer knows nothing.
async fn read_kept(provisioning: &Arc<Provisioning>) -> Option<Assignment> {
    let provisioning = Arc::clone(provisioning);
    let reading = tokio::task::spawn_blocking(move || provisioning.read_kept());
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(kept)) => kept,
        Ok(Err(_)) | Err(_) => {
            warn!("the disk of device.data-dir does not answer: the hub is asked for anew");
            None
        }
    }
}

/// The token source of the SDK puts names into the token as they are: it gets them encoded.
fn key_of(identity: &HubIdentity, key: &str) -> Result<KeyOfDevice, hmac::NoKey> {
    let device = encode(&identity.device_id);
    let name = match &identity.module_id {
        Some(module) => format!("{device}%2Fmodules%2F{}", encode(module)),
        None => device,
    };
    let source = DeviceKeyTokenSource::new(&encode(&identity.hub_host), &name, key);
    source.map(KeyOfDevice).map_err(|_| hmac::NoKey)
}

/// A start is not held up by a disk that does not answer.
fn secret(key: &'static str, path: &Path) -> Result<Secret, AccessError> {
    let path = path.to_owned();
    read_patiently("hub's key", move || read_secret(&path))
        .ok_or(AccessError::Disk)?
        .map_err(|reason| AccessError::File { key, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    /// What a device has that is provisioned, with a file of this text as the one of this key.
    fn with_file<T>(key: &str, text: &str, use_it: impl FnOnce(&IotHub) -> T) -> T {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, secret) = (folder.path().join("edge.toml"), folder.path().join("secret"));
        std::fs::write(&secret, text).expect("written");
        let provisioning = format!(
            "[iot-hub]\nidentity = \"device\"\n[iot-hub.provisioning]\nid-scope = \"0ne1\"\n\
             registration-id = \"gw-7\"\n{key} = \"{}\"\n",
            secret.display()
        );
        std::fs::write(&file, provisioning).expect("written");
        let settings = Settings::load(Some(&file)).expect("valid settings");
        use_it(&settings.iot_hub)
    }

    fn access(key: &str, text: &str) -> Access {
        let made = with_file(key, text, |settings| Access::new(settings, |_| None));
        made.expect("valid").expect("a link")
    }

    #[test]
    fn before_it_is_assigned_a_device_is_its_registration() {
        for key in ["symmetric-key-file", "group-key-file"] {
            let access = access(key, "c2VjcmV0\n");
            assert_eq!(access.identity().device_id, "gw-7");
            assert_eq!(access.host(), "global.azure-devices-provisioning.net");
            let shown = format!("{access:?}");
            assert!(!shown.contains("c2VjcmV0"), "{shown}");
        }
    }

    #[test]
    fn a_key_that_is_none_names_its_setting() {
        for key in ["symmetric-key-file", "group-key-file"] {
            for (text, expected) in [("no key!", "is not base64"), (" ", "is empty")] {
                let made = with_file(key, text, |settings| Access::new(settings, |_| None));
                let error = made.expect_err("none").to_string();
                assert!(error.contains(key) && error.contains(expected), "{error}");
                assert!(!error.contains("no key!"), "{error}");
            }
        }
    }

    #[test]
    fn an_assigned_device_shows_the_key_of_its_group() {
        let access = access("group-key-file", "c2VjcmV0");
        let provisioning = access.provisioning.as_ref().expect("provisioned");
        let DeviceProof::Key(key) = &provisioning.proof else { panic!("a key") };
        // echo -n gw-7 | openssl dgst -sha256 -hmac secret -binary | base64
        assert_eq!(key.expose(), "okVhUaYo6bHLtNvtQk1XLYxjwpHd28KCZPy1ZTUm6ds=");
        let (hub_host, device_id) = ("hub.example".to_owned(), "press-7".to_owned());
        let assigned = access.assigned(provisioning, Assignment { hub_host, device_id });
        let assigned = assigned.expect("valid names");
        assert_eq!(
            (assigned.host(), assigned.identity().client_id().as_str()),
            ("hub.example", "press-7")
        );
        assert!(matches!(assigned.proof, Proof::Key(_)) && assigned.is_assigned);
    }

    #[test]
    fn a_refusal_counts_as_all_doubts_and_an_acceptance_ends_them() {
        let access = access("symmetric-key-file", "c2VjcmV0");
        let doubts = || access.doubts.load(Ordering::Relaxed);
        access.note_closed(false);
        assert_eq!(doubts(), 1);
        access.note_connected();
        assert_eq!(doubts(), 0);
        access.note_closed(true);
        assert!(doubts() >= DOUBTS_MAX);
    }
}
