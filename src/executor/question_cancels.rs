//! Tasks of agents that nobody waits for any more: the run was cancelled, or a step that asked was cancelled, timed out or
//! abandoned while its agent waited or worked on an answer. What must be cancelled is in the database, so it also happens
//! for runs that are parked, and for those of dead executors.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::{
    Executor,
    agent_call::{Cancelled, cancel_mcp_task, cancel_response, cancel_task, no_more_given_up},
    agent_question::AgentQuestion,
    agents::{Protocol, Seen},
};
use crate::{
    access::OrganizationId,
    db::{
        self,
        executions::{self, GivenUpTask},
        questions::{self, GivenUp},
    },
    id,
    input::{member, text},
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
                Ok(tasks) => at_most(tasks.into_iter().map(|task| self.cancel_question(task))).await,
                Err(error) => not_read(&error),
            }
            let pool = self.pool.clone();
            match db::bounded(async move { executions::given_up_tasks(&pool, AT_ONCE).await }).await {
                Ok(tasks) => at_most(tasks.into_iter().map(|task| self.cancel_given_up(task))).await,
                Err(error) => not_read(&error),
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.soft_stop.cancelled() => {}
            }
        }
    }

    async fn cancel_question(&self, task: GivenUp) {
        let Some((agent, question)) = AgentQuestion::from_stored(&task.question.0) else { return };
        let names = (task.run_id.as_str(), task.correlation_id.as_deref());
        let outcome = self.cancelled_at(&task.organization_id, &agent, None, &question.task_id, names).await;
        if outcome != Some(Cancelled::Done) {
            return;
        }
        let (pool, id) = (self.pool.clone(), task.id);
        if let Err(error) = db::bounded(async move { questions::cancelled(&pool, id).await }).await {
            // It is cancelled once more, which changes nothing.
            tracing::debug!(error = &error as &dyn std::error::Error, "a cancellation is not noted: {error}");
        }
    }

    async fn cancel_given_up(&self, task: GivenUpTask) {
        let of = |name| member(&task.task.0, name).and_then(text);
        let (Some(kind), Some(id)) = (of("kind"), of("id")) else { return };
        let names = (task.run_id.as_str(), task.correlation_id.as_deref());
        let outcome = self.cancelled_at(&task.organization_id, &task.agent_name, Some(&kind), &id, names).await;
        if outcome == Some(Cancelled::Done) {
            no_more_given_up(self, task.attempt_id).await;
        }
    }

    /// What the agent has answered to the cancellation of a task. With a `kind`, it is a task of an agent of that kind.
    async fn cancelled_at(
        &self,
        organization: &str,
        agent: &str,
        kind: Option<&str>,
        task_id: &str,
        (run_id, correlation_id): (&str, Option<&str>),
    ) -> Option<Cancelled> {
        let correlation_id = id::correlation_id(correlation_id);
        let request = self.request_cancellation(organization, (agent, kind), task_id, &correlation_id);
        let answer = tokio::time::timeout(CANCEL_TIME, request).await.ok().flatten();
        tracing::debug!(run_id, agent, outcome = ?answer, "a task that was given up is cancelled");
        answer
    }

    /// The answer to a cancellation; `None`: there is none, or the agent cannot be called any more.
    async fn request_cancellation(
        &self,
        organization: &str,
        (agent, kind): (&str, Option<&str>),
        task_id: &str,
        correlation_id: &str,
    ) -> Option<Cancelled> {
        let organization = OrganizationId::stored(organization);
        let seen = Seen { since: self.clock.instant(), version: None };
        let agent = self.agents.find(&organization, agent, seen).await.ok()?.ok()?;
        let names = || (correlation_id, None);
        let is_of = |other: &str| kind.is_none_or(|kind| kind == other);
        let config = match &agent.protocol {
            Protocol::A2a(config) if is_of("a2a") => config,
            // There is nothing to cancel.
            Protocol::Mcp(_) if task_id.is_empty() => return Some(Cancelled::Done),
            Protocol::Mcp(_) if is_of("mcp") => return cancel_mcp_task(self, &agent, task_id, names()).await,
            Protocol::Responses(_) if kind == Some("responses") => {
                return cancel_response(self, &agent, task_id, names()).await;
            }
            _ => return None,
        };
        let route = self.cards.route(&agent, &organization, config).await.ok()?;
        let answer = cancel_task(self, &agent, &route, task_id, names()).await;
        if answer != Some(Cancelled::UnknownVersion) || !route.may_fall_back(config) {
            return answer;
        }
        let route = self.cards.other_route(&agent, config, &route).ok()?;
        cancel_task(self, &agent, &route, task_id, names()).await
    }
}

/// Awaits all of these, a few at a time.
async fn at_most(cancelling: impl Iterator<Item = impl Future<Output = ()>>) {
    stream::iter(cancelling).buffer_unordered(CONCURRENT).collect::<()>().await;
}

fn not_read(error: &db::Error) {
    tracing::debug!(error = error as &dyn std::error::Error, "tasks that were given up could not be read: {error}");
}
