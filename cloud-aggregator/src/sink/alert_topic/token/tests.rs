use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const SCOPE: &str = "https://plant.servicebus.windows.net/.default";
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives each request the same answer; keeps the requests.
async fn stand_in(answer: String) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !is_whole(&request) {
                let mut part = [0; 4096];
                let read = stream.read(&mut part).await.expect("a request");
                assert!(read > 0, "the request ended early");
                request.extend_from_slice(&part[..read]);
            }
            seen.lock().expect("a lock").push(String::from_utf8(request).expect("UTF-8"));
            // Whoever has read enough closes the connection.
            let _is_written = stream.write_all(answer.as_bytes()).await.is_ok();
        }
    });
    (address, requests)
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_none_or(|length| length.parse() == Ok(body.len()))
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Sends everything to the stand-in, wherever it should go.
#[derive(Debug)]
struct Diverted {
    requests: Requests,
    address: SocketAddr,
}

#[async_trait]
impl HttpClient for Diverted {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let mut url = request.url().clone();
        let place = format!("http://{}{}", self.address, url.path());
        let query = url.query().map(str::to_owned);
        url = place.parse().expect("a URL");
        url.set_query(query.as_deref());
        let mut diverted = Request::new(url, request.method());
        for (name, value) in request.headers().iter() {
            diverted.insert_header(name.clone(), value.clone());
        }
        diverted.insert_header("x-host", request.url().host_str().unwrap_or_default().to_owned());
        diverted.set_body(request.body());
        self.requests.answer(&diverted).await
    }
}

fn tokens(address: SocketAddr, identity: Identity) -> AzureTokens {
    let diverted = Diverted { requests: Requests::new().expect("a client"), address };
    let made = AzureTokens::with_transport(SCOPE.to_owned(), identity, Arc::new(diverted));
    made.expect("an identity")
}

async fn ask(tokens: &AzureTokens) -> Result<AccessToken, TokenError> {
    tokio::time::timeout(PATIENCE, tokens.token()).await.expect("in time")
}

/// No process of the tests runs in an app service.
fn is_in_app_service() -> bool {
    std::env::var_os("IDENTITY_ENDPOINT").is_some()
}

#[tokio::test]
async fn the_managed_identity_of_a_machine_gives_a_token_that_is_kept() {
    if is_in_app_service() {
        return;
    }
    let body = r#"{"access_token":"hunter2","expires_on":"4070908800","resource":"r","token_type":"Bearer"}"#;
    let (address, requests) = stand_in(answer("200 OK", body)).await;
    let identity = Identity { client_id: Some("c-1".to_owned()), ..Identity::default() };
    let tokens = tokens(address, identity);
    for _ in 0..3 {
        let found = ask(&tokens).await.expect("a token");
        assert_eq!(found.token.expose(), "hunter2");
        assert_eq!(found.expires_at_ms, 4_070_908_800_000);
        assert!(!format!("{found:?} {tokens:?}").contains("hunter2"));
    }
    let requests = requests.lock().expect("a lock").clone();
    let [request] = requests.as_slice() else { panic!("one request: {requests:?}") };
    let request = request.to_lowercase();
    assert!(request.starts_with("get /metadata/identity/oauth2/token?"), "{request}");
    assert!(request.contains("x-host: 169.254.169.254") && request.contains("client_id=c-1"));
    assert!(request.contains("metadata: true"), "{request}");
    let resource = "resource=https%3a%2f%2fplant.servicebus.windows.net";
    assert!(request.contains(resource), "{request}");
}

fn workload_identity(token: &str) -> (tempfile::NamedTempFile, Identity) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), token).expect("written");
    let identity = Identity {
        federated_token_file: Some(file.path().to_owned()),
        client_id: Some("c-1".to_owned()),
        tenant_id: Some("t-1".to_owned()),
    };
    (file, identity)
}

#[tokio::test]
async fn a_workload_identity_shows_the_token_of_its_pod() {
    let body = r#"{"token_type":"Bearer","expires_in":3600,"ext_expires_in":3600,"access_token":"hunter2"}"#;
    let (address, requests) = stand_in(answer("200 OK", body)).await;
    let (_file, identity) = workload_identity("pod-token");
    let tokens = tokens(address, identity);
    assert_eq!(ask(&tokens).await.expect("a token").token.expose(), "hunter2");
    let request = requests.lock().expect("a lock").concat();
    assert!(request.starts_with("POST /t-1/oauth2/v2.0/token"), "{request}");
    assert!(request.contains("client_assertion=pod-token") && request.contains("client_id=c-1"));
    assert!(request.contains("plant.servicebus.windows.net%2F.default"), "{request}");
}

#[tokio::test]
async fn a_refusal_says_why_and_shows_no_secret() {
    let body = r#"{"error":"invalid_client","error_description":"AADSTS700016: no such application","error_codes":[700016],"timestamp":"t","trace_id":"t","correlation_id":"c"}"#;
    let (address, _requests) = stand_in(answer("401 Unauthorized", body)).await;
    let (_file, identity) = workload_identity("hunter2");
    let tokens = tokens(address, identity);
    let error = ask(&tokens).await.expect_err("refused");
    let text = format!("{error} {error:?}");
    assert!(text.contains(SCOPE) && text.contains("AADSTS700016"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    assert!(!error.to_string().contains(['\n', '\r']), "one line: {error}");
}

#[tokio::test]
async fn a_refusal_that_goes_on_and_on_is_cut() {
    let body = format!("{{\"error\":\"{}\"}}", "no ".repeat(ANSWER_BYTES_MAX / 6));
    let (address, _requests) = stand_in(answer("400 Bad Request", &body)).await;
    let (_file, identity) = workload_identity("x");
    let error = ask(&tokens(address, identity)).await.expect_err("refused").to_string();
    assert!(error.len() < 2 * REFUSAL_CHARS_MAX, "{} bytes", error.len());
}

#[tokio::test]
async fn an_answer_without_end_is_refused() {
    let body = "x".repeat(ANSWER_BYTES_MAX + 1);
    let (address, _requests) = stand_in(answer("200 OK", &body)).await;
    let requests = Requests::new().expect("a client");
    let url = format!("http://{address}/").parse().expect("a URL");
    let request = Request::new(url, azure_core::http::Method::Get);
    let answered = tokio::time::timeout(PATIENCE, requests.answer(&request)).await;
    let error = answered.expect("in time").expect_err("refused").to_string();
    assert!(error.contains("more than 262144 bytes"), "{error}");
}

#[test]
fn an_identity_that_lacks_its_file_is_told_at_the_start() {
    let (file, identity) = workload_identity("x");
    let path = file.path().display().to_string();
    drop(file);
    let error = AzureTokens::new(SCOPE.to_owned(), identity).expect_err("no file");
    assert!(error.to_string().contains(&path), "{error}");
    let identity = Identity::of_process("");
    assert_eq!(identity.client_id, None);
    assert_eq!(Identity::of_process("c-1").client_id.as_deref(), Some("c-1"));
}
