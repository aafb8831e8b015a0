//! What references can refer to.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use serde_json::value::RawValue;

use super::MappingFault;
use crate::input::to_raw;

/// The run's input, the outputs so far, and the variables of the loop around, if there is one.
///
/// Scopes lie inside each other as blocks do: what an inner one does not know, it asks the outer one. An inner scope
/// borrows the outer one, so nothing is added to a scope while steps inside of it run side by side, and what they see
/// does not depend on which of them is faster.
#[derive(Debug)]
pub struct Scope<'a> {
    input: &'a RawValue,
    outer: Option<&'a Scope<'a>>,
    /// In the input; the outermost scope's counts.
    found: Found,
    outputs: HashMap<String, Output>,
    /// Of the outputs.
    bytes: usize,
    iteration: Option<Iteration<'a>>,
    /// By step id.
    callbacks: Option<Arc<HashMap<String, Callback>>>,
}

#[derive(Debug)]
struct Output {
    value: Box<RawValue>,
    found: Found,
}

/// Cache of where references lead to inside of a value, by their text: steps that refer to the same again, such as the
/// iterations of a loop, do not look through the value each time. No larger than the plan, which has the references.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<HashMap<String, Result<Range<usize>, MappingFault>>>);

impl Found {
    /// Where that reference leads to, if it was looked for before.
    pub(super) fn get<'s>(&self, reference: &str, value: &'s RawValue) -> Option<Result<&'s RawValue, MappingFault>> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(reference).cloned()?;
        match found {
            Ok(range) => value.get().get(range).and_then(|text| serde_json::from_str(text).ok()).map(Ok),
            Err(fault) => Some(Err(fault)),
        }
    }

    /// Remembers what came of looking for it.
    pub(super) fn set(&self, reference: &str, value: &RawValue, found: &Result<&RawValue, MappingFault>) {
        let found = found.as_ref().map_err(Clone::clone).map(|part| {
            let start = part.get().as_ptr().addr() - value.get().as_ptr().addr();
            start..start + part.get().len()
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(reference.to_owned(), found);
    }
}

/// A callback that can be answered, perhaps before its step begins.
#[derive(Debug)]
pub struct Callback {
    /// Where its step stands in the run.
    pub path: String,
    url: OnceLock<Box<RawValue>>,
}

impl Callback {
    /// The callback of the step at that place, which has no address yet.
    #[must_use]
    pub fn new(path: String) -> Self {
        Self { path, url: OnceLock::new() }
    }

    /// Its address, once it has one.
    #[must_use]
    pub fn url(&self) -> Option<&RawValue> {
        self.url.get().map(|url| &**url)
    }

    /// Gives it its address. The first one stays.
    pub fn set_url(&self, url: &str) {
        self.url.get_or_init(|| to_raw(url));
    }
}

/// The variables of one iteration of a loop.
#[derive(Debug)]
struct Iteration<'a> {
    item: &'a RawValue,
    index: Box<RawValue>,
    total: Box<RawValue>,
    is_first: bool,
    is_last: bool,
}

impl<'a> Scope<'a> {
    /// The scope of a run that has just begun.
    #[must_use]
    pub fn new(input: &'a RawValue) -> Self {
        let (found, outputs) = (Found::default(), HashMap::new());
        Self { input, outer: None, found, outputs, bytes: 0, iteration: None, callbacks: None }
    }

    /// A scope inside of this one.
    #[must_use]
    pub fn inner(&'a self) -> Self {
        Self { outer: Some(self), ..Scope::new(self.input) }
    }

    /// The scope of the iteration of that index, out of so many, for this element.
    #[must_use]
    pub fn iteration(&'a self, item: &'a RawValue, index: usize, total: usize) -> Self {
        let (is_first, is_last) = (index == 0, index + 1 == total);
        let iteration = Iteration { item, index: to_raw(&index), total: to_raw(&total), is_first, is_last };
        Self { iteration: Some(iteration), ..self.inner() }
    }

    /// The same with these callbacks, by the ids of their steps.
    #[must_use]
    pub fn with_callbacks(self, callbacks: Arc<HashMap<String, Callback>>) -> Self {
        Self { callbacks: Some(callbacks), ..self }
    }

    /// The callback of that step.
    #[must_use]
    pub fn callback(&self, step_id: &str) -> Option<&Callback> {
        self.layers().find_map(|scope| scope.callbacks.as_ref()?.get(step_id))
    }

    /// Registers the output of a step. The latest counts. Returns the one before.
    pub fn set(&mut self, step_id: &str, output: Box<RawValue>) -> Option<Box<RawValue>> {
        self.bytes += output.get().len();
        let output = Output { value: output, found: Found::default() };
        let earlier = self.outputs.insert(step_id.to_owned(), output).map(|earlier| earlier.value);
        self.bytes -= earlier.as_ref().map_or(0, |earlier| earlier.get().len());
        earlier
    }

    /// Bytes of all values that can be referred to.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.input.get().len() + self.layers().map(|scope| scope.bytes).sum::<usize>()
    }

    /// Forgets the outputs of steps that are not wanted any more. Returns how many bytes they had.
    pub fn forget_all_but(&mut self, is_wanted: impl Fn(&str) -> bool) -> usize {
        let forgotten = self.outputs.extract_if(|step_id, _| !is_wanted(step_id));
        let bytes = forgotten.map(|(_, output)| output.value.get().len()).sum();
        self.bytes -= bytes;
        bytes
    }

    /// What was registered in this scope, without the outer ones.
    #[must_use]
    pub fn into_outputs(self) -> HashMap<String, Box<RawValue>> {
        self.outputs.into_iter().map(|(step_id, output)| (step_id, output.value)).collect()
    }

    /// The run's input.
    #[must_use]
    pub fn input(&self) -> &RawValue {
        self.input
    }

    /// The output of a step, if it has one.
    #[must_use]
    pub fn output(&self, step_id: &str) -> Option<&RawValue> {
        self.output_with_cache(step_id).map(|(output, _)| output)
    }

    /// The input, and what was found in it.
    pub(super) fn input_with_cache(&self) -> (&RawValue, &Found) {
        (self.input, &self.layers().last().unwrap_or(self).found)
    }

    /// The output of a step, and what was found in it.
    pub(super) fn output_with_cache(&self, step_id: &str) -> Option<(&RawValue, &Found)> {
        let output = self.layers().find_map(|scope| scope.outputs.get(step_id))?;
        Some((&output.value, &output.found))
    }

    /// A variable of the innermost loop: `item`, `index`, `total`, `is_first` or `is_last`; `None` outside of loops.
    pub(super) fn loop_variable(&self, name: &str) -> Option<&RawValue> {
        let Iteration { item, index, total, is_first, is_last } =
            self.layers().find_map(|scope| scope.iteration.as_ref())?;
        let truth = |is_true: bool| if is_true { RawValue::TRUE } else { RawValue::FALSE };
        match name {
            "item" => Some(item),
            "index" => Some(index),
            "total" => Some(total),
            "is_first" => Some(truth(*is_first)),
            "is_last" => Some(truth(*is_last)),
            _ => None,
        }
    }

    /// This scope and those around it, from inside to outside.
    fn layers(&self) -> impl Iterator<Item = &Scope<'_>> {
        std::iter::successors(Some(self), |scope| scope.outer)
    }
}
