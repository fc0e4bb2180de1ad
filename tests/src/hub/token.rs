//! Shared access signatures: who may speak for whom until when.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use super::topics::{Bag, decode};

/// What a token must show.
pub(super) struct Expected {
    /// Any of these, decoded; ids compare without case.
    pub(super) resources: Vec<String>,
    /// Any of these made the signature.
    pub(super) keys: Vec<Vec<u8>>,
    /// The name of the key, of registrations only.
    pub(super) key_name: Option<&'static str>,
    /// Unix seconds as the server sees them.
    pub(super) now: i64,
    /// How long after its end a token is still taken.
    pub(super) grace: Duration,
}

/// HMAC-SHA256.
pub(super) fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

/// When the token ends, in Unix seconds.
///
/// # Errors
/// Why it is refused.
pub(super) fn check(token: &str, expected: &Expected) -> anyhow::Result<i64> {
    let fields = fields(token)?;
    let field = |name: &str| fields.get(name).with_context(|| format!("a token without {name}"));
    let (resource, expiry) = (field("sr")?, field("se")?);
    let plain = decode(resource).context("the token's resource is not encoded rightly")?;
    let is_ours = expected.resources.iter().any(|ours| ours.eq_ignore_ascii_case(&plain));
    ensure!(is_ours, "a token for {plain}");
    // The documents of the provisioning service ask for the name; its official SDK leaves it out.
    if let Some(name) = fields.get("skn") {
        ensure!(Some(name.as_str()) == expected.key_name, "a token by the key {name}");
    }
    let signature = decode(field("sig")?).context("the signature is not encoded rightly")?;
    let signature = STANDARD.decode(signature).context("the signature is not base64")?;
    // The resource stands in the signed text as it stands in the token.
    let signed = format!("{resource}\n{expiry}");
    let is_signed = |key: &Vec<u8>| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
    };
    ensure!(expected.keys.iter().any(is_signed), "a signature by another key");
    let expires: i64 = expiry.parse().context("the token's end is no number")?;
    ensure!(!is_expired(expires, expected.now, expected.grace), "a token that ended at {expires}");
    Ok(expires)
}

/// Whether a connection with a token of this end is to be dropped.
pub(super) fn is_expired(expires: i64, now: i64, grace: Duration) -> bool {
    expires.saturating_add_unsigned(grace.as_secs()) < now
}

fn fields(token: &str) -> anyhow::Result<Bag> {
    let list =
        token.strip_prefix("SharedAccessSignature ").context("no shared access signature")?;
    let mut fields = Bag::new();
    for part in list.split('&') {
        let (name, value) = part.split_once('=').context("a part of the token without =")?;
        if fields.insert(name.to_owned(), value.to_owned()).is_some() {
            bail!("a token with {name} twice");
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::super::topics::encode;
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn token(resource: &str, key: &[u8], expires: i64) -> String {
        let resource = encode(resource);
        let signature = STANDARD.encode(sign(key, format!("{resource}\n{expires}").as_bytes()));
        let signature = encode(&signature);
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}")
    }

    fn checked(token: &str) -> Result<i64, String> {
        checked_by(None, token)
    }

    fn checked_by(key_name: Option<&'static str>, token: &str) -> Result<i64, String> {
        let expected = Expected {
            resources: vec!["hub.example/devices/gw/modules/vib".to_owned()],
            keys: vec![b"primary".to_vec(), b"secondary".to_vec()],
            key_name,
            now: NOW,
            grace: Duration::from_secs(300),
        };
        check(token, &expected).map_err(|error| error.to_string())
    }

    #[test]
    fn both_keys_and_any_case_of_the_ids_are_taken() {
        for key in [b"primary".as_slice(), b"secondary"] {
            let resource = "HUB.example/devices/GW/modules/vib";
            assert_eq!(checked(&token(resource, key, NOW + 60)), Ok(NOW + 60));
        }
    }

    #[test]
    fn what_shows_nothing_is_refused_with_its_reason() {
        let good = "hub.example/devices/gw/modules/vib";
        let check =
            |token: String, reason: &str| assert_eq!(checked(&token), Err(reason.to_owned()));
        check(token(good, b"other", NOW), "a signature by another key");
        check(
            token("hub.example/devices/gw", b"primary", NOW),
            "a token for hub.example/devices/gw",
        );
        check("Bearer x".to_owned(), "no shared access signature");
        check("SharedAccessSignature sr=x&se=1&se=2".to_owned(), "a token with se twice");
        check("SharedAccessSignature sr=x".to_owned(), "a token without se");
        let named = token(good, b"primary", NOW) + "&skn=owner";
        check(named, "a token by the key owner");
        let of_registration = token(good, b"primary", NOW) + "&skn=registration";
        assert_eq!(checked_by(Some("registration"), &of_registration), Ok(NOW));
        let later = token(good, b"primary", NOW).replace("se=18", "se=19");
        check(later, "a signature by another key");
    }

    #[test]
    fn a_token_is_taken_until_its_grace_is_over() {
        let of =
            |expires| checked(&token("hub.example/devices/gw/modules/vib", b"primary", expires));
        assert_eq!(of(NOW - 300), Ok(NOW - 300));
        assert_eq!(of(NOW - 301), Err(format!("a token that ended at {}", NOW - 301)));
    }

    #[test]
    fn signs_as_rfc_4231_says() {
        // Test case 2 of section 4.3.
        let digest = sign(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(digest[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }
}
