//! Tools of MCP servers that ask back: the run waits for the answer, which goes to the server.

use std::sync::{Arc, Mutex};

use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    agent_mcp::{modern, own_methods},
    agent_protocols::{method, rpc},
    agent_questions::{answer, question},
    path::{Agent, Call, Executor},
    service::eventually,
    steps::World,
    waits::{parked, path_of},
};

fn form(message: &str) -> Value {
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}})
}

/// A server that keeps nothing: what it has asked and heard is in the state that the client sends back. It asks twice.
fn forgetful(call: &Call) -> Response {
    let params = &call.body["params"];
    let heard: Vec<Value> = params["requestState"]
        .as_str()
        .map_or_else(Vec::new, |state| serde_json::from_str(state).expect("its own state"));
    let number = heard.len();
    let heard = match params["inputResponses"].as_object() {
        None => Vec::new(),
        Some(responses) => {
            let response = &responses[&format!("q{number}")];
            assert_eq!((responses.len(), &response["action"]), (1, &json!("accept")));
            [heard, vec![response["content"]["n"].clone()]].concat()
        }
    };
    if heard.len() == 2 {
        let said = json!({"heard": heard, "arguments": params["arguments"]}).to_string();
        return rpc(call, &json!({"resultType": "complete", "content": [{"type": "text", "text": said}]}));
    }
    let mut requests = json!({});
    requests[format!("q{}", heard.len())] = form(&format!("Number {}?", heard.len()));
    let state = json!(heard).to_string();
    rpc(call, &json!({"resultType": "input_required", "inputRequests": requests, "requestState": state}))
}

/// A server whose task asks once, and works on the answer for two queries, while it still shows the question.
#[derive(Default)]
struct Tasks {
    heard: Vec<Value>,
    queries: usize,
    is_cancelled: bool,
}

async fn tasks() -> (Arc<Mutex<Tasks>>, Agent, String) {
    let tasks = Arc::new(Mutex::new(Tasks::default()));
    let known = Arc::clone(&tasks);
    let (agent, url) = modern(move |_, call| {
        let mut tasks = known.lock().expect("no panic");
        match method(call) {
            "tools/call" => {
                rpc(call, &json!({"resultType": "task", "taskId": "t-1", "status": "working", "pollIntervalMs": 1}))
            }
            "tasks/update" => {
                tasks.heard.push(call.body["params"]["inputResponses"].clone());
                rpc(call, &json!({"resultType": "complete"}))
            }
            "tasks/cancel" => {
                tasks.is_cancelled = true;
                // A server may answer in an event stream.
                let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}});
                let answer = json!({"jsonrpc": "2.0", "id": call.body["id"], "result": {"resultType": "complete"}});
                ([("content-type", "text/event-stream")], format!("data: {progress}\n\ndata: {answer}\n\n"))
                    .into_response()
            }
            _ => {
                let task = |status: &str| json!({"taskId": "t-1", "status": status, "pollIntervalMs": 1, "resultType": "complete"});
                let mut asking = task("input_required");
                asking["inputRequests"] = json!({"q": form("How many?")});
                tasks.queries += usize::from(!tasks.heard.is_empty());
                if tasks.queries < 3 {
                    return rpc(call, &asking);
                }
                let mut done = task("completed");
                done["result"] = json!({"content": [], "structuredContent": tasks.heard[0]["q"]["content"]});
                rpc(call, &done)
            }
        }
    })
    .await;
    (tasks, agent, url)
}

async fn world(pool: &PgPool, url: &str) -> World {
    let world = World::start(pool, &[]).await;
    let agent = json!({"name": "a", "url": url, "kind": "mcp", "config": {"tool": "add"},
        "circuit_breaker_config": {"enabled": false}, "retry_config": {"max_retries": 1}});
    world.service.post("/api/v1/agents", &agent).await.expect(201);
    world
}

fn step(on_question: &Value) -> Value {
    json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"a": 1}, "on_question": on_question,
        "timeout_seconds": 3600}})
}

fn capabilities(call: &Call) -> &Value {
    &call.body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_parks_the_run_and_the_call_is_sent_again_with_the_answer(pool: PgPool) {
    let (server, url) = modern(|_, call| forgetful(call)).await;
    let world = world(&pool, &url).await;
    let run_id = world.begin("ask", &step(&json!("ask")), &json!({})).await;
    for round in [1, 2] {
        let open = question(&world, &run_id, round).await;
        let asked = &open["question"];
        assert_eq!(asked["text"], format!("Number {}?", round - 1));
        assert_eq!((&asked["state"], &asked["task_id"]), (&json!("input-required"), &json!("")));
        assert_eq!(asked["answer_schema"]["required"], json!(["n"]));
        parked(&pool, &run_id).await;
        world.service.post(&path_of(&open["url"]), &json!({"n": "seven"})).await.error(422);
        answer(&world.service, &open, &json!({"n": round * 7})).await;
    }
    let ended = world.end(run_id).await;
    assert_eq!(ended.output()["data"], json!({"heard": [7, 14], "arguments": {"a": 1}}));
    assert_eq!(ended.attempts(), ["ask COMPLETED"], "all of it is one attempt");
    let calls: Vec<Call> = server.calls().into_iter().filter(|call| method(call) == "tools/call").collect();
    assert_eq!(calls.len(), 3);
    let mut keys: Vec<_> = calls.iter().map(|call| call.headers["idempotency-key"].clone()).collect();
    keys.dedup();
    assert_eq!(keys.len(), 3, "an answer is no repeat of the call");
    assert!(calls.iter().all(|call| capabilities(call)["elicitation"] == json!({"form": {}, "url": {}})));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_that_asks_gets_the_answer_and_goes_on(pool: PgPool) {
    let (tasks, server, url) = tasks().await;
    let world = world(&pool, &url).await;
    let run_id = world.begin("ask", &step(&json!("ask")), &json!({})).await;
    let open = question(&world, &run_id, 1).await;
    assert_eq!((&open["question"]["text"], &open["question"]["task_id"]), (&json!("How many?"), &json!("t-1")));
    parked(&pool, &run_id).await;
    answer(&world.service, &open, &json!({"n": 7})).await;
    let ended = world.end(run_id).await;
    assert_eq!((&ended.output()["data"], ended.attempts()), (&json!({"n": 7}), vec!["ask COMPLETED".to_owned()]));
    let tasks = tasks.lock().expect("no panic");
    assert_eq!(tasks.heard, [json!({"q": {"action": "accept", "content": {"n": 7}}})]);
    assert!(!tasks.is_cancelled);
    assert_eq!(own_methods(&server).iter().filter(|method| *method == "tools/call").count(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_fails_a_step_that_does_not_answer_and_leaves_no_task_behind(pool: PgPool) {
    let (server, url) = modern(|_, call| forgetful(call)).await;
    let (tasks, _server, url_of_tasks) = tasks().await;
    let world = world(&pool, &url).await;
    let other = json!({"name": "b", "url": url_of_tasks, "kind": "mcp", "config": {"tool": "add"}, "retry_config": {"max_retries": 1}});
    world.service.post("/api/v1/agents", &other).await.expect(201);
    for on_question in [Value::Null, json!("output")] {
        let failed = world.run("ask", &step(&on_question), &json!({})).await;
        let cause = "Step 'ask' failed: agent 'a': the tool asks for more input, which a step gives only with \
                     on_question: \"ask\": Number 0?";
        assert_eq!(failed.cause(), cause);
        let mut steps = step(&on_question);
        steps["ask"]["agent_name"] = json!("b");
        tasks.lock().expect("no panic").is_cancelled = false;
        assert!(world.run("ask", &steps, &json!({})).await.cause().ends_with("How many?"));
        eventually("its task is cancelled", async || tasks.lock().expect("no panic").is_cancelled.then_some(())).await;
    }
    let calls: Vec<Call> = server.calls().into_iter().filter(|call| method(call) == "tools/call").collect();
    assert!(calls.iter().all(|call| capabilities(call)["elicitation"].is_null()), "nobody answers");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_address_to_go_to_is_an_authorisation(pool: PgPool) {
    let (_server, url) = modern(|_, call| {
        if let Some(responses) = call.body["params"]["inputResponses"].as_object() {
            assert_eq!(responses["login"], json!({"action": "accept"}));
            return rpc(call, &json!({"content": [{"type": "text", "text": "signed in"}]}));
        }
        let params =
            json!({"mode": "url", "message": "Sign in at", "url": "https://login.example/7", "elicitationId": "7"});
        let requests = json!({"login": {"method": "elicitation/create", "params": params}});
        rpc(call, &json!({"resultType": "input_required", "inputRequests": requests}))
    })
    .await;
    let world = world(&pool, &url).await;
    for (approved, status) in [(true, "COMPLETED"), (false, "FAILED")] {
        let run_id = world.begin("ask", &step(&json!("ask")), &json!({})).await;
        let open = question(&world, &run_id, 1).await;
        let asked = &open["question"];
        assert_eq!((&open["is_approval"], &asked["state"]), (&json!(true), &json!("auth-required")));
        assert_eq!(asked["text"], "Sign in at https://login.example/7");
        answer(&world.service, &open, &json!({"approved": approved})).await;
        assert_eq!(world.end(run_id).await.run["status"], status);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_reaches_the_server_after_the_executor_has_died(pool: PgPool) {
    let (_forgetful, url) = modern(|_, call| forgetful(call)).await;
    let (tasks, _server, url_of_tasks) = tasks().await;
    let mut world = world(&pool, &url).await;
    let other = json!({"name": "b", "url": url_of_tasks, "kind": "mcp", "config": {"tool": "add"}});
    world.service.post("/api/v1/agents", &other).await.expect(201);
    let mut of_task = step(&json!("ask"));
    of_task["ask"]["agent_name"] = json!("b");
    let runs =
        [world.begin("ask", &step(&json!("ask")), &json!({})).await, world.begin("ask", &of_task, &json!({})).await];
    let open = [question(&world, &runs[0], 1).await, question(&world, &runs[1], 1).await];
    // Between the question and the answer, and between the answer and what comes after it.
    world.kill_executor().await;
    for open in &open {
        answer(&world.service, open, &json!({"n": 7})).await;
    }
    sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(&pool).await.expect("the dead is buried");
    world.executor = Some(Executor::start(&world.service));
    let next = question(&world, &runs[0], 2).await;
    answer(&world.service, &next, &json!({"n": 8})).await;
    let [first, second] = runs;
    assert_eq!(world.end(first).await.output()["data"], json!({"heard": [7, 8], "arguments": {"a": 1}}));
    assert_eq!(world.end(second).await.output()["data"], json!({"n": 7}));
    assert_eq!(tasks.lock().expect("no panic").heard.len(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancelled_run_cancels_the_task_that_asks(pool: PgPool) {
    let (tasks, _server, url) = tasks().await;
    let world = world(&pool, &url).await;
    let run_id = world.begin("ask", &step(&json!("ask")), &json!({})).await;
    question(&world, &run_id, 1).await;
    parked(&pool, &run_id).await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    eventually("its task is cancelled", async || tasks.lock().expect("no panic").is_cancelled.then_some(())).await;
    eventually("that is noted", async || {
        let sql = "SELECT cancels::int, cancel_at IS NOT NULL FROM step_waits WHERE run_id = $1";
        let noted: (i32, bool) = sqlx::query_as(sql).bind(&run_id).fetch_one(&pool).await.expect("a question");
        (noted == (1, false)).then_some(())
    })
    .await;
}

/// Questions that are too many or too large, or that no person can answer.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_be_asked_fails_the_step(pool: PgPool) {
    let (_server, url) = modern(|_, call| {
        let many: serde_json::Map<String, Value> = (0..20).map(|number| (format!("q{number}"), form("?"))).collect();
        let requests = match call.body["params"]["arguments"]["case"].as_str().expect("a case") {
            "many" => json!(many),
            "key" => json!({"k".repeat(5000): form("?")}),
            "roots" => json!({"q": form("?"), "r": {"method": "roots/list", "params": {}}}),
            "sampling" => json!({"s": {"method": "sampling/createMessage", "params": {}}}),
            "none" => json!({}),
            "wrong" => json!([1]),
            _ => json!({"q": form("?")}),
        };
        let state =
            if call.body["params"]["arguments"]["case"] == "state" { "x".repeat(70_000) } else { String::new() };
        rpc(call, &json!({"resultType": "input_required", "inputRequests": requests, "requestState": state}))
    })
    .await;
    let world = world(&pool, &url).await;
    for case in ["many", "key", "roots", "sampling", "none", "wrong", "state"] {
        let mut steps = step(&json!("ask"));
        steps["ask"]["input_mapping"] = json!({"case": case});
        let failed = world.run("ask", &steps, &json!({})).await;
        assert!(failed.cause().contains("asks for more input, which a step cannot give"), "{case}: {}", failed.cause());
        assert_eq!(failed.rows.len(), 1);
    }
}
