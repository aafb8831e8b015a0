//! Handlers of `/webhooks` and `/webhook-deliveries`.

pub mod control;
pub mod deliveries;
pub mod wire;

use std::collections::HashMap;

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::Response,
};
use http::request::Parts;
use uuid::Uuid;

use self::wire::{
    CreatedWebhook, NewWebhookBody, Webhook, WebhookDetail, WebhookPage, WebhookPatchBody, WebhookPutBody,
};
use crate::{
    access::Permission,
    actions::webhooks::{self, Refused, SaveWebhookError, WebhookPatch},
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        etag::{self, IfMatch, IfNoneMatch},
        extract::{JsonBody, Query, path_uuid},
        idempotency::{Key, replayed},
        page::{self, Message},
        parameters,
    },
    db::{
        self,
        idempotency::ClaimError,
        webhooks::{self as rows, StateRow, WebhookRow},
    },
    input::Object,
    webhook::Payload,
};

/// `{webhook_id}` in the path.
pub struct WebhookId(Uuid);

impl<S: Send + Sync> FromRequestParts<S> for WebhookId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "webhook_id").await.map(Self)
    }
}

fn not_found() -> ApiError {
    ApiError::not_found("webhook_not_found", "Webhook not found")
}

impl From<SaveWebhookError> for ApiError {
    fn from(error: SaveWebhookError) -> Self {
        Self::not_saved(error, not_found, refused)
    }
}

fn refused(reason: Refused) -> ApiError {
    let detail = reason.to_string();
    match reason {
        Refused::TooMany => {
            ApiError::new(http::StatusCode::FORBIDDEN, "quota_exceeded", format!("{detail}, and this one has as many"))
        }
        Refused::FullPayload => ApiError::forbidden(detail),
        Refused::Sealed => ApiError::conflict("webhook_sealed", format!("{detail}: ENCRYPTION_KEY lacks its key")),
        Refused::Disabled => ApiError::conflict("webhook_disabled", "The webhook is disabled; enable it first"),
    }
}

/// The webhook with its state, as the caller may see it.
async fn show(app: &App, caller: &Caller, row: WebhookRow) -> Result<Webhook, db::Error> {
    let state = rows::states(&app.pool, &[row.id]).await?.pop();
    Ok(shown(app, caller, row, state.as_ref()))
}

fn shown(app: &App, caller: &Caller, row: WebhookRow, state: Option<&StateRow>) -> Webhook {
    Webhook::new(row, state, &app.config.vault, caller.may(Permission::WebhooksWrite))
}

/// List webhooks
///
/// In the order of their creation.
#[utoipa::path(
    get, path = "/webhooks", tag = "webhooks", params(parameters::Paging),
    responses(
        (status = 200, body = WebhookPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_webhooks(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let list = ListRequest::read(&app, &ListQuery::new(&query), "webhooks").await?;
    let (organization, page) = (caller.organization(), &list.page);
    let read = app.reads.read(|mut conn| async move {
        let page = rows::list(&mut conn, organization, page).await?;
        let ids: Vec<Uuid> = page.entries.positions.iter().filter_map(|position| position.id.uuid()).collect();
        Ok((page, rows::states(&mut *conn, &ids).await?))
    });
    let (page, states) = read.await?;
    let states: HashMap<Uuid, StateRow> = states.into_iter().map(|state| (state.webhook_id, state)).collect();
    let (shown_by, shown_to) = (app.clone(), caller.clone());
    Ok(page::answer(app, caller, &list, page, move |row: WebhookRow| {
        let state = states.get(&row.id);
        shown(&shown_by, &shown_to, row, state)
    }))
}

/// Create a webhook
///
/// Only this answer contains the secret, and that to a repeat with the same `Idempotency-Key`. Events from now on are sent. An organisation has 32 webhooks at
/// most.
#[utoipa::path(
    post, path = "/webhooks", tag = "webhooks", request_body = NewWebhookBody, params(parameters::IdempotencyKey),
    responses(
        (status = 201, body = CreatedWebhook, headers(("ETag" = String, description = "Entity tag of this version"), ("Location" = String, description = "Its path"))),
        (status = 403, description = "The organisation has as many as it may have", body = ErrorBody),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_webhook(
    State(app): State<App>,
    caller: Caller,
    key: Key,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let new = NewWebhookBody::parse(&Object::body(body.raw())?)?;
    if new.definition.payload == Payload::Full {
        // It sends input and output of runs.
        caller.must(Permission::RunsRead)?;
    }
    let key = key.bound("create webhook", &caller, body.fingerprint());
    let context = caller.context(&app).with_key(key.as_ref());
    let created = |row: WebhookRow, secret: Option<String>| {
        let (path, revision) = (format!("/webhooks/{}", row.id), row.revision());
        etag::created(&app, &path, &revision, CreatedWebhook { webhook: shown(&app, &caller, row, None), secret })
    };
    match webhooks::create(&app.pool, context, new).await {
        Ok((row, secret)) => {
            tracing::info!(target: "api.routes.webhooks", webhook_id = %row.id, "Webhook created");
            Ok(created(row, Some(secret.text().to_owned())))
        }
        Err(SaveWebhookError::Key(ClaimError::Repeated(id))) => {
            let id = Uuid::try_parse(&id).map_err(|_| not_found())?;
            let row = rows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
            // The answer of the first request, which may have been lost with the secret.
            let sealed = row.opened(&app.config.vault).unwrap_or_default();
            let secret = sealed.secrets.into_iter().next().map(|timed| timed.secret);
            Ok(replayed(created(row, secret)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Get a webhook
///
/// Without its secret; of that it has the first characters and the age. With its latest recoveries.
#[utoipa::path(
    get, path = "/webhooks/{webhook_id}", tag = "webhooks",
    params(("webhook_id" = Uuid, Path), parameters::IfNoneMatch),
    responses((status = 200, body = WebhookDetail, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 304), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let row = rows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let state = rows::states(&app.pool, &[id]).await?.pop();
    let recoveries = rows::replays::latest(&app.pool, id).await?;
    let replayed: i64 = recoveries.iter().map(|of| of.replayed + i64::from(of.is_ended)).sum();
    // The first part is the version of the definition, which `If-Match` compares.
    let failures = state.as_ref().map_or(0, |state| state.failures);
    let last =
        |at: Option<crate::timestamp::Timestamp>| at.map_or(0, |at| at.as_naive_utc().and_utc().timestamp_micros());
    let (failed, arrived) =
        state.as_ref().map_or((0, 0), |state| (last(state.last_failure_at), last(state.last_success_at)));
    let revision = format!("{}.{failures:x}-{failed:x}-{arrived:x}-{}-{replayed:x}", row.revision(), recoveries.len());
    let webhook = shown(&app, &caller, row, state.as_ref());
    Ok(if_none_match.answer(&revision, WebhookDetail::new(webhook, recoveries)))
}

/// Replace a webhook
///
/// Members that are absent get their defaults. The secret and the way of signing stay.
#[utoipa::path(
    put, path = "/webhooks/{webhook_id}", tag = "webhooks",
    params(("webhook_id" = Uuid, Path), parameters::IfMatch),
    request_body = WebhookPutBody,
    responses((status = 200, body = Webhook, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 412, description = "The webhook has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, description = "The stored secret cannot be decrypted", body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn put_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let definition = WebhookPutBody::parse(&Object::body(body.raw())?)?;
    change(&app, &caller, id, if_match.as_ref(), definition.into()).await
}

/// Change a webhook
///
/// Changes the given members. Nothing is sent to an old URL after the answer, except for what is under way.
#[utoipa::path(
    patch, path = "/webhooks/{webhook_id}", tag = "webhooks",
    params(("webhook_id" = Uuid, Path), parameters::IfMatch),
    request_body = WebhookPatchBody,
    responses((status = 200, body = Webhook, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 412, description = "The webhook has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, description = "The stored secret cannot be decrypted", body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn patch_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let patch = WebhookPatchBody::parse(&Object::body(body.raw())?)?;
    change(&app, &caller, id, if_match.as_ref(), patch).await
}

async fn change(
    app: &App,
    caller: &Caller,
    id: Uuid,
    if_match: Option<&crate::actions::IfMatch>,
    patch: WebhookPatch,
) -> Result<Response, ApiError> {
    let context = caller.context(app).with_if_match(if_match);
    let row = webhooks::update(&app.pool, context, id, patch, caller.may(Permission::RunsRead)).await?;
    tracing::info!(target: "api.routes.webhooks", webhook_id = %id, "Webhook updated");
    let revision = row.revision();
    Ok(etag::tagged(&revision, Json(show(app, caller, row).await?)))
}

/// Delete a webhook
///
/// What is queued is not sent.
#[utoipa::path(
    delete, path = "/webhooks/{webhook_id}", tag = "webhooks",
    params(("webhook_id" = Uuid, Path), parameters::IfMatch),
    responses((status = 200, body = Message), (status = 412, description = "The webhook has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn delete_webhook(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    IfMatch(if_match): IfMatch,
) -> Result<Json<Message>, ApiError> {
    webhooks::delete(&app.pool, caller.context(&app).with_if_match(if_match.as_ref()), id).await?;
    tracing::info!(target: "api.routes.webhooks", webhook_id = %id, "Webhook deleted");
    Ok(Json(Message::new("Webhook deleted")))
}
