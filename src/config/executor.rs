//! `MAX_CONCURRENT_EXECUTIONS`, `MAX_WORKFLOW_DURATION_MS`, `MAX_EXECUTOR_MEMORY_BYTES`, `MAX_RUN_*` and
//! `MAX_SUB_RUNS`: what runs may take.

use std::time::Duration;

use super::{Reader, Section};

/// What the runs of an executor may take.
#[derive(Clone, Copy, Debug)]
pub struct Executor {
    /// `MAX_CONCURRENT_EXECUTIONS`: runs that one executor drives at a time.
    pub max_runs: usize,
    /// `MAX_WORKFLOW_DURATION_MS`: of a run, from its first claim to its end.
    pub max_run_duration: Duration,
    /// `MAX_EXECUTOR_MEMORY_BYTES`: of the inputs and outputs of all its runs that it holds at a time.
    pub memory_bytes: u64,
    /// `MAX_RUN_*` and `MAX_SUB_RUNS`: of one run.
    pub run_budget: RunBudget,
}

impl Section for Executor {
    fn read(reader: &mut Reader) -> Option<Self> {
        let max_runs = reader.number("max_concurrent_executions", 256, 1..=100_000);
        // A day; at most a year.
        let max_run_duration_ms = reader.number("max_workflow_duration_ms", 86_400_000, 1000..=31_536_000_000);
        // Three quarters, which one organisation has, are more than the largest answer and the largest input.
        let memory_bytes = reader.number("max_executor_memory_bytes", 256 << 20, 32 << 20..=1 << 40);
        let run_budget = RunBudget::read(reader);
        Some(Self {
            max_runs: max_runs?,
            max_run_duration: Duration::from_millis(max_run_duration_ms?),
            memory_bytes: memory_bytes?,
            run_budget: run_budget?,
        })
    }
}

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

impl Section for RunBudget {
    fn read(reader: &mut Reader) -> Option<Self> {
        let steps = reader.number("max_run_steps", 100_000, 1..=100_000_000);
        let branches = reader.number("max_run_branches", 100_000, 1..=100_000_000);
        let bytes = reader.number("max_run_bytes", 2 << 30, 1 << 20..=1 << 40);
        let memory_bytes = reader.number("max_run_memory_bytes", 256 << 20, 1 << 20..=1 << 36);
        let takeovers = reader.number("max_run_takeovers", 5, 1..=1000);
        let sub_runs = reader.number("max_sub_runs", 10_000, 1..=10_000_000);
        Some(Self {
            steps: steps?,
            branches: branches?,
            bytes: bytes?,
            memory_bytes: memory_bytes?,
            takeovers: takeovers?,
            sub_runs: sub_runs?,
        })
    }
}
