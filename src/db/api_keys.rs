//! API key rows: hashes, grants and revocation.

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::{
    Error, Pool,
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
};
use crate::{
    access::{Grant, OrganizationId, Permission},
    timestamp::Timestamp,
};

/// Row of `api_keys`, without the hash.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct ApiKeyRow {
    pub id: Uuid,
    pub name: String,
    pub prefix: String,
    pub last_four: String,
    pub role: String,
    pub scopes: Option<Vec<String>>,
    pub workflows: Option<Vec<String>>,
    pub created_at: Timestamp,
    pub created_by: String,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub revoked_by: Option<String>,
    pub last_used_at: Option<Timestamp>,
    pub organization_id: String,
    pub parent_id: Option<Uuid>,
}

impl ApiKeyRow {
    /// Grant of the key; `None` if another release wrote the row with an unknown role.
    #[must_use]
    pub fn grant(&self) -> Option<Grant> {
        // Unknown scopes grant nothing.
        let known = |scopes: &Vec<String>| scopes.iter().filter_map(|scope| Permission::parse(scope)).collect();
        let role = self.role.parse().ok()?;
        Some(Grant { role, scopes: self.scopes.as_ref().map(known), workflows: self.workflows.clone() })
    }
}

const COLUMNS: &str =
    "id, name, prefix, last_four, role, scopes, workflows, created_at AT TIME ZONE 'UTC' AS created_at,
    created_by, expires_at AT TIME ZONE 'UTC' AS expires_at, revoked_at AT TIME ZONE 'UTC' AS revoked_at, revoked_by,
    last_used_at AT TIME ZONE 'UTC' AS last_used_at, organization_id, parent_id";

/// Look-up key of an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyName {
    /// SHA-256 of the key.
    Hash([u8; 32]),
    /// Id of the key, which a token issued for the key contains.
    Id(Uuid),
}

/// Finds keys, including revoked ones. Keys that do not exist or whose organisation is suspended are omitted.
pub async fn find_many(pool: &Pool, names: &[KeyName]) -> Result<Vec<(KeyName, ApiKeyRow)>, Error> {
    #[derive(sqlx::FromRow)]
    struct Found {
        hash: Vec<u8>,
        #[sqlx(flatten)]
        row: ApiKeyRow,
    }
    let hashes: Vec<Vec<u8>> = names
        .iter()
        .filter_map(|name| if let KeyName::Hash(hash) = name { Some(hash.to_vec()) } else { None })
        .collect();
    let ids: Vec<Uuid> =
        names.iter().filter_map(|name| if let KeyName::Id(id) = name { Some(*id) } else { None }).collect();
    let sql = format!(
        "SELECT hash, {COLUMNS} FROM api_keys WHERE (hash = ANY($1) OR id = ANY($2))
             AND EXISTS (SELECT FROM organizations o WHERE o.id = organization_id AND o.status = 'active')"
    );
    let rows: Vec<Found> = sqlx::query_as(AssertSqlSafe(sql)).bind(&hashes).bind(&ids).fetch_all(pool).await?;
    let mut found = Vec::new();
    for Found { hash, row } in rows {
        let by_hash = <[u8; 32]>::try_from(hash).ok().map(KeyName::Hash);
        for name in by_hash.into_iter().chain([KeyName::Id(row.id)]).filter(|name| names.contains(name)) {
            found.push((name, row.clone()));
        }
    }
    Ok(found)
}

/// Finds the organisation's key by id, including revoked ones.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<ApiKeyRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM api_keys WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Sort order: creation.
const ORDER: Order = Order { column: "created_at", ascending: true };

impl ListRow for ApiKeyRow {
    const TABLE: Table = Table { name: "api_keys", columns: COLUMNS, id: "id", is_found_by_value: false, large: &[] };
}

/// Page of the organisation's keys in the order of their creation, including revoked ones.
pub async fn list(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    page: &PageRequest,
) -> Result<Page<ApiKeyRow>, Error> {
    list::fetch(conn, &Plan::short(Conditions::organization(organization), ORDER), page, None).await
}

/// Inserts a row. The name of a key that is not revoked, or a known hash, is an [`Error::Conflict`].
pub async fn insert(conn: &mut PgConnection, row: &ApiKeyRow, hash: &[u8; 32]) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO api_keys (id, name, prefix, last_four, hash, role, scopes, workflows, created_at, created_by, expires_at,
             organization_id, parent_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(row.id)
    .bind(&row.name)
    .bind(&row.prefix)
    .bind(&row.last_four)
    .bind(&hash[..])
    .bind(&row.role)
    .bind(&row.scopes)
    .bind(&row.workflows)
    .bind(row.created_at)
    .bind(&row.created_by)
    .bind(row.expires_at)
    .bind(&row.organization_id)
    .bind(row.parent_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Ancestors of a key: the key itself, the key that created it, and so on; each with whether it is revoked. Requires
/// [`lock_to_add`].
pub async fn ancestors(conn: &mut PgConnection, id: Uuid) -> Result<Vec<(Uuid, bool)>, Error> {
    let sql = "WITH RECURSIVE ancestor AS (
                   SELECT id, parent_id, revoked_at, 0 AS distance FROM api_keys WHERE id = $1
                   UNION ALL
                   SELECT k.id, k.parent_id, k.revoked_at, distance + 1 FROM api_keys k JOIN ancestor ON k.id = ancestor.parent_id
               )
               SELECT id, revoked_at IS NOT NULL FROM ancestor ORDER BY distance";
    Ok(sqlx::query_as(sql).bind(id).fetch_all(conn).await?)
}

/// Revokes a key of the organisation with all its descendants, in whichever organisation. Returns those that were not
/// revoked before. Requires [`lock`].
pub async fn revoke(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
    by: &str,
    at: Timestamp,
) -> Result<Vec<ApiKeyRow>, Error> {
    let sql = format!(
        "WITH RECURSIVE descendant (id) AS (
             SELECT id FROM api_keys WHERE id = $1 AND organization_id = $4
             UNION
             SELECT k.id FROM api_keys k JOIN descendant ON k.parent_id = descendant.id
         )
         UPDATE api_keys SET revoked_at = $2, revoked_by = $3
         WHERE id IN (SELECT id FROM descendant) AND revoked_at IS NULL
         RETURNING {COLUMNS}"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .bind(at)
        .bind(by)
        .bind(organization.as_str())
        .fetch_all(conn)
        .await?)
}

/// Whether a key of the default organisation with all rights is valid until then at least.
pub async fn has_admin_key(conn: &mut PgConnection, until: Timestamp) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM api_keys
                   WHERE organization_id = $1 AND role = 'admin' AND scopes IS NULL AND workflows IS NULL
                       AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at >= $2))";
    Ok(sqlx::query_scalar(sql).bind(OrganizationId::DEFAULT).bind(until).fetch_one(conn).await?)
}

/// Records that these keys are used now, unless any process recorded it less than a minute ago.
pub async fn touch(pool: &Pool, ids: &[Uuid]) -> Result<(), Error> {
    let sql = "UPDATE api_keys SET last_used_at = now()
               WHERE id = ANY($1) AND revoked_at IS NULL AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')";
    sqlx::query(sql).bind(ids).execute(pool).await?;
    Ok(())
}

/// Blocks revocations until the transaction ends, so that no key is added to a chain that is being revoked.
pub async fn lock_to_add(conn: &mut PgConnection) -> Result<(), Error> {
    sqlx::query("LOCK TABLE api_keys IN ROW EXCLUSIVE MODE").execute(conn).await?;
    Ok(())
}

/// Blocks adding and revoking keys until the transaction ends. Reads, and thus authentication, continue.
pub async fn lock(conn: &mut PgConnection) -> Result<(), Error> {
    sqlx::query("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE").execute(conn).await?;
    Ok(())
}

/// Whether a key with that hash exists, including revoked ones.
pub async fn exists(conn: &mut PgConnection, hash: &[u8; 32]) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM api_keys WHERE hash = $1)";
    Ok(sqlx::query_scalar(sql).bind(&hash[..]).fetch_one(conn).await?)
}
