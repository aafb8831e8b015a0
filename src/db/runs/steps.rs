//! The attempts of a run's steps, as the API reads them: in portions of bounded size.

use serde_json::value::RawValue;
use sqlx::{PgExecutor, types::Json};

use crate::{
    access::OrganizationId,
    db::{
        Error,
        list::{EntryId, Position, SortValue},
    },
    timestamp::Timestamp,
};

/// A row of `step_executions`.
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
    pub parent_step_id: Option<String>,
    pub branch_name: Option<String>,
    pub join_policy: Option<String>,
    pub child_run_id: Option<String>,
}

/// The output of the step of the main chain that was completed last.
pub async fn output(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<Json<Box<RawValue>>>, Error> {
    let sql = "SELECT output_data FROM step_executions
               WHERE run_id = $1 AND status = 'COMPLETED' AND parent_step_id IS NULL
               ORDER BY completed_at DESC NULLS LAST, started_at DESC, id DESC LIMIT 1";
    let output: Option<Option<Json<Box<RawValue>>>> = sqlx::query_scalar(sql).bind(run_id).fetch_optional(db).await?;
    Ok(output.flatten())
}

/// Attempts that are read at a time.
const STEP_CHUNK: i64 = 500;
/// Stored bytes of content that are read at a time, where there is more than one attempt. PostgreSQL stores JSON in up to
/// a hundredth of its length.
const SMALL_BYTES: i64 = 64 << 10;

/// A place among the attempts of a run.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "columns")]
pub struct StepPlace {
    pub started_at: Timestamp,
    pub id: String,
}

impl StepPlace {
    /// Of a position in their list.
    #[must_use]
    pub fn of(position: &Position) -> Option<Self> {
        match (&position.value, &position.id) {
            (SortValue::Instant(at), EntryId::Text(id)) => Some(Self { started_at: (*at).into(), id: id.clone() }),
            _ => None,
        }
    }
}

impl From<StepPlace> for Position {
    fn from(place: StepPlace) -> Self {
        Self { value: place.started_at.into(), id: EntryId::Text(place.id) }
    }
}

/// Which attempts are asked for: those of a run of the organisation in the order of their start, several for one step.
#[derive(Clone, Debug)]
pub struct StepQuery {
    /// Whose run.
    pub organization: OrganizationId,
    /// Which.
    pub run_id: String,
    /// Those behind this one; all if there is none.
    pub after: Option<StepPlace>,
}

/// Some attempts.
#[derive(Debug)]
pub struct StepChunk {
    /// In their order.
    pub rows: Vec<StepRow>,
    /// There are none behind them.
    pub is_last: bool,
}

/// The next attempts, at most `limit`, as far as their content is small together: none if that of the next is large.
pub async fn small_steps(db: impl PgExecutor<'_>, query: &StepQuery, limit: i64) -> Result<StepChunk, Error> {
    read_steps(db, query, limit.min(STEP_CHUNK), SMALL_BYTES).await
}

/// The next attempt, however large.
pub async fn next_step(db: impl PgExecutor<'_>, query: &StepQuery) -> Result<StepChunk, Error> {
    read_steps(db, query, 1, i64::MAX).await
}

async fn read_steps(db: impl PgExecutor<'_>, query: &StepQuery, limit: i64, bytes: i64) -> Result<StepChunk, Error> {
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        step: StepRow,
        present: i64,
    }
    // `pg_column_size` is of what is stored, and reads none of it.
    let sql = "
        SELECT s.id, s.run_id, s.step_id, s.step_name, s.agent_name, s.status, s.input_data, s.output_data,
            s.started_at, s.completed_at, s.error_message, s.parent_step_id, s.branch_name, s.join_policy,
            w.child_run_id, s.present
        FROM (
            SELECT *, count(*) OVER () AS present, sum(pg_column_size(input_data)
                + coalesce(pg_column_size(output_data), 0) + coalesce(pg_column_size(error_message), 0))
                OVER (ORDER BY started_at, id) AS stored
            FROM (
                SELECT id, run_id, step_id, step_name, agent_name, status, input_data, output_data, started_at,
                    completed_at, error_message, parent_step_id, branch_name, join_policy
                FROM step_executions
                WHERE run_id = (SELECT run_id FROM workflow_runs WHERE run_id = $1 AND organization_id = $2)
                    AND ($3::timestamp IS NULL OR (started_at, id) > ($3, $4))
                ORDER BY started_at, id LIMIT $5
            ) AS next
        ) AS s LEFT JOIN step_waits w ON w.attempt_id = s.id
        WHERE s.stored <= $6 ORDER BY s.started_at, s.id";
    let (at, id) = query.after.as_ref().map(|place| (place.started_at, place.id.as_str())).unzip();
    let rows: Vec<Row> = sqlx::query_as(sql)
        .bind(&query.run_id)
        .bind(query.organization.as_str())
        .bind(at)
        .bind(id)
        .bind(limit)
        .bind(bytes)
        .fetch_all(db)
        .await?;
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let is_last = match rows.first() {
        Some(row) => row.present == count && count < limit,
        // None at all, or the next is large.
        None => bytes == i64::MAX,
    };
    Ok(StepChunk { rows: rows.into_iter().map(|row| row.step).collect(), is_last })
}

/// The part of the attempts that a page shows, and the last of them if there are more behind it.
pub async fn step_page(
    db: impl PgExecutor<'_>,
    query: StepQuery,
    offset: i64,
    size: i64,
) -> Result<(StepQuery, Option<StepPlace>), Error> {
    // With the one before the page.
    let skipped = i64::from(offset > 0);
    let sql = "SELECT started_at, id FROM step_executions
               WHERE run_id = (SELECT run_id FROM workflow_runs WHERE run_id = $1 AND organization_id = $2)
                   AND ($3::timestamp IS NULL OR (started_at, id) > ($3, $4))
               ORDER BY started_at, id LIMIT $5 OFFSET $6";
    let (at, id) = query.after.as_ref().map(|place| (place.started_at, place.id.as_str())).unzip();
    let found: Vec<(Timestamp, String)> = sqlx::query_as(sql)
        .bind(&query.run_id)
        .bind(query.organization.as_str())
        .bind(at)
        .bind(id)
        .bind(size + 1 + skipped)
        .bind(offset - skipped)
        .fetch_all(db)
        .await?;
    let mut places = found.into_iter().map(|(started_at, id)| StepPlace { started_at, id });
    let after = if skipped == 1 { places.next() } else { query.after };
    let mut page: Vec<StepPlace> = places.collect();
    let is_cut = i64::try_from(page.len()).is_ok_and(|count| count > size);
    page.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    Ok((StepQuery { after, ..query }, page.pop().filter(|_| is_cut)))
}

/// The state of the latest attempt of each step.
pub async fn step_states(db: impl PgExecutor<'_>, run_id: &str) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT DISTINCT ON (step_id) step_id, status FROM step_executions WHERE run_id = $1
               ORDER BY step_id, started_at DESC, id DESC";
    Ok(sqlx::query_as(sql).bind(run_id).fetch_all(db).await?)
}
