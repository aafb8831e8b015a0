//! Minimum size of a run of a definition.

use super::{
    step::{Step, StepKind},
    steps::Steps,
};

/// Minimum number of rows that a run writes if no step fails: one for each executed step, including blocks. A loop
/// depends on its array, and a condition on its value; the minimum is used.
pub(super) fn least_rows(start_step: &str, steps: &Steps) -> u64 {
    let mut rows = vec![None; steps.len()];
    let mut total: u64 = 0;
    let mut next = steps.index(start_step);
    // The chain of a valid definition ends.
    for _ in 0..steps.len() {
        let Some(index) = next else { break };
        total = total.saturating_add(rows_of(index, steps, &mut rows));
        next = steps.at(index).next_step.as_deref().and_then(|id| steps.index(id));
    }
    total
}

/// Rows of the step at that index. Steps may be nested deeper than the stack allows; none contains itself.
fn rows_of(root: usize, steps: &Steps, rows: &mut [Option<u64>]) -> u64 {
    let mut open = vec![root];
    while let Some(index) = open.last().copied() {
        if rows[index].is_some() {
            // The step is mentioned more than once.
            open.pop();
            continue;
        }
        let step = steps.at(index);
        let known = open.len();
        open.extend(step.nested().filter_map(|id| steps.index(id)).filter(|inner| rows[*inner].is_none()));
        if open.len() == known {
            open.pop();
            rows[index] =
                Some(with_inner(step, |id| steps.index(id).and_then(|inner| rows[inner]).unwrap_or_default()));
        }
    }
    rows[root].unwrap_or_default()
}

fn with_inner(step: &Step, rows: impl Fn(&str) -> u64) -> u64 {
    let inner = match step.kind {
        StepKind::Parallel => sum(&mut step.nested(), rows),
        StepKind::ForkJoin => step.fork_join_config.as_ref().map_or(0, |config| {
            let branches =
                config.branches.iter().map(|(_, branch)| sum(&mut branch.steps.iter().map(String::as_str), &rows));
            match config.join_policy {
                "all" => branches.fold(0, u64::saturating_add),
                _ => branches.min().unwrap_or_default(),
            }
        }),
        StepKind::Conditional => {
            let branch = |id: &Option<String>| id.as_deref().map(&rows).unwrap_or_default();
            branch(&step.if_true_step).min(branch(&step.if_false_step))
        }
        StepKind::Agent | StepKind::Loop | StepKind::Wait | StepKind::Callback | StepKind::SubWorkflow => 0,
    };
    inner.saturating_add(1)
}

fn sum(ids: &mut dyn Iterator<Item = &str>, rows: impl Fn(&str) -> u64) -> u64 {
    ids.fold(0, |sum, id| sum.saturating_add(rows(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::{Node, check_json},
        workflow::step::Source,
    };

    fn check(json: &str, expected: u64) {
        let raw = check_json(json.as_bytes()).expect(json);
        let steps = Steps::read(&Node::new("steps", raw), Source::Caller).expect(json);
        assert_eq!(least_rows("a", &steps), expected, "{json}");
    }

    #[test]
    fn each_mention_counts_and_an_unknown_part_counts_its_minimum() {
        let b = r#""b":{"id":"b","agent_name":"x","input_mapping":{}}"#;
        check(&format!(r#"{{"a":{{"id":"a","agent_name":"x","input_mapping":{{}},"next_step":"b"}},{b}}}"#), 2);
        check(
            &format!(r#"{{"a":{{"id":"a","type":"parallel","parallel_steps":["b","b","b"],"next_step":"b"}},{b}}}"#),
            5,
        );
        let condition = r#""type":"conditional","condition":{"expression":"1"}"#;
        check(&format!(r#"{{"a":{{"id":"a",{condition},"if_true_step":"b"}},{b}}}"#), 1);
        check(&format!(r#"{{"a":{{"id":"a",{condition},"if_true_step":"b","if_false_step":"b"}},{b}}}"#), 2);
        let each = r#""type":"loop","loop_config":{"collection":"${workflow.input.i}","loop_body":["b"]}"#;
        check(&format!(r#"{{"a":{{"id":"a",{each}}},{b}}}"#), 1);
    }

    #[test]
    fn blocks_of_many_mentions_inside_each_other_are_counted_fast() {
        let block = |n: usize| {
            let id = if n == 0 { "a".to_owned() } else { format!("s{n}") };
            let inner = vec![format!("\"s{}\"", n + 1); 1000].join(",");
            format!(r#""{id}":{{"id":"{id}","type":"parallel","parallel_steps":[{inner}]}}"#)
        };
        let blocks: Vec<String> = (0..14).map(block).collect();
        let leaf = r#""s14":{"id":"s14","agent_name":"x","input_mapping":{}}"#;
        check(&format!("{{{},{leaf}}}", blocks.join(",")), u64::MAX);
    }
}
