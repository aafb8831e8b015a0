//! Frames: the branch that a step belongs to, and the block around it.

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

/// Completed step.
pub(super) struct Done {
    pub(super) output: Box<RawValue>,
    /// Outputs of the steps inside of it that later steps can use, by step id.
    pub(super) inside: HashMap<String, Box<RawValue>>,
    /// Whether it was executed now, and not by a previous execution.
    pub(super) is_new: bool,
}

impl Done {
    pub(super) fn new(output: Box<RawValue>) -> Self {
        Self { output, inside: HashMap::new(), is_new: true }
    }
}

/// Frame: a sequence of steps, which is the main chain, or one branch or iteration of a block.
pub(super) struct Frame<'a> {
    pub(super) scope: Scope<'a>,
    /// Branch of a block; `None`: the main chain.
    pub(super) branch: Option<Branch<'a>>,
    /// Prefix of the step paths of its steps.
    pub(super) prefix: String,
    pub(super) depth: usize,
    pub(super) reuse: ReusePolicy,
    /// Memory reservation of the outputs in the scope.
    pub(super) held: MemoryReservation<'a>,
    /// Bytes held from which on outputs that are not needed any more are dropped.
    pub(super) forget_at: usize,
}

/// Branch, as in the rows of its steps.
pub(super) struct Branch<'a> {
    pub(super) parent_step_id: &'a str,
    pub(super) name: String,
    pub(super) join_policy: Option<&'static str>,
}

/// Block that has been entered.
pub(super) struct Block<'a> {
    pub(super) step: &'a Step,
    pub(super) path: &'a str,
    pub(super) scope: &'a Scope<'a>,
    pub(super) depth: usize,
    pub(super) reuse: ReusePolicy,
    /// Time for which it has been open.
    pub(super) age: Duration,
    /// Callbacks of its branches, which all of them see.
    pub(super) callbacks: Option<Arc<HashMap<String, Callback>>>,
    pub(super) budget: &'a Budget,
}

impl<'a> Block<'a> {
    /// Frame of one of its branches.
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
