//! Conditional step: executes one of two other steps, or none.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Block, Done, Run};
use crate::{expression, input::to_raw, workflow::Step};

/// The branch for each result of the condition, if it has a step.
pub(super) fn branches(step: &Step) -> impl Iterator<Item = (String, &[String])> {
    [true, false]
        .into_iter()
        .filter_map(|holds| Some((name(holds).to_owned(), std::slice::from_ref(taken(step, holds)?))))
}

/// Name of the branch in rows and in the output.
fn name(holds: bool) -> &'static str {
    if holds { "then" } else { "else" }
}

fn taken(step: &Step, holds: bool) -> Option<&String> {
    let branch = if holds { &step.if_true_step } else { &step.if_false_step };
    branch.as_ref().filter(|step_id| !step_id.is_empty())
}

#[derive(Serialize)]
struct Output<'a> {
    condition_result: bool,
    branch_taken: &'static str,
    branch_step_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    branch_output: Option<&'a RawValue>,
}

impl Run {
    /// Executes the step: the result of the condition and the output of the branch. A condition without a value fails.
    pub(super) async fn conditional(&self, block: &Block<'_>) -> Result<Done, String> {
        let Some(condition) = &block.step.condition else { return Err("it has no condition".to_owned()) };
        let holds = self.with_values(block.scope, || expression::holds(&condition.expression, block.scope)).await;
        let holds = holds.map_err(|error| format!("condition, {error}"))?;
        let taken = taken(block.step, holds);
        let mut frame = block.frame(name(holds), block.scope.inner());
        let branch_output = match taken {
            None => None,
            Some(step_id) => Some(self.sequence(std::slice::from_ref(step_id), &mut frame).await?),
        };
        let output = to_raw(&Output {
            condition_result: holds,
            branch_taken: name(holds),
            branch_step_id: taken.map(String::as_str),
            branch_output: branch_output.as_deref(),
        });
        Ok(Done { inside: frame.scope.into_outputs(), ..Done::new(output) })
    }
}
