//! Handlers for pausing and resuming a run.

use axum::{Json, extract::State};

use super::wire::RunDetail;
use crate::{
    actions::pause_run::{self, PauseRunError},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::RunId,
    },
};

/// Pause a run
///
/// The run begins no further step until it is resumed; running steps are finished. Pausing a paused run changes
/// nothing. Sub-workflows are runs of their own, and continue.
#[utoipa::path(
    post, path = "/runs/{run_id}/pause", tag = "runs", params(("run_id" = String, Path)),
    responses(
        (status = 200, body = RunDetail), (status = 400, description = "The run has ended", body = ErrorBody),
        (status = 404, body = ErrorBody),
    ),
)]
pub async fn pause_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<Json<RunDetail>, ApiError> {
    set_paused(&app, &caller, &run_id, true).await
}

/// Resume a run
///
/// Resumes a paused run. Resuming a run that is not paused changes nothing.
#[utoipa::path(
    post, path = "/runs/{run_id}/resume", tag = "runs", params(("run_id" = String, Path)),
    responses(
        (status = 200, body = RunDetail), (status = 400, description = "The run has ended", body = ErrorBody),
        (status = 404, body = ErrorBody),
    ),
)]
pub async fn resume_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<Json<RunDetail>, ApiError> {
    set_paused(&app, &caller, &run_id, false).await
}

/// Pauses or resumes the run.
pub(super) async fn set_paused(
    app: &App,
    caller: &Caller,
    run_id: &str,
    wanted: bool,
) -> Result<Json<RunDetail>, ApiError> {
    let row =
        pause_run::set_paused(&app.pool, caller.context(app), run_id, wanted).await.map_err(|error| match error {
            PauseRunError::NotFound => ApiError::run_not_found(),
            PauseRunError::WrongState(status) => {
                ApiError::run_wrong_state(&status, if wanted { "paused" } else { "resumed" })
            }
            PauseRunError::Db(error) => error.into(),
        })?;
    tracing::info!(target: "api.routes.runs", run_id, "Run {}", if wanted { "paused" } else { "resumed" });
    Ok(Json(RunDetail::open(row.into())))
}
