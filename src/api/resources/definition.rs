//! OpenAPI schemas of a definition's steps: what `workflow::Step` reads, member by member.

#![expect(dead_code, reason = "describes what `workflow::Step` reads, which is independent of OpenAPI")]

use std::{borrow::Cow, collections::HashMap};

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Discriminator, ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema, Type},
};

use crate::{api::vocabulary::sets, workflow::StepKind};

type Named = (String, RefOr<Schema>);

/// Steps by id. At least one is required, which a derived schema cannot express.
pub struct StepsBody;

impl PartialSchema for StepsBody {
    fn schema() -> RefOr<Schema> {
        let steps = map_of::<StepBody>(1).description(Some("Steps by id."));
        Schema::from(steps).into()
    }
}

impl ToSchema for StepsBody {
    fn name() -> Cow<'static, str> {
        "Steps".into()
    }

    fn schemas(schemas: &mut Vec<Named>) {
        schemas.push((StepBody::name().into_owned(), StepBody::schema()));
        StepBody::schemas(schemas);
    }
}

/// Branches by name. At least two are required.
pub struct BranchesBody;

impl PartialSchema for BranchesBody {
    fn schema() -> RefOr<Schema> {
        Schema::from(map_of::<BranchBody>(2).description(Some("Branches by name."))).into()
    }
}

impl ToSchema for BranchesBody {
    fn name() -> Cow<'static, str> {
        "Branches".into()
    }

    fn schemas(schemas: &mut Vec<Named>) {
        schemas.push((BranchBody::name().into_owned(), BranchBody::schema()));
    }
}

fn map_of<T: ToSchema>(at_least: usize) -> ObjectBuilder {
    let values = Ref::from_schema_name(T::name());
    ObjectBuilder::new().additional_properties(Some(values)).min_properties(Some(at_least))
}

/// Step of a workflow, by its `type`.
pub struct StepBody;

impl PartialSchema for StepBody {
    fn schema() -> RefOr<Schema> {
        let mut steps = OneOfBuilder::new();
        let mut discriminator = Discriminator::new("type");
        for (kind, name) in STEPS {
            let step = Ref::from_schema_name(name);
            discriminator.mapping.insert(kind.as_str().to_owned(), step.ref_location.clone());
            steps = steps.item(step);
        }
        let description = "A step of a workflow, by its `type`: `agent` if it is absent. Members that the type does not use \
                           are kept and ignored.";
        Schema::from(steps.discriminator(Some(discriminator)).description(Some(description))).into()
    }
}

impl ToSchema for StepBody {
    fn name() -> Cow<'static, str> {
        "StepDefinition".into()
    }

    fn schemas(schemas: &mut Vec<Named>) {
        add_steps(schemas);
    }
}

/// Defines a schema for each type of step, with the common members and its own.
macro_rules! steps {
    ($($(#[$about:meta])+ $name:ident($kind:ident): $(#[$optional:meta])? $type:ty { $($own:tt)* })+) => {
        $(
            #[derive(ToSchema)]
            $(#[$about])+
            pub struct $name {
                /// Id, equal to the step's key: letters, digits, hyphens and underscores.
                #[schema(min_length = 1, max_length = 255, pattern = r"^[^\s!-,./:-@\[-^`{-~]+$")]
                id: String,
                /// Type of the step.
                $(#[$optional])?
                r#type: $type,
                /// Id of the next step; null ends the chain.
                next_step: Option<String>,
                /// Time-out of the step in seconds, including all attempts and inner steps; for a `callback` the time
                /// within which it can be answered.
                #[schema(minimum = 1, maximum = 315_576_000)]
                timeout_seconds: Option<i64>,
                $($own)*
                /// Members of other types of step.
                #[serde(flatten)]
                others: HashMap<String, serde_json::Value>,
            }
        )+

        /// Schema of each type of step.
        const STEPS: [(StepKind, &str); StepKind::ALL.len()] = [$((StepKind::$kind, stringify!($name))),+];

        fn add_steps(schemas: &mut Vec<Named>) {
            $(
                schemas.push((stringify!($name).to_owned(), $name::schema()));
                $name::schemas(schemas);
            )+
        }
    };
}

steps! {
    /// Calls an agent.
    // The minimum is the number of required members. Without it, Redocly reports the optional `type` as an error.
    #[schema(min_properties = 3)]
    AgentStep(Agent): #[schema(required = false)] sets::AgentStepType {
        /// Name of an active agent.
        #[schema(min_length = 1, max_length = 255)]
        agent_name: String,
        /// Input of the step. Strings may contain references such as `${workflow.input.text}` and
        /// `${other_step.output.text}`.
        input_mapping: HashMap<String, serde_json::Value>,
        /// Effect of a question of an A2A agent; the default is `fail`.
        on_question: Option<sets::OnQuestion>,
        /// With `ask`: who answers, and how many questions there may be.
        question_config: Option<QuestionConfigBody>,
        /// Conversation of an A2A agent that the message continues, such as `${other_step.output.context_id}`.
        #[schema(max_length = 1024)]
        context_id: Option<String>,
        /// Task of an A2A agent that the message continues.
        #[schema(max_length = 1024)]
        task_id: Option<String>,
    }
    /// Runs steps at the same time.
    ParallelStep(Parallel): sets::ParallelStepType {
        /// Ids of the steps, at least two.
        #[schema(min_items = 2)]
        parallel_steps: Vec<String>,
        /// Maximum number of steps that run at a time; null means all.
        #[schema(minimum = 1)]
        max_parallelism: Option<i64>,
    }
    /// Runs one of two steps. At least one of them is required.
    ConditionalStep(Conditional): sets::ConditionalStepType {
        /// Condition that decides.
        condition: ConditionBody,
        /// Step that runs if the condition is true.
        if_true_step: Option<String>,
        /// Step that runs if the condition is false.
        if_false_step: Option<String>,
    }
    /// Runs steps for each element of an array.
    LoopStep(Loop): sets::LoopStepType {
        /// Array and mode of the loop.
        loop_config: LoopConfigBody,
    }
    /// Runs branches at the same time, of which a given number must succeed.
    ForkJoinStep(ForkJoin): sets::ForkJoinStepType {
        /// Branches, and the number of them that must succeed.
        fork_join_config: ForkJoinConfigBody,
    }
    /// Waits for a time.
    WaitStep(Wait): sets::WaitStepType {
        /// Duration or end of the wait.
        wait_config: WaitConfigBody,
    }
    /// Waits for an answer to a callback.
    CallbackStep(Callback): sets::CallbackStepType {
        /// Information about the request for the answering person or program. Strings may contain references, such as
        /// `${this_step.callback_url}`.
        input_mapping: Option<HashMap<String, serde_json::Value>>,
        /// Form of the answer; absent accepts any JSON.
        callback_config: Option<CallbackConfigBody>,
    }
    /// Runs another workflow.
    SubWorkflowStep(SubWorkflow): sets::SubWorkflowStepType {
        /// Input of the run. Strings may contain references.
        input_mapping: Option<HashMap<String, serde_json::Value>>,
        /// Workflow to run.
        sub_workflow_config: SubWorkflowConfigBody,
    }
}

/// Plan: a definition as it is stored and sent to executors.
#[derive(ToSchema)]
#[schema(as = WorkflowPlan)]
pub struct PlanBody {
    /// Id of the plan: `wf-`, the name, and the version that it was created with.
    #[schema(example = "wf-summarise-1")]
    workflow_id: String,
    /// Name of the workflow.
    #[schema(example = "summarise")]
    name: String,
    /// Version of the workflow, as text.
    #[schema(example = "1")]
    version: String,
    /// The id of the first step.
    start_step: String,
    /// The steps by id, in their normal form.
    steps: StepsBody,
    /// Limits of its runs; absent if there are none.
    #[schema(required = false, nullable = false)]
    limits: Option<LimitsBody>,
}

/// Limits of a run, which hold for it together with its sub-runs. A run that would exceed one fails with
/// `budget_exceeded`. An absent or null member is no limit.
#[derive(ToSchema)]
#[schema(as = RunLimits, example = json!({"tokens": 200_000, "cost": "0.5", "calls": 20}))]
pub struct LimitsBody {
    /// Tokens of inputs and outputs.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    tokens: Option<i64>,
    /// Cost by the prices of the agents, as a decimal number with at most six places, or a string with one. Answers
    /// have strings.
    #[schema(value_type = Option<CostBody>)]
    cost: Option<()>,
    /// Calls of agents.
    #[schema(minimum = 1, maximum = 100_000_000)]
    calls: Option<i64>,
    /// Attempts of steps, those of blocks included.
    #[schema(minimum = 1, maximum = 100_000_000)]
    steps: Option<i64>,
    /// Seconds of execution, without the time for which the run only waits.
    #[schema(minimum = 1, maximum = 31_536_000)]
    seconds: Option<i64>,
}

/// Cost as a decimal number, or as a string with one.
pub struct CostBody;

impl PartialSchema for CostBody {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).build();
        let string =
            ObjectBuilder::new().schema_type(Type::String).pattern(Some(r"^[0-9]{1,9}(\.[0-9]{1,6})?$")).build();
        RefOr::T(OneOfBuilder::new().item(number).item(string).examples([serde_json::json!("0.5")]).build().into())
    }
}

impl ToSchema for CostBody {
    fn name() -> Cow<'static, str> {
        "Cost".into()
    }
}

/// Condition of a conditional step.
#[derive(ToSchema)]
#[schema(as = Condition)]
pub struct ConditionBody {
    /// Expression of values, references and operators.
    #[schema(min_length = 1, example = "${classify.output.score} > 0.5")]
    expression: String,
    /// Stored and ignored.
    operator: Option<String>,
}

/// Configuration of a loop.
#[derive(ToSchema)]
#[schema(as = LoopConfig)]
pub struct LoopConfigBody {
    /// Reference to an array.
    #[schema(example = "${workflow.input.items}", pattern = r"^\s*\$\{[^}]*[^}\s][^}]*\}")]
    collection: String,
    /// Ids of the steps of one iteration, in order.
    #[schema(min_items = 1)]
    loop_body: Vec<String>,
    /// Mode; the default is `sequential`.
    execution_mode: Option<sets::ExecutionMode>,
    /// Mode `parallel`: maximum number of iterations at a time; null means all.
    #[schema(minimum = 1)]
    max_parallelism: Option<i64>,
    /// Maximum number of elements that are used; null means all.
    #[schema(minimum = 1)]
    max_iterations: Option<i64>,
    /// Effect of a failed iteration; the default is `stop`.
    on_error: Option<sets::OnError>,
}

/// Branches of a fork, and the condition for the success of its join.
#[derive(ToSchema)]
#[schema(as = ForkJoinConfig)]
pub struct ForkJoinConfigBody {
    /// Branches by name, at least two.
    branches: BranchesBody,
    /// Join policy; the default is `all`.
    join_policy: Option<sets::JoinPolicy>,
    /// Policy `n_of_m`: number of branches that have to succeed.
    #[schema(minimum = 1)]
    n_required: Option<i64>,
    /// Time-out of branches without their own, in seconds.
    #[schema(minimum = 1)]
    branch_timeout_seconds: Option<i64>,
}

/// Branch of a fork.
#[derive(ToSchema)]
#[schema(as = Branch)]
pub struct BranchBody {
    /// Ids of the steps, in order.
    #[schema(min_items = 1)]
    steps: Vec<String>,
    /// Time-out of the whole branch, in seconds.
    #[schema(minimum = 1)]
    timeout_seconds: Option<i64>,
}

/// Duration or end of a wait: exactly one of the members.
#[derive(ToSchema)]
#[schema(as = WaitConfig, example = json!({"duration": "PT15M"}))]
pub struct WaitConfigBody {
    /// Seconds, as a number or a string with references.
    #[schema(value_type = serde_json::Value, required = false, example = 30)]
    duration_seconds: (),
    /// ISO 8601 duration of weeks, days, hours, minutes and seconds, or a string with references.
    #[schema(example = "PT15M")]
    duration: Option<String>,
    /// Time with its zone, or a string with references.
    #[schema(example = "2026-02-03T09:00:00Z")]
    until: Option<String>,
}

/// Form of a callback's answer.
#[derive(ToSchema)]
#[schema(as = CallbackConfig)]
pub struct CallbackConfigBody {
    /// Approval: the answer has `approved`.
    approval: Option<ApprovalBody>,
}

/// Decision by a person.
#[derive(ToSchema)]
#[schema(as = Approval)]
pub struct ApprovalBody {
    /// Role that the deciding person must have; null if the callback's address is enough.
    #[schema(min_length = 1, max_length = 255)]
    role: Option<String>,
    /// Effect of a rejection; the default is `fail`.
    on_reject: Option<sets::OnReject>,
}

/// Who answers the questions of an agent, and how many there may be.
#[derive(ToSchema)]
#[schema(as = QuestionConfig)]
pub struct QuestionConfigBody {
    /// Role that the answering person must have; null if the callback's address is enough.
    #[schema(min_length = 1, max_length = 255)]
    role: Option<String>,
    /// Maximum number of questions of the agent in this step; the default is 10.
    #[schema(minimum = 1, maximum = 100)]
    max_rounds: Option<i64>,
}

/// Workflow that runs as a step: exactly one of the members.
#[derive(ToSchema)]
#[schema(as = SubWorkflowConfig, example = json!({"workflow_name": "summarise-and-translate"}))]
pub struct SubWorkflowConfigBody {
    /// Id of a definition.
    workflow_id: Option<uuid::Uuid>,
    /// Name of a workflow, whose newest version runs.
    #[schema(min_length = 1, max_length = 255)]
    workflow_name: Option<String>,
}
