//! Shared readers of step members.

use std::ops::RangeInclusive;

use crate::input::{ANY_LENGTH, Node, Read, keep};

/// Length of a step's id and of an agent's name, as in their columns.
pub(super) const ID_CHARS: RangeInclusive<usize> = 1..=255;

pub(super) fn one_of(node: &Node<'_>, names: &[&'static str]) -> Read<&'static str> {
    node.parsed(|text| {
        let name = names.iter().find(|name| **name == text);
        name.copied().ok_or_else(|| format!("must be one of {}", names.join(", ")))
    })
}

pub(super) fn strings(node: &Node<'_>) -> Read<Vec<String>> {
    let mut errors = Vec::new();
    let nodes = node.list()?;
    let strings = nodes.iter().filter_map(|node| keep(node.string(ANY_LENGTH), &mut errors)).collect();
    if errors.is_empty() { Ok(strings) } else { Err(errors) }
}

pub(super) fn some_strings(node: &Node<'_>) -> Read<Vec<String>> {
    let strings = strings(node)?;
    if strings.is_empty() {
        let message = "List should have at least 1 item after validation, not 0";
        return Err(vec![node.error("too_short", message)]);
    }
    Ok(strings)
}

/// Reads every value of a map, or returns the errors of all of them.
pub(super) fn all<'a, T>(
    nodes: Vec<(String, Node<'a>)>,
    read: impl Fn(&str, &Node<'a>) -> Read<T>,
) -> Read<Vec<(String, T)>> {
    let mut errors = Vec::new();
    let read = |(key, node): (String, Node<'a>)| keep(read(&key, &node), &mut errors).map(|value| (key, value));
    let values = nodes.into_iter().filter_map(read).collect();
    if errors.is_empty() { Ok(values) } else { Err(errors) }
}
