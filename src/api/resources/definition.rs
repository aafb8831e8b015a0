//! The shape of a definition's steps in the OpenAPI document: what `workflow::Step` reads, member by member.

#![expect(dead_code, reason = "describes what `workflow::Step` reads, which knows nothing of OpenAPI")]

use std::{borrow::Cow, collections::HashMap};

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Discriminator, ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema},
};

use crate::{api::vocabulary::sets, workflow::StepKind};

type Named = (String, RefOr<Schema>);

/// Steps by id: one at least, which a derived schema could not say.
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

/// A step of a workflow, by its `type`.
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

/// Makes a schema of each type of step: the members that all have, and its own.
macro_rules! steps {
    ($($(#[$about:meta])+ $name:ident($kind:ident): $(#[$optional:meta])? $type:ty { $($own:tt)* })+) => {
        $(
            #[derive(ToSchema)]
            $(#[$about])+
            pub struct $name {
                /// Equals the step's key: letters, digits, hyphens and underscores.
                #[schema(min_length = 1, max_length = 255, pattern = r"^[^\s!-,./:-@\[-^`{-~]+$")]
                id: String,
                /// What the step does.
                $(#[$optional])?
                r#type: $type,
                /// The step that follows; null ends the chain.
                next_step: Option<String>,
                /// The step fails if it takes longer, all attempts and everything inside of it counted; of a `callback`,
                /// how long it can be answered.
                #[schema(minimum = 1, maximum = 315_576_000)]
                timeout_seconds: Option<i64>,
                $($own)*
                /// Members of other types of step.
                #[serde(flatten)]
                others: HashMap<String, serde_json::Value>,
            }
        )+

        /// The schema of each type of step.
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
    // At least the required members. Redocly would else take a `type` that may be absent for a mistake.
    #[schema(min_properties = 3)]
    AgentStep(Agent): #[schema(required = false)] sets::AgentStepType {
        /// An active agent's name.
        #[schema(min_length = 1, max_length = 255)]
        agent_name: String,
        /// The input. Strings may hold references such as `${workflow.input.text}` and `${other_step.output.text}`.
        input_mapping: HashMap<String, serde_json::Value>,
    }
    /// Runs steps at the same time.
    ParallelStep(Parallel): sets::ParallelStepType {
        /// The steps, two at least.
        #[schema(min_items = 2)]
        parallel_steps: Vec<String>,
        /// How many of them run at a time; null is all.
        #[schema(minimum = 1)]
        max_parallelism: Option<i64>,
    }
    /// Runs one of two steps. At least one of them has to be there.
    ConditionalStep(Conditional): sets::ConditionalStepType {
        /// What is asked.
        condition: ConditionBody,
        /// Runs if the condition is true.
        if_true_step: Option<String>,
        /// Runs if the condition is false.
        if_false_step: Option<String>,
    }
    /// Runs steps for each element of an array.
    LoopStep(Loop): sets::LoopStepType {
        /// Over what, and how.
        loop_config: LoopConfigBody,
    }
    /// Runs branches at the same time and asks how many must succeed.
    ForkJoinStep(ForkJoin): sets::ForkJoinStepType {
        /// The branches, and how many have to succeed.
        fork_join_config: ForkJoinConfigBody,
    }
    /// Lets time pass.
    WaitStep(Wait): sets::WaitStepType {
        /// For how long, or until when.
        wait_config: WaitConfigBody,
    }
    /// Waits until somebody answers.
    CallbackStep(Callback): sets::CallbackStepType {
        /// What is said about what is asked. Strings may hold references, such as `${this_step.callback_url}`.
        input_mapping: Option<HashMap<String, serde_json::Value>>,
        /// What is asked for; absent is any JSON.
        callback_config: Option<CallbackConfigBody>,
    }
    /// Runs another workflow.
    SubWorkflowStep(SubWorkflow): sets::SubWorkflowStepType {
        /// The input. Strings may hold references.
        input_mapping: Option<HashMap<String, serde_json::Value>>,
        /// Which workflow.
        sub_workflow_config: SubWorkflowConfigBody,
    }
}

/// A definition as it is stored and sent to executors: the plan.
#[derive(ToSchema)]
#[schema(as = WorkflowPlan)]
pub struct PlanBody {
    /// `wf-`, the name and the version it was created as.
    #[schema(example = "wf-summarise-1")]
    workflow_id: String,
    /// The workflow's name.
    #[schema(example = "summarise")]
    name: String,
    /// The workflow's version, as text.
    #[schema(example = "1")]
    version: String,
    /// The id of the first step.
    start_step: String,
    /// The steps by id, in their normal form.
    steps: StepsBody,
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
    execution_mode: Option<sets::ExecutionMode>,
    /// Mode `parallel`: how many iterations run at a time; null is all.
    #[schema(minimum = 1)]
    max_parallelism: Option<i64>,
    /// How many elements are used; null is all.
    #[schema(minimum = 1)]
    max_iterations: Option<i64>,
    /// What an iteration's failure means; absent is `stop`.
    on_error: Option<sets::OnError>,
}

/// The branches of a fork, and what makes the join succeed.
#[derive(ToSchema)]
#[schema(as = ForkJoinConfig)]
pub struct ForkJoinConfigBody {
    /// By name, two at least.
    branches: BranchesBody,
    /// Absent is `all`.
    join_policy: Option<sets::JoinPolicy>,
    /// Policy `n_of_m`: how many have to succeed.
    #[schema(minimum = 1)]
    n_required: Option<i64>,
    /// For branches without their own.
    #[schema(minimum = 1)]
    branch_timeout_seconds: Option<i64>,
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
    #[schema(value_type = serde_json::Value, required = false, example = 30)]
    duration_seconds: (),
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
    on_reject: Option<sets::OnReject>,
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
