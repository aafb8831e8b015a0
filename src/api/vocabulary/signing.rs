//! Signatures over what clients carry for the service: cursors and tickets.
//!
//! The key is in the database, so that every replica takes what another has given, and nobody has to set one. Whoever
//! reads the database needs neither: all that they lead to is there.

use std::sync::OnceLock;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hmac::{self, HMAC_SHA256},
};

use crate::db::{self, service_keys};

/// Name of the key in the database.
const KEY_NAME: &str = "signing";
/// Bytes of a signature: 128 bits, which nobody guesses.
pub const SIGNATURE_BYTES: usize = 16;

/// Where the key is, read at its first use.
pub struct Signing {
    pool: db::Pool,
    key: OnceLock<Key>,
}

/// The key.
#[derive(Clone, Debug)]
pub struct Key(hmac::Key);

impl Signing {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(pool: db::Pool) -> Self {
        Self { pool, key: OnceLock::new() }
    }

    /// The key, which is made if there is none.
    pub async fn key(&self) -> Result<Key, db::Error> {
        if let Some(key) = self.key.get() {
            return Ok(key.clone());
        }
        // Several may do this at once: a database that is away is waited for side by side.
        let pool = self.pool.clone();
        let fresh: [u8; 32] = rand::random();
        let bytes = db::bounded(async move { service_keys::find_or_store(&pool, KEY_NAME, &fresh).await }).await?;
        Ok(self.key.get_or_init(|| Key(hmac::Key::new(HMAC_SHA256, &bytes))).clone())
    }
}

impl Key {
    /// The signature over a text for a purpose: no signature counts for another one.
    #[must_use]
    pub fn sign(&self, purpose: &[u8], text: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut context = hmac::Context::with_key(&self.0);
        // With its length, so that no two pairs run together.
        context.update(&(purpose.len() as u64).to_be_bytes());
        context.update(purpose);
        context.update(text);
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(&context.sign().as_ref()[..SIGNATURE_BYTES]);
        signature
    }

    /// Whether it is the signature over that text for that purpose.
    #[must_use]
    pub fn verifies(&self, purpose: &[u8], text: &[u8], signature: &[u8]) -> bool {
        verify_slices_are_equal(&self.sign(purpose, text), signature).is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A key for tests beside other code.
    #[must_use]
    pub fn key(byte: u8) -> Key {
        Key(hmac::Key::new(HMAC_SHA256, &[byte; 32]))
    }

    #[test]
    fn a_signature_counts_for_its_key_purpose_and_text_alone() {
        let signature = key(1).sign(b"ab", b"c");
        assert!(key(1).verifies(b"ab", b"c", &signature));
        for (other, purpose, text) in [(key(2), "ab", "c"), (key(1), "a", "bc"), (key(1), "ab", "d")] {
            assert!(!other.verifies(purpose.as_bytes(), text.as_bytes(), &signature));
        }
        assert!(!key(1).verifies(b"ab", b"c", &signature[1..]));
    }
}
