//! Previous executions of the run. A run that was retried or taken over repeats only the steps that have not succeeded;
//! one that was parked continues without any repeat.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::value::RawValue;

use super::steps::step_path;
use crate::{db::executions::EarlierStep, workflow::Plan};

/// Maximum rows, and bytes of outputs as they are stored, that one statement reads.
const PORTION_ROWS: usize = 200;
const PORTION_BYTES: i64 = 1 << 20;

/// Reuse policy: which completions of previous executions a step may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReusePolicy {
    /// None: a step before this one was executed again, so the input may differ.
    Nothing,
    /// Only attempts that began after the last retry, which requested a repeat of the step.
    AfterRetry,
    /// All completions.
    Everything,
}

/// Open attempt: it has begun and not ended.
pub(super) struct OpenAttempt {
    /// Id of the step row.
    pub(super) id: String,
    /// Time since it began.
    pub(super) age: Duration,
}

/// Attempt that was interrupted.
pub(super) struct InterruptedAttempt {
    /// Id of the step row; of the first one, if the attempt was interrupted several times.
    pub(super) id: String,
    /// Agent that it called.
    pub(super) agent_name: String,
}

/// State of the previous executions of a run.
#[derive(Default)]
pub(super) struct PreviousExecution {
    /// Step of the main chain that the last retry named.
    resume_from_step: Option<String>,
    /// Latest attempts, by step path.
    latest: Mutex<Latest>,
    /// Age of the first attempt at each step path, if the run was parked.
    ages: BTreeMap<String, Duration>,
    /// Number of rows, and their approximate size in bytes.
    rows: u64,
    /// Number of rows of attempts that were interrupted.
    interrupted: u64,
    bytes: u64,
}

/// Result of the latest attempt at each step path.
#[derive(Default)]
struct Latest {
    completed: HashMap<String, Completed>,
    /// Cause of a final failure.
    failed: HashMap<String, String>,
    open: HashMap<String, OpenAttempt>,
    /// Attempts that were interrupted and not ended since, and whether they began after the last retry.
    interrupted: HashMap<String, (InterruptedAttempt, bool)>,
}

/// Completed attempt.
struct Completed {
    /// Id of the step row.
    id: String,
    step_id_of_block: Option<String>,
    /// Size of the output as stored, perhaps compressed.
    bytes: i64,
    /// Output of the step. Null until it is read, and if it is not needed.
    output: Box<RawValue>,
    /// Whether the attempt began after the last retry.
    is_after_retry: bool,
}

impl PreviousExecution {
    /// From rows in the order of their begin. If the run was `interrupted`, its failures are not final, and its open
    /// attempts are over, except those that wait for something external.
    pub(super) fn new(rows: Vec<EarlierStep>, interrupted: bool) -> Self {
        let mut earlier = Self::default();
        let mut latest = Latest::default();
        for row in rows {
            earlier.rows += u64::from(!row.id.is_empty());
            earlier.bytes += u64::try_from(row.bytes).unwrap_or_default();
            earlier.resume_from_step = row.resume_from_step;
            let path = row.path;
            let age = Duration::try_from_secs_f64(row.age_secs).unwrap_or_default();
            if !interrupted {
                earlier.ages.entry(path.clone()).or_insert(age);
            }
            latest.completed.remove(&path);
            latest.failed.remove(&path);
            latest.open.remove(&path);
            if row.was_interrupted {
                earlier.interrupted += 1;
                let interrupted = || InterruptedAttempt { id: row.id.clone(), agent_name: row.agent_name };
                latest.interrupted.entry(path.clone()).or_insert_with(|| (interrupted(), row.is_after_retry));
            } else {
                latest.interrupted.remove(&path);
            }
            match row.status.as_str() {
                "COMPLETED" => {
                    let completed = Completed {
                        id: row.id,
                        step_id_of_block: row.parent_step_id,
                        bytes: row.bytes,
                        output: RawValue::NULL.to_owned(),
                        is_after_retry: row.is_after_retry,
                    };
                    latest.completed.insert(path, completed);
                }
                "PENDING" => drop(latest.open.insert(path, OpenAttempt { id: row.id, age })),
                "RUNNING" if !interrupted => drop(latest.open.insert(path, OpenAttempt { id: row.id, age })),
                "FAILED" if !interrupted && row.is_of_this_claim => {
                    latest.failed.insert(path, row.error_message.unwrap_or_default());
                }
                _ => {}
            }
        }
        Self { latest: Mutex::new(latest), ..earlier }
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the retry requested a repeat from this step of the main chain on.
    pub(super) fn is_redone_from(&self, step_id: &str) -> bool {
        self.resume_from_step.as_deref() == Some(step_id)
    }

    /// Whether the step at this path was completed, or is under way.
    pub(super) fn has(&self, path: &str) -> bool {
        let latest = self.latest();
        latest.completed.contains_key(path) || latest.open.contains_key(path)
    }

    /// Takes the output of the completed step at this path. Each path is used once.
    pub(super) fn take(&self, path: &str, reuse: ReusePolicy) -> Option<Box<RawValue>> {
        if reuse == ReusePolicy::Nothing {
            return None;
        }
        let Completed { output, is_after_retry, .. } = self.latest().completed.remove(path)?;
        (is_after_retry || reuse == ReusePolicy::Everything).then_some(output)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Number of interrupted attempts.
    pub(super) fn interrupted(&self) -> u64 {
        self.interrupted
    }

    /// Approximate number of bytes in the rows.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows whose outputs the plan's steps can still need, in portions of one statement each: the outputs to which a
    /// step refers, and those that incomplete blocks include in their own outputs.
    pub(super) fn needed(&self, plan: &Plan) -> Vec<Vec<String>> {
        let uses = plan.last_uses();
        let chain: HashMap<&str, usize> = plan.main_path().enumerate().map(|(position, id)| (id, position)).collect();
        let latest = self.latest();
        // An output to which only completed steps refer is not needed any more.
        let is_to_be_made = |id: &str| !latest.completed.contains_key(id) || self.is_redone_from(id);
        let first = plan.main_path().position(is_to_be_made).unwrap_or(chain.len());
        let is_needed = |path: &str, completed: &Completed| {
            let step_id = step_path::step_id(path);
            match &completed.step_id_of_block {
                None => uses
                    .get(&*step_id)
                    .is_some_and(|last| *last >= first && chain.get(&*step_id).is_none_or(|own| last > own)),
                Some(block) => {
                    let is_over = blocks_around(path).any(|block| latest.completed.contains_key(block));
                    uses.contains_key(&*step_id)
                        || (!is_over && plan.steps.get(block).is_none_or(|block| block.puts_out(&step_id)))
                }
            }
        };
        let mut portions: Vec<Vec<String>> = Vec::new();
        let mut room = 0;
        for (_, completed) in latest.completed.iter().filter(|(path, completed)| is_needed(path, completed)) {
            if room < completed.bytes || portions.last().is_none_or(|portion| portion.len() >= PORTION_ROWS) {
                portions.push(Vec::new());
                room = PORTION_BYTES;
            }
            room -= completed.bytes;
            portions.last_mut().expect("one was pushed").push(completed.id.clone());
        }
        portions
    }

    /// Sets outputs, by the ids of the rows.
    pub(super) fn fill(&self, outputs: HashMap<String, Box<RawValue>>) {
        let mut outputs = outputs;
        for completed in self.latest().completed.values_mut() {
            if let Some(output) = outputs.remove(&completed.id) {
                completed.output = output;
            }
        }
    }

    /// Takes the cause of the final failure at this path.
    pub(super) fn take_failure(&self, path: &str) -> Option<String> {
        self.latest().failed.remove(path)
    }

    /// Takes the open attempts inside of completed blocks, by step path. Such an attempt was abandoned while it began,
    /// and the executor that had to close it died.
    pub(super) fn take_orphans(&self) -> Vec<(String, OpenAttempt)> {
        let mut latest = self.latest();
        let Latest { completed, open, .. } = &mut *latest;
        open.extract_if(|path, _| blocks_around(path).any(|block| completed.contains_key(block))).collect()
    }

    /// Takes the open attempt at this path.
    pub(super) fn take_open(&self, path: &str) -> Option<OpenAttempt> {
        self.latest().open.remove(path)
    }

    /// Id of the open attempt at this path.
    pub(super) fn open_id(&self, path: &str) -> Option<String> {
        self.latest().open.get(path).map(|open| open.id.clone())
    }

    /// Age of the open attempt at this path.
    pub(super) fn open_age(&self, path: &str) -> Duration {
        self.latest().open.get(path).map(|open| open.age).unwrap_or_default()
    }

    /// Age of the first attempt below this path, without those older than `at_most`.
    pub(super) fn age_below(&self, prefix: &str, at_most: Duration) -> Duration {
        let below = self.ages.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix));
        below.map(|(_, age)| *age).filter(|age| *age <= at_most).max().unwrap_or_default()
    }

    /// Takes the interrupted attempt at this path, which is now repeated with the same input.
    pub(super) fn take_interrupted(&self, path: &str, reuse: ReusePolicy) -> Option<InterruptedAttempt> {
        let taken = self.latest().interrupted.remove(path);
        let (interrupted, is_after_retry) = taken.filter(|_| reuse != ReusePolicy::Nothing)?;
        (is_after_retry || reuse == ReusePolicy::Everything).then_some(interrupted)
    }
}

/// Step paths of the blocks that contain this path.
fn blocks_around(path: &str) -> impl Iterator<Item = &str> {
    // `<block>/<branch>/<block>/<branch>/<step>`
    path.match_indices('/').step_by(2).map(|(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_around_a_step_path_are_every_other_part_of_it() {
        let blocks = |path| blocks_around(path).collect::<Vec<_>>();
        assert_eq!(blocks("outer/3/fork/north/ask"), ["outer", "outer/3/fork"]);
        assert_eq!(blocks("ask"), [""; 0]);
    }
}
