//! Handlers for pausing, resuming, firing and previewing a trigger.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;

use super::{
    find, shown,
    wire::{FiredTrigger, ScheduleProgress, TriggerDetail, TriggerPreview, next_of},
};
use crate::{
    actions::{
        fire_trigger::{self, FireError, FireNowError, Firer, Outcome},
        save_trigger,
    },
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        etag::{self, IfMatch},
        extract::{OptionalJsonBody, TriggerId},
        idempotency::{Key, replayed},
        parameters,
    },
    db::{self, idempotency::ClaimError},
    id,
    trigger::{FireBody, PauseBody},
};

/// Services that start runs of triggers.
fn firer(app: &App) -> Firer<'_> {
    Firer { definitions: &app.definitions, offload: &app.offload, quotas: &app.config.quotas, audit: app.config.audit }
}

impl From<FireError> for ApiError {
    fn from(error: FireError) -> Self {
        match error {
            FireError::Busy => Self::unavailable("overloaded", "Too many requests are waiting already"),
            FireError::Db(error) => error.into(),
        }
    }
}

impl From<FireNowError> for ApiError {
    fn from(error: FireNowError) -> Self {
        match error {
            FireNowError::NotFound => Self::trigger_not_found(),
            FireNowError::Key(error) => error.into(),
            FireNowError::Fire(error) => error.into(),
        }
    }
}

/// Pause a trigger
///
/// It does not fire until it is resumed, and what would have been due meanwhile is not made up for. Runs under way
/// continue. Pausing a paused trigger replaces its note.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/pause", tag = "triggers",
    params(("trigger_id" = uuid::Uuid, Path), parameters::IfMatch), request_body = Option<PauseBody>,
    responses(
        (status = 200, body = TriggerDetail, headers(("ETag" = String, description = "Entity tag of this version"))),
        (status = 404, body = ErrorBody),
        (status = 412, description = "The trigger has changed since it was read", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn pause_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    IfMatch(if_match): IfMatch,
    body: OptionalJsonBody,
) -> Result<Response, ApiError> {
    let note = PauseBody::parse(body.0.as_deref())?;
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let row = save_trigger::set_enabled(&app.pool, context, id, (false, note)).await?;
    tracing::info!(target: "api.routes.triggers", trigger_id = %id, "Trigger paused");
    shown(&app, row).await
}

/// Resume a trigger
///
/// Resumes a paused trigger, and removes its note. Resuming a trigger that is not paused changes nothing else.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/resume", tag = "triggers",
    params(("trigger_id" = uuid::Uuid, Path), parameters::IfMatch),
    responses(
        (status = 200, body = TriggerDetail, headers(("ETag" = String, description = "Entity tag of this version"))),
        (status = 404, body = ErrorBody),
        (status = 412, description = "The trigger has changed since it was read", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn resume_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    IfMatch(if_match): IfMatch,
) -> Result<Response, ApiError> {
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let row = save_trigger::set_enabled(&app.pool, context, id, (true, None)).await?;
    tracing::info!(target: "api.routes.triggers", trigger_id = %id, "Trigger resumed");
    shown(&app, row).await
}

/// Fire a trigger
///
/// Starts a run now, once, whether the trigger is paused or not, and whether other runs of it are under way or not. The
/// firing is recorded, also if no run can be started.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/fire", tag = "triggers",
    params(("trigger_id" = uuid::Uuid, Path), parameters::IdempotencyKey), request_body = Option<FireBody>,
    responses(
        (status = 202, body = FiredTrigger, headers(("Location" = String, description = "Path of the run"))),
        (status = 404, body = ErrorBody),
        (status = 409, description = "No run could be started; `code` is the reason. Or a request with this key is under way", body = ErrorBody),
        (status = 422, body = ErrorBody),
        (status = 503, description = "The database is unavailable, or too many runs are waiting", body = ErrorBody),
    ),
)]
pub async fn fire_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    key: Key,
    body: OptionalJsonBody,
) -> Result<Response, ApiError> {
    let members = FireBody::parse(body.0.as_deref())?;
    if app.relay.is_full() {
        let detail = "The backlog is full: too many runs are waiting to be dispatched by Kafka";
        return Err(ApiError::unavailable("backlog_full", detail));
    }
    let key = key.bound(&format!("fire trigger {id}"), &caller, body.fingerprint());
    let context = caller.context(&app).with_key(key.as_ref());
    let accepted = |fired: FiredTrigger, run_id: &str| {
        etag::located(&app, &format!("/runs/{run_id}"), (StatusCode::ACCEPTED, Json(fired)))
    };
    match fire_trigger::fire_now(&app.pool, context, firer(&app), id, &members).await {
        Ok((_, Outcome::Failed(failure))) => Err(ApiError::conflict(failure.reason, failure.detail)),
        Ok((firing, outcome)) => {
            app.relay.sweep_soon();
            tracing::info!(
                target: "api.routes.triggers", trigger_id = %id, run_id = firing.run_id, "Trigger fired by a caller"
            );
            let run_id = firing.run_id.clone();
            Ok(accepted(FiredTrigger::new(firing, &outcome), &run_id))
        }
        Err(FireNowError::Key(ClaimError::Repeated(run_id))) => {
            let run = db::runs::find(&app.pool, caller.organization(), &run_id).await?;
            // The first request has started none, or it was deleted.
            let run = run.ok_or_else(ApiError::run_not_found)?;
            Ok(replayed(accepted(FiredTrigger::again(&run), &run_id)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Preview a trigger
///
/// Shows the input that a run would have if the trigger fired now, whether the workflow would accept it, and the next times
/// at which it fires. Nothing is started or stored.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/preview", tag = "triggers",
    params(("trigger_id" = uuid::Uuid, Path)), request_body = Option<FireBody>,
    responses((status = 200, body = TriggerPreview), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn preview_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    body: OptionalJsonBody,
) -> Result<Response, ApiError> {
    let members = FireBody::parse(body.0.as_deref())?;
    let row = find(&app, &caller, id).await?;
    let mut conn = app.pool.acquire().await.map_err(db::Error::from)?;
    let now = db::triggers::now(&mut *conn).await?;
    let firing = fire_trigger::by_hand(&row, now, &members, (id::new_run_id(), &caller.actor.correlation_id));
    let (input, failure) = match fire_trigger::preview(&mut conn, firer(&app), &row, &firing).await? {
        Ok(input) => (Some(input), None),
        Err(failure) => (None, Some(failure)),
    };
    let schedule = ScheduleProgress::read(&mut conn, &row).await?;
    let preview = TriggerPreview {
        input,
        reason: failure.as_ref().map(|failure| failure.reason),
        detail: failure.map(|failure| failure.detail),
        next: next_of(&row, now, schedule.as_ref()),
    };
    Ok(Json(preview).into_response())
}
