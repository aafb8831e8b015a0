//! Handlers for reading runs.

use axum::{Json, extract::State, response::Response};

use super::wire::{Run, RunDetail, RunPage};
use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        extract::{Query, RunId},
        page, parameters, sets,
    },
    db::{self, runs::Filter},
};

/// List runs
///
/// The latest first, unless another order is requested.
#[utoipa::path(
    get, path = "/runs", tag = "runs",
    params(
        parameters::Paging,
        ("status" = Option<Vec<sets::RunStatus>>, Query, explode = false, description = "Any of these"),
        ("workflow_id" = Option<String>, Query, description = "Exactly this `workflow_id`"),
        ("workflow_definition_id" = Option<String>, Query, description = "Exactly this `workflow_definition_id`"),
        ("name" = Option<String>, Query, description = "Exactly this `workflow_name`"),
        ("name_prefix" = Option<String>, Query, description = "The beginning of `workflow_name`"),
        ("triggered_by" = Option<String>, Query, description = "Exactly this `triggered_by`"),
        ("parent_run_id" = Option<String>, Query, description = "The runs that are steps of this run"),
        parameters::Created,
        parameters::Updated,
        ("sort_by" = Option<sets::RunSortKey>, Query, description = "Absent is `created_at`"),
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default)"),
    ),
    responses(
        (status = 200, body = RunPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_runs(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let filter = Filter {
        organization: caller.organization(),
        statuses: parameters.several("status"),
        workflow_id: parameters.text("workflow_id"),
        workflow_definition_id: parameters.text("workflow_definition_id"),
        name: parameters.text("name"),
        name_prefix: parameters.text("name_prefix"),
        triggered_by: parameters.text("triggered_by"),
        parent_run_id: parameters.text("parent_run_id"),
        created: parameters.span("created")?,
        updated: parameters.span("updated")?,
        sort_by: parameters.text("sort_by").unwrap_or_default(),
        ascending: parameters.is_ascending(),
    };
    let list = ListRequest::read(&app, &parameters, "runs").await?;
    let page = db::runs::list(&mut *app.pool.acquire().await?, &filter, &list.page).await?;
    Ok(page::answer(app, caller, &list, page, Run::from))
}

/// Get a run
///
/// Includes its output, once it is completed.
#[utoipa::path(
    get, path = "/runs/{run_id}", tag = "runs", params(("run_id" = String, Path)),
    responses((status = 200, body = RunDetail), (status = 404, body = ErrorBody)),
)]
pub async fn get_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<Json<RunDetail>, ApiError> {
    let row = db::runs::find(&app.pool, caller.organization(), &run_id).await?.ok_or_else(ApiError::run_not_found)?;
    Ok(Json(RunDetail::read(&app, row).await?))
}
