//! Signatures: keys, encodings and their comparison in constant time.

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hmac,
    signature::{ED25519, UnparsedPublicKey},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Base64 with and without padding: libraries differ.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
/// Minimum length of the key of a Standard Webhooks secret.
const MIN_KEY_BYTES: usize = 16;
/// Length of a public key.
const PUBLIC_KEY_BYTES: usize = 32;

/// Hash function of an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
    /// SHA-1.
    Sha1,
}

impl Algorithm {
    /// All functions.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha512, Self::Sha1];

    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Sha1 => "sha1",
        }
    }

    /// HMAC of the parts, one after the other.
    pub fn sign(self, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
        let algorithm = match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        };
        let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
        for part in parts {
            context.update(part);
        }
        context.sign()
    }
}

/// Encoding of a signature in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Hexadecimal digits.
    Hex,
    /// Base64.
    Base64,
}

impl Encoding {
    /// All encodings.
    pub const ALL: [Self; 2] = [Self::Hex, Self::Base64];

    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hex => "hex",
            Self::Base64 => "base64",
        }
    }

    /// The bytes; `None` if there are none, or the text is not in this encoding.
    pub fn decode(self, text: &str) -> Option<Vec<u8>> {
        let bytes = match self {
            Self::Hex => unhex(text)?,
            Self::Base64 => BASE64.decode(text).ok()?,
        };
        (!bytes.is_empty()).then_some(bytes)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).ok()).collect()
}

/// Whether both are equal, in a time that depends on their lengths only.
pub fn is_equal(one: &[u8], other: &[u8]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

/// Whether both texts are equal, in a time that shows not even their lengths.
pub fn is_equal_text(one: &[u8], other: &[u8]) -> bool {
    is_equal(&Sha256::digest(one), &Sha256::digest(other))
}

/// Key of Standard Webhooks.
pub enum StandardKey {
    /// `whsec_`: signatures `v1`, by HMAC.
    Secret(Vec<u8>),
    /// `whpk_`: signatures `v1a`, by ed25519.
    Public(Vec<u8>),
}

impl StandardKey {
    /// Parses the text of a key. Without one of the prefixes it is a secret.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(public) = text.strip_prefix("whpk_") {
            let bytes = BASE64.decode(public).ok()?;
            return (bytes.len() == PUBLIC_KEY_BYTES).then_some(Self::Public(bytes));
        }
        let bytes = BASE64.decode(text.strip_prefix("whsec_").unwrap_or(text)).ok()?;
        (bytes.len() >= MIN_KEY_BYTES).then_some(Self::Secret(bytes))
    }

    /// Whether one of the signatures, each with its version, is one of the parts by this key.
    pub fn has_signed(&self, parts: &[&[u8]], signatures: &[(&str, Vec<u8>)]) -> bool {
        let of = |wanted: &'static str| {
            signatures.iter().filter(move |(version, _)| *version == wanted).map(|(_, signature)| signature)
        };
        match self {
            Self::Secret(key) => {
                let tag = Algorithm::Sha256.sign(key, parts);
                of("v1").fold(false, |found, signature| found | is_equal(tag.as_ref(), signature))
            }
            Self::Public(key) => {
                let text = parts.concat();
                let key = UnparsedPublicKey::new(&ED25519, key);
                of("v1a").fold(false, |found, signature| found | key.verify(&text, signature).is_ok())
            }
        }
    }
}
