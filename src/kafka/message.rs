//! Message format between API and executor: one JSON object per record, keyed by run id.
//!
//! Unknown members are ignored on both sides, so that members can be added and older programs keep working. `event_id`
//! and `correlation_id` are such additions.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{access::OrganizationId, input::text, timestamp::Timestamp, trace::TRACEPARENT};

/// Headers of messages about a run.
#[must_use]
pub fn headers(traceparent: &str) -> [(&'static str, &str); 2] {
    [("content-type", "application/json"), (TRACEPARENT, traceparent)]
}

/// Size that a topic of events has to take: no event is nearly as large.
pub const MAX_EVENT_BYTES: usize = 64 << 10;

/// Default priority of a run.
pub const DEFAULT_PRIORITY: u8 = 5;

/// Execution request, written by the relay.
#[derive(Serialize)]
pub struct ExecutionPayload<'a> {
    /// Id of the run.
    pub run_id: &'a str,
    /// Content of the definition that the run is pinned to.
    pub workflow_plan: &'a RawValue,
    /// Input of the run, always an object.
    pub input_data: &'a RawValue,
    /// Creation time of the message.
    pub timestamp: Timestamp,
    /// `execution_request`.
    pub message_type: &'static str,
    /// Id that is stable across repeats of the same request.
    pub event_id: Uuid,
    /// Correlation id of the HTTP request.
    pub correlation_id: Option<&'a str>,
    /// Priority from 0 to 9: runs of a higher priority leave the queue first.
    pub priority: i16,
    /// Organisation of the run; absent for the default organisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<&'a str>,
}

/// Cancellation request, written by the relay.
#[derive(Serialize)]
pub struct CancellationPayload<'a> {
    /// Id of the run.
    pub run_id: &'a str,
    /// Actor of the cancellation.
    pub cancelled_by: Option<&'a str>,
    /// Reason, if one was given.
    pub reason: Option<&'a str>,
    /// Creation time of the message.
    pub timestamp: Timestamp,
    /// `cancellation_request`.
    pub message_type: &'static str,
    /// Id that is stable across repeats of the same request.
    pub event_id: Uuid,
    /// Correlation id of the HTTP request that started the run.
    pub correlation_id: Option<&'a str>,
}

/// Monitoring update for observers. It may be delivered more than once.
#[derive(Serialize)]
pub struct MonitoringPayload<'a> {
    /// Id of the run.
    pub run_id: &'a str,
    /// Id of the workflow, as in the run's row.
    pub workflow_id: &'a str,
    /// Name of the workflow.
    pub workflow_name: &'a str,
    /// Organisation of the run.
    pub organization_id: &'a str,
    /// Id of the step, or [`WORKFLOW`](Self::WORKFLOW) for the run itself.
    pub step_id: &'a str,
    /// Name of the agent; for the run itself, of the workflow.
    pub step_name: &'a str,
    /// `RUNNING`, `COMPLETED` or `FAILED`.
    pub status: &'static str,
    /// Time of the update.
    pub timestamp: Timestamp,
    /// Metadata of the update.
    pub metadata: Option<MonitoringMetadata<'a>>,
}

impl MonitoringPayload<'_> {
    /// Step id that stands for the run itself.
    pub const WORKFLOW: &'static str = "workflow";
}

/// Metadata of an update. An attempt has the first two members, or the first and `error` if it failed; a failed run has
/// the others.
#[derive(Default, Serialize)]
pub struct MonitoringMetadata<'a> {
    /// Id of the attempt's row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_execution_id: Option<&'a str>,
    /// Input of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<&'a str>,
    /// Failed step of the main chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<&'a str>,
    /// Cause of the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// The same cause under another name that some consumers read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<&'a str>,
}

impl<'a> ExecutionPayload<'a> {
    /// Value of the record.
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

/// Execution request as consumed.
#[derive(Debug)]
pub struct ExecutionRequest {
    /// Id of the run.
    pub run_id: String,
    /// Plan to execute.
    pub workflow_plan: Box<RawValue>,
    /// Input; absent or null means an empty object.
    pub input_data: Option<Box<RawValue>>,
    /// Correlation id of the HTTP request.
    pub correlation_id: Option<String>,
    /// Id that is stable across repeats.
    pub event_id: Option<Uuid>,
    priority: Option<Box<RawValue>>,
    organization_id: Option<Box<RawValue>>,
}

impl ExecutionRequest {
    /// Priority from 0 to 9; an invalid number means the default.
    #[must_use]
    pub fn priority(&self) -> u8 {
        let given = self.priority.as_ref().and_then(|priority| priority.get().parse().ok());
        given.filter(|priority| *priority <= 9).unwrap_or(DEFAULT_PRIORITY)
    }

    /// Organisation that the message names. It is used only for fair queueing; the row is authoritative.
    #[must_use]
    pub fn organization(&self) -> OrganizationId {
        let given = self.organization_id.as_deref().and_then(text);
        given.and_then(|id| OrganizationId::parse(&id).ok()).unwrap_or_default()
    }
}

/// Cancellation request as consumed.
#[derive(Debug)]
pub struct CancellationRequest {
    /// Id of the run.
    pub run_id: String,
    /// Actor of the cancellation.
    pub cancelled_by: Option<String>,
    /// Reason, if one was given.
    pub reason: Option<String>,
    /// Correlation id of the HTTP request that started the run.
    pub correlation_id: Option<String>,
    /// Id that is stable across repeats. Only our API sends it.
    pub event_id: Option<Uuid>,
}

/// Message of either kind. As the contract requires, the content decides on the kind, not the topic.
#[derive(Debug)]
pub enum Message {
    /// Execute a run.
    Execution(ExecutionRequest),
    /// Stop a run.
    Cancellation(CancellationRequest),
}

/// Reason why a record is invalid, for readers who do not know this program.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// There is no value.
    #[error("the record has no value")]
    Empty,
    /// The value is not JSON.
    #[error("the value is not JSON: it ends or breaks at line {line}, column {column}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Not an object with the members that its kind needs.
    #[error("not a message of the contract: {0}")]
    Content(&'static str),
    /// The members match neither kind.
    #[error("neither an execution nor a cancellation request")]
    UnknownKind,
}

impl From<serde_json::Error> for MessageError {
    fn from(error: serde_json::Error) -> Self {
        if error.is_data() {
            return Self::Content("the value is not a JSON object, or has a member twice");
        }
        Self::Json { line: error.line(), column: error.column() }
    }
}

impl MessageError {
    /// Code of the error.
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
    /// Id of the run of the message.
    #[must_use]
    pub fn run_id(&self) -> &str {
        match self {
            Self::Execution(request) => &request.run_id,
            Self::Cancellation(request) => &request.run_id,
        }
    }

    /// Parses the value of a record.
    pub fn parse(payload: &[u8]) -> Result<Self, MessageError> {
        if payload.is_empty() {
            return Err(MessageError::Empty);
        }
        let members: Members<'_> = serde_json::from_slice(payload)?;
        // An array would be accepted as well, member by member.
        if payload.trim_ascii_start().first() != Some(&b'{') {
            return Err(MessageError::Content("the value is not a JSON object"));
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

/// Members of both kinds as sent. Null means absent, except for the plan.
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
            cancelled_by: optional(self.cancelled_by, "cancelled_by is not a string")?,
            reason: optional(self.reason, "reason is not a string")?,
            correlation_id: self.correlation_id()?,
            event_id: self.event_id()?,
        })
    }

    fn run_id(&self) -> Result<String, MessageError> {
        let given = self.run_id.ok_or(MessageError::Content("it has no run_id"))?;
        text(given).ok_or(MessageError::Content("run_id is not a string"))
    }

    fn correlation_id(&self) -> Result<Option<String>, MessageError> {
        optional(self.correlation_id, "correlation_id is not a string")
    }

    fn event_id(&self) -> Result<Option<Uuid>, MessageError> {
        let wrong = "event_id is not a UUID";
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
    fn each_problem_of_a_record_has_a_code() {
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
