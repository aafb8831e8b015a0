//! The shape of a definition's steps in the OpenAPI document: what `workflow::Step` reads, member by member.

#![expect(dead_code, reason = "describes what `workflow::Step` reads, which knows nothing of OpenAPI")]

use std::borrow::Cow;

use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, Ref, RefOr, Schema},
};

type Named = (String, RefOr<Schema>);

/// Steps by id: one at least, which a derived schema could not say.
pub struct StepsBody;

impl PartialSchema for StepsBody {
    fn schema() -> RefOr<Schema> {
        let example = json!({
            "summarise": {"id": "summarise", "agent_name": "summariser", "next_step": "translate",
                "input_mapping": {"text": "${workflow.input.text}"}},
            "translate": {"id": "translate", "agent_name": "translator", "next_step": null,
                "input_mapping": {"text": "${summarise.output.text}"}},
        });
        let steps = map_of::<StepBody>(1).description(Some("Steps by id.")).examples([example]);
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

/// Branches by name: two at least.
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

/// A step of a workflow. Members that its type does not use are kept and ignored.
#[derive(ToSchema)]
#[schema(as = StepDefinition)]
pub struct StepBody {
    /// Equals the step's key: letters, digits, hyphens and underscores.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[\p{L}\p{N}_-]+$")]
    id: String,
    /// What it does; absent is `agent`.
    r#type: Option<StepType>,
    /// Type `agent`: an active agent's name.
    #[schema(min_length = 1, max_length = 255)]
    agent_name: Option<String>,
    /// The step that follows; null ends the chain.
    next_step: Option<String>,
    /// Type `agent` and `sub_workflow`: the input; type `callback`: what is said about what is asked. Strings may hold
    /// references such as `${workflow.input.text}`, `${other_step.output.text}` and `${callback_step.callback_url}`.
    #[schema(value_type = Option<Object>)]
    input_mapping: Option<()>,
    /// Type `parallel`: steps that run at the same time, two at least.
    parallel_steps: Option<Vec<String>>,
    /// Type `parallel`: how many run at a time; null is all.
    max_parallelism: Option<i64>,
    /// Type `conditional`: what is asked.
    condition: Option<ConditionBody>,
    /// Type `conditional`: runs if the condition is true.
    if_true_step: Option<String>,
    /// Type `conditional`: runs if the condition is false.
    if_false_step: Option<String>,
    /// Type `loop`: over what, and how.
    loop_config: Option<LoopConfigBody>,
    /// Type `fork_join`: the branches, and how many have to succeed.
    fork_join_config: Option<ForkJoinConfigBody>,
    /// The step fails if it takes longer, all attempts and everything inside of it counted; of a `callback`, how long it
    /// can be answered.
    #[schema(minimum = 1, maximum = 315_576_000)]
    timeout_seconds: Option<i64>,
    /// Type `wait`: for how long, or until when.
    wait_config: Option<WaitConfigBody>,
    /// Type `callback`: what is asked for; absent is any JSON.
    callback_config: Option<CallbackConfigBody>,
    /// Type `sub_workflow`: which workflow.
    sub_workflow_config: Option<SubWorkflowConfigBody>,
}

/// What a step does.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum StepType {
    /// Calls an agent.
    Agent,
    /// Runs steps at the same time.
    Parallel,
    /// Runs one of two steps.
    Conditional,
    /// Runs steps for each element of an array.
    Loop,
    /// Runs branches at the same time and asks how many must succeed.
    ForkJoin,
    /// Lets time pass.
    Wait,
    /// Waits until somebody answers.
    Callback,
    /// Runs another workflow.
    SubWorkflow,
}

/// What a conditional step asks.
#[derive(ToSchema)]
#[schema(as = Condition)]
pub struct ConditionBody {
    /// Values, references and operators.
    #[schema(min_length = 1, example = "${classify.output.score} > 0.5")]
    expression: String,
    /// Kept and ignored.
    operator: Option<String>,
}

/// What a loop goes over, and how.
#[derive(ToSchema)]
#[schema(as = LoopConfig)]
pub struct LoopConfigBody {
    /// A reference to an array.
    #[schema(example = "${workflow.input.items}", pattern = r"^\s*\$\{[^}]*[^}\s][^}]*\}")]
    collection: String,
    /// The steps of one iteration, in order.
    #[schema(min_items = 1)]
    loop_body: Vec<String>,
    /// Absent is `sequential`.
    execution_mode: Option<ExecutionMode>,
    /// Mode `parallel`: how many iterations run at a time; null is all.
    #[schema(minimum = 1)]
    max_parallelism: Option<i64>,
    /// How many elements are used; null is all.
    #[schema(minimum = 1)]
    max_iterations: Option<i64>,
    /// What an iteration's failure means; absent is `stop`.
    on_error: Option<OnError>,
}

/// Whether iterations run one after the other.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum ExecutionMode {
    /// One after the other.
    Sequential,
    /// At the same time.
    Parallel,
}

/// What the failure of an iteration means.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum OnError {
    /// The loop fails at once.
    Stop,
    /// It is passed over.
    Continue,
    /// It is kept among the results.
    Collect,
}

/// The branches of a fork, and what makes the join succeed.
#[derive(ToSchema)]
#[schema(as = ForkJoinConfig)]
pub struct ForkJoinConfigBody {
    /// By name, two at least.
    branches: BranchesBody,
    /// Absent is `all`.
    join_policy: Option<JoinPolicy>,
    /// Policy `n_of_m`: how many have to succeed.
    #[schema(minimum = 1)]
    n_required: Option<i64>,
    /// For branches without their own.
    #[schema(minimum = 1)]
    branch_timeout_seconds: Option<i64>,
}

/// How many branches have to succeed.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum JoinPolicy {
    /// Every one.
    All,
    /// One.
    Any,
    /// More than half.
    Majority,
    /// `n_required`.
    NOfM,
}

/// One branch of a fork.
#[derive(ToSchema)]
#[schema(as = Branch)]
pub struct BranchBody {
    /// In order.
    #[schema(min_items = 1)]
    steps: Vec<String>,
    /// Time for the whole branch.
    #[schema(minimum = 1)]
    timeout_seconds: Option<i64>,
}

/// For how long a step waits, or until when: one of the members.
#[derive(ToSchema)]
#[schema(as = WaitConfig, example = json!({"duration": "PT15M"}))]
pub struct WaitConfigBody {
    /// Seconds, as a number or a text with references.
    #[schema(value_type = serde_json::Value, example = 30)]
    duration_seconds: Option<()>,
    /// An ISO 8601 duration of weeks, days, hours, minutes and seconds, or a text with references.
    #[schema(example = "PT15M")]
    duration: Option<String>,
    /// A time with its zone, or a text with references.
    #[schema(example = "2026-02-03T09:00:00Z")]
    until: Option<String>,
}

/// What a callback is asked for.
#[derive(ToSchema)]
#[schema(as = CallbackConfig)]
pub struct CallbackConfigBody {
    /// A decision: a body with `approved`.
    approval: Option<ApprovalBody>,
}

/// A decision by a person.
#[derive(ToSchema)]
#[schema(as = Approval)]
pub struct ApprovalBody {
    /// The role that whoever decides must have; null if the callback's address is enough.
    #[schema(min_length = 1, max_length = 255)]
    role: Option<String>,
    /// What a rejection means; absent is `fail`.
    on_reject: Option<OnReject>,
}

/// What a rejection means.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum OnReject {
    /// The step fails.
    Fail,
    /// The step completes; its output says `approved: false`.
    Continue,
}

/// Which workflow runs as a step: one of the members.
#[derive(ToSchema)]
#[schema(as = SubWorkflowConfig, example = json!({"workflow_name": "summarise-and-translate"}))]
pub struct SubWorkflowConfigBody {
    /// The id of a definition.
    workflow_id: Option<uuid::Uuid>,
    /// A name, of which the newest version counts.
    #[schema(min_length = 1, max_length = 255)]
    workflow_name: Option<String>,
}
