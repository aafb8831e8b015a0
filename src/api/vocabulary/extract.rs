//! Extractors of request data for handlers. Each failure is an [`ApiError`] that names the field.

use std::collections::HashMap;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::{HeaderMap, header, request::Parts};
use http_body_util::BodyExt;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{app::App, caller::Caller, error::ApiError};
use crate::{
    input::{self, FieldError, JsonFault, shorten},
    offload::SMALL_BYTES,
};

/// Bodies from this size on are checked on another thread.
const LARGE_BODY_BYTES: usize = 128 << 10;

/// JSON body: well-formed, of bounded depth, and storable by PostgreSQL.
pub struct JsonBody(Box<RawValue>);

impl JsonBody {
    /// JSON text of the body.
    #[must_use]
    pub fn raw(&self) -> &RawValue {
        &self.0
    }

    /// Parses the body: at once, or on another thread if it is large or contains a schema, which takes long to
    /// compile.
    pub async fn read<T: Send + 'static>(
        &self,
        app: &App,
        caller: &Caller,
        read: impl FnOnce(&RawValue) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let text = self.0.get();
        // A name can be written with escapes.
        let may_have_schema = || text.contains("input_schema") || text.contains("\\u");
        if text.len() <= SMALL_BYTES && !may_have_schema() {
            return Ok(read(&self.0));
        }
        let body = self.0.clone();
        Ok(app.offload.run_soon(caller.organization(), move || read(&body)).await?)
    }

    /// SHA-256 of the body's text.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        Sha256::digest(self.0.get()).to_vec()
    }
}

impl FromRequest<App> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &App) -> Result<Self, ApiError> {
        let OptionalJsonBody(body) = OptionalJsonBody::from_request(request, state).await?;
        body.map(Self).ok_or_else(|| FieldError::missing("body").into())
    }
}

/// Optional JSON body: absent, empty and null count as none.
pub struct OptionalJsonBody(pub Option<Box<RawValue>>);

impl OptionalJsonBody {
    /// SHA-256 of the body's text; of the empty text if there is none.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        Sha256::digest(self.0.as_ref().map_or("", |body| body.get())).to_vec()
    }
}

impl FromRequest<App> for OptionalJsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if is_json(request.headers()) {
            return Ok(Self(read_json(request, app).await??));
        }
        match body(request).await? {
            bytes if is_blank(&bytes) => Ok(Self(None)),
            _ => {
                let message = "Input should be a valid dictionary or object to extract fields from";
                Err(FieldError::new("body", "model_attributes_type", message).into())
            }
        }
    }
}

/// Optional JSON body with any content type: for senders that cannot choose it.
pub struct AnyJsonBody(pub Option<Box<RawValue>>);

impl FromRequest<App> for AnyJsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let other_type = (!is_json(request.headers())).then(|| request.headers().get(header::CONTENT_TYPE).cloned());
        match read_json(request, app).await? {
            Ok(body) => Ok(Self(body)),
            Err(mut fault) => {
                if let Some(given) = other_type.flatten() {
                    let given = given.to_str().unwrap_or("something else");
                    let message = std::mem::take(&mut fault.message);
                    fault.message =
                        format!("{message}; the body should be JSON, and its Content-Type says {}", shorten(given));
                }
                Err(fault.into())
            }
        }
    }
}

async fn body(request: Request) -> Result<Bytes, ApiError> {
    request.into_body().collect().await.map(http_body_util::Collected::to_bytes).map_err(|_| ApiError::internal())
}

fn is_blank(body: &[u8]) -> bool {
    body.iter().all(u8::is_ascii_whitespace)
}

/// Returns the body, or the error in its JSON.
async fn read_json(request: Request, app: &App) -> Result<Result<Option<Box<RawValue>>, FieldError>, ApiError> {
    let caller = request.extensions().get::<Caller>().cloned();
    let bytes = body(request).await?;
    if is_blank(&bytes) {
        return Ok(Ok(None));
    }
    let checked = check(caller.as_ref(), bytes, app).await?;
    Ok(checked.map(|raw| Some(raw).filter(|raw| raw.get() != "null")).map_err(FieldError::from))
}

/// Returns the whole body as JSON, or the error in it.
pub async fn checked_body(request: Request, app: &App) -> Result<Result<Box<RawValue>, JsonFault>, ApiError> {
    let caller = request.extensions().get::<Caller>().cloned();
    let bytes = body(request).await?;
    check(caller.as_ref(), bytes, app).await
}

/// Checks a body, on another thread if it is large.
async fn check(caller: Option<&Caller>, bytes: Bytes, app: &App) -> Result<Result<Box<RawValue>, JsonFault>, ApiError> {
    let length = bytes.len();
    let check = move || input::check_json(&bytes).map(ToOwned::to_owned);
    Ok(match caller {
        Some(caller) if length > LARGE_BODY_BYTES => app.offload.run_soon(caller.organization(), check).await?,
        _ => check(),
    })
}

/// A missing content type counts as JSON.
#[must_use]
pub fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The UUID of an agent or a workflow in the path; errors name the parameter.
pub async fn path_uuid<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<Uuid, ApiError> {
    // axum refuses only a text that is not UTF-8, and so not a UUID. The replacement character stands for its bytes.
    let text = Path::<String>::from_request_parts(parts, state).await.map_or("\u{fffd}".to_owned(), |Path(text)| text);
    Ok(input::path_uuid(name, &text)?)
}

/// The only parameter of the path; `None` if it is not UTF-8.
pub async fn path_text(parts: &mut Parts) -> Option<String> {
    Path::<String>::from_request_parts(parts, &()).await.ok().map(|Path(text)| text)
}

/// `{workflow_id}` in the path.
pub struct WorkflowId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for WorkflowId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "workflow_id").await.map(Self)
    }
}

/// `{trigger_id}` in the path.
pub struct TriggerId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for TriggerId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "trigger_id").await.map(Self)
    }
}

/// `{agent_id}` in the path.
pub struct AgentId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for AgentId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "agent_id").await.map(Self)
    }
}

/// `{run_id}` in the path: any text, since other programs create run ids too.
pub struct RunId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for RunId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|_| ApiError::run_not_found())?;
        // No row can have such an id, and the database would return an error.
        if text.contains('\0') { Err(ApiError::run_not_found()) } else { Ok(Self(text)) }
    }
}

/// Query string by form rules. Of a repeated parameter the last one counts, and unknown ones are ignored: clients of
/// the reference deployment depend on that.
pub struct Query(HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default())?)
    }
}

impl Query {
    /// Parses the query part of a URI.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let mut values = HashMap::new();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            if value.contains('\0') {
                return Err(FieldError::new(format!("query.{name}"), "string_nul", "NUL characters are not allowed"));
            }
            values.insert(name.into_owned(), value.into_owned());
        }
        Ok(Self(values))
    }

    /// The parameter; an empty value, as forms send it, counts as absent.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.given(name).filter(|text| !text.is_empty())
    }

    /// The parameter, even if it is empty.
    #[must_use]
    pub fn given(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The same query with this cursor.
    #[must_use]
    pub fn with_cursor(&self, cursor: &str) -> String {
        let others = self.0.iter().filter(|(name, _)| !["page", "cursor"].contains(&name.as_str()));
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(others).append_pair("cursor", cursor).finish()
    }
}
