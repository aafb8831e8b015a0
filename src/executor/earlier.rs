//! What earlier executions of the run have done: a run that was retried or taken over repeats only what has not
//! succeeded, and one that was parked goes on as if it had not been.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::value::RawValue;

use super::steps::step_path;
use crate::{db::executions::EarlierStep, workflow::Plan};

/// Rows and bytes of outputs, as they are stored, that are read by one statement.
const PORTION_ROWS: usize = 200;
const PORTION_BYTES: i64 = 1 << 20;

/// Which of the earlier completions count for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReusePolicy {
    /// None: something before it was done anew, and its input may be another one.
    Nothing,
    /// Those that began after the last retry, which asked for the step to be repeated.
    AfterRetry,
    /// All.
    Everything,
}

/// An attempt that has begun and not ended.
pub(super) struct OpenAttempt {
    /// The row.
    pub(super) id: String,
    /// Since it began.
    pub(super) age: Duration,
}

/// See the module.
#[derive(Default)]
pub(super) struct PreviousExecution {
    /// The step of the main chain that the last retry named.
    resume_from_step: Option<String>,
    /// By place.
    latest: Mutex<Latest>,
    /// The age of the first attempt at each place, if the run was parked.
    ages: BTreeMap<String, Duration>,
    /// How many rows there are, and about how many bytes in them.
    rows: u64,
    bytes: u64,
}

/// What became of the latest attempt at each place.
#[derive(Default)]
struct Latest {
    completed: HashMap<String, Completed>,
    /// The cause, if it is final.
    failed: HashMap<String, String>,
    open: HashMap<String, OpenAttempt>,
    /// The attempt that was interrupted and not ended since: the id of its row, the first one's if it was interrupted
    /// again and again, and whether it began after the last retry.
    interrupted: HashMap<String, (String, bool)>,
}

/// An attempt that was completed.
struct Completed {
    /// The row.
    id: String,
    step_id_of_block: Option<String>,
    /// As it is stored, perhaps compressed.
    bytes: i64,
    /// Null until it is read, and if nobody needs it.
    output: Box<RawValue>,
    /// It began after the last retry.
    is_after_retry: bool,
}

impl PreviousExecution {
    /// From rows in the order of their begin. The failures of a run that was `interrupted` are not final, and what it
    /// had open is over, except what waits for something outside of it.
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
                latest.interrupted.entry(path.clone()).or_insert((row.id.clone(), row.is_after_retry));
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

    /// The retry asked for this step of the main chain and all that follow to be repeated.
    pub(super) fn is_redone_from(&self, step_id: &str) -> bool {
        self.resume_from_step.as_deref() == Some(step_id)
    }

    /// The step at this place was completed, or is under way.
    pub(super) fn has(&self, path: &str) -> bool {
        let latest = self.latest();
        latest.completed.contains_key(path) || latest.open.contains_key(path)
    }

    /// Takes out the output of what was completed at this place. Each place is met once.
    pub(super) fn take(&self, path: &str, reuse: ReusePolicy) -> Option<Box<RawValue>> {
        if reuse == ReusePolicy::Nothing {
            return None;
        }
        let Completed { output, is_after_retry, .. } = self.latest().completed.remove(path)?;
        (is_after_retry || reuse == ReusePolicy::Everything).then_some(output)
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// About how many bytes are in the rows.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The rows whose outputs the plan's steps can still need, in portions that are good to be read at once: those that
    /// some step refers to, and what blocks that have not completed are to put out.
    pub(super) fn needed(&self, plan: &Plan) -> Vec<Vec<String>> {
        let uses = plan.last_uses();
        let chain: HashMap<&str, usize> = plan.main_path().enumerate().map(|(position, id)| (id, position)).collect();
        let latest = self.latest();
        // What only completed steps refer to was used already.
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

    /// Adds outputs, by the rows' ids.
    pub(super) fn fill(&self, outputs: HashMap<String, Box<RawValue>>) {
        let mut outputs = outputs;
        for completed in self.latest().completed.values_mut() {
            if let Some(output) = outputs.remove(&completed.id) {
                completed.output = output;
            }
        }
    }

    /// Takes out why what was done at this place has failed for good.
    pub(super) fn take_failure(&self, path: &str) -> Option<String> {
        self.latest().failed.remove(path)
    }

    /// Takes out what is open inside of a block that has completed, by place: it was given up while it began, and
    /// whoever was to close it has died.
    pub(super) fn take_orphans(&self) -> Vec<(String, OpenAttempt)> {
        let mut latest = self.latest();
        let Latest { completed, open, .. } = &mut *latest;
        open.extract_if(|path, _| blocks_around(path).any(|block| completed.contains_key(block))).collect()
    }

    /// Takes out the attempt that is open at this place.
    pub(super) fn take_open(&self, path: &str) -> Option<OpenAttempt> {
        self.latest().open.remove(path)
    }

    /// For how long the attempt at this place has been open.
    pub(super) fn open_age(&self, path: &str) -> Duration {
        self.latest().open.get(path).map(|open| open.age).unwrap_or_default()
    }

    /// Since the first attempt below this place, of those that are not older than `at_most`.
    pub(super) fn age_below(&self, prefix: &str, at_most: Duration) -> Duration {
        let below = self.ages.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix));
        below.map(|(_, age)| *age).filter(|age| *age <= at_most).max().unwrap_or_default()
    }

    /// Takes out the id of the attempt that was interrupted at this place, and is now made again with the same input.
    pub(super) fn take_interrupted(&self, path: &str, reuse: ReusePolicy) -> Option<String> {
        let taken = self.latest().interrupted.remove(path);
        let (id, is_after_retry) = taken.filter(|_| reuse != ReusePolicy::Nothing)?;
        (is_after_retry || reuse == ReusePolicy::Everything).then_some(id)
    }
}

/// The places of the blocks that a place is inside of.
fn blocks_around(path: &str) -> impl Iterator<Item = &str> {
    // `<block>/<branch>/<block>/<branch>/<step>`
    path.match_indices('/').step_by(2).map(|(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_around_a_place_are_every_other_part_of_it() {
        let blocks = |path| blocks_around(path).collect::<Vec<_>>();
        assert_eq!(blocks("outer/3/fork/north/ask"), ["outer", "outer/3/fork"]);
        assert_eq!(blocks("ask"), [""; 0]);
    }
}
