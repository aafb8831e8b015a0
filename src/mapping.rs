//! The input of an agent step: `${…}` references replaced by what the run has so far.
//!
//! Values are copied as text, byte by byte, so that long integers and the order of members survive.

use std::collections::HashMap;
use std::fmt;

use serde_json::value::RawValue;
use thiserror::Error;

use crate::input::{MAX_JSON_DEPTH, elements, member, members, object_of, shorten, text, to_raw};

/// Bytes of a resolved input: a mapping may mention a large value many times.
const MAX_RESOLVED_BYTES: usize = 4 << 20;

/// Bytes that may be looked through for one input, which bounds its time to about a second.
const MAX_SCANNED_BYTES: usize = 256 << 20;

/// What references can refer to.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The run's input.
    pub input: &'a RawValue,
    /// The outputs so far, by step id.
    pub outputs: &'a HashMap<String, Box<RawValue>>,
}

/// Why an input cannot be made. `Display` is fit for the step's error message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("input_mapping member '{member}', reference '{reference}': {reason}")]
pub struct MappingError {
    /// The member of the mapping.
    pub member: String,
    /// What stands between `${` and `}`; empty if the fault is not one reference's.
    pub reference: String,
    /// What is wrong.
    pub reason: MappingFault,
}

/// What is wrong with a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingFault {
    /// It is neither `workflow.input…` nor `<step>.output…`.
    Malformed,
    /// A loop variable outside a loop.
    OutsideLoop,
    /// The step has no output, or not yet.
    NoOutput(String),
    /// An object has no such member.
    NoMember(String),
    /// An array has no such element.
    NoElement(String),
    /// A value that is neither object nor array is asked for this.
    NotAContainer(String),
    /// Only strings can stand inside text.
    NotText,
    /// The input gets too large, too costly or too deep.
    TooLarge,
}

impl fmt::Display for MappingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("must be workflow.input.<path> or <step id>.output.<path>"),
            Self::OutsideLoop => f.write_str("loop variables exist only inside a loop"),
            Self::NoOutput(step) => write!(f, "step '{step}' has no output"),
            Self::NoMember(name) => write!(f, "there is no member '{name}'"),
            Self::NoElement(index) => write!(f, "there is no element '{index}'"),
            Self::NotAContainer(part) => write!(f, "'{part}' is looked for in a value that has no members"),
            Self::NotText => f.write_str("only a string can be put into text"),
            Self::TooLarge => f.write_str("the input gets too large"),
        }
    }
}

/// The input of a step, a JSON object with the members of its mapping in their order.
///
/// A string that is one reference becomes the value with its type; references inside other text must be strings;
/// other values are kept, with the strings inside them resolved. Keys are never resolved.
pub fn resolve(mapping: &[(String, Box<RawValue>)], scope: &Scope<'_>) -> Result<Box<RawValue>, MappingError> {
    let mut work = Resolver { scope: *scope, scanned: 0, written: 0 };
    let mut resolved = Vec::with_capacity(mapping.len());
    for (name, value) in mapping {
        let value = work.value(value, 0).map_err(|(reference, reason)| MappingError {
            member: name.clone(),
            reference,
            reason,
        })?;
        resolved.push((name.as_str(), value));
    }
    Ok(object_of(resolved.iter().map(|(name, value)| (*name, &**value))))
}

/// A reference and what is wrong with it.
type Fault = (String, MappingFault);

struct Resolver<'a> {
    scope: Scope<'a>,
    scanned: usize,
    written: usize,
}

impl<'a> Resolver<'a> {
    /// One value of a mapping; recursion ends at the depth that JSON from outside may have.
    fn value(&mut self, value: &RawValue, depth: usize) -> Result<Box<RawValue>, Fault> {
        if depth > MAX_JSON_DEPTH {
            return Err((String::new(), MappingFault::TooLarge));
        }
        // `$` can hide in an escape.
        if !value.get().contains("${") && !value.get().contains("\\u") {
            return self.write(value.to_owned());
        }
        if let Some(text) = text(value) {
            return self.text(value, &text);
        }
        if let Some(elements) = elements(value) {
            let resolved: Result<Vec<_>, _> = elements.into_iter().map(|item| self.value(item, depth + 1)).collect();
            return Ok(to_raw(&resolved?));
        }
        let Some(members) = members(value) else { return self.write(value.to_owned()) };
        let mut resolved = Vec::with_capacity(members.len());
        for (name, value) in members {
            resolved.push((name, self.value(value, depth + 1)?));
        }
        Ok(object_of(resolved.iter().map(|(name, value)| (name.as_str(), &**value))))
    }

    /// A string, given as JSON and as its content.
    fn text(&mut self, json: &RawValue, text: &str) -> Result<Box<RawValue>, Fault> {
        let pieces = split(text);
        match pieces[..] {
            [] | [Piece::Text(_)] => self.write(json.to_owned()),
            [Piece::Reference(reference)] => {
                let value = self.look_up(reference)?;
                self.write(value.to_owned())
            }
            _ => {
                let mut joined = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => joined.push_str(text),
                        Piece::Reference(reference) => {
                            let value = self.look_up(reference)?;
                            let text = crate::input::text(value);
                            joined += &text.ok_or_else(|| (shorten(reference).into_owned(), MappingFault::NotText))?;
                        }
                    }
                    if joined.len() > MAX_RESOLVED_BYTES {
                        return Err((String::new(), MappingFault::TooLarge));
                    }
                }
                self.write(to_raw(&joined))
            }
        }
    }

    fn write(&mut self, value: Box<RawValue>) -> Result<Box<RawValue>, Fault> {
        self.written += value.get().len();
        if self.written > MAX_RESOLVED_BYTES { Err((String::new(), MappingFault::TooLarge)) } else { Ok(value) }
    }

    fn look_up(&mut self, reference: &str) -> Result<&'a RawValue, Fault> {
        self.find(reference).map_err(|reason| (shorten(reference).into_owned(), reason))
    }

    fn find(&mut self, reference: &str) -> Result<&'a RawValue, MappingFault> {
        let (root, path) = root_of(reference)?;
        let (mut value, indexes) = match root {
            Root::Input(indexes) => (self.scope.input, indexes),
            Root::Output(step, indexes) => {
                let output = self.scope.outputs.get(step);
                (output.ok_or_else(|| MappingFault::NoOutput(shorten(step).into_owned()))?.as_ref(), indexes)
            }
        };
        for index in indexes {
            value = self.step_into(value, index)?;
        }
        for part in path {
            value = self.part(value, part)?;
        }
        Ok(value)
    }

    /// One part of a path: a key, else a key with indexes, such as `items[0]`.
    fn part(&mut self, value: &'a RawValue, part: &str) -> Result<&'a RawValue, MappingFault> {
        let whole = self.step_into(value, part);
        match (&whole, indexed(part)) {
            (Err(MappingFault::NoMember(_)), Some((name, indexes))) if !indexes.is_empty() => {
                let mut value = self.step_into(value, name)?;
                for index in indexes {
                    value = self.step_into(value, index)?;
                }
                Ok(value)
            }
            _ => whole,
        }
    }

    /// The member of an object or the element of an array.
    fn step_into(&mut self, value: &'a RawValue, key: &str) -> Result<&'a RawValue, MappingFault> {
        self.scanned += value.get().len();
        if self.scanned > MAX_SCANNED_BYTES {
            return Err(MappingFault::TooLarge);
        }
        if value.get().starts_with('{') {
            return member(value, key).ok_or_else(|| MappingFault::NoMember(shorten(key).into_owned()));
        }
        if let Some(elements) = elements(value) {
            let element = key.parse().ok().and_then(|index: usize| elements.get(index).copied());
            return element.ok_or_else(|| MappingFault::NoElement(shorten(key).into_owned()));
        }
        Err(MappingFault::NotAContainer(shorten(key).into_owned()))
    }
}

/// What a reference starts from, with the indexes that follow it at once.
pub(crate) enum Root<'r> {
    /// The run's input.
    Input(Vec<&'r str>),
    /// A step's output.
    Output(&'r str, Vec<&'r str>),
}

/// What a reference starts from, with the indexes that follow it at once (`step.output[0]`), and the path from there.
///
/// `steps.<id>.output` is the same as `<id>.output`.
pub(crate) fn root_of(reference: &str) -> Result<(Root<'_>, impl Iterator<Item = &str>), MappingFault> {
    let mut parts = reference.split('.');
    let mut next = || parts.next().ok_or(MappingFault::Malformed);
    let (mut owner, mut side) = (next()?, next()?);
    if owner == "steps" && !matches!(indexed(side), Some(("output", _))) {
        (owner, side) = (side, next()?);
    }
    let root = match (owner, indexed(side)) {
        (_, Some(("output", indexes))) => Root::Output(owner, indexes),
        ("workflow", Some(("input", indexes))) => Root::Input(indexes),
        ("loop", _) => return Err(MappingFault::OutsideLoop),
        _ => return Err(MappingFault::Malformed),
    };
    Ok((root, parts))
}

/// `name[1][2]` as a name and indexes; `None` if the brackets are not of that form.
fn indexed(part: &str) -> Option<(&str, Vec<&str>)> {
    let Some((name, rest)) = part.split_once('[') else { return Some((part, Vec::new())) };
    let indexes: Vec<_> = rest.strip_suffix(']')?.split("][").collect();
    let is_index = |index: &&str| !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    indexes.iter().all(is_index).then_some((name, indexes))
}

/// A part of a text.
pub(crate) enum Piece<'t> {
    /// Literal text.
    Text(&'t str),
    /// What stands between `${` and `}`.
    Reference(&'t str),
}

/// Text cut at its references: `${`, at least one character that is not `}`, `}`. Anything else is text.
pub(crate) fn split(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut from) = (0, 0);
    while let Some(open) = text[from..].find("${").map(|at| from + at) {
        let Some(length) = text[open + 2..].find('}') else { break };
        if length == 0 {
            from = open + 2;
            continue;
        }
        if start < open {
            pieces.push(Piece::Text(&text[start..open]));
        }
        let end = open + 2 + length;
        pieces.push(Piece::Reference(&text[open + 2..end]));
        (start, from) = (end + 1, end + 1);
    }
    if start < text.len() {
        pieces.push(Piece::Text(&text[start..]));
    }
    pieces
}

/// What an agent is told, given its input: the value of `text`, else of `query`, if it says anything, else the whole
/// input as JSON. A value that is not a string is given as JSON.
#[must_use]
pub fn message_text(input: &RawValue) -> String {
    let said = ["text", "query"].into_iter().find_map(|name| member(input, name).filter(|value| is_truthy(value)));
    said.map_or_else(|| input.get().to_owned(), |value| text(value).unwrap_or_else(|| value.get().to_owned()))
}

/// Not null, false, zero or empty.
fn is_truthy(value: &RawValue) -> bool {
    match value.get().as_bytes() {
        b"null" | b"false" | b"\"\"" => false,
        [b'{', inside @ .., b'}'] | [b'[', inside @ .., b']'] => !inside.trim_ascii().is_empty(),
        [b'-' | b'0'..=b'9', ..] => value.get().parse() != Ok(0.0),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    const INPUT: &str = r#"{"term":"quorum","n":123456789012345678901234567890,"none":null,"o":{ "b":1.0, "a":[1,{"c":"d"}] },
        "items":["x",["y"]],"a[0]":"literal","":"empty"}"#;

    /// A mapping of this one value gives this value, or this text in the error.
    fn check(value: &str, expected: Result<&str, &str>) {
        let outputs = HashMap::from([
            ("step-1".to_owned(), raw(r#"{"text":"said","rows":[[1,2],[3]],"output":7}"#).to_owned()),
            ("steps".to_owned(), raw(r#"{"text":"of a step named steps"}"#).to_owned()),
            ("list".to_owned(), raw("[5,6]").to_owned()),
        ]);
        let scope = Scope { input: raw(INPUT), outputs: &outputs };
        let resolved = resolve(&[("m".to_owned(), raw(value).to_owned())], &scope).map_err(|error| error.to_string());
        match expected {
            Ok(json) => assert_eq!(resolved.expect(value).get(), format!(r#"{{"m":{json}}}"#), "{value}"),
            Err(part) => assert!(resolved.as_ref().is_err_and(|text| text.contains(part)), "{value}: {resolved:?}"),
        }
    }

    #[test]
    fn literals_of_every_type_pass_unchanged() {
        for literal in ["1", "1.50", "null", "true", r#"{ "a" : [ 1 ] }"#, r#""$.foo.bar""#, r#""""#, r#""a $ { b }""#]
        {
            check(literal, Ok(literal));
        }
        for literal in
            [r#""${}""#, r#""${unclosed""#, r#""caf\u00e9 \" \/""#, r#""${}x}""#, "[12345678901234567890123]"]
        {
            check(literal, Ok(literal));
        }
    }

    #[test]
    fn a_single_reference_keeps_type_and_text() {
        check(r#""${workflow.input.term}""#, Ok(r#""quorum""#));
        check(r#""${workflow.input.n}""#, Ok("123456789012345678901234567890"));
        check(r#""${workflow.input.none}""#, Ok("null"));
        check(r#""${workflow.input.o}""#, Ok(r#"{ "b":1.0, "a":[1,{"c":"d"}] }"#));
        check(r#""${workflow.input.o.b}""#, Ok("1.0"));
        check(r#""${step-1.output.text}""#, Ok(r#""said""#));
        check(r#""\u0024{step-1.output.text}""#, Ok(r#""said""#));
        check(r#""${workflow.input}""#, Ok(INPUT));
        check(r#""${list.output}""#, Ok("[5,6]"));
    }

    #[test]
    fn elements_are_reached_by_brackets_and_by_dots() {
        for (reference, expected) in [
            ("workflow.input.items[0]", r#""x""#),
            ("workflow.input.items.0", r#""x""#),
            ("workflow.input.items[1][0]", r#""y""#),
            ("workflow.input.items.1.0", r#""y""#),
            ("workflow.input.o.a[1].c", r#""d""#),
            ("step-1.output.rows[0][1]", "2"),
            ("list.output[1]", "6"),
            ("list.output.1", "6"),
            ("workflow.input.a[0]", r#""literal""#),
            ("workflow.input.", r#""empty""#),
        ] {
            check(&format!("\"${{{reference}}}\""), Ok(expected));
        }
    }

    #[test]
    fn steps_may_be_prefixed_unless_a_step_has_that_name() {
        check(r#""${steps.step-1.output.text}""#, Ok(r#""said""#));
        check(r#""${steps.output.text}""#, Ok(r#""of a step named steps""#));
        check(r#""${step-1.output.output}""#, Ok("7"));
        check(r#""${steps.list.output[0]}""#, Ok("5"));
    }

    #[test]
    fn references_inside_text_and_inside_containers_are_resolved() {
        check(r#""Check: ${step-1.output.text}!""#, Ok(r#""Check: said!""#));
        check(r#""${step-1.output.text}${workflow.input.term}""#, Ok(r#""saidquorum""#));
        check(r#""${} ${workflow.input.term} ${""#, Ok(r#""${} quorum ${""#));
        check(
            r#"{"k ${workflow.input.n}":["${workflow.input.n}", 1 ],"n":{"t":"a ${workflow.input.term}"}}"#,
            Ok(r#"{"k ${workflow.input.n}":[123456789012345678901234567890,1],"n":{"t":"a quorum"}}"#),
        );
    }

    #[test]
    fn a_bad_reference_says_which_and_why() {
        for (reference, reason) in [
            ("workflow.input.gone", "there is no member 'gone'"),
            ("workflow.input.term.x", "'x' is looked for in a value that has no members"),
            ("workflow.input.none.x", "'x' is looked for in a value"),
            ("workflow.input.items[2]", "there is no element '2'"),
            ("workflow.input.items.first", "there is no element 'first'"),
            ("workflow.input.items[-1]", "there is no member 'items[-1]'"),
            ("step-2.output.text", "step 'step-2' has no output"),
            ("workflow.output.x", "step 'workflow' has no output"),
            ("step-1.input.text", "must be workflow.input"),
            ("workflow.inputs.term", "must be workflow.input"),
            (" workflow.input.term ", "must be workflow.input"),
            ("workflow", "must be workflow.input"),
            ("steps.step-1", "must be workflow.input"),
            ("loop.item", "loop variables exist only inside a loop"),
        ] {
            check(&format!("\"${{{reference}}}\""), Err(&format!("member 'm', reference '{reference}': {reason}")));
        }
        check(r#""n is ${workflow.input.n}""#, Err("reference 'workflow.input.n': only a string can be put into text"));
        check(r#"[{"a":"${x.output}"}]"#, Err("member 'm', reference 'x.output': step 'x' has no output"));
    }

    #[test]
    fn a_resolved_input_is_limited_in_size_work_and_depth() {
        let input = format!(r#"{{"a":"{}","b":1}}"#, "x".repeat(1 << 20));
        let outputs = HashMap::new();
        let scope = Scope { input: raw(&input), outputs: &outputs };
        let too_large = |value: String| {
            let resolved = resolve(&[("m".to_owned(), RawValue::from_string(value).expect("JSON"))], &scope);
            assert!(resolved.is_err_and(|error| error.reason == MappingFault::TooLarge));
        };
        too_large(format!("[{}]", [r#""${workflow.input.a}""#; 5].join(",")));
        too_large(format!("\"{}\"", "${workflow.input.a}".repeat(5)));
        too_large(format!("[{}]", vec![r#""${workflow.input.b}""#; 300].join(",")));
        too_large(format!("{}\"${{a}}\"{}", "[".repeat(100), "]".repeat(100)));
    }

    #[test]
    fn an_agent_is_told_text_else_query_else_everything() {
        for (input, expected) in [
            (r#"{"text":"a","query":"b"}"#, "a"),
            (r#"{"text":"","query":"b\n"}"#, "b\n"),
            (r#"{"text":null,"query":7}"#, "7"),
            (r#"{"text":[ ],"query":{"a":1}}"#, r#"{"a":1}"#),
            (r#"{"text":0.0,"query":false}"#, r#"{"text":0.0,"query":false}"#),
            (r#"{"term":"quorum", "n":1}"#, r#"{"term":"quorum", "n":1}"#),
            ("{}", "{}"),
        ] {
            assert_eq!(message_text(raw(input)), expected);
        }
    }
}
