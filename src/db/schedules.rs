//! State of schedules, and backfills.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Error, triggers::TriggerRow};
use crate::{access::OrganizationId, run::RunStatus};

/// Maximum number of backfills of a trigger that are kept.
const KEPT_BACKFILLS: i64 = 20;
/// Maximum number of the latest runs of a schedule among which failures in a row are counted.
const MAX_RECENT: i64 = 5000;

/// Row of `trigger_schedules`.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct ScheduleRow {
    pub due_at: Option<DateTime<Utc>>,
    pub processed_until: DateTime<Utc>,
    pub remaining: Option<i32>,
    pub buffered: Vec<DateTime<Utc>>,
    pub failures_since: DateTime<Utc>,
}

const COLUMNS: &str = "due_at, processed_until, remaining, buffered, failures_since";

/// What is to be done for a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Task {
    /// The trigger.
    pub trigger_id: Uuid,
    /// Backfill that runs; `None`: the schedule itself is due.
    pub backfill_id: Option<Uuid>,
}

/// What is due at `now`, or by the database's clock, and the backfills that run; at most `limit` of each.
pub async fn due(db: impl PgExecutor<'_>, now: Option<DateTime<Utc>>, limit: i64) -> Result<Vec<Task>, Error> {
    Ok(sqlx::query_as(DUE).bind(now).bind(limit).fetch_all(db).await?)
}

/// See [`due`].
pub const DUE: &str = "
    (SELECT trigger_id, NULL::uuid AS backfill_id FROM trigger_schedules
     WHERE due_at IS NOT NULL AND due_at <= coalesce($1, now()) ORDER BY due_at LIMIT $2)
    UNION ALL (SELECT trigger_id, id FROM trigger_backfills WHERE state = 'running' ORDER BY id LIMIT $2)";

/// Finds the state of a trigger.
pub async fn find(db: impl PgExecutor<'_>, id: Uuid) -> Result<Option<ScheduleRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM trigger_schedules WHERE trigger_id = $1");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(db).await?)
}

/// A schedule that is due.
#[derive(Debug)]
pub struct DueSchedule {
    /// The trigger.
    pub trigger: TriggerRow,
    /// Its state.
    pub state: ScheduleRow,
    /// Whether its organisation is suspended.
    pub is_suspended: bool,
}

/// Locks a trigger with its state until the transaction ends. `None` if another transaction has locked it, or if there is
/// nothing to do at `now` any more.
pub async fn lock_due(conn: &mut PgConnection, id: Uuid, now: DateTime<Utc>) -> Result<Option<DueSchedule>, Error> {
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        state: ScheduleRow,
        is_suspended: bool,
    }
    // The trigger first, as everybody else does.
    let Some(trigger) = super::triggers::lock_free(&mut *conn, id).await? else { return Ok(None) };
    let sql = format!(
        "SELECT {COLUMNS}, EXISTS (SELECT FROM organizations WHERE id = $3 AND status = 'suspended') AS is_suspended
         FROM trigger_schedules WHERE trigger_id = $1 AND due_at <= $2 FOR UPDATE SKIP LOCKED"
    );
    let query = sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(now).bind(&trigger.organization_id);
    let row: Option<Row> = query.fetch_optional(conn).await?;
    Ok(row.map(|Row { state, is_suspended }| DueSchedule { trigger, state, is_suspended }))
}

/// Writes the state of a trigger that the caller has locked.
pub async fn save(conn: &mut PgConnection, id: Uuid, row: &ScheduleRow) -> Result<(), Error> {
    let sql = "INSERT INTO trigger_schedules (trigger_id, due_at, processed_until, remaining, buffered, failures_since)
               VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (trigger_id) DO UPDATE SET due_at = excluded.due_at,
                   processed_until = excluded.processed_until, remaining = excluded.remaining,
                   buffered = excluded.buffered, failures_since = excluded.failures_since";
    sqlx::query(sql)
        .bind(id)
        .bind(row.due_at)
        .bind(row.processed_until)
        .bind(row.remaining)
        .bind(&row.buffered)
        .bind(row.failures_since)
        .execute(conn)
        .await?;
    Ok(())
}

/// Postpones a trigger that cannot be evaluated, by so many seconds.
pub async fn postpone(db: impl PgExecutor<'_>, id: Uuid, secs: f64) -> Result<(), Error> {
    let sql = "UPDATE trigger_schedules SET due_at = now() + make_interval(secs => $2)
               WHERE trigger_id = $1 AND due_at < now()";
    sqlx::query(sql).bind(id).bind(secs).execute(db).await?;
    Ok(())
}

/// Whether the last `count` runs of the trigger that have completed or failed have failed, all of them. Runs that were created before
/// `since` do not count.
pub async fn have_failed(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
    (count, since): (i64, DateTime<Utc>),
) -> Result<bool, Error> {
    let sql = "SELECT count(*) = $4 AND bool_and(status = $5) FROM (
                   SELECT status FROM (
                       SELECT status FROM workflow_runs
                       WHERE organization_id = $1 AND trigger_id = $2 AND trigger_id IS NOT NULL
                           AND created_at >= $3 AT TIME ZONE 'UTC'
                       ORDER BY created_at DESC, run_id DESC LIMIT $7) AS recent
                   WHERE status IN ($5, $6) LIMIT $4) AS ended";
    let all: Option<bool> = sqlx::query_scalar(sql)
        .bind(organization.as_str())
        .bind(id)
        .bind(since)
        .bind(count)
        .bind(RunStatus::Failed.as_str())
        .bind(RunStatus::Completed.as_str())
        .bind(MAX_RECENT)
        .fetch_one(conn)
        .await?;
    Ok(all.unwrap_or(false))
}

/// Row of `trigger_backfills`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct BackfillRow {
    pub id: Uuid,
    pub trigger_id: Uuid,
    pub state: String,
    pub from_at: DateTime<Utc>,
    pub to_at: DateTime<Utc>,
    pub overlap: String,
    pub force: bool,
    pub total: i32,
    pub processed_until: DateTime<Utc>,
    pub started: i32,
    pub present: i32,
    pub failed: i32,
    pub created_by: String,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
}

impl BackfillRow {
    /// State of a job that is not over.
    pub const RUNNING: &str = "running";
    /// State of a job that has decided all firings.
    pub const COMPLETED: &str = "completed";
    /// State of a job that a caller has stopped.
    pub const STOPPED: &str = "stopped";
}

const BACKFILL: &str =
    "id, trigger_id, state, from_at, to_at, overlap, force, total, processed_until, started, present, failed,
    created_by, created_at, ended_at";

/// Inserts a backfill, and deletes the oldest ended ones of the trigger.
pub async fn insert_backfill(conn: &mut PgConnection, row: &BackfillRow) -> Result<(), Error> {
    let sql =
        "INSERT INTO trigger_backfills (id, trigger_id, state, from_at, to_at, overlap, force, total, processed_until,
                   created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    sqlx::query(sql)
        .bind(row.id)
        .bind(row.trigger_id)
        .bind(&row.state)
        .bind(row.from_at)
        .bind(row.to_at)
        .bind(&row.overlap)
        .bind(row.force)
        .bind(row.total)
        .bind(row.processed_until)
        .bind(&row.created_by)
        .bind(row.created_at)
        .execute(&mut *conn)
        .await?;
    let sql = "DELETE FROM trigger_backfills WHERE trigger_id = $1 AND state <> 'running' AND created_at <= (
                   SELECT created_at FROM trigger_backfills WHERE trigger_id = $1
                   ORDER BY created_at DESC OFFSET $2 LIMIT 1)";
    sqlx::query(sql).bind(row.trigger_id).bind(KEPT_BACKFILLS).execute(conn).await?;
    Ok(())
}

/// Number of backfills of the trigger that run.
pub async fn count_running(conn: &mut PgConnection, trigger_id: Uuid) -> Result<i64, Error> {
    let sql = "SELECT count(*) FROM trigger_backfills WHERE trigger_id = $1 AND state = 'running'";
    Ok(sqlx::query_scalar(sql).bind(trigger_id).fetch_one(conn).await?)
}

/// Backfills of a trigger, the latest first.
pub async fn backfills(db: impl PgExecutor<'_>, trigger_id: Uuid) -> Result<Vec<BackfillRow>, Error> {
    let sql = format!(
        "SELECT {BACKFILL} FROM trigger_backfills WHERE trigger_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(trigger_id).bind(KEPT_BACKFILLS).fetch_all(db).await?)
}

/// Finds a backfill of the trigger.
pub async fn backfill(db: impl PgExecutor<'_>, trigger_id: Uuid, id: Uuid) -> Result<Option<BackfillRow>, Error> {
    let sql = format!("SELECT {BACKFILL} FROM trigger_backfills WHERE trigger_id = $1 AND id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(trigger_id).bind(id).fetch_optional(db).await?)
}

/// Locks a trigger with its backfill until the transaction ends. `None` if another transaction has locked one of them, or
/// if the backfill runs no more, or waits since its organisation is suspended.
pub async fn lock_backfill(
    conn: &mut PgConnection,
    (id, trigger_id): (Uuid, Uuid),
) -> Result<Option<(TriggerRow, BackfillRow)>, Error> {
    let Some(trigger) = super::triggers::lock_free(&mut *conn, trigger_id).await? else { return Ok(None) };
    let sql = format!(
        "SELECT {BACKFILL} FROM trigger_backfills WHERE id = $1 AND state = 'running'
             AND NOT EXISTS (SELECT FROM organizations WHERE id = $2 AND status = 'suspended')
         FOR UPDATE SKIP LOCKED"
    );
    let query = sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(&trigger.organization_id);
    let row = query.fetch_optional(conn).await?;
    Ok(row.map(|row| (trigger, row)))
}

/// Writes the progress of a backfill that the caller has locked.
pub async fn save_backfill(conn: &mut PgConnection, row: &BackfillRow) -> Result<(), Error> {
    let sql = "UPDATE trigger_backfills SET state = $2, processed_until = $3, started = $4, present = $5, failed = $6, ended_at = $7
               WHERE id = $1";
    sqlx::query(sql)
        .bind(row.id)
        .bind(&row.state)
        .bind(row.processed_until)
        .bind(row.started)
        .bind(row.present)
        .bind(row.failed)
        .bind(row.ended_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// Stops a backfill, unless it has ended. Returns it as it is then.
pub async fn stop_backfill(conn: &mut PgConnection, trigger_id: Uuid, id: Uuid) -> Result<Option<BackfillRow>, Error> {
    let sql = "UPDATE trigger_backfills SET state = 'stopped', ended_at = now()
               WHERE trigger_id = $1 AND id = $2 AND state = 'running'";
    sqlx::query(sql).bind(trigger_id).bind(id).execute(&mut *conn).await?;
    backfill(conn, trigger_id, id).await
}
