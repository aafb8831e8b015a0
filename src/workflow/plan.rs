//! Plan of a run as the executor reads it.

use std::collections::HashMap;

use serde_json::value::RawValue;
use thiserror::Error;

use super::references;
use super::step::Source;
use super::steps::Steps;
use super::validate;
use crate::{
    input::{FieldError, Node, Object, Read, member, text},
    usage::Limits,
};

/// Executable plan.
///
/// Start and successors exist, the main chain ends, no step contains itself, and each step has the members that its
/// kind requires.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Id as stored; empty if absent.
    pub workflow_id: String,
    /// Name as stored; empty if absent.
    pub name: String,
    /// Version as stored, a number as text; empty if absent.
    pub version: String,
    /// Id of the first step.
    pub start_step: String,
    /// All steps.
    pub steps: Steps,
    /// Limits of its runs.
    pub limits: Option<Limits>,
}

/// Reason why a plan cannot be executed. `Display` is the text for the run's error message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A member is missing or of the wrong type.
    #[error("{}: {}", .0.field, .0.message)]
    Member(FieldError),
    /// The steps violate a common rule.
    #[error("{0}")]
    Rule(String),
}

impl Plan {
    /// Parses a plan from the database or from a message, of any program.
    ///
    /// Missing members and nulls have the meaning of the reference: a step without a type is an agent step, and one
    /// without an id has its key as id. An agent step without a mapping gets an empty one.
    pub fn parse(plan: &RawValue) -> Result<Self, PlanError> {
        let plan = Node::new("workflow_plan", plan).object();
        let plan = plan.and_then(|plan| Self::read(&plan)).map_err(|errors| {
            let first = errors.into_iter().next();
            PlanError::Member(first.unwrap_or_else(|| FieldError::missing("workflow_plan")))
        })?;
        validate::chain(&plan.start_step, &plan.steps).map_err(PlanError::Rule)?;
        validate::main_chain_ends(&plan.start_step, &plan.steps).map_err(PlanError::Rule)?;
        validate::no_recursive_nesting(&plan.steps).map_err(PlanError::Rule)?;
        Ok(plan)
    }

    /// Limits in a stored plan, whether the plan is readable or not.
    #[must_use]
    pub fn limits_of(plan: &RawValue) -> Option<Limits> {
        let limits = member(plan, "limits").filter(|limits| limits.get() != "null")?;
        Limits::read(&Node::new("limits", limits)).ok()?.unless_empty()
    }

    /// Steps whose output is referenced, each with the last position on the main chain at which, or inside of which,
    /// this happens.
    #[must_use]
    pub fn last_uses(&self) -> HashMap<String, usize> {
        references::last_uses(&self.start_step, &self.steps)
    }

    /// Ids of the main chain from the first step on, without nested steps.
    pub fn main_path(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(self.start_step.as_str()), |id| self.steps.get(id)?.next_step.as_deref())
    }

    fn read(plan: &Object<'_>) -> Read<Self> {
        let mut errors = Vec::new();
        let text_of = |node: &Node<'_>| Ok(text(node.raw()).unwrap_or_else(|| node.raw().get().to_owned()));
        let workflow_id = plan.nullable("workflow_id", &mut errors, text_of).unwrap_or_default();
        let name = plan.nullable("name", &mut errors, text_of).unwrap_or_default();
        let version = plan.nullable("version", &mut errors, text_of).unwrap_or_default();
        let start_step = plan.required("start_step", &mut errors, |node| node.not_blank(1..=usize::MAX));
        let steps = plan.required("steps", &mut errors, |node| Steps::read(node, Source::Store));
        let limits = plan.nullable("limits", &mut errors, Limits::read).and_then(Limits::unless_empty);
        match (start_step, steps) {
            (Some(start_step), Some(steps)) if errors.is_empty() => {
                Ok(Self { workflow_id, name, version, start_step: start_step.trim().to_owned(), steps, limits })
            }
            _ => Err(errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;
    use crate::workflow::StepKind;

    /// Checks a plan with this start and these steps against a result: success, or a part of the error.
    fn check(start_step: &str, steps: &str, expected: Result<(), &str>) {
        let json = format!(r#"{{"start_step":{start_step},"steps":{steps}}}"#);
        let plan =
            Plan::parse(check_json(json.as_bytes()).expect(&json)).map(|_| ()).map_err(|error| error.to_string());
        match expected {
            Ok(()) => assert_eq!(plan, Ok(()), "{json}"),
            Err(part) => assert!(plan.as_ref().is_err_and(|text| text.contains(part)), "{json}: {plan:?}"),
        }
    }

    #[test]
    fn what_the_reference_stored_is_read() {
        check(
            r#""a""#,
            r#"{"a":{"id":"a","agent_name":"x","next_step":null,"input_mapping":{"t":"${workflow.input.t}"}}}"#,
            Ok(()),
        );
        check(r#""a""#, r#"{"a":{"type":null,"agent_name":"x"}}"#, Ok(()));
        check(
            r#"" a ""#,
            r#"{"a":{"id":" a","type":"agent","agent_name":"x","input_mapping":null,"condition":null}}"#,
            Ok(()),
        );
        check(
            r#""l""#,
            r#"{"l":{"id":"l","type":"loop","loop_config":{"collection":"${workflow.input.i}","loop_body":["gone"],
                "execution_mode":null,"max_parallelism":null,"on_error":null}}}"#,
            Ok(()),
        );
        let raw = check_json(
            br#"{"workflow_id":"wf-n-1","name":"n","version":2,"start_step":"a","steps":{"a":{"agent_name":"x"}}}"#,
        );
        let plan = Plan::parse(raw.expect("JSON")).expect("a plan");
        assert_eq!((plan.workflow_id.as_str(), plan.name.as_str(), plan.version.as_str()), ("wf-n-1", "n", "2"));
        let step = plan.steps.get("a").expect("a step");
        assert_eq!((step.id.as_str(), step.kind, step.mapping().len()), ("a", StepKind::Agent, 0));
    }

    #[test]
    fn the_error_of_an_invalid_plan_has_the_reason() {
        let agent = r#""agent_name":"x","input_mapping":{}"#;
        check("null", "{}", Err("workflow_plan.start_step: Input should be a valid string"));
        check(r#""a""#, "{}", Err("workflow_plan.steps: Dictionary should have"));
        check(r#""a""#, "null", Err("workflow_plan.steps"));
        check(r#""b""#, &format!(r#"{{"a":{{{agent}}}}}"#), Err("start_step 'b'"));
        check(r#""a""#, &format!(r#"{{"a":{{"id":"b",{agent}}}}}"#), Err("key and id"));
        check(r#""a""#, &format!(r#"{{"a":{{"next_step":"b",{agent}}}}}"#), Err("'b', which does not exist"));
        check(r#""a""#, &format!(r#"{{"a":{{"next_step":"a",{agent}}}}}"#), Err("lead back"));
        check(
            r#""a""#,
            r#"{"a":{"input_mapping":{}}}"#,
            Err("workflow_plan.steps.a: Value error, a step of type agent needs"),
        );
        check(r#""a""#, &format!(r#"{{"a":{{"type":"wait_for_event",{agent}}}}}"#), Err("workflow_plan.steps.a.type"));
        let plan = Plan::parse(RawValue::NULL).map(|_| ());
        assert!(plan.is_err_and(|error| error.to_string().starts_with("workflow_plan: ")));
    }

    #[test]
    fn a_step_that_contains_itself_is_refused() {
        let steps = r#"{"a":{"type":"parallel","parallel_steps":["a","b"]},"b":{"agent_name":"x"}}"#;
        check(r#""a""#, steps, Err("step 'a' contains itself"));
    }

    #[test]
    fn steps_off_the_main_chain_may_form_a_cycle() {
        let steps = r#"{"a":{"agent_name":"x"},"b":{"agent_name":"x","next_step":"b"}}"#;
        check(r#""a""#, steps, Ok(()));
    }
}
