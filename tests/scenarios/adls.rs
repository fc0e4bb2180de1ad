//! The lake in a container of Azure Data Lake Storage (`abfss://`), entered by each kind of credential; the storage throttles, cuts
//! connections in the middle of a commit, lets two writers race. Each record is in the lake once, and the windows are those that a batch
//! counts.
//!
//! The storage is Azurite: it checks keys and signatures wholly, of tokens everything but the signature, roles not at all. Tokens come
//! from a stand-in of what issues them in Azure.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use e2e_tests::azurite::{ACCOUNT, ACCOUNT_KEY, Azurite, container_signature, url_at};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::http_proxy::{FaultRule, HttpFault, HttpProxy};
use e2e_tests::random::Random;
use e2e_tests::tokens::{CLIENT_ID, IDENTITY_HEADER, TENANT_ID, TokenIssuer};

use crate::exactly_once::kill_at_random;
use crate::feeder::{Feeder, number};
use crate::plant::{DEADLINE, Plant, now};
use crate::storage_faults::WRITES;

const HOUR: Duration = Duration::from_secs(3600);
/// A client asks for another token when less than 5 minutes are left: always.
const SHORT: Duration = Duration::from_secs(200);
const KILLS: u64 = 10;
/// More than the client library tries again.
const OUTAGE: u32 = 12;
const CONFLICTS: usize = 3;
/// Much shorter than the time that an operation may take.
const MEETING: Duration = Duration::from_secs(2);
const EXIT_STORAGE: i32 = 74;
const ENDPOINT: &str = "azure_storage_endpoint";
/// So that a test needs no certificate; the library refuses `http` otherwise.
const HTTP: (&str, &str) = ("azure_allow_http", "true");
/// A key that is no other's.
const WRONG_KEY: &str = "d3Jvbmd3cm9uZ3dyb25nd3Jvbmd3cm9uZ3dyb25nd3Jvbmc=";
/// Of no identity.
const OTHER_HEADER: &str = "identity-header-0000";
/// Whatever those say that have a secret in their hands.
const LOG_OF_LIBRARIES: &str = "info,object_store=debug,deltalake=debug,deltalake_core=debug,\
                                deltalake_azure=debug,reqwest=debug,hyper=debug";
/// All that the aggregator does.
const PERMISSIONS: &str = "racwdl";

/// A plant whose lake is a container of Azurite behind a proxy.
struct Site {
    plant: Plant,
    feeder: Feeder,
    proxy: HttpProxy,
    _azurite: Azurite,
}

impl Site {
    /// Without TLS; clients reach the storage through the proxy.
    fn plain(name: &str) -> anyhow::Result<Self> {
        let plant = Plant::new(name)?;
        let azurite = Azurite::start(&plant.dir.join("azurite"))?;
        let proxy = HttpProxy::start(azurite.port())?;
        let endpoint = url_at(proxy.port());
        Self::build(plant, azurite, proxy, &[(ENDPOINT, &endpoint), HTTP])
    }

    /// Within TLS, where tokens are taken; the proxy is for the reader alone.
    fn with_tokens(name: &str) -> anyhow::Result<Self> {
        let plant = Plant::new(name)?;
        let azurite = Azurite::start_with_tokens(&plant.dir.join("azurite"))?;
        let (certificate, file) = azurite.certificate()?;
        let proxy = HttpProxy::start_before_tls(azurite.port(), certificate)?;
        let trusted = ("SSL_CERT_FILE".to_owned(), file.display().to_string());
        let endpoint = azurite.secure_url();
        let mut site = Self::build(plant, azurite, proxy, &[(ENDPOINT, &endpoint)])?;
        site.plant.aggregator_settings.environment.push(trusted);
        Ok(site)
    }

    fn build(
        mut plant: Plant,
        azurite: Azurite,
        proxy: HttpProxy,
        options: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        plant.lake_url = Some(format!("{}/lake/plant", url_at(proxy.port())));
        plant.lake().create_container()?;
        let settings = &mut plant.aggregator_settings;
        settings.lake = format!("abfss://lake@{ACCOUNT}.dfs.core.windows.net/plant").into();
        settings.more = "[lake.storage-options]\n".to_owned();
        for (name, value) in options {
            settings.more += &format!("{name} = \"{value}\"\n");
        }
        for (variable, value) in [
            ("AGGREGATOR__COUNTING__ALLOWED_LATENESS", "0s"),
            ("AGGREGATOR__LAKE__OPERATION_TIMEOUT", "20s"),
            ("AGGREGATOR__LAKE__RETRY_MAX", "1s"),
        ] {
            settings.environment.push((variable.to_owned(), value.to_owned()));
        }
        let feeder = Feeder::new(&plant);
        Ok(Self { plant, feeder, proxy, _azurite: azurite })
    }

    /// Puts a secret into a file of its own, in one step as Kubernetes does, and gives its path.
    fn write_secret(&self, name: &str, secret: &str) -> anyhow::Result<PathBuf> {
        let file = self.plant.dir.join(name);
        let written = self.plant.dir.join(format!("{name}.new"));
        std::fs::write(&written, format!("{secret}\n"))?;
        std::fs::rename(&written, &file)?;
        Ok(file)
    }

    /// Names a file with a secret among the settings.
    fn enter_by_file(&mut self, option: &str, secret: &str) -> anyhow::Result<()> {
        let file = self.write_secret(option, secret)?;
        self.plant.aggregator_settings.more +=
            &format!("[lake.storage-option-files]\n{option} = \"{}\"\n", file.display());
        Ok(())
    }

    /// One member of the group that comes back as itself.
    fn as_one_member(&mut self) {
        self.plant.aggregator_settings.more +=
            "[kafka.properties]\n\"group.instance.id\" = \"one\"\n";
    }

    fn set_variables(&mut self, variables: &[(&str, &str)]) {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.plant.aggregator_settings.environment.extend(variables);
    }

    /// Lets requests fail under load until so many have.
    fn fail(
        &mut self,
        (method, path): (&'static str, &str),
        fault: HttpFault,
        failing: u32,
    ) -> anyhow::Result<()> {
        let before = self.proxy.failed().len();
        let path = path.to_owned();
        self.proxy.fail(FaultRule { method, path: path.clone(), passing: 0, failing, fault });
        eventually("the requests have failed", 3 * DEADLINE, || {
            self.feeder.feed()?;
            let failed = self.proxy.failed().len() - before;
            ensure!(
                failed >= failing as usize,
                "{failed} of {failing}: {method} {path}: {fault:?}"
            );
            Ok(())
        })
    }

    /// Feeds until `/readyz` and `/status` say what is wrong.
    fn wait_for_problem(&mut self, aggregator: &CloudAggregator, text: &str) -> anyhow::Result<()> {
        eventually(&format!("the aggregator tells: {text}"), 3 * DEADLINE, || {
            self.feeder.feed()?;
            let (status, problems) = aggregator.get("/readyz")?;
            ensure!(status == 503 && problems.contains(text), "/readyz: {status} {problems}");
            let (_, page) = aggregator.get("/status")?;
            ensure!(page.contains(text), "/status: {page}");
            Ok(())
        })
    }
}

/// None of the secrets is in what a process has said, nor on its pages.
fn check_silence(aggregator: &mut CloudAggregator, secrets: &[String]) -> anyhow::Result<()> {
    let said = aggregator.process().stdout() + &aggregator.process().stderr();
    ensure!(!said.is_empty(), "it has said nothing");
    let pages = aggregator.get("/status")?.1 + &aggregator.metrics()?;
    for secret in secrets {
        ensure!(!said.contains(secret), "a secret is in the log");
        ensure!(!pages.contains(secret), "a secret is on a page");
    }
    Ok(())
}

/// What of a signature is secret, as it is sent and as it is.
fn secrets_of(signature: &str) -> anyhow::Result<[String; 2]> {
    let url = reqwest::Url::parse(&format!("http://signature/?{signature}"))?;
    let mut pairs = url.query_pairs().filter(|(name, _)| name == "sig");
    let (_, plain) = pairs.next().context("no signature")?;
    let (_, sent) = signature.split_once("sig=").context("no signature")?;
    Ok([plain.into_owned(), sent.to_owned()])
}

fn signature(permissions: &str, lasts: Duration, key: &str) -> anyhow::Result<String> {
    container_signature("lake", permissions, SystemTime::now() + lasts, key)
}

#[test]
fn by_the_account_key_each_row_is_there_once_though_the_aggregator_is_killed() -> anyhow::Result<()>
{
    let rounds = number("KILL_ROUNDS").unwrap_or(KILLS);
    let seed = number("KILL_SEED").unwrap_or_else(|| now().micros().cast_unsigned());
    eprintln!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let mut site = Site::plain("adls-key")?;
    site.enter_by_file("azure_storage_account_key", ACCOUNT_KEY)?;
    site.as_one_member();
    let mut random = Random::new(seed);
    site.feeder.feed()?;
    let mut aggregator = site.plant.start_aggregator()?;
    kill_at_random(&mut aggregator, &mut site.feeder, &mut random, rounds)?;
    aggregator.wait_ready()?;
    site.feeder.check(&site.plant)?;
    check_silence(&mut aggregator, &[ACCOUNT_KEY.to_owned()])
}

#[test]
fn by_a_managed_identity_each_row_is_there_once() -> anyhow::Result<()> {
    let issuer = TokenIssuer::start(HOUR)?;
    let mut site = Site::with_tokens("adls-identity")?;
    site.as_one_member();
    // As Container Apps and App Service set them.
    site.set_variables(&[
        ("IDENTITY_ENDPOINT", &issuer.identity_endpoint()),
        ("IDENTITY_HEADER", IDENTITY_HEADER),
    ]);
    site.feeder.feed()?;
    let mut aggregator = site.plant.start_aggregator()?;
    site.feeder.check(&site.plant)?;
    aggregator.process().kill()?;
    site.feeder.feed()?;
    aggregator.restart()?;
    aggregator.wait_ready()?;
    site.feeder.check(&site.plant)?;
    let tokens = issuer.tokens();
    ensure!(!tokens.is_empty(), "no token was asked for");
    assert_eq!(issuer.refused(), Vec::<String>::new());
    check_silence(&mut aggregator, &[&tokens[..], &[IDENTITY_HEADER.to_owned()]].concat())
}

#[test]
fn by_a_workload_identity_each_row_is_there_once_and_another_assertion_is_taken_from_its_file()
-> anyhow::Result<()> {
    let issuer = TokenIssuer::start(SHORT)?;
    let mut site = Site::with_tokens("adls-workload")?;
    site.as_one_member();
    let (first, second) = ("assertion-first".to_owned(), "assertion-second".to_owned());
    issuer.trust(&first);
    let file = site.write_secret("assertion", &first)?;
    // As Kubernetes Service sets them; its issuer is within TLS.
    site.set_variables(&[
        ("AZURE_CLIENT_ID", CLIENT_ID),
        ("AZURE_TENANT_ID", TENANT_ID),
        ("AZURE_FEDERATED_TOKEN_FILE", &file.display().to_string()),
        ("AZURE_AUTHORITY_HOST", &issuer.authority_host()),
        ("AZURE_ALLOW_HTTP", "true"),
    ]);
    site.feeder.feed()?;
    let mut aggregator = site.plant.start_aggregator()?;
    site.feeder.check(&site.plant)?;
    assert_eq!(issuer.refused(), Vec::<String>::new());
    issuer.trust(&second);
    site.wait_for_problem(&aggregator, "knows no federated credential")?;
    site.write_secret("assertion", &second)?;
    aggregator.wait_ready()?;
    site.feeder.feed()?;
    site.feeder.check(&site.plant)?;
    ensure!(aggregator.process().is_running()?, "it has ended:\n{}", aggregator.process().tail());
    check_silence(&mut aggregator, &[&issuer.tokens()[..], &[first, second]].concat())
}

#[test]
fn a_signature_that_is_refused_is_told_and_a_new_one_in_its_file_is_taken_without_a_restart()
-> anyhow::Result<()> {
    let mut site = Site::plain("adls-signature")?;
    let option = "azure_storage_sas_key";
    let good = signature(PERMISSIONS, HOUR, ACCOUNT_KEY)?;
    site.enter_by_file(option, &good)?;
    site.as_one_member();
    site.set_variables(&[("AGGREGATOR__TELEMETRY__FILTER", LOG_OF_LIBRARIES)]);
    site.feeder.feed()?;
    let mut aggregator = site.plant.start_aggregator()?;
    site.feeder.check(&site.plant)?;
    let mut secrets = secrets_of(&good)?.to_vec();
    let ends_soon = Duration::from_secs(5);
    for (permissions, lasts, key, told) in [
        (PERMISSIONS, ends_soon, ACCOUNT_KEY, "signature has expired at"),
        (PERMISSIONS, HOUR, WRONG_KEY, "does not accept the credential"),
        ("rl", HOUR, ACCOUNT_KEY, "one of the permissions racwdl"),
    ] {
        let bad = signature(permissions, lasts, key)?;
        secrets.extend(secrets_of(&bad)?);
        site.write_secret(option, &bad)?;
        site.wait_for_problem(&aggregator, told)?;
        let new = signature(PERMISSIONS, HOUR, ACCOUNT_KEY)?;
        secrets.extend(secrets_of(&new)?);
        site.write_secret(option, &new)?;
        aggregator.wait_ready()?;
        site.feeder.feed()?;
        site.feeder.check(&site.plant)?;
    }
    ensure!(aggregator.process().is_running()?, "it has ended:\n{}", aggregator.process().tail());
    check_silence(&mut aggregator, &secrets)
}

#[test]
fn a_storage_that_throttles_each_kind_of_request_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let mut site = Site::plain("adls-throttled")?;
    site.enter_by_file("azure_storage_account_key", ACCOUNT_KEY)?;
    site.as_one_member();
    // State files are deleted at once, and lists of them asked for.
    site.set_variables(&[("AGGREGATOR__LAKE__STATE_GRACE", "0s")]);
    site.feeder.feed()?;
    let mut aggregator = site.plant.start_aggregator()?;
    for path in WRITES {
        site.fail(("PUT", path), HttpFault::Status(503), OUTAGE)?;
    }
    for request in [("GET", "comp=list"), ("GET", "_delta_log"), ("", "/plant/")] {
        site.fail(request, HttpFault::Status(503), OUTAGE)?;
        site.fail(request, HttpFault::Status(429), 2)?;
    }
    site.feeder.feed()?;
    site.feeder.check(&site.plant)?;
    aggregator.wait_ready()
}

#[test]
fn a_connection_that_is_reset_in_the_middle_of_a_commit_loses_and_doubles_nothing()
-> anyhow::Result<()> {
    let mut site = Site::plain("adls-reset")?;
    site.enter_by_file("azure_storage_account_key", ACCOUNT_KEY)?;
    site.as_one_member();
    site.feeder.feed()?;
    let mut aggregator = site.plant.start_aggregator()?;
    for path in WRITES {
        for failing in [1, 2] {
            site.fail(("PUT", path), HttpFault::Reset, failing)?;
            site.fail(("PUT", path), HttpFault::AnswerReset, failing)?;
        }
        // The whole storage is gone after one of the writes.
        site.fail(("PUT", path), HttpFault::AnswerReset, 1)?;
        site.fail(("", "/lake"), HttpFault::Reset, OUTAGE)?;
    }
    site.feeder.feed()?;
    site.feeder.check(&site.plant)?;
    aggregator.wait_ready()
}

#[test]
fn two_instances_that_race_for_a_version_of_a_table_lose_and_double_nothing() -> anyhow::Result<()>
{
    let mut site = Site::plain("adls-race")?;
    site.enter_by_file("azure_storage_account_key", ACCOUNT_KEY)?;
    site.set_variables(&[("AGGREGATOR__TRIGGER__PROCESSING_TIME", "100ms")]);
    site.feeder.feed()?;
    let mut first = site.plant.start_aggregator()?;
    let dir = site.plant.dir.join("second");
    let mut second = CloudAggregator::start(&dir, &site.plant.aggregator_settings)?;
    second.wait_ready()?;
    let proxy = site.proxy.clone();
    // Both instances write while they are fed: each waits for the other one to come to the same version.
    proxy.fail(FaultRule {
        method: "PUT",
        path: "/telemetry/_delta_log/".to_owned(),
        passing: 0,
        failing: u32::MAX,
        fault: HttpFault::Meet(MEETING),
    });
    // The second one of two writes with `If-None-Match: *`.
    let conflicts = || {
        let answered = proxy.answered().into_iter();
        let refused = answered.filter(|answered| matches!(answered.status, 409 | 412));
        refused.filter(|answered| answered.path.contains("/telemetry/_delta_log/")).count()
    };
    eventually("versions were taken by the other one", 2 * DEADLINE, || {
        site.feeder.feed()?;
        let conflicts = conflicts();
        ensure!(conflicts >= CONFLICTS, "{conflicts} of {CONFLICTS}");
        Ok(())
    })?;
    site.feeder.check(&site.plant)?;
    first.wait_ready()?;
    second.wait_ready()?;
    let races_of = |one: &CloudAggregator| one.metric("aggregator_lost_races_total");
    let races = races_of(&first)? + races_of(&second)?;
    eprintln!("{} versions were refused, {races} epochs were void", conflicts());
    Ok(())
}

/// Starts an aggregator that cannot enter its lake, and gives what it says at its end.
fn refused_start(site: &Site, name: &str) -> anyhow::Result<String> {
    let dir = site.plant.dir.join(name);
    let mut aggregator = CloudAggregator::start(&dir, &site.plant.aggregator_settings)?;
    let status = aggregator.process().wait(DEADLINE)?;
    let said = aggregator.process().stdout() + &aggregator.process().stderr();
    ensure!(status.code() == Some(EXIT_STORAGE), "{name}: {status}:\n{said}");
    Ok(said)
}

#[test]
fn a_storage_that_cannot_be_entered_is_told_at_the_start_with_what_to_do() -> anyhow::Result<()> {
    let mut site = Site::plain("adls-refused")?;
    site.set_variables(&[("AGGREGATOR__LAKE__OPERATION_TIMEOUT", "30s")]);
    let settings = site.plant.aggregator_settings.clone();
    let (key, sas) = ("azure_storage_account_key", "azure_storage_sas_key");
    let expired = container_signature("lake", PERMISSIONS, SystemTime::now() - HOUR, ACCOUNT_KEY)?;
    let read_only = signature("rl", HOUR, ACCOUNT_KEY)?;
    let forged = signature(PERMISSIONS, HOUR, WRONG_KEY)?;
    for (name, option, secret, told) in [
        ("wrong-key", key, WRONG_KEY, "does not accept the credential"),
        ("no-key", key, "not-base-64!", "is no account key"),
        ("expired", sas, expired.as_str(), "put a new one into its file"),
        ("read-only", sas, read_only.as_str(), "Storage Blob Data Contributor"),
        ("forged", sas, forged.as_str(), "does not accept the credential"),
    ] {
        site.plant.aggregator_settings = settings.clone();
        site.enter_by_file(option, secret)?;
        let said = refused_start(&site, name)?;
        ensure!(said.contains(told), "{name}: {said}");
        for secret in secrets_of(secret).map_or_else(|_| vec![secret.to_owned()], Vec::from) {
            ensure!(!said.contains(&secret), "{name}: the secret is in the log");
        }
    }
    site.plant.aggregator_settings = settings.clone();
    site.enter_by_file(key, ACCOUNT_KEY)?;
    let entered = site.plant.aggregator_settings.clone();
    site.plant.aggregator_settings.lake =
        format!("abfss://nowhere@{ACCOUNT}.dfs.core.windows.net/plant").into();
    let said = refused_start(&site, "no-container")?;
    ensure!(said.contains("the container of lake.location is not there"), "{said}");
    site.plant.aggregator_settings = entered;
    let here = url_at(site.proxy.port());
    let more = &mut site.plant.aggregator_settings.more;
    *more = more.replace(&here, "https://no-such-account.invalid");
    let said = refused_start(&site, "no-name")?;
    ensure!(said.contains("the name of the account in lake.location"), "{said}");
    Ok(())
}

#[test]
fn an_identity_without_a_token_is_told_at_the_start() -> anyhow::Result<()> {
    let issuer = TokenIssuer::start(HOUR)?;
    let mut site = Site::with_tokens("adls-no-token")?;
    let endpoint = issuer.identity_endpoint();
    site.set_variables(&[("IDENTITY_ENDPOINT", &endpoint), ("IDENTITY_HEADER", OTHER_HEADER)]);
    let said = refused_start(&site, "no-token")?;
    ensure!(said.contains("no token was issued for the storage"), "{said}");
    ensure!(!issuer.refused().is_empty() && issuer.tokens().is_empty(), "{:?}", issuer.refused());
    ensure!(!said.contains(OTHER_HEADER), "the header's value is in the log");
    Ok(())
}
