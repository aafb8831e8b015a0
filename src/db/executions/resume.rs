//! Step history of a run, for the executor that resumes it.

use serde_json::value::RawValue;
use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;

use super::INTERRUPTED;
use crate::db::Error;

/// Step row of a run that was started before.
#[derive(Debug, sqlx::FromRow)]
pub struct EarlierStep {
    /// Id of the row; empty if there is none.
    pub id: String,
    /// Step path: the id on the main chain, otherwise the full path.
    pub path: String,
    /// Status before the call. It is free text that other programs write too.
    pub status: String,
    /// Its executor died or stopped while the step ran.
    pub was_interrupted: bool,
    /// Name of the agent that it called; empty if it called none.
    pub agent_name: String,
    /// Id of the directly enclosing block.
    pub parent_step_id: Option<String>,
    /// Stored bytes of input and output, possibly compressed.
    pub bytes: i64,
    /// Error of a failed attempt.
    pub error_message: Option<String>,
    /// Seconds since its begin.
    pub age_secs: f64,
    /// Whether it began after the latest claim or takeover.
    pub is_of_this_claim: bool,
    /// Whether it began after the retry that named a step to resume from; true without such a retry.
    pub is_after_retry: bool,
    /// Step to resume from, the same in all rows.
    pub resume_from_step: Option<String>,
}

/// Reads the step rows of a run that the caller owns, oldest first. For an `interrupted` run, open rows are closed as
/// interrupted, except those that wait for an external event. Without step rows, the result is one row without a path,
/// which contains the step to resume from. [`outputs`] reads the outputs. Rows beyond the limit are omitted.
pub async fn resume(
    db: impl PgExecutor<'_>,
    run_id: &str,
    lease_token: Uuid,
    interrupted: bool,
    limit: i64,
) -> Result<Vec<EarlierStep>, Error> {
    let sql = "
        WITH held AS (
            UPDATE workflow_runs SET parked_at = NULL WHERE run_id = $1 AND lease_token = $2 AND status = 'RUNNING'
            RETURNING run_id, resume_from_step, resumed_at, claimed_at
        ), closed AS (
            UPDATE step_executions s SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC',
                error_message = $4
            FROM held WHERE $3 AND s.run_id = held.run_id AND s.status = 'RUNNING'
        )
        SELECT coalesce(id, '') AS id, coalesce(place, step_id, '') AS path, coalesce(status, '') AS status,
            coalesce(status = 'RUNNING' OR error_message = $4, false) AS was_interrupted,
            coalesce(agent_name, '') AS agent_name, parent_step_id, error_message,
            (coalesce(pg_column_size(input_data), 0) + coalesce(pg_column_size(output_data), 0))::bigint AS bytes,
            coalesce(extract(epoch FROM now() AT TIME ZONE 'UTC' - started_at), 0)::float8 AS age_secs,
            coalesce(started_at >= claimed_at, false) AS is_of_this_claim,
            coalesce(started_at >= resumed_at, true) AS is_after_retry, resume_from_step
        FROM held LEFT JOIN step_executions s USING (run_id) ORDER BY started_at, id LIMIT $5";
    Ok(sqlx::query_as(sql)
        .bind(run_id)
        .bind(lease_token)
        .bind(interrupted)
        .bind(INTERRUPTED)
        .bind(limit)
        .fetch_all(db)
        .await?)
}

/// Outputs of step rows, by row id.
pub async fn outputs(db: impl PgExecutor<'_>, ids: &[String]) -> Result<Vec<(String, Json<Box<RawValue>>)>, Error> {
    let sql = "SELECT id, output_data FROM step_executions WHERE id = ANY ($1) AND output_data IS NOT NULL";
    Ok(sqlx::query_as(sql).bind(ids).fetch_all(db).await?)
}
