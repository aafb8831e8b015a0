//! A workflow's JSON Schema for the input of its runs.
//!
//! A schema comes from a caller and is applied to another caller's input, so its cost is bounded beforehand: patterns
//! take linear time, references lead only into the schema itself and never in a circle, and the schema with all of
//! its references unfolded has a limited size. Validation then visits each value of the input at most that often.

use std::collections::HashMap;
use std::fmt;

use jsonschema::{PatternOptions, Validator};
use serde_json::{Value, value::RawValue};

use crate::input::{FieldError, Node, Read, shorten};

/// Bytes of a schema.
const MAX_BYTES: usize = 64 << 10;
/// Values in a schema whose references are unfolded.
const MAX_UNFOLDED: usize = 20_000;
/// How deep a schema is with its references unfolded; validation uses the stack.
const MAX_DEPTH: usize = 128;
/// Bytes of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Violations reported at once.
const MAX_VIOLATIONS: usize = 100;

/// The dialects that are understood. Older ones resolve references in ways of their own.
const DIALECTS: [&str; 3] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
];

/// A compiled schema.
pub struct InputSchema(Validator);

impl fmt::Debug for InputSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InputSchema")
    }
}

impl InputSchema {
    /// Compiles a schema, or says in a sentence why it is none that can be used.
    pub fn compile(schema: &RawValue) -> Result<Self, String> {
        if schema.get().len() > MAX_BYTES {
            return Err(format!("must have at most {MAX_BYTES} bytes"));
        }
        let schema: Value = serde_json::from_str(schema.get()).map_err(|error| error.to_string())?;
        if !schema.is_object() {
            return Err("must be an object".to_owned());
        }
        if let Some(dialect) = schema.get("$schema") {
            let known = dialect.as_str().is_some_and(|dialect| DIALECTS.contains(&dialect.trim_end_matches('#')));
            if !known {
                return Err(format!("$schema must be one of {}", DIALECTS.join(", ")));
            }
        }
        Unfolding { root: &schema, sizes: HashMap::new() }.size(&schema, 0, true)?;
        let patterns = PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES);
        let validator = jsonschema::options().with_pattern_options(patterns).offline().build(&schema);
        validator.map(Self).map_err(|error| {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { String::new() } else { format!("{}: ", shorten(&place)) };
            format!("is not a valid JSON Schema: {place}{}", shorten(&error.to_string()))
        })
    }

    /// Every place where an input does not satisfy the schema, below `body.input_data`.
    pub fn check(&self, input: &RawValue) -> Read<()> {
        let at = "body.input_data";
        let Ok(input) = serde_json::from_str::<Value>(input.get()) else {
            let message = "A number in it is too large to be compared with the schema";
            return Err(vec![FieldError::new(at, "schema_error", message)]);
        };
        let errors: Vec<_> = self
            .0
            .iter_errors(&input)
            .take(MAX_VIOLATIONS)
            .map(|error| {
                let pointer = error.instance_path().to_string();
                let path = pointer.replace('/', ".").replace("~1", "/").replace("~0", "~");
                let field = format!("{at}{}", shorten(&path));
                FieldError {
                    pointer: Some(pointer),
                    ..FieldError::new(field, "schema_error", shorten(&error.to_string()))
                }
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// A schema in a body, checked.
pub(super) fn read(node: &Node<'_>) -> Read<Box<RawValue>> {
    let schema = node.free_object()?;
    InputSchema::compile(&schema).map_err(|text| vec![FieldError::rule(node.path(), text)])?;
    Ok(schema)
}

/// Counts the values of a schema with references unfolded.
struct Unfolding<'s> {
    root: &'s Value,
    /// By reference: the size of its target; `None` while it is being counted.
    sizes: HashMap<&'s str, Option<usize>>,
}

impl<'s> Unfolding<'s> {
    fn size(&mut self, value: &'s Value, depth: usize, is_root: bool) -> Result<usize, String> {
        if depth > MAX_DEPTH {
            return Err(format!("must not be deeper than {MAX_DEPTH} with its references unfolded"));
        }
        let mut size = 1;
        match value {
            Value::Array(elements) => {
                for element in elements {
                    size += self.size(element, depth + 1, false)?;
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    size += self.size(member, depth + 1, false)?;
                    let Value::String(text) = member else { continue };
                    match name.as_str() {
                        "$ref" => size += self.target(text, depth + 1)?,
                        "$dynamicRef" | "$recursiveRef" => return Err(format!("must not use {name}")),
                        "$id" if !is_root => return Err("must not have an $id but its own".to_owned()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        if size > MAX_UNFOLDED {
            return Err(format!("must have at most {MAX_UNFOLDED} values with its references unfolded"));
        }
        Ok(size)
    }

    fn target(&mut self, reference: &'s str, depth: usize) -> Result<usize, String> {
        match self.sizes.get(reference) {
            // Deeper than where it was counted first, perhaps, but no deeper than all references together allow.
            Some(Some(size)) => return Ok(*size),
            Some(None) => return Err(format!("reference {:?} leads back to itself", shorten(reference))),
            None => {}
        }
        let unresolved =
            || format!("reference {:?} must lead to a place in the schema, such as #/$defs/x", shorten(reference));
        let pointer = reference.strip_prefix('#').ok_or_else(unresolved)?;
        let root = self.root;
        let target = root.pointer(pointer).filter(|_| !pointer.contains('%')).ok_or_else(unresolved)?;
        self.sizes.insert(reference, None);
        let size = self.size(target, depth, std::ptr::eq(target, root))?;
        self.sizes.insert(reference, Some(size));
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::input::check_json;

    fn compile(json: &str) -> Result<InputSchema, String> {
        InputSchema::compile(check_json(json.as_bytes()).expect(json))
    }

    #[test]
    fn an_input_is_told_every_violation_and_its_place() {
        let schema = compile(
            r##"{"type":"object","required":["a"],"properties":{"a":{"$ref":"#/$defs/n"},"l":{"items":{"type":"string","pattern":"^x+$"}}},
                "$defs":{"n":{"type":"integer","minimum":1}}}"##,
        )
        .expect("a schema");
        let fields = |json: &str| {
            let errors = schema.check(check_json(json.as_bytes()).expect(json)).err().unwrap_or_default();
            errors.into_iter().map(|error| error.field).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(fields(r#"{"a":1,"l":["x"]}"#), Vec::<String>::new());
        assert_eq!(fields(r#"{"l":["x","y",3]}"#), ["body.input_data", "body.input_data.l.1", "body.input_data.l.2"]);
        assert_eq!(fields(r#"{"a":0}"#), ["body.input_data.a"]);
        assert_eq!(fields(r#"{"a":123456789012345678901234567890}"#), Vec::<String>::new());
    }

    #[test]
    fn a_schema_that_cannot_be_used_says_why() {
        let doubling: Vec<_> = (1..40)
            .map(|n| format!(r##""d{n}":{{"allOf":[{{"$ref":"#/$defs/d{0}"}},{{"$ref":"#/$defs/d{0}"}}]}}"##, n - 1))
            .collect();
        let doubling = format!(r##"{{"$ref":"#/$defs/d39","$defs":{{"d0":{{}},{}}}}}"##, doubling.join(","));
        for (schema, part) in [
            ("[]", "must be an object"),
            (r#"{"type":"nothing"}"#, "not a valid JSON Schema"),
            (r#"{"type":"string","pattern":"("}"#, "not a valid JSON Schema"),
            (r#"{"pattern":"(?=a)"}"#, "not a valid JSON Schema"),
            (r#"{"pattern":"(\\w{1000}){1000}"}"#, "not a valid JSON Schema"),
            (r##"{"$ref":"#"}"##, "leads back to itself"),
            (r##"{"properties":{"c":{"$ref":"#"}}}"##, "leads back to itself"),
            (r#"{"$ref":"https://example.com/schema.json"}"#, "must lead to a place in the schema"),
            (r#"{"$ref":"file:///etc/passwd"}"#, "must lead to a place in the schema"),
            (r##"{"$ref":"#/$defs/gone"}"##, "must lead to a place in the schema"),
            (r##"{"$dynamicRef":"#x"}"##, "must not use $dynamicRef"),
            (r#"{"items":{"$id":"http://x/"}}"#, "must not have an $id"),
            (r#"{"$schema":"http://json-schema.org/draft-04/schema#"}"#, "$schema must be one of"),
            (&doubling, "values with its references unfolded"),
        ] {
            assert!(compile(schema).as_ref().is_err_and(|text| text.contains(part)), "{schema}: {:?}", compile(schema));
        }
        let large = format!(r#"{{"title":"{}"}}"#, "x".repeat(MAX_BYTES));
        assert!(compile(&large).is_err_and(|text| text.contains("bytes")));
        assert!(compile("{}").is_ok() && compile(r#"{"$id":"https://example.com/a","type":"object"}"#).is_ok());
        // A pattern that takes exponential time elsewhere.
        let slow = compile(r#"{"properties":{"s":{"pattern":"^(a+)+$"}}}"#).expect("a schema");
        let input = format!(r#"{{"s":"{}!"}}"#, "a".repeat(50_000));
        assert!(slow.check(check_json(input.as_bytes()).expect("JSON")).is_err());
    }
}
