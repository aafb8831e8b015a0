//! Input mapping: resolves `${…}` references in the input of a step with the values of the run.
//!
//! Values are copied as text, byte by byte, so that long integers and the order of members are preserved.

use std::{borrow::Cow, collections::HashSet};

use serde_json::value::RawValue;
use thiserror::Error;

use self::reference::{LookUp, Root, root_of};
use crate::input::{MAX_JSON_DEPTH, elements, member, members, object_of, shorten, text, to_raw};

pub(crate) mod reference;
mod scope;

pub use reference::MappingFault;
pub use scope::{Callback, Scope};

/// Maximum bytes of a resolved input, since a mapping may mention a large value many times.
pub(crate) const MAX_RESOLVED_BYTES: usize = 4 << 20;

/// Reason why an input cannot be resolved. `Display` is fit for the step's error message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("input_mapping member '{member}'{}: {reason}", named(.reference))]
pub struct MappingError {
    /// Member of the mapping, with the path to the value inside of it: `filters.0.name`.
    pub member: String,
    /// Text between `${` and `}`; empty if the fault is not of one reference.
    pub reference: String,
    /// Kind of the fault.
    pub reason: MappingFault,
}

fn named(reference: &str) -> String {
    if reference.is_empty() { String::new() } else { format!(", reference '{reference}'") }
}

/// Resolves the input of a step: a JSON object with the members of its mapping in their order.
///
/// A string that is one reference becomes the value with its type. References inside other text must be strings. Other
/// values are kept, with the strings inside them resolved. Keys are never resolved.
pub fn resolve(mapping: &[(String, Box<RawValue>)], scope: &Scope<'_>) -> Result<Box<RawValue>, MappingError> {
    let mut work = Resolver { values: LookUp::new(scope), written: 0 };
    let mut resolved = Vec::with_capacity(mapping.len());
    for (name, value) in mapping {
        let value = work.value(value, 0).map_err(|fault| fault.within(name)).map_err(Fault::report)?;
        resolved.push((name.as_str(), value));
    }
    Ok(object_of(resolved.iter().map(|(name, value)| (*name, &**value))))
}

/// Resolves a text with references, by the rules of [`resolve`]. The error names the reference.
pub fn resolve_text(text: &str, scope: &Scope<'_>) -> Result<Box<RawValue>, String> {
    let resolved = Resolver { values: LookUp::new(scope), written: 0 }.text(&to_raw(text), text);
    resolved.map_err(|fault| format!("reference '{}': {}", fault.reference, fault.reason))
}

/// Resolves one value with the references inside of it, by the rules of [`resolve`].
pub fn resolve_value(value: &RawValue, scope: &Scope<'_>) -> Result<Box<RawValue>, String> {
    let resolved = Resolver { values: LookUp::new(scope), written: 0 }.value(value, 0);
    resolved.map_err(|fault| format!("reference '{}': {}", fault.reference, fault.reason))
}

/// References among these whose value does not exist or is null, without regard to their defaults. A reference that is
/// not valid is none of them.
pub fn empty_references<'r>(references: impl IntoIterator<Item = &'r str>, scope: &Scope<'_>) -> Vec<&'r str> {
    let mut values = LookUp::new(scope);
    let is_empty = |reference: &&str| match values.get_without_default(reference) {
        Ok(value) => value.get() == "null",
        Err(fault) => fault.is_missing(),
    };
    references.into_iter().filter(is_empty).collect()
}

/// Steps whose callback URL a mapping refers to, each once.
#[must_use]
pub fn callbacks_in(mapping: &[(String, Box<RawValue>)]) -> Vec<String> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    // `.callback_url` can be written with an escape.
    let may_refer = |value: &RawValue| value.get().contains("callback_url") || value.get().contains("\\u");
    for (_, value) in mapping.iter().filter(|(_, value)| may_refer(value)) {
        strings(value, &mut |text| {
            for piece in split(text) {
                let Piece::Reference(reference) = piece else { continue };
                if let Ok((Root::Callback(step), _)) = root_of(reference)
                    && known.insert(step.to_owned())
                {
                    found.push(step.to_owned());
                }
            }
        });
    }
    found
}

/// Visits the strings inside a value, but not the keys. Recursion ends at the depth that JSON from outside may have.
pub(crate) fn strings(value: &RawValue, found: &mut impl FnMut(&str)) {
    if let Some(text) = text(value) {
        found(&text);
    } else if let Some(elements) = elements(value) {
        for element in elements {
            strings(element, found);
        }
    } else if let Some(members) = members(value) {
        for (_, member) in members {
            strings(member, found);
        }
    }
}

/// The value of the reference at the start of a text, such as a loop's `collection`. The rest of the text is ignored,
/// as in the reference deployment. The error names the reference.
pub fn resolve_reference<'s>(text: &str, scope: &'s Scope<'s>) -> Result<Cow<'s, RawValue>, String> {
    let Some(Piece::Reference(reference)) = split(text.trim()).into_iter().next() else {
        return Err(format!("'{}' is not a reference such as ${{workflow.input.items}}", shorten(text)));
    };
    LookUp::new(scope).get(reference).map_err(|reason| format!("reference '{}': {reason}", shorten(reference)))
}

/// Fault of a reference, with its path in the mapping, from inside to outside.
struct Fault {
    path: Vec<String>,
    reference: String,
    reason: MappingFault,
}

impl Fault {
    fn new(reference: &str, reason: MappingFault) -> Self {
        Self { path: Vec::new(), reference: shorten(reference).into_owned(), reason }
    }

    /// A fault that is not of a single reference.
    fn too_large() -> Self {
        Self::new("", MappingFault::TooLarge)
    }

    fn within(mut self, part: &str) -> Self {
        self.path.push(shorten(part).into_owned());
        self
    }

    fn report(mut self) -> MappingError {
        self.path.reverse();
        MappingError { member: self.path.join("."), reference: self.reference, reason: self.reason }
    }
}

struct Resolver<'s> {
    values: LookUp<'s>,
    written: usize,
}

impl Resolver<'_> {
    /// Resolves one value of a mapping. Recursion ends at the depth that JSON from outside may have.
    fn value(&mut self, value: &RawValue, depth: usize) -> Result<Box<RawValue>, Fault> {
        if depth > MAX_JSON_DEPTH {
            return Err(Fault::new("", MappingFault::TooDeep));
        }
        // `$` can be written with an escape.
        if !value.get().contains("${") && !value.get().contains("\\u") {
            return self.write(value.to_owned());
        }
        if let Some(text) = text(value) {
            return self.text(value, &text);
        }
        if let Some(elements) = elements(value) {
            let resolve = |(index, item): (usize, &RawValue)| {
                self.value(item, depth + 1).map_err(|fault| fault.within(&index.to_string()))
            };
            let resolved: Result<Vec<_>, _> = elements.into_iter().enumerate().map(resolve).collect();
            return Ok(to_raw(&resolved?));
        }
        let Some(members) = members(value) else { return self.write(value.to_owned()) };
        let mut resolved = Vec::with_capacity(members.len());
        for (name, value) in members {
            let value = self.value(value, depth + 1).map_err(|fault| fault.within(&name))?;
            resolved.push((name, value));
        }
        Ok(object_of(resolved.iter().map(|(name, value)| (name.as_str(), &**value))))
    }

    /// Resolves a string, given as JSON and as its content.
    fn text(&mut self, json: &RawValue, text: &str) -> Result<Box<RawValue>, Fault> {
        let pieces = split(text);
        match pieces[..] {
            [] | [Piece::Text(_)] => self.write(json.to_owned()),
            [Piece::Reference(reference)] => {
                let value = self.look_up(reference)?;
                self.write(value.into_owned())
            }
            _ => {
                let mut joined = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => joined.push_str(text),
                        Piece::Reference(reference) => {
                            let value = self.look_up(reference)?;
                            joined += &match (crate::input::text(&value), &value) {
                                (Some(text), _) => text,
                                // A default is text already.
                                (None, Cow::Owned(default)) => default.get().to_owned(),
                                (None, Cow::Borrowed(_)) => return Err(Fault::new(reference, MappingFault::NotText)),
                            };
                        }
                    }
                    if joined.len() > MAX_RESOLVED_BYTES {
                        return Err(Fault::too_large());
                    }
                }
                self.write(to_raw(&joined))
            }
        }
    }

    fn write(&mut self, value: Box<RawValue>) -> Result<Box<RawValue>, Fault> {
        self.written += value.get().len();
        if self.written > MAX_RESOLVED_BYTES { Err(Fault::too_large()) } else { Ok(value) }
    }
}

impl<'s> Resolver<'s> {
    fn look_up(&mut self, reference: &str) -> Result<Cow<'s, RawValue>, Fault> {
        self.values.get(reference).map_err(|reason| Fault::new(reference, reason))
    }
}

/// Part of a text.
pub(crate) enum Piece<'t> {
    /// Literal text.
    Text(&'t str),
    /// Text between `${` and `}`.
    Reference(&'t str),
}

/// Splits a text at its references: `${`, at least one character that is not `}`, `}`. Anything else is text.
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

/// The message for an agent, given its input: the value of `text`, else of `query`, if it is truthy, else the whole
/// input as JSON. A value that is not a string is given as JSON.
#[must_use]
pub fn message_text(input: &RawValue) -> String {
    let content = ["text", "query"].into_iter().find_map(|name| member(input, name).filter(|value| is_truthy(value)));
    content.map_or_else(|| input.get().to_owned(), |value| text(value).unwrap_or_else(|| value.get().to_owned()))
}

/// Whether the value is not null, false, zero or empty.
pub(crate) fn is_truthy(value: &RawValue) -> bool {
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

    /// Checks that a mapping with this one value resolves to the expected value, or fails with the expected text.
    fn check(value: &str, expected: Result<&str, &str>) {
        let mut scope = Scope::new(raw(INPUT));
        scope.set("step-1", raw(r#"{"text":"said","rows":[[1,2],[3]],"output":7}"#).to_owned());
        scope.set("steps", raw(r#"{"text":"of a step named steps"}"#).to_owned());
        scope.set("list", raw("[5,6]").to_owned());
        check_in(&scope, value, expected);
    }

    fn check_in(scope: &Scope<'_>, value: &str, expected: Result<&str, &str>) {
        let resolved = resolve(&[("m".to_owned(), raw(value).to_owned())], scope).map_err(|error| error.to_string());
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
    fn an_input_that_gets_too_large_fails_with_its_limit() {
        let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20));
        let scope = Scope::new(raw(&json));
        let mapping = ["t", "u", "v", "w"].map(|name| (name.to_owned(), raw(r#""${workflow.input.a}""#).to_owned()));
        let error = resolve(&mapping, &scope).expect_err("too large").to_string();
        let expected =
            "input_mapping member 'w': the input gets larger than 4194304 bytes, which is the limit of a step's input";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_large_value_is_scanned_twice_however_often_it_is_mentioned() {
        let numbers: Vec<_> = (0..50_000).map(|n| n.to_string()).collect();
        let json = format!(r#"{{"list":[{}],"a":{{"b":7}}}}"#, numbers.join(","));
        let scope = Scope::new(raw(&json));
        // 300 kB scanned 2000 times would be far above the limit.
        let members: Vec<_> =
            (0..2000).map(|n| format!(r#""${{workflow.input.list[{n}]}}","${{workflow.input.a.b}}""#)).collect();
        let mapping = format!("[{}]", members.join(","));
        let resolved = resolve(&[("m".to_owned(), raw(&mapping).to_owned())], &scope).expect("an input");
        let expected: Vec<_> = (0..2000).map(|n| format!("{n},7")).collect();
        assert_eq!(resolved.get(), format!(r#"{{"m":[{}]}}"#, expected.join(",")));
        for (reference, part) in
            [("list[50000]", "no element '50000'"), ("list.x", "no element 'x'"), ("c", "no member 'c'")]
        {
            let mapping = format!(
                r#"["${{workflow.input.list.0}}","${{workflow.input.list.1}}","${{workflow.input.{reference}}}"]"#
            );
            let fault =
                resolve(&[("m".to_owned(), raw(&mapping).to_owned())], &scope).map_err(|error| error.to_string());
            assert!(fault.as_ref().is_err_and(|text| text.contains(part)), "{reference}: {fault:?}");
        }
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
        check(r#"[1,{"a":"${x.output}"}]"#, Err("member 'm.1.a', reference 'x.output': step 'x' has no output"));
    }

    #[test]
    fn a_default_replaces_a_missing_value_and_nothing_else() {
        for (reference, expected) in [
            ("workflow.input.gone:-en", r#""en""#),
            ("workflow.input.gone:-5", "5"),
            ("workflow.input.gone:-null", "null"),
            ("workflow.input.gone:-[1, 2]", "[1, 2]"),
            ("workflow.input.gone:-", r#""""#),
            ("workflow.input.gone:-a:-b", r#""a:-b""#),
            ("workflow.input.term.x:-none", r#""none""#),
            ("workflow.input.items[9]:-none", r#""none""#),
            ("step-2.output:-none", r#""none""#),
            ("step-2.output.text:-none", r#""none""#),
            ("workflow.input.term:-other", r#""quorum""#),
            ("workflow.input.none:-other", "null"),
        ] {
            check(&format!("\"${{{reference}}}\""), Ok(expected));
        }
        check(r#""${workflow.input.gone:-\"5\"}""#, Ok(r#""5""#));
        check(r#""in ${workflow.input.gone:-en}, ${workflow.input.gone:-5}""#, Ok(r#""in en, 5""#));
        check(r#""${nonsense:-x}""#, Err("must be workflow.input"));
        check(r#""${loop.item:-x}""#, Err("loop variables exist only inside a loop"));
    }

    #[test]
    fn loop_variables_are_those_of_the_innermost_loop() {
        let mut run = Scope::new(raw("{}"));
        run.set("before", raw(r#"{"n":1}"#).to_owned());
        let (outer_item, inner_item) = (raw(r#"{"a":{"b":[7,8]}}"#), raw(r#""x""#));
        let mut outer = run.iteration(outer_item, 1, 2);
        outer.set("before", raw(r#"{"n":2}"#).to_owned());
        for (reference, expected) in [
            ("loop.item", r#"{"a":{"b":[7,8]}}"#),
            ("loop.item.a.b[1]", "8"),
            ("loop.index", "1"),
            ("loop.total", "2"),
            ("loop.is_first", "false"),
            ("loop.is_last", "true"),
            ("before.output.n", "2"),
        ] {
            check_in(&outer.inner(), &format!("\"${{{reference}}}\""), Ok(expected));
        }
        let inner = outer.iteration(inner_item, 0, 1);
        check_in(&inner, r#"["${loop.item}","${loop.index}","${before.output.n}"]"#, Ok(r#"["x",0,2]"#));
        check_in(&inner, r#""${loop.item.a}""#, Err("'a' is looked for in a value that has no members"));
        check_in(&inner, r#""${loop.items}""#, Err("after 'loop.', not 'items'"));
        check_in(&run, r#""${before.output.n}""#, Ok("1"));
    }

    #[test]
    fn a_collection_is_what_its_text_begins_with() {
        let input = raw(r#"{"a":{"items":[1]}}"#);
        let scope = Scope::new(input);
        let found = |text| resolve_reference(text, &scope).map(|value| value.get().to_owned());
        assert_eq!(found("${workflow.input.a.items}").as_deref(), Ok("[1]"));
        assert_eq!(found(" ${workflow.input.a.items[0]} and more").as_deref(), Ok("1"));
        assert_eq!(found("${workflow.input.b:-[]}").as_deref(), Ok("[]"));
        assert!(found("items").is_err_and(|error| error.contains("'items' is not a reference")));
        assert!(found("${workflow.input.b}").is_err_and(|error| error.contains("no member 'b'")));
    }

    #[test]
    fn a_resolved_input_is_limited_in_size_work_and_depth() {
        let input = format!(r#"{{"a":"{}","b":1}}"#, "x".repeat(1 << 20));
        let scope = Scope::new(raw(&input));
        let fails = |value: String, fault: MappingFault| {
            let resolved = resolve(&[("m".to_owned(), RawValue::from_string(value).expect("JSON"))], &scope);
            assert!(resolved.is_err_and(|error| error.reason == fault));
        };
        fails(format!("[{}]", [r#""${workflow.input.a}""#; 5].join(",")), MappingFault::TooLarge);
        fails(format!("\"{}\"", "${workflow.input.a}".repeat(5)), MappingFault::TooLarge);
        fails(format!("{}\"${{a}}\"{}", "[".repeat(100), "]".repeat(100)), MappingFault::TooDeep);
    }

    #[test]
    fn an_agents_message_is_text_else_query_else_everything() {
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
