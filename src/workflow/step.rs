//! One step: its members, and the rules that need nothing but the step (1 to 9 of the contract's §3).

use std::ops::RangeInclusive;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{
    member::{ID_CHARS, one_of},
    outside::{CallbackConfig, SubWorkflowConfig, TIMEOUT_SECS, WaitConfig},
};
use crate::input::{ANY_LENGTH, FieldError, Node, Read, keep};

/// At least one; more is limited only by what there is to do.
const POSITIVE: RangeInclusive<i64> = 1..=i64::MAX;

/// What a step does.
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
    /// Runs branches of steps at the same time and asks how many must succeed.
    ForkJoin,
    /// Lets time pass.
    Wait,
    /// Waits until somebody answers.
    Callback,
    /// Runs another workflow.
    SubWorkflow,
}

impl StepKind {
    /// All of them.
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

    /// As in the member `type`.
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

/// Where steps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A request: every rule applies.
    Caller,
    /// The database or a message, perhaps written by the reference: an id may be absent, which is then the key, or
    /// have white space around, and an agent step may have no mapping, which is then empty.
    Store,
}

/// A step of a definition or plan. Serialises to the stored normal form, in which every member is there that the
/// reference deployment knows, and of the others those that are set.
///
/// Members that the kind does not use are kept.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Equals the step's key.
    pub id: String,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: StepKind,
    /// There if `kind` is [`StepKind::Agent`].
    pub agent_name: Option<String>,
    /// What follows on the main chain; `None` ends it.
    pub next_step: Option<String>,
    /// The agent's input: names and literals or references, as written.
    #[serde(serialize_with = "as_map")]
    pub input_mapping: Option<Vec<(String, Box<RawValue>)>>,
    /// There if `kind` is [`StepKind::Parallel`].
    pub parallel_steps: Option<Vec<String>>,
    /// How many of them run at a time; `None` is all.
    pub max_parallelism: Option<i64>,
    /// There if `kind` is [`StepKind::Conditional`].
    pub condition: Option<Condition>,
    /// The branch for a true condition. Empty counts as none.
    pub if_true_step: Option<String>,
    /// The branch for a false condition. Empty counts as none.
    pub if_false_step: Option<String>,
    /// There if `kind` is [`StepKind::Loop`].
    pub loop_config: Option<LoopConfig>,
    /// There if `kind` is [`StepKind::ForkJoin`].
    pub fork_join_config: Option<ForkJoinConfig>,
    /// The step fails if it takes longer, all attempts and everything inside of it counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// There if `kind` is [`StepKind::Wait`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_config: Option<WaitConfig>,
    /// For [`StepKind::Callback`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_config: Option<CallbackConfig>,
    /// There if `kind` is [`StepKind::SubWorkflow`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_workflow_config: Option<SubWorkflowConfig>,
}

/// What a conditional step asks.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    /// The expression.
    pub expression: String,
    /// Ignored everywhere.
    pub operator: Option<String>,
}

/// What a loop iterates over, and how.
#[derive(Clone, Debug, Serialize)]
pub struct LoopConfig {
    /// A reference to an array.
    pub collection: String,
    /// The steps of one iteration, in order.
    pub loop_body: Vec<String>,
    /// `sequential` or `parallel`.
    pub execution_mode: &'static str,
    /// How many iterations run at a time in parallel mode; `None` is all.
    pub max_parallelism: Option<i64>,
    /// How many elements are used; `None` is all.
    pub max_iterations: Option<i64>,
    /// `stop`, `continue` or `collect`.
    pub on_error: &'static str,
}

/// The branches of a fork, and what makes the join succeed.
#[derive(Clone, Debug, Serialize)]
pub struct ForkJoinConfig {
    /// By name, as given.
    #[serde(serialize_with = "as_entries")]
    pub branches: Vec<(String, Branch)>,
    /// `all`, `any`, `majority` or `n_of_m`.
    pub join_policy: &'static str,
    /// There if the policy is `n_of_m`.
    pub n_required: Option<i64>,
    /// For branches without their own.
    pub branch_timeout_seconds: Option<i64>,
}

/// One branch of a fork.
#[derive(Clone, Debug, Serialize)]
pub struct Branch {
    /// In order.
    pub steps: Vec<String>,
    /// Time for the whole branch.
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

/// What a step calls, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Callee {
    /// An agent, by its name.
    Agent(String),
    /// A workflow, by its name.
    Workflow(String),
    /// A workflow, by its id.
    WorkflowId(String),
}

impl Callee {
    /// All that the members of the step name.
    pub fn of(step: &Step) -> impl Iterator<Item = Self> {
        let agent = step.agent_name.clone().map(Self::Agent);
        let config = step.sub_workflow_config.as_ref();
        let workflow = config.and_then(|config| config.workflow_name.clone()).map(Self::Workflow);
        let workflow_id = config.and_then(|config| config.workflow_id.clone()).map(Self::WorkflowId);
        agent.into_iter().chain(workflow).chain(workflow_id)
    }
}

impl Step {
    /// The members that are read, in the order of the normal form.
    pub(super) const MEMBERS: [&'static str; 16] = [
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
    ];

    /// The input of an agent, a callback or a sub-workflow as written; empty if there is none.
    #[must_use]
    pub fn mapping(&self) -> &[(String, Box<RawValue>)] {
        self.input_mapping.as_deref().unwrap_or_default()
    }

    /// The steps that it runs inside itself, by the members that its kind uses.
    pub(super) fn nested(&self) -> impl Iterator<Item = &str> {
        let kind = self.kind;
        self.mentioned().filter(move |(user, _)| *user == kind).map(|(_, id)| id)
    }

    /// Whether the output of this step, which it makes, is part of its own.
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

    /// Reads the members, then checks the step's own rules if they are all good.
    pub(super) fn read(key: &str, node: &Node<'_>, origin: Origin) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let id = match origin {
            Origin::Caller => object.required("id", &mut errors, read_id),
            Origin::Store => {
                let id = object.nullable("id", &mut errors, |node| node.string(ANY_LENGTH));
                Some(id.unwrap_or_else(|| key.to_owned()).trim().to_owned())
            }
        };
        let kind = object.nullable("type", &mut errors, |node| {
            one_of(node, &StepKind::ALL.map(StepKind::as_str))
                .map(|name| StepKind::ALL.into_iter().find(|kind| kind.as_str() == name).unwrap_or(StepKind::Agent))
        });
        let mut step = Self {
            id: id.unwrap_or_default(),
            kind: kind.unwrap_or(StepKind::Agent),
            agent_name: object.nullable("agent_name", &mut errors, |node| node.not_blank(ID_CHARS)),
            next_step: object.nullable("next_step", &mut errors, |node| node.string(ANY_LENGTH)),
            input_mapping: object.nullable("input_mapping", &mut errors, |node| {
                Ok(node.map()?.into_iter().map(|(name, node)| (name, node.raw().to_owned())).collect())
            }),
            parallel_steps: object.nullable("parallel_steps", &mut errors, strings),
            max_parallelism: object.nullable("max_parallelism", &mut errors, |node| node.int(i64::MIN..=i64::MAX)),
            condition: object.nullable("condition", &mut errors, Condition::read),
            if_true_step: object.nullable("if_true_step", &mut errors, |node| node.string(ANY_LENGTH)),
            if_false_step: object.nullable("if_false_step", &mut errors, |node| node.string(ANY_LENGTH)),
            loop_config: object.nullable("loop_config", &mut errors, LoopConfig::read),
            fork_join_config: object.nullable("fork_join_config", &mut errors, ForkJoinConfig::read),
            timeout_seconds: object.nullable("timeout_seconds", &mut errors, |node| node.int(TIMEOUT_SECS)),
            wait_config: object.nullable("wait_config", &mut errors, WaitConfig::read),
            callback_config: object.nullable("callback_config", &mut errors, CallbackConfig::read),
            sub_workflow_config: object.nullable("sub_workflow_config", &mut errors, SubWorkflowConfig::read),
        };
        if origin == Origin::Store && step.kind == StepKind::Agent {
            step.input_mapping.get_or_insert_default();
        }
        if errors.is_empty() {
            errors.extend(step.broken_rule().map(|text| FieldError::rule(node.path(), text)));
        }
        if errors.is_empty() { Ok(step) } else { Err(errors) }
    }

    /// The first rule of its kind that the step breaks.
    fn broken_rule(&self) -> Option<String> {
        let text = match self.kind {
            StepKind::Agent => match (&self.agent_name, &self.input_mapping) {
                (None, _) => "a step of type agent needs agent_name",
                (_, None) => "a step of type agent needs input_mapping",
                _ => return None,
            },
            StepKind::Parallel => match &self.parallel_steps {
                None => "a step of type parallel needs parallel_steps",
                Some(members) if members.len() < 2 => "parallel_steps must have at least 2 entries",
                _ if self.max_parallelism.is_some_and(|limit| limit < 1) => "max_parallelism must be at least 1",
                _ => return None,
            },
            StepKind::Conditional => match (&self.condition, self.nested().next()) {
                (None, _) => "a step of type conditional needs condition",
                (_, None) => "a step of type conditional needs if_true_step or if_false_step",
                _ => return None,
            },
            StepKind::Loop => match &self.loop_config {
                None => "a step of type loop needs loop_config",
                _ => return None,
            },
            StepKind::ForkJoin => match &self.fork_join_config {
                None => "a step of type fork_join needs fork_join_config",
                Some(config) if config.join_policy == "n_of_m" => match config.n_required {
                    None => "join_policy n_of_m needs n_required",
                    Some(n) if usize::try_from(n).is_ok_and(|n| n <= config.branches.len()) => return None,
                    Some(_) => "n_required must not exceed the number of branches",
                },
                _ => return None,
            },
            StepKind::Wait if self.wait_config.is_none() => "a step of type wait needs wait_config",
            StepKind::SubWorkflow if self.sub_workflow_config.is_none() => {
                "a step of type sub_workflow needs sub_workflow_config"
            }
            StepKind::Wait | StepKind::Callback | StepKind::SubWorkflow => return None,
        };
        Some(text.to_owned())
    }
}

fn read_id(node: &Node<'_>) -> Read<String> {
    let id = node.string(ID_CHARS)?;
    if !id.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_') {
        let text = "must consist of letters, digits, hyphens and underscores";
        return Err(vec![FieldError::rule(node.path(), text)]);
    }
    Ok(id)
}

impl Condition {
    fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let expression = object.required("expression", &mut errors, |node| node.not_blank(1..=usize::MAX));
        let operator = object.nullable("operator", &mut errors, |node| node.string(ANY_LENGTH));
        match expression {
            Some(expression) if errors.is_empty() => Ok(Self { expression, operator }),
            _ => Err(errors),
        }
    }
}

impl LoopConfig {
    fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let collection = object.required("collection", &mut errors, |node| {
            let text = node.string(ANY_LENGTH)?;
            let path = text.trim().strip_prefix("${").and_then(|rest| rest.split_once('}')).map(|(path, _)| path);
            if path.is_none_or(|path| path.trim().is_empty()) {
                return Err(vec![FieldError::rule(node.path(), "must be a reference such as ${workflow.input.items}")]);
            }
            Ok(text)
        });
        let loop_body = object.required("loop_body", &mut errors, some_strings);
        let execution_mode =
            object.nullable("execution_mode", &mut errors, |node| one_of(node, &["sequential", "parallel"]));
        let max_parallelism = object.nullable("max_parallelism", &mut errors, |node| node.int(POSITIVE));
        let max_iterations = object.nullable("max_iterations", &mut errors, |node| node.int(POSITIVE));
        let on_error = object.nullable("on_error", &mut errors, |node| one_of(node, &["stop", "continue", "collect"]));
        match (collection, loop_body) {
            (Some(collection), Some(loop_body)) if errors.is_empty() => Ok(Self {
                collection,
                loop_body,
                execution_mode: execution_mode.unwrap_or("sequential"),
                max_parallelism,
                max_iterations,
                on_error: on_error.unwrap_or("stop"),
            }),
            _ => Err(errors),
        }
    }
}

impl ForkJoinConfig {
    fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let branches = object.required("branches", &mut errors, |node| {
            let nodes = node.map()?;
            if nodes.len() < 2 {
                let message = format!("Dictionary should have at least 2 items after validation, not {}", nodes.len());
                return Err(vec![node.error("too_short", message)]);
            }
            all(nodes, |_, node| Branch::read(node))
        });
        let policies = ["all", "any", "majority", "n_of_m"];
        let join_policy = object.nullable("join_policy", &mut errors, |node| one_of(node, &policies));
        let n_required = object.nullable("n_required", &mut errors, |node| node.int(POSITIVE));
        let branch_timeout_seconds = object.nullable("branch_timeout_seconds", &mut errors, |node| node.int(POSITIVE));
        match branches {
            Some(branches) if errors.is_empty() => {
                Ok(Self { branches, join_policy: join_policy.unwrap_or("all"), n_required, branch_timeout_seconds })
            }
            _ => Err(errors),
        }
    }
}

impl Branch {
    fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let steps = object.required("steps", &mut errors, some_strings);
        let timeout_seconds = object.nullable("timeout_seconds", &mut errors, |node| node.int(POSITIVE));
        match steps {
            Some(steps) if errors.is_empty() => Ok(Self { steps, timeout_seconds }),
            _ => Err(errors),
        }
    }
}

fn strings(node: &Node<'_>) -> Read<Vec<String>> {
    let mut errors = Vec::new();
    let nodes = node.list()?;
    let strings = nodes.iter().filter_map(|node| keep(node.string(ANY_LENGTH), &mut errors)).collect();
    if errors.is_empty() { Ok(strings) } else { Err(errors) }
}

fn some_strings(node: &Node<'_>) -> Read<Vec<String>> {
    let strings = strings(node)?;
    if strings.is_empty() {
        let message = "List should have at least 1 item after validation, not 0";
        return Err(vec![node.error("too_short", message)]);
    }
    Ok(strings)
}

/// Every value of a map, or the errors of all of them.
pub(super) fn all<'a, T>(
    nodes: Vec<(String, Node<'a>)>,
    read: impl Fn(&str, &Node<'a>) -> Read<T>,
) -> Read<Vec<(String, T)>> {
    let mut errors = Vec::new();
    let read = |(key, node): (String, Node<'a>)| keep(read(&key, &node), &mut errors).map(|value| (key, value));
    let values = nodes.into_iter().filter_map(read).collect();
    if errors.is_empty() { Ok(values) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;
    use crate::workflow::Steps;

    /// The `field kind` of each error of a step `s` with these members, in order.
    fn check(members: &str, expected: &[&str]) {
        let json = format!(r#"{{"s":{{"id":"s",{members}}}}}"#);
        let raw = check_json(json.as_bytes()).expect(&json);
        let errors = Steps::read(&Node::new("steps", raw), Origin::Caller).err().unwrap_or_default();
        let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
        assert_eq!(found, expected, "{members}");
    }

    const BROKEN: &[&str] = &["steps.s value_error"];

    #[test]
    fn an_id_consists_of_letters_digits_hyphens_and_underscores() {
        let agent = r#""agent_name":"x","input_mapping":{}"#;
        for id in ["a", "step-1", "Step_2", "schritt-größe", "第一", &"é".repeat(255)] {
            check(&format!(r#""id":"{id}",{agent}"#), &[]);
        }
        for id in [" ", "a b", "a.b", "a/b", "a${b}", "a\\n"] {
            check(&format!(r#""id":"{id}",{agent}"#), &["steps.s.id value_error"]);
        }
        check(&format!(r#""id":"",{agent}"#), &["steps.s.id string_too_short"]);
        check(&format!(r#""id":"{}",{agent}"#, "a".repeat(256)), &["steps.s.id string_too_long"]);
        check(&format!(r#""id":null,{agent}"#), &["steps.s.id string_type"]);
    }

    #[test]
    fn a_type_is_one_of_eight_in_lower_case() {
        let agent = r#""agent_name":"x","input_mapping":{}"#;
        check(&format!(r#""type":"agent",{agent}"#), &[]);
        check(&format!(r#""type":null,{agent}"#), &[]);
        for kind in ["Agent", "SubWorkflow", "wait_for_event", "validate", ""] {
            check(&format!(r#""type":"{kind}",{agent}"#), &["steps.s.type value_error"]);
        }
        check(&format!(r#""type":1,{agent}"#), &["steps.s.type string_type"]);
    }

    #[test]
    fn a_step_that_waits_says_for_what_and_any_step_for_how_long() {
        check(r#""type":"wait","wait_config":{"duration_seconds":5}"#, &[]);
        check(r#""type":"wait","wait_config":{"duration_seconds":"${workflow.input.n}"}"#, &[]);
        check(r#""type":"wait","wait_config":{"until":"in ${workflow.input.n}"}"#, &[]);
        check(r#""type":"wait""#, BROKEN);
        check(r#""type":"callback""#, &[]);
        check(r#""type":"callback","callback_config":{"approval":{"role":"boss","on_reject":"continue"}}"#, &[]);
        check(r#""type":"sub_workflow","sub_workflow_config":{"workflow_name":"x"}"#, &[]);
        check(r#""type":"sub_workflow""#, BROKEN);
        check(r#""type":"callback","timeout_seconds":60"#, &[]);
        check(r#""type":"callback","timeout_seconds":400000000"#, &["steps.s.timeout_seconds less_than_equal"]);
    }

    #[test]
    fn an_agent_step_has_an_agent_and_a_mapping() {
        check(r#""agent_name":"x","input_mapping":{"a":1}"#, &[]);
        check(r#""agent_name":"x""#, BROKEN);
        check(r#""agent_name":"x","input_mapping":null"#, BROKEN);
        check(r#""input_mapping":{}"#, BROKEN);
        check(r#""agent_name":" ","input_mapping":{}"#, &["steps.s.agent_name value_error"]);
        check(r#""agent_name":"","input_mapping":{}"#, &["steps.s.agent_name string_too_short"]);
        check(r#""agent_name":"x","input_mapping":[]"#, &["steps.s.input_mapping dict_type"]);
        check(r#""agent_name":"x","input_mapping":{},"next_step":1"#, &["steps.s.next_step string_type"]);
    }

    #[test]
    fn a_parallel_step_has_two_members_and_room_for_one() {
        check(r#""type":"parallel","parallel_steps":["a","b"],"max_parallelism":1"#, &[]);
        check(r#""type":"parallel""#, BROKEN);
        check(r#""type":"parallel","parallel_steps":["a"]"#, BROKEN);
        check(r#""type":"parallel","parallel_steps":["a","b"],"max_parallelism":0"#, BROKEN);
        check(r#""type":"parallel","parallel_steps":["a",1]"#, &["steps.s.parallel_steps.1 string_type"]);
        check(r#""type":"parallel","parallel_steps":"a""#, &["steps.s.parallel_steps list_type"]);
        check(r#""agent_name":"x","input_mapping":{},"parallel_steps":[],"max_parallelism":0"#, &[]);
    }

    #[test]
    fn a_conditional_step_has_a_condition_and_a_branch() {
        let condition = r#""type":"conditional","condition":{"expression":"1"}"#;
        check(&format!(r#"{condition},"if_true_step":"a""#), &[]);
        check(&format!(r#"{condition},"if_false_step":"a","if_true_step":"""#), &[]);
        check(condition, BROKEN);
        check(&format!(r#"{condition},"if_false_step":"","if_true_step":null"#), BROKEN);
        check(r#""type":"conditional","if_true_step":"a""#, BROKEN);
        for (condition, expected) in [
            ("{}", "steps.s.condition.expression missing"),
            (r#"{"expression":""}"#, "steps.s.condition.expression string_too_short"),
            (r#"{"expression":" "}"#, "steps.s.condition.expression value_error"),
            (r#"{"expression":"1","operator":1}"#, "steps.s.condition.operator string_type"),
            ("1", "steps.s.condition model_attributes_type"),
        ] {
            check(&format!(r#""type":"conditional","if_true_step":"a","condition":{condition}"#), &[expected]);
        }
    }

    #[test]
    fn a_loop_step_has_a_collection_and_a_body() {
        check(r#""type":"loop""#, BROKEN);
        for (config, expected) in [
            (r#""collection":"${a.output.b}","loop_body":["b"]"#, &[][..]),
            (r#""collection":" ${a.output.b} rest","loop_body":["b"],"on_error":"collect""#, &[]),
            ("", &["steps.s.loop_config.collection missing", "steps.s.loop_config.loop_body missing"]),
            (r#""collection":" ","loop_body":["b"]"#, &["steps.s.loop_config.collection value_error"]),
            (r#""collection":"${}","loop_body":["b"]"#, &["steps.s.loop_config.collection value_error"]),
            (r#""collection":"a","loop_body":["b"]"#, &["steps.s.loop_config.collection value_error"]),
            (r#""collection":"${a}","loop_body":[]"#, &["steps.s.loop_config.loop_body too_short"]),
            (
                r#""collection":"${a}","loop_body":["b"],"execution_mode":"x","max_parallelism":0,"max_iterations":0,"on_error":"x""#,
                &[
                    "steps.s.loop_config.execution_mode value_error",
                    "steps.s.loop_config.max_parallelism greater_than_equal",
                    "steps.s.loop_config.max_iterations greater_than_equal",
                    "steps.s.loop_config.on_error value_error",
                ],
            ),
        ] {
            check(&format!(r#""type":"loop","loop_config":{{{config}}}"#), expected);
        }
    }

    #[test]
    fn a_fork_has_two_branches_and_a_join_that_can_succeed() {
        let fork = |rest: &str| {
            let branches = r#""branches":{"x":{"steps":["a"]},"y":{"steps":["b"],"timeout_seconds":1}}"#;
            format!(r#""type":"fork_join","fork_join_config":{{{branches}{rest}}}"#)
        };
        check(&fork(""), &[]);
        check(&fork(r#","join_policy":"n_of_m","n_required":2"#), &[]);
        check(&fork(r#","join_policy":"n_of_m""#), BROKEN);
        check(&fork(r#","join_policy":"n_of_m","n_required":3"#), BROKEN);
        check(&fork(r#","join_policy":"any","n_required":3"#), &[]);
        check(&fork(r#","join_policy":"ALL""#), &["steps.s.fork_join_config.join_policy value_error"]);
        check(&fork(r#","n_required":0"#), &["steps.s.fork_join_config.n_required greater_than_equal"]);
        check(r#""type":"fork_join""#, BROKEN);
        for (branches, expected) in [
            (r#"{"x":{"steps":["a"]}}"#, "steps.s.fork_join_config.branches too_short"),
            (r#"{"x":{"steps":["a"]},"y":{"steps":[]}}"#, "steps.s.fork_join_config.branches.y.steps too_short"),
            (r#"{"x":{"steps":["a"]},"y":{}}"#, "steps.s.fork_join_config.branches.y.steps missing"),
        ] {
            let members = format!(r#""type":"fork_join","fork_join_config":{{"branches":{branches}}}"#);
            check(&members, &[expected]);
        }
    }
}
