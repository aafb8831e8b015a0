//! Wire types of a workflow's version, in answers and in requests.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::flow::{ConcurrencyBody, DebounceBody, ThrottleBody};
use crate::{
    access::OrganizationId,
    api::{
        resources::{
            definition::{LimitsBody, PlanBody, StepsBody},
            tool_warnings,
        },
        vocabulary::{app::App, page::Page, sets},
    },
    db::{self, workflows::WorkflowRow},
    input::{FieldError, MAX_ERRORS},
    timestamp::Timestamp,
    workflow::{Concurrency, Content, DeadlineAction, Debounce, Expose, Throttle},
};

/// Page of the list of workflows.
pub type WorkflowPage = Page<Workflow>;

/// Version of a workflow.
#[derive(Serialize, ToSchema)]
pub struct Workflow {
    /// Id of this version's row; an update keeps the id for the newest content.
    id: uuid::Uuid,
    /// Name that all versions share.
    #[schema(example = "summarise-and-translate")]
    name: String,
    /// Description for people.
    description: Option<String>,
    /// Version number, from 1, unique for the name.
    version: i32,
    /// The definition as a plan.
    #[schema(value_type = PlanBody)]
    workflow_data: Box<RawValue>,
    /// JSON Schema of the input of runs; null accepts any object.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_schema: Option<Box<RawValue>>,
    /// Whether it may be executed.
    #[schema(value_type = sets::WorkflowStatus)]
    status: String,
    /// Days for which ended runs of the workflow are kept, from the newest version. 0: for ever; null: the
    /// organisation's value.
    #[schema(minimum = 0, maximum = 36_500)]
    retention_days: Option<i32>,
    /// Protocols by which the workflow is offered besides this API, from the newest version; null if there are none.
    #[schema(value_type = Option<ExposeBody>)]
    expose: Option<Expose>,
    /// Deadline of runs, in seconds from their creation or their last retry, of this version; null: none.
    deadline_seconds: Option<i32>,
    /// What happens besides an event to a run that misses its deadline; null: `notify`, which is nothing.
    #[schema(value_type = Option<sets::DeadlineAction>)]
    deadline_action: Option<DeadlineAction>,
    /// Hours without a completed run of the workflow after which an event tells of it, from the newest version; null:
    /// never.
    silence_hours: Option<i32>,
    /// Time since which the workflow is silent; absent if it is not, and in lists. No part of the entity tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    silent_since: Option<Timestamp>,
    /// Time of the last completed run; absent without `silence_hours`, and in lists. No part of the entity tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    last_success_at: Option<Timestamp>,
    /// Starts in a row of which the last one counts; null if all of them do. The same for all versions, like the next
    /// two.
    #[schema(value_type = Option<DebounceBody>)]
    debounce: Option<Debounce>,
    /// Rate at which runs start; null if there is none.
    #[schema(value_type = Option<ThrottleBody>)]
    throttle: Option<Throttle>,
    /// Limit of the runs under way at a time; null if there is none.
    #[schema(value_type = Option<ConcurrencyBody>)]
    concurrency: Option<Concurrency>,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time of the last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// User who created it.
    created_by: Option<String>,
    /// User who changed it last.
    updated_by: Option<String>,
    /// Warnings as in `POST /workflows/validate`: valid members that are probably mistakes. Only in the answer to a
    /// write, and only if there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<FieldError>,
}

impl Workflow {
    /// The version with the warnings about what was written.
    pub async fn written(app: &App, row: WorkflowRow) -> Self {
        let mut warnings = Vec::new();
        if let Ok(content) = Content::of_plan(&row.workflow_data.0) {
            warnings = content.warnings();
            let organization = OrganizationId::stored(&row.organization_id);
            warnings.extend(tool_warnings::of_stored(app, &organization, &content).await);
            warnings.truncate(MAX_ERRORS);
        }
        Self { warnings, ..row.into() }
    }
}

impl Workflow {
    /// The version with what is known of its silence, if that is watched.
    pub async fn watched(app: &App, row: WorkflowRow) -> Result<Self, db::Error> {
        if row.watch.silence_hours.is_none() {
            return Ok(row.into());
        }
        let silence = db::watches::silence(&app.pool, &row.organization_id, &row.name).await?;
        Ok(Self { silent_since: silence.silent_since, last_success_at: silence.last_success_at, ..row.into() })
    }
}

impl From<WorkflowRow> for Workflow {
    fn from(row: WorkflowRow) -> Self {
        let flow = row.flow_control.map(|flow| flow.0).unwrap_or_default();
        Self {
            id: row.id,
            name: row.name,
            description: row.description,
            version: row.version,
            workflow_data: row.workflow_data.0,
            input_schema: row.input_schema.map(|schema| schema.0),
            status: row.status,
            retention_days: row.retention_days,
            expose: row.expose.map(|expose| expose.0),
            deadline_seconds: row.watch.deadline_seconds,
            deadline_action: row.watch.deadline_action,
            silence_hours: row.watch.silence_hours,
            silent_since: None,
            last_success_at: None,
            debounce: flow.debounce,
            throttle: flow.throttle,
            concurrency: flow.concurrency,
            created_at: row.created_at,
            updated_at: row.updated_at,
            created_by: row.created_by,
            updated_by: row.updated_by,
            warnings: Vec::new(),
        }
    }
}

/// Exposure of a workflow by other protocols.
#[derive(ToSchema)]
#[schema(as = WorkflowExposure, example = json!({"a2a": true, "mcp": {"description": "Sums up a text."}}))]
#[expect(dead_code, reason = "describes `workflow::Expose`")]
pub struct ExposeBody {
    /// Whether it is an A2A agent, at `/a2a/{organization}/{workflow}`.
    #[schema(required = false)]
    a2a: bool,
    /// Whether its agent card is served without credentials.
    #[schema(required = false)]
    public_card: bool,
    /// Example inputs, for the agent card.
    #[schema(required = false, max_items = 10)]
    examples: Vec<String>,
    /// Its tool for MCP clients at `/mcp`; absent or null: it is none.
    mcp: Option<ToolBody>,
}

/// Tool of a workflow for MCP clients.
#[derive(ToSchema)]
#[schema(as = WorkflowTool)]
#[expect(dead_code, reason = "describes `workflow::Tool`")]
pub struct ToolBody {
    /// Name of the tool, unique in the organisation; absent is the name of the workflow.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9_.-]+$", example = "summarise")]
    name: Option<String>,
    /// Description for models; absent is that of the workflow.
    #[schema(min_length = 1, max_length = 2000, example = "Sums up a text.")]
    description: Option<String>,
}

/// Definition of a workflow, for creating, exporting and importing.
#[derive(ToSchema)]
#[schema(as = WorkflowDefinition, example = json!({
    "name": "hello", "start_step": "pause",
    "steps": {"pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}}},
}))]
#[expect(dead_code, reason = "describes what `workflow::NewWorkflow::parse` reads")]
pub struct NewWorkflowBody {
    /// Name of the workflow. For an existing name, the next version is created.
    #[schema(min_length = 1, max_length = 255, example = "summarise-and-translate")]
    name: String,
    /// Description for people.
    description: Option<String>,
    /// The id of the first step.
    #[schema(min_length = 1, example = "summarise")]
    start_step: String,
    /// The steps by id.
    steps: StepsBody,
    /// Limits of its runs; null: none.
    limits: Option<LimitsBody>,
    /// JSON Schema (draft 2020-12 unless `$schema` says otherwise) of the input of runs. References must stay inside
    /// of the schema and must not form cycles; patterns have no look-around.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"type": "object", "required": ["text"]}))]
    input_schema: Option<()>,
    /// Days for which ended runs of the workflow are kept. 0: for ever; null: the organisation's value.
    #[schema(minimum = 0, maximum = 36_500, example = 30)]
    retention_days: Option<i32>,
    /// Protocols by which the workflow is offered besides this API; null: none.
    expose: Option<ExposeBody>,
    /// Deadline of runs, in seconds from their creation or their last retry: an event tells of a run that has not ended
    /// by then. Null: none.
    #[schema(minimum = 1, maximum = 31_622_400, example = 3600)]
    deadline_seconds: Option<i32>,
    /// What happens besides to a run that misses its deadline: `notify`, nothing; `cancel`. Null: `notify`.
    deadline_action: Option<sets::DeadlineAction>,
    /// Hours without a completed run of the workflow after which an event tells of it; null: never.
    #[schema(minimum = 1, maximum = 8760)]
    silence_hours: Option<i32>,
    /// Starts in a row of which the last one counts; null: all of them do.
    debounce: Option<DebounceBody>,
    /// Rate at which runs start; null: none.
    throttle: Option<ThrottleBody>,
    /// Limit of the runs under way at a time; null: none.
    concurrency: Option<ConcurrencyBody>,
}

/// Body of an update request; absent members stay unchanged.
#[derive(ToSchema)]
#[schema(as = UpdateWorkflowRequest, example = json!({"description": "Sums a text up and translates it."}))]
#[expect(dead_code, reason = "describes what `workflow::WorkflowPatch::parse` reads")]
pub struct WorkflowPatchBody {
    /// Description for people; null clears it.
    description: Option<String>,
    /// Id of the first step; creates a new version.
    start_step: Option<String>,
    /// All steps by id; creates a new version.
    steps: Option<StepsBody>,
    /// Changed limits of runs create a new version; null removes them.
    limits: Option<LimitsBody>,
    /// A changed schema creates a new version; null removes it.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_schema: Option<()>,
    /// Days for which ended runs of the workflow are kept. 0: for ever; null: the organisation's value. Makes no new
    /// version.
    #[schema(minimum = 0, maximum = 36_500)]
    retention_days: Option<i32>,
    /// Protocols by which the workflow is offered besides this API; null: none. Makes no new version.
    expose: Option<ExposeBody>,
    /// Deadline of runs, in seconds from their creation or their last retry: an event tells of a run that has not ended
    /// by then. Null: none.
    #[schema(minimum = 1, maximum = 31_622_400, example = 3600)]
    deadline_seconds: Option<i32>,
    /// What happens besides to a run that misses its deadline: `notify`, nothing; `cancel`. Null: `notify`.
    deadline_action: Option<sets::DeadlineAction>,
    /// Hours without a completed run of the workflow after which an event tells of it; null: never. Makes no new
    /// version, like the deadline.
    #[schema(minimum = 1, maximum = 8760)]
    silence_hours: Option<i32>,
    /// Starts in a row of which the last one counts; null: all of them do. Makes no new version, and holds for all of
    /// them, like the next two.
    debounce: Option<DebounceBody>,
    /// Rate at which runs start; null: none.
    throttle: Option<ThrottleBody>,
    /// Limit of the runs under way at a time; null: none.
    concurrency: Option<ConcurrencyBody>,
    /// Whether it may be executed.
    #[schema(required = false)]
    status: sets::SettableStatus,
}
