//! Random definitions, nested in every way, with agents that fail at random, against an interpreter that is too simple
//! to be wrong: it has no concurrency, no database and no way to be interrupted. Each seed is one definition.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    path::Agent,
    steps::{Ended, World, input_of, refusing, saying},
};

/// Definitions tried.
const SEEDS: u64 = 80;

/// A step with what is inside of it.
enum Node {
    /// `seen`: a step whose output it takes along, if it can see it.
    Agent {
        id: String,
        in_loop: bool,
        seen: Option<String>,
    },
    /// Lets so many milliseconds pass: some so few that the run is not parked for them.
    Wait {
        id: String,
        ms: u64,
    },
    /// Answered by the test with what it was asked.
    Callback {
        id: String,
        in_loop: bool,
        approval: Option<bool>,
    },
    /// Runs a workflow of one agent step.
    Sub {
        id: String,
    },
    Parallel {
        id: String,
        members: Vec<Node>,
        limit: Option<usize>,
    },
    Conditional {
        id: String,
        condition: Condition,
        then: Option<Box<Node>>,
        otherwise: Option<Box<Node>>,
    },
    Loop {
        id: String,
        body: Vec<Node>,
        collection: &'static str,
        parallel: bool,
        on_error: &'static str,
        max: usize,
    },
    Fork {
        id: String,
        branches: Vec<Vec<Node>>,
        policy: &'static str,
        required: usize,
    },
}

enum Condition {
    /// The output of that step is there.
    Saw(String),
    /// `loop.index` is even.
    EvenIndex,
    /// It is what it says.
    Constant(bool),
    /// It cannot be computed.
    Bad,
}

impl Condition {
    fn expression(&self) -> String {
        match self {
            Self::Saw(step) => format!("${{{step}.output.said.id:-none}} == '{step}' and 'x' not in ['y']"),
            Self::EvenIndex => "${loop.index} % 2 == 0".to_owned(),
            Self::Constant(value) => format!("({value} or 1 > 2) and not null"),
            Self::Bad => "${workflow.input.missing} > 1".to_owned(),
        }
    }
}

/// Makes definitions.
struct Generator {
    random: StdRng,
    count: usize,
    /// Steps that a later one may refer to; not those inside of forks, where it depends on time who completes.
    known: Vec<String>,
}

impl Generator {
    fn id(&mut self) -> String {
        self.count += 1;
        format!("s{}", self.count)
    }

    fn some_known(&mut self) -> Option<String> {
        if self.known.is_empty() || self.random.random_bool(0.3) {
            return None;
        }
        let index = self.random.random_range(0..self.known.len());
        Some(self.known[index].clone())
    }

    fn nodes(&mut self, count: std::ops::RangeInclusive<usize>, depth: usize, in_loop: bool) -> Vec<Node> {
        let count = self.random.random_range(count);
        (0..count).map(|_| self.node(depth, in_loop)).collect()
    }

    fn node(&mut self, depth: usize, in_loop: bool) -> Node {
        let kind = self.random.random_range(if depth == 0 { 0..4 } else { 0..8 });
        let id = self.id();
        match kind {
            4 => {
                let members = self.nodes(2..=3, depth - 1, in_loop);
                Node::Parallel { id, members, limit: self.random.random_bool(0.5).then_some(1) }
            }
            5 => {
                let condition = match self.random.random_range(0..10) {
                    0 => Condition::Bad,
                    1..=4 if in_loop => Condition::EvenIndex,
                    1..=6 => self.some_known().map_or(Condition::Constant(true), Condition::Saw),
                    _ => Condition::Constant(self.random.random_bool(0.5)),
                };
                let then = Some(Box::new(self.node(depth - 1, in_loop)));
                let otherwise = self.random.random_bool(0.6).then(|| Box::new(self.node(depth - 1, in_loop)));
                Node::Conditional { id, condition, then, otherwise }
            }
            6 => {
                let collections = if in_loop { 0..10 } else { 0..9 };
                let collection = match self.random.random_range(collections) {
                    0 => "${workflow.input.nothing:-[]}",
                    1 => "${workflow.input.number}",
                    9 => "${loop.item.cells}",
                    _ => "${workflow.input.items}",
                };
                let on_error = ["stop", "continue", "collect"][self.random.random_range(0..3)];
                let (parallel, max) = (self.random.random_bool(0.5), self.random.random_range(2..5));
                Node::Loop { id, body: self.nodes(1..=2, depth - 1, true), collection, parallel, on_error, max }
            }
            7 => {
                let known = self.known.len();
                let count = self.random.random_range(2..=3);
                let branches: Vec<_> = (0..count)
                    .map(|_| {
                        // Branches run side by side, and what they leave depends on when the join is decided.
                        let branch = self.nodes(1..=2, depth - 1, in_loop);
                        self.known.truncate(known);
                        branch
                    })
                    .collect();
                let policy = ["all", "any", "majority", "n_of_m"][self.random.random_range(0..4)];
                let required = match policy {
                    "all" => count,
                    "any" => 1,
                    "majority" => count / 2 + 1,
                    _ => self.random.random_range(1..=count),
                };
                Node::Fork { id, branches, policy, required }
            }
            3 => match self.random.random_range(0..6) {
                0..2 => Node::Wait { id, ms: [1, 40, 700][self.random.random_range(0..3)] },
                2..4 => {
                    self.known.push(id.clone());
                    let approval = self.random.random_bool(0.5).then(|| self.random.random_bool(0.8));
                    Node::Callback { id, in_loop, approval }
                }
                4 => Node::Sub { id },
                _ => Node::Agent { id, in_loop, seen: None },
            },
            _ => {
                let seen = self.some_known();
                self.known.push(id.clone());
                Node::Agent { id, in_loop, seen }
            }
        }
    }
}

impl Node {
    fn id(&self) -> &str {
        match self {
            Self::Agent { id, .. }
            | Self::Wait { id, .. }
            | Self::Callback { id, .. }
            | Self::Sub { id }
            | Self::Parallel { id, .. }
            | Self::Conditional { id, .. }
            | Self::Loop { id, .. }
            | Self::Fork { id, .. } => id,
        }
    }

    fn has_fork(&self) -> bool {
        match self {
            Self::Agent { .. } | Self::Wait { .. } | Self::Callback { .. } | Self::Sub { .. } => false,
            Self::Fork { .. } => true,
            Self::Parallel { members: inside, .. } | Self::Loop { body: inside, .. } => {
                inside.iter().any(Self::has_fork)
            }
            Self::Conditional { then, otherwise, .. } => then.iter().chain(otherwise).any(|node| node.has_fork()),
        }
    }

    /// Adds the step, and those inside of it, as a definition has them.
    fn define(&self, seed: u64, next: Option<&str>, steps: &mut Map<String, Value>) {
        let ids = |nodes: &[Self]| nodes.iter().map(Self::id).map(str::to_owned).collect::<Vec<_>>();
        let (more, inside): (Value, Vec<&Self>) = match self {
            Self::Agent { id, in_loop, seen } => {
                let mut mapping = json!({"seed": seed, "id": id});
                if *in_loop {
                    mapping["at"] = json!(["${loop.index}", {"item": "${loop.item}", "last": "${loop.is_last}"}]);
                }
                if let Some(seen) = seen {
                    mapping["seen"] = json!(format!("${{{seen}.output.said.id:-none}}"));
                }
                (json!({"type": "agent", "agent_name": "a", "input_mapping": mapping}), Vec::new())
            }
            Self::Wait { ms, .. } => {
                let config = json!({"duration_seconds": *ms as f64 / 1000.0});
                (json!({"type": "wait", "wait_config": config}), Vec::new())
            }
            Self::Callback { id, in_loop, approval } => {
                let mut mapping = json!({"id": id, "answer": approval});
                if *in_loop {
                    mapping["at"] = json!("${loop.index}");
                }
                let config = approval.map(|_| json!({"approval": {}}));
                (json!({"type": "callback", "input_mapping": mapping, "callback_config": config}), Vec::new())
            }
            Self::Sub { id } => {
                let config = json!({"workflow_name": "model-sub"});
                let mapping = json!({"seed": seed, "id": id});
                (json!({"type": "sub_workflow", "input_mapping": mapping, "sub_workflow_config": config}), Vec::new())
            }
            Self::Parallel { members, limit, .. } => (
                json!({"type": "parallel", "parallel_steps": ids(members), "max_parallelism": limit}),
                members.iter().collect(),
            ),
            Self::Conditional { condition, then, otherwise, .. } => (
                json!({"type": "conditional", "condition": {"expression": condition.expression()},
                    "if_true_step": then.as_ref().map(|node| node.id()),
                    "if_false_step": otherwise.as_ref().map(|node| node.id())}),
                then.iter().chain(otherwise).map(|node| &**node).collect(),
            ),
            Self::Loop { body, collection, parallel, on_error, max, .. } => {
                let mode = if *parallel { "parallel" } else { "sequential" };
                let config = json!({"collection": collection, "loop_body": ids(body), "execution_mode": mode,
                    "on_error": on_error, "max_iterations": max});
                (json!({"type": "loop", "loop_config": config}), body.iter().collect())
            }
            Self::Fork { branches, policy, required, .. } => {
                let named = branches.iter().enumerate();
                let named: Map<String, Value> =
                    named.map(|(index, nodes)| (format!("b{index}"), json!({"steps": ids(nodes)}))).collect();
                let required = (*policy == "n_of_m").then_some(required);
                let config = json!({"branches": named, "join_policy": policy, "n_required": required});
                (json!({"type": "fork_join", "fork_join_config": config}), branches.iter().flatten().collect())
            }
        };
        let mut step = more;
        step["id"] = json!(self.id());
        step["next_step"] = json!(next);
        steps.insert(self.id().to_owned(), step);
        for node in inside {
            node.define(seed, None, steps);
        }
    }
}

/// Whether the agent refuses this input: one in seven.
fn is_refused(input: &Value) -> bool {
    let mut hasher = DefaultHasher::new();
    input.to_string().hash(&mut hasher);
    hasher.finish().is_multiple_of(7)
}

/// What the test answers to a callback.
fn answer(id: &str, at: &Value, approval: Option<bool>) -> Value {
    json!({"said": {"id": id, "at": at, "approved": approval}})
}

/// An output that is this, or null if its branch was not waited for.
fn maybe(output: &Value) -> Value {
    json!({"maybe": output})
}

/// The interpreter. A failure has no text here: `None`.
struct Interpreter {
    seed: u64,
    input: Value,
    never_refuses: bool,
    /// What agents are asked if nothing is given up.
    calls: Vec<Value>,
}

#[derive(Clone)]
struct Seen<'a> {
    outputs: HashMap<String, Value>,
    /// Item, index and whether it is the last, of the innermost loop.
    iteration: Option<(&'a Value, usize, bool)>,
}

impl Interpreter {
    fn sequence(&mut self, nodes: &[Node], seen: &mut Seen<'_>) -> Option<Value> {
        let mut last = Value::Null;
        for node in nodes {
            last = self.node(node, seen)?;
        }
        Some(last)
    }

    /// The output, which is also registered.
    fn node(&mut self, node: &Node, seen: &mut Seen<'_>) -> Option<Value> {
        let output = match node {
            Node::Agent { id, seen: other, .. } => self.agent(id, other.as_deref(), seen)?,
            Node::Wait { .. } => json!({"waited": true}),
            Node::Callback { approval: Some(false), .. } => return None,
            Node::Callback { id, in_loop, approval } => {
                let at = if *in_loop { json!(seen.iteration?.1) } else { Value::Null };
                answer(id, &at, *approval)["said"].clone()
            }
            Node::Sub { id } => self.agent(id, None, &Seen { outputs: HashMap::new(), iteration: None })?,
            Node::Parallel { members, .. } => {
                let mut outputs = Map::new();
                let results: Vec<_> =
                    members.iter().map(|member| self.inside(std::slice::from_ref(member), seen)).collect();
                for (member, result) in members.iter().zip(results) {
                    let (output, registered) = result?;
                    outputs.insert(member.id().to_owned(), output);
                    seen.outputs.extend(registered);
                }
                Value::Object(outputs)
            }
            Node::Conditional { condition, then, otherwise, .. } => {
                let holds = match condition {
                    Condition::Saw(step) => seen.outputs.contains_key(step),
                    Condition::EvenIndex => seen.iteration?.1 % 2 == 0,
                    Condition::Constant(value) => *value,
                    Condition::Bad => return None,
                };
                let taken = if holds { then } else { otherwise };
                let mut output = json!({"condition_result": holds, "branch_taken": if holds { "then" } else { "else" },
                    "branch_step_id": taken.as_ref().map(|node| node.id())});
                if let Some(node) = taken {
                    output["branch_output"] = self.node(node, seen)?;
                }
                output
            }
            Node::Loop { body, collection, parallel, on_error, max, .. } => {
                let items = match *collection {
                    "${workflow.input.nothing:-[]}" => json!([]),
                    "${workflow.input.items}" => self.input["items"].clone(),
                    "${loop.item.cells}" => seen.iteration?.0["cells"].clone(),
                    _ => Value::Null,
                };
                self.iterations(items.as_array()?, *max, body, (*parallel, on_error), seen)?
            }
            Node::Fork { branches, policy, required, .. } => {
                let results: Vec<_> = branches.iter().map(|branch| self.inside(branch, seen)).collect();
                let succeeded = results.iter().flatten().count();
                if succeeded < *required {
                    return None;
                }
                let output = |result: &Option<(Value, _)>| match result {
                    None => Value::Null,
                    Some((output, _)) if *policy == "all" => output.clone(),
                    Some((output, _)) => maybe(output),
                };
                results.iter().enumerate().map(|(index, result)| (format!("b{index}"), output(result))).collect()
            }
        };
        seen.outputs.insert(node.id().to_owned(), output.clone());
        Some(output)
    }

    fn agent(&mut self, id: &str, other: Option<&str>, seen: &Seen<'_>) -> Option<Value> {
        let mut input = json!({"seed": self.seed, "id": id});
        if let Some((item, index, is_last)) = seen.iteration {
            input["at"] = json!([index, {"item": item, "last": is_last}]);
        }
        if let Some(other) = other {
            input["seen"] = json!(if seen.outputs.contains_key(other) { other } else { "none" });
        }
        self.calls.push(input.clone());
        (self.never_refuses || !is_refused(&input)).then_some(input)
    }

    /// Steps side by side with others: what they register is seen by nobody until all of them are done.
    fn inside(&mut self, nodes: &[Node], around: &Seen<'_>) -> Option<(Value, HashMap<String, Value>)> {
        let mut seen = around.clone();
        let output = self.sequence(nodes, &mut seen)?;
        Some((output, seen.outputs))
    }

    fn iterations(
        &mut self,
        items: &[Value],
        max: usize,
        body: &[Node],
        (parallel, on_error): (bool, &str),
        around: &Seen<'_>,
    ) -> Option<Value> {
        let total = items.len().min(max);
        let mut outputs = Vec::new();
        for (index, item) in items[..total].iter().enumerate() {
            let mut seen = Seen { iteration: Some((item, index, index + 1 == total)), ..around.clone() };
            outputs.push(self.sequence(body, &mut seen));
            if outputs.last() == Some(&None) && on_error == "stop" && !parallel {
                break;
            }
        }
        let failed = outputs.iter().filter(|output| output.is_none()).count();
        match (failed, on_error) {
            (0, _) => Some(json!({"iterations": outputs, "total_count": total})),
            (_, "continue") => Some(json!({"iterations": outputs, "total_count": total, "failed_count": failed})),
            _ => None,
        }
    }
}

/// An output without what the protocol adds.
fn bare(output: &Value) -> Value {
    match output {
        Value::Object(members) if members.contains_key("until") => json!({"waited": true}),
        Value::Object(members) if members.contains_key("said") => members["said"].clone(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), bare(value))).collect(),
        Value::Array(items) => items.iter().map(bare).collect(),
        _ => output.clone(),
    }
}

fn is_as_expected(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Object(expected), _) if expected.contains_key("maybe") => {
            found.is_null() || is_as_expected(&expected["maybe"], found)
        }
        (Value::Object(expected), Value::Object(found)) => {
            let is_same =
                |(name, value): (&String, _)| found.get(name).is_some_and(|found| is_as_expected(value, found));
            expected.len() == found.len() && expected.iter().all(is_same)
        }
        (Value::Array(expected), Value::Array(found)) => {
            let is_same = |(expected, found)| is_as_expected(expected, found);
            expected.len() == found.len() && expected.iter().zip(found).all(is_same)
        }
        _ => expected == found,
    }
}

/// What holds of every run that has ended, however it went.
fn check_rows(seed: u64, paths: &[(String, String)], ended: &Ended) {
    let open: Vec<_> = ended.rows.iter().filter(|row| row["status"] == "RUNNING").collect();
    assert!(open.is_empty(), "seed {seed}: {open:?}");
    let mut completed = HashSet::new();
    for (path, status) in paths {
        assert!(status != "COMPLETED" || completed.insert(path), "seed {seed}: {path} completed twice");
    }
}

/// Answers every callback, some at once and some later, by what its step says that it wants.
async fn answer_all(pool: PgPool, router: axum::Router) {
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
    loop {
        let sql = "SELECT token, input_data FROM step_waits w JOIN step_executions s ON s.id = w.attempt_id
                   WHERE token IS NOT NULL AND answered_at IS NULL AND s.status = 'PENDING'";
        let open: Vec<(String, Value)> = sqlx::query_as(sql).fetch_all(&pool).await.unwrap_or_default();
        for (token, asked) in open {
            let approval = asked["answer"].as_bool();
            let mut body = answer(asked["id"].as_str().expect("an id"), &asked["at"], approval);
            if let Some(approved) = approval {
                body["approved"] = json!(approved);
            }
            let request = http::Request::post(format!("/api/v1/callbacks/{token}"))
                .header("content-type", "application/json")
                .body(axum::body::Body::from(body.to_string()))
                .expect("a request");
            let answered = tower::ServiceExt::oneshot(router.clone(), request).await.expect("an answer");
            // Its run may have ended meanwhile.
            assert!([200, 410].contains(&answered.status().as_u16()), "{}", answered.status());
        }
        looks.tick().await;
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn random_definitions_do_what_a_simple_interpreter_says(pool: PgPool) {
    let mended: Arc<Mutex<HashSet<u64>>> = Arc::default();
    let is_mended = Arc::clone(&mended);
    let (agent, url) = Agent::start(move |_, call| {
        let input = input_of(call);
        let is_mended = is_mended.lock().expect("no panic").contains(&input["seed"].as_u64().expect("a seed"));
        if !is_mended && is_refused(&input) { refusing(call) } else { saying(call, &input) }
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let sub = json!({"name": "model-sub", "start_step": "work", "steps": {"work": {"id": "work", "agent_name": "a",
        "input_mapping": {"seed": "${workflow.input.seed}", "id": "${workflow.input.id}"}}}});
    world.service.post("/api/v1/workflows", &sub).await.expect(201);
    let answering = tokio::spawn(answer_all(pool.clone(), world.service.router.clone()));
    let input = json!({"number": 7, "items": [{"cells": [1, 2]}, {"cells": []}, {"cells": [3]}]});
    let mut runs = Vec::new();
    for seed in 0..SEEDS {
        let mut generator = Generator { random: StdRng::seed_from_u64(seed), count: 0, known: Vec::new() };
        let chain = generator.nodes(1..=4, 3, false);
        let mut steps = Map::new();
        for (index, node) in chain.iter().enumerate() {
            node.define(seed, chain.get(index + 1).map(Node::id), &mut steps);
        }
        let run_id = world.begin(chain[0].id(), &Value::Object(steps), &input).await;
        runs.push((seed, chain, run_id));
    }
    let paths = async |run_id: &str| -> Vec<(String, String)> {
        sqlx::query_as("SELECT coalesce(place, step_id), status FROM step_executions WHERE run_id = $1")
            .bind(run_id)
            .fetch_all(&pool)
            .await
            .expect("paths")
    };
    let (mut completed, mut resumed) = (0, 0);
    for (seed, chain, run_id) in &runs {
        let interpret = |never_refuses| {
            let (input, calls) = (input.clone(), Vec::new());
            let mut interpreter = Interpreter { seed: *seed, input, never_refuses, calls };
            let mut seen = Seen { outputs: HashMap::new(), iteration: None };
            (interpreter.sequence(chain, &mut seen), interpreter.calls)
        };
        let (expected, expected_calls) = interpret(false);
        let ended = world.end(run_id.clone()).await;
        check_rows(*seed, &paths(run_id).await, &ended);
        match &expected {
            None => assert_eq!(ended.run["status"], "FAILED", "seed {seed}"),
            Some(expected) => {
                let found = bare(ended.output());
                assert!(is_as_expected(expected, &found), "seed {seed}: expected {expected}, found {found}");
                completed += 1;
            }
        }
        let text = |inputs: Vec<Value>| -> Vec<String> {
            let mut texts: Vec<_> = inputs.iter().map(Value::to_string).collect();
            texts.sort();
            texts
        };
        let expected_calls = text(expected_calls);
        let of_seed = |input: &Value| input["seed"] == *seed;
        let calls = text(agent.calls().iter().map(input_of).filter(of_seed).collect());
        if chain.iter().any(Node::has_fork) {
            let extra: Vec<_> = calls.iter().filter(|call| expected_calls.binary_search(call).is_err()).collect();
            assert!(extra.is_empty() && calls.len() <= expected_calls.len(), "seed {seed}: {extra:?}");
        } else {
            assert_eq!(calls, expected_calls, "seed {seed}");
        }
        if expected.is_none() {
            mended.lock().expect("no panic").insert(*seed);
            world.service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
            let again = world.end(run_id.clone()).await;
            check_rows(*seed, &paths(run_id).await, &again);
            let expected = if interpret(true).0.is_some() { "COMPLETED" } else { "FAILED" };
            assert_eq!(again.run["status"], expected, "seed {seed}, retried: {}", again.run["error_message"]);
            resumed += usize::from(expected == "COMPLETED");
        }
    }
    answering.abort();
    // The generator is worth something only as long as it makes all of these.
    assert!(completed >= 15 && resumed >= 15, "{completed} completed, {resumed} on a retry");
}
