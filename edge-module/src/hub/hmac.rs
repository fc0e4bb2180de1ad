//! HMAC-SHA256 (RFC 2104) over the hash that is here already: keys of a group's devices, and tokens of a registration.
//!
//! The SDK signs tokens of devices only, whose resource it builds itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

use crate::config::Secret;

/// Of SHA-256.
const BLOCK_BYTES: usize = 64;

/// A key that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoKey;

/// The code of a text by a key in base64, in base64.
pub(super) fn sign(key_base64: &Secret, text: &str) -> Result<String, NoKey> {
    let key = BASE64.decode(key_base64.expose()).map_err(|_| NoKey)?;
    if key.is_empty() {
        return Err(NoKey);
    }
    Ok(BASE64.encode(hmac_sha256(&key, text.as_bytes())))
}

fn hmac_sha256(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; BLOCK_BYTES];
    if key.len() > BLOCK_BYTES {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn codes_are_those_of_rfc_4231() {
        let check = |key: &[u8], text: &[u8], expected: &str| {
            assert_eq!(hex(&hmac_sha256(key, text)), expected);
        };
        // Test cases 1, 2, 3 and 6 of section 4.
        check(
            &[0x0b; 20],
            b"Hi There",
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        );
        check(
            b"Jefe",
            b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        );
        check(
            &[0xaa; 20],
            &[0xdd; 50],
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
        );
        check(
            &[0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        );
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for key in ["", "=", "a key", "AAA"] {
            assert_eq!(sign(&Secret::new(key.to_owned()), "text"), Err(NoKey), "{key}");
        }
        assert!(sign(&Secret::new("AAAA".to_owned()), "text").is_ok());
    }
}
