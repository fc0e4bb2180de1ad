//! Tokens of Microsoft Entra ID for a Kafka endpoint that asks for OAUTHBEARER.
//!
//! The workload identity of a Kubernetes pod where `AZURE_FEDERATED_TOKEN_FILE` is set, else the managed identity of the
//! machine or the app. `azure_identity` asks for the tokens and keeps them until they expire; its requests go through our HTTP client,
//! so that there is one TLS library and one set of limits. No token stands in a log line or an error.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::TokenCredential;
use azure_core::error::ErrorKind;
use azure_core::http::headers::Headers;
use azure_core::http::request::{Body, Request};
use azure_core::http::{AsyncRawResponse, ClientOptions, HttpClient, StatusCode, Transport};
use azure_identity::{
    ClientAssertionCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId, WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};

use crate::config::Secret;

/// Says that this is a pod with a workload identity.
const FEDERATED_TOKEN_FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";
/// Wait for one answer of whoever gives tokens.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer: tokens have a few thousand bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Of a refusal in the log; its answer may have up to [`ANSWER_BYTES_MAX`].
const REFUSAL_CHARS_MAX: usize = 1_000;
/// What the library puts between the cause and the cause once more.
const ADVICE: &str = "\nTo troubleshoot";

/// A token that opens the endpoint for a while.
#[derive(Clone, Debug)]
pub struct AccessToken {
    /// The token.
    pub token: Secret,
    /// When it expires: milliseconds since 1970-01-01T00:00:00Z.
    pub expires_at_ms: i64,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// What this process runs as is not set up for tokens.
    #[error("no identity that gives tokens: {0}")]
    Identity(String),
    /// Whoever gives tokens has refused, or does not answer.
    #[error("no token for {scope}: {text}")]
    Refused {
        /// What the token is for.
        scope: String,
        /// What is wrong.
        text: String,
    },
    /// The HTTP client cannot be made.
    #[error("http client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// Gives tokens. It may keep one until shortly before it expires.
#[async_trait]
pub trait TokenProvider: fmt::Debug + Send + Sync {
    /// A token that is good now.
    async fn token(&self) -> Result<AccessToken, TokenError>;
}

/// Which identity gives the tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// File with the token of a Kubernetes service account: a workload identity.
    pub federated_token_file: Option<PathBuf>,
    /// Client id; a workload identity has one in `AZURE_CLIENT_ID`, too.
    pub client_id: Option<String>,
    /// Tenant of a workload identity; `None`: `AZURE_TENANT_ID`.
    pub tenant_id: Option<String>,
}

impl Identity {
    /// The one that this process has. `client_id` of the settings may be empty.
    #[must_use]
    pub fn of_process(client_id: &str) -> Self {
        let federated_token_file = std::env::var_os(FEDERATED_TOKEN_FILE).map(PathBuf::from);
        let client_id = (!client_id.is_empty()).then(|| client_id.to_owned());
        Self { federated_token_file, client_id, tenant_id: None }
    }
}

/// Tokens by `azure_identity`.
pub struct AzureTokens {
    credential: Arc<dyn TokenCredential>,
    scope: String,
}

impl fmt::Debug for AzureTokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AzureTokens").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl AzureTokens {
    /// Tokens for a scope such as `https://NAMESPACE/.default`.
    ///
    /// # Errors
    /// No HTTP client, or an identity that lacks something.
    pub fn new(scope: String, identity: Identity) -> Result<Self, TokenError> {
        Self::with_transport(scope, identity, Arc::new(Requests::new()?))
    }

    fn with_transport(
        scope: String,
        identity: Identity,
        requests: Arc<dyn HttpClient>,
    ) -> Result<Self, TokenError> {
        let transport = Some(Transport::new(requests));
        let client_options = ClientOptions { transport, ..ClientOptions::default() };
        let made = match identity.federated_token_file {
            Some(file) => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: identity.client_id,
                    tenant_id: identity.tenant_id,
                    token_file_path: Some(file),
                }))
                .map(|credential| credential as Arc<dyn TokenCredential>)
            }
            None => ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                user_assigned_id: identity.client_id.map(UserAssignedId::ClientId),
                client_options,
            }))
            .map(|credential| credential as Arc<dyn TokenCredential>),
        };
        let credential = made.map_err(|error| TokenError::Identity(error.to_string()))?;
        Ok(Self { credential, scope })
    }
}

#[async_trait]
impl TokenProvider for AzureTokens {
    async fn token(&self) -> Result<AccessToken, TokenError> {
        let found = self.credential.get_token(&[&self.scope], None).await.map_err(|error| {
            TokenError::Refused { scope: self.scope.clone(), text: refusal(&error) }
        })?;
        let expires_at_ms = found.expires_on.unix_timestamp().saturating_mul(1000);
        Ok(AccessToken { token: Secret::new(found.token.secret()), expires_at_ms })
    }
}

/// The HTTP client of the requests for tokens.
#[derive(Debug)]
struct Requests {
    client: reqwest::Client,
}

impl Requests {
    fn new() -> Result<Self, TokenError> {
        let client = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // Who gives managed identities their tokens is at a local address.
            .no_proxy()
            .build()
            .map_err(TokenError::Client)?;
        Ok(Self { client })
    }

    async fn answer(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let bytes = match request.body() {
            Body::Bytes(bytes) => bytes.clone(),
            Body::SeekableStream(_) => {
                let text = "requests for tokens have no streams";
                return Err(azure_core::Error::with_message(ErrorKind::Other, text));
            }
        };
        let method = reqwest::Method::from_bytes(request.method().as_ref().as_bytes());
        let method = method.map_err(|error| azure_core::Error::new(ErrorKind::Other, error))?;
        let mut sending = self.client.request(method, request.url().as_str());
        for (name, value) in request.headers().iter() {
            sending = sending.header(name.as_str(), value.as_str());
        }
        let mut response = sending.body(bytes).send().await.map_err(failed)?;
        let status = StatusCode::from(response.status().as_u16());
        let mut headers = Headers::new();
        for (name, value) in response.headers() {
            // What is no text is of no use to anybody here.
            if let Ok(value) = value.to_str() {
                headers.insert(name.as_str().to_owned(), value.to_owned());
            }
        }
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(failed)? {
            if body.len() + part.len() > ANSWER_BYTES_MAX {
                let text = format!("an answer with more than {ANSWER_BYTES_MAX} bytes");
                return Err(azure_core::Error::with_message(ErrorKind::Other, text));
            }
            body.extend_from_slice(&part);
        }
        Ok(AsyncRawResponse::from_bytes(status, headers, body))
    }
}

fn failed(error: reqwest::Error) -> azure_core::Error {
    azure_core::Error::new(ErrorKind::Io, error.without_url())
}

#[async_trait]
impl HttpClient for Requests {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        self.answer(request).await
    }
}

/// A refusal for the log: without the library's advice and the answer's line breaks, and not as long as an answer may be.
fn refusal(error: &azure_core::Error) -> String {
    let text = crate::causes::describe(error);
    let text = text.split(ADVICE).next().unwrap_or_default();
    let shown = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(REFUSAL_CHARS_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests;
