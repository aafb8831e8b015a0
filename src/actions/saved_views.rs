//! Saving, changing and deleting views of lists.

use serde_json::{json, value::RawValue};
use uuid::Uuid;

use super::{Change, Context, Entity, difference};
use crate::{
    db::{
        self,
        saved_views::{MAX_OF_OWNER, ViewRow, Viewer},
    },
    input,
    timestamp::Timestamp,
};

/// Reason why a view was not saved.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no such view, or the caller does not see it.
    #[error("view not found")]
    NotFound,
    /// The caller may not change what the organisation sees.
    #[error("the view belongs to the organisation")]
    Shared,
    /// The owner has a view of that name for the screen.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// The owner has too many views.
    #[error("there are {MAX_OF_OWNER} views already")]
    TooMany,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// View to save.
#[derive(Clone, Debug)]
pub struct NewView {
    /// List that it is a view of.
    pub screen: String,
    /// Name for people.
    pub name: String,
    /// Query part of an address.
    pub query: String,
    /// Whether the whole organisation sees it.
    pub is_shared: bool,
}

/// Changes of a view.
#[derive(Clone, Debug, Default)]
pub struct ViewPatch {
    /// Name for people.
    pub name: Option<String>,
    /// Query part of an address.
    pub query: Option<String>,
}

/// Saves a view. `may_share`: whether the caller may save one that the organisation sees.
pub async fn create(
    pool: &db::Pool,
    context: Context<'_>,
    may_share: bool,
    new: NewView,
) -> Result<ViewRow, ViewError> {
    if new.is_shared && !may_share {
        return Err(ViewError::Shared);
    }
    let (at, subject) = (Timestamp::now(), &context.actor.subject);
    let row = ViewRow {
        id: Uuid::now_v7(),
        organization_id: context.organization().to_string(),
        owner: (!new.is_shared).then(|| subject.clone()),
        screen: new.screen,
        name: new.name,
        query: new.query,
        created_by: subject.clone(),
        updated_by: subject.clone(),
        created_at: at,
        updated_at: at,
    };
    let mut transaction = db::begin(pool).await?;
    let owned = db::saved_views::count_locked(&mut transaction, context.organization(), row.owner.as_deref()).await?;
    if owned >= MAX_OF_OWNER {
        return Err(ViewError::TooMany);
    }
    saved(db::saved_views::insert(&mut transaction, &row).await, &row)?;
    context.record(&mut transaction, entity(&row), "create", Change::to(&audited(&row)), at).await?;
    db::commit(transaction).await?;
    Ok(row)
}

/// Changes the members that are set in the patch.
pub async fn update(
    pool: &db::Pool,
    context: Context<'_>,
    may_share: bool,
    id: Uuid,
    patch: ViewPatch,
) -> Result<ViewRow, ViewError> {
    let mut transaction = db::begin(pool).await?;
    let before = locked(&mut transaction, context, may_share, id).await?;
    let at = Timestamp::now();
    let row = ViewRow {
        name: patch.name.unwrap_or_else(|| before.name.clone()),
        query: patch.query.unwrap_or_else(|| before.query.clone()),
        updated_by: context.actor.subject.clone(),
        updated_at: at,
        ..before.clone()
    };
    saved(db::saved_views::update(&mut transaction, &row).await, &row)?;
    let (old, new) = difference(&audited(&before), &audited(&row));
    context.record(&mut transaction, entity(&row), "update", Change::between(&old, &new), at).await?;
    db::commit(transaction).await?;
    Ok(row)
}

/// Deletes a view.
pub async fn delete(pool: &db::Pool, context: Context<'_>, may_share: bool, id: Uuid) -> Result<(), ViewError> {
    let mut transaction = db::begin(pool).await?;
    let row = locked(&mut transaction, context, may_share, id).await?;
    db::saved_views::delete(&mut transaction, id).await?;
    context.record(&mut transaction, entity(&row), "delete", Change::from(&audited(&row)), Timestamp::now()).await?;
    db::commit(transaction).await?;
    Ok(())
}

/// The view, if the caller may change it.
async fn locked(
    transaction: &mut db::Transaction,
    context: Context<'_>,
    may_share: bool,
    id: Uuid,
) -> Result<ViewRow, ViewError> {
    let viewer = Viewer { organization: context.organization(), subject: &context.actor.subject };
    let row = db::saved_views::lock(transaction, viewer, id).await?.ok_or(ViewError::NotFound)?;
    if row.owner.is_none() && !may_share { Err(ViewError::Shared) } else { Ok(row) }
}

fn saved(written: Result<(), db::Error>, row: &ViewRow) -> Result<(), ViewError> {
    match written {
        Err(db::Error::Conflict { .. }) => Err(ViewError::NameTaken(row.name.clone())),
        other => Ok(other?),
    }
}

fn entity(row: &ViewRow) -> Entity<'_> {
    Entity("saved_view", row.id, &row.name)
}

/// Members of an audit entry.
fn audited(row: &ViewRow) -> Box<RawValue> {
    input::to_raw(&json!({"screen": row.screen, "name": row.name, "query": row.query, "shared": row.owner.is_none()}))
}
