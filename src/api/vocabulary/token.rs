//! Tokens issued by the service: JSON Web Tokens, signed with `JWT_SECRET`.

use chrono::{DateTime, Utc};
use jsonwebtoken::{EncodingKey, Header, encode};
use secrecy::ExposeSecret;
use serde::Serialize;
use uuid::Uuid;

use super::api_key_cache::SUBJECT_PREFIX;
use crate::{
    access::{Actor, OrganizationId, Role},
    config,
    timestamp::Timestamp,
    visible,
};

/// Maximum length of a subject, as it is shown. It fits the columns that name a user.
const MAX_SUBJECT_BYTES: usize = 255;

/// Claims of a token that the service issues.
#[derive(Debug, Serialize)]
struct Issued<'a> {
    sub: &'a str,
    role: Role,
    organization_id: &'a OrganizationId,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    wf_key: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// Reason why no token can be issued.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// `JWT_SECRET` is not set.
    #[error("JWT_SECRET is not set, so there is nothing to sign a token with")]
    NoSecret,
    /// The subject would be refused at verification.
    #[error(
        "a subject has 1 to 255 bytes and no control characters, is not system or callback, and does not begin with \
         {SUBJECT_PREFIX} or trigger:"
    )]
    BadSubject,
    /// The library returned an error.
    #[error("the token could not be signed")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// The subject as shown in logs, columns and audit entries. Hidden characters are escaped, so that two different
/// subjects never look the same. `None` if it does not fit, or could be mistaken for a subject that the service
/// itself assigns: that of an API key, of a trigger, of a callback's caller, or of the service.
#[must_use]
pub fn shown_subject(text: &str) -> Option<String> {
    let visible: String = text.chars().filter(|c| !visible::is_hidden(*c)).collect();
    let name = visible.trim().to_lowercase();
    let is_assigned = [SUBJECT_PREFIX, Actor::TRIGGER_PREFIX].iter().any(|prefix| name.starts_with(prefix));
    let is_reserved = is_assigned || Actor::RESERVED.contains(&name.as_str());
    // Existing escapes could be mistaken for the escapes that are added here.
    if name.is_empty() || is_reserved || text.contains(char::is_control) || text.contains("\\u{") {
        return None;
    }
    Some(visible::escaped(text).into_owned()).filter(|shown| shown.len() <= MAX_SUBJECT_BYTES)
}

/// Issues a token for the subject of the organisation in that role, valid for `JWT_EXPIRATION_MINUTES`.
pub fn issue(
    auth: &config::Auth,
    subject: &str,
    role: Role,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<String, TokenError> {
    shown_subject(subject).ok_or(TokenError::BadSubject)?;
    let (token, _) = sign(auth, subject, role, organization, None, now)?;
    Ok(token)
}

/// Issues a token with the rights of this API key, valid as long as the key, and returns its lifetime in seconds.
/// `role` is only informative.
pub fn issue_for_key(
    auth: &config::Auth,
    actor: &Actor,
    role: Role,
    key_id: Uuid,
    key_ends_at: Option<Timestamp>,
    now: DateTime<Utc>,
) -> Result<(String, u64), TokenError> {
    sign(auth, &actor.subject, role, &actor.organization, Some((key_id, key_ends_at)), now)
}

fn sign(
    auth: &config::Auth,
    subject: &str,
    role: Role,
    organization_id: &OrganizationId,
    key: Option<(Uuid, Option<Timestamp>)>,
    now: DateTime<Utc>,
) -> Result<(String, u64), TokenError> {
    let keys = auth.keys.current();
    let secret = keys.secret.as_ref().ok_or(TokenError::NoSecret)?;
    let iat = now.timestamp();
    let lifetime = i64::try_from(auth.token_lifetime.as_secs()).unwrap_or(i64::MAX);
    let key_ends = key.and_then(|(_, ends_at)| ends_at).map(|end| end.as_naive_utc().and_utc().timestamp());
    let lifetime = lifetime.min(key_ends.map_or(i64::MAX, |end| end.saturating_sub(iat))).max(0);
    let (iss, aud) = (auth.issuer.as_deref(), auth.audience.as_deref());
    let (exp, wf_key) = (iat.saturating_add(lifetime), key.map(|(id, _)| id));
    let claims = Issued { sub: subject, role, organization_id, iat, exp, wf_key, iss, aud };
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    Ok((encode(&Header::new(auth.algorithm), &claims, &key)?, lifetime.unsigned_abs()))
}
