//! Parked runs: released while they wait, and taken again when an event for them arrives.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Limits, TakenOver};
use crate::db::Error;

/// Maximum number of runs that one statement makes due.
const MAX_WOKEN: usize = 1000;

/// Condition of a run that may be taken.
/// `IS TRUE` hides the status from its index: with many dead entries, the index of parked runs is faster.
const CLAIMABLE: &str =
    "r.paused_at IS NULL AND r.executor_id IS NULL AND (r.status IN ('PENDING', 'RUNNING')) IS TRUE";

/// Parked runs with a pending event; those of them that are [`CLAIMABLE`] may be taken.
const WOKEN: &str =
    "SELECT r.run_id FROM run_wakes w JOIN workflow_runs r ON r.run_id = w.run_id WHERE r.wake_at IS NOT NULL";

/// Whether there is a run for [`wake`].
pub async fn is_any_awake(db: impl PgExecutor<'_>) -> Result<bool, Error> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM workflow_runs r WHERE wake_at <= now() AND {CLAIMABLE})
             OR EXISTS ({WOKEN} AND {CLAIMABLE})"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(db).await?)
}

/// Takes parked runs that are due or have a pending event: organisations in turn, within one the higher priority first,
/// within a priority the workflows in turn. The time for which a run was parked does not count as execution time.
pub async fn wake(
    conn: &mut PgConnection,
    executor_id: Uuid,
    limit: i64,
    limits: &Limits,
) -> Result<Vec<TakenOver>, Error> {
    // An event makes its parked run due. The rows of `run_wakes` have no other purpose.
    let sql = format!(
        "WITH woken AS MATERIALIZED (
            SELECT run_id FROM workflow_runs
            WHERE run_id IN ({WOKEN} AND {CLAIMABLE} LIMIT {MAX_WOKEN}) AND wake_at IS NOT NULL
            FOR NO KEY UPDATE SKIP LOCKED
        ), deleted AS (
            DELETE FROM run_wakes w USING woken WHERE w.run_id = woken.run_id
        )
        UPDATE workflow_runs r SET wake_at = least(wake_at, now()) FROM woken WHERE r.run_id = woken.run_id"
    );
    sqlx::query(AssertSqlSafe(sql)).execute(&mut *conn).await?;
    let sql = format!(
        "
        WITH RECURSIVE queue AS (
            -- Workflows and priorities of the parked runs, each found by the index alone.
            (SELECT organization_id, workflow_id, priority FROM workflow_runs
             WHERE wake_at IS NOT NULL AND paused_at IS NULL
             ORDER BY organization_id, workflow_id, priority LIMIT 1)
            UNION ALL SELECT next.* FROM queue CROSS JOIN LATERAL (
                SELECT organization_id, workflow_id, priority FROM workflow_runs r
                WHERE wake_at IS NOT NULL AND paused_at IS NULL
                    AND (r.organization_id, r.workflow_id, r.priority)
                        > (queue.organization_id, queue.workflow_id, queue.priority)
                ORDER BY organization_id, workflow_id, priority LIMIT 1) AS next
        ), awake AS MATERIALIZED (
            -- The candidates per queue are limited, so that the cost does not depend on the number of waiting runs.
            -- Other processes take some of them at the same time.
            SELECT due.run_id, queue.*, due.wake_at FROM queue CROSS JOIN LATERAL (
                SELECT run_id, wake_at FROM workflow_runs r
                WHERE r.organization_id = queue.organization_id AND r.workflow_id = queue.workflow_id
                    AND r.priority = queue.priority AND wake_at <= now() AND {CLAIMABLE}
                ORDER BY r.wake_at LIMIT 4 * $2) AS due
        ), turn AS (
            -- Organisations in turn, and within each its workflows. The first one is random: when slots become free one
            -- by one, every choice is a first one.
            SELECT run_id, row_number() OVER (ORDER BY turn, random()) AS turn
            FROM (
                SELECT run_id, organization_id,
                    row_number() OVER (PARTITION BY organization_id ORDER BY priority DESC, turn, random()) AS turn
                FROM (
                    SELECT run_id, organization_id, priority, row_number() OVER (
                        PARTITION BY organization_id, workflow_id, priority ORDER BY wake_at, run_id) AS turn
                    FROM awake) AS of_workflow) AS of_organization
                LEFT JOIN unnest($3::text[], $4::bigint[]) AS known (organization_id, most) USING (organization_id)
            WHERE turn <= coalesce(most, $5)
            ORDER BY turn LIMIT 4 * $2
        ), taken AS (
            SELECT r.run_id, r.status FROM workflow_runs r JOIN turn USING (run_id) WHERE wake_at IS NOT NULL AND {CLAIMABLE}
            ORDER BY turn.turn LIMIT $2 FOR NO KEY UPDATE OF r SKIP LOCKED
        )
        UPDATE workflow_runs r
        -- `resume` clears parked_at: until then the run has begun nothing new.
        SET status = 'RUNNING', executor_id = $1, lease_token = gen_random_uuid(), wake_at = NULL,
            updated_at = now() AT TIME ZONE 'UTC',
            claimed_at = CASE WHEN r.status = 'PENDING' THEN now() AT TIME ZONE 'UTC' ELSE claimed_at END,
            execution_started_at = CASE WHEN r.status = 'PENDING' THEN now() AT TIME ZONE 'UTC'
                ELSE execution_started_at + (now() - coalesce(parked_at, now())) END
        FROM taken WHERE r.run_id = taken.run_id
        RETURNING r.run_id, r.lease_token, r.workflow_id, r.workflow_name, r.correlation_id, r.traceparent,
            r.input_data::text AS input_data, r.limits::text AS limits,
            r.organization_id, coalesce(r.workflow_plan,
                (SELECT workflow_data FROM workflow_definitions d
                 WHERE d.name = r.workflow_name AND d.version = r.workflow_version
                    AND d.organization_id = r.organization_id))::text AS workflow_plan, true AS is_parked,
            taken.status = 'PENDING' AS was_pending, r.parent_run_id IS NOT NULL AS is_sub_run, r.takeovers,
            coalesce(extract(epoch FROM now() AT TIME ZONE 'UTC' - execution_started_at), 0)::float8 AS elapsed_secs"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(executor_id)
        .bind(limit)
        .bind(&limits.organization_id)
        .bind(&limits.most)
        .bind(limits.of_others)
        .fetch_all(conn)
        .await?)
}

/// Parks a run that the caller owns until `wake_at` or an event. Returns false if the caller does not own it any more,
/// also when an earlier call parked it and its answer was lost.
pub async fn park(
    db: impl PgExecutor<'_>,
    run_id: &str,
    lease_token: Uuid,
    wake_at: Option<DateTime<Utc>>,
) -> Result<bool, Error> {
    let sql = "UPDATE workflow_runs SET executor_id = NULL, lease_token = NULL, parked_at = now(), takeovers = 0,
                   updated_at = now() AT TIME ZONE 'UTC',
                   -- The caller's clock may be behind: this prevents an immediate wake-up.
                   wake_at = greatest(coalesce($3, 'infinity'::timestamptz), now() + interval '0.2 s')
               WHERE run_id = $1 AND lease_token = $2 AND status = 'RUNNING'";
    let parked = sqlx::query(sql).bind(run_id).bind(lease_token).bind(wake_at).execute(db).await?;
    Ok(parked.rows_affected() == 1)
}

/// Deletes pending events of runs that have ended.
pub async fn forget_wakes(db: impl PgExecutor<'_>) -> Result<(), Error> {
    let sql = "DELETE FROM run_wakes w WHERE NOT EXISTS
                   (SELECT 1 FROM workflow_runs r WHERE r.run_id = w.run_id AND r.status IN ('PENDING', 'RUNNING'))";
    sqlx::query(sql).execute(db).await?;
    Ok(())
}
