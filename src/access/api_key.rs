//! API keys: `wf_<environment>_<30 base62><6 base62 checksum>`.
//!
//! The environment shows people and secret scanners where a key belongs. The checksum (CRC-32 of all before it)
//! detects mistyped or invented keys without a database query. It is not secret and proves nothing.

use rand::{Rng, distr::Alphanumeric};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// Number of random characters: 178 bits.
const RANDOM_CHARS: usize = 30;
/// Number of characters of the checksum: enough for 32 bits.
const CHECKSUM_CHARS: usize = 6;
/// Maximum length of an environment's name.
const MAX_ENVIRONMENT_CHARS: usize = 16;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// API key in plain text.
#[derive(Clone, Debug)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// Generates a key. `environment` must satisfy [`is_environment`].
    #[must_use]
    pub fn generate(environment: &str) -> Self {
        let random: String = rand::rng().sample_iter(Alphanumeric).take(RANDOM_CHARS).map(char::from).collect();
        let mut text = format!("wf_{environment}_{random}");
        text.push_str(&checksum(&text));
        Self(text.into())
    }

    /// Parses a key, if the text has the right form and checksum.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (environment, secret) = text.strip_prefix("wf_")?.split_once('_')?;
        let is_base62 = secret.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_environment(environment) || secret.len() != RANDOM_CHARS + CHECKSUM_CHARS || !is_base62 {
            return None;
        }
        let (unchecked, given) = text.split_at(text.len() - CHECKSUM_CHARS);
        (given == checksum(unchecked)).then(|| Self(text.to_owned().into()))
    }

    /// The plain text, to be shown to its owner once.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The stored hash: SHA-256. A slow hash would protect nothing more, as 178 bits cannot be guessed.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.expose()).into()
    }

    /// `wf_<environment>`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.expose().rsplit_once('_').map_or("", |(prefix, _)| prefix)
    }

    /// The last four characters, by which its owner recognises the key.
    #[must_use]
    pub fn last_four(&self) -> &str {
        &self.expose()[self.expose().len() - 4..]
    }
}

/// Whether the text can be the name of a key: 1 to 100 ASCII characters, not only blanks. The name becomes part of a
/// subject, which is in headers, logs and columns.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=100).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !text.trim().is_empty()
}

/// Whether the text can be an environment: 1 to 16 small letters and digits.
#[must_use]
pub fn is_environment(text: &str) -> bool {
    (1..=MAX_ENVIRONMENT_CHARS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_parsed_unchanged() {
        for environment in ["live", "test", "0", "abcdefghijklmnop"] {
            let key = ApiKey::generate(environment);
            assert_eq!(key.expose().len(), 4 + environment.len() + 36, "{}", key.expose());
            assert_eq!(key.prefix(), format!("wf_{environment}"));
            assert!(key.expose().ends_with(key.last_four()));
            assert_eq!(ApiKey::parse(key.expose()).expect("our own key").hash(), key.hash());
        }
        assert_ne!(ApiKey::generate("live").expose(), ApiKey::generate("live").expose());
        assert!(!format!("{:?}", ApiKey::generate("live")).contains("wf_"), "Debug shows no key");
    }

    /// The form is an interface: a later release must accept the keys of an earlier one.
    #[test]
    fn the_checksum_is_that_of_every_release() {
        assert!(
            ApiKey::parse(&format!("wf_live_{}{}", "a".repeat(30), checksum(&format!("wf_live_{}", "a".repeat(30)))))
                .is_some()
        );
        assert_eq!(checksum(""), "000000");
        // CRC-32 of "123456789" is 0xCBF43926 = 3421780262.
        assert_eq!(checksum("123456789"), "3jZRME");
    }

    #[test]
    fn every_changed_character_is_detected() {
        let key = ApiKey::generate("live");
        let text = key.expose();
        for index in 0..text.len() {
            for other in ["", "0", "z", "Z", "_", "-", " ", "\u{e4}"] {
                let mut changed = text.to_owned();
                changed.replace_range(index..=index, other);
                assert!(changed == text || ApiKey::parse(&changed).is_none(), "{changed}");
            }
        }
        for wrong in ["", "wf_", "wf__", &text.to_uppercase(), &format!("{text}0"), &format!(" {text}"), &text[3..]] {
            assert!(ApiKey::parse(wrong).is_none(), "{wrong}");
        }
    }
}
