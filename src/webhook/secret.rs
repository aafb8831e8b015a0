//! Secrets of endpoints, and signatures by Standard Webhooks 1.0.0: HMAC-SHA256 (`v1`) and Ed25519 (`v1a`).

use aws_lc_rs::{
    hmac, rand,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{
    Engine as _, alphabet,
    engine::{GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

/// Prefix of a secret for HMAC.
const HMAC_PREFIX: &str = "whsec_";
/// Prefixes of a secret and of a public key for Ed25519.
const ED25519_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";
/// Bytes of a secret for HMAC that the specification allows.
const HMAC_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Bytes of a seed, and of a public key.
const SEED_BYTES: usize = 32;
/// Number of characters of a secret that are shown.
const HINT_CHARS: usize = 8;

/// Base64 with or without padding, as senders of secrets write it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// Way of signing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureKind {
    /// HMAC-SHA256 with a secret that both sides have.
    Hmac,
    /// Ed25519 with a private key; receivers have the public one.
    Ed25519,
}

impl SignatureKind {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Hmac, Self::Ed25519];

    /// Name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hmac => "hmac",
            Self::Ed25519 => "ed25519",
        }
    }

    /// Finds the value of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|value| value.as_str() == name)
    }
}

/// Secret of an endpoint. It has no `Debug`.
#[derive(Clone)]
pub struct Secret {
    text: String,
    key: Key,
}

#[derive(Clone)]
enum Key {
    Hmac(Vec<u8>),
    Ed25519([u8; SEED_BYTES]),
}

impl Secret {
    /// A new random secret.
    #[must_use]
    pub fn random(kind: SignatureKind) -> Self {
        let mut bytes = [0; SEED_BYTES];
        rand::fill(&mut bytes).expect("the system's source of randomness does not fail after the start");
        match kind {
            SignatureKind::Hmac => Self::hmac_of(&bytes),
            SignatureKind::Ed25519 => Self::ed25519_of(bytes),
        }
    }

    /// The secret for HMAC with these bytes.
    #[must_use]
    pub fn hmac_of(bytes: &[u8]) -> Self {
        Self { text: format!("{HMAC_PREFIX}{}", STANDARD.encode(bytes)), key: Key::Hmac(bytes.to_vec()) }
    }

    /// The secret for Ed25519 with this seed. Its text has the public key too, as other implementations write it.
    fn ed25519_of(seed: [u8; SEED_BYTES]) -> Self {
        let whole = [&seed[..], &public_key(&seed)].concat();
        Self { text: format!("{ED25519_PREFIX}{}", STANDARD.encode(whole)), key: Key::Ed25519(seed) }
    }

    /// Parses a secret. The error does not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix(HMAC_PREFIX) {
            let bytes = LENIENT.decode(rest).ok().filter(|bytes| HMAC_BYTES.contains(&bytes.len()));
            let key = bytes.ok_or_else(|| format!("must be {HMAC_PREFIX} and the base64 of 24 to 64 bytes"))?;
            return Ok(Self { text: text.to_owned(), key: Key::Hmac(key) });
        }
        let Some(rest) = text.strip_prefix(ED25519_PREFIX) else {
            return Err(format!("must begin with {HMAC_PREFIX}, or with {ED25519_PREFIX} for ed25519"));
        };
        let bytes = LENIENT.decode(rest).unwrap_or_default();
        let seed = bytes.get(..SEED_BYTES).and_then(|seed| <[u8; SEED_BYTES]>::try_from(seed).ok());
        let fits = |seed: &[u8; SEED_BYTES]| bytes.len() == SEED_BYTES || bytes[SEED_BYTES..] == public_key(seed);
        match seed.filter(fits) {
            Some(seed) => Ok(Self { text: text.to_owned(), key: Key::Ed25519(seed) }),
            None => Err(format!("must be {ED25519_PREFIX} and the base64 of a seed, or of a seed and its public key")),
        }
    }

    /// The secret as text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its first characters, by which its owner recognises it.
    #[must_use]
    pub fn hint(&self) -> &str {
        // The text is ASCII: a prefix and base64.
        self.text.get(..HINT_CHARS).unwrap_or(&self.text)
    }

    /// Way in which it signs.
    #[must_use]
    pub fn kind(&self) -> SignatureKind {
        match self.key {
            Key::Hmac(_) => SignatureKind::Hmac,
            Key::Ed25519(_) => SignatureKind::Ed25519,
        }
    }

    /// Public key for receivers, if it has one.
    #[must_use]
    pub fn public_key(&self) -> Option<String> {
        match &self.key {
            Key::Hmac(_) => None,
            Key::Ed25519(seed) => Some(format!("{PUBLIC_PREFIX}{}", STANDARD.encode(public_key(seed)))),
        }
    }

    /// Signature of a message, with its version.
    fn sign(&self, message: &[u8]) -> String {
        match &self.key {
            Key::Hmac(key) => {
                let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
                format!("v1,{}", STANDARD.encode(tag))
            }
            Key::Ed25519(seed) => format!("v1a,{}", STANDARD.encode(key_pair(seed).sign(message))),
        }
    }
}

fn key_pair(seed: &[u8; SEED_BYTES]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("a seed has 32 bytes")
}

fn public_key(seed: &[u8; SEED_BYTES]) -> Vec<u8> {
    key_pair(seed).public_key().as_ref().to_vec()
}

/// Value of `webhook-signature`: a signature with each of the secrets, separated by spaces.
#[must_use]
pub fn signatures(secrets: &[Secret], id: &str, epoch_secs: i64, body: &str) -> String {
    let message = format!("{id}.{epoch_secs}.{body}");
    secrets.iter().map(|secret| secret.sign(message.as_bytes())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use http::HeaderMap;
    use standardwebhooks::Webhook;

    use super::*;

    const ID: &str = "evt_0192e4a0b1c27d3e8f90a1b2c3d4e5f6";
    const BODY: &str = r#"{"a":1.0,"b":"\u00e9 é","c":123456789012345678901234567890}"#;

    /// Pitfall 10: the official verifier takes the bytes as they are.
    #[test]
    fn the_official_verifier_accepts_a_signature() {
        let secret = Secret::random(SignatureKind::Hmac);
        let now = crate::clock::Clock::default().now().timestamp();
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", ID.parse().expect("a value"));
        headers.insert("webhook-timestamp", now.to_string().parse().expect("a value"));
        let other = Secret::random(SignatureKind::Hmac);
        let value = signatures(&[other, secret.clone()], ID, now, BODY);
        headers.insert("webhook-signature", value.parse().expect("a value"));
        let verifier = Webhook::new(secret.text()).expect("a secret");
        verifier.verify(BODY.as_bytes(), &headers).expect("the signature is valid");
        let changed = BODY.replace("1.0", "1");
        assert!(verifier.verify(changed.as_bytes(), &headers).is_err());
    }

    /// Vector of the specification's reference implementations.
    #[test]
    fn the_signature_is_that_of_the_reference_implementations() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let signed = signatures(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn an_ed25519_signature_is_verified_with_the_public_key_that_is_shown() {
        let secret = Secret::random(SignatureKind::Ed25519);
        let public = secret.public_key().expect("a public key");
        let key = STANDARD.decode(public.strip_prefix(PUBLIC_PREFIX).expect("its prefix")).expect("base64");
        let value = signatures(std::slice::from_ref(&secret), ID, 7, BODY);
        let signature = STANDARD.decode(value.strip_prefix("v1a,").expect("its version")).expect("base64");
        let verify =
            |body: &str| UnparsedPublicKey::new(&ED25519, &key).verify(format!("{ID}.7.{body}").as_bytes(), &signature);
        verify(BODY).expect("valid");
        assert!(verify("{}").is_err());
        let again = Secret::parse(secret.text()).unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!(again.public_key(), secret.public_key());
        assert_eq!(again.kind(), SignatureKind::Ed25519);
    }

    #[test]
    fn a_secret_that_is_too_short_or_not_base64_is_refused_and_not_repeated() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![1; bytes]));
        for right in
            [of(24), of(64), of(32).trim_end_matches('=').to_owned(), format!("whsk_{}", STANDARD.encode([1; 32]))]
        {
            assert!(Secret::parse(&right).is_ok(), "{right}");
        }
        let mismatch = format!("whsk_{}", STANDARD.encode([1; 64]));
        for wrong in ["", "whsec_", "secret", "whsec_%%%%", &of(23), &of(65), "whsk_AAAA", &mismatch] {
            let problem = Secret::parse(wrong).err().unwrap_or_else(|| panic!("{wrong} is taken"));
            assert!(wrong.len() < 12 || !problem.contains(&wrong[6..]), "{problem}");
        }
    }
}
