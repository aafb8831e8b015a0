//! What the API shows of flow control, and what others ask about it.

use sqlx::PgExecutor;

use crate::{db::Error, timestamp::Timestamp};

/// State of a run after a decision.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns of a run")]
pub struct FlowState {
    pub run_id: String,
    pub status: String,
    pub flow_stage: Option<String>,
    pub flow_state: Option<String>,
    pub flow_key: Option<String>,
    pub error_message: Option<String>,
}

/// State of these runs.
pub async fn states(db: impl PgExecutor<'_>, run_ids: &[String]) -> Result<Vec<FlowState>, Error> {
    let sql = "SELECT run_id, status, flow_stage, flow_state, flow_key, error_message FROM workflow_runs
               WHERE run_id = ANY ($1)";
    Ok(sqlx::query_as(sql).bind(run_ids).fetch_all(db).await?)
}

/// Whether this run, or one around it, has a slot of the concurrency key. A run inside of it does not wait for
/// another one.
pub async fn is_held_by_family(db: impl PgExecutor<'_>, run_id: &str, name: &str, key: &str) -> Result<bool, Error> {
    let sql = "
        WITH RECURSIVE ancestor AS (
            SELECT run_id, parent_run_id, workflow_name, flow_stage, flow_key, flow_state FROM workflow_runs WHERE run_id = $1
            UNION ALL
            SELECT r.run_id, r.parent_run_id, r.workflow_name, r.flow_stage, r.flow_key, r.flow_state
            FROM ancestor JOIN workflow_runs r ON r.run_id = ancestor.parent_run_id
        )
        SELECT EXISTS (SELECT FROM ancestor WHERE workflow_name = $2 AND flow_stage = 'concurrency' AND flow_key = $3
            AND flow_state = 'admitted')";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(name).bind(key).fetch_one(db).await?)
}

/// Reason why a run is held.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Waiting {
    /// Stage of flow control that holds it.
    pub stage: String,
    /// Runs of its concurrency key that have a slot, counted up to the limit.
    pub running: i64,
    /// Runs of its key that come before it, without paused ones, counted up to [`MAX_AHEAD`].
    pub ahead: i64,
    /// Limit of the stage, if there is one.
    pub most: Option<i32>,
    /// Period of that limit, for a throttle.
    pub period_secs: Option<i32>,
    /// When it goes on, for a debounce.
    pub due_at: Option<Timestamp>,
}

/// Number of runs before a held one that are counted.
pub const MAX_AHEAD: i64 = 1000;

/// Why a run is held; `None`: it is not.
pub async fn waiting(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<Waiting>, Error> {
    let sql = "
        SELECT of.flow_stage AS stage, (of.flow ->> 'limit')::int AS most, (of.flow ->> 'period_seconds')::int AS period_secs,
            of.flow_due AT TIME ZONE 'UTC' AS due_at,
            (SELECT count(*) FROM (
                SELECT FROM workflow_runs r
                WHERE of.flow_stage = 'concurrency' AND r.organization_id = of.organization_id
                    AND r.workflow_name = of.workflow_name AND r.flow_stage = 'concurrency' AND r.flow_key = of.flow_key
                    AND r.flow_state = 'admitted' AND r.status IN ('PENDING', 'RUNNING')
                LIMIT coalesce((of.flow ->> 'limit')::int, 1000)) AS slot) AS running,
            (SELECT count(*) FROM (
                SELECT FROM workflow_runs r
                WHERE of.flow_stage <> 'debounce' AND r.organization_id = of.organization_id
                    AND r.workflow_name = of.workflow_name AND r.flow_stage = of.flow_stage AND r.flow_key = of.flow_key
                    AND r.flow_state IN ('arrived', 'queued') AND r.status IN ('PENDING', 'RUNNING')
                    AND r.paused_at IS NULL
                    AND (r.priority > of.priority
                        OR (r.priority = of.priority AND (r.created_at, r.run_id) < (of.created_at, of.run_id)))
                LIMIT $2) AS before) AS ahead
        FROM (
            SELECT r.*, (SELECT flow_control -> r.flow_stage FROM workflow_definitions d
                WHERE d.name = r.workflow_name AND d.organization_id = r.organization_id
                ORDER BY version DESC LIMIT 1) AS flow
            FROM workflow_runs r
            WHERE r.run_id = $1 AND r.status = 'PENDING' AND r.flow_state IN ('arrived', 'queued')
        ) AS of";
    Ok(sqlx::query_as(sql).bind(run_id).bind(MAX_AHEAD).fetch_optional(db).await?)
}
