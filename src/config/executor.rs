//! Limits of executors and runs: `MAX_CONCURRENT_EXECUTIONS`, `MAX_WORKFLOW_DURATION_MS`, `MAX_EXECUTOR_MEMORY_BYTES`,
//! `MAX_RUN_*` and `MAX_SUB_RUNS`.

use std::time::Duration;

use super::{Reader, Section};

/// Limits of an executor.
#[derive(Clone, Copy, Debug)]
pub struct Executor {
    /// `MAX_CONCURRENT_EXECUTIONS`: maximum number of runs that one executor drives at a time.
    pub max_runs: usize,
    /// `MAX_WORKFLOW_DURATION_MS`: maximum duration of a run, from its first claim to its end.
    pub max_run_duration: Duration,
    /// `MAX_EXECUTOR_MEMORY_BYTES`: memory for the inputs and outputs of all runs of an executor.
    pub memory_bytes: u64,
    /// `MAX_RUN_*` and `MAX_SUB_RUNS`: limits of one run.
    pub run_budget: RunBudget,
}

impl Section for Executor {
    fn read(reader: &mut Reader) -> Option<Self> {
        let max_runs = reader.number("max_concurrent_executions", 256, 1..=100_000);
        // The default is a day, the maximum a year.
        let max_run_duration_ms = reader.number("max_workflow_duration_ms", 86_400_000, 1000..=31_536_000_000);
        // Three quarters of it, the share of one organisation, are more than the largest answer and the largest input.
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

/// Budget of one run, including all its retries. A run that exceeds it fails.
#[derive(Clone, Copy, Debug)]
pub struct RunBudget {
    /// `MAX_RUN_STEPS`: number of step attempts, including those of blocks. Each is a row.
    pub steps: u64,
    /// `MAX_RUN_BRANCHES`: number of branches and iterations that its blocks begin.
    pub branches: u64,
    /// `MAX_RUN_BYTES`: bytes of the inputs and outputs of its steps.
    pub bytes: u64,
    /// `MAX_RUN_MEMORY_BYTES`: bytes of outputs that an executor keeps in memory for later steps.
    pub memory_bytes: u64,
    /// `MAX_RUN_TAKEOVERS`: number of takeovers from dead executors without progress in between.
    pub takeovers: i16,
    /// `MAX_SUB_RUNS`: number of runs that its steps begin, including nested ones.
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
