//! Ledger: the write buffer of one run. It keeps the changes in order. Concurrent steps add to it, and the journal has
//! one job of it at a time. Meanwhile the next job collects, so that many steps share a statement. A job has a bounded
//! number of bytes; larger writes are split into several jobs, one after the other.
//!
//! Adding never waits. A step that must not continue before its begin is stored waits for [`Ledger::written`]. Ends are
//! written with the next begin, or after [`Ledger::request_flush`].

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::journal::{Journal, Written};
use crate::{
    db::executions::{AgentCall, AgentStep, Change, EndedAttempt, FinishedRun, ObservedRun, StepBegin, StepEnd},
    permits::Permit,
};

/// Maximum number of changes that collect without a flush. Otherwise blocks that call no agents would fill the memory.
const MAX_PENDING: usize = 200;
/// The same limit for bytes of inputs and outputs.
const MAX_PENDING_BYTES: usize = 4 << 20;
/// Maximum bytes of inputs and outputs in one job, unless a single row has more.
const MAX_JOB_BYTES: usize = 4 << 20;

/// Reason why nothing more can be written.
pub(super) enum WriteError {
    /// The lease is lost.
    Lost,
    /// A defect of this program.
    Broken,
    /// The statements exceed their time-out again and again.
    Slow,
    /// The database refuses a value in these changes.
    Refused(Vec<Change>),
}

/// Write buffer of one run.
pub(super) struct Ledger {
    run_id: String,
    lease_token: Uuid,
    of: Arc<ObservedRun>,
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    pending: Vec<Change>,
    /// Number of pending changes to write now, from the first one on.
    due: usize,
    /// Channels to notify, each when that number of pending changes, from the first one on, is written.
    waiting: Vec<(usize, oneshot::Sender<()>)>,
    /// Open rows, which have begun and not ended, by step path.
    open: BTreeMap<String, OpenStep>,
    /// Ends of rows whose begin is still under way.
    early: Vec<EndedAttempt>,
    /// Agents that were called, with the version of the row as of the last begin of a step that calls them; `None`:
    /// there is no row.
    agents: BTreeMap<String, Option<i64>>,
}

/// Open row: it has begun and not ended.
struct OpenStep {
    id: String,
    of: Option<AgentStep>,
    /// Whether a separate statement that begins it is under way. Its end is written after that.
    is_beginning: bool,
}

impl OpenStep {
    fn new(begun: &StepBegin) -> Self {
        let StepBegin { id, step_id, agent_name, task_id, .. } = begun;
        let of = || AgentStep { step_id: step_id.clone(), agent_name: agent_name.clone(), task_id: task_id.clone() };
        Self { id: id.clone(), of: (!agent_name.is_empty()).then(of), is_beginning: false }
    }

    fn end(self, end: StepEnd, call: Option<AgentCall>) -> EndedAttempt {
        EndedAttempt { id: self.id, end, call, pause: None, of: self.of, memory: None }
    }
}

impl State {
    /// Inserts a change before others. It counts as due, and as waited for, if the change at its index does.
    fn insert(&mut self, index: usize, change: Change) {
        self.pending.insert(index, change);
        let counts = self.waiting.iter_mut().map(|(count, _)| count).chain([&mut self.due]);
        counts.filter(|count| **count >= index).for_each(|count| *count += 1);
    }

    /// Takes the next job out of the due changes, with the channels to notify when it is written.
    fn take_job(&mut self) -> (Vec<Change>, Vec<oneshot::Sender<()>>) {
        let (mut taken, mut bytes) = (0, 0);
        while taken < self.due {
            let more = self.pending[taken].bytes();
            if taken > 0 && bytes + more > MAX_JOB_BYTES {
                break;
            }
            bytes += more;
            taken += 1;
            if more > MAX_JOB_BYTES
                && let Some(second) = self.pending[taken - 1].split_off()
            {
                self.insert(taken, second);
            }
        }
        self.due -= taken;
        let notified = self.waiting.extract_if(.., |(count, _)| *count <= taken).map(|(_, done)| done).collect();
        self.waiting.iter_mut().for_each(|(count, _)| *count -= taken);
        (self.pending.drain(..taken).collect(), notified)
    }
}

impl Ledger {
    pub(super) fn new(run_id: String, lease_token: Uuid, of: Arc<ObservedRun>) -> Self {
        Self { run_id, lease_token, of, state: Mutex::default(), wanted: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> Change {
        let (run_id, of) = (self.run_id.clone(), Arc::clone(&self.of));
        Change { run_id, lease_token: self.lease_token, of, ended: None, begun: None, finished: None }
    }

    /// Lease of the claim.
    pub(super) fn lease_token(&self) -> Uuid {
        self.lease_token
    }

    /// Adds the begin of an attempt at this step path.
    pub(super) fn begin(&self, path: &str, begun: StepBegin) {
        let mut state = self.state();
        state.open.insert(path.to_owned(), OpenStep::new(&begun));
        match state.pending.last_mut() {
            // One row of the statement has room for an end and a begin.
            Some(last) if last.begun.is_none() => last.begun = Some(begun),
            _ => state.pending.push(Change { begun: Some(begun), ..self.change() }),
        }
    }

    /// Adds the first attempt of the run, which has begun with the claim.
    pub(super) fn continue_first(&self, path: &str, begun: &StepBegin, agent_version: Option<i64>) {
        let mut state = self.state();
        state.open.insert(path.to_owned(), OpenStep::new(begun));
        state.agents.insert(begun.agent_name.clone(), agent_version);
    }

    /// Adds an attempt at this step path that began before.
    pub(super) fn adopt(&self, path: &str, id: &str) {
        self.state().open.insert(path.to_owned(), OpenStep { id: id.to_owned(), of: None, is_beginning: false });
    }

    /// The same for an attempt that calls an agent.
    pub(super) fn adopt_agent(&self, path: &str, id: &str, (step_id, agent_name): (&str, &str)) {
        let of = AgentStep { step_id: step_id.to_owned(), agent_name: agent_name.to_owned(), task_id: None };
        self.state().open.insert(path.to_owned(), OpenStep { id: id.to_owned(), of: Some(of), is_beginning: false });
    }

    /// Registers an attempt that a separate statement is about to begin at this step path. The result is held until the
    /// statement is over. If the attempt ends earlier, its end is written after the statement.
    pub(super) fn beginning(self: &Arc<Self>, path: &str, id: &str) -> PendingBegin {
        self.state().open.insert(path.to_owned(), OpenStep { id: id.to_owned(), of: None, is_beginning: true });
        PendingBegin { ledger: Arc::clone(self), path: path.to_owned(), id: id.to_owned() }
    }

    /// Adds the end of the attempt at this step path. `call`: the call of its agent; `memory`: permit of its output.
    pub(super) fn end(&self, path: &str, end: StepEnd, call: Option<AgentCall>, memory: Option<Permit>) {
        self.end_open(path, |open| EndedAttempt { memory: memory.map(Arc::new), ..open.end(end, call) });
    }

    /// Adds the end of a failed attempt at this step path, which another one follows after a pause.
    pub(super) fn end_before_next(&self, path: &str, cause: String, call: Option<AgentCall>, pause: Duration) {
        self.end_open(path, |open| EndedAttempt { pause: Some(pause), ..open.end(StepEnd::Failed(cause), call) });
    }

    fn end_open(&self, path: &str, end: impl FnOnce(OpenStep) -> EndedAttempt) {
        let mut state = self.state();
        if let Some(open) = state.open.remove(path) {
            let is_beginning = open.is_beginning;
            self.add_end_of(&mut state, is_beginning, end(open));
        }
    }

    /// Adds an attempt that failed before it began. It gets no row; observers are notified.
    pub(super) fn fail_unbegun(&self, row: &StepBegin, cause: &str) {
        let ended = OpenStep::new(row).end(StepEnd::Failed(cause.to_owned()), None);
        self.add_end(&mut self.state(), ended);
    }

    /// Ends all open attempts below this step path; with an empty path, all of the run.
    pub(super) fn close(&self, below: &str, end: &StepEnd) {
        let mut state = self.state();
        let from_there = state.open.range(below.to_owned()..);
        let paths: Vec<String> =
            from_there.map(|(path, _)| path.clone()).take_while(|path| path.starts_with(below)).collect();
        // Nested attempts end before the blocks around them.
        for path in paths.iter().rev() {
            if let Some(open) = state.open.remove(path) {
                self.add_end_of(&mut state, open.is_beginning, open.end(end.clone(), None));
            }
        }
    }

    /// Adds the end of an attempt that was removed from `state.open`.
    fn add_end_of(&self, state: &mut State, is_beginning: bool, ended: EndedAttempt) {
        if is_beginning {
            state.early.push(ended);
        } else {
            self.add_end(state, ended);
        }
    }

    fn add_end(&self, state: &mut State, ended: EndedAttempt) {
        let is_its_begin = |change: &Change| change.begun.as_ref().is_some_and(|begun| begun.id == ended.id);
        match state.pending.iter().rposition(is_its_begin) {
            None => state.pending.push(Change { ended: Some(ended), ..self.change() }),
            // The begin is not written yet. Begin and end become one row, which must be in one change.
            Some(index) => {
                if let Some(other) = state.pending[index].ended.replace(ended) {
                    let other = Change { ended: Some(other), ..self.change() };
                    state.insert(index, other);
                }
            }
        }
    }

    /// Adds the end of the run.
    pub(super) fn finish(&self, finished: FinishedRun) {
        let mut state = self.state();
        match state.pending.last_mut() {
            Some(last) => last.finished = Some(finished),
            None => state.pending.push(Change { finished: Some(finished), ..self.change() }),
        }
    }

    /// Requests that pending changes be written soon.
    pub(super) fn request_flush(&self) {
        self.wanted.notify_one();
    }

    /// Waits until all changes added so far are committed. [`Ledger::write_out`] must be polled meanwhile.
    pub(super) async fn written(&self) {
        let (done, is_done) = oneshot::channel();
        {
            let mut state = self.state();
            let count = state.pending.len();
            state.waiting.push((count, done));
        }
        self.request_flush();
        // Without an answer the driver of the run has ended.
        if is_done.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The version of the agent's row, as of the last written begin of a step that calls it; `None`: it does not exist,
    /// or there is no such begin.
    pub(super) fn agent_version(&self, name: &str) -> Option<i64> {
        self.state().agents.get(name).copied().flatten()
    }

    /// Waits while too much is pending.
    pub(super) async fn keep_small(&self) {
        let is_large = {
            let pending = &self.state().pending;
            pending.len() >= MAX_PENDING || pending.iter().map(Change::bytes).sum::<usize>() >= MAX_PENDING_BYTES
        };
        if is_large {
            self.written().await;
        }
    }

    /// Takes all changes added so far, which count as written: those of a simulated run.
    pub(super) fn take_all(&self) -> Vec<Change> {
        let (changes, notified) = {
            let mut state = self.state();
            state.due = 0;
            (std::mem::take(&mut state.pending), std::mem::take(&mut state.waiting))
        };
        for (_, done) in notified {
            // The waiting step may have been abandoned.
            done.send(()).ok();
        }
        changes
    }

    /// Writes due changes until an error prevents it. It must not be dropped while the run is still written to: the job
    /// that it has submitted to the journal would race with later ones.
    pub(super) async fn write_out(
        &self,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Infallible, WriteError> {
        loop {
            self.wanted.notified().await;
            {
                let mut state = self.state();
                state.due = state.pending.len();
            }
            loop {
                let (changes, notified) = self.state().take_job();
                if !changes.is_empty() {
                    match journal.write(changes, stop).await {
                        Written::Done(agents) => self.state().agents.extend(agents),
                        Written::Lost => return Err(WriteError::Lost),
                        Written::Failed => return Err(WriteError::Broken),
                        Written::Slow => return Err(WriteError::Slow),
                        Written::Refused(mut changes) => {
                            changes.append(&mut self.state().pending);
                            return Err(WriteError::Refused(changes));
                        }
                    }
                }
                for done in notified {
                    // The waiting step may have been abandoned.
                    done.send(()).ok();
                }
                if self.state().due == 0 {
                    break;
                }
            }
        }
    }
}

/// Guard of a begin by a separate statement; see [`Ledger::beginning`].
pub(super) struct PendingBegin {
    ledger: Arc<Ledger>,
    path: String,
    id: String,
}

impl PendingBegin {
    /// Marks the attempt as begun. Repeats of the statement that may be under way change nothing.
    pub(super) fn has_begun(&self) {
        let mut state = self.ledger.state();
        if let Some(open) = state.open.get_mut(&self.path).filter(|open| open.id == self.id) {
            open.is_beginning = false;
        }
    }
}

impl Drop for PendingBegin {
    fn drop(&mut self) {
        self.has_begun();
        let mut state = self.ledger.state();
        if let Some(index) = state.early.iter().position(|ended| ended.id == self.id) {
            let ended = state.early.swap_remove(index);
            self.ledger.add_end(&mut state, ended);
            self.ledger.request_flush();
        }
    }
}

#[cfg(test)]
mod tests;
