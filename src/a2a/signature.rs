//! Signatures of agent cards: JSON Web Signatures over the canonical card.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, crypto};
use serde_json::{Map, Value, value::RawValue};

use super::canonical::canonical;
use crate::{
    access::verifying_key::VerifyingKey,
    input::{member, text},
};

/// Maximum number of signatures that are verified.
const MAX_SIGNATURES: usize = 8;
/// Members of a card, of whatever object in it, that are required, or whose presence counts: they stay also if they have
/// their default value.
const KEPT: [&str; 19] = [
    "name",
    "description",
    "supportedInterfaces",
    "version",
    "capabilities",
    "defaultInputModes",
    "defaultOutputModes",
    "skills",
    "id",
    "tags",
    "url",
    "protocolBinding",
    "protocolVersion",
    "organization",
    "documentationUrl",
    "iconUrl",
    "streaming",
    "pushNotifications",
    "extendedAgentCard",
];
/// Members with content that the protocol does not know.
const FREE: [&str; 3] = ["params", "metadata", "scopes"];

/// Result of the verification of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// One of the keys has signed it.
    Valid,
    /// It has signatures, and none of them is valid for one of the keys.
    Invalid,
    /// It has no signature.
    Absent,
    /// It has signatures, and there is no key to verify them.
    Unchecked,
}

impl Signature {
    /// All results.
    pub const ALL: [Self; 4] = [Self::Valid, Self::Invalid, Self::Absent, Self::Unchecked];

    /// Name in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Invalid => "invalid",
            Self::Absent => "absent",
            Self::Unchecked => "unchecked",
        }
    }

    /// Verifies the signatures of a card.
    ///
    /// The specification has members with default values removed before a card is signed, and implementations differ in
    /// which. So a signature is valid if it fits the card as received, without its default values, or without all empty
    /// values: these forms say the same.
    #[must_use]
    pub fn of(card: &RawValue, keys: &[VerifyingKey]) -> Self {
        let Ok(mut card) = serde_json::from_str::<Map<String, Value>>(card.get()) else { return Self::Absent };
        let Some(Value::Array(signatures)) = card.remove("signatures") else { return Self::Absent };
        if signatures.is_empty() {
            return Self::Absent;
        }
        if keys.is_empty() {
            return Self::Unchecked;
        }
        let card = Value::Object(card);
        let without_defaults = cleaned(card.clone(), &|name, value| is_default(value) && !KEPT.contains(&name));
        let without_empty = cleaned(card.clone(), &|_, value| is_empty(value));
        let payloads = [card, without_defaults, without_empty];
        let payloads = payloads.map(|form| BASE64_URL_SAFE_NO_PAD.encode(canonical(&form)));
        let is_valid = |signature: &Value| {
            let part = |name: &str| signature.get(name).and_then(Value::as_str);
            let (Some(protected), Some(signature)) = (part("protected"), part("signature")) else { return false };
            let Some((algorithm, kid)) = header(protected) else { return false };
            let fits = |key: &&VerifyingKey| key.algorithm == algorithm && (key.kid.is_none() || key.kid == kid);
            keys.iter().filter(fits).any(|key| {
                payloads.iter().any(|payload| {
                    let message = format!("{protected}.{payload}");
                    crypto::verify(signature, message.as_bytes(), &key.key, algorithm).unwrap_or(false)
                })
            })
        };
        if signatures.iter().take(MAX_SIGNATURES).any(is_valid) { Self::Valid } else { Self::Invalid }
    }
}

/// Algorithm and key id of a protected header. `None`: it cannot be read, or requires an extension (`crit`).
fn header(protected: &str) -> Option<(Algorithm, Option<String>)> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(protected).ok()?;
    let header: &RawValue = serde_json::from_slice(&json).ok()?;
    if member(header, "crit").is_some() {
        return None;
    }
    let algorithm = member(header, "alg").and_then(text)?.parse().ok()?;
    Some((algorithm, member(header, "kid").and_then(text)))
}

/// The value without the members for which `is_dropped` holds once their own members are dropped.
fn cleaned(value: Value, is_dropped: &dyn Fn(&str, &Value) -> bool) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| {
                let value = if FREE.contains(&name.as_str()) { value } else { cleaned(value, is_dropped) };
                (name, value)
            });
            Value::Object(members.filter(|(name, value)| !is_dropped(name, value)).collect())
        }
        Value::Array(elements) => elements.into_iter().map(|element| cleaned(element, is_dropped)).collect(),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// Default value of a member of a protocol buffer. An empty object is a message that is present.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{Ed25519KeyPair, KeyPair as _},
    };
    use jsonwebtoken::EncodingKey;
    use serde_json::json;

    use super::*;

    /// A new key, to sign and to verify.
    fn pair() -> (EncodingKey, VerifyingKey) {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key");
        let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key());
        let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}).to_string();
        let public = VerifyingKey::from_jwks(set.as_bytes()).expect("a set").remove(0);
        (EncodingKey::from_ed_der(document.as_ref()), public)
    }

    fn named(key: &VerifyingKey, kid: &str) -> VerifyingKey {
        VerifyingKey { kid: Some(kid.to_owned()), ..key.clone() }
    }

    /// A signature of this payload by that signer.
    fn signed(payload: &Value, signer: &EncodingKey, header: &Value) -> Value {
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(canonical(value));
        let protected = encode(header);
        let message = format!("{protected}.{}", encode(payload));
        let signature = crypto::sign(message.as_bytes(), signer, Algorithm::EdDSA).expect("a signature");
        json!({"protected": protected, "signature": signature})
    }

    fn check(card: &Value, signatures: Value, keys: &[VerifyingKey]) -> Signature {
        let mut card = card.clone();
        card["signatures"] = signatures;
        Signature::of(&crate::input::to_raw(&card), keys)
    }

    #[test]
    fn a_card_is_verified_in_the_forms_in_which_implementations_sign_it() {
        let card = json!({"name": "x", "description": "", "capabilities": {"streaming": false, "extensions": []},
            "skills": [], "iconUrl": "", "supportedInterfaces": [{"url": "u", "tenant": ""}]});
        let specified = json!({"name": "x", "description": "", "capabilities": {"streaming": false}, "skills": [],
            "iconUrl": "", "supportedInterfaces": [{"url": "u"}]});
        let of_the_sdk = json!({"name": "x", "capabilities": {"streaming": false},
            "supportedInterfaces": [{"url": "u"}]});
        let header = json!({"alg": "EdDSA", "typ": "JOSE", "kid": "k"});
        let (signer, key) = pair();
        for payload in [&card, &specified, &of_the_sdk] {
            let signature = signed(payload, &signer, &header);
            assert_eq!(check(&card, json!([signature]), std::slice::from_ref(&key)), Signature::Valid, "{payload}");
            assert_eq!(check(&card, json!([{}, signature]), &[named(&key, "k")]), Signature::Valid, "one is enough");
            assert_eq!(check(&card, json!([signature]), &[named(&key, "other")]), Signature::Invalid);
            let mut changed = card.clone();
            changed["name"] = json!("y");
            assert_eq!(check(&changed, json!([signature]), std::slice::from_ref(&key)), Signature::Invalid);
        }
    }

    #[test]
    fn a_signature_of_another_key_or_with_a_strange_header_is_invalid() {
        let card = json!({"name": "x"});
        let ((signer, key), (other, _)) = (pair(), pair());
        let by = |signer: &EncodingKey, header: Value| {
            check(&card, json!([signed(&card, signer, &header)]), std::slice::from_ref(&key))
        };
        assert_eq!(by(&signer, json!({"alg": "EdDSA"})), Signature::Valid);
        assert_eq!(by(&other, json!({"alg": "EdDSA"})), Signature::Invalid);
        for header in
            [json!({}), json!({"alg": "none"}), json!({"alg": "HS256"}), json!({"alg": "EdDSA", "crit": ["b64"]})]
        {
            assert_eq!(by(&signer, header.clone()), Signature::Invalid, "{header}");
        }
    }

    #[test]
    fn a_card_without_signatures_or_keys_says_so() {
        let (card, keys) = (json!({"name": "x"}), [pair().1]);
        assert_eq!(Signature::of(&crate::input::to_raw(&card), &keys), Signature::Absent);
        assert_eq!(check(&card, json!([]), &keys), Signature::Absent);
        assert_eq!(check(&card, json!("no"), &keys), Signature::Absent);
        assert_eq!(check(&card, json!([{}]), &[]), Signature::Unchecked);
        assert_eq!(check(&card, json!([{}, 7]), &keys), Signature::Invalid);
    }
}
