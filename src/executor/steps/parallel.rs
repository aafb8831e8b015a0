//! Parallel step: executes other steps concurrently and waits for all of them, also after a failure.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::{Block, Done, MAX_OUTPUT_BYTES, Run, group::Group, joined, too_large};
use crate::{input::object_of, workflow::Step};

/// The members as branches, by name: the id, numbered from the second mention on.
pub(super) fn branches(step: &Step) -> impl Iterator<Item = (String, &String)> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    step.parallel_steps.iter().flatten().map(move |step_id| {
        let count = seen.entry(step_id).and_modify(|count| *count += 1).or_insert(1);
        (if *count == 1 { step_id.clone() } else { format!("{step_id}#{count}") }, step_id)
    })
}

impl Run {
    /// Executes the step: the members' outputs by their ids.
    pub(super) async fn parallel(&self, block: &Block<'_>) -> Result<Done, String> {
        let members: Vec<(String, &String)> = branches(block.step).collect();
        let mut frames: Vec<_> = members.iter().map(|(name, _)| block.frame(name, block.scope.inner())).collect();
        let branches = members.iter().zip(&mut frames).enumerate().map(|(index, ((_, step_id), frame))| async move {
            (index, self.sequence(std::slice::from_ref(*step_id), frame).await)
        });
        let mut results: Vec<Result<Box<RawValue>, String>> = vec![Err(String::new()); members.len()];
        let mut held = self.budget.hold();
        let mut group = Group::new(branches, block.step.max_parallelism, &self.slots, &self.activity);
        while let Some((index, result)) = group.next().await {
            held.add(result.as_ref().map_or(0, |output| output.get().len()));
            results[index] = result;
            if group.is_busy() {
                self.ledger.request_flush();
            }
        }
        drop(group);
        let causes: Vec<String> = results.iter().filter_map(|result| result.as_ref().err().cloned()).collect();
        if !causes.is_empty() {
            return Err(format!("parallel steps failed: {}", joined(&causes)));
        }
        if held.bytes() > MAX_OUTPUT_BYTES {
            return Err(too_large());
        }
        // A member that is mentioned twice is one member of the output, with the value of its last mention.
        let outputs: HashMap<&str, &RawValue> = members
            .iter()
            .zip(&results)
            .filter_map(|((_, step_id), result)| Some((step_id.as_str(), result.as_deref().ok()?)))
            .collect();
        let is_first = |(name, step_id): &&(String, &String)| name == *step_id;
        let firsts = members.iter().filter(is_first).map(|(_, step_id)| step_id.as_str());
        let output = object_of(firsts.filter_map(|step_id| Some((step_id, *outputs.get(step_id)?))));
        let inside = frames.into_iter().flat_map(|frame| frame.scope.into_outputs()).collect();
        Ok(Done { inside, ..Done::new(output) })
    }
}
