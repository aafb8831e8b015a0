//! Transactional outbox for Kafka. Rows are written with their cause and deleted after the broker's acknowledgement. An
//! owned row is in the memory of its owner; any process may take a free one.

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Error, processes::DEAD_AFTER_SECS};

/// Kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Kind {
    /// Execution request.
    Execution,
    /// Cancellation request.
    Cancellation,
}

/// Row taken from the table, with everything that its message needs.
#[derive(Debug, sqlx::FromRow)]
pub struct Taken {
    /// Id of the run.
    pub run_id: String,
    /// Id of the message.
    pub event_id: Uuid,
    /// Kind of the message.
    pub kind: Kind,
    /// Actor of a cancellation.
    pub cancelled_by: Option<String>,
    /// Reason of a cancellation.
    pub reason: Option<String>,
    /// Correlation id of the run.
    pub correlation_id: Option<String>,
    /// `traceparent` of the run.
    pub traceparent: Option<String>,
    /// Priority of the run.
    pub priority: i16,
    /// Organisation of the run.
    pub organization_id: String,
    /// Input of the run as JSON text.
    pub input_data: Option<String>,
    /// Plan that the run is pinned to, as JSON text; `None` if it was deleted.
    pub workflow_plan: Option<String>,
}

impl Taken {
    /// Bytes of plan and input.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        length(&self.input_data) + length(&self.workflow_plan)
    }
}

/// Writes a message about a run that the caller has locked. It belongs to `owner`, but has no owner as long as an older
/// message of the same run is in the table: this keeps the order within a run. Returns whether it belongs to `owner`.
pub async fn insert(
    conn: &mut PgConnection,
    run_id: &str,
    event_id: Uuid,
    kind: Kind,
    owner: Option<Uuid>,
    cancelled_by: Option<&str>,
    reason: Option<&str>,
) -> Result<bool, Error> {
    // clock_timestamp is later than every row committed before, even if this transaction began earlier.
    let sql = "INSERT INTO outbox (run_id, event_id, kind, owner, cancelled_by, reason, created_at)
               SELECT $1::varchar, $2, $3,
                   CASE WHEN NOT EXISTS (SELECT 1 FROM outbox WHERE run_id = $1) THEN $4::uuid END, $5, $6,
                   clock_timestamp()
               RETURNING owner IS NOT NULL";
    Ok(sqlx::query_scalar(sql)
        .bind(run_id)
        .bind(event_id)
        .bind(kind)
        .bind(owner)
        .bind(cancelled_by)
        .bind(reason)
        .fetch_one(conn)
        .await?)
}

/// Takes free rows, oldest first, and only the oldest one of each run.
pub async fn take(db: impl PgExecutor<'_>, owner: Uuid, limit: usize) -> Result<Vec<Taken>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = "
        WITH free AS (
            SELECT run_id, event_id FROM outbox o
            WHERE owner IS NULL AND NOT EXISTS (
                SELECT 1 FROM outbox older
                WHERE older.run_id = o.run_id AND (older.created_at, older.event_id) < (o.created_at, o.event_id))
            ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
        ), taken AS (
            UPDATE outbox o SET owner = $1 FROM free
            WHERE o.run_id = free.run_id AND o.event_id = free.event_id
            RETURNING o.run_id, o.event_id, o.kind, o.cancelled_by, o.reason, o.created_at
        )
        SELECT taken.run_id, event_id, kind, taken.cancelled_by, reason, correlation_id, traceparent, priority,
            organization_id,
            input_data::text AS input_data,
            coalesce(workflow_plan,
                (SELECT workflow_data FROM workflow_definitions d
                 WHERE d.name = r.workflow_name AND d.version = r.workflow_version
                     AND d.organization_id = r.organization_id))::text AS workflow_plan
        FROM taken JOIN workflow_runs r ON r.run_id = taken.run_id
        ORDER BY taken.created_at";
    Ok(sqlx::query_as(sql).bind(owner).bind(limit).fetch_all(db).await?)
}

/// Deletes rows whose messages the broker has acknowledged.
pub async fn delete(db: impl PgExecutor<'_>, run_ids: &[String], event_ids: &[Uuid]) -> Result<(), Error> {
    let sql = "DELETE FROM outbox o USING unnest($1::text[], $2::uuid[]) AS done (run_id, event_id)
               WHERE o.run_id = done.run_id AND o.event_id = done.event_id";
    sqlx::query(sql).bind(run_ids).bind(event_ids).execute(db).await?;
    Ok(())
}

/// Releases rows of `owner` whose messages could not be sent.
pub async fn release(
    db: impl PgExecutor<'_>,
    owner: Uuid,
    run_ids: &[String],
    event_ids: &[Uuid],
) -> Result<(), Error> {
    let sql = "UPDATE outbox o SET owner = NULL FROM unnest($2::text[], $3::uuid[]) AS released (run_id, event_id)
               WHERE o.run_id = released.run_id AND o.event_id = released.event_id AND o.owner = $1";
    sqlx::query(sql).bind(owner).bind(run_ids).bind(event_ids).execute(db).await?;
    Ok(())
}

/// Frees rows of `owner` that it does not know, because the answer to their commit was lost. Rows so recent that it may
/// not have received the answer yet are left. Returns how many were freed.
pub async fn free_unacknowledged(db: impl PgExecutor<'_>, owner: Uuid, known: &[Uuid]) -> Result<u64, Error> {
    let sql = "UPDATE outbox o SET owner = NULL
               WHERE owner = $1 AND created_at < now() - interval '10 seconds' AND NOT EXISTS
                   (SELECT 1 FROM unnest($2::uuid[]) AS known (event_id) WHERE known.event_id = o.event_id)";
    Ok(sqlx::query(sql).bind(owner).bind(known).execute(db).await?.rows_affected())
}

/// Frees the rows of dead owners. Returns how many were freed.
pub async fn free_orphans(db: impl PgExecutor<'_>) -> Result<u64, Error> {
    let sql = "UPDATE outbox SET owner = NULL WHERE owner IN (
                   SELECT DISTINCT owner FROM outbox WHERE owner IS NOT NULL
                   EXCEPT SELECT id FROM processes WHERE heartbeat_at >= now() - make_interval(secs => $1))";
    Ok(sqlx::query(sql).bind(DEAD_AFTER_SECS).execute(db).await?.rows_affected())
}

/// Number of rows, counted up to `limit`, and the age of the oldest in seconds.
pub async fn backlog(db: impl PgExecutor<'_>, limit: i64) -> Result<(i64, f64), Error> {
    let sql = "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
               FROM (SELECT created_at FROM outbox LIMIT $1) AS counted";
    Ok(sqlx::query_as(sql).bind(limit).fetch_one(db).await?)
}

/// Whether runs have waited longer than `older_than_secs` although their message was sent.
pub async fn any_overdue(db: impl PgExecutor<'_>, older_than_secs: f64) -> Result<bool, Error> {
    let sql = format!("SELECT EXISTS (SELECT 1 FROM workflow_runs r WHERE {OVERDUE})");
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(older_than_secs).fetch_one(db).await?)
}

/// Writes the execution request of such runs again, without an owner. Each repeat for the same run waits twice as long
/// as the one before. Returns how many were written.
pub async fn redispatch(db: impl PgExecutor<'_>, older_than_secs: f64, limit: usize) -> Result<u64, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!(
        "WITH overdue AS (
            SELECT run_id, execution_event_id FROM workflow_runs r WHERE {OVERDUE} ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
         ), marked AS (
            UPDATE workflow_runs r
            SET redispatch_at = now() + least(now() - updated_at AT TIME ZONE 'UTC', interval '1 hour')
            FROM overdue WHERE r.run_id = overdue.run_id
         )
         INSERT INTO outbox (run_id, event_id, kind)
         SELECT run_id, coalesce(execution_event_id, gen_random_uuid()), 'execution' FROM overdue"
    );
    Ok(sqlx::query(AssertSqlSafe(sql)).bind(older_than_secs).bind(limit).execute(db).await?.rows_affected())
}

/// Condition of an overdue run: it was started by this API, and no message of it is still to be sent.
const OVERDUE: &str = "r.status = 'PENDING' AND r.workflow_version IS NOT NULL
    -- A sub-run or a paused run is resumed without a message.
    AND r.paused_at IS NULL AND coalesce(r.redispatch_at, r.updated_at AT TIME ZONE 'UTC' + make_interval(secs => $1)) <= now()
    AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.run_id = r.run_id)";
