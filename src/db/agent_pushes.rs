//! Addresses for push notifications of A2A agents. A notification is a row's flag between the process of the API that
//! receives it and the executor that waits.

use sqlx::PgExecutor;
use uuid::Uuid;

use super::{Error, Pool};

/// Address that an agent gets with a message.
#[derive(Clone, Debug)]
pub struct NewPush {
    /// Id in its path.
    pub id: Uuid,
    /// SHA-256 of its token.
    pub token_hash: Vec<u8>,
    /// Message whose task the agent reports on.
    pub attempt_id: String,
    /// Executor that waits.
    pub waiter: Uuid,
}

/// Adds an address. The addresses that an executor which has died gave the agent for the same message report to the new
/// one: the agent may know only those.
pub async fn add(pool: &Pool, new: &NewPush) -> Result<(), Error> {
    let sql = "
        WITH adopted AS (UPDATE agent_pushes SET waiter = $4 WHERE attempt_id = $3)
        INSERT INTO agent_pushes (id, token_hash, attempt_id, waiter, expires_at)
        VALUES ($1, $2, $3, $4, now() + interval '10 minutes')";
    sqlx::query(sql).bind(new.id).bind(&new.token_hash).bind(&new.attempt_id).bind(new.waiter).execute(pool).await?;
    Ok(())
}

/// Makes the addresses that another executor gave the agent for a message report to this one. Returns whether there are
/// any.
pub async fn adopt(db: impl PgExecutor<'_>, attempt_id: &str, waiter: Uuid) -> Result<bool, Error> {
    let sql = "UPDATE agent_pushes SET waiter = $2 WHERE attempt_id = $1";
    Ok(sqlx::query(sql).bind(attempt_id).bind(waiter).execute(db).await?.rows_affected() > 0)
}

/// Whether there is such an address with that token.
pub async fn is_expected(db: impl PgExecutor<'_>, id: Uuid, token_hash: &[u8]) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM agent_pushes WHERE id = $1 AND token_hash = $2 AND expires_at > now())";
    Ok(sqlx::query_scalar(sql).bind(id).bind(token_hash).fetch_one(db).await?)
}

/// Notes a notification. One that is noted already writes nothing.
pub async fn notify(db: impl PgExecutor<'_>, id: Uuid) -> Result<(), Error> {
    sqlx::query("UPDATE agent_pushes SET is_notified = true WHERE id = $1 AND NOT is_notified")
        .bind(id)
        .execute(db)
        .await?;
    Ok(())
}

/// Takes the notifications for an executor: the messages whose tasks have changed.
pub async fn take(db: impl PgExecutor<'_>, waiter: Uuid) -> Result<Vec<String>, Error> {
    let sql = "UPDATE agent_pushes SET is_notified = false WHERE waiter = $1 AND is_notified RETURNING attempt_id";
    Ok(sqlx::query_scalar(sql).bind(waiter).fetch_all(db).await?)
}

/// Deletes the addresses of messages whose tasks are not waited for any more, unless another executor does.
pub async fn delete(db: impl PgExecutor<'_>, waiter: Uuid, attempt_ids: &[String]) -> Result<(), Error> {
    let sql = "DELETE FROM agent_pushes WHERE attempt_id = ANY ($2) AND waiter = $1";
    sqlx::query(sql).bind(waiter).bind(attempt_ids).execute(db).await?;
    Ok(())
}

/// Deletes the addresses of executors that have died.
pub async fn delete_old(db: impl PgExecutor<'_>) -> Result<(), Error> {
    sqlx::query("DELETE FROM agent_pushes WHERE expires_at < now() - interval '10 minutes'").execute(db).await?;
    Ok(())
}
