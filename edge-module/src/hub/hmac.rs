//! HMAC-SHA256: keys of a group's devices, and tokens of a registration.
//!
//! The SDK signs tokens of devices only, whose resource it builds itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac::{HMAC_SHA256, Key};

use crate::config::Secret;

/// A key that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoKey;

/// The code of a text by a key in base64, in base64.
pub(super) fn sign(key_base64: &Secret, text: &str) -> Result<String, NoKey> {
    let key = BASE64.decode(key_base64.expose()).map_err(|_| NoKey)?;
    if key.is_empty() {
        return Err(NoKey);
    }
    let code = ring::hmac::sign(&Key::new(HMAC_SHA256, &key), text.as_bytes());
    Ok(BASE64.encode(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_that_of_rfc_4231() {
        // Test case 2 of section 4, its key and its code in base64.
        let key = Secret::new(BASE64.encode("Jefe"));
        let code = sign(&key, "what do ya want for nothing?").expect("a key");
        assert_eq!(code, "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=");
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for key in ["", "=", "a key", "AAA"] {
            assert_eq!(sign(&Secret::new(key.to_owned()), "text"), Err(NoKey), "{key}");
        }
        assert!(sign(&Secret::new("AAAA".to_owned()), "text").is_ok());
    }
}
