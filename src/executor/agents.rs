//! The agents by name, as they are called. Rows are kept for a second, so that a busy executor asks once a second
//! for each, and a change works at once as far as people can tell.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use url::Url;
use uuid::Uuid;

use super::breakers::Breakers;
use crate::{
    access::OrganizationId,
    agent::{AgentKind, AgentStatus, ChatConfig, Credentials, RetryConfig, Secrets},
    breaker::Rules,
    db::{
        self,
        agents::{AgentRow, AgentWithBreaker},
    },
    input::Node,
    vault::{self, Vault},
};

/// How long a row is used without looking again.
const KEEP: Duration = Duration::from_secs(1);
/// Names that are remembered; above that, all are forgotten.
const MAX_NAMES: usize = 10_000;

/// How an agent is spoken to.
pub(super) enum Protocol {
    A2a,
    Http,
    OpenAi(ChatConfig),
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

type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Result<Arc<Agent>, NoAgent>)>>>;

/// See the module.
pub(super) struct Agents {
    pool: db::Pool,
    vault: Arc<Vault>,
    breakers: Breakers,
    /// Of agents that say nothing else.
    breaker_rules: Rules,
    slots: std::sync::Mutex<HashMap<(OrganizationId, String), Slot>>,
}

impl Agents {
    pub(super) fn new(pool: db::Pool, vault: Arc<Vault>, breakers: Breakers, breaker_rules: Rules) -> Self {
        Self { pool, vault, breakers, breaker_rules, slots: std::sync::Mutex::default() }
    }

    /// The organisation's agent of that name, if it may be called. Of many who ask at once, one asks the database.
    pub(super) async fn find(
        &self,
        organization: &OrganizationId,
        name: &str,
    ) -> Result<Result<Arc<Agent>, NoAgent>, db::Error> {
        let slot = self.slot(organization, name);
        let mut entry = slot.lock().await;
        if let Some((read_at, known)) = &*entry
            && read_at.elapsed() < KEEP
        {
            return Ok(known.clone());
        }
        let (pool, whose, wanted) = (self.pool.clone(), organization.clone(), name.to_owned());
        let began = Instant::now();
        let found = db::bounded(async move { db::agents::find_to_call(&pool, &whose, &wanted).await });
        let found = found.await?.map(|AgentWithBreaker { agent, breaker }| {
            self.breakers.observe(agent.id, breaker.into(), began);
            agent
        });
        let found = match found {
            None => Err(NoAgent::Unknown(name.to_owned())),
            Some(row) if row.status == AgentStatus::Active.as_str() => self.read(row).map(Arc::new),
            Some(row) => Err(NoAgent::NotActive(name.to_owned(), row.status)),
        };
        *entry = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    fn slot(&self, organization: &OrganizationId, name: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_NAMES {
            slots.clear();
        }
        Arc::clone(slots.entry((organization.clone(), name.to_owned())).or_default())
    }
}

impl Agents {
    fn read(&self, row: AgentRow) -> Result<Agent, NoAgent> {
        let config = row.auth_config.as_ref().map(|config| self.vault.open(row.id, &config.0)).transpose();
        let breaker_config = row.circuit_breaker_config.as_ref().map(|config| &*config.0);
        let protocol = Protocol::read(&row.kind, row.config.as_ref().map(|config| &*config.0));
        Ok(Agent {
            id: row.id,
            protocol: protocol.ok_or_else(|| NoAgent::UnknownKind(row.name.clone()))?,
            breaker: self.breaker_rules.of_agent(breaker_config),
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
