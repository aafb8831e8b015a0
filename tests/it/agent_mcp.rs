//! Agents that are a tool of an MCP server, of the revision without sessions and of older ones.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    agent_protocols::{method, methods, rpc, run, world},
    path::{Agent, Call},
    service::{Service, eventually},
    steps::World,
};

/// Error of a JSON-RPC response with that HTTP status.
fn refused(call: &Call, status: u16, code: i32) -> Response {
    let error = json!({"jsonrpc": "2.0", "id": call.body["id"], "error": {"code": code, "message": "no"}});
    (StatusCode::from_u16(status).expect("a status"), Json(error)).into_response()
}

fn said(text: &str) -> Value {
    json!({"resultType": "complete", "content": [{"type": "text", "text": text}], "isError": false})
}

fn tools() -> Value {
    json!({"resultType": "complete", "ttlMs": 1, "cacheScope": "public", "tools": [
        {"name": "add", "description": "Adds numbers", "inputSchema": {"type": "object", "required": ["a", "b"],
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "additionalProperties": false}},
        {"name": "other", "inputSchema": {"type": "object"}}]})
}

/// A server of the revision without sessions, which answers calls so.
pub async fn modern(answer: impl Fn(usize, &Call) -> Response + Send + Sync + 'static) -> (Agent, String) {
    let calls = AtomicUsize::default();
    Agent::start(move |_, call| match method(call) {
        "server/discover" => rpc(
            call,
            &json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "fake", "version": "7"}}}),
        ),
        "tools/list" => rpc(call, &tools()),
        "tools/call" => answer(calls.fetch_add(1, Ordering::Relaxed), call),
        _ => answer(usize::MAX, call),
    })
    .await
}

fn stream(messages: &[Value]) -> Response {
    let events: Vec<String> = messages.iter().map(|message| format!("event: message\ndata: {message}\n\n")).collect();
    let text = events.concat();
    ([("content-type", "text/event-stream")], text).into_response()
}

async fn shown(world: &World) -> Value {
    let agent = world.service.get("/api/v1/agents?name=a").await.expect(200)["items"][0].clone();
    world.service.get(&format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"))).await.expect(200)
}

/// The methods besides those about the list of tools, which is read beside the calls.
pub fn own_methods(agent: &Agent) -> Vec<String> {
    methods(agent).into_iter().filter(|method| method != "tools/list").collect()
}

fn header<'a>(call: &'a Call, name: &str) -> &'a str {
    call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_tool_of_a_server_without_sessions_is_an_agent(pool: PgPool) {
    let (server, url) = modern(|_, call| {
        let arguments = &call.body["params"]["arguments"];
        let sum = arguments["a"].as_i64().expect("a") + arguments["b"].as_i64().expect("b");
        rpc(
            call,
            &json!({"resultType": "complete", "content": [{"type": "text", "text": sum.to_string()}],
            "structuredContent": {"sum": sum}}),
        )
    })
    .await;
    let members = json!({"url": format!("{url}mcp?v=1"), "kind": "mcp", "config": {"tool": "add"}, "auth_type": "bearer",
        "auth_config": {"token": "s3cret"}});
    let world = world(&pool, &members).await;
    let ended = run(&world, json!({"a": 40, "b": 2})).await;
    let expected = json!({"text": "42", "data": {"sum": 42}, "content": [{"type": "text", "text": "42"}]});
    assert_eq!(ended.output(), &expected);
    assert_eq!(run(&world, json!({"a": 1, "b": 2})).await.output()["data"], json!({"sum": 3}));
    assert_eq!(own_methods(&server), ["server/discover", "tools/call", "tools/call"], "it is asked once what it is");
    let calls = server.calls();
    let call = calls.iter().find(|call| method(call) == "tools/call").expect("it");
    let row = ended.rows[0]["id"].as_str().expect("an id");
    let params = &call.body["params"];
    assert_eq!((&params["name"], &params["arguments"]), (&json!("add"), &json!({"a": 40, "b": 2})));
    let meta = &params["_meta"];
    assert_eq!(
        (&meta["io.modelcontextprotocol/protocolVersion"], &meta["idempotencyKey"]),
        (&json!("2026-07-28"), &json!(row))
    );
    let tasks = &meta["io.modelcontextprotocol/clientCapabilities"]["extensions"]["io.modelcontextprotocol/tasks"];
    assert_eq!(tasks, &json!({}));
    assert_eq!(
        ["mcp-protocol-version", "mcp-method", "mcp-name", "idempotency-key", "accept"].map(|name| header(call, name)),
        ["2026-07-28", "tools/call", "add", row, "application/json, text/event-stream"]
    );
    assert!(calls.iter().all(|call| header(call, "authorization") == "Bearer s3cret"));
    assert!(calls.iter().all(|call| !call.headers.contains_key("mcp-session-id")));

    let agent = eventually("the tools are known", async || {
        Some(shown(&world).await)
            .filter(|agent| agent["card"]["content"].is_object() && agent["protocol_seen"].is_string())
    })
    .await;
    let known = &agent["card"]["content"];
    assert_eq!(agent["protocol_seen"], "2026-07-28");
    assert_eq!(
        (&known["name"], &known["version"], &known["tools"][0]["name"]),
        (&json!("fake"), &json!("7"), &json!("add"))
    );
    assert_eq!((&agent["card"]["signature"], &agent["card"]["problem"]), (&json!(null), &json!(null)));
}

/// A server of an older revision with sessions, all of which end after `calls` calls.
async fn legacy(calls: usize, unknown: u16) -> (Agent, String) {
    let (sessions, called) = (AtomicUsize::default(), AtomicUsize::default());
    Agent::start(move |_, call| {
        let current = format!("s-{}", sessions.load(Ordering::Relaxed));
        match method(call) {
            "server/discover" => (StatusCode::BAD_REQUEST, "Bad Request: Missing session ID").into_response(),
            "initialize" => {
                assert!(!call.headers.contains_key("mcp-session-id"));
                let session = format!("s-{}", 1 + sessions.fetch_add(1, Ordering::Relaxed));
                called.store(0, Ordering::Relaxed);
                let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                    "serverInfo": {"name": "old", "version": "1"}});
                let answer = stream(&[json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})]);
                ([("mcp-session-id", session)], answer).into_response()
            }
            _ if header(call, "mcp-session-id") != current => {
                (StatusCode::from_u16(unknown).expect("a status"), "no such session").into_response()
            }
            // An answer to a request of the server has no method.
            "notifications/initialized" | "" => StatusCode::ACCEPTED.into_response(),
            "tools/list" => rpc(call, &tools()),
            "tools/call" if called.fetch_add(1, Ordering::Relaxed) >= calls => {
                sessions.fetch_add(100, Ordering::Relaxed);
                (StatusCode::from_u16(unknown).expect("a status"), "no such session").into_response()
            }
            "tools/call" => {
                let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}});
                let ping = json!({"jsonrpc": "2.0", "id": 7, "method": "ping"});
                let roots = json!({"jsonrpc": "2.0", "id": 8, "method": "roots/list"});
                let mut result = said(r#"{"n":1}"#);
                result.as_object_mut().expect("an object").remove("resultType");
                stream(&[progress, ping, roots, json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})])
            }
            other => panic!("{other}"),
        }
    })
    .await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_older_server_is_spoken_to_in_a_session_and_a_lost_one_is_opened_again(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    for (unknown, kind) in [(404, "gone"), (400, "bad")] {
        let (server, url) = legacy(2, unknown).await;
        add(&world, kind, &json!({"url": url, "config": {"tool": "add"}})).await;
        for _ in 0..2 {
            let ended = call(&world, kind).await;
            assert_eq!(ended.output()["data"], json!({"n": 1}), "the text is JSON");
        }
        assert_eq!(call(&world, kind).await.output()["data"], json!({"n": 1}));
        let opening = ["server/discover", "initialize", "notifications/initialized"];
        let called = ["tools/call", "", ""];
        let expected: Vec<&str> = [&opening[..], &called, &called, &["tools/call"], &opening, &called].concat();
        assert_eq!(own_methods(&server), expected, "{unknown}");
        let calls = server.calls();
        let answers: Vec<&Value> = calls.iter().filter(|call| method(call).is_empty()).map(|call| &call.body).collect();
        assert_eq!((&answers[0]["id"], &answers[0]["result"]), (&json!(7), &json!({})));
        assert_eq!((&answers[1]["id"], &answers[1]["error"]["code"]), (&json!(8), &json!(-32601)));
        let of_session = |call: &&Call| method(call) == "tools/call";
        for call in calls.iter().filter(of_session) {
            assert_eq!(header(call, "mcp-protocol-version"), "2025-06-18");
            assert!(call.body["params"]["_meta"]["idempotencyKey"].is_string());
            assert!(!call.headers.contains_key("mcp-method"));
        }
        let ids: Vec<&Value> = calls.iter().filter(of_session).map(|call| &call.body["id"]).collect();
        assert_eq!(ids[2], ids[3], "the same attempt, sent again");
        let path = format!("/api/v1/agents?name={kind}");
        eventually("the revision is known", async || {
            let agent = world.service.get(&path).await.expect(200)["items"][0].clone();
            (agent["protocol_seen"] == "2025-06-18").then_some(())
        })
        .await;
    }
}

/// Registers an MCP agent of that name, which is tried once.
async fn add(world: &World, name: &str, members: &Value) {
    let mut agent = json!({"name": name, "kind": "mcp", "circuit_breaker_config": {"enabled": false},
        "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    agent.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
    world.service.post("/api/v1/agents", &agent).await.expect(201);
}

async fn call(world: &World, name: &str) -> crate::steps::Ended {
    let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"a": 1, "b": 2}}});
    world.run("ask", &steps, &json!({})).await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_no_result_is_said_in_the_runs_error_and_bounded(pool: PgPool) {
    let (server, url) = modern(|_, call| {
        let id = call.body["id"].clone();
        let result = |result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
        match call.body["params"]["arguments"]["want"].as_str().expect("a wish") {
            "failed" => rpc(call, &json!({"content": [{"type": "text", "text": "no such city"}], "isError": true})),
            "silent failure" => rpc(call, &json!({"content": [], "isError": true})),
            "rpc error" => refused(call, 200, -32602),
            "http error" => refused(call, 400, -32602),
            "down" => (StatusCode::BAD_GATEWAY, "down").into_response(),
            "moved" => (StatusCode::FOUND, [("location", "/elsewhere")]).into_response(),
            "html" => axum::response::Html("<html><title>Welcome</title></html>").into_response(),
            "half" => ([("content-type", "application/json")], "{\"jsonrpc\":\"2.0\",\"res").into_response(),
            "empty" => StatusCode::ACCEPTED.into_response(),
            "list" => Json(json!([1])).into_response(),
            "odd" => rpc(call, &json!({"resultType": "odd"})),
            "nothing" => rpc(call, &json!({})),
            "no id" => rpc(call, &json!({"resultType": "task", "status": "working"})),
            "question" => rpc(
                call,
                &json!({"resultType": "input_required", "inputRequests": {
                "q": {"method": "elicitation/create", "params": {"message": "Which city?"}}}}),
            ),
            "huge" => rpc(call, &said(&"x".repeat(11 << 20))),
            "huge event" => stream(&[result(said(&"x".repeat(11 << 20)))]),
            "endless" => {
                let pieces = std::iter::repeat_with(|| {
                    format!("data: {{\"method\":\"n\",\"p\":\"{}\"}}\n\n", "x".repeat(60_000))
                });
                let body =
                    axum::body::Body::from_stream(futures_util::stream::iter(pieces.map(Ok::<_, std::io::Error>)));
                ([("content-type", "text/event-stream")], body).into_response()
            }
            "cut stream" => stream(&[json!({"jsonrpc": "2.0", "method": "notifications/progress"})]),
            "half an event" => ([("content-type", "text/event-stream")], "data: {\"jsonrpc\n\n").into_response(),
            "large" => stream(&[result(said(&"x".repeat(3 << 20)))]),
            "chatty" => {
                let ask = |id: usize| json!({"jsonrpc": "2.0", "id": id, "method": "roots/list"});
                stream(&(0..20).map(ask).collect::<Vec<_>>())
            }
            other => panic!("{other}"),
        }
    })
    .await;
    let world = world(&pool, &json!({"url": url, "kind": "mcp", "config": {"tool": "t"}})).await;
    for (want, expected) in [
        ("failed", "the tool failed: no such city"),
        ("silent failure", "the tool failed"),
        ("rpc error", "JSON-RPC Error -32602: no"),
        ("http error", "HTTP 400: Bad Request, JSON-RPC Error -32602: no"),
        ("down", "HTTP 502: Bad Gateway, down"),
        ("moved", "HTTP 302: Found (redirects are not followed)"),
        ("html", "it is text/html and begins with <title>Welcome"),
        ("half", "the answer is no result of a tool: JSON decode error"),
        ("empty", "the answer is no result of a tool: it is empty, with status 202"),
        ("list", "the answer is not a JSON-RPC 2.0 response: it is not an object"),
        ("odd", "it has the unknown resultType \"odd\""),
        ("nothing", "it has neither content nor structuredContent"),
        ("no id", "its task has no id that can be kept"),
        ("question", "the tool asks for more input, which a step cannot give: Which city?"),
        ("huge", "larger than"),
        ("huge event", "its event stream is larger than"),
        ("endless", "its event stream is larger than"),
        ("cut stream", "the event stream ended before the answer"),
        ("half an event", "an event of the stream is not JSON"),
        ("chatty", "it has more than 16 requests of the server"),
    ] {
        let failed = run(&world, json!({"want": want})).await;
        assert!(failed.cause().contains(expected), "{want}: {}", failed.cause());
        assert_eq!(failed.rows.len(), 1, "{want}");
    }
    assert_eq!(run(&world, json!({"want": "large"})).await.output()["text"].as_str().map(str::len), Some(3 << 20));
    let calls = server.calls().iter().filter(|call| method(call) == "tools/call").count();
    assert_eq!(calls, 21, "none is sent again");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_call_is_sent_again_only_if_the_server_has_done_nothing(pool: PgPool) {
    let (server, url) = modern(|number, call| match (call.body["params"]["arguments"]["want"].as_str(), number % 2) {
        (Some("version"), 0) | (Some("twice"), _) => refused(call, 400, -32022),
        (Some("method"), 0) => refused(call, 404, -32601),
        (Some("headers"), 0) => refused(call, 400, -32020),
        _ => rpc(call, &said("done")),
    })
    .await;
    let world = world(&pool, &json!({"url": url, "kind": "mcp", "config": {"tool": "add"}})).await;
    for (want, expected) in [
        ("version", &["server/discover", "tools/call", "server/discover", "tools/call"][..]),
        ("method", &["tools/call", "server/discover", "tools/call"]),
        ("headers", &["tools/call", "tools/call"]),
    ] {
        let before = own_methods(&server).len();
        assert_eq!(run(&world, json!({"want": want})).await.output()["text"], "done", "{want}");
        assert_eq!(own_methods(&server)[before..], *expected, "{want}");
    }
    let before = own_methods(&server).len();
    let failed = run(&world, json!({"want": "twice"})).await;
    assert!(failed.cause().contains("HTTP 400: Bad Request, JSON-RPC Error -32022"), "{}", failed.cause());
    assert_eq!(own_methods(&server)[before..], ["tools/call", "server/discover", "tools/call"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn parameters_that_the_server_wants_in_headers_are_there(pool: PgPool) {
    let (server, url) = Agent::start(|_, call| match method(call) {
        "server/discover" => rpc(call, &json!({"supportedVersions": ["2026-07-28"]})),
        "tools/list" => rpc(
            call,
            &json!({"tools": [{"name": "t", "inputSchema": {"type": "object", "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"}}}}]}),
        ),
        _ if header(call, "mcp-param-region") == "=?base64?w7Y=?=" => rpc(call, &said("done")),
        _ => refused(call, 400, -32020),
    })
    .await;
    let world = world(&pool, &json!({"url": url, "kind": "mcp", "config": {"tool": "t"}})).await;
    for expected in [&["server/discover", "tools/call", "tools/list", "tools/call"][..], &["tools/call"]] {
        let before = server.calls().len();
        assert_eq!(run(&world, json!({"region": "ö"})).await.output()["text"], "done");
        let seen: Vec<String> = methods(&server)[before..].to_vec();
        assert_eq!(seen[..expected.len()], *expected);
    }
}

/// A server whose tool answers with a task, which is in the state that the input wants once it was queried three times.
async fn slow() -> (Agent, String) {
    let queries = AtomicUsize::default();
    modern(move |_, call| {
        let task = |state: &str| {
            json!({"taskId": call.body["params"]["taskId"], "status": state, "pollIntervalMs": 1,
            "ttlMs": null, "statusMessage": "well", "resultType": "complete"})
        };
        let with = |state: &str, name: &str, value: Value| {
            let mut task = task(state);
            task[name] = value;
            task
        };
        match (method(call), call.body["params"]["taskId"].as_str()) {
            ("tools/call", _) => {
                queries.store(0, Ordering::Relaxed);
                let id = &call.body["params"]["arguments"]["want"];
                rpc(call, &json!({"resultType": "task", "taskId": id, "status": "working", "pollIntervalMs": 1}))
            }
            ("tasks/cancel", _) => rpc(call, &json!({"resultType": "complete"})),
            ("tasks/get", Some("never")) => rpc(call, &task("working")),
            ("tasks/get", Some("gone")) => refused(call, 200, -32602),
            ("tasks/get", Some(id)) => match (queries.fetch_add(1, Ordering::Relaxed), id) {
                (0, _) => rpc(call, &task("working")),
                (1, _) => (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response(),
                (2, _) => rpc(call, &task("dreaming")),
                (_, "completed") => rpc(call, &with("completed", "result", said("at last"))),
                (_, "failed tool") => {
                    let result = json!({"content": [{"type": "text", "text": "no paper"}], "isError": true});
                    rpc(call, &with("completed", "result", result))
                }
                (_, "failed") => rpc(call, &with("failed", "error", json!({"code": -32603, "message": "died"}))),
                (_, "cancelled") => rpc(call, &task("cancelled")),
                (_, "question") => {
                    let ask = json!({"q": {"method": "elicitation/create", "params": {"message": "Sure?"}}});
                    rpc(call, &with("input_required", "inputRequests", ask))
                }
                (_, other) => panic!("{other}"),
            },
            other => panic!("{other:?}"),
        }
    })
    .await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_of_a_server_is_followed_to_its_end(pool: PgPool) {
    let (server, url) = slow().await;
    let members = json!({"url": url, "kind": "mcp", "config": {"tool": "t"}});
    let world = world(&pool, &members).await;
    let done = run(&world, json!({"want": "completed"})).await;
    assert_eq!((&done.output()["text"], done.rows.len()), (&json!("at last"), 1));
    let expected = ["server/discover", "tools/call", "tasks/get", "tasks/get", "tasks/get", "tasks/get"];
    assert_eq!(own_methods(&server), expected);
    let query = server.calls().into_iter().find(|call| method(call) == "tasks/get").expect("it");
    assert_eq!(["mcp-method", "mcp-name"].map(|name| header(&query, name)), ["tasks/get", "completed"]);
    assert!(!query.headers.contains_key("idempotency-key"), "it is no repeat of the call");
    for (want, expected) in [
        ("failed tool", "the tool failed: no paper"),
        ("failed", "JSON-RPC Error -32603: died"),
        ("cancelled", "the task was cancelled: well"),
        ("gone", "JSON-RPC Error -32602: no"),
    ] {
        let failed = run(&world, json!({"want": want})).await;
        assert_eq!(failed.cause(), format!("Step 'ask' failed: agent 'a': {expected}"));
        assert_eq!(failed.rows.len(), 1, "it is not tried again");
    }
    assert!(!own_methods(&server).contains(&"tasks/cancel".to_owned()), "what has ended is not cancelled");
    let failed = run(&world, json!({"want": "question"})).await;
    assert!(failed.cause().ends_with("the tool asks for more input, which a step cannot give: Sure?"));
    eventually("it does not wait for ever", async || {
        own_methods(&server).contains(&"tasks/cancel".to_owned()).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_task_that_nobody_waits_for_is_cancelled(pool: PgPool) {
    let (server, url) = slow().await;
    let world = world(&pool, &json!({"url": url, "kind": "mcp", "config": {"tool": "t"}, "timeout_ms": 1000})).await;
    let failed = run(&world, json!({"want": "never"})).await;
    assert!(failed.cause().contains("no complete answer within 1000 ms"), "{}", failed.cause());
    let cancels = || server.calls().into_iter().filter(|call| method(call) == "tasks/cancel").collect::<Vec<_>>();
    eventually("it is cancelled in time", async || (cancels().len() == 1).then_some(())).await;
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"want": "never"}}});
    let before = own_methods(&server).len();
    let run_id = world.begin("ask", &steps, &json!({})).await;
    eventually("the task is followed", async || {
        own_methods(&server)[before..].contains(&"tasks/get".to_owned()).then_some(())
    })
    .await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    eventually("it is cancelled with the run", async || (cancels().len() == 2).then_some(())).await;
    let cancel = cancels().pop().expect("it");
    assert_eq!((&cancel.body["params"]["taskId"], header(&cancel, "mcp-name")), (&json!("never"), "never"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_call_of_an_older_server_is_cancelled_by_a_notification(pool: PgPool) {
    let (server, url) = Agent::start(|_, call| match method(call) {
        "initialize" => rpc(call, &json!({"protocolVersion": "2025-11-25", "capabilities": {}})),
        "tools/call" => {
            let body =
                axum::body::Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
            ([("content-type", "text/event-stream")], body).into_response()
        }
        _ => StatusCode::ACCEPTED.into_response(),
    })
    .await;
    let members =
        json!({"url": url, "kind": "mcp", "timeout_ms": 1000, "config": {"tool": "t", "protocol": "2025-11-25"}});
    let world = world(&pool, &members).await;
    let failed = run(&world, json!({})).await;
    assert!(failed.cause().contains("no complete answer within 1000 ms"), "{}", failed.cause());
    let cancel = eventually("the server hears of it", async || {
        server.calls().into_iter().find(|call| method(call) == "notifications/cancelled")
    })
    .await;
    let sent = server.calls().into_iter().find(|call| method(call) == "tools/call").expect("it");
    assert_eq!(cancel.body["params"]["requestId"], sent.body["id"]);
    assert_eq!(own_methods(&server)[0], "initialize", "a fixed revision is not asked for");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_server_that_cannot_be_connected_fails_the_step_with_the_reason(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    for (name, answer, expected) in [
        ("unauthorised", (401, "who are you"), "HTTP 401: Unauthorized"),
        ("down", (503, "busy"), "HTTP 503: Service Unavailable"),
        ("page", (404, "<html><title>Not here</title></html>"), "HTTP 404: Not Found"),
        ("ok", (200, "hello"), "the answer is not a JSON-RPC 2.0 response"),
        (
            "newer",
            (
                200,
                r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2099-01-01","supportedVersions":["2099-01-01"]}}"#,
            ),
            "speaks no revision that this service knows: \"2099-01-01\"",
        ),
    ] {
        let (status, text) = answer;
        let (_server, url) =
            Agent::start(move |_, _| (StatusCode::from_u16(status).expect("a status"), text).into_response()).await;
        add(&world, name, &json!({"url": url, "config": {"tool": "t"}})).await;
        let failed = call(&world, name).await;
        assert!(failed.cause().contains(expected), "{name}: {}", failed.cause());
    }
}

/// Also that of the first call, for which the list of tools is read.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_structured_output_must_be_what_the_tool_has_promised(pool: PgPool) {
    let (_server, url) = Agent::start(|_, call| match method(call) {
        "server/discover" => rpc(call, &json!({"resultType": "complete", "supportedVersions": ["2026-07-28"]})),
        "tools/list" => {
            let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
            let tool = |name: &str, schema: Value| {
                json!({"name": name, "inputSchema": {"type": "object"}, "outputSchema": schema})
            };
            let odd = json!({"type": "object", "pattern": 7});
            rpc(call, &json!({"resultType": "complete", "tools": [tool("add", schema), tool("odd", odd)]}))
        }
        "tools/call" => rpc(call, &call.body["params"]["arguments"]["result"]),
        _ => rpc(
            call,
            &json!({"taskId": "t", "status": "completed", "result": {"content": [], "structuredContent": {"n": "7"}}}),
        ),
    })
    .await;
    let world = World::start(&pool, &[]).await;
    add(&world, "promising", &json!({"url": url, "config": {"tool": "add"}})).await;
    add(&world, "odd", &json!({"url": url, "config": {"tool": "odd"}})).await;
    let call = async |name: &str, result: Value| {
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"result": result}}});
        world.run("ask", &steps, &json!({})).await
    };
    let structured = |value: Value| json!({"content": [], "structuredContent": value});
    let first = call("promising", structured(json!({"n": "one"}))).await;
    assert!(first.cause().contains("the outputSchema of the tool does not allow it: "), "{}", first.cause());
    assert_eq!(call("promising", structured(json!({"n": 7, "m": 1}))).await.output()["data"]["n"], 7);
    for (result, at) in [
        (structured(json!({"n": "seven"})), "structuredContent.n "),
        (structured(json!({})), "structuredContent \"n\" is a required property"),
        (structured(json!([1])), "structuredContent "),
        (
            json!({"resultType": "task", "taskId": "t", "status": "working", "pollIntervalMs": 1}),
            "structuredContent.n ",
        ),
    ] {
        let failed = call("promising", result.clone()).await;
        let cause = failed.cause();
        assert!(cause.contains("the outputSchema of the tool does not allow it: "), "{result}: {cause}");
        assert!(cause.contains(at), "{result}: {cause}");
        assert_eq!(failed.rows.len(), 1, "another attempt would fail in the same way");
    }
    // What is no structured output has no schema, and a failure is no output.
    assert_eq!(call("promising", said("{\"n\":true}")).await.output()["data"]["n"], true);
    let failure = json!({"content": [{"type": "text", "text": "no"}], "structuredContent": {}, "isError": true});
    assert!(call("promising", failure).await.cause().ends_with("the tool failed: no"));
    // A schema that cannot be used promises nothing.
    call("odd", structured(json!({"n": "seven"}))).await.output();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_definition_is_held_against_the_tools_that_are_known(pool: PgPool) {
    let (_server, url) = modern(|_, call| rpc(call, &said("done"))).await;
    let service = Service::start(&pool);
    let agent = |name: &str, tool: &str| json!({"name": name, "url": url, "kind": "mcp", "config": {"tool": tool}});
    let mut ids = Vec::new();
    for (name, tool) in [("adder", "add"), ("lost", "subtract")] {
        let agent = service.post("/api/v1/agents", &agent(name, tool)).await.expect(201);
        ids.push(agent["id"].as_str().expect("an id").to_owned());
    }
    let step = |agent: &str, input: Value| {
        json!({"start_step": "s", "name": "w",
        "steps": {"s": {"id": "s", "agent_name": agent, "input_mapping": input}}})
    };
    let warnings = async |definition: &Value| {
        let answer = service.post("/api/v1/workflows/validate", definition).await.expect(200);
        assert_eq!(answer["valid"], true, "{answer}");
        let list = answer["warnings"].as_array().expect("a list").clone();
        list.iter()
            .map(|warning| format!("{} {}", warning["field"], warning["type"]).replace('"', ""))
            .collect::<Vec<_>>()
    };
    assert_eq!(warnings(&step("lost", json!({}))).await, [""; 0], "nothing is known yet");
    let health = async |id: &str| service.get(&format!("/api/v1/agents/{id}/health")).await.expect(200);
    let healthy = health(&ids[0]).await;
    assert_eq!((&healthy["status"], &healthy["message"]), (&json!("healthy"), &json!("Adds numbers")));
    assert_eq!(healthy["agent_card"]["tools"][1]["name"], "other");
    let lost = health(&ids[1]).await;
    assert_eq!(
        (&lost["status"], &lost["message"]),
        (&json!("unhealthy"), &json!("The MCP server has no tool \"subtract\""))
    );
    assert_eq!(warnings(&step("adder", json!({"a": 1, "b": "${workflow.input.b}"}))).await, [""; 0]);
    let input = json!({"a": 1, "c": 3});
    assert_eq!(
        warnings(&step("adder", input.clone())).await,
        ["body.steps.s.input_mapping tool_argument_missing", "body.steps.s.input_mapping tool_argument_unknown"]
    );
    assert_eq!(warnings(&step("lost", json!({}))).await, ["body.steps.s.agent_name tool_not_found"]);
    let stored = service.post("/api/v1/workflows", &step("adder", input)).await.expect(201);
    assert_eq!(stored["warnings"][0]["message"], "The tool \"add\" requires the argument \"b\"");
    let agent = service.get(&format!("/api/v1/agents/{}", ids[0])).await.expect(200);
    assert_eq!(
        (&agent["protocol_seen"], &agent["card"]["content"]["tools"][0]["name"]),
        (&json!("2026-07-28"), &json!("add"))
    );
    // A changed address leaves what was known of the other one behind.
    let moved = json!({"url": "http://127.0.0.1:9/mcp"});
    service.put(&format!("/api/v1/agents/{}", ids[1]), &moved).await.expect(200);
    assert_eq!(warnings(&step("lost", json!({}))).await, [""; 0]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_tool_that_demands_a_task_of_a_revision_whose_tasks_are_not_spoken_is_warned_of(pool: PgPool) {
    let tool = |name: &str, support: &str| json!({"name": name, "inputSchema": {"type": "object"}, "execution": {"taskSupport": support}});
    let tools = json!({"resultType": "complete", "tools": [tool("slow", "required"), tool("quick", "optional")]});
    let server = async |revision: &'static str| {
        let tools = tools.clone();
        Agent::start(move |_, call| match method(call) {
            "server/discover" if revision == "2026-07-28" => {
                rpc(call, &json!({"resultType": "complete", "supportedVersions": [revision], "capabilities": {}}))
            }
            "initialize" => rpc(call, &json!({"protocolVersion": revision, "capabilities": {}})),
            "tools/list" => rpc(call, &tools),
            _ => StatusCode::ACCEPTED.into_response(),
        })
        .await
    };
    let service = Service::start(&pool);
    for (revision, tool, expected) in [
        ("2025-11-25", "slow", &["body.steps.s.agent_name tool_needs_task"][..]),
        ("2025-11-25", "quick", &[]),
        ("2026-07-28", "slow", &[]),
    ] {
        let (_server, url) = server(revision).await;
        let name = format!("{tool} of {revision}");
        let config = json!({"tool": tool, "protocol": revision});
        let agent = json!({"name": name, "url": url, "kind": "mcp", "config": config});
        let agent = service.post("/api/v1/agents", &agent).await.expect(201);
        let id = agent["id"].as_str().expect("an id");
        assert_eq!(service.get(&format!("/api/v1/agents/{id}/health")).await.expect(200)["status"], "healthy");
        let steps = json!({"s": {"id": "s", "agent_name": name, "input_mapping": {}}});
        let definition = json!({"name": "w", "start_step": "s", "steps": steps});
        let answer = service.post("/api/v1/workflows/validate", &definition).await.expect(200);
        let warnings = answer["warnings"].as_array().expect("a list").iter();
        let warnings: Vec<_> =
            warnings.map(|warning| format!("{} {}", warning["field"], warning["type"]).replace('"', "")).collect();
        assert_eq!(warnings, expected, "{name}: {answer}");
    }
}
