//! Claims of requests from Kafka, and takeovers of runs from dead executors.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Change, INTERRUPTED, RECORDS_ITSELF, StepBegin};
use crate::db::{Error, monitoring, processes::DEAD_AFTER_SECS};

/// Requests to claim, one entry per run, each run once; see [`claim`].
#[derive(Default)]
#[expect(missing_docs, reason = "each is a column of workflow_runs or a member of the message")]
pub struct ClaimBatch {
    pub run_id: Vec<String>,
    pub lease_token: Vec<Uuid>,
    pub event_id: Vec<Option<Uuid>>,
    pub workflow_id: Vec<String>,
    pub workflow_name: Vec<String>,
    /// Different plans of the batch.
    pub plans: Vec<String>,
    /// Index of the run's plan among them, from 1.
    pub plan: Vec<i32>,
    pub input: Vec<Option<String>>,
    pub correlation_id: Vec<Option<String>>,
    pub traceparent: Vec<Option<String>>,
    pub sent_at: Vec<Option<DateTime<Utc>>>,
    /// First attempt of the run, which begins with the claim.
    pub first: Vec<Option<Change>>,
}

impl ClaimBatch {
    fn first<'a, T>(&'a self, of: impl Fn(&'a Change) -> Option<T>) -> Vec<Option<T>> {
        self.first.iter().map(|first| of(first.as_ref()?)).collect()
    }

    fn first_begun<'a>(&'a self, of: fn(&'a StepBegin) -> &'a str) -> Vec<Option<&'a str>> {
        self.first(|first| first.begun.as_ref().map(of))
    }
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
    /// Limits of the run itself, as JSON text.
    pub limits: Option<String>,
    /// Organisation of the run.
    pub organization_id: String,
    /// Whether the run has step rows because it was started before.
    pub has_steps: bool,
    /// Whether the first attempt of the batch has begun.
    pub has_begun: bool,
    /// [`crate::db::agents::AgentWithBreaker::version`] of its agent at that time; `None` if it does not exist.
    pub agent_version: Option<i64>,
}

/// SQL of [`claim`].
fn claim_sql() -> String {
    format!(
        "
        WITH {RECORDS_ITSELF}, request AS MATERIALIZED (
            SELECT m.* FROM session, unnest($2::text[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $8::int[], $9::text[],
                $10::text[], $11::timestamptz[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
                $17::text[], $18::text[], $19::text[], $20::text[])
                AS m (run_id, lease_token, event_id, workflow_id, workflow_name, plan, input, correlation_id, sent_at,
                    traceparent, begun_id, step_id, agent_name, step_input, seen_workflow_id, seen_workflow_name,
                    seen_organization_id, updates)
        ), updated AS (
            UPDATE workflow_runs r
            SET status = 'RUNNING', executor_id = $1, lease_token = m.lease_token,
                updated_at = now() AT TIME ZONE 'UTC', execution_started_at = now() AT TIME ZONE 'UTC', wake_at = NULL,
                parked_at = NULL, takeovers = 0, claimed_at = now() AT TIME ZONE 'UTC',
                -- For a run without a stored definition, the message is the only source of the plan.
                workflow_plan = CASE WHEN r.workflow_version IS NULL THEN ($7::text[])[m.plan]::jsonb ELSE r.workflow_plan END,
                input_data = CASE WHEN r.workflow_version IS NULL AND m.input IS NOT NULL
                    THEN m.input::jsonb ELSE r.input_data END,
                correlation_id = coalesce(r.correlation_id, m.correlation_id),
                traceparent = CASE WHEN r.workflow_version IS NULL THEN coalesce(r.traceparent, m.traceparent)
                    ELSE r.traceparent END
            FROM request m
            WHERE r.run_id = m.run_id AND (r.lease_token = m.lease_token OR (r.status = 'PENDING' AND r.paused_at IS NULL
                AND (r.flow_state IS NULL OR r.flow_state = 'admitted')
                AND (r.execution_event_id = m.event_id OR r.execution_event_id IS NULL OR m.event_id IS NULL)))
            RETURNING r.run_id, r.workflow_id, r.workflow_name, r.correlation_id, r.traceparent,
                CASE WHEN m.input IS NULL THEN r.input_data::text END AS input_data, r.organization_id,
                r.resume_from_step, r.limits::text AS limits,
                -- The attempt begins only if observers are told what the row says.
                CASE WHEN m.seen_workflow_id = r.workflow_id AND m.seen_workflow_name = r.workflow_name
                    AND m.seen_organization_id = r.organization_id THEN m.begun_id END AS begun_id,
                -- State before the statement: a repeated claim was recorded the first time.
                (SELECT before.lease_token FROM workflow_runs before WHERE before.run_id = m.run_id)
                    IS NOT DISTINCT FROM m.lease_token AS is_repeated,
                m.sent_at, m.step_id, m.agent_name, m.step_input, m.updates
        ), claimed AS MATERIALIZED (
            SELECT *, begun_id IS NOT NULL AND NOT has_steps AS has_begun
            FROM updated, LATERAL (SELECT resume_from_step IS NOT NULL OR (
                -- For EXISTS, the planner may read the whole table. Of a repeated claim, the first one has begun the attempt.
                SELECT true FROM step_executions s
                WHERE s.run_id = updated.run_id AND s.id IS DISTINCT FROM begun_id LIMIT 1) IS NOT NULL AS has_steps) AS earlier
        ), inserted AS (
            INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, input_data, created_at, updated_at,
                execution_started_at, claimed_at, workflow_plan, correlation_id, traceparent, executor_id, lease_token)
            SELECT run_id, workflow_id, workflow_name, 'RUNNING', coalesce(input, '{{}}')::jsonb,
                now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC',
                ($7::text[])[plan]::jsonb, correlation_id, traceparent, $1, lease_token
            FROM request m WHERE (SELECT r.run_id FROM workflow_runs r WHERE r.run_id = m.run_id) IS NULL
            ON CONFLICT (run_id) DO NOTHING
            RETURNING run_id, workflow_id, workflow_name, correlation_id, traceparent, NULL::text AS input_data,
                organization_id, NULL::text AS limits, false AS has_steps
        ), begun AS (
            INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at)
            SELECT begun_id, run_id, step_id, agent_name, agent_name, 'RUNNING', step_input::jsonb, now() AT TIME ZONE 'UTC'
            FROM claimed WHERE has_begun
            ON CONFLICT (id) DO NOTHING
            RETURNING run_id, step_id, id, agent_name
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, at, step_id, attempt_id, agent_name)
            SELECT run_id, kind, at, step_id, id, agent_name FROM (
                SELECT 1, run_id, 'run.dispatched', sent_at, NULL, NULL, NULL FROM claimed
                WHERE sent_at IS NOT NULL AND NOT is_repeated
                UNION ALL SELECT 1, run_id, 'run.dispatched', sent_at, NULL, NULL, NULL FROM inserted JOIN request USING (run_id)
                WHERE sent_at IS NOT NULL
                UNION ALL SELECT 2, run_id, 'run.started', clock_timestamp(), NULL, NULL, NULL FROM claimed WHERE NOT is_repeated
                UNION ALL SELECT 2, run_id, 'run.started', clock_timestamp(), NULL, NULL, NULL FROM inserted
                UNION ALL SELECT 3, run_id, 'attempt.started', clock_timestamp(), step_id, id, agent_name FROM begun
            ) AS event (part, run_id, kind, at, step_id, id, agent_name) ORDER BY part
        ), told AS (
            INSERT INTO monitoring_outbox (id, owner, updates)
            SELECT $21, $22, array_agg(updates) FROM claimed WHERE has_begun AND updates IS NOT NULL HAVING count(*) > 0
            ON CONFLICT (id) DO NOTHING
        )
        SELECT run_id, workflow_id, workflow_name, correlation_id, traceparent, input_data, organization_id, limits, has_steps,
            has_begun, (SELECT a.xmin::text::int8 FROM agents a
                WHERE has_begun AND a.name = agent_name AND a.organization_id = claimed.organization_id) AS agent_version
        FROM claimed
        UNION ALL SELECT *, false, NULL FROM inserted"
    )
}

/// Claims the runs that are PENDING and inserts missing rows, in one statement. A run that is not in the answer was
/// claimed before, is paused, has ended, or expects another message (its retry created a new `event_id`). Repeating the
/// call with the same tokens after a lost answer returns the same runs.
///
/// The same statement begins the first attempts of the batch, of runs that were not started before and are as the
/// attempt's [`ObservedRun`](super::ObservedRun) says. `outgoing` has the updates for observers; those of attempts that
/// have begun are stored.
pub async fn claim(
    conn: &mut PgConnection,
    executor_id: Uuid,
    batch: &ClaimBatch,
    outgoing: Option<&monitoring::Outgoing>,
) -> Result<Vec<Claimed>, Error> {
    Ok(sqlx::query_as(AssertSqlSafe(claim_sql()))
        .bind(executor_id)
        .bind(&batch.run_id)
        .bind(&batch.lease_token)
        .bind(&batch.event_id)
        .bind(&batch.workflow_id)
        .bind(&batch.workflow_name)
        .bind(&batch.plans)
        .bind(&batch.plan)
        .bind(&batch.input)
        .bind(&batch.correlation_id)
        .bind(&batch.sent_at)
        .bind(&batch.traceparent)
        .bind(batch.first_begun(|begun| &begun.id))
        .bind(batch.first_begun(|begun| &begun.step_id))
        .bind(batch.first_begun(|begun| &begun.agent_name))
        .bind(batch.first_begun(|begun| begun.input.get()))
        .bind(batch.first(|first| Some(first.of.workflow_id.as_str())))
        .bind(batch.first(|first| Some(first.of.workflow_name.as_str())))
        .bind(batch.first(|first| Some(first.of.organization.as_str())))
        .bind(outgoing.map_or_else(|| vec![None; batch.run_id.len()], |outgoing| outgoing.updates.clone()))
        .bind(outgoing.map(|outgoing| outgoing.id))
        .bind(outgoing.and_then(|outgoing| outgoing.owner))
        .fetch_all(conn)
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
    /// Limits of the run itself, as JSON text.
    pub limits: Option<String>,
    /// Plan that the run is pinned to, as JSON text; `None` if it was deleted.
    pub workflow_plan: Option<String>,
    /// Execution time of the run so far, in seconds.
    pub elapsed_secs: f64,
    /// Whether the run was parked and not continued since.
    pub is_parked: bool,
    /// Whether the run was PENDING: it has not been claimed before.
    pub was_pending: bool,
    /// Whether another run has started it.
    pub is_sub_run: bool,
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
            r.input_data::text AS input_data, r.limits::text AS limits,
            coalesce(r.workflow_plan, (SELECT workflow_data FROM workflow_definitions d
                WHERE d.name = r.workflow_name AND d.version = r.workflow_version
                    AND d.organization_id = r.organization_id))::text AS workflow_plan,
            parked_at IS NOT NULL AS is_parked, false AS was_pending,
            r.parent_run_id IS NOT NULL AS is_sub_run, r.takeovers,
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
