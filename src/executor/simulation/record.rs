//! Record of a simulated run: the attempts of its steps in the order of their begin, and warnings.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use serde_json::value::RawValue;

use super::Limits;
use crate::{
    db::executions::{StepBegin, StepEnd},
    executor::steps::step_path,
    input::{FieldError, MAX_ERRORS},
    workflow::StepKind,
};

/// Value in a report.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The value; `None` if there is none, or if it is omitted.
    pub value: Option<Box<RawValue>>,
    /// Whether there is a value that is too large to be shown.
    pub is_omitted: bool,
}

/// Attempt of a step in a report.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Step path, after the paths of the sub-workflow steps around it.
    pub path: String,
    /// Id of the step.
    pub step_id: String,
    /// Type of the step; `None` if its plan has no such step.
    pub kind: Option<StepKind>,
    /// Name of the agent; empty if the step calls none.
    pub agent_name: String,
    /// Id of the block around it.
    pub parent_step_id: Option<String>,
    /// Branch or iteration of the block.
    pub branch_name: Option<String>,
    /// Join policy of the branches.
    pub join_policy: Option<&'static str>,
    /// Number of the attempt at this path, from 1; 0: the step failed before an attempt began.
    pub attempt: u32,
    /// Status as in the rows of a run.
    pub status: &'static str,
    /// Source of its answer.
    pub answered_from: Option<&'static str>,
    /// Input.
    pub input: Shown,
    /// Output.
    pub output: Shown,
    /// Reason of the failure.
    pub error_message: Option<String>,
    /// Virtual time from the begin of the run to the begin of the attempt.
    pub begun: Duration,
    /// Virtual time from the begin of the run to the end of the attempt; `None`: it has not ended.
    pub ended: Option<Duration>,
}

/// Attempts and warnings.
#[derive(Debug)]
pub(in crate::executor) struct Record {
    limits: Limits,
    attempts: Vec<Attempt>,
    /// Indexes of open attempts, by the id of their row.
    open: HashMap<String, usize>,
    /// Number of attempts and index of the last one, by path.
    by_path: HashMap<String, (u32, usize)>,
    /// Bytes of values that are still shown.
    room: usize,
    /// Outputs of the last completed step of each main chain, by the prefix of its run.
    outputs: HashMap<String, Box<RawValue>>,
    /// Bytes of these outputs.
    output_bytes: usize,
    /// Bytes of paths, names and errors.
    text_bytes: usize,
    warnings: Vec<FieldError>,
    warned: HashSet<(&'static str, String)>,
    /// Number of executions of each step, by the prefix of its run and the step's id.
    executions: HashMap<(String, String), u32>,
    /// Mocks that were used, in the same way.
    used: HashSet<(String, String)>,
}

impl Record {
    pub(in crate::executor) fn new(limits: Limits) -> Self {
        Self {
            limits,
            attempts: Vec::new(),
            open: HashMap::new(),
            by_path: HashMap::new(),
            room: limits.shown_bytes,
            outputs: HashMap::new(),
            output_bytes: 0,
            text_bytes: 0,
            warnings: Vec::new(),
            warned: HashSet::new(),
            executions: HashMap::new(),
            used: HashSet::new(),
        }
    }

    /// Number of attempts.
    pub(in crate::executor) fn len(&self) -> usize {
        self.attempts.len()
    }

    /// Bytes of the outputs of runs.
    pub(in crate::executor) fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// Bytes of paths, names and errors.
    pub(in crate::executor) fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// Counts an execution of a step; returns the number of them.
    pub(in crate::executor) fn execute(&mut self, prefix: &str, step_id: &str) -> u32 {
        let count = self.executions.entry((prefix.to_owned(), step_id.to_owned())).or_default();
        *count += 1;
        *count
    }

    /// Whether the step was executed.
    pub(in crate::executor) fn was_executed(&self, prefix: &str, step_id: &str) -> bool {
        self.executions.contains_key(&(prefix.to_owned(), step_id.to_owned()))
    }

    pub(in crate::executor) fn use_mock(&mut self, prefix: &str, step_id: &str) {
        self.used.insert((prefix.to_owned(), step_id.to_owned()));
    }

    pub(in crate::executor) fn was_used(&self, prefix: &str, step_id: &str) -> bool {
        self.used.contains(&(prefix.to_owned(), step_id.to_owned()))
    }

    /// Adds a warning, once for each kind and field.
    pub(in crate::executor) fn warn(&mut self, field: String, kind: &'static str, message: String) {
        if self.warnings.len() < MAX_ERRORS && self.warned.insert((kind, field.clone())) {
            self.warnings.push(FieldError::new(field, kind, message));
        }
    }

    /// The value, if there is room for it.
    fn shown(&mut self, value: &RawValue) -> Shown {
        let bytes = value.get().len();
        if bytes > self.limits.value_bytes || bytes > self.room {
            return Shown { value: None, is_omitted: true };
        }
        self.room -= bytes;
        Shown { value: Some(value.to_owned()), is_omitted: false }
    }

    /// Adds an attempt that begins.
    pub(in crate::executor) fn begin(&mut self, prefix: &str, kind: Option<StepKind>, row: &StepBegin, at: Duration) {
        let nested = row.nested.as_ref();
        let path = nested.map_or_else(|| step_path::step("", &row.step_id, 0), |nested| nested.path.clone());
        let path = format!("{prefix}{path}");
        let index = self.attempts.len();
        let (count, last) = self.by_path.entry(path.clone()).or_default();
        *count += 1;
        *last = index;
        let attempt = *count;
        // The path is kept twice.
        self.text_bytes += 2 * path.len() + row.step_id.len() + row.agent_name.len();
        let is_waiting = matches!(kind, Some(StepKind::Wait | StepKind::Callback | StepKind::SubWorkflow));
        let input = self.shown(&row.input);
        self.open.insert(row.id.clone(), index);
        self.attempts.push(Attempt {
            path,
            step_id: row.step_id.clone(),
            kind,
            agent_name: row.agent_name.clone(),
            parent_step_id: nested.map(|nested| nested.parent_step_id.clone()),
            branch_name: nested.map(|nested| nested.branch_name.clone()),
            join_policy: nested.and_then(|nested| nested.join_policy),
            attempt,
            status: if is_waiting { "PENDING" } else { "RUNNING" },
            answered_from: None,
            input,
            output: Shown::default(),
            error_message: None,
            begun: at,
            ended: None,
        });
    }

    /// Ends the attempt with this row id, if it has begun.
    pub(in crate::executor) fn end(&mut self, prefix: &str, id: &str, end: &StepEnd, at: Duration) {
        let Some(index) = self.open.remove(id) else { return };
        let output = end.output().map(|output| self.shown(output)).unwrap_or_default();
        let attempt = &mut self.attempts[index];
        attempt.output = output;
        attempt.status = end.status();
        attempt.error_message = end.reason().map(str::to_owned);
        attempt.ended = Some(at);
        self.text_bytes += end.reason().map_or(0, str::len);
        if let Some(output) = end.output().filter(|_| attempt.parent_step_id.is_none()) {
            self.output_bytes += output.get().len();
            let before = self.outputs.insert(prefix.to_owned(), output.to_owned());
            self.output_bytes -= before.map_or(0, |before| before.get().len());
        }
    }

    /// Adds a step that failed, unless the failure of its last attempt says so.
    pub(in crate::executor) fn fail(&mut self, path: String, step_id: &str, kind: StepKind, cause: &str, at: Duration) {
        let last = self.by_path.get(&path).and_then(|(_, index)| self.attempts.get(*index));
        if last.is_some_and(|attempt| attempt.ended.is_none() || attempt.status == "FAILED") {
            return;
        }
        self.text_bytes += 2 * path.len() + step_id.len() + cause.len();
        self.by_path.insert(path.clone(), (0, self.attempts.len()));
        self.attempts.push(Attempt {
            path,
            step_id: step_id.to_owned(),
            kind: Some(kind),
            agent_name: String::new(),
            parent_step_id: None,
            branch_name: None,
            join_policy: None,
            attempt: 0,
            status: "FAILED",
            answered_from: None,
            input: Shown::default(),
            output: Shown::default(),
            error_message: Some(cause.to_owned()),
            begun: at,
            ended: Some(at),
        });
    }

    /// The open attempt with this row id.
    pub(in crate::executor) fn open(&mut self, id: &str) -> Option<&mut Attempt> {
        self.open.get(id).and_then(|index| self.attempts.get_mut(*index))
    }

    /// Ends all open attempts below this prefix, since their run was abandoned.
    pub(in crate::executor) fn abandon(&mut self, prefix: &str, at: Duration) {
        let attempts = &mut self.attempts;
        self.open.retain(|_, index| {
            let attempt = &mut attempts[*index];
            let is_below = attempt.path.starts_with(prefix);
            if is_below {
                attempt.status = "SKIPPED";
                attempt.error_message = Some("abandoned: the step of this sub-workflow has ended".to_owned());
                attempt.ended = Some(at);
            }
            !is_below
        });
    }

    /// Takes the output of the run with this prefix.
    pub(in crate::executor) fn take_output(&mut self, prefix: &str) -> Option<Box<RawValue>> {
        let output = self.outputs.remove(prefix)?;
        self.output_bytes -= output.get().len();
        Some(output)
    }

    /// The output of the run in the form of the report.
    pub(in crate::executor) fn shown_output(&mut self) -> Shown {
        let Some(output) = self.outputs.remove("") else { return Shown::default() };
        // The output is shown even if there is no room for the values of the steps any more.
        self.room = self.room.max(self.limits.value_bytes);
        self.shown(&output)
    }

    /// The attempts and the warnings.
    pub(in crate::executor) fn take(&mut self) -> (Vec<Attempt>, Vec<FieldError>) {
        (std::mem::take(&mut self.attempts), std::mem::take(&mut self.warnings))
    }
}
