//! Connections to MCP servers, and what is known of them. The revision that a server speaks is found out once and
//! remembered for an hour; a session of an older revision is shared by the calls of an agent. The list of tools is read
//! beside the calls and stored, for those who define workflows.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tokio::sync::{OnceCell, watch};
use uuid::Uuid;

use super::agents::Agent;
use crate::{
    access::OrganizationId,
    agent::{Credentials, McpConfig},
    cache::Cache,
    clock::Clock,
    db::{
        self,
        agent_cards::{self, CardOwner, CardRow, Checked},
    },
    egress::Egress,
    input::{member, shorten_to},
    mcp::{
        Link,
        tools::{self, Description, Parameters},
    },
    mcp_client::{Connected, Fault, Server, ServerError},
    offload::Offload,
    workflow::InputSchema,
};

/// Time for which a connection is used, and a revision is spoken, before it is found out again.
const KEEP_LINK: Duration = Duration::from_hours(1);
/// Time between two requests for a list of tools.
const LIST_AGE: Duration = Duration::from_mins(5);
/// How long the first structured outputs of an agent wait for the list of tools, together.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Part of the agent's time-out that they wait at most.
const WAIT_SHARE: u32 = 4;
/// Time-out of all requests for one list.
const LIST_TIME: Duration = Duration::from_secs(10);
/// Maximum number of agents that are remembered.
const MAX_AGENTS: usize = 10_000;
/// Maximum length of a problem.
const MAX_PROBLEM_CHARS: usize = 300;

/// The MCP servers that this executor calls. Cheap to clone.
#[derive(Clone)]
pub(super) struct McpServers(Arc<Shared>);

struct Shared {
    pool: db::Pool,
    egress: Egress,
    clock: Clock,
    /// Whether a changed list is an entry of the audit trail.
    audit: bool,
    /// By agent and version of its row, so that a change of the agent leaves its connection behind.
    slots: Mutex<Cache<(Uuid, i64), Arc<Slot>>>,
}

/// What is known about the server of one agent.
#[derive(Default)]
struct Slot {
    /// Held while a connection is opened, so that calls share it.
    link: tokio::sync::Mutex<Option<Open>>,
    known: Mutex<Known>,
    /// Whether it was tried to find out what the tools are.
    is_certain: watch::Sender<bool>,
}

/// Schema of the structured output of a tool.
pub(super) struct OutputSchema {
    schema: Box<RawValue>,
    /// `None`: it cannot be used.
    compiled: OnceCell<Option<InputSchema>>,
}

impl OutputSchema {
    /// Why this is not what the tool has promised; `None`: it is, or that cannot be said.
    pub(super) async fn violation(
        self: &Arc<Self>,
        offload: &Offload,
        organization: &OrganizationId,
        structured: &RawValue,
    ) -> Option<String> {
        let this = Arc::clone(self);
        if self.compiled.get().is_none() {
            let compiled = offload.run(organization, move || InputSchema::compile(&this.schema)).await.ok()?;
            // The first one has compiled the same.
            let _ = self.compiled.set(compiled.ok());
        }
        let schema = self.compiled.get()?.as_ref()?;
        let checked = if let Some(checked) = schema.check_small(structured) {
            checked
        } else {
            let (this, structured) = (Arc::clone(self), structured.to_owned());
            let check = move || this.compiled.get().and_then(Option::as_ref).map(|schema| schema.check(&structured));
            offload.run(organization, check).await.ok()??
        };
        let error = checked.err()?.into_iter().next().filter(|error| error.kind != "schema_too_costly")?;
        let at = error.field.strip_prefix(CHECKED_AT).unwrap_or_default();
        Some(format!("structuredContent{at} {}", error.message))
    }
}

/// Where a schema finds what is wrong.
const CHECKED_AT: &str = "body.input_data";

/// Connection, and when it was opened.
struct Open {
    link: Arc<Link>,
    /// `None`: the server was not asked.
    description: Option<Description>,
    at: Instant,
}

#[derive(Default)]
struct Known {
    /// Instant at which the list is requested again; `None`: now.
    due: Option<Instant>,
    /// Whether a request is under way.
    is_refreshing: bool,
    /// Parameters of the agent's tool that headers repeat.
    parameters: Arc<Parameters>,
    /// What the tool says about its structured output.
    output: Option<Arc<OutputSchema>>,
    /// When the revision was noted.
    noted: Option<(&'static str, Instant)>,
}

impl Slot {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl McpServers {
    pub(super) fn new(pool: db::Pool, egress: Egress, clock: Clock, audit: bool) -> Self {
        Self(Arc::new(Shared { pool, egress, clock, audit, slots: Mutex::new(Cache::new(MAX_AGENTS)) }))
    }

    fn slot(&self, agent: &Agent) -> Arc<Slot> {
        let key = (agent.id, agent.version);
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(key, Arc::default)
    }

    fn server<'a>(&'a self, agent: &'a Agent) -> Result<Server<'a>, ServerError> {
        let unusable = |text: String| ServerError { text, fault: Fault::Unusable };
        let url = agent.url.as_ref().ok_or_else(|| unusable("its URL cannot be called".to_owned()))?;
        let credentials: &Credentials =
            agent.credentials.as_ref().map_err(|sealed| unusable(format!("its auth_config is {sealed}")))?;
        Ok(Server { egress: &self.0.egress, clock: &self.0.clock, url, credentials })
    }

    /// The connection to the agent's server. Calls that begin together open one.
    pub(super) async fn connect(&self, agent: &Agent, config: &McpConfig) -> Result<Arc<Link>, ServerError> {
        let slot = self.slot(agent);
        let mut open = slot.link.lock().await;
        if let Some(open) = open.as_ref().filter(|open| self.0.clock.since(open.at) < KEEP_LINK) {
            return Ok(Arc::clone(&open.link));
        }
        *open = None;
        let Connected { link, description } = self.server(agent)?.connect(config.protocol).await?;
        let link = Arc::new(link);
        *open = Some(Open { link: Arc::clone(&link), description, at: self.0.clock.instant() });
        Ok(link)
    }

    /// Drops a connection that the server does not know any more, or whose revision it does not speak.
    pub(super) async fn forget(&self, agent: &Agent, link: &Arc<Link>) {
        let slot = self.slot(agent);
        let mut open = slot.link.lock().await;
        if open.as_ref().is_some_and(|open| Arc::ptr_eq(&open.link, link)) {
            *open = None;
        }
    }

    /// Parameters of the agent's tool that headers repeat, as far as they are known.
    pub(super) fn parameters(&self, agent: &Agent) -> Arc<Parameters> {
        Arc::clone(&self.slot(agent).known().parameters)
    }

    /// What the agent's tool says about its structured output. If nothing is known of the tools yet, the list is awaited
    /// for a short time.
    pub(super) async fn output_schema(
        &self,
        agent: &Arc<Agent>,
        organization: &OrganizationId,
        config: &McpConfig,
    ) -> Option<Arc<OutputSchema>> {
        let slot = self.slot(agent);
        let mut is_certain = slot.is_certain.subscribe();
        if !*is_certain.borrow() {
            self.refresh_if_due(&slot, agent, organization, config);
            tokio::select! {
                _ = is_certain.wait_for(|certain| *certain) => {}
                () = self.0.clock.sleep(FIRST_WAIT.min(agent.timeout / WAIT_SHARE)) => {}
            }
        }
        slot.known().output.clone()
    }

    /// Reads the list of tools now.
    pub(super) async fn refresh(&self, agent: &Arc<Agent>, organization: &OrganizationId, config: &McpConfig) {
        let owner = owner(agent, organization);
        self.read_list(&self.slot(agent), &owner, agent, config).await;
    }

    /// Notes that the agent has answered, and reads the list of tools beside the calls, if it is due.
    pub(super) fn answered(
        &self,
        agent: &Arc<Agent>,
        organization: &OrganizationId,
        config: &McpConfig,
        link: &Arc<Link>,
    ) {
        let (slot, now, version) = (self.slot(agent), self.0.clock.instant(), link.revision.as_str());
        let is_new = {
            let mut known = slot.known();
            let is_new = known.noted.is_none_or(|(noted, at)| noted != version || now.duration_since(at) >= KEEP_LINK);
            if is_new {
                known.noted = Some((version, now));
            }
            is_new
        };
        if is_new {
            let (pool, owner) = (self.0.pool.clone(), owner(agent, organization));
            tokio::spawn(async move {
                let written = db::bounded(async move { agent_cards::record_version(&pool, &owner, version).await });
                if let Err(error) = written.await {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "the revision of an MCP server is not noted: {error}"
                    );
                }
            });
        }
        self.refresh_if_due(&slot, agent, organization, config);
    }

    /// Begins to read the list of tools, if it is due and nobody reads it.
    fn refresh_if_due(&self, slot: &Arc<Slot>, agent: &Arc<Agent>, organization: &OrganizationId, config: &McpConfig) {
        let mut known = slot.known();
        if known.is_refreshing || known.due.is_some_and(|due| due > self.0.clock.instant()) {
            return;
        }
        known.is_refreshing = true;
        drop(known);
        let (this, slot, agent, config) = (self.clone(), Arc::clone(slot), Arc::clone(agent), config.clone());
        let owner = owner(&agent, organization);
        // A task of its own, since calls may be abandoned.
        tokio::spawn(async move {
            if !this.take_stored(&slot, &owner, &config).await {
                this.read_list(&slot, &owner, &agent, &config).await;
            }
            let mut known = slot.known();
            known.is_refreshing = false;
            known.due = Some(this.0.clock.instant() + LIST_AGE);
            drop(known);
            slot.is_certain.send_replace(true);
        });
    }

    /// Takes a list over that another executor has read not long ago.
    async fn take_stored(&self, slot: &Slot, owner: &CardOwner, config: &McpConfig) -> bool {
        let (pool, id, url) = (self.0.pool.clone(), owner.agent_id, owner.url.clone());
        let row = db::bounded(async move { agent_cards::find(&pool, id, &url).await }).await.ok().flatten();
        let is_fresh = |row: &CardRow| {
            let age = row.checked_at.map(|at| (row.read_at - at).to_std().unwrap_or_default());
            age.is_some_and(|age| age < LIST_AGE)
        };
        let Some(list) = row.filter(is_fresh).and_then(|row| row.card) else { return false };
        slot.known().learn(&list.0, config);
        true
    }

    /// Reads the list of tools, and stores it.
    async fn read_list(&self, slot: &Slot, owner: &CardOwner, agent: &Agent, config: &McpConfig) {
        let read = tokio::time::timeout(LIST_TIME, self.list(slot, agent, config)).await;
        let read = read.unwrap_or_else(|_| {
            Err(ServerError { text: "no list of tools in time".to_owned(), fault: Fault::Network })
        });
        let checked = match read {
            Ok(list) => {
                slot.known().learn(&list, config);
                Checked::Card { card: list, etag: None, signature: None }
            }
            Err(error) => {
                let text = agent.secrets.mask(format!("the list of tools cannot be read: {error}"));
                let text = agent.credentials.as_ref().map_or(text.clone(), |known| self.0.egress.mask(known, text));
                Checked::Failed(shorten_to(&text, MAX_PROBLEM_CHARS).into_owned())
            }
        };
        let (pool, owner, audit) = (self.0.pool.clone(), owner.clone(), self.0.audit);
        let written = db::bounded(async move { agent_cards::record(&pool, &owner, checked, None, audit).await });
        if let Err(error) = written.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "a list of tools is not stored: {error}");
        }
    }

    async fn list(&self, slot: &Slot, agent: &Agent, config: &McpConfig) -> Result<Box<RawValue>, ServerError> {
        let link = self.connect(agent, config).await?;
        let server = self.server(agent)?;
        let list = server.tools(&link).await?;
        let known = slot.link.lock().await.as_ref().and_then(|open| open.description.clone());
        let description = match known {
            Some(known) => known,
            // It is no condition.
            None => server.describe().await.unwrap_or_default(),
        };
        Ok(list.described(&description))
    }
}

impl Known {
    /// Notes what a list of tools says about the agent's tool.
    fn learn(&mut self, list: &RawValue, config: &McpConfig) {
        let tool = tools::find(list, &config.tool);
        self.parameters = Arc::new(tool.and_then(|tool| Parameters::of_tool(tool).ok()).unwrap_or_default());
        let schema = tool.and_then(|tool| member(tool, "outputSchema")).filter(|schema| schema.get().starts_with('{'));
        // One that has not changed is not compiled again.
        let is_same = |known: &Arc<OutputSchema>| schema.is_some_and(|schema| schema.get() == known.schema.get());
        if !self.output.as_ref().is_some_and(is_same) {
            let new = |schema: &RawValue| OutputSchema { schema: schema.to_owned(), compiled: OnceCell::new() };
            self.output = schema.map(|schema| Arc::new(new(schema)));
        }
    }
}

fn owner(agent: &Agent, organization: &OrganizationId) -> CardOwner {
    CardOwner {
        agent_id: agent.id,
        url: agent.url.as_ref().map_or_else(String::new, |url| url.as_str().to_owned()),
        name: agent.name.clone(),
        organization: organization.clone(),
    }
}
