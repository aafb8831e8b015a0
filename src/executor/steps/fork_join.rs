//! Fork-join step: executes branches concurrently, until it is decided whether enough of them succeed.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{Block, Done, Frame, MAX_OUTPUT_BYTES, Run, group::Group, joined, too_large};
use crate::{
    db::executions::StepEnd,
    input::{object_of, shorten},
    workflow::{ForkJoinConfig, Step},
};

/// The branches by name.
pub(super) fn branches(step: &Step) -> impl Iterator<Item = (&str, &[String])> {
    let branches = step.fork_join_config.iter().flat_map(|config| &config.branches);
    branches.map(|(name, branch)| (name.as_str(), branch.steps.as_slice()))
}

/// Number of branches that must succeed.
fn required(config: &ForkJoinConfig) -> usize {
    let total = config.branches.len();
    match config.join_policy {
        "any" => 1,
        "majority" => total / 2 + 1,
        "n_of_m" => config.n_required.map_or(total, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        _ => total,
    }
}

impl Run {
    /// Executes the step: the output of each branch's last step, null for branches that failed or were not waited for.
    /// As soon as enough have succeeded, or too many have failed, the others are abandoned.
    pub(super) async fn fork_join(&self, block: &Block<'_>) -> Result<Done, String> {
        let Some(config) = &block.step.fork_join_config else { return Err("it has no fork_join_config".to_owned()) };
        let (total, required) = (config.branches.len(), required(config));
        let mut frames: Vec<Frame<'_>> = config
            .branches
            .iter()
            .map(|(name, _)| block.frame(name, block.scope.inner()).joined_by(config.join_policy))
            .collect();
        let branches = config.branches.iter().zip(&mut frames).enumerate().map(|(index, ((_, branch), frame))| {
            let secs = branch.timeout_seconds.or(config.branch_timeout_seconds);
            async move { (index, self.branch(block, &branch.steps, frame, secs).await) }
        });
        let mut outputs: Vec<Option<Box<RawValue>>> = vec![None; total];
        let (mut succeeded, mut failed) = (0, Vec::new());
        let mut held = self.budget.hold();
        let mut group = Group::new(branches, None, &self.slots, &self.activity);
        while let Some((index, result)) = group.next().await {
            match result {
                Ok(output) => {
                    held.add(output.get().len());
                    outputs[index] = Some(output);
                    succeeded += 1;
                }
                Err(cause) => failed.push(format!("branch '{}', {cause}", shorten(&config.branches[index].0))),
            }
            if succeeded >= required || total - failed.len() < required {
                break;
            }
            if group.is_busy() {
                self.ledger.request_flush();
            }
        }
        drop(group);
        self.give_up(block, "abandoned: the join was decided without this branch");
        if succeeded < required {
            let possible = total - failed.len();
            let policy = config.join_policy;
            let failed = joined(&failed);
            return Err(format!(
                "join policy {policy}: at most {possible}/{total} branches can succeed, {required} must; {failed}"
            ));
        }
        if held.bytes() > MAX_OUTPUT_BYTES {
            return Err(too_large());
        }
        let names = config.branches.iter().map(|(name, _)| name.as_str());
        let output = object_of(names.zip(outputs.iter().map(|output| output.as_deref().unwrap_or(RawValue::NULL))));
        let inside = frames.into_iter().flat_map(|frame| frame.scope.into_outputs()).collect();
        Ok(Done { inside, ..Done::new(output) })
    }

    /// Executes one branch within its time-out.
    async fn branch(
        &self,
        block: &Block<'_>,
        step_ids: &[String],
        frame: &mut Frame<'_>,
        timeout_secs: Option<i64>,
    ) -> Result<Box<RawValue>, String> {
        let prefix = frame.prefix.clone();
        let age = self.earlier.age_below(&prefix, block.age);
        let work = self.sequence(step_ids, frame);
        let Some(secs) = timeout_secs else { return work.await };
        let limit = Duration::from_secs(u64::try_from(secs).unwrap_or_default());
        if let Some(result) = self.limited(limit.saturating_sub(age), work).await {
            return result;
        }
        let cause = format!("it took longer than {secs} s");
        self.ledger.close(&prefix, &StepEnd::Failed(format!("timed out: the branch took longer than {secs} s")));
        Err(cause)
    }

    /// Closes the open attempts of branches that were dropped.
    pub(super) fn give_up(&self, block: &Block<'_>, why: &str) {
        self.ledger.close(&format!("{}/", block.path), &StepEnd::Skipped(why.to_owned()));
    }
}

impl Frame<'_> {
    fn joined_by(mut self, policy: &'static str) -> Self {
        if let Some(branch) = &mut self.branch {
            branch.join_policy = Some(policy);
        }
        self
    }
}
