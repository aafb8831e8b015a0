//! Wire types of a run and of an attempt of a step.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    api::{
        resources::{
            definition::LimitsBody,
            usage::{CallUsage, RunUsage},
        },
        vocabulary::{page::Page, sets},
    },
    db::{
        flow::{FlowState, Waiting},
        runs::{BareStep, Retrying, RunRow, ShownRun, StepRow},
    },
    input::object_of,
    run::RunStatus,
    run_writer::StartedRun,
    timestamp::Timestamp,
    usage::Limits,
};

/// Page of the list of runs.
pub type RunPage = Page<Run>;

/// Run of a workflow.
#[derive(Serialize, ToSchema)]
pub struct Run {
    /// The same as `run_id`.
    id: String,
    /// Id: `run-` and a UUID; runs that other programs created may have any id.
    run_id: String,
    /// Id of the definition.
    workflow_id: String,
    /// Name of the definition.
    workflow_name: String,
    /// Id of the definition.
    workflow_definition_id: Option<String>,
    /// Version of the definition; null if another program started the run and named none.
    workflow_version: Option<i32>,
    /// State of the run.
    #[schema(value_type = sets::RunStatus)]
    status: String,
    /// Input, as given. A list omits an input of more than 64 KiB.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_data: Option<Box<RawValue>>,
    /// True if a list omits the input, and otherwise absent; `GET /runs/{run_id}` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool)]
    input_data_omitted: Option<bool>,
    /// User who started it.
    triggered_by: Option<String>,
    /// Time when it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time of the last change of its state.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Time when it was completed or failed.
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Timestamp>,
    /// Time when it was cancelled.
    #[schema(value_type = Option<String>, format = DateTime)]
    cancelled_at: Option<Timestamp>,
    /// User who cancelled it.
    cancelled_by: Option<String>,
    /// Reason of the failure or cancellation.
    error_message: Option<String>,
    /// Code of the end: `budget_exceeded` if a call or a step did not fit into the limits; one that names the stage, such
    /// as `skipped_by_concurrency`, if the flow control of the workflow cancelled it; otherwise null.
    #[schema(example = "budget_exceeded")]
    error_code: Option<&'static str>,
    /// Priority from 0 to 9: among the queued runs, those of a higher priority start first.
    priority: i16,
    /// Time since which no further step begins; null if it is not paused.
    #[schema(value_type = Option<String>, format = DateTime)]
    paused_at: Option<Timestamp>,
    /// Id of the parent run, of which it is a step.
    parent_run_id: Option<String>,
    /// Id of the step in the parent run.
    parent_step_id: Option<String>,
    /// Limits that the run was started with, or its last retry; null: none besides those of its workflow and of its
    /// parent run.
    #[schema(value_type = Option<LimitsBody>)]
    limits: Option<Limits>,
    /// Time of its deadline; absent without one, and in the answer to the request that starts or retries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    deadline_at: Option<Timestamp>,
    /// Time when it was found to have missed its deadline; absent if it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    deadline_missed_at: Option<Timestamp>,
    /// Trigger that started it; null: a client did, or another run.
    trigger: Option<RunTrigger>,
    /// Place in the flow control of its workflow; null: it is not under flow control.
    flow_control: Option<RunFlow>,
    /// In a list: the step of a RUNNING run that waits for its next attempt; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = RunRetry)]
    retrying: Option<RunRetry>,
}

/// Step of a run of which an attempt has failed and the next one has not begun.
#[derive(Serialize, ToSchema)]
pub struct RunRetry {
    /// Id of the step.
    step_id: String,
    /// Agent that the failed attempt has called.
    agent_name: String,
    /// Number of its attempts so far, counted among the last 20 of the run.
    attempts: i64,
    /// When the next attempt begins.
    #[schema(value_type = String, format = DateTime)]
    next_attempt_at: Timestamp,
    /// Why the last attempt has failed, at most 500 characters.
    error_message: Option<String>,
}

impl From<Retrying> for RunRetry {
    fn from(row: Retrying) -> Self {
        let Retrying { step_id, agent_name, attempts, next_attempt_at, error_message } = row;
        Self { step_id, agent_name, attempts, next_attempt_at: next_attempt_at.into(), error_message }
    }
}

/// Trigger that started a run.
#[derive(Serialize, ToSchema)]
pub struct RunTrigger {
    /// Kind of the trigger.
    #[schema(value_type = sets::TriggerKind)]
    kind: String,
    /// Id of the trigger, which may be deleted.
    id: Uuid,
    /// When the trigger was due, without jitter.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Number of runs before it in a chain of which each has caused the next one by an event.
    depth: i16,
}

impl RunTrigger {
    fn of(row: &RunRow) -> Option<Self> {
        let (Some(kind), Some(id), Some(at)) = (&row.trigger_kind, row.trigger_id, row.trigger_at) else { return None };
        Some(Self { kind: kind.clone(), id, at: at.into(), depth: row.chain_depth })
    }
}

/// Place of a run in the flow control of its workflow.
#[derive(Serialize, ToSchema)]
#[schema(as = RunFlowControl)]
pub struct RunFlow {
    /// Stage that it has reached.
    #[schema(value_type = sets::FlowStage)]
    stage: String,
    /// What the stage has decided. A run in `arrived` or `queued` is PENDING, and executors do not know of it yet.
    #[schema(value_type = sets::FlowState)]
    state: String,
    /// Value of the stage's `key` for its input; null: all runs of the workflow count together.
    key: Option<String>,
}

impl RunFlow {
    fn new(stage: Option<String>, state: Option<String>, key: Option<String>) -> Option<Self> {
        Some(Self { stage: stage?, state: state?, key: key.filter(|key| !key.is_empty()) })
    }

    fn is_held(&self) -> bool {
        ["arrived", "queued"].contains(&self.state.as_str())
    }

    /// Code of the end of the run, if flow control cancelled it.
    fn code(&self) -> Option<&'static str> {
        match (self.state.as_str(), self.stage.as_str()) {
            ("skipped", _) => Some("skipped_by_concurrency"),
            ("dropped", _) => Some("dropped_by_throttle"),
            ("replaced", "debounce") => Some("replaced_by_debounce"),
            ("replaced", _) => Some("replaced_by_concurrency"),
            _ => None,
        }
    }
}

impl From<RunRow> for Run {
    fn from(row: RunRow) -> Self {
        let trigger = RunTrigger::of(&row);
        let flow_control = RunFlow::new(row.flow_stage, row.flow_state, row.flow_key);
        let of_flow = || flow_control.as_ref().and_then(RunFlow::code);
        let error_code = if row.is_over_budget { Some("budget_exceeded") } else { of_flow() };
        Self {
            id: row.run_id.clone(),
            run_id: row.run_id,
            workflow_id: row.workflow_id,
            workflow_name: row.workflow_name,
            workflow_definition_id: row.workflow_definition_id,
            workflow_version: row.workflow_version,
            status: row.status,
            input_data_omitted: (row.has_input && row.input_data.is_none()).then_some(true),
            input_data: row.input_data.map(|json| json.0),
            triggered_by: row.triggered_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
            completed_at: row.completed_at,
            cancelled_at: row.cancelled_at,
            cancelled_by: row.cancelled_by,
            error_message: row.error_message,
            error_code,
            priority: row.priority,
            paused_at: row.paused_at,
            parent_run_id: row.parent_run_id,
            parent_step_id: row.parent_step_id,
            limits: row.limits.and_then(|limits| limits.0.unless_empty()),
            deadline_at: row.deadline_at,
            deadline_missed_at: row.deadline_missed_at,
            trigger,
            flow_control,
            retrying: row.retrying.map(|retrying| retrying.0.into()),
        }
    }
}

impl Run {
    /// A run that has just been written, without reading it from the database.
    #[must_use]
    pub fn started(started: StartedRun) -> Self {
        let StartedRun { request, run_id, created_at, state } = started;
        let flow = request.flow.as_ref().and_then(|keys| {
            let (stage, key) = keys.iter().next()?;
            Some((stage.as_str().to_owned(), key.to_owned()))
        });
        let (status, flow_control, error_message) = if let Some(state) = state {
            let FlowState { status, flow_stage, flow_state, flow_key, error_message, .. } = *state;
            (status, RunFlow::new(flow_stage, flow_state, flow_key), error_message)
        } else {
            // Of a controlled run the loop that admits runs has still to decide.
            let (stage, key) = flow.unzip();
            let state = stage.as_ref().map(|_| "arrived".to_owned());
            (RunStatus::Pending.as_str().to_owned(), RunFlow::new(stage, state, key), None)
        };
        let is_skipped = status == RunStatus::Cancelled.as_str();
        let workflow_id = request.definition.id.to_string();
        Self {
            id: run_id.clone(),
            run_id,
            workflow_definition_id: Some(workflow_id.clone()),
            workflow_id,
            workflow_name: request.definition.name.clone(),
            workflow_version: Some(request.definition.version),
            status,
            priority: request.priority,
            input_data: Some(request.input),
            input_data_omitted: None,
            triggered_by: Some(request.actor.subject.clone()),
            created_at,
            updated_at: created_at,
            completed_at: None,
            cancelled_at: is_skipped.then_some(created_at),
            cancelled_by: is_skipped.then(|| "system".to_owned()),
            error_message,
            error_code: flow_control.as_ref().and_then(RunFlow::code),
            paused_at: None,
            parent_run_id: None,
            parent_step_id: None,
            limits: request.limits.map(|limits| *limits),
            deadline_at: None,
            deadline_missed_at: None,
            trigger: None,
            flow_control,
            retrying: None,
        }
    }
}

impl Run {
    /// The run in the state after it was written, which was the answer to the first request.
    #[must_use]
    pub fn as_started(self) -> Self {
        if self.flow_control.as_ref().is_some_and(|flow| ["skipped", "dropped"].contains(&flow.state.as_str())) {
            return self;
        }
        Self {
            status: RunStatus::Pending.as_str().to_owned(),
            updated_at: self.created_at,
            completed_at: None,
            cancelled_at: None,
            cancelled_by: None,
            error_message: None,
            paused_at: None,
            deadline_at: None,
            deadline_missed_at: None,
            ..self
        }
    }

    /// The run's id.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Time when it was accepted.
    #[must_use]
    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// Run with its output.
#[derive(Serialize, ToSchema)]
pub struct RunDetail {
    #[serde(flatten)]
    run: Run,
    /// Output of the last step, once the run is completed.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    output_data: Option<Box<RawValue>>,
    /// What it has used; null if nothing was counted: it has no limits, and its agents told no usage and have no price.
    usage: Option<RunUsage>,
    /// Why the run has not started, if the flow control of its workflow holds it; only in the answer to a read of this
    /// run, and otherwise null.
    waiting: Option<WaitingRun>,
}

/// Why a run has not started.
#[derive(Serialize, ToSchema)]
pub struct WaitingRun {
    /// Stage of flow control that holds it, or `paused`: that passes over it until it is resumed.
    #[schema(value_type = sets::WaitingReason)]
    reason: String,
    /// For `concurrency`: runs of the same key that are under way; otherwise 0.
    running: i64,
    /// Limit of the stage; null: there is none, or none any more.
    limit: Option<i32>,
    /// For `concurrency` and `throttle`: runs of the same key that start before it, counted up to 1000.
    ahead: i64,
    /// For `debounce`: time at which it goes on, if no further start comes.
    #[schema(value_type = Option<String>, format = DateTime)]
    due_at: Option<Timestamp>,
    /// The same for people.
    #[schema(example = "3 of 3 runs with this key are under way, and 4 wait before this one")]
    message: String,
}

impl WaitingRun {
    fn new(waiting: Waiting, is_paused: bool) -> Self {
        let Waiting { stage, running, ahead, most, period_secs, due_at } = waiting;
        let message = match (stage.as_str(), most, period_secs) {
            ("concurrency", Some(most), _) => {
                format!("{running} of {most} runs with this key are under way, and {ahead} wait before this one")
            }
            ("throttle", Some(most), Some(secs)) => {
                format!("{most} runs with this key start in {secs} s, and {ahead} wait before this one")
            }
            ("debounce", ..) if due_at.is_some() => {
                "It starts when no other run with this key has been started for a while".to_owned()
            }
            _ => "It starts soon".to_owned(),
        };
        let (reason, message) = if is_paused {
            ("paused".to_owned(), "It is paused; others start before it until it is resumed".to_owned())
        } else {
            (stage, message)
        };
        Self { reason, running, limit: most, ahead, due_at, message }
    }
}

impl RunDetail {
    /// A run without output.
    #[must_use]
    pub fn open(run: Run) -> Self {
        Self { run, output_data: None, usage: None, waiting: None }
    }

    /// Whether the flow control of its workflow holds it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.run.status == RunStatus::Pending.as_str() && self.run.flow_control.as_ref().is_some_and(RunFlow::is_held)
    }

    /// The run with the reason why it is held.
    #[must_use]
    pub fn waiting(self, waiting: Option<Waiting>) -> Self {
        let is_paused = self.run.paused_at.is_some();
        Self { waiting: waiting.map(|waiting| WaitingRun::new(waiting, is_paused)), ..self }
    }

    /// The run's id.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run.run_id
    }

    /// Time of the last change of its state.
    #[must_use]
    pub fn updated_at(&self) -> Timestamp {
        self.run.updated_at
    }

    /// State of the run.
    #[must_use]
    pub fn status(&self) -> &str {
        &self.run.status
    }
}

impl From<ShownRun> for RunDetail {
    fn from(shown: ShownRun) -> Self {
        let usage = shown.usage.map(|usage| RunUsage::from(usage.0));
        let is_over = shown.run.status == RunStatus::Failed.as_str()
            && usage.as_ref().is_some_and(|usage| usage.exceeded.is_some());
        let run = Run::from(RunRow { is_over_budget: is_over, ..shown.run });
        Self { run, output_data: shown.output.map(|json| json.0), usage, waiting: None }
    }
}

/// Attempt of a step.
#[derive(Serialize, ToSchema)]
#[schema(as = StepExecution)]
pub struct Step {
    /// Id of this attempt.
    id: String,
    /// Id of the run.
    run_id: String,
    /// Id of the step in the definition; a step may have several attempts.
    step_id: String,
    /// Name for people.
    step_name: String,
    /// Name of the called agent.
    agent_name: String,
    /// State of the attempt.
    #[schema(value_type = sets::StepStatus)]
    status: String,
    /// Input that was sent.
    #[schema(value_type = HashMap<String, Value>)]
    input_data: Box<RawValue>,
    /// Output that was received.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    output_data: Option<Box<RawValue>>,
    /// Time of the begin.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// Time of the end.
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Timestamp>,
    /// Reason of the failure.
    error_message: Option<String>,
    /// When the next attempt at the step begins, or was to begin; absent if none follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    next_attempt_at: Option<Timestamp>,
    /// Id of the step that contains this branch or iteration.
    parent_step_id: Option<String>,
    /// Name of the branch.
    branch_name: Option<String>,
    /// Join policy of the branches.
    #[schema(value_type = Option<sets::JoinPolicy>)]
    join_policy: Option<String>,
    /// For a step of type `sub_workflow`: id of its run.
    child_run_id: Option<String>,
    /// What its call has used; null if it was not counted.
    usage: Option<CallUsage>,
    /// True if input and output are left out: then `input_data` is empty, and `output_data` null. Otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool)]
    data_omitted: Option<bool>,
}

impl From<BareStep> for Step {
    fn from(BareStep { step }: BareStep) -> Self {
        Self { data_omitted: Some(true), ..step.into() }
    }
}

impl From<StepRow> for Step {
    fn from(row: StepRow) -> Self {
        let input_data = if row.input_data.0.get() == "null" { object_of([]) } else { row.input_data.0 };
        Self {
            id: row.id,
            run_id: row.run_id,
            step_id: row.step_id,
            step_name: row.step_name,
            agent_name: row.agent_name,
            status: row.status,
            input_data,
            output_data: row.output_data.map(|json| json.0),
            started_at: row.started_at,
            completed_at: row.completed_at,
            error_message: row.error_message,
            next_attempt_at: row.next_attempt_at,
            parent_step_id: row.parent_step_id,
            branch_name: row.branch_name,
            join_policy: row.join_policy,
            child_run_id: row.child_run_id,
            usage: row.usage.map(|usage| usage.0.into()),
            data_omitted: None,
        }
    }
}
