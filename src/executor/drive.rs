//! A run from its claim to its end: step after step, each end written together with what follows.
//!
//! If it dies here: before a step's end is committed, the step is made again by whoever takes the run over (its agent
//! sees another task id); after it, the run continues with the next step.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    Executor,
    agent_call::{self, Failure},
    assignment::Assignment,
    journal::{self, Written},
    retry::{self, Again},
};
use crate::{
    db::{
        self,
        executions::{BegunStep, Change, EndedStep, FinishedRun},
    },
    id,
    input::shorten,
    mapping::{self, Scope},
    run::RunStatus,
    workflow::{Plan, Step, StepKind},
};

/// Longest id of a step row, as its column.
const MAX_ROW_ID_CHARS: usize = 255;
/// What a run is told that failed through our own fault. The log has the details.
const INTERNAL_ERROR: &str = "internal error";

/// Why a run is left without being ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It was cancelled, or has gone to another executor.
    Lost,
    /// The process stops; another executor continues.
    HandedBack,
    /// It was ended FAILED, since the database refuses what it would write.
    Failed,
    /// Something is wrong with this program.
    Broken,
}

/// What a step came to.
enum StepEnd {
    /// To be written with what comes next.
    Done(Box<RawValue>, EndedStep),
    /// To be written with the end of the run. No row: the step did not begin.
    Failed(Option<EndedStep>, String),
}

fn count(ended: RunStatus) {
    metrics::counter!("executor_runs_total", "status" => ended.as_str()).increment(1);
}

/// Drives the run, whatever happens, to its end or until it is left.
pub(super) async fn drive(executor: Executor, assignment: Assignment, stop: CancellationToken) {
    let (run_id, lease_token) = (assignment.run_id.clone(), assignment.lease_token);
    // A caller's id if it has one, so that the agent's log can be found from theirs.
    let correlation_id = id::correlation_id(assignment.correlation_id.as_deref());
    let workflow_name = assignment.workflow_name.clone();
    let span = tracing::info_span!("run", run_id, workflow_name, correlation_id);
    let driver = Driver {
        executor: executor.clone(),
        run_id: run_id.clone(),
        lease_token,
        correlation_id,
        stop: stop.clone(),
        input: assignment.input.clone(),
        outputs: HashMap::new(),
    };
    // A task of its own, so that a panic ends this run and nothing else.
    let result = tokio::spawn(driver.run(assignment).instrument(span.clone())).await;
    match result.unwrap_or(Err(Left::Broken)) {
        Ok(status) => count(status),
        Err(Left::Failed) => count(RunStatus::Failed),
        Err(Left::Lost) => span.in_scope(|| tracing::info!("run {run_id} is left: it is not ours any more")),
        Err(Left::HandedBack) => span.in_scope(|| tracing::info!("run {run_id} is handed back")),
        Err(Left::Broken) => {
            span.in_scope(|| tracing::error!("run {run_id} failed by an internal error"));
            let finished = FinishedRun { status: RunStatus::Failed, error_message: Some(INTERNAL_ERROR.to_owned()) };
            let change =
                Change { run_id: run_id.clone(), lease_token, ended: None, begun: None, finished: Some(finished) };
            // If not even this can be written, the sweep finds the run again.
            if let Written::Done = executor.journal.write(change, &stop).await {
                count(RunStatus::Failed);
            }
        }
    }
    executor.active.remove(&run_id, lease_token);
}

/// What earlier executions of the run have done.
#[derive(Default)]
struct Done {
    /// Of each step, whether its latest attempt completed, and whether that was after the last retry.
    steps: HashMap<String, (bool, bool)>,
    /// The step that the last retry named.
    resume_from_step: Option<String>,
}

impl Done {
    /// Whether the step need not be made again; `is_redone`: the retry asked for it.
    fn counts(&self, step: &str, is_redone: bool) -> bool {
        self.steps.get(step).is_some_and(|(is_completed, is_after)| *is_completed && (*is_after || !is_redone))
    }
}

struct Driver {
    executor: Executor,
    run_id: String,
    lease_token: Uuid,
    correlation_id: String,
    stop: CancellationToken,
    input: Box<RawValue>,
    outputs: HashMap<String, Box<RawValue>>,
}

impl Driver {
    async fn run(mut self, assignment: Assignment) -> Result<RunStatus, Left> {
        tracing::info!("run {} is claimed", self.run_id);
        let plan = match &assignment.plan {
            None => Err("the workflow version that the run is pinned to does not exist".to_owned()),
            Some(plan) => Plan::parse(plan).map_err(|error| format!("the workflow plan cannot be executed: {error}")),
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(message) => return self.finish(None, Err(message)).await,
        };
        let done = if assignment.has_steps { self.resume().await? } else { Done::default() };
        let mut next = Some(plan.start_step.as_str());
        let mut is_redone = false;
        while let Some(step) = next {
            is_redone |= done.resume_from_step.as_deref() == Some(step);
            if !done.counts(step, is_redone) {
                break;
            }
            next = plan.steps.get(step).and_then(|step| step.next_step.as_deref());
        }
        let mut ended = None;
        // A valid plan's chain ends; the bound holds whatever the plan says.
        for _ in 0..=plan.steps.len() {
            let Some(step_id) = next else { return self.finish(ended, Ok(())).await };
            if self.executor.soft_stop.is_cancelled() {
                self.write(ended, None, None).await?;
                return Err(Left::HandedBack);
            }
            let Some(step) = plan.steps.get(step_id) else {
                return self.finish(ended, Err(format!("Step '{}' does not exist", shorten(step_id)))).await;
            };
            match self.step(step_id, step, ended).await? {
                StepEnd::Done(output, end) => {
                    self.outputs.insert(step_id.to_owned(), output);
                    ended = Some(end);
                }
                StepEnd::Failed(end, cause) => {
                    let message = format!("Step '{}' failed: {cause}", shorten(step_id));
                    return self.finish(end, Err(message)).await;
                }
            }
            next = step.next_step.as_deref();
        }
        self.finish(ended, Err("the workflow plan cannot be executed: its steps never end".to_owned())).await
    }

    /// Takes up what was done before, and registers its outputs.
    async fn resume(&mut self) -> Result<Done, Left> {
        let mut failures = 0;
        let rows = loop {
            let (pool, run_id, lease_token) = (self.executor.pool.clone(), self.run_id.clone(), self.lease_token);
            match db::bounded(async move { db::executions::resume(&pool, &run_id, lease_token).await }).await {
                Ok(rows) => break rows,
                Err(error) => self.after_database_error(&error, &mut failures).await?,
            }
        };
        let mut done = Done::default();
        for row in rows {
            let is_completed = row.status == "COMPLETED";
            if is_completed {
                let output = row.output_data.map_or_else(|| RawValue::NULL.to_owned(), |output| output.0);
                self.outputs.insert(row.step_id.clone(), output);
            }
            done.resume_from_step = row.resume_from_step;
            done.steps.insert(row.step_id, (is_completed, row.is_after_retry));
        }
        Ok(done)
    }

    /// Makes a step, in as many attempts as its agent allows. `previous` is written with the begin of the first.
    async fn step(&mut self, step_id: &str, step: &Step, mut previous: Option<EndedStep>) -> Result<StepEnd, Left> {
        let agent_name = match (step.kind, step.agent_name.as_deref()) {
            (StepKind::Agent, Some(agent_name)) => agent_name,
            (kind, _) => {
                let message = format!("this executor does not execute steps of type '{}' yet", kind.as_str());
                return Ok(StepEnd::Failed(previous, message));
            }
        };
        let mut scope = Scope::new(&self.input);
        for (step, output) in &self.outputs {
            scope.set(step, output.clone());
        }
        let input = match mapping::resolve(step.mapping(), &scope) {
            Ok(input) => input,
            Err(error) => return Ok(StepEnd::Failed(previous, error.to_string())),
        };
        let text = mapping::message_text(&input);
        for attempt in 1.. {
            let suffix = &Uuid::new_v4().simple().to_string()[..8];
            let id = row_id(&self.run_id, step_id, suffix);
            let begun = BegunStep {
                id: id.clone(),
                step_id: step_id.to_owned(),
                agent_name: agent_name.to_owned(),
                input: input.clone(),
            };
            self.write(previous.take(), Some(begun), None).await?;
            let started = Instant::now();
            let task_id = format!("task-{step_id}-{suffix}");
            let (result, pause) = self.attempt(agent_name, &task_id, &text, attempt).await?;
            let secs = started.elapsed().as_secs_f64();
            let status = if result.is_ok() { "COMPLETED" } else { "FAILED" };
            metrics::histogram!("executor_step_duration_seconds", "status" => status).record(secs);
            let duration_ms = (secs * 1e6).round() / 1e3;
            let error = result.as_ref().err();
            tracing::info!(
                step_id,
                agent = agent_name,
                attempt,
                duration_ms,
                error,
                "step {step_id} of run {} ended {status}",
                self.run_id
            );
            let end = EndedStep { id, result: result.clone() };
            match (result, pause) {
                (Ok(output), _) => return Ok(StepEnd::Done(output, end)),
                (Err(message), None) => return Ok(StepEnd::Failed(Some(end), message)),
                (Err(_), Some(pause)) => {
                    self.write(Some(end), None, None).await?;
                    self.wait(pause).await?;
                }
            }
        }
        // Attempts are counted up to the agent's limit, which is far below what a number holds.
        Err(Left::Broken)
    }

    /// One attempt: the output or the reason why not, and the pause before the next one if there is to be one.
    async fn attempt(
        &self,
        agent_name: &str,
        task_id: &str,
        text: &str,
        attempt: u32,
    ) -> Result<(Result<Box<RawValue>, String>, Option<Duration>), Left> {
        let mut failures = 0;
        let agent = loop {
            match self.executor.agents.find(agent_name).await {
                Ok(Ok(agent)) => break agent,
                Ok(Err(no_agent)) => return Ok((Err(no_agent.to_string()), None)),
                Err(error) => self.after_database_error(&error, &mut failures).await?,
            }
        };
        let call = agent_call::call(&self.executor.http, &agent, task_id, text, &self.correlation_id);
        let result = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Left::Lost),
            () = self.executor.give_up.cancelled() => return Err(Left::HandedBack),
            result = call => result,
        };
        let (outcome, again) = match &result {
            Ok(_) => ("success", Again::Never),
            Err(Failure { outcome, again, .. }) => (*outcome, *again),
        };
        metrics::counter!("executor_agent_requests_total", "outcome" => outcome).increment(1);
        let pause = retry::pause(&agent.retry, attempt, again, rand::random());
        Ok((result.map_err(|failure| format!("agent '{}': {}", agent.name, failure.message)), pause))
    }

    async fn wait(&self, pause: Duration) -> Result<(), Left> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.stop.cancelled() => Err(Left::Lost),
            () = self.executor.soft_stop.cancelled() => Err(Left::HandedBack),
        }
    }

    async fn after_database_error(&self, error: &db::Error, failures: &mut u32) -> Result<(), Left> {
        if !error.is_retryable() {
            tracing::error!(error = error as &dyn std::error::Error, "run {} cannot be read: {error}", self.run_id);
            return Err(Left::Broken);
        }
        journal::pause(*failures, &self.stop).await;
        *failures += 1;
        match (self.stop.is_cancelled(), self.executor.give_up.is_cancelled()) {
            (true, _) => Err(Left::Lost),
            (false, true) => Err(Left::HandedBack),
            (false, false) => Ok(()),
        }
    }

    /// Ends the run.
    async fn finish(&self, ended: Option<EndedStep>, result: Result<(), String>) -> Result<RunStatus, Left> {
        let status = if result.is_ok() { RunStatus::Completed } else { RunStatus::Failed };
        let error_message = result.err();
        let finished = FinishedRun { status, error_message: error_message.clone() };
        let status = self.write(ended, None, Some(finished)).await?.unwrap_or(status);
        tracing::info!(error = error_message, "run {} ended {}", self.run_id, status.as_str());
        Ok(status)
    }

    /// Writes a change. What the database refuses ends the run FAILED, which is then returned.
    async fn write(
        &self,
        ended: Option<EndedStep>,
        begun: Option<BegunStep>,
        finished: Option<FinishedRun>,
    ) -> Result<Option<RunStatus>, Left> {
        if ended.is_none() && begun.is_none() && finished.is_none() {
            return Ok(None);
        }
        let is_end = finished.is_some();
        match self.submit(ended, begun, finished).await? {
            None => Ok(None),
            Some(refused) => {
                self.fail_refused(refused).await?;
                if is_end { Ok(Some(RunStatus::Failed)) } else { Err(Left::Failed) }
            }
        }
    }

    /// Ends the run because of a change that the database refuses, as far as possible with what is good in it.
    async fn fail_refused(&self, refused: Change) -> Result<(), Left> {
        let (mut ended, begun) = (refused.ended, refused.begun);
        if begun.is_some() && ended.is_some() {
            // Either may be the bad one.
            ended = self.submit(ended, None, None).await?.and_then(|refused| refused.ended);
        }
        let cause = match (&ended, &begun) {
            (None, Some(begun)) => {
                format!("Step '{}' failed: the database refuses its id or input", shorten(&begun.step_id))
            }
            _ => "the database refuses an agent's answer or the run's error message".to_owned(),
        };
        tracing::warn!("run {}: {cause}", self.run_id);
        let ended = ended.map(|step| EndedStep { id: step.id, result: Err(cause.clone()) });
        let finished = FinishedRun { status: RunStatus::Failed, error_message: Some(cause) };
        if self.submit(ended, None, Some(finished)).await?.is_some() { Err(Left::Broken) } else { Ok(()) }
    }

    /// Hands a change to the journal. Returns it if the database refuses it.
    async fn submit(
        &self,
        ended: Option<EndedStep>,
        begun: Option<BegunStep>,
        finished: Option<FinishedRun>,
    ) -> Result<Option<Change>, Left> {
        let (run_id, lease_token) = (self.run_id.clone(), self.lease_token);
        let change = Change { run_id, lease_token, ended, begun, finished };
        match self.executor.journal.write(change, &self.stop).await {
            Written::Done => Ok(None),
            Written::Lost => Err(Left::Lost),
            Written::Failed => Err(Left::Broken),
            Written::Refused(change) => Ok(Some(*change)),
        }
    }
}

/// The id of a step row: `<run>-<step>-<suffix>`, shortened in the middle if it would not fit its column.
fn row_id(run_id: &str, step_id: &str, suffix: &str) -> String {
    let whole = format!("{run_id}-{step_id}");
    let room = MAX_ROW_ID_CHARS - suffix.len() - 1;
    let kept: String = whole.chars().take(room).collect();
    format!("{kept}-{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_step_row_fits_its_column_and_keeps_its_suffix() {
        assert_eq!(row_id("run-1", "a", "0123abcd"), "run-1-a-0123abcd");
        let long = row_id(&"r".repeat(200), &"ü".repeat(200), "0123abcd");
        assert_eq!(long.chars().count(), MAX_ROW_ID_CHARS);
        assert!(long.ends_with("-0123abcd"));
    }
}
