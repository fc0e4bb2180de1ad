use std::net::SocketAddr;
use std::sync::Mutex;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::config::{Rate, Settings};
use crate::sink::alert::tests::{event, resolved};
use crate::sink::alert::{Delivery, delivery};

const PATIENCE: Duration = Duration::from_secs(30);
const OK: Answer = Answer::Status("200 OK");

/// What the server does with one request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Status, and header lines behind it.
    Status(&'static str),
    /// A status, and a body that never ends.
    SlowBody(&'static str),
    /// Nothing, while the connection stays open.
    Silence,
    /// One byte of the head, then silence.
    SlowHead,
    /// The connection is reset.
    Reset,
    /// No HTTP.
    Garbage,
}

/// Answers one request of a connection each as told; the last answer again and again.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn new(answers: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answers, seen) = (answers.to_vec(), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            for index in 0.. {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let answer = answers[usize::min(index, answers.len() - 1)];
                if let Some(request) = read_request(&mut stream).await {
                    seen.lock().expect("a lock").push(request);
                    answered(&mut stream, answer).await;
                }
                let stays = match answer {
                    Answer::Silence | Answer::SlowHead | Answer::SlowBody(_) => true,
                    Answer::Status(_) | Answer::Reset | Answer::Garbage => false,
                };
                open.extend(stays.then_some(stream));
            }
        });
        Self { address, requests, task }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("a lock").clone()
    }

    fn url(&self) -> String {
        format!("http://{}/hook?sig=hunter2", self.address)
    }
}

/// `None`: it was none.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    loop {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&part[..read]);
        let text = std::str::from_utf8(&request).ok()?;
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if length.is_some_and(|length| length.parse() == Ok(body.len())) {
                return Some(text.to_owned());
            }
        }
    }
}

async fn answered(stream: &mut TcpStream, answer: Answer) {
    let text = match answer {
        Answer::Status(status) => {
            format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        }
        Answer::SlowBody(status) => format!("HTTP/1.1 {status}\r\ncontent-length: 9999\r\n\r\nx"),
        Answer::Silence => return,
        Answer::SlowHead => "H".to_owned(),
        Answer::Reset => return stream.set_zero_linger().expect("a socket"),
        Answer::Garbage => "220 mail.example ESMTP\r\n".to_owned(),
    };
    stream.write_all(text.as_bytes()).await.expect("answered");
}

/// Quick waits; no deadline that a test reaches unless it says so.
fn target(url: &str) -> Target {
    let mut alerts = Settings::load(None).expect("valid defaults").alerts;
    alerts.webhook_url = crate::config::Secret::new(url);
    let [target] = alerts.all_targets().try_into().expect("one target");
    Target {
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(2),
        circuit_wait: Duration::from_millis(1),
        attempts_max: 3,
        deadline: Duration::from_secs(3_650 * 86_400),
        ..target
    }
}

/// A webhook that runs.
struct Running {
    sender: mpsc::Sender<Delivery>,
    outcomes: mpsc::Receiver<Outcome>,
    health: TargetHealth,
}

impl Running {
    fn new(target: Target) -> Self {
        let (sender, queue) = mpsc::channel(8);
        let (outcomes_sender, outcomes) = mpsc::channel(8);
        let webhook = Webhook::new(target).expect("a client");
        let health = webhook.health();
        tokio::spawn(webhook.run(queue, outcomes_sender));
        Self { sender, outcomes, health }
    }

    async fn send(&self, id: &str) {
        self.sender.send(delivery(&event(id), "tests")).await.expect("a queue");
    }

    async fn outcome(&mut self) -> Outcome {
        let outcome = tokio::time::timeout(PATIENCE, self.outcomes.recv()).await;
        outcome.expect("in time").expect("an outcome")
    }

    /// Sends one and gives what became of it.
    async fn given_up(&mut self, id: &str) -> Option<String> {
        self.send(id).await;
        let outcome = self.outcome().await;
        assert_eq!(*outcome.id, format!("{id}-1"));
        assert_eq!(outcome.channel.as_str(), "webhook");
        outcome.given_up
    }

    /// Waits until the status is as it should be.
    async fn await_status(&self, is_reached: impl Fn(&TargetStatus) -> bool) -> TargetStatus {
        let reached = async {
            loop {
                let status = self.health.status();
                if is_reached(&status) {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the status in time")
    }
}

fn sent(request: &str) -> Value {
    let (_, body) = request.split_once("\r\n\r\n").expect("a body");
    serde_json::from_str(body).expect("JSON")
}

#[tokio::test]
async fn a_busy_endpoint_gets_the_same_event_again_under_the_same_key() {
    let busy = [
        Answer::Status("500 Internal Server Error"),
        Answer::Status("429 Slow\r\nretry-after: 0"),
        Answer::Status("202 Accepted"),
    ];
    let server = Server::new(&busy).await;
    let headers = [("x-plant".to_owned(), "north".to_owned())].into();
    let mut running = Running::new(Target { headers, ..target(&server.url()) });
    assert_eq!(running.given_up("a").await, None);
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!(sent(request)["id"], "a-1");
        let request = request.to_lowercase();
        assert!(request.starts_with("post /hook?sig=hunter2 "), "{request}");
        assert!(request.contains("idempotency-key: a-1") && request.contains("x-plant: north"));
        assert!(request.contains("content-type: application/cloudevents+json"), "{request}");
    }
    let status = running.health.status();
    assert_eq!((status.name.as_str(), status.kind.as_str()), ("webhook", "webhook"));
    assert_eq!((status.failures_in_a_row, status.last_failure), (0, None));
    assert!(status.last_delivered_at.is_some());
}

#[tokio::test]
async fn a_content_type_of_the_settings_replaces_ours() {
    let server = Server::new(&[OK]).await;
    let headers = [("Content-Type".to_owned(), "application/json".to_owned())].into();
    let mut running = Running::new(Target { headers, ..target(&server.url()) });
    assert_eq!(running.given_up("a").await, None);
    let request = server.requests().concat().to_lowercase();
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    assert!(!request.contains("cloudevents+json"), "{request}");
}

#[tokio::test]
async fn whatever_goes_wrong_on_the_way_is_tried_again() {
    let ways = [Answer::Reset, Answer::Garbage, Answer::Silence, Answer::SlowHead];
    for way in ways {
        let server = Server::new(&[way, OK]).await;
        let timeout = Duration::from_millis(200);
        let mut running = Running::new(Target { timeout, ..target(&server.url()) });
        assert_eq!(running.given_up("a").await, None, "{way:?}");
        assert_eq!(server.requests().len(), 2, "{way:?}");
    }
}

#[tokio::test]
async fn the_body_of_an_answer_is_not_waited_for() {
    let slow = [Answer::SlowBody("503 Busy"), Answer::SlowBody("200 OK")];
    let server = Server::new(&slow).await;
    let mut running = Running::new(Target { timeout: PATIENCE, ..target(&server.url()) });
    assert_eq!(running.given_up("a").await, None);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::new(&[OK]).await;
    let status = format!("307 Elsewhere\r\nlocation: {}", other.url());
    let server = Server::new(&[Answer::Status(status.leak())]).await;
    let mut running = Running::new(target(&server.url()));
    let given_up = running.given_up("a").await.expect("given up");
    assert!(given_up.contains("redirects are not followed"), "{given_up}");
    assert!(!given_up.contains("hunter2"), "{given_up}");
    assert_eq!((server.requests().len(), other.requests().len()), (1, 0));
}

#[tokio::test]
async fn what_is_refused_for_good_gets_no_second_attempt() {
    let server = Server::new(&[Answer::Status("400 Bad Request")]).await;
    let mut running = Running::new(target(&server.url()));
    let given_up = Some("status 400 Bad Request".to_owned());
    assert_eq!(running.given_up("a").await, given_up);
    assert_eq!(server.requests().len(), 1);
    let status = running.health.status();
    assert_eq!((status.failures_in_a_row, status.failing_since), (0, None), "it answers");
    assert_eq!(status.last_given_up, given_up);
    assert!(status.last_given_up_at.is_some());
}

#[tokio::test]
async fn after_the_last_attempt_an_event_is_given_up_without_naming_the_url() {
    let server = Server::new(&[Answer::Status("500 A")]).await;
    let url = server.url();
    let mut running = Running::new(target(&url));
    let given_up = running.given_up("a").await.expect("given up");
    assert!(given_up.starts_with("3 attempts failed, the last one with: status 500"), "{given_up}");
    assert_eq!(server.requests().len(), 3);
    drop(server);
    // Nobody listens there any more.
    let given_up = running.given_up("b").await.expect("given up");
    let status = running.health.status();
    for text in [given_up, format!("{status:?}")] {
        assert!(text.contains("3 attempts failed") || status.failures_in_a_row == 6, "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn retry_after_is_respected_up_to_its_limit() {
    let slow = Answer::Status("429 Slow\r\nretry-after: 1");
    let server = Server::new(&[slow, OK]).await;
    let mut running = Running::new(target(&server.url()));
    let began = Instant::now();
    assert_eq!(running.given_up("a").await, None);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let server = Server::new(&[Answer::Status("503 Slow\r\nretry-after: 86400"), OK]).await;
    let retry_after_max = Duration::from_millis(3);
    let mut running = Running::new(Target { retry_after_max, ..target(&server.url()) });
    assert_eq!(running.given_up("a").await, None);
}

#[tokio::test]
async fn an_open_circuit_sends_one_probe_after_its_wait_and_closes_when_that_is_taken() {
    let fails = Answer::Status("500 A");
    let server = Server::new(&[fails, fails, fails, OK]).await;
    let mut running = Running::new(Target {
        circuit_failures: 2,
        circuit_wait: Duration::from_millis(300),
        attempts_max: 100,
        ..target(&server.url())
    });
    let began = Instant::now();
    running.send("a").await;
    running.send("b").await;
    let status = running.await_status(|status| status.circuit == CircuitState::Open).await;
    assert_eq!((status.failures_in_a_row, server.requests().len()), (2, 2));
    assert_eq!(status.last_failure.as_deref(), Some("status 500 Internal Server Error"));
    assert!(status.failing_since.is_some());
    assert!(status.next_attempt_at.is_some());
    assert_eq!(running.outcome().await.given_up, None);
    assert!(began.elapsed() >= Duration::from_millis(600), "two waits: {:?}", began.elapsed());
    assert_eq!(running.outcome().await.given_up, None);
    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    let ids: Vec<Value> = requests.iter().map(|request| sent(request)["id"].clone()).collect();
    assert_eq!(ids, ["a-1", "a-1", "a-1", "a-1", "b-1"], "one after the other");
    assert_eq!(running.health.status().circuit, CircuitState::Closed);
}

#[tokio::test]
async fn at_its_deadline_an_event_is_given_up_though_attempts_remain() {
    let server = Server::new(&[Answer::Status("500 A")]).await;
    // The events of the tests changed long before.
    let settings = Target {
        deadline: Duration::from_secs(1),
        circuit_failures: 2,
        circuit_wait: PATIENCE,
        attempts_max: 100,
        ..target(&server.url())
    };
    let mut running = Running::new(settings);
    for attempts in 1..=2 {
        let given_up = running.given_up("a").await.expect("given up");
        assert!(given_up.starts_with("it was not taken within 1s (deadline)"), "{given_up}");
        assert!(given_up.ends_with("status 500 Internal Server Error"), "{given_up}");
        assert_eq!(server.requests().len(), attempts, "one attempt each");
    }
    // The circuit is open: what is too old by then does not wait for a probe.
    assert!(running.given_up("c").await.is_some());
    assert_eq!(server.requests().len(), 2);
    assert_eq!(running.health.status().circuit, CircuitState::Open);
}

#[test]
fn a_deadline_counts_from_the_change_and_never_gets_longer() {
    let now = now();
    let changed =
        |seconds: i64| ProcessingTime::from_micros(now.time.micros() + seconds * 1_000_000);
    let limit = Duration::from_secs(60);
    let check = |seconds: i64, left: u64| {
        let expected = now.instant + Duration::from_secs(left);
        assert_eq!(deadline(changed(seconds), limit, now), expected, "{seconds}");
    };
    check(0, 60);
    check(-20, 40);
    check(-61, 0);
    check(-1_000_000, 0);
    check(500, 60);
}

#[tokio::test]
async fn more_than_the_rate_becomes_one_digest_for_which_each_event_has_an_outcome() {
    let server = Server::new(&[OK]).await;
    let rate = Some(Rate { max: 1, window: Duration::from_millis(300) });
    let name = "mail".to_owned();
    let mut running = Running::new(Target { rate, name, ..target(&server.url()) });
    running.send("a").await;
    assert_eq!(&*running.outcome().await.id, "a-1");
    running.send("b").await;
    running.sender.send(delivery(&resolved("a"), "tests")).await.expect("a queue");
    let status = running.await_status(|status| status.held == 2).await;
    assert_eq!(server.requests().len(), 1, "{status:?}");
    for id in ["b-1", "a-2"] {
        let expected =
            Outcome { id: id.into(), channel: Channel::Target("mail".into()), given_up: None };
        assert_eq!(running.outcome().await, expected);
    }
    let [_, digest] = server.requests().try_into().expect("two requests");
    let body = sent(&digest);
    assert_eq!(body["type"], "predictive-maintenance.alert.digest.v1");
    let id = body["id"].as_str().expect("an id");
    assert!(id.starts_with("digest-mail-"), "{id}");
    assert!(digest.to_lowercase().contains(&format!("idempotency-key: {id}\r\n")), "{digest}");
    assert_eq!(body["data"]["alerts"].as_array().map(Vec::len), Some(2));
    assert_eq!((&body["data"]["more"], running.health.status().held), (&Value::from(0), 0));
}

#[tokio::test]
async fn a_digest_that_is_given_up_gives_each_of_its_events_up() {
    let server = Server::new(&[OK, Answer::Status("413 Too Large")]).await;
    let rate = Some(Rate { max: 1, window: Duration::from_millis(50) });
    let mut running = Running::new(Target { rate, ..target(&server.url()) });
    for id in ["a", "b", "c"] {
        running.send(id).await;
    }
    assert_eq!(running.outcome().await.given_up, None);
    for id in ["b-1", "c-1"] {
        let outcome = running.outcome().await;
        let given_up = outcome.given_up.expect("given up");
        assert_eq!(&*outcome.id, id);
        assert!(given_up.starts_with("as a part of digest-webhook-"), "{given_up}");
        assert!(given_up.ends_with("status 413 Payload Too Large"), "{given_up}");
    }
}

#[tokio::test]
async fn a_target_that_hangs_delays_no_other() {
    let (hanging, quick) = (Server::new(&[Answer::Silence]).await, Server::new(&[OK]).await);
    let slow = Running::new(Target { timeout: PATIENCE * 100, ..target(&hanging.url()) });
    slow.send("a").await;
    let mut other = Running::new(target(&quick.url()));
    for id in ["a", "b", "c"] {
        assert_eq!(other.given_up(id).await, None);
    }
    assert!(slow.outcomes.is_empty());
}

#[tokio::test]
async fn an_endpoint_without_tls_gets_nothing_from_https() {
    let server = Server::new(&[OK]).await;
    let url = server.url().replace("http:", "https:");
    let mut running = Running::new(target(&url));
    let given_up = running.given_up("a").await.expect("given up");
    assert!(
        given_up.starts_with("3 attempts failed") && !given_up.contains("hunter2"),
        "{given_up}"
    );
    assert!(server.requests().is_empty());
}

/// Speaks TLS with a certificate that nobody vouches for; gives whether a handshake came to its end.
async fn self_signed() -> (SocketAddr, JoinHandle<bool>) {
    use tokio_rustls::rustls;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.expect("a key"))
        .expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let Ok(mut stream) = acceptor.accept(stream).await else { return false };
        let mut part = [0; 1];
        stream.read(&mut part).await.is_ok_and(|read| read > 0)
    });
    (address, serving)
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_sent() {
    let (address, serving) = self_signed().await;
    let url = format!("https://localhost:{}/hook?sig=hunter2", address.port());
    let mut running = Running::new(Target { attempts_max: 1, ..target(&url) });
    let given_up = running.given_up("a").await.expect("given up");
    assert!(given_up.contains("certificate") && !given_up.contains("hunter2"), "{given_up}");
    assert!(!serving.await.expect("served"), "something was sent");
}

#[test]
fn neither_url_nor_secret_headers_are_shown() {
    use std::io::Write as _;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"hunter2\n").expect("written");
    let header_files = [("authorization".to_owned(), file.path().to_owned())].into();
    let url = "http://127.0.0.1:1/hook?sig=hunter2";
    let settings = Target { header_files, ..target(url) };
    let webhook = Webhook::new(settings.clone()).expect("a client");
    assert!(!format!("{webhook:?}").contains("hunter2"), "{webhook:?}");
    file.as_file().set_len(0).expect("emptied");
    file.as_file().write_all(b"\nhunter2 \x01 \n").expect("written");
    let error = Webhook::new(settings).expect_err("no header");
    let text = format!("{error} {error:?}");
    assert!(text.contains("header authorization of the alert target webhook"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let error = Webhook::new(target("http://10.0.0.1/hook?sig=hunter2")).expect_err("not allowed");
    assert!(error.to_string().contains("plain http to 10.0.0.1"), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}
