//! HTTP for operators: `/healthz` (the process lives), `/readyz` (records flow, else why not), `/metrics`, `/status`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::health::Health;

mod connections;

use connections::Limits;

#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    metrics: PrometheusHandle,
}

/// Opens the port.
///
/// # Errors
/// It is taken, or the address is none of this machine.
pub async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves until `stop` turns true.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: PrometheusHandle,
    mut stop: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|State(shared): State<Shared>| async move { shared.metrics.render() }),
        )
        .route("/status", get(status))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .with_state(Shared { health, metrics });
    let stopped = async move {
        // An error means that nobody is left to say stop, which is a stop too.
        drop(stop.wait_for(|is_stopped| *is_stopped).await);
    };
    connections::serve(listener, router, Limits::ADMIN, stopped).await;
}

async fn ready(State(shared): State<Shared>) -> Response {
    let problems = shared.health.problems();
    if problems.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", problems.join("\n"))).into_response()
}

async fn status(State(shared): State<Shared>) -> Response {
    let body = match serde_json::to_string_pretty(&shared.health.status()) {
        Ok(body) => body,
        Err(error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    };
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
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
    use std::net::Ipv4Addr;
    use std::time::Duration;

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
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let address = listener.local_addr()?;
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        // Held: without a sender the server stops.
        let (_stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, Arc::default(), metrics, stopped));
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

    #[tokio::test]
    async fn what_is_no_page_or_no_reading_says_so() -> anyhow::Result<()> {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let address = listener.local_addr()?;
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        // Held: without a sender the server stops.
        let (_stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, Arc::default(), metrics, stopped));
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
