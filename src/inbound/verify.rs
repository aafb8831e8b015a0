//! Verification of a delivery by the rules of its preset.

use http::{HeaderMap, header};

use super::{
    Config, Preset,
    signature::{Algorithm, Encoding, StandardKey, is_equal, is_equal_text},
};
use crate::trace::hex;

/// Maximum difference between the signed time and now, in both directions.
pub const WINDOW_SECS: u64 = 300;
/// Maximum number of signatures in a header that are compared; senders have two or three while a secret changes.
const MAX_SIGNATURES: usize = 16;

/// Reason why a delivery is refused: for the owner of the trigger, never for the sender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A header is missing.
    #[error("the header {0} is missing")]
    Missing(String),
    /// A header occurs more than once: it would be undefined which one counts.
    #[error("the header {0} occurs more than once")]
    Repeated(String),
    /// A header is not in the form of the preset.
    #[error("the header {0} is not in the form of the preset")]
    Malformed(String),
    /// The signed time is not a number of seconds.
    #[error("the header {0} does not have a time in seconds since 1970")]
    NoTime(String),
    /// The signed time is too long ago.
    #[error("the signed time is {0} seconds ago; at most 300 are accepted")]
    TooOld(u64),
    /// The signed time is too far ahead.
    #[error("the signed time is {0} seconds ahead; at most 300 are accepted")]
    TooNew(u64),
    /// None of the secrets has made the signature.
    #[error("the signature is not by one of the secrets")]
    WrongSignature,
    /// The credentials are none of the secrets.
    #[error("the credentials are not one of the secrets")]
    WrongCredentials,
}

/// Proof of a verified delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Id that the verified headers give the delivery.
    pub id: Option<String>,
    /// The signature, as text.
    pub signature: Option<String>,
}

impl Config {
    /// Verifies a delivery over its bytes as they arrived. All secrets are tried. `now` is in seconds since 1970.
    pub fn verify(&self, secrets: &[String], headers: &HeaderMap, body: &[u8], now: i64) -> Result<Proof, Failure> {
        match self.preset {
            Preset::None => Ok(Proof::default()),
            Preset::Github => verify_github(secrets, headers, body),
            Preset::Stripe => verify_stripe(secrets, headers, body, now),
            Preset::Slack => verify_slack(secrets, headers, body, now),
            Preset::Standard => verify_standard(secrets, headers, body, now),
            Preset::Hmac => self.verify_hmac(secrets, headers, body, now),
            Preset::Basic => verify_basic(secrets, headers),
            Preset::Header => self.verify_header(secrets, headers),
        }
    }

    fn verify_hmac(&self, secrets: &[String], headers: &HeaderMap, body: &[u8], now: i64) -> Result<Proof, Failure> {
        let name = self.header.as_deref().unwrap_or_default();
        let text = after_prefix(headers, name, self.prefix.as_deref())?;
        let signature = self.encoding.unwrap_or(Encoding::Hex).decode(text).ok_or_else(|| malformed(name))?;
        let time = match &self.timestamp_header {
            Some(name) => {
                let time = single(headers, name)?;
                in_window(name, time, now)?;
                Some(time)
            }
            None => None,
        };
        let parts = match time {
            Some(time) => &[time.as_bytes(), b".", body][..],
            None => &[body],
        };
        let algorithm = self.algorithm.unwrap_or(Algorithm::Sha256);
        must_have_signed(secrets, algorithm, parts, std::slice::from_ref(&signature))?;
        Ok(Proof { id: None, signature: Some(hex(&signature)) })
    }

    fn verify_header(&self, secrets: &[String], headers: &HeaderMap) -> Result<Proof, Failure> {
        let name = self.header.as_deref().unwrap_or_default();
        let given = after_prefix(headers, name, self.prefix.as_deref())?;
        must_equal(secrets, given.as_bytes())
    }
}

fn verify_github(secrets: &[String], headers: &HeaderMap, body: &[u8]) -> Result<Proof, Failure> {
    const SIGNATURE: &str = "x-hub-signature-256";
    let signature = after_prefix(headers, SIGNATURE, Some("sha256="))?;
    let signature = Encoding::Hex.decode(signature).ok_or_else(|| malformed(SIGNATURE))?;
    must_have_signed(secrets, Algorithm::Sha256, &[body], std::slice::from_ref(&signature))?;
    let id = single(headers, "x-github-delivery").ok().map(ToOwned::to_owned);
    Ok(Proof { id, signature: Some(hex(&signature)) })
}

fn verify_stripe(secrets: &[String], headers: &HeaderMap, body: &[u8], now: i64) -> Result<Proof, Failure> {
    const SIGNATURE: &str = "stripe-signature";
    // While a secret changes there are several `v1`; other schemes are for tests, and are ignored.
    let parts = single(headers, SIGNATURE)?.split(',').filter_map(|part| part.trim().split_once('='));
    let (mut time, mut signatures) = (None, Vec::new());
    for (name, value) in parts {
        match name {
            "t" => time = time.or(Some(value)),
            "v1" if signatures.len() < MAX_SIGNATURES => signatures.extend(Encoding::Hex.decode(value)),
            _ => {}
        }
    }
    let time = time.ok_or_else(|| malformed(SIGNATURE))?;
    in_window(SIGNATURE, time, now)?;
    if signatures.is_empty() {
        return Err(malformed(SIGNATURE));
    }
    must_have_signed(secrets, Algorithm::Sha256, &[time.as_bytes(), b".", body], &signatures)?;
    Ok(Proof { id: None, signature: None })
}

fn verify_slack(secrets: &[String], headers: &HeaderMap, body: &[u8], now: i64) -> Result<Proof, Failure> {
    const SIGNATURE: &str = "x-slack-signature";
    const TIME: &str = "x-slack-request-timestamp";
    let time = single(headers, TIME)?;
    in_window(TIME, time, now)?;
    let signature = after_prefix(headers, SIGNATURE, Some("v0="))?;
    let signature = Encoding::Hex.decode(signature).ok_or_else(|| malformed(SIGNATURE))?;
    let parts = [b"v0:", time.as_bytes(), b":", body];
    must_have_signed(secrets, Algorithm::Sha256, &parts, std::slice::from_ref(&signature))?;
    Ok(Proof { id: None, signature: Some(hex(&signature)) })
}

fn verify_standard(secrets: &[String], headers: &HeaderMap, body: &[u8], now: i64) -> Result<Proof, Failure> {
    // Svix sends the same under its own names; the names of one delivery are not mixed.
    let names = if headers.contains_key("webhook-id") || !headers.contains_key("svix-id") {
        ["webhook-id", "webhook-timestamp", "webhook-signature"]
    } else {
        ["svix-id", "svix-timestamp", "svix-signature"]
    };
    let [id, time, signatures] = [single(headers, names[0])?, single(headers, names[1])?, single(headers, names[2])?];
    in_window(names[1], time, now)?;
    let read = |text| {
        let (version, signature) = str::split_once(text, ',')?;
        Some((version, Encoding::Base64.decode(signature)?))
    };
    let signatures: Vec<_> = signatures.split(' ').filter_map(read).take(MAX_SIGNATURES).collect();
    if signatures.is_empty() {
        return Err(malformed(names[2]));
    }
    let parts = [id.as_bytes(), b".", time.as_bytes(), b".", body];
    let keys = secrets.iter().filter_map(|secret| StandardKey::parse(secret));
    if keys.fold(false, |found, key| found | key.has_signed(&parts, &signatures)) {
        Ok(Proof { id: Some(id.to_owned()), signature: None })
    } else {
        Err(Failure::WrongSignature)
    }
}

fn verify_basic(secrets: &[String], headers: &HeaderMap) -> Result<Proof, Failure> {
    let name = header::AUTHORIZATION.as_str();
    let (scheme, given) = single(headers, name)?.split_once(' ').ok_or_else(|| malformed(name))?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(malformed(name));
    }
    let given = Encoding::Base64.decode(given.trim()).ok_or_else(|| malformed(name))?;
    must_equal(secrets, &given)
}

/// Checks that one of the secrets has made one of the signatures.
fn must_have_signed(
    secrets: &[String],
    algorithm: Algorithm,
    parts: &[&[u8]],
    signatures: &[Vec<u8>],
) -> Result<(), Failure> {
    let is_signed = secrets.iter().fold(false, |found, secret| {
        let tag = algorithm.sign(secret.as_bytes(), parts);
        // An empty secret is a mistake: everybody has it.
        let is_usable = !secret.is_empty();
        signatures.iter().fold(found, |found, signature| found | (is_usable & is_equal(tag.as_ref(), signature)))
    });
    if is_signed { Ok(()) } else { Err(Failure::WrongSignature) }
}

/// Checks that one of the secrets is this text.
fn must_equal(secrets: &[String], given: &[u8]) -> Result<Proof, Failure> {
    let is_equal =
        |found: bool, secret: &String| found | (!secret.is_empty() & is_equal_text(secret.as_bytes(), given));
    if secrets.iter().fold(false, is_equal) { Ok(Proof::default()) } else { Err(Failure::WrongCredentials) }
}

/// The value of a header that occurs once.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, Failure> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Err(Failure::Missing(name.to_owned())),
        (Some(value), None) => value.to_str().map(str::trim).map_err(|_| malformed(name)),
        (Some(_), Some(_)) => Err(Failure::Repeated(name.to_owned())),
    }
}

fn after_prefix<'h>(headers: &'h HeaderMap, name: &str, prefix: Option<&str>) -> Result<&'h str, Failure> {
    let value = single(headers, name)?;
    value.strip_prefix(prefix.unwrap_or_default()).ok_or_else(|| malformed(name))
}

fn malformed(name: &str) -> Failure {
    Failure::Malformed(name.to_owned())
}

/// Checks that the time is not too far from now, whether before or after.
fn in_window(name: &str, time: &str, now: i64) -> Result<(), Failure> {
    let is_number = !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit());
    let time = if is_number { time.parse::<i64>().ok() } else { None };
    let time = time.ok_or_else(|| Failure::NoTime(name.to_owned()))?;
    match now.abs_diff(time) {
        secs if secs <= WINDOW_SECS => Ok(()),
        secs if time < now => Err(Failure::TooOld(secs)),
        secs => Err(Failure::TooNew(secs)),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    /// Signature by the library of a provider; `tests/clients/inbound_vectors.py` has made it.
    #[derive(Clone)]
    struct Vector {
        preset: Preset,
        name: String,
        secret: String,
        body: String,
        headers: Vec<(String, String)>,
    }

    impl Vector {
        fn headers(&self) -> HeaderMap {
            let pair = |(name, value): &(String, String)| {
                (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
            };
            let mut headers = HeaderMap::new();
            for (name, value) in self.headers.iter().map(pair) {
                headers.append(name, value);
            }
            headers
        }

        fn body(&self) -> Vec<u8> {
            BASE64_STANDARD.decode(&self.body).expect("base64")
        }

        fn verify(&self, now: i64) -> Result<Proof, Failure> {
            self.verify_with(std::slice::from_ref(&self.secret), now)
        }

        fn verify_with(&self, secrets: &[String], now: i64) -> Result<Proof, Failure> {
            config(&json!({"preset": self.preset.as_str()})).verify(secrets, &self.headers(), &self.body(), now)
        }

        /// The same with the values of its headers changed.
        fn changed(&self, change: impl Fn(&str, &str) -> String) -> Self {
            let headers = self.headers.iter().map(|(name, value)| (name.clone(), change(name, value)));
            Self { headers: headers.collect(), ..self.clone() }
        }
    }

    fn config(stored: &serde_json::Value) -> Config {
        serde_json::from_value(stored.clone()).expect("a configuration")
    }

    fn vectors() -> (i64, Vec<Vector>) {
        let json: serde_json::Value = serde_json::from_str(include_str!("vectors.json")).expect("JSON");
        let at = json["at"].as_i64().expect("a time");
        let vectors = json["vectors"].as_array().expect("an array").iter().map(|vector| Vector {
            preset: serde_json::from_value(vector["preset"].clone()).expect("a preset"),
            headers: vector["headers"]
                .as_object()
                .map(|headers| {
                    headers
                        .iter()
                        .map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned()))
                        .collect()
                })
                .expect("an object"),
            name: vector["name"].as_str().expect("a name").to_owned(),
            secret: vector["secret"].as_str().expect("a secret").to_owned(),
            body: vector["body"].as_str().expect("a body").to_owned(),
        });
        (at, vectors.collect())
    }

    fn one_of(preset: Preset, name: &str) -> (i64, Vector) {
        let (at, vectors) = vectors();
        let found = vectors.into_iter().find(|vector| vector.preset == preset && vector.name.contains(name));
        (at, found.expect("a vector"))
    }

    /// C3, tests 1 and 2: what the provider's library has signed is accepted, whatever the body is like; nothing else is.
    #[test]
    fn the_signatures_of_the_providers_libraries_are_accepted_and_every_change_is_refused() {
        let (at, vectors) = vectors();
        assert!(vectors.len() > 50, "{}", vectors.len());
        for vector in vectors {
            let name = format!("{} {}", vector.preset.as_str(), vector.name);
            assert!(vector.verify(at).is_ok(), "{name}: {:?}", vector.verify(at));
            let (headers, config) = (vector.headers(), config(&json!({"preset": vector.preset.as_str()})));
            let secrets = std::slice::from_ref(&vector.secret);
            for changed in [[vector.body(), b" ".to_vec()].concat(), [b"\n".to_vec(), vector.body()].concat()] {
                assert_eq!(config.verify(secrets, &headers, &changed, at), Err(Failure::WrongSignature), "{name}");
            }
            let flipped: Vec<_> = vector.body().iter().map(|byte| byte ^ 1).collect();
            if !flipped.is_empty() {
                assert_eq!(config.verify(secrets, &headers, &flipped, at), Err(Failure::WrongSignature), "{name}");
            }
            let other = one_of(vector.preset, "plain").1.changed(|_, value| value.to_owned());
            let foreign = vec!["whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned()];
            assert_eq!(other.verify_with(&foreign, at), Err(Failure::WrongSignature), "{name}");
            assert_eq!(vector.verify_with(&[], at), Err(Failure::WrongSignature), "{name}");
            let three = [foreign[0].clone(), "another secret".to_owned(), vector.secret.clone()];
            assert!(vector.verify_with(&three, at).is_ok(), "{name}: every secret is tried");
        }
    }

    /// C3, test 3: several signatures in one header, the right one at any place.
    #[test]
    fn one_right_signature_of_several_is_enough() {
        let (at, stripe) = one_of(Preset::Stripe, "plain");
        let header = stripe.headers[0].1.clone();
        let [time, right, _] = header.split(',').collect::<Vec<_>>()[..] else { panic!("{header}") };
        let wrong = format!("v1={}", "0".repeat(64));
        for (text, is_right) in [
            (format!("{time},{wrong},{right}"), true),
            (format!("{time},{right},{wrong}"), true),
            (format!("{time}, {right}"), true),
            (format!("{right},{time}"), true),
            (format!("{time},v9=x,{right},v0={}", "0".repeat(64)), true),
            (format!("{time},v1=,{right}"), true),
            (format!("{time},{wrong},{wrong}"), false),
            (format!("{time},{}", right.replace("v1", "v0")), false),
            (right.to_owned(), false),
            (time.to_owned(), false),
        ] {
            assert_eq!(stripe.changed(|_, _| text.clone()).verify(at).is_ok(), is_right, "{text}");
        }
        for name in ["plain webhook", "plain ed25519"] {
            let (at, standard) = one_of(Preset::Standard, name);
            let right = standard.headers.iter().find(|(name, _)| name == "webhook-signature").expect("one").1.clone();
            let version = right.split(',').next().expect("a version");
            let wrong = format!("{version},{}", BASE64_STANDARD.encode([0; 64]));
            for (text, is_right) in [
                (format!("{wrong} {right}"), true),
                (format!("{right} {wrong}"), true),
                (format!("v7,abc nonsense {right}"), true),
                (format!("{wrong} {wrong}"), false),
                (right.replacen(version, "v2", 1), false),
                (right.replacen(version, if version == "v1" { "v1a" } else { "v1" }, 1), false),
            ] {
                let change =
                    |name: &str, value: &str| if name.ends_with("signature") { &text } else { value }.to_owned();
                assert_eq!(standard.changed(change).verify(at).is_ok(), is_right, "{text}");
            }
        }
    }

    /// C3, test 4: the window has the same size in both directions.
    #[test]
    fn a_time_outside_of_the_window_is_refused_on_both_sides() {
        let (_, vectors) = vectors();
        let at = one_of(Preset::Stripe, "plain").0;
        for vector in vectors.iter().filter(|vector| vector.name.starts_with("plain")) {
            let has_time = vector.preset != Preset::Github;
            for (seconds, is_right) in
                [(-301, false), (-300, true), (-299, true), (299, true), (300, true), (301, false)]
            {
                // The delivery was signed that long before or after now.
                let verified = vector.verify(at - seconds);
                assert_eq!(verified.is_ok(), is_right || !has_time, "{} {seconds}", vector.preset.as_str());
                if has_time && seconds == -301 {
                    assert_eq!(verified, Err(Failure::TooOld(301)));
                } else if has_time && seconds == 301 {
                    assert_eq!(verified, Err(Failure::TooNew(301)));
                }
            }
            let overlong = "9".repeat(40);
            let times = ["", "soon", "-1", "+1764450000", "1764450000.0", "1e9", &overlong];
            for time in times.into_iter().filter(|_| has_time) {
                let changed = vector.changed(|_, value| value.replace("1764450000", time));
                let refused = changed.verify(at).expect_err(time);
                assert!(matches!(refused, Failure::NoTime(_)), "{} {time:?}: {refused:?}", vector.preset.as_str());
            }
        }
    }

    /// C3, test 7: missing and empty parts are refused, with a reason.
    #[test]
    fn a_missing_repeated_or_empty_header_is_refused_with_the_reason() {
        let (_, vectors) = vectors();
        let at = one_of(Preset::Stripe, "plain").0;
        for vector in vectors.iter().filter(|vector| vector.name.starts_with("plain")) {
            let name_of = |index: usize| vector.headers[index].0.to_ascii_lowercase();
            for index in 0..vector.headers.len() {
                if name_of(index) == "x-github-delivery" {
                    continue;
                }
                let mut without = vector.clone();
                without.headers.remove(index);
                let refused = without.verify(at).expect_err("a header is missing");
                assert!(matches!(refused, Failure::Missing(_)), "{refused:?}");
                let mut twice = vector.clone();
                twice.headers.push(vector.headers[index].clone());
                assert_eq!(twice.verify(at), Err(Failure::Repeated(name_of(index))));
            }
            for empty in ["", "sha256=", "v0=", "v1,", "t=1764450000,v1=", "t=,v1=", "v1", " ", "=", ","] {
                let is_signature = |name: &str| name.to_ascii_lowercase().contains("signature");
                let changed =
                    vector.changed(|name, value| if is_signature(name) { empty.to_owned() } else { value.to_owned() });
                let refused = changed.verify(at).expect_err(empty);
                let is_expected =
                    matches!(refused, Failure::Malformed(_) | Failure::NoTime(_) | Failure::WrongSignature);
                assert!(is_expected, "{} {empty:?}: {refused:?}", vector.preset.as_str());
            }
        }
        let empty = vec![String::new()];
        let tag = Algorithm::Sha256.sign(b"", &[b"{}"]);
        let mut headers = HeaderMap::new();
        let value = format!("sha256={}", hex(tag.as_ref()));
        headers.insert("x-hub-signature-256", HeaderValue::from_str(&value).expect("a value"));
        let refused = config(&json!({"preset": "github"})).verify(&empty, &headers, b"{}", at);
        assert_eq!(refused, Err(Failure::WrongSignature), "an empty secret proves nothing");
    }

    #[test]
    fn a_configured_hmac_is_verified_as_its_members_say() {
        let secret = vec!["a long secret".to_owned()];
        let header = |name: &'static str, value: &str| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        for algorithm in Algorithm::ALL {
            for encoding in Encoding::ALL {
                for has_time in [false, true] {
                    let stored = json!({"preset": "hmac", "header": "x-sig", "prefix": "p:", "algorithm": algorithm,
                        "encoding": encoding, "timestamp_header": has_time.then_some("x-time")});
                    let config = config(&stored);
                    let parts: &[&[u8]] = if has_time { &[b"1000", b".", b"body"] } else { &[b"body"] };
                    let tag = algorithm.sign(secret[0].as_bytes(), parts);
                    let tag = match encoding {
                        Encoding::Hex => hex(tag.as_ref()),
                        Encoding::Base64 => BASE64_STANDARD.encode(tag.as_ref()),
                    };
                    let headers: HeaderMap =
                        [header("x-sig", &format!("p:{tag}")), header("x-time", "1000")].into_iter().collect();
                    assert!(config.verify(&secret, &headers, b"body", 1300).is_ok(), "{stored}");
                    assert_eq!(config.verify(&secret, &headers, b"body", 1301).is_ok(), !has_time, "{stored}");
                    assert_eq!(config.verify(&secret, &headers, b"bodY", 1300), Err(Failure::WrongSignature));
                    let without: HeaderMap = [header("x-sig", &tag), header("x-time", "1000")].into_iter().collect();
                    assert_eq!(config.verify(&secret, &without, b"body", 1300), Err(malformed("x-sig")));
                }
            }
        }
    }

    /// Test case 2 of RFC 4231 and of RFC 2202.
    #[test]
    fn the_hash_functions_are_those_of_the_standards() {
        let text: &[&[u8]] = &[b"what do ya want ", b"for nothing?"];
        for (algorithm, expected) in [
            (Algorithm::Sha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                Algorithm::Sha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34\
                 d4a6b4b636e070a38bce737",
            ),
            (Algorithm::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        ] {
            assert_eq!(hex(algorithm.sign(b"Jefe", text).as_ref()), expected);
        }
    }

    #[test]
    fn credentials_are_one_of_the_secrets() {
        let secrets = ["user:pass:word".to_owned(), "other:pass".to_owned()];
        let verify = |stored: serde_json::Value, name: &'static str, value: &str| {
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))]);
            config(&stored).verify(&secrets, &headers, b"", 0)
        };
        let basic = |value: &str| verify(json!({"preset": "basic"}), "authorization", value);
        for right in ["user:pass:word", "other:pass"] {
            assert!(basic(&format!("basic {}", BASE64_STANDARD.encode(right))).is_ok());
        }
        for wrong in ["user:pass", "user:pass:word ", "", "user", "other:pass:word"] {
            assert!(basic(&format!("Basic {}", BASE64_STANDARD.encode(wrong))).is_err(), "{wrong}");
        }
        for wrong in ["Basic", "Basic !", "Bearer dXNlcjpwYXNzOndvcmQ=", ""] {
            assert_eq!(basic(wrong), Err(malformed("authorization")), "{wrong}");
        }
        let stored = json!({"preset": "header", "header": "x-key", "prefix": "Token "});
        let header = |value: &str| verify(stored.clone(), "x-key", value);
        assert!(header("Token other:pass").is_ok());
        assert_eq!(header("Token other:pas"), Err(Failure::WrongCredentials));
        assert_eq!(header("other:pass"), Err(malformed("x-key")));
        assert_eq!(header("Token "), Err(malformed("x-key")), "white space at the end is no part of a header");
    }
}
