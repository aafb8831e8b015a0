//! Outbox of monitoring updates. `executions::write` adds rows in the statement that causes the updates.

use sqlx::PgExecutor;
use uuid::Uuid;

use super::{Error, Pool, processes::DEAD_AFTER_SECS};

/// Outbox row for observers.
#[derive(Debug)]
pub struct Outgoing {
    /// Id of the outbox row.
    pub id: Uuid,
    /// Process that sends the row; `None`: any process.
    pub owner: Option<Uuid>,
    /// One entry per change: a JSON array of record values.
    pub updates: Vec<Option<String>>,
}

/// Row taken from the table.
#[derive(Debug, sqlx::FromRow)]
pub struct Taken {
    /// Id of the outbox row.
    pub id: Uuid,
    /// JSON arrays of record values.
    pub updates: Vec<String>,
}

/// Frees rows that no process has in memory: those of dead processes, and those of `owner` that it does not know. Rows
/// so recent that `owner` may not have received the answer yet are left.
pub async fn free(db: &Pool, owner: Uuid, known: &[Uuid]) -> Result<(), Error> {
    let sql = "UPDATE monitoring_outbox SET owner = NULL WHERE owner IN (
                   SELECT DISTINCT owner FROM monitoring_outbox WHERE owner IS NOT NULL AND owner <> $1
                   EXCEPT SELECT id FROM processes WHERE heartbeat_at >= now() - make_interval(secs => $2))";
    sqlx::query(sql).bind(owner).bind(DEAD_AFTER_SECS).execute(db).await?;
    let sql = "UPDATE monitoring_outbox SET owner = NULL
               WHERE owner = $1 AND created_at < now() - interval '10 seconds' AND id <> ALL ($2)";
    sqlx::query(sql).bind(owner).bind(known).execute(db).await?;
    Ok(())
}

/// Takes free rows, oldest first: their ids are ordered by time.
pub async fn take(db: impl PgExecutor<'_>, owner: Uuid, limit: i64) -> Result<Vec<Taken>, Error> {
    let sql = "
        WITH free AS (
            SELECT id FROM monitoring_outbox WHERE owner IS NULL ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
        ), taken AS (
            UPDATE monitoring_outbox o SET owner = $1 FROM free WHERE o.id = free.id RETURNING o.id, o.updates
        )
        SELECT id, updates FROM taken ORDER BY id";
    Ok(sqlx::query_as(sql).bind(owner).bind(limit).fetch_all(db).await?)
}

/// Updates of a row as JSON arrays of record values; empty if the row does not exist.
pub async fn find(db: impl PgExecutor<'_>, id: Uuid) -> Result<Vec<String>, Error> {
    let sql = "SELECT updates FROM monitoring_outbox WHERE id = $1";
    Ok(sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?.unwrap_or_default())
}

/// `traceparent` of each of these runs; runs without one are omitted.
pub async fn traceparents(db: impl PgExecutor<'_>, run_ids: &[&str]) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT run_id, traceparent FROM workflow_runs WHERE run_id = ANY ($1) AND traceparent IS NOT NULL";
    Ok(sqlx::query_as(sql).bind(run_ids).fetch_all(db).await?)
}

/// Deletes rows whose updates the broker has acknowledged.
pub async fn delete(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<(), Error> {
    sqlx::query("DELETE FROM monitoring_outbox WHERE id = ANY ($1)").bind(ids).execute(db).await?;
    Ok(())
}

/// Number of rows, counted up to `limit`.
pub async fn backlog(db: impl PgExecutor<'_>, limit: i64) -> Result<i64, Error> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM monitoring_outbox LIMIT $1) AS counted";
    Ok(sqlx::query_scalar(sql).bind(limit).fetch_one(db).await?)
}
