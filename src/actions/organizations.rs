//! Creating and changing organisations, and checking their quotas.

use serde_json::{json, value::RawValue};
use sqlx::PgConnection;

use super::{Change, Context, Entity, difference};
use crate::{
    access::{Countable, OrganizationId, QuotaExceeded, Quotas},
    db::{self, organizations::OrganizationRow},
    id,
    input::{self, Patch},
    timestamp::Timestamp,
};

/// Reason why an organisation was not saved.
#[derive(Debug, thiserror::Error)]
pub enum OrganizationError {
    /// There is no such organisation.
    #[error("organisation not found")]
    NotFound,
    /// The id belongs to another one.
    #[error("the id {0} is taken")]
    IdTaken(OrganizationId),
    /// Credentials that name no organisation belong to the default organisation.
    #[error("the default organisation cannot be suspended")]
    DefaultStaysActive,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Organisation to create.
#[derive(Clone, Debug)]
pub struct NewOrganization {
    /// Id, which never changes.
    pub id: OrganizationId,
    /// Display name.
    pub name: String,
    /// Quotas that replace those of the settings.
    pub quotas: Quotas,
    /// Days for which its ended runs are kept, instead of the setting.
    pub retention_days: Option<i32>,
}

/// Changes of an organisation.
#[derive(Clone, Debug, Default)]
pub struct OrganizationPatch {
    /// Display name.
    pub name: Option<String>,
    /// Whether its members are accepted.
    pub is_active: Option<bool>,
    /// Quotas, each changed on its own; null means that of the settings.
    pub agents: Patch<i32>,
    /// See `agents`.
    pub workflows: Patch<i32>,
    /// See `agents`.
    pub api_keys: Patch<i32>,
    /// See `agents`.
    pub queued_runs: Patch<i32>,
    /// Days for which its ended runs are kept; null is the setting.
    pub retention_days: Patch<i32>,
}

/// Creates an organisation.
pub async fn create(
    pool: &db::Pool,
    context: Context<'_>,
    new: NewOrganization,
) -> Result<OrganizationRow, OrganizationError> {
    let at = Timestamp::now();
    let row = OrganizationRow {
        id: new.id.to_string(),
        name: new.name,
        status: "active".to_owned(),
        quotas: new.quotas,
        retention_days: new.retention_days,
        created_by: context.actor.subject.clone(),
        updated_by: context.actor.subject.clone(),
        created_at: at,
        updated_at: at,
    };
    let mut transaction = db::begin(pool).await?;
    match db::organizations::insert(&mut transaction, &row).await {
        Err(db::Error::Conflict { .. }) => return Err(OrganizationError::IdTaken(new.id)),
        other => other?,
    }
    let entity = Entity("organization", id::entity_id(&row.id), &row.id);
    context.record(&mut transaction, entity, "create", Change::to(&audited(&row)), at).await?;
    db::commit(transaction).await?;
    Ok(row)
}

/// Changes the members that are set in the patch.
pub async fn update(
    pool: &db::Pool,
    context: Context<'_>,
    id: &OrganizationId,
    patch: OrganizationPatch,
) -> Result<OrganizationRow, OrganizationError> {
    if id.is_default() && patch.is_active == Some(false) {
        return Err(OrganizationError::DefaultStaysActive);
    }
    let mut transaction = db::begin(pool).await?;
    let before = db::organizations::lock(&mut transaction, id).await?.ok_or(OrganizationError::NotFound)?;
    let status = |is_active| if is_active { "active" } else { "suspended" }.to_owned();
    let mut row = OrganizationRow {
        name: patch.name.unwrap_or_else(|| before.name.clone()),
        status: patch.is_active.map_or_else(|| before.status.clone(), status),
        quotas: Quotas {
            agents: patch.agents.or(before.quotas.agents),
            workflows: patch.workflows.or(before.quotas.workflows),
            api_keys: patch.api_keys.or(before.quotas.api_keys),
            queued_runs: patch.queued_runs.or(before.quotas.queued_runs),
        },
        retention_days: patch.retention_days.or(before.retention_days),
        ..before.clone()
    };
    let (changed, change) = difference(&audited(&before), &audited(&row));
    if change.get() != "{}" {
        row.updated_at = Timestamp::now();
        row.updated_by.clone_from(&context.actor.subject);
        db::organizations::update(&mut transaction, &row).await?;
        let entity = Entity("organization", id::entity_id(&row.id), &row.id);
        let change = Change::between(&changed, &change);
        context.record(&mut transaction, entity, "update", change, row.updated_at).await?;
        db::commit(transaction).await?;
    }
    Ok(row)
}

/// Organisation as shown in audit entries.
fn audited(row: &OrganizationRow) -> Box<RawValue> {
    input::to_raw(&json!({"id": row.id, "name": row.name, "status": row.status, "quotas": row.quotas,
        "retention_days": row.retention_days}))
}

impl Context<'_> {
    /// Locks a quota of the organisation and returns it. If there is one, other transactions that add to it wait until
    /// this one ends. This comes before the locks of single rows, to avoid deadlocks.
    pub(super) async fn hold_quota(
        self,
        conn: &mut PgConnection,
        organization: &OrganizationId,
        what: Countable,
    ) -> Result<Option<i32>, db::Error> {
        let own = db::organizations::find(&mut *conn, organization).await?.map(|row| row.quotas).unwrap_or_default();
        let limit = own.or(*self.quotas).of(what);
        if limit.is_some() {
            db::organizations::lock_quota(conn, organization, what).await?;
        }
        Ok(limit)
    }

    /// Locks the quota, and fails if one more object would exceed it.
    pub(super) async fn check_quota(
        self,
        conn: &mut PgConnection,
        organization: &OrganizationId,
        what: Countable,
    ) -> Result<Result<(), QuotaExceeded>, db::Error> {
        let Some(limit) = self.hold_quota(&mut *conn, organization, what).await? else { return Ok(Ok(())) };
        let count = db::organizations::count(conn, organization, what, i64::from(limit)).await?;
        Ok(if count < i64::from(limit) { Ok(()) } else { Err(QuotaExceeded { what, limit }) })
    }
}
