//! Azurite: the storage emulator that Microsoft publishes, from the packages of the set-up step.
//!
//! It has one account, whose key its documentation publishes. Shared keys and signatures it checks wholly, of the tokens that it takes
//! within TLS everything but the signature; roles it does not know.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use shared_proto::model::EventTime;

use crate::eventually::eventually;
use crate::ports::free_port;
use crate::process::ChildProcess;

const START_DEADLINE: Duration = Duration::from_secs(30);
/// The one account.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its key.
pub const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// Version of the service that signatures name.
const SIGNATURE_VERSION: &str = "2021-08-06";

/// A running blob service.
#[derive(Debug)]
pub struct Azurite {
    port: u16,
    tls: Option<Certificate>,
    _process: ChildProcess,
}

#[derive(Debug)]
struct Certificate {
    der: CertificateDer<'static>,
    file: PathBuf,
}

impl Azurite {
    /// Starts it with its data in `dir` and waits until it answers.
    ///
    /// # Errors
    /// Node or the package is missing, or it is not up within 30 s.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(dir, &[], None)
    }

    /// As [`Self::start`], within TLS, with a certificate of its own; it takes tokens too.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_tokens(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let key = rcgen::KeyPair::generate()?;
        let certificate =
            rcgen::CertificateParams::new(["127.0.0.1".to_owned()])?.self_signed(&key)?;
        let file = dir.join("certificate.pem");
        let key_file = dir.join("key.pem");
        std::fs::write(&file, certificate.pem())?;
        std::fs::write(&key_file, key.serialize_pem())?;
        let (cert, key) = (file.display().to_string(), key_file.display().to_string());
        let arguments = ["--oauth", "basic", "--cert", &cert, "--key", &key];
        let der = certificate.der().clone();
        Self::start_with(dir, &arguments, Some(Certificate { der, file }))
    }

    fn start_with(dir: &Path, more: &[&str], tls: Option<Certificate>) -> anyhow::Result<Self> {
        let program = crate::setup_dir().join("azurite/node_modules/azurite/dist/src/blob/main.js");
        if !program.exists() {
            bail!("{} is missing: run deployment-manifests/local/setup test", program.display());
        }
        let port = free_port()?;
        let (port_text, program) = (port.to_string(), program.display().to_string());
        let data = dir.display().to_string();
        let arguments = [
            program.as_str(),
            "--blobPort",
            &port_text,
            "--location",
            &data,
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ];
        let arguments = [&arguments, more].concat();
        let mut process = ChildProcess::start("azurite", dir, &find_node()?, &arguments, &[])?;
        eventually("Azurite answers", START_DEADLINE, || {
            if !process.is_running()? {
                return Ok(Err(anyhow::anyhow!("Azurite ended:\n{}", process.tail())));
            }
            // Without TLS it answers; within, that it listens is all that can be asked in plain text.
            ensure!(process.stdout().contains("successfully listens"), "it does not listen yet");
            anyhow::Ok(Ok(()))
        })??;
        Ok(Self { port, tls, _process: process })
    }

    /// Port of the blob service.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its account as the lake reader takes it; a container's name follows.
    #[must_use]
    pub fn url(&self) -> String {
        url_at(self.port)
    }

    /// Its account for clients that speak TLS.
    #[must_use]
    pub fn secure_url(&self) -> String {
        format!("https://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    /// The certificate, and its file: value of `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// It was started without TLS.
    pub fn certificate(&self) -> anyhow::Result<(CertificateDer<'static>, &Path)> {
        let tls = self.tls.as_ref().context("Azurite was started without TLS")?;
        Ok((tls.der.clone(), &tls.file))
    }
}

/// The account behind a proxy on 127.0.0.1.
#[must_use]
pub fn url_at(port: u16) -> String {
    format!("http://127.0.0.1:{port}/{ACCOUNT}")
}

/// A shared access signature for a container and the blobs in it, for reading, adding, creating, writing, deleting and listing, or fewer
/// of these permissions (`racwdl`, in this order), valid until `end`
/// (<https://learn.microsoft.com/rest/api/storageservices/create-service-sas>).
///
/// # Errors
/// The key is no base64, or the end lies before 1970.
pub fn container_signature(
    container: &str,
    permissions: &str,
    end: SystemTime,
    account_key: &str,
) -> anyhow::Result<String> {
    let key = STANDARD.decode(account_key)?;
    let seconds = i64::try_from(end.duration_since(UNIX_EPOCH)?.as_secs())?;
    let end = EventTime::from_micros(seconds * 1_000_000).to_string().replace(".000000", "");
    let resource = format!("/blob/{ACCOUNT}/{container}");
    let fields = [
        permissions,
        // Valid from the beginning.
        "",
        &end,
        &resource,
        // No policy, from any address.
        "",
        "",
        "https,http",
        SIGNATURE_VERSION,
        "c",
        // No snapshot, no encryption scope, no headers of the answer set.
        "",
        "",
        "",
        "",
        "",
        "",
        "",
    ];
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let signature = STANDARD.encode(ring::hmac::sign(&key, fields.join("\n").as_bytes()));
    let mut url = reqwest::Url::parse("http://signature/")?;
    url.query_pairs_mut()
        .append_pair("sp", permissions)
        .append_pair("se", &end)
        .append_pair("spr", "https,http")
        .append_pair("sv", SIGNATURE_VERSION)
        .append_pair("sr", "c")
        .append_pair("sig", &signature);
    Ok(url.query().unwrap_or_default().to_owned())
}

fn find_node() -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("node"))
        .find(|program| program.exists())
        .context("node is missing: run deployment-manifests/local/setup test")
}
