//! `/agents`.

use axum::{Json, extract::State, response::Response};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json as Column;
use utoipa::ToSchema;

use super::{
    App,
    agent_health::{self, AgentHealth},
    auth::Caller,
    cursor::Asked,
    error::{ApiError, ErrorBody},
    etag::{self, IfMatch, IfNoneMatch},
    extract::{AgentId, JsonBody, Key, Query},
    page::{Message, Page},
    runs,
};
use crate::{
    actions::save_agent::{self, SaveAgentError},
    agent::{AgentPatch, AuthType, NewAgent, RetryConfig, mask_auth_config, render_auth_config, without_credentials},
    db::{
        self,
        agents::{AgentRow, Filter, ORDER},
        idempotency::ClaimError,
    },
    timestamp::Timestamp,
};

/// The parameters that a cursor of the list is bound to.
const FILTERS: [&str; 6] =
    ["status", "name_prefix", "created_after", "created_before", "updated_after", "updated_before"];

/// An agent.
#[derive(Serialize, ToSchema)]
pub struct Agent {
    /// Made at registration.
    id: uuid::Uuid,
    /// Unique for ever; steps name agents by it.
    #[schema(example = "summariser")]
    name: String,
    /// Where its JSON-RPC endpoint is, normalised.
    #[schema(example = "http://summariser:8080/")]
    url: String,
    /// For people.
    description: Option<String>,
    /// `none`, `bearer` or `apikey`.
    auth_type: &'static str,
    /// The credentials, with `type` and for API keys `header` added for the reference deployment's bridge. Without
    /// `agents:secrets` asterisks stand in their place, which an update may send back.
    #[schema(value_type = Option<Object>)]
    auth_config: Option<Box<RawValue>>,
    /// Time for one call.
    timeout_ms: i32,
    /// How calls are repeated.
    #[schema(value_type = RetryConfigBody)]
    retry_config: RetryConfig,
    /// Kept for the UI.
    #[schema(value_type = Option<Object>)]
    circuit_breaker_config: Option<Box<RawValue>>,
    /// `active`, `inactive` or `deleted`.
    status: String,
    /// Registration.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Who registered it.
    created_by: Option<String>,
    /// Who changed it last.
    updated_by: Option<String>,
}

impl From<AgentRow> for Agent {
    fn from(row: AgentRow) -> Self {
        let auth_type = row.auth_type.as_deref().and_then(AuthType::parse).unwrap_or(AuthType::None);
        let stored = |json: Option<sqlx::types::Json<Box<RawValue>>>| json.map(|json| json.0);
        Self {
            id: row.id,
            name: row.name,
            url: row.url,
            description: row.description,
            auth_type: auth_type.as_str(),
            auth_config: render_auth_config(auth_type, stored(row.auth_config).as_deref()),
            timeout_ms: row.timeout_ms,
            retry_config: RetryConfig::from_stored(stored(row.retry_config).as_deref()),
            circuit_breaker_config: stored(row.circuit_breaker_config),
            status: row.status,
            created_at: row.created_at,
            updated_at: row.updated_at,
            created_by: row.created_by,
            updated_by: row.updated_by,
        }
    }
}

/// The row as the caller may see it.
fn shown(mut row: AgentRow, caller: &Caller) -> AgentRow {
    if !caller.sees_secrets() {
        row.auth_config = row.auth_config.map(|config| Column(mask_auth_config(&config.0)));
        row.url = without_credentials(&row.url);
    }
    row
}

/// How calls to an agent are repeated.
#[derive(ToSchema)]
#[schema(as = RetryConfig)]
#[expect(dead_code, reason = "describes `agent::RetryConfig`, which knows nothing of OpenAPI")]
pub struct RetryConfigBody {
    /// Attempts in all.
    #[schema(nullable = false, default = 3, minimum = 0, maximum = 10)]
    max_retries: Option<u32>,
    /// Pause after the first attempt.
    #[schema(nullable = false, default = 1000, minimum = 100)]
    initial_delay_ms: Option<u64>,
    /// Longest pause.
    #[schema(nullable = false, default = 30000, minimum = 1000)]
    max_delay_ms: Option<u64>,
    /// What each pause is multiplied with for the next one.
    #[schema(nullable = false, default = 2.0, minimum = 1.0)]
    backoff_multiplier: Option<f64>,
}

/// The body of a create request.
#[derive(ToSchema)]
#[schema(as = NewAgent, example = json!({
    "name": "summariser", "url": "http://summariser:8080", "description": "Sums texts up.", "timeout_ms": 30000,
}))]
#[expect(dead_code, reason = "describes what `agent::NewAgent::parse` reads")]
pub struct NewAgentBody {
    /// Unique for ever.
    #[schema(min_length = 1, max_length = 255, example = "summariser")]
    name: String,
    /// `http` or `https`.
    #[schema(max_length = 512, pattern = "^[hH][tT][tT][pP][sS]?://", example = "http://summariser:8080")]
    url: String,
    /// For people.
    description: Option<String>,
    /// `none`, `bearer` or `apikey`, in any case.
    #[schema(
        nullable = false,
        default = "none",
        example = "none",
        pattern = "^([nN][oO][nN][eE]|[bB][eE][aA][rR][eE][rR]|[aA][pP][iI][kK][eE][yY])$"
    )]
    auth_type: Option<String>,
    /// `bearer`: `{"token": …}`; `apikey`: `{"key": …, "header_name": …}`; `none`: null.
    #[schema(value_type = Option<Object>)]
    auth_config: Option<()>,
    /// Time for one call.
    #[schema(nullable = false, default = 30000, minimum = 1000, maximum = 300_000)]
    timeout_ms: Option<i32>,
    /// How calls are repeated.
    #[schema(value_type = RetryConfigBody, required = false)]
    retry_config: Option<RetryConfigBody>,
    /// Kept for the UI.
    #[schema(value_type = Option<Object>)]
    circuit_breaker_config: Option<()>,
}

/// The body of an update request; what is absent stays.
#[derive(ToSchema)]
#[schema(as = AgentPatch, example = json!({"description": "Sums texts up in a sentence.", "timeout_ms": 60000}))]
#[expect(dead_code, reason = "describes what `agent::AgentPatch::parse` reads")]
pub struct AgentPatchBody {
    /// `http` or `https`.
    #[schema(nullable = false, max_length = 512, pattern = "^[hH][tT][tT][pP][sS]?://")]
    url: Option<String>,
    /// Null clears it.
    description: Option<String>,
    /// `none`, `bearer` or `apikey`, in any case.
    #[schema(nullable = false, pattern = "^([nN][oO][nN][eE]|[bB][eE][aA][rR][eE][rR]|[aA][pP][iI][kK][eE][yY])$")]
    auth_type: Option<String>,
    /// Has to fit `auth_type`.
    #[schema(value_type = Option<Object>)]
    auth_config: Option<()>,
    /// Time for one call.
    #[schema(nullable = false, minimum = 1000, maximum = 300_000)]
    timeout_ms: Option<i32>,
    /// Replaced as a whole.
    #[schema(value_type = RetryConfigBody, required = false)]
    retry_config: Option<RetryConfigBody>,
    /// `active` or `inactive`.
    #[schema(nullable = false, pattern = "^(active|inactive)$")]
    status: Option<String>,
    /// Null clears it.
    #[schema(value_type = Option<Object>)]
    circuit_breaker_config: Option<()>,
}

impl From<SaveAgentError> for ApiError {
    fn from(error: SaveAgentError) -> Self {
        match error {
            SaveAgentError::NotFound => not_found(),
            SaveAgentError::NameTaken(name) => {
                Self::bad_request("agent_name_taken", format!("An agent named {name:?} already exists"))
            }
            SaveAgentError::Invalid(errors) => errors.into(),
            SaveAgentError::Stale(stale) => stale.into(),
            SaveAgentError::Key(error) => error.into(),
            SaveAgentError::Quota(exceeded) => exceeded.into(),
            SaveAgentError::Db(error) => error.into(),
        }
    }
}

fn not_found() -> ApiError {
    ApiError::not_found("agent_not_found", "Agent not found")
}

/// Lists agents in the order of their registration; with `name`, looks that one up whatever its status.
#[utoipa::path(
    get, path = "/agents", tag = "agents",
    params(
        ("page" = Option<i64>, Query, minimum = 1, maximum = 10000, description = "By number, as far as the 10 000th entry"),
        ("page_size" = Option<i64>, Query, minimum = 1),
        ("cursor" = Option<String>, Query, description = "Instead of `page`: `next_cursor` or `prev_cursor` of an \
            answer to the same query"),
        ("status" = Option<String>, Query, description = "Exactly this status, or one of several with commas between"),
        ("name" = Option<String>, Query, description = "Exactly this name; the other parameters do not count then"),
        ("name_prefix" = Option<String>, Query, description = "The beginning of the name"),
        ("created_after" = Option<String>, Query, format = DateTime, description = "Created then or later, as ISO 8601 or epoch"),
        ("created_before" = Option<String>, Query, format = DateTime, description = "Created then or earlier, as ISO 8601 or epoch"),
        ("updated_after" = Option<String>, Query, format = DateTime, description = "Changed last then or later"),
        ("updated_before" = Option<String>, Query, format = DateTime, description = "Changed last then or earlier"),
    ),
    responses(
        (status = 200, body = Page<Agent>), (status = 400, description = "The cursor is not one of this query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_agents(State(app): State<App>, caller: Caller, query: Query) -> Result<Json<Page<Agent>>, ApiError> {
    let asked = Asked::read(&query, app.config.pages, ORDER, "agents", &FILTERS)?;
    let filter = Filter {
        organization: caller.organization(),
        statuses: query.several("status"),
        name_prefix: query.text("name_prefix"),
        created: query.span("created")?,
        updated: query.span("updated")?,
    };
    if let Some(name) = query.text("name").filter(|name| !name.is_empty()) {
        let found = db::agents::find_by_name(&app.pool, caller.organization(), name).await?;
        return Ok(Json(Page::of_one(found.map(|row| Agent::from(shown(row, &caller))), asked.cut.size)));
    }
    let mut connection = app.pool.acquire().await?;
    let mut part = db::agents::list(&mut connection, &filter, &asked.cut).await?;
    part.rows = part.rows.into_iter().map(|row| shown(row, &caller)).collect();
    Ok(Json(Page::new(part, &asked)))
}

/// Registers an agent.
#[utoipa::path(
    post, path = "/agents", tag = "agents", request_body = NewAgentBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "A repeat with the same key and body answers with \
            what the first one made and `Idempotency-Replayed: true`", max_length = 255)),
    responses(
        (status = 201, body = Agent, headers(("ETag" = String, description = "The state that is shown"), ("Location" = String, description = "Its path"))),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 400, description = "The name is taken", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_agent(
    State(app): State<App>,
    caller: Caller,
    key: Key,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let new = NewAgent::parse(body.raw())?;
    let key = key.bound("create agent", &caller, body.fingerprint());
    let context = app.context(&caller).with_key(key.as_ref());
    let created = |row: AgentRow| {
        etag::created(&app, &format!("/agents/{}", row.id), &row.revision(), Agent::from(shown(row, &caller)))
    };
    match save_agent::create_agent(&app.pool, context, new).await {
        Ok(row) => {
            tracing::info!(target: "api.routes.agents", agent_id = %row.id, "Agent created");
            Ok(created(row))
        }
        Err(SaveAgentError::Key(ClaimError::Repeated(id))) => {
            let id = uuid::Uuid::try_parse(&id).map_err(|_| not_found())?;
            Ok(runs::replayed(created(
                db::agents::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?,
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// Shows an agent, deleted ones too.
#[utoipa::path(
    get, path = "/agents/{agent_id}", tag = "agents",
    params(("agent_id" = uuid::Uuid, Path), ("If-None-Match" = Option<String>, Header, description = "Only if the `ETag` is another one")),
    responses((status = 200, body = Agent, headers(("ETag" = String, description = "The state that is shown"))), (status = 304), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let row = db::agents::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    Ok(if_none_match.answer(&row.revision(), Agent::from(shown(row, &caller))))
}

/// Changes the members that are given.
#[utoipa::path(
    put, path = "/agents/{agent_id}", tag = "agents",
    params(("agent_id" = uuid::Uuid, Path), ("If-Match" = Option<String>, Header, description = "Only if the `ETag` is still this one")),
    request_body = AgentPatchBody,
    responses((status = 200, body = Agent, headers(("ETag" = String, description = "The state that is shown"))), (status = 412, description = "It has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn update_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let patch = AgentPatch::parse(body.raw())?;
    let context = app.context(&caller).with_if_match(if_match.as_ref());
    let row = save_agent::update_agent(&app.pool, context, id, patch).await?;
    tracing::info!(target: "api.routes.agents", agent_id = %id, "Agent updated");
    Ok(etag::tagged(&row.revision(), Json(Agent::from(shown(row, &caller)))))
}

/// Marks an agent as deleted; its name stays taken.
#[utoipa::path(
    delete, path = "/agents/{agent_id}", tag = "agents",
    params(("agent_id" = uuid::Uuid, Path), ("If-Match" = Option<String>, Header, description = "Only if the `ETag` is still this one")),
    responses((status = 200, body = Message), (status = 412, description = "It has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn delete_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
    IfMatch(if_match): IfMatch,
) -> Result<Json<Message>, ApiError> {
    save_agent::delete_agent(&app.pool, app.context(&caller).with_if_match(if_match.as_ref()), id).await?;
    tracing::info!(target: "api.routes.agents", agent_id = %id, "Agent deleted");
    Ok(Json(Message::new("Agent deleted")))
}

/// Asks the agent for its card. The answer is 200 also if the agent is unhealthy.
#[utoipa::path(
    get, path = "/agents/{agent_id}/health", tag = "agents", params(("agent_id" = uuid::Uuid, Path)),
    responses((status = 200, body = AgentHealth), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn check_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
) -> Result<Json<AgentHealth>, ApiError> {
    let row = db::agents::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    Ok(Json(agent_health::check(&app.http, &row).await))
}
