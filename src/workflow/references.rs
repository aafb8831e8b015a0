//! Warnings about definitions: `${…}` references that can never resolve, and steps that never run.
//!
//! A warning is given only if no run could resolve the reference. Uncertain ones, such as to the output of a sibling
//! that runs at the same time, are accepted.

use std::collections::{HashMap, HashSet};

use super::{
    step::{Step, StepKind},
    steps::Steps,
};
use crate::{
    expression,
    input::{FieldError, shorten, text},
    mapping::{
        MappingFault, Piece,
        reference::{Root, root_of},
        split, strings,
    },
};

/// Maximum number of steps visited while references are checked. Deeply nested definitions with many references would
/// otherwise take quadratic time; real ones need a few thousand.
const MAX_WORK: usize = 1_000_000;

/// Maximum number of warnings, the same as of errors.
const MAX_WARNINGS: usize = 100;

/// Warnings about a valid definition.
pub(super) fn warnings(start_step: &str, steps: &Steps) -> Vec<FieldError> {
    let mut check = Check::new(start_step, steps);
    for index in 0..steps.len() {
        check.step(index);
        if check.work > MAX_WORK {
            let message = "The definition is too large for all of its references to be checked";
            check.warnings.push(FieldError::new("body.steps", "references_not_checked", message));
            break;
        }
        if check.warnings.len() >= MAX_WARNINGS {
            break;
        }
    }
    check.warnings.truncate(MAX_WARNINGS);
    check.warnings
}

/// Errors for inputs of steps and collections of loops that reference a step that does not exist: every run would fail
/// there. Conditions may do so, and a default value replaces it; both only cause [`warnings`].
pub(super) fn unknown_steps(steps: &Steps) -> Vec<FieldError> {
    let asks = steps.iter().filter(|step| step.kind != StepKind::Conditional);
    let unknown = asks.flat_map(|step| {
        references(step).into_iter().filter_map(|(member, reference)| match root_of(&reference) {
            Ok((Root::Output(target, _) | Root::Callback(target), _))
                if steps.index(target).is_none() && !reference.contains(":-") =>
            {
                let message = format!("Reference '{}': {}", shorten(&reference), no_step(target));
                Some(FieldError::new(format!("body.steps.{}.{member}", step.id), UNKNOWN_STEP, message))
            }
            _ => None,
        })
    });
    unknown.take(MAX_WARNINGS).collect()
}

/// Steps whose output is referenced, each with the last position on the main chain at which, or inside of which, this
/// happens.
pub(super) fn last_uses(start_step: &str, steps: &Steps) -> HashMap<String, usize> {
    let chain =
        std::iter::successors(steps.index(start_step), |index| steps.index(steps.at(*index).next_step.as_deref()?));
    let chain: Vec<usize> = chain.take(steps.len()).collect();
    let (mut uses, mut seen) = (HashMap::new(), vec![false; steps.len()]);
    // The walk begins at the end, so that the first reference found is the last use.
    for (position, index) in chain.into_iter().enumerate().rev() {
        let mut open = vec![index];
        while let Some(index) = open.pop() {
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            for (_, reference) in references(steps.at(index)) {
                if let Ok((Root::Output(target, _), _)) = root_of(&reference) {
                    uses.entry(target.to_owned()).or_insert(position);
                }
            }
            open.extend(steps.at(index).nested().filter_map(|id| steps.index(id)));
        }
    }
    uses
}

/// Kind of a reference to a step that does not exist.
const UNKNOWN_STEP: &str = "unknown_step";

fn no_step(id: &str) -> String {
    format!("there is no step '{}'", shorten(id))
}

/// Mention of a step: by which container, and whether as part of a loop's body.
#[derive(Clone, Copy)]
struct Parent {
    index: usize,
    by_loop: bool,
}

struct Check<'a> {
    steps: &'a Steps,
    /// Position on the main chain by step index.
    chain: Vec<Option<usize>>,
    parents: Vec<Vec<Parent>>,
    work: usize,
    warnings: Vec<FieldError>,
}

impl<'a> Check<'a> {
    fn new(start_step: &str, steps: &'a Steps) -> Self {
        let mut chain = vec![None; steps.len()];
        let mut next = steps.index(start_step);
        let mut position = 0;
        while let Some(index) = next.filter(|index| chain[*index].is_none()) {
            chain[index] = Some(position);
            position += 1;
            next = steps.at(index).next_step.as_deref().and_then(|id| steps.index(id));
        }
        let mut parents = vec![Vec::new(); steps.len()];
        for index in 0..steps.len() {
            let by_loop = steps.at(index).kind == StepKind::Loop;
            for inner in steps.at(index).nested().filter_map(|id| steps.index(id)) {
                // Several mentions in one container count once.
                if parents[inner].last().is_none_or(|last: &Parent| last.index != index) {
                    parents[inner].push(Parent { index, by_loop });
                }
            }
        }
        Self { steps, chain, parents, work: 0, warnings: Vec::new() }
    }

    fn step(&mut self, index: usize) {
        let step = self.steps.at(index);
        let around = self.containers(index, true);
        if around.iter().all(|index| self.chain[*index].is_none()) {
            let message = "The step never runs: what mentions it is not used by the type of the mentioning step, or is \
                 the next_step of a step inside a container";
            self.warnings.push(FieldError::new(format!("body.steps.{}", step.id), "step_never_runs", message));
            return;
        }
        let in_loop = around.iter().any(|index| self.parents[*index].iter().any(|parent| parent.by_loop));
        let condition = step.condition.as_ref().filter(|_| step.kind == StepKind::Conditional);
        if let Some(fault) = condition.and_then(|condition| expression::check(&condition.expression).err()) {
            let field = format!("body.steps.{}.condition.expression", step.id);
            let message = format!("The step will fail, since its condition is not valid: {fault}");
            self.warnings.push(FieldError::new(field, "malformed_condition", message));
        }
        for member in step.conversation_members().filter(|_| step.kind != StepKind::Agent) {
            let field = format!("body.steps.{}.{member}", step.id);
            let message =
                format!("The member has no effect: only steps of the type {} use it", StepKind::Agent.as_str());
            self.warnings.push(FieldError::new(field, "member_without_effect", message));
        }
        let mut known = HashSet::new();
        for (member, reference) in references(step) {
            if self.work > MAX_WORK || self.warnings.len() >= MAX_WARNINGS {
                return;
            }
            // The same reference in the same member gives one warning, and is checked once.
            if !known.insert((member.clone(), reference.clone())) {
                continue;
            }
            if let Some((kind, message)) = self.fault(&reference, index, &around, in_loop) {
                let field = format!("body.steps.{}.{member}", step.id);
                let message = format!("Reference '{}': {message}", shorten(&reference));
                self.warnings.push(FieldError::new(field, kind, message));
            }
        }
    }

    /// Reason why a reference of the step at `index` can never resolve.
    fn fault(
        &mut self,
        reference: &str,
        index: usize,
        around: &HashSet<usize>,
        in_loop: bool,
    ) -> Option<(&'static str, String)> {
        let target = match root_of(reference) {
            Ok((Root::Input(_), _)) => return None,
            Ok((Root::Output(target, _), _)) => target,
            Ok((Root::Callback(target), _)) => return self.callback_fault(target, index, around),
            Ok((Root::Loop(..), _)) => {
                let message = "loop variables exist only inside a loop_body".to_owned();
                return (!in_loop).then_some(("reference_outside_loop", message));
            }
            Err(fault @ MappingFault::NoLoopVariable(_)) => return Some(("unknown_loop_variable", fault.to_string())),
            Ok((Root::StepInput(_) | Root::Event(..), _)) | Err(_) => {
                let message = "must begin with workflow.input, <step id>.output or, inside a loop, loop.item";
                return Some(("malformed_reference", message.to_owned()));
            }
        };
        let Some(target_index) = self.steps.index(target) else {
            return Some((UNKNOWN_STEP, no_step(target)));
        };
        if target_index == index {
            return Some(("reference_to_itself", "a step cannot use its own output".to_owned()));
        }
        if self.can_precede(target_index, around) {
            return None;
        }
        let message = format!("step '{}' never has an output before this step runs", shorten(target));
        Some(("reference_never_resolves", message))
    }

    /// Reason why the address of a callback is never available to the step at `index`.
    fn callback_fault(&self, target: &str, index: usize, around: &HashSet<usize>) -> Option<(&'static str, String)> {
        let Some(target_index) = self.steps.index(target) else { return Some((UNKNOWN_STEP, no_step(target))) };
        if self.steps.at(target_index).kind != StepKind::Callback {
            return Some(("reference_never_resolves", format!("step '{}' is not a callback", shorten(target))));
        }
        // The step must be in the branch of the callback, or in a branch beside or inside of it.
        let parents = &self.parents[target_index];
        let is_seen = self.chain[target_index].is_some()
            || target_index == index
            || parents.iter().any(|parent| around.contains(&parent.index));
        (!is_seen).then(|| {
            let message = format!("step '{}' is neither in the same branch nor in an enclosing one", shorten(target));
            ("reference_never_resolves", message)
        })
    }

    /// The step and all containers around it. Without loops: only those from which its output is visible, since outputs
    /// in a loop's body are visible only inside of their iteration.
    fn containers(&mut self, index: usize, through_loops: bool) -> HashSet<usize> {
        let mut found = HashSet::from([index]);
        let mut open = vec![index];
        while let Some(index) = open.pop() {
            self.work += 1 + self.parents[index].len();
            let parents = self.parents[index].iter().filter(|parent| through_loops || !parent.by_loop);
            open.extend(parents.map(|parent| parent.index).filter(|parent| found.insert(*parent)));
        }
        found
    }

    /// Whether the target's output can exist when a step inside of `around` begins.
    fn can_precede(&mut self, target: usize, around: &HashSet<usize>) -> bool {
        let seen_from = self.containers(target, false);
        self.work += seen_from.len() + 2 * around.len();
        let first = seen_from.iter().filter_map(|index| self.chain[*index]).min();
        let last = around.iter().filter_map(|index| self.chain[*index]).max();
        if first.is_some_and(|first| last.is_some_and(|last| first < last)) {
            return true;
        }
        let steps = self.steps;
        around.iter().any(|container| {
            let container = steps.at(*container);
            let ids = |ids: &'a [String]| ids.iter().map(|id| steps.index(id)).collect::<Vec<_>>();
            // Within a branch the order is fixed; of parallel branches any may be the first.
            let branches: Vec<Vec<Option<usize>>> = match container.kind {
                StepKind::Agent
                | StepKind::Conditional
                | StepKind::Wait
                | StepKind::Callback
                | StepKind::SubWorkflow => return false,
                StepKind::Parallel => {
                    let members = container.parallel_steps.as_deref().unwrap_or_default();
                    members.iter().map(|id| vec![steps.index(id)]).collect()
                }
                StepKind::Loop => container.loop_config.iter().map(|config| ids(&config.loop_body)).collect(),
                StepKind::ForkJoin => {
                    let branches = container.fork_join_config.iter().flat_map(|config| &config.branches);
                    branches.map(|(_, branch)| ids(&branch.steps)).collect()
                }
            };
            self.work += branches.iter().map(Vec::len).sum::<usize>();
            let within = |set: &HashSet<usize>, index: &Option<usize>| index.is_some_and(|index| set.contains(&index));
            let firsts: Vec<_> =
                branches.iter().map(|branch| branch.iter().position(|index| within(&seen_from, index))).collect();
            let lasts: Vec<_> =
                branches.iter().map(|branch| branch.iter().rposition(|index| within(around, index))).collect();
            let with_target = firsts.iter().filter(|first| first.is_some()).count();
            firsts.iter().zip(&lasts).any(|(first, last)| {
                let Some(last) = last else { return false };
                with_target > usize::from(first.is_some()) || first.is_some_and(|first| first < *last)
            })
        })
    }
}

impl Step {
    /// References that a step of its kind resolves, each with the member that contains it.
    #[must_use]
    pub fn references(&self) -> Vec<(String, String)> {
        references(self)
    }
}

/// References that a step of its kind resolves, each with the member that contains it.
fn references(step: &Step) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |member: &str, text: &str| {
        let references = split(text).into_iter().filter_map(|piece| match piece {
            Piece::Reference(reference) => Some((member.to_owned(), reference.to_owned())),
            Piece::Text(_) => None,
        });
        found.extend(references);
    };
    match step.kind {
        StepKind::Agent | StepKind::Callback | StepKind::SubWorkflow => {
            for (name, value) in step.mapping() {
                strings(value, &mut |text| add(&format!("input_mapping.{}", shorten(name)), text));
            }
            if step.kind == StepKind::Agent {
                add("context_id", step.context_id.as_deref().unwrap_or_default());
                add("task_id", step.task_id.as_deref().unwrap_or_default());
            }
        }
        StepKind::Wait => {
            if let Some(config) = &step.wait_config {
                let secs = config.duration_seconds.as_deref().and_then(text);
                add("wait_config.duration_seconds", secs.as_deref().unwrap_or_default());
                add("wait_config.duration", config.duration.as_deref().unwrap_or_default());
                add("wait_config.until", config.until.as_deref().unwrap_or_default());
            }
        }
        StepKind::Conditional => {
            if let Some(condition) = &step.condition {
                add("condition.expression", &condition.expression);
            }
        }
        StepKind::Loop => {
            if let Some(config) = &step.loop_config {
                // Only the reference at its beginning is used.
                let end = config.collection.find('}').map_or(0, |end| end + 1);
                add("loop_config.collection", config.collection[..end].trim_start());
            }
        }
        StepKind::Parallel | StepKind::ForkJoin => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::{Node, check_json},
        workflow::step::Source,
    };

    /// Checks that steps started at `a` give these warnings: `step.member kind`.
    fn check(json: &str, expected: &[&str]) {
        let raw = check_json(json.as_bytes()).expect(json);
        let steps = Steps::read(&Node::new("steps", raw), Source::Caller).expect(json);
        let found = warnings("a", &steps);
        let found: Vec<_> =
            found.iter().map(|one| format!("{} {}", one.field.trim_start_matches("body.steps."), one.kind)).collect();
        assert_eq!(found, expected, "{json}");
    }

    fn agent(id: &str, next: &str, reference: &str) -> String {
        let next = if next.is_empty() { "null".to_owned() } else { format!("\"{next}\"") };
        format!(
            r#""{id}":{{"id":"{id}","agent_name":"x","next_step":{next},"input_mapping":{{"m":["t ${{{reference}}}"]}}}}"#
        )
    }

    #[test]
    fn the_references_of_a_deeply_nested_step_take_work_for_each_block_around_it() {
        let blocks = (0..300).map(|depth| {
            let inner = if depth == 299 { "z".to_owned() } else { format!("b{}", depth + 1) };
            format!(r#""b{depth}":{{"id":"b{depth}","type":"parallel","parallel_steps":["{inner}","{inner}"]}}"#)
        });
        let blocks = blocks.collect::<Vec<_>>().join(",");
        let check_with = |count: usize, expected: &[&str]| {
            let texts: Vec<_> = (0..count).map(|number| format!("\"${{a.output.x{number}}}\"")).collect();
            let texts = texts.join(",");
            let z = format!(r#""z":{{"id":"z","agent_name":"x","input_mapping":{{"m":[{texts}]}}}}"#);
            check(&format!("{{{},{blocks},{z}}}", agent("a", "b0", "workflow.input.x")), expected);
        };
        check_with(300, &[]);
        check_with(3000, &["body.steps references_not_checked"]);
    }

    #[test]
    fn an_output_is_used_up_to_the_last_step_that_asks_for_it_at_any_depth() {
        let json = format!(
            r#"{{{},"b":{{"id":"b","type":"parallel","parallel_steps":["c","e"],"next_step":"d"}},{},{},{}}}"#,
            agent("a", "b", "workflow.input.x"),
            agent("c", "", "a.output.x:-1"),
            agent("d", "", "steps.b.output[0]"),
            agent("e", "", "workflow.input.x")
        );
        let raw = check_json(json.as_bytes()).expect("JSON");
        let steps = Steps::read(&Node::new("steps", raw), Source::Caller).expect("steps");
        let expected = [("a".to_owned(), 1), ("b".to_owned(), 2)];
        assert_eq!(last_uses("a", &steps), HashMap::from(expected));
    }

    #[test]
    fn a_step_sees_the_input_and_what_ran_before() {
        let chain = |of_a: &str, of_b: &str| format!("{{{},{}}}", agent("a", "b", of_a), agent("b", "", of_b));
        check(&chain("workflow.input.x", "a.output.text"), &[]);
        check(&chain("workflow.input", "steps.a.output"), &[]);
        check(
            &chain("b.output.text", "b.output.text"),
            &["a.input_mapping.m reference_never_resolves", "b.input_mapping.m reference_to_itself"],
        );
        check(
            &chain("gone.output.x", "workflow.inputs.x"),
            &["a.input_mapping.m unknown_step", "b.input_mapping.m malformed_reference"],
        );
        check(
            &chain("loop.item", "loop.items"),
            &["a.input_mapping.m reference_outside_loop", "b.input_mapping.m unknown_loop_variable"],
        );
    }

    #[test]
    fn a_loop_keeps_its_outputs_and_variables_to_itself() {
        let with = |collection: &str, of_b: &str, of_c: &str, of_d: &str| {
            let head = r#""type":"loop","next_step":"d","loop_config":{"loop_body":["b","c"],"collection":"#;
            let (b, c, d) = (agent("b", "", of_b), agent("c", "", of_c), agent("d", "", of_d));
            format!(r#"{{"a":{{"id":"a",{head}"${{{collection}}}"}}}},{b},{c},{d}}}"#)
        };
        check(&with("workflow.input.i", "loop.item", "b.output.x", "a.output.iterations"), &[]);
        check(
            &with("b.output.x", "c.output.x", "a.output.x", "b.output.x"),
            &[
                "a.loop_config.collection reference_never_resolves",
                "b.input_mapping.m reference_never_resolves",
                "c.input_mapping.m reference_never_resolves",
                "d.input_mapping.m reference_never_resolves",
            ],
        );
    }

    #[test]
    fn branches_of_a_fork_may_race_and_those_of_a_condition_exclude_each_other() {
        let fork = |of_b: &str, of_c: &str, of_d: &str| {
            let head =
                r#""type":"fork_join","fork_join_config":{"branches":{"x":{"steps":["b","c"]},"y":{"steps":["d"]}}}"#;
            let (b, c, d) = (agent("b", "", of_b), agent("c", "", of_c), agent("d", "", of_d));
            format!(r#"{{"a":{{"id":"a",{head}}},{b},{c},{d}}}"#)
        };
        check(&fork("d.output.x", "b.output.x", "c.output.x"), &[]);
        check(
            &fork("c.output.x", "a.output.x", "workflow.input.x"),
            &["b.input_mapping.m reference_never_resolves", "c.input_mapping.m reference_never_resolves"],
        );
        let head = r#""type":"conditional","condition":{"expression":"${b.output.x} == 1"},"if_true_step":"b","if_false_step":"c""#;
        let (b, c) = (agent("b", "", "workflow.input.x"), agent("c", "", "b.output.x"));
        check(
            &format!(r#"{{"a":{{"id":"a",{head}}},{b},{c}}}"#),
            &["a.condition.expression reference_never_resolves", "c.input_mapping.m reference_never_resolves"],
        );
    }

    #[test]
    fn an_invalid_condition_is_reported() {
        let (b, with) = (agent("b", "", "workflow.input.x:-none"), |condition: &str| {
            format!(
                r#"{{"a":{{"id":"a","type":"conditional","condition":{{"expression":"{condition}"}},"if_true_step":"b"}},"#
            )
        });
        check(&format!("{}{b}}}", with("${workflow.input.x} > 1")), &[]);
        check(&format!("{}{b}}}", with("${workflow.input.x} > high")), &["a.condition.expression malformed_condition"]);
    }

    #[test]
    fn members_of_a_block_are_seen_after_it_and_the_step_after_a_member_never_runs() {
        let head = r#""type":"parallel","next_step":"d","parallel_steps":["b","c"]"#;
        let (b, c) = (agent("b", "e", "c.output.x"), agent("c", "", "workflow.input.x"));
        let (d, e) = (agent("d", "", "b.output.x"), agent("e", "", "gone.output.x"));
        check(&format!(r#"{{"a":{{"id":"a",{head}}},{b},{c},{d},{e}}}"#), &["e step_never_runs"]);
    }

    #[test]
    fn work_is_bounded() {
        let count = 5_000;
        let nest = |n: usize| match n {
            _ if n == count => r#""a5000":{"id":"a5000","agent_name":"x","input_mapping":{}}"#.to_owned(),
            _ => {
                let id = if n == 0 { "a".to_owned() } else { format!("a{n}") };
                format!(
                    r#""{id}":{{"id":"{id}","type":"conditional","condition":{{"expression":"${{a.output.x}}"}},"if_true_step":"a{}"}}"#,
                    n + 1
                )
            }
        };
        let steps: Vec<_> = (0..=count).map(nest).collect();
        let raw = format!("{{{}}}", steps.join(","));
        let raw = check_json(raw.as_bytes()).expect("JSON");
        let steps = Steps::read(&Node::new("steps", raw), Source::Caller).expect("steps");
        assert_eq!(warnings("a", &steps).len(), MAX_WARNINGS);
        assert_eq!(super::super::Summary::of("a", &steps).depth, count + 1);
    }
}
