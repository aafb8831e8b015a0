//! Which changes become one job, and in which order they are written.

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
fn an_attempt_that_ends_before_its_begin_is_written_is_one_change() {
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
fn an_end_waits_for_a_begin_by_another_statement() {
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

/// A begin with an input of about that number of MiB.
fn large(id: &str, mib: usize) -> StepBegin {
    StepBegin { input: to_raw(&"x".repeat(mib << 20)), ..begun(id) }
}

fn completed(mib: usize) -> StepEnd {
    StepEnd::Completed(to_raw(&"x".repeat(mib << 20)))
}

/// The pending jobs in order, each with the number of channels that are notified after it.
fn jobs(ledger: &Ledger) -> Vec<(String, usize)> {
    let mut state = ledger.state();
    state.due = state.pending.len();
    let mut jobs = Vec::new();
    while state.due > 0 {
        let (changes, notified) = state.take_job();
        assert!(changes.iter().map(Change::bytes).sum::<usize>() <= MAX_JOB_BYTES || changes.len() == 1);
        jobs.push((changes.iter().map(shown).collect::<Vec<_>>().join(" "), notified.len()));
    }
    jobs
}

fn is_notified(ledger: &Ledger) -> impl Future<Output = ()> + '_ {
    let mut notified = Box::pin(ledger.written());
    assert!((&mut notified).now_or_never().is_none());
    notified
}

#[test]
fn changes_for_more_than_one_job_are_split_in_order() {
    let ledger = ledger();
    ledger.begin("a", large("a", 3));
    let first = is_notified(&ledger);
    ledger.end("a", completed(3), None, None);
    for id in ["b", "c", "d"] {
        ledger.begin(id, large(id, 1));
        ledger.end(id, failed(), None, None);
    }
    let all = is_notified(&ledger);
    ledger.finish(FinishedRun { status: crate::run::RunStatus::Completed, error_message: None, failure: None });
    let jobs = jobs(&ledger);
    let shown: Vec<_> = jobs.iter().map(|(job, notified)| (job.as_str(), *notified)).collect();
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
    let all = is_notified(&ledger);
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
