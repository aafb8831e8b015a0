//! Creating, changing and deleting agents.

use serde_json::{Value, value::RawValue};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{Change, Context, Entity, SaveError, difference};
use crate::{
    access::Countable,
    agent::{AgentKind, AgentPatch, AgentStatus, AuthType, NewAgent, check_fallbacks, masked_url},
    db::{
        self,
        agents::{AgentRow, AgentWithBreaker},
    },
    input::{self, FieldError, Patch, member},
    timestamp::Timestamp,
};

/// Reason why an agent was not saved.
pub type SaveAgentError = SaveError<NameTaken>;

/// The name belongs to another agent, possibly a deleted one.
#[derive(Debug, thiserror::Error)]
#[error("the name {0:?} is taken")]
pub struct NameTaken(pub String);

/// Stores a new, active agent.
pub async fn create_agent(pool: &db::Pool, context: Context<'_>, new: NewAgent) -> Result<AgentRow, SaveAgentError> {
    db::in_transaction(pool, async |transaction| create_in(transaction, context, new).await).await
}

/// [`create_agent`] inside of the caller's transaction, which is aborted if the name is taken.
pub(super) async fn create_in(
    transaction: &mut PgConnection,
    context: Context<'_>,
    new: NewAgent,
) -> Result<AgentRow, SaveAgentError> {
    let new = new.unmasked(context.sees_secrets)?;
    check_url(context, "body.url", &new.url)?;
    check_token_url(context, new.auth_config.as_deref())?;
    let at = Timestamp::now();
    let row = AgentRow {
        id: Uuid::now_v7(),
        name: new.name,
        url: new.url,
        description: new.description,
        auth_type: Some(new.auth_type.as_str().to_owned()),
        auth_config: new.auth_config.map(Json),
        timeout_ms: new.timeout_ms,
        retry_config: Some(Json(input::to_raw(&new.retry_config))),
        circuit_breaker_config: new.circuit_breaker_config.map(Json),
        kind: new.kind.as_str().to_owned(),
        config: new.config.map(Json),
        fallbacks: new.fallbacks,
        status: AgentStatus::Active.as_str().to_owned(),
        created_by: Some(context.actor.subject.clone()),
        updated_by: Some(context.actor.subject.clone()),
        created_at: at,
        updated_at: at,
        organization_id: context.organization().to_string(),
    };
    context.claim(transaction, &row.id.to_string()).await?;
    context.check_quota(transaction, context.organization(), Countable::Agents).await??;
    match db::agents::insert(transaction, &row.sealed(context.vault)).await {
        Err(db::Error::Conflict { .. }) => return Err(SaveError::Other(NameTaken(row.name))),
        other => other?,
    }
    let entity = Entity("agent", row.id, &row.name);
    context.record(transaction, entity, "create", Change::to(&audited(&row)), at).await?;
    Ok(row)
}

/// Changes the members that are set in the patch. `updated_at` changes only if the agent differs afterwards;
/// a change of its card is accepted in any case.
pub async fn update_agent(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    patch: AgentPatch,
) -> Result<AgentWithBreaker, SaveAgentError> {
    db::in_transaction(pool, async |transaction| {
        if patch.status.is_some() {
            context.hold_quota(transaction, context.organization(), Countable::Agents).await?;
        }
        let row = update_in(transaction, context, id, patch).await?;
        db::agent_cards::accept(&mut *transaction, id, &row.url).await?;
        let found = db::agents::find_to_show(transaction, context.organization(), id).await?;
        found.ok_or(SaveAgentError::NotFound)
    })
    .await
}

/// [`update_agent`] inside of the caller's transaction, which has locked the quota if a deleted agent may be restored.
pub(super) async fn update_in(
    transaction: &mut PgConnection,
    context: Context<'_>,
    id: Uuid,
    patch: AgentPatch,
) -> Result<AgentRow, SaveAgentError> {
    let current = db::agents::lock(transaction, context.organization(), id).await?.ok_or(SaveAgentError::NotFound)?;
    let current = current.opened(context.vault);
    context.check_revision(&current.revision())?;
    let comes_back =
        |status: AgentStatus| current.status == AgentStatus::Deleted.as_str() && status != AgentStatus::Deleted;
    if patch.status.is_some_and(comes_back) {
        context.check_quota(transaction, context.organization(), Countable::Agents).await??;
    }
    let auth_type = current.auth_type.as_deref().and_then(AuthType::parse).unwrap_or(AuthType::None);
    let stored_auth = current.auth_config.as_ref().map(|stored| &*stored.0);
    let patch = patch.unmasked(&current.url, stored_auth, context.sees_secrets)?;
    let (auth_type, auth_config) = patch.merged_auth(auth_type, stored_auth)?;
    if !patch.auth_config.is_absent() {
        check_token_url(context, auth_config.as_deref())?;
    }
    if let Some(fallbacks) = &patch.fallbacks {
        check_fallbacks(&current.name, fallbacks)?;
    }
    let given_kind = patch.kind;
    let kind = AgentKind::parse(&current.kind).unwrap_or(AgentKind::A2a);
    let stored_config = current.config.as_ref().map(|stored| &*stored.0);
    let (_, config) = patch.merged_kind(kind, stored_config)?;
    let new_url = patch.url;
    if let Some(url) = &new_url {
        check_url(context, "body.url", url)?;
        // The breaker's state does not apply to another address.
        db::breakers::delete(&mut *transaction, id).await?;
    }
    let before = audited(&current);
    let secrets_before = (parsed(current.auth_config.as_ref()), current.url.clone());
    let mut row = AgentRow {
        url: new_url.unwrap_or(current.url),
        description: patch.description.or(current.description),
        auth_type: Some(auth_type.as_str().to_owned()),
        auth_config: auth_config.map(Json),
        timeout_ms: patch.timeout_ms.unwrap_or(current.timeout_ms),
        retry_config: patch.retry_config.map(|config| Json(input::to_raw(&config))).or(current.retry_config),
        circuit_breaker_config: match patch.circuit_breaker_config {
            Patch::Absent => current.circuit_breaker_config,
            Patch::Null => None,
            Patch::Value(config) => Some(Json(config)),
        },
        kind: given_kind.map_or(current.kind, |kind| kind.as_str().to_owned()),
        config: config.map(Json),
        fallbacks: patch.fallbacks.unwrap_or(current.fallbacks),
        status: patch.status.map_or(current.status, |status| status.as_str().to_owned()),
        ..current
    };
    let after = audited(&row);
    // Compared by value: the database formats the same JSON in its own way.
    if before.get() != after.get() || secrets_before != (parsed(row.auth_config.as_ref()), row.url.clone()) {
        row.updated_at = Timestamp::now();
        row.updated_by = Some(context.actor.subject.clone());
        db::agents::update(transaction, &row.sealed(context.vault)).await?;
        let (mut changed, mut changes) = difference(&before, &after);
        if changes.get() == "{}" {
            // Only a secret has changed.
            let name = if secrets_before.1 == row.url { "auth_config" } else { "url" };
            let credentials = |of: &RawValue| input::object_of(member(of, name).map(|value| (name, value)));
            (changed, changes) = (credentials(&before), credentials(&after));
        }
        let change = Change::between(&changed, &changes);
        context.record(transaction, Entity("agent", id, &row.name), "update", change, row.updated_at).await?;
    }
    Ok(row)
}

/// Checks the address at which credentials get their token.
fn check_token_url(context: Context<'_>, auth_config: Option<&RawValue>) -> Result<(), SaveAgentError> {
    match auth_config.and_then(|config| member(config, "token_url")).and_then(input::text) {
        Some(url) => check_url(context, "body.auth_config.token_url", &url),
        None => Ok(()),
    }
}

/// Checks whether the URL is allowed, as far as possible without resolving its host name.
fn check_url(context: Context<'_>, field: &str, url: &str) -> Result<(), SaveAgentError> {
    let checked = match url::Url::parse(url) {
        Ok(url) => context.egress.check_new(&url),
        Err(error) => Err(error.to_string()),
    };
    checked.map_err(|why| SaveAgentError::Invalid(vec![FieldError::rule(field, format!("not allowed: {why}"))]))
}

/// Marks the agent as deleted; its name stays taken. A repeat changes nothing.
pub async fn delete_agent(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<(), SaveAgentError> {
    db::in_transaction(pool, async |transaction| {
        let row = db::agents::lock(transaction, context.organization(), id).await?;
        let mut row = row.ok_or(SaveAgentError::NotFound)?;
        context.check_revision(&row.revision())?;
        if row.status != AgentStatus::Deleted.as_str() {
            let before = audited(&row);
            row.status = AgentStatus::Deleted.as_str().to_owned();
            row.updated_at = Timestamp::now();
            row.updated_by = Some(context.actor.subject.clone());
            db::agents::update(transaction, &row).await?;
            let entity = Entity("agent", id, &row.name);
            context.record(transaction, entity, "delete", Change::from(&before), row.updated_at).await?;
        }
        Ok(())
    })
    .await
}

/// JSON of a column; null if it is absent.
fn parsed(json: Option<&Json<Box<RawValue>>>) -> Value {
    json.and_then(|json| serde_json::from_str(json.0.get()).ok()).unwrap_or_default()
}

/// Agent as shown in audit rows: without the values of credentials.
fn audited(row: &AgentRow) -> Box<RawValue> {
    let config = parsed(row.config.as_ref());
    let mut auth_config = parsed(row.auth_config.as_ref());
    for (name, value) in auth_config.as_object_mut().into_iter().flatten() {
        if name != "header_name" {
            *value = "[redacted]".into();
        }
    }
    input::to_raw(&serde_json::json!({
        "name": row.name,
        "url": masked_url(&row.url),
        "description": row.description,
        "auth_type": row.auth_type,
        "auth_config": auth_config,
        "timeout_ms": row.timeout_ms,
        "retry_config": parsed(row.retry_config.as_ref()),
        "circuit_breaker_config": parsed(row.circuit_breaker_config.as_ref()),
        "kind": row.kind,
        "config": config,
        "fallbacks": row.fallbacks,
        // This is in addition to the digest of `config`.
        "model": config.get("model"),
        "status": row.status,
    }))
}
