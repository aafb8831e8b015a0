//! Who calls. With authentication on, every route under the prefix needs a bearer token.

mod jwks;
mod token;

use axum::extract::FromRequestParts;
use http::{HeaderValue, StatusCode, header, request::Parts};

use self::token::Refused;
pub use self::token::{TokenError, Tokens, issue};
use super::App;
use crate::{access::Role, api::error::ApiError};

/// Who a request is from. Its existence is the proof that the caller was let in.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's `sub`; `system` while authentication is off.
    pub subject: String,
    /// What the caller is to the service; `admin` while authentication is off.
    pub role: Role,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::internal)
    }
}

fn unauthorized(detail: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

/// The caller of a request, or the answer to give instead.
pub async fn authenticate(app: &App, request: &Parts) -> Result<Caller, ApiError> {
    let path = request.uri.path();
    let is_business = path.strip_prefix(&app.config.api.prefix).is_some_and(|rest| rest.starts_with('/'));
    let is_public = super::docs::is_public(path) || super::system::is_public(path);
    if !app.config.auth.enabled || is_public || !is_business {
        return Ok(Caller { subject: "system".to_owned(), role: Role::Admin });
    }
    let header = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let token = token.ok_or_else(|| unauthorized("A bearer token is required"))?;
    let claims = app.tokens.verify(token).await.map_err(|refused| match refused {
        Refused::Invalid => unauthorized("The bearer token is not valid"),
        Refused::WithoutKeys => {
            ApiError::unavailable("keys_unavailable", "The keys that tokens are verified with are not available")
        }
    })?;
    Ok(Caller { subject: claims.subject.clone(), role: claims.role })
}
