//! Summary of a definition.

use std::collections::{BTreeMap, HashSet};

use super::{steps::Steps, validate};

/// Summary of a definition, valid or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// First step, as given.
    pub start_step: String,
    /// Number of steps.
    pub steps: usize,
    /// Number of steps of each type.
    pub by_type: BTreeMap<&'static str, usize>,
    /// Agents of the steps, in order of mention.
    pub agents: Vec<String>,
    /// Nesting depth of containers: 1 without any container.
    pub depth: usize,
    /// Ends of the main chain; empty if it is a cycle or leads nowhere.
    pub end_steps: Vec<String>,
    /// Steps that cannot be reached from the start, sorted.
    pub unreachable_steps: Vec<String>,
}

impl Summary {
    pub(super) fn of(start_step: &str, steps: &Steps) -> Self {
        let mut by_type = BTreeMap::new();
        for step in steps.iter() {
            *by_type.entry(step.kind.as_str()).or_default() += 1;
        }
        let owned = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect();
        Self {
            start_step: start_step.to_owned(),
            steps: steps.len(),
            by_type,
            agents: owned(steps.agent_names()),
            depth: depth(steps),
            end_steps: owned(end_of_main_chain(start_step, steps).into_iter().collect()),
            unreachable_steps: owned(validate::unreachable(start_step, steps)),
        }
    }
}

fn end_of_main_chain<'a>(start_step: &str, steps: &'a Steps) -> Option<&'a str> {
    let mut seen = HashSet::new();
    let mut step = steps.get(start_step)?;
    while seen.insert(step.id.as_str()) {
        match &step.next_step {
            None => return Some(&step.id),
            Some(next) => step = steps.get(next)?,
        }
    }
    None
}

/// Longest path from a container to its contents.
fn depth(steps: &Steps) -> usize {
    let mut depths = vec![0; steps.len()];
    for index in steps.inside_out() {
        let nested = steps.at(index).nested().filter_map(|id| steps.index(id));
        depths[index] = 1 + nested.map(|inner| depths[inner]).max().unwrap_or_default();
    }
    depths.into_iter().max().unwrap_or_default()
}
