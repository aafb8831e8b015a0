//! Metered input: a view of the input for the validator that counts every access to a value as a step.
//!
//! The validator cannot be interrupted, and its cost depends on the combination of schema and input, so only counting
//! can bound it. When the steps are used up, or the time is over, the validation is unwound.

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

/// Bytes of a text that are read in one step.
const BYTES_PER_STEP: usize = 64;
/// States of a complex pattern that are followed over one byte in one step.
const STATES_PER_STEP: usize = 16;

/// Number of steps between two checks of the clock.
const STEPS_PER_CLOCK_CHECK: usize = 1 << 12;

thread_local! {
    /// Meter of the validation on this thread.
    static METER: Cell<Meter> = const { Cell::new(Meter { left: 0, pattern_states: 0, until: None }) };
}

#[derive(Clone, Copy)]
struct Meter {
    left: usize,
    /// See [`within`].
    pattern_states: usize,
    /// Deadline of the validation.
    until: Option<Instant>,
}

/// Payload of the unwinding.
struct Spent;

/// Result of the validation, unless it takes more steps than that or passes the deadline; then `None`.
///
/// `pattern_states` bounds the cost of matching one text: each of its bytes may meet that many states.
pub(super) fn within<T>(
    (steps, until): (usize, Instant),
    pattern_states: usize,
    validate: impl FnOnce() -> T,
) -> Option<T> {
    METER.set(Meter { left: steps, pattern_states, until: Some(until) });
    // No state outlives the unwinding: validators keep none between two validations.
    match catch_unwind(AssertUnwindSafe(validate)) {
        Ok(result) => Some(result),
        Err(cause) if cause.is::<Spent>() => None,
        Err(cause) => resume_unwind(cause),
    }
}

fn spend(steps: usize) {
    let meter = METER.get();
    match meter.left.checked_sub(steps) {
        Some(left) if left / STEPS_PER_CLOCK_CHECK == meter.left / STEPS_PER_CLOCK_CHECK || !is_over(meter.until) => {
            METER.set(Meter { left, ..meter });
        }
        // Unlike a panic, this does not call the panic hook.
        _ => resume_unwind(Box::new(Spent)),
    }
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

/// Charges a text that is about to be matched, possibly with a pattern.
fn spend_on_match(text: &str) {
    let states = METER.get().pattern_states;
    spend(1 + text.len() / BYTES_PER_STEP + text.len().saturating_mul(states) / STATES_PER_STEP);
}

/// Number of values in a value, itself included; a text counts the steps of reading it.
fn deep_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => 1 + text.len() / BYTES_PER_STEP,
        Value::Array(elements) => 1 + elements.iter().map(deep_size).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(|member| 1 + deep_size(member)).sum::<usize>(),
    }
}

/// JSON whose values are counted on access.
pub(super) struct Metered;

/// Value of the input.
#[derive(Clone)]
pub(super) struct Seen<'a>(pub(super) &'a Value);

/// Object of the input.
pub(super) struct SeenObject<'a>(&'a Map<String, Value>);

/// Array of the input.
pub(super) struct SeenArray<'a>(&'a [Value]);

impl Json for Metered {
    type Node<'a> = Seen<'a>;
    type PreparedKey = String;
    type StringBuffer = Value;

    /// As with the plain representation, a look-up compares keys.
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
            // Arrays of different sizes differ at once.
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

    /// Schemas have no cycles, so values need no identity, which would take memory for each of them.
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

/// Members of an object. Their names may be matched with patterns.
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

/// Elements of an array.
pub(super) struct SeenElements<'a>(std::slice::Iter<'a, value::Value>);

impl<'a> Iterator for SeenElements<'a> {
    type Item = Seen<'a>;

    fn next(&mut self) -> Option<Seen<'a>> {
        let element = self.0.next()?;
        spend(1);
        Some(Seen(element))
    }
}
