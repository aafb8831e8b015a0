//! Agent cards: how an agent describes itself.

use http::{HeaderMap, header};
use serde_json::{Value, json};

use super::Skill;

/// The card of the agent that has this one skill. Its URL is the one that the card was asked at.
pub(super) fn of(skill: Skill, headers: &HeaderMap) -> Value {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    json!({
        "protocolVersion": "0.3.0",
        "name": format!("demo-{}", skill.name()),
        "description": skill.description(),
        "url": format!("http://{host}{}", skill.path()),
        "preferredTransport": "JSONRPC",
        "version": env!("CARGO_PKG_VERSION"),
        "capabilities": {"streaming": false, "pushNotifications": false, "stateTransitionHistory": false},
        "defaultInputModes": ["text/plain", "application/json"],
        "defaultOutputModes": ["text/plain", "application/json"],
        "skills": [{
            "id": skill.name(),
            "name": skill.name(),
            "description": skill.description(),
            "tags": ["demo", "text"],
        }],
    })
}
