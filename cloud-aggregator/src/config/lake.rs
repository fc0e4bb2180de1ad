//! Credentials of the lake's storage, as far as they can be judged without asking it.
//!
//! The library passes over a credential that is not whole and takes the next kind, at last the machine's own identity; of two it takes
//! one. Both look like a missing role.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::time::SystemTime;

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use deltalake::logstore::object_store::azure::AzureConfigKey;

use super::{Fault, Lake, read_secret};

/// A secret that goes with each request as it is: another one can take its place at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecretKind {
    /// Key of the account.
    AccountKey,
    /// Shared access signature.
    Signature,
    /// Bearer token.
    Token,
}

impl SecretKind {
    /// Of an option of the storage.
    pub(crate) fn of_option(name: &str) -> Option<Self> {
        let key = option_key(name)?;
        let kinds = [
            (AzureConfigKey::AccessKey, Self::AccountKey),
            (AzureConfigKey::SasKey, Self::Signature),
            (AzureConfigKey::Token, Self::Token),
        ];
        kinds.into_iter().find(|(known, _)| *known == key).map(|(_, kind)| kind)
    }
}

/// What an option of the storage is in the library's words.
pub(crate) fn option_key(name: &str) -> Option<AzureConfigKey> {
    AzureConfigKey::from_str(&name.to_ascii_lowercase()).ok()
}

/// A shared access signature: what is put behind the `?` of each request
/// (<https://learn.microsoft.com/rest/api/storageservices/create-service-sas>).
pub(crate) struct SharedAccessSignature {
    /// Its fields, decoded.
    pub(crate) pairs: Vec<(String, String)>,
    /// When it ends. Not known when an access policy of the container says so.
    pub(crate) ends_at: Option<DateTime<Utc>>,
}

impl SharedAccessSignature {
    /// Reads one as the portal and the command line give it, with or without `?`; the text of an error has nothing of it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let query = text.trim().trim_start_matches('?');
        // One that somebody has decoded has a + that is meant as one.
        let url = format!("https://storage/?{}", query.replace('+', "%2B"));
        let refused = "is no shared access signature: it reads sv=…&se=…&sp=…&sig=…, without an address before it";
        let url = reqwest::Url::parse(&url).map_err(|_| refused.to_owned())?;
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let value_of = |name: &str| {
            let mut found =
                pairs.iter().filter(|(field, value)| field == name && !value.is_empty());
            found.next().map(|(_, value)| value.as_str())
        };
        if value_of("sv").is_none() || value_of("sig").is_none() {
            return Err(refused.to_owned());
        }
        let ends_at = value_of("se").and_then(end_of);
        Ok(Self { pairs, ends_at })
    }

    /// Why it is of no use any more.
    pub(crate) fn check_end(&self, now: SystemTime) -> Result<(), String> {
        match self.ends_at {
            Some(end) if end <= DateTime::<Utc>::from(now) => Err(format!(
                "the shared access signature has expired at {}: put a new one into its file, no restart is needed",
                end.to_rfc3339_opts(SecondsFormat::Secs, true)
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// The forms of ISO 8601 that the storage takes for `se`.
fn end_of(text: &str) -> Option<DateTime<Utc>> {
    let midnight = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    let forms = ["%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%dT%H:%MZ"];
    let moment = forms.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
    moment.or_else(midnight).map(|moment| moment.and_utc())
}

/// What is wrong with the credentials of a lake in Azure. `has_variable` tells whether the environment names an option too.
pub(super) fn credential_faults(
    lake: &Lake,
    has_variable: impl Fn(AzureConfigKey) -> bool,
) -> Vec<Fault> {
    if !lake.is_in_azure() {
        return Vec::new();
    }
    let mut faults = Vec::new();
    let plain = lake.storage_options.keys().map(|name| ("storage-options", name));
    let of_files = lake.storage_option_files.keys().map(|name| ("storage-option-files", name));
    let named: Vec<(String, AzureConfigKey)> = plain
        .chain(of_files)
        .filter_map(|(table, name)| Some((format!("lake.{table}.{name}"), option_key(name)?)))
        .collect();
    let keys: BTreeSet<&str> = named.iter().map(|(_, key)| text_of(key)).collect();
    let is_credential = |key: &AzureConfigKey| CREDENTIALS.contains(key);
    let mut credentials = named.iter().filter(|(_, key)| is_credential(key));
    if let Some((first, _)) = credentials.next() {
        faults.extend(credentials.map(|(path, _)| Fault {
            path: path.clone(),
            text: format!("is a second credential beside {first}: only one of them would count"),
        }));
    }
    for (path, key) in &named {
        let needs_client =
            matches!(key, AzureConfigKey::ClientSecret | AzureConfigKey::FederatedTokenFile);
        for needed in [AzureConfigKey::ClientId, AzureConfigKey::AuthorityId] {
            if needs_client && !keys.contains(text_of(&needed)) && !has_variable(needed) {
                let (path, needed) = (path.clone(), text_of(&needed).replace("_storage", ""));
                faults.push(Fault { path, text: format!("needs {needed} too") });
            }
        }
    }
    faults.extend(lake.signatures().filter_map(|(path, signature)| {
        let text = signature.err()?;
        Some(Fault { path, text })
    }));
    faults
}

impl Lake {
    fn is_in_azure(&self) -> bool {
        self.location.contains("://") && !self.location.starts_with("file://")
    }

    /// What can be used and will not work as it is: signatures that have expired. No fault, since a new one in the file mends it while
    /// the program runs.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let signatures = self.signatures().filter_map(|(path, signature)| {
            let text = signature.ok()?.check_end(now).err()?;
            Some(format!("{path}: {text}"))
        });
        signatures.collect()
    }

    /// The signatures in files, each with its key. A file that cannot be read is told of elsewhere.
    fn signatures(
        &self,
    ) -> impl Iterator<Item = (String, Result<SharedAccessSignature, String>)> + '_ {
        let files = self.storage_option_files.iter().filter(|(name, _)| {
            self.is_in_azure() && SecretKind::of_option(name) == Some(SecretKind::Signature)
        });
        files.filter_map(|(name, file)| {
            let secret = read_secret(file).ok()?;
            let signature = SharedAccessSignature::parse(secret.expose())
                .map_err(|text| format!("{} {text}", file.display()));
            Some((format!("lake.storage-option-files.{name}"), signature))
        })
    }
}

/// Each of them says who we are; they exclude each other.
const CREDENTIALS: [AzureConfigKey; 6] = [
    AzureConfigKey::AccessKey,
    AzureConfigKey::SasKey,
    AzureConfigKey::Token,
    AzureConfigKey::ClientSecret,
    AzureConfigKey::FederatedTokenFile,
    AzureConfigKey::UseAzureCli,
];

fn text_of(key: &AzureConfigKey) -> &str {
    key.as_ref()
}

/// Whether the environment sets an option, under any of its names.
pub(super) fn has_variable(key: AzureConfigKey) -> bool {
    std::env::vars_os().any(|(name, value)| {
        let name = name.to_str().filter(|name| name.starts_with("AZURE_") && !value.is_empty());
        name.and_then(option_key) == Some(key)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::config::tests::with;

    const SIGNATURE: &str =
        "sp=racwdl&st=2026-03-01T08:00:00Z&se=2026-03-01T09:00:00Z&sv=2023-11-03&sr=c&sig=a%2Bb%3D";

    fn at(text: &str) -> SystemTime {
        end_of(text).expect("a moment").into()
    }

    #[test]
    fn a_signature_is_read_as_it_is_given_and_ends_at_its_moment() {
        for text in [SIGNATURE.to_owned(), format!("?{SIGNATURE}\n"), SIGNATURE.replace("%2B", "+")]
        {
            let signature = SharedAccessSignature::parse(&text).expect(&text);
            assert_eq!(
                signature.pairs.last(),
                Some(&("sig".to_owned(), "a+b=".to_owned())),
                "{text}"
            );
            let end = at("2026-03-01T09:00Z");
            assert!(signature.check_end(end - Duration::from_secs(1)).is_ok());
            let text = signature.check_end(end).expect_err("it has ended");
            assert!(text.contains("expired at 2026-03-01T09:00:00Z"), "{text}");
        }
        for text in ["", "https://a.blob.core.windows.net/lake?sv=1", "sv=1&sig=", "one"] {
            assert!(SharedAccessSignature::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_read_in_each_form_that_the_storage_takes() {
        let whole = at("2026-03-01T00:00:00Z");
        for text in ["2026-03-01", "2026-03-01T00:00Z", "2026-03-01T00:00:00.0000000Z"] {
            assert_eq!(at(text), whole, "{text}");
        }
        assert_eq!(end_of("tomorrow"), None);
    }

    fn lake(options: &[&str], files: &[(&str, PathBuf)]) -> Lake {
        let mut lake = with("", &[]).expect("valid defaults").lake;
        lake.location = "abfss://lake@account.dfs.core.windows.net/plant".to_owned();
        lake.storage_options =
            options.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        lake.storage_option_files =
            files.iter().map(|(name, file)| ((*name).to_owned(), file.clone())).collect();
        lake
    }

    fn faults(
        options: &[&str],
        files: &[(&str, PathBuf)],
        variables: &[AzureConfigKey],
    ) -> Vec<String> {
        let faults = credential_faults(&lake(options, files), |key| variables.contains(&key));
        faults.into_iter().map(|fault| format!("{}: {}", fault.path, fault.text)).collect()
    }

    #[test]
    fn a_second_credential_and_one_that_is_not_whole_are_faults() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("sas");
        std::fs::write(&file, SIGNATURE).expect("written");
        let sas = [("azure_storage_sas_key", file.clone())];
        assert_eq!(faults(&[], &sas, &[]), Vec::<String>::new());
        assert_eq!(faults(&["azure_client_id", "azure_msi_endpoint"], &[], &[]).len(), 0);
        let two = faults(&["account_key"], &sas, &[]);
        assert_eq!(two.len(), 1, "{two:?}");
        assert!(two[0].contains("second credential beside lake.storage-options.account_key"));
        let half = faults(&["azure_federated_token_file", "azure_client_id"], &[], &[]);
        let needs = "lake.storage-options.azure_federated_token_file: needs azure_tenant_id too";
        assert_eq!(half, [needs]);
        let variables = [AzureConfigKey::ClientId, AzureConfigKey::AuthorityId];
        assert_eq!(faults(&["azure_client_secret"], &[], &variables).len(), 0);
        let lake = lake(&[], &sas);
        assert_eq!(lake.warnings(at("2026-03-01T08:59Z")).len(), 0);
        let warnings = lake.warnings(at("2026-03-01T09:00Z"));
        assert!(
            warnings[0].contains("azure_storage_sas_key: the shared access signature has expired")
        );
        assert!(!warnings[0].contains("sig="), "{warnings:?}");
        std::fs::write(&file, "geheim").expect("written");
        let broken = faults(&[], &sas, &[]);
        assert!(broken[0].contains("is no shared access signature"), "{broken:?}");
        assert!(!broken[0].contains("geheim"), "{broken:?}");
    }
}
