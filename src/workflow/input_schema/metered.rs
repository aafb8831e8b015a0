//! An input as the validator sees it: every look at a value is a step, and the steps are counted.
//!
//! The validator cannot be interrupted, and what it costs depends on how schema and input meet: nothing short of
//! counting tells a cheap pair from an expensive one. When the last step is spent, or the time is over, the validation is
//! unwound.

use std::{
    borrow::Cow,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Instant,
};

use jsonschema::{
    json::{self, Array, Json, Node, NodeIdentity, Object},
    types::JsonType,
};
use serde_json::{Map, Number, Value, map, value};

/// Bytes of a text that are looked at in one step.
const BYTES_PER_STEP: usize = 64;
/// States of a pattern that are followed over one byte in one step, where the pattern is a hard one.
const STATES_PER_STEP: usize = 16;

/// Steps after which the clock is looked at.
const STEPS_PER_LOOK: usize = 1 << 12;

thread_local! {
    /// Of the validation on this thread.
    static METER: Cell<Meter> = const { Cell::new(Meter { left: 0, pattern_states: 0, until: None }) };
}

#[derive(Clone, Copy)]
struct Meter {
    left: usize,
    /// See [`within`].
    pattern_states: usize,
    /// When the time is over.
    until: Option<Instant>,
}

/// What a validation is unwound with.
struct Spent;

/// What the validation gives, if it takes no more than so many steps and does not go on until then; `None` if it would.
///
/// `pattern_states` bounds what matching one text takes: each of its bytes may meet so many states.
pub(super) fn within<T>(
    (steps, until): (usize, Instant),
    pattern_states: usize,
    validate: impl FnOnce() -> T,
) -> Option<T> {
    METER.set(Meter { left: steps, pattern_states, until: Some(until) });
    // Nothing outlives the unwinding: validators keep no state between two validations.
    match catch_unwind(AssertUnwindSafe(validate)) {
        Ok(result) => Some(result),
        Err(cause) if cause.is::<Spent>() => None,
        Err(cause) => resume_unwind(cause),
    }
}

fn spend(steps: usize) {
    let meter = METER.get();
    match meter.left.checked_sub(steps) {
        Some(left) if left / STEPS_PER_LOOK == meter.left / STEPS_PER_LOOK || !is_over(meter.until) => {
            METER.set(Meter { left, ..meter });
        }
        // Unlike a panic, this is not told to the panic hook.
        _ => resume_unwind(Box::new(Spent)),
    }
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

/// A text is about to be matched, perhaps with a pattern.
fn spend_on_match(text: &str) {
    let states = METER.get().pattern_states;
    spend(1 + text.len() / BYTES_PER_STEP + text.len().saturating_mul(states) / STATES_PER_STEP);
}

/// How many values there are in a value, itself included; texts count as what looking at them takes.
fn deep_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => 1 + text.len() / BYTES_PER_STEP,
        Value::Array(elements) => 1 + elements.iter().map(deep_size).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(|member| 1 + deep_size(member)).sum::<usize>(),
    }
}

/// JSON whose values are counted when they are looked at.
pub(super) struct Metered;

/// A value of the input.
#[derive(Clone)]
pub(super) struct Seen<'a>(pub(super) &'a Value);

/// An object of the input.
pub(super) struct SeenObject<'a>(&'a Map<String, Value>);

/// An array of the input.
pub(super) struct SeenArray<'a>(&'a [Value]);

impl Json for Metered {
    type Node<'a> = Seen<'a>;
    type PreparedKey = String;
    type StringBuffer = Value;

    /// As with the plain representation: a look-up compares keys.
    const KEYS_PER_LOOKUP: usize = 2;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>(buffer: &mut Value, text: &str, visit: impl FnOnce(Seen<'_>) -> T) -> T {
        *buffer = Value::String(text.to_owned());
        visit(Seen(buffer))
    }
}

impl<'a> Node<'a, Metered> for Seen<'a> {
    type Object = SeenObject<'a>;
    type Array = SeenArray<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<SeenObject<'a>> {
        spend(1);
        self.0.as_object().map(SeenObject)
    }

    fn as_array(&self) -> Option<SeenArray<'a>> {
        spend(1);
        self.0.as_array().map(|elements| SeenArray(elements))
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        let text = self.0.as_str();
        text.map_or_else(|| spend(1), spend_on_match);
        text.map(Cow::Borrowed)
    }

    fn as_number(&self) -> Option<&'a Number> {
        spend(1);
        self.0.as_number()
    }

    fn as_boolean(&self) -> Option<bool> {
        spend(1);
        self.0.as_bool()
    }

    fn is_null(&self) -> bool {
        spend(1);
        self.0.is_null()
    }

    fn json_type(&self) -> JsonType {
        spend(1);
        match self.0 {
            Value::Null => JsonType::Null,
            Value::Bool(_) => JsonType::Boolean,
            Value::Number(_) => JsonType::Number,
            Value::String(_) => JsonType::String,
            Value::Array(_) => JsonType::Array,
            Value::Object(_) => JsonType::Object,
        }
    }

    fn string_length(&self) -> Option<u64> {
        let text = self.0.as_str();
        spend(1 + text.map_or(0, |text| text.len() / BYTES_PER_STEP));
        text.map(|text| u64::try_from(text.chars().count()).unwrap_or(u64::MAX))
    }

    fn equals_value(&self, expected: &Value) -> bool {
        spend(match (self.0, expected) {
            // What differs in size differs at once.
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => deep_size(self.0),
            (Value::Object(one), Value::Object(other)) if one.len() == other.len() => deep_size(self.0),
            (Value::String(text), Value::String(_)) => 1 + text.len() / BYTES_PER_STEP,
            _ => 1,
        });
        json::cmp::equal(self.0, expected)
    }

    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Borrowed(self.0)
    }

    /// Schemas have no circles, so nothing need be remembered about values, which would take memory for each of them.
    fn identity(&self) -> Option<NodeIdentity> {
        None
    }
}

impl<'a> Object<'a, Metered> for SeenObject<'a> {
    type Node = Seen<'a>;
    type MemberName = &'a str;
    type MembersIter = SeenMembers<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<Seen<'a>> {
        spend(1);
        self.0.get(key.as_str()).map(Seen)
    }

    fn members(&self) -> SeenMembers<'a> {
        SeenMembers(self.0.iter())
    }
}

/// The members of an object. Their names may be matched with patterns.
pub(super) struct SeenMembers<'a>(map::Iter<'a>);

impl<'a> Iterator for SeenMembers<'a> {
    type Item = (&'a str, Seen<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.0.next()?;
        spend_on_match(name);
        Some((name, Seen(value)))
    }
}

impl<'a> Array<'a, Metered> for SeenArray<'a> {
    type Node = Seen<'a>;
    type ElementsIter = SeenElements<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn elements(&self) -> SeenElements<'a> {
        SeenElements(self.0.iter())
    }

    fn is_unique(&self) -> bool {
        // Each element is hashed, and compared with a few others.
        spend(self.0.iter().map(|element| 4 * deep_size(element)).sum());
        json::unique::is_unique(self.0)
    }
}

/// The elements of an array.
pub(super) struct SeenElements<'a>(std::slice::Iter<'a, value::Value>);

impl<'a> Iterator for SeenElements<'a> {
    type Item = Seen<'a>;

    fn next(&mut self) -> Option<Seen<'a>> {
        let element = self.0.next()?;
        spend(1);
        Some(Seen(element))
    }
}
