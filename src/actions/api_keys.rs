//! Creation and revocation of API keys.

use chrono::TimeDelta;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Change, Context, Entity};
use crate::{
    access::{Actor, Countable, Grant, OrganizationId, Permission, QuotaExceeded, Quotas, Role, api_key::ApiKey},
    config::KafkaTriggers,
    db::{self, api_keys::ApiKeyRow},
    egress, input,
    timestamp::Timestamp,
    vault::Vault,
};

/// Maximum length of a chain of keys that create each other.
const MAX_ANCESTORS: usize = 16;
/// A key with less remaining validity is not counted as an admin key: the last one would expire unnoticed.
const ADMIN_KEY_MIN_VALIDITY: TimeDelta = TimeDelta::days(1);

/// API key to create.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Unique among the keys that are not revoked.
    pub name: String,
    /// Organisation of the key.
    pub organization: OrganizationId,
    /// Grant of the key.
    pub grant: Grant,
    /// Expiry time.
    pub expires_at: Option<Timestamp>,
    /// Key that creates it, directly or by a token.
    pub parent_id: Option<Uuid>,
}

/// Reason why a key was not saved.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// There is no such key.
    #[error("API key not found")]
    NotFound,
    /// A key that is not revoked has the name.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// The quota of the organisation is used up.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The key that creates it has been revoked.
    #[error("the parent key is revoked")]
    ParentRevoked,
    /// The chain of keys would be too long.
    #[error("a chain of API keys has at most {MAX_ANCESTORS} keys")]
    ChainTooLong,
    /// No administrator could authenticate any more.
    #[error("it is the last admin key")]
    LastAdminKey,
    /// The organisation of the key does not exist.
    #[error("organisation not found")]
    OrganizationNotFound,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Creates a key. Its text is only in the answer and is not stored.
pub async fn create(
    pool: &db::Pool,
    context: Context<'_>,
    environment: &str,
    new: NewApiKey,
) -> Result<(ApiKey, ApiKeyRow), ApiKeyError> {
    let key = ApiKey::generate(environment);
    let mut transaction = db::begin(pool).await?;
    if db::organizations::find(&mut *transaction, &new.organization).await?.is_none() {
        return Err(ApiKeyError::OrganizationNotFound);
    }
    context.check_quota(&mut transaction, &new.organization, Countable::ApiKeys).await??;
    db::api_keys::lock_to_add(&mut transaction).await?;
    let row = insert(&mut transaction, context, &key, new).await?;
    db::commit(transaction).await?;
    Ok((key, row))
}

async fn insert(
    transaction: &mut PgConnection,
    context: Context<'_>,
    key: &ApiKey,
    NewApiKey { name, organization, grant, expires_at, parent_id }: NewApiKey,
) -> Result<ApiKeyRow, ApiKeyError> {
    let parents = match parent_id {
        None => Vec::new(),
        Some(id) => db::api_keys::ancestors(transaction, id).await?,
    };
    if parents.iter().any(|(_, is_revoked)| *is_revoked) {
        return Err(ApiKeyError::ParentRevoked);
    }
    if parents.len() >= MAX_ANCESTORS {
        return Err(ApiKeyError::ChainTooLong);
    }
    let parents: Vec<Uuid> = parents.into_iter().map(|(id, _)| id).collect();
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
        parent_id,
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
        "organization_id": row.organization_id, "parent_key_ids": parents,
    }));
    let entity = Entity("api_key", row.id, &row.name);
    context.record(transaction, entity, "create", Change::to(&changes), row.created_at).await?;
    Ok(row)
}

/// Revokes a key for good, with all its descendants. A repeat changes nothing. Returns the key, and the ids of all
/// revoked keys.
///
/// `keeps_admin_key`: administrators can authenticate by keys only, so the last admin key is kept.
pub async fn revoke(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    keeps_admin_key: bool,
) -> Result<(ApiKeyRow, Vec<Uuid>), ApiKeyError> {
    let mut transaction = db::begin(pool).await?;
    db::api_keys::lock(&mut transaction).await?;
    let at = Timestamp::now();
    let revoked =
        db::api_keys::revoke(&mut transaction, context.organization(), id, &context.actor.subject, at).await?;
    let row = db::api_keys::find(&mut *transaction, context.organization(), id).await?.ok_or(ApiKeyError::NotFound)?;
    let admin_keys = revoked.iter().filter(|row| is_admin_key(row, at));
    let soon = Timestamp::from(at.as_naive_utc().and_utc() + ADMIN_KEY_MIN_VALIDITY);
    // Another admin key must be valid as long as the revoked ones, or long enough.
    let until = admin_keys.map(|row| row.expires_at.map_or(soon, |end| end.min(soon))).max();
    if let Some(until) = until.filter(|_| keeps_admin_key)
        && !db::api_keys::has_admin_key(&mut transaction, until).await?
    {
        return Err(ApiKeyError::LastAdminKey);
    }
    for row in &revoked {
        let entity = Entity("api_key", row.id, &row.name);
        if row.id == id {
            context.record(&mut transaction, entity, "revoke", Change::default(), at).await?;
            continue;
        }
        // The owner of such a key finds the reason in the trail of its own organisation.
        let actor = Actor { organization: OrganizationId::stored(&row.organization_id), ..context.actor.clone() };
        let after = input::to_raw(&json!({"parent_key_id": row.parent_id, "revoked_with_key_id": id}));
        let context = Context { actor: &actor, ..context };
        context.record(&mut transaction, entity, "revoke", Change::to(&after), at).await?;
    }
    db::commit(transaction).await?;
    Ok((row, revoked.iter().map(|row| row.id).collect()))
}

/// Whether the key is an admin key, as in `db::api_keys::has_admin_key`.
fn is_admin_key(row: &ApiKeyRow, at: Timestamp) -> bool {
    row.organization_id == OrganizationId::DEFAULT
        && row.grant() == Some(Grant::of(Role::Admin))
        && row.expires_at.is_none_or(|end| end > at)
}

/// Stores the key of the settings as an admin key, unless it was stored before (it may have been revoked since).
/// Returns whether it was stored now: of several processes, one stores it.
pub async fn store_given(pool: &db::Pool, key: &ApiKey, audit: bool) -> Result<bool, ApiKeyError> {
    let mut transaction = db::begin(pool).await?;
    db::api_keys::lock(&mut transaction).await?;
    if db::api_keys::exists(&mut transaction, &key.hash()).await? {
        return Ok(false);
    }
    // Another key may have been given before.
    let new = NewApiKey {
        name: format!("bootstrap-{}", key.last_four()),
        organization: OrganizationId::default(),
        grant: Grant::of(Role::Admin),
        expires_at: None,
        parent_id: None,
    };
    as_operator(audit, async |context| insert(&mut transaction, context, key, new).await).await?;
    db::commit(transaction).await?;
    Ok(true)
}

/// Creates a key for the operator of the service, without a parent key.
pub async fn create_as_operator(
    pool: &db::Pool,
    environment: &str,
    new: NewApiKey,
    audit: bool,
) -> Result<(ApiKey, ApiKeyRow), ApiKeyError> {
    as_operator(audit, async |context| create(pool, context, environment, new).await).await
}

/// Whether an admin key exists.
pub async fn has_admin_key(pool: &db::Pool) -> Result<bool, ApiKeyError> {
    let mut connection = pool.acquire().await.map_err(db::Error::from)?;
    Ok(db::api_keys::has_admin_key(&mut connection, Timestamp::now()).await?)
}

/// Executes an action on behalf of the service itself.
async fn as_operator<T>(audit: bool, action: impl AsyncFnOnce(Context<'_>) -> T) -> T {
    let (actor, quotas) = (Actor::system(), Quotas::default());
    let (egress, vault, kafka_triggers) = (egress::Allow::default(), Vault::default(), KafkaTriggers::default());
    let context = Context {
        actor: &actor,
        quotas: &quotas,
        max_run_steps: 0,
        audit,
        vault: &vault,
        egress: &egress,
        kafka_triggers: &kafka_triggers,
        sees_secrets: true,
        workflows: None,
        key: None,
        if_match: None,
    };
    action(context).await
}
