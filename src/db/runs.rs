//! Runs and their steps, as the API reads and changes them. What the executor does to them is in `executions`.

use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error, PooledConnection,
    list::{self, Cut, EntryId, Listed, Narrow, Order, Part, Position, SortValue, Table},
    organizations,
};
use crate::{
    access::{Countable, OrganizationId},
    timestamp::Timestamp,
};

/// A row of `workflow_runs`, as far as the API shows it.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migration")]
pub struct RunRow {
    pub run_id: String,
    pub workflow_id: String,
    pub workflow_name: String,
    pub workflow_definition_id: Option<String>,
    pub status: String,
    pub input_data: Option<Json<Box<RawValue>>>,
    /// In a list: there is an input, whether or not it is here.
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
}

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

const COLUMNS: &str = "run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data, triggered_by, \
     created_at, updated_at, completed_at, cancelled_at, cancelled_by, error_message, correlation_id, priority, \
     paused_at AT TIME ZONE 'UTC' AS paused_at, parent_run_id, parent_step_id, traceparent";

/// The same for lists, without inputs of more than 64 KiB. What is stored in few bytes is not measured.
const LISTED_COLUMNS: &str = "run_id, workflow_id, workflow_name, workflow_definition_id, status,
     CASE WHEN pg_column_size(input_data) <= 2000 OR octet_length(input_data::text) <= 65536 THEN input_data END AS input_data,
     input_data IS NOT NULL AS has_input, triggered_by, created_at, updated_at, completed_at, cancelled_at, cancelled_by,
     error_message, correlation_id, priority, paused_at AT TIME ZONE 'UTC' AS paused_at, parent_run_id, parent_step_id, traceparent";

fn select(rest: &str) -> String {
    format!("SELECT {COLUMNS} FROM workflow_runs{rest}")
}

/// The organisation's run of that id.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<RunRow>, Error> {
    let sql = select(" WHERE run_id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(&sql).bind(run_id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Whose run that is; `None` if there is none.
pub async fn organization(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<OrganizationId>, Error> {
    let sql = "SELECT organization_id FROM workflow_runs WHERE run_id = $1";
    let found: Option<String> = sqlx::query_scalar(sql).bind(run_id).fetch_optional(db).await?;
    Ok(found.as_deref().map(OrganizationId::stored))
}

/// The name of the workflow of the organisation's run.
pub async fn workflow_name(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<String>, Error> {
    let sql = "SELECT workflow_name FROM workflow_runs WHERE run_id = $1 AND organization_id = $2";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and holds the row until the transaction ends.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<RunRow>, Error> {
    let sql = select(" WHERE run_id = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(&sql).bind(run_id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Whether the organisation has a run of that id.
pub async fn exists(db: impl PgExecutor<'_>, organization: &OrganizationId, run_id: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM workflow_runs WHERE run_id = $1 AND organization_id = $2)";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(organization.as_str()).fetch_one(db).await?)
}

/// Which of these runs there are.
pub async fn existing(db: impl PgExecutor<'_>, run_ids: &[String]) -> Result<Vec<String>, Error> {
    let sql = "SELECT run_id FROM workflow_runs WHERE run_id = ANY($1)";
    Ok(sqlx::query_scalar(sql).bind(run_ids).fetch_all(db).await?)
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

/// The plan that a run executes: kept with the run, or the stored version that it names. A run that names none was
/// started by another program, and has the content that its definition has now. `None` if none of them is there.
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

/// The state of the latest attempt of each step.
pub async fn step_states(db: impl PgExecutor<'_>, run_id: &str) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT DISTINCT ON (step_id) step_id, status FROM step_executions WHERE run_id = $1
               ORDER BY step_id, started_at DESC, id DESC";
    Ok(sqlx::query_as(sql).bind(run_id).fetch_all(db).await?)
}

/// What a list is narrowed to and ordered by.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Whose runs.
    pub organization: &'a OrganizationId,
    /// One of these; any if there are none.
    pub statuses: Vec<String>,
    /// Exact `workflow_id`.
    pub workflow_id: Option<&'a str>,
    /// Exact `workflow_definition_id`.
    pub workflow_definition_id: Option<&'a str>,
    /// Exact name of the workflow.
    pub name: Option<&'a str>,
    /// The beginning of the workflow's name.
    pub name_prefix: Option<&'a str>,
    /// Exact `parent_run_id`.
    pub parent_run_id: Option<&'a str>,
    /// Exact `triggered_by`.
    pub triggered_by: Option<&'a str>,
    /// Created between the two.
    pub created: (Option<Timestamp>, Option<Timestamp>),
    /// Changed last between the two.
    pub updated: (Option<Timestamp>, Option<Timestamp>),
    /// `created_at`, `updated_at`, `completed_at` or `status`; anything else is `created_at`.
    pub sort_by: &'a str,
    /// Not descending.
    pub ascending: bool,
}

impl Filter<'_> {
    /// The order that is asked for.
    #[must_use]
    pub fn order(&self) -> Order {
        let column = match self.sort_by {
            "updated_at" => "updated_at",
            "completed_at" => "completed_at",
            "status" => "status",
            _ => "created_at",
        };
        Order { column, nullable: column == "completed_at", ascending: self.ascending }
    }
}

impl Listed for RunRow {
    const TABLE: Table = Table { name: "workflow_runs", columns: LISTED_COLUMNS, id: "run_id" };

    fn position(&self, column: &str) -> Position {
        let value = match column {
            "status" => SortValue::Text(self.status.clone()),
            "updated_at" => self.updated_at.into(),
            "completed_at" => self.completed_at.into(),
            _ => self.created_at.into(),
        };
        Position { value, id: EntryId::Text(self.run_id.clone()) }
    }
}

/// A part of the organisation's runs. Descending puts absent values first, ascending last.
pub async fn list(conn: &mut PgConnection, filter: &Filter<'_>, cut: &Cut) -> Result<Part<RunRow>, Error> {
    let narrow = |narrow: &mut Narrow<'_>| {
        narrow.organization(filter.organization);
        narrow.one_of("status", &filter.statuses);
        narrow.equal("workflow_id", filter.workflow_id);
        narrow.equal("workflow_definition_id", filter.workflow_definition_id);
        narrow.equal("workflow_name", filter.name);
        narrow.prefix("workflow_name", filter.name_prefix);
        narrow.equal("parent_run_id", filter.parent_run_id);
        narrow.equal("triggered_by", filter.triggered_by);
        narrow.between("created_at", filter.created);
        narrow.between("updated_at", filter.updated);
    };
    list::fetch(conn, narrow, filter.order(), cut).await
}

/// Ends a run that the caller holds by [`lock`], with its open steps. Its executor loses the lease by it.
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
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "UPDATE step_executions SET status = 'FAILED', completed_at = $2, error_message = 'the run was cancelled'
         WHERE run_id = $1 AND status IN ('PENDING', 'RUNNING')",
    )
    .bind(run_id)
    .bind(at)
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes a run that the caller holds by [`lock`] begin no further step. Returns since when.
pub async fn pause(conn: &mut PgConnection, run_id: &str, by: &str) -> Result<Timestamp, Error> {
    let sql = "WITH paused AS (
                   UPDATE workflow_runs SET paused_at = now(), updated_at = now() AT TIME ZONE 'UTC' WHERE run_id = $1
                   RETURNING run_id, paused_at
               ), recorded AS (INSERT INTO run_events (run_id, kind, detail) SELECT run_id, 'run.paused', $2 FROM paused)
               SELECT paused_at AT TIME ZONE 'UTC' FROM paused";
    Ok(sqlx::query_scalar(sql).bind(run_id).bind(by).fetch_one(conn).await?)
}

/// Lets a run go on that was paused and that the caller holds by [`lock`]. One that waited for an executor meanwhile
/// may have lost its message, and is taken up without.
pub async fn resume(conn: &mut PgConnection, run_id: &str, by: &str) -> Result<(), Error> {
    let sql = "WITH resumed AS (
                   UPDATE workflow_runs SET paused_at = NULL, updated_at = now() AT TIME ZONE 'UTC',
                       wake_at = CASE WHEN status = 'PENDING' THEN now() ELSE wake_at END
                   WHERE run_id = $1
                   RETURNING run_id
               )
               INSERT INTO run_events (run_id, kind, detail) SELECT run_id, 'run.resumed', $2 FROM resumed";
    sqlx::query(sql).bind(run_id).bind(by).execute(conn).await?;
    Ok(())
}

/// Puts a failed or cancelled run, which the caller holds by [`lock`], back to the start of its life, pinned to the
/// definition's present content. What was completed before counts as done, but only up to `resume_from_step`.
/// `input`: instead of the one that it had.
pub async fn reopen(
    conn: &mut PgConnection,
    run_id: &str,
    version: i32,
    event_id: Uuid,
    resume_from_step: Option<&str>,
    input: Option<&RawValue>,
    at: Timestamp,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE workflow_runs SET status = 'PENDING', resume_from_step = $5,
             -- By the database's clock, like the begin of every attempt.
             resumed_at = CASE WHEN $5::varchar IS NOT NULL THEN now() AT TIME ZONE 'UTC' END, workflow_version = $2, workflow_plan = NULL,
             error_message = NULL, cancelled_at = NULL, cancelled_by = NULL, completed_at = NULL, updated_at = $3,
             executor_id = NULL, lease_token = NULL, redispatch_at = NULL, execution_event_id = $4,
             wake_at = NULL, parked_at = NULL, paused_at = NULL, takeovers = 0, input_data = coalesce($6, input_data)
         WHERE run_id = $1 AND status IN ('FAILED', 'CANCELLED')",
    )
    .bind(run_id)
    .bind(version)
    .bind(at)
    .bind(event_id)
    .bind(resume_from_step)
    .bind(input.map(Json))
    .execute(&mut *conn)
    .await?;
    sqlx::query("DELETE FROM sub_run_counts WHERE root_run_id = $1").bind(run_id).execute(conn).await?;
    Ok(())
}

/// Ends a run that cannot be dispatched, if it still waits for the request of that id; for any, if it has none.
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

/// Columns of a batch of runs to start, one entry a run; see [`start`].
#[derive(Default)]
#[expect(missing_docs, reason = "each is a column of workflow_runs, outbox or idempotency_keys")]
pub struct StartBatch {
    pub run_id: Vec<String>,
    pub definition_id: Vec<Uuid>,
    pub version: Vec<i32>,
    pub stamp: Vec<String>,
    pub workflow_name: Vec<String>,
    pub input_data: Vec<String>,
    pub triggered_by: Vec<String>,
    pub correlation_id: Vec<String>,
    pub created_at: Vec<Timestamp>,
    pub event_id: Vec<Uuid>,
    pub owner: Vec<Option<Uuid>>,
    pub key_scope: Vec<Option<String>>,
    pub key: Vec<Option<String>>,
    pub fingerprint: Vec<Option<Vec<u8>>>,
    pub audit_id: Vec<Uuid>,
    pub entity_id: Vec<Uuid>,
    pub key_id: Vec<Option<Uuid>>,
    pub address: Vec<Option<String>>,
    pub priority: Vec<i16>,
    pub traceparent: Vec<Option<String>>,
    pub quota: Option<Quota>,
}

impl StartBatch {
    /// The first of these runs.
    fn truncated(&self, count: usize) -> Self {
        fn first<T: Clone>(of: &[T], count: usize) -> Vec<T> {
            of.iter().take(count).cloned().collect()
        }
        Self {
            run_id: first(&self.run_id, count),
            definition_id: first(&self.definition_id, count),
            version: first(&self.version, count),
            stamp: first(&self.stamp, count),
            workflow_name: first(&self.workflow_name, count),
            input_data: first(&self.input_data, count),
            triggered_by: first(&self.triggered_by, count),
            correlation_id: first(&self.correlation_id, count),
            created_at: first(&self.created_at, count),
            event_id: first(&self.event_id, count),
            owner: first(&self.owner, count),
            key_scope: first(&self.key_scope, count),
            key: first(&self.key, count),
            fingerprint: first(&self.fingerprint, count),
            audit_id: first(&self.audit_id, count),
            entity_id: first(&self.entity_id, count),
            key_id: first(&self.key_id, count),
            address: first(&self.address, count),
            priority: first(&self.priority, count),
            traceparent: first(&self.traceparent, count),
            quota: None,
        }
    }
}

/// How many runs of an organisation may be queued. All runs of a batch that has one are of that organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Quota {
    pub organization: OrganizationId,
    pub max_queued: i32,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Started {
    /// The runs that now exist. One is missing if its definition is no longer what the stamp says, or if its
    /// idempotency key is taken; nothing was written for it.
    pub run_ids: Vec<String>,
    /// So many of the batch the quota left room for; for the others nothing was written.
    pub admitted: usize,
}

/// Starts runs, those that the quota leaves room for, in the order of the batch.
pub async fn start(conn: &mut PooledConnection, batch: &StartBatch, audit: bool) -> Result<Started, Error> {
    let size = batch.run_id.len();
    let Some(Quota { organization, max_queued }) = &batch.quota else {
        return Ok(Started { run_ids: insert_all(conn, batch, audit).await?, admitted: size });
    };
    conn.begin().await?;
    match start_within(conn, organization, *max_queued, batch, audit).await {
        Ok(started) => {
            conn.commit().await?;
            Ok(started)
        }
        Err(error) => {
            conn.rollback().await?;
            Err(error)
        }
    }
}

/// Starts as many of these runs as the quota leaves room for.
async fn start_within(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    max_queued: i32,
    batch: &StartBatch,
    audit: bool,
) -> Result<Started, Error> {
    organizations::lock_quota(conn, organization, Countable::QueuedRuns).await?;
    let limit = i64::from(max_queued);
    let queued = organizations::count(&mut *conn, organization, Countable::QueuedRuns, limit).await?;
    let size = batch.run_id.len();
    let admitted = usize::try_from(limit - queued).unwrap_or_default().min(size);
    let run_ids = match admitted {
        0 => Vec::new(),
        _ if admitted == size => insert_all(conn, batch, audit).await?,
        _ => insert_all(conn, &batch.truncated(admitted), audit).await?,
    };
    Ok(Started { run_ids, admitted })
}

/// Run, outbox, idempotency and audit rows of all of them in one statement, and outside of a transaction in one commit.
async fn insert_all(conn: &mut PgConnection, batch: &StartBatch, audit: bool) -> Result<Vec<String>, Error> {
    Ok(sqlx::query_scalar(
        "WITH request AS MATERIALIZED (
            SELECT r.*, d.organization_id FROM unnest($1::text[], $2::uuid[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::timestamp[], $10::uuid[], $11::uuid[], $12::text[], $13::text[], $14::bytea[],
                $15::uuid[], $16::uuid[], $18::uuid[], $19::text[], $20::smallint[], $21::text[])
                AS r (run_id, definition_id, version, stamp, workflow_name, input_data, triggered_by, correlation_id,
                    created_at, event_id, owner, key_scope, key, fingerprint, audit_id, entity_id, key_id, address,
                    priority, traceparent)
            JOIN workflow_definitions d ON d.id = r.definition_id AND d.xmin::text = r.stamp
        ), claimed AS (
            INSERT INTO idempotency_keys (scope, key, fingerprint, run_id)
            SELECT key_scope, key, fingerprint, run_id FROM request WHERE key IS NOT NULL
            ORDER BY key_scope, key              -- one order for all writers, so that they cannot deadlock
            ON CONFLICT DO NOTHING
            RETURNING run_id
        ), accepted AS MATERIALIZED (
            SELECT *, input_data::jsonb AS input FROM request
            WHERE key IS NULL OR run_id IN (SELECT run_id FROM claimed)
        ), run AS (
            INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
                triggered_by, created_at, updated_at, workflow_version, correlation_id, execution_event_id,
                organization_id, priority, traceparent)
            SELECT run_id, definition_id::text, workflow_name, definition_id::text, 'PENDING', input,
                triggered_by, created_at, created_at, version, correlation_id, event_id, organization_id, priority,
                traceparent
            FROM accepted
        ), message AS (
            INSERT INTO outbox (run_id, event_id, kind, owner)
            SELECT run_id, event_id, 'execution', owner FROM accepted
        ), entry AS (
            INSERT INTO audit_logs (id, entity_type, entity_id, entity_name, action, user_id, key_id, address,
                correlation_id, organization_id, changes, created_at, updated_at)
            SELECT audit_id, 'run', entity_id, run_id, 'execute', triggered_by, key_id, address, correlation_id,
                organization_id, jsonb_build_object('workflow_id', definition_id, 'workflow_name', workflow_name,
                    -- As `body_digest` has it, of what GET /runs/{run_id} shows.
                    'input_data', jsonb_build_object('bytes', octet_length(input::text),
                        'sha256', encode(sha256(convert_to(input::text, 'UTF8')), 'hex'))), created_at, created_at
            FROM accepted WHERE $17
        )
        SELECT run_id FROM accepted",
    )
    .bind(&batch.run_id)
    .bind(&batch.definition_id)
    .bind(&batch.version)
    .bind(&batch.stamp)
    .bind(&batch.workflow_name)
    .bind(&batch.input_data)
    .bind(&batch.triggered_by)
    .bind(&batch.correlation_id)
    .bind(batch.created_at.iter().map(|at| at.naive()).collect::<Vec<_>>())
    .bind(&batch.event_id)
    .bind(&batch.owner)
    .bind(&batch.key_scope)
    .bind(&batch.key)
    .bind(&batch.fingerprint)
    .bind(&batch.audit_id)
    .bind(&batch.entity_id)
    .bind(audit)
    .bind(&batch.key_id)
    .bind(&batch.address)
    .bind(&batch.priority)
    .bind(&batch.traceparent)
    .fetch_all(conn)
    .await?)
}

/// Runs that have not ended, by state.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct OpenRuns {
    /// Wait for an executor.
    pub waiting: i64,
    /// Are driven by one.
    pub running: i64,
    /// Wait for a time, an answer or another run.
    pub parked: i64,
}

/// How many there are, of so many at most: a larger backlog would make each count slow.
pub async fn count_open(db: impl sqlx::PgExecutor<'_>) -> Result<OpenRuns, Error> {
    let sql = "SELECT count(*) FILTER (WHERE wake_at IS NULL AND status = 'PENDING') AS waiting,
                      count(*) FILTER (WHERE wake_at IS NULL AND status = 'RUNNING') AS running,
                      count(*) FILTER (WHERE wake_at IS NOT NULL) AS parked
               FROM (SELECT status, wake_at FROM workflow_runs WHERE status IN ('PENDING', 'RUNNING') LIMIT 100000) r";
    Ok(sqlx::query_as(sql).fetch_one(db).await?)
}
