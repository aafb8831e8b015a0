//! The agents by name, as they are called. Rows are kept for a second, for their breakers, and as long as they are what
//! the begin of a step has seen: a change that was answered counts for every step that begins after it, and costs an
//! executor one look, though agents are changed by other processes.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use url::Url;
use uuid::Uuid;

use crate::{
    access::OrganizationId,
    agent::{AgentKind, AgentStatus, ChatConfig, Credentials, RetryConfig, Secrets},
    breaker::Rules,
    cache::Cache,
    db::{
        self,
        agents::{AgentRow, AgentWithBreaker},
        breakers::SharedBreaker,
    },
    input::Node,
    vault::{self, Vault},
};

/// How long a row is used without looking again.
const KEEP: Duration = Duration::from_secs(1);
/// Names that are remembered.
const MAX_NAMES: usize = 10_000;

/// How an agent is spoken to.
pub(super) enum Protocol {
    A2a,
    Http,
    OpenAi(ChatConfig),
}

/// The breaker of an agent, as it was read with it.
pub(super) struct ReadBreaker {
    pub(super) shared: SharedBreaker,
    /// When the statement began.
    pub(super) began: Instant,
}

/// An agent to call. Has no `Debug`, since it holds secrets.
pub(super) struct Agent {
    pub(super) id: Uuid,
    pub(super) name: String,
    /// `None`: what is stored is none.
    pub(super) url: Option<Url>,
    pub(super) protocol: Protocol,
    /// Of one attempt, all in all.
    pub(super) timeout: Duration,
    pub(super) retry: RetryConfig,
    pub(super) breaker: Rules,
    pub(super) read_breaker: ReadBreaker,
    /// The error: what is stored cannot be read.
    pub(super) credentials: Result<Credentials, vault::Sealed>,
    /// What its errors are freed from.
    pub(super) secrets: Secrets,
}

/// Why there is no agent to call. `Display` is fit for the step's error message.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NoAgent {
    #[error("agent '{0}' does not exist")]
    Unknown(String),
    #[error("agent '{0}' is {1}")]
    NotActive(String, String),
    #[error("agent '{0}' has a kind or a config that this executor does not know")]
    UnknownKind(String),
}

/// What the begin of a step has seen of its agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Before it was written.
    pub(super) since: Instant,
    /// Of the agent's row, if there was one.
    pub(super) version: Option<i64>,
}

/// What was read of an agent.
struct Known {
    /// Before it was read.
    at: Instant,
    version: Option<i64>,
    found: Result<Arc<Agent>, NoAgent>,
}

impl Known {
    /// Whether a step that has seen this may use it.
    fn is_fit_for(&self, seen: Seen) -> bool {
        self.at >= seen.since || (self.version == seen.version && self.at.elapsed() < KEEP)
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Known>>>;

/// See the module.
pub(super) struct Agents {
    pool: db::Pool,
    vault: Arc<Vault>,
    /// Of agents that say nothing else.
    breaker_rules: Rules,
    slots: std::sync::Mutex<Cache<(OrganizationId, String), Slot>>,
}

impl Agents {
    pub(super) fn new(pool: db::Pool, vault: Arc<Vault>, breaker_rules: Rules) -> Self {
        let slots = std::sync::Mutex::new(Cache::new(MAX_NAMES));
        Self { pool, vault, breaker_rules, slots }
    }

    /// The organisation's agent of that name as it was when the step began or later, if it may be called. Of many who ask
    /// at once, one asks the database.
    pub(super) async fn find(
        &self,
        organization: &OrganizationId,
        name: &str,
        seen: Seen,
    ) -> Result<Result<Arc<Agent>, NoAgent>, db::Error> {
        let slot = self.slot(organization, name);
        let mut entry = slot.lock().await;
        if let Some(known) = entry.as_ref().filter(|known| known.is_fit_for(seen)) {
            return Ok(known.found.clone());
        }
        let (pool, whose, wanted) = (self.pool.clone(), organization.clone(), name.to_owned());
        let began = Instant::now();
        let found = db::bounded(async move { db::agents::find_to_call(&pool, &whose, &wanted).await });
        let (version, found) = match found.await? {
            None => (None, Err(NoAgent::Unknown(name.to_owned()))),
            Some(AgentWithBreaker { agent, breaker, version }) => {
                let found = if agent.status == AgentStatus::Active.as_str() {
                    self.read(agent, ReadBreaker { shared: breaker.into(), began }).map(Arc::new)
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
    fn read(&self, row: AgentRow, read_breaker: ReadBreaker) -> Result<Agent, NoAgent> {
        let config = row.auth_config.as_ref().map(|config| self.vault.open(row.id, &config.0)).transpose();
        let breaker_config = row.circuit_breaker_config.as_ref().map(|config| &*config.0);
        let protocol = Protocol::read(&row.kind, row.config.as_ref().map(|config| &*config.0));
        Ok(Agent {
            id: row.id,
            protocol: protocol.ok_or_else(|| NoAgent::UnknownKind(row.name.clone()))?,
            breaker: self.breaker_rules.of_agent(breaker_config),
            read_breaker,
            secrets: Secrets::of(&row.url, config.as_ref().ok().and_then(Option::as_deref)),
            credentials: config.map(|config| Credentials::read(row.auth_type.as_deref(), config.as_deref())),
            timeout: Duration::from_millis(u64::try_from(row.timeout_ms).unwrap_or_default().max(1)),
            retry: RetryConfig::from_stored(row.retry_config.as_ref().map(|config| &*config.0)),
            name: row.name,
            url: row.url.parse().ok(),
        })
    }
}

impl Protocol {
    fn read(kind: &str, config: Option<&RawValue>) -> Option<Self> {
        match AgentKind::parse(kind)? {
            AgentKind::A2a => Some(Self::A2a),
            AgentKind::Http => Some(Self::Http),
            AgentKind::OpenAi => ChatConfig::read(&Node::new("config", config?)).ok().map(Self::OpenAi),
        }
    }
}
