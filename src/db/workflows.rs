//! Workflow definitions. Every version of a name is a row of its own; names are never changed.

use std::ops::ControlFlow;

use futures_util::TryStreamExt as _;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error,
    list::{self, FilterBuilder, ListRow, Order, Page, PageRequest, Table},
};
use crate::{access::OrganizationId, timestamp::Timestamp, workflow::Callee};

/// A row of `workflow_definitions`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migration")]
pub struct WorkflowRow {
    pub id: Uuid,
    pub name: String,
    pub description: Option<String>,
    pub version: i32,
    pub workflow_data: Json<Box<RawValue>>,
    pub input_schema: Option<Json<Box<RawValue>>>,
    pub status: String,
    pub created_by: Option<String>,
    pub updated_by: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub organization_id: String,
}

impl WorkflowRow {
    /// Another text after every change.
    #[must_use]
    pub fn revision(&self) -> String {
        format!("{}-{:x}", self.version, self.updated_at.as_naive_utc().and_utc().timestamp_micros())
    }
}

const COLUMNS: &str = "id, name, description, version, workflow_data, input_schema, status, created_by, updated_by, created_at, updated_at, organization_id";

fn select(rest: &str) -> String {
    format!("SELECT {COLUMNS} FROM workflow_definitions{rest}")
}

/// The organisation's row of that id, deleted ones too.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<WorkflowRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// The name of the organisation's definition, deleted ones too.
pub async fn name(db: impl PgExecutor<'_>, organization: &OrganizationId, id: Uuid) -> Result<Option<String>, Error> {
    let sql = "SELECT name FROM workflow_definitions WHERE id = $1 AND organization_id = $2";
    Ok(sqlx::query_scalar(sql).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// What the active versions of these workflows call.
pub async fn called_by<C: FromIterator<Callee>>(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    names: &[String],
) -> Result<C, Error> {
    let sql = "SELECT DISTINCT step ->> 'agent_name', step #>> '{sub_workflow_config,workflow_name}',
                   step #>> '{sub_workflow_config,workflow_id}'
               FROM workflow_definitions d, jsonb_path_query(d.workflow_data, 'lax $.steps.*') AS step
               WHERE d.organization_id = $1 AND d.name = ANY ($2) AND d.status = 'active'";
    let found: Vec<(Option<String>, Option<String>, Option<String>)> =
        sqlx::query_as(sql).bind(organization.as_str()).bind(names).fetch_all(conn).await?;
    let called = found.into_iter().flat_map(|(agent, workflow, workflow_id)| {
        let workflows = workflow.map(Callee::Workflow).into_iter().chain(workflow_id.map(Callee::WorkflowId));
        agent.map(Callee::Agent).into_iter().chain(workflows)
    });
    Ok(called.collect())
}

/// As [`find`], and holds the row until the transaction ends.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<WorkflowRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// That version of the name, deleted ones too.
pub async fn find_version(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
    version: i32,
) -> Result<Option<WorkflowRow>, Error> {
    let sql = select(" WHERE name = $1 AND version = $2 AND organization_id = $3");
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(name)
        .bind(version)
        .bind(organization.as_str())
        .fetch_optional(db)
        .await?)
}

/// The newest version of a name, if it is active. Older ones are what it was before, and do not take its place.
pub async fn find_active(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<WorkflowRow>, Error> {
    let sql = select(
        " WHERE name = $1 AND status = 'active' AND organization_id = $2
          AND version = (SELECT max(version) FROM workflow_definitions WHERE name = $1 AND organization_id = $2)",
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(db).await?)
}

/// The newest version of every name of the organisation that begins so, if it is active, by name, until `each` breaks.
pub async fn all_active(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    prefix: &str,
    mut each: impl FnMut(WorkflowRow) -> ControlFlow<()> + Send,
) -> Result<(), Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM (
             SELECT DISTINCT ON (name) * FROM workflow_definitions
             WHERE organization_id = $1 AND starts_with(name, $2) ORDER BY name, version DESC
         ) newest
         WHERE status = 'active' ORDER BY name"
    );
    let mut rows = sqlx::query_as(AssertSqlSafe(sql)).bind(organization.as_str()).bind(prefix).fetch(conn);
    while let Some(row) = rows.try_next().await? {
        if each(row).is_break() {
            break;
        }
    }
    Ok(())
}

/// Whether the row has exactly this schema for its input, or exactly none.
pub async fn has_input_schema(db: impl PgExecutor<'_>, id: Uuid, schema: Option<&RawValue>) -> Result<bool, Error> {
    let sql = "SELECT input_schema IS NOT DISTINCT FROM $2 FROM workflow_definitions WHERE id = $1";
    let same = sqlx::query_scalar(sql).bind(id).bind(schema.map(Json)).fetch_optional(db).await?;
    Ok(same.unwrap_or(false))
}

/// Whether the row has exactly this plan. The database compares: it alone knows that `1.0` is `1.00` and that the
/// order of members does not count, and it keeps long integers.
pub async fn has_plan(db: impl PgExecutor<'_>, id: Uuid, plan: &RawValue) -> Result<bool, Error> {
    let sql = "SELECT coalesce(workflow_data::jsonb = $2, false) FROM workflow_definitions WHERE id = $1";
    let same = sqlx::query_scalar(sql).bind(id).bind(Json(plan)).fetch_optional(db).await?;
    Ok(same.unwrap_or(false))
}

/// What the run writer needs of a definition, and the stamp by which it later proves that nothing has changed.
#[derive(Debug, sqlx::FromRow)]
pub struct PinnedDefinition {
    /// The row.
    pub id: Uuid,
    /// Of the workflow.
    pub name: String,
    /// Of the content.
    pub version: i32,
    /// The plan.
    pub workflow_data: Json<Box<RawValue>>,
    /// What the input has to satisfy.
    pub input_schema: Option<Json<Box<RawValue>>>,
    /// Only an `active` one can be started.
    pub status: String,
    /// The transaction that wrote the row (`xmin`): another one after any change, by whatever program.
    pub stamp: String,
}

/// The organisation's row as the run writer caches it.
pub async fn startable(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<PinnedDefinition>, Error> {
    let sql = "SELECT id, name, version, workflow_data, input_schema, status, xmin::text AS stamp
               FROM workflow_definitions WHERE id = $1 AND organization_id = $2";
    Ok(sqlx::query_as(sql).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// What a list is narrowed to and ordered by.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Whose definitions.
    pub organization: &'a OrganizationId,
    /// One of these; any if there are none.
    pub statuses: Vec<String>,
    /// Exact name.
    pub name: Option<&'a str>,
    /// The beginning of the name.
    pub name_prefix: Option<&'a str>,
    /// Created between the two.
    pub created: (Option<Timestamp>, Option<Timestamp>),
    /// Changed last between the two.
    pub updated: (Option<Timestamp>, Option<Timestamp>),
    /// A column; anything else is `created_at`.
    pub sort_by: &'a str,
    /// Not descending.
    pub ascending: bool,
}

impl<'a> Filter<'a> {
    /// All versions of a name, the newest first.
    #[must_use]
    pub fn versions(organization: &'a OrganizationId, name: &'a str) -> Self {
        Self {
            organization,
            statuses: Vec::new(),
            name: Some(name),
            name_prefix: None,
            created: (None, None),
            updated: (None, None),
            sort_by: "version",
            ascending: false,
        }
    }

    /// The order that is asked for.
    #[must_use]
    pub fn order(&self) -> Order {
        let column = match self.sort_by {
            "name" => "name",
            "updated_at" => "updated_at",
            "version" => "version",
            "id" => "id::text",
            "status" => "status",
            "description" => "coalesce(description, '')",
            "created_by" => "coalesce(created_by, '')",
            "updated_by" => "coalesce(updated_by, '')",
            _ => "created_at",
        };
        Order { column, nullable: false, ascending: self.ascending }
    }
}

impl ListRow for WorkflowRow {
    const TABLE: Table = Table {
        name: "workflow_definitions",
        columns: COLUMNS,
        id: "id",
        large: &["description", "workflow_data", "input_schema"],
    };
}

/// A part of the organisation's definitions; every version is an entry of its own.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter<'_>,
    page: &PageRequest,
) -> Result<Page<WorkflowRow>, Error> {
    let conditions = |builder: &mut FilterBuilder<'_>| {
        builder.organization(filter.organization);
        builder.one_of("status", &filter.statuses);
        builder.equal("name", filter.name);
        builder.prefix("name", filter.name_prefix);
        builder.between("created_at", filter.created);
        builder.between("updated_at", filter.updated);
    };
    list::fetch(conn, conditions, filter.order(), page).await
}

/// Waits until no other transaction makes a version of this name; held until the transaction ends.
pub async fn lock_name(conn: &mut PgConnection, organization: &OrganizationId, name: &str) -> Result<(), Error> {
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))";
    sqlx::query(sql).bind(organization.as_str()).bind(name).execute(conn).await?;
    Ok(())
}

/// Whether the organisation has a version of this name that is not deleted.
pub async fn is_present(db: impl PgExecutor<'_>, organization: &OrganizationId, name: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM workflow_definitions
                   WHERE name = $1 AND organization_id = $2 AND status <> 'deleted')";
    Ok(sqlx::query_scalar(sql).bind(name).bind(organization.as_str()).fetch_one(db).await?)
}

/// The version number that comes next for this name, whatever the status of the others.
pub async fn next_version(conn: &mut PgConnection, organization: &OrganizationId, name: &str) -> Result<i32, Error> {
    let sql = "SELECT coalesce(max(version), 0) + 1 FROM workflow_definitions WHERE name = $1 AND organization_id = $2";
    Ok(sqlx::query_scalar(sql).bind(name).bind(organization.as_str()).fetch_one(conn).await?)
}

/// Writes a new row.
pub async fn insert(conn: &mut PgConnection, row: &WorkflowRow) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO workflow_definitions (id, name, description, version, workflow_data, status, created_by,
             updated_by, created_at, updated_at, input_schema, organization_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(row.id)
    .bind(&row.name)
    .bind(&row.description)
    .bind(row.version)
    .bind(&row.workflow_data)
    .bind(&row.status)
    .bind(&row.created_by)
    .bind(&row.updated_by)
    .bind(row.created_at)
    .bind(row.updated_at)
    .bind(&row.input_schema)
    .bind(&row.organization_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes the columns that can change of a row that the caller holds by [`lock`].
pub async fn update(conn: &mut PgConnection, row: &WorkflowRow) -> Result<(), Error> {
    sqlx::query(
        "UPDATE workflow_definitions SET description = $2, version = $3, workflow_data = $4, status = $5,
             updated_by = $6, updated_at = $7, input_schema = $8
         WHERE id = $1",
    )
    .bind(row.id)
    .bind(&row.description)
    .bind(row.version)
    .bind(&row.workflow_data)
    .bind(&row.status)
    .bind(&row.updated_by)
    .bind(row.updated_at)
    .bind(&row.input_schema)
    .execute(conn)
    .await?;
    Ok(())
}
