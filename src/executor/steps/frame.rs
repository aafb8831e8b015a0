//! Frames: the line of steps that a step belongs to, and the block around it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::value::RawValue;

use super::{
    KEPT_BYTES, MAX_COLUMN_CHARS,
    budget::{Budget, MemoryReservation},
    step_path,
};
use crate::{
    executor::earlier::ReusePolicy,
    mapping::{Callback, Scope},
    workflow::Step,
};

/// A step that has completed.
pub(super) struct Done {
    pub(super) output: Box<RawValue>,
    /// What the steps inside of it leave for the steps after it, by step id.
    pub(super) inside: HashMap<String, Box<RawValue>>,
    /// It was not done by an earlier execution.
    pub(super) is_new: bool,
}

impl Done {
    pub(super) fn new(output: Box<RawValue>) -> Self {
        Self { output, inside: HashMap::new(), is_new: true }
    }
}

/// What one step follows the other in: the main chain, or one branch or iteration of a block.
pub(super) struct Frame<'a> {
    pub(super) scope: Scope<'a>,
    /// `None`: the main chain.
    pub(super) branch: Option<Branch<'a>>,
    /// What the places of its steps begin with.
    pub(super) prefix: String,
    pub(super) depth: usize,
    pub(super) reuse: ReusePolicy,
    /// Of the outputs in the scope.
    pub(super) held: MemoryReservation<'a>,
    /// When so much is held, what is not needed any more is forgotten.
    pub(super) forget_at: usize,
}

/// A branch, as the rows of its steps tell of it.
pub(super) struct Branch<'a> {
    pub(super) parent_step_id: &'a str,
    pub(super) name: String,
    pub(super) join_policy: Option<&'static str>,
}

/// A block that has been entered.
pub(super) struct Block<'a> {
    pub(super) step: &'a Step,
    pub(super) path: &'a str,
    pub(super) scope: &'a Scope<'a>,
    pub(super) depth: usize,
    pub(super) reuse: ReusePolicy,
    /// For how long it has been open.
    pub(super) age: Duration,
    /// Those of its branches, which all of them see.
    pub(super) callbacks: Option<Arc<HashMap<String, Callback>>>,
    pub(super) budget: &'a Budget,
}

impl<'a> Block<'a> {
    /// One of its branches.
    pub(super) fn frame(&self, name: &str, scope: Scope<'a>) -> Frame<'a> {
        let scope = match &self.callbacks {
            Some(callbacks) => scope.with_callbacks(Arc::clone(callbacks)),
            None => scope,
        };
        let branch = Branch {
            parent_step_id: &self.step.id,
            name: name.chars().take(MAX_COLUMN_CHARS).collect(),
            join_policy: None,
        };
        let prefix = step_path::branch(self.path, name);
        Frame {
            scope,
            branch: Some(branch),
            prefix,
            depth: self.depth,
            reuse: self.reuse,
            held: self.budget.hold(),
            forget_at: KEPT_BYTES,
        }
    }
}
