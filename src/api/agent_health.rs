//! Whether an agent answers with its card.

use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Client, RequestBuilder};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    agent::AuthType,
    db::agents::AgentRow,
    input::{self, member},
    timestamp::Timestamp,
};

/// Where agents show their card, after A2A, <https://a2a-protocol.org>.
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
    /// The card.
    #[schema(value_type = Option<Object>)]
    agent_card: Option<Box<RawValue>>,
}

/// Fetches the agent's card with the agent's credentials.
pub async fn check(client: &Client, agent: &AgentRow) -> AgentHealth {
    let time = Duration::from_millis(u64::try_from(agent.timeout_ms).unwrap_or_default()).min(LONGEST_CHECK);
    let url = format!("{}{CARD_PATH}", agent.url.trim_end_matches('/'));
    let request = with_credentials(client.get(url), agent).timeout(time);
    let started = Instant::now();
    let timestamp = Timestamp::now();
    let unhealthy = |message: String, response_time_ms| AgentHealth {
        status: "unhealthy",
        message,
        response_time_ms,
        timestamp,
        agent_card: None,
    };
    let failed = |error: reqwest::Error, response_time_ms| {
        let message = if error.is_timeout() {
            format!("No answer within {} ms", time.as_millis())
        } else {
            "The agent cannot be reached".to_owned()
        };
        unhealthy(message, response_time_ms)
    };
    if agent.is_sealed() {
        return unhealthy("The agent's credentials are encrypted with a key that is not there".to_owned(), None);
    }
    let mut response = match request.header(header::CONTENT_TYPE, "application/json").send().await {
        Ok(response) => response,
        Err(error) => return failed(error, None),
    };
    let response_time_ms = Some(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    if response.status() != StatusCode::OK {
        return unhealthy(format!("The agent answered with status {}", response.status().as_u16()), response_time_ms);
    }
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => return failed(error, response_time_ms),
        }
        if body.len() > MAX_CARD_BYTES {
            return unhealthy("The agent's card is larger than 1 MiB".to_owned(), response_time_ms);
        }
    }
    let card = serde_json::from_slice::<Box<RawValue>>(&body).ok().filter(|card| card.get().starts_with('{'));
    let Some(card) = card else {
        return unhealthy("The agent's card is not a JSON object".to_owned(), response_time_ms);
    };
    let description = member(&card, "description").and_then(input::text).filter(|text| !text.is_empty());
    let message = description.unwrap_or_else(|| "The agent answers".to_owned());
    AgentHealth { status: "healthy", message, response_time_ms, timestamp, agent_card: Some(card) }
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
