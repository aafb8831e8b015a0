//! Configurations of push notifications: where A2A clients are told of a task.

use serde_json::{json, value::RawValue};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Change, Context, Entity, SaveError};
use crate::{
    a2a::Version,
    agent::masked_url,
    db::{
        self,
        webhooks::{
            self,
            pushes::{self as rows, PushRow},
        },
    },
    id, input,
    timestamp::Timestamp,
    webhook::{Sealed, push::MAX_PUSHES},
};

/// Reason why a configuration was not saved.
pub type SavePushError = SaveError<TooMany>;

/// The task has as many configurations as it may have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a task may have {MAX_PUSHES} configurations of push notifications")]
pub struct TooMany;

/// Configuration to set. It has no `Debug`, since headers may be secret.
#[expect(missing_docs, reason = "said by the names")]
pub struct NewPush {
    /// Id for clients; `None`: that of the task.
    pub name: Option<String>,
    /// Address, which the caller has checked.
    pub url: String,
    /// Scheme of the header `Authorization`.
    pub scheme: Option<String>,
    pub headers: Vec<(String, String)>,
    pub version: Version,
}

/// Sets a configuration of a task, in the place of one with the same id. If the task has begun, its present state is the
/// first notification.
pub async fn set(pool: &db::Pool, context: Context<'_>, run_id: &str, new: NewPush) -> Result<PushRow, SavePushError> {
    db::in_transaction(pool, async |conn| {
        let organization = context.organization();
        let run = rows::lock_run(conn, organization, run_id).await?.ok_or(SaveError::NotFound)?;
        let name = new.name.as_deref().unwrap_or(run_id);
        let present = all(conn, context, run_id).await?;
        let old = present.iter().find(|push| push.name == name);
        if old.is_none() && present.len() >= MAX_PUSHES {
            return Err(SaveError::Other(TooMany));
        }
        let id = old.map_or_else(Uuid::now_v7, |push| push.id);
        let sealed = Sealed { secrets: Vec::new(), headers: new.headers.clone() };
        let push = rows::NewPush {
            id,
            organization,
            run_id,
            name,
            url: &new.url,
            scheme: new.scheme.as_deref(),
            version: new.version,
            sealed: &webhooks::seal(context.vault, id, &sealed),
            created_by: &context.actor.subject,
        };
        let push = rows::put(conn, &push, old).await?;
        if let Some(row) = db::runs::task(&mut *conn, organization, run_id).await? {
            rows::tell_state(conn, organization, (&run, &row), (&push, new.version)).await?;
        }
        let (before, after) = (old.map(audited), audited(&push));
        let change = Change { before: before.as_deref(), after: Some(&after) };
        record(conn, context, run_id, "set_push_config", change).await?;
        Ok(push)
    })
    .await
}

/// Deletes a configuration. A repeat changes nothing.
pub async fn delete(pool: &db::Pool, context: Context<'_>, run_id: &str, name: &str) -> Result<(), SavePushError> {
    db::in_transaction(pool, async |conn| {
        rows::lock_run(conn, context.organization(), run_id).await?.ok_or(SaveError::NotFound)?;
        let present = all(conn, context, run_id).await?;
        let Some(push) = present.iter().find(|push| push.name == name) else { return Ok(()) };
        rows::delete(conn, run_id, push).await?;
        record(conn, context, run_id, "delete_push_config", Change::from(&audited(push))).await?;
        Ok(())
    })
    .await
}

async fn all(conn: &mut PgConnection, context: Context<'_>, run_id: &str) -> Result<Vec<PushRow>, db::Error> {
    rows::list(conn, context.organization(), run_id).await
}

async fn record(
    conn: &mut PgConnection,
    context: Context<'_>,
    run_id: &str,
    action: &'static str,
    change: Change<'_>,
) -> Result<(), db::Error> {
    let entity = Entity("run", id::run_entity_id(run_id), run_id);
    context.record(conn, entity, action, change, Timestamp::now()).await
}

/// Configuration as shown in audit entries: without token and credentials.
fn audited(push: &PushRow) -> Box<RawValue> {
    input::to_raw(&json!({"id": push.name, "url": masked_url(&push.url), "scheme": push.scheme}))
}
