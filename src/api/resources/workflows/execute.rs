//! Executing a workflow: starting a run, and waiting for its end.

use std::sync::Arc;

use axum::{Json, extract::State, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::value::RawValue;

use crate::{
    actions::start_run::{self, Outcome, Request, StartRunError, Starter},
    api::{
        resources::{
            definition::LimitsBody,
            runs::wire::{Run, RunDetail},
        },
        vocabulary::{
            app::App,
            caller::Caller,
            error::{ApiError, ErrorBody},
            etag,
            extract::{JsonBody, WorkflowId},
            headers::PREFERENCE_APPLIED,
            idempotency::{Key, replayed},
            parameters,
            prefer::{Wait, Waited},
            sets,
        },
    },
    db::{
        self,
        idempotency::{ClaimError, IdempotencyKey},
    },
    input::{Node, Object, request_object},
    kafka::message::DEFAULT_PRIORITY,
    run::RunStatus,
    telemetry::catalogue,
    usage::Limits,
    workflow::{Deadline, DeadlineAction, read_deadline},
};

/// `Retry-After` for a run that has not ended.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

request_object! {
    /// Body of an execute request.
    #[schema(as = ExecuteRequest, example = json!({"input_data": {"text": "hello"}}))]
    pub struct ExecuteBody {
        /// Input: any JSON object. Steps refer to it as `${workflow.input.…}`.
        #[schema(value_type = HashMap<String, Value>, example = json!({"text": "hello"}))]
        input_data: Box<RawValue> = required(Node::free_object),
        /// Priority: among the queued runs, those of a higher priority start first. The default is 5.
        #[schema(value_type = Option<i16>, minimum = 0, maximum = 9)]
        priority: Option<i64> = nullable(|node| node.int(0..=9)),
        /// Limits of this run. Of these and those of the workflow, the smaller ones hold.
        #[schema(value_type = Option<LimitsBody>)]
        limits: Option<Limits> = nullable(Limits::read),
        /// Deadline of this run, instead of that of the workflow: seconds from its creation or its last retry.
        #[schema(value_type = Option<i32>, minimum = 1, maximum = 31_622_400)]
        deadline_seconds: Option<i32> = nullable(read_deadline),
        /// What happens besides an event if the run misses its deadline, instead of what the workflow says.
        #[schema(value_type = Option<sets::DeadlineAction>)]
        deadline_action: Option<DeadlineAction> = nullable(DeadlineAction::read),
    }
}

/// Execute a workflow
///
/// Starts a run of the workflow's current content. The run is durable once this is answered; it is executed as soon
/// as Kafka and an executor are available, and the flow control of the workflow allows it. A run that flow control refuses
/// has ended in the answer, as CANCELLED and with an `error_code`.
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
            ("Preference-Applied" = String, description = "Maximum waiting time"),
        )),
        (status = 202, body = RunDetail, headers(
            ("Location" = String, description = "Path of the run"),
            ("Retry-After" = i64, description = "With `Prefer: wait`: when to retry"),
            ("Preference-Applied" = String, description = "With `Prefer: wait`: maximum waiting time"),
        )),
        (status = 400, description = "The workflow is not active", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 422, description = "Not valid, the input breaks the workflow's `input_schema`, or \
            the key was used with another body", body = ErrorBody),
        (status = 503, description = "The database is unavailable, or too many runs are waiting", body = ErrorBody),
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

/// Starts a run; an idempotency key is valid within the scope.
pub async fn start(
    app: App,
    caller: Caller,
    (workflow_id, scope): (uuid::Uuid, String),
    key: Key,
    wait: Wait,
    body: &JsonBody,
) -> Result<Response, ApiError> {
    let ExecuteBody { input_data: input, priority, limits, deadline_seconds, deadline_action } =
        ExecuteBody::read(&Object::body(body.raw())?)?;
    let deadline = Deadline { seconds: deadline_seconds, action: deadline_action };
    let priority = priority.and_then(|priority| i16::try_from(priority).ok()).unwrap_or(DEFAULT_PRIORITY.into());
    let key = key.bound(&scope, &caller, body.fingerprint());
    let limits = limits.and_then(Limits::unless_empty);
    let new = NewRun { workflow_id, input, priority, key, context_id: None, limits, deadline };
    let (run, is_repeat) = begin(&app, &caller, new).await?;
    let answer = answer(&app, &caller, run, wait).await;
    Ok(if is_repeat { replayed(answer) } else { answer })
}

/// Run to start on behalf of a caller.
pub struct NewRun {
    /// Id of the definition.
    pub workflow_id: uuid::Uuid,
    /// Input, a JSON object.
    pub input: Box<RawValue>,
    /// Priority from 0 to 9.
    pub priority: i16,
    /// Idempotency key of the request.
    pub key: Option<IdempotencyKey>,
    /// Label of the conversation that the run belongs to.
    pub context_id: Option<String>,
    /// Limits of the run itself.
    pub limits: Option<Limits>,
    /// Deadline of the run itself.
    pub deadline: Deadline,
}

/// Starts a run. Returns it as it was started, and whether an earlier request with the same key has started it.
pub async fn begin(app: &App, caller: &Caller, new: NewRun) -> Result<(Run, bool), ApiError> {
    let NewRun { workflow_id, input, priority, key, context_id, limits, deadline } = new;
    let starter = Starter {
        definitions: &app.definitions,
        pool: &app.pool,
        offload: &app.offload,
        relay: &app.relay,
        writer: &app.writer,
    };
    let quotas = app.organizations.quotas(caller.organization()).await?.or(app.config.quotas);
    let actor = Arc::clone(&caller.actor);
    let max_queued = quotas.queued_runs;
    let request = Request { workflow_id, input, priority, actor, max_queued, key, context_id, limits, deadline };
    match start_run::start_run(starter, request).await? {
        Outcome::Started(started) => {
            let organization_id = catalogue::ORGANIZATIONS.of(caller.organization().as_str());
            metrics::counter!("organization_runs_started_total", "organization_id" => organization_id).increment(1);
            catalogue::count_execution(RunStatus::Pending, &workflow_id.to_string());
            catalogue::count_transition("NONE", "PENDING", 1);
            tracing::info!(
                target: "api.routes.workflows", %workflow_id, run_id = started.run_id, "Workflow execution accepted"
            );
            Ok((Run::started(started), false))
        }
        Outcome::Replayed(row) => Ok((Run::from(*row).as_started(), true)),
    }
}

/// Answer to a start: 202 with the run at once, or, if the client waits, 200 with the finished run. A run that takes
/// longer, or that cannot be read at the moment, gives 202 too: it is durable.
async fn answer(app: &App, caller: &Caller, run: Run, wait: Wait) -> Response {
    let Some(limit) = wait.time() else { return accepted(app, StatusCode::ACCEPTED, &RunDetail::open(run)) };
    wait.release_permit();
    let started = app.clock.instant();
    tokio::select! {
        () = app.waiting.until_ended(run.run_id(), limit, caller.owners()) => {}
        () = caller.ended(app) => {}
    }
    let waited = Waited(app.clock.since(started));
    let found = reload_run(app, caller, run.run_id()).await.unwrap_or_else(|error| {
        tracing::debug!(
            error = &*error as &dyn std::error::Error,
            "the run that was waited for cannot be read: {error}"
        );
        None
    });
    let detail = found.unwrap_or_else(|| RunDetail::open(run));
    let has_ended = RunStatus::parse(detail.status()).is_some_and(RunStatus::is_terminal);
    let status = if has_ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = accepted(app, status, &detail);
    if !has_ended {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECS);
    }
    if let Ok(applied) = HeaderValue::from_str(&format!("wait={}", limit.as_secs())) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    response.extensions_mut().insert(waited);
    response
}

/// Answer with the run and its path.
fn accepted(app: &App, status: StatusCode, run: &RunDetail) -> Response {
    etag::located(app, &format!("/runs/{}", run.run_id()), (status, Json(run)))
}

/// Reads the run again, unless the caller's credentials are no longer valid.
async fn reload_run(app: &App, caller: &Caller, run_id: &str) -> Result<Option<RunDetail>, Arc<db::Error>> {
    if !caller.is_still_valid(app).await? {
        return Ok(None);
    }
    let run = app.runs.find(caller.organization(), run_id).await?;
    Ok(run.map(|run| RunDetail::from(*run)))
}

impl From<StartRunError> for ApiError {
    fn from(error: StartRunError) -> Self {
        match error {
            StartRunError::WorkflowNotFound => Self::workflow_not_found(),
            StartRunError::NotActive(status) => {
                Self::bad_request("workflow_not_active", format!("The workflow is {status}, not active"))
            }
            StartRunError::TooLarge => Self::plan_too_large(),
            StartRunError::InvalidInput(errors) => errors.into(),
            StartRunError::BacklogFull => {
                let detail = "The backlog is full: too many runs are waiting to be dispatched by Kafka";
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
