//! Verification of tokens, with `JWT_SECRET` or with public keys of another issuer.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::DateTime;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, errors::ErrorKind};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::jwks::{Jwks, Set};
use crate::{
    access::{Grant, OrganizationId, Role, verifying_key::VerifyingKey},
    api::vocabulary::token::shown_subject,
    cache::Cache,
    clock::Clock,
    config::{self, Live, TokenKeys},
    lifecycle::Lifecycle,
    timestamp::Timestamp,
};

/// Tolerated difference between the clocks of this host and of the issuer.
const CLOCK_SKEW_SECS: u64 = 30;
/// Maximum length of a token.
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Latest time that `exp` and `nbf` may name: the end of the year 9999, the last one that can be formatted.
const LAST_SECOND: f64 = 253_402_300_799.0;
/// Maximum number of verified tokens in the cache.
const MAX_REMEMBERED: usize = 4096;

/// Claims of a token that are used. The library validates the times too; here each claim has exactly one type, and
/// none may occur twice.
#[derive(Deserialize)]
struct Presented {
    sub: String,
    exp: f64,
    #[serde(default, deserialize_with = "present")]
    role: Option<Role>,
    /// Roles of the organisation, used only for approvals. An issuer may use any form; only a list of strings is
    /// used.
    #[serde(default)]
    roles: Value,
    #[serde(default, deserialize_with = "present")]
    organization_id: Option<OrganizationId>,
    /// Id of the API key that the token was issued for. Used only in tokens that the service issued.
    #[serde(default, deserialize_with = "present")]
    wf_key: Option<Uuid>,
    #[serde(default, deserialize_with = "present", rename = "iat")]
    _iat: Option<f64>,
    #[serde(default, deserialize_with = "present", rename = "nbf")]
    _nbf: Option<f64>,
    #[serde(default, deserialize_with = "present", rename = "iss")]
    _iss: Option<String>,
    #[serde(default, deserialize_with = "present", rename = "aud")]
    _aud: Option<Audience>,
    #[serde(default, deserialize_with = "present", rename = "jti")]
    _jti: Option<String>,
}

/// Audience: one string, or several.
#[derive(Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its type counts here; the library compares")]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Claim that may be absent but not null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(claim: D) -> Result<Option<T>, D::Error> {
    T::deserialize(claim).map(Some)
}

/// Claims of a verified token.
#[derive(Clone, Debug)]
pub struct Claims {
    /// The `sub` claim.
    pub subject: String,
    /// The `organization_id` claim, or the default organisation.
    pub organization: OrganizationId,
    /// Rights of the `role` claim, or of `JWT_DEFAULT_ROLE`.
    pub grant: Arc<Grant>,
    /// The strings in the `roles` claim.
    pub roles: Arc<[String]>,
    /// Id of the API key, whose rights replace those of the role.
    pub key_id: Option<Uuid>,
    /// Expiry in seconds since the epoch; the token is valid for [`CLOCK_SKEW_SECS`] longer.
    expires_at: f64,
}

impl Claims {
    /// End of the validity in seconds since the epoch.
    #[must_use]
    pub fn counts_until(&self) -> f64 {
        self.expires_at + CLOCK_SKEW_SECS as f64
    }

    /// The `exp` claim, to a second.
    #[must_use]
    pub fn ends_at(&self) -> Timestamp {
        at(self.expires_at)
    }

    fn has_expired(&self, clock: &Clock) -> bool {
        self.counts_until() < clock.epoch_secs()
    }
}

/// Converts seconds since the epoch, to a second.
pub(super) fn at(epoch_secs: f64) -> Timestamp {
    // A token that ends after the last formattable second was refused, and one before 1970 has expired.
    let since_epoch = Duration::try_from_secs_f64(epoch_secs).unwrap_or_default();
    (DateTime::UNIX_EPOCH + Duration::from_secs(since_epoch.as_secs())).into()
}

/// Whether tokens of this algorithm are signed with `JWT_SECRET`.
fn is_secret(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

/// Members of a token's header besides algorithm and key.
#[derive(Deserialize)]
struct Marks {
    #[serde(default, deserialize_with = "present")]
    typ: Option<String>,
    #[serde(default, deserialize_with = "present")]
    crit: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    b64: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    zip: Option<Value>,
}

/// Checks the header. `None` if the token is not a plain signed access token: it has another type (RFC 8725, 3.11: a
/// logout token, an ID token…), is compressed (RFC 8725, 3.6), has a payload that is not base64 (RFC 7797), or has
/// critical extensions, none of which are supported (RFC 7515, 4.1.11).
fn check_header(token: &str) -> Option<()> {
    let header = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    let Marks { typ, crit, b64, zip } = serde_json::from_slice(&header).ok()?;
    // Media type, whose `application/` may be omitted (RFC 7515, 4.1.9).
    let is_access = |typ: &String| {
        let typ = typ.to_ascii_lowercase();
        matches!(typ.strip_prefix("application/").unwrap_or(&typ), "jwt" | "at+jwt")
    };
    let is_plain = crit.is_none() && zip.is_none() && b64 != Some(false);
    (typ.as_ref().is_none_or(is_access) && is_plain).then_some(())
}

/// Reason why a token is not valid.
#[derive(Debug, PartialEq, Eq)]
pub enum InvalidToken {
    /// The token is invalid.
    Invalid,
    /// The token has expired.
    Expired,
    /// Undecided: the verification keys have never been available.
    WithoutKeys,
}

/// Candidate keys for a token with that header: of its algorithm and its key id. A key without an id matches every token.
/// Other members of the header (`jwk`, `jku`, `x5c`, …) are ignored.
fn candidates<'a>(keys: &'a TokenKeys, header: &Header, set: Option<&'a Set>) -> Vec<&'a VerifyingKey> {
    let of_set = set.map(|set| set.keys.as_slice()).unwrap_or_default();
    let fits = |key: &&VerifyingKey| key.algorithm == header.alg && (key.kid.is_none() || key.kid == header.kid);
    keys.verifying.iter().chain(of_set).filter(fits).collect()
}

/// Verifier of tokens.
pub struct Tokens {
    /// Keys from the settings.
    keys: Live<TokenKeys>,
    jwks: Option<Jwks>,
    validation: Validation,
    default_role: Option<Role>,
    clock: Clock,
    verified: Mutex<Verified>,
}

/// Cache of verified tokens by their SHA-256. An asymmetric signature costs more than the rest of a request.
struct Verified {
    tokens: Cache<[u8; 32], Arc<Claims>>,
    /// Key set that was used for the verification. After a change of the set the tokens are verified again.
    set: Option<Arc<Set>>,
    /// Keys from the settings that were used, in the same way.
    keys: Arc<TokenKeys>,
}

impl Tokens {
    /// Prepares the keys from the settings, and starts to read those of `JWT_JWKS`.
    #[must_use]
    pub fn start(auth: &config::Auth, http: &reqwest::Client, clock: Clock, lifecycle: &Lifecycle) -> Self {
        let source = auth.jwks.clone().filter(|_| auth.enabled);
        let mut validation = Validation::new(auth.algorithm);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = CLOCK_SKEW_SECS;
        validation.validate_aud = auth.audience.is_some();
        if let Some(issuer) = &auth.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        if let Some(audience) = &auth.audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        Self {
            keys: auth.keys.clone(),
            jwks: source.map(|source| Jwks::start(source, http.clone(), clock.clone(), lifecycle)),
            validation,
            default_role: auth.default_role,
            clock,
            verified: Mutex::new(Verified { tokens: Cache::new(MAX_REMEMBERED), set: None, keys: auth.keys.current() }),
        }
    }

    /// Verifies a token and returns its claims.
    pub async fn verify(&self, token: &str) -> Result<Arc<Claims>, InvalidToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(InvalidToken::Invalid);
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        let set = self.jwks.as_ref().and_then(Jwks::current);
        let keys = self.keys.current();
        if let Some(claims) = self.remembered(&keys, set.as_ref()).tokens.get(&digest) {
            return if claims.has_expired(&self.clock) { Err(InvalidToken::Expired) } else { Ok(claims) };
        }
        check_header(token).ok_or(InvalidToken::Invalid)?;
        let header = decode_header(token).map_err(|_| InvalidToken::Invalid)?;
        let mut set = set;
        if let Some(jwks) = &self.jwks
            && !is_secret(header.alg)
            && candidates(&keys, &header, set.as_deref()).is_empty()
        {
            jwks.refresh().await;
            set = jwks.current();
            if set.is_none() {
                return Err(InvalidToken::WithoutKeys);
            }
        }
        let mut claims = Err(InvalidToken::Invalid);
        for key in candidates(&keys, &header, set.as_deref()) {
            match self.decode(token, key) {
                Err(InvalidToken::Invalid) => {}
                decided => {
                    claims = decided;
                    break;
                }
            }
        }
        let claims = Arc::new(claims?);
        self.remembered(&keys, set.as_ref()).tokens.insert(digest, Arc::clone(&claims), 1);
        Ok(claims)
    }

    fn decode(&self, token: &str, key: &VerifyingKey) -> Result<Claims, InvalidToken> {
        let validation = Validation { algorithms: vec![key.algorithm], ..self.validation.clone() };
        // The library reads the claims of a token only if its signature is right.
        let decoded = decode::<Presented>(token, &key.key, &validation).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => InvalidToken::Expired,
            _ => InvalidToken::Invalid,
        })?;
        let Presented { sub, exp, role, roles, organization_id, wf_key, .. } = decoded.claims;
        if exp > LAST_SECOND {
            return Err(InvalidToken::Invalid);
        }
        let key_id = wf_key.filter(|_| is_secret(key.algorithm));
        let grant = Arc::new(Grant::of(role.or(self.default_role).ok_or(InvalidToken::Invalid)?));
        let roles = roles.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let organization = organization_id.unwrap_or_default();
        // For a token of an API key, the key determines the subject.
        let subject = if key_id.is_some() { Some(sub) } else { shown_subject(&sub) };
        let subject = subject.ok_or(InvalidToken::Invalid)?;
        Ok(Claims { subject, organization, grant, roles, key_id, expires_at: exp })
    }

    /// Cache of the tokens that were verified with these keys and this set.
    fn remembered(&self, keys: &Arc<TokenKeys>, set: Option<&Arc<Set>>) -> MutexGuard<'_, Verified> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = match (&verified.set, set) {
            (None, None) => true,
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            _ => false,
        };
        if !is_same || !Arc::ptr_eq(&verified.keys, keys) {
            let (set, keys) = (set.cloned(), Arc::clone(keys));
            *verified = Verified { tokens: Cache::new(MAX_REMEMBERED), set, keys };
        }
        verified
    }
}
