//! Exposure of a workflow: the protocols by which it is offered besides the REST API. It belongs to the workflow, not to
//! its content: a change makes no new version.

use serde::{Deserialize, Serialize};

use crate::input::{FieldError, Node, Read};

/// Names of the tools that every MCP client finds, which no workflow may have.
pub const FIXED_TOOLS: [&str; 7] =
    ["approval_answer", "run_await", "run_cancel", "run_get", "run_start", "runs_list", "workflows_search"];

/// Length range of a tool's name.
const TOOL_NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=128;
/// Length range of a tool's description: models read all of them.
const DESCRIPTION_CHARS: std::ops::RangeInclusive<usize> = 1..=2000;
/// Length range of an example.
const EXAMPLE_CHARS: std::ops::RangeInclusive<usize> = 1..=1000;
/// Maximum number of examples.
const MAX_EXAMPLES: usize = 10;

/// Exposure of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Expose {
    /// Whether it is an A2A agent.
    pub a2a: bool,
    /// Whether its agent card is served without credentials.
    pub public_card: bool,
    /// Example inputs, for its agent card.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// Its tool, if it is one for MCP clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Tool>,
}

/// Tool of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tool {
    /// Name of the tool; `None`: the name of the workflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Description for models; `None`: that of the workflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl Expose {
    /// Members that [`Expose::read`] reads.
    pub const MEMBERS: [&'static str; 4] = ["a2a", "public_card", "examples", "mcp"];

    /// Reads the member `expose`. [`Expose::check`] has the rules that need the workflow's name.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let expose = Self {
            a2a: object.defaulted("a2a", &mut errors, false, Node::boolean),
            public_card: object.defaulted("public_card", &mut errors, false, Node::boolean),
            examples: object.defaulted("examples", &mut errors, Vec::new(), read_examples),
            mcp: object.nullable("mcp", &mut errors, Tool::read),
        };
        if errors.is_empty() { Ok(expose) } else { Err(errors) }
    }

    /// Checks the rules that need the workflow's name.
    pub fn check(&self, workflow: &str) -> Read<()> {
        let mut errors = Vec::new();
        if self.a2a && [".", ".."].contains(&workflow) {
            errors.push(FieldError::rule("body.expose.a2a", "the workflow's name cannot be a part of an address"));
        }
        if let Some(tool) = &self.mcp
            && let Err(text) = check_tool_name(tool.name.as_deref().unwrap_or(workflow))
        {
            let of = if tool.name.is_some() { "" } else { "the workflow's name is none: it " };
            errors.push(FieldError::rule("body.expose.mcp.name", format!("{of}{text}")));
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Name of the tool of a workflow with that name, if it is one.
    #[must_use]
    pub fn tool_name<'a>(&'a self, workflow: &'a str) -> Option<&'a str> {
        self.mcp.as_ref().map(|tool| tool.name.as_deref().unwrap_or(workflow))
    }

    /// The exposure; `None` if there is nothing in it.
    #[must_use]
    pub fn unless_empty(self) -> Option<Self> {
        Some(self).filter(|expose| *expose != Self::default())
    }
}

impl Tool {
    /// Members that [`Tool::read`] reads.
    const MEMBERS: [&'static str; 2] = ["name", "description"];

    fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let tool = Self {
            name: object.nullable("name", &mut errors, |node| node.string(TOOL_NAME_CHARS)),
            description: object.nullable("description", &mut errors, |node| node.not_blank(DESCRIPTION_CHARS)),
        };
        if errors.is_empty() { Ok(tool) } else { Err(errors) }
    }
}

/// Checks the name of a tool by the rules of MCP.
fn check_tool_name(name: &str) -> Result<(), &'static str> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if !is_plain || !TOOL_NAME_CHARS.contains(&name.len()) {
        Err("must have 1 to 128 letters, digits, `_`, `-` and `.`")
    } else if FIXED_TOOLS.contains(&name) {
        Err("must not be the name of a tool that is always there")
    } else {
        Ok(())
    }
}

fn read_examples(node: &Node<'_>) -> Read<Vec<String>> {
    let nodes = node.list()?;
    if nodes.len() > MAX_EXAMPLES {
        let message = format!("List should have at most {MAX_EXAMPLES} items after validation, not {}", nodes.len());
        return Err(vec![node.error("too_long", message)]);
    }
    nodes.iter().map(|node| node.not_blank(EXAMPLE_CHARS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    /// The `field kind` of each error of an exposure of the workflow with that name.
    fn check(workflow: &str, json: &str, expected: &[&str]) {
        let raw = check_json(json.as_bytes()).expect(json);
        let read = Expose::read(&Node::new("body.expose", raw)).and_then(|expose| expose.check(workflow));
        let errors = read.err().unwrap_or_default();
        let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
        assert_eq!(found, expected, "{json}");
    }

    #[test]
    fn an_exposure_names_protocols_and_a_valid_tool() {
        for json in [
            "{}",
            r#"{"a2a": true}"#,
            r#"{"a2a": true, "public_card": true, "examples": ["Sum up: …"], "mcp": {}}"#,
            r#"{"mcp": {"name": "a.B_c-1", "description": "Does it."}}"#,
            r#"{"mcp": null}"#,
        ] {
            check("flow", json, &[]);
        }
        check("flow", "[]", &["body.expose model_attributes_type"]);
        check("flow", r#"{"a2a": 1, "a2s": true}"#, &["body.expose.a2s extra_forbidden", "body.expose.a2a bool_type"]);
        check("flow", r#"{"examples": [" "]}"#, &["body.expose.examples.0 value_error"]);
        check("flow", r#"{"examples": ["","","","","","","","","","",""]}"#, &["body.expose.examples too_long"]);
        check(
            "flow",
            r#"{"mcp": {"name": "", "other": 1}}"#,
            &["body.expose.mcp.other extra_forbidden", "body.expose.mcp.name string_too_short"],
        );
        for name in ["with space", "ä", "run_start"] {
            check("flow", &format!(r#"{{"mcp": {{"name": "{name}"}}}}"#), &["body.expose.mcp.name value_error"]);
            check(name, r#"{"mcp": {}}"#, &["body.expose.mcp.name value_error"]);
            check(name, r#"{"mcp": {"name": "fine"}}"#, &[]);
        }
        check("..", r#"{"a2a": true}"#, &["body.expose.a2a value_error"]);
    }
}
