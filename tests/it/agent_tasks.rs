//! Agents that answer with a task which is not done yet: it is followed, and cancelled if nobody waits for it any more.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    agent_protocols::{rpc, rpc_error},
    path::{Agent, Call, Executor},
    service::eventually,
    steps::World,
};

/// The task `t-1` in this state.
fn task(call: &Call, state: &str) -> Response {
    let result = json!({"kind": "task", "id": "t-1", "contextId": "c-1", "status": {"state": state},
        "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": format!("said when {state}")}]}]});
    Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response()
}

fn method(call: &Call) -> &str {
    call.body["method"].as_str().expect("a method")
}

/// How often each method was called: `message/send`, `tasks/get`, `tasks/cancel`.
fn counts(agent: &Agent) -> [usize; 3] {
    let calls = agent.calls();
    ["message/send", "tasks/get", "tasks/cancel"].map(|name| calls.iter().filter(|call| method(call) == name).count())
}

/// An agent that never finishes.
async fn working() -> (Agent, String) {
    Agent::start(|_, call| task(call, if method(call) == "tasks/cancel" { "canceled" } else { "working" })).await
}

fn step() -> Value {
    json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}})
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_is_followed_to_its_end(pool: PgPool) {
    let (agent, url) = Agent::start(|number, call| match number {
        0 => task(call, "submitted"),
        1 | 3 => task(call, "working"),
        // That it cannot be asked for does not end a task.
        2 => (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response(),
        _ => task(call, "completed"),
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let done = world.run("ask", &step(), &json!({})).await;
    let output = done.output();
    assert_eq!((&output["text"], &output["task_id"]), (&json!("said when completed"), &json!("t-1")));
    assert_eq!(counts(&agent), [1, 4, 0]);
    // Answered before its task is done, since who does not know the task cannot cancel it.
    let sent = &agent.calls()[0].body["params"];
    assert_eq!(sent["configuration"], json!({"acceptedOutputModes": [], "blocking": false}));
    let message = &sent["message"];
    assert_eq!((&message["kind"], &message["role"]), (&json!("message"), &json!("user")));
    for call in &agent.calls()[1..] {
        assert_eq!(call.body["params"], json!({"id": "t-1"}));
        assert_eq!(call.body["jsonrpc"], "2.0");
        assert_eq!(call.headers["x-correlation-id"], agent.calls()[0].headers["x-correlation-id"]);
        assert!(!call.headers.contains_key("idempotency-key"), "it is no repeat of the message");
    }
    assert_eq!(done.rows.len(), 1, "all of it is one attempt");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_that_does_not_complete_fails_the_step(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        let state = call.body["params"]["message"]["parts"][0]["text"].as_str().map(str::to_owned);
        match state {
            // The state that is wanted becomes the id of the task.
            Some(state) => {
                let result = json!({"id": state, "status": {"state": "working"}});
                Json(json!({"jsonrpc": "2.0", "id": 1, "result": result})).into_response()
            }
            None if call.body["params"]["id"] == "gone" => {
                let error = json!({"code": -32001, "message": "Task not found"});
                Json(json!({"jsonrpc": "2.0", "id": 1, "error": error})).into_response()
            }
            None => {
                let words = json!({"role": "agent", "parts": [{"kind": "text", "text": "out of paper"}]});
                let status = json!({"state": call.body["params"]["id"], "message": words});
                Json(json!({"jsonrpc": "2.0", "id": 1, "result": {"id": "x", "status": status}})).into_response()
            }
        }
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    for (state, expected) in [
        ("failed", "Task state: failed: out of paper"),
        ("canceled", "Task state: canceled: out of paper"),
        ("rejected", "Task state: rejected: out of paper"),
        (
            "input-required",
            "Task state: input-required (the agent asks for more input, which a step cannot give): out of paper",
        ),
        (
            "auth-required",
            "Task state: auth-required (the agent asks for other credentials than its own): out of paper",
        ),
        ("gone", "JSON-RPC Error -32001: Task not found"),
    ] {
        let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": state}}});
        let failed = world.run("ask", &steps, &json!({})).await;
        let message = failed.run["error_message"].as_str().expect("a message");
        assert_eq!(message, format!("Step 'ask' failed: agent 'a': {expected}"));
        assert_eq!(failed.rows.len(), 1, "it is not tried again");
    }
    assert_eq!(counts(&agent)[2], 0, "what has ended is not cancelled");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_is_cancelled_when_its_time_is_over(pool: PgPool) {
    let (agent, url) = working().await;
    let world = World::start(&pool, &[]).await;
    let slow = json!({"name": "a", "url": url, "timeout_ms": 1000, "auth_type": "bearer", "auth_config": {"token": "s3cret"},
        "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    world.service.post("/api/v1/agents", &slow).await.expect(201);
    let failed = world.run("ask", &step(), &json!({})).await;
    let message = failed.run["error_message"].as_str().expect("a message");
    assert!(message.contains("no complete answer within 1000 ms"), "{message}");
    eventually("the agent hears of it", async || (counts(&agent)[2] == 1).then_some(())).await;
    let cancel = agent.calls().into_iter().find(|call| method(call) == "tasks/cancel").expect("it");
    assert_eq!(cancel.body["params"], json!({"id": "t-1"}));
    assert_eq!(cancel.headers["authorization"], "Bearer s3cret");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn cancelling_a_run_cancels_the_task(pool: PgPool) {
    let (agent, url) = working().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let run_id = world.begin("ask", &step(), &json!({})).await;
    eventually("the task is followed", async || (counts(&agent)[1] > 0).then_some(())).await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    eventually("the agent hears of it", async || (counts(&agent)[2] == 1).then_some(())).await;
    let followed = counts(&agent);
    assert_eq!((followed[0], followed[2]), (1, 1));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_branch_that_is_given_up_cancels_its_task(pool: PgPool) {
    let (slow, slow_url) = working().await;
    // The fast branch wins only when the slow one has its task.
    let watched = slow.clone();
    let (_fast, fast_url) = Agent::start(move |_, call| {
        let has_task = counts(&watched)[1] > 0;
        task(call, if has_task { "completed" } else { "working" })
    })
    .await;
    let world = World::start(&pool, &[("slow", &slow_url), ("fast", &fast_url)]).await;
    let branch = |agent: &str| json!({"id": agent, "agent_name": agent, "input_mapping": {"text": "x"}});
    let steps = json!({
        "race": {"id": "race", "type": "fork_join", "fork_join_config": {"join_policy": "any",
            "branches": {"one": {"steps": ["slow"]}, "two": {"steps": ["fast"]}}}},
        "slow": branch("slow"), "fast": branch("fast")});
    world.run("race", &steps, &json!({})).await.output();
    eventually("the slow agent hears of it", async || (counts(&slow)[2] == 1).then_some(())).await;
}

/// An agent whose task `t-1` is done once the switch is on, and that says in each answer that it has used tokens.
async fn done_when(is_done: &Arc<AtomicBool>) -> (Agent, String) {
    let is_done = Arc::clone(is_done);
    Agent::start(move |_, call| {
        let state = if is_done.load(Ordering::Relaxed) { "completed" } else { "working" };
        let usage = json!({"usage": {"input_tokens": 5, "output_tokens": 2}});
        let result = json!({"kind": "task", "id": "t-1", "status": {"state": state}, "metadata": usage,
            "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": state}]}]});
        Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response()
    })
    .await
}

/// Begins a run, and hands it over to another executor while its task is followed.
async fn handed_over(world: &mut World, agent: &Agent) -> (String, Executor) {
    let workflow_id = world.define("ask", &step()).await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let body = json!({"input_data": {}, "limits": {"calls": 1, "tokens": 7}});
    let run = world.service.post(&path, &body).await.expect(202);
    eventually("the task is followed", async || (agent.calls().len() > 1).then_some(())).await;
    world.executor.take().expect("an executor").stop().await;
    (run["run_id"].as_str().expect("an id").to_owned(), Executor::start(&world.service))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_is_handed_over_goes_on_with_its_task(pool: PgPool) {
    let is_done = Arc::new(AtomicBool::new(false));
    let (agent, url) = done_when(&is_done).await;
    let mut world = World::start(&pool, &[("a", &url)]).await;
    let (run_id, _next) = handed_over(&mut world, &agent).await;
    let before = counts(&agent)[1];
    eventually("the next one follows it", async || (counts(&agent)[1] > before + 1).then_some(())).await;
    is_done.store(true, Ordering::Relaxed);
    let ended = world.end(run_id).await;
    assert_eq!(ended.output()["text"], "completed");
    let [sent, _, cancelled] = counts(&agent);
    assert_eq!((sent, cancelled), (1, 0), "the message is sent once, and the task is not cancelled");
    assert_eq!(ended.attempts(), ["ask FAILED", "ask COMPLETED"]);
    let usage = &ended.run["usage"];
    assert_eq!((&usage["calls"], &usage["tokens"]), (&json!(1), &json!(7)), "it is one call");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_that_was_taken_over_is_cancelled_with_its_run(pool: PgPool) {
    let (agent, url) = working().await;
    let mut world = World::start(&pool, &[("a", &url)]).await;
    let (run_id, _next) = handed_over(&mut world, &agent).await;
    let before = counts(&agent)[1];
    eventually("the next one follows it", async || (counts(&agent)[1] > before).then_some(())).await;
    assert_eq!(counts(&agent)[2], 0);
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    eventually("the agent hears of it", async || (counts(&agent)[2] == 1).then_some(())).await;
    let cancel = agent.calls().into_iter().find(|call| method(call) == "tasks/cancel").expect("it");
    assert_eq!((&cancel.body["params"], counts(&agent)[0]), (&json!({"id": "t-1"}), 1));
    nothing_is_given_up(&pool).await;
}

/// Nobody follows the task when the run is cancelled.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_of_a_dead_executor_is_cancelled_with_its_run(pool: PgPool) {
    for generations in [1, 2] {
        let (agent, url) = working().await;
        let mut world = World::start(&pool, &[]).await;
        let name = format!("of-{generations}");
        world.service.post("/api/v1/agents", &json!({"name": name, "url": url})).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "x"}}});
        let run_id = world.begin("ask", &steps, &json!({})).await;
        for generation in 1..=generations {
            let before = counts(&agent)[1];
            eventually("the task is followed", async || (counts(&agent)[1] > before).then_some(())).await;
            world.kill_executor().await;
            bury_executors(&pool).await;
            if generation < generations {
                world.executor = Some(Executor::start(&world.service));
            }
        }
        world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
        assert_eq!(counts(&agent)[2], 0);
        let_pass_what_a_living_executor_would_take(&pool, &run_id).await;
        world.executor = Some(Executor::start(&world.service));
        eventually("the agent hears of it", async || (counts(&agent)[2] == 1).then_some(())).await;
        nothing_is_given_up(&pool).await;
        let cancel = agent.calls().into_iter().find(|call| method(call) == "tasks/cancel").expect("it");
        assert_eq!((&cancel.body["params"], counts(&agent)[0]), (&json!({"id": "t-1"}), 1));
    }
}

/// Removes the rows of executors, as after the time without a heartbeat.
pub async fn bury_executors(pool: &PgPool) {
    sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(pool).await.expect("they are buried");
}

/// A living executor would cancel the only task of the run within that time.
pub async fn let_pass_what_a_living_executor_would_take(pool: &PgPool, run_id: &str) {
    let due = "UPDATE given_up_tasks SET cancel_at = now() WHERE run_id = $1";
    assert_eq!(sqlx::query(due).bind(run_id).execute(pool).await.expect("done").rows_affected(), 1);
}

pub async fn nothing_is_given_up(pool: &PgPool) {
    eventually("it is noted", async || {
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM given_up_tasks").fetch_one(pool).await.expect("a count");
        (left == 0).then_some(())
    })
    .await;
}

/// What the next executor gets for its query, and whether it sends the message again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_message_is_sent_again_only_if_the_agent_does_not_know_the_task(pool: PgPool) {
    for (known, expected) in [
        // The agent has forgotten it.
        ("unknown", Ok(2)),
        ("unknown with 404", Ok(2)),
        // It says nothing about the task, so it is asked again.
        ("busy", Ok(1)),
        // It has ended without a result.
        ("canceled", Err("Task state: canceled")),
        // A refusal is no proof that there is no task.
        ("refused", Err("JSON-RPC Error -32602: no")),
    ] {
        let (is_next, is_back) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (next, back) = (Arc::clone(&is_next), Arc::clone(&is_back));
        let (agent, url) = Agent::start(move |_, call| {
            let refused = |code: i32| {
                let error = json!({"code": code, "message": "no"});
                Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "error": error})).into_response()
            };
            if !next.load(Ordering::Relaxed) {
                return task(call, "working");
            }
            match known {
                _ if method(call) != "tasks/get" => task(call, "completed"),
                "unknown" => refused(-32001),
                "unknown with 404" => (StatusCode::NOT_FOUND, refused(-32001)).into_response(),
                "busy" if !back.swap(true, Ordering::Relaxed) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                "busy" => task(call, "completed"),
                "canceled" => task(call, "canceled"),
                _ => refused(-32602),
            }
        })
        .await;
        let mut world = World::start(&pool, &[]).await;
        let body = json!({"name": known, "url": url, "circuit_breaker_config": {"enabled": false},
            "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": known, "input_mapping": {"text": "x"}}});
        let workflow = json!({"name": known, "start_step": "ask", "steps": steps});
        let workflow = world.service.post("/api/v1/workflows", &workflow).await.expect(201);
        let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
        let run = world.service.post(&path, &json!({"input_data": {}})).await.expect(202);
        eventually("the task is followed", async || (counts(&agent)[1] > 0).then_some(())).await;
        world.executor.take().expect("an executor").stop().await;
        is_next.store(true, Ordering::Relaxed);
        let next = Executor::start(&world.service);
        let ended = world.end(run["run_id"].as_str().expect("an id").to_owned()).await;
        let sent: Vec<Call> = agent.calls().into_iter().filter(|call| method(call) == "message/send").collect();
        match expected {
            Ok(times) => assert_eq!((ended.output()["task_id"].as_str(), sent.len()), (Some("t-1"), times), "{known}"),
            Err(cause) => {
                assert!(ended.cause().contains(cause), "{known}: {}", ended.cause());
                assert_eq!(sent.len(), 1, "{known}");
            }
        }
        assert_eq!(counts(&agent)[2], 0, "{known}");
        // What is sent again has the same ids.
        let id = |call: &Call| {
            (call.body["params"]["message"]["messageId"].clone(), call.headers["idempotency-key"].clone())
        };
        assert!(sent.iter().all(|call| id(call) == id(&sent[0])), "{known}");
        assert!(id(&sent[0]).1.to_str().is_ok_and(|id| id.starts_with(&ended.id)), "{:?}", id(&sent[0]));
        next.kill().await;
        world.service.stop().await;
    }
}

/// While the circuit breaker is open nothing is asked, and the task waits.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_is_followed_once_the_circuit_breaker_lets_a_call_through(pool: PgPool) {
    let is_done = Arc::new(AtomicBool::new(false));
    let (agent, url) = done_when(&is_done).await;
    let mut world = World::start(&pool, &[]).await;
    let body = json!({"name": "a", "url": url,
        "retry_config": {"max_retries": 10, "initial_delay_ms": 500, "max_delay_ms": 2000}});
    world.service.post("/api/v1/agents", &body).await.expect(201);
    let run_id = world.begin("ask", &step(), &json!({})).await;
    eventually("the task is followed", async || (agent.calls().len() > 1).then_some(())).await;
    world.executor.take().expect("an executor").stop().await;
    let open = "INSERT INTO circuit_breakers (agent_id, state, opened_at) SELECT id, 'open', now() FROM agents";
    sqlx::query(open).execute(&pool).await.expect("a breaker");
    let _next = Executor::start(&world.service);
    eventually("two attempts are refused", async || {
        (crate::path::steps(&world.service, &run_id).await.len() > 3).then_some(())
    })
    .await;
    is_done.store(true, Ordering::Relaxed);
    sqlx::query("DELETE FROM circuit_breakers").execute(&pool).await.expect("done");
    let ended = world.end(run_id).await;
    assert_eq!(ended.output()["task_id"], "t-1");
    assert_eq!((counts(&agent)[0], counts(&agent)[2]), (1, 0));
}

/// The next executor may expect another version than the one that was spoken.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_is_asked_for_in_the_other_version_before_its_message_is_sent_again(pool: PgPool) {
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    let (agent, url) = Agent::start(move |_, call| {
        let state = if done.load(Ordering::Relaxed) { "TASK_STATE_COMPLETED" } else { "TASK_STATE_WORKING" };
        let shown = json!({"id": "t-1", "contextId": "c-1", "status": {"state": state}});
        match method(call) {
            "SendMessage" => rpc(call, &json!({"task": shown})),
            "GetTask" => rpc(call, &shown),
            _ => rpc_error(call, -32601),
        }
    })
    .await;
    let mut world = World::start(&pool, &[("a", &url)]).await;
    let run_id = world.begin("ask", &step(), &json!({})).await;
    let asked = |name: &str| agent.calls().iter().filter(|call| method(call) == name).count();
    eventually("the task is followed", async || (asked("GetTask") > 0).then_some(())).await;
    world.executor.take().expect("an executor").stop().await;
    sqlx::query("UPDATE agent_cards SET protocol_seen = NULL, seen_at = NULL").execute(&pool).await.expect("a row");
    is_done.store(true, Ordering::Relaxed);
    let _next = Executor::start(&world.service);
    let ended = world.end(run_id).await;
    assert_eq!(ended.output()["task_id"], "t-1");
    assert_eq!((asked("message/send"), asked("SendMessage"), asked("tasks/get")), (1, 1, 1));
}

/// A question that is given up cancels its task. Whoever does not know the task any more, or has ended it, has done that.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancellation_is_done_if_there_is_nothing_to_cancel_any_more(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        if method(call) == "CancelTask" {
            return rpc(call, &json!({"id": "t", "status": {"state": "TASK_STATE_CANCELED"}}));
        }
        if method(call) != "tasks/cancel" {
            let id = call.body["params"]["message"]["parts"][0]["text"].clone();
            let question = json!({"kind": "message", "parts": [{"kind": "text", "text": "Which?"}]});
            let result = json!({"id": id, "status": {"state": "input-required", "message": question}});
            return Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response();
        }
        let refused = |code: i32| {
            Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "error": {"code": code, "message": "no"}}))
                .into_response()
        };
        match call.body["params"]["id"].as_str().expect("an id") {
            "unknown" => refused(-32001),
            "ended" => refused(-32002),
            "unsupported" => refused(-32004),
            "of 1.0" => refused(-32601),
            "failing" => refused(-32603),
            "page" => ([("content-type", "text/html")], "<html>").into_response(),
            "cancelled" => task(call, "canceled"),
            "gone" => (StatusCode::NOT_FOUND, refused(-32001)).into_response(),
            "conflict" => (StatusCode::CONFLICT, "no").into_response(),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response(),
        }
    })
    .await;
    let world = World::start(&pool, &[("a", &url)]).await;
    for (task, is_done) in [
        ("cancelled", true),
        ("unknown", true),
        ("ended", true),
        ("unsupported", true),
        ("gone", true),
        ("conflict", true),
        // It is cancelled in the other version.
        ("of 1.0", true),
        ("busy", false),
        ("failing", false),
        ("page", false),
    ] {
        let steps =
            json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": task}, "on_question": "ask"}});
        let run_id = world.begin("ask", &steps, &json!({})).await;
        crate::agent_questions::question(&world, &run_id, 1).await;
        world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
        let state = async || {
            let sql = "SELECT cancels::int, cancel_at IS NOT NULL FROM step_waits WHERE run_id = $1";
            sqlx::query_as::<_, (i32, bool)>(sql).bind(&run_id).fetch_one(&pool).await.expect("a question")
        };
        let asked = || {
            let calls = agent.calls();
            calls.iter().filter(|call| method(call) == "tasks/cancel" && call.body["params"]["id"] == task).count()
        };
        eventually("it was cancelled", async || (asked() == 1).then_some(())).await;
        // What was refused for a while is tried again, half a minute later.
        eventually("the outcome is noted", async || (state().await == (1, !is_done)).then_some(())).await;
    }
    let by_1 = agent.calls().iter().filter(|call| method(call) == "CancelTask").count();
    assert_eq!(by_1, 1, "only what the other version does not know");
}
