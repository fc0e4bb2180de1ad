//! IoT Edge's workload API: HTTP over a unix socket. It signs with the module's key and gives the authorities of edgeHub.
//!
//! Source: Azure/iotedge, `edgelet/api/workloadVersion_2020_07_07.yaml` and `edgelet/edgelet-http-workload`. The socket goes
//! away and comes back when the runtime restarts, and closes without an answer when more than ten requests are open: all
//! errors are worth another attempt later.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use edge_core::hub::properties::encode;
use serde::Deserialize;

use crate::journal::chain;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer: a bundle of many certificates.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why IoT Edge did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The variable is not of the form `unix:///path`.
    #[error("IOTEDGE_WORKLOADURI {0:?} is not of the form unix:///path/to/workload.sock")]
    Uri(String),
    /// The client cannot be made.
    #[error("no client for the workload API: {0}")]
    Client(String),
    /// No connection, no answer, or one cut off.
    #[error("workload API at {}: {reason}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// It refuses.
    #[error("workload API refuses {what} with {status}: {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// An answer that is none.
    #[error("workload API answers {what} with something else: {reason}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The workload API, as one module calls it.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    client: reqwest::Client,
    path: PathBuf,
    /// `/modules/{m}/genid/{g}`, encoded.
    module_path: String,
    api_version: String,
}

#[derive(Deserialize)]
struct Digest {
    digest: String,
}

#[derive(Deserialize)]
struct TrustBundle {
    certificate: String,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

impl Workload {
    /// Knows the socket; asks nothing yet.
    pub(super) fn new(
        uri: &str,
        (module, generation): (&str, &str),
        api_version: &str,
    ) -> Result<Self, WorkloadError> {
        let path = uri.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| WorkloadError::Uri(uri.to_owned()))?;
        let path = PathBuf::from(path.trim_end_matches('/'));
        let client = reqwest::Client::builder()
            .unix_socket(path.clone())
            .timeout(REQUEST_TIMEOUT)
            // Each request has a connection of its own: one kept open would be dead after the runtime's restart.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| WorkloadError::Client(chain(&error)))?;
        let module_path = format!("/modules/{}/genid/{}", encode(module), encode(generation));
        Ok(Self { client, path, module_path, api_version: encode(api_version) })
    }

    /// HMAC-SHA256 of a text with the module's primary key, base64.
    pub(super) async fn sign(&self, text: &str) -> Result<String, WorkloadError> {
        let body = serde_json::json!({
            "keyId": "primary", "algo": "HMACSHA256", "data": BASE64.encode(text),
        });
        let request = self
            .client
            .post(self.url(&format!("{}/sign", self.module_path)))
            .header("content-type", "application/json")
            .body(body.to_string());
        let answer: Digest = self.ask("a signature", request).await?;
        Ok(answer.digest)
    }

    /// Authorities that vouch for edgeHub, PEM.
    pub(super) async fn trust_bundle(&self) -> Result<String, WorkloadError> {
        let request = self.client.get(self.url("/trust-bundle"));
        let answer: TrustBundle = self.ask("the trust bundle", request).await?;
        Ok(answer.certificate)
    }

    fn url(&self, path: &str) -> String {
        format!("http://workload{path}?api-version={}", self.api_version)
    }

    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        what: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<T, WorkloadError> {
        let io = |error: reqwest::Error| WorkloadError::Io {
            path: self.path.clone(),
            reason: chain(&error),
        };
        let mut response = request.send().await.map_err(io)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(io)? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                let reason = format!("longer than {ANSWER_BYTES_MAX} bytes");
                return Err(WorkloadError::Answer { what, reason });
            }
            body.extend_from_slice(&piece);
        }
        if !status.is_success() {
            let said = serde_json::from_slice::<Message>(&body).map(|it| it.message);
            let message = said.unwrap_or_else(|_| "no message".to_owned());
            return Err(WorkloadError::Refused { what, status: status.as_u16(), message });
        }
        serde_json::from_slice(&body)
            .map_err(|error| WorkloadError::Answer { what, reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_as_iot_edge_names_them() {
        for uri in
            ["unix:///var/run/iotedge/workload.sock", "unix:///var/run/iotedge/workload.sock/"]
        {
            let workload =
                Workload::new(uri, ("a module", "1"), "2022-08-03").expect("of the form");
            assert_eq!(workload.path, PathBuf::from("/var/run/iotedge/workload.sock"));
            assert_eq!(workload.module_path, "/modules/a%20module/genid/1");
        }
        for uri in ["unix://var/run/w.sock", "unix:/w.sock", "/w.sock", "http://host/", ""] {
            let error = Workload::new(uri, ("m", "1"), "v").expect_err("not of the form");
            assert!(error.to_string().contains("unix:///"), "{error}");
        }
    }
}
