//! Agents as they are shown.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json as Column;
use url::Url;
use utoipa::ToSchema;

use super::bodies::{AnyConfigBody, CircuitBreakerConfigBody, RetryConfigBody};
use crate::{
    agent::{AgentKind, AuthType, RetryConfig, mask_auth_config, masked_url, render_auth_config, secrets_of},
    api::vocabulary::{app::App, caller::Caller, page::Page, sets},
    breaker::Rules,
    db::{
        self,
        agent_cards::CardRow,
        agents::{AgentRow, AgentWithBreaker},
        breakers::SharedBreaker,
    },
    masking::Secrets,
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
    pub fn new(row: AgentRow, breaker: Option<&SharedBreaker>, rules: Rules) -> Self {
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
pub fn shown(app: &App, row: AgentRow, caller: &Caller) -> AgentRow {
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

pub fn show(app: &App, caller: &Caller, found: AgentWithBreaker) -> Agent {
    Agent::new(shown(app, found.agent, caller), Some(&found.breaker.into()), app.config.circuit_breaker)
}

/// As [`show`], with what executors know of the card; also the revision of both.
pub async fn show_with_card(app: &App, caller: &Caller, found: AgentWithBreaker) -> Result<(Agent, String), db::Error> {
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
        let secrets = secrets_of(&opened.url, opened.auth_config.as_ref().map(|config| &*config.0));
        card = card.map(|card| card.masked(&secrets));
    }
    Ok((Agent { protocol_seen, card, ..show(app, caller, found) }, revision))
}
