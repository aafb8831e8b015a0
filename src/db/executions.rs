//! What the executor does to runs and their steps. The lease decides: a write names the `lease_token` of its claim,
//! and changes nothing once the run was cancelled, taken over or ended.

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{Connection as _, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{Error, monitoring, processes::DEAD_AFTER_SECS};
use crate::{access::OrganizationId, input::shorten, run::RunStatus};

/// Makes a statement record itself in the runs' logs, instead of leaving that to the triggers. What it changes depends
/// on rows that are read together with this one, so this comes first.
const RECORDS_ITSELF: &str = "own AS MATERIALIZED (SELECT set_config('workflow_api.records', 'itself', true))";

/// The error of an attempt whose executor died or stopped.
const INTERRUPTED: &str = "interrupted: the executor stopped while the step ran";

/// Requests to claim, one entry a run, each run once; see [`claim`].
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

/// A run that the caller now holds.
#[derive(Debug, sqlx::FromRow)]
pub struct Claimed {
    /// The run.
    pub run_id: String,
    /// Of the row.
    pub workflow_id: String,
    /// Of the row.
    pub workflow_name: String,
    /// Of the request that started the run.
    pub correlation_id: Option<String>,
    /// Of the same request, if it had one.
    pub traceparent: Option<String>,
    /// The input, if the message has none.
    pub input_data: Option<String>,
    /// Whose run it is.
    pub organization_id: String,
    /// It has step rows: it was started before.
    pub has_steps: bool,
}

/// Claims the runs that are PENDING and makes the rows that are missing, in one statement. A run that is not in the
/// answer was claimed before, is paused, has ended, or waits for another message than this one (its retry made a new
/// `event_id`). Repeating the call with the same tokens, when the answer was lost, returns the same runs.
pub async fn claim(db: impl PgExecutor<'_>, executor_id: Uuid, batch: &ClaimBatch) -> Result<Vec<Claimed>, Error> {
    let sql = format!(
        "
        WITH {RECORDS_ITSELF}, request AS MATERIALIZED (
            SELECT m.* FROM own, unnest($2::text[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::timestamptz[], $11::text[])
                AS m (run_id, lease_token, event_id, workflow_id, workflow_name, plan, input, correlation_id, sent_at,
                    traceparent)
        ), claimed AS (
            UPDATE workflow_runs r
            SET status = 'RUNNING', executor_id = $1, lease_token = m.lease_token,
                updated_at = now() AT TIME ZONE 'UTC', execution_started_at = now() AT TIME ZONE 'UTC', wake_at = NULL,
                parked_at = NULL, takeovers = 0, claimed_at = now() AT TIME ZONE 'UTC',
                -- Of a run that no stored definition holds, the message is all there is.
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
            -- As it was before: a claim that is repeated was recorded the first time.
            WHERE at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM workflow_runs r
                WHERE r.run_id = request.run_id AND r.lease_token = request.lease_token)
            ORDER BY kind
        )
        SELECT * FROM claimed UNION ALL SELECT * FROM inserted"
    );
    Ok(sqlx::query_as(&sql)
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

/// How many runs of each organisation may be taken.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of those of which something is known.
    pub organization_id: Vec<String>,
    /// One entry for each of them.
    pub most: Vec<i64>,
    /// Of each other one.
    pub of_others: i64,
}

impl Limits {
    /// As many as there are.
    #[must_use]
    pub fn none() -> Self {
        Self { organization_id: Vec::new(), most: Vec::new(), of_others: i64::MAX }
    }
}

/// A run taken from an executor that died, or from nobody.
#[derive(Debug, sqlx::FromRow)]
pub struct TakenOver {
    /// The run.
    pub run_id: String,
    /// Of this claim.
    pub lease_token: Uuid,
    /// Of the row.
    pub workflow_id: String,
    /// Of the row.
    pub workflow_name: String,
    /// Of the request that started the run.
    pub correlation_id: Option<String>,
    /// Of the same request, if it had one.
    pub traceparent: Option<String>,
    /// Whose run it is.
    pub organization_id: String,
    /// As JSON text.
    pub input_data: Option<String>,
    /// The content that the run is pinned to, as JSON text; `None` if it is gone.
    pub workflow_plan: Option<String>,
    /// For how long the run has been executed so far, in seconds.
    pub elapsed_secs: f64,
    /// It was parked, and nobody has gone on with it since.
    pub is_parked: bool,
    /// How often it was taken from an executor that died since it last got on.
    pub takeovers: i16,
}

/// Takes RUNNING runs whose executor is dead, and those of `executor_id` itself that it does not know to have (the
/// answer to a claim was lost, and its message too). Runs without executor are the reference executor's.
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
                -- A claim that was just committed may not be known yet.
                THEN run_id <> ALL ($2) AND updated_at < now() AT TIME ZONE 'UTC' - interval '10 s'
                ELSE NOT EXISTS (SELECT 1 FROM processes p WHERE p.id = r.executor_id
                    AND p.heartbeat_at >= now() - make_interval(secs => $4))
            END
        ), lost AS (
            SELECT r.run_id FROM orphan JOIN workflow_runs r ON r.run_id = orphan.run_id
                    -- Whoever was faster has given it another one.
                    AND r.lease_token = orphan.lease_token AND r.status = 'RUNNING'
                LEFT JOIN unnest($6::text[], $7::bigint[]) AS known (organization_id, most)
                    ON known.organization_id = orphan.organization_id
            WHERE turn <= coalesce(most, $8)
            ORDER BY turn, orphan.updated_at LIMIT $3 FOR NO KEY UPDATE OF r SKIP LOCKED
        )
        UPDATE workflow_runs r
        SET executor_id = $1, lease_token = gen_random_uuid(), updated_at = now() AT TIME ZONE 'UTC',
            claimed_at = now() AT TIME ZONE 'UTC',
            -- A run that has ended an attempt since it was claimed has got on. Only of one that was taken over before
            -- is that asked.
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
            -- Claimed by a release that did not note it: from now on.
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

/// Whether there is a run for [`wake`].
pub async fn is_any_awake(db: impl PgExecutor<'_>) -> Result<bool, Error> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM workflow_runs r WHERE wake_at <= now() AND {UNHELD}) OR EXISTS ({CALLED} AND {UNHELD})"
    );
    Ok(sqlx::query_scalar(&sql).fetch_one(db).await?)
}

/// Takes parked runs whose time has come or for which something has: each organisation in turn, of its runs those of a
/// higher priority first, and of equal ones each workflow in turn. The time for which a run was parked does not count as
/// executed.
pub async fn wake(
    conn: &mut PgConnection,
    executor_id: Uuid,
    limit: i64,
    limits: &Limits,
) -> Result<Vec<TakenOver>, Error> {
    // What has come for a parked run makes it due, which is all that its wakes are there for.
    let sql = format!(
        "WITH called AS MATERIALIZED (
            SELECT run_id FROM workflow_runs
            WHERE run_id IN ({CALLED} AND {UNHELD} LIMIT {MAX_CALLED}) AND wake_at IS NOT NULL
            FOR NO KEY UPDATE SKIP LOCKED
        ), forgotten AS (
            DELETE FROM run_wakes w USING called WHERE w.run_id = called.run_id
        )
        UPDATE workflow_runs r SET wake_at = least(wake_at, now()) FROM called WHERE r.run_id = called.run_id"
    );
    sqlx::query(&sql).execute(&mut *conn).await?;
    let sql = format!(
        "
        WITH RECURSIVE line AS (
            -- The workflows and priorities of which runs are parked, each found by the index alone.
            (SELECT organization_id, workflow_id, priority FROM workflow_runs
             WHERE wake_at IS NOT NULL AND paused_at IS NULL
             ORDER BY organization_id, workflow_id, priority LIMIT 1)
            UNION ALL SELECT next.* FROM line CROSS JOIN LATERAL (
                SELECT organization_id, workflow_id, priority FROM workflow_runs r
                WHERE wake_at IS NOT NULL AND paused_at IS NULL
                    AND (r.organization_id, r.workflow_id, r.priority) > (line.organization_id, line.workflow_id, line.priority)
                ORDER BY organization_id, workflow_id, priority LIMIT 1) AS next
        ), awake AS MATERIALIZED (
            -- Of none many more than can be taken: however many wait, to choose costs no more. Others take some meanwhile.
            SELECT due.run_id, line.*, due.wake_at FROM line CROSS JOIN LATERAL (
                SELECT run_id, wake_at FROM workflow_runs r
                WHERE r.organization_id = line.organization_id AND r.workflow_id = line.workflow_id
                    AND r.priority = line.priority AND wake_at <= now() AND {UNHELD}
                ORDER BY r.wake_at LIMIT 4 * $2) AS due
        ), turn AS (
            -- Each organisation in turn, and each of its workflows. Whose turn is first is drawn: when places get free one
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
            SELECT r.run_id FROM workflow_runs r JOIN turn USING (run_id) WHERE wake_at IS NOT NULL AND {UNHELD}
            ORDER BY turn.turn LIMIT $2 FOR NO KEY UPDATE OF r SKIP LOCKED
        )
        UPDATE workflow_runs r
        -- `resume` clears parked_at: until then nothing of the run has been begun anew.
        SET status = 'RUNNING', executor_id = $1, lease_token = gen_random_uuid(), wake_at = NULL,
            updated_at = now() AT TIME ZONE 'UTC',
            claimed_at = CASE WHEN status = 'PENDING' THEN now() AT TIME ZONE 'UTC' ELSE claimed_at END,
            execution_started_at = CASE WHEN status = 'PENDING' THEN now() AT TIME ZONE 'UTC'
                ELSE execution_started_at + (now() - coalesce(parked_at, now())) END
        FROM taken WHERE r.run_id = taken.run_id
        RETURNING r.run_id, r.lease_token, r.workflow_id, r.workflow_name, r.correlation_id, r.traceparent,
            r.input_data::text AS input_data,
            r.organization_id, coalesce(r.workflow_plan,
                (SELECT workflow_data FROM workflow_definitions d
                 WHERE d.name = r.workflow_name AND d.version = r.workflow_version
                    AND d.organization_id = r.organization_id))::text AS workflow_plan, true AS is_parked, r.takeovers,
            coalesce(extract(epoch FROM now() AT TIME ZONE 'UTC' - execution_started_at), 0)::float8 AS elapsed_secs"
    );
    Ok(sqlx::query_as(&sql)
        .bind(executor_id)
        .bind(limit)
        .bind(&limits.organization_id)
        .bind(&limits.most)
        .bind(limits.of_others)
        .fetch_all(conn)
        .await?)
}

/// Runs that are made due in one statement.
const MAX_CALLED: usize = 1000;

/// A run that may be taken up.
const UNHELD: &str = "r.paused_at IS NULL AND r.executor_id IS NULL AND r.status IN ('PENDING', 'RUNNING')";

/// Parked runs for which something has come; of them, those that are [`UNHELD`].
const CALLED: &str =
    "SELECT r.run_id FROM run_wakes w JOIN workflow_runs r ON r.run_id = w.run_id WHERE r.wake_at IS NOT NULL";

/// Lets a run go that the caller holds, until `wake_at` or until something comes for it. Returns false if it is not
/// held any more, also when it was let go by an earlier call whose answer was lost.
pub async fn park(
    db: impl PgExecutor<'_>,
    run_id: &str,
    lease_token: Uuid,
    wake_at: Option<DateTime<Utc>>,
) -> Result<bool, Error> {
    let sql = "UPDATE workflow_runs SET executor_id = NULL, lease_token = NULL, parked_at = now(), takeovers = 0,
                   updated_at = now() AT TIME ZONE 'UTC',
                   -- The caller's clock may be behind: not again at once.
                   wake_at = greatest(coalesce($3, 'infinity'::timestamptz), now() + interval '0.2 s')
               WHERE run_id = $1 AND lease_token = $2 AND status = 'RUNNING'";
    let parked = sqlx::query(sql).bind(run_id).bind(lease_token).bind(wake_at).execute(db).await?;
    Ok(parked.rows_affected() == 1)
}

/// Forgets that something came for runs that have ended.
pub async fn forget_wakes(db: impl PgExecutor<'_>) -> Result<(), Error> {
    let sql = "DELETE FROM run_wakes w WHERE NOT EXISTS
                   (SELECT 1 FROM workflow_runs r WHERE r.run_id = w.run_id AND r.status IN ('PENDING', 'RUNNING'))";
    sqlx::query(sql).execute(db).await?;
    Ok(())
}

/// A step row of a run that was started before.
#[derive(Debug, sqlx::FromRow)]
pub struct EarlierStep {
    /// The row; empty if there is none.
    pub id: String,
    /// Where the step stands in the run: its id on the main chain, else its way from there.
    pub place: String,
    /// As it was before the call; free text that other programs write too.
    pub status: String,
    /// Its executor died or stopped while the step ran.
    pub was_interrupted: bool,
    /// Of the block that it is directly inside of.
    pub parent_step_id: Option<String>,
    /// As input and output are stored, perhaps compressed.
    pub bytes: i64,
    /// Of a failed one.
    pub error_message: Option<String>,
    /// Since it began, in seconds.
    pub age_secs: f64,
    /// The run was claimed or taken over before it.
    pub is_of_this_claim: bool,
    /// The retry that named a step to go on from came before it; true without such a retry.
    pub is_after_retry: bool,
    /// The step to go on from, the same in all rows.
    pub resume_from_step: Option<String>,
}

/// The step rows of a run that the caller holds, oldest first. Of a run that was `interrupted`, those still open are
/// closed as such, except the ones that wait for something outside of the run. Without any, one row without a place,
/// for the step to go on from. Their outputs are read by [`outputs`]; of rows beyond the limit nothing is told.
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
        SELECT coalesce(id, '') AS id, coalesce(place, step_id, '') AS place, coalesce(status, '') AS status,
            coalesce(status = 'RUNNING' OR error_message = $4, false) AS was_interrupted,
            parent_step_id, error_message,
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

/// The outputs of step rows, by their ids.
pub async fn outputs(db: impl PgExecutor<'_>, ids: &[String]) -> Result<Vec<(String, Json<Box<RawValue>>)>, Error> {
    let sql = "SELECT id, output_data FROM step_executions WHERE id = ANY ($1) AND output_data IS NOT NULL";
    Ok(sqlx::query_as(sql).bind(ids).fetch_all(db).await?)
}

/// Whether the run is RUNNING under another lease than this one; under any, if there is none.
pub async fn is_held_by_others(db: impl PgExecutor<'_>, run_id: &str, lease: Option<Uuid>) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM workflow_runs
                   WHERE run_id = $1 AND status = 'RUNNING' AND lease_token IS DISTINCT FROM $2)";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(lease).fetch_one(db).await?)
}

/// What has happened to a claim.
#[derive(Debug, sqlx::FromRow)]
pub struct Noticed {
    /// The run.
    pub run_id: String,
    /// It is no longer held: cancelled, ended or taken over.
    pub is_lost: bool,
    /// No further step is to begin.
    pub is_paused: bool,
    /// Something has come for it.
    pub is_woken: bool,
}

/// Of these claims, those to which something has happened.
pub async fn notice(db: impl PgExecutor<'_>, run_ids: &[String], lease_tokens: &[Uuid]) -> Result<Vec<Noticed>, Error> {
    let sql = "
        SELECT * FROM (
            SELECT c.run_id, r.run_id IS NULL AS is_lost, r.paused_at IS NOT NULL AS is_paused,
                EXISTS (SELECT 1 FROM run_wakes w WHERE w.run_id = c.run_id) AS is_woken
            FROM unnest($1::text[], $2::uuid[]) AS c (run_id, lease_token)
                LEFT JOIN workflow_runs r ON r.run_id = c.run_id AND r.lease_token = c.lease_token AND r.status = 'RUNNING'
        ) AS claim WHERE is_lost OR is_paused OR is_woken";
    Ok(sqlx::query_as(sql).bind(run_ids).bind(lease_tokens).fetch_all(db).await?)
}

/// Cancels runs, with their open steps, at the word of a message alone. Returns the ids that have no row.
pub async fn cancel(
    conn: &mut PgConnection,
    run_ids: &[String],
    by: &[Option<String>],
    reasons: &[Option<String>],
) -> Result<Vec<String>, Error> {
    let mut transaction = conn.begin().await?;
    let sql = "
        UPDATE workflow_runs r
        SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
            cancelled_by = left(coalesce(m.cancelled_by, 'system'), 255),
            error_message = coalesce('Cancelled: ' || nullif(m.reason, ''), r.error_message),
            executor_id = NULL, lease_token = NULL, wake_at = NULL
        FROM unnest($1::text[], $2::text[], $3::text[]) AS m (run_id, cancelled_by, reason)
        WHERE r.run_id = m.run_id AND r.status IN ('PENDING', 'RUNNING')
        RETURNING r.run_id";
    let cancelled: Vec<String> =
        sqlx::query_scalar(sql).bind(run_ids).bind(by).bind(reasons).fetch_all(&mut *transaction).await?;
    // A statement of its own sees what others have begun while the first one waited for them.
    let sql = "
        UPDATE step_executions
        SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC', error_message = 'the run was cancelled'
        WHERE run_id = ANY ($1) AND status IN ('PENDING', 'RUNNING')";
    sqlx::query(sql).bind(&cancelled).execute(&mut *transaction).await?;
    let sql = "SELECT run_id FROM unnest($1::text[]) AS m (run_id)
               WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = m.run_id)";
    let unknown = sqlx::query_scalar(sql).bind(run_ids).fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(unknown)
}

/// What happens to a run that the caller holds; everything in it happens at once or not at all. If the same attempt
/// begins and ends in it, its row is written as ended.
#[derive(Clone, Debug)]
pub struct Change {
    /// The run.
    pub run_id: String,
    /// Of the claim.
    pub lease_token: Uuid,
    /// The run. For observers.
    pub of: Arc<ObservedRun>,
    /// The step attempt that ends.
    pub ended: Option<EndedStep>,
    /// The step attempt that begins.
    pub begun: Option<BegunStep>,
    /// The run ends.
    pub finished: Option<FinishedRun>,
}

impl Change {
    /// The size of the input and the output in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let input = self.begun.as_ref().map_or(0, |step| step.input.get().len());
        let output = self.ended.as_ref().and_then(|step| step.end.output()).map_or(0, |output| output.get().len());
        input + output
    }

    fn nested(&self) -> Option<&NestedStep> {
        self.begun.as_ref()?.nested.as_ref()
    }
}

/// A run, as observers know it.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is a member or a header of the updates")]
pub struct ObservedRun {
    pub workflow_id: String,
    pub workflow_name: String,
    pub organization: OrganizationId,
    pub traceparent: String,
}

/// How a step attempt ends.
#[derive(Clone, Debug)]
pub enum StepEnd {
    /// With this output.
    Completed(Box<RawValue>),
    /// For this reason.
    Failed(String),
    /// It was given up, for this reason: nobody needs it any more.
    Skipped(String),
}

impl StepEnd {
    /// As in the `status` column.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Completed(_) => "COMPLETED",
            Self::Failed(_) => "FAILED",
            Self::Skipped(_) => "SKIPPED",
        }
    }

    /// What it gave.
    #[must_use]
    pub fn output(&self) -> Option<&RawValue> {
        match self {
            Self::Completed(output) => Some(output),
            Self::Failed(_) | Self::Skipped(_) => None,
        }
    }

    /// Why it gave nothing.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Completed(_) => None,
            Self::Failed(reason) | Self::Skipped(reason) => Some(reason),
        }
    }
}

/// The end of a step attempt.
#[derive(Clone, Debug)]
pub struct EndedStep {
    /// The row.
    pub id: String,
    /// The output, or what went wrong.
    pub end: StepEnd,
    /// How the agent was called, if it was. For the run's log.
    pub call: Option<AgentCall>,
    /// Of a step that calls an agent. For observers.
    pub of: Option<AgentStep>,
}

/// A step that calls an agent, as observers know it.
#[derive(Clone, Debug)]
pub struct AgentStep {
    /// The step.
    pub step_id: String,
    /// Whom it calls.
    pub agent_name: String,
    /// What the agent is called with.
    pub task_id: Option<String>,
}

/// A call to an agent.
#[derive(Clone, Copy, Debug)]
pub struct AgentCall {
    /// The HTTP status of the answer, if there was one.
    pub http_status: Option<u16>,
    /// From the request to the end of the answer.
    pub duration_ms: f64,
    /// What it came to, in a word; `None`: success.
    pub fault: Option<&'static str>,
}

/// The begin of a step attempt.
#[derive(Clone, Debug)]
pub struct BegunStep {
    /// The row.
    pub id: String,
    /// The step.
    pub step_id: String,
    /// For people.
    pub step_name: String,
    /// Whom it calls; empty for a step that calls nobody.
    pub agent_name: String,
    /// What the agent is called with. For observers.
    pub task_id: Option<String>,
    /// With what.
    pub input: Box<RawValue>,
    /// Where it stands, if not on the main chain.
    pub nested: Option<NestedStep>,
}

/// Where a nested step stands.
#[derive(Clone, Debug)]
pub struct NestedStep {
    /// The step that contains it.
    pub parent_step_id: String,
    /// In which of its branches or iterations.
    pub branch_name: String,
    /// How the branches are joined, if they are.
    pub join_policy: Option<&'static str>,
    /// The whole way from the main chain to the step.
    pub place: String,
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct FinishedRun {
    /// COMPLETED or FAILED.
    pub status: RunStatus,
    /// Why it failed.
    pub error_message: Option<String>,
    /// The same for observers.
    pub failure: Option<RunFailure>,
}

/// Why a run fails. `Display` is fit for its row.
#[derive(Clone, Debug)]
pub struct RunFailure {
    /// The step of the main chain that failed, if one did.
    pub step_id: Option<String>,
    /// Why it did.
    pub cause: String,
}

impl From<String> for RunFailure {
    fn from(cause: String) -> Self {
        Self { step_id: None, cause }
    }
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step_id {
            Some(step_id) => write!(f, "Step '{}' failed: {}", shorten(step_id), self.cause),
            None => f.write_str(&self.cause),
        }
    }
}

/// Whether rows that somebody else has locked are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// They are left out, so that one of them does not hold up its neighbours.
    Skip,
    /// They are waited for, as long as the session's `lock_timeout` allows.
    Wait,
}

/// The statement of [`write()`]; `tells`: with a row for observers.
fn write_sql(locked: Locked, tells: bool) -> String {
    // `IS TRUE` hides the conditions on a status from its index. What is in there changes with every statement, so it is
    // full of dead entries, and its statistics never fit: rows are found by their keys.
    let skip = if locked == Locked::Skip { "SKIP LOCKED" } else { "" };
    let (told_column, told_name, told) = if tells {
        let told = ", told AS (
            INSERT INTO monitoring_outbox (id, owner, updates)
            SELECT $23, $24, array_agg(updates ORDER BY run_id, nth) FROM held WHERE updates IS NOT NULL HAVING count(*) > 0
            ON CONFLICT (id) DO NOTHING
        )";
        (", $22::text[]", ", updates", told)
    } else {
        ("", "", "")
    };
    format!(
        "WITH {RECORDS_ITSELF}, change AS MATERIALIZED (
            SELECT c.* FROM own, unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[],
                $16::text[], $17::text[], $18::float8[], $19::float8[], $20::int[], $21::text[]{told_column})
                AS c (run_id, lease_token, ended_id, ended_status, output, step_error, begun_id, step_id, step_name,
                    agent_name, input, parent_step_id, branch_name, join_policy, place, run_status, run_error,
                    nth, call_ms, http_status, call_fault{told_name})
        ), held AS MATERIALIZED (
            SELECT c.*, r.organization_id FROM change c
            JOIN workflow_runs r ON r.run_id = c.run_id AND r.lease_token = c.lease_token
                AND (r.status = 'RUNNING') IS TRUE
            ORDER BY r.run_id FOR NO KEY UPDATE OF r {skip}
        ), ended AS (
            UPDATE step_executions s
            SET status = ended_status, completed_at = now() AT TIME ZONE 'UTC', output_data = output::jsonb,
                error_message = step_error
            FROM held WHERE s.id = ended_id AND (s.status IN ('PENDING', 'RUNNING')) IS TRUE
            RETURNING s.run_id, s.step_id, s.id, s.agent_name, s.status, s.error_message, nth,
                extract(epoch FROM s.completed_at - s.started_at) * 1000 AS ms, call_ms, http_status, call_fault
        ), closed AS (
            -- What a failing run leaves open: only after an internal error or at the end of its time is there anything.
            -- And what a step that was given up has begun to wait for after that, perhaps.
            UPDATE step_executions s
            SET status = CASE run_status WHEN 'FAILED' THEN 'FAILED' ELSE 'SKIPPED' END,
                completed_at = now() AT TIME ZONE 'UTC', error_message = run_error
            FROM held WHERE (run_status = 'FAILED' OR (run_status = 'COMPLETED'
                    AND EXISTS (SELECT FROM step_waits w WHERE w.run_id = held.run_id)))
                AND s.run_id = held.run_id AND (s.status IN ('PENDING', 'RUNNING')) IS TRUE
                AND NOT EXISTS (SELECT 1 FROM held h WHERE h.ended_id = s.id)
            RETURNING s.run_id, s.step_id, s.id, s.agent_name, s.status, s.error_message, nth,
                extract(epoch FROM s.completed_at - s.started_at) * 1000 AS ms
        ), begun AS (
            INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at,
                completed_at, output_data, error_message, parent_step_id, branch_name, join_policy, place)
            SELECT begun_id, run_id, step_id, step_name, agent_name,
                CASE WHEN ended_id = begun_id THEN ended_status ELSE 'RUNNING' END, input::jsonb,
                -- Attempts are told apart and listed by their begin.
                now() AT TIME ZONE 'UTC' + nth * interval '1 microsecond',
                CASE WHEN ended_id = begun_id THEN now() AT TIME ZONE 'UTC' + nth * interval '1 microsecond' END,
                CASE WHEN ended_id = begun_id THEN output::jsonb END,
                CASE WHEN ended_id = begun_id THEN step_error END, parent_step_id, branch_name, join_policy, place
            FROM held WHERE begun_id IS NOT NULL
            ON CONFLICT (id) DO NOTHING
            RETURNING run_id, step_id, id, agent_name, status, error_message,
                extract(epoch FROM started_at - now() AT TIME ZONE 'UTC') * 1e6 AS nth
        ), finished AS (
            UPDATE workflow_runs r
            SET status = run_status, error_message = coalesce(run_error, r.error_message),
                completed_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
                executor_id = NULL, lease_token = NULL
            FROM held WHERE r.run_id = held.run_id AND run_status IS NOT NULL
            RETURNING r.run_id, r.status, CASE WHEN r.status = 'FAILED' THEN r.error_message END AS error_message, nth
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, step_id, attempt_id, agent_name, http_status, duration_ms, detail)
            SELECT run_id, kind, step_id, id, nullif(agent_name, ''), http_status, ms, detail FROM (
                SELECT nth, 1, run_id, CASE WHEN call_fault IS NULL THEN 'agent.answered' ELSE 'agent.failed' END, step_id,
                    id, agent_name, http_status, call_ms, call_fault FROM ended WHERE call_ms IS NOT NULL
                UNION ALL SELECT nth, 2, run_id, 'attempt.' || lower(status), step_id, id, agent_name, NULL, ms,
                    error_message FROM ended
                UNION ALL SELECT nth, 2, run_id, 'attempt.' || lower(status), step_id, id, agent_name, NULL, ms,
                    error_message FROM closed
                UNION ALL SELECT nth, 3, run_id, 'attempt.started', step_id, id, agent_name, NULL, NULL, NULL FROM begun
                UNION ALL SELECT nth, 4, run_id, 'attempt.' || lower(status), step_id, id, agent_name, NULL, 0,
                    error_message FROM begun WHERE status <> 'RUNNING'
                UNION ALL SELECT nth, 5, run_id, 'run.' || lower(status), NULL, NULL, NULL, NULL, NULL, error_message
                    FROM finished
            ) AS event (nth, part, run_id, kind, step_id, id, agent_name, http_status, ms, detail) ORDER BY nth, part
        ){told}
        SELECT run_id, agent_name, (SELECT a.xmin::text::int8 FROM agents a
            WHERE agent_name <> '' AND a.name = agent_name AND a.organization_id = held.organization_id) AS agent_version
        FROM held"
    )
}

/// A change that was written.
#[derive(sqlx::FromRow)]
pub struct Held {
    /// Its run.
    pub run_id: String,
    /// The agent that the step which begins in it calls; empty for a step that calls nobody.
    pub agent_name: Option<String>,
    /// [`super::agents::AgentWithBreaker::version`] of that agent when the step began; `None`: it does not exist.
    pub agent_version: Option<i64>,
}

/// Writes changes in one statement, several of one run in their order. A run that is not in the answer is not held any
/// more, or is locked by somebody; nothing was written for it. Repeating a change does no harm. `outgoing`: what the
/// changes tell observers, of which the part is kept that belongs to what is written.
pub async fn write(
    conn: &mut PgConnection,
    changes: &[Change],
    locked: Locked,
    outgoing: Option<&monitoring::Outgoing>,
) -> Result<Vec<Held>, Error> {
    let sql = write_sql(locked, outgoing.is_some());
    let calls = || changes.iter().map(|change| change.ended.as_ref()?.call);
    let text = |of: fn(&Change) -> Option<&str>| changes.iter().map(of).collect::<Vec<_>>();
    let lease_tokens: Vec<Uuid> = changes.iter().map(|change| change.lease_token).collect();
    let nth: Vec<f64> =
        changes.chunk_by(|a, b| a.run_id == b.run_id).flat_map(|of_run| (0..of_run.len()).map(|n| n as f64)).collect();
    let query = sqlx::query_as(&sql)
        .bind(text(|change| Some(&change.run_id)))
        .bind(lease_tokens)
        .bind(text(|change| change.ended.as_ref().map(|step| step.id.as_str())))
        .bind(text(|change| change.ended.as_ref().map(|step| step.end.status())))
        .bind(text(|change| change.ended.as_ref()?.end.output().map(RawValue::get)))
        .bind(text(|change| change.ended.as_ref()?.end.reason()))
        .bind(text(|change| change.begun.as_ref().map(|step| step.id.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.step_id.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.step_name.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.agent_name.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.input.get())))
        .bind(text(|change| Some(change.nested()?.parent_step_id.as_str())))
        .bind(text(|change| Some(change.nested()?.branch_name.as_str())))
        .bind(text(|change| change.nested()?.join_policy))
        .bind(text(|change| Some(change.nested()?.place.as_str())))
        .bind(text(|change| change.finished.as_ref().map(|run| run.status.as_str())))
        .bind(text(|change| change.finished.as_ref()?.error_message.as_deref()))
        .bind(nth)
        .bind(calls().map(|call| Some(call?.duration_ms)).collect::<Vec<_>>())
        .bind(calls().map(|call| call?.http_status.map(i32::from)).collect::<Vec<_>>())
        .bind(calls().map(|call| call?.fault).collect::<Vec<_>>());
    let query = match outgoing {
        Some(outgoing) => query.bind(&outgoing.updates).bind(outgoing.id).bind(outgoing.owner),
        None => query,
    };
    if locked == Locked::Skip {
        return Ok(query.fetch_all(conn).await?);
    }
    // What others have begun while the lock was waited for is seen by a later statement only.
    let mut transaction = conn.begin().await?;
    let run_ids = text(|change| Some(&change.run_id));
    let sql = "SELECT FROM workflow_runs WHERE run_id = ANY ($1) ORDER BY run_id FOR NO KEY UPDATE";
    sqlx::query(sql).bind(run_ids).execute(&mut *transaction).await?;
    let held = query.fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(held)
}

/// Makes a session, used for nothing else, look rows up by index whatever the planner thinks: it makes the plan when
/// the tables are small and keeps it when they have grown.
pub async fn always_use_indexes(conn: &mut PgConnection) -> Result<(), Error> {
    let sql = "SELECT set_config(name, 'off', false)
               FROM unnest(ARRAY['enable_seqscan', 'enable_hashjoin', 'enable_mergejoin']) AS name";
    sqlx::query(sql).execute(conn).await?;
    Ok(())
}
