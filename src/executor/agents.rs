//! Agent cache: agents by name, as they are called. Rows are used for a second, because of their breakers, and only
//! while they have the version that the begin of the step has seen. So an acknowledged change applies to every step
//! that begins after it, although other processes change agents. Each change costs an executor one query.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use url::Url;
use uuid::Uuid;

use crate::{
    access::OrganizationId,
    agent::{
        A2aConfig, AgentKind, AgentStatus, ChatConfig, Credentials, McpConfig, ResponsesConfig, RetryConfig, secrets_of,
    },
    breaker::Rules,
    cache::Cache,
    clock::Clock,
    db::{
        self,
        agents::{AgentRow, AgentWithBreaker},
        breakers::SharedBreaker,
    },
    input::Node,
    masking::Secrets,
    usage::{Price, Usage},
    vault::{self, Vault},
};

/// Time for which a row is used without another query.
const KEEP: Duration = Duration::from_secs(1);
/// Maximum number of cached names.
const MAX_NAMES: usize = 10_000;

/// Protocol of an agent.
pub(super) enum Protocol {
    A2a(A2aConfig),
    Http,
    OpenAi(ChatConfig),
    Responses(ResponsesConfig),
    Mcp(McpConfig),
}

/// Breaker of an agent, as read together with the agent.
pub(super) struct ReadBreaker {
    pub(super) shared: SharedBreaker,
    /// Instant at which the statement began.
    pub(super) began: Instant,
}

/// Agent to call. Has no `Debug`, since it holds secrets.
pub(super) struct Agent {
    pub(super) id: Uuid,
    /// Version of the row, another one after each change.
    pub(super) version: i64,
    pub(super) name: String,
    pub(super) organization: OrganizationId,
    /// `None`: the stored URL is not valid.
    pub(super) url: Option<Url>,
    pub(super) protocol: Protocol,
    /// Total time-out of one attempt.
    pub(super) timeout: Duration,
    pub(super) retry: RetryConfig,
    /// Names of the agents that are called when this one does not work.
    pub(super) fallbacks: Vec<String>,
    pub(super) price: Option<Price>,
    /// Tokens to reserve for a call, besides those of its input; `None`: none are expected.
    pub(super) expected: Option<Usage>,
    pub(super) breaker: Rules,
    pub(super) read_breaker: ReadBreaker,
    /// The error: the stored credentials cannot be read.
    pub(super) credentials: Result<Credentials, vault::DecryptError>,
    /// Secrets that are masked in its errors.
    pub(super) secrets: Secrets,
}

/// Reason why there is no agent to call. `Display` is fit for the step's error message.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NoAgent {
    #[error("agent '{0}' does not exist")]
    Unknown(String),
    #[error("agent '{0}' is {1}")]
    NotActive(String, String),
    #[error("agent '{0}' has a kind or a config that this executor does not support")]
    UnknownKind(String),
}

/// Version of the agent that the begin of a step has seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Instant before the begin was written.
    pub(super) since: Instant,
    /// Version of the agent's row, if there was one.
    pub(super) version: Option<i64>,
}

/// Cache entry of an agent.
struct Known {
    /// Instant before the agent was read.
    at: Instant,
    version: Option<i64>,
    found: Result<Arc<Agent>, NoAgent>,
}

impl Known {
    /// Whether the entry is recent enough for a step that has seen this.
    fn is_fit_for(&self, seen: Seen, clock: &Clock) -> bool {
        self.at >= seen.since || (self.version == seen.version && clock.since(self.at) < KEEP)
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Known>>>;

/// Agent cache of an executor.
pub(super) struct Agents {
    pool: db::Pool,
    vault: Arc<Vault>,
    /// Rules for agents without rules of their own.
    breaker_rules: Rules,
    clock: Clock,
    slots: std::sync::Mutex<Cache<(OrganizationId, String), Slot>>,
}

impl Agents {
    pub(super) fn new(pool: db::Pool, vault: Arc<Vault>, breaker_rules: Rules, clock: Clock) -> Self {
        let slots = std::sync::Mutex::new(Cache::new(MAX_NAMES));
        Self { pool, vault, breaker_rules, clock, slots }
    }

    /// The organisation's agent of that name, as it was when the step began or later, if it may be called. Concurrent
    /// look-ups share one query.
    pub(super) async fn find(
        &self,
        organization: &OrganizationId,
        name: &str,
        seen: Seen,
    ) -> Result<Result<Arc<Agent>, NoAgent>, db::Error> {
        let slot = self.slot(organization, name);
        let mut entry = slot.lock().await;
        if let Some(known) = entry.as_ref().filter(|known| known.is_fit_for(seen, &self.clock)) {
            return Ok(known.found.clone());
        }
        let (pool, owner, wanted) = (self.pool.clone(), organization.clone(), name.to_owned());
        let began = self.clock.instant();
        let found = db::bounded(async move { db::agents::find_to_call(&pool, &owner, &wanted).await });
        let (version, found) = match found.await? {
            None => (None, Err(NoAgent::Unknown(name.to_owned()))),
            Some(AgentWithBreaker { agent, breaker, version }) => {
                let found = if agent.status == AgentStatus::Active.as_str() {
                    self.read(agent, version, organization, ReadBreaker { shared: breaker.into(), began }).map(Arc::new)
                } else {
                    Err(NoAgent::NotActive(name.to_owned(), agent.status))
                };
                (Some(version), found)
            }
        };
        *entry = Some(Known { at: began, version, found: found.clone() });
        Ok(found)
    }

    fn slot(&self, organization: &OrganizationId, name: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get_or_insert_with((organization.clone(), name.to_owned()), Slot::default)
    }
}

impl Agents {
    fn read(
        &self,
        row: AgentRow,
        version: i64,
        organization: &OrganizationId,
        read_breaker: ReadBreaker,
    ) -> Result<Agent, NoAgent> {
        let config = row.auth_config.as_ref().map(|config| self.vault.decrypt(row.id, &config.0)).transpose();
        let breaker_config = row.circuit_breaker_config.as_ref().map(|config| &*config.0);
        let own_config = row.config.as_ref().map(|config| &*config.0);
        let protocol = Protocol::read(&row.kind, own_config);
        Ok(Agent {
            id: row.id,
            version,
            protocol: protocol.ok_or_else(|| NoAgent::UnknownKind(row.name.clone()))?,
            breaker: self.breaker_rules.of_agent(breaker_config),
            read_breaker,
            secrets: secrets_of(&row.url, config.as_ref().ok().and_then(Option::as_deref)),
            credentials: config.map(|config| Credentials::read(row.auth_type.as_deref(), config.as_deref())),
            timeout: Duration::from_millis(u64::try_from(row.timeout_ms).unwrap_or_default().max(1)),
            retry: RetryConfig::from_stored(row.retry_config.as_ref().map(|config| &*config.0)),
            organization: organization.clone(),
            fallbacks: row.fallbacks,
            price: Price::of_config(own_config),
            expected: Usage::expected(own_config),
            name: row.name,
            url: row.url.parse().ok(),
        })
    }
}

impl Protocol {
    fn read(kind: &str, config: Option<&RawValue>) -> Option<Self> {
        match AgentKind::parse(kind)? {
            AgentKind::A2a => A2aConfig::from_stored(config).map(Self::A2a),
            AgentKind::Http => Some(Self::Http),
            AgentKind::OpenAi => ChatConfig::read(&Node::new("config", config?)).ok().map(Self::OpenAi),
            AgentKind::Responses => ResponsesConfig::read(&Node::new("config", config?)).ok().map(Self::Responses),
            AgentKind::Mcp => McpConfig::from_stored(config).map(Self::Mcp),
        }
    }
}
