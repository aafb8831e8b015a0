//! Driver of a run, from its claim to its end: executes its steps, writes their changes, and reacts at once to whatever
//! ends the run before its steps do.

use std::{pin::pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    Executor,
    active::RunSignals,
    assignment::{Assignment, Progress},
    database::{self, Unanswered},
    earlier::PreviousExecution,
    error_code,
    journal::Written,
    ledger::WriteError,
    run_trace::RunTrace,
    steps::{Account, Run, StoredAccount, Wakes, too_many_steps, too_much_held},
    surroundings::Surroundings,
};
use crate::{
    config::RunBudget,
    db::{
        self,
        executions::{Change, EndedAttempt, FinishedRun, ObservedRun, RunFailure, StepEnd},
        usage::Progress as Spent,
    },
    id,
    input::shorten,
    run::RunStatus,
    telemetry::catalogue,
    trace,
    usage::Limits,
    workflow::Plan,
};

/// Error of a run that failed because of a defect of ours. The log has the details.
const INTERNAL_ERROR: &str = "internal error";

/// Reason for which a run is released without being ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    /// The lease is lost: the run was cancelled, or belongs to another executor.
    Lost,
    /// The process stops; another executor continues.
    ProcessStops,
    /// All branches of the run wait for something external, or the run is paused.
    Parked,
    /// Its statements timed out again and again.
    Slow,
    /// A defect of this program.
    Broken,
}

impl Release {
    /// Name in traces.
    fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lease_lost",
            Self::ProcessStops => "process_stops",
            Self::Parked => "parked",
            Self::Slow => "statement_timeout",
            Self::Broken => "internal_error",
        }
    }
}

impl From<Unanswered> for Release {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::Slow => Self::Slow,
            Unanswered::Broken => Self::Broken,
        }
    }
}

/// Reason for which the execution of a run's steps stops.
enum Outcome {
    /// The run ends, with success or this failure.
    Ended(Result<(), RunFailure>),
    /// The process stops, and no call is under way.
    AtRest,
    /// There is nothing to do before that time, or before an event for the run arrives.
    Waits(Option<DateTime<Utc>>),
    Left(Release),
    Stuck(WriteError),
}

/// Drives the run to its end, or until it is released.
pub(super) async fn drive(executor: Executor, assignment: Assignment, signals: RunSignals) {
    let (run_id, lease_token) = (assignment.run_id.clone(), assignment.lease_token);
    // The correlation id of the start request, if it has one, so that the agent's log can be found from the caller's.
    let correlation_id = id::correlation_id(assignment.correlation_id.as_deref());
    let workflow_name = assignment.workflow_name.clone();
    let (started, elapsed_before) = (executor.clock.instant(), assignment.elapsed);
    let organization_id = assignment.organization.as_str();
    let organization_label = catalogue::ORGANIZATIONS.of(organization_id);
    let workflow_label = catalogue::WORKFLOWS.of(&assignment.workflow_id);
    let (mut trace_span, trace) = RunTrace::begin(&assignment);
    let (trace_id, span_id) = trace.ids();
    let span = tracing::info_span!("run", run_id, workflow_name, organization_id, correlation_id, trace_id, span_id);
    let stop = signals.stop.clone();
    let begins = TaskTracker::new();
    let of = Arc::new(ObservedRun {
        workflow_id: assignment.workflow_id.clone(),
        workflow_name: workflow_name.clone(),
        organization: assignment.organization.clone(),
        traceparent: trace::of_run(&run_id, assignment.traceparent.as_deref()),
    });
    let driver = Driver { executor: executor.clone(), run_id: run_id.clone(), lease_token, of, stop, signals, begins };
    // The run has its own task, so that a panic ends this run and nothing else.
    let result = tokio::spawn(driver.clone().run(assignment, correlation_id, trace).instrument(span.clone())).await;
    let count = |ended: RunStatus| {
        let status = ended.as_str();
        let (organization_id, workflow_id) = (organization_label.clone(), workflow_label.clone());
        metrics::counter!("executor_runs_total", "status" => status).increment(1);
        metrics::counter!("organization_runs_ended_total", "status" => status, "organization_id" => organization_id)
            .increment(1);
        metrics::counter!("workflow_executions_total", "status" => status, "workflow_id" => workflow_id.clone())
            .increment(1);
        catalogue::count_transition("RUNNING", status, 1);
        let duration = elapsed_before + executor.clock.since(started);
        metrics::histogram!("workflow_duration_seconds", "status" => status, "workflow_id" => workflow_id)
            .record(duration);
    };
    let result = result.unwrap_or(Err(Release::Broken));
    match &result {
        Ok(status) => trace_span.set("workflow_api.run.status", status.as_str()),
        Err(release) => trace_span.set("workflow_api.run.released", release.as_str()),
    }
    if matches!(result, Ok(RunStatus::Failed) | Err(Release::Broken | Release::Slow)) {
        trace_span.fail("run_failed");
    }
    drop(trace_span);
    match result {
        Ok(status) => count(status),
        Err(Release::Lost) => span.in_scope(|| tracing::info!("run {run_id} is released: the lease is lost")),
        Err(Release::Parked) => span.in_scope(|| tracing::info!("run {run_id} is parked")),
        Err(Release::ProcessStops) => span.in_scope(|| tracing::info!("run {run_id} is released: the process stops")),
        Err(left @ (Release::Broken | Release::Slow)) => {
            let failure = match left {
                Release::Slow => RunFailure::new(error_code::STATEMENT_TIMEOUT, database::too_slow()),
                _ => RunFailure::new(error_code::INTERNAL_ERROR, INTERNAL_ERROR.to_owned()),
            };
            span.in_scope(|| tracing::error!("run {run_id} failed: {}", failure.cause));
            // If even this cannot be written, the sweep finds the run again.
            if let Ok(status) = driver.end(Err(failure)).await {
                count(status);
            }
        }
    }
    executor.active.remove(&run_id, lease_token);
}

#[derive(Clone)]
struct Driver {
    executor: Executor,
    run_id: String,
    lease_token: Uuid,
    of: Arc<ObservedRun>,
    /// Cancelled when the driver must stop and release the run.
    stop: CancellationToken,
    signals: RunSignals,
    /// Statements that begin a wait. Some may be under way when the run is released.
    begins: TaskTracker,
}

impl Driver {
    async fn run(self, assignment: Assignment, correlation_id: String, trace: RunTrace) -> Result<RunStatus, Release> {
        tracing::info!("run {} is claimed", self.run_id);
        let Assignment { organization, plan, input, before, first, takeovers, elapsed, limits, .. } = assignment;
        let plan = match plan {
            Ok(plan) => plan,
            Err(message) => return self.end(Err(RunFailure::new(error_code::INVALID_PLAN, message))).await,
        };
        let most = self.executor.run_budget.takeovers;
        if takeovers > most {
            let message = format!(
                "{takeovers} executors died with the run, each without its having got on; it is taken over {most} times \
                 (MAX_RUN_TAKEOVERS)"
            );
            return self.end(Err(RunFailure::new(error_code::TAKEOVERS, message))).await;
        }
        let earlier = match before {
            Progress::Nothing => Ok(PreviousExecution::default()),
            _ => self.earlier(before == Progress::Interrupted, &plan).await?,
        };
        let earlier = match earlier {
            Ok(earlier) => earlier,
            Err(message) => return self.end(Err(RunFailure::new(error_code::RUN_BUDGET, message))).await,
        };
        let account = self.account(&plan, limits, &earlier, elapsed).await?;
        let end = self.executor.clock.instant() + self.executor.max_duration.saturating_sub(elapsed);
        let of_account = if let Account::Stored(account) = &account { account.deadline() } else { None };
        let deadline = of_account.map_or(end, |of_account| of_account.min(end));
        let claim = (self.run_id.clone(), self.lease_token, Arc::clone(&self.of));
        let names = (organization, correlation_id);
        let signals = (self.signals.clone(), deadline);
        let surroundings = Surroundings::Executor(self.executor.clone());
        let run = Run::new(surroundings, claim, (names, trace), signals, (plan, earlier, account), self.begins.clone());
        run.close_orphans();
        if let Some(first) = first {
            run.continue_first(first);
        }

        // One task polls all parts of the run, one after the other. The steps come first: so their changes collect
        // before they are written, and each step was polled before the run is found to wait.
        let mut writing = pin!(run.ledger.write_out(&self.executor.journal, &self.stop));
        let steps = async {
            if before != Progress::Nothing {
                run.read_waits(Wakes::Forgotten).await;
            }
            run.main_chain(&input).await
        };
        let outcome = tokio::select! {
            biased;
            () = self.stop.cancelled() => Outcome::Left(Release::Lost),
            () = self.executor.give_up.cancelled() => Outcome::Left(Release::ProcessStops),
            () = run.broken.notified() => Outcome::Left(Release::Broken),
            failure = run.budget.exceeded() => Outcome::Ended(Err(failure)),
            // The last outputs may have exceeded the budget at the very end.
            result = steps => Outcome::Ended(run.budget.excess().map_or(result, Err)),
            Err(stuck) = &mut writing => Outcome::Stuck(stuck),
            () = run.watch_events() => Outcome::AtRest,
            wake_at = run.waits_only() => Outcome::Waits(wake_at),
            () = run.at_pause() => Outcome::Waits(Some(self.executor.clock.now())),
            () = run.at_rest() => Outcome::AtRest,
            () = run.out_of_time() => Outcome::Ended(run.budget.excess().map_or(Ok(()), Err)),
            () = self.executor.clock.sleep_until(end) => Outcome::Ended(Err(too_long(self.executor.max_duration))),
        };
        let mut parked = None;
        let status = match outcome {
            Outcome::Left(left) => return Err(left),
            Outcome::Stuck(stuck) => return self.stuck(stuck).await,
            Outcome::AtRest => None,
            Outcome::Waits(wake_at) => {
                parked = Some(wake_at);
                None
            }
            Outcome::Ended(result) => Some(result),
        };
        // A statement of a dropped step may still begin an attempt. Its result is known before all open attempts are
        // closed.
        self.begun().await?;
        let status = status.map(|result| {
            let finished = finished(result);
            if let Some(reason) = &finished.error_message {
                run.ledger.close("", &StepEnd::Failed(reason.clone()));
            }
            let ended = Ended::from(&finished);
            run.ledger.finish(finished);
            ended
        });
        let written = tokio::select! {
            biased;
            Err(stuck) = &mut writing => Err(stuck),
            () = run.ledger.written() => Ok(()),
        };
        match (written, status) {
            (Err(stuck), _) => self.stuck(stuck).await,
            (Ok(()), None) => match parked {
                Some(wake_at) => self.park(wake_at).await,
                None => Err(Release::ProcessStops),
            },
            (Ok(()), Some(ended)) => Ok(self.ended(ended)),
        }
    }

    /// Opens the account of a run that has limits, its own or of a run above it.
    async fn account(
        &self,
        plan: &Plan,
        limits: Option<Limits>,
        earlier: &PreviousExecution,
        elapsed: Duration,
    ) -> Result<Account, Release> {
        if plan.limits.is_none() && limits.is_none() {
            return Ok(Account::Unlimited);
        }
        let own = plan.limits.unwrap_or_default().smaller(limits.unwrap_or_default()).unless_empty();
        let began = self.executor.clock.instant();
        let done = Spent {
            steps: i64::try_from(earlier.rows().saturating_sub(earlier.interrupted())).unwrap_or(i64::MAX),
            millis: i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX),
        };
        let opened = self
            .database(|| {
                let (pool, run_id, lease_token) = (self.executor.pool.clone(), self.run_id.clone(), self.lease_token);
                async move { db::usage::open(&pool, (&run_id, lease_token), own.as_ref(), done).await }
            })
            .await?;
        let accounts = opened.ok_or(Release::Lost)?;
        Ok(Account::Stored(StoredAccount::new(&accounts, began, elapsed, earlier.interrupted()).into()))
    }

    /// Parks the run until that time, or until an event for it arrives.
    async fn park(&self, wake_at: Option<DateTime<Utc>>) -> Result<RunStatus, Release> {
        let parked = self
            .database(|| {
                let (pool, run_id, lease_token) = (self.executor.pool.clone(), self.run_id.clone(), self.lease_token);
                async move { db::executions::park(&pool, &run_id, lease_token, wake_at).await }
            })
            .await?;
        if parked {
            metrics::counter!("executor_runs_parked_total").increment(1);
        }
        Err(if parked { Release::Parked } else { Release::Lost })
    }

    /// Earlier execution, with the outputs that are still needed; or the reason why the run cannot continue.
    async fn earlier(&self, interrupted: bool, plan: &Plan) -> Result<Result<PreviousExecution, String>, Release> {
        let RunBudget { steps, memory_bytes, .. } = self.executor.run_budget;
        let limit = i64::try_from(steps.saturating_add(1)).unwrap_or(i64::MAX);
        let rows = self
            .database(|| {
                let (pool, run_id, lease_token) = (self.executor.pool.clone(), self.run_id.clone(), self.lease_token);
                async move { db::executions::resume(&pool, &run_id, lease_token, interrupted, limit).await }
            })
            .await?;
        let earlier = PreviousExecution::new(rows, interrupted);
        if earlier.rows() > steps {
            return Ok(Err(too_many_steps(steps)));
        }
        let mut held: u64 = 0;
        for portion in earlier.needed(plan) {
            let outputs = self
                .database(|| {
                    let (pool, ids) = (self.executor.pool.clone(), portion.clone());
                    async move { db::executions::outputs(&pool, &ids).await }
                })
                .await?;
            held += outputs.iter().map(|(_, output)| output.0.get().len() as u64).sum::<u64>();
            if held > memory_bytes {
                return Ok(Err(too_much_held(memory_bytes)));
            }
            earlier.fill(outputs.into_iter().map(|(id, output)| (id, output.0)).collect());
        }
        Ok(Ok(earlier))
    }

    /// Repeats a statement until the database answers, however long it is down.
    async fn database<T, F>(&self, statement: impl Fn() -> F) -> Result<T, Release>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, db::Error>> + Send + 'static,
    {
        let pause = |failures| async move {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(Release::Lost),
                () = self.executor.give_up.cancelled() => Err(Release::ProcessStops),
                () = database::pause(failures) => Ok(()),
            }
        };
        database::answer(&self.run_id, || self.executor.database(&statement), pause).await
    }

    /// Waits until no further attempt can begin.
    async fn begun(&self) -> Result<(), Release> {
        self.begins.close();
        tokio::select! {
            biased;
            () = self.begins.wait() => Ok(()),
            () = self.stop.cancelled() => Err(Release::Lost),
            () = self.executor.give_up.cancelled() => Err(Release::ProcessStops),
        }
    }

    /// Ends a run that has nothing else to write.
    async fn end(&self, result: Result<(), RunFailure>) -> Result<RunStatus, Release> {
        self.begun().await?;
        let finished = finished(result);
        let ended = Ended::from(&finished);
        match self.submit(Change { finished: Some(finished), ..self.change() }).await? {
            None => Ok(self.ended(ended)),
            Some(refused) => self.fail_refused(vec![refused]).await,
        }
    }

    async fn stuck(&self, stuck: WriteError) -> Result<RunStatus, Release> {
        match stuck {
            WriteError::Lost => Err(Release::Lost),
            WriteError::Broken => Err(Release::Broken),
            WriteError::Slow => Err(Release::Slow),
            WriteError::Refused(changes) => self.fail_refused(changes).await,
        }
    }

    /// Ends the run because the database refuses some changes. The valid parts of the changes are written.
    async fn fail_refused(&self, refused: Vec<Change>) -> Result<RunStatus, Release> {
        self.begun().await?;
        let mut cause = None;
        for change in refused {
            // If the end and the begin are of different rows, either can be the invalid one.
            let is_one_row = matches!((&change.ended, &change.begun), (Some(end), Some(begin)) if end.id == begin.id);
            let begun = if is_one_row { None } else { change.begun };
            let Some(ended) = change.ended.filter(|_| !is_one_row) else {
                self.keep_begin(begun, &mut cause).await?;
                continue;
            };
            if let Some(refused) = self.submit(Change { ended: Some(ended), ..self.change() }).await?
                && let Some(ended) = refused.ended
            {
                let text = "the database refuses an agent's answer or a step's error message".to_owned();
                let end = StepEnd::Failed(cause.insert(text).clone());
                self.submit(Change { ended: Some(EndedAttempt { end, ..ended }), ..self.change() }).await?;
            }
            self.keep_begin(begun, &mut cause).await?;
        }
        let cause = cause.unwrap_or_else(|| "the database refuses a value of a step or of the run's end".to_owned());
        let finished = finished(Err(RunFailure::new(error_code::REFUSED_BY_DATABASE, cause)));
        let ended = Ended::from(&finished);
        let change = Change { finished: Some(finished), ..self.change() };
        if self.submit(change).await?.is_some() { Err(Release::Broken) } else { Ok(self.ended(ended)) }
    }

    /// Logs and counts the end of the run, which is written.
    fn ended(&self, Ended { status, error, code }: Ended) -> RunStatus {
        if let Some(code) = code {
            metrics::counter!("workflow_error_total", "error_code" => code).increment(1);
        }
        tracing::info!(error, error_code = code, "run {} ended {}", self.run_id, status.as_str());
        status
    }

    /// Writes a begin alone. The end of the run closes it.
    async fn keep_begin(
        &self,
        begun: Option<db::executions::StepBegin>,
        cause: &mut Option<String>,
    ) -> Result<(), Release> {
        let Some(begun) = begun else { return Ok(()) };
        if let Some(refused) = self.submit(Change { begun: Some(begun), ..self.change() }).await?
            && let Some(begun) = refused.begun
        {
            let step_id = shorten(&begun.step_id);
            *cause = Some(format!("Step '{step_id}' failed: the database refuses its id or input"));
        }
        Ok(())
    }

    fn change(&self) -> Change {
        let (run_id, of) = (self.run_id.clone(), Arc::clone(&self.of));
        Change { run_id, lease_token: self.lease_token, of, ended: None, begun: None, finished: None }
    }

    /// Submits one change to the journal. Returns it if the database refuses it.
    async fn submit(&self, change: Change) -> Result<Option<Change>, Release> {
        match self.executor.journal.write(vec![change], &self.stop).await {
            Written::Done(_) => Ok(None),
            Written::Lost => Err(Release::Lost),
            Written::Failed => Err(Release::Broken),
            Written::Slow => Err(Release::Slow),
            Written::Refused(changes) => Ok(changes.into_iter().next()),
        }
    }
}

/// End of a run for log and metrics.
struct Ended {
    status: RunStatus,
    error: Option<String>,
    code: Option<&'static str>,
}

impl From<&FinishedRun> for Ended {
    fn from(run: &FinishedRun) -> Self {
        let code = run.failure.as_ref().map(|failure| failure.code);
        Self { status: run.status, error: run.error_message.clone(), code }
    }
}

fn finished(result: Result<(), RunFailure>) -> FinishedRun {
    let status = if result.is_ok() { RunStatus::Completed } else { RunStatus::Failed };
    let failure = result.err();
    let error_message = failure.as_ref().map(ToString::to_string);
    FinishedRun { status, error_message, failure }
}

/// Failure of a run that took longer than its limit.
pub(super) fn too_long(limit: Duration) -> RunFailure {
    let cause = format!("the run took longer than {} ms (MAX_WORKFLOW_DURATION_MS)", limit.as_millis());
    RunFailure::new(error_code::RUN_TIMEOUT, cause)
}
