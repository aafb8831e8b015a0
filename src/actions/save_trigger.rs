//! Creating, changing and deleting triggers.

mod kinds;

use serde_json::{Map, Value, json, value::RawValue};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{Change, Context, Entity, SaveError, difference};
use crate::{
    db::{self, triggers::TriggerRow},
    input::{self, FieldError, Node},
    timestamp::Timestamp,
    trigger::{Config, MAX_TRIGGERS, NewTrigger, TriggerKind, TriggerPatch},
};

/// Reason why a trigger was not saved.
pub type SaveTriggerError = SaveError<TriggerRefusal>;

/// Reason that only triggers have.
#[derive(Debug, thiserror::Error)]
pub enum TriggerRefusal {
    /// Another trigger has the name.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// The organisation has the maximum number of triggers.
    #[error("there may be at most {MAX_TRIGGERS} triggers")]
    TooMany,
    /// There is the maximum number of Kafka triggers.
    #[error("there may be at most {0} Kafka triggers")]
    TooManyOfKafka(i64),
}

/// Created trigger.
#[derive(Debug)]
pub struct Created {
    /// Its row.
    pub row: TriggerRow,
    /// Members that only the answer to the create request shows, such as a token.
    pub shown_once: Map<String, Value>,
}

/// Stores a new trigger.
pub async fn create_trigger(
    pool: &db::Pool,
    context: Context<'_>,
    new: NewTrigger,
) -> Result<Created, SaveTriggerError> {
    db::in_transaction(pool, async |transaction| create_in(transaction, context, new).await).await
}

/// [`create_trigger`] inside of the caller's transaction, which is aborted if the name is taken.
pub(super) async fn create_in(
    conn: &mut PgConnection,
    context: Context<'_>,
    new: NewTrigger,
) -> Result<Created, SaveTriggerError> {
    let id = Uuid::now_v7();
    context.claim(conn, &id.to_string()).await?;
    check_workflow(context, &new.workflow_name)?;
    if db::triggers::count_locked(conn, context.organization()).await? >= MAX_TRIGGERS {
        return Err(SaveError::Other(TriggerRefusal::TooMany));
    }
    let now = db::triggers::now(&mut *conn).await?;
    new.config.check("body.config", now)?;
    let at = Timestamp::from(now);
    let row = TriggerRow {
        id,
        organization_id: context.organization().to_string(),
        name: new.name,
        kind: new.config.kind().as_str().to_owned(),
        workflow_name: new.workflow_name,
        workflow_version: new.version,
        input: new.input.map(Json),
        priority: new.priority,
        labels: Json(new.labels),
        config: Json(new.config.to_stored()),
        secrets: None,
        enabled: new.enabled,
        note: new.note,
        counters: Json::default(),
        last_fired_at: None,
        created_by: context.actor.subject.clone(),
        updated_by: context.actor.subject.clone(),
        created_at: at,
        updated_at: at,
    };
    match db::triggers::insert(conn, &row).await {
        Err(db::Error::Conflict { .. }) => return Err(SaveError::Other(TriggerRefusal::NameTaken(row.name))),
        other => other?,
    }
    let shown_once =
        kinds::saved(conn, context, kinds::Saved { before: None, row: &row, config: &new.config, now }).await?;
    let change = audited(&row);
    context.record(conn, Entity("trigger", id, &row.name), "create", Change::to(&change), at).await?;
    Ok(Created { row, shown_once })
}

/// Changes the members that are set in the patch.
pub async fn update_trigger(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    patch: TriggerPatch,
) -> Result<TriggerRow, SaveTriggerError> {
    db::in_transaction(pool, async |transaction| {
        let current = db::triggers::lock(transaction, context.organization(), id).await?;
        let current = current.ok_or(SaveTriggerError::NotFound)?;
        context.check_revision(&current.revision())?;
        update_in(transaction, context, current, patch, "update").await
    })
    .await
}

/// Pauses or resumes a trigger. The note is replaced.
pub async fn set_enabled(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    (enabled, note): (bool, Option<String>),
) -> Result<TriggerRow, SaveTriggerError> {
    db::in_transaction(pool, async |transaction| {
        let current = db::triggers::lock(transaction, context.organization(), id).await?;
        let current = current.ok_or(SaveTriggerError::NotFound)?;
        context.check_revision(&current.revision())?;
        let note = note.map_or(input::Patch::Null, input::Patch::Value);
        let patch = TriggerPatch { enabled: Some(enabled), note, ..TriggerPatch::default() };
        update_in(transaction, context, current, patch, if enabled { "resume" } else { "pause" }).await
    })
    .await
}

/// [`update_trigger`] inside of the caller's transaction, which has locked the row. A repeat changes nothing.
pub(super) async fn update_in(
    conn: &mut PgConnection,
    context: Context<'_>,
    current: TriggerRow,
    patch: TriggerPatch,
    action: &'static str,
) -> Result<TriggerRow, SaveTriggerError> {
    // Also of the workflow that it has now: who may not start that may not change what does.
    check_workflow(context, &current.workflow_name)?;
    if let Some(name) = &patch.workflow_name {
        check_workflow(context, name)?;
    }
    let now = db::triggers::now(&mut *conn).await?;
    let kind = TriggerKind::parse(&current.kind);
    let given = match (&patch.config, kind) {
        (Some(config), Some(kind)) => {
            let config = Config::read(kind, &Node::new("body.config", config))?;
            config.check("body.config", now)?;
            Some(config)
        }
        _ => None,
    };
    let stored = || Config::from_stored(&current.kind, &current.config.0);
    let config = given.or_else(stored).ok_or_else(|| {
        vec![FieldError::rule("body.config", "the stored configuration is of another release; give a new one")]
    })?;
    let mut row = TriggerRow {
        name: patch.name.unwrap_or_else(|| current.name.clone()),
        workflow_name: patch.workflow_name.unwrap_or_else(|| current.workflow_name.clone()),
        workflow_version: patch.version.or(current.workflow_version),
        input: patch.input.or(current.input.clone().map(|input| input.0)).map(Json),
        priority: patch.priority.unwrap_or(current.priority),
        labels: patch.labels.map_or_else(|| current.labels.clone(), Json),
        enabled: patch.enabled.unwrap_or(current.enabled),
        note: patch.note.or(current.note.clone()),
        config: Json(config.to_stored()),
        ..current.clone()
    };
    let (before, after) = (audited(&current), audited(&row));
    let (changed, changes) = difference(&before, &after);
    if changes.get() == "{}" && !config.has_secrets() {
        return Ok(row);
    }
    row.updated_at = Timestamp::from(now);
    row.updated_by.clone_from(&context.actor.subject);
    match db::triggers::update(conn, &row).await {
        Err(db::Error::Conflict { .. }) => return Err(SaveError::Other(TriggerRefusal::NameTaken(row.name))),
        other => other?,
    }
    kinds::saved(conn, context, kinds::Saved { before: Some(&current), row: &row, config: &config, now }).await?;
    let change = Change::between(&changed, &changes);
    context.record(conn, Entity("trigger", row.id, &row.name), action, change, row.updated_at).await?;
    Ok(row)
}

/// Deletes a trigger with its firings. Its runs stay.
pub async fn delete_trigger(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<(), SaveTriggerError> {
    db::in_transaction(pool, async |transaction| {
        let row = db::triggers::lock(transaction, context.organization(), id).await?;
        let row = row.ok_or(SaveTriggerError::NotFound)?;
        context.check_revision(&row.revision())?;
        kinds::deleting(transaction, &row).await?;
        db::triggers::delete(transaction, id).await?;
        let (entity, before) = (Entity("trigger", id, &row.name), audited(&row));
        context.record(transaction, entity, "delete", Change::from(&before), Timestamp::now()).await?;
        Ok(())
    })
    .await
}

/// Callers that are restricted to workflows may have only these started.
fn check_workflow(context: Context<'_>, name: &str) -> Result<(), SaveTriggerError> {
    match context.workflows {
        Some(bound) if !bound.iter().any(|one| one == name) => {
            let text = "the API key is bound to other workflows";
            Err(vec![FieldError::rule("body.workflow_name", text)].into())
        }
        _ => Ok(()),
    }
}

/// Trigger as shown in audit rows.
fn audited(row: &TriggerRow) -> Box<RawValue> {
    let parsed = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).unwrap_or_default();
    input::to_raw(&json!({
        "name": row.name,
        "kind": row.kind,
        "workflow_name": row.workflow_name,
        "version": row.workflow_version,
        "input": row.input.as_ref().map(|input| parsed(&input.0)),
        "priority": row.priority,
        "labels": row.labels.0,
        "enabled": row.enabled,
        "note": row.note,
        "config": parsed(&row.config.0),
    }))
}
