//! One call to an agent: A2A's `message/send` by JSON-RPC 2.0 over HTTP, under a deadline that covers all of it.

use std::{error::Error as _, time::Duration};

use http::{StatusCode, header};
use reqwest::{Client, Response, redirect};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    agents::{Agent, Credentials},
    answer::{self, AnswerError},
    retry::{self, Again},
};
use crate::input::{check_json, shorten, to_raw};

/// Of an answer. More is not read.
const MAX_ANSWER_BYTES: usize = 10 << 20;
/// Of an answer with an error status, which is only looked through for a message.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// An idle connection is kept for this long: less than the 5 s after which common servers close it, so that a request
/// seldom meets a connection that is just being closed.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Fit for the step's error message: no credentials, no URL.
    pub(super) message: String,
    pub(super) again: Again,
    /// For the metric.
    pub(super) outcome: &'static str,
}

impl Failure {
    fn new(outcome: &'static str, again: Again, message: impl Into<String>) -> Self {
        Self { message: message.into(), again, outcome }
    }
}

/// What a call came to.
#[derive(Debug)]
pub(super) struct Called {
    /// The output of the step.
    pub(super) result: Result<Box<RawValue>, Failure>,
    /// Of the answer, if there was one.
    pub(super) http_status: Option<StatusCode>,
}

/// The client for all agents.
pub(super) fn client() -> reqwest::Result<Client> {
    Client::builder()
        .redirect(redirect::Policy::none())
        .pool_idle_timeout(KEEP_IDLE)
        .user_agent(concat!("workflow-api/", env!("CARGO_PKG_VERSION")))
        .build()
}

#[derive(Serialize)]
struct Request<'a> {
    jsonrpc: &'static str,
    id: &'a str,
    method: &'static str,
    params: Params<'a>,
}

#[derive(Serialize)]
struct Params<'a> {
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    #[serde(rename = "messageId")]
    id: String,
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
struct Part<'a> {
    kind: &'static str,
    text: &'a str,
}

/// Asks the agent for the output of the step. Dropping the future closes the connection.
pub(super) async fn call(client: &Client, agent: &Agent, task_id: &str, text: &str, correlation_id: &str) -> Called {
    let message = Message { role: "user", id: format!("msg-{task_id}"), parts: [Part { kind: "text", text }] };
    let request = Request { jsonrpc: "2.0", id: task_id, method: "message/send", params: Params { message } };
    let mut http = client
        .post(&agent.url)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header("X-Correlation-ID", correlation_id)
        .body(to_raw(&request).get().to_owned());
    match &agent.credentials {
        Credentials::None => {}
        Credentials::Header { name, value, .. } => http = http.header(name, value),
        Credentials::Sealed(sealed) => {
            let text = format!("its auth_config is {sealed}");
            return Called { result: Err(Failure::new("invalid", Again::Never, text)), http_status: None };
        }
        Credentials::Unusable => {
            let text = "its auth_config lacks a value, or has one that cannot be sent in a header";
            return Called { result: Err(Failure::new("invalid", Again::Never, text)), http_status: None };
        }
    }
    let mut http_status = None;
    let exchange = async {
        let response = http.send().await.map_err(|error| transport(&error))?;
        http_status = Some(response.status());
        read(response).await
    };
    let result = tokio::time::timeout(agent.timeout, exchange).await.unwrap_or_else(|_| {
        let text = format!("no complete answer within {} ms", agent.timeout.as_millis());
        Err(Failure::new("timeout", Again::Later, text))
    });
    let result = result.map_err(|failure| Failure { message: agent.credentials.redact(failure.message), ..failure });
    Called { result, http_status }
}

async fn read(response: Response) -> Result<Box<RawValue>, Failure> {
    let status = response.status();
    if status.is_success() {
        let body = body(response, MAX_ANSWER_BYTES).await?;
        return answer::output(&body).map_err(|error| {
            let outcome = if matches!(error, AnswerError::Invalid(_)) { "invalid" } else { "refused" };
            Failure::new(outcome, Again::Never, error.to_string())
        });
    }
    let wanted = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wanted = wanted.and_then(|value| retry::retry_after(value, chrono::Utc::now()));
    let again = match (is_passing(status), wanted) {
        (false, _) => Again::Never,
        (true, None) => Again::Later,
        (true, Some(pause)) => Again::After(pause),
    };
    let reason = status.canonical_reason().unwrap_or("no reason");
    let mut text = format!("HTTP {}: {reason}", status.as_u16());
    if status.is_redirection() {
        text += " (redirects are not followed)";
    } else if let Ok(body) = body(response, MAX_ERROR_BYTES).await
        && let Some(error) = check_json(&body).ok().and_then(answer::rpc_error)
    {
        text = format!("{text}, {error}");
    }
    Err(Failure::new(if status.is_server_error() { "http_5xx" } else { "http_4xx" }, again, text))
}

/// The same request may be answered otherwise later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let too_large = || Failure::new("invalid", Again::Never, format!("the answer is larger than {limit} bytes"));
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    if announced > limit {
        return Err(too_large());
    }
    let mut body = Vec::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What went wrong on the wire, in the words of its innermost cause: the outer ones repeat the URL.
fn transport(error: &reqwest::Error) -> Failure {
    if error.is_builder() {
        return Failure::new("invalid", Again::Never, "its URL cannot be called");
    }
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    let what = if error.is_connect() { "cannot be connected" } else { "the connection failed" };
    let why = cause.map_or_else(String::new, |cause| format!(": {}", shorten(&cause.to_string())));
    Failure::new("network", Again::Later, format!("{what}{why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passing_statuses_are_tried_again() {
        for (status, expected) in [(500, true), (503, true), (429, true), (400, false), (401, false), (302, false)] {
            assert_eq!(is_passing(StatusCode::from_u16(status).expect("valid")), expected, "{status}");
        }
    }
}
