//! A stand-in for what gives tokens for Azure Storage: the endpoint of managed identities, as on App Service and Container Apps, and the
//! token endpoint of Microsoft Entra ID for a federated credential. Azurite takes what it issues.
//!
//! It refuses what the real ones refuse: a managed identity without its headers
//! (<https://learn.microsoft.com/azure/app-service/overview-managed-identity>), an assertion that the identity does not trust
//! (<https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>), another resource.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Value of `IDENTITY_HEADER`, which the endpoint of managed identities asks for.
pub const IDENTITY_HEADER: &str = "identity-header-7f3a";
/// The one client.
pub const CLIENT_ID: &str = "11111111-2222-3333-4444-555555555555";
/// Its tenant.
pub const TENANT_ID: &str = "99999999-8888-7777-6666-555555555555";

const REQUEST_BYTES_MAX: u64 = 64 * 1024;
const RESOURCE: &str = "https://storage.azure.com";
/// As the documentation has it.
pub const IDENTITY_PATH: &str = "/msi/token";
/// As the documentation has it.
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Listens on a free port for as long as the process lives.
#[derive(Clone, Debug)]
pub struct TokenIssuer {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lifetime: Duration,
    /// The assertion that the client's federated credential trusts.
    assertion: Mutex<String>,
    tokens: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
}

impl TokenIssuer {
    /// Issues tokens of that lifetime. Clients ask again minutes before the end of a token: with less than these at every turn.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn start(lifetime: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            lifetime,
            assertion: Mutex::default(),
            tokens: Mutex::default(),
            refused: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A client that breaks off has no token, which the test sees.
                std::thread::spawn(move || serve(&shared, &client).ok());
            }
        });
        Ok(Self { port, shared })
    }

    /// Value of `IDENTITY_ENDPOINT`.
    #[must_use]
    pub fn identity_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}{IDENTITY_PATH}", self.port)
    }

    /// Value of `AZURE_AUTHORITY_HOST`, with a slash at its end as Kubernetes Service writes it.
    #[must_use]
    pub fn authority_host(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// From now on this is the assertion that counts, and no other.
    pub fn trust(&self, assertion: &str) {
        assertion.clone_into(&mut lock(&self.shared.assertion));
    }

    /// All tokens that were issued.
    #[must_use]
    pub fn tokens(&self) -> Vec<String> {
        lock(&self.shared.tokens).clone()
    }

    /// Why requests were refused.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        lock(&self.shared.refused).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request on each connection.
fn serve(shared: &Shared, client: &TcpStream) -> anyhow::Result<()> {
    let request = TokenRequest::read(client)?;
    let is_identity = request.path == IDENTITY_PATH;
    let checked = match is_identity {
        true => request.check_identity(),
        false => request.check_workload(&lock(&shared.assertion)),
    };
    let (status, body) = match checked {
        Err(text) => {
            lock(&shared.refused).push(text.clone());
            let error =
                serde_json::json!({ "error": "invalid_request", "error_description": text });
            ("400 Bad Request", error)
        }
        Ok(()) => {
            let (token, end) = token(shared.lifetime)?;
            lock(&shared.tokens).push(token.clone());
            let seconds = shared.lifetime.as_secs();
            let body = match is_identity {
                // A number as text.
                true => serde_json::json!({ "access_token": token, "expires_on": end.to_string() }),
                false => serde_json::json!({ "access_token": token, "expires_in": seconds }),
            };
            ("200 OK", body)
        }
    };
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n"
    );
    Ok((&mut &*client).write_all((head + &body).as_bytes())?)
}

/// A token for the storage with a signature of nobody, and when it ends, in seconds since 1970.
fn token(lifetime: Duration) -> anyhow::Result<(String, u64)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let end = now + lifetime.as_secs();
    let claims = serde_json::json!({
        "aud": RESOURCE, "iss": format!("https://sts.windows.net/{TENANT_ID}/"),
        // Clocks differ by a little.
        "iat": now - 5, "nbf": now - 5, "exp": end, "appid": CLIENT_ID,
    });
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = encode(serde_json::json!({ "alg": "RS256", "typ": "JWT" }));
    Ok((format!("{head}.{}.bm9ib2R5", encode(claims)), end))
}

/// What of a request for a token decides.
#[derive(Debug)]
pub struct TokenRequest {
    /// Such as `GET`.
    pub method: String,
    /// Without the query.
    pub path: String,
    headers: BTreeMap<String, String>,
    /// Of the query or the form.
    fields: BTreeMap<String, String>,
}

impl TokenRequest {
    /// Reads one request, query and form alike.
    ///
    /// # Errors
    /// It ends early or is no HTTP.
    pub fn read(stream: impl Read) -> anyhow::Result<Self> {
        let mut reader = BufReader::new(stream.take(REQUEST_BYTES_MAX));
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ');
        let method = words.next().context("no method")?.to_owned();
        let target = words.next().context("no target")?.to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "the request ended early");
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(Ok(0), |length| length.parse())?;
        let mut form = String::new();
        reader.take(length).read_to_string(&mut form)?;
        let mut url = reqwest::Url::parse(&format!("http://127.0.0.1{target}"))?;
        if !form.is_empty() {
            url.set_query(Some(&form));
        }
        let pairs = url.query_pairs();
        let fields = pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        Ok(Self { method, path: url.path().to_owned(), headers, fields })
    }

    /// A header by its name in lower case; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A field of the query or the form; empty if there is none.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    fn check_identity(&self) -> Result<(), String> {
        check(&self.method, "the method", "GET")?;
        check(self.header("metadata"), "the header Metadata", "true")?;
        check(self.header("x-identity-header"), "X-IDENTITY-HEADER", IDENTITY_HEADER)?;
        check(self.field("api-version"), "api-version", "2019-08-01")?;
        check(self.field("resource"), "resource", RESOURCE)
    }

    fn check_workload(&self, assertion: &str) -> Result<(), String> {
        check(&self.method, "the method", "POST")?;
        check(&self.path, "the path", &format!("/{TENANT_ID}/oauth2/v2.0/token"))?;
        check(self.field("grant_type"), "grant_type", "client_credentials")?;
        check(self.field("scope"), "scope", &format!("{RESOURCE}/.default"))?;
        check(self.field("client_assertion_type"), "client_assertion_type", ASSERTION_TYPE)?;
        if self.field("client_id") != CLIENT_ID {
            return Err("AADSTS700016: the application was not found in the directory".to_owned());
        }
        match self.field("client_assertion").trim() == assertion {
            true => Ok(()),
            false => Err("AADSTS700213: no matching federated identity record found".to_owned()),
        }
    }
}

/// The text does not repeat what was found, which may be secret.
fn check(found: &str, what: &str, expected: &str) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what} is not what it must be")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::get;

    #[test]
    fn a_managed_identity_without_its_header_gets_no_token() {
        let issuer = TokenIssuer::start(Duration::from_secs(3600)).unwrap();
        let path = "/msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fstorage.azure.com";
        assert_eq!(get(issuer.port, path).unwrap().0, 400);
        assert_eq!((issuer.tokens().len(), issuer.refused().len()), (0, 1));
    }
}
