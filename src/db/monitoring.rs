//! Monitoring updates that Kafka does not have yet. `executions::write` adds them, in the statement that causes them.

use sqlx::PgExecutor;
use uuid::Uuid;

use super::{Error, Pool, processes::DEAD_AFTER_SECS};

/// What a statement leaves for observers.
#[derive(Debug)]
pub struct Outgoing {
    /// Of the row.
    pub id: Uuid,
    /// Who sends it; `None`: whoever takes it.
    pub owner: Option<Uuid>,
    /// One entry a change: a JSON array of record values.
    pub updates: Vec<Option<String>>,
}

/// A row taken from the table.
#[derive(Debug, sqlx::FromRow)]
pub struct Taken {
    /// Of the row.
    pub id: Uuid,
    /// JSON arrays of record values.
    pub updates: Vec<String>,
}

/// Frees rows that nobody has in memory: those of dead processes, and those of `owner` that it does not know to have,
/// unless they are so young that it may be about to learn of them.
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

/// Takes free rows, the oldest first: their ids are made in the order of time.
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

/// What a row has, JSON arrays of record values; nothing if it is not there.
pub async fn find(db: impl PgExecutor<'_>, id: Uuid) -> Result<Vec<String>, Error> {
    let sql = "SELECT updates FROM monitoring_outbox WHERE id = $1";
    Ok(sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?.unwrap_or_default())
}

/// The `traceparent` that each of these runs was started with; those without one are left out.
pub async fn traceparents(db: impl PgExecutor<'_>, run_ids: &[&str]) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT run_id, traceparent FROM workflow_runs WHERE run_id = ANY ($1) AND traceparent IS NOT NULL";
    Ok(sqlx::query_as(sql).bind(run_ids).fetch_all(db).await?)
}

/// Deletes rows whose updates the broker has.
pub async fn delete(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<(), Error> {
    sqlx::query("DELETE FROM monitoring_outbox WHERE id = ANY ($1)").bind(ids).execute(db).await?;
    Ok(())
}

/// How many rows there are, counted up to `limit`.
pub async fn backlog(db: impl PgExecutor<'_>, limit: i64) -> Result<i64, Error> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM monitoring_outbox LIMIT $1) AS counted";
    Ok(sqlx::query_scalar(sql).bind(limit).fetch_one(db).await?)
}
