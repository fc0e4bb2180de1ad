//! The webhook against a small HTTP server: what is tried again, what is given up, what is sent.

use std::sync::Arc;
use std::time::Duration;

use cloud_aggregator::config::{Alerts, Settings};
use cloud_aggregator::sink::alert::{Channel, Delivery, Outcome};
use cloud_aggregator::sink::webhook::Webhook;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(30);

/// Answers one request with each of these statuses, in order; gives back the requests.
async fn server(answers: &'static [&'static str]) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/hook?sig=secret", listener.local_addr().expect("bound"));
    let serving = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let mut part = [0; 4096];
                let read = stream.read(&mut part).await.expect("a request");
                assert!(read > 0, "the request ended early");
                request.extend_from_slice(&part[..read]);
            }
            requests.push(String::from_utf8(request).expect("UTF-8"));
            let answer =
                format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("answered");
        }
        requests
    });
    (url, serving)
}

fn settings(url: &str) -> Alerts {
    let mut alerts = Settings::load(None).expect("valid defaults").alerts;
    url.clone_into(&mut alerts.webhook_url);
    alerts.retry_min = Duration::from_millis(1);
    alerts.retry_max = Duration::from_millis(2);
    alerts.webhook_attempts_max = 3;
    alerts
}

async fn deliver(alerts: &Alerts) -> Outcome {
    let (sender, queue) = mpsc::channel(1);
    let (outcomes_sender, mut outcomes) = mpsc::channel(1);
    tokio::spawn(Webhook::new(alerts).expect("a client").run(queue, outcomes_sender));
    let delivery = Delivery { id: "id-1".into(), key: "sensor-1".into(), body: "{}".into() };
    sender.send(delivery).await.expect("a queue");
    tokio::time::timeout(PATIENCE, outcomes.recv()).await.expect("in time").expect("an outcome")
}

fn outcome(given_up: Option<String>) -> Outcome {
    Outcome { id: Arc::from("id-1"), channel: Channel::Webhook, given_up }
}

#[tokio::test]
async fn a_busy_endpoint_gets_the_same_alert_again_under_the_same_key() {
    let (url, serving) = server(&["503 Busy", "429 Slow\r\nretry-after: 0", "202 Accepted"]).await;
    let mut alerts = settings(&url);
    alerts.webhook_headers.insert("x-plant".to_owned(), "north".to_owned());
    assert_eq!(deliver(&alerts).await, outcome(None));
    let requests = serving.await.expect("served");
    assert_eq!(requests.len(), 3);
    for request in &requests {
        let request = request.to_lowercase();
        assert!(request.starts_with("post /hook?sig=secret "), "{request}");
        assert!(request.contains("idempotency-key: id-1") && request.contains("x-plant: north"));
        assert!(request.contains("content-type: application/cloudevents+json"), "{request}");
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_gets_no_second_attempt() {
    let (url, serving) = server(&["400 Bad Request"]).await;
    let given_up = Some("status 400 Bad Request".to_owned());
    assert_eq!(deliver(&settings(&url)).await, outcome(given_up));
    assert_eq!(serving.await.expect("served").len(), 1);
}

#[tokio::test]
async fn after_the_last_attempt_the_alert_is_given_up_without_naming_the_url() {
    let (url, serving) = server(&["500 A", "500 B", "500 C"]).await;
    let given_up = deliver(&settings(&url)).await.given_up.expect("given up");
    assert!(given_up.starts_with("3 attempts failed"), "{given_up}");
    assert!(!given_up.contains("secret"), "{given_up}");
    assert_eq!(serving.await.expect("served").len(), 3);
    // Nobody listens there any more.
    let given_up = deliver(&settings(&url)).await.given_up.expect("given up");
    assert!(!given_up.contains("secret"), "{given_up}");
}
