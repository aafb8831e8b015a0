//! Agents.

use std::ops::ControlFlow;

use futures_util::TryStreamExt as _;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error,
    breakers::{self, BreakerRow},
    list::{self, FilterBuilder, ListRow, Order, Page, PageRequest, Table},
};
use crate::{
    access::OrganizationId,
    timestamp::Timestamp,
    vault::{self, Vault},
};

/// A row of `agents`. Has no `Debug`, since `auth_config` holds secrets.
#[derive(Clone, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migration")]
pub struct AgentRow {
    pub id: Uuid,
    pub name: String,
    pub url: String,
    pub description: Option<String>,
    pub auth_type: Option<String>,
    pub auth_config: Option<Json<Box<RawValue>>>,
    pub timeout_ms: i32,
    pub retry_config: Option<Json<Box<RawValue>>>,
    pub circuit_breaker_config: Option<Json<Box<RawValue>>>,
    pub kind: String,
    pub config: Option<Json<Box<RawValue>>>,
    pub status: String,
    pub created_by: Option<String>,
    pub updated_by: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub organization_id: String,
}

impl AgentRow {
    /// The row with its credentials in clear, if the vault can open them.
    #[must_use]
    pub fn opened(mut self, vault: &Vault) -> Self {
        let opened = self.auth_config.as_ref().and_then(|stored| vault.open(self.id, &stored.0).ok());
        self.auth_config = opened.map(Json).or(self.auth_config);
        self
    }

    /// The row as it is stored.
    #[must_use]
    pub fn sealed(&self, vault: &Vault) -> Self {
        let auth_config = self.auth_config.as_ref().map(|config| Json(vault.seal(self.id, &config.0)));
        Self { auth_config, ..self.clone() }
    }

    /// Whether the credentials are still sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.auth_config.as_ref().is_some_and(|config| vault::key_id(&config.0).is_some())
    }

    /// Another text after every change.
    #[must_use]
    pub fn revision(&self) -> String {
        format!("{:x}", self.updated_at.as_naive_utc().and_utc().timestamp_micros())
    }
}

const COLUMNS: &str = "id, name, url, description, auth_type, auth_config, timeout_ms, retry_config, \
     circuit_breaker_config, kind, config, status, created_by, updated_by, created_at, updated_at, organization_id";

/// The organisation's agent of that id, deleted ones too.
pub async fn find(db: impl PgExecutor<'_>, organization: &OrganizationId, id: Uuid) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and holds the row until the transaction ends.
pub async fn lock(conn: &mut PgConnection, organization: &OrganizationId, id: Uuid) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// The organisation's agent of that name, deleted ones too.
pub async fn find_by_name(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE name = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(db).await?)
}

/// An agent and its circuit breaker.
#[derive(sqlx::FromRow)]
pub struct AgentWithBreaker {
    /// The agent.
    #[sqlx(flatten)]
    pub agent: AgentRow,
    /// Its breaker.
    #[sqlx(flatten)]
    pub breaker: BreakerRow,
    /// The transaction that wrote the agent's row (`xmin`): another one after any change, by whatever program.
    pub version: i64,
}

impl AgentWithBreaker {
    /// Another text after every change of the agent, which comes first, and of its breaker.
    #[must_use]
    pub fn revision(&self) -> String {
        let agent = self.agent.revision();
        match self.breaker.updated_at() {
            Some(at) => format!("{agent}.{:x}", at.timestamp_micros()),
            None => agent,
        }
    }
}

/// The organisation's agent of that name with its breaker, deleted ones too.
pub async fn find_to_call(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<AgentWithBreaker>, Error> {
    let sql = with_breaker("a.name = $1 AND a.organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(db).await?)
}

/// The organisation's agent of that id with its breaker, deleted ones too.
pub async fn find_to_show(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<AgentWithBreaker>, Error> {
    let sql = with_breaker("a.id = $1 AND a.organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

fn with_breaker(condition: &str) -> String {
    let columns = COLUMNS.split(',').map(|column| format!("a.{}", column.trim())).collect::<Vec<_>>().join(", ");
    let breaker = breakers::COLUMNS;
    format!(
        "SELECT {columns}, {breaker}, a.xmin::text::int8 AS version FROM agents a LEFT JOIN circuit_breakers b ON b.agent_id = a.id WHERE {condition}"
    )
}

/// As [`find_by_name`], and holds the row until the transaction ends.
pub async fn lock_by_name(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE name = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// All agents of the organisation that are not deleted and whose names begin so, by name, until `each` breaks.
pub async fn present(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    prefix: &str,
    mut each: impl FnMut(AgentRow) -> ControlFlow<()> + Send,
) -> Result<(), Error> {
    let sql = select(" WHERE status <> 'deleted' AND organization_id = $1 AND starts_with(name, $2) ORDER BY name");
    let mut rows = sqlx::query_as(AssertSqlSafe(sql)).bind(organization.as_str()).bind(prefix).fetch(conn);
    while let Some(row) = rows.try_next().await? {
        if each(row).is_break() {
            break;
        }
    }
    Ok(())
}

fn select(rest: &str) -> String {
    format!("SELECT {COLUMNS} FROM agents{rest}")
}

/// What a list is narrowed to.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Whose agents.
    pub organization: &'a OrganizationId,
    /// One of these; any if there are none.
    pub statuses: Vec<String>,
    /// The beginning of the name.
    pub name_prefix: Option<&'a str>,
    /// Created between the two.
    pub created: (Option<Timestamp>, Option<Timestamp>),
    /// Changed last between the two.
    pub updated: (Option<Timestamp>, Option<Timestamp>),
}

/// The order of registration.
const ORDER: Order = Order { column: "created_at", nullable: false, ascending: true };

impl ListRow for AgentRow {
    const TABLE: Table =
        Table { name: "agents", columns: COLUMNS, id: "id", large: &["url", "description", "auth_config", "config"] };
}

/// A part of the organisation's agents in the order of their registration.
pub async fn list(conn: &mut PgConnection, filter: &Filter<'_>, page: &PageRequest) -> Result<Page<AgentRow>, Error> {
    let conditions = |builder: &mut FilterBuilder<'_>| {
        builder.organization(filter.organization);
        builder.one_of("status", &filter.statuses);
        builder.prefix("name", filter.name_prefix);
        builder.between("created_at", filter.created);
        builder.between("updated_at", filter.updated);
    };
    list::fetch(conn, conditions, ORDER, page).await
}

/// Writes a new row. A taken name is a [`Error::Conflict`].
pub async fn insert(conn: &mut PgConnection, row: &AgentRow) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO agents (id, name, url, description, auth_type, auth_config, timeout_ms, retry_config,
             circuit_breaker_config, kind, config, status, created_by, updated_by, created_at, updated_at, organization_id)
         VALUES ($1, $2, $3, $4, $5, coalesce($6, 'null'::jsonb), $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    )
    .bind(row.id)
    .bind(&row.name)
    .bind(&row.url)
    .bind(&row.description)
    .bind(&row.auth_type)
    .bind(&row.auth_config)
    .bind(row.timeout_ms)
    .bind(&row.retry_config)
    .bind(&row.circuit_breaker_config)
    .bind(&row.kind)
    .bind(&row.config)
    .bind(&row.status)
    .bind(&row.created_by)
    .bind(&row.updated_by)
    .bind(row.created_at)
    .bind(row.updated_at)
    .bind(&row.organization_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes all columns of a row that the caller holds by [`lock`].
pub async fn update(conn: &mut PgConnection, row: &AgentRow) -> Result<(), Error> {
    sqlx::query(
        "UPDATE agents SET url = $2, description = $3, auth_type = $4, auth_config = coalesce($5, 'null'::jsonb),
             timeout_ms = $6, retry_config = $7, circuit_breaker_config = $8, kind = $9, config = $10, status = $11,
             updated_by = $12, updated_at = $13
         WHERE id = $1",
    )
    .bind(row.id)
    .bind(&row.url)
    .bind(&row.description)
    .bind(&row.auth_type)
    .bind(&row.auth_config)
    .bind(row.timeout_ms)
    .bind(&row.retry_config)
    .bind(&row.circuit_breaker_config)
    .bind(&row.kind)
    .bind(&row.config)
    .bind(&row.status)
    .bind(&row.updated_by)
    .bind(row.updated_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// Credentials as they are stored, and whose.
pub type StoredConfig = (Uuid, Json<Box<RawValue>>);

/// Up to so many agents with credentials, in the order of their ids, behind that one.
pub async fn stored_configs(db: impl PgExecutor<'_>, behind: Uuid, limit: i64) -> Result<Vec<StoredConfig>, Error> {
    let sql = "SELECT id, auth_config FROM agents WHERE id > $1 AND auth_config <> 'null' ORDER BY id LIMIT $2";
    Ok(sqlx::query_as(sql).bind(behind).bind(limit).fetch_all(db).await?)
}

/// The agent's credentials as they are stored, if it has some.
pub async fn stored_config(db: impl PgExecutor<'_>, id: Uuid) -> Result<Option<StoredConfig>, Error> {
    let sql = "SELECT id, auth_config FROM agents WHERE id = $1 AND auth_config <> 'null'";
    Ok(sqlx::query_as(sql).bind(id).fetch_optional(db).await?)
}

/// Stores the same credentials in another form; `false` if they are others by now. The agent has not changed.
pub async fn replace_config(
    db: impl PgExecutor<'_>,
    (id, then): &StoredConfig,
    now: &Json<Box<RawValue>>,
) -> Result<bool, Error> {
    let sql = "UPDATE agents SET auth_config = $3 WHERE id = $1 AND auth_config = $2";
    Ok(sqlx::query(sql).bind(id).bind(then).bind(now).execute(db).await?.rows_affected() == 1)
}

/// The names of the keys that credentials are sealed with.
pub async fn key_ids(db: impl PgExecutor<'_>) -> Result<Vec<String>, Error> {
    let sql = "SELECT DISTINCT auth_config->'encrypted'->>'key_id' FROM agents
         WHERE jsonb_typeof(auth_config->'encrypted'->'key_id') = 'string' ORDER BY 1";
    Ok(sqlx::query_scalar(sql).fetch_all(db).await?)
}

/// The status of each of these agents of the organisation; one that does not exist is not in the answer.
pub async fn statuses(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    names: &[String],
) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT name, status FROM agents WHERE name = ANY($1) AND organization_id = $2";
    Ok(sqlx::query_as(sql).bind(names).bind(organization.as_str()).fetch_all(conn).await?)
}
