//! Who calls. With authentication on, every route under the prefix needs a bearer token.

use axum::extract::{FromRequestParts, Request};
use chrono::Utc;
use http::{HeaderValue, StatusCode, header, request::Parts};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, decode, encode};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::App;
use crate::{
    actions::answer_callback::{Answerer, Roles},
    api::error::ApiError,
    config,
};

/// How far the clocks of this host and of whoever signs tokens may be apart.
const CLOCK_SKEW_SECS: u64 = 5;

/// Who a request is from. Its existence is the proof that the caller was let in.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's `sub`; `system` while authentication is off.
    pub subject: String,
    /// How the caller is known.
    proof: Proof,
}

/// How a caller is known.
#[derive(Clone, Debug)]
enum Proof {
    /// Authentication is off.
    NotAsked,
    /// The route lets everybody in, and this one has not said, or not proven, who they are.
    None,
    /// By a token, which tells these roles.
    Token(Vec<String>),
}

impl Caller {
    /// The same, as somebody who answers a callback.
    #[must_use]
    pub fn answerer(&self) -> Answerer<'_> {
        match &self.proof {
            Proof::NotAsked => Answerer { subject: Some(&self.subject), roles: Roles::All },
            Proof::None => Answerer { subject: None, roles: Roles::These(&[]) },
            Proof::Token(roles) => Answerer { subject: Some(&self.subject), roles: Roles::These(roles) },
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::internal)
    }
}

/// What a token of ours says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    iat: i64,
    exp: i64,
}

/// What of a caller's token counts.
#[derive(Deserialize)]
struct Presented {
    sub: String,
    #[serde(default)]
    role: Value,
    #[serde(default)]
    roles: Value,
}

impl Presented {
    /// The roles that it tells, in either form.
    fn roles(&self) -> Vec<String> {
        let several = self.roles.as_array().into_iter().flatten();
        several.chain([&self.role, &self.roles]).filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

/// Why no token can be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// There is no key.
    #[error("JWT_SECRET is not set, so there is nothing to sign a token with")]
    NoSecret,
    /// It would not be let in.
    #[error("a subject has 1 to 255 bytes and no control characters")]
    BadSubject,
    /// The library refused.
    #[error("the token could not be signed")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// The caller of a request, or the answer to give instead.
pub fn authenticate(app: &App, request: &Request) -> Result<Caller, ApiError> {
    let auth = &app.config.auth;
    let path = request.uri().path();
    let is_business = path.strip_prefix(&app.config.api.prefix).is_some_and(|rest| rest.starts_with('/'));
    let is_public = super::docs::is_public(path) || super::system::is_public(path);
    if !auth.enabled || is_public || !is_business {
        return Ok(Caller { subject: "system".to_owned(), proof: Proof::NotAsked });
    }
    let presented = present(app, request);
    // The address of a callback is its permission; who else they are may be asked for there.
    if is_callback(app, path) {
        return Ok(presented.unwrap_or_else(|_| Caller { subject: "callback".to_owned(), proof: Proof::None }));
    }
    presented
}

/// Whether a path is the address of a callback.
fn is_callback(app: &App, path: &str) -> bool {
    path.strip_prefix(&app.config.api.prefix).is_some_and(|rest| rest.starts_with("/callbacks/"))
}

/// The caller that a token proves.
fn present(app: &App, request: &Request) -> Result<Caller, ApiError> {
    let auth = &app.config.auth;
    let unauthorized = |detail: &str| {
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    };
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    }) else {
        return Err(unauthorized("A bearer token is required"));
    };
    let Some(secret) = &auth.jwt_secret else { return Err(ApiError::internal()) };
    let mut validation = Validation::new(auth.algorithm);
    validation.set_required_spec_claims(&["exp", "sub"]);
    validation.validate_nbf = true;
    validation.leeway = CLOCK_SKEW_SECS;
    validation.validate_aud = false;
    let key = DecodingKey::from_secret(secret.expose_secret().as_bytes());
    match decode::<Presented>(token, &key, &validation) {
        Ok(token) if is_subject(&token.claims.sub) => {
            let proof = Proof::Token(token.claims.roles());
            Ok(Caller { subject: token.claims.sub, proof })
        }
        _ => Err(unauthorized("The bearer token is not valid")),
    }
}

/// Fits the columns that name a user, and a log line.
fn is_subject(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.contains(char::is_control)
}

/// A token for that subject, valid for `JWT_EXPIRATION_MINUTES`.
pub fn token(auth: &config::Auth, subject: &str) -> Result<String, TokenError> {
    let secret = auth.jwt_secret.as_ref().ok_or(TokenError::NoSecret)?;
    if !is_subject(subject) {
        return Err(TokenError::BadSubject);
    }
    let iat = Utc::now().timestamp();
    let lifetime_secs = i64::try_from(auth.token_lifetime.as_secs()).unwrap_or(i64::MAX);
    let claims = Claims { sub: subject.to_owned(), iat, exp: iat.saturating_add(lifetime_secs) };
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    Ok(encode(&Header::new(auth.algorithm), &claims, &key)?)
}
