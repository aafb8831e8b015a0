//! Cost estimate of compiling a schema, made in advance.

use std::collections::HashMap;

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::Value;

use crate::input::shorten;

/// Maximum number of values in a schema with its references expanded.
const MAX_EXPANDED: usize = 20_000;
/// Maximum depth of a schema with its references expanded; validation uses the stack.
const MAX_DEPTH: usize = 128;
/// Maximum bytes of the JSON pointers of all values of an expanded schema: each compiled value keeps its pointer.
const MAX_POINTER_BYTES: usize = 4 << 20;
/// Maximum number of states of one pattern, with its repetitions expanded.
const MAX_PATTERN_STATES: usize = 20_000;
/// Maximum number of states of all patterns together.
const MAX_STATES: usize = 60_000;
/// Minimum number of states that a pattern is charged, however short it is.
const STATES_OF_A_PATTERN: usize = 50;
/// Estimated bytes of a compiled pattern per state.
const BYTES_OF_A_STATE: usize = 200;
/// Estimated bytes of a compiled schema per value.
const BYTES_OF_A_VALUE: usize = 500;

/// Cost of a schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Estimated bytes of the compiled schema.
    pub(super) bytes: usize,
    /// States of all patterns that one text at one location may be matched with.
    pub(super) pattern_states: usize,
}

/// Cost of a schema, or why it exceeds the limits.
pub(super) fn cost(schema: &Value) -> Result<Cost, String> {
    let mut expansion = Expansion { root: schema, targets: HashMap::new() };
    let Size { values, pointer_bytes } = expansion.size(schema, 0, true)?;
    let mut patterns = Patterns { states: HashMap::new(), sum: 0, most: 0 };
    patterns.of_value(schema)?;
    let bytes = schema_bytes(values, pointer_bytes, patterns.sum);
    Ok(Cost { bytes, pattern_states: patterns.most })
}

fn schema_bytes(values: usize, pointer_bytes: usize, states: usize) -> usize {
    values * BYTES_OF_A_VALUE + 2 * pointer_bytes + states * BYTES_OF_A_STATE
}

/// Size of a value with its references expanded.
#[derive(Clone, Copy)]
struct Size {
    values: usize,
    /// Bytes of the pointers from the value to all values inside of it.
    pointer_bytes: usize,
}

impl Size {
    /// Adds an inner value at the end of a pointer of that many bytes.
    fn add(&mut self, way: usize, inner: Self) {
        self.values += inner.values;
        self.pointer_bytes += inner.pointer_bytes + inner.values * way;
    }
}

/// Counter of the values of a schema with its references expanded.
struct Expansion<'s> {
    root: &'s Value,
    /// Size of the target by reference; `None` while it is being counted.
    targets: HashMap<&'s str, Option<Size>>,
}

impl<'s> Expansion<'s> {
    fn size(&mut self, value: &'s Value, depth: usize, is_root: bool) -> Result<Size, String> {
        if depth > MAX_DEPTH {
            return Err(format!("must not be deeper than {MAX_DEPTH} with its references expanded"));
        }
        let mut size = Size { values: 1, pointer_bytes: 0 };
        match value {
            Value::Array(elements) => {
                for element in elements {
                    size.add(4, self.size(element, depth + 1, false)?);
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    let way = name.len() + 1;
                    size.add(way, self.size(member, depth + 1, false)?);
                    let Value::String(text) = member else { continue };
                    match name.as_str() {
                        "$ref" => size.add(way, self.target(text, depth + 1)?),
                        "$dynamicRef" | "$recursiveRef" => return Err(format!("must not use {name}")),
                        "$id" if !is_root => return Err("must not have an $id but its own".to_owned()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        if size.values > MAX_EXPANDED {
            return Err(format!("must have at most {MAX_EXPANDED} values with its references expanded"));
        }
        if size.pointer_bytes > MAX_POINTER_BYTES {
            return Err(format!(
                "must have at most {MAX_POINTER_BYTES} bytes in the JSON pointers of its values: names are too long, or nested too \
                 deeply"
            ));
        }
        Ok(size)
    }

    fn target(&mut self, reference: &'s str, depth: usize) -> Result<Size, String> {
        match self.targets.get(reference) {
            // This may be deeper than where it was first counted, but not deeper than the limit of all references
            // together.
            Some(Some(size)) => return Ok(*size),
            Some(None) => return Err(format!("reference {:?} leads back to itself", shorten(reference))),
            None => {}
        }
        let unresolved =
            || format!("reference {:?} must lead to a value in the schema, such as #/$defs/x", shorten(reference));
        let pointer = reference.strip_prefix('#').ok_or_else(unresolved)?;
        let root = self.root;
        let target = root.pointer(pointer).filter(|_| !pointer.contains('%')).ok_or_else(unresolved)?;
        self.targets.insert(reference, None);
        let size = self.size(target, depth, std::ptr::eq(target, root))?;
        self.targets.insert(reference, Some(size));
        Ok(size)
    }
}

/// Counter of the states of a schema's patterns, each of which is compiled once.
struct Patterns<'s> {
    /// States by pattern.
    states: HashMap<&'s str, usize>,
    sum: usize,
    /// Maximum number of states at one location.
    most: usize,
}

impl<'s> Patterns<'s> {
    /// Counts everything that may be a pattern. The recursion depth was bounded by [`Expansion`].
    fn of_value(&mut self, value: &'s Value) -> Result<(), String> {
        match value {
            Value::Array(elements) => elements.iter().try_for_each(|element| self.of_value(element)),
            Value::Object(members) => {
                if let Some(Value::String(pattern)) = members.get("pattern") {
                    let states = self.of_pattern(pattern)?;
                    self.most = self.most.max(states);
                }
                if let Some(Value::Object(patterns)) = members.get("patternProperties") {
                    let mut here = 0;
                    for pattern in patterns.keys() {
                        here += self.of_pattern(pattern)?;
                    }
                    self.most = self.most.max(here);
                }
                members.values().try_for_each(|member| self.of_value(member))
            }
            _ => Ok(()),
        }
    }

    fn of_pattern(&mut self, pattern: &'s str) -> Result<usize, String> {
        if let Some(states) = self.states.get(pattern) {
            return Ok(*states);
        }
        // An invalid pattern is rejected when the schema is compiled, with the reason.
        let translated = jsonschema_regex::to_rust_regex(pattern).ok();
        let parsed = translated.and_then(|pattern| regex_syntax::parse(&pattern).ok());
        let states = STATES_OF_A_PATTERN + parsed.map_or(0, |parsed| states(&parsed));
        let named = || format!("pattern {:?}", shorten(pattern));
        if states > MAX_PATTERN_STATES {
            return Err(format!(
                "{} must have at most {MAX_PATTERN_STATES} states, not {states}: repetitions count as often as they may \
                 occur",
                named()
            ));
        }
        self.sum += states;
        if self.sum > MAX_STATES {
            return Err(format!(
                "must have at most {MAX_STATES} states in all its patterns, of which {} is one too many: repetitions \
                 count as often as they may occur",
                named()
            ));
        }
        self.states.insert(pattern, states);
        Ok(states)
    }
}

/// Estimated number of states of a compiled pattern, with its repetitions expanded.
fn states(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Class(Class::Bytes(class)) => class.ranges().len(),
        HirKind::Class(Class::Unicode(class)) => class.ranges().len(),
        HirKind::Repetition(repetition) => {
            let count = repetition.max.unwrap_or(repetition.min.max(1)).max(1);
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            states(&repetition.sub).saturating_add(1).saturating_mul(count)
        }
        HirKind::Capture(capture) => states(&capture.sub).saturating_add(2),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().map(states).fold(1, usize::saturating_add),
    }
}
