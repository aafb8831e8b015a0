//! Handlers of `/triggers`: reading and changing them. What else can be done with a trigger is in `act`.

pub mod act;
pub mod schedule;
pub mod token;
pub mod wire;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;

use self::wire::{Trigger, TriggerDetail, TriggerPage};
use crate::{
    actions::save_trigger::{self, SaveTriggerError, TriggerRefusal},
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        etag::{self, IfMatch, IfNoneMatch},
        extract::{JsonBody, Query, TriggerId},
        idempotency::{Key, replayed},
        page::{self, Message},
        parameters, sets,
    },
    db::{
        self,
        idempotency::ClaimError,
        triggers::{Filter, TriggerRow},
    },
    trigger::{MAX_TRIGGERS, NewTrigger, NewTriggerBody, TriggerPatch, TriggerPatchBody},
};

impl From<SaveTriggerError> for ApiError {
    fn from(error: SaveTriggerError) -> Self {
        Self::not_saved(error, Self::trigger_not_found, |refusal| match refusal {
            TriggerRefusal::NameTaken(name) => {
                Self::conflict("trigger_name_taken", format!("A trigger named {name:?} already exists"))
            }
            TriggerRefusal::TooManyOfKafka(most) => Self::conflict(
                "too_many_kafka_triggers",
                format!("The service has at most {most} Kafka triggers (MAX_KAFKA_TRIGGERS)"),
            ),
            TriggerRefusal::TooMany => {
                Self::conflict("too_many_triggers", format!("An organisation has at most {MAX_TRIGGERS} triggers"))
            }
        })
    }
}

/// List triggers
///
/// In the order of their creation, each with its `health`. The next and the last firings are in the answer for one trigger.
#[utoipa::path(
    get, path = "/triggers", tag = "triggers",
    params(
        parameters::Paging,
        ("kind" = Option<Vec<sets::TriggerKind>>, Query, explode = false, description = "Any of these"),
        ("name" = Option<String>, Query, description = "Exactly this name"),
        ("name_prefix" = Option<String>, Query, description = "The beginning of the name"),
        ("workflow_name" = Option<String>, Query, description = "Exactly this `workflow_name`"),
        ("enabled" = Option<bool>, Query, description = "Whether they fire"),
    ),
    responses(
        (status = 200, body = TriggerPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_triggers(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let enabled = parameters.flag("enabled")?;
    let filter = Filter {
        organization: caller.organization(),
        kinds: parameters.several("kind"),
        name: parameters.text("name"),
        name_prefix: parameters.text("name_prefix"),
        workflow_name: parameters.text("workflow_name"),
        enabled,
    };
    let list = ListRequest::read(&app, &parameters, "triggers").await?;
    let (filter, page) = (&filter, &list.page);
    let read = app.reads.read(|mut conn| async move {
        let page = db::triggers::list(&mut conn, filter, page).await?;
        let ids: Vec<uuid::Uuid> = page.entries.positions.iter().filter_map(|position| position.id.uuid()).collect();
        Ok((page, db::triggers::health(&mut *conn, &ids).await?))
    });
    let (page, health) = read.await?;
    Ok(page::answer(app, caller, &list, page, move |row: TriggerRow| {
        let health = health.get(&row.id);
        Trigger::new(row, health)
    }))
}

/// Create a trigger
///
/// It starts runs on behalf of its organisation, whatever becomes of its author.
#[utoipa::path(
    post, path = "/triggers", tag = "triggers", request_body = NewTriggerBody,
    params(parameters::IdempotencyKey),
    responses(
        (status = 201, body = TriggerDetail, headers(("ETag" = String, description = "Entity tag of this version"), ("Location" = String, description = "Its path"))),
        (status = 409, description = "The name is taken, there are too many, or a request with this key is under way", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_trigger(
    State(app): State<App>,
    caller: Caller,
    key: Key,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let new = NewTrigger::parse(body.raw())?;
    let key = key.bound("create trigger", &caller, body.fingerprint());
    let context = caller.context(&app).with_key(key.as_ref());
    match save_trigger::create_trigger(&app.pool, context, new).await {
        Ok(created) => {
            tracing::info!(target: "api.routes.triggers", trigger_id = %created.row.id, "Trigger created");
            let (path, revision) = (format!("/triggers/{}", created.row.id), created.row.revision());
            let detail = TriggerDetail::read(&app, created.row).await?.with(&app, created.shown_once);
            Ok(etag::created(&app, &path, &revision, detail))
        }
        Err(SaveTriggerError::Key(ClaimError::Repeated(id))) => {
            let id = uuid::Uuid::try_parse(&id).map_err(|_| ApiError::trigger_not_found())?;
            let row = find(&app, &caller, id).await?;
            let (path, revision) = (format!("/triggers/{}", row.id), row.revision());
            Ok(replayed(etag::created(&app, &path, &revision, TriggerDetail::read(&app, row).await?)))
        }
        Err(error) => Err(error.into()),
    }
}

async fn find(app: &App, caller: &Caller, id: uuid::Uuid) -> Result<TriggerRow, ApiError> {
    db::triggers::find(&app.pool, caller.organization(), id).await?.ok_or_else(ApiError::trigger_not_found)
}

/// Get a trigger
///
/// Includes the next times at which it fires, as far as they are known, and its last firings.
#[utoipa::path(
    get, path = "/triggers/{trigger_id}", tag = "triggers",
    params(("trigger_id" = uuid::Uuid, Path), parameters::IfNoneMatch),
    responses((status = 200, body = TriggerDetail, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 304), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let row = find(&app, &caller, id).await?;
    let revision = row.revision();
    let detail = TriggerDetail::read(&app, row).await?;
    // The part behind the dot is that of the firings.
    let revision = format!("{revision}.{}", detail.state_revision());
    Ok(if_none_match.answer(&revision, detail))
}

/// Update a trigger
///
/// Changes the given members. The trigger keeps its id, its counters and its firings.
#[utoipa::path(
    put, path = "/triggers/{trigger_id}", tag = "triggers",
    params(("trigger_id" = uuid::Uuid, Path), parameters::IfMatch),
    request_body = TriggerPatchBody,
    responses(
        (status = 200, body = TriggerDetail, headers(("ETag" = String, description = "Entity tag of this version"))),
        (status = 404, body = ErrorBody),
        (status = 409, description = "The name is taken", body = ErrorBody),
        (status = 412, description = "The trigger has changed since it was read", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn update_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let patch = TriggerPatch::parse(body.raw())?;
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let row = save_trigger::update_trigger(&app.pool, context, id, patch).await?;
    tracing::info!(target: "api.routes.triggers", trigger_id = %id, "Trigger updated");
    shown(&app, row).await
}

/// The trigger with its tag.
async fn shown(app: &App, row: TriggerRow) -> Result<Response, ApiError> {
    let revision = row.revision();
    Ok(etag::tagged(&revision, Json(TriggerDetail::read(app, row).await?)))
}

/// Delete a trigger
///
/// With its firings. Its runs stay, and continue.
#[utoipa::path(
    delete, path = "/triggers/{trigger_id}", tag = "triggers",
    params(("trigger_id" = uuid::Uuid, Path), parameters::IfMatch),
    responses((status = 200, body = Message), (status = 412, description = "The trigger has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn delete_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    IfMatch(if_match): IfMatch,
) -> Result<Response, ApiError> {
    save_trigger::delete_trigger(&app.pool, caller.context(&app).with_if_match(if_match.as_ref()), id).await?;
    tracing::info!(target: "api.routes.triggers", trigger_id = %id, "Trigger deleted");
    Ok((StatusCode::OK, Json(Message::new("Trigger deleted"))).into_response())
}
