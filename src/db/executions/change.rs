//! Changes of a run that its driver writes.

use std::{fmt, sync::Arc, time::Duration};

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{access::OrganizationId, input::shorten, permits::Permit, run::RunStatus};

/// Atomic change of a run that the caller owns. If the same attempt begins and ends in it, its row is written as ended.
#[derive(Clone, Debug)]
pub struct Change {
    /// Id of the run.
    pub run_id: String,
    /// Lease token of the claim.
    pub lease_token: Uuid,
    /// Run as observers see it.
    pub of: Arc<ObservedRun>,
    /// The step attempt that ends.
    pub ended: Option<EndedAttempt>,
    /// The step attempt that begins.
    pub begun: Option<StepBegin>,
    /// End of the run.
    pub finished: Option<FinishedRun>,
}

impl Change {
    /// Bytes of the input and the output.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let input = self.begun.as_ref().map_or(0, |step| step.input.get().len());
        let output = self.ended.as_ref().and_then(|step| step.end.output()).map_or(0, |output| output.get().len());
        input + output
    }

    /// Splits a change with both a begin and an end of an attempt in two, and takes out the second one. An attempt
    /// begins before it ends, but begins after the end of another one. The run's end is last.
    pub fn split_off(&mut self) -> Option<Self> {
        let is_one_row = self.ended.as_ref()?.id == self.begun.as_ref()?.id;
        let (ended, begun) = if is_one_row { (self.ended.take(), None) } else { (None, self.begun.take()) };
        let (run_id, of) = (self.run_id.clone(), Arc::clone(&self.of));
        Some(Self { run_id, lease_token: self.lease_token, of, ended, begun, finished: self.finished.take() })
    }

    pub(super) fn nested(&self) -> Option<&NestedStep> {
        self.begun.as_ref()?.nested.as_ref()
    }
}

/// Run as observers know it.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is a member or a header of the updates")]
pub struct ObservedRun {
    pub workflow_id: String,
    pub workflow_name: String,
    pub organization: OrganizationId,
    pub traceparent: String,
}

/// Result of a step attempt.
#[derive(Clone, Debug)]
pub enum StepEnd {
    /// Completed with this output.
    Completed(Box<RawValue>),
    /// Failed for this reason.
    Failed(String),
    /// Abandoned for this reason, because its result is not needed.
    Skipped(String),
}

impl StepEnd {
    /// Value of the `status` column.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Completed(_) => "COMPLETED",
            Self::Failed(_) => "FAILED",
            Self::Skipped(_) => "SKIPPED",
        }
    }

    /// Output of a completed attempt.
    #[must_use]
    pub fn output(&self) -> Option<&RawValue> {
        match self {
            Self::Completed(output) => Some(output),
            Self::Failed(_) | Self::Skipped(_) => None,
        }
    }

    /// Reason of a failed or skipped attempt.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Completed(_) => None,
            Self::Failed(reason) | Self::Skipped(reason) => Some(reason),
        }
    }
}

/// End of a step attempt.
#[derive(Clone, Debug)]
pub struct EndedAttempt {
    /// Id of the row.
    pub id: String,
    /// Output or error.
    pub end: StepEnd,
    /// Call of the agent, if there was one, for the run's log.
    pub call: Option<AgentCall>,
    /// Pause before the next attempt, if the step has failed and another one follows.
    pub pause: Option<Duration>,
    /// Agent step for observers; `None` if the step calls no agent.
    pub of: Option<AgentStep>,
    /// Memory permit of the output until it is written.
    pub memory: Option<Arc<Permit>>,
}

/// Agent step as observers know it.
#[derive(Clone, Debug)]
pub struct AgentStep {
    /// Id of the step.
    pub step_id: String,
    /// Name of the called agent.
    pub agent_name: String,
    /// Task id of the call.
    pub task_id: Option<String>,
}

/// Call to an agent.
#[derive(Clone, Copy, Debug)]
pub struct AgentCall {
    /// HTTP status of the answer, if there was one.
    pub http_status: Option<u16>,
    /// Time from the request to the end of the answer.
    pub duration_ms: f64,
    /// Kind of the failure; `None` for success.
    pub fault: Option<&'static str>,
}

/// Begin of a step attempt.
#[derive(Clone, Debug)]
pub struct StepBegin {
    /// Id of the row.
    pub id: String,
    /// Id of the step.
    pub step_id: String,
    /// Display name of the step.
    pub step_name: String,
    /// Name of the called agent; empty for a step that calls none.
    pub agent_name: String,
    /// Task id of the call, for observers.
    pub task_id: Option<String>,
    /// Input of the attempt.
    pub input: Box<RawValue>,
    /// Position of a nested step; `None` on the main chain.
    pub nested: Option<NestedStep>,
}

/// Position of a nested step.
#[derive(Clone, Debug)]
pub struct NestedStep {
    /// Id of the enclosing step.
    pub parent_step_id: String,
    /// Branch or iteration of the enclosing step.
    pub branch_name: String,
    /// Join policy of the branches, if they are joined.
    pub join_policy: Option<&'static str>,
    /// Step path: the full path from the main chain to the step.
    pub path: String,
}

/// End of a run.
#[derive(Clone, Debug)]
pub struct FinishedRun {
    /// COMPLETED or FAILED.
    pub status: RunStatus,
    /// Error message of a failed run.
    pub error_message: Option<String>,
    /// Failure for observers.
    pub failure: Option<RunFailure>,
}

/// Reason of a failed run. `Display` is the text for its row.
#[derive(Clone, Debug)]
pub struct RunFailure {
    /// Failed step of the main chain, if there is one.
    pub step_id: Option<String>,
    /// Cause of the failure.
    pub cause: String,
    /// Error code, for metrics.
    pub code: &'static str,
}

impl RunFailure {
    /// Failure without a failed step.
    #[must_use]
    pub fn new(code: &'static str, cause: String) -> Self {
        Self { step_id: None, cause, code }
    }
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step_id {
            Some(step_id) => write!(f, "Step '{}' failed: {}", shorten(step_id), self.cause),
            None => f.write_str(&self.cause),
        }
    }
}
