//! Handlers of `/agents`.

pub mod bodies;
mod shown;

use axum::{Json, extract::State, response::Response};

pub use self::shown::{Agent, AgentPage};
use self::{
    bodies::{AgentPatchBody, NewAgentBody},
    shown::{show_with_card, shown},
};
use super::{
    agent_health::{self, AgentHealth},
    tool_lists,
};
use crate::{
    actions::save_agent::{self, NameTaken, SaveAgentError},
    agent::{AgentPatch, NewAgent},
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        etag::{self, IfMatch, IfNoneMatch},
        extract::{AgentId, JsonBody, Query},
        idempotency::{Key, replayed},
        page::{self, Message},
        parameters,
        request_permit::RequestPermit,
        sets,
    },
    db::{
        self,
        agents::{AgentRow, Filter},
        idempotency::ClaimError,
    },
};

impl From<SaveAgentError> for ApiError {
    fn from(error: SaveAgentError) -> Self {
        Self::not_saved(error, not_found, |NameTaken(name)| {
            Self::bad_request("agent_name_taken", format!("An agent named {name:?} already exists"))
        })
    }
}

pub(super) fn not_found() -> ApiError {
    ApiError::not_found("agent_not_found", "Agent not found")
}

/// List agents
///
/// In the order of their registration. With `name`, returns the agent of that name whatever its status; the other
/// parameters are ignored then.
#[utoipa::path(
    get, path = "/agents", tag = "agents",
    params(
        parameters::Paging,
        ("status" = Option<Vec<sets::AgentStatus>>, Query, explode = false, description = "Any of these"),
        ("name" = Option<String>, Query, description = "Exactly this name; the other parameters are ignored then"),
        ("name_prefix" = Option<String>, Query, description = "The beginning of the name"),
        parameters::Created,
        parameters::Updated,
    ),
    responses(
        (status = 200, body = AgentPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_agents(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let filter = Filter {
        organization: caller.organization(),
        statuses: parameters.several("status"),
        name_prefix: parameters.text("name_prefix"),
        created: parameters.span("created")?,
        updated: parameters.span("updated")?,
    };
    let list = ListRequest::read(&app, &parameters, "agents").await?;
    if let Some(name) = query.text("name") {
        let agent = match db::agents::find_to_call(&app.pool, caller.organization(), name).await? {
            Some(found) => Some(show_with_card(&app, &caller, found).await?.0),
            None => None,
        };
        return Ok(page::of_one(agent, list.page.size));
    }
    let (filter, page) = (&filter, &list.page);
    let read = app.reads.read(|mut conn| async move {
        let page = db::agents::list(&mut conn, filter, page).await?;
        let ids: Vec<uuid::Uuid> = page.entries.positions.iter().filter_map(|position| position.id.uuid()).collect();
        Ok((page, db::breakers::find_all(&mut *conn, &ids).await?))
    });
    let (page, breakers) = read.await?;
    let (shown_by, shown_to) = (app.clone(), caller.clone());
    Ok(page::answer(app, caller, &list, page, move |row: AgentRow| {
        let breaker = breakers.get(&row.id);
        Agent::new(shown(&shown_by, row, &shown_to), breaker, shown_by.config.circuit_breaker)
    }))
}

/// Register an agent
///
/// Nothing is sent to its address yet; `GET /agents/{agent_id}/health` checks it.
#[utoipa::path(
    post, path = "/agents", tag = "agents", request_body = NewAgentBody,
    params(parameters::IdempotencyKey),
    responses(
        (status = 201, body = Agent, headers(("ETag" = String, description = "Entity tag of this version"), ("Location" = String, description = "Its path"))),
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
    let new = NewAgent::parse(body.raw(), &app.config.agent_defaults)?;
    let key = key.bound("create agent", &caller, body.fingerprint());
    let context = caller.context(&app).with_key(key.as_ref());
    let created = |row: AgentRow| {
        let (path, revision) = (format!("/agents/{}", row.id), row.revision());
        etag::created(&app, &path, &revision, Agent::new(shown(&app, row, &caller), None, app.config.circuit_breaker))
    };
    match save_agent::create_agent(&app.pool, context, new).await {
        Ok(row) => {
            tracing::info!(target: "api.routes.agents", agent_id = %row.id, "Agent created");
            Ok(created(row))
        }
        Err(SaveAgentError::Key(ClaimError::Repeated(id))) => {
            let id = uuid::Uuid::try_parse(&id).map_err(|_| not_found())?;
            Ok(replayed(created(db::agents::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Get an agent
///
/// Includes its circuit breaker, and what is known of the card of an A2A agent or of the tools of an MCP server. Deleted
/// agents are included.
#[utoipa::path(
    get, path = "/agents/{agent_id}", tag = "agents",
    params(("agent_id" = uuid::Uuid, Path), parameters::IfNoneMatch),
    responses((status = 200, body = Agent, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 304), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let found = db::agents::find_to_show(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let (agent, revision) = show_with_card(&app, &caller, found).await?;
    Ok(if_none_match.answer(&revision, agent))
}

/// Update an agent
///
/// Changes the given members.
#[utoipa::path(
    put, path = "/agents/{agent_id}", tag = "agents",
    params(("agent_id" = uuid::Uuid, Path), parameters::IfMatch),
    request_body = AgentPatchBody,
    responses((status = 200, body = Agent, headers(("ETag" = String, description = "Entity tag of this version"))), (status = 412, description = "The agent has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn update_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let patch = AgentPatch::parse(body.raw(), &app.config.agent_defaults)?;
    let context = caller.context(&app).with_if_match(if_match.as_ref());
    let found = save_agent::update_agent(&app.pool, context, id, patch).await?;
    tracing::info!(target: "api.routes.agents", agent_id = %id, "Agent updated");
    let (agent, revision) = show_with_card(&app, &caller, found).await?;
    Ok(etag::tagged(&revision, Json(agent)))
}

/// Delete an agent
///
/// Marks it as deleted; its name stays taken.
#[utoipa::path(
    delete, path = "/agents/{agent_id}", tag = "agents",
    params(("agent_id" = uuid::Uuid, Path), parameters::IfMatch),
    responses((status = 200, body = Message), (status = 412, description = "The agent has changed since it was read", body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn delete_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
    IfMatch(if_match): IfMatch,
) -> Result<Json<Message>, ApiError> {
    save_agent::delete_agent(&app.pool, caller.context(&app).with_if_match(if_match.as_ref()), id).await?;
    tracing::info!(target: "api.routes.agents", agent_id = %id, "Agent deleted");
    Ok(Json(Message::new("Agent deleted")))
}

/// Check an agent's health
///
/// Requests the agent's card, its list of models, or its list of tools. The status is 200 even if the agent is unhealthy.
/// A result that differs from the one before is an entry in the audit trail.
#[utoipa::path(
    get, path = "/agents/{agent_id}/health", tag = "agents", params(("agent_id" = uuid::Uuid, Path)),
    responses(
        (status = 200, body = AgentHealth), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 429, description = "Too many checks of the agent, or by the caller, are under way", body = ErrorBody),
    ),
)]
pub async fn check_agent(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
    permit: RequestPermit,
) -> Result<Json<AgentHealth>, ApiError> {
    let row = db::agents::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let row = row.opened(&app.config.vault);
    let owners = caller.owners().with_agent(id);
    let _permit = app
        .checks
        .try_take(owners, 1)
        .map_err(|limit| ApiError::exhausted(limit, "too_many_checks", "checks of agents at a time"))?;
    permit.release();
    let (health, tools) = agent_health::check(&app.egress, &row, caller.sees_secrets()).await;
    if let Some(tools) = tools {
        tool_lists::keep(&app, caller.organization(), &row, tools).await;
    }
    if app.config.audit {
        health.record(&app.pool, &row, caller.organization()).await;
    }
    Ok(Json(health))
}
