//! Handlers that only schedules have: the times of a schedule, and backfills.

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::find;
use crate::{
    actions::backfill::{self, BackfillError, BackfillRefusal, MAX_FIRINGS, MAX_RUNNING, Planned},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        etag,
        extract::{JsonBody, Query, TriggerId},
        idempotency::{Key, replayed},
        parameters, sets,
    },
    db::{self, idempotency::ClaimError, schedules::BackfillRow},
    input::{self, Node, Object, query_int, to_raw},
    timestamp::Timestamp,
    trigger::{
        BackfillRequest, Schedule,
        schedule::{BackfillBody, Next, Note, TIME_ZONES},
    },
};

/// Number of instants of a preview: the default, and the maximum.
const PREVIEWED: i64 = 10;
const MAX_PREVIEWED: i64 = 100;

/// Times of a schedule.
#[derive(Serialize, ToSchema)]
pub struct SchedulePreview {
    /// The times in plain words.
    #[schema(example = "every Monday at 09:00, Europe/Berlin")]
    words: String,
    /// Time zone.
    #[schema(example = "Europe/Berlin")]
    time_zone: String,
    /// Version of the time zone database.
    #[schema(example = "2025b")]
    time_zones: &'static str,
    /// The times, at most as many as requested.
    times: Vec<PreviewedTime>,
}

/// Time of a schedule.
#[derive(Serialize, ToSchema)]
pub struct PreviewedTime {
    /// The instant in UTC.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Local time with its offset from UTC.
    #[schema(value_type = String, format = DateTime, example = "2027-03-29T09:00:00+02:00")]
    local: String,
    /// `gap`: it stands for a local time that does not exist; `fold`: its local time exists twice; otherwise null.
    #[schema(example = "gap")]
    note: Option<&'static str>,
}

/// Preview a schedule
///
/// Shows when a schedule would fire, without storing anything. `cron` and `exclude` have an expression on each line.
#[utoipa::path(
    get, path = "/triggers/preview", tag = "triggers",
    params(
        ("cron" = Option<String>, Query, description = "Cron expressions, one on each line", example = "0 9 * * 1"),
        ("every" = Option<String>, Query, description = "Period as an ISO 8601 duration"),
        ("anchor" = Option<DateTime<Utc>>, Query, description = "An instant from which the periods count"),
        ("exclude" = Option<String>, Query, description = "Dates or cron expressions at which it does not fire, one on each line"),
        ("start_at" = Option<DateTime<Utc>>, Query, description = "It does not fire before this instant"),
        ("end_at" = Option<DateTime<Utc>>, Query, description = "It does not fire after this instant"),
        ("time_zone" = Option<String>, Query, description = "Time zone; the default is UTC", example = "Europe/Berlin"),
        ("dst_gap" = Option<String>, Query, description = "As in the configuration of a schedule"),
        ("dst_fold" = Option<String>, Query, description = "As in the configuration of a schedule"),
        ("from" = Option<DateTime<Utc>>, Query, description = "Instant from which on, inclusive; the default is now"),
        ("count" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Number of times; the default is 10"),
    ),
    responses((status = 200, body = SchedulePreview), (status = 422, body = ErrorBody)),
)]
pub async fn preview_schedule(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<SchedulePreview>, ApiError> {
    let mut config = serde_json::Map::new();
    for name in ["every", "anchor", "start_at", "end_at", "time_zone", "dst_gap", "dst_fold"] {
        if let Some(text) = query.text(name) {
            config.insert(name.to_owned(), json!(text));
        }
    }
    for name in ["cron", "exclude"] {
        if let Some(text) = query.text(name) {
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            config.insert(name.to_owned(), json!(lines));
        }
    }
    let config = to_raw(&config);
    let schedule = Object::body(&config).and_then(|_| Schedule::read(&Node::new("query", &config).object()?))?;
    let count = match query.text("count") {
        None => PREVIEWED,
        Some(text) => query_int("count", text, 1..=MAX_PREVIEWED)?,
    };
    let from = match query.text("from") {
        None => db::triggers::now(&app.pool).await?,
        Some(text) => input::query_datetime("from", text)?,
    };
    let work = move || {
        let mut times = Vec::new();
        let mut after = from - chrono::TimeDelta::microseconds(1);
        while times.len() < usize::try_from(count).unwrap_or_default()
            && let Next::At(at) = schedule.next(after)
        {
            let occurrence = schedule.occurrence(at);
            let note = occurrence.note.map(|note| match note {
                Note::Gap => "gap",
                Note::Fold => "fold",
            });
            times.push(PreviewedTime { at: at.into(), local: occurrence.local, note });
            after = at;
        }
        let time_zone = schedule.time_zone().to_owned();
        SchedulePreview { words: schedule.in_words(), time_zone, time_zones: TIME_ZONES, times }
    };
    Ok(Json(app.offload.run_soon(caller.organization(), work).await?))
}

/// Backfill of a schedule.
#[derive(Serialize, ToSchema)]
pub struct Backfill {
    /// Id of the job.
    id: Uuid,
    /// Id of the schedule.
    trigger_id: Uuid,
    /// State of the job.
    #[schema(value_type = sets::BackfillState)]
    state: String,
    /// Begin of the range, inclusive.
    #[schema(value_type = String, format = DateTime)]
    from: Timestamp,
    /// End of the range, exclusive.
    #[schema(value_type = String, format = DateTime)]
    to: Timestamp,
    /// `allow`, or `buffer_all`: one run after the other.
    #[schema(example = "buffer_all")]
    overlap: String,
    /// Whether runs are also started for instants that have a run.
    force: bool,
    /// Number of firings in the range.
    total: i32,
    /// Number of firings that are decided.
    done: i32,
    /// Number of runs that it has started.
    started: i32,
    /// Number of firings whose run existed.
    present: i32,
    /// Number of firings for which no run could be started.
    failed: i32,
    /// User who created it.
    created_by: String,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it was completed or stopped.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
}

impl From<BackfillRow> for Backfill {
    fn from(row: BackfillRow) -> Self {
        Self {
            id: row.id,
            trigger_id: row.trigger_id,
            state: row.state,
            from: row.from_at.into(),
            to: row.to_at.into(),
            overlap: row.overlap,
            force: row.force,
            total: row.total,
            done: row.started + row.present + row.failed,
            started: row.started,
            present: row.present,
            failed: row.failed,
            created_by: row.created_by,
            created_at: row.created_at.into(),
            ended_at: row.ended_at.map(Timestamp::from),
        }
    }
}

/// Backfills of a schedule.
#[derive(Serialize, ToSchema)]
pub struct Backfills {
    /// The latest 20, the latest first.
    items: Vec<Backfill>,
}

/// Firings that a backfill would have.
#[derive(Serialize, ToSchema)]
pub struct BackfillDryRun {
    /// True.
    dry_run: bool,
    /// Number of firings in the range.
    total: usize,
    /// The first of them, at most 10.
    #[schema(value_type = Vec<DateTime<Utc>>)]
    first: Vec<Timestamp>,
    /// The last one.
    #[schema(value_type = Option<String>, format = DateTime)]
    last: Option<Timestamp>,
}

impl From<BackfillError> for ApiError {
    fn from(error: BackfillError) -> Self {
        Self::not_saved(error, Self::trigger_not_found, |BackfillRefusal::TooMany| {
            Self::conflict("too_many_backfills", format!("At most {MAX_RUNNING} backfills of a trigger run at a time"))
        })
    }
}

/// `{trigger_id}` and `{backfill_id}` in the path.
pub struct BackfillPath(Uuid, Uuid);

impl<S: Send + Sync> FromRequestParts<S> for BackfillPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Ok(Path((trigger_id, id))) = path else { return Err(backfill_not_found()) };
        Ok(Self(input::path_uuid("trigger_id", &trigger_id)?, input::path_uuid("backfill_id", &id)?))
    }
}

fn backfill_not_found() -> ApiError {
    ApiError::not_found("backfill_not_found", "Backfill not found")
}

/// Backfill a schedule
///
/// Starts the runs of a range of time as a job in the background, in the order of their times. A run that exists is not
/// started again, so a repeat is harmless. Without `"dry_run": false`, only counts them.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/backfills", tag = "triggers",
    params(("trigger_id" = Uuid, Path), parameters::IdempotencyKey), request_body = BackfillBody,
    responses(
        (status = 200, description = "Dry run", body = BackfillDryRun),
        (status = 202, description = "The job was created", body = Backfill, headers(("Location" = String, description = "Its path"))),
        (status = 404, body = ErrorBody),
        (status = 409, description = "5 backfills of the schedule run already, or a request with this key is under way", body = ErrorBody),
        (status = 422, description = "Not valid, not a schedule, or more than 10 000 firings", body = ErrorBody),
    ),
)]
pub async fn backfill_trigger(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
    key: Key,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let request = BackfillRequest::parse(body.raw())?;
    let key = key.bound(&format!("backfill {id}"), &caller, body.fingerprint());
    let context = caller.context(&app).with_key(key.as_ref());
    let created = |row: BackfillRow| {
        let path = format!("/triggers/{id}/backfills/{}", row.id);
        etag::located(&app, &path, (StatusCode::ACCEPTED, Json(Backfill::from(row))))
    };
    match backfill::create_backfill(&app.pool, context, id, request).await {
        Ok(Planned { job: Some(row), .. }) => {
            tracing::info!(target: "api.routes.triggers", trigger_id = %id, backfill_id = %row.id, "Backfill created");
            Ok(created(row))
        }
        Ok(Planned { job: None, instants }) => {
            debug_assert!(instants.len() <= MAX_FIRINGS, "the action checks it");
            let first = instants.iter().take(10).copied().map(Timestamp::from).collect();
            let last = instants.last().copied().map(Timestamp::from);
            Ok(Json(BackfillDryRun { dry_run: true, total: instants.len(), first, last }).into_response())
        }
        Err(BackfillError::Key(ClaimError::Repeated(made))) => {
            let made = Uuid::try_parse(&made).map_err(|_| backfill_not_found())?;
            let row = db::schedules::backfill(&app.pool, id, made).await?.ok_or_else(backfill_not_found)?;
            Ok(replayed(created(row)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Backfill a schedule, by the other path
///
/// The same as `POST /triggers/{trigger_id}/backfills`.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/backfill", tag = "triggers",
    params(("trigger_id" = Uuid, Path), parameters::IdempotencyKey), request_body = BackfillBody,
    responses(
        (status = 200, description = "Dry run", body = BackfillDryRun),
        (status = 202, description = "The job was created", body = Backfill, headers(("Location" = String, description = "Its path"))),
        (status = 404, body = ErrorBody),
        (status = 409, description = "5 backfills of the schedule run already, or a request with this key is under way", body = ErrorBody),
        (status = 422, description = "Not valid, not a schedule, or more than 10 000 firings", body = ErrorBody),
    ),
)]
pub async fn backfill_trigger_once(
    app: State<App>,
    caller: Caller,
    id: TriggerId,
    key: Key,
    body: JsonBody,
) -> Result<Response, ApiError> {
    backfill_trigger(app, caller, id, key, body).await
}

/// List backfills of a schedule
///
/// The latest 20, the latest first.
#[utoipa::path(
    get, path = "/triggers/{trigger_id}/backfills", tag = "triggers", params(("trigger_id" = Uuid, Path)),
    responses((status = 200, body = Backfills), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn list_backfills(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
) -> Result<Json<Backfills>, ApiError> {
    find(&app, &caller, id).await?;
    let rows = db::schedules::backfills(&app.pool, id).await?;
    Ok(Json(Backfills { items: rows.into_iter().map(Backfill::from).collect() }))
}

/// Get a backfill
///
/// With its progress.
#[utoipa::path(
    get, path = "/triggers/{trigger_id}/backfills/{backfill_id}", tag = "triggers",
    params(("trigger_id" = Uuid, Path), ("backfill_id" = Uuid, Path)),
    responses((status = 200, body = Backfill), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_backfill(
    State(app): State<App>,
    caller: Caller,
    BackfillPath(trigger_id, id): BackfillPath,
) -> Result<Json<Backfill>, ApiError> {
    find(&app, &caller, trigger_id).await?;
    let row = db::schedules::backfill(&app.pool, trigger_id, id).await?.ok_or_else(backfill_not_found)?;
    Ok(Json(row.into()))
}

/// Stop a backfill
///
/// It starts no further runs; those that it has started continue. Stopping one that has ended changes nothing.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/backfills/{backfill_id}/stop", tag = "triggers",
    params(("trigger_id" = Uuid, Path), ("backfill_id" = Uuid, Path)),
    responses((status = 200, body = Backfill), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn stop_backfill(
    State(app): State<App>,
    caller: Caller,
    BackfillPath(trigger_id, id): BackfillPath,
) -> Result<Json<Backfill>, ApiError> {
    let row = backfill::stop_backfill(&app.pool, caller.context(&app), trigger_id, id).await;
    let row = row.map_err(|error| match error {
        BackfillError::NotFound => backfill_not_found(),
        error => error.into(),
    })?;
    tracing::info!(target: "api.routes.triggers", %trigger_id, backfill_id = %id, "Backfill stopped");
    Ok(Json(row.into()))
}
