//! A run and an attempt of a step, as answers show them.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    api::vocabulary::{app::App, page::Page, sets},
    db::{
        self,
        runs::{RunRow, StepRow},
    },
    input::object_of,
    run::RunStatus,
    run_writer::StartedRun,
    timestamp::Timestamp,
};

/// A part of the list of runs.
pub type RunPage = Page<Run>;

/// A run of a workflow.
#[derive(Serialize, ToSchema)]
pub struct Run {
    /// The same as `run_id`.
    id: String,
    /// `run-` and a UUID; runs that other programs made may have any id.
    run_id: String,
    /// The definition's id.
    workflow_id: String,
    /// The definition's name.
    workflow_name: String,
    /// The definition's id.
    workflow_definition_id: Option<String>,
    /// How far it is.
    #[schema(value_type = sets::RunStatus)]
    status: String,
    /// As given. A list leaves out one of more than 64 KiB.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_data: Option<Box<RawValue>>,
    /// True where a list leaves the input out, and otherwise absent: the run itself shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool)]
    input_data_omitted: Option<bool>,
    /// Who started it.
    triggered_by: Option<String>,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Last change of its state.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// When it was completed or failed.
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Timestamp>,
    /// When it was cancelled.
    #[schema(value_type = Option<String>, format = DateTime)]
    cancelled_at: Option<Timestamp>,
    /// Who cancelled it.
    cancelled_by: Option<String>,
    /// Why it failed or was cancelled.
    error_message: Option<String>,
    /// From 0 to 9: of what waits for an executor, higher ones are first.
    priority: i16,
    /// Since when no further step begins; null if it is not paused.
    #[schema(value_type = Option<String>, format = DateTime)]
    paused_at: Option<Timestamp>,
    /// The run of which it is a step.
    parent_run_id: Option<String>,
    /// Which step of it.
    parent_step_id: Option<String>,
}

impl From<RunRow> for Run {
    fn from(row: RunRow) -> Self {
        Self {
            id: row.run_id.clone(),
            run_id: row.run_id,
            workflow_id: row.workflow_id,
            workflow_name: row.workflow_name,
            workflow_definition_id: row.workflow_definition_id,
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
            priority: row.priority,
            paused_at: row.paused_at,
            parent_run_id: row.parent_run_id,
            parent_step_id: row.parent_step_id,
        }
    }
}

impl Run {
    /// A run that has just been written, without reading it back.
    #[must_use]
    pub fn started(started: StartedRun) -> Self {
        let StartedRun { request, run_id, created_at } = started;
        let workflow_id = request.definition.id.to_string();
        Self {
            id: run_id.clone(),
            run_id,
            workflow_definition_id: Some(workflow_id.clone()),
            workflow_id,
            workflow_name: request.definition.name.clone(),
            status: RunStatus::Pending.as_str().to_owned(),
            priority: request.priority,
            input_data: Some(request.input),
            input_data_omitted: None,
            triggered_by: Some(request.actor.subject.clone()),
            created_at,
            updated_at: created_at,
            completed_at: None,
            cancelled_at: None,
            cancelled_by: None,
            error_message: None,
            paused_at: None,
            parent_run_id: None,
            parent_step_id: None,
        }
    }
}

impl Run {
    /// The run as it was when it had just been written, which is what the first request was answered.
    #[must_use]
    pub fn as_started(self) -> Self {
        Self {
            status: RunStatus::Pending.as_str().to_owned(),
            updated_at: self.created_at,
            completed_at: None,
            cancelled_at: None,
            cancelled_by: None,
            error_message: None,
            paused_at: None,
            ..self
        }
    }

    /// The run's id.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }
}

/// A run with what it gave.
#[derive(Serialize, ToSchema)]
pub struct RunDetail {
    #[serde(flatten)]
    run: Run,
    /// The output of the last step, once the run is completed.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    output_data: Option<Box<RawValue>>,
}

impl RunDetail {
    /// A run that has given nothing.
    #[must_use]
    pub fn open(run: Run) -> Self {
        Self { run, output_data: None }
    }

    /// The run with its output, which is read if there can be one.
    pub async fn read(app: &App, row: RunRow) -> Result<Self, db::Error> {
        let is_completed = RunStatus::parse(&row.status) == Some(RunStatus::Completed);
        let output = if is_completed { db::runs::output(&app.pool, &row.run_id).await? } else { None };
        Ok(Self { run: row.into(), output_data: output.map(|json| json.0) })
    }

    /// The run's id.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run.run_id
    }

    /// When its state changed last.
    #[must_use]
    pub fn updated_at(&self) -> Timestamp {
        self.run.updated_at
    }

    /// The run's status.
    #[must_use]
    pub fn status(&self) -> &str {
        &self.run.status
    }
}

/// An attempt of a step.
#[derive(Serialize, ToSchema)]
#[schema(as = StepExecution)]
pub struct Step {
    /// Of this attempt.
    id: String,
    /// The run.
    run_id: String,
    /// As in the definition; several attempts of one step are normal.
    step_id: String,
    /// For people.
    step_name: String,
    /// The agent that was called.
    agent_name: String,
    /// How far it is.
    #[schema(value_type = sets::StepStatus)]
    status: String,
    /// What was sent.
    #[schema(value_type = HashMap<String, Value>)]
    input_data: Box<RawValue>,
    /// What came back.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    output_data: Option<Box<RawValue>>,
    /// Begin.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// End.
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Timestamp>,
    /// Why it failed.
    error_message: Option<String>,
    /// The step that it is a branch or an iteration of.
    parent_step_id: Option<String>,
    /// Which branch.
    branch_name: Option<String>,
    /// How the branches are joined.
    #[schema(value_type = Option<sets::JoinPolicy>)]
    join_policy: Option<String>,
    /// Of a step of type `sub_workflow`: its run.
    child_run_id: Option<String>,
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
            parent_step_id: row.parent_step_id,
            branch_name: row.branch_name,
            join_policy: row.join_policy,
            child_run_id: row.child_run_id,
        }
    }
}
