//! A certificate authority of one's own, and what it issues.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use ring::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

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

    /// A server with this certificate: TLS 1.2 and 1.3. It asks for a certificate of the client and takes any; whether that
    /// shows who the client is, is judged with its CONNECT, as a hub does.
    pub(super) fn server_config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let of_clients = Arc::clone(&provider);
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(AnyClient { provider: of_clients }))
            .with_single_cert(vec![self.certificate.der().clone()], key)?;
        Ok(Arc::new(config))
    }
}

/// What a device shows a hub. Files for a client; another stand-in knows it when it is told.
#[derive(Clone, Debug)]
pub struct DeviceCertificate {
    /// PEM: of the device, then of its authority if it is not its own.
    pub chain_pem: String,
    /// PEM.
    pub key_pem: String,
    pub(super) registered: Registered,
}

/// What a hub knows of such a certificate.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    /// SHA-256.
    thumbprint: Vec<u8>,
    /// The common name.
    name: String,
    validity: Validity,
}

impl DeviceCertificate {
    pub(super) fn self_signed(name: &str, validity: Validity) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(name, &[], validity)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.self_signed(&key)?;
        let chain_pem = certificate.pem();
        Ok(Self::new(name, validity, &certificate, chain_pem, key.serialize_pem()))
    }

    pub(super) fn by(
        authority: &Authority,
        name: &str,
        validity: Validity,
    ) -> anyhow::Result<Self> {
        let Issued { certificate, key, .. } = authority.issue(&[name.to_owned()], validity)?;
        let chain_pem = certificate.pem() + &authority.pem();
        Ok(Self::new(name, validity, &certificate, chain_pem, key.serialize_pem()))
    }

    fn new(
        name: &str,
        validity: Validity,
        certificate: &Certificate,
        chain_pem: String,
        key_pem: String,
    ) -> Self {
        let thumbprint = thumbprint(certificate.der());
        let registered = Registered { thumbprint, name: name.to_owned(), validity };
        Self { chain_pem, key_pem, registered }
    }
}

impl Registered {
    pub(super) fn is(&self, der: &CertificateDer<'_>) -> bool {
        self.thumbprint == thumbprint(der)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn holds_at(&self, now: i64) -> bool {
        (self.validity.from..=self.validity.until).contains(&now)
    }
}

fn thumbprint(der: &CertificateDer<'_>) -> Vec<u8> {
    digest::digest(&digest::SHA256, der).as_ref().to_vec()
}

impl Authority {
    /// Whether it vouches for a client.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check_client(
        &self,
        chain: &[CertificateDer<'_>],
        now: i64,
    ) -> anyhow::Result<()> {
        let (first, others) = chain.split_first().context("no certificate")?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now)?));
        verifier.verify_client_cert(first, others, now)?;
        Ok(())
    }
}

/// Takes any certificate whose key the client has.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn params(name: &str, names: &[String], validity: Validity) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = date_time_ymd(1970, 1, 1);
    let after_epoch = |seconds: i64| {
        let seconds = u64::try_from(seconds).context("a date before 1970")?;
        anyhow::Ok(epoch + Duration::from_secs(seconds))
    };
    params.not_before = after_epoch(validity.from)?;
    params.not_after = after_epoch(validity.until)?;
    Ok(params)
}
