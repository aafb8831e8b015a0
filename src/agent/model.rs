//! What the settings of all models have in common.

use std::ops::RangeInclusive;

use serde_json::value::RawValue;

use crate::input::{FieldError, Node, Read, text, to_raw};

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
