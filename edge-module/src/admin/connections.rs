//! Connections of the admin port, HTTP/1.1 with one request each: slow and half-open ones must not use up the descriptors of
//! the process. Each has a limited time, and of too many the oldest is closed: it had the most time, and a probe that comes now
//! is answered at once. The other program holds the same file: the two share nothing but the wire.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
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
    connections: usize,
    /// From the first look at a connection to the end of the request's header.
    header: Duration,
    /// What a connection has beside that to take the answer.
    answer: Duration,
    /// What open connections have after the stop.
    stop: Duration,
}

impl Limits {
    pub(super) const ADMIN: Self = Self {
        connections: 64,
        header: Duration::from_secs(10),
        answer: Duration::from_secs(10),
        stop: Duration::from_secs(3),
    };
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
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                open.make_room(limits.connections).await;
                open.add(serve_one(stream, router.clone(), limits));
            }
            Err(error) => {
                if complaints.is_due() {
                    warn!(%error, "the admin port takes no connection, trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever comes from here on is refused at once and does not wait for an answer.
    drop(listener);
    open.finish(limits.stop).await;
}

async fn serve_one(stream: TcpStream, router: Router, limits: Limits) {
    // Without keep-alive: a connection that waits for a next request would hold a place.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(HEADER_BYTES_MAX)
        // Who has said all and closes that side still waits for the answer (RFC 9112, section 9.6).
        .half_close(true)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // hyper limits the header only: who never reads the answer would stay for ever.
    match timeout(limits.header + limits.answer, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "admin connection ended early"),
        Err(_) => debug!("admin connection took too long"),
    }
}

/// The open connections. Dropping it closes them.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    /// The oldest first; some may have ended.
    by_age: VecDeque<AbortHandle>,
    complaints: Complaints,
}

impl Open {
    /// Closes the oldest until one more may be added.
    async fn make_room(&mut self, connections_max: usize) {
        while self.tasks.try_join_next().is_some() {}
        self.by_age.retain(|task| !task.is_finished());
        while self.tasks.len() >= connections_max {
            if let Some(oldest) = self.by_age.pop_front() {
                oldest.abort();
                if self.complaints.is_due() {
                    warn!(
                        connections_max,
                        "the admin port has too many connections, the oldest is closed"
                    );
                }
            }
            // Only a task that has ended has given its descriptor back.
            drop(self.tasks.join_next().await);
        }
    }

    fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.by_age.push_back(self.tasks.spawn(connection));
    }

    async fn finish(mut self, limit: Duration) {
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(limit, ended).await.is_err() {
            debug!("admin connections are closed in the middle of a request");
        }
    }
}

/// So that what happens all the time is told once in a while.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
}

impl Complaints {
    fn is_due(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;

    use anyhow::{Context, ensure};
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    const PROBE: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    /// Well below the limits that are not under test, well above those that are.
    const DEADLINE: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(600);
    const PATIENT: Limits = Limits { connections: 64, header: LONG, answer: LONG, stop: LONG };
    /// More than the buffers of both sockets hold.
    const LARGE_BYTES: usize = 64 * 1024 * 1024;

    struct Server {
        address: SocketAddr,
        stop: Arc<Notify>,
        task: JoinHandle<()>,
    }

    impl Server {
        async fn start(limits: Limits) -> anyhow::Result<Self> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let address = listener.local_addr()?;
            let router = Router::new()
                .route("/healthz", get(|| async { "ok\n" }))
                .route("/large", get(|| async { vec![b'x'; LARGE_BYTES] }));
            let stop = Arc::new(Notify::new());
            let stopped = Arc::clone(&stop);
            let until = async move { stopped.notified().await };
            let task = tokio::spawn(serve(listener, router, limits, until));
            Ok(Self { address, stop, task })
        }

        async fn send(&self, bytes: &[u8]) -> anyhow::Result<TcpStream> {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(bytes).await?;
            Ok(stream)
        }

        async fn probe(&self) -> anyhow::Result<()> {
            let answer = until_closed(&mut self.send(PROBE).await?).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
            Ok(())
        }

        async fn stop(self) -> anyhow::Result<()> {
            self.stop.notify_one();
            timeout(DEADLINE, self.task).await.context("it does not end")??;
            Ok(())
        }
    }

    /// What the server sends until it closes; a reset is an end, too.
    async fn until_closed(stream: &mut TcpStream) -> anyhow::Result<String> {
        let mut bytes = Vec::new();
        let end = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.context("still open")?;
        if let Err(error) = end {
            ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    #[tokio::test]
    async fn requests_that_do_not_come_to_an_end_are_closed_in_time() -> anyhow::Result<()> {
        let server = Server::start(Limits { header: SHORT, ..PATIENT }).await?;
        let begin = Instant::now();
        let mut slow = Vec::new();
        for number in 0..30 {
            let parts: [&[u8]; 3] = [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nhost: te"];
            slow.push(server.send(parts[number % parts.len()]).await?);
        }
        server.probe().await?;
        for stream in &mut slow {
            let answer = until_closed(stream).await?;
            assert_eq!(answer, "");
        }
        ensure!(begin.elapsed() >= SHORT, "too early: {:?}", begin.elapsed());
        server.stop().await
    }

    #[tokio::test]
    async fn of_too_many_the_oldest_is_closed_and_the_newest_answered() -> anyhow::Result<()> {
        let server = Server::start(Limits { connections: 2, ..PATIENT }).await?;
        let (begin, rest) = PROBE.split_at(8);
        let mut oldest = server.send(begin).await?;
        let mut second = server.send(begin).await?;
        server.probe().await?;
        assert_eq!(until_closed(&mut oldest).await?, "");
        second.write_all(rest).await?;
        let answer = until_closed(&mut second).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        server.stop().await
    }

    #[tokio::test]
    async fn who_closes_its_side_behind_a_whole_request_is_answered() -> anyhow::Result<()> {
        let server = Server::start(PATIENT).await?;
        for _ in 0..20 {
            let mut stream = server.send(PROBE).await?;
            stream.shutdown().await?;
            let answer = until_closed(&mut stream).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        }
        server.stop().await
    }

    #[tokio::test]
    async fn a_header_without_end_is_refused_at_its_limit() -> anyhow::Result<()> {
        let server = Server::start(PATIENT).await?;
        let mut stream = server.send(b"GET /healthz HTTP/1.1\r\nx: ").await?;
        // What it does not read any more resets the connection, which is an end, too.
        stream.write_all(&vec![b'x'; 2 * HEADER_BYTES_MAX]).await.ok();
        let answer = until_closed(&mut stream).await?;
        ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
        server.probe().await?;
        server.stop().await
    }

    #[tokio::test]
    async fn who_does_not_read_the_answer_is_closed() -> anyhow::Result<()> {
        let server = Server::start(Limits { header: SHORT, answer: SHORT, ..PATIENT }).await?;
        let stream = server.send(b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n").await?;
        timeout(DEADLINE, stream.peek(&mut [0])).await.context("no answer")??;
        // The stop waits for open connections, in this test for longer than the deadline.
        server.stop().await
    }

    #[tokio::test]
    async fn a_stop_waits_for_slow_connections_only_a_little() -> anyhow::Result<()> {
        let server = Server::start(Limits { stop: SHORT, ..PATIENT }).await?;
        let mut slow = server.send(b"GET /met").await?;
        // They are taken in the order in which they come.
        server.probe().await?;
        server.stop().await?;
        assert_eq!(until_closed(&mut slow).await?, "");
        Ok(())
    }
}
