use super::token::AccessToken;
use super::*;
use crate::config::{Secret, Settings};

#[derive(Debug)]
struct Fixed(Result<&'static str, &'static str>);

#[async_trait::async_trait]
impl TokenProvider for Fixed {
    async fn token(&self) -> Result<AccessToken, TokenError> {
        let refused = |text: &str| TokenError::Identity(text.to_owned());
        let token = Secret::new(self.0.map_err(refused)?);
        Ok(AccessToken { token, expires_at_ms: 1_893_456_000_000 })
    }
}

fn context(provider: Fixed, runtime: &Handle) -> TopicContext {
    let tokens = Tokens { provider: Arc::new(provider), runtime: runtime.clone() };
    TopicContext { quiet: QuietContext::new("tests"), tokens: Some(tokens) }
}

#[test]
fn the_client_gets_a_token_on_its_own_thread_and_inside_of_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let runtime = runtime.expect("a runtime");
    let good = context(Fixed(Ok("a-token")), runtime.handle());
    let token = good.generate_oauth_token(None).expect("a token");
    assert_eq!((token.token.as_str(), token.lifetime_ms), ("a-token", 1_893_456_000_000));
    let inside = runtime.block_on(async { good.generate_oauth_token(None).map(|_| ()).is_ok() });
    assert!(inside);
    let bad = context(Fixed(Err("no identity here")), runtime.handle());
    let error = bad.generate_oauth_token(None).err().expect("none").to_string();
    assert!(error.contains("no identity here"), "{error}");
    let none = TopicContext { quiet: QuietContext::new("tests"), tokens: None };
    assert!(none.generate_oauth_token(None).is_err());
}

#[test]
fn an_event_hub_gets_nothing_of_the_brokers_of_kafka() {
    let mut alerts = Settings::load(None).expect("valid defaults").alerts;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text =
        "Endpoint=sb://plant.servicebus.windows.net/;SharedAccessKeyName=a;SharedAccessKey=k=";
    std::fs::write(file.path(), text).expect("written");
    alerts.event_hubs.connection_string_file = file.path().to_owned();
    let connection = alerts.event_hubs.connection().expect("valid").expect("on");
    let client = client_of_event_hub(&connection);
    let brokers = client.get("bootstrap.servers");
    assert_eq!(brokers, Some("plant.servicebus.windows.net:9093"));
    assert_eq!(client.get("sasl.password"), Some(text));
    assert_eq!(client.get("sasl.username"), Some("$ConnectionString"));
    assert_eq!(client.get("security.protocol"), Some("SASL_SSL"));
}
