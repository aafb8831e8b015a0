//! Entity tags: the version of an agent or a workflow that an answer shows, and conditional requests.
//!
//! A tag is the revision of the row. Proxies that compress make a strong tag weak (`W/`). Both are compared as equal,
//! since the revision matters and not the bytes of an answer.

use axum::{
    Json,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use serde::Serialize;

use super::{app::App, error::ApiError};
use crate::{
    actions::{self, Stale},
    input::FieldError,
};

/// `If-Match` header.
pub struct IfMatch(pub Option<actions::IfMatch>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        condition(&parts.headers, &header::IF_MATCH).map(Self)
    }
}

/// `If-None-Match` header.
pub struct IfNoneMatch(Option<actions::IfMatch>);

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        condition(&parts.headers, &header::IF_NONE_MATCH).map(Self)
    }
}

impl IfNoneMatch {
    /// Whether the client has this version.
    #[must_use]
    pub fn is_known(&self, revision: &str) -> bool {
        match &self.0 {
            None => false,
            Some(actions::IfMatch::Any) => true,
            Some(actions::IfMatch::Revisions(known)) => known.iter().any(|known| known == revision),
        }
    }

    /// The body with its tag, or 304 if the client has this version.
    pub fn answer(&self, revision: &str, body: impl Serialize) -> Response {
        if self.is_known(revision) { tagged(revision, StatusCode::NOT_MODIFIED) } else { tagged(revision, Json(body)) }
    }
}

/// Adds the tag to an answer.
pub fn tagged(revision: &str, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// 201 with the new resource, its tag and its path below the prefix.
pub fn created(app: &App, path: &str, revision: &str, body: impl Serialize) -> Response {
    located(app, path, tagged(revision, (StatusCode::CREATED, Json(body))))
}

/// Adds a `Location` below the prefix to an answer.
pub fn located(app: &App, path: &str, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("{}{path}", app.config.api.prefix)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn condition(headers: &HeaderMap, name: &HeaderName) -> Result<Option<actions::IfMatch>, ApiError> {
    let mut revisions = Vec::new();
    let mut is_given = false;
    for value in headers.get_all(name) {
        is_given = true;
        let text = value.to_str().map_err(|_| malformed(name))?;
        // The service's own tags contain no comma; any other tag only must not match.
        for tag in text.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            if tag == "*" {
                return Ok(Some(actions::IfMatch::Any));
            }
            let opaque = tag.strip_prefix("W/").unwrap_or(tag);
            let inner = opaque.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            revisions.push(inner.ok_or_else(|| malformed(name))?.to_owned());
        }
    }
    if is_given && revisions.is_empty() {
        return Err(malformed(name));
    }
    Ok(is_given.then_some(actions::IfMatch::Revisions(revisions)))
}

fn malformed(name: &HeaderName) -> ApiError {
    FieldError::rule(format!("header.{name}"), "entity tags in quotes, or *, are expected").into()
}

impl From<Stale> for ApiError {
    fn from(_: Stale) -> Self {
        let detail = "The resource has changed since it was read; read it again and apply the change to what is there";
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", detail)
    }
}
