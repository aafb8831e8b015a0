//! What the settings of all models have in common.

use std::ops::RangeInclusive;

use serde_json::value::RawValue;

use crate::input::{FieldError, Node, Read, member, text, to_raw};

/// Length of a model's name.
pub(super) const MODEL_CHARS: RangeInclusive<usize> = 1..=255;
/// Length of a system prompt.
pub(super) const PROMPT_CHARS: RangeInclusive<usize> = 0..=100_000;

/// Reads the format of a model's text.
pub(super) fn read_format(node: &Node<'_>) -> Read<Box<RawValue>> {
    match text(node.raw()).as_deref() {
        Some("json") => Ok(to_raw(&serde_json::json!({"type": "json_object"}))),
        Some("text") => Ok(to_raw(&serde_json::json!({"type": "text"}))),
        Some(_) => Err(vec![FieldError::rule(node.path(), "must be text, json, or an object with a type")]),
        None => node.free_object(),
    }
}

/// Reads further members of a request; those that other members determine are errors.
pub(super) fn read_parameters(node: &Node<'_>, is_own: impl Fn(&str) -> bool) -> Read<Box<RawValue>> {
    let own: Vec<_> = node.map()?.into_iter().filter(|(name, _)| is_own(name)).collect();
    match &own[..] {
        [] => node.free_object(),
        own => Err(own.iter().map(|(_, node)| FieldError::rule(node.path(), "follows from other members")).collect()),
    }
}

/// Whether a format is that of JSON.
pub(super) fn is_json(format: Option<&RawValue>) -> bool {
    let kind = format.and_then(|format| member(format, "type"));
    kind.and_then(text).is_some_and(|kind| kind.starts_with("json"))
}
