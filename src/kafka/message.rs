//! The messages between API and executor: one JSON object a record, keyed by run id.
//!
//! Unknown members are ignored on both sides, so that a message changes by adding members and older programs keep
//! working. `event_id` and `correlation_id` are such additions.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::timestamp::Timestamp;

/// The priority of a run for which none was asked.
pub const DEFAULT_PRIORITY: u8 = 5;

/// What the relay writes for a run that shall be executed.
#[derive(Serialize)]
pub struct ExecutionPayload<'a> {
    /// The run.
    pub run_id: &'a str,
    /// The definition's content that the run is pinned to.
    pub workflow_plan: &'a RawValue,
    /// The run's input, always an object.
    pub input_data: &'a RawValue,
    /// When the message was made.
    pub timestamp: Timestamp,
    /// `execution_request`.
    pub message_type: &'static str,
    /// Stable across repeats of the same request.
    pub event_id: Uuid,
    /// Of the HTTP request behind it.
    pub correlation_id: Option<&'a str>,
    /// From 0 to 9: of what waits, higher ones are first.
    pub priority: i16,
}

/// What the relay writes for a run that was cancelled.
#[derive(Serialize)]
pub struct CancellationPayload<'a> {
    /// The run.
    pub run_id: &'a str,
    /// Who cancelled it.
    pub cancelled_by: Option<&'a str>,
    /// Why, if they said.
    pub reason: Option<&'a str>,
    /// When the message was made.
    pub timestamp: Timestamp,
    /// `cancellation_request`.
    pub message_type: &'static str,
    /// Stable across repeats of the same request.
    pub event_id: Uuid,
    /// Of the HTTP request that started the run.
    pub correlation_id: Option<&'a str>,
}

impl<'a> ExecutionPayload<'a> {
    /// The record's value.
    #[must_use]
    pub fn new(
        run_id: &'a str,
        event_id: Uuid,
        correlation_id: Option<&'a str>,
        priority: i16,
        workflow_plan: &'a RawValue,
        input_data: &'a RawValue,
    ) -> Self {
        Self {
            run_id,
            workflow_plan,
            input_data,
            timestamp: Timestamp::now(),
            message_type: "execution_request",
            event_id,
            correlation_id,
            priority,
        }
    }
}

/// A request to execute a run, as consumed.
#[derive(Debug, Deserialize)]
pub struct ExecutionRequest {
    /// The run.
    pub run_id: String,
    /// The content to execute.
    pub workflow_plan: Box<RawValue>,
    /// The input; absent or null counts as an empty object.
    #[serde(default)]
    pub input_data: Option<Box<RawValue>>,
    /// Of the HTTP request behind it.
    #[serde(default)]
    pub correlation_id: Option<String>,
    /// Stable across repeats.
    #[serde(default)]
    pub event_id: Option<Uuid>,
    #[serde(default)]
    priority: Option<Box<RawValue>>,
}

impl ExecutionRequest {
    /// From 0 to 9; what is no such number counts as the default.
    #[must_use]
    pub fn priority(&self) -> u8 {
        let given = self.priority.as_ref().and_then(|priority| priority.get().parse().ok());
        given.filter(|priority| *priority <= 9).unwrap_or(DEFAULT_PRIORITY)
    }
}

/// A request to stop a run, as consumed.
#[derive(Debug, Deserialize)]
pub struct CancellationRequest {
    /// The run.
    pub run_id: String,
    /// Who cancelled it.
    #[serde(default)]
    pub cancelled_by: Option<String>,
    /// Why, if they said.
    #[serde(default)]
    pub reason: Option<String>,
    /// Of the HTTP request that started the run.
    #[serde(default)]
    pub correlation_id: Option<String>,
    /// Stable across repeats. Our API sends it, others do not.
    #[serde(default)]
    pub event_id: Option<Uuid>,
}

/// Either kind. The topic does not matter, as the contract says: the content decides.
#[derive(Debug)]
pub enum Message {
    /// Execute a run.
    Execution(ExecutionRequest),
    /// Stop a run.
    Cancellation(CancellationRequest),
}

/// Why a record cannot be understood. Says nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not a JSON object with the members that its kind needs.
    #[error("not a message of the contract")]
    Json(#[from] serde_json::Error),
    /// Neither kind can be told from the members.
    #[error("neither an execution nor a cancellation request")]
    UnknownKind,
}

impl Message {
    /// Reads a record's value.
    pub fn parse(payload: &[u8]) -> Result<Self, MessageError> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow, default)]
            message_type: Option<&'a RawValue>,
            #[serde(borrow, default)]
            workflow_plan: Option<&'a RawValue>,
            #[serde(borrow, default)]
            cancelled_by: Option<&'a RawValue>,
            #[serde(borrow, default)]
            reason: Option<&'a RawValue>,
        }
        let kind: Kind<'_> = serde_json::from_slice(payload)?;
        let is_execution = match kind.message_type.map(RawValue::get) {
            Some("\"execution_request\"") => true,
            Some("\"cancellation_request\"") => false,
            _ if kind.workflow_plan.is_some() => true,
            _ if kind.cancelled_by.is_some() || kind.reason.is_some() => false,
            _ => return Err(MessageError::UnknownKind),
        };
        Ok(if is_execution {
            Self::Execution(serde_json::from_slice(payload)?)
        } else {
            Self::Cancellation(serde_json::from_slice(payload)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_decides_the_kind_of_a_message() {
        for (payload, expected) in [
            (r#"{"run_id":"r","workflow_plan":{},"message_type":"execution_request"}"#, Some(true)),
            (r#"{"run_id":"r","workflow_plan":{}}"#, Some(true)),
            (r#"{"run_id":"r","message_type":"cancellation_request"}"#, Some(false)),
            (r#"{"run_id":"r","reason":"x"}"#, Some(false)),
            (r#"{"run_id":"r"}"#, None),
            (r#"{"workflow_plan":{}}"#, None),
            ("[]", None),
            ("", None),
        ] {
            let kind = Message::parse(payload.as_bytes()).ok().map(|m| matches!(m, Message::Execution(_)));
            assert_eq!(kind, expected, "{payload}");
        }
    }
}
