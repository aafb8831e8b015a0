//! `/callbacks/{token}`, where the owner of the address answers a waiting step, and the lists of callbacks: of a run, and of
//! all runs.

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json as DbJson;
use utoipa::ToSchema;

use crate::{
    actions::answer_callback::{self, AnswerError, Answered},
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        extract::{AnyJsonBody, Query, RunId},
        idempotency::replayed,
        page::{self, Page},
        parameters, sets,
    },
    db::{
        self,
        callbacks::{self, CallbackRow, Filter},
        waits::OpenCallback,
    },
    input::{FieldError, member, text},
    timestamp::Timestamp,
};

/// Maximum number of callbacks in a list.
const MAX_LISTED: i64 = 1000;
/// Maximum length of a token.
const MAX_TOKEN_CHARS: usize = 128;

/// `{token}` in the path.
pub struct Token(String);

impl<S: Send + Sync> FromRequestParts<S> for Token {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(token) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| not_found())?;
        if token.len() > MAX_TOKEN_CHARS { Err(not_found()) } else { Ok(Self(token)) }
    }
}

/// 404 if the path of the request names no callback.
pub async fn find(app: &App, request: &mut Parts) -> Result<(), ApiError> {
    let Token(token) = Token::from_request_parts(request, &()).await?;
    if answer_callback::exists(&app.pool, &token).await? { Ok(()) } else { Err(not_found()) }
}

/// Result of answering a callback. A repeat gets the same result, whatever its body is.
#[derive(Serialize, ToSchema)]
pub struct CallbackAnswer {
    /// Id of the run.
    run_id: String,
    /// Id of the step that continues with the answer.
    step_id: String,
    /// Time of the first answer, which is the one that counts.
    #[schema(value_type = String, format = DateTime)]
    answered_at: Timestamp,
    /// Decision of an approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool)]
    approved: Option<bool>,
}

/// Callback of a run that can be answered.
#[derive(Serialize, ToSchema)]
pub struct Callback {
    /// Id of the step that waits, or will wait.
    step_id: String,
    /// Id of the waiting attempt; null if the step has not begun.
    step_execution_id: Option<String>,
    /// Address for the answer, by POST. Knowledge of it is sufficient permission.
    url: String,
    /// Time from which it can be answered.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time until which it can be answered; null if unlimited.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// Whether an approval is requested: the answer has `approved`.
    is_approval: bool,
    /// Role that the answering person must have; null if the address is enough.
    role: Option<String>,
    /// Question of the step's agent; absent if no agent asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    question: Option<AgentQuestion>,
    /// Information of the step about the request.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_data: Option<Box<RawValue>>,
}

/// Question of an agent.
#[derive(Serialize, ToSchema)]
pub struct AgentQuestion {
    /// Name of the agent.
    agent_name: String,
    /// State of the agent's task.
    #[schema(value_type = sets::QuestionState)]
    state: String,
    /// Number of the question in this step, from 1.
    round: i16,
    /// What the agent says.
    text: Option<String>,
    /// Data of the agent beside the text.
    #[schema(value_type = serde_json::Value, required = false)]
    data: Option<Box<RawValue>>,
    /// JSON Schema of the answer; null if any JSON is accepted.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    answer_schema: Option<Box<RawValue>>,
    /// The agent's id of the task; empty if it has none, as for some questions of MCP servers.
    task_id: String,
    /// The agent's id of the conversation.
    context_id: Option<String>,
}

impl AgentQuestion {
    fn of(question: &RawValue, round: Option<i16>) -> Self {
        let given = |name: &str| member(question, name).filter(|raw| raw.get() != "null");
        let texts = |name: &str| given(name).and_then(text);
        Self {
            agent_name: texts("agent").unwrap_or_default(),
            state: texts("state").unwrap_or_default(),
            round: round.unwrap_or(1),
            text: texts("text"),
            data: given("data").map(ToOwned::to_owned),
            answer_schema: given("answer_schema").map(ToOwned::to_owned),
            task_id: texts("task_id").unwrap_or_default(),
            context_id: texts("context_id"),
        }
    }
}

fn not_found() -> ApiError {
    ApiError::not_found("callback_not_found", "Callback not found")
}

/// Answer a callback
///
/// The step continues with the body as its output; the answer to a question of an agent is sent to the agent. The
/// address is the permission; only what asks for a role needs a token of a person with that role.
#[utoipa::path(
    post, path = "/callbacks/{token}", tag = "callbacks", params(("token" = String, Path)),
    request_body(content = Option<Object>, description = "Any JSON; nothing is `{}`. Of an approval `approved`, true or \
        false, and perhaps `comment`; of an authorisation that an agent needs only `approved`; of a question with an \
        `answer_schema` what that describes"),
    responses(
        (status = 200, body = CallbackAnswer, headers(("Idempotency-Replayed" = String, description = "`true`: it was \
            answered before, and this is the result of the first answer"))),
        (status = 401, description = "The answer requires a role", body = ErrorBody),
        (status = 403, description = "The answer requires another role", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 410, description = "Its time is over, or its run has ended", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn answer_callback(
    State(app): State<App>,
    caller: Caller,
    Token(token): Token,
    AnyJsonBody(body): AnyJsonBody,
) -> Result<Response, ApiError> {
    let answered = answer_callback::answer_callback(
        &app.pool,
        &app.offload,
        caller.context(&app),
        &token,
        caller.callback_caller(),
        body.as_deref(),
    )
    .await?;
    let Answered { run_id, step_id, at, approved, is_repeat } = answered;
    if !is_repeat {
        tracing::info!(target: "api.routes.callbacks", run_id, step_id, "Callback answered");
    }
    let answer = Json(CallbackAnswer { run_id, step_id, answered_at: at.into(), approved }).into_response();
    Ok(if is_repeat { replayed(answer) } else { answer })
}

/// List the open callbacks of a run
///
/// Callbacks that can be answered, even if the address was published before the step has begun; the oldest 1000.
#[utoipa::path(
    get, path = "/runs/{run_id}/callbacks", tag = "callbacks", params(("run_id" = String, Path)),
    responses((status = 200, body = Vec<Callback>), (status = 404, body = ErrorBody)),
)]
pub async fn list_callbacks(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<Json<Vec<Callback>>, ApiError> {
    let rows = db::waits::open_callbacks(&app.pool, caller.organization(), &run_id, MAX_LISTED).await?;
    if rows.is_empty() {
        caller.must_see_run(&app, &run_id).await?;
    }
    let url = app.config.api.callbacks_url();
    let shown = |row: OpenCallback| Callback {
        step_id: row.step_id,
        step_execution_id: row.attempt_id,
        url: format!("{url}{}", row.token),
        created_at: row.created_at,
        expires_at: row.expires_at,
        is_approval: row.approval.is_some(),
        role: role(row.approval.as_ref(), row.question.as_ref()),
        question: row.question.as_ref().map(|question| AgentQuestion::of(&question.0, row.round)),
        input_data: row.input_data.map(|input| input.0),
    };
    Ok(Json(rows.into_iter().map(shown).collect()))
}

/// Callback in the list of all runs.
#[derive(Serialize, ToSchema)]
pub struct ListedCallback {
    /// Id of the run.
    run_id: String,
    /// Name of the run's workflow.
    workflow_name: String,
    /// Id of the step that waits, or will wait.
    step_id: String,
    /// Id of the waiting attempt; null if the step has not begun, and of an answered question of an agent.
    step_execution_id: Option<String>,
    /// Address for the answer, by POST. Knowledge of it is sufficient permission. Null if the run comes from the archive.
    url: Option<String>,
    /// Time from which it could be answered.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time until which it can be answered; null if unlimited.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// Whether an approval is requested: the answer has `approved`.
    is_approval: bool,
    /// Role that the answering person must have; null if the address is enough.
    role: Option<String>,
    /// Question of the step's agent; absent if no agent asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    question: Option<AgentQuestion>,
    /// Information of the step about the request.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_data: Option<Box<RawValue>>,
    /// Time of the answer; null if there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    answered_at: Option<Timestamp>,
    /// Subject that answered; null if there is no answer, or only the address was needed.
    answered_by: Option<String>,
    /// The answer, which is any JSON; null if there is none.
    #[schema(value_type = serde_json::Value)]
    answer: Option<Box<RawValue>>,
}

impl ListedCallback {
    fn new(row: CallbackRow, url: &str) -> Self {
        Self {
            run_id: row.run_id,
            workflow_name: row.workflow_name,
            step_id: row.step_id,
            step_execution_id: row.attempt_id,
            url: row.token.map(|token| format!("{url}{token}")),
            created_at: row.created_at,
            expires_at: row.expires_at,
            is_approval: row.approval.is_some(),
            role: role(row.approval.as_ref(), row.question.as_ref()),
            question: row.question.map(|question| AgentQuestion::of(&question.0, row.round)),
            input_data: row.input_data.map(|input| input.0),
            answered_at: row.answered_at,
            answered_by: row.answered_by,
            answer: row.answer.map(|answer| answer.0),
        }
    }
}

/// Page of the list of callbacks.
pub type ListedCallbackPage = Page<ListedCallback>;

/// List the callbacks of all runs
///
/// Those that can be answered, or the answers that were given, for an inbox of approvals and its history. The latest first.
#[utoipa::path(
    get, path = "/callbacks", tag = "callbacks",
    params(
        parameters::Paging,
        ("state" = Option<sets::CallbackState>, Query, description = "Those that can be answered (the default), or were answered"),
        ("role" = Option<Vec<String>>, Query, explode = false, description = "Any of these roles, which the answer requires"),
        ("mine" = Option<bool>, Query, description = "`true`: those that require no role, or one that the caller has"),
        ("workflow_name" = Option<String>, Query, description = "Runs of exactly this workflow"),
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default) by `created_at`, or by `answered_at`"),
    ),
    responses(
        (status = 200, body = ListedCallbackPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_all_callbacks(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let state = parameters.text("state").map_or(Ok(callbacks::State::Open), |given| {
        callbacks::State::ALL.into_iter().find(|state| state.as_str() == given).ok_or_else(|| {
            let message = "Input should be 'open' or 'answered'";
            FieldError::new("query.state", "enum", message)
        })
    })?;
    let filter = Filter {
        organization: caller.organization().clone(),
        state,
        roles: parameters.several("role"),
        held: parameters.flag("mine")?.filter(|mine| *mine).and_then(|_| caller.callback_caller().held()),
        workflow_name: parameters.text("workflow_name").map(str::to_owned),
    };
    let order = callbacks::order(state, parameters.is_ascending());
    let list = ListRequest::read(&app, &parameters, "callbacks").await?;
    let (filter, page) = (&filter, &list.page);
    let page = app.reads.read(|mut conn| async move { callbacks::list(&mut conn, filter, order, page).await }).await?;
    let url = app.config.api.callbacks_url();
    Ok(page::answer(app, caller, &list, page, move |row| ListedCallback::new(row, &url)))
}

/// Role that the answer requires.
fn role(approval: Option<&DbJson<Box<RawValue>>>, question: Option<&DbJson<Box<RawValue>>>) -> Option<String> {
    approval.or(question).and_then(|json| member(&json.0, "role")).and_then(text)
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::NotFound => not_found(),
            AnswerError::Over => {
                let detail = "No step waits for this answer any more: its time is over, or its run has ended";
                Self::new(StatusCode::GONE, "callback_expired", detail)
            }
            AnswerError::Unauthenticated => {
                let detail = "This decision requires a role: a bearer token is required";
                Self::unauthorized(detail)
            }
            AnswerError::Forbidden(role) => {
                Self::new(StatusCode::FORBIDDEN, "role_required", format!("This decision requires the role {role:?}"))
            }
            AnswerError::Invalid(errors) => errors.into(),
            AnswerError::Busy(error) => error.into(),
            AnswerError::Key(error) => error.into(),
            AnswerError::Db(error) => error.into(),
        }
    }
}
