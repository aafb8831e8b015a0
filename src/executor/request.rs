//! Execution request, between its reading and its claim.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    access::OrganizationId,
    db::executions::ClaimBatch,
    id,
    input::{check_json, member, text},
    kafka::{consumer::Position, message::ExecutionRequest},
    workflow::Plan,
};

/// Maximum size of a record that is executed, since it uses memory while it waits.
const MAX_BYTES: usize = 16 << 20;
/// Maximum length of an id, as in its column.
const MAX_ID_CHARS: usize = 255;

/// Request that waits to be claimed. Its token is created once, so that a claim can be repeated if its answer was lost.
pub(super) struct PendingRequest {
    pub(super) position: Position,
    pub(super) sent_at: Option<DateTime<Utc>>,
    /// Memory that the request uses, in bytes.
    pub(super) bytes: usize,
    pub(super) lease_token: Uuid,
    pub(super) run_id: String,
    pub(super) plan: Arc<RawValue>,
    pub(super) input: Option<Box<RawValue>>,
    pub(super) correlation_id: Option<String>,
    pub(super) traceparent: Option<String>,
    pub(super) event_id: Option<Uuid>,
    /// Priority from 0 to 9.
    pub(super) priority: u8,
    /// Organisation in the message.
    pub(super) organization: OrganizationId,
}

impl PendingRequest {
    pub(super) fn new(
        position: Position,
        sent_at: Option<DateTime<Utc>>,
        bytes: usize,
        traceparent: Option<String>,
        request: ExecutionRequest,
    ) -> Self {
        let (priority, organization) = (request.priority(), request.organization());
        let ExecutionRequest { run_id, workflow_plan, input_data, correlation_id, event_id, .. } = request;
        Self {
            position,
            sent_at,
            bytes,
            lease_token: Uuid::new_v4(),
            run_id,
            plan: workflow_plan.into(),
            input: input_data,
            correlation_id,
            traceparent,
            event_id,
            priority,
            organization,
        }
    }

    /// Bytes of plan and input.
    pub(super) fn payload_bytes(&self) -> usize {
        self.plan.get().len() + self.input.as_ref().map_or(0, |input| input.get().len())
    }
}

/// Reason why a record cannot be used, as a code and as text.
pub(super) struct InvalidRecord {
    pub(super) code: &'static str,
    pub(super) text: String,
}

/// Reason why a request can neither be stored nor executed, if there is one.
pub(super) fn fault(request: &ExecutionRequest, bytes: usize) -> Option<InvalidRecord> {
    let invalid = |text| Some(InvalidRecord { code: "invalid_content", text });
    if bytes > MAX_BYTES {
        let text = format!("the record is larger than {MAX_BYTES} bytes");
        return Some(InvalidRecord { code: "too_large", text });
    }
    if request.run_id.contains('\0') {
        return invalid("run_id has a NUL character".to_owned());
    }
    if request.run_id.is_empty() || request.run_id.chars().count() > MAX_ID_CHARS {
        return invalid(format!("run_id must have 1 to {MAX_ID_CHARS} characters"));
    }
    if let Some(fault) = json_fault(&request.workflow_plan) {
        return invalid(format!("workflow_plan: {fault}"));
    }
    if let Some(fault) = request.input_data.as_deref().and_then(json_fault) {
        return invalid(format!("input_data: {fault}"));
    }
    let error = Plan::parse(&request.workflow_plan).err()?;
    Some(InvalidRecord { code: "invalid_plan", text: format!("the workflow plan cannot be executed: {error}") })
}

pub(super) fn columns<'a>(requests: impl Iterator<Item = &'a PendingRequest>) -> ClaimBatch {
    let mut batch = ClaimBatch::default();
    for request in requests {
        let named = |name: &str| member(&request.plan, name).and_then(text).unwrap_or_default();
        batch.run_id.push(request.run_id.clone());
        batch.lease_token.push(request.lease_token);
        batch.event_id.push(request.event_id);
        batch.workflow_id.push(named("workflow_id"));
        batch.workflow_name.push(named("name"));
        batch.plan.push(request.plan.get().to_owned());
        batch.input.push(request.input.as_ref().map(|input| input.get().to_owned()));
        batch.correlation_id.push(request.correlation_id.as_deref().map(|given| id::correlation_id(Some(given))));
        batch.traceparent.push(request.traceparent.clone());
        batch.sent_at.push(request.sent_at);
    }
    batch
}

/// Reason why this JSON cannot be stored, if there is one.
fn json_fault(json: &RawValue) -> Option<String> {
    check_json(json.get().as_bytes()).err().map(|fault| fault.to_string())
}
