//! Tasks of agents whose questions nobody needs answered any more: a step was cancelled, timed out or abandoned while its
//! agent waited or worked on an answer. What must be cancelled is in the database, so it also happens for runs that are
//! parked, and for those of dead executors.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::{
    Executor,
    agent_call::{Cancelled, cancel_mcp_task, cancel_task},
    agent_question::AgentQuestion,
    agents::{Protocol, Seen},
};
use crate::{
    access::OrganizationId,
    db::{
        self,
        questions::{self, GivenUp},
    },
    id,
};

/// Interval of the looks for such tasks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of tasks taken at once, and of concurrent requests.
const AT_ONCE: i64 = 20;
const CONCURRENT: usize = 5;
/// Time-out of a cancellation.
const CANCEL_TIME: Duration = Duration::from_secs(5);

impl Executor {
    /// Cancels tasks until the soft stop.
    pub(super) async fn cancel_given_up_tasks(self) {
        while !self.soft_stop.is_cancelled() {
            let pool = self.pool.clone();
            match db::bounded(async move { questions::given_up(&pool, AT_ONCE).await }).await {
                Ok(tasks) => {
                    let cancelling = stream::iter(tasks).map(|task| self.cancel_given_up(task));
                    cancelling.buffer_unordered(CONCURRENT).collect::<()>().await;
                }
                Err(error) => tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "tasks that were given up could not be read: {error}"
                ),
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.soft_stop.cancelled() => {}
            }
        }
    }

    async fn cancel_given_up(&self, task: GivenUp) {
        let run_id = &task.run_id;
        let answer = tokio::time::timeout(CANCEL_TIME, self.request_cancellation(&task)).await.ok().flatten();
        tracing::debug!(run_id, outcome = ?answer, "a task whose question was given up is cancelled");
        if answer != Some(Cancelled::Done) {
            return;
        }
        let (pool, id) = (self.pool.clone(), task.id);
        if let Err(error) = db::bounded(async move { questions::cancelled(&pool, id).await }).await {
            // It is cancelled once more, which changes nothing.
            tracing::debug!(error = &error as &dyn std::error::Error, "a cancellation is not noted: {error}");
        }
    }

    /// The answer to a cancellation; `None`: there is none, or the agent cannot be called any more.
    async fn request_cancellation(&self, task: &GivenUp) -> Option<Cancelled> {
        let (agent_name, question) = AgentQuestion::from_stored(&task.question.0)?;
        let organization = OrganizationId::stored(&task.organization_id);
        let seen = Seen { since: self.clock.instant(), version: None };
        let agent = self.agents.find(&organization, &agent_name, seen).await.ok()?.ok()?;
        let correlation_id = id::correlation_id(task.correlation_id.as_deref());
        let config = match &agent.protocol {
            Protocol::A2a(config) => config,
            // There is nothing to cancel.
            Protocol::Mcp(_) if question.task_id.is_empty() => return Some(Cancelled::Done),
            Protocol::Mcp(_) => return cancel_mcp_task(self, &agent, &question.task_id, (&correlation_id, None)).await,
            _ => return None,
        };
        let route = self.cards.route(&agent, &organization, config).await.ok()?;
        let answer = cancel_task(self, &agent, &route, &question.task_id, (&correlation_id, None)).await;
        if answer != Some(Cancelled::UnknownVersion) || !route.may_fall_back(config) {
            return answer;
        }
        let route = self.cards.other_route(&agent, config, &route).ok()?;
        cancel_task(self, &agent, &route, &question.task_id, (&correlation_id, None)).await
    }
}
