//! A version of a workflow, as answers show it and as requests bring it.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    api::{
        resources::definition::{PlanBody, StepsBody},
        vocabulary::{error::FieldErrorBody, page::Page, sets},
    },
    db::workflows::WorkflowRow,
    input::FieldError,
    timestamp::Timestamp,
    workflow::Content,
};

/// A part of the list of workflows.
pub type WorkflowPage = Page<Workflow>;

/// A version of a workflow.
#[derive(Serialize, ToSchema)]
pub struct Workflow {
    /// Of this version's row; an update keeps the id for the newest content.
    id: uuid::Uuid,
    /// Shared by all versions.
    #[schema(example = "summarise-and-translate")]
    name: String,
    /// For people.
    description: Option<String>,
    /// From 1, unique for the name.
    version: i32,
    /// What it does.
    #[schema(value_type = PlanBody)]
    workflow_data: Box<RawValue>,
    /// JSON Schema that the input of runs has to satisfy; null takes any object.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_schema: Option<Box<RawValue>>,
    /// Whether it may be executed.
    #[schema(value_type = sets::WorkflowStatus)]
    status: String,
    /// Creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Who created it.
    created_by: Option<String>,
    /// Who changed it last.
    updated_by: Option<String>,
    /// Only in the answer to a write, and only if there are some: what is allowed and yet hardly meant, as
    /// `POST /workflows/validate` tells it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<FieldErrorBody>)]
    warnings: Vec<FieldError>,
}

impl Workflow {
    /// With the warnings about what was written.
    #[must_use]
    pub fn written(row: WorkflowRow) -> Self {
        let warnings = Content::of_plan(&row.workflow_data.0).map(|content| content.warnings()).unwrap_or_default();
        Self { warnings, ..row.into() }
    }
}

impl From<WorkflowRow> for Workflow {
    fn from(row: WorkflowRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            description: row.description,
            version: row.version,
            workflow_data: row.workflow_data.0,
            input_schema: row.input_schema.map(|schema| schema.0),
            status: row.status,
            created_at: row.created_at,
            updated_at: row.updated_at,
            created_by: row.created_by,
            updated_by: row.updated_by,
            warnings: Vec::new(),
        }
    }
}

/// A definition of a workflow, as it is created, exported and imported.
#[derive(ToSchema)]
#[schema(as = WorkflowDefinition, example = json!({
    "name": "hello", "start_step": "pause",
    "steps": {"pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}}},
}))]
#[expect(dead_code, reason = "describes what `workflow::NewWorkflow::parse` reads")]
pub struct NewWorkflowBody {
    /// A name that exists already makes its next version.
    #[schema(min_length = 1, max_length = 255, example = "summarise-and-translate")]
    name: String,
    /// For people.
    description: Option<String>,
    /// The id of the first step.
    #[schema(min_length = 1, example = "summarise")]
    start_step: String,
    /// The steps by id.
    steps: StepsBody,
    /// JSON Schema (draft 2020-12 unless `$schema` says otherwise) that the input of runs has to satisfy. References
    /// lead only to places in it and not in circles; patterns have no look-around.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"type": "object", "required": ["text"]}))]
    input_schema: Option<()>,
}

/// The body of an update request; what is absent stays.
#[derive(ToSchema)]
#[schema(as = UpdateWorkflowRequest, example = json!({"description": "Sums a text up and translates it."}))]
#[expect(dead_code, reason = "describes what `workflow::WorkflowPatch::parse` reads")]
pub struct WorkflowPatchBody {
    /// Null clears it.
    description: Option<String>,
    /// The id of the first step; makes a new version.
    start_step: Option<String>,
    /// All steps by id; makes a new version.
    steps: Option<StepsBody>,
    /// Another one makes a new version; null takes it away.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    input_schema: Option<()>,
    /// Whether it may be executed.
    #[schema(required = false)]
    status: sets::SettableStatus,
}
