//! Audit rows: one for every change, in the change's own transaction.

use serde_json::value::RawValue;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::Error;
use crate::timestamp::Timestamp;

/// What was done, to what, by whom.
pub struct Entry<'a> {
    /// `agent`, `workflow`, `run` or `api_key`.
    pub entity_type: &'static str,
    /// The object.
    pub entity_id: Uuid,
    /// `create`, `update`, `delete`, `execute`, `retry`, `cancel` or `revoke`.
    pub action: &'static str,
    /// The caller.
    pub user_id: &'a str,
    /// What changed, without secrets; `None` is stored as a JSON null.
    pub changes: Option<&'a RawValue>,
}

/// Writes the entry.
pub async fn insert(conn: &mut PgConnection, entry: Entry<'_>, at: Timestamp) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO audit_logs (id, entity_type, entity_id, action, user_id, changes, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, coalesce($6, 'null'::jsonb), $7, $7)",
    )
    .bind(Uuid::now_v7())
    .bind(entry.entity_type)
    .bind(entry.entity_id)
    .bind(entry.action)
    .bind(entry.user_id)
    .bind(entry.changes.map(Json))
    .bind(at)
    .execute(conn)
    .await?;
    Ok(())
}
