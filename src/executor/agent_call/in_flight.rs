//! Cancellation of a task that an agent works on, once its result is not needed any more.

use std::{mem, sync::Arc, time::Duration};

use http::StatusCode;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Request, prepare};
use crate::{
    a2a::{Operation, request},
    db,
    executor::{
        Executor,
        agent_cards::{HttpRequest, Route},
        agents::Agent,
    },
};

/// Time-out for the cancellation. Its result makes no difference to the run.
const CANCEL_TIME: Duration = Duration::from_secs(2);

/// Task under way. Dropped before the task is over, it cancels the task: the deadline has passed, or the branch,
/// the block or the run was abandoned or cancelled. If another executor continues the run, the task is left to it.
pub(super) struct InFlight {
    executor: Executor,
    stop: CancellationToken,
    /// Task id; empty: there is nothing to cancel any more.
    task: String,
    agent: Arc<Agent>,
    /// Request that cancels the task.
    cancel: HttpRequest,
    run_id: String,
    lease_token: Uuid,
    correlation_id: String,
    traceparent: Option<String>,
    /// Whether the task is left to what is recorded of its questions.
    is_recorded: bool,
}

impl InFlight {
    /// Task of an A2A agent.
    pub(super) fn new(request: &Request<'_>, route: &Route, task: String) -> Self {
        Self::cancelled_by(request, cancellation(route, &task), task)
    }

    /// Task that this request cancels.
    pub(super) fn cancelled_by(request: &Request<'_>, cancel: HttpRequest, task: String) -> Self {
        Self {
            executor: request.executor.clone(),
            stop: request.stop.clone(),
            task,
            agent: Arc::clone(request.agent),
            cancel,
            run_id: request.run_id.to_owned(),
            lease_token: request.lease_token,
            correlation_id: request.correlation_id.to_owned(),
            traceparent: request.trace.outgoing(request.span),
            is_recorded: request.conversation.answered.is_some(),
        }
    }

    /// The agent's id of the task.
    pub(super) fn task(&self) -> &str {
        &self.task
    }

    /// Marks the task as ended.
    pub(super) fn is_over(&mut self) {
        self.task.clear();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.task.is_empty() || self.is_recorded || self.executor.give_up.is_cancelled() {
            return;
        }
        self.task.clear();
        let (executor, agent, cancel) = (self.executor.clone(), Arc::clone(&self.agent), self.cancel.clone());
        let (run_id, correlation_id) = (mem::take(&mut self.run_id), mem::take(&mut self.correlation_id));
        let traceparent = self.traceparent.take();
        // A run whose driver was stopped belongs to another executor, or will soon, unless it was cancelled.
        let own_lease = Some(self.lease_token).filter(|_| !self.stop.is_cancelled());
        self.executor.spawn_after(async move {
            let cancelling = async {
                if goes_on(&executor, &run_id, own_lease).await {
                    return;
                }
                let names = (correlation_id.as_str(), traceparent);
                let outcome = match request_cancellation(&executor, &agent, cancel, names).await {
                    Some(status) => status.as_u16().to_string(),
                    None => "no answer".to_owned(),
                };
                tracing::debug!(run_id, correlation_id, agent = agent.name, outcome, "a task was cancelled");
            };
            if tokio::time::timeout(CANCEL_TIME, cancelling).await.is_err() {
                tracing::debug!(
                    run_id,
                    correlation_id,
                    agent = agent.name,
                    "the agent could not be notified of a cancelled task"
                );
            }
        });
    }
}

/// Request that cancels a task of an A2A agent.
fn cancellation(route: &Route, task: &str) -> HttpRequest {
    let params = request::about(route.version, Operation::Cancel, Some(task), route.tenant.as_deref());
    route.request(&format!("cancel-{task}"), Operation::Cancel, &params, Some(task))
}

/// Requests the cancellation of a task of an A2A agent. Returns the status of the answer; `None`: there is none.
pub(in crate::executor) async fn cancel_task(
    executor: &Executor,
    agent: &Agent,
    route: &Route,
    task: &str,
    names: (&str, Option<String>),
) -> Option<StatusCode> {
    request_cancellation(executor, agent, cancellation(route, task), names).await
}

pub(super) async fn request_cancellation(
    executor: &Executor,
    agent: &Agent,
    cancel: HttpRequest,
    names: (&str, Option<String>),
) -> Option<StatusCode> {
    let request = prepare(&executor.egress, agent, cancel, names).await.ok()?;
    Some(request.send().await.ok()?.status())
}

/// Whether the run continues under another lease. If the database is down this is unknown, and the task is left alone.
async fn goes_on(executor: &Executor, run_id: &str, own_lease: Option<Uuid>) -> bool {
    let (pool, run_id) = (executor.pool.clone(), run_id.to_owned());
    db::bounded(async move { db::executions::is_held_by_others(&pool, &run_id, own_lease).await }).await.unwrap_or(true)
}
