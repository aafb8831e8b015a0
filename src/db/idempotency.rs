//! Idempotency keys. They are written in the transaction that does the work: by [`claim`], or with a batch of runs by
//! `runs::start`.

use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};

use super::Error;

/// `Idempotency-Key` with its scope and fingerprint.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// Route with its object, and caller.
    pub scope: String,
    /// Key as given.
    pub key: String,
    /// SHA-256 of the body.
    pub fingerprint: Vec<u8>,
}

/// Stored key with its resource.
#[derive(Debug, sqlx::FromRow)]
pub struct Taken {
    /// SHA-256 of the first request's body.
    pub fingerprint: Vec<u8>,
    /// Id of the resource that the first request created.
    pub resource_id: String,
}

/// Reason why a key could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The first request with the key has created this resource.
    #[error("the first request with the idempotency key made {0}")]
    Repeated(String),
    /// The key belongs to a request with another body.
    #[error("the idempotency key was used with another body")]
    Reused,
    /// The first request with the key is in flight.
    #[error("a request with the idempotency key is under way")]
    InFlight,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] Error),
}

/// Resource of a used key.
pub async fn find(db: impl PgExecutor<'_>, scope: &str, key: &str) -> Result<Option<Taken>, Error> {
    let sql = "SELECT fingerprint, run_id AS resource_id FROM idempotency_keys WHERE scope = $1 AND key = $2";
    Ok(sqlx::query_as(sql).bind(scope).bind(key).fetch_optional(db).await?)
}

/// Binds the key to the resource when this transaction commits.
///
/// A request in flight elsewhere with the same key is waited for, up to `lock_timeout`: its answer is usually available
/// soon, and is then the answer to this request too.
pub async fn claim(conn: &mut PgConnection, key: &IdempotencyKey, resource_id: &str) -> Result<(), ClaimError> {
    let sql = "INSERT INTO idempotency_keys (scope, key, fingerprint, run_id) VALUES ($1, $2, $3, $4)
               ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(&key.scope).bind(&key.key).bind(&key.fingerprint).bind(resource_id);
    match insert.execute(&mut *conn).await {
        Ok(done) if done.rows_affected() == 1 => return Ok(()),
        Ok(_) => {}
        Err(error) => {
            let error = Error::from(error);
            return Err(if error.is_lock_timeout() { ClaimError::InFlight } else { error.into() });
        }
    }
    match find(conn, &key.scope, &key.key).await? {
        Some(taken) if taken.fingerprint != key.fingerprint => Err(ClaimError::Reused),
        Some(taken) => Err(ClaimError::Repeated(taken.resource_id)),
        // The key expired between the two statements.
        None => Err(ClaimError::InFlight),
    }
}

/// Stores an answer that cannot be derived from the created resource, in the transaction that has claimed the key.
pub async fn keep_answer(conn: &mut PgConnection, key: &IdempotencyKey, answer: &RawValue) -> Result<(), Error> {
    let sql = "UPDATE idempotency_keys SET answer = $3 WHERE scope = $1 AND key = $2";
    sqlx::query(sql).bind(&key.scope).bind(&key.key).bind(Json(answer)).execute(conn).await?;
    Ok(())
}

/// Stored answer of a key.
pub async fn kept_answer(db: impl PgExecutor<'_>, key: &IdempotencyKey) -> Result<Option<Box<RawValue>>, Error> {
    let sql = "SELECT answer FROM idempotency_keys WHERE scope = $1 AND key = $2";
    let kept: Option<Option<Json<Box<RawValue>>>> =
        sqlx::query_scalar(sql).bind(&key.scope).bind(&key.key).fetch_optional(db).await?;
    Ok(kept.flatten().map(|answer| answer.0))
}

/// Maximum number of keys that one statement deletes.
const EXPIRY_BATCH: u64 = 10_000;

/// Deletes all expired keys in bounded batches, so that it keeps pace with new ones. Other processes may do this at the
/// same time. Returns how many were deleted.
pub async fn expire(pool: &super::Pool, kept_hours: i32) -> Result<u64, Error> {
    // The oldest keys, by their index and then by their physical position (ctid): keys that remain are not read.
    let sql = "DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
                   SELECT ctid FROM idempotency_keys WHERE created_at < now() - make_interval(hours => $1)
                   ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))";
    let mut expired = 0;
    loop {
        let pool = pool.clone();
        let limit = i64::try_from(EXPIRY_BATCH).unwrap_or(i64::MAX);
        let batch = super::bounded(async move {
            Ok(sqlx::query(sql).bind(kept_hours).bind(limit).execute(&pool).await?.rows_affected())
        });
        let deleted = batch.await?;
        expired += deleted;
        if deleted < EXPIRY_BATCH {
            return Ok(expired);
        }
    }
}
