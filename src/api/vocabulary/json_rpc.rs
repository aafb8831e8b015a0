//! JSON-RPC 2.0 over HTTP: requests, results and errors of the protocols that use it.

use axum::{
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    app::App,
    error::ApiError,
    extract::{checked_body, is_json},
    streamed::JSON,
};
use crate::input::{JsonFault, member, members, text, to_raw};

/// The body is no JSON.
pub const PARSE_ERROR: i32 = -32700;
/// The body is no request.
pub const INVALID_REQUEST: i32 = -32600;
/// There is no such method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// The parameters are not valid.
pub const INVALID_PARAMS: i32 = -32602;
/// An error of the service.
pub const INTERNAL_ERROR: i32 = -32603;

/// Maximum length of an id, which the answer repeats.
const MAX_ID_BYTES: usize = 256;

/// Call of a method.
#[derive(Clone, Debug)]
pub struct Call {
    /// Id as it was given; `None`: the call is a notification.
    pub id: Option<Box<RawValue>>,
    /// Name of the method.
    pub method: String,
    /// Parameters; an empty object if there are none.
    pub params: Box<RawValue>,
}

/// Error of a call.
#[derive(Clone, Debug, Serialize)]
pub struct RpcError {
    /// Code of the error.
    pub code: i32,
    /// Message for people.
    pub message: String,
    /// Details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl RpcError {
    /// Creates an error without details.
    #[must_use]
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The same error with details.
    #[must_use]
    pub fn with_data(self, data: &(impl Serialize + ?Sized)) -> Self {
        Self { data: Some(to_raw(data)), ..self }
    }
}

impl From<JsonFault> for RpcError {
    fn from(fault: JsonFault) -> Self {
        // What is well-formed and cannot be stored is no error of the parser.
        let code = if fault.kind == "json_invalid" { PARSE_ERROR } else { INVALID_REQUEST };
        Self::new(code, fault.to_string())
    }
}

impl Call {
    /// Reads a request. The error comes with the id, as far as there is a valid one.
    pub fn read(body: &RawValue) -> Result<Self, (Option<Box<RawValue>>, RpcError)> {
        let invalid = |text: &str| RpcError::new(INVALID_REQUEST, text);
        if body.get().starts_with('[') {
            return Err((None, invalid("Batches are not supported: send one request at a time")));
        }
        if members(body).is_none() {
            return Err((None, invalid("The request should be an object")));
        }
        let id = member(body, "id");
        let is_id = |id: &RawValue| {
            let is_plain = id.get() == "null"
                || id.get().starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit());
            is_plain && id.get().len() <= MAX_ID_BYTES
        };
        if !id.is_none_or(is_id) {
            return Err((None, invalid("The id should be a short text or a number")));
        }
        let id = id.map(ToOwned::to_owned);
        let version = member(body, "jsonrpc").and_then(text);
        let method = member(body, "method").and_then(text);
        let params = member(body, "params").filter(|params| params.get() != "null");
        match (version.as_deref(), method) {
            (Some("2.0"), Some(method)) if params.is_none_or(|params| members(params).is_some()) => {
                let params = params.map_or_else(|| crate::input::object_of([]), ToOwned::to_owned);
                Ok(Self { id, method, params })
            }
            (Some("2.0"), Some(_)) => Err((id, RpcError::new(INVALID_PARAMS, "The parameters should be an object"))),
            (Some("2.0"), None) => Err((id, invalid("The method should be a text"))),
            _ => Err((id, invalid("`jsonrpc` should be \"2.0\""))),
        }
    }
}

/// Body of a request: a call, or the answer to what is none.
pub struct RpcBody(pub Result<Call, Response>);

impl FromRequest<App> for RpcBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        // Browsers send other types to any site without asking it.
        if !is_json(request.headers()) {
            let detail = "The Content-Type should be application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
        }
        let read = match checked_body(request, app).await? {
            Ok(body) => Call::read(&body),
            Err(fault) => Err((None, fault.into())),
        };
        Ok(Self(read.map_err(|(id, error)| failed(id.as_deref(), &error))))
    }
}

/// Text of the answer to a call.
#[derive(Serialize)]
struct Answer<'a> {
    jsonrpc: &'static str,
    id: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

/// Text with the result of a call.
#[must_use]
pub fn result_text(id: Option<&RawValue>, result: &RawValue) -> Box<RawValue> {
    to_raw(&Answer { jsonrpc: "2.0", id: id.unwrap_or(RawValue::NULL), result: Some(result), error: None })
}

/// Text with the error of a call.
#[must_use]
pub fn error_text(id: Option<&RawValue>, error: &RpcError) -> Box<RawValue> {
    to_raw(&Answer { jsonrpc: "2.0", id: id.unwrap_or(RawValue::NULL), result: None, error: Some(error) })
}

/// Answer with the result of a call.
#[must_use]
pub fn succeeded(id: Option<&RawValue>, result: &RawValue) -> Response {
    json(result_text(id, result))
}

/// Answer with the error of a call. Its status is 200, as the protocols want it.
#[must_use]
pub fn failed(id: Option<&RawValue>, error: &RpcError) -> Response {
    json(error_text(id, error))
}

fn json(text: Box<RawValue>) -> Response {
    ([(header::CONTENT_TYPE, JSON)], String::from(Box::<str>::from(text))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn only_single_well_formed_requests_are_calls() {
        let check = |body: &str, expected: Result<(&str, &str, &str), (&str, i32)>| {
            let read = Call::read(check_json(body.as_bytes()).expect(body));
            let id = |id: &Option<Box<RawValue>>| id.as_ref().map_or("none", |id| id.get()).to_owned();
            let found = match read {
                Ok(call) => Ok((id(&call.id), call.method, call.params.get().to_owned())),
                Err((given, error)) => Err((id(&given), error.code)),
            };
            let expected = expected
                .map(|(id, method, params)| (id.to_owned(), method.to_owned(), params.to_owned()))
                .map_err(|(id, code)| (id.to_owned(), code));
            assert_eq!(found, expected, "{body}");
        };
        check(r#"{"jsonrpc":"2.0","id":7,"method":"m"}"#, Ok(("7", "m", "{}")));
        check(
            r#"{"jsonrpc":"2.0","id":"a","method":"m","params":{"n":12345678901234567890}}"#,
            Ok(("\"a\"", "m", "{\"n\":12345678901234567890}")),
        );
        check(r#"{"jsonrpc":"2.0","method":"m","params":null}"#, Ok(("none", "m", "{}")));
        check(r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#, Err(("none", INVALID_REQUEST)));
        check("7", Err(("none", INVALID_REQUEST)));
        check(r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, Err(("none", INVALID_REQUEST)));
        check(r#"{"jsonrpc":"2.0","id":true,"method":"m"}"#, Err(("none", INVALID_REQUEST)));
        check(
            &format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"m"}}"#, "x".repeat(300)),
            Err(("none", INVALID_REQUEST)),
        );
        check(r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, Err(("1", INVALID_REQUEST)));
        check(r#"{"id":1,"method":"m"}"#, Err(("1", INVALID_REQUEST)));
        check(r#"{"jsonrpc":"2.0","id":1}"#, Err(("1", INVALID_REQUEST)));
        check(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}"#, Err(("1", INVALID_PARAMS)));
    }
}
