//! `MAX_RUN_*` and `MAX_SUB_RUNS`: what one run may take.

use super::Reader;

/// What one run may take, all its retries counted, before it fails.
#[derive(Clone, Copy, Debug)]
pub struct RunBudget {
    /// `MAX_RUN_STEPS`: attempts of steps, of blocks too; each is a row.
    pub steps: u64,
    /// `MAX_RUN_BRANCHES`: branches and iterations that its blocks begin.
    pub branches: u64,
    /// `MAX_RUN_BYTES`: bytes of inputs and outputs of its steps.
    pub bytes: u64,
    /// `MAX_RUN_MEMORY_BYTES`: bytes of outputs that an executor holds for its later steps.
    pub memory_bytes: u64,
    /// `MAX_RUN_TAKEOVERS`: how often it is taken over from a dead executor without having got on.
    pub takeovers: i16,
    /// `MAX_SUB_RUNS`: how many runs it may begin by its steps, with those that they begin.
    pub sub_runs: i32,
}

impl Reader {
    pub(super) fn run_budget(&mut self) -> Option<RunBudget> {
        let steps = self.number("max_run_steps", 100_000, 1..=100_000_000);
        let branches = self.number("max_run_branches", 100_000, 1..=100_000_000);
        let bytes = self.number("max_run_bytes", 2 << 30, 1 << 20..=1 << 40);
        let memory_bytes = self.number("max_run_memory_bytes", 256 << 20, 1 << 20..=1 << 36);
        let takeovers = self.number("max_run_takeovers", 5, 1..=1000);
        let sub_runs = self.number("max_sub_runs", 10_000, 1..=10_000_000);
        Some(RunBudget {
            steps: steps?,
            branches: branches?,
            bytes: bytes?,
            memory_bytes: memory_bytes?,
            takeovers: takeovers?,
            sub_runs: sub_runs?,
        })
    }
}
