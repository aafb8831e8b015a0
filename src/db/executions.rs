//! Executor writes to runs and steps. They are fenced by the lease: a write contains the `lease_token` of its claim,
//! and changes nothing once the run was cancelled, taken over or ended.

mod change;
mod claim;
mod park;
mod resume;
mod task;
mod write;

use sqlx::PgExecutor;
use uuid::Uuid;

pub use self::{
    change::{
        AgentCall, AgentStep, Change, EndedAttempt, FinishedRun, NestedStep, ObservedRun, RunFailure, StepBegin,
        StepEnd,
    },
    claim::{ClaimBatch, Claimed, Limits, TakenOver, claim, take_over},
    park::{forget_wakes, is_any_awake, park, wake},
    resume::{EarlierStep, outputs, resume},
    task::{GivenUpTask, agent_task, given_up_tasks, input, keep_agent_task, task_cancelled},
    write::{LeaseState, Locked, prepare_session, write},
};
use super::Error;

/// Makes a statement write its own entries to the runs' logs instead of the triggers. The changes depend on rows that
/// are read together with this one, so this comes first.
const RECORDS_ITSELF: &str = "session AS MATERIALIZED (SELECT set_config('workflow_api.records', 'itself', true))";

/// Error of an attempt whose executor died or stopped.
pub(super) const INTERRUPTED: &str = "interrupted: the executor stopped while the step ran";

/// Whether the run is RUNNING under another lease than this one (under any, if `None`).
pub async fn is_held_by_others(db: impl PgExecutor<'_>, run_id: &str, lease: Option<Uuid>) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM workflow_runs
                   WHERE run_id = $1 AND status = 'RUNNING' AND lease_token IS DISTINCT FROM $2)";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(lease).fetch_one(db).await?)
}

/// State of a claim.
#[derive(Debug, sqlx::FromRow)]
pub struct ClaimState {
    /// Id of the run.
    pub run_id: String,
    /// The lease is lost: the run was cancelled, ended or taken over.
    pub is_lost: bool,
    /// The run is paused: no further step may begin.
    pub is_paused: bool,
    /// An event for the run is pending.
    pub is_woken: bool,
}

/// Those of these claims whose state has changed.
pub async fn notice(
    db: impl PgExecutor<'_>,
    run_ids: &[String],
    lease_tokens: &[Uuid],
) -> Result<Vec<ClaimState>, Error> {
    let sql = "
        SELECT * FROM (
            SELECT c.run_id, r.run_id IS NULL AS is_lost, r.paused_at IS NOT NULL AS is_paused,
                EXISTS (SELECT 1 FROM run_wakes w WHERE w.run_id = c.run_id) AS is_woken
            FROM unnest($1::text[], $2::uuid[]) AS c (run_id, lease_token)
                LEFT JOIN workflow_runs r ON r.run_id = c.run_id AND r.lease_token = c.lease_token
                    -- Found by the key: the index by status is full of dead entries.
                    AND (r.status = 'RUNNING') IS TRUE
        ) AS claim WHERE is_lost OR is_paused OR is_woken";
    Ok(sqlx::query_as(sql).bind(run_ids).bind(lease_tokens).fetch_all(db).await?)
}

/// Cancels runs because of a message alone; a trigger closes their open steps. Returns the ids without a row.
pub async fn cancel(
    db: impl PgExecutor<'_>,
    run_ids: &[String],
    by: &[Option<String>],
    reasons: &[Option<String>],
) -> Result<Vec<String>, Error> {
    let sql = "
        WITH message AS MATERIALIZED (
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS m (run_id, cancelled_by, reason)
        ), cancelled AS (
            UPDATE workflow_runs r
            SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
                cancelled_by = left(coalesce(m.cancelled_by, 'system'), 255),
                error_message = coalesce('Cancelled: ' || nullif(m.reason, ''), r.error_message),
                executor_id = NULL, lease_token = NULL, wake_at = NULL
            FROM message m WHERE r.run_id = m.run_id AND r.status IN ('PENDING', 'RUNNING')
        )
        SELECT run_id FROM message m WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = m.run_id)";
    Ok(sqlx::query_scalar(sql).bind(run_ids).bind(by).bind(reasons).fetch_all(db).await?)
}
