//! Runs, as the API reads and changes them. Writes by the executor are in `executions`.

pub mod counts;
mod list;
mod shown;
mod start;
mod steps;
mod tasks;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

pub use self::{
    list::{Filter, Sort, list},
    shown::{Found, SMALL_BYTES, ShownRun, find_shown},
    start::{Definition, MessageBatch, NewRun, Quota, StartBatch, Started, StartingTrigger, start, start_within},
    steps::{BareStep, RecordedStep, StepRow, StepSummary, output, recorded_steps, step_states, step_summaries, steps},
    tasks::{TaskRow, small_outputs, task, tasks},
};
use super::Error;
use crate::{access::OrganizationId, timestamp::Timestamp, usage::Limits, workflow::FlowKeys};

/// Row of `workflow_runs` with the columns that the API shows.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migration")]
pub struct RunRow {
    pub run_id: String,
    pub workflow_id: String,
    pub workflow_name: String,
    pub workflow_definition_id: Option<String>,
    pub workflow_version: Option<i32>,
    pub status: String,
    pub input_data: Option<Json<Box<RawValue>>>,
    /// In a list: whether the run has an input, even if it is not included.
    #[sqlx(default)]
    pub has_input: bool,
    pub triggered_by: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub cancelled_at: Option<Timestamp>,
    pub cancelled_by: Option<String>,
    pub error_message: Option<String>,
    pub correlation_id: Option<String>,
    pub priority: i16,
    pub paused_at: Option<Timestamp>,
    pub parent_run_id: Option<String>,
    pub parent_step_id: Option<String>,
    pub traceparent: Option<String>,
    pub limits: Option<Json<Limits>>,
    pub deadline_at: Option<Timestamp>,
    pub deadline_missed_at: Option<Timestamp>,
    pub trigger_kind: Option<String>,
    pub trigger_id: Option<Uuid>,
    pub trigger_at: Option<DateTime<Utc>>,
    pub chain_depth: i16,
    pub flow_stage: Option<String>,
    pub flow_state: Option<String>,
    pub flow_key: Option<String>,
    /// In a list: whether it has failed because a limit was used up.
    #[sqlx(default)]
    pub is_over_budget: bool,
    /// In a list: the step that waits for its next attempt.
    #[sqlx(default)]
    pub retrying: Option<Json<Retrying>>,
}

/// Step of a run of which an attempt has failed and the next one has not begun.
#[derive(Clone, Debug, Deserialize)]
pub struct Retrying {
    /// Id of the step.
    pub step_id: String,
    /// Agent that the failed attempt has called.
    pub agent_name: String,
    /// Number of its attempts, as far as they are among the latest ones of the run.
    pub attempts: i64,
    /// When the next attempt begins.
    pub next_attempt_at: NaiveDateTime,
    /// Why the last attempt has failed.
    pub error_message: Option<String>,
}

const COLUMNS: &str = "run_id, workflow_id, workflow_name, workflow_definition_id, workflow_version, status, input_data, \
     triggered_by, created_at, updated_at, completed_at, cancelled_at, cancelled_by, error_message, correlation_id, priority, \
     paused_at AT TIME ZONE 'UTC' AS paused_at, parent_run_id, parent_step_id, traceparent, limits, \
     deadline_at AT TIME ZONE 'UTC' AS deadline_at, deadline_missed_at AT TIME ZONE 'UTC' AS deadline_missed_at, \
     trigger_kind, trigger_id, trigger_at, chain_depth, flow_stage, flow_state, flow_key";

fn select(rest: &str) -> String {
    format!("SELECT {COLUMNS} FROM workflow_runs{rest}")
}

/// Finds the organisation's run by id.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<RunRow>, Error> {
    let sql = select(" WHERE run_id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(run_id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Organisation of a run; `None` if the run does not exist.
pub async fn organization(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<OrganizationId>, Error> {
    let sql = "SELECT organization_id FROM workflow_runs WHERE run_id = $1";
    let found: Option<String> = sqlx::query_scalar(sql).bind(run_id).fetch_optional(db).await?;
    Ok(found.as_deref().map(OrganizationId::stored))
}

/// Workflow name of the organisation's run.
pub async fn workflow_name(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<String>, Error> {
    let sql = "SELECT workflow_name FROM workflow_runs WHERE run_id = $1 AND organization_id = $2";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and locks the row until the transaction ends.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<RunRow>, Error> {
    let sql = select(" WHERE run_id = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(run_id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Whether the organisation has a run of that id.
pub async fn exists(db: impl PgExecutor<'_>, organization: &OrganizationId, run_id: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM workflow_runs WHERE run_id = $1 AND organization_id = $2)";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(organization.as_str()).fetch_one(db).await?)
}

/// Those of these runs that exist.
pub async fn existing(db: impl PgExecutor<'_>, run_ids: &[String]) -> Result<Vec<String>, Error> {
    let sql = "SELECT run_id FROM workflow_runs WHERE run_id = ANY($1)";
    Ok(sqlx::query_scalar(sql).bind(run_ids).fetch_all(db).await?)
}

/// Plan that a run executes: stored with the run, or the version that it names. A run that names none was started by
/// another program and uses the current content of its definition. `None` if none of these exists.
pub async fn plan(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<Box<RawValue>>, Error> {
    let sql = "SELECT coalesce(
                   r.workflow_plan,
                   (SELECT d.workflow_data FROM workflow_definitions d
                    WHERE d.name = r.workflow_name AND d.version = r.workflow_version
                        AND d.organization_id = r.organization_id),
                   (SELECT d.workflow_data FROM workflow_definitions d
                    WHERE r.workflow_version IS NULL AND d.id::text = r.workflow_definition_id
                        AND d.organization_id = r.organization_id))
               FROM workflow_runs r WHERE r.run_id = $1";
    let plan: Option<Option<Json<Box<RawValue>>>> = sqlx::query_scalar(sql).bind(run_id).fetch_optional(db).await?;
    Ok(plan.flatten().map(|plan| plan.0))
}

/// Ends a run that the caller has locked by [`lock`]. Its executor loses the lease. A trigger closes its open steps and
/// all sub-runs.
pub async fn cancel(
    conn: &mut PgConnection,
    run_id: &str,
    by: &str,
    error_message: Option<&str>,
    at: Timestamp,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE workflow_runs SET status = 'CANCELLED', cancelled_at = $2, cancelled_by = $3, updated_at = $2,
             error_message = coalesce($4, error_message), executor_id = NULL, lease_token = NULL, wake_at = NULL
         WHERE run_id = $1 AND status IN ('PENDING', 'RUNNING')",
    )
    .bind(run_id)
    .bind(at)
    .bind(by)
    .bind(error_message)
    .execute(conn)
    .await?;
    Ok(())
}

/// Pauses a run that the caller has locked by [`lock`]: no further step begins. Returns since when it is paused.
pub async fn pause(conn: &mut PgConnection, run_id: &str, by: &str) -> Result<Timestamp, Error> {
    let sql = "WITH paused AS (
                   UPDATE workflow_runs SET paused_at = now(), updated_at = now() AT TIME ZONE 'UTC' WHERE run_id = $1
                   RETURNING run_id, paused_at
               ), recorded AS (INSERT INTO run_events (run_id, kind, detail) SELECT run_id, 'run.paused', $2 FROM paused)
               SELECT paused_at AT TIME ZONE 'UTC' FROM paused";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(by).fetch_one(conn).await?)
}

/// Resumes a paused run that the caller has locked by [`lock`]. If it waited for an executor, its message may be lost,
/// so it is resumed without one.
pub async fn resume(conn: &mut PgConnection, run_id: &str, by: &str) -> Result<(), Error> {
    let sql = "WITH resumed AS (
                   UPDATE workflow_runs SET paused_at = NULL, updated_at = now() AT TIME ZONE 'UTC',
                       wake_at = CASE WHEN status = 'PENDING' AND (flow_state IN ('arrived', 'queued')) IS NOT TRUE
                           THEN now() ELSE wake_at END
                   WHERE run_id = $1
                   RETURNING run_id, status, organization_id, workflow_name, flow_stage, flow_state, flow_key
               ), woken AS (
                   -- A held run was passed over while it was paused.
                   INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
                   SELECT organization_id, workflow_name, flow_stage, flow_key FROM resumed
                   WHERE status = 'PENDING' AND flow_state IN ('arrived', 'queued')
               )
               INSERT INTO run_events (run_id, kind, detail) SELECT run_id, 'run.resumed', $2 FROM resumed";
    sqlx::query(sql).bind(run_id).bind(by).execute(conn).await?;
    Ok(())
}

/// How a run is started again.
#[derive(Debug)]
pub struct Reopened<'a> {
    /// Version of the definition to which it is pinned.
    pub version: i32,
    /// Id of its new message.
    pub event_id: Uuid,
    /// Step up to which completed steps count as done; `None`: all of them do.
    pub resume_from_step: Option<&'a str>,
    /// Input that replaces the old one.
    pub input: Option<&'a RawValue>,
    /// Limits that replace the old ones; empty ones remove them.
    pub limits: Option<&'a Limits>,
    /// Keys of flow control: it is queued, without a message.
    pub flow: Option<&'a FlowKeys>,
    /// Time of the change.
    pub at: Timestamp,
}

/// Resets a failed or cancelled run, which the caller has locked by [`lock`], to PENDING, pinned to the current content
/// of its definition. Completed steps count as done, but only up to `resume_from_step`.
pub async fn reopen(conn: &mut PgConnection, run_id: &str, reopened: &Reopened<'_>) -> Result<(), Error> {
    sqlx::query(
        "WITH reopened AS (
         UPDATE workflow_runs SET status = 'PENDING', resume_from_step = $5,
             -- This uses the database's clock, like the begin of every attempt.
             resumed_at = CASE WHEN $5::varchar IS NOT NULL THEN now() AT TIME ZONE 'UTC' END, workflow_version = $2, workflow_plan = NULL,
             error_message = NULL, cancelled_at = NULL, cancelled_by = NULL, completed_at = NULL, updated_at = $3,
             executor_id = NULL, lease_token = NULL, execution_event_id = $4,
             flow_stage = $8::jsonb ->> 'stage', flow_state = CASE WHEN $8 IS NOT NULL THEN 'queued' END,
             flow_key = $8 ->> 'key', flow_rest = ($8 -> 'rest') || '{\"retried\": true}',
             flow_at = CASE WHEN $8 IS NOT NULL THEN now() END, flow_due = NULL,
             redispatch_at = CASE WHEN $8 IS NOT NULL THEN 'infinity'::timestamptz END,
             wake_at = NULL, parked_at = NULL, paused_at = NULL, takeovers = 0, input_data = coalesce($6, input_data),
             -- The limits of the runs above a sub-run go on to hold.
             limits = CASE WHEN $7::jsonb = '{}' AND parent_run_id IS NULL THEN NULL ELSE coalesce($7, limits) END
         WHERE run_id = $1 AND status IN ('FAILED', 'CANCELLED')
         RETURNING organization_id, workflow_name, flow_stage, flow_key
         )
         INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
         SELECT organization_id, workflow_name, flow_stage, flow_key FROM reopened WHERE flow_key IS NOT NULL",
    )
    .bind(run_id)
    .bind(reopened.version)
    .bind(reopened.at)
    .bind(reopened.event_id)
    .bind(reopened.resume_from_step)
    .bind(reopened.input.map(Json))
    .bind(reopened.limits.map(Json))
    .bind(reopened.flow.map(|keys| Json(keys.to_json())))
    .execute(&mut *conn)
    .await?;
    let sql = "UPDATE run_usage SET exceeded = NULL, limits = NULL WHERE run_id = $1";
    sqlx::query(sql).bind(run_id).execute(&mut *conn).await?;
    sqlx::query("DELETE FROM sub_run_counts WHERE root_run_id = $1").bind(run_id).execute(conn).await?;
    Ok(())
}

/// Fails a run that cannot be dispatched, if it still waits for the request of that id; for any request, if the run has
/// no id.
pub async fn fail_pending(
    db: impl PgExecutor<'_>,
    run_id: &str,
    event_id: Option<Uuid>,
    error_message: &str,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE workflow_runs SET status = 'FAILED', error_message = $2, updated_at = now() AT TIME ZONE 'UTC',
             completed_at = now() AT TIME ZONE 'UTC'
         WHERE run_id = $1 AND status = 'PENDING'
             AND ($3::uuid IS NULL OR execution_event_id IS NULL OR execution_event_id = $3)",
    )
    .bind(run_id)
    .bind(error_message)
    .bind(event_id)
    .execute(db)
    .await?;
    Ok(())
}

/// Number of open runs by state.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct OpenRuns {
    /// Runs that wait for an executor.
    pub waiting: i64,
    /// Runs that the flow control of their workflow holds, by stage.
    pub debounced: i64,
    /// See `debounced`.
    pub throttled: i64,
    /// See `debounced`.
    pub without_slot: i64,
    /// Runs that an executor drives.
    pub running: i64,
    /// Parked runs, which wait for a time, an answer or another run.
    pub parked: i64,
    /// Runs that are paused, or about to pause.
    pub paused: i64,
}

/// Counts the open runs up to a maximum; a larger backlog would make each count slow.
pub async fn count_open(db: impl sqlx::PgExecutor<'_>) -> Result<OpenRuns, Error> {
    let sql = "SELECT count(*) FILTER (WHERE paused_at IS NULL AND status = 'PENDING' AND NOT is_held) AS waiting,
                      count(*) FILTER (WHERE is_held AND flow_stage = 'debounce') AS debounced,
                      count(*) FILTER (WHERE is_held AND flow_stage = 'throttle') AS throttled,
                      count(*) FILTER (WHERE is_held AND flow_stage = 'concurrency') AS without_slot,
                      count(*) FILTER (WHERE paused_at IS NULL AND wake_at IS NULL AND status = 'RUNNING') AS running,
                      count(*) FILTER (WHERE paused_at IS NULL AND wake_at IS NOT NULL AND status = 'RUNNING') AS parked,
                      count(*) FILTER (WHERE paused_at IS NOT NULL) AS paused
               FROM (SELECT status, wake_at, paused_at, flow_stage, status = 'PENDING' AND paused_at IS NULL
                         AND (flow_state IN ('arrived', 'queued')) IS TRUE AS is_held
                     FROM workflow_runs
                     WHERE status IN ('PENDING', 'RUNNING') LIMIT 100000) r";
    Ok(sqlx::query_as(sql).fetch_one(db).await?)
}

/// Time in seconds for which the oldest run has waited for an executor; 0 if none waits. A waiting run is not changed
/// until it is claimed, and an index has the runs of each organisation in the order of their last change.
pub async fn oldest_waiting_secs(db: impl sqlx::PgExecutor<'_>) -> Result<f64, Error> {
    let sql = "SELECT coalesce(extract(epoch FROM now() AT TIME ZONE 'UTC' - min(oldest.updated_at)), 0)::float8
               FROM (SELECT DISTINCT organization_id FROM run_totals WHERE status = 'PENDING' AND runs > 0) AS waiting
               CROSS JOIN LATERAL (
                   SELECT updated_at FROM workflow_runs r
                   WHERE r.organization_id = waiting.organization_id AND status = 'PENDING' AND paused_at IS NULL
                       AND (flow_state IN ('arrived', 'queued')) IS NOT TRUE
                   ORDER BY updated_at LIMIT 1) AS oldest";
    Ok(sqlx::query_scalar(sql).fetch_one(db).await?)
}
