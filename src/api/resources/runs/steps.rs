//! Handler for the steps of a run.

use axum::{extract::State, response::Response};

use super::wire::Step;
use crate::api::{
    resources::step_stream,
    vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::{Query, RunId},
    },
};

/// List the step attempts of a run
///
/// The first 100 000 attempts of the run's steps in the order of their begin. The answer is read while the client takes
/// it; if the transfer breaks, it is incomplete. With `page_size` or `cursor` only a page is returned. If there are more
/// attempts, `Link` names the next page. With `data=false` inputs and outputs are left out, so that long lists stay small;
/// `id` reads those of an attempt.
#[utoipa::path(
    get, path = "/runs/{run_id}/steps", tag = "runs",
    params(
        ("run_id" = String, Path),
        ("data" = Option<bool>, Query, description = "Whether with inputs and outputs (the default)"),
        ("id" = Option<Vec<String>>, Query, explode = false, description = "Any of these attempts"),
        ("page" = Option<i64>, Query, minimum = 1, description = "Number of the page, up to the 10 000th attempt"),
        ("page_size" = Option<i64>, Query, minimum = 1, description = "Number of attempts on a page; without it, 100 000"),
        ("cursor" = Option<String>, Query, description = "Replaces `page`: the cursor in `Link` of an answer to the same query"),
    ),
    responses(
        (status = 200, body = Vec<Step>, headers(("Link" = String, description = "With `rel=\"next\"` the next page, if there is one"))),
        (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_steps(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
    query: Query,
) -> Result<Response, ApiError> {
    step_stream::answer(app, caller, run_id, &query).await
}
