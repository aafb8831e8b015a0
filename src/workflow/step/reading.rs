//! Parser of a step, with the rules that need no other step (1 to 9 of the contract's §3).

use std::ops::RangeInclusive;

use super::{Branch, Condition, ForkJoinConfig, LoopConfig, Source, Step, StepKind};
use crate::{
    input::{ANY_LENGTH, FieldError, Node, Read},
    workflow::{
        conversation::{OnQuestion, QuestionConfig},
        reading::{ID_CHARS, all, one_of, some_strings, strings},
        wait_config::{CallbackConfig, SubWorkflowConfig, TIMEOUT_SECS, WaitConfig},
    },
};

/// Positive numbers; large ones need no other limit.
const POSITIVE: RangeInclusive<i64> = 1..=i64::MAX;
/// Maximum characters of the name of a conversation or a task, with its references.
const MAX_CONVERSATION_CHARS: usize = 1024;

impl Step {
    /// Reads the members, and if all are valid checks the rules between them.
    pub(in crate::workflow) fn read(key: &str, node: &Node<'_>, origin: Source) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let id = match origin {
            Source::Caller => object.required("id", &mut errors, read_id),
            Source::Store => {
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
            on_question: object.nullable("on_question", &mut errors, OnQuestion::read),
            question_config: object.nullable("question_config", &mut errors, QuestionConfig::read),
            context_id: object.nullable("context_id", &mut errors, |node| node.string(0..=MAX_CONVERSATION_CHARS)),
            task_id: object.nullable("task_id", &mut errors, |node| node.string(0..=MAX_CONVERSATION_CHARS)),
        };
        if origin == Source::Store && step.kind == StepKind::Agent {
            step.input_mapping.get_or_insert_default();
        }
        if errors.is_empty() {
            errors.extend(step.broken_rule().map(|text| FieldError::rule(node.path(), text)));
        }
        if errors.is_empty() { Ok(step) } else { Err(errors) }
    }

    /// First violated rule of its kind.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{input::check_json, workflow::Steps};

    /// Checks the `field kind` of each error of a step `s` with these members, in order.
    fn check(members: &str, expected: &[&str]) {
        let json = format!(r#"{{"s":{{"id":"s",{members}}}}}"#);
        let raw = check_json(json.as_bytes()).expect(&json);
        let errors = Steps::read(&Node::new("steps", raw), Source::Caller).err().unwrap_or_default();
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
    fn a_waiting_step_has_a_configuration_and_any_step_a_time_limit() {
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
    fn an_agent_step_says_what_happens_when_its_agent_asks() {
        let agent = r#""agent_name":"x","input_mapping":{}"#;
        for on_question in ["fail", "ask", "output"] {
            check(&format!(r#"{agent},"on_question":"{on_question}","question_config":{{"role":"clerk"}}"#), &[]);
        }
        check(&format!(r#"{agent},"context_id":"${{a.output.context_id}}","task_id":null"#), &[]);
        check(&format!(r#"{agent},"on_question":"answer""#), &["steps.s.on_question value_error"]);
        check(&format!(r#"{agent},"context_id":7"#), &["steps.s.context_id string_type"]);
        for (config, expected) in [
            (r#"{"max_rounds":100}"#, &[][..]),
            (r#"{"max_rounds":0}"#, &["steps.s.question_config.max_rounds greater_than_equal"]),
            (r#"{"max_rounds":101}"#, &["steps.s.question_config.max_rounds less_than_equal"]),
            (r#"{"role":" "}"#, &["steps.s.question_config.role value_error"]),
            ("[]", &["steps.s.question_config model_attributes_type"]),
        ] {
            check(&format!(r#"{agent},"on_question":"ask","question_config":{config}"#), expected);
        }
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
