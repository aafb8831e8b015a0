//! Failures of calls, and which of them may pass.

use http::{StatusCode, header};
use reqwest::Response;
use serde_json::value::RawValue;

use super::{MAX_ERROR_BYTES, interrupted::Interrupted, read_body};
use crate::{
    egress::{self, NotAllowed},
    executor::{memory::OUT_OF_MEMORY, retry::RetryDecision},
    timestamp::retry_after,
};

/// Kind of a call's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::executor) enum CallErrorKind {
    /// The agent's circuit breaker is open.
    CircuitOpen,
    /// The agent's URL leads to an address that is not allowed.
    NotAllowed,
    /// The stored agent cannot be used for a request.
    Unusable,
    Network,
    Timeout,
    /// A redirect, or an error caused by the request.
    Http4xx,
    Http5xx,
    /// The answer violates the protocol.
    Invalid,
    /// This executor has no memory left for the answer.
    OutOfMemory,
    /// The agent refused, failed, or needs something that no step can give it.
    Refused,
}

impl CallErrorKind {
    /// Name in metrics and in the log of a run.
    pub(in crate::executor) fn as_str(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::NotAllowed => "not_allowed",
            Self::Unusable => "unusable",
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::Http4xx => "http_4xx",
            Self::Http5xx => "http_5xx",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::OutOfMemory => "out_of_memory",
        }
    }

    /// Call result for the agent's circuit breaker: whether the agent works; `None`: it was not called.
    pub(in crate::executor) fn is_healthy(self) -> Option<bool> {
        match self {
            Self::CircuitOpen | Self::NotAllowed | Self::Unusable | Self::OutOfMemory => None,
            Self::Network | Self::Timeout | Self::Http4xx | Self::Http5xx | Self::Invalid => Some(false),
            Self::Refused => Some(true),
        }
    }
}

/// Failure of a call.
#[derive(Debug)]
pub(in crate::executor) struct Failure {
    /// Message for the step's error where the call returns it: short, without credentials and URL.
    pub(in crate::executor) message: String,
    pub(in crate::executor) again: RetryDecision,
    pub(in crate::executor) fault: CallErrorKind,
    /// Question of the agent, if the step wants to answer it. Then it is no failure.
    pub(in crate::executor) question: Option<Box<Interrupted>>,
}

impl Failure {
    pub(in crate::executor) fn new(fault: CallErrorKind, again: RetryDecision, message: impl Into<String>) -> Self {
        Self { message: message.into(), again, fault, question: None }
    }
}

/// Error text of an agent, in full: it is masked before it is shortened.
pub(super) struct AgentError {
    pub(super) words: String,
    /// Whether another attempt would fail in the same way, whatever the status.
    pub(super) is_final: bool,
}

impl From<String> for AgentError {
    fn from(words: String) -> Self {
        Self { words, is_final: false }
    }
}

/// Failure from an answer with an error status.
pub(super) async fn refusal(
    response: Response,
    explain: impl Fn(&RawValue) -> Option<AgentError>,
    now: chrono::DateTime<chrono::Utc>,
) -> Failure {
    let status = response.status();
    let wanted = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wanted = wanted.and_then(|value| retry_after(value, now));
    let reason = status.canonical_reason().unwrap_or("no reason");
    let mut text = format!("HTTP {}: {reason}", status.as_u16());
    let mut is_final = !is_passing(status);
    if status.is_redirection() {
        text += " (redirects are not followed)";
    } else if let Ok(body) = read_body(response, MAX_ERROR_BYTES, None).await {
        if let Some(said) = body.json().ok().and_then(explain) {
            text = format!("{text}, {}", said.words);
            is_final |= said.is_final;
        } else if let Some(excerpt) = body.excerpt() {
            text = format!("{text}, {excerpt}");
        }
    }
    let again = match wanted {
        _ if is_final => RetryDecision::Never,
        None => RetryDecision::Later,
        Some(pause) => RetryDecision::After(pause),
    };
    Failure::new(fault_of(status), again, text)
}

pub(super) fn fault_of(status: StatusCode) -> CallErrorKind {
    if status.is_server_error() { CallErrorKind::Http5xx } else { CallErrorKind::Http4xx }
}

/// Whether the same request may succeed later.
pub(super) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

pub(super) fn no_memory() -> Failure {
    Failure::new(CallErrorKind::OutOfMemory, RetryDecision::Later, OUT_OF_MEMORY)
}

pub(super) fn not_allowed(error: NotAllowed) -> Failure {
    Failure::new(CallErrorKind::NotAllowed, RetryDecision::Never, error.to_string())
}

/// Failure of the connection.
pub(super) fn transport(error: &reqwest::Error) -> Failure {
    if egress::was_not_allowed(error) {
        return not_allowed(NotAllowed);
    }
    if error.is_builder() {
        return Failure::new(CallErrorKind::Unusable, RetryDecision::Never, "its URL cannot be called");
    }
    let what = if error.is_connect() { "cannot be connected" } else { "the connection failed" };
    let why = egress::cause_of(error).map_or_else(String::new, |cause| format!(": {cause}"));
    Failure::new(CallErrorKind::Network, RetryDecision::Later, format!("{what}{why}"))
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
