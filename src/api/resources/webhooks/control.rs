//! What is done with a webhook besides changing its definition.

use std::time::Duration;

use axum::{Json, extract::State, response::Response};
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::Serialize;
use serde_json::json;
use sqlx::types::Json as Column;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    WebhookId,
    deliveries::WebhookAttempt,
    not_found, show,
    wire::{CreatedWebhook, Webhook, read_secret, read_types},
};
use crate::{
    actions::webhooks::{self, Refused},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        etag::{self, IfMatch},
        extract::OptionalJsonBody,
        parameters,
        request_permit::RequestPermit,
        sets,
    },
    db::webhooks::{
        self as rows, WebhookRow,
        deliveries::Test,
        replays::Replay,
        sending::{Claimed, Outcome},
    },
    event::{Event, catalogue},
    input::{self, FieldError, Node, Object, Read, request_object},
    webhook::{Which, secret::Secret},
};

/// Time limit of a test: shorter than that of a delivery, so that the request is answered.
const TEST_TIMEOUT: Duration = Duration::from_secs(8);
/// Type of the event of a test, by default.
const PING: &str = "webhook.ping";
/// Longest time for which an old secret signs.
const MAX_GRACE_SECS: i64 = 604_800;
const DEFAULT_GRACE_SECS: i64 = 86_400;

request_object! {
    /// Body of a request for a new secret.
    #[schema(as = RotateWebhookSecretRequest, example = json!({"grace_seconds": 86_400}))]
    pub struct RotateBody: deny_unknown_fields {
        /// Time for which the secret before still signs too.
        #[schema(required = false, minimum = 0, maximum = 604_800, default = 86_400)]
        grace_seconds: i64 = defaulted(DEFAULT_GRACE_SECS, |node| node.int(0..=MAX_GRACE_SECS)),
        /// The new secret; by default a random one.
        #[schema(value_type = Option<String>, max_length = 200)]
        secret: Option<Secret> = nullable(read_secret),
    }
}

request_object! {
    /// Body of a test.
    #[schema(as = TestWebhookRequest)]
    pub struct TestBody: deny_unknown_fields {
        /// Type of the event.
        #[schema(required = false, default = "webhook.ping", max_length = 64)]
        event_type: String = defaulted(PING.to_owned(), |node| node.parsed(|text| {
            catalogue::find(text).map(|known| known.name.to_owned()).ok_or_else(|| "is no type of events".to_owned())
        })),
    }
}

request_object! {
    /// Body of a request to enable a webhook.
    #[schema(as = EnableWebhookRequest, example = json!({"replay": "missing"}))]
    pub struct EnableBody: deny_unknown_fields {
        /// Whether a test must arrive first.
        #[schema(required = false, default = true)]
        probe: bool = defaulted(true, Node::boolean),
        /// What is sent then. `missing`: what was held. `failed`: also what has failed since the failures began.
        #[schema(value_type = sets::WebhookReplayChoice, required = false, default = "none")]
        replay: Option<Which> = defaulted(None, |node| node.parsed(|name| match name {
            "none" => Ok(None),
            "failed" => Ok(Some(Which::Failed)),
            "missing" => Ok(Some(Which::Missing)),
            _ => Err("must be none, failed or missing".to_owned()),
        })),
    }
}

request_object! {
    /// Body of a recovery.
    #[schema(as = RecoverWebhookRequest, example = json!({"since": "2026-11-28T00:00:00Z", "which": "failed",
        "dry_run": true}))]
    pub struct RecoverBody: deny_unknown_fields {
        /// Events from this time on.
        #[schema(value_type = String, format = DateTime)]
        since: DateTime<Utc> = required(read_time),
        /// Events before this time; by default all up to now.
        #[schema(value_type = Option<String>, format = DateTime)]
        until: Option<DateTime<Utc>> = nullable(read_time),
        /// What is sent again.
        #[schema(value_type = sets::WebhookReplayKind)]
        which: Which = required(|node| node.parsed(|name| {
            Which::parse(name).ok_or_else(|| "must be failed, missing or all".to_owned())
        })),
        /// Only events of these types; by default all that the webhook takes.
        #[schema(min_items = 1, max_items = 32)]
        event_types: Option<Vec<String>> = nullable(read_types),
        /// Whether the deliveries are only counted.
        #[schema(required = false, default = true)]
        dry_run: bool = defaulted(true, Node::boolean),
    }
}

fn read_time(node: &Node<'_>) -> Read<DateTime<Utc>> {
    node.parsed(|text| {
        DateTime::parse_from_rfc3339(text).map(|at| at.to_utc()).map_err(|_| "must be a time in RFC 3339".to_owned())
    })
}

/// Result of a recovery, or of its dry run.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookRecoveryResult)]
pub struct Recovery {
    /// Whether the deliveries were only counted.
    dry_run: bool,
    /// Number of deliveries that are sent again, as counted before.
    deliveries: i64,
    /// Whether all were counted; otherwise there are more.
    is_exact: bool,
    /// Id of the recovery; null for a dry run. `GET /webhooks/{webhook_id}` shows its progress.
    recovery_id: Option<Uuid>,
}

/// Rotate the secret of a webhook
///
/// The answer is the only one that contains the new secret. For `grace_seconds` deliveries have a signature with each of
/// both secrets.
#[utoipa::path(
    post, path = "/webhooks/{webhook_id}/rotate-secret", tag = "webhooks",
    params(("webhook_id" = Uuid, Path), parameters::IfMatch), request_body(content = Option<RotateBody>),
    responses((status = 200, body = CreatedWebhook, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 404, body = ErrorBody), (status = 409, description = "The stored secret cannot be decrypted", body = ErrorBody), (status = 412, description = "The webhook has changed since it was read", body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn rotate_webhook_secret(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    IfMatch(if_match): IfMatch,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    let RotateBody { grace_seconds, secret } = match &body {
        Some(body) => RotateBody::read(&Object::body(body)?)?,
        None => RotateBody { grace_seconds: DEFAULT_GRACE_SECS, secret: None },
    };
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let (row, secret) = webhooks::rotate_secret(&app.pool, context, id, secret, grace_seconds, app.clock.now()).await?;
    tracing::info!(target: "api.routes.webhooks", webhook_id = %id, "Secret of a webhook rotated");
    let revision = row.revision();
    let webhook = show(&app, &caller, row).await?;
    let secret = Some(secret.text().to_owned());
    Ok(etag::tagged(&revision, Json(CreatedWebhook { webhook, secret })))
}

/// Test a webhook
///
/// Sends an event at once, also to a webhook that is disabled, and answers with the attempt. It is not retried, and
/// changes nothing in the state of the webhook. The status is 200 even if the attempt fails. The time limit is 8 s.
#[utoipa::path(
    post, path = "/webhooks/{webhook_id}/test", tag = "webhooks",
    params(("webhook_id" = Uuid, Path)), request_body(content = Option<TestBody>),
    responses((status = 200, body = WebhookAttempt), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, description = "Too many tests, or checks of agents, by the caller are under way", body = ErrorBody)),
)]
pub async fn test_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    permit: RequestPermit,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Json<WebhookAttempt>, ApiError> {
    let event_type = match &body {
        Some(body) => TestBody::read(&Object::body(body)?)?.event_type,
        None => PING.to_owned(),
    };
    let row = rows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let outcome = test(&app, &caller, row, permit, &event_type).await?;
    Ok(Json(WebhookAttempt::of_outcome(&outcome, &caller)))
}

/// Sends a test.
async fn test(
    app: &App,
    caller: &Caller,
    row: WebhookRow,
    permit: RequestPermit,
    event_type: &str,
) -> Result<Outcome, ApiError> {
    let owners = caller.owners().with_agent(row.id);
    let _permit = app
        .checks
        .try_take(owners, 1)
        .map_err(|limit| ApiError::exhausted(limit, "too_many_checks", "tests of webhooks at a time"))?;
    permit.release();
    let (delivery_id, event_id, lease) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::new_v4());
    let event_at = app.clock.now();
    let organization = caller.organization();
    let mut data = json!({});
    // The example of the type, of this organisation, and marked as a test of this webhook.
    if event_type != PING
        && let Some(known) = catalogue::find(event_type)
    {
        data = known.example()["data"].take();
    }
    data["organization_id"] = organization.as_str().into();
    data["webhook"] = json!({"id": row.id, "name": row.name});
    data["is_test"] = true.into();
    let data = input::to_raw(&data);
    let event = Event {
        id: event_id,
        event_type: event_type.to_owned(),
        created_at: event_at.into(),
        run_id: None,
        seq: None,
        data,
    };
    let body = event.envelope(app.webhooks.api()).get().to_owned();
    let test =
        Test { id: delivery_id, webhook_id: row.id, organization, event_id, event_type, event_at, body: &body, lease };
    let created_at = rows::deliveries::insert_test(&app.pool, &test).await?;
    let claimed = Claimed {
        id: delivery_id,
        created_at,
        webhook_id: row.id,
        organization_id: organization.as_str().to_owned(),
        event_id,
        event_type: event_type.to_owned(),
        run_id: None,
        body: body.clone(),
        traceparent: None,
        depth: 0,
        attempts: 0,
        schedule_from: 0,
        is_single: true,
        is_test: true,
        lease,
        url: row.url,
        sealed: Column(row.sealed.0),
        push_id: None,
        protocol: None,
    };
    Ok(app.webhooks.test(&claimed, TEST_TIMEOUT).await?)
}

/// Enable a webhook
///
/// First a test must arrive, unless `probe` is false. Then what was queued is sent, and what was held or has failed if
/// `replay` says so.
#[utoipa::path(
    post, path = "/webhooks/{webhook_id}/enable", tag = "webhooks",
    params(("webhook_id" = Uuid, Path), parameters::IfMatch), request_body(content = Option<EnableBody>),
    responses((status = 200, body = Webhook), (status = 404, body = ErrorBody), (status = 409, description = "The test did not arrive", body = ErrorBody), (status = 412, description = "The webhook has changed since it was read", body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, description = "Too many tests, or checks of agents, by the caller are under way", body = ErrorBody)),
)]
pub async fn enable_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    IfMatch(if_match): IfMatch,
    permit: RequestPermit,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, ApiError> {
    let EnableBody { probe, replay } = match &body {
        Some(body) => EnableBody::read(&Object::body(body)?)?,
        None => EnableBody { probe: true, replay: None },
    };
    let row = rows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    if probe && !row.enabled {
        let outcome = test(&app, &caller, row, permit, PING).await?;
        if !outcome.ended.is_success() {
            let why = outcome.error.unwrap_or_default();
            return Err(ApiError::conflict("webhook_probe_failed", format!("The test did not arrive: {why}")));
        }
    }
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let row = webhooks::enable(&app.pool, context, id, replay).await?;
    app.webhooks.wake();
    tracing::info!(target: "api.routes.webhooks", webhook_id = %id, "Webhook enabled");
    let revision = row.revision();
    Ok(etag::tagged(&revision, Json(show(&app, &caller, row).await?)))
}

/// Disable a webhook
///
/// What is queued stays, and new events are held. A repeat changes nothing.
#[utoipa::path(
    post, path = "/webhooks/{webhook_id}/disable", tag = "webhooks",
    params(("webhook_id" = Uuid, Path), parameters::IfMatch),
    responses((status = 200, body = Webhook), (status = 404, body = ErrorBody), (status = 412, description = "The webhook has changed since it was read", body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn disable_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    IfMatch(if_match): IfMatch,
) -> Result<Response, ApiError> {
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let row = webhooks::disable(&app.pool, context, id).await?;
    tracing::info!(target: "api.routes.webhooks", webhook_id = %id, "Webhook disabled");
    let revision = row.revision();
    Ok(etag::tagged(&revision, Json(show(&app, &caller, row).await?)))
}

/// Recover deliveries
///
/// Sends again what has failed, or what was never sent, in the background. By default it only counts them (`dry_run`).
#[utoipa::path(
    post, path = "/webhooks/{webhook_id}/recover", tag = "webhooks",
    params(("webhook_id" = Uuid, Path)), request_body = RecoverBody,
    responses((status = 200, description = "Counted", body = Recovery), (status = 202, description = "Begun", body = Recovery), (status = 404, body = ErrorBody), (status = 409, description = "The webhook is disabled", body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn recover_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    body: crate::api::vocabulary::extract::JsonBody,
) -> Result<(StatusCode, Json<Recovery>), ApiError> {
    let now = app.clock.now();
    let body = RecoverBody::read(&Object::body(body.raw())?)?;
    let until = body.until.unwrap_or(now);
    if until <= body.since {
        return Err(FieldError::rule("body.until", "must be after since").into());
    }
    let row = rows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let replay = Replay { webhook_id: id, which: body.which, since: body.since, until, event_types: body.event_types };
    let (deliveries, is_exact) = app.webhooks.count_replay(&replay).await?;
    if body.dry_run {
        let counted = Recovery { dry_run: true, deliveries, is_exact, recovery_id: None };
        return Ok((StatusCode::OK, Json(counted)));
    }
    if !row.enabled {
        return Err(super::refused(Refused::Disabled));
    }
    let begun = webhooks::recover(&app.pool, caller.context(&app), &replay).await?;
    tracing::info!(target: "api.routes.webhooks", webhook_id = %id, recovery_id = %begun.id, "Recovery begun");
    let begun = Recovery { dry_run: false, deliveries, is_exact, recovery_id: Some(begun.id) };
    Ok((StatusCode::ACCEPTED, Json(begun)))
}
