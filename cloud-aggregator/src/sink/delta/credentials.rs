//! How the lake's storage in Azure is entered.
//!
//! A secret in a file that goes with each request as it is (account key, shared access signature, bearer token) is read anew for each
//! request: what is rotated counts at once, in the middle of the work. All other credentials are the library's, which gets new tokens
//! itself, and reads a federated token anew for each; it is told what Azure's hosts say in the environment and it does not look at.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use deltalake::DeltaTableError;
use deltalake::logstore::object_store::azure::{
    AzureAccessKey, AzureConfigKey, AzureCredential, MicrosoftAzureBuilder,
};
use deltalake::logstore::object_store::client::SpawnedReqwestConnector;
use deltalake::logstore::object_store::{self, CredentialProvider};
use deltalake::logstore::{ObjectStoreRef, StorageConfig, client_options_from_certificate};
use tracing::{info, warn};

use super::LakeError;
use crate::config::lake::{SecretKind, SharedAccessSignature, option_key};
use crate::config::{Secret, read_secret};

/// The library's name of the store in its errors.
const STORE: &str = "MicrosoftAzure";

/// A secret in a file, as it is at each request. `Debug` has nothing of it.
pub(super) struct FileCredential {
    kind: SecretKind,
    option: String,
    file: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    secret: Secret,
    credential: Arc<AzureCredential>,
    signature: Option<SharedAccessSignature>,
    /// What was last told about the file.
    told: Option<String>,
}

/// A credential that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("lake.storage-option-files.{option}: {}: {text}", file.display())]
struct Useless {
    option: String,
    file: PathBuf,
    text: String,
}

impl std::fmt::Debug for FileCredential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FileCredential").field("file", &self.file).finish_non_exhaustive()
    }
}

impl FileCredential {
    /// Reads an option's file; `None` if the option is no secret of this kind.
    pub(super) fn open(option: &str, file: &std::path::Path) -> Result<Option<Self>, LakeError> {
        let Some(kind) = SecretKind::of_option(option) else { return Ok(None) };
        let held = read_secret(file).and_then(|secret| Held::new(kind, secret));
        let held =
            held.map_err(|text| LakeError::OptionFile { option: option.to_owned(), text })?;
        let (option, file) = (option.to_owned(), file.to_owned());
        Ok(Some(Self { kind, option, file, held: Mutex::new(held) }))
    }

    /// The credential by what the file has now. One that cannot be read, as in the middle of a replacement, leaves the last one in
    /// force.
    fn take(
        &self,
        read: Result<Secret, String>,
        now: SystemTime,
    ) -> Result<Arc<AzureCredential>, Useless> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |secret: &Secret| secret.expose() == held.secret.expose();
        match read {
            Ok(secret) if is_same(&secret) => held.told = None,
            Ok(secret) => match Held::new(self.kind, secret) {
                Ok(new) => {
                    let ends_at = new.signature.as_ref().and_then(|signature| signature.ends_at);
                    let file = self.file.display();
                    info!(option = self.option, %file, ?ends_at, "the lake's secret was replaced");
                    *held = new;
                }
                Err(text) => self.tell(&mut held, text),
            },
            Err(text) => self.tell(&mut held, text),
        }
        let signature = held.signature.as_ref();
        signature.map_or(Ok(()), |signature| signature.check_end(now)).map_err(|text| {
            let (option, file) = (self.option.clone(), self.file.clone());
            Useless { option, file, text }
        })?;
        Ok(Arc::clone(&held.credential))
    }

    /// Once, and not at each request.
    fn tell(&self, held: &mut Held, text: String) {
        if held.told.as_ref() != Some(&text) {
            let (option, file) = (&self.option, self.file.display());
            warn!(option, %file, text, "the lake's secret cannot be read, the last one stays in force");
            held.told = Some(text);
        }
    }
}

impl Held {
    fn new(kind: SecretKind, secret: Secret) -> Result<Self, String> {
        let mut signature = None;
        let credential = match kind {
            SecretKind::AccountKey => {
                // The library's error would show the byte that is wrong.
                let key = AzureAccessKey::try_new(secret.expose());
                AzureCredential::AccessKey(key.map_err(|_| "is no account key: no base64")?)
            }
            SecretKind::Signature => {
                let parsed = SharedAccessSignature::parse(secret.expose())?;
                let pairs = parsed.pairs.clone();
                signature = Some(parsed);
                AzureCredential::SASToken(pairs)
            }
            SecretKind::Token => AzureCredential::BearerToken(secret.expose().to_owned()),
        };
        Ok(Self { secret, credential: Arc::new(credential), signature, told: None })
    }
}

#[async_trait]
impl CredentialProvider for FileCredential {
    type Credential = AzureCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AzureCredential>> {
        let failed = |source| object_store::Error::Generic { store: STORE, source };
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || read_secret(&file)).await;
        let read = read.map_err(|error| failed(error.into()))?;
        self.take(read, SystemTime::now()).map_err(|error| failed(error.into()))
    }
}

/// The storage behind an address of Azure, entered by a secret in a file; all tables of a lake share it.
pub(super) fn open_store(
    url: &str,
    options: &BTreeMap<String, String>,
    credential: FileCredential,
) -> Result<ObjectStoreRef, DeltaTableError> {
    let config = StorageConfig::parse_options(options)?;
    let mut builder = MicrosoftAzureBuilder::new()
        .with_url(url)
        .with_retry(config.retry)
        .with_credentials(Arc::new(credential));
    if let Some(runtime) = &config.runtime {
        builder = builder.with_http_connector(SpawnedReqwestConnector::new(runtime.get_handle()));
    }
    if let Some(path) = config.certificate.and_then(|certificate| certificate.certificate_path) {
        builder = builder.with_client_options(client_options_from_certificate(&path)?);
    }
    for (name, value) in with_variables(options) {
        if let Some(key) = option_key(&name) {
            builder = builder.with_config(key, without_slash(&value));
        }
    }
    Ok(Arc::new(builder.build()?))
}

/// Adds what hosts of Azure say in the environment: where App Service and Container Apps give tokens of a managed identity, and the
/// authority of a workload identity, which AKS writes with a slash at its end.
pub(super) fn add_host_options(
    options: &mut HashMap<String, String>,
    variable: impl Fn(&str) -> Option<String>,
) {
    let has = |wanted: AzureConfigKey, options: &HashMap<String, String>| {
        options.keys().any(|name| option_key(name) == Some(wanted))
    };
    let names = ["AZURE_MSI_ENDPOINT", "AZURE_IDENTITY_ENDPOINT"];
    if !has(AzureConfigKey::MsiEndpoint, options)
        && names.iter().all(|name| variable(name).is_none())
        && let Some(endpoint) = variable("IDENTITY_ENDPOINT")
    {
        options.insert("azure_msi_endpoint".to_owned(), endpoint);
    }
    if !has(AzureConfigKey::AuthorityHost, options)
        && let Some(host) = variable("AZURE_AUTHORITY_HOST")
    {
        options.insert("azure_authority_host".to_owned(), without_slash(&host).to_owned());
    }
}

/// Whether options or the environment choose the emulator, for which the library knows no other credentials than its own.
pub(super) fn is_emulator(options: &BTreeMap<String, String>) -> bool {
    let mut chosen = false;
    for (name, value) in with_variables(options) {
        if option_key(&name) == Some(AzureConfigKey::UseEmulator) {
            let value = value.to_ascii_lowercase();
            chosen = ["1", "true", "on", "yes", "y"].contains(&value.as_str());
        }
    }
    chosen
}

/// What the environment names, and behind it the options, which win.
fn with_variables(
    options: &BTreeMap<String, String>,
) -> impl Iterator<Item = (String, String)> + '_ {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("AZURE_"))?;
        Some((name, value.into_string().ok()?))
    });
    variables.chain(options.iter().map(|(name, value)| (name.clone(), value.clone())))
}

fn without_slash(value: &str) -> &str {
    match value.starts_with("http://") || value.starts_with("https://") {
        true => value.trim_end_matches('/'),
        false => value,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn signature(end: &str, sig: &str) -> String {
        format!("sp=racwdl&se={end}&sv=2023-11-03&sr=c&sig={sig}")
    }

    fn sig_of(credential: &AzureCredential) -> Option<&str> {
        let AzureCredential::SASToken(pairs) = credential else { return None };
        pairs.iter().find(|(name, _)| name == "sig").map(|(_, value)| value.as_str())
    }

    #[tokio::test]
    async fn a_signature_is_taken_from_its_file_at_each_request_and_told_when_it_has_expired() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("sas");
        std::fs::write(&file, signature("2999-01-01T00:00:00Z", "first")).expect("written");
        let credential = FileCredential::open("azure_storage_sas_key", &file);
        let credential = credential.expect("it can be read").expect("a signature");
        let first = credential.get_credential().await.expect("valid");
        assert_eq!(sig_of(&first), Some("first"));
        // A file that is being replaced.
        std::fs::write(&file, "").expect("written");
        assert_eq!(sig_of(&credential.get_credential().await.expect("the last")), Some("first"));
        std::fs::write(&file, signature("2001-01-01T00:00:00Z", "past")).expect("written");
        let error = credential.get_credential().await.expect_err("expired");
        let text = crate::causes::describe(&error);
        assert!(text.contains("has expired at 2001-01-01T00:00:00Z"), "{text}");
        assert!(text.contains("lake.storage-option-files.azure_storage_sas_key"), "{text}");
        std::fs::write(&file, signature("2999-01-01T00:00:00Z", "second")).expect("written");
        assert_eq!(sig_of(&credential.get_credential().await.expect("new")), Some("second"));
        assert!(!format!("{credential:?} {text}").contains("past"), "{credential:?} {text}");
    }

    #[test]
    fn a_signature_that_ends_is_refused_from_its_moment_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("sas");
        std::fs::write(&file, signature("1970-01-01T01:00:00Z", "x")).expect("written");
        let opened = FileCredential::open("sas_token", &file).expect("it can be read");
        let credential = opened.expect("a signature");
        for (second, is_valid) in [(3_599, true), (3_600, false)] {
            let now = UNIX_EPOCH + Duration::from_secs(second);
            assert_eq!(credential.take(read_secret(&file), now).is_ok(), is_valid, "{second}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_told_without_it_and_other_options_are_the_librarys() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key");
        std::fs::write(&file, "geheim!").expect("written");
        let error = FileCredential::open("account_key", &file).expect_err("no base64");
        assert!(!error.to_string().contains("geheim"), "{error}");
        assert!(FileCredential::open("azure_client_secret", &file).expect("not read").is_none());
    }

    #[test]
    fn hosts_of_azure_are_understood_and_options_win() {
        let variables = BTreeMap::from([
            ("IDENTITY_ENDPOINT", "http://127.0.0.1:42356/msi/token"),
            ("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/"),
        ]);
        let variable = |name: &str| variables.get(name).map(|value| (*value).to_owned());
        let mut options = HashMap::new();
        add_host_options(&mut options, variable);
        assert_eq!(options["azure_msi_endpoint"], "http://127.0.0.1:42356/msi/token");
        assert_eq!(options["azure_authority_host"], "https://login.microsoftonline.com");
        let set = [("msi_endpoint", "a"), ("authority_host", "b")];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut options = HashMap::from(set.clone());
        add_host_options(&mut options, variable);
        assert_eq!(options, HashMap::from(set));
    }
}
