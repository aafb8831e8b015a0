//! Each type of step, and each way in which it can fail: the definitions of contract/examples.md and more, through the
//! API, Kafka and a real agent, looked at from outside.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use crate::{
    path::{Agent, Call, Executor, ended, steps},
    service::{Service, config, eventually},
};

/// A service with an executor and agents, and definitions run on it one after the other.
pub struct World {
    pub service: Service,
    pub executor: Option<Executor>,
    definitions: AtomicUsize,
}

/// A run that has ended, and its step rows.
pub struct Ended {
    pub id: String,
    pub run: Value,
    pub rows: Vec<Value>,
}

impl World {
    /// Stops the executor as if it had been killed.
    pub async fn kill_executor(&mut self) {
        if let Some(executor) = self.executor.take() {
            executor.kill().await;
        }
    }

    pub async fn start(pool: &PgPool, agents: &[(&str, &str)]) -> Self {
        Self::start_with(pool, agents, &[]).await
    }

    pub async fn start_with(pool: &PgPool, agents: &[(&str, &str)], settings: &[(&str, &str)]) -> Self {
        Self::start_by(pool, agents, settings, Clock::adjustable()).await
    }

    pub async fn start_by(pool: &PgPool, agents: &[(&str, &str)], settings: &[(&str, &str)], clock: Clock) -> Self {
        let service = Service::start_by(config(pool, settings), clock);
        let executor = Some(Executor::start(&service));
        for (name, url) in agents {
            let agent = json!({"name": name, "url": url,
                "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
            service.post("/api/v1/agents", &agent).await.expect(201);
        }
        Self { service, executor, definitions: AtomicUsize::new(0) }
    }

    /// Stores a definition of these steps, the first being `start`; returns its id.
    pub async fn define(&self, start: &str, steps: &Value) -> String {
        let number = self.definitions.fetch_add(1, Ordering::Relaxed);
        let definition = json!({"name": format!("definition-{number}"), "start_step": start, "steps": steps});
        let workflow = self.service.post("/api/v1/workflows", &definition).await.expect(201);
        workflow["id"].as_str().expect("an id").to_owned()
    }

    /// Starts a run of these steps, the first being `start`; returns its id.
    pub async fn begin(&self, start: &str, steps: &Value, input: &Value) -> String {
        let workflow_id = self.define(start, steps).await;
        let path = format!("/api/v1/workflows/{workflow_id}/execute");
        let run = self.service.post(&path, &json!({"input_data": input})).await.expect(202);
        run["run_id"].as_str().expect("a run id").to_owned()
    }

    pub async fn end(&self, run_id: String) -> Ended {
        let run = ended(&self.service, &run_id).await;
        let rows = steps(&self.service, &run_id).await;
        Ended { id: run_id, run, rows }
    }

    pub async fn run(&self, start: &str, steps: &Value, input: &Value) -> Ended {
        self.end(self.begin(start, steps, input).await).await
    }

    pub async fn retry(&self, run_id: &str) -> Ended {
        self.service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
        self.end(run_id.to_owned()).await
    }
}

impl Ended {
    /// The run completed; its output.
    #[track_caller]
    pub fn output(&self) -> &Value {
        assert_eq!(self.run["status"], "COMPLETED", "{}", self.run["error_message"]);
        &self.run["output_data"]
    }

    /// The run failed; why.
    #[track_caller]
    pub fn cause(&self) -> &str {
        assert_eq!(self.run["status"], "FAILED");
        self.run["error_message"].as_str().expect("a message")
    }

    /// `step status` of each row, in order.
    pub fn attempts(&self) -> Vec<String> {
        self.rows.iter().map(|row| format!("{} {}", text(row, "step_id"), text(row, "status"))).collect()
    }

    /// The same without the rows of blocks, in the order of the names: what ran side by side has no order.
    fn agent_attempts(&self) -> Vec<String> {
        let of_agents = self.rows.iter().filter(|row| row["agent_name"] != "");
        let mut attempts: Vec<_> =
            of_agents.map(|row| format!("{} {}", text(row, "step_id"), text(row, "status"))).collect();
        attempts.sort();
        attempts
    }

    pub fn row(&self, step_id: &str) -> &Value {
        self.rows.iter().rev().find(|row| row["step_id"] == step_id).expect("a row of the step")
    }

    /// `parent branch policy` of the step's last row.
    fn branch(&self, step_id: &str) -> String {
        let row = self.row(step_id);
        let part = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", part("parent_step_id"), part("branch_name"), part("join_policy"))
    }
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().expect("text")
}

/// What a call's input is, whether it was sent as JSON or as its text.
pub fn input_of(call: &Call) -> Value {
    serde_json::from_str(call.text()).unwrap_or_else(|_| json!(call.text()))
}

/// A completed task that says this, beside the text `said`.
pub fn saying(call: &Call, said: &Value) -> Response {
    let result = json!({"id": "t", "contextId": "c", "kind": "task", "status": {"state": "completed"}, "said": said});
    Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response()
}

/// A failure that is not tried again.
pub fn refusing(call: &Call) -> Response {
    let error = json!({"code": -32001, "message": "no such term"});
    Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "error": error})).into_response()
}

/// An agent that repeats its input, and refuses one that has a member `fail` that is true.
pub async fn repeating() -> (Agent, String) {
    Agent::start(|_, call| {
        let input = input_of(call);
        if input["fail"] == true { refusing(call) } else { saying(call, &input) }
    })
    .await
}

pub fn agent_step(id: &str, mapping: &Value) -> Value {
    json!({"id": id, "agent_name": "a", "input_mapping": mapping})
}

/// contract/examples.md, §2.
#[sqlx::test(migrator = "MIGRATOR")]
async fn parallel_members_run_and_their_outputs_are_found_in_both_ways(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let fan = |members: Value| {
        json!({
            "fan": {"id": "fan", "type": "parallel", "parallel_steps": members, "max_parallelism": 2, "next_step": "join"},
            "en": agent_step("en", &json!({"term": "${workflow.input.term}", "lang": "en"})),
            "fr": agent_step("fr", &json!({"term": "${workflow.input.term}", "lang": "fr", "fail": "${workflow.input.fail}"})),
            "join": agent_step("join", &json!({"en": "${en.output.said.lang}", "fr": "${fan.output.fr.said.lang}"}))})
    };
    let good = world.run("fan", &fan(json!(["en", "fr"])), &json!({"term": "quorum", "fail": false})).await;
    assert_eq!(good.output()["said"], json!({"en": "en", "fr": "fr"}));
    assert_eq!(good.agent_attempts(), ["en COMPLETED", "fr COMPLETED", "join COMPLETED"]);
    let block = good.row("fan");
    let mut members: Vec<_> = block["output_data"].as_object().expect("an object").keys().collect();
    members.sort();
    assert_eq!(members, ["en", "fr"]);
    assert_eq!((&block["status"], &block["parent_step_id"]), (&json!("COMPLETED"), &json!(null)));
    assert_eq!((good.branch("fan"), good.branch("en"), good.branch("join")), {
        ("- - -".to_owned(), "fan en -".to_owned(), "- - -".to_owned())
    });
    assert_eq!(good.attempts()[0], "fan COMPLETED", "a block begins before its members");

    let bad = world.run("fan", &fan(json!(["en", "fr"])), &json!({"term": "quorum", "fail": true})).await;
    assert_eq!(bad.agent_attempts(), ["en COMPLETED", "fr FAILED"]);
    assert_eq!(bad.row("fan")["status"], "FAILED");
    let expected =
        "Step 'fan' failed: parallel steps failed: step 'fr': agent 'a': JSON-RPC Error -32001: no such term";
    assert_eq!(bad.cause(), expected);
    // A retry repeats what failed and nothing else.
    let calls = agent.calls().len();
    let again = world.retry(&bad.id).await;
    assert_eq!(again.agent_attempts(), ["en COMPLETED", "fr FAILED", "fr FAILED"]);
    assert_eq!(agent.calls().len(), calls + 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_more_members_run_at_a_time_than_a_block_allows(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let members: Vec<String> = (0..6).map(|number| format!("m{number}")).collect();
    let mut steps = json!({"fan": {"id": "fan", "type": "parallel", "parallel_steps": members, "max_parallelism": 2}});
    for id in &members {
        steps[id] = agent_step(id, &json!({"n": 1}));
    }
    agent.hold();
    let run_id = world.begin("fan", &steps, &json!({})).await;
    eventually("two are called", async || (agent.calls().len() == 2).then_some(())).await;
    // All that may begin at once begin before the first of them is called.
    let begun: i64 = sqlx::query_scalar("SELECT count(*) FROM step_executions WHERE parent_step_id = 'fan'")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!((begun, agent.calls().len()), (2, 2));
    agent.0.gate.add_permits(100);
    world.end(run_id).await.output();
    assert_eq!(agent.calls().len(), 6);
}

/// contract/examples.md, §3, except that a condition that has no value fails the step.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_conditional_takes_the_branch_that_its_condition_names(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, call| {
        let result = json!({"id": "t", "status": {"state": "completed"}, "score": 0.93, "said": input_of(call)});
        Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response()
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let gate = |condition: &str, if_false: Value| {
        json!({
            "step-1": {"id": "step-1", "agent_name": "a", "next_step": "gate", "input_mapping": {"term": "${workflow.input.term}"}},
            "gate": {"id": "gate", "type": "conditional", "next_step": "end", "condition": {"expression": condition},
                "if_true_step": "publish", "if_false_step": if_false},
            "publish": agent_step("publish", &json!({"query": "publish"})),
            "rework": {"id": "rework", "agent_name": "a", "next_step": "publish", "input_mapping": {"query": "rework"}},
            "end": agent_step("end", &json!({"path": "${gate.output.branch_taken}", "via": "${gate.output.branch_step_id}",
                "published": "${publish.output.said:-no}"}))})
    };
    let condition = "${step-1.output.score} >= ${workflow.input.min} and 'draft' not in ${workflow.input.tags}";
    let input = |min: f64| json!({"term": "quorum", "min": min, "tags": ["final"]});
    let rework = json!("rework");

    let then = world.run("step-1", &gate(condition, rework.clone()), &input(0.9)).await;
    assert_eq!(then.output()["said"], json!({"path": "then", "via": "publish", "published": "publish"}));
    assert_eq!(then.attempts(), ["step-1 COMPLETED", "gate COMPLETED", "publish COMPLETED", "end COMPLETED"]);
    assert_eq!(then.branch("publish"), "gate then -");
    let gave = &then.row("gate")["output_data"];
    assert_eq!(
        (&gave["condition_result"], &gave["branch_taken"], &gave["branch_step_id"], &gave["branch_output"]["said"]),
        (&json!(true), &json!("then"), &json!("publish"), &json!("publish"))
    );

    let otherwise = world.run("step-1", &gate(condition, rework.clone()), &input(0.95)).await;
    assert_eq!(otherwise.output()["said"], json!({"path": "else", "via": "rework", "published": "no"}));
    assert_eq!(otherwise.branch("rework"), "gate else -");

    let nowhere = gate("${step-1.output.score} > 1", json!(null));
    let mut nowhere = nowhere;
    nowhere["publish"]["next_step"] = json!(null);
    nowhere["gate"]["parallel_steps"] = json!(["rework", "rework"]);
    let none = world.run("step-1", &nowhere, &input(0.9)).await;
    assert_eq!(none.output()["said"], json!({"path": "else", "via": null, "published": "no"}));
    let expected = json!({"condition_result": false, "branch_taken": "else", "branch_step_id": null});
    assert_eq!(none.row("gate")["output_data"], expected);

    for (condition, expected) in [
        (
            "${step-1.output.nowhere} > 1",
            "Step 'gate' failed: condition, '>' compares two numbers or two strings, not ${step-1.output.nowhere}, which is null and a number",
        ),
        ("${step-1.output.score} > high", "condition, at character 26: unknown word 'high'"),
    ] {
        let bad = world.run("step-1", &gate(condition, rework.clone()), &input(0.9)).await;
        assert!(bad.cause().contains(expected), "{}", bad.cause());
        assert_eq!(bad.attempts(), ["step-1 COMPLETED", "gate FAILED"]);
    }
}

/// contract/examples.md, §4.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_loop_runs_its_body_for_each_element(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        let input = input_of(call);
        if input["term"] == "bad" { refusing(call) } else { saying(call, &input) }
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let batch = |more: Value| {
        let mut config = json!({"collection": "${workflow.input.terms}", "loop_body": ["one"], "max_iterations": 2});
        for (name, value) in more.as_object().expect("an object") {
            config[name] = value.clone();
        }
        json!({
            "each": {"id": "each", "type": "loop", "next_step": "sum", "loop_config": config},
            "one": agent_step("one", &json!({"term": "${loop.item}", "n": "${loop.index}", "last": "${loop.is_last}"})),
            "sum": agent_step("sum", &json!({"all": "${each.output.iterations}", "count": "${each.output.total_count}"}))})
    };
    let terms = |terms: Value| json!({"terms": terms});
    for more in
        [json!({}), json!({"execution_mode": "parallel"}), json!({"execution_mode": "parallel", "max_parallelism": 1})]
    {
        let before = agent.calls().len();
        let good = world.run("each", &batch(more.clone()), &terms(json!(["quorum", "veto", "recess"]))).await;
        let mut calls: Vec<String> =
            agent.calls()[before..before + 2].iter().map(|call| input_of(call).to_string()).collect();
        calls.sort();
        assert_eq!(calls, [r#"{"last":false,"n":0,"term":"quorum"}"#, r#"{"last":true,"n":1,"term":"veto"}"#,]);
        let said = &good.output()["said"];
        assert_eq!((&said["count"], &said["all"][0]["said"]["term"]), (&json!(2), &json!("quorum")), "{more}");
        assert_eq!(said["all"][1]["said"]["term"], "veto");
        assert_eq!(good.agent_attempts(), ["one COMPLETED", "one COMPLETED", "sum COMPLETED"]);
        let branches: HashSet<_> = good.rows.iter().filter_map(|row| row["branch_name"].as_str()).collect();
        assert_eq!(branches, HashSet::from(["0", "1"]));
    }

    let empty = world.run("each", &batch(json!({})), &terms(json!([]))).await;
    assert_eq!(empty.output()["said"], json!({"all": [], "count": 0}));
    assert_eq!(empty.attempts(), ["each COMPLETED", "sum COMPLETED"]);
    assert_eq!(empty.row("each")["output_data"], json!({"iterations": [], "total_count": 0}));

    let refused = "step 'one': agent 'a': JSON-RPC Error -32001: no such term";
    for (more, items, rows, cause) in [
        (json!({}), json!("quorum"), 0, "Step 'each' failed: collection: it must be an array".to_owned()),
        (json!({}), json!(["x", "bad", "y"]), 2, format!("Step 'each' failed: iteration 1 failed: {refused}")),
        (
            json!({"max_iterations": 9}),
            json!(["x", "bad", "y"]),
            2,
            format!("Step 'each' failed: iteration 1 failed: {refused}"),
        ),
        (
            json!({"max_iterations": 9, "execution_mode": "parallel"}),
            json!(["bad", "x", "bad"]),
            3,
            format!("Step 'each' failed: iteration 0 failed: {refused}"),
        ),
        (
            json!({"max_iterations": 9, "on_error": "collect"}),
            json!(["bad", "x", "bad"]),
            3,
            format!(
                "Step 'each' failed: 2 of 3 iterations failed: iteration 0 failed: {refused}; iteration 2 failed: {refused}"
            ),
        ),
    ] {
        let bad = world.run("each", &batch(more), &terms(items)).await;
        assert_eq!(bad.cause(), cause);
        assert_eq!(bad.agent_attempts().len(), rows, "{cause}");
        assert_eq!(bad.row("each")["status"], "FAILED");
    }
    for mode in ["sequential", "parallel"] {
        let more = json!({"max_iterations": 9, "execution_mode": mode, "on_error": "continue"});
        let rest = world.run("each", &batch(more), &terms(json!(["x", "bad", "y"]))).await;
        assert_eq!(rest.output()["said"]["count"], 3);
        let gave = &rest.row("each")["output_data"];
        assert_eq!(
            (&gave["iterations"][1], &gave["total_count"], &gave["failed_count"]),
            (&json!(null), &json!(3), &json!(1))
        );
        assert_eq!(gave["iterations"][2]["said"]["term"], "y");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_iteration_sees_its_own_steps_and_the_inner_loop_hides_the_outer_one(pool: PgPool) {
    let (_agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let body = |mode: &str| {
        json!({
            "outer": {"id": "outer", "type": "loop", "next_step": "after", "loop_config": {"collection": "${workflow.input.rows}",
                "loop_body": ["first", "inner", "last"], "execution_mode": mode}},
            "first": agent_step("first", &json!({"row": "${loop.item.name}", "of": "${loop.total}"})),
            "inner": {"id": "inner", "type": "loop", "loop_config": {"collection": "${loop.item.cells}", "loop_body": ["cell"]}},
            "cell": agent_step("cell", &json!({"cell": "${loop.item}", "row": "${first.output.said.row}", "n": "${loop.index}"})),
            "last": agent_step("last", &json!({"row": "${first.output.said.row}", "index": "${loop.index}",
                "cells": "${inner.output.iterations}", "seen": "${cell.output:-nothing}"})),
            "after": agent_step("after", &json!({"seen": "${first.output:-nothing}", "all": "${outer.output.iterations}"}))})
    };
    let rows =
        json!({"rows": [{"name": "r0", "cells": [1, 2]}, {"name": "r1", "cells": []}, {"name": "r2", "cells": [3]}]});
    for mode in ["sequential", "parallel"] {
        let done = world.run("outer", &body(mode), &rows).await;
        let said = &done.output()["said"];
        assert_eq!(said["seen"], "nothing");
        let row = |index: usize| &said["all"][index]["said"];
        for (index, name, cells) in [(0, "r0", 2), (1, "r1", 0), (2, "r2", 1)] {
            let row = row(index);
            assert_eq!((&row["row"], &row["index"], &row["seen"]), (&json!(name), &json!(index), &json!("nothing")));
            assert_eq!(row["cells"].as_array().expect("an array").len(), cells);
        }
        assert_eq!(row(2)["cells"][0]["said"], json!({"cell": 3, "row": "r2", "n": 0}));
        let mut paths: Vec<String> =
            sqlx::query_scalar("SELECT place FROM step_executions WHERE run_id = $1 AND step_id = 'cell'")
                .bind(&done.id)
                .fetch_all(&pool)
                .await
                .expect("paths");
        paths.sort();
        assert_eq!(paths, ["outer/0/inner/0/cell", "outer/0/inner/1/cell", "outer/2/inner/0/cell"]);
    }
}

/// contract/examples.md, §5.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_join_is_decided_by_its_policy(pool: PgPool) {
    let (_agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    // The failing branch is the first to end, and the others wait for it.
    let fork = |policy: Value, fails: &[&str]| {
        let mut config = json!({"branch_timeout_seconds": 20, "branches": {
            "north": {"steps": ["n1", "n2"], "timeout_seconds": 15}, "south": {"steps": ["s1"]}, "west": {"steps": ["w1"]}}});
        for (name, value) in policy.as_object().expect("an object") {
            config[name] = value.clone();
        }
        json!({
            "fork": {"id": "fork", "type": "fork_join", "next_step": "use", "fork_join_config": config},
            "n1": agent_step("n1", &json!({"fail": fails.contains(&"north")})),
            "n2": agent_step("n2", &json!({"first": "${n1.output.said}"})),
            "s1": agent_step("s1", &json!({"fail": fails.contains(&"south")})),
            "w1": agent_step("w1", &json!({"fail": fails.contains(&"west")})),
            "use": agent_step("use", &json!({"picked": "${fork.output.north}"}))})
    };
    let two = json!({"join_policy": "n_of_m", "n_required": 2});
    let done = world.run("fork", &fork(two.clone(), &["west"]), &json!({})).await;
    assert_eq!(done.output()["said"]["picked"]["said"], json!({"first": {"fail": false}}));
    let gave = &done.row("fork")["output_data"];
    assert_eq!((&gave["south"]["said"], &gave["west"]), (&json!({"fail": false}), &json!(null)));
    assert_eq!(done.agent_attempts(), ["n1 COMPLETED", "n2 COMPLETED", "s1 COMPLETED", "use COMPLETED", "w1 FAILED"]);
    assert_eq!((done.branch("n2"), done.branch("w1")), ("fork north n_of_m".to_owned(), "fork west n_of_m".to_owned()));

    for (policy, fails, expected) in [
        (json!({"join_policy": "majority"}), vec!["west"], None),
        (json!({"join_policy": "any"}), vec!["west", "south"], None),
        (json!({}), vec![], None),
        (
            json!({}),
            vec!["west"],
            Some("join policy all: at most 2/3 branches can succeed, 3 must; branch 'west', step 'w1': agent"),
        ),
        (
            json!({"join_policy": "n_of_m", "n_required": 3}),
            vec!["west"],
            Some("join policy n_of_m: at most 2/3 branches can succeed, 3 must"),
        ),
        (
            json!({"join_policy": "majority"}),
            vec!["west", "south"],
            Some("join policy majority: at most 1/3 branches can succeed, 2 must"),
        ),
        (
            json!({"join_policy": "any"}),
            vec!["north", "west", "south"],
            Some("join policy any: at most 0/3 branches can succeed, 1 must"),
        ),
    ] {
        // Without north's second step all branches are equally long.
        let done = world.run("fork", &fork(policy.clone(), &fails), &json!({})).await;
        match expected {
            None => assert_eq!(done.row("fork")["status"], "COMPLETED", "{policy}: {}", done.run),
            Some(cause) => assert!(done.cause().contains(cause), "{policy}: {}", done.cause()),
        }
        assert!(done.rows.iter().all(|row| row["status"] != "RUNNING"), "{policy}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn branches_that_nobody_waits_for_are_given_up_and_those_that_take_too_long_fail(pool: PgPool) {
    let (_quick, quick_url) = repeating().await;
    let (slow, slow_url) = repeating().await;
    slow.hold();
    let world = World::start(&pool, &[("a", &quick_url), ("slow", &slow_url)]).await;
    let fork = |policy: &str, timeout: Value| {
        json!({
            "fork": {"id": "fork", "type": "fork_join", "next_step": "after", "fork_join_config": {"join_policy": policy, "branches": {
                "held": {"steps": ["each"], "timeout_seconds": timeout}, "free": {"steps": ["quick"]}}}},
            "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["held"],
                "execution_mode": "parallel"}},
            "held": {"id": "held", "agent_name": "slow", "input_mapping": {"n": "${loop.item}"}},
            "quick": agent_step("quick", &json!({"n": 1})),
            "after": agent_step("after", &json!({"held": "${fork.output.held}", "free": "${fork.output.free.said.n}"}))})
    };
    let items = json!({"items": [1, 2, 3]});
    let done = world.run("fork", &fork("any", json!(null)), &items).await;
    assert_eq!(done.output()["said"], json!({"held": null, "free": 1}));
    for row in done.rows.iter().filter(|row| ["each", "held"].contains(&text(row, "step_id"))) {
        assert_eq!(row["status"], "SKIPPED", "{row}");
        assert!(text(row, "error_message").contains("the join was decided"), "{row}");
    }
    let late = world.run("fork", &fork("all", json!(1)), &items).await;
    assert!(late.cause().contains("branch 'held', it took longer than 1 s"), "{}", late.cause());
    let timed_out = late.rows.iter().filter(|row| row["step_id"] == "held");
    assert!(
        timed_out.clone().count() == 3 && timed_out.clone().all(|row| row["status"] == "FAILED"),
        "{:?}",
        late.rows
    );
    assert!(text(late.row("held"), "error_message").contains("timed out"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retry_goes_on_inside_of_blocks_where_the_run_failed(pool: PgPool) {
    let is_mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let (agent, url) = Agent::start(move |_, call| {
        let input = input_of(call);
        let is_bad = input["n"] == 2 && !mended.load(Ordering::Relaxed);
        if is_bad { refusing(call) } else { saying(call, &input) }
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({
        "before": {"id": "before", "agent_name": "a", "next_step": "fan", "input_mapping": {"who": "before"}},
        "fan": {"id": "fan", "type": "parallel", "parallel_steps": ["each", "aside"], "next_step": "after"},
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["one", "two"]}},
        "one": agent_step("one", &json!({"who": "one", "i": "${loop.index}"})),
        "two": agent_step("two", &json!({"who": "two", "n": "${loop.item}", "i": "${one.output.said.i}"})),
        "aside": {"id": "aside", "type": "conditional", "condition": {"expression": "true"}, "if_true_step": "leaf"},
        "leaf": agent_step("leaf", &json!({"who": "leaf"})),
        "after": agent_step("after", &json!({"leaf": "${leaf.output.said.who}", "last": "${each.output.iterations[2].said}"}))});
    let failed = world.run("before", &steps, &json!({"items": [1, 2, 3]})).await;
    assert!(failed.cause().contains("step 'each': iteration 1 failed: step 'two'"), "{}", failed.cause());
    assert_eq!(agent.calls().len(), 6, "before, leaf, one, two, one, two");
    is_mended.store(true, Ordering::Relaxed);
    let done = world.retry(&failed.id).await;
    assert_eq!(done.output()["said"], json!({"leaf": "leaf", "last": {"who": "two", "n": 3, "i": 2}}));
    // The second of iteration 1, both of iteration 2, and the step after the block.
    assert_eq!(agent.calls().len(), 6 + 4);
    let completed: Vec<String> = sqlx::query_scalar(
        "SELECT coalesce(place, step_id) FROM step_executions WHERE run_id = $1 AND status = 'COMPLETED'
         GROUP BY 1 HAVING count(*) > 1",
    )
    .bind(&done.id)
    .fetch_all(&pool)
    .await
    .expect("paths");
    assert_eq!(completed, Vec::<String>::new(), "no completed step is repeated");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn another_executor_goes_on_inside_of_blocks(pool: PgPool) {
    let (agent, url) = repeating().await;
    let (held, held_url) = repeating().await;
    held.hold();
    let mut world = World::start(&pool, &[("a", &url), ("held", &held_url)]).await;
    let steps = json!({
        "fork": {"id": "fork", "type": "fork_join", "next_step": "after", "fork_join_config": {"branches": {
            "x": {"steps": ["x1", "x2"]}, "y": {"steps": ["y1"]}}}},
        "x1": agent_step("x1", &json!({"who": "x1"})),
        "x2": {"id": "x2", "agent_name": "held", "input_mapping": {"after": "${x1.output.said.who}"}},
        "y1": agent_step("y1", &json!({"who": "y1"})),
        "after": agent_step("after", &json!({"x": "${fork.output.x.said}", "y": "${y1.output.said.who}"}))});
    let run_id = world.begin("fork", &steps, &json!({})).await;
    eventually("only the held step is left", async || {
        let (open, done): (i64, i64) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE status = 'RUNNING'), count(*) FILTER (WHERE status = 'COMPLETED')
             FROM step_executions WHERE agent_name <> ''",
        )
        .fetch_one(&pool)
        .await
        .expect("counts");
        ((open, done) == (1, 2) && !held.calls().is_empty()).then_some(())
    })
    .await;
    // Its process is declared dead after a while.
    world.kill_executor().await;
    held.0.gate.add_permits(100);
    world.executor = Some(Executor::start(&world.service));
    let done = world.end(run_id).await;
    assert_eq!(done.output()["said"], json!({"x": {"after": "x1"}, "y": "y1"}));
    assert_eq!((agent.calls().len(), held.calls().len()), (3, 2));
    assert_eq!(done.agent_attempts(), ["after COMPLETED", "x1 COMPLETED", "x2 COMPLETED", "x2 FAILED", "y1 COMPLETED"]);
    let interrupted = done.rows.iter().filter(|row| row["status"] == "FAILED");
    assert!(
        interrupted.clone().count() == 2
            && interrupted.clone().all(|row| text(row, "error_message").contains("interrupted"))
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancelled_run_closes_all_open_steps_and_nothing_comes_later(pool: PgPool) {
    let (agent, url) = repeating().await;
    agent.hold();
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({
        "fan": {"id": "fan", "type": "parallel", "parallel_steps": ["each", "leaf"]},
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["one"],
            "execution_mode": "parallel"}},
        "one": agent_step("one", &json!({"n": "${loop.item}"})),
        "leaf": agent_step("leaf", &json!({}))});
    let run_id = world.begin("fan", &steps, &json!({"items": [1, 2, 3]})).await;
    eventually("all are called", async || (agent.calls().len() == 4).then_some(())).await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let metric = async || {
        let held: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs WHERE executor_id IS NOT NULL")
            .fetch_one(&pool)
            .await
            .expect("a count");
        (held == 0).then_some(())
    };
    eventually("nobody holds the run", metric).await;
    let first = world.end(run_id.clone()).await;
    assert_eq!((&first.run["status"], first.rows.len()), (&json!("CANCELLED"), 6));
    assert!(first.rows.iter().all(|row| row["status"] == "FAILED" && text(row, "error_message").contains("cancelled")));
    agent.0.gate.add_permits(100);
    // Whatever the answers would do, a run that begins after them shows that they have come.
    let other = world.run("leaf", &json!({"leaf": agent_step("leaf", &json!({}))}), &json!({})).await;
    other.output();
    assert_eq!(world.end(run_id).await.rows, first.rows);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_fails_when_its_time_is_over(pool: PgPool) {
    let (agent, url) = repeating().await;
    agent.hold();
    let service = Service::start_with(crate::service::config(&pool, &[("MAX_WORKFLOW_DURATION_MS", "1000")]));
    let executor = Some(Executor::start(&service));
    service.agent("a", &url).await;
    let world = World { service, executor, definitions: AtomicUsize::new(0) };
    let steps = json!({
        "fan": {"id": "fan", "type": "parallel", "parallel_steps": ["x", "y"]},
        "x": agent_step("x", &json!({})),
        "y": agent_step("y", &json!({}))});
    let done = world.run("fan", &steps, &json!({})).await;
    assert_eq!(done.cause(), "the run took longer than 1000 ms (MAX_WORKFLOW_DURATION_MS)");
    assert!(done.rows.len() == 3 && done.rows.iter().all(|row| row["status"] == "FAILED"), "{:?}", done.rows);
    assert_eq!(agent.calls().len(), 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_wrong_inside_of_a_block_is_said_with_its_step_and_path(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let each = |collection: &str, mapping: Value| {
        json!({
            "each": {"id": "each", "type": "loop", "loop_config": {"collection": collection, "loop_body": ["one"]}},
            "one": agent_step("one", &mapping)})
    };
    for (steps, expected) in [
        (
            each("${workflow.input.gone}", json!({})),
            "Step 'each' failed: collection, reference 'workflow.input.gone': there is no member 'gone'",
        ),
        (
            each("${workflow.input.items}", json!({"deep": [{"x": "${loop.item.nowhere}"}]})),
            "Step 'each' failed: iteration 0 failed: step 'one': input_mapping member 'deep.0.x', reference 'loop.item.nowhere': there is no member",
        ),
    ] {
        let bad = world.run("each", &steps, &json!({"items": [{"a": 1}]})).await;
        assert!(bad.cause().starts_with(expected), "{}", bad.cause());
        assert_eq!(bad.attempts(), ["each FAILED"]);
    }
    // Deeper than a definition of any use, and as deep as it may be.
    let nested = |depth: usize| {
        let mut steps = json!({"leaf": agent_step("leaf", &json!({"n": 1}))});
        for level in 0..depth {
            let inner = if level + 1 == depth { "leaf".to_owned() } else { format!("c{}", level + 1) };
            let id = format!("c{level}");
            steps[&id] =
                json!({"id": id, "type": "conditional", "condition": {"expression": "1"}, "if_true_step": inner});
        }
        steps
    };
    assert_eq!(world.run("c0", &nested(16), &json!({})).await.rows.len(), 17);
    let deep = world.run("c0", &nested(17), &json!({})).await;
    assert!(deep.cause().ends_with("step 'c16': steps may be nested at most 16 deep"), "{}", deep.cause());
    assert_eq!(agent.calls().len(), 1);
}

/// Time and statements grow with the iterations, not faster.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_loop_of_ten_thousand_iterations_takes_linear_time(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["odd"], "execution_mode": "parallel"}},
        "odd": {"id": "odd", "type": "conditional", "condition": {"expression": "${loop.item} % 10 == 0"}, "if_true_step": "one"},
        "one": agent_step("one", &json!({"n": "${loop.item}"}))});
    let items: Vec<usize> = (0..10_000).collect();
    let done = world.run("each", &steps, &json!({"items": items})).await;
    assert_eq!(done.output()["total_count"], 10_000);
    assert_eq!(done.output()["iterations"][9990]["branch_output"]["said"], json!({"n": 9990}));
    assert_eq!((agent.calls().len(), done.rows.len()), (1000, 11_001));
}

/// Plans of other programs are not checked as ours are.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_the_database_refuses_ends_the_run_and_keeps_what_is_good(pool: PgPool) {
    let (_agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let long = "x".repeat(300);
    let mut steps = json!({
        "good": {"id": "good", "agent_name": "a", "next_step": "fan", "input_mapping": {}},
        "fan": {"id": "fan", "type": "parallel", "parallel_steps": ["other", long]},
        "other": agent_step("other", &json!({}))});
    steps[&long] = agent_step(&long, &json!({}));
    let plan = json!({"workflow_id": "w", "name": "w", "version": "1", "start_step": "good", "steps": steps});
    workflow_api::kafka::topics::ensure(&world.service.config.kafka).await.expect("topics");
    let producer: rdkafka::producer::FutureProducer =
        workflow_api::kafka::client_config(&world.service.config.kafka).create().expect("valid settings");
    let payload = json!({"run_id": "ext-1", "workflow_plan": plan, "input_data": {}}).to_string();
    let record =
        rdkafka::producer::FutureRecord::to(&world.service.config.kafka.execution_topic).key("ext-1").payload(&payload);
    producer.send(record, std::time::Duration::from_secs(30)).await.expect("sent");
    eventually("the run has a row", async || {
        (world.service.get("/api/v1/runs/ext-1").await.status == 200).then_some(())
    })
    .await;
    let bad = world.end("ext-1".to_owned()).await;
    assert!(bad.cause().contains("the database refuses its id or input"), "{}", bad.cause());
    assert_eq!(bad.row("good")["status"], "COMPLETED");
    assert!(bad.rows.len() >= 3 && bad.rows.iter().all(|row| row["status"] != "RUNNING"), "{:?}", bad.rows);
}
