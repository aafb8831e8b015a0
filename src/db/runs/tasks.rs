//! Runs as tasks of other protocols: whether they wait for an answer, and the conversations that they belong to.

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgExecutor, types::Json};

use crate::{a2a::shown, access::OrganizationId, db::Error, run::State, timestamp::Timestamp};

/// SQL condition on a row of `workflow_runs`: one of its steps, or of those of its sub-runs, waits for an answer.
macro_rules! waiting {
    () => {
        concat!(
            "(status = 'RUNNING' AND EXISTS (WITH RECURSIVE ",
            $crate::db::family::family!("SELECT workflow_runs.run_id"),
            "SELECT ",
            $crate::db::family::questions_of_family!(),
            "))"
        )
    };
}

pub(super) use waiting;

/// Run as a task.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct TaskRow {
    /// Id of the run.
    pub run_id: String,
    /// Name of its workflow.
    pub workflow_name: String,
    /// Label of its conversation; `None`: it is one by itself.
    pub context_id: Option<String>,
    /// Status of the run.
    pub status: String,
    /// Time of its creation.
    pub created_at: Timestamp,
    /// Time of the last change of its state.
    pub updated_at: Timestamp,
    /// Reason of its failure or cancellation, cut at 4000 characters.
    pub error_message: Option<String>,
    /// Whether one of its steps, or of those of its sub-runs, waits for an answer.
    pub is_waiting: bool,
}

impl TaskRow {
    /// State of the run.
    #[must_use]
    pub fn state(&self) -> State {
        State::of(&self.status, self.is_waiting)
    }

    /// The run as A2A clients see it.
    #[must_use]
    pub fn shown(&self) -> shown::Run<'_> {
        shown::Run {
            id: &self.run_id,
            context_id: self.context_id.as_deref().unwrap_or(&self.run_id),
            state: self.state(),
            updated_at: self.updated_at,
            error: self.error_message.as_deref(),
        }
    }
}

/// Those of these runs that the organisation has, in their order.
pub async fn tasks(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_ids: &[String],
) -> Result<Vec<TaskRow>, Error> {
    const SQL: &str = concat!(
        "SELECT run_id, workflow_name, context_id, status, created_at, updated_at,
             left(error_message, 4000) AS error_message, ",
        waiting!(),
        " AS is_waiting FROM workflow_runs
         WHERE run_id = ANY ($1) AND organization_id = $2 ORDER BY array_position($1, run_id::text)"
    );
    Ok(sqlx::query_as(AssertSqlSafe(SQL)).bind(run_ids).bind(organization.as_str()).fetch_all(db).await?)
}

/// The organisation's run as a task.
pub async fn task(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<TaskRow>, Error> {
    Ok(tasks(db, organization, &[run_id.to_owned()]).await?.pop())
}

/// Outputs of those of these runs that are completed and have an output of at most so many bytes.
pub async fn small_outputs(
    db: impl PgExecutor<'_>,
    run_ids: &[String],
    max_bytes: i32,
) -> Result<Vec<(String, Json<Box<RawValue>>)>, Error> {
    let sql = "
        SELECT run.run_id, step.output_data FROM workflow_runs run, LATERAL (
            SELECT output_data FROM step_executions AS step
            WHERE step.run_id = run.run_id AND step.status = 'COMPLETED' AND step.parent_step_id IS NULL
            ORDER BY step.completed_at DESC NULLS LAST, step.started_at DESC, step.id DESC LIMIT 1
        ) AS step
        WHERE run.run_id = ANY ($1) AND run.status = 'COMPLETED' AND octet_length(step.output_data::text) <= $2";
    Ok(sqlx::query_as(sql).bind(run_ids).bind(max_bytes).fetch_all(db).await?)
}
