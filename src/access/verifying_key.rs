//! Keys that tokens are verified with. Each is for one algorithm, which comes from the key and never from a token.

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// Keys of a set that are used; further ones are not.
const MAX_KEYS: usize = 32;
/// RSA keys with a shorter modulus are refused, as the verification would refuse them: 2048 bits.
const MIN_RSA_BYTES: usize = 256;
/// An uncompressed point of P-256.
const P256_POINT_BYTES: usize = 65;
/// A public key of Ed25519.
const ED25519_BYTES: usize = 32;

/// A key and the one algorithm that it verifies.
#[derive(Clone, Debug)]
pub struct VerifyingKey {
    /// The name by which a token may ask for it; without one it is for tokens that ask for none or for an unknown one.
    pub kid: Option<String>,
    /// The only algorithm that it is used with.
    pub algorithm: Algorithm,
    /// Prepared once.
    pub key: DecodingKey,
}

/// A document is not a set of keys.
#[derive(Debug, thiserror::Error)]
#[error("not a JSON Web Key Set with at least one public key for RS256, ES256 or EdDSA")]
pub struct NotAKeySet;

impl VerifyingKey {
    /// A shared secret.
    #[must_use]
    pub fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Self {
        Self { kid: None, algorithm, key: DecodingKey::from_secret(secret) }
    }

    /// A public key in PEM form: RSA for RS256, P-256 for ES256, Ed25519 for `EdDSA`.
    pub fn from_pem(pem: &str) -> Result<Self, &'static str> {
        if pem.contains("PRIVATE KEY") {
            return Err("is a private key; the service needs, and should have, only the public one");
        }
        let pem = pem.as_bytes();
        let length = |key: &DecodingKey| key.try_get_as_bytes().map_or(0, <[u8]>::len);
        let found = [
            (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
            (Algorithm::ES256, DecodingKey::from_ec_pem(pem)),
            (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
        ]
        .into_iter()
        .find_map(|(algorithm, key)| key.ok().map(|key| (algorithm, key)));
        let (algorithm, key) = found.ok_or("is not a public key in PEM form")?;
        match algorithm {
            Algorithm::RS256 if length(&key) < MIN_RSA_BYTES => Err("is an RSA key with less than 2048 bits"),
            Algorithm::ES256 if length(&key) != P256_POINT_BYTES => Err("is an EC key of another curve than P-256"),
            Algorithm::EdDSA if length(&key) != ED25519_BYTES => Err("is an Edwards key of another curve than Ed25519"),
            _ => Ok(Self { kid: None, algorithm, key }),
        }
    }

    /// The usable keys of a JSON Web Key Set. Others are left out, secrets and keys for encryption among them.
    pub fn from_jwks(json: &[u8]) -> Result<Vec<Self>, NotAKeySet> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| NotAKeySet)?;
        let parsed = set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok());
        let keys: Vec<Self> = parsed.filter_map(|key: Jwk| Self::from_jwk(key)).take(MAX_KEYS).collect();
        if keys.is_empty() { Err(NotAKeySet) } else { Ok(keys) }
    }

    fn from_jwk(jwk: Jwk) -> Option<Self> {
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let bytes = match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, .. } => n.len(),
            DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
        };
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (bytes >= MIN_RSA_BYTES).then_some((Algorithm::RS256, KeyAlgorithm::RS256)),
            AlgorithmParameters::EllipticCurve(parameters) => {
                let is_p256 = parameters.curve == EllipticCurve::P256 && bytes == P256_POINT_BYTES;
                is_p256.then_some((Algorithm::ES256, KeyAlgorithm::ES256))
            }
            AlgorithmParameters::OctetKeyPair(parameters) => {
                let is_ed25519 = parameters.curve == EllipticCurve::Ed25519 && bytes == ED25519_BYTES;
                is_ed25519.then_some((Algorithm::EdDSA, KeyAlgorithm::EdDSA))
            }
            // A shared secret has no place in a document that anybody may read.
            _ => None,
        }?;
        let common = jwk.common;
        let is_for_it = common.key_algorithm.is_none_or(|stated| stated == named)
            && common.public_key_use.is_none_or(|stated| stated == PublicKeyUse::Signature)
            && common.key_operations.is_none_or(|stated| stated.contains(&KeyOperations::Verify));
        is_for_it.then_some(Self { kid: common.key_id, algorithm, key })
    }
}
