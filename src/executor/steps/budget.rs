//! Run budget: limits of what one run uses. A run that exceeds a limit fails as a whole, whatever the error handling of
//! its blocks.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Notify;

use crate::{
    config::RunBudget,
    db::executions::RunFailure,
    executor::{error_code, memory::counted},
    permits::Permit,
};

/// Run budget of one run.
pub(in crate::executor) struct Budget {
    limits: RunBudget,
    steps: AtomicU64,
    branches: AtomicU64,
    written: AtomicU64,
    held: AtomicU64,
    /// Permit of the executor's memory, for the values that are held.
    memory: Mutex<Permit>,
    /// Error code and reason with which the run fails.
    exceeded: OnceLock<(&'static str, String)>,
    is_exceeded: Notify,
}

impl Budget {
    /// Budget of a run that has already executed `steps` steps and written `written` bytes.
    pub(super) fn new(limits: RunBudget, steps: u64, written: u64, memory: Permit) -> Self {
        Self {
            limits,
            steps: AtomicU64::new(steps),
            branches: AtomicU64::new(0),
            written: AtomicU64::new(written),
            held: AtomicU64::new(0),
            memory: Mutex::new(memory),
            exceeded: OnceLock::new(),
            is_exceeded: Notify::new(),
        }
    }

    /// Waits until the run exceeds a limit. Returns the failure. Must be called once only.
    pub(in crate::executor) async fn exceeded(&self) -> RunFailure {
        loop {
            self.is_exceeded.notified().await;
            if let Some(failure) = self.excess() {
                return failure;
            }
        }
    }

    /// Failure of the run, if it has exceeded a limit.
    pub(in crate::executor) fn excess(&self) -> Option<RunFailure> {
        self.exceeded.get().map(|(code, why)| RunFailure::new(code, why.clone()))
    }

    /// Number of attempts so far.
    pub(super) fn steps(&self) -> u64 {
        taken(&self.steps)
    }

    /// Counts an attempt of a step, with an input of that many bytes. Does not return if a limit is exceeded.
    pub(super) async fn step(&self, input: usize) {
        add(&self.steps, 1);
        add(&self.written, input);
        self.check().await;
    }

    /// Counts further branches or iterations. Does not return if the limit is exceeded.
    pub(super) async fn branches(&self, count: usize) {
        add(&self.branches, count);
        self.check().await;
    }

    /// Counts an output of that many bytes.
    pub(super) fn output(&self, bytes: usize) {
        add(&self.written, bytes);
        self.check_limits();
    }

    /// Reservation for values that are held until the result is dropped.
    pub(super) fn hold(&self) -> MemoryReservation<'_> {
        MemoryReservation { budget: self, bytes: 0 }
    }

    /// Makes the run fail for this reason, unless there was one before.
    pub(super) fn exceed(&self, why: String) {
        self.fail(error_code::RUN_BUDGET, why);
    }

    /// The same with another error code.
    pub(super) fn fail(&self, code: &'static str, why: String) {
        if self.exceeded.set((code, why)).is_ok() {
            self.is_exceeded.notify_one();
        }
    }

    async fn check(&self) {
        self.check_limits();
        if self.exceeded.get().is_some() {
            std::future::pending::<()>().await;
        }
    }

    fn check_limits(&self) {
        let RunBudget { steps, branches, bytes, memory_bytes, .. } = self.limits;
        let why = if taken(&self.steps) > steps {
            too_many_steps(steps)
        } else if taken(&self.branches) > branches {
            format!("the run began more than {branches} branches and iterations (MAX_RUN_BRANCHES)")
        } else if taken(&self.written) > bytes {
            format!("the inputs and outputs of the run's steps have more than {bytes} bytes (MAX_RUN_BYTES)")
        } else if taken(&self.held) > memory_bytes {
            too_much_held(memory_bytes)
        } else {
            return;
        };
        self.exceed(why);
    }
}

pub(in crate::executor) fn too_many_steps(most: u64) -> String {
    format!("the run made more than {most} steps (MAX_RUN_STEPS)")
}

pub(in crate::executor) fn too_much_held(most: u64) -> String {
    format!("the outputs that the run's steps still need have more than {most} bytes (MAX_RUN_MEMORY_BYTES)")
}

fn add(of: &AtomicU64, more: usize) {
    of.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn taken(of: &AtomicU64) -> u64 {
    of.load(Ordering::Relaxed)
}

/// Memory reservation of a run, in bytes. See [`Budget::hold`].
pub(super) struct MemoryReservation<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl MemoryReservation<'_> {
    /// Adds that many bytes.
    pub(super) fn add(&mut self, bytes: usize) {
        self.count(self.bytes + bytes);
        add(&self.budget.held, bytes);
        self.budget.check_limits();
    }

    /// Removes that many bytes.
    pub(super) fn remove(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.count(self.bytes - bytes);
        self.budget.held.fetch_sub(u64::try_from(bytes).unwrap_or_default(), Ordering::Relaxed);
    }

    fn count(&mut self, bytes: usize) {
        let (before, after) = (counted(self.bytes), counted(bytes));
        self.bytes = bytes;
        if before != after {
            let mut memory = self.budget.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let amount = memory.amount() - before + after;
            memory.resize(amount);
        }
    }

    /// Number of reserved bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for MemoryReservation<'_> {
    fn drop(&mut self) {
        self.remove(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        let limits = RunBudget { steps: 2, branches: 2, bytes: 1000, memory_bytes: 100, takeovers: 1, sub_runs: 1 };
        let permits = crate::permits::Permits::new(0, []);
        Budget::new(limits, 0, 900, permits.take(crate::permits::Owners::default(), 0))
    }

    fn why(budget: &Budget) -> Option<String> {
        use futures_util::FutureExt as _;
        budget.exceeded().now_or_never().map(|failure| failure.cause)
    }

    #[tokio::test]
    async fn released_memory_makes_room_and_the_first_excess_is_the_reason() {
        let budget = budget();
        let mut held = budget.hold();
        held.add(100);
        drop(held);
        let mut held = budget.hold();
        held.add(90);
        held.remove(50);
        held.add(60);
        assert_eq!((held.bytes(), why(&budget)), (100, None));
        held.add(1);
        budget.output(200);
        assert!(why(&budget).is_some_and(|why| why.contains("MAX_RUN_MEMORY_BYTES")));
    }

    #[tokio::test]
    async fn a_run_that_exceeds_a_limit_does_not_continue() {
        for (name, taken) in [("MAX_RUN_STEPS", 0), ("MAX_RUN_BRANCHES", 1), ("MAX_RUN_BYTES", 2)] {
            let budget = budget();
            for (turn, is_over) in [(1, false), (2, false), (3, true)] {
                use futures_util::FutureExt as _;
                let went_on = match taken {
                    0 => budget.step(0).now_or_never(),
                    1 => budget.branches(1).now_or_never(),
                    _ => {
                        budget.output(50);
                        budget.branches(0).now_or_never()
                    }
                };
                assert_eq!(went_on.is_none(), is_over, "{name}, {turn}");
            }
            assert!(why(&budget).is_some_and(|why| why.contains(name)));
        }
    }
}
