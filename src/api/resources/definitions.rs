//! Definitions as code: validating a definition without storing it, and its versions.

use std::collections::{BTreeMap, HashMap};

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    definition::{PlanBody, StepBody},
    tool_warnings,
    workflows::{
        save::{save_error, tagged},
        wire::{NewWorkflowBody, Workflow},
    },
};
use crate::{
    actions::{
        put_workflow::{self, RollBackError},
        save_workflow::{self, SaveWorkflowError},
    },
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        etag::IfMatch,
        extract::{JsonBody, WorkflowId},
        idempotency::{Key, replayed},
        parameters,
    },
    db::{self, agents::UnusableFallback, idempotency::ClaimError, workflows::WorkflowRow},
    input::{self, FieldError, Object, request_object, shorten},
    workflow::{self, Draft, NewWorkflow},
};

/// Version number in the plan of a dry run: the real number is known only when the definition is stored.
const DRY_RUN_VERSION: i32 = 1;

/// Result of validating a definition.
#[derive(Serialize, ToSchema)]
pub struct Validation {
    /// Whether it could be stored as it is; `errors` is empty then.
    valid: bool,
    /// Reasons why it could not be stored.
    errors: Vec<FieldError>,
    /// Warnings: valid members that are probably mistakes, such as references that no run can resolve, steps that
    /// never run, and members that are dropped.
    warnings: Vec<FieldError>,
    /// The plan in its normal form, as it would be stored for a new name. Null if there are errors in the definition
    /// itself; missing or inactive agents do not count here.
    #[schema(value_type = Option<PlanBody>)]
    workflow_data: Option<Box<RawValue>>,
    /// Structure of the definition; null if it cannot be read.
    summary: Option<Summary>,
}

/// Structure of a definition.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkflowSummary)]
pub struct Summary {
    /// Number of steps of each type.
    #[schema(example = json!({"agent": 3, "parallel": 1}))]
    steps: BTreeMap<&'static str, usize>,
    /// Number of steps.
    total_steps: usize,
    /// Names of the agents, in the order of their first occurrence.
    agents: Vec<String>,
    /// Nesting depth of containers; 1 without any container.
    depth: usize,
    /// The first step.
    start_step: String,
    /// The last steps of the main chain; empty if it does not end.
    end_steps: Vec<String>,
    /// Steps that cannot be reached from the start.
    unreachable_steps: Vec<String>,
}

impl From<workflow::Summary> for Summary {
    fn from(summary: workflow::Summary) -> Self {
        let workflow::Summary { start_step, steps, by_type, agents, depth, end_steps, unreachable_steps } = summary;
        Self { steps: by_type, total_steps: steps, agents, depth, start_step, end_steps, unreachable_steps }
    }
}

/// Validate a definition
///
/// Checks a definition like creating it would, and stores nothing. The status is 200 for valid and invalid
/// definitions.
#[utoipa::path(
    post, path = "/workflows/validate", tag = "workflows", request_body = NewWorkflowBody,
    responses(
        (status = 200, body = Validation),
        (status = 422, description = "The body is no JSON object", body = ErrorBody),
    ),
)]
pub async fn validate_workflow(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<Validation>, ApiError> {
    Object::body(body.raw())?;
    let (mut answer, valid) = body.read(&app, &caller, Validation::of).await?;
    if let Some(new) = valid {
        answer.errors = agent_errors(&app, &caller, &new).await?;
        let of_tools = tool_warnings::of_steps(&app, caller.organization(), new.content.steps()).await?;
        answer.warnings.extend(of_tools);
        answer.warnings.extend(fallback_warnings(&app, &caller, &new).await?);
        answer.warnings.truncate(input::MAX_ERRORS);
        answer.errors.extend(new.content.check_size(app.config.executor.run_budget.steps));
    }
    answer.valid = answer.errors.is_empty();
    Ok(Json(answer))
}

impl Validation {
    /// Validates without the database. Also returns the definition, if it is valid so far.
    fn of(body: &RawValue) -> (Self, Option<NewWorkflow>) {
        let mut answer =
            Self { valid: false, errors: Vec::new(), warnings: dropped(body), workflow_data: None, summary: None };
        let checked = Draft::parse(body).and_then(|draft| {
            answer.summary = Some(draft.summary().into());
            draft.checked()
        });
        match checked {
            Ok(new) => {
                answer.warnings.extend(new.content.warnings());
                answer.workflow_data = Some(new.content.new_plan(&new.name, DRY_RUN_VERSION));
                (answer, Some(new))
            }
            Err(errors) => (Self { errors, ..answer }, None),
        }
    }
}

/// A warning for each member of the body and of its steps that creating would drop.
fn dropped(body: &RawValue) -> Vec<FieldError> {
    let warn = |path: String| FieldError::new(path, "unknown_member", "The member is not known and will be dropped");
    let Ok(object) = Object::body(body) else { return Vec::new() };
    let mut warnings: Vec<_> = object.unknown(&Draft::MEMBERS).iter().map(|node| warn(node.path())).collect();
    warnings.extend(workflow::unknown_step_members(body).map(warn));
    warnings.truncate(input::MAX_ERRORS);
    warnings
}

/// An error for each step whose agent cannot be called.
async fn agent_errors(app: &App, caller: &Caller, new: &NewWorkflow) -> Result<Vec<FieldError>, ApiError> {
    let steps = new.content.steps();
    let mut connection = app.pool.acquire().await?;
    let unusable = save_workflow::unusable_agents(&mut connection, caller.organization(), steps).await?;
    let unusable: HashMap<_, _> = unusable.into_iter().collect();
    let errors = steps.iter().filter_map(|step| {
        let name = step.agent_name.as_deref()?;
        let field = format!("body.steps.{}.agent_name", step.id);
        Some(match unusable.get(name)? {
            None => FieldError::new(field, "agent_not_found", format!("Agent {:?} not found", shorten(name))),
            Some(status) => {
                let message = format!("Agent {:?} is {status}, not active", shorten(name));
                FieldError::new(field, "agent_not_active", message)
            }
        })
    });
    Ok(errors.take(input::MAX_ERRORS).collect())
}

/// A warning for each step whose agent names a fallback that cannot be called.
async fn fallback_warnings(app: &App, caller: &Caller, new: &NewWorkflow) -> Result<Vec<FieldError>, ApiError> {
    let steps = new.content.steps();
    let mut connection = app.pool.acquire().await?;
    let unusable = save_workflow::unusable_fallbacks(&mut connection, caller.organization(), steps).await?;
    let warnings = steps.iter().flat_map(|step| {
        let of_agent = unusable.iter().filter(move |found| step.agent_name.as_deref() == Some(found.agent.as_str()));
        of_agent.map(move |UnusableFallback { agent, fallback, status }| {
            let field = format!("body.steps.{}.agent_name", step.id);
            let named = format!("Agent {:?}, a fallback of {:?},", shorten(fallback), shorten(agent));
            match status {
                None => FieldError::new(field, "fallback_not_found", format!("{named} does not exist")),
                Some(status) => FieldError::new(field, "fallback_not_active", format!("{named} is {status}")),
            }
        })
    });
    Ok(warnings.take(input::MAX_ERRORS).collect())
}

/// Parameters of a path with several of them.
pub struct PathValues(HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for PathValues {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // Fails only for a text that is not UTF-8, which names no row.
        let values = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::workflow_not_found())?;
        Ok(Self(values.0.into_iter().collect()))
    }
}

impl PathValues {
    fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Id of the workflow.
    pub fn workflow_id(&self) -> Result<Uuid, ApiError> {
        Ok(input::path_uuid("workflow_id", self.text("workflow_id"))?)
    }

    /// Version number in this parameter.
    pub fn version(&self, name: &str) -> Result<i32, ApiError> {
        let version = self.text(name).parse().ok().filter(|version| *version >= 1);
        version.ok_or_else(|| {
            let message = "Input should be a valid version number, from 1";
            FieldError::new(format!("path.{name}"), "int_parsing", message).into()
        })
    }
}

fn no_such_version(version: i32) -> ApiError {
    ApiError::not_found("version_not_found", format!("The workflow has no version {version}"))
}

/// The version of the workflow with this id.
pub async fn version_of(app: &App, caller: &Caller, id: Uuid, version: i32) -> Result<WorkflowRow, ApiError> {
    let named =
        db::workflows::find(&app.pool, caller.organization(), id).await?.ok_or_else(ApiError::workflow_not_found)?;
    if named.version == version {
        return Ok(named);
    }
    let found = db::workflows::find_version(&app.pool, caller.organization(), &named.name, version).await?;
    found.ok_or_else(|| no_such_version(version))
}

/// Get a version of a workflow
///
/// Returns one version of the workflow's name. Deleted versions are included.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}/versions/{version}", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), ("version" = i32, Path, minimum = 1)),
    responses((status = 200, body = Workflow), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_workflow_version(
    State(app): State<App>,
    caller: Caller,
    path: PathValues,
) -> Result<Json<Workflow>, ApiError> {
    Ok(Json(version_of(&app, &caller, path.workflow_id()?, path.version("version")?).await?.into()))
}

/// Difference between two versions.
#[derive(Serialize, ToSchema)]
pub struct Comparison {
    /// Name that both share.
    name: String,
    /// The first version.
    from_version: i32,
    /// The second version.
    to_version: i32,
    /// Whether the content is the same. The exposure, the deadline and the silence are none of it.
    identical: bool,
    /// Change of the description; null if it is the same.
    description: Option<workflow::Change>,
    /// Change of the start step; null if it is the same.
    start_step: Option<workflow::Change>,
    /// Change of the limits of runs; null if they are the same.
    limits: Option<workflow::Change>,
    /// Change of the input schema; null if it is the same.
    input_schema: Option<workflow::Change>,
    /// Change of the exposure, which only the newest version has; null if it is the same.
    expose: Option<workflow::Change>,
    /// Change of the deadline of runs; null if it is the same.
    deadline_seconds: Option<workflow::Change>,
    /// Change of what happens to runs that miss it; null if it is the same.
    deadline_action: Option<workflow::Change>,
    /// Change of the silence that is watched; null if it is the same.
    silence_hours: Option<workflow::Change>,
    /// Differences of the steps.
    steps: StepComparison,
}

/// Steps that differ between two versions.
#[derive(Serialize, ToSchema)]
pub struct StepComparison {
    /// Steps that only the second version has, by id.
    #[schema(value_type = HashMap<String, StepBody>)]
    added: Box<RawValue>,
    /// Steps that only the first version has, by id.
    #[schema(value_type = HashMap<String, StepBody>)]
    removed: Box<RawValue>,
    /// Changed members by step id and member name, with both values.
    #[schema(value_type = HashMap<String, HashMap<String, workflow::Change>>)]
    changed: Box<RawValue>,
}

/// Compare two versions of a workflow
///
/// Lists the differences, from the first to the second.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}/versions/{version}/diff/{other}", tag = "workflows",
    params(
        ("workflow_id" = uuid::Uuid, Path), ("version" = i32, Path, minimum = 1, description = "The first version"),
        ("other" = i32, Path, minimum = 1, description = "The second version"),
    ),
    responses((status = 200, body = Comparison), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn compare_workflow_versions(
    State(app): State<App>,
    caller: Caller,
    path: PathValues,
) -> Result<Json<Comparison>, ApiError> {
    let (id, first, second) = (path.workflow_id()?, path.version("version")?, path.version("other")?);
    let before = version_of(&app, &caller, id, first).await?;
    let after = version_of(&app, &caller, id, second).await?;
    let diff = workflow::Diff::between(&before.workflow_data.0, &after.workflow_data.0);
    let text = |text: Option<&String>| text.map(input::to_raw);
    let description = workflow::Change::between(
        text(before.description.as_ref()).as_deref(),
        text(after.description.as_ref()).as_deref(),
    );
    let schema = |row: &WorkflowRow| row.input_schema.as_ref().map(|schema| schema.0.clone());
    let input_schema = workflow::Change::between(schema(&before).as_deref(), schema(&after).as_deref());
    let exposure = |row: &WorkflowRow| row.expose().map(input::to_raw);
    let expose = workflow::Change::between(exposure(&before).as_deref(), exposure(&after).as_deref());
    let number = |of: fn(&WorkflowRow) -> Option<i32>| {
        let text = |row| of(row).map(|number| input::to_raw(&number));
        workflow::Change::between(text(&before).as_deref(), text(&after).as_deref())
    };
    let action = |row: &WorkflowRow| row.watch.deadline_action.map(|action| input::to_raw(&action));
    let deadline_action = workflow::Change::between(action(&before).as_deref(), action(&after).as_deref());
    let deadline_seconds = number(|row| row.watch.deadline_seconds);
    let silence_hours = number(|row| row.watch.silence_hours);
    Ok(Json(Comparison {
        name: before.name,
        from_version: first,
        to_version: second,
        identical: diff.identical && description.is_none() && input_schema.is_none(),
        description,
        start_step: diff.start_step,
        limits: diff.limits,
        input_schema,
        expose,
        deadline_seconds,
        deadline_action,
        silence_hours,
        steps: StepComparison { added: diff.added, removed: diff.removed, changed: diff.changed },
    }))
}

request_object! {
    /// Body of a roll-back request.
    #[schema(as = RollBackRequest)]
    pub struct RollBackBody {
        /// Version whose content becomes the newest one.
        #[schema(value_type = i32, minimum = 1, example = 1)]
        version: i64 = required(|node| node.int(1..=i64::from(i32::MAX))),
    }
}

/// Roll a workflow back
///
/// Makes the content of an earlier version the newest one. This is an update: the id stays, the version number is
/// new, and the previous newest content remains as a version of its own.
#[utoipa::path(
    post, path = "/workflows/{workflow_id}/rollback", tag = "workflows",
    params(
        ("workflow_id" = uuid::Uuid, Path),
        parameters::IdempotencyKey,
        parameters::IfMatch,
    ),
    request_body = RollBackBody,
    responses(
        (status = 200, description = "The newest version; unchanged if it has this content already", body = Workflow,
            headers(("ETag" = String, description = "Entity tag of this version"))),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 412, description = "The workflow has changed since it was read", body = ErrorBody),
        (status = 400, description = "A step of that version names an agent that is not active", body = ErrorBody),
        (status = 404, description = "No such workflow, version, or agent", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn roll_back_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    key: Key,
    IfMatch(if_match): IfMatch,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = key.bound(&format!("roll back {id}"), &caller, body.fingerprint());
    let RollBackBody { version } = RollBackBody::read(&Object::body(body.raw())?)?;
    // The range fits.
    let version = i32::try_from(version).unwrap_or(i32::MAX);
    let context = caller.context(&app).with_key(key.as_ref()).with_if_match(if_match.as_ref());
    match put_workflow::roll_back(&app.pool, context, id, version).await {
        Ok(row) => {
            tracing::info!(target: "api.routes.workflows", workflow_id = %id, version, "Workflow rolled back");
            Ok(tagged(&app, row).await)
        }
        Err(RollBackError::Save(SaveWorkflowError::Key(ClaimError::Repeated(_)))) => {
            let row = db::workflows::find(&app.pool, caller.organization(), id).await?;
            let row = row.ok_or_else(ApiError::workflow_not_found)?;
            Ok(replayed(tagged(&app, row).await))
        }
        Err(RollBackError::NoSuchVersion(version)) => Err(no_such_version(version)),
        Err(RollBackError::Save(error)) => Err(save_error(error, StatusCode::NOT_FOUND)),
    }
}
