//! Agent rows and queries.

use std::ops::ControlFlow;

use futures_util::TryStreamExt as _;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, Postgres, postgres::PgArguments, query::Query, types::Json};
use uuid::Uuid;

use super::{
    Error,
    breakers::{self, BreakerRow},
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
};
use crate::{
    access::OrganizationId,
    timestamp::Timestamp,
    vault::{self, Vault},
};

/// Row of `agents`. It has no `Debug`, since `auth_config` holds secrets.
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
    pub fallbacks: Vec<String>,
    pub status: String,
    pub created_by: Option<String>,
    pub updated_by: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub organization_id: String,
}

impl AgentRow {
    /// Row with decrypted credentials, if the vault has the key.
    #[must_use]
    pub fn opened(mut self, vault: &Vault) -> Self {
        let opened = self.auth_config.as_ref().and_then(|stored| vault.decrypt(self.id, &stored.0).ok());
        self.auth_config = opened.map(Json).or(self.auth_config);
        self
    }

    /// Row as it is stored.
    #[must_use]
    pub fn sealed(&self, vault: &Vault) -> Self {
        let auth_config = self.auth_config.as_ref().map(|config| Json(vault.encrypt(self.id, &config.0)));
        Self { auth_config, ..self.clone() }
    }

    /// Whether the credentials are still encrypted.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.auth_config.as_ref().is_some_and(|config| vault::key_id(&config.0).is_some())
    }

    /// Revision of the row, which differs after every change.
    #[must_use]
    pub fn revision(&self) -> String {
        format!("{:x}", self.updated_at.as_naive_utc().and_utc().timestamp_micros())
    }
}

const COLUMNS: &str = "id, name, url, description, auth_type, auth_config, timeout_ms, retry_config, \
     circuit_breaker_config, kind, config, fallbacks, status, created_by, updated_by, created_at, updated_at, organization_id";

/// Finds the organisation's agent by id, including deleted ones.
pub async fn find(db: impl PgExecutor<'_>, organization: &OrganizationId, id: Uuid) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and locks the row until the transaction ends.
pub async fn lock(conn: &mut PgConnection, organization: &OrganizationId, id: Uuid) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Finds the organisation's agent by name, including deleted ones.
pub async fn find_by_name(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE name = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Settings of an agent that matter to a simulated call.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migration")]
pub struct AgentSettingsRow {
    pub name: String,
    pub status: String,
    pub timeout_ms: i32,
    pub retry_config: Option<Json<Box<RawValue>>>,
    pub fallbacks: Vec<String>,
    pub config: Option<Json<Box<RawValue>>>,
}

/// Settings of those of the organisation's agents with these names that exist.
pub async fn settings(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    names: &[String],
) -> Result<Vec<AgentSettingsRow>, Error> {
    let sql = "SELECT name, status, timeout_ms, retry_config, fallbacks, config FROM agents
               WHERE organization_id = $1 AND name = ANY ($2) ORDER BY name";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).bind(names).fetch_all(db).await?)
}

/// Agent with its circuit breaker.
#[derive(sqlx::FromRow)]
pub struct AgentWithBreaker {
    /// The agent.
    #[sqlx(flatten)]
    pub agent: AgentRow,
    /// Its circuit breaker.
    #[sqlx(flatten)]
    pub breaker: BreakerRow,
    /// Transaction that wrote the agent's row (`xmin`). It differs after any change, by whatever program.
    pub version: i64,
}

impl AgentWithBreaker {
    /// Revision, which differs after every change of the agent (first part) or of its breaker.
    #[must_use]
    pub fn revision(&self) -> String {
        let agent = self.agent.revision();
        match self.breaker.updated_at() {
            Some(at) => format!("{agent}.{:x}", at.timestamp_micros()),
            None => agent,
        }
    }
}

/// Finds the organisation's agent by name with its breaker, including deleted ones.
pub async fn find_to_call(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<AgentWithBreaker>, Error> {
    let sql = with_breaker("a.name = $1 AND a.organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Finds the organisation's agent by id with its breaker, including deleted ones.
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

/// As [`find_by_name`], and locks the row until the transaction ends.
pub async fn lock_by_name(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<AgentRow>, Error> {
    let sql = select(" WHERE name = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Visits all agents of the organisation that are not deleted and match the name prefix, by name, until `each` breaks.
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

/// Filter of a list of agents.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Organisation of the agents.
    pub organization: &'a OrganizationId,
    /// Accepted statuses; all if empty.
    pub statuses: Vec<String>,
    /// Prefix of the name.
    pub name_prefix: Option<&'a str>,
    /// Range of the creation time.
    pub created: (Option<Timestamp>, Option<Timestamp>),
    /// Range of the last change.
    pub updated: (Option<Timestamp>, Option<Timestamp>),
}

/// Sort order: registration.
const ORDER: Order = Order { column: "created_at", ascending: true };

impl ListRow for AgentRow {
    const TABLE: Table = Table {
        name: "agents",
        columns: COLUMNS,
        id: "id",
        is_found_by_value: false,
        large: &["url", "description", "auth_config", "config"],
    };
}

/// Page of the organisation's agents in the order of their registration.
pub async fn list(conn: &mut PgConnection, filter: &Filter<'_>, page: &PageRequest) -> Result<Page<AgentRow>, Error> {
    let conditions = Conditions::organization(filter.organization)
        .one_of("status", &filter.statuses)
        .prefix("name", filter.name_prefix)
        .between("created_at", filter.created)
        .between("updated_at", filter.updated);
    list::fetch(conn, &Plan::short(conditions, ORDER), page, None).await
}

/// Inserts a row. A duplicate name is an [`Error::Conflict`].
pub async fn insert(conn: &mut PgConnection, row: &AgentRow) -> Result<(), Error> {
    let sql = "INSERT INTO agents (id, url, description, auth_type, auth_config, timeout_ms, retry_config,
                   circuit_breaker_config, kind, config, status, updated_by, updated_at, name, created_by, created_at,
                   organization_id, fallbacks)
               VALUES ($1, $2, $3, $4, coalesce($5, 'null'::jsonb), $6, $7, $8, $9, $10, $11, $12, $13, $15, $16, $17, $18, $14)";
    let query = bind_changeable(sqlx::query(sql), row).bind(&row.name).bind(&row.created_by);
    query.bind(row.created_at).bind(&row.organization_id).execute(conn).await?;
    Ok(())
}

/// Writes all columns of a row that the caller has locked by [`lock`].
pub async fn update(conn: &mut PgConnection, row: &AgentRow) -> Result<(), Error> {
    let sql = "UPDATE agents SET url = $2, description = $3, auth_type = $4, auth_config = coalesce($5, 'null'::jsonb),
                   timeout_ms = $6, retry_config = $7, circuit_breaker_config = $8, kind = $9, config = $10, status = $11,
                   updated_by = $12, updated_at = $13, fallbacks = $14
               WHERE id = $1";
    bind_changeable(sqlx::query(sql), row).execute(conn).await?;
    Ok(())
}

/// Binds the id and the columns that can change, $1 to $14.
fn bind_changeable<'q>(query: Query<'q, Postgres, PgArguments>, row: &'q AgentRow) -> Query<'q, Postgres, PgArguments> {
    query
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
        .bind(&row.fallbacks)
}

/// Status of each of these agents of the organisation. Agents that do not exist are omitted.
pub async fn statuses(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    names: &[String],
) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT name, status FROM agents WHERE name = ANY($1) AND organization_id = $2";
    Ok(sqlx::query_as(sql).bind(names).bind(organization.as_str()).fetch_all(conn).await?)
}

/// Names of these agents of the organisation, with the kinds of each and of its fallbacks.
pub async fn kinds(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    names: &[String],
) -> Result<Vec<(String, Vec<String>)>, Error> {
    let sql = "SELECT a.name, a.kind || ARRAY(SELECT f.kind FROM agents f
                   WHERE f.organization_id = a.organization_id AND f.name = ANY (a.fallbacks))
               FROM agents a WHERE a.name = ANY ($1) AND a.organization_id = $2";
    Ok(sqlx::query_as(sql).bind(names).bind(organization.as_str()).fetch_all(db).await?)
}

/// Fallback that cannot be called.
#[derive(Debug, sqlx::FromRow)]
pub struct UnusableFallback {
    /// Name of the agent that names it.
    pub agent: String,
    /// Its name.
    pub fallback: String,
    /// Its status; `None` if it does not exist.
    pub status: Option<String>,
}

/// Fallbacks of these agents of the organisation that do not exist or are not active.
pub async fn unusable_fallbacks(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    names: &[String],
) -> Result<Vec<UnusableFallback>, Error> {
    let sql = "SELECT a.name AS agent, named.fallback, f.status
               FROM agents a CROSS JOIN unnest(a.fallbacks) WITH ORDINALITY AS named (fallback, place)
                   LEFT JOIN agents f ON f.name = named.fallback AND f.organization_id = a.organization_id
               WHERE a.name = ANY ($1) AND a.organization_id = $2 AND f.status IS DISTINCT FROM 'active'
               ORDER BY a.name, named.place";
    Ok(sqlx::query_as(sql).bind(names).bind(organization.as_str()).fetch_all(conn).await?)
}
