//! Creating, changing and deleting webhooks, rotating their secrets, and sending deliveries again.

mod control;

use serde_json::{json, value::RawValue};
use sqlx::PgConnection;
use uuid::Uuid;

pub use self::control::{Replayed, disable, enable, recover, redeliver, rotate_secret};
use super::{Change, Context, Entity, SaveError, difference};
use crate::{
    agent::masked_url,
    db::{
        self,
        webhooks::{self as rows, WebhookRow},
    },
    input::{self, FieldError, Patch},
    timestamp::Timestamp,
    webhook::{
        MAX_WEBHOOKS, Ordering, Payload, Sealed,
        secret::{Secret, SignatureKind},
    },
};

/// Reason why a webhook was not saved.
pub type SaveWebhookError = SaveError<Refused>;

/// Reason that only webhooks have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Refused {
    /// The organisation has as many as it may have.
    #[error("an organisation may have {MAX_WEBHOOKS} webhooks")]
    TooMany,
    /// The stored secrets cannot be decrypted.
    #[error("the stored secret cannot be decrypted")]
    Sealed,
    /// The caller may not read runs, and the webhook would send their input and output.
    #[error("The webhook has the payload full, which needs runs:read")]
    FullPayload,
    /// Nothing is sent to it.
    #[error("the webhook is disabled")]
    Disabled,
}

/// Mask of the value of a header. Sent back, it stands for the stored value.
pub const MASK: &str = "********";

/// Webhook to create.
pub struct NewWebhook {
    /// Its definition.
    pub definition: Definition,
    /// Way of signing.
    pub signature: SignatureKind,
    /// Its secret; by default a random one.
    pub secret: Option<Secret>,
}

/// Definition of a webhook. It has no `Debug`, since headers may be secret.
#[expect(missing_docs, reason = "as in the wire type")]
pub struct Definition {
    pub name: String,
    pub url: String,
    pub event_types: Vec<String>,
    pub workflow_names: Option<Vec<String>>,
    pub filter: Option<String>,
    pub payload: Payload,
    pub ordering: Ordering,
    pub headers: Vec<(String, String)>,
    pub max_in_flight: i32,
    pub rate_per_second: Option<i32>,
    pub enabled: bool,
}

/// Changes of a webhook.
#[derive(Default)]
#[expect(missing_docs, reason = "as in the wire type")]
pub struct WebhookPatch {
    pub name: Option<String>,
    pub url: Option<String>,
    pub event_types: Option<Vec<String>>,
    pub workflow_names: Patch<Vec<String>>,
    pub filter: Patch<String>,
    pub payload: Option<Payload>,
    pub ordering: Option<Ordering>,
    pub headers: Option<Vec<(String, String)>>,
    pub max_in_flight: Option<i32>,
    pub rate_per_second: Patch<i32>,
    pub enabled: Option<bool>,
}

impl From<Definition> for WebhookPatch {
    /// The patch that leaves nothing as it was.
    fn from(of: Definition) -> Self {
        Self {
            name: Some(of.name),
            url: Some(of.url),
            event_types: Some(of.event_types),
            workflow_names: of.workflow_names.map_or(Patch::Null, Patch::Value),
            filter: of.filter.map_or(Patch::Null, Patch::Value),
            payload: Some(of.payload),
            ordering: Some(of.ordering),
            headers: Some(of.headers),
            max_in_flight: Some(of.max_in_flight),
            rate_per_second: of.rate_per_second.map_or(Patch::Null, Patch::Value),
            enabled: Some(of.enabled),
        }
    }
}

/// Stores a new webhook. Returns it with its secret.
pub async fn create(
    pool: &db::Pool,
    context: Context<'_>,
    new: NewWebhook,
) -> Result<(WebhookRow, Secret), SaveWebhookError> {
    db::in_transaction(pool, async |conn| create_in(conn, context, new).await).await
}

/// [`create`] inside of the caller's transaction.
pub(super) async fn create_in(
    conn: &mut PgConnection,
    context: Context<'_>,
    new: NewWebhook,
) -> Result<(WebhookRow, Secret), SaveWebhookError> {
    let NewWebhook { definition, signature, secret } = new;
    check_url(context, &definition.url)?;
    let secret = secret.unwrap_or_else(|| Secret::random(signature));
    let headers = unmasked(definition.headers, &[])?;
    let mut sealed = Sealed { secrets: Vec::new(), headers };
    let (id, at) = (Uuid::now_v7(), Timestamp::now());
    sealed.rotate(&secret, at.as_naive_utc().and_utc().timestamp(), 0);
    let by_user = |enabled: bool| (!enabled).then(|| "by_user".to_owned());
    let row = WebhookRow {
        id,
        organization_id: context.organization().to_string(),
        name: definition.name,
        url: definition.url,
        event_types: definition.event_types,
        workflow_names: definition.workflow_names,
        filter: definition.filter,
        payload: definition.payload.as_str().to_owned(),
        ordering: definition.ordering.as_str().to_owned(),
        signature: signature.as_str().to_owned(),
        sealed: rows::seal(context.vault, id, &sealed),
        secret_hint: secret.hint().to_owned(),
        secret_created_at: at,
        public_key: secret.public_key(),
        max_in_flight: definition.max_in_flight,
        rate_per_second: definition.rate_per_second,
        enabled: definition.enabled,
        disabled_reason: by_user(definition.enabled),
        disabled_at: (!definition.enabled).then_some(at),
        created_by: context.actor.subject.clone(),
        updated_by: context.actor.subject.clone(),
        created_at: at,
        updated_at: at,
    };
    context.claim(conn, &id.to_string()).await?;
    if rows::count_alone(conn, context.organization()).await? >= MAX_WEBHOOKS {
        return Err(SaveError::Other(Refused::TooMany));
    }
    rows::insert(conn, &row).await?;
    let entity = Entity("webhook", id, &row.name);
    context.record(conn, entity, "create", Change::to(&audited(&row, &sealed)), at).await?;
    Ok((row, secret))
}

/// Changes the members that are set in the patch. `updated_at` changes only if the webhook differs afterwards.
/// `reads_runs`: whether the caller may read runs.
pub async fn update(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    patch: WebhookPatch,
    reads_runs: bool,
) -> Result<WebhookRow, SaveWebhookError> {
    db::in_transaction(pool, async |conn| {
        let current = lock(conn, context, id).await?;
        context.check_revision(&current.revision())?;
        let payload = patch.payload.or_else(|| Payload::parse(&current.payload));
        // Another URL would get them too.
        if payload == Some(Payload::Full) && !reads_runs {
            return Err(SaveError::Other(Refused::FullPayload));
        }
        update_in(conn, context, current, patch).await
    })
    .await
}

/// [`update`] inside of the caller's transaction, which has locked the row.
pub(super) async fn update_in(
    conn: &mut PgConnection,
    context: Context<'_>,
    current: WebhookRow,
    patch: WebhookPatch,
) -> Result<WebhookRow, SaveWebhookError> {
    if let Some(url) = &patch.url {
        check_url(context, url)?;
    }
    let id = current.id;
    let mut sealed = current.opened(context.vault).map_err(|_| SaveError::Other(Refused::Sealed))?;
    let before = audited(&current, &sealed);
    let has_new_headers = if let Some(headers) = patch.headers {
        let headers = unmasked(headers, &sealed.headers)?;
        let is_new = headers != sealed.headers;
        sealed.headers = headers;
        is_new
    } else {
        false
    };
    let enabled = patch.enabled.unwrap_or(current.enabled);
    let is_switched = enabled != current.enabled;
    let at = Timestamp::now();
    let mut row = WebhookRow {
        name: patch.name.unwrap_or_else(|| current.name.clone()),
        url: patch.url.unwrap_or_else(|| current.url.clone()),
        event_types: patch.event_types.unwrap_or_else(|| current.event_types.clone()),
        workflow_names: patch.workflow_names.or(current.workflow_names.clone()),
        filter: patch.filter.or(current.filter.clone()),
        payload: patch.payload.map_or_else(|| current.payload.clone(), |payload| payload.as_str().to_owned()),
        ordering: patch.ordering.map_or_else(|| current.ordering.clone(), |order| order.as_str().to_owned()),
        max_in_flight: patch.max_in_flight.unwrap_or(current.max_in_flight),
        rate_per_second: patch.rate_per_second.or(current.rate_per_second),
        enabled,
        disabled_reason: if is_switched {
            (!enabled).then(|| "by_user".to_owned())
        } else {
            current.disabled_reason.clone()
        },
        disabled_at: if is_switched { (!enabled).then_some(at) } else { current.disabled_at },
        ..current.clone()
    };
    if has_new_headers {
        row.sealed = rows::seal(context.vault, id, &sealed);
    }
    let (changed, change) = difference(&before, &audited(&row, &sealed));
    if change.get() != "{}" || has_new_headers || row.url != current.url {
        row.updated_at = at;
        row.updated_by.clone_from(&context.actor.subject);
        rows::update(conn, &row).await?;
        if is_switched && enabled {
            rows::reset_state(conn, id).await?;
        }
        let change = Change::between(&changed, &change);
        context.record(conn, Entity("webhook", id, &row.name), "update", change, at).await?;
    }
    Ok(row)
}

/// What has become of a webhook that was put.
pub(super) enum Put {
    Created,
    Updated,
    Unchanged,
}

/// Sets the webhook of that name to the definition, inside of the caller's transaction. Without a secret, a new one has a
/// random one, and another keeps its own. The secret of another can be given too, but not changed.
pub(super) async fn put_in(
    conn: &mut PgConnection,
    context: Context<'_>,
    new: NewWebhook,
) -> Result<Put, SaveWebhookError> {
    let refused = |member: &str, text: &str| Err(vec![FieldError::rule(format!("body.{member}"), text)].into());
    let mut found = rows::lock_by_name(conn, context.organization(), &new.definition.name).await?;
    let Some(current) = found.pop() else {
        create_in(conn, context, new).await?;
        return Ok(Put::Created);
    };
    if !found.is_empty() {
        return refused("name", "several webhooks have this name");
    }
    if current.signature != new.signature.as_str() {
        return refused("signature", "the webhook has another way of signing, which never changes");
    }
    if let Some(secret) = &new.secret {
        let sealed = current.opened(context.vault).map_err(|_| SaveError::Other(Refused::Sealed))?;
        if sealed.secrets.first().is_none_or(|known| known.secret != secret.text()) {
            return refused(
                "secret",
                "there is a webhook of this name already, with another secret; that is changed by rotate-secret",
            );
        }
    }
    let mut patch = WebhookPatch::from(new.definition);
    if patch.url.as_deref().is_some_and(|url| url == masked_url(&current.url)) {
        patch.url = None;
    }
    let before = current.updated_at;
    let row = update_in(conn, context, current, patch).await?;
    Ok(if row.updated_at == before { Put::Unchanged } else { Put::Updated })
}

/// Deletes a webhook. Its deliveries are not sent any more.
pub async fn delete(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<(), SaveWebhookError> {
    db::in_transaction(pool, async |conn| {
        let row = lock(conn, context, id).await?;
        context.check_revision(&row.revision())?;
        let before = audited(&row, &row.opened(context.vault).unwrap_or_default());
        rows::delete(conn, id).await?;
        let entity = Entity("webhook", id, &row.name);
        context.record(conn, entity, "delete", Change::from(&before), Timestamp::now()).await?;
        Ok(())
    })
    .await
}

/// Locks the row of a webhook of the organisation.
async fn lock(conn: &mut PgConnection, context: Context<'_>, id: Uuid) -> Result<WebhookRow, SaveWebhookError> {
    rows::lock(conn, context.organization(), id).await?.ok_or(SaveError::NotFound)
}

/// Checks whether the URL is allowed, as far as possible without resolving its host name.
fn check_url(context: Context<'_>, url: &str) -> Result<(), SaveWebhookError> {
    let checked = match url::Url::parse(url) {
        Ok(url) => context.egress.check_hook(&url),
        Err(error) => Err(error.to_string()),
    };
    checked.map_err(|why| SaveError::Invalid(vec![FieldError::rule("body.url", format!("not allowed: {why}"))]))
}

/// Headers with the stored values for those that are masked.
fn unmasked(
    given: Vec<(String, String)>,
    stored: &[(String, String)],
) -> Result<Vec<(String, String)>, SaveWebhookError> {
    let value_of = |(name, value): (String, String)| {
        if value != MASK {
            return Ok((name, value));
        }
        let found = stored.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        found.map(|value| (name.clone(), value)).ok_or_else(|| {
            let field = format!("body.headers.{name}");
            let problem = FieldError::rule(field, "the mask stands for a stored value, and there is none");
            SaveError::Invalid(vec![problem])
        })
    };
    given.into_iter().map(value_of).collect()
}

/// Webhook as shown in audit entries: without secrets and values of headers.
fn audited(row: &WebhookRow, sealed: &Sealed) -> Box<RawValue> {
    let headers: Vec<&str> = sealed.headers.iter().map(|(name, _)| name.as_str()).collect();
    input::to_raw(&json!({
        "name": row.name,
        "url": masked_url(&row.url),
        "event_types": row.event_types,
        "workflow_names": row.workflow_names,
        "filter": row.filter,
        "payload": row.payload,
        "ordering": row.ordering,
        "signature": row.signature,
        "headers": headers,
        "max_in_flight": row.max_in_flight,
        "rate_per_second": row.rate_per_second,
        "enabled": row.enabled,
        "secret_created_at": row.secret_created_at,
    }))
}
