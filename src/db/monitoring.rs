//! Monitoring updates that Kafka does not have yet. `executions::write` adds them, in the statement that causes them.

use sqlx::PgExecutor;
use uuid::Uuid;

use super::{Error, processes::DEAD_AFTER_SECS};

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

/// Takes rows that nobody has in memory, the oldest first: free ones, those of dead processes, and those of `owner`
/// that it does not know to have, unless they are so young that it may be about to learn of them.
pub async fn take(db: impl PgExecutor<'_>, owner: Uuid, known: &[Uuid], limit: i64) -> Result<Vec<Taken>, Error> {
    let sql = "
        WITH free AS (
            SELECT id FROM monitoring_outbox o
            WHERE CASE WHEN owner = $1 THEN created_at < now() - interval '10 seconds' AND id <> ALL ($2)
                ELSE owner IS NULL OR NOT EXISTS (SELECT 1 FROM processes p
                    WHERE p.id = o.owner AND p.heartbeat_at >= now() - make_interval(secs => $4)) END
            ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED
        ), taken AS (
            UPDATE monitoring_outbox o SET owner = $1 FROM free WHERE o.id = free.id
            RETURNING o.id, o.updates, o.created_at
        )
        SELECT id, updates FROM taken ORDER BY created_at";
    Ok(sqlx::query_as(sql).bind(owner).bind(known).bind(limit).bind(DEAD_AFTER_SECS).fetch_all(db).await?)
}

/// What a row has, JSON arrays of record values; nothing if it is not there.
pub async fn find(db: impl PgExecutor<'_>, id: Uuid) -> Result<Vec<String>, Error> {
    let sql = "SELECT updates FROM monitoring_outbox WHERE id = $1";
    Ok(sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?.unwrap_or_default())
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
