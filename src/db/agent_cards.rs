//! What executors know about agents: the cards of A2A agents and the tools of MCP servers, and the versions that they
//! speak.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{Error, Pool, audit, in_transaction};
use crate::{
    a2a::card,
    access::{Actor, OrganizationId},
    input::to_raw,
    timestamp::Timestamp,
};

/// Row of `agent_cards`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct CardRow {
    pub card: Option<Json<Box<RawValue>>>,
    pub etag: Option<String>,
    pub signature: Option<String>,
    pub problem: Option<String>,
    pub fetched_at: Option<DateTime<Utc>>,
    pub checked_at: Option<DateTime<Utc>>,
    pub valid_seconds: Option<i32>,
    pub changed_at: Option<DateTime<Utc>>,
    pub changed_members: Option<Vec<String>>,
    pub protocol_seen: Option<String>,
    pub seen_at: Option<DateTime<Utc>>,
    pub updated_at: DateTime<Utc>,
    /// Time of the read.
    pub read_at: DateTime<Utc>,
}

/// The agent's row, unless it is for another URL.
pub async fn find(db: impl PgExecutor<'_>, agent_id: Uuid, url: &str) -> Result<Option<CardRow>, Error> {
    let sql =
        "SELECT card, etag, signature, problem, fetched_at, checked_at, valid_seconds, changed_at, changed_members,
                   protocol_seen, seen_at, updated_at, now() AS read_at
               FROM agent_cards WHERE agent_id = $1 AND url_digest = sha256(convert_to($2, 'UTF8'))";
    Ok(sqlx::query_as(sql).bind(agent_id).bind(url).fetch_optional(db).await?)
}

/// Agent of a row.
#[derive(Clone, Debug)]
pub struct CardOwner {
    /// Id of the agent.
    pub agent_id: Uuid,
    /// Its URL.
    pub url: String,
    /// Its name, for the audit trail.
    pub name: String,
    /// Its organisation, for the audit trail.
    pub organization: OrganizationId,
}

/// Result of a request for a card.
#[derive(Clone, Debug)]
pub enum Checked {
    /// The card.
    Card {
        /// The card.
        card: Box<RawValue>,
        /// Its `ETag`.
        etag: Option<String>,
        /// See [`crate::a2a::Signature`]; `None` for what has none.
        signature: Option<&'static str>,
    },
    /// The card has not changed.
    Unchanged,
    /// The agent has no card.
    Missing(String),
    /// The card could not be read; the known one is kept.
    Failed(String),
}

/// Writes the result of a request for a card, which counts for that time, or for as long as is usual. A card that differs from the one before is an entry of the audit trail,
/// unless `audit` is false.
pub async fn record(
    pool: &Pool,
    owner: &CardOwner,
    checked: Checked,
    valid: Option<Duration>,
    audit: bool,
) -> Result<(), Error> {
    in_transaction(pool, async |transaction| -> Result<(), Error> {
        let before = lock(transaction, owner).await?;
        match checked {
            Checked::Card { card, etag, signature } => {
                let changed = before.as_ref().map(|before| card::changed_members(&before.0, &card));
                // What was seen before says nothing about another card.
                let is_other = changed.as_ref().is_none_or(|members| !members.is_empty());
                let changed = changed.filter(|members| !members.is_empty());
                let sql = "UPDATE agent_cards
                           SET card = $2, etag = $3, signature = $4, problem = NULL, fetched_at = now(),
                               checked_at = now(), updated_at = now(), changed_members = coalesce($5, changed_members),
                               changed_at = CASE WHEN $5::text[] IS NULL THEN changed_at ELSE now() END,
                               seen_at = CASE WHEN $6 THEN NULL ELSE seen_at END
                           WHERE agent_id = $1";
                sqlx::query(sql)
                    .bind(owner.agent_id)
                    .bind(Json(&card))
                    .bind(etag)
                    .bind(signature)
                    .bind(&changed)
                    .bind(is_other)
                    .execute(&mut *transaction)
                    .await?;
                if let Some(members) = changed.filter(|_| audit) {
                    let after = to_raw(&serde_json::json!({"card": {"changed": members, "signature": signature}}));
                    let entry = audit::Entry {
                        entity_type: "agent",
                        entity_id: owner.agent_id,
                        entity_name: &owner.name,
                        action: "card_changed",
                        before: None,
                        after: Some(&after),
                    };
                    let actor = Actor { organization: owner.organization.clone(), ..Actor::system() };
                    audit::insert(transaction, &actor, entry, Timestamp::now()).await?;
                }
            }
            Checked::Unchanged => {
                let sql =
                    "UPDATE agent_cards SET problem = NULL, fetched_at = now(), checked_at = now(), updated_at = now()
                           WHERE agent_id = $1";
                sqlx::query(sql).bind(owner.agent_id).execute(&mut *transaction).await?;
            }
            Checked::Missing(problem) => {
                let sql = "UPDATE agent_cards SET card = NULL, etag = NULL, signature = NULL, problem = $2,
                               checked_at = now(), updated_at = now()
                           WHERE agent_id = $1";
                sqlx::query(sql).bind(owner.agent_id).bind(problem).execute(&mut *transaction).await?;
            }
            Checked::Failed(problem) => {
                let sql =
                    "UPDATE agent_cards SET problem = $2, checked_at = now(), updated_at = now() WHERE agent_id = $1";
                sqlx::query(sql).bind(owner.agent_id).bind(problem).execute(&mut *transaction).await?;
            }
        }
        let sql = "UPDATE agent_cards SET valid_seconds = $2 WHERE agent_id = $1";
        let valid = valid.map(|valid| i32::try_from(valid.as_secs()).unwrap_or(i32::MAX));
        sqlx::query(sql).bind(owner.agent_id).bind(valid).execute(transaction).await?;
        Ok(())
    })
    .await
}

/// Accepts the changes of the agent's card so far. `url` is the agent's.
pub async fn accept(db: impl PgExecutor<'_>, agent_id: Uuid, url: &str) -> Result<(), Error> {
    let sql = "UPDATE agent_cards SET changed_at = NULL, changed_members = NULL
               WHERE agent_id = $1 AND url_digest = sha256(convert_to($2, 'UTF8')) AND changed_at IS NOT NULL";
    sqlx::query(sql).bind(agent_id).bind(url).execute(db).await?;
    Ok(())
}

/// Notes the version in which the agent answered.
pub async fn record_version(pool: &Pool, owner: &CardOwner, version: &str) -> Result<(), Error> {
    in_transaction(pool, async |transaction| -> Result<(), Error> {
        lock(transaction, owner).await?;
        let sql = "UPDATE agent_cards SET protocol_seen = $2, seen_at = now(), updated_at = now() WHERE agent_id = $1";
        sqlx::query(sql).bind(owner.agent_id).bind(version).execute(transaction).await?;
        Ok(())
    })
    .await
}

/// Tool of an MCP server that an agent calls, as far as its server is known.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct KnownTool {
    /// Name of the agent.
    pub agent: String,
    /// Name of the tool.
    pub tool: String,
    /// JSON Schema of its input, if the server was seen with it.
    pub input_schema: Option<Json<Box<RawValue>>>,
    /// Whether the server was seen with it.
    pub is_there: bool,
    /// Whether it is called as a task only, in a revision whose tasks are not spoken.
    pub needs_task: bool,
    /// Whether all tools of the server are known.
    pub is_complete: bool,
    /// Names of some tools of the server.
    pub names: Vec<String>,
}

/// Maximum number of agents whose tools are read together.
const MAX_TOOLS: i64 = 64;

/// Tools that these agents of the organisation call, of those whose servers are known.
pub async fn known_tools(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    agents: &[String],
) -> Result<Vec<KnownTool>, Error> {
    let sql = "
        SELECT a.name AS agent, a.config ->> 'tool' AS tool, known.tool -> 'inputSchema' AS input_schema,
            known.tool IS NOT NULL AS is_there,
            coalesce(known.tool #>> '{execution,taskSupport}' = 'required' AND c.protocol_seen IS DISTINCT FROM '2026-07-28',
                false) AS needs_task, coalesce((c.card ->> 'tools_complete')::boolean, false) AS is_complete,
            ARRAY(SELECT entry ->> 'name' FROM jsonb_array_elements(list.tools) AS entry LIMIT 10) AS names
        FROM agents a JOIN agent_cards c ON c.agent_id = a.id AND c.url_digest = sha256(convert_to(a.url, 'UTF8'))
        CROSS JOIN LATERAL (SELECT CASE WHEN jsonb_typeof(c.card -> 'tools') = 'array' THEN c.card -> 'tools'
            ELSE '[]' END AS tools) AS list
        LEFT JOIN LATERAL (SELECT entry AS tool FROM jsonb_array_elements(list.tools) AS entry
            WHERE entry ->> 'name' = a.config ->> 'tool' LIMIT 1) AS known ON true
        WHERE a.organization_id = $1 AND a.name = ANY ($2) AND a.kind = 'mcp' AND a.config ->> 'tool' IS NOT NULL
            AND jsonb_typeof(c.card -> 'tools_complete') = 'boolean'
        ORDER BY a.name LIMIT $3";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).bind(agents).bind(MAX_TOOLS).fetch_all(db).await?)
}

/// Locks the agent's row, which is made if there is none, or one for another URL. Returns its card.
async fn lock(conn: &mut PgConnection, owner: &CardOwner) -> Result<Option<Json<Box<RawValue>>>, Error> {
    let sql = "DELETE FROM agent_cards WHERE agent_id = $1 AND url_digest <> sha256(convert_to($2, 'UTF8'))";
    sqlx::query(sql).bind(owner.agent_id).bind(&owner.url).execute(&mut *conn).await?;
    let sql = "INSERT INTO agent_cards (agent_id, url_digest) VALUES ($1, sha256(convert_to($2, 'UTF8'))) ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(owner.agent_id).bind(&owner.url).execute(&mut *conn).await?;
    let sql = "SELECT card FROM agent_cards WHERE agent_id = $1 FOR UPDATE";
    Ok(sqlx::query_scalar(sql).bind(owner.agent_id).fetch_one(conn).await?)
}
