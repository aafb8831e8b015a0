//! Transactional outbox for Kafka. Rows are written with their cause and deleted after the broker's acknowledgement. An
//! owned row is in the memory of its owner; any process may take a free one.
//!
//! The execution requests of runs that were started together are one owned row, a batch. If it is not sent entirely by
//! its owner, its requests become rows of their own. The view `outbox_messages` has all messages.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Error, processes::DEAD_AFTER_SECS};
use crate::timestamp::Timestamp;

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
    /// Index of the plan that the run is pinned to; `None` if it was deleted, and for a cancellation.
    #[sqlx(skip)]
    pub plan: Option<usize>,
}

/// Rows that were taken together, and their plans.
#[derive(Debug)]
pub struct Taking {
    /// The rows in the order in which they were written.
    pub rows: Vec<Taken>,
    /// Plans as JSON text. Rows of the same version of a workflow have one together.
    pub plans: Vec<String>,
}

impl Taking {
    /// Bytes of all plans and inputs, a plan for each of its rows.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        let plan = |row: &Taken| row.plan.map_or(0, |plan| self.plans[plan].len());
        self.rows.iter().map(|row| row.input_data.as_ref().map_or(0, String::len) + plan(row)).sum()
    }
}

/// Writes a message about a run that the caller has locked. It belongs to `owner`, but has no owner as long as an older
/// message of the same run is in the outbox: this keeps the order within a run. Returns whether it belongs to `owner`.
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
                   CASE WHEN NOT EXISTS (SELECT 1 FROM outbox_messages WHERE run_id = $1) THEN $4::uuid END, $5, $6,
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

/// Takes free rows, oldest first, and only the oldest one of each run. Execution requests become one batch with this id,
/// so that each costs one deleted row instead of an updated and a deleted one; cancellations get the owner.
///
/// The rows are read in the order of the index, and only as far as needed: the count is a subquery that PostgreSQL does
/// not turn into a join of the whole table. Each plan is read once: it is mostly the largest part of a message.
pub async fn take(db: impl PgExecutor<'_>, owner: Uuid, batch: Uuid, limit: usize) -> Result<Taking, Error> {
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        taken: Taken,
        own_plan: Option<String>,
        plan_number: Option<i64>,
        shared_plan: Option<String>,
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = "
        WITH free AS (
            SELECT ctid AS place, kind FROM outbox o
            WHERE owner IS NULL AND run_id::text NOT IN (SELECT unnest(run_ids) FROM outbox_batches)
                AND (SELECT count(*) = 0 FROM outbox older WHERE older.run_id = o.run_id
                         AND (older.created_at, older.event_id) < (o.created_at, o.event_id))
            ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED
        ), requests AS (
            DELETE FROM outbox WHERE ctid = ANY (ARRAY(SELECT place FROM free WHERE kind = 'execution'))
            RETURNING *
        ), batch AS (
            INSERT INTO outbox_batches (id, owner, run_ids, event_ids, created_at)
            SELECT $2, $1, array_agg(run_id), array_agg(event_id), min(created_at) FROM requests HAVING count(*) > 0
        ), cancellations AS (
            UPDATE outbox SET owner = $1 WHERE ctid = ANY (ARRAY(SELECT place FROM free WHERE kind <> 'execution'))
            RETURNING *
        ), taken AS (
            SELECT * FROM requests UNION ALL SELECT * FROM cancellations
        ), runs AS (
            SELECT taken.run_id, event_id, kind, taken.cancelled_by, reason, taken.created_at, correlation_id, traceparent,
                priority, r.organization_id, input_data, workflow_name, workflow_version, workflow_plan
            FROM taken JOIN workflow_runs r ON r.run_id = taken.run_id
        ), plans AS (
            SELECT v.*, row_number() OVER () AS plan_number,
                (SELECT workflow_data FROM workflow_definitions d
                 WHERE d.name = workflow_name AND d.version = workflow_version
                     AND d.organization_id = v.organization_id)::text AS plan
            FROM (SELECT DISTINCT organization_id, workflow_name, workflow_version FROM runs
                  WHERE kind = 'execution' AND workflow_plan IS NULL) AS v
        )
        SELECT run_id, event_id, kind, cancelled_by, reason, correlation_id, traceparent, priority,
            runs.organization_id, input_data::text AS input_data,
            CASE WHEN kind = 'execution' THEN workflow_plan::text END AS own_plan,
            plan_number,
            CASE WHEN row_number() OVER (PARTITION BY plan_number) = 1 THEN plan END AS shared_plan
        FROM runs LEFT JOIN plans ON kind = 'execution' AND workflow_plan IS NULL
            AND plans.organization_id = runs.organization_id AND plans.workflow_name = runs.workflow_name
            AND plans.workflow_version = runs.workflow_version
        ORDER BY runs.created_at";
    let mut found: Vec<Row> = sqlx::query_as(sql).bind(owner).bind(batch).bind(limit).fetch_all(db).await?;
    let mut plans = Vec::new();
    let mut shared = HashMap::new();
    for row in &mut found {
        if let (Some(number), Some(plan)) = (row.plan_number, row.shared_plan.take()) {
            shared.insert(number, plans.len());
            plans.push(plan);
        }
    }
    let mut rows = Vec::with_capacity(found.len());
    for Row { mut taken, own_plan, plan_number, .. } in found {
        taken.plan = match own_plan {
            Some(plan) => {
                plans.push(plan);
                Some(plans.len() - 1)
            }
            None => plan_number.and_then(|number| shared.get(&number).copied()),
        };
        rows.push(taken);
    }
    Ok(Taking { rows, plans })
}

/// Deletes rows whose messages the broker has acknowledged.
pub async fn delete(db: impl PgExecutor<'_>, run_ids: &[String], event_ids: &[Uuid]) -> Result<(), Error> {
    let sql = "DELETE FROM outbox o USING unnest($1::text[], $2::uuid[]) AS done (run_id, event_id)
               WHERE o.run_id = done.run_id AND o.event_id = done.event_id";
    sqlx::query(sql).bind(run_ids).bind(event_ids).execute(db).await?;
    Ok(())
}

/// Deletes batches whose messages the broker has acknowledged.
pub async fn delete_batches(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<(), Error> {
    sqlx::query("DELETE FROM outbox_batches WHERE id = ANY ($1)").bind(ids).execute(db).await?;
    Ok(())
}

/// Turns the requests of these batches into free rows. Returns how many they are.
pub async fn free_batches(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<u64, Error> {
    let sql = "WITH freed AS (DELETE FROM outbox_batches WHERE id = ANY ($1) RETURNING run_ids, event_ids, created_at)
               INSERT INTO outbox (run_id, event_id, kind, created_at)
               SELECT message.run_id, message.event_id, 'execution', created_at
               FROM freed, unnest(run_ids, event_ids) AS message (run_id, event_id)
               ON CONFLICT DO NOTHING";
    Ok(sqlx::query(sql).bind(ids).execute(db).await?.rows_affected())
}

/// Adds free rows for requests of batches that could not be sent.
pub async fn free_requests(db: impl PgExecutor<'_>, run_ids: &[String], event_ids: &[Uuid]) -> Result<(), Error> {
    let sql = "INSERT INTO outbox (run_id, event_id, kind)
               SELECT run_id, event_id, 'execution' FROM unnest($1::text[], $2::uuid[]) AS back (run_id, event_id)
               ON CONFLICT DO NOTHING";
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

/// Batches of `owner` that it does not know, because the answer to their commit was lost, as in [`free_unacknowledged`].
pub async fn unacknowledged_batches(db: impl PgExecutor<'_>, owner: Uuid, known: &[Uuid]) -> Result<Vec<Uuid>, Error> {
    let sql = "SELECT id FROM outbox_batches
               WHERE owner = $1 AND created_at < now() - interval '10 seconds' AND id <> ALL ($2::uuid[])";
    Ok(sqlx::query_scalar(sql).bind(owner).bind(known).fetch_all(db).await?)
}

/// Batches of dead owners.
pub async fn orphaned_batches(db: impl PgExecutor<'_>) -> Result<Vec<Uuid>, Error> {
    let sql = "SELECT id FROM outbox_batches WHERE NOT EXISTS (
                   SELECT 1 FROM processes WHERE id = owner AND heartbeat_at >= now() - make_interval(secs => $1))";
    Ok(sqlx::query_scalar(sql).bind(DEAD_AFTER_SECS).fetch_all(db).await?)
}

/// Frees the rows of dead owners. Returns how many were freed.
pub async fn free_orphans(db: impl PgExecutor<'_>) -> Result<u64, Error> {
    let sql = "UPDATE outbox SET owner = NULL WHERE owner IN (
                   SELECT DISTINCT owner FROM outbox WHERE owner IS NOT NULL
                   EXCEPT SELECT id FROM processes WHERE heartbeat_at >= now() - make_interval(secs => $1))";
    Ok(sqlx::query(sql).bind(DEAD_AFTER_SECS).execute(db).await?.rows_affected())
}

/// Number of messages, with rows of their own counted up to `limit`, and the age of the oldest in seconds. A batch counts
/// whole until it is deleted.
pub async fn backlog(db: impl PgExecutor<'_>, limit: i64) -> Result<(i64, f64), Error> {
    let sql =
        "SELECT coalesce(sum(messages), 0)::bigint, coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
               FROM (SELECT * FROM (SELECT 1 AS messages, created_at FROM outbox LIMIT $1) AS rows
                     UNION ALL SELECT cardinality(run_ids), created_at FROM outbox_batches) AS counted";
    Ok(sqlx::query_as(sql).bind(limit).fetch_one(db).await?)
}

/// Place in the order of the runs that have not ended: by organisation, status, last change and id.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns of a run")]
pub struct OpenRunPlace {
    pub organization_id: String,
    pub status: String,
    pub updated_at: Timestamp,
    pub run_id: String,
}

/// Part of a scan for overdue runs.
#[derive(Debug)]
pub struct OverdueRuns {
    /// Ids of runs that have waited too long.
    pub run_ids: Vec<String>,
    /// Where the next part begins; `None`: this was the last one.
    pub next: Option<OpenRunPlace>,
}

/// Finds runs that have waited longer than `older_than_secs` although their message was sent, among the next `limit`
/// runs that have not ended. `after` is the place of the last one that was checked.
pub async fn overdue(
    db: impl PgExecutor<'_>,
    after: Option<&OpenRunPlace>,
    limit: usize,
    older_than_secs: f64,
) -> Result<OverdueRuns, Error> {
    #[derive(sqlx::FromRow)]
    struct Open {
        #[sqlx(flatten)]
        place: OpenRunPlace,
        is_overdue: bool,
    }
    let sql = format!(
        "SELECT organization_id, status, updated_at, run_id, {OVERDUE} AS is_overdue FROM (
             SELECT * FROM workflow_runs WHERE status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')
                 AND (organization_id, status, updated_at, run_id) > ($2, $3, coalesce($4, '-infinity'::timestamp), $5)
             ORDER BY organization_id, status, updated_at, run_id LIMIT $6) AS r"
    );
    let mut open: Vec<Open> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(older_than_secs)
        .bind(after.map_or("", |place| &place.organization_id))
        .bind(after.map_or("", |place| &place.status))
        .bind(after.map(|place| place.updated_at))
        .bind(after.map_or("", |place| &place.run_id))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(db)
        .await?;
    let next = (open.len() == limit).then(|| open.last().map(|last| last.place.clone())).flatten();
    open.retain(|run| run.is_overdue);
    Ok(OverdueRuns { run_ids: open.into_iter().map(|run| run.place.run_id).collect(), next })
}

/// Writes the execution request of those of these runs that are overdue again, without an owner. Each repeat for the
/// same run waits twice as long as the one before. Returns how many were written.
pub async fn redispatch(
    db: impl PgExecutor<'_>,
    run_ids: &[String],
    older_than_secs: f64,
    limit: usize,
) -> Result<u64, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!(
        "WITH overdue AS (
            SELECT run_id, execution_event_id FROM workflow_runs r WHERE run_id = ANY ($2) AND {OVERDUE}
            ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED
         ), marked AS (
            UPDATE workflow_runs r
            SET redispatch_at = now() + least(now() - updated_at AT TIME ZONE 'UTC', interval '1 hour')
            FROM overdue WHERE r.run_id = overdue.run_id
         )
         INSERT INTO outbox (run_id, event_id, kind)
         SELECT run_id, coalesce(execution_event_id, gen_random_uuid()), 'execution' FROM overdue"
    );
    Ok(sqlx::query(AssertSqlSafe(sql))
        .bind(older_than_secs)
        .bind(run_ids)
        .bind(limit)
        .execute(db)
        .await?
        .rows_affected())
}

/// Condition of an overdue run: it was started by this API, and no message of it is still to be sent.
const OVERDUE: &str = "r.status = 'PENDING' AND r.workflow_version IS NOT NULL
    -- A sub-run or a paused run is resumed without a message.
    AND r.paused_at IS NULL AND coalesce(r.redispatch_at, r.updated_at AT TIME ZONE 'UTC' + make_interval(secs => $1)) <= now()
    AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.run_id = r.run_id)
    -- Read once and hashed, whereas the view would be read for each run.
    AND r.run_id::text NOT IN (SELECT unnest(run_ids) FROM outbox_batches)";
