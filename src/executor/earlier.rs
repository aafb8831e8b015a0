//! What earlier executions of the run have done: a run that was retried or taken over repeats only what has not
//! succeeded.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::value::RawValue;

use crate::db::executions::EarlierStep;

/// Which of the earlier completions count for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// None: something before it was done anew, and its input may be another one.
    Nothing,
    /// Those that began after the last retry, which asked for the step to be repeated.
    AfterRetry,
    /// All.
    Everything,
}

/// See the module.
#[derive(Default)]
pub(super) struct Earlier {
    /// The step of the main chain that the last retry named.
    resume_from_step: Option<String>,
    /// The latest attempt at each place, if it completed: its output, and whether it began after the last retry.
    completed: Mutex<HashMap<String, (Box<RawValue>, bool)>>,
    /// The attempt at each place that was interrupted and not ended since: the id of its row, the first one's if it was
    /// interrupted again and again, and whether it began after the last retry.
    interrupted: Mutex<HashMap<String, (String, bool)>>,
}

impl Earlier {
    /// From rows in the order of their begin.
    pub(super) fn new(rows: Vec<EarlierStep>) -> Self {
        let mut earlier = Self::default();
        let (mut completed, mut interrupted) = (HashMap::with_capacity(rows.len()), HashMap::new());
        for row in rows {
            earlier.resume_from_step = row.resume_from_step;
            if row.was_interrupted {
                interrupted.entry(row.place.clone()).or_insert((row.id, row.is_after_retry));
            } else {
                interrupted.remove(&row.place);
            }
            if row.status == "COMPLETED" {
                let output = row.output_data.map_or_else(|| RawValue::NULL.to_owned(), |output| output.0);
                completed.insert(row.place, (output, row.is_after_retry));
            } else {
                completed.remove(&row.place);
            }
        }
        Self { completed: Mutex::new(completed), interrupted: Mutex::new(interrupted), ..earlier }
    }

    fn completed(&self) -> MutexGuard<'_, HashMap<String, (Box<RawValue>, bool)>> {
        self.completed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The retry asked for this step of the main chain and all that follow to be repeated.
    pub(super) fn is_redone_from(&self, step_id: &str) -> bool {
        self.resume_from_step.as_deref() == Some(step_id)
    }

    /// The step at this place was completed.
    pub(super) fn has(&self, place: &str) -> bool {
        self.completed().contains_key(place)
    }

    /// Takes out the output of what was completed at this place. Each place is met once.
    pub(super) fn take(&self, place: &str, reuse: Reuse) -> Option<Box<RawValue>> {
        if reuse == Reuse::Nothing {
            return None;
        }
        let (output, is_after_retry) = self.completed().remove(place)?;
        (is_after_retry || reuse == Reuse::Everything).then_some(output)
    }

    /// Takes out the id of the attempt that was interrupted at this place, and is now made again with the same input.
    pub(super) fn take_interrupted(&self, place: &str, reuse: Reuse) -> Option<String> {
        let taken = self.interrupted.lock().unwrap_or_else(PoisonError::into_inner).remove(place);
        let (id, is_after_retry) = taken.filter(|_| reuse != Reuse::Nothing)?;
        (is_after_retry || reuse == Reuse::Everything).then_some(id)
    }
}
