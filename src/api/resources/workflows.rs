//! `/workflows`.

use std::sync::Arc;

use axum::{Json, extract::State, response::Response};
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    definition::{PlanBody, StepsBody},
    runs::{self, Run, RunDetail},
};
use crate::{
    actions::{
        save_workflow::{self, SaveWorkflowError},
        start_run::{self, Outcome, Request, StartRunError, Starter},
    },
    api::{
        App,
        gate::auth::Caller,
        vocabulary::{
            cursor::Asked,
            error::{ApiError, ErrorBody, FieldErrorBody},
            etag::{self, IfMatch, IfNoneMatch},
            extract::{JsonBody, Key, Query, WorkflowId},
            page::{Message, Page},
            parameters,
            prefer::{self, Wait},
            sets,
        },
    },
    db::{
        self,
        idempotency::ClaimError,
        workflows::{Filter, VERSION_ORDER, WorkflowRow},
    },
    input::{self, FieldError, Node, Object},
    kafka::message::DEFAULT_PRIORITY,
    telemetry,
    timestamp::Timestamp,
    workflow::{Content, NewWorkflow, WorkflowPatch},
};

/// The parameters that a cursor of the list is bound to.
const FILTERS: [&str; 9] = [
    "status",
    "name",
    "name_prefix",
    "created_after",
    "created_before",
    "updated_after",
    "updated_before",
    "sort_by",
    "sort_order",
];

/// A part of the list of workflows.
pub type WorkflowPage = Page<Workflow>;

/// A version of a workflow.
#[derive(Serialize, ToSchema)]
pub struct Workflow {
    /// Of this version's row; an update keeps the id for the newest content.
    id: uuid::Uuid,
    /// Shared by all versions.
    #[schema(example = "summarise-and-translate")]
    name: String,
    /// For people.
    description: Option<String>,
    /// From 1, unique for the name.
    version: i32,
    /// What it does.
    #[schema(value_type = PlanBody)]
    workflow_data: Box<RawValue>,
    /// JSON Schema that the input of runs has to satisfy; null takes any object.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_schema: Option<Box<RawValue>>,
    /// Whether it may be executed.
    #[schema(value_type = sets::WorkflowStatus)]
    status: String,
    /// Creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Who created it.
    created_by: Option<String>,
    /// Who changed it last.
    updated_by: Option<String>,
    /// Only in the answer to a write, and only if there are some: what is allowed and yet hardly meant, as
    /// `POST /workflows/validate` tells it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<FieldErrorBody>>)]
    warnings: Vec<FieldError>,
}

impl Workflow {
    /// With the warnings about what was written.
    fn written(row: WorkflowRow) -> Self {
        let warnings = Content::of_plan(&row.workflow_data.0).map(|content| content.warnings()).unwrap_or_default();
        Self { warnings, ..row.into() }
    }
}

impl From<WorkflowRow> for Workflow {
    fn from(row: WorkflowRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            description: row.description,
            version: row.version,
            workflow_data: row.workflow_data.0,
            input_schema: row.input_schema.map(|schema| schema.0),
            status: row.status,
            created_at: row.created_at,
            updated_at: row.updated_at,
            created_by: row.created_by,
            updated_by: row.updated_by,
            warnings: Vec::new(),
        }
    }
}

/// A definition of a workflow, as it is created, exported and imported.
#[derive(ToSchema)]
#[schema(as = WorkflowDefinition, example = json!({
    "name": "hello", "start_step": "pause",
    "steps": {"pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}}},
}))]
#[expect(dead_code, reason = "describes what `workflow::NewWorkflow::parse` reads")]
pub struct NewWorkflowBody {
    /// A name that exists already makes its next version.
    #[schema(min_length = 1, max_length = 255, example = "summarise-and-translate")]
    name: String,
    /// For people.
    description: Option<String>,
    /// The id of the first step.
    #[schema(min_length = 1, example = "summarise")]
    start_step: String,
    /// The steps by id.
    steps: StepsBody,
    /// JSON Schema (draft 2020-12 unless `$schema` says otherwise) that the input of runs has to satisfy. References
    /// lead only to places in it and not in circles; patterns have no look-around.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"type": "object", "required": ["text"]}))]
    input_schema: Option<()>,
}

/// The body of an update request; what is absent stays.
#[derive(ToSchema)]
#[schema(as = UpdateWorkflowRequest, example = json!({"description": "Sums a text up and translates it."}))]
#[expect(dead_code, reason = "describes what `workflow::WorkflowPatch::parse` reads")]
pub struct WorkflowPatchBody {
    /// Null clears it.
    description: Option<String>,
    /// The id of the first step; makes a new version.
    start_step: Option<String>,
    /// All steps by id; makes a new version.
    steps: Option<StepsBody>,
    /// Another one makes a new version; null takes it away.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_schema: Option<()>,
    /// Whether it may be executed.
    #[schema(required = false)]
    status: sets::SettableStatus,
}

/// The body of an execute request.
#[derive(ToSchema)]
#[schema(as = ExecuteRequest, example = json!({"input_data": {"text": "hello"}}))]
#[expect(dead_code, reason = "describes what `execute_workflow` reads")]
pub struct ExecuteBody {
    /// Any JSON object; steps refer to it as `${workflow.input.…}`.
    #[schema(value_type = HashMap<String, Value>, example = json!({"text": "hello"}))]
    input_data: (),
    /// Of the runs that wait for an executor, those of a higher priority are first; absent is 5.
    #[schema(minimum = 0, maximum = 9)]
    priority: Option<i16>,
}

/// There is no such workflow.
#[must_use]
pub fn not_found() -> ApiError {
    ApiError::not_found("workflow_not_found", "Workflow not found")
}

fn too_large() -> ApiError {
    let detail = "Definition and input together have to fit into a Kafka message of 1 MiB";
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
}

/// `unknown_agent`: the status for an agent that does not exist, which differs between the routes.
pub(super) fn save_error(error: SaveWorkflowError, unknown_agent: StatusCode) -> ApiError {
    match error {
        SaveWorkflowError::NotFound => not_found(),
        SaveWorkflowError::AgentNotFound(name) => {
            ApiError::new(unknown_agent, "agent_not_found", format!("Agent {name:?} not found"))
        }
        SaveWorkflowError::AgentNotActive { name, status } => {
            ApiError::bad_request("agent_not_active", format!("Agent {name:?} is {status}, not active"))
        }
        SaveWorkflowError::NotBoundTo { kind, name } => {
            let detail = format!(
                "The API key is bound to workflows, none of which calls the {kind} {:?}",
                input::shorten(&name)
            );
            ApiError::new(StatusCode::FORBIDDEN, "key_is_bound", detail)
        }
        SaveWorkflowError::TooLarge => too_large(),
        SaveWorkflowError::Invalid(errors) => errors.into(),
        SaveWorkflowError::Stale(stale) => stale.into(),
        SaveWorkflowError::Key(error) => error.into(),
        SaveWorkflowError::Quota(exceeded) => exceeded.into(),
        SaveWorkflowError::Db(error) => error.into(),
    }
}

/// List workflows
///
/// Every version is an entry of its own.
#[utoipa::path(
    get, path = "/workflows", tag = "workflows",
    params(
        parameters::Paging,
        ("status" = Option<Vec<sets::WorkflowStatus>>, Query, explode = false, description = "Any of these"),
        ("name" = Option<String>, Query, description = "Exactly this name"),
        ("name_prefix" = Option<String>, Query, description = "The beginning of the name"),
        parameters::Created,
        parameters::Updated,
        ("sort_by" = Option<sets::WorkflowSortKey>, Query, description = "Absent is `created_at`"),
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default)"),
    ),
    responses(
        (status = 200, body = WorkflowPage), (status = 400, description = "The cursor is not one of this query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_workflows(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<Page<Workflow>>, ApiError> {
    let filter = Filter {
        organization: caller.organization(),
        statuses: query.several("status"),
        name: query.text("name"),
        name_prefix: query.text("name_prefix"),
        created: query.span("created")?,
        updated: query.span("updated")?,
        sort_by: query.text("sort_by").unwrap_or_default(),
        ascending: query.is_ascending(),
    };
    let asked = Asked::read(&app, &query, filter.order(), "workflows", &FILTERS).await?;
    let mut connection = app.pool.acquire().await?;
    let part = db::workflows::list(&mut connection, &filter, &asked.cut).await?;
    Ok(Json(Page::new(part, &asked)))
}

/// A workflow that was just made.
pub(super) fn created(app: &App, row: WorkflowRow) -> Response {
    etag::created(app, &format!("/workflows/{}", row.id), &row.revision(), Workflow::written(row))
}

/// The workflow that was written, with its entity tag.
pub(super) fn tagged(row: WorkflowRow) -> Response {
    etag::tagged(&row.revision(), Json(Workflow::written(row)))
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
        (status = 201, body = Workflow, headers(("ETag" = String, description = "The state that is shown"), ("Location" = String, description = "Its path"))),
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
    let new = app.read(&caller, body.raw(), NewWorkflow::parse).await??;
    let key = key.bound("create workflow", &caller, body.fingerprint());
    let context = app.context(&caller).with_key(key.as_ref());
    match save_workflow::create_workflow(&app.pool, context, new).await {
        Ok(row) => {
            tracing::info!(target: "api.routes.workflows", workflow_id = %row.id, "Workflow created");
            Ok(created(&app, row))
        }
        Err(SaveWorkflowError::Key(ClaimError::Repeated(id))) => {
            let id = uuid::Uuid::try_parse(&id).map_err(|_| not_found())?;
            Ok(runs::replayed(created(
                &app,
                db::workflows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?,
            )))
        }
        Err(error) => Err(save_error(error, StatusCode::BAD_REQUEST)),
    }
}

/// Get a workflow
///
/// Deleted ones too.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), parameters::IfNoneMatch),
    responses((status = 200, body = Workflow, headers(("ETag" = String, description = "The state that is shown"))), (status = 304), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let row = db::workflows::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    Ok(if_none_match.answer(&row.revision(), Workflow::from(row)))
}

/// Update a workflow
///
/// Changes the members that are given. New steps make a new version under the same id; the former content stays as
/// a version of its own.
#[utoipa::path(
    put, path = "/workflows/{workflow_id}", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), parameters::IfMatch),
    request_body = WorkflowPatchBody,
    responses(
        (status = 200, body = Workflow, headers(("ETag" = String, description = "The state that is shown"))),
        (status = 412, description = "It has changed since it was read", body = ErrorBody),
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
    let patch = app.read(&caller, body.raw(), WorkflowPatch::parse).await??;
    let context = app.context(&caller).with_if_match(if_match.as_ref());
    let row = save_workflow::update_workflow(&app.pool, context, id, patch)
        .await
        .map_err(|error| save_error(error, StatusCode::NOT_FOUND))?;
    tracing::info!(target: "api.routes.workflows", workflow_id = %id, "Workflow updated");
    Ok(tagged(row))
}

/// Delete a version of a workflow
///
/// Marks this version as deleted; the others stay.
#[utoipa::path(
    delete, path = "/workflows/{workflow_id}", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), parameters::IfMatch),
    responses((status = 200, body = Message), (status = 412, description = "It has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn delete_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    IfMatch(if_match): IfMatch,
) -> Result<Json<Message>, ApiError> {
    save_workflow::delete_workflow(&app.pool, app.context(&caller).with_if_match(if_match.as_ref()), id)
        .await
        .map_err(|error| save_error(error, StatusCode::NOT_FOUND))?;
    tracing::info!(target: "api.routes.workflows", workflow_id = %id, "Workflow deleted");
    Ok(Json(Message::new("Workflow deleted")))
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
        (status = 200, body = WorkflowPage), (status = 400, description = "The cursor is not one of this query", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_workflow_versions(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    query: Query,
) -> Result<Json<Page<Workflow>>, ApiError> {
    let asked = Asked::read(&app, &query, VERSION_ORDER, &format!("versions of {id}"), &[]).await?;
    let mut connection = app.pool.acquire().await?;
    let workflow = db::workflows::find(&mut *connection, caller.organization(), id).await?.ok_or_else(not_found)?;
    let filter = Filter::versions(caller.organization(), &workflow.name);
    let part = db::workflows::list(&mut connection, &filter, &asked.cut).await?;
    Ok(Json(Page::new(part, &asked)))
}

/// Execute a workflow
///
/// Starts a run of the workflow's present content. The run is durable when this answers; it is executed as soon as
/// Kafka and an executor are there.
#[utoipa::path(
    post, path = "/workflows/{workflow_id}/execute", tag = "workflows",
    params(
        ("workflow_id" = uuid::Uuid, Path),
        parameters::IdempotencyKey,
        parameters::Prefer,
    ),
    request_body = ExecuteBody,
    responses(
        (status = 200, description = "With `Prefer: wait`: the run has ended, well or not", body = RunDetail, headers(
            ("Location" = String, description = "Path of the run"),
            ("Preference-Applied" = String, description = "How long was waited at most"),
        )),
        (status = 202, body = RunDetail, headers(
            ("Location" = String, description = "Path of the run"),
            ("Retry-After" = i64, description = "With `Prefer: wait`: when to look again"),
            ("Preference-Applied" = String, description = "With `Prefer: wait`: how long was waited at most"),
        )),
        (status = 400, description = "The workflow is not active", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 422, description = "Not valid, the input breaks the workflow's `input_schema`, or \
            the key was used with another body", body = ErrorBody),
        (status = 503, description = "The database is away, or too much waits already", body = ErrorBody),
    ),
)]
pub async fn execute_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(workflow_id): WorkflowId,
    key: Key,
    wait: Wait,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let scope = format!("execute {workflow_id}");
    start(app, caller, (workflow_id, scope), key, wait, &body).await
}

/// Starts a run; a key counts within the scope.
pub(super) async fn start(
    app: App,
    caller: Caller,
    (workflow_id, scope): (uuid::Uuid, String),
    key: Key,
    wait: Wait,
    body: &JsonBody,
) -> Result<Response, ApiError> {
    let mut errors = Vec::new();
    let object = Object::body(body.raw())?;
    let input = object.required("input_data", &mut errors, Node::free_object);
    let priority = object.nullable("priority", &mut errors, |node| node.int(0..=9));
    let Some(input) = input.filter(|_| errors.is_empty()) else { return Err(errors.into()) };
    let priority = priority.and_then(|priority| i16::try_from(priority).ok()).unwrap_or(DEFAULT_PRIORITY.into());
    let key = key.bound(&scope, &caller, body.fingerprint());
    let starter = Starter {
        definitions: &app.definitions,
        pool: &app.pool,
        offload: &app.offload,
        relay: &app.relay,
        writer: &app.writer,
    };
    let quotas = app.organizations.quotas(caller.organization()).await?.or(app.config.quotas);
    let actor = Arc::clone(&caller.actor);
    let request = Request { workflow_id, input, priority, actor, max_queued: quotas.queued_runs, key };
    match start_run::start_run(starter, request).await? {
        Outcome::Started(started) => {
            let organization_id = telemetry::catalogue::organization(caller.organization().as_str());
            metrics::counter!("workflow_executions_total").increment(1);
            metrics::counter!("organization_runs_started_total", "organization_id" => organization_id).increment(1);
            tracing::info!(
                target: "api.routes.workflows", %workflow_id, run_id = started.run_id, "Workflow execution accepted"
            );
            Ok(prefer::answer(&app, &caller, Run::started(started), wait).await)
        }
        Outcome::Replayed(row) => {
            Ok(runs::replayed(prefer::answer(&app, &caller, Run::from(*row).as_started(), wait).await))
        }
    }
}

impl From<StartRunError> for ApiError {
    fn from(error: StartRunError) -> Self {
        match error {
            StartRunError::WorkflowNotFound => not_found(),
            StartRunError::NotActive(status) => {
                Self::bad_request("workflow_not_active", format!("The workflow is {status}, not active"))
            }
            StartRunError::TooLarge => too_large(),
            StartRunError::InvalidInput(errors) => errors.into(),
            StartRunError::BacklogFull => {
                let detail = "Kafka has been away for long, and too many runs wait to be dispatched already";
                Self::unavailable("backlog_full", detail)
            }
            StartRunError::Overloaded => Self::unavailable("overloaded", "Too many requests are waiting already"),
            StartRunError::Busy(busy) => busy.into(),
            StartRunError::Quota(exceeded) => exceeded.into(),
            StartRunError::KeyReused => ClaimError::Reused.into(),
            StartRunError::KeyInFlight => ClaimError::InFlight.into(),
            StartRunError::Db(error) => error.into(),
        }
    }
}
