//! Connections of the port for outcomes, HTTP/1.1 with one request each.
//!
//! Each has a limited time for its header; the body and Kafka have theirs in the handler. When all places are taken, whoever comes waits
//! to be accepted, until a connection ends. One that has not shown a token within [`Limits::patience`] loses its place to those who wait,
//! so that nobody without a token can keep the others out; one that has shown a token is left to finish.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

/// While the process has no descriptor left, `accept` fails at once, again and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);
/// Longest header, in bytes: the client's buffer for it.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// How many connections, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// At once.
    pub(super) connections: usize,
    /// From the first look at a connection to the end of the request's header.
    pub(super) header: Duration,
    /// From there to the end of the answer.
    pub(super) answer: Duration,
    /// How long a connection without a token keeps its place while others wait.
    pub(super) patience: Duration,
    /// What open connections have after the stop.
    pub(super) stop: Duration,
}

/// Whether a connection has shown a token.
#[derive(Clone, Debug, Default)]
pub(super) struct Place(Arc<AtomicBool>);

impl Place {
    /// From here on the connection is left to finish.
    pub(super) fn keep(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_kept(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves until `stop` resolves, and what is open then a little longer.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let mut open = Open::default();
    let mut complaints = Complaints::default();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = open.accept(&listener, limits) => accepted,
        };
        match accepted {
            Ok(stream) => {
                let place = Place::default();
                open.add(serve_one(stream, router.clone(), place.clone(), limits), place);
            }
            Err(error) => {
                if complaints.is_due() {
                    warn!(%error, "the port for outcomes takes no connection, trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever comes from here on is refused at once and does not wait for an answer.
    drop(listener);
    open.finish(limits.stop).await;
}

async fn serve_one(stream: TcpStream, router: Router, place: Place, limits: Limits) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(place.clone());
        let answer = router.call(request);
        async move { answer.await.map_err(|error: Infallible| error) }
    });
    // Without keep-alive: a connection that waits for a next request would hold a place.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(HEADER_BYTES_MAX)
        // Who has said all and closes that side still waits for the answer (RFC 9112, section 9.6).
        .half_close(true)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // hyper limits the header only: who never reads the answer would stay for ever.
    match timeout(limits.header + limits.answer, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "connection for outcomes ended early"),
        Err(_) => debug!("connection for outcomes took too long"),
    }
}

struct Connection {
    task: AbortHandle,
    place: Place,
    since: Instant,
}

/// The open connections. Dropping it closes them.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    /// The oldest first; some may have ended.
    by_age: VecDeque<Connection>,
    complaints: Complaints,
}

impl Open {
    /// Waits for a place, then for a connection. Nothing is lost when it is dropped on the way.
    async fn accept(
        &mut self,
        listener: &TcpListener,
        limits: Limits,
    ) -> std::io::Result<TcpStream> {
        loop {
            while self.tasks.try_join_next().is_some() {}
            self.by_age.retain(|connection| !connection.task.is_finished());
            if self.tasks.len() < limits.connections {
                return listener.accept().await.map(|(stream, _)| stream);
            }
            let idle = self.by_age.iter().find(|connection| !connection.place.is_kept());
            let Some(impatient_at) = idle.map(|oldest| oldest.since + limits.patience) else {
                self.ended(limits.patience).await;
                continue;
            };
            if Instant::now() >= impatient_at {
                self.close_oldest_idle(limits.connections).await;
                continue;
            }
            tokio::select! {
                _ = self.tasks.join_next() => {}
                () = sleep_until(impatient_at) => {}
            }
        }
    }

    /// Waits until one ends, and looks again after a while: some may have become idle in another way.
    async fn ended(&mut self, limit: Duration) {
        drop(timeout(limit, self.tasks.join_next()).await);
    }

    async fn close_oldest_idle(&mut self, connections_max: usize) {
        let oldest = self.by_age.iter().position(|connection| !connection.place.is_kept());
        let Some(oldest) = oldest.and_then(|place| self.by_age.remove(place)) else { return };
        oldest.task.abort();
        if self.complaints.is_due() {
            warn!(
                connections_max,
                "the port for outcomes has too many connections (api.connections-max), the oldest without a token is closed"
            );
        }
        // Only a task that has ended has given its descriptor back.
        drop(self.tasks.join_next().await);
    }

    fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static, place: Place) {
        let task = self.tasks.spawn(connection);
        self.by_age.push_back(Connection { task, place, since: Instant::now() });
    }

    async fn finish(mut self, limit: Duration) {
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(limit, ended).await.is_err() {
            debug!("connections for outcomes are closed in the middle of a request");
        }
    }
}

/// So that what happens all the time is told once in a while.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    last: Option<Instant>,
}

impl Complaints {
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}
