//! Questions of agents: rows of `step_waits` of attempts whose agent has asked back. The attempt is PENDING until the
//! agent's task has ended, also while the agent works on an answer. So whichever executor continues the run, it finds the
//! task and never begins a second one.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;

use super::{Error, Pool, executions::AgentCall};

/// Question that an attempt begins to wait for.
#[derive(Clone, Debug)]
pub struct NewQuestion {
    /// Step path.
    pub path: String,
    /// Id of the step.
    pub step_id: String,
    /// Id of the attempt.
    pub attempt_id: String,
    /// Number of the question within the attempt, from 1.
    pub round: i16,
    /// The question.
    pub question: Box<RawValue>,
    /// Set if the answer is a decision.
    pub approval: Option<Box<RawValue>>,
    /// Token of the callback.
    pub token: String,
    /// SHA-256 of it.
    pub token_hash: Vec<u8>,
    /// Time at which the step ends.
    pub due_at: Option<DateTime<Utc>>,
    /// Text of the question for the run's log.
    pub text: Option<String>,
    /// Name of the agent.
    pub agent_name: String,
    /// Call that the agent has answered with the question.
    pub call: Option<AgentCall>,
}

/// Begins to wait for an answer: the attempt becomes PENDING and gets the callback, atomically. Repeating this is safe.
/// Returns false if the attempt has ended; `None` if the caller does not own the run any more.
pub async fn ask(
    pool: &Pool,
    (run_id, lease_token): (&str, Uuid),
    question: &NewQuestion,
) -> Result<Option<bool>, Error> {
    let mut transaction = super::begin(pool).await?;
    let sql = "SELECT set_config('workflow_api.records', 'itself', true) FROM workflow_runs
               WHERE run_id = $1 AND lease_token = $2 AND (status = 'RUNNING') IS TRUE FOR NO KEY UPDATE";
    let held: Option<String> =
        sqlx::query_scalar(sql).bind(run_id).bind(lease_token).fetch_optional(&mut *transaction).await?;
    if held.is_none() {
        return Ok(None);
    }
    // The answered questions stay, so that a repeated answer gets the same result.
    let sql = "UPDATE step_waits SET attempt_id = NULL WHERE attempt_id = $1 AND round < $2";
    sqlx::query(sql).bind(&question.attempt_id).bind(question.round).execute(&mut *transaction).await?;
    let sql = "
        WITH asking AS (
            UPDATE step_executions SET status = 'PENDING'
            WHERE id = $2 AND (status IN ('PENDING', 'RUNNING')) IS TRUE RETURNING id
        ), waiting AS (
            INSERT INTO step_waits (run_id, place, step_id, attempt_id, due_at, token, token_hash, approval, question, round)
            SELECT $1, $3, $4, id, $5, $6, $7, $8, $9, $10 FROM asking
            ON CONFLICT DO NOTHING RETURNING attempt_id
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, step_id, attempt_id, agent_name, http_status, duration_ms, detail)
            SELECT $1, kind, $4, attempt_id, $11, http_status, ms, detail FROM waiting, (VALUES
                (1, 'agent.answered', $12::int, $13::float8, NULL), (2, 'attempt.waiting', NULL, NULL, $14::text)
            ) AS event (nth, kind, http_status, ms, detail) WHERE nth > 1 OR $13 IS NOT NULL ORDER BY nth
        )
        SELECT EXISTS (SELECT FROM asking)";
    let is_open: bool = sqlx::query_scalar(sql)
        .bind(run_id)
        .bind(&question.attempt_id)
        .bind(&question.path)
        .bind(&question.step_id)
        .bind(question.due_at)
        .bind(&question.token)
        .bind(&question.token_hash)
        .bind(question.approval.as_deref().map(Json))
        .bind(Json(&question.question))
        .bind(question.round)
        .bind(&question.agent_name)
        .bind(question.call.and_then(|call| call.http_status).map(i32::from))
        .bind(question.call.map(|call| call.duration_ms))
        .bind(&question.text)
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Some(is_open))
}

/// The last question of an attempt.
pub async fn of_attempt(db: impl PgExecutor<'_>, attempt_id: &str) -> Result<Option<Box<RawValue>>, Error> {
    let sql = "SELECT question FROM step_waits WHERE attempt_id = $1 AND question IS NOT NULL";
    let question: Option<Json<Box<RawValue>>> = sqlx::query_scalar(sql).bind(attempt_id).fetch_optional(db).await?;
    Ok(question.map(|question| question.0))
}

/// Task of an agent that has to be cancelled.
#[derive(Debug, sqlx::FromRow)]
pub struct GivenUp {
    /// Id of the question.
    pub id: Uuid,
    /// Run that has asked the agent.
    pub run_id: String,
    /// Organisation of the run.
    pub organization_id: String,
    /// Correlation id of the run.
    pub correlation_id: Option<String>,
    /// The question.
    pub question: Json<Box<RawValue>>,
}

/// Takes tasks that have to be cancelled, the oldest first. One whose cancellation is not noted by [`cancelled`] is
/// returned again after half a minute, up to five times.
pub async fn given_up(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<GivenUp>, Error> {
    let sql = "
        WITH due AS MATERIALIZED (
            SELECT id FROM step_waits WHERE cancel_at <= now() ORDER BY cancel_at LIMIT $1 FOR UPDATE SKIP LOCKED
        )
        UPDATE step_waits w
        SET cancel_at = CASE WHEN cancels < 4 THEN now() + interval '30 s' END, cancels = cancels + 1
        FROM due, workflow_runs r WHERE w.id = due.id AND r.run_id = w.run_id
        RETURNING w.id, w.run_id, r.organization_id, r.correlation_id, w.question";
    Ok(sqlx::query_as(sql).bind(limit).fetch_all(db).await?)
}

/// Notes that the task was cancelled, or has ended otherwise.
pub async fn cancelled(db: impl PgExecutor<'_>, id: Uuid) -> Result<(), Error> {
    sqlx::query("UPDATE step_waits SET cancel_at = NULL WHERE id = $1").bind(id).execute(db).await?;
    Ok(())
}
