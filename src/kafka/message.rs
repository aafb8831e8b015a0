//! The messages between API and executor: one JSON object a record, keyed by run id.
//!
//! Unknown members are ignored on both sides, so that a message changes by adding members and older programs keep
//! working. `event_id` and `correlation_id` are such additions.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{access::OrganizationId, input::text, timestamp::Timestamp, trace::TRACEPARENT};

/// The headers of what we send about a run.
#[must_use]
pub fn headers(traceparent: &str) -> [(&'static str, &str); 2] {
    [("content-type", "application/json"), (TRACEPARENT, traceparent)]
}

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
    /// Whose run it is; absent: the default organisation's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<&'a str>,
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

/// What the executor tells observers. They may see it more than once.
#[derive(Serialize)]
pub struct MonitoringPayload<'a> {
    /// The run.
    pub run_id: &'a str,
    /// The workflow, as the run's row names it.
    pub workflow_id: &'a str,
    /// Its name.
    pub workflow_name: &'a str,
    /// Whose run it is.
    pub organization_id: &'a str,
    /// The step, or [`WORKFLOW`](Self::WORKFLOW) for the run itself.
    pub step_id: &'a str,
    /// The agent's name; of the run the workflow's.
    pub step_name: &'a str,
    /// `RUNNING`, `COMPLETED` or `FAILED`.
    pub status: &'static str,
    /// When it was written.
    pub timestamp: Timestamp,
    /// What belongs to it.
    pub metadata: Option<MonitoringMetadata<'a>>,
}

impl MonitoringPayload<'_> {
    /// Stands for the run in the place of a step.
    pub const WORKFLOW: &'static str = "workflow";
}

/// Of an attempt the first two, or the first and `error` if it failed; of a failed run the rest.
#[derive(Default, Serialize)]
pub struct MonitoringMetadata<'a> {
    /// The attempt's row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_execution_id: Option<&'a str>,
    /// What the agent was called with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<&'a str>,
    /// The step of the main chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<&'a str>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// The same, where some look for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<&'a str>,
}

impl<'a> ExecutionPayload<'a> {
    /// The record's value.
    #[must_use]
    pub fn new(
        run_id: &'a str,
        event_id: Uuid,
        correlation_id: Option<&'a str>,
        priority: i16,
        organization: &'a OrganizationId,
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
            organization_id: Some(organization.as_str()).filter(|_| !organization.is_default()),
        }
    }
}

/// A request to execute a run, as consumed.
#[derive(Debug)]
pub struct ExecutionRequest {
    /// The run.
    pub run_id: String,
    /// The content to execute.
    pub workflow_plan: Box<RawValue>,
    /// The input; absent or null counts as an empty object.
    pub input_data: Option<Box<RawValue>>,
    /// Of the HTTP request behind it.
    pub correlation_id: Option<String>,
    /// Stable across repeats.
    pub event_id: Option<Uuid>,
    priority: Option<Box<RawValue>>,
    organization_id: Option<Box<RawValue>>,
}

impl ExecutionRequest {
    /// From 0 to 9; what is no such number counts as the default.
    #[must_use]
    pub fn priority(&self) -> u8 {
        let given = self.priority.as_ref().and_then(|priority| priority.get().parse().ok());
        given.filter(|priority| *priority <= 9).unwrap_or(DEFAULT_PRIORITY)
    }

    /// Whose run it says it is. Nothing but its turn depends on that; the row decides.
    #[must_use]
    pub fn organization(&self) -> OrganizationId {
        let given = self.organization_id.as_deref().and_then(text);
        given.and_then(|id| OrganizationId::parse(&id).ok()).unwrap_or_default()
    }
}

/// A request to stop a run, as consumed.
#[derive(Debug)]
pub struct CancellationRequest {
    /// The run.
    pub run_id: String,
    /// Who cancelled it.
    pub cancelled_by: Option<String>,
    /// Why, if they said.
    pub reason: Option<String>,
    /// Of the HTTP request that started the run.
    pub correlation_id: Option<String>,
    /// Stable across repeats. Our API sends it, others do not.
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

/// Why a record cannot be understood, for people who do not know this program.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// There is no value.
    #[error("the record has no value")]
    Empty,
    /// No JSON.
    #[error("the value is no JSON: it ends or breaks at line {line}, column {column}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Not an object with the members that its kind needs.
    #[error("not a message of the contract: {0}")]
    Content(&'static str),
    /// Neither kind can be told from the members.
    #[error("neither an execution nor a cancellation request")]
    UnknownKind,
}

impl From<serde_json::Error> for MessageError {
    fn from(error: serde_json::Error) -> Self {
        if error.is_data() {
            return Self::Content("the value is no JSON object, or has a member twice");
        }
        Self::Json { line: error.line(), column: error.column() }
    }
}

impl MessageError {
    /// In a word.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Json { .. } => "invalid_json",
            Self::Content(_) => "invalid_message",
            Self::UnknownKind => "unknown_kind",
        }
    }
}

impl Message {
    /// The run that it is about.
    #[must_use]
    pub fn run_id(&self) -> &str {
        match self {
            Self::Execution(request) => &request.run_id,
            Self::Cancellation(request) => &request.run_id,
        }
    }

    /// Reads a record's value.
    pub fn parse(payload: &[u8]) -> Result<Self, MessageError> {
        if payload.is_empty() {
            return Err(MessageError::Empty);
        }
        let members: Members<'_> = serde_json::from_slice(payload)?;
        // An array would be read as well, member by member.
        if payload.trim_ascii_start().first() != Some(&b'{') {
            return Err(MessageError::Content("the value is no JSON object"));
        }
        match members.message_type.map(RawValue::get) {
            Some("\"execution_request\"") => members.execution().map(Self::Execution),
            Some("\"cancellation_request\"") => members.cancellation().map(Self::Cancellation),
            _ if members.workflow_plan.is_some() => members.execution().map(Self::Execution),
            _ if members.cancelled_by.is_some() || members.reason.is_some() => {
                members.cancellation().map(Self::Cancellation)
            }
            _ => Err(MessageError::UnknownKind),
        }
    }
}

/// The members of both kinds, as they were sent. Null counts as absent, except for the plan.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Members<'a> {
    #[serde(borrow)]
    message_type: Option<&'a RawValue>,
    #[serde(borrow)]
    run_id: Option<&'a RawValue>,
    #[serde(borrow)]
    workflow_plan: Option<&'a RawValue>,
    #[serde(borrow)]
    input_data: Option<&'a RawValue>,
    #[serde(borrow)]
    correlation_id: Option<&'a RawValue>,
    #[serde(borrow)]
    event_id: Option<&'a RawValue>,
    #[serde(borrow)]
    priority: Option<&'a RawValue>,
    #[serde(borrow)]
    organization_id: Option<&'a RawValue>,
    #[serde(borrow)]
    cancelled_by: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
}

impl Members<'_> {
    fn execution(self) -> Result<ExecutionRequest, MessageError> {
        Ok(ExecutionRequest {
            run_id: self.run_id()?,
            workflow_plan: self.workflow_plan.ok_or(MessageError::Content("it has no workflow_plan"))?.to_owned(),
            input_data: self.input_data.map(ToOwned::to_owned),
            correlation_id: self.correlation_id()?,
            event_id: self.event_id()?,
            priority: self.priority.map(ToOwned::to_owned),
            organization_id: self.organization_id.map(ToOwned::to_owned),
        })
    }

    fn cancellation(self) -> Result<CancellationRequest, MessageError> {
        Ok(CancellationRequest {
            run_id: self.run_id()?,
            cancelled_by: optional(self.cancelled_by, "cancelled_by is no string")?,
            reason: optional(self.reason, "reason is no string")?,
            correlation_id: self.correlation_id()?,
            event_id: self.event_id()?,
        })
    }

    fn run_id(&self) -> Result<String, MessageError> {
        let given = self.run_id.ok_or(MessageError::Content("it has no run_id"))?;
        text(given).ok_or(MessageError::Content("run_id is no string"))
    }

    fn correlation_id(&self) -> Result<Option<String>, MessageError> {
        optional(self.correlation_id, "correlation_id is no string")
    }

    fn event_id(&self) -> Result<Option<Uuid>, MessageError> {
        let wrong = "event_id is no UUID";
        let given = optional(self.event_id, wrong)?;
        given.map(|id| id.parse()).transpose().map_err(|_| MessageError::Content(wrong))
    }
}

fn optional(given: Option<&RawValue>, wrong: &'static str) -> Result<Option<String>, MessageError> {
    let given = given.filter(|given| given.get() != "null");
    given.map(|given| text(given).ok_or(MessageError::Content(wrong))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_record_has_a_code() {
        for (payload, expected) in [
            ("", "empty"),
            ("{", "invalid_json"),
            ("\u{fffd}", "invalid_json"),
            ("[]", "invalid_message"),
            ("7", "invalid_message"),
            (r#"{"run_id":7,"workflow_plan":{}}"#, "invalid_message"),
            (r#"{"run_id":"r","workflow_plan":{},"event_id":"e"}"#, "invalid_message"),
            (r#"{"run_id":"r","run_id":"s","workflow_plan":{}}"#, "invalid_message"),
            (r#"{"run_id":"r","reason":7}"#, "invalid_message"),
            (r#"{"run_id":"r"}"#, "unknown_kind"),
            (r#"{"workflow_plan":{}}"#, "invalid_message"),
        ] {
            let error = Message::parse(payload.as_bytes()).expect_err(payload);
            assert_eq!(error.code(), expected, "{payload}");
            let text = error.to_string();
            for internal in ["struct", "enum", "expected", "missing field", "`"] {
                assert!(!text.contains(internal), "{payload}: {text}");
            }
        }
    }

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
            ("{\"run_id\":", None),
            ("", None),
        ] {
            let kind = Message::parse(payload.as_bytes()).ok().map(|m| matches!(m, Message::Execution(_)));
            assert_eq!(kind, expected, "{payload}");
        }
    }
}
