//! Execution request, between its reading and its claim.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::plans::{KnownPlan, Plans};
use crate::{
    access::OrganizationId,
    db::executions::{Change, ClaimBatch},
    id,
    input::check_json,
    kafka::{consumer::Position, message::ExecutionRequest},
};

/// Maximum size of a record that is executed, since it uses memory while it waits.
const MAX_BYTES: usize = 16 << 20;
/// Bytes of a request in addition to its input and its plan.
const OVERHEAD_BYTES: usize = 512;
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
    pub(super) plan: Arc<KnownPlan>,
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
        traceparent: Option<String>,
        request: ExecutionRequest,
        (plan, is_new): (Arc<KnownPlan>, bool),
    ) -> Self {
        let (priority, organization) = (request.priority(), request.organization());
        let ExecutionRequest { run_id, input_data, correlation_id, event_id, .. } = request;
        // A plan is kept once.
        let of_plan = if is_new { plan.json.get().len() } else { 0 };
        Self {
            position,
            sent_at,
            bytes: OVERHEAD_BYTES + of_plan + input_data.as_ref().map_or(0, |input| input.get().len()),
            lease_token: Uuid::new_v4(),
            run_id,
            plan,
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
        self.plan.json.get().len() + self.input.as_ref().map_or(0, |input| input.get().len())
    }
}

/// Reason why a record cannot be used, as a code and as text.
pub(super) struct InvalidRecord {
    pub(super) code: &'static str,
    pub(super) text: String,
}

/// Plan of a request, and whether it is not known yet; or the reason why the request can neither be stored nor executed.
pub(super) fn plan_of(
    plans: &Plans,
    request: &ExecutionRequest,
    bytes: usize,
) -> Result<(Arc<KnownPlan>, bool), InvalidRecord> {
    let invalid = |text| Err(InvalidRecord { code: "invalid_content", text });
    if bytes > MAX_BYTES {
        let text = format!("the record is larger than {MAX_BYTES} bytes");
        return Err(InvalidRecord { code: "too_large", text });
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
    plans.read(&request.workflow_plan).map_err(|error| InvalidRecord {
        code: "invalid_plan",
        text: format!("the workflow plan cannot be executed: {error}"),
    })
}

/// Batch of these requests, each with its first attempt if that begins with the claim.
pub(super) fn columns<'a>(requests: impl Iterator<Item = (&'a PendingRequest, Option<Change>)>) -> ClaimBatch {
    let mut batch = ClaimBatch::default();
    let mut plans: HashMap<*const KnownPlan, i32> = HashMap::new();
    for (request, first) in requests {
        let next = plans.len() + 1;
        let index = *plans.entry(Arc::as_ptr(&request.plan)).or_insert_with(|| {
            batch.plans.push(request.plan.json.get().to_owned());
            i32::try_from(next).expect("a batch is small")
        });
        batch.run_id.push(request.run_id.clone());
        batch.lease_token.push(request.lease_token);
        batch.event_id.push(request.event_id);
        batch.workflow_id.push(request.plan.workflow_id.clone());
        batch.workflow_name.push(request.plan.name.to_string());
        batch.plan.push(index);
        batch.input.push(request.input.as_ref().map(|input| input.get().to_owned()));
        batch.correlation_id.push(request.correlation_id.as_deref().map(|given| id::correlation_id(Some(given))));
        batch.traceparent.push(request.traceparent.clone());
        batch.sent_at.push(request.sent_at);
        batch.first.push(first);
    }
    batch
}

/// Reason why this JSON cannot be stored, if there is one.
fn json_fault(json: &RawValue) -> Option<String> {
    check_json(json.get().as_bytes()).err().map(|fault| fault.to_string())
}
