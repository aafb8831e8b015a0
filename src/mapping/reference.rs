//! References: the text between `${` and `}`, and the look-up of its value.
//!
//! A reference is a root, a path, and perhaps a default: `workflow.input.lang:-en`. The roots are `workflow.input`,
//! `<step id>.output` (or `steps.<step id>.output`), `<step id>.callback_url` and, inside a loop, `loop.item`,
//! `loop.index`, `loop.total`, `loop.is_first` and `loop.is_last`. In a mock of a step's answer there is `step.input`; in
//! the filter of a webhook there are `event.type`, `event.timestamp` and `event.data`; in the input of a run that a trigger starts, `trigger` is the only
//! root.

use std::{borrow::Cow, collections::HashMap, fmt, iter::Peekable};

use serde_json::value::RawValue;

use super::{
    MAX_RESOLVED_BYTES,
    scope::{Found, Scope},
};
use crate::input::{MAX_JSON_DEPTH, check_json, elements, member, members, shorten, to_raw};

/// Maximum bytes that are scanned for one input.
const MAX_SCANNED_BYTES: usize = 256 << 20;
/// Bytes of a value from which on repeated look-ups use an index.
const WORTH_AN_INDEX: usize = 4 << 10;

/// Separator between a path and its default.
const DEFAULT_MARK: &str = ":-";

/// Root of the references in the input of a run that a trigger starts.
pub(crate) const TRIGGER: &str = "trigger";

/// Names that may follow `loop.`.
const LOOP_VARIABLES: [&str; 5] = ["item", "index", "total", "is_first", "is_last"];

/// Members of an event.
const EVENT_MEMBERS: [&str; 3] = ["type", "timestamp", "data"];

/// Fault of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingFault {
    /// It begins with none of the roots.
    Malformed,
    /// Another root than `trigger`, in the input of a run that a trigger starts.
    NotOfTrigger,
    /// A loop variable outside a loop.
    OutsideLoop,
    /// A loop has no variable of that name.
    NoLoopVariable(String),
    /// The step has no output yet, or never.
    NoOutput(String),
    /// The step is not a callback, or not one whose URL this step may use.
    NoCallback(String),
    /// An object has no such member.
    NoMember(String),
    /// An array has no such element.
    NoElement(String),
    /// The path continues in a value that is neither object nor array.
    NotAContainer(String),
    /// The value is not a string, and only strings can be put into text.
    NotText,
    /// The resolved input is too large.
    TooLarge,
    /// The mapping is nested too deeply.
    TooDeep,
    /// Too many bytes are scanned.
    TooCostly,
}

impl MappingFault {
    /// Whether the reference is valid and its value does not exist in this run, so that a default replaces it.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NoOutput(_) | Self::NoMember(_) | Self::NoElement(_) | Self::NotAContainer(_))
    }
}

impl fmt::Display for MappingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("must be workflow.input.<path> or <step id>.output.<path>"),
            Self::NotOfTrigger => f.write_str("must be trigger.<path>"),
            Self::OutsideLoop => f.write_str("loop variables exist only inside a loop"),
            Self::NoLoopVariable(name) => {
                write!(f, "there are {} after 'loop.', not '{name}'", LOOP_VARIABLES.join(", "))
            }
            Self::NoOutput(step) => write!(f, "step '{step}' has no output"),
            Self::NoCallback(step) => write!(f, "step '{step}' is not a callback of this branch or of one around it"),
            Self::NoMember(name) => write!(f, "there is no member '{name}'"),
            Self::NoElement(index) => write!(f, "there is no element '{index}'"),
            Self::NotAContainer(part) => write!(f, "'{part}' is looked for in a value that has no members"),
            Self::NotText => f.write_str("only a string can be put into text"),
            Self::TooLarge => {
                write!(f, "the input gets larger than {MAX_RESOLVED_BYTES} bytes, which is the limit of a step's input")
            }
            Self::TooDeep => write!(f, "it is nested more than {MAX_JSON_DEPTH} deep"),
            Self::TooCostly => {
                write!(f, "the references of the step read more than {MAX_SCANNED_BYTES} bytes, which is the limit")
            }
        }
    }
}

/// Look-up of values in a scope, with a limit on the total cost.
pub(crate) struct LookUp<'s> {
    scope: &'s Scope<'s>,
    scanned: usize,
    /// Indexes of large values, by the address of their text.
    indexes: HashMap<usize, Index<'s>>,
}

/// Index of a value that was scanned.
enum Index<'s> {
    /// No index yet: most values are scanned once.
    None,
    Members(HashMap<String, &'s RawValue>),
    Elements(Vec<&'s RawValue>),
}

impl<'s> LookUp<'s> {
    pub(crate) fn new(scope: &'s Scope<'s>) -> Self {
        Self { scope, scanned: 0, indexes: HashMap::new() }
    }

    /// The value of a reference; owned if it is the default.
    pub(crate) fn get(&mut self, reference: &str) -> Result<Cow<'s, RawValue>, MappingFault> {
        let (path, default) = split_default(reference);
        match (self.find(path), default) {
            (Err(fault), Some(default)) if fault.is_missing() => Ok(Cow::Owned(default_value(default))),
            (found, _) => found.map(Cow::Borrowed),
        }
    }

    /// The value of a reference, even if it has a default.
    pub(super) fn get_without_default(&mut self, reference: &str) -> Result<&'s RawValue, MappingFault> {
        self.find(split_default(reference).0)
    }

    fn find(&mut self, reference: &str) -> Result<&'s RawValue, MappingFault> {
        if let Some(trigger) = self.scope.trigger() {
            let path = reference.split('.').skip(1);
            return if is_of_trigger(reference) {
                self.walk(trigger, Vec::new(), path)
            } else {
                Err(MappingFault::NotOfTrigger)
            };
        }
        let (root, path) = root_of(reference)?;
        let path = path.peekable();
        let (value, indexes) = match root {
            Root::Input(indexes) => {
                let (input, found) = self.scope.input_with_cache();
                return self.find_once(reference, (input, found), indexes, path);
            }
            Root::Output(step, indexes) => {
                let output = self.scope.output_with_cache(step);
                let output = output.ok_or_else(|| MappingFault::NoOutput(shorten(step).into_owned()))?;
                return self.find_once(reference, output, indexes, path);
            }
            Root::Callback(step) => {
                let url = self.scope.callback(step).and_then(super::Callback::url);
                (url.ok_or_else(|| MappingFault::NoCallback(shorten(step).into_owned()))?, Vec::new())
            }
            Root::StepInput(indexes) => (self.scope.step_input().ok_or(MappingFault::Malformed)?, indexes),
            Root::Event(member, indexes) => {
                let event = self.scope.event().ok_or(MappingFault::Malformed)?;
                (self.step_into(event, member)?, indexes)
            }
            Root::Loop(variable, indexes) => {
                (self.scope.loop_variable(variable).ok_or(MappingFault::OutsideLoop)?, indexes)
            }
        };
        self.walk(value, indexes, path)
    }

    /// The value of a reference inside `value`, which is scanned only for the first reference with that text.
    fn find_once<'r>(
        &mut self,
        reference: &str,
        (value, cache): (&'s RawValue, &'s Found),
        indexes: Vec<&'r str>,
        mut path: Peekable<impl Iterator<Item = &'r str>>,
    ) -> Result<&'s RawValue, MappingFault> {
        let is_whole = indexes.is_empty() && path.peek().is_none();
        if is_whole || value.get().len() < WORTH_AN_INDEX {
            return self.walk(value, indexes, path);
        }
        if let Some(found) = cache.get(reference, value) {
            let found = found?;
            self.scan(found)?;
            return Ok(found);
        }
        let found = self.walk(value, indexes, path);
        if !matches!(found, Err(MappingFault::TooLarge)) {
            cache.set(reference, value, &found);
        }
        found
    }

    fn walk<'r>(
        &mut self,
        mut value: &'s RawValue,
        indexes: Vec<&'r str>,
        path: impl Iterator<Item = &'r str>,
    ) -> Result<&'s RawValue, MappingFault> {
        for index in indexes {
            value = self.step_into(value, index)?;
        }
        for part in path {
            value = self.part(value, part)?;
        }
        Ok(value)
    }

    /// Counts the bytes of a scanned value.
    fn scan(&mut self, value: &RawValue) -> Result<(), MappingFault> {
        self.scanned += value.get().len();
        if self.scanned > MAX_SCANNED_BYTES { Err(MappingFault::TooCostly) } else { Ok(()) }
    }

    /// Resolves one part of a path: a key, else a key with indexes, such as `items[0]`.
    fn part(&mut self, value: &'s RawValue, part: &str) -> Result<&'s RawValue, MappingFault> {
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
    fn step_into(&mut self, value: &'s RawValue, key: &str) -> Result<&'s RawValue, MappingFault> {
        let no_member = || MappingFault::NoMember(shorten(key).into_owned());
        let no_element = || MappingFault::NoElement(shorten(key).into_owned());
        let at = value.get().as_ptr().addr();
        let is_second_scan = match self.indexes.get(&at) {
            Some(Index::Members(members)) => return members.get(key).copied().ok_or_else(no_member),
            Some(Index::Elements(elements)) => return element(elements, key).ok_or_else(no_element),
            Some(Index::None) => true,
            None => false,
        };
        self.scan(value)?;
        if !is_second_scan && value.get().len() >= WORTH_AN_INDEX {
            self.indexes.insert(at, Index::None);
        }
        if value.get().starts_with('{') {
            if !is_second_scan {
                return member(value, key).ok_or_else(no_member);
            }
            let members: HashMap<_, _> = members(value).unwrap_or_default().into_iter().collect();
            let found = members.get(key).copied().ok_or_else(no_member);
            self.indexes.insert(at, Index::Members(members));
            return found;
        }
        if let Some(elements) = elements(value) {
            let found = element(&elements, key).ok_or_else(no_element);
            if is_second_scan {
                self.indexes.insert(at, Index::Elements(elements));
            }
            return found;
        }
        Err(MappingFault::NotAContainer(shorten(key).into_owned()))
    }
}

fn element<'s>(elements: &[&'s RawValue], key: &str) -> Option<&'s RawValue> {
    key.parse().ok().and_then(|index: usize| elements.get(index).copied())
}

/// Whether the reference is to an event, as in the filter of a webhook.
pub(crate) fn is_of_event(reference: &str) -> bool {
    matches!(root_of(reference), Ok((Root::Event(..), _)))
}

/// Whether the reference is to what a trigger has seen.
pub(crate) fn is_of_trigger(reference: &str) -> bool {
    split_default(reference).0.split('.').next() == Some(TRIGGER)
}

/// Splits a reference into path and default.
fn split_default(reference: &str) -> (&str, Option<&str>) {
    match reference.split_once(DEFAULT_MARK) {
        Some((path, default)) => (path, Some(default)),
        None => (reference, None),
    }
}

/// The value of a default: JSON if it is valid JSON, else the text itself.
fn default_value(default: &str) -> Box<RawValue> {
    check_json(default.as_bytes()).map_or_else(|_| to_raw(&default), RawValue::to_owned)
}

/// Root of a reference, with the indexes that follow it directly.
pub(crate) enum Root<'r> {
    /// The run's input.
    Input(Vec<&'r str>),
    /// A step's output.
    Output(&'r str, Vec<&'r str>),
    /// URL of a callback.
    Callback(&'r str),
    /// Variable of the innermost loop.
    Loop(&'r str, Vec<&'r str>),
    /// Input of the step whose answer is mocked.
    StepInput(Vec<&'r str>),
    /// Member of the event that a filter is about.
    Event(&'r str, Vec<&'r str>),
}

/// The root of a reference, with the indexes that follow it directly (`step.output[0]`), and the path from there,
/// without the default.
///
/// `steps.<id>.output` is the same as `<id>.output`.
pub(crate) fn root_of(reference: &str) -> Result<(Root<'_>, impl Iterator<Item = &str>), MappingFault> {
    let (path, _) = split_default(reference);
    let mut parts = path.split('.');
    let mut next = || parts.next().ok_or(MappingFault::Malformed);
    let (mut owner, mut side) = (next()?, next()?);
    if owner == "steps" && !matches!(indexed(side), Some(("output" | "callback_url", _))) {
        (owner, side) = (side, next()?);
    }
    let root = match (owner, indexed(side)) {
        (_, Some(("output", indexes))) => Root::Output(owner, indexes),
        (_, Some(("callback_url", indexes))) if indexes.is_empty() => Root::Callback(owner),
        ("workflow", Some(("input", indexes))) => Root::Input(indexes),
        ("step", Some(("input", indexes))) => Root::StepInput(indexes),
        ("event", Some((member, indexes))) if EVENT_MEMBERS.contains(&member) => Root::Event(member, indexes),
        ("loop", Some((variable, indexes))) if LOOP_VARIABLES.contains(&variable) => Root::Loop(variable, indexes),
        ("loop", _) => return Err(MappingFault::NoLoopVariable(shorten(side).into_owned())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_many_steps_refer_to_is_looked_up_once() {
        let input = format!(r#"{{"head":{{"n":1}},"many":[{}0],"tail":{{"a b":"x"}}}}"#, "0,".repeat(100_000));
        let input = check_json(input.as_bytes()).expect("JSON");
        let mut run = Scope::new(input);
        run.set("big", input.to_owned());
        let item = to_raw(&7);
        let references = [
            ("workflow.input.tail.a b", r#""x""#),
            ("workflow.input.many[3]", "0"),
            ("big.output.head", r#"{"n":1}"#),
            ("big.output.missing:-9", "9"),
        ];
        for index in 0..100 {
            let scope = run.iteration(&item, index, 100);
            let mut values = LookUp::new(&scope);
            for (reference, expected) in references {
                assert_eq!(values.get(reference).expect("found").get(), expected);
            }
            assert_eq!(values.scanned < 100, index > 0, "{} bytes in iteration {index}", values.scanned);
        }
        run.set("big", check_json(br#"{"head":2}"#).expect("JSON").to_owned());
        assert_eq!(LookUp::new(&run).get("big.output.head").expect("found").get(), "2", "the latest output counts");
    }
}
