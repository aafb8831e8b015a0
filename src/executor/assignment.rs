//! Assignment: a claimed run as its driver receives it, whether a message or the sweep found it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use uuid::Uuid;

use super::plans::Plans;
use crate::{access::OrganizationId, db::executions::StepBegin, input::object_of, usage::Limits, workflow::Plan};

/// Claimed run, with all that is needed to drive it.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) run_id: String,
    pub(super) lease_token: Uuid,
    /// Organisation of the run and of the agents that it calls.
    pub(super) organization: OrganizationId,
    pub(super) workflow_id: String,
    pub(super) workflow_name: String,
    pub(super) correlation_id: Option<String>,
    pub(super) traceparent: Option<String>,
    /// How the run came to be claimed.
    pub(super) origin: Origin,
    /// Pinned definition; the error: why there is none that can be executed.
    pub(super) plan: Result<Arc<Plan>, String>,
    pub(super) input: Box<RawValue>,
    /// Progress of the run before the claim.
    pub(super) before: Progress,
    /// First attempt, if it has begun with the claim.
    pub(super) first: Option<FirstAttempt>,
    /// Number of takeovers from dead executors since the run last made progress.
    pub(super) takeovers: i16,
    /// Time for which the run has been executed so far.
    pub(super) elapsed: Duration,
    /// Limits of the run itself; empty ones: those of a run above it hold; `None`: neither has any.
    pub(super) limits: Option<Limits>,
}

/// First attempt that has begun with the claim.
#[derive(Debug)]
pub(super) struct FirstAttempt {
    pub(super) row: StepBegin,
    /// Instant before the claim.
    pub(super) since: Instant,
    /// Version of the agent's row at the claim, if there was one.
    pub(super) agent_version: Option<i64>,
}

/// How a run came to be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// By its message.
    Message,
    /// By a sweep: it was parked, or its executor died.
    Sweep,
    /// By a sweep: it was started by another run, and has no message.
    SubRun,
}

/// Progress of a run before it was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing was executed.
    Nothing,
    /// Steps may have been executed, until the run ended or its executor died.
    Interrupted,
    /// The run was parked, and continues where it was.
    Parked,
}

/// Plan of a run that is pinned to this definition.
pub(super) fn pinned(plans: &Plans, definition: Option<&RawValue>) -> Result<Arc<Plan>, String> {
    let Some(json) = definition else {
        return Err("the workflow version that the run is pinned to does not exist".to_owned());
    };
    let read = plans.read(json).map_err(|error| format!("the workflow plan cannot be executed: {error}"));
    read.map(|(known, _)| Arc::clone(&known.plan))
}

/// JSON text from our own database as a value. Unreadable text counts as absent.
pub(super) fn stored(text: Option<String>) -> Option<Box<RawValue>> {
    RawValue::from_string(text?).ok()
}

/// Limits from our own database. Unreadable ones are those of another program; the run then has none of its own.
pub(super) fn limits_of(text: Option<&str>) -> Option<Limits> {
    Some(serde_json::from_str(text?).unwrap_or_default())
}

/// Input of a run: an empty object for none, as the contract says.
pub(super) fn input_or_empty(input: Option<Box<RawValue>>) -> Box<RawValue> {
    input.filter(|input| input.get() != "null").unwrap_or_else(|| object_of([]))
}
