//! Settings of agents that are a tool of an MCP server.

use serde_json::value::RawValue;

use crate::{
    input::{FieldError, Node, Read},
    mcp::Revision,
    usage::Price,
};

/// Members of the `config` of an agent of kind `mcp`.
const MEMBERS: [&str; 3] = ["tool", "protocol", "price"];
/// Length of a tool's name.
const TOOL_CHARS: std::ops::RangeInclusive<usize> = 1..=128;

/// Settings of a tool of an MCP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct McpConfig {
    /// Name of the tool.
    pub tool: String,
    /// Revision to speak; `None`: the one that the server knows.
    pub protocol: Option<Revision>,
}

impl McpConfig {
    /// Revisions that can be chosen.
    pub const REVISIONS: [&str; 3] = ["2026-07-28", "2025-11-25", "2025-06-18"];

    /// Reads an agent's `config`; unknown members are errors.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors: Vec<FieldError> = Vec::new();
        object.only(&MEMBERS, &mut errors);
        let tool = object.required("tool", &mut errors, |node| node.not_blank(TOOL_CHARS));
        let protocol = object.nullable("protocol", &mut errors, |node| {
            node.parsed(|name| match name {
                "auto" => Ok(None),
                name if Self::REVISIONS.contains(&name) => Ok(Revision::parse(name)),
                _ => Err(format!("must be one of auto, {}", Self::REVISIONS.join(", "))),
            })
        });
        // It is read where it is used.
        object.nullable("price", &mut errors, Price::read);
        match tool {
            Some(tool) if errors.is_empty() => Ok(Self { tool, protocol: protocol.flatten() }),
            _ => Err(errors),
        }
    }

    /// Reads the stored `config`.
    #[must_use]
    pub fn from_stored(stored: Option<&RawValue>) -> Option<Self> {
        Self::read(&Node::new("config", stored?)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn read(config: &str) -> Read<McpConfig> {
        McpConfig::read(&Node::new("config", check_json(config.as_bytes()).expect(config)))
    }

    #[test]
    fn a_config_names_a_tool_and_perhaps_a_revision() {
        for (config, protocol) in [
            (r#"{"tool":"add"}"#, None),
            (r#"{"tool":"add","protocol":"auto"}"#, None),
            (r#"{"tool":"add","protocol":"2026-07-28"}"#, Some(Revision::Modern)),
            (r#"{"tool":"add","protocol":"2025-06-18"}"#, Some(Revision::Legacy("2025-06-18"))),
        ] {
            assert_eq!(read(config).expect(config), McpConfig { tool: "add".to_owned(), protocol });
        }
        for (config, expected) in [
            ("{}", "config.tool missing"),
            (r#"{"tool":" "}"#, "config.tool value_error"),
            (r#"{"tool":1}"#, "config.tool string_type"),
            (r#"{"tool":"a","protocol":"2024-11-05"}"#, "config.protocol value_error"),
            (r#"{"tool":"a","model":"m"}"#, "config.model extra_forbidden"),
        ] {
            let errors = read(config).expect_err(config);
            let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
            assert_eq!(found, [expected], "{config}");
        }
        assert!(read(&format!(r#"{{"tool":"{}"}}"#, "x".repeat(129))).is_err());
        assert!(McpConfig::from_stored(None).is_none());
    }
}
