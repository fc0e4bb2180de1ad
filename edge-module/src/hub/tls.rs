//! How to speak TLS with a hub, by files that are read anew for each connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_core::hub::certificate::{common_names, validity};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::access::AccessError;

/// What has to be read.
pub(super) struct TlsFiles {
    /// Certificate chain and key, if that is the proof.
    pub(super) of_device: Option<(PathBuf, PathBuf)>,
    /// Whom to trust; otherwise IoT Edge's bundle or the system says so.
    pub(super) authorities: Option<PathBuf>,
    /// Whose certificate it has to be, where the provisioning service is asked.
    pub(super) registration_id: Option<String>,
}

/// How to speak TLS, and when the certificate for it ends, in Unix seconds.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) certificate_ends: Option<i64>,
}

/// Reads everything.
///
/// # Errors
/// A file cannot be read or is none, certificate and key do not go together, or the certificate is not that of the registration.
pub(super) fn tls(files: TlsFiles, bundle: Option<String>) -> Result<Tls, AccessError> {
    let TlsFiles { of_device, authorities: ca_file, registration_id } = files;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities(ca_file, bundle)?);
    let Some((chain, key)) = of_device else {
        let config = Arc::new(builder.with_no_client_auth());
        return Ok(Tls { config, certificate_ends: None });
    };
    let wrong = |key, reason: String| AccessError::File { key, reason };
    let name = "certificate-file";
    let chain = certificates(name, &read(name, &chain)?)?;
    let first = chain.first().ok_or_else(|| wrong(name, "has no certificate".to_owned()))?;
    let dates = validity(first).map_err(|error| wrong(name, error.to_string()))?;
    if let Some(registration_id) = registration_id {
        let names = common_names(first).map_err(|error| wrong(name, error.to_string()))?;
        // Registration ids have no upper and lower case.
        if !names.iter().any(|name| name.eq_ignore_ascii_case(&registration_id)) {
            return Err(AccessError::Name { registration_id, names });
        }
    }
    let key = read("private-key-file", &key)?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| wrong("private-key-file", error.to_string()))?;
    let config = builder.with_client_auth_cert(chain, key);
    let config = config
        .map_err(|error| wrong(name, format!("does not go with private-key-file: {error}")))?;
    Ok(Tls { config: Arc::new(config), certificate_ends: Some(dates.until) })
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
