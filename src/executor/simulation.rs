//! Simulation of a run: what its steps find outside of it. Answers are mocked, time is virtual, and changes are recorded
//! in memory instead of being written.
//!
//! The steps themselves are executed by `steps`, and `simulate` drives them.

mod account;
mod answers;
mod mocks;
mod questions;
mod record;
mod recording;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::time::{ClockId, Timespec, clock_gettime};
use serde_json::value::RawValue;
use uuid::Uuid;

use self::record::Record;
pub(super) use self::{
    account::{Reserved, SimulatedAccount},
    answers::Simulated,
};
pub use self::{
    mocks::Mocks,
    record::{Attempt, Shown},
    recording::{RecordedAttempt, Recording},
};
use super::common::Common;
use crate::{
    agent::RetryConfig,
    db::{
        executions::Change,
        waits::{ChildRun, Family},
        workflows::PinnedDefinition,
    },
    input::shorten,
    mapping::{Scope, empty_references},
    usage::{Price, Usage},
    workflow::{Plan, Step, StepKind, wait_config::SubWorkflowConfig},
};

/// Separator of the paths of a sub-workflow step and of a step in its run. No id of a step contains it.
pub(super) const SUB_RUN: char = '>';
/// Number of executions of a step whose references are checked.
const CHECKED_EXECUTIONS: u32 = 100;

/// Limits of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of attempts, including those of blocks.
    pub attempts: usize,
    /// Processor time.
    pub cpu: Duration,
    /// Virtual time.
    pub time: Duration,
    /// Bytes of the values that are held at a time.
    pub memory: u64,
    /// Bytes of a value in the report.
    pub value_bytes: usize,
    /// Bytes of all values in the report, in addition to the output.
    pub shown_bytes: usize,
}

/// Answer to a step without a mock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingMock {
    /// The input of the step.
    #[default]
    Echo,
    /// Null.
    Null,
    /// The attempt fails.
    Fail,
}

impl MissingMock {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Echo, Self::Null, Self::Fail];

    /// Name in requests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Null => "null",
            Self::Fail => "fail",
        }
    }
}

/// Settings of an agent that matter to a simulation.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Retry policy.
    pub retry: RetryConfig,
    /// Time-out of an attempt.
    pub timeout: Duration,
    /// Names of the agents that are called when it does not work.
    pub fallbacks: Vec<String>,
    /// Price of its calls.
    pub price: Option<Price>,
    /// Tokens to reserve for a call besides those of its input.
    pub expected: Option<Usage>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        let (retry, timeout) = (RetryConfig::default(), Duration::from_secs(30));
        Self { retry, timeout, fallbacks: Vec::new(), price: None, expected: None }
    }
}

/// Definitions that run as sub-workflows.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    /// Definitions by id, with their plans; the error: why a plan cannot be executed.
    pub by_id: HashMap<Uuid, (PinnedDefinition, Result<Arc<Plan>, String>)>,
    /// Ids of the newest versions that are active, by name.
    pub by_name: HashMap<String, Uuid>,
}

/// Reason why a simulation ends before its run does.
#[derive(Clone, Debug)]
pub(super) struct Stop(pub(super) String);

/// Simulation, with all of its runs.
pub(super) struct World {
    limits: Limits,
    /// Processor time of this thread at the begin.
    cpu_begin: Timespec,
    /// Begin of the run by the virtual clock.
    begin: Instant,
    stopped: OnceLock<Stop>,
    record: Mutex<Record>,
    definitions: Definitions,
    agents: HashMap<String, AgentSettings>,
    recording: Option<Recording>,
    missing: MissingMock,
    sub_runs: AtomicI32,
    /// Maximum duration of a run, without the time for which it only waits.
    max_run_duration: Duration,
}

impl World {
    /// Must be called by the thread that executes the simulation.
    pub(super) fn new(
        (limits, begin, max_run_duration): (Limits, Instant, Duration),
        (definitions, agents): (Definitions, HashMap<String, AgentSettings>),
        recording: Option<Recording>,
        missing: MissingMock,
    ) -> Self {
        Self {
            limits,
            cpu_begin: clock_gettime(ClockId::ThreadCPUTime),
            begin,
            stopped: OnceLock::new(),
            record: Mutex::new(Record::new(limits)),
            definitions,
            agents,
            recording,
            missing,
            sub_runs: AtomicI32::new(0),
            max_run_duration,
        }
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plan of a sub-workflow.
    pub(super) fn plan(&self, id: Uuid) -> Result<Arc<Plan>, String> {
        let found = self.definitions.by_id.get(&id).map(|(_, plan)| plan.clone());
        found.unwrap_or_else(|| Err("the workflow does not exist".to_owned()))
    }

    /// Reason why the simulation has to end, if there is one.
    pub(super) fn stopped(&self) -> Option<&Stop> {
        self.stopped.get()
    }

    pub(super) fn stop(&self, why: String) {
        // The first reason stays.
        self.stopped.set(Stop(why)).ok();
    }

    /// Whether the simulation is within its limits, at this virtual time. Otherwise it is stopped.
    pub(super) fn check(&self, common: &Common) -> bool {
        if self.stopped.get().is_some() {
            return false;
        }
        let Limits { attempts, cpu, time, memory, shown_bytes, .. } = self.limits;
        let (count, outputs, texts) = {
            let record = self.record();
            (record.len(), record.output_bytes(), record.text_bytes())
        };
        let why = if count > attempts {
            format!("the run made more than {attempts} attempts")
        } else if texts > shown_bytes {
            format!("the paths and errors of the steps have more than {shown_bytes} bytes")
        } else if self.cpu_time() > cpu {
            format!("it took more than {} ms of processor time", cpu.as_millis())
        } else if common.clock.since(self.begin) > time {
            format!("more than {} days of virtual time passed", time.as_secs() / 86_400)
        } else if common.memory.held() + outputs as u64 > memory {
            format!("the values of the run have more than {memory} bytes at a time")
        } else {
            return true;
        };
        self.stop(format!("the test has reached a limit: {why}"));
        false
    }

    fn cpu_time(&self) -> Duration {
        let (begin, now) = (self.cpu_begin, clock_gettime(ClockId::ThreadCPUTime));
        let nanos = |time: Timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        Duration::from_nanos(u64::try_from(nanos(now) - nanos(begin)).unwrap_or_default())
    }
}

/// Wait of a step that has begun.
pub(super) struct BegunWait {
    pub(super) attempt_id: String,
    pub(super) awaited: Awaited,
}

/// Event that a step waits for.
pub(super) enum Awaited {
    /// The answer to a callback after that time; `None`: it never comes.
    Answer(Option<(Duration, Option<String>)>),
    /// The end of a mocked sub-run after that time, well or with this error.
    MockedRun(Duration, Result<(), String>),
    /// The end of a sub-run, with these mocks.
    Run { child: Box<ChildRun>, mocks: Arc<Mocks>, prefix: String },
}

/// Simulated run: the run itself, or a sub-run.
pub(super) struct SimulatedRun {
    pub(super) common: Common,
    pub(super) world: Arc<World>,
    plan: Arc<Plan>,
    input: Box<RawValue>,
    mocks: Arc<Mocks>,
    /// Prefix of the paths of its steps in the record; empty for the run itself.
    prefix: String,
    /// Number of runs around it.
    nesting: i16,
    account: Arc<SimulatedAccount>,
    begun: Mutex<Vec<BegunWait>>,
    ended: Mutex<Vec<String>>,
    /// Answers and outputs of sub-runs, by the id of the attempt.
    results: Mutex<HashMap<String, Box<RawValue>>>,
    /// Number of questions that agents have asked, by the id of the attempt.
    asked: Mutex<HashMap<String, usize>>,
}

impl SimulatedRun {
    pub(super) fn new(
        (common, world): (Common, Arc<World>),
        (plan, input): (Arc<Plan>, Box<RawValue>),
        mocks: Arc<Mocks>,
        (prefix, nesting, parent): (String, i16, Option<Arc<SimulatedAccount>>),
    ) -> Self {
        let (begun, ended, results) = (Mutex::default(), Mutex::default(), Mutex::default());
        let asked = Mutex::default();
        let account = Arc::new(SimulatedAccount::new(plan.limits, parent));
        Self { common, world, plan, input, mocks, prefix, nesting, account, begun, ended, results, asked }
    }

    /// Account of the run.
    pub(super) fn account(&self) -> &Arc<SimulatedAccount> {
        &self.account
    }

    /// Settings of the agent of that name.
    pub(super) fn settings_of(&self, agent_name: &str) -> AgentSettings {
        self.world.agents.get(agent_name).cloned().unwrap_or_default()
    }

    pub(super) fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    pub(super) fn input(&self) -> &RawValue {
        &self.input
    }

    /// Closes the attempts of a sub-run that is abandoned.
    pub(super) fn abandon(&self, prefix: &str) {
        self.world.record().abandon(prefix, self.now());
    }

    pub(super) fn nesting(&self) -> i16 {
        self.nesting
    }

    fn now(&self) -> Duration {
        self.common.clock.since(self.world.begin)
    }

    /// Waits for ever if a limit of the simulation is exceeded, which ends it.
    pub(super) async fn within_limits(&self) {
        if !self.world.check(&self.common) {
            std::future::pending::<()>().await;
        }
    }

    /// Stops the simulation, since a step needs something that it does not have.
    pub(super) fn stop_unsupported(&self) {
        self.world.stop("a step of this type cannot be tested without an executor".to_owned());
    }

    /// Registers a step that is about to be executed, and checks its references.
    pub(super) fn begin_step(&self, step: &Step, path: &str, scope: &Scope<'_>) {
        let mut record = self.world.record();
        if record.execute(&self.prefix, &step.id) > CHECKED_EXECUTIONS {
            return;
        }
        let references = step.references();
        for (member, reference) in &references {
            // A default is there for a missing value.
            if reference.contains(":-") || empty_references([reference.as_str()], scope).is_empty() {
                continue;
            }
            let message = format!("Reference '{}' has no value at {}{path}", shorten(reference), self.prefix);
            record.warn(format!("{}steps.{}.{member}", self.prefix, step.id), "reference_without_value", message);
        }
    }

    /// Registers a step that has failed.
    pub(super) fn fail_step(&self, step: &Step, path: &str, cause: &str) {
        let path = format!("{}{path}", self.prefix);
        self.world.record().fail(path, &step.id, step.kind, cause, self.now());
    }

    /// Records changes of the run.
    pub(super) fn record(&self, changes: &[Change]) {
        let (now, mut record) = (self.now(), self.world.record());
        for change in changes {
            let (ended, begun) = (change.ended.as_ref(), change.begun.as_ref());
            let is_one_row = ended.zip(begun).is_some_and(|(ended, begun)| ended.id == begun.id);
            let begin = |record: &mut Record| {
                if let Some(row) = begun {
                    let kind = self.plan.steps.get(&row.step_id).map(|step| step.kind);
                    record.begin(&self.prefix, kind, row, now);
                }
            };
            if is_one_row {
                begin(&mut record);
            }
            if let Some(ended) = ended {
                record.end(&self.prefix, &ended.id, &ended.end, now);
                self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(ended.id.clone());
            }
            if !is_one_row {
                begin(&mut record);
            }
        }
    }

    /// Takes the ids of the attempts that have ended since the last call.
    pub(super) fn take_ended(&self) -> Vec<String> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Token of the callback at this path. It gives no right to anything.
    pub(super) fn token(&self, path: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        format!("test-{}{path}", self.prefix).chars().map(plain).collect()
    }

    /// Takes the waits that have begun since the last call.
    pub(super) fn take_begun(&self) -> Vec<BegunWait> {
        std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a mock takes the place of the sub-workflow of this step.
    fn is_mocked(&self, step_id: &str) -> bool {
        self.mocks.get(step_id).is_some_and(|mock| mock.answer.is_some() || mock.failure.is_some())
    }

    pub(super) fn set_result(&self, attempt_id: &str, result: Box<RawValue>) {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt_id.to_owned(), result);
    }

    /// Takes the answer to a callback, or the output of a sub-run.
    pub(super) fn take_result(&self, attempt_id: &str) -> Option<Box<RawValue>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt_id)
    }

    /// Definition that a sub-workflow step starts.
    pub(super) fn definition(&self, step: &Step, config: &SubWorkflowConfig) -> Option<PinnedDefinition> {
        let Definitions { by_id, by_name } = &self.world.definitions;
        let id = match (&config.workflow_id, &config.workflow_name) {
            (Some(id), _) => Uuid::try_parse(id).ok(),
            (None, Some(name)) => by_name.get(name).copied(),
            (None, None) => None,
        };
        let found = id.and_then(|id| by_id.get(&id)).map(|(definition, _)| definition.clone());
        let has_answer = self.is_mocked(&step.id) || (self.world.recording.is_some() && self.prefix.is_empty());
        // A mocked workflow need not exist.
        found.or_else(|| {
            has_answer.then(|| PinnedDefinition::without_plan(config.workflow_name.clone().unwrap_or_default()))
        })
    }

    /// Counts a sub-run that this run is about to begin.
    pub(super) fn count_sub_run(&self) -> Family {
        let sub_runs = self.world.sub_runs.fetch_add(1, Ordering::Relaxed) + 1;
        Family { nesting: self.nesting, sub_runs }
    }

    /// Warnings about mocks of the run that had no effect.
    pub(super) fn warn_of_unused_mocks(&self) {
        for step_id in self.mocks.step_ids() {
            let field = format!("{}mocks.{step_id}", self.prefix);
            let mut record = self.world.record();
            let (kind, message) = match self.plan.steps.get(step_id).map(|step| step.kind) {
                None => ("mock_of_unknown_step", "The workflow has no step with this id"),
                Some(StepKind::Agent | StepKind::Callback | StepKind::SubWorkflow) => {
                    let was_used = record.was_used(&self.prefix, step_id)
                        || (record.was_executed(&self.prefix, step_id)
                            && self.mocks.get(step_id).is_some_and(|mock| mock.inner.is_some()));
                    if was_used {
                        continue;
                    }
                    ("mock_unused", "No attempt of the step used the mock")
                }
                Some(_) => {
                    ("mock_not_applicable", "Only steps of the types agent, callback and sub_workflow use mocks")
                }
            };
            record.warn(field, kind, message.to_owned());
        }
    }

    /// Ids of the steps that were not executed, in the order of the definition.
    pub(super) fn not_reached(&self) -> Vec<String> {
        let record = self.world.record();
        let steps = self.plan.steps.iter().filter(|step| !record.was_executed(&self.prefix, &step.id));
        steps.map(|step| step.id.clone()).collect()
    }
}
