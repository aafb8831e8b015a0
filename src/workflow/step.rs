//! Step of a definition: its members, and the steps it mentions. The rules are checked when it is read.

mod reading;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{
    conversation::{OnQuestion, QuestionConfig},
    wait_config::{CallbackConfig, SubWorkflowConfig, WaitConfig},
};

/// Kind of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Calls an agent.
    Agent,
    /// Runs steps at the same time.
    Parallel,
    /// Runs one of two steps.
    Conditional,
    /// Runs steps for each element of an array.
    Loop,
    /// Runs branches of steps at the same time and requires a number of successes.
    ForkJoin,
    /// Waits for a time.
    Wait,
    /// Waits for an external answer.
    Callback,
    /// Runs another workflow.
    SubWorkflow,
}

impl StepKind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Agent,
        Self::Parallel,
        Self::Conditional,
        Self::Loop,
        Self::ForkJoin,
        Self::Wait,
        Self::Callback,
        Self::SubWorkflow,
    ];

    /// Text in the member `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Parallel => "parallel",
            Self::Conditional => "conditional",
            Self::Loop => "loop",
            Self::ForkJoin => "fork_join",
            Self::Wait => "wait",
            Self::Callback => "callback",
            Self::SubWorkflow => "sub_workflow",
        }
    }
}

/// Source of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A request: every rule applies.
    Caller,
    /// The database or a message, possibly written by the reference: an absent id means the key, ids may have
    /// surrounding white space, and an agent step without a mapping has an empty one.
    Store,
}

/// Step of a definition or plan. It serialises to the stored normal form, with all members that the reference
/// deployment knows, and of the others those that are set.
///
/// Members that the kind does not use are kept.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Id, equal to the step's key.
    pub id: String,
    /// Kind of the step.
    #[serde(rename = "type")]
    pub kind: StepKind,
    /// Present if `kind` is [`StepKind::Agent`].
    pub agent_name: Option<String>,
    /// Next step of the main chain; `None` ends it.
    pub next_step: Option<String>,
    /// Input of the agent: names with literals or references, as written.
    #[serde(serialize_with = "as_map")]
    pub input_mapping: Option<Vec<(String, Box<RawValue>)>>,
    /// Present if `kind` is [`StepKind::Parallel`].
    pub parallel_steps: Option<Vec<String>>,
    /// Maximum number of parallel steps at a time; `None` means all.
    pub max_parallelism: Option<i64>,
    /// Present if `kind` is [`StepKind::Conditional`].
    pub condition: Option<Condition>,
    /// Branch for a true condition. Empty means none.
    pub if_true_step: Option<String>,
    /// Branch for a false condition. Empty means none.
    pub if_false_step: Option<String>,
    /// Present if `kind` is [`StepKind::Loop`].
    pub loop_config: Option<LoopConfig>,
    /// Present if `kind` is [`StepKind::ForkJoin`].
    pub fork_join_config: Option<ForkJoinConfig>,
    /// Time limit of the step, including all attempts and everything inside of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Present if `kind` is [`StepKind::Wait`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_config: Option<WaitConfig>,
    /// Used by [`StepKind::Callback`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_config: Option<CallbackConfig>,
    /// Present if `kind` is [`StepKind::SubWorkflow`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_workflow_config: Option<SubWorkflowConfig>,
    /// Used by [`StepKind::Agent`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_question: Option<OnQuestion>,
    /// Used by [`StepKind::Agent`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question_config: Option<QuestionConfig>,
    /// Used by [`StepKind::Agent`]: conversation that it continues, as a text with references.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_id: Option<String>,
    /// Used by [`StepKind::Agent`]: task that it continues, as a text with references.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
}

/// Condition of a conditional step.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    /// Expression of the condition.
    pub expression: String,
    /// Ignored everywhere.
    pub operator: Option<String>,
}

/// Loop settings.
#[derive(Clone, Debug, Serialize)]
pub struct LoopConfig {
    /// Reference to an array.
    pub collection: String,
    /// Steps of one iteration, in order.
    pub loop_body: Vec<String>,
    /// `sequential` or `parallel`.
    pub execution_mode: &'static str,
    /// Maximum number of iterations at a time in parallel mode; `None` means all.
    pub max_parallelism: Option<i64>,
    /// Maximum number of elements that are used; `None` means all.
    pub max_iterations: Option<i64>,
    /// `stop`, `continue` or `collect`.
    pub on_error: &'static str,
}

/// Branches of a fork, and the policy of the join.
#[derive(Clone, Debug, Serialize)]
pub struct ForkJoinConfig {
    /// Branches by name, as given.
    #[serde(serialize_with = "as_entries")]
    pub branches: Vec<(String, Branch)>,
    /// `all`, `any`, `majority` or `n_of_m`.
    pub join_policy: &'static str,
    /// Present if the policy is `n_of_m`.
    pub n_required: Option<i64>,
    /// Default time-out of branches.
    pub branch_timeout_seconds: Option<i64>,
}

/// Branch of a fork.
#[derive(Clone, Debug, Serialize)]
pub struct Branch {
    /// Steps in order.
    pub steps: Vec<String>,
    /// Time-out of the whole branch.
    pub timeout_seconds: Option<i64>,
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn as_map<S: Serializer>(map: &Option<Vec<(String, Box<RawValue>)>>, serializer: S) -> Result<S::Ok, S::Error> {
    match map {
        Some(members) => as_entries(members, serializer),
        None => serializer.serialize_none(),
    }
}

fn as_entries<S: Serializer, T: Serialize>(entries: &[(String, T)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(key, value)| (key, value)))
}

/// Callee of a step of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Callee {
    /// Agent by name.
    Agent(String),
    /// Workflow by name.
    Workflow(String),
    /// Workflow by id.
    WorkflowId(String),
}

impl Callee {
    /// All callees in the members of the step.
    pub fn of(step: &Step) -> impl Iterator<Item = Self> {
        let agent = step.agent_name.clone().map(Self::Agent);
        let config = step.sub_workflow_config.as_ref();
        let workflow = config.and_then(|config| config.workflow_name.clone()).map(Self::Workflow);
        let workflow_id = config.and_then(|config| config.workflow_id.clone()).map(Self::WorkflowId);
        agent.into_iter().chain(workflow).chain(workflow_id)
    }
}

impl Step {
    /// Members about the questions of its agent and its conversation that it has.
    pub fn conversation_members(&self) -> impl Iterator<Item = &'static str> + use<> {
        let given = [
            ("on_question", self.on_question.is_some()),
            ("question_config", self.question_config.is_some()),
            ("context_id", self.context_id.is_some()),
            ("task_id", self.task_id.is_some()),
        ];
        given.into_iter().filter(|(_, is_given)| *is_given).map(|(member, _)| member)
    }

    /// Members that are read, in the order of the normal form.
    pub(super) const MEMBERS: [&'static str; 20] = [
        "id",
        "type",
        "agent_name",
        "next_step",
        "input_mapping",
        "parallel_steps",
        "max_parallelism",
        "condition",
        "if_true_step",
        "if_false_step",
        "loop_config",
        "fork_join_config",
        "timeout_seconds",
        "wait_config",
        "callback_config",
        "sub_workflow_config",
        "on_question",
        "question_config",
        "context_id",
        "task_id",
    ];

    /// Input of an agent, a callback or a sub-workflow as written; empty if absent.
    #[must_use]
    pub fn mapping(&self) -> &[(String, Box<RawValue>)] {
        self.input_mapping.as_deref().unwrap_or_default()
    }

    /// Steps inside of it, by the members that its kind uses.
    pub(super) fn nested(&self) -> impl Iterator<Item = &str> {
        let kind = self.kind;
        self.mentioned().filter(move |(user, _)| *user == kind).map(|(_, id)| id)
    }

    /// Whether the output of an inner step is part of its own output.
    #[must_use]
    pub fn puts_out(&self, step_id: &str) -> bool {
        let ends = |line: &[String]| line.last().is_some_and(|last| last == step_id);
        match self.kind {
            StepKind::Loop => self.loop_config.as_ref().is_some_and(|config| ends(&config.loop_body)),
            StepKind::ForkJoin => {
                let branches = self.fork_join_config.iter().flat_map(|config| &config.branches);
                branches.map(|(_, branch)| &branch.steps).any(|steps| ends(steps))
            }
            _ => true,
        }
    }

    /// All steps that its members mention except `next_step`, with the kind that uses the member.
    pub(super) fn mentioned(&self) -> impl Iterator<Item = (StepKind, &str)> {
        let parallel = self.parallel_steps.iter().flatten().map(|id| (StepKind::Parallel, id));
        let branches = self.if_true_step.iter().chain(&self.if_false_step).filter(|id| !id.is_empty());
        let branches = branches.map(|id| (StepKind::Conditional, id));
        let body = self.loop_config.iter().flat_map(|config| &config.loop_body).map(|id| (StepKind::Loop, id));
        let forks = self.fork_join_config.iter().flat_map(|config| &config.branches);
        let forks = forks.flat_map(|(_, branch)| &branch.steps).map(|id| (StepKind::ForkJoin, id));
        parallel.chain(branches).chain(body).chain(forks).map(|(kind, id)| (kind, id.as_str()))
    }
}
