//! Errors of A2A over JSON-RPC.

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    api::vocabulary::{
        error::ApiError,
        json_rpc::{self, INVALID_PARAMS, RpcError},
    },
    input::FieldError,
};

/// Domain of the errors that the protocol defines.
const DOMAIN: &str = "a2a-protocol.org";

/// Error that the protocol defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum A2aError {
    TaskNotFound,
    TaskNotCancelable,
    UnsupportedOperation,
    ContentTypeNotSupported,
    ExtendedCardNotConfigured,
    VersionNotSupported,
}

impl A2aError {
    fn code(self) -> i32 {
        match self {
            Self::TaskNotFound => -32001,
            Self::TaskNotCancelable => -32002,
            Self::UnsupportedOperation => -32004,
            Self::ContentTypeNotSupported => -32005,
            Self::ExtendedCardNotConfigured => -32007,
            Self::VersionNotSupported => -32009,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::TaskNotFound => "TASK_NOT_FOUND",
            Self::TaskNotCancelable => "TASK_NOT_CANCELABLE",
            Self::UnsupportedOperation => "UNSUPPORTED_OPERATION",
            Self::ContentTypeNotSupported => "CONTENT_TYPE_NOT_SUPPORTED",
            Self::ExtendedCardNotConfigured => "EXTENDED_AGENT_CARD_NOT_CONFIGURED",
            Self::VersionNotSupported => "VERSION_NOT_SUPPORTED",
        }
    }

    /// The error with a message and with values about it.
    #[must_use]
    pub fn with(self, message: impl Into<String>, about: &[(&'static str, &str)]) -> RpcError {
        #[derive(Serialize)]
        struct ErrorInfo<'a> {
            #[serde(rename = "@type")]
            kind: &'static str,
            reason: &'static str,
            domain: &'static str,
            metadata: BTreeMap<&'static str, &'a str>,
        }
        let kind = "type.googleapis.com/google.rpc.ErrorInfo";
        let metadata = about.iter().copied().collect();
        let info = ErrorInfo { kind, reason: self.reason(), domain: DOMAIN, metadata };
        RpcError::new(self.code(), message).with_data(&[info])
    }
}

/// Parameters that are not valid.
#[must_use]
pub fn invalid_params(errors: &[FieldError]) -> RpcError {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct BadRequest {
        #[serde(rename = "@type")]
        kind: &'static str,
        field_violations: Vec<Violation>,
    }
    #[derive(Serialize)]
    struct Violation {
        field: String,
        description: String,
        reason: String,
    }
    let violation = |error: &FieldError| Violation {
        // The input of a run is the content of the message.
        field: ["body.input_data", "body"]
            .iter()
            .find_map(|root| error.field.strip_prefix(root))
            .map_or_else(|| error.field.clone(), |rest| format!("message.parts{rest}")),
        description: error.message.clone(),
        reason: error.kind.to_uppercase(),
    };
    let field_violations = errors.iter().map(violation).collect();
    let bad = BadRequest { kind: "type.googleapis.com/google.rpc.BadRequest", field_violations };
    RpcError::new(INVALID_PARAMS, "Invalid parameters").with_data(&[bad])
}

/// One parameter that is not valid.
#[must_use]
pub fn invalid_param(field: &str, text: &str) -> RpcError {
    invalid_params(&[FieldError::rule(field, text)])
}

/// Errors of parameters, without the name of the root.
#[must_use]
pub fn unrooted(mut errors: Vec<FieldError>) -> Vec<FieldError> {
    for error in &mut errors {
        if let Some(rest) = error.field.strip_prefix("params.") {
            error.field = rest.to_owned();
        }
    }
    errors
}

/// Reason why a call has no result.
#[derive(Debug)]
pub enum Failure {
    /// Error of the protocol.
    Rpc(RpcError),
    /// Error of the request, with its own status: credentials, limits, an unavailable database.
    Http(ApiError),
}

impl Failure {
    /// Answer to the call with that id.
    #[must_use]
    pub fn answer(self, id: Option<&RawValue>) -> Response {
        match self {
            Self::Rpc(error) => json_rpc::failed(id, &error),
            Self::Http(error) => error.into_response(),
        }
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        Self::Rpc(error)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let detail = error.detail().to_owned();
        Self::Rpc(match (error.status(), error.code()) {
            (StatusCode::NOT_FOUND, "run_not_found") => A2aError::TaskNotFound.with("Task not found", &[]),
            (StatusCode::BAD_REQUEST, "run_wrong_state") => A2aError::TaskNotCancelable.with(detail, &[]),
            (StatusCode::BAD_REQUEST, "invalid_cursor") => invalid_param("pageToken", &detail),
            (StatusCode::GONE, _) => A2aError::UnsupportedOperation.with(detail, &[]),
            (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused") => {
                invalid_param("message.messageId", "was used before with another message")
            }
            (StatusCode::UNPROCESSABLE_ENTITY, _) => invalid_params(error.errors()),
            _ => return Self::Http(error),
        })
    }
}

impl From<crate::db::Error> for Failure {
    fn from(error: crate::db::Error) -> Self {
        ApiError::from(error).into()
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        ApiError::from(error).into()
    }
}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        Self::Rpc(invalid_params(&[error]))
    }
}

impl From<Vec<FieldError>> for Failure {
    fn from(errors: Vec<FieldError>) -> Self {
        Self::Rpc(invalid_params(&errors))
    }
}
