//! Result of one attempt at an agent step.

use std::time::Duration;

use serde_json::value::RawValue;

use crate::{
    db::executions::AgentCall,
    executor::agent_call::{CallErrorKind, Interrupted},
    permits::Permit,
};

/// Result of one attempt.
pub(super) struct Attempt {
    /// The output, or the reason why there is none.
    pub(super) result: Result<Box<RawValue>, String>,
    /// Pause before the next attempt that calls the same agent; `None`: there is none.
    pub(super) pause: Option<Duration>,
    /// Kind of the error of the call.
    pub(super) fault: Option<CallErrorKind>,
    /// Whether another agent may mend the failure, and which the agent names.
    pub(super) mended_by: (bool, Vec<String>),
    /// Question that the agent has asked instead.
    pub(super) question: Option<Box<Interrupted>>,
    /// The call of the agent, if there was one.
    pub(super) call: Option<AgentCall>,
    /// Memory permit of the output.
    pub(super) memory: Option<Permit>,
}
