//! Graph of a definition: nodes and edges, rendered as text or picture.
//!
//! The main chain runs down the left side; the steps inside of a container are to the right of it. A step that several
//! containers use is drawn once.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::{
    OnQuestion, Plan, Step, StepKind, Steps,
    wait_config::{Approval, WaitConfig},
};
use crate::input::text;

pub mod layout;
mod svg;

/// Maximum number of characters of a label.
const MAX_LABEL_CHARS: usize = 40;

/// Graph of a definition, with nodes and edges in the order of drawing.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Nodes, one for each step that can be reached.
    pub nodes: Vec<Node>,
    /// Edges.
    pub edges: Vec<Edge>,
}

/// Node of a step.
#[derive(Clone, Debug)]
pub struct Node {
    /// Id of the step.
    pub id: String,
    /// Type of the step.
    pub kind: StepKind,
    /// Agent, or details of the container.
    pub about: String,
    /// State of the step in a run, from its step rows, in upper case.
    pub state: Option<String>,
    /// Nesting depth in containers; 0 on the main chain.
    pub depth: usize,
}

/// Edge between two nodes, given by their indexes.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Index of its source.
    pub from: usize,
    /// Index of its target.
    pub to: usize,
    /// Relation of the target to the source; empty for the next step.
    pub label: String,
    /// Whether the target runs inside of the source.
    pub nested: bool,
}

impl Graph {
    /// Graph of a plan. `states` are those of a run's steps, by id; empty without a run.
    #[must_use]
    pub fn new(plan: &Plan, states: &HashMap<String, String>) -> Self {
        Self::of(&plan.start_step, &plan.steps, states)
    }

    /// Graph of steps, which need not be valid together.
    pub(super) fn of(start_step: &str, steps: &Steps, states: &HashMap<String, String>) -> Self {
        // Depth-first order: a container, then its contents, then its successors.
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        let mut open: Vec<(&Step, usize)> = steps.get(start_step).map(|step| (step, 0)).into_iter().collect();
        while let Some((step, depth)) = open.pop() {
            if !seen.insert(step.id.as_str()) {
                continue;
            }
            order.push((step, depth));
            // The next step of a nested step is not used.
            let next = step.next_step.as_deref().filter(|_| depth == 0).and_then(|id| steps.get(id));
            open.extend(next.map(|next| (next, depth)));
            let inner: Vec<_> = parts(step).into_iter().filter_map(|(id, _)| steps.get(id)).collect();
            open.extend(inner.into_iter().rev().map(|inner| (inner, depth + 1)));
        }
        let indexes: HashMap<&str, usize> =
            order.iter().enumerate().map(|(index, (step, _))| (step.id.as_str(), index)).collect();
        let mut edges = Vec::new();
        for (from, (step, depth)) in order.iter().enumerate() {
            // Several mentions in one block are one edge.
            let mut drawn = HashSet::new();
            for (id, label) in parts(step).into_iter().filter(|part| drawn.insert(part.clone())) {
                edges.extend(indexes.get(id).map(|&to| Edge { from, to, label, nested: true }));
            }
            let next = step.next_step.as_deref().filter(|_| *depth == 0).and_then(|id| indexes.get(id));
            edges.extend(next.map(|&to| Edge { from, to, label: String::new(), nested: false }));
        }
        let nodes = order.iter().map(|(step, depth)| Node {
            id: step.id.clone(),
            kind: step.kind,
            about: about(step),
            state: states.get(&step.id).map(|state| state.to_uppercase()),
            depth: *depth,
        });
        Self { nodes: nodes.collect(), edges }
    }

    /// Renders the graph as a Mermaid flowchart.
    #[must_use]
    pub fn mermaid(&self) -> String {
        let mut text = String::from("flowchart TD\n");
        let mut line = |line: String| {
            text.push_str("    ");
            text.push_str(&line);
            text.push('\n');
        };
        for (index, node) in self.nodes.iter().enumerate() {
            let (open, close) = match node.kind {
                StepKind::Agent => ("[", "]"),
                StepKind::Parallel => ("[[", "]]"),
                StepKind::Conditional => ("{", "}"),
                StepKind::Loop => ("([", "])"),
                StepKind::ForkJoin => ("{{", "}}"),
                StepKind::Wait => ("((", "))"),
                StepKind::Callback => ("[/", "/]"),
                StepKind::SubWorkflow => ("[(", ")]"),
            };
            let mut label = quoted(&node.id);
            if !node.about.is_empty() {
                let _ = write!(label, "<br/>{}", quoted(&node.about));
            }
            if let Some(state) = &node.state {
                let _ = write!(label, "<br/>{}", quoted(state));
            }
            line(format!("n{index}{open}\"{label}\"{close}"));
        }
        for edge in &self.edges {
            let arrow = if edge.nested { "-.->" } else { "-->" };
            let label = if edge.label.is_empty() { String::new() } else { format!("|\"{}\"|", quoted(&edge.label)) };
            line(format!("n{} {arrow}{label} n{}", edge.from, edge.to));
        }
        for (state, colour) in COLOURS {
            let indexes = self.nodes.iter().enumerate().filter(|(_, node)| node.state.as_deref() == Some(state));
            let indexes: Vec<_> = indexes.map(|(index, _)| format!("n{index}")).collect();
            if !indexes.is_empty() {
                line(format!("classDef {} fill:{colour}", state.to_lowercase()));
                line(format!("class {} {}", indexes.join(","), state.to_lowercase()));
            }
        }
        text
    }
}

/// Colours of the states, in Mermaid and SVG.
const COLOURS: [(&str, &str); 5] = [
    ("PENDING", "#eceff1"),
    ("RUNNING", "#bbdefb"),
    ("COMPLETED", "#c8e6c9"),
    ("FAILED", "#ffcdd2"),
    ("SKIPPED", "#fff9c4"),
];

/// Steps inside of a container, each with its role.
fn parts(step: &Step) -> Vec<(&str, String)> {
    match step.kind {
        StepKind::Agent | StepKind::Wait | StepKind::Callback | StepKind::SubWorkflow => Vec::new(),
        StepKind::Parallel => {
            step.parallel_steps.iter().flatten().map(|id| (id.as_str(), "parallel".to_owned())).collect()
        }
        StepKind::Conditional => {
            let branches = [("true", &step.if_true_step), ("false", &step.if_false_step)];
            branches
                .into_iter()
                .filter_map(|(label, id)| Some((id.as_deref().filter(|id| !id.is_empty())?, label.to_owned())))
                .collect()
        }
        StepKind::Loop => {
            let body = step.loop_config.iter().flat_map(|config| &config.loop_body).enumerate();
            body.map(|(index, id)| (id.as_str(), format!("each, {}.", index + 1))).collect()
        }
        StepKind::ForkJoin => {
            let branches = step.fork_join_config.iter().flat_map(|config| &config.branches);
            let of_branch = branches.flat_map(|(name, branch)| {
                branch.steps.iter().enumerate().map(move |(index, id)| (id.as_str(), name, index))
            });
            of_branch.map(|(id, name, index)| (id, format!("{name}, {}.", index + 1))).collect()
        }
    }
}

/// Label of a step besides its id.
fn about(step: &Step) -> String {
    let kind = step.kind.as_str();
    match step.kind {
        StepKind::Agent => {
            let name = step.agent_name.clone().unwrap_or_default();
            let role = step.question_config.as_ref().and_then(|config| config.role.as_ref());
            match (step.on_question, role) {
                (Some(OnQuestion::Ask), Some(role)) => format!("{name}, asks {role}"),
                (Some(OnQuestion::Ask), None) => format!("{name}, may ask"),
                _ => name,
            }
        }
        StepKind::Parallel => match step.max_parallelism {
            Some(limit) => format!("{kind}, {limit} at a time"),
            None => kind.to_owned(),
        },
        StepKind::Conditional => match &step.condition {
            Some(condition) => format!("if {}", condition.expression),
            None => kind.to_owned(),
        },
        StepKind::Loop => match &step.loop_config {
            Some(config) => format!("{kind} over {}", config.collection),
            None => kind.to_owned(),
        },
        StepKind::ForkJoin => match &step.fork_join_config {
            Some(config) => format!("{kind}, {}", config.join_policy),
            None => kind.to_owned(),
        },
        StepKind::Wait => match &step.wait_config {
            Some(WaitConfig { until: Some(until), .. }) => format!("{kind} until {until}"),
            Some(WaitConfig { duration: Some(duration), .. }) => format!("{kind} {duration}"),
            Some(WaitConfig { duration_seconds: Some(secs), .. }) => {
                let secs = text(secs).unwrap_or_else(|| secs.get().to_owned());
                format!("{kind} {secs} s")
            }
            _ => kind.to_owned(),
        },
        StepKind::Callback => match step.callback_config.as_ref().and_then(|config| config.approval.as_ref()) {
            Some(Approval { role: Some(role), .. }) => format!("approval by {role}"),
            Some(_) => "approval".to_owned(),
            None => kind.to_owned(),
        },
        StepKind::SubWorkflow => {
            let config = step.sub_workflow_config.as_ref();
            let called = config.and_then(|config| config.workflow_name.as_ref().or(config.workflow_id.as_ref()));
            called.map_or_else(|| kind.to_owned(), |called| format!("workflow {called}"))
        }
    }
}

/// Text of a caller, truncated to the width of a node.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_LABEL_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Escapes a caller's text for a quoted Mermaid label: every character with a meaning there, or in the HTML made of it,
/// becomes a character code.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in cut(text).chars() {
        match c {
            ' ' | '-' | '_' | '.' | ',' | '…' => quoted.push(c),
            c if c.is_alphanumeric() => quoted.push(c),
            c => {
                let _ = write!(quoted, "#{};", u32::from(c));
            }
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn plan(json: &str) -> Plan {
        Plan::parse(check_json(json.as_bytes()).expect(json)).expect(json)
    }

    const EVERY_KIND: &str = r#"{"start_step":"p","steps":{
        "p":{"type":"parallel","parallel_steps":["a","b"],"next_step":"c"},
        "c":{"type":"conditional","condition":{"expression":"${a.output.x} > \"<b>\""},"if_true_step":"l","next_step":"f"},
        "l":{"type":"loop","loop_config":{"collection":"${workflow.input.i}","loop_body":["a"]}},
        "f":{"type":"fork_join","fork_join_config":{"branches":{"x":{"steps":["a","b"]},"y":{"steps":["b"]}}}},
        "a":{"agent_name":"one"}, "b":{"agent_name":"two"}}}"#;

    #[test]
    fn every_kind_has_its_own_shape() {
        let states = HashMap::from([("a".to_owned(), "FAILED".to_owned())]);
        let text = Graph::new(&plan(EVERY_KIND), &states).mermaid();
        let expected = [
            "flowchart TD",
            r#"n0[["p<br/>parallel"]]"#,
            r#"n1["a<br/>one<br/>FAILED"]"#,
            r#"n2["b<br/>two"]"#,
            r#"n3{"c<br/>if #36;#123;a.output.x#125; #62; #34;#60;b#62;#34;"}"#,
            r#"n4(["l<br/>loop over #36;#123;workflow.input.i#125;"])"#,
            r#"n5{{"f<br/>fork_join, all"}}"#,
            r#"n0 -.->|"parallel"| n1"#,
            r#"n0 -.->|"parallel"| n2"#,
            "n0 --> n3",
            r#"n3 -.->|"true"| n4"#,
            "n3 --> n5",
            r#"n4 -.->|"each, 1."| n1"#,
            r#"n5 -.->|"x, 1."| n1"#,
            r#"n5 -.->|"x, 2."| n2"#,
            r#"n5 -.->|"y, 1."| n2"#,
            "classDef failed fill:#ffcdd2",
            "class n1 failed",
        ];
        assert_eq!(text.lines().map(str::trim).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_picture_is_well_formed_and_holds_no_foreign_markup() {
        let states = HashMap::from([("a".to_owned(), "<script>".to_owned())]);
        let svg = Graph::new(&plan(EVERY_KIND), &states).svg();
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("<script") && !svg.contains("<b>") && svg.contains("&lt;b&gt;"), "{svg}");
        for tag in ["text", "g", "title"] {
            let (opened, closed) = (svg.matches(&format!("<{tag}")).count(), svg.matches(&format!("</{tag}>")).count());
            assert_eq!(opened, closed, "{tag}");
        }
    }

    #[test]
    fn ten_thousand_steps_are_drawn_without_a_stack() {
        let count = 10_000;
        let steps: Vec<_> = (0..count)
            .map(|n| match n {
                _ if n + 1 == count => format!(r#""s{n}":{{"agent_name":"x"}}"#),
                _ => format!(r#""s{n}":{{"agent_name":"x","next_step":"s{}"}}"#, n + 1),
            })
            .collect();
        let plan = plan(&format!(r#"{{"start_step":"s0","steps":{{{}}}}}"#, steps.join(",")));
        let graph = Graph::new(&plan, &HashMap::new());
        assert_eq!(graph.mermaid().lines().count(), 1 + count + count - 1);
        assert_eq!(graph.svg().matches("<g ").count(), count);
    }
}
