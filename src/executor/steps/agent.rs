//! A step that calls an agent, in as many attempts as the agent allows, each with a row of its own.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::{Frame, Run};
use crate::{
    db::executions::{AgentCall, StepEnd},
    executor::{
        agent_call::{self, Called, Failure},
        agents::Agent,
        journal,
        retry::{self, Again},
    },
    mapping,
    workflow::Step,
};

/// What one attempt came to.
struct Attempt {
    /// The output, or the reason why there is none.
    result: Result<Box<RawValue>, String>,
    /// Before the next one, if there is to be one.
    pause: Option<Duration>,
    /// How the agent was called, if it was.
    call: Option<AgentCall>,
}

/// What a run is told that failed through our own fault. The log has the details.
const INTERNAL_ERROR: &str = "internal error";

impl Run {
    /// The agent's output. An input that cannot be made is no attempt and leaves no row.
    pub(super) async fn agent(&self, step: &Step, place: &str, frame: &Frame<'_>) -> Result<Box<RawValue>, String> {
        let Some(agent_name) = step.agent_name.as_deref() else { return Err("it names no agent".to_owned()) };
        let input = self.resolve(step, &frame.scope).await?;
        let text = mapping::message_text(&input);
        self.gate().await;
        // A pause waits for all attempts: it comes between steps.
        let _leaf = self.leaves.begin();
        let mut attempt = 1;
        loop {
            self.gate_of_process().await;
            let under_way = self.calls.begin();
            let row = self.row(step, agent_name.to_owned(), input.clone(), place, frame);
            // The agent sees the end of the row's id: a log of one is found from the other.
            let task_id = format!("task-{}-{}", step.id, row.id.rsplit('-').next().unwrap_or_default());
            self.ledger.begin(place, row);
            self.ledger.written().await;
            let started = Instant::now();
            let Attempt { result, pause, call } = self.attempt(agent_name, &task_id, &text, attempt).await;
            let secs = started.elapsed().as_secs_f64();
            let end = match &result {
                Ok(output) => StepEnd::Completed(output.clone()),
                Err(cause) => StepEnd::Failed(cause.clone()),
            };
            let status = end.status();
            metrics::histogram!("executor_step_duration_seconds", "status" => status).record(secs);
            let duration_ms = millis(secs);
            let (step_id, error) = (&step.id, end.reason());
            tracing::info!(
                step_id,
                place,
                agent = agent_name,
                attempt,
                duration_ms,
                error,
                "step {step_id} of run {} ended {status}",
                self.run_id
            );
            self.ledger.end(place, end, call);
            drop(under_way);
            match (result, pause) {
                (Ok(output), _) => return Ok(output),
                (Err(cause), None) => return Err(cause),
                (Err(_), Some(pause)) => {
                    self.ledger.nudge();
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                }
            }
        }
    }

    async fn attempt(&self, agent_name: &str, task_id: &str, text: &str, attempt: u32) -> Attempt {
        let agent = match self.find_agent(agent_name).await {
            Ok(agent) => agent,
            Err(cause) => return Attempt { result: Err(cause), pause: None, call: None },
        };
        let started = Instant::now();
        let called = agent_call::call(&self.executor.http, &agent, task_id, text, &self.correlation_id).await;
        let duration_ms = millis(started.elapsed().as_secs_f64());
        let Called { result, http_status } = called;
        let (fault, again) = match &result {
            Ok(_) => (None, Again::Never),
            Err(Failure { outcome, again, .. }) => (Some(*outcome), *again),
        };
        metrics::counter!("executor_agent_requests_total", "outcome" => fault.unwrap_or("success")).increment(1);
        Attempt {
            result: result.map_err(|failure| format!("agent '{}': {}", agent.name, failure.message)),
            pause: retry::pause(&agent.retry, attempt, again, rand::random()),
            call: Some(AgentCall { http_status: http_status.map(|status| status.as_u16()), duration_ms, fault }),
        }
    }

    /// The agent, however long the database is away.
    async fn find_agent(&self, name: &str) -> Result<std::sync::Arc<Agent>, String> {
        let mut failures = 0;
        loop {
            match self.executor.agents.find(&self.organization, name).await {
                Ok(found) => return found.map_err(|no_agent| no_agent.to_string()),
                Err(error) if error.is_retryable() => {
                    journal::pause(failures).await;
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

fn millis(secs: f64) -> f64 {
    (secs * 1e6).round() / 1e3
}
