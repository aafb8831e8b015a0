//! Result of one attempt at an agent step.

use std::time::Duration;

use serde_json::value::RawValue;

use super::spending::Settling;
use crate::{
    db::{executions::AgentCall, usage::Excess},
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
    /// Limit that the call has exceeded, and what is kept until the step has ended.
    pub(super) settled: (Option<Excess>, Option<Settling>),
}

impl Attempt {
    /// Attempt without a call, since there is no agent to call.
    pub(super) fn without_agent(cause: String) -> Self {
        Self {
            result: Err(cause),
            pause: None,
            fault: None,
            mended_by: (true, Vec::new()),
            question: None,
            call: None,
            memory: None,
            settled: (None, None),
        }
    }
}
