//! Task that an agent has interrupted, since it needs something of its client.

use std::fmt;

use super::in_flight::InFlight;
use crate::executor::agent_question::AgentQuestion;

/// Interrupted task, with the question of the agent. Dropped, it cancels the task.
pub(in crate::executor) struct Interrupted {
    pub(in crate::executor) question: AgentQuestion,
    /// `None` in a test.
    in_flight: Option<InFlight>,
}

impl Interrupted {
    pub(super) fn new(question: AgentQuestion, in_flight: InFlight) -> Self {
        Self { question, in_flight: Some(in_flight) }
    }

    /// Question of a test.
    pub(in crate::executor) fn of_test(question: AgentQuestion) -> Self {
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
