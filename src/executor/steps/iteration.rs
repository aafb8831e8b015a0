//! Loop step, of type `loop`: executes its body for each element of an array, with the loop's variables.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Block, Done, MAX_OUTPUT_BYTES, Run, group::Group, joined, step_path, too_large};
use crate::{
    input::{elements, to_raw},
    mapping,
};

#[derive(Serialize)]
struct Output<'a> {
    iterations: Vec<Option<&'a RawValue>>,
    total_count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_count: Option<usize>,
}

/// Results of the iterations so far.
struct Results {
    outputs: Vec<Option<Box<RawValue>>>,
    bytes: usize,
    /// Index and cause of each failed iteration.
    failed: Vec<(usize, String)>,
}

impl Run {
    /// Executes the step: the output of each iteration's last step. Other outputs are visible only in their iteration.
    pub(super) async fn iterate(&self, block: &Block<'_>) -> Result<Done, String> {
        let Some(config) = &block.step.loop_config else { return Err("it has no loop_config".to_owned()) };
        let find = || mapping::resolve_reference(&config.collection, block.scope);
        let collection = self.with_values(block.scope, find).await;
        let collection = collection.map_err(|error| format!("collection, {error}"))?;
        let items = elements(&collection).ok_or("collection: it must be an array")?;
        let limit = config.max_iterations.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let total = items.len().min(limit);
        let is_sequential = config.execution_mode == "sequential";

        let branches = items[..total].iter().enumerate().map(|(index, item)| async move {
            self.budget.branches(1).await;
            let name = index.to_string();
            let line = (step_path::branch(block.path, &name), config.loop_body.as_slice());
            let mut scope = block.scope.iteration(item, index, total);
            if let Some(callbacks) = self.callbacks(std::iter::once(line)) {
                scope = scope.with_callbacks(callbacks);
            }
            let mut frame = block.frame(&name, scope);
            (index, self.sequence(&config.loop_body, &mut frame).await)
        });
        let at_a_time = if is_sequential { Some(1) } else { config.max_parallelism };
        let mut group = Group::new(branches, at_a_time, &self.slots, &self.activity);
        let mut results = Results { outputs: vec![None; total], bytes: 0, failed: Vec::new() };
        let mut held = self.budget.hold();
        while let Some((index, result)) = group.next().await {
            match result {
                Ok(output) => {
                    results.bytes += output.get().len();
                    held.add(output.get().len());
                    if results.bytes > MAX_OUTPUT_BYTES {
                        drop(group);
                        self.give_up(block, "abandoned: the loop's output is too large");
                        return Err(too_large());
                    }
                    results.outputs[index] = Some(output);
                }
                Err(cause) => {
                    results.failed.push((index, cause));
                    if is_sequential && config.on_error == "stop" {
                        break;
                    }
                }
            }
            if group.is_busy() {
                self.ledger.request_flush();
            }
        }
        drop(group);
        results.end(config.on_error).map(Done::new)
    }
}

impl Results {
    fn end(mut self, on_error: &str) -> Result<Box<RawValue>, String> {
        self.failed.sort_unstable();
        let total_count = self.outputs.len();
        let failed_count = self.failed.len();
        let causes: Vec<String> =
            self.failed.into_iter().map(|(index, cause)| format!("iteration {index} failed: {cause}")).collect();
        match (causes.first(), on_error) {
            (None, _) | (_, "continue") => Ok(to_raw(&Output {
                iterations: self.outputs.iter().map(Option::as_deref).collect(),
                total_count,
                failed_count: (failed_count > 0).then_some(failed_count),
            })),
            (_, "collect") => Err(format!("{failed_count} of {total_count} iterations failed: {}", joined(&causes))),
            (Some(first), _) => Err(first.clone()),
        }
    }
}
