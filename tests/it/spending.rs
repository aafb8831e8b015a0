//! What runs use, what it costs, and the limits that workflows and runs set.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::time::Duration;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    agent_mcp::modern,
    agent_protocols::rpc,
    agent_questions::{answer, question},
    path::{Agent, Call, ended, steps},
    service::{Service, eventually},
    steps::{Ended, World, agent_step, saying},
};

const AGENTS: &str = "/api/v1/agents";
const WORKFLOWS: &str = "/api/v1/workflows";

/// A completion that says so many tokens were taken.
fn completion(input: u64, output: u64) -> Response {
    Json(json!({"id": "c", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "said"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output}}))
    .into_response()
}

/// A model that takes so many tokens for each call.
async fn model(input: u64, output: u64) -> (Agent, String) {
    Agent::start(move |_, _| completion(input, output)).await
}

/// Registers the model as agent `a`, tried once.
async fn register(world: &World, url: &str, config: Value) {
    let mut own = json!({"model": "m"});
    own.as_object_mut().expect("an object").extend(config.as_object().expect("members").clone());
    let agent = json!({"name": "a", "url": format!("{url}v1"), "kind": "openai", "config": own,
        "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    world.service.post(AGENTS, &agent).await.expect(201);
}

/// Steps `s0`, `s1` and so on, one after the other, each a call of `a`.
fn chain(count: usize) -> Value {
    let mut steps = json!({});
    for number in 0..count {
        let id = format!("s{number}");
        steps[&id] = agent_step(&id, &json!({"text": "hi"}));
        steps[&id]["next_step"] = if number + 1 == count { Value::Null } else { json!(format!("s{}", number + 1)) };
    }
    steps
}

/// A block `fan` of so many calls side by side.
fn fan(count: usize) -> Value {
    let ids: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
    let mut steps = json!({"fan": {"id": "fan", "type": "parallel", "parallel_steps": ids}});
    for id in ids {
        steps[&id] = agent_step(&id, &json!({"text": "hi"}));
    }
    steps
}

/// Stores a workflow with these limits; returns its id.
async fn define(service: &Service, name: &str, (start, steps): (&str, &Value), limits: Value) -> String {
    let body = json!({"name": name, "start_step": start, "steps": steps, "limits": limits});
    let workflow = service.post(WORKFLOWS, &body).await.expect(201);
    workflow["id"].as_str().expect("an id").to_owned()
}

/// Starts a run with these limits; returns its id.
async fn begin(service: &Service, workflow_id: &str, limits: Value) -> String {
    let body = json!({"input_data": {}, "limits": limits});
    let run = service.post(&format!("{WORKFLOWS}/{workflow_id}/execute"), &body).await.expect(202);
    run["run_id"].as_str().expect("an id").to_owned()
}

async fn run(world: &World, workflow_id: &str, limits: Value) -> Ended {
    world.end(begin(&world.service, workflow_id, limits).await).await
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.expect("a count")
}

/// The run has failed because of this limit.
#[track_caller]
fn assert_exceeded(ended: &Ended, limit: &str) {
    let cause = ended.cause();
    assert!(cause.starts_with("budget_exceeded") && cause.contains(&format!("limits.{limit}")), "{cause}");
    assert_eq!(ended.run["error_code"], "budget_exceeded");
    assert_eq!(ended.run["usage"]["exceeded"], limit);
    assert!(ended.rows.iter().all(|row| row["status"] != "RUNNING"), "{:?}", ended.attempts());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_shows_its_tokens_and_their_exact_cost(pool: PgPool) {
    let (_agent, url) = model(11, 3).await;
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({"price": {"input": 0.15, "output": "0.6", "call": "0.000001"}})).await;
    let id = define(&world.service, "two", ("s0", &chain(2)), Value::Null).await;
    let ended = run(&world, &id, Value::Null).await;
    ended.output();
    let sum = json!({"calls": 2, "input_tokens": 22, "output_tokens": 6, "tokens": 28, "cost": "0.0000089"});
    let mut expected = sum.clone();
    expected["own"] = sum.clone();
    expected["limits"] = Value::Null;
    expected["exceeded"] = Value::Null;
    assert_eq!(ended.run["usage"], expected);
    assert_eq!((&ended.run["limits"], &ended.run["error_code"]), (&Value::Null, &Value::Null));
    let of_step = json!({"input_tokens": 11, "output_tokens": 3, "cost": "0.00000445"});
    assert_eq!(ended.rows.iter().map(|row| &row["usage"]).collect::<Vec<_>>(), [&of_step, &of_step]);
    let of_workflow = world.service.get(&format!("{WORKFLOWS}/{id}/usage")).await.expect(200);
    assert_eq!(of_workflow, json!({"last_24_hours": sum, "last_7_days": sum}));
    world.executor.as_ref().expect("one").stop().await;
    let agents = world.service.get("/api/v1/agents?name=a").await.expect(200);
    let agent = agents["items"][0]["id"].as_str().expect("an id");
    let of_agent = world.service.get(&format!("/api/v1/agents/{agent}/stats")).await.expect(200);
    let day = &of_agent["last_24_hours"];
    assert_eq!((&day["calls"], &day["tokens"], &day["cost"]), (&json!(2), &json!(28), &json!("0.0000089")));
}

/// Nothing is reserved, and nothing is written.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_without_limits_whose_agents_tell_no_usage_has_no_row_of_it(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, call| saying(call, &json!({}))).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let ended = world.run("s0", &chain(2), &json!({})).await;
    ended.output();
    assert_eq!((&ended.run["usage"], &ended.rows[0]["usage"]), (&Value::Null, &Value::Null));
    for table in ["run_usage", "call_usage", "call_reservations"] {
        assert_eq!(count(&pool, table).await, 0, "{table}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn agents_of_all_kinds_tell_their_usage_also_in_failures(pool: PgPool) {
    let a2a = |call: &Call, state: &str| {
        let metadata = json!({"usage": {"input_tokens": 5, "output_tokens": 2}});
        let result = json!({"id": "t", "kind": "task", "status": {"state": state}, "metadata": metadata});
        Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response()
    };
    let (_completed, completed) = Agent::start(move |_, call| a2a(call, "completed")).await;
    let (_rejected, rejected) = Agent::start(move |_, call| a2a(call, "rejected")).await;
    let (_refusing, refusing) = Agent::start(|_, _| {
        Json(
            json!({"choices": [{"message": {"refusal": "no"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}),
        )
        .into_response()
    })
    .await;
    let (_plain, plain) =
        Agent::start(|_, _| Json(json!({"usage": {"input_tokens": 5, "output_tokens": 2}})).into_response()).await;
    let (_responding, responding) = Agent::start(|_, _| {
        let content = json!([{"type": "output_text", "text": "said", "annotations": []}]);
        Json(json!({"id": "r", "object": "response", "status": "completed", "model": "m",
            "output": [{"type": "message", "role": "assistant", "content": content}],
            "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}))
        .into_response()
    })
    .await;
    let (_tool, tool) = modern(|_, call| {
        rpc(
            call,
            &json!({"content": [], "structuredContent": {"n": 1},
            "_meta": {"usage": {"input_tokens": 5, "output_tokens": 2}}}),
        )
    })
    .await;
    let per_call = json!({"call": "0.5"});
    let world = World::start(&pool, &[]).await;
    for (name, agent, is_well) in [
        (
            "responding",
            json!({"url": responding, "kind": "responses", "config": {"model": "m", "price": per_call}}),
            true,
        ),
        ("tool", json!({"url": tool, "kind": "mcp", "config": {"tool": "add", "price": per_call}}), true),
        ("completed", json!({"url": completed}), true),
        ("rejected", json!({"url": rejected}), false),
        ("refusing", json!({"url": refusing, "kind": "openai", "config": {"model": "m"}}), false),
        ("plain", json!({"url": plain, "kind": "http", "config": {"price": {"call": "0.5"}}}), true),
    ] {
        let mut agent = agent.clone();
        agent["name"] = json!(name);
        agent["retry_config"] = json!({"max_retries": 1});
        world.service.post(AGENTS, &agent).await.expect(201);
        let ask = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "hi"}}});
        let ended = world.run("ask", &ask, &json!({})).await;
        assert_eq!(ended.run["status"] == "COMPLETED", is_well, "{name}: {}", ended.run);
        assert_eq!(ended.run["usage"]["tokens"], 7, "{name}");
        let is_priced = ["plain", "responding", "tool"].contains(&name);
        assert_eq!(ended.run["usage"]["cost"], if is_priced { "0.5" } else { "0" }, "{name}");
    }
}

/// Tools tell no tokens: each call of one has its price.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_limit_of_cost_counts_the_calls_of_tools(pool: PgPool) {
    let (tool, url) = modern(|_, call| rpc(call, &json!({"content": [{"type": "text", "text": "said"}]}))).await;
    let world = World::start(&pool, &[]).await;
    let agent = json!({"name": "a", "url": url, "kind": "mcp", "retry_config": {"max_retries": 1},
        "config": {"tool": "add", "price": {"call": "0.4"}}});
    world.service.post(AGENTS, &agent).await.expect(201);
    let id = define(&world.service, "three", ("s0", &chain(3)), json!({"cost": 1, "tokens": 1})).await;
    let ended = run(&world, &id, Value::Null).await;
    assert_exceeded(&ended, "cost");
    let listed = world.service.get("/api/v1/runs").await.expect(200);
    assert_eq!(listed["items"][0]["error_code"], "budget_exceeded", "{listed}");
    assert_eq!((&ended.run["usage"]["calls"], &ended.run["usage"]["cost"]), (&json!(2), &json!("0.8")));
    let calls = tool.calls().iter().filter(|call| call.body["method"] == "tools/call").count();
    assert_eq!(calls, 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_would_exceed_a_limit_fails_and_keeps_what_was_done(pool: PgPool) {
    let (agent, url) = model(8, 2).await;
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({"parameters": {"max_tokens": 2}, "price": {"output": 1000}})).await;
    // Each call takes 10 tokens and costs 0.002.
    for (number, (limit, of_workflow, of_run, calls)) in [
        ("tokens", json!({"tokens": 20}), json!({"tokens": 1000}), 2),
        ("tokens", json!({"tokens": 1000}), json!({"tokens": 25}), 3),
        ("cost", json!({"cost": "0.004"}), Value::Null, 2),
        ("cost", Value::Null, json!({"cost": 0.005}), 3),
        ("calls", json!({"calls": 5, "tokens": 1000}), json!({"calls": 2}), 2),
        ("steps", json!({"steps": 3}), json!({}), 3),
    ]
    .into_iter()
    .enumerate()
    {
        let before = agent.calls().len();
        let id = define(&world.service, &format!("limited-{number}"), ("s0", &chain(5)), of_workflow).await;
        let ended = run(&world, &id, of_run).await;
        assert_exceeded(&ended, limit);
        assert_eq!(agent.calls().len() - before, calls, "{number}: {:?}", ended.attempts());
        assert_eq!(ended.run["usage"]["tokens"], 10 * calls, "{number}");
        assert_eq!(ended.rows[0]["output_data"]["text"], "said", "what was done stays readable");
        assert_eq!(ended.rows[0]["usage"]["cost"], "0.002");
    }
    assert_eq!(count(&pool, "call_reservations").await, 0);
    let id = define(&world.service, "wide", ("s0", &chain(5)), json!({"tokens": 50, "calls": 5, "steps": 5})).await;
    run(&world, &id, json!({"cost": "0.01", "seconds": 1000})).await.output();
}

/// Without reservations all of them would be called at once.
#[sqlx::test(migrator = "MIGRATOR")]
async fn calls_side_by_side_reserve_what_they_may_take(pool: PgPool) {
    let (agent, url) = model(5, 5).await;
    agent.hold();
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({"parameters": {"max_tokens": 400}})).await;
    let id = define(&world.service, "fan", ("fan", &fan(4)), json!({"tokens": 1000})).await;
    let run_id = begin(&world.service, &id, Value::Null).await;
    eventually("calls are under way", async || (agent.calls().len() >= 2).then_some(())).await;
    eventually("the others wait", async || {
        let rows = steps(&world.service, &run_id).await;
        (rows.iter().filter(|row| row["status"] == "RUNNING").count() == 5).then_some(())
    })
    .await;
    let reserved: (i64, i64) = sqlx::query_as("SELECT count(*), sum(tokens)::bigint FROM call_reservations")
        .fetch_one(&pool)
        .await
        .expect("a sum");
    assert!(reserved.0 == 2 && (800..=1000).contains(&reserved.1), "{reserved:?}");
    assert_eq!(agent.calls().len(), 2);
    agent.0.gate.add_permits(100);
    let ended = world.end(run_id).await;
    ended.output();
    assert_eq!((&ended.run["usage"]["calls"], &ended.run["usage"]["tokens"]), (&json!(4), &json!(40)));
    assert_eq!(count(&pool, "call_reservations").await, 0);
}

/// Each takes more than it may: the first one uses all up, and no other one is made.
#[sqlx::test(migrator = "MIGRATOR")]
async fn branches_together_take_no_more_than_was_reserved(pool: PgPool) {
    let (agent, url) = model(60, 60).await;
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({"parameters": {"max_tokens": 100}})).await;
    let id = define(&world.service, "fan", ("fan", &fan(5)), json!({"tokens": 119})).await;
    let ended = run(&world, &id, Value::Null).await;
    assert_exceeded(&ended, "tokens");
    assert_eq!((agent.calls().len(), &ended.run["usage"]["tokens"]), (1, &json!(120)));
    let done = ended.rows.iter().filter(|row| row["status"] == "COMPLETED").count();
    assert_eq!(done, 1, "its output is kept: {:?}", ended.attempts());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn sub_runs_count_towards_the_limits_of_their_parent(pool: PgPool) {
    let (agent, url) = model(3, 4).await;
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({"parameters": {"max_tokens": 4}})).await;
    define(&world.service, "inner", ("s0", &chain(2)), json!({"calls": 100})).await;
    let sub = |id: &str, next: Value| {
        json!({"id": id, "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner", "input": {}},
            "next_step": next})
    };
    let steps =
        json!({"one": sub("one", json!("two")), "two": sub("two", json!("three")), "three": sub("three", Value::Null)});
    for (number, (limit, limits, calls)) in [
        ("calls", json!({"calls": 3}), 3),
        ("tokens", json!({"tokens": 14}), 2),
        // The steps of the sub-runs, and the two of the parent that have begun.
        ("steps", json!({"steps": 5}), 3),
    ]
    .into_iter()
    .enumerate()
    {
        let before = agent.calls().len();
        let id = define(&world.service, &format!("outer-{number}"), ("one", &steps), limits).await;
        let ended = run(&world, &id, Value::Null).await;
        assert_exceeded(&ended, limit);
        assert_eq!(agent.calls().len() - before, calls, "{limit}");
        let usage = &ended.run["usage"];
        assert_eq!((&usage["calls"], &usage["own"]["calls"]), (&json!(calls), &json!(0)));
        assert_eq!(usage["tokens"], 7 * calls);
        let child = ended.row("two")["child_run_id"].as_str().expect("a run").to_owned();
        let child = world.end(child).await;
        assert_eq!((&child.run["status"], &child.run["error_code"]), (&json!("FAILED"), &json!("budget_exceeded")));
    }
    let id = define(&world.service, "enough", ("one", &steps), json!({"calls": 6, "tokens": 42})).await;
    run(&world, &id, Value::Null).await.output();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_ends_when_its_seconds_are_over(pool: PgPool) {
    let (agent, url) = model(1, 1).await;
    agent.hold();
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({})).await;
    let id = define(&world.service, "slow", ("s0", &chain(1)), json!({"seconds": 20})).await;
    let run_id = begin(&world.service, &id, json!({"seconds": 10})).await;
    eventually("the agent is called", async || (agent.calls().len() == 1).then_some(())).await;
    world.service.clock.advance(Duration::from_secs(10));
    let ended = world.end(run_id).await;
    assert_exceeded(&ended, "seconds");
    assert_eq!(ended.attempts(), ["s0 FAILED"]);
    agent.0.gate.add_permits(100);
}

/// A killed executor leaves a call behind. The next one repeats it with the same id.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_call_that_another_executor_repeats_counts_once(pool: PgPool) {
    let (agent, url) = model(5, 5).await;
    agent.hold();
    let mut world = World::start(&pool, &[]).await;
    register(&world, &url, json!({"price": {"call": 1}})).await;
    let id = define(&world.service, "once", ("s0", &chain(2)), json!({"calls": 2, "tokens": 20, "steps": 2})).await;
    let run_id = begin(&world.service, &id, Value::Null).await;
    eventually("the agent is called", async || (agent.calls().len() == 1).then_some(())).await;
    world.kill_executor().await;
    agent.0.gate.add_permits(100);
    let _next = crate::path::Executor::start(&world.service);
    let ended = world.end(run_id).await;
    ended.output();
    assert_eq!(agent.calls().len(), 3);
    let usage = &ended.run["usage"];
    assert_eq!((&usage["calls"], &usage["tokens"], &usage["cost"]), (&json!(2), &json!(20), &json!("2")));
    assert_eq!(ended.attempts(), ["s0 FAILED", "s0 COMPLETED", "s1 COMPLETED"]);
    assert_eq!((&ended.rows[0]["usage"], &ended.rows[1]["usage"]["input_tokens"]), (&Value::Null, &json!(5)));
}

/// The task tells what it has used in all.
#[sqlx::test(migrator = "MIGRATOR")]
async fn each_answer_to_a_question_is_a_call_that_counts_what_its_round_took(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        let is_answered = call.body["params"]["message"]["taskId"] == "t-1";
        let used = if is_answered { (12, 4) } else { (5, 2) };
        let words = json!({"kind": "message", "messageId": "q", "role": "agent",
            "parts": [{"kind": "text", "text": "Which?"}]});
        let status = if is_answered {
            json!({"state": "completed"})
        } else {
            json!({"state": "input-required", "message": words})
        };
        let task = json!({"kind": "task", "id": "t-1", "status": status,
            "metadata": {"usage": {"input_tokens": used.0, "output_tokens": used.1}}});
        rpc(call, &task)
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "hi"}, "on_question": "ask"}});
    let id = define(&world.service, "asks", ("ask", &steps), Value::Null).await;
    for (calls, tokens) in [(2, 16), (1, 7)] {
        let run_id = begin(&world.service, &id, json!({"calls": calls})).await;
        let open = question(&world, &run_id, 1).await;
        answer(&world.service, &open, &json!("blue")).await;
        let ended = world.end(run_id).await;
        if calls == 2 {
            ended.output();
        } else {
            assert_exceeded(&ended, "calls");
        }
        let usage = &ended.run["usage"];
        assert_eq!((&usage["calls"], &usage["tokens"]), (&json!(calls), &json!(tokens)));
    }
    let sent = agent.calls().iter().filter(|call| call.body["method"] == "message/send").count();
    assert_eq!(sent, 3, "the answer that the limit forbids is not sent");
}

/// The second attempt is another call; a call that was not made is none.
#[sqlx::test(migrator = "MIGRATOR")]
async fn each_attempt_that_was_made_counts_once(pool: PgPool) {
    let (agent, url) = Agent::start(|number, _| {
        if number == 0 { http::StatusCode::SERVICE_UNAVAILABLE.into_response() } else { completion(5, 5) }
    })
    .await;
    let world = World::start(&pool, &[]).await;
    let members = json!({"name": "a", "url": format!("{url}v1"), "kind": "openai", "config": {"model": "m"},
        "retry_config": {"max_retries": 2, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    world.service.post(AGENTS, &members).await.expect(201);
    let id = define(&world.service, "again", ("s0", &chain(1)), json!({"calls": 2})).await;
    let ended = run(&world, &id, Value::Null).await;
    ended.output();
    assert_eq!((agent.calls().len(), &ended.run["usage"]["calls"]), (2, &json!(2)));
    assert_eq!(ended.run["usage"]["tokens"], 10);

    let unusable = json!({"name": "unusable", "url": "http://127.0.0.1:9/v1", "kind": "openai",
        "config": {"model": "m"}, "retry_config": {"max_retries": 1}});
    world.service.post(AGENTS, &unusable).await.expect(201);
    let sql = "UPDATE agents SET url = 'http://169.254.169.254/v1' WHERE name = 'unusable'";
    sqlx::query(sql).execute(&pool).await.expect("an agent that may not be called");
    let ask = json!({"ask": {"id": "ask", "agent_name": "unusable", "input_mapping": {"text": "hi"}}});
    let id = define(&world.service, "unusable", ("ask", &ask), json!({"calls": 1})).await;
    let ended = run(&world, &id, Value::Null).await;
    assert_eq!((&ended.run["status"], &ended.run["error_code"]), (&json!("FAILED"), &Value::Null));
    assert_eq!((&ended.run["usage"]["calls"], count(&pool, "call_reservations").await), (&json!(0), 0));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retried_run_begins_with_what_it_has_used(pool: PgPool) {
    let (agent, url) = model(5, 5).await;
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({})).await;
    let id = define(&world.service, "retried", ("s0", &chain(3)), Value::Null).await;
    let ended = run(&world, &id, json!({"calls": 2})).await;
    assert_exceeded(&ended, "calls");
    assert_exceeded(&world.retry(&ended.id).await, "calls");
    assert_eq!(agent.calls().len(), 2);
    let path = format!("/api/v1/runs/{}/retry", ended.id);
    let refused = world.service.post(&path, &json!({"limits": {"calls": 0}})).await;
    assert_eq!(refused.field_errors(), ["body.limits.calls greater_than_equal"]);
    let retried = world.service.post(&path, &json!({"limits": {"calls": 3}})).await.expect(202);
    assert_eq!(retried["limits"], json!({"calls": 3}));
    let again = world.end(ended.id).await;
    again.output();
    assert_eq!((&again.run["usage"]["calls"], &again.run["usage"]["exceeded"]), (&json!(3), &Value::Null));
    assert_eq!((agent.calls().len(), &again.run["error_code"]), (3, &Value::Null));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn bad_limits_and_prices_are_refused_with_their_fields(pool: PgPool) {
    let service = Service::start(&pool);
    let nap = json!({"nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    let id = define(&service, "nap", ("nap", &nap), json!({})).await;
    for (limits, field) in [
        (json!({"tokens": -1}), ".tokens greater_than_equal"),
        (json!({"tokens": 0}), ".tokens greater_than_equal"),
        (json!({"tokens": 1.5}), ".tokens int_from_float"),
        (json!({"tokens": 1e13}), ".tokens less_than_equal"),
        (json!({"cost": 0}), ".cost value_error"),
        (json!({"cost": "0.0000001"}), ".cost value_error"),
        (json!({"cost": []}), ".cost value_error"),
        (json!({"calls": "many"}), ".calls int_parsing"),
        (json!({"steps": 100_000_001}), ".steps less_than_equal"),
        (json!({"seconds": 31_536_001}), ".seconds less_than_equal"),
        (json!({"euros": 1}), ".euros extra_forbidden"),
        (json!(7), " model_attributes_type"),
    ] {
        let expected = [format!("body.limits{field}")];
        let workflow = json!({"name": "n", "start_step": "nap", "steps": nap, "limits": limits});
        for (path, body) in [
            (WORKFLOWS.to_owned(), &workflow),
            (format!("{WORKFLOWS}/{id}/execute"), &json!({"input_data": {}, "limits": limits})),
        ] {
            let refused = service.post(&path, body).await;
            assert_eq!((refused.status.as_u16(), refused.field_errors()), (422, expected.to_vec()), "{path} {limits}");
        }
        let put = service.send("PUT", &format!("{WORKFLOWS}/{id}"), &[], json!({"limits": limits}).to_string()).await;
        assert_eq!((put.status.as_u16(), put.field_errors()), (422, expected.to_vec()), "{limits}");
    }
    let agent = json!({"name": "x", "url": "http://x/", "kind": "openai",
        "config": {"model": "m", "price": {"input": -1, "output": 1e7, "each": 1}}});
    let refused = service.post(AGENTS, &agent).await;
    let fields = ["each extra_forbidden", "input value_error", "output value_error"];
    assert_eq!(refused.field_errors(), fields.map(|field| format!("body.config.price.{field}")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn limits_are_a_part_of_the_content_of_a_workflow(pool: PgPool) {
    let service = Service::start(&pool);
    let nap = json!({"nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    let id = define(&service, "nap", ("nap", &nap), json!({"tokens": 10, "cost": 0.50})).await;
    let path = format!("{WORKFLOWS}/{id}");
    let put = async |body: Value| service.send("PUT", &path, &[], body.to_string()).await.expect(200);
    let limits = |workflow: &Value| (workflow["version"].clone(), workflow["workflow_data"]["limits"].clone());
    let first = service.get(&path).await.expect(200);
    assert_eq!(limits(&first), (json!(1), json!({"tokens": 10, "cost": "0.5"})));
    assert_eq!(limits(&put(json!({"limits": {"cost": "0.500", "tokens": 10}})).await).0, 1, "they are the same");
    assert_eq!(limits(&put(json!({"steps": nap})).await), (json!(2), json!({"tokens": 10, "cost": "0.5"})));
    assert_eq!(limits(&put(json!({"limits": {"calls": 1}})).await), (json!(3), json!({"calls": 1})));
    let diff = service.get(&format!("{path}/versions/1/diff/3")).await.expect(200);
    let changed = json!({"before": {"tokens": 10, "cost": "0.5"}, "after": {"calls": 1}});
    assert_eq!((&diff["identical"], &diff["limits"]), (&json!(false), &changed));
    let exported = service.get("/api/v1/export").await.expect(200);
    assert_eq!(exported["workflows"][0]["limits"], json!({"calls": 1}));
    assert_eq!(limits(&put(json!({"limits": null})).await), (json!(4), Value::Null));
    let imported = service.post("/api/v1/import", &exported).await.expect(200);
    assert_eq!(imported["updated"]["workflows"], json!(["nap"]));
    let again = service.post("/api/v1/import", &exported).await.expect(200);
    assert_eq!(again["unchanged"]["workflows"], json!(["nap"]));
    let rolled = service.post(&format!("{path}/rollback"), &json!({"version": 1})).await.expect(200);
    assert_eq!(limits(&rolled).1, json!({"tokens": 10, "cost": "0.5"}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_test_counts_the_usage_of_its_mocks(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = json!({"name": "a", "url": "http://127.0.0.1:9/", "kind": "openai",
        "config": {"model": "m", "parameters": {"max_tokens": 10}, "price": {"input": 1, "output": 2}}});
    service.post(AGENTS, &agent).await.expect(201);
    let mock = json!({"output": {"text": "t", "usage": {"prompt_tokens": 20, "completion_tokens": 10}}});
    let test = async |steps: (&str, Value), limits: Value| {
        let body = json!({"definition": {"name": "n", "start_step": steps.0, "steps": steps.1, "limits": limits},
            "input_data": {}, "mocks": {"s0": mock, "s1": mock, "s2": mock}});
        service.post(&format!("{WORKFLOWS}/test"), &body).await.expect(200)
    };
    let report = test(("s0", chain(3)), json!({"tokens": 90, "cost": "0.00012"})).await;
    assert_eq!(report["status"], "COMPLETED", "{report}");
    assert_eq!(report["usage"], json!({"calls": 3, "tokens": 90, "cost": "0.00012"}));
    for (limits, start, calls) in [
        (json!({"tokens": 60}), ("s0", chain(3)), 2),
        (json!({"cost": "0.00008"}), ("s0", chain(3)), 2),
        (json!({"calls": 1}), ("fan", fan(3)), 1),
        (json!({"steps": 2}), ("s0", chain(3)), 2),
    ] {
        let report = test(start, limits.clone()).await;
        assert_eq!(report["error_code"], "budget_exceeded", "{limits}: {report}");
        assert_eq!(report["usage"]["calls"], calls, "{limits}");
    }
    for table in ["run_usage", "call_usage", "workflow_runs"] {
        assert_eq!(count(&pool, table).await, 0, "{table}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancelled_run_keeps_nothing_reserved(pool: PgPool) {
    let (agent, url) = model(5, 5).await;
    agent.hold();
    let world = World::start(&pool, &[]).await;
    register(&world, &url, json!({"parameters": {"max_tokens": 500}})).await;
    let id = define(&world.service, "abandoned", ("s0", &chain(1)), json!({"tokens": 100})).await;
    let run_id = begin(&world.service, &id, Value::Null).await;
    eventually("the agent is called", async || (agent.calls().len() == 1).then_some(())).await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let cancelled = ended(&world.service, &run_id).await;
    assert_eq!((&cancelled["status"], &cancelled["usage"]["calls"]), (&json!("CANCELLED"), &json!(1)));
    assert_eq!((&cancelled["error_code"], count(&pool, "call_reservations").await), (&Value::Null, 1));
    agent.0.gate.add_permits(100);
    world.retry(&run_id).await.output();
    assert_eq!(count(&pool, "call_reservations").await, 0);
}
