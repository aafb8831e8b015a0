//! Agent kinds: the protocols of agents, and their settings.

use serde_json::value::RawValue;
use url::Url;

use super::{
    a2a::A2aConfig,
    mcp::McpConfig,
    model::{MODEL_CHARS, PROMPT_CHARS, is_json, read_format, read_parameters},
    responses::ResponsesConfig,
};
use crate::{
    input::{FieldError, Node, Read, member},
    usage::Price,
};

/// Members of the `config` of a chat agent.
const CHAT_MEMBERS: [&str; 6] = ["model", "system_prompt", "parameters", "response_format", "streaming", "price"];
/// Members of the `config` of a plain HTTP agent.
const HTTP_MEMBERS: [&str; 1] = ["price"];
/// Parameters of a chat request that other members determine.
const OWN_PARAMETERS: [&str; 4] = ["model", "messages", "stream", "response_format"];

/// Protocol of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentKind {
    /// A2A over JSON-RPC 2.0, as used by the reference deployment's agents.
    A2a,
    /// A plain HTTP endpoint: JSON in, JSON out.
    Http,
    /// OpenAI-compatible chat completions.
    OpenAi,
    /// The Responses API of OpenAI and of Open Responses.
    Responses,
    /// A tool of an MCP server.
    Mcp,
}

impl AgentKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::A2a, Self::Http, Self::OpenAi, Self::Responses, Self::Mcp];

    /// Text in the `kind` column and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A2a => "a2a",
            Self::Http => "http",
            Self::OpenAi => "openai",
            Self::Responses => "responses",
            Self::Mcp => "mcp",
        }
    }

    /// Parses a kind in lower case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    pub(super) fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| {
            Self::parse(&name.to_lowercase())
                .ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// Settings of a chat besides the input of the step.
#[derive(Clone, Debug)]
pub struct ChatConfig {
    /// Name of the model.
    pub model: String,
    /// System prompt before the messages of the step.
    pub system_prompt: Option<String>,
    /// Further members of the request, such as `temperature` and `max_tokens`.
    pub parameters: Option<Box<RawValue>>,
    /// Response format of the API; `None`: text.
    pub response_format: Option<Box<RawValue>>,
    /// Whether the answer is streamed.
    pub streaming: bool,
}

impl ChatConfig {
    /// Reads an agent's `config`; unknown members are errors.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors: Vec<FieldError> = object
            .unknown(&CHAT_MEMBERS)
            .iter()
            .map(|node| node.error("extra_forbidden", "Extra inputs are not permitted"))
            .collect();
        let model = object.required("model", &mut errors, |node| node.not_blank(MODEL_CHARS));
        let system_prompt = object.nullable("system_prompt", &mut errors, |node| node.string(PROMPT_CHARS));
        let is_own = |name: &str| OWN_PARAMETERS.contains(&name);
        let parameters = object.nullable("parameters", &mut errors, |node| read_parameters(node, is_own));
        let response_format = object.nullable("response_format", &mut errors, read_format);
        let streaming = object.nullable("streaming", &mut errors, Node::boolean).unwrap_or_default();
        // It is read where it is used.
        object.nullable("price", &mut errors, Price::read);
        match model {
            Some(model) if errors.is_empty() => {
                Ok(Self { model, system_prompt, parameters, response_format, streaming })
            }
            _ => Err(errors),
        }
    }

    /// Whether the answer must be JSON.
    #[must_use]
    pub fn wants_json(&self) -> bool {
        is_json(self.response_format.as_deref())
    }
}

/// Endpoint of an OpenAI-compatible API. The agent's URL is the base (`https://host/v1`), or that of chat completions or
/// of responses.
#[must_use]
pub fn model_url(agent_url: &Url, path: &str) -> Url {
    let mut url = agent_url.clone();
    let base = url.path().trim_end_matches('/');
    let base = ["/chat/completions", "/responses"].iter().find_map(|end| base.strip_suffix(end)).unwrap_or(base);
    let path = format!("{base}/{path}");
    url.set_path(&path);
    url
}

/// Validates the `config` to store against the kind.
pub(super) fn checked_config(kind: AgentKind, config: Option<&RawValue>) -> Read<Option<Box<RawValue>>> {
    let config = config.filter(|config| config.get() != "null");
    match (kind, config) {
        (AgentKind::A2a | AgentKind::Http, None) => Ok(None),
        (AgentKind::A2a, Some(config)) => {
            A2aConfig::read(&Node::new("body.config", config)).map(|_| Some(config.to_owned()))
        }
        (AgentKind::Http, Some(config)) => {
            if member(config, "price").is_none() {
                return Err(vec![FieldError::rule("body.config", "must be null, or have a price, for kind http")]);
            }
            let object = Node::new("body.config", config).object()?;
            let mut errors = Vec::new();
            object.only(&HTTP_MEMBERS, &mut errors);
            object.required("price", &mut errors, Price::read);
            if errors.is_empty() { Ok(Some(config.to_owned())) } else { Err(errors) }
        }
        (AgentKind::OpenAi | AgentKind::Responses | AgentKind::Mcp, None) => {
            let wanted = if kind == AgentKind::Mcp { "tool" } else { "model" };
            let text = format!("must be an object with a {wanted} for kind {}", kind.as_str());
            Err(vec![FieldError::rule("body.config", text)])
        }
        (AgentKind::OpenAi, Some(config)) => {
            ChatConfig::read(&Node::new("body.config", config)).map(|_| Some(config.to_owned()))
        }
        (AgentKind::Responses, Some(config)) => {
            ResponsesConfig::read(&Node::new("body.config", config)).map(|_| Some(config.to_owned()))
        }
        (AgentKind::Mcp, Some(config)) => {
            McpConfig::read(&Node::new("body.config", config)).map(|_| Some(config.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn a_chat_agents_url_is_its_base_or_its_endpoint() {
        for (given, expected) in [
            ("https://api.example/v1", "https://api.example/v1/chat/completions"),
            ("https://api.example/v1/", "https://api.example/v1/chat/completions"),
            ("http://llm:11434/", "http://llm:11434/chat/completions"),
            (
                "https://x.example/v1/chat/completions?api-version=7",
                "https://x.example/v1/chat/completions?api-version=7",
            ),
        ] {
            let url = Url::parse(given).expect(given);
            assert_eq!(model_url(&url, "chat/completions").as_str(), expected);
        }
        let url = Url::parse("https://x.example/v1/chat/completions").expect("a URL");
        assert_eq!(model_url(&url, "models").as_str(), "https://x.example/v1/models");
        let url = Url::parse("https://x.example/v1/responses/").expect("a URL");
        assert_eq!(model_url(&url, "responses/r").as_str(), "https://x.example/v1/responses/r");
    }

    #[test]
    fn a_config_must_fit_its_kind() {
        let rule = "body.config value_error";
        for (kind, config, expected) in [
            (AgentKind::A2a, "null", &[][..]),
            (AgentKind::A2a, "{}", &[]),
            (AgentKind::A2a, r#"{"model":"m"}"#, &["body.config.model extra_forbidden"]),
            (AgentKind::OpenAi, r#"{"model":"m","streaming":1}"#, &["body.config.streaming bool_type"]),
            (AgentKind::Http, r#"{"model":"m"}"#, &[rule]),
            (AgentKind::Http, r#"{"price":{},"model":"m"}"#, &["body.config.model extra_forbidden"]),
            (AgentKind::Http, r#"{"price":{"call":0.01}}"#, &[]),
            (AgentKind::Http, r#"{"price":{"call":-1}}"#, &["body.config.price.call value_error"]),
            (AgentKind::A2a, r#"{"price":{"each":1}}"#, &["body.config.price.each extra_forbidden"]),
            (AgentKind::OpenAi, r#"{"model":"m","price":{"input":0.15,"output":"0.6"}}"#, &[]),
            (AgentKind::OpenAi, r#"{"model":"m","price":7}"#, &["body.config.price model_attributes_type"]),
            (AgentKind::OpenAi, "null", &[rule]),
            (AgentKind::Responses, "null", &[rule]),
            (AgentKind::Responses, r#"{"model":"m"}"#, &[]),
            (AgentKind::Responses, r#"{"model":"m","price":{"output":2}}"#, &[]),
            (AgentKind::Responses, r#"{"model":"m","price":{"each":2}}"#, &["body.config.price.each extra_forbidden"]),
            (AgentKind::Mcp, "null", &[rule]),
            (AgentKind::Mcp, r#"{"tool":"t"}"#, &[]),
            (AgentKind::Mcp, r#"{"tool":"t","price":{"call":"0.01"}}"#, &[]),
            (AgentKind::Mcp, r#"{"tool":"t","price":7}"#, &["body.config.price model_attributes_type"]),
            (AgentKind::Mcp, r#"{"model":"m"}"#, &["body.config.model extra_forbidden", "body.config.tool missing"]),
            (AgentKind::OpenAi, "[]", &["body.config model_attributes_type"]),
            (AgentKind::OpenAi, "{}", &["body.config.model missing"]),
            (AgentKind::OpenAi, r#"{"model":" "}"#, &["body.config.model value_error"]),
            (AgentKind::OpenAi, r#"{"model":"m"}"#, &[]),
            (
                AgentKind::OpenAi,
                r#"{"model":"m","system_prompt":"s","parameters":{"temperature":0},"response_format":"json"}"#,
                &[],
            ),
            (
                AgentKind::OpenAi,
                r#"{"model":"m","system_prompt":null,"parameters":null,"response_format":{"type":"json_schema"}}"#,
                &[],
            ),
            (AgentKind::OpenAi, r#"{"model":"m","temperature":1}"#, &["body.config.temperature extra_forbidden"]),
            (
                AgentKind::OpenAi,
                r#"{"model":"m","parameters":{"stream":true}}"#,
                &["body.config.parameters.stream value_error"],
            ),
            (
                AgentKind::OpenAi,
                r#"{"model":"m","response_format":"xml"}"#,
                &["body.config.response_format value_error"],
            ),
        ] {
            let config = check_json(config.as_bytes()).expect(config);
            let errors = checked_config(kind, Some(config)).err().unwrap_or_default();
            let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
            assert_eq!(found, expected, "{config}");
        }
    }
}
