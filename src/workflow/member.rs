//! What several members of a step have in common.

use std::ops::RangeInclusive;

use crate::input::{Node, Read};

/// Characters of a step's id and of an agent's name, as in their columns.
pub(super) const ID_CHARS: RangeInclusive<usize> = 1..=255;

/// The name among these that the node is.
pub(super) fn one_of(node: &Node<'_>, names: &[&'static str]) -> Read<&'static str> {
    node.parsed(|text| {
        let name = names.iter().find(|name| **name == text);
        name.copied().ok_or_else(|| format!("must be one of {}", names.join(", ")))
    })
}
