//! Verification keys for tokens. Each is for one algorithm, which is taken from the key and never from a token.

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// Maximum number of keys of a set; further keys are ignored.
const MAX_KEYS: usize = 32;
/// Minimum length of an RSA modulus: 2048 bits. The verification refuses shorter ones too.
const MIN_RSA_BYTES: usize = 256;
/// Length of an uncompressed point of P-256.
const P256_POINT_BYTES: usize = 65;
/// Length of a public key of Ed25519.
const ED25519_BYTES: usize = 32;

/// Verification key with its algorithm.
#[derive(Clone, Debug)]
pub struct VerifyingKey {
    /// Key id that a token may name. A key without one is for tokens that name none or an unknown one.
    pub kid: Option<String>,
    /// The only algorithm that the key is used with.
    pub algorithm: Algorithm,
    /// Key, decoded once.
    pub key: DecodingKey,
}

/// Error: a document is not a set of keys.
#[derive(Debug, thiserror::Error)]
#[error("not a JSON Web Key Set with at least one public key for RS256, ES256 or EdDSA")]
pub struct NotAKeySet;

impl VerifyingKey {
    /// Key of a shared secret.
    #[must_use]
    pub fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Self {
        Self { kid: None, algorithm, key: DecodingKey::from_secret(secret) }
    }

    /// Parses a public key in PEM form: RSA for RS256, P-256 for ES256, Ed25519 for `EdDSA`.
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

    /// The usable keys of a JSON Web Key Set. Other keys are skipped, such as secrets and encryption keys.
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
            // A shared secret must not be in a public document.
            _ => None,
        }?;
        let common = jwk.common;
        let is_for_it = common.key_algorithm.is_none_or(|stated| stated == named)
            && common.public_key_use.is_none_or(|stated| stated == PublicKeyUse::Signature)
            && common.key_operations.is_none_or(|stated| stated.contains(&KeyOperations::Verify));
        is_for_it.then_some(Self { kid: common.key_id, algorithm, key })
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

    use super::*;

    /// The examples of RFC 7515 (A.1 to A.3) and RFC 8037 (A.4): key, algorithm, and the signed token.
    const EXAMPLES: [(&str, Algorithm, &str); 3] = [
        (
            r#"{"kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}"#,
            Algorithm::RS256,
            "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
            Algorithm::ES256,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            Algorithm::EdDSA,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ];

    fn verifies(key: &VerifyingKey, token: &str) -> bool {
        let (message, signature) = token.rsplit_once('.').expect("a token");
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, key.algorithm).unwrap_or(false)
    }

    /// Forgeries that a verifier must refuse: other signatures over the same message.
    fn forgeries(token: &str) -> Vec<(String, String)> {
        let (message, signature) = token.rsplit_once('.').expect("a token");
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let mut found = vec![
            ("none".to_owned(), Vec::new()),
            ("zeros".to_owned(), vec![0; bytes.len()]),
            ("ones".to_owned(), vec![0xff; bytes.len()]),
            ("one byte less".to_owned(), bytes[1..].to_vec()),
            ("without the end".to_owned(), bytes[..bytes.len() - 1].to_vec()),
            ("a byte more".to_owned(), [&bytes[..], &[0]].concat()),
            ("a zero before".to_owned(), [&[0], &bytes[..]].concat()),
            ("twice".to_owned(), bytes.repeat(2)),
            ("backwards".to_owned(), bytes.iter().rev().copied().collect()),
            ("halves exchanged".to_owned(), [&bytes[bytes.len() / 2..], &bytes[..bytes.len() / 2]].concat()),
            // ASN.1 encoding, which other formats of ECDSA signatures use.
            ("ASN.1".to_owned(), {
                let half = bytes.len() / 2;
                let integer = |part: &[u8]| [&[2, 33, 0][..], &part[..32.min(part.len())]].concat();
                [&[0x30, 70][..], &integer(&bytes[..half]), &integer(&bytes[half..])].concat()
            }),
        ];
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            found.push((format!("bit {bit}"), flipped));
        }
        let token =
            |(name, bytes): (String, Vec<u8>)| (name, format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)));
        let mut found: Vec<_> = found.into_iter().map(token).collect();
        found.push(("padded".to_owned(), format!("{message}.{signature}=")));
        found.push(("another message".to_owned(), format!("{message}A.{signature}")));
        found
    }

    #[test]
    fn the_published_examples_verify_and_nothing_near_them_does() {
        // Another test of this process may have installed it already.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let keys: Vec<VerifyingKey> = EXAMPLES
            .iter()
            .map(|(jwk, ..)| {
                let set = format!(r#"{{"keys":[{jwk}]}}"#);
                VerifyingKey::from_jwks(set.as_bytes()).expect("a set").remove(0)
            })
            .collect();
        for (index, (_, algorithm, token)) in EXAMPLES.iter().enumerate() {
            assert_eq!(keys[index].algorithm, *algorithm);
            for (other, key) in keys.iter().enumerate() {
                assert_eq!(verifies(key, token), other == index, "{algorithm:?} by the key of {:?}", key.algorithm);
            }
            for (name, forged) in forgeries(token) {
                assert!(!verifies(&keys[index], &forged), "{algorithm:?}: {name}");
            }
        }
        let secret = BASE64_URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .expect("base64url");
        let key = VerifyingKey::from_secret(Algorithm::HS256, &secret);
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert!(verifies(&key, token));
        for (name, forged) in forgeries(token) {
            assert!(!verifies(&key, &forged), "HS256: {name}");
        }
    }
}
