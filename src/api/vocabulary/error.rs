//! API error: the one type that becomes an error response. Every error body of the API is built here.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    access::{Countable, QuotaExceeded},
    actions::SaveError,
    db::{self, idempotency::ClaimError},
    input::FieldError,
    offload::Overloaded,
    permits::{Exhausted, Scope},
    timestamp::Timestamp,
};

/// `Retry-After` of a 503, or of a 429 for an exhausted share, in seconds.
const RETRY_AFTER_SECS: &str = "2";

/// Error for the client: status, stable `code`, message. The cause of a 5xx is not shown; the request log takes it
/// from the response.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    cause: Option<Cause>,
    headers: Vec<(HeaderName, HeaderValue)>,
    is_told_elsewhere: bool,
    is_wrong_proof: bool,
}

impl ApiError {
    /// Stable code of the error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Message for people.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Errors of the request, one for each bad member.
    #[must_use]
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// Whether authentication or authorisation failed.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    }
}

/// Cause of a 5xx, for the request log.
#[derive(Clone, Debug)]
pub struct Cause(pub Arc<dyn std::error::Error + Send + Sync>);

/// Marks an answer that the request log can skip, since it is logged elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct LoggedElsewhere;

/// Body of every error answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// Title of the status.
    #[schema(example = "Not Found")]
    error: &'static str,
    /// Message for people.
    #[schema(example = "Workflow not found")]
    detail: String,
    /// Stable code for programs.
    #[schema(example = "workflow_not_found")]
    code: &'static str,
    /// Errors of the request, one for each bad member; only with 422.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// The HTTP status.
    #[schema(example = 404)]
    status_code: u16,
    /// Time of the error.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// Path of the request.
    #[schema(example = "/api/v1/workflows/7a1d4c1e-6a0b-4f6a-8a37-51d1f3c1b9aa")]
    path: String,
    /// Correlation id of the request, by which its log lines are found.
    request_id: String,
}

impl ApiError {
    /// Creates an error with its own code.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            status,
            code,
            detail,
            errors: Vec::new(),
            cause: None,
            headers: Vec::new(),
            is_told_elsewhere: false,
            is_wrong_proof: false,
        }
    }

    /// 400.
    #[must_use]
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404.
    #[must_use]
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 409.
    #[must_use]
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 422 with an error for each bad member.
    #[must_use]
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = "The request is not valid; `errors` says where and why";
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", detail) }
    }

    /// 503: a retry may succeed shortly.
    #[must_use]
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECS))
    }

    /// A limit of concurrent use is exhausted: 429 if it is the client's share, and 503 if it is the total. `what`
    /// names the resource.
    #[must_use]
    pub fn exhausted(limit: Exhausted, code: &'static str, what: &str) -> Self {
        metrics::counter!("requests_refused_total", "reason" => code).increment(1);
        let subject = match limit {
            Exhausted::All => return Self::unavailable(code, format!("There are too many {what}")),
            Exhausted::Owner(Scope::Caller) => "The caller",
            Exhausted::Owner(Scope::Organization) => "The organisation",
            Exhausted::Owner(Scope::Address | Scope::Anonymous) => "Callers without credentials",
            Exhausted::Owner(Scope::Agent) => "The agent",
        };
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, format!("{subject} may have no more {what}"))
            .with_header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECS))
    }

    /// 401.
    #[must_use]
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// The same error, of a request whose token or signature is wrong: it counts as wrong credentials.
    #[must_use]
    pub fn wrong_proof(self) -> Self {
        Self { is_wrong_proof: true, ..self }
    }

    /// Whether it counts as wrong credentials.
    #[must_use]
    pub fn is_wrong_proof(&self) -> bool {
        self.is_wrong_proof
    }

    /// 403.
    #[must_use]
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 404: the run does not exist.
    #[must_use]
    pub fn run_not_found() -> Self {
        Self::not_found("run_not_found", "Run not found")
    }

    /// 400: the action is not possible in the state of the run.
    #[must_use]
    pub fn run_wrong_state(status: &str, act: &str) -> Self {
        Self::bad_request("run_wrong_state", format!("The run is {status} and cannot be {act}"))
    }

    /// 404: the trigger does not exist.
    #[must_use]
    pub fn trigger_not_found() -> Self {
        Self::not_found("trigger_not_found", "Trigger not found")
    }

    /// 404: the workflow does not exist.
    #[must_use]
    pub fn workflow_not_found() -> Self {
        Self::not_found("workflow_not_found", "Workflow not found")
    }

    /// Error of saving a definition. `other` converts the reasons of its kind.
    pub fn not_saved<R>(error: SaveError<R>, not_found: fn() -> Self, other: impl FnOnce(R) -> Self) -> Self {
        match error {
            SaveError::NotFound => not_found(),
            SaveError::Invalid(errors) => errors.into(),
            SaveError::Stale(stale) => stale.into(),
            SaveError::Key(error) => error.into(),
            SaveError::Quota(exceeded) => exceeded.into(),
            SaveError::Db(error) => error.into(),
            SaveError::Other(reason) => other(reason),
        }
    }

    /// 413: the definition, alone or with the input, is too large to be dispatched.
    #[must_use]
    pub fn plan_too_large() -> Self {
        let detail = "Definition and input together have to fit into a Kafka message of 1 MiB";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
    }

    /// 500 with a constant body; the cause is logged.
    #[must_use]
    pub fn internal() -> Self {
        let detail = "The request could not be completed; the log has the reason under its request_id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Excludes the answer from the request log: the caller of this function logs it, for many requests at once.
    #[must_use]
    pub fn logged_elsewhere(self) -> Self {
        Self { is_told_elsewhere: true, ..self }
    }

    fn because(mut self, cause: Arc<dyn std::error::Error + Send + Sync>) -> Self {
        self.cause = Some(Cause(cause));
        self
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Renders the body with the request's path and correlation id.
    #[must_use]
    pub fn render(self, path: &str, request_id: &str) -> Response {
        let body = ErrorBody {
            error: title(self.status),
            detail: self.detail,
            code: self.code,
            errors: self.errors,
            status_code: self.status.as_u16(),
            timestamp: Timestamp::now(),
            path: path.to_owned(),
            request_id: request_id.to_owned(),
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        if self.is_told_elsewhere {
            response.extensions_mut().insert(LoggedElsewhere);
        }
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}

/// The error is kept in the response until `api::gate::request` renders it, which has path and correlation id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Pending(Arc::new(std::sync::Mutex::new(Some(self)))));
        response
    }
}

/// An [`ApiError`] inside a response. It is shared and taken once, since extensions have to be `Clone`.
#[derive(Clone)]
pub struct Pending(Arc<std::sync::Mutex<Option<ApiError>>>);

impl Pending {
    /// Takes the error; `None` after the first call.
    #[must_use]
    pub fn take(&self) -> Option<ApiError> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNPROCESSABLE_ENTITY => "Validation Error",
        other => other.canonical_reason().unwrap_or("Error"),
    }
}

impl From<Vec<FieldError>> for ApiError {
    fn from(errors: Vec<FieldError>) -> Self {
        Self::invalid(errors)
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self::invalid(vec![error])
    }
}

impl From<db::Error> for ApiError {
    fn from(error: db::Error) -> Self {
        Arc::new(error).into()
    }
}

impl From<Arc<db::Error>> for ApiError {
    fn from(error: Arc<db::Error>) -> Self {
        match &*error {
            db::Error::Unavailable(_) if error.is_statement_timeout() => {
                let detail = "The database has taken too long for this operation; nothing was changed";
                Self::unavailable("database_unavailable", detail).because(error)
            }
            db::Error::Unavailable(_) | db::Error::Collision(_) => {
                Self::unavailable("database_unavailable", "The database is not available at the moment").because(error)
            }
            db::Error::Conflict { .. } => {
                Self::conflict("already_exists", "A resource with these values already exists").because(error)
            }
            db::Error::Refused(_) => {
                let value = FieldError::new("body", "value_error", "Value error, a value cannot be stored");
                Self::invalid(vec![value]).because(error)
            }
            db::Error::Bug(_) => Self::internal().because(error),
        }
    }
}

impl From<Overloaded> for ApiError {
    fn from(_: Overloaded) -> Self {
        let detail = "Too many checks of the organisation, or of others, are pending; nothing was done";
        Self::unavailable("overloaded", detail)
    }
}

impl From<QuotaExceeded> for ApiError {
    fn from(QuotaExceeded { what, limit }: QuotaExceeded) -> Self {
        let detail = format!("The organisation may have {limit} {}, and has as many already", what.as_str());
        match what {
            // Runs leave the queue after some time, so a retry may succeed.
            Countable::QueuedRuns => Self::new(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", detail)
                .with_header(header::RETRY_AFTER, HeaderValue::from_static("5")),
            Countable::Agents | Countable::Workflows | Countable::ApiKeys => {
                Self::new(StatusCode::FORBIDDEN, "quota_exceeded", detail)
            }
        }
    }
}

impl From<ClaimError> for ApiError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Reused => {
                let detail = "The Idempotency-Key was used before with another body";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail)
            }
            // A finished request was answered with the stored answer before.
            ClaimError::InFlight | ClaimError::Repeated(_) => {
                let detail =
                    "A request with this Idempotency-Key is under way; its answer will be available in a moment";
                Self::conflict("idempotency_key_in_use", detail)
                    .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
            }
            ClaimError::Db(error) => error.into(),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        db::Error::from(error).into()
    }
}
