//! Rows of attempts at steps.

use std::time::Duration;

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Frame, Run};
use crate::{
    db::executions::{AgentCall, NestedStep, StepBegin, StepEnd},
    workflow::Step,
};

/// Maximum length of the id of a step row, and of the name of a branch, as in their columns.
pub(in crate::executor) const MAX_COLUMN_CHARS: usize = 255;

impl Run {
    /// Ends the attempt at this step path. `call`: the call of its agent.
    pub(super) fn end(&self, path: &str, result: Result<&RawValue, String>, call: Option<AgentCall>) {
        let (end, memory) = match result {
            Ok(output) => {
                self.budget.output(output.get().len());
                (StepEnd::Completed(output.to_owned()), Some(self.memory.hold(output.get().len())))
            }
            Err(cause) => (StepEnd::Failed(cause), None),
        };
        self.ledger.end(path, end, call, memory);
    }

    /// Ends the attempt at this step path that has called an agent. `pause`: that before the next attempt, if one follows.
    pub(super) fn end_call(
        &self,
        path: &str,
        result: &Result<Box<RawValue>, String>,
        call: Option<AgentCall>,
        pause: Option<Duration>,
    ) {
        match (result, pause) {
            (Err(cause), Some(pause)) => self.ledger.end_before_next(path, cause.clone(), call, pause),
            _ => self.end(path, result.as_deref().map_err(Clone::clone), call),
        }
    }

    /// The row of an attempt that begins.
    pub(super) fn row(
        &self,
        step: &Step,
        agent_name: String,
        input: Box<RawValue>,
        path: &str,
        frame: &Frame<'_>,
    ) -> StepBegin {
        let nested = frame.branch.as_ref().map(|branch| NestedStep {
            parent_step_id: branch.parent_step_id.to_owned(),
            branch_name: branch.name.clone(),
            join_policy: branch.join_policy,
            path: path.to_owned(),
        });
        StepBegin {
            id: row_id(&self.run_id, &step.id, Uuid::new_v4()),
            step_id: step.id.clone(),
            step_name: if agent_name.is_empty() { step.id.clone() } else { agent_name.clone() },
            agent_name,
            task_id: None,
            input,
            nested,
        }
    }
}

/// The id of a step row: `<run>-<step>-<8 hex digits of the random id>`, shortened in the middle if it is too long for its
/// column.
pub(in crate::executor) fn row_id(run_id: &str, step_id: &str, random: Uuid) -> String {
    let suffix = &random.simple().to_string()[..8];
    let room = MAX_COLUMN_CHARS - suffix.len() - 1;
    let kept: String = format!("{run_id}-{step_id}").chars().take(room).collect();
    format!("{kept}-{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_step_row_fits_its_column_and_keeps_its_suffix() {
        let row_id = |run_id: &str, step_id: &str| row_id(run_id, step_id, Uuid::new_v4());
        let id = row_id("run-1", "a");
        assert!(id.starts_with("run-1-a-") && id.len() == "run-1-a-0123abcd".len(), "{id}");
        let long = row_id(&"r".repeat(200), &"ü".repeat(200));
        assert_eq!(long.chars().count(), MAX_COLUMN_CHARS);
        assert_ne!(row_id("r", "s"), row_id("r", "s"));
    }
}
