//! Task that an agent has interrupted, since it needs something of its client.

use std::fmt;

use serde_json::value::RawValue;

use super::{Failure, Request, Wire, in_flight::InFlight};
use crate::{executor::agent_question::AgentQuestion, workflow::OnQuestion};

/// Interrupted task, with the question of the agent. Dropped, it cancels the task.
pub(in crate::executor) struct Interrupted {
    pub(in crate::executor) question: AgentQuestion,
    /// `None`: there is no task, as in a test.
    in_flight: Option<InFlight>,
}

impl Interrupted {
    pub(super) fn new(question: AgentQuestion, in_flight: InFlight) -> Self {
        Self { question, in_flight: Some(in_flight) }
    }

    /// Question without a task: of a test, or of an MCP server that keeps none.
    pub(in crate::executor) fn without_task(question: AgentQuestion) -> Self {
        Self { question, in_flight: None }
    }

    /// The same, with what may be kept of the question.
    pub(super) fn map(self, bounded: impl FnOnce(AgentQuestion) -> AgentQuestion) -> Self {
        Self { question: bounded(self.question), in_flight: self.in_flight }
    }

    /// The question. The task is left to the agent.
    pub(in crate::executor) fn leave(mut self) -> AgentQuestion {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.is_over();
        }
        self.question
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupted").field("question", &self.question).finish_non_exhaustive()
    }
}

/// A question of the agent: the output of the step, or something that the step answers or fails for.
pub(super) fn asked(wire: &Wire<'_>, interrupted: Interrupted, failure: Failure) -> Result<Box<RawValue>, Failure> {
    let Request { agent, executor, conversation, .. } = &wire.request;
    let mask = |said: String| {
        let masked = agent.secrets.mask(said);
        match &agent.credentials {
            Ok(credentials) => executor.egress.mask(credentials, masked),
            Err(_) => masked,
        }
    };
    match conversation.on_question {
        OnQuestion::Ask => {
            let question = Some(Box::new(interrupted.map(|question| question.bounded(mask))));
            Err(Failure { question, ..failure })
        }
        // No later step could go on with it; its task would wait for ever.
        _ if interrupted.question.is_of_server() => Err(failure),
        OnQuestion::Fail => {
            interrupted.leave();
            Err(failure)
        }
        OnQuestion::Output => Ok(interrupted.leave().bounded(mask).output()),
    }
}
