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
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: PrometheusHandle,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|State(shared): State<Shared>| async move { shared.metrics.render() }),
        )
        .route("/status", get(status))
        .with_state(Shared { health, metrics });
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            // An error means that nobody is left to say stop, which is a stop too.
            drop(stop.wait_for(|is_stopped| *is_stopped).await);
        })
        .await
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
