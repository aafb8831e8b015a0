//! Signatures of cursors and tickets, which clients carry for the service.
//!
//! The key is in the database, so that every replica accepts what another one signed, and no setting is needed. A
//! reader of the database gains nothing by the key: cursors and tickets lead only to data of the database.

use std::sync::OnceLock;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hmac::{self, HMAC_SHA256},
};

use crate::db::{self, service_keys};

/// Name of the key in the database.
const KEY_NAME: &str = "signing";
/// Length of a signature: 128 bits, which cannot be guessed.
pub const SIGNATURE_BYTES: usize = 16;

/// Source of the key, which is read at its first use.
pub struct Signing {
    pool: db::Pool,
    key: OnceLock<Key>,
}

/// Signing key.
#[derive(Clone, Debug)]
pub struct Key(hmac::Key);

impl Signing {
    /// Does not read the key yet.
    #[must_use]
    pub fn new(pool: db::Pool) -> Self {
        Self { pool, key: OnceLock::new() }
    }

    /// Returns the key; creates it if there is none.
    pub async fn key(&self) -> Result<Key, db::Error> {
        if let Some(key) = self.key.get() {
            return Ok(key.clone());
        }
        // Several tasks may do this at once, so that they wait side by side for an unavailable database.
        let pool = self.pool.clone();
        let fresh: [u8; 32] = rand::random();
        let bytes = db::bounded(async move { service_keys::find_or_store(&pool, KEY_NAME, &fresh).await }).await?;
        Ok(self.key.get_or_init(|| Key(hmac::Key::new(HMAC_SHA256, &bytes))).clone())
    }
}

impl Key {
    /// Signs a text for a purpose: a signature is not valid for another purpose.
    #[must_use]
    pub fn sign(&self, purpose: &[u8], text: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut context = hmac::Context::with_key(&self.0);
        // The length is included, so that different pairs of purpose and text never give the same input.
        context.update(&(purpose.len() as u64).to_be_bytes());
        context.update(purpose);
        context.update(text);
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(&context.sign().as_ref()[..SIGNATURE_BYTES]);
        signature
    }

    /// Whether this is the signature of the text for the purpose.
    #[must_use]
    pub fn verifies(&self, purpose: &[u8], text: &[u8], signature: &[u8]) -> bool {
        verify_slices_are_equal(&self.sign(purpose, text), signature).is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Key for tests of other modules.
    #[must_use]
    pub fn key(byte: u8) -> Key {
        Key(hmac::Key::new(HMAC_SHA256, &[byte; 32]))
    }

    #[test]
    fn a_signature_is_valid_only_for_its_key_purpose_and_text() {
        let signature = key(1).sign(b"ab", b"c");
        assert!(key(1).verifies(b"ab", b"c", &signature));
        for (other, purpose, text) in [(key(2), "ab", "c"), (key(1), "a", "bc"), (key(1), "ab", "d")] {
            assert!(!other.verifies(purpose.as_bytes(), text.as_bytes(), &signature));
        }
        assert!(!key(1).verifies(b"ab", b"c", &signature[1..]));
    }
}
