//! Organisation rows and quotas.

use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgExecutor, Row as _, postgres::PgRow};

use super::{
    Error,
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
};
use crate::{
    access::{Countable, OrganizationId, Quotas},
    timestamp::Timestamp,
};

/// Row of `organizations`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct OrganizationRow {
    pub id: String,
    pub name: String,
    pub status: String,
    #[sqlx(flatten)]
    pub quotas: Quotas,
    pub retention_days: Option<i32>,
    pub created_by: String,
    pub updated_by: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl FromRow<'_, PgRow> for Quotas {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            agents: row.try_get("max_agents")?,
            workflows: row.try_get("max_workflows")?,
            api_keys: row.try_get("max_api_keys")?,
            queued_runs: row.try_get("max_queued_runs")?,
        })
    }
}

impl OrganizationRow {
    /// Whether its members are accepted.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status == "active"
    }
}

const COLUMNS: &str =
    "id, name, status, max_agents, max_workflows, max_api_keys, max_queued_runs, retention_days, created_by, updated_by,
    created_at AT TIME ZONE 'UTC' AS created_at, updated_at AT TIME ZONE 'UTC' AS updated_at";

/// Finds the organisation by id.
pub async fn find(db: impl PgExecutor<'_>, id: &OrganizationId) -> Result<Option<OrganizationRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM organizations WHERE id = $1");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and locks the row until the transaction ends.
pub async fn lock(conn: &mut PgConnection, id: &OrganizationId) -> Result<Option<OrganizationRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM organizations WHERE id = $1 FOR NO KEY UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(conn).await?)
}

/// Sort order: creation.
const ORDER: Order = Order { column: "created_at", ascending: true };

impl ListRow for OrganizationRow {
    const TABLE: Table =
        Table { name: "organizations", columns: COLUMNS, id: "id", is_found_by_value: false, large: &[] };
}

/// Page of the organisations in the order of their creation; with `only` at most that one.
pub async fn list(
    conn: &mut PgConnection,
    only: Option<&OrganizationId>,
    page: &PageRequest,
) -> Result<Page<OrganizationRow>, Error> {
    let conditions = Conditions::default().equal("id", only.map(OrganizationId::as_str));
    list::fetch(conn, &Plan::short(conditions, ORDER), page, None).await
}

/// Whether there is more than one active organisation.
pub async fn are_several(db: impl PgExecutor<'_>) -> Result<bool, Error> {
    let sql = "SELECT count(*) > 1 FROM (SELECT FROM organizations WHERE status = 'active' LIMIT 2) AS active";
    Ok(sqlx::query_scalar(sql).fetch_one(db).await?)
}

/// Inserts a row. A duplicate id is an [`Error::Conflict`].
pub async fn insert(conn: &mut PgConnection, row: &OrganizationRow) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO organizations (id, name, status, max_agents, max_workflows, max_api_keys, max_queued_runs,
             created_by, updated_by, created_at, updated_at, retention_days)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(&row.id)
    .bind(&row.name)
    .bind(&row.status)
    .bind(row.quotas.agents)
    .bind(row.quotas.workflows)
    .bind(row.quotas.api_keys)
    .bind(row.quotas.queued_runs)
    .bind(&row.created_by)
    .bind(&row.updated_by)
    .bind(row.created_at)
    .bind(row.updated_at)
    .bind(row.retention_days)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes the mutable columns of a row that the caller has locked by [`lock`].
pub async fn update(conn: &mut PgConnection, row: &OrganizationRow) -> Result<(), Error> {
    sqlx::query(
        "UPDATE organizations SET name = $2, status = $3, max_agents = $4, max_workflows = $5, max_api_keys = $6,
             max_queued_runs = $7, updated_by = $8, updated_at = $9, retention_days = $10
         WHERE id = $1",
    )
    .bind(&row.id)
    .bind(&row.name)
    .bind(&row.status)
    .bind(row.quotas.agents)
    .bind(row.quotas.workflows)
    .bind(row.quotas.api_keys)
    .bind(row.quotas.queued_runs)
    .bind(&row.updated_by)
    .bind(row.updated_at)
    .bind(row.retention_days)
    .execute(conn)
    .await?;
    Ok(())
}

/// Number of these objects of the organisation, counted up to `limit`.
pub async fn count(db: impl PgExecutor<'_>, id: &OrganizationId, what: Countable, limit: i64) -> Result<i64, Error> {
    let those = match what {
        Countable::Agents => "agents WHERE organization_id = $1 AND status <> 'deleted'",
        Countable::Workflows => {
            "(SELECT DISTINCT name FROM workflow_definitions WHERE organization_id = $1 AND status <> 'deleted') AS named"
        }
        Countable::ApiKeys => {
            "api_keys WHERE organization_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
        }
        Countable::QueuedRuns => "workflow_runs WHERE organization_id = $1 AND status = 'PENDING'",
    };
    let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {those} LIMIT $2) AS counted");
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(id.as_str()).bind(limit).fetch_one(db).await?)
}

/// Locks a quota of the organisation until the transaction ends: other transactions that add to it wait. The count
/// afterwards cannot grow meanwhile.
pub async fn lock_quota(conn: &mut PgConnection, id: &OrganizationId, what: Countable) -> Result<(), Error> {
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended('quota/' || $1 || '/' || $2, 0))";
    sqlx::query(sql).bind(id.as_str()).bind(what.as_str()).execute(conn).await?;
    Ok(())
}
