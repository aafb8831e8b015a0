//! Driver of a simulated run: executes its steps with a virtual clock, which is advanced whenever nothing else is left to
//! do. It writes nothing, and leaves no metrics and no log entries.
//!
//! A simulation runs on one thread and waits for nothing real, so its result depends on its request only.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use metrics::NoopRecorder;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::subscriber::NoSubscriber;
use uuid::Uuid;

use super::{
    active::RunSignals,
    common::Common,
    drive::too_long,
    earlier::PreviousExecution,
    error_code,
    memory::Memory,
    run_trace::RunTrace,
    simulation::{
        AgentSettings, Attempt, Awaited, BegunWait, Definitions, Limits, MissingMock, Mocks, Recording, Shown,
        SimulatedAccount, SimulatedRun, World,
    },
    steps::{Account, Run},
    surroundings::Surroundings,
};
use crate::{
    access::OrganizationId,
    clock::Clock,
    config::RunBudget,
    db::{
        executions::{ObservedRun, RunFailure, StepEnd},
        usage::Excess,
        waits::{ChildRun, Wait},
    },
    input::FieldError,
    run::RunStatus,
    usage::Totals,
    workflow::Plan,
};

/// Simulation of a run.
pub struct Simulation {
    /// Organisation of the run.
    pub organization: OrganizationId,
    /// Plan of the run.
    pub plan: Arc<Plan>,
    /// Input of the run.
    pub input: Box<RawValue>,
    /// Answers to its steps.
    pub mocks: Arc<Mocks>,
    /// Answers of an earlier run, which come before the mocks.
    pub recording: Option<Recording>,
    /// Answer to steps without a mock.
    pub missing: MissingMock,
    /// Time at which it begins.
    pub start_time: DateTime<Utc>,
    /// Settings of the agents, by name.
    pub agents: HashMap<String, AgentSettings>,
    /// Definitions of its sub-workflows.
    pub definitions: Definitions,
    /// Settings of the executors.
    pub settings: Settings,
    /// Limits of the simulation.
    pub limits: Limits,
}

/// Settings of the executors that matter to a simulation.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Prefix of the URLs of callbacks.
    pub callbacks_url: String,
    /// Maximum duration of a run.
    pub max_run_duration: Duration,
    /// Limits of one run.
    pub run_budget: RunBudget,
}

/// End of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The run completed.
    Completed,
    /// The run failed.
    Failed,
    /// The run waits for an answer that never comes.
    Waiting,
    /// A limit of the simulation is reached.
    Stopped,
}

impl End {
    /// Name in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => RunStatus::Completed.as_str(),
            Self::Failed => RunStatus::Failed.as_str(),
            Self::Waiting => "WAITING",
            Self::Stopped => "STOPPED",
        }
    }
}

/// Result of a simulation.
#[derive(Debug)]
pub struct Report {
    /// State at the end.
    pub end: End,
    /// Output of a completed run.
    pub output: Shown,
    /// Reason of a failure or of an early end.
    pub error_message: Option<String>,
    /// Code of the failure, as in metrics.
    pub error_code: Option<&'static str>,
    /// Failed step of the main chain.
    pub failed_step_id: Option<String>,
    /// Virtual time that passed.
    pub duration: Duration,
    /// What the calls have used by their mocks.
    pub usage: Totals,
    /// Attempts of all steps.
    pub attempts: Vec<Attempt>,
    /// Steps that were not executed.
    pub not_reached: Vec<String>,
    /// Warnings.
    pub warnings: Vec<FieldError>,
}

/// Result of a run.
type Ended = Result<(), RunFailure>;

/// Executes a simulation. It takes as long on this thread as its limits allow.
#[must_use]
pub fn simulate(simulation: Simulation) -> Report {
    let make = || tracing::subscriber::with_default(NoSubscriber::default(), || run(simulation));
    metrics::with_local_recorder(&NoopRecorder, make)
}

fn run(simulation: Simulation) -> Report {
    let Simulation { organization, plan, input, mocks, recording, missing, .. } = simulation;
    let Simulation { start_time, agents, definitions, settings, limits, .. } = simulation;
    let clock = Clock::simulated(start_time);
    let begin = clock.instant();
    let world = World::new((limits, begin, settings.max_run_duration), (definitions, agents), recording, missing);
    let world = Arc::new(world);
    let parts = Parts { organization, settings, clock: clock.clone(), memory: Memory::new(u64::MAX), world };
    let Parts { world, .. } = &parts;
    let simulated = parts.simulated((plan, input), mocks, (String::new(), 0, None));
    let mut driver = parts.drive(Arc::clone(&simulated));
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let result = loop {
        if woken.0.swap(false, Ordering::SeqCst) {
            if let Poll::Ready(result) = driver.as_mut().poll(&mut Context::from_waker(&waker)) {
                break Some(result);
            }
        } else if !clock.advance_to_next_timer() {
            break None;
        }
        if !world.check(&simulated.common) {
            break None;
        }
    };
    drop(driver);
    let duration = clock.since(begin);
    simulated.warn_of_unused_mocks();
    let not_reached = simulated.not_reached();
    let stopped = world.stopped().map(|stop| stop.0.clone());
    let (end, failure, error_message) = match (result, stopped) {
        (Some(Ok(())), _) => (End::Completed, None, None),
        (Some(Err(failure)), _) => {
            let message = failure.to_string();
            (End::Failed, Some(failure), Some(message))
        }
        (None, Some(why)) => (End::Stopped, None, Some(why)),
        (None, None) => (End::Waiting, None, None),
    };
    let mut record = world.record();
    let output = if end == End::Completed { record.shown_output() } else { Shown::default() };
    let (attempts, warnings) = record.take();
    Report {
        end,
        output,
        error_message,
        error_code: failure.as_ref().map(|failure| failure.code),
        failed_step_id: failure.and_then(|failure| failure.step_id),
        duration,
        usage: simulated.account().totals(),
        attempts,
        not_reached,
        warnings,
    }
}

/// Waker that remembers that it was woken.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What all runs of a simulation share.
#[derive(Clone)]
struct Parts {
    organization: OrganizationId,
    settings: Settings,
    clock: Clock,
    memory: Memory,
    world: Arc<World>,
}

impl Parts {
    fn simulated(
        &self,
        of: (Arc<Plan>, Box<RawValue>),
        mocks: Arc<Mocks>,
        place: (String, i16, Option<Arc<SimulatedAccount>>),
    ) -> Arc<SimulatedRun> {
        let common = Common {
            clock: self.clock.clone(),
            memory: self.memory.clone(),
            callbacks_url: self.settings.callbacks_url.clone(),
            run_budget: self.settings.run_budget,
            soft_stop: CancellationToken::new(),
        };
        Arc::new(SimulatedRun::new((common, Arc::clone(&self.world)), of, mocks, place))
    }

    /// Executes a run to its end. A run that waits for ever never ends.
    fn drive(&self, simulated: Arc<SimulatedRun>) -> BoxFuture<'static, Ended> {
        let parts = self.clone();
        Box::pin(async move {
            // Both live as long as the run.
            let (_pause, paused) = watch::channel(false);
            let signals = RunSignals { stop: CancellationToken::new(), paused, woken: Arc::new(Notify::new()) };
            let of = ObservedRun {
                workflow_id: String::new(),
                workflow_name: String::new(),
                organization: parts.organization.clone(),
                traceparent: String::new(),
            };
            let account = Account::Simulated(Arc::clone(simulated.account()));
            let run = Run::new(
                Surroundings::Simulation(Arc::clone(&simulated)),
                ("test".to_owned(), Uuid::nil(), Arc::new(of)),
                ((parts.organization.clone(), String::new()), RunTrace::default()),
                (signals, parts.clock.instant() + parts.settings.max_run_duration),
                (Arc::clone(simulated.plan()), PreviousExecution::default(), account),
                TaskTracker::new(),
            );
            let mut steps = pin!(run.main_chain(simulated.input()));
            let mut events = Events::default();
            let mut time = RunTime::new(&parts, Arc::clone(simulated.account()));
            let result = poll_fn(|context| {
                if let Some(excess) = time.pass(&parts.clock) {
                    return Poll::Ready(Err(RunFailure::new(error_code::BUDGET_EXCEEDED, excess.reason)));
                }
                loop {
                    let mut has_changed = false;
                    if let Poll::Ready(result) = steps.as_mut().poll(context) {
                        // The last outputs may have exceeded the budget at the very end.
                        return Poll::Ready(run.budget.excess().map_or(result, Err));
                    }
                    simulated.record(&run.ledger.take_all());
                    events.abandon(&simulated);
                    if let Some(failure) = run.budget.excess() {
                        return Poll::Ready(Err(failure));
                    }
                    for begun in simulated.take_begun() {
                        events.begin(begun, &parts, &simulated);
                        has_changed = true;
                    }
                    while let Poll::Ready(Some(event)) = events.under_way.poll_next_unpin(context) {
                        if let Ok(wait) = event {
                            run.deliver(wait);
                            has_changed = true;
                        }
                    }
                    if !has_changed {
                        break;
                    }
                }
                // The time for which a run only waits does not count towards its maximum duration.
                if time.is_over(run.is_waiting(), &parts.clock, context) {
                    return Poll::Ready(Err(too_long(parts.settings.max_run_duration)));
                }
                Poll::Pending
            })
            .await;
            if let Err(failure) = &result {
                run.ledger.close("", &StepEnd::Failed(failure.to_string()));
            }
            simulated.record(&run.ledger.take_all());
            events.abandon(&simulated);
            result
        })
    }

    /// Executes the sub-run of an attempt to its end.
    async fn sub_run(
        self,
        attempt_id: String,
        (child, mocks, prefix): (Box<ChildRun>, Arc<Mocks>, String),
        parent: Arc<SimulatedRun>,
    ) -> Wait {
        let ended = match self.world.plan(child.definition_id) {
            Err(cause) => Err(RunFailure::new(error_code::INVALID_PLAN, cause)),
            Ok(plan) => {
                let place = (prefix.clone(), parent.nesting() + 1, Some(Arc::clone(parent.account())));
                let simulated = self.simulated((plan, child.input), mocks, place);
                let ended = self.drive(Arc::clone(&simulated)).await;
                simulated.warn_of_unused_mocks();
                ended
            }
        };
        let output = self.world.record().take_output(&prefix);
        if let Some(output) = output.filter(|_| ended.is_ok()) {
            parent.set_result(&attempt_id, output);
        }
        sub_run_ended(attempt_id, ended.map_err(|failure| failure.to_string()))
    }
}

/// Event: the sub-run of an attempt has ended.
fn sub_run_ended(attempt_id: String, ended: Result<(), String>) -> Wait {
    let status = if ended.is_ok() { RunStatus::Completed } else { RunStatus::Failed };
    Wait {
        attempt_id,
        child_run_id: Some("of the test".to_owned()),
        child_status: Some(status.as_str().to_owned()),
        child_error: ended.err(),
        ..Wait::default()
    }
}

/// Events that a run waits for.
#[derive(Default)]
struct Events {
    under_way: FuturesUnordered<Abortable<BoxFuture<'static, Wait>>>,
    /// Handles to abandon them, by the id of the attempt; and the prefix of the sub-run, if there is one.
    handles: HashMap<String, (AbortHandle, Option<String>)>,
}

impl Events {
    fn begin(&mut self, begun: BegunWait, parts: &Parts, simulated: &Arc<SimulatedRun>) {
        let BegunWait { attempt_id, awaited } = begun;
        let (parts, id, mut sub_run) = (parts.clone(), attempt_id.clone(), None);
        let event: BoxFuture<'static, Wait> = match awaited {
            Awaited::Answer(None) => return,
            Awaited::Answer(Some((delay, answered_by))) => Box::pin(async move {
                parts.clock.sleep(delay).await;
                Wait { attempt_id, answered_at: Some(parts.clock.now()), answered_by, ..Wait::default() }
            }),
            Awaited::MockedRun(delay, ended) => Box::pin(async move {
                parts.clock.sleep(delay).await;
                sub_run_ended(attempt_id, ended)
            }),
            Awaited::Run { child, mocks, prefix } => {
                sub_run = Some(prefix.clone());
                Box::pin(parts.sub_run(attempt_id, (child, mocks, prefix), Arc::clone(simulated)))
            }
        };
        let (handle, registration) = AbortHandle::new_pair();
        self.under_way.push(Abortable::new(event, registration));
        self.handles.insert(id, (handle, sub_run));
    }

    /// Abandons the events of attempts that have ended.
    fn abandon(&mut self, simulated: &SimulatedRun) {
        for id in simulated.take_ended() {
            let Some((handle, sub_run)) = self.handles.remove(&id) else { continue };
            handle.abort();
            if let Some(prefix) = sub_run {
                simulated.abandon(&prefix);
            }
        }
    }
}

/// Time that a run may still take.
struct RunTime {
    left: Duration,
    account: Arc<SimulatedAccount>,
    /// Instant from which on time passes; `None`: the run only waits.
    since: Option<std::time::Instant>,
    timer: Option<BoxFuture<'static, ()>>,
}

impl RunTime {
    fn new(parts: &Parts, account: Arc<SimulatedAccount>) -> Self {
        Self { left: parts.settings.max_run_duration, account, since: Some(parts.clock.instant()), timer: None }
    }

    /// Counts the time that has passed. Returns the limit that this exceeds.
    fn pass(&mut self, clock: &Clock) -> Option<Excess> {
        let passed = clock.since(self.since.take()?);
        self.left = self.left.saturating_sub(passed);
        self.account.pass(passed)
    }

    /// Whether the time is over. Otherwise the run is polled again when it is.
    fn is_over(&mut self, is_waiting: bool, clock: &Clock, context: &mut Context<'_>) -> bool {
        self.timer = None;
        if is_waiting {
            return false;
        }
        self.since = Some(clock.instant());
        let (clock, left, of_account) = (clock.clone(), self.left, self.account.time_left());
        let next = of_account.map_or(left, |of_account| of_account.min(left));
        let timer = self.timer.insert(Box::pin(async move { clock.sleep(next).await }));
        // The end of the account's time is noticed when the time is counted.
        Pin::new(timer).poll(context).is_ready() && left.is_zero()
    }
}
