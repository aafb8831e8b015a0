//! Values of a condition.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap};

use serde_json::{Number, Value, value::RawValue};

use super::parse::Arithmetic;
use crate::{
    input::{object_of, to_raw},
    mapping,
};

/// Value of the run, or one that the expression creates. Values of the run are never copied: an expression may mention
/// a large one thousands of times.
pub(super) enum Held<'e> {
    /// Value of the run, or the default of a reference.
    Raw(Cow<'e, RawValue>),
    /// Neither array nor object.
    Scalar(Cow<'e, Value>),
    List(Vec<Held<'e>>),
    Object(BTreeMap<String, Held<'e>>),
}

/// Borrowed value.
#[derive(Clone, Copy)]
pub(super) enum Item<'v> {
    Raw(&'v RawValue),
    Made(&'v Held<'v>),
}

/// Value whose outermost layer is decoded.
pub(super) enum View<'v> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'v, str>),
    List(Vec<Item<'v>>),
    Object(BTreeMap<Cow<'v, str>, Item<'v>>),
}

impl From<bool> for Held<'_> {
    fn from(is_true: bool) -> Self {
        Self::Scalar(Cow::Owned(Value::Bool(is_true)))
    }
}

impl Held<'_> {
    pub(super) fn item(&self) -> Item<'_> {
        match self {
            Self::Raw(raw) => Item::Raw(raw),
            made => Item::Made(made),
        }
    }

    /// The value as JSON; `None` if it has more bytes.
    pub(super) fn json(&self, max_bytes: usize) -> Option<Box<RawValue>> {
        let json = match self {
            Self::Raw(raw) => (raw.get().len() <= max_bytes).then(|| raw.clone().into_owned())?,
            Self::Scalar(value) => to_raw(value),
            Self::List(items) => {
                let mut left = max_bytes;
                let items: Option<Vec<_>> = items.iter().map(|item| item.json_within(&mut left)).collect();
                to_raw(&items?)
            }
            Self::Object(members) => {
                let mut left = max_bytes;
                let members =
                    members.iter().map(|(name, member)| Some((name.as_str(), member.json_within(&mut left)?)));
                let members: Option<Vec<_>> = members.collect();
                object_of(members?.iter().map(|(name, member)| (*name, &**member)))
            }
        };
        (json.get().len() <= max_bytes).then_some(json)
    }

    fn json_within(&self, left: &mut usize) -> Option<Box<RawValue>> {
        let json = self.json(*left)?;
        *left -= json.get().len();
        Some(json)
    }

    /// Whether the value is not false, null, zero or empty.
    pub(super) fn is_truthy(&self) -> bool {
        match self {
            Self::Raw(raw) => mapping::is_truthy(raw),
            Self::Scalar(value) => match &**value {
                Value::Bool(is_true) => *is_true,
                Value::Number(number) => number.as_f64() != Some(0.0),
                Value::String(text) => !text.is_empty(),
                Value::Null | Value::Array(_) | Value::Object(_) => false,
            },
            Self::List(items) => !items.is_empty(),
            Self::Object(members) => !members.is_empty(),
        }
    }
}

impl View<'_> {
    /// The value as a number; true and false are 1 and 0.
    pub(super) fn number(&self) -> Option<Cow<'_, Number>> {
        match self {
            Self::Number(number) => Some(Cow::Borrowed(number)),
            Self::Bool(is_true) => Some(Cow::Owned(Number::from(u8::from(*is_true)))),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Number,
    Text,
    List,
    Object,
}

/// Kind of a value, without decoding it.
pub(super) fn kind(item: Item<'_>) -> Kind {
    match item {
        Item::Raw(raw) => kind_of_raw(raw),
        Item::Made(Held::Raw(raw)) => kind_of_raw(raw),
        Item::Made(Held::List(_)) => Kind::List,
        Item::Made(Held::Object(_)) => Kind::Object,
        Item::Made(Held::Scalar(value)) => match &**value {
            Value::Null => Kind::Null,
            Value::Bool(_) => Kind::Bool,
            Value::Number(_) => Kind::Number,
            Value::String(_) => Kind::Text,
            Value::Array(_) => Kind::List,
            Value::Object(_) => Kind::Object,
        },
    }
}

fn kind_of_raw(raw: &RawValue) -> Kind {
    match raw.get().as_bytes().first() {
        Some(b't' | b'f') => Kind::Bool,
        Some(b'"') => Kind::Text,
        Some(b'[') => Kind::List,
        Some(b'{') => Kind::Object,
        Some(b'-' | b'0'..=b'9') => Kind::Number,
        _ => Kind::Null,
    }
}

pub(super) fn is_numeric(item: Item<'_>) -> bool {
    matches!(kind(item), Kind::Number | Kind::Bool)
}

/// Order of two numbers: whole numbers of 64 bits are compared exactly, others as doubles.
pub(super) fn order_numbers(left: &Number, right: &Number) -> Ordering {
    match (left.as_i128(), right.as_i128()) {
        (Some(left), Some(right)) => left.cmp(&right),
        // JSON has no NaN, so the comparison has a result.
        _ => left.as_f64().partial_cmp(&right.as_f64()).unwrap_or(Ordering::Equal),
    }
}

pub(super) fn computed(operator: Arithmetic, a: &Number, b: &Number) -> Option<Number> {
    let exact = a.as_i64().zip(b.as_i64()).and_then(|(a, b)| match operator {
        Arithmetic::Plus => a.checked_add(b),
        Arithmetic::Minus => a.checked_sub(b),
        Arithmetic::Times => a.checked_mul(b),
        Arithmetic::Divide => None,
        // The result has the sign of the divisor, as in the reference deployment.
        Arithmetic::Modulo => {
            a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
    });
    if let Some(exact) = exact {
        return Some(Number::from(exact));
    }
    a.as_f64().zip(b.as_f64()).and_then(|(a, b)| {
        Number::from_f64(match operator {
            Arithmetic::Plus => a + b,
            Arithmetic::Minus => a - b,
            Arithmetic::Times => a * b,
            Arithmetic::Divide => a / b,
            Arithmetic::Modulo => a - b * (a / b).floor(),
        })
    })
}
