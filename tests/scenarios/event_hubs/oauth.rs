//! Tokens of an Azure identity, by SASL OAUTHBEARER: who gives them refuses or gives wrong ones, they live for seconds, they are those
//! of an app or of a pod. The broker checks each one as it would those of Microsoft Entra ID.

use super::token_endpoint::{
    Answer, IDENTITY_HEADER, ISSUER, OTHER_AUDIENCE, SigningKey, TokenEndpoint,
};
use super::*;

/// Long enough for a whole scenario.
const HOUR_SECONDS: i64 = 3_600;
/// Short enough to be renewed several times in a scenario; a client asks anew after four fifths of it.
const SHORT_SECONDS: i64 = 15;
/// Tokens after which enough were renewed: the first ones have expired by then.
const TOKENS: usize = 4;
/// Alerts, one after the other, in which that many tokens must have been given.
const ALERTS_MAX: usize = 60;
/// Of a service account in its pod.
const POD_TOKEN: &str = "the-token-of-the-pod.which-is-as-good-as-a-password";
const OTHER_POD_TOKEN: &str = "the-token-of-another-pod.which-is-nobody-here";

/// Who asks for the tokens.
#[derive(Clone, Copy)]
enum Identity {
    /// An app with a managed identity.
    Managed,
    /// A pod with a workload identity.
    Workload,
}

/// An Event Hub that takes tokens, and whoever gives them.
struct Tokens {
    event_hub: EventHub,
    endpoint: TokenEndpoint,
}

impl Tokens {
    fn start(name: &str, identity: Identity, answer: Answer) -> anyhow::Result<Self> {
        let mut plant = Plant::new(name)?;
        let key = SigningKey::generate()?;
        let dir = plant.dir.join("event-hubs");
        let key_set = key.key_set();
        let kafka = SecuredKafka::start_with_tokens(&dir, ISSUER, &key_set, SERVICE_BATCH_BYTES)?;
        kafka.plain().create_topics(&[&plant.topic("alerts")], 1)?;
        let mut trusted = std::fs::read_to_string(kafka.authority())?;
        let settings = &mut plant.aggregator_settings;
        let endpoint = match identity {
            Identity::Managed => TokenEndpoint::managed(&kafka.audience(), key)?,
            Identity::Workload => {
                let (endpoint, certificate) =
                    TokenEndpoint::workload(&kafka.audience(), key, POD_TOKEN)?;
                trusted += &certificate;
                let file = plant.dir.join("pod-token").display().to_string();
                settings.environment.push(("AZURE_FEDERATED_TOKEN_FILE".to_owned(), file));
                endpoint
            }
        };
        endpoint.set_answer(answer);
        let certificates = plant.dir.join("trusted.pem");
        std::fs::write(&certificates, trusted)?;
        let certificates = ("SSL_CERT_FILE".to_owned(), certificates.display().to_string());
        settings.environment.push(certificates);
        settings.environment.extend(endpoint.environment());
        settings.more = format!(
            "{HOT}[alerts.event-hubs]\nauthentication = \"oauthbearer\"\nnamespace = \"{}\"\n\
             compression = \"gzip\"\n",
            kafka.namespace()
        );
        Ok(Self { event_hub: EventHub { plant, kafka }, endpoint })
    }

    fn pod_token_file(&self) -> PathBuf {
        self.event_hub.plant.dir.join("pod-token")
    }

    /// The alerts stay owed, and the program tells what whoever gives tokens has said.
    fn wait_refused(
        &self,
        aggregator: &mut CloudAggregator,
        owed: u64,
        description: &str,
    ) -> anyhow::Result<()> {
        self.event_hub.wait_owed(aggregator, owed, "Authentication failure")?;
        eventually(&format!("it says why there is no token: {description}"), DEADLINE, || {
            let log = log_of(aggregator);
            let is_told = log.lines().any(|line| {
                line.contains("no token for the topic of alerts") && line.contains(description)
            });
            ensure!(is_told, "{log}");
            Ok(())
        })?;
        self.check_no_token(aggregator)
    }

    /// Neither the log nor a page has a part of a token or of what they are given for.
    fn check_no_token(&self, aggregator: &mut CloudAggregator) -> anyhow::Result<()> {
        let text = log_of(aggregator) + &aggregator.metrics()? + &aggregator.get("/status")?.1;
        for token in self.endpoint.tokens() {
            for part in token.split('.') {
                ensure!(!text.contains(part), "a part of a token is told");
            }
        }
        for secret in [IDENTITY_HEADER, POD_TOKEN, OTHER_POD_TOKEN] {
            ensure!(!text.contains(secret), "what tokens are given for is told");
        }
        Ok(())
    }
}

#[test]
fn alerts_wait_for_a_token_that_the_broker_takes_and_arrive_once() -> anyhow::Result<()> {
    let unknown = Answer::Refusal(401, "AADSTS700016: no such application");
    let tokens = Tokens::start("event-hub-refused", Identity::Managed, unknown)?;
    let Tokens { event_hub, endpoint } = &tokens;
    let mut aggregator = event_hub.plant.start_aggregator()?;
    event_hub.heat("press-1", 2)?;
    tokens.wait_refused(&mut aggregator, 1, "AADSTS700016")?;
    // Counting does not wait with them.
    event_hub.heat("press-2", 2)?;
    let findings = "SELECT count(*) FROM anomalies WHERE is_anomaly";
    event_hub.plant.wait_for_count(findings, 2)?;

    endpoint.set_answer(Answer::Refusal(400, "no such identity"));
    tokens.wait_refused(&mut aggregator, 2, "has not been assigned to this resource")?;
    ensure!(endpoint.tokens().is_empty(), "a token was given");

    let before = complaints(&log_of(&mut aggregator), "Authentication failure");
    endpoint.set_answer(Answer::WrongAudience(SHORT_SECONDS));
    eventually("the broker refuses the audience", LONG_DEADLINE, || {
        let log = event_hub.kafka.log();
        let is_refused = |line: &str| {
            line.contains("Could not validate the access token") && line.contains(OTHER_AUDIENCE)
        };
        ensure!(log.lines().any(is_refused), "{} tokens given", endpoint.tokens().len());
        let told = complaints(&log_of(&mut aggregator), "Authentication failure") - before;
        ensure!(told > 0, "the program does not tell");
        Ok(())
    })?;
    event_hub.wait_owed(&mut aggregator, 2, "Authentication failure")?;
    ensure!(event_hub.records()?.is_empty(), "a token for something else was taken");

    endpoint.set_answer(Answer::Token(HOUR_SECONDS));
    event_hub.wait_records(2)?;
    event_hub.heat("press-3", 2)?;
    event_hub.check(&["press-1", "press-2", "press-3"])?;
    tokens.check_no_token(&mut aggregator)?;
    let letters = event_hub.plant.lake().count("SELECT count(*) FROM dead_letters")?;
    ensure!(letters == 0, "{letters} dead letters");
    Ok(())
}

#[test]
fn tokens_that_expire_are_renewed_and_no_alert_is_lost_when_they_are_not() -> anyhow::Result<()> {
    let short = Answer::Token(SHORT_SECONDS);
    let tokens = Tokens::start("event-hub-short", Identity::Managed, short)?;
    let Tokens { event_hub, endpoint } = &tokens;
    let mut aggregator = event_hub.plant.start_aggregator()?;
    let mut machines: Vec<String> = Vec::new();
    while endpoint.tokens().len() < TOKENS {
        ensure!(machines.len() < ALERTS_MAX, "{} tokens", endpoint.tokens().len());
        machines.push(format!("press-{}", machines.len()));
        event_hub.heat(&machines[machines.len() - 1], 2)?;
        event_hub.wait_records(machines.len())?;
    }
    let given: BTreeSet<String> = endpoint.tokens().into_iter().collect();
    ensure!(given.len() >= TOKENS, "the same token again");
    let letters = event_hub.plant.lake().count("SELECT count(*) FROM dead_letters")?;
    ensure!(letters == 0, "{letters} dead letters");

    // The broker ends a connection whose token has expired.
    endpoint.set_answer(Answer::Refusal(400, "no such identity"));
    eventually("the last token has expired", DEADLINE, || {
        ensure!(endpoint.all_have_expired()?, "it is good yet");
        Ok(())
    })?;
    let down = "AllBrokersDown";
    let before = complaints(&log_of(&mut aggregator), down);
    let arrived = machines.len();
    machines.push("press-late".to_owned());
    event_hub.heat("press-late", 2)?;
    eventually("it cannot connect", LONG_DEADLINE, || {
        let told = complaints(&log_of(&mut aggregator), down) - before;
        ensure!(told > 0, "it does not say so");
        Ok(())
    })?;
    tokens.wait_refused(&mut aggregator, 1, "has not been assigned to this resource")?;
    let there = event_hub.records()?.len();
    ensure!(there == arrived, "{there} of {arrived}: one came without a token");

    endpoint.set_answer(short);
    let names: Vec<&str> = machines.iter().map(String::as_str).collect();
    event_hub.check(&names)?;
    tokens.check_no_token(&mut aggregator)
}

#[test]
fn a_pod_gets_tokens_for_the_one_of_its_service_account() -> anyhow::Result<()> {
    let good = Answer::Token(HOUR_SECONDS);
    let tokens = Tokens::start("event-hub-pod", Identity::Workload, good)?;
    let event_hub = &tokens.event_hub;
    std::fs::write(tokens.pod_token_file(), OTHER_POD_TOKEN)?;
    let mut aggregator = event_hub.plant.start_aggregator()?;
    event_hub.heat("press-1", 2)?;
    tokens.wait_refused(&mut aggregator, 1, "AADSTS70021")?;
    ensure!(tokens.endpoint.tokens().is_empty(), "another pod has got a token");
    stop(aggregator)?;

    std::fs::write(tokens.pod_token_file(), POD_TOKEN)?;
    let mut aggregator = event_hub.plant.start_aggregator()?;
    event_hub.heat("press-2", 2)?;
    event_hub.check(&["press-1", "press-2"])?;
    tokens.check_no_token(&mut aggregator)
}
