//! The steps of a run.

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
/// All attempts of the run's steps in the order of their begin. What a client has not taken yet is not read, so that an
/// answer may be of any length; one whose transfer breaks is not whole. With `page_size` or `cursor` a part of them, and
/// `Link` names the next.
#[utoipa::path(
    get, path = "/runs/{run_id}/steps", tag = "runs",
    params(
        ("run_id" = String, Path),
        ("page" = Option<i64>, Query, minimum = 1, description = "By number, as far as the 10 000th attempt"),
        ("page_size" = Option<i64>, Query, minimum = 1, description = "So many attempts; all without it"),
        ("cursor" = Option<String>, Query, description = "Instead of `page`: that of `Link` of an answer to the same query"),
    ),
    responses(
        (status = 200, body = Vec<Step>, headers(("Link" = String, description = "With `rel=\"next\"` the next part, if there is one"))),
        (status = 400, description = "The cursor is not one of this query", body = ErrorBody),
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
