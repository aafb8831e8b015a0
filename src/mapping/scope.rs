//! Scope of references.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use serde_json::value::RawValue;

use super::MappingFault;
use crate::input::to_raw;

/// Scope: the run's input, the outputs so far, and the variables of the innermost loop, if there is one.
///
/// Scopes are nested as blocks are: a look-up continues in the outer scope. An inner scope borrows the outer one, so
/// nothing is added to a scope while concurrent steps inside of it run, and their timing does not change what they see.
#[derive(Debug)]
pub struct Scope<'a> {
    input: &'a RawValue,
    outer: Option<&'a Scope<'a>>,
    /// Cache of look-ups in the input; only that of the outermost scope is used.
    found: Found,
    outputs: HashMap<String, Output>,
    /// Bytes of the outputs.
    bytes: usize,
    iteration: Option<Iteration<'a>>,
    /// Callbacks by step id.
    callbacks: Option<Arc<HashMap<String, Callback>>>,
    /// Input of a step, in a mock of its answer.
    step_input: Option<&'a RawValue>,
    /// Event, in a filter of events.
    event: Option<&'a RawValue>,
    /// What has happened, in the input of a run that a trigger starts.
    trigger: Option<&'a RawValue>,
}

#[derive(Debug)]
struct Output {
    value: Box<RawValue>,
    found: Found,
}

/// Cache of the positions of references inside a value, by their text: steps with the same reference, such as the
/// iterations of a loop, do not scan the value each time. It is no larger than the plan, which has the references.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<HashMap<String, Result<Range<usize>, MappingFault>>>);

impl Found {
    /// The value of the reference, if it was looked up before.
    pub(super) fn get<'s>(&self, reference: &str, value: &'s RawValue) -> Option<Result<&'s RawValue, MappingFault>> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(reference).cloned()?;
        match found {
            Ok(range) => value.get().get(range).and_then(|text| serde_json::from_str(text).ok()).map(Ok),
            Err(fault) => Some(Err(fault)),
        }
    }

    /// Stores the result of a look-up.
    pub(super) fn set(&self, reference: &str, value: &RawValue, found: &Result<&RawValue, MappingFault>) {
        let found = found.as_ref().map_err(Clone::clone).map(|part| {
            let start = part.get().as_ptr().addr() - value.get().as_ptr().addr();
            start..start + part.get().len()
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(reference.to_owned(), found);
    }
}

/// Callback that can be answered, perhaps before its step begins.
#[derive(Debug)]
pub struct Callback {
    /// Path of its step in the run.
    pub path: String,
    url: OnceLock<Box<RawValue>>,
}

impl Callback {
    /// The callback of the step at that path, without a URL yet.
    #[must_use]
    pub fn new(path: String) -> Self {
        Self { path, url: OnceLock::new() }
    }

    /// Its URL, once it has one.
    #[must_use]
    pub fn url(&self) -> Option<&RawValue> {
        self.url.get().map(|url| &**url)
    }

    /// Sets its URL. The first one stays.
    pub fn set_url(&self, url: &str) {
        self.url.get_or_init(|| to_raw(url));
    }
}

/// Variables of one iteration of a loop.
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
        Self {
            input,
            outer: None,
            found,
            outputs,
            bytes: 0,
            iteration: None,
            callbacks: None,
            step_input: None,
            event: None,
            trigger: None,
        }
    }

    /// A scope inside of this one.
    #[must_use]
    pub fn inner(&'a self) -> Self {
        Self { outer: Some(self), ..Scope::new(self.input) }
    }

    /// The scope of the iteration with that index, out of `total`, for this element.
    #[must_use]
    pub fn iteration(&'a self, item: &'a RawValue, index: usize, total: usize) -> Self {
        let (is_first, is_last) = (index == 0, index + 1 == total);
        let iteration = Iteration { item, index: to_raw(&index), total: to_raw(&total), is_first, is_last };
        Self { iteration: Some(iteration), ..self.inner() }
    }

    /// The same scope with these callbacks, by the ids of their steps.
    #[must_use]
    pub fn with_callbacks(self, callbacks: Arc<HashMap<String, Callback>>) -> Self {
        Self { callbacks: Some(callbacks), ..self }
    }

    /// The scope of a mock of the answer to this step's input.
    #[must_use]
    pub fn of_mock(input: &'a RawValue, step_input: &'a RawValue) -> Self {
        Self { step_input: Some(step_input), ..Scope::new(input) }
    }

    /// The scope of a filter of events.
    #[must_use]
    pub fn of_event(event: &'a RawValue) -> Self {
        Self { event: Some(event), ..Scope::new(RawValue::NULL) }
    }

    /// The event that the filter is about.
    pub(super) fn event(&self) -> Option<&RawValue> {
        self.event
    }

    /// The scope of the input of a run that a trigger starts: the references are `trigger.<path>`.
    #[must_use]
    pub fn of_trigger(what: &'a RawValue) -> Self {
        Self { trigger: Some(what), ..Scope::new(RawValue::NULL) }
    }

    /// What has happened, if this is the scope of a trigger.
    pub(super) fn trigger(&self) -> Option<&'a RawValue> {
        self.trigger
    }

    /// The input of the step whose answer is mocked.
    pub(super) fn step_input(&self) -> Option<&RawValue> {
        self.step_input
    }

    /// The callback of that step.
    #[must_use]
    pub fn callback(&self, step_id: &str) -> Option<&Callback> {
        self.layers().find_map(|scope| scope.callbacks.as_ref()?.get(step_id))
    }

    /// Registers the output of a step, replacing an earlier one. Returns the earlier one.
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

    /// Removes the outputs of steps that are not wanted any more. Returns their bytes.
    pub fn forget_all_but(&mut self, is_wanted: impl Fn(&str) -> bool) -> usize {
        let forgotten = self.outputs.extract_if(|step_id, _| !is_wanted(step_id));
        let bytes = forgotten.map(|(_, output)| output.value.get().len()).sum();
        self.bytes -= bytes;
        bytes
    }

    /// The outputs that were registered in this scope, without the outer ones.
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

    /// The input, and its cache of look-ups.
    pub(super) fn input_with_cache(&self) -> (&RawValue, &Found) {
        (self.input, &self.layers().last().unwrap_or(self).found)
    }

    /// The output of a step, and its cache of look-ups.
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
