//! Exposed workflows: those that are offered by other protocols than the REST API. Only the newest version of a name
//! counts, if it is active.

use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::Error;
use crate::{access::OrganizationId, workflow::Expose};

/// Exposed workflow without its plan.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migrations")]
pub struct ExposedWorkflow {
    pub id: Uuid,
    pub name: String,
    pub description: Option<String>,
    pub version: i32,
    pub input_schema: Option<Json<Box<RawValue>>>,
    pub expose: Json<Expose>,
}

/// The organisation's workflow with that name, if it is an agent.
pub async fn agent(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<ExposedWorkflow>, Error> {
    let sql = "SELECT id, name, description, version, input_schema, expose FROM workflow_definitions d
               WHERE organization_id = $1 AND name = $2 AND status = 'active' AND expose -> 'a2a' = 'true'
                   AND NOT EXISTS (SELECT FROM workflow_definitions newer WHERE newer.name = d.name
                       AND newer.organization_id = d.organization_id AND newer.version > d.version)";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).bind(name).fetch_optional(db).await?)
}

/// The organisation's workflow whose tool has that name.
pub async fn tool(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    tool: &str,
) -> Result<Option<ExposedWorkflow>, Error> {
    let sql = "SELECT id, name, description, version, input_schema, expose FROM workflow_definitions d
               WHERE organization_id = $1 AND expose IS NOT NULL AND status = 'active'
                   AND expose ? 'mcp' AND coalesce(expose #>> '{mcp,name}', name) = $2
                   AND NOT EXISTS (SELECT FROM workflow_definitions newer WHERE newer.name = d.name
                       AND newer.organization_id = d.organization_id AND newer.version > d.version)
               ORDER BY name LIMIT 1";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).bind(tool).fetch_optional(db).await?)
}

/// The organisation's tools of these workflows (`None`: of all), by the name of the workflow, after that name, up to
/// the limit. They end earlier if their input schemas have more than `max_bytes` together, but there is at least one.
pub async fn tools(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    workflows: Option<&[String]>,
    after: &str,
    (limit, max_bytes): (i64, i64),
) -> Result<Vec<ExposedWorkflow>, Error> {
    let sql = "
        WITH page AS MATERIALIZED (
            SELECT id, name, description, version, input_schema, expose FROM workflow_definitions d
            WHERE organization_id = $1 AND expose IS NOT NULL AND status = 'active' AND expose ? 'mcp' AND name > $3
                AND ($2::text[] IS NULL OR name = ANY ($2))
                AND NOT EXISTS (SELECT FROM workflow_definitions newer WHERE newer.name = d.name
                    AND newer.organization_id = d.organization_id AND newer.version > d.version)
            ORDER BY name LIMIT $4
        ), sized AS (
            SELECT *, sum(octet_length(input_schema::text)) OVER (
                ORDER BY name ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before FROM page
        )
        SELECT id, name, description, version, input_schema, expose FROM sized
        WHERE coalesce(bytes_before, 0) <= $5 ORDER BY name";
    Ok(sqlx::query_as(sql)
        .bind(organization.as_str())
        .bind(workflows)
        .bind(after)
        .bind(limit)
        .bind(max_bytes)
        .fetch_all(db)
        .await?)
}

/// Locks the names of the organisation's tools until the transaction ends.
pub async fn lock_tools(conn: &mut PgConnection, organization: &OrganizationId) -> Result<(), Error> {
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended('tools of ' || $1, 0))";
    sqlx::query(sql).bind(organization.as_str()).execute(conn).await?;
    Ok(())
}

/// Another workflow than this one of the organisation whose tool has that name.
pub async fn other_with_tool(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    tool: &str,
    workflow: &str,
) -> Result<Option<String>, Error> {
    let sql = "SELECT name FROM workflow_definitions d
               WHERE organization_id = $1 AND expose IS NOT NULL AND status <> 'deleted' AND name <> $3
                   AND expose ? 'mcp' AND coalesce(expose #>> '{mcp,name}', name) = $2
                   AND NOT EXISTS (SELECT FROM workflow_definitions newer WHERE newer.name = d.name
                       AND newer.organization_id = d.organization_id AND newer.version > d.version)
               ORDER BY name LIMIT 1";
    Ok(sqlx::query_scalar(sql).bind(organization.as_str()).bind(tool).bind(workflow).fetch_optional(db).await?)
}

/// Workflow that a search has found.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the contract and the migrations")]
pub struct FoundWorkflow {
    pub name: String,
    pub description: Option<String>,
    pub version: i32,
    /// Schema of the input, unless it is large.
    pub input_schema: Option<Json<Box<RawValue>>>,
}

/// The organisation's active workflows, exposed or not, whose name or description contains the text in any case; by
/// name, up to the limit. Descriptions are cut at 500 characters, and schemas of more than 4 KiB are omitted.
pub async fn search(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    text: &str,
    limit: i64,
) -> Result<Vec<FoundWorkflow>, Error> {
    let sql = "SELECT name, left(description, 500) AS description, version,
                   CASE WHEN octet_length(input_schema::text) <= 4096 THEN input_schema END AS input_schema
               FROM workflow_definitions d
               WHERE organization_id = $1 AND status = 'active'
                   AND (strpos(lower(name), lower($2)) > 0 OR strpos(lower(description), lower($2)) > 0)
                   AND NOT EXISTS (SELECT FROM workflow_definitions newer WHERE newer.name = d.name
                       AND newer.organization_id = d.organization_id AND newer.version > d.version)
               ORDER BY name LIMIT $3";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).bind(text).bind(limit).fetch_all(db).await?)
}
