//! Encryption of agents' credentials, and of the secrets of webhooks, at rest: AES-256-GCM with the keys of `ENCRYPTION_KEY`.
//!
//! A JSON text is stored as `{"encrypted": {"key_id", "nonce", "data"}}`: the name of the key, and in base64 the result
//! of the algorithm. The agent's id is authenticated with it, so that a row cannot use another agent's credentials.
//! Texts that were stored before there was a key are used as they are.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{input, trace::hex};

/// Key length of the algorithm.
const KEY_BYTES: usize = 32;
/// Length of a key's name: enough to distinguish a handful of keys.
const KEY_ID_BYTES: usize = 4;

/// Vault: encrypts with the first of its keys, and decrypts with any of them. Without keys it encrypts nothing.
/// The keys can be replaced while the process runs.
#[derive(Default)]
pub struct Vault(RwLock<Arc<Vec<Key>>>);

struct Key {
    id: String,
    cipher: RandomizedNonceKey,
}

/// Reason why a text cannot be decrypted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// There is no key of that name.
    #[error("encrypted with the key {0}, which ENCRYPTION_KEY does not have")]
    KeyMissing(String),
    /// The text was changed, or belongs to another agent.
    #[error("encrypted with the key {0} and not authentic")]
    NotAuthentic(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    encrypted: Content,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    key_id: String,
    nonce: String,
    data: String,
}

impl Vault {
    /// Parses keys separated by commas, each of 32 bytes in hexadecimal digits or in base64. The error does not show
    /// them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys = text.split(',').enumerate().map(|(index, key)| {
            let problem =
                || format!("entry {} is not 32 bytes in hex or base64; make one with: openssl rand -hex 32", index + 1);
            let bytes = key_bytes(key.trim()).ok_or_else(problem)?;
            let cipher = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| problem())?;
            let digest = Sha256::new_with_prefix("workflow-api key id").chain_update(bytes).finalize();
            Ok(Key { id: hex(&digest[..KEY_ID_BYTES]), cipher })
        });
        let keys = keys.collect::<Result<Vec<Key>, String>>()?;
        let is_twice = |(index, key): (usize, &Key)| keys[..index].iter().any(|other| other.id == key.id);
        if keys.iter().enumerate().any(is_twice) {
            Err("contains a key twice".to_owned())
        } else {
            Ok(Self(RwLock::new(Arc::new(keys))))
        }
    }

    /// Names of the keys, first the one that encrypts.
    #[must_use]
    pub fn key_ids(&self) -> Vec<String> {
        self.keys().iter().map(|key| key.id.clone()).collect()
    }

    /// Replaces the keys by those of another vault.
    pub fn replace(&self, other: &Self) {
        let keys = other.keys();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn keys(&self) -> Arc<Vec<Key>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The text to store. A text that is already encrypted stays as it is, and so does every text if there is no key.
    #[must_use]
    pub fn encrypt(&self, agent_id: Uuid, json: &RawValue) -> Box<RawValue> {
        let keys = self.keys();
        let Some(key) = keys.first().filter(|_| json.get() != "null" && key_id(json).is_none()) else {
            return json.to_owned();
        };
        let mut data = json.get().as_bytes().to_vec();
        let nonce = key.cipher.seal_in_place_append_tag(authenticated(agent_id), &mut data);
        let nonce = nonce.expect("the text is shorter than the 64 GiB that the algorithm takes");
        let (nonce, data) = (BASE64_STANDARD.encode(nonce.as_ref()), BASE64_STANDARD.encode(data));
        input::to_raw(&Envelope { encrypted: Content { key_id: key.id.clone(), nonce, data } })
    }

    /// The decrypted text. A text that is not encrypted is returned as it is.
    pub fn decrypt(&self, agent_id: Uuid, stored: &RawValue) -> Result<Box<RawValue>, DecryptError> {
        let Some(Content { key_id, nonce, data }) = envelope(stored) else { return Ok(stored.to_owned()) };
        let keys = self.keys();
        let Some(key) = keys.iter().find(|key| key.id == key_id) else {
            return Err(DecryptError::KeyMissing(key_id));
        };
        let open = || {
            let nonce = Nonce::try_assume_unique_for_key(&BASE64_STANDARD.decode(nonce).ok()?).ok()?;
            let mut data = BASE64_STANDARD.decode(data).ok()?;
            let text = key.cipher.open_in_place(nonce, authenticated(agent_id), &mut data).ok()?;
            RawValue::from_string(String::from_utf8(text.to_vec()).ok()?).ok()
        };
        open().ok_or(DecryptError::NotAuthentic(key_id))
    }

    /// Whether the text is stored as it would be now: encrypted with the first key, if there is one.
    #[must_use]
    pub fn is_current(&self, stored: &RawValue) -> bool {
        stored.get() == "null" || key_id(stored).as_ref() == self.keys().first().map(|key| &key.id)
    }
}

/// Shows only the names of the keys.
impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.key_ids()).finish()
    }
}

/// The name of the key that the text is encrypted with; `None` for a text that is not encrypted.
#[must_use]
pub fn key_id(stored: &RawValue) -> Option<String> {
    envelope(stored).map(|content| content.key_id)
}

/// Reads the stored form of an encrypted text. Valid credentials never have this form: they need other members.
fn envelope(stored: &RawValue) -> Option<Content> {
    serde_json::from_str::<Envelope>(stored.get()).ok().map(|envelope| envelope.encrypted)
}

fn authenticated(agent_id: Uuid) -> Aad<Vec<u8>> {
    Aad::from([b"workflow-api agents.auth_config ", &agent_id.as_bytes()[..]].concat())
}

fn key_bytes(text: &str) -> Option<[u8; KEY_BYTES]> {
    let is_hex = text.len() == 2 * KEY_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes = if is_hex {
        (0..KEY_BYTES).map(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()).collect()
    } else {
        // The alphabet of URLs and absent padding are accepted too.
        let text = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
        base64::prelude::BASE64_STANDARD_NO_PAD.decode(text).ok()
    };
    bytes.and_then(|bytes: Vec<u8>| bytes.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const OTHER: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
    const SECRET: &str = r#"{"token":"hunter2","n":123456789012345678901234567890}"#;

    fn vault(keys: &str) -> Vault {
        Vault::parse(keys).expect(keys)
    }

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect(json)
    }

    #[test]
    fn an_encrypted_text_is_decrypted_for_the_same_agent_only() {
        let (vault, agent) = (vault(ONE), Uuid::from_u128(7));
        let sealed = vault.encrypt(agent, &raw(SECRET));
        assert!(!sealed.get().contains("hunter2") && !sealed.get().contains("token"), "{sealed}");
        assert_eq!(vault.decrypt(agent, &sealed).expect("it opens").get(), SECRET);
        let id = vault.key_ids().remove(0);
        assert_eq!(vault.decrypt(Uuid::from_u128(8), &sealed).map(|_| ()), Err(DecryptError::NotAuthentic(id)));
        assert_ne!(vault.encrypt(agent, &raw(SECRET)).get(), sealed.get(), "a nonce of its own each time");
        assert_eq!(vault.encrypt(agent, &sealed).get(), sealed.get(), "sealed once");
    }

    #[test]
    fn every_change_is_detected() {
        let (vault, agent) = (vault(ONE), Uuid::from_u128(7));
        let sealed = vault.encrypt(agent, &raw(SECRET)).get().to_owned();
        for (index, character) in sealed.char_indices().filter(|(_, character)| character.is_ascii_alphanumeric()) {
            let mut changed = sealed.clone();
            changed.replace_range(index..=index, if character == 'A' { "B" } else { "A" });
            if let Ok(text) = vault.decrypt(agent, &raw(&changed)) {
                // It is no envelope any more, or only unused bits of the base64 changed.
                assert!(text.get() == changed || text.get() == SECRET, "{changed}");
            }
        }
    }

    #[test]
    fn older_keys_decrypt_and_the_first_one_encrypts() {
        let agent = Uuid::from_u128(7);
        let (old, both, new) = (vault(ONE), vault(&format!("{OTHER}, {ONE}")), vault(OTHER));
        let sealed = old.encrypt(agent, &raw(SECRET));
        assert_eq!(both.decrypt(agent, &sealed).expect("it opens").get(), SECRET);
        assert!(old.is_current(&sealed) && !both.is_current(&sealed));
        let id = old.key_ids().remove(0);
        assert_eq!(new.decrypt(agent, &sealed).map(|_| ()), Err(DecryptError::KeyMissing(id.clone())));
        assert_eq!(Vault::default().decrypt(agent, &sealed).map(|_| ()), Err(DecryptError::KeyMissing(id)));
        let again = both.encrypt(agent, &both.decrypt(agent, &sealed).expect("it opens"));
        assert!(both.is_current(&again));
        assert_eq!(new.decrypt(agent, &again).expect("it opens").get(), SECRET);
    }

    #[test]
    fn a_text_that_is_not_encrypted_is_unchanged() {
        let agent = Uuid::from_u128(7);
        for plain in ["null", SECRET, r#"{"encrypted":"x","token":"t"}"#, r#"{"encrypted":{"key_id":"x"}}"#] {
            assert_eq!(vault(ONE).decrypt(agent, &raw(plain)).expect("it is open").get(), plain);
            assert_eq!(Vault::default().encrypt(agent, &raw(plain)).get(), plain);
            assert!(Vault::default().is_current(&raw(plain)));
        }
        assert_eq!(vault(ONE).encrypt(agent, &raw("null")).get(), "null");
        assert!(vault(ONE).is_current(&raw("null")) && !vault(ONE).is_current(&raw(SECRET)));
    }

    #[test]
    fn a_key_has_32_bytes_in_one_of_two_forms() {
        let unpadded = OTHER.trim_end_matches('=');
        for right in [ONE, &ONE.to_uppercase(), OTHER, unpadded, &format!(" {ONE} , {OTHER} ")] {
            assert!(Vault::parse(right).is_ok(), "{right}");
        }
        assert_eq!(vault(OTHER).key_ids(), vault(unpadded).key_ids());
        for wrong in [
            "",
            ",",
            &ONE[2..],
            &format!("{ONE}00"),
            &ONE.replace('0', "g"),
            "secret",
            &OTHER[4..],
            &format!("{ONE},{ONE}"),
            &format!("{ONE},"),
            &format!("{ONE};{OTHER}"),
            "äöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäö",
        ] {
            let problem = Vault::parse(wrong).err().unwrap_or_else(|| panic!("{wrong} is taken"));
            assert!(wrong.len() < 8 || !problem.contains(&wrong[..8]), "{problem}");
        }
        assert!(!format!("{:?}", vault(ONE)).contains("0001"));
    }
}
