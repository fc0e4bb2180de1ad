//! The workload API on a unix socket.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, to_bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::certificates::Validity;
use super::state::Shared;
use super::token::sign;
use super::topics::{decode, parse_bag};
use super::{Peer, WorkloadFault};

/// Connections at once; the next is closed without an answer.
const CONNECTIONS_MAX: usize = 10;
const BODY_DEADLINE: Duration = Duration::from_secs(5);
const BODY_BYTES_MAX: usize = 1024 * 1024;
const REQUESTS_KEPT_MAX: usize = 10_000;
const CERTIFICATE_SECONDS: i64 = 30 * 86_400;
const API_VERSIONS: [&str; 7] = [
    "2018-06-28",
    "2019-01-30",
    "2019-10-22",
    "2019-11-05",
    "2020-07-07",
    "2021-12-07",
    "2022-08-03",
];

/// The socket and who serves it.
pub(super) struct Workload {
    served: Arc<Served>,
    runtime: Handle,
    socket: PathBuf,
    listening: Mutex<Option<JoinHandle<()>>>,
}

struct Served {
    shared: Arc<Shared>,
    fault: Mutex<Option<WorkloadFault>>,
    open: AtomicUsize,
}

/// An answer: status and JSON.
type Answer = (u16, Value);

#[derive(Deserialize)]
struct SignRequest {
    data: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CertificateRequest {
    common_name: Option<String>,
}

impl Workload {
    pub(super) fn start(
        shared: Arc<Shared>,
        runtime: Handle,
        socket: PathBuf,
    ) -> anyhow::Result<Self> {
        let served = Served { shared, fault: Mutex::new(None), open: AtomicUsize::new(0) };
        let workload =
            Self { served: Arc::new(served), runtime, socket, listening: Mutex::new(None) };
        workload.listen()?;
        Ok(workload)
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// # Errors
    /// The socket cannot be bound anew.
    pub(super) fn set_fault(&self, fault: Option<WorkloadFault>) -> anyhow::Result<()> {
        *self.served.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        match fault {
            Some(WorkloadFault::Down) => {
                self.stop();
                Ok(())
            }
            Some(WorkloadFault::Status(_) | WorkloadFault::CloseAtOnce) | None => self.listen(),
        }
    }

    fn listen(&self) -> anyhow::Result<()> {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if listening.is_some() {
            return Ok(());
        }
        let _inside = self.runtime.enter();
        let listener = UnixListener::bind(&self.socket)
            .with_context(|| format!("listening on {}", self.socket.display()))?;
        let served = Arc::clone(&self.served);
        *listening = Some(self.runtime.spawn(accept(served, listener)));
        Ok(())
    }

    fn stop(&self) {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = listening.take() {
            task.abort();
            // It is there unless somebody else has taken it away, which is the same.
            std::fs::remove_file(&self.socket).ok();
        }
    }
}

async fn accept(served: Arc<Served>, listener: UnixListener) {
    // Those that are open end with the listener.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let is_one_too_many = served.open.load(Ordering::SeqCst) >= CONNECTIONS_MAX;
        if is_one_too_many || served.fault() == Some(WorkloadFault::CloseAtOnce) {
            continue;
        }
        connections.spawn(serve(Open::new(&served), stream));
    }
}

/// A connection that counts for as long as this lives.
struct Open(Arc<Served>);

impl Open {
    fn new(served: &Arc<Served>) -> Self {
        served.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(served))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(open: Open, stream: UnixStream) {
    let service = service_fn(|request| {
        let served = Arc::clone(&open.0);
        async move { served.answer(request).await }
    });
    // A client that breaks off is its own problem.
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

impl Served {
    fn fault(&self) -> Option<WorkloadFault> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let line = format!("{} {}", head.method, head.uri);
        {
            let mut state = self.shared.lock();
            if state.workload_requests.len() < REQUESTS_KEPT_MAX {
                state.workload_requests.push(line);
            }
        }
        let is_json = head.headers.get(CONTENT_TYPE).is_none_or(|kind| {
            kind.to_str().is_ok_and(|kind| kind.split(';').next() == Some("application/json"))
        });
        let body = to_bytes(Body::new(body), BODY_BYTES_MAX);
        let (status, answer) = match tokio::time::timeout(BODY_DEADLINE, body).await {
            Err(_) => failure(408, "the body did not arrive"),
            Ok(body) => {
                // A body of another type is not looked at.
                let body = body.ok().filter(|_| is_json).unwrap_or_default();
                self.route(&head.method, head.uri.path(), head.uri.query(), &body)
            }
        };
        Ok(Response::builder()
            .status(status)
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(answer.to_string()))?)
    }

    fn route(&self, method: &Method, path: &str, query: Option<&str>, body: &[u8]) -> Answer {
        if let Some(WorkloadFault::Status(status)) = self.fault() {
            return failure(status, "told to fail");
        }
        let version = query.and_then(parse_bag).and_then(|mut bag| bag.remove("api-version"));
        if !version.is_some_and(|version| API_VERSIONS.contains(&version.as_str())) {
            return failure(400, "no api-version, or none that is known");
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (wanted, answer): (Method, &dyn Fn() -> Answer) = match parts.as_slice() {
            ["modules"] => (Method::GET, &|| self.modules()),
            ["trust-bundle"] => (Method::GET, &|| {
                (200, json!({ "certificate": self.shared.lock().trust_bundle() }))
            }),
            ["manifest-trust-bundle"] => (Method::GET, &|| (200, json!({ "certificate": "" }))),
            ["modules", module, "genid", _, "sign"] => {
                (Method::POST, &|| self.of_module(module, || self.sign(body)))
            }
            ["modules", module, "genid", _, "certificate", "server"] => {
                (Method::POST, &|| self.of_module(module, || self.certificate(body)))
            }
            ["modules", module, "certificate", "identity"] => {
                (Method::POST, &|| self.of_module(module, || self.certificate(body)))
            }
            _ => return failure(404, "there is no such path"),
        };
        if *method == wanted { answer() } else { failure(400, "there is no such method here") }
    }

    /// The daemon knows its callers by their process; here it is the name alone.
    fn of_module(&self, module: &str, answer: impl Fn() -> Answer) -> Answer {
        if decode(module).as_deref() == Some(&self.shared.settings.module_id) {
            return answer();
        }
        failure(403, "forbidden")
    }

    fn modules(&self) -> Answer {
        let settings = &self.shared.settings;
        let module = json!({
            "moduleId": settings.module_id,
            "managedBy": "iotedge",
            "generationId": settings.generation_id,
            "authType": "sas",
        });
        (200, json!({ "modules": [module] }))
    }

    /// Only `data` is read, as the daemon does.
    fn sign(&self, body: &[u8]) -> Answer {
        let request: SignRequest = match parse_body(body) {
            Ok(request) => request,
            Err(answer) => return answer,
        };
        let Ok(data) = STANDARD.decode(request.data) else {
            return failure(400, "the data is not base64");
        };
        let [key, _] = self.shared.keys_of(Peer::Module);
        (200, json!({ "digest": STANDARD.encode(sign(key, &data)) }))
    }

    fn certificate(&self, body: &[u8]) -> Answer {
        let request: CertificateRequest = match parse_body(body) {
            Ok(request) => request,
            Err(answer) => return answer,
        };
        let module = &self.shared.settings.module_id;
        let names: Vec<String> = request.common_name.into_iter().chain([module.clone()]).collect();
        let now = self.shared.now();
        let validity = Validity { from: now, until: now + CERTIFICATE_SECONDS };
        let state = self.shared.lock();
        let issued = state.authorities.last().context("no authority");
        match issued.and_then(|authority| Ok((authority.issue(&names, validity)?, authority.pem())))
        {
            Err(error) => failure(500, &format!("{error:#}")),
            Ok((issued, authority)) => {
                let answer = json!({
                    "privateKey": { "type": "key", "bytes": issued.key_pem() },
                    "certificate": issued.certificate_pem() + &authority,
                    "expiration": issued.expiration(),
                });
                (201, answer)
            }
        }
    }
}

/// Bytes that are no JSON are a bad request; JSON of another shape cannot be processed.
fn parse_body<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Answer> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| failure(400, &error.to_string()))?;
    serde_json::from_value(value).map_err(|error| failure(422, &error.to_string()))
}

fn failure(status: u16, message: &str) -> Answer {
    (status, json!({ "message": message }))
}
