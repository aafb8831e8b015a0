//! Idempotency keys. They are written by the statement that does the work (`runs::start`).

use sqlx::PgExecutor;

use super::Error;

/// For how long a key answers with its first answer.
const KEPT_HOURS: i32 = 24;

/// What a key stands for.
#[derive(Debug, sqlx::FromRow)]
pub struct Taken {
    /// SHA-256 of the first request's body.
    pub fingerprint: Vec<u8>,
    /// What it started.
    pub run_id: String,
}

/// What the key stands for, if it was used.
pub async fn find(db: impl PgExecutor<'_>, scope: &str, key: &str) -> Result<Option<Taken>, Error> {
    let sql = "SELECT fingerprint, run_id FROM idempotency_keys WHERE scope = $1 AND key = $2";
    Ok(sqlx::query_as(sql).bind(scope).bind(key).fetch_optional(db).await?)
}

/// Deletes the keys that are too old, a bounded number at a time. Returns how many.
pub async fn expire(db: impl PgExecutor<'_>) -> Result<u64, Error> {
    let sql = "DELETE FROM idempotency_keys WHERE (scope, key) IN (
                   SELECT scope, key FROM idempotency_keys WHERE created_at < now() - make_interval(hours => $1)
                   LIMIT 10000)";
    Ok(sqlx::query(sql).bind(KEPT_HOURS).execute(db).await?.rows_affected())
}
