//! Changes of the health of agents, as entries of the audit trail: one for each change, whichever process notices it.
//!
//! There are two sources: health checks, whose last result is in `agent_health`, and circuit breakers, whose state is in
//! `circuit_breakers`. Each source has changes of its own, since an agent that shows its card may fail at its work.

use serde_json::{Value, json};
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Error, Pool, agent_cards::CardOwner, audit, in_transaction};
use crate::{
    access::{Actor, OrganizationId},
    input::to_raw,
    timestamp::Timestamp,
};

/// Whether the agent was healthy when it was last checked, at this URL. An agent that was never checked counts as healthy.
pub async fn was_healthy(db: impl PgExecutor<'_>, agent_id: Uuid, url: &str) -> Result<bool, Error> {
    let sql = "SELECT is_healthy FROM agent_health
               WHERE agent_id = $1 AND url_digest = sha256(convert_to($2, 'UTF8'))";
    Ok(sqlx::query_scalar(sql).bind(agent_id).bind(url).fetch_optional(db).await?.unwrap_or(true))
}

/// Stores the result of a health check. If it differs from the last one, it is an entry of the audit trail.
pub async fn record_check(pool: &Pool, owner: &CardOwner, is_healthy: bool, message: &str) -> Result<(), Error> {
    in_transaction(pool, async |transaction| -> Result<(), Error> {
        // Locks the row, which begins as that of a healthy agent.
        let sql = "INSERT INTO agent_health AS h (agent_id, url_digest, is_healthy)
                   VALUES ($1, sha256(convert_to($2, 'UTF8')), true)
                   ON CONFLICT (agent_id) DO UPDATE SET url_digest = excluded.url_digest,
                       is_healthy = h.is_healthy OR h.url_digest <> excluded.url_digest
                   RETURNING is_healthy";
        let before: bool =
            sqlx::query_scalar(sql).bind(owner.agent_id).bind(&owner.url).fetch_one(&mut *transaction).await?;
        if before != is_healthy {
            let sql = "UPDATE agent_health SET is_healthy = $2, since = now() WHERE agent_id = $1";
            sqlx::query(sql).bind(owner.agent_id).bind(is_healthy).execute(&mut *transaction).await?;
            let health = json!({"source": "check", "message": message});
            audit_change(transaction, (owner.agent_id, &owner.name, &owner.organization), is_healthy, health).await?;
        }
        Ok(())
    })
    .await
}

/// Writes the entry of a change: id, name and organisation of the agent, whether it is healthy now, and by which source.
pub(super) async fn audit_change(
    conn: &mut PgConnection,
    (entity_id, entity_name, organization): (Uuid, &str, &OrganizationId),
    is_healthy: bool,
    health: Value,
) -> Result<(), Error> {
    let after = to_raw(&json!({"health": health}));
    let entry = audit::Entry {
        entity_type: "agent",
        entity_id,
        entity_name,
        action: if is_healthy { "health_recovered" } else { "health_failing" },
        before: None,
        after: Some(&after),
    };
    let actor = Actor { organization: organization.clone(), ..Actor::system() };
    audit::insert(conn, &actor, entry, Timestamp::now()).await
}
