//! Saved views of lists.

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::Error;
use crate::{access::OrganizationId, timestamp::Timestamp};

/// Row of `saved_views`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct ViewRow {
    pub id: Uuid,
    pub organization_id: String,
    pub owner: Option<String>,
    pub screen: String,
    pub name: String,
    pub query: String,
    pub created_by: String,
    pub updated_by: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

const COLUMNS: &str = "id, organization_id, owner, screen, name, query, created_by, updated_by,
    created_at AT TIME ZONE 'UTC' AS created_at, updated_at AT TIME ZONE 'UTC' AS updated_at";

/// Who asks: a view of another organisation, or another subject's own one, is not found.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    /// Organisation of the caller.
    pub organization: &'a OrganizationId,
    /// Subject of the caller.
    pub subject: &'a str,
}

/// Maximum number of views that belong to one subject, or to the organisation as a whole.
pub const MAX_OF_OWNER: i64 = 100;

/// Views that the caller sees, by name; those of one screen, if it is given.
pub async fn list(conn: &mut PgConnection, viewer: Viewer<'_>, screen: Option<&str>) -> Result<Vec<ViewRow>, Error> {
    // By the two parts of the index.
    let sql = format!(
        "SELECT {COLUMNS} FROM saved_views
         WHERE organization_id = $1 AND coalesce(owner, '') = ANY (ARRAY['', $2]) AND ($3::text IS NULL OR screen = $3)
         ORDER BY screen, name, id"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(viewer.organization.as_str())
        .bind(viewer.subject)
        .bind(screen)
        .fetch_all(conn)
        .await?)
}

/// Finds a view that the caller sees.
pub async fn find(db: impl PgExecutor<'_>, viewer: Viewer<'_>, id: Uuid) -> Result<Option<ViewRow>, Error> {
    select(db, viewer, id, "").await
}

/// Finds a view that the caller sees, and locks it until the transaction ends.
pub async fn lock(conn: &mut PgConnection, viewer: Viewer<'_>, id: Uuid) -> Result<Option<ViewRow>, Error> {
    select(conn, viewer, id, "FOR UPDATE").await
}

async fn select(
    db: impl PgExecutor<'_>,
    viewer: Viewer<'_>,
    id: Uuid,
    locking: &str,
) -> Result<Option<ViewRow>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM saved_views
         WHERE id = $1 AND organization_id = $2 AND (owner IS NULL OR owner = $3) {locking}"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .bind(viewer.organization.as_str())
        .bind(viewer.subject)
        .fetch_optional(db)
        .await?)
}

/// Number of the views of an owner. Others that add to it wait until the transaction ends.
pub async fn count_locked(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    owner: Option<&str>,
) -> Result<i64, Error> {
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended('saved views/' || $1 || '/' || $2, 0))";
    sqlx::query(sql).bind(organization.as_str()).bind(owner.unwrap_or_default()).execute(&mut *conn).await?;
    let sql = "SELECT count(*) FROM saved_views WHERE organization_id = $1 AND coalesce(owner, '') = $2";
    Ok(sqlx::query_scalar(sql).bind(organization.as_str()).bind(owner.unwrap_or_default()).fetch_one(conn).await?)
}

/// Inserts a row. A name that the owner has for the screen already is an [`Error::Conflict`].
pub async fn insert(conn: &mut PgConnection, row: &ViewRow) -> Result<(), Error> {
    let sql =
        "INSERT INTO saved_views (id, organization_id, owner, screen, name, query, created_by, updated_by, created_at,
                   updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    sqlx::query(sql)
        .bind(row.id)
        .bind(&row.organization_id)
        .bind(&row.owner)
        .bind(&row.screen)
        .bind(&row.name)
        .bind(&row.query)
        .bind(&row.created_by)
        .bind(&row.updated_by)
        .bind(row.created_at)
        .bind(row.updated_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes the columns that can change, of a row that the caller has locked. See [`insert`].
pub async fn update(conn: &mut PgConnection, row: &ViewRow) -> Result<(), Error> {
    let sql = "UPDATE saved_views SET name = $2, query = $3, updated_by = $4, updated_at = $5 WHERE id = $1";
    sqlx::query(sql)
        .bind(row.id)
        .bind(&row.name)
        .bind(&row.query)
        .bind(&row.updated_by)
        .bind(row.updated_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// Deletes a row.
pub async fn delete(conn: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM saved_views WHERE id = $1").bind(id).execute(conn).await?;
    Ok(())
}
