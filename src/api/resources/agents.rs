//! Handlers of `/agents`.

use std::borrow::Cow;

use axum::{Json, extract::State, response::Response};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json as Column;
use url::Url;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Ref, RefOr, Schema, schema::AnyOfBuilder},
};

use super::{
    agent_health::{self, AgentHealth},
    definition::CostBody,
    tool_lists,
};
use crate::{
    actions::save_agent::{self, NameTaken, SaveAgentError},
    agent::{
        AgentKind, AgentPatch, AuthType, NewAgent, RetryConfig, Secrets, mask_auth_config, masked_url,
        render_auth_config,
    },
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        etag::{self, IfMatch, IfNoneMatch},
        extract::{AgentId, JsonBody, Query},
        idempotency::{Key, replayed},
        page::{self, Message, Page},
        parameters,
        request_permit::RequestPermit,
        sets,
    },
    breaker::Rules,
    db::{
        self,
        agent_cards::CardRow,
        agents::{AgentRow, AgentWithBreaker, Filter},
        breakers::SharedBreaker,
        idempotency::ClaimError,
    },
    timestamp::Timestamp,
};

/// Page of the list of agents.
pub type AgentPage = Page<Agent>;

/// An agent.
#[derive(Serialize, ToSchema)]
pub struct Agent {
    /// Id of the agent.
    id: uuid::Uuid,
    /// Name, unique forever; steps refer to agents by it.
    #[schema(example = "summariser")]
    name: String,
    /// URL of its endpoint, normalised. Without `agents:secrets` the values of its query are replaced by asterisks,
    /// which an update may send back.
    #[schema(example = "http://summariser:8080/")]
    url: String,
    /// Description for people.
    description: Option<String>,
    /// Kind of credentials that it requires.
    #[schema(value_type = sets::AuthType)]
    auth_type: &'static str,
    /// Credentials, with `type` and for API keys `header` added for the reference deployment's bridge. Without
    /// `agents:secrets` they are replaced by asterisks, which an update may send back.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    auth_config: Option<Box<RawValue>>,
    /// Time-out of one call in milliseconds.
    timeout_ms: i32,
    /// Retries of calls.
    #[schema(value_type = RetryConfigBody)]
    retry_config: RetryConfig,
    /// Overrides of the settings `CIRCUIT_BREAKER_*`.
    #[schema(value_type = Option<CircuitBreakerConfigBody>)]
    circuit_breaker_config: Option<Box<RawValue>>,
    /// State of the circuit breaker; null if it is switched off.
    circuit_breaker: Option<CircuitBreaker>,
    /// Protocol of the agent.
    #[schema(value_type = sets::AgentKind)]
    kind: String,
    /// Configuration for its kind.
    #[schema(value_type = Option<AnyConfigBody>)]
    config: Option<Box<RawValue>>,
    /// Names of the agents that are called when this one does not work, in this order.
    fallbacks: Vec<String>,
    /// Of an A2A agent or an MCP server that was called: version of the protocol in which it answered last; otherwise, and
    /// in lists of several agents, null.
    #[schema(value_type = Option<sets::ProtocolVersion>)]
    protocol_seen: Option<String>,
    /// Of an A2A agent whose card was requested, or an MCP server whose tools were: what is known of it; otherwise, and in
    /// lists of several agents, null.
    card: Option<AgentCard>,
    /// Whether it may be used.
    #[schema(value_type = sets::AgentStatus)]
    status: String,
    /// Time of registration.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time of the last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// User who registered it.
    created_by: Option<String>,
    /// User who changed it last.
    updated_by: Option<String>,
}

/// Card of an A2A agent, or an MCP server with its tools, as they are known.
#[derive(Serialize, ToSchema)]
pub struct AgentCard {
    /// The card, or `name`, `version`, `description` and `tools` of an MCP server; null: none was found. Without
    /// `agents:secrets`, credentials of the agent in it are replaced by asterisks.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    content: Option<Box<RawValue>>,
    /// Whether one of the keys in `config.card_keys` has signed it; null without a card, and for MCP servers. `unchecked`: it is signed, and
    /// there are no keys.
    #[schema(value_type = Option<sets::CardSignature>)]
    signature: Option<String>,
    /// Why there is no card, or why it was not read again; null if there is no problem.
    problem: Option<String>,
    /// Time when the card was read, or found to be unchanged.
    #[schema(value_type = Option<String>, format = DateTime)]
    fetched_at: Option<Timestamp>,
    /// Time when it was last requested.
    #[schema(value_type = Option<String>, format = DateTime)]
    checked_at: Option<Timestamp>,
    /// Seconds since `fetched_at`.
    age_seconds: Option<i64>,
    /// Last change of the card, until the agent is saved again; null: it is the same as then.
    drift: Option<CardDrift>,
}

/// Change of a card.
#[derive(Serialize, ToSchema)]
pub struct CardDrift {
    /// Time when the change was noticed.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Members of the card that have changed.
    members: Vec<String>,
}

impl AgentCard {
    /// `None`: the card was not requested yet.
    fn new(row: CardRow, agent_updated_at: Timestamp) -> Option<Self> {
        let checked_at = row.checked_at?;
        let drift = row.changed_at.map(Timestamp::from).filter(|at| *at > agent_updated_at);
        Some(Self {
            content: row.card.map(|card| card.0),
            signature: row.signature,
            problem: row.problem,
            fetched_at: row.fetched_at.map(Timestamp::from),
            checked_at: Some(checked_at.into()),
            age_seconds: row.fetched_at.map(|at| (row.read_at - at).num_seconds()),
            drift: drift.map(|since| CardDrift { since, members: row.changed_members.unwrap_or_default() }),
        })
    }

    /// The card without these secrets.
    fn masked(mut self, secrets: &Secrets) -> Self {
        let masked = self.content.map(|card| RawValue::from_string(secrets.mask(card.get().to_owned())));
        self.content = masked.and_then(Result::ok);
        self
    }
}

/// Circuit breaker of an agent, shared by all executors.
#[derive(Serialize, ToSchema)]
pub struct CircuitBreaker {
    /// State of the breaker.
    #[schema(value_type = sets::CircuitBreakerState)]
    state: &'static str,
    /// Time when it opened; null if it is closed.
    #[schema(value_type = Option<String>, format = DateTime)]
    opened_at: Option<Timestamp>,
    /// Time when an open breaker allows the first call again.
    #[schema(value_type = Option<String>, format = DateTime)]
    retry_at: Option<Timestamp>,
    /// Failures in the window that executors have reported.
    failures: u32,
    /// Calls in the window; successful calls are reported only while others fail.
    calls: u32,
}

impl CircuitBreaker {
    /// `None`: no state is stored.
    fn new(shared: Option<&SharedBreaker>, rules: &Rules) -> Self {
        let timestamp = |at: chrono::DateTime<chrono::Utc>| Timestamp::from(at);
        let (calls, failures) = shared.map_or((0, 0), |shared| shared.breaker.counts(rules, shared.read_at));
        let breaker = shared.map(|shared| &shared.breaker);
        Self {
            state: breaker.map(|breaker| breaker.state).unwrap_or_default().as_str(),
            opened_at: breaker.and_then(|breaker| breaker.opened_at).map(timestamp),
            retry_at: breaker.and_then(|breaker| breaker.retry_at(rules)).map(timestamp),
            failures,
            calls,
        }
    }
}

impl Agent {
    /// Agent with the stored state of its circuit breaker; `rules` apply where the agent has none of its own.
    fn new(row: AgentRow, breaker: Option<&SharedBreaker>, rules: Rules) -> Self {
        let rules = rules.of_agent(row.circuit_breaker_config.as_ref().map(|config| &*config.0));
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
            circuit_breaker: rules.enabled.then(|| CircuitBreaker::new(breaker, &rules)),
            kind: row.kind,
            config: stored(row.config),
            fallbacks: row.fallbacks,
            protocol_seen: None,
            card: None,
            status: row.status,
            created_at: row.created_at,
            updated_at: row.updated_at,
            created_by: row.created_by,
            updated_by: row.updated_by,
        }
    }
}

/// Row with the secrets masked unless the caller may see them.
fn shown(app: &App, row: AgentRow, caller: &Caller) -> AgentRow {
    let mut row = row.opened(&app.config.vault);
    // Values that cannot be decrypted are never shown.
    if !caller.sees_secrets() || row.is_sealed() {
        row.auth_config = row.auth_config.map(|config| Column(mask_auth_config(&config.0)));
    }
    if !caller.sees_secrets() {
        row.url = masked_url(&row.url);
    }
    row
}

/// Retries of calls to an agent.
#[derive(ToSchema)]
#[schema(as = RetryConfig)]
#[expect(dead_code, reason = "describes `agent::RetryConfig`, whose defaults a derived schema would repeat")]
pub struct RetryConfigBody {
    /// Maximum number of attempts; the default is `DEFAULT_AGENT_MAX_RETRIES` (3).
    #[schema(nullable = false, minimum = 0, maximum = 10)]
    max_retries: Option<u32>,
    /// Pause after the first attempt in milliseconds; the default is `DEFAULT_AGENT_INITIAL_DELAY_MS` (1000).
    #[schema(nullable = false, minimum = 100)]
    initial_delay_ms: Option<u64>,
    /// Maximum pause in milliseconds; the default is `DEFAULT_AGENT_MAX_DELAY_MS` (30 000).
    #[schema(nullable = false, minimum = 1000)]
    max_delay_ms: Option<u64>,
    /// Factor from one pause to the next; the default is `DEFAULT_AGENT_BACKOFF_MULTIPLIER` (2).
    #[schema(nullable = false, minimum = 1.0)]
    backoff_multiplier: Option<f64>,
}

/// Overrides of the settings of the circuit breakers.
#[derive(ToSchema)]
#[schema(as = CircuitBreakerConfig)]
#[expect(dead_code, reason = "describes what `breaker::Rules` reads")]
pub struct CircuitBreakerConfigBody {
    /// Whether the agent has a circuit breaker.
    enabled: Option<bool>,
    /// Consecutive failures that open it, and the minimum number of calls for a failure rate.
    #[schema(minimum = 1, maximum = 1000)]
    failure_threshold: Option<u32>,
    /// Failure rate that opens it, above 0.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    failure_rate_threshold: Option<f64>,
    /// Seconds for which it stays open.
    #[schema(minimum = 1, maximum = 86400)]
    timeout_seconds: Option<u64>,
    /// Number of probes while it is half open, and of successes that close it.
    #[schema(minimum = 1, maximum = 1000)]
    half_open_max_calls: Option<u32>,
    /// Length of the window in seconds.
    #[schema(minimum = 1, maximum = 3600)]
    window_size_seconds: Option<u64>,
}

/// The `config` of an agent, by its kind.
pub struct AnyConfigBody;

impl PartialSchema for AnyConfigBody {
    fn schema() -> RefOr<Schema> {
        let of = |name: &str| Ref::from_schema_name(name);
        let any = ["AgentConfig", "A2aConfig", "HttpConfig", "ResponsesConfig", "McpConfig"].into_iter();
        let any = any.fold(AnyOfBuilder::new(), |any, name| any.item(of(name)));
        let any = any.description(Some("Configuration of an agent, by its kind.")).build();
        RefOr::T(Schema::AnyOf(any))
    }
}

impl ToSchema for AnyConfigBody {
    fn name() -> Cow<'static, str> {
        "AnyAgentConfig".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        AgentConfigBody::schemas(schemas);
        A2aConfigBody::schemas(schemas);
        HttpConfigBody::schemas(schemas);
        ResponsesConfigBody::schemas(schemas);
        McpConfigBody::schemas(schemas);
        schemas.push(("AgentConfig".to_owned(), AgentConfigBody::schema()));
        schemas.push(("A2aConfig".to_owned(), A2aConfigBody::schema()));
        schemas.push(("HttpConfig".to_owned(), HttpConfigBody::schema()));
        schemas.push(("ResponsesConfig".to_owned(), ResponsesConfigBody::schema()));
        schemas.push(("McpConfig".to_owned(), McpConfigBody::schema()));
    }
}

/// The `config` of an agent of kind `a2a`.
#[derive(ToSchema)]
#[schema(as = A2aConfig, example = json!({"protocol": "1.0", "streaming": true}))]
#[expect(dead_code, reason = "describes what `agent::A2aConfig` reads")]
pub struct A2aConfigBody {
    /// Version of the protocol. The default `auto` takes the version that the agent's card names, or that it answers in.
    #[schema(value_type = Option<sets::A2aProtocol>)]
    protocol: Option<()>,
    /// Whether tasks are streamed; by default where the agent's card offers it.
    streaming: Option<bool>,
    /// Origins besides that of the agent's URL that its card may lead to, with inputs and credentials.
    #[schema(max_items = 16, example = json!(["https://agents.example:8443"]))]
    origins: Option<Vec<String>>,
    /// JSON Web Key Set. With it, a card is used only if one of the keys has signed it.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"keys": [{"kty": "OKP", "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}))]
    card_keys: Option<()>,
    /// Price of its calls.
    price: Option<PriceBody>,
}

/// The `config` of an agent of kind `responses`.
#[derive(ToSchema)]
#[schema(as = ResponsesConfig, example = json!({"model": "gpt-5-mini", "background": true,
    "parameters": {"tools": [{"type": "web_search"}]}}))]
#[expect(dead_code, reason = "describes what `agent::ResponsesConfig` reads")]
pub struct ResponsesConfigBody {
    /// Name of the model.
    #[schema(min_length = 1, max_length = 255, pattern = "\\S")]
    model: String,
    /// Instructions, sent beside the input of the step.
    #[schema(max_length = 100_000)]
    instructions: Option<String>,
    /// Further members of the request, such as `tools`, `reasoning` and `max_output_tokens`; not `model`, `input`,
    /// `instructions`, `stream` and `background`, and not `text` beside `response_format`.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"max_output_tokens": 500}))]
    parameters: Option<()>,
    /// `text`, `json`, or an object in the form of the endpoint's `text.format`.
    #[schema(value_type = Option<Value>)]
    response_format: Option<()>,
    /// Whether the answer is streamed; the default is false.
    streaming: Option<bool>,
    /// Whether the response is created in the background, queried until it is done, and cancelled if it is not needed any
    /// more; the default is false. Only OpenAI's API has that.
    background: Option<bool>,
}

/// The `config` of an agent of kind `mcp`.
#[derive(ToSchema)]
#[schema(as = McpConfig, example = json!({"tool": "get_weather"}))]
#[expect(dead_code, reason = "describes what `agent::McpConfig` reads")]
pub struct McpConfigBody {
    /// Name of the tool.
    #[schema(min_length = 1, max_length = 128, pattern = "\\S")]
    tool: String,
    /// Revision of the protocol. The default `auto` takes the newest one that the server knows.
    #[schema(value_type = Option<sets::McpProtocol>)]
    protocol: Option<()>,
}

/// The `config` of an agent of kind `openai`.
#[derive(ToSchema)]
#[schema(as = AgentConfig, example = json!({"model": "gpt-4o-mini", "parameters": {"temperature": 0, "max_tokens": 500}}))]
#[expect(dead_code, reason = "describes what `agent::ChatConfig` reads")]
pub struct AgentConfigBody {
    /// Name of the model.
    #[schema(min_length = 1, max_length = 255, pattern = "\\S")]
    model: String,
    /// System prompt, sent before the messages of the step.
    #[schema(max_length = 100_000)]
    system_prompt: Option<String>,
    /// Further members of the request, such as `temperature` and `max_tokens`; not `model`, `messages`, `stream` and
    /// `response_format`.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"temperature": 0}))]
    parameters: Option<()>,
    /// `text`, `json`, or an object in the form of the endpoint.
    #[schema(value_type = Value, required = false, example = json!({"type": "json_object"}))]
    response_format: (),
    /// Whether the answer is streamed, so that pieces of it are seen in the event stream of the run.
    streaming: Option<bool>,
    /// Price of its calls.
    price: Option<PriceBody>,
}

/// The `config` of an agent of kind `http`.
#[derive(ToSchema)]
#[schema(as = HttpConfig, example = json!({"price": {"call": "0.01"}}))]
#[expect(dead_code, reason = "describes what `agent::NewAgent::parse` reads")]
pub struct HttpConfigBody {
    /// Price of its calls.
    price: PriceBody,
}

/// Price of an agent's calls, for the cost of runs and their limits. It has no currency. Each part has at most six decimal
/// places; an absent one is 0.
#[derive(ToSchema)]
#[schema(as = AgentPrice, example = json!({"input": "0.15", "output": "0.6"}))]
#[expect(dead_code, reason = "describes `usage::Price`")]
pub struct PriceBody {
    /// For a million input tokens.
    #[schema(value_type = Option<CostBody>)]
    input: Option<()>,
    /// For a million output tokens.
    #[schema(value_type = Option<CostBody>)]
    output: Option<()>,
    /// For each call.
    #[schema(value_type = Option<CostBody>)]
    call: Option<()>,
}

/// Body of a create request.
#[derive(ToSchema)]
#[schema(as = CreateAgentRequest, example = json!({
    "name": "summariser", "url": "http://summariser:8080", "description": "Sums texts up.", "kind": "http",
}))]
#[expect(dead_code, reason = "describes what `agent::NewAgent::parse` reads")]
pub struct NewAgentBody {
    /// Name, unique forever.
    #[schema(min_length = 1, max_length = 255, example = "summariser")]
    name: String,
    /// HTTP or HTTPS address.
    #[schema(max_length = 512, pattern = "^[hH][tT][tT][pP][sS]?://", example = "http://summariser:8080")]
    url: String,
    /// Description for people.
    description: Option<String>,
    /// Kind of credentials that it requires; the default is `none`. Letter case is ignored.
    #[schema(required = false)]
    auth_type: sets::AuthType,
    /// `bearer`: `{"token": …}`; `apikey`: `{"key": …, "header_name": …}`, or `query_name` instead; `basic`:
    /// `{"username": …, "password": …}`; `oauth2`: `{"token_url": …, "client_id": …, "client_secret": …}`, and optionally
    /// `scope` and `audience`; `none`: null.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    auth_config: Option<()>,
    /// Time-out of one call in milliseconds; the default is `DEFAULT_AGENT_TIMEOUT_MS` (30 000).
    #[schema(nullable = false, minimum = 1000, maximum = 300_000)]
    timeout_ms: Option<i32>,
    /// Retries of calls.
    #[schema(value_type = RetryConfigBody, required = false)]
    retry_config: Option<RetryConfigBody>,
    /// Overrides of the settings `CIRCUIT_BREAKER_*`; other members are kept.
    #[schema(value_type = Option<CircuitBreakerConfigBody>)]
    circuit_breaker_config: Option<()>,
    /// Protocol of the agent; the default is `a2a`. Letter case is ignored.
    #[schema(required = false)]
    kind: sets::AgentKind,
    /// Configuration: required for `openai`, `responses` and `mcp`, optional for `a2a`, null for `http`.
    #[schema(value_type = Option<AnyConfigBody>)]
    config: Option<()>,
    /// Names of other agents that are called, in this order, when this one does not work. Theirs are not followed.
    #[schema(nullable = false, max_items = 4, example = json!(["summariser-small"]))]
    fallbacks: Option<Vec<String>>,
}

/// Body of an update request; absent members stay unchanged.
#[derive(ToSchema)]
#[schema(as = UpdateAgentRequest, example = json!({"description": "Sums texts up in a sentence.", "timeout_ms": 60000}))]
#[expect(dead_code, reason = "describes what `agent::AgentPatch::parse` reads")]
pub struct AgentPatchBody {
    /// HTTP or HTTPS address.
    #[schema(nullable = false, max_length = 512, pattern = "^[hH][tT][tT][pP][sS]?://")]
    url: Option<String>,
    /// Description for people; null clears it.
    description: Option<String>,
    /// Kind of credentials that it requires.
    #[schema(required = false)]
    auth_type: sets::AuthType,
    /// Credentials, which must match `auth_type`.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    auth_config: Option<()>,
    /// Time-out of one call in milliseconds.
    #[schema(nullable = false, minimum = 1000, maximum = 300_000)]
    timeout_ms: Option<i32>,
    /// Retries of calls, replaced as a whole.
    #[schema(value_type = RetryConfigBody, required = false)]
    retry_config: Option<RetryConfigBody>,
    /// Whether it may be used.
    #[schema(required = false)]
    status: sets::SettableStatus,
    /// Overrides of the circuit breaker; null clears them.
    #[schema(value_type = Option<CircuitBreakerConfigBody>)]
    circuit_breaker_config: Option<()>,
    /// Protocol of the agent; a change removes the previous `config`.
    #[schema(required = false)]
    kind: sets::AgentKind,
    /// Configuration, which must match `kind`.
    #[schema(value_type = Option<AnyConfigBody>)]
    config: Option<()>,
    /// Names of other agents that are called when this one does not work, replaced as a whole.
    #[schema(nullable = false, max_items = 4)]
    fallbacks: Option<Vec<String>>,
}

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

fn show(app: &App, caller: &Caller, found: AgentWithBreaker) -> Agent {
    Agent::new(shown(app, found.agent, caller), Some(&found.breaker.into()), app.config.circuit_breaker)
}

/// As [`show`], with what executors know of the card; also the revision of both.
async fn show_with_card(app: &App, caller: &Caller, found: AgentWithBreaker) -> Result<(Agent, String), db::Error> {
    let (revision, agent) = (found.revision(), &found.agent);
    let row = if [AgentKind::A2a, AgentKind::Mcp].map(AgentKind::as_str).contains(&agent.kind.as_str()) {
        // As executors write it.
        let url = Url::parse(&agent.url).map_or_else(|_| String::new(), String::from);
        db::agent_cards::find(&app.pool, agent.id, &url).await?
    } else {
        None
    };
    let Some(row) = row else { return Ok((show(app, caller, found), revision)) };
    let revision = format!("{revision}.{:x}", row.updated_at.timestamp_micros());
    let protocol_seen = row.protocol_seen.clone();
    let mut card = AgentCard::new(row, agent.updated_at);
    if !caller.sees_secrets() {
        let opened = agent.clone().opened(&app.config.vault);
        let secrets = Secrets::of(&opened.url, opened.auth_config.as_ref().map(|config| &*config.0));
        card = card.map(|card| card.masked(&secrets));
    }
    Ok((Agent { protocol_seen, card, ..show(app, caller, found) }, revision))
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
