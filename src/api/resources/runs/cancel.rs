//! Handler for cancelling a run.

use axum::{Json, extract::State};

use super::wire::RunDetail;
use crate::{
    actions::cancel_run::{self, CancelRunError},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::{OptionalJsonBody, RunId},
    },
    input::{Object, request_object},
};

/// Length range of a cancellation's reason.
const REASON_CHARS: std::ops::RangeInclusive<usize> = 0..=500;

request_object! {
    /// Optional body of a cancel request.
    #[schema(as = CancelRequest)]
    pub struct CancelBody {
        /// Reason, which is stored in the run's `error_message`.
        #[schema(max_length = 500, example = "started by mistake")]
        reason: Option<String> = nullable(|node| node.string(REASON_CHARS)),
    }
}

/// Cancel a run
///
/// Cancels a queued or running run, and all runs inside of it. After the answer they are all `CANCELLED`, and none
/// begins another step. Running calls of agents are abandoned within about a second. It can be repeated after a 503.
#[utoipa::path(
    post, path = "/runs/{run_id}/cancel", tag = "runs", params(("run_id" = String, Path)),
    request_body(content = Option<CancelBody>),
    responses(
        (status = 200, body = RunDetail), (status = 400, description = "The run has ended already", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn cancel_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Json<RunDetail>, ApiError> {
    let reason = match &body {
        Some(body) => CancelBody::read(&Object::body(body)?)?.reason,
        None => None,
    };
    let context = caller.context(&app);
    let row = cancel_run::cancel_run(&app.pool, &app.relay, context, &run_id, reason.as_deref()).await?;
    tracing::info!(target: "api.routes.runs", run_id, "Run cancelled");
    Ok(Json(RunDetail::open(row.into())))
}

impl From<CancelRunError> for ApiError {
    fn from(error: CancelRunError) -> Self {
        match error {
            CancelRunError::NotFound => Self::run_not_found(),
            CancelRunError::WrongState(status) => Self::run_wrong_state(&status, "cancelled"),
            CancelRunError::Db(error) => error.into(),
        }
    }
}
