//! Handlers for creating, changing and deleting workflows.

use axum::{Json, extract::State, response::Response};
use http::StatusCode;

use super::wire::{NewWorkflowBody, Workflow, WorkflowPatchBody};
use crate::{
    actions::save_workflow::{self, SaveWorkflowError, WorkflowRefusal},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        etag::{self, IfMatch},
        extract::{JsonBody, WorkflowId},
        idempotency::{Key, replayed},
        page::Message,
        parameters,
    },
    db::{self, idempotency::ClaimError, workflows::WorkflowRow},
    input,
    workflow::{NewWorkflow, WorkflowPatch},
};

/// Converts an error of saving. `unknown_agent` is the status for an agent that does not exist; it differs between
/// the routes.
#[must_use]
pub fn save_error(error: SaveWorkflowError, unknown_agent: StatusCode) -> ApiError {
    ApiError::not_saved(error, ApiError::workflow_not_found, |refusal| match refusal {
        WorkflowRefusal::AgentNotFound(name) => {
            ApiError::new(unknown_agent, "agent_not_found", format!("Agent {name:?} not found"))
        }
        WorkflowRefusal::AgentNotActive { name, status } => {
            ApiError::bad_request("agent_not_active", format!("Agent {name:?} is {status}, not active"))
        }
        WorkflowRefusal::NotBoundTo { kind, name } => {
            let name = input::shorten(&name);
            let detail = format!("The API key is bound to workflows, none of which calls the {kind} {name:?}");
            ApiError::new(StatusCode::FORBIDDEN, "key_is_bound", detail)
        }
        WorkflowRefusal::TooLarge => ApiError::plan_too_large(),
    })
}

/// Answer with a new workflow.
pub async fn created(app: &App, row: WorkflowRow) -> Response {
    let (path, revision) = (format!("/workflows/{}", row.id), row.revision());
    etag::created(app, &path, &revision, Workflow::written(app, row).await)
}

/// Answer with the written workflow and its entity tag.
pub async fn tagged(app: &App, row: WorkflowRow) -> Response {
    let revision = row.revision();
    etag::tagged(&revision, Json(Workflow::written(app, row).await))
}

/// Create a workflow
///
/// Stores a definition, as the next version of its name.
#[utoipa::path(
    post, path = "/workflows", tag = "workflows",
    request_body(content = NewWorkflowBody, examples(
        ("wait" = (summary = "Without agents", value = json!({
            "name": "hello", "start_step": "pause",
            "steps": {"pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}}},
        }))),
        ("agent" = (summary = "With the agent of the example of `POST /agents`", value = json!({
            "name": "summarise", "start_step": "summarise",
            "steps": {"summarise": {"id": "summarise", "type": "agent", "agent_name": "summariser",
                "input_mapping": {"text": "${workflow.input.text}"}}},
            "input_schema": {"type": "object", "required": ["text"]},
        }))),
    )),
    params(parameters::IdempotencyKey),
    responses(
        (status = 201, body = Workflow, headers(("ETag" = String, description = "Entity tag of this version"), ("Location" = String, description = "Its path"))),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 400, description = "A step names an agent that does not exist or is not active", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_workflow(
    State(app): State<App>,
    caller: Caller,
    key: Key,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let new = body.read(&app, &caller, NewWorkflow::parse).await??;
    let key = key.bound("create workflow", &caller, body.fingerprint());
    let context = caller.context(&app).with_key(key.as_ref());
    match save_workflow::create_workflow(&app.pool, context, new).await {
        Ok(row) => {
            tracing::info!(target: "api.routes.workflows", workflow_id = %row.id, "Workflow created");
            Ok(created(&app, row).await)
        }
        Err(SaveWorkflowError::Key(ClaimError::Repeated(id))) => {
            let id = uuid::Uuid::try_parse(&id).map_err(|_| ApiError::workflow_not_found())?;
            let row = db::workflows::find(&app.pool, caller.organization(), id).await?;
            let row = row.ok_or_else(ApiError::workflow_not_found)?;
            Ok(replayed(created(&app, row).await))
        }
        Err(error) => Err(save_error(error, StatusCode::BAD_REQUEST)),
    }
}

/// Update a workflow
///
/// Changes the given members. Changed steps create a new version under the same id; the previous content remains as a
/// version of its own.
#[utoipa::path(
    put, path = "/workflows/{workflow_id}", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), parameters::IfMatch),
    request_body = WorkflowPatchBody,
    responses(
        (status = 200, body = Workflow, headers(("ETag" = String, description = "Entity tag of this version"))),
        (status = 412, description = "The workflow has changed since it was read", body = ErrorBody),
        (status = 400, description = "A step names an agent that is not active", body = ErrorBody),
        (status = 404, description = "No such workflow, or a step names an agent that does not exist", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn update_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let patch = body.read(&app, &caller, WorkflowPatch::parse).await??;
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let row = save_workflow::update_workflow(&app.pool, context, id, patch)
        .await
        .map_err(|error| save_error(error, StatusCode::NOT_FOUND))?;
    tracing::info!(target: "api.routes.workflows", workflow_id = %id, "Workflow updated");
    Ok(tagged(&app, row).await)
}

/// Delete a version of a workflow
///
/// Marks this version as deleted; the others stay.
#[utoipa::path(
    delete, path = "/workflows/{workflow_id}", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), parameters::IfMatch),
    responses((status = 200, body = Message), (status = 412, description = "The workflow has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn delete_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    IfMatch(if_match): IfMatch,
) -> Result<Json<Message>, ApiError> {
    save_workflow::delete_workflow(&app.pool, caller.context(&app).with_if_match(if_match.as_ref()), id)
        .await
        .map_err(|error| save_error(error, StatusCode::NOT_FOUND))?;
    tracing::info!(target: "api.routes.workflows", workflow_id = %id, "Workflow deleted");
    Ok(Json(Message::new("Workflow deleted")))
}
