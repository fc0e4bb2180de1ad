//! A stand-in for whoever gives the tokens of an Azure identity: the endpoint of an App Service's managed identity, by HTTP, or
//! the token endpoint of Microsoft Entra ID, by HTTPS. Its tokens are JWTs signed with RS256: a broker that has the key set can
//! check them.
//!
//! Sources: "How to use managed identities for App Service" (REST endpoint reference) and "OAuth 2.0 client credentials flow"
//! (access token request with a federated credential) of the Azure documentation; RFC 7515, RFC 7517 and RFC 7519.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e_tests::tokens::{ASSERTION_TYPE, IDENTITY_PATH, TokenRequest};
use ring::rand::SystemRandom;
use ring::rsa::{KeyPair as RsaKeyPair, PublicKeyComponents};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// What an App Service gives its app beside the address, so that nobody else gets tokens.
pub(super) const IDENTITY_HEADER: &str = "853b9a84-5bfa-4b22-a3f3-0b9a43d9ad8a";
/// Directory of the identity.
pub(super) const TENANT: &str = "72f988bf-0000-4000-8000-2d7cd011db47";
/// The identity's number in it.
pub(super) const CLIENT_ID: &str = "9f2c1a10-0000-4000-8000-5b1c7a0e4d11";
/// Who signs.
pub(super) const ISSUER: &str = "https://sts.windows.net/72f988bf-0000-4000-8000-2d7cd011db47/";
/// What a token that is for something else is for.
pub(super) const OTHER_AUDIENCE: &str = "https://another.servicebus.windows.net";

const KEY_ID: &str = "key-of-one-test";
const API_VERSION: &str = "2019-08-01";
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Signs tokens.
pub(super) struct SigningKey(RsaKeyPair);

impl SigningKey {
    /// A new one. OpenSSL makes it: the library that signs makes no RSA keys.
    pub(super) fn generate() -> anyhow::Result<Self> {
        let made = Command::new("openssl")
            .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
            .output()
            .context("openssl is missing: it comes with the package ca-certificates")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let key = PrivatePkcs8KeyDer::from_pem_slice(&made.stdout)?;
        let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der());
        Ok(Self(key.map_err(|error| anyhow::anyhow!("the key of openssl: {error}"))?))
    }

    /// The public half, as a JSON Web Key Set.
    pub(super) fn key_set(&self) -> String {
        let public = PublicKeyComponents::<Vec<u8>>::from(self.0.public());
        let key = json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID,
            "n": URL_SAFE_NO_PAD.encode(public.n), "e": URL_SAFE_NO_PAD.encode(public.e),
        });
        json!({ "keys": [key] }).to_string()
    }

    fn sign(&self, claims: &Value) -> anyhow::Result<String> {
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": KEY_ID });
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encoded(&header), encoded(claims));
        let mut signature = vec![0; self.0.public().modulus_len()];
        let padding = &ring::signature::RSA_PKCS1_SHA256;
        let random = SystemRandom::new();
        self.0
            .sign(padding, &random, signed.as_bytes(), &mut signature)
            .map_err(|_| anyhow::anyhow!("the key does not sign"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// What whoever asks gets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// A token for what was asked, good for so many seconds.
    Token(i64),
    /// A token for [`OTHER_AUDIENCE`], good for so many seconds.
    WrongAudience(i64),
    /// This status with an error of this description.
    Refusal(u16, &'static str),
}

/// Whom it believes.
enum Protocol {
    /// HTTP and [`IDENTITY_HEADER`].
    Managed,
    /// HTTPS and this token of a service account.
    Workload { assertion: String, tls: Arc<ServerConfig> },
}

struct Shared {
    protocol: Protocol,
    /// What tokens are given for.
    audience: String,
    key: SigningKey,
    answer: Mutex<Answer>,
    /// All that were given, each with the second in which it expires.
    tokens: Mutex<Vec<(String, i64)>>,
}

/// Listens for as long as the process lives.
pub(super) struct TokenEndpoint {
    port: u16,
    shared: Arc<Shared>,
}

impl TokenEndpoint {
    /// As in an App Service.
    pub(super) fn managed(audience: &str, key: SigningKey) -> anyhow::Result<Self> {
        Self::start(audience, key, Protocol::Managed)
    }

    /// As in a pod whose service account has the token `assertion`; also the certificate to trust, PEM.
    pub(super) fn workload(
        audience: &str,
        key: SigningKey,
        assertion: &str,
    ) -> anyhow::Result<(Self, String)> {
        let (tls, certificate) = certificate()?;
        let protocol = Protocol::Workload { assertion: assertion.to_owned(), tls };
        Ok((Self::start(audience, key, protocol)?, certificate))
    }

    fn start(audience: &str, key: SigningKey, protocol: Protocol) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            protocol,
            audience: audience.to_owned(),
            key,
            answer: Mutex::new(Answer::Token(3600)),
            tokens: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                // A client that breaks off is its own problem; the test sees that no token was given.
                std::thread::spawn(move || shared.serve(stream).ok());
            }
        });
        Ok(Self { port, shared })
    }

    /// The variables that say where it is.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let port = self.port;
        let variables = match &self.shared.protocol {
            Protocol::Managed => vec![
                ("IDENTITY_ENDPOINT", format!("http://127.0.0.1:{port}{IDENTITY_PATH}")),
                ("IDENTITY_HEADER", IDENTITY_HEADER.to_owned()),
            ],
            Protocol::Workload { .. } => vec![
                ("AZURE_AUTHORITY_HOST", format!("https://127.0.0.1:{port}/")),
                ("AZURE_TENANT_ID", TENANT.to_owned()),
                ("AZURE_CLIENT_ID", CLIENT_ID.to_owned()),
            ],
        };
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// From now on.
    pub(super) fn set_answer(&self, answer: Answer) {
        *lock(&self.shared.answer) = answer;
    }

    /// All that were given so far, in order.
    pub(super) fn tokens(&self) -> Vec<String> {
        lock(&self.shared.tokens).iter().map(|(token, _)| token.clone()).collect()
    }

    /// Whether every one of them has expired.
    pub(super) fn all_have_expired(&self) -> anyhow::Result<bool> {
        let now = now()?;
        Ok(lock(&self.shared.tokens).iter().all(|(_, until)| *until <= now))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As tokens have it: seconds since 1970.
fn now() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

fn certificate() -> anyhow::Result<(Arc<ServerConfig>, String)> {
    let key = rcgen::KeyPair::generate()?;
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()])?;
    let certificate = params.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], der)?;
    Ok((Arc::new(config), certificate.pem()))
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        match &self.protocol {
            Protocol::Managed => {
                let request = TokenRequest::read(&stream)?;
                self.write(&stream, &request)
            }
            Protocol::Workload { tls, .. } => {
                let connection = ServerConnection::new(Arc::clone(tls))?;
                let mut stream = StreamOwned::new(connection, stream);
                let request = TokenRequest::read(&mut stream)?;
                self.write(&mut stream, &request)?;
                stream.conn.send_close_notify();
                Ok(stream.flush()?)
            }
        }
    }

    fn write(&self, mut stream: impl Write, request: &TokenRequest) -> anyhow::Result<()> {
        let (status, body) = self.answer(request)?;
        let (body, length) = (body.to_string(), body.to_string().len());
        write!(
            stream,
            "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        )?;
        Ok(stream.flush()?)
    }

    fn answer(&self, request: &TokenRequest) -> anyhow::Result<(u16, Value)> {
        let refused = match &self.protocol {
            Protocol::Managed => self.fault_of_managed(request),
            Protocol::Workload { assertion, .. } => self.fault_of_workload(request, assertion),
        };
        if let Some((status, description)) = refused {
            return Ok((status, self.refusal(description)));
        }
        let (audience, seconds) = match *lock(&self.answer) {
            Answer::Token(seconds) => (self.audience.as_str(), seconds),
            Answer::WrongAudience(seconds) => (OTHER_AUDIENCE, seconds),
            Answer::Refusal(status, description) => {
                return Ok((status, self.refusal(description)));
            }
        };
        let now = now()?;
        let token = self.token(audience, now, now + seconds)?;
        let answer = match &self.protocol {
            Protocol::Managed => json!({
                "access_token": token, "token_type": "Bearer", "client_id": CLIENT_ID,
                "resource": request.field("resource"), "expires_on": (now + seconds).to_string(),
            }),
            Protocol::Workload { .. } => json!({
                "access_token": token, "token_type": "Bearer",
                "expires_in": seconds, "ext_expires_in": seconds,
            }),
        };
        Ok((200, answer))
    }

    fn token(&self, audience: &str, now: i64, until: i64) -> anyhow::Result<String> {
        let mut tokens = lock(&self.tokens);
        let claims = json!({
            "aud": audience, "iss": ISSUER, "iat": now, "nbf": now, "exp": until, "tid": TENANT,
            "appid": CLIENT_ID, "oid": CLIENT_ID, "sub": CLIENT_ID, "idtyp": "app", "ver": "1.0",
            "uti": format!("token-{}", tokens.len() + 1),
        });
        let token = self.key.sign(&claims)?;
        tokens.push((token.clone(), until));
        Ok(token)
    }

    fn fault_of_managed(&self, request: &TokenRequest) -> Option<(u16, &'static str)> {
        if request.method != "GET" || request.path != IDENTITY_PATH {
            return Some((404, "there is no such path"));
        }
        if request.header("x-identity-header") != IDENTITY_HEADER {
            return Some((403, "the X-IDENTITY-HEADER is not that of the app"));
        }
        if request.field("api-version") != API_VERSION {
            return Some((400, "there is no such api-version"));
        }
        let is_known = request.field("resource") == self.audience;
        (!is_known).then_some((400, "AADSTS500011: there is no such resource"))
    }

    fn fault_of_workload(
        &self,
        request: &TokenRequest,
        assertion: &str,
    ) -> Option<(u16, &'static str)> {
        if request.method != "POST" || request.path != format!("/{TENANT}/oauth2/v2.0/token") {
            return Some((404, "there is no such path"));
        }
        let wanted = [("grant_type", "client_credentials"), ("client_id", CLIENT_ID)];
        if wanted.into_iter().any(|(name, value)| request.field(name) != value) {
            return Some((400, "AADSTS700016: there is no such application"));
        }
        let is_type = request.field("client_assertion_type") == ASSERTION_TYPE;
        if !is_type || request.field("client_assertion") != assertion {
            return Some((401, "AADSTS70021: no matching federated identity record"));
        }
        let is_known = request.field("scope").strip_suffix("/.default") == Some(&*self.audience);
        (!is_known).then_some((400, "AADSTS500011: there is no such resource"))
    }

    fn refusal(&self, description: &str) -> Value {
        match &self.protocol {
            Protocol::Managed => json!({ "statusCode": 0, "message": description }),
            Protocol::Workload { .. } => json!({
                "error": "invalid_client", "error_description": description, "error_codes": [0],
                "timestamp": "t", "trace_id": "t", "correlation_id": "c",
            }),
        }
    }
}
