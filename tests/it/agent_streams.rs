//! Agents that stream their output: its pieces are seen in the event stream of the run, and the output is the agent's
//! final answer.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    agent_protocols::{card, methods, rpc, rpc_error, run, with_card, world},
    path::{Agent, Call},
    service::{Service, eventually},
    steps::World,
};

/// An event stream of these events. Before one that is null it waits for a permit; at the end it closes.
pub fn events(list: Vec<Value>, gate: Arc<Semaphore>) -> Response {
    let pieces = futures_util::stream::unfold((list.into_iter(), gate), |(mut list, gate)| async move {
        let event = match list.next()? {
            Value::Null => {
                gate.acquire().await.expect("never closed").forget();
                list.next()?
            }
            event => event,
        };
        let text = event.as_str().map_or_else(|| event.to_string(), str::to_owned);
        Some((Ok::<_, std::io::Error>(Bytes::from(format!("data: {text}\n\n"))), (list, gate)))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
}

/// The events of a task in the form of 1.0, as results of a call.
fn of_task(call: &Call, results: &[Value]) -> Vec<Value> {
    let wrap = |result: &Value| {
        if result.is_null() { Value::Null } else { json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result}) }
    };
    results.iter().map(wrap).collect()
}

fn piece(text: &str, append: bool) -> Value {
    json!({"artifactUpdate": {"taskId": "t", "contextId": "c", "append": append,
        "artifact": {"artifactId": "a", "parts": [{"text": text}]}}})
}

fn task(state: &str) -> Value {
    json!({"id": "t", "contextId": "c", "status": {"state": format!("TASK_STATE_{state}")},
        "artifacts": [{"artifactId": "a", "parts": [{"text": "the whole answer"}]}]})
}

fn status(state: &str) -> Value {
    json!({"statusUpdate": {"taskId": "t", "contextId": "c", "status": {"state": format!("TASK_STATE_{state}")}}})
}

/// Routes of an agent of 1.0 that streams.
fn streaming(url: &str) -> axum::Router {
    with_card(card(url, &[("", "JSONRPC", "1.0")], &json!({"capabilities": {"streaming": true}})))
}

/// Event stream of a run.
pub struct Watched {
    body: Body,
    text: String,
}

impl Watched {
    pub async fn open(service: &Service, run_id: &str) -> Self {
        let response = service.open("GET", &format!("/api/v1/runs/{run_id}/events"), &[], Body::empty()).await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event: its name, its id and its data; `None` at the end.
    async fn next(&mut self) -> Option<(String, Option<String>, Value)> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let found = (field("event: ").unwrap_or_default(), field("id: "), field("data: "));
                self.text = rest.to_owned();
                if let (name, id, Some(data)) = found {
                    return Some((name, id, serde_json::from_str(&data).expect("JSON")));
                }
                continue;
            }
            let frame =
                tokio::time::timeout(Duration::from_mins(1), self.body.frame()).await.expect("something comes")?;
            self.text += std::str::from_utf8(&frame.expect("a body").into_data().expect("data")).expect("text");
        }
    }

    /// The next event of that name.
    pub async fn named(&mut self, wanted: &str) -> Value {
        loop {
            let (name, id, data) = self.next().await.unwrap_or_else(|| panic!("no event {wanted}"));
            assert_eq!(id.is_none(), name == "step.output.delta", "only entries of the log have ids");
            if name == wanted {
                return data;
            }
        }
    }
}

async fn begin(world: &World, input: Value) -> String {
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": input}});
    world.begin("ask", &steps, &json!({})).await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn pieces_of_an_output_reach_the_event_stream_while_the_agent_works(pool: PgPool) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (agent, url) = Agent::start_with(streaming, move |_, call| match call.body["method"].as_str() {
        Some("SendStreamingMessage") => {
            let list = [
                json!({"task": task("SUBMITTED")}),
                piece("the ", false),
                json!(null),
                piece("whole", true),
                piece(" answer", true),
                json!(null),
                status("COMPLETED"),
            ];
            events(of_task(call, &list), Arc::clone(&held))
        }
        _ => rpc(call, &task("COMPLETED")),
    })
    .await;
    let world = world(&pool, &json!({"url": url})).await;
    let run_id = begin(&world, json!({"text": "x"})).await;
    let mut watched = Watched::open(&world.service, &run_id).await;
    let first = watched.named("step.output.delta").await;
    assert_eq!((&first["text"], &first["append"], &first["artifact_id"]), (&json!("the "), &json!(false), &json!("a")));
    assert_eq!((&first["run_id"], &first["step_id"]), (&json!(run_id), &json!("ask")));
    gate.add_permits(1);
    let second = watched.named("step.output.delta").await;
    assert_eq!((&second["text"], &second["append"]), (&json!("whole answer"), &json!(true)), "joined");
    gate.add_permits(1);
    let end = watched.named("end").await;
    assert_eq!(end["status"], "COMPLETED");
    let ended = world.end(run_id.clone()).await;
    assert_eq!(ended.output()["text"], "the whole answer");
    assert_eq!(ended.rows[0]["id"], first["attempt_id"]);
    assert_eq!(methods(&agent), ["SendStreamingMessage", "GetTask"]);
    assert_eq!(agent.calls()[0].headers["accept"], "text/event-stream");
    // They are no entries of the log, and are deleted.
    let logs = world.service.get(&format!("/api/v1/runs/{run_id}/logs")).await.expect(200);
    assert!(!logs.to_string().contains("step.output.delta"), "{logs}");
    world.service.clock.advance(Duration::from_secs(10));
    eventually("the pieces are deleted", async || {
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM step_deltas").fetch_one(&pool).await.expect("a number");
        (left == 0).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn whatever_happens_to_a_stream_the_task_is_queried(pool: PgPool) {
    let (agent, url) = Agent::start_with(streaming, |_, call| {
        let open = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let stream = |list: &[Value]| events(of_task(call, list), Arc::clone(&open));
        match (call.body["method"].as_str(), call.body["params"]["message"]["parts"][0]["text"].as_str()) {
            (Some("GetTask"), _) => rpc(call, &task("COMPLETED")),
            (Some("SendMessage"), _) | (_, Some("no stream")) => rpc(call, &json!({"task": task("COMPLETED")})),
            (_, Some("closed early")) => stream(&[json!({"task": task("WORKING")}), piece("x", true)]),
            (_, Some("half an event")) => {
                let mut list = of_task(call, &[json!({"task": task("WORKING")})]);
                list.push(json!("{\"jsonrpc\":\"2.0\",\"res"));
                events(list, open)
            }
            (_, Some("too large an event")) => {
                stream(&[json!({"task": task("WORKING")}), piece(&"x".repeat(2 << 20), true)])
            }
            (_, Some("an error in the stream")) => {
                let mut list = of_task(call, &[json!({"task": task("WORKING")})]);
                list.push(json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "died"}}));
                events(list, open)
            }
            (_, Some("endless")) => {
                let list: Vec<Value> = (0..200).map(|_| piece(&"x".repeat(100_000), true)).collect();
                stream(&list)
            }
            (_, Some("a final task")) => stream(&[json!({"task": task("COMPLETED")})]),
            (_, Some("a message")) => {
                stream(&[json!({"message": {"messageId": "m", "role": "ROLE_AGENT", "parts": [{"text": "the whole answer"}]}})])
            }
            (_, Some("unsupported")) => rpc_error(call, -32004),
            (_, Some("unsupported in the stream")) => {
                events(vec![json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32004, "message": "no"}})], open)
            }
            (_, Some("failed")) => stream(&[json!({"task": task("WORKING")}), json!({"task": {"id": "t",
                "status": {"state": "TASK_STATE_FAILED", "message": {"role": "ROLE_AGENT", "parts": [{"text": "no paper"}]}}}})]),
            (_, Some("empty")) => stream(&[]),
            other => panic!("{other:?}"),
        }
    })
    .await;
    let world = world(&pool, &json!({"url": url})).await;
    let stream = "SendStreamingMessage";
    for (text, expected) in [
        ("closed early", &[stream, "GetTask"][..]),
        ("half an event", &[stream, "GetTask"]),
        ("too large an event", &[stream, "GetTask"]),
        ("an error in the stream", &[stream, "GetTask"]),
        ("endless", &[stream, "GetTask"]),
        ("a final task", &[stream]),
        ("a message", &[stream]),
        ("no stream", &[stream]),
        ("unsupported", &[stream, "SendMessage"]),
        ("unsupported in the stream", &[stream, "SendMessage"]),
    ] {
        let before = agent.calls().len();
        let ended = run(&world, json!({"text": text})).await;
        assert_eq!(ended.output()["text"], "the whole answer", "{text}");
        assert_eq!(methods(&agent)[before..], *expected, "{text}");
    }
    for (text, expected) in
        [("failed", "Task state: failed: no paper"), ("empty", "the event stream ended before it named a task")]
    {
        let ended = run(&world, json!({"text": text})).await;
        assert_eq!(ended.cause(), format!("Step 'ask' failed: agent 'a': {expected}"), "{text}");
    }
}

/// The rest is in the output, as always.
#[sqlx::test(migrator = "MIGRATOR")]
async fn of_an_attempt_no_more_than_64_kib_are_passed_on(pool: PgPool) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (_agent, url) = Agent::start_with(streaming, move |_, call| match call.body["method"].as_str() {
        Some("SendStreamingMessage") => {
            let mut list = vec![json!({"task": task("WORKING")})];
            list.extend((0..10).map(|_| piece(&"x".repeat(20_000), true)));
            list.extend([json!(null), status("COMPLETED")]);
            events(of_task(call, &list), Arc::clone(&held))
        }
        _ => rpc(call, &task("COMPLETED")),
    })
    .await;
    let world = world(&pool, &json!({"url": url})).await;
    let run_id = begin(&world, json!({"text": "x"})).await;
    let written = async || {
        let sql = "SELECT coalesce(sum(length(text)), 0)::int8 FROM step_deltas";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("a number")
    };
    let most = eventually("all that may be is written", async || {
        let written = written().await;
        (written >= 64 << 10).then_some(written)
    });
    assert_eq!(most.await, 64 << 10);
    gate.add_permits(1);
    assert_eq!(world.end(run_id).await.output()["text"], "the whole answer");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn cancelling_a_run_cancels_the_task_whose_stream_is_read(pool: PgPool) {
    let (agent, url) = Agent::start_with(streaming, |_, call| match call.body["method"].as_str() {
        Some("SendStreamingMessage") => {
            let list = [json!({"task": task("WORKING")}), json!(null), status("COMPLETED")];
            events(of_task(call, &list), Arc::new(Semaphore::new(0)))
        }
        _ => rpc(call, &task("CANCELED")),
    })
    .await;
    let world = world(&pool, &json!({"url": url})).await;
    let run_id = begin(&world, json!({"text": "x"})).await;
    eventually("the stream is read", async || (!agent.calls().is_empty()).then_some(())).await;
    // The task is known once its event is read, which nobody can see from outside.
    eventually("the task is cancelled", async || {
        world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await;
        methods(&agent).contains(&"CancelTask".to_owned()).then_some(())
    })
    .await;
    let cancel = agent.calls().into_iter().find(|call| call.body["method"] == "CancelTask").expect("it");
    assert_eq!(
        (&cancel.body["params"], &cancel.headers["a2a-version"]),
        (&json!({"id": "t"}), &"1.0".parse().expect("it"))
    );
}

/// Nothing is lost by a query, so it is not left to the time-out of the agent.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_whose_stream_is_silent_is_queried(pool: PgPool) {
    let (agent, url) = Agent::start_with(streaming, |_, call| match call.body["method"].as_str() {
        Some("SendStreamingMessage") => {
            let list = [json!({"task": task("WORKING")}), piece("the ", false), json!(null), status("COMPLETED")];
            events(of_task(call, &list), Arc::new(Semaphore::new(0)))
        }
        _ => rpc(call, &task("COMPLETED")),
    })
    .await;
    let world = world(&pool, &json!({"url": url, "timeout_ms": 300_000})).await;
    let run_id = begin(&world, json!({"text": "x"})).await;
    Watched::open(&world.service, &run_id).await.named("step.output.delta").await;
    assert_eq!(methods(&agent), ["SendStreamingMessage"]);
    // It may not have begun to wait for the next event when the clock goes on.
    let is_queried = async || {
        world.service.clock.advance(Duration::from_secs(31));
        (methods(&agent) == ["SendStreamingMessage", "GetTask"]).then_some(())
    };
    eventually("the task is queried", is_queried).await;
    assert_eq!(world.end(run_id).await.output()["text"], "the whole answer");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_whose_stream_has_only_comments_is_queried(pool: PgPool) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (agent, url) = Agent::start_with(streaming, move |_, call| match call.body["method"].as_str() {
        Some("SendStreamingMessage") => {
            let begin = of_task(call, &[json!({"task": task("WORKING")}), piece("the ", false)]);
            let begin = begin.iter().map(|event| format!("data: {event}\n\n")).collect::<Vec<_>>().concat();
            let comments = futures_util::stream::unfold(Arc::clone(&held), |gate| async move {
                gate.acquire().await.expect("never closed").forget();
                Some((Ok::<_, std::io::Error>(Bytes::from(": alive\n\n")), gate))
            });
            let first = futures_util::stream::iter([Ok(Bytes::from(begin))]);
            let body = Body::from_stream(futures_util::StreamExt::chain(first, comments));
            ([("content-type", "text/event-stream")], body).into_response()
        }
        _ => rpc(call, &task("COMPLETED")),
    })
    .await;
    let world = world(&pool, &json!({"url": url, "timeout_ms": 300_000})).await;
    let run_id = begin(&world, json!({"text": "x"})).await;
    Watched::open(&world.service, &run_id).await.named("step.output.delta").await;
    let is_queried = async || {
        gate.add_permits(1);
        world.service.clock.advance(Duration::from_secs(2));
        (methods(&agent) == ["SendStreamingMessage", "GetTask"]).then_some(())
    };
    eventually("the task is queried", is_queried).await;
    assert_eq!(world.end(run_id).await.output()["text"], "the whole answer");
}

/// A model may think for longer than that between two events, and a second call would be paid for too.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_stream_of_a_model_may_be_silent_for_as_long_as_the_agent_has_time(pool: PgPool) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (agent, url) = Agent::start(move |_, call| {
        let list = if call.body["messages"].is_array() {
            let chunk = |text: &str| json!({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]});
            let end = json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
            vec![chunk("Hel"), json!(null), chunk("lo"), end, json!("[DONE]")]
        } else {
            let content = json!([{"type": "output_text", "text": "Hello"}]);
            let response =
                json!({"id": "r", "status": "completed", "output": [{"type": "message", "content": content}]});
            vec![
                json!({"type": "response.output_text.delta", "delta": "Hel"}),
                json!(null),
                json!({"type": "response.completed", "response": response}),
            ]
        };
        events(list, Arc::clone(&held))
    })
    .await;
    let world = World::start(&pool, &[]).await;
    for (number, kind) in ["openai", "responses"].into_iter().enumerate() {
        let body = json!({"name": kind, "url": url, "kind": kind, "timeout_ms": 300_000,
            "config": {"model": "m", "streaming": true}});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": kind, "input_mapping": {"text": "x"}}});
        let run_id = world.begin("ask", &steps, &json!({})).await;
        Watched::open(&world.service, &run_id).await.named("step.output.delta").await;
        for _ in 0..4 {
            world.service.clock.advance(Duration::from_secs(31));
            assert_eq!(world.service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"], "RUNNING");
        }
        gate.add_permits(1);
        let ended = world.end(run_id).await;
        assert_eq!((&ended.output()["text"], agent.calls().len()), (&json!("Hello"), number + 1), "{kind}");
        assert_eq!(ended.rows.len(), 1, "{kind}");
    }
}

/// The task is kept once the stream has named it, not only at its end.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_next_executor_follows_a_task_whose_stream_was_read(pool: PgPool) {
    let gate = Arc::new(Semaphore::new(0));
    let (agent, url) = Agent::start_with(streaming, move |_, call| match call.body["method"].as_str() {
        Some("SendStreamingMessage") => {
            let list = [json!({"task": task("SUBMITTED")}), piece("the ", false), json!(null), status("COMPLETED")];
            events(of_task(call, &list), Arc::clone(&gate))
        }
        _ => rpc(call, &task("COMPLETED")),
    })
    .await;
    let mut world = world(&pool, &json!({"url": url})).await;
    let run_id = begin(&world, json!({"text": "x"})).await;
    let mut watched = Watched::open(&world.service, &run_id).await;
    // It comes after the event with the task.
    watched.named("step.output.delta").await;
    world.kill_executor().await;
    sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(&pool).await.expect("the dead is buried");
    world.executor = Some(crate::path::Executor::start(&world.service));
    let ended = world.end(run_id).await;
    assert_eq!(ended.output()["text"], "the whole answer");
    assert_eq!(methods(&agent), ["SendStreamingMessage", "GetTask"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_model_streams_if_its_config_says_so(pool: PgPool) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (agent, url) = Agent::start(move |_, call| {
        let chunk =
            |text: &str| json!({"id": "c", "model": "m-1", "choices": [{"index": 0, "delta": {"content": text}}]});
        let end = json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        let usage = json!({"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
        match call.body["messages"][0]["content"].as_str() {
            Some("hello") => {
                events(vec![chunk("Hel"), json!(null), chunk("lo"), end, usage, json!("[DONE]")], Arc::clone(&held))
            }
            Some("broken") => events(vec![chunk("Hel")], Arc::clone(&held)),
            Some("large") => events(vec![chunk(&"x".repeat(3 << 20)), end], Arc::clone(&held)),
            Some("error") => {
                events(vec![chunk("H"), json!({"error": {"code": 429, "message": "slow down"}})], Arc::clone(&held))
            }
            _ => Json(json!({"choices": [{"message": {"content": "not streamed"}, "finish_reason": "stop"}]}))
                .into_response(),
        }
    })
    .await;
    let config = json!({"model": "m", "streaming": true});
    let world = world(&pool, &json!({"url": url, "kind": "openai", "config": config})).await;
    let run_id = begin(&world, json!({"text": "hello"})).await;
    let mut watched = Watched::open(&world.service, &run_id).await;
    let first = watched.named("step.output.delta").await;
    assert_eq!((&first["text"], &first["append"], &first["artifact_id"]), (&json!("Hel"), &json!(true), &json!(null)));
    gate.add_permits(1);
    let ended = world.end(run_id).await;
    let usage = json!({"prompt_tokens": 1, "completion_tokens": 2});
    let expected = json!({"text": "Hello", "content": "Hello", "finish_reason": "stop", "model": "m-1", "usage": usage, "id": "c"});
    assert_eq!(ended.output(), &expected);
    let sent = &agent.calls()[0].body;
    assert_eq!((&sent["stream"], &sent["stream_options"]), (&json!(true), &json!({"include_usage": true})));
    assert_eq!(run(&world, json!({"text": "x"})).await.output()["text"], "not streamed");
    for (text, expected) in
        [("broken", "the event stream ended before the completion"), ("error", "the answer is an error 429: slow down")]
    {
        let cause = run(&world, json!({"text": text})).await.cause().to_owned();
        assert_eq!(cause, format!("Step 'ask' failed: agent 'a': {expected}"));
    }
    assert_eq!(run(&world, json!({"text": "large"})).await.output()["text"].as_str().map(str::len), Some(3 << 20));
}

/// A model would be paid for the same answer again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_streamed_answer_that_is_too_large_is_not_asked_for_again(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        let is_huge = call.body.to_string().contains("huge");
        let (count, size) = if is_huge { (1, 11 << 20) } else { (110, 100_000) };
        let text = "x".repeat(size);
        let piece = if call.body["messages"].is_array() {
            json!({"choices": [{"index": 0, "delta": {"content": text}}]})
        } else {
            json!({"type": "response.output_text.delta", "delta": text, "output_index": 0})
        };
        events(vec![piece; count], Arc::new(Semaphore::new(0)))
    })
    .await;
    let world = World::start(&pool, &[]).await;
    for kind in ["openai", "responses"] {
        let body = json!({"name": kind, "url": url, "kind": kind, "config": {"model": "m", "streaming": true},
            "retry_config": {"max_retries": 3, "initial_delay_ms": 100}});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        for text in ["huge", "endless"] {
            let before = agent.calls().len();
            let steps = json!({"ask": {"id": "ask", "agent_name": kind, "input_mapping": {"text": text}}});
            let failed = world.run("ask", &steps, &json!({})).await;
            let expected = "the event stream is larger than 10485760 bytes";
            assert_eq!(failed.cause(), format!("Step 'ask' failed: agent '{kind}': {expected}"), "{text}");
            assert_eq!(agent.calls().len(), before + 1, "{kind} {text}");
        }
    }
}
