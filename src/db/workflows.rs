//! Workflow definition rows. Every version of a name has its own row; names never change.

use std::ops::ControlFlow;

use futures_util::TryStreamExt as _;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgExecutor, Row as _, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{
    Error,
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
};
use crate::{
    access::OrganizationId,
    timestamp::Timestamp,
    workflow::{Callee, DeadlineAction, Expose, FlowControl, Watch, WorkflowStatus},
};

/// Row of `workflow_definitions`.
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
    pub retention_days: Option<i32>,
    pub expose: Option<Json<Expose>>,
    #[sqlx(flatten)]
    pub watch: Watch,
    pub flow_control: Option<Json<FlowControl>>,
    pub created_by: Option<String>,
    pub updated_by: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub organization_id: String,
}

impl FromRow<'_, PgRow> for Watch {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let action: Option<&str> = row.try_get("deadline_action")?;
        Ok(Self {
            deadline_seconds: row.try_get("deadline_seconds")?,
            deadline_action: action.and_then(DeadlineAction::parse),
            silence_hours: row.try_get("silence_hours")?,
        })
    }
}

impl WorkflowRow {
    /// Exposure of the workflow by other protocols.
    #[must_use]
    pub fn expose(&self) -> Option<&Expose> {
        self.expose.as_ref().map(|expose| &expose.0)
    }

    /// Flow control of the workflow.
    #[must_use]
    pub fn flow(&self) -> Option<&FlowControl> {
        self.flow_control.as_ref().map(|flow| &flow.0)
    }

    /// Revision of the row, which differs after every change.
    #[must_use]
    pub fn revision(&self) -> String {
        format!("{}-{:x}", self.version, self.updated_at.as_naive_utc().and_utc().timestamp_micros())
    }
}

const COLUMNS: &str =
    "id, name, description, version, workflow_data, input_schema, status, retention_days, expose, created_by, updated_by,
    created_at, updated_at, organization_id, deadline_seconds, deadline_action, silence_hours, flow_control";

fn select(rest: &str) -> String {
    format!("SELECT {COLUMNS} FROM workflow_definitions{rest}")
}

/// Finds the organisation's definition by id, including deleted ones.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<WorkflowRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Name of the organisation's definition, including deleted ones.
pub async fn name(db: impl PgExecutor<'_>, organization: &OrganizationId, id: Uuid) -> Result<Option<String>, Error> {
    let sql = "SELECT name FROM workflow_definitions WHERE id = $1 AND organization_id = $2";
    Ok(sqlx::query_scalar(sql).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Agents and workflows that the active versions of these workflows call.
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

/// As [`find`], and locks the row until the transaction ends.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<WorkflowRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Finds a version of the name, including deleted ones.
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

/// Newest version of a name, if it is active. Older active versions do not replace it.
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

/// Visits the newest version of every name of the organisation with this prefix, if it is active, by name, until `each`
/// breaks.
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

/// Whether the row has exactly this input schema (or none).
pub async fn has_input_schema(db: impl PgExecutor<'_>, id: Uuid, schema: Option<&RawValue>) -> Result<bool, Error> {
    let sql = "SELECT input_schema IS NOT DISTINCT FROM $2 FROM workflow_definitions WHERE id = $1";
    let same = sqlx::query_scalar(sql).bind(id).bind(schema.map(Json)).fetch_optional(db).await?;
    Ok(same.unwrap_or(false))
}

/// Whether the row has exactly this plan. The database compares as jsonb: `1.0` equals `1.00`, the order of members is
/// ignored, and long integers stay exact.
pub async fn has_plan(db: impl PgExecutor<'_>, id: Uuid, plan: &RawValue) -> Result<bool, Error> {
    let sql = "SELECT coalesce(workflow_data::jsonb = $2, false) FROM workflow_definitions WHERE id = $1";
    let same = sqlx::query_scalar(sql).bind(id).bind(Json(plan)).fetch_optional(db).await?;
    Ok(same.unwrap_or(false))
}

/// Definition as the run writer needs it, with the stamp that later proves it unchanged.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct PinnedDefinition {
    /// Id of the row.
    pub id: Uuid,
    /// Name of the workflow.
    pub name: String,
    /// Version of the content.
    pub version: i32,
    /// Plan of the workflow.
    pub workflow_data: Json<Box<RawValue>>,
    /// Schema of the input.
    pub input_schema: Option<Json<Box<RawValue>>>,
    /// Status; only an `active` definition can be started.
    pub status: String,
    /// Flow control of the workflow.
    pub flow_control: Option<Json<FlowControl>>,
    /// Transaction that wrote the row (`xmin`). It differs after any change, by whatever program.
    pub stamp: String,
}

impl PinnedDefinition {
    /// An active definition without content, for a simulated run that is answered instead of being executed.
    #[must_use]
    pub fn without_plan(name: String) -> Self {
        Self {
            id: Uuid::nil(),
            name,
            version: 0,
            workflow_data: Json(RawValue::NULL.to_owned()),
            input_schema: None,
            status: WorkflowStatus::Active.as_str().to_owned(),
            flow_control: None,
            stamp: String::new(),
        }
    }
}

/// Finds the organisation's definition for the cache of the run writer.
pub async fn startable(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<PinnedDefinition>, Error> {
    let sql = "SELECT id, name, version, workflow_data, input_schema, status, flow_control, xmin::text AS stamp
               FROM workflow_definitions WHERE id = $1 AND organization_id = $2";
    Ok(sqlx::query_as(sql).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Filter and order of a list of definitions.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Organisation of the definitions.
    pub organization: &'a OrganizationId,
    /// Accepted statuses; all if empty.
    pub statuses: Vec<String>,
    /// Exact name.
    pub name: Option<&'a str>,
    /// Prefix of the name.
    pub name_prefix: Option<&'a str>,
    /// Range of the creation time.
    pub created: (Option<Timestamp>, Option<Timestamp>),
    /// Range of the last change.
    pub updated: (Option<Timestamp>, Option<Timestamp>),
    /// Only the newest version of each name, whatever its status.
    pub is_newest: bool,
    /// Sort column; anything else is `created_at`.
    pub sort_by: &'a str,
    /// Ascending instead of descending.
    pub ascending: bool,
}

impl<'a> Filter<'a> {
    /// Filter of all versions of a name, newest first.
    #[must_use]
    pub fn versions(organization: &'a OrganizationId, name: &'a str) -> Self {
        Self {
            organization,
            statuses: Vec::new(),
            name: Some(name),
            name_prefix: None,
            created: (None, None),
            updated: (None, None),
            is_newest: false,
            sort_by: "version",
            ascending: false,
        }
    }

    /// Requested sort order.
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
        Order { column, ascending: self.ascending }
    }
}

impl ListRow for WorkflowRow {
    const TABLE: Table = Table {
        name: "workflow_definitions",
        columns: COLUMNS,
        id: "id",
        is_found_by_value: false,
        large: &["description", "workflow_data", "input_schema"],
    };
}

/// Condition of the newest version of each name. The index by name and version finds a newer one.
const NEWEST: &str = "NOT EXISTS (SELECT FROM workflow_definitions newer
    WHERE newer.name = workflow_definitions.name AND newer.version > workflow_definitions.version
        AND newer.organization_id = workflow_definitions.organization_id)";

/// Page of the organisation's definitions; every version is an entry, unless only the newest ones are wanted.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter<'_>,
    page: &PageRequest,
) -> Result<Page<WorkflowRow>, Error> {
    let conditions = Conditions::organization(filter.organization)
        .one_of("status", &filter.statuses)
        .equal("name", filter.name)
        .prefix("name", filter.name_prefix)
        .between("created_at", filter.created)
        .between("updated_at", filter.updated);
    let conditions = if filter.is_newest { conditions.holds(NEWEST) } else { conditions };
    list::fetch(conn, &Plan::short(conditions, filter.order()), page, None).await
}

/// Locks the name against other transactions that create a version of it, until the transaction ends.
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

/// Next version number of this name, whatever the status of the others.
pub async fn next_version(conn: &mut PgConnection, organization: &OrganizationId, name: &str) -> Result<i32, Error> {
    let sql = "SELECT coalesce(max(version), 0) + 1 FROM workflow_definitions WHERE name = $1 AND organization_id = $2";
    Ok(sqlx::query_scalar(sql).bind(name).bind(organization.as_str()).fetch_one(conn).await?)
}

/// Inserts a row.
pub async fn insert(conn: &mut PgConnection, row: &WorkflowRow) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO workflow_definitions (id, name, description, version, workflow_data, status, created_by,
             updated_by, created_at, updated_at, input_schema, organization_id, retention_days, expose,
             deadline_seconds, deadline_action, silence_hours, flow_control)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
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
    .bind(row.retention_days)
    .bind(&row.expose)
    .bind(row.watch.deadline_seconds)
    .bind(row.watch.deadline_action.map(DeadlineAction::as_str))
    .bind(row.watch.silence_hours)
    .bind(&row.flow_control)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes the mutable columns of a row that the caller has locked by [`lock`].
pub async fn update(conn: &mut PgConnection, row: &WorkflowRow) -> Result<(), Error> {
    sqlx::query(
        "UPDATE workflow_definitions SET description = $2, version = $3, workflow_data = $4, status = $5,
             updated_by = $6, updated_at = $7, input_schema = $8, retention_days = $9, expose = $10,
             deadline_seconds = $11, deadline_action = $12, silence_hours = $13, flow_control = $14
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
    .bind(row.retention_days)
    .bind(&row.expose)
    .bind(row.watch.deadline_seconds)
    .bind(row.watch.deadline_action.map(DeadlineAction::as_str))
    .bind(row.watch.silence_hours)
    .bind(&row.flow_control)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes the flow control of a name, which the caller has locked by [`lock_name`], into its other rows, and lets the loop
/// that admits runs look at the held runs again.
pub async fn set_flow(conn: &mut PgConnection, row: &WorkflowRow) -> Result<(), Error> {
    let sql = "WITH changed AS (
                   UPDATE workflow_definitions SET flow_control = $3, updated_at = $4
                   WHERE name = $1 AND organization_id = $2 AND flow_control IS DISTINCT FROM $3
               )
               INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
               SELECT DISTINCT organization_id, workflow_name, flow_stage, flow_key FROM (
                   SELECT organization_id, workflow_name, flow_stage, flow_key FROM workflow_runs r
                   WHERE r.organization_id = $2 AND r.workflow_name = $1 AND r.flow_state IN ('arrived', 'queued')
                       AND r.status IN ('PENDING', 'RUNNING') LIMIT 10000) AS held";
    sqlx::query(sql)
        .bind(&row.name)
        .bind(&row.organization_id)
        .bind(&row.flow_control)
        .bind(row.updated_at)
        .execute(conn)
        .await?;
    Ok(())
}
