//! Idempotency keys: requests that can be repeated safely.

use axum::{extract::FromRequestParts, response::Response};
use http::{HeaderValue, request::Parts};

use super::{
    caller::Caller,
    error::ApiError,
    headers::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED},
};
use crate::{db::idempotency::IdempotencyKey, input::FieldError};

/// Maximum length of an `Idempotency-Key`.
pub const MAX_KEY_CHARS: usize = 255;

/// The `Idempotency-Key` header.
pub struct Key(Option<String>);

impl Key {
    /// A key from elsewhere than the header, of at most 255 characters.
    #[must_use]
    pub fn given(key: String) -> Self {
        Self(Some(key))
    }

    /// The key, bound to the route (with its object, if it has one), the caller and the body.
    #[must_use]
    pub fn bound(self, route: &str, caller: &Caller, fingerprint: Vec<u8>) -> Option<IdempotencyKey> {
        // The organisation stands before the route only outside of the default one, so that existing keys of that one
        // stay valid. No organisation is named like the beginning of a route.
        let actor = &caller.actor;
        let scope = if actor.organization.is_default() {
            format!("{route} {}", actor.subject)
        } else {
            format!("{}: {route} {}", actor.organization, actor.subject)
        };
        self.0.map(|key| IdempotencyKey { scope, key, fingerprint })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(&IDEMPOTENCY_KEY) else { return Ok(Self(None)) };
        match value.to_str() {
            Ok(key) if !key.trim().is_empty() && key.len() <= MAX_KEY_CHARS => Ok(Self(Some(key.to_owned()))),
            _ => {
                Err(FieldError::rule("header.Idempotency-Key", "1 to 255 visible ASCII characters are expected").into())
            }
        }
    }
}

/// Marks an answer as the repeat of an earlier one.
pub fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    response
}
