//! What a person can do about a refusal of Azure, by what it says.
//!
//! The codes are those of the Blob service
//! (<https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes>) and of Microsoft Entra ID
//! (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>), and texts of the library, which has them as text
//! alone. Azurite gives other codes than Azure for a signature that is not right.

use crate::causes::describe;

/// No table, no answer of the storage is longer; the text of a listing's error stands in front.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// What the text has, and the remedy. The first one counts: what has one cause alone stands before what has several.
const REMEDIES: [(&[&str], &str); 18] = [
    (
        &["Error reading federated token file"],
        "the federated token cannot be read: look at azure_federated_token_file and the service account's projected volume",
    ),
    (
        &["AADSTS700213", "AADSTS70021", "AADSTS700211", "AADSTS700212"],
        "Microsoft Entra ID knows no federated credential with this issuer, subject and audience: add it to the identity that \
         azure_client_id names",
    ),
    (
        &["AADSTS700016", "AADSTS90002", "AADSTS90023"],
        "Microsoft Entra ID does not know the client in this tenant: look at azure_client_id and azure_tenant_id",
    ),
    (
        &["AADSTS7000215", "AADSTS7000222"],
        "the client secret is wrong or has expired: put a new one into its file, and start again",
    ),
    (
        &["Error performing token request", "Error getting token response body"],
        "no token was issued for the storage: assign a managed identity to this workload or name another credential, see \
         lake.storage-options",
    ),
    (
        &["<Code>AuthorizationPermissionMismatch"],
        "the credential may not do this: the identity lacks the role Storage Blob Data Contributor on the container (a new role \
         counts after minutes), or the signature one of the permissions racwdl",
    ),
    (
        &["<Code>KeyBasedAuthenticationNotPermitted"],
        "the account takes no keys: allow them, or use an identity, see lake.storage-options",
    ),
    (
        &["Request date header too old", "<Code>RequestTimeTooSkewed", "Signature not valid yet"],
        "the clock of this machine is wrong: a request must not be older than 15 minutes",
    ),
    (
        &["Signature not valid in the specified time frame", "Signature expired"],
        "the shared access signature has expired or is not valid yet: put a new one into its file, no restart is needed",
    ),
    (
        &["<Code>AuthorizationSourceIPMismatch", "<Code>AuthorizationProtocolMismatch"],
        "the shared access signature is for other addresses or another protocol",
    ),
    (
        &["<Code>AuthorizationResourceTypeMismatch", "<Code>AuthorizationServiceMismatch"],
        "the shared access signature is for something else: it must be of the service blob and of containers and objects",
    ),
    (
        &[
            "Server failed to authenticate the request",
            "<Code>AuthenticationFailed",
            "<Code>InvalidAuthenticationInfo",
            "<Code>NoAuthenticationInformation",
            "<Code>PublicAccessNotPermitted",
        ],
        "the storage does not accept the credential: the account key or the signature is wrong or has expired, or the clock of this \
         machine is; a new one in its file counts at once",
    ),
    (
        &["<Code>AuthorizationFailure"],
        "the account does not let this network in (firewall, private endpoint), or the signature does not reach so far",
    ),
    (
        &["<Code>ContainerNotFound", "<Code>FilesystemNotFound", "<Code>ContainerBeingDeleted"],
        "the container of lake.location is not there: make it, this program does not",
    ),
    (&["<Code>AccountIsDisabled"], "the storage account is disabled"),
    (
        &["<Code>ServerBusy", "503 Service Unavailable", "429 Too Many Requests"],
        "the storage throttles: it is tried again, nothing is lost",
    ),
    (
        &["dns error", "failed to lookup address"],
        "the name of the account in lake.location is wrong, or this machine has no name service",
    ),
    (
        &["error sending request"],
        "the storage cannot be reached: the name of the account in lake.location is wrong, or there is no way to it",
    ),
];

/// `: ` and what to do about an error of the storage; empty if that is not known.
pub(super) fn remedy(error: &dyn std::error::Error) -> String {
    remedy_of(&describe(error))
}

/// The same for an error that is text already.
pub(super) fn remedy_of(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    let has_one = |words: &&[&str]| words.iter().any(|word| text[..end].contains(word));
    let found = REMEDIES.iter().find(|(words, _)| has_one(words));
    found.map_or_else(String::new, |(_, remedy)| format!(": {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_remedy_and_what_is_not_known_none() {
        let code = |code: &str, message: &str| {
            format!("403 Forbidden: <Error><Code>{code}</Code><Message>{message}</Message></Error>")
        };
        let authenticate =
            "Server failed to authenticate the request. Make sure the value is formed";
        let expired = format!(
            "{}<AuthenticationErrorDetail>Signature not valid in the specified time frame: Start [x]",
            code("AuthenticationFailed", authenticate)
        );
        for (text, expected) in [
            (code("AuthorizationPermissionMismatch", "x"), "Storage Blob Data Contributor"),
            (code("AuthenticationFailed", authenticate), "does not accept the credential"),
            // Azurite.
            (code("AuthorizationFailure", authenticate), "does not accept the credential"),
            (code("AuthorizationFailure", "not authorized to perform"), "firewall"),
            (expired, "has expired or is not valid yet"),
            (code("ContainerNotFound", "x"), "the container of lake.location is not there"),
            (
                "error sending request: client error (Connect): dns error".to_owned(),
                "no name service",
            ),
            ("in 2.1s, after 10 retries - HTTP error: error sending request".to_owned(), "no way"),
            ("Error performing token request: 400: AADSTS700016: x".to_owned(), "azure_client_id"),
            ("Error performing token request: Error performing GET".to_owned(), "no token"),
        ] {
            let remedy = remedy_of(&text);
            assert!(remedy.starts_with(": ") && remedy.contains(expected), "{text}: {remedy}");
        }
        assert_eq!(remedy_of("no files in log segment"), "");
        assert_eq!(remedy_of(&format!("{}ServerBusy", "ä".repeat(TEXT_BYTES_MAX))), "");
    }
}
