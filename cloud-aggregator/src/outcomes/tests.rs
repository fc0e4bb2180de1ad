//! The port as its clients see it: real connections, a sink in memory.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};
use shared_proto::model::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::api::serve_within;
use super::connections::Limits;
use super::*;

const TOKEN: &str = "0123456789abcdef-flow";
const OTHER_TOKEN: &str = "0123456789abcdef-sap";
/// Well below the limits that are not under test, well above those that are.
const DEADLINE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(300);

#[derive(Clone, Copy)]
enum Kafka {
    Takes,
    Refuses,
    Hangs,
}

struct Memory {
    kafka: Kafka,
    taken: Arc<Mutex<Vec<Outcome>>>,
}

#[async_trait]
impl OutcomeSink for Memory {
    async fn publish(&self, outcome: &Outcome) -> Result<(), PublishError> {
        match self.kafka {
            Kafka::Takes => {
                let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.push(outcome.clone());
                Ok(())
            }
            Kafka::Refuses => Err(PublishError { text: "unknown topic".to_owned() }),
            Kafka::Hangs => std::future::pending().await,
        }
    }
}

struct Server {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<Outcome>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn settings() -> ApiSettings {
    ApiSettings {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        token_file: "tokens".into(),
        body_bytes_max: 262_144,
        body_timeout: LONG,
        publish_timeout: LONG,
        rate_max: 100,
        rate_burst: 200,
        connections_max: 256,
    }
}

impl Server {
    async fn start(settings: ApiSettings, kafka: Kafka) -> anyhow::Result<Self> {
        Self::start_with(LONG, settings, kafka).await
    }

    /// `patience` is how long a connection without a token keeps its place while others wait.
    async fn start_with(
        patience: Duration,
        settings: ApiSettings,
        kafka: Kafka,
    ) -> anyhow::Result<Self> {
        let listener = bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let tokens = Tokens::parse(&format!("flow:{TOKEN}\nsap:{OTHER_TOKEN}\n"))?;
        let taken = Arc::<Mutex<Vec<Outcome>>>::default();
        let sink = Memory { kafka, taken: Arc::clone(&taken) };
        let api = Arc::new(Api::new(settings, tokens, Box::new(sink)));
        let (stop, stopped) = watch::channel(false);
        let limits = Limits { patience, ..api.limits() };
        let task = tokio::spawn(serve_within(limits, listener, api, stopped));
        Ok(Self { address, taken, stop, task })
    }

    /// The names of what the sink has.
    fn taken(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().map(|outcome| outcome.outcome_id.to_string()).collect()
    }

    async fn post(&self, body: &str) -> anyhow::Result<Answer> {
        ask(self.address, &request(&[], body)).await
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.send(true)?;
        timeout(DEADLINE, self.task).await.context("it does not end")??;
        Ok(())
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("")
    }

    fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line.eq_ignore_ascii_case(header))
    }
}

fn head(changes: &[(&str, Option<&str>)], length: usize) -> String {
    let length = length.to_string();
    let authorization = format!("Bearer {TOKEN}");
    let mut headers = vec![
        ("host", "test"),
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
    ];
    headers.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    headers.extend(changes.iter().filter_map(|(name, value)| Some((*name, (*value)?))));
    let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("POST /api/outcomes HTTP/1.1\r\n{}\r\n", lines.collect::<String>())
}

fn request(changes: &[(&str, Option<&str>)], body: &str) -> Vec<u8> {
    [head(changes, body.len()).as_bytes(), body.as_bytes()].concat()
}

async fn ask(address: SocketAddr, request: &[u8]) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    answer(&mut stream).await
}

/// What the server sends until it closes; a reset is an end, too.
async fn answer(stream: &mut TcpStream) -> anyhow::Result<Answer> {
    let mut bytes = Vec::new();
    let end = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.context("still open")?;
    if let Err(error) = end {
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    }
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    let answer = Answer {
        status,
        head: head.to_owned(),
        body: serde_json::from_str(body).unwrap_or_default(),
    };
    if status >= 400 {
        ensure!(answer.has("content-type: application/problem+json"), "{head}");
        ensure!(answer.body["status"] == status && answer.body["title"].is_string(), "{body}");
        ensure!(answer.body["detail"].as_str().is_some_and(|text| text.len() > 20), "{body}");
        ensure!(!text.contains(TOKEN) && !text.contains("secret"), "{text}");
    }
    Ok(answer)
}

fn outcome(id: &str) -> Value {
    json!({
        "outcome_id": id, "verdict": "confirmed", "machine_id": "press-1",
        "timestamp": "2026-03-02T10:00:00Z", "alert_id": "a".repeat(64),
        "part": "bearing 6205 drive end",
    })
}

#[tokio::test]
async fn an_outcome_is_taken_and_its_name_comes_back() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Takes).await?;
    let answer = server.post(&outcome("ticket-4711").to_string()).await?;
    assert_eq!((answer.status, answer.body), (202, json!({"outcome_id": "ticket-4711"})));
    let body = json!([outcome("a"), outcome("b")]).to_string();
    let answer = server.post(&body).await?;
    assert_eq!(
        (answer.status, answer.body),
        (202, json!([{"outcome_id": "a"}, {"outcome_id": "b"}]))
    );
    // The name of the header stands for the outcome's, bare or in quotes.
    let mut nameless = outcome("");
    nameless.as_object_mut().context("an object")?.remove("outcome_id");
    for key in ["key-1", "\"key-2\""] {
        let request = request(&[("idempotency-key", Some(key))], &nameless.to_string());
        let answer = ask(server.address, &request).await?;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    let by = format!("bEARER  {OTHER_TOKEN}");
    let changes = [
        ("authorization", Some(by.as_str())),
        ("content-type", Some("Application/JSON; charset=utf-8")),
    ];
    let other = ask(server.address, &request(&changes, &outcome("c").to_string())).await?;
    assert_eq!(other.status, 202, "{}", other.body);
    assert_eq!(server.taken(), ["ticket-4711", "a", "b", "key-1", "key-2", "c"]);
    let reporters: Vec<String> = {
        let taken = server.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().filter_map(|outcome| Some(outcome.reported_by.as_ref()?.to_string())).collect()
    };
    assert_eq!(reporters, ["flow", "flow", "flow", "flow", "flow", "sap"]);
    server.stop().await
}

#[tokio::test]
async fn requests_without_a_good_token_are_refused_before_anything_else() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Takes).await?;
    let check = async |value: Option<&str>, code: &str, challenge: &str| {
        let body = outcome("a").to_string();
        let answer = ask(server.address, &request(&[("authorization", value)], &body)).await?;
        assert_eq!((answer.status, answer.code()), (401, code), "{value:?}");
        ensure!(answer.has(&format!("www-authenticate: {challenge}")), "{}", answer.head);
        anyhow::Ok(())
    };
    let (plain, invalid) =
        ("Bearer realm=\"outcomes\"", "Bearer realm=\"outcomes\", error=\"invalid_token\"");
    check(None, "no-token", plain).await?;
    check(Some(""), "no-token", plain).await?;
    check(Some("Bearer"), "no-token", plain).await?;
    check(Some("Basic dXNlcjpzZWNyZXQ="), "no-token", plain).await?;
    check(Some(TOKEN), "no-token", plain).await?;
    check(Some("Bearer secret-of-somebody-else"), "unknown-token", invalid).await?;
    check(Some(&format!("Bearer {TOKEN}0")), "unknown-token", invalid).await?;
    check(Some(&format!("Bearer {}", &TOKEN[1..])), "unknown-token", invalid).await?;
    check(Some("Bearer flow"), "unknown-token", invalid).await?;
    let twice = format!("Bearer {TOKEN}\r\nauthorization: Bearer {TOKEN}");
    check(Some(&twice), "no-token", plain).await?;
    assert!(server.taken().is_empty());
    server.stop().await
}

#[tokio::test]
async fn what_is_no_outcome_has_a_named_reason() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Takes).await?;
    let check = async |body: &str, status: u16, code: &str, part: &str| {
        let answer = server.post(body).await?;
        assert_eq!((answer.status, answer.code()), (status, code), "{body}");
        let text = answer.body.to_string();
        ensure!(text.contains(part), "{text}");
        anyhow::Ok(())
    };
    let with = |field: &str, value: Value| {
        let mut body = outcome("a");
        body[field] = value;
        body.to_string()
    };
    check("", 400, "json", "empty").await?;
    check("{", 400, "json", "EOF").await?;
    check("<outcome/>", 400, "json", "line 1 column 1").await?;
    check("[]", 422, "no-outcome", "1 to 100").await?;
    check(&with("verdict", json!("splendid")), 422, "invalid-outcome", "part-replaced").await?;
    check(&with("verdict", json!(1)), 422, "invalid-outcome", "invalid type").await?;
    check(&with("note", json!(["x"])), 422, "invalid-outcome", "invalid type").await?;
    check(&with("colour", json!("red")), 422, "invalid-outcome", "unknown field `colour`").await?;
    check(&with("part", json!("x".repeat(257))), 422, "invalid-outcome", "at most 256").await?;
    check(&with("alert_id", json!("x")), 422, "invalid-outcome", "64 hexadecimal").await?;
    check(&with("timestamp", json!("9000-01-01T00:00:00Z")), 422, "invalid-outcome", "clock")
        .await?;
    let many = Value::Array((0..101).map(|number| outcome(&number.to_string())).collect());
    check(&many.to_string(), 422, "too-many-outcomes", "101").await?;
    assert!(server.taken().is_empty());
    server.stop().await
}

#[tokio::test]
async fn of_an_array_with_one_bad_outcome_nothing_is_taken() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Takes).await?;
    let mut outcomes: Vec<Value> = (0..100).map(|number| outcome(&number.to_string())).collect();
    outcomes[41]["verdict"] = json!("splendid");
    let answer = server.post(&Value::Array(outcomes.clone()).to_string()).await?;
    assert_eq!((answer.status, answer.code()), (422, "invalid-outcome"));
    assert_eq!(answer.body["errors"][0]["pointer"], "#/41");
    assert_eq!(answer.body["errors"].as_array().map(Vec::len), Some(1));
    assert!(server.taken().is_empty());
    outcomes[41]["verdict"] = json!("note");
    let answer = server.post(&Value::Array(outcomes).to_string()).await?;
    assert_eq!((answer.status, server.taken().len()), (202, 100));
    server.stop().await
}

#[tokio::test]
async fn other_methods_paths_types_and_keys_are_refused() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Takes).await?;
    let body = outcome("a").to_string();
    for method in ["GET", "PUT", "DELETE"] {
        let request = String::from_utf8(request(&[], &body))?.replacen("POST", method, 1);
        let answer = ask(server.address, request.as_bytes()).await?;
        assert_eq!((answer.status, answer.code()), (405, "method"), "{method}");
        ensure!(answer.has("allow: POST"), "{}", answer.head);
    }
    for path in ["/", "/api", "/api/outcomes/a", "/metrics"] {
        let request = String::from_utf8(request(&[], &body))?.replacen("/api/outcomes", path, 1);
        let answer = ask(server.address, request.as_bytes()).await?;
        assert_eq!((answer.status, answer.code()), (404, "not-found"), "{path}");
    }
    let refused = async |header: &str, value: Option<&str>, expected: (u16, &str)| {
        let answer = ask(server.address, &request(&[(header, value)], &body)).await?;
        assert_eq!((answer.status, answer.code()), expected, "{header}: {value:?}");
        anyhow::Ok(answer)
    };
    let types = [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/x-protobuf"),
        Some("application/json; charset=utf-16"),
        Some("application/json\r\ncontent-type: text/plain"),
        Some("text/plain\r\ncontent-type: application/json"),
    ];
    for value in types {
        let answer = refused("content-type", value, (415, "content-type")).await?;
        ensure!(answer.has("accept-post: application/json"), "{}", answer.head);
    }
    refused("content-encoding", Some("gzip"), (415, "content-type")).await?;
    let twice = "identity\r\ncontent-encoding: gzip";
    refused("content-encoding", Some(twice), (415, "content-type")).await?;
    refused("idempotency-key", Some("b"), (422, "idempotency-key-differs")).await?;
    refused("idempotency-key", Some(""), (400, "idempotency-key")).await?;
    refused("idempotency-key", Some(&"k".repeat(257)), (400, "idempotency-key")).await?;
    refused("idempotency-key", Some("a\r\nidempotency-key: a"), (400, "idempotency-key")).await?;
    assert!(server.taken().is_empty());
    server.stop().await
}

#[tokio::test]
async fn huge_bodies_are_refused_and_their_senders_hear_why() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Takes).await?;
    let padded = |length: usize| {
        let body = outcome("a").to_string();
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    assert_eq!(server.post(&padded(262_144)).await?.status, 202, "at the limit");
    for length in [262_145, 3_000_000] {
        let answer = server.post(&padded(length)).await?;
        assert_eq!((answer.status, answer.code()), (413, "too-large"), "{length}");
    }
    // Whose header says so is not waited for, as its body may never come.
    let announced = head(&[("content-length", Some("999999999999999"))], 0);
    let answer = ask(server.address, announced.as_bytes()).await?;
    assert_eq!((answer.status, answer.code()), (413, "too-large"));
    // In chunks, so that no header tells the length.
    let changes = [("content-length", None), ("transfer-encoding", Some("chunked"))];
    let mut chunked = head(&changes, 0).into_bytes();
    for _ in 0..5 {
        chunked.extend_from_slice(format!("10000\r\n{}\r\n", " ".repeat(0x10000)).as_bytes());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = ask(server.address, &chunked).await?;
    assert_eq!((answer.status, answer.code()), (413, "too-large"));
    // Nor does a body change what is said to who has no token.
    let request = request(&[("authorization", None)], &padded(200_000));
    assert_eq!(ask(server.address, &request).await?.status, 401);
    assert_eq!(server.taken(), ["a"]);
    server.stop().await
}

#[tokio::test]
async fn slow_and_broken_bodies_are_given_up() -> anyhow::Result<()> {
    let server =
        Server::start(ApiSettings { body_timeout: SHORT, ..settings() }, Kafka::Takes).await?;
    let body = outcome("a").to_string();
    let mut slow = Vec::new();
    for part in [0, 1, body.len() / 2, body.len() - 1] {
        let mut stream = TcpStream::connect(server.address).await?;
        stream.write_all(&request(&[], &body)[..head(&[], body.len()).len() + part]).await?;
        slow.push(stream);
    }
    assert_eq!(server.post(&body).await?.status, 202, "others are served meanwhile");
    for stream in &mut slow {
        let answer = answer(stream).await?;
        assert_eq!((answer.status, answer.code()), (408, "slow-body"));
    }
    let mut broken = TcpStream::connect(server.address).await?;
    let request = request(&[], &body);
    broken.write_all(&request[..request.len() - 1]).await?;
    broken.shutdown().await?;
    let answer = answer(&mut broken).await;
    // Whoever closes its side may not be answered.
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.code() == "broken-body"));
    assert_eq!(server.taken(), ["a"]);
    server.stop().await
}

#[tokio::test]
async fn who_closes_its_side_behind_a_whole_request_is_answered() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Takes).await?;
    for number in 0..20 {
        let id = format!("half-{number}");
        let mut stream = TcpStream::connect(server.address).await?;
        stream.write_all(&request(&[], &outcome(&id).to_string())).await?;
        stream.shutdown().await?;
        let answer = answer(&mut stream).await?;
        assert_eq!((answer.status, answer.body), (202, json!({ "outcome_id": id })));
    }
    assert_eq!(server.taken().len(), 20);
    server.stop().await
}

#[tokio::test]
async fn what_kafka_does_not_take_may_be_sent_again() -> anyhow::Result<()> {
    let server = Server::start(settings(), Kafka::Refuses).await?;
    let answer = server.post(&outcome("a").to_string()).await?;
    assert_eq!((answer.status, answer.code()), (503, "kafka"));
    ensure!(answer.has("retry-after: 5"), "{}", answer.head);
    server.stop().await?;
    let server =
        Server::start(ApiSettings { publish_timeout: SHORT, ..settings() }, Kafka::Hangs).await?;
    let answer = server.post(&outcome("a").to_string()).await?;
    assert_eq!((answer.status, answer.code()), (503, "kafka-timeout"));
    ensure!(answer.has("retry-after: 5"), "{}", answer.head);
    server.stop().await
}

/// Sends so many at once and counts the answers by their status.
async fn flood(address: SocketAddr, count: usize, token: &str) -> anyhow::Result<[usize; 2]> {
    let mut asking = JoinSet::new();
    for number in 0..count {
        let value = format!("Bearer {token}");
        let body = outcome(&format!("{token}-{number}")).to_string();
        let request = request(&[("authorization", Some(value.as_str()))], &body);
        asking.spawn(async move { ask(address, &request).await });
    }
    let mut found = [0, 0];
    while let Some(asked) = asking.join_next().await {
        let answer = asked??;
        match answer.status {
            202 => found[0] += 1,
            429 => {
                ensure!(answer.head.contains("retry-after: "), "{}", answer.head);
                found[1] += 1;
            }
            status => anyhow::bail!("{status}: {}", answer.body),
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_at_once_are_all_answered() -> anyhow::Result<()> {
    let settings = ApiSettings { rate_burst: 1_000, connections_max: 64, ..settings() };
    let server = Server::start(settings, Kafka::Takes).await?;
    assert_eq!(flood(server.address, 1_000, TOKEN).await?, [1_000, 0]);
    let mut taken = server.taken();
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), 1_000);
    server.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_that_asks_too_often_does_not_stop_another() -> anyhow::Result<()> {
    let settings = ApiSettings { rate_max: 1, rate_burst: 50, ..settings() };
    let server = Server::start(settings, Kafka::Takes).await?;
    let [taken, refused] = flood(server.address, 300, TOKEN).await?;
    // A second gives one more.
    ensure!((50..=150).contains(&taken) && taken + refused == 300, "{taken}, {refused}");
    assert_eq!(flood(server.address, 50, OTHER_TOKEN).await?, [50, 0]);
    server.stop().await
}

#[tokio::test]
async fn who_shows_no_token_does_not_keep_others_out() -> anyhow::Result<()> {
    let settings = ApiSettings { connections_max: 4, ..settings() };
    let server = Server::start_with(SHORT, settings, Kafka::Takes).await?;
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(server.address).await?;
        stream.write_all(b"POST /api/out").await?;
        idle.push(stream);
    }
    let answer = server.post(&outcome("a").to_string()).await?;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let mut end = Vec::new();
    // The oldest was closed for it. A reset is an end, too.
    drop(timeout(DEADLINE, idle[0].read_to_end(&mut end)).await.context("still open")?);
    assert!(end.is_empty());
    drop(idle);
    server.stop().await
}

#[tokio::test]
async fn who_has_shown_a_token_is_left_to_finish_while_others_wait() -> anyhow::Result<()> {
    let settings = ApiSettings { connections_max: 1, ..settings() };
    let server = Server::start_with(SHORT, settings, Kafka::Takes).await?;
    let body = outcome("first").to_string();
    let (begin, rest) = body.split_at(body.len() / 2);
    let mut first = TcpStream::connect(server.address).await?;
    first.write_all(format!("{}{begin}", head(&[], body.len())).as_bytes()).await?;
    let second = tokio::spawn(async move {
        ask(server.address, &request(&[], &outcome("second").to_string())).await
    });
    // Longer than a connection without a token would keep its place.
    let is_early = timeout(SHORT * 5, first.peek(&mut [0])).await.is_ok();
    assert!(!is_early, "the first was answered or closed");
    first.write_all(rest.as_bytes()).await?;
    assert_eq!(answer(&mut first).await?.status, 202);
    assert_eq!(timeout(DEADLINE, second).await???.status, 202);
    Ok(())
}
