//! Requests that are safe to repeat.

use axum::{extract::FromRequestParts, response::Response};
use http::{HeaderValue, request::Parts};

use super::{
    caller::Caller,
    error::ApiError,
    headers::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED},
};
use crate::{db::idempotency::IdempotencyKey, input::FieldError};

/// Longest `Idempotency-Key`.
const MAX_KEY_CHARS: usize = 255;

/// The `Idempotency-Key` header.
pub struct Key(Option<String>);

impl Key {
    /// The key as it counts for this route (with its object, if it has one), caller and body.
    #[must_use]
    pub fn bound(self, route: &str, caller: &Caller, fingerprint: Vec<u8>) -> Option<IdempotencyKey> {
        // No organisation is named like the beginning of a route, so that keys of a single one stay what they were.
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
