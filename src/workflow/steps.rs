//! Steps of a definition, in order and by id.

use std::collections::{HashMap, HashSet};

use serde::{Serialize, Serializer};

use super::{
    reading::all,
    step::{Source, Step},
};
use crate::input::{Node, Read};

/// Map of steps by id, in the order given. Serialises to a map.
#[derive(Clone, Debug)]
pub struct Steps {
    entries: Vec<(String, Step)>,
    indexes: HashMap<String, usize>,
}

impl Steps {
    pub(super) fn read(node: &Node<'_>, origin: Source) -> Read<Self> {
        let nodes = node.map()?;
        if nodes.is_empty() {
            let message = "Dictionary should have at least 1 item after validation, not 0";
            return Err(vec![node.error("too_short", message)]);
        }
        let entries = all(nodes, |key, node| Step::read(key, node, origin))?;
        let indexes = entries.iter().enumerate().map(|(index, (key, _))| (key.clone(), index)).collect();
        Ok(Self { entries, indexes })
    }

    /// Finds a step by id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Step> {
        self.index(id).map(|index| &self.entries[index].1)
    }

    /// All steps in order.
    pub fn iter(&self) -> impl Iterator<Item = &Step> {
        self.entries.iter().map(|(_, step)| step)
    }

    /// Number of steps, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Agents of all steps of any kind; each once, in order of mention.
    #[must_use]
    pub fn agent_names(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        self.iter().filter_map(|step| step.agent_name.as_deref()).filter(|name| seen.insert(*name)).collect()
    }

    /// Keys and steps. The keys equal the ids once that rule was checked.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Step)> {
        self.entries.iter().map(|(key, step)| (key.as_str(), step))
    }

    /// Index of the step of that key in [`Steps::iter`].
    pub(super) fn index(&self, key: &str) -> Option<usize> {
        self.indexes.get(key).copied()
    }

    /// All indexes, each after those of the steps inside of it. Iterative, as every walk over a caller's steps, and
    /// each mention is visited once; a step that contains itself, which is an error elsewhere, is not entered twice.
    pub(super) fn inside_out(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.len());
        let mut entered = vec![false; self.len()];
        for root in 0..self.len() {
            if std::mem::replace(&mut entered[root], true) {
                continue;
            }
            let mut path = vec![(root, self.at(root).nested())];
            while let Some((index, rest)) = path.last_mut() {
                let Some(id) = rest.next() else {
                    order.push(*index);
                    path.pop();
                    continue;
                };
                if let Some(inner) = self.index(id).filter(|inner| !std::mem::replace(&mut entered[*inner], true)) {
                    path.push((inner, self.at(inner).nested()));
                }
            }
        }
        order
    }

    /// Step at an index of [`Steps::index`].
    pub(super) fn at(&self, index: usize) -> &Step {
        &self.entries[index].1
    }
}

impl Serialize for Steps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries())
    }
}
