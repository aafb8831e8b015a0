//! Agent step: calls an agent, in as many attempts as the agent's settings allow, each with a row of its own.

use std::{sync::PoisonError, time::Instant};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use super::{
    Frame, Run,
    attempt::Attempt,
    fallback::{FailedAttempt, may_mend},
    question::{Asked, Continued},
};
use crate::{
    db::executions::AgentCall,
    executor::{
        Executor,
        agent_call::{self, CallErrorKind, CallOutcome, Conversation, Failure, Request},
        agents::{Agent, Seen},
        assignment::FirstAttempt,
        breakers::Rejected,
        database,
        earlier::InterruptedAttempt,
        error_code,
        memory::{COUNTED_BYTES, counted},
        retry::{self, AttemptNumber, RetryDecision},
        simulation::{Simulated, SimulatedRun},
        surroundings::Surroundings,
    },
    input::object_of,
    mapping::MAX_RESOLVED_BYTES,
    permits::Permit,
    telemetry::{catalogue::AGENTS, spans::Span},
    workflow::{OnQuestion, Step},
};

/// Error of a run that failed because of a defect of ours. The log has the details.
const INTERNAL_ERROR: &str = "internal error";

impl Run {
    /// Executes the step and returns the agent's output. A failed resolution of the input is no attempt and leaves no
    /// row.
    pub(super) async fn agent(
        &self,
        step: &Step,
        path: &str,
        frame: &Frame<'_>,
        due: Option<DateTime<Utc>>,
    ) -> Result<Box<RawValue>, String> {
        let Some(agent_name) = step.agent_name.as_deref() else { return Err("it names no agent".to_owned()) };
        // It is the attempt at the first step that is executed.
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if step.on_question == Some(OnQuestion::Ask)
            && let Some(result) = self.resume_question(step, path, due).await
        {
            return result;
        }
        let made = match &first {
            Some(first) => Ok((first.row.input.clone(), self.memory.hold(0))),
            None => self.make_input(step, frame).await,
        };
        let made = made.and_then(|made| Ok((made, Continued::of(step, frame)?)));
        let ((input, memory_of_input), continued) = match made {
            Ok(made) => made,
            Err(cause) => {
                let row = self.row(step, agent_name.to_owned(), object_of([]), path, frame);
                self.ledger.fail_unbegun(&row, &cause);
                return Err(cause);
            }
        };
        if first.is_none() {
            self.gate().await;
        }
        // A pause of the run waits for all attempts of the step, since a run pauses between steps.
        let leaf = self.leaves.begin();
        let conversation = continued.conversation(step);
        // An attempt that is repeated because its executor died keeps its id, for agents that de-duplicate.
        let mut interrupted = self.earlier.take_interrupted(path, frame.reuse);
        let called = interrupted.as_ref().map(|interrupted| interrupted.agent_name.as_str());
        let mut callees = self.callees(agent_name, called).await;
        let clock = &self.executor.clock;
        loop {
            if first.is_none() {
                self.gate_of_process().await;
            }
            let (agent_name, number) = (callees.current(), callees.number());
            let under_way = self.calls.begin();
            self.begin_step(input.get().len()).await;
            let (attempt_id, row_id, since) = if let Some(FirstAttempt { row, since, .. }) = first.take() {
                (row.id.clone(), row.id, since)
            } else {
                let mut row = self.row(step, agent_name.to_owned(), input.clone(), path, frame);
                // The agent receives the row's id, so that its log can be found from the row.
                let attempt_id = interrupted.take().map_or_else(|| row.id.clone(), |interrupted| interrupted.id);
                row.task_id = Some(agent_call::task_id(&attempt_id));
                let (row_id, since) = (row.id.clone(), clock.instant());
                self.ledger.begin(path, row);
                self.ledger.written().await;
                (attempt_id, row_id, since)
            };
            let seen = Seen { since, version: self.ledger.agent_version(agent_name) };
            let started = clock.instant();
            let mut span = self.trace.step(|| format!("step {}", step.id));
            span.set("workflow_api.step.id", &step.id);
            span.set("workflow_api.step.path", path);
            span.set("workflow_api.agent.name", agent_name);
            span.set_number("workflow_api.attempt", number.at_step);
            let message = (attempt_id.as_str(), number);
            let Attempt { result, pause, fault, mended_by: (may_mend, fallbacks), question, call, memory, settled } =
                self.attempt(agent_name, seen, message, (&step.id, &row_id), (&input, conversation), &span).await;
            let (excess, settling) = settled;
            if let Some(question) = question.filter(|_| excess.is_none()) {
                drop((span, under_way, leaf, memory, memory_of_input));
                let asked = Asked { attempt_id: row_id, agent_name: agent_name.to_owned(), question, call };
                return self.ask(step, path, asked, due).await;
            }
            if fault == Some(CallErrorKind::CircuitOpen) && attempt_id != row_id {
                // Nothing was asked, so the next attempt is the one that repeats the interrupted one.
                interrupted = Some(InterruptedAttempt { id: attempt_id, agent_name: agent_name.to_owned() });
            }
            if result.is_err() {
                span.fail(fault.map_or(error_code::STEP_FAILED, CallErrorKind::as_str));
            }
            drop(span);
            self.note_attempt((&step.id, path, agent_name), number, started, &result);
            // Another agent knows nothing of the conversation.
            let may_mend = may_mend && conversation.task_id.is_none() && conversation.context_id.is_none();
            // What follows a failure, unless the run ends here.
            let next = result.as_ref().err().filter(|_| excess.is_none()).map(|cause| {
                let failed = FailedAttempt { cause: cause.clone(), fault, pause, may_mend, fallbacks };
                self.next_call(&mut callees, &step.id, failed)
            });
            let pause = next.as_ref().and_then(|next| next.as_ref().ok().copied());
            self.end_call(path, &result, call, pause);
            drop(settling);
            self.end_if_exceeded(excess).await;
            drop((under_way, memory));
            let next = match result {
                Ok(output) => return Ok(output),
                Err(cause) => next.unwrap_or(Err(cause)),
            };
            match next {
                Ok(pause) => {
                    interrupted = interrupted.filter(|interrupted| interrupted.agent_name == callees.current());
                    self.ledger.request_flush();
                    clock.sleep(pause).await;
                }
                Err(cause) => {
                    self.set_last_fault(callees.fault());
                    return Err(cause);
                }
            }
        }
    }

    /// Notes the end of an attempt in metrics and in the log.
    fn note_attempt(
        &self,
        (step_id, path, agent_name): (&str, &str, &str),
        number: AttemptNumber,
        started: Instant,
        result: &Result<Box<RawValue>, String>,
    ) {
        let secs = self.executor.clock.since(started).as_secs_f64();
        let status = if result.is_ok() { "COMPLETED" } else { "FAILED" };
        let workflow_id = self.workflow_label.clone();
        metrics::histogram!("executor_step_duration_seconds", "status" => status, "workflow_id" => workflow_id)
            .record(secs);
        let (duration_ms, error) = (millis(secs), result.as_ref().err());
        tracing::info!(
            step_id,
            path,
            agent = agent_name,
            attempt = number.at_step,
            duration_ms,
            error,
            "step {step_id} of run {} ended {status}",
            self.run_id
        );
    }

    /// Resolves the input, with a permit for its memory. With large values it first waits for the memory of the largest
    /// input.
    async fn make_input(&self, step: &Step, frame: &Frame<'_>) -> Result<(Box<RawValue>, Permit), String> {
        let most = if frame.scope.bytes() < COUNTED_BYTES { 0 } else { MAX_RESOLVED_BYTES };
        let mut memory = self.memory.room(most).await?;
        let input = self.resolve(step, &frame.scope).await?;
        memory.resize(counted(input.get().len()));
        Ok((input, memory))
    }

    pub(super) async fn attempt(
        &self,
        agent_name: &str,
        seen: Seen,
        (attempt_id, number): (&str, AttemptNumber),
        row: (&str, &str),
        (input, conversation): (&RawValue, Conversation<'_>),
        span: &Span,
    ) -> Attempt {
        let executor = match &self.executor {
            Surroundings::Executor(executor) => executor,
            Surroundings::Simulation(simulated) => {
                return self
                    .simulated_attempt(simulated, agent_name, (attempt_id, number), row.1, (input, conversation))
                    .await;
            }
        };
        let agent = match self.find_agent(executor, agent_name, seen).await {
            Ok(agent) => agent,
            Err(cause) => return Attempt::without_agent(cause),
        };
        let held = self.reserve(&agent, attempt_id, row, input.get().len()).await;
        let (mut result, call, memory, settled) = match executor.breakers.admit(&agent).await {
            Err(Rejected) => {
                self.release(held).await;
                let message = "its circuit breaker is open".to_owned();
                (Err(Failure::new(CallErrorKind::CircuitOpen, RetryDecision::Later, message)), None, None, (None, None))
            }
            Ok(passage) => {
                let request = Request {
                    executor,
                    agent: &agent,
                    organization: &self.organization,
                    run_id: &self.run_id,
                    lease_token: self.ledger.lease_token(),
                    stop: &self.signals.stop,
                    attempt_id,
                    correlation_id: &self.correlation_id,
                    trace: &self.trace,
                    span,
                    row,
                    input,
                    conversation,
                    memory: &self.memory,
                };
                let attempt = number.at_step;
                tracing::debug!(agent = agent.name, attempt, attempt_id, "agent {} is called", agent.name);
                let clock = &self.executor.clock;
                let started = clock.instant();
                let outcome = agent_call::call(request).await;
                let duration = clock.since(started);
                let duration_ms = millis(duration.as_secs_f64());
                let is_healthy =
                    outcome.result.as_ref().map_or_else(|failure| failure.fault.is_healthy(), |_| Some(true));
                if is_healthy.is_some() {
                    let (used, is_ok) = (outcome.usage.unwrap_or_default(), failure_of(&outcome.result).is_none());
                    let spent = (used.tokens(), agent.price.unwrap_or_default().cost(used));
                    executor.agent_hours.count(agent.id, duration, is_ok, spent);
                }
                passage.end(is_healthy).await;
                let settled = self.settle(held, &agent, attempt_id, row, &outcome).await;
                let CallOutcome { result, http_status, memory, .. } = outcome;
                let fault = failure_of(&result).map(|failure| failure.fault.as_str());
                (result, Some(AgentCall { http_status, duration_ms, fault }), Some(memory), settled)
            }
        };
        let fault = failure_of(&result).map(|failure| failure.fault);
        let (outcome, agent_label) = (fault.map_or("success", CallErrorKind::as_str), AGENTS.of(&agent.name));
        if let Some(AgentCall { duration_ms, .. }) = call {
            metrics::histogram!("executor_agent_call_seconds", "agent" => agent_label.clone())
                .record(duration_ms / 1000.0);
        }
        metrics::counter!("executor_agent_requests_total", "outcome" => outcome, "agent" => agent_label).increment(1);
        let again = result.as_ref().map_or_else(|failure| failure.again, |_| RetryDecision::Never);
        let status = call.as_ref().and_then(|call| call.http_status);
        let mended_by = match fault {
            Some(fault) => (may_mend(fault, status, again), agent.fallbacks.clone()),
            None => (false, Vec::new()),
        };
        let time_left = self.deadline.saturating_duration_since(self.executor.clock.instant());
        let question = result.as_mut().err().and_then(|failure| failure.question.take());
        Attempt {
            result: result.map_err(|failure| format!("agent '{}': {}", agent.name, failure.message)),
            pause: retry::pause(&agent.retry, number.of_agent, again, rand::random(), time_left),
            fault,
            question,
            mended_by,
            call,
            memory,
            settled,
        }
    }

    async fn simulated_attempt(
        &self,
        simulated: &SimulatedRun,
        agent_name: &str,
        (attempt_id, number): (&str, AttemptNumber),
        row_id: &str,
        (input, conversation): (&RawValue, Conversation<'_>),
    ) -> Attempt {
        let reserved = self.reserve_simulated(simulated, agent_name, attempt_id, input.get().len()).await;
        let Simulated { result, pause, fault, question, fallbacks } =
            simulated.attempt(agent_name, (row_id, number), (input, conversation)).await;
        let settled = (reserved.settle(result.as_deref().ok()), None);
        // As a mock says, the agent answers 400.
        let may_mend = fault.is_some_and(|fault| may_mend(fault, None, RetryDecision::Never));
        let mended_by = (may_mend, fallbacks);
        Attempt { result, pause, fault, mended_by, question, call: None, memory: None, settled }
    }

    /// Finds the agent. Waits while the database is down.
    pub(super) async fn find_agent(
        &self,
        executor: &Executor,
        name: &str,
        seen: Seen,
    ) -> Result<std::sync::Arc<Agent>, String> {
        let mut failures = 0;
        loop {
            match executor.agents.find(&self.organization, name, seen).await {
                Ok(found) => return found.map_err(|no_agent| no_agent.to_string()),
                Err(error) if error.is_retryable() => {
                    database::pause(failures).await;
                    failures += 1;
                }
                Err(error) => {
                    let run_id = &self.run_id;
                    tracing::error!(error = &error as &dyn std::error::Error, "run {run_id} cannot be read: {error}");
                    return Err(INTERNAL_ERROR.to_owned());
                }
            }
        }
    }
}

/// The failure, unless the agent has asked a question instead.
fn failure_of(result: &Result<Box<RawValue>, Failure>) -> Option<&Failure> {
    result.as_ref().err().filter(|failure| failure.question.is_none())
}

fn millis(secs: f64) -> f64 {
    (secs * 1e6).round() / 1e3
}
