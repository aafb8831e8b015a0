//! Agent cards, which describe an agent.

use http::{HeaderMap, header};
use serde_json::{Value, json};

use super::Skill;

/// Card of the agent with this skill. Its URL is the one of the request.
pub(super) fn of(skill: Skill, headers: &HeaderMap) -> Value {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let url = format!("http://{host}{}", skill.path());
    json!({
        "supportedInterfaces": [
            {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
            {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "0.3"},
        ],
        "protocolVersion": "0.3.0",
        "name": format!("demo-{}", skill.name()),
        "description": skill.description(),
        "url": url,
        "preferredTransport": "JSONRPC",
        "version": env!("CARGO_PKG_VERSION"),
        "capabilities": {"streaming": true, "pushNotifications": false},
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
