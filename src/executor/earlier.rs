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
}

impl Earlier {
    /// From rows in the order of their begin.
    pub(super) fn new(rows: Vec<EarlierStep>) -> Self {
        let mut earlier = Self::default();
        let mut completed = HashMap::with_capacity(rows.len());
        for row in rows {
            earlier.resume_from_step = row.resume_from_step;
            if row.status == "COMPLETED" {
                let output = row.output_data.map_or_else(|| RawValue::NULL.to_owned(), |output| output.0);
                completed.insert(row.place, (output, row.is_after_retry));
            } else {
                completed.remove(&row.place);
            }
        }
        Self { completed: Mutex::new(completed), ..earlier }
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
}
