//! Definitions as code: setting the content of a name, and rolling back to an earlier version.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Context,
    save_workflow::{self, SaveWorkflowError},
};
use crate::{
    access::Countable,
    db::{self, workflows::WorkflowRow},
    input::Patch,
    workflow::{Content, NewWorkflow, WatchPatch, WorkflowPatch, plan_workflow_id},
};

/// Result of putting a definition.
#[derive(Debug)]
pub enum Put {
    /// The name had no active version and now has this one.
    Created(WorkflowRow),
    /// The newest active version has this content now, with the same id.
    Updated(WorkflowRow),
    /// The content was the same already.
    Unchanged(WorkflowRow),
}

/// Reason why a workflow was not rolled back.
#[derive(Debug, thiserror::Error)]
pub enum RollBackError {
    /// The name has no such version.
    #[error("there is no version {0}")]
    NoSuchVersion(i32),
    /// Error of an update.
    #[error(transparent)]
    Save(#[from] SaveWorkflowError),
}

impl From<db::Error> for RollBackError {
    fn from(error: db::Error) -> Self {
        Self::Save(error.into())
    }
}

/// Sets the content of the name's newest active version. A repeat changes nothing.
pub async fn put_workflow(
    pool: &db::Pool,
    context: Context<'_>,
    wanted: NewWorkflow,
) -> Result<Put, SaveWorkflowError> {
    db::in_transaction(pool, async |transaction| {
        context.hold_quota(transaction, context.organization(), Countable::Workflows).await?;
        put_in(transaction, context, wanted).await
    })
    .await
}

/// [`put_workflow`] inside of the caller's transaction, which has locked the quota.
pub(super) async fn put_in(
    conn: &mut PgConnection,
    context: Context<'_>,
    wanted: NewWorkflow,
) -> Result<Put, SaveWorkflowError> {
    db::workflows::lock_name(conn, context.organization(), &wanted.name).await?;
    let Some(current) = db::workflows::find_active(&mut *conn, context.organization(), &wanted.name).await? else {
        context.check_absent()?;
        return Ok(Put::Created(save_workflow::create_in(conn, context, wanted).await?));
    };
    context.check_revision(&current.revision())?;
    let workflow_id = plan_workflow_id(&current.workflow_data.0).unwrap_or_default();
    let plan = wanted.content.plan(&workflow_id, &current.name, current.version);
    let same_content = db::workflows::has_plan(&mut *conn, current.id, &plan).await?
        && db::workflows::has_input_schema(&mut *conn, current.id, wanted.input_schema.as_deref()).await?;
    let same_rest = wanted.description == current.description
        && wanted.retention_days == current.retention_days
        && wanted.expose.as_ref() == current.expose()
        && wanted.watch == current.watch
        && wanted.flow.as_ref() == current.flow();
    if same_content && same_rest {
        return Ok(Put::Unchanged(current));
    }
    let patch = WorkflowPatch::from(wanted);
    // As with any update, a new description, retention, exposure or flow control alone does not make a new version.
    let patch = if same_content {
        WorkflowPatch { start_step: None, steps: None, limits: Patch::Absent, ..patch }
    } else {
        patch
    };
    Ok(Put::Updated(save_workflow::update_in(conn, context, current.id, patch).await?))
}

/// Copies content and description of an earlier version to the newest one, with this id. Rolling back to the current
/// version changes nothing. Retention, exposure and flow control are not copied:
/// they are no content.
pub async fn roll_back(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    version: i32,
) -> Result<WorkflowRow, RollBackError> {
    let mut transaction = db::begin(pool).await?;
    context.claim(&mut transaction, &id.to_string()).await.map_err(SaveWorkflowError::from)?;
    let name = db::workflows::find(&mut *transaction, context.organization(), id)
        .await?
        .ok_or(SaveWorkflowError::NotFound)?
        .name;
    // From here on, no other transaction moves contents between the rows of this name.
    db::workflows::lock_name(&mut transaction, context.organization(), &name).await?;
    let current =
        db::workflows::lock(&mut transaction, context.organization(), id).await?.ok_or(SaveWorkflowError::NotFound)?;
    context.check_revision(&current.revision()).map_err(SaveWorkflowError::from)?;
    if current.version == version {
        db::commit(transaction).await?;
        return Ok(current);
    }
    let target = db::workflows::find_version(&mut *transaction, context.organization(), &name, version).await?;
    let target = target.ok_or(RollBackError::NoSuchVersion(version))?;
    let content = Content::of_plan(&target.workflow_data.0).map_err(SaveWorkflowError::Invalid)?;
    let patch = WorkflowPatch {
        description: target.description.map_or(Patch::Null, Patch::Value),
        start_step: Some(content.start_step().to_owned()),
        steps: Some(content.steps().clone()),
        limits: content.limits().copied().map_or(Patch::Null, Patch::Value),
        input_schema: target.input_schema.map_or(Patch::Null, |schema| Patch::Value(schema.0)),
        retention_days: Patch::Absent,
        expose: Patch::Absent,
        watch: WatchPatch::default(),
        debounce: Patch::Absent,
        throttle: Patch::Absent,
        concurrency: Patch::Absent,
        status: None,
    };
    let row = save_workflow::update_in(&mut transaction, context, id, patch).await?;
    db::commit(transaction).await?;
    Ok(row)
}
