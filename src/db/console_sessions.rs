//! Sessions of the console.

use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Error, Pool};
use crate::timestamp::Timestamp;

/// Row of `console_sessions`, without the hash.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct SessionRow {
    pub id: Uuid,
    pub organization_id: String,
    pub subject: String,
    pub api_key_id: Option<Uuid>,
    pub sealed_token: Option<Vec<u8>>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// Maximum number of sessions of a subject: with a further one, the oldest ends.
const MAX_OF_SUBJECT: i64 = 20;
/// Maximum number of expired rows that one statement deletes.
const EXPIRY_BATCH: u64 = 1000;

/// Inserts a session, and ends the oldest ones of the same subject if there are too many.
pub async fn insert(conn: &mut PgConnection, row: &SessionRow, secret_hash: &[u8; 32]) -> Result<(), Error> {
    let sql =
        "INSERT INTO console_sessions (id, secret_hash, organization_id, subject, api_key_id, sealed_token, created_at,
                   expires_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    sqlx::query(sql)
        .bind(row.id)
        .bind(&secret_hash[..])
        .bind(&row.organization_id)
        .bind(&row.subject)
        .bind(row.api_key_id)
        .bind(&row.sealed_token)
        .bind(row.created_at)
        .bind(row.expires_at)
        .execute(&mut *conn)
        .await?;
    let sql = "DELETE FROM console_sessions WHERE id IN (
                   SELECT id FROM console_sessions WHERE organization_id = $1 AND subject = $2
                   ORDER BY created_at DESC, id DESC OFFSET $3)";
    sqlx::query(sql).bind(&row.organization_id).bind(&row.subject).bind(MAX_OF_SUBJECT).execute(conn).await?;
    Ok(())
}

/// Finds the session with that secret, including expired ones.
pub async fn find(db: impl PgExecutor<'_>, secret_hash: &[u8; 32]) -> Result<Option<SessionRow>, Error> {
    let sql =
        "SELECT id, organization_id, subject, api_key_id, sealed_token, created_at AT TIME ZONE 'UTC' AS created_at,
                   expires_at AT TIME ZONE 'UTC' AS expires_at
               FROM console_sessions WHERE secret_hash = $1";
    Ok(sqlx::query_as(sql).bind(&secret_hash[..]).fetch_optional(db).await?)
}

/// Deletes a session. Returns whether there was one.
pub async fn delete(conn: &mut PgConnection, id: Uuid) -> Result<bool, Error> {
    let sql = "DELETE FROM console_sessions WHERE id = $1";
    Ok(sqlx::query(sql).bind(id).execute(conn).await?.rows_affected() > 0)
}

/// Deletes expired sessions, in bounded batches. Other processes may do this at the same time.
pub async fn expire(pool: &Pool) -> Result<(), Error> {
    let sql = "DELETE FROM console_sessions WHERE id = ANY (ARRAY(
                   SELECT id FROM console_sessions WHERE expires_at <= now()
                   ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))";
    loop {
        let pool = pool.clone();
        let limit = i64::try_from(EXPIRY_BATCH).unwrap_or(i64::MAX);
        let batch =
            super::bounded(async move { Ok(sqlx::query(sql).bind(limit).execute(&pool).await?.rows_affected()) });
        if batch.await? < EXPIRY_BATCH {
            return Ok(());
        }
    }
}
