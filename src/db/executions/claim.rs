//! Claims of requests from Kafka, and takeovers of runs from dead executors.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgExecutor};
use uuid::Uuid;

use super::{INTERRUPTED, RECORDS_ITSELF};
use crate::db::{Error, processes::DEAD_AFTER_SECS};

/// Requests to claim, one entry per run, each run once; see [`claim`].
#[derive(Default)]
#[expect(missing_docs, reason = "each is a column of workflow_runs or a member of the message")]
pub struct ClaimBatch {
    pub run_id: Vec<String>,
    pub lease_token: Vec<Uuid>,
    pub event_id: Vec<Option<Uuid>>,
    pub workflow_id: Vec<String>,
    pub workflow_name: Vec<String>,
    pub plan: Vec<String>,
    pub input: Vec<Option<String>>,
    pub correlation_id: Vec<Option<String>>,
    pub traceparent: Vec<Option<String>>,
    pub sent_at: Vec<Option<DateTime<Utc>>>,
}

/// Claimed run, which the caller now owns.
#[derive(Debug, sqlx::FromRow)]
pub struct Claimed {
    /// Id of the run.
    pub run_id: String,
    /// Id of the workflow.
    pub workflow_id: String,
    /// Name of the workflow.
    pub workflow_name: String,
    /// Correlation id of the request that started the run.
    pub correlation_id: Option<String>,
    /// `traceparent` of the same request, if it had one.
    pub traceparent: Option<String>,
    /// Input, if the message has none.
    pub input_data: Option<String>,
    /// Organisation of the run.
    pub organization_id: String,
    /// Whether the run has step rows because it was started before.
    pub has_steps: bool,
}

/// Claims the runs that are PENDING and inserts missing rows, in one statement. A run that is not in the answer was
/// claimed before, is paused, has ended, or expects another message (its retry created a new `event_id`). Repeating the
/// call with the same tokens after a lost answer returns the same runs.
pub async fn claim(db: impl PgExecutor<'_>, executor_id: Uuid, batch: &ClaimBatch) -> Result<Vec<Claimed>, Error> {
    let sql = format!(
        "
        WITH {RECORDS_ITSELF}, request AS MATERIALIZED (
            SELECT m.* FROM session, unnest($2::text[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::timestamptz[], $11::text[])
                AS m (run_id, lease_token, event_id, workflow_id, workflow_name, plan, input, correlation_id, sent_at,
                    traceparent)
        ), claimed AS (
            UPDATE workflow_runs r
            SET status = 'RUNNING', executor_id = $1, lease_token = m.lease_token,
                updated_at = now() AT TIME ZONE 'UTC', execution_started_at = now() AT TIME ZONE 'UTC', wake_at = NULL,
                parked_at = NULL, takeovers = 0, claimed_at = now() AT TIME ZONE 'UTC',
                -- For a run without a stored definition, the message is the only source of the plan.
                workflow_plan = CASE WHEN r.workflow_version IS NULL THEN m.plan::jsonb ELSE r.workflow_plan END,
                input_data = CASE WHEN r.workflow_version IS NULL AND m.input IS NOT NULL
                    THEN m.input::jsonb ELSE r.input_data END,
                correlation_id = coalesce(r.correlation_id, m.correlation_id),
                traceparent = CASE WHEN r.workflow_version IS NULL THEN coalesce(r.traceparent, m.traceparent)
                    ELSE r.traceparent END
            FROM request m
            WHERE r.run_id = m.run_id AND (r.lease_token = m.lease_token OR (r.status = 'PENDING' AND r.paused_at IS NULL
                AND (r.execution_event_id = m.event_id OR r.execution_event_id IS NULL OR m.event_id IS NULL)))
            RETURNING r.run_id, r.workflow_id, r.workflow_name, r.correlation_id, r.traceparent,
                CASE WHEN m.input IS NULL THEN r.input_data::text END AS input_data, r.organization_id,
                r.resume_from_step IS NOT NULL
                    OR EXISTS (SELECT 1 FROM step_executions s WHERE s.run_id = r.run_id) AS has_steps
        ), inserted AS (
            INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, input_data, created_at, updated_at,
                execution_started_at, claimed_at, workflow_plan, correlation_id, traceparent, executor_id, lease_token)
            SELECT run_id, workflow_id, workflow_name, 'RUNNING', coalesce(input, '{{}}')::jsonb,
                now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', plan::jsonb,
                correlation_id, traceparent, $1, lease_token
            FROM request m WHERE NOT EXISTS (SELECT 1 FROM workflow_runs r WHERE r.run_id = m.run_id)
            ON CONFLICT (run_id) DO NOTHING
            RETURNING run_id, workflow_id, workflow_name, correlation_id, traceparent, NULL::text AS input_data,
                organization_id, false AS has_steps
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, at)
            SELECT run_id, kind, at
            FROM request JOIN (SELECT run_id FROM claimed UNION ALL SELECT run_id FROM inserted) AS held USING (run_id),
                LATERAL (VALUES ('run.dispatched', sent_at), ('run.started', clock_timestamp())) AS event (kind, at)
            -- State before the statement: a repeated claim was recorded the first time.
            WHERE at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM workflow_runs r
                WHERE r.run_id = request.run_id AND r.lease_token = request.lease_token)
            ORDER BY kind
        )
        SELECT * FROM claimed UNION ALL SELECT * FROM inserted"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(executor_id)
        .bind(&batch.run_id)
        .bind(&batch.lease_token)
        .bind(&batch.event_id)
        .bind(&batch.workflow_id)
        .bind(&batch.workflow_name)
        .bind(&batch.plan)
        .bind(&batch.input)
        .bind(&batch.correlation_id)
        .bind(&batch.sent_at)
        .bind(&batch.traceparent)
        .fetch_all(db)
        .await?)
}

/// Maximum number of runs to take per organisation.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Organisations with a limit of their own.
    pub organization_id: Vec<String>,
    /// Limit of each of these organisations.
    pub most: Vec<i64>,
    /// Limit of every other organisation.
    pub of_others: i64,
}

impl Limits {
    /// No limit.
    #[must_use]
    pub fn none() -> Self {
        Self { organization_id: Vec::new(), most: Vec::new(), of_others: i64::MAX }
    }
}

/// Run that was taken over from a dead executor, or that had no owner.
#[derive(Debug, sqlx::FromRow)]
pub struct TakenOver {
    /// Id of the run.
    pub run_id: String,
    /// Lease token of this claim.
    pub lease_token: Uuid,
    /// Id of the workflow.
    pub workflow_id: String,
    /// Name of the workflow.
    pub workflow_name: String,
    /// Correlation id of the request that started the run.
    pub correlation_id: Option<String>,
    /// `traceparent` of the same request, if it had one.
    pub traceparent: Option<String>,
    /// Organisation of the run.
    pub organization_id: String,
    /// Input as JSON text.
    pub input_data: Option<String>,
    /// Plan that the run is pinned to, as JSON text; `None` if it was deleted.
    pub workflow_plan: Option<String>,
    /// Execution time of the run so far, in seconds.
    pub elapsed_secs: f64,
    /// Whether the run was parked and not continued since.
    pub is_parked: bool,
    /// Number of takeovers from dead executors since the last progress.
    pub takeovers: i16,
}

/// Takes RUNNING runs whose executor is dead, and those of `executor_id` itself that it does not know (the answer to a
/// claim was lost, and its message too). Runs without an executor belong to the reference executor.
pub async fn take_over(
    db: impl PgExecutor<'_>,
    executor_id: Uuid,
    known: &[String],
    limit: i64,
    limits: &Limits,
) -> Result<Vec<TakenOver>, Error> {
    let sql = "
        WITH orphan AS (
            SELECT run_id, lease_token, organization_id, updated_at,
                row_number() OVER (PARTITION BY organization_id ORDER BY updated_at) AS turn
            FROM workflow_runs r
            WHERE status = 'RUNNING' AND executor_id IS NOT NULL AND CASE WHEN executor_id = $1
                -- The executor may not have received the answer of a recent claim yet.
                THEN run_id <> ALL ($2) AND updated_at < now() AT TIME ZONE 'UTC' - interval '10 s'
                ELSE NOT EXISTS (SELECT 1 FROM processes p WHERE p.id = r.executor_id
                    AND p.heartbeat_at >= now() - make_interval(secs => $4))
            END
        ), lost AS (
            SELECT r.run_id FROM orphan JOIN workflow_runs r ON r.run_id = orphan.run_id
                    -- A faster process has set another token.
                    AND r.lease_token = orphan.lease_token AND r.status = 'RUNNING'
                LEFT JOIN unnest($6::text[], $7::bigint[]) AS known (organization_id, most)
                    ON known.organization_id = orphan.organization_id
            WHERE turn <= coalesce(most, $8)
            ORDER BY turn, orphan.updated_at LIMIT $3 FOR NO KEY UPDATE OF r SKIP LOCKED
        )
        UPDATE workflow_runs r
        SET executor_id = $1, lease_token = gen_random_uuid(), updated_at = now() AT TIME ZONE 'UTC',
            claimed_at = now() AT TIME ZONE 'UTC',
            -- A run that has ended an attempt since its claim has made progress. This is checked only if it was taken
            -- over before.
            takeovers = 1 + CASE WHEN r.takeovers > 0 AND EXISTS (SELECT FROM step_executions s
                    WHERE s.run_id = r.run_id AND s.completed_at >= r.claimed_at
                        AND s.error_message IS DISTINCT FROM $5) THEN 0 ELSE r.takeovers END
        FROM lost WHERE r.run_id = lost.run_id
        RETURNING r.run_id, r.lease_token, r.workflow_id, r.workflow_name, r.correlation_id, r.traceparent,
            r.organization_id,
            r.input_data::text AS input_data,
            coalesce(r.workflow_plan, (SELECT workflow_data FROM workflow_definitions d
                WHERE d.name = r.workflow_name AND d.version = r.workflow_version
                    AND d.organization_id = r.organization_id))::text AS workflow_plan,
            parked_at IS NOT NULL AS is_parked, r.takeovers,
            -- An older release that does not record the start claimed the run: the time counts from now on.
            coalesce(extract(epoch FROM now() AT TIME ZONE 'UTC' - execution_started_at), 0)::float8 AS elapsed_secs";
    Ok(sqlx::query_as(sql)
        .bind(executor_id)
        .bind(known)
        .bind(limit)
        .bind(DEAD_AFTER_SECS)
        .bind(INTERRUPTED)
        .bind(&limits.organization_id)
        .bind(&limits.most)
        .bind(limits.of_others)
        .fetch_all(db)
        .await?)
}
