//! Tasks that agents of some kinds create for an attempt. They are kept, so that the attempt that repeats this one follows
//! the task instead of creating another.

use serde_json::value::RawValue;
use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;

use super::Error;

/// Keeps the task of an attempt, under the lease of its run.
pub async fn keep_agent_task(
    db: impl PgExecutor<'_>,
    run_id: &str,
    lease_token: Uuid,
    attempt_id: &str,
    task: &RawValue,
) -> Result<(), Error> {
    let sql = "UPDATE step_executions s SET agent_task = $4 FROM workflow_runs r
               WHERE s.id = $3 AND s.run_id = $1 AND r.run_id = s.run_id AND r.lease_token = $2";
    sqlx::query(sql).bind(run_id).bind(lease_token).bind(attempt_id).bind(Json(task)).execute(db).await?;
    Ok(())
}

/// The task of an attempt, if one was kept.
pub async fn agent_task(
    db: impl PgExecutor<'_>,
    run_id: &str,
    attempt_id: &str,
) -> Result<Option<Json<Box<RawValue>>>, Error> {
    let sql = "SELECT agent_task FROM step_executions WHERE id = $2 AND run_id = $1";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(attempt_id).fetch_optional(db).await?.flatten())
}

/// The input of an attempt.
pub async fn input(
    db: impl PgExecutor<'_>,
    run_id: &str,
    attempt_id: &str,
) -> Result<Option<Json<Box<RawValue>>>, Error> {
    let sql = "SELECT input_data FROM step_executions WHERE id = $2 AND run_id = $1";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(attempt_id).fetch_optional(db).await?.flatten())
}

/// Task of a cancelled run, which has to be cancelled at its agent.
#[derive(Debug, sqlx::FromRow)]
pub struct GivenUpTask {
    /// Attempt at which the task is kept.
    pub attempt_id: String,
    /// Its run.
    pub run_id: String,
    /// Organisation of the run.
    pub organization_id: String,
    /// Correlation id of the run.
    pub correlation_id: Option<String>,
    /// Name of the agent.
    pub agent_name: String,
    /// The task, as it is kept.
    pub task: Json<Box<RawValue>>,
}

/// Takes tasks that have to be cancelled, the oldest first. One whose cancellation is not noted by [`task_cancelled`] is
/// returned again after half a minute, up to five times.
pub async fn given_up_tasks(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<GivenUpTask>, Error> {
    let sql = "
        WITH due AS MATERIALIZED (
            SELECT attempt_id, cancels FROM given_up_tasks WHERE cancel_at <= now()
            ORDER BY cancel_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), tried AS (
            DELETE FROM given_up_tasks t USING due WHERE t.attempt_id = due.attempt_id AND due.cancels >= 5
        )
        UPDATE given_up_tasks t SET cancel_at = now() + interval '30 s', cancels = t.cancels + 1
        FROM due WHERE t.attempt_id = due.attempt_id AND due.cancels < 5
        RETURNING t.attempt_id, t.run_id, t.organization_id, t.correlation_id, t.agent_name, t.task";
    Ok(sqlx::query_as(sql).bind(limit).fetch_all(db).await?)
}

/// Notes that the agent has heard of the cancellation.
pub async fn task_cancelled(db: impl PgExecutor<'_>, attempt_id: &str) -> Result<(), Error> {
    sqlx::query("DELETE FROM given_up_tasks WHERE attempt_id = $1").bind(attempt_id).execute(db).await?;
    Ok(())
}
