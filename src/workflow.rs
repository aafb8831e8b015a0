//! Workflow definitions: rules for creating and changing them, and the plan that is stored and sent for execution.
//!
//! A [`Content`] satisfies every rule of the contract's §3 except the existence of its agents, which needs the
//! database; [`Steps::agent_names`] returns their names. A [`Plan`] is the form from which a run is executed.

use serde::Serialize;
use serde_json::value::RawValue;

use self::step::Source;
use crate::{
    input::{ANY_LENGTH, FieldError, Node, Object, Patch, Read, keep, member, text, to_raw},
    retention,
    usage::Limits,
};

mod conversation;
mod diff;
mod expose;
mod flow;
pub mod graph;
mod input_schema;
mod plan;
mod reading;
mod references;
mod size;
mod step;
mod steps;
mod summary;
mod validate;
pub mod wait_config;
mod watch;

pub use conversation::{OnQuestion, QuestionConfig};
pub use diff::{Change, Diff};
pub use expose::{Expose, FIXED_TOOLS, Tool};
pub use flow::{Concurrency, ConcurrencyPolicy, Debounce, FlowControl, FlowKeys, FlowStage, Throttle, ThrottlePolicy};
pub use graph::Graph;
pub use input_schema::InputSchema;
pub use plan::{Plan, PlanError};
pub use step::{Branch, Callee, Condition, ForkJoinConfig, LoopConfig, Step, StepKind};
pub use steps::Steps;
pub use summary::Summary;
pub use watch::{Deadline, DeadlineAction, Watch, WatchPatch, read_deadline};

/// Length of a workflow's name, as in its column.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=255;

/// Status of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkflowStatus {
    /// The definition may be executed.
    Active,
    /// Its owner has deactivated it.
    Inactive,
    /// It was deleted; its runs still refer to it.
    Deleted,
}

impl WorkflowStatus {
    /// All statuses.
    pub const ALL: [Self; 3] = [Self::Active, Self::Inactive, Self::Deleted];

    /// Text in the `status` column and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Deleted => "deleted",
        }
    }

    /// Parses a status in lower case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Reads a status that a caller may set; deleting has its own route.
    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| {
            Self::parse(&name.to_lowercase())
                .filter(|status| *status != Self::Deleted)
                .ok_or_else(|| "must be one of active, inactive".to_owned())
        })
    }
}

/// Workflow to create, as the first or a new version of its name.
#[derive(Clone, Debug)]
pub struct NewWorkflow {
    /// Name, shared by all versions.
    pub name: String,
    /// Description for users.
    pub description: Option<String>,
    /// Content of the workflow.
    pub content: Content,
    /// JSON Schema for the input of runs, which was compiled once as a check.
    pub input_schema: Option<Box<RawValue>>,
    /// Days for which its ended runs are kept; 0: for ever; `None`: the organisation's value.
    pub retention_days: Option<i32>,
    /// Exposure by other protocols; `None`: there is none.
    pub expose: Option<Expose>,
    /// What is watched of its runs.
    pub watch: Watch,
    /// Flow control; `None`: there is none.
    pub flow: Option<FlowControl>,
}

impl NewWorkflow {
    /// Parses and validates the body of a create request.
    pub fn parse(body: &RawValue) -> Read<Self> {
        Draft::parse(body)?.checked()
    }
}

/// Workflow with valid members. The rules between its steps are not checked yet.
#[derive(Clone, Debug)]
pub struct Draft {
    name: String,
    description: Option<String>,
    start_step: String,
    steps: Steps,
    limits: Option<Limits>,
    input_schema: Option<Box<RawValue>>,
    retention_days: Option<i32>,
    expose: Option<Expose>,
    watch: Watch,
    flow: Option<FlowControl>,
}

impl Draft {
    /// Members that [`Draft::parse`] reads.
    pub const MEMBERS: [&'static str; 14] = [
        "name",
        "description",
        "start_step",
        "steps",
        "limits",
        "input_schema",
        "retention_days",
        "expose",
        Watch::MEMBERS[0],
        Watch::MEMBERS[1],
        Watch::MEMBERS[2],
        "debounce",
        "throttle",
        "concurrency",
    ];

    /// Parses the members of a create request.
    pub fn parse(body: &RawValue) -> Read<Self> {
        let body = Object::body(body)?;
        let mut errors = Vec::new();
        let name = body.required("name", &mut errors, |node| node.not_blank(NAME_CHARS));
        Self::read(&body, name, errors)
    }

    /// Parses the other members of a create request when the name comes from elsewhere.
    pub fn named(name: &Node<'_>, body: &Object<'_>) -> Read<Self> {
        let mut errors = Vec::new();
        let name = keep(name.not_blank(NAME_CHARS), &mut errors);
        Self::read(body, name, errors)
    }

    fn read(body: &Object<'_>, name: Option<String>, mut errors: Vec<FieldError>) -> Read<Self> {
        let description = body.nullable("description", &mut errors, |node| node.string(ANY_LENGTH));
        let start_step = body.required("start_step", &mut errors, read_start_step);
        let steps = body.required("steps", &mut errors, read_steps);
        let limits = body.nullable("limits", &mut errors, Limits::read).and_then(Limits::unless_empty);
        let input_schema = body.nullable("input_schema", &mut errors, input_schema::read);
        let retention_days = body.nullable("retention_days", &mut errors, retention::read_days);
        let expose = body.nullable("expose", &mut errors, Expose::read).and_then(Expose::unless_empty);
        let watch = Watch::read(body, &mut errors);
        if let (Some(name), Some(expose)) = (&name, &expose) {
            keep(expose.check(name), &mut errors);
        }
        let flow = FlowControl {
            debounce: body.nullable("debounce", &mut errors, Debounce::read),
            throttle: body.nullable("throttle", &mut errors, Throttle::read),
            concurrency: body.nullable("concurrency", &mut errors, Concurrency::read),
        };
        let flow = flow.unless_empty();
        match (name, start_step, steps) {
            (Some(name), Some(start_step), Some(steps)) if errors.is_empty() => Ok(Self {
                name,
                description,
                start_step,
                steps,
                limits,
                input_schema,
                retention_days,
                expose,
                watch,
                flow,
            }),
            _ => Err(errors),
        }
    }

    /// Summary of the steps, valid or not.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary::of(&self.start_step, &self.steps)
    }

    /// Graph of the steps, valid or not.
    #[must_use]
    pub fn graph(&self) -> Graph {
        Graph::of(&self.start_step, &self.steps, &std::collections::HashMap::new())
    }

    /// Checks the rules that need all steps.
    pub fn checked(self) -> Read<NewWorkflow> {
        let Self { name, description, start_step, steps, limits, input_schema, retention_days, expose, watch, flow } =
            self;
        let content = Content::checked(start_step, steps, limits)?.without_unknown_steps()?;
        Ok(NewWorkflow { name, description, content, input_schema, retention_days, expose, watch, flow })
    }
}

/// Changes of a workflow. `None` and [`Patch::Absent`] mean no change.
#[derive(Clone, Debug, Default)]
pub struct WorkflowPatch {
    /// Description for users.
    pub description: Patch<String>,
    /// Stored only through [`WorkflowPatch::merge`]; null means absent.
    pub start_step: Option<String>,
    /// Stored only through [`WorkflowPatch::merge`]; null means absent.
    pub steps: Option<Steps>,
    /// Limits of its runs; other ones make a new version.
    pub limits: Patch<Limits>,
    /// Schema for the input of runs; another one makes a new version.
    pub input_schema: Patch<Box<RawValue>>,
    /// Days for which ended runs are kept; no part of the content.
    pub retention_days: Patch<i32>,
    /// Exposure by other protocols; no part of the content.
    pub expose: Patch<Expose>,
    /// What is watched of its runs; no part of the content.
    pub watch: WatchPatch,
    /// Starts in a row of which the last one counts; no part of the content.
    pub debounce: Patch<Debounce>,
    /// Rate at which runs start; no part of the content.
    pub throttle: Patch<Throttle>,
    /// Limit of the runs under way; no part of the content.
    pub concurrency: Patch<Concurrency>,
    /// Status, active or inactive.
    pub status: Option<WorkflowStatus>,
}

/// Patch with the whole content, the description, the retention, the exposure, what is watched and the flow control.
impl From<NewWorkflow> for WorkflowPatch {
    fn from(new: NewWorkflow) -> Self {
        let Content { start_step, steps, limits } = new.content;
        let flow = new.flow.unwrap_or_default();
        Self {
            description: new.description.map_or(Patch::Null, Patch::Value),
            start_step: Some(start_step),
            steps: Some(steps),
            limits: limits.map_or(Patch::Null, Patch::Value),
            input_schema: new.input_schema.map_or(Patch::Null, Patch::Value),
            retention_days: new.retention_days.map_or(Patch::Null, Patch::Value),
            expose: new.expose.map_or(Patch::Null, Patch::Value),
            watch: new.watch.into(),
            debounce: flow.debounce.map_or(Patch::Null, Patch::Value),
            throttle: flow.throttle.map_or(Patch::Null, Patch::Value),
            concurrency: flow.concurrency.map_or(Patch::Null, Patch::Value),
            status: None,
        }
    }
}

impl WorkflowPatch {
    /// Flow control after the update of a workflow with this one.
    #[must_use]
    pub fn flow(&self, current: Option<&FlowControl>) -> Option<FlowControl> {
        let current = current.cloned().unwrap_or_default();
        let flow = FlowControl {
            debounce: self.debounce.clone().or(current.debounce),
            throttle: self.throttle.clone().or(current.throttle),
            concurrency: self.concurrency.clone().or(current.concurrency),
        };
        flow.unless_empty()
    }

    /// Parses the body of an update request. [`WorkflowPatch::merge`] checks start and steps.
    pub fn parse(body: &RawValue) -> Read<Self> {
        let body = Object::body(body)?;
        let mut errors = Vec::new();
        let patch = Self {
            description: body.patch("description", &mut errors, |node| node.string(ANY_LENGTH)),
            start_step: body.nullable("start_step", &mut errors, read_start_step),
            steps: body.nullable("steps", &mut errors, read_steps),
            limits: body.patch("limits", &mut errors, Limits::read),
            input_schema: body.patch("input_schema", &mut errors, input_schema::read),
            retention_days: body.patch("retention_days", &mut errors, retention::read_days),
            expose: body.patch("expose", &mut errors, Expose::read),
            watch: WatchPatch::read(&body, &mut errors),
            debounce: body.patch("debounce", &mut errors, Debounce::read),
            throttle: body.patch("throttle", &mut errors, Throttle::read),
            concurrency: body.patch("concurrency", &mut errors, Concurrency::read),
            status: body.patch_not_null("status", &mut errors, WorkflowStatus::read),
        };
        if errors.is_empty() { Ok(patch) } else { Err(errors) }
    }

    /// Content after the update of a workflow with this stored plan. `None`: the content, and with it the version, is
    /// unchanged.
    pub fn merge(&self, stored: &RawValue) -> Read<Option<Content>> {
        let (start_step, steps, limits) = match (&self.start_step, &self.steps, self.limits.clone()) {
            (None, None, Patch::Absent) => return Ok(None),
            (Some(start_step), Some(steps), limits) if !limits.is_absent() => {
                (start_step.clone(), steps.clone(), limits.or(None))
            }
            // An old stored plan may be unreadable as long as it is not needed.
            (Some(start_step), Some(steps), _) => (start_step.clone(), steps.clone(), Plan::limits_of(stored)),
            (start_step, steps, limits) => {
                let stored = Plan::parse(stored);
                let stored = stored.map_err(|error| vec![FieldError::rule("body", format!("stored plan: {error}"))])?;
                let limits = limits.or(stored.limits).and_then(Limits::unless_empty);
                if start_step.is_none() && steps.is_none() && limits == stored.limits {
                    return Ok(None);
                }
                let start_step = start_step.clone().unwrap_or(stored.start_step);
                (start_step, steps.clone().unwrap_or(stored.steps), limits)
            }
        };
        let content = Content::checked(start_step, steps, limits.and_then(Limits::unless_empty))?;
        if self.steps.is_some() { content.without_unknown_steps().map(Some) } else { Ok(Some(content)) }
    }
}

fn read_start_step(node: &Node<'_>) -> Read<String> {
    node.not_blank(1..=usize::MAX)
}

fn read_steps(node: &Node<'_>) -> Read<Steps> {
    Steps::read(node, Source::Caller)
}

/// Content of a workflow: steps and start. Valid except for the existence of its agents.
#[derive(Clone, Debug)]
pub struct Content {
    start_step: String,
    steps: Steps,
    limits: Option<Limits>,
}

impl Content {
    fn checked(start_step: String, steps: Steps, limits: Option<Limits>) -> Read<Self> {
        validate::definition(&start_step, &steps).map_err(|text| vec![FieldError::rule("body", text)])?;
        Ok(Self { start_step, steps, limits })
    }

    /// Id of the first step.
    #[must_use]
    pub fn start_step(&self) -> &str {
        &self.start_step
    }

    /// All steps.
    #[must_use]
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Limits of its runs.
    #[must_use]
    pub fn limits(&self) -> Option<&Limits> {
        self.limits.as_ref()
    }

    /// Returns an error if every run of it would exceed the step limit, whatever its input is.
    #[must_use]
    pub fn check_size(&self, max_run_steps: u64) -> Option<FieldError> {
        let least = size::least_rows(&self.start_step, &self.steps);
        (least > max_run_steps).then(|| {
            let least = if least == u64::MAX { "far too many".to_owned() } else { format!("at least {least}") };
            let message =
                format!("A run would execute {least} steps, and the limit is {max_run_steps} (MAX_RUN_STEPS)");
            FieldError::new("body.steps", "too_many_steps", message)
        })
    }

    /// Warnings about valid but useless parts: references that never resolve, steps that never run. In the order of the
    /// steps, up to the maximum number of errors in an answer.
    #[must_use]
    pub fn warnings(&self) -> Vec<FieldError> {
        references::warnings(&self.start_step, &self.steps)
    }

    /// Fails if a step references the output of a step that does not exist. Stored plans may do so, since the reference
    /// accepts it.
    fn without_unknown_steps(self) -> Read<Self> {
        let errors = references::unknown_steps(&self.steps);
        if errors.is_empty() { Ok(self) } else { Err(errors) }
    }

    /// Content of a stored plan, if it is still valid.
    pub fn of_plan(plan: &RawValue) -> Read<Self> {
        let plan =
            Plan::parse(plan).map_err(|error| vec![FieldError::rule("body", format!("stored plan: {error}"))])?;
        Self::checked(plan.start_step, plan.steps, plan.limits)
    }

    /// Plan to store for a new row; its `workflow_id` is built from name and version.
    #[must_use]
    pub fn new_plan(&self, name: &str, version: i32) -> Box<RawValue> {
        self.plan(&format!("wf-{name}-{version}"), name, version)
    }

    /// Plan to store for a row that keeps its `workflow_id`.
    #[must_use]
    pub fn plan(&self, workflow_id: &str, name: &str, version: i32) -> Box<RawValue> {
        #[derive(Serialize)]
        struct StoredPlan<'a> {
            workflow_id: &'a str,
            name: &'a str,
            version: String,
            start_step: &'a str,
            steps: &'a Steps,
            #[serde(skip_serializing_if = "Option::is_none")]
            limits: Option<&'a Limits>,
        }
        let (start_step, steps, limits) = (self.start_step.as_str(), &self.steps, self.limits.as_ref());
        to_raw(&StoredPlan { workflow_id, name, version: version.to_string(), start_step, steps, limits })
    }
}

/// Paths of unknown members of steps, given the body of a create request, valid or not.
pub fn unknown_step_members(body: &RawValue) -> impl Iterator<Item = String> {
    let steps = member(body, "steps").and_then(|steps| Node::new("body.steps", steps).map().ok());
    steps.into_iter().flatten().flat_map(|(_, step)| {
        let unknown = step.object().map(|step| step.unknown(&Step::MEMBERS)).unwrap_or_default();
        unknown.into_iter().map(|node| node.path())
    })
}

/// `workflow_id` of a stored plan, which updates keep; `None` if the plan has none.
#[must_use]
pub fn plan_workflow_id(plan: &RawValue) -> Option<String> {
    member(plan, "workflow_id").and_then(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    const AGENT: &str = r#"{"id":"a","agent_name":"x","input_mapping":{}}"#;

    /// The `field kind` of each error of a create request with these members, in order.
    fn check(body: &str, expected: &[&str]) {
        let errors = NewWorkflow::parse(raw(body)).err().unwrap_or_default();
        let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
        assert_eq!(found, expected, "{body}");
    }

    #[test]
    fn names_and_start_are_neither_absent_nor_blank() {
        let with =
            |name: &str, start: &str| format!(r#"{{"name":{name},"start_step":{start},"steps":{{"a":{AGENT}}}}}"#);
        check(&with(r#""n""#, r#""a""#), &[]);
        check(&with(r#""""#, r#""""#), &["body.name string_too_short", "body.start_step string_too_short"]);
        check(&with(r#"" ""#, r#""\t""#), &["body.name value_error", "body.start_step value_error"]);
        check(&with("1", "null"), &["body.name string_type", "body.start_step string_type"]);
        check(&with(&format!("\"{}\"", "é".repeat(256)), r#""a""#), &["body.name string_too_long"]);
        check(&with(r#""n""#, r#""b""#), &["body value_error"]);
        check("{}", &["body.name missing", "body.start_step missing", "body.steps missing"]);
        check("null", &["body missing"]);
        check(r#"{"name":"n","start_step":"a","steps":{}}"#, &["body.steps too_short"]);
        check(r#"{"name":"n","start_step":"a","steps":[]}"#, &["body.steps dict_type"]);
        check(r#"{"name":"n","start_step":"a","steps":{"a":1}}"#, &["body.steps.a model_attributes_type"]);
        check(
            r#"{"name":"n","description":1,"start_step":"a"}"#,
            &["body.description string_type", "body.steps missing"],
        );
    }

    #[test]
    fn a_definition_rule_waits_for_the_members() {
        let body = r#"{"name":"n","start_step":"nowhere","steps":{"a":{"id":"a","agent_name":1}}}"#;
        check(body, &["body.steps.a.agent_name string_type"]);
    }

    #[test]
    fn the_stored_plan_has_every_member_and_the_callers_values() {
        let body = r#"{"name":"define","start_step":"s","workflow_id":"mine","version":9,"steps":{
            "s":{"next_step":"t","id":"s","agent_name":"g","note":1,
                 "input_mapping":{"n":123456789012345678901234567890,"t":"${workflow.input.t}","o":{ "a" : 1 }}},
            "t":{"id":"t","type":null,"agent_name":"p","input_mapping":{},"next_step":null}}}"#;
        let new = NewWorkflow::parse(raw(body)).expect("valid");
        let rest = concat!(
            r#""parallel_steps":null,"max_parallelism":null,"condition":null,"if_true_step":null,"#,
            r#""if_false_step":null,"loop_config":null,"fork_join_config":null}"#
        );
        let expected = [
            r#"{"workflow_id":"wf-define-3","name":"define","version":"3","start_step":"s","steps":{"#,
            r#""s":{"id":"s","type":"agent","agent_name":"g","next_step":"t","input_mapping":{"#,
            r#""n":123456789012345678901234567890,"t":"${workflow.input.t}","o":{ "a" : 1 }},"#,
            rest,
            r#","t":{"id":"t","type":"agent","agent_name":"p","next_step":null,"input_mapping":{},"#,
            rest,
            "}}",
        ];
        assert_eq!(new.content.new_plan("define", 3).get(), expected.concat());
        let kept = new.content.plan("wf-define-1", "define", 4);
        assert_eq!(plan_workflow_id(&kept).as_deref(), Some("wf-define-1"));
        assert!(kept.get().contains(r#""version":"4""#));
        assert_eq!(new.content.steps().agent_names(), ["g", "p"]);
    }

    #[test]
    fn containers_are_stored_with_their_defaults() {
        let body = r#"{"name":"n","start_step":"l","steps":{
            "l":{"id":"l","type":"loop","next_step":"f","agent_name":null,"loop_config":{"collection":"${workflow.input.i}",
                 "loop_body":["a"],"execution_mode":null,"on_error":null}},
            "f":{"id":"f","type":"fork_join","next_step":"c","fork_join_config":{"branches":{"x":{"steps":["a"]},"y":{"steps":["a"]}}}},
            "c":{"id":"c","type":"conditional","condition":{"expression":"1 == 1"},"if_true_step":"a","if_false_step":""},
            "a":{"id":"a","agent_name":"x","input_mapping":{}}}}"#;
        let plan = NewWorkflow::parse(raw(body)).expect("valid").content.new_plan("n", 1);
        for part in [
            concat!(
                r#""loop_config":{"collection":"${workflow.input.i}","loop_body":["a"],"execution_mode":"sequential","#,
                r#""max_parallelism":null,"max_iterations":null,"on_error":"stop"}"#
            ),
            concat!(
                r#""fork_join_config":{"branches":{"x":{"steps":["a"],"timeout_seconds":null},"#,
                r#""y":{"steps":["a"],"timeout_seconds":null}},"join_policy":"all","n_required":null,"#,
                r#""branch_timeout_seconds":null}"#
            ),
            r#""condition":{"expression":"1 == 1","operator":null},"if_true_step":"a","if_false_step":"""#,
        ] {
            assert!(plan.get().contains(part), "{part} is not in {plan}");
        }
        assert!(Plan::parse(&plan).is_ok());
    }

    #[test]
    fn an_update_is_validated_with_what_is_stored() {
        let stored = format!(r#"{{"name":"n","start_step":"a","steps":{{"a":{AGENT}}}}}"#);
        let check = |body: &str, expected: Result<Option<&str>, &str>| {
            let merged = WorkflowPatch::parse(raw(body)).expect(body).merge(raw(&stored));
            let merged = merged.map(|content| content.map(|content| content.start_step)).map_err(|errors| {
                assert_eq!(errors.len(), 1);
                errors[0].field.clone()
            });
            let expected = expected.map(|start| start.map(ToOwned::to_owned)).map_err(ToOwned::to_owned);
            assert_eq!(merged, expected, "{body}");
        };
        let b = AGENT.replace(r#""a""#, r#""b""#);
        check("{}", Ok(None));
        check(r#"{"start_step":null,"steps":null,"status":"INACTIVE"}"#, Ok(None));
        check(r#"{"start_step":"a"}"#, Ok(Some("a")));
        check(r#"{"start_step":"b"}"#, Err("body"));
        check(&format!(r#"{{"steps":{{"b":{b}}}}}"#), Err("body"));
        check(&format!(r#"{{"steps":{{"a":{AGENT}}}}}"#), Ok(Some("a")));
        check(&format!(r#"{{"start_step":"b","steps":{{"b":{b}}}}}"#), Ok(Some("b")));
        for bad in [r#"{"status":null}"#, r#"{"status":"deleted"}"#, r#"{"steps":{}}"#, r#"{"start_step":""}"#, "null"]
        {
            assert!(WorkflowPatch::parse(raw(bad)).is_err(), "{bad}");
        }
        let patch = WorkflowPatch::parse(raw(r#"{"start_step":"a"}"#)).expect("valid");
        assert!(patch.merge(raw(r#"{"steps":7}"#)).is_err());
    }
}
