//! `/workflow-names`: workflows by name, for deployment scripts.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path, Request, State},
    response::Response,
};
use http::{StatusCode, Uri, request::Parts, uri::PathAndQuery};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    definition::{LimitsBody, StepsBody},
    runs::wire::RunDetail,
    workflows::{
        execute::{self, ExecuteBody},
        flow::{ConcurrencyBody, DebounceBody, ThrottleBody},
        save::{self, save_error},
        wire::{ExposeBody, Workflow},
    },
};
use crate::{
    actions::put_workflow::{self, Put},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        etag::{IfMatch, IfNoneMatch},
        extract::JsonBody,
        idempotency::Key,
        parameters,
        prefer::Wait,
        sets,
    },
    db,
    input::{self, ANY_LENGTH, FieldError, Node, Object, Read},
    workflow::{Draft, NewWorkflow},
};

/// Rewrites a request to the current path: names used to be below `/workflows/by-name`, and old clients may still use
/// that. `prefix` is that of the API.
pub fn at_its_path(prefix: &str) -> impl Fn(Request) -> Request + Clone + Send + Sync + 'static {
    let former: Arc<str> = format!("{prefix}/workflows/by-name/").into();
    let present: Arc<str> = format!("{prefix}/workflow-names/").into();
    move |mut request| {
        let moved = request.uri().path_and_query().and_then(|path| {
            let name = path.as_str().strip_prefix(&*former)?;
            PathAndQuery::try_from(format!("{present}{name}")).ok()
        });
        if let Some(path) = moved {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(path);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
        request
    }
}

/// `{name}` in the path.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(name) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|_| ApiError::workflow_not_found())?;
        // No row can have such a name, and the database would return an error.
        if name.contains('\0') { Err(ApiError::workflow_not_found()) } else { Ok(Self(name)) }
    }
}

/// New definition of a name. A `name` is allowed if it equals the one in the path.
#[derive(ToSchema)]
#[schema(as = PutWorkflowRequest, example = json!({
    "start_step": "pause",
    "steps": {"pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}}},
}))]
#[expect(dead_code, reason = "describes what `put_workflow_by_name` reads")]
pub struct WantedWorkflowBody {
    /// Description for people; absent is null.
    description: Option<String>,
    /// The id of the first step.
    #[schema(min_length = 1, example = "summarise")]
    start_step: String,
    /// The steps by id.
    steps: StepsBody,
    /// Limits of its runs; absent or null: none.
    limits: Option<LimitsBody>,
    /// JSON Schema of the input of runs; absent is null, which accepts any object.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_schema: Option<()>,
    /// Days for which ended runs of the workflow are kept. 0: for ever; absent or null: the organisation's value.
    #[schema(minimum = 0, maximum = 36_500)]
    retention_days: Option<i32>,
    /// Protocols by which the workflow is offered besides this API; absent or null: none.
    expose: Option<ExposeBody>,
    /// Deadline of runs, in seconds from their creation or their last retry: an event tells of a run that has not ended
    /// by then. Absent or null: none.
    #[schema(minimum = 1, maximum = 31_622_400, example = 3600)]
    deadline_seconds: Option<i32>,
    /// What happens besides to a run that misses its deadline: `notify`, nothing; `cancel`. Absent or null: `notify`.
    deadline_action: Option<sets::DeadlineAction>,
    /// Hours without a completed run of the workflow after which an event tells of it; absent or null: never.
    #[schema(minimum = 1, maximum = 8760)]
    silence_hours: Option<i32>,
    /// Starts in a row of which the last one counts; absent or null: all of them do.
    debounce: Option<DebounceBody>,
    /// Rate at which runs start; absent or null: none.
    throttle: Option<ThrottleBody>,
    /// Limit of the runs under way at a time; absent or null: none.
    concurrency: Option<ConcurrencyBody>,
}

/// Get a workflow by its name
///
/// The newest active version of the name.
#[utoipa::path(
    get, path = "/workflow-names/{name}", tag = "workflows",
    params(
        ("name" = String, Path, example = "hello"),
        parameters::IfNoneMatch,
    ),
    responses(
        (status = 200, body = Workflow, headers(("ETag" = String, description = "Entity tag of this version"))),
        (status = 304), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn get_workflow_by_name(
    State(app): State<App>,
    caller: Caller,
    Name(name): Name,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let row = db::workflows::find_active(&app.pool, caller.organization(), &name)
        .await?
        .ok_or_else(ApiError::workflow_not_found)?;
    let revision = row.revision();
    Ok(if_none_match.answer(&revision, Workflow::watched(&app, row).await?))
}

/// Create or update a workflow by its name
///
/// Sets the definition of the name; safe to repeat. If it is already stored, nothing changes. Other content becomes
/// the next version under the same id, and a name without an active version gets one.
#[utoipa::path(
    put, path = "/workflow-names/{name}", tag = "workflows",
    params(
        ("name" = String, Path, min_length = 1, max_length = 255, example = "hello"),
        parameters::IfMatch,
    ),
    request_body = WantedWorkflowBody,
    responses(
        (status = 200, description = "The newest version, changed or not", body = Workflow,
            headers(("ETag" = String, description = "Entity tag of this version"))),
        (status = 201, description = "The name had no active version", body = Workflow,
            headers(("ETag" = String, description = "Entity tag of this version"), ("Location" = String, description = "Its path"))),
        (status = 412, description = "The workflow has changed since it was read", body = ErrorBody),
        (status = 400, description = "A step names an agent that does not exist or is not active", body = ErrorBody),
        (status = 404, description = "The name is not possible", body = ErrorBody),
        (status = 413, description = "Too large to be executed", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn put_workflow_by_name(
    State(app): State<App>,
    caller: Caller,
    Name(name): Name,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let wanted = body.read(&app, &caller, move |body| read(&name, body)).await??;
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let put = put_workflow::put_workflow(&app.pool, context, wanted).await;
    let (what, row) = match put.map_err(|error| save_error(error, StatusCode::BAD_REQUEST))? {
        Put::Created(row) => {
            tracing::info!(target: "api.routes.workflows", workflow_id = %row.id, "Workflow created by name");
            return Ok(save::created(&app, row).await);
        }
        Put::Updated(row) => ("updated", row),
        Put::Unchanged(row) => ("unchanged", row),
    };
    tracing::info!(target: "api.routes.workflows", workflow_id = %row.id, "Workflow {what} by name");
    Ok(save::tagged(&app, row).await)
}

/// Parses the new definition of a name.
pub fn read(name: &str, body: &RawValue) -> Read<NewWorkflow> {
    let body = Object::body(body)?;
    let mut errors = Vec::new();
    let other_name = body.nullable("name", &mut errors, |node| node.string(ANY_LENGTH)).filter(|given| given != name);
    if other_name.is_some() {
        errors.push(FieldError::rule("body.name", "must be the name in the path, or absent"));
    }
    let name = input::to_raw(name);
    let draft = input::keep(Draft::named(&Node::new("path.name", &name), &body), &mut errors);
    draft.filter(|_| errors.is_empty()).ok_or(errors)?.checked()
}

/// Execute a workflow by its name
///
/// Starts a run of the newest active version of the name, as executing that version by its id does.
#[utoipa::path(
    post, path = "/workflow-names/{name}/execute", tag = "workflows",
    params(
        ("name" = String, Path, example = "hello"),
        parameters::IdempotencyKey,
        parameters::Prefer,
    ),
    request_body = ExecuteBody,
    responses(
        (status = 200, description = "With `Prefer: wait`: the run has ended, well or not", body = RunDetail, headers(
            ("Location" = String, description = "Path of the run"),
            ("Preference-Applied" = String, description = "Maximum waiting time"),
        )),
        (status = 202, body = RunDetail, headers(
            ("Location" = String, description = "Path of the run"),
            ("Retry-After" = i64, description = "With `Prefer: wait`: when to retry"),
            ("Preference-Applied" = String, description = "With `Prefer: wait`: maximum waiting time"),
        )),
        (status = 400, description = "The workflow is not active any more", body = ErrorBody),
        (status = 404, description = "The name has no active version", body = ErrorBody),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 422, description = "Not valid, or the key was used with another body", body = ErrorBody),
        (status = 503, description = "The database is unavailable, or too many runs are waiting", body = ErrorBody),
    ),
)]
pub async fn execute_workflow_by_name(
    State(app): State<App>,
    caller: Caller,
    Name(name): Name,
    key: Key,
    wait: Wait,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let id = db::workflows::find_active(&app.pool, caller.organization(), &name)
        .await?
        .ok_or_else(ApiError::workflow_not_found)?
        .id;
    // The scope is the name: a repeat is the same request even if the name has a new version.
    execute::start(app, caller, (id, format!("execute by name {name:?}")), key, wait, &body).await
}
