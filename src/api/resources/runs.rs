//! `/runs`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::step_stream;
use crate::{
    actions::{
        cancel_run::{self, CancelRunError},
        pause_run::{self, PauseRunError},
        retry_run::{self, Retry, RetryRunError},
    },
    api::{
        App, IDEMPOTENCY_REPLAYED,
        gate::auth::Caller,
        vocabulary::{
            cursor::Asked,
            error::{ApiError, ErrorBody},
            extract::{Key, OptionalJsonBody, Query, RunId},
            page::Page,
            parameters, sets,
        },
    },
    db::{
        self,
        idempotency::ClaimError,
        runs::{Filter, RunRow, StepRow},
    },
    input::{ANY_LENGTH, FieldError, Node, Object, object_of, shorten},
    run::RunStatus,
    run_writer::StartedRun,
    timestamp::Timestamp,
};

/// Characters of a reason for a cancellation.
const REASON_CHARS: std::ops::RangeInclusive<usize> = 0..=500;

/// The parameters that a cursor of the list is bound to.
const FILTERS: [&str; 13] = [
    "status",
    "workflow_id",
    "workflow_definition_id",
    "name",
    "name_prefix",
    "triggered_by",
    "parent_run_id",
    "created_after",
    "created_before",
    "updated_after",
    "updated_before",
    "sort_by",
    "sort_order",
];

/// A part of the list of runs.
pub type RunPage = Page<Run>;

/// A run of a workflow.
#[derive(Serialize, ToSchema)]
pub struct Run {
    /// The same as `run_id`.
    id: String,
    /// `run-` and a UUID; runs that other programs made may have any id.
    run_id: String,
    /// The definition's id.
    workflow_id: String,
    /// The definition's name.
    workflow_name: String,
    /// The definition's id.
    workflow_definition_id: Option<String>,
    /// How far it is.
    #[schema(value_type = sets::RunStatus)]
    status: String,
    /// As given. A list leaves out one of more than 64 KiB.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_data: Option<Box<RawValue>>,
    /// True where a list leaves the input out, and otherwise absent: the run itself shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool)]
    input_data_omitted: Option<bool>,
    /// Who started it.
    triggered_by: Option<String>,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Last change of its state.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// When it was completed or failed.
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Timestamp>,
    /// When it was cancelled.
    #[schema(value_type = Option<String>, format = DateTime)]
    cancelled_at: Option<Timestamp>,
    /// Who cancelled it.
    cancelled_by: Option<String>,
    /// Why it failed or was cancelled.
    error_message: Option<String>,
    /// From 0 to 9: of what waits for an executor, higher ones are first.
    priority: i16,
    /// Since when no further step begins; null if it is not paused.
    #[schema(value_type = Option<String>, format = DateTime)]
    paused_at: Option<Timestamp>,
    /// The run of which it is a step.
    parent_run_id: Option<String>,
    /// Which step of it.
    parent_step_id: Option<String>,
}

impl From<RunRow> for Run {
    fn from(row: RunRow) -> Self {
        Self {
            id: row.run_id.clone(),
            run_id: row.run_id,
            workflow_id: row.workflow_id,
            workflow_name: row.workflow_name,
            workflow_definition_id: row.workflow_definition_id,
            status: row.status,
            input_data_omitted: (row.has_input && row.input_data.is_none()).then_some(true),
            input_data: row.input_data.map(|json| json.0),
            triggered_by: row.triggered_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
            completed_at: row.completed_at,
            cancelled_at: row.cancelled_at,
            cancelled_by: row.cancelled_by,
            error_message: row.error_message,
            priority: row.priority,
            paused_at: row.paused_at,
            parent_run_id: row.parent_run_id,
            parent_step_id: row.parent_step_id,
        }
    }
}

impl Run {
    /// A run that has just been written, without reading it back.
    #[must_use]
    pub fn started(started: StartedRun) -> Self {
        let StartedRun { request, run_id, created_at } = started;
        let workflow_id = request.definition.id.to_string();
        Self {
            id: run_id.clone(),
            run_id,
            workflow_definition_id: Some(workflow_id.clone()),
            workflow_id,
            workflow_name: request.definition.name.clone(),
            status: RunStatus::Pending.as_str().to_owned(),
            priority: request.priority,
            input_data: Some(request.input),
            input_data_omitted: None,
            triggered_by: Some(request.actor.subject.clone()),
            created_at,
            updated_at: created_at,
            completed_at: None,
            cancelled_at: None,
            cancelled_by: None,
            error_message: None,
            paused_at: None,
            parent_run_id: None,
            parent_step_id: None,
        }
    }
}

impl Run {
    /// The run as it was when it had just been written, which is what the first request was answered.
    #[must_use]
    pub fn as_started(self) -> Self {
        Self {
            status: RunStatus::Pending.as_str().to_owned(),
            updated_at: self.created_at,
            completed_at: None,
            cancelled_at: None,
            cancelled_by: None,
            error_message: None,
            paused_at: None,
            ..self
        }
    }

    /// The run's id.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }
}

/// A run with what it gave.
#[derive(Serialize, ToSchema)]
pub struct RunDetail {
    #[serde(flatten)]
    run: Run,
    /// The output of the last step, once the run is completed.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    output_data: Option<Box<RawValue>>,
}

impl RunDetail {
    /// A run that has given nothing.
    #[must_use]
    pub fn open(run: Run) -> Self {
        Self { run, output_data: None }
    }

    /// The run with its output, which is read if there can be one.
    pub async fn read(app: &App, row: RunRow) -> Result<Self, db::Error> {
        let is_completed = RunStatus::parse(&row.status) == Some(RunStatus::Completed);
        let output = if is_completed { db::runs::output(&app.pool, &row.run_id).await? } else { None };
        Ok(Self { run: row.into(), output_data: output.map(|json| json.0) })
    }

    /// The run's status.
    #[must_use]
    pub fn status(&self) -> &str {
        &self.run.status
    }
}

/// The run and its path.
pub fn accepted(app: &App, status: StatusCode, run: &RunDetail) -> Response {
    let location = format!("{}/runs/{}", app.config.api.prefix, run.run.run_id);
    let mut response = (status, Json(run)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Marks an answer as the repeat of an earlier one.
pub fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    response
}

/// An attempt of a step.
#[derive(Serialize, ToSchema)]
#[schema(as = StepExecution)]
pub struct Step {
    /// Of this attempt.
    id: String,
    /// The run.
    run_id: String,
    /// As in the definition; several attempts of one step are normal.
    step_id: String,
    /// For people.
    step_name: String,
    /// The agent that was called.
    agent_name: String,
    /// How far it is.
    #[schema(value_type = sets::StepStatus)]
    status: String,
    /// What was sent.
    #[schema(value_type = HashMap<String, Value>)]
    input_data: Box<RawValue>,
    /// What came back.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    output_data: Option<Box<RawValue>>,
    /// Begin.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// End.
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Timestamp>,
    /// Why it failed.
    error_message: Option<String>,
    /// The step that it is a branch or an iteration of.
    parent_step_id: Option<String>,
    /// Which branch.
    branch_name: Option<String>,
    /// How the branches are joined.
    #[schema(value_type = Option<sets::JoinPolicy>)]
    join_policy: Option<String>,
    /// Of a step of type `sub_workflow`: its run.
    child_run_id: Option<String>,
}

impl From<StepRow> for Step {
    fn from(row: StepRow) -> Self {
        let input_data = if row.input_data.0.get() == "null" { object_of([]) } else { row.input_data.0 };
        Self {
            id: row.id,
            run_id: row.run_id,
            step_id: row.step_id,
            step_name: row.step_name,
            agent_name: row.agent_name,
            status: row.status,
            input_data,
            output_data: row.output_data.map(|json| json.0),
            started_at: row.started_at,
            completed_at: row.completed_at,
            error_message: row.error_message,
            parent_step_id: row.parent_step_id,
            branch_name: row.branch_name,
            join_policy: row.join_policy,
            child_run_id: row.child_run_id,
        }
    }
}

/// The answer to a retry: the run, and members that the UI reads here and nowhere else.
#[derive(Serialize, ToSchema)]
pub struct RetriedRun {
    #[serde(flatten)]
    run: RunDetail,
    /// For people.
    message: &'static str,
    /// The same as `run_id`: a retry goes on with the same run.
    new_run_id: String,
    /// The same as `run_id`.
    original_run_id: String,
    /// Now.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
}

/// The body of a cancel request, which may be left out.
#[derive(ToSchema)]
#[schema(as = CancelRequest)]
#[expect(dead_code, reason = "describes what `cancel_run` reads")]
pub struct CancelBody {
    /// Goes into the run's `error_message`.
    #[schema(max_length = 500, example = "started by mistake")]
    reason: Option<String>,
}

/// The body of a retry request, which may be left out.
#[derive(ToSchema)]
#[schema(as = RetryRequest, example = json!({"resume_from_step": null}))]
#[expect(dead_code, reason = "describes what `retry_run` reads")]
pub struct RetryBody {
    /// Repeats this step and all after it, completed or not, and goes on without those before it that have not
    /// completed. Without it, the run goes on after its last completed step.
    resume_from_step: Option<String>,
    /// Instead of the input that the run had. Steps that have completed are not repeated because of it.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_data: Option<()>,
}

/// There is no such run.
#[must_use]
pub fn not_found() -> ApiError {
    ApiError::not_found("run_not_found", "Run not found")
}

fn wrong_state(status: &str, act: &str) -> ApiError {
    ApiError::bad_request("run_wrong_state", format!("The run is {status} and cannot be {act}"))
}

/// List runs
///
/// The latest first, unless another order is asked for.
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
        (status = 200, body = RunPage), (status = 400, description = "The cursor is not one of this query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_runs(State(app): State<App>, caller: Caller, query: Query) -> Result<Json<Page<Run>>, ApiError> {
    let filter = Filter {
        organization: caller.organization(),
        statuses: query.several("status"),
        workflow_id: query.text("workflow_id"),
        workflow_definition_id: query.text("workflow_definition_id"),
        name: query.text("name"),
        name_prefix: query.text("name_prefix"),
        triggered_by: query.text("triggered_by"),
        parent_run_id: query.text("parent_run_id"),
        created: query.span("created")?,
        updated: query.span("updated")?,
        sort_by: query.text("sort_by").unwrap_or_default(),
        ascending: query.is_ascending(),
    };
    let asked = Asked::read(&app, &query, filter.order(), "runs", &FILTERS).await?;
    let mut connection = app.pool.acquire().await?;
    let part = db::runs::list(&mut connection, &filter, &asked.cut).await?;
    Ok(Json(Page::new(part, &asked)))
}

/// Get a run
///
/// With its output, once it is completed.
#[utoipa::path(
    get, path = "/runs/{run_id}", tag = "runs", params(("run_id" = String, Path)),
    responses((status = 200, body = RunDetail), (status = 404, body = ErrorBody)),
)]
pub async fn get_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<Json<RunDetail>, ApiError> {
    let row = db::runs::find(&app.pool, caller.organization(), &run_id).await?.ok_or_else(not_found)?;
    Ok(Json(RunDetail::read(&app, row).await?))
}

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

/// Retry a run
///
/// Starts a failed or cancelled run again, with the present content of its definition. Completed steps are not
/// repeated.
#[utoipa::path(
    post, path = "/runs/{run_id}/retry", tag = "runs",
    params(("run_id" = String, Path), parameters::IdempotencyKey),
    request_body(content = Option<RetryBody>),
    responses(
        (status = 202, body = RetriedRun),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 400, description = "The run has not ended, has completed, or has no definition", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 429, description = "As many runs are queued as the organization may have", body = ErrorBody),
    ),
)]
pub async fn retry_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
    key: Key,
    body: OptionalJsonBody,
) -> Result<Response, ApiError> {
    let mut errors = Vec::new();
    let retry = match &body.0 {
        Some(body) => {
            let body = Object::body(body)?;
            Retry {
                resume_from_step: body.nullable("resume_from_step", &mut errors, |node| node.string(ANY_LENGTH)),
                input: body.nullable("input_data", &mut errors, Node::free_object),
            }
        }
        None => Retry::default(),
    };
    if !errors.is_empty() {
        return Err(errors.into());
    }
    let key = key.bound(&format!("retry {run_id}"), &caller, body.fingerprint());
    let context = app.context(&caller).with_key(key.as_ref());
    match retry_run::retry_run(&app.pool, &app.offload, &app.relay, context, &run_id, &retry).await {
        Ok(row) => {
            tracing::info!(target: "api.routes.runs", run_id, "Run retried");
            Ok(retried(RunDetail::open(row.into())))
        }
        Err(RetryRunError::Key(ClaimError::Repeated(_))) => {
            let row = db::runs::find(&app.pool, caller.organization(), &run_id).await?.ok_or_else(not_found)?;
            Ok(replayed(retried(RunDetail::read(&app, row).await?)))
        }
        Err(error) => Err(error.into()),
    }
}

fn retried(run: RunDetail) -> Response {
    let (timestamp, message, run_id) = (run.run.updated_at, "The run was started again", run.run.run_id.clone());
    let retried = RetriedRun { run, message, new_run_id: run_id.clone(), original_run_id: run_id, timestamp };
    (StatusCode::ACCEPTED, Json(retried)).into_response()
}

impl From<RetryRunError> for ApiError {
    fn from(error: RetryRunError) -> Self {
        match error {
            RetryRunError::NotFound => not_found(),
            RetryRunError::WrongState(status) => wrong_state(&status, "retried"),
            RetryRunError::WithoutDefinition => Self::bad_request(
                "run_without_definition",
                "The run has no workflow definition to be started again from",
            ),
            RetryRunError::DefinitionNotFound => {
                Self::not_found("workflow_not_found", "The run's workflow definition was not found")
            }
            RetryRunError::NoSuchStep(step) => {
                let text = format!("step '{}' is not on the workflow's main path", shorten(&step));
                FieldError::rule("body.resume_from_step", text).into()
            }
            RetryRunError::InvalidInput(errors) => errors.into(),
            RetryRunError::Changing => {
                Self::unavailable("definition_changing", "The definition changes again and again while it is read")
            }
            RetryRunError::Busy(busy) => busy.into(),
            RetryRunError::TooLarge => {
                let detail = "Definition and input together no longer fit into a Kafka message of 1 MiB";
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
            }
            RetryRunError::Quota(exceeded) => exceeded.into(),
            RetryRunError::Key(error) => error.into(),
            RetryRunError::Db(error) => error.into(),
        }
    }
}

/// Cancel a run
///
/// Ends a run that waits or is executed.
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
    let mut errors = Vec::new();
    let reason = match &body {
        Some(body) => Object::body(body)?.nullable("reason", &mut errors, |node| node.string(REASON_CHARS)),
        None => None,
    };
    if !errors.is_empty() {
        return Err(errors.into());
    }
    let context = app.context(&caller);
    let row = cancel_run::cancel_run(&app.pool, &app.relay, context, &run_id, reason.as_deref()).await?;
    tracing::info!(target: "api.routes.runs", run_id, "Run cancelled");
    Ok(Json(RunDetail::open(row.into())))
}

/// Pause a run
///
/// The run begins no further step until it is resumed; what is under way comes to its end. A run that is paused
/// already stays so. Sub-workflows are runs of their own, and go on.
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
/// Lets a paused run go on. A run that is not paused stays so.
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

async fn set_paused(app: &App, caller: &Caller, run_id: &str, wanted: bool) -> Result<Json<RunDetail>, ApiError> {
    let row =
        pause_run::set_paused(&app.pool, app.context(caller), run_id, wanted).await.map_err(|error| match error {
            PauseRunError::NotFound => not_found(),
            PauseRunError::WrongState(status) => wrong_state(&status, if wanted { "paused" } else { "resumed" }),
            PauseRunError::Db(error) => error.into(),
        })?;
    tracing::info!(target: "api.routes.runs", run_id, "Run {}", if wanted { "paused" } else { "resumed" });
    Ok(Json(RunDetail::open(row.into())))
}

impl From<CancelRunError> for ApiError {
    fn from(error: CancelRunError) -> Self {
        match error {
            CancelRunError::NotFound => not_found(),
            CancelRunError::WrongState(status) => wrong_state(&status, "cancelled"),
            CancelRunError::Db(error) => error.into(),
        }
    }
}
