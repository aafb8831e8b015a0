//! Recording: the attempts of a run that has ended, whose answers a simulated run gets again.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::value::RawValue;

/// Attempt of a recorded run.
#[derive(Clone, Debug)]
pub struct RecordedAttempt {
    /// Step path.
    pub path: String,
    /// Id of the step.
    pub step_id: String,
    /// Output, if it was completed; otherwise the reason of the failure.
    pub result: Result<Box<RawValue>, String>,
    /// Time from its begin to its end.
    pub duration: Duration,
    /// Time from its end to the begin of the next attempt of the step.
    pub pause: Duration,
}

/// Recording of a run.
#[derive(Debug, Default)]
pub struct Recording {
    by_path: HashMap<String, Vec<RecordedAttempt>>,
    /// Paths of each step.
    paths: HashMap<String, Vec<String>>,
    /// Number of attempts at each path that were used.
    used: Mutex<HashMap<String, usize>>,
}

impl Recording {
    /// A recording of these attempts, in the order of their begin.
    #[must_use]
    pub fn new(attempts: impl IntoIterator<Item = RecordedAttempt>) -> Self {
        let mut recording = Self::default();
        for attempt in attempts {
            let at_path = recording.by_path.entry(attempt.path.clone()).or_default();
            if at_path.is_empty() {
                recording.paths.entry(attempt.step_id.clone()).or_default().push(attempt.path.clone());
            }
            at_path.push(attempt);
        }
        recording
    }

    /// Takes the next attempt at this path, and whether another one follows. If nothing was recorded at the path, the
    /// step may have been moved: then those at the only path of the step are taken.
    pub(super) fn take(&self, path: &str, step_id: &str) -> Option<(&RecordedAttempt, bool)> {
        let path = if self.by_path.contains_key(path) {
            path
        } else {
            match self.paths.get(step_id).map(Vec::as_slice) {
                Some([only]) => only,
                _ => return None,
            }
        };
        let attempts = self.by_path.get(path)?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let next = used.entry(path.to_owned()).or_default();
        let attempt = attempts.get(*next)?;
        *next += 1;
        Some((attempt, *next < attempts.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::to_raw;

    fn attempt(path: &str, step_id: &str, output: i32) -> RecordedAttempt {
        let (duration, pause) = (Duration::from_secs(1), Duration::ZERO);
        RecordedAttempt {
            path: path.to_owned(),
            step_id: step_id.to_owned(),
            result: Ok(to_raw(&output)),
            duration,
            pause,
        }
    }

    #[test]
    fn attempts_are_found_by_their_path_or_by_the_only_path_of_the_step() {
        let all = [attempt("a", "a", 1), attempt("a", "a", 2), attempt("l/0/b", "b", 3), attempt("l/1/b", "b", 4)];
        let recording = Recording::new(all);
        let take = |path: &str, step_id: &str| {
            recording
                .take(path, step_id)
                .map(|(found, more)| (found.result.clone().expect("an output").to_string(), more))
        };
        assert_eq!(take("fan/a/a", "a"), Some(("1".to_owned(), true)), "the step was moved");
        assert_eq!(take("a", "a"), Some(("2".to_owned(), false)));
        assert_eq!(take("a", "a"), None, "all are used");
        assert_eq!(take("l/1/b", "b"), Some(("4".to_owned(), false)));
        assert_eq!(take("l/2/b", "b"), None, "one of several paths is not chosen");
        assert_eq!(take("c", "c"), None);
    }
}
