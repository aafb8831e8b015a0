//! The log of deliveries.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{WebhookId, not_found};
use crate::{
    access::{Permission, Role},
    actions::webhooks::{self, MASK},
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        extract::{OptionalJsonBody, Query, path_uuid},
        page::{self, Page},
        parameters, sets,
    },
    db::webhooks::{
        self as rows,
        deliveries::{self, AttemptRow, DeliveryRow, Filter},
        sending::Outcome,
    },
    event::wire_id,
    input::{self, Node, Object, request_object},
    timestamp::Timestamp,
    webhook::envelope::{CALLBACK_URL, VALUES, masked},
};

/// Maximum number of attempts that are shown.
const MAX_ATTEMPTS: i64 = 100;

/// Page of the list of deliveries.
pub type WebhookDeliveryPage = Page<WebhookDelivery>;

/// Delivery: an event on its way to a webhook.
#[derive(Serialize, ToSchema)]
pub struct WebhookDelivery {
    /// Id of the delivery.
    id: Uuid,
    /// The webhook.
    webhook_id: Uuid,
    /// Id of the event, `webhook-id` on the wire.
    #[schema(example = "evt_0192e4a0b1c27d3e8f90a1b2c3d4e5f6")]
    event_id: String,
    /// Type of the event.
    #[schema(example = "run.completed")]
    event_type: String,
    /// Time of the event.
    #[schema(value_type = String, format = DateTime)]
    event_at: Timestamp,
    /// Run of the event; null if it is about none.
    run_id: Option<String>,
    /// Place of the event in the log of the run.
    seq: Option<i32>,
    /// State of the delivery.
    #[schema(value_type = sets::WebhookDeliveryState)]
    state: String,
    /// Whether it is a test of the webhook; no recovery sends it again.
    is_test: bool,
    /// Number of attempts that have ended.
    attempts: i32,
    /// Whether an attempt is under way.
    is_under_way: bool,
    /// Time of the next attempt; null if there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_attempt_at: Option<Timestamp>,
    /// HTTP status of the last answer.
    status_code: Option<i32>,
    /// Why the last attempt failed.
    error: Option<String>,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time when it was delivered, or failed.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
}

impl From<DeliveryRow> for WebhookDelivery {
    fn from(row: DeliveryRow) -> Self {
        Self {
            id: row.id,
            webhook_id: row.webhook_id,
            event_id: wire_id(row.event_id),
            event_type: row.event_type,
            event_at: row.event_at,
            run_id: row.run_id,
            seq: row.seq,
            state: row.state,
            is_test: row.is_test,
            attempts: row.attempts,
            is_under_way: row.is_under_way,
            next_attempt_at: row.due_at,
            status_code: row.status_code,
            error: row.error,
            created_at: row.created_at,
            ended_at: row.ended_at,
        }
    }
}

/// Attempt of a delivery.
#[derive(Serialize, ToSchema)]
pub struct WebhookAttempt {
    /// Number of the attempt, from 1; `webhook-attempt` on the wire.
    number: i32,
    /// Time when it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// How long it took, in milliseconds.
    duration_ms: i64,
    /// How it ended.
    #[schema(value_type = sets::WebhookAttemptOutcome)]
    outcome: String,
    /// HTTP status of the answer.
    status_code: Option<i32>,
    /// Why it failed.
    error: Option<String>,
    /// Header `content-type` of the answer.
    content_type: Option<String>,
    /// Header `retry-after` of the answer.
    retry_after: Option<String>,
    /// Beginning of the answer, up to 4 KiB. Answers of addresses that are allowed by `EGRESS_ALLOW` only are shown to
    /// administrators.
    answer: Option<String>,
    /// Whether the answer is not shown to the caller.
    is_answer_hidden: bool,
}

/// Whether the caller may see answers of addresses inside.
fn sees_inside(caller: &Caller) -> bool {
    caller.grant.role == Role::Admin && caller.grant.scopes.is_none()
}

impl WebhookAttempt {
    fn of_row(row: AttemptRow, caller: &Caller) -> Self {
        let is_hidden = row.is_internal && !sees_inside(caller);
        Self {
            number: row.number,
            started_at: row.started_at,
            duration_ms: row.duration_ms.into(),
            outcome: row.outcome,
            status_code: row.status_code,
            error: row.error,
            content_type: row.content_type.filter(|_| !is_hidden),
            retry_after: row.retry_after,
            is_answer_hidden: is_hidden && row.answer.is_some(),
            answer: row.answer.filter(|_| !is_hidden),
        }
    }

    /// Attempt that has just ended.
    pub(super) fn of_outcome(outcome: &Outcome, caller: &Caller) -> Self {
        let is_hidden = outcome.is_internal && !sees_inside(caller);
        Self {
            number: outcome.number,
            started_at: outcome.started_at,
            duration_ms: i64::try_from(outcome.duration.as_millis()).unwrap_or(i64::MAX),
            outcome: outcome.ended.as_str().to_owned(),
            status_code: outcome.status(),
            error: outcome.error.clone(),
            content_type: outcome.content_type.clone().filter(|_| !is_hidden),
            retry_after: outcome.retry_after.clone(),
            is_answer_hidden: is_hidden && outcome.answer.is_some(),
            answer: outcome.answer.clone().filter(|_| !is_hidden),
        }
    }
}

/// Delivery with its body and its attempts.
#[derive(Serialize, ToSchema)]
pub struct WebhookDeliveryDetail {
    #[serde(flatten)]
    delivery: WebhookDelivery,
    /// What is sent, byte by byte. Without `runs:write` a `callback_url` is replaced by asterisks, and without `runs:read`
    /// the input and the output of a run are.
    #[schema(value_type = HashMap<String, Value>)]
    body: Option<Box<RawValue>>,
    /// The latest 100 attempts, in their order.
    attempt_log: Vec<WebhookAttempt>,
}

request_object! {
    /// Body of a request to send a delivery again.
    #[schema(as = RedeliverRequest)]
    pub struct RedeliverBody: deny_unknown_fields {
        /// Whether the schedule of retries begins anew; otherwise there is one attempt.
        #[schema(required = false, default = false)]
        restart_schedule: bool = defaulted(false, Node::boolean),
    }
}

/// `{delivery_id}` in the path.
pub struct DeliveryId(Uuid);

impl<S: Send + Sync> FromRequestParts<S> for DeliveryId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "delivery_id").await.map(Self)
    }
}

fn no_delivery() -> ApiError {
    ApiError::not_found("webhook_delivery_not_found", "Delivery not found")
}

/// List the deliveries of a webhook
///
/// The latest first.
#[utoipa::path(
    get, path = "/webhooks/{webhook_id}/deliveries", tag = "webhooks",
    params(
        ("webhook_id" = Uuid, Path),
        parameters::Paging,
        ("state" = Option<Vec<sets::WebhookDeliveryState>>, Query, explode = false, description = "Any of these"),
        ("event_type" = Option<Vec<String>>, Query, explode = false, description = "Any of these types"),
        ("run_id" = Option<String>, Query, description = "Exactly this run"),
        ("status_code" = Option<i32>, Query, description = "HTTP status of the last answer"),
        ("from" = Option<DateTime<Utc>>, Query, description = "Created at this time or later; another name of `created_after`"),
        ("to" = Option<DateTime<Utc>>, Query, description = "Created at this time or earlier; another name of `created_before`"),
        parameters::Created,
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default)"),
    ),
    responses(
        (status = 200, body = WebhookDeliveryPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_webhook_deliveries(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    query: Query,
) -> Result<Response, ApiError> {
    rows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let mut parameters = ListQuery::new(&query);
    let status = parameters.text("status_code").map(|text| input::query_int("status_code", text, 100..=999));
    let filter = Filter {
        organization: caller.organization().clone(),
        webhook_id: id,
        states: parameters.several("state"),
        event_types: parameters.several("event_type"),
        run_id: parameters.text("run_id").map(str::to_owned),
        // The range fits.
        status_code: status.transpose()?.map(|status| i32::try_from(status).unwrap_or_default()),
        created: parameters.created()?,
    };
    let ascending = parameters.is_ascending();
    let list = ListRequest::read(&app, &parameters, &format!("deliveries of {id}")).await?;
    let (filter, page) = (&filter, &list.page);
    let read = app.reads.read(|mut conn| async move { deliveries::list(&mut conn, filter, ascending, page).await });
    let page = read.await?;
    Ok(page::answer(app, caller, &list, page, WebhookDelivery::from))
}

/// Get a delivery
///
/// With its body and its attempts.
#[utoipa::path(
    get, path = "/webhook-deliveries/{delivery_id}", tag = "webhooks", params(("delivery_id" = Uuid, Path)),
    responses((status = 200, body = WebhookDeliveryDetail), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_webhook_delivery(
    State(app): State<App>,
    caller: Caller,
    DeliveryId(id): DeliveryId,
) -> Result<Json<WebhookDeliveryDetail>, ApiError> {
    detail(&app, &caller, id).await.map(Json)
}

async fn detail(app: &App, caller: &Caller, id: Uuid) -> Result<WebhookDeliveryDetail, ApiError> {
    let row = deliveries::find(&app.pool, caller.organization(), id).await?.ok_or_else(no_delivery)?;
    let body = deliveries::body(&app.pool, id).await?.ok_or_else(no_delivery)?;
    let attempts = deliveries::attempts(&app.pool, id, MAX_ATTEMPTS).await?;
    let mut hidden = Vec::new();
    if !caller.may(Permission::RunsWrite) {
        hidden.push(CALLBACK_URL);
    }
    if !caller.may(Permission::RunsRead) {
        hidden.extend(VALUES);
    }
    let shown = |body: Box<RawValue>| masked(&body, &hidden, MASK);
    Ok(WebhookDeliveryDetail {
        delivery: row.into(),
        body: RawValue::from_string(body).ok().map(shown),
        attempt_log: attempts.into_iter().map(|row| WebhookAttempt::of_row(row, caller)).collect(),
    })
}

/// Send a delivery again
///
/// At once, whatever its state, with the same id and body: one attempt, or with `restart_schedule` the whole schedule. One
/// that is being sent at the moment stays as it is.
#[utoipa::path(
    post, path = "/webhook-deliveries/{delivery_id}/redeliver", tag = "webhooks", params(("delivery_id" = Uuid, Path)),
    request_body(content = Option<RedeliverBody>),
    responses(
        (status = 202, body = WebhookDeliveryDetail), (status = 404, body = ErrorBody),
        (status = 409, description = "The webhook is disabled", body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn redeliver_webhook(
    State(app): State<App>,
    caller: Caller,
    DeliveryId(id): DeliveryId,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<(StatusCode, Json<WebhookDeliveryDetail>), ApiError> {
    let with_schedule = match &body {
        Some(body) => RedeliverBody::read(&Object::body(body)?)?.restart_schedule,
        None => false,
    };
    let sent = webhooks::redeliver(&app.pool, caller.context(&app), id, with_schedule).await;
    sent.map_err(|error| ApiError::not_saved(error, no_delivery, super::refused))?;
    app.webhooks.wake();
    tracing::info!(target: "api.routes.webhooks", delivery_id = %id, "Delivery sent again");
    Ok((StatusCode::ACCEPTED, Json(detail(&app, &caller, id).await?)))
}
