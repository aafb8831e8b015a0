//! Changes: what a driver has to write of its run.

use std::{fmt, sync::Arc};

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{access::OrganizationId, input::shorten, permits::Permit, run::RunStatus};

/// What happens to a run that the caller holds; everything in it happens at once or not at all. If the same attempt
/// begins and ends in it, its row is written as ended.
#[derive(Clone, Debug)]
pub struct Change {
    /// The run.
    pub run_id: String,
    /// Of the claim.
    pub lease_token: Uuid,
    /// The run. For observers.
    pub of: Arc<ObservedRun>,
    /// The step attempt that ends.
    pub ended: Option<EndedAttempt>,
    /// The step attempt that begins.
    pub begun: Option<StepBegin>,
    /// The run ends.
    pub finished: Option<FinishedRun>,
}

impl Change {
    /// The size of the input and the output in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let input = self.begun.as_ref().map_or(0, |step| step.input.get().len());
        let output = self.ended.as_ref().and_then(|step| step.end.output()).map_or(0, |output| output.get().len());
        input + output
    }

    /// Splits it in two, the begin and the end of an attempt, if both are in it: what comes second, in their order, is
    /// taken out. An attempt begins before it ends, and others end before it begins. The run's end comes last.
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

/// A run, as observers know it.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is a member or a header of the updates")]
pub struct ObservedRun {
    pub workflow_id: String,
    pub workflow_name: String,
    pub organization: OrganizationId,
    pub traceparent: String,
}

/// How a step attempt ends.
#[derive(Clone, Debug)]
pub enum StepEnd {
    /// With this output.
    Completed(Box<RawValue>),
    /// For this reason.
    Failed(String),
    /// It was given up, for this reason: nobody needs it any more.
    Skipped(String),
}

impl StepEnd {
    /// As in the `status` column.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Completed(_) => "COMPLETED",
            Self::Failed(_) => "FAILED",
            Self::Skipped(_) => "SKIPPED",
        }
    }

    /// What it gave.
    #[must_use]
    pub fn output(&self) -> Option<&RawValue> {
        match self {
            Self::Completed(output) => Some(output),
            Self::Failed(_) | Self::Skipped(_) => None,
        }
    }

    /// Why it gave nothing.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Completed(_) => None,
            Self::Failed(reason) | Self::Skipped(reason) => Some(reason),
        }
    }
}

/// The end of a step attempt.
#[derive(Clone, Debug)]
pub struct EndedAttempt {
    /// The row.
    pub id: String,
    /// The output, or what went wrong.
    pub end: StepEnd,
    /// How the agent was called, if it was. For the run's log.
    pub call: Option<AgentCall>,
    /// Of a step that calls an agent. For observers.
    pub of: Option<AgentStep>,
    /// The memory of the output, until it is written.
    pub memory: Option<Arc<Permit>>,
}

/// A step that calls an agent, as observers know it.
#[derive(Clone, Debug)]
pub struct AgentStep {
    /// The step.
    pub step_id: String,
    /// Whom it calls.
    pub agent_name: String,
    /// What the agent is called with.
    pub task_id: Option<String>,
}

/// A call to an agent.
#[derive(Clone, Copy, Debug)]
pub struct AgentCall {
    /// The HTTP status of the answer, if there was one.
    pub http_status: Option<u16>,
    /// From the request to the end of the answer.
    pub duration_ms: f64,
    /// What it came to, in a word; `None`: success.
    pub fault: Option<&'static str>,
}

/// The begin of a step attempt.
#[derive(Clone, Debug)]
pub struct StepBegin {
    /// The row.
    pub id: String,
    /// The step.
    pub step_id: String,
    /// For people.
    pub step_name: String,
    /// Whom it calls; empty for a step that calls nobody.
    pub agent_name: String,
    /// What the agent is called with. For observers.
    pub task_id: Option<String>,
    /// With what.
    pub input: Box<RawValue>,
    /// Where it stands, if not on the main chain.
    pub nested: Option<NestedStep>,
}

/// Where a nested step stands.
#[derive(Clone, Debug)]
pub struct NestedStep {
    /// The step that contains it.
    pub parent_step_id: String,
    /// In which of its branches or iterations.
    pub branch_name: String,
    /// How the branches are joined, if they are.
    pub join_policy: Option<&'static str>,
    /// The whole way from the main chain to the step.
    pub path: String,
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct FinishedRun {
    /// COMPLETED or FAILED.
    pub status: RunStatus,
    /// Why it failed.
    pub error_message: Option<String>,
    /// The same for observers.
    pub failure: Option<RunFailure>,
}

/// Why a run fails. `Display` is fit for its row.
#[derive(Clone, Debug)]
pub struct RunFailure {
    /// The step of the main chain that failed, if one did.
    pub step_id: Option<String>,
    /// Why it did.
    pub cause: String,
}

impl From<String> for RunFailure {
    fn from(cause: String) -> Self {
        Self { step_id: None, cause }
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
