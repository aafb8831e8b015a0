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
