//! Keys that the service generates for itself.

use super::{Error, Pool};

/// Finds the key of that name, or stores `fresh` as the key.
pub async fn find_or_store(pool: &Pool, name: &str, fresh: &[u8]) -> Result<Vec<u8>, Error> {
    let find = || sqlx::query_scalar("SELECT key FROM service_keys WHERE name = $1").bind(name);
    if let Some(key) = find().fetch_optional(pool).await? {
        return Ok(key);
    }
    let sql = "INSERT INTO service_keys (name, key) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(name).bind(fresh).execute(pool).await?;
    // Another process may have stored its key first.
    Ok(find().fetch_one(pool).await?)
}
