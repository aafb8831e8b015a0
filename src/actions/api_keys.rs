//! Making and revoking API keys.

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Change, Context, Entity};
use crate::{
    access::{Actor, Countable, Grant, OrganizationId, Permission, QuotaExceeded, Quotas, Role, api_key::ApiKey},
    db::{self, api_keys::ApiKeyRow},
    egress, input,
    timestamp::Timestamp,
    vault::Vault,
};

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Unique among the keys that are not revoked.
    pub name: String,
    /// Whose it is.
    pub organization: OrganizationId,
    /// What it allows.
    pub grant: Grant,
    /// From then on it does not count.
    pub expires_at: Option<Timestamp>,
}

/// Why a key was not saved.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// There is no such key.
    #[error("API key not found")]
    NotFound,
    /// A key that is not revoked has the name.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// The organisation has as many as it may have.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The organisation that the key is to belong to does not exist.
    #[error("organisation not found")]
    OrganizationNotFound,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl From<sqlx::Error> for ApiKeyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Makes a key. Its text is in the answer and nowhere else.
pub async fn create(
    pool: &db::Pool,
    context: Context<'_>,
    environment: &str,
    new: NewApiKey,
) -> Result<(ApiKey, ApiKeyRow), ApiKeyError> {
    let key = ApiKey::generate(environment);
    let mut transaction = pool.begin().await?;
    if db::organizations::find(&mut *transaction, &new.organization).await?.is_none() {
        return Err(ApiKeyError::OrganizationNotFound);
    }
    context.check_quota(&mut transaction, &new.organization, Countable::ApiKeys).await??;
    let row = insert(&mut transaction, context, &key, new).await?;
    transaction.commit().await?;
    Ok((key, row))
}

async fn insert(
    transaction: &mut PgConnection,
    context: Context<'_>,
    key: &ApiKey,
    NewApiKey { name, organization, grant, expires_at }: NewApiKey,
) -> Result<ApiKeyRow, ApiKeyError> {
    let names = |scopes: Vec<Permission>| scopes.into_iter().map(|scope| scope.as_str().to_owned()).collect();
    let row = ApiKeyRow {
        id: Uuid::now_v7(),
        name,
        prefix: key.prefix().to_owned(),
        last_four: key.last_four().to_owned(),
        role: grant.role.as_str().to_owned(),
        scopes: grant.scopes.map(names),
        workflows: grant.workflows,
        created_at: Timestamp::now(),
        created_by: context.actor.subject.clone(),
        expires_at,
        revoked_at: None,
        revoked_by: None,
        last_used_at: None,
        organization_id: organization.to_string(),
    };
    match db::api_keys::insert(transaction, &row, &key.hash()).await {
        Err(db::Error::Conflict { constraint, .. }) if constraint == "api_keys_name_in_use" => {
            return Err(ApiKeyError::NameTaken(row.name));
        }
        other => other?,
    }
    let changes = input::to_raw(&json!({
        "name": row.name, "prefix": row.prefix, "last_four": row.last_four, "role": row.role, "scopes": row.scopes,
        "workflows": row.workflows, "expires_at": row.expires_at,
    }));
    let entity = Entity("api_key", row.id, &row.name);
    context.record(transaction, entity, "create", Change::to(&changes), row.created_at).await?;
    Ok(row)
}

/// Revokes a key, for good. A repeat changes nothing.
pub async fn revoke(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<ApiKeyRow, ApiKeyError> {
    let mut transaction = pool.begin().await?;
    let at = Timestamp::now();
    let revoked =
        db::api_keys::revoke(&mut transaction, context.organization(), id, &context.actor.subject, at).await?;
    let row = db::api_keys::find(&mut *transaction, context.organization(), id).await?.ok_or(ApiKeyError::NotFound)?;
    if revoked {
        let entity = Entity("api_key", id, &row.name);
        context.record(&mut transaction, entity, "revoke", Change::default(), at).await?;
    }
    transaction.commit().await?;
    Ok(row)
}

/// What became of the first key.
#[derive(Debug)]
pub enum Bootstrap {
    /// There was one.
    Present,
    /// The one of the settings was stored.
    Stored,
    /// One was made, which nobody knows yet.
    Made(ApiKey),
}

/// Sees to it that somebody can get in: stores the key of the settings unless it was stored before (and perhaps revoked
/// since); without one makes a key if there never was any. Of several processes one does it.
pub async fn bootstrap(
    pool: &db::Pool,
    given: Option<&ApiKey>,
    environment: &str,
    audit: bool,
) -> Result<Bootstrap, ApiKeyError> {
    let mut transaction = pool.begin().await?;
    db::api_keys::lock_for_first(&mut transaction).await?;
    if db::api_keys::exists(&mut transaction, given.map(ApiKey::hash).as_ref()).await? {
        return Ok(Bootstrap::Present);
    }
    let key = given.cloned().unwrap_or_else(|| ApiKey::generate(environment));
    // Another one may have been given before.
    let name = format!("bootstrap-{}", key.last_four());
    let (actor, quotas) = (Actor::system(), Quotas::default());
    let (egress, vault) = (egress::Allow::default(), Vault::default());
    let context = Context {
        actor: &actor,
        quotas: &quotas,
        max_run_steps: 0,
        audit,
        vault: &vault,
        egress: &egress,
        sees_secrets: true,
        key: None,
        if_match: None,
    };
    insert(
        &mut transaction,
        context,
        &key,
        NewApiKey { name, organization: OrganizationId::default(), grant: Grant::of(Role::Admin), expires_at: None },
    )
    .await?;
    transaction.commit().await?;
    Ok(if given.is_some() { Bootstrap::Stored } else { Bootstrap::Made(key) })
}
