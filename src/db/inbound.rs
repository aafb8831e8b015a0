//! Addresses of webhook triggers, and the deliveries that have started runs.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{Error, Pool};
use crate::timestamp::Timestamp;

/// Time for which a delivery is remembered: longer than any provider repeats one.
const KEEP_DAYS: i32 = 7;
/// Maximum number of deliveries that one statement deletes.
const EXPIRY_BATCH: i64 = 10_000;
/// Columns of a trigger's address.
const ADDRESS: &str = "token_at AT TIME ZONE 'UTC' AS token_at, refused, refused_at AT TIME ZONE 'UTC' AS refused_at,
    refused_for";

/// Address of a trigger, without the token, and what was refused there.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct AddressRow {
    pub token_at: Timestamp,
    pub refused: i64,
    pub refused_at: Option<Timestamp>,
    pub refused_for: Option<String>,
}

/// The address of a trigger.
pub async fn address(db: impl PgExecutor<'_>, trigger_id: Uuid) -> Result<Option<AddressRow>, Error> {
    let sql = sqlx::AssertSqlSafe(format!("SELECT {ADDRESS} FROM webhook_triggers WHERE trigger_id = $1"));
    Ok(sqlx::query_as(sql).bind(trigger_id).fetch_optional(db).await?)
}

/// Gives a trigger this token, in the place of the one that it has.
pub async fn set_token(conn: &mut PgConnection, trigger_id: Uuid, hash: &[u8], at: DateTime<Utc>) -> Result<(), Error> {
    let sql = "INSERT INTO webhook_triggers (trigger_id, token_hash, token_at) VALUES ($1, $2, $3)
               ON CONFLICT (trigger_id) DO UPDATE SET token_hash = $2, token_at = $3";
    sqlx::query(sql).bind(trigger_id).bind(hash).bind(at).execute(conn).await?;
    Ok(())
}

/// Replaces the secrets of a trigger, which the caller has locked.
pub async fn set_secrets(
    conn: &mut PgConnection,
    trigger_id: Uuid,
    secrets: Option<&Json<Box<RawValue>>>,
) -> Result<(), Error> {
    let sql = "UPDATE triggers SET secrets = $2 WHERE id = $1";
    sqlx::query(sql).bind(trigger_id).bind(secrets).execute(conn).await?;
    Ok(())
}

/// Records why a delivery was refused. Of those within a second only the first one is recorded: senders without a valid
/// signature could otherwise make as many row versions as they like.
pub async fn record_refusal(db: impl PgExecutor<'_>, trigger_id: Uuid, reason: &str) -> Result<(), Error> {
    let sql = "UPDATE webhook_triggers SET refused = refused + 1, refused_at = now(), refused_for = $2
               WHERE trigger_id = $1 AND coalesce(refused_at < now() - interval '1 second', true)";
    sqlx::query(sql).bind(trigger_id).bind(reason).execute(db).await?;
    Ok(())
}

/// Binds a delivery to its run when this transaction commits. Returns the run of an earlier delivery with the same id,
/// if there was one; one that is under way is waited for, up to `lock_timeout`.
pub async fn claim_delivery(
    conn: &mut PgConnection,
    trigger_id: Uuid,
    hash: &[u8],
    run_id: &str,
) -> Result<Option<String>, Error> {
    let sql = "INSERT INTO webhook_trigger_deliveries (trigger_id, delivery_hash, run_id) VALUES ($1, $2, $3)
               ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(trigger_id).bind(hash).bind(run_id).execute(&mut *conn).await?;
    if insert.rows_affected() == 1 {
        return Ok(None);
    }
    // A separate statement sees the row that was committed meanwhile. It cannot have expired since.
    let sql = "SELECT run_id FROM webhook_trigger_deliveries WHERE trigger_id = $1 AND delivery_hash = $2";
    Ok(sqlx::query_scalar(sql).bind(trigger_id).bind(hash).fetch_optional(conn).await?)
}

/// Undoes [`claim_delivery`] in the same transaction.
pub async fn release_delivery(conn: &mut PgConnection, trigger_id: Uuid, hash: &[u8]) -> Result<(), Error> {
    let sql = "DELETE FROM webhook_trigger_deliveries WHERE trigger_id = $1 AND delivery_hash = $2";
    sqlx::query(sql).bind(trigger_id).bind(hash).execute(conn).await?;
    Ok(())
}

/// Remembers that a delivery has started no run. Returns whether that is new. The row is one of its own, with a hash of
/// that of the delivery, which may still start a run.
pub async fn is_first_failure(conn: &mut PgConnection, trigger_id: Uuid, hash: &[u8]) -> Result<bool, Error> {
    let sql = "INSERT INTO webhook_trigger_deliveries (trigger_id, delivery_hash, run_id)
               VALUES ($1, sha256('failed'::bytea || $2), '') ON CONFLICT DO NOTHING";
    Ok(sqlx::query(sql).bind(trigger_id).bind(hash).execute(conn).await?.rows_affected() == 1)
}

/// Deletes deliveries after seven days, in bounded batches. Other processes may do this at the same time.
pub async fn expire_deliveries(pool: &Pool) -> Result<u64, Error> {
    let sql = "DELETE FROM webhook_trigger_deliveries WHERE ctid = ANY (ARRAY(
                   SELECT ctid FROM webhook_trigger_deliveries WHERE created_at < now() - make_interval(days => $1)
                   ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))";
    let mut expired = 0;
    loop {
        let pool = pool.clone();
        let batch = super::bounded(async move {
            Ok(sqlx::query(sql).bind(KEEP_DAYS).bind(EXPIRY_BATCH).execute(&pool).await?.rows_affected())
        });
        let deleted = batch.await?;
        expired += deleted;
        if deleted < EXPIRY_BATCH.unsigned_abs() {
            return Ok(expired);
        }
    }
}
