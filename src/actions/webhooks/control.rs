//! What is done with a webhook besides changing its definition.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use super::{Refused, SaveWebhookError, lock};
use crate::{
    actions::{Change, Context, Entity, SaveError},
    db::{
        self,
        webhooks::{self as rows, WebhookRow, deliveries, replays::Replay},
    },
    input,
    timestamp::Timestamp,
    webhook::{Which, secret::Secret},
};

/// Events that were recorded this long before an endpoint was disabled may have been fanned out after it; and clocks differ.
const FAN_OUT_MARGIN: TimeDelta = TimeDelta::minutes(1);

/// Makes a secret the current one: the given one, or a random one. The one before signs for `grace_secs` more. Returns the
/// new secret. `now` is the time of the signatures.
pub async fn rotate_secret(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    secret: Option<Secret>,
    grace_secs: i64,
    now: DateTime<Utc>,
) -> Result<(WebhookRow, Secret), SaveWebhookError> {
    db::in_transaction(pool, async |conn| {
        let mut row = lock(conn, context, id).await?;
        context.check_revision(&row.revision())?;
        let mut sealed = row.opened(context.vault).map_err(|_| SaveError::Other(Refused::Sealed))?;
        let secret = match secret {
            Some(secret) if secret.kind().as_str() != row.signature => {
                let problem = input::FieldError::rule("body.secret", format!("must be a secret for {}", row.signature));
                return Err(SaveError::Invalid(vec![problem]));
            }
            Some(secret) => secret,
            None => {
                let kind = crate::webhook::secret::SignatureKind::parse(&row.signature);
                Secret::random(kind.ok_or(SaveError::Other(Refused::Sealed))?)
            }
        };
        sealed.rotate(&secret, now.timestamp(), grace_secs);
        let at = Timestamp::now();
        row.sealed = rows::seal(context.vault, id, &sealed);
        row.secret_hint = secret.hint().to_owned();
        row.secret_created_at = at;
        row.public_key = secret.public_key();
        row.updated_at = at;
        row.updated_by.clone_from(&context.actor.subject);
        rows::update(conn, &row).await?;
        let after = input::to_raw(&json!({"grace_seconds": grace_secs}));
        context.record(conn, Entity("webhook", id, &row.name), "rotate_secret", Change::to(&after), at).await?;
        Ok((row, secret))
    })
    .await
}

/// Disables a webhook: what is queued stays, and what comes is held. A repeat changes nothing.
pub async fn disable(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<WebhookRow, SaveWebhookError> {
    db::in_transaction(pool, async |conn| {
        let mut row = lock(conn, context, id).await?;
        context.check_revision(&row.revision())?;
        if row.enabled {
            let at = Timestamp::now();
            row.enabled = false;
            row.disabled_reason = Some("by_user".to_owned());
            row.disabled_at = Some(at);
            row.updated_at = at;
            row.updated_by.clone_from(&context.actor.subject);
            rows::update(conn, &row).await?;
            let (before, after) = (json!({"enabled": true}), json!({"enabled": false, "disabled_reason": "by_user"}));
            let (before, after) = (input::to_raw(&before), input::to_raw(&after));
            let change = Change::between(&before, &after);
            context.record(conn, Entity("webhook", id, &row.name), "disable", change, at).await?;
        }
        Ok(row)
    })
    .await
}

/// Enables a webhook, and sends what failed or was held, as asked. A repeat changes nothing.
pub async fn enable(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    replay: Option<Which>,
) -> Result<WebhookRow, SaveWebhookError> {
    db::in_transaction(pool, async |conn| {
        let mut row = lock(conn, context, id).await?;
        context.check_revision(&row.revision())?;
        if row.enabled {
            return Ok(row);
        }
        let at = Timestamp::now();
        let utc = |at: Timestamp| at.as_naive_utc().and_utc();
        let disabled_at = utc(row.disabled_at.take().unwrap_or(row.created_at)) - FAN_OUT_MARGIN;
        let failing = rows::states(&mut *conn, &[id]).await?.pop().and_then(|state| state.failing_since);
        let failing_since = failing.map_or(disabled_at, |since| utc(since) - FAN_OUT_MARGIN).min(disabled_at);
        row.enabled = true;
        row.disabled_reason = None;
        row.updated_at = at;
        row.updated_by.clone_from(&context.actor.subject);
        rows::update(conn, &row).await?;
        rows::reset_state(conn, id).await?;
        let mut replays = Vec::new();
        if replay == Some(Which::Failed) {
            replays.push((Which::Failed, failing_since));
        }
        if replay.is_some() {
            replays.push((Which::Missing, disabled_at));
        }
        for (which, since) in replays {
            let replay = Replay { webhook_id: id, which, since, until: utc(at) + FAN_OUT_MARGIN, event_types: None };
            rows::replays::insert(conn, Uuid::now_v7(), &replay, &context.actor.subject).await?;
        }
        let before = input::to_raw(&json!({"enabled": false}));
        let after = input::to_raw(&json!({"enabled": true, "replay": replay.map(Which::as_str)}));
        context.record(conn, Entity("webhook", id, &row.name), "enable", Change::between(&before, &after), at).await?;
        Ok(row)
    })
    .await
}

/// Recovery that has begun.
#[derive(Debug)]
pub struct Replayed {
    /// Its id.
    pub id: Uuid,
}

/// Begins a recovery.
pub async fn recover(pool: &db::Pool, context: Context<'_>, replay: &Replay) -> Result<Replayed, SaveWebhookError> {
    db::in_transaction(pool, async |conn| {
        let row = lock(conn, context, replay.webhook_id).await?;
        if !row.enabled {
            return Err(SaveError::Other(Refused::Disabled));
        }
        let id = Uuid::now_v7();
        rows::replays::insert(conn, id, replay, &context.actor.subject).await?;
        let after = input::to_raw(&json!({"recovery_id": id, "which": replay.which.as_str(),
            "since": Timestamp::from(replay.since), "until": Timestamp::from(replay.until)}));
        let entity = Entity("webhook", row.id, &row.name);
        context.record(conn, entity, "recover", Change::to(&after), Timestamp::now()).await?;
        Ok(Replayed { id })
    })
    .await
}

/// Makes a delivery due at once: for one attempt, or with the schedule from its beginning.
pub async fn redeliver(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    with_schedule: bool,
) -> Result<(), SaveWebhookError> {
    db::in_transaction(pool, async |conn| {
        let delivery = deliveries::lock(conn, context.organization(), id).await?.ok_or(SaveError::NotFound)?;
        if !delivery.is_enabled {
            return Err(SaveError::Other(Refused::Disabled));
        }
        deliveries::send_again(conn, id, with_schedule).await?;
        let before = input::to_raw(&json!({"state": delivery.state}));
        let after = input::to_raw(&json!({"delivery_id": id, "restart_schedule": with_schedule}));
        let entity = Entity("webhook", delivery.webhook_id, &delivery.webhook_name);
        let change = Change::between(&before, &after);
        context.record(conn, entity, "redeliver", change, Timestamp::now()).await?;
        Ok(())
    })
    .await
}
