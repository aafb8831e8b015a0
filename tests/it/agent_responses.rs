//! Agents with the Responses API: at once, streamed, and in the background.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Json, Router,
    extract::Path,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    agent_protocols::{run, world},
    agent_streams::{Watched, events},
    agent_tasks::{bury_executors, let_pass_what_a_living_executor_would_take, nothing_is_given_up},
    path::{Agent, Call, Executor},
    service::{Service, eventually},
};

fn response(id: &str, status: &str, text: &str) -> Value {
    let content = json!([{"type": "output_text", "text": text, "annotations": []}]);
    json!({"id": id, "object": "response", "status": status, "model": "m-2026", "error": null,
        "output": [{"type": "reasoning", "summary": []},
            {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": content}],
        "usage": {"input_tokens": 11, "output_tokens": 3, "total_tokens": 14}})
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_response_is_an_output(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        let said = call.body["input"].as_str().map_or_else(|| "a talk".to_owned(), str::to_uppercase);
        Json(response("resp_1", "completed", &said)).into_response()
    })
    .await;
    let config = json!({"model": "m", "instructions": "Be brief.",
        "parameters": {"tools": [{"type": "web_search"}], "max_output_tokens": 9}});
    let members = json!({"url": format!("{url}v1/responses?api-version=7"), "kind": "Responses", "config": config,
        "auth_type": "apikey", "auth_config": {"key": "s3cret", "header_name": "api-key"}});
    let world = world(&pool, &members).await;
    let ended = run(&world, json!({"text": "hello"})).await;
    let whole = response("resp_1", "completed", "HELLO");
    let expected = json!({"text": "HELLO", "content": "HELLO", "status": "completed", "incomplete_reason": null,
        "output": whole["output"], "model": "m-2026", "usage": whole["usage"], "id": "resp_1"});
    assert_eq!(ended.output(), &expected);
    let [call] = &agent.calls()[..] else { panic!("one call") };
    let expected = json!({"model": "m", "input": "hello", "instructions": "Be brief.",
        "tools": [{"type": "web_search"}], "max_output_tokens": 9});
    assert_eq!(call.body, expected);
    let row = ended.rows[0]["id"].as_str().expect("an id");
    let header = |name: &str| call.headers[name].to_str().expect("ASCII").to_owned();
    assert_eq!((header("api-key").as_str(), header("idempotency-key").as_str()), ("s3cret", row));
    let talk = json!([{"role": "user", "content": "a"}]);
    run(&world, json!({"input": talk, "previous_response_id": "resp_0"})).await.output();
    let sent = agent.calls()[1].body.clone();
    assert_eq!((&sent["input"], &sent["previous_response_id"]), (&talk, &json!("resp_0")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_no_response_is_said_in_the_runs_error(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| match call.body["input"].as_str().expect("a text") {
        "quota" => {
            let error = json!({"error": {"message": "pay", "code": "insufficient_quota"}});
            (StatusCode::TOO_MANY_REQUESTS, Json(error)).into_response()
        }
        "html" => axum::response::Html("<title>Welcome</title>").into_response(),
        "half" => ([("content-type", "application/json")], "{\"id\":").into_response(),
        "queued" => Json(response("r", "queued", "")).into_response(),
        "failed" => {
            let mut failed = response("r", "failed", "");
            failed["error"] = json!({"code": "invalid_prompt", "message": "not so"});
            Json(failed).into_response()
        }
        "huge" => Json(response("r", "completed", &"x".repeat(11 << 20))).into_response(),
        "chat" => Json(json!({"choices": []})).into_response(),
        other => panic!("{other}"),
    })
    .await;
    let config = json!({"model": "m"});
    let world = world(&pool, &json!({"url": url, "kind": "responses", "config": config})).await;
    for (text, expected) in [
        ("quota", "HTTP 429: Too Many Requests, pay"),
        ("html", "the answer is no response: JSON decode error"),
        ("half", "the answer is no response: JSON decode error"),
        ("queued", "it is not done, and was not created in the background"),
        ("failed", "the answer is an error: not so"),
        ("huge", "the answer is larger than"),
        ("chat", "the answer is no response: it has no output"),
    ] {
        let failed = run(&world, json!({"text": text})).await;
        assert!(failed.cause().contains(expected), "{text}: {}", failed.cause());
    }
    assert_eq!(agent.calls().len(), 7);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_streamed_response_is_seen_in_pieces_and_is_the_last_event(pool: PgPool) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (agent, url) = Agent::start(move |_, call| {
        let delta = |text: &str| json!({"type": "response.output_text.delta", "delta": text, "output_index": 0});
        let end = |kind: &str, response: Value| json!({"type": format!("response.{kind}"), "response": response});
        let list = match call.body["input"].as_str().expect("a text") {
            "hello" => vec![
                end("created", response("r", "in_progress", "")),
                delta("Hel"),
                json!(null),
                delta("lo"),
                end("completed", response("r", "completed", "Hello, all")),
                json!("[DONE]"),
            ],
            "cut" => {
                let mut cut = response("r", "incomplete", "half");
                cut["incomplete_details"] = json!({"reason": "max_output_tokens"});
                vec![end("incomplete", cut)]
            }
            "failed" => {
                let mut failed = response("r", "failed", "");
                failed["error"] = json!({"code": "invalid_prompt", "message": "not so"});
                vec![end("failed", failed)]
            }
            "error" => vec![json!({"type": "error", "code": "rate_limit_exceeded", "message": "slow down"})],
            "broken" => vec![delta("x")],
            "half" => vec![json!("{\"type\":")],
            "large" => vec![end("completed", response("r", "completed", &"x".repeat(3 << 20)))],
            "huge" => vec![end("completed", response("r", "completed", &"x".repeat(11 << 20)))],
            _ => return Json(response("r", "completed", "not streamed")).into_response(),
        };
        events(list, Arc::clone(&held))
    })
    .await;
    let config = json!({"model": "m", "streaming": true});
    let world = world(&pool, &json!({"url": url, "kind": "responses", "config": config})).await;
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "hello"}}});
    let run_id = world.begin("ask", &steps, &json!({})).await;
    let mut watched = Watched::open(&world.service, &run_id).await;
    let first = watched.named("step.output.delta").await;
    assert_eq!((&first["text"], &first["append"]), (&json!("Hel"), &json!(true)));
    gate.add_permits(1);
    let ended = world.end(run_id).await;
    assert_eq!((&ended.output()["text"], &ended.output()["id"]), (&json!("Hello, all"), &json!("r")));
    assert_eq!(agent.calls()[0].body["stream"], true);
    let cut = run(&world, json!({"text": "cut"})).await;
    assert_eq!(
        (&cut.output()["text"], &cut.output()["incomplete_reason"]),
        (&json!("half"), &json!("max_output_tokens"))
    );
    assert_eq!(run(&world, json!({"text": "x"})).await.output()["text"], "not streamed");
    assert_eq!(run(&world, json!({"text": "large"})).await.output()["text"].as_str().map(str::len), Some(3 << 20));
    for (text, expected) in [
        ("failed", "the answer is an error: not so"),
        ("error", "the answer is an error 429: slow down"),
        ("broken", "the event stream ended before the response"),
        ("half", "an event of the stream is not JSON"),
        ("huge", "the event stream is larger than"),
    ] {
        let failed = run(&world, json!({"text": text})).await;
        assert!(failed.cause().contains(expected), "{text}: {}", failed.cause());
    }
}

/// What an API with background responses was asked, and the state of its response.
#[derive(Clone, Default)]
struct Background {
    calls: Arc<Mutex<Vec<String>>>,
    queries: Arc<AtomicUsize>,
    /// The answer to the queries from the third one on; none: it goes on for ever.
    end: Arc<Mutex<Option<Value>>>,
}

impl Background {
    async fn start(&self) -> (Agent, String) {
        let (of_query, of_cancel) = (self.clone(), self.clone());
        let query = async move |Path(id): Path<String>, headers: HeaderMap| -> Response {
            assert_eq!(headers["authorization"], "Bearer s3cret");
            of_query.note(format!("GET {id}"));
            let number = of_query.queries.fetch_add(1, Ordering::Relaxed);
            let end = of_query.end.lock().expect("no panic").clone();
            match (number, end) {
                (1, _) => (StatusCode::BAD_GATEWAY, "down").into_response(),
                (2.., Some(end)) => Json(end).into_response(),
                _ => Json(response(&id, "in_progress", "")).into_response(),
            }
        };
        let cancel = async move |Path(id): Path<String>| {
            of_cancel.note(format!("cancel {id}"));
            Json(response(&id, "cancelled", ""))
        };
        let create = self.clone();
        let routes = |_: &str| {
            Router::new().route("/v1/responses/{id}", get(query)).route("/v1/responses/{id}/cancel", post(cancel))
        };
        Agent::start_with(routes, move |_, call: &Call| {
            assert_eq!((&call.body["background"], &call.body["store"]), (&json!(true), &json!(true)));
            create.note("create".to_owned());
            create.queries.store(0, Ordering::Relaxed);
            Json(response("resp_7", "queued", "")).into_response()
        })
        .await
    }

    fn note(&self, call: String) {
        self.calls.lock().expect("no panic").push(call);
    }

    fn count(&self, call: &str) -> usize {
        self.calls.lock().expect("no panic").iter().filter(|known| *known == call).count()
    }
}

fn members(url: &str, more: &Value) -> Value {
    let mut members = json!({"url": format!("{url}v1"), "kind": "responses", "auth_type": "bearer",
        "auth_config": {"token": "s3cret"}, "config": {"model": "m", "background": true}});
    members.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
    members
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_response_in_the_background_is_queried_to_its_end(pool: PgPool) {
    let background = Background::default();
    let (_agent, url) = background.start().await;
    let world = world(&pool, &members(&url, &json!({}))).await;
    let with = |status: &str, error: Value| {
        let mut end = response("resp_7", status, "at last");
        end["error"] = error;
        end
    };
    *background.end.lock().expect("no panic") = Some(with("completed", json!(null)));
    let done = run(&world, json!({"text": "x"})).await;
    assert_eq!((&done.output()["text"], done.rows.len()), (&json!("at last"), 1));
    assert_eq!((background.count("create"), background.count("GET resp_7")), (1, 3), "a failed query ends nothing");
    let kept: Value =
        sqlx::query_scalar("SELECT agent_task FROM step_executions").fetch_one(&pool).await.expect("a row");
    assert_eq!(kept, json!({"kind": "responses", "id": "resp_7"}));
    for (end, expected) in [
        (with("failed", json!({"code": "server_error", "message": "died"})), "the answer is an error 500: died"),
        (with("cancelled", json!(null)), "the response was cancelled"),
        (json!([]), "the answer is no response: it has no output"),
    ] {
        *background.end.lock().expect("no panic") = Some(end);
        let failed = run(&world, json!({"text": "x"})).await;
        assert_eq!(failed.cause(), format!("Step 'ask' failed: agent 'a': {expected}"));
    }
    assert_eq!(background.count("cancel resp_7"), 0, "what has ended is not cancelled");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_response_in_the_background_is_cancelled_with_its_time_or_its_run(pool: PgPool) {
    let background = Background::default();
    let (_agent, url) = background.start().await;
    let world = world(&pool, &members(&url, &json!({"timeout_ms": 1000}))).await;
    let failed = run(&world, json!({"text": "x"})).await;
    assert!(failed.cause().contains("no complete answer within 1000 ms"), "{}", failed.cause());
    eventually("it is cancelled in time", async || (background.count("cancel resp_7") == 1).then_some(())).await;
    let before = background.count("GET resp_7");
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}});
    let run_id = world.begin("ask", &steps, &json!({})).await;
    eventually("it is queried", async || (background.count("GET resp_7") > before).then_some(())).await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    eventually("it is cancelled with the run", async || (background.count("cancel resp_7") == 2).then_some(())).await;
    assert_eq!(background.count("create"), 2);
}

/// Nobody queries the response when the run is cancelled.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_response_of_a_dead_executor_is_cancelled_with_its_run(pool: PgPool) {
    let background = Background::default();
    let (_agent, url) = background.start().await;
    let mut world = world(&pool, &members(&url, &json!({}))).await;
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}});
    let run_id = world.begin("ask", &steps, &json!({})).await;
    eventually("it is queried", async || (background.count("GET resp_7") > 0).then_some(())).await;
    world.kill_executor().await;
    bury_executors(&pool).await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    assert_eq!(background.count("cancel resp_7"), 0);
    let_pass_what_a_living_executor_would_take(&pool, &run_id).await;
    world.executor = Some(Executor::start(&world.service));
    eventually("it is cancelled", async || (background.count("cancel resp_7") == 1).then_some(())).await;
    nothing_is_given_up(&pool).await;
    assert_eq!(background.count("create"), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_response_in_the_background_needs_an_id_that_can_be_kept(pool: PgPool) {
    let (agent, url) = Agent::start(|_, _| Json(response(&"r".repeat(5000), "queued", "")).into_response()).await;
    let world = world(&pool, &members(&url, &json!({}))).await;
    let failed = run(&world, json!({"text": "x"})).await;
    assert!(failed.cause().contains("it is under way and has no id that can be kept"), "{}", failed.cause());
    assert_eq!(agent.calls().len(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_model_is_healthy_if_it_lists_its_models(pool: PgPool) {
    let routes = |_: &str| Router::new().route("/v1/models", get(async || Json(json!({"data": []}))));
    let (_agent, url) = Agent::start_with(routes, |_, _| StatusCode::NOT_FOUND.into_response()).await;
    let service = Service::start(&pool);
    for (name, path, expected) in
        [("base", "v1", "healthy"), ("end", "v1/responses", "healthy"), ("not", "v2", "unhealthy")]
    {
        let agent = json!({"name": name, "url": format!("{url}{path}"), "kind": "responses", "config": {"model": "m"}});
        let agent = service.post("/api/v1/agents", &agent).await.expect(201);
        let health = service.get(&format!("/api/v1/agents/{}/health", agent["id"].as_str().expect("an id"))).await;
        assert_eq!(health.expect(200)["status"], expected, "{name}");
    }
}
