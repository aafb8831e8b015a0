//! Validation rules that need all steps (10 to 16 of the contract's §3).
//!
//! Every walk is iterative and linear in the number of mentions: a body has room for deeper nesting and longer chains
//! than a stack.

use super::steps::Steps;
use crate::input::shorten;

/// Maximum number of steps that one message names.
const MAX_NAMED: usize = 20;

/// Maximum number of steps of one run, as far as it is known in advance.
const MAX_RUN_STEPS: usize = 100_000;

/// Checks a whole definition. The error is the text of the first violated rule.
pub(super) fn definition(start_step: &str, steps: &Steps) -> Result<(), String> {
    chain(start_step, steps)?;
    no_cycle(steps, |step| steps.at(step).next_step.as_deref().into_iter())
        .map_err(|id| format!("the steps that follow step '{id}' lead back to it"))?;
    all_reachable(start_step, steps)?;
    for step in steps.iter() {
        if let Some(id) = step.nested().find(|id| steps.index(id).is_none()) {
            return Err(format!("step '{}' refers to step '{}', which does not exist", step.id, shorten(id)));
        }
    }
    no_recursive_nesting(steps)?;
    few_enough(start_step, steps)
}

/// Limits the number of steps of a run: blocks that mention each other several times multiply it.
fn few_enough(start_step: &str, steps: &Steps) -> Result<(), String> {
    let mut counts = vec![0_usize; steps.len()];
    for index in steps.inside_out() {
        let nested = steps.at(index).nested().filter_map(|id| steps.index(id));
        counts[index] = nested.map(|inner| counts[inner]).fold(1, usize::saturating_add);
    }
    let (mut count, mut next) = (0_usize, steps.index(start_step));
    while let Some(index) = next {
        count = count.saturating_add(counts[index]);
        next = steps.at(index).next_step.as_deref().and_then(|id| steps.index(id));
    }
    if count <= MAX_RUN_STEPS {
        return Ok(());
    }
    let largest =
        steps.iter().zip(&counts).filter(|(_, count)| **count > MAX_RUN_STEPS).map(|(step, _)| &step.id).next();
    let what = largest.map(|id| format!(", most of them inside of step '{}'", shorten(id))).unwrap_or_default();
    Err(format!(
        "a run would execute more than {MAX_RUN_STEPS} steps, with each mention of a step counted and each loop once{what}"
    ))
}

/// Checks that no step contains itself, directly or through others.
pub(super) fn no_recursive_nesting(steps: &Steps) -> Result<(), String> {
    no_cycle(steps, |step| steps.at(step).nested()).map_err(|id| format!("step '{}' contains itself", shorten(id)))
}

/// Checks start, keys and successors, without which steps cannot be walked.
pub(super) fn chain(start_step: &str, steps: &Steps) -> Result<(), String> {
    if steps.index(start_step).is_none() {
        return Err(format!("start_step '{}' is not one of the steps", shorten(start_step)));
    }
    if let Some((key, step)) = steps.entries().find(|(key, step)| *key != step.id) {
        return Err(format!("step '{}' has the id '{}'; key and id must be equal", shorten(key), shorten(&step.id)));
    }
    for step in steps.iter() {
        if let Some(next) = step.next_step.as_deref().filter(|next| steps.index(next).is_none()) {
            return Err(format!("step '{}' is followed by step '{}', which does not exist", step.id, shorten(next)));
        }
    }
    Ok(())
}

/// Checks that the main chain ends; other chains are not executed and need not end.
pub(super) fn main_chain_ends(start_step: &str, steps: &Steps) -> Result<(), String> {
    let follow = |id: &String| steps.get(id).and_then(|step| step.next_step.as_ref());
    let start = steps.get(start_step).map(|step| &step.id);
    // A chain that has not ended after that many steps is a cycle.
    match std::iter::successors(start, |id| follow(id)).nth(steps.len()) {
        None => Ok(()),
        Some(id) => Err(format!("the steps that follow step '{id}' lead back to it")),
    }
}

/// Finds a step that can be reached from itself along these edges. Edges to unknown steps are ignored.
fn no_cycle<'a, E: Iterator<Item = &'a str>>(steps: &'a Steps, edges: impl Fn(usize) -> E) -> Result<(), &'a str> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let mut marks = vec![Mark::New; steps.len()];
    for root in 0..steps.len() {
        if marks[root] != Mark::New {
            continue;
        }
        marks[root] = Mark::OnPath;
        let mut path = vec![(root, edges(root))];
        while let Some((step, rest)) = path.last_mut() {
            let Some(id) = rest.next() else {
                marks[*step] = Mark::Done;
                path.pop();
                continue;
            };
            let Some(next) = steps.index(id) else { continue };
            match marks[next] {
                Mark::OnPath => return Err(id),
                Mark::Done => {}
                Mark::New => {
                    marks[next] = Mark::OnPath;
                    path.push((next, edges(next)));
                }
            }
        }
    }
    Ok(())
}

/// Checks that every step can be reached from the first along any member that mentions a step, whether its kind uses it
/// or not.
fn all_reachable(start_step: &str, steps: &Steps) -> Result<(), String> {
    let missed = unreachable(start_step, steps);
    if missed.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = missed.iter().take(MAX_NAMED).map(|id| shorten(id)).collect();
    let more =
        if missed.len() > shown.len() { format!(" and {} more", missed.len() - shown.len()) } else { String::new() };
    Err(format!("steps cannot be reached from start_step: {}{more}", shown.join(", ")))
}

/// Ids of unreachable steps, sorted.
pub(super) fn unreachable<'a>(start_step: &str, steps: &'a Steps) -> Vec<&'a str> {
    let mut reached = vec![false; steps.len()];
    let mut open: Vec<usize> = steps.index(start_step).into_iter().collect();
    while let Some(index) = open.pop() {
        if std::mem::replace(&mut reached[index], true) {
            continue;
        }
        let step = steps.at(index);
        let nested = step.mentioned().map(|(_, id)| id);
        open.extend(nested.chain(step.next_step.as_deref()).filter_map(|id| steps.index(id)));
    }
    let mut missed: Vec<&str> =
        steps.iter().zip(reached).filter(|(_, reached)| !reached).map(|(step, _)| step.id.as_str()).collect();
    missed.sort_unstable();
    missed
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::input::{Node, check_json};
    use crate::workflow::step::Source;

    fn steps(json: &str) -> Steps {
        let raw = check_json(json.as_bytes()).expect(json);
        Steps::read(&Node::new("steps", raw), Source::Caller).expect(json)
    }

    /// Checks that steps given as `key: members`, started at the first, violate a rule whose text contains `expected`,
    /// or none.
    fn check(given: &[(&str, &str)], expected: Option<&str>) {
        let mut json = String::new();
        for (key, members) in given {
            let comma = if json.is_empty() { "" } else { "," };
            let agent = r#""agent_name":"x","input_mapping":{}"#;
            write!(
                json,
                r#"{comma}"{key}":{{"id":"{key}",{agent}{}{members}}}"#,
                if members.is_empty() { "" } else { "," }
            )
            .expect("a string grows");
        }
        let found = definition(given[0].0, &steps(&format!("{{{json}}}"))).err();
        match expected {
            None => assert_eq!(found, None, "{json}"),
            Some(part) => assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{json}: {found:?}"),
        }
    }

    const fn parallel() -> &'static str {
        r#""type":"parallel","parallel_steps":["b","c"]"#
    }

    #[test]
    fn start_keys_and_successors_exist() {
        let one = steps(r#"{"a":{"id":"a","agent_name":"x","input_mapping":{}}}"#);
        assert!(definition("a", &one).is_ok());
        assert!(definition("b", &one).is_err_and(|text| text.contains("start_step 'b'")));
        let other = steps(r#"{"a":{"id":"b","agent_name":"x","input_mapping":{}}}"#);
        assert!(definition("a", &other).is_err_and(|text| text.contains("'a' has the id 'b'")));
        check(&[("a", r#""next_step":"b""#)], Some("followed by step 'b'"));
        check(&[("a", r#""next_step":"""#)], Some("followed by step ''"));
    }

    /// Transitive closure by a simple algorithm: which nodes can be reached in one step or more.
    fn closure(edges: &[(usize, usize)], size: usize) -> Vec<Vec<bool>> {
        let mut reach = vec![vec![false; size]; size];
        for (from, to) in edges {
            reach[*from][*to] = true;
        }
        for via in 0..size {
            for from in 0..size {
                for to in 0..size {
                    reach[from][to] |= reach[from][via] && reach[via][to];
                }
            }
        }
        reach
    }

    #[test]
    fn a_random_graph_is_valid_if_it_has_no_cycle_and_every_step_is_reached() {
        let (mut valid, mut invalid) = (0, 0);
        for seed in 0..4000 {
            let mut random = StdRng::seed_from_u64(seed);
            let size = random.random_range(1..8);
            // Later steps are more frequent targets, so that some graphs have no cycle.
            let mut target = |from: usize| {
                let lowest = if random.random_bool(0.1) { 0 } else { (from + 1).min(size - 1) };
                random.random_bool(0.6).then(|| random.random_range(lowest..size))
            };
            let (mut next, mut nested, mut parts) = (Vec::new(), Vec::new(), Vec::new());
            for from in 0..size {
                let mut members = String::new();
                if let Some(to) = target(from) {
                    next.push((from, to));
                    write!(members, r#","next_step":"s{to}""#).expect("a string grows");
                }
                let inner = [target(from), target(from)];
                if let [Some(left), Some(right)] = inner {
                    nested.extend([(from, left), (from, right)]);
                    write!(members, r#","type":"parallel","parallel_steps":["s{left}","s{right}"]"#)
                        .expect("a string grows");
                }
                parts.push(format!(r#""s{from}":{{"id":"s{from}","agent_name":"x","input_mapping":{{}}{members}}}"#));
            }
            let json = format!("{{{}}}", parts.join(","));
            let both: Vec<_> = next.iter().chain(&nested).copied().collect();
            let has_circle = |edges| closure(edges, size).iter().enumerate().any(|(step, reach)| reach[step]);
            let all_reached = closure(&both, size)[0].iter().skip(1).all(|reached| *reached);
            let expected = !has_circle(&next) && !has_circle(&nested) && all_reached;
            assert_eq!(definition("s0", &steps(&json)).is_ok(), expected, "seed {seed}: {json}");
            *if expected { &mut valid } else { &mut invalid } += 1;
        }
        assert!(valid > 100 && invalid > 100, "{valid} valid and {invalid} invalid graphs show little");
    }

    #[test]
    fn successors_form_no_cycle_anywhere() {
        check(&[("a", r#""next_step":"b""#), ("b", "")], None);
        check(&[("a", r#""next_step":"a""#)], Some("lead back"));
        check(&[("a", r#""next_step":"b""#), ("b", r#""next_step":"a""#)], Some("lead back"));
        let nested = [("a", parallel()), ("b", r#""next_step":"c""#), ("c", r#""next_step":"b""#)];
        check(&nested, Some("lead back"));
    }

    #[test]
    fn a_member_of_a_block_may_be_followed_by_the_block() {
        check(&[("a", parallel()), ("b", r#""next_step":"a""#), ("c", r#""next_step":"a""#)], None);
    }

    #[test]
    fn every_step_is_reached_through_some_member() {
        check(&[("a", ""), ("z", ""), ("b", "")], Some("start_step: b, z"));
        for members in [
            parallel(),
            r#""type":"conditional","condition":{"expression":"1"},"if_true_step":"b","if_false_step":"c""#,
            r#""type":"loop","loop_config":{"collection":"${workflow.input.i}","loop_body":["b","c"]}"#,
            r#""type":"fork_join","fork_join_config":{"branches":{"x":{"steps":["b"]},"y":{"steps":["c"]}}}"#,
            r#""parallel_steps":["b","c"]"#,
        ] {
            check(&[("a", members), ("b", ""), ("c", "")], None);
            if members.contains("type") {
                check(&[("a", members), ("c", "")], Some("'a' refers to step 'b'"));
            }
        }
    }

    #[test]
    fn what_a_kind_does_not_use_may_refer_to_anything() {
        check(&[("a", r#""parallel_steps":["nowhere","a"],"if_true_step":"gone""#)], None);
    }

    #[test]
    fn a_container_does_not_contain_itself() {
        let contains_a = r#""type":"loop","loop_config":{"collection":"${workflow.input.i}","loop_body":["a"]}"#;
        check(&[("a", contains_a)], Some("'a' contains itself"));
        check(&[("a", parallel()), ("b", contains_a), ("c", "")], Some("contains itself"));
        // Two blocks may share a step.
        let shares = r#""type":"conditional","condition":{"expression":"1"},"if_true_step":"c""#;
        check(&[("a", parallel()), ("b", shares), ("c", "")], None);
    }

    #[test]
    fn ten_thousand_steps_in_a_row_or_inside_each_other_need_no_stack() {
        let count = 10_000;
        let step = |n: usize| match n {
            _ if n + 1 == count => format!(r#""s{n}":{{"id":"s{n}","agent_name":"x","input_mapping":{{}}}}"#),
            _ => format!(r#""s{n}":{{"id":"s{n}","agent_name":"x","input_mapping":{{}},"next_step":"s{}"}}"#, n + 1),
        };
        let row: Vec<_> = (0..count).map(step).collect();
        let row = steps(&format!("{{{}}}", row.join(",")));
        assert_eq!((definition("s0", &row), main_chain_ends("s0", &row)), (Ok(()), Ok(())));
        let nest = |n: usize| match n {
            _ if n + 1 == count => format!(r#""s{n}":{{"id":"s{n}","agent_name":"x","input_mapping":{{}}}}"#),
            _ => format!(
                r#""s{n}":{{"id":"s{n}","type":"conditional","condition":{{"expression":"1"}},"if_true_step":"s{}"}}"#,
                n + 1
            ),
        };
        let nested: Vec<_> = (0..count).map(nest).collect();
        assert_eq!(definition("s0", &steps(&format!("{{{}}}", nested.join(",")))), Ok(()));
    }

    #[test]
    fn blocks_that_mention_each_other_many_times_are_refused() {
        let blocks = |depth: usize, mentions: usize| {
            let mut json = String::new();
            for n in 0..depth {
                let inner = vec![format!(r#""b{}""#, n + 1); mentions].join(",");
                write!(json, r#""b{n}":{{"id":"b{n}","type":"parallel","parallel_steps":[{inner}]}},"#)
                    .expect("a string grows");
            }
            let last = format!(r#""b{depth}":{{"id":"b{depth}","agent_name":"x","input_mapping":{{}}}}"#);
            definition("b0", &steps(&format!("{{{json}{last}}}")))
        };
        assert_eq!(blocks(1, 8000), Ok(()));
        assert_eq!(
            blocks(16, 2),
            Err("a run would execute more than 100000 steps, with each mention of a step counted and \
            each loop once, most of them inside of step 'b0'"
                .to_owned())
        );
        assert!(blocks(14, 8000).is_err_and(|text| text.contains("more than 100000 steps")));
        assert_eq!(blocks(15, 2), Ok(()));
    }
}
