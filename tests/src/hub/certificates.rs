//! A certificate authority of one's own, and what it issues.

use std::sync::Arc;

use anyhow::Context;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Of the authority.
const YEARS_VALID_SECONDS: i64 = 10 * 365 * 86_400;
const DAY_SECONDS: i64 = 86_400;

/// From when to when a certificate holds, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: i64,
    pub(super) until: i64,
}

/// Signs certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

/// A certificate with its key.
pub(super) struct Issued {
    certificate: Certificate,
    key: KeyPair,
    /// RFC 3339.
    expiration: String,
}

impl Authority {
    /// Its dates are those of the machine, whatever a server believes.
    pub(super) fn new(name: &str, now: i64) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let validity = Validity { from: now - DAY_SECONDS, until: now + YEARS_VALID_SECONDS };
        let mut params = params(name, &[], validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    pub(super) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for these host names and addresses.
    pub(super) fn issue(&self, names: &[String], validity: Validity) -> anyhow::Result<Issued> {
        let key = KeyPair::generate()?;
        let mut params = params(names.first().context("no name")?, names, validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let until = params.not_after;
        let (date, month) = (until.date(), u8::from(until.month()));
        let (hour, minute, second) = until.to_hms();
        let expiration = format!(
            "{:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
            date.year(),
            date.day()
        );
        Ok(Issued { certificate, key, expiration })
    }
}

impl Issued {
    pub(super) fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    pub(super) fn expiration(&self) -> &str {
        &self.expiration
    }

    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A server with this certificate: TLS 1.2 and 1.3, no certificate of the client.
    pub(super) fn server_config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key)?;
        Ok(Arc::new(config))
    }
}

fn params(name: &str, names: &[String], validity: Validity) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = date_time_ymd(1970, 1, 1);
    let after_epoch = |seconds: i64| {
        let seconds = u64::try_from(seconds).context("a date before 1970")?;
        anyhow::Ok(epoch + std::time::Duration::from_secs(seconds))
    };
    params.not_before = after_epoch(validity.from)?;
    params.not_after = after_epoch(validity.until)?;
    Ok(params)
}
