//! `POST /api/outcomes`: from a request to the sink and an answer.
//!
//! In this order: token (401), rate (429), content type (415), idempotency-key (400), body (408, 413), what is in it (400, 422),
//! Kafka (503).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use hyper::body::Body as _;
use metrics::counter;
use serde_json::json;
use shared_proto::Encoding;
use shared_proto::model::{EventTime, Outcome, OutcomeId, Reporter};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::connections::{self, Complaints, Limits, Place};
use super::limit::Bucket;
use super::problem::Problem;
use super::request::{Asked, outcomes_of};
use super::settings::ApiSettings;
use super::tokens::Tokens;
use super::{OutcomeSink, names};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const BEARER: &[u8] = b"bearer ";
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// What an answer has to be taken, beside the waits for the body and for Kafka.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(1);
/// As long as Kafka may take is not waited for at a stop: the client sends again.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// What is read and thrown away of a request that is refused, so that its sender comes to read the answer: a connection that is
/// closed with unread bytes is reset.
const DISCARDED_BYTES_MAX: usize = 4 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// What the port needs.
pub struct Api {
    settings: ApiSettings,
    tokens: Tokens,
    /// One for each token.
    buckets: Mutex<Vec<Bucket>>,
    sink: Box<dyn OutcomeSink>,
    complaints: Mutex<Complaints>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Api").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Api {
    /// All buckets are full.
    #[must_use]
    pub fn new(settings: ApiSettings, tokens: Tokens, sink: Box<dyn OutcomeSink>) -> Self {
        let bucket = Bucket::new(settings.rate_max, settings.rate_burst, Instant::now());
        let buckets = Mutex::new(vec![bucket; tokens.len()]);
        Self { settings, tokens, buckets, sink, complaints: Mutex::default() }
    }

    pub(super) fn limits(&self) -> Limits {
        let settings = &self.settings;
        Limits {
            connections: settings.connections_max,
            header: HEADER_TIMEOUT,
            answer: settings.body_timeout
                + DISCARD_TIMEOUT
                + settings.publish_timeout
                + ANSWER_TIMEOUT,
            patience: PATIENCE,
            stop: STOP_TIMEOUT,
        }
    }

    /// Who asks, if the token is one of ours and has not asked too often.
    fn admit(&self, headers: &HeaderMap) -> Result<&Reporter, Problem> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Problem::NoToken);
        };
        let (scheme, token) =
            value.as_bytes().split_at_checked(BEARER.len()).ok_or(Problem::NoToken)?;
        if !scheme.eq_ignore_ascii_case(BEARER) {
            return Err(Problem::NoToken);
        }
        let found = self.tokens.find(token.trim_ascii());
        let (index, system) = found.ok_or(Problem::UnknownToken)?;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (rate, burst) = (self.settings.rate_max, self.settings.rate_burst);
        let refused = |wait| Problem::TooManyRequests { rate, burst, wait };
        buckets[index].take(Instant::now()).map_err(refused)?;
        Ok(system)
    }

    async fn publish(&self, outcomes: &[Outcome]) -> Result<(), Problem> {
        let limit = self.settings.publish_timeout;
        // All are handed over before the first answer: they go in one batch.
        let publishing = join_all(outcomes.iter().map(|outcome| self.sink.publish(outcome)));
        let results = timeout(limit, publishing).await.map_err(|_| Problem::Timeout { limit })?;
        results.into_iter().collect::<Result<(), _>>().map_err(Problem::Refused)
    }

    fn complain(&self, problem: &Problem) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.is_due() {
            let error = crate::causes::describe(problem);
            warn!(error, "outcomes were not taken");
        }
    }
}

/// Opens the port.
///
/// # Errors
/// It is taken, or the address is none of this machine.
pub async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves until `stop` turns true.
pub async fn serve(listener: TcpListener, api: Arc<Api>, stop: watch::Receiver<bool>) {
    if let Ok(listen) = listener.local_addr() {
        info!(%listen, systems = api.tokens.len(), "outcomes are taken");
    }
    let limits = api.limits();
    serve_within(limits, listener, api, stop).await;
}

pub(super) async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) {
    let stopped = async move {
        // An error means that nobody is left to say stop, which is a stop too.
        drop(stop.wait_for(|is_stopped| *is_stopped).await);
    };
    connections::serve(listener, router(api), limits, stopped).await;
}

fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/api/outcomes", post(report).fallback(|| refuse_any(Problem::Method)))
        .fallback(|| refuse_any(Problem::NotFound))
        .with_state(api)
}

async fn refuse_any(problem: Problem) -> Response {
    counter!(names::OUTCOME_REQUESTS_TOTAL, "result" => problem.code()).increment(1);
    problem.into_response()
}

async fn report(
    State(api): State<Arc<Api>>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match take(&api, &place, &headers, body).await {
        Ok(outcomes) => {
            counter!(names::OUTCOME_REQUESTS_TOTAL, "result" => "taken").increment(1);
            accepted(&outcomes)
        }
        Err(problem) => {
            debug!(reason = problem.code(), "outcomes were refused");
            refuse_any(problem).await
        }
    }
}

async fn take(
    api: &Api,
    place: &Place,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Vec<Outcome>, bool), Problem> {
    let admitted = api.admit(headers).and_then(|system| {
        place.keep();
        Ok((system, check_content_type(headers).and_then(|()| key_of(headers))?))
    });
    let (system, key) = match admitted {
        Ok(admitted) => admitted,
        Err(problem) => {
            discard(body, api.settings.body_bytes_max).await;
            return Err(problem);
        }
    };
    let bytes = read(body, &api.settings).await?;
    let asked = Asked { system, key: key.as_ref(), now: now() };
    let outcomes = outcomes_of(&bytes, asked)?;
    let published = api.publish(&outcomes).await;
    if let Err(problem) = &published {
        api.complain(problem);
    }
    published?;
    for outcome in &outcomes {
        let (id, verdict) = (outcome.outcome_id.as_str(), outcome.verdict.as_str());
        debug!(outcome_id = id, verdict, system = system.as_str(), "outcome taken");
    }
    Ok((outcomes, bytes.trim_ascii_start().starts_with(b"[")))
}

/// JSON in UTF-8 that says so once, not compressed: of two content types nobody can say which was meant.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Problem::ContentType);
    };
    let is_json = Encoding::from_content_type(Some(value.as_bytes())).ok() == Some(Encoding::Json);
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let is_plain = codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if is_json && is_plain { Ok(()) } else { Err(Problem::ContentType) }
}

/// The header idempotency-key, bare or in the quotes that its draft standard wants.
fn key_of(headers: &HeaderMap) -> Result<Option<OutcomeId>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::Key);
    }
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Problem::Key)?.trim();
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    OutcomeId::new(bare).map(Some).map_err(|_| Problem::Key)
}

async fn read(body: Body, settings: &ApiSettings) -> Result<Vec<u8>, Problem> {
    let limit = settings.body_bytes_max;
    // What says itself that it is too large is not waited for.
    let is_said_too_large = body.size_hint().lower() > limit as u64;
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    let reading = async {
        if is_said_too_large {
            return Err(Problem::TooLarge { limit });
        }
        while let Some(chunk) = stream.next().await {
            let chunk: Bytes = chunk.map_err(|_| Problem::Broken)?;
            if bytes.len() + chunk.len() > limit {
                return Err(Problem::TooLarge { limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(())
    };
    let slow = Problem::Slow { limit: settings.body_timeout };
    let result = timeout(settings.body_timeout, reading).await.unwrap_or(Err(slow));
    if matches!(result, Err(Problem::TooLarge { .. })) {
        discard(Body::from_stream(stream), DISCARDED_BYTES_MAX).await;
    }
    result.map(|()| bytes)
}

/// Reads what is there of a body, at most so much and not for long.
async fn discard(body: Body, bytes_max: usize) {
    let mut stream = body.into_data_stream();
    let mut left = bytes_max;
    let discarding = async {
        while let Some(Ok(chunk)) = stream.next().await {
            if chunk.len() > left {
                return;
            }
            left -= chunk.len();
        }
    };
    // Whoever does not send it in time may not see the answer.
    drop(timeout(DISCARD_TIMEOUT, discarding).await);
}

fn accepted((outcomes, is_array): &(Vec<Outcome>, bool)) -> Response {
    let ids = outcomes.iter().map(|outcome| outcome.outcome_id.as_str());
    let mut ids = ids.map(|id| json!({ "outcome_id": id }));
    let body = if *is_array { ids.collect() } else { ids.next().unwrap_or_default() };
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::ACCEPTED, content_type, body.to_string()).into_response()
}

fn now() -> EventTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
