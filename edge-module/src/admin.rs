//! HTTP for operators and probes: `/healthz`, `/readyz`, `/metrics`, `/status`. Reads only; changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use edge_core::baseline::{Baseline, LearnProgress};
use edge_core::interlock::LatchSnapshot;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use shared_proto::model::{DeviceId, EventTime, MachineId, SensorId};
use tokio::net::TcpListener;

use crate::models::ShownModel;
use crate::telemetry;

mod connections;
mod journal;
mod quiet;

use connections::Limits;
pub use journal::{JournalStatus, LostRange};
pub use quiet::QuietBoard;

/// A part that is at work for longer is shown.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// A part of the program that can be ready or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Session of the stop path.
    Protection,
    /// Session to the machine side.
    Actuator,
    /// Session of the journal.
    Recording,
    /// The journal takes records.
    Journal,
    /// Latches are durable.
    Latches,
    /// The thread that sends lives.
    Forwarder,
    /// Kafka takes records. Not being ready is no reason to restart: that is what the journal is for.
    Kafka,
    /// The link to a hub, if there is one. Not being ready is no reason to restart: nothing depends on it.
    Hub,
}

impl Part {
    /// Whether the module is not ready without it.
    const fn is_awaited(self) -> bool {
        match self {
            Self::Kafka | Self::Hub => false,
            Self::Protection
            | Self::Actuator
            | Self::Recording
            | Self::Journal
            | Self::Latches
            | Self::Forwarder => true,
        }
    }

    /// The word on the pages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protection => "protection",
            Self::Actuator => "actuator",
            Self::Recording => "recording",
            Self::Journal => "journal",
            Self::Latches => "latches",
            Self::Forwarder => "forwarder",
            Self::Kafka => "kafka",
            Self::Hub => "hub",
        }
    }
}

/// What the other tasks tell and the pages show.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Shown>>);

#[derive(Default)]
struct Shown {
    device_id: String,
    parts: BTreeMap<Part, Result<(), String>>,
    /// Since when a part is at work and has not come back.
    busy: BTreeMap<Part, Instant>,
    latches: BTreeMap<MachineId, LatchSnapshot>,
    models: BTreeMap<String, ShownModel>,
    generation: u64,
    settings: ShownSettings,
    learning: BTreeMap<MachineId, LearnProgress>,
    baselines: BTreeMap<MachineId, ShownBaseline>,
    journal: JournalStatus,
}

/// What was learnt of a machine.
#[derive(Clone, Debug, Serialize)]
struct ShownBaseline {
    learnt_at: String,
    operator: String,
    /// By condition and sensor.
    conditions: BTreeMap<String, BTreeMap<SensorId, ShownThreshold>>,
}

/// From where on a window of a machine that was learnt is abnormal.
#[derive(Clone, Debug, Serialize)]
struct ShownThreshold {
    /// On the model's own scale, natural logarithmic odds; scores of records and events are moved by what it differs from the bundle's.
    threshold_logit: f64,
    /// Model that it was learnt with.
    model: String,
    /// Whether that is in force now; if not, this is not used.
    is_in_force: bool,
}

impl ShownBaseline {
    fn of(baseline: &Baseline) -> Self {
        let conditions = baseline.conditions.iter().map(|(condition, sensors)| {
            let of = sensors.iter().map(|(sensor, usual)| {
                let (threshold_logit, model) = (usual.threshold_logit, usual.model.clone());
                (sensor.clone(), ShownThreshold { threshold_logit, model, is_in_force: false })
            });
            (condition.clone(), of.collect())
        });
        Self {
            learnt_at: baseline.learnt_at.to_string(),
            operator: baseline.operator.clone(),
            conditions: conditions.collect(),
        }
    }

    /// With what is in force now.
    fn now(&self, models: &BTreeMap<String, ShownModel>) -> Self {
        let mut shown = self.clone();
        for threshold in shown.conditions.values_mut().flat_map(BTreeMap::values_mut) {
            let mut in_force = models.values().filter_map(|model| model.in_force.as_ref());
            threshold.is_in_force = in_force.any(|identity| *identity == threshold.model);
        }
        shown
    }
}

/// The settings in force, and what became of the last attempt to change them.
#[derive(Clone, Default, Serialize)]
pub struct ShownSettings {
    /// Name of exactly these settings.
    pub version: String,
    /// When they came into force, RFC 3339.
    pub since: String,
    last_refusal: Option<Refusal>,
}

#[derive(Clone, Serialize)]
struct Refusal {
    at: String,
    reason: String,
}

impl Shown {
    /// Each part, and why it is not ready.
    fn states(&self) -> impl Iterator<Item = (Part, Result<(), String>)> + '_ {
        self.parts.iter().map(|(part, state)| {
            let busy = self.busy.get(part).map(Instant::elapsed).filter(|time| *time > BUSY_MAX);
            let state = match (state, busy) {
                (Ok(()), Some(time)) => Err(format!("has not come back for {} s", time.as_secs())),
                (state, _) => state.clone(),
            };
            (*part, state)
        })
    }
}

impl Board {
    /// A board of a gateway, on which nothing but `parts` is awaited.
    #[must_use]
    pub fn new(device_id: &DeviceId, parts: &[Part]) -> Self {
        let board = Self::default();
        board.with(|shown| shown.device_id = device_id.to_string());
        for part in parts {
            board.set(*part, Err("starting".to_owned()));
        }
        board
    }

    /// Shows whether a part is ready, or why not.
    pub fn set(&self, part: Part, state: Result<(), String>) {
        show_ready(part, state.is_ok());
        self.with(|shown| shown.parts.insert(part, state));
    }

    /// Takes note that a part begins what may hang, on a disk that does not answer.
    pub fn begin(&self, part: Part) {
        self.with(|shown| {
            shown.parts.entry(part).or_insert(Ok(()));
            shown.busy.insert(part, Instant::now());
        });
    }

    /// Takes note that it has come back.
    pub fn end(&self, part: Part) {
        self.with(|shown| shown.busy.remove(&part));
    }

    /// Shows which settings are in force since when.
    pub fn show_settings(&self, version: String, since: EventTime) {
        self.with(|shown| {
            shown.settings.version = version;
            shown.settings.since = since.to_string();
        });
    }

    /// Shows why other settings were refused last.
    pub fn show_refusal(&self, at: EventTime, reason: String) {
        self.with(|shown| {
            shown.settings.last_refusal = Some(Refusal { at: at.to_string(), reason });
        });
    }

    /// Shows the journal's generation.
    pub fn show_generation(&self, generation: u64) {
        self.with(|shown| shown.generation = generation);
    }

    /// Shows what was learnt of a machine.
    pub fn show_baseline(&self, baseline: &Baseline) {
        let baseline_shown = ShownBaseline::of(baseline);
        self.with(|shown| shown.baselines.insert(baseline.machine_id.clone(), baseline_shown));
    }

    /// Takes models off that the settings no longer name.
    pub fn keep_models(&self, is_named: &dyn Fn(&str) -> bool) {
        self.with(|shown| shown.models.retain(|name, _| is_named(name)));
    }

    /// Shows what is done about a model.
    pub fn show_model(&self, name: &str, model: ShownModel) {
        self.with(|shown| shown.models.insert(name.to_owned(), model));
    }

    /// One line for each part: `ok`, or why not.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |(part, state): (Part, Result<(), String>)| match state {
            Ok(()) => format!("{}: ok\n", part.as_str()),
            Err(why) => format!("{}: {why}\n", part.as_str()),
        };
        self.with(|shown| shown.states().map(line).collect())
    }

    /// All that is shown.
    #[must_use]
    pub fn status(&self) -> Status {
        self.with(|shown| Status {
            device_id: shown.device_id.clone(),
            version: env!("CARGO_PKG_VERSION"),
            generation: shown.generation,
            models: shown.models.clone(),
            settings: shown.settings.clone(),
            journal: shown.journal.clone(),
            parts: shown
                .states()
                .map(|(part, state)| (part.as_str(), state.err().unwrap_or("ok".to_owned())))
                .collect(),
            machines: shown
                .latches
                .values()
                .map(|latch| MachineStatus {
                    state: latch.as_str(),
                    latch: latch.clone(),
                    learning: shown.learning.get(&latch.machine_id).cloned(),
                    baseline: shown
                        .baselines
                        .get(&latch.machine_id)
                        .map(|it| it.now(&shown.models)),
                })
                .collect(),
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Shown) -> T) -> T {
        // Each change is one assignment: a panic elsewhere cannot leave half of one.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn show_ready(part: Part, is_ready: bool) {
    let is_ready = if is_ready { 1.0 } else { 0.0 };
    metrics::gauge!(telemetry::PART_READY, "part" => part.as_str()).set(is_ready);
}

#[derive(Clone)]
struct Pages {
    board: Board,
    metrics: PrometheusHandle,
}

/// Binds the address; gives the listener and the address it got.
///
/// # Errors
/// The address is taken or not ours.
pub async fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves until `stop` resolves.
pub async fn serve(
    listener: TcpListener,
    board: Board,
    metrics: PrometheusHandle,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let pages = Pages { board, metrics };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .route("/status", get(status))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .with_state(pages);
    connections::serve(listener, router, Limits::ADMIN, stop).await;
}

async fn readyz(State(pages): State<Pages>) -> Response {
    let is_ready = pages
        .board
        .with(|shown| shown.states().all(|(part, state)| !part.is_awaited() || state.is_ok()));
    let lines = pages.board.lines().concat();
    let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, lines).into_response()
}

async fn metrics_page(State(pages): State<Pages>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, pages.metrics.render()).into_response()
}

/// What `/status` shows.
#[derive(Serialize)]
pub struct Status {
    /// Name of the gateway.
    pub device_id: String,
    /// Of the program.
    pub version: &'static str,
    /// Of the journal.
    pub generation: u64,
    /// By name.
    pub models: BTreeMap<String, ShownModel>,
    /// Those in force.
    pub settings: ShownSettings,
    /// What waits, and which way it leaves.
    pub journal: JournalStatus,
    /// `ok`, or why not.
    pub parts: BTreeMap<&'static str, String>,
    /// In the order of their names.
    pub machines: Vec<MachineStatus>,
}

/// One machine.
#[derive(Serialize)]
pub struct MachineStatus {
    /// `armed`, `tripped` and so on.
    pub state: &'static str,
    /// More of it.
    #[serde(flatten)]
    pub latch: LatchSnapshot,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning: Option<LearnProgress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<ShownBaseline>,
}

async fn status(State(pages): State<Pages>) -> Response {
    let page = pages.board.status();
    match serde_json::to_vec_pretty(&page) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Of what is no page, and of what does not read one.
async fn not_found() -> Response {
    let detail = "nothing is here: the pages are /healthz, /readyz, /metrics and /status";
    problem(StatusCode::NOT_FOUND, "Not Found", detail)
}

async fn not_allowed() -> Response {
    let detail = "pages are read with the method GET: nothing is changed here";
    let allow = [(header::ALLOW, "GET, HEAD")];
    (allow, problem(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", detail)).into_response()
}

/// RFC 9457.
fn problem(code: StatusCode, title: &str, detail: &str) -> Response {
    let status = code.as_u16();
    let body = serde_json::json!({
        "type": "about:blank", "title": title, "status": status, "detail": detail,
    });
    let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
    (code, content_type, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::Ipv4Addr;

    use anyhow::Context;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    /// Less than a slow request has for its header.
    const DEADLINE: Duration = Duration::from_secs(5);

    /// The whole answer, once the server has closed.
    async fn probe(address: SocketAddr) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn half_sent_requests_do_not_pile_up_and_probes_are_answered() -> anyhow::Result<()> {
        let (listener, address) = bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let server = tokio::spawn(serve(listener, Board::default(), metrics, pending()));
        let mut slow = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"GET /met").await?;
            slow.push(stream);
        }
        let answer = timeout(DEADLINE, probe(address)).await.context("no answer")??;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        // More than may be open at once: the oldest is closed before its time is over. A reset is an end, too.
        let end = timeout(DEADLINE, slow[0].read(&mut [0])).await.context("still open")?;
        assert!(!matches!(end, Ok(1..)), "{end:?}");
        server.abort();
        Ok(())
    }

    #[test]
    fn a_part_that_does_not_come_back_is_not_ready() {
        let board = Board::default();
        board.set(Part::Journal, Ok(()));
        board.begin(Part::Journal);
        assert_eq!(board.lines(), ["journal: ok\n"]);
        let long_ago = Instant::now() - BUSY_MAX - Duration::from_secs(2);
        board.with(|shown| shown.busy.insert(Part::Journal, long_ago));
        assert_eq!(board.lines(), ["journal: has not come back for 7 s\n"]);
        board.set(Part::Journal, Err("disk full".to_owned()));
        assert_eq!(board.lines(), ["journal: disk full\n"], "what it says itself goes before");
        board.set(Part::Journal, Ok(()));
        board.end(Part::Journal);
        assert_eq!(board.lines(), ["journal: ok\n"]);
    }

    #[tokio::test]
    async fn what_is_no_page_or_no_reading_says_so() -> anyhow::Result<()> {
        let (listener, address) = bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let server = tokio::spawn(serve(listener, Board::default(), metrics, pending()));
        let check = async |method: &str, path: &str, status: u16, part: &str| {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            timeout(DEADLINE, stream.read_to_string(&mut answer)).await.context("no answer")??;
            let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {head}");
            assert!(head.contains("content-type: application/problem+json"), "{head}");
            assert_eq!(head.matches("allow: GET,").count(), usize::from(status == 405), "{head}");
            let body: serde_json::Value = serde_json::from_str(body)?;
            assert_eq!(body["status"], status, "{body}");
            assert!(body["detail"].as_str().is_some_and(|text| text.contains(part)), "{body}");
            anyhow::Ok(())
        };
        for path in ["/", "/nothing", "/healthz/", "/status/x", "/%2e%2e/status"] {
            check("GET", path, 404, "/healthz, /readyz").await?;
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PURGE"] {
            check(method, "/status", 405, "GET").await?;
        }
        server.abort();
        Ok(())
    }
}
