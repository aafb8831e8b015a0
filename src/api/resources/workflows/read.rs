//! Handlers for reading workflows and their versions.

use axum::{extract::State, response::Response};

use super::wire::{Workflow, WorkflowPage};
use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        etag::IfNoneMatch,
        extract::{Query, WorkflowId},
        page, parameters, sets,
    },
    db::{self, workflows::Filter},
    input::FieldError,
};

/// List workflows
///
/// Every version is an entry of its own, unless `versions` is `newest`: then every name is one, and the other filters are about
/// its newest version. A workflow whose newest version is deleted or inactive is not active, whatever the older ones are.
#[utoipa::path(
    get, path = "/workflows", tag = "workflows",
    params(
        parameters::Paging,
        ("status" = Option<Vec<sets::WorkflowStatus>>, Query, explode = false, description = "Any of these"),
        ("name" = Option<String>, Query, description = "Exactly this name"),
        ("name_prefix" = Option<String>, Query, description = "The beginning of the name"),
        ("versions" = Option<sets::ListedVersions>, Query, description = "All versions (the default), or the newest one of each name"),
        parameters::Created,
        parameters::Updated,
        ("sort_by" = Option<sets::WorkflowSortKey>, Query, description = "Absent is `created_at`"),
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default)"),
    ),
    responses(
        (status = 200, body = WorkflowPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_workflows(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let filter = Filter {
        organization: caller.organization(),
        statuses: parameters.several("status"),
        name: parameters.text("name"),
        name_prefix: parameters.text("name_prefix"),
        created: parameters.span("created")?,
        updated: parameters.span("updated")?,
        sort_by: parameters.text("sort_by").unwrap_or_default(),
        ascending: parameters.is_ascending(),
        is_newest: is_newest(&mut parameters)?,
    };
    let list = ListRequest::read(&app, &parameters, "workflows").await?;
    let (filter, page) = (&filter, &list.page);
    let page = app.reads.read(|mut conn| async move { db::workflows::list(&mut conn, filter, page).await }).await?;
    Ok(page::answer(app, caller, &list, page, Workflow::from))
}

fn is_newest(parameters: &mut ListQuery<'_>) -> Result<bool, FieldError> {
    match parameters.text("versions") {
        None | Some("all") => Ok(false),
        Some("newest") => Ok(true),
        Some(_) => Err(FieldError::new("query.versions", "enum", "Input should be 'all' or 'newest'")),
    }
}

/// Get a workflow
///
/// Deleted versions are included.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), parameters::IfNoneMatch),
    responses((status = 200, body = Workflow, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 304), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let row =
        db::workflows::find(&app.pool, caller.organization(), id).await?.ok_or_else(ApiError::workflow_not_found)?;
    let revision = row.revision();
    Ok(if_none_match.answer(&revision, Workflow::watched(&app, row).await?))
}

/// List the versions of a workflow
///
/// All versions of the workflow's name, the newest first.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}/versions", tag = "workflows",
    params(
        ("workflow_id" = uuid::Uuid, Path),
        parameters::Paging,
    ),
    responses(
        (status = 200, body = WorkflowPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_workflow_versions(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    query: Query,
) -> Result<Response, ApiError> {
    let list = ListRequest::read(&app, &ListQuery::new(&query), &format!("versions of {id}")).await?;
    let name =
        db::workflows::name(&app.pool, caller.organization(), id).await?.ok_or_else(ApiError::workflow_not_found)?;
    let filter = Filter::versions(caller.organization(), &name);
    let (filter, page) = (&filter, &list.page);
    let page = app.reads.read(|mut conn| async move { db::workflows::list(&mut conn, filter, page).await }).await?;
    Ok(page::answer(app, caller, &list, page, Workflow::from))
}
