//! Step attempts of a run, as the API reads them.

use serde_json::value::RawValue;
use sqlx::{FromRow, PgConnection, PgExecutor, postgres::PgRow, types::Json};

use crate::{
    access::OrganizationId,
    db::{
        Error,
        executions::INTERRUPTED,
        list::{self, Conditions, Entries, ListRow, Order, PageRequest, Plan, Table},
        usage::Used,
    },
    timestamp::Timestamp,
};

/// Row of `step_executions`.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migration")]
pub struct StepRow {
    pub id: String,
    pub run_id: String,
    pub step_id: String,
    pub step_name: String,
    pub agent_name: String,
    pub status: String,
    pub input_data: Json<Box<RawValue>>,
    pub output_data: Option<Json<Box<RawValue>>>,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub error_message: Option<String>,
    pub next_attempt_at: Option<Timestamp>,
    pub parent_step_id: Option<String>,
    pub branch_name: Option<String>,
    pub join_policy: Option<String>,
    pub child_run_id: Option<String>,
    pub usage: Option<Json<Used>>,
}

/// Output of the last completed step of the main chain.
pub async fn output(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<Json<Box<RawValue>>>, Error> {
    let sql = "SELECT output_data FROM step_executions
               WHERE run_id = $1 AND status = 'COMPLETED' AND parent_step_id IS NULL
               ORDER BY completed_at DESC NULLS LAST, started_at DESC, id DESC LIMIT 1";
    let output: Option<Option<Json<Box<RawValue>>>> = sqlx::query_scalar(sql).bind(run_id).fetch_optional(db).await?;
    Ok(output.flatten())
}

/// Columns of attempts, with these ones for their data.
macro_rules! columns {
    ($data:literal) => {
        concat!(
            $data,
            ", id, run_id, step_id, step_name, agent_name, status, started_at, completed_at, error_message, next_attempt_at, parent_step_id,
            branch_name, join_policy,
            (SELECT child_run_id FROM step_waits w WHERE w.attempt_id = step_executions.id) AS child_run_id,
            (SELECT jsonb_build_object('calls', 1, 'input_tokens', input_tokens, 'output_tokens', output_tokens, 'cost', cost::text)
             FROM call_usage c WHERE c.run_id = step_executions.run_id AND c.row_id = step_executions.id LIMIT 1) AS usage"
        )
    };
}

/// Sort order of the attempts of a run.
const ORDER: Order = Order { column: "started_at", ascending: true };

impl ListRow for StepRow {
    const TABLE: Table = Table {
        name: "step_executions",
        columns: columns!("input_data, output_data"),
        id: "id",
        is_found_by_value: false,
        large: &["input_data", "output_data", "error_message"],
    };
}

/// Attempt whose input and output are not read.
#[derive(Debug, sqlx::FromRow)]
pub struct BareStep {
    /// The attempt, with an empty input and no output.
    #[sqlx(flatten)]
    pub step: StepRow,
}

impl ListRow for BareStep {
    const TABLE: Table = Table {
        columns: columns!("'{}'::json AS input_data, NULL::json AS output_data"),
        large: &["error_message"],
        ..StepRow::TABLE
    };
}

/// Attempts of the organisation's run, or those with these ids; a step may have several.
pub async fn steps<T: ListRow + for<'r> FromRow<'r, PgRow>>(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    run_id: &str,
    ids: &[String],
    page: &PageRequest,
) -> Result<Entries<T>, Error> {
    let conditions = Conditions::of_run(organization, run_id).one_of("id", ids);
    list::page(conn, &Plan::short(conditions, ORDER), page).await
}

/// Attempt of a run that has ended, as a back-test reads it.
#[derive(Debug, sqlx::FromRow)]
pub struct RecordedStep {
    /// Id of the step.
    pub step_id: String,
    /// Step path below a block; `None` on the main chain.
    pub place: Option<String>,
    /// Id of the block around it.
    pub parent_step_id: Option<String>,
    /// Status of the attempt.
    pub status: String,
    /// Input.
    pub input_data: Option<Json<Box<RawValue>>>,
    /// Output.
    pub output_data: Option<Json<Box<RawValue>>>,
    /// Error of a failed attempt.
    pub error_message: Option<String>,
    /// Whether its executor died or stopped while it ran.
    pub was_interrupted: bool,
    /// Time of the begin.
    pub started_at: Timestamp,
    /// Time of the end.
    pub completed_at: Option<Timestamp>,
    /// Number of attempts of the run, of which all or none are returned.
    pub total: i64,
}

/// Attempts of a run in the order of their begin, if there are at most `max_rows` with at most `max_bytes` of inputs and
/// outputs. Otherwise the first ones, fewer than their `total`.
pub async fn recorded_steps(
    db: impl PgExecutor<'_>,
    run_id: &str,
    max_rows: i64,
    max_bytes: i64,
) -> Result<Vec<RecordedStep>, Error> {
    // The stored sizes are compared first, since they are known without reading the values.
    let sql = "
        WITH listed AS MATERIALIZED (
            SELECT id, started_at, count(*) OVER () AS total,
                coalesce(pg_column_size(input_data), 0) + coalesce(pg_column_size(output_data), 0) AS stored
            FROM step_executions WHERE run_id = $1 ORDER BY started_at, id LIMIT $2
        ), few AS MATERIALIZED (
            SELECT id, total, sum(stored) OVER (ORDER BY started_at, id) AS stored FROM listed
        ), sized AS MATERIALIZED (
            SELECT s.*, few.total, sum(coalesce(octet_length(input_data::text), 0)
                + coalesce(octet_length(output_data::text), 0)) OVER (ORDER BY s.started_at, s.id) AS bytes
            FROM few JOIN step_executions s USING (id) WHERE few.stored <= $3
        )
        SELECT step_id, place, parent_step_id, status, input_data, output_data, error_message,
            coalesce(error_message = $4, false) AS was_interrupted, started_at, completed_at, total
        FROM sized WHERE bytes <= $3 ORDER BY started_at, id";
    Ok(sqlx::query_as(sql).bind(run_id).bind(max_rows).bind(max_bytes).bind(INTERRUPTED).fetch_all(db).await?)
}

/// State of the latest attempt of each step.
pub async fn step_states(db: impl PgExecutor<'_>, run_id: &str) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT DISTINCT ON (step_id) step_id, status FROM step_executions WHERE run_id = $1
               ORDER BY step_id, started_at DESC, id DESC";
    Ok(sqlx::query_as(sql).bind(run_id).fetch_all(db).await?)
}

/// Attempts of a step, summed up.
#[derive(Debug, sqlx::FromRow)]
pub struct StepSummary {
    /// Id of the step.
    pub step_id: String,
    /// State of the latest attempt.
    pub status: String,
    /// Number of attempts; of a step in a loop, of all iterations.
    pub attempts: i64,
    /// Number of failed attempts.
    pub failed_attempts: i64,
    /// Begin of the first attempt.
    pub started_at: Timestamp,
    /// End of the last attempt; `None` while one is open.
    pub completed_at: Option<Timestamp>,
}

/// Sums up the attempts of each step.
pub async fn step_summaries(db: impl PgExecutor<'_>, run_id: &str) -> Result<Vec<StepSummary>, Error> {
    let sql =
        "SELECT step_id, (array_agg(status ORDER BY started_at DESC, id DESC))[1] AS status, count(*) AS attempts,
                   count(*) FILTER (WHERE status = 'FAILED') AS failed_attempts, min(started_at) AS started_at,
                   CASE WHEN bool_and(completed_at IS NOT NULL) THEN max(completed_at) END AS completed_at
               FROM step_executions WHERE run_id = $1 GROUP BY step_id";
    Ok(sqlx::query_as(sql).bind(run_id).fetch_all(db).await?)
}
