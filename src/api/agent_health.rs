//! Whether an agent answers: with its card, if it has one.

use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::RequestBuilder;
use serde::Serialize;
use serde_json::value::RawValue;
use url::Url;
use utoipa::ToSchema;

use crate::{
    agent::{AgentKind, AuthType, chat_url},
    db::agents::AgentRow,
    egress::{self, BodyError, Egress},
    input::{self, member},
    timestamp::Timestamp,
};

/// Where A2A agents show their card, <https://a2a-protocol.org>.
const CARD_PATH: &str = "/.well-known/agent-card.json";
/// Largest card.
const MAX_CARD_BYTES: usize = 1 << 20;
/// The answer has to be there before the request for it times out, whatever the agent is allowed for its work.
const LONGEST_CHECK: Duration = Duration::from_secs(9);
/// Where an API key goes if the agent names no header.
const DEFAULT_KEY_HEADER: &str = "X-API-Key";

/// What a check found.
#[derive(Serialize, ToSchema)]
pub struct AgentHealth {
    /// `healthy` or `unhealthy`.
    status: &'static str,
    /// The card's description, or what is wrong.
    message: String,
    /// Until the HTTP answer; null if there was none.
    response_time_ms: Option<u64>,
    /// When the check was made.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// The card of an A2A agent.
    #[schema(value_type = Option<Object>)]
    agent_card: Option<Box<RawValue>>,
}

/// Asks the agent, with its credentials, for what costs nothing: an A2A agent for its card, an OpenAI-compatible one for
/// its list of models. A plain HTTP agent has neither; it is healthy if it answers a GET with anything but a 5xx.
pub async fn check(egress: &Egress, agent: &AgentRow) -> AgentHealth {
    let time = Duration::from_millis(u64::try_from(agent.timeout_ms).unwrap_or_default()).min(LONGEST_CHECK);
    let kind = AgentKind::parse(&agent.kind).unwrap_or(AgentKind::A2a);
    let started = Instant::now();
    let timestamp = Timestamp::now();
    let checked = ask(egress, agent, kind, time, started).await;
    let (status, (message, response_time_ms, agent_card)) = match checked {
        Ok(Healthy { message, response_time_ms, card }) => ("healthy", (message, Some(response_time_ms), card)),
        Err((message, response_time_ms)) => ("unhealthy", (message, response_time_ms, None)),
    };
    AgentHealth { status, message, response_time_ms, timestamp, agent_card }
}

struct Healthy {
    message: String,
    response_time_ms: u64,
    card: Option<Box<RawValue>>,
}

/// The error is what is wrong, and the time until the HTTP answer.
async fn ask(
    egress: &Egress,
    agent: &AgentRow,
    kind: AgentKind,
    time: Duration,
    started: Instant,
) -> Result<Healthy, (String, Option<u64>)> {
    let failed = |error: &reqwest::Error| {
        if error.is_timeout() {
            format!("No answer within {} ms", time.as_millis())
        } else if egress::was_not_allowed(error) {
            egress::NotAllowed.to_string()
        } else {
            "The agent cannot be reached".to_owned()
        }
    };
    if agent.is_sealed() {
        return Err(("The agent's credentials are encrypted with a key that is not there".to_owned(), None));
    }
    let url = match kind {
        AgentKind::A2a => format!("{}{CARD_PATH}", agent.url.trim_end_matches('/')).parse().ok(),
        AgentKind::Http => agent.url.parse().ok(),
        AgentKind::OpenAi => agent.url.parse().ok().map(|url: Url| chat_url(&url, "models")),
    };
    let url = url.ok_or_else(|| ("The agent's URL is not one".to_owned(), None))?;
    let request = egress.request(Method::GET, url).map_err(|error| (error.to_string(), None))?;
    let request = with_credentials(request, agent).timeout(time).header(header::CONTENT_TYPE, "application/json");
    let response = request.send().await.map_err(|error| (failed(&error), None))?;
    let response_time_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let unhealthy = |message: String| (message, Some(response_time_ms));
    let status = response.status();
    if kind == AgentKind::Http && !status.is_server_error() {
        let message = format!("The agent answers a GET with status {}", status.as_u16());
        return Ok(Healthy { message, response_time_ms, card: None });
    }
    if status != StatusCode::OK {
        return Err(unhealthy(format!("The agent answered with status {}", status.as_u16())));
    }
    let what = if kind == AgentKind::A2a { "The agent's card" } else { "The agent's list of models" };
    let body = egress::read_body(response, MAX_CARD_BYTES).await.map_err(|error| match error {
        BodyError::TooLarge(_) => unhealthy(format!("{what} is larger than 1 MiB")),
        BodyError::Broken(error) => unhealthy(failed(&error)),
    })?;
    let card = serde_json::from_slice::<Box<RawValue>>(&body).ok().filter(|card| card.get().starts_with('{'));
    let card = card.ok_or_else(|| unhealthy(format!("{what} is not a JSON object")))?;
    let description = member(&card, "description").and_then(input::text).filter(|text| !text.is_empty());
    let message = description.unwrap_or_else(|| "The agent answers".to_owned());
    Ok(Healthy { message, response_time_ms, card: (kind == AgentKind::A2a).then_some(card) })
}

fn with_credentials(request: RequestBuilder, agent: &AgentRow) -> RequestBuilder {
    let secret = |name: &str| {
        let stored = agent.auth_config.as_ref()?;
        member(&stored.0, name).and_then(input::text)
    };
    let header = match agent.auth_type.as_deref().and_then(AuthType::parse) {
        Some(AuthType::Bearer) => {
            secret("token").map(|token| (header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))))
        }
        Some(AuthType::ApiKey) => secret("key").and_then(|key| {
            let name = secret("header_name").unwrap_or_else(|| DEFAULT_KEY_HEADER.to_owned());
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(&key)))
        }),
        _ => None,
    };
    match header {
        Some((name, Ok(mut value))) => {
            value.set_sensitive(true);
            request.header(name, value)
        }
        _ => request,
    }
}
