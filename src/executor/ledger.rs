//! What one run has to write, in order: steps that run side by side add to it, and one job of it at a time is with
//! the journal. While that is on its way the next one gathers, so that many steps share a statement. A job has a
//! bounded number of bytes; what is more goes out in several jobs, one after the other.
//!
//! Adding never waits. A step that must not go on before its begin is stored waits for [`Ledger::written`]; ends are
//! written with the next begin, or when somebody asks by [`Ledger::nudge`].

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::journal::{Journal, Written};
use crate::{
    db::executions::{AgentCall, AgentStep, Change, EndedAttempt, FinishedRun, ObservedRun, StepBegin, StepEnd},
    permits::Permit,
};

/// Changes that gather without being asked for: blocks that call nobody would fill the memory otherwise.
const MAX_PENDING: usize = 200;
/// The same for bytes of inputs and outputs.
const MAX_PENDING_BYTES: usize = 4 << 20;
/// Bytes of inputs and outputs in one job, unless a single row has more.
const MAX_JOB_BYTES: usize = 4 << 20;

/// Why nothing more can be written.
pub(super) enum WriteError {
    /// The run is no longer held.
    Lost,
    /// Something is wrong with this program.
    Broken,
    /// The database takes too long for it, again and again.
    Slow,
    /// The database refuses a value in these changes.
    Refused(Vec<Change>),
}

/// See the module.
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
    /// Of these, how many are asked for, from the first one on.
    due: usize,
    /// Told when so many of these, from the first one on, are written.
    waiting: Vec<(usize, oneshot::Sender<()>)>,
    /// The rows that have begun and not ended, by place.
    open: BTreeMap<String, OpenStep>,
    /// The ends of rows whose begin is still under way.
    early: Vec<EndedAttempt>,
    /// The agents that were called, as the last begin of a step that calls them has seen them: the version of the row,
    /// if there is one.
    agents: BTreeMap<String, Option<i64>>,
}

/// A row that has begun and not ended.
struct OpenStep {
    id: String,
    of: Option<AgentStep>,
    /// A statement that begins it is under way elsewhere: it is not to end before that.
    is_beginning: bool,
}

impl OpenStep {
    fn new(begun: &StepBegin) -> Self {
        let StepBegin { id, step_id, agent_name, task_id, .. } = begun;
        let of = || AgentStep { step_id: step_id.clone(), agent_name: agent_name.clone(), task_id: task_id.clone() };
        Self { id: id.clone(), of: (!agent_name.is_empty()).then(of), is_beginning: false }
    }

    fn end(self, end: StepEnd, call: Option<AgentCall>) -> EndedAttempt {
        EndedAttempt { id: self.id, end, call, of: self.of, memory: None }
    }
}

impl State {
    /// Adds a change before others, to whatever those at its place belong to.
    fn insert(&mut self, index: usize, change: Change) {
        self.pending.insert(index, change);
        let counts = self.waiting.iter_mut().map(|(count, _)| count).chain([&mut self.due]);
        counts.filter(|count| **count >= index).for_each(|count| *count += 1);
    }

    /// Takes out the next job, of what is due, and those that are told when it is written.
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
        let told = self.waiting.extract_if(.., |(count, _)| *count <= taken).map(|(_, done)| done).collect();
        self.waiting.iter_mut().for_each(|(count, _)| *count -= taken);
        (self.pending.drain(..taken).collect(), told)
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

    /// Of the claim.
    pub(super) fn lease_token(&self) -> Uuid {
        self.lease_token
    }

    /// An attempt begins at this place.
    pub(super) fn begin(&self, path: &str, begun: StepBegin) {
        let mut state = self.state();
        state.open.insert(path.to_owned(), OpenStep::new(&begun));
        match state.pending.last_mut() {
            // One row of the statement has room for an end and a begin.
            Some(last) if last.begun.is_none() => last.begun = Some(begun),
            _ => state.pending.push(Change { begun: Some(begun), ..self.change() }),
        }
    }

    /// An attempt is open at this place that began before.
    pub(super) fn adopt(&self, path: &str, id: &str) {
        self.state().open.insert(path.to_owned(), OpenStep { id: id.to_owned(), of: None, is_beginning: false });
    }

    /// An attempt is about to begin at this place by a statement of its own, which has the result until it is over. If
    /// the attempt ends before that, its end is written after it.
    pub(super) fn beginning(self: &Arc<Self>, path: &str, id: &str) -> PendingBegin {
        self.state().open.insert(path.to_owned(), OpenStep { id: id.to_owned(), of: None, is_beginning: true });
        PendingBegin { ledger: Arc::clone(self), path: path.to_owned(), id: id.to_owned() }
    }

    /// The attempt at this place ends; `call`: its agent was called so; `memory`: of its output.
    pub(super) fn end(&self, path: &str, end: StepEnd, call: Option<AgentCall>, memory: Option<Permit>) {
        let mut state = self.state();
        if let Some(open) = state.open.remove(path) {
            let is_beginning = open.is_beginning;
            let ended = EndedAttempt { memory: memory.map(Arc::new), ..open.end(end, call) };
            self.add_end_of(&mut state, is_beginning, ended);
        }
    }

    /// An attempt fails before it has begun. It gets no row; observers are told.
    pub(super) fn fail_unbegun(&self, row: &StepBegin, cause: &str) {
        let ended = OpenStep::new(row).end(StepEnd::Failed(cause.to_owned()), None);
        self.add_end(&mut self.state(), ended);
    }

    /// All attempts that are open below this place end so; of an empty one, all of the run.
    pub(super) fn close(&self, below: &str, end: &StepEnd) {
        let mut state = self.state();
        let from_there = state.open.range(below.to_owned()..);
        let paths: Vec<String> =
            from_there.map(|(path, _)| path.clone()).take_while(|path| path.starts_with(below)).collect();
        // From inside to outside, as blocks end.
        for path in paths.iter().rev() {
            if let Some(open) = state.open.remove(path) {
                self.add_end_of(&mut state, open.is_beginning, open.end(end.clone(), None));
            }
        }
    }

    /// Adds the end of what was open, which `state` has no more.
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
            // Not even begun for the database yet: begin and end become one row, which belong into one change.
            Some(index) => {
                if let Some(other) = state.pending[index].ended.replace(ended) {
                    let other = Change { ended: Some(other), ..self.change() };
                    state.insert(index, other);
                }
            }
        }
    }

    /// The run ends.
    pub(super) fn finish(&self, finished: FinishedRun) {
        let mut state = self.state();
        match state.pending.last_mut() {
            Some(last) => last.finished = Some(finished),
            None => state.pending.push(Change { finished: Some(finished), ..self.change() }),
        }
    }

    /// Asks that what is pending be written soon.
    pub(super) fn request_flush(&self) {
        self.wanted.notify_one();
    }

    /// Waits until all that was added so far is committed. Something has to poll [`Ledger::write_out`] meanwhile.
    pub(super) async fn written(&self) {
        let (done, is_done) = oneshot::channel();
        {
            let mut state = self.state();
            let count = state.pending.len();
            state.waiting.push((count, done));
        }
        self.request_flush();
        // Without an answer there is no one left who drives the run.
        if is_done.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The version of the agent's row, as of the last begin that was written of a step which calls it; `None`: it does
    /// not exist, or there is no such begin.
    pub(super) fn agent_version(&self, name: &str) -> Option<i64> {
        self.state().agents.get(name).copied().flatten()
    }

    /// Waits, if too much is pending.
    pub(super) async fn keep_small(&self) {
        let is_large = {
            let pending = &self.state().pending;
            pending.len() >= MAX_PENDING || pending.iter().map(Change::bytes).sum::<usize>() >= MAX_PENDING_BYTES
        };
        if is_large {
            self.written().await;
        }
    }

    /// Writes what is asked for until something prevents it. Not to be dropped while the run is to be written to:
    /// what it has handed to the journal would race with what comes after.
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
                let (changes, told) = self.state().take_job();
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
                for done in told {
                    // Whoever waited may have been given up.
                    done.send(()).ok();
                }
                if self.state().due == 0 {
                    break;
                }
            }
        }
    }
}

/// See [`Ledger::beginning`].
pub(super) struct PendingBegin {
    ledger: Arc<Ledger>,
    path: String,
    id: String,
}

impl PendingBegin {
    /// The attempt has begun. Repeats of the statement that may be under way do nothing more.
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
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::input::{object_of, to_raw};

    fn ledger() -> Ledger {
        let of = ObservedRun {
            workflow_id: "w".to_owned(),
            workflow_name: "w".to_owned(),
            organization: crate::access::OrganizationId::default(),
            traceparent: String::new(),
        };
        Ledger::new("r".to_owned(), Uuid::new_v4(), Arc::new(of))
    }

    fn begun(id: &str) -> StepBegin {
        StepBegin {
            id: id.to_owned(),
            step_id: id.to_owned(),
            step_name: id.to_owned(),
            agent_name: String::new(),
            task_id: None,
            input: object_of([]),
            nested: None,
        }
    }

    fn failed() -> StepEnd {
        StepEnd::Failed("why".to_owned())
    }

    /// `-ended +begun`, and a full stop for the end of the run.
    fn shown(change: &Change) -> String {
        let ended = change.ended.as_ref().map(|ended| format!("-{}", ended.id));
        let begun = change.begun.as_ref().map(|begun| format!("+{}", begun.id));
        let finished = change.finished.as_ref().map(|_| ".".to_owned());
        [ended, begun, finished].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    fn pending(ledger: &Ledger) -> Vec<String> {
        ledger.state().pending.iter().map(shown).collect()
    }

    #[test]
    fn an_end_shares_a_change_with_the_next_begin() {
        let ledger = ledger();
        ledger.begin("a", begun("a"));
        ledger.state().pending.clear();
        ledger.end("a", failed(), None, None);
        ledger.begin("b", begun("b"));
        ledger.begin("c", begun("c"));
        assert_eq!(pending(&ledger), ["-a +b", "+c"]);
    }

    #[test]
    fn what_ends_before_its_begin_is_written_is_one_change() {
        let ledger = ledger();
        ledger.begin("a", begun("a"));
        ledger.state().pending.clear();
        ledger.end("a", failed(), None, None);
        ledger.begin("b", begun("b"));
        ledger.end("b", failed(), None, None);
        assert_eq!(pending(&ledger), ["-a", "-b +b"]);
        ledger.end("b", failed(), None, None);
        assert_eq!(pending(&ledger).len(), 2, "an end counts once");
    }

    #[test]
    fn what_ends_while_it_begins_elsewhere_is_ended_after_that() {
        let ledger = Arc::new(ledger());
        let statement = Arc::new(ledger.beginning("f/a/x", "x"));
        let repeated = Arc::clone(&statement);
        ledger.close("f/", &failed());
        drop(statement);
        assert_eq!(pending(&ledger), [""; 0]);
        drop(repeated);
        assert_eq!(pending(&ledger), ["-x"]);
        let begun = ledger.beginning("y", "y");
        begun.has_begun();
        ledger.end("y", failed(), None, None);
        assert_eq!(pending(&ledger), ["-x", "-y"]);
        drop(begun);
        assert_eq!(pending(&ledger).len(), 2);
    }

    /// A begin with an input of about so many MiB.
    fn large(id: &str, mib: usize) -> StepBegin {
        StepBegin { input: to_raw(&"x".repeat(mib << 20)), ..begun(id) }
    }

    fn completed(mib: usize) -> StepEnd {
        StepEnd::Completed(to_raw(&"x".repeat(mib << 20)))
    }

    /// What is pending in the jobs in which it goes out, each with how many are told after it.
    fn jobs(ledger: &Ledger) -> Vec<(String, usize)> {
        let mut state = ledger.state();
        state.due = state.pending.len();
        let mut jobs = Vec::new();
        while state.due > 0 {
            let (changes, told) = state.take_job();
            assert!(changes.iter().map(Change::bytes).sum::<usize>() <= MAX_JOB_BYTES || changes.len() == 1);
            jobs.push((changes.iter().map(shown).collect::<Vec<_>>().join(" "), told.len()));
        }
        jobs
    }

    fn is_told_of(ledger: &Ledger) -> impl Future<Output = ()> + '_ {
        let mut told = Box::pin(ledger.written());
        assert!((&mut told).now_or_never().is_none());
        told
    }

    #[test]
    fn what_is_more_than_one_job_goes_out_in_several_in_order() {
        let ledger = ledger();
        ledger.begin("a", large("a", 3));
        let first = is_told_of(&ledger);
        ledger.end("a", completed(3), None, None);
        for id in ["b", "c", "d"] {
            ledger.begin(id, large(id, 1));
            ledger.end(id, failed(), None, None);
        }
        let all = is_told_of(&ledger);
        ledger.finish(FinishedRun { status: crate::run::RunStatus::Completed, error_message: None, failure: None });
        let jobs = jobs(&ledger);
        let shown: Vec<_> = jobs.iter().map(|(job, told)| (job.as_str(), *told)).collect();
        assert_eq!(shown, [("+a", 0), ("-a", 1), ("-b +b -c +c -d +d .", 1)]);
        drop((first, all));
    }

    #[test]
    fn an_end_and_a_begin_that_are_large_together_are_two_jobs() {
        let ledger = ledger();
        ledger.begin("a", begun("a"));
        ledger.state().pending.clear();
        ledger.end("a", completed(16), None, None);
        ledger.begin("b", large("b", 3));
        let all = is_told_of(&ledger);
        assert_eq!(jobs(&ledger), [("-a".to_owned(), 0), ("+b".to_owned(), 1)]);
        drop(all);
    }

    #[test]
    fn a_branch_is_closed_without_its_neighbours() {
        let ledger = ledger();
        for path in ["f", "f/a/x", "f/ab/x", "f/a/l/0/y", "g"] {
            ledger.begin(path, begun(path));
        }
        ledger.state().pending.clear();
        ledger.close("f/a/", &failed());
        assert_eq!(pending(&ledger), ["-f/a/x", "-f/a/l/0/y"]);
        ledger.close("", &failed());
        assert_eq!(pending(&ledger)[2..], ["-g", "-f/ab/x", "-f"]);
    }
}
