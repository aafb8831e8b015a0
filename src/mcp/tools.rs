//! Lists of tools: what is kept of them, and what a definition can be checked for.

use http::HeaderName;
use serde_json::value::RawValue;

use super::request::header_value;
use crate::input::{elements, member, members, object_of, shorten, text, to_raw};

/// Maximum size of a list. Further tools are left out.
pub const MAX_LIST_BYTES: usize = 256 << 10;
/// Keyword of a schema: the value is repeated in a header.
const HEADER_KEYWORD: &str = "x-mcp-header";
/// Maximum number of such headers, and of levels of a schema at which they are looked for.
const MAX_HEADERS: usize = 32;
const MAX_DEPTH: usize = 8;
/// Number of tools that a warning names.
const NAMED: usize = 10;

/// List of tools, as it is collected.
#[derive(Debug, Default)]
pub struct ToolList {
    tools: Vec<Box<RawValue>>,
    bytes: usize,
    /// Whether tools were left out.
    is_cut: bool,
}

impl ToolList {
    /// Adds a page of `tools/list`. Returns the cursor of the next one. The error says what is wrong with the page.
    pub fn add(&mut self, page: &RawValue) -> Result<Option<String>, &'static str> {
        let tools = member(page, "tools").and_then(elements).ok_or("it has no list of tools")?;
        for tool in tools {
            // A client must not use a tool with wrong headers.
            let is_usable = member(tool, "name").and_then(text).is_some() && Parameters::of_tool(tool).is_ok();
            if !is_usable {
                continue;
            }
            self.bytes += tool.get().len();
            if self.bytes > MAX_LIST_BYTES {
                self.is_cut = true;
                return Ok(None);
            }
            self.tools.push(tool.to_owned());
        }
        Ok(member(page, "nextCursor").and_then(text).filter(|cursor| !cursor.is_empty()))
    }

    /// Marks the list as incomplete.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Number of tools.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tools.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// What is stored and shown: the server as it describes itself, and its tools.
    #[must_use]
    pub fn described(&self, server: &Description) -> Box<RawValue> {
        let of = |text: &Option<String>| to_raw(text);
        let (name, version, about) = (of(&server.name), of(&server.version), of(&server.instructions));
        let (tools, complete) = (to_raw(&self.tools), to_raw(&!self.is_cut));
        object_of([
            ("name", &*name),
            ("version", &*version),
            ("description", &*about),
            ("tools_complete", &*complete),
            ("tools", &*tools),
        ])
    }
}

/// A server as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// What it says about its use.
    pub instructions: Option<String>,
}

impl Description {
    /// Of the result of `server/discover` or `initialize`.
    #[must_use]
    pub fn read(result: &RawValue) -> Self {
        const MAX_CHARS: usize = 2000;
        let in_meta = member(result, "_meta").and_then(|meta| member(meta, super::SERVER_INFO));
        let info = in_meta.or_else(|| member(result, "serverInfo"));
        let of = |holder: Option<&RawValue>, name: &str| {
            let text = member(holder?, name).and_then(text)?;
            Some(crate::input::shorten_to(&text, MAX_CHARS).into_owned())
        };
        Self { name: of(info, "name"), version: of(info, "version"), instructions: of(Some(result), "instructions") }
    }
}

/// Tool of that name in a stored list.
#[must_use]
pub fn find<'a>(list: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let tools = member(list, "tools").and_then(elements)?;
    tools.into_iter().find(|tool| member(tool, "name").and_then(text).as_deref() == Some(name))
}

/// Parameters of a tool whose values are repeated in headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(Vec<String>, String)>);

impl Parameters {
    /// Of the tool's input schema. The error: the schema marks parameters that cannot be in a header.
    pub fn of_tool(tool: &RawValue) -> Result<Self, &'static str> {
        let mut found = Self::default();
        let Some(schema) = member(tool, "inputSchema") else { return Ok(found) };
        if !schema.get().contains(HEADER_KEYWORD) {
            return Ok(found);
        }
        found.look(schema, &mut Vec::new())?;
        let mut names: Vec<String> = found.0.iter().map(|(_, name)| name.to_lowercase()).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() < found.0.len() {
            return Err("two parameters have the same header");
        }
        Ok(found)
    }

    fn look(&mut self, schema: &RawValue, path: &mut Vec<String>) -> Result<(), &'static str> {
        if path.len() > MAX_DEPTH || self.0.len() > MAX_HEADERS {
            return Err("there are too many headers");
        }
        for (name, property) in member(schema, "properties").and_then(members).unwrap_or_default() {
            path.push(name);
            if let Some(header) = member(property, HEADER_KEYWORD) {
                let header = text(header).filter(|name| HeaderName::from_bytes(name.as_bytes()).is_ok());
                let kind = member(property, "type").and_then(text);
                let is_simple = matches!(kind.as_deref(), Some("string" | "integer" | "boolean"));
                let header = header.filter(|_| is_simple).ok_or("a parameter cannot be in a header")?;
                self.0.push((path.clone(), header));
            }
            if property.get().contains(HEADER_KEYWORD) {
                self.look(property, path)?;
            }
            path.pop();
        }
        Ok(())
    }

    /// The headers of a call with these arguments.
    #[must_use]
    pub fn headers(&self, arguments: &RawValue) -> Vec<(String, String)> {
        let of = |(path, header): &(Vec<String>, String)| {
            let value = path.iter().try_fold(arguments, |value, name| member(value, name))?;
            let shown = match value.get() {
                "null" => return None,
                plain if plain.starts_with(['{', '[']) => return None,
                plain => text(value).unwrap_or_else(|| plain.to_owned()),
            };
            Some((format!("mcp-param-{}", header.to_lowercase()), header_value(&shown)))
        };
        self.0.iter().filter_map(of).collect()
    }
}

/// What is probably wrong with a step that calls a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Kind of the warning.
    pub kind: &'static str,
    /// The warning in words.
    pub message: String,
    /// Whether it is about the `input_mapping` of the step, not about its agent.
    pub is_of_input: bool,
}

/// The server has no such tool; `names` are some that it has.
#[must_use]
pub fn missing(tool: &str, names: &[String]) -> Problem {
    let shown: Vec<_> = names.iter().take(NAMED).map(|name| format!("{:?}", shorten(name))).collect();
    let has = if shown.is_empty() { "it has none".to_owned() } else { format!("it has {}", shown.join(", ")) };
    let message = format!("The agent's MCP server was seen without the tool {:?}; {has}", shorten(tool));
    Problem { kind: "tool_not_found", message, is_of_input: false }
}

/// The tool can only be called as a task of revision 2025-11-25.
#[must_use]
pub fn needs_task(tool: &str) -> Problem {
    let message = format!(
        "The tool {:?} has to be called as a task of revision 2025-11-25, which this service does not speak: calls fail",
        shorten(tool)
    );
    Problem { kind: "tool_needs_task", message, is_of_input: false }
}

/// What an input with these members lacks for the tool, and what the tool does not know.
#[must_use]
pub fn check_input(tool: &str, schema: &RawValue, given: &[&str]) -> Vec<Problem> {
    let tool = shorten(tool);
    let required = member(schema, "required").and_then(elements).unwrap_or_default();
    let lacks = required.into_iter().filter_map(text).filter(|name| !given.contains(&name.as_str())).map(|name| {
        let message = format!("The tool {tool:?} requires the argument {:?}", shorten(&name));
        Problem { kind: "tool_argument_missing", message, is_of_input: true }
    });
    let properties = member(schema, "properties").and_then(members).unwrap_or_default();
    let is_closed = member(schema, "additionalProperties").is_some_and(|more| more.get() == "false")
        && member(schema, "patternProperties").is_none();
    let unknown = given.iter().filter(|name| is_closed && !properties.iter().any(|(known, _)| known == *name));
    let unknown = unknown.map(|name| {
        let message = format!("The tool {tool:?} does not accept the argument {:?}", shorten(name));
        Problem { kind: "tool_argument_unknown", message, is_of_input: true }
    });
    lacks.chain(unknown).take(crate::input::MAX_ERRORS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tool(name: &str, schema: &Value) -> Value {
        json!({"name": name, "inputSchema": schema})
    }

    #[test]
    fn pages_become_one_list() {
        let mut list = ToolList::default();
        let bad = tool("bad", &json!({"properties": {"n": {"type": "number", "x-mcp-header": "N"}}}));
        let page = json!({"tools": [tool("a", &json!({})), bad, {"title": "nameless"}], "nextCursor": "2"});
        assert_eq!(list.add(&to_raw(&page)), Ok(Some("2".to_owned())));
        assert_eq!(list.add(&to_raw(&json!({"tools": [tool("b", &json!({}))], "nextCursor": ""}))), Ok(None));
        assert!(list.add(&to_raw(&json!({"tools": {}}))).is_err());
        let about = Description { name: Some("n".to_owned()), version: None, instructions: None };
        let stored = list.described(&about);
        let shown: Value = serde_json::from_str(stored.get()).expect("JSON");
        assert_eq!(shown["tools_complete"], true);
        assert_eq!((shown["name"].as_str(), shown["tools"].as_array().map(Vec::len)), (Some("n"), Some(2)));
        assert!(find(&stored, "b").is_some() && find(&stored, "c").is_none() && find(&stored, "bad").is_none());
        let big = json!({"tools": [{"name": "big", "description": "x".repeat(MAX_LIST_BYTES)}], "nextCursor": "3"});
        assert_eq!(list.add(&to_raw(&big)), Ok(None));
        assert!(list.described(&about).get().contains(r#""tools_complete":false"#));
    }

    #[test]
    fn marked_parameters_are_headers() {
        let schema = json!({"type": "object", "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "Deep-N"}}},
            "flag": {"type": "boolean", "x-mcp-header": "Flag"},
            "query": {"type": "string"}}});
        let parameters = Parameters::of_tool(&to_raw(&tool("t", &schema))).expect("valid");
        let arguments = to_raw(&json!({"region": "ö", "deep": {"n": -7}, "flag": null, "query": "q"}));
        let expected = [("mcp-param-deep-n", "-7"), ("mcp-param-region", "=?base64?w7Y=?=")];
        assert_eq!(parameters.headers(&arguments), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for bad in [
            json!({"a": {"type": "string", "x-mcp-header": ""}}),
            json!({"a": {"type": "string", "x-mcp-header": "a\r\nb"}}),
            json!({"a": {"type": "array", "x-mcp-header": "A"}}),
            json!({"a": {"type": "string", "x-mcp-header": "A"}, "b": {"type": "string", "x-mcp-header": "a"}}),
        ] {
            assert!(Parameters::of_tool(&to_raw(&tool("t", &json!({"properties": bad})))).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_input_is_held_against_the_schema() {
        let schema = to_raw(&json!({"required": ["a", "b"], "properties": {"a": {}, "b": {}, "c": {}},
            "additionalProperties": false}));
        let kinds = |given: &[&str]| {
            check_input("t", &schema, given).into_iter().map(|problem| problem.kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&["a", "b"]), [""; 0]);
        assert_eq!(kinds(&["a"]), ["tool_argument_missing"]);
        assert_eq!(kinds(&["a", "b", "d"]), ["tool_argument_unknown"]);
        assert!(check_input("t", RawValue::NULL, &["x"]).is_empty());
        let names = ["x".to_owned()];
        assert!(missing("t", &names).message.ends_with(r#"without the tool "t"; it has "x""#));
        assert!(missing("t", &[]).message.ends_with("it has none"));
        assert_eq!((needs_task("t").kind, needs_task("t").is_of_input), ("tool_needs_task", false));
    }
}
