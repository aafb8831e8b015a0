//! Wait conditions of steps outside of their run: a time, an answer to a callback, the end of another run.
//!
//! A waiting step is a PENDING row of `step_executions` with a row of `step_waits`. Both outlive the executor of the
//! run.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error, Pool,
    executions::StepBegin,
    family::{family, questions_of_family},
};
use crate::{
    a2a::shown,
    access::OrganizationId,
    input::{member, text},
    run::RunStatus,
    timestamp::Timestamp,
    workflow::FlowKeys,
};

/// Maximum nesting depth of runs.
pub const MAX_NESTING: i16 = 16;

/// Ensures that the callback of the step at this path has a token: an issued one that can still be answered, otherwise
/// this one. Returns the token; `None` if the caller does not own the run any more.
pub async fn prepare_callback(
    pool: &Pool,
    (run_id, lease_token): (&str, Uuid),
    (path, step_id): (&str, &str),
    approval: Option<&RawValue>,
    (token, token_hash): (&str, &[u8]),
) -> Result<Option<String>, Error> {
    let mut transaction = super::begin(pool).await?;
    let sql = "SELECT true FROM workflow_runs
               WHERE run_id = $1 AND lease_token = $2 AND status = 'RUNNING' FOR NO KEY UPDATE";
    let held: Option<bool> =
        sqlx::query_scalar(sql).bind(run_id).bind(lease_token).fetch_optional(&mut *transaction).await?;
    if held.is_none() {
        return Ok(None);
    }
    // A separate statement sees the token that another branch has created during the wait for the lock.
    let sql = "
        WITH existing AS MATERIALIZED (
            -- A token of an ended attempt is reused unless it was answered. An early answer is reused only for the
            -- same approval: another role may be required now.
            SELECT w.id, w.token FROM step_waits w
            WHERE run_id = $1 AND place = $2 AND token IS NOT NULL AND question IS NULL
                AND (attempt_id IS NULL OR (answered_at IS NULL AND coalesce(due_at > now(), true)))
                AND (answered_at IS NULL OR approval IS NOT DISTINCT FROM $6)
            ORDER BY created_at DESC LIMIT 1 FOR NO KEY UPDATE OF w
        ), updated AS (
            UPDATE step_waits w SET approval = $6 FROM existing
            WHERE w.id = existing.id AND w.approval IS DISTINCT FROM $6
        ), created AS (
            INSERT INTO step_waits (run_id, place, step_id, token, token_hash, approval)
            SELECT $1, $2, $3, $4, $5, $6 WHERE NOT EXISTS (SELECT 1 FROM existing)
            ON CONFLICT DO NOTHING
            RETURNING token
        )
        SELECT token FROM existing UNION ALL SELECT token FROM created";
    let token = sqlx::query_scalar(sql)
        .bind(run_id)
        .bind(path)
        .bind(step_id)
        .bind(token)
        .bind(token_hash)
        .bind(approval.map(Json))
        .fetch_optional(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(token)
}

/// Condition that a step begins to wait for.
#[derive(Clone, Debug)]
pub enum WaitCondition {
    /// A time.
    Time,
    /// The answer to the callback that [`prepare_callback`] created.
    Callback {
        /// Token of the callback.
        token: String,
    },
    /// The end of a sub-run, which begins together with the wait.
    Run(Box<ChildRun>),
}

/// Sub-run: a run that is a step of another one.
#[derive(Clone, Debug)]
pub struct ChildRun {
    /// Id of the new run.
    pub run_id: String,
    /// Definition that it executes.
    pub definition_id: Uuid,
    /// Workflow name of the definition.
    pub workflow_name: String,
    /// Version of the definition.
    pub version: i32,
    /// Input of the run.
    pub input: Box<RawValue>,
    /// `traceparent` of the run; `None` for that of its parent.
    pub traceparent: Option<String>,
    /// Whether limits of its parent, or of a run above that, hold for it.
    pub is_limited: bool,
    /// Keys of flow control; `None`: it starts at once.
    pub flow: Option<FlowKeys>,
}

/// Begins a waiting attempt: writes its row, its wait condition and its sub-run atomically. Repeating this is safe.
/// Returns whether the condition may be fulfilled already; `None` if the caller does not own the run any more.
pub async fn begin(
    conn: &mut PgConnection,
    (run_id, lease_token): (&str, Uuid),
    (path, step): (&str, &StepBegin),
    awaited: &WaitCondition,
    due_at: Option<DateTime<Utc>>,
) -> Result<Option<bool>, Error> {
    let sql = "
        WITH session AS MATERIALIZED (SELECT set_config('workflow_api.records', 'itself', true)),
        held AS MATERIALIZED (
            SELECT r.* FROM session, workflow_runs r
            WHERE run_id = $1 AND lease_token = $2 AND status = 'RUNNING' FOR NO KEY UPDATE OF r
        ), begun AS (
            INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at,
                parent_step_id, branch_name, join_policy, place)
            SELECT $3, run_id, $4, $5, '', 'PENDING', $6, clock_timestamp() AT TIME ZONE 'UTC', $7, $8, $9, $10 FROM held
            ON CONFLICT (id) DO NOTHING
            RETURNING run_id
        ), attached AS (
            UPDATE step_waits w SET attempt_id = $3, due_at = $12
            FROM begun WHERE w.run_id = begun.run_id AND w.token = $13
            RETURNING answered_at
        ), waiting AS (
            INSERT INTO step_waits (run_id, place, step_id, attempt_id, due_at, child_run_id)
            SELECT run_id, $11, $4, $3, $12, $14 FROM begun WHERE $13 IS NULL
        ), child AS (
            INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
                triggered_by, created_at, updated_at, workflow_version, correlation_id, priority, parent_run_id,
                parent_step_id, nesting, wake_at, organization_id, traceparent, limits, deadline_seconds, deadline_action, deadline_at,
                deadline_due_at, chain_depth, flow_stage, flow_key, flow_rest, flow_state, flow_at, redispatch_at)
            SELECT $14, $15::uuid::text, $16, $15::uuid::text, 'PENDING', $18, triggered_by, now() AT TIME ZONE 'UTC',
                now() AT TIME ZONE 'UTC', $17, correlation_id, priority, run_id, $4, nesting + 1,
                CASE WHEN $21::jsonb IS NULL THEN now() END, organization_id,
                coalesce($19, traceparent), CASE WHEN $20 THEN '{}'::jsonb END, seconds,
                CASE WHEN seconds IS NOT NULL THEN action END,
                now() + make_interval(secs => seconds), now() + make_interval(secs => seconds), chain_depth,
                $21 ->> 'stage', $21 ->> 'key', $21 -> 'rest', CASE WHEN $21 IS NOT NULL THEN 'arrived' END,
                CASE WHEN $21 IS NOT NULL THEN now() END, CASE WHEN $21 IS NOT NULL THEN 'infinity'::timestamptz END
            FROM held JOIN begun USING (run_id) LEFT JOIN (
                SELECT id, deadline_seconds AS seconds, deadline_action AS action FROM workflow_definitions) AS d ON d.id = $15::uuid
            WHERE $14 IS NOT NULL
        ), arrived AS (
            INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
            SELECT organization_id, $16, $21 ->> 'stage', $21 ->> 'key' FROM held JOIN begun USING (run_id)
            WHERE $14 IS NOT NULL AND $21 IS NOT NULL
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, step_id, attempt_id, detail)
            SELECT run_id, 'attempt.waiting', $4, $3, $14 FROM begun
        )
        -- After a repeated call, an event may have come in between.
        SELECT NOT EXISTS (SELECT 1 FROM begun) OR EXISTS (SELECT 1 FROM attached WHERE answered_at IS NOT NULL)
        FROM held";
    let nested = step.nested.as_ref();
    let token = if let WaitCondition::Callback { token } = awaited { Some(token) } else { None };
    let child = if let WaitCondition::Run(child) = awaited { Some(child) } else { None };
    Ok(sqlx::query_scalar(sql)
        .bind(run_id)
        .bind(lease_token)
        .bind(&step.id)
        .bind(&step.step_id)
        .bind(&step.step_name)
        .bind(Json(&step.input))
        .bind(nested.map(|nested| &nested.parent_step_id))
        .bind(nested.map(|nested| &nested.branch_name))
        .bind(nested.and_then(|nested| nested.join_policy))
        .bind(nested.map(|nested| &nested.path))
        .bind(path)
        .bind(due_at)
        .bind(token)
        .bind(child.map(|child| &child.run_id))
        .bind(child.map(|child| child.definition_id))
        .bind(child.map(|child| &child.workflow_name))
        .bind(child.map(|child| child.version))
        .bind(child.map(|child| Json(&child.input)))
        .bind(child.and_then(|child| child.traceparent.as_deref()))
        .bind(child.is_some_and(|child| child.is_limited))
        .bind(child.and_then(|child| Some(Json(child.flow.as_ref()?.to_json()))))
        .fetch_optional(conn)
        .await?)
}

/// Nesting of a run that is about to begin a sub-run.
#[derive(Debug, sqlx::FromRow)]
pub struct Family {
    /// Number of enclosing runs.
    pub nesting: i16,
    /// Number of sub-runs of the outermost run, including the one that is about to begin.
    pub sub_runs: i32,
}

/// Counts a sub-run that this run is about to begin. `None` if this run does not exist.
pub async fn count_sub_run(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<Family>, Error> {
    let sql = "
        WITH RECURSIVE ancestor AS (
            SELECT run_id, parent_run_id FROM workflow_runs WHERE run_id = $1
            UNION ALL
            SELECT r.run_id, r.parent_run_id FROM ancestor JOIN workflow_runs r ON r.run_id = ancestor.parent_run_id
        ), counted AS (
            INSERT INTO sub_run_counts AS c (root_run_id, begun)
            SELECT run_id, 1 FROM ancestor
            WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = ancestor.parent_run_id)
            ON CONFLICT (root_run_id) DO UPDATE SET begun = c.begun + 1
            RETURNING begun
        )
        SELECT nesting, begun AS sub_runs FROM counted, workflow_runs WHERE run_id = $1";
    Ok(sqlx::query_as(sql).bind(run_id).fetch_optional(db).await?)
}

/// Wait condition of an open attempt, and its state.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct Wait {
    /// Id of the attempt.
    pub attempt_id: String,
    /// Time at which the wait ends or expires.
    pub due_at: Option<DateTime<Utc>>,
    /// Subject that answered a callback, if authentication was required.
    pub answered_by: Option<String>,
    /// Time of the answer.
    pub answered_at: Option<DateTime<Utc>>,
    /// Id of the sub-run.
    pub child_run_id: Option<String>,
    /// Status of the sub-run.
    pub child_status: Option<String>,
    /// Error of the sub-run.
    pub child_error: Option<String>,
    /// Number of the question of an agent; `None`: no agent asks.
    pub round: Option<i16>,
}

/// Deletes the pending events of a run, which [`open`] returns. Only the owner of the run may do so, since they notify
/// other processes.
pub async fn forget_wakes(db: impl PgExecutor<'_>, run_id: &str, lease_token: Uuid) -> Result<(), Error> {
    let sql = "WITH held AS MATERIALIZED (
                   SELECT run_id FROM workflow_runs
                   WHERE run_id = $1 AND lease_token = $2 AND status = 'RUNNING' FOR SHARE
               ) DELETE FROM run_wakes w USING held WHERE w.run_id = held.run_id";
    sqlx::query(sql).bind(run_id).bind(lease_token).execute(db).await?;
    Ok(())
}

/// Wait conditions of the open attempts of a run. Answers are not included, since they may be too large to keep.
pub async fn open(db: impl PgExecutor<'_>, run_id: &str) -> Result<Vec<Wait>, Error> {
    let sql = "
        SELECT w.attempt_id, w.due_at, w.answered_by, w.answered_at, w.child_run_id, c.status AS child_status,
            c.error_message AS child_error, w.round
        FROM step_waits w JOIN step_executions s ON s.id = w.attempt_id AND s.status = 'PENDING'
            LEFT JOIN workflow_runs c ON c.run_id = w.child_run_id
        WHERE w.run_id = $1";
    Ok(sqlx::query_as(sql).bind(run_id).fetch_all(db).await?)
}

/// Answer to the callback of an attempt, if there is one.
pub async fn answer_to(db: impl PgExecutor<'_>, attempt_id: &str) -> Result<Option<Box<RawValue>>, Error> {
    let sql = "SELECT answer FROM step_waits WHERE attempt_id = $1";
    let answer: Option<Option<Json<Box<RawValue>>>> =
        sqlx::query_scalar(sql).bind(attempt_id).fetch_optional(db).await?;
    Ok(answer.flatten().map(|answer| answer.0))
}

/// Expires a callback. Returns false if it was answered before; then the answer is valid.
pub async fn expire(db: impl PgExecutor<'_>, attempt_id: &str) -> Result<bool, Error> {
    // A concurrent answer locks the row: it either finds `due_at` passed or is visible here.
    let sql = "UPDATE step_waits SET due_at = least(due_at, now()) WHERE attempt_id = $1 AND answered_at IS NULL
               RETURNING true";
    let expired: Option<bool> = sqlx::query_scalar(sql).bind(attempt_id).fetch_optional(db).await?;
    Ok(expired.unwrap_or(false))
}

/// Callback row for an answer.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct CallbackRow {
    pub id: Uuid,
    pub run_id: String,
    pub organization_id: String,
    pub workflow_name: String,
    pub step_id: String,
    pub attempt_id: Option<String>,
    pub approval: Option<Json<Box<RawValue>>>,
    /// Question of an agent.
    pub question: Option<Json<Box<RawValue>>>,
    pub answered_at: Option<DateTime<Utc>>,
    pub answer: Option<Json<Box<RawValue>>>,
    /// Whether it has expired or its attempt or run has ended.
    pub is_over: bool,
}

/// Whether a callback with that token exists.
pub async fn callback_exists(db: impl PgExecutor<'_>, token_hash: &[u8]) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM step_waits WHERE token_hash = $1)";
    Ok(sqlx::query_scalar(sql).bind(token_hash).fetch_one(db).await?)
}

/// Run of the callback with that token.
pub async fn run_of_callback(db: impl PgExecutor<'_>, token_hash: &[u8]) -> Result<Option<String>, Error> {
    let sql = "SELECT run_id FROM step_waits WHERE token_hash = $1";
    Ok(sqlx::query_scalar(sql).bind(token_hash).fetch_optional(db).await?)
}

/// Finds the callback by token, and locks it until the transaction ends.
pub async fn lock_callback(conn: &mut PgConnection, token_hash: &[u8]) -> Result<Option<CallbackRow>, Error> {
    let sql = "SELECT id FROM step_waits WHERE token_hash = $1 FOR UPDATE";
    let Some(id) = sqlx::query_scalar::<_, Uuid>(sql).bind(token_hash).fetch_optional(&mut *conn).await? else {
        return Ok(None);
    };
    // A separate statement sees what was committed during the wait for the lock.
    callback(conn, id).await
}

/// Finds the callback by token.
pub async fn find_callback(conn: &mut PgConnection, token_hash: &[u8]) -> Result<Option<CallbackRow>, Error> {
    let sql = "SELECT id FROM step_waits WHERE token_hash = $1";
    match sqlx::query_scalar::<_, Uuid>(sql).bind(token_hash).fetch_optional(&mut *conn).await? {
        Some(id) => callback(conn, id).await,
        None => Ok(None),
    }
}

async fn callback(conn: &mut PgConnection, id: Uuid) -> Result<Option<CallbackRow>, Error> {
    let sql = "
        SELECT w.id, w.run_id, r.organization_id, r.workflow_name, w.step_id, w.attempt_id, w.approval, w.question, w.answered_at,
            w.answer, coalesce(w.due_at <= now(), false) OR r.status NOT IN ('PENDING', 'RUNNING')
                OR (w.attempt_id IS NOT NULL AND s.status IS DISTINCT FROM 'PENDING') AS is_over
        FROM step_waits w JOIN workflow_runs r ON r.run_id = w.run_id
            LEFT JOIN step_executions s ON s.id = w.attempt_id
        WHERE w.id = $1";
    Ok(sqlx::query_as(sql).bind(id).fetch_optional(conn).await?)
}

/// Writes the answer to a callback that the caller has locked by [`lock_callback`], and wakes its run. Returns the
/// time.
pub async fn answer(
    conn: &mut PgConnection,
    callback: &CallbackRow,
    answer: &RawValue,
    by: Option<&str>,
) -> Result<DateTime<Utc>, Error> {
    let sql = "UPDATE step_waits SET answered_at = now(), answer = $2, answered_by = $3 WHERE id = $1
               RETURNING answered_at";
    let at = sqlx::query_scalar(sql).bind(callback.id).bind(Json(answer)).bind(by).fetch_one(&mut *conn).await?;
    let sql = "INSERT INTO run_events (run_id, kind, step_id, attempt_id, detail) VALUES ($1, 'callback.answered', $2, $3, $4)";
    sqlx::query(sql)
        .bind(&callback.run_id)
        .bind(&callback.step_id)
        .bind(&callback.attempt_id)
        .bind(by)
        .execute(&mut *conn)
        .await?;
    // An early answer is found when the step begins.
    if callback.attempt_id.is_some() {
        wake(conn, &callback.run_id).await?;
    }
    Ok(at)
}

/// Adds an event that wakes the run.
async fn wake(conn: &mut PgConnection, run_id: &str) -> Result<(), Error> {
    sqlx::query("INSERT INTO run_wakes (run_id) VALUES ($1)").bind(run_id).execute(conn).await?;
    Ok(())
}

/// Callback of a run that can be answered.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct OpenCallback {
    pub step_id: String,
    pub attempt_id: Option<String>,
    pub token: String,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub approval: Option<Json<Box<RawValue>>>,
    /// Question of an agent, and its number.
    pub question: Option<Json<Box<RawValue>>>,
    pub round: Option<i16>,
    pub input_data: Option<Json<Box<RawValue>>>,
}

/// Open callbacks of the organisation's run, oldest first, up to the limit.
pub async fn open_callbacks(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_id: &str,
    limit: i64,
) -> Result<Vec<OpenCallback>, Error> {
    let sql = "
        SELECT w.step_id, w.attempt_id, w.token, w.created_at AT TIME ZONE 'UTC' AS created_at,
            w.due_at AT TIME ZONE 'UTC' AS expires_at, w.approval, w.question, w.round, s.input_data
        FROM step_waits w JOIN workflow_runs r ON r.run_id = w.run_id AND r.status IN ('PENDING', 'RUNNING')
            LEFT JOIN step_executions s ON s.id = w.attempt_id
        WHERE w.run_id = $1 AND r.organization_id = $3 AND w.token IS NOT NULL AND w.answered_at IS NULL AND coalesce(w.due_at > now(), true)
            AND (w.attempt_id IS NULL OR s.status = 'PENDING')
        ORDER BY w.created_at, w.id LIMIT $2";
    Ok(sqlx::query_as(sql).bind(run_id).bind(limit).bind(organization.as_str()).fetch_all(db).await?)
}

/// Question of a run: a callback that one of its steps waits for, or of those of its sub-runs.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Question {
    /// The run itself, or the sub-run that waits.
    pub run_id: String,
    pub step_id: String,
    pub attempt_id: String,
    pub token: String,
    pub expires_at: Option<Timestamp>,
    pub approval: Option<Json<Box<RawValue>>>,
    /// Question of an agent, and its number.
    pub question: Option<Json<Box<RawValue>>>,
    pub round: Option<i16>,
    /// Input of the step, unless it is large.
    pub input_data: Option<Json<Box<RawValue>>>,
}

impl Question {
    /// Name of the question. The next one of the same attempt has another.
    #[must_use]
    pub fn name(&self) -> String {
        self.round.map_or_else(|| self.attempt_id.clone(), |round| format!("{}.{round}", self.attempt_id))
    }

    /// Id of the sub-run that asks, if it is not that run itself.
    #[must_use]
    pub fn sub_run(&self, run_id: &str) -> Option<&str> {
        Some(self.run_id.as_str()).filter(|asking| *asking != run_id)
    }

    /// Text for people: what the step says in `question`, `message` or `text`, else a sentence about it.
    #[must_use]
    pub fn text(&self) -> String {
        if let Some(asked) = &self.question {
            // The agent's words are not those of the step.
            let said = member(&asked.0, "text").and_then(text).filter(|text| !text.is_empty());
            return said.unwrap_or_else(|| {
                let what = if self.approval.is_some() { "an authorisation" } else { "an answer" };
                format!("The agent of the step '{}' waits for {what}", self.step_id)
            });
        }
        let input = self.input_data.as_ref().map(|input| &*input.0);
        let said = |name| input.and_then(|input| member(input, name)).and_then(text).filter(|text| !text.is_empty());
        ["question", "message", "text"].into_iter().find_map(said).unwrap_or_else(|| {
            let what = if self.approval.is_some() { "an approval" } else { "an answer" };
            format!("The step '{}' waits for {what}", self.step_id)
        })
    }

    /// JSON Schema of the answer, if the agent that asks has given one.
    #[must_use]
    pub fn answer_schema(&self) -> Option<&RawValue> {
        member(&self.question.as_ref()?.0, "answer_schema").filter(|schema| schema.get() != "null")
    }

    /// Role that an approval or a question requires.
    #[must_use]
    pub fn role(&self) -> Option<String> {
        let json = self.approval.as_ref().or(self.question.as_ref());
        json.and_then(|json| member(&json.0, "role")).and_then(text)
    }

    /// The question as A2A clients see it, among those of the run.
    #[must_use]
    pub fn shown(&self, run_id: &str) -> shown::Question<'_> {
        shown::Question {
            text: self.text(),
            question_id: self.name(),
            step_id: &self.step_id,
            sub_run_id: self.sub_run(run_id),
            is_approval: self.approval.is_some(),
            role: self.role(),
            expires_at: self.expires_at,
            // The input of a step whose agent asks was for the agent.
            input: self.input_data.as_ref().filter(|_| self.question.is_none()).map(|input| &*input.0),
            answer_schema: self.answer_schema(),
        }
    }
}

/// Questions of the organisation's run and of its sub-runs, oldest first, up to the limit. Inputs of more than
/// `max_bytes` are omitted.
pub async fn questions(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_id: &str,
    (limit, max_bytes): (i64, i32),
) -> Result<Vec<Question>, Error> {
    const SQL: &str = concat!(
        "WITH RECURSIVE ",
        family!("SELECT run_id FROM workflow_runs WHERE run_id = $1 AND organization_id = $2 AND status = 'RUNNING'"),
        "SELECT w.run_id, w.step_id, w.attempt_id, w.token, w.due_at AT TIME ZONE 'UTC' AS expires_at, w.approval,
             w.question, w.round,
             CASE WHEN octet_length(w.input_data::text) <= $4 THEN w.input_data END AS input_data ",
        questions_of_family!(),
        " ORDER BY w.created_at, w.id LIMIT $3"
    );
    let rows = sqlx::query_as(AssertSqlSafe(SQL)).bind(run_id).bind(organization.as_str()).bind(limit).bind(max_bytes);
    Ok(rows.fetch_all(db).await?)
}

/// Whether a run in that status has ended.
#[must_use]
pub fn has_ended(status: Option<&str>) -> bool {
    status.and_then(RunStatus::parse).is_some_and(RunStatus::is_terminal)
}
