//! Testing a workflow without calling agents: a run with mocked answers in virtual time, of which nothing is stored.

pub mod load;
pub mod wire;

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use http::header;
use serde_json::value::RawValue;

use self::{
    load::Loaded,
    wire::{DefinitionTestBody, MockBody, Prepared, TestReport},
};
use crate::{
    actions::start_run::unusable_schema,
    api::{
        resources::definitions::version_of,
        vocabulary::{
            app::App,
            caller::Caller,
            error::{ApiError, ErrorBody},
            extract::{JsonBody, WorkflowId},
            sets,
            streamed::JSON,
        },
    },
    db,
    executor::{Limits, MissingMock, Mocks, Settings, Simulation, simulate},
    input::{FieldError, Node, Object, Read, request_object, to_raw},
    offload::SMALL_BYTES,
    workflow::{InputSchema, NewWorkflow, Plan, wait_config::instant},
};

/// Limits of a test.
const LIMITS: Limits = Limits {
    attempts: 10_000,
    cpu: Duration::from_secs(2),
    time: Duration::from_hours(100 * 365 * 24),
    memory: 64 << 20,
    value_bytes: 64 << 10,
    shown_bytes: 4 << 20,
};

request_object! {
    /// Body of a request to test a workflow.
    #[schema(as = TestWorkflowRequest, example = json!({
        "input_data": {"text": "hello"},
        "mocks": {"shout": {"output": {"text": "HELLO"}}},
    }))]
    pub struct TestBody: deny_unknown_fields {
        /// Version to test; absent means the version of the id.
        #[schema(value_type = Option<i32>, minimum = 1)]
        version: Option<i64> = nullable(|node| node.int(1..=i64::from(i32::MAX))),
        /// Input of the run, as for executing the workflow.
        #[schema(value_type = HashMap<String, Value>)]
        input_data: Box<RawValue> = required(Node::free_object),
        /// Mocks of the answers to the steps, by step id.
        #[schema(value_type = Option<HashMap<String, MockBody>>)]
        mocks: Option<Mocks> = nullable(Mocks::read),
        /// Answer to a step that calls an agent and has no mock; the default is `echo`.
        #[schema(value_type = Option<sets::MissingMock>)]
        missing_mocks: Option<MissingMock> = nullable(read_missing),
        /// Time at which the run begins; the default is the present time.
        #[schema(value_type = Option<String>, format = DateTime, example = "2026-02-03T09:00:00Z")]
        start_time: Option<DateTime<Utc>> = nullable(|node| node.parsed(instant)),
    }
}

/// Members of both requests.
struct TestRequest {
    input_data: Box<RawValue>,
    mocks: Option<Mocks>,
    missing_mocks: Option<MissingMock>,
    start_time: Option<DateTime<Utc>>,
}

fn read_missing(node: &Node<'_>) -> Read<MissingMock> {
    node.parsed(|name| {
        let names = || MissingMock::ALL.map(MissingMock::as_str).join(", ");
        let found = MissingMock::ALL.into_iter().find(|missing| missing.as_str() == name);
        found.ok_or_else(|| format!("must be one of {}", names()))
    })
}

/// Test a workflow without calling agents
///
/// Executes the workflow with mocked answers in virtual time, by the code that executes runs. Nothing is stored or sent,
/// and no agent is called. Flow control is ignored: no tested run waits, or makes others wait. The status is 200 however
/// the tested run ends.
#[utoipa::path(
    post, path = "/workflows/{workflow_id}/test", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path)),
    request_body = TestBody,
    responses(
        (status = 200, body = TestReport),
        (status = 404, description = "No such workflow or version", body = ErrorBody),
        (status = 422, description = "Not valid, or the input breaks the workflow's `input_schema`", body = ErrorBody),
        (status = 503, description = "The database is unavailable, or too many tests are waiting", body = ErrorBody),
    ),
)]
pub async fn test_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let body = body.read(&app, &caller, |body| TestBody::read(&Object::body(body)?)).await??;
    let row = if let Some(version) = body.version.and_then(|version| i32::try_from(version).ok()) {
        version_of(&app, &caller, id, version).await?
    } else {
        let found = db::workflows::find(&app.pool, caller.organization(), id).await?;
        found.ok_or_else(ApiError::workflow_not_found)?
    };
    let TestBody { input_data, mocks, missing_mocks, start_time, .. } = body;
    let test = Test {
        plan: row.workflow_data.0,
        input_schema: row.input_schema.map(|schema| schema.0),
        request: TestRequest { input_data, mocks, missing_mocks, start_time },
        warnings: Vec::new(),
    };
    test.answer(&app, &caller).await
}

/// Test a definition without calling agents
///
/// The same as testing a stored workflow, for a definition that is not stored. Its agents need not exist.
#[utoipa::path(
    post, path = "/workflows/test", tag = "workflows",
    request_body = DefinitionTestBody,
    responses(
        (status = 200, body = TestReport),
        (status = 422, description = "Not valid, or the input breaks the definition's `input_schema`", body = ErrorBody),
        (status = 503, description = "The database is unavailable, or too many tests are waiting", body = ErrorBody),
    ),
)]
pub async fn test_definition(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Response, ApiError> {
    let test = body.read(&app, &caller, Test::of_definition).await??;
    test.answer(&app, &caller).await
}

/// Test of a workflow.
struct Test {
    plan: Box<RawValue>,
    input_schema: Option<Box<RawValue>>,
    request: TestRequest,
    warnings: Vec<FieldError>,
}

/// Version number in the plan of a definition that is not stored.
const UNSTORED_VERSION: i32 = 1;

impl Test {
    fn of_definition(body: &RawValue) -> Read<Self> {
        let object = Object::body(body)?;
        let mut errors = Vec::new();
        object.only(&["definition", "input_data", "mocks", "missing_mocks", "start_time"], &mut errors);
        let definition =
            object.required("definition", &mut errors, |node| NewWorkflow::parse(node.raw()).map_err(within));
        let input_data = object.required("input_data", &mut errors, Node::free_object);
        let mocks = object.nullable("mocks", &mut errors, Mocks::read);
        let missing_mocks = object.nullable("missing_mocks", &mut errors, read_missing);
        let start_time = object.nullable("start_time", &mut errors, |node| node.parsed(instant));
        match (definition, input_data) {
            (Some(definition), Some(input_data)) if errors.is_empty() => {
                let request = TestRequest { input_data, mocks, missing_mocks, start_time };
                let NewWorkflow { name, content, input_schema, .. } = definition;
                let warnings = within(content.warnings());
                Ok(Self { plan: content.new_plan(&name, UNSTORED_VERSION), input_schema, request, warnings })
            }
            _ => Err(errors),
        }
    }

    async fn answer(self, app: &App, caller: &Caller) -> Result<Response, ApiError> {
        let Self { plan, input_schema, request, warnings } = self;
        let start_time = request.start_time.unwrap_or_else(|| app.clock.now());
        let plan = match parse_plan(app, caller, plan).await? {
            Ok(plan) => Arc::new(plan),
            // A run of it would fail in the same way.
            Err(cause) => {
                let report = TestReport::of_invalid_plan(&cause, start_time, warnings);
                return Ok(json(to_raw(&report).get().to_owned()));
            }
        };
        let Loaded { definitions, agents, warnings: of_agents } = load::load(app, caller, &plan).await?;
        let TestRequest { input_data: input, mocks, missing_mocks, .. } = request;
        let simulation = Simulation {
            organization: caller.organization().clone(),
            plan,
            input,
            mocks: Arc::new(mocks.unwrap_or_default()),
            recording: None,
            missing: missing_mocks.unwrap_or_default(),
            start_time,
            agents,
            definitions,
            settings: settings(app),
            limits: LIMITS,
        };
        let prepared = Prepared { start_time, warnings: [warnings, of_agents].concat() };
        let work = move || check_and_simulate(input_schema.as_deref(), simulation, prepared);
        let text = app.simulations.run_soon(caller.organization(), work).await??;
        Ok(json(text))
    }
}

/// Answer with this JSON.
#[must_use]
pub fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, JSON)], text).into_response()
}

/// Checks the input by the workflow's schema, and executes the simulation. Returns the answer.
fn check_and_simulate(input_schema: Option<&RawValue>, simulation: Simulation, prepared: Prepared) -> Read<String> {
    if let Some(schema) = input_schema {
        InputSchema::compile(schema).map_err(|text| unusable_schema(&text))?.check(&simulation.input)?;
    }
    let report = TestReport::new(simulate(simulation), prepared);
    Ok(to_raw(&report).get().to_owned())
}

/// Parses a plan, on another thread if it is large.
pub async fn parse_plan(app: &App, caller: &Caller, plan: Box<RawValue>) -> Result<Result<Plan, String>, ApiError> {
    let is_small = plan.get().len() <= SMALL_BYTES;
    let parse = move || Plan::parse(&plan).map_err(|error| format!("the workflow plan cannot be executed: {error}"));
    if is_small { Ok(parse()) } else { Ok(app.simulations.run_soon(caller.organization(), parse).await?) }
}

/// Settings of the executors, which are those of this process.
#[must_use]
pub fn settings(app: &App) -> Settings {
    Settings {
        callbacks_url: app.config.api.callbacks_url(),
        max_run_duration: app.config.executor.max_run_duration,
        run_budget: app.config.executor.run_budget,
    }
}

/// The errors of a definition inside of a body.
fn within(errors: Vec<FieldError>) -> Vec<FieldError> {
    let field = |field: &str| match field.strip_prefix("body") {
        Some(rest) => format!("body.definition{rest}"),
        None => field.to_owned(),
    };
    errors.into_iter().map(|error| FieldError { field: field(&error.field), ..error }).collect()
}
