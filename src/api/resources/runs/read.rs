//! Handlers for reading runs.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::header;

use super::wire::{Run, RunDetail, RunPage};
use crate::{
    access::OrganizationId,
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        extract::{Query, RunId},
        page, parameters, sets,
        streamed::JSON,
    },
    db::{
        self,
        runs::{Filter, Sort},
    },
    input::FieldError,
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
        ("trigger_id" = Option<uuid::Uuid>, Query, description = "The runs that this trigger started"),
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
    // A cursor is bound to the parameters in this order.
    let filter = filter(&mut parameters, caller.organization())?;
    let filter = Filter {
        sort: Sort::named(parameters.text("sort_by").unwrap_or_default()),
        ascending: parameters.is_ascending(),
        ..filter
    };
    let list = Arc::new(ListRequest::read(&app, &parameters, list_name(filter.sort)).await?);
    let read = {
        let (reads, filter, list) = (app.reads.clone(), Arc::new(filter), Arc::clone(&list));
        move || {
            let (reads, filter, list) = (reads.clone(), Arc::clone(&filter), Arc::clone(&list));
            async move {
                let (filter, page) = (&*filter, &list.page);
                reads.read(|mut conn| async move { db::runs::list(&mut conn, filter, page).await }).await
            }
        }
    };
    let shared = {
        let (read, list) = (read.clone(), Arc::clone(&list));
        move || {
            let (page, list) = (read(), Arc::clone(&list));
            async move { Ok(page::whole(&list, db::bounded(page).await.map_err(Arc::new)?, Run::from)) }
        }
    };
    match app.run_pages.get(list.key(caller.organization()), shared).await {
        Some(Ok(Some(text))) => Ok(([(header::CONTENT_TYPE, JSON)], text).into_response()),
        Some(Ok(None)) => Ok(page::answer(app, caller, &list, read().await?, Run::from)),
        Some(Err(error)) => Err(error.into()),
        None => Err(ApiError::internal()),
    }
}

fn trigger_id(parameters: &mut ListQuery<'_>) -> Result<Option<uuid::Uuid>, ApiError> {
    let Some(text) = parameters.text("trigger_id") else { return Ok(None) };
    let message = "Input should be a valid UUID";
    let id = uuid::Uuid::try_parse(text).map_err(|_| FieldError::new("query.trigger_id", "uuid_parsing", message))?;
    Ok(Some(id))
}

/// Filter by the parameters of a list, the latest run first.
pub(super) fn filter(parameters: &mut ListQuery<'_>, organization: &OrganizationId) -> Result<Filter, ApiError> {
    Ok(Filter {
        organization: organization.clone(),
        statuses: parameters.several("status"),
        workflow_id: parameters.text("workflow_id").map(str::to_owned),
        workflow_definition_id: parameters.text("workflow_definition_id").map(str::to_owned),
        name: parameters.text("name").map(str::to_owned),
        name_prefix: parameters.text("name_prefix").map(str::to_owned),
        triggered_by: parameters.text("triggered_by").map(str::to_owned),
        trigger_id: trigger_id(parameters)?,
        parent_run_id: parameters.text("parent_run_id").map(str::to_owned),
        context: None,
        is_waiting: None,
        is_paused: None,
        created: parameters.span("created")?,
        updated: parameters.span("updated")?,
        sort: Sort::CreatedAt,
        ascending: false,
    })
}

/// Name of the list for cursors. Cursors of two orders contain a segment, unlike those of earlier releases.
fn list_name(sort: Sort) -> &'static str {
    match sort {
        Sort::CreatedAt | Sort::UpdatedAt => "runs",
        Sort::CompletedAt | Sort::Status => "runs in segments",
    }
}

/// Get a run
///
/// Includes its output, once it is completed, and why it waits, if the flow control of its workflow holds it.
#[utoipa::path(
    get, path = "/runs/{run_id}", tag = "runs", params(("run_id" = String, Path)),
    responses((status = 200, body = RunDetail), (status = 404, body = ErrorBody)),
)]
pub async fn get_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<Json<RunDetail>, ApiError> {
    let run = app.runs.find(caller.organization(), &run_id).await?.ok_or_else(ApiError::run_not_found)?;
    let run = RunDetail::from(*run);
    if !run.is_held() {
        return Ok(Json(run));
    }
    let waiting = db::flow::waiting(&app.pool, &run_id).await?;
    Ok(Json(run.waiting(waiting)))
}
