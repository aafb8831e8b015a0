//! Steps of a run, each kind in its own file. Steps are nested to a bounded depth.
//!
//! A whole run is one task. A block's branches are futures inside of it (`group`). So dropping a future abandons a
//! branch, a block or the run, and nothing of it continues. Its open rows in the database are then closed through the
//! [`Ledger`].
//!
//! If the process dies, completed steps at any depth are not repeated. A block that was not completed is entered again,
//! and its branches continue after their last completed step. A step that waits for something external (`waits`)
//! continues to wait. The same applies to a run that is parked because it has nothing else to do (`activity`), except
//! that its blocks keep their rows and that failed steps stay failed.

mod activity;
mod agent;
mod attempt;
mod budget;
mod callback;
mod conditional;
mod fallback;
mod fork_join;
mod frame;
mod gate;
mod group;
mod iteration;
mod parallel;
mod question;
mod row;
mod spending;
pub(super) mod step_path;
mod sub_workflow;
mod waits;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use metrics::SharedString;
use serde_json::value::RawValue;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::{
    activity::Activity,
    budget::Budget,
    frame::{Block, Done, Frame},
    gate::Calls,
    waits::Waits,
};
pub(super) use self::{
    budget::{too_many_steps, too_much_held},
    row::{MAX_COLUMN_CHARS, row_id},
    spending::{Account, StoredAccount},
    waits::Wakes,
};
use super::{
    active::RunSignals,
    agent_call::CallErrorKind,
    assignment::FirstAttempt,
    earlier::{PreviousExecution, ReusePolicy},
    error_code,
    ledger::Ledger,
    memory::Share,
    run_trace::RunTrace,
    surroundings::Surroundings,
};
use crate::{
    access::OrganizationId,
    db::executions::{ObservedRun, RunFailure, StepEnd},
    input::{object_of, shorten},
    mapping::Scope,
    telemetry::catalogue::WORKFLOWS,
    workflow::{Plan, Step, StepKind},
};

/// Maximum depth of nested blocks.
const MAX_DEPTH: usize = 16;
/// Maximum number of concurrent branches of one run, in addition to one of each block. It limits memory, connections
/// and the load on agents, however many blocks the run has.
const MAX_CONCURRENT_BRANCHES: usize = 128;
/// Maximum number of concurrent statements of one run's steps. They lock the same rows, so more would only take
/// connections from other runs to wait for each other.
const MAX_CONCURRENT_STATEMENTS: usize = 4;
/// Bytes of the values that a step may refer to, from which on reading them is offloaded.
const LARGE_SCOPE_BYTES: usize = 256 << 10;
/// Maximum size of the output of one block: the database can store it well within the journal's statement time-out.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Size below which outputs are kept without a check whether later steps refer to them, since the check costs more.
const SMALL_BYTES: usize = 4096;
/// Bytes of outputs of one branch from which on outputs that are not needed any more are dropped.
const KEPT_BYTES: usize = 64 << 10;
/// Maximum number of causes in the error of a block, and characters of each.
const MAX_CAUSES: usize = 10;
const MAX_CAUSE_CHARS: usize = 1000;

/// Run under way.
pub(super) struct Run {
    pub(super) executor: Surroundings,
    pub(super) run_id: String,
    pub(super) organization: OrganizationId,
    pub(super) correlation_id: String,
    trace: RunTrace,
    pub(super) plan: Arc<Plan>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) earlier: PreviousExecution,
    /// First attempt that has begun with the claim, until its step is executed.
    first: Mutex<Option<FirstAttempt>>,
    last_fault: Mutex<Option<CallErrorKind>>,
    /// Id of the workflow as a label of metrics.
    workflow_label: SharedString,
    pub(super) budget: Budget,
    account: Account,
    /// Memory of the organisation.
    memory: Share,
    /// Position on the main chain of the current or next step.
    position: AtomicUsize,
    /// See [`Plan::last_uses`]; computed when there are outputs for which it matters.
    last_uses: OnceLock<HashMap<String, usize>>,
    /// Notified of a defect of this program.
    pub(super) broken: Notify,
    signals: RunSignals,
    /// End of the maximum duration.
    deadline: Instant,
    slots: Semaphore,
    /// Permits for statements of the steps.
    statements: Semaphore,
    /// Calls of agents under way.
    calls: Calls,
    /// Steps under way that must end before a pause.
    leaves: Calls,
    activity: Activity,
    waits: Waits,
    /// Statements under way that begin a wait; they continue when their step is abandoned.
    begins: TaskTracker,
    has_callbacks: bool,
}

impl Run {
    pub(super) fn new(
        executor: Surroundings,
        (run_id, lease_token, of): (String, Uuid, Arc<ObservedRun>),
        ((organization, correlation_id), trace): ((OrganizationId, String), RunTrace),
        (signals, deadline): (RunSignals, Instant),
        (plan, earlier, account): (Arc<Plan>, PreviousExecution, Account),
        begins: TaskTracker,
    ) -> Self {
        // A simulation has no metrics.
        let is_simulated = executor.simulated().is_some();
        let workflow_label = if is_simulated { SharedString::default() } else { WORKFLOWS.of(&of.workflow_id) };
        let ledger = Arc::new(Ledger::new(run_id.clone(), lease_token, of));
        let memory = executor.memory.of(&organization);
        let budget = Budget::new(executor.run_budget, earlier.rows(), earlier.bytes(), memory.hold(0));
        let has_callbacks = plan.steps.iter().any(|step| step.kind == StepKind::Callback);
        let activity = Activity::new(executor.clock.clone());
        Self {
            executor,
            run_id,
            organization,
            correlation_id,
            trace,
            plan,
            ledger,
            earlier,
            first: Mutex::default(),
            last_fault: Mutex::default(),
            workflow_label,
            budget,
            account,
            memory,
            position: AtomicUsize::new(0),
            last_uses: OnceLock::new(),
            broken: Notify::new(),
            signals,
            deadline,
            slots: Semaphore::new(MAX_CONCURRENT_BRANCHES),
            statements: Semaphore::new(MAX_CONCURRENT_STATEMENTS),
            calls: Calls::default(),
            leaves: Calls::default(),
            activity,
            waits: Waits::default(),
            begins,
            has_callbacks,
        }
    }

    /// Closes attempts that a previous execution had abandoned when its executor died.
    pub(super) fn close_orphans(&self) {
        for (path, open) in self.earlier.take_orphans() {
            self.ledger.adopt(&path, &open.id);
            self.ledger.end(
                &path,
                StepEnd::Skipped("abandoned: the block around it has completed".to_owned()),
                None,
                None,
            );
        }
    }

    /// Continues with the attempt of the first step that has begun with the claim.
    pub(super) fn continue_first(&self, first: FirstAttempt) {
        self.ledger.continue_first(&step_path::step("", &first.row.step_id, 0), &first.row, first.agent_version);
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
    }

    /// Executes all steps of the main chain, except those that are completed.
    pub(super) async fn main_chain(&self, input: &RawValue) -> Result<(), RunFailure> {
        let mut scope = Scope::new(input);
        if self.has_callbacks {
            let chain: Vec<String> = self.plan.main_path().map(str::to_owned).collect();
            if let Some(callbacks) = self.callbacks(std::iter::once((String::new(), chain.as_slice()))) {
                scope = scope.with_callbacks(callbacks);
            }
        }
        let mut frame = Frame {
            scope,
            branch: None,
            prefix: String::new(),
            depth: 0,
            reuse: ReusePolicy::Everything,
            held: self.budget.hold(),
            forget_at: KEPT_BYTES,
        };
        let mut next = Some(self.plan.start_step.as_str());
        let mut is_before = self.plan.main_path().any(|step_id| self.earlier.is_redone_from(step_id));
        // The chain of a valid plan ends. The bound holds for any plan.
        for position in 0..=self.plan.steps.len() {
            let Some(step_id) = next else { return Ok(()) };
            self.position.store(position, Ordering::Relaxed);
            if frame.reuse == ReusePolicy::Everything && self.earlier.is_redone_from(step_id) {
                frame.reuse = ReusePolicy::AfterRetry;
                is_before = false;
            }
            // A retry from a later step skips this one.
            if is_before && !self.earlier.has(&step_path::step("", step_id, 0)) {
                next = self.plan.steps.get(step_id).and_then(|step| step.next_step.as_deref());
                continue;
            }
            let done = self.step(step_id, step_path::step("", step_id, 0), &frame).await;
            let done = done.map_err(|cause| {
                let code = self.last_fault().map_or(error_code::STEP_FAILED, CallErrorKind::as_str);
                RunFailure { step_id: Some(step_id.to_owned()), cause, code }
            })?;
            // A failed call in a branch that was not needed is no cause of a later failure.
            self.set_last_fault(None);
            if done.is_new {
                frame.reuse = ReusePolicy::Nothing;
            }
            self.position.store(position + 1, Ordering::Relaxed);
            self.register(done, step_id, &mut frame);
            next = self.plan.steps.get(step_id).and_then(|step| step.next_step.as_deref());
        }
        let cause = "the workflow plan cannot be executed: its steps never end".to_owned();
        Err(RunFailure::new(error_code::INVALID_PLAN, cause))
    }

    /// Error of the last call of an agent that failed for good, in the current step of the main chain.
    fn last_fault(&self) -> Option<CallErrorKind> {
        *self.last_fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_last_fault(&self, fault: Option<CallErrorKind>) {
        *self.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Executes the steps of a branch one after the other, up to the first failure. Returns the output of the last
    /// step. The outputs of all completed steps are in the frame's scope, also after a failure.
    async fn sequence(&self, step_ids: &[String], frame: &mut Frame<'_>) -> Result<Box<RawValue>, String> {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let mut last = RawValue::NULL.to_owned();
        for (index, step_id) in step_ids.iter().enumerate() {
            let repeats = seen.entry(step_id).and_modify(|count| *count += 1).or_default();
            let done = self.step(step_id, step_path::step(&frame.prefix, step_id, *repeats), frame).await;
            let done = done.map_err(|cause| format!("step '{}': {cause}", shorten(step_id)))?;
            if done.is_new {
                frame.reuse = ReusePolicy::Nothing;
            }
            if index + 1 == step_ids.len() {
                last.clone_from(&done.output);
            }
            self.register(done, step_id, frame);
        }
        Ok(last)
    }

    /// Registers the outputs of a step that later steps can refer to.
    fn register(&self, done: Done, step_id: &str, frame: &mut Frame<'_>) {
        let own = std::iter::once((step_id.to_owned(), done.output));
        for (step_id, output) in done.inside.into_iter().chain(own) {
            let bytes = output.get().len();
            if bytes > SMALL_BYTES && !self.is_wanted(&step_id) {
                continue;
            }
            if frame.held.bytes() + bytes > frame.forget_at {
                let forgotten = frame.scope.forget_all_but(|step_id| self.is_wanted(step_id));
                frame.held.remove(forgotten);
                // The next check is when there is a quarter more, so that outputs still needed are not checked each
                // time.
                frame.forget_at = KEPT_BYTES.max(frame.held.bytes() / 4 * 5);
            }
            frame.held.add(bytes);
            if let Some(replaced) = frame.scope.set(&step_id, output) {
                frame.held.remove(replaced.get().len());
            }
        }
    }

    /// Whether a step that is still to be executed can refer to the output of this one.
    fn is_wanted(&self, step_id: &str) -> bool {
        let last_use = self.last_uses.get_or_init(|| self.plan.last_uses()).get(step_id);
        last_use.is_some_and(|last| *last >= self.position.load(Ordering::Relaxed))
    }

    /// Executes a step, or takes its result from a previous execution. Boxed, since the steps of a block use it too.
    fn step<'a>(&'a self, step_id: &'a str, path: String, frame: &'a Frame<'a>) -> BoxFuture<'a, Result<Done, String>> {
        Box::pin(async move {
            let Some(step) = self.plan.steps.get(step_id) else { return Err("it does not exist".to_owned()) };
            if let Some(output) = self.earlier.take(&path, frame.reuse) {
                let mut inside = HashMap::new();
                self.recall(step, &path, frame.reuse, &mut inside);
                return Ok(Done { output, inside, is_new: false });
            }
            if let Some(cause) = self.earlier.take_failure(&path) {
                return Err(cause);
            }
            let simulated = self.executor.simulated();
            if let Some(simulated) = simulated {
                simulated.begin_step(step, &path, &frame.scope);
            }
            let result = self.within_time(step, &path, frame).await;
            if let (Some(simulated), Err(cause)) = (simulated, &result) {
                simulated.record(&self.ledger.take_all());
                simulated.fail_step(step, &path, cause);
            }
            result
        })
    }

    /// Executes a step within its time-out. The time-out continues while the run is parked.
    async fn within_time(&self, step: &Step, path: &str, frame: &Frame<'_>) -> Result<Done, String> {
        // A callback ends by itself, so that an answer at the same moment either counts or is rejected.
        let limit = step.timeout_seconds.filter(|_| step.kind != StepKind::Callback);
        let Some(secs) = limit else { return self.make(step, path, frame, None).await };
        let (now, age) = (self.executor.clock.now(), self.earlier.open_age(path));
        let limit = Duration::from_secs(u64::try_from(secs).unwrap_or_default()).saturating_sub(age);
        // A step may have asked in a later attempt than its first.
        let due = self.asked_until(path).unwrap_or_else(|| activity::later(now, limit));
        let limit = (due - now).to_std().unwrap_or_default();
        let Some(result) = self.limited(limit, self.make(step, path, frame, Some(due))).await else {
            let cause = format!("it took longer than {secs} s");
            self.ledger.close(&format!("{path}/"), &StepEnd::Failed(format!("timed out: {} {cause}", step.id)));
            self.ledger.end(path, StepEnd::Failed(cause.clone()), None, None);
            return Err(cause);
        };
        result
    }

    /// The result of the work, unless it takes longer.
    async fn limited<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let _due = self.activity.due(activity::later(self.executor.clock.now(), limit));
        if let Some(result) = self.executor.clock.timeout(limit, work).await {
            return Some(result);
        }
        // A stopping process and a paused run begin nothing new, which is not a failure of the step.
        self.gate().await;
        None
    }

    /// `due`: end of its time.
    async fn make(
        &self,
        step: &Step,
        path: &str,
        frame: &Frame<'_>,
        due: Option<DateTime<Utc>>,
    ) -> Result<Done, String> {
        // Boxed, so that a block is not as large as all of its possible parts, also on the stack, at each depth.
        match step.kind {
            StepKind::Agent => Box::pin(self.agent(step, path, frame, due)).await.map(Done::new),
            StepKind::Wait => Box::pin(self.wait(step, path, frame)).await.map(Done::new),
            StepKind::Callback => Box::pin(self.callback(step, path, frame)).await.map(Done::new),
            StepKind::SubWorkflow => Box::pin(self.sub_workflow(step, path, frame)).await.map(Done::new),
            StepKind::Parallel | StepKind::Conditional | StepKind::Loop | StepKind::ForkJoin => {
                self.block(step, path, frame).await
            }
        }
    }

    /// Executes a block, which has a row of its own around the rows of its steps.
    async fn block(&self, step: &Step, path: &str, frame: &Frame<'_>) -> Result<Done, String> {
        if frame.depth >= MAX_DEPTH {
            return Err(format!("steps may be nested at most {MAX_DEPTH} deep"));
        }
        let age = self.earlier.open_age(path);
        if self.open_attempt(path).is_none() {
            self.gate().await;
            self.begin_step(0).await;
            self.ledger.begin(path, self.row(step, String::new(), object_of([]), path, frame));
            self.ledger.keep_small().await;
        }
        let branches = branches(step);
        self.budget.branches(branches.len()).await;
        let lines = branches.iter().map(|(name, step_ids)| (step_path::branch(path, name), *step_ids));
        let callbacks = self.callbacks(lines);
        let (depth, reuse) = (frame.depth + 1, frame.reuse);
        let block = Block { step, path, scope: &frame.scope, depth, reuse, age, callbacks, budget: &self.budget };
        let result = match step.kind {
            StepKind::Parallel => self.parallel(&block).await,
            StepKind::Conditional => self.conditional(&block).await,
            StepKind::Loop => self.iterate(&block).await,
            StepKind::ForkJoin => self.fork_join(&block).await,
            StepKind::Agent | StepKind::Wait | StepKind::Callback | StepKind::SubWorkflow => {
                Err("it is not a block".to_owned())
            }
        };
        let result = result.and_then(|done| {
            let is_small = done.output.get().len() <= MAX_OUTPUT_BYTES;
            if is_small { Ok(done) } else { Err(too_large()) }
        });
        let output = result.as_ref().map(|done| &*done.output).map_err(Clone::clone);
        self.end(path, output, None);
        self.ledger.keep_small().await;
        result
    }

    /// Computes something from the values of a scope. With large values this takes long, so it is offloaded.
    async fn with_values<T>(&self, scope: &Scope<'_>, make: impl FnOnce() -> T) -> T {
        self.executor.work(&self.organization, scope.bytes() > LARGE_SCOPE_BYTES, make).await
    }

    /// Collects the outputs of the steps inside a completed block for the steps after it.
    fn recall(&self, step: &Step, path: &str, reuse: ReusePolicy, found: &mut HashMap<String, Box<RawValue>>) {
        for (name, step_ids) in branches(step) {
            let prefix = step_path::branch(path, &name);
            let mut seen: HashMap<&str, usize> = HashMap::new();
            for step_id in step_ids {
                let repeats = seen.entry(step_id).and_modify(|count| *count += 1).or_default();
                let path = step_path::step(&prefix, step_id, *repeats);
                let Some(output) = self.earlier.take(&path, reuse) else { continue };
                if let Some(step) = self.plan.steps.get(step_id) {
                    self.recall(step, &path, reuse, found);
                }
                found.insert(step_id.clone(), output);
            }
        }
    }
}

/// The branches of a block whose outputs later steps can use, by name, each with its steps. The outputs of a loop's
/// body are visible only in their iteration.
fn branches(step: &Step) -> Vec<(String, &[String])> {
    match step.kind {
        StepKind::Agent | StepKind::Wait | StepKind::Callback | StepKind::SubWorkflow | StepKind::Loop => Vec::new(),
        StepKind::Parallel => parallel::branches(step).map(|(name, id)| (name, std::slice::from_ref(id))).collect(),
        StepKind::Conditional => conditional::branches(step).collect(),
        StepKind::ForkJoin => fork_join::branches(step).map(|(name, ids)| (name.to_owned(), ids)).collect(),
    }
}

fn too_large() -> String {
    format!("its output is larger than {MAX_OUTPUT_BYTES} bytes, which is the limit of a block's output")
}

/// Several causes as one text of bounded length.
fn joined(causes: &[String]) -> String {
    let shown: Vec<String> =
        causes.iter().take(MAX_CAUSES).map(|cause| cause.chars().take(MAX_CAUSE_CHARS).collect()).collect();
    let more = causes.len() - shown.len();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{more}", shown.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_causes_become_a_text_of_bounded_length() {
        assert_eq!(joined(&["a".to_owned(), "b".to_owned()]), "a; b");
        let many = joined(&vec!["x".repeat(10_000); 10_000]);
        assert!(many.ends_with("; and 9990 more") && many.len() < 11_000);
    }
}
