//! Health check of an agent, with its card if it has one.

use std::time::{Duration, Instant};

use http::{Method, StatusCode, header};
use reqwest::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use url::Url;
use utoipa::ToSchema;

use crate::{
    a2a::card,
    access::OrganizationId,
    agent::{AgentKind, Credentials, McpConfig, model_url, secrets_of},
    api::vocabulary::sets,
    clock::Clock,
    db::{self, agent_cards::CardOwner, agents::AgentRow},
    egress::{self, BodyError, Egress, RequestError},
    input::{self, member, shorten_to},
    mcp::tools,
    mcp_client::{Connected, Server},
    timestamp::Timestamp,
};

/// Maximum size of a card.
const MAX_CARD_BYTES: usize = 1 << 20;
/// Maximum time of a check, whatever the agent's own time-out is: the answer must precede the time-out of the
/// request.
const LONGEST_CHECK: Duration = Duration::from_secs(9);
/// Maximum length of a message, since a text from the agent may be longer.
const MAX_MESSAGE_CHARS: usize = 500;
/// Status of a healthy agent.
const HEALTHY: &str = "healthy";

/// Result of a health check.
#[derive(Serialize, ToSchema)]
pub struct AgentHealth {
    /// Status of the agent.
    #[schema(value_type = sets::AgentHealthStatus)]
    status: &'static str,
    /// Description from the card, or the error.
    message: String,
    /// Time until the HTTP answer; null if there was none.
    response_time_ms: Option<u64>,
    /// Time of the check.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// Card of an A2A agent, or an MCP server with its tools.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    agent_card: Option<Box<RawValue>>,
}

/// Tools of an MCP server that were read, and the revision that it speaks.
pub struct ReadTools {
    /// The server with its tools.
    pub list: Box<RawValue>,
    /// The revision.
    pub revision: &'static str,
}

/// Sends a request that costs nothing, with the agent's credentials: for the card of an A2A agent, the list of models of
/// an OpenAI-compatible one, or the list of tools of an MCP server. A plain HTTP agent has none; it is healthy if it
/// answers a GET with anything but a 5xx. An MCP server is healthy if it has the agent's tool. Messages contain no
/// credentials. A card may, and is shown unchanged to callers who may see them. Also returns the tools.
pub async fn check(egress: &Egress, agent: &AgentRow, with_secrets: bool) -> (AgentHealth, Option<ReadTools>) {
    let time = Duration::from_millis(u64::try_from(agent.timeout_ms).unwrap_or_default()).min(LONGEST_CHECK);
    let timestamp = Timestamp::now();
    let mut check = Check { egress, agent, response_time_ms: None, tools: None };
    let checked = tokio::time::timeout(time, check.run()).await;
    let checked = checked.unwrap_or_else(|_| {
        // An answer to an earlier request says nothing about the one that has none.
        check.response_time_ms = None;
        Err(format!("No answer within {} ms", time.as_millis()))
    });
    let auth_config = agent.auth_config.as_ref().map(|config| &*config.0);
    let secrets = secrets_of(&agent.url, auth_config);
    let credentials = Credentials::read(agent.auth_type.as_deref(), auth_config);
    let masked = |text: String| egress.mask(&credentials, secrets.mask(text));
    let (status, message, card) = match checked {
        Ok(Healthy { message, card }) => (HEALTHY, message, card),
        Err(message) => ("unhealthy", message, None),
    };
    let health = AgentHealth {
        status,
        message: shorten_to(&masked(message), MAX_MESSAGE_CHARS).into_owned(),
        response_time_ms: check.response_time_ms,
        timestamp,
        agent_card: card.and_then(|card| {
            if with_secrets { Some(card) } else { RawValue::from_string(masked(card.get().to_owned())).ok() }
        }),
    };
    (health, check.tools)
}

impl AgentHealth {
    /// Notes the result for the audit trail, which has an entry for each change of the agent's health. A failure does not
    /// fail the check.
    pub async fn record(&self, pool: &db::Pool, agent: &AgentRow, organization: &OrganizationId) {
        let owner = CardOwner {
            agent_id: agent.id,
            url: agent.url.clone(),
            name: agent.name.clone(),
            organization: organization.clone(),
        };
        let (is_healthy, message, pool) = (self.status == HEALTHY, self.message.clone(), pool.clone());
        let recorded = db::bounded(async move {
            if db::agent_health::was_healthy(&pool, owner.agent_id, &owner.url).await? == is_healthy {
                return Ok(());
            }
            db::agent_health::record_check(&pool, &owner, is_healthy, &message).await
        });
        if let Err(error) = recorded.await {
            let (agent, error) = (&agent.name, &error as &dyn std::error::Error);
            tracing::warn!(agent, error, "the health of agent {agent} is not recorded");
        }
    }
}

struct Healthy {
    message: String,
    card: Option<Box<RawValue>>,
}

/// Reason why there is no card at an address.
enum NoCard {
    /// The address has none.
    Missing(String),
    /// The answer is not a valid card.
    Wrong(String),
}

struct Check<'a> {
    egress: &'a Egress,
    agent: &'a AgentRow,
    /// Time until the last HTTP answer.
    response_time_ms: Option<u64>,
    /// Tools of an MCP server.
    tools: Option<ReadTools>,
}

impl Check<'_> {
    /// Runs the check. The error is the message about the failure.
    async fn run(&mut self) -> Result<Healthy, String> {
        if self.agent.is_sealed() {
            return Err("The agent's credentials are encrypted with a key that is not there".to_owned());
        }
        let url: Url = self.agent.url.parse().map_err(|_| "The agent's URL is not one".to_owned())?;
        match AgentKind::parse(&self.agent.kind).unwrap_or(AgentKind::A2a) {
            AgentKind::A2a => self.card(&url).await,
            AgentKind::Http => {
                let response = self.get(url).await?;
                let status = response.status();
                if status.is_server_error() {
                    return Err(refused(response).await);
                }
                let message = format!("The agent answers a GET with status {}", status.as_u16());
                Ok(Healthy { message, card: None })
            }
            AgentKind::Mcp => self.tool(&url).await,
            AgentKind::OpenAi | AgentKind::Responses => {
                let models = self.object(model_url(&url, "models"), "The agent's list of models").await;
                let models = models.map_err(|(NoCard::Missing(why) | NoCard::Wrong(why))| why)?;
                Ok(Healthy { message: described(&models), card: None })
            }
        }
    }

    /// The tool of the agent in the list of its MCP server.
    async fn tool(&mut self, url: &Url) -> Result<Healthy, String> {
        let config = McpConfig::from_stored(self.agent.config.as_ref().map(|config| &*config.0));
        let config = config.ok_or_else(|| "The agent's config cannot be used".to_owned())?;
        let auth_config = self.agent.auth_config.as_ref().map(|config| &*config.0);
        let credentials = Credentials::read(self.agent.auth_type.as_deref(), auth_config);
        let clock = Clock::default();
        let server = Server { egress: self.egress, clock: &clock, url, credentials: &credentials };
        let started = Instant::now();
        let connected = server.connect(config.protocol).await;
        let Connected { link, description } =
            connected.map_err(|error| format!("The MCP server cannot be connected: {error}"))?;
        self.response_time_ms = Some(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let description = match description {
            Some(description) => description,
            None => server.describe().await.unwrap_or_default(),
        };
        let list = server.tools(&link).await;
        let list = list.map_err(|error| format!("The list of tools cannot be read: {error}"))?.described(&description);
        self.tools = Some(ReadTools { list: list.clone(), revision: link.revision.as_str() });
        let Some(tool) = tools::find(&list, &config.tool) else {
            return Err(format!("The MCP server has no tool {:?}", input::shorten(&config.tool)));
        };
        Ok(Healthy { message: described(tool), card: Some(list) })
    }

    /// The first card that is found; if there is none, the error at the standard address.
    async fn card(&mut self, url: &Url) -> Result<Healthy, String> {
        let mut missing = None;
        for url in card::addresses(url) {
            match self.object(url, "The agent's card").await {
                Ok(card) => return Ok(Healthy { message: described(&card), card: Some(card) }),
                Err(NoCard::Missing(why)) => missing = missing.or(Some(why)),
                Err(NoCard::Wrong(why)) => return Err(why),
            }
        }
        Err(missing.unwrap_or_default())
    }

    async fn object(&mut self, url: Url, what: &str) -> Result<Box<RawValue>, NoCard> {
        let response = self.get(url).await.map_err(NoCard::Wrong)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE => {
                return Err(NoCard::Missing(refused(response).await));
            }
            _ => return Err(NoCard::Wrong(refused(response).await)),
        }
        let body = egress::read_body(response, MAX_CARD_BYTES, None).await.map_err(|error| {
            NoCard::Wrong(match error {
                BodyError::TooLarge(_) => format!("{what} is larger than 1 MiB"),
                BodyError::Broken(error) => cannot_reach(&error),
                error => format!("{what} cannot be read: {error}"),
            })
        })?;
        let object = body.json().map_err(|fault| NoCard::Wrong(format!("{what} is not JSON: {fault}")))?;
        if object.get().starts_with('{') {
            Ok(object.to_owned())
        } else {
            Err(NoCard::Wrong(format!("{what} is not a JSON object")))
        }
    }

    async fn get(&mut self, url: Url) -> Result<Response, String> {
        let started = Instant::now();
        let auth_config = self.agent.auth_config.as_ref().map(|config| &*config.0);
        let credentials = Credentials::read(self.agent.auth_type.as_deref(), auth_config);
        let request = self.egress.request_as(Method::GET, url, &credentials).await.map_err(|error| match error {
            RequestError::Unusable => {
                "The agent's auth_config lacks a value, or has one that cannot be sent in a header".to_owned()
            }
            error => error.to_string(),
        })?;
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let response = request.send().await.map_err(|error| cannot_reach(&error))?;
        self.response_time_ms = Some(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        Ok(response)
    }
}

/// Description of the agent from its card.
fn described(card: &RawValue) -> String {
    let description = member(card, "description").and_then(input::text).filter(|text| !text.is_empty());
    description.unwrap_or_else(|| "The agent answers".to_owned())
}

/// Message with the status, and the beginning of the answer.
async fn refused(response: Response) -> String {
    let status = response.status();
    let text = format!("The agent answered with status {}", status.as_u16());
    let excerpt = egress::read_body(response, MAX_CARD_BYTES, None).await.ok().and_then(|body| body.excerpt());
    excerpt.map_or_else(|| text.clone(), |excerpt| format!("{text}: {excerpt}"))
}

fn cannot_reach(error: &reqwest::Error) -> String {
    if egress::was_not_allowed(error) {
        return egress::NotAllowed.to_string();
    }
    let cause = egress::cause_of(error).map_or_else(String::new, |cause| format!(": {cause}"));
    format!("The agent cannot be reached{cause}")
}
