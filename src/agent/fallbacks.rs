//! Fallbacks: names of the agents that are called, in this order, when an agent does not work. They need not exist when
//! they are named, so that the agents of a document can name each other.

use super::NAME_CHARS;
use crate::input::{FieldError, Node, Read};

/// Maximum number of fallbacks of one agent.
pub const MAX_FALLBACKS: usize = 4;

/// Reads the member `fallbacks`. [`check`] has the rule that needs the agent's name.
pub(super) fn read(node: &Node<'_>) -> Read<Vec<String>> {
    let nodes = node.list()?;
    if nodes.len() > MAX_FALLBACKS {
        let message = format!("List should have at most {MAX_FALLBACKS} items after validation, not {}", nodes.len());
        return Err(vec![node.error("too_long", message)]);
    }
    let (mut names, mut errors) = (Vec::with_capacity(nodes.len()), Vec::new());
    for node in nodes {
        match node.string(NAME_CHARS) {
            Ok(name) if names.contains(&name) => errors.push(FieldError::rule(node.path(), "is in the list twice")),
            Ok(name) => names.push(name),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() { Ok(names) } else { Err(errors) }
}

/// An agent is no fallback of itself.
pub fn check(name: &str, fallbacks: &[String]) -> Read<()> {
    match fallbacks.iter().position(|fallback| fallback == name) {
        None => Ok(()),
        Some(index) => Err(vec![FieldError::rule(format!("body.fallbacks.{index}"), "is the agent itself")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn an_agent_names_few_others_each_once() {
        let long = format!(r#"["{}"]"#, "é".repeat(256));
        for (json, expected) in [
            ("[]", &[][..]),
            (r#"["b","c","d","e"]"#, &[]),
            (r#"["b","c","d","e","f"]"#, &["body.fallbacks too_long"]),
            (r#"["b","c","b"]"#, &["body.fallbacks.2 value_error"]),
            (r#"["b","a"]"#, &["body.fallbacks.1 value_error"]),
            (r#"["",1]"#, &["body.fallbacks.0 string_too_short", "body.fallbacks.1 string_type"]),
            (&long, &["body.fallbacks.0 string_too_long"]),
            (r#""b""#, &["body.fallbacks list_type"]),
            ("null", &["body.fallbacks list_type"]),
        ] {
            let raw = check_json(json.as_bytes()).expect(json);
            let names = read(&Node::new("body.fallbacks", raw));
            let errors = names.and_then(|names| check("a", &names)).err().unwrap_or_default();
            let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
            assert_eq!(found, expected, "{json}");
        }
    }
}
